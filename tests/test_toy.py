"""The generated data set: layout, agreement of its files, determinism, resume, refusal of bad parameters, speed."""

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from data_prep import toy
from data_prep.toy import make_toy_dataset
from data_prep.toy_scenes import CLASSES, SUBCATEGORIES, VARIED_CLASS, WATER_CLASS, draw_scene, head_pattern
from data_prep.voc_xml import read_voc_classes
from wsss_lib.core.files import IGNORE, voc_palette
from wsss_lib.data.dataset import load_dataset

SIZE = {"num_train": 20, "num_val": 10, "progress": False}


def contents(root: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set of 30 images, to be read only."""
    return make_toy_dataset(tmp_path_factory.mktemp("toy") / "data", **SIZE)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.system
def test_equal_seeds_give_equal_bytes_with_any_number_of_workers(folder, tmp_path):
    again = make_toy_dataset(tmp_path / "again", workers=2, **SIZE)
    assert contents(again) == contents(folder)


def test_other_seeds_give_other_images(folder, tmp_path):
    first, second = contents(folder), contents(make_toy_dataset(tmp_path / "other", seed=1, **SIZE))
    assert first.keys() == second.keys()
    assert not [name for name in first if name.startswith("JPEGImages") and first[name] == second[name]]


def test_layout_is_that_of_voc(folder):
    names = set(contents(folder))
    ids = [f"2026_{number:06d}" for number in range(1, 31)]
    per_image = {pattern.format(image_id) for pattern in toy.IMAGE_FILES for image_id in ids}
    assert names == per_image | set(toy.LISTS) | {"dataset.json"}
    assert (folder / "ImageSets/Segmentation/train.txt").read_text().split() == ids[:20]
    assert (folder / "ImageSets/Segmentation/val.txt").read_text().split() == ids[20:]
    assert (folder / "ImageSets/Segmentation/trainval.txt").read_text().split() == ids
    description = json.loads((folder / "dataset.json").read_text())
    assert description["name"] == "toy" and description["ignore_index"] == 255
    assert tuple(description["classes"]) == CLASSES and description["seed"] == 0


def test_file_types(folder):
    with Image.open(folder / "JPEGImages/2026_000001.jpg") as image:
        assert (image.mode, image.size) == ("RGB", (96, 96))
        assert {sampling[1:3] for sampling in image.layer} == {(1, 1)}  # 4:4:4
    for name in ("SegmentationClass", "SegmentationObject", "PartMasks"):
        with Image.open(folder / name / "2026_000001.png") as image:
            assert image.mode == "P" and image.getpalette()[:768] == voc_palette().flatten().tolist()
    with Image.open(folder / "saliency_map/2026_000001.png") as image:
        assert (image.mode, image.size) == ("L", (96, 96))


@pytest.mark.parametrize("split", ["train", "val"])
def test_table_annotations_and_masks_name_the_same_classes(folder, split):
    data = load_dataset(folder, split)
    assert data.classes == CLASSES
    for image_id, label in zip(data.ids, data.labels, strict=True):
        present = [CLASSES[i] for i in np.flatnonzero(label)]
        assert present and read_voc_classes(folder / f"Annotations/{image_id}.xml", CLASSES) == present
        assert set(np.unique(data.mask(image_id))) - {0, IGNORE} == {CLASSES.index(name) + 1 for name in present}


def test_masks_of_an_image_agree(folder):
    for image_id in load_dataset(folder, "trainval").ids:
        classes, objects, parts = (
            read(folder / name / f"{image_id}.png") for name in ("SegmentationClass", "SegmentationObject", "PartMasks")
        )
        assert set(np.unique(parts)) <= {0, 1, 2, IGNORE} and {0, 1, IGNORE} <= set(np.unique(parts))
        for value in (0, IGNORE):
            np.testing.assert_array_equal(parts == value, classes == value)
            np.testing.assert_array_equal(objects == value, classes == value)
        for number in set(np.unique(objects)) - {0, IGNORE}:
            assert len(np.unique(classes[objects == number])) == 1


def test_borders_lie_between_objects_and_background_and_are_thin(folder):
    for image_id in load_dataset(folder, "trainval").ids:
        objects = read(folder / "SegmentationObject" / f"{image_id}.png")
        border = objects == IGNORE
        assert border.any() and not ndimage.binary_erosion(border, np.ones((5, 5))).any()
        # No two different values touch without a border between them.
        for one, two in ((objects[1:], objects[:-1]), (objects[:, 1:], objects[:, :-1])):
            assert not ((one != two) & (one != IGNORE) & (two != IGNORE)).any()


def test_boxes_surround_the_visible_objects():
    gaps = []
    for scene in (draw_scene(0, index) for index in range(60)):
        for number, creature in enumerate(scene.creatures, start=1):
            rows, columns = np.nonzero(scene.object_mask == number)
            x0, y0, x1, y1 = creature.box
            gaps += [columns.min() + 1 - x0, rows.min() + 1 - y0, x1 - columns.max() - 1, y1 - rows.max() - 1]
            assert 1 <= min(creature.box) and max(creature.box) <= 96
            assert creature.has_head == (creature.head_box is not None)
    # The box holds the whole object, the mask only what lies within the border of one pixel, which can swallow a thin tip.
    assert min(gaps) >= 0 and np.median(gaps) == 1 and np.mean(gaps) < 1.3


@pytest.mark.system
def test_content_has_the_properties_that_the_methods_need():
    drawn = [draw_scene(7, index) for index in range(400)]
    creatures = [creature for scene in drawn for creature in scene.creatures]
    assert 0.06 < np.mean([not creature.has_head for creature in creatures]) < 0.15  # a tenth
    assert 0.4 < np.mean([len(scene.creatures) == 2 for scene in drawn]) < 0.6
    counts = {name: sum(creature.name == name for creature in creatures) for name in CLASSES}
    assert min(counts.values()) > 60, counts
    with_swimmer = [scene.on_water for scene in drawn if any(c.name == WATER_CLASS for c in scene.creatures)]
    without = [scene.on_water for scene in drawn if all(c.name != WATER_CLASS for c in scene.creatures)]
    assert np.mean(with_swimmer) > 0.5 and np.mean(without) > 0.1 and np.mean(with_swimmer) > 2 * np.mean(without)
    head = np.mean([(scene.part_mask == 2).sum() for scene in drawn])
    body = np.mean([(scene.part_mask == 1).sum() for scene in drawn])
    assert body > 3 * head


def test_saliency_is_plausible_and_imperfect():
    drawn = [draw_scene(3, index) for index in range(150)]
    recalls = [
        (scene.saliency > 50)[scene.object_mask == number].mean()
        for scene in drawn
        for number in range(1, len(scene.creatures) + 1)
    ]
    false_alarms = [(scene.saliency > 50)[scene.object_mask == 0].mean() for scene in drawn]
    assert 0.75 < np.mean(recalls) < 0.97  # most objects are there,
    assert 0.03 < np.mean(np.array(recalls) < 0.2) < 0.25  # some are missed,
    assert 0.001 < np.mean(false_alarms) < 0.1  # and some background is taken for an object


def test_every_class_has_its_own_pattern():
    v, u = np.mgrid[-1:1:41j, -1:1:41j]
    patterns = [head_pattern(name, u, v) for name in CLASSES]
    for i, one in enumerate(patterns):
        assert 0.15 < one.mean() < 0.85
        assert all(np.abs(one - two).mean() > 0.1 for two in patterns[:i])
    with pytest.raises(ValueError, match="unknown class 'dog'"):
        head_pattern("dog", u, v)


def test_subcategories_are_listed(folder):
    rows = list(csv.DictReader((folder / "subcategories.csv").open()))
    data = load_dataset(folder, "trainval")
    column = CLASSES.index(VARIED_CLASS)
    assert [row["image_id"] for row in rows] == [i for i, label in zip(data.ids, data.labels, strict=True) if label[column]]
    assert {row["class"] for row in rows} == {VARIED_CLASS}
    assert {row["subcategory"] for row in rows} == set(SUBCATEGORIES)


def test_other_sizes(tmp_path):
    root = make_toy_dataset(tmp_path / "big", num_train=2, num_val=1, side=128, progress=False)
    assert load_dataset(root, "train").mask("2026_000001").shape == (128, 128)


def test_finished_folder_is_left_alone(folder, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(toy, "draw_scene", None)  # would fail if it were called
    assert make_toy_dataset(folder, **SIZE) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_interrupted_run_is_completed(folder, tmp_path, monkeypatch):
    root, calls = tmp_path / "half", []

    def stop_in_the_middle(seed, index, side):
        calls.append(index)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return draw_scene(seed, index, side)

    with monkeypatch.context() as patch:
        patch.setattr(toy, "draw_scene", stop_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            make_toy_dataset(root, **SIZE)
    assert not (root / "dataset.json").exists() and len(list((root / "JPEGImages").iterdir())) == 12
    (root / "JPEGImages/.writing-abc.jpg").write_bytes(b"of a killed process")
    kept = (root / "JPEGImages/2026_000005.jpg").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"unfinished.json: the folder was made with seed = 0, not 1"):
        make_toy_dataset(root, seed=1, **SIZE)
    make_toy_dataset(root, **SIZE)
    assert contents(root) == contents(folder)
    assert (root / "JPEGImages/2026_000005.jpg").stat().st_mtime_ns == kept


def test_lost_image_of_a_finished_folder_is_made_again(folder, tmp_path):
    root = make_toy_dataset(tmp_path / "data", **SIZE)
    (root / "JPEGImages/2026_000007.jpg").unlink()
    make_toy_dataset(root, **SIZE)
    assert contents(root) == contents(folder)


def test_full_disk_leaves_whole_files_only(folder, tmp_path, monkeypatch):
    root, save = tmp_path / "data", Image.Image.save

    def save_until_full(image, path, *arguments, **options):
        if len(list(root.rglob("*.png"))) > 25:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(image, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save_until_full)
        with pytest.raises(OSError, match="No space left on device"):
            make_toy_dataset(root, **SIZE)
    expected = contents(folder)
    written = contents(root)
    assert written.pop("unfinished.json")
    assert len(written) > 25 and all(expected[name] == content for name, content in written.items())


def test_folder_with_other_parameters_is_refused(folder):
    before = contents(folder)
    for change in ({"seed": 1}, {"num_train": 21}, {"num_val": 11}, {"side": 64}):
        with pytest.raises(ValueError, match=r"dataset.json: the folder was made with \w+ = \d+, not \d+"):
            make_toy_dataset(folder, **SIZE | change)
    assert contents(folder) == before


def test_changed_list_is_refused(folder, tmp_path):
    root = make_toy_dataset(tmp_path / "data", **SIZE)
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace("1", "0"))
    with pytest.raises(ValueError, match="was changed after the data set was made"):
        make_toy_dataset(root, **SIZE)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages/mine.jpg").write_bytes(b"holiday")
    with pytest.raises(ValueError, match="holds something else than generated scenes"):
        make_toy_dataset(tmp_path, **SIZE)
    with pytest.raises(ValueError, match="holds something else than generated scenes"):
        make_toy_dataset(tmp_path / "JPEGImages/mine.jpg", **SIZE)
    assert contents(tmp_path) == {"JPEGImages/mine.jpg": b"holiday"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"num_train": 0}, "num_train must be a whole number of at least 1, not 0"),
        ({"num_val": 2.5}, "num_val must be a whole number of at least 1, not 2.5"),
        ({"side": 32}, "side must be a whole number of at least 48, not 32"),
        ({"seed": True}, "seed must be a whole number of at least 0, not True"),
        ({"num_train": 999_999}, "must be at most 999999"),
    ],
)
def test_bad_parameters_make_nothing(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_toy_dataset(tmp_path / "data", **SIZE | change)
    assert not (tmp_path / "data").exists()


def test_command(tmp_path, capsys):
    toy.main([str(tmp_path / "data"), "--train", "2", "--val", "1", "--size", "64"])
    assert "2 training and 1 validation images" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        toy.main([str(tmp_path / "data"), "--train", "3", "--val", "1", "--size", "64"])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and "made with num_train = 2, not 3" in error and error.count("\n") == 1


@pytest.mark.system
def test_speed(tmp_path):
    start = time.process_time()  # of this process alone: other programs on the machine do not count
    make_toy_dataset(tmp_path / "data", num_train=150, num_val=30, progress=False)
    assert time.process_time() - start < 2 * 15 * 180 / 1800  # 1,800 images take 15 s on two cores


@given(st.integers(0, 2**32), st.integers(0, 10**6))
def test_any_scene_is_well_formed(seed, index):
    scene = draw_scene(seed, index, side=64)
    assert 1 <= len(scene.creatures) <= 2
    assert scene.image.dtype == np.uint8 and scene.image.shape == (64, 64, 3)
    present = set(np.unique(scene.class_mask)) - {0, IGNORE}
    assert present == {CLASSES.index(creature.name) + 1 for creature in scene.creatures}
    assert (2 in scene.part_mask) == any(creature.has_head for creature in scene.creatures)
