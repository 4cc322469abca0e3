"""Pairs, affinities, labels and losses of IRN against hand-computed and brute-force truths."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_lib.ops.affinity import (
    affinity_labels,
    affinity_loss,
    displacement_target,
    edge_to_affinity,
    pair_displacement,
    path_index,
    search_paths,
)


@st.composite
def map_sizes(draw):
    radius = draw(st.integers(2, 6))
    height, width = draw(st.integers(radius, radius + 5)), draw(st.integers(2 * radius - 1, 2 * radius + 5))
    return radius, height, width, draw(st.integers(0, 10_000))


def test_number_of_directions_and_path_lengths():
    assert Counter(len(path.points) for path in search_paths(5)) == {2: 2, 3: 2, 4: 4, 5: 2, 6: 4, 7: 2, 8: 8, 10: 6, 11: 4}
    assert len(search_paths(5)) == 34 and len(search_paths(10)) == 152
    lengths = [len(path.points) for path in search_paths(10)]
    assert lengths == sorted(lengths) and lengths.count(16) == 22


def test_path_to_a_knights_move_by_hand():
    # All six cells of the 2 x 3 box are less than one cell from the line; farther ones (city blocks) come first.
    path = next(path for path in search_paths(5) if path.destination == (1, 2))
    assert path.points == ((1, 2), (0, 2), (1, 1), (0, 1), (1, 0), (0, 0))


@pytest.mark.parametrize("radius", [2, 5, 10])
def test_paths_run_from_destination_to_origin_over_each_direction_once(radius):
    destinations = [path.destination for path in search_paths(radius)]
    both_half_planes = set(destinations) | {(-dy, -dx) for dy, dx in destinations}
    disc = {(y, x) for y in range(-radius, radius + 1) for x in range(-radius, radius + 1) if y * y + x * x < radius**2}
    assert both_half_planes == disc - {(0, 0)} and 2 * len(destinations) == len(both_half_planes)
    for destination, points in search_paths(radius):
        assert points[0] == destination and points[-1] == (0, 0) and len(set(points)) == len(points)


def test_size_of_the_training_grid():
    index = path_index(10, (128, 128))
    assert index.source.shape == (119 * 110,) and index.destination.shape == (152, 13_090)
    assert index.destination.min() >= 0 and index.destination.max() < 128 * 128


@settings(max_examples=30, deadline=None)
@given(map_sizes())
def test_affinity_is_one_minus_the_maximum_over_the_indexed_path(sizes):
    radius, height, width, seed = sizes
    edge = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed))
    index = path_index(radius, (height, width))
    flat = edge.flatten(1)
    expected = torch.stack([1 - flat[:, points].amax(1) for points in index.paths], dim=1)
    assert torch.equal(edge_to_affinity(edge, radius), expected)


@settings(max_examples=30, deadline=None)
@given(map_sizes())
def test_labels_agree_with_a_loop_over_all_pairs(sizes):
    radius, height, width, seed = sizes
    values = torch.tensor([0, 1, 2, 20, 21, 255], dtype=torch.uint8)
    label = values[torch.randint(len(values), (height, width), generator=torch.Generator().manual_seed(seed))]
    index, labels = path_index(radius, (height, width)), affinity_labels(label, radius, num_classes=21)
    flat = label.flatten().tolist()
    for direction, destinations in enumerate(index.destination.tolist()):
        for number, (i, j) in enumerate(zip(index.source.tolist(), destinations, strict=True)):
            known = flat[i] <= 20 and flat[j] <= 20
            expected = (known and flat[i] == flat[j] == 0, known and flat[i] == flat[j] > 0, known and flat[i] != flat[j])
            assert tuple(bool(mask[direction, number]) for mask in labels) == expected


def test_labels_of_a_batch_are_those_of_its_images():
    label = torch.randint(0, 4, (2, 3, 7, 11), generator=torch.Generator().manual_seed(0))
    batch = affinity_labels(label, 4, num_classes=3)
    for a in range(2):
        for b in range(3):
            single = affinity_labels(label[a, b], 4, num_classes=3)
            assert all(torch.equal(part[a, b], whole) for part, whole in zip(batch, single, strict=True))


def test_negative_labels_are_unknown():
    assert not any(mask.any() for mask in affinity_labels(torch.full((2, 3), -1), 2, num_classes=3))


def test_displacements_towards_one_centroid_meet_the_target():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(14.0), indexing="ij")
    towards_centroid = torch.stack([3.25 - y, 5.5 - x])[None]
    delta = pair_displacement(towards_centroid, 5)
    assert torch.equal(delta, displacement_target(5).expand_as(delta))


def test_gradient_of_the_affinity():
    edge = torch.rand(1, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: edge_to_affinity(e, 4), edge)


def test_loss_by_hand():
    # One source (0, 1); destinations (0, 2), (1, 1), (1, 0), (1, 2). The path to a diagonal takes all four cells.
    probability = [[0.1, 0.2, 0.6], [0.3, 0.4, 0.5]]
    edge_logit = torch.tensor(probability).logit()[None, None]
    displacement = torch.arange(12.0).view(1, 2, 2, 3)
    label = torch.tensor([[[255, 3, 3], [0, 3, 255]]], dtype=torch.uint8)
    losses = affinity_loss(edge_logit, displacement, label, radius=2, num_classes=21)
    # Equal: (0, 2) with a = 0.4 and (1, 1) with a = 0.6. Different: (1, 0) with a = 1 - 0.4. None is background.
    assert losses.pos.item() == pytest.approx(-(math.log(0.4) + math.log(0.6)) / 2 / 2, abs=1e-4)
    assert losses.neg.item() == pytest.approx(-math.log(0.4), abs=1e-4)
    # D(i) - D(j) is -1 towards the right and -3 downwards, in both components; the targets are (0, 1) and (1, 0).
    assert losses.dp_fg.item() == pytest.approx((1 + 2 + 4 + 3) / 4, abs=1e-4)
    assert losses.dp_bg.item() == 0
    assert losses.total.item() == pytest.approx((losses.pos + losses.neg + losses.dp_fg + losses.dp_bg).item() / 2)


def test_terms_are_means_over_the_pairs_of_the_whole_batch():
    generator = torch.Generator().manual_seed(1)
    edge_logit, displacement = torch.randn(2, 1, 6, 9, generator=generator), torch.randn(2, 2, 6, 9, generator=generator)
    label = torch.randint(0, 3, (2, 6, 9), generator=generator)
    label[1, 2:] = 255  # the second image has far fewer pairs
    both = affinity_loss(edge_logit, displacement, label, 3, 21)
    images = [affinity_loss(edge_logit[i : i + 1], displacement[i : i + 1], label[i : i + 1], 3, 21) for i in (0, 1)]
    counts = [affinity_labels(label[i], 3, 21) for i in (0, 1)]
    for term, kind in (("neg", "neg"), ("dp_fg", "fg_pos"), ("dp_bg", "bg_pos")):
        n = [int(getattr(count, kind).sum()) for count in counts]
        weighted = sum(n[i] * getattr(images[i], term).item() for i in (0, 1)) / sum(n)
        assert n[0] > 2 * n[1] > 0 and getattr(both, term).item() == pytest.approx(weighted, rel=1e-4)


def test_a_batch_without_labels_costs_nothing_and_moves_nothing():
    edge_logit, displacement = torch.zeros(1, 1, 5, 9, requires_grad=True), torch.ones(1, 2, 5, 9, requires_grad=True)
    losses = affinity_loss(edge_logit, displacement, torch.full((1, 5, 9), 255), 5, 21)
    losses.total.backward()
    assert losses.total.item() == 0 and not edge_logit.grad.any() and not displacement.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_boundaries_keep_the_loss_finite(dtype):
    edge_logit = torch.tensor([-80.0, 80.0], dtype=dtype).repeat(23)[:45].view(1, 1, 5, 9).requires_grad_()
    label = torch.randint(0, 2, (1, 5, 9), generator=torch.Generator().manual_seed(0))
    total = affinity_loss(edge_logit, torch.zeros(1, 2, 5, 9, dtype=dtype), label, 5, 21).total
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(edge_logit.grad).all()


@pytest.mark.parametrize("radius", [1, 0, -3, 2.5])
def test_a_radius_without_neighbors_is_refused(radius):
    with pytest.raises(ValueError, match="integer of at least 2"):
        search_paths(radius)


def test_bad_maps_are_refused():
    with pytest.raises(ValueError, match="at least 5 x 9"):
        edge_to_affinity(torch.zeros(1, 4, 9), 5)
    with pytest.raises(ValueError, match="at least 5 x 9"):
        affinity_labels(torch.zeros(5, 8, dtype=torch.uint8), 5, 21)
    with pytest.raises(ValueError, match=r"\(B, H, W\)"):
        edge_to_affinity(torch.zeros(9, 9), 5)
    with pytest.raises(ValueError, match="must hold integers"):
        affinity_labels(torch.zeros(9, 9), 5, 21)
