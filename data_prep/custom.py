"""Make a ready data set of your own photographs: a folder of images with a table of labels, class folders, or masks.

    python -m data_prep.custom photographs data/mine                                  (photographs/cat/*.jpg, .../dog/*.jpg)
    python -m data_prep.custom photographs data/mine --labels table.csv               (photographs/*.jpg)
    python -m data_prep.custom photographs data/mine --masks masks --classes cat,dog  (photographs/*.jpg, masks/*.png)

A table has a line of headings and then one line for each photograph. Either `image,classes`, with the class names separated by
semicolons (`beach.jpg,dog;person`; none: nothing of interest is there), or `image,cat,dog` with 0 or 1 in each column. The
same file in two class folders has both classes. Masks are 8-bit palette or grey PNGs of the photographs' names: 0 background,
then the classes in the order of `--classes`, 255 unknown. Given beside a table or class folders, masks are only kept for
scoring.

The data set has the layout that every notebook reads. Photographs are turned upright and, where the longer side exceeds
`--longest`, made smaller; ready JPEGs are copied as they are.
"""

import argparse
import csv
import filecmp
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from data_prep.voc_labels import write_labels
from wsss_lib.core.files import IGNORE, IMAGE_FORMATS, read_mask, write_mask
from wsss_lib.core.progress import progress
from wsss_lib.core.texts import is_one_line
from wsss_lib.data.dataset import load_dataset
from wsss_lib.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
ORIENTATION = 274  # tag of a photograph's EXIF record


class Photograph(NamedTuple):
    """One photograph of a new data set.

    Attributes:
        path: of the file.
        classes: names of what is in it; None: not known yet.
    """

    path: Path
    classes: tuple[str, ...] | None


def image_id(path: Path) -> str:
    """Return the id of a photograph: its file name without the ending, blanks replaced.

    Args:
        path: of the file.

    Example:
        >>> image_id(Path("holiday/My dog (2).JPG"))
        'My_dog_(2)'
    """
    return re.sub(r"\s+", "_", path.stem.strip())


