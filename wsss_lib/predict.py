"""Segment new photographs, which need no labels, with a trained DeepLab: `python -m wsss_lib.predict RUN PHOTOGRAPHS OUT`.

`OUT` gets `masks/NAME.png` at the photographs' own size, `overlays/NAME.jpg`, `predictions.csv` and `index.html`, the most
doubtful photograph first. A command that was stopped resumes where it was.
"""

import argparse
import csv
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

from wsss_lib.config import Config
from wsss_lib.contact_sheet import Entry, write_overlay, write_page
from wsss_lib.core import training
from wsss_lib.core.files import image_size, is_junk, read_image, read_json, sha256, write_json, write_mask
from wsss_lib.core.progress import progress
from wsss_lib.core.stage import open_stage
from wsss_lib.core.texts import is_one_line
from wsss_lib.data.dataset import read_classes
from wsss_lib.errors import DataError
from wsss_lib.ops.crf import crf_segmentation
from wsss_lib.parameters import Settings, project_path
from wsss_lib.presets import preset_config
from wsss_lib.segment.deeplab import DEEPLAB, build_deeplab, class_probabilities

LONGEST = 500  # pixels of the longer side at which the network sees a photograph, as in VOC
COLUMNS = ("photograph", "mask", "classes", "doubt")


@dataclass(frozen=True)
class Segmenter:
    """A trained network and what it needs.

    Attributes:
        net: on its device, in evaluation mode.
        config: its parameters.
        classes: names of the C foreground classes.
        weights: its file.
    """

    net: nn.Module
    config: Settings | Config
    classes: tuple[str, ...]
    weights: Path


def open_run(run: Path, device: str = "auto") -> Segmenter:
    """Open the DeepLab of a finished run.

    Args:
        run: the folder of the stage, `runs/mine/cam/seed0/deeplab`, or one above it that holds no other finished DeepLab.

    Raises:
        DataError: there is none, or more than one.
    """
    found = sorted(path.parent for path in run.resolve().rglob("run.json") if path.parent.name == DEEPLAB.name)
    if len(found) != 1:
        raise DataError(
            f"{run}: no DeepLab has been trained there; give the folder of a finished run, or a file of weights"
            if not found
            else f"{run}: there are {len(found)} networks; give the folder of one of them, e.g. {found[0]}"
        )
    *root, dataset, method, seed, _ = found[0].parts
    if not re.fullmatch(r"seed\d+", seed):
        raise DataError(f"{found[0]}: was taken out of its run; keep its place in RUN/METHOD/seedN as it was made")
    values = {"runs_root": str(Path(*root)), "dataset": dataset, "method": method, "seed": int(seed.removeprefix("seed"))}
    job = open_stage(DEEPLAB, Config.from_values(values | {"device": device}))
    recorded = read_json(job.folder / "begun.json").get("classes")
    classes = tuple(recorded) if recorded else job.data.classes  # an older run has no names
    return Segmenter(_built(job.config, classes, job.weights, job.whole), job.config, classes, job.weights)


def open_weights(weights: Path, preset: str, data_root: str = "", device: str = "auto") -> Segmenter:
    """Open a file of DeepLab's weights, e.g. one that `data_prep.checkpoints` has converted.

    Args:
        preset: the preset that describes the network.
        data_root: data set whose classes it knows; empty: the preset's.

    Raises:
        FileNotFoundError: there is no such file or preset.
        ValueError: the weights belong to another network.
    """
    config = preset_config(preset, device=device, **({"data_root": data_root} if data_root else {}))
    classes = read_classes(project_path(config.data_root))
    return Segmenter(_built(config, classes, weights, config), config, classes, weights)


def _built(config: Any, classes: Sequence[str], weights: Path, whole: Config) -> nn.Module:
    return build_deeplab(config, len(classes), Path(), weights).to(training.device_of(whole)).eval()


def photographs_in(folder: Path) -> tuple[dict[str, Path], Counter[str]]:
    """Find the photographs of a folder and those below it.

    Returns:
        name of the mask, without its ending, to the photograph; and the endings of all files that are not pictures, counted.

    Raises:
        DataError: there is no photograph.
    """
    paths, others = [], Counter[str]()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not is_junk(path.relative_to(folder))):
        try:
            image_size(path)
            paths.append(path)
        except DataError:
            others[path.suffix.lower() or "no ending"] += 1
    if not paths:
        raise DataError(f"{folder}: no photographs were found in this folder")
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    twice = {name for name, count in Counter(names).items() if count > 1}  # a.jpg beside a.png
    return {
        path.relative_to(folder).as_posix() if name in twice else name: path for name, path in zip(names, paths, strict=True)
    }, others


