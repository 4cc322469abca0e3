"""The checker: a sound data set passes; of everything that disagrees the first file is named and all are counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import check
from data_prep.check import check_dataset
from wsss_lib.core.files import voc_palette, write_mask
from wsss_lib.errors import DataError


def report_of(root: Path, **options) -> check.Report:
    return check_dataset(root, progress=False, **options)


def test_a_sound_data_set_has_no_problems(miniature):
    report = report_of(miniature)
    assert not report.counts and (report.images, report.masks) == (12, 12)
    assert report.lines() == ["12 images and 12 masks are sound"]
    assert report_of(miniature, splits=["val"]).images == 4


@pytest.mark.system
def test_workers_find_the_same(voc_folder):
    for number in (1, 3, 6):
        (voc_folder / f"JPEGImages/m_{number:02d}.jpg").write_bytes(b"no image")
    one, two = report_of(voc_folder), report_of(voc_folder, workers=2)
    assert (one.counts, one.first, one.images, one.masks) == (two.counts, two.first, two.images, two.masks)
    assert one.counts["unreadable"] == 3 and "m_01.jpg" in one.first["unreadable"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def recolor(path: Path, name: str) -> None:
    with Image.open(path) as image:
        if name == "other":
            image.putpalette(np.roll(voc_palette(), 1, axis=0).tobytes())
            image.save(path)
        elif name == "RGB":
            image.convert("RGB").save(path)
        else:
            Image.fromarray(np.array(image)).save(path)


@pytest.mark.parametrize(
    "kind, name, damage",
    [
        ("missing", "JPEGImages/{}.jpg", Path.unlink),
        ("missing", "SegmentationClass/{}.png", Path.unlink),
        ("unreadable", "JPEGImages/{}.jpg", truncate),
        ("unreadable", "SegmentationClass/{}.png", lambda path: path.write_bytes(b"")),
        ("size", "SegmentationClass/{}.png", lambda path: write_mask(path, np.zeros((5, 6), np.uint8))),
        ("unknown class", "SegmentationClass/{}.png", lambda path: write_mask(path, np.full(Image.open(path).size[::-1], 4))),
        ("palette", "SegmentationClass/{}.png", lambda path: recolor(path, "other")),
        ("palette", "SegmentationClass/{}.png", lambda path: recolor(path, "RGB")),
    ],
)
def test_every_kind_names_the_first_and_counts_all(voc_folder, kind, name, damage):
    for image_id in ("m_09", "m_02", "m_05"):  # two of train and one of val; train stands first
        damage(voc_folder / name.format(image_id))
    report = report_of(voc_folder)
    assert dict(report.counts) == {kind: 3} and str(voc_folder / name.format("m_02")) in report.first[kind]
    assert f"{kind}: 3, the first is {voc_folder / name.format('m_02')}" in report.lines()[-1]
    assert report.images + report.masks == 21


def test_grey_masks_are_as_good(voc_folder):
    for path in (voc_folder / "SegmentationClass").iterdir():
        recolor(path, "grey")
    assert not report_of(voc_folder).counts


def test_labels_are_compared_with_lists_and_classes(voc_folder):
    table = voc_folder / "labels.csv"
    rows = table.read_text().splitlines(keepends=True)
    (voc_folder / "ImageSets/Segmentation/also.txt").write_text("m_11\nm_10\n")  # counted once, though in two lists
    table.write_text("".join(rows[:-2]))
    report = report_of(voc_folder)
    assert dict(report.counts) == {"label": 2} and "no row for image 'm_11' of also" in report.first["label"]
    table.write_text(rows[0].replace("blue", "purple") + "".join(rows[1:]))
    assert "unknown class 'purple'" in report_of(voc_folder).first["unknown class"]
    table.write_text("".join(rows) + "m_00,1,2,0\n")
    assert "a row is an image id and then 3 values" in report_of(voc_folder).first["label"]
    table.unlink()
    assert dict(report_of(voc_folder).counts) == {"missing": 1} and "label table" in report_of(voc_folder).first["missing"]


def test_a_broken_list_does_not_hide_the_others(voc_folder):
    (voc_folder / "ImageSets/Segmentation/train.txt").write_text("m_00\nm_00\n")
    report = report_of(voc_folder)
    assert dict(report.counts) == {"list": 1} and "stands there twice" in report.first["list"] and report.images == 4


def test_masks_that_nobody_has_are_a_note(voc_folder):
    lists = voc_folder / "ImageSets/Segmentation"
    (lists / "train_aug.txt").write_text((lists / "train.txt").read_text())
    (lists / "test.txt").write_text("m_00\n")
    report = report_of(voc_folder)
    assert not report.counts and report.notes == [
        "masks of test: not checked, as VOC publishes none",
        "masks of train_aug: not checked, there is no folder SegmentationClassAug",
    ]
    (voc_folder / "SegmentationClassAug").mkdir()
    assert dict(report_of(voc_folder).counts) == {"missing": 8}
    assert not report_of(voc_folder, mask_folder="SegmentationClass").counts


def test_what_is_no_data_set_is_refused(voc_folder, tmp_path):
    with pytest.raises(DataError, match="there is no list of images; give the folder that holds ImageSets"):
        report_of(tmp_path / "nothing")
    (voc_folder / "dataset.json").write_text(json.dumps({"classes": []}))
    with pytest.raises(DataError, match="'classes' must be a list"):
        report_of(voc_folder)


def test_the_command(voc_folder, capsys):
    check.main([str(voc_folder)])
    assert capsys.readouterr().out == "12 images and 12 masks are sound\n"
    (voc_folder / "JPEGImages/m_03.jpg").unlink()
    with pytest.raises(SystemExit) as stop:
        check.main([str(voc_folder), "--split", "train"])
    output = capsys.readouterr().out
    assert stop.value.code == 1 and "missing: 1, the first is" in output and "m_03.jpg" in output
    with pytest.raises(SystemExit) as stop:
        check.main([str(voc_folder / "JPEGImages")])
    assert stop.value.code == 1 and capsys.readouterr().err.count("\n") == 1
