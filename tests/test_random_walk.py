"""The random walk against dense float64 matrices and hand-computed masks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsss_lib.config import Config
from wsss_lib.core.files import write_maps, write_mask
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.experiments import walk_controls
from wsss_lib.ops.affinity import search_paths
from wsss_lib.ops.random_walk import _chebyshev_weights, affinity_graph, propagate, pseudo_mask, walk_scores


def dense_affinity(edge, radius):
    """A by a loop over all pairs of pixels, float64."""
    (height, width), edge = edge.shape, edge.double()
    matrix = torch.eye(height * width, dtype=torch.float64)
    for (dy, dx), points in search_paths(radius):
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                affinity = 1 - max(edge[y + py, x + px] for py, px in points)
                matrix[y * width + x, (y + dy) * width + x + dx] = affinity
                matrix[(y + dy) * width + x + dx, y * width + x] = affinity
    return matrix


def dense_walk(scores, edge, radius, beta, log2_steps):
    transition = dense_affinity(edge, radius) ** beta
    transition = torch.matrix_power(transition / transition.sum(0), 2**log2_steps)
    return ((scores.double() * (1 - edge.double())).flatten(1) @ transition).view(scores.shape)


def example(height, width, seed, sharpness=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, height, width, generator=generator), torch.rand(height, width, generator=generator) ** sharpness


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(2, 6),
    st.integers(0, 10),
    st.sampled_from([0.5, 1, 2.5, 10]),
    st.sampled_from([0.5, 1, 8]),
    st.integers(0, 10_000),
)
def test_walk_agrees_with_the_dense_one(height, width, radius, log2_steps, beta, sharpness, seed):
    scores, edge = example(height, width, seed, sharpness)
    walk = propagate(scores, edge, radius, beta, log2_steps)
    assert walk.dtype == torch.float32 and walk.shape == scores.shape
    assert torch.allclose(walk.double(), dense_walk(scores, edge, radius, beta, log2_steps), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sharpness", [1, 8])
def test_walk_on_a_larger_map_agrees_to_1e5(sharpness):
    scores, edge = example(30, 37, 0, sharpness)
    transition = affinity_graph(edge, 5, 10).matrix().to_dense()
    transition = torch.matrix_power(transition / transition.sum(0), 256)
    expected = ((scores * (1 - edge)).double().flatten(1) @ transition).view_as(scores)
    assert torch.allclose(propagate(scores, edge).double(), expected, atol=1e-6, rtol=0)


def test_one_step_by_hand():
    # A = [[1, .5, 0], [.5, 1, .5], [0, .5, 1]], column sums 1.5, 2, 1.5.
    walk = propagate(torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[0.0, 0.5, 0.0]]), radius=2, beta=1, log2_steps=0)
    assert torch.allclose(walk, torch.tensor([[[1 / 1.5, 0.5 / 2, 0.0]]]))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 8), st.integers(0, 10_000))
def test_every_value_is_a_weighted_mean(height, width, log2_steps, seed):
    scores, edge = example(height, width, seed)
    scores = scores - 0.5
    walk, start = propagate(scores, edge, log2_steps=log2_steps), scores * (1 - edge)
    assert (walk.amax((1, 2)) <= start.amax((1, 2)) + 1e-6).all()
    assert (walk.amin((1, 2)) >= start.amin((1, 2)) - 1e-6).all()


def test_a_closed_outline_holds_the_scores_and_a_gap_leaks():
    edge = torch.zeros(20, 20)
    edge[4:15, [4, 14]] = edge[[4, 14], 4:15] = 1.0
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[5:14, 5:14] = True
    closed = propagate(inside.float()[None], edge)[0]
    assert torch.allclose(closed, inside.float(), atol=1e-5)
    edge[8:11, 14] = 0.0
    leaking = propagate(inside.float()[None], edge)[0]
    assert leaking[9, 17] > 0.1 and leaking[9, 6] < 0.99 and leaking[0, 0] > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 3)])
def test_maps_smaller_than_the_radius(size):
    scores = torch.ones(1, *size)
    assert torch.allclose(propagate(scores, torch.zeros(size)), scores)
    assert not propagate(scores, torch.ones(size)).any()  # all boundary: nothing starts, nothing is NaN


def test_number_of_classes_and_types():
    scores, edge = example(8, 9, 3)
    assert propagate(scores[:0], edge).shape == (0, 8, 9)
    both = propagate(scores, edge)
    assert torch.allclose(propagate(scores[1:], edge), both[1:], atol=1e-7)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        walk = propagate(scores.to(dtype), edge.to(dtype))
        assert walk.dtype == torch.float32 and torch.allclose(walk, both, atol=tolerance)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 6), st.integers(0, 10_000))
def test_graph_is_the_dense_matrix_in_valid_rows(height, width, radius, seed):
    edge = example(height, width, seed)[1]
    graph = affinity_graph(edge, radius)
    count = height * width
    # The invariants include ascending columns in every row.
    matrix = torch.sparse_csr_tensor(*graph, (count, count), check_invariants=True).to_dense()
    assert torch.allclose(matrix, dense_affinity(edge, radius), atol=1e-12)
    assert torch.allclose(graph.degree(), matrix.sum(1))


@pytest.mark.parametrize("steps", [1, 2, 3, 16, 256, 1000, 4096])
def test_chebyshev_weights_are_the_coin_flip_probabilities(steps):
    weights = _chebyshev_weights(steps)
    assert sum(weights) == pytest.approx(1, abs=1e-12) and len(weights) <= min(steps, 6 * math.sqrt(steps)) + 1
    for distance, weight in enumerate(weights):
        ways = math.comb(steps, (steps + distance) // 2) if (steps + distance) % 2 == 0 else 0
        assert weight == pytest.approx((1 if distance == 0 else 2) * ways / 2**steps, abs=2e-7)


def test_256_steps_cost_84_products():
    assert len(_chebyshev_weights(256)) - 1 == 84


def test_mask_by_hand():
    walk = torch.zeros(2, 2, 2)
    walk[0, 0, 0], walk[1, 1, 1] = 0.5, 0.25  # full resolution: 8 x 8, cut to 7 x 6
    score, mask = walk_scores(walk, (7, 6)), pseudo_mask(walk, [4, 19], (7, 6), threshold=0.3)
    assert score.shape == (2, 7, 6) and mask.dtype == torch.uint8 and score.amax() == 1
    # Bilinear, cell centers at 1.5 and 5.5: pixels 0 and 1 take the first cell, pixel 2 has 7/8 of it, 5 has 1/8.
    assert torch.allclose(score[0, 0], torch.tensor([1, 1, 0.875, 0.625, 0.375, 0.125]))
    assert score[1, 6, 5].item() == pytest.approx(0.5 * 0.875)
    assert mask[0].tolist() == [5, 5, 5, 5, 5, 0] and mask[6, 5] == 20 and mask[0, 5] == 0


def test_a_weak_class_vanishes_beside_a_strong_one():
    walk = torch.stack([torch.full((1, 1), 0.8), torch.full((1, 1), 0.1)])
    assert pseudo_mask(walk, [0, 1], (4, 4)).unique().tolist() == [1]
    assert pseudo_mask(walk[1:], [1], (4, 4)).unique().tolist() == [2]  # alone it is the maximum


def test_masks_without_scores_are_background():
    assert not pseudo_mask(torch.zeros(2, 3, 2), [0, 1], (9, 8)).any()
    empty = pseudo_mask(torch.zeros(0, 3, 2), [], (9, 8))
    assert empty.shape == (9, 8) and not empty.any()
    assert torch.isfinite(walk_scores(torch.zeros(1, 3, 2), (9, 8))).all()


def test_ties_go_to_the_background_then_to_the_first_class():
    assert not pseudo_mask(torch.ones(1, 1, 1), [3], (2, 2), threshold=1.0).any()
    assert pseudo_mask(torch.ones(2, 1, 1), [7, 3], (1, 1)).item() == 8


@pytest.mark.parametrize(
    ("scores", "edge", "options", "message"),
    [
        (torch.ones(1, 3, 3), torch.zeros(3, 4), {}, "must be of one size"),
        (torch.ones(3, 3), torch.zeros(3, 3), {}, "must be of one size"),
        (torch.full((1, 3, 3), math.nan), torch.zeros(3, 3), {}, "not finite"),
        (torch.ones(1, 3, 3), torch.full((3, 3), math.nan), {}, r"in \[0, 1\]"),
        (torch.ones(1, 3, 3), torch.full((3, 3), 1.5), {}, r"in \[0, 1\]"),
        (torch.ones(1, 0, 3), torch.zeros(0, 3), {}, "dimensions"),
        (torch.ones(1, 3, 3), torch.zeros(3, 3), {"radius": 1}, "at least 2"),
        (torch.ones(1, 3, 3), torch.zeros(3, 3), {"log2_steps": -1}, "at least 0"),
        (torch.ones(1, 3, 3), torch.zeros(3, 3), {"log2_steps": 0.5}, "at least 0"),
        (torch.ones(1, 3, 3), torch.zeros(3, 3), {"beta": -1}, "at least 0"),
    ],
)
def test_bad_walks_are_refused(scores, edge, options, message):
    with pytest.raises(ValueError, match=message):
        propagate(scores, edge, **options)


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match="do not belong to an image"):
        pseudo_mask(torch.ones(1, 3, 3), [0], (13, 9))
    with pytest.raises(ValueError, match="2 maps need 2 class numbers"):
        pseudo_mask(torch.ones(2, 3, 3), [0], (9, 9))
    with pytest.raises(ValueError, match=r"in 0\.\.253"):
        pseudo_mask(torch.ones(1, 3, 3), [254], (9, 9))


def test_no_warning_reaches_a_notebook(recwarn):
    propagate(*example(6, 6, 0))
    assert not recwarn.list


# ---- controls of notebook 80


def test_edges_of_colors_and_of_the_truth_by_hand():
    image = np.zeros((8, 12, 3), np.uint8)
    image[:, 6:] = 200  # a step between the columns 5 and 6, in the second cell
    edges = walk_controls.color_edges(image)
    assert edges.shape == (2, 3) and edges[:, 1].eq(1).all() and edges[:, [0, 2]].eq(0).all()
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 8:] = 3  # between the columns 7 and 8: both cells that touch it
    assert walk_controls.true_edges(mask).tolist() == [[0, 1, 1], [0, 1, 1]]
    assert walk_controls.color_edges(np.full((5, 6, 3), 7, np.uint8)).eq(0).all()


def test_true_outlines_beat_no_walk(tmp_path):
    """A map that covers one cell of an object: the walk fills the object and stops at its outline."""
    truth = np.zeros((96, 96), np.uint8)
    truth[16:80, 16:80] = 1
    write_mask(tmp_path / "SegmentationClass/a.png", truth)
    (tmp_path / "JPEGImages").mkdir()
    Image.fromarray(np.repeat(truth[:, :, None] * 200, 3, axis=2)).save(tmp_path / "JPEGImages/a.jpg")
    data = SegmentationDataset(tmp_path, "train", ("a",), ("thing",), np.ones((1, 1), np.uint8))
    maps = np.zeros((1, 24, 24), np.float32)
    maps[0, 10, 10] = 1
    write_maps(tmp_path / "a.npz", np.array([0]), maps, (96, 96))
    config = Config(walk_radius=3, walk_log2_steps=7)
    ways = {
        "no walk": lambda name, maps: maps,
        "true": walk_controls.along(lambda name: walk_controls.true_edges(data.mask(name)), config),
        "colors": walk_controls.by_color(data, config),  # the object is white on black
    }
    table = walk_controls.compare_walks(data, tmp_path, ways, config, np.linspace(0.02, 0.9, 23))
    assert [name for name, *_ in table] == ["no walk", "true", "colors"]
    assert float(table[0][1]) < 60 and float(table[1][1]) > 75 and float(table[2][1]) > 75
