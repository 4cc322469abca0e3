"""Whole short trainings of the official programs, made again step by step in double precision."""

from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from tests import trace_adapters
from tests.trace_adapters import ADAPTERS, Names, distances
from wsss_lib.config import Config
from wsss_lib.presets import preset_config

FOLDER = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("trace__*.npz"))


def arrays_of(case: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{case}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.system
@pytest.mark.parametrize("case", CASES)
def test_every_step_is_that_of_the_official_program(case):
    arrays = arrays_of(case)
    found = distances(arrays, ADAPTERS[case](arrays))
    assert set(found) == {name for name in arrays if name.startswith("out_")}
    assert max(found.values()) <= 1, found


def test_every_trace_has_an_adapter():
    assert set(ADAPTERS) == set(CASES) == set(WRONG)


# ---- what a trace catches: one setting spoiled, seen in the first step or two

WRONG: dict[str, tuple[int, dict]] = {
    "trace__amn": (1, {"amn_smoothing": 0.0}),
    "trace__deeplab_v2": (2, {"deeplab_rate_every": 1}),  # as VWE's program has it
    "trace__deeplab_v2_single": (1, {"deeplab_loss": "balanced"}),
    "trace__deeplab_v3plus": (1, {"deeplab_loss": "balanced"}),
    "trace__drs_classifier": (2, {"drs_epochs": 3}),  # the staircase belongs to the whole training
    "trace__drs_refine": (2, {"drs_refine_epochs": 3}),
    "trace__irn": (1, {"irn_train_radius": 5}),  # that of the walk
    "trace__irn_cam": (2, {"cam_frozen_stages": 0}),
    "trace__psa": (1, {"affinitynet_radius": 4}),
    "trace__rib": (1, {"rib_region_threshold": 1.1}),  # average pooling
    "trace__sccam": (2, {"sccam_schedule_epochs": 61}),
    "trace__vwe": (1, {"vwe_gamma": 0.0}),  # of VWL-L's first upload
    "trace__vwl_l": (1, {"vwe_temperature": 2.0}),
}


def first_steps(name: str, case: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Cut a trace: what it expects of its first steps stays, what it expects of the end goes; of RIB's runs the shortest."""
    steps = int(case["in_steps"])
    given = {key: value for key, value in case.items() if key.startswith("in_")}
    expected = {key: value for key, value in case.items() if key.startswith("out_") and "fingerprint" not in key}
    if name == "trace__rib":
        return given | {key: value for key, value in expected.items() if key.endswith("_stop")}
    single = {key: value[:count] for key, value in expected.items() if len(value) == steps}
    return given | single | {"in_steps": np.array(count)}


def furthest(name: str, case: dict[str, np.ndarray], **wrong) -> float:
    """Return the greatest distance of a cut trace, in units of what is allowed, with some settings otherwise."""
    adapter = partial(trace_adapters.rib_tuning, runs=("stop",)) if name == "trace__rib" else ADAPTERS[name]
    settings = partial(preset_with, wrong)
    with (
        patch.object(trace_adapters, "preset_config", settings),
        patch.object(Names, "fingerprints", lambda *_: np.zeros((1, 6))),  # they take longer than two steps
    ):
        found = distances(case, adapter(case))
    assert set(found) == {key for key in case if key.startswith("out_")}
    return max(found.values())


def preset_with(wrong: dict, *names: str, **values) -> Config:
    return preset_config(*names, **values | wrong)


@pytest.mark.system
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_caught(name):
    count, wrong = WRONG[name]
    case = first_steps(name, arrays_of(name), count)
    assert furthest(name, case) <= 1 < furthest(name, case, **wrong)
