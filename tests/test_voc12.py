"""VOC 2012 and SBD from miniature archives in the official layouts: whole, resumed, damaged, partial; and true images."""

import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from data_prep import voc12
from data_prep.findings import Finding
from data_prep.official import SBD_PAGE, VOC_PAGE, ListFacts, Source, list_sha256
from data_prep.sbd import read_sbd_mask, train_aug_ids
from data_prep.voc12 import prepare_voc12, survey_voc12
from data_prep.voc_xml import VocObject, write_voc_xml
from wsss_lib.core.files import read_mask, voc_palette, write_mask
from wsss_lib.data.dataset import VOC_CLASSES, load_dataset, read_labels
from wsss_lib.errors import DataError
from wsss_lib.parameters import PROJECT_ROOT

REAL_DATA = Path(os.environ.get("WSSS_REAL_DATA", PROJECT_ROOT / "../shared/data")) / "voc2012-year2007/VOC2012"
TRAIN, VAL = ["2007_000032", "2008_000007"], ["2007_000033", "2009_000011"]
SBD_TRAIN, SBD_VAL = ["2008_000007", "2008_000100", "2009_000011"], ["2010_000200", "2011_000300"]
TRAIN_AUG = ["2007_000032", "2008_000007", "2008_000100", "2010_000200", "2011_000300"]
SIZE = (12, 16)  # (H, W)


def write_devkit(folder: Path) -> None:
    """Every image is of one class: that of its place; 2010_000200 has a person in its boxes that no mask shows."""
    ids = sorted({*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL})
    for name, members in (("train", TRAIN), ("val", VAL), ("trainval", TRAIN + VAL)):
        path = folder / f"ImageSets/Segmentation/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{image_id}\n" for image_id in members))
    (folder / "ImageSets/Main").mkdir()
    (folder / "ImageSets/Main/train.txt").write_text("not needed\n")
    (folder / "JPEGImages").mkdir()
    for number, image_id in enumerate(ids):
        noise = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(noise).save(folder / "JPEGImages" / f"{image_id}.jpg")
        names = [VOC_CLASSES[number]] + ["person"] * (image_id == "2010_000200")
        write_voc_xml(folder / f"Annotations/{image_id}.xml", SIZE, [VocObject(name, (1, 1, 5, 5)) for name in names])
        if image_id in TRAIN + VAL:
            mask = np.zeros(SIZE, np.uint8)
            mask[2:6, 2:6], mask[3:5, 3:5] = 255, number + 1
            write_mask(folder / f"SegmentationClass/{image_id}.png", mask)


