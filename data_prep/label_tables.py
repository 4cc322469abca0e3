"""Read tables of image-level labels in the forms that people use."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_prep.photographs import Note, Photograph, composed, find_by_name, from_folder, is_nothing, same_spelling
from wsss_lib.core.files import read_table
from wsss_lib.errors import DataError

IMAGE_HEADINGS = tuple(
    "image images image_id imageid image_name imagename image_path img filename file_name file files path filepath "
    "file_path name photo photograph picture id".split()
)
SEVERAL = {"classes", "labels", "tags", "categories", "objects"}  # all classes of a photograph in one cell
ONE = {"class", "label", "tag", "category", "class_name", "classname", "label_name", "object"}  # perhaps a line for each class
YES = {"1", "1.0", "true", "yes", "y", "t", "x", "wahr", "ja", "vrai", "oui"}
NO = {"0", "0.0", "-1", "false", "no", "n", "f", "", "falsch", "nein", "faux", "non"}
NO_VALUE = {"nan", "n/a", "#n/a", "null", "-", "?"}  # what programs and people write for a missing value
NO_TABLES = (".xml", ".yaml", ".yml", ".jsonl", ".ndjson")
FORMS = "the first line must be image,classes or image and the names of the classes"


def from_table(source: Path, table: Path, note: Note = print) -> tuple[dict[str, Photograph], tuple[str, ...]]:
    """Find the photographs of a folder and their classes in a table.

    Args:
        source: the folder of photographs.
        table: CSV file (commas, semicolons or tabs) with the headings `image,classes` (names separated by semicolons, commas
            or bars; or a line for each class under the heading `class` or `label`), or `image` and one 0/1 column for each
            class; images by path, file name or id.
        note: takes sentences about what was left out or joined.

    Returns:
        image id to photograph, ids sorted; the class names, in the order of the columns, or sorted.

    Raises:
        DataError: the folder or the table is missing or of another form, or they do not name the same photographs.
    """
    if table.suffix.lower() in NO_TABLES:
        raise DataError(
            f"{table}: a {table.suffix} is no table; export the annotations as COCO's JSON, as a folder of VOC's XML files, or "
            "as CSV"
        )
    found = from_folder(source, note)
    try:
        lines = read_table(table)
    except OSError as error:
        raise DataError(f"{table}: the table of labels is missing ({error.strerror})") from None
    except DataError as error:
        if table.suffix.lower() in (".xlsx", ".xls", ".ods", ".numbers"):
            raise DataError(f"{table}: a spreadsheet cannot be read; save it as CSV (UTF-8)") from None
        raise DataError(str(error)) from None
    labels, classes = _by_image(source, table, lines, found, note)
    without = [name for name in found if name not in labels]
    if without:
        raise DataError(
            f"{table}: no row for {found[without[0]].path.name} and {len(without) - 1} other photographs; add them "
            "(an empty cell says that nothing of interest is there) or take the files out of the folder"
        )
    return {name: Photograph(path, labels[name]) for name, (path, _) in found.items()}, classes


def _by_image(
    source: Path, table: Path, lines: list[tuple[int, list[str]]], found: dict[str, Photograph], note: Note
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    find = find_by_name(found, source)
    headings, rows = _columns(table, lines)
    if any(find(word) for word in headings):
        raise DataError(f"{table}: has no line of headings; {FORMS}")
    image = next((headings.index(word) for word in IMAGE_HEADINGS if word in headings), 0)
    kinds = [index for index, word in enumerate(headings) if index != image and word in SEVERAL | ONE]
    cells = {row[1 - image].lower() for _, row in rows if len(headings) == len(row) == 2} - {""}
    if cells and cells.isdisjoint(YES | NO):  # names of classes, perhaps under a heading of another language
        kinds = [1 - image]
    by_name = len(kinds) == 1 and (len(headings) == 2 or _is_list(headings, rows, image, kinds[0]))
    columns = kinds if by_name else _class_columns(headings, rows, image)
    written = [composed(cell) for cell in lines[0][1]]  # the headings in their own capitals
    written = written[len(written) - len(headings) :]
    if (
        by_name
        and (numbers := {row[columns[0]] for _, row in rows if len(row) == len(headings)})
        and all(re.fullmatch(r"-?\d+(\.\d+)?", text) for text in numbers - {""})
        and numbers != {""}
    ):
        raise DataError(
            f"{table}: the column {written[columns[0]]!r} holds the numbers {', '.join(sorted(numbers)[:5])}; write the names "
            "of the classes there"
        )
    labels: dict[str, tuple[str, ...]] = {}
    unknown: list[tuple[int, str]] = []
    words: Counter[str] = Counter()
    for number, row in rows:
        wrong = [row[index] for index in columns if index < len(row) and row[index].lower() not in YES | NO]
        if len(row) != len(headings) or not by_name and wrong:
            needed = f"{len(headings)} columns" + (
                " (several classes in one cell stand in quotes or between semicolons)"
                if by_name
                else f", 0 or 1 after the first{f', not {wrong[0]!r:.40}' if wrong else ''}"
            )
            raise DataError(f"{table}, row {number}: a row needs {needed}")
        if by_name and row[columns[0]].lower() in NO_VALUE:
            raise DataError(
                f"{table}, row {number}: {row[columns[0]]!r} may mean that nothing of interest is there, or be a class; leave "
                "the cell empty, or give the class another name"
            )
        names = find(row[image]) if row[image] else []
        if len(names) > 1:
            raise DataError(
                f"{table}, row {number}: {row[image]!r} may be {' or '.join(names[:3])}; write the path below {source}, with "
                "folder and ending"
            )
        if not names:
            unknown.append((number, row[image]))
            continue
        present = (
            _words(row[columns[0]]) if by_name else tuple(written[index] for index in columns if row[index].lower() in YES)
        )
        words.update(present)
        name = names[0]
        if name in labels and headings[columns[0]] in ONE and by_name:
            present = tuple(dict.fromkeys((*labels[name], *present)))
        elif name in labels and set(labels[name]) != set(present):
            raise DataError(f"{table}, row {number}: {row[image]!r} has a second row; take one of them out")
        labels[name] = present
    if unknown:
        number, text = unknown[0]
        more = f", and those of {len(unknown) - 1} more rows are not either" if len(unknown) > 1 else ""
        raise DataError(
            f"{table}, row {number}: {text!r} is not a photograph in {source}{more}; put the files there or take the rows out"
        )
    if not by_name:
        return labels, tuple(written[index] for index in columns)
    one_name = same_spelling(words.elements(), note)
    labels = {
        name: tuple(dict.fromkeys(one_name[word] for word in present if one_name[word])) for name, present in labels.items()
    }
    return labels, tuple(sorted(set(one_name.values()) - {""}))


def _columns(table: Path, lines: list[tuple[int, list[str]]]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the headings in small letters and the rows, both without the column of row numbers that pandas writes."""
    headings = [composed(word).lower() for word in lines[0][1]] if lines else []
    rows = lines[1:]
    if len(headings) > 2 and headings[0] in ("", "unnamed: 0") and all(row[0].isdigit() for _, row in rows):
        headings, rows = headings[1:], [(number, row[1:]) for number, row in rows]
    if len(headings) < 2 or len(set(headings)) != len(headings) or "" in headings:
        raise DataError(f"{table}: {FORMS}, each once")
    return headings, rows


