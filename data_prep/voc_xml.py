"""VOC's XML annotations: read the classes that an image contains, write the boxes of its objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree  # for writing only

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from wsss_lib.core.files import write_atomically
from wsss_lib.errors import DataError

Box = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax in pixels; VOC counts from 1 and includes both ends


@dataclass(frozen=True)
class VocObject:
    """One object of an annotation.

    Attributes:
        name: class name.
        box: around its visible pixels.
        truncated: whether the image border cuts it.
        parts: (name, box) of body parts; their names are not classes.
    """

    name: str
    box: Box
    truncated: bool = False
    parts: tuple[tuple[str, Box], ...] = ()


def read_voc_classes(xml_path: Path | str, classes: Sequence[str]) -> list[str]:
    """Return the classes that an annotation names, in the order of `classes`.

    The rule of the published label tables: every element `<name>` in the file whose text is a class counts. So
    difficult and truncated objects count, and body parts (head, hand, foot) do not.

    Args:
        xml_path: `Annotations/ID.xml`.
        classes: names of the foreground classes.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not XML, or XML with entities of its own (refused, because it can exhaust the memory).

    Explained in notebook 02, section "Image-level labels".
    """
    names = {(element.text or "").strip() for element in _parsed(Path(xml_path)).iter("name")}
    return [name for name in classes if name in names]


def read_voc_names(xml_path: Path | str) -> list[str]:
    """Return the name of every object of an annotation, in the file's order; none if nothing of interest is there.

    Args:
        xml_path: `Annotations/ID.xml`.

    Raises:
        FileNotFoundError, DataError: as `read_voc_classes`.
    """
    tree = _parsed(Path(xml_path))
    if (root := tree.getroot()) is not None and root.tag == "annotations":
        raise DataError(f"{xml_path}: is CVAT's own form; export the annotations as COCO's JSON or as VOC's XML files")
    names = [(element.findtext("name") or "").strip() for element in tree.iter("object")]
    return [name for name in names if name]


def _parsed(path: Path) -> ElementTree.ElementTree:
    try:
        return parse(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: the annotation is missing; put it there or take the id out of the lists") from None
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError) as error:  # the last for unknown encodings
        raise DataError(f"{path}: not a readable XML annotation ({error}); fetch it again") from None


def write_voc_xml(xml_path: Path | str, size: tuple[int, int], objects: Sequence[VocObject], folder: str = "VOC2012") -> None:
    """Write the annotation of the image with the same stem in VOC's form, atomically.

    Args:
        xml_path: `Annotations/ID.xml`.
        size: (H, W) of the image in pixels.
        objects: what is in the image.
        folder: name of the data set.
    """
    path = Path(xml_path)
    root = ElementTree.Element("annotation")
    _texts(root, folder=folder, filename=f"{path.stem}.jpg")
    _texts(ElementTree.SubElement(root, "size"), width=size[1], height=size[0], depth=3)
    _texts(root, segmented=1)
    for item in objects:
        element = ElementTree.SubElement(root, "object")
        _texts(element, name=item.name, pose="Unspecified", truncated=int(item.truncated), difficult=0)
        _box(element, item.box)
        for part_name, part_box in item.parts:
            part = ElementTree.SubElement(element, "part")
            _texts(part, name=part_name)
            _box(part, part_box)
    ElementTree.indent(root, "\t")
    write_atomically(path, lambda temporary: temporary.write_bytes(ElementTree.tostring(root) + b"\n"))


def _texts(parent: ElementTree.Element, **values: str | int) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _box(parent: ElementTree.Element, box: Box) -> None:
    _texts(ElementTree.SubElement(parent, "bndbox"), **dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)))
