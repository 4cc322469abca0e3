"""02: every image and every mask is opened once, so a broken file stops the first notebook and not a training."""

from functools import partial

import numpy as np

from wsss_lib.core.files import IGNORE, image_size, write_atomically
from wsss_lib.core.progress import progress
from wsss_lib.core.stage import Job, Stage
from wsss_lib.data.dataset import SegmentationDataset, check_images, data_hash, mask_hash, open_data

NOTEBOOK = "02_datasets_and_labels"


def splits_of(job: Job) -> dict[str, SegmentationDataset]:
    """Return the splits of a run: training, scored and validation images."""
    names = (job.whole.train_split, job.whole.score_split, job.whole.val_split)
    return {name: open_data(job.whole, name) for name in dict.fromkeys(names)}


def masked_splits(job: Job) -> dict[str, SegmentationDataset]:
    """Return the splits whose masks are read; none if there is no mask folder."""
    scored = {job.whole.score_split, job.whole.val_split}
    return {name: data for name, data in splits_of(job).items() if name in scored and (data.root / data.mask_folder).is_dir()}


def pixels_of_each_value(job: Job, split: str) -> np.ndarray:
    """Return the pixels of background, each class and 255 for every mask of a split: int64 (N, C + 2)."""
    return np.load(job.folder / f"pixels_{split}.npy", allow_pickle=False)


def labels_against_masks(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare image-level labels with masks.

    Args:
        pixels: from `pixels_of_each_value`.
        labels: 0 or 1, (N, C).

    Returns:
        bool (N, C) twice: the label names a class without a pixel in the mask; the mask shows a class that the label lacks.
    """
    by_mask, by_label = pixels[:, 1:-1] > 0, labels > 0
    return by_label & ~by_mask, by_mask & ~by_label


def _make(job: Job) -> int:
    splits = splits_of(job)
    for data in splits.values():
        check_images(data)
    for name, data in masked_splits(job).items():
        values = [*range(data.num_classes + 1), IGNORE]
        counts = np.array(
            [
                np.bincount(data.mask(image_id).ravel(), minlength=256)[values]
                for image_id in progress(data.ids, f"masks of {name}")
            ]
        )
        write_atomically(job.folder / f"pixels_{name}.npy", partial(np.save, arr=counts))
    return sum(map(len, splits.values()))


def _score(job: Job) -> list[dict]:
    masked, rows = masked_splits(job), []
    for name, data in splits_of(job).items():
        sizes = np.array([image_size(data.image_path(image_id))[::-1] for image_id in data.ids])
        different = None
        if name in masked:
            missing, added = labels_against_masks(pixels_of_each_value(job, name), data.labels)
            different = int((missing | added).any(1).sum())
        rows.append(
            {
                "what": "data check",
                "split": name,
                "images": len(data),
                "classes": data.num_classes,
                "images_per_class": data.labels.sum(0).tolist(),
                "images_with_n_classes": np.bincount(data.labels.sum(1)).tolist(),
                "smallest_image": sizes.min(0).tolist(),
                "largest_image": sizes.max(0).tolist(),
                "masks_checked": len(data) if name in masked else 0,
                "masks_that_differ_from_labels": different,
            }
        )
    return rows


def _hashes(job: Job) -> dict[str, str]:
    masks = {f"masks of {name}": mask_hash(data) for name, data in masked_splits(job).items()}
    return {name: data_hash(data) for name, data in splits_of(job).items()} | masks


CHECK = Stage("check", NOTEBOOK, _make, files=_hashes, split="", score=_score, needs_masks=False, method="data")
