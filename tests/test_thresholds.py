"""Thresholds: each image's own best one, the range near the best, a choice on labelled images, IRN's two thresholds."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_lib.core.files import write_maps
from wsss_lib.core.scoring import sweep_maps
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.ops.metrics import confusion_matrix, scores
from wsss_lib.ops.seeds import argmax_with_background, irn_thresholds
from wsss_lib.ops.thresholds import (
    ImageThresholds,
    ThresholdSweep,
    choice_sentence,
    imbalance_and_gap,
    near_best_range,
    split_labelled,
)

# ---- binning by look-up


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=20, unique=True), st.integers(0, 2**32 - 1))
def test_bins_are_those_of_searchsorted(values, seed):
    thresholds = np.sort(np.float32(values))
    sweep = ThresholdSweep(2, thresholds)
    near = np.concatenate([thresholds, np.nextafter(thresholds, np.float32(-9)), np.nextafter(thresholds, np.float32(9))])
    near = np.concatenate([near, np.random.default_rng(seed).random(50, np.float32), np.float32([0, 1, -1, 1e30, np.inf])])
    np.testing.assert_array_equal(sweep._bins(near), np.searchsorted(thresholds, near))


def test_float_labels_are_refused():
    with pytest.raises(ValueError, match="truth has the type float64"):
        ThresholdSweep(2, [0.5]).add(np.zeros((1, 1)), np.zeros((1, 1, 1), np.float32), np.array([0]))


# ---- each image's own threshold


def image_curve(truth, maps, classes, thresholds, num_classes):
    """Plain: one mask and one confusion matrix for each threshold; mean over the background and the image's classes."""
    kept = [0, *(classes + 1)]
    confusions = [confusion_matrix(truth, argmax_with_background(maps, classes, t), num_classes) for t in thresholds]
    ious = np.array([scores(confusion).iou[kept] for confusion in confusions])  # (T, 1 + C)
    sums, numbers = np.nansum(ious, 1), (~np.isnan(ious)).sum(1)
    return np.divide(sums, numbers, out=np.full(len(sums), np.nan), where=numbers > 0), confusions


