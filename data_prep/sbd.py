"""Masks of SBD, the Semantic Boundaries Dataset, whose images make VOC's `train_aug`: MATLAB files to PNG."""

from pathlib import Path

import numpy as np

from wsss_lib.data.dataset import VOC_CLASSES
from wsss_lib.errors import DataError

MAX_BYTES = 1 << 22  # of one file; unpacked it stays below 4 GB whatever it claims. SBD's have less than a tenth


def read_sbd_mask(path: Path) -> np.ndarray:
    """Read the class mask `GTcls.Segmentation` of a .mat file.

    Args:
        path: `cls/ID.mat`.

    Returns:
        uint8 (H, W), 0 background, 1..20; SBD has no 255.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not such a file, or holds other values.

    Source: Hariharan et al., Semantic Contours from Inverse Detectors, ICCV 2011; form of the files in its archive.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise FileNotFoundError(f"{path}: the mask of SBD is missing; unpack benchmark.tgz again")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes are too much for a mask of SBD; unpack benchmark.tgz again")
    try:
        mask = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # a broken file makes SciPy raise one of a dozen types
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: not a mask of SBD ({problem:.120}); unpack benchmark.tgz again") from None
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
        raise DataError(f"{path}: Segmentation is not an image of 8-bit classes; unpack benchmark.tgz again")
    if mask.max() > len(VOC_CLASSES):
        raise DataError(
            f"{path}: the mask holds the value {mask.max()}, but there are only {len(VOC_CLASSES)} classes; unpack "
            "benchmark.tgz again"
        )
    return mask


def train_aug_ids(sbd_train: set[str], sbd_val: set[str], voc_train: set[str], voc_val: set[str]) -> list[str]:
    """Return the ids of `train_aug`: all of SBD and of VOC's train, without VOC's val; sorted.

    Args:
        sbd_train, sbd_val: SBD's lists.
        voc_train, voc_val: VOC's lists for segmentation.

    Explained in notebook 02, section "Who may see what".

    >>> train_aug_ids({"2008_1", "2007_2"}, {"2008_3"}, {"2007_1"}, {"2007_2"})
    ['2007_1', '2008_1', '2008_3']
    """
    return sorted((sbd_train | sbd_val | voc_train) - voc_val)
