"""What a report opens with: an easy and a hard image, a heat map of all scores; and rows for which nothing was scored."""

import re
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests import made
from wsss_lib import comparison, overview, report, results, viz
from wsss_lib.config import Config
from wsss_lib.core.files import write_mask
from wsss_lib.core.store import StageFolder
from wsss_lib.data.dataset import load_dataset
from wsss_lib.parameters import PROJECT_ROOT

matplotlib.use("Agg")

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
NOT_SCORED = {"what": "CAM seed", "split": "train", "images": 0, "not_scored": "no masks"}


def row(what: str, miou: float, **values) -> dict:
    return {"what": what, "split": "val", "images": 300, "crf": False, "miou": miou, "pixel_labels_chose": ""} | values


@pytest.fixture
def panels(monkeypatch) -> list:
    """What figures would show: the text of each, after its panels are drawn."""
    shown = []
    monkeypatch.setattr(viz, "show", lambda figure, alt: (figure.canvas.draw(), shown.append((figure, alt))))
    return shown


def words_in(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


# ---- the two images


def test_the_easy_image_is_well_above_the_hard_one(voc_folder, tmp_path):
    """Masks that are right up to a share that falls from image to image."""
    data = load_dataset(voc_folder, "train")
    for number, image_id in enumerate(data.ids):
        mask = data.mask(image_id)
        mask[:, : 5 + 4 * number] = 0
        write_mask(tmp_path / f"{image_id}.png", mask)
    assert overview.easy_and_hard(data, StageFolder(tmp_path)) == ["m_01", "m_06"]
    (voc_folder / "SegmentationClass/m_06.png").unlink()
    assert overview.easy_and_hard(data, StageFolder(tmp_path))[1] != "m_06", "what has no mask cannot be ranked"


def test_images_of_two_classes_are_preferred_where_there_are_enough(voc_folder, monkeypatch):
    data = load_dataset(voc_folder, "train")
    data.labels[:, :2] = (1, 0)
    data.labels[3:6, 1] = 1
    expected = [name for name in data.ids if data.label(name).sum() == 2][:2]
    assert expected != list(data.ids[:2]) and overview.easy_and_hard(data, None) == list(data.ids[:2])
    monkeypatch.setattr(overview, "ENOUGH", 2)
    assert overview.easy_and_hard(data, None) == expected


def test_without_masks_the_first_two_images_are_shown(voc_folder, tmp_path):
    data = load_dataset(voc_folder, "train")
    assert overview.easy_and_hard(data, None) == ["m_00", "m_01"]
    for mask in (voc_folder / "SegmentationClass").iterdir():
        mask.unlink()
    assert overview.easy_and_hard(data, StageFolder(tmp_path)) == ["m_00", "m_01"]
    data.labels[0] = 0
    assert overview.easy_and_hard(data, None) == ["m_01", "m_02"], "an image without an object shows little"


def test_a_row_of_the_grid_says_what_is_not_made(voc_folder, tmp_path, panels):
    data = load_dataset(voc_folder, "train")
    for mask in (voc_folder / "SegmentationClass").glob("m_01.png"):
        mask.unlink()
    seeds = tmp_path / "seeds"
    write_mask(seeds / "seed_masks/m_00.png", data.mask("m_00"))
    for image_id, group, expected in (
        ("m_00", {}, ["cam", "ground truth", "", "", "", ""]),
        ("m_01", {}, ["cam", "", "", "", ""]),
        ("m_00", {"seeds": StageFolder(seeds)}, ["cam", "ground truth", "", "seed", "", ""]),
    ):
        viz.show_panels(overview.panels_of("cam", group, image_id, data, Config()), "one line of the grid")
        figure, _ = panels[-1]
        assert [axes.get_title() for axes in figure.axes] == expected
        assert words_in(figure).count("not made") == expected.count("")


# ---- the heat map, and rows without a score


def test_the_heat_map_shows_every_number_and_leaves_empty_what_was_not_made(panels):
    rows = [row("CAM seed", 40.0, method="cam", split="train"), row("DeepLab-v2", 60.25, method="cam")]
    rows += [row("DeepLab-v2", 80.0, method="truth"), row("DeepLab-v2", 30.0, method="rib", images=8)]
    overview.show_scores(results.summarize(rows))
    figure, alt = panels[0]
    axes = figure.axes[0]
    assert sorted(words_in(figure)) == ["30.0", "40.0", "60.2", "80.0"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cam", "rib", "truth"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["CAM seed, train", "DeepLab-v2, val", "DeepLab-v2, val"]
    assert np.isnan(axes.images[0].get_array().filled(np.nan)).sum() == 5 and "an empty cell was not made" in alt
    for text in axes.texts:  # dark on bright and bright on dark, in gray too
        column, line = map(int, text.get_position())
        gray = axes.images[0].cmap(axes.images[0].norm(axes.images[0].get_array()[line, column]))[:3] @ np.array(
            [0.3, 0.6, 0.1]
        )
        assert text.get_color() == ("white" if gray < 0.5 else "black")


def test_rows_without_masks_break_no_table(tmp_path, panels):
    config = Config(runs_root=str(tmp_path))
    made.finish(made.begin(config, "seeds"), [NOT_SCORED, {"what": "unknown pixels", "share": 0.1}])
    made.finish(made.begin(config, "maps"), [NOT_SCORED | {"what": "CAM at its best threshold", "miou": None}])
    other = config.model_copy(update={"method": "rib"})
    made.finish(made.begin(other, "seeds"), [row("CAM seed", 40.0, split="train")])
    run_folder = tmp_path / "toy"
    rows = results.collect(run_folder)
    summary = results.summarize(rows)
    assert [(line["method"], line["miou"]) for line in summary] == [("cam", None), ("cam", None), ("rib", 40.0)]
    assert results.table(summary, compare=True).count("not scored: no masks") == 2
    assert results.run_table([NOT_SCORED], Config(dataset="voc12")).endswith("nothing")
    overview.show_scores(summary)
    assert words_in(panels[0][0]).count("not\nscored") == 2 and "not scored: no masks" in panels[0][1]
    overview.show_scores(summary[:2])
    scored = comparison.side_by_side(rows)
    assert scored["CAM seed"] == {"cam": {}, "rib": {0: 40.0}} and comparison.gain_table(scored) == []
    assert [comparison.cell_text(scored["CAM seed"].get(method)) for method in ("cam", "rib", "amn")] == [
        "not scored",
        "40.0 (1)",
        "–",
    ]
    assert "not scored: no masks" in {line[4] for line in comparison.published_table(summary, "voc12")}
    page = report.write_report(run_folder).read_text()
    assert page.count("not scored: no masks") == 2
    results.main([str(run_folder)])


# ---- the report


def executed(path: Path, *figures: tuple[str, str]) -> None:
    """Write an executed notebook: for each figure its text and the tag of its cell."""
    cells = []
    for alt, tag in figures:
        output = new_output("display_data", {"image/png": PICTURE}, metadata={"image/png": {"alt": alt}})
        cells.append(new_code_cell("", outputs=[output], metadata={"tags": [tag]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


@pytest.mark.system
def test_a_report_opens_with_what_the_overview_marks(tmp_path):
    for method, miou in (("amn", 70.0), ("cam", 60.0), ("rib", 65.0)):
        made.finish(made.begin(Config(runs_root=str(tmp_path), method=method), "predictions"), [row("DeepLab-v2 + CRF", miou)])
    executed(tmp_path / "toy/report/seed0/comparison/notebook.ipynb", ("a dot in an empty plot", "other"))
    executed(tmp_path / "toy/report/seed0/overview/notebook.ipynb", ("one image", "other"), ("all methods", report.OPENING))
    page = report.write_report(tmp_path / "toy").read_text()
    places = [
        page.index(words) for words in ('alt="all methods"', "stand here in the order", "<pre>", 'alt="a dot', 'alt="one')
    ]
    assert places == sorted(places)
    assert "in the order amn, rib, cam; that is the order of the full smoke run" in page


def test_the_notebook_marks_what_a_report_opens_with():
    source = (PROJECT_ROOT / "notebooks/00_start_here.py").read_text()
    marked = re.findall(rf'tags=\[[^\]]*"{report.OPENING}"\]\n(.*)', source)
    assert marked == ["overview.show_methods(config, data)", "overview.show_scores(rows)"]


def test_the_order_of_the_methods_is_compared_with_the_full_run():
    text = (PROJECT_ROOT / "docs/results.md").read_text()
    table = text[text.index("### All methods through the whole chain") :]
    names = [name.strip().lower().replace("-", "") for name in re.search(r"\| mIoU % \|(.*)\|", table)[1].split("|")]
    cells = re.search(r"\| DeepLab-v2 \+ CRF, val \|(.*)\|", table)[1].split("|")
    means = {name: np.mean([float(value) for value in cell.split("/")]) for name, cell in zip(names, cells, strict=True)}
    del means["ground truth"]
    assert tuple(sorted(means, key=lambda name: -means[name])) == report.SMOKE_ORDER
    rows = [row("DeepLab-v2 + CRF", 50.0, method="amn"), row("DeepLab-v2 + CRF", 60.0, method="cam")]
    words = "in the order cam, amn; that is not, with amn, cam, the order of"
    assert words in report.order_of_methods(results.summarize(rows))
    assert report.order_of_methods(results.summarize(rows[:1])) == ""
