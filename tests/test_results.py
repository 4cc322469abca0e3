"""The one per-image loop, tables of results, the report's pictures, and figures with their texts."""

import base64
from functools import partial

import matplotlib
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests import made
from tests.conftest import SIZES, CountedWork, copy_mask
from wsss_lib import comparison, report, results, viz
from wsss_lib.config import Config
from wsss_lib.core.parallel import batches_of_like_size, for_each_image
from wsss_lib.data.dataset import load_dataset

matplotlib.use("Agg")


# ---- per image


@pytest.mark.system
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_missing_image_is_made_once(miniature, tmp_path, num_workers):
    data = load_dataset(miniature, "train")
    work = partial(copy_mask, data=data, folder=tmp_path)

    def output(image_id):
        return tmp_path / f"{image_id}.png"

    work("m_03")
    before = output("m_03").stat().st_mtime_ns
    assert for_each_image(data.ids, output, work, "copies", Config(), num_workers) == 7
    assert output("m_03").stat().st_mtime_ns == before
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == list(data.ids)
    assert for_each_image(data.ids, output, work, "copies", Config(), num_workers) == 0


@pytest.mark.system
def test_a_worker_gets_the_work_once_and_not_with_every_image(tmp_path):
    """The work holds the data set, with the labels of 82,783 images for COCO."""
    ids = [f"m_{number:02d}" for number in range(40)]
    made = for_each_image(ids, lambda image_id: tmp_path / f"{image_id}.png", CountedWork(tmp_path), "files", Config(), 2)
    assert made == 40
    assert len(list(tmp_path.glob("*.png"))) == 40 and len((tmp_path / "loads").read_text()) <= 2


def test_an_error_keeps_what_was_made(miniature, tmp_path):
    data = load_dataset(miniature, "train")

    def work(image_id):
        if image_id == "m_02":
            raise ValueError(f"{image_id} is broken")
        copy_mask(image_id, data, tmp_path)

    with pytest.raises(ValueError, match="m_02 is broken"):
        for_each_image(data.ids, lambda image_id: tmp_path / f"{image_id}.png", work, "copies", Config())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m_00.png", "m_01.png"]


def test_batches_hold_images_of_one_size(miniature):
    data = load_dataset(miniature, "train")
    batches = batches_of_like_size(data.ids, lambda image_id: data.image(image_id).size, 3)
    assert sorted(sum(batches, [])) == list(data.ids) and all(len(batch) <= 3 for batch in batches)
    assert all(len({SIZES[int(name[2:]) % 4] for name in batch}) == 1 for batch in batches) and len(batches) == 4


# ---- tables


def finished(tmp_path, method: str, seed: int, stage: str, rows: list[dict]) -> None:
    config = Config(runs_root=str(tmp_path), method=method, seed=seed)
    made.finish(made.begin(config, stage, ("seed",)), rows)


def row(what: str, miou: float, **values) -> dict:
    return {"what": what, "split": "val", "images": 300, "crf": False, "miou": miou, "pixel_labels_chose": ""} | values


def test_rows_of_several_seeds_are_joined(tmp_path):
    for seed, miou in enumerate((60.0, 62.0, 64.0)):
        finished(tmp_path, "cam", seed, "deeplab", [row("DeepLab-v2", miou), {"what": "classifier mAP", "map": 90.0}])
    finished(tmp_path, "truth", 0, "deeplab", [row("DeepLab-v2", 80.0)])
    finished(tmp_path, "cam", 0, "maps", [row("CAM at its best threshold", 40.0, pixel_labels_chose="threshold 0.20")])
    finished(tmp_path, "cam", 0, "maps.stale", [row("CAM at its best threshold", 1.0)])
    (tmp_path / "toy/cam/seed0/unfinished").mkdir()
    (tmp_path / "toy/cam/seed0/unfinished/metrics.json").write_text("[")
    rows = results.collect(tmp_path / "toy")
    assert len(rows) == 5 and {entry["stage"] for entry in rows} == {"deeplab", "maps"}
    best, mean, truth = results.summarize(rows)
    assert (best["what"], best["runs"], best["spread"]) == ("CAM at its best threshold", 1, None)
    assert (mean["miou"], mean["spread"], mean["runs"]) == (62.0, 2.0, 3) and truth["method"] == "truth"
    lines = results.table([best, mean, truth], compare=True).splitlines()
    assert len(lines) == 5 and lines[0].endswith("published, full VOC 2012")
    assert "threshold 0.20" in lines[2] and "62.0 ± 2.0" in lines[3]
    assert lines[3].endswith("refused: 300 images here, 1449 there")
    lines = results.table([mean | {"images": 1449}, truth | {"images": 1449}], compare=True).splitlines()
    assert lines[2].endswith("refused: with CRF there, without here") and lines[3].endswith("76.35")
    assert "published" not in results.table([best], compare=False)


