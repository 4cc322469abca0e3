"""Make a ready data set of your own photographs: a folder of images with a table of labels, class folders, or masks.

    python -m data_prep.custom photographs data/mine                                  (photographs/cat/*.jpg, .../dog/*.jpg)
    python -m data_prep.custom photographs data/mine --labels table.csv               (photographs/*.jpg)
    python -m data_prep.custom photographs data/mine --labels annotations             (COCO's JSON, LabelMe's or VOC's files)
    python -m data_prep.custom photographs data/mine --masks masks --classes cat,dog  (photographs/*.jpg, masks/*.png)
    python -m data_prep.custom photographs data/mine --masks masks --legend legend.txt

A table has a line of headings and then one line for each photograph. Either `image,classes`, with the class names separated by
semicolons (`beach.jpg,dog;person`; none: nothing of interest is there), or `image,cat,dog` with 0 or 1 in each column. The
same file in two class folders has both classes; photographs of nothing lie in a folder `none`. Folders train and val become
lists. Masks have the photographs' names and hold class indices: 0 background, then the classes in the order of `--classes`, 255
unknown; or colors, of which each line of the legend names one: `cat,#ff0000`. If labels are also given, masks are kept only for
scoring; then some photographs may be without one, and the list `scored` names those for training that have one.

The data set has the layout that every notebook reads. Photographs are turned upright and, where the longer side exceeds
`--longest`, resized; ready JPEGs are copied unchanged.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.annotations import from_annotations
from data_prep.label_tables import from_table
from data_prep.own_masks import Legend, MaskFolder, MaskSource, read_legend
from data_prep.own_preset import dataset_name, write_preset
from data_prep.photographs import (
    FORMATS,
    Note,
    Photograph,
    class_folder_names,
    composed,
    from_class_folders,
    from_folder,
    given_lists,
    image_id,
    is_nothing,
)
from data_prep.voc_labels import write_labels
from wsss_lib.core.files import IGNORE, read_json, whole_folder, write_mask
from wsss_lib.core.progress import progress
from wsss_lib.core.texts import is_one_line
from wsss_lib.data.dataset import load_dataset
from wsss_lib.errors import DataError
from wsss_lib.parameters import PRESETS, PROJECT_ROOT
from wsss_lib.presets import PHOTOGRAPHS

__all__ = ["Photograph", "dataset_name", "from_class_folders", "from_folder", "from_table", "image_id", "main", "make_dataset"]
ORIENTATION = 274  # tag of a photograph's EXIF record
TURNS = {  # orientations that swap width and height, and what undoes them
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SMALLEST = 32  # pixels; photographs below show nothing
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def source_hash(
    photographs: Mapping[str, Photograph], classes: Sequence[str], longest: int, masks: MaskSource | None = None
) -> str:
    """Return a hash of what a data set is made from: photographs, what is in them, their masks, and the size that they get.

    Only the length and the first 64 KiB of each file count, so ten thousand photographs take seconds.

    Args:
        longest: as for `make_dataset`.

    Returns:
        8 hexadecimal digits.
    """
    hashed = hashlib.sha256(json.dumps([list(classes), longest]).encode())
    for image, (photograph, present) in sorted(photographs.items()):
        hashed.update(json.dumps([image, present]).encode())
        for path in filter(Path.is_file, [photograph, *([Path(masks.place(image))] if masks else [])]):
            hashed.update(str(path.stat().st_size).encode())
            with open(path, "rb") as file:
                hashed.update(file.read(1 << 16))
    return hashed.hexdigest()[:8]


def place_of(folder: Path, name: str, source: str) -> Path:
    """Return where the data set of a source lies, or will be made: never a place that holds another one.

    Args:
        folder: of all data sets.
        name: the preferred one.
        source: from `source_hash`.
    """
    root = folder / name
    if not root.exists():
        return root
    record = root / "dataset.json"
    same = record.is_file() and read_json(record).get("source") == source
    return root if same else folder / f"{name}-{source}"


def make_dataset(
    photographs: Mapping[str, Photograph],
    classes: Sequence[str],
    root: Path,
    name: str = "",
    masks: Path | MaskSource | None = None,
    val_share: float = 0.2,
    longest: int = 500,
    lists: Mapping[str, str] | None = None,
    note: Note = print,
) -> dict[str, int]:
    """Write a data set folder, whole or not at all.

    Args:
        photographs: image id to photograph; if the classes are not known, the mask tells them.
        classes: names of the C foreground classes, in order.
        root: the folder to make; it must not exist.
        name: of the data set; empty: the folder's.
        masks: folder of `NAME.png`, or what returns them; if the classes are known, some may be missing. None: there are none.
        val_share: this fraction of the photographs, evenly spread, makes the list `val`; 0: there is none. If only some have
            masks, it is that fraction of these, and every class keeps a photograph for training.
        longest: larger photographs are resized until their longer side has so many pixels; 0: none is.
        lists: image id to the name of its list; empty or None: `val_share` decides.
        note: takes sentences about contradictions between sources.

    Returns:
        {"photographs", "labels", "without a class", "train", "val"}: how many there are; "masks" if some are given, and
        "scored" if not all have one: those of `train` that do, which the list `scored` names.

    Raises:
        DataError: the folder exists, a photograph or a mask is missing, cannot be read or does not fit, labels and masks
            contradict each other, or a class has no photograph; nothing is left then.
    """
    _check_classes(classes)
    if longest and longest < SMALLEST:
        raise DataError(f"--longest {longest}: give at least {SMALLEST} pixels, or 0 to leave the photographs as they are")
    description: dict[str, Any] = {"name": name or dataset_name(root), "classes": list(classes), "ignore_index": IGNORE}
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: exists already; remove it or choose another folder")
    if isinstance(masks, Path):
        masks = MaskFolder(masks, photographs, classes)
    description["source"] = source_hash(photographs, classes, longest, masks)
    with whole_folder(root) as unfinished:
        table, shown, broken = {}, {}, []
        for folder in ("JPEGImages", *(["SegmentationClass"] if masks else [])):
            (unfinished / folder).mkdir()
        for image, photograph in progress(photographs.items(), "photographs", total=len(photographs)):
            try:
                seen = _write_image(image, photograph.path, unfinished, masks, longest)
            except _UnreadableError as error:
                broken.append(str(error))
                continue
            if seen is not None:
                shown[image] = tuple(classes[index] for index in seen)
            elif photograph.classes is None and masks:
                raise DataError(f"{masks.place(image)}: the mask is missing; without labels every photograph needs one")
            table[image] = photograph.classes if photograph.classes is not None else shown[image]
        _refuse_unreadable(broken)
        if masks:
            _compare(table, shown, classes, masks, note)
        unused = [word for word in classes if not any(word in present for present in table.values())]
        if unused:
            raise DataError(f"{root}: no photograph has the class {unused[0]!r}; take the class out or add photographs of it")
        write_labels(unfinished / "labels.csv", table, classes)
        (unfinished / "dataset.json").write_text(
            json.dumps(description, indent=1) + "\n",
            encoding="utf-8",
        )
        splits = _given(table, lists) if lists else _split(table, val_share, shown)
        if shown and len(shown) < len(table) and (scored := [image for image in splits["train"] if image in shown]):
            splits["scored"] = scored
        (unfinished / "ImageSets" / "Segmentation").mkdir(parents=True)
        for split, ids in splits.items():
            path = unfinished / "ImageSets" / "Segmentation" / f"{split}.txt"
            path.write_text("".join(f"{image}\n" for image in ids), encoding="utf-8")
            load_dataset(unfinished, split)  # the library's own check
        write_preset(unfinished, root, len(splits["train"]), len(classes), "val" in splits)
    counts = {
        "photographs": len(table),
        "labels": sum(map(len, table.values())),
        "without a class": sum(not present for present in table.values()),
        "train": len(splits["train"]),
        "val": len(splits.get("val", ())),
    }
    counts |= {split: len(splits[split]) for split in ("test",) if split in splits}
    counts |= {"masks": len(shown)} if masks else {}
    return counts | ({"scored": len(splits["scored"])} if "scored" in splits else {})


def _check_classes(classes: Sequence[str]) -> None:
    nothing = [word for word in classes if is_nothing(word)]
    if nothing:
        raise DataError(
            f"{nothing[0]!r} is not a class: the background is 0 in masks and is not listed; take it out, images of nothing "
            "have an empty cell or lie in a folder 'none'"
        )
    if not classes:
        raise DataError("there must be 1 to 254 classes, but nothing names one; at least one photograph needs a class")
    wrong = [word for word in classes if not is_one_line(word) or word != word.strip() or word == "image_id"]
    if not 1 <= len(classes) < IGNORE or len(set(classes)) != len(classes) or wrong:
        given = ", ".join(map(repr, classes))[:200]
        raise DataError(f"there must be 1 to 254 classes with different names, not {given}")


class _UnreadableError(DataError):
    """A photograph cannot be used."""


def _refuse_unreadable(broken: Sequence[str]) -> None:
    if broken:
        names = [sentence.split(": ")[0].rpartition(os.sep)[2] for sentence in broken[1:]]
        more = f"; nor can {len(names)} others: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else ""
        raise DataError(f"{broken[0]}{more}; replace them or take them out")


def _write_image(image: str, path: Path, root: Path, masks: MaskSource | None, longest: int) -> list[int] | None:
    """Write one photograph and its mask; return the classes of the mask, 0-based, or None without one."""
    target = root / "JPEGImages" / f"{image}.jpg"
    try:
        with Image.open(path, formats=FORMATS) as opened:
            opened.load()
            mode, size, orientation = opened.mode, opened.size, opened.getexif().get(ORIENTATION, 1)
            upright = ImageOps.exif_transpose(opened).convert("RGB")
            ready = opened.format == "JPEG" and mode in ("RGB", "L") and orientation == 1
    except Exception as error:  # Pillow raises one of a dozen types
        reason = "no image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):
            reason = f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels, make it smaller"
        reason = reason if path.stat().st_size else "it is empty"
        raise _UnreadableError(f"{path}: the photograph cannot be read ({reason[:100]})") from None
    if mode not in MODES:
        raise _UnreadableError(f"{path}: the photograph has pixels of mode {mode}; save it with 8 bits a channel")
    scale = min(1.0, longest / max(upright.size)) if longest else 1.0
    width, height = (max(1, round(side * scale)) for side in upright.size)
    if ready and scale == 1:
        shutil.copyfile(path, target)
    else:
        upright.resize((width, height), Image.Resampling.LANCZOS).save(target, quality=95, subsampling=0)
    mask = masks(image) if masks else None
    if mask is None:
        return None
    assert masks
    picture = Image.fromarray(mask)
    if picture.size != upright.size and picture.size == size:  # drawn on the photograph as it lies in the file
        picture = picture.transpose(TURNS[orientation])
    if picture.size != upright.size:
        raise DataError(
            f"{masks.place(image)}: the mask is {picture.width}x{picture.height} pixels but its image is {upright.width}x"
            f"{upright.height}; make the mask again from the original annotation"
        )
    if (mask == IGNORE).all():
        raise DataError(
            f"{masks.place(image)}: every pixel of the mask is {IGNORE}, unknown; draw it, or take it out, or "
            "where 255 is the object say so with --legend 'NAME=255'"
        )
    written = np.asarray(picture.resize((width, height), Image.Resampling.NEAREST))
    write_mask(root / "SegmentationClass" / f"{image}.png", written)
    return [int(value) - 1 for value in np.unique(mask) if 0 < value < IGNORE]


def _compare(
    table: Mapping[str, tuple[str, ...]],
    shown: Mapping[str, tuple[str, ...]],
    classes: Sequence[str],
    masks: MaskSource,
    note: Note,
) -> None:
    """Compare labels and masks with each other.

    Raises:
        DataError: a class has labels but no pixel in any mask.
    """
    first = masks.place(next(iter(shown), next(iter(table))))
    black_and_white = masks.values <= {0, IGNORE} and IGNORE in masks.values
    if black_and_white and not any(shown.values()):
        raise DataError(
            f"{first}: this mask and all others hold only 0 and 255, so that no pixel belongs to class {classes[0]!r}, "
            f"as 255 means unknown; where it is the object write 1, or give --legend '{classes[0]}=255'"
        )
    for word in classes:
        labelled = [image for image in shown if word in table[image]]
        if labelled and not any(word in present for present in shown.values()):
            raise DataError(
                f"{masks.place(labelled[0])}: class {word!r} has labels but no pixel in any mask, neither here nor in the "
                f"masks of {len(labelled) - 1} other photographs that have its label; check the values and --classes"
            )
    lacking = [image for image, present in shown.items() if set(table[image]) - set(present)]
    if lacking:
        note(f"{len(lacking)} masks have no pixel of a class of their label, the first is that of {lacking[0]}")
    denied = [image for image, present in shown.items() if set(present) - set(table[image])]
    if denied:
        classes_shown, label = ", ".join(shown[denied[0]]), ", ".join(table[denied[0]]) or "nothing"
        note(
            f"labels and masks differ: the masks of {len(denied)} photographs show a class that their labels deny, the first "
            f"is {denied[0]}: the mask shows {classes_shown}, the label says {label}"
        )


def _given(table: Mapping[str, tuple[str, ...]], lists: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the lists that folders gave."""
    splits = {split: [image for image in table if lists[image] == split] for split in ("train", "val", "test")}
    splits = {split: ids for split, ids in splits.items() if ids}
    without = [
        word for word in set().union(*table.values()) if not any(word in table[image] for image in splits.get("train", ()))
    ]
    if without:
        raise DataError(f"the folder for training has no photograph of class {min(without)!r}; move some of them there")
    return splits


