"""Measures for label maps: confusion matrix, intersection over union, edges, average precision, recall by part.

Every score of a data set comes from ONE confusion matrix over all its pixels, never from a mean over images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import distance_transform_cdt, distance_transform_edt

from wsss_lib.core.files import IGNORE
from wsss_lib.errors import Diverged

Average = Literal["union", "present"]


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of every (true class, predicted class) pair.

    Pixels whose ground truth lies outside 0..K-1 (the void border 255, or -1) are dropped. A prediction of 255
    ("unknown") counts as background, as in the evaluation of IRN, RIB and AMN; `Evaluation.unknown_share` says
    how many these were.

    Args:
        truth: integer labels, any shape.
        prediction: integer labels of the same shape, 0..K-1 or 255.
        num_classes: K, background included.

    Returns:
        (K, K) int64; rows are the ground truth, columns the prediction.

    Raises:
        ValueError: the shapes differ, or a counted pixel is predicted as a class that does not exist.

    Source: confusion matrix n_cd of every mIoU definition in use. Explained in notebook 70, section "Scores".

    >>> confusion_matrix(np.array([0, 1, 1, 255]), np.array([0, 1, 255, 1]), 2)
    array([[1, 0],
           [1, 1]])
    """
    truth, prediction = _checked_labels(truth, prediction)
    if truth.dtype == prediction.dtype == np.uint8 and num_classes <= IGNORE:
        # Masks: all 256 x 256 pairs in one count, six times as fast as finding the valid pixels first.
        pairs = np.bincount((truth.astype(np.uint16) << 8 | prediction).ravel(), minlength=2**16)
        pairs = pairs.reshape(256, 256)[:num_classes].astype(np.int64, copy=False)
        foreign = np.flatnonzero(pairs[:, num_classes:IGNORE].any(0))
        if foreign.size:
            raise _foreign_label(num_classes + foreign[-1], num_classes)
        pairs[:, 0] += pairs[:, IGNORE]
        return pairs[:, :num_classes].copy()
    valid = (truth >= 0) & (truth < num_classes)
    truth = truth[valid].astype(np.int64)
    prediction = prediction[valid].astype(np.int64)
    prediction[prediction == IGNORE] = 0
    if prediction.size and (prediction.min() < 0 or prediction.max() >= num_classes):
        raise _foreign_label(prediction.max() if prediction.max() >= num_classes else prediction.min(), num_classes)
    pairs = np.bincount(truth * num_classes + prediction, minlength=num_classes * num_classes)
    return pairs.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def _foreign_label(label: int, num_classes: int) -> ValueError:
    return ValueError(
        f"The prediction holds the label {label}, allowed are 0..{num_classes - 1} and 255 "
        "(unknown): make it again for this list of classes."
    )