@settings(max_examples=60)
@given(st.integers(0, 3), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_image_thresholds_equal_the_plain_loop(num_present, num_thresholds, seed):
    rng = np.random.default_rng(seed)
    thresholds = np.sort(rng.choice(np.arange(1, 20), num_thresholds, replace=False) / 20).astype(np.float32)
    sweep, plain = ImageThresholds(5, thresholds), ThresholdSweep(5, thresholds)
    own, curves = np.zeros((5, 5), np.int64), []
    for _ in range(3):
        truth = rng.choice([0, 1, 2, 3, 4, 255], (4, 5)).astype(np.uint8)
        maps = (np.round(rng.random((num_present, 4, 5)) * 20) / 20).astype(np.float32)
        classes = np.sort(rng.choice(4, num_present, replace=False))
        curve, confusions = image_curve(truth, maps, classes, thresholds, 5)
        sweep.add(truth, maps, classes)
        plain.add(truth, maps, classes)
        curves.append(curve)
        own += confusions[int(np.nanargmax(curve))]
    np.testing.assert_allclose(sweep.curves(), curves)
    np.testing.assert_array_equal(sweep.best_thresholds(), thresholds[np.nanargmax(curves, axis=1)])
    np.testing.assert_array_equal(sweep.upper_bound_confusion, own)
    np.testing.assert_array_equal(sweep.confusions(), plain.confusions())
    assert sweep.upper_bound() == pytest.approx(scores(own).miou)


def test_one_threshold_for_all_costs_what_two_would_not():
    sweep = ImageThresholds(2, [0.1, 0.4, 0.7])
    sweep.add(np.array([[0, 1]]), np.array([[[0.05, 0.3]]], np.float32), np.array([0]))  # right at 0.1 only
    sweep.add(np.array([[0, 1]]), np.array([[[0.5, 0.9]]], np.float32), np.array([0]))  # right at 0.7 only
    assert sweep.best_thresholds().tolist() == [pytest.approx(0.1), pytest.approx(0.7)]
    assert sweep.upper_bound() == 1 and sweep.best()[1] < 0.6


def test_an_image_of_nothing_but_void_has_no_threshold():
    sweep = ImageThresholds(2, [0.1, 0.4])
    assert sweep.curves().shape == (0, 2) and sweep.best_thresholds().shape == (0,)
    sweep.add(np.array([[255, 255]]), np.array([[[0.5, 0.9]]], np.float32), np.array([0]))
    sweep.add(np.array([[0, 1]]), np.array([[[0.2, 0.9]]], np.float32), np.array([0]))
    assert np.isnan(sweep.curves()[0]).all()
    np.testing.assert_array_equal(sweep.best_thresholds(), np.float32([np.nan, 0.4]))
    assert sweep.upper_bound() == 1


def test_summary_by_hand():
    sweep = ImageThresholds(2, [0.1, 0.4, 0.7])
    sweep.add(np.array([[0, 1, 255]]), np.array([[[0.05, 0.3, 0.9]]], np.float32), np.array([0]))  # curve 1, 1/4, 1/4
    sweep.add(np.array([[0, 1, 1]]), np.array([[[0.2, 0.5, 0.9]]], np.float32), np.array([0]))  # curve 1/3, 1, 7/12
    sweep.add(np.array([[0, 1, 1]]), np.array([[[0.2, 0.5, 0.9]]], np.float32), np.array([0]))
    # all three images at 0.4: background 3 of 4, object 4 of 5
    assert sweep.curve()[1] == pytest.approx((3 / 4 + 4 / 5) / 2)
    own = [0.1, 0.4, 0.4]
    expected = {
        "threshold": 0.4,
        "low": 0.4,
        "high": 0.4,
        "image_mean": np.mean(own),
        "image_spread": np.std(own),
        "best": 77.5,
        "upper_bound": 100,
        "image_loss": 100 * (1 - 1 / 4) / 3,
    }
    assert sweep.summary() == pytest.approx(expected, abs=1e-3)
    assert sweep.summary(within=0.9)["low"] == pytest.approx(0.1)


def test_imbalance_and_gap_by_hand():
    truth = np.array([[0, 0, 1, 1, 2, 255]])
    maps = np.array([[0.1, 0.3, 0.4, 0.8, 0.0, 9.0], [0.0, 0.0, 0.0, 0.0, 0.5, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])[:, None]
    result = imbalance_and_gap(truth, maps, np.array([0, 1, 2]))
    np.testing.assert_allclose(result, [[0.2, 0.4], [0.0, 0.5], [np.nan, np.nan]], atol=1e-12)
    assert np.isnan(imbalance_and_gap(np.array([[1, 1]]), np.ones((1, 1, 2)), np.array([0]))).all()  # no background


# ---- the range near the best


@pytest.mark.parametrize(
    "curve, within, expected",
    [
        ([1, 2, 3, 4, 5], 0, (0.5, 0.5)),
        ([5, 4, 3, 2, 1], 2, (0.1, 0.3)),
        ([5, 5, 5, 5, 5], 0, (0.1, 0.5)),
        ([49, 1, 50, 49, 48], 2, (0.3, 0.5)),
        ([np.nan, 1, 2, np.nan, 2], 2, (0.2, 0.3)),
    ],
)
def test_near_best_range_by_hand(curve, within, expected):
    assert near_best_range([0.1, 0.2, 0.3, 0.4, 0.5], curve, within) == expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 0.3), st.floats(0, 0.3))
def test_near_best_range_grows_with_the_loss_allowed(curve, small, more):
    thresholds = np.arange(len(curve)) / 100
    low, high = near_best_range(thresholds, curve, small)
    wide_low, wide_high = near_best_range(thresholds, curve, small + more)
    assert wide_low <= low <= thresholds[int(np.argmax(curve))] <= high <= wide_high
    inside = np.array(curve)[(thresholds >= low) & (thresholds <= high)]
    assert (inside >= max(curve) - small).all()


@pytest.mark.parametrize("thresholds, curve", [([0.1, 0.2], [1.0]), ([0.1], [np.nan]), ([], [])])
def test_a_curve_that_says_nothing_is_refused(thresholds, curve):
    with pytest.raises(ValueError, match="as many of one as of the other"):
        near_best_range(thresholds, curve)


# ---- a choice on labelled images


