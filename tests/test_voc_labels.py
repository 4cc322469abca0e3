"""XML annotations: the published rule for image-level labels, refusal of bad files, and the true VOC images where at hand."""

import csv
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import voc_labels
from data_prep.voc_xml import VocObject, read_voc_classes, write_voc_xml
from wsss_lib.data.dataset import VOC_CLASSES, load_dataset
from wsss_lib.errors import DataError
from wsss_lib.parameters import PROJECT_ROOT

REAL_DATA = Path(os.environ.get("WSSS_REAL_DATA", PROJECT_ROOT / "../shared/data")) / "voc2012-year2007/VOC2012"
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="skipped: no real data")


@pytest.fixture
def devkit(tmp_path) -> Path:
    """Three annotated images in two lists: a has a dog twice, b a person and a car, c a cat."""
    root = tmp_path / "VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_000002\n2007_000001\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("2008_000003\n")
    (root / "ImageSets/Segmentation/trainval.txt").write_text("2007_000001\n2007_000002\n2008_000003\n")
    box = (1, 1, 10, 10)
    contents = {
        "2007_000001": [VocObject("dog", box), VocObject("dog", box, truncated=True)],
        "2007_000002": [VocObject("person", box, parts=(("head", (2, 2, 4, 4)), ("hand", box))), VocObject("car", box)],
        "2008_000003": [VocObject("cat", box)],
    }
    for image_id, objects in contents.items():
        write_voc_xml(root / f"Annotations/{image_id}.xml", (20, 30), objects)
    return root


def test_labels_are_the_named_classes_in_class_order(devkit):
    assert read_voc_classes(devkit / "Annotations/2007_000002.xml", VOC_CLASSES) == ["car", "person"]
    assert voc_labels.labels_from_xml(devkit) == {
        "2007_000001": ["dog"],
        "2007_000002": ["car", "person"],
        "2008_000003": ["cat"],
    }


def test_every_name_anywhere_counts_and_parts_do_not(tmp_path):
    path = tmp_path / "x.xml"
    path.write_text(
        "<annotation><filename>horse</filename><object><difficult>1</difficult><name>sofa</name>"
        "<part><name>head</name></part><part><deep><name> boat </name></deep></part></object></annotation>"
    )
    assert read_voc_classes(path, VOC_CLASSES) == ["boat", "sofa"]


@given(
    present=st.lists(st.sampled_from(VOC_CLASSES), max_size=6),
    parts=st.lists(st.sampled_from(("head", "hand", "foot")), max_size=2),
)
def test_written_classes_are_read_back(tmp_path_factory, present, parts):
    path = tmp_path_factory.mktemp("xml") / "1.xml"
    drawn_parts = tuple((part, (1, 1, 2, 2)) for part in parts)
    write_voc_xml(path, (5, 6), [VocObject(name, (1, 1, 6, 5), parts=drawn_parts) for name in present])
    assert read_voc_classes(path, VOC_CLASSES) == sorted(set(present), key=VOC_CLASSES.index)


def test_command_writes_a_table_that_the_data_set_reads(devkit, capsys):
    voc_labels.main([str(devkit), str(devkit / "labels.csv")])
    assert "3 images, 4 labels" in capsys.readouterr().out
    rows = list(csv.reader((devkit / "labels.csv").open()))
    assert rows[0] == ["image_id", *VOC_CLASSES]
    assert [row[0] for row in rows[1:]] == ["2007_000001", "2007_000002", "2008_000003"]
    assert [VOC_CLASSES[i] for i, value in enumerate(rows[2][1:]) if value == "1"] == ["car", "person"]


def test_classes_of_another_data_set(devkit):
    (devkit / "dataset.json").write_text('{"name": "mine", "classes": ["person", "dog", "cat"], "ignore_index": 255}')
    voc_labels.main([str(devkit), str(devkit / "out.csv"), "--classes-from", str(devkit / "dataset.json")])
    assert (devkit / "out.csv").read_text().splitlines() == [
        "image_id,person,dog,cat",
        "2007_000001,0,1,0",
        "2007_000002,1,0,0",
        "2008_000003,0,0,1",
    ]


