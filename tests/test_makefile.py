"""`make clean` removes what the project has made, wherever it is called from, and nothing else."""

import shutil
import subprocess
from pathlib import Path

import pytest

from wsss_lib.parameters import PROJECT_ROOT

pytestmark = pytest.mark.system

MADE = (
    "runs/toy/a",
    "runs/demo/a",
    "runs/samples/a",
    "data/toy/a",
    "data/samples/a",
    "build/site/a",
    ".snakemake/a",
    "wsss_lib/deep/__pycache__/a.pyc",
    "tests/__pycache__/a.pyc",
    "x.egg-info/a",
)
KEPT = (
    "runs/voc12/a",
    "data/voc12/__pycache__/a.pyc",
    "data/mine/a",
    "env/lib/__pycache__/a.pyc",
    ".venv/__pycache__/a.pyc",
    "wsss_lib/deep/a.py",
    "photographs/__pycache__/a.pyc",
)


def fill(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def clean(makefile: Path | str, cwd: Path, *words: str) -> int:
    return subprocess.run(["make", "-f", str(makefile), "clean", *words], cwd=cwd, capture_output=True).returncode


@pytest.mark.parametrize("name", ["project", "a  project's folder", "$HOME"])
@pytest.mark.parametrize("words", [(), ("VENV=env",)])
@pytest.mark.parametrize("place", ["inside", "outside", "from outside by a relative path"])
def test_clean_works_in_the_folder_of_the_makefile_only(tmp_path, name, words, place):
    project, other = tmp_path / name, tmp_path / "other"
    fill(project, MADE + KEPT)
    fill(other, MADE + KEPT)
    shutil.copyfile(PROJECT_ROOT / "Makefile", project / "Makefile")
    makefile = {"inside": "Makefile", "outside": project / "Makefile"}.get(place, f"../{name}/Makefile")
    status = clean(makefile, project if place == "inside" else other, *words)
    assert files(other) == set(MADE + KEPT)
    assert status == 0 and files(project) == {*KEPT, "Makefile"}


def test_clean_takes_away_a_link_and_not_what_it_leads_to(tmp_path):
    fill(tmp_path / "disk", ("precious/a",))
    (tmp_path / "project/runs").mkdir(parents=True)
    (tmp_path / "project/runs/toy").symlink_to(tmp_path / "disk/precious")
    shutil.copyfile(PROJECT_ROOT / "Makefile", tmp_path / "project/Makefile")
    assert clean("Makefile", tmp_path / "project") == 0
    assert files(tmp_path / "disk") == {"precious/a"} and not (tmp_path / "project/runs/toy").is_symlink()


@pytest.mark.parametrize("value", ["2; touch x", "`touch x`", "2'; touch x; '", "2 && touch x"])
@pytest.mark.parametrize("name, target", [("CORES", "smoke"), ("CORES", "own DATA=."), ("VENV", "smoke"), ("PYTHON", "smoke")])
def test_values_of_the_command_line_are_words_and_no_commands(tmp_path, name, target, value):
    for file in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copyfile(PROJECT_ROOT / file, tmp_path / file)
    venv = tmp_path / value if name == "VENV" else tmp_path / ".venv"
    venv.mkdir()
    given = value.replace(" ", "\t") if name == "VENV" else value
    if name == "CORES":
        (venv / ".ready").touch()
    done = subprocess.run(["make", *target.split(), f"{name}={given}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / "x").exists()
    assert name != "VENV" or "VENV is one folder whose name has no space" in done.stderr
