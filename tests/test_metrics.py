"""Confusion matrix, scores, the one-pass threshold sweep and average precision against hand counts and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_lib.ops.metrics import Evaluation, average_precision, confusion_matrix, mean_average_precision, part_recall, scores
from wsss_lib.ops.thresholds import ThresholdSweep

# truth row by row: 0 0 0 | 1 1 2, prediction: 0 0 1 | 1 2 2
TRUTH = np.array([[0, 0, 0], [1, 1, 2]], np.uint8)
PREDICTION = np.array([[0, 0, 1], [1, 2, 2]], np.uint8)


def test_confusion_matrix_by_hand():
    expected = [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    result = confusion_matrix(TRUTH, PREDICTION, 4)
    assert result.dtype == np.int64 and result.tolist() == expected


def test_void_truth_is_dropped_and_unknown_prediction_is_background():
    truth = np.array([255, -1, 7, 0, 1, 1], np.int32)
    prediction = np.array([1, 1, 1, 255, 255, 1], np.int32)
    assert confusion_matrix(truth, prediction, 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


@given(st.integers(1, 255), st.integers(0, 2**32 - 1))
def test_bytes_are_counted_as_wider_numbers_are(num_classes, seed):
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, 256, (2, 60), np.uint8)
    prediction = np.where(rng.random(60) < 0.2, 255, prediction % num_classes).astype(np.uint8)
    wide = confusion_matrix(truth.astype(np.int32), prediction.astype(np.int32), num_classes)
    result = confusion_matrix(truth, prediction, num_classes)
    assert np.array_equal(result, wide) and result.dtype == np.int64 and result.flags.owndata


def test_foreign_bytes_are_named():
    with pytest.raises(ValueError, match="label 30,"):
        confusion_matrix(np.uint8([1, 0, 255]), np.uint8([21, 30, 99]), 21)


def test_a_foreign_prediction_matters_only_where_it_is_counted():
    assert confusion_matrix(np.array([255, 0]), np.array([99, 0]), 2).tolist() == [[1, 0], [0, 0]]
    with pytest.raises(ValueError, match="label 21.*0..20"):
        confusion_matrix(np.array([1, 0]), np.array([21, 0]), 21)
    with pytest.raises(ValueError, match="label -1"):
        confusion_matrix(np.array([1, 0]), np.array([-1, 0]), 21)


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "differ in shape"),
        (np.zeros(2), np.zeros(2, int), "truth has the type float64"),
        (np.zeros(2, int), np.zeros(2, np.float32), "prediction has the type float32"),
    ],
)
def test_bad_label_maps_are_refused(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(truth, prediction, 3)


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_confusion_matrix_equals_the_loop_over_classes(num_classes, seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice([*range(num_classes), 255], (5, 7)).astype(np.uint8)
    prediction = rng.choice([*range(num_classes), 255], (5, 7)).astype(np.uint8)
    known = np.where(prediction == 255, 0, prediction)
    expected = [[((truth == i) & (known == j)).sum() for j in range(num_classes)] for i in range(num_classes)]
    assert confusion_matrix(truth, prediction, num_classes).tolist() == expected


def test_scores_by_hand():
    result = scores(confusion_matrix(TRUTH, PREDICTION, 4))
    np.testing.assert_allclose(result.iou, [2 / 3, 1 / 3, 1 / 2, np.nan])
    np.testing.assert_allclose(result.precision, [1, 1 / 2, 1 / 2, np.nan])
    np.testing.assert_allclose(result.recall, [2 / 3, 1 / 2, 1, np.nan])
    assert result.miou == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)
    assert result.pixel_accuracy == pytest.approx(4 / 6)
    assert result.mean_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert result.frequency_weighted_iou == pytest.approx((3 * 2 / 3 + 2 * 1 / 3 + 1 * 1 / 2) / 6)


def test_a_class_that_is_only_predicted_separates_the_two_averaging_rules():
    confusion = np.array([[3, 0, 1], [0, 0, 0], [0, 0, 0]])  # class 2 is predicted once, never true; class 1 nowhere
    union, present = scores(confusion), scores(confusion, "present")
    np.testing.assert_array_equal(union.iou, present.iou)
    np.testing.assert_allclose(union.iou, [0.75, np.nan, 0])
    assert (union.miou, union.average) == (0.375, "union")
    assert (present.miou, present.average) == (0.75, "present")


def test_scores_of_nothing_are_nan_without_warning(recwarn):
    result = scores(np.zeros((3, 3), np.int64))
    assert all(
        math.isnan(value) for value in (result.miou, result.pixel_accuracy, result.mean_accuracy, result.frequency_weighted_iou)
    )
    assert np.isnan(result.iou).all() and not recwarn.list


@pytest.mark.parametrize(
    ("confusion", "average", "message"), [(np.zeros((2, 3)), "union", "square"), (np.zeros((2, 2)), "all", "average='all'")]
)
def test_bad_scores_input_is_refused(confusion, average, message):
    with pytest.raises(ValueError, match=message):
        scores(confusion, average)


def test_evaluation_is_one_matrix_over_all_images_not_a_mean_over_images():
    evaluation = Evaluation(2)
    evaluation.add(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]))  # IoU 3/4 and 0
    evaluation.add(np.array([1, 1, 1, 255]), np.array([1, 255, 1, 255]))  # IoU 0 and 2/3, one unknown
    assert evaluation.images == 2
    assert evaluation.confusion.tolist() == [[3, 0], [2, 2]]
    np.testing.assert_allclose(evaluation.scores().iou, [3 / 5, 2 / 4])
    assert evaluation.unknown_share == pytest.approx(1 / 7)  # the void pixel is in neither number


def one_pass(truth, maps, classes, threshold, num_classes):
    """IRN's evaluation of one threshold, as written in the paper's code: arg-max over [t, scores]."""
    padded = np.concatenate([np.full((1, *truth.shape), threshold, np.float32), maps])
    return confusion_matrix(truth, np.concatenate([[0], classes + 1])[padded.argmax(0)], num_classes)


@settings(max_examples=60)
@given(st.integers(0, 3), st.integers(1, 9), st.booleans(), st.integers(0, 2**32 - 1))
def test_sweep_equals_one_pass_per_threshold(num_present, num_thresholds, ties, seed):
    rng = np.random.default_rng(seed)
    sweep_thresholds = np.sort(rng.choice(np.arange(0, 21), num_thresholds, replace=False) / 20)
    sweep = ThresholdSweep(5, sweep_thresholds)
    expected = np.zeros((num_thresholds, 5, 5), np.int64)
    for _ in range(2):
        truth = rng.choice([0, 1, 2, 3, 4, 255], (6, 7)).astype(np.uint8)
        maps = rng.random((num_present, 6, 7)).astype(np.float32)
        if ties:  # scores equal to each other and to thresholds, in float32
            maps = (np.round(maps * 20) / 20).astype(np.float32)
        classes = rng.choice(4, num_present, replace=False)
        sweep.add(truth, maps, classes)
        expected += np.stack([one_pass(truth, maps, classes, t, 5) for t in sweep_thresholds])
    np.testing.assert_array_equal(sweep.confusions(), expected)
    np.testing.assert_array_equal(sweep.curve("present"), [scores(c, "present").miou for c in expected])


def test_a_score_equal_to_the_threshold_is_background_in_float32():
    # 0.3 in float64 is smaller than float32(0.3): compared in float64 the pixel would count as foreground
    sweep = ThresholdSweep(2, [0.3])
    sweep.add(np.array([[1, 1]]), np.array([[[0.3, np.nextafter(np.float32(0.3), np.float32(1))]]], np.float32), np.array([0]))
    assert sweep.confusions().tolist() == [[[0, 0], [1, 1]]]


def test_float16_maps_are_compared_as_float32():
    maps = np.array([[[0.3, 0.7]]], np.float16)  # float16(0.3) is 0.30004883
    sweep = ThresholdSweep(2, [0.3])
    sweep.add(np.array([[1, 1]]), maps, np.array([0]))
    assert sweep.confusions().tolist() == [[[0, 0], [0, 2]]]


def test_best_takes_the_lowest_of_equal_thresholds():
    sweep = ThresholdSweep(2, [0.1, 0.4, 0.6, 0.9])
    sweep.add(np.array([[0, 1]]), np.array([[[0.3, 0.8]]]), np.array([0]))
    np.testing.assert_allclose(sweep.curve(), [0.25, 1, 1, 0.25])
    threshold, miou = sweep.best()
    assert threshold == pytest.approx(0.4) and miou == 1.0


@pytest.mark.parametrize("thresholds", [[], [0.2, 0.2], [0.3, 0.2], [[0.1, 0.2]], [0.1, float("nan")], [0.1, 0.1 + 1e-12]])
def test_bad_thresholds_are_refused(thresholds):
    with pytest.raises(ValueError, match="strictly increasing"):
        ThresholdSweep(2, thresholds)


@pytest.mark.parametrize(
    ("maps", "classes", "message"),
    [
        (np.zeros((1, 2, 2)), [0, 1], "do not fit"),
        (np.zeros((1, 2, 3)), [0], "do not fit"),
        (np.zeros((1, 2, 2)), [2], r"0\.\.1"),
        (np.zeros((1, 2, 2)), [-1], r"0\.\.1"),
        (np.full((1, 2, 2), np.nan), [0], "NaN"),
    ],
)
def test_bad_maps_are_refused_and_leave_the_sweep_unchanged(maps, classes, message):
    sweep = ThresholdSweep(3, [0.5])
    with pytest.raises(ValueError, match=message):
        sweep.add(np.zeros((2, 2), np.uint8), maps, np.array(classes))
    assert sweep.confusions().sum() == 0 and sweep.images == 0
    with pytest.raises(ValueError, match="No labelled pixel"):
        sweep.best()


def test_average_precision_by_hand():
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    confidence = np.array([[0.9, 0.1, 0.5], [0.8, 0.9, 0.5], [0.7, 0.8, 0.5], [0.1, 0.2, 0.5]])
    # class 0: found at ranks 1 and 3: 1/2 * 1 + 1/2 * 2/3; class 1: ranks 1 and 2; class 2: no positive image
    np.testing.assert_allclose(average_precision(confidence, labels), [5 / 6, 1.0, np.nan])
    assert mean_average_precision(confidence, labels) == pytest.approx(11 / 12)


def test_equal_scores_enter_together():
    labels = np.array([[1], [0], [1], [0]])
    assert average_precision(np.full((4, 1), 0.3), labels).item() == 0.5  # the share of positives
    # 0.9 (positive); then 0.5 three times with one positive: 1/2 * 1 + 1/2 * 2/4
    assert average_precision(np.array([[0.9], [0.5], [0.5], [0.5]]), labels).item() == pytest.approx(0.75)


@given(st.integers(0, 2**32 - 1))
def test_average_precision_ignores_order_of_images_and_scale_of_scores(seed):
    rng = np.random.default_rng(seed)
    confidence, labels = rng.integers(0, 5, (12, 2)) / 4, rng.integers(0, 2, (12, 2))
    order = rng.permutation(12)
    result = average_precision(confidence, labels)
    np.testing.assert_allclose(average_precision(confidence[order], labels[order]), result)
    np.testing.assert_allclose(average_precision(np.exp(3 * confidence) - 7, labels), result)


@pytest.mark.parametrize(
    ("confidence", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), "images, classes"),
        (np.zeros((2, 1)), np.array([[0], [2]]), "0 or 1"),
        (np.full((2, 1), np.nan), np.zeros((2, 1)), "NaN"),
    ],
)
def test_bad_classifier_scores_are_refused(confidence, labels, message):
    with pytest.raises(ValueError, match=message):
        average_precision(confidence, labels)


# ---- recall by part


def test_part_recall_by_hand():
    class_mask = np.array([[3, 3, 3, 0], [3, 3, 255, 0], [5, 5, 5, 0]])
    part_mask = np.array([[1, 1, 2, 0], [1, 2, 255, 0], [1, 1, 2, 0]])
    prediction = np.array([[3, 0, 3, 3], [5, 3, 3, 0], [5, 0, 3, 0]])
    # Body pixels: 3 right, 0 and 5 wrong, 5 right, 0 wrong. Head pixels: 3 and 3 right, 3 instead of 5 wrong.
    assert part_recall(prediction, part_mask, class_mask) == {"head": pytest.approx(2 / 3), "body": pytest.approx(2 / 5)}


def test_part_recall_of_an_image_without_heads():
    recall = part_recall(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)))
    assert recall["body"] == 1 and np.isnan(recall["head"])
    with pytest.raises(ValueError, match="must have one shape"):
        part_recall(np.ones((2, 2)), np.ones((2, 3)), np.ones((2, 2)))
