"""Every benchmark in its quick form: both formulations agree. (Whether ours is faster, `make bench` says.)"""

import importlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsss_lib.parameters import PROJECT_ROOT

pytestmark = pytest.mark.system

FOLDER = PROJECT_ROOT / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Return a function that imports a module of `benchmarks/` as the command line does, and forgets it afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in {path.stem for path in FOLDER.glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]


def test_make_bench_runs_all_of_them(benchmark):
    others = {"measuring", "run_all"} | {path.stem for path in FOLDER.glob("*_ablations.py")}
    assert set(benchmark("run_all").NAMES) == {path.stem for path in FOLDER.glob("*.py")} - others


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        "confusion",
        "threshold_sweep",
        "stored_maps_sweep",
        "map_storage",
        "input_pipeline",
        "path_affinity",
        "random_walk",
        "affinitynet_walk",
        "visual_words",
        "drs",
        "kmeans",
        "inference",
        "rib",
        "crf",
        "coco_preparation",
    ],
)
def test_both_formulations_agree(benchmark, name):
    rows = benchmark(name).measure(quick=True)  # raises when they do not
    assert rows and all(row.ours > 0 for row in rows)
    if name != "coco_preparation":
        assert rows[0].plain > 0 and rows[0].ratio == pytest.approx(rows[0].plain / rows[0].ours) and rows[0].difference >= 0


def test_a_difference_and_a_missed_goal_are_noticed(benchmark):
    measuring = benchmark("measuring")
    same = measuring.Case(
        "case", (1, 2, 3), lambda size: (lambda: [np.ones(size)], lambda: [torch.ones(size)]), 1e-6, goal=1e9, pairs=1
    )
    rows = measuring.compare(same)
    assert [row.size for row in rows] == ["1", "2", "3"] and [row.goal for row in rows] == [None, None, 1e9]
    assert [row.missed for row in rows] == [False, False, True] and "MISSED" in measuring.table(rows)
    for wrong in (lambda: [np.full(1, 1.001)], lambda: [np.ones(2)], lambda: [], lambda: [np.full(1, np.nan)]):
        with pytest.raises(RuntimeError, match="formulations"):
            measuring.compare(replace(same, prepare=lambda size, wrong=wrong: (lambda: [np.ones(1)], wrong)), quick=True)


def test_memory_is_seen():
    """In a fresh process: this one may hold as much memory already, free for another use."""
    code = "import measuring, numpy as np; print(measuring.peak_mib(lambda: np.ones((64, 2**20), np.uint8)))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True).stdout
    assert 50 <= float(printed) < 200
