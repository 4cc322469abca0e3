"""Scaling, flipping and cropping as the papers do it: pure functions, randomness only from an explicit `random.Random`.

Images are PIL or float32 arrays (H, W, 3); labels are uint8 arrays (H, W) in which 255 means unknown.
Sides and crops are in pixels, mean and std are (R, G, B) in 0..1, and scales are factors above 0.
"""

import random

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as pictures

from wsss_lib.core.files import IGNORE


def resize_image(image: Image.Image, scale: float) -> Image.Image:
    """Resize by a factor, bicubic; the new sides are rounded half to even.

    >>> resize_image(Image.new("RGB", (5, 3)), 0.5).size
    (2, 2)
    """
    return image.resize(_scaled_size(image.size, scale), Image.Resampling.BICUBIC)


def resize_label(label: np.ndarray, scale: float) -> np.ndarray:
    """Resize a label map by a factor, nearest neighbor, so no new values appear.

    Args:
        label: uint8 (H, W).
        scale: factor on both sides, above 0; the new sides are rounded as in `resize_image`.

    Explained in notebook 02, section "Masks".
    """
    width, height = _scaled_size(label.shape[::-1], scale)
    return np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))


def _scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    width, height = (max(1, int(np.round(side * scale))) for side in size)
    return width, height


def random_long_side(image: Image.Image, shortest: int, longest: int, rng: random.Random) -> Image.Image:
    """Resize so that the long side is a random integer in [shortest, longest] (IRN's classifier recipe).

    Args:
        shortest, longest: in pixels, both included.
    """
    return resize_image(image, rng.randint(shortest, longest) / max(image.size))


def resize_square(image: Image.Image, side: int) -> Image.Image:
    """Resize an image to side x side pixels, bilinear; the aspect ratio is lost (DRS).

    Explained in notebook 30, section "Training".

    >>> resize_square(Image.new("RGB", (5, 3)), 4).size
    (4, 4)
    """
    return image.resize((side, side), Image.Resampling.BILINEAR)


def long_side_size(size: tuple[int, int], target: int) -> tuple[int, int]:
    """Return (width, height) with the longer side equal to `target`, the other rounded half to even (AffinityNet, SC-CAM).

    Args:
        target: new longer side in pixels.

    >>> long_side_size((500, 375), 333)
    (333, 250)
    """
    longer = max(size)
    width, height = (target if side == longer else max(1, round(side * target / longer)) for side in size)
    return width, height


def color_jitter(image: Image.Image, rng: random.Random, strength: float = 1.0) -> Image.Image:
    """Change brightness, contrast, saturation (each up to 30 %) and hue (up to 36 degrees) at random, in random order.

    Args:
        rng: draws the four amounts and their order.
        strength: factor on the ranges; 0 changes nothing.

    Source: the recipes of AffinityNet, SC-CAM and DRS.
    """
    factors = [1 + 0.3 * strength * rng.uniform(-1, 1) for _ in range(3)]
    changes = [
        *zip((pictures.adjust_brightness, pictures.adjust_contrast, pictures.adjust_saturation), factors, strict=True),
        (pictures.adjust_hue, 0.1 * strength * rng.uniform(-1, 1)),
    ]
    rng.shuffle(changes)
    if strength == 0:
        return image
    for change, amount in changes:
        image = change(image, amount)
    return image


def normalize(image: Image.Image | np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]) -> np.ndarray:
    """Scale an RGB image for a network: (image / 255 - mean) / std for each channel.

    Args:
        image: PIL image or array (H, W, 3), values 0..255.
        mean, std: three numbers each, in 0..1.

    Returns:
        float32 (H, W, 3).

    Explained in notebook 10, section "One map in ten lines".
    """
    pixels = np.asarray(image)
    planes = np.empty((3, *pixels.shape[:2]), np.float32)
    _normalize_into(planes, pixels, mean, std)
    return planes.transpose(1, 2, 0)  # planes in memory, as tensors have them


