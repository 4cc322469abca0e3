"""Affinities of pixel pairs in IRN's training, forward and backward: tables of indices against shifted windows.

python benchmarks/path_affinity.py [--quick]

Plain is the formulation by tables: for every pair all cells on its path are looked up, and the strongest boundary among them
is taken. Ours shares the maxima of straight runs of cells between all paths. Radius 10 and two crops, as in training; the
largest size is that of 512-pixel crops at stride 4.
"""

import torch
from measuring import Case, Row, compare, main
from torch import Tensor

from wsss_lib.ops.affinity import edge_to_affinity, path_index

RADIUS, CROPS = 10, 2


def by_tables(edge: Tensor, tables: list[Tensor]) -> Tensor:
    """Return one minus the strongest boundary on each path; tables (length of the path, sources) of every direction."""
    flat = edge.flatten(1)  # (B, H * W)
    return torch.stack([1 - flat[:, table].amax(1) for table in tables], dim=1)  # (B, n, S)


def with_gradient(affinity_of, edge: Tensor) -> tuple[Tensor, Tensor]:
    """Return the affinities and the gradient of a weighted sum of them."""
    edge = edge.clone().requires_grad_()
    affinity = affinity_of(edge)
    (affinity * torch.linspace(0, 1, affinity.shape[1])[:, None]).sum().backward()
    return affinity.detach(), edge.grad


def prepare(side: int):
    edge = torch.rand(CROPS, side, side, generator=torch.Generator().manual_seed(0))
    tables = path_index(RADIUS, (side, side)).paths
    return (
        lambda: with_gradient(lambda edge: by_tables(edge, tables), edge),
        lambda: with_gradient(lambda edge: edge_to_affinity(edge, RADIUS), edge),
    )


CASE = Case("path affinity in training", (32, 64, 128), prepare, tolerance=1e-2, show=lambda side: f"{side}x{side}")


def measure(quick: bool = False) -> list[Row]:
    return compare(CASE, quick)


if __name__ == "__main__":
    main(measure, __doc__)
