"""Make `labels.csv`, the table of image-level labels, from VOC's XML annotations.

    python -m data_prep.voc_labels data/voc12/VOC2012 data/voc12/VOC2012/labels.csv

Every image of every list in `ImageSets/Segmentation` gets a row, except those of `test.txt`: VOC publishes no annotations of
its test images.
"""

import argparse
import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from data_prep.voc_xml import read_voc_classes, read_voc_names
from data_prep.writing import write_new
from wsss_lib.data.dataset import VOC_CLASSES, read_classes, read_split
from wsss_lib.errors import DataError


def labels_from_xml(root: Path | str, classes: Sequence[str] = VOC_CLASSES) -> dict[str, list[str]]:
    """Return the classes of every listed image: image id to class names, ids sorted.

    Args:
        root: devkit folder with `Annotations` and `ImageSets/Segmentation`.
        classes: names of the foreground classes.

    Returns:
        image id to its class names in the order of `classes`; none if the annotation has no object.

    Raises:
        FileNotFoundError: an annotation is missing.
        DataError: there is no list, an annotation cannot be read or has objects but none of the classes, or none has any.

    Explained in notebook 02, section "Image-level labels".
    """
    root = Path(root)
    lists = root / "ImageSets" / "Segmentation"
    splits = sorted(path.stem for path in lists.glob("[!.]*.txt") if path.stem != "test")
    if not splits:
        raise DataError(
            f"{lists}: there is no list of images (train.txt, val.txt, …); give the folder that holds ImageSets, "
            "for VOC it is named VOC2012"
        )
    ids = sorted({image_id for split in splits for image_id in read_split(root, split)})
    table = {}
    for image_id in ids:
        path = root / "Annotations" / f"{image_id}.xml"
        table[image_id] = read_voc_classes(path, classes)
        if not table[image_id] and (names := read_voc_names(path)):
            raise DataError(
                f"{path}: names none of the classes {', '.join(classes)}, but {', '.join(dict.fromkeys(names))[:100]}; take "
                "the image out of the lists or give the data set's own classes with --classes-from"
            )
    if not any(table.values()):
        raise DataError(f"{root / 'Annotations'}: no annotation has an object; annotate those images that show something")
    return table


def label_table(table: Mapping[str, Collection[str]], classes: Sequence[str]) -> str:
    """Return the text of a label table: a row for each image, first `image_id`, then 0 or 1 for each class in order.

    Args:
        table: image id to names of its classes.
        classes: names of all foreground classes, in order.

    Explained in notebook 02, section "Image-level labels".
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", *classes])
    writer.writerows([image_id, *(int(name in present) for name in classes)] for image_id, present in table.items())
    return text.getvalue()


def write_labels(
    path: Path | str,
    table: Mapping[str, Collection[str]],
    classes: Sequence[str],
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
) -> None:
    """Write a label table atomically.

    Args:
        path: the CSV file to make.
        table, classes: as `label_table`.
        overwrite: replace an existing file with other content.
        inputs: files that the table was made from, which are never replaced.

    Raises:
        DataError: the file exists with other content, or is one of the inputs.

    Explained in notebook 02, section "Image-level labels".
    """
    write_new(Path(path), label_table(table, classes), overwrite, inputs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.voc_labels", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="devkit folder, with Annotations and ImageSets")
    parser.add_argument("output", type=Path, help="the table to write, usually ROOT/labels.csv")
    parser.add_argument("--classes-from", type=Path, metavar="dataset.json", help="class names; default: the 20 of VOC")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there with other content")
    options = parser.parse_args(arguments)
    try:
        classes = read_classes_file(options.classes_from) if options.classes_from else VOC_CLASSES
        table = labels_from_xml(options.root, classes)
        write_labels(options.output, table, classes, options.overwrite, [options.classes_from] if options.classes_from else [])
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.output}: {len(table)} images, {sum(map(len, table.values()))} labels")


def read_classes_file(path: Path) -> tuple[str, ...]:
    """Return the foreground class names of a `dataset.json`.

    Raises:
        DataError: there is no such file, it has another name, or no list of classes.
    """
    if path.name != "dataset.json" or not path.is_file():
        raise DataError(f"{path}: --classes-from needs an existing file named dataset.json")
    return read_classes(path.parent)


if __name__ == "__main__":
    main()
