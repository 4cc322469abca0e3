"""Read the pickled files of other programs without running anything that they contain.

The authors' label tables, localization maps and weights are pickles, which are small programs. The readers here follow them as
data (`data_prep.pickles`), know the few names that such files need, and refuse a file that asks for any other. No other
unpickler, be it NumPy's or torch's, ever sees them. What a file becomes is bounded by its size.
"""

import io
import math
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from data_prep.pickles import BoundedStream, Budget, Built, Name, RefusedError, plain, read_pickle, table
from wsss_lib.errors import DataError

GROWTH = 8  # how many times its size a file may become; IRN's weights appear there under three names
SLACK = 1 << 20  # bytes that a tiny file may become beyond that
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # in front of files that torch wrote before 1.6
STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
STORAGE_TYPES = {Name("torch", f"{word}Storage"): dtype for word, dtype in STORAGES.items()}
NDARRAY = Name("numpy", "ndarray")


class _Dtype(Built):
    """Stands in for `numpy.dtype`: plain numbers, or "O" for the one object around a dict."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if code != "O8" and not (isinstance(code, str) and re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", code)):
            raise RefusedError(f"it holds values of type {code!r:.40}")
        self.numbers = None if code == "O8" else np.dtype(code)

    def build(self, state: Any) -> None:
        """Take the byte order."""
        if not (isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)):
            raise RefusedError("it describes a structured type")
        if self.numbers is not None and state[1] in ("<", ">"):
            self.numbers = self.numbers.newbyteorder(state[1])


class _Array(Built):
    """Stands in for an array: made empty by `_reconstruct`, filled by its state."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self.value: Any = None

    def build(self, state: Any) -> None:
        """Take shape, type and content."""
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not all(type(side) is int and side >= 0 for side in shape):
            raise RefusedError("an array has no plain shape or type")
        if dtype.numbers is None:  # what np.save puts around an object
            if shape != () or type(content) is not list or len(content) != 1:
                raise RefusedError("it holds an array of objects")
            self.value = content[0]
            return
        content = _bytes(content, self.budget)
        if len(content) != math.prod(shape) * dtype.numbers.itemsize:
            raise RefusedError(f"an array of shape {shape!r:.60} lacks bytes")
        self.budget.spend(len(content))
        values = np.frombuffer(content, dtype.numbers).reshape(shape, order="F" if fortran else "C")
        self.value = values.astype(dtype.numbers.newbyteorder("="))


class _Storage:
    """The values of a torch storage: one axis, on the CPU; None until they are known."""

    def __init__(self, dtype: torch.dtype, count: int):
        self.dtype, self.count = dtype, count
        self.values: torch.Tensor | None = None

    def take(self, memory: torch.Tensor, begin: int) -> int:
        """Find the values in a file, which is given as bytes; return where they end there."""
        end = begin + self.count * self.dtype.itemsize
        if not 0 <= begin <= end <= len(memory):
            raise RefusedError("it ends in the middle of its values")
        part = memory[begin:end]
        self.values = (part if begin % self.dtype.itemsize == 0 else part.clone()).view(self.dtype)
        return end


class _Tensor:
    """A tensor whose values may not be known yet."""

    def __init__(self, budget: Budget, storage: Any, offset: Any, size: Any, stride: Any):
        tuples = type(size) is type(stride) is tuple and len(size) == len(stride)
        if (
            not isinstance(storage, _Storage)
            or not tuples
            or not all(type(number) is int and number >= 0 for number in (offset, *size, *stride))
        ):
            raise RefusedError("a tensor has no plain shape")
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if 0 not in size and (last >= storage.count or math.prod(size) > storage.count):
            raise RefusedError(f"a tensor of shape {size!r:.60} has only {storage.count} values")
        if 0 not in size and any(side > 1 and step == 0 for side, step in zip(size, stride, strict=True)):
            raise RefusedError(f"a tensor of shape {size!r:.60} repeats its values")
        budget.spend(math.prod(size) * storage.dtype.itemsize)
        self.storage, self.size, self.stride, self.offset = storage, size, stride, offset

    def tensor(self) -> torch.Tensor:
        """Return it with its values, which are not copied."""
        if self.storage.values is None:
            raise RefusedError("a tensor has no values")
        begin = self.storage.values.storage_offset()  # within the file
        return self.storage.values.as_strided(self.size, self.stride, begin + self.offset)


class _Other:
    """Something that weights do not need but a file of weights may hold, e.g. a sparse tensor."""

    def __init__(self, *_: Any):
        pass


def _bytes(content: Any, budget: Budget) -> bytes:
    """Return bytes; a Python 2 file has a string instead."""
    if type(content) is str:
        budget.spend(len(content))
        return content.encode("latin1")
    if type(content) is not bytes:
        raise RefusedError(f"it holds a {type(content).__name__} where bytes should be")
    return content


