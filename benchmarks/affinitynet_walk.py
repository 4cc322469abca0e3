"""AffinityNet's random walk, from given affinities on: the plain dense N x N formulation against ours, sparse, in one process.

python benchmarks/affinitynet_walk.py [--quick]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsss_lib.refine.affinity import feature_affinity, search_paths
from wsss_lib.refine.affinitynet import graph_of_pairs
from wsss_lib.refine.random_walk import random_walk

SIZES = ((47, 63), (56, 56))  # a VOC image at stride 8, and a training crop
RADIUS, BETA, LOG2_STEPS = 5, 8.0, 8
RATIO_GOAL, DIFFERENCE_GOAL = 50.0, 1e-4


@dataclass(frozen=True)
class Result:
    """Medians over the pairs of runs at one size."""

    dense_seconds: float
    our_seconds: float
    ratio: float
    difference: float


def dense_walk(affinity: Tensor, scores: Tensor) -> Tensor:
    """Return the walk by a matrix of all pairs of cells, squared eight times; `affinity` is (directions, sources)."""
    height, width = scores.shape[1:]
    cells = torch.arange(height * width).view(height, width)
    matrix = torch.eye(height * width)
    rows, columns, left = height - RADIUS + 1, width - 2 * (RADIUS - 1), RADIUS - 1
    source = cells[:rows, left:left + columns].flatten()
    for path, values in zip(search_paths(RADIUS), affinity, strict=True):
        dy, dx = path.destination
        destination = cells[dy:dy + rows, left + dx:left + dx + columns].flatten()
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


def measure(size: tuple[int, int], pairs: int) -> Result:
    """Run both formulations `pairs` times in turn on one thread.

    Raises:
        RuntimeError: they differ by more than 1e-4.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        our_walk(*scene(8, 12))  # the first call loads libraries and caches the directions
        affinity, scores = scene(*size)
        times = []
        for _ in range(pairs):
            dense_seconds, dense = timed(lambda: dense_walk(affinity, scores))
            our_seconds, ours = min((timed(lambda: our_walk(affinity, scores)) for _ in range(3)), key=lambda pair: pair[0])
            times.append((dense_seconds, our_seconds))
    finally:
        torch.set_num_threads(threads)
    difference = (dense - ours).abs().amax().item()
    if not difference <= DIFFERENCE_GOAL:
        raise RuntimeError(f"the sparse walk differs from the dense one by {difference:.1e}, more than {DIFFERENCE_GOAL:.0e}")
    return Result(*(statistics.median(column) for column in zip(*times, strict=True)),
                  statistics.median(dense_seconds / our_seconds for dense_seconds, our_seconds in times), difference)


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main(arguments: list[str] | None = None) -> dict[tuple[int, int], Result]:
    """Print one table and return its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, one pair of runs instead of three")
    quick = parser.parse_args(arguments).quick
    results = {size: measure(size, 1 if quick else 3) for size in SIZES[:1 if quick else None]}
    print("AffinityNet's walk from given affinities, radius 5, 2^8 steps, background and two classes, one thread\n")
    print(f"{'size':>7} {'dense s':>9} {'sparse s':>9} {'ratio':>7} {'difference':>11}")
    for (height, width), result in results.items():
        print(f"{f'{height}x{width}':>7} {result.dense_seconds:>9.2f} {result.our_seconds:>9.3f} {result.ratio:>6.0f}x "
              f"{result.difference:>11.1e}")
    return results


if __name__ == "__main__":
    main()
