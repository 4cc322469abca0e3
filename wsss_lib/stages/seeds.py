"""Notebook 70: stored maps, their scores, and the seeds made of them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from wsss_lib.config import Config
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.formats import read_maps, write_mask
from wsss_lib.inference import for_each_image
from wsss_lib.metrics import part_recall
from wsss_lib.progress import progress
from wsss_lib.refine.seeds import argmax_with_background, seed_mask_and_irn_labels, upsample_scores
from wsss_lib.thresholds import ThresholdSweep


def full_size_maps(maps_folder: Path, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Read an image's maps at full resolution.

    Args:
        maps_folder: of `ID.npz`.
        image_id: of the image.

    Returns:
        classes int64 (K,), 0-based; scores float32 (K, H, W) in [0, 1].

    Raises:
        DataError: the file is missing or broken.

    Explained in notebook 70, section "Thresholds".
    """
    classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
    return classes, upsample_scores(scores, size)


def sweep_maps(data: SegmentationDataset, maps_folder: Path, thresholds: Sequence[float],
               kind: type[ThresholdSweep] = ThresholdSweep) -> ThresholdSweep:
    """Compare the maps of a split with the true masks at all thresholds in one pass.

    Args:
        data: with true masks.
        maps_folder: of `ID.npz`.
        thresholds: (T,) strictly increasing, in [0, 1].
        kind: `ImageThresholds` also keeps each image's own curve.

    Returns:
        the filled sweep.

    Raises:
        DataError: a map or a true mask is missing or broken.

    Explained in notebook 70, section "All thresholds in one pass".
    """
    sweep = kind(data.num_classes + 1, thresholds)
    for image_id in progress(data.ids, "threshold sweep"):
        classes, scores = full_size_maps(maps_folder, image_id)
        sweep.add(data.mask(image_id), scores, classes)
    return sweep


def score_maps(data: SegmentationDataset, maps_folder: Path) -> dict:
    """Return the row of `metrics.json` for maps at their best threshold, which the true masks choose, with the whole curve.

    Args:
        data: with true masks.
        maps_folder: of `ID.npz`.

    Returns:
        what, split, images, crf, pixel_labels_chose; `miou` in percent; `threshold`; `thresholds` (0.01 to 0.90) and, in
        percent, `curve`.

    Explained in notebook 10, section "Numbers".
    """
    sweep = sweep_maps(data, maps_folder, np.linspace(0.01, 0.9, 90))
    threshold, miou = sweep.best()
    return {"what": "CAM at its best threshold", "split": data.split, "images": len(data), "crf": False,
            "miou": round(100 * miou, 2), "pixel_labels_chose": f"threshold {threshold:.2f}", "threshold": round(threshold, 4),
            "thresholds": np.round(sweep.thresholds, 4).tolist(), "curve": np.round(100 * sweep.curve(), 2).tolist()}


def mean_part_recall(data: SegmentationDataset, maps_folder: Path, threshold: float,
                     count: int = 300) -> dict[str, float] | None:
    """Return which share of the heads and of the bodies of generated creatures the maps find.

    Args:
        data: with part masks in the folder `PartMasks`.
        maps_folder: of `ID.npz`.
        threshold: the score of the background.
        count: only the first images.

    Returns:
        {"head": mean over images in 0..1, "body": mean}, or None where the data have no part masks.

    Explained in notebook 10, section "The flaw, measured".
    """
    if not (data.root / "PartMasks").is_dir():
        return None
    recalls = []
    for image_id in data.ids[:count]:
        classes, scores = full_size_maps(maps_folder, image_id)
        parts = np.array(Image.open(data.root / "PartMasks" / f"{image_id}.png"))
        recalls.append(part_recall(argmax_with_background(scores, classes, threshold), parts, data.mask(image_id)))
    return {part: float(np.nanmean([recall[part] for recall in recalls])) for part in ("head", "body")}


def make_seeds(data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> int:
    """Write seed masks after the CRF (`seed_masks/ID.png`) and IRN's labels (`irn_labels/ID.png`) of every image without them.

    Args:
        data: the images.
        maps_folder: of `ID.npz`.
        config: gives seed_* and num_workers.
        folder: of the stage.

    Returns:
        the number of images made now.

    Explained in notebook 70, section "All images".
    """
    work = partial(_make_seeds_of_image, data=data, maps_folder=maps_folder, config=config, folder=folder)
    return for_each_image(data.ids, lambda image_id: (folder / "seed_masks" / f"{image_id}.png",
                                                      folder / "irn_labels" / f"{image_id}.png"), work, "seeds",
                          config, config.num_workers)


def _make_seeds_of_image(image_id: str, data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> None:
    image = np.array(data.image(image_id))
    classes, scores = full_size_maps(maps_folder, image_id)
    mask, labels = seed_mask_and_irn_labels(image, scores, classes, config.seed_threshold, config.seed_foreground_threshold,
                                            config.seed_background_threshold, config.seed_crf_iterations)
    write_mask(folder / "seed_masks" / f"{image_id}.png", mask)
    write_mask(folder / "irn_labels" / f"{image_id}.png", labels)
