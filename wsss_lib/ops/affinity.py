"""Pixel pairs of IRN and AffinityNet: search paths, affinities from boundaries or features, pair labels, and the losses.

A pair is a source pixel i and a destination j within a radius. It is similar when no boundary lies on the straight
path between them. Sources are the pixels whose whole neighborhood lies inside the map, so that every pair of one
direction is one shifted window of the map: no index tables are needed.

In shape comments r is the radius (an integer of at least 2, in cells), B the batch, n the number of directions (34 for radius
5, 152 for radius 10) and S the number of sources, (H - r + 1)(W - 2r + 2).
"""

from collections import defaultdict
from functools import lru_cache, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_lib.core.distributed import all_reduce_mean

Point = tuple[int, int]  # (y, x), relative to the source


class Path(NamedTuple):
    """One direction: the destination (dy, dx) and the points of the straight path, destination first, origin last."""

    destination: Point
    points: tuple[Point, ...]


class PathIndex(NamedTuple):
    """The pairs of one map as flat indices y*W + x, all int64.

    Attributes:
        source: (S,).
        destination: (n, S).
        paths: n tensors (length of the path, S).
    """

    source: Tensor
    destination: Tensor
    paths: list[Tensor]


class PairLabels(NamedTuple):
    """Which pairs are known to be equal or different; each bool (..., n, S).

    Attributes:
        bg_pos: P+_bg, both pixels are background.
        fg_pos: P+_fg, both show one object class.
        neg: P-, they differ.

    Source: IRN (Ahn, Cho, Kwak, CVPR 2019), mining of inter-pixel relations.
    Explained in notebook 80, section "Pairs and paths".
    """

    bg_pos: Tensor
    fg_pos: Tensor
    neg: Tensor


class AffinityLosses(NamedTuple):
    """The four terms of IRN's loss, scalars.

    Attributes:
        pos: boundaries between pixels that are known to be equal.
        neg: missing boundaries between pixels that are known to be different.
        dp_fg: displacements of pixels of one object class that do not point at one center.
        dp_bg: displacements of background pixels that differ.

    Source: IRN, losses of boundary detection and displacement field. Explained in notebook 80, section "The loss".
    """

    pos: Tensor
    neg: Tensor
    dp_fg: Tensor
    dp_bg: Tensor

    @property
    def total(self) -> Tensor:
        """Return the scalar that training minimizes: the mean of pos and neg plus the mean of dp_fg and dp_bg."""
        return (self.pos + self.neg) / 2 + (self.dp_fg + self.dp_bg) / 2


@lru_cache(maxsize=32)
def search_paths(radius: int) -> tuple[Path, ...]:
    """Return the straight paths to all neighbors closer than `radius` in the lower half plane.

    The other half plane holds the same pairs seen from their other end. The order (by number of points, then by
    direction) is the order of the n directions in every affinity, label and displacement of this module.

    Args:
        radius: r >= 2, in cells of the map; a neighbor (dy, dx) has dy^2 + dx^2 < r^2.

    Returns:
        n paths; 34 for radius 5, 152 for radius 10.

    Raises:
        ValueError: the radius is not an integer of at least 2.

    Source: IRN (Ahn, Cho, Kwak, CVPR 2019), the set of neighboring pairs P; points and order as in its program.
    Explained in notebook 80, section "Pairs and paths".

    >>> [path.destination for path in search_paths(2)]
    [(0, 1), (1, 0), (1, -1), (1, 1)]
    >>> search_paths(5)[6]
    Path(destination=(1, 1), points=((1, 1), (0, 1), (1, 0), (0, 0)))
    """
    if not isinstance(radius, int) or radius < 2:
        raise ValueError(f"The radius of the search paths must be an integer of at least 2, not {radius!r}.")
    directions = [(0, x) for x in range(1, radius)]
    directions += [(y, x) for y in range(1, radius) for x in range(1 - radius, radius) if y * y + x * x < radius * radius]
    paths = [Path(direction, _points_on_path(*direction)) for direction in directions]
    return tuple(sorted(paths, key=lambda path: len(path.points)))


