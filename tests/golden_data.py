"""Golden cases of data formats; merged into tests/golden_adapters.py, which says what an adapter is."""

from collections.abc import Callable

import numpy as np

from data_prep.coco_categories import INDEX_OF_ID, rib_palette
from data_prep.coco_masks import paint, painting_order

Arrays = dict[str, np.ndarray]


def coco_paint(case: Arrays) -> Arrays:
    order = painting_order(case["in_area"].astype(np.float64).tolist())
    values = [INDEX_OF_ID[category] for category in case["in_category_id"].tolist()]
    return {
        "out_semantic": paint(case["in_masks"][order], [values[number] for number in order], tuple(case["in_masks"].shape[1:]))
    }


def coco_palette(case: Arrays) -> Arrays:
    result = {"out_palette": rib_palette()}
    for labels in (value for name, value in case.items() if name.startswith("in_")):  # a label map: its colors
        names = [name for name in case if name.startswith("out_") and name not in result] or ["out_colors"]
        result |= {name: rib_palette()[labels] for name in names}
    return result


ADAPTERS: dict[str, Callable[[Arrays], Arrays]] = {"data__coco_paint": coco_paint, "data__rib_coco_palette": coco_palette}
TOLERANCE: dict[str, tuple[tuple[str, str, float], ...]] = {
    "data__coco_paint": (("*", "equal", 1),),
    "data__rib_coco_palette": (("*", "equal", 1),),
}
