"""From COCO's instances to one mask of class indices: smaller objects lie on top of larger ones.

The masks that RIB and AMN use were distributed ready-made, and how they resolved overlaps is not published. The rule here:
instances are painted in the order of decreasing area, those of equal area in the file's order; crowd regions like the others.
"""

import math
from collections.abc import Iterable, Sequence
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


def mask_of_annotations(annotations: Sequence[dict[str, Any]], size: tuple[int, int], ignore_crowd: bool = False) -> np.ndarray:
    """Return the mask of one image.

    Args:
        annotations: of COCO's form: category_id, area, iscrowd, and segmentation as polygons or run lengths.
        size: (H, W) in pixels.
        ignore_crowd: give crowd regions the value 255 instead of their class.

    Returns:
        uint8 (H, W), 0 background, 1..80, 255.

    Raises:
        ValueError: an annotation cannot be used; the message says why, the caller names file and image.
        ModuleNotFoundError: pycocotools is not installed.

    Explained in notebook 02, section "Masks".
    """
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"an image of {size[0]}x{size[1]} pixels is too large")
    ordered = [annotations[number] for number in painting_order([_area(item) for item in annotations])]
    values = [IGNORE if ignore_crowd and item.get("iscrowd") else INDEX_OF_ID[item["category_id"]] for item in ordered]
    return paint((instance_mask(item["segmentation"], size) for item in ordered), values, size)


def instance_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of one instance, by pycocotools.

    Args:
        segmentation: a list of polygons [x, y, x, y, …], whose union counts, or {"size", "counts"}: run lengths, column by
            column, of zeros and ones in turn.
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
    polygons = [polygon for polygon in _polygons(segmentation, size) if len(polygon) >= 6]  # with less points it has no area
    if not polygons:
        return np.zeros(size, np.uint8, order="F")
    return coco.decode(coco.merge(coco.frPyObjects(polygons, *size)))


def _area(annotation: dict[str, Any]) -> float:
    area = annotation["area"]
    if isinstance(area, bool) or not isinstance(area, (int, float)) or not 0 <= area < math.inf:
        raise ValueError(f"area {area!r:.40} is not a number")
    return float(area)


def _polygons(segmentation: Any, size: tuple[int, int]) -> list[list[float]]:
    """Check before compiled code sees it: it would reserve memory by the coordinates."""
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
    if list(segmentation.get("size", ())) != list(size):
        raise ValueError(f"run lengths for an image of {segmentation.get('size')!r:.40} pixels instead of {list(size)}")
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("run lengths are a list of whole numbers from 0 on")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(counts)} pixels for an image of {size[0] * size[1]}")
    return coco.frPyObjects({"size": list(size), "counts": counts}, *size)
