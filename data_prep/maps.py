"""Import the localization maps that the authors' programs wrote or that they distribute, as a finished stage `maps`.

    python -m data_prep.maps import --format amn result/cam --preset configs/voc12.yaml --method official_amn

reads `ID.npy` of every training image and writes `ID.npz` below `runs/voc12/official_amn/seed0/maps`. Notebooks 70, 80 and 90
then go on from there with `-p method official_amn`. Formats:

    irn     IRN, RIB, VWE: a pickled dict with `keys` and `cam`, the maps at stride 4
    amn     AMN: the same with the background in front
    psa     AffinityNet, SC-CAM: a pickled dict from class to a map at full size
    drs     DRS: bytes (C, S, S), the image resized to a square

With `map_size: image`, as in the presets of VOC and COCO, full-size maps are kept if a file holds them.

The reader of pickles knows the few names that such files need and runs nothing.
"""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from data_prep.restricted import read_npy
from wsss_lib.config import Config
from wsss_lib.core.files import image_size, write_maps
from wsss_lib.core.parallel import cpu_workers, for_each_image
from wsss_lib.core.scoring import score_maps
from wsss_lib.core.stage import Job, Stage, run
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.errors import DataError
from wsss_lib.ops.merging import stride4_size
from wsss_lib.parameters import project_path
from wsss_lib.presets import read_preset

Maps = tuple[np.ndarray, ...]  # classes (K,), scores (K, h, w) and, if the file holds them, full-size maps (K, H, W)


class _Unfit(ValueError):
    """The content does not have the form that the format needs; the message says why."""


def _integers(values: Any) -> np.ndarray:
    try:
        values = np.asarray(values)
    except ValueError:  # lists of different lengths
        raise _Unfit("its classes are no list of whole numbers") from None
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise _Unfit("its classes are no list of whole numbers")
    return values.astype(np.int64)


def _floats(values: Any, ndim: int) -> np.ndarray:
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != ndim:
        raise _Unfit(f"a map is not an array of {ndim} axes")
    return values.astype(np.float32)


def from_irn(content: Any, size: tuple[int, int], background: bool = False) -> Maps:
    """Read the dict that IRN, RIB and VWE write, or AMN.

    Args:
        content: with `keys`, 0-based classes (K,), and `cam`, float (K, h, w) at stride 4; images without a class have no
            `cam`.
        size: (H, W) of the image.
        background: AMN's form, whose `cam` has one map more, the background's, in front.

    Returns:
        classes int64 (K,), scores float32 (K, h, w), and its `high_res` (K, H, W) if it has one.

    Raises:
        ValueError: another form.
    """
    if not isinstance(content, dict) or "keys" not in content:
        raise _Unfit("it has no entry 'keys'")
    classes = _integers(content["keys"])
    if not classes.size:
        return classes, np.zeros((0, *stride4_size(size)), np.float32)
    if "cam" not in content:
        raise _Unfit("it has no entry 'cam'")
    full = [_floats(content["high_res"], 3)[int(background) :]] if "high_res" in content else []
    return classes, _floats(content["cam"], 3)[int(background) :], *full


def from_psa(content: Any, size: tuple[int, int]) -> Maps:
    """Read the dict that AffinityNet and SC-CAM write: 0-based class to a map float (H, W).

    Args:
        content: the dict.
        size: (H, W) of the image.

    Returns:
        classes int64 (K,), scores float32 (K, h, w), means over blocks of 4 x 4 pixels, and these pixels (K, H, W).

    Raises:
        ValueError: another form, or maps that hold only 0 and 255, as SC-CAM's published program leaves them.
    """
    if not isinstance(content, dict):
        raise _Unfit("it holds no dict from class to map")
    classes = _integers(list(content))
    maps = [_floats(value, 2) for value in content.values()]
    if any(value.shape != size for value in maps):
        raise _Unfit(f"a map of {maps[0].shape[0]}x{maps[0].shape[1]} does not belong to an image of {size[0]}x{size[1]}")
    if maps and np.max(maps) > 1 and np.isin(maps, (0, 255)).all():
        raise _Unfit(
            "it holds only 0 and 255: SC-CAM's published program overwrites its maps while it draws them, and the "
            "scores are lost"
        )
    return _with_blocks(classes, np.stack(maps) if maps else np.zeros((0, *size), np.float32))


def from_drs(content: Any, size: tuple[int, int]) -> Maps:
    """Read the bytes that DRS writes: floor(255 M) of every class, 0 for classes absent from the label.

    Args:
        content: uint8 (C, S, S); the image was resized to a square.
        size: (H, W) of the image.

    Returns:
        classes int64 (K,) that have a score somewhere; scores float32 (K, h, w), means over blocks of 4 x 4 pixels; these
        pixels (K, H, W).

    Raises:
        ValueError: another form.
    """
    if not isinstance(content, np.ndarray) or content.dtype != np.uint8 or content.ndim != 3:
        raise _Unfit("it holds no bytes of three axes")
    classes = np.flatnonzero(content.any((1, 2)))
    maps = torch.from_numpy(content[classes].astype(np.float32) / 255)
    if not len(classes):
        return _with_blocks(classes, np.zeros((0, *size), np.float32))
    # back from the square in the way the image was resized to it, pixel by pixel
    return _with_blocks(classes, F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0].numpy())


