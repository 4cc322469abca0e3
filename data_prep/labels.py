"""Make `labels.csv` from the label file that the authors distribute, `cls_labels.npy`.

    python -m data_prep.labels import cls_labels.npy data/voc12/VOC2012/labels.csv
    python -m data_prep.labels import cls_labels_coco.npy data/coco14/labels.csv --classes-from data/coco14/dataset.json

The file is a pickle; its reader knows the five names that such a file needs and runs nothing. Its ids are
integers or strings: 2007000032 is VOC's 2007_000032, any other integer COCO's twelve digits. The table can also be made without
that file (`python -m data_prep.voc_labels`), which is the better way.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.restricted import read_npy
from data_prep.voc_labels import read_classes_file, write_labels
from wsss_lib.data.dataset import VOC_CLASSES
from wsss_lib.errors import DataError


def image_id(key: int | str) -> str:
    """Return the image id that a key of the authors' tables stands for.

    Args:
        key: a string, or an integer made from one by dropping the underscore or the leading zeros.

    Raises:
        ValueError: it cannot be an image id.

    >>> image_id(2007000032), image_id(57870), image_id("2007_000032")
    ('2007_000032', '000000057870', '2007_000032')
    """
    if isinstance(key, str):
        if not key or "/" in key or "\\" in key or key.startswith(".") or key.split() != [key]:
            raise ValueError(f"{key!r} is not an image id")
        return key
    if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < 10**12:
        raise ValueError(f"{key!r} is not an image id")
    return f"{key // 10**6}_{key % 10**6:06d}" if 2007 <= key // 10**6 <= 2012 else f"{key:012d}"


def labels_from_npy(path: Path | str, classes: Sequence[str] = VOC_CLASSES) -> dict[str, list[str]]:
    """Read the classes of every image from a `cls_labels.npy`.

    Args:
        path: the file: a pickled dict from image id to C values 0 or 1.
        classes: names of the C foreground classes, in the file's order.

    Returns:
        image id to the names of its classes, ids sorted; the list may be empty (COCO has such images).

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not such a table, asks for a name that it should not need, or has another number of classes.
    """
    table = read_npy(path)
    if not isinstance(table, dict) or not table:
        raise DataError(
            f"{path}: holds no table of labels; give the cls_labels.npy of IRN, RIB, AMN, VWE, AffinityNet or SC-CAM"
        )
    result = {}
    for key, values in table.items():
        try:
            name = image_id(key)
        except ValueError as error:
            raise DataError(f"{path}: {error}; give the file that the authors distribute") from None
        if not isinstance(values, np.ndarray) or values.shape != (len(classes),) or not np.isin(values, (0, 1)).all():
            shape = values.shape if isinstance(values, np.ndarray) else ()
            found = f"{values.size} values" if shape else f"a {type(values).__name__}"
            found = "other values" if shape == (len(classes),) else found
            raise DataError(
                f"{path}: image {name} has {found} where {len(classes)} zeros and ones are needed, one for each "
                "class; for other classes than VOC's give --classes-from"
            )
        if name in result:
            raise DataError(f"{path}: image {name} is there twice; give the file that the authors distribute")
        result[name] = [word for word, value in zip(classes, values, strict=True) if value]
    return dict(sorted(result.items()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.labels", description=__doc__.splitlines()[0])
    command = parser.add_subparsers(dest="command", required=True).add_parser("import", help="cls_labels.npy to labels.csv")
    command.add_argument("file", type=Path, help="the authors' file")
    command.add_argument("output", type=Path, help="the table to write, usually ROOT/labels.csv")
    command.add_argument("--classes-from", type=Path, metavar="dataset.json", help="class names; default: the 20 of VOC")
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there with other content")
    options = parser.parse_args(arguments)
    try:
        classes = read_classes_file(options.classes_from) if options.classes_from else VOC_CLASSES
        table = labels_from_npy(options.file, classes)
        write_labels(options.output, table, classes, options.overwrite, [options.file, options.classes_from or options.file])
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.output}: {len(table)} images, {sum(map(len, table.values()))} labels")


if __name__ == "__main__":
    main()
