"""From localization maps to label maps: thresholds, the dense CRF, and IRN's confident labels.

Everywhere `scores` are (K, H, W) in [0, 1] for the K foreground classes `classes` (0-based) of ONE image; label maps hold
0 for the background, class + 1, and 255 for "unknown".
"""

import numpy as np

from wsss_lib.core.files import IGNORE
from wsss_lib.ops.crf import crf_from_labels


def argmax_with_background(scores: np.ndarray, classes: np.ndarray, threshold: float) -> np.ndarray:
    """Assign each pixel its best class, or the background where no score is above the threshold.

    The same as arg-max over [threshold, scores]: a tie goes to the background, then to the first class. As in the
    official code, the threshold is rounded to the type of the scores before it is compared.

    Args:
        scores: (K, H, W) float; K may be 0.
        classes: (K,) 0-based foreground classes, at most 253.
        threshold: constant score of the background.

    Returns:
        (H, W) uint8, 0 or class + 1.

    Raises:
        ValueError: shapes do not fit, or a class does not fit into 1..254.

    Source: arg-max([t, M]) of the IRN family. Explained in notebook 70, section "Thresholds".

    >>> argmax_with_background(np.array([[[0.2, 0.3, 0.9]], [[0.1, 0.5, 0.8]]]), np.array([4, 7]), 0.3)
    array([[0, 8, 5]], dtype=uint8)
    """
    scores, classes = _checked(scores, classes)
    if not classes.size:
        return np.zeros(scores.shape[1:], np.uint8)
    ids = (classes + 1).astype(np.uint8)
    best = scores.max(0)
    return np.where(best > scores.dtype.type(threshold), ids[scores.argmax(0)], 0).astype(np.uint8)


def seed_mask(
    image: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, crf: bool = True, iterations: int = 10
) -> np.ndarray:
    """Make the initial seed mask of one image: threshold, then the dense CRF on the hard labels.

    Args:
        image: (H, W, 3) uint8 RGB; read only when `crf`.
        scores: (K, H, W) float in [0, 1]; K may be 0 (an image without a class is all background).
        classes: (K,) 0-based foreground classes.
        threshold: constant score of the background.
        crf: snap the labels to the edges of the image with `crf_from_labels`.

    Returns:
        (H, W) uint8, 0 or class + 1; never 255.

    Raises:
        ValueError: the shapes do not fit.

    Source: IRN, Ahn et al., CVPR 2019. Explained in notebook 70, section "Dense CRF".
    """
    if not crf:
        return argmax_with_background(scores, classes, threshold)
    return _refined_seeds(image, scores, classes, (threshold,), iterations)[0]


def _refined_seeds(
    image: np.ndarray, scores: np.ndarray, classes: np.ndarray, thresholds: tuple[float, ...], iterations: int
) -> np.ndarray:
    """Return the mask of each threshold after the CRF, uint8 (T, H, W); all of them share the CRF's pairwise terms."""
    scores, classes = _checked(scores, classes)
    positions = np.stack(
        [
            argmax_with_background(scores, np.arange(classes.size), threshold)  # 0..K, this image's own numbers
            for threshold in thresholds
        ]
    )
    refined = crf_from_labels(image, positions, classes.size + 1, iterations=iterations)
    return np.concatenate([[0], classes + 1]).astype(np.uint8)[refined]


def irn_labels(
    image: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    foreground_threshold: float = 0.30,
    background_threshold: float = 0.05,
    iterations: int = 10,
) -> np.ndarray:
    """Make the confident labels from which IRN (and AffinityNet's successors) learn pixel relations.

    F = CRF(arg-max([t_f, M])) is sure about objects, B = CRF(arg-max([t_b, M])) about the background. A pixel gets F
    where F is an object, 0 where B is background, and 255 (unknown) elsewhere.

    Args:
        image: (H, W, 3) uint8 RGB.
        scores: (K, H, W) float in [0, 1]; K may be 0.
        classes: (K,) 0-based foreground classes.
        foreground_threshold: t_f, a high background score (IRN 0.30, RIB 0.35, AMN 0.45).
        background_threshold: t_b, a low background score (IRN 0.05, RIB 0.17, AMN 0.15).

    Returns:
        (H, W) uint8 in {0, class + 1, 255}.

    Raises:
        ValueError: the shapes do not fit, or the two thresholds are in the wrong order.

    Source: IRN, Ahn et al., CVPR 2019, confident areas. Explained in notebook 70, section "Confident labels".
    """
    _check_order(foreground_threshold, background_threshold)
    return _confident(*_refined_seeds(image, scores, classes, (foreground_threshold, background_threshold), iterations))


