"""Notebook 80: is IRN's gain due to the walk or to the boundaries? Walks along other boundaries and affinities.

Every way is scored at the threshold that suits it best, without a CRF and with one, on the same images.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.core.files import read_maps
from wsss_lib.core.progress import progress
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.ops.metrics import Evaluation
from wsss_lib.ops.random_walk import propagate, random_walk, walk_scores
from wsss_lib.ops.seeds import seed_mask
from wsss_lib.ops.thresholds import ThresholdSweep
from wsss_lib.parameters import Settings
from wsss_lib.refine.affinitynet import feature_graph
from wsss_lib.refine.irn import IRN

Edges = Callable[[str], Tensor]  # image id to boundaries (h, w) in [0, 1] at stride 4
Way = Callable[[str, Tensor], Tensor]  # image id and maps (K, h, w) at stride 4 to walked maps


def color_edges(image: np.ndarray) -> Tensor:
    """Return how much colors change between neighbors: float32 (h, w) at stride 4, 1 for the strongest twentieth.

    Args:
        image: uint8 (H, W, 3).
    """
    pixels = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)  # (3, H, W)
    right = F.pad((pixels[:, :, 1:] - pixels[:, :, :-1]).norm(dim=0), (0, 1))
    below = F.pad((pixels[:, 1:] - pixels[:, :-1]).norm(dim=0), (0, 0, 0, 1))
    strongest = F.max_pool2d(torch.maximum(right, below)[None, None], 4, ceil_mode=True)[0, 0]
    return (strongest / strongest.quantile(0.95).clamp(min=1e-6)).clamp(max=1)


def true_edges(mask: np.ndarray) -> Tensor:
    """Return where the ground truth changes its label: float32 (h, w) at stride 4, 0 or 1.

    Args:
        mask: uint8 (H, W); 255 belongs to no outline of its own, but what it separates is an outline.

    >>> true_edges(np.repeat(np.uint8([[0, 1]]), 4, axis=1).repeat(4, axis=0)).tolist()
    [[1.0, 1.0]]
    """
    labels = torch.from_numpy(mask.astype(np.float32))[None, None]
    highest = F.max_pool2d(labels, 3, 1, 1)
    lowest = -F.max_pool2d(-labels, 3, 1, 1)
    return F.max_pool2d((highest != lowest).float(), 4, ceil_mode=True)[0, 0]


def without_learning(net: IRN) -> IRN:
    """Return a copy of a network with an untrained boundary head, drawn from torch's random numbers."""
    net = copy.deepcopy(net)
    for name, module in net.named_modules():
        if name.startswith("fc_edge") and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return net


def along(edges: Edges, config: Settings) -> Way:
    """Return IRN's walk along some boundaries."""
    return lambda image_id, maps: propagate(maps, edges(image_id), config.walk_radius, config.walk_beta, config.walk_log2_steps)


def by_color(data: SegmentationDataset, config: Settings) -> Way:
    """Return AffinityNet's walk with the mean colors of two cells in place of learned features (notebook 75, section 9)."""

    def walk(image_id: str, maps: Tensor) -> Tensor:
        pixels = torch.from_numpy(np.array(data.image(image_id), np.float32)).permute(2, 0, 1) / 32
        graph = feature_graph(F.avg_pool2d(pixels, 4, ceil_mode=True), config.affinitynet_radius, config.affinity_walk_beta)
        return random_walk(graph, maps, config.affinity_walk_log2_steps)

    return walk


def compare_walks(
    data: SegmentationDataset, maps_folder: Path, ways: Mapping[str, Way], config: Settings, thresholds: Sequence[float]
) -> list[list[str]]:
    """Walk in each way and score the masks.

    Args:
        data: images with masks.
        ways: name to its function on the maps.
        config: of the maps' power before a walk.
        thresholds: of the background that are tried; the ground truth chooses.

    Returns:
        rows of a table of strings: name, best mIoU in percent without a CRF, its threshold, mIoU with a CRF at that threshold.
    """
    rows = []
    for name, way in ways.items():
        sweep, scores_of = ThresholdSweep(data.num_classes + 1, thresholds), {}
        for image_id in progress(data.ids, name):
            classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
            walk = way(image_id, torch.from_numpy(scores) ** config.walk_power)
            scores_of[image_id] = classes, walk_scores(walk, size).numpy()
            sweep.add(data.mask(image_id), scores_of[image_id][1], classes)
        threshold, miou = sweep.best()
        evaluation = Evaluation(data.num_classes + 1)
        for image_id, (classes, scores) in scores_of.items():
            evaluation.add(data.mask(image_id), seed_mask(np.array(data.image(image_id)), scores, classes, threshold))
        rows.append([name, f"{100 * miou:.1f}", f"{threshold:.2f}", f"{100 * evaluation.scores().miou:.1f}"])
    return rows