def _split(table: Mapping[str, tuple[str, ...]], val_share: float, shown: Mapping[str, object]) -> dict[str, list[str]]:
    """Return the lists `train` and `val`: of those with masks, if only some have one, and of no class the last photograph."""
    if not 0 <= val_share < 1:
        raise DataError(f"the share of photographs for validation must lie between 0 and 1, not be {val_share}")
    candidates = [image for image in table if image in shown]
    if int(len(candidates) * val_share) == 0:  # all that have masks are needed for scoring
        candidates = [image for image in table if len(shown) == len(table) or image not in shown]
    left = {word: sum(word in present for present in table.values()) for word in set().union(*table.values())}
    chosen = [image for n, image in enumerate(candidates) if int((n + 1) * val_share) > int(n * val_share)]
    val: list[str] = []
    for image in chosen or (reversed(candidates) if val_share else ()):  # one of a few photographs
        if len(val) < max(1, len(chosen)) and len(val) < len(table) - 1 and all(left[word] > 1 for word in table[image]):
            val.append(image)
            left = {word: count - (word in table[image]) for word, count in left.items()}
    train = [image for image in table if image not in set(val)]
    return {"train": train, "val": val} if val else {"train": train}


def sources_of(options: argparse.Namespace) -> tuple[dict[str, Photograph], tuple[str, ...], MaskSource | None]:
    """Return the photographs, classes and masks that the command was given."""
    order = tuple(composed(word) for word in options.classes.split(",")) if options.classes else ()
    if options.masks and _one_in_the_other(options.photographs, options.masks):
        raise DataError(
            f"{options.masks}: photographs and masks must not lie in one folder, or one folder in the other, as masks are "
            "pictures too; give two folders"
        )
    legend = read_legend(options.legend) if options.legend else None
    masks: MaskSource | None = None
    if order:
        _check_classes(order)
    if legend and not options.masks:
        raise DataError("--legend says what the colors of masks mean; give them with --masks")
    if options.masks and not order and not legend:
        raise DataError("--masks needs --classes: the class names in the order of the masks' values 1, 2, …; or --legend")
    if options.labels and (options.labels.is_dir() or options.labels.suffix.lower() == ".json"):
        photographs, classes, masks = from_annotations(options.photographs, options.labels)
        if order and masks and not options.masks and order != classes:
            raise DataError(f"--classes must be {','.join(classes)}, as {options.labels} orders them; or leave it out")
    elif options.labels:
        photographs, classes = from_table(options.photographs, options.labels)
    elif options.masks and not _are_classes(options.photographs, order or (legend.classes if legend else ())):
        photographs = from_folder(options.photographs)
        classes = order or (_shown(options.masks, photographs, legend) if legend else ())
    else:
        photographs, classes = from_class_folders(options.photographs)
    if order:
        spelled = {word.casefold(): word for word in order}
        if set(spelled) != {word.casefold() for word in classes}:
            raise DataError(f"--classes names {', '.join(order)}, but the labels name {', '.join(classes)}")
        photographs = {
            name: Photograph(path, None if present is None else tuple(spelled[word.casefold()] for word in present))
            for name, (path, present) in photographs.items()
        }
        classes = order
    if options.masks:
        masks = MaskFolder(options.masks, photographs, classes, legend)
        if masks.without_photograph:
            print(
                f"left out: {len(masks.without_photograph)} masks of no photograph, the first is {masks.without_photograph[0]}"
            )
    return photographs, classes, masks


