"""Opening the configured data set, and the hashes by which a stage notices that its data have changed."""

import hashlib
import json
from pathlib import Path

import numpy as np

from wsss_lib.config import Config, project_path
from wsss_lib.data.dataset import DataError, SegmentationDataset, load_dataset, without_unreadable_images
from wsss_lib.formats import sha256


def open_data(config: Config, split: str) -> SegmentationDataset:
    """Open one split of the configured data set.

    Args:
        config: gives data_root, labels, limit, mask_folder and on_bad_image.
        split: name of a list in `ImageSets/Segmentation`.

    Returns:
        the split, checked; with on_bad_image "skip" every image has been decoded, and those that cannot be are left out.

    Raises:
        DataError: as `load_dataset`.
    """
    labels = project_path(config.labels) if config.labels else ""
    data = load_dataset(project_path(config.data_root), split, labels, config.limit, config.mask_folder)
    return without_unreadable_images(data) if config.on_bad_image == "skip" else data


def data_hash(data: SegmentationDataset) -> str:
    """Return a hash of what a stage sees of a data set: ids, image sizes in bytes, classes and image-level labels.

    Args:
        data: one split.

    Returns:
        64 hexadecimal digits.
    """
    identity = hashlib.sha256(json.dumps([data.split, data.classes, data.ids]).encode())
    identity.update(np.ascontiguousarray(data.labels).tobytes())
    identity.update(json.dumps([data.image_path(image_id).stat().st_size for image_id in data.ids]).encode())
    return identity.hexdigest()


def truth_hash(data: SegmentationDataset) -> str:
    """Return a hash of the true masks of a split, for a stage that trains on them.

    Args:
        data: one split.

    Returns:
        64 hexadecimal digits.

    Raises:
        DataError: a mask is missing.
    """
    paths = [data.mask_path(image_id) for image_id in data.ids]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: the mask is missing, and {len(missing) - 1} others of split {data.split!r}; set "
                        "mask_folder to the folder that has them all (for train_aug of VOC: SegmentationClassAug)")
    return sha256(paths, data.root)


def saliency_hash(data: SegmentationDataset, folder: Path) -> str:
    """Return a hash of the saliency maps of a split, for a stage that uses them.

    Args:
        data: one split.
        folder: of `ID.png`.

    Returns:
        64 hexadecimal digits.

    Raises:
        FileNotFoundError: a map is missing (`check_saliency` lists them all).

    Explained in notebook 30, section "Pseudo-labels with saliency".
    """
    return sha256([folder / f"{image_id}.png" for image_id in data.ids], folder)
