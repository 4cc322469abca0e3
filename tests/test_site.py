"""The static site: two notebooks are built from stored outputs, and the checks of links and pictures find what is wrong."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import ipywidgets
import jupytext
import pytest
from PIL import Image

from wsss_lib.parameters import PROJECT_ROOT

pytestmark = pytest.mark.system

specification = importlib.util.spec_from_file_location("site_build", PROJECT_ROOT / "docs/site/build.py")
site_build = importlib.util.module_from_spec(specification)
specification.loader.exec_module(site_build)
sliders = sys.modules["sliders"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> tuple[Path, list[str]]:
    """A site of two notebooks, their solutions and all documents, and its faults."""
    folder = tmp_path_factory.mktemp("site") / "html"
    return folder, site_build.build(folder, ["02_datasets_and_labels", "70_seeds"])


def test_the_site_has_no_faults(site):
    folder, faults = site
    assert faults == []
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")}
    assert pages >= {"index.html", "notebooks/70_seeds.html", "notebooks/solutions/70_seeds.html", "docs/adding_a_method.html"}


def test_pages_show_stored_outputs_pictures_and_formulas(site):
    page = (site[0] / "notebooks/70_seeds.html").read_text(encoding="utf-8")
    assert page.count("<img ") >= 5 and "exercise 1: not answered yet" in page
    assert page.count("<math ") >= 5 and not re.search("<script[^>]*mathjax", page, re.I)
    assert re.search(r'<nav|role="navigation"', page) and '<p class="caption" role="heading">' not in page


def test_no_page_loads_anything_from_elsewhere(site):
    for page in site[0].rglob("*.html"):
        assert not re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(?:https?:)?//', page.read_text(encoding="utf-8"))


def test_sliders_move_stored_figures(site):
    page = (site[0] / "notebooks/70_seeds.html").read_text(encoding="utf-8")
    strips = re.findall(r'<figure class="strip">.*?</figure>', page, re.S)
    assert len(strips) == 3 and all(re.search('src="([^"]+)"', strip)[1].startswith("../_static/70_seeds.") for strip in strips)
    assert [re.findall("<label>([a-z]+) ", strip) for strip in strips] == [
        ["threshold"],
        ["steps", "color"],
        ["foreground", "background"],
    ]
    assert "sliders.js" in page and (site[0] / "_static/70_seeds.0.webp").is_file()


@pytest.mark.parametrize("notebook", sorted(path.stem for path in (PROJECT_ROOT / "notebooks").glob("*.py")))
def test_strips_are_in_step_with_their_notebook(notebook):
    cells = jupytext.read(PROJECT_ROOT / f"notebooks/{notebook}.py", fmt="py:percent").cells
    calls = [cell.source.partition("widgets.explore(")[2] for cell in cells if "widgets.explore(" in cell.source]
    files = sorted(sliders.STRIPS.glob(f"{notebook}.*.json"))
    assert len(files) == len(calls), f"run `python docs/site/sliders.py {notebook}`"
    for file, call in zip(files, calls, strict=True):
        described = json.loads(file.read_text(encoding="utf-8"))
        controls = described["controls"]
        with Image.open(file.with_suffix(".webp")) as strip:
            assert strip.size == (described["size"][0], described["frames"] * described["size"][1])
        assert sum(len(control["labels"]) for control in controls) == described["frames"]
        assert all(f"{control['name']}=" in call and 0 <= control["start"] < len(control["labels"]) for control in controls)
        assert len(described["alt"].split()) >= 4


@pytest.mark.parametrize(
    "control, values, start",
    [
        (ipywidgets.FloatSlider(value=0.15, min=0.0, max=0.9, step=0.05), [0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9], 1),
        (ipywidgets.FloatSlider(value=0.2, min=0.0, max=1.0, step=0.05), [0.0, 0.2, 0.35, 0.5, 0.65, 0.85, 1.0], 1),
        (ipywidgets.IntSlider(value=2, min=1, max=3), [1, 2, 3], 1),
        (ipywidgets.Dropdown(options=["a", "b", "c"], value="b"), ["a", "b", "c"], 1),
        (ipywidgets.Dropdown(options=[False, True], value=False), [False, True], 0),
        (ipywidgets.FloatSlider(value=0.05, min=0.0, max=0.9, step=0.05), [0.0, 0.05, 0.3, 0.45, 0.6, 0.75, 0.9], 1),
    ],
)
def test_positions_of_a_slider_hold_its_start_and_both_ends(control, values, start):
    found, labels, at = sliders.positions(control)
    assert found == pytest.approx(values) if isinstance(values[0], float) else found == values
    assert at == start and len(labels) == len(found) <= sliders.POSITIONS


@pytest.mark.parametrize(
    "body, fault",
    [
        ('<a href="other.html">x</a>', "index.html: other.html leads nowhere"),
        ('<a href="#there">x</a>', "index.html: #there has no such place"),
        ('<img src="data:," alt="a map">', "index.html: a picture without a text"),
        ('<script src="https://example.org/x.js"></script>', "index.html: loads https://example.org/x.js"),
        ('<a id="here" href="#here">x</a><a href="https://example.org">y</a>', ""),
    ],
)
def test_faults_are_found(tmp_path, body, fault):
    (tmp_path / "index.html").write_text(f"<html><body>{body}</body></html>")
    assert site_build.faults(tmp_path) == ([fault] if fault else [])


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A small project in the place of this one."""
    root = tmp_path / "work/clone"
    for name in (
        ".git/HEAD",
        "docs/site/conf.py",
        "docs/site/site.css",
        "docs/a.md",
        "README.md",
        "CONTRIBUTING.md",
        "notebooks/a.ipynb",
        "runs/kept",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("precious")
    monkeypatch.setattr(site_build, "ROOT", root)
    monkeypatch.setattr(site_build, "sphinx", lambda options: 0)
    return root


@pytest.mark.parametrize(
    "target",
    [
        ".",
        "..",
        "docs",
        ".git",
        ".git/site",
        "runs",
        "../elsewhere",
        "../mine",
        "../link",
        "../of-clone",
        "../clone-link/.",
        "../file",
    ],
)
def test_a_folder_that_the_site_did_not_make_is_never_emptied(clone, target):
    work = clone.parent
    for name in ("elsewhere/photograph.jpg", "mine-source/thesis.tex", "file"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text("precious")
    (work / "link").symlink_to(work / "elsewhere")
    (work / "clone-link").symlink_to(clone)
    (work / "of-clone-source").symlink_to(clone)
    before = tree(work)
    with pytest.raises(SystemExit) as stop:
        site_build.build(clone / target, [])
    assert str(stop.value).count("\n") == 0 and ": " in str(stop.value)
    assert tree(work) == before


def test_a_site_is_built_again_in_its_own_folder(clone):
    site = clone / "build/site"
    site.mkdir(parents=True)  # an empty folder may be filled
    site_build.build(site, [])
    (site / "old.html").write_text("of the last time")
    (site.parent / "site-source/old.md").write_text("of the last time")
    (clone.parent / "link").symlink_to(site)
    site_build.build(clone.parent / "link", [])
    assert not (site / "old.html").exists()
    site_build.build(site, [])
    assert not (site.parent / "site-source/old.md").exists()
    assert tree(clone / "docs") and (clone / "runs/kept").read_text() == "precious"
