"""Check a folder of saliency maps, or make them with a saliency network of your own choice.

    python -m data_prep.saliency check data/voc12/VOC2012 --split train_aug
    python -m data_prep.saliency make data/voc12/VOC2012 --split train_aug --network network.onnx --side 320

A saliency network is trained with pixel labels; results that use its maps must say so. The network is an ONNX file: such a
file holds nothing but arithmetic. TorchScript and torch.export archives can carry code, so they are not read; export a torch
network with torch.onnx.export, or call `make_saliency` from Python with any function. Running ONNX needs
`pip install -e '.[saliency]'`.
"""

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.writing import write_new
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset, read_classes, read_split
from wsss_lib.data.saliency import check_saliency

FOLDER = "saliency_map"
Network = Callable[[np.ndarray], np.ndarray]


def onnx_network(path: Path | str) -> Network:
    """Open a saliency network.

    Args:
        path: of an ONNX file with one input.

    Returns:
        a function from float32 (1, 3, S, S) to the network's first output.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, or one that cannot be used.
        ImportError: onnxruntime is not installed.

    Explained in notebook 30, section "Pseudo-labels with saliency".
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(
            f"{path}: a saliency network is an .onnx file; export a torch network with torch.onnx.export (its own "
            "archives can carry code and are not read)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such network; give the path of an .onnx file")
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("making saliency maps needs the package onnxruntime: pip install -e '.[saliency]'") from None
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (name,) = [entry.name for entry in session.get_inputs()]
    except Exception as error:  # onnxruntime raises its own types
        raise ValueError(f"{path}: not an ONNX network with one input ({str(error).splitlines()[0]})") from None
    return lambda batch: session.run(None, {name: batch})[0]


def make_saliency(
    data: SegmentationDataset,
    network: Network,
    folder: Path,
    side: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    logits: bool = False,
) -> int:
    """Write `ID.png` for every image that has none yet.

    Args:
        data: the split.
        network: float32 (1, 3, side, side) to one map (..., h, w), 1 where salient.
        folder: for the maps.
        side: of the square that images are resized to.
        mean, std: of the normalization, RGB in 0..1.
        logits: the network's output needs a sigmoid.

    Returns:
        the number of maps made now.

    Raises:
        ValueError: the network's output is not a map, or leaves 0..1; nothing is written for that image.

    Explained in notebook 30, section "Pseudo-labels with saliency".
    """
    missing = [image_id for image_id in data.ids if not (folder / f"{image_id}.png").is_file()]
    for image_id in tqdm(missing, desc="saliency maps", unit="image", disable=None):
        image = data.image(image_id)
        array = transforms.normalize(transforms.resize_square(image, side), mean, std)
        answer = np.asarray(network(np.ascontiguousarray(array.transpose(2, 0, 1))[None]), np.float32)
        if answer.ndim < 2 or answer.size != answer.shape[-1] * answer.shape[-2]:
            raise ValueError(
                f"{image_id}: the network's first output has the shape {answer.shape}; one map (1, 1, h, w) is needed"
            )
        scores: np.ndarray = answer.reshape(answer.shape[-2:])
        scores = 1 / (1 + np.exp(-scores)) if logits else scores
        if not (scores.min() >= -1e-3 and scores.max() <= 1.001):
            raise ValueError(
                f"{image_id}: the network's answer ranges over {scores.min():.3g}..{scores.max():.3g} instead of "
                "0..1; give --logits if it lacks a sigmoid"
            )
        full = np.asarray(Image.fromarray(scores).resize(image.size, Image.Resampling.BILINEAR))
        gray = Image.fromarray((np.clip(full, 0, 1) * 255).round().astype(np.uint8))
        content = io.BytesIO()
        gray.save(content, format="PNG")
        write_new(folder / f"{image_id}.png", content.getvalue())
    return len(missing)


def open_split(root: Path, split: str) -> SegmentationDataset:
    """Open the images of a list; no label table is needed.

    Args:
        root: devkit folder.
        split: name of the list.

    Returns:
        the split, with labels that are all 0.

    Raises:
        DataError: there is no such list.
    """
    ids, classes = read_split(root, split), read_classes(root)
    return SegmentationDataset(root, split, ids, classes, np.zeros((len(ids), len(classes)), np.uint8))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; None: those of the process.

    Raises:
        SystemExit: a map or the network is missing or cannot be used; the text says which.
    """
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.saliency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="is there a map of the right size and kind for every image?")
    make = commands.add_parser("make", help="make the maps that are missing")
    for command in (check, make):
        command.add_argument("root", type=Path, help="devkit folder, with JPEGImages and ImageSets")
        command.add_argument("--split", default="train", help="list of images (default: train)")
        command.add_argument("--folder", default=FOLDER, help=f"folder of the maps below ROOT (default: {FOLDER})")
    make.add_argument("--network", type=Path, required=True, metavar="FILE.onnx")
    make.add_argument("--side", type=int, default=320, help="the network's input is side x side pixels (default: 320)")
    make.add_argument("--mean", type=float, nargs=3, default=(0.485, 0.456, 0.406), help="RGB in 0..1 (default: ImageNet's)")
    make.add_argument("--std", type=float, nargs=3, default=(0.229, 0.224, 0.225), help="RGB in 0..1 (default: ImageNet's)")
    make.add_argument("--logits", action="store_true", help="apply a sigmoid to the network's answer")
    options = parser.parse_args(arguments)
    try:
        data = open_split(options.root, options.split)
        if options.command == "make":
            network = onnx_network(options.network)
            made = make_saliency(
                data, network, options.root / options.folder, options.side, options.mean, options.std, options.logits
            )
            print(f"{options.root / options.folder}: {made} maps made")
        check_saliency(data, options.root / options.folder)
    except (ImportError, OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.root / options.folder}: a map for each of the {len(data)} images of {options.split}")


if __name__ == "__main__":
    main()
