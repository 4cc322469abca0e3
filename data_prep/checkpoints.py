"""Convert weights between the authors' files and ours.

    python -m data_prep.checkpoints convert --format irn-cam res50_cam.pth.pth data/weights/irn_cam.safetensors
    python -m data_prep.checkpoints export --format irn-cam runs/voc12/cam/seed0/classifier/weights.safetensors cam.pth

`convert` compares every name and shape with the official layout, says in one sentence what is missing or unexpected, and prints
the parameters with which a notebook uses the result. Nothing that a file contains is run. `export` writes the `.pth` that the
authors' programs read; the only pickle that this project ever makes.
"""

import argparse
import hashlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from data_prep.restricted import is_safetensors, read_checkpoint, read_npy
from data_prep.weight_layouts import Layout, Shape, layouts
from data_prep.writing import write_new
from wsss_lib.core.files import read_json, read_tensors
from wsss_lib.errors import DataError

EXPORTS = ("irn-cam", "irn", "deeplab-v2", "deeplab-v3plus")
HIGHEST = {"C": 254, "K": 255, "S": 100, "W": 4096}  # values of a layout's letters; masks have 8 bits
# Its input is blue, green, red in Caffe's form, red, green, blue in ours.
CAFFE_STEM = {"deeplab-v2": "backbone.conv1.weight", "deeplab-init": "conv1.weight"}


class Comparison(NamedTuple):
    """What a file contains of a layout.

    Attributes:
        found: official name to tensor, second names resolved.
        missing, foreign: names.
        wrong: for each weight that does not fit its name with the reason.
        letters: value of the letters in the layout's shapes, e.g. {"C": 20}.
    """

    found: dict[str, Tensor]
    missing: list[str]
    foreign: list[str]
    wrong: list[str]
    letters: dict[str, int]

    @property
    def problems(self) -> int:
        """Return the number of names that disagree; 0: the file fits."""
        return len(self.missing) + len(self.foreign) + len(self.wrong)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} weights are {word} (first: {names[0]})"
            for word, names in (("missing", self.missing), ("foreign", self.foreign))
            if names
        ]
        return " and ".join(parts + self.wrong[:1])


def convert(
    content: dict[str, Any], name: str, source: str, codebook: Tensor | None = None, entry: str = ""
) -> tuple[dict[str, Tensor], Layout, dict[str, int]]:
    """Turn the content of an official file into our names.

    Args:
        content: what the file holds: the weights, or a dict that has them in one of its entries, whatever its name; all names
            may have one more prefix, as `module.` of DataParallel or `model.` of Lightning.
        name: of the format, one of `layouts()`.
        source: the file's name, for messages.
        codebook: float (W, 2048), VWL-M's visual words, which its authors keep in a separate file.
        entry: the one that holds the weights; empty: the one that fits.

    Returns:
        our name to tensor (floats as float32); the layout that fits; the values of its letters, e.g. {"C": 20}.

    Raises:
        DataError: unknown format, no entry that holds weights or several, a weight that is missing, unexpected, of another
            shape, not finite, or unlike its second copy, or a codebook that is missing or not wanted.
    """
    if name not in layouts():
        raise DataError(f"unknown format {name!r}; take one of {', '.join(layouts())}")
    weights = _weights(content, layouts()[name], source, entry)
    layout, comparison = _closest(weights, layouts()[name])
    if comparison.problems:
        others = [other for other in layouts() if not _closest(weights, layouts()[other])[1].problems]
        hint = f"; its weights are those of format {others[0]}" if others else "; was it made by another program or version?"
        raise DataError(f"{source}: not the weights of {layout.network}: {comparison}{hint}")
    result = {
        ours: _ready(comparison.found[official], official, source)
        for official, (_, ours) in layout.keys.items()
        if official in comparison.found
    }
    if "codebook" in result:
        result["codebook"] = result["codebook"].flatten(1)  # (W, 2048, 1, 1) to (W, 2048)
    if name == "vwe":
        result |= _separate_codebook(layout, comparison.letters["W"], codebook, source)
    if stem := CAFFE_STEM.get(name):
        result[stem] = result[stem].flip(1)
    return result, layout, comparison.letters


