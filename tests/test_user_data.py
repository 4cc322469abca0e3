"""Photographs, tables and masks as cameras, tools, spreadsheets and operating systems write them."""

import json
import os
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import check, custom, subset
from data_prep.annotations import from_annotations
from data_prep.check import check_dataset
from data_prep.export import export
from data_prep.own_masks import MaskFolder, read_legend
from data_prep.voc_xml import VocObject, write_voc_xml
from tests.test_custom import picture, refused, run
from wsss_lib.config import Config
from wsss_lib.core.files import voc_palette, write_mask
from wsss_lib.core.scoring import best_threshold_row, metric_row, score_masks
from wsss_lib.data.dataset import SegmentationDataset, load_dataset, open_data
from wsss_lib.errors import DataError


def labels_of(root: Path) -> dict[str, set[str]]:
    """Return image id to the names of its classes, over all lists."""
    result = {}
    for path in (root / "ImageSets/Segmentation").glob("*.txt"):
        data = load_dataset(root, path.stem)
        result |= {name: {data.classes[index] for index in np.flatnonzero(data.label(name))} for name in data.ids}
    return result


def split_of(root: Path, split: str) -> list[str]:
    return (root / f"ImageSets/Segmentation/{split}.txt").read_text(encoding="utf-8").split()


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        picture(folder / name, number)
    return folder


# ---- class folders


def test_photographs_of_one_name_in_two_class_folders_are_told_apart(tmp_path):
    pictures(tmp_path / "pets", "Cat/0.jpg", "Cat/1.jpg", "Dog/0.jpg", "Dog/1.jpg", "Dog/only.jpg")
    (tmp_path / "pets/Bird").mkdir()
    (tmp_path / "pets/Bird/0.jpg").write_bytes((tmp_path / "pets/Cat/0.jpg").read_bytes())  # the same photograph
    run(tmp_path / "pets", tmp_path / "mine")
    assert labels_of(tmp_path / "mine") == {
        "Bird_0": {"Bird", "Cat"},
        "Cat_1": {"Cat"},
        "Dog_0": {"Dog"},
        "Dog_1": {"Dog"},
        "only": {"Dog"},
    }


@pytest.mark.parametrize("name", ["none", "background", "None", "__background__", "Background"])
def test_a_folder_of_nothing_holds_photographs_without_a_class(tmp_path, name):
    pictures(tmp_path / "in", "cat/a.jpg", "cat/b.jpg", "dog/c.jpg", f"{name}/d.jpg")
    run(tmp_path / "in", tmp_path / "mine")
    assert labels_of(tmp_path / "mine") == {"a": {"cat"}, "b": {"cat"}, "c": {"dog"}, "d": set()}
    assert json.loads((tmp_path / "mine/dataset.json").read_text())["classes"] == ["cat", "dog"]


