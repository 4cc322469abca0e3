"""Real notebooks, run by the Snakefile in several shards or with several training processes, on forty images.

They take minutes, as every shard of every stage is a kernel of its own (docs/cluster.md has the results):

    WSSS_SHARED_NOTEBOOKS=1 python -m pytest tests/test_shared_notebooks.py -s
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import environment, git, second_checkout
from tests.small_chain import everything, make_data, write_preset

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.skipif("WSSS_SHARED_NOTEBOOKS" not in os.environ, reason="takes minutes, and a variable"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A checkout with the preset `micro`."""
    folder = tmp_path_factory.mktemp("shared")
    checkout = second_checkout(folder)
    write_preset(checkout, make_data(folder / "data"))
    return checkout


@pytest.fixture(scope="module")
def alone(root) -> dict[str, bytes]:
    """All files of CAM's chain up to its pseudo-masks, made by one run and one process."""
    return chain(root, root.parent / "alone")


def chain(root: Path, runs: Path, *named: str) -> dict[str, bytes]:
    """Run CAM's chain up to its pseudo-masks; return its files without the executed notebooks, which hold times."""
    goal = f"{runs}/micro/cam/seed0/pseudo_masks/notebook.ipynb"
    command = [
        sys.executable,
        "-m",
        "snakemake",
        goal,
        "--cores",
        "1",
        "--nolock",
        "--rerun-incomplete",
        "--config",
        "preset=micro",
        f"runs_root={runs}",
        *named,
    ]
    run = subprocess.run(command, cwd=root, env=environment(root), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout[-3000:]
    return {name: content for name, content in everything(runs).items() if not name.endswith("notebook.ipynb")}


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_make_the_same_bytes(root, alone, shards):
    found = chain(root, root.parent / f"shards {shards}", f"shards={shards}", "launcher=env")
    assert sorted(found) == sorted(alone) and len(found) > 100
    assert [name for name in alone if found[name] != alone[name]] == []
    assert git(root, "status", "--porcelain").split() == ["??", "configs/micro.yaml"]


def test_two_processes_train_together_under_papermill(root, alone):
    """Each has half of a batch for its batch normalization, so that the weights are others; the record says what was done."""
    found = chain(root, root.parent / "processes", "processes=2")
    assert sorted(found) == sorted(alone)
    log = "micro/cam/seed0/classifier/log.jsonl"
    assert len(found[log].splitlines()) == len(alone[log].splitlines())