def sbd_mask(number: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[1:9, 1:9] = number + 1
    return mask


def write_mat(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(
        path,
        {"GTcls": {"Segmentation": mask, "Boundaries": np.zeros((3, 1)), "CategoriesPresent": np.unique(mask)}},
        do_compression=True,
    )


def write_sbd(folder: Path) -> None:
    ids = sorted({*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL})
    for image_id in SBD_TRAIN + SBD_VAL:
        write_mat(folder / f"cls/{image_id}.mat", sbd_mask(ids.index(image_id)))
    (folder / "img").mkdir()
    (folder / "img/2008_000007.jpg").write_bytes(b"the devkit has it")
    (folder / "train.txt").write_text("\n".join(SBD_TRAIN) + "\n")
    (folder / "val.txt").write_text("\n".join(SBD_VAL) + "\n")


def source_of(path: Path, page: str) -> Source:
    content = path.read_bytes()
    return Source(path.name, "http://127.0.0.1:9/" + path.name, page, len(content), hashlib.sha256(content).hexdigest())


class Official:
    """Two archives, and what is known about them and about the lists."""

    def __init__(self, folder: Path):
        write_devkit(folder / "in/VOCdevkit/VOC2012")
        write_sbd(folder / "in/benchmark_RELEASE/dataset")
        self.folder = folder / "archives"
        self.folder.mkdir()
        for name, mode, top in (
            ("VOCtrainval_11-May-2012.tar", "w", "VOCdevkit"),
            ("benchmark.tgz", "w:gz", "benchmark_RELEASE"),
        ):
            with tarfile.open(self.folder / name, mode) as file:
                file.add(folder / "in" / top, top)
        self.sources = {
            "devkit": source_of(self.folder / "VOCtrainval_11-May-2012.tar", VOC_PAGE),
            "sbd": source_of(self.folder / "benchmark.tgz", SBD_PAGE),
        }
        present = {
            image_id: np.eye(20, dtype=np.uint8)[number]
            for number, image_id in enumerate(sorted({*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL}))
        }
        boxes = present | {"2010_000200": present["2010_000200"] | np.eye(20, dtype=np.uint8)[VOC_CLASSES.index("person")]}
        self.lists = {
            name: ListFacts(
                len(ids),
                list_sha256(ids),
                {
                    way: hashlib.sha256(b"".join(table[image_id].tobytes() for image_id in sorted(ids))).hexdigest()
                    for way, table in (("xml", boxes), ("masks", present))
                },
            )
            for name, ids in (("train", TRAIN), ("val", VAL), ("train_aug", TRAIN_AUG))
        }

    def prepare(self, root: Path, **others) -> list[Finding]:
        return prepare_voc12(
            root,
            **(
                {"archives": self.folder, "fetch": False, "progress": False, "sources": self.sources, "lists": self.lists}
                | others
            ),
        )


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Official:
    return Official(tmp_path_factory.mktemp("official"))


@pytest.fixture
def prepared(official, tmp_path) -> Path:
    official.prepare(tmp_path / "VOC2012")
    return tmp_path / "VOC2012"


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def states(found: list[Finding]) -> set[str]:
    return {finding.state for finding in found}


def test_from_archives_to_a_ready_folder(official, tmp_path):
    root = tmp_path / "VOC2012"
    found = official.prepare(root)
    assert states(found) == {"have"} and sum("the official" in finding.detail for finding in found) == 6
    for split, ids in (("train", TRAIN), ("val", VAL), ("train_aug", TRAIN_AUG)):
        data = load_dataset(root, split, mask_folder="SegmentationClassAug")
        assert data.ids == tuple(ids) and data.labels.any(1).all()
        for image_id in ids:
            data.mask(image_id)
    names = set(contents(root))
    assert "ImageSets/Main/train.txt" not in names and not any("img" in name for name in names)
    assert len([name for name in names if name.startswith("SegmentationClassAug/")]) == 7
    assert not [name for name in names if ".writing" in name or name.endswith(".wsss-download")]


def test_masks_of_voc_count_over_those_of_sbd(prepared):
    data = load_dataset(prepared, "train_aug", mask_folder="SegmentationClassAug")
    assert np.unique(data.mask("2008_000007")).tolist() == [0, 3, 255]  # in both: VOC's, with its border
    assert np.unique(data.mask("2008_000100")).tolist() == [0, 4]  # SBD only
    np.testing.assert_array_equal(data.mask("2008_000100"), sbd_mask(3))
    assert np.unique(read_mask(prepared / "SegmentationClassAug/2009_000011.png", 20)).tolist() == [0, 5, 255]
    with Image.open(prepared / "SegmentationClassAug/2008_000100.png") as image:
        assert image.mode == "P" and image.getpalette()[:768] == voc_palette().flatten().tolist()


def test_a_second_run_changes_nothing_and_needs_no_archives(official, prepared, tmp_path):
    before = contents(prepared)
    assert states(official.prepare(prepared, archives=tmp_path / "none")) == {"have"}
    assert contents(prepared) == before


@pytest.mark.parametrize(
    "gone",
    [
        "JPEGImages/2007_000032.jpg",
        "SegmentationClass/2007_000033.png",
        "labels.csv",
        "SegmentationClassAug/2011_000300.png",
        "ImageSets/Segmentation/train_aug.txt",
        "JPEGImages/2010_000200.jpg",
        "Annotations/2009_000011.xml",
        "SBD/cls/2008_000100.mat",
    ],
)
def test_an_interrupted_run_is_completed(official, prepared, gone):
    before = contents(prepared)
    (prepared / gone).unlink()
    (prepared / "JPEGImages/.writing-x.jpg").write_bytes(b"half")
    assert states(official.prepare(prepared)) == {"have"}
    after = contents(prepared)
    assert {name: after.get(name) for name in before if not name.startswith("SBD/")} == {
        name: content for name, content in before.items() if not name.startswith("SBD/")
    }
    assert not [name for name in after if ".writing" in name]


@pytest.mark.system
def test_workers_make_the_same(official, prepared, tmp_path):
    official.prepare(tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(prepared)


def test_labels_from_masks_are_an_option_that_is_recorded(official, prepared):
    def names(image_id):
        row = read_labels(prepared / "labels.csv", VOC_CLASSES)[image_id]
        return {VOC_CLASSES[number] for number in np.flatnonzero(row)}

    assert "person" in names("2010_000200")
    found = official.prepare(prepared, labels="masks")
    assert states(found) == {"have"} and any("from masks, the official ones" in finding.detail for finding in found)
    assert "person" not in names("2010_000200") and '"labels": "masks"' in (prepared / "dataset.json").read_text()
    assert states(survey_voc12(prepared, official.lists)) == {"have"}


def test_a_folder_of_augmented_masks_that_is_there_needs_no_sbd(official, prepared, tmp_path):
    shutil.rmtree(prepared / "SBD")
    (prepared / "ImageSets/Segmentation/train_aug.txt").unlink()
    for path in (prepared / "SegmentationClassAug").iterdir():  # as others distribute them: gray, here without borders
        with Image.open(path) as image:
            values = np.array(image)
        Image.fromarray(np.where(values == 255, 0, values).astype(np.uint8)).save(path)
    before = contents(prepared)
    with pytest.raises(DataError, match="2007_000032.png: is there already with other content"):
        official.prepare(prepared, archives=tmp_path / "none")
    assert contents(prepared).items() >= before.items()
    assert states(official.prepare(prepared, archives=tmp_path / "none", overwrite=True)) == {"have"}
    data = load_dataset(prepared, "train_aug", mask_folder="SegmentationClassAug")
    assert data.ids == tuple(TRAIN_AUG) and 255 in data.mask("2007_000032")


@pytest.mark.parametrize("archive, page", [("VOCtrainval_11-May-2012.tar", VOC_PAGE), ("benchmark.tgz", SBD_PAGE)])
def test_a_missing_or_flipped_archive_names_its_page(official, tmp_path, archive, page):
    shutil.copytree(official.folder, tmp_path / "archives")
    path = tmp_path / "archives" / archive
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{archive}: the file has SHA-256 .* fetch it from {page}"):
        official.prepare(tmp_path / "VOC2012", archives=tmp_path / "archives")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{archive}: missing; fetch it .* from {page}"):
        official.prepare(tmp_path / "VOC2012", archives=tmp_path / "archives")
    assert not (tmp_path / "VOC2012/labels.csv").exists() and not (tmp_path / "VOC2012/SegmentationClassAug").exists()


def test_without_a_network_a_download_ends_in_one_sentence(official, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(FileNotFoundError, match=f"0.0 MB of 0.. MB have come .* fetch the file from {VOC_PAGE}"):
        official.prepare(tmp_path / "VOC2012", archives=tmp_path / "none", fetch=True)


def test_other_lists_and_labels_than_the_official_ones_are_wrong(official, prepared):
    path = prepared / "ImageSets/Segmentation/val.txt"
    path.write_text(VAL[0] + "\n")
    found = {finding.what: finding for finding in survey_voc12(prepared, official.lists)}
    assert found["list val"].state == "wrong" and "1 images with other ids than the 2" in found["list val"].detail
    path.write_text("\n".join(VAL) + "\n")
    text = (prepared / "labels.csv").read_text()
    (prepared / "labels.csv").write_text(text.replace("2007_000032,1", "2007_000032,0"))
    found = {finding.what: finding for finding in survey_voc12(prepared, official.lists)}
    assert found["labels of train"].state == found["labels of train_aug"].state == "wrong"
    (prepared / "labels.csv").write_text("image_id\n")
    assert [finding.state for finding in survey_voc12(prepared, official.lists) if finding.what == "labels.csv"] == ["wrong"]


def test_a_part_of_voc_needs_neither_archives_nor_sbd(tmp_path):
    write_devkit(tmp_path / "VOC2012")
    found = prepare_voc12(tmp_path / "VOC2012", partial_data=True, fetch=False, progress=False)
    assert states(found) == {"have"} and load_dataset(tmp_path / "VOC2012", "train").ids == tuple(TRAIN)
    with pytest.raises(FileNotFoundError, match="neither train.txt nor val.txt"):
        prepare_voc12(tmp_path / "empty", partial_data=True, progress=False)


def test_test_images_are_unpacked_if_they_are_there(official, tmp_path):
    shutil.copytree(official.folder, tmp_path / "archives")
    with tarfile.open(tmp_path / "archives/VOC2012test.tar", "w") as file:
        for name, content in (("ImageSets/Segmentation/test.txt", b"2008_000001\n"), ("JPEGImages/2008_000001.jpg", b"jpeg")):
            info = tarfile.TarInfo(f"VOCdevkit/VOC2012/{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    assert states(official.prepare(tmp_path / "VOC2012", archives=tmp_path / "archives")) == {"have"}
    assert (tmp_path / "VOC2012/JPEGImages/2008_000001.jpg").is_file()


def test_a_folder_of_something_else_is_refused(official, tmp_path, miniature):
    with pytest.raises(DataError, match="holds another data set than VOC"):
        official.prepare(miniature)
    write_devkit(tmp_path / "top/VOCdevkit/VOC2012")
    with pytest.raises(DataError, match="the devkit lies deeper; give .*VOCdevkit/VOC2012"):
        official.prepare(tmp_path / "top")
    with pytest.raises(ValueError, match="labels must be one of xml, masks"):
        official.prepare(tmp_path / "top", labels="boxes")


@pytest.mark.parametrize(
    "mask, problem",
    [
        (np.full(SIZE, 21, np.uint8), "holds the value 21"),
        (np.zeros((3, 4), np.uint8), "the mask is 4x3 pixels but its image is 16x12"),
        (np.zeros(SIZE), "not an image of 8-bit classes"),
        (np.zeros((2, *SIZE), np.uint8), "not an image of 8-bit classes"),
    ],
)
def test_a_bad_mask_of_sbd_is_named(official, prepared, mask, problem):
    write_mat(prepared / "SBD/cls/2008_000100.mat", mask)
    (prepared / "SegmentationClassAug/2008_000100.png").unlink()
    with pytest.raises(DataError, match=f"2008_000100.mat: .*{problem}"):
        official.prepare(prepared)
    assert not (prepared / "SegmentationClassAug/2008_000100.png").exists()


def test_a_broken_mat_file_is_named(tmp_path):
    path = tmp_path / "x.mat"
    with pytest.raises(FileNotFoundError, match="x.mat: the mask of SBD is missing"):
        read_sbd_mask(path)
    write_mat(path, sbd_mask(0))
    whole = path.read_bytes()
    savemat(tmp_path / "other.mat", {"other": np.zeros(2)})
    for content in (b"", whole[:-7], whole[:200], b"<html>" * 30, (tmp_path / "other.mat").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DataError, match="x.mat: not a mask of SBD"):
            read_sbd_mask(path)
    path.write_bytes(bytes(1 << 23))
    with pytest.raises(DataError, match="too much for a mask"):
        read_sbd_mask(path)


ids = st.sets(st.sampled_from([f"20{year:02d}_{number:06d}" for year in (7, 8) for number in range(6)]))


@given(ids, ids, ids, ids)
def test_train_aug_is_the_rule(sbd_train, sbd_val, voc_train, voc_val):
    result = train_aug_ids(sbd_train, sbd_val, voc_train, voc_val)
    assert result == sorted(set(result)) and not set(result) & voc_val
    assert set(result) | voc_val == sbd_train | sbd_val | voc_train | voc_val


def test_the_command(official, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(voc12, "VOC12_SOURCES", official.sources)
    with pytest.raises(SystemExit) as stop:
        voc12.main([str(tmp_path / "VOC2012"), "--no-download"])
    output = capsys.readouterr()
    assert stop.value.code == 1 and output.err.count("\n") == 1 and "VOCtrainval_11-May-2012.tar: missing" in output.err
    assert "missing  SegmentationClassAug" in output.out and SBD_PAGE in output.out and VOC_PAGE in output.out
    write_devkit(tmp_path / "part")
    voc12.main([str(tmp_path / "part"), "--partial"])
    assert "missing" not in capsys.readouterr().out
    voc12.main([str(tmp_path / "part"), "--partial", "--status"])
    with pytest.raises(SystemExit):
        voc12.main([str(tmp_path / "part"), "--status"])
    assert "wrong    list train " in capsys.readouterr().out


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="skipped: no real data")
def test_true_photographs_of_voc(tmp_path):
    """A true part of VOC: XML labels, and labels from masks, which differ only where an object is all border."""
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets"):
        (tmp_path / name).symlink_to(REAL_DATA.resolve() / name)
    found = prepare_voc12(tmp_path, partial_data=True, progress=False, workers=1)
    assert states(found) == {"have"}
    by_boxes = read_labels(tmp_path / "labels.csv", VOC_CLASSES)
    prepare_voc12(tmp_path, partial_data=True, labels="masks", progress=False, workers=1)
    by_masks = read_labels(tmp_path / "labels.csv", VOC_CLASSES)
    assert set(by_masks) <= set(by_boxes) and len(by_masks) == 525
    assert sum((by_boxes[image_id] != by_masks[image_id]).any() for image_id in by_masks) <= 3
