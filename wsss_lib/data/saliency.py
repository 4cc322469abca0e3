"""Saliency maps: one 8-bit gray PNG per image, of the image's size; larger is more salient.

They come from outside: a saliency network is trained with pixel labels, so results that use its maps must say so.
"""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsss_lib.core.files import IMAGE_FORMATS, image_size, sha256
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.errors import DataError


def read_saliency(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a saliency map.

    Args:
        size: (width, height) of its image; None: not checked.

    Returns:
        uint8 (H, W).

    Raises:
        DataError: missing, unreadable, not 8-bit gray, or of another size.

    Explained in notebook 30, section "Pseudo-labels with saliency".
    """
    if problem := _problem(path, size):
        raise DataError(f"{path}: the saliency map {problem}")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return np.array(image)
    except Exception as error:  # a broken file; Pillow raises one of a dozen types
        raise DataError(f"{path}: the saliency map cannot be read ({error}); make it again") from None


def check_saliency(data: SegmentationDataset, folder: Path) -> None:
    """Check, before a run starts, that every image of a split has a saliency map of its size.

    Raises:
        DataError: maps are missing or do not fit; ALL of them are listed.

    Explained in notebook 30, section "Pseudo-labels with saliency".
    """
    missing = [image_id for image_id in data.ids if not (folder / f"{image_id}.png").is_file()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(data)} images of split {data.split!r} have no saliency map: "
            f"{', '.join(missing)}; make them with python -m data_prep.saliency make, or set drs_background to "
            "'constant', 'crf' or 'irn', which need none"
        )
    found = {image_id: _problem(folder / f"{image_id}.png", image_size(data.image_path(image_id))) for image_id in data.ids}
    bad = [f"{image_id}.png {problem}" for image_id, problem in found.items() if problem]
    if bad:
        raise DataError(f"{folder}: {len(bad)} of {len(data)} saliency maps cannot be used: {', '.join(bad)}")


def _problem(path: Path, size: tuple[int, int] | None) -> str:
    """Say what is wrong with a map, from its header; empty: nothing."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            mode, found = image.mode, image.size
    except FileNotFoundError:
        return "is missing; make it with python -m data_prep.saliency make"
    except Exception as error:
        return f"cannot be read ({'no image' if isinstance(error, UnidentifiedImageError) else error}); make it again"
    if mode != "L":
        return f"has mode {mode}, not 8-bit gray (L); convert it, e.g. with Pillow's convert('L')"
    if size and found != size:
        return f"is {found[0]}x{found[1]} pixels but its image is {size[0]}x{size[1]}; make it again from the image"
    return ""


def saliency_hash(data: SegmentationDataset, folder: Path) -> str:
    """Return a hash of the saliency maps of a split, for a stage that uses them.

    Raises:
        FileNotFoundError: a map is missing (`check_saliency` lists them all).

    Explained in notebook 30, section "Pseudo-labels with saliency".
    """
    return sha256([folder / f"{image_id}.png" for image_id in data.ids], folder)
