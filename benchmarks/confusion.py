"""The confusion matrix of an image: a loop over pairs of classes against one count of pairs.

python benchmarks/confusion.py [--quick]
"""

import numpy as np
from measuring import Case, Row, compare, main

from wsss_lib.ops.metrics import confusion_matrix

CLASSES = 21


def class_by_class(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Count the pixels of each pair of classes by comparing the whole masks with both."""
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for true_class in range(CLASSES):
        here = truth == true_class
        for predicted in range(CLASSES):
            matrix[true_class, predicted] = np.count_nonzero(here & (prediction == predicted))
    return matrix


def prepare(size: tuple[int, int]):
    rng = np.random.default_rng(0)
    truth, prediction = (rng.integers(0, CLASSES, size, np.uint8) for _ in range(2))
    truth[rng.random(size) < 0.05] = 255
    return lambda: class_by_class(truth, prediction), lambda: confusion_matrix(truth, prediction, CLASSES)


CASE = Case(
    "confusion matrix", ((96, 96), (375, 500), (750, 1000)), prepare, tolerance=0, goal=5, goal_size=(375, 500), pairs=9
)


def measure(quick: bool = False) -> list[Row]:
    return compare(CASE, quick)


if __name__ == "__main__":
    main(measure, __doc__)
