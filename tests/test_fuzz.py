"""Every reader gets ten thousand broken files in all: a right answer or one documented error, quickly, in little memory, and no
other file is opened.

More of them, and other ones each time (docs/reliability.md has the results):

    WSSS_FUZZ_CASES=1000000 python -m pytest tests/test_fuzz.py
"""

import io
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from data_prep.coco_json import read_annotations, read_instances
from data_prep.voc_xml import read_voc_classes
from wsss_lib.config import Config
from wsss_lib.core import files, store
from wsss_lib.core.files import read_image, read_mask
from wsss_lib.core.store import peak_memory_mib
from wsss_lib.data.dataset import VOC_CLASSES, load_dataset, read_classes, read_labels, read_split
from wsss_lib.data.saliency import read_saliency
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import read_preset

CASES = int(os.environ.get("WSSS_FUZZ_CASES", 10_000))
SECONDS, MEBIBYTES = 3.0, 512  # of one case; more memory than before the first case of a reader
CLEAR = Path("/proc/self/clear_refs")  # of Linux

pytestmark = [pytest.mark.system, pytest.mark.timeout(24 * 3600)]

# ---- one valid file of each kind, and some that are wrong on purpose


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def stored(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def palette_png(mode: str) -> bytes:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 3).convert("L")
    return stored(image.convert(mode), "PNG")


