"""Check a data set file by file: every image and mask is decoded, every list and label compared.

    python -m data_prep.check data/voc12/VOC2012

For each kind of disagreement (list, missing, unreadable, size, palette, unknown class, unknown pixels, class, label) it
names the first file and counts all; it ends with status 1 if there are any. Works on every folder in the layout that the
notebooks read.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_prep.coco_categories import COCO_CLASSES
from data_prep.photographs import is_nothing
from data_prep.workers import map_images
from wsss_lib.core.files import IGNORE, IMAGE_FORMATS, voc_palette
from wsss_lib.data.dataset import VOC_CLASSES, read_classes, read_labels, read_split
from wsss_lib.errors import DataError

KINDS = ("list", "missing", "unreadable", "size", "palette", "unknown class", "unknown pixels", "class", "label")
SCORED = "scored"  # the list of the training images that have masks, if not all do


class Problem(NamedTuple):
    """One file that disagrees.

    Attributes:
        kind: one of `KINDS`.
        text: file, what is wrong, and the remedy.
    """

    kind: str
    text: str


@dataclass
class Report:
    """What a check has found.

    Attributes:
        counts: kind of problem to the number of files.
        first: kind of problem to the sentence about the first file.
        images, masks: files that were decoded without a problem.
        notes: what was not checked, and why.
    """

    counts: Counter = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    images: int = 0
    masks: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, problems: Iterable[Problem]) -> None:
        """Count problems; of each kind only the first is kept.

        Args:
            problems: in the order of the lists.
        """
        for kind, text in problems:
            self.counts[kind] += 1
            self.first.setdefault(kind, text)

    def lines(self) -> list[str]:
        """Return the report in words, one line for each kind of problem and each note."""
        lines = [f"{self.images} images and {self.masks} masks are sound", *self.notes]
        return lines + [f"{kind}: {self.counts[kind]}, the first is {self.first[kind]}" for kind in KINDS if self.counts[kind]]


def check_dataset(
    root: Path | str,
    splits: Sequence[str] = (),
    labels: Path | str = "",
    mask_folder: str = "",
    progress: bool = True,
    workers: int | None = None,
) -> Report:
    """Check the lists, labels, images and masks of a data set in bounded memory.

    Args:
        root: devkit folder.
        splits: lists to check; none: all that exist.
        labels: the label table; empty: `root/labels.csv`.
        mask_folder: folder of the masks of all lists; empty: `SegmentationClass`, and `SegmentationClassAug` for train_aug.
        progress: show a progress bar in a terminal.
        workers: processes; None: up to four for a large set.

    Returns:
        counts and first files.

    Raises:
        DataError: the folder has no lists, or the description of its classes cannot be used.
        OSError: a worker process was killed.
    """
    root = Path(root)
    known = sorted(path.stem for path in (root / "ImageSets" / "Segmentation").glob("[!.]*.txt"))
    if not known:
        raise DataError(
            f"{root / 'ImageSets/Segmentation'}: there is no list of images; give the folder that holds "
            "ImageSets, or prepare the data first with python -m data_prep.voc12, .coco14 or .toy"
        )
    classes, report = read_classes(root), Report()
    report.add(
        Problem(
            "class",
            f"{root / 'dataset.json'}: {word!r} is not a class: the background is 0 in masks and is not listed; take it out",
        )
        for word in classes
        if is_nothing(word)
    )
    table = _table(Path(labels) if labels else root / "labels.csv", classes, report)
    folders: dict[str, set[str]] = {}  # image id to the folders that should hold its mask
    lists: dict[str, tuple[str, ...]] = {}
    for split in splits or known:
        folder = mask_folder or ("SegmentationClassAug" if split == "train_aug" else "SegmentationClass")
        try:
            ids = read_split(root, split)
        except DataError as error:
            report.add([Problem("list", str(error))])
            continue
        lists[split] = ids
        with_masks = split != "test" and (root / folder).is_dir()
        if not with_masks:
            report.notes.append(
                f"masks of {split}: not checked, "
                + ("as VOC publishes none" if split == "test" else f"there is no folder {folder}")
            )
        some = SCORED in known and split != SCORED and with_masks  # the others need none
        without = {image_id for image_id in ids if some and not (root / folder / f"{image_id}.png").is_file()}
        if without:
            report.notes.append(f"masks of {split}: {len(ids) - len(without)} of {len(ids)} images have one")
        for image_id in ids:
            if image_id not in folders and table is not None and image_id not in table and split != "test":
                report.add(
                    [
                        Problem(
                            "label",
                            f"{labels or root / 'labels.csv'}: no row for image {image_id!r} of {split}; make the table again",
                        )
                    ]
                )
            folders.setdefault(image_id, set()).update({folder} if with_masks and image_id not in without else ())
    check_one = partial(_check_image, root=root, num_classes=len(classes))
    tasks = [(image_id, tuple(sorted(names))) for image_id, names in folders.items()]
    shown: dict[str, tuple[int, ...]] = {}
    results = map_images(check_one, tasks, "images and masks", progress, workers)
    for (image_id, _), (images, found, problems) in zip(tasks, results, strict=True):
        report.images, report.masks = report.images + images, report.masks + len(found)
        report.add(problems)
        if found:
            shown[image_id] = found[0]
    if table is not None:
        _compare(Path(labels) if labels else root / "labels.csv", table, shown, lists, classes, report)
    return report


def _compare(
    path: Path,
    table: dict[str, np.ndarray],
    shown: dict[str, tuple[int, ...]],
    lists: dict[str, tuple[str, ...]],
    classes: tuple[str, ...],
    report: Report,
) -> None:
    """Compare labels, masks and the list `train` with each other.

    A mask often lacks a class of its label: small or hidden objects have a label and no pixel. Parts of VOC and COCO lack
    whole classes, and a few of their labels and masks differ, so for these two it is only noted.
    """
    problems: list[Problem] = []
    pairs = [(image_id, table[image_id], present) for image_id, present in shown.items() if image_id in table]
    for image_id, label, present in pairs:
        if denied := [classes[index] for index in present if not label[index]]:
            said = ", ".join(classes[index] for index in np.flatnonzero(label)) or "nothing"
            problems.append(
                Problem(
                    "label",
                    f"{path}: image {image_id!r}: the mask shows {denied[0]}, the label {said}; correct one",
                )
            )
    lacking = [image_id for image_id, label, present in pairs if set(np.flatnonzero(label)) - set(present)]
    if lacking:
        report.notes.append(
            f"{len(lacking)} masks have no pixel of a class of their label, the first is that of {lacking[0]!r}"
        )
    for index, word in enumerate(classes):
        labelled = [image_id for image_id, label, _ in pairs if label[index]]
        if labelled and not any(index in present for _, _, present in pairs):
            problems.append(
                Problem(
                    "class",
                    f"{path}: class {word!r} has labels but no pixel in any mask, as that of {labelled[0]!r}; draw it with "
                    f"the value {index + 1} (255 means unknown, also in black and white), or take the labels out",
                )
            )
        if "train" in lists and not any(table[image_id][index] for image_id in lists["train"] if image_id in table):
            problems.append(
                Problem("class", f"{path}: class {word!r} has no image in the list train; add some, or take it out")
            )
    if classes in (VOC_CLASSES, COCO_CLASSES):
        for kind, number in Counter(kind for kind, _ in problems).items():
            first = next(text for other, text in problems if other == kind)
            report.notes.append(f"{kind}: {number} remarks, the first is {first.rpartition('; ')[0]}")
    else:
        report.add(problems)


def _table(path: Path, classes: tuple[str, ...], report: Report) -> dict[str, np.ndarray] | None:
    """Read the label table, or note what is wrong with it."""
    if not path.is_file():
        report.add([Problem("missing", f"{path}: the label table is missing; make it with python -m data_prep.voc_labels")])
        return None
    try:
        return read_labels(path, classes)
    except DataError as error:
        report.add([Problem("unknown class" if "unknown class" in str(error) else "label", str(error))])
        return None


def _check_image(
    task: tuple[str, tuple[str, ...]], root: Path, num_classes: int
) -> tuple[int, list[tuple[int, ...]], list[Problem]]:
    """Decode an image and its masks; return how many images are sound, what each sound mask shows, and the problems."""
    image_id, folders = task
    path = root / "JPEGImages" / f"{image_id}.jpg"
    size, problems = None, []
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            image.convert("RGB")
            size = image.size
    except FileNotFoundError:
        problems.append(Problem("missing", f"{path}: put it there or take its id out of the lists"))
    except Exception as error:  # Pillow raises one of a dozen types
        problems.append(Problem("unreadable", f"{path}: {error}; fetch it again"))
    found = [_classes_of_mask(root / folder / f"{image_id}.png", size, num_classes) for folder in folders]
    problems += [result for result in found if isinstance(result, Problem)]
    return int(size is not None), [result for result in found if not isinstance(result, Problem)], problems


def _classes_of_mask(path: Path, size: tuple[int, int] | None, num_classes: int) -> Problem | tuple[int, ...]:
    """Return the classes of a mask, 0-based, or what is wrong with it; `size` is (width, height) of its image."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            mode, palette, mask = image.mode, image.getpalette(), np.array(image)
    except FileNotFoundError:
        return Problem("missing", f"{path}: make it again from the annotation")
    except Exception as error:  # Pillow raises one of a dozen types
        return Problem("unreadable", f"{path}: {error}; make it again from the annotation")
    if mode not in ("P", "L"):
        return Problem("palette", f"{path}: has mode {mode}; masks are 8-bit palette or gray PNGs of class indices")
    if size and mask.shape[::-1] != size:
        return Problem(
            "size", f"{path}: {mask.shape[1]}x{mask.shape[0]} pixels, its image has {size[0]}x{size[1]}; make it again"
        )
    values = np.unique(mask)
    foreign = values[(values > num_classes) & (values != IGNORE)]
    if foreign.size:
        return Problem(
            "unknown class",
            f"{path}: holds the value {foreign[0]}, but there are only {num_classes} classes; "
            "check dataset.json or make the mask again",
        )
    colors = np.array(palette or [], np.uint8).reshape(-1, 3)
    if mode == "P" and (len(colors) <= values.max() or (colors[values] != voc_palette()[values]).any()):
        return Problem(
            "palette",
            f"{path}: its colors are not VOC's; the indices may mean other classes, write it again with "
            "wsss_lib.core.files.write_mask",
        )
    if values.tolist() == [IGNORE]:
        return Problem("unknown pixels", f"{path}: every pixel is {IGNORE}, unknown; draw it, or take it away")
    return tuple(int(value) - 1 for value in values if 0 < value < IGNORE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; disagreements, and a failure in one sentence, end the program with status 1."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.check", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="devkit folder, the one that holds JPEGImages")
    parser.add_argument("--split", action="append", default=[], metavar="NAME", help="list to check, e.g. train (default: all)")
    parser.add_argument("--labels", default="", metavar="CSV", help="label table (default: ROOT/labels.csv)")
    parser.add_argument(
        "--mask-folder",
        default="",
        metavar="NAME",
        help="folder of all masks below ROOT (default: SegmentationClass; for train_aug SegmentationClassAug)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: up to 4)")
    options = parser.parse_args(arguments)
    try:
        report = check_dataset(options.root, options.split, options.labels, options.mask_folder, workers=options.workers)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print("\n".join(report.lines()))
    if report.counts:
        parser.exit(1)


if __name__ == "__main__":
    main()
