"""Threshold choice: all of them in one pass, each image's own best one, a choice on a few labeled images.

A threshold turns score maps into masks, and everything that follows depends on it. Choosing it with the ground truth uses
pixel labels; `choice_sentence` says so in words that a report can print.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.ops.metrics import Average, scores

CELLS = 4096  # a power of two


def _cell(values: np.ndarray) -> np.ndarray:
    """Return which of the equal parts of [0, 1] values lie in; exact and never decreasing, as CELLS is a power of two."""
    return (np.clip(values, 0, 1) * np.float32(CELLS)).astype(np.int32)


class ThresholdSweep:
    """Confusion matrices for MANY background thresholds from one pass over each image.

    A threshold t only decides between the background (score <= t) and the pixel's best class. So each pixel is
    counted once, under (true class, best class, number of thresholds below its score); cumulative sums give the
    matrix of every threshold. The counts are identical to arg-max([t, scores]) run once for each t, where a tie
    goes to the background. Scores are compared in float32, the type of the maps.

    Args:
        num_classes: K, background included.
        thresholds: (T,) strictly increasing.

    Raises:
        ValueError: no threshold, or not strictly increasing in float32.

    Source: the search for the best CAM threshold in IRN-style evaluation, reorganized.
    Explained in notebook 70, section "Thresholds".

    >>> sweep = ThresholdSweep(3, [0.2, 0.5])
    >>> truth, scores_ = np.array([[0, 2]]), np.array([[[0.3, 0.9]]], np.float32)
    >>> sweep.add(truth, scores_, classes=np.array([1]))
    >>> sweep.best()
    (0.5, 1.0)
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] | np.ndarray):
        self.num_classes = num_classes
        self.thresholds = np.asarray(thresholds, np.float32)
        increasing = self.thresholds.ndim == 1 and (np.diff(self.thresholds) > 0).all()
        if not increasing or not self.thresholds.size or np.isnan(self.thresholds).any():
            raise ValueError(
                "The thresholds must be a non-empty, strictly increasing list, for example numpy.arange(0.05, 0.6, 0.01)."
            )
        self._histogram = np.zeros((num_classes, num_classes, self.thresholds.size + 1), np.int64)  # (truth, best class, bin)
        # Most scores are binned by a look-up of their first 12 binary digits; -1: a threshold there needs all of them.
        cell = np.arange(CELLS + 1)
        threshold_cell = _cell(self.thresholds)
        self._bin_of_cell = np.searchsorted(threshold_cell, cell).astype(np.int32)
        self._bin_of_cell[threshold_cell] = -1
        self.images = 0

    def add(self, truth: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: (H, W) integer labels; outside 0..K-1 is dropped.
            scores: (C, H, W) float score of each class in `classes`; C may be 0.
            classes: (C,) foreground classes, 0-based; class c is the label c + 1.

        Raises:
            ValueError: as `count`.
        """
        self.count(truth, scores, classes)

    def count(self, truth: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Count one image and return its counts.

        Returns:
            (K, 1 + C, T + 1) int64, pixels by true class, best class (its position in `classes`, from 1; 0 only if there is
            none) and number of thresholds below the score.

        Raises:
            ValueError: the shapes do not fit together, a class does not exist, a score is NaN, or the labels are not integers.
        """
        truth, scores, classes = np.asarray(truth), np.asarray(scores), np.asarray(classes)
        if scores.ndim != 3 or scores.shape[1:] != truth.shape or classes.shape != scores.shape[:1]:
            raise ValueError(
                f"truth {truth.shape}, scores {scores.shape} and classes {classes.shape} do not fit: "
                "(H, W), (C, H, W) and (C,) are needed."
            )
        if classes.size and (classes.min() < 0 or classes.max() > self.num_classes - 2):
            raise ValueError(f"classes {classes.tolist()} must lie in 0..{self.num_classes - 2} (foreground only).")
        if truth.dtype.kind not in "iu":
            raise ValueError(f"The truth has the type {truth.dtype}, labels must be integers: read the mask as indices.")
        columns, bins = 1 + classes.size, self.thresholds.size + 1
        # -1 and 255 become large unsigned numbers, and all that is too large falls into one extra row
        index = np.minimum(truth.astype(f"u{truth.itemsize}"), self.num_classes).astype(np.int32)
        index *= columns * bins
        if classes.size:
            best, winner = scores[0].astype(np.float32, copy=False), np.full(truth.shape, bins, np.int32)
            for position, score in enumerate(scores[1:], start=2):
                score = score.astype(np.float32, copy=False)
                np.copyto(winner, position * bins, where=score > best)  # the first class keeps a tie, as arg-max does
                best = np.maximum(best, score)
            if np.isnan(best.max(initial=0)):
                raise ValueError("A score is NaN: the localization map is broken, make it again.")
            index += winner + self._bins(best)
        counts = np.bincount(index.ravel(), minlength=(self.num_classes + 1) * columns * bins)
        counts = counts.reshape(-1, columns, bins)[:-1]  # (K, 1 + C, T + 1)
        for position, label in enumerate((0, *(classes + 1))):
            self._histogram[:, label] += counts[:, position]
        self.images += 1
        return counts

    def _bins(self, best: np.ndarray) -> np.ndarray:
        """Return for each float32 score how many thresholds lie below it, as `np.searchsorted` would."""
        bins = self._bin_of_cell[_cell(best)]
        unsure = np.nonzero(bins < 0)
        bins[unsure] = np.searchsorted(self.thresholds, best[unsure])
        return bins

    def confusions(self) -> np.ndarray:
        """Return the confusion matrix of every threshold: (T, K, K) int64, rows are the ground truth."""
        # a pixel in bin b scores above thresholds 0..b-1: it is foreground there and background from b on
        confusions = np.moveaxis(_above(self._histogram), -1, 0).copy()  # (T, K, K)
        confusions[:, :, 0] = self._histogram.sum((1, 2)) - confusions[:, :, 1:].sum(2)
        return confusions

    def curve(self, average: Average = "union") -> np.ndarray:
        """Return the mean IoU at every threshold: (T,) float64 in [0, 1]; `average` as in the function `scores`."""
        return np.array([scores(confusion, average).miou for confusion in self.confusions()])

    def best(self, average: Average = "union") -> tuple[float, float]:
        """Return the threshold of the highest mean IoU (the lowest such threshold) and that mean IoU, in [0, 1].

        The choice uses pixel labels: a report must say so. `average` as in the function `scores`.

        Raises:
            ValueError: nothing was added yet.
        """
        curve = self.curve(average)
        if np.isnan(curve).all():
            raise ValueError("No labelled pixel was added to the sweep: add at least one image with a ground-truth mask.")
        index = int(np.nanargmax(curve))
        return float(self.thresholds[index]), float(curve[index])


class ImageThresholds(ThresholdSweep):
    """A sweep that also keeps each image's own curve: the threshold that suits an image best, besides the one for all.

    The mean IoU of one image is the mean over the background and the image's own classes. If every image could have its best
    threshold, the data set would reach `upper_bound()`; its lead over `best()` is the price of one threshold for all.

    Args:
        num_classes: K, background included.
        thresholds: (T,) strictly increasing.

    Attributes:
        upper_bound_confusion: (K, K) int64, the sum of the images' confusion matrices, each at the image's best threshold.

    Source: AMN (Lee, Kim, Shim, CVPR 2022), the distribution of the optimal thresholds; the definition is ours, because the
    official program has none.
    Explained in notebook 40, section "The problem".

    >>> sweep = ImageThresholds(2, [0.25, 0.5])
    >>> sweep.add(np.array([[0, 1]]), np.array([[[0.4, 0.9]]], np.float32), np.array([0]))
    >>> sweep.add(np.array([[0, 1]]), np.array([[[0.1, 0.3]]], np.float32), np.array([0]))
    >>> sweep.best_thresholds().tolist(), round(sweep.best()[1], 3), sweep.upper_bound()
    ([0.5, 0.25], 0.583, 1.0)
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] | np.ndarray):
        super().__init__(num_classes, thresholds)
        self._curves: list[np.ndarray] = []
        self.upper_bound_confusion = np.zeros((num_classes, num_classes), np.int64)

    def count(self, truth: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the counts of one image and keep its curve.

        Raises:
            ValueError: as `ThresholdSweep.count`.
        """
        counts = super().count(truth, scores, classes)  # (K, 1 + C, T + 1)
        labels = np.array([0, *(np.asarray(classes) + 1)], np.int64)
        predicted = _above(counts)  # (K, 1 + C, T)
        predicted[:, 0] = counts.sum((1, 2))[:, None] - predicted[:, 1:].sum(1)
        hits = predicted[labels, np.arange(len(labels))].astype(np.float64)  # (1 + C, T)
        union = predicted.sum(0) + counts[labels].sum((1, 2))[:, None] - hits
        present = union > 0
        iou_sum = np.divide(hits, union, out=np.zeros_like(hits), where=present).sum(0)
        curve = np.divide(iou_sum, present.sum(0), out=np.full(len(iou_sum), np.nan), where=present.any(0))  # (T,)
        self._curves.append(curve)
        if not np.isnan(curve).all():
            own = predicted[..., int(np.nanargmax(curve))]  # (K, 1 + C)
            for position, label in enumerate(labels):
                self.upper_bound_confusion[:, label] += own[:, position]
        return counts

    def curves(self) -> np.ndarray:
        """Return the mean IoU of every image at every threshold: (N, T); NaN for an image without a labeled pixel."""
        return np.stack(self._curves) if self._curves else np.zeros((0, self.thresholds.size))

    def best_thresholds(self) -> np.ndarray:
        """Return each image's best threshold t_i*, the lowest of several: (N,); NaN for an image without a labeled pixel.

        These choices use pixel labels: a report must say so.
        """
        curves = self.curves()
        known = ~np.isnan(curves).all(1)
        best = np.full(len(curves), np.nan, np.float32)
        best[known] = self.thresholds[np.nanargmax(curves[known], axis=1)]
        return best

    def upper_bound(self, average: Average = "union") -> float:
        """Return the mean IoU of the whole data set with every image at its own best threshold, in [0, 1].

        `average` as in the function `scores`.
        """
        return scores(self.upper_bound_confusion, average).miou

    def summary(self, within: float = 0.02) -> dict[str, float]:
        """Return how a threshold affects these maps, in percent of mean IoU unless stated otherwise.

        Args:
            within: the loss of mean IoU that still counts as near the best, a fraction.

        Returns:
            "threshold" and "best": the best one for all images and its mean IoU; "low" and "high": the range of thresholds near
            it; "image_mean" and "image_spread": mean and standard deviation of the images' own best thresholds; "upper_bound":
            with each image at its own; "image_loss": how much an image's own mean IoU loses on average with the one for all.
        """
        threshold, best = self.best()
        low, high = near_best_range(self.thresholds, self.curve(), within)
        curves, own = self.curves(), self.best_thresholds()
        known = ~np.isnan(own)
        loss = np.nanmax(curves[known], 1) - curves[known, int(np.searchsorted(self.thresholds, np.float32(threshold)))]
        values = {
            "threshold": threshold,
            "low": low,
            "high": high,
            "image_mean": own[known].mean(),
            "image_spread": own[known].std(),
            "best": 100 * best,
            "upper_bound": 100 * self.upper_bound(),
            "image_loss": 100 * np.nanmean(loss),
        }
        return {name: round(float(value), 4) for name, value in values.items()}


def imbalance_and_gap(truth: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return how uneven each class's score is on its object, and how far it is above the background's.

    Imbalance: standard deviation of A_k over the true pixels of class k. Gap: mean of A_k on those pixels minus its mean on the
    true background. One threshold suits all images if the imbalance is small and the gap is large.

    Args:
        truth: (H, W) integer labels.
        scores: A, (C, H, W) float.
        classes: (C,) foreground classes, 0-based.

    Returns:
        (C, 2) float64: imbalance and gap; NaN for a class absent from the ground truth, or without background.

    Source: AMN's argument; the two numbers are ours. Explained in notebook 40, section "The problem".

    >>> imbalance_and_gap(np.array([[0, 1, 1]]), np.array([[[0.1, 0.5, 0.9]]]), np.array([0])).round(3).tolist()
    [[0.2, 0.6]]
    """
    result = np.full((len(classes), 2), np.nan)
    background = truth == 0
    for row, score, cls in zip(result, np.asarray(scores, np.float64), classes, strict=True):
        inside = score[truth == cls + 1]
        if inside.size and background.any():
            row[:] = inside.std(), inside.mean() - score[background].mean()
    return result


def near_best_range(
    thresholds: Sequence[float] | np.ndarray, curve: Sequence[float] | np.ndarray, within: float = 0.02
) -> tuple[float, float]:
    """Return the range of thresholds around the best one that loses at most `within`.

    Args:
        thresholds: (T,) increasing.
        curve: (T,) the score at each, higher is better.
        within: the loss allowed, in the units of the curve: 0.02 for fractions, 2 for percent.

    Returns:
        its lowest and its highest threshold; all thresholds of the list between them are near the best, too.

    Raises:
        ValueError: the two lists differ in length, or no score is a number.

    Explained in notebook 70, section "How much the choice matters".

    >>> near_best_range([0.1, 0.2, 0.3, 0.4, 0.5], [49, 10, 50, 49, 47], within=2)
    (0.3, 0.4)
    """
    curve = np.asarray(curve, np.float64)
    if curve.shape != np.shape(thresholds) or np.isnan(curve).all():
        raise ValueError(
            f"{len(thresholds)} thresholds and {len(curve)} scores: as many of one as of the other are needed, "
            "and at least one score that is a number."
        )
    near = curve >= np.nanmax(curve) - within  # NaN is not near
    low = high = int(np.nanargmax(curve))
    while low > 0 and near[low - 1]:
        low -= 1
    while high + 1 < len(curve) and near[high + 1]:
        high += 1
    return float(thresholds[low]), float(thresholds[high])


def split_labelled(data: SegmentationDataset, per_class: int = 5) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Set aside a few images whose masks may be used to choose a threshold, apart from those that are scored.

    For each class in turn, `per_class` of the images that have it are taken, evenly spaced over the list (all, if there are
    fewer). This uses no random number, no score and no mask, so the set is the same for all methods and seeds.

    Args:
        per_class: images for each class; an image with two classes may be taken for both.

    Returns:
        the labeled images, and all the others.

    Raises:
        ValueError: per_class is below 1, or nothing would be left to score.

    Source: the separate fully labelled set of Choe et al., Evaluating Weakly Supervised Object Localization Methods Right,
    CVPR 2020, drawn here from the split itself.
    Explained in notebook 70, section "How much the choice matters".
    """
    if per_class < 1:
        raise ValueError(f"per_class={per_class} must be at least 1: without a labelled image nothing can be chosen.")
    taken = np.zeros(len(data), bool)
    for column in data.labels.T:
        having = np.flatnonzero(column)
        taken[having[np.linspace(0, len(having) - 1, min(per_class, len(having))).round().astype(int)]] = True
    if taken.all():
        raise ValueError(
            f"per_class={per_class} takes all {len(data)} images of split {data.split!r}: choose fewer, so that "
            "images are left to score."
        )
    labelled, others = (data.part(part) for part in (taken, ~taken))
    return labelled, others


def choice_sentence(way: Literal["fixed", "labelled", "best"], threshold: float, images: int = 0) -> str:
    """Say in one sentence how a threshold was chosen and whether pixel labels were used.

    Args:
        way: "fixed": a value set beforehand; "labelled": the best on a separate labeled set; "best": the best on the very
            images that are scored.
        threshold: the value.
        images: whose masks were used, unless it was fixed.

    Returns:
        a sentence without its period.

    Raises:
        ValueError: the way is unknown.

    Explained in notebook 70, section "How much the choice matters".

    >>> choice_sentence("fixed", 0.15)
    'threshold 0.15 was fixed beforehand: no pixel label chose it'
    """
    ends = {
        "fixed": "was fixed beforehand: no pixel label chose it",
        "labelled": f"is the best on {images} other images: their pixel labels chose it",
        "best": f"is the best on the {images} scored images: their pixel labels chose it, and the score is an upper bound",
    }
    if way not in ends:
        raise ValueError(f"way={way!r} is unknown: choose 'fixed', 'labelled' or 'best'.")
    return f"threshold {threshold:.3g} {ends[way]}"


def _above(counts: np.ndarray) -> np.ndarray:
    """Return from counts by bin (..., T + 1) how many pixels score above each threshold: (..., T)."""
    return counts[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]
