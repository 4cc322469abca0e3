"""Make PASCAL VOC 2012 with SBD ready: images, masks of train_aug, lists, labels; verified against the official ones.

    python -m data_prep.voc12 data/voc12/VOC2012

ROOT becomes (or already is) the devkit folder, the one that holds JPEGImages. What is missing is unpacked from the two official
archives, VOCtrainval_11-May-2012.tar and benchmark.tgz, and these are downloaded unless they exist (in ROOT, ROOT/archives
or the folder given). VOC2012test.tar, whose page asks for a login, is unpacked if it is there, too.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.download import obtain
from data_prep.findings import Finding, report, survey, survey_archives
from data_prep.official import SBD_PAGE, VOC12_LISTS, VOC12_SOURCES, VOC_PAGE, ListFacts, Source, list_sha256
from data_prep.sbd import read_sbd_mask, train_aug_ids
from data_prep.unpack import unpack
from data_prep.voc_labels import label_table, labels_from_xml
from data_prep.workers import map_images
from data_prep.writing import description, write_new, write_tables
from wsss_lib.core.files import IGNORE, image_size, read_mask, write_mask
from wsss_lib.data.dataset import VOC_CLASSES, read_split
from wsss_lib.errors import DataError

KEPT = ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation")  # of the devkit's archive
AUGMENTED = "SegmentationClassAug"
SBD_FOLDERS = ("SBD", "benchmark_RELEASE/dataset", "archives/benchmark_RELEASE/dataset")
TEST_ARCHIVE = "VOC2012test.tar"
WAYS = ("xml", "masks")
DEVKIT_REMEDY = f"comes from {VOC12_SOURCES['devkit'].name}, {VOC_PAGE}"
SBD_REMEDY = f"is made from {VOC12_SOURCES['sbd'].name}, {SBD_PAGE}"
REMEDIES = {
    "train": DEVKIT_REMEDY,
    "val": DEVKIT_REMEDY,
    "JPEGImages": DEVKIT_REMEDY,
    "SegmentationClass": DEVKIT_REMEDY,
    "train_aug": SBD_REMEDY,
    AUGMENTED: SBD_REMEDY,
    "": "run python -m data_prep.voc12 on this folder",
}


def prepare_voc12(
    root: Path | str,
    archives: Path | str | None = None,
    labels: str = "xml",
    fetch: bool = True,
    partial_data: bool = False,
    progress: bool = True,
    workers: int | None = None,
    sources: dict[str, Source] = VOC12_SOURCES,
    lists: dict[str, ListFacts] = VOC12_LISTS,
    overwrite: bool = False,
) -> list[Finding]:
    """Make the data set, or complete one that was interrupted.

    Args:
        root: the devkit folder, which may be empty or already filled.
        archives: folder of the official archives; None: `root/archives`.
        labels: "xml": the classes that the annotations name (IRN, RIB, AMN, VWE, SC-CAM); "masks": those that the masks show
            (DRS), which are cleaned by pixel labels.
        fetch: whether missing archives are downloaded.
        partial_data: accept a part of VOC, without SBD.
        progress: show progress bars where there is a terminal.
        workers: processes; None: up to four for a large set.
        sources, lists: what the official archives and lists are.
        overwrite: replace files that others made; without it they are a reason to refuse.

    Returns:
        what is there, missing or wrong now.

    Raises:
        ValueError: `labels` is unknown.
        FileNotFoundError: a file or archive is missing.
        DataError: a file is damaged, hostile or does not fit the others, or `root` holds another data set.
        OSError: too little space, or a worker was killed; finished files stay and the same call completes it.
    """
    root = Path(root)
    if labels not in WAYS:
        raise ValueError(f"labels must be one of {', '.join(WAYS)}, not {labels!r}")
    _begin(root)
    folders = [Path(archives) if archives else root / "archives", root]
    get = partial(obtain, folders=folders, fetch=fetch, progress=progress)
    if not partial_data and not _has_devkit(root):
        unpack(get(sources["devkit"]), root, _place_of_devkit, progress, overwrite)
    for folder in folders:
        if (folder / TEST_ARCHIVE).is_file() and not (root / "ImageSets/Segmentation/test.txt").is_file():
            unpack(folder / TEST_ARCHIVE, root, _place_of_test, progress, overwrite)
    if partial_data:
        splits = [split for split in ("train", "val") if (root / f"ImageSets/Segmentation/{split}.txt").is_file()]
        if not splits:
            raise FileNotFoundError(
                f"{root / 'ImageSets/Segmentation'}: neither train.txt nor val.txt is there; give the "
                "folder that holds ImageSets, for VOC it is named VOC2012"
            )
        mask_folders = dict.fromkeys(splits, "SegmentationClass")
    else:
        _make_augmented(root, lambda: get(sources["sbd"]), lists, progress, workers, overwrite)
        mask_folders = {"train": "SegmentationClass", "val": "SegmentationClass", "train_aug": AUGMENTED}
    table = labels_from_xml(root) if labels == "xml" else _labels_from_masks(root, mask_folders, progress, workers)
    facts = {"name": "voc12", "classes": list(VOC_CLASSES), "ignore_index": IGNORE, "labels": labels}
    write_tables(
        root, {"labels.csv": label_table(table, VOC_CLASSES), "dataset.json": json.dumps(facts, indent=1) + "\n"}, overwrite
    )
    return survey_voc12(root, {} if partial_data else lists, tuple(mask_folders))


def survey_voc12(
    root: Path, lists: dict[str, ListFacts] = VOC12_LISTS, splits: Sequence[str] = ("train", "val", "train_aug")
) -> list[Finding]:
    """Return which parts of the data set are there, missing or wrong, without decoding an image.

    Args:
        root: the devkit folder.
        lists: what the official lists are.
        splits: the lists that are needed.
    """
    way = description(root).get("labels", "xml")
    mask_folders = {split: AUGMENTED if split == "train_aug" else "SegmentationClass" for split in splits}
    return survey(root, mask_folders, VOC_CLASSES, lists, VOC_PAGE, way, REMEDIES)


def _begin(root: Path) -> None:
    """Refuse another data set, and clear up after a run that was killed."""
    if (root / "dataset.json").is_file() and description(root).get("classes") != list(VOC_CLASSES):
        raise DataError(f"{root / 'dataset.json'}: the folder holds another data set than VOC; give another folder")
    inner = next((folder for folder in ("VOCdevkit/VOC2012", "VOC2012") if (root / folder / "ImageSets").is_dir()), None)
    if inner:
        raise DataError(f"{root}: the devkit lies deeper; give {root / inner}, the folder that holds JPEGImages")
    for folder in (*KEPT, AUGMENTED, "SBD/cls"):
        for leftover in (root / folder).glob(".writing-*"):
            leftover.unlink()


def _has_devkit(root: Path) -> bool:
    """Return whether lists, images, annotations and masks of VOC's train and val, and images of train_aug, are there."""
    if not all((root / f"ImageSets/Segmentation/{split}.txt").is_file() for split in ("train", "val")):
        return False
    needed = set(read_split(root, "train")) | set(read_split(root, "val"))
    more = set(read_split(root, "train_aug")) if (root / "ImageSets/Segmentation/train_aug.txt").is_file() else set()
    return all(
        _missing(root / folder, suffix, ids) == 0
        for folder, suffix, ids in (
            ("JPEGImages", ".jpg", needed | more),
            ("Annotations", ".xml", needed | more),
            ("SegmentationClass", ".png", needed),
        )
    )


