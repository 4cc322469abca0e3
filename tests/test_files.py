"""Files are whole or absent, and every broken file gives one sentence."""

import errno
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from wsss_lib.core import files
from wsss_lib.core.files import read_mask, voc_palette
from wsss_lib.errors import DataError
from wsss_lib.parameters import PROJECT_ROOT


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---- atomic writes


def test_a_file_is_written_into_a_new_folder_readable_by_all(tmp_path):
    files.write_atomically(tmp_path / "a" / "b" / "c.txt", lambda temporary: temporary.write_text("whole"))
    assert files_below(tmp_path) == ["a/b/c.txt"] and (tmp_path / "a/b/c.txt").read_text() == "whole"
    assert (tmp_path / "a/b/c.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("problem", [RuntimeError("a bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_an_exception_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path, problem):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def write_half(temporary: Path) -> None:
        temporary.write_text("ha")
        raise problem

    with pytest.raises(type(problem)):
        files.write_atomically(path, write_half)
    assert files_below(tmp_path) == ["result.txt"] and path.read_text() == "old"


def test_a_full_disk_gives_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError) as error:
        files.write_json(tmp_path / "metrics.json", [])
    assert str(error.value) == (
        f"{tmp_path}/metrics.json: cannot be written (No space left on device); free some space or set "
        "runs_root to another disk, then run again: finished results are kept"
    )
    assert files_below(tmp_path) == []