def _reconstruct(budget: Budget, kind: Any, shape: Any, code: Any) -> _Array:
    if kind != NDARRAY:
        raise RefusedError("it makes an array of a strange kind")
    return _Array(budget)


def _scalar(budget: Budget, dtype: Any, content: Any) -> int | float | bool:
    if not isinstance(dtype, _Dtype) or dtype.numbers is None or len(content) != dtype.numbers.itemsize:
        raise RefusedError("a number lacks bytes")
    return np.frombuffer(_bytes(content, budget), dtype.numbers)[0].item()


def _encode(budget: Budget, text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise RefusedError(f"it encodes a text as {encoding!r:.40}")
    return _bytes(text, budget)


def _no_function(*_: Any) -> None:
    raise RefusedError("it makes an object of a type that may only be named")


def _numpy_calls(budget: Budget) -> dict[Name, Callable[..., Any]]:
    return {
        Name("numpy.core.multiarray", "_reconstruct"): partial(_reconstruct, budget),
        Name("numpy.core.multiarray", "scalar"): partial(_scalar, budget),
        NDARRAY: _no_function,
        Name("numpy", "dtype"): _Dtype,
        Name("_codecs", "encode"): partial(_encode, budget),
    }


def _torch_calls(budget: Budget) -> dict[Name, Callable[..., Any]]:
    return {
        Name("torch._utils", "_rebuild_tensor_v2"): lambda *given: _Tensor(budget, *given[:4]),
        Name("torch._utils", "_rebuild_tensor"): lambda *given: _Tensor(budget, *given),
        Name("torch._utils", "_rebuild_parameter"): lambda value, *_: value,
        Name("torch._utils", "_rebuild_sparse_tensor"): _Other,
        Name("torch.serialization", "_get_layout"): _Other,
        Name("torch", "Size"): tuple,
        Name("collections", "OrderedDict"): lambda pairs=(): table(pairs),
        **dict.fromkeys(STORAGE_TYPES, _no_function),
    }


def _named_storage(known: dict[str, _Storage], identity: Any) -> _Storage:
    """Return the storage that torch's pickles name by ("storage", type, key, device, number of values, ...)."""
    word, kind, key, _, count, *_ = identity
    if word != "storage" or kind not in STORAGE_TYPES or type(key) is not str or type(count) is not int or count < 0:
        raise RefusedError("it names its values in a strange way")
    storage = known.setdefault(key, _Storage(STORAGE_TYPES[kind], count))
    if (storage.dtype, storage.count) != (STORAGE_TYPES[kind], count):
        raise RefusedError("it names the same values as two types")
    return storage


def _read_legacy(file: IO[bytes], memory: torch.Tensor, budget: Budget) -> Any:
    """Read torch's older format: five pickles and then the values of each storage after their number."""
    stream = BoundedStream(file, len(memory))
    known: dict[str, _Storage] = {}
    for expected in (TORCH_MAGIC, 1001):
        if read_pickle(stream, {}) != expected:
            raise RefusedError("it is of another kind")
    if read_pickle(stream, {}).get("little_endian") is not True:
        raise RefusedError("its numbers have another order of bytes")
    content = read_pickle(stream, _numpy_calls(budget) | _torch_calls(budget), partial(_named_storage, known))
    place = None
    for key in read_pickle(stream, {}):
        place = stream.tell() if place is None else place
        file.seek(place)
        storage = known[key]
        if int.from_bytes(stream.read(8), "little") != storage.count:
            raise RefusedError("it has another number of values than it says")
        place = storage.take(memory, place + 8)
    return content


def _read_zip(path: Path, memory: torch.Tensor, budget: Budget) -> Any:
    """Read torch's newer format: a pickle in a zip file, whose other members are the values of the storages."""
    known: dict[str, _Storage] = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise RefusedError("its parts are compressed, which torch never does")
        if sum(member.file_size for member in archive.infolist()) > len(memory) or len(members) != len(archive.infolist()):
            raise RefusedError("its parts overlap")
        (top,) = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if f"{top}byteorder" in members and archive.read(f"{top}byteorder") != b"little":
            raise RefusedError("its numbers have another order of bytes")
        pickled = archive.read(f"{top}data.pkl")
        content = read_pickle(
            BoundedStream(io.BytesIO(pickled), len(pickled)),
            _numpy_calls(budget) | _torch_calls(budget),
            partial(_named_storage, known),
        )
        for key, storage in known.items():
            member = members[f"{top}data/{key}"]
            file.seek(member.header_offset + 26)
            lengths = file.read(4)  # of name and extra field, as they precede the values
            begin = member.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            if member.file_size < storage.count * storage.dtype.itemsize:
                raise RefusedError("it has another number of values than it says")
            storage.take(memory, begin)
    return content


def _finish(value: Any) -> Any:
    """Turn a leaf of a file of weights into what the caller sees."""
    if isinstance(value, _Tensor):
        return value.tensor()
    if isinstance(value, (Name, _Array, _Dtype, _Storage)):
        raise RefusedError(f"it holds a {type(value).__name__.strip('_').lower()}")
    return value


def _load_storage(budget: Budget, content: Any) -> _Storage:
    """Read a pickled torch storage, which is itself a whole file of torch's older format."""
    content = _bytes(content, budget)
    if not content.startswith(b"\x80\x02\x8a\x0a"):  # the older format; a zip file could be compressed
        raise RefusedError("a storage is of another kind")
    budget.spend(len(content))
    memory = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    storage = _read_legacy(io.BytesIO(content), memory, budget)
    if not isinstance(storage, _Storage) or storage.values is None:
        raise RefusedError("a storage holds something else")
    return storage


def _finish_array(value: Any) -> Any:
    """Turn a leaf of a `.npy` file into what the caller sees."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, _Tensor):
        return value.tensor().numpy().copy()
    if value is None or isinstance(value, (np.ndarray, str, bytes, int, float)):
        return value
    raise RefusedError(f"it holds a {type(value).__name__.strip('_').lower()}")


def _content_of_npy(path: Path, tensors: bool) -> Any:
    size = path.stat().st_size
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read_header(file)
        if not dtype.hasobject:
            if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != size - file.tell():
                raise RefusedError(f"an array of shape {shape!r:.60} lacks numbers")
            file.seek(0)
            return np.load(file, allow_pickle=False)
        if shape != () or dtype != np.dtype("O"):
            raise RefusedError(f"it holds {shape} objects instead of one")
        budget = Budget(GROWTH * size + SLACK)
        calls = _numpy_calls(budget)
        if tensors:
            calls |= _torch_calls(budget) | {Name("torch.storage", "_load_from_bytes"): partial(_load_storage, budget)}
        content = plain(read_pickle(BoundedStream(file, size), calls), _finish_array)
        if file.read(1):
            raise RefusedError("something follows the pickle")
        return content


def read_npy(path: Path | str, tensors: bool = False) -> Any:
    """Read a `.npy` file, pickled or not, without running anything that it contains.

    Args:
        tensors: also accept torch tensors, as the localization maps of IRN's family hold; they become arrays.

    Returns:
        an array of numbers, or the pickled object: dicts, lists, strings and numbers, with arrays in native byte order.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no `.npy` file, is truncated, asks for a name that it should not need, or would grow to many times its
            size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        return _content_of_npy(path, tensors)
    except Exception as error:  # damaged bytes can make NumPy and Python raise nearly every type
        said = str(error).splitlines()[0] if isinstance(error, ValueError) and str(error) else type(error).__name__
        raise DataError(f"{path}: not a .npy file that can be read safely ({said}); fetch it again from its authors") from None


OTHER_KINDS = {  # first bytes, in lowercase, of what downloads leave under the name of weights
    b"pk\x03\x04": "it is cut off, as a download that has stopped is",
    b"<!doctype": "it is a web page",
    b"<html": "it is a web page",
    b"version https://git-lfs": "it is Git LFS's reference to the file, not the file",
    b"\x89hdf": "it is an HDF5 file",
}


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors do, with the length of a JSON object and the object, whatever its name is."""
    if not path.is_file():
        return path.suffix.lower() == ".safetensors"
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(1) == b"{" and length < path.stat().st_size


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read the dict of a `.pth` file (both of torch's formats, zip and legacy) without running anything that it contains.

    Returns:
        what `torch.save` was given: names to tensors (on the CPU, mapped from the file), numbers and dicts of these.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no such file, is truncated, compressed, asks for a name that weights do not need, or has tensors that
            repeat their values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such weights file")
    with open(path, "rb") as file:
        start = b"" if zipfile.is_zipfile(path) else file.read(64).lstrip().lower()
    try:
        size = path.stat().st_size
        memory = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)  # (bytes,), read when it is needed
        budget = Budget(GROWTH * size + SLACK)
        if zipfile.is_zipfile(path):
            content = _read_zip(path, memory, budget)
        else:
            with open(path, "rb") as file:
                content = _read_legacy(file, memory, budget)
        content = plain(content, _finish)
    except Exception as error:  # damaged bytes can make torch and Python raise nearly every type
        said = str(error) if isinstance(error, RefusedError) else "it is damaged or of another kind"
        said = said.replace("such a file does not need", "weights do not need")
        said = next((what for begin, what in OTHER_KINDS.items() if start.startswith(begin)), said)
        raise DataError(
            f"{path}: not a .pth file that can be read safely ({said}); fetch it again, or save its state_dict alone"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__} instead of named weights; give a file of a state_dict")
    return content
