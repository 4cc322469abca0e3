"""Hostile pickles and archives: small files that would take memory, time or liberties. Each ends in one sentence, cheaply.

The random ones are tried by the hundred; `WSSS_ATTACKS=100000 python -m pytest tests/test_attacks.py -k random` tries so many.
"""

import gzip
import io
import os
import pickle
import shutil
import struct
import sys
import tarfile
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import checkpoints
from data_prep.restricted import read_checkpoint, read_npy
from data_prep.unpack import unpack
from wsss_lib.errors import DataError

pytestmark = pytest.mark.system

SECONDS, BYTES = 3.0, 64 << 20  # of processor time and memory that a small file may take
ATTACKS = int(os.environ.get("WSSS_ATTACKS", "300"))
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "ctypes.dlopen", "socket.connect")
many = settings(max_examples=ATTACKS, deadline=None, suppress_health_check=list(HealthCheck))
seen: list[str] = []
sys.addaudithook(lambda event, arguments: seen.append(event) if event in FORBIDDEN else None)


def outcome(read: Callable[[], Any]) -> Any:
    """Return what a reader returns, or its sentence."""
    try:
        return read()
    except DataError as error:
        assert "\n" not in str(error)
        return str(error)


def tried(read: Callable[[], Any]) -> Any:
    """Return the outcome; it may take little time and, read again, little memory, and runs no program."""
    seen.clear()
    begin = time.process_time()
    result = outcome(read)
    assert time.process_time() - begin < SECONDS
    tracemalloc.start()
    try:
        outcome(read)
        assert tracemalloc.get_traced_memory()[1] < BYTES and not seen
    finally:
        tracemalloc.stop()
    return result


