"""Make MS-COCO 2014 ready: images, masks from the instances JSON, lists of both traditions, labels.

    python -m data_prep.coco14 data/coco14
    python -m data_prep.coco14 data/coco128 --train instances_coco128.json --images coco128/JPEGImages --partial

The result has the layout that all notebooks read, with ids of twelve digits. Images may lie below ROOT (in `train2014`,
`val2014`, `JPEGImages`, …) or in the folders given, under either name, `000000000009.jpg` or `COCO_train2014_000000000009.jpg`;
they are linked, not copied, where possible. What is missing is unpacked from the official archives, and these are
downloaded unless they exist (in ROOT, ROOT/archives or the folder given).
"""

import argparse
import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from data_prep.coco_categories import COCO_CLASSES
from data_prep.coco_json import Instances, image_id, read_annotations, read_instances
from data_prep.coco_masks import mask_of_annotations
from data_prep.download import obtain
from data_prep.findings import Finding, report, survey, survey_archives
from data_prep.official import COCO14_LISTS, COCO14_SOURCES, COCO_PAGE, ListFacts, Source
from data_prep.unpack import unpack
from data_prep.voc_labels import label_table
from data_prep.workers import map_images
from data_prep.writing import check_tables, description, write_new, write_tables
from wsss_lib.core.files import IGNORE, image_size, write_atomically, write_json, write_mask
from wsss_lib.data.dataset import read_classes
from wsss_lib.errors import DataError

MASK_FOLDERS = {"paint": "SegmentationClass", "ignore": "SegmentationClassCrowd255"}
IMAGE_FOLDERS = (
    "JPEGImages",
    "train2014",
    "val2014",
    "images",
    "train2017",
    "val2017",
    "JPEGImages/train2014",
    "JPEGImages/val2014",
    "images/train2014",
    "images/val2014",
)
ANNOTATIONS_REMEDY = f"is made from {COCO14_SOURCES['annotations'].name}, {COCO_PAGE}"
REMEDIES = {
    "JPEGImages": f"comes from train2014.zip and val2014.zip, {COCO_PAGE}",
    "": "run python -m data_prep.coco14 on this folder",
}
REMEDIES |= dict.fromkeys((*COCO14_LISTS, *MASK_FOLDERS.values()), ANNOTATIONS_REMEDY)


class Task(NamedTuple):
    """What a worker process needs to know of one image.

    Attributes:
        image_id: twelve digits.
        source: the image file where it was found.
        size: (H, W) in pixels.
        json: the instances JSON.
        places: (begin, length) of its annotations there, in bytes.
    """

    image_id: str
    source: Path
    size: tuple[int, int]
    json: Path
    places: list[tuple[int, int]]


def prepare_coco14(
    root: Path | str,
    train: Path | str | None = None,
    val: Path | str | None = None,
    images: Sequence[Path | str] = (),
    archives: Path | str | None = None,
    crowd: str = "paint",
    fetch: bool = True,
    partial_data: bool = False,
    progress: bool = True,
    workers: int | None = None,
    sources: dict[str, Source] = COCO14_SOURCES,
    lists: dict[str, ListFacts] = COCO14_LISTS,
    overwrite: bool = False,
) -> list[Finding]:
    """Make the data set, or complete one that was interrupted.

    Args:
        root: the folder to fill; images may already be there.
        train, val: instances JSON files; both None: the official ones, in `root/annotations` or from the archive. One alone
            makes a data set with this split only.
        images: more folders in which images may lie.
        archives: folder of the official archives; None: `root/archives`.
        crowd: "paint" gives crowd regions their class like other instances; "ignore" gives them 255, in masks of a separate
            folder, `SegmentationClassCrowd255`.
        fetch: whether missing archives are downloaded.
        partial_data: accept a part of the official data; images that are in no folder are left out of the lists.
        progress: show progress bars where there is a terminal.
        workers: processes; None: up to four for a large set.
        sources, lists: what the official archives and lists are.
        overwrite: replace lists, labels and a description made by others; without it they are a reason to refuse.

    Returns:
        what is there, missing or wrong now.

    Raises:
        ValueError: `crowd` is unknown.
        FileNotFoundError: an annotation file, archive or image is missing.
        DataError: a file is damaged or hostile, does not fit the others, or `root` was made from other annotations.
        OSError: too little space, or a worker was killed; finished files stay and the same call completes it.
        ModuleNotFoundError: pycocotools is not installed.
    """
    root = Path(root)
    if crowd not in MASK_FOLDERS:
        raise ValueError(f"crowd must be one of {', '.join(MASK_FOLDERS)}, not {crowd!r}")
    folders = [Path(archives) if archives else root / "archives", root]
    get = partial(obtain, folders=folders, fetch=fetch and not partial_data, progress=progress)
    paths = {split: Path(path) for split, path in (("train", train), ("val", val)) if path}
    if not paths:
        paths = {split: root / "annotations" / f"instances_{split}2014.json" for split in ("train", "val")}
        if not all(path.is_file() for path in paths.values()):
            names = {f"annotations/{path.name}" for path in paths.values()}
            unpack(get(sources["annotations"]), root, lambda name: name if name in names else None, progress, overwrite)
    instances = {split: read_instances(path, own=partial_data) for split, path in paths.items()}
    if len({index.classes for index in instances.values()}) > 1:
        raise DataError(f"{paths['val']}: has other categories than {paths['train']}; both must name the same")
    twice = set.intersection(*(set(index.images) for index in instances.values())) if len(instances) > 1 else ()
    if twice:
        raise DataError(f"{paths['val']}: image {min(twice)} is also in {paths['train']}; no image may be in both")
    parameters = {split: _sha256(path) for split, path in paths.items()}
    where = {split: _find_images(root, index, images) for split, index in instances.items()}
    chosen = {split: set(where[split] if partial_data else index.images) for split, index in instances.items()}
    tables = _tables(instances, chosen, parameters)
    _begin(root, parameters, tables, overwrite)

    for split, index in instances.items():
        if len(where[split]) < len(index.images) and not partial_data:
            _unpack_images(get(sources[split]), root, index, progress, overwrite)
            where[split] = _find_images(root, index, images)
        _check_found(root, split, index, where[split], partial_data)
    tasks = [
        Task(image_id(number), where[split][number], entry.size(where[split][number]), index.path, places)
        for split, index in instances.items()
        for number, places in index.places().items()
        if number in where[split]
        for entry in [index.images[number]]
    ]
    work = partial(
        _prepare_image,
        root=root,
        mask_folder=MASK_FOLDERS[crowd],
        ignore_crowd=crowd == "ignore",
        index_of_id=next(iter(instances.values())).index_of_id,
    )
    for _ in map_images(work, tasks, "images and masks", progress, workers):
        pass
    facts = tables.pop("dataset.json")
    write_tables(root, tables, overwrite)
    write_new(root / "dataset.json", facts, overwrite)
    (root / "unfinished.json").unlink(missing_ok=True)
    found = [
        Finding("have", f"images of {split}", f"{len(where[split])} of {len(index.images)} that {index.path.name} names")
        for split, index in instances.items()
    ]
    return found + survey_coco14(root, {} if partial_data else lists, crowd, tuple(instances))