def _one_in_the_other(one: Path, other: Path) -> bool:
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def _are_classes(source: Path, classes: Sequence[str]) -> bool:
    """Return whether the folders are class folders, and not others that hold photographs."""
    return bool({name.casefold() for name in class_folder_names(source)} & {word.casefold() for word in classes})


def _shown(folder: Path, photographs: Mapping[str, Photograph], legend: Legend) -> tuple[str, ...]:
    """Return those classes of a legend that a mask shows."""
    masks = MaskFolder(folder, photographs, legend.classes, legend)
    for image in progress(photographs, "masks"):
        masks(image)
    used = tuple(word for value, word in enumerate(legend.classes, start=1) if value in masks.values)
    if unused := [word for word in legend.classes if word not in used]:
        print(f"left out: classes of {legend.source} that no mask shows: {', '.join(unused)}")
    return used


def add_sources(parser: argparse.ArgumentParser, val_share: float) -> None:
    """Add the options that say what is in the photographs, and how a data set is made from them.

    Args:
        val_share: the default of `--val-share`.
    """
    parser.add_argument(
        "--labels", type=Path, metavar="PATH", help="table.csv, COCO's JSON, folder of LabelMe's or VOC's files"
    )
    parser.add_argument("--masks", type=Path, metavar="FOLDER")
    parser.add_argument("--classes", help="class names in the order of the masks' values: cat,dog")
    parser.add_argument(
        "--legend",
        metavar="FILE",
        help="what colors of masks mean: lines such as cat,#ff0000, or in place of a file 'cat=255'",
    )
    parser.add_argument(
        "--val-share", type=float, default=val_share, help="of the photographs, kept for validation; default %(default)s"
    )
    parser.add_argument("--longest", type=int, default=500, help="pixels of the longer side at most, 0: as it is; default 500")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.custom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path, help="folder of photographs, or of one folder for each class")
    parser.add_argument("root", type=Path, help="the data set to make, e.g. data/mine")
    parser.add_argument("--name", default="", help="of the data set; default: the folder's")
    add_sources(parser, val_share=0.2)
    options = parser.parse_args(arguments)
    try:
        if options.root.resolve().is_relative_to(options.photographs.resolve()):
            raise DataError(
                f"{options.root}: lies in the folder of photographs, where it would be taken for some of them; name another"
            )
        photographs, classes, masks = sources_of(options)
        lists = given_lists(options.photographs, photographs)
        counts = make_dataset(
            photographs, classes, options.root, options.name, masks, options.val_share, options.longest, lists
        )
    except (OSError, ValueError, ModuleNotFoundError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.root}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    print(f"classes: {', '.join(classes)}")
    if "scored" in counts:
        print(
            f"{counts['masks']} of {counts['photographs']} photographs have masks; ImageSets/Segmentation/scored.txt lists the "
            f"{counts['scored']} of train, and only these are scored"
        )
    print(_go_on(options.root))


def _go_on(root: Path) -> str:
    """Return the commands that come next; they are valid in every folder."""
    preset = root.absolute() / "preset.yaml"
    pipeline = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT_ROOT / "Snakefile"), "--cores", "2"]
    pipeline += ["--config", f"preset={preset}"]
    notebook = ["papermill", PROJECT_ROOT / "notebooks" / "10_cam.ipynb", "out.ipynb", "-f", PRESETS / f"{PHOTOGRAPHS}.yaml"]
    notebook += ["-f", preset, "-p", "dataset", dataset_name(root), "-r", "labels", "", "-p", "data_root", root.absolute()]
    return f"the whole pipeline: {shlex.join(pipeline)}\nor notebook by notebook, go on with {shlex.join(map(str, notebook))}"


if __name__ == "__main__":
    main()