def zip_bomb() -> bytes:
    """A small file that holds 300 MiB of zeros."""
    buffer = io.BytesIO(npz(classes=np.int16([0]), size=np.int32([65536, 65536])))
    header = b"{'descr': '<f2', 'fortran_order': False, 'shape': (1, 16384, 16384), }"
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file, file.open("scores.npy", "w", force_zip64=True) as entry:
        entry.write(b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n")
        for _ in range(300):
            entry.write(bytes(1 << 20))
    return buffer.getvalue()


def cloud_of_aliases(depth: int = 12) -> str:
    """YAML whose last value would have ten to the power of `depth` words."""
    lines = [f"a0: &a0 [{', '.join(['word'] * 10)}]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, depth)]
    return "\n".join(lines)


COCO = {
    "info": {"a": [1]},
    "images": [{"id": 9, "file_name": "a.jpg", "height": 4, "width": 5}],
    "annotations": [{"id": 1, "image_id": 9, "category_id": 1, "iscrowd": 0, "segmentation": [[0, 0, 1, 0, 1, 1]]}],
    "categories": [{"id": 1, "name": "person"}],
}
XML = "<annotation><size><width>4</width></size><object><name>cat</name><part><name>head</name></part></object></annotation>"
BOMB = (
    '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;">]>'
    "<annotation><name>&d;</name></annotation>"
)
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation><name>&b;</name></annotation>'
CLASSES = ("red", "green")


def check_ids(root: Path) -> None:
    for image_id in read_split(root, "train"):
        assert (root / "JPEGImages" / f"{image_id}.jpg").parent == root / "JPEGImages" and ".." not in image_id.split("/")


def check_names(path: Path) -> None:
    found = read_instances(path)
    assert all("/" not in image.file_name and image.file_name not in ("", ".", "..") for image in found.images.values())
    found.labels()
    for places in found.places().values():
        read_annotations(path, places)


def check_maps(path: Path) -> None:
    classes, scores, size = files.read_maps(path)
    assert scores.shape == (len(classes), (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1) and np.isfinite(scores).all()


def check_record(path: Path) -> None:
    stage = store.StageFolder(path.parent)
    if stage.is_complete():
        stage.results()


def check_begun(path: Path) -> None:
    stage = store.StageFolder(path.parent)
    stage.key()
    stage.parameters()


def check_mask(path: Path) -> None:
    mask = read_mask(path, 3)
    assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1, 2, 3, 255}


# name: (file below the root, its reader, valid and hostile contents)
READERS: dict[str, tuple[str, Callable[[Path], object], list[bytes]]] = {
    "labels.csv": (
        "labels.csv",
        lambda path: read_labels(path, CLASSES),
        [b"image_id,red,green\na,1,0\nb,0,1\n", b'image_id,red,green\n"a\nb",1,0\n', b"\xef\xbb\xbfimage_id,red\n"],
    ),
    "dataset.json": (
        "dataset.json",
        lambda path: read_classes(path.parent),
        [
            b'{"name": "x", "classes": ["red", "green"], "ignore_index": 255}',
            b"[" * 100_000,
            b'{"classes": ' + b"9" * 5000 + b"}",
        ],
    ),
    "image set": (
        "ImageSets/Segmentation/train.txt",
        lambda path: check_ids(path.parents[2]),
        [b"a\nb 1\nc -1\n", b"../../etc/passwd\n", b"a/../../b\n", "ä\u2028b\n".encode(), b"\0\n", b"C:\\a\n", b"..\n"],
    ),
    "XML": (
        "Annotations/a.xml",
        lambda path: read_voc_classes(path, VOC_CLASSES),
        [
            XML.encode(),
            BOMB.encode(),
            OUTSIDE.encode(),
            b"<a>" * 50_000,
            b'<?xml version="1.0" encoding="utf-16"?>' + XML.encode(),
            b'<?xml version="1.0" encoding="zip"?>' + XML.encode(),
        ],
    ),
    "COCO JSON": (
        "instances.json",
        check_names,
        [
            json.dumps(COCO).encode(),
            json.dumps(COCO, indent=1).encode(),
            b'{"images": ' + b"[" * 100_000,
            json.dumps(COCO).replace("a.jpg", "../../../etc/passwd").encode(),
            b'{"images": [{"id": ' + b"9" * 5000 + b"}]}",
        ],
    ),
    "maps": (
        "a.npz",
        check_maps,
        [
            npz(classes=np.int16([0, 2]), scores=np.zeros((2, 3, 4), np.float16), size=np.int32([12, 16])),
            npz(classes=np.int16([]), scores=np.zeros((0, 1, 1), np.float16), size=np.int32([1, 1])),
        ],
    ),
    "mask": ("a.png", check_mask, [palette_png("P"), palette_png("L"), palette_png("RGB"), palette_png("1")]),
    "saliency": ("s.png", read_saliency, [palette_png("L")]),
    "photograph": ("a.jpg", read_image, [stored(Image.new("RGB", (9, 7)), "JPEG"), palette_png("RGB"), palette_png("LA")]),
    "weights": ("a.safetensors", files.read_tensors, [save({"a": torch.zeros(2, 3), "b": torch.ones(1)})]),
    "record": (
        "stage/run.json",
        check_record,
        [json.dumps({"results_sha256": "0" * 64, "files": 0}).encode()],
    ),
    "begun": (
        "stage/begun.json",
        check_begun,
        [json.dumps({"key": "0" * 16, "parameters": {"seed": 1, "cam_scales": [1.0]}, "inputs": {"data": "0" * 64}}).encode()],
    ),
    "preset": (
        "preset.yaml",
        read_preset,
        [
            b"dataset: toy\nseed: 3\ncam_scales: [1.0, 0.5]\nirn_learning_rate: 1e-1\n",
            b"seed: !!int ''\n",
            b"seed: !!timestamp x\n",
            b"seed: 2026-99-99\n",
            b"seed: " + b"9" * 5000,
            b"seed: " + b"[" * 5000,
            b"!!python/object/apply:os.system ['true']",
            cloud_of_aliases().encode(),
            b"? [a]\n: 1\n",
            b"<<: 3\n",
            (cloud_of_aliases() + "\nseed: *a11").replace("a0: &a0", "seed: &a0").encode(),
        ],
    ),
}
OTHERS = 2  # parameters, and a whole folder

# ---- what happens to a file

EDIT = st.tuples(
    st.sampled_from(["set", "insert", "cut", "double", "move", "word"]), st.integers(0, 2**16), st.integers(0, 255)
)
WORDS = [
    b"../",
    b"\0",
    b"\n",
    b"\r",
    b'"',
    b"'",
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"\xff\xfe",
    b"\xf0\x9f\x90\xb1",
    b"&",
    b"<!ENTITY",
    b"*a",
    b"999999999999999999999",
    b"image_id",
    b"\xe2\x80\xae",
    b" " * 300,
]


def edited(content: bytes, edit: tuple[str, int, int]) -> bytes:
    """Return the content after one small damage."""
    data, (kind, place, value) = bytearray(content), edit
    at = place % (len(data) + 1)
    if kind == "set" and at < len(data):
        data[at] = value
    elif kind == "insert":
        data[at:at] = bytes([value])
    elif kind == "cut":
        del data[at : at + value]
    elif kind == "double":
        data[at:at] = data[at : at + value]
    elif kind == "move":
        piece = data[at : at + value]
        del data[at : at + value]
        data[len(data) // 2 : len(data) // 2] = piece
    elif kind == "word":
        data[at:at] = WORDS[value % len(WORDS)]
    return bytes(data)


opened: list[str] | None = None


def note_opened_files(event: str, arguments: tuple) -> None:
    if opened is not None and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(note_opened_files)  # it cannot be taken away again, so it does nothing outside `examine`
PROGRAM = (sys.prefix, sys.base_prefix, *(str(PROJECT_ROOT / name) for name in ("wsss_lib", "data_prep")))


def examine(read: Callable[[], object], root: Path, named: str) -> bool:
    """Read; return whether it was refused. One sentence that names the file, soon, and nothing outside the root."""
    global opened
    opened, started, refused = [], time.process_time(), False
    try:
        read()
    except (ValueError, FileNotFoundError) as error:  # DataError is a ValueError
        refused = True
        text = str(error)
        assert type(error).__name__ in ("DataError", "ValueError", "FileNotFoundError"), repr(error)
        assert named in text and len(text) < 2000 and len(text.splitlines()) == 1, text[:3000]
    finally:
        files, opened = opened, None
    assert time.process_time() - started < SECONDS
    outside = [file for file in files if not file.startswith((str(root), *PROGRAM))]
    assert not outside, outside
    return refused


def fresh_peak() -> int:
    """Let the record of this process's memory begin anew, which tests before this one may have driven up; return it."""
    if CLEAR.exists():
        CLEAR.write_text("5")
    return peak_memory_mib("cpu")


# An example is read after each of its damages, about three times; one of parameters once.
FUZZ = settings(
    max_examples=-(-CASES // (2 * (len(READERS) + OTHERS))),
    deadline=None,
    derandomize=CASES == 10_000,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", READERS)
def test_reader(name, tmp_path):
    """Each content as it is, then with one damage after the other, up to five; it is read after each of them."""
    file, read, contents = READERS[name]
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    counts, before = [0, 0], fresh_peak()

    def one(content: bytes) -> None:
        path.write_bytes(content)
        counts[examine(lambda: read(path), tmp_path, str(path))] += 1

    pool = []
    for content in contents:
        read_before = counts[0]
        one(content)
        pool += [content] * (8 if counts[0] > read_before else len(content) < 2000)  # damage what is valid more often
    assert counts[0] >= 1

    @FUZZ
    @given(st.sampled_from(pool), st.lists(EDIT, min_size=1, max_size=5))
    def search(content, edits):
        for edit in edits:
            content = edited(content, edit)
            one(content)

    search()
    print(f"{name}: {sum(counts)} files, {counts[1]} refused")
    assert min(counts) >= 3 and peak_memory_mib("cpu") - before < MEBIBYTES


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    (tmp_path / "a.npz").write_bytes(zip_bomb())
    before = fresh_peak()
    assert examine(lambda: files.read_maps(tmp_path / "a.npz"), tmp_path, "a.npz")
    assert peak_memory_mib("cpu") - before < 64


HOSTILE = [
    "(1.0, 0.5)",
    "1e-4",
    "(" * 5000,
    "-" * 5000 + "1",
    "[1, [2]]",
    "{}",
    "__import__('os')",
    "9" * 5000,
    "x" * 100_000,
    "../..",
    "a\n",
    {"a": 1},
    [[1.0]],
    float("nan"),
    10**400,
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.lists(st.floats(), max_size=3),
    st.sampled_from(HOSTILE),
)
NAMES = st.one_of(st.sampled_from(sorted(Config.model_fields)), st.text(max_size=8), st.sampled_from(["x" * 100_000, "seeds"]))


def test_parameters(tmp_path):
    """What papermill or a notebook's cell may hand over: a configuration with values of the right kinds, or a ValueError."""
    counts = [0, 0]

    @FUZZ
    @given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3))
    def search(values):
        def read():
            config = Config.from_values(values)
            assert Config.from_values(config.model_dump()) == config
            assert ".." not in (config.dataset, config.method) and "/" not in config.dataset + config.method
            json.dumps(config.parameters_of("*"), allow_nan=False)

        counts[examine(read, tmp_path, "")] += 1

    search()
    print(f"parameters: {sum(counts)} cases, {counts[1]} refused")
    assert min(counts) >= 3


def test_a_whole_folder(voc_folder):
    """One of a data set's files is damaged; the split is opened, and everything of its first images read."""
    files = [
        voc_folder / name
        for name in (
            "labels.csv",
            "dataset.json",
            "ImageSets/Segmentation/train.txt",
            "JPEGImages/m_00.jpg",
            "SegmentationClass/m_00.png",
        )
    ]
    contents, counts = {path: path.read_bytes() for path in files}, [0, 0]

    def read():
        data = load_dataset(voc_folder, "train")
        for image_id in data.ids[:2]:
            data.image(image_id)
            data.mask(image_id)
            data.label(image_id)

    @FUZZ
    @given(st.sampled_from(files), st.lists(EDIT, min_size=1, max_size=3))
    def search(path, edits):
        content = contents[path]
        for edit in edits:
            content = edited(content, edit)
            path.write_bytes(content)
            counts[examine(read, voc_folder, str(voc_folder))] += 1
        path.write_bytes(contents[path])

    search()
    print(f"folder: {sum(counts)} cases, {counts[1]} refused")
    assert min(counts) >= 3