def survey_coco14(
    root: Path, lists: dict[str, ListFacts] = COCO14_LISTS, crowd: str = "paint", splits: Sequence[str] = ("train", "val")
) -> list[Finding]:
    """Return which parts of the data set are there, missing or wrong, without decoding an image.

    Args:
        root: the folder.
        lists: what the official lists are.
        crowd: which masks, see `prepare_coco14`.
        splits: "train" and "val", or one of them.
    """
    names = [name for split in splits for name in (split, f"{split}_annotated")]
    try:
        classes = read_classes(root) if (root / "dataset.json").is_file() and not lists else COCO_CLASSES
    except DataError:
        classes = COCO_CLASSES
    return survey(root, dict.fromkeys(names, MASK_FOLDERS[crowd]), classes, lists, COCO_PAGE, "instances", REMEDIES)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _begin(root: Path, parameters: dict[str, str], tables: dict[str, str], overwrite: bool) -> None:
    """Refuse another data set, mark the folder as unfinished, and clear up after a run that was killed."""
    for name in ("dataset.json", "unfinished.json"):
        if (root / name).is_file() and description(root, name).get("annotations_sha256") != parameters:
            raise DataError(
                f"{root / name}: the folder holds another data set, or was made from other annotation files; give "
                "another folder, or move this file and the folders of masks away"
            )
    check_tables(root, tables, overwrite)
    for folder in ("JPEGImages", *MASK_FOLDERS.values()):
        for leftover in (root / folder).glob(".writing-*"):
            leftover.unlink()
    write_json(root / "unfinished.json", {"annotations_sha256": parameters})


def _find_images(root: Path, index: Instances, more: Sequence[Path | str]) -> dict[int, Path]:
    """Return number of the image to its file, for those that are in one of the folders under one of the two names."""
    found = {}
    for folder in [*(root / name for name in IMAGE_FOLDERS), *map(Path, more)]:
        # Accents are composed in the JSON's names, but not on every disk; nor are capitals of endings always the same.
        present = {unicodedata.normalize("NFC", name): name for name in os.listdir(folder)} if folder.is_dir() else {}
        loosely = {name.casefold(): there for name, there in present.items()}
        for number, entry in index.images.items() if present else ():
            for name in (f"{image_id(number)}.jpg", entry.file_name):
                there = present.get(name) or loosely.get(name.casefold())
                if number not in found and there:
                    found[number] = folder / there
            below = PurePosixPath(entry.given)
            if number not in found and len(below.parts) > 1 and not below.is_absolute() and ".." not in below.parts:
                if (folder / below).is_file():
                    found[number] = folder / below
    return found


