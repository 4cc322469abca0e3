"""The data set reader: what it returns, and one clear sentence for everything that can be wrong with the input."""

import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import CLASSES, SIZES
from wsss_lib.config import Config
from wsss_lib.core.files import image_size, read_image, read_maps, read_mask, voc_palette, write_mask
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import score_masks, sweep_maps
from wsss_lib.data.dataset import VOC_CLASSES, load_dataset, open_data, read_classes, read_labels, read_split
from wsss_lib.data.samples import AffinitySamples, ClassificationSamples, SegmentationSamples
from wsss_lib.errors import DataError
from wsss_lib.methods.cam import build_classifier, cam_localization
from wsss_lib.refine.irn import build_irn, make_pseudo_masks
from wsss_lib.refine.seed_masks import make_seeds


def refusal(action, *words: str) -> str:
    """The one sentence with which an action is refused."""
    with pytest.raises(DataError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


# ---- what is read


def test_a_good_data_set(miniature):
    data = load_dataset(miniature, "train")
    assert data.ids == tuple(f"m_{index:02d}" for index in range(8)) and len(data) == 8
    assert data.classes == CLASSES and data.num_classes == 3 and data.labels.dtype == np.uint8
    assert data.labels.tolist()[:5] == [[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]]
    assert data.label("m_04").tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="image 'm_99' is not in split"):
        data.label("m_99")
    handed_over = copy.copy(data)  # what a worker process gets: without the index, which it makes anew
    assert "_row" in vars(data) and "_row" not in vars(handed_over) and handed_over.label("m_04").tolist() == [0, 1, 1]
    for index, image_id in enumerate(data.ids):
        image, mask = data.image(image_id), data.mask(image_id)
        assert image.mode == "RGB" and image.size[::-1] == mask.shape == SIZES[index % 4] and mask.dtype == np.uint8
        assert image_size(data.image_path(image_id)) == image.size
        assert set(np.unique(mask)) == {0, 255} | {int(number) + 1 for number in np.flatnonzero(data.label(image_id))}


def test_limit_keeps_the_first_images(miniature):
    assert load_dataset(miniature, "train", limit=2).ids == ("m_00", "m_01")
    assert len(load_dataset(miniature, "val", limit=99)) == 4


def test_labels_and_masks_may_lie_elsewhere(voc_folder, tmp_path):
    (voc_folder / "labels.csv").rename(tmp_path / "mine.csv")
    (voc_folder / "SegmentationClass").rename(voc_folder / "SegmentationClassAug")
    data = load_dataset(voc_folder, "val", tmp_path / "mine.csv", mask_folder="SegmentationClassAug")
    assert data.mask("m_08").max() == 255


def test_voc_needs_no_description(tmp_path):
    assert read_classes(tmp_path) == VOC_CLASSES and len(VOC_CLASSES) == 20 and VOC_CLASSES[14] == "person"


def test_ids_are_strings_and_the_first_word_of_a_line(voc_folder):
    """VOC's class lists hold a second column; DeepLab's lists hold two."""
    (voc_folder / "ImageSets/Segmentation/mine.txt").write_text("2007_000032  1\n\n  000012 -1\r\n1e5\n")
    assert read_split(voc_folder, "mine") == ("2007_000032", "000012", "1e5")


def test_an_image_without_a_class_becomes_background_all_the_way(voc_folder, small_config):
    """No foreground class is allowed: its maps are empty and every mask made of them is background."""
    table = (voc_folder / "labels.csv").read_text()
    (voc_folder / "labels.csv").write_text(table.replace("m_01,0,1,0", "m_01,0,0,0"))
    config = small_config.model_copy(update={"data_root": str(voc_folder), "limit": 2, "cam_scales": (1.0, 0.5)})
    data = open_data(config, "train")
    folder = Path(config.runs_root)
    make_maps(cam_localization(build_classifier(config, 3), config), data, config, folder / "maps")
    classes, scores, size = read_maps(folder / "maps" / "m_01.npz")
    assert classes.shape == (0,) and scores.shape == (0, 10, 14) and size == (40, 56)
    assert read_maps(folder / "maps" / "m_00.npz")[0].tolist() == [0, 1]
    assert make_seeds(data, folder / "maps", config, folder) == 2
    net = build_irn(config, "").eval()
    make_pseudo_masks(net, data, folder / "maps", config, folder / "pseudo")
    for name in ("seed_masks", "irn_labels", "pseudo"):
        mask = read_mask(folder / name / "m_01.png", 3)
        assert mask.shape == (40, 56) and not mask.any()
    sweep_maps(data, folder / "maps", [0.1, 0.5])
    samples = ClassificationSamples(data, 0, (36, 48), 32, (0, 0, 0), (1, 1, 1))
    assert not samples[0, 1][1].any()


