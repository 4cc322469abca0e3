"""Side-by-side tables, what they refuse, and boundary IoU."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion, distance_transform_edt

from tests import made
from wsss_lib import comparison, results
from wsss_lib.config import Config
from wsss_lib.core import files, store
from wsss_lib.core.stage import run_folder_of
from wsss_lib.data.dataset import load_dataset
from wsss_lib.ops.metrics import BoundaryEvaluation, boundary_band

# ---- boundary IoU

labels = arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 1, 2]))


@given(labels, st.integers(1, 3))
def test_a_band_is_the_region_without_its_erosion(array, width):
    region = array == 1
    assert (boundary_band(region, width) == (region & ~binary_erosion(region, np.ones((3, 3)), iterations=width))).all()


@given(labels, labels)
def test_boundary_iou_is_symmetric_and_one_for_equal_maps(one, other):
    def score(truth, prediction):
        evaluation = BoundaryEvaluation(3)
        evaluation.add(truth, prediction)
        return evaluation.iou

    assert np.array_equal(score(one, other), score(other, one), equal_nan=True)
    assert np.nanmax(np.append(score(one, other), 0)) <= 1
    same = score(one, one)
    assert (same[~np.isnan(same)] == 1).all() and np.isnan(same[0])


def test_an_error_inside_costs_nothing_and_one_at_the_edge_costs_much():
    truth = np.zeros((100, 100), np.uint8)
    truth[10:90, 10:90] = 1
    hole, shifted = truth.copy(), np.roll(truth, 3, 0)
    hole[40:60, 40:60] = 0  # a hole has an edge of its own, which the truth has not
    for prediction, expected in ((truth, 1.0), (hole, 924 / (924 + 276)), (shifted, None)):
        evaluation = BoundaryEvaluation(2)
        evaluation.add(truth, prediction)
        if expected is None:
            assert evaluation.miou < 0.5
        else:  # the edge of the square is 80² - 74² = 924 pixels, that of the hole 26² - 20² = 276
            assert evaluation.miou == pytest.approx(expected)


def test_void_borders_are_filled_and_not_counted():
    truth = np.zeros((20, 20), np.uint8)
    truth[:, 8:12] = 255
    truth[:, 12:] = 1  # the true edge is somewhere in the void; the nearest label puts it in the middle
    prediction = np.where(np.arange(20) >= 10, 1, 0).astype(np.uint8)[None].repeat(20, 0)
    evaluation = BoundaryEvaluation(2, width=0.1)  # a band of 3 pixels
    evaluation.add(truth, prediction)
    assert evaluation.miou == 1.0
    everything = np.full((20, 20), 255, np.uint8)
    evaluation.add(everything, prediction)  # nothing is known, nothing is counted
    assert evaluation.miou == 1.0
    with pytest.raises(ValueError, match="differ in shape"):
        evaluation.add(truth, prediction[:10])


# ---- tables

ROW = {"what": "CAM seed", "split": "train", "images": 8, "crf": False, "seed": 0, "method": "cam", "miou": 40.0}


def finish(config: Config, name: str, rows: list[dict], method: str = "") -> store.StageFolder:
    """Begin and finish a stage without files."""
    return made.finish(made.begin(config, name, ("cam_*", "seed"), method=method), rows)


def test_cells_hold_seeds_and_gains_only_those_that_both_have():
    rows = [
        ROW,
        ROW | {"seed": 1, "miou": 44.0},
        ROW | {"method": "rib", "seed": 1, "miou": 45.0},
        ROW | {"method": "vwe", "seed": 2, "miou": 90.0},
    ]
    line = comparison.side_by_side(rows)["CAM seed"]
    assert line == {"cam": {0: 40.0, 1: 44.0}, "rib": {1: 45.0}, "vwe": {2: 90.0}}
    assert comparison.gains(line) == {"rib": {1: 1.0}} and comparison.gains(line, "vwe") == {}
    assert comparison.cell_text(line["cam"]) == "42.0 ± 2.8 (2)"


@pytest.mark.parametrize(
    "other, words",
    [
        ({"images": 7}, "7 images of 'train' without CRF, cam .seed 0. has 8"),
        ({"split": "val"}, "8 images of 'val'"),
        ({"crf": True}, "with CRF"),
        ({"method": "cam"}, "two values for seed 0"),
    ],
)
def test_mixed_rows_are_refused_with_the_reason(other, words):
    with pytest.raises(ValueError, match=words):
        comparison.side_by_side([ROW, ROW | {"method": "yours"} | other])
    assert comparison.side_by_side([ROW, ROW | {"what": "another line", "method": "yours"} | other])


def test_seeds_with_other_settings_are_refused(small_config):
    runs = {seed: small_config.model_copy(update={"seed": seed}) for seed in range(3)}
    for seed in range(2):
        finish(runs[seed], "maps", [])
    folder = run_folder_of(small_config)
    comparison.check_settings(store.finished_stages(folder))
    finish(runs[2].model_copy(update={"cam_epochs": 5}), "maps", [])
    with pytest.raises(ValueError, match="cam, stage maps: cam_epochs is 5 for seed 2 and 2 for seed 0; run one of them again"):
        comparison.check_settings(store.finished_stages(folder))


def test_stages_of_reports_and_stale_ones_do_not_count(small_config):
    for name, method in (("maps", "cam"), ("maps.0123456789abcdef", "cam"), ("overview", "report"), ("check", "data")):
        finish(small_config, name, [], method)
    made.begin(small_config, "seeds")  # not finished
    found = store.finished_stages(run_folder_of(small_config))
    assert {key: list(group) for key, group in found.items()} == {("cam", 0): ["maps"]}


def test_true_masks_score_everything(miniature, small_config):
    data = load_dataset(miniature, "train")
    stage = made.begin(small_config, "pseudo_masks")
    for image_id in data.ids:  # the void border gets the nearest label
        mask = data.mask(image_id)
        nearest = distance_transform_edt(mask == 255, return_distances=False, return_indices=True)
        files.write_mask(stage.folder / f"{image_id}.png", mask[tuple(nearest)])
    row = ROW | {"what": "IRN pseudo-mask", "pixel_labels_chose": ""}
    made.finish(stage, [row], 8)
    half = comparison.evenly_spaced(data, 4)
    assert half.ids == (data.ids[0], data.ids[2], data.ids[5], data.ids[7]) and half.labels.shape == (4, 3)
    assert comparison.evenly_spaced(data, 100).ids == data.ids
    counted = comparison.count_anew(stage, row, half)
    assert [counted[name] for name in ("miou", "precision", "recall", "boundary_iou", "images")] == [100, 100, 100, 100, 4]
    assert len(counted["class_iou"]) == 4 and counted["class_boundary_iou"][0] is None
    with pytest.raises(ValueError, match="belong to split 'train', the data to 'val'"):
        comparison.count_anew(stage, row, load_dataset(miniature, "val"))


def test_maps_are_cut_at_their_own_threshold(miniature, small_config):
    data = load_dataset(miniature, "train")
    stage = made.begin(small_config, "maps")
    for image_id in data.ids:
        height, width = data.mask(image_id).shape
        scores = np.full((1, (height - 1) // 4 + 1, (width - 1) // 4 + 1), 0.5, np.float32)
        files.write_maps(stage.folder / f"{image_id}.npz", np.array([1]), scores, (height, width))
    row = ROW | {"what": "CAM at its best threshold"}
    made.finish(stage, [row])
    for threshold, label in ((0.4, 2), (0.6, 0)):
        prediction = comparison.label_map_of(stage, row | {"threshold": threshold}, data)(data.ids[0])
        assert prediction.shape == data.mask(data.ids[0]).shape and (prediction == label).all()


def test_thresholds_and_costs_are_read_from_the_records(small_config):
    curve = {
        "what": "CAM at its best threshold",
        "miou": 50.0,
        "threshold": 0.3,
        "thresholds": [0.1, 0.2, 0.3, 0.4],
        "curve": [40.0, 49.0, 50.0, 45.0],
    }
    for seed in (0, 1):
        finish(small_config.model_copy(update={"seed": seed}), "maps", [curve])
    stages = store.finished_stages(run_folder_of(small_config))
    assert comparison.threshold_table(stages, 0.15) == [["cam", "50.0 ± 0.0", "0.30 / 0.30", "5.5 ± 0.0", "0.10 ± 0.00", "2"]]
    ((method, name, fastest, all_runs, speed, memory, device),) = comparison.cost_table(stages)
    assert (method, name, speed, device) == ("cam", "maps", "–", "cpu") and int(memory) > 0
    assert len(all_runs.split(" / ")) == 2 and all_runs.startswith(fastest)


def test_markdown_tables_keep_their_columns():
    assert results.markdown_table(["a", "b"], [["1 | 2", "3"]]).splitlines() == ["| a | b |", "|---|---|", "| 1 \\| 2 | 3 |"]
