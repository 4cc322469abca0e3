"""SC-CAM's clustering at the size of VOC's train_aug: 10,582 features of 4,096 numbers, 20 classes, K = 10, ten starts.

python benchmarks/kmeans.py [--quick]

The features are generated: for each class a few directions, noise over all numbers, cut off at zero like a ReLU's. A plain
Lloyd iteration from the same centers, distances to one center after the other, must end in the same division.
"""

from functools import partial

import numpy as np
from measuring import Case, Row, compare, main, one_thread, peak_mib, seconds_of
from sklearn.cluster import KMeans

from wsss_lib.methods.sccam import cluster_images, used_subcategories

NUM_IMAGES, DIMENSIONS, CLUSTERS = 10_582, 4_096, 10
# Images of train_aug that carry each class; 16,458 labels in all.
PER_CLASS = (590, 504, 705, 468, 714, 393, 1150, 1005, 1228, 267, 613, 1188, 445, 492, 4155, 522, 300, 649, 503, 567)


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


def plain_lloyd(features: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Assign to the nearest center, average, repeat until nothing changes."""
    assignment = None
    while True:
        distances = np.stack([((features - center) ** 2).sum(1) for center in centers], axis=1)
        nearest = distances.argmin(1)
        if assignment is not None and (nearest == assignment).all():
            return assignment
        assignment = nearest
        centers = np.stack([features[assignment == number].mean(0) for number in range(len(centers))])


def prepare(count: int):
    features, _ = features_and_labels(count / NUM_IMAGES)
    members = features.astype(np.float64)
    centers = members[:CLUSTERS]
    return (
        lambda: plain_lloyd(members, centers),
        lambda: KMeans(len(centers), init=centers, n_init=1, max_iter=300, tol=0).fit_predict(members),
    )


def share_of_changed(first: np.ndarray, second: np.ndarray) -> float:
    return float((first != second).mean())


CASE = Case(
    "k-means, one start",
    (150, 500, 1150),
    prepare,
    tolerance=0,
    pairs=3,
    differ=share_of_changed,
    show=lambda count: f"{count:,} features",
)


def measure(quick: bool = False) -> list[Row]:
    """Compare one class's clustering with a plain iteration; then cluster all classes, which has no plain form here.

    Raises:
        RuntimeError: the two formulations disagree, or a class gets fewer sub-categories than it has room for.
    """
    rows = compare(CASE, quick)
    for share in (0.02,) if quick else (0.1, 0.3, 1.0):
        features, labels = features_and_labels(share)
        results: list[tuple] = []
        timed = partial(seconds_of, partial(cluster_images, features, labels, CLUSTERS))
        with one_thread():
            mib = peak_mib(lambda timed=timed, results=results: results.append(timed()))
        seconds, assignment = results[0]
        if not (used_subcategories(assignment) == np.minimum(CLUSTERS, labels.sum(0))).all():
            raise RuntimeError("a class got fewer sub-categories than it has room for")
        rows.append(Row("k-means, 20 classes, 10 starts", f"{len(labels):,} images", None, seconds, our_mib=mib))
    return rows


if __name__ == "__main__":
    main(measure, __doc__)
