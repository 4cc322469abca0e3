"""A reader's own photographs: every form of labels gives the same data set; what does not fit is named and nothing is left."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import papermill
import pytest
from PIL import Image

from data_prep import custom
from data_prep.sample_photographs import SAMPLES, installed_photographs
from data_prep.voc_xml import read_voc_classes
from wsss_lib.core.files import read_mask
from wsss_lib.data.dataset import VOC_CLASSES, load_dataset
from wsss_lib.errors import DataError
from wsss_lib.parameters import PROJECT_ROOT

REAL_DATA = Path(os.environ.get("WSSS_REAL_DATA", PROJECT_ROOT / "../shared/data")) / "voc2012-year2007/VOC2012"

CONTENT = {
    "beach": ("dog", "person"),
    "garden": ("cat",),
    "path": ("dog",),
    "wall": ("cat", "dog", "person"),
    "sea": ("person",),
}


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Five photographs of three kinds of files, and a file that is none."""
    for number, name in enumerate(CONTENT):
        picture(tmp_path / "photographs" / f"{name}.{('jpg', 'png', 'webp')[number % 3]}", number)
    (tmp_path / "photographs" / "notes.txt").write_text("not a photograph")
    return tmp_path / "photographs"


def by_name(folder: Path) -> Path:
    path = folder.parent / "table.csv"
    names = {file.stem: file.name for file in folder.iterdir()}
    rows = [f"{names[name]},{';'.join(classes)}" for name, classes in CONTENT.items()]
    path.write_text("image,classes\n" + "\n".join(rows) + "\n")
    return path


def by_column(folder: Path) -> Path:
    path = folder.parent / "columns.csv"
    rows = [
        f"{name},{int('cat' in classes)},{int('dog' in classes)},{int('person' in classes)}"
        for name, classes in CONTENT.items()
    ]
    path.write_text("image,cat,dog,person\r\n" + "\r\n".join(reversed(rows)) + "\r\n", encoding="utf-8-sig")
    return path


def class_folders(folder: Path) -> Path:
    for path in sorted(folder.iterdir()):
        for word in CONTENT.get(path.stem, ()):
            (folder.parent / "folders" / word).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder.parent / "folders" / word / path.name)
    return folder.parent / "folders"


def masks(folder: Path, size: tuple[int, int] = (40, 30)) -> Path:
    target = folder.parent / "masks"
    target.mkdir()
    for name, classes in CONTENT.items():
        mask = np.zeros(size[::-1], np.uint8)
        mask[0] = 255
        for word in classes:
            value = 1 + ("cat", "dog", "person").index(word)
            mask[5 * value : 5 * value + 4, 3:30] = value
        Image.fromarray(mask).save(target / f"{name}.png")
    return target


def run(*words: object) -> None:
    custom.main([str(word) for word in words])


def refused(capsys, root: Path, *words: object) -> str:
    """Run the command, which must fail with one sentence and leave nothing behind."""
    before = sorted(path.name for path in root.parent.iterdir())
    with pytest.raises(SystemExit) as stop:
        run(*words)
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1 and "Traceback" not in error
    assert sorted(path.name for path in root.parent.iterdir()) == before
    return error


@pytest.mark.parametrize("form", ["names", "columns", "folders", "masks"])
def test_every_form_gives_the_same_data_set(photographs, tmp_path, capsys, form):
    words = {
        "names": lambda: [photographs, tmp_path / "mine", "--labels", by_name(photographs)],
        "columns": lambda: [photographs, tmp_path / "mine", "--labels", by_column(photographs)],
        "folders": lambda: [class_folders(photographs), tmp_path / "mine"],
        "masks": lambda: [photographs, tmp_path / "mine", "--masks", masks(photographs), "--classes", "cat,dog,person"],
    }[form]()
    run(*words)
    printed = capsys.readouterr().out
    assert "5 photographs, 8 labels, 0 without a class, 4 train, 1 val" in printed
    assert printed.endswith(f"-p dataset mine -r labels '' -p data_root {tmp_path / 'mine'}\n")
    train, val = (load_dataset(tmp_path / "mine", split) for split in ("train", "val"))
    assert train.classes == ("cat", "dog", "person")
    assert train.ids == ("beach", "garden", "path", "sea") and val.ids == ("wall",)
    for data in (train, val):
        for image_id in data.ids:
            assert [data.classes[index] for index in np.flatnonzero(data.label(image_id))] == list(CONTENT[image_id])
            assert data.image(image_id).size == (40, 30)
            if form == "masks":
                assert set(np.unique(data.mask(image_id))) == {0, 255, *(1 + train.classes.index(w) for w in CONTENT[image_id])}
    described = json.loads((tmp_path / "mine/dataset.json").read_text())
    assert len(described.pop("source")) == 8 and described == {
        "name": "mine",
        "classes": ["cat", "dog", "person"],
        "ignore_index": 255,
    }
    assert not list(tmp_path.glob(".writing-*"))