def segment(segmenter: Segmenter, image: Image.Image, longest: int = LONGEST, crf: bool = False) -> tuple[np.ndarray, float]:
    """Segment one photograph.

    Args:
        image: RGB, (H, W).
        longest: a larger photograph is resized for the network until its longer side has so many pixels.
        crf: refine the outlines, at that size.

    Returns:
        the mask, uint8 (H, W) at the photograph's size; the doubt in [0, 1], one minus the mean probability of the chosen
        classes.
    """
    factor = min(1.0, longest / max(image.size))
    small = image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)
    probabilities = class_probabilities(segmenter.net, small, segmenter.config)
    doubt = float(1 - probabilities.max(0).mean())
    if crf:
        mask = crf_segmentation(np.array(small), probabilities).astype(np.uint8)
        return np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)), doubt
    best, mask = None, np.zeros((image.height, image.width), np.uint8)
    for label, values in enumerate(torch.from_numpy(probabilities)):  # class by class, as a large photograph fills the memory
        large = F.interpolate(values[None, None], size=mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy()
        if best is None:
            best = large
        else:
            mask[large > best] = label
            best = np.maximum(best, large)
    return mask, doubt


def predict(segmenter: Segmenter, photographs: Path, out: Path, longest: int = LONGEST, crf: bool = False) -> int:
    """Segment all photographs of a folder, or those that an earlier call left over.

    A damaged photograph is named at the end and left out.

    Args:
        out: a new folder, or that of an earlier call with the same network and settings; not below `photographs`.

    Returns:
        the number of photographs in `out`.

    Raises:
        DataError: there are no photographs, or `out` holds something else.
    """
    if out.resolve().is_relative_to(photographs.resolve()):
        raise DataError(f"{out}: masks below the folder of photographs would be taken for photographs; name another folder")
    found, others = photographs_in(photographs)
    if others:
        endings = ", ".join(f"{count} of {ending}" for ending, count in sorted(others.items()))
        print(f"left out, as they cannot be opened as pictures: {endings}")
    settings = {"weights": sha256([segmenter.weights], segmenter.weights.parent), "longest": longest, "crf": crf}
    record = out / "predict.json"
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir()) and _settings(record) != settings):
        raise DataError(
            f"{out}: the folder holds other files, or masks of another network or other settings; give a new folder"
        )
    write_json(record, settings)
    rows, damaged = _rows(out / "predictions.csv"), []
    with open(out / "predictions.csv", "a", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        if not rows:
            table.writerow(COLUMNS)
        for name in progress([name for name in found if name not in rows], "segmentation"):
            try:
                if not is_one_line(name):
                    raise DataError(f"{name!r}: the name has characters that no table can hold; rename it")
                image = ImageOps.exif_transpose(read_image(found[name]))
            except DataError as error:
                damaged.append(str(error))
                continue
            mask, doubt = segment(segmenter, image, longest, crf)
            write_mask(out / "masks" / f"{name}.png", mask)
            write_overlay(out / "overlays" / f"{name}.jpg", image, mask)
            shown = [segmenter.classes[label - 1] for label in np.unique(mask) if label]
            rows[name] = [name, f"masks/{name}.png", "; ".join(shown), f"{doubt:.4f}"]
            table.writerow(rows[name])
            file.flush()
    for sentence in damaged:
        print(f"left out: {sentence}")
    _write_page(out, photographs.name, segmenter.classes, [rows[name] for name in found if name in rows])
    return len(found) - len(damaged)


def _settings(record: Path) -> Any:
    """Return what an earlier call noted; None: it was not by this program."""
    try:
        return read_json(record)
    except (OSError, DataError):
        return None


def _rows(path: Path) -> dict[str, list[str]]:
    """Return the finished rows of an earlier call; a line that a killed call left half-written is cut off."""
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8", newline="")
    return {row[0]: row for row in list(csv.reader(io.StringIO(whole, newline="")))[1:] if len(row) == len(COLUMNS)}


def _write_page(out: Path, name: str, classes: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    entries = [Entry(row[0], f"overlays/{row[0]}.jpg", tuple(filter(None, row[2].split("; "))), float(row[3])) for row in rows]
    words = f"{len(rows)} photographs, the most doubtful first. The masks lie in masks/, at the photographs' own size."
    write_page(out / "index.html", f"Segmentation of {name}", words, classes, entries)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the program with a sentence when it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m wsss_lib.predict", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run, or a .safetensors file of DeepLab's weights")
    parser.add_argument("photographs", type=Path, help="folder of photographs")
    parser.add_argument("out", type=Path, help="folder for masks, overlays and the page")
    parser.add_argument("--crf", action="store_true", help="refine the outlines with the dense CRF")
    parser.add_argument("--longest", type=int, default=LONGEST, help=f"longer side for the network; default {LONGEST}")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--preset", default="voc12", help="the network's description, with a file of weights; default voc12")
    parser.add_argument("--data", default="", help="data set whose classes the network knows, with a file of weights")
    options = parser.parse_args(arguments)
    try:
        if not options.photographs.is_dir():
            raise DataError(f"{options.photographs}: there is no such folder of photographs")
        if options.run.suffix in (".pth", ".pt", ".bin", ".ckpt", ".pkl"):
            raise DataError(f"{options.run}: convert it first, with python -m data_prep.checkpoints convert; it says how")
        if options.longest < 32:
            raise DataError(f"--longest {options.longest}: give at least 32 pixels")
        segmenter = (
            open_weights(options.run, options.preset, options.data, options.device)
            if options.run.is_file()
            else open_run(options.run, options.device)
        )
        count = predict(segmenter, options.photographs, options.out, options.longest, options.crf)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{count} photographs segmented: {options.out / 'index.html'} shows them, {options.out / 'masks'} holds the masks")


if __name__ == "__main__":
    main()
