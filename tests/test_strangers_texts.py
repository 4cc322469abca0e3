"""Names that strangers gave to classes, images, files and folders are shown as they are; nothing in them runs."""

import csv
import json
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nbconvert.filters import markdown2html
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from data_prep.custom import make_dataset
from tests import made
from tests.checkout import environment, second_checkout
from tests.small_chain import config_of, make_data, write_preset
from wsss_lib import overview, report, results, viz
from wsss_lib.config import Config
from wsss_lib.core.texts import as_markdown, is_one_line
from wsss_lib.data.dataset import open_data, read_classes, read_split
from wsss_lib.errors import DataError

matplotlib.use("Agg")

CLASSES = (
    "<img src=x onerror=document.title='ran'>",
    r"cat$\foo$",
    "\"'></td><script>document.title='ran'</script>",
    "100 % of {0} %s | `c:\\new` _a_ *b* [l](javascript:alert(1)) \\(x\\)",
    "كلب 猫 קאַץ 犬",
    ("a very long name " * 30).strip(),
)
IMAGE = "<b>&\"'$x$%s{0}_1"
PAYLOAD = "\"><img src=x onerror=document.title='ran'>"
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
texts = st.one_of(st.sampled_from(CLASSES), st.text(alphabet="ab<>&|*_`~$\\[]()!#\"'{}:/ -.1\n", max_size=30))


class Page(HTMLParser):
    """What a page shows and what could run in it."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.tags, self.attributes = "", [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note a tag and its attributes."""
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        """Note what is shown."""
        self.text += data

    def check(self, *tags: str) -> None:
        """Fail if there is anything that runs, or a tag beside those given (none given: any)."""
        assert not tags or set(self.tags) <= set(tags), self.tags
        for name, value in self.attributes:
            assert not name.startswith("on") and not (value or "").strip().lower().startswith("javascript:"), (name, value)