def test_test_images_have_no_annotation_and_get_no_row(devkit):
    (devkit / "ImageSets/Segmentation/test.txt").write_text("2008_000999\n")
    assert "2008_000999" not in voc_labels.labels_from_xml(devkit)


def without_file(root: Path) -> None:
    (root / "Annotations/2008_000003.xml").unlink()


def without_class(root: Path) -> None:
    write_voc_xml(root / "Annotations/2008_000003.xml", (20, 30), [VocObject("dragon", (1, 1, 2, 2))])


def cut_short(root: Path) -> None:
    path = root / "Annotations/2008_000003.xml"
    path.write_bytes(path.read_bytes()[:80])


def with_entities(root: Path) -> None:
    (root / "Annotations/2008_000003.xml").write_text('<!DOCTYPE a [<!ENTITY b "cat">]><a><name>&b;</name></a>')


def with_entity_of_a_file(root: Path) -> None:
    (root / "Annotations/2008_000003.xml").write_text(
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><a><name>&b;</name></a>'
    )


def without_lists(root: Path) -> None:
    for path in (root / "ImageSets/Segmentation").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_file, r"2008_000003.xml: the annotation is missing"),
        (without_class, r"2008_000003.xml: names none of the classes aeroplane"),
        (cut_short, r"2008_000003.xml: not a readable XML annotation"),
        (with_entities, r"2008_000003.xml: not a readable XML annotation"),
        (with_entity_of_a_file, r"2008_000003.xml: not a readable XML annotation"),
        (without_lists, r"there is no list of images"),
    ],
)
def test_bad_input_gives_one_sentence_and_no_table(devkit, capsys, damage, message):
    damage(devkit)
    with pytest.raises((DataError, FileNotFoundError), match=message):
        voc_labels.labels_from_xml(devkit)
    with pytest.raises(SystemExit) as stop:
        voc_labels.main([str(devkit), str(devkit / "labels.csv")])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1 and "Traceback" not in error
    assert not (devkit / "labels.csv").exists()


def test_foreign_description_file_is_refused(devkit, capsys):
    with pytest.raises(SystemExit):
        voc_labels.main([str(devkit), str(devkit / "labels.csv"), "--classes-from", str(devkit / "nothing.json")])
    assert "--classes-from needs an existing file named dataset.json" in capsys.readouterr().err


@pytest.mark.system
@needs_real_data
def test_true_voc_images_give_their_known_counts(tmp_path):
    table = voc_labels.labels_from_xml(REAL_DATA)
    voc_labels.write_labels(tmp_path / "labels.csv", table, VOC_CLASSES)
    train = load_dataset(REAL_DATA, "train", tmp_path / "labels.csv")
    val = load_dataset(REAL_DATA, "val", tmp_path / "labels.csv")
    assert (len(train), len(val), len(table)) == (311, 214, 525)
    assert sum(map(len, table.values())) == 884
    assert train.labels.any(axis=1).all() and val.labels.any(axis=1).all()
    # Boxes and masks name the same classes in all of these images (of all VOC 2012, one train and one val image differ).
    for data in (train, val):
        for image_id, label in zip(data.ids, data.labels, strict=True):
            in_mask = {value - 1 for value in set(data.mask(image_id).flat) - {0, 255}}
            assert in_mask == {i for i, value in enumerate(label) if value}, image_id


def test_entities_are_refused_even_if_harmless(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "cat">]><annotation><object><name>&b;</name></object></annotation>')
    with pytest.raises(DataError, match="a.xml: not a readable XML annotation .*fetch it again"):
        read_voc_classes(path, VOC_CLASSES)
