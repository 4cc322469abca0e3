"""Dense CRF: snap a label map or a probability map to the edges of its image.

A fully connected conditional random field over all pixels with two Potts terms: `gaussian` (near pixels agree) and
`bilateral` (near pixels of similar color agree); ten steps of mean field (Kraehenbuehl and Koltun, NeurIPS 2011).
The filtering is an approximation on the permutohedral lattice: pydensecrf's formulas in our own C++ file
(`dense_crf.cpp`) or pydensecrf itself. Compare labels, not probabilities.
"""

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int
from functools import cache
from importlib.util import find_spec
from typing import Literal

import numpy as np

Near = tuple[float, float]  # of the gaussian term: sxy and compat
Alike = tuple[float, float, float]  # of the bilateral term: sxy, srgb and compat


def crf_from_labels(
    image: np.ndarray,
    labels: np.ndarray,
    num_labels: int,
    certainty: float = 0.7,
    iterations: int = 10,
    gaussian_sxy: float = 3,
    gaussian_compat: float = 3,
    bilateral_sxy: float = 50,
    bilateral_srgb: float = 5,
    bilateral_compat: float = 10,
) -> np.ndarray:
    """Refine a hard label map (the defaults are those of IRN, RIB and AMN).

    The unary energy of a pixel is -log p for its label and -log((1 - p) / (L - 1)) for the others, p = `certainty`.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) integers in 0..L-1; 0 is the background, a label like any other. Or a stack (N, H, W) of label maps of
            this image, each refined by itself: the work that depends only on the image, a third, is done once.
        num_labels: L, the number of possible labels: 1 + the number of classes IN THIS IMAGE, not in the data set.
        certainty: p in (0, 1), the trust in the given labels (gt_prob).
        gaussian_sxy: standard deviation of the gaussian term, in pixels.
        gaussian_compat: its weight.
        bilateral_sxy: standard deviation of the bilateral term in space, in pixels.
        bilateral_srgb: standard deviation in color, in gray levels of 0..255.
        bilateral_compat: its weight.

    Returns:
        int64 in 0..L-1, of the shape of `labels`.

    Raises:
        ValueError: image, labels or certainty are not as described, or a width is too small for the lattice.
        ImportError: neither `dense_crf.cpp` is compiled nor pydensecrf installed.

    Source: IRN, Ahn et al., CVPR 2019, confident areas. Explained in notebook 70, section "Dense CRF".
    """
    labels = np.asarray(labels)
    if labels.ndim not in (2, 3) or not labels.size:
        raise ValueError(f"The label map has the shape {labels.shape}, (H, W) or (N, H, W) is needed, none of them 0.")
    _check_image(image, labels.shape[-2:])
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_labels:
        raise ValueError(
            f"The label map must hold integers in 0..{num_labels - 1}, it holds {labels.dtype} "
            f"{labels.min()}..{labels.max()}: number the classes of this image from 1."
        )
    if not 0 < certainty < 1:
        raise ValueError(f"certainty={certainty} must lie between 0 and 1, both excluded.")
    if num_labels == 1:  # nothing to decide, and (1 - p) / (L - 1) has no value
        return np.zeros(labels.shape, np.int64)
    stack = labels.reshape(-1, 1, *labels.shape[-2:]).astype(np.int64)  # (N, 1, H, W)
    unaries = np.full((len(stack), num_labels, *stack.shape[-2:]), -np.log((1 - certainty) / (num_labels - 1)), np.float32)
    np.put_along_axis(unaries, stack, np.float32(-np.log(certainty)), axis=1)  # (N, L, H, W)
    q = _mean_field(
        image, unaries, iterations, (gaussian_sxy, gaussian_compat), (bilateral_sxy, bilateral_srgb, bilateral_compat)
    )
    return q.argmax(1).reshape(labels.shape)