def test_splits_and_crf_are_never_mixed(tmp_path):
    rows = [
        row("a", 1.0, method="cam"),
        row("a", 2.0, method="cam", crf=True),
        row("a", 3.0, method="cam", split="train"),
        row("a", 4.0, method="cam", images=8),
    ]
    assert [entry["runs"] for entry in results.summarize(rows)] == [1, 1, 1, 1]


def test_published_numbers_have_sources():
    assert results.published("cam", "CAM seed", "train").value == 48.3
    assert results.published("cam", "IRN pseudo-mask", "train").value == 66.5
    assert results.published("cam", "CAM seed", "val") is None
    assert all(entry.split in results.IMAGES_OF and entry.start and entry.pixel_labels for entry in results.PUBLISHED)
    assert all("masks of COCO" in entry.pixel_labels for entry in results.PUBLISHED if entry.start == "COCO with masks")
    assert all(len(entry.source) > 20 and 0 < entry.value < 100 for entry in results.PUBLISHED)


def test_a_published_value_belongs_to_its_data_set():
    both = [entry for entry in results.PUBLISHED if (entry.method, entry.what) == ("rib", "DeepLab-v2")]
    assert [(entry.dataset, entry.value) for entry in both] == [("VOC 2012", 68.3), ("VOC 2012", 68.6), ("COCO 2014", 43.8)]
    lines = results.quote(both).splitlines()
    assert lines[0].startswith("published, VOC 2012 val, rib, DeepLab-v2: 68.3 %")
    assert lines[2].startswith("published, COCO 2014 val, rib, DeepLab-v2: 43.8 %")
    assert "VOC 2012 val of" not in results.quote(results.PUBLISHED)
    assert results.published("rib", "DeepLab-v2", "val").dataset == "VOC 2012"
    for dataset, images, belonging in (("coco14", 40504, 43.8), ("voc12", 1449, 68.3), ("toy", 1449, None)):
        summary = results.summarize([row("DeepLab-v2", 40.0, method="rib", images=images)])
        lines = [line for line in comparison.published_table(summary, dataset) if line[:2] == ["rib", "DeepLab-v2"]]
        ours = {float(line[3]): line[4] for line in lines if line[2].startswith("val")}
        assert sorted(ours) == [43.8, 68.3]
        for value, words in ours.items():
            expected = "whether with CRF is not stated there" if value == belonging else f"{images} images of {dataset}"
            assert words.startswith(f"refused: {expected}")


@pytest.mark.parametrize(
    "method, what, split, images, values, beside",
    [
        ("vwe", "DeepLab-v2", "val", 1449, {}, "66.3"),
        ("vwe", "DeepLab-v2", "val", 1448, {}, "refused: 1448 images here, 1449 there"),
        ("vwe", "DeepLab-v2", "val", 1449, {"crf": True}, "refused: without CRF there, with here"),
        ("cam", "CAM seed", "val", 1449, {}, ""),  # published on train alone
        ("rib", "IRN pseudo-mask", "train", 1464, {}, "refused: whether with CRF is not stated there"),
        ("amn", "CAM seed", "train", 1464, {}, "refused: the best threshold there, a fixed one here"),
        ("amn", "CAM seed", "train", 1464, {"pixel_labels_chose": "threshold 0.31"}, "62.1"),
        (
            "cam",
            "CAM seed",
            "train",
            1464,
            {"pixel_labels_chose": "threshold"},
            "refused: a fixed one there, the best threshold here",
        ),
        ("rib", "CAM at its best threshold", "train", 1464, {"pixel_labels_chose": "threshold 0.31"}, "56.5"),
    ],
)
def test_a_published_value_stands_beside_its_like_alone(method, what, split, images, values, beside):
    [joined] = results.summarize([row(what, 40.0, method=method, split=split, images=images, **values)])
    assert results.published_beside(joined) == beside
    table = comparison.published_table([joined], "voc12")
    refused = [line[4].startswith("refused") for line in table if line[:3] == [method, what, split]]
    assert refused == ([beside.startswith("refused")] if beside else [])


