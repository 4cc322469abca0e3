"""Random walk of class scores over a graph of affinities (IRN, AffinityNet), and the mask made from IRN's result.

The radius r is an integer of at least 2, in cells of the map.
"""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.ops.affinity import edge_to_affinity, search_paths

TRUNCATION = 1e-7  # fraction of the walk that the Chebyshev series may leave out


class Graph(NamedTuple):
    """Sparse symmetric matrix (h*w, h*w) in compressed rows, columns ascending.

    Attributes:
        indptr: int32 (h*w + 1,); row i holds the entries indptr[i]:indptr[i+1].
        indices: int32, the column of each entry.
        values: float64, each entry.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor

    def degree(self) -> Tensor:
        """Return the row sums, (h*w,) of the type of `values`; by symmetry they are the column sums too."""
        return (self.matrix() @ self.values.new_ones(len(self.indptr) - 1, 1))[:, 0]

    def matrix(self) -> Tensor:
        """Return the graph as a torch CSR tensor (h*w, h*w), which can be multiplied by dense columns."""
        size = 2 * (len(self.indptr) - 1,)
        with warnings.catch_warnings():  # torch warns at first use that its CSR tensors may still change
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(self.indptr, self.indices, self.values, size, check_invariants=False)


@torch.no_grad()
def affinity_graph(edge: Tensor, radius: int = 5, beta: float = 1) -> Graph:
    """Connect every pixel with its neighbors inside the map, weighted by affinity; the diagonal is 1.

    The boundary map is padded with 1, so a pair that leaves the map has affinity 0 and every pixel can be a source.
    The entries of a row are laid side by side in the order of their columns, then those outside the map are dropped:
    this gives compressed rows without sorting.

    Args:
        edge: e, (h, w), boundary probability in [0, 1].
        beta: exponent of every affinity, at least 0.

    Returns:
        A^(beta) with A_ii = 1 and A_ij = a_ij, float64 values, int32 indices, on the device of `edge`.

    Raises:
        ValueError: `edge` is not a non-empty two-dimensional map in [0, 1], the radius is below 2, or beta is negative.

    Source: IRN (Ahn, Cho, Kwak, CVPR 2019), transition matrix of the random walk, before its normalization.
    Explained in notebook 80, section "The random walk".

    >>> affinity_graph(torch.tensor([[0.0, 0.25, 0.0]]), radius=2).matrix().to_dense()
    tensor([[1.0000, 0.7500, 0.0000],
            [0.7500, 1.0000, 0.7500],
            [0.0000, 0.7500, 1.0000]], dtype=torch.float64)
    """
    if edge.dim() != 2 or edge.numel() == 0:
        raise ValueError(f"The boundary map must have the dimensions (h, w), but its shape is {tuple(edge.shape)}.")
    edge = edge.double()  # single precision would lose 1e-4 over 256 steps and save a tenth of the time
    if not (edge.amin() >= 0 and edge.amax() <= 1):  # false for NaN
        raise ValueError("The boundary map must lie in [0, 1]: apply the sigmoid to the network's output first.")
    if not beta >= 0:
        raise ValueError(f"beta, the exponent of the affinities, must be at least 0, not {beta!r}.")
    reach = radius - 1
    padded = F.pad(edge, (reach, reach, 0, reach), value=1.0)
    affinity = edge_to_affinity(padded[None], radius)[0].view(-1, *edge.shape)  # (n, h, w)
    return pair_graph(affinity**beta, radius)


@torch.no_grad()
def pair_graph(affinity: Tensor, radius: int) -> Graph:
    """Return the symmetric graph of affinities that are given once for each pair; the diagonal is 1.

    Args:
        affinity: (n, h, w), of every cell to its n neighbors in the order of `search_paths`, >= 0; values of neighbors
            outside the map are not read.

    Returns:
        float64 values, int32 indices, on the device of `affinity`.

    Source: transition matrix of the random walk, before its normalization, in IRN and AffinityNet alike.
    Explained in notebook 80, section "The random walk".
    """
    affinity = affinity.double()
    height, width = affinity.shape[1:]
    forward = dict(zip((path.destination for path in search_paths(radius)), affinity, strict=True))

    # A pixel's slots, in the order of their columns: neighbors before it, itself, neighbors after it.
    after = sorted(forward)
    offsets = [(-dy, -dx) for dy, dx in reversed(after)] + [(0, 0)] + after
    values = affinity.new_ones(height, width, len(offsets))
    inside = torch.zeros_like(values, dtype=torch.bool)
    for slot, (dy, dx) in enumerate(offsets):
        here = (_overlap(dy, height), _overlap(dx, width), slot)
        inside[here] = True
        if (dy, dx) in forward:
            values[..., slot] = forward[dy, dx]
        elif slot < len(after):  # the same pair, stored with the neighbor
            values[here] = forward[-dy, -dx][_overlap(-dy, height), _overlap(-dx, width)]
    shift = torch.tensor([dy * width + dx for dy, dx in offsets], dtype=torch.int32, device=affinity.device)
    vertex = torch.arange(height * width, dtype=torch.int32, device=affinity.device)
    column = vertex.view(height, width, 1) + shift  # (h, w, slots)
    indptr = F.pad(inside.sum(2).flatten().cumsum(0), (1, 0)).int()
    return Graph(indptr, column.masked_select(inside), values.masked_select(inside))


def _overlap(shift: int, side: int) -> slice:
    """Positions p in 0..side-1 for which p + shift is one, too."""
    return slice(max(0, -shift), max(0, min(side, side - shift)))


@torch.no_grad()
def propagate(scores: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, log2_steps: int = 8) -> Tensor:
    """Let class scores walk 2^log2_steps random steps over the affinity graph: v = (M * (1 - e)) T^(2^k).

    T = A^(beta) D^-1 with D the column sums is similar to the symmetric S = D^-1/2 A^(beta) D^-1/2, whose
    eigenvalues lie in [-1, 1], so v T^t = (v D^1/2) S^t D^-1/2. On that interval x^t = sum_j p_j cos(j arccos x), where p_j is
    the probability that t coin flips (+1 or -1) end at distance j from 0. As they seldom end beyond 5 sqrt(t), few
    Chebyshev polynomials of S replace t steps: 84 sparse products for 256 steps, each linear in the number of pixels.

    Args:
        scores: M, (C, h, w), any floating type, on the device of `edge`.
        edge: e, (h, w), boundary probability in [0, 1].
        radius: r >= 2, in cells of the map; the map may be smaller.
        beta: exponent of every affinity, at least 0.
        log2_steps: k >= 0; the walk has 2^k steps.

    Returns:
        v, (C, h, w) float32. Every value is a weighted mean of the values of M * (1 - e) of its class.
        No gradient is recorded.

    Raises:
        ValueError: shapes that do not match, scores that are not finite, `edge` outside [0, 1],
            a radius below 2, a negative beta or number of steps.

    Source: IRN (Ahn, Cho, Kwak, CVPR 2019), semantic propagation by random walk.
    Explained in notebook 80, section "The random walk".

    >>> propagate(torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[0.0, 1.0, 0.0]]))  # a wall in the middle
    tensor([[[1., 0., 0.]]])
    """
    if scores.dim() != 3 or scores.shape[1:] != edge.shape:
        raise ValueError(
            f"Scores (C, h, w) and boundary map (h, w) must be of one size, but their shapes are "
            f"{tuple(scores.shape)} and {tuple(edge.shape)}."
        )
    if not torch.isfinite(scores).all():
        raise ValueError("The scores hold values that are not finite; the walk would spread them over the image.")
    graph = affinity_graph(edge, radius, beta)
    return random_walk(graph, scores * (1 - edge.double()), log2_steps).float()


@torch.no_grad()
def random_walk(graph: Graph, scores: Tensor, log2_steps: int) -> Tensor:
    """Let scores walk 2^log2_steps random steps over a symmetric graph: v = M T^(2^k), T = A D^-1; see `propagate`.

    Args:
        graph: A, with h * w vertices and a positive diagonal.
        scores: M, (C, h, w), any floating type.
        log2_steps: k >= 0.

    Returns:
        v, (C, h, w) float64. Every value is a weighted mean of the values of M of its class.

    Raises:
        ValueError: a number of steps that is not an integer of at least 0.

    Source: the random walk of AffinityNet and IRN. Explained in notebook 80, section "The random walk".
    """
    if log2_steps != int(log2_steps) or log2_steps < 0:
        raise ValueError(f"log2_steps must be an integer of at least 0, not {log2_steps!r}.")
    root = graph.degree().sqrt()  # D^1/2, positive because the diagonal is
    source = torch.repeat_interleave(root, graph.indptr.diff())
    matrix = graph._replace(values=graph.values / (source * root[graph.indices])).matrix()  # S

    start = scores.double().flatten(1).T.contiguous()  # (h*w, C)
    walked = _symmetric_power(matrix, start * root[:, None], 2 ** int(log2_steps)) / root[:, None]
    # A weighted mean stays between minimum and maximum; rounding and truncation of the series must not break that.
    walked = walked.clamp(start.amin(0), start.amax(0))
    return walked.T.reshape(scores.shape)


def _symmetric_power(matrix: Tensor, columns: Tensor, steps: int) -> Tensor:
    """Return matrix^steps @ columns for a symmetric matrix with eigenvalues in [-1, 1], by its Chebyshev series."""
    weights = _chebyshev_weights(steps)
    previous, current = columns, matrix @ columns  # T_0 and T_1 of the matrix, applied
    result = weights[0] * previous + (weights[1] * current if len(weights) > 1 else 0)
    for weight in weights[2:]:
        previous, current = current, torch.addmm(previous, matrix, current, beta=-1, alpha=2)  # T_j+1 = 2 S T_j - T_j-1
        if weight:
            result.add_(current, alpha=weight)
    return result


@lru_cache(maxsize=32)
def _chebyshev_weights(steps: int) -> tuple[float, ...]:
    """Coefficients p_j of x^steps in Chebyshev polynomials T_j(x), up to a remainder of TRUNCATION, scaled to sum 1."""
    weights: list[float] = []
    remainder = 1.0
    while remainder > TRUNCATION and len(weights) <= steps:
        distance = len(weights)
        weight = 0.0
        if (steps - distance) % 2 == 0:  # two ends, +distance and -distance, unless it is 0
            heads = (steps + distance) // 2
            log_ways = math.lgamma(steps + 1) - math.lgamma(heads + 1) - math.lgamma(steps - heads + 1)
            weight = (2 if distance else 1) * math.exp(log_ways - steps * math.log(2))
        weights.append(weight)
        remainder -= weight
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def walk_scores(walk: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample walked scores to full resolution and divide them by their maximum over all classes and pixels.

    Args:
        walk: v, (K, h, w), at stride 4: h = (H-1)//4+1, w = (W-1)//4+1.
        size: (H, W) of the image.

    Returns:
        u, (K, H, W) float32, in [0, 1] for non-negative walks; all 0 if no class has a positive score.

    Raises:
        ValueError: the size does not belong to a map at stride 4.

    Source: IRN, synthesis of semantic labels. Explained in notebook 80, section "From the walk to a mask".
    """
    height, width = (int(side) for side in size)
    if walk.dim() != 3 or walk.shape[1:] != ((height - 1) // 4 + 1, (width - 1) // 4 + 1):
        raise ValueError(
            f"Walked scores of shape {tuple(walk.shape)} do not belong to an image of {height} x {width}: "
            f"expected (K, {(height - 1) // 4 + 1}, {(width - 1) // 4 + 1})."
        )
    if len(walk) == 0:
        return walk.new_zeros(0, height, width, dtype=torch.float32)
    full = F.interpolate(walk.float()[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    full = full[:, :height, :width]
    strongest = full.amax()
    return full / strongest if strongest > 0 else torch.zeros_like(full)


def pseudo_mask(walk: Tensor, classes: Sequence[int] | np.ndarray, size: tuple[int, int], threshold: float = 0.25) -> Tensor:
    """Assign every pixel its strongest class, or background where no class exceeds the threshold.

    Args:
        walk: v, (K, h, w), at stride 4.
        classes: K foreground classes, 0-based, in the order of `walk`.
        size: (H, W) of the image.
        threshold: constant score of the background; the strongest score of the image is 1.

    Returns:
        (H, W) uint8: 0 background, i + 1 for class i. Ties go to the background, then to the first class.

    Raises:
        ValueError: classes and maps differ in number, a class is not in 0..253, or the size does not fit the maps.

    Source: IRN, synthesis of semantic labels. Explained in notebook 80, section "From the walk to a mask".

    >>> pseudo_mask(torch.ones(1, 1, 1), [6], (1, 2))
    tensor([[7, 7]], dtype=torch.uint8)
    """
    classes = [int(number) for number in classes]
    if len(classes) != len(walk) or any(not 0 <= number < 254 for number in classes):
        raise ValueError(f"{len(walk)} maps need {len(walk)} class numbers in 0..253, but classes is {classes}.")
    scores = F.pad(walk_scores(walk, size), (0, 0, 0, 0, 1, 0), value=threshold)  # (K + 1, H, W)
    ids = torch.tensor([0] + [number + 1 for number in classes], dtype=torch.uint8, device=walk.device)
    return ids[scores.argmax(0)]
