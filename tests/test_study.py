"""Tables of a saved study by hand."""

import numpy as np
import pytest

from wsss_lib import study as studies
from wsss_lib.core.files import write_json
from wsss_lib.errors import DataError


def saved(*values, threshold=0.3):
    rows = [
        {
            "seed": seed,
            "miou": value,
            "best_miou": value + 1,
            "area": value + 2,
            "one_class": value,
            "several_classes": None,
            "threshold": threshold,
        }
        for seed, value in enumerate(values)
    ]
    trials = [
        {"score": score, "seconds": 10.0, "values": {"cam_learning_rate": 0.01}} for score in (30.0, None, 0.0, 35.0, 31.0)
    ]
    return {"trials": trials, "measured": rows}


def test_a_gain_counts_where_its_whole_interval_is_on_one_side():
    study = {
        "cam": saved(40, 42, 41),
        "rib": saved(45, 47, 46.1),
        "amn": saved(45, 30, 60),
        "vwe": saved(30, 31.9, 31),
        "drs": saved(41),
    }
    rows = {row[0]: row[1:] for row in studies.gain_rows(study)}
    assert rows["rib"] == ["+5.0 / +5.0 / +5.1", "+5.03", "+4.89 to +5.18", "helps"]
    assert [rows[name][-1] for name in ("amn", "vwe", "drs")] == ["not shown", "harms", "not shown"]
    assert rows["drs"][2] == "+nan to +nan" and "cam" not in rows


def test_an_interval_of_two_values_by_hand():
    low, high = studies.interval([0.0, 2.0])  # mean 1, standard error 1, t of one degree of freedom 12.706
    assert (low, high) == pytest.approx((1 - 12.7062, 1 + 12.7062), abs=1e-3)
    assert np.isnan(studies.interval([1.0])).all()


def test_trials_that_are_given_up_or_diverge_add_nothing():
    study = {"cam": saved(40)}
    assert studies.best_so_far(study, "cam") == [30, 30, 30, 35, 35]
    assert [row[2] for row in studies.trial_rows(study)] == ["30.0", "given up", "diverged", "35.0", "31.0"]
    assert studies.measured_rows(study) == [["cam", "0.30", "40.0", "41.0", "42.0", "40.0", "–", "–"]]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"cam": 3}', '{"cam": {"trials": []}}', "3"])
def test_what_is_no_study_is_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "study.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"study\.json: no saved study; write one with `python -m wsss_lib.tune METHOD"):
        studies.read(path)


def test_a_saved_study_is_read_as_it_was_written(tmp_path):
    study = {"cam": saved(40, 41) | {"images": 30, "tuning": 10}}
    write_json(tmp_path / "study.json", study)
    assert studies.read(tmp_path / "study.json") == study


def test_refinements_and_networks_are_read_from_beside_the_study(tmp_path):
    assert studies.read_refined(tmp_path / "study.json") == []
    (tmp_path / "study-refined.json").write_text('[{"method": ')
    with pytest.raises(DataError, match=r"study-refined\.json: not valid JSON; remove it"):
        studies.read_refined(tmp_path / "study.json")
    rows = [
        {"method": "cam", "seed": 0, "refinement": "none", "measured": 45.68},
        {"method": "cam", "seed": 0, "refinement": "irn", "measured": 53.57},
        {"method": "rib", "seed": 0, "refinement": "none", "measured": 46.5},  # no IRN yet
        {"method": "truth", "seed": 0, "refinement": "deeplab", "val": 60.0, "val_crf": 63.04},
        {"method": "cam", "seed": 0, "refinement": "deeplab", "val": 50.0, "val_crf": 52.0},
    ]
    write_json(tmp_path / "study-refined.json", rows)
    read = studies.read_refined(tmp_path / "study.json")
    assert studies.refined_rows(read, ["none", "irn"]) == [["cam", "0", "45.7", "53.6"]]
    measured = {"cam": {"measured": [{"seed": 0, "crf_miou": 50.4}, {"seed": 1}]}}
    assert studies.deeplab_rows(measured, read) == [
        ["cam", "0", "50.4", "50.0", "52.0"],
        ["truth", "0", "–", "60.0", "63.0"],
    ]


def test_networks_of_several_seeds_give_paired_gains():
    reached = {"cam": (50.0, 51.0, 52.0), "amn": (53.0, 53.5, 56.0), "rib": (49.0,)}
    rows = [
        {"method": method, "seed": seed, "refinement": "deeplab", "val": 0.0, "val_crf": value}
        for method, values in reached.items()
        for seed, value in enumerate(values)
    ]
    rows.append({"method": "rib", "seed": 1, "refinement": "none", "measured": 46.5})
    # Gains 3, 2.5 and 4: mean 3.17, deviation 0.76, and with t = 4.303 an interval of 1.90 on each side.
    assert studies.gain_rows(studies.networks(rows), "val_crf") == [
        ["amn", "+3.0 / +2.5 / +4.0", "+3.17", "+1.27 to +5.06", "helps"]
    ]
