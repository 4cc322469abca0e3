"""Masks against the ground truth, and the rows of `metrics.json`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from wsss_lib.core.files import image_size, read_full_size_maps, read_mask
from wsss_lib.core.progress import progress
from wsss_lib.core.stage import Job
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.ops.metrics import Evaluation, part_recall
from wsss_lib.ops.seeds import argmax_with_background
from wsss_lib.ops.thresholds import ThresholdSweep
from wsss_lib.parameters import Settings


def score_masks(data: SegmentationDataset, mask_of: Callable[[str], np.ndarray] | Path) -> Evaluation:
    """Compare masks with the ground truth over a split.

    Args:
        mask_of: a folder of `ID.png`, or a function from image id to a uint8 (H, W) map.

    Raises:
        DataError: a mask is missing or broken.

    Explained in notebook 70, section "Numbers".
    """
    evaluation = Evaluation(data.num_classes + 1)
    for image_id in progress(data.ids, "scoring"):
        if callable(mask_of):
            mask = mask_of(image_id)
        else:
            size = image_size(data.image_path(image_id))
            mask = read_mask(Path(mask_of) / f"{image_id}.png", data.num_classes, size)
        evaluation.add(data.mask(image_id), mask)
    return evaluation


def metric_row(what: str, data: SegmentationDataset, evaluation: Evaluation, crf: bool, config: Settings) -> dict:
    """Return one row of `metrics.json`.

    Args:
        what: the stage in words, e.g. "CAM seed".
        evaluation: its confusion matrix.

    Returns:
        what, split, images, crf, pixel_labels_chose; `miou`, mean `precision` and mean `recall` in percent; `class_iou`, one
        value in percent per class, the background first, None where undefined; `unknown_share` in [0, 1].

    Raises:
        ValueError: the ground truth holds no labeled pixel, or none of any class.

    Explained in notebook 70, section "Numbers".
    """
    result = evaluation.scores()
    _require_classes(data, evaluation.confusion.sum(1))
    return {
        "what": what,
        "split": data.split,
        "images": len(data),
        "crf": crf,
        "miou": round(100 * result.miou, 2),
        "precision": round(100 * float(np.nanmean(result.precision)), 2),
        "recall": round(100 * float(np.nanmean(result.recall)), 2),
        "class_iou": [None if np.isnan(value) else round(100 * float(value), 2) for value in result.iou],
        "unknown_share": round(evaluation.unknown_share, 4),
        "pixel_labels_chose": config.pixel_labels_chose,
    }


def _require_classes(data: SegmentationDataset, pixels: np.ndarray) -> None:
    """Refuse to score if there is nothing to find: a prediction of background alone would be perfect.

    Args:
        pixels: of each true class, background first.
    """
    if not pixels[1:].any():
        what = "pixel of any class" if pixels[0] else "labelled pixel"
        raise ValueError(
            f"{data.root / data.mask_folder}: the ground truth of split {data.split!r} holds no {what}, so that there is "
            "nothing to score; check mask_folder, and that objects have the values 1, 2, … and not 255"
        )


def iou_of_images(data: SegmentationDataset, mask_of: Callable[[str], np.ndarray], count: int = 200) -> dict[str, float]:
    """Return the mean IoU in [0, 1] of single images that have a label: for ranking only, never averaged.

    Args:
        mask_of: image id to a uint8 (H, W) map.
    """
    ranking = {}
    for image_id in data.ids[:count]:
        if data.label(image_id).any():
            evaluation = Evaluation(data.num_classes + 1)
            evaluation.add(data.mask(image_id), mask_of(image_id))
            ranking[image_id] = evaluation.scores().miou
    return ranking


def mask_at(maps_folder: Path, threshold: float) -> Callable[[str], np.ndarray]:
    """Return the function from an image id to its maps' mask at a threshold, uint8 (H, W)."""

    def mask_of(image_id: str) -> np.ndarray:
        classes, scores = full_size_maps(maps_folder, image_id)
        return argmax_with_background(scores, classes, threshold)

    return mask_of


