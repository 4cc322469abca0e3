"""Stored maps of VOC's size against true masks at 100 thresholds: how long would all 10,582 images of train_aug take?

python benchmarks/stored_maps_sweep.py [--quick]

200 generated images are written as the stages write them (maps at stride 4 as float16, palette PNG masks) and swept by the
function of the stages: read both files, enlarge the maps, count every pixel once. Seconds are those of one core.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import zoom

from wsss_lib import stages
from wsss_lib.artifacts import read_maps, write_maps, write_mask
from wsss_lib.data.dataset import VOC_CLASSES, SegmentationDataset
from wsss_lib.metrics import confusion_matrix
from wsss_lib.refine.seeds import argmax_with_background, upsample_scores
from wsss_lib.thresholds import ThresholdSweep

SIZE = (375, 500)
THRESHOLDS = np.linspace(0.01, 1, 100)
TRAIN_AUG = 10_582
GOAL = 60.0  # seconds
SHARES = (0.63, 0.9)  # of VOC's images with one class, and with at most two


def write_images(folder: Path, count: int) -> SegmentationDataset:
    """Write photographs (grey: only their size is read), masks with a void border, and maps of 1 to 3 classes in `maps`."""
    labels = np.zeros((count, len(VOC_CLASSES)), np.uint8)
    for name in ("JPEGImages", "SegmentationClass", "maps"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        rng, image_id = np.random.default_rng(number), f"{number:06d}"
        present = 1 + np.searchsorted(SHARES, (number % 100) / 100, side="right")
        classes = np.sort(rng.choice(len(VOC_CLASSES), present, replace=False))
        scores = np.clip(zoom(rng.random((present, 6, 8)), (1, 94 / 6, 125 / 8), order=1), 0, 1)  # (K, 94, 125)
        full = upsample_scores(scores.astype(np.float32), SIZE)
        truth = argmax_with_background(full, classes, 0.5)
        truth[np.abs(full.max(0) - 0.5) < 0.02] = 255
        Image.new("RGB", SIZE[::-1]).save(folder / "JPEGImages" / f"{image_id}.jpg")
        write_mask(folder / "SegmentationClass" / f"{image_id}.png", truth)
        write_maps(folder / "maps" / f"{image_id}.npz", classes, scores, SIZE)
        labels[number, classes] = 1
    return SegmentationDataset(folder, "train", tuple(f"{number:06d}" for number in range(count)), VOC_CLASSES, labels)


def plain_counts(data: SegmentationDataset, maps_folder: Path) -> np.ndarray:
    """The plain formulation, to compare: a mask and a confusion matrix for each threshold."""
    total = np.zeros((len(THRESHOLDS), data.num_classes + 1, data.num_classes + 1), np.int64)
    for image_id in data.ids:
        classes, scores = stages.full_size_maps(maps_folder, image_id)
        truth = data.mask(image_id)
        total += [confusion_matrix(truth, argmax_with_background(scores, classes, threshold), data.num_classes + 1)
                  for threshold in THRESHOLDS]
    return total


def core_seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(count: int) -> dict[str, float]:
    """Time the sweep of `count` images and its parts; assert that the counts of the first images are the plain ones.

    Returns:
        milliseconds an image: all, and its parts read, enlarge, count; `seconds`, the extrapolation to train_aug.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_images(folder, count)
        maps = folder / "maps"
        first = SegmentationDataset(data.root, data.split, data.ids[-5:], data.classes, data.labels[-5:])
        assert np.array_equal(stages.sweep_maps(first, maps, THRESHOLDS).confusions(), plain_counts(first, maps)), \
            "the two ways count differently"
        everything = core_seconds(lambda: stages.sweep_maps(data, maps, THRESHOLDS).curve()) / count
        stored = [read_maps(maps / f"{image_id}.npz") for image_id in data.ids]
        masks = [data.mask(image_id) for image_id in data.ids]
        full = [upsample_scores(scores, size) for _, scores, size in stored[:20]]
        sweep = ThresholdSweep(data.num_classes + 1, THRESHOLDS)
        enlarge = core_seconds(lambda: [upsample_scores(scores, size) for _, scores, size in stored]) / count
        counting = core_seconds(lambda: [sweep.add(masks[i], full[i], stored[i][0]) for i in range(len(full))]) / len(full)
    return {"all_ms": 1000 * everything, "enlarge_ms": 1000 * enlarge, "count_ms": 1000 * counting,
            "read_ms": 1000 * (everything - enlarge - counting), "seconds": TRAIN_AUG * everything}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 images instead of 200")
    options = parser.parse_args(arguments)
    numbers = measure(20 if options.quick else 200)
    print(f"{len(THRESHOLDS)} thresholds, {SIZE[0]}x{SIZE[1]} pixels, 1 to 3 classes an image, identical counts\n"
          f"{numbers['all_ms']:.2f} ms of one core an image: {numbers['read_ms']:.2f} to read maps and mask, "
          f"{numbers['enlarge_ms']:.2f} to enlarge the maps, {numbers['count_ms']:.2f} to count\n"
          f"{TRAIN_AUG} images: {numbers['seconds']:.0f} s of one core (goal: under {GOAL:.0f})")
    return numbers


if __name__ == "__main__":
    main()