def _is_list(headings: Sequence[str], rows: list[tuple[int, list[str]]], image: int, column: int) -> bool:
    """Return whether one column names the classes and the others hold something else, such as sizes and boxes."""
    others = [index for index in range(len(headings)) if index not in (image, column)]
    cells = {row[index].lower() for _, row in rows if len(row) == len(headings) for index in others}
    names = {row[column].lower() for _, row in rows if len(row) == len(headings)}
    return not cells <= YES | NO or not names <= YES | NO


def _class_columns(headings: Sequence[str], rows: list[tuple[int, list[str]]], image: int) -> list[int]:
    """Return the columns of classes: all but the image's and those that name it in other ways."""
    names = [
        index
        for index, word in enumerate(headings)
        if word in IMAGE_HEADINGS and any(row[index].lower() not in YES | NO for _, row in rows if len(row) == len(headings))
    ]
    return [index for index in range(len(headings)) if index != image and index not in names]


def _words(cell: str) -> tuple[str, ...]:
    """Return the class names of a cell: cat;dog, "cat, dog", cat|dog, ['cat', 'dog']; none of them: nothing of interest.

    >>> _words("['cat', 'wine glass']"), _words("cat|dog;"), _words("none")
    (('cat', 'wine glass'), ('cat', 'dog'), ())
    """
    words = (composed(word.strip(" []{}()'\"")) for word in re.split(r"[;,|\n]", cell))
    return tuple(dict.fromkeys(word for word in words if word and not is_nothing(word)))