def _points_on_path(dy: int, dx: int) -> tuple[Point, ...]:
    """All points of the bounding box that are less than one cell away from the line through origin and (dy, dx)."""
    box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    points = [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]
    return tuple(sorted(points, key=lambda point: abs(point[0]) + abs(point[1]), reverse=True))


@lru_cache(maxsize=32)
def _straight_runs(radius: int) -> tuple[tuple[tuple[int, int, int, int], ...], ...]:
    """Every path as a few straight runs (axis, y, x, length) of points: rows of a flat path, columns of a steep one."""
    all_runs = []
    for (dy, dx), points in search_paths(radius):
        axis = 1 if abs(dx) >= dy else 0
        lines = defaultdict(list)
        for point in points:
            lines[point[1 - axis]].append(point)
        all_runs.append(tuple((axis, *min(line), len(line)) for line in lines.values()))
    return tuple(all_runs)


def _source_grid(height: int, width: int, radius: int) -> tuple[int, int]:
    """Rows and columns of sources in a map: the neighborhood reaches r-1 cells to the left, right and below."""
    rows, columns = height - radius + 1, width - 2 * (radius - 1)
    if rows < 1 or columns < 1:
        raise ValueError(
            f"A map of {height} x {width} cells has no pixel whose neighborhood of radius {radius} lies "
            f"inside; it must be at least {radius} x {2 * radius - 1}: enlarge the map or reduce the radius."
        )
    return rows, columns


def _windows(maps: Tensor, radius: int, offsets: list[Point]) -> Tensor:
    """Values of `maps` (..., H, W) at source + offset for every offset: (..., len(offsets), S)."""
    height, width = maps.shape[-2:]
    rows, columns = _source_grid(height, width, radius)
    left = radius - 1
    return torch.stack([maps[..., y : y + rows, left + x : left + x + columns] for y, x in offsets], dim=-3).flatten(-2)


def _sources(maps: Tensor, radius: int) -> Tensor:
    return _windows(maps, radius, [(0, 0)])  # (..., 1, S)


def _destinations(maps: Tensor, radius: int) -> Tensor:
    return _windows(maps, radius, [path.destination for path in search_paths(radius)])  # (..., n, S)


def path_index(radius: int, size: tuple[int, int]) -> PathIndex:
    """Return the same pairs and paths as tables of flat indices, to draw them or to check the shifted windows.

    Args:
        size: (H, W) of the map.

    Returns:
        Flat indices y*W + x, int64; the points of a path in the order of `search_paths`.

    Raises:
        ValueError: the map is smaller than a neighborhood.

    Source: IRN, the set of neighboring pairs P. Explained in notebook 80, section "Pairs and paths".

    >>> path_index(2, (2, 3)).source, path_index(2, (2, 3)).destination.tolist()
    (tensor([1]), [[2], [4], [3], [5]])
    """
    cells = torch.arange(size[0] * size[1]).view(size)
    paths = [_windows(cells, radius, list(path.points)) for path in search_paths(radius)]
    return PathIndex(_sources(cells, radius)[0], _destinations(cells, radius), paths)


def edge_to_affinity(edge: Tensor, radius: int) -> Tensor:
    """Return the affinity of all pairs: one minus the strongest boundary on the path, both ends included.

    The maxima of straight runs of 1..r cells are computed once, each from the previous one; a path is a few such runs.
    Differentiable; at a tie the gradient is shared by the tied cells.

    Args:
        edge: e, (B, H, W) floating point, boundary probability in [0, 1].

    Returns:
        a_ij = 1 - max_{k in path(i,j)} e_k, (B, n, S), in the type and range of `edge`.

    Raises:
        ValueError: wrong number of dimensions, or a map smaller than a neighborhood.

    Source: IRN, affinity of a pixel pair, the building block of its boundary detection.
    Explained in notebook 80, section "From boundaries to affinities".

    >>> edge = torch.tensor([[[0.0, 0.25, 0.75], [0.0, 0.5, 0.0]]])
    >>> edge_to_affinity(edge, 2).flatten()  # from the middle of the first row to its right, to the three below
    tensor([0.2500, 0.5000, 0.5000, 0.2500])
    """
    if edge.dim() != 3:
        raise ValueError(f"The boundary map must have the dimensions (B, H, W), but its shape is {tuple(edge.shape)}.")
    _, height, width = edge.shape
    rows, columns = _source_grid(height, width, radius)
    maxima = {}  # (axis, length) -> maximum over `length` cells from here on along the axis
    for axis in (0, 1):
        side = edge.shape[1 + axis]
        maxima[axis, 1] = edge
        for length in range(2, radius + 1):
            valid = side - length + 1
            maxima[axis, length] = torch.maximum(
                maxima[axis, length - 1].narrow(1 + axis, 0, valid), edge.narrow(1 + axis, length - 1, valid)
            )
    left = radius - 1
    strongest = []
    for runs in _straight_runs(radius):
        shifted = [maxima[axis, length][:, y : y + rows, left + x : left + x + columns] for axis, y, x, length in runs]
        strongest.append(reduce(torch.maximum, shifted))
    return 1 - torch.stack(strongest, dim=1).flatten(2)  # (B, n, S)


