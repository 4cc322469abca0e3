"""From a JPEG file to a training sample: decode, resize, mirror, normalise, crop.

python benchmarks/input_pipeline.py [--quick]

Plain: the same steps with the arithmetic of double precision on interleaved pixels that the official loaders have, the whole
image normalised before the crop. The same random numbers, so the same samples.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from measuring import Case, Row, compare, main
from PIL import Image

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


def measure(quick: bool = False) -> list[Row]:
    return compare(CASE, quick)


if __name__ == "__main__":
    main(measure, __doc__)
