"""Pickled .npy files of others: what they hold arrives, what they would do does not happen; labels and maps made of them."""

import csv
import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep import labels, maps
from data_prep.restricted import read_checkpoint, read_npy
from wsss_lib.config import Config
from wsss_lib.core.files import read_maps
from wsss_lib.core.scoring import full_size_maps
from wsss_lib.core.stage import open_stage
from wsss_lib.data.dataset import VOC_CLASSES, load_dataset, read_labels
from wsss_lib.errors import DataError
from wsss_lib.methods import maps_of


def npy(pickled: bytes) -> bytes:
    """Return a .npy file around a pickle, as np.save makes it of an object."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue() + pickled


def saved(content, protocol: int) -> bytes:
    array = np.empty((), object)
    array[()] = content
    return npy(pickle.dumps(array, protocol))


# ---- the reader


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_a_file_holds_arrives(tmp_path, protocol):
    content = {
        np.int32(2007000032): np.float32([0, 1, 0]),
        "2007_000033": np.arange(6.0).reshape(2, 3).T,
        "list": [True, 2, "x"],
        "big end first": np.arange(3, dtype=">i4"),
        "half": np.float16(1.5),
        "none": None,
    }
    content |= {"empty": np.zeros((0, 4), np.uint8)} if protocol > 2 else {}  # protocol 2 calls bytes() for no bytes
    (tmp_path / "a.npy").write_bytes(saved(content, protocol))
    result = read_npy(tmp_path / "a.npy")
    assert list(result) == [2007000032, *list(content)[1:]]
    for ours, theirs in zip(result.values(), content.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert not isinstance(ours, np.ndarray) or ours.dtype.isnative and ours.dtype == theirs.dtype.newbyteorder("=")
    assert type(result["list"][0]) is bool and type(result["half"]) is float


def test_the_names_of_older_numpy_are_known(tmp_path):
    old = saved({"a": np.float32([1, 2])}, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "a.npy").write_bytes(old)
    assert b"cnumpy.core.multiarray\n_reconstruct" in old and read_npy(tmp_path / "a.npy")["a"].tolist() == [1, 2]


def test_files_of_python_2_are_read(tmp_path):
    """There a byte string is a text, and arrays keep their bytes in one."""
    old = saved({"a": np.arange(4, dtype=np.float32)}, 2)
    names = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(old[old.index(b"\x80\x02") :])]
    assert ("GLOBAL", "_codecs encode") in names  # Python 3 writes bytes so; Python 2 wrote them as they are
    raw = np.arange(4, dtype=np.float32).tobytes()
    body = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x04\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U" + bytes([len(raw)]) + raw + b"tbs."
    )
    (tmp_path / "a.npy").write_bytes(npy(body))
    assert read_npy(tmp_path / "a.npy")["a"].tolist() == [0, 1, 2, 3]


def test_plain_arrays_need_no_pickle(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(5, dtype=np.uint8))
    assert read_npy(tmp_path / "a.npy").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([3, 5]),
        torch.rand(2, 4, 6)[:, ::2].transpose(1, 2),
        torch.zeros(0, 3),
        torch.tensor(2.5, dtype=torch.float64),
        torch.nn.Parameter(torch.ones(2)).detach(),
    ],
)
def test_tensors_arrive_as_arrays_where_they_are_wanted(tmp_path, value):
    np.save(tmp_path / "a.npy", {"cam": value})
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy", tensors=True)["cam"], value.numpy())
    with pytest.raises(DataError, match="asks for torch._utils._rebuild_tensor_v2"):
        read_npy(tmp_path / "a.npy")


class Calls:
    """A pickle that calls a function when it is read by plain `np.load`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def dtype_with_objects() -> Calls:
    """A type that would take the bytes of an array for addresses of objects."""
    return Calls(np.dtype, "V8", False, True)