def test_masks_beside_labels_are_kept_for_scoring(photographs, tmp_path):
    run(
        photographs,
        tmp_path / "mine",
        "--labels",
        by_name(photographs),
        "--masks",
        masks(photographs),
        "--classes",
        "person,dog,cat",
        "--val-share",
        0,
    )
    data = load_dataset(tmp_path / "mine", "train")
    assert data.classes == ("person", "dog", "cat") and len(data) == 5 and data.mask("sea").max() == 255
    assert not (tmp_path / "mine/ImageSets/Segmentation/val.txt").exists()


def test_ready_jpegs_are_copied_and_others_made_upright_small_and_rgb(tmp_path):
    source = tmp_path / "source"
    picture(source / "ready.jpg", 0, (120, 80), quality=60)
    exif = Image.Exif()
    exif[custom.ORIENTATION] = 6  # lies on its side
    picture(source / "lying.jpg", 1, (120, 80), exif=exif)
    picture(source / "large picture.png", 2, (300, 100))
    Image.fromarray(np.zeros((20, 30, 4), np.uint8)).save(source / "transparent.png")
    Image.new("CMYK", (30, 20)).save(source / "print.jpg")
    found = custom.from_folder(source)
    table = {name: custom.Photograph(path, ("thing",)) for name, (path, _) in found.items()}
    custom.make_dataset(table, ("thing",), tmp_path / "mine", longest=150, val_share=0)
    data = load_dataset(tmp_path / "mine", "train")
    assert (tmp_path / "mine/JPEGImages/ready.jpg").read_bytes() == (source / "ready.jpg").read_bytes()
    sizes = {image_id: data.image(image_id).size for image_id in data.ids}
    assert sizes == {
        "large_picture": (150, 50),
        "lying": (80, 120),
        "print": (30, 20),
        "ready": (120, 80),
        "transparent": (30, 20),
    }
    assert all(data.image(image_id).mode == "RGB" for image_id in data.ids)


def test_masks_become_small_with_their_photographs(tmp_path):
    picture(tmp_path / "source/a.png", 0, (100, 60))
    mask = np.zeros((60, 100), np.uint8)
    mask[:, 50:] = 1
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    run(
        tmp_path / "source",
        tmp_path / "mine",
        "--masks",
        tmp_path / "masks",
        "--classes",
        "right",
        "--longest",
        50,
        "--val-share",
        0,
    )
    data = load_dataset(tmp_path / "mine", "train")
    assert (data.mask("a") == np.repeat([[0, 1]], 25, 1).repeat(30, 0)).all()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "the first line must be image,classes"),
        ("image\nbeach.jpg\n", "the first line must be image,classes"),
        ("image,cat,cat\nbeach.jpg,0,1\n", "the first line must be"),
        ("image,classes\nbeach.jpg,dog,cat\n", "row 2: a row needs 2 columns"),
        ("image,cat,dog\nbeach.jpg,0,2\n", "row 2: a row needs 3 columns, 0 or 1 after the first"),
        ("image,classes\nbeach.jpg,dog\nbeach,cat\n", "row 3: 'beach' has a second row"),
        ("image,classes\nmoon.jpg,dog\n", "row 2: 'moon.jpg' is not a photograph in"),
        ("image,classes\nbeach.jpg,dog\n", "no row for garden.png and 3 other photographs"),
        ("image,classes\n" + "".join(f"{name},\n" for name in CONTENT), "there must be 1 to 254 classes"),
        ("image,classes\n" + "".join(f"{name},cat\n" for name in CONTENT).replace("cat", "image_id"), "not 'image_id'"),
        ("image,cat,dog\n" + "".join(f"{name},1,0\n" for name in CONTENT), "no photograph has the class 'dog'"),
        (b"\xff\xfeimage", "not a UTF-8 CSV file"),
    ],
)
def test_tables_that_do_not_fit(photographs, tmp_path, capsys, text, words):
    table = tmp_path / "table.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refused(capsys, tmp_path / "mine", photographs, tmp_path / "mine", "--labels", table)