def test_a_folder_that_cannot_be_made_gives_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"runs/maps/a.json: cannot be written \((Not a directory|File exists)\); free some"):
        files.write_json(tmp_path / "runs" / "maps" / "a.json", [])


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from wsss_lib.core import store, files
folder = Path(sys.argv[1])
random = np.random.default_rng(0)
work = {
    "maps": lambda: files.write_maps(folder / "a.npz", [0, 1], random.random((2, 100, 100)), (400, 400)),
    "mask": lambda: files.write_mask(folder / "a.png", random.integers(0, 20, (300, 300))),
    "json": lambda: files.write_json(folder / "a.json", list(range(20000))),
    "tensors": lambda: files.write_tensors(folder / "a.safetensors", {"a": torch.rand(200, 200)}),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file may grow beyond 20 kB
for name, write in work.items():
    try:
        write()
    except OSError as error:
        print(error)
"""


@pytest.mark.system
def test_every_writer_survives_a_disk_that_fills_up_while_it_writes(tmp_path):
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        f"{tmp_path}/a.{suffix}: cannot be written (File too large); free some space or set runs_root to another disk, then "
        "run again: finished results are kept"
        for suffix in ("npz", "png", "json", "safetensors")
    ]
    assert files_below(tmp_path) == []


# ---- localization maps


@given(height=st.integers(1, 40), width=st.integers(1, 40), num_classes=st.integers(0, 4), seed=st.integers(0, 99))
@example(height=375, width=500, num_classes=2, seed=0)
def test_maps_round_trip(tmp_path_factory, height, width, num_classes, seed):
    path = tmp_path_factory.mktemp("maps") / "2007_000032.npz"
    rng = np.random.default_rng(seed)
    classes = np.sort(rng.choice(80, num_classes, replace=False))
    scores = rng.random((num_classes, (height - 1) // 4 + 1, (width - 1) // 4 + 1))
    files.write_maps(path, classes, scores, (height, width))
    read_classes, read_scores, size = files.read_maps(path)
    assert read_classes.dtype == np.int64 and read_classes.tolist() == classes.tolist()
    assert read_scores.dtype == np.float32 and np.abs(read_scores - scores).max(initial=0) <= 2**-12  # half precision below 1
    assert size == (height, width) and all(type(side) is int for side in size)
    with np.load(path, allow_pickle=False) as file:
        assert {name: file[name].dtype.name for name in file} == {"classes": "int16", "scores": "float16", "size": "int32"}


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def encrypted() -> bytes:
    content = bytearray(npz(**GOOD))
    content[6] |= 1  # the flag of the first file, here and in the directory
    place = content.rindex(b"PK\x01\x02", 0, content.index(b"PK\x01\x02") + 4)
    content[place + 8] |= 1
    return bytes(content)


GOOD = {"classes": np.int16([0, 2]), "scores": np.zeros((2, 3, 4), np.float16), "size": np.int32([12, 16])}
BROKEN_MAPS = {
    "empty": b"",
    "text": b"these are not maps",
    "one array": npy(np.zeros(3)),
    "half": npz(**GOOD)[:200],
    "without an end": npz(**GOOD)[:-30],
    "encrypted": encrypted(),
    "no scores": npz(classes=GOOD["classes"], size=GOOD["size"]),
    "pickled": npz(**GOOD | {"scores": np.array([[[{"a": 1}]]], object)}),
    "one class too few": npz(**GOOD | {"classes": np.int16([0])}),
    "classes as table": npz(**GOOD | {"classes": np.int16([[0, 2]])}),
    "flat scores": npz(**GOOD | {"scores": np.zeros((2, 12), np.float16)}),
    "scores of text": npz(**GOOD | {"scores": np.full((2, 3, 4), "high")}),
    "classes as floats": npz(**GOOD | {"classes": np.float32([0, 2])}),
    "three sides": npz(**GOOD | {"size": np.int32([12, 16, 3])}),
    "no side": npz(**GOOD | {"size": np.int32([0, 16])}),
    "a score that is not a number": npz(**GOOD | {"scores": np.full((2, 3, 4), np.nan, np.float16)}),
    "an infinite score": npz(**GOOD | {"scores": np.full((2, 3, 4), np.inf, np.float16)}),
    "another image's size": npz(**GOOD | {"size": np.int32([375, 500])}),
}


@pytest.mark.parametrize("kind", BROKEN_MAPS)
def test_broken_maps_give_one_sentence(tmp_path, kind):
    path = tmp_path / "a.npz"
    path.write_bytes(BROKEN_MAPS[kind])
    with pytest.raises(DataError, match="delete it and run its stage again") as error:
        files.read_maps(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


class Payload:
    """What a pickle can do when it is read: run any function, here make a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_pickled_is_ever_loaded(tmp_path):
    scores = np.empty((1, 1, 1), object)
    scores[0, 0, 0] = Payload(tmp_path / "run by the file")
    (tmp_path / "a.npz").write_bytes(npz(classes=np.int16([0]), size=np.int32([1, 1]), scores=scores))
    with pytest.raises(DataError, match="not a file of localization maps"):
        files.read_maps(tmp_path / "a.npz")
    assert files_below(tmp_path) == ["a.npz"] and not (tmp_path / "run by the file").exists()


def test_missing_maps_name_the_notebook(tmp_path):
    with pytest.raises(DataError, match="a.npz: the localization maps are missing; run notebook 10_cam"):
        files.read_maps(tmp_path / "a.npz")


@given(place=st.integers(0, 1000), value=st.integers(0, 255), cut=st.integers(0, 600))
def test_damaged_maps_are_read_rightly_or_refused(tmp_path_factory, place, value, cut):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    content = bytearray(npz(**GOOD))
    content[place % len(content)] = value
    path.write_bytes(content[: len(content) - cut] if cut % 3 == 0 else content)
    try:
        classes, scores, size = files.read_maps(path)
    except DataError:
        return
    assert classes.tolist() == [0, 2] and size == (12, 16) and not scores.any()


# ---- masks, JSON, tensors


def test_mask_is_a_palette_png_in_voc_colors(tmp_path):
    mask = np.array([[0, 1, 20], [255, 3, 7]], np.uint8)
    files.write_mask(tmp_path / "a.png", mask)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and np.array(image).tolist() == mask.tolist()
        assert np.array(image.convert("RGB")).tolist() == voc_palette()[mask].tolist()
    assert read_mask(tmp_path / "a.png", 20).tolist() == mask.tolist()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1,"])
def test_broken_json_names_the_remedy(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match="run.json: not valid JSON; delete the folder"):
        files.read_json(tmp_path / "run.json")


def test_tensors_round_trip_and_broken_files(tmp_path):
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3).T,
        "b": torch.tensor(7),
        "c": torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }
    files.write_tensors(tmp_path / "w.safetensors", tensors)
    read = files.read_tensors(tmp_path / "w.safetensors")
    assert set(read) == set(tensors) and all(torch.equal(read[name], tensors[name]) for name in tensors)
    with pytest.raises(FileNotFoundError, match="none.safetensors: there is no such weights file"):
        files.read_tensors(tmp_path / "none.safetensors")
    torch.save({"a": torch.zeros(3)}, tmp_path / "official.pth")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-5])
    for name in ("official.pth", "half.safetensors"):
        with pytest.raises(DataError, match=r"not a safetensors file \(.*give one that this project has written"):
            files.read_tensors(tmp_path / name)


@given(
    st.dictionaries(
        st.text("ab/", min_size=1, max_size=3).map(lambda name: name.strip("/").replace("//", "/") or "a"),
        st.binary(max_size=3),
        min_size=1,
        max_size=3,
    )
)
def test_hash_sees_names_and_contents(contents):
    import tempfile

    def total(named) -> str:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in named.items():
                path = Path(folder) / name.replace("/", "_")
                path.write_bytes(content)
            return files.sha256(Path(folder).iterdir(), Path(folder))

    assert total(contents) == total(dict(reversed(contents.items())))
    name = next(iter(contents))
    assert total(contents) != total(contents | {name: contents[name] + b"x"})
    assert total({"a": b"x", "b": b""}) != total({"a": b"", "b": b"x"})


def test_zip_with_a_huge_claim_is_refused(tmp_path):
    """An array header that claims more than there is must not make NumPy allocate it and then give up with a traceback."""
    claim = b"{'descr': '<f2', 'fortran_order': False, 'shape': (2, 2000000, 4000000), }"
    header = b"\x93NUMPY\x01\x00v\x00" + claim.ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name in ("classes", "size"):
            file.writestr(f"{name}.npy", npy(GOOD[name]))
        file.writestr("scores.npy", header)
    with pytest.raises(DataError, match="not a file of localization maps"):
        files.read_maps(tmp_path / "a.npz")