HOSTILE = {
    "a command": lambda mark: {"a": Calls(os.system, f"touch '{mark}'")},
    "a command as a key": lambda mark: {Calls(os.system, f"touch '{mark}'"): 1},
    "python code": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "an import": lambda mark: Calls(__import__, "antigravity"),
    "a part of numpy": lambda mark: Calls(np.load, str(mark)),
    "a class": lambda mark: {"a": Path(mark)},
    "a structured type": lambda mark: np.zeros(2, [("a", "<f8")]),
    "a type of objects": lambda mark: dtype_with_objects(),
    "an array of objects": lambda mark: {"a": np.array([{}, {}])},
    "complex numbers": lambda mark: {"a": np.zeros(2, complex)},
    "texts": lambda mark: {"a": np.array(["x", "y"])},
    "a set": lambda mark: {"a": {1, 2}},
    "another encoding": lambda mark: {"a": Calls(__import__("_codecs").encode, "x", "rot13")},
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_file_runs_nothing(tmp_path, kind, protocol):
    (tmp_path / "a.npy").write_bytes(saved(HOSTILE[kind](tmp_path / "mark"), protocol))
    with pytest.raises(DataError) as error:
        read_npy(tmp_path / "a.npy", tensors=True)
    message = str(error.value)
    assert message.startswith(str(tmp_path / "a.npy")) and "\n" not in message and "read safely" in message
    assert os.listdir(tmp_path) == ["a.npy"]


def test_the_hostile_file_is_as_dangerous_as_it_looks(tmp_path):
    """Read as a list of opcodes, which runs nothing: it calls posix.system with the command."""
    content = saved(HOSTILE["a command"](tmp_path / "mark"), 4)
    operations = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(content[content.index(b"\x80\x04") :])]
    words = [argument for _, argument in operations if isinstance(argument, str)]
    place = words.index("posix")
    assert words[place : place + 3] == ["posix", "system", f"touch '{tmp_path / 'mark'}'"]
    assert {"STACK_GLOBAL", "REDUCE"} <= {name for name, _ in operations}


def test_a_hostile_storage_inside_a_tensor_runs_nothing(tmp_path):
    """IRN's maps hold files of torch.save inside the pickle; torch itself reads those without restriction."""
    inner = io.BytesIO()
    torch.save(Calls(os.system, f"touch '{tmp_path / 'mark'}'"), inner, _use_new_zipfile_serialization=False)
    content = {"cam": Calls(torch.storage._load_from_bytes, inner.getvalue())}
    (tmp_path / "a.npy").write_bytes(saved(content, 4))
    with pytest.raises(DataError, match="read safely"):
        read_npy(tmp_path / "a.npy", tensors=True)
    assert os.listdir(tmp_path) == ["a.npy"]


def test_sizes_that_the_bytes_do_not_give_are_refused(tmp_path):
    storage = io.BytesIO()
    torch.save(torch.TypedStorage(4, dtype=torch.float32, _internal=True), storage, _use_new_zipfile_serialization=False)
    huge = Calls(
        torch._utils._rebuild_tensor_v2,
        Calls(torch.storage._load_from_bytes, storage.getvalue()),
        0,
        (10**6, 10**6),
        (0, 0),
        False,
        {},
    )
    outside = Calls(
        torch._utils._rebuild_tensor_v2, Calls(torch.storage._load_from_bytes, storage.getvalue()), 3, (2,), (1,), False, {}
    )
    array = saved({"a": np.zeros(3, np.float32)}, 2).replace(b"K\x03\x85", b"K\x09\x85")  # shape (9,) over the bytes of three
    for content in (saved({"cam": huge}, 4), saved({"cam": outside}, 4), array):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(DataError, match="read safely"):
            read_npy(tmp_path / "a.npy", tensors=True)


