"""Thresholds, up-sampling and confident labels against hand-written masks and the plain formulation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from wsss_lib.ops.crf import crf_from_labels
from wsss_lib.ops.merging import upsample_scores
from wsss_lib.ops.seeds import argmax_with_background, irn_labels, seed_mask, seed_mask_and_irn_labels


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_upsampling_is_bilinear_times_four_cut_at_the_top_left(height, width, num_classes, seed):
    h, w = (height - 1) // 4 + 1, (width - 1) // 4 + 1
    maps = np.random.default_rng(seed).random((num_classes, h, w)).astype(np.float16)
    result = upsample_scores(maps, (height, width))
    assert result.shape == (num_classes, height, width) and result.dtype == np.float32
    if num_classes:
        full = F.interpolate(torch.from_numpy(maps.astype(np.float32))[None], size=(4 * h, 4 * w), mode="bilinear")
        np.testing.assert_allclose(result, full[0, :, :height, :width].numpy(), atol=1e-6)
        assert result.min() >= maps.min() - 1e-6 and result.max() <= maps.max() + 1e-6


def test_upsampled_values_by_hand():
    # pixel x lies at (x + 0.5) / 4 - 0.5 on the small grid: -0.375 (held at the border), ..., 0.125 at x = 2
    result = upsample_scores(np.array([[[0.0, 1.0]]]), (1, 6))
    np.testing.assert_allclose(result, [[[0, 0, 0.125, 0.375, 0.625, 0.875]]])


@pytest.mark.parametrize("size", [(5, 8), (8, 13), (4, 4)])
def test_maps_of_another_image_are_refused(size):
    with pytest.raises(ValueError, match="another version of the image"):
        upsample_scores(np.zeros((1, 2, 3)), size)


def test_labels_by_hand():
    scores = np.array([[[0.1, 0.3, 0.31, 0.6, 0.6]], [[0.2, 0.1, 0.2, 0.6, 0.7]]], np.float32)
    result = argmax_with_background(scores, np.array([11, 4]), 0.3)
    # below; a tie with the background; class 11; a tie of both classes (the first wins); class 4
    assert result.dtype == np.uint8 and result.tolist() == [[0, 0, 12, 12, 5]]


@given(st.integers(0, 3), st.sampled_from([np.float16, np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_labels_equal_argmax_over_threshold_and_scores(num_classes, dtype, seed):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, 11, (num_classes, 4, 5)) / 10).astype(dtype)  # many ties
    classes = rng.choice(20, num_classes, replace=False)
    threshold = rng.integers(0, 11) / 10
    padded = np.pad(scores, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
    expected = np.concatenate([[0], classes + 1])[padded.argmax(0)]
    np.testing.assert_array_equal(argmax_with_background(scores, classes, threshold), expected)


@pytest.mark.parametrize(
    ("scores", "classes", "message"),
    [
        (np.zeros((2, 3, 3)), [1], "do not fit"),
        (np.zeros((3, 3)), [1, 2, 3], "do not fit"),
        (np.zeros((1, 3, 3), int), [1], "int64"),
        (np.zeros((1, 3, 3)), [254], "8-bit"),
        (np.zeros((1, 3, 3)), [-1], "8-bit"),
        (np.zeros((1, 3, 3)), [1.5], "integers"),
    ],
)
def test_bad_scores_are_refused(scores, classes, message):
    with pytest.raises(ValueError, match=message):
        argmax_with_background(scores, np.array(classes), 0.3)


def scene():
    """A bright disc on dark ground; a score that is sure in the middle, unsure around the disc, low far away."""
    rows, columns = np.mgrid[:32, :40]
    distance = np.hypot(rows - 16, columns - 20)
    image = np.where(distance[..., None] < 9, 220, 30).astype(np.uint8).repeat(3, -1)
    score = np.clip(1 - distance / 16, 0, 1).astype(np.float32)
    return image, score[None], np.array([6]), distance


def test_seed_without_crf_is_the_thresholded_map():
    image, scores, classes, distance = scene()
    np.testing.assert_array_equal(seed_mask(image, scores, classes, 0.5, crf=False), np.where(distance < 8, 7, 0))


def test_seed_with_crf_finds_the_edge_of_the_object():
    image, scores, classes, distance = scene()
    mask = seed_mask(image, scores, classes, 0.25)  # thresholded at distance 12, beyond the disc's edge at 9
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 7}
    disc = np.where(distance < 9, 7, 0)
    before = (seed_mask(image, scores, classes, 0.25, crf=False) == disc).mean()
    assert (mask == disc).mean() > 0.98 > before


def test_seed_of_several_classes_runs_the_crf_on_this_images_numbers():
    image = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    scores = np.random.default_rng(1).random((2, 12, 10)).astype(np.float32)
    positions = np.concatenate([np.full((1, 12, 10), 0.4, np.float32), scores]).argmax(0)
    expected = np.array([0, 20, 3])[crf_from_labels(image, positions, 3)]
    np.testing.assert_array_equal(seed_mask(image, scores, np.array([19, 2]), 0.4), expected)


def test_confident_labels_follow_the_table(monkeypatch):
    """F and B are replaced by hand-written masks: object wins, then background, then unknown."""
    import wsss_lib.ops.seeds as seeds

    masks = {
        0.3: np.array([[0, 5, 5, 0, 7]], np.uint8),
        0.05: np.array([[0, 5, 0, 5, 5]], np.uint8),
        0.2: np.array([[7, 7, 7, 7, 7]], np.uint8),
    }
    monkeypatch.setattr(
        seeds,
        "_refined_seeds",
        lambda image, scores, classes, thresholds, iterations: np.stack([masks[threshold] for threshold in thresholds]),
    )
    image_scores_classes = None, np.zeros((2, 1, 5), np.float32), np.array([4, 6])
    labels = seeds.irn_labels(*image_scores_classes)
    assert labels.tolist() == [[0, 5, 5, 255, 7]] and labels.dtype == np.uint8
    mask, same = seeds.seed_mask_and_irn_labels(*image_scores_classes, 0.2, 0.3, 0.05)
    assert mask.tolist() == masks[0.2].tolist() and same.tolist() == labels.tolist()


def test_seed_and_confident_labels_together_are_those_made_one_by_one():
    image, scores, classes, _ = scene()
    image[5:9, 7:30] = 130
    mask, labels = seed_mask_and_irn_labels(image, scores, classes, 0.25, 0.6, 0.1)
    np.testing.assert_array_equal(mask, seed_mask(image, scores, classes, 0.25))
    np.testing.assert_array_equal(labels, irn_labels(image, scores, classes, 0.6, 0.1))
    assert set(np.unique(mask)) == {0, 7} and set(np.unique(labels)) == {0, 7, 255}


def test_confident_labels_of_a_scene():
    image, scores, classes, distance = scene()
    image[distance >= 6] = 120  # a ring that might be object or background ...
    image[distance >= 12] = 30  # ... and plain ground
    labels = irn_labels(image, scores, classes, 0.6, 0.1)  # thresholds at distances 6.4 and 14.4
    assert (labels[distance < 6] == 7).mean() > 0.95
    assert (labels[(distance >= 6) & (distance < 12)] == 255).mean() > 0.95
    assert (labels[distance >= 12] == 0).mean() > 0.95


@pytest.mark.parametrize("crf", [True, False])
def test_an_image_without_a_class_is_all_background(crf):
    image, none = np.zeros((8, 9, 3), np.uint8), np.zeros((0, 8, 9), np.float32)
    no_class = np.zeros(0, np.int64)
    assert seed_mask(image, none, no_class, 0.3, crf=crf).tolist() == np.zeros((8, 9), int).tolist()
    labels = irn_labels(image, none, no_class)
    assert labels.shape == (8, 9) and not labels.any()


def test_thresholds_in_the_wrong_order_are_refused():
    image, scores, classes, _ = scene()
    with pytest.raises(ValueError, match="background_threshold=0.5 is above foreground_threshold=0.3"):
        irn_labels(image, scores, classes, 0.3, 0.5)
    with pytest.raises(ValueError, match="background_threshold=0.5 is above foreground_threshold=0.3"):
        seed_mask_and_irn_labels(image, scores, classes, 0.2, 0.3, 0.5)


def test_an_image_of_another_size_is_refused():
    image, scores, classes, _ = scene()
    with pytest.raises(ValueError, match="size of the image"):
        irn_labels(image[1:], scores, classes)
