"""IRN's random walk: the plain N x N transition matrix, squared eight times, against the sparse Chebyshev series.

python benchmarks/random_walk.py [--quick]

The plain form is out of reach beyond the second size; ours must grow in proportion to the number of cells.
"""

import torch
import torch.nn.functional as F
from measuring import Case, Row, compare, main
from torch import Tensor

from wsss_lib.ops.affinity import search_paths
from wsss_lib.ops.random_walk import propagate

REACHABLE = 47 * 63  # cells: a VOC image of half its side length at stride 4; 281 s and 1.2 GiB for one of 94x125


def dense_walk(scores: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, log2_steps: int = 8) -> Tensor:
    """Return the walk by an N x N transition matrix; arguments as those of `propagate`."""
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


def prepare(size: tuple[int, int]):
    scores, edge = scene(*size)
    plain = (lambda: dense_walk(scores, edge)) if size[0] * size[1] <= REACHABLE else None
    return plain, lambda: propagate(scores, edge)


CASE = Case("IRN's random walk", ((20, 30), (47, 63), (80, 60), (160, 120)), prepare, tolerance=1e-4, goal=100, pairs=3)


def measure(quick: bool = False) -> list[Row]:
    return compare(CASE, quick)


if __name__ == "__main__":
    main(measure, __doc__)