def export(tensors: dict[str, Tensor], name: str, source: str) -> dict[str, Any]:
    """Turn weights of this project into the content of an official file.

    Args:
        tensors: our name to tensor.
        name: one of `EXPORTS`.
        source: the file's name, for messages.

    Returns:
        what the official program expects from `torch.load`; second names share the tensors of the first.

    Raises:
        DataError: unknown format, or weights of another network.
    """
    if name not in EXPORTS:
        raise DataError(f"unknown format {name!r}; weights can be exported as {', '.join(EXPORTS)}")
    layout = layouts()[name][0]
    ours = {new: official for official, (_, new) in layout.keys.items()}
    comparison = _compare({ours.get(key, key): value for key, value in tensors.items()}, layout)
    if comparison.problems:
        raise DataError(f"{source}: not the weights of {layout.network}: {comparison}; only published sizes can be exported")
    content = {official: comparison.found.get(official, torch.zeros((), dtype=torch.int64)) for official in layout.keys}
    if name == "deeplab-v2":
        stem = layout.prefix + "layer1.conv1.conv.weight"
        content[stem] = content[stem].flip(1).contiguous()
    for second, first in layout.aliases.items():
        content |= {second + key.removeprefix(first): content[key] for key in layout.keys if key.startswith(first)}
    if name == "deeplab-v3plus":
        return {"cur_itrs": 0, "model_state": content, "best_score": 0.0}
    return content


def _weights(content: dict[str, Any], candidates: Sequence[Layout], source: str, entry: str) -> dict[str, Any]:
    """Return the weights of a file without the dicts and prefixes around them."""
    places = _entries(content) | ({"the file itself": content} if _has_tensors(content) else {})
    if entry:
        places = {place: weights for place, weights in places.items() if place == entry}
    if not places:
        held = ", ".join(map(str, content)) or "nothing"
        raise DataError(
            f"{source}: holds no weights{f' under {entry!r}' if entry else ''}, but {held[:200]}; give a state_dict"
        )
    bare = {
        place: min(_without_prefixes(weights), key=lambda each: _closest(each, candidates)[1].problems)
        for place, weights in places.items()
    }
    fitting = [place for place, weights in bare.items() if not _closest(weights, candidates)[1].problems]
    if len(fitting) > 1:
        raise DataError(f"{source}: holds weights under {' and '.join(fitting)}; choose one with --entry {fitting[0]}")
    if not fitting and len(bare) > 1 and not entry:
        network = candidates[0].network
        raise DataError(
            f"{source}: holds tensors under {' and '.join(bare)}, and none are all weights of {network}; see --entry"
        )
    return bare[fitting[0]] if fitting else next(iter(bare.values()))


def _has_tensors(content: Any) -> bool:
    return isinstance(content, dict) and any(isinstance(value, Tensor) for value in content.values())


def _entries(content: dict[str, Any], deeper: bool = True) -> dict[str, dict[str, Any]]:
    """Return the entries that are dicts of tensors: state_dict, model_state_dict, net, ema, model.state_dict, …"""
    found = {}
    for name, value in content.items():
        if _has_tensors(value):
            found[str(name)] = value
        elif deeper and isinstance(value, dict):
            found |= {f"{name}.{below}": weights for below, weights in _entries(value, deeper=False).items()}
    return found


