"""Read annotations that tools write for photographs: COCO's JSON, LabelMe's JSON files, VOC's XML files."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data_prep.coco_json import read_annotations, read_instances
from data_prep.coco_masks import MAX_PIXELS, mask_of_annotations, paint, painting_order
from data_prep.own_masks import MaskSource
from data_prep.photographs import Note, Photograph, composed, find_by_name, from_folder, same_spelling
from data_prep.voc_xml import read_voc_names
from wsss_lib.core.files import IGNORE, read_text
from wsss_lib.errors import DataError

IGNORED = "__ignore__"  # LabelMe's name for what should be left out


class Annotated(NamedTuple):
    """What annotations say.

    Attributes:
        photographs: image id to photograph, ids sorted.
        classes: names, in the order of COCO's ids, or sorted.
        masks: of those photographs whose objects all have an outline; None: there are none.
    """

    photographs: dict[str, Photograph]
    classes: tuple[str, ...]
    masks: MaskSource | None


class Painted:
    """Masks that are painted from outlines.

    Args:
        paint: image id to a function that paints its mask.
        places: image id to the location of its annotation, for messages.
    """

    def __init__(self, paint: Mapping[str, Callable[[], np.ndarray]], places: Mapping[str, str]):
        self.paint, self.places = paint, places
        self.values: set[int] = set()

    def __call__(self, image_id: str) -> np.ndarray | None:
        """Return the mask of a photograph, or None."""
        if image_id not in self.paint:
            return None
        try:
            mask = self.paint[image_id]()
        except DataError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise DataError(f"{self.places[image_id]}: an annotation cannot be used ({problem}); correct it") from None
        self.values |= set(np.unique(mask).tolist())
        return mask

    def place(self, image_id: str) -> str:
        """Return where the annotation of a photograph is."""
        return self.places.get(image_id, f"annotation of {image_id}")


def from_annotations(source: Path, given: Path, note: Note = print) -> Annotated:
    """Find photographs, their classes and, where objects have outlines, their masks.

    Args:
        source: folder of the photographs.
        given: COCO's instances JSON, or a folder of LabelMe's JSON or VOC's XML files, one for each photograph.
        note: takes sentences about what was left out.

    Raises:
        DataError: there is no annotation, it cannot be read, or belongs to no photograph.
        ModuleNotFoundError: pycocotools is needed for COCO's masks and not installed.
    """
    found = from_folder(source, note)
    if given.is_file():
        result = _coco(source, given, found, note)
    elif files := sorted(path for path in given.rglob("*.json") if not path.name.startswith(".") and path.is_file()):
        result = _labelme(source, files, found, note)
    elif files := sorted(path for path in given.rglob("*.xml") if not path.name.startswith(".") and path.is_file()):
        result = _voc_xml(source, files, found, note)
    else:
        raise DataError(f"{given}: there is no table, COCO JSON, or folder of LabelMe's JSON or VOC's XML files")
    without = [name for name in found if name not in result.photographs]
    if without:
        note(f"left out: {len(without)} photographs without annotation, the first is {found[without[0]].path.name}")
    return result


def _coco(source: Path, given: Path, found: Mapping[str, Photograph], note: Note) -> Annotated:
    index = read_instances(given, own=True)
    name_of = _ids(source, found, {str(number): entry.given for number, entry in index.images.items()}, given)
    labels, places = index.labels(), index.places()
    used = [channel for channel in range(len(index.classes)) if any(label[channel] for label in labels.values())]
    classes = tuple(index.classes[channel] for channel in used)
    value = {channel + 1: new for new, channel in enumerate(used, start=1)}
    index_of_id = {number: value[old] for number, old in index.index_of_id.items() if old in value}
    photographs, where = {}, {}
    outlined: dict[str, Callable[[], np.ndarray]] = {}
    boxes = 0
    for number, entry in index.images.items():
        name = name_of[str(number)]
        photographs[name] = Photograph(
            found[name].path, tuple(index.classes[channel] for channel in used if labels[number][channel])
        )
        annotations = read_annotations(given, places[number])
        if all(item.get("segmentation") for item in annotations):
            outlined[name] = partial(_painted, given, places[number], entry.size(found[name].path), index_of_id)
            where[name] = f"{given}, image {number}"
        else:
            boxes += 1
    return _annotated(photographs, classes, Painted(outlined, where), boxes, note)


def _annotated(
    photographs: dict[str, Photograph], classes: tuple[str, ...], masks: Painted, without_mask: int, note: Note
) -> Annotated:
    """Join what was read; masks count only if at least one of them shows a class."""
    if without_mask:
        note(f"{without_mask} photographs have objects without an outline, and so no mask")
    any_outline = any(photographs[name].classes for name in masks.paint)
    return Annotated(dict(sorted(photographs.items())), classes, masks if any_outline else None)


def _painted(path: Path, places: list[tuple[int, int]], size: tuple[int, int], index_of_id: dict[int, int]) -> np.ndarray:
    return mask_of_annotations(read_annotations(path, places), size, index_of_id=index_of_id)


def _labelme(source: Path, files: Sequence[Path], found: Mapping[str, Photograph], note: Note) -> Annotated:
    contents = {str(path): _read_labelme(path) for path in files}
    find = find_by_name(found, source)
    names = {  # a photograph and its file may have been renamed together
        path: content["imagePath"] if find(content["imagePath"]) else Path(path).stem for path, content in contents.items()
    }
    names = {path: name if find(name) else contents[path]["imagePath"] for path, name in names.items()}
    name_of = _ids(source, found, names, files[0].parent)
    words = [shape["label"] for content in contents.values() for shape in content["shapes"]]
    words += [word for content in contents.values() for word in content["flags"]]
    one_name = {word: "" if word == IGNORED else one for word, one in same_spelling(words, note).items()}
    classes = tuple(sorted(set(one_name.values()) - {""}))
    photographs, where = {}, {}
    outlined: dict[str, Callable[[], np.ndarray]] = {}
    rest = 0
    for path, content in contents.items():
        name = name_of[path]
        present = {one_name[word] for word in (*(shape["label"] for shape in content["shapes"]), *content["flags"])} - {""}
        photographs[name] = Photograph(found[name].path, tuple(sorted(present)))
        if content["size"] and not content["flags"] and all(shape["outline"] for shape in content["shapes"]):
            values = {word: classes.index(one) + 1 if one else 0 for word, one in one_name.items()} | {IGNORED: IGNORE}
            outlined[name] = partial(_drawn, content["shapes"], content["size"], values)
            where[name] = path
        else:
            rest += 1
    return _annotated(photographs, classes, Painted(outlined, where), rest, note)


def _drawn(shapes: list[dict[str, Any]], size: tuple[int, int], values: dict[str, int]) -> np.ndarray:
    """Paint the mask of one of LabelMe's files: smaller shapes lie on top, as for COCO."""
    masks = [_filled(shape["outline"], size) for shape in shapes]
    order = painting_order([float(np.count_nonzero(mask)) for mask in masks])
    return paint((masks[number] for number in order), [values[shapes[number]["label"]] for number in order], size)


