"""COCO 2014: the whole way from images and archives to a ready folder, and the 128 true images."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools", reason="pip install -e '.[coco]'")

from data_prep import coco14  # noqa: E402
from data_prep.check import check_dataset  # noqa: E402
from data_prep.coco14 import prepare_coco14, survey_coco14  # noqa: E402
from data_prep.coco_categories import COCO_CLASSES  # noqa: E402
from data_prep.coco_json import image_id  # noqa: E402
from data_prep.official import COCO_PAGE, ListFacts, Source, list_sha256  # noqa: E402
from data_prep.toy_coco import make_toy_coco  # noqa: E402
from wsss_lib.core.files import voc_palette  # noqa: E402
from wsss_lib.data.dataset import load_dataset  # noqa: E402
from wsss_lib.errors import DataError
from wsss_lib.ops.metrics import Evaluation, confusion_matrix  # noqa: E402
from wsss_lib.parameters import PROJECT_ROOT  # noqa: E402

REAL_DATA = Path(os.environ.get("WSSS_REAL_DATA", PROJECT_ROOT / "../shared/data")) / "coco128"
NUM_TRAIN, NUM_VAL = 24, 8
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """Generated images in the layout of 2014, to be read only."""
    return make_toy_coco(tmp_path_factory.mktemp("toy") / "coco", num_train=NUM_TRAIN, num_val=NUM_VAL, progress=False)


def prepare(root: Path, source: Path, **others) -> list:
    options = {
        "train": source / "annotations/instances_train2014.json",
        "val": source / "annotations/instances_val2014.json",
        "images": [path for path in source.iterdir() if path.name.startswith(("train", "val"))],
        "partial_data": True,
        "fetch": False,
        "progress": False,
    }
    return prepare_coco14(root, **(options | others))


@pytest.fixture(scope="module")
def prepared(toy, tmp_path_factory) -> Path:
    """The data set made of them, to be read only."""
    root = tmp_path_factory.mktemp("prepared") / "coco14"
    prepare(root, toy)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def states(found: list) -> set[str]:
    return {finding.state for finding in found}


@pytest.mark.system
def test_a_ready_folder_has_lists_labels_and_masks(prepared, toy):
    assert states(survey_coco14(prepared, {})) == {"have"} and not check_dataset(prepared, progress=False).counts
    data, annotated = load_dataset(prepared, "train"), load_dataset(prepared, "train_annotated")
    assert (len(data), data.num_classes, data.classes) == (NUM_TRAIN, 80, COCO_CLASSES)
    assert set(data.ids) - set(annotated.ids) == {image_id(7)} and not data.label(image_id(7)).any()
    assert not data.mask(image_id(7)).any() and annotated.labels.any(1).all()
    gray = data.image(image_id(20))
    with Image.open(data.image_path(image_id(20))) as image:
        assert image.mode == "L" and gray.mode == "RGB" and gray.size == image.size
    for name in data.ids:  # labels name what masks show; a small object may lie wholly under others, not here
        shown = {int(value) - 1 for value in np.unique(data.mask(name))} - {-1}
        assert shown <= set(np.flatnonzero(data.label(name)).tolist())
    with Image.open(data.mask_path(image_id(1))) as image:
        assert image.mode == "P" and image.getpalette()[:768] == voc_palette().flatten().tolist()
    assert len(load_dataset(prepared, "val")) == NUM_VAL and len({data.image(name).size for name in data.ids}) > 2
    assert not [name for name in contents(prepared) if ".writing" in name or "unfinished" in name]


def test_images_are_linked_and_not_copied(prepared, toy):
    assert os.path.samefile(prepared / f"JPEGImages/{image_id(1)}.jpg", toy / f"train2014/COCO_train2014_{image_id(1)}.jpg")


@pytest.mark.system
@pytest.mark.parametrize("others", [{"workers": 2}, {"names": "2017"}])
def test_both_traditions_of_names_and_any_number_of_workers_give_the_same(prepared, toy, tmp_path, others):
    source = toy
    if "names" in others:
        source = make_toy_coco(tmp_path / "2017", num_train=NUM_TRAIN, num_val=NUM_VAL, progress=False, **others)
    prepare(tmp_path / "coco14", source, **({} if "names" in others else others))
    again, before = contents(tmp_path / "coco14"), contents(prepared)
    if "names" in others:  # the JSON has other file names
        again.pop("dataset.json"), before.pop("dataset.json")
    assert again == before


def test_crowd_regions_as_255_are_masks_of_their_own(prepared, toy, tmp_path):
    root = Path(shutil.copytree(prepared, tmp_path / "coco14"))
    prepare(root, toy, crowd="ignore")
    painted, ignored = load_dataset(root, "train"), load_dataset(root, "train", mask_folder="SegmentationClassCrowd255")
    assert sum(255 in painted.mask(name) for name in painted.ids) == 0
    assert sum(255 in ignored.mask(name) for name in ignored.ids) >= 2
    for name in painted.ids:
        one, other = painted.mask(name), ignored.mask(name)
        np.testing.assert_array_equal(one[other != 255], other[other != 255])
    with pytest.raises(ValueError, match="crowd must be one of paint, ignore"):
        prepare(root, toy, crowd="drop")


@pytest.mark.parametrize(
    "gone",
    [
        f"SegmentationClass/{image_id(3)}.png",
        f"JPEGImages/{image_id(26)}.jpg",
        "labels.csv",
        "dataset.json",
        "ImageSets/Segmentation/val_annotated.txt",
    ],
)
def test_an_interrupted_run_is_completed_and_a_second_one_changes_nothing(prepared, toy, tmp_path, gone):
    root = Path(shutil.copytree(prepared, tmp_path / "coco14"))
    before = contents(root)
    (root / gone).unlink()
    (root / "SegmentationClass/.writing-x.png").write_bytes(b"half")
    prepare(root, toy)
    assert contents(root) == before
    prepare(root, toy)
    assert contents(root) == before


def archives_of(toy: Path, folder: Path) -> tuple[dict[str, Source], dict[str, ListFacts]]:
    """Pack generated data as the official archives are packed."""
    folder.mkdir()
    sources = {}
    for key, name, members in (
        ("annotations", "annotations_trainval2014.zip", toy.glob("annotations/*")),
        ("train", "train2014.zip", toy.glob("train2014/*")),
        ("val", "val2014.zip", toy.glob("val2014/*")),
    ):
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as file:
            for path in members:
                file.write(path, path.relative_to(toy).as_posix())
            if key == "annotations":
                file.writestr("annotations/captions_train2014.json", "{}")
        packed = (folder / name).read_bytes()
        sources[key] = Source(name, f"http://127.0.0.1:9/{name}", COCO_PAGE, len(packed), hashlib.sha256(packed).hexdigest())
    lists = {}
    for split, numbers in (("train", range(1, NUM_TRAIN + 1)), ("val", range(NUM_TRAIN + 1, NUM_TRAIN + NUM_VAL + 1))):
        lists[split] = [image_id(number) for number in numbers]
        lists[f"{split}_annotated"] = [image_id(number) for number in numbers if number % 20 != 7]
    return sources, {name: ListFacts(len(ids), list_sha256(ids)) for name, ids in lists.items()}


def test_from_archives_to_a_ready_folder(prepared, toy, tmp_path):
    sources, lists = archives_of(toy, tmp_path / "archives")
    options = {"archives": tmp_path / "archives", "fetch": False, "progress": False, "sources": sources, "lists": lists}
    found = prepare_coco14(tmp_path / "coco14", **options)
    assert states(found) == {"have"} and sum("the official list" in finding.detail for finding in found) == 4
    made = contents(tmp_path / "coco14")
    assert {name for name in made if name.startswith("annotations")} == {
        f"annotations/instances_{split}2014.json" for split in ("train", "val")
    }
    assert {name: data for name, data in made.items() if not name.startswith("annotations")} == contents(prepared)
    shutil.rmtree(tmp_path / "archives")  # no longer needed
    assert states(prepare_coco14(tmp_path / "coco14", **options)) == {"have"} and contents(tmp_path / "coco14") == made


@pytest.mark.parametrize("archive", ["annotations_trainval2014.zip", "train2014.zip", "val2014.zip"])
def test_a_missing_or_flipped_archive_names_its_page(toy, tmp_path, archive):
    sources, lists = archives_of(toy, tmp_path / "archives")
    options = {"archives": tmp_path / "archives", "fetch": False, "progress": False, "sources": sources, "lists": lists}
    path = tmp_path / "archives" / archive
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{archive}: the file has SHA-256 .* fetch it from {COCO_PAGE}"):
        prepare_coco14(tmp_path / "coco14", **options)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{archive}: missing; fetch it .* from {COCO_PAGE}"):
        prepare_coco14(tmp_path / "coco14", **options)
    assert not (tmp_path / "coco14/labels.csv").exists() and not (tmp_path / "coco14/dataset.json").exists()


def test_other_images_or_annotations_are_refused(prepared, toy, tmp_path):
    root = Path(shutil.copytree(prepared, tmp_path / "coco14"))
    other = make_toy_coco(tmp_path / "other", seed=1, num_train=NUM_TRAIN, num_val=NUM_VAL, progress=False)
    with pytest.raises(DataError, match="made from other annotation files"):
        prepare(root, other)
    with pytest.raises(DataError, match="image 1 is also in"):
        prepare(tmp_path / "new", toy, val=toy / "annotations/instances_train2014.json")
    with pytest.raises(FileNotFoundError, match="24 of 24 images of train are missing, the first is COCO_train2014_"):
        prepare(tmp_path / "new", toy, images=[])
    (root / f"SegmentationClass/{image_id(1)}.png").unlink()
    (root / f"JPEGImages/{image_id(1)}.jpg").unlink()
    Image.new("RGB", (30, 20)).save(root / f"JPEGImages/{image_id(1)}.jpg")
    with pytest.raises(DataError, match=f"{image_id(1)}.jpg: the image has 30x20 pixels, but .* says 144x96"):
        prepare(root, toy)
    assert not (root / f"SegmentationClass/{image_id(1)}.png").exists()


def test_a_bad_annotation_is_named_with_its_image(toy, tmp_path):
    made = json.loads((toy / "annotations/instances_train2014.json").read_text())
    made["annotations"][0]["segmentation"] = [[0, 0, 1e9, 0, 5, 5]]
    number = made["annotations"][0]["image_id"]
    (tmp_path / "bad.json").write_text(json.dumps(made))
    with pytest.raises(DataError, match=f"bad.json: an annotation of image {number} cannot be used .a polygon leaves"):
        prepare(tmp_path / "coco14", toy, train=tmp_path / "bad.json")
    assert not (tmp_path / f"coco14/SegmentationClass/{image_id(number)}.png").exists()
    assert not (tmp_path / "coco14/labels.csv").exists()


def test_a_part_without_some_images_leaves_them_out(toy, tmp_path):
    shutil.copytree(toy / "train2014", tmp_path / "coco14/train2014")
    for path in sorted((tmp_path / "coco14/train2014").iterdir())[:10]:
        path.unlink()
    found = prepare_coco14(
        tmp_path / "coco14", train=toy / "annotations/instances_train2014.json", partial_data=True, progress=False
    )
    assert found[0].detail.startswith("14 of 24") and len(load_dataset(tmp_path / "coco14", "train")) == 14
    with pytest.raises(FileNotFoundError, match="train2014.zip: missing"):
        prepare_coco14(tmp_path / "coco14", train=toy / "annotations/instances_train2014.json", fetch=False, progress=False)


def test_the_command(toy, tmp_path, capsys):
    arguments = [
        str(tmp_path / "coco14"),
        "--images",
        str(toy / "train2014"),
        "--partial",
        "--train",
        str(toy / "annotations/instances_train2014.json"),
    ]
    coco14.main(arguments)
    coco14.main([*arguments, "--status"])
    output = capsys.readouterr().out
    assert "missing" not in output and "24 of 24" in output
    with pytest.raises(SystemExit) as stop:
        coco14.main([str(tmp_path / "none"), "--no-download"])
    output = capsys.readouterr()
    assert stop.value.code == 1 and output.err.count("\n") == 1 and COCO_PAGE in output.out and "13.51 GB" in output.out


def test_scores_of_81_classes_are_added_image_by_image(prepared):
    """The sum of the images' confusion matrices is that of all pixels together, so that nothing has to be kept."""
    data, evaluation = load_dataset(prepared, "train"), Evaluation(81)
    truths = [data.mask(name) for name in data.ids]
    predictions = [np.roll(truth, 3, axis=1) for truth in truths]
    for truth, prediction in zip(truths, predictions, strict=True):
        evaluation.add(truth, prediction)
    together = confusion_matrix(
        np.concatenate([truth.ravel() for truth in truths])[None],
        np.concatenate([prediction.ravel() for prediction in predictions])[None],
        81,
    )
    np.testing.assert_array_equal(evaluation.confusion, together)
    assert together.shape == (81, 81) and 0 < evaluation.scores().miou < 1