@given(cut=st.integers(0, 400), position=st.integers(0, 400), value=st.integers(0, 255))
def test_damaged_bytes_give_a_sentence_or_numbers(tmp_path_factory, cut, position, value):
    whole = bytearray(saved({2007000032: np.eye(3, 20, dtype=np.float32)[0], "x": [1, 2]}, 4))
    whole[position % len(whole)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(bytes(whole[: len(whole) - cut % len(whole)]))
    try:
        read_npy(path)
    except DataError as error:
        assert "\n" not in str(error)


def test_missing_and_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_npy(tmp_path / "a.npy")
    for content in (b"", b"\x93NUMPY", b"PK\x03\x04", saved({}, 4) + b"more", saved({}, 4)[:-3]):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(DataError, match="not a .npy file"):
            read_npy(tmp_path / "a.npy")


def test_a_compressed_archive_of_weights_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**7)
    with pytest.raises(DataError, match="compressed, which torch never does"):
        read_checkpoint(tmp_path / "bomb.pth")


# ---- labels


def official_labels(style: str) -> dict:
    """Return a table as the authors distribute it: three images of VOC or COCO."""
    rows = {"2007_000032": [0, 14], "2007_000033": [0], "2011_003276": [6, 14, 19]}
    if style == "coco":
        return {
            int(number): np.isin(np.arange(80), row).astype(np.float32)
            for number, row in zip((57870, 9, 581929), rows.values(), strict=True)
        }
    return {
        np.int32(name.replace("_", "")) if style == "irn" else name: np.isin(np.arange(20), row).astype(np.float32)
        for name, row in rows.items()
    }


@pytest.mark.parametrize("style", ["irn", "psa"])
def test_labels_of_voc(tmp_path, capsys, style):
    np.save(tmp_path / "cls_labels.npy", official_labels(style))
    labels.main(["import", str(tmp_path / "cls_labels.npy"), str(tmp_path / "labels.csv")])
    assert "3 images, 6 labels" in capsys.readouterr().out
    table = read_labels(tmp_path / "labels.csv", VOC_CLASSES)
    assert list(table) == ["2007_000032", "2007_000033", "2011_003276"]
    assert [np.flatnonzero(row).tolist() for row in table.values()] == [[0, 14], [0], [6, 14, 19]]


def test_labels_of_coco_need_its_class_names(tmp_path, capsys):
    np.save(tmp_path / "cls_labels_coco.npy", official_labels("coco"))
    with pytest.raises(SystemExit):
        labels.main(["import", str(tmp_path / "cls_labels_coco.npy"), str(tmp_path / "labels.csv")])
    error = capsys.readouterr().err
    assert "000000057870 has 80 values where 20 zeros and ones are needed" in error and "--classes-from" in error
    assert not (tmp_path / "labels.csv").exists()
    names = ",".join(f'"class {number}"' for number in range(80))
    (tmp_path / "dataset.json").write_text(f'{{"name": "coco", "classes": [{names}], "ignore_index": 255}}')
    labels.main(
        [
            "import",
            str(tmp_path / "cls_labels_coco.npy"),
            str(tmp_path / "labels.csv"),
            "--classes-from",
            str(tmp_path / "dataset.json"),
        ]
    )
    rows = list(csv.reader((tmp_path / "labels.csv").open()))
    assert [row[0] for row in rows[1:]] == ["000000000009", "000000057870", "000000581929"]


@pytest.mark.parametrize(
    "table, words",
    [
        ({2007000032: np.float32([0.5] * 20)}, "image 2007_000032 has other values where 20 zeros and ones"),
        ({2007000032: np.float32([np.nan] * 20)}, "zeros and ones"),
        ({2007000032: [1.0] * 20}, "has a list"),
        ({2007000032: np.zeros(20), "2007_000032": np.zeros(20)}, "is there twice"),
        ({"../x": np.zeros(20)}, "'../x' is not an image id"),
        ({"a b": np.zeros(20)}, "'a b' is not an image id"),
        ({-3: np.zeros(20)}, "-3 is not an image id"),
        ({10**13: np.zeros(20)}, "is not an image id"),
        ({1.5: np.zeros(20)}, "1.5 is not an image id"),
        ({}, "holds no table of labels"),
        ([1, 2], "holds no table of labels"),
        ({"a": Calls(os.system, "true")}, "asks for posix.system"),
    ],
)
def test_other_tables_are_refused_with_one_sentence(tmp_path, capsys, table, words):
    np.save(tmp_path / "x.npy", np.array(table, dtype=object) if isinstance(table, dict) else table)
    with pytest.raises(SystemExit):
        labels.main(["import", str(tmp_path / "x.npy"), str(tmp_path / "labels.csv")])
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and os.listdir(tmp_path) == ["x.npy"]


