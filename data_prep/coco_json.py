"""COCO's instances JSON, read in bounded memory: an index of the positions of annotations instead of the annotations.

`instances_train2014.json` holds 330 MB of text and, as Python objects, several gigabytes. One pass over the file keeps a few
numbers for each annotation; what an image needs is read again when the image is processed.
"""

import codecs
import json
import re
import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from data_prep.coco_categories import CATEGORY_IDS, COCO_CLASSES, INDEX_OF_ID
from wsss_lib.core.files import image_size
from wsss_lib.errors import DataError

LIMIT = 1 << 26  # characters of the longest element; the longest of COCO have less than a hundredth
SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class CocoImage:
    """One image as the JSON names it.

    Attributes:
        file_name: without folders, e.g. `COCO_train2014_000000000009.jpg`.
        height, width: in pixels; 0: the file does not say.
        given: the name with its folders, separated by /.
    """

    file_name: str
    height: int
    width: int
    given: str = ""

    def size(self, photograph: Path) -> tuple[int, int]:
        """Return (H, W), of the photograph if the file does not say."""
        return (self.height, self.width) if self.height else image_size(photograph)[::-1]


@dataclass
class Instances:
    """Index of an instances JSON.

    Attributes:
        path: the JSON file.
        images: number of the image to its entry, in the file's order.
        image_of, index_of: for each annotation the image's number and the category's index 1..C.
        begin, length: where it lies in the file, in bytes.
        classes: names of the C categories, in the order of their ids.
        index_of_id: id of a category to its index.
    """

    path: Path
    images: dict[int, CocoImage] = field(default_factory=dict)
    image_of: array = field(default_factory=lambda: array("q"))
    index_of: array = field(default_factory=lambda: array("B"))
    begin: array = field(default_factory=lambda: array("q"))
    length: array = field(default_factory=lambda: array("q"))
    classes: tuple[str, ...] = COCO_CLASSES
    index_of_id: dict[int, int] = field(default_factory=lambda: INDEX_OF_ID)

    def labels(self) -> dict[int, np.ndarray]:
        """Return number of the image to uint8 (C,), 1 where any annotation, crowd or not, has the category."""
        table = {number: np.zeros(len(self.classes), np.uint8) for number in self.images}
        for number, index in zip(self.image_of, self.index_of, strict=True):
            table[number][index - 1] = 1
        return table

    def places(self) -> dict[int, list[tuple[int, int]]]:
        """Return number of the image to (begin, length) in bytes of each of its annotations, in the file's order."""
        table: dict[int, list[tuple[int, int]]] = {number: [] for number in self.images}
        for number, begin, length in zip(self.image_of, self.begin, self.length, strict=True):
            table[number].append((begin, length))
        return table


def image_id(number: int) -> str:
    """Return the id of an image, its number with twelve digits.

    Args:
        number: as in the JSON.

    >>> image_id(9)
    '000000000009'
    """
    return f"{number:012d}"


def read_instances(path: Path, own: bool = False) -> Instances:
    """Index an instances JSON in one pass.

    Args:
        own: categories other than COCO's 80 are accepted; ids need not be consecutive.

    Returns:
        its images and where its annotations lie.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not an instances JSON with COCO's categories, is damaged, or contradicts itself.
    """
    found, categories, named = Instances(path), array("q"), dict[int, str]()
    for name, begin, length, value in _elements(path):
        try:
            if name in ("images", "annotations", "categories"):
                _check_object(value)
            if name == "images":
                _add_image(found, value, own)
            elif name == "annotations":
                categories.append(_add_annotation(found, begin, length, value))
            elif name == "categories":
                named[_whole(value["id"], 0, 10**12 - 1)] = _text(value["name"]).strip()
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise DataError(
                f"{path}: entry of {name!r} at byte {begin} cannot be used ({problem}); correct it or fetch the file again"
            ) from None
    if own and (nameless := set(categories) - set(named)):
        raise DataError(
            f"{path}: an annotation cannot be used (category {min(nameless)} is not among the file's categories); correct it"
        )
    foreign = set(named.items()) - set(zip(CATEGORY_IDS, COCO_CLASSES, strict=True))
    if foreign and own:
        found.classes = tuple(name for _, name in sorted(named.items()))
        found.index_of_id = {number: index for index, number in enumerate(sorted(named), start=1)}
        if len(found.classes) > 254 or len(set(found.classes)) < len(found.classes):
            raise DataError(
                f"{path}: needs 1 to 254 categories with different names; rename or take out those that are too many"
            )
    unnamed = set(categories) - set(found.index_of_id)
    if foreign and not own:
        raise DataError(
            f"{path}: not an instances JSON of COCO (category {min(foreign)} is none of COCO's 80); own categories are read "
            "with --partial, or by python -m data_prep.custom --labels"
        )
    if unnamed:
        kind = "not among the file's categories" if foreign else "none of COCO's 80"
        raise DataError(f"{path}: an annotation cannot be used (category {min(unnamed)} is {kind}); correct it")
    if not found.images:
        raise DataError(f"{path}: not an instances JSON of COCO (it names no images)")
    found.index_of.extend(found.index_of_id[number] for number in categories)
    unknown = next((number for number in found.image_of if number not in found.images), None)
    if unknown is not None:
        raise DataError(f"{path}: an annotation belongs to image {unknown}, which the file does not name; fetch the file again")
    return found