def crf_from_probabilities(
    image: np.ndarray,
    probabilities: np.ndarray,
    iterations: int = 10,
    gaussian_sxy: float = 1,
    gaussian_compat: float = 3,
    bilateral_sxy: float = 67,
    bilateral_srgb: float = 3,
    bilateral_compat: float = 4,
) -> np.ndarray:
    """Refine a probability map (the defaults are DeepLab's): unary energy -log P.

    Args:
        image: (H, W, 3) uint8, RGB, the image itself (not with its mean subtracted).
        probabilities: (K, H, W) float in [0, 1], summing to 1 over K at every pixel; clipped below at 1e-5.
        gaussian_sxy, gaussian_compat: width in pixels and weight of the gaussian term.
        bilateral_sxy, bilateral_srgb, bilateral_compat: widths in pixels and gray levels, and weight of the bilateral term.

    Returns:
        (K, H, W) float32, the probabilities Q after the last step.

    Raises:
        ValueError: image and probabilities are not as described, or a width is too small for the lattice.
        ImportError: neither `dense_crf.cpp` is compiled nor pydensecrf installed.

    Source: DeepLab, Chen et al., section "Structured prediction with CRF". Explained in notebook 90, section "Dense CRF".
    """
    probabilities = np.asarray(probabilities, np.float32)
    if probabilities.ndim != 3:
        raise ValueError(f"The probabilities have the shape {probabilities.shape}, (K, H, W) is needed.")
    _check_image(image, probabilities.shape[1:])
    if not (probabilities.min() >= 0 and probabilities.max() <= 1.001):
        raise ValueError(
            f"The probabilities range over {probabilities.min():.3g}..{probabilities.max():.3g} instead "
            "of 0..1: apply soft-max to the logits first."
        )
    unary = -np.log(np.maximum(probabilities, 1e-5))
    return _mean_field(
        image, unary[None], iterations, (gaussian_sxy, gaussian_compat), (bilateral_sxy, bilateral_srgb, bilateral_compat)
    )[0]


def crf_segmentation(
    image: np.ndarray, probabilities: np.ndarray, min_probability: float = 0.01, iterations: int = 10, **parameters: float
) -> np.ndarray:
    """Refine a segmentation network's probabilities over the classes that matter, and return labels.

    The CRF costs time per class. A class that reaches `min_probability` nowhere in the image is left out. This is NOT
    the same computation as with all 21 classes. Measured on 48 probability maps of real images (a trained network's
    softmax: 24 unchanged, 12 flattened to temperature 2, 12 to temperature 4) the default changed at most 1 label in
    100,000. On the 24 it kept 6 classes, which take two fifths of the time of 21; at temperature 4 it kept 17.
    Keeping only the classes that win somewhere would change up to 3 labels in 10,000.

    Args:
        image: (H, W, 3) uint8, RGB, the image itself.
        probabilities: (K, H, W) float in [0, 1], summing to 1 over K at every pixel.
        min_probability: classes below it everywhere are left out; 0 keeps all, as the published numbers did.
        iterations, parameters: passed on to `crf_from_probabilities`.

    Returns:
        (H, W) int64 labels in 0..K-1.

    Raises:
        ValueError: as `crf_from_probabilities`, or no class reaches `min_probability`.

    Source: DeepLab, with the classes restricted. Explained in notebook 90, section "Dense CRF".
    """
    probabilities = np.asarray(probabilities, np.float32)
    if probabilities.ndim != 3:
        raise ValueError(f"The probabilities have the shape {probabilities.shape}, (K, H, W) is needed.")
    kept = np.flatnonzero(probabilities.max((1, 2)) >= min_probability)
    if not kept.size:
        raise ValueError(f"No class reaches min_probability={min_probability} anywhere in the image: lower it.")
    return kept[crf_from_probabilities(image, probabilities[kept], iterations, **parameters).argmax(0)]


def crf_from_maps(image: np.ndarray, scores: np.ndarray, classes: np.ndarray, background: float = 0.15) -> np.ndarray:
    """Refine localization maps as VWL does, with the softmax of the scores themselves as probabilities.

    Args:
        image: (H, W, 3) uint8, RGB, the image itself.
        scores: (K, H, W) float in [0, 1].
        classes: (K,) int, 0-based foreground classes.
        background: score of the background.

    Returns:
        (H, W) int64, 0 background, i + 1 for class i.

    Source: VWL, the CRF script of its program. Explained in notebook 50, section "Numbers".
    """
    refined = crf_from_probabilities(image, soft_scores(scores, background), bilateral_sxy=64)
    return np.pad(np.asarray(classes, np.int64) + 1, (1, 0))[refined.argmax(0)]


