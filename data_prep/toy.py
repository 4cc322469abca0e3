"""Make the generated data set ("toy scenes") in VOC devkit layout.

    python -m data_prep.toy data/toy --seed 0 --train 1500 --val 300

Besides what VOC has (images, class and object masks, annotations, lists) the folder holds `PartMasks/ID.png` (1 body, 2 head),
`saliency_map/ID.png` (imperfect on purpose), `labels.csv`, `subcategories.csv` (the true kind of every image of the one class
that has two) and `dataset.json`, which is written last.
"""

import argparse
import csv
import io
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from data_prep.toy_scenes import CLASSES, VARIED_CLASS, Scene, draw_scene
from data_prep.voc_labels import write_labels
from data_prep.voc_xml import VocObject, write_voc_xml
from data_prep.workers import map_images
from data_prep.writing import description, write_new
from wsss_lib.core.files import IGNORE, sha256, write_atomically, write_json, write_mask
from wsss_lib.errors import DataError

VERSION = 1  # raised whenever the same seed gives other images
LISTS = (
    "ImageSets/Segmentation/train.txt",
    "ImageSets/Segmentation/val.txt",
    "ImageSets/Segmentation/trainval.txt",
    "labels.csv",
    "subcategories.csv",
)
IMAGE_FILES = (
    "JPEGImages/{}.jpg",
    "SegmentationClass/{}.png",
    "SegmentationObject/{}.png",
    "PartMasks/{}.png",
    "saliency_map/{}.png",
    "Annotations/{}.xml",
)


def make_toy_dataset(
    root: Path | str,
    seed: int = 0,
    num_train: int = 1500,
    num_val: int = 300,
    side: int = 96,
    progress: bool = True,
    workers: int | None = None,
) -> Path:
    """Make the data set, or complete one that was interrupted; a finished one is left unchanged.

    Every image has its own random generator, so the bytes do not depend on the number of workers.

    Args:
        root: the folder to fill; absent, empty, or begun with the same parameters.
        seed: other seeds give other images.
        num_train, num_val: number of images of the two lists.
        side: height and width of every image in pixels, at least 48.
        progress: show a progress bar where there is a terminal.
        workers: processes; None: up to four for a large set, this process alone for a small one.

    Returns:
        `root` as a path.

    Raises:
        ValueError: a parameter out of range, or a folder that holds something else.
        OSError: a file cannot be written; finished files stay and the same call completes it.

    Explained in notebook 02, section "The generated data set".
    """
    root = Path(root)
    for name, value, lowest in (("seed", seed, 0), ("num_train", num_train, 1), ("num_val", num_val, 1), ("side", side, 48)):
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(f"{name} must be a whole number of at least {lowest}, not {value!r}")
    if num_train + num_val > 999_999:
        raise ValueError(f"num_train + num_val must be at most 999999, as image ids have six digits, not {num_train + num_val}")
    parameters = {"seed": seed, "num_train": num_train, "num_val": num_val, "side": side, "version": VERSION}
    ids = [f"2026_{number:06d}" for number in range(1, num_train + num_val + 1)]
    if _is_finished(root, parameters, ids):
        return root

    _begin(root, parameters)
    kinds = list(map_images(partial(_make_image, root, seed, side), ids, "toy scenes", progress, workers))
    _write_lists(root, dict(zip(ids, kinds, strict=True)), num_train)
    facts = {
        "name": "toy",
        "classes": list(CLASSES),
        "ignore_index": IGNORE,
        **parameters,
        "lists_sha256": _hash_of_lists(root),
    }
    write_new(root / "dataset.json", json.dumps(facts, indent=1) + "\n")
    (root / "unfinished.json").unlink(missing_ok=True)
    return root


def _is_finished(root: Path, parameters: dict[str, int], ids: list[str]) -> bool:
    """Return whether the folder holds this data set, whole; refuse one with other parameters or changed lists."""
    path = root / "dataset.json"
    if not path.is_file():
        return False
    _compare(path, parameters)
    if description(root).get("lists_sha256") != _hash_of_lists(root):
        raise DataError(
            f"{root}: a list or label table is missing or was changed after the data set was made; delete the "
            "folder and make it again"
        )
    present = {
        folder: set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        for folder in (pattern.split("/")[0] for pattern in IMAGE_FILES)
    }
    wanted = ((pattern.split("/")[0], pattern.split("/")[1].format(image_id)) for pattern in IMAGE_FILES for image_id in ids)
    return all(name in present[folder] for folder, name in wanted)


