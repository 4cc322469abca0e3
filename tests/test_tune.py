"""Studies: which images tune, the score without a threshold, the same trials after a kill, and what is measured afterwards."""

import numpy as np
import pytest

from data_prep import subset as subset_command
from tests import small_chain
from wsss_lib import tune
from wsss_lib.data.dataset import load_dataset, open_data
from wsss_lib.errors import DataError
from wsss_lib.methods import METHODS
from wsss_lib.ops.thresholds import ThresholdSweep
from wsss_lib.parameters import Range


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_chain.make_data(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture
def study(data, tmp_path, monkeypatch):
    """Return a function that opens RIB's study, again and again the same one in the same folder."""
    monkeypatch.setattr(tune, "TUNING_IMAGES", 8)
    monkeypatch.setattr(tune.split_of_tuning, "__defaults__", (8, 0))
    values = small_chain.SETTINGS | {"rib_companions": 2, "rib_iterations": 2, "cam_epochs": 1, "data_root": str(data)}
    config = small_chain.config_of(data, tmp_path, "rib")
    monkeypatch.setattr(
        tune, "preset_config", lambda preset, method, **more: type(config).from_values(values | {"method": method} | more)
    )
    monkeypatch.setattr(
        METHODS["rib"], "TUNED", {"rib_learning_rate": Range(1e-5, 1e-1, log=True), "rib_iterations": Range(1, 4)}
    )
    return lambda folder="runs", method="rib": tune.Study(method, "micro", runs_root=str(tmp_path / folder), dataset="micro")


def test_an_image_tunes_or_measures_by_its_name_alone(data):
    split = open_data(small_chain.config_of(data, data, "cam"), "train")
    tuning, measuring = tune.split_of_tuning(split, 10)
    assert len(tuning) == 10 and len(measuring) == 20 and not set(tuning.ids) & set(measuring.ids)
    few = tune.split_of_tuning(split, 10, 6)[1]
    assert len(few) == 6 and set(few.ids) <= set(measuring.ids)
    shuffled = split.part(slice(None, None, -1))
    assert set(tune.split_of_tuning(shuffled, 10)[0].ids) == set(tuning.ids)
    assert all((tuning.label(name) == split.label(name)).all() for name in tuning.ids)
    with pytest.raises(DataError, match="30 images have masks, and tuning on 16 needs at least 32"):
        tune.split_of_tuning(split, 16)


def test_precision_over_recall_by_hand():
    """Two object pixels at scores 0.9 and 0.3 and a background pixel at 0.6: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    sweep = ThresholdSweep(2, [0.1, 0.5, 0.8])
    sweep.add(np.array([[1, 1, 0]]), np.array([[[0.9, 0.3, 0.6]]], np.float32), np.array([0]))
    assert tune.pixel_precision_recall(sweep) == pytest.approx(0.5 * 1 + 0.5 * (1 / 2 + 2 / 3) / 2)
    perfect = ThresholdSweep(2, [0.1, 0.5])
    perfect.add(np.array([[1, 0]]), np.array([[[0.9, 0.0]]], np.float32), np.array([0]))
    assert tune.pixel_precision_recall(perfect) == 1
    wrong_class = ThresholdSweep(3, [0.1, 0.5])
    wrong_class.add(np.array([[2, 0]]), np.array([[[0.9, 0.0]]], np.float32), np.array([0]))
    assert tune.pixel_precision_recall(wrong_class) == 0


@pytest.mark.system
def test_a_study_that_was_stopped_makes_the_same_trials(study, monkeypatch):
    whole = study()
    whole.tune(6)
    expected = [(trial.params, trial.value) for trial in whole.finished()]
    assert expected[0][0] == {"rib_learning_rate": whole.config.rib_learning_rate, "rib_iterations": 2}
    assert len({tuple(values.items()) for values, _ in expected}) == 6

    stopped, calls, make = study("stopped"), [], tune.make_some_maps

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) in (7, 14):
            raise KeyboardInterrupt
        make(*arguments)

    monkeypatch.setattr(tune, "make_some_maps", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stopped.tune(6)
        stopped = study("stopped")
    stopped.tune(6)
    assert [(trial.params, trial.value) for trial in stopped.finished()] == expected

    best = stopped.best
    assert best.value == max(value for _, value in expected)
    (row,) = stopped.measure([0])
    assert row["values"] == best.params and row["images"] == 22 and 0 <= row["miou"] <= row["best_miou"] <= 100
    assert row["threshold"] == best.user_attrs["threshold"] and stopped.measure([0]) == [row]
    assert stopped.table().count("\n") >= 7
    assert 0 <= row["one_class"] <= 100 and set(row["iou"]) <= {"background", *stopped.measuring.classes}
    assert len(row["curve"]) == len(tune.THRESHOLDS) and max(row["curve"]) == pytest.approx(row["best_miou"], abs=1e-3)
    (refined,) = stopped.refine()
    assert refined["miou"] == row["miou"] and 0 < refined["crf_miou"] <= 100 and stopped.refine() == [refined]
    assert min(abs(refined["crf_threshold"] - row["threshold"] - shift) for shift in tune.CRF_SHIFTS) < 0.01
    summary = stopped.summary()
    assert [trial["values"] for trial in summary["trials"]] == [values for values, _ in expected]
    assert summary["measured"] == [refined]


@pytest.mark.system
def test_a_training_that_diverges_is_a_trial_without_success(study, monkeypatch):
    monkeypatch.setattr(METHODS["cam"], "TUNED", {"cam_learning_rate": Range(1e8, 1e9, log=True)})
    diverging = study("diverging", "cam")
    diverging.tune(1)
    (trial,) = diverging.finished()
    assert trial.value == 0
    with pytest.raises(DataError, match="no trial is finished; run the study first, with --trials"):
        diverging.measure([0])


def test_every_method_names_what_is_tuned():
    tuned = {name: method for name, method in METHODS.items() if hasattr(method, "TUNED")}  # a new method need not
    assert set(tuned) >= {"cam", "rib", "drs", "amn", "vwe", "sccam"}
    for name, method in tuned.items():
        config = type(small_chain.config_of("data", "runs", name))
        assert 3 <= len(method.TUNED) <= 5, name
        for parameter, (low, high, _) in method.TUNED.items():
            for value in (low, high):
                config.from_values({parameter: value})


def test_a_subset_of_classes_by_hand(data, tmp_path):
    source = load_dataset(data, "train")
    words = [source.classes[3], source.classes[0]]
    counts = subset_command.make_subset(data, tmp_path / "some", words)
    made = load_dataset(tmp_path / "some", "train")
    kept = [name for name in source.ids if source.label(name)[[3, 0]].any()]
    assert made.classes == tuple(words) and set(made.ids) == set(kept) and counts["train"] == len(kept)
    for name in kept:
        assert made.label(name).tolist() == source.label(name)[[3, 0]].tolist()
        old, new = source.mask(name), made.mask(name)
        assert ((new == 1) == (old == 4)).all() and ((new == 2) == (old == 1)).all() and ((new == 255) == (old == 255)).all()
    with pytest.raises(DataError, match="there is no class 'unicorn'; take some of"):
        subset_command.make_subset(data, tmp_path / "none", ["unicorn"])