def test_how_a_published_checkpoint_was_chosen_is_said():
    for method, value in (("drs", 69.4), ("drs", 70.4), ("truth", 78.3)):
        [entry] = (entry for entry in results.PUBLISHED if (entry.method, entry.value) == (method, value))
        assert "best iteration" in entry.pixel_labels
    assert {entry.crf for entry in results.PUBLISHED} == {"with", "without", "not stated"}
    assert all(entry.crf != "without" for entry in results.PUBLISHED if "+ CRF" in entry.what)


def test_published_classes_belong_to_published_means():
    for key, values in results.PUBLISHED_CLASSES.items():
        assert len(values) == 21
        assert np.mean(values) == pytest.approx(results.published(*key).value, abs=0.06)


def test_commands_say_what_is_missing(tmp_path):
    for command in (results.main, report.main):
        for arguments in ([], [str(tmp_path / "none")], [str(tmp_path)]):
            with pytest.raises(SystemExit) as stop:
                command(arguments)
            assert any(words in str(stop.value) for words in ("usage: python -m", "no finished stage with scores"))


def test_commands_name_a_broken_record(tmp_path):
    stage = tmp_path / "toy/cam/seed0/maps"
    stage.mkdir(parents=True)
    for name in ("begun.json", "run.json", "metrics.json"):
        (stage / name).write_text("{")
    for command in (results.main, report.main):
        with pytest.raises(SystemExit, match="metrics.json: not valid JSON"):
            command([str(tmp_path / "toy")])


# ---- report


def notebook_with(picture: str, caption: str):
    output = new_output("display_data", {"image/png": picture}, metadata={"image/png": {"alt": caption}})
    return new_notebook(cells=[new_code_cell("", outputs=[output])])


def test_pictures_keep_their_texts_and_bring_no_foreign_markup():
    picture = base64.b64encode(b"\x89PNG" * 40).decode()
    (figure,) = report._figures(notebook_with(picture[:76] + "\n" + picture[76:] + "\n", "A <b>map</b> & a mask").cells)
    assert figure.count("A &lt;b&gt;map&lt;/b&gt; &amp; a mask") == 2 and f'base64,{picture}"' in figure
    with pytest.raises(ValueError):
        list(report._figures(notebook_with('AAAA"><script>alert(1)</script>', "A picture").cells))


# ---- figures


def test_a_figure_needs_a_text(capsys):
    import matplotlib.pyplot as plt

    figure, _ = plt.subplots()
    with pytest.raises(ValueError, match="a text of at least four words"):
        viz.show(figure, "a map")
    viz.show(figure, "a map of one class")
    assert not plt.fignum_exists(figure.number)


def test_overlay_and_labels_draw_any_map():
    import matplotlib.pyplot as plt

    image = np.full((6, 8, 3), 255, np.uint8)
    painted = viz.overlay(image, np.linspace(-1, 2, 48).reshape(6, 8))
    assert painted.shape == (6, 8, 3) and painted.min() >= 0 and painted.max() <= 1
    figure, axes = plt.subplots()
    labels = np.zeros((6, 8), np.uint8)
    labels[:3, :4], labels[0] = 2, 255
    viz.draw_labels(axes, labels, ("cat", "dog"), "truth", image)
    assert [text.get_text() for text in axes.texts] == ["dog"] and 0 < axes.texts[0].get_position()[1] < 3
    figure.canvas.draw()
    assert any("////" in hatches for hatches in (drawn.hatches for drawn in axes.collections)), "unknown pixels are hatched"
    plt.close(figure)


def test_the_best_and_the_worst_and_some_between():
    values = {f"i{number}": number / 10 for number in range(10)}
    chosen = viz.best_worst_random(values, count=2)
    assert chosen[:2] == ["i9", "i8"] and chosen[-2:] == ["i1", "i0"] and len(set(chosen)) == 6
    assert viz.best_worst_random(values, seed=1) != chosen
    for few in range(5):
        names = list(values)[:few]
        chosen = viz.best_worst_random({name: values[name] for name in names}, count=2)
        assert sorted(chosen) == sorted(names)