def _begin(root: Path, parameters: dict[str, int]) -> None:
    """Mark the folder as unfinished with its parameters, and clear up after a run that was killed."""
    marker = root / "unfinished.json"
    if marker.is_file():
        _compare(marker, parameters)
    elif root.exists() and not (root / "dataset.json").is_file() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: holds something else than generated scenes; give an empty or new folder")
    for leftover in root.rglob(".writing-*"):
        leftover.unlink()
    write_json(marker, parameters)


def _compare(path: Path, parameters: dict[str, int]) -> None:
    found = description(path.parent, path.name)
    for name, value in parameters.items():
        there = found.get(name)
        if there != value:
            raise DataError(
                f"{path}: the folder was made with {name} = {there}, not {value}; give another folder or delete this one"
            )


def _hash_of_lists(root: Path) -> str:
    return sha256([root / name for name in LISTS if (root / name).is_file()], root)


def _make_image(root: Path, seed: int, side: int, image_id: str) -> dict[str, str]:
    """Draw one image, write those of its files that are missing, and return class to kind for what it shows."""
    scene = draw_scene(seed, int(image_id[5:]), side)
    writers = (
        lambda path: _write_picture(path, Image.fromarray(scene.image), quality=95, subsampling=0),
        lambda path: write_mask(path, scene.class_mask),
        lambda path: write_mask(path, scene.object_mask),
        lambda path: write_mask(path, scene.part_mask),
        lambda path: _write_picture(path, Image.fromarray(scene.saliency)),
        lambda path: _write_annotation(path, scene),
    )
    for pattern, write in zip(IMAGE_FILES, writers, strict=True):
        path = root / pattern.format(image_id)
        if not path.is_file():
            write(path)
    return {creature.name: creature.subcategory for creature in scene.creatures}


def _write_picture(path: Path, image: Image.Image, **options: int) -> None:
    write_atomically(path, lambda temporary: image.save(temporary, format=None, **options))


def _write_annotation(path: Path, scene: Scene) -> None:
    side = scene.image.shape[0]
    objects = [
        VocObject(
            creature.name,
            creature.box,
            truncated=min(creature.box) == 1 or max(creature.box) == side,
            parts=(("head", creature.head_box),) if creature.head_box else (),
        )
        for creature in scene.creatures
    ]
    write_voc_xml(path, scene.class_mask.shape, objects, folder="toy")


def _write_lists(root: Path, kinds: dict[str, dict[str, str]], num_train: int) -> None:
    """Write the three lists, the label table and the table of sub-categories."""
    ids = list(kinds)
    for split, members in (("train", ids[:num_train]), ("val", ids[num_train:]), ("trainval", ids)):
        write_new(root / f"ImageSets/Segmentation/{split}.txt", "".join(f"{image_id}\n" for image_id in members))
    write_labels(root / "labels.csv", kinds, CLASSES)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "class", "subcategory"])
    writer.writerows(
        [image_id, VARIED_CLASS, present[VARIED_CLASS]] for image_id, present in kinds.items() if VARIED_CLASS in present
    )
    write_new(root / "subcategories.csv", text.getvalue())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.toy", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder to make, e.g. data/toy")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other images (default: 0)")
    parser.add_argument("--train", type=int, default=1500, metavar="N", help="training images (default: 1500)")
    parser.add_argument("--val", type=int, default=300, metavar="N", help="validation images (default: 300)")
    parser.add_argument("--size", type=int, default=96, metavar="PIXELS", help="height and width (default: 96)")
    options = parser.parse_args(arguments)
    try:
        make_toy_dataset(options.root, options.seed, options.train, options.val, options.size)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.root}: {options.train} training and {options.val} validation images")


if __name__ == "__main__":
    main()
