"""From COCO's annotations to masks: the overlap rule, hostile annotations, and the JSON read as a stream."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("pycocotools", reason="pip install -e '.[coco]'")

from data_prep import coco_json, coco_masks  # noqa: E402
from data_prep.coco_categories import CATEGORY_IDS, COCO_CLASSES, INDEX_OF_ID  # noqa: E402
from data_prep.coco_json import read_annotations, read_instances  # noqa: E402
from data_prep.coco_masks import instance_mask, mask_of_annotations  # noqa: E402
from wsss_lib.errors import DataError  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "data__coco_paint.npz"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")


def square(category: int, left: int, right: int, area: float, **others) -> dict:
    return {
        "category_id": category,
        "area": area,
        "iscrowd": 0,
        "segmentation": [[left, 0, right, 0, right, 4, left, 4]],
    } | others


def test_categories():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == len(CATEGORY_IDS) == 80
    assert (INDEX_OF_ID[1], INDEX_OF_ID[13], INDEX_OF_ID[90]) == (1, 12, 80)
    assert [COCO_CLASSES[INDEX_OF_ID[number] - 1] for number in (1, 13, 51, 56, 90)] == [
        "person",
        "stop sign",
        "bowl",
        "broccoli",
        "toothbrush",
    ]
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & set(CATEGORY_IDS)


def test_small_objects_lie_over_large_ones_and_equal_ones_in_the_order_of_the_file():
    small, large = square(1, 2, 4, 8), square(90, 0, 6, 24)
    for annotations in ([small, large], [large, small]):
        assert mask_of_annotations(annotations, (4, 8))[0].tolist() == [80, 80, 1, 1, 80, 80, 0, 0]
    first, second = square(13, 0, 4, 16), square(14, 2, 6, 16)
    assert mask_of_annotations([first, second], (4, 8))[0].tolist() == [12, 12, 13, 13, 13, 13, 0, 0]
    assert not mask_of_annotations([], (4, 8)).any()


def test_the_stated_area_counts_and_not_the_painted_one():
    assert mask_of_annotations([square(1, 2, 4, 99), square(2, 0, 6, 1)], (4, 8))[0].tolist() == [2] * 6 + [0] * 2


def test_several_polygons_are_one_instance_and_too_few_points_are_nothing():
    parts = square(1, 0, 0, 4, segmentation=[[0, 0, 1, 0, 1, 4, 0, 4], [5, 0, 6, 0, 6, 4, 5, 4], [2, 2, 3, 3], []])
    assert mask_of_annotations([parts], (4, 8))[0].tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    assert not instance_mask([[0, 0, 4, 4]], (4, 8)).any()  # not a box, as pycocotools would have it


def test_crowd_regions_are_painted_or_ignored():
    crowd = square(2, 0, 0, 32, iscrowd=1, segmentation={"size": [4, 8], "counts": [8, 24]})
    assert mask_of_annotations([square(1, 0, 3, 12), crowd], (4, 8))[0].tolist() == [1, 1, 1, 2, 2, 2, 2, 2]
    assert mask_of_annotations([square(1, 0, 3, 12), crowd], (4, 8), ignore_crowd=True)[0].tolist() == [1] * 3 + [255] * 5


def test_polygons_and_run_lengths_of_the_golden_case_give_its_masks():
    with np.load(GOLDEN, allow_pickle=False) as file:
        case = dict(file)
    size, annotations = tuple(case["in_size"].tolist()), []
    for number, (category, area) in enumerate(zip(case["in_category_id"].tolist(), case["in_area"].tolist(), strict=True)):
        polygons = [case[name].tolist() for name in sorted(case) if name.startswith(f"in_poly_{number}_")]
        segmentation = polygons or {"size": list(size), "counts": case["in_crowd_counts"].tolist()}
        np.testing.assert_array_equal(instance_mask(segmentation, size), case["in_masks"][number])
        annotations.append({"category_id": category, "area": area, "segmentation": segmentation})
    np.testing.assert_array_equal(mask_of_annotations(annotations, size), case["out_semantic"])


rectangles = st.tuples(
    st.integers(0, 7), st.integers(0, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from(CATEGORY_IDS)
)


@given(st.lists(rectangles, max_size=5))
def test_every_pixel_shows_the_smallest_instance_there(drawn):
    size, annotations, expected = (9, 11), [], np.zeros((9, 11), int)
    for place, (x, y, width, height, category) in enumerate(drawn):
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotations.append({"category_id": category, "area": width * height + place / 100, "segmentation": [corners]})
    for annotation in sorted(annotations, key=lambda item: -item["area"]):
        x, y, right, _, _, bottom = annotation["segmentation"][0][:6]
        expected[y:bottom, x:right] = INDEX_OF_ID[annotation["category_id"]]
    np.testing.assert_array_equal(mask_of_annotations(annotations, size), expected)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"segmentation": None}, "a list of polygons or a dict of run lengths"),
        ({"segmentation": [3]}, "a list of polygons or a dict of run lengths"),
        ({"segmentation": [["a", 1, 2, 3, 4, 5]]}, "a polygon is a list of numbers"),
        ({"segmentation": [[[1, 2], 3, 4, 5, 6, 7]]}, "a polygon is a list of numbers"),
        ({"segmentation": [[0, 0, 1, 0, 1, 1, 2]]}, "a polygon has 7 numbers"),
        ({"segmentation": [[0, 0, 1e12, 0, 1, 1]]}, "a polygon leaves its image of 4x8 pixels by far"),
        ({"segmentation": [[0, 0, float("nan"), 0, 1, 1]]}, "by far"),
        ({"segmentation": {"size": [4, 9], "counts": [36]}}, r"for an image of \[4, 9\] pixels instead of \[4, 8\]"),
        ({"segmentation": {"size": [4, 8], "counts": [30, 3]}}, "run lengths of 33 pixels for an image of 32"),
        ({"segmentation": {"size": [4, 8], "counts": [33, -1]}}, "whole numbers from 0"),
        ({"segmentation": {"size": [4, 8], "counts": {"0": 32}}}, "a list of whole numbers"),
        ({"segmentation": {"size": [4, 8], "counts": "PPYo0"}}, "run lengths of 1025024 pixels for an image of 32"),
        ({"segmentation": {"size": [4, 8], "counts": "P"}}, "end in the middle"),
        ({"segmentation": {"size": [4, 8], "counts": "é 1"}}, "compressed run lengths are damaged"),
        ({"segmentation": {"size": [4, 8], "counts": "o" * 99}}, "compressed run lengths are damaged"),
        ({"segmentation": [], "bbox": [1, 2, "wide", 3]}, "is not x, y, width, height"),
        ({"area": "large"}, "area 'large' is not a number"),
        ({"area": float("nan")}, "is not a number"),
    ],
)
def test_a_hostile_annotation_never_reaches_compiled_code(change, problem):
    with pytest.raises(ValueError, match=problem):
        mask_of_annotations([square(1, 0, 2, 8) | change], (4, 8))


def test_a_huge_image_is_refused():
    with pytest.raises(ValueError, match="too large"):
        mask_of_annotations([], (10**5, 10**5))


def test_masks_module_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[coco\]'"):
        coco_masks.instance_mask([[0, 0, 1, 0, 1, 1]], (4, 4))


# ---- instances JSON


def content(num_images: int = 3) -> dict:
    return {
        "info": {"year": 2014},
        "images": [
            {"id": 7 + number, "file_name": f"COCO_train2014_{7 + number:012d}.jpg", "height": 4, "width": 8}
            for number in range(num_images)
        ],
        "licenses": [],
        "annotations": [
            {**square(13, 0, 2, 8), "image_id": 7},
            {**square(1, 4, 6, 8), "image_id": 8},
            {**square(1, 2, 4, 8), "image_id": 7},
        ],
        "categories": [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, COCO_CLASSES, strict=True)],
    }


@pytest.mark.parametrize("indent, encoding", [(None, "utf-8"), (2, "utf-8")])
def test_an_index_finds_every_annotation_again(tmp_path, indent, encoding):
    made = content()
    made["info"]["description"] = 'naïve – 画像 ] } " \\'
    path = tmp_path / "x.json"
    path.write_text(json.dumps(made, indent=indent, ensure_ascii=False), encoding=encoding)
    index = read_instances(path)
    assert list(index.images) == [7, 8, 9] and index.images[8].file_name == "COCO_train2014_000000000008.jpg"
    for number, places in index.places().items():
        assert read_annotations(path, places) == [item for item in made["annotations"] if item["image_id"] == number]
    labels = {number: np.flatnonzero(label).tolist() for number, label in index.labels().items()}
    assert labels == {7: [0, 11], 8: [0], 9: []}


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([None, 1]),
)
@settings(max_examples=50)
def test_the_stream_agrees_with_the_json_module(tmp_path_factory, value, indent):
    path = tmp_path_factory.mktemp("json") / "x.json"
    made = {"first": [value, 5], "other": value, "empty": [], "last": [1.5, value]}
    path.write_text(json.dumps(made, indent=indent, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    found = [
        (name, json.loads(path.read_bytes()[begin : begin + length].decode("utf-8", "surrogatepass")))
        for name, begin, length, _ in coco_json._elements(path)
    ]
    expected = [(name, item) for name, several in made.items() if isinstance(several, list) for item in several]
    assert found == expected


def test_elements_on_the_border_of_the_window_are_read_whole(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content()))
    whole = list(coco_json._elements(path))

    class Slow:
        """Gives the file byte by byte, so that every border occurs."""

        def __init__(self, file):
            self.file = file

        def read(self, size):
            return self.file.read(1)

    init = coco_json._Window.__init__
    monkeypatch.setattr(coco_json._Window, "__init__", lambda self, path, file: init(self, path, Slow(file)))
    assert list(coco_json._elements(path)) == whole


def test_the_index_needs_little_memory(tmp_path):
    made = content()
    made["annotations"][0]["segmentation"] = [np.random.default_rng(0).uniform(0, 8, 60).round(2).tolist()]
    made["annotations"] = made["annotations"][:1] * 2000
    path = tmp_path / "x.json"
    path.write_text(json.dumps(made))
    tracemalloc.start()
    index = read_instances(path)
    streamed = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    json.loads(path.read_text())
    whole = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index.begin) == 2000 and streamed < 5e6 and whole > 3 * streamed


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda made: made["annotations"][0].update(category_id=12), "category 12 is none of COCO's 80"),
        (lambda made: made["annotations"][0].update(image_id=999), "an annotation belongs to image 999, which the file"),
        (lambda made: made["annotations"][0].pop("image_id"), "'image_id' is missing"),
        (lambda made: made["annotations"].append(5), "cannot be used"),
        (lambda made: made["images"].append(made["images"][0]), "image 7 stands there twice"),
        (lambda made: made["images"][0].update(height=-3), "-3 is not a whole number"),
        (lambda made: made["images"][0].update(id="7"), "'7' is not a whole number"),
        (lambda made: made["images"][0].update(file_name="..\\.."), "is not a file name"),
        (lambda made: made["images"][0].update(file_name=3), "3 is not a file name"),
        (lambda made: made["categories"][0].update(name="people"), r"category \(1, 'people'\) is none of COCO's 80"),
        (lambda made: made.pop("images"), "an annotation belongs to image|names no images"),
        (lambda made: made.update(images=[], annotations=[]), "it names no images"),
    ],
)
def test_a_json_that_contradicts_itself_is_refused(tmp_path, change, problem):
    made = content()
    change(made)
    (tmp_path / "x.json").write_text(json.dumps(made))
    with pytest.raises(DataError, match=f"x.json: .*{problem}"):
        read_instances(tmp_path / "x.json")


def test_a_damaged_json_is_refused(tmp_path):
    path = tmp_path / "x.json"
    whole = json.dumps(content()).encode()
    for damaged in (
        b"",
        b"[1, 2]",
        b"<html>",
        whole[: len(whole) // 2],
        whole[:-1],
        whole.replace(b", ", b"; ", 3),
        whole.replace(b'"annotations": [', b'"annotations": {'),
        b'{"images": ' + b"[" * 100_000,
        b'{"images": [' + b"[" * 100_000,
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="x.json: "):
            read_instances(path)
    with pytest.raises(FileNotFoundError, match="none.json: the annotation file is missing"):
        read_instances(tmp_path / "none.json")
    path.write_bytes(whole)
    index = read_instances(path)
    path.write_bytes(whole[:300])
    with pytest.raises(DataError, match="has changed while it was worked on"):
        read_annotations(path, index.places()[7])


def test_folders_in_file_names_are_not_followed(tmp_path):
    made = content()
    made["images"][0]["file_name"] = "../../etc/COCO_train2014_000000000007.jpg"
    (tmp_path / "x.json").write_text(json.dumps(made))
    assert read_instances(tmp_path / "x.json").images[7].file_name == "COCO_train2014_000000000007.jpg"


# ---- as other tools write it


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1)))
@settings(max_examples=100)
def test_compressed_run_lengths_are_read_as_pycocotools_reads_them(mask):
    coco = pytest.importorskip("pycocotools.mask")
    packed = coco.encode(np.asfortranarray(mask))
    segmentation = {"size": packed["size"], "counts": packed["counts"].decode()}
    assert (coco_masks.instance_mask(segmentation, mask.shape) == mask).all()


@pytest.mark.parametrize("drop", [("area",), ("iscrowd",), ("area", "iscrowd", "bbox", "id")])
def test_what_an_annotation_leaves_out_is_found_without_it(drop):
    large, small = square(1, 0, 4, 16), square(13, 0, 2, 8)
    expected = mask_of_annotations([small, large], (4, 8))
    bare = [{key: value for key, value in item.items() if key not in drop} for item in (small, large)]
    assert (mask_of_annotations(bare, (4, 8)) == expected).all() and len(np.unique(expected)) == 3


def test_a_polygon_without_the_list_around_it():
    polygon = [[0, 0, 4, 0, 4, 2, 0, 2]]
    assert (coco_masks.instance_mask(polygon[0], (4, 8)) == coco_masks.instance_mask(polygon, (4, 8))).all()


@pytest.mark.parametrize("segmentation", [[], None, "absent"])
def test_where_only_the_box_is_known_the_pixels_are_unknown(segmentation):
    item = {"category_id": 1, "bbox": [1, 1, 3.5, 2], "segmentation": segmentation}
    item = {key: value for key, value in item.items() if value != "absent"}
    mask = mask_of_annotations([square(13, 0, 2, 2), item], (4, 8))
    assert (mask[:, :2] == 12).all() and (mask[1:3, 2:5] == 255).all() and np.count_nonzero(mask) == 8 + 6


def own(made: dict) -> dict:
    """Categories of one's own, with gaps between the ids, in any order, and floats where pandas was."""
    made["categories"] = [{"id": 40.0, "name": "pea"}, {"id": 0, "name": "löwe"}, {"id": 7, "name": "apple"}]
    for item, category in zip(made["annotations"], (40, 7.0, 0), strict=True):
        item["category_id"] = category
    return made


