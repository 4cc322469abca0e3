"""Images of the digits 2 and 8 with companion shapes, for the simulation of the information bottleneck (notebook 01).

The digits come with scikit-learn or from the user's own copy of MNIST; nothing is downloaded.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import maximum_filter
from torch import Tensor

from wsss_lib.errors import DataError
from wsss_lib.parameters import project_path

CLASSES = (2, 8)  # the digits of label 0 and label 1
REGIONS = ("discriminative", "non-discriminative", "irrelevant")  # digit, shape, background
CANVAS, DIGIT, SHAPE = 36, 20, 5  # sides in pixels
BRIGHT = 0.3  # a pixel above it belongs to the digit


def read_digits(mnist_root: str = "") -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Read the digits 2 and 8, for training and for testing.

    Args:
        mnist_root: folder that holds torchvision's `MNIST/raw`; empty: scikit-learn's digits (8 x 8 pixels; every fifth of a
            class is for testing). Nothing is downloaded.

    Returns:
        for training, then for testing: digits float32 (N, 20, 20) in [0, 1], labels int64 (N,), 0 for a 2 and 1 for an 8.

    Raises:
        FileNotFoundError: a file of MNIST is missing.
        DataError: it is broken.

    Explained in notebook 01, section "The images".
    """
    if mnist_root:
        return _read_mnist(mnist_root, "train"), _read_mnist(mnist_root, "t10k")
    from sklearn.datasets import load_digits

    source = load_digits()
    chosen = np.isin(source.target, CLASSES)
    small = torch.from_numpy(source.images[chosen] / 16).float()[:, None]  # (N, 1, 8, 8)
    digits = F.interpolate(small, size=(DIGIT, DIGIT), mode="bicubic").clamp(0, 1)[:, 0].numpy()
    labels = (source.target[chosen] == CLASSES[1]).astype(np.int64)
    for_test = np.zeros(len(labels), bool)
    for label in (0, 1):
        for_test[np.flatnonzero(labels == label)[::5]] = True
    return (digits[~for_test], labels[~for_test]), (digits[for_test], labels[for_test])


def _read_mnist(root: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the unpacked files of one part of MNIST; the inner 20 of its 28 pixels hold the digit."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    folder = project_path(root) / "MNIST" / "raw"
    files = folder / f"{part}-images-idx3-ubyte", folder / f"{part}-labels-idx1-ubyte"
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: this file of MNIST is missing; let bottleneck_mnist_root name the folder above "
                "torchvision's MNIST/raw, or leave it empty for scikit-learn's digits"
            )
    try:
        images, targets = read_image_file(str(files[0])).numpy(), read_label_file(str(files[1])).numpy()
    except Exception as error:  # torchvision checks these files by assertions only
        raise DataError(
            f"{folder}: part {part!r} cannot be read as MNIST ({type(error).__name__}); fetch and unpack its files again"
        ) from None
    if images.shape[1:] != (28, 28) or len(images) != len(targets) or not np.isin(CLASSES, targets).all():
        raise DataError(
            f"{folder}: part {part!r} has images {images.shape} and {len(targets)} labels instead of equally many "
            "of 28 x 28, 2s and 8s among them; fetch and unpack its files again"
        )
    chosen = np.isin(targets, CLASSES)
    border = (28 - DIGIT) // 2
    digits = images[chosen, border:-border, border:-border].astype(np.float32) / 255
    return digits, (targets[chosen] == CLASSES[1]).astype(np.int64)


def companion(label: int) -> np.ndarray:
    """Return the shape that goes with a class, bool (5, 5): a disc with a 2 (label 0), a square with an 8 (label 1).

    >>> int(companion(0).sum()), int(companion(1).sum())
    (13, 25)
    """
    offset = np.arange(SHAPE) - SHAPE // 2
    return np.hypot(*np.meshgrid(offset, offset)) <= SHAPE // 2 if label == 0 else np.ones((SHAPE, SHAPE), bool)


@dataclass(frozen=True)
class DigitImages:
    """Images with their labels and the regions in which gradients are counted.

    Args:
        images: float32 (N, 1, 36, 36) in [0, 1].
        labels: int64 (N,), 0 or 1.
        regions: bool (3, N, 36, 36): digit, shape, background, in the order of `REGIONS`; each pixel is in exactly one.
    """

    images: Tensor
    labels: Tensor
    regions: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def digits_alone(self) -> "DigitImages":
        """Return the same images without their shapes."""
        return DigitImages(self.images.masked_fill(self.regions[1][:, None], 0), self.labels, self.regions)

    def shapes_alone(self) -> "DigitImages":
        """Return the same images without their digits: they test what a network has learned about the shapes."""
        return DigitImages(self.regions[1].float()[:, None], self.labels, self.regions)


def make_images(digits: np.ndarray, labels: np.ndarray, count: int, shape_share: float, seed: int) -> DigitImages:
    """Put digits at random positions on a black canvas and, in some images, the shape that goes with the class beside them.

    Args:
        digits: float32 (N, 20, 20) in [0, 1].
        labels: int64 (N,), 0 or 1.
        count: number of images; each takes a random digit.
        shape_share: fraction of the images that have a shape; exactly round(count * share) have one.
        seed: of digits, positions and choice.

    Returns:
        the images with their labels and regions.

    Raises:
        ValueError: no digits, no images, or a fraction outside [0, 1].

    Source: section 3 and figure 1 of the paper; sizes and places are ours. Explained in notebook 01, section "The images".
    """
    if not len(digits) or count < 1 or not 0 <= shape_share <= 1:
        raise ValueError(
            f"{len(digits)} digits, count = {count}, shape_share = {shape_share}: at least one digit and one "
            "image are needed, and a fraction between 0 and 1"
        )
    random = np.random.default_rng(seed)
    chosen = random.integers(len(digits), size=count)
    has_shape = random.permutation(count) < round(count * shape_share)
    canvas = np.zeros((count, CANVAS, CANVAS), np.float32)
    shape = np.zeros((count, CANVAS, CANVAS), bool)
    half = SHAPE // 2
    for index in range(count):
        row, column = random.integers(CANVAS - DIGIT + 1, size=2)
        canvas[index, row : row + DIGIT, column : column + DIGIT] = digits[chosen[index]]
        if has_shape[index]:
            # Where the shape and a margin of one pixel would cover nothing bright; entry (i, j): its first pixel is there.
            brightest = maximum_filter(canvas[index], SHAPE + 2, mode="constant")[half:-half, half:-half]
            top, left = random.choice(np.argwhere(brightest <= BRIGHT))
            shape[index, top : top + SHAPE, left : left + SHAPE] = companion(labels[chosen[index]])
    digit = (canvas > BRIGHT) & ~shape
    regions = torch.from_numpy(np.stack([digit, shape, ~digit & ~shape]))  # (3, N, H, W)
    images = torch.from_numpy(np.maximum(canvas, shape)[:, None])  # (N, 1, H, W)
    return DigitImages(images, torch.from_numpy(labels[chosen]), regions)