def npy(pickled: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue() + pickled


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


class Calls:
    """A pickle of a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nested(begin: bytes, double: bytes) -> bytes:
    """Return the beginning of a list of parts, each of which holds the one before it twice."""
    parts = [begin + b"q\x00"] + [double.replace(b"PART", bytes([number])) + b"q" + bytes([number + 1]) for number in range(60)]
    return b"\x80\x02(" + b"".join(parts)


def legacy_storage(count: int, dtype: torch.dtype = torch.float32) -> bytes:
    file = io.BytesIO()
    torch.save(torch.TypedStorage(count, dtype=dtype, _internal=True), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def tensors_of_one_storage(number: int, size: tuple, stride: tuple) -> bytes:
    storage = Calls(torch.storage._load_from_bytes, legacy_storage(250_000))
    return pickle.dumps([Calls(torch._utils._rebuild_tensor_v2, storage, 0, size, stride, False, {}) for _ in range(number)], 4)


def zip_of_zeros() -> bytes:
    file = io.BytesIO()
    torch.save(torch.zeros(5_000_000).untyped_storage(), file)
    packed = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01J\x40\x4b\x4c\x00\x85cnumpy\ndtype\n"
    b"X\x02\x00\x00\x00u1\x89\x88\x87R\x89h\x01tb"
)  # of 5,000,000 bytes, which are part 1
LONG_TEXT = text("x" * 5_000_000) + b"q\x01"
PICKLES = {
    "a high number of a memo entry": b"\x80\x02]r\x00\x00\x00\x17.",
    "shared lists": nested(b"]", b"](hPARThPARTe") + b"l.",
    "shared tuples": nested(b")", b"hPARThPART\x86") + b"l.",
    "shared tuples as a key": nested(b")", b"hPARThPART\x86") + b"}h\x3cK\x01sl.",
    "shared dicts": nested(b"}", b"}(K\x01hPARTK\x02hPARTu") + b"l.",
    "deep lists": b"\x80\x02" + b"]" * 40_000 + b"a" * 39_999 + b".",
    "deep tuples as a key": b"\x80\x02}" + b")" + b"\x85" * 80_000 + b"K\x01s.",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "arrays that share one text": b"\x80\x02(" + LONG_TEXT + ARRAY * 200 + b"l.",
    "texts encoded again and again": b"\x80\x02("
    + LONG_TEXT
    + text("latin1")
    + b"q\x02"
    + b"c_codecs\nencode\nh\x01h\x02\x86R" * 200
    + b"l.",
    "the defaults of a function": b"\x80\x02c_codecs\nencode\nN}" + text("__defaults__") + b"N\x85s\x86b.",
    "the state of a type": b"\x80\x02cnumpy\ndtype\n}" + text("__init__") + b"Nsb.",
    "a long frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "a long text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "a long array of bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "a long number": b"\x80\x02\x8b" + struct.pack("<i", 2_000_000) + b"\x7f" * 2_000_000 + b".",
    "bytes by their number": pickle.dumps(Calls(bytearray, 2_000_000_000), 2),
    "a deflated storage": pickle.dumps(
        Calls(
            torch._utils._rebuild_tensor_v2,
            Calls(torch.storage._load_from_bytes, zip_of_zeros()),
            0,
            (5_000_000,),
            (1,),
            False,
            {},
        ),
        4,
    ),
    "a repeated value": tensors_of_one_storage(1, (500, 500), (0, 1)),
    "many tensors of one storage": tensors_of_one_storage(200, (250_000,), (1,)),
}
REASONS = {
    "a high number of a memo entry": "notes part 385875968",
    "shared lists": "stands for more than",
    "shared tuples": "stands for more than",
    "shared tuples as a key": "a key is a tuple",
    "shared dicts": "stands for more than",
    "deep lists": "nested more than 50 deep",
    "deep tuples as a key": "a key is a tuple",
    "a list of itself": "contains itself",
    "arrays that share one text": "many times its size",
    "texts encoded again and again": "many times its size",
    "the defaults of a function": "changes a name",
    "the state of a type": "changes a name",
    "a long frame": "longer than the file",
    "long bytes": "more bytes should follow",
    "a long text": "more bytes should follow",
    "a long array of bytes": "more bytes should follow",
    "a long number": "more than 128 bits",
    "bytes by their number": "bytearray, which such a file does not need",
    "a deflated storage": "a storage is of another kind",
    "a repeated value": "repeats its values",
    "many tensors of one storage": "many times its size",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_small_pickle_takes_little(tmp_path, kind):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(PICKLES[kind]))
    said = str(tried(lambda: read_npy(path, tensors=True)))
    assert said.startswith(f"{path}: not a .npy file that can be read safely") and REASONS[kind] in said


def test_a_header_that_promises_much_takes_little(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**9,)})
    (tmp_path / "a.npy").write_bytes(file.getvalue())
    assert "lacks numbers" in tried(lambda: read_npy(tmp_path / "a.npy"))


def pth(content: Any, path: Path, legacy: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "content",
    [
        {"a": Calls(bytearray, 2_000_000_000)},
        {"a": torch.zeros(1).expand(50_000, 50_000)},
        {"a": torch.zeros(1000).as_strided((900, 100), (1, 1))},
        {str(number): torch.zeros(10_000)[:] for number in range(3)},
        {"a": Calls(os.system, "true")},
        {"a": torch.zeros(3, dtype=torch.complex64)},
    ],
    ids=["bytearray", "repeated", "overlapping", "fine", "command", "complex"],
)
def test_a_small_file_of_weights_takes_little(tmp_path, content, legacy):
    path = pth(content, tmp_path / "a.pth", legacy)
    result = tried(lambda: read_checkpoint(path))
    assert isinstance(result, dict) == ("2" in content) and (isinstance(result, dict) or "read safely" in result)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_many_names_of_one_weight_are_bounded(tmp_path, legacy):
    weight = torch.zeros(250_000)
    assert len(tried(lambda: read_checkpoint(pth({str(n): weight[:] for n in range(8)}, tmp_path / "a.pth", legacy)))) == 8
    path = pth({str(n): weight[:] for n in range(500)}, tmp_path / "b.pth", legacy)
    assert "many times its size" in tried(lambda: read_checkpoint(path))


def test_two_members_with_one_content_are_refused(tmp_path):
    path = pth({"a": torch.zeros(100)}, tmp_path / "a.pth", False)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("a/data.pkl", b"\x80\x02}.")
    assert "overlap" in tried(lambda: read_checkpoint(path))


@pytest.mark.parametrize("classes", [0, 255, 100_000])
def test_numbers_of_classes_are_bounded(classes):
    """A layout has letters, whose values come from the file."""
    layout = checkpoints.layouts()["irn-cam"][0]
    content = {
        key: torch.empty([classes if side == "C" else side for side in shape], device="meta")
        for key, (shape, _) in layout.keys.items()
    }
    with pytest.raises(DataError, match="classifier.weight has shape"):
        checkpoints.convert(content, "irn-cam", "file")


# ---- random ones

PARTS = [bytes([code]) for code in b"N\x88])}(ltd\x85\x86\x87aesubRQ021.\x94\x93\x81\x92\x8f\x90\x91\x97\x98"]
PARTS += [
    b"K\x07",
    b"J\xff\xff\xff\x7f",
    b"\x8a\x09" + b"\x01" * 9,
    b"G" + bytes(8),
    text("latin1"),
    text("x"),
    text("f4"),
    b"C\x04abcd",
    b"U\x04abcd",
    ARRAY,
    b"X\x02\x00\x00\x00u1\x89\x88\x87R",
    b"\x8e" + struct.pack("<Q", 1 << 40),
    b"r\x00\x00\x00\x17",
    b"\x95" + bytes(8),
]
PARTS += [
    f"c{module}\n{name}\n".encode()
    for module, names in {
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "numpy": ("ndarray", "dtype"),
        "_codecs": ("encode",),
        "torch._utils": ("_rebuild_tensor_v2",),
        "torch.storage": ("_load_from_bytes",),
        "torch": ("Size", "FloatStorage"),
        "collections": ("OrderedDict",),
        "posix": ("system",),
        "builtins": ("eval", "getattr"),
    }.items()
    for name in names
]
parts = st.one_of(
    st.sampled_from(PARTS),
    st.integers(0, 9).map(lambda n: b"h" + bytes([n])),
    st.integers(0, 9).map(lambda n: b"q" + bytes([n])),
    st.binary(max_size=3),
)
VALID = [
    npy(pickle.dumps(content, protocol))
    for protocol in (2, 3, 4)
    for content in (
        {2007000032: np.eye(3, 20, dtype=np.float32)[0], "x": [1, (2.5, None)], "y": np.float64(2)},
        {"keys": torch.tensor([1, 4]), "cam": torch.zeros(2, 3, 4)},
    )
]
changes = st.one_of(st.none(), st.binary(max_size=4), st.sampled_from(PARTS))
damages = st.lists(st.tuples(st.integers(0, 5000), changes), min_size=1, max_size=6)


def damaged(content: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    """Cut, replace or insert."""
    result = bytearray(content)
    for place, new in changes:
        place %= len(result) + 1
        if new is None:
            del result[place : place + 3]
        else:
            result[place : place + len(new) * (place % 2)] = new
    return bytes(result)


def is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return (
        value is None
        or type(value) in (bool, int, float, str, bytes, np.ndarray, torch.Tensor)
        or type(value).__module__ == "data_prep.restricted"
    )


@many
@given(
    st.one_of(
        st.lists(parts, max_size=60).map(lambda several: npy(b"\x80\x04" + b"".join(several) + b".")),
        st.builds(damaged, st.sampled_from(VALID), damages),
    ),
    st.booleans(),
)
def test_random_pickles(tmp_path_factory, content, tensors):
    path = tmp_path_factory.getbasetemp() / "random.npy"
    path.write_bytes(content)
    result = tried(lambda: read_npy(path, tensors))
    assert is_plain(result)


def weights_in_both_formats() -> list[bytes]:
    files = []
    for legacy in (False, True):
        file = io.BytesIO()
        torch.save(
            {"model": {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int64)}, "miou": np.float64(0.5)},
            file,
            _use_new_zipfile_serialization=not legacy,
        )
        files.append(file.getvalue())
    return files


def repacked(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(24))
    return file.getvalue()


@many
@given(
    st.one_of(
        st.builds(damaged, st.sampled_from(weights_in_both_formats()), damages),
        st.lists(parts, max_size=60).map(lambda several: repacked(b"\x80\x02" + b"".join(several) + b".")),
    )
)
def test_random_weights(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "random.pth"
    path.write_bytes(content)
    assert is_plain(tried(lambda: read_checkpoint(path)))


# ---- archives

NAMES = st.one_of(
    st.sampled_from(
        [
            "a",
            "A",
            "a/b",
            "a/B/c",
            "",
            ".",
            "..",
            "/a",
            "../a",
            "a//b",
            "a/../b",
            "\u00e9",
            "e\u0301",
            "a\\b",
            "a/",
            "C:a",
            "a\0b",
            "\u017f",
            "s",
            "x" * 300,
        ]
    ),
    st.text(max_size=6),
)


def random_tar(members: list[tuple[str, bytes, bytes, dict[str, str]]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, content, records in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "a"
            info.pax_headers = records
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def random_zip(members: list[tuple[str, bytes, bytes, dict[str, str]]]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w") as archive:
        for name, kind, content, _ in members:
            archive.writestr(name or "\0", content, zipfile.ZIP_DEFLATED if kind == b"0" else zipfile.ZIP_STORED)
    return file.getvalue()


RECORDS = st.dictionaries(
    st.sampled_from(
        ["GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "GNU.sparse.realsize", "size", "path", "linkpath", "mtime"]
    ),
    st.sampled_from(["1", "-1", "x", "1,2", "1,x", "9" * 30, "../a", "b"]),
    max_size=3,
)
MEMBERS = st.lists(
    st.tuples(
        NAMES,
        st.sampled_from([b"0", b"0", b"0", b"5", b"1", b"2", b"S", b"L", b"K", b"x", b"g", b"\0"]),
        st.binary(max_size=30),
        RECORDS,
    ),
    max_size=5,
)


@many
@given(MEMBERS, st.sampled_from(["x.zip", "x.tar", "x.tgz"]), st.one_of(st.just([]), damages), st.booleans())
def test_random_archives(tmp_path_factory, members, name, changes, with_folder):
    """Whatever an archive holds: what was there stays, all else lies in the folder, and nothing half or half named is left."""
    base = tmp_path_factory.getbasetemp() / "archives"
    shutil.rmtree(base, ignore_errors=True)
    kept = base / "out/a" if with_folder else base / "out/kept"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"precious")
    try:
        content = (random_zip if name == "x.zip" else random_tar)(members)
    except (ValueError, UnicodeEncodeError, IndexError):  # names that cannot be written
        return
    content = damaged(content, changes) if changes else content
    (base / name).write_bytes(gzip.compress(content) if name == "x.tgz" else content)
    try:
        result = tried(lambda: unpack(base / name, base / "out", lambda member: member, progress=False))
    except OSError as error:  # a name that this disk does not take
        result = str(error)
    assert kept.read_bytes() == b"precious"
    left = {path.relative_to(base).as_posix(): path for path in base.rglob("*")}
    assert not [path for path in left.values() if path.is_symlink() or path.name.startswith(".writing-")]
    assert {path.split("/")[0] for path in left} <= {"out", name}
    if isinstance(result, str) and "nothing was unpacked" in result:
        assert {path.name for path in left.values() if path.is_file()} == {name, kept.name}
