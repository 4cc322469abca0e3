"""A threshold of seed masks without masks: where the dense CRF agrees with the mask and the objects do not fill the image.

`python -m wsss_lib.refine.threshold_choice PRESET` prints the curve of a run, beside its mIoU where there are masks.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsss_lib.config import Config
from wsss_lib.core.progress import progress
from wsss_lib.core.scoring import full_size_maps, sweep_maps
from wsss_lib.core.stage import open_stage
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.methods import maps_of
from wsss_lib.ops.crf import crf_from_labels
from wsss_lib.ops.seeds import argmax_with_background
from wsss_lib.presets import preset_config

THRESHOLDS = np.arange(0.1, 0.95, 0.05).round(2)
COUNT = 24  # images that decide
MARGIN = 0.15  # of the thresholds for confident labels, above and below


def agreement(image: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float) -> float:
    """Return how far the CRF leaves a mask's objects in place, times the fraction of the image that is background.

    The CRF moves outlines to where colors change, so it confirms a mask that ends there. It also confirms a mask that
    fills the image; the second factor corrects this.

    Args:
        image: uint8 (H, W, 3).
        scores: (K, H, W) in [0, 1].
        classes: (K,), 0-based.

    Returns:
        in [0, 1]; 0 for an empty mask.
    """
    mask = argmax_with_background(scores, classes, threshold)
    labels = np.array([0, *(classes + 1)])
    refined = labels[crf_from_labels(image, np.searchsorted(labels, mask), len(labels))]
    objects = (mask > 0) | (refined > 0)
    if not objects.any():
        return 0.0
    return float(((mask == refined) & (mask > 0)).sum() / objects.sum() * (mask == 0).mean())


def agreement_curve(data: SegmentationDataset, maps_folder: Path, count: int = COUNT) -> np.ndarray:
    """Return the mean agreement of evenly spaced images of a split at all `THRESHOLDS`: (T,).

    Args:
        count: at most so many images; those without a class do not count.
    """
    labelled = [image_id for image_id in data.ids if data.label(image_id).any()]
    chosen = [labelled[int(index)] for index in np.unique(np.linspace(0, len(labelled) - 1, count).round())]
    curves = []
    for image_id in progress(chosen, "choosing a threshold"):
        classes, scores = full_size_maps(maps_folder, image_id)
        image = np.array(data.image(image_id))
        curves.append([agreement(image, scores, classes, float(threshold)) for threshold in THRESHOLDS])
    return np.mean(curves, axis=0)


def chosen_thresholds(curve: np.ndarray) -> dict[str, float]:
    """Return the seed-mask parameters that a curve suggests.

    >>> chosen_thresholds(np.eye(len(THRESHOLDS))[8])
    {'seed_threshold': 0.5, 'seed_foreground_threshold': 0.65, 'seed_background_threshold': 0.35}
    """
    threshold = float(THRESHOLDS[int(curve.argmax())])
    return {
        "seed_threshold": round(threshold, 2),
        "seed_foreground_threshold": round(min(threshold + MARGIN, 0.95), 2),
        "seed_background_threshold": round(max(threshold - MARGIN, 0.05), 2),
    }


def curve_of(config: Config) -> np.ndarray:
    """Return `agreement_curve` of the finished maps of a configuration's method.

    Raises:
        DataError: the maps are not finished.
    """
    return agreement_curve(open_data(config, config.train_split), open_stage(maps_of(config.method), config).folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the curve; ends the program with a sentence when there are no maps."""
    parser = argparse.ArgumentParser(prog="python -m wsss_lib.refine.threshold_choice", description=__doc__)
    parser.add_argument("preset", help="of the run: a name, or data/mine/preset.yaml")
    parser.add_argument("--method", default="cam")
    options = parser.parse_args(arguments)
    try:
        config = preset_config(options.preset, options.method)
        curve, data = curve_of(config), open_data(config, config.score_split).scored()
        masks = data.has_masks
        few = data.part(slice(300))
        sweep = sweep_maps(few, open_stage(maps_of(config.method), config).folder, THRESHOLDS) if masks else None
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    for index, threshold in enumerate(THRESHOLDS):
        scored = f"  mIoU {100 * sweep.curve()[index]:5.1f} %" if sweep else ""
        print(f"threshold {threshold:.2f}  agreement {curve[index]:.3f}{scored}")
    print(", ".join(f"{name} {value}" for name, value in chosen_thresholds(curve).items()))


if __name__ == "__main__":
    main()