def _checked_labels(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(
            f"Truth {truth.shape} and prediction {prediction.shape} differ in shape: bring the "
            "prediction to the size of the truth first."
        )
    for name, array in (("truth", truth), ("prediction", prediction)):
        if array.dtype.kind not in "iu":
            raise ValueError(
                f"The {name} has the type {array.dtype}, labels must be integers: read the mask as "
                "indices, not as colors or scores."
            )
    return truth, prediction


@dataclass(frozen=True)
class Scores:
    """Scores of one confusion matrix; all are fractions in [0, 1], NaN where undefined.

    Attributes:
        iou: (K,) n_cc / (row_c + column_c - n_cc); NaN for a class in neither ground truth nor prediction.
        precision: (K,) n_cc / column_c; NaN for a class that is never predicted.
        recall: (K,) n_cc / row_c, the "accuracy" of a class; NaN for a class not in the ground truth.
        miou: mean of `iou` over the classes that the averaging rule selects.
        pixel_accuracy: fraction of the counted pixels that are correct.
        mean_accuracy: mean of `recall` over the classes in the ground truth.
        frequency_weighted_iou: mean of `iou` weighted by each class's fraction of the ground truth.
        average: the averaging rule behind `miou`.
    """

    iou: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    average: Average


def scores(confusion: np.ndarray, average: Average = "union") -> Scores:
    """Turn a confusion matrix into the scores of semantic segmentation.

    Args:
        confusion: (K, K) counts, rows are the ground truth.
        average: "union": the mean IoU runs over the classes in ground truth OR prediction, so a class that is only
            predicted counts as 0 (DeepLab-v3+, DRS, IRN family). "present": over the classes in the ground truth
            (DeepLab-v2, VWE). Both agree when the ground truth has every class, as on the whole VOC splits.

    Raises:
        ValueError: the matrix is not square, or the rule is unknown.

    Source: mIoU as in the PASCAL VOC segmentation task; the two averaging rules are those of the DeepLab codes.
    Explained in notebook 70, section "Scores".

    >>> result = scores(np.array([[2, 0, 1], [1, 3, 0], [0, 0, 0]]))
    >>> result.iou.round(2)
    array([0.5 , 0.75, 0.  ])
    >>> round(result.miou, 4), round(scores(np.array([[2, 0, 1], [1, 3, 0], [0, 0, 0]]), "present").miou, 4)
    (0.4167, 0.625)
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"A confusion matrix is square, this one has the shape {confusion.shape}.")
    if average not in ("union", "present"):
        raise ValueError(f"average={average!r} is unknown: choose 'union' or 'present'.")
    hits = np.diag(confusion).astype(np.float64)
    row = confusion.sum(1).astype(np.float64)  # pixels of each true class
    column = confusion.sum(0).astype(np.float64)  # pixels of each predicted class
    total = row.sum()
    iou = _ratio(hits, row + column - hits)
    recall = _ratio(hits, row)
    return Scores(
        iou=iou,
        precision=_ratio(hits, column),
        recall=recall,
        miou=_mean(iou if average == "union" else iou[row > 0]),
        pixel_accuracy=float(hits.sum() / total) if total else float("nan"),
        mean_accuracy=_mean(recall),
        frequency_weighted_iou=float((row * np.nan_to_num(iou)).sum() / total) if total else float("nan"),
        average=average,
    )


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


class Evaluation:
    """Confusion matrix of a whole data set, built image by image, and the fraction of unknown pixels.

    Args:
        num_classes: K, background included.

    Attributes:
        confusion: (K, K) int64, rows are the ground truth.
        images: number of images added.

    Explained in notebook 70, section "Scores".

    >>> evaluation = Evaluation(2)
    >>> evaluation.add(np.array([[0, 1], [1, 255]]), np.array([[0, 1], [255, 1]]))
    >>> evaluation.images, round(evaluation.unknown_share, 3), evaluation.scores().pixel_accuracy.__round__(3)
    (1, 0.333, 0.667)
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.images = 0
        self._unknown = 0

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: (H, W) integer labels; outside 0..K-1 is dropped.
            prediction: (H, W) integer labels, 0..K-1 or 255.

        Raises:
            ValueError: as `confusion_matrix`.
        """
        self.confusion += confusion_matrix(truth, prediction, self.num_classes)
        truth, prediction = np.asarray(truth), np.asarray(prediction)
        counted = (truth >= 0) & (truth < self.num_classes)
        self._unknown += int(np.count_nonzero(counted & (prediction == IGNORE)))
        self.images += 1

    @property
    def unknown_share(self) -> float:
        """Return the fraction in [0, 1] of the counted pixels that the prediction left unknown (255), taken as background."""
        total = int(self.confusion.sum())
        return self._unknown / total if total else 0.0

    def scores(self, average: Average = "union") -> Scores:
        """Return the `Scores` of everything added so far; `average` as in the function `scores`."""
        return scores(self.confusion, average)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each class of a multi-label classifier.

    AP = sum over the distinct scores s, from high to low, of (recall(s) - recall(before s)) * precision(s), where
    everything with a score >= s counts as found; equal scores enter together, so their order does not matter.

    Args:
        scores: (N, C) float, any scale; only the order counts.
        labels: (N, C) 0 or 1.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class without a positive image.

    Raises:
        ValueError: the shapes differ, or a label is neither 0 nor 1.
        Diverged: a score is NaN.

    Source: area under the uninterpolated precision-recall curve. Explained in notebook 10, section "Score of the classifier".

    >>> average_precision(np.array([[0.9], [0.8], [0.7], [0.1]]), np.array([[1], [0], [1], [0]])).round(4)
    array([0.8333])
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be (images, classes).")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("Image-level labels must be 0 or 1.")
    if np.isnan(scores).any():
        raise Diverged("A classification score is NaN: the training has diverged.")
    return np.array([_average_precision(scores[:, c], labels[:, c] == 1) for c in range(scores.shape[1])])


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(positive[order])  # true positives among the first n images
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    precision = found[last_of_tie] / (last_of_tie + 1)
    recall = found[last_of_tie] / positive.sum()
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of `average_precision` over the classes that have a positive image (NaN if none has one).

    Args:
        scores: (N, C) float, any scale; only the order counts.
        labels: (N, C) 0 or 1.

    Raises:
        ValueError: as `average_precision`.

    Explained in notebook 10, section "Score of the classifier".

    >>> mean_average_precision(np.array([[0.9, 0.2], [0.8, 0.1]]), np.array([[1, 0], [0, 0]]))
    1.0
    """
    return _mean(average_precision(scores, labels))


def part_recall(prediction: np.ndarray, part_mask: np.ndarray, class_mask: np.ndarray) -> dict[str, float]:
    """Return the fraction of the head's and of the body's pixels with the correct class.

    Args:
        prediction: int (H, W), 0 background, `i + 1` for class `i`.
        part_mask: int (H, W), 1 body, 2 head; other values are not counted.
        class_mask: int (H, W), the true classes.

    Returns:
        {"head": fraction in 0..1, "body": fraction}; NaN for a part that the image does not show.

    Raises:
        ValueError: the three arrays differ in shape.

    Explained in notebook 10, section "The flaw, measured".

    >>> part_recall(np.array([[0, 3, 3]]), np.array([[1, 1, 2]]), np.array([[3, 3, 3]]))
    {'head': 1.0, 'body': 0.5}
    """
    if not prediction.shape == part_mask.shape == class_mask.shape:
        raise ValueError(
            f"prediction {prediction.shape}, part mask {part_mask.shape} and class mask {class_mask.shape} must have one shape"
        )
    right = prediction == class_mask
    return {
        name: float(right[part_mask == part].mean()) if (part_mask == part).any() else float("nan")
        for name, part in (("head", 2), ("body", 1))
    }


def boundary_band(region: np.ndarray, width: int) -> np.ndarray:
    """Return the inner edge of a region: its pixels that are at most `width` steps away from a pixel outside.

    Args:
        region: bool (H, W); everything beyond the image counts as outside.
        width: of the band in pixels, at least 1; diagonal steps count as one.

    Returns:
        bool (H, W), a part of the region.

    Source: the set G_d with G of Cheng et al., Boundary IoU, CVPR 2021, section 4.
    Explained in notebook 95, section "Boundaries".

    >>> boundary_band(np.ones((3, 5), bool), 1).astype(int)
    array([[1, 1, 1, 1, 1],
           [1, 0, 0, 0, 1],
           [1, 1, 1, 1, 1]])
    """
    depth = distance_transform_cdt(np.pad(region, 1), "chessboard")[1:-1, 1:-1]
    return (depth > 0) & (depth <= width)


class BoundaryEvaluation:
    """Boundary IoU of a whole data set: like the IoU, but only the inner edges of ground truth and prediction are compared.

    A mask that is correct inside and careless at its edge keeps a high IoU and loses most of its boundary IoU. Pixels are
    summed over all images before the division, as for the mean IoU; the background has no edge of its own. A void border
    (255 in the ground truth) hides the true edge: it is filled with the nearest label first, and its own pixels are not
    counted.

    Args:
        num_classes: K, background included.
        width: of the edges, as a fraction of the image's diagonal; one pixel at least.

    Attributes:
        hits, union: (K,) int64, pixels in both edges and in either.

    Source: Cheng, Girshick, Dollár, Berg, Kirillov, Boundary IoU, CVPR 2021; 2 % of the diagonal is theirs.
    Explained in notebook 95, section "Boundaries".

    >>> truth = np.zeros((8, 8), np.uint8)
    >>> truth[2:6, 2:6] = 1
    >>> evaluation = BoundaryEvaluation(2)
    >>> evaluation.add(truth, np.roll(truth, 1, 1))  # 12 pixels an edge, 6 of them shared
    >>> evaluation.hits[1], evaluation.union[1], round(evaluation.miou, 3)
    (np.int64(6), np.int64(18), 0.333)
    """

    def __init__(self, num_classes: int, width: float = 0.02):
        self.num_classes, self.width = num_classes, width
        self.hits, self.union = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: (H, W) integer labels; outside 0..K-1 is void.
            prediction: (H, W) integer labels, 0..K-1 or 255 (unknown, which has no edge).

        Raises:
            ValueError: the shapes differ, or the arrays are not integers.
        """
        truth, prediction = _checked_labels(truth, prediction)
        counted = (truth >= 0) & (truth < self.num_classes)
        if not counted.any():
            return
        if not counted.all():
            nearest = distance_transform_edt(~counted, return_distances=False, return_indices=True)
            truth = truth[tuple(nearest)]
        width = max(1, round(self.width * float(np.hypot(*truth.shape))))
        for label in set(np.union1d(truth, prediction).tolist()) & set(range(1, self.num_classes)):
            edges = [boundary_band(array == label, width) & counted for array in (truth, prediction)]
            self.hits[label] += int(np.count_nonzero(edges[0] & edges[1]))
            self.union[label] += int(np.count_nonzero(edges[0] | edges[1]))

    @property
    def iou(self) -> np.ndarray:
        """Return the boundary IoU of each class in [0, 1]: (K,), NaN where neither side has an edge."""
        return _ratio(self.hits.astype(np.float64), self.union.astype(np.float64))

    @property
    def miou(self) -> float:
        """Return the mean of `iou` over the classes that have an edge, background left out."""
        return _mean(self.iou)
