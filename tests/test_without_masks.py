"""A person's own photographs: no masks, or masks for a few, from training to the masks of new photographs."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from tests import small_chain
from wsss_lib import predict, widgets
from wsss_lib.config import Config
from wsss_lib.contact_sheet import write_contact_sheet
from wsss_lib.core import training
from wsss_lib.core.files import read_mask
from wsss_lib.core.stage import folder_of, run, run_folder_of
from wsss_lib.core.store import finished_stages
from wsss_lib.data.dataset import SCORED, load_dataset, open_data
from wsss_lib.errors import DataError
from wsss_lib.methods import cam, drs
from wsss_lib.pipeline import stages_of
from wsss_lib.results import collect
from wsss_lib.segment.deeplab import DEEPLAB, PREDICTIONS

pytestmark = pytest.mark.timeout(900)


def without_masks(root: Path, *kept: str) -> Path:
    """Take the masks of a data set away, but for some, which are listed."""
    for path in (root / "SegmentationClass").iterdir():
        if path.stem not in kept:
            path.unlink()
    if kept:
        (root / "ImageSets/Segmentation" / f"{SCORED}.txt").write_text("".join(f"{name}\n" for name in kept))
    else:
        (root / "SegmentationClass").rmdir()
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Data without masks, and the whole chain of two methods over them."""
    folder = tmp_path_factory.mktemp("own")
    data = without_masks(small_chain.make_data(folder / "data"))
    small_chain.run(data, folder / "runs")
    return data, folder / "runs"


@pytest.mark.system
def test_every_stage_is_finished_and_says_that_it_is_not_scored(made):
    data, runs = made
    config = small_chain.config_of(data, runs, "cam")
    names = {stage.name for method in small_chain.METHODS for stage in stages_of(small_chain.config_of(data, runs, method))}
    found = finished_stages(run_folder_of(config))
    assert {name for group in found.values() for name in group} >= names
    rows = [
        row for (method, _), group in found.items() if method != "data" for stage in group.values() for row in stage.metrics()
    ]
    assert {row.get("not_scored") for row in rows if row["what"] not in ("classifier mAP",)} == {"no masks"}
    assert all(row["miou"] is None for row in collect(run_folder_of(config)))
    assert "not scored: no masks" in (run_folder_of(config) / "report/index.html").read_text()


@pytest.mark.system
def test_new_photographs_are_segmented_at_their_own_size_and_a_stopped_command_goes_on(made, tmp_path, capsys):
    data, runs = made
    photographs, out = tmp_path / "new ones", tmp_path / "out"
    (photographs / "holiday").mkdir(parents=True)
    for name, size in (("a.jpg", (70, 50)), ("a.png", (33, 61)), ("holiday/b.webp", (48, 48))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(photographs / name)
    turned = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(photographs / "turned.jpg", exif=exif)
    (photographs / "notes.txt").write_text("no picture")
    (photographs / "cut.jpg").write_bytes((photographs / "a.jpg").read_bytes()[:900])
    predict.main([str(runs / "micro/cam"), str(photographs), str(out)])
    printed = capsys.readouterr().out
    assert "1 of .txt" in printed and printed.count("left out: ") == 1 and "cut.jpg" in printed and "4 photographs" in printed
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["photograph"] for row in rows) == ["a.jpg", "a.png", "holiday/b", "turned"]
    sizes = {row["photograph"]: Image.open(out / row["mask"]).size for row in rows}
    assert sizes == {"a.jpg": (70, 50), "a.png": (33, 61), "holiday/b": (48, 48), "turned": (20, 40)}
    assert all(read_mask(out / row["mask"], 6) is not None and 0 <= float(row["doubt"]) <= 1 for row in rows)
    page = (out / "index.html").read_text()
    assert page.count("<img") == 4

    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    text = (out / "predictions.csv").read_text()
    (out / "predictions.csv").write_text(text[: text.rindex("turned") + 3])  # killed while it wrote the last line
    (out / "masks/turned.png").unlink()
    predict.main([str(runs / "micro/cam/seed0/deeplab"), str(photographs), str(out)])
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == before
    assert (out / "predictions.csv").read_text() == text

    for arguments, words in (
        ([str(runs), str(photographs), str(tmp_path / "x")], "there are 2 networks"),
        ([str(data), str(photographs), str(tmp_path / "x")], "no DeepLab has been trained there"),
        ([str(runs / "micro/cam"), str(photographs), str(out), "--crf"], "another network or other settings"),
        ([str(runs / "micro/cam"), str(photographs), str(photographs)], "would be taken for photographs"),
        ([str(runs / "micro/cam"), str(photographs), str(data)], "holds other files"),
        ([str(runs / "micro/cam"), str(tmp_path / "missing"), str(tmp_path / "x")], "no such folder"),
    ):
        with pytest.raises(SystemExit, match=words):
            predict.main(arguments)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    def cats(net, image, config):
        return np.float32([[[0.0]], [[1.0]]]).repeat(image.height, 1).repeat(image.width, 2)

    monkeypatch.setattr(predict, "class_probabilities", cats)
    (tmp_path / "weights").touch()
    return predict.Segmenter(None, None, ("cat",), tmp_path / "weights")


