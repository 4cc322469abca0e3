"""What was not made by a command is never changed by it: every command runs into a folder full of a stranger's files."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import (
    check,
    checkpoints,
    coco14,
    custom,
    export,
    labels,
    maps,
    resnet38_mxnet,
    saliency,
    toy,
    toy_coco,
    voc12,
    voc_labels,
)
from data_prep.weight_layouts import layouts
from tests.conftest import write_miniature
from tests.test_voc12 import Official, write_devkit
from wsss_lib.core.files import write_tensors
from wsss_lib.data.dataset import VOC_CLASSES

NAMES = (
    "labels.csv",
    "dataset.json",
    "subcategories.csv",
    "unfinished.json",
    "out",
    "notes.txt",
    ".hidden",
    "archives/x.tar",
    "ImageSets/Segmentation/train.txt",
    "ImageSets/Segmentation/val.txt",
    "ImageSets/Segmentation/train_aug.txt",
    "ImageSets/Segmentation/trainval.txt",
    "ImageSets/Segmentation/train_annotated.txt",
    "ImageSets/Segmentation/test.txt",
    "JPEGImages/2007_000032.jpg",
    "JPEGImages/2026_000001.jpg",
    "JPEGImages/000000000001.jpg",
    "Annotations/2007_000032.xml",
    "SegmentationClass/2007_000032.png",
    "SegmentationClass/2026_000001.png",
    "SegmentationClass/000000000001.png",
    "SegmentationClassAug/2007_000032.png",
    "SegmentationClassAug/2008_000100.png",
    "SBD/train.txt",
    "SBD/val.txt",
    "saliency_map/2026_000001.png",
    "saliency_map/m_00.png",
    "PartMasks/2026_000001.png",
    "train2014/COCO_train2014_000000000001.jpg",
    "train2017/000000000001.jpg",
    "annotations/instances_train2014.json",
    "annotations/instances_val2014.json",
    "runs/miniature/official/notes.txt",
)


def snapshot(folder: Path) -> dict[str, str]:
    """Return the hash of every file, and where every link leads."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
    }


def foreign(folder: Path) -> Path:
    """Fill a folder with files of every name that a command might want, none of them its own."""
    for number, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jpg", ".png"):
            Image.new("L", (16, 12), number).save(path)
        else:
            path.write_text(f"a stranger's {name}")
    return folder


def run(command: Callable, *words: object) -> int:
    """Return the command's status."""
    try:
        command.main([str(word) for word in words])
    except SystemExit as stop:
        return 1 if isinstance(stop.code, str) else stop.code or 0
    return 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """What the commands read: data sets, photographs, weights, maps, annotations."""
    folder = tmp_path_factory.mktemp("inputs")
    write_miniature(folder / "miniature")
    write_devkit(folder / "devkit")
    official = Official(folder / "official")
    shutil.copytree(official.folder, folder / "archives")
    Image.new("RGB", (30, 20)).save(folder / "photograph.jpg")
    for word in ("cat", "dog"):
        (folder / "photographs" / word).mkdir(parents=True)
        shutil.copyfile(folder / "photograph.jpg", folder / "photographs" / word / f"{word}.jpg")
    toy_coco.make_toy_coco(folder / "coco", num_train=4, num_val=1, progress=False)
    np.save(folder / "cls_labels.npy", {2007000032: np.eye(20, dtype=np.float32)[0]})
    layout = layouts()["irn-cam"][0]
    weights = {key: torch.zeros([20 if side == "C" else side for side in shape]) for key, (shape, _) in layout.keys.items()}
    torch.save(weights, folder / "cam.pth")
    write_tensors(folder / "cam.safetensors", checkpoints.convert(weights, "irn-cam", "x")[0])
    (folder / "maps").mkdir()
    for number in range(8):
        np.save(folder / "maps" / f"m_{number:02d}.npy", {"keys": np.zeros(0)})
    (folder / "preset.yaml").write_text(f"dataset: miniature\ndata_root: {folder / 'miniature'}\nnum_workers: 0\n")
    return folder