def dataset_name(folder: Path) -> str:
    """Return a name for the data set of a folder: the folder's, with everything but letters, digits, dots and dashes replaced.

    Args:
        folder: of the photographs.

    Example:
        >>> dataset_name(Path("/home/me/Fotos (Sommer)"))
        'Fotos_Sommer'
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "_", folder.name).strip("_.-") or "mine"


def from_folder(source: Path) -> dict[str, Photograph]:
    """Find the photographs that lie directly in a folder; other files are left alone.

    Args:
        source: the folder.

    Returns:
        image id to photograph without classes, ids sorted.

    Raises:
        DataError: there is no such folder or no photograph in it, or two have one id.
    """
    if not source.is_dir():
        raise DataError(f"{source}: there is no such folder of photographs")
    found: dict[str, Photograph] = {}
    for path in sorted(source.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            name = image_id(path)
            if not name:
                raise DataError(f"{path}: a photograph needs a name; rename it")
            if name in found:
                raise DataError(f"{path}: has the same name as {found[name].path.name}; rename one of them")
            found[name] = Photograph(path, None)
    if not found:
        raise DataError(f"{source}: there is no photograph; files must end in {', '.join(SUFFIXES)}")
    return dict(sorted(found.items()))


def from_class_folders(source: Path) -> tuple[dict[str, Photograph], tuple[str, ...]]:
    """Find the photographs in folders that are named after classes.

    Args:
        source: holds one folder for each class. A file that lies in two of them has both classes.

    Returns:
        image id to photograph, ids sorted; the class names, sorted.

    Raises:
        DataError: there is no such folder, no class folder, no photograph in one, or two different photographs have one id.
    """
    folders = (
        sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")) if source.is_dir() else []
    )
    if not folders:
        raise DataError(f"{source}: holds no folders that are named after classes; make them, or give --labels or --masks")
    found: dict[str, Photograph] = {}
    for folder in folders:
        for name, (path, _) in from_folder(folder).items():
            if name not in found:
                found[name] = Photograph(path, (folder.name,))
            elif filecmp.cmp(path, found[name].path, shallow=False):
                found[name] = Photograph(path, (*(found[name].classes or ()), folder.name))
            else:
                raise DataError(f"{path}: is another photograph than {found[name].path}, of the same name; rename one of them")
    return dict(sorted(found.items())), tuple(folder.name for folder in folders)


def from_table(source: Path, table: Path) -> tuple[dict[str, Photograph], tuple[str, ...]]:
    """Find the photographs of a folder and their classes in a table.

    Args:
        source: the folder of photographs.
        table: CSV file with the headings `image,classes` (names separated by semicolons) or `image` and one 0/1 column for each
            class; images by file name or id.

    Returns:
        image id to photograph, ids sorted; the class names, in the order of the columns, or sorted.

    Raises:
        DataError: the folder or the table is missing or of another form, or they do not name the same photographs.
    """
    found = from_folder(source)
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(map(str.strip, row))]
    except OSError:
        raise DataError(f"{table}: the table of labels is missing") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a UTF-8 CSV file ({error})") from None
    headings = [word.strip() for word in rows[0]] if rows else []
    by_name = [word.lower() for word in headings[1:]] == ["classes"]
    if len(headings) < 2 or len(set(headings)) != len(headings) or "" in headings:
        raise DataError(f"{table}: the first line must be image,classes or image and the names of the classes")
    labels: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(rows[1:], start=2):
        cells = [word.strip() for word in row]
        if len(cells) != len(headings) or not by_name and set(cells[1:]) - {"0", "1"}:
            needed = f"{len(headings)} columns" + ("" if by_name else ", 0 or 1 after the first")
            raise DataError(f"{table}, row {number}: a row needs {needed}")
        given = Path(cells[0])
        name = image_id(given) if given.suffix.lower() in SUFFIXES else re.sub(r"\s+", "_", cells[0])
        if name in labels or name not in found:
            raise DataError(
                f"{table}, row {number}: {cells[0]!r} "
                + ("has a second row; take one of them out" if name in labels else f"is no photograph in {source}")
            )
        names = (
            dict.fromkeys(word.strip() for word in cells[1].split(";"))
            if by_name
            else [heading for heading, value in zip(headings[1:], cells[1:], strict=True) if value == "1"]
        )
        labels[name] = tuple(word for word in names if word)
    without = [name for name in found if name not in labels]
    if without:
        raise DataError(
            f"{table}: no row for {found[without[0]].path.name} and {len(without) - 1} other photographs; add them "
            "(an empty cell says that nothing of interest is there) or take the files out of the folder"
        )
    classes = tuple(sorted(set().union(*labels.values()))) if by_name else tuple(headings[1:])
    return {name: Photograph(path, labels[name]) for name, (path, _) in found.items()}, classes


def make_dataset(
    photographs: dict[str, Photograph],
    classes: Sequence[str],
    root: Path,
    name: str = "",
    masks: Path | None = None,
    val_share: float = 0.2,
    longest: int = 500,
) -> dict[str, int]:
    """Write a data set folder, whole or not at all.

    Args:
        photographs: image id to photograph; where the classes are not known the mask tells them.
        classes: names of the C foreground classes, in order.
        root: the folder to make; it must not exist.
        name: of the data set; empty: the folder's.
        masks: folder of `NAME.png`, one for each photograph, or None.
        val_share: this share of the photographs, evenly spread, makes the list `val`; 0: there is none.
        longest: larger photographs are made smaller until their longer side has so many pixels; 0: none is.

    Returns:
        {"photographs", "labels", "without a class", "train", "val"}: how many there are.

    Raises:
        DataError: the folder exists, a photograph or a mask is missing, cannot be read or does not fit, or a class has no
            photograph; nothing is left then.
    """
    _check_classes(classes)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: exists already; remove it or choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=root.parent, prefix=".writing-"))
    try:
        table = {}
        for folder in ("JPEGImages", *(["SegmentationClass"] if masks else [])):
            (unfinished / folder).mkdir()
        for image, photograph in progress(photographs.items(), "photographs", total=len(photographs)):
            seen = _write_image(image, photograph.path, unfinished, masks, len(classes), longest)
            table[image] = photograph.classes if photograph.classes is not None else tuple(classes[index] for index in seen)
        unused = [word for word in classes if not any(word in present for present in table.values())]
        if unused:
            raise DataError(f"{root}: no photograph has the class {unused[0]!r}; take the class out or add photographs of it")
        write_labels(unfinished / "labels.csv", table, classes)
        (unfinished / "dataset.json").write_text(
            json.dumps({"name": name or dataset_name(root), "classes": list(classes), "ignore_index": IGNORE}, indent=1) + "\n"
        )
        lists = _split(list(table), val_share)
        (unfinished / "ImageSets" / "Segmentation").mkdir(parents=True)
        for split, ids in lists.items():
            (unfinished / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{image}\n" for image in ids))
            load_dataset(unfinished, split)  # the library's own check
        if root.exists():
            root.rmdir()
        unfinished.chmod(0o755)
        os.replace(unfinished, root)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{root}: cannot be written ({reason}); free some space or choose another folder") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {
        "photographs": len(table),
        "labels": sum(map(len, table.values())),
        "without a class": sum(not present for present in table.values()),
        "train": len(lists["train"]),
        "val": len(lists.get("val", ())),
    }


def _check_classes(classes: Sequence[str]) -> None:
    wrong = [word for word in classes if not is_one_line(word) or word != word.strip() or word == "image_id"]
    if not 1 <= len(classes) < IGNORE or len(set(classes)) != len(classes) or wrong:
        given = ", ".join(map(repr, classes))[:200] or "none"
        raise DataError(f"there must be 1 to 254 classes with different names, not {given}")


def _write_image(image: str, path: Path, root: Path, masks: Path | None, num_classes: int, longest: int) -> list[int]:
    """Write one photograph and its mask; return the classes of the mask, 0-based."""
    target = root / "JPEGImages" / f"{image}.jpg"
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as opened:
            opened.load()
            mode = opened.mode
            upright = ImageOps.exif_transpose(opened).convert("RGB")
            ready = opened.format == "JPEG" and opened.mode in ("RGB", "L") and opened.getexif().get(ORIENTATION, 1) == 1
    except Exception as error:  # Pillow raises one of a dozen types
        raise DataError(f"{path}: the photograph cannot be read ({type(error).__name__}); replace it or take it out") from None
    if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise DataError(f"{path}: the photograph has pixels of mode {mode}; save it with 8 bits a channel")
    scale = min(1.0, longest / max(upright.size)) if longest else 1.0
    width, height = (max(1, round(side * scale)) for side in upright.size)
    if ready and scale == 1:
        shutil.copyfile(path, target)
    else:
        upright.resize((width, height), Image.Resampling.LANCZOS).save(target, quality=95, subsampling=0)
    if not masks:
        return []
    mask = read_mask(masks / f"{path.stem}.png", num_classes, upright.size)
    mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    write_mask(root / "SegmentationClass" / f"{image}.png", mask)
    return [int(value) - 1 for value in np.unique(mask) if 0 < value < IGNORE]


def _split(ids: list[str], val_share: float) -> dict[str, list[str]]:
    if not 0 <= val_share < 1:
        raise DataError(f"the share of photographs for validation must lie between 0 and 1, not be {val_share}")
    val = [image for number, image in enumerate(ids) if int((number + 1) * val_share) > int(number * val_share)]
    train = [image for image in ids if image not in set(val)]
    if not train:
        raise DataError(f"a val share of {val_share} leaves no photograph for training; take a smaller one")
    return {"train": train, "val": val} if val else {"train": train}


def _has_folders(source: Path) -> bool:
    return source.is_dir() and any(path.is_dir() and not path.name.startswith(".") for path in source.iterdir())


def _photographs_of(options: argparse.Namespace) -> tuple[dict[str, Photograph], tuple[str, ...]]:
    order = tuple(word.strip() for word in options.classes.split(",")) if options.classes else ()
    if options.masks and not order:
        raise DataError("--masks needs --classes: the class names in the order of the masks' values 1, 2, …")
    if options.labels:
        photographs, classes = from_table(options.photographs, options.labels)
    elif options.masks and not _has_folders(options.photographs):
        photographs, classes = from_folder(options.photographs), order
    else:
        photographs, classes = from_class_folders(options.photographs)
    if order and set(order) != set(classes):
        raise DataError(f"--classes names {', '.join(order)}, but the labels name {', '.join(classes)}")
    return photographs, order or classes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence.

    Args:
        arguments: the words after the program's name; None: those of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.custom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path, help="folder of photographs, or of one folder for each class")
    parser.add_argument("root", type=Path, help="the data set to make, e.g. data/mine")
    parser.add_argument("--labels", type=Path, metavar="table.csv")
    parser.add_argument("--masks", type=Path, metavar="FOLDER")
    parser.add_argument("--classes", help="class names in the order of the masks' values: cat,dog")
    parser.add_argument("--name", default="", help="of the data set; default: the folder's")
    parser.add_argument("--val-share", type=float, default=0.2, help="of the photographs, kept for validation; default 0.2")
    parser.add_argument("--longest", type=int, default=500, help="pixels of the longer side at most, 0: as it is; default 500")
    options = parser.parse_args(arguments)
    try:
        photographs, classes = _photographs_of(options)
        counts = make_dataset(
            photographs, classes, options.root, options.name, options.masks, options.val_share, options.longest
        )
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.root}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    print(f"go on with -p dataset {dataset_name(options.root)} -p data_root {options.root}")


if __name__ == "__main__":
    main()