def same_name(folder: Path) -> list[object]:
    picture(folder / "beach.png", 7)
    return ["--labels", by_name(folder)]


def unreadable(folder: Path) -> list[object]:
    (folder / "sea.webp").unlink(missing_ok=True)
    (folder / "sea.png").write_bytes(b"no picture")
    return ["--labels", by_name(folder)]


def sixteen_bits(folder: Path) -> list[object]:
    (folder / "sea.png").unlink()
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(folder / "sea.tif")
    return ["--labels", by_name(folder)]


def no_table(folder: Path) -> list[object]:
    return ["--labels", folder.parent / "nowhere.csv"]


def no_folders(folder: Path) -> list[object]:
    return []


def masks_without_classes(folder: Path) -> list[object]:
    return ["--masks", masks(folder)]


def masks_of_another_size(folder: Path) -> list[object]:
    return ["--masks", masks(folder, (41, 30)), "--classes", "cat,dog,person"]


def too_few_classes(folder: Path) -> list[object]:
    return ["--masks", masks(folder), "--classes", "cat,dog"]


def a_missing_mask(folder: Path) -> list[object]:
    (masks(folder) / "sea.png").unlink()
    return ["--masks", folder.parent / "masks", "--classes", "cat,dog,person"]


def other_classes(folder: Path) -> list[object]:
    return ["--labels", by_name(folder), "--classes", "cat,dog"]


def everything_for_validation(folder: Path) -> list[object]:
    return ["--labels", by_name(folder), "--val-share", 1]


@pytest.mark.parametrize(
    "damage, words",
    [
        (same_name, "has the same name as beach.jpg; rename one of them"),
        (unreadable, "sea.png: the photograph cannot be read"),
        (sixteen_bits, "sea.tif: the photograph has pixels of mode I;16"),
        (no_table, "nowhere.csv: the table of labels is missing"),
        (no_folders, "holds no folders that are named after classes"),
        (masks_without_classes, "--masks needs --classes"),
        (masks_of_another_size, "the mask is 41x30 pixels but its image is 40x30"),
        (too_few_classes, "the mask holds the value 3, but there are only 2 classes"),
        (a_missing_mask, "sea.png: the mask is missing"),
        (other_classes, "--classes names cat, dog, but the labels name cat, dog, person"),
        (everything_for_validation, "must lie between 0 and 1, not be 1.0"),
    ],
)
def test_folders_that_do_not_fit(photographs, tmp_path, capsys, damage, words):
    extra = damage(photographs)
    assert words in refused(capsys, tmp_path / "mine", photographs, tmp_path / "mine", *extra)


def test_class_folders_that_do_not_fit(photographs, tmp_path, capsys):
    folder = class_folders(photographs)
    picture(folder / "cat/wall.png", 99)
    assert "has the same name as wall.jpg" in refused(capsys, tmp_path / "mine", folder, tmp_path / "mine")
    (folder / "cat/wall.png").unlink()
    (folder / "horse").mkdir()
    assert "horse: no photographs were found" in refused(capsys, tmp_path / "mine", folder, tmp_path / "mine")
    assert "holds no folders" in refused(capsys, tmp_path / "mine", tmp_path / "nowhere", tmp_path / "mine")


