"""Masks against true masks, and the rows of `metrics.json`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsss_lib.config import Config
from wsss_lib.data.dataset import SegmentationDataset, image_size, read_mask
from wsss_lib.metrics import Evaluation
from wsss_lib.progress import progress


def score_masks(data: SegmentationDataset, mask_of: Callable[[str], np.ndarray] | Path) -> Evaluation:
    """Compare masks with the true ones over a split.

    Args:
        data: with true masks.
        mask_of: a folder of `ID.png`, or a function from image id to a uint8 (H, W) map.

    Returns:
        the filled `Evaluation`.

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


def metric_row(what: str, data: SegmentationDataset, evaluation: Evaluation, crf: bool, config: Config) -> dict:
    """Return one row of `metrics.json`.

    Args:
        what: the stage in words, e.g. "CAM seed".
        data: the split that was scored.
        evaluation: its confusion matrix.
        crf: whether a dense CRF was applied.
        config: says what was chosen by looking at pixel labels.

    Returns:
        what, split, images, crf, pixel_labels_chose; `miou`, mean `precision` and mean `recall` in percent; `class_iou`, one
        value in percent a class, the background first, None where undefined; `unknown_share` in [0, 1].

    Raises:
        ValueError: the true masks hold no labelled pixel.

    Explained in notebook 70, section "Numbers".
    """
    result = evaluation.scores()
    if np.isnan(result.miou):
        raise ValueError(f"{data.root / data.mask_folder}: the true masks of split {data.split!r} hold no labelled pixel, so "
                         "that there is nothing to score; check mask_folder")
    return {"what": what, "split": data.split, "images": len(data), "crf": crf, "miou": round(100 * result.miou, 2),
            "precision": round(100 * float(np.nanmean(result.precision)), 2),
            "recall": round(100 * float(np.nanmean(result.recall)), 2),
            "class_iou": [None if np.isnan(value) else round(100 * float(value), 2) for value in result.iou],
            "unknown_share": round(evaluation.unknown_share, 4), "pixel_labels_chose": config.pixel_labels_chose}
