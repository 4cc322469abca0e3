"""IRN's random walk: the plain dense N x N formulation against the sparse Chebyshev series, in one process.

python benchmarks/random_walk.py [--quick]
"""

import argparse
import math
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.refine.affinity import search_paths
from wsss_lib.refine.random_walk import propagate

DENSE_SIZE = (47, 63)  # a VOC image of half its side length, at stride 4
GROWTH_SIZES = ((40, 30), (80, 60), (160, 120))


@dataclass(frozen=True)
class Result:
    """Medians of the pairs of runs; `growth` maps (h, w) to the least seconds of our walk."""

    dense_seconds: float
    our_seconds: float
    ratio: float
    difference: float
    dense_mib: float
    our_mib: float
    growth: dict[tuple[int, int], float]

    def microseconds_per_vertex(self) -> dict[tuple[int, int], float]:
        return {(h, w): 1e6 * seconds / (h * w) for (h, w), seconds in self.growth.items()}


def dense_walk(scores: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, log2_steps: int = 8) -> Tensor:
    """Return the walk by an N x N transition matrix, squared log2_steps times; arguments as those of `propagate`."""
    (height, width), reach = edge.shape, radius - 1
    padded = F.pad(edge, (reach, reach, 0, reach), value=1.0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    matrix = torch.eye(height * width)
    for (dy, dx), points in search_paths(radius):
        on_path = torch.stack([padded[y + point_y, x + reach + point_x] for point_y, point_x in points])
        inside = (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        source, destination = (y * width + x)[inside], ((y + dy) * width + x + dx)[inside]
        matrix[source, destination] = matrix[destination, source] = (1 - on_path.amax(0))[inside]
    transition = matrix**beta
    transition = transition / transition.sum(0)
    for _ in range(log2_steps):
        transition = transition @ transition
    return ((scores * (1 - edge)).flatten(1) @ transition).view_as(scores)


def scene(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return blob scores (2, h, w) inside two outlined discs, and the noisy boundary map (h, w) of the outlines."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    scores, edge = [], 0.05 * torch.rand(height, width, generator=generator)
    for center_y, center_x, radius in ((0.4, 0.3, 0.2), (0.6, 0.7, 0.25)):
        distance = ((y - center_y) ** 2 + (x - center_x) ** 2).sqrt()
        edge = torch.maximum(edge, 0.95 * torch.exp(-(((distance - radius) / 0.03) ** 2)))
        scores.append(torch.exp(-((distance / (0.4 * radius)) ** 2)))
    return torch.stack(scores), edge


def measure(pairs: int = 3) -> Result:
    """Run both formulations `pairs` times in turn on one thread, then ours at growing sizes.

    Raises:
        RuntimeError: the two formulations differ by more than 1e-4.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        scores, edge = scene(*DENSE_SIZE)
        propagate(*scene(8, 8))  # the first call loads libraries and caches the paths
        our_mib = _peak_mib(lambda: propagate(scores, edge))
        dense_mib = _peak_mib(lambda: dense_walk(scores, edge, log2_steps=1))  # later squarings need no more
        times = []
        for _ in range(pairs):
            dense_seconds, dense = _timed(lambda: dense_walk(scores, edge), repeats=1)
            our_seconds, ours = _timed(lambda: propagate(scores, edge), repeats=5)
            times.append((dense_seconds, our_seconds))
        difference = (dense - ours).abs().amax().item()
        if not difference <= 1e-4:
            raise RuntimeError(f"The sparse walk differs from the dense one by {difference:.1e}, more than 1e-4.")
        growth = dict.fromkeys(GROWTH_SIZES, math.inf)
        for _round in range(7):  # the sizes in turn and the least of each: what else runs on the machine disturbs less
            for size in GROWTH_SIZES:
                scores, edge = scene(*size)
                seconds, _ = _timed(lambda scores=scores, edge=edge: propagate(scores, edge), repeats=1)
                growth[size] = min(growth[size], seconds)
    finally:
        torch.set_num_threads(threads)
    return Result(
        dense_seconds=statistics.median(dense_seconds for dense_seconds, _ in times),
        our_seconds=statistics.median(our_seconds for _, our_seconds in times),
        ratio=statistics.median(dense_seconds / our_seconds for dense_seconds, our_seconds in times),
        difference=difference,
        dense_mib=dense_mib,
        our_mib=our_mib,
        growth=growth,
    )


def _timed(function: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """Return the median of the seconds, and the result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def _peak_mib(function: Callable[[], Tensor]) -> float:
    """Return how much the resident memory grows while the function runs, sampled every millisecond."""
    process = psutil.Process()
    start = peak = process.memory_info().rss
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        function()
    finally:
        done.set()
        sampler.join()
    return (peak - start) / 2**20


def main(arguments: list[str] | None = None) -> Result:
    """Print one table and return its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair of runs instead of five")
    result = measure(pairs=1 if parser.parse_args(arguments).quick else 5)
    height, width = DENSE_SIZE
    print("random walk, radius 5, 2^8 steps, 2 classes, one thread\n")
    print(f"{'formulation':<12} {'size':>9} {'seconds':>9} {'us/vertex':>10} {'peak MiB':>9} {'ratio':>7} {'difference':>11}")
    print(
        f"{'dense':<12} {f'{height}x{width}':>9} {result.dense_seconds:>9.3f} "
        f"{1e6 * result.dense_seconds / (height * width):>10.1f} {result.dense_mib:>9.1f}"
    )
    print(
        f"{'sparse':<12} {f'{height}x{width}':>9} {result.our_seconds:>9.3f} "
        f"{1e6 * result.our_seconds / (height * width):>10.1f} {result.our_mib:>9.1f} {result.ratio:>6.0f}x "
        f"{result.difference:>11.1e}"
    )
    for (height, width), cost in result.microseconds_per_vertex().items():
        print(f"{'sparse':<12} {f'{height}x{width}':>9} {result.growth[height, width]:>9.3f} {cost:>10.1f}")
    return result


if __name__ == "__main__":
    main()
