"""docs/adding_a_method.md: every block is applied to a copy of the project, and the new method runs there on small images."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.refresh_notebooks import source_notebook
from wsss_lib.parameters import PROJECT_ROOT

PAGE = (PROJECT_ROOT / "docs/adding_a_method.md").read_text(encoding="utf-8")

# Runs in the copy: CAM's classifier and maps on the miniature data set, then both notebooks, each twice and with another value.
RUN = """
import json
from pathlib import Path
from tests.conftest import write_miniature
from tests.refresh_notebooks import source_notebook
from wsss_lib.config import Config
from wsss_lib.core.stage import run
from wsss_lib.methods import cam

root = Path.cwd()
write_miniature(root / "small")
values = dict(dataset="miniature", data_root="small", num_workers=0, device="cpu", cam_crop=32, cam_long_side_min=36,
              cam_long_side_max=48, cam_batch_size=4, cam_epochs=2, cam_scales=[1.0])
for stage in (cam.CLASSIFIER, cam.MAPS):
    run(stage, Config.from_values(values))

def run_notebook(name, **overrides):
    names = {}
    for cell in source_notebook(root / f"notebooks/{name}.py").cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names.update(values | overrides)
    return names["maps"]

for name, other in (("65_quantile", {"quantile_level": 0.5}), ("66_hideseek", {"hideseek_epochs": 1})):
    maps = run_notebook(name)
    row, key, again = maps.metrics[0], maps.files.key(), run_notebook(name).files.key()
    changed = run_notebook(name, **other).files.key()
    print(json.dumps(["RESULT", maps.folder.relative_to(root).as_posix(), row["images"], row["miou"] > 10,
                      again == key != changed]))
"""


def blocks() -> list[tuple[str, str]]:
    """Return (file, text) of every block that belongs to a file."""
    return re.findall(r"^File `([^`]+)`, new:\n\n```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with the page's methods."""
    root = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(
        PROJECT_ROOT,
        root,
        ignore=shutil.ignore_patterns(
            "__pycache__", ".git", ".venv", "runs", "data", "build", ".snakemake", ".hypothesis", "*.egg-info"
        ),
    )
    for path, text in blocks():
        file = root / path
        assert not file.exists(), f"{path} is there already"
        file.write_text(text)
    for path in sorted((root / "notebooks").glob("6[56]_*.py")):
        notebook = source_notebook(path)
        for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
            cell.execution_count = number  # as if it had been run
        nbformat.write(notebook, path.with_suffix(".ipynb"))
    return root


def in_copy(copy: Path, *command: str, timeout: float = 300) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(copy), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, timeout=timeout
    )


def test_each_method_is_one_file_one_notebook_and_its_test():
    assert [path for path, _ in blocks()] == [
        f"{folder}{name}.py"
        for method, number in (("quantile", 65), ("hideseek", 66))
        for folder, name in (("wsss_lib/methods/", method), ("notebooks/", f"{number}_{method}"), ("tests/test_", method))
    ]


@pytest.mark.system
def test_the_methods_run_in_a_copy_of_the_project(copy):
    run = in_copy(copy, "-c", RUN)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
    results = [line for line in run.stdout.splitlines() if "RESULT" in line]
    assert results == [
        f'["RESULT", "runs/miniature/{method}/seed0/maps", 8, true, true]' for method in ("quantile", "hideseek")
    ]
    assert "plain lines = library" in run.stdout and run.stdout.count("exercise 1: not answered yet") == 6


@pytest.mark.system
def test_pipeline_and_costs_know_the_methods(copy):
    run = in_copy(
        copy, "-m", "snakemake", "--dry-run", "--quiet", "host", "--config", "preset=smoke", "methods=[quantile,hideseek]"
    )
    assert run.returncode == 0 and "65_quantile" in run.stdout and "66_hideseek" in run.stdout, run.stderr[-2000:]
    run = in_copy(copy, "-m", "wsss_lib.costs", "voc12", "--methods", "quantile", "hideseek")
    assert run.returncode == 0, run.stderr[-2000:]
    assert "| quantile | maps (not counted) |" in run.stdout and "| hideseek | network |" in run.stdout


@pytest.mark.system
@pytest.mark.timeout(1200)
def test_the_whole_fast_suite_passes_in_the_copy(copy):
    run = in_copy(
        copy,
        "-m",
        "pytest",
        "tests",
        "-q",
        "-m",
        "not system",
        "-p",
        "no:cacheprovider",
        "--deselect",
        "tests/test_adding_a_method.py",
        timeout=1100,
    )
    assert run.returncode == 0, run.stdout[-4000:]


@pytest.mark.system
def test_the_new_files_keep_the_style(copy):
    run = in_copy(copy, "-m", "ruff", "check", *(path for path, _ in blocks()))
    assert run.returncode == 0, run.stdout
