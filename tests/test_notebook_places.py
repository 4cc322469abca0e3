"""A notebook changes nothing in the repository, and runs from any folder, in any folder, and out of a read-only checkout.

Two cheap notebooks stand for all, which have the same first cells; the pipeline runs the others by the same command.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import small_chain
from tests.checkout import environment, git, second_checkout
from tests.test_faults import without_the_powers_of_root
from wsss_lib.core import stage
from wsss_lib.methods import cam

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The images of the small chain."""
    return small_chain.make_data(tmp_path_factory.mktemp("data") / "micro")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout of its own."""
    return second_checkout(tmp_path)


def run_notebook(root: Path, name: str, data: Path, elsewhere: Path, *options: str, **how) -> None:
    """Run a notebook from a folder outside the checkout."""
    elsewhere.mkdir()
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(root / "notebooks" / f"{name}.ipynb"),
        "out.ipynb",
        "-k",
        "python3",
        "--no-progress-bar",
        "--log-level",
        "ERROR",
        "--cwd",
        str(elsewhere),
        "-r",
        "dataset",
        "micro",
        "-r",
        "data_root",
        str(data),
        *options,
    ]
    done = subprocess.run(command, cwd=elsewhere, env=environment(root), text=True, capture_output=True, **how)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_notebook_leaves_the_repository_unchanged(checkout, data, tmp_path):
    run_notebook(checkout, "02_datasets_and_labels", data, tmp_path / "elsewhere")
    assert git(checkout, "status", "--porcelain") == ""
    assert (checkout / "runs/micro/data/seed0/check/run.json").is_file()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["out.ipynb"]


def test_a_notebook_runs_out_of_a_checkout_that_is_read_only(checkout, data, tmp_path):
    config = small_chain.config_of(data, tmp_path / "runs", "cam")
    for part in cam.STAGES:
        stage.run(part, config)
    subprocess.run(["chmod", "--recursive", "a-w", str(checkout)], check=True)
    try:
        run_notebook(
            checkout,
            "70_seeds",
            data,
            tmp_path / "elsewhere",
            "-r",
            "runs_root",
            str(tmp_path / "runs"),
            "-p",
            "num_workers",
            "0",
            preexec_fn=without_the_powers_of_root,
        )
    finally:
        subprocess.run(["chmod", "--recursive", "u+w", str(checkout)], check=True)
    assert git(checkout, "status", "--porcelain") == "" and not list(checkout.rglob("__pycache__"))
    assert (tmp_path / "runs/micro/cam/seed0/seeds/run.json").is_file()
