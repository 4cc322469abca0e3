"""AffinityNet (Ahn and Kwak, CVPR 2018): labels from two strengths of the CRF, and the random walk over features.

The pairs and the loss are in `affinity.py`, the walk itself in `random_walk.py`, the network in `nets/affinitynet.py`, what is
done to whole data sets in `affinitynet_stages.py`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.data import transforms
from wsss_lib.data.dataset import IGNORE
from wsss_lib.refine.affinity import feature_affinity, search_paths
from wsss_lib.refine.crf import crf_from_probabilities
from wsss_lib.refine.random_walk import Graph, pair_graph

# ---- labels

def scores_with_background(scores: np.ndarray, alpha: float) -> np.ndarray:
    """Put the background's score before the classes': (1 - max_c M_c)^alpha.

    Args:
        scores: M, (K, H, W) float in [0, 1]; K may be 0.
        alpha: exponent; the larger, the weaker is the background.

    Returns:
        (1 + K, H, W) float32.

    Raises:
        ValueError: scores outside [0, 1]. SC-CAM's released program overwrites its maps by a picture of 0 and 255 before it
            saves them; a background of (1 - 255)^alpha would then win everywhere.

    Source: AffinityNet, equation 2. Explained in notebook 75, section "Two strengths of the background".

    >>> scores_with_background(np.array([[[0.5, 0.0]]]), alpha=4)[0]
    array([[0.0625, 1.    ]], dtype=float32)
    """
    scores = np.asarray(scores, np.float32)
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):  # false for NaN
        raise ValueError(f"scores must lie in 0..1, not in {scores.min():g}..{scores.max():g}: were the maps divided by their "
                         "maximum, or overwritten by a picture?")
    return np.concatenate([(1 - scores.max(0, keepdims=True, initial=0)) ** np.float32(alpha), scores])


def crf_with_alpha(image: np.ndarray, scores: np.ndarray, alpha: float) -> np.ndarray:
    """Refine maps and background by the dense CRF, with AffinityNet's parameters.

    Args:
        image: (H, W, 3) uint8, RGB.
        scores: M, (K, H, W) float in [0, 1].
        alpha: exponent of the background.

    Returns:
        (1 + K, H, W) float32, the probabilities after ten steps; background first.

    Raises:
        ValueError: image and scores do not fit, or scores outside [0, 1].

    Source: AffinityNet, section 3.3, and its program. Explained in notebook 75, section "Two strengths of the background".
    """
    if not len(scores):  # nothing to decide: all is background
        return np.ones((1, *scores.shape[1:]), np.float32)
    return crf_from_probabilities(image, scores_with_background(scores, alpha), gaussian_sxy=3, gaussian_compat=3,
                                  bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10)


def confident_labels(low: Tensor, high: Tensor) -> Tensor:
    """Merge the scores of two strengths of the background into a label: an object has to survive the strong one.

    Args:
        low, high: (1 + K, h, w), the scores with low alpha (strong background) and high alpha (weak background).

    Returns:
        (h, w) int64: position 1..K where the object wins with low alpha; 0 where the background wins with high alpha; 255
        where neither is so, and where all scores vanish (outside the image).

    Source: AffinityNet, section 3.3, in the order of its program.
    Explained in notebook 75, section "Two strengths of the background".
    """
    label = low.argmax(0)
    label = label.masked_fill(label == 0, IGNORE)
    label = label.masked_fill(high.argmax(0) == 0, 0)
    return label.masked_fill(torch.maximum(low, high).amax(0) < 1e-5, IGNORE)


def crop_sample(image: np.ndarray, low: np.ndarray, high: np.ndarray, box: Sequence[int], side: int, flip: bool, stride: int,
                mean: tuple, std: tuple) -> tuple[Tensor, Tensor]:
    """Crop image and scores together and reduce the scores to a label on the grid.

    The image is normalised after the crop, so that the surroundings of a small image are black. The scores are averaged
    over the cells of the grid before they are compared; that depends on where the crop lies.

    Args:
        image: uint8 (H, W, 3).
        low, high: (1 + K, H, W), as in `confident_labels`.
        box: from `transforms.crop_box`.
        side: of the crop, a multiple of `stride`.
        flip: mirror left and right.
        stride: pixels of a cell.
        mean, std: of the normalisation.

    Returns:
        image float32 (3, side, side), label int64 (side/stride, side/stride).

    Source: AffinityNet's program. Explained in notebook 75, section "Training".
    """
    array = transforms.normalize(transforms.crop(image, box, side, fill=0), mean, std)
    stacked = np.concatenate([low, high]).transpose(1, 2, 0)  # (H, W, 2 + 2K)
    cut = transforms.crop(stacked, box, side, fill=0)
    if flip:
        array, cut = array[:, ::-1], cut[:, ::-1]
    pooled = F.avg_pool2d(torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1))), stride)  # (2 + 2K, h, w)
    return transforms.to_tensor(array), confident_labels(pooled[:len(low)], pooled[len(low):])


# ---- the walk

def feature_graph(features: Tensor, radius: int, beta: float) -> Graph:
    """Connect the cells of a map by the affinity of their features, V = W^beta; the diagonal is 1.

    As published, only cells whose whole neighbourhood lies inside the map begin a pair. Cells near the left, right and lower
    border therefore have fewer neighbours, ten cells of every map (for radius 5) none at all: they keep their scores.

    Args:
        features: f, (D, h, w).
        radius: r >= 2, in cells.
        beta: exponent of every affinity.

    Returns:
        h * w vertices, float64 values.

    Source: AffinityNet, equation 8. Explained in notebook 75, section "The random walk".
    """
    height, width = features.shape[1:]
    if height < radius or width < 2 * radius - 1:  # no cell begins a pair
        pairs = features.new_zeros(len(search_paths(radius)), 0)
    else:
        pairs = feature_affinity(features[None], radius)[0]  # W, (n, S)
    return graph_of_pairs(pairs.double() ** beta, (height, width), radius)


def graph_of_pairs(affinity: Tensor, size: tuple[int, int], radius: int) -> Graph:
    """Return the symmetric graph of the affinities that `feature_affinity` gives; see `feature_graph`.

    Args:
        affinity: (n, S), float64.
        size: (h, w) of the map; too small for a pair if S is 0.
        radius: r >= 2, in cells.

    Explained in notebook 75, section "The random walk".
    """
    on_grid = affinity.new_zeros(len(affinity), *size)
    if affinity.shape[1]:
        rows, columns, left = size[0] - radius + 1, size[1] - 2 * (radius - 1), radius - 1
        on_grid[:, :rows, left:left + columns] = affinity.unflatten(1, (rows, columns))
    return pair_graph(on_grid, radius)


def pooled_scores(scores: Tensor, alpha: float, stride: int) -> Tensor:
    """Put the background before the maps and average everything over the cells of the grid.

    Args:
        scores: M, (K, H, W) in [0, 1].
        alpha: exponent of the background.
        stride: pixels of a cell; what a cell at the border lacks counts as 0 in every channel, background included.

    Returns:
        (1 + K, ceil(H/stride), ceil(W/stride)), float32.

    Raises:
        ValueError: scores outside [0, 1].

    Source: AffinityNet's program. Explained in notebook 75, section "The random walk".
    """
    height, width = scores.shape[1:]
    maps = torch.from_numpy(scores_with_background(scores.cpu().numpy(), alpha)).to(scores.device)
    return F.avg_pool2d(F.pad(maps, (0, -width % stride, 0, -height % stride)), stride)


def walk_mask(walk: Tensor, classes: Sequence[int], size: tuple[int, int], stride: int) -> Tensor:
    """Give every pixel the strongest of background and classes.

    Args:
        walk: (1 + K, h, w), background first.
        classes: K foreground classes, 0-based.
        size: (H, W) of the image.
        stride: pixels of a cell.

    Returns:
        (H, W) uint8: 0 background, i + 1 for class i. Ties go to the background, then to the first class.

    Raises:
        ValueError: as many classes as maps beside the background are needed, each in 0..253.

    Source: AffinityNet's program. Explained in notebook 75, section "The random walk".

    >>> walk_mask(torch.tensor([[[0.4]], [[0.6]]]), [6], (1, 2), stride=8)
    tensor([[7, 7]], dtype=torch.uint8)
    """
    if len(walk) != len(classes) + 1 or any(not 0 <= number < IGNORE - 1 for number in classes):
        raise ValueError(f"{len(walk)} maps need a background and {len(walk) - 1} classes in 0..253, not {list(classes)}")
    full = F.interpolate(walk.float()[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    ids = torch.tensor([0, *(int(number) + 1 for number in classes)], dtype=torch.uint8, device=walk.device)
    return ids[full.argmax(0)[:size[0], :size[1]]]