def _normalize_into(
    planes: np.ndarray, pixels: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    for channel in range(3):  # one plane at a time: four times as fast as whole pixels, and the same to the last bit
        plane = planes[channel]
        plane[...] = pixels[..., channel]
        plane /= 255
        plane -= np.float32(mean[channel])
        plane /= np.float32(std[channel])


def crop_box(size: tuple[int, int], crop: int, rng: random.Random) -> tuple[int, int, int, int, int, int, int, int]:
    """Draw where a square crop is taken from the image, and where a small image lies on the crop's canvas.

    Args:
        size: (H, W) of the image.
        rng: one number is drawn for the columns, then one for the rows (the official order).

    Returns:
        canvas top, bottom, left, right, image top, bottom, left, right.
    """
    spans = []
    for side in (size[1], size[0]):  # horizontal before vertical
        offset = rng.randrange(abs(side - crop) + 1)
        length = min(side, crop)
        canvas_start, image_start = (0, offset) if side > crop else (offset, 0)
        spans.append((canvas_start, canvas_start + length, image_start, image_start + length))
    (left, right, image_left, image_right), (top, bottom, image_top, image_bottom) = spans
    return top, bottom, left, right, image_top, image_bottom, image_left, image_right


def crop(array: np.ndarray, box: tuple[int, ...], side: int, fill: float) -> np.ndarray:
    """Cut a square crop given by `crop_box`; what lies outside the image gets `fill`.

    Args:
        array: (H, W) or (H, W, channels), any type.
        box: canvas top, bottom, left, right, image top, bottom, left, right.
        fill: 0 for normalized images, 255 for labels.

    >>> crop(np.array([[1, 2, 3]]), (0, 1, 1, 2, 0, 1, 2, 3), side=2, fill=9)
    array([[9, 3],
           [9, 9]])
    """
    canvas = np.full((*array.shape[2:], side, side), fill, dtype=array.dtype)
    canvas = canvas.transpose(1, 2, 0) if array.ndim == 3 else canvas  # planes in memory, as tensors have them
    top, bottom, left, right, image_top, image_bottom, image_left, image_right = box
    canvas[top:bottom, left:right] = array[image_top:image_bottom, image_left:image_right]
    return canvas


def crop_normalized(
    pixels: np.ndarray, box: tuple[int, ...], side: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> np.ndarray:
    """Cut a square crop given by `crop_box` out of an image and normalize it; what lies outside the image gets 0.

    Args:
        pixels: (H, W, 3), values 0..255.

    Returns:
        float32 (side, side, 3): the crop of the normalized image, without its other pixels.
    """
    planes = np.zeros((3, side, side), np.float32)
    top, bottom, left, right, image_top, image_bottom, image_left, image_right = box
    region = pixels[image_top:image_bottom, image_left:image_right]
    _normalize_into(planes[:, top:bottom, left:right], region, mean, std)
    return planes.transpose(1, 2, 0)


def top_left_crop(array: np.ndarray, side: int, fill: float) -> np.ndarray:
    """Cut the top-left square; a smaller image is padded on the right and bottom.

    Args:
        array: (H, W) or (H, W, channels), any type.
    """
    height, width = min(array.shape[0], side), min(array.shape[1], side)
    return crop(array, (0, height, 0, width, 0, height, 0, width), side, fill)


def quarter_label(label: np.ndarray) -> np.ndarray:
    """Reduce a label map to stride 4 by nearest neighbor: rows and columns 2, 6, 10, ... (IRN's label grid).

    Args:
        label: (H, W), any type; sides are multiples of 4.

    Returns:
        (H/4, W/4), a view of the same type.

    Explained in notebook 80, section "Pairs and paths".

    >>> quarter_label(np.arange(32).reshape(4, 8))
    array([[18, 22]])
    """
    return label[2::4, 2::4]


def scale_crop_flip(
    image: np.ndarray,
    label: np.ndarray,
    scale: float,
    top: int,
    left: int,
    flip: bool,
    side: int,
    fill: tuple[float, float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Apply DeepLab-v2's augmentation with the random draws given.

    The image is resized bilinearly (no anti-aliasing) and the label by nearest neighbor to int(H scale) x int(W scale),
    padded on the bottom and right up to the crop with `fill` and 255, cropped at (top, left), flipped last.

    Args:
        image: float32 or uint8 (H, W, 3).
        label: uint8 (H, W).
        scale, top, left, flip: the draws, for instance from `draw_scale_crop_flip`.
        fill: color of the padding, in the units of `image`: the mean color, which normalizes to 0.

    Returns:
        image float32 (side, side, 3) and label uint8 (side, side). Only the pixels of the crop are computed.

    Source: DeepLab-v2, augmentation of the weakly-supervised papers that train it.
    """
    height, width = (max(1, int(length * scale)) for length in label.shape)
    rows, columns = range(top, min(top + side, height)), range(left, min(left + side, width))  # only these are computed
    planes = np.empty((3, side, side), np.float32)
    planes[:] = np.reshape(fill, (3, 1, 1))
    planes[:, : len(rows), : len(columns)] = _resized_window(image, (height, width), rows, columns)
    nearest = [
        np.asarray(Image.fromarray(np.arange(old, dtype=np.int32)[None]).resize((new, 1), Image.Resampling.NEAREST))[0]
        for old, new in zip(label.shape, (height, width), strict=True)
    ]
    canvas = np.full((side, side), IGNORE, np.uint8)
    canvas[: len(rows), : len(columns)] = label[nearest[0][rows]][:, nearest[1][columns]]
    image = planes.transpose(1, 2, 0)  # planes in memory, as tensors have them
    return (image[:, ::-1], canvas[:, ::-1]) if flip else (image, canvas)


def _resized_window(image: np.ndarray, size: tuple[int, int], rows: range, columns: range) -> np.ndarray:
    """Return some rows and columns of an image (H, W, 3) resized bilinearly to (height, width): float32 (3, rows, columns).

    They equal `torch.nn.functional.interpolate`'s except for float32 rounding; nothing else of the image is computed.
    """
    (above, below, down), (before, behind, across) = (
        _neighbors(old, new, wanted) for old, new, wanted in zip(image.shape[:2], size, (rows, columns), strict=True)
    )
    lines = _between(image[:, before[0] : behind[-1] + 1], above, below, down[:, None, None])  # (rows, w, 3)
    lines = np.ascontiguousarray(lines.transpose(1, 2, 0))  # the columns first, which makes gathering them fast
    return _between(lines, before - before[0], behind - before[0], across[:, None, None]).transpose(1, 2, 0)


def _neighbors(old: int, new: int, wanted: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for some of the `new` positions on a side of `old` pixels, both neighbors and the weight of the second."""
    half, ratio = np.float32(0.5), np.float32(old) / np.float32(new)  # torch's precision
    place = np.maximum(ratio * (np.arange(wanted.start, wanted.stop, dtype=np.float32) + half) - half, 0)
    first = np.minimum(place.astype(np.int64), old - 1)
    return first, np.minimum(first + 1, old - 1), place - first.astype(np.float32)


def _between(lines: np.ndarray, first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    result, other = lines[first].astype(np.float32), lines[second].astype(np.float32)
    other -= result
    other *= weight
    result += other
    return result


def draw_scale_crop_flip(
    size: tuple[int, int], scales: tuple[float, ...], side: int, rng: random.Random
) -> tuple[float, int, int, bool]:
    """Draw the random numbers of `scale_crop_flip`.

    Args:
        size: (H, W) of the image.
        scales: factors to choose from.
        rng: four numbers are drawn, in the order of the result.

    Returns:
        scale; top and left of the crop in the scaled and padded image, in pixels; flip, true in half of the cases.
    """
    scale = rng.choice(scales)
    height, width = (max(side, int(length * scale)) for length in size)
    return scale, rng.randrange(height - side + 1), rng.randrange(width - side + 1), rng.random() < 0.5


def pad_all_sides(image: np.ndarray, label: np.ndarray, side: int, label_fill: int = IGNORE) -> tuple[np.ndarray, np.ndarray]:
    """Pad an image that is smaller than DeepLab-v3+'s crop, on ALL four sides: black, with `label_fill` as its label.

    If the width is too small all sides grow by int((1 + side - width) / 2), then likewise for the height.

    Args:
        image: (H, W, 3).
        label: (H, W).
        label_fill: 255; the official code has 0 and so teaches the padding as background.

    Returns:
        image and label with both sides at least `side`.

    Source: official DeepLab-v3+ training. Explained in notebook 90, section "Version 2 and version 3+ side by side".

    >>> image, label = pad_all_sides(np.ones((30, 20, 3)), np.ones((30, 20)), 33)
    >>> image.shape, label.shape
    ((44, 34, 3), (44, 34))
    """
    for axis in (1, 0):
        if label.shape[axis] < side:
            margin = (1 + side - label.shape[axis]) // 2
            image = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
            label = np.pad(label, margin, constant_values=label_fill)
    return image, label


def centre_crop(image: Image.Image, label: np.ndarray, side: int) -> tuple[Image.Image, np.ndarray]:
    """Resize so that the shorter side is `side`, and crop the center: the protocol behind published DeepLab-v3+ numbers.

    Args:
        label: its (H, W) label map; resized by nearest neighbor.
        side: in pixels (published: 513).

    Returns:
        image of side x side pixels and label (side, side): another set of pixels than the full image's.

    Explained in notebook 90, section "Version 2 and version 3+ side by side".
    """
    image = pictures.resize(image, side, pictures.InterpolationMode.BILINEAR)
    label_image = pictures.resize(Image.fromarray(label), side, pictures.InterpolationMode.NEAREST)
    return pictures.center_crop(image, side), np.asarray(pictures.center_crop(label_image, side))


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Copy an image or a label map to a tensor.

    Args:
        array: float32 (H, W, 3) image, or integer (H, W) label map.

    Returns:
        float32 (3, H, W), or int64 (H, W).
    """
    if array.ndim == 2:
        return torch.from_numpy(array.astype(np.int64))
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
