"""Stored maps of VOC's size against the ground truth at 100 thresholds: how long would all 10,582 images of train_aug take?

python benchmarks/stored_maps_sweep.py [--quick]

Generated images are written as the stages write them (maps at stride 4 as float16, palette PNG masks) and swept by the
function of the stages: read both files, enlarge the maps, count every pixel once. Plain: a mask and a confusion matrix for
each threshold, from maps that are read and enlarged once.
"""

import tempfile
from pathlib import Path

import numpy as np
from measuring import Case, Row, compare, main
from PIL import Image
from scipy.ndimage import zoom

from wsss_lib.core.files import write_maps, write_mask
from wsss_lib.core.scoring import full_size_maps, sweep_maps
from wsss_lib.data.dataset import VOC_CLASSES, SegmentationDataset
from wsss_lib.ops.merging import upsample_scores
from wsss_lib.ops.metrics import confusion_matrix
from wsss_lib.ops.seeds import argmax_with_background

SIZE = (375, 500)
THRESHOLDS = np.linspace(0.01, 1, 100)
TRAIN_AUG = 10_582
SHARES = (0.63, 0.9)  # of VOC's images with one class, and with at most two


def write_images(folder: Path, count: int) -> SegmentationDataset:
    """Write photographs (gray: only their size is read), masks with a void border, and maps of 1 to 3 classes in `maps`."""
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
        classes, scores = full_size_maps(maps_folder, image_id)
        truth = data.mask(image_id)
        total += [
            confusion_matrix(truth, argmax_with_background(scores, classes, threshold), data.num_classes + 1)
            for threshold in THRESHOLDS
        ]
    return total


def prepare(count: int):
    folder = tempfile.TemporaryDirectory()  # lives as long as the functions that are returned
    data = write_images(Path(folder.name), count)
    maps = Path(folder.name) / "maps"
    return lambda: plain_counts(data, maps), lambda folder=folder: sweep_maps(data, maps, THRESHOLDS).confusions()


CASE = Case(
    "sweep of stored maps", (2, 5, 10), prepare, tolerance=0, goal=10, pairs=3, show=lambda count: f"{count} of 375x500"
)


def measure(quick: bool = False) -> list[Row]:
    rows = compare(CASE, quick)
    per_image = rows[-1].ours / CASE.sizes[len(rows) - 1]
    return [*rows, Row("sweep of train_aug, from the row above", f"{TRAIN_AUG:,} images", None, TRAIN_AUG * per_image)]


if __name__ == "__main__":
    main(measure, __doc__)