def test_names_that_no_table_holds_and_what_systems_add_are_no_photographs(untrained, tmp_path, capsys):
    folder = tmp_path / "in"
    for name in (b"a.jpg", b"line\nbreak.jpg", b"\xff.jpg", b"__MACOSX/b.jpg", b".thumbnails/c.jpg", b"@eaDir/d.jpg"):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    assert predict.predict(untrained, folder, tmp_path / "out") == 1
    assert capsys.readouterr().out.count("characters that no table can hold") == 2
    assert [path.name for path in (tmp_path / "out/masks").iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["file", "link", "folder"])
def test_predictions_are_not_written_over_what_is_there(untrained, tmp_path, name):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "in/a.jpg")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/predict.json").write_text("{")  # a stranger's
    with pytest.raises(DataError, match=f"{name}: the folder holds other files"):
        predict.predict(untrained, tmp_path / "in", tmp_path / name)
    assert not (tmp_path / "nowhere").exists() and [path.name for path in (tmp_path / "folder").iterdir()] == ["predict.json"]


def test_a_network_that_was_taken_out_of_its_run_and_one_of_others_are_named(tmp_path):
    (tmp_path / "copy/deeplab").mkdir(parents=True)
    (tmp_path / "copy/deeplab/run.json").write_text("{}")
    (tmp_path / "weights.pth").touch()
    for given, words in (("copy", "was taken out of its run"), ("weights.pth", "convert it first")):
        with pytest.raises(SystemExit, match=words):
            predict.main([str(tmp_path / given), str(tmp_path), str(tmp_path / "out")])


@pytest.mark.system
def test_the_crf_and_a_file_of_weights(made, tmp_path):
    data, runs = made
    photographs = tmp_path / "new"
    photographs.mkdir()
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(photographs / "a.bmp")
    weights = runs / "micro/cam/seed0/deeplab/weights.safetensors"
    predict.main([str(weights), str(photographs), str(tmp_path / "o"), "--preset", "smoke", "--data", str(data), "--crf"])
    assert read_mask(tmp_path / "o/masks/a.png", 6).shape == (40, 60)


@pytest.mark.system
def test_the_contact_sheet_shows_all_images(made):
    data, runs = made
    config = small_chain.config_of(data, runs, "cam")
    page = write_contact_sheet(config).read_text()
    assert page.count("<img") == len(open_data(config, "train"))


@pytest.mark.system
def test_masks_of_a_few_images_are_scored_on_these_without_being_told(tmp_path):
    data = small_chain.make_data(tmp_path / "data")
    kept = load_dataset(data, "train").ids[3:8]
    config = small_chain.config_of(without_masks(data, *kept), tmp_path / "runs", "cam")
    for stage in cam.STAGES:
        job = run(stage, config)
    assert job.metrics[0]["images"] == 5 and job.metrics[0]["miou"] > 0
    assert len(open_data(config, "train")) == small_chain.TRAIN and not open_data(config, "val").has_masks


def test_what_needs_masks_says_so_before_anything_is_trained(tmp_path):
    data = without_masks(small_chain.make_data(tmp_path / "data"))
    with pytest.raises(DataError, match="leave the method 'truth' out"):
        run(DEEPLAB, small_chain.config_of(data, tmp_path / "runs", "truth", deeplab_init="none"))
    chosen = small_chain.config_of(data, tmp_path / "runs", "drs", drs_selection="pixel_labels", drs_backbone_weights="none")
    with pytest.raises(DataError, match="set it to 'last'"):
        run(drs.NETWORK, chosen)
    assert not list((tmp_path / "runs").rglob("weights.safetensors"))


def test_a_folder_of_masks_that_is_named_must_be_there(tmp_path):
    data = without_masks(small_chain.make_data(tmp_path / "data"))
    with pytest.raises(DataError, match="SegmentationClasAug: there is no mask in this folder"):
        load_dataset(data, "train", mask_folder="SegmentationClasAug")


def test_a_missing_mask_is_an_error_where_all_should_be_there(tmp_path):
    data = load_dataset(small_chain.make_data(tmp_path / "data"), "train")
    data.mask_path(data.ids[0]).unlink()
    with pytest.raises(DataError, match="missing"):
        data.mask(data.ids[0])


def test_new_images_have_neither_labels_nor_masks(tmp_path):
    root = small_chain.make_data(tmp_path / "data")
    shutil.copy(next((root / "JPEGImages").iterdir()), root / "JPEGImages/holiday.jpg")
    (root / "ImageSets/Segmentation/test.txt").write_text("holiday\n")
    data = load_dataset(root, "test")
    assert data.ids == ("holiday",) and not data.labels.any() and not data.has_masks
    assert (data.mask("holiday") == 255).all()
    config = small_chain.config_of(root, tmp_path / "runs", "cam", train_split="test")
    with pytest.raises(DataError, match="no image of split 'test' has a label"):
        run(cam.CLASSIFIER, config)
    (root / "ImageSets/Segmentation/test.txt").write_text("holiday\n" + load_dataset(root, "train").ids[0])
    with pytest.raises(DataError, match="no row for image 'holiday'"):
        load_dataset(root, "test")


@pytest.mark.system
def test_the_test_images_are_predicted_after_training(made):
    data, runs = made
    (data / "ImageSets/Segmentation/test.txt").write_text("holiday\n")
    shutil.copy(next((data / "JPEGImages").iterdir()), data / "JPEGImages/holiday.jpg")
    config = small_chain.config_of(data, runs, "cam", val_split="test")
    before = folder_of(DEEPLAB, config) / "run.json"
    made_before = before.read_bytes()
    job = run(PREDICTIONS, config)
    assert read_mask(job.folder / "plain/holiday.png", 6).any() is not None and before.read_bytes() == made_before


def test_cells_are_left_out_by_their_first_line(monkeypatch, capsys):
    shell = InteractiveShell()
    monkeypatch.setattr(widgets, "get_ipython", lambda: shell)
    widgets.leave_out("masks", False, "there are no masks")
    widgets.leave_out("gears", True, "never")
    for source in ("# needs masks\nx = 1", "# needs gears, masks\nx = 2", "# needs gears\ny = 3", "z = '# needs masks'"):
        shell.run_cell(source)
    assert {name: shell.user_ns.get(name) for name in "xyz"} == {"x": None, "y": 3, "z": "# needs masks"}
    assert capsys.readouterr().out.count("\nleft out: there are no masks") == 2


class Numbers(torch.utils.data.Dataset):
    """Pairs (x, 2x)."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, place: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([place[1] / 8]), torch.tensor([place[1] / 4])


@pytest.mark.parametrize(("rate", "diverges"), [(0.1, False), (3.0, True)])
def test_a_training_that_ends_above_its_start_stops_with_a_remedy(rate, diverges, tmp_path):
    net = torch.nn.Linear(1, 1)
    groups = [{"params": list(net.parameters()), "lr": rate}]
    arguments = (
        net,
        lambda model, batch: {"loss": ((model(batch[0]) - batch[1]) ** 2).mean()},
        Numbers(),
        groups,
        0.0,
        20,
        4,
        Config(num_workers=0, device="cpu", device_batch_size=4, checkpoint_every=7),
        tmp_path,
        lambda step, total: 1.0,
        "the classifier",
    )
    if diverges:
        with pytest.raises(ValueError, match="the classifier: the training has diverged, .* a fifth of the learning rate"):
            training.train(*arguments)
        with pytest.raises(ValueError, match="has diverged"):  # a resumed one knows its start, too
            training.train(*arguments)
    else:
        training.train(*arguments)


def test_the_image_to_look_at_is_the_nearest(tmp_path):
    data = load_dataset(small_chain.make_data(tmp_path / "data"), "train")
    assert data.label(data.example(1)).sum() == 1 and data.label(data.example(99)).sum() == data.labels.sum(1).max()
    assert data.example(1, data.ids[4:5]) == data.ids[4]


def test_config_reads_no_module(tmp_path):
    import wsss_lib.nets.backbone as backbone

    assert Config.from_notebook({"backbone": backbone, "seed": 3}).seed == 3