def _unpack_images(archive: Path, root: Path, index: Instances, progress: bool, overwrite: bool) -> None:
    """Unpack the images of one split straight to their names of twelve digits."""
    numbers = {entry.file_name: number for number, entry in index.images.items()}

    def place(name: str) -> str | None:
        number = numbers.get(name.rsplit("/", 1)[-1])
        return None if number is None else f"JPEGImages/{image_id(number)}.jpg"

    unpack(archive, root, place, progress, overwrite)


def _check_found(root: Path, split: str, index: Instances, found: dict[int, Path], partial_data: bool) -> None:
    missing = [entry.file_name for number, entry in index.images.items() if number not in found]
    if not found or missing and not partial_data:
        raise FileNotFoundError(
            f"{root}: {len(missing)} of {len(index.images)} images of {split} are missing, the first is "
            f"{missing[0]}; give their folder with --images, or put {split}2014.zip from {COCO_PAGE} into "
            f"{root / 'archives'}; a part of the data is accepted with --partial"
        )


def _prepare_image(task: Task, root: Path, mask_folder: str, ignore_crowd: bool, index_of_id: dict[int, int]) -> None:
    """Put one image in its place and write its mask, each unless it exists."""
    image, mask = root / "JPEGImages" / f"{task.image_id}.jpg", root / mask_folder / f"{task.image_id}.png"
    if not image.is_file():
        _link(task.source, image)
    if mask.is_file():
        return
    width, height = image_size(image)
    if (height, width) != task.size:
        raise DataError(
            f"{image}: the image has {width}x{height} pixels, but {task.json} says {task.size[1]}x{task.size[0]}; "
            "fetch the image again"
        )
    try:
        values = mask_of_annotations(read_annotations(task.json, task.places), task.size, ignore_crowd, index_of_id)
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(
            f"{task.json}: an annotation of image {int(task.image_id)} cannot be used ({problem}); correct it or fetch the "
            "file again"
        ) from None
    write_mask(mask, values)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it to another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        pass
    except OSError:
        write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def _tables(instances: dict[str, Instances], chosen: dict[str, set[int]], parameters: dict[str, str]) -> dict[str, str]:
    """Return the texts of the lists of both traditions, the label table and the description, which comes last.

    Images without annotation have a row of zeros.
    """
    names: dict[str, set[str]] = {}
    texts: dict[str, str] = {}
    for split, index in instances.items():
        labels = {image_id(number): label for number, label in index.labels().items() if number in chosen[split]}
        lists = {split: sorted(labels), f"{split}_annotated": sorted(name for name, label in labels.items() if label.any())}
        texts |= {f"ImageSets/Segmentation/{name}.txt": "".join(f"{member}\n" for member in ids) for name, ids in lists.items()}
        names |= {name: {index.classes[channel] for channel in np.flatnonzero(labels[name])} for name in sorted(labels)}
    classes = next(iter(instances.values())).classes
    facts = {
        "name": "coco14" if classes == COCO_CLASSES else "own",
        "classes": list(classes),
        "ignore_index": IGNORE,
        "annotations_sha256": parameters,
    }
    return texts | {"labels.csv": label_table(names, classes), "dataset.json": json.dumps(facts, indent=1) + "\n"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.coco14", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder to fill, e.g. data/coco14")
    parser.add_argument("--train", type=Path, metavar="JSON", help="instances of the training images, instead of the official")
    parser.add_argument("--val", type=Path, metavar="JSON", help="instances of the validation images")
    parser.add_argument("--images", type=Path, metavar="FOLDER", action="append", default=[], help="where images lie already")
    parser.add_argument("--archives", type=Path, metavar="FOLDER", help="of the official archives (default: ROOT/archives)")
    parser.add_argument(
        "--crowd",
        choices=list(MASK_FOLDERS),
        default="paint",
        help=f"crowd regions: their class, or 255 in masks of the folder {MASK_FOLDERS['ignore']} (default: paint)",
    )
    parser.add_argument("--no-download", action="store_true", help="use only what is there")
    parser.add_argument("--partial", action="store_true", help="accept a part of the official images")
    parser.add_argument("--overwrite", action="store_true", help="replace lists and labels that others made")
    parser.add_argument("--status", action="store_true", help="only say what is there, missing or wrong")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: up to 4)")
    options = parser.parse_args(arguments)
    splits = [split for split in ("train", "val") if getattr(options, split)] or ["train", "val"]
    problem = ""
    try:
        if not options.status:
            counts = prepare_coco14(
                options.root,
                options.train,
                options.val,
                options.images,
                options.archives,
                options.crowd,
                not options.no_download,
                options.partial,
                workers=options.workers,
                overwrite=options.overwrite,
            )
            report(found for found in counts if found.what.startswith("images"))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        problem = f"{error}\n"
    whole = report(survey_coco14(options.root, {} if options.partial else COCO14_LISTS, options.crowd, splits))
    if not whole and not options.partial:
        report(survey_archives(COCO14_SOURCES.values(), [options.archives or options.root / "archives", options.root]))
    if problem or not whole:
        parser.exit(1, problem)


if __name__ == "__main__":
    main()
