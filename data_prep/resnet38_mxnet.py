"""Convert the authors' ImageNet weights of ResNet-38 (an MXNet file) to safetensors; MXNet is not needed.

    python -m data_prep.resnet38_mxnet ilsvrc-cls_rna-a1_cls1000_ep-0001.params data/resnet38.safetensors

MXNet's file of named arrays, all numbers little-endian:

    uint64 0x112, uint64 0, uint64 count, then `count` arrays:
        uint32 magic     0xF993FAC9 or 0xF993FACA: int32 storage type (0: dense) follows; 0xF993FAC8: it does not;
                         any other value is itself the number of axes, and the sides are uint32 (the oldest form)
        uint32 number of axes, int64 sides, int32 device type, int32 device id, int32 type (0: float32)
        the values, last axis fastest
    uint64 count, then for each array the uint64 length of its name and the name
"""

import argparse
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from data_prep.writing import write_new
from wsss_lib.errors import DataError
from wsss_lib.nets.resnet38 import ResNet38

LIST_MAGIC = 0x112
MAGIC_WITHOUT_STORAGE, MAGICS_WITH_STORAGE = 0xF993FAC8, (0xF993FAC9, 0xF993FACA)
TYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")  # by MXNet's type flag
WORDS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var", "weight": "weight"}


class _Reader:
    """Takes numbers from a file and never reads beyond its end."""

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size
        self.file = open(path, "rb")

    def take(self, form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, self.bytes(struct.calcsize("<" + form)))

    def bytes(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise self.broken(f"it ends where {count} more bytes should follow")
        return self.file.read(count)

    def broken(self, reason: str) -> DataError:
        return DataError(f"{self.path}: not a file of MXNet parameters ({reason}); fetch it again")


def read_mxnet(path: Path | str) -> dict[str, np.ndarray]:
    """Read all named arrays of an MXNet parameter file.

    Args:
        path: of the file.

    Returns:
        name, e.g. "arg:conv1a_weight", to array.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not such a file, is truncated, or holds sparse arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such MXNet parameter file")
    reader = _Reader(path)
    with reader.file:
        magic, _, count = reader.take("QQQ")
        if magic != LIST_MAGIC:
            raise reader.broken(f"it begins with {magic:#x} instead of {LIST_MAGIC:#x}")
        arrays = [_read_array(reader) for _ in range(count)]
        (names,) = reader.take("Q")
        if names != count:
            raise reader.broken(f"it has {count} arrays and {names} names")
        texts = [reader.bytes(*reader.take("Q")) for _ in range(count)]
    try:
        return dict(zip((text.decode("ascii") for text in texts), arrays, strict=True))
    except UnicodeDecodeError:
        raise reader.broken("a name is not text") from None


def _read_array(reader: _Reader) -> np.ndarray:
    (magic,) = reader.take("I")
    if magic in MAGICS_WITH_STORAGE or magic == MAGIC_WITHOUT_STORAGE:
        if magic != MAGIC_WITHOUT_STORAGE and reader.take("i") != (0,):
            raise reader.broken("an array is sparse")
        (axes,), side = reader.take("I"), "q"
    else:
        axes, side = magic, "I"
    if not 1 <= axes <= 8:
        raise reader.broken(f"an array has {axes} axes")
    shape = reader.take(f"{axes}{side}")
    _, _, flag = reader.take("iii")
    if not 0 <= flag < len(TYPES) or min(shape) < 1:
        raise reader.broken(f"an array has type {flag} and shape {shape}")
    kind = np.dtype(TYPES[flag])
    count = 1
    for length in shape:  # in Python's integers, which do not overflow
        count *= length
    return np.frombuffer(reader.bytes(count * kind.itemsize), kind).reshape(shape)


def torch_key(name: str) -> str | None:
    """Return ResNet-38's parameter for a name of the MXNet file; None for what does not belong to the trunk.

    >>> torch_key("arg:bn4b5_branch2b1_gamma"), torch_key("arg:res6a_branch2b2_weight"), torch_key("aux:bn7_moving_var")
    ('b4_5.bn_branch2b1.weight', 'b6.conv_branch2b2.weight', 'bn7.running_var')
    """
    first, _, rest = name.split(":")[-1].partition("_")
    branch, _, word = rest.partition("_") if rest.startswith("branch") else ("", "", rest)
    if word not in WORDS or first.startswith("linear"):
        return None
    if not branch:
        return f"{first}.{WORDS[word]}"  # conv1a, bn7
    kind, block = ("conv", first.removeprefix("res")) if first.startswith("res") else ("bn", first.removeprefix("bn"))
    block = block[:1] + (f"_{block[2:]}" if block[1:2] == "b" else "")  # 4a: the first block, 4b5: the fifth after it
    return f"b{block}.{kind}_{branch}.{WORDS[word]}"


def convert(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Rename the arrays of the MXNet file and check them against the trunk, whose width they determine.

    Args:
        arrays: from `read_mxnet`; the classifier `linear1000` is left out.

    Returns:
        parameter name to float32 tensor, everything that `ResNet38` needs and nothing else.

    Raises:
        DataError: an array is missing, unexpected, or of another shape.
    """
    found = {key: torch.tensor(np.asarray(array, np.float32)) for name, array in arrays.items() if (key := torch_key(name))}
    if "conv1a.weight" not in found:
        raise DataError("the file has no array conv1a_weight; it holds another network than ResNet-38")
    with torch.device("meta"):
        state = ResNet38(width=len(found["conv1a.weight"])).state_dict()
    expected = {key: value.shape for key, value in state.items() if not key.endswith("num_batches_tracked")}
    missing, foreign = [key for key in expected if key not in found], [key for key in found if key not in expected]
    wrong = [key for key in expected if key in found and found[key].shape != expected[key]]
    if missing or foreign or wrong:
        problem = (
            f"{len(missing)} arrays are missing (first: {missing[0]})"
            if missing
            else f"{len(foreign)} arrays are foreign (first: {foreign[0]})"
            if foreign
            else f"{wrong[0]} has shape {tuple(found[wrong[0]].shape)} instead of {tuple(expected[wrong[0]])}"
        )
        raise DataError(f"the file does not hold ResNet-38: {problem}")
    return {key: found[key] for key in expected}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.resnet38_mxnet", description=__doc__.splitlines()[0])
    parser.add_argument("params", type=Path, help="the authors' file, e.g. ilsvrc-cls_rna-a1_cls1000_ep-0001.params")
    parser.add_argument("output", type=Path, help="the file to write, e.g. data/resnet38.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there with other content")
    options = parser.parse_args(arguments)
    try:
        tensors = convert(read_mxnet(options.params))
        write_new(options.output, save(tensors), options.overwrite, [options.params])
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.output}: {len(tensors)} arrays, {sum(value.numel() for value in tensors.values()):,} numbers")


if __name__ == "__main__":
    main()