def test_what_systems_add_to_folders_is_no_photograph(tmp_path, capsys):
    folder = pictures(tmp_path / "in", "cat/a.JPG", "cat/b.JpEg", "dog/c.PNG")
    for name in ("cat/._a.JPG", "cat/Thumbs.db", "cat/.DS_Store", "dog/desktop.ini", "__MACOSX/cat/._a.jpg", "@eaDir/x.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    run(folder, tmp_path / "mine")
    assert labels_of(tmp_path / "mine") == {"a": {"cat"}, "b": {"cat"}, "c": {"dog"}}
    assert "left out" not in capsys.readouterr().out


def test_folders_train_and_val_become_lists(tmp_path):
    pictures(tmp_path / "in", "train/cat/0.jpg", "train/dog/0.jpg", "train/cat/1.jpg", "val/cat/0.jpg", "val/none/7.jpg")
    run(tmp_path / "in", tmp_path / "mine")
    assert labels_of(tmp_path / "mine") == {
        "train_cat_0": {"cat"},
        "train_dog_0": {"dog"},
        "1": {"cat"},
        "val_cat_0": {"cat"},
        "7": set(),
    }
    assert split_of(tmp_path / "mine", "val") == ["7", "val_cat_0"]


def test_photographs_for_a_test_are_for_validation_where_there_are_no_others(tmp_path, capsys):
    pictures(tmp_path / "in/set", "Train/cat/0.jpg", "Train/dog/5.jpg", "TEST/cat/1.jpg", "TEST/dog/2.jpg")  # one folder around
    run(tmp_path / "in", tmp_path / "mine")
    assert split_of(tmp_path / "mine", "train") == ["0", "5"] and split_of(tmp_path / "mine", "val") == ["1", "2"]
    for path in (tmp_path / "in/set/Train/dog").iterdir():
        path.rename(tmp_path / "in/set/TEST/dog" / path.name)
    (tmp_path / "in/set/Train/dog").rmdir()
    error = refused(capsys, tmp_path / "other", tmp_path / "in", tmp_path / "other")
    assert "the folder for training has no photograph of class 'dog'" in error


def test_names_in_other_alphabets_and_forms(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Löwe")
    pictures(tmp_path / "in", f"{decomposed}/{unicodedata.normalize('NFD', 'é 1')}.jpg", "猫/猫 2.jpg", "кот/3.jpg")
    run(tmp_path / "in", tmp_path / "mine", "--val-share", 0)
    assert labels_of(tmp_path / "mine") == {"é_1": {"Löwe"}, "猫_2": {"猫"}, "3": {"кот"}}


def test_folders_that_differ_in_capitals_are_one_class(tmp_path, capsys):
    pictures(tmp_path / "in", "cat/a.jpg", "cat/b.jpg", "Cat/c.jpg", "dog/d.jpg")
    run(tmp_path / "in", tmp_path / "mine")
    assert "Cat is taken as cat" in capsys.readouterr().out
    assert labels_of(tmp_path / "mine") == {"a": {"cat"}, "b": {"cat"}, "c": {"cat"}, "d": {"dog"}}


def test_what_is_left_out_is_counted(tmp_path, capsys):
    folder = pictures(tmp_path / "in", "cat/a.jpg", "dog/b.jpg", "loose.jpg")
    for name in ("c.heic", "d.HEIC", "e.svg", "f.NEF"):
        (folder / "cat" / name).write_bytes(b"x")
    run(folder, tmp_path / "mine")
    printed = capsys.readouterr().out
    assert "left out: 2 .heic, 1 .nef, 1 .svg" in printed and "left out: 1 photographs that lie in no class folder" in printed


# ---- photographs


def test_a_heic_is_taken_where_it_can_be_opened(tmp_path):
    pytest.importorskip("pillow_heif")
    pictures(tmp_path / "in", "dog/b.jpg")
    picture(tmp_path / "in/cat/a.HEIC", 1, format="HEIF")
    run(tmp_path / "in", tmp_path / "mine", "--val-share", 0)
    assert load_dataset(tmp_path / "mine", "train").image("a").size == (40, 30)


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.jfif", {"format": "JPEG"}),
        ("a.gif", {}),
        ("a.avif", {}),
        ("a.jp2", {}),
        ("a.ppm", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.bmp", {}),
        ("a.jpe", {"format": "JPEG"}),
        ("a.jpg", {"format": "PNG"}),  # an ending that is not true
    ],
)
def test_every_format_that_is_safe_is_taken(tmp_path, name, options):
    pictures(tmp_path / "in", "dog/b.jpg")
    picture(tmp_path / "in/cat" / name, 1, **options)
    run(tmp_path / "in", tmp_path / "mine", "--val-share", 0)
    with Image.open(tmp_path / "mine/JPEGImages/a.jpg", formats=["JPEG"]) as image:
        assert image.size == (40, 30) and image.mode == "RGB"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_photographs_of_every_mode_become_rgb(tmp_path, mode):
    (tmp_path / "in/cat").mkdir(parents=True)
    Image.new("RGB", (40, 30), (255, 255, 255)).convert(mode).save(tmp_path / "in/cat/a.tif")
    run(tmp_path / "in", tmp_path / "mine", "--val-share", 0)
    assert np.asarray(load_dataset(tmp_path / "mine", "train").image("a")).min() > 250


def test_all_photographs_that_cannot_be_read_are_named(tmp_path, capsys):
    pictures(tmp_path / "in", *(f"cat/{number}.jpg" for number in range(5)))
    whole = (tmp_path / "in/cat/1.jpg").read_bytes()
    (tmp_path / "in/cat/1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/cat/3.jpg").write_bytes(b"")
    (tmp_path / "in/cat/4.jpg").write_bytes(b"<html>")
    error = refused(capsys, tmp_path / "mine", tmp_path / "in", tmp_path / "mine")
    assert "1.jpg: the photograph cannot be read" in error and "truncated" in error and "2 others: 3.jpg, 4.jpg" in error


# ---- tables


TABLES: dict[str, str | bytes] = {
    "semicolons": "image;classes\na.jpg;cat, dog\nb.jpg;dog\nc.jpg;\n",
    "tabs": "image\tclasses\na.jpg\tcat;dog\nb.jpg\tdog\nc.jpg\t\n",
    "Excel": b"\xef\xbb\xbf" + b"sep=;\r\nimage;classes;;\r\na.jpg;cat|dog;;\r\nb.jpg;dog;;\r\nc.jpg;;;\r\n;;;\r\n",
    "UTF-16": "image\tclasses\r\na.jpg\tcat, dog\r\nb.jpg\tdog\r\nc.jpg\t\r\n".encode("utf-16"),
    "lone CR": b'image,classes\ra.jpg,"cat,dog"\rb.jpg,dog\rc.jpg,\r',
    "quoted": 'image,classes\n"a.jpg","cat, dog"\n"b.jpg","dog"\n"c.jpg",""\n',
    "bars": "image,labels\na.jpg,cat|dog\nb.jpg,dog\nc.jpg,none\n",
    "Python lists": "image,tags\na.jpg,\"['cat', 'dog']\"\nb.jpg,['dog']\nc.jpg,[]\n",
    "spaces and capitals": "Filename , Classes\na.jpg, Cat ; dog\nb.jpg,dog ;\nc.jpg, \n".replace("Cat", "cat"),
    "a line for each class": "file,label\na.jpg,cat\na.jpg,dog\nb.jpg,dog\nb.jpg,dog\nc.jpg,background\n",
    "boxes": "filename,width,height,class,xmin\na.jpg,40,30,cat,1\na.jpg,40,30,dog,5\nb.jpg,40,30,dog,7\nc.jpg,40,30,none,0\n",
    "pandas": ",image,classes\n0,a.jpg,cat;dog\n1,b.jpg,dog\n2,c.jpg,\n",
    "columns": "image,cat,dog\na,1,1\nb,0,1\nc,0,0\n",
    "columns of words": "image;cat;dog\na;TRUE;yes\nb;FALSE;Yes\nc;no;false\n",
    "columns with blanks": "path,cat,dog\na.jpg,x,x\nb.jpg,,x\nc.jpg,,\n",
    "columns of pandas": "path,cat,dog\na.jpg,1.0,1.0\nb.jpg,0.0,1.0\nc.jpg,0.0,0.0\n",
    "two names": "id,filename,cat,dog\n17,a.jpg,1,1\n18,b.jpg,0,1\n19,c.jpg,0,0\n",
    "Windows paths": "image,classes\nC:\\data\\in\\a.jpg,cat;dog\nin\\b.jpg,dog\n..\\c.JPG,\n",
    "paths": "image,classes\n/home/me/in/a.jpg,cat;dog\n./b.jpg,dog\nin/c,\n",
    "other endings": "image,classes\na.png,cat;dog\nb.PNG,dog\nc.tif,\n",
    "a row twice": "image,classes\na.jpg,cat;dog\na.jpg,dog;cat\nb.jpg,dog\nc.jpg,\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_every_form_say_the_same(tmp_path, name):
    pictures(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    content = TABLES[name]
    (tmp_path / "table.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    run(tmp_path / "in", tmp_path / "mine", "--labels", tmp_path / "table.csv")
    assert labels_of(tmp_path / "mine") == {"a": {"cat", "dog"}, "b": {"dog"}, "c": set()}


def test_accents_capitals_and_zeros_of_names_in_tables(tmp_path, capsys):
    pictures(tmp_path / "in", unicodedata.normalize("NFD", "übung.jpg"), "IMG_1.JPG", "000123.jpg", "my dog.jpg")
    (tmp_path / "t.csv").write_text("image,classes\nübung.jpg,Cat\nimg_1.jpg,cat\n123,cat \nMy Dog.jpg,CAT\n", encoding="utf-8")
    run(tmp_path / "in", tmp_path / "mine", "--labels", tmp_path / "t.csv")
    assert set(labels_of(tmp_path / "mine")) == {"übung", "IMG_1", "000123", "my_dog"}
    assert capsys.readouterr().out.count("is taken as") == 2


def test_photographs_in_folders_are_named_with_these_in_a_table(tmp_path, capsys):
    pictures(tmp_path / "in", "x/0.jpg", "y/0.jpg", "y/1.jpg")
    (tmp_path / "t.csv").write_text("image,classes\nx/0.jpg,cat\ny/0.jpg,dog\n1,dog\n")
    run(tmp_path / "in", tmp_path / "mine", "--labels", tmp_path / "t.csv")
    assert labels_of(tmp_path / "mine") == {"x_0": {"cat"}, "y_0": {"dog"}, "1": {"dog"}}
    (tmp_path / "t.csv").write_text("image,classes\n0.jpg,cat\ny/0.jpg,dog\n1,dog\n")
    error = refused(capsys, tmp_path / "two", tmp_path / "in", tmp_path / "two", "--labels", tmp_path / "t.csv")
    assert "row 2: '0.jpg' may be x_0 or y_0; write the path below" in error


@pytest.mark.parametrize(
    "text, words",
    [
        ("a.jpg,cat\nb.jpg,dog\n", "has no line of headings"),
        ("image,label\na.jpg,1\nb.jpg,0\n", "the column 'label' holds the numbers 0, 1; write the names"),
        ("image,background,cat\na.jpg,1,1\nb.jpg,1,0\n", "'background' is not a class"),
        ("image,cat\na.jpg,maybe\nb.jpg,1\n", "not 'maybe'"),
        ("image,classes\na.jpg,cat\nb.jpg,cat\nx.jpg,cat\ny.jpg,cat\n", "'x.jpg' is not a photograph in"),
        ("image,classes\na.jpg,cat\nb.jpg,cat\nx.jpg,cat\ny.jpg,cat\n", "and those of 1 more rows are not either"),
        (b"image,classes\na.jpg,L\xf6we\nb.jpg,L\xf6we\n", "in Excel as 'CSV UTF-8'"),
        (b"PK\3\4\0\0\xff", "t.csv: not a UTF-8 CSV file"),
    ],
)
def test_tables_that_cannot_be_understood(tmp_path, capsys, text, words):
    pictures(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refused(capsys, tmp_path / "m", tmp_path / "in", tmp_path / "m", "--labels", tmp_path / "t.csv")


def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path, capsys):
    pictures(tmp_path / "in", "a.jpg")
    (tmp_path / "t.xlsx").write_bytes(b"PK\3\4\0\0")
    error = refused(capsys, tmp_path / "m", tmp_path / "in", tmp_path / "m", "--labels", tmp_path / "t.xlsx")
    assert "save it as CSV" in error


# ---- masks


def truth(value: int) -> np.ndarray:
    mask = np.zeros((30, 40), np.uint8)
    mask[5:20, 5:30] = value
    return mask


def palette_image(mask: np.ndarray, colors: list) -> Image.Image:
    image = Image.fromarray(mask, mode="P")
    image.putpalette(np.array(colors, np.uint8).ravel().tolist())
    return image


def colored(*colors: tuple[int, int, int]) -> Image.Image:
    return Image.fromarray(np.array([(0, 0, 0), *colors], np.uint8)[truth(1)])


RED, GREEN = (250, 0, 0), (0, 250, 0)
ONE_CLASS: dict[str, tuple[Callable[[], Image.Image], list[str]]] = {
    "bits": (lambda: Image.fromarray(truth(1).astype(bool)), ["--classes", "cell"]),
    "grey": (lambda: Image.fromarray(truth(1)), ["--classes", "cell"]),
    "gray as RGB": (lambda: Image.fromarray(truth(1)).convert("RGB"), ["--classes", "cell"]),
    "gray as RGBA": (lambda: Image.fromarray(truth(1)).convert("RGBA"), ["--classes", "cell"]),
    "16 bits": (lambda: Image.fromarray(truth(1).astype(np.uint16)), ["--classes", "cell"]),
    "VOC's palette": (lambda: palette_image(truth(1), voc_palette().tolist()), ["--classes", "cell"]),
    "own palette": (lambda: palette_image(truth(1), [(0, 0, 0), RED]), ["--classes", "cell"]),
    "0 and 255": (lambda: Image.fromarray(truth(255)), ["--legend", "cell=255"]),
    "0 and 255 as RGB": (lambda: Image.fromarray(truth(255)).convert("RGB"), ["--legend", "cell=255"]),
    "bits by legend": (lambda: Image.fromarray(truth(1).astype(bool)), ["--legend", "cell=255"]),
    "colors": (lambda: colored(RED), ["--legend", "cell=#fa0000"]),
    "colors on nothing": (
        lambda: Image.fromarray(np.dstack([colored(RED), 255 * truth(1)])),
        ["--legend", "background=0,0,0;cell=250,0,0"],
    ),
    "colors of a palette": (lambda: palette_image(truth(3), [(0, 0, 0), GREEN, GREEN, RED]), ["--legend", "cell=#FA0000"]),
    "other value": (lambda: Image.fromarray(truth(7)), ["--legend", "cell=7"]),
}


@pytest.mark.parametrize("name", ONE_CLASS)
def test_masks_of_every_form_say_the_same(tmp_path, name):
    make, words = ONE_CLASS[name]
    pictures(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "masks").mkdir()
    for mask in ("a.png", "b.png"):
        make().save(tmp_path / "masks" / mask)
    run(tmp_path / "in", tmp_path / "mine", "--masks", tmp_path / "masks", *words)
    data = load_dataset(tmp_path / "mine", "train")
    assert data.classes == ("cell",) and (data.mask("a") == truth(1)).all() and data.label("a").tolist() == [1]
    assert not check_dataset(tmp_path / "mine", progress=False).counts


BAD_MASKS: dict[str, tuple[Callable[[], Image.Image], list[str], str]] = {
    "0 and 255": (lambda: Image.fromarray(truth(255)), ["--classes", "cell"], "give --legend 'cell=255'"),
    "0 and 255 as RGB": (lambda: Image.fromarray(truth(255)).convert("RGB"), ["--classes", "cell"], "hold only 0 and 255"),
    "all unknown": (lambda: Image.new("L", (40, 30), 255), ["--classes", "cell"], "every pixel of the mask is 255"),
    "colors": (lambda: colored(RED), ["--classes", "cell"], "a picture of colors (#000000, #fa0000, …); say with --legend"),
    "a color too many": (
        lambda: colored(GREEN),
        ["--legend", "cell=#fa0000"],
        "holds the color #00fa00, which --legend does",
    ),
    "a value too many": (lambda: Image.fromarray(truth(2)), ["--classes", "cell"], "the value 2, but there are only 1 classes"),
    "palette in another order": (
        lambda: palette_image(truth(1), voc_palette()[::-1].tolist()),
        ["--classes", "cell"],
        "the palette has another order|has the color",
    ),
    "white background": (lambda: palette_image(1 - truth(1), [(9, 9, 9), (0, 0, 0)]), ["--classes", "cell"], "another order"),
    "smoothed edges": (
        lambda: Image.fromarray(np.dstack([colored(RED), truth(99)])),
        ["--legend", "cell=#fa0000"],
        "half transparent",
    ),
    "too small": (
        lambda: Image.fromarray(truth(1)[1:]),
        ["--classes", "cell"],
        "the mask is 40x29 pixels but its image is 40x30",
    ),
    "background listed": (lambda: Image.fromarray(truth(1)), ["--classes", "background,cell"], "'background' is not a class"),
    "no such legend": (lambda: colored(RED), ["--legend", "nowhere.txt"], "there is no such legend"),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_masks_that_do_not_fit(tmp_path, capsys, name):
    make, words, message = BAD_MASKS[name]
    pictures(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "masks").mkdir()
    for mask in ("a.png", "b.png"):
        make().save(tmp_path / "masks" / mask)
    error = refused(capsys, tmp_path / "m", tmp_path / "in", tmp_path / "m", "--masks", tmp_path / "masks", *words)
    assert any(part in error for part in message.split("|")), error


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_jpeg_is_no_mask(tmp_path, capsys, name):
    pictures(tmp_path / "in", "a.jpg")
    (tmp_path / "masks").mkdir()
    Image.fromarray(truth(1)).save(tmp_path / "masks" / name, format="JPEG")
    words = ["--masks", tmp_path / "masks", "--classes", "cell"]
    assert "is a JPEG, which blurs" in refused(capsys, tmp_path / "m", tmp_path / "in", tmp_path / "m", *words)


@pytest.mark.parametrize(
    "name", ["{}_mask.png", "{}.jpg.png", "mask_{}.PNG", "{}-label.png", "{}_seg.bmp", "sub/{}.gif", "{}.tif"]
)
def test_masks_are_found_under_the_names_that_tools_give(tmp_path, name):
    pictures(tmp_path / "in", "a.jpg", "übung 1.jpg")
    for stem in ("a", unicodedata.normalize("NFD", "Übung 1")):
        path = tmp_path / "masks" / name.format(stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(truth(1)).save(path)
    run(tmp_path / "in", tmp_path / "mine", "--masks", tmp_path / "masks", "--classes", "cell", "--val-share", 0)
    data = load_dataset(tmp_path / "mine", "train")
    assert all((data.mask(image_id) == truth(1)).all() for image_id in ("a", "übung_1"))


def test_masks_in_class_folders_belong_to_the_photographs_there(tmp_path, capsys):
    pictures(tmp_path / "in", "cat/0.jpg", "dog/0.jpg")
    for value, word in enumerate(("cat", "dog"), start=1):
        (tmp_path / "masks" / word).mkdir(parents=True)
        Image.fromarray(truth(value)).save(tmp_path / "masks" / word / "0.png")
    words = ["--masks", tmp_path / "masks", "--classes", "cat,dog", "--val-share", 0]
    run(tmp_path / "in", tmp_path / "mine", *words)
    data = load_dataset(tmp_path / "mine", "train")
    assert data.ids == ("cat_0", "dog_0") and [data.mask(name).max() for name in data.ids] == [1, 2]
    (tmp_path / "masks/cat/0.png").rename(tmp_path / "masks/0.png")
    (tmp_path / "masks/dog/0.png").unlink()
    assert "not of one photograph only" in refused(capsys, tmp_path / "m", tmp_path / "in", tmp_path / "m", *words)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn", ["upright", "as stored"])
def test_a_mask_turns_with_its_photograph(tmp_path, orientation, drawn):
    if drawn == "as stored" and orientation < 5:
        pytest.skip("nothing tells whether a mask of the same size is turned")
    exif = Image.Exif()
    exif[custom.ORIENTATION] = orientation
    mask = truth(1)
    stored = Image.fromarray(255 * mask)
    stored.convert("RGB").save((tmp_path / "in").mkdir() or tmp_path / "in/a.jpg", quality=95, exif=exif)
    run_words = ["--masks", tmp_path / "masks", "--classes", "cell", "--val-share", 0]
    with Image.open(tmp_path / "in/a.jpg") as image:
        upright = np.asarray(custom.ImageOps.exif_transpose(image).convert("L")) > 127
    (tmp_path / "masks").mkdir()
    Image.fromarray(upright.astype(np.uint8) if drawn == "upright" else mask).save(tmp_path / "masks/a.png")
    run(tmp_path / "in", tmp_path / "mine", *run_words)
    assert (load_dataset(tmp_path / "mine", "train").mask("a") == upright).all()


@pytest.mark.parametrize(
    "text",
    [
        "cat,#ff0000\ndog,#00ff00\n",
        "class;r;g;b\r\nbackground;0;0;0\r\ncat;255;0;0\r\ndog;0;255;0\r\n",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,0,0::\ndog:0,255,0::\nvoid:255,255,255::\n",
        "255 0 0\tcat\n0 255 0\tdog\n",
        '{"cat": [255, 0, 0], "dog": "#00FF00"}',
        '[{"name": "cat", "color": "#ff0000"}, {"name": "dog", "color": [0, 255, 0]}]',
        "\ufeffid,name,r,g,b\n1,cat,255,0,0\n2,dog,0,255,0\n",
    ],
)
def test_legends_of_every_form_say_the_same(tmp_path, text):
    (tmp_path / "legend.txt").write_text(text, encoding="utf-8", newline="")
    legend = read_legend(str(tmp_path / "legend.txt"))
    assert legend.classes == ("cat", "dog") and not legend.values
    assert (legend.names[255, 0, 0], legend.names[0, 255, 0]) == ("cat", "dog")


@pytest.mark.parametrize(
    "text, message",
    [
        ("cat,#ff0000\ndog,#ff0000\n", "cat and dog have one color, #ff0000"),
        ("cat,#ff0000\ndog\n", "'dog' names no class with a color"),
        ("# nothing\n", "names no class; it needs a line"),
        ("[1, 2]", "no legend; a JSON needs the form"),
        ("cat,300,0,0\ndog,0,300,0", "names no class with a color"),
    ],
)
def test_legends_that_cannot_be_understood(tmp_path, text, message):
    (tmp_path / "legend.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_legend(str(tmp_path / "legend.txt"))


def test_classes_of_a_legend_that_no_mask_shows_are_left_out(tmp_path, capsys):
    pictures(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "masks").mkdir()
    colored(RED).save(tmp_path / "masks/a.png")
    colored(GREEN).save(tmp_path / "masks/b.png")
    legend = "sky=0,0,9;cat=250,0,0;void=9,9,9;dog=0,250,0"
    run(tmp_path / "in", tmp_path / "mine", "--masks", tmp_path / "masks", "--legend", legend, "--val-share", 0)
    data = load_dataset(tmp_path / "mine", "train")
    assert data.classes == ("cat", "dog") and (data.mask("b") == truth(2)).all()
    assert "classes of --legend that no mask shows: sky" in capsys.readouterr().out


# ---- masks for some


def partly_masked(folder: Path, photographs: int, masks: int) -> list[object]:
    pictures(folder / "in", *(f"im{number}.jpg" for number in range(photographs)))
    (folder / "masks").mkdir()
    for number in range(masks):
        Image.fromarray(truth(1)).save(folder / f"masks/im{number}.png")
    Image.fromarray(truth(1)).save(folder / "masks/stranger.png")
    (folder / "t.csv").write_text("image,classes\n" + "".join(f"im{number}.jpg,cell\n" for number in range(photographs)))
    return [folder / "in", folder / "mine", "--labels", folder / "t.csv", "--masks", folder / "masks", "--classes", "cell"]


def test_masks_for_a_few_are_kept_and_listed(tmp_path, capsys):
    run(*partly_masked(tmp_path, 6, 2))
    printed = capsys.readouterr().out
    assert (
        "2 of 6 photographs have masks" in printed and "only these are scored" in printed and "1 masks of no photo" in printed
    )
    assert split_of(tmp_path / "mine", "scored") == ["im0", "im1"]
    assert set(split_of(tmp_path / "mine", "scored")) <= set(split_of(tmp_path / "mine", "train"))
    data = load_dataset(tmp_path / "mine", "scored")
    assert all((data.mask(name) == truth(1)).all() for name in data.ids)
    check.main([str(tmp_path / "mine")])
    assert "masks of train: 2 of 5 images have one" in capsys.readouterr().out


def test_with_more_masks_validation_has_some_too(tmp_path):
    run(*partly_masked(tmp_path, 30, 10))
    scored, val, train = (split_of(tmp_path / "mine", name) for name in ("scored", "val", "train"))
    assert (len(scored), len(val), len(train)) == (8, 2, 28) and not set(val) & set(train)
    assert all((tmp_path / f"mine/SegmentationClass/{name}.png").is_file() for name in scored + val)


def test_with_all_masks_there_is_no_such_list(tmp_path):
    run(*partly_masked(tmp_path, 6, 6))
    assert not (tmp_path / "mine/ImageSets/Segmentation/scored.txt").exists()


def test_no_class_loses_its_only_photograph_to_validation(tmp_path):
    pictures(tmp_path / "in", *(f"class{number}/{number}.jpg" for number in range(10)), "class0/x.jpg")
    run(tmp_path / "in", tmp_path / "mine", "--val-share", 0.5)
    assert load_dataset(tmp_path / "mine", "train").labels.any(0).all()
    assert not check_dataset(tmp_path / "mine", progress=False).counts


# ---- labels against masks


def two_classes(folder: Path, values: list[int]) -> list[object]:
    """Six photographs, those of even numbers of peas, the others of apples, with masks of these values."""
    pictures(folder / "in", *(f"{'apple' if number % 2 else 'pea'}/im{number}.jpg" for number in range(6)))
    (folder / "masks").mkdir()
    for number, value in enumerate(values):
        Image.fromarray(truth(value)).save(folder / f"masks/im{number}.png")
    return [folder / "in", folder / "mine", "--masks", folder / "masks", "--classes", "apple,pea"]


def test_a_class_with_labels_but_no_pixel_is_refused(tmp_path, capsys):
    error = refused(capsys, tmp_path / "mine", *two_classes(tmp_path, [1] * 6))
    assert "im0.png: class 'pea' has labels but no pixel in any mask" in error


def test_a_mask_that_shows_what_its_label_denies_is_named_by_both_commands(tmp_path, capsys):
    run(*two_classes(tmp_path, [2, 1, 2, 2, 2, 1]))
    assert "the first is im3: the mask shows pea, the label says apple" in capsys.readouterr().out
    report = check_dataset(tmp_path / "mine", progress=False)
    assert dict(report.counts) == {"label": 1}
    assert "image 'im3': the mask shows pea, the label apple; correct one" in report.first["label"]


def test_a_small_thing_without_a_pixel_is_no_contradiction(tmp_path, capsys):
    run(*two_classes(tmp_path, [2, 1, 0, 1, 2, 0]))
    printed, report = capsys.readouterr().out, check_dataset(tmp_path / "mine", progress=False)
    assert "differ" not in printed and not report.counts
    assert "2 masks have no pixel of a class of their label, the first is that of im2" in printed
    assert report.notes == ["2 masks have no pixel of a class of their label, the first is that of 'im2'"]


def changed(root: Path, split: str, value: int) -> None:
    for path in (root / "SegmentationClass").iterdir():
        palette_image(truth(value), voc_palette().tolist()).save(path)


@pytest.mark.parametrize(
    "damage, kind, words",
    [
        (lambda root: changed(root, "train", 1), "class", "class 'pea' has labels but no pixel in any mask"),
        (lambda root: changed(root, "train", 255), "class", "class 'apple' has labels but no pixel in any mask"),
        (
            lambda root: Image.new("L", (40, 30), 255).save(root / "SegmentationClass/im2.png"),
            "unknown pixels",
            "im2.png: every pixel is 255",
        ),
        (
            lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("im1\nim3\n"),
            "class",
            "class 'pea' has no image in the list train",
        ),
        (
            lambda root: [
                (root / "dataset.json").write_text('{"classes": ["background", "pea"]}'),
                (root / "labels.csv").write_text((root / "labels.csv").read_text().replace("apple", "background")),
            ],
            "class",
            "'background' is not a class",
        ),
    ],
)
def test_check_holds_labels_masks_and_lists_against_each_other(tmp_path, damage, kind, words):
    run(*two_classes(tmp_path, [2, 1, 2, 1, 2, 1]))
    assert not check_dataset(tmp_path / "mine", progress=False).counts
    damage(tmp_path / "mine")
    report = check_dataset(tmp_path / "mine", progress=False)
    assert report.counts[kind] and words in report.first[kind]
    with pytest.raises(SystemExit):
        check.main([str(tmp_path / "mine")])


# ---- nothing to find is no perfect score


@pytest.mark.parametrize("value", [0, 255])
def test_background_alone_is_never_perfect(tmp_path, value):
    (tmp_path / "SegmentationClass").mkdir()
    picture(tmp_path / "JPEGImages/a.jpg", 0)
    Image.fromarray(truth(value)).save(tmp_path / "SegmentationClass/a.png")
    data = SegmentationDataset(tmp_path, "train", ("a",), ("cell",), np.ones((1, 1), np.uint8))
    nothing = score_masks(data, lambda image_id: np.zeros((30, 40), np.uint8))
    with pytest.raises(ValueError, match="holds no pixel of any class, so that there is nothing to score"):
        metric_row("nothing", data, nothing, False, Config())
    from wsss_lib.core.files import write_maps

    write_maps(tmp_path / "a.npz", np.array([0]), np.zeros((1, 8, 10)), (30, 40))
    with pytest.raises(ValueError, match="holds no pixel of any class"):
        best_threshold_row(data, tmp_path)


def test_a_class_without_a_true_pixel_counts_only_where_it_is_predicted(tmp_path):
    (tmp_path / "SegmentationClass").mkdir()
    picture(tmp_path / "JPEGImages/a.jpg", 0)
    Image.fromarray(truth(1)).save(tmp_path / "SegmentationClass/a.png")
    data = SegmentationDataset(tmp_path, "train", ("a",), ("cell", "pea"), np.ones((1, 2), np.uint8))
    for value, expected in ((1, [100.0, 100.0, None]), (2, [100.0, 0.0, 0.0])):
        row = metric_row("x", data, score_masks(data, lambda image_id, value=value: truth(value)), False, Config())
        assert row["class_iou"] == expected


# ---- annotations


def coco(folder: Path, **changes) -> Path:
    square = [[5, 5, 30, 5, 30, 20, 5, 20]]
    content = {
        "images": [
            {"id": 5, "file_name": "train\\a.jpg", "height": 30, "width": 40},
            {"id": 9.0, "file_name": "images/b.jpg", "height": 30, "width": 40},
            {"id": 2, "file_name": "c.jpg", "height": 30, "width": 40},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 40, "segmentation": square},
            {"id": 2, "image_id": 9, "category_id": 3, "segmentation": square, "bbox": [5, 5, 25, 15]},
        ],
        "categories": [{"id": 40, "name": "pea"}, {"id": 3, "name": "apple"}, {"id": 0, "name": "things"}],
    } | changes
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8-sig")
    return folder / "instances.json"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_coco_json_of_own_categories(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    pictures(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    run(tmp_path / "in", tmp_path / "mine", "--labels", coco(tmp_path), "--val-share", 0)
    assert labels_of(tmp_path / "mine") == {"a": {"pea"}, "b": {"apple"}, "c": set()}
    data = load_dataset(tmp_path / "mine", "train")
    assert data.classes == ("apple", "pea") and (data.mask("a") == truth(2)).all() and data.mask("c").max() == 0
    assert "1 photographs without annotation, the first is d.jpg" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_coco_json_of_boxes_gives_labels_only(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    pictures(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    boxes = [{"id": 1, "image_id": 5, "category_id": 40, "segmentation": [], "bbox": [1, 1, 5, 5]}]
    run(tmp_path / "in", tmp_path / "mine", "--labels", coco(tmp_path, annotations=boxes))
    assert labels_of(tmp_path / "mine") == {"a": {"pea"}, "b": set(), "c": set()}
    assert not (tmp_path / "mine/SegmentationClass").exists() and "without an outline" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_coco14_takes_own_categories_of_a_part(tmp_path):
    pytest.importorskip("pycocotools")
    from data_prep import coco14

    pictures(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    words = ["--train", coco(tmp_path), "--images", tmp_path / "in", "--partial", "--no-download"]
    coco14.main([str(word) for word in (tmp_path / "out", *words)])
    data = load_dataset(tmp_path / "out", "train")
    assert data.classes == ("things", "apple", "pea") and (data.mask("000000000005") == truth(3)).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_coco14_finds_images_in_the_folders_that_the_json_names(tmp_path):
    pytest.importorskip("pycocotools")
    from data_prep import coco14

    pictures(tmp_path / "in", "train/a.jpg", "images/b.jpg", "C.JPG")
    words = ["--train", coco(tmp_path), "--images", tmp_path / "in", "--partial", "--no-download"]
    coco14.main([str(word) for word in (tmp_path / "out", *words)])
    assert len(load_dataset(tmp_path / "out", "train")) == 3


def labelme(folder: Path, name: str, shapes: list[dict], **changes) -> None:
    content = {"version": "5.0", "flags": {}, "shapes": shapes, "imagePath": f"..\\in\\{name}.jpg", "imageData": None}
    content |= {"imageHeight": 30, "imageWidth": 40} | changes
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_labelme_files_beside_the_photographs(tmp_path):
    folder = pictures(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    corners = [[5, 5], [29, 5], [29, 19], [5, 19]]
    labelme(folder, "a", [{"label": "cat", "points": corners, "shape_type": "polygon"}])
    labelme(folder, "b", [{"label": "dog", "points": [corners[0], corners[2]], "shape_type": "rectangle"}])
    labelme(folder, "c", [], flags={"cat": True, "dog": False})
    labelme(folder, "d", [])
    run(folder, tmp_path / "mine", "--labels", folder, "--val-share", 0)
    assert labels_of(tmp_path / "mine") == {"a": {"cat"}, "b": {"dog"}, "c": {"cat"}, "d": set()}
    data = load_dataset(tmp_path / "mine", "scored")
    assert data.ids == ("a", "b", "d") and (data.mask("a") == truth(1)).all() and (data.mask("b") == truth(2)).all()


@pytest.mark.parametrize(
    "shapes, words",
    [
        ([{"points": []}], "'label' is missing"),
        ([{"label": "cat", "points": [[1, "x"]]}], "not an annotation of LabelMe"),
        ([{"label": "cat", "points": [[1, 1e300]]}], "far outside"),
        ("no list", "not an annotation of LabelMe"),
    ],
)
def test_labelme_files_that_are_broken(tmp_path, capsys, shapes, words):
    pictures(tmp_path / "in", "a.jpg")
    (tmp_path / "json").mkdir()
    labelme(tmp_path / "json", "a", shapes)
    error = refused(capsys, tmp_path / "m", tmp_path / "in", tmp_path / "m", "--labels", tmp_path / "json")
    assert "a.json: " in error and words in error


def test_xml_files_of_own_classes(tmp_path):
    pictures(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    for name, present in (("a", ["cat", "dog"]), ("b", ["dog"]), ("c", [])):
        write_voc_xml(tmp_path / f"xml/{name}.xml", (30, 40), [VocObject(word, (1, 1, 9, 9)) for word in present])
    run(tmp_path / "in", tmp_path / "mine", "--labels", tmp_path / "xml")
    assert labels_of(tmp_path / "mine") == {"a": {"cat", "dog"}, "b": {"dog"}, "c": set()}


# ---- what comes next


@pytest.mark.system
@pytest.mark.parametrize("name", ["mine", "my photographs", "it's 2024", "日本"])
def test_the_printed_command_opens_the_data_set_from_everywhere(tmp_path, name):
    pictures(tmp_path / "in", "cat/a.jpg", "cat/b.jpg", "dog/c.jpg")
    command = [sys.executable, "-m", "data_prep.custom", "in", name]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    words = shlex.split(printed.splitlines()[-1].removeprefix("or notebook by notebook, go on with "))
    given = {words[place + 1]: words[place + 2] for place, word in enumerate(words) if word in ("-p", "-r")}
    assert Path(words[1]).is_file() and Path(words[words.index("-f") + 1]).is_file()
    data = open_data(Config.from_values({key: value for key, value in given.items()}), "train")
    assert data.root == tmp_path / name and len(data) >= 2


# ---- tables of a ready data set, after an editor had them


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter, end", [(",", "\r\n"), (";", "\r\n"), ("\t", "\n"), (",", "\r")])
def test_a_data_set_is_read_after_excel_and_notepad(tmp_path, encoding, delimiter, end):
    pictures(tmp_path / "in", "cat/a.jpg", "cat/b.jpg", "dog/c.jpg")
    run(tmp_path / "in", tmp_path / "mine", "--val-share", 0)
    before = labels_of(tmp_path / "mine")
    for name in ("labels.csv", "ImageSets/Segmentation/train.txt", "dataset.json"):
        path = tmp_path / "mine" / name
        text = path.read_text().replace("\n", end)
        path.write_bytes((text.replace(",", delimiter) if name == "labels.csv" else text).encode(encoding))
    assert labels_of(tmp_path / "mine") == before


def test_names_of_a_list_may_have_another_form_than_the_files(tmp_path):
    pictures(tmp_path / "in", "cat/übung.jpg", "dog/c.jpg")
    run(tmp_path / "in", tmp_path / "mine", "--val-share", 0)
    path = tmp_path / "mine/ImageSets/Segmentation/train.txt"
    path.write_text(unicodedata.normalize("NFD", path.read_text(encoding="utf-8")), encoding="utf-8")
    assert load_dataset(tmp_path / "mine", "train").ids == ("c", "übung")
    image = tmp_path / "mine/JPEGImages/übung.jpg"
    image.rename(image.with_name(unicodedata.normalize("NFD", image.name)))
    data = load_dataset(tmp_path / "mine", "train")
    assert data.image(data.ids[1]).size == (40, 30)


def test_a_file_of_another_ending_is_named_as_the_remedy(tmp_path):
    pictures(tmp_path / "in", "cat/a.jpg", "dog/c.jpg")
    run(tmp_path / "in", tmp_path / "mine", "--val-share", 0)
    image = tmp_path / "mine/JPEGImages/a.jpg"
    image.rename(image.with_name("a.JPG"))
    with pytest.raises(DataError, match="a.JPG is there, rename it"):
        load_dataset(tmp_path / "mine", "train")


# ---- whatever stands in a file, it is read or refused by one sentence


PIECES = [
    b"image",
    b"classes",
    b"a.jpg",
    b"b.jpg",
    b"cat",
    b"label",
    b",",
    b";",
    b"\t",
    b"\n",
    b"\r",
    b'"',
    b"\0",
    b"1",
    b"0",
    b"sep=;\n",
]
PIECES += [
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xf6",
    b"#ff0000",
    b"255",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"shapes",
    b"\xc2\x85",
    b"  ",
]


@pytest.fixture(scope="module")
def two_photographs(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("in"), "a.jpg", "b.jpg")


@given(st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join) | st.binary(max_size=60))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_read_or_refused_in_one_line(two_photographs, tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "file.json"
    path.write_bytes(content)
    for read in (
        lambda: custom.from_table(two_photographs, path, lambda text: None),
        lambda: read_legend(str(path)),
        lambda: from_annotations(two_photographs, path.parent, lambda text: None),
    ):
        try:
            read()
        except DataError as error:
            assert str(error).count("\n") == 0 and "file.json" in str(error)


def test_a_data_set_is_found_again_by_its_content_and_never_taken_for_another(tmp_path):
    """Of one name: the same photographs, others, other labels, and another mask."""
    for name in ("A/photos", "B/photos"):
        pictures(tmp_path / name, "cat/a.jpg", "dog/b.jpg")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "B/photos/cat/a.jpg")
    photographs, classes = custom.from_class_folders(tmp_path / "A/photos")
    first = custom.source_hash(photographs, classes, 500)
    others, _ = custom.from_class_folders(tmp_path / "B/photos")
    corrected = photographs | {"a": custom.Photograph(photographs["a"].path, ("dog",))}
    hashes = {first, *(custom.source_hash(each, classes, 500) for each in (others, corrected))}
    assert len(hashes) == 3 and custom.source_hash(dict(photographs), classes, 500) == first

    root = custom.place_of(tmp_path / "data", "photos", first)
    assert root == tmp_path / "data/photos"
    custom.make_dataset(photographs, classes, root, val_share=0)
    assert custom.place_of(tmp_path / "data", "photos", first) == root
    assert {custom.place_of(tmp_path / "data", "photos", each).name for each in hashes - {first}} == {
        f"photos-{each}" for each in hashes - {first}
    }
    (tmp_path / "data/mine").mkdir()  # a person's own folder
    assert custom.place_of(tmp_path / "data", "mine", first).name == f"mine-{first}"

    masks = tmp_path / "masks"
    masks.mkdir()
    found = []
    for value in (1, 2):
        Image.new("L", (40, 30), value).save(masks / "a.png")
        found.append(custom.source_hash(photographs, classes, 500, MaskFolder(masks, photographs, classes)))
    assert len({first, *found}) == 3


# ---- more that the world writes


def test_a_link_that_leads_back_or_nowhere_is_named(tmp_path, capsys):
    folder = pictures(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    for target in ("..", "nowhere.jpg"):  # the first gave every photograph the class cat, the second was left out silently
        (folder / "cat/link.jpg").symlink_to(target)
        assert "cat/link.jpg: the link leads nowhere" in refused(capsys, tmp_path / "mine", folder, tmp_path / "mine")
        (folder / "cat/link.jpg").unlink()


def test_a_data_set_is_not_made_in_the_folder_of_photographs(tmp_path, capsys):
    folder = pictures(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    assert "lies in the folder of photographs" in refused(capsys, folder / "mine", folder, folder / "mine")


def test_a_data_set_is_made_where_a_link_leads(tmp_path):
    folder = pictures(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    (tmp_path / "large/mine").mkdir(parents=True)
    (tmp_path / "mine").symlink_to(tmp_path / "large/mine")
    run(folder, tmp_path / "mine", "--val-share", 0)
    assert (tmp_path / "mine").is_symlink() and len(load_dataset(tmp_path / "large/mine", "train")) == 2


@pytest.mark.parametrize("longest", [-5, 1])
def test_photographs_do_not_become_dots(tmp_path, capsys, longest):
    folder = pictures(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    error = refused(capsys, tmp_path / "mine", folder, tmp_path / "mine", f"--longest={longest}")
    assert f"--longest {longest}: give at least 32 pixels" in error


def test_a_data_set_below_a_file_is_refused_with_a_remedy(tmp_path, capsys):
    folder = pictures(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        custom.main([str(folder), str(tmp_path / "file/mine")])
    assert "file/mine: cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize("name, words", [(b"\xff\xe9", "rename it"), (b"a\x01", "rename it"), (b"x" * 250, "too long")])
def test_names_that_no_list_can_hold(tmp_path, capsys, name, words):
    folder = pictures(tmp_path / "in", "cat/a.jpg", "dog/a.jpg")
    (folder / "cat/a.jpg").rename(os.fsdecode(os.fsencode(folder / "cat/") + b"/" + name + b".jpg"))
    if words == "too long":  # with the folder before it
        (folder / "dog/a.jpg").rename(folder / f"dog/{name.decode()}.jpg")
    error = refused(capsys, tmp_path / "mine", folder, tmp_path / "mine")
    assert words in error and "in/" in error and ".writing-" not in error


def test_folders_of_images_and_masks_are_no_classes(tmp_path, capsys):
    folder = pictures(tmp_path / "in", "images/a.jpg", "masks/a.png")
    assert "images, masks are no names of classes" in refused(capsys, tmp_path / "mine", folder, tmp_path / "mine")


def test_a_picture_without_an_ending_is_counted(tmp_path, capsys):
    folder = pictures(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    (folder / "cat/c").write_bytes((folder / "cat/a.jpg").read_bytes())
    run(folder, tmp_path / "mine")
    assert "left out: 1 pictures without the ending of one, the first is c" in capsys.readouterr().out


@pytest.mark.parametrize("masks", ["in", "in/masks", "."])
def test_masks_among_the_photographs_are_refused(tmp_path, capsys, masks):
    folder = pictures(tmp_path / "in", "a.jpg", "masks/a.png")
    error = refused(capsys, tmp_path / "mine", folder, tmp_path / "mine", "--masks", tmp_path / masks, "--classes", "cat")
    assert "photographs and masks must not lie in one folder" in error


@pytest.mark.parametrize(
    "name, images, words",
    [
        ("a.tif", [Image.fromarray(np.full((30, 40), 0.5, np.float32))], "holds the value 0.5"),
        ("a.tif", [Image.fromarray(np.full((30, 40), -1, np.int32))], "holds the value -1"),
        ("a.tif", [Image.new("L", (40, 30)), Image.new("L", (40, 30), 1)], "the file holds 2 pictures"),
    ],
)
@pytest.mark.parametrize("meaning", [("--classes", "cat"), ("--legend", "cat=1")])
def test_masks_of_numbers_that_are_no_classes(tmp_path, capsys, name, images, words, meaning):
    pictures(tmp_path / "in", "a.jpg")
    (tmp_path / "masks").mkdir()
    images[0].save(tmp_path / "masks" / name, save_all=True, append_images=images[1:])
    error = refused(capsys, tmp_path / "mine", tmp_path / "in", tmp_path / "mine", "--masks", tmp_path / "masks", *meaning)
    assert words in error


@pytest.mark.parametrize("text", ["cat=-1", "cat=1.5", "cat=red", "cat=#fff"])
def test_a_color_that_is_none_is_named(text):
    with pytest.raises(DataError, match=f"'{text}' names no class with a color"):
        read_legend(text)


def test_a_legend_of_json_objects(tmp_path):
    (tmp_path / "legend.json").write_text('{"cat": {"r": 255, "g": 0, "b": 0}}')
    assert read_legend(str(tmp_path / "legend.json")).names == {(255, 0, 0): "cat"}


@pytest.mark.parametrize(
    "text",
    [
        'image, classes\na.jpg, "cat, dog"\nb.jpg, "dog"\n',
        "Bild;Klasse\na.jpg;cat,dog\nb.jpg;dog\n",
        "image,label\nhttps://x.org/p/a.jpg?w=3,cat;dog\nfile:///b%2Ejpg,dog\n",
        "image,choice\n/data/upload/1/1a2b3c4d-a.jpg,cat;dog\n/data/upload/1/5e6f7a8b-b.jpg,dog\n",
    ],
)
def test_tables_of_more_programs(tmp_path, text):
    pictures(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "table.csv").write_text(text)
    run(tmp_path / "in", tmp_path / "mine", "--labels", tmp_path / "table.csv")
    assert labels_of(tmp_path / "mine") == {"a": {"cat", "dog"}, "b": {"dog"}}


@pytest.mark.parametrize("value", ["nan", "N/A", "null", "-"])
def test_a_missing_value_is_not_taken_for_a_class(tmp_path, capsys, value):
    pictures(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "table.csv").write_text(f"image,classes\na.jpg,cat\nb.jpg,{value}\n")
    error = refused(capsys, tmp_path / "mine", tmp_path / "in", tmp_path / "mine", "--labels", tmp_path / "table.csv")
    assert f"row 3: '{value}' may mean that nothing of interest is there" in error


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("t.xml", "<annotations/>", "a .xml is no table"),
        ("t.json", "[]", "not an instances JSON of COCO"),
        ("t.json", "{}", "it names no images"),
        ("t.json", "\ufeff{}".encode("utf-16-le"), "the file is UTF-16"),
        ("t.json", '{"images": [], "categories": ["cat"]}', "it is not an object with names and values"),
        ("t/a.json", '["cat"]', "it has no list of shapes"),
        ("t/a.json", '{"images": []}', "give the file itself: --labels"),
        ("t/a.xml", "<annotations><image/></annotations>", "is CVAT's own form"),
    ],
)
def test_annotations_of_other_forms_are_named(tmp_path, capsys, name, content, words):
    pictures(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    labels = tmp_path / Path(name).parts[0]
    assert words in refused(capsys, tmp_path / "mine", tmp_path / "in", tmp_path / "mine", "--labels", labels)


def small_coco(**changes) -> str:
    triangle = {"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 30, 1, 30, 20]]}
    images = [{"id": 1, "file_name": "images/1a2b3c4d-a.jpg"}, {"id": 2, "file_name": "b.jpg", "height": None, "width": None}]
    return json.dumps({"images": images, "annotations": [triangle], "categories": [{"id": 1, "name": " cat "}]} | changes)


def test_coco_json_without_sizes_and_with_names_of_label_studio(tmp_path):
    pictures(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "t.json").write_text(small_coco())
    run(tmp_path / "in", tmp_path / "mine", "--labels", tmp_path / "t.json", "--val-share", 0)
    assert labels_of(tmp_path / "mine") == {"a": {"cat"}, "b": set()}
    assert set(np.unique(load_dataset(tmp_path / "mine", "train").mask("a"))) == {0, 1}


def test_categories_that_a_file_does_not_name_are_not_taken_for_those_of_coco(tmp_path, capsys):
    pictures(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "t.json").write_text(small_coco(categories=[]))  # made the class "person"
    error = refused(capsys, tmp_path / "mine", tmp_path / "in", tmp_path / "mine", "--labels", tmp_path / "t.json")
    assert "category 1 is not among the file's categories" in error


def test_labelme_files_of_renamed_photographs_and_ignored_parts(tmp_path):
    pictures(tmp_path / "in", "a.jpg")
    corners = {"cat": [[1, 1], [30, 1], [30, 20]], "__ignore__": [[1, 22], [9, 22], [9, 28]]}
    shapes = [{"label": word, "points": points, "shape_type": "polygon"} for word, points in corners.items()]
    content = {"imagePath": "earlier.jpg", "imageHeight": 30, "imageWidth": 40, "shapes": shapes}
    (tmp_path / "in/a.json").write_text(json.dumps(content))
    run(tmp_path / "in", tmp_path / "mine", "--labels", tmp_path / "in")
    data = load_dataset(tmp_path / "mine", "train")
    assert data.classes == ("cat",) and set(np.unique(data.mask("a"))) == {0, 1, 255}


def test_masks_are_exported_for_photographs_under_their_own_names(tmp_path):
    picture(tmp_path / "in/My dog.jpg", 1, size=(80, 60))
    picture(tmp_path / "in/b.jpg", 2, size=(80, 60))
    (tmp_path / "in/b.json").write_text("{}")  # of LabelMe, beside it
    for name in ("My_dog", "b"):
        write_mask(tmp_path / f"masks/{name}.png", np.ones((30, 40), np.uint8))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/dataset.json").write_text('{"classes": ["dog"]}')
    export(tmp_path / "masks", tmp_path / "mine", tmp_path / "out", tmp_path / "in")
    names = [image["file_name"] for image in json.loads((tmp_path / "out/annotations.json").read_text())["images"]]
    assert names == ["My dog.jpg", "b.jpg"]
    write_mask(tmp_path / "masks/c.png", np.full((30, 40), 9, np.uint8))
    picture(tmp_path / "in/c.jpg", 3, size=(80, 60))
    with pytest.raises(DataError, match="holds the value 9"):
        export(tmp_path / "masks", tmp_path / "mine", tmp_path / "other", tmp_path / "in")
    assert not [path for path in tmp_path.iterdir() if path.name == "other" or path.name.startswith(".writing-")]


def test_a_subset_of_data_without_masks_and_without_a_list_val(tmp_path):
    pictures(tmp_path / "in", "cat/a.jpg", "dog/b.jpg", "cow/c.jpg")
    run(tmp_path / "in", tmp_path / "mine", "--val-share", 0)
    subset.main([str(tmp_path / "mine"), str(tmp_path / "part"), "--classes", "dog, cat"])
    assert labels_of(tmp_path / "part") == {"a": {"cat"}, "b": {"dog"}}
    assert not load_dataset(tmp_path / "part", "train").has_masks


def test_hidden_files_are_no_lists_and_no_masks(tmp_path):
    pictures(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    run(tmp_path / "in", tmp_path / "mine", "--val-share", 0)
    (tmp_path / "mine/ImageSets/Segmentation/._train.txt").write_bytes(b"\0\5\x16\7")  # as macOS leaves on other disks
    (tmp_path / "mine/SegmentationClass").mkdir()
    (tmp_path / "mine/SegmentationClass/.DS_Store").touch()
    assert not check_dataset(tmp_path / "mine").counts.get("list") and not load_dataset(tmp_path / "mine", "train").has_masks
