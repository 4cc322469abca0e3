"""SC-CAM's clustering at the size of VOC's train_aug: 10,582 features of 4,096 numbers, 20 classes, K = 10, ten starts.

python benchmarks/kmeans.py [--quick]

The features are generated: for each class a few directions, noise over all numbers, cut off at zero like a ReLU's. On a small
class a plain Lloyd iteration from the same centres must end in the same division.
"""

import argparse
import threading
import time

import numpy as np
import psutil
from sklearn.cluster import KMeans

from wsss_lib.methods.subcategories import cluster_images, used_subcategories

NUM_IMAGES, DIMENSIONS, CLUSTERS = 10_582, 4_096, 10
# Images of train_aug that carry each class; 16,458 labels in all.
PER_CLASS = (590, 504, 705, 468, 714, 393, 1150, 1005, 1228, 267, 613, 1188, 445, 492, 4155, 522, 300, 649, 503, 567)
SECONDS_GOAL, MIB_GOAL = 60.0, 1536.0


def features_and_labels(share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features float32 (N, D) >= 0 and labels uint8 (N, 20), a `share` of the full size."""
    rng = np.random.default_rng(seed)
    num_images = int(NUM_IMAGES * share)
    labels = np.zeros((num_images, len(PER_CLASS)), np.uint8)
    features = rng.standard_normal((num_images, DIMENSIONS), np.float32)
    for number, count in enumerate(PER_CLASS):
        members = rng.choice(num_images, int(count * share), replace=False)
        labels[members, number] = 1
        kinds = rng.standard_normal((5, DIMENSIONS), np.float32)
        for kind, images in enumerate(np.array_split(members, 5)):
            features[images] += kinds[kind] * np.float32(0.5)
    return np.maximum(features, 0, out=features), labels


def plain_lloyd(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Assign to the nearest centre, average, repeat until nothing changes."""
    assignment = None
    while True:
        distances = np.stack([((features - centre) ** 2).sum(1) for centre in centres], axis=1)
        nearest = distances.argmin(1)
        if assignment is not None and (nearest == assignment).all():
            return assignment
        assignment = nearest
        centres = np.stack([features[assignment == number].mean(0) for number in range(len(centres))])


def agreement(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of the images of the smallest class that both formulations put into the same cluster."""
    members = features[labels[:, np.argmin(labels.sum(0))] == 1].astype(np.float64)
    centres = members[:CLUSTERS]
    ours = KMeans(len(centres), init=centres, n_init=1, max_iter=300, tol=0).fit_predict(members)
    return float((ours == plain_lloyd(members, centres)).mean())


def measure(share: float = 1.0) -> dict[str, float]:
    """Cluster all classes; return seconds, peak growth of the memory with the features in MiB, and the agreement.

    Raises:
        RuntimeError: the two formulations disagree.
    """
    process, done = psutil.Process(), threading.Event()
    start = peak = process.memory_info().rss

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        features, labels = features_and_labels(share)
        begun = time.perf_counter()
        assignment = cluster_images(features, labels, CLUSTERS)
        seconds = time.perf_counter() - begun
    finally:
        done.set()
        sampler.join()
    if not (used_subcategories(assignment) == np.minimum(CLUSTERS, labels.sum(0))).all():
        raise RuntimeError("a class got fewer sub-categories than it has room for")
    if (same := agreement(features, labels)) < 1:
        raise RuntimeError(f"a plain Lloyd iteration agrees on {100 * same:.1f} % of the images only")
    return {"images": len(labels), "labels": int(labels.sum()), "seconds": seconds, "mib": (peak - start) / 2**20}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print the measured numbers beside the goals and return them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    result = measure(0.1 if parser.parse_args(arguments).quick else 1.0)
    print(f"{result['images']:,} images, {result['labels']:,} labels, {DIMENSIONS:,} numbers, K = {CLUSTERS}, ten starts")
    print(f"{result['seconds']:.1f} s (goal at full size: below {SECONDS_GOAL:.0f}), memory with the features "
          f"+{result['mib']:.0f} MiB (below {MIB_GOAL:.0f}); a plain Lloyd iteration ends in the same clusters")
    return result


if __name__ == "__main__":
    main()