def _with_blocks(classes: np.ndarray, maps: np.ndarray) -> Maps:
    """Return the classes, the means of blocks of 4 x 4 pixels, and the full-size maps themselves."""
    if not len(classes):  # torch cannot pool an empty tensor
        return classes, np.zeros((0, *stride4_size(maps.shape[1:])), np.float32), maps
    blocks = F.avg_pool2d(torch.from_numpy(np.ascontiguousarray(maps))[None], 4, ceil_mode=True)[0]
    return classes, blocks.numpy(), maps


FORMATS: dict[str, Callable[[Any, tuple[int, int]], Maps]] = {
    "irn": from_irn,
    "rib": from_irn,
    "vwe": from_irn,
    "amn": partial(from_irn, background=True),
    "psa": from_psa,
    "sccam": from_psa,
    "drs": from_drs,
}


def import_map(
    image_id: str, folder: Path, data: SegmentationDataset, name: str, output: Path, keep_full: bool = False
) -> None:
    """Convert the map of one image.

    Args:
        image_id: of the image.
        folder: of the authors' `ID.npy`.
        data: the data set, which has the image.
        name: of the format, one of `FORMATS`.
        output: folder for `ID.npz`.
        keep_full: keep full-size maps, if the file holds them.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it cannot be read safely, is of another format or belongs to another image or class list.
    """
    path, size = folder / f"{image_id}.npy", image_size(data.image_path(image_id))[::-1]
    content = read_npy(path, tensors=True)
    try:
        classes, scores, *full = FORMATS[name](content, size)
        if scores.shape != (len(classes), *stride4_size(size)):
            raise _Unfit(f"{len(classes)} classes and maps {scores.shape} do not belong to an image of {size[0]}x{size[1]}")
        if len(set(classes.tolist())) != len(classes) or ((classes < 0) | (classes >= data.num_classes)).any():
            raise _Unfit(f"its classes {classes.tolist()} are not different numbers below {data.num_classes}")
        if any(maps.shape != (len(classes), *size) for maps in full):
            raise _Unfit(f"its maps of full size do not belong to an image of {size[0]}x{size[1]}")
        if not all(((maps >= -1e-3) & (maps <= 1 + 1e-3)).all() for maps in (scores, *full)):  # also refuses NaN
            raise _Unfit("its scores do not lie between 0 and 1")
    except _Unfit as error:
        raise DataError(
            f"{path}: no map of format {name} for this data set ({error}); give the format and the data set of the "
            "program that wrote it"
        ) from None
    order = np.argsort(classes)
    kept = [maps[order].clip(0, 1) for maps in full] if keep_full else []
    write_maps(output / f"{image_id}.npz", classes[order], scores[order].clip(0, 1), size, *kept)


def import_maps(folder: Path, name: str, config: Config) -> str:
    """Convert the maps of all training images and finish the stage `maps`; existing files are kept.

    Args:
        folder: of the authors' `ID.npy`.
        name: of the format, one of `FORMATS`.
        config: gives the data set, method and seed, which name the stage's folder.

    Returns:
        a sentence about the result; with the maps' score if the data set has masks.

    Raises:
        FileNotFoundError: a map is missing; nothing is written then.
        DataError: as `import_map`.
    """
    data = open_data(config, config.train_split)
    paths = [folder / f"{image_id}.npy" for image_id in data.ids]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: the map is missing, and {len(missing) - 1} others of split {data.split!r}; "
            "give the folder that holds one .npy for each image, or a preset with their train_split"
        )
    identity = hashlib.sha256("".join(f"{path.name} {path.stat().st_size}\n" for path in paths).encode()).hexdigest()

    def make(job: Job) -> int:
        keep_full = job.config.map_size == "image"
        work = partial(import_map, folder=folder, data=data, name=name, output=job.folder, keep_full=keep_full)
        return for_each_image(
            data.ids, lambda image_id: job.folder / f"{image_id}.npz", work, "maps", config, cpu_workers(config)
        )

    score_data = open_data(config, config.score_split)
    has_masks = all(score_data.mask_path(image_id).is_file() for image_id in score_data.ids)
    stage = run(
        Stage(
            "maps",
            f"of method {config.method!r}",
            make,
            files=lambda job: {"files": f"{name} {identity}"},
            reads=("map_size",),
            score=score_maps if has_masks else None,
            method=config.method,
        ),
        config,
    )
    scores = [
        f"; mIoU {row['miou']:.1f} % at threshold {row['threshold']:.2f}, which the masks chose, on {row['images']} "
        f"images of {row['split']}"
        for row in stage.metrics
    ]
    return f"{stage.folder}: maps of {len(data)} images{''.join(scores)}\ngo on with -p method {config.method}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.maps", description=__doc__.splitlines()[0])
    command = parser.add_subparsers(dest="command", required=True).add_parser("import", help="the authors' .npy to a stage")
    command.add_argument("folder", type=Path, help="folder of ID.npy")
    command.add_argument("--format", required=True, choices=list(FORMATS), help="whose files they are")
    command.add_argument("--preset", type=Path, default=project_path("configs/voc12.yaml"), help="the data set; default: voc12")
    command.add_argument("--method", required=True, help="name for the results, e.g. official_irn")
    command.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        values = read_preset(options.preset) | {"method": options.method, "seed": options.seed}
        print(import_maps(options.folder, options.format, Config.from_values(values)))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