# ---- maps


@pytest.fixture
def preset(miniature, tmp_path) -> Path:
    path = tmp_path / "preset.yaml"
    path.write_text(f"dataset: miniature\ndata_root: {miniature}\nruns_root: {tmp_path / 'runs'}\nnum_workers: 0\n")
    return path


def official_map(style: str, label: np.ndarray, size: tuple[int, int], seed: int):
    """Return what the program of one method writes for an image, and the scores that are to arrive."""
    rng, classes = np.random.default_rng(seed), np.flatnonzero(label)
    h, w = (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1
    strided = rng.random((len(classes), h, w), np.float32)
    if style in ("irn", "rib", "vwe", "amn"):
        cam = np.concatenate([rng.random((1, h, w), np.float32), strided]) if style == "amn" else strided
        content = {"keys": classes, "cam": cam, "high_res": rng.random((len(cam), *size), np.float32)}
        if style != "vwe":  # VWE saves NumPy's arrays
            content["cam"] = torch.from_numpy(cam)
        if style in ("rib", "amn"):
            content["keys"] = torch.from_numpy(classes)
        return content, strided
    blocks = np.repeat(np.repeat(strided, 4, 1), 4, 2)[:, : size[0], : size[1]]  # constant in each block of 4 x 4 pixels
    if style in ("psa", "sccam"):
        return {int(number): value for number, value in zip(classes, blocks, strict=True)}, strided
    square = np.zeros((len(label), 320, 320), np.uint8)
    square[classes] = np.uint8([51 * (1 + number) for number in classes])[:, None, None]
    return square, np.ones_like(strided) * (np.float32(0.2) * (1 + classes))[:, None, None]


@pytest.mark.parametrize("style", ["irn", "rib", "vwe", "amn", "psa", "sccam", "drs"])
def test_maps_of_every_method_become_a_finished_stage(miniature, preset, tmp_path, capsys, style):
    data, expected = load_dataset(miniature, "train"), {}
    (tmp_path / "cam").mkdir()
    for number, image_id in enumerate(data.ids):
        size = data.image(image_id).size[::-1]
        content, expected[image_id] = official_map(style, data.label(image_id), size, number)
        np.save(tmp_path / "cam" / f"{image_id}.npy", content)
    maps.main(["import", str(tmp_path / "cam"), "--format", style, "--preset", str(preset), "--method", "official"])
    assert "maps of 8 images; mIoU" in capsys.readouterr().out
    config = Config(dataset="miniature", runs_root=str(tmp_path / "runs"), method="official", data_root=str(miniature))
    stage = open_stage(maps_of("official"), config)
    for image_id, scores in expected.items():
        classes, ours, size = read_maps(stage.folder / f"{image_id}.npz")
        assert classes.tolist() == np.flatnonzero(data.label(image_id)).tolist() and size == data.image(image_id).size[::-1]
        np.testing.assert_allclose(ours, scores, atol=1e-3)
    assert full_size_maps(stage.folder, data.ids[0])[1].shape[1:] == data.image(data.ids[0]).size[::-1]
    first = (stage.folder / "run.json").read_text()
    maps.main(["import", str(tmp_path / "cam"), "--format", style, "--preset", str(preset), "--method", "official"])
    assert (stage.folder / "run.json").read_text() == first  # a finished stage is left alone


SIZE = (40, 56)


@pytest.mark.parametrize(
    "style, content, words",
    [
        ("irn", {"cam": np.zeros((1, 10, 14), np.float32)}, "no entry 'keys'"),
        ("irn", {"keys": np.array([1])}, "no entry 'cam'"),
        ("irn", {"keys": np.array([1]), "cam": np.zeros((1, 10, 13), np.float32)}, "do not belong to an image of 40x56"),
        ("irn", {"keys": np.array([1]), "cam": np.zeros((2, 10, 14), np.float32)}, "1 classes and maps (2, 10, 14)"),
        ("amn", {"keys": np.array([1]), "cam": np.zeros((1, 10, 14), np.float32)}, "1 classes and maps (0, 10, 14)"),
        ("irn", {"keys": np.array([3]), "cam": np.zeros((1, 10, 14), np.float32)}, "[3] are not different numbers below 3"),
        ("irn", {"keys": np.array([1, 1]), "cam": np.zeros((2, 10, 14), np.float32)}, "not different numbers"),
        ("irn", {"keys": [[1], [1, 2]], "cam": np.zeros((1, 10, 14), np.float32)}, "no list of whole numbers"),
        ("irn", {"keys": np.array([0.5]), "cam": np.zeros((1, 10, 14), np.float32)}, "no list of whole numbers"),
        ("irn", {"keys": np.array([1]), "cam": np.full((1, 10, 14), np.nan, np.float32)}, "do not lie between 0 and 1"),
        ("irn", {"keys": np.array([1]), "cam": np.full((1, 10, 14), 9, np.float32)}, "do not lie between 0 and 1"),
        ("irn", np.zeros((3, 320, 320), np.uint8), "no entry 'keys'"),
        ("psa", {1: np.float32([[0, 255]]).repeat(28, 1).repeat(40, 0)}, "holds only 0 and 255"),
        ("psa", {1: np.zeros((40, 50), np.float32)}, "a map of 40x50 does not belong to an image of 40x56"),
        ("psa", {"cat": np.zeros(SIZE, np.float32)}, "no list of whole numbers"),
        ("psa", np.zeros((3, 320, 320), np.uint8), "holds no dict"),
        ("drs", {1: np.zeros(SIZE, np.float32)}, "holds no bytes"),
        ("drs", np.zeros((3, 320, 320), np.float32), "holds no bytes"),
        ("drs", np.ones((20, 320, 320), np.uint8), "not different numbers below 3"),
        ("irn", {"keys": Calls(os.system, "true")}, "asks for posix.system"),
    ],
)
def test_other_maps_are_refused_and_no_stage_is_finished(miniature, preset, tmp_path, capsys, style, content, words):
    data = load_dataset(miniature, "train")
    (tmp_path / "cam").mkdir()
    for image_id in data.ids:
        np.save(tmp_path / "cam" / f"{image_id}.npy", content if isinstance(content, np.ndarray) else np.array(content, object))
    with pytest.raises(SystemExit):
        maps.main(["import", str(tmp_path / "cam"), "--format", style, "--preset", str(preset), "--method", "official"])
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and str(tmp_path / "cam" / f"{data.ids[0]}.npy") in error
    assert not list((tmp_path / "runs").rglob("run.json")) and not list((tmp_path / "runs").rglob("*.npz"))


def test_a_missing_map_is_named_before_anything_is_written(miniature, preset, tmp_path, capsys):
    (tmp_path / "cam").mkdir()
    with pytest.raises(SystemExit):
        maps.main(["import", str(tmp_path / "cam"), "--format", "irn", "--preset", str(preset), "--method", "official"])
    error = capsys.readouterr().err
    assert "m_00.npy: the map is missing, and 7 others" in error and not (tmp_path / "runs").exists()


def test_images_without_a_class_have_no_maps(tmp_path):
    for content in ({"keys": torch.zeros(0, dtype=torch.int64)}, {"keys": np.zeros(0)}):
        assert maps.from_irn({key: np.asarray(value) for key, value in content.items()}, SIZE)[1].shape == (0, 10, 14)
    assert maps.from_psa({}, SIZE)[1].shape == maps.from_drs(np.zeros((3, 8, 8), np.uint8), SIZE)[1].shape == (0, 10, 14)