def test_greyscale_and_other_jpegs_are_read_as_rgb(tmp_path):
    for mode in ("L", "CMYK", "RGB"):
        Image.new(mode, (5, 4), 120 if mode == "L" else None).save(tmp_path / "a.jpg")
        image = read_image(tmp_path / "a.jpg")
        assert image.mode == "RGB" and image.size == (5, 4)
    Image.new("L", (5, 4), 120).save(tmp_path / "gray.jpg")
    assert np.array(read_image(tmp_path / "gray.jpg")).tolist() == np.full((4, 5, 3), 120).tolist()


def test_palette_by_hand():
    palette = voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert len({tuple(color) for color in palette.tolist()}) == 256
    assert palette[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]


# ---- images


def test_missing_image(voc_folder):
    (voc_folder / "JPEGImages" / "m_03.jpg").unlink()
    refusal(
        lambda: load_dataset(voc_folder, "train"),
        f"{voc_folder}/JPEGImages/m_03.jpg: the image is missing, and 0 others",
        "of 'train'; put them there or take their ids out of the list",
    )
    refusal(lambda: read_image(voc_folder / "JPEGImages" / "m_03.jpg"), "m_03.jpg: the image is missing; put it there or take")


@pytest.mark.parametrize("damage", ["text", "empty", "half", "folder"])
def test_unreadable_jpeg(voc_folder, small_config, damage):
    path = voc_folder / "JPEGImages" / "m_03.jpg"
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
        (voc_folder / "ImageSets/Segmentation/one.txt").write_text("m_03\n")
        refusal(lambda: load_dataset(voc_folder, "one"), "m_03.jpg: the image is missing")
    else:
        path.write_bytes({"text": b"no JPEG", "empty": b"", "half": content[: len(content) // 2]}[damage])
    refusal(lambda: read_image(path), f"{path}: the image cannot be read (", "fetch it again or take its id out of the list")
    if damage != "half":  # a cut file still holds its size
        refusal(lambda: image_size(path), f"{path}: the image cannot be read (")
    if damage == "folder":
        return
    data = load_dataset(voc_folder, "train")
    samples = ClassificationSamples(data, 0, (36, 48), 32, (0, 0, 0), (1, 1, 1))
    refusal(lambda: samples[0, 3], "m_03.jpg: the image cannot be read")
    folder = Path(small_config.runs_root) / "maps"
    net = build_classifier(small_config, 3)
    localize = cam_localization(net, small_config)
    refusal(lambda: make_maps(localize, data, small_config, folder), "m_03.jpg: the image cannot be read")
    written = list(folder.glob("*")) if folder.is_dir() else []
    assert all(read_maps(file) for file in written) and folder / "m_03.npz" not in written


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(buffer, format="JPEG")
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(np.eye(12, 16, dtype=np.uint8), mode="P")
    image.putpalette(voc_palette().tobytes())
    image.save(buffer, format="PNG")
    return buffer.getvalue()


DAMAGE = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4)


@given(damage=DAMAGE, cut=st.integers(0, 900))
@example(damage=[(163, 255), (164, 255), (165, 255), (166, 255)], cut=0)
def test_a_damaged_jpeg_is_read_or_refused(tmp_path_factory, damage, cut):
    path = tmp_path_factory.getbasetemp() / "damaged.jpg"
    path.write_bytes(damaged(jpeg(), damage, cut))
    try:
        assert read_image(path).mode == "RGB"
    except DataError as error:
        assert str(error).startswith(f"{path}: the image cannot be read")


@given(damage=DAMAGE, cut=st.integers(0, 200))
def test_a_damaged_mask_is_read_or_refused(tmp_path_factory, damage, cut):
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(damaged(png(), damage, cut))
    try:
        mask = read_mask(path, 20, (16, 12))
        assert mask.shape == (12, 16) and mask.dtype == np.uint8 and ((mask <= 20) | (mask == 255)).all()
    except DataError as error:
        assert str(error).startswith(f"{path}: the mask")


def damaged(content: bytes, damage: list[tuple[int, int]], cut: int) -> bytes:
    content = bytearray(content)
    for place, value in damage:
        content[place % len(content)] = value
    return bytes(content[: max(0, len(content) - cut)])


# ---- masks


def test_mask_of_another_size(voc_folder):
    path = voc_folder / "SegmentationClass" / "m_03.png"
    write_mask(path, np.zeros((40, 56), np.uint8))
    data = load_dataset(voc_folder, "train")
    sentence = f"{path}: the mask is 56x40 pixels but its image is 40x56; make the mask again from the original annotation"
    assert refusal(lambda: data.mask("m_03")) == sentence
    mean, std = (0, 0, 0), (1, 1, 1)
    for samples in (
        SegmentationSamples(data, path.parent, 0, (1.0,), 33, mean, std),
        AffinitySamples(data, path.parent, 0, (1.0, 1.0), 32, mean, std),
    ):
        assert refusal(lambda samples=samples: samples[0, 3]) == sentence


def test_a_result_of_another_size_is_not_scored(miniature, tmp_path):
    data = load_dataset(miniature, "train", limit=1)
    write_mask(tmp_path / "m_00.png", np.zeros((40, 55), np.uint8))
    refusal(lambda: score_masks(data, tmp_path), f"{tmp_path}/m_00.png: the mask is 55x40 pixels but its image is 56x40")
    assert score_masks(data, data.mask).scores().miou == 1.0


def test_missing_or_unreadable_mask(voc_folder):
    data = load_dataset(voc_folder, "train")
    data.mask_path("m_00").unlink()
    refusal(lambda: data.mask("m_00"), f"{data.mask_path('m_00')}: the mask is missing; scoring and training need one")
    data.mask_path("m_01").write_bytes(b"no PNG")
    refusal(lambda: data.mask("m_01"), "m_01.png: the mask cannot be read (no image); make it again")


def test_mask_value_that_is_no_class(voc_folder):
    data = load_dataset(voc_folder, "train")
    write_mask(data.mask_path("m_00"), np.full((40, 56), 7, np.uint8))
    refusal(lambda: data.mask("m_00"), "m_00.png: the mask holds the value 7, but there are only 3 classes; check dataset.json")


@pytest.mark.parametrize("mode", ["RGB", "I;16", "1", "RGBA", "LA"])
def test_mask_that_is_no_index_image(tmp_path, mode):
    Image.new(mode, (5, 4)).save(tmp_path / "a.png")
    refusal(lambda: read_mask(tmp_path / "a.png", 3), f"a.png: the mask has mode {mode}; masks are 8-bit palette or gray PNGs")


def test_grey_mask_is_allowed(tmp_path):
    Image.fromarray(np.array([[0, 3, 255]], np.uint8)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", 3, (3, 1)).tolist() == [[0, 3, 255]]


# ---- lists


def test_unknown_split_lists_those_at_hand(voc_folder):
    refusal(lambda: load_dataset(voc_folder, "test"), "test.txt: there is no list for split 'test'; lists at hand: train, val")
    refusal(lambda: read_split(voc_folder / "ImageSets", "train"), "lists at hand: none")


@pytest.mark.parametrize("text", ["", "\n \n\t\n"])
def test_empty_split(voc_folder, text):
    path = voc_folder / "ImageSets/Segmentation/none.txt"
    path.write_text(text)
    assert refusal(lambda: load_dataset(voc_folder, "none")) == f"{path}: the split is empty; it needs one image id a line"


@pytest.mark.parametrize(
    "text, words",
    [
        ("../x\n", "'../x' is not an image id"),
        ("m_00\n/etc/passwd\n", "'/etc/passwd' is not an image id"),
        ("..\\x\n", "is not an image id"),
        (".hidden\n", "'.hidden' is not an image id"),
        ("m_00\nm_01\nm_00\n", "an image id stands there twice"),
    ],
)
def test_ids_that_are_paths_or_stand_there_twice(voc_folder, text, words):
    (voc_folder / "ImageSets/Segmentation/mine.txt").write_text(text)
    refusal(lambda: read_split(voc_folder, "mine"), "mine.txt: ", words)


def test_list_in_another_encoding(voc_folder):
    (voc_folder / "ImageSets/Segmentation/mine.txt").write_bytes("m_00\nübung\n".encode("latin-1"))
    refusal(lambda: read_split(voc_folder, "mine"), "mine.txt: the list is not UTF-8 text; it needs one image id a line")


def test_folder_that_is_not_there(tmp_path):
    refusal(lambda: load_dataset(tmp_path / "voc", "train"), f"{tmp_path}/voc: the data set folder does not exist; run")
    refusal(lambda: open_data(Config(data_root=str(tmp_path / "voc")), "train"), "run notebook 02")


# ---- label table


def change_table(voc_folder: Path, old: str, new: str) -> None:
    path = voc_folder / "labels.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_label_table_without_a_row(voc_folder):
    change_table(voc_folder, "m_03,1,0,0\n", "")
    refusal(
        lambda: load_dataset(voc_folder, "train"),
        f"{voc_folder}/labels.csv: no row for image 'm_03'",
        "of split 'train'",
        "make the table again with python -m data_prep.voc_labels",
    )
    load_dataset(voc_folder, "val")


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("red,green,blue", "red,green,cat", ["labels.csv: unknown class 'cat'; the data set has red, green, blue"]),
        ("red,green,blue", "green,red,blue", ["the class columns must be, in this order: red, green, blue"]),
        ("red,green,blue", "red,green", ["the class columns must be, in this order"]),
        ("image_id", "name", ["the first column of the label table must be named image_id"]),
        ("m_03,1,0,0", "m_03,1,0", ["labels.csv, line 5: a row is an image id and then 3 values 0 or 1"]),
        ("m_03,1,0,0", "m_03,1,0,0,0", ["line 5"]),
        ("m_03,1,0,0", "m_03,2,0,0", ["line 5"]),
        ("m_03,1,0,0", "m_03,yes,0,0", ["line 5"]),
        ("m_03,1,0,0", "m_02,1,0,0", ["labels.csv, line 5: image 'm_02' has a second row; take one of them out"]),
    ],
)
def test_broken_label_table(voc_folder, old, new, words):
    change_table(voc_folder, old, new)
    refusal(lambda: load_dataset(voc_folder, "train"), *words)


def test_missing_label_table(voc_folder):
    (voc_folder / "labels.csv").unlink()
    refusal(lambda: load_dataset(voc_folder, "train"), "labels.csv: the label table is missing; make it with python")


# ---- description


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"classes": []}',
        '{"classes": "red"}',
        '{"classes": [1, 2]}',
        '{"classes": ["red", "red"]}',
        '{"classes": null}',
        json.dumps({"classes": [str(number) for number in range(255)]}),
    ],
)
def test_broken_description(voc_folder, text):
    (voc_folder / "dataset.json").write_text(text)
    refusal(lambda: load_dataset(voc_folder, "train"), f"{voc_folder}/dataset.json: ", "classes")


