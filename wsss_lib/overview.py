"""The figures of notebook 00 that open a run's report: two images through every method, and all scores at a glance."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wsss_lib import viz
from wsss_lib.comparison import most_refined
from wsss_lib.config import Config
from wsss_lib.core.scoring import iou_of_images
from wsss_lib.core.stage import open_stage, run_folder_of
from wsss_lib.core.store import StageFolder, finished_stages
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.pipeline import LABEL_MAPS, ROWS
from wsss_lib.results import place_of_method
from wsss_lib.segment import deeplab

LOOKED_AT = 200  # images among which the two are chosen
ENOUGH = 20  # images of two classes that a quartile and a tenth are taken from


def easy_and_hard(data: SegmentationDataset, result: StageFolder | None, folder: str = "") -> list[str]:
    """Choose two images to look at by the masks that a stage has made of them; no random number is used.

    Args:
        result: the finished stage; None: there is none.
        folder: of its masks.

    Returns:
        the image at the upper quartile, between the median and the best, and that at the lowest tenth, among images that show
        two classes (an object, if two classes are rare); the first two of these if fewer than two have a mask.
    """
    ids = [image_id for image_id in data.ids[:LOOKED_AT] if data.label(image_id).any()]
    pairs = [image_id for image_id in ids if data.label(image_id).sum() == 2]
    ids = pairs if len(pairs) >= ENOUGH else ids
    known = tuple(image_id for image_id in ids if data.mask_path(image_id).is_file())
    if result is not None and len(known) > 1:
        scored = replace(data, ids=known, labels=np.stack([data.label(image_id) for image_id in known]))
        iou = iou_of_images(scored, viz.masks_in(result.folder / folder, data))
        ranked = sorted((image_id for image_id in iou if not np.isnan(iou[image_id])), key=lambda name: (iou[name], name))
        if len(ranked) > 1:
            return [ranked[3 * len(ranked) // 4], ranked[len(ranked) // 10]]
    return (ids or list(data.ids))[:2]


def panels_of(method: str, group: dict[str, StageFolder], image_id: str, data: SegmentationDataset, config: Config) -> list:
    """Return a method's row of the grid: input, ground truth if there is one, map, seed mask, pseudo-mask, prediction.

    Args:
        group: stage name to its finished folder.
    """
    picture = np.array(data.image(image_id))

    def labels(mask: np.ndarray, title: str) -> viz.Panel:
        return viz.labels(mask, data.classes, title, picture)

    def stored(place: tuple[StageFolder, str] | None, title: str) -> viz.Panel:
        missing = viz.blank("none" if method == "truth" else "not made")
        return labels(viz.masks_in(place[0].folder / place[1], data)(image_id), title) if place else missing

    row: list[viz.Panel] = [viz.image(picture, method)]
    if data.mask_path(image_id).is_file():
        row.append(labels(data.mask(image_id), "ground truth"))
    row.append(
        viz.scores(picture, viz.highest_scores(group["maps"].folder)(image_id), "map") if "maps" in group else stored(None, "")
    )
    stage, folder = LABEL_MAPS["CAM seed + CRF"]
    row.append(stored((group[stage], folder or "") if stage in group else None, "seed"))
    refined = most_refined({name: result for name, result in group.items() if name != stage})
    row.append(stored((StageFolder(refined[0]), "") if refined else None, "pseudo-mask"))
    if "deeplab" not in group:
        return [*row, viz.blank("not made")]
    network = open_stage(deeplab.DEEPLAB, config.model_copy(update={"method": method}))
    probabilities = deeplab.class_probabilities(network.net, data.image(image_id), network.config)
    return [*row, labels(probabilities.argmax(0).astype(np.uint8), "prediction")]


def show_methods(config: Config, data: SegmentationDataset) -> None:
    """Show an easy and a hard image through every finished method: a row for each method, a column for each step.

    Args:
        config: of the method whose last masks tell what is easy.

    Explained in notebook 00, section "Two images through every method".
    """
    finished = {
        method: group
        for (method, seed), group in finished_stages(run_folder_of(config)).items()
        if seed == config.seed and {"maps", "deeplab"} & set(group)
    }
    methods = sorted(finished, key=place_of_method)
    masks = most_refined(finished.get(config.method, {}))
    chosen = easy_and_hard(data, StageFolder(masks[0]) if masks else None)
    for kind, image_id in zip(("An easy image", "A hard image"), chosen, strict=False):
        rows = [panels_of(method, finished[method], image_id, data, config) for method in methods]
        viz.show_panels(
            rows,
            f"{kind} ({image_id}), a line each for {', '.join(methods)}: input, ground truth if there is one, map, seed mask, "
            "pseudo-mask, prediction of the segmentation network, which is told no label",
            size=1.5,
        )


def show_scores(summary: Sequence[dict]) -> None:
    """Show the mIoU of every step (rows) and method (columns) as a heat map; a cell is empty if nothing was made.

    Explained in notebook 00, section "Results of this run".
    """
    methods = list(dict.fromkeys(row["method"] for row in summary))
    # What was scored on other images, or with a CRF, has its own row.
    kinds = dict.fromkeys((row["what"], row["split"], row["images"], row["crf"]) for row in summary)
    lines = sorted(kinds, key=lambda line: ROWS.index(line[0]) if line[0] in ROWS else len(ROWS))
    values, notes = np.full((len(lines), len(methods)), np.nan), {}
    for row in summary:
        cell = lines.index((row["what"], row["split"], row["images"], row["crf"])), methods.index(row["method"])
        if row["miou"] is None:
            notes[cell] = "not\nscored"
        else:
            values[cell] = row["miou"]
    last = [f"{method} {value:.1f}" for method, value in zip(methods, values[-1], strict=True) if not np.isnan(value)]
    why = sorted({f"not scored: {row['not_scored']}" for row in summary if row["miou"] is None})
    names = [f"{what}, {split}" for what, split, *_ in lines]
    viz.show_panels(
        [viz.matrix(values, names, methods, "mIoU %", "{:.1f}", (0, 100), notes=notes)],
        "Mean IoU in percent of every step and method, brighter is better, an empty cell was not made; "
        + "; ".join([*why, *([f"{lines[-1][0]}: {', '.join(last)}"] if last else [])]),
        size=(3.2 + 0.75 * len(methods), 1.2 + 0.36 * len(lines)),
    )
