"""All background thresholds in one pass against one pass per threshold: same counts, how much faster?

python benchmarks/threshold_sweep.py [--quick]

Both run in this process, image by image in turn, on the same generated maps of VOC's usual size.
"""

import argparse
import time
import tracemalloc

import numpy as np
from scipy.ndimage import zoom

from wsss_lib.metrics import confusion_matrix
from wsss_lib.thresholds import ThresholdSweep

NUM_CLASSES = 21
HEIGHT, WIDTH = 375, 500
THRESHOLDS = np.arange(0.01, 0.605, 0.01)  # 60
GOAL = 20.0


def synthetic_image(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return truth (H, W) uint8 with 255, smooth scores (K, H, W) float32 in [0, 1], classes (K,); K is 1 to 3."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(NUM_CLASSES - 1, size=1 + seed % 3, replace=False)
    noise = rng.random((len(classes), HEIGHT // 25, WIDTH // 25))
    scores = np.clip(zoom(noise, (1, 25, 25), order=1), 0, 1).astype(np.float32)  # (K, H, W)
    best = scores.argmax(0)
    truth = np.where(scores.max(0) > 0.5, classes[best] + 1, 0).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.05] = 255
    return truth, scores, classes


def one_pass_per_threshold(truth: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The plain formulation: arg-max over [t, scores] and a confusion matrix for each threshold t."""
    ids = np.concatenate([[0], classes + 1])
    confusions = []
    for threshold in THRESHOLDS:
        padded = np.pad(scores, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
        confusions.append(confusion_matrix(truth, ids[padded.argmax(0)], NUM_CLASSES))
    return np.stack(confusions)


def peak_bytes(function) -> int:
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def measure(num_images: int) -> dict[str, float]:
    """Time both ways on the same images in turn; assert that every count is the same.

    Returns:
        Seconds per image of both, their ratio, and the peak memory of one image in MiB.
    """
    sweep = ThresholdSweep(NUM_CLASSES, THRESHOLDS)
    plain_counts = np.zeros((len(THRESHOLDS), NUM_CLASSES, NUM_CLASSES), np.int64)
    plain_seconds, our_seconds = [], []
    for seed in range(num_images):
        image = synthetic_image(seed)
        start = time.perf_counter()
        plain_counts += one_pass_per_threshold(*image)
        middle = time.perf_counter()
        sweep.add(*image)
        our_seconds.append(time.perf_counter() - middle)
        plain_seconds.append(middle - start)
    start = time.perf_counter()
    our_counts = sweep.confusions()
    finish = time.perf_counter() - start  # once for the whole data set
    assert np.array_equal(plain_counts, our_counts), "the two ways count differently"
    image = synthetic_image(2)
    plain, ours = float(np.median(plain_seconds)), float(np.median(our_seconds)) + finish / num_images
    return {"plain_s": plain, "ours_s": ours, "ratio": plain / ours, "thresholds": len(THRESHOLDS),
            "plain_mib": peak_bytes(lambda: one_pass_per_threshold(*image)) / 2**20,
            "ours_mib": peak_bytes(lambda: ThresholdSweep(NUM_CLASSES, THRESHOLDS).add(*image)) / 2**20}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="6 images instead of 30")
    options = parser.parse_args(arguments)
    numbers = measure(6 if options.quick else 30)
    print(f"{numbers['thresholds']} thresholds, {HEIGHT}x{WIDTH} pixels, 1 to 3 classes an image, identical counts\n"
          f"one pass per threshold: {1000 * numbers['plain_s']:7.1f} ms an image, {numbers['plain_mib']:6.1f} MiB at most\n"
          f"one pass for all:       {1000 * numbers['ours_s']:7.1f} ms an image, {numbers['ours_mib']:6.1f} MiB at most\n"
          f"ratio {numbers['ratio']:.1f} (goal: at least {GOAL:.0f})")
    return numbers


if __name__ == "__main__":
    main()