# ---- anything else

ANY_CONTENT = st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
TABLE_LIKE = st.lists(
    st.sampled_from(["image_id", "red", "green", "0", "1", "m_00", ",", "\n", "\r", '"', "\0", "ü"]), max_size=20
).map(lambda parts: "".join(parts).encode())
LIST_LIKE = st.lists(st.sampled_from(["m_00", "..", "/", " ", "\n", "\x1c", "\x85", "\u2028", "\0"]), max_size=8).map(
    lambda parts: "".join(parts).encode()
)


@given(ANY_CONTENT | TABLE_LIKE)
@example(b"image_id,red,green\n" + b'"' * 3)
@example(b'image_id,red,green\n"' + b"x" * 200_000)
def test_any_label_table(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    try:
        table = read_labels(path, ("red", "green"))
    except DataError as error:
        assert str(error).startswith(str(path))
    else:
        assert content.startswith(b"image_id,") and all(row.shape == (2,) and row.max() <= 1 for row in table.values())


@given(ANY_CONTENT | LIST_LIKE)
@example(b"x" * 300)
def test_any_list(tmp_path_factory, content):
    root = tmp_path_factory.getbasetemp() / "any"
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.txt").write_bytes(content)
    (root / "JPEGImages").mkdir(exist_ok=True)
    (root / "dataset.json").write_text('{"classes": ["red"]}')
    try:
        ids = read_split(root, "mine")
        (root / "labels.csv").write_text("image_id,red\n" + "".join(f'"{name}",1\n' for name in ids), encoding="utf-8")
        load_dataset(root, "mine")  # its images are missing in any case
    except DataError as error:
        assert str(error).startswith(str(root))
    else:
        raise AssertionError(f"{ids} were found")


DESCRIPTION_LIKE = st.recursive(
    st.none() | st.text() | st.integers() | st.just("classes"),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["classes", "name"]), inner),
).map(lambda content: json.dumps(content).encode())


@given(ANY_CONTENT | DESCRIPTION_LIKE)
@example(b"[" * 100_000)
def test_any_description(tmp_path_factory, content):
    root = tmp_path_factory.getbasetemp() / "described"
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_bytes(content)
    try:
        classes = read_classes(root)
    except DataError as error:
        assert str(error).startswith(str(root / "dataset.json"))
    else:
        assert classes == tuple(json.loads(content)["classes"])


def test_a_part_of_a_split_by_rows(miniature):
    data = load_dataset(miniature, "train")
    chosen = data.label(data.ids[0])[0] == data.labels[:, 0]
    for rows, ids in (
        (slice(2), data.ids[:2]),
        ([3, 1], (data.ids[3], data.ids[1])),
        (chosen, tuple(name for name, kept in zip(data.ids, chosen, strict=True) if kept)),
        ([], ()),
    ):
        part = data.part(rows)
        assert part.ids == ids and len(part.labels) == len(ids)
        assert all((part.label(name) == data.label(name)).all() for name in ids)
