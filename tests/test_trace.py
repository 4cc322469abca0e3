"""Whole short trainings of the official programs, made again step by step in double precision."""

from pathlib import Path

import numpy as np
import pytest

from tests.trace_adapters import ADAPTERS, distances

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
    assert set(ADAPTERS) == set(CASES)
