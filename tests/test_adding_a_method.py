"""docs/adding_a_method.md: every block is applied to a copy of the project, and the new method runs there on small images."""

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.refresh_notebooks import source_notebook
from wsss_lib.parameters import PROJECT_ROOT

PAGE = (PROJECT_ROOT / "docs/adding_a_method.md").read_text(encoding="utf-8")

# Runs in the copy: CAM's classifier and maps on the miniature data set, then the page's test, doctest and notebook.
RUN = """
import doctest, json, sys
from pathlib import Path
from tests.conftest import write_miniature
from tests.refresh_notebooks import source_notebook

from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import best_threshold_row
from wsss_lib.data.dataset import open_data
from wsss_lib.methods.cam import build_classifier
from wsss_lib.methods.cam import cam_localization
from wsss_lib.methods.cam import train_classifier
from wsss_lib.core import store, files
from wsss_lib.config import Config

root = Path.cwd()
write_miniature(root / "small")
values = dict(dataset="miniature", data_root="small", num_workers=0, device="cpu", cam_crop=32, cam_long_side_min=36,
              cam_long_side_max=48, cam_batch_size=4, cam_epochs=2, cam_scales=[1.0])
config = Config.from_values(values)
data = open_data(config, "train")
net = build_classifier(config, data.num_classes)
stage = store.begin_stage(config, "classifier", ("cam_",), {})
train_classifier(net, data, config, stage.folder)
files.write_tensors(stage.folder / "weights.safetensors", net.state_dict())
stage.finish([])
maps = store.begin_stage(config, "maps", ("cam_",), {"classifier": stage})
make_maps(cam_localization(net, config), data, config, maps.folder)
maps.finish([best_threshold_row(data, maps.folder)])

from tests import test_quantile
from wsss_lib.methods import quantile
tried = [check() for name, check in vars(test_quantile).items() if name.startswith("test_")]
failures, examples = doctest.testmod(quantile)
assert not failures

def run_notebook(**overrides):
    names = {}
    for cell in source_notebook(root / "notebooks/65_quantile.py").cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names.update(values | overrides)
    return names

names = run_notebook()
again = run_notebook()["maps"].record()
key = json.loads((names["maps"].folder / "begun.json").read_text())["key"]
other = json.loads((run_notebook(quantile_level=0.5)["maps"].folder / "begun.json").read_text())["key"]
row = names["maps"].metrics()[0]
print(json.dumps(["RESULT", len(tried), examples, names["maps"].folder.relative_to(root).as_posix(), row["images"],
                  row["miou"] > 10, again["images_per_second"] is not None, key != other]))
"""


def blocks() -> list[tuple[str, str, str]]:
    """Return (file, language, text) of every block that belongs to a file; several blocks may follow one file's name."""
    found, path = [], ""
    for match in re.finditer(r"^File `([^`]+)`|^```(\w*)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL):
        path = match[1] or path
        if match[2] in ("python", "diff"):
            found.append((path, match[2], match[3]))
    return found


def patched(text: str, diff: str) -> str:
    """Apply a block of lines that start with a blank, a minus or a plus; the old lines must stand in the text exactly once."""
    lines = diff.splitlines()
    old = "\n".join(line[1:] for line in lines if line[0] in " -")
    new = "\n".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(old) == 1, f"docs/adding_a_method.md changes lines that are not there (any more):\n{old}"
    return text.replace(old, new)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with the page's method."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("wsss_lib", "tests", "data_prep"):
        shutil.copytree(PROJECT_ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    (root / "notebooks").mkdir()
    for path, language, text in blocks():
        file = root / path
        assert file.exists() == (language == "diff"), f"{path} is {'not there' if language == 'diff' else 'there already'}"
        file.write_text(patched(file.read_text(), text) if language == "diff" else text)
    return root


def test_the_page_makes_a_method_a_notebook_and_a_test():
    files = [path for path, _, _ in blocks()]
    assert files == ["wsss_lib/config.py", "wsss_lib/config.py", "wsss_lib/methods/quantile.py", "notebooks/65_quantile.py",
                     "tests/test_quantile.py"]


def test_the_method_runs_in_a_copy_of_the_project(copy):
    environment = os.environ | {"PYTHONPATH": str(copy), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", RUN], cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
    result = next(line for line in run.stdout.splitlines() if "RESULT" in line)
    assert result == '["RESULT", 3, 1, "runs/miniature/quantile/seed0/maps", 8, true, true, true]'
    assert "plain lines = library" in run.stdout and "exercise 1: not answered yet" in run.stdout


def test_the_pipeline_would_take_the_notebook():
    pattern = re.search(r'Path\("notebooks"\)\.glob\("([^"]+)"\)', (PROJECT_ROOT / "Snakefile").read_text())[1]
    assert fnmatch("65_quantile.ipynb", pattern)
    assert not list((PROJECT_ROOT / "notebooks").glob("65_*")), "the number of the example is taken: give it another one"


def test_the_new_files_keep_the_style(copy):
    shutil.copy(PROJECT_ROOT / "pyproject.toml", copy)
    files = [path for path, language, _ in blocks() if language == "python"]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", *files]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    for cell in source_notebook(copy / "notebooks/65_quantile.py").cells:
        assert cell.cell_type == "markdown" or len(cell.source.splitlines()) <= 20