def affinity_labels(label: Tensor, radius: int, num_classes: int) -> PairLabels:
    """Return which pairs are known to be equal or different; a pair that touches an unknown pixel is neither.

    Args:
        label: (..., H, W) integer, 0 background, 1..num_classes-1 objects; any other value (255) is unknown.
        num_classes: K, background included (21 for VOC).

    Returns:
        The sets P+_bg, P+_fg, P- as bool masks (..., n, S), on the device of `label`.

    Raises:
        ValueError: a floating-point label, or a map smaller than a neighborhood.

    Source: IRN, mining of inter-pixel relations from confident labels, the sets P+_bg, P+_fg, P-.
    Explained in notebook 80, section "Pairs and paths".

    >>> labels = affinity_labels(torch.tensor([[3, 0, 3], [0, 255, 0]]), 2, 21)  # one source, four destinations
    >>> [mask.int().flatten().tolist() for mask in labels]
    [[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    """
    if label.is_floating_point():
        raise ValueError(f"The label map must hold integers, not {label.dtype}: 0, class numbers, 255 for unknown.")
    known = (label >= 0) & (label < num_classes)
    source, destination = _sources(label, radius), _destinations(label, radius)
    usable = _sources(known, radius) & _destinations(known, radius)  # (..., n, S)
    equal, background = source == destination, source == 0
    return PairLabels(usable & equal & background, usable & equal & ~background, usable & ~equal)


def pair_displacement(displacement: Tensor, radius: int) -> Tensor:
    """Return the difference of the displacement vectors of all pairs.

    Args:
        displacement: D, (B, 2, H, W), components (dy, dx) in cells.

    Returns:
        delta_ij = D(i) - D(j), (B, 2, n, S), in cells.

    Raises:
        ValueError: a map smaller than a neighborhood.

    Source: IRN, loss of the displacement field, delta(i,j). Explained in notebook 80, section "Displacements".
    """
    return _sources(displacement, radius) - _destinations(displacement, radius)


def displacement_target(radius: int) -> Tensor:
    """Return the offset from source to destination: the value of D(i) - D(j) if both point at one centroid.

    Returns:
        t_ij = x_j - x_i, (1, 2, n, 1) float32, components (dy, dx) in cells.

    Raises:
        ValueError: the radius is not an integer of at least 2.

    Source: IRN, loss of the displacement field. Explained in notebook 80, section "Displacements".

    >>> displacement_target(2)[0, :, :, 0].T.tolist()
    [[0.0, 1.0], [1.0, 0.0], [1.0, -1.0], [1.0, 1.0]]
    """
    destinations = torch.tensor([path.destination for path in search_paths(radius)], dtype=torch.float32)  # (n, 2)
    return destinations.T[None, :, :, None]


