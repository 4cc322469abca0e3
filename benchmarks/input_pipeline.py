"""From a JPEG file to a training sample: decode, resize, mirror, normalize, crop.

python benchmarks/input_pipeline.py [--quick]

Then DeepLab-v2's augmentation of a decoded photograph. Plain resizes and fills the whole image before it crops 321 x 321, as
this project did before.

Plain: the same steps with the arithmetic of double precision on interleaved pixels that the official loaders have, the whole
image normalized before the crop. The same random numbers, so the same samples.
"""

import random
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import Case, Row, compare, main
from PIL import Image

from wsss_lib.core.files import IGNORE
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import ClassificationSamples, sample_rng
from wsss_lib.nets.backbone import normalization_of

IMAGES = 8
MEAN, STD = normalization_of("resnet50")


def plain_sample(path: Path, index: int, long_side: tuple[int, int], crop: int) -> torch.Tensor:
    """Return float32 (3, crop, crop), step by step as IRN's program describes it."""
    rng = sample_rng(0, 0, index)
    image = Image.open(path).convert("RGB")
    scale = rng.randint(*long_side) / max(image.size)
    pixels = np.asarray(image.resize([int(np.round(side * scale)) for side in image.size], Image.Resampling.BICUBIC))
    array = np.empty(pixels.shape, np.float64)
    for channel in range(3):
        array[..., channel] = (pixels[..., channel] / 255.0 - MEAN[channel]) / STD[channel]
    if rng.random() < 0.5:
        array = np.fliplr(array)
    box = []
    for side in (array.shape[1], array.shape[0]):
        space = side - crop
        offset = rng.randrange(abs(space) + 1)
        box.append((0, offset) if space > 0 else (offset, 0))
    (left, image_left), (top, image_top) = box
    height, width = min(crop, array.shape[0]), min(crop, array.shape[1])
    canvas = np.zeros((crop, crop, 3), np.float32)
    canvas[top : top + height, left : left + width] = array[image_top : image_top + height, image_left : image_left + width]
    return torch.from_numpy(np.ascontiguousarray(np.transpose(canvas, (2, 0, 1))))


def prepare(side: int):
    folder = tempfile.TemporaryDirectory()  # lives as long as the functions that are returned
    root, ids, rng = Path(folder.name), tuple(f"{number:03d}" for number in range(IMAGES)), np.random.default_rng(0)
    (root / "JPEGImages").mkdir()
    for image_id in ids:
        coarse = Image.fromarray(rng.integers(0, 256, (side // 10, side // 8, 3), np.uint8))
        coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(root / "JPEGImages" / f"{image_id}.jpg", quality=90)
    data = SegmentationDataset(root, "train", ids, ("a",), np.ones((IMAGES, 1), np.uint8))
    long_side, crop = (round(0.64 * side), round(1.28 * side)), side
    samples = ClassificationSamples(data, 0, long_side, crop, MEAN, STD)
    return (
        lambda: [plain_sample(data.image_path(image_id), index, long_side, crop) for index, image_id in enumerate(ids)],
        lambda folder=folder: [samples[0, index][0] for index in range(IMAGES)],
    )


CASE = Case(
    "decode to sample",
    (125, 250, 500),
    prepare,
    tolerance=1e-4,
    pairs=15,
    show=lambda side: f"{IMAGES} of {side * 3 // 4}x{side}",
)


def plain_augmentation(image: np.ndarray, label: np.ndarray, draws: tuple, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label, resized whole, filled and then cropped."""
    scale, top, left, flip = draws
    height, width = (int(length * scale) for length in label.shape)
    planes = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    planes = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
    label = np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
    rows, columns = max(side - height, 0), max(side - width, 0)
    padded = np.zeros((height + rows, width + columns, 3), np.float32)
    padded[:height, :width] = planes[0].permute(1, 2, 0).numpy()
    label = np.pad(label, ((0, rows), (0, columns)), constant_values=IGNORE)
    image, label = (part[top : top + side, left : left + side] for part in (padded, label))
    return (image[:, ::-1], label[:, ::-1]) if flip else (image, label)


def prepare_augmentation(scale: float):
    rng, draw = np.random.default_rng(0), random.Random(0)
    image = rng.integers(0, 256, (375, 500, 3), np.uint8)
    label = rng.integers(0, 21, (375, 500), np.uint8)
    draws = [transforms.draw_scale_crop_flip(label.shape, (scale,), 321, draw) for _ in range(IMAGES)]
    return (
        lambda: [plain_augmentation(image, label, each, 321) for each in draws],
        lambda: [transforms.scale_crop_flip(image, label, *each, 321, (0.0, 0.0, 0.0)) for each in draws],
    )


AUGMENTATION = Case(
    "DeepLab's augmentation",
    (0.5, 1.0, 1.25, 1.5),
    prepare_augmentation,
    tolerance=1e-2,  # of 255: of noise, whose next pixel may be any; positions have the rounding of float32
    pairs=7,
    show=lambda scale: f"{IMAGES} of 375x500 at {scale:g}",
)


def measure(quick: bool = False) -> list[Row]:
    return compare(CASE, quick) + compare(AUGMENTATION, quick)


if __name__ == "__main__":
    main(measure, __doc__)