def test_what_is_there_is_never_overwritten(photographs, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious.txt").write_text("mine")
    table = by_name(photographs)
    assert "exists already" in refused(capsys, tmp_path / "mine", photographs, tmp_path / "mine", "--labels", table)
    assert os.listdir(tmp_path / "mine") == ["precious.txt"]
    (tmp_path / "mine/precious.txt").unlink()
    run(photographs, tmp_path / "mine", "--labels", table)  # an empty folder may be filled
    assert len(load_dataset(tmp_path / "mine", "train")) == 4


def test_photographs_of_installed_packages_are_found_without_importing_them():
    found = installed_photographs()  # matplotlib is always there
    assert {sample.package for _, sample in found} >= {"matplotlib"}
    for path, sample in found:
        with Image.open(path) as image:
            assert min(image.size) > 100 and sample.licence
    assert len({custom.image_id(Path(sample.file)) for sample in SAMPLES}) == len(SAMPLES) == 16


def test_without_any_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("data_prep.sample_photographs.find_spec", lambda package: None)
    with pytest.raises(FileNotFoundError, match="set own_photographs"):
        installed_photographs()


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data")
def test_notebook_99_makes_masks_of_twenty_photographs(tmp_path):
    """A reader's folder: cats, dogs and trains of VOC in class folders, larger than the notebook wants them."""
    pytest.importorskip("timm")
    wanted = {"cat": 7, "dog": 7, "train": 6}
    for xml in sorted((REAL_DATA / "Annotations").glob("*.xml")):
        present = [word for word in read_voc_classes(xml, VOC_CLASSES) if word in wanted]
        if len(present) == 1 and wanted[present[0]]:
            wanted[present[0]] -= 1
            folder = tmp_path / "photographs" / present[0]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REAL_DATA / "JPEGImages" / f"{xml.stem}.jpg", folder / f"{xml.stem}.jpg")
    parameters = {
        "own_photographs": str(tmp_path / "photographs"),
        "own_longest": 128,
        "data_root": str(tmp_path / "data"),
        "runs_root": str(tmp_path / "runs"),
        "cam_epochs": 2,
        "cam_crop": 96,
        "cam_long_side_min": 96,
        "cam_long_side_max": 128,
    }
    papermill.execute_notebook(
        PROJECT_ROOT / "notebooks/99_bring_your_own_images.ipynb",
        tmp_path / "out.ipynb",
        parameters,
        cwd=PROJECT_ROOT,
        kernel_name="python3",
        progress_bar=False,
    )
    data = load_dataset(tmp_path / "data", "train")
    assert len(data) == 20 and data.classes == ("cat", "dog", "train")
    for image_id in data.ids:
        mask = read_mask(tmp_path / f"runs/photographs/cam/seed0/seeds/seed_masks/{image_id}.png", 3, data.image(image_id).size)
        assert set(np.unique(mask)) <= {0, *(1 + np.flatnonzero(data.label(image_id)))}


def test_a_full_disk_leaves_nothing(photographs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(custom, "write_labels", full)
    found, classes = custom.from_table(photographs, by_name(photographs))
    with pytest.raises(DataError, match="No space left on device"):
        custom.make_dataset(found, classes, tmp_path / "mine")
    assert not (tmp_path / "mine").exists() and not list(tmp_path.glob(".writing-*"))


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A program of Ghostscript's name that leaves a mark when it is started; return where."""
    from PIL import EpsImagePlugin

    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin32c"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/bin/started'\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return tmp_path / "bin/started"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("where", ["photograph", "mask"])
def test_a_file_of_another_kind_starts_no_program(photographs, tmp_path, capsys, ghostscript, where):
    table, folder = by_name(photographs), masks(photographs)
    (photographs / "beach.jpg" if where == "photograph" else folder / "beach.png").write_bytes(EPS)
    words = [
        photographs,
        tmp_path / "mine",
        "--labels",
        table,
        *(["--masks", folder, "--classes", "cat,dog,person"] if where == "mask" else []),
    ]
    assert "cannot be read" in refused(capsys, tmp_path / "mine", *words)
    assert not ghostscript.exists()


def test_checking_a_data_set_starts_no_program(voc_folder, ghostscript):
    from data_prep.check import check_dataset

    (voc_folder / "JPEGImages/m_00.jpg").write_bytes(EPS)
    (voc_folder / "SegmentationClass/m_01.png").write_bytes(EPS)
    report = check_dataset(voc_folder, progress=False)
    assert report.counts["unreadable"] == 2 and not ghostscript.exists()