def _without_prefixes(weights: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the weights unchanged, and without each prefix that all their names share."""
    yield weights
    weights = {str(key): value for key, value in weights.items() if key != "n_averaged"}  # of torch's averaged models
    while weights and len(first := {key.partition(".")[:2] for key in weights}) == 1 and "." in next(iter(first)):
        weights = {key.partition(".")[2]: value for key, value in weights.items()}
        yield weights


def _closest(weights: dict[str, Any], candidates: Sequence[Layout]) -> tuple[Layout, Comparison]:
    compared = [(layout, _compare(weights, layout)) for layout in candidates]
    return min(compared, key=lambda pair: pair[1].problems)


def _compare(weights: dict[str, Any], layout: Layout) -> Comparison:
    if layout.prefix and not any(str(key).startswith(layout.prefix) for key in weights):
        weights = {f"{layout.prefix}{key}": value for key, value in weights.items()}
    result = Comparison({}, [], [], [], {})
    first_name = {}
    for key, value in weights.items():
        official = _first_name(str(key), layout)
        if official is None:
            result.foreign.append(str(key))
        elif official and not (isinstance(value, Tensor) and value.layout == torch.strided):
            result.wrong.append(f"{key} is not a tensor")
        elif official and official not in result.found:
            result.found[official], first_name[official] = value, key
        elif official and (value.shape != result.found[official].shape or not torch.equal(value, result.found[official])):
            result.wrong.append(f"{key} and {first_name[official]}, two names of one weight, differ")
    for official, (shape, _) in layout.keys.items():
        if official not in result.found:
            if not official.endswith("num_batches_tracked"):  # torch before 1.0 did not count
                result.missing.append(official)
        elif not _fits(tuple(result.found[official].shape), shape, result.letters):
            expected = ", ".join(str(_side(side, result.letters) or side) for side in shape)
            result.wrong.append(f"{official} has shape {tuple(result.found[official].shape)} instead of ({expected})")
    return result


def _first_name(key: str, layout: Layout) -> str | None:
    """Return the name that a weight has in `layout.keys`; "" if it is to be dropped, None if it is unexpected."""
    if key in layout.keys:
        return key
    for second in sorted(layout.aliases, key=len, reverse=True):
        if key.startswith(second) and (first := layout.aliases[second] + key.removeprefix(second)) in layout.keys:
            return first
    return "" if key.startswith(layout.dropped or ("\0",)) else None


def _fits(shape: tuple[int, ...], expected: Shape, letters: dict[str, int]) -> bool:
    """Return whether a shape is the expected one, and note the values of letters that appear for the first time."""
    if len(shape) != len(expected):
        return False
    for side, wanted in zip(shape, expected, strict=True):
        if isinstance(wanted, str) and _side(wanted, letters) is None:
            if wanted == "C*S":
                letters["S"] = side // max(1, letters.setdefault("C", side))
            else:
                letters[wanted[0]] = side - 1 if wanted == "C+1" else side
        if side != _side(wanted, letters) or side < 1:
            return False
    return all(value <= HIGHEST[letter] for letter, value in letters.items())


def _side(wanted: int | str, letters: dict[str, int]) -> int | None:
    """Return the length that a side of the layout stands for; None while its letter has no value."""
    if isinstance(wanted, int):
        return wanted
    if not set(wanted) & set("CSW") <= set(letters):
        return None
    return {"C+1": letters.get("C", 0) + 1, "C*S": letters.get("C", 0) * letters.get("S", 0)}.get(wanted, letters.get(wanted))


def _ready(value: Tensor, key: str, source: str) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return value.to(torch.int64, copy=True)
    if not value.is_floating_point():
        raise DataError(
            f"{source}: {key} holds values that are no finite numbers but {value.dtype}; take a file that is not quantized"
        )
    if not torch.isfinite(value).all():
        raise DataError(f"{source}: {key} holds values that are no finite numbers; take the file of an earlier epoch")
    return value.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # a file's weights may share memory


def _separate_codebook(layout: Layout, words: int, codebook: Tensor | None, source: str) -> dict[str, Tensor]:
    inside = any(new == "codebook" for _, new in layout.keys.values())
    if inside != (codebook is None):
        raise DataError(
            f"{source}: the weights of {layout.network} "
            + (
                "hold their codebook: leave out --codebook"
                if inside
                else "lack the codebook: its authors keep it in a .npy file, give that with --codebook"
            )
        )
    if codebook is None:
        return {}
    if tuple(codebook.shape) != (words, 2048) or not codebook.is_floating_point():
        raise DataError(
            f"{source}: the codebook has shape {tuple(codebook.shape)} instead of ({words}, 2048); give the one "
            "that was saved with these weights"
        )
    return {"codebook": codebook.float(), "bank_filled": torch.tensor(True)}


def convert_file(
    path: Path, name: str, output: Path, codebook: Path | None = None, overwrite: bool = False, entry: str = ""
) -> str:
    """Convert an official file and write it as safetensors.

    Args:
        path: `.pth`; for resnet38-mxnet the MXNet parameter file.
        name: of the format, one of `layouts()`.
        output: the safetensors file to make.
        codebook: VWL-M's `.npy`.
        overwrite: replace an existing file with other content.
        entry: of the file, which holds the weights; empty: the one that fits.

    Returns:
        a sentence about the result, with the parameters for the notebook.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: as `convert`, or the file cannot be read safely, or `output` is there with other content.
    """
    if name == "resnet38-mxnet":
        from data_prep import resnet38_mxnet

        content = resnet38_mxnet.convert(resnet38_mxnet.read_mxnet(path))
    else:
        content = read_tensors(path) if is_safetensors(path) else read_checkpoint(path)
    words = torch.as_tensor(read_npy(codebook)) if codebook else None
    tensors, layout, letters = convert(content, name, str(path), words, entry)
    with open(path, "rb") as file:
        source = hashlib.file_digest(file, "sha256").hexdigest()
    # One entry: safetensors writes several in an order that changes, and the same file must give the same bytes.
    file_content = save(tensors, {"converted_from": f"{name}, SHA-256 {source}"})
    if overwrite or not _holds(output, tensors):
        write_new(output, file_content, overwrite, [path, codebook or path])
    classes = f", {letters['C']} classes" if "C" in letters else ""
    usage = layout.usage.format_map(letters).replace("FILE", shlex.quote(str(output.absolute())))
    numbers = sum(map(Tensor.numel, tensors.values()))
    return (
        f"{output}: {layout.network}{classes}, {len(tensors)} tensors, {numbers:,} numbers\n"
        f"take it with a preset of published sizes and {usage}"
    )


def _holds(path: Path, tensors: dict[str, Tensor]) -> bool:
    """Return whether a file already has these weights, whatever file they came from."""
    try:
        there = read_tensors(path)
    except (OSError, DataError):
        return False
    return there.keys() == tensors.keys() and all(torch.equal(there[key], value) for key, value in tensors.items())


def export_file(path: Path, name: str, output: Path, overwrite: bool = False) -> str:
    """Write weights of this project in the form that the authors' programs read.

    Args:
        path: safetensors file of a stage.
        name: one of `EXPORTS`.
        output: the `.pth` to make.
        overwrite: replace an existing file with other content.

    Returns:
        a sentence about the result.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: as `export`, or a DeepLab-v2 whose backbone the official program would compute differently, or `output` is
            there with other content.
    """
    record = path.parent / "begun.json"
    backbone = read_json(record)["parameters"].get("deeplab_backbone") if record.is_file() else None
    if name == "deeplab-v2" and backbone not in (None, "resnet101_caffe"):
        raise DataError(
            f"{path}: was trained with deeplab_backbone {backbone}, but the official program computes in Caffe's "
            "form and would give other results; train with -p deeplab_backbone resnet101_caffe, or export as "
            "deeplab-v3plus what was trained as that"
        )
    content = export(read_tensors(path), name, str(path))
    buffer = io.BytesIO()  # torch.save itself does not report a full disk as an OSError
    torch.save(content, buffer)
    write_new(output, buffer.getvalue(), overwrite, [path])
    names = content.get("model_state", content)
    different = len({id(value) for value in names.values()})
    return f"{output}: {layouts()[name][0].network}, {len(names)} names of {different} tensors"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.checkpoints", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("convert", help="an official file to ours (safetensors)")
    reading.add_argument("--format", required=True, choices=list(layouts()), help="whose file it is")
    reading.add_argument("--codebook", type=Path, metavar="FILE.npy", help="of VWL-M, which keeps it in a file of its own")
    reading.add_argument("--entry", default="", metavar="NAME", help="of the file, which holds the weights, if several do: ema")
    writing = commands.add_parser("export", help="ours to an official file (.pth)")
    writing.add_argument("--format", required=True, choices=EXPORTS, help="whose program is to read it")
    for command in (reading, writing):
        command.add_argument("file", type=Path)
        command.add_argument("output", type=Path)
        command.add_argument("--overwrite", action="store_true", help="replace a file that is there with other content")
    options = parser.parse_args(arguments)
    try:
        if options.command == "convert":
            print(
                convert_file(options.file, options.format, options.output, options.codebook, options.overwrite, options.entry)
            )
        else:
            print(export_file(options.file, options.format, options.output, options.overwrite))
    except (OSError, ValueError) as error:
        parser.exit(1, re.sub(r"\s+", " ", str(error)) + "\n")


if __name__ == "__main__":
    main()