def listed(labels) -> SegmentationDataset:
    ids = tuple(f"i{number}" for number in range(len(labels)))
    return SegmentationDataset(Path("nowhere"), "train", ids, ("a", "b", "c")[: len(labels[0])], np.uint8(labels))


def test_labelled_images_are_spread_over_the_list_class_by_class():
    data = listed([[1, 0]] * 5 + [[0, 1]] * 5 + [[1, 1]])
    few, rest = split_labelled(data, per_class=2)
    assert few.ids == ("i0", "i5", "i10")  # class a: first and last of 0-4 and 10; class b: of 5-10
    assert few.labels.tolist() == [[1, 0], [0, 1], [1, 1]] and len(rest) == 8


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_labelled_and_scored_images_are_apart_and_complete(count, num_classes, per_class, seed):
    labels = np.random.default_rng(seed).integers(0, 2, (count, num_classes))
    data = listed(labels.tolist())
    try:
        few, rest = split_labelled(data, per_class)
    except ValueError as error:
        assert "takes all" in str(error)
        return
    assert set(few.ids) | set(rest.ids) == set(data.ids) and not set(few.ids) & set(rest.ids)
    assert (few.labels.sum(0) >= np.minimum(labels.sum(0), per_class)).all() and len(few) <= num_classes * per_class
    for part in (few, rest):
        assert all((part.label(name) == data.label(name)).all() for name in part.ids)


def test_a_set_of_no_image_or_of_all_is_refused():
    with pytest.raises(ValueError, match="per_class=0 must be at least 1"):
        split_labelled(listed([[1]]), 0)
    with pytest.raises(ValueError, match="takes all 2 images of split 'train'"):
        split_labelled(listed([[1], [1]]), 5)


@pytest.mark.parametrize(
    "way, words",
    [
        ("fixed", "threshold 0.15 was fixed beforehand: no pixel label chose it"),
        ("labelled", "threshold 0.15 is the best on 30 other images: their pixel labels chose it"),
        (
            "best",
            "threshold 0.15 is the best on the 30 scored images: their pixel labels chose it, and the score is an upper bound",
        ),
    ],
)
def test_every_choice_says_whether_pixel_labels_made_it(way, words):
    assert choice_sentence(way, 0.15, 30) == words


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="way='guess' is unknown"):
        choice_sentence("guess", 0.15)


def test_stage_function_keeps_image_curves_when_asked(miniature, small_config, tmp_path):
    data = open_data(small_config, "train")
    for image_id in data.ids:
        mask, classes = data.mask(image_id), np.flatnonzero(data.label(image_id))
        full = np.stack([np.where(mask == number + 1, 0.9, 0.1) for number in classes])
        write_maps(tmp_path / f"{image_id}.npz", classes, full[:, ::4, ::4], mask.shape)
    sweep = sweep_maps(data, tmp_path, (0.2, 0.5), ImageThresholds)
    assert sweep.curves().shape == (len(data), 2)
    np.testing.assert_array_equal(sweep.curve(), sweep_maps(data, tmp_path, (0.2, 0.5)).curve())
    assert sweep.upper_bound() >= sweep.best()[1]


# ---- IRN's thresholds from the seed's


@pytest.mark.parametrize(
    "seed_threshold, expected",
    [
        (0.15, (0.30, 0.05)),  # as published with IRN
        (0.25, (0.40, 0.15)),  # AMN published 0.45 and 0.15
        (0.45, (0.60, 0.35)),
        (0.06, (0.21, 0.02)),
        (0.9, (0.95, 0.80)),
    ],
)
def test_irn_thresholds_by_hand(seed_threshold, expected):
    assert irn_thresholds(seed_threshold) == pytest.approx(expected)


@given(st.floats(1e-6, 1 - 1e-6), st.floats(1e-6, 1 - 1e-6))
def test_irn_thresholds_stay_in_order_and_rise_with_the_seeds(first, second):
    low, high = sorted((first, second))
    for value in (low, high):
        above, below = irn_thresholds(value)
        assert 0 < below < value < above < 1
    assert irn_thresholds(low)[0] <= irn_thresholds(high)[0] + 1e-12
    assert irn_thresholds(low)[1] <= irn_thresholds(high)[1] + 1e-12


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_irn_thresholds_need_room(value):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        irn_thresholds(value)