def read_annotations(path: Path, places: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Read the annotations of one image.

    Args:
        path: the instances JSON.
        places: (begin, length) of each in bytes.

    Returns:
        the annotations as dicts.

    Raises:
        DataError: the file has changed since it was indexed.
    """
    annotations = []
    with open(path, "rb") as file:
        for begin, length in places:
            file.seek(begin)
            try:
                annotations.append(json.loads(file.read(length)))
            except ValueError:
                raise DataError(f"{path}: the file has changed while it was worked on; run again") from None
    return annotations


def _check_object(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError("it is not an object with names and values")


def _add_image(found: Instances, value: dict[str, Any], own: bool) -> None:
    number = _whole(value["id"], 0, 10**12 - 1)
    if number in found.images:
        raise ValueError(f"image {number} stands there twice")
    unsized = own and value.get("height") is None and value.get("width") is None
    found.images[number] = CocoImage(
        _name(value["file_name"]),
        0 if unsized else _whole(value["height"], 1, 10**5),
        0 if unsized else _whole(value["width"], 1, 10**5),
        _text(value["file_name"]).replace("\\", "/"),
    )


def _add_annotation(found: Instances, begin: int, length: int, value: dict[str, Any]) -> int:
    """Note an annotation and return its category's id: the categories may follow the annotations."""
    category = _whole(value["category_id"], 0, 10**12 - 1)
    found.image_of.append(_whole(value["image_id"], 0, 10**12 - 1))
    found.begin.append(begin)
    found.length.append(length)
    return category


def _whole(value: Any, lowest: int, highest: int) -> int:
    if isinstance(value, float) and value.is_integer():  # what pandas makes of ids
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ValueError(f"{value!r:.40} is not a whole number from {lowest} to {highest}")
    return value


def _name(value: Any) -> str:
    """Return the last part of a file name; a JSON may name folders, which need not be ours, nor of this system."""
    name = PurePosixPath(_text(value).replace("\\", "/")).name if isinstance(value, str) else ""
    if not name or name == ".." or "\0" in name:
        raise ValueError(f"{value!r:.40} is not a file name")
    return name


def _text(value: Any) -> str:
    """Return a text of the file, which was read as Latin-1; escapes (\\u00e9) are characters already."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a name")
    try:
        text = value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        text = value
    return unicodedata.normalize("NFC", text)


class _Window:
    """A JSON file seen through a window of characters; read as Latin-1, so that a character is a byte."""

    def __init__(self, path: Path, file: IO[bytes]):
        self.path, self.file, self.text, self.at, self.dropped = path, file, "", 0, 0
        self.decoder = json.JSONDecoder()

    def more(self) -> bool:
        """Drop what was read and append about as much again as is left; return whether there was anything."""
        waiting = self.text[self.at :]
        data = self.file.read(max(1 << 20, len(waiting)))
        self.dropped, self.text, self.at = self.dropped + self.at, waiting + data.decode("latin-1"), 0
        return bool(data)

    def peek(self) -> str:
        """Return the next character that is not a space, without taking it."""
        while True:
            space = SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                raise DataError(f"{self.path}: the file ends in the middle; fetch it again")

    def take(self, allowed: str) -> str:
        """Take the next character, which must be one of those allowed."""
        found = self.peek()
        if found not in allowed:
            raise self.broken()
        self.at += 1
        return found

    def value(self) -> tuple[int, int, Any]:
        """Take a whole value: where it begins and how long it is, in bytes, and the value."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except RecursionError:
                raise self.broken() from None
            except ValueError:
                end = len(self.text)  # it is broken, or goes on outside the window
            if end < len(self.text):
                begin, length, self.at = self.dropped + self.at, end - self.at, end
                return begin, length, value
            if len(self.text) - self.at > LIMIT or not self.more():
                raise self.broken()

    def broken(self) -> DataError:
        return DataError(f"{self.path}: not valid JSON near byte {self.dropped + self.at}; fetch the file again")


def _elements(path: Path) -> Iterator[tuple[str, int, int, Any]]:
    """Yield (name, begin, length, value) of every element of every array of the file's one object."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the annotation file is missing")
    with open(path, "rb") as file:
        window = _Window(path, file)
        if file.peek(3)[:3] == codecs.BOM_UTF8:  # type: ignore[attr-defined]  # open's "rb" is buffered
            window.dropped = len(file.read(3))
        if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # type: ignore[attr-defined]
            raise DataError(f"{path}: the file is UTF-16; save it as UTF-8")
        if window.peek() != "{":
            raise DataError(f"{path}: not an instances JSON of COCO (it is no object); export the annotations in COCO's form")
        window.take("{")
        if window.peek() == "}":
            return
        while True:
            _, _, name = window.value()
            window.take(":")
            if window.peek() != "[":
                window.value()
            elif window.take("[") and window.peek() == "]":
                window.take("]")
            else:
                while True:
                    yield name, *window.value()
                    if window.take(",]") == "]":
                        break
            if window.take(",}") == "}":
                return