def seed_mask_and_irn_labels(
    image: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    threshold: float,
    foreground_threshold: float,
    background_threshold: float,
    iterations: int = 10,
) -> tuple[np.ndarray, np.ndarray]:
    """Make the results of `seed_mask` and `irn_labels` in three quarters of their time.

    Args:
        image: (H, W, 3) uint8 RGB.
        scores: (K, H, W) float in [0, 1]; K may be 0.
        classes: (K,) 0-based foreground classes.
        threshold: t, of the seed mask.
        foreground_threshold: t_f, of the confident labels.
        background_threshold: t_b, of the confident labels.

    Returns:
        two label maps (H, W) uint8: the seed mask in {0, class + 1} and the confident labels in {0, class + 1, 255}.

    Raises:
        ValueError: the shapes do not fit, or t_f and t_b are in the wrong order.

    Source: IRN, Ahn et al., CVPR 2019, confident areas. Explained in notebook 70, section "All images".
    """
    _check_order(foreground_threshold, background_threshold)
    mask, *pair = _refined_seeds(image, scores, classes, (threshold, foreground_threshold, background_threshold), iterations)
    return mask, _confident(*pair)


def _check_order(foreground_threshold: float, background_threshold: float) -> None:
    if background_threshold > foreground_threshold:
        raise ValueError(
            f"background_threshold={background_threshold} is above foreground_threshold="
            f"{foreground_threshold}: what is surely background must score lower than what is surely not."
        )


def _confident(sure_object: np.ndarray, not_background: np.ndarray) -> np.ndarray:
    """Join F and B, label maps (H, W): an object where F has one, background where B has none, else unknown."""
    labels = np.where(not_background == 0, np.uint8(0), np.uint8(IGNORE))
    return np.where(sure_object > 0, sure_object, labels)


def irn_thresholds(seed_threshold: float) -> tuple[float, float]:
    """Derive IRN's two thresholds from the background threshold t of the seed masks.

    t_f = t + min(0.15, (1 - t) / 2) and t_b = t - min(0.10, 2 t / 3): the steps that IRN's published values take (0.15 gives
    0.30 and 0.05) and that its users recommend, shortened where they would leave (0, 1). AMN's published pair for its 0.25 is
    0.45 and 0.15; the rule gives 0.40 and 0.15. It is a rule of thumb and uses no pixel label.

    Args:
        seed_threshold: t in (0, 1).

    Returns:
        t_f and t_b, with 0 < t_b < t < t_f < 1.

    Raises:
        ValueError: t is not between 0 and 1.

    Source: IRN's program (0.15, 0.30, 0.05); the rule of thumb is that of ReCAM's author, issue 15 of its repository.
    Explained in notebook 70, section "How much the choice matters".

    >>> [tuple(round(value, 3) for value in irn_thresholds(t)) for t in (0.15, 0.25, 0.06, 0.9)]
    [(0.3, 0.05), (0.4, 0.15), (0.21, 0.02), (0.95, 0.8)]
    """
    if not 0 < seed_threshold < 1:
        raise ValueError(
            f"seed_threshold={seed_threshold} must lie between 0 and 1, both excluded: there must be room on both sides of it."
        )
    return (seed_threshold + min(0.15, (1 - seed_threshold) / 2), seed_threshold - min(0.10, 2 * seed_threshold / 3))


def _checked(scores: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, classes = np.asarray(scores), np.asarray(classes)
    if scores.ndim != 3 or classes.shape != scores.shape[:1] or scores.dtype.kind != "f":
        raise ValueError(
            f"scores {scores.dtype} {scores.shape} and classes {classes.shape} do not fit: floats (K, H, W) "
            "and integers (K,) are needed."
        )
    if classes.size and (classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() > IGNORE - 2):
        raise ValueError(f"classes {classes.tolist()} must be integers in 0..{IGNORE - 2}, to fit an 8-bit mask.")
    return scores, classes.astype(np.int64)
