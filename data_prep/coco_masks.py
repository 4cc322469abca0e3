"""From COCO's instances to one mask of class indices: smaller objects lie on top of larger ones.

The masks that RIB and AMN use were distributed ready-made, and how they resolved overlaps is not published. The rule here:
instances are painted in the order of decreasing area, those of equal area in the file's order; crowd regions like the others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from data_prep.coco_categories import INDEX_OF_ID
from wsss_lib.core.files import IGNORE

MAX_PIXELS = 1 << 26  # of an image; COCO's have less than a hundredth


def paint(masks: Iterable[np.ndarray], values: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Paint instances over each other.

    Args:
        masks: of each instance (H, W), true or 1 inside, in the order of painting; taken one at a time.
        values: of each instance in the same order, 1..80 or 255.
        size: (H, W).

    Returns:
        uint8 (H, W): 0 background, else the value of the last instance painted there.

    >>> paint([np.array([[1, 1, 1]]), np.array([[0, 1, 0]])], [7, 9], (1, 3)).tolist()
    [[7, 9, 7]]
    """
    result = np.zeros(size, np.uint8, order="F")  # pycocotools' own order of pixels
    for mask, value in zip(masks, values, strict=True):
        np.copyto(result, np.uint8(value), where=mask.astype(bool, copy=False))
    return result


def painting_order(areas: Sequence[float]) -> list[int]:
    """Return the numbers of the instances from the largest to the smallest, those of equal area in the file's order.

    Args:
        areas: of each instance, any unit.

    >>> painting_order([2.0, 5.0, 2.0])
    [1, 0, 2]
    """
    return sorted(range(len(areas)), key=lambda number: -areas[number])


def mask_of_annotations(
    annotations: Sequence[dict[str, Any]],
    size: tuple[int, int],
    ignore_crowd: bool = False,
    index_of_id: Mapping[int, int] = INDEX_OF_ID,
) -> np.ndarray:
    """Return the mask of one image.

    Args:
        annotations: of COCO's form: category_id, and segmentation as polygons or run lengths; if it is empty, bbox. Without
            area, the size of the segmentation counts.
        size: (H, W) in pixels.
        ignore_crowd: give crowd regions the value 255 instead of their class.
        index_of_id: category id to its value in the mask.

    Returns:
        uint8 (H, W), 0 background, 1..C, 255; an instance of which only the box is known makes the box unknown.

    Raises:
        ValueError: an annotation cannot be used; the message says why, the caller names file and image.
        ModuleNotFoundError: pycocotools is not installed.

    Explained in notebook 02, section "Masks".
    """
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"an image of {size[0]}x{size[1]} pixels is too large")
    boxes = [item for item in annotations if _only_box(item)]
    annotations = [item for item in annotations if not _only_box(item)]
    ordered = [annotations[number] for number in painting_order([_area(item, size) for item in annotations])]
    values = [IGNORE if ignore_crowd and item.get("iscrowd") else index_of_id[item["category_id"]] for item in ordered]
    masks = chain(
        (_box_mask(item["bbox"], size) for item in boxes), (instance_mask(item["segmentation"], size) for item in ordered)
    )
    return paint(masks, [IGNORE] * len(boxes) + values, size)


def _only_box(annotation: dict[str, Any]) -> bool:
    return not annotation.get("segmentation") and bool(annotation.get("bbox"))


def _box_mask(box: Any, size: tuple[int, int]) -> np.ndarray:
    try:
        x, y, width, height = (float(side) for side in box)
    except (TypeError, ValueError):
        raise ValueError(f"the bbox {box!r:.40} is not x, y, width, height") from None
    mask = np.zeros(size, bool)
    if all(map(math.isfinite, (x, y, width, height))):
        top, left = max(0, math.floor(y)), max(0, math.floor(x))
        mask[top : max(top, math.ceil(y + height)), left : max(left, math.ceil(x + width))] = True
    return mask


def instance_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of one instance, by pycocotools.

    Args:
        segmentation: a list of polygons [x, y, x, y, …], whose union counts, or {"size", "counts"}: run lengths, column by
            column, of zeros and ones in turn, as a list or in COCO's compressed form, a string.
        size: (H, W) in pixels.

    Returns:
        uint8 (H, W), 0 or 1.

    Raises:
        ValueError: it is none of these, or does not fit the image.
        ModuleNotFoundError: pycocotools is not installed.

    >>> instance_mask({"size": [2, 2], "counts": [1, 2, 1]}, (2, 2)).tolist()
    [[0, 1], [1, 0]]
    """
    try:
        from pycocotools import mask as coco
    except ModuleNotFoundError:
        raise ModuleNotFoundError("pycocotools is needed for COCO's masks; install it with: pip install -e '.[coco]'") from None
    if isinstance(segmentation, dict):
        return coco.decode(_run_lengths(segmentation, size, coco))
    polygons = [polygon for polygon in _polygons(segmentation, size) if len(polygon) >= 6]  # with fewer points it has no area
    if not polygons:
        return np.zeros(size, np.uint8, order="F")
    return coco.decode(coco.merge(coco.frPyObjects(polygons, *size)))


def _area(annotation: dict[str, Any], size: tuple[int, int]) -> float:
    area = annotation.get("area")
    if area is None:
        return float(np.count_nonzero(instance_mask(annotation["segmentation"], size)))
    if isinstance(area, bool) or not isinstance(area, (int, float)) or not 0 <= area < math.inf:
        raise ValueError(f"area {area!r:.40} is not a number")
    return float(area)


def _polygons(segmentation: Any, size: tuple[int, int]) -> list[list[float]]:
    """Check before compiled code sees it: it would reserve memory according to the coordinates."""
    if isinstance(segmentation, list) and len(segmentation) >= 6 and not any(isinstance(part, list) for part in segmentation):
        segmentation = [segmentation]  # one polygon, without the list around it
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError("a segmentation is a list of polygons or a dict of run lengths")
    for polygon in segmentation:
        try:
            points = np.array(polygon or [0.0, 0.0])
        except ValueError:  # lists of different lengths
            raise ValueError("a polygon is a list of numbers") from None
        if points.dtype.kind not in "if":
            raise ValueError("a polygon is a list of numbers")
        if points.ndim != 1 or len(points) % 2:
            raise ValueError(f"a polygon has {points.size} numbers, but needs x, y in turn")
        if not (np.abs(points) <= 2 * max(size) + 100).all():  # also for NaN
            raise ValueError(f"a polygon leaves its image of {size[0]}x{size[1]} pixels by far")
    return segmentation


def _run_lengths(segmentation: dict[str, Any], size: tuple[int, int], coco: Any) -> dict[str, Any]:
    """Return pycocotools' packed form of run lengths that cover exactly this image."""
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if list(segmentation.get("size", ())) != list(size):
        raise ValueError(f"run lengths for an image of {segmentation.get('size')!r:.40} pixels instead of {list(size)}")
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("run lengths are a list of whole numbers from 0 on")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(counts)} pixels for an image of {size[0] * size[1]}")
    return coco.frPyObjects({"size": list(size), "counts": counts}, *size)


def _unpacked(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed form: five bits a character, and from the fourth on differences to the one
    before the last. Done here, because pycocotools itself reads beyond the end of a broken text.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text.encode("latin-1", "replace"):
        bits = character - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("compressed run lengths are damaged")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number; its highest bit is the sign
            number -= (bits & 16) << 1 << (shift - 5)
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    if shift:
        raise ValueError("compressed run lengths end in the middle")
    return counts