def _missing(folder: Path, suffix: str, ids: set[str]) -> int:
    """Return the number of ids without a file in a folder."""
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    return sum(f"{image_id}{suffix}" not in present for image_id in ids)


def _place_of_devkit(name: str) -> str | None:
    """Return where a file of the devkit's archives goes: `VOCdevkit/VOC2012/JPEGImages/1.jpg` to `JPEGImages/1.jpg`."""
    parts = PurePosixPath(name).parts
    inside = "/".join(parts[parts.index("VOC2012") + 1 :]) if "VOC2012" in parts else ""
    return inside if inside.startswith(tuple(f"{folder}/" for folder in KEPT)) else None


def _place_of_test(name: str) -> str | None:
    """Return where a file of the test images' archive goes; it has no known checksum, so only photographs and their list go."""
    inside = _place_of_devkit(name) or ""
    return inside if inside == "ImageSets/Segmentation/test.txt" or inside.startswith("JPEGImages/") else None


def _place_of_sbd(name: str) -> str | None:
    """Return where a file of SBD's archive goes: `benchmark_RELEASE/dataset/cls/1.mat` to `SBD/cls/1.mat`."""
    inside = name.partition("dataset/")[2]
    wanted = inside in ("train.txt", "val.txt") or inside.startswith("cls/") and inside.endswith(".mat")
    return f"SBD/{inside}" if wanted else None


