"""All background thresholds in one pass against a mask and a confusion matrix for each of them.

python benchmarks/threshold_sweep.py [--quick]

60 thresholds, maps of one to three classes at the image's size, 3 images each.
"""

import numpy as np
from measuring import Case, Row, compare, main
from scipy.ndimage import zoom

from wsss_lib.ops.thresholds import ThresholdSweep

NUM_CLASSES = 21
THRESHOLDS = np.arange(0.01, 0.605, 0.01)  # 60
Image = tuple[np.ndarray, np.ndarray, np.ndarray]


def synthetic_image(seed: int, height: int, width: int) -> Image:
    """Return truth (H, W) uint8 with 255, smooth scores (K, H, W) float32 in [0, 1], classes (K,); K is 1 to 3."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(NUM_CLASSES - 1, size=1 + seed % 3, replace=False)
    noise = rng.random((len(classes), height // 25, width // 25))
    scores = np.clip(zoom(noise, (1, 25, 25), order=1), 0, 1).astype(np.float32)  # (K, H, W)
    best = scores.argmax(0)
    truth = np.where(scores.max(0) > 0.5, classes[best] + 1, 0).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.05] = 255
    return truth, scores, classes


def plain_confusion(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The usual formulation of a confusion matrix: drop the unknown pixels, count class pairs."""
    known = truth != 255
    pairs = NUM_CLASSES * truth[known].astype(int) + prediction[known]
    return np.bincount(pairs, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)


def one_pass_per_threshold(images: list[Image]) -> np.ndarray:
    """The plain formulation: arg-max over [t, scores] and a confusion matrix for each threshold t."""
    total = np.zeros((len(THRESHOLDS), NUM_CLASSES, NUM_CLASSES), np.int64)
    for truth, scores, classes in images:
        ids = np.concatenate([[0], classes + 1])
        for number, threshold in enumerate(THRESHOLDS):
            padded = np.pad(scores, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
            total[number] += plain_confusion(truth, ids[padded.argmax(0)])
    return total


def one_pass(images: list[Image]) -> np.ndarray:
    sweep = ThresholdSweep(NUM_CLASSES, THRESHOLDS)
    for image in images:
        sweep.add(*image)
    return sweep.confusions()


def prepare(size: tuple[int, int]):
    images = [synthetic_image(seed, *size) for seed in range(3)]
    return lambda: one_pass_per_threshold(images), lambda: one_pass(images)


CASE = Case(
    "threshold sweep", ((100, 125), (375, 500), (750, 1000)), prepare, tolerance=0, goal=20, goal_size=(375, 500), pairs=3
)


def measure(quick: bool = False) -> list[Row]:
    return compare(CASE, quick)


if __name__ == "__main__":
    main(measure, __doc__)