def full_size_maps(maps_folder: Path, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Read an image's maps at full resolution.

    Returns:
        classes int64 (K,), 0-based; scores float32 (K, H, W) in [0, 1].

    Raises:
        DataError: the file is missing or broken.

    Explained in notebook 70, section "Thresholds".
    """
    return read_full_size_maps(maps_folder / f"{image_id}.npz")


Sweep = TypeVar("Sweep", bound=ThresholdSweep)


def sweep_maps(
    data: SegmentationDataset,
    maps_folder: Path,
    thresholds: Sequence[float] | np.ndarray,
    kind: type[Sweep] = ThresholdSweep,  # type: ignore[assignment]  # mypy knows no default of a type variable
) -> Sweep:
    """Compare the maps of a split with the ground truth at all thresholds in one pass.

    Args:
        thresholds: (T,) strictly increasing, in [0, 1].
        kind: `ImageThresholds` also keeps each image's own curve.

    Raises:
        DataError: a map or a ground-truth mask is missing or broken.

    Explained in notebook 70, section "All thresholds in one pass".
    """
    sweep = kind(data.num_classes + 1, thresholds)
    for image_id in progress(data.ids, "threshold sweep"):
        classes, scores = full_size_maps(maps_folder, image_id)
        sweep.add(data.mask(image_id), scores, classes)
    return sweep


def best_threshold_row(data: SegmentationDataset, maps_folder: Path) -> dict:
    """Return the row of `metrics.json` for maps at their best threshold, chosen by the ground truth, with the whole curve.

    Returns:
        what, split, images, crf, pixel_labels_chose; `miou` in percent; `threshold`; `thresholds` (0.01 to 0.90) and, in
        percent, `curve`.

    Explained in notebook 10, section "Numbers".
    """
    sweep: ThresholdSweep = sweep_maps(data, maps_folder, np.linspace(0.01, 0.9, 90))
    _require_classes(data, sweep.confusions()[0].sum(1))
    threshold, miou = sweep.best()
    return {
        "what": "CAM at its best threshold",
        "split": data.split,
        "images": len(data),
        "crf": False,
        "miou": round(100 * miou, 2),
        "pixel_labels_chose": f"threshold {threshold:.2f}",
        "threshold": round(threshold, 4),
        "thresholds": np.round(sweep.thresholds, 4).tolist(),
        "curve": np.round(100 * sweep.curve(), 2).tolist(),
    }


def part_mask(data: SegmentationDataset, image_id: str) -> np.ndarray:
    """Return where a generated image has bodies (1) and heads (2), uint8 (H, W).

    Raises:
        FileNotFoundError: the data have no part masks; real data never do.

    Explained in notebook 10, section "The flaw, measured".
    """
    return np.array(Image.open(data.root / "PartMasks" / f"{image_id}.png"))


def mean_part_recall(
    data: SegmentationDataset, maps_folder: Path, threshold: float, count: int = 300
) -> dict[str, float] | None:
    """Return the fraction of the heads and of the bodies of generated creatures that the maps find.

    Args:
        threshold: the score of the background.

    Returns:
        {"head": mean over images in 0..1, "body": mean}, or None if the data have no part masks.

    Explained in notebook 10, section "The flaw, measured".
    """
    if not (data.root / "PartMasks").is_dir():
        return None
    recalls = []
    for image_id in data.ids[:count]:
        classes, scores = full_size_maps(maps_folder, image_id)
        mask = argmax_with_background(scores, classes, threshold)
        recalls.append(part_recall(mask, part_mask(data, image_id), data.mask(image_id)))
    return {part: float(np.nanmean([recall[part] for recall in recalls])) for part in ("head", "body")}


def score_maps(job: Job) -> list[dict]:
    """Score a stage of maps: `best_threshold_row` of its folder."""
    return [best_threshold_row(job.score_data, job.folder)]