COMMANDS = {
    "toy": lambda i, f: (toy, f, "--train", 2, "--val", 1),
    "toy_coco": lambda i, f: (toy_coco, f, "--train", 2, "--val", 1),
    "toy_coco 2017": lambda i, f: (toy_coco, f, "--train", 2, "--val", 1, "--names", "2017"),
    "voc12": lambda i, f: (voc12, f, "--archives", i / "archives", "--no-download"),
    "voc12 partial": lambda i, f: (voc12, f, "--partial"),
    "voc12 masks": lambda i, f: (voc12, f, "--partial", "--labels", "masks"),
    "voc12 status": lambda i, f: (voc12, f, "--status"),
    "coco14": lambda i, f: (
        coco14,
        f,
        "--train",
        i / "coco/annotations/instances_train2014.json",
        "--images",
        i / "coco/train2014",
        "--partial",
    ),
    "coco14 status": lambda i, f: (coco14, f, "--status"),
    "coco14 official": lambda i, f: (coco14, f, "--no-download"),
    "voc_labels": lambda i, f: (voc_labels, i / "devkit", f / "labels.csv"),
    "voc_labels out": lambda i, f: (voc_labels, i / "devkit", f / "out"),
    "labels import": lambda i, f: (labels, "import", i / "cls_labels.npy", f / "labels.csv"),
    "custom": lambda i, f: (custom, i / "photographs", f),
    "checkpoints convert": lambda i, f: (checkpoints, "convert", "--format", "irn-cam", i / "cam.pth", f / "out"),
    "checkpoints export": lambda i, f: (checkpoints, "export", "--format", "irn-cam", i / "cam.safetensors", f / "out"),
    "saliency check": lambda i, f: (saliency, "check", f),
    "saliency make": lambda i, f: (saliency, "make", f, "--network", f / "notes.txt"),
    "check": lambda i, f: (check, f),
    "export": lambda i, f: (export, i / "miniature/SegmentationClass", i / "miniature", f),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_a_strangers_files_stay_as_they_are(inputs, tmp_path, capsys, name):
    folder = foreign(tmp_path / "folder")
    before, others = snapshot(folder), snapshot(inputs)
    assert run(*COMMANDS[name](inputs, folder)) == 1
    assert snapshot(folder).items() >= before.items() and snapshot(inputs) == others
    assert len([line for line in capsys.readouterr().err.splitlines() if line]) <= 1
    if name not in ("voc12",):  # which adds what the archives hold where nothing stands against it
        assert snapshot(folder) == before, "half a result"


ADDING = {
    "voc12 partial": "devkit",
    "voc12 masks": "devkit",
    "coco14": "devkit",
    "saliency check": "miniature",
    "voc12": "devkit",
    "check": "miniature",
    "toy_coco": "coco",
    "toy": "miniature",
}


@pytest.mark.parametrize("name", ADDING)
@pytest.mark.parametrize("table", ["labels.csv", "dataset.json", "ImageSets/Segmentation/train.txt"])
def test_a_table_edited_by_hand_in_a_real_data_set_stays(inputs, tmp_path, capsys, name, table):
    folder = Path(shutil.copytree(inputs / ADDING[name], tmp_path / "folder"))
    text = {
        "labels.csv": "image_id," + ",".join(VOC_CLASSES) + "\n2007_000032," + ",".join("1" * 20) + "\n",
        "dataset.json": json.dumps({"name": "mine", "classes": list(VOC_CLASSES), "ignore_index": 255, "note": "by hand"}),
        "ImageSets/Segmentation/train.txt": "2007_000032\n",
    }[table]
    (folder / table).parent.mkdir(parents=True, exist_ok=True)
    (folder / table).write_text(text)
    before = snapshot(folder)
    run(*COMMANDS[name](inputs, folder))
    assert snapshot(folder).items() >= before.items()


@pytest.mark.parametrize(
    "name",
    [
        "voc_labels",
        "labels import",
        "checkpoints convert",
        "checkpoints export",
        "custom",
        "toy",
        "toy_coco",
        "coco14",
        "voc12 partial",
        "voc12 masks",
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_a_second_run_is_possible_and_changes_nothing(inputs, tmp_path, name):
    folder = tmp_path / "folder"
    if name.startswith("voc12"):
        shutil.copytree(inputs / "devkit", folder)
    first = run(*COMMANDS[name](inputs, folder))
    before = snapshot(folder)
    second = run(*COMMANDS[name](inputs, folder))
    assert before and first == 0 and second == (1 if name == "custom" else 0)  # custom makes a folder whole, once
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "name", ["voc_labels", "voc_labels out", "labels import", "checkpoints convert", "checkpoints export", "voc12 partial"]
)
def test_overwrite_replaces_what_it_is_given_for(inputs, tmp_path, name):
    folder = tmp_path / "folder"
    if name.startswith("voc12"):
        shutil.copytree(inputs / "devkit", folder)
    folder.mkdir(exist_ok=True)
    (folder / "labels.csv").write_text("by hand")
    (folder / "out").write_text("by hand")
    before = snapshot(folder)
    assert run(*COMMANDS[name](inputs, folder)) == 1 and snapshot(folder) == before
    assert run(*COMMANDS[name](inputs, folder), "--overwrite") == 0
    changed = {path for path, content in snapshot(folder).items() if before.get(path) not in (content, None)}
    assert len(changed) == 1 and changed <= {"labels.csv", "out"}


@pytest.mark.parametrize("link", ["", "hard", "soft"])
@pytest.mark.parametrize(
    "command",
    [
        (labels, "import"),
        (checkpoints, "convert", "--format", "irn-cam"),
        (checkpoints, "export", "--format", "irn-cam"),
        (resnet38_mxnet,),
    ],
)
def test_no_command_replaces_its_own_input(inputs, tmp_path, command, link):
    source = {labels: "cls_labels.npy", checkpoints: "cam.pth", resnet38_mxnet: "cam.pth"}[command[0]]
    source = "cam.safetensors" if "export" in command else source
    path = output = Path(shutil.copyfile(inputs / source, tmp_path / source))
    if link:
        output = tmp_path / "other name"
        output.hardlink_to(path) if link == "hard" else output.symlink_to(path)
    before = snapshot(tmp_path)
    for words in ((), ("--overwrite",)):
        assert run(*command, path, output, *words) == 1
        assert snapshot(tmp_path) == before


def test_what_voc12_made_itself_it_may_make_anew(inputs, tmp_path):
    folder = Path(shutil.copytree(inputs / "devkit", tmp_path / "folder"))
    assert run(voc12, folder, "--partial") == 0
    by_boxes = (folder / "labels.csv").read_bytes()
    (folder / "Annotations/2007_000032.xml").write_text("<annotation><object><name>cow</name></object></annotation>")
    assert run(voc12, folder, "--partial") == 0
    assert (folder / "labels.csv").read_bytes() != by_boxes
    (folder / "labels.csv").write_bytes(by_boxes)  # made by it at some time
    assert run(voc12, folder, "--partial") == 0
    (folder / "labels.csv").write_bytes(by_boxes.replace(b"0,", b"1,", 1))
    before = snapshot(folder)
    assert run(voc12, folder, "--partial") == 1 and snapshot(folder) == before


def test_a_made_up_archive_of_test_images_adds_test_images_only(tmp_path, capsys):
    write_devkit(tmp_path / "VOC2012")
    before = snapshot(tmp_path / "VOC2012")

    def archive(**contents: bytes) -> None:
        (tmp_path / "archives").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "archives/VOC2012test.tar", "w") as file:
            for name, content in {"ImageSets/Segmentation/test.txt": b"2008_000001\n", **contents}.items():
                info = tarfile.TarInfo(f"VOCdevkit/VOC2012/{name}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))

    words = (voc12, tmp_path / "VOC2012", "--archives", tmp_path / "archives", "--partial")
    archive(**{"JPEGImages/2007_000032.jpg": b"another"})
    assert run(*words) == 1 and "2007_000032.jpg: is there already" in capsys.readouterr().err
    assert snapshot(tmp_path / "VOC2012") == before
    archive(
        **{
            "ImageSets/Segmentation/train.txt": b"2007_000032\n",
            "SegmentationClass/2008_000001.png": b"x",
            "JPEGImages/2008_000001.jpg": b"new",
        }
    )
    assert run(*words) == 0
    after = snapshot(tmp_path / "VOC2012")
    assert after.items() >= before.items() and set(after) - set(before) >= {
        "JPEGImages/2008_000001.jpg",
        "ImageSets/Segmentation/test.txt",
    }
    assert not {"SegmentationClass/2008_000001.png"} & set(after)


def test_maps_of_others_leave_other_results_alone(inputs, tmp_path):
    runs = foreign(tmp_path / "folder") / "runs"
    before = snapshot(tmp_path)
    preset = tmp_path / "preset.yaml"
    preset.write_text((inputs / "preset.yaml").read_text() + f"runs_root: {runs}\n")
    assert run(maps, "import", inputs / "maps", "--format", "irn", "--preset", preset, "--method", "official") in (0, 1)
    assert snapshot(tmp_path).items() >= before.items()


@pytest.mark.parametrize("names", ["2014", "2017"])
def test_true_images_of_coco_are_not_replaced_by_generated_ones(tmp_path, names):
    path = tmp_path / {"2014": "train2014/COCO_train2014_000000000001.jpg", "2017": "train2017/000000000001.jpg"}[names]
    path.parent.mkdir()
    Image.new("RGB", (16, 12)).save(path)
    before = snapshot(tmp_path)
    assert run(toy_coco, tmp_path, "--train", 2, "--val", 1, "--names", names) == 1 and snapshot(tmp_path) == before


def test_generated_images_of_coco_are_completed_after_a_kill(inputs, tmp_path, monkeypatch):
    words = (toy_coco, tmp_path / "folder", "--train", 2, "--val", 1)
    assert run(*words) == 0
    whole = snapshot(tmp_path / "folder")
    for name in [*whole, "everything"]:
        shutil.rmtree(tmp_path / "folder") if name == "everything" else (tmp_path / "folder" / name).unlink()
        if name.endswith(".jpg"):  # images are made before their annotations
            (tmp_path / "folder/annotations/instances_val2014.json").unlink()
            (tmp_path / "folder/annotations/instances_train2014.json").unlink()
            (tmp_path / "folder/unfinished_toy_coco.json").write_text(
                json.dumps(
                    {
                        "info": {
                            "description": "generated, not COCO",
                            "seed": 0,
                            "num_train": 2,
                            "num_val": 1,
                            "width": 144,
                            "names": "2014",
                        }
                    }
                )
            )
        assert run(*words) == 0 and snapshot(tmp_path / "folder") == whole
