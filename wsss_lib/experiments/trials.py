"""What the trials of several notebooks share: a part of the images, maps in memory against the ground truth, recall by part."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from wsss_lib.core.scoring import mean_part_recall, part_mask
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.ops.metrics import part_recall
from wsss_lib.ops.thresholds import ThresholdSweep

Maps = tuple[np.ndarray, np.ndarray]  # classes int64 (K,), 0-based; full-size scores float (K, H, W) in [0, 1]


def first_images(data: SegmentationDataset, count: int) -> SegmentationDataset:
    """Return the first images of a split."""
    return data.part(slice(count))


def sweep_of(
    data: SegmentationDataset, ids: Iterable[str], maps_of: Callable[[str], Maps], thresholds: np.ndarray | None = None
) -> ThresholdSweep:
    """Compare maps that are not stored with the ground truth at all thresholds (None: 0.01 to 0.90)."""
    sweep = ThresholdSweep(data.num_classes + 1, np.linspace(0.01, 0.9, 90) if thresholds is None else thresholds)
    for image_id in ids:
        classes, scores = maps_of(image_id)
        sweep.add(data.mask(image_id), scores, classes)
    return sweep


def recall_by_part(data: SegmentationDataset, ids: Iterable[str], mask_of: Callable[[str], np.ndarray]) -> dict[str, float]:
    """Return mean recall of heads and bodies in [0, 1] over images, as `mean_part_recall` of masks; NaN without part masks."""
    recalls = []
    for image_id in ids if (data.root / "PartMasks").is_dir() else ():
        recalls.append(part_recall(mask_of(image_id), part_mask(data, image_id), data.mask(image_id)))
    return {
        part: float(np.nanmean([recall[part] for recall in recalls])) if recalls else float("nan") for part in ("head", "body")
    }


def part_recall_table(data: SegmentationDataset, maps: Mapping[str, tuple[Path, float]]) -> str:
    """Return a line for each name of maps, a folder and a threshold, with their recall by part."""
    lines = []
    for name, (folder, threshold) in maps.items():
        recall = mean_part_recall(data, folder, threshold)
        if not recall:
            return "no part masks in this data set"
        lines.append(
            f"threshold {threshold:.2f}, {name:7s} recall of heads {recall['head']:.2f}, of bodies {recall['body']:.2f}"
        )
    return "\n".join(lines)