# ---- 128 true images


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip("skipped: no real data")
    root = tmp_path_factory.mktemp("real") / "coco128"
    found = prepare_coco14(
        root,
        train=REAL_DATA / "annotations/instances_coco128.json",
        images=[REAL_DATA / "JPEGImages"],
        partial_data=True,
        fetch=False,
        progress=False,
    )
    assert states(found) == {"have"}
    return root


@pytest.mark.system
def test_true_images_have_labels_and_masks(real):
    data = load_dataset(real, "train")
    assert (len(data), len(load_dataset(real, "train_annotated")), data.num_classes) == (128, 126, 80)
    assert [data.classes[channel] for channel in np.flatnonzero(data.label("000000000009"))] == ["bowl", "orange", "broccoli"]
    report = check_dataset(real, progress=False)
    assert not report.counts and (report.images, report.masks) == (128, 128)
    assert sum(data.labels.any(1)) == 126 and data.classes[data.labels.sum(0).argmax()] == "person"
    modes = [Image.open(data.image_path(name)).mode for name in data.ids]
    assert modes.count("L") == 1 and all(data.image(name).mode == "RGB" for name in data.ids[:5])
    foreground = np.mean([(data.mask(name) > 0).mean() for name in data.ids[:40]])
    assert 0.2 < foreground < 0.7


def test_an_independent_count_of_a_true_image_agrees(real):
    """Another way to the same mask: pycocotools' own class, smallest first, only where nothing is painted yet."""
    from pycocotools.coco import COCO

    coco = COCO(str(REAL_DATA / "annotations/instances_coco128.json"))
    data = load_dataset(real, "train")
    for number in (9, 25, 30, 34):
        mask = np.zeros(data.mask(image_id(number)).shape, np.uint8)
        for annotation in sorted(reversed(coco.imgToAnns[number]), key=lambda item: item["area"]):
            mask[(coco.annToMask(annotation) > 0) & (mask == 0)] = sorted(coco.cats).index(annotation["category_id"]) + 1
        np.testing.assert_array_equal(data.mask(image_id(number)), mask)