def affinity_loss(edge_logit: Tensor, displacement: Tensor, label: Tensor, radius: int, num_classes: int) -> AffinityLosses:
    """Return IRN's loss: boundaries that explain the pair labels, displacements that agree on a centroid.

    Every term is a mean over the pairs of the whole batch, not a mean of image means; a term without pairs is 0.

    Args:
        edge_logit: (B, 1, H, W); its sigmoid is the boundary probability e.
        displacement: D, (B, 2, H, W), components (dy, dx) in cells.
        label: (B, H, W) integer, 0 background, 1..num_classes-1 objects, 255 unknown.
        num_classes: K, background included (21 for VOC).

    Returns:
        `pos`, `neg`, `dp_fg`, `dp_bg` and their combination `total`, scalars.

    Raises:
        ValueError: a floating-point label, or a map smaller than a neighborhood.

    Source: IRN, losses of boundary detection and displacement field, with the constants of its program.
    Explained in notebook 80, section "The loss".
    """
    pairs = affinity_labels(label, radius, num_classes)
    affinity = edge_to_affinity(edge_logit.float().squeeze(1).sigmoid(), radius)  # a, (B, n, S)
    equal_cost, different_cost = -torch.log(affinity + 1e-5), -torch.log(1 + 1e-5 - affinity)
    pos = (_mean_over(pairs.bg_pos, equal_cost) + _mean_over(pairs.fg_pos, equal_cost)) / 2
    neg = _mean_over(pairs.neg, different_cost)

    delta = pair_displacement(displacement.float(), radius)  # (B, 2, n, S)
    off_target = (delta - displacement_target(radius).to(delta)).abs()
    dp_fg = _mean_over(pairs.fg_pos, off_target.sum(1), components=2)
    dp_bg = _mean_over(pairs.bg_pos, delta.abs().sum(1), components=2)
    return AffinityLosses(pos, neg, dp_fg, dp_bg)


def _mean_over(mask: Tensor, cost: Tensor, components: int = 1) -> Tensor:
    return (mask * cost).sum() / (components * all_reduce_mean(mask.sum()) + 1e-5)


# ---- AffinityNet: the same pairs, but an affinity of features instead of boundaries


class FeatureLosses(NamedTuple):
    """The three terms of AffinityNet's loss, scalars. `total` is what training minimizes."""

    bg: Tensor
    fg: Tensor
    neg: Tensor

    @property
    def total(self) -> Tensor:
        """Return L_bg / 4 + L_fg / 4 + L_neg / 2."""
        return self.bg / 4 + self.fg / 4 + self.neg / 2


def feature_affinity(features: Tensor, radius: int) -> Tensor:
    """Return the affinity of all pairs: near 1 where the features of both cells are alike.

    Args:
        features: f, (B, D, H, W) floating point.

    Returns:
        W_ij = exp(-mean_k |f_ik - f_jk|), (B, n, S), in (0, 1].

    Raises:
        ValueError: a map smaller than a neighborhood.

    Source: AffinityNet (Ahn and Kwak, CVPR 2018), equation 1. Explained in notebook 75, section "Affinity of features".

    >>> feature_affinity(torch.tensor([[[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]]), 2).flatten()  # right, then the three below
    tensor([0.3679, 1.0000, 1.0000, 1.0000])
    """
    source = _sources(features, radius)[..., 0, :]  # (B, D, S)
    means = []
    for path in search_paths(radius):  # one direction at a time: all at once would be n times the memory
        destination = _windows(features, radius, [path.destination])[..., 0, :]
        means.append((destination - source).abs().mean(1))
    return torch.exp(-torch.stack(means, dim=1))  # (B, n, S)


def feature_affinity_loss(affinity: Tensor, pairs: PairLabels) -> FeatureLosses:
    """Return AffinityNet's loss: the target affinity is 1 for equal pairs, 0 for different ones.

    Every term is a mean over the pairs of the whole batch; a term without pairs is 0.

    Args:
        affinity: W, (B, n, S), in (0, 1].
        pairs: masks of the same shape, from `affinity_labels`.

    Source: AffinityNet, equations 4 to 6, with the constants of its program. Explained in notebook 75, section "The loss".
    """
    equal_cost, different_cost = -torch.log(affinity + 1e-5), -torch.log(1 + 1e-5 - affinity)
    return FeatureLosses(
        _mean_over(pairs.bg_pos, equal_cost), _mean_over(pairs.fg_pos, equal_cost), _mean_over(pairs.neg, different_cost)
    )