def _filled(outline: list[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    picture = Image.new("1", size[::-1])
    ImageDraw.Draw(picture).polygon(outline, fill=1, outline=1)
    return np.asarray(picture)


def _read_labelme(path: Path) -> dict[str, Any]:
    """Return one of LabelMe's files: imagePath, size (H, W) or None, flags that are set, and shapes with label and outline."""
    try:
        content = json.loads(read_text(path))
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            if isinstance(content, dict) and "images" in content:
                raise DataError(f"{path}: is COCO's form, not LabelMe's; give the file itself: --labels {path}")
            raise DataError(f"{path}: not an annotation of LabelMe (it has no list of shapes); take it out")
        shapes = [
            {
                "label": composed(_word(shape["label"])),
                "outline": _outline(shape.get("shape_type") or "polygon", shape["points"]),
            }
            for shape in content["shapes"]
        ]
        height, width = content.get("imageHeight", 0), content.get("imageWidth", 0)
        known = all(type(side) is int and side > 0 for side in (height, width)) and height * width <= MAX_PIXELS
        flags = [composed(word) for word, is_set in (content.get("flags") or {}).items() if is_set is True]
        return {
            "imagePath": _word(content.get("imagePath") or path.with_suffix("").name),
            "size": (height, width) if known else None,
            "flags": flags,
            "shapes": shapes,
        }
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(f"{path}: not an annotation of LabelMe ({problem}); save it again or take it out") from None


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a name")
    return value


def _outline(kind: str, points: Any) -> list[tuple[float, float]]:
    """Return the corners of a shape; none: it has no area."""
    corners = [(float(x), float(y)) for x, y in points]
    if not all(math.isfinite(side) and abs(side) < 1e6 for corner in corners for side in corner):
        raise ValueError("a point is far outside the image")
    if kind == "rectangle" and len(corners) == 2:
        (left, top), (right, bottom) = corners
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    if kind == "circle" and len(corners) == 2:
        (x, y), radius = corners[0], math.dist(*corners)
        turns = [2 * math.pi * step / 72 for step in range(72)]
        return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
    return corners if kind in ("polygon", "rectangle") and len(corners) >= 3 else []


def _voc_xml(source: Path, files: Sequence[Path], found: Mapping[str, Photograph], note: Note) -> Annotated:
    contents = {str(path): read_voc_names(path) for path in files}
    # labelImg keeps the name of a file that was renamed later: the XML's own name counts.
    name_of = _ids(source, found, {path: Path(path).stem for path in contents}, files[0].parent)
    one_name = same_spelling((word for words in contents.values() for word in words), note)
    photographs = {
        name_of[path]: Photograph(found[name_of[path]].path, tuple(sorted({one_name[word] for word in words} - {""})))
        for path, words in contents.items()
    }
    return Annotated(dict(sorted(photographs.items())), tuple(sorted(set(one_name.values()) - {""})), None)


def _ids(source: Path, found: Mapping[str, Photograph], names: Mapping[str, str], given: Path) -> dict[str, str]:
    """Return for each annotation the id of its photograph."""
    find, missing = find_by_name(found, source), []
    result: dict[str, str] = {}
    for key, name in names.items():
        ids = find(name)
        if len(ids) > 1:
            raise DataError(f"{given}: {name!r} may be {' or '.join(ids[:3])}; write the path below {source}")
        if not ids:
            missing.append(name)
        elif ids[0] in result.values():
            raise DataError(f"{given}: two annotations belong to {name!r}; take one of them out")
        else:
            result[key] = ids[0]
    if missing:
        more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise DataError(
            f"{given}: {missing[0]!r} is not a photograph in {source}{more}; put the files there or take the entries out"
        )
    return result
