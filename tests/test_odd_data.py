"""Data as people have them go through all notebooks: one class, no masks, pairs of classes, four images, images of none."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data_prep import custom
from tests.refresh_notebooks import source_notebook
from tests.small_chain import SETTINGS, make_data
from tests.warm import run_cells
from wsss_lib.data.dataset import load_dataset
from wsss_lib.parameters import PRESETS, PROJECT_ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

CHAIN = ("02_d", "10_", "70_", "75_", "80_", "90_")
METHODS = {"20_": "rib", "30_": "drs", "40_": "amn", "50_": "vwe", "60_": "sccam"}
REPORT = ("00_", "95_")


def one_class_without_masks(toy: Path, root: Path) -> None:
    """Twelve images of one class, which all of them have."""
    data = load_dataset(toy, "train")
    photographs = {name: custom.Photograph(data.image_path(name), ("creature",)) for name in data.ids[:12]}
    custom.make_dataset(photographs, ("creature",), root)


def pairs_and_nothing_with_few_masks(toy: Path, root: Path) -> None:
    """Images of both classes, every fifth of none, and masks for half of them."""
    data, folder = load_dataset(toy, "train"), root.parent / "masks"
    folder.mkdir()
    photographs = {}
    for number, name in enumerate(data.ids[:15]):
        present = ("cat", "dog") if number % 5 else ()
        photographs[name] = custom.Photograph(data.image_path(name), present)
        if number % 2:
            mask = np.zeros(data.mask(name).shape, np.uint8)
            if present:
                mask[5:20, 2:20], mask[5:20, 25:40] = 1, 2
            Image.fromarray(mask).save(folder / f"{name}.png")
    custom.make_dataset(photographs, ("cat", "dog"), root, masks=folder)


def four_images(toy: Path, root: Path) -> None:
    """Four images of three classes, without masks."""
    data = load_dataset(toy, "train")
    photographs = {
        name: custom.Photograph(data.image_path(name), ("abc"[number % 3],)) for number, name in enumerate(data.ids[:4])
    }
    custom.make_dataset(photographs, tuple("abc"), root)


def run_notebook(prefix: str, values: dict, out: Path) -> None:
    """Run a notebook from its source with these parameters; it must go to its end and print no NaN as a score."""
    (script,) = (PROJECT_ROOT / "notebooks").glob(f"{prefix}*.py")
    notebook = source_notebook(script)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += "\n" + "\n".join(f"{name} = {value!r}" for name, value in values.items())
    done = run_cells([cell.source for cell in notebook.cells if cell.cell_type == "code"], out)
    assert done.returncode == 0, f"{script.stem}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert not re.search(r"mIoU +nan", done.stdout)


@pytest.mark.parametrize("make", [one_class_without_masks, pairs_and_nothing_with_few_masks, four_images])
def test_all_notebooks_go_to_their_end(make, tmp_path):
    make(make_data(tmp_path / "toy"), tmp_path / "data")
    smoke = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
    small = {name: list(value) if isinstance(value, tuple) else value for name, value in SETTINGS.items()}
    small |= {"dataset": "odd", "data_root": str(tmp_path / "data"), "runs_root": str(tmp_path / "runs"), "amn_epochs": 1}
    for prefix in CHAIN:
        run_notebook(prefix, smoke | small, tmp_path)
    for prefix, method in METHODS.items():
        own = PRESETS / "methods" / f"smoke.{method}.yaml"
        values = yaml.safe_load(own.read_text()) if own.is_file() else {}
        run_notebook(prefix, smoke | values | small | {"method": method, "drs_background": "constant"}, tmp_path)
    for prefix in REPORT:
        run_notebook(prefix, smoke | small, tmp_path)
