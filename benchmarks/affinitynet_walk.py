"""AffinityNet's random walk, from given affinities on: the plain N x N matrix, squared eight times, against ours, sparse.

python benchmarks/affinitynet_walk.py [--quick]
"""

import torch
from measuring import Case, Row, compare, main
from torch import Tensor

from wsss_lib.ops.affinity import feature_affinity, search_paths
from wsss_lib.ops.random_walk import random_walk
from wsss_lib.refine.affinitynet import graph_of_pairs

RADIUS, BETA, LOG2_STEPS = 5, 8.0, 8
REACHABLE = 56 * 56  # cells: a training crop at stride 8


def dense_walk(affinity: Tensor, scores: Tensor) -> Tensor:
    """Return the walk by a matrix of all pairs of cells; `affinity` is (directions, sources)."""
    height, width = scores.shape[1:]
    cells = torch.arange(height * width).view(height, width)
    matrix = torch.eye(height * width)
    rows, columns, left = height - RADIUS + 1, width - 2 * (RADIUS - 1), RADIUS - 1
    source = cells[:rows, left : left + columns].flatten()
    for path, values in zip(search_paths(RADIUS), affinity, strict=True):
        dy, dx = path.destination
        destination = cells[dy : dy + rows, left + dx : left + dx + columns].flatten()
        matrix[source, destination] = matrix[destination, source] = values
    transition = matrix**BETA
    transition = transition / transition.sum(0)
    for _ in range(LOG2_STEPS):
        transition = transition @ transition
    return (scores.flatten(1) @ transition).view_as(scores)


def our_walk(affinity: Tensor, scores: Tensor) -> Tensor:
    graph = graph_of_pairs(affinity.double() ** BETA, tuple(scores.shape[1:]), RADIUS)
    return random_walk(graph, scores, LOG2_STEPS)


def scene(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the affinities of two noisy regions of 448 channels, and scores (3, h, w) of background and two classes."""
    generator = torch.Generator().manual_seed(0)
    region = (torch.arange(width) > width // 2).expand(height, width).long()
    prototypes = torch.randn(2, 448, generator=generator)
    features = prototypes[region].permute(2, 0, 1) + 0.3 * torch.randn(448, height, width, generator=generator)
    return feature_affinity(features[None], RADIUS)[0], torch.rand(3, height, width, generator=generator)


def prepare(size: tuple[int, int]):
    affinity, scores = scene(*size)
    plain = (lambda: dense_walk(affinity, scores)) if size[0] * size[1] <= REACHABLE else None
    return plain, lambda: our_walk(affinity, scores)


CASE = Case("AffinityNet's random walk", ((20, 30), (47, 63), (80, 60), (160, 120)), prepare, tolerance=1e-4, goal=50, pairs=3)


def measure(quick: bool = False) -> list[Row]:
    return compare(CASE, quick)


if __name__ == "__main__":
    main(measure, __doc__)