def without_space(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("render", [markdown2html, MarkdownIt("commonmark").enable("table").render], ids=["nbconvert", "site"])
@given(text=texts)
def test_markdown_shows_a_text_as_it_is(render, text):
    page = Page(render(f"*x{as_markdown(text)}x*"))
    page.check("p", "em", "span")
    assert without_space(page.text) == f"x{without_space(text)}x"
    table = Page(render(results.markdown_table(["a", text], [["b", text]])))
    table.check("table", "thead", "tbody", "tr", "th", "td", "span")
    assert without_space(table.text) == f"a{without_space(text)}b{without_space(text)}"
    # MathJax reads the finished page and looks for formulas between tags.
    assert not any(part.count("$") > 1 or "\\(" in part for part in render(as_markdown(text)).replace("<", "><").split(">"))


def test_figures_show_names_as_they_are():
    """No formula, no end of the picture, no warning but that a font lacks letters."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph .* missing")
        viz.use_style()
        mask = np.repeat(np.arange(7, dtype=np.uint8), 8)[None].repeat(56, 0)
        picture, values = np.zeros((56, 56, 3), np.uint8), np.eye(6)
        panels = [viz.labels(mask, CLASSES, CLASSES[1], picture), viz.image(picture, f"input {IMAGE}"), viz.blank(CLASSES[1])]
        viz.show_panels(panels, f"Names of strangers: {CLASSES}", size=4)
        viz.show_panels([viz.matrix(values, CLASSES, CLASSES, CLASSES[1])], "A table of six strange names", size=(9, 6))
        viz.show_panels(
            [viz.points({CLASSES[1]: [(name, 9 * n, n) for n, name in enumerate(CLASSES)]})], "Marks with strange names"
        )
        viz.show_panels(
            [viz.curves([0, 1], {name: [0, n] for n, name in enumerate(CLASSES[:5])})], "A legend of strange names", size=6
        )
        viz.show_class_bars(
            {CLASSES[1]: range(1, 7)}, CLASSES, "Bars of classes with strange names", title=CLASSES[1], log=True
        )


def test_numbers_of_logarithmic_axes_are_no_formulas():
    import matplotlib.pyplot as plt

    with matplotlib.rc_context():
        viz.use_style()
        figure, axes = plt.subplots()
        axes.plot([1, 1000])
        axes.set_yscale("log")
        viz.show(figure, "a line from one to thousand")
        assert axes.yaxis.get_major_formatter()(100) == "100"


def test_a_class_name_has_no_control_characters(tmp_path):
    for name in ("a\nb", "a\x1b[31m", "\x00", "a\u2028b", "\ud800", "", "  "):
        (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["cat", name]}))
        with pytest.raises(DataError, match="dataset.json: 'classes' holds .* rename that class") as error:
            read_classes(tmp_path)
        assert is_one_line(str(error.value))
        with pytest.raises(DataError, match="classes with different names"):
            make_dataset({}, ["cat", name], tmp_path / "new")
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": CLASSES}))
    assert read_classes(tmp_path) == CLASSES


def test_an_image_id_has_no_control_characters(tmp_path):
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text(f"{IMAGE}\n")
    assert read_split(tmp_path, "train") == (IMAGE,)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\x1b]0;b\n")
    with pytest.raises(DataError, match="is not an image id"):
        read_split(tmp_path, "train")


def hostile_notebook(path: Path) -> None:
    """Write an executed notebook that tries everything."""
    html = "<p>shown</p><script>document.title='ran'</script><a href='javascript:document.title=1'>x</a><svg onload=alert(1)>"
    output = {"text/html": html, "text/markdown": html, "application/javascript": "document.title = 'ran'"}
    outputs = [new_output("display_data", {key: value}) for key, value in output.items()]
    outputs.append(new_output("display_data", {"image/png": PICTURE}, metadata={"image/png": {"alt": PAYLOAD}}))
    outputs.append(new_output("stream", name="stdout", text=f"{PAYLOAD}\n"))
    cells = [new_markdown_cell(f"# Title\n\n{html}\n\n| a |\n|---|\n| b |"), new_code_cell("1", outputs=outputs)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def check_report(run_folder: Path) -> list[str]:
    """Fail if anything in the pages of a report could run, or a link leads nowhere; return where the links lead."""
    index = Page((run_folder / "report/index.html").read_text())
    index.check()
    assert "script" not in index.tags
    links = [unquote(value) for name, value in index.attributes if name == "href"]
    pages = sorted(path.name for path in (run_folder / "report").glob("*.html"))
    assert sorted([*links, "index.html"]) == pages
    for page in pages:
        Page((run_folder / "report" / page).read_text()).check()
    return links


@pytest.mark.system
def test_the_report_shows_names_of_folders_and_notebooks_as_they_are(tmp_path):
    config = Config(runs_root=str(tmp_path), dataset="micro")
    row = {"what": PAYLOAD, "split": PAYLOAD, "images": 3, "crf": False, "miou": 50.0, "pixel_labels_chose": PAYLOAD}
    made.finish(made.begin(config, "maps"), [row])
    run_folder = tmp_path / "micro"
    for name in ("cam/seed0/maps", "cam/seed0/maps.0123abcd", f"{PAYLOAD}/seed0/maps", "100%25?a#b/seed0/maps"):
        hostile_notebook(run_folder / name / "notebook.ipynb")
    hostile_notebook(run_folder / "report/seed0/overview/notebook.ipynb")
    report.write_report(run_folder)
    links = check_report(run_folder)
    assert len(links) == 4 and not any("0123abcd" in link for link in links)
    page = Page((run_folder / "report/cam-seed0-maps.html").read_text())
    assert "shown" in page.text and {"h1", "table", "th"} <= set(page.tags) and PAYLOAD in page.text


def hostile_data(root: Path) -> None:
    """Give classes and an image of a data set names that strangers might choose."""
    description, labels = json.loads((root / "dataset.json").read_text()), root / "labels.csv"
    (root / "dataset.json").write_text(json.dumps(description | {"name": PAYLOAD, "classes": CLASSES}))
    rows = list(csv.reader(labels.read_text().splitlines()))
    ids = root / "ImageSets/Segmentation/train.txt"
    old = ids.read_text().split()[1]
    for file in sorted(root.rglob(f"{old}.*")):
        file.rename(file.with_name(IMAGE + file.suffix))
    ids.write_text(ids.read_text().replace(old, IMAGE))
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["image_id", *CLASSES], *([IMAGE if row[0] == old else row[0], *row[1:]] for row in rows[1:])]
        )


@pytest.mark.system
@pytest.mark.slow
def test_a_whole_run_of_strange_names_runs_nothing_in_a_browser(tmp_path):
    root, runs = second_checkout(tmp_path), tmp_path / "runs of $(touch x) '\"&%s; touch x"
    hostile_data(make_data(tmp_path / "data"))
    write_preset(root, tmp_path / "data")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock", "--config", "preset=micro", f"runs_root={runs}"]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not list(root.rglob("x"))
    check_report(runs / "micro")
    config = config_of(tmp_path / "data", runs, "cam", num_workers=0)
    overview.show_methods(config, open_data(config, "train"))
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("the run and its pages are right; to open them, no Chromium is at hand")
    for page in sorted((runs / "micro/report").glob("*.html")):
        # The document as it is after its scripts have run; what they would load from elsewhere is not found at once.
        options = ["--headless", "--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        shown = subprocess.run(
            [browser, *options, profile, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120
        )
        assert "</html>" in shown.stdout and "<title>ran</title>" not in shown.stdout, shown.stderr[-2000:]
        assert not [name for name, _ in Page(shown.stdout).attributes if name == "onerror"], page.name