def _make_augmented(
    root: Path,
    get_archive: Callable[[], Path],
    lists: dict[str, ListFacts],
    progress: bool,
    workers: int | None,
    overwrite: bool,
) -> None:
    """Write the list train_aug and a mask for each of its images and of VOC's val: SBD's, and VOC's own if there is one."""
    voc = {split: set(read_split(root, split)) for split in ("train", "val")}
    augmented = root / AUGMENTED
    there = {path.stem for path in augmented.glob("*.png")}
    if list_sha256(there - voc["val"]) == lists["train_aug"].sha256:  # made by someone else, or by us
        ids = sorted(there - voc["val"])
    else:
        sbd = _sbd_folder(root)
        if sbd is None:
            unpack(get_archive(), root, _place_of_sbd, progress, overwrite)
            sbd = root / "SBD"
        ids = train_aug_ids(_lines(sbd / "train.txt"), _lines(sbd / "val.txt"), voc["train"], voc["val"])
        absent = [image_id for image_id in ids if not (root / "JPEGImages" / f"{image_id}.jpg").is_file()]
        if absent:
            raise FileNotFoundError(
                f"{root / 'JPEGImages'}: {len(absent)} images of SBD are missing, the first is "
                f"{absent[0]}.jpg; they come from {VOC12_SOURCES['devkit'].name}, {VOC_PAGE}"
            )
        tasks = [image_id for image_id in ids if image_id not in voc["train"] and image_id not in there]
        for _ in map_images(partial(_convert, root=root, sbd=sbd), tasks, "masks of SBD", progress, workers):
            pass
    listed = root / "ImageSets/Segmentation/train_aug.txt"
    if not listed.is_file() or set(read_split(root, "train_aug")) != set(ids):  # another order is as good
        write_tables(root, {"ImageSets/Segmentation/train_aug.txt": "".join(f"{image_id}\n" for image_id in ids)}, overwrite)
    for image_id in sorted(voc["train"] | voc["val"]):  # VOC's own masks, which have the 255 borders, override SBD's
        ours, theirs = augmented / f"{image_id}.png", root / "SegmentationClass" / f"{image_id}.png"
        write_new(ours, theirs.read_bytes(), overwrite)


def _sbd_folder(root: Path) -> Path | None:
    """Return an existing, complete folder of SBD, else None."""
    for folder in (root / name for name in SBD_FOLDERS):
        if (folder / "train.txt").is_file() and (folder / "val.txt").is_file():
            if not _missing(folder / "cls", ".mat", _lines(folder / "train.txt") | _lines(folder / "val.txt")):
                return folder
    return None


def _lines(path: Path) -> set[str]:
    """Return the ids of one of SBD's lists."""
    try:
        ids = set(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError:
        ids = set()
    if not ids or any("/" in image_id or image_id.startswith(".") for image_id in ids):
        raise DataError(f"{path}: not a list of SBD; delete it and run again")
    return ids


def _convert(image_id: str, root: Path, sbd: Path) -> None:
    """Write SBD's mask of one image as PNG."""
    path = sbd / "cls" / f"{image_id}.mat"
    mask = read_sbd_mask(path)
    size = image_size(root / "JPEGImages" / f"{image_id}.jpg")
    if mask.shape[::-1] != size:
        raise DataError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels but its image is {size[0]}x{size[1]}; "
            "unpack both archives anew"
        )
    write_mask(root / AUGMENTED / f"{image_id}.png", mask)


def _labels_from_masks(root: Path, mask_folders: dict[str, str], progress: bool, workers: int | None) -> dict[str, list[str]]:
    """Return image id to the classes that its mask shows, in class order; VOC's own mask counts if there is one."""
    paths = {
        image_id: root / folder / f"{image_id}.png"
        for split, folder in mask_folders.items()
        for image_id in read_split(root, split)
    }
    ids = sorted(paths)
    return dict(
        zip(
            ids,
            map_images(_classes_of_mask, [paths[image_id] for image_id in ids], "labels from masks", progress, workers),
            strict=True,
        )
    )


def _classes_of_mask(path: Path) -> list[str]:
    values = np.unique(read_mask(path, len(VOC_CLASSES)))
    return [VOC_CLASSES[value - 1] for value in values if 0 < value < IGNORE]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.voc12", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="devkit folder to fill or complete, e.g. data/voc12/VOC2012")
    parser.add_argument("--archives", type=Path, metavar="FOLDER", help="of the official archives (default: ROOT/archives)")
    parser.add_argument(
        "--labels",
        choices=WAYS,
        default="xml",
        help="image-level labels from the XML annotations or, in DRS's way, from the masks (default: xml)",
    )
    parser.add_argument("--no-download", action="store_true", help="use only what is there")
    parser.add_argument("--partial", action="store_true", help="accept a part of VOC, without SBD")
    parser.add_argument("--overwrite", action="store_true", help="replace lists, labels and masks that others made")
    parser.add_argument("--status", action="store_true", help="only say what is there, missing or wrong")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: up to 4)")
    options = parser.parse_args(arguments)
    what = ({}, ("train", "val")) if options.partial else (VOC12_LISTS, ("train", "val", "train_aug"))
    problem = ""
    try:
        if not options.status:
            prepare_voc12(
                options.root,
                options.archives,
                options.labels,
                not options.no_download,
                options.partial,
                workers=options.workers,
                overwrite=options.overwrite,
            )
        whole = report(survey_voc12(options.root, *what))
    except (OSError, ValueError) as error:
        problem, whole = f"{error}\n", False
        with suppress(OSError, ValueError):
            report(survey_voc12(options.root, *what))
    if not whole and not options.partial:
        report(survey_archives(VOC12_SOURCES.values(), [options.archives or options.root / "archives", options.root]))
    if problem or not whole:
        parser.exit(1, problem)


if __name__ == "__main__":
    main()