def test_own_categories_are_ranked_by_their_ids(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(own(content()), ensure_ascii=False), encoding="utf-8-sig")
    index = read_instances(path, own=True)
    assert index.classes == ("löwe", "apple", "pea") and index.index_of_id == {0: 1, 7: 2, 40: 3}
    assert {number: label.tolist() for number, label in index.labels().items()} == {7: [1, 0, 1], 8: [0, 1, 0], 9: [0, 0, 0]}
    assert [item["category_id"] for item in read_annotations(path, index.places()[7])] == [40, 0]
    with pytest.raises(DataError, match="none of COCO's 80.*data_prep.custom --labels"):
        read_instances(path)


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda made: made["annotations"][0].update(category_id=3), "category 3 is not among the file's categories"),
        (lambda made: made["categories"][0].update(name="apple"), "with different names"),
        (lambda made: made["categories"][0].update(name=5), "5 is not a name"),
    ],
)
def test_own_categories_that_contradict_themselves(tmp_path, change, problem):
    made = own(content())
    change(made)
    (tmp_path / "x.json").write_text(json.dumps(made))
    with pytest.raises(DataError, match=f"x.json: .*{problem}"):
        read_instances(tmp_path / "x.json", own=True)


@pytest.mark.parametrize("name", ["C:\\data\\images\\x 1.jpg", "images/train/x 1.jpg", "./x 1.jpg", "..\\x 1.jpg"])
def test_folders_of_any_system_in_file_names(tmp_path, name):
    made = content()
    made["images"][0]["file_name"] = name
    made.pop("info")
    (tmp_path / "x.json").write_text(json.dumps(made))
    assert read_instances(tmp_path / "x.json").images[7].file_name == "x 1.jpg"


@pytest.mark.parametrize("ascii_only", [True, False])
def test_accents_of_file_names_are_composed(tmp_path, ascii_only):
    made = content()
    made["images"][0]["file_name"] = "cafe\u0301.jpg"
    (tmp_path / "x.json").write_text(json.dumps(made, ensure_ascii=ascii_only), encoding="utf-8")
    assert read_instances(tmp_path / "x.json").images[7].file_name == "caf\u00e9.jpg"