def soft_scores(scores: np.ndarray, background: float) -> np.ndarray:
    """Return the softmax of background and scores, rather flat as they lie in [0, 1]: (K + 1, H, W) float32.

    Args:
        scores: (K, H, W) float in [0, 1].
        background: score of the background.
    """
    powers = np.exp(np.pad(np.asarray(scores, np.float32), ((1, 0), (0, 0), (0, 0)), constant_values=background))
    return powers / powers.sum(0)


def _check_image(image: np.ndarray, size: tuple[int, ...]) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"The CRF needs an RGB image as uint8 (H, W, 3), not {found}: give it the raw image.")
    if image.shape[:2] != tuple(size):
        raise ValueError(
            f"The image has {image.shape[:2]} pixels (H, W) and the map {tuple(size)}: bring the map to "
            "the size of the image first."
        )


@cache
def _compiled() -> Callable[..., int] | None:
    """Return the function of `dense_crf.cpp`, or None if it was not compiled, or for another machine."""
    found = find_spec("wsss_lib.ops._dense_crf")
    if found is None or found.origin is None:
        return None
    try:
        function = ctypes.CDLL(found.origin).dense_crf
    except (OSError, AttributeError):
        return None
    numbers, colors = np.ctypeslib.ndpointer(np.float32, flags="C"), np.ctypeslib.ndpointer(np.uint8, 3, flags="C")
    function.argtypes = [colors, *[c_int] * 2, numbers, *[c_int] * 3, *[c_float] * 5, numbers]
    return function


def whose_crf() -> Literal["compiled", "pydensecrf"]:
    """Return whose filter this machine uses: they differ in the last bits, and so in a few labels per million."""
    return "compiled" if _compiled() else "pydensecrf"


def _mean_field(image: np.ndarray, unaries: np.ndarray, iterations: int, gaussian: Near, bilateral: Alike) -> np.ndarray:
    """Return Q, float32 (N, L, H, W), for as many unary energies, with the compiled file if possible."""
    count, num_labels, height, width = unaries.shape
    longest, widths = max(height, width), (gaussian[0], *bilateral[:2])
    least = (longest / 10_000, longest / 1_000, 255 / 1_000)  # the lattice has no room for more deviations
    if not all(width >= low for width, low in zip(widths, least, strict=True)):
        raise ValueError(
            f"gaussian_sxy, bilateral_sxy and bilateral_srgb of the CRF are {widths}; for an image of {height}x{width} they "
            f"must be at least {least}."
        )
    image, unaries = np.ascontiguousarray(image), np.ascontiguousarray(unaries, np.float32)
    result, mean_field = np.empty_like(unaries), _compiled()
    sizes = height, width, unaries, count, num_labels, iterations
    if mean_field is None or mean_field(image, *sizes, *gaussian, *bilateral, result):
        result[:] = _pydensecrf(image, unaries, iterations, gaussian, bilateral)
    return result


def _pydensecrf(image: np.ndarray, unaries: np.ndarray, iterations: int, gaussian: Near, bilateral: Alike) -> np.ndarray:
    """Return the same from pydensecrf: the reference for `dense_crf.cpp`, and its fallback."""
    try:
        import pydensecrf.densecrf as dense_crf
    except ImportError as error:  # not needed by anything else, so imported only here
        raise ImportError(
            "The dense CRF needs pydensecrf: install it with `pip install pydensecrf2` (or conda-forge's "
            "`pydensecrf`), or run the stage with crf=False."
        ) from error
    num_labels, height, width = unaries.shape[1:]
    crf = dense_crf.DenseCRF2D(width, height, num_labels)  # width first
    crf.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
    crf.addPairwiseBilateral(sxy=bilateral[0], srgb=bilateral[1], rgbim=image, compat=bilateral[2])
    results = np.empty(unaries.shape, np.float32)
    for unary, result in zip(unaries, results, strict=True):
        crf.setUnaryEnergy(unary.reshape(num_labels, -1))
        result[:] = np.asarray(crf.inference(iterations)).reshape(result.shape)
    return results
