"""Read the pickled files of other programs without running anything that they contain.

A pickle is a small program: it names functions and calls them while it is read. The authors' label tables, localization maps
and weights are pickles all the same. The readers here know the few names that such files need, put harmless stand-ins of
their own in the place of every one of them, and refuse a file that asks for any other.
"""

import io
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsss_lib.errors import DataError


class _Refused(pickle.UnpicklingError):
    """The file asks for something that a plain table of numbers does not need."""


class _Dtype:
    """Stands in for `numpy.dtype`: plain numbers, or "O" for the one object around a dict."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if code != "O8" and not (isinstance(code, str) and re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", code)):
            raise _Refused(f"it holds values of type {code!r}")
        self.numbers = None if code == "O8" else np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)):
            raise _Refused("it describes a structured type")
        if self.numbers is not None and state[1] in ("<", ">"):
            self.numbers = self.numbers.newbyteorder(state[1])


class _Array:
    """Stands in for an array: made empty by `_reconstruct`, filled by its state, read out by `_plain`."""

    value: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not all(type(side) is int and side >= 0 for side in shape):
            raise _Refused("an array has no plain shape or type")
        if dtype.numbers is None:  # what np.save puts around an object
            if shape != () or not isinstance(content, list) or len(content) != 1:
                raise _Refused("it holds an array of objects")
            self.value = content[0]
            return
        content = content.encode("latin1") if isinstance(content, str) else content  # written by Python 2
        if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.numbers.itemsize:
            raise _Refused(f"an array of shape {shape} has not the bytes that it needs")
        values = np.frombuffer(content, dtype.numbers).reshape(shape, order="F" if fortran else "C")
        self.value = values.astype(dtype.numbers.newbyteorder("="))


def _reconstruct(kind: object, shape: tuple, code: bytes) -> _Array:
    if kind is not _NDARRAY:
        raise _Refused("it makes an array of a strange kind")
    return _Array()


def _scalar(dtype: _Dtype, content: bytes | str) -> int | float | bool:
    content = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(dtype, _Dtype) or dtype.numbers is None or len(content) != dtype.numbers.itemsize:
        raise _Refused("a number has not the bytes that it needs")
    return np.frombuffer(content, dtype.numbers)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Refused(f"it encodes a text as {encoding!r}")
    return text.encode("latin1")


def _ordered_dict() -> dict:
    return {}


def _storage(content: bytes) -> torch.Tensor:
    """Return the values of a pickled torch storage, which is itself a whole file of `torch.save`."""
    storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)  # (values,); its public name warns


def _tensor(values: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    if math.prod(size) > len(values):
        raise _Refused(f"a tensor of shape {tuple(size)} has only {len(values)} values")
    return values.as_strided(tuple(size), tuple(stride), offset).numpy().copy()


_NDARRAY = object()
_NUMPY = {("numpy.core.multiarray", "_reconstruct"): _reconstruct, ("numpy.core.multiarray", "scalar"): _scalar,
          ("numpy", "ndarray"): _NDARRAY, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _encode}
_TORCH = {("torch._utils", "_rebuild_tensor_v2"): _tensor, ("torch.storage", "_load_from_bytes"): _storage,
          ("collections", "OrderedDict"): _ordered_dict}


class _Unpickler(pickle.Unpickler):
    """Knows the names of `allowed` and no other; it never imports anything."""

    def __init__(self, file: io.BufferedIOBase, allowed: Mapping[tuple[str, str], Any]):
        super().__init__(file, encoding="latin1")
        self.allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        key = module.replace("numpy._core", "numpy.core"), name  # its name since NumPy 2
        if key not in self.allowed:
            raise _Refused(f"it asks for {module}.{name}, which such a file does not need")
        return self.allowed[key]


def read_npy(path: Path | str, tensors: bool = False) -> Any:
    """Read a `.npy` file, pickled or not, without running anything that it contains.

    Args:
        path: the file.
        tensors: also accept torch tensors, as the localization maps of IRN's family hold; they become arrays.

    Returns:
        an array of numbers, or the pickled object: dicts, lists, texts and numbers, with arrays in native byte order.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no `.npy` file, is cut off, or asks for a name that it should not need.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read_header(file)
            if not dtype.hasobject:
                file.seek(0)
                return np.load(file, allow_pickle=False)
            if shape != () or dtype != np.dtype("O"):
                raise _Refused(f"it holds {shape} objects instead of one")
            content = _plain(_Unpickler(file, _NUMPY | _TORCH if tensors else _NUMPY).load())
            if file.read(1):
                raise _Refused("something follows the pickle")
            return content
    except Exception as error:  # damaged bytes can make the unpickler raise nearly every type
        said = str(error).splitlines()[0] if isinstance(error, (_Refused, ValueError)) and str(error) else type(error).__name__
        raise DataError(f"{path}: not a .npy file that can be read safely ({said}); fetch it again from its authors") from None


def _plain(content: Any) -> Any:
    if isinstance(content, _Array):
        return _plain(content.value)
    if isinstance(content, dict):
        return {_plain(key): _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_plain(value) for value in content)
    if content is None or isinstance(content, (np.ndarray, str, bytes, int, float)):
        return content
    raise _Refused(f"it holds a {type(content).__name__.strip('_')}")


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read the dict of a `.pth` file (both of torch's formats, zip and legacy) without running anything that it contains.

    PyTorch's own restricted reader does it; it is told two names more, of NumPy's numbers, which training programs like to
    store beside the weights.

    Args:
        path: the file.

    Returns:
        what `torch.save` was given: names to tensors (on the CPU), numbers and dicts of these.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no such file, is cut off, compressed, or asks for a name that weights do not need.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such weights file")
    numbers = [(function, f"{module}.{name}") for module in ("numpy.core.multiarray", "numpy._core.multiarray")
               for name, function in (("scalar", _scalar),)] + [(_Dtype, "numpy.dtype")]
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise _Refused("its parts are compressed, which torch never does")
                if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                    raise _Refused("its parts overlap")
        with torch.serialization.safe_globals(numbers):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # damaged bytes can make torch raise nearly every type
        wanted = re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(error))
        said = (f"it asks for {wanted[1]}, which weights do not need" if wanted else
                str(error) if isinstance(error, _Refused) else "it is damaged or of another kind")
        raise DataError(f"{path}: not a .pth file that can be read safely ({said}); fetch it again from its authors") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__} instead of named weights; give a file of a state_dict")
    return content
