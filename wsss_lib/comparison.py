"""Methods side by side: every finished stage rescored in one way, and tables that refuse to mix what differs."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsss_lib.config import Config
from wsss_lib.core.files import image_size, read_mask
from wsss_lib.core.progress import progress
from wsss_lib.core.scoring import full_size_maps
from wsss_lib.core.stage import Job, Stage, run_folder_of
from wsss_lib.core.store import StageFolder, finished_stages
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.ops.metrics import BoundaryEvaluation, Evaluation
from wsss_lib.ops.seeds import argmax_with_background, seed_mask
from wsss_lib.ops.thresholds import near_best_range
from wsss_lib.pipeline import LABEL_MAPS
from wsss_lib.results import FOLDERS, IMAGES_OF, PUBLISHED, collect, fingerprint, incomparable, place_of_method, with_spread

COUNTED = 300  # images of each split that are scored again


def check_settings(stages: dict[tuple[str, int], dict[str, StageFolder]]) -> None:
    """Refuse runs of one method and stage that differ in more than the seed: their mean would describe neither.

    Raises:
        ValueError: the first parameter that differs, with both values.

    Explained in notebook 95, section "Mixed comparisons are refused".
    """
    first: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
    defaults = Config().model_dump(mode="json")
    for (method, seed), group in stages.items():
        for name, stage in group.items():
            values = defaults | stage.parameters() | {"seed": 0}  # a parameter younger than the run: its default
            reference_seed, reference = first.setdefault((method, name), (seed, values))
            for parameter, value in values.items():
                if value != reference[parameter]:
                    raise ValueError(
                        f"{method}, stage {name}: {parameter} is {value!r} for seed {seed} and "
                        f"{reference[parameter]!r} for seed {reference_seed}; run one of them again with the "
                        "other's value, a mean over both would mix two experiments"
                    )


def evenly_spaced(data: SegmentationDataset, count: int) -> SegmentationDataset:
    """Return every n-th image of a split, so that about `count` of them stay; no random number and no label is used.

    Args:
        count: of images, at least 1; a smaller split is returned whole.

    Explained in notebook 95, section "Counted anew".
    """
    chosen = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int))
    return data.part(chosen)


def label_map_of(stage: StageFolder, row: dict, data: SegmentationDataset) -> Callable[[str], np.ndarray]:
    """Return the function that returns the label map of an image behind a row of `metrics.json`.

    Returns:
        image id to uint8 (H, W).

    Explained in notebook 95, section "Counted anew".
    """
    _, folder = LABEL_MAPS[row["what"]]
    if folder is None:
        return partial(_map_at_threshold, stage.folder, row["threshold"])
    return partial(_stored_mask, stage.folder / folder, data)


def _map_at_threshold(maps_folder: Path, threshold: float, image_id: str) -> np.ndarray:
    classes, scores = full_size_maps(maps_folder, image_id)
    return argmax_with_background(scores, classes, threshold)


def _stored_mask(folder: Path, data: SegmentationDataset, image_id: str) -> np.ndarray:
    return read_mask(folder / f"{image_id}.png", data.num_classes, image_size(data.image_path(image_id)))


def curve_with_crf(data: SegmentationDataset, maps_folder: Path, thresholds: Sequence[float]) -> list[float]:
    """Return the mIoU in percent of a method's seed masks at several thresholds, each refined by the dense CRF.

    Args:
        data: the images that are scored, with masks; a CRF is solved for each of them and each threshold.

    Explained in notebook 95, section "How much the threshold matters".
    """
    evaluations = [Evaluation(data.num_classes + 1) for _ in thresholds]
    for image_id in progress(data.ids, f"CRF at {len(thresholds)} thresholds"):
        picture, (classes, scores), truth = (
            np.array(data.image(image_id)),
            full_size_maps(maps_folder, image_id),
            data.mask(image_id),
        )
        for evaluation, threshold in zip(evaluations, thresholds, strict=True):
            evaluation.add(truth, seed_mask(picture, scores, classes, threshold))
    return [round(100 * evaluation.scores().miou, 2) for evaluation in evaluations]


def most_refined(stages: dict[str, StageFolder]) -> tuple[Path, str] | None:
    """Return the folder of a method's last training masks and the name of their row, or None if it has none yet.

    Args:
        stages: of one method and seed, as `finished_stages` returns them.
    """
    of_stage = {stage: (folder, what) for what, (stage, folder) in LABEL_MAPS.items() if folder is not None}
    for name in ("drs_masks", "pseudo_masks", "affinitynet_masks", "seeds"):
        if name in stages and name in of_stage:
            folder, what = of_stage[name]
            return stages[name].folder / folder, what
    return None


def count_anew(stage: StageFolder, row: dict, data: SegmentationDataset) -> dict:
    """Score a label map in every way that this comparison knows, in one pass over its images.

    Returns:
        what, split, images (those counted here), crf and pixel_labels_chose; `miou`, mean `precision` and `recall`,
        `boundary_iou` in percent; `class_iou` and `class_boundary_iou`, one value per class, the background first, None where
        undefined.

    Raises:
        ValueError: the row belongs to another split.
        DataError: a map or a mask is missing or broken.

    Explained in notebook 95, section "Counted anew".
    """
    if row["split"] != data.split:
        raise ValueError(
            f"{stage.folder.parent.parent.name}, {row['what']}: its label maps belong to split {row['split']!r}, "
            f"the data to {data.split!r}; open the split of that row"
        )
    evaluation, edges = Evaluation(data.num_classes + 1), BoundaryEvaluation(data.num_classes + 1)
    prediction_of = label_map_of(stage, row, data)
    for image_id in progress(data.ids, row["what"]):
        truth, prediction = data.mask(image_id), prediction_of(image_id)
        evaluation.add(truth, prediction)
        edges.add(truth, prediction)
    result = evaluation.scores()
    kept = {key: row[key] for key in ("what", "split", "crf", "pixel_labels_chose")}
    return kept | {
        "images": len(data),
        "miou": _percent(result.miou),
        "precision": _percent(np.nanmean(result.precision)),
        "recall": _percent(np.nanmean(result.recall)),
        "boundary_iou": _percent(edges.miou),
        "class_iou": [_percent(value) for value in result.iou],
        "class_boundary_iou": [_percent(value) for value in edges.iou],
    }


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else round(100 * float(value), 2)


def _score_again(job: Job) -> list[dict]:
    """Score every label map of a run on evenly spaced images of its split."""
    config = job.whole
    data_of = {
        name: evenly_spaced(open_data(config, name).scored(), COUNTED) for name in {config.score_split, config.val_split}
    }
    rows = []
    for (method, seed), group in finished_stages(run_folder_of(config)).items():
        for name, made in group.items():
            for row in made.metrics():
                if row.get("miou") is not None and row["split"] in data_of and LABEL_MAPS.get(row["what"], ("",))[0] == name:
                    again = count_anew(made, row, data_of[row["split"]])
                    rows.append({"method": method, "seed": seed, "recorded": row["miou"], "of_images": row["images"]} | again)
    return rows


def _fingerprint(job: Job) -> dict[str, str]:
    return {"results": fingerprint(collect(run_folder_of(job.whole)))}


OVERVIEW = Stage("overview", "00_start_here", lambda job: 0, files=_fingerprint, split="", method="report")
COMPARISON = Stage(
    "comparison",
    "95_comparison",
    lambda job: 0,
    files=_fingerprint,
    score=_score_again,
    needs_masks=False,
    split="",
    method="report",
)


def side_by_side(rows: Sequence[dict], value: str = "miou") -> dict[str, dict[str, dict[int, float]]]:
    """Arrange rows as a table: what was made, by which method, with which seed.

    Args:
        rows: from `results.collect` or `count_anew`, with method and seed.
        value: the number that is shown, e.g. "miou" or "boundary_iou".

    Returns:
        what to method to seed to value; no seed if nothing was scored.

    Raises:
        ValueError: two rows that would stand in one line were scored on different splits, on different numbers of images, or
            one with a CRF and one without; or one cell would hold two values.

    Explained in notebook 95, section "Mixed comparisons are refused".

    >>> row = {"what": "CAM seed", "split": "train", "images": 9, "crf": False, "seed": 0, "method": "cam", "miou": 40.0}
    >>> side_by_side([row, row | {"method": "rib", "miou": 42.0}])
    {'CAM seed': {'cam': {0: 40.0}, 'rib': {0: 42.0}}}
    >>> side_by_side([row, row | {"method": "rib", "images": 8}])
    Traceback (most recent call last):
    ...
    ValueError: CAM seed: rib (seed 0) has 8 images of 'train' without CRF, cam (seed 0) has 9 images of 'train' without CRF; \
such numbers are not comparable, score both on the same images
    """
    table: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    first: dict[str, tuple[str, str]] = {}
    for row in rows:
        cell = table[row["what"]][row["method"]]
        if row.get(value) is None:
            continue
        conditions = f"{row['images']} images of {row['split']!r} {'with' if row['crf'] else 'without'} CRF"
        name, reference = first.setdefault(row["what"], (f"{row['method']} (seed {row['seed']})", conditions))
        if conditions != reference:
            raise ValueError(
                f"{row['what']}: {row['method']} (seed {row['seed']}) has {conditions}, {name} has {reference}; "
                "such numbers are not comparable, score both on the same images"
            )
        if row["seed"] in cell:
            raise ValueError(
                f"{row['what']}: {row['method']} has two values for seed {row['seed']}; move one of the two stages away"
            )
        cell[row["seed"]] = row[value]
    return {what: {method: dict(cell) for method, cell in line.items()} for what, line in table.items()}


def gains(line: dict[str, dict[int, float]], baseline: str = "cam") -> dict[str, dict[int, float]]:
    """Return what each method gains over another one, seed by seed: only seeds that both have count.

    Args:
        line: method to seed to value, a line of `side_by_side`.
        baseline: the method to compare with.

    Returns:
        method to seed to difference; without the baseline and without methods that share no seed with it.

    Explained in notebook 95, section "Gains, seed by seed".

    >>> gains({"cam": {0: 50.0, 1: 40.0}, "rib": {1: 43.0, 2: 60.0}})
    {'rib': {1: 3.0}}
    """
    start = line.get(baseline, {})
    shared = {
        method: {seed: value - start[seed] for seed, value in cell.items() if seed in start}
        for method, cell in line.items()
        if method != baseline
    }
    return {method: cell for method, cell in shared.items() if cell}


def gain_table(scored: dict[str, dict[str, dict[int, float]]]) -> list[list[str]]:
    """Return for each line of `side_by_side` and each method its gain over plain CAM, seed by seed.

    Returns:
        one line each: what, method, the gains, their mean and spread, and whether all have one sign.

    Explained in notebook 95, section "Gains, seed by seed".
    """
    lines = []
    for what, line in scored.items():
        for method, cell in gains(line).items():
            if method != "truth":
                values = list(cell.values())
                agree = "one seed only" if len(values) == 1 else "yes" if len({gain > 0 for gain in values}) == 1 else "no"
                lines.append([what, method, " / ".join(f"{gain:+.1f}" for gain in values), with_spread(values), agree])
    return lines


def mean_over_seeds(counted: Sequence[dict], what: str, value: str) -> dict[str, np.ndarray]:
    """Return method to the mean over its seeds of a number, or of a list of numbers, of the counted rows of one name."""
    values = defaultdict(list)
    for row in counted:
        if row["what"] == what:
            values[row["method"]].append(row[value])
    return {method: np.nanmean(np.array(values[method], float), axis=0) for method in sorted(values, key=place_of_method)}


def counted_table(counted: Sequence[dict], names: Sequence[str]) -> list[list[str]]:
    """Return a line for each name and method of counted rows: precision, recall, mIoU, boundary IoU in percent, seeds."""
    lines = []
    for what in names:
        means = [mean_over_seeds(counted, what, value) for value in ("precision", "recall", "miou", "boundary_iou")]
        for method in means[0]:
            seeds = sum((row["what"], row["method"]) == (what, method) for row in counted)
            lines.append([what, method, *(f"{mean[method]:.1f}" for mean in means), str(seeds)])
    return lines


def published_table(summary: Sequence[dict], dataset: str) -> list[list[str]]:
    """Return a line for each published value, with ours beside it or the reason why none may be shown.

    Args:
        dataset: on which ours were scored.

    Explained in notebook 95, section "Published values".
    """
    rows = {(row["method"], row["what"], row["split"]): row for row in summary}
    lines = []
    for entry in PUBLISHED:
        row, there = rows.get((entry.method, entry.what, entry.part)), IMAGES_OF[entry.split]
        if row is None:
            ours = "not run here"
        elif row["miou"] is None:
            ours = f"not scored: {row['not_scored']}"
        elif dataset != FOLDERS[entry.dataset] or row["images"] != there:
            ours = f"refused: {row['images']} images of {dataset} are not {there} of {entry.dataset}"
        elif reason := incomparable(entry, row):
            ours = f"refused: {reason}"
        else:
            ours = f"{row['miou']:.1f} ({row['runs']} runs)"
        lines.append(
            [entry.method, entry.what, entry.split, f"{entry.value:g}", ours, entry.start, entry.pixel_labels, entry.source]
        )
    return lines


def threshold_table(
    stages: dict[tuple[str, int], dict[str, StageFolder]], fixed: float, within: float = 2.0
) -> list[list[str]]:
    """Say for each method how much its maps depend on the threshold.

    Args:
        fixed: a threshold chosen without pixel labels, e.g. the published 0.15.
        within: points of mIoU that a threshold may lose to count as near the best.

    Returns:
        a line per method: name, best mIoU, the best threshold of each seed, mean loss at the fixed threshold, mean width of
        the range near the best, runs.

    Explained in notebook 95, section "How much the threshold matters".
    """
    lines = []
    for method in dict.fromkeys(name for name, _ in stages):
        rows = [
            row
            for (name, _), group in stages.items()
            if name == method and "maps" in group
            for row in group["maps"].metrics()
            if "curve" in row
        ]
        if not rows:
            continue
        losses = [row["miou"] - float(np.interp(fixed, row["thresholds"], row["curve"])) for row in rows]
        widths = [high - low for low, high in (near_best_range(row["thresholds"], row["curve"], within) for row in rows)]
        lines.append(
            [
                method,
                with_spread([row["miou"] for row in rows]),
                " / ".join(f"{row['threshold']:.2f}" for row in rows),
                with_spread(losses),
                with_spread(widths, 2),
                str(len(rows)),
            ]
        )
    return lines


def cost_table(stages: dict[tuple[str, int], dict[str, StageFolder]]) -> list[list[str]]:
    """Return what each stage cost, from its record.

    Returns:
        one line for each method and stage: method, stage, the fastest run's seconds, all runs' from fastest to slowest, images
        per second of the fastest, peak memory in MiB, device. The fastest counts, as other work on a machine only slows it.

    Explained in notebook 95, section "Cost".
    """
    records = defaultdict(list)
    for (method, _), group in stages.items():
        for name, stage in group.items():
            records[method, name].append(stage.record())
    lines = []
    for (method, name), members in records.items():
        members.sort(key=lambda record: record["seconds"])
        best = members[0]
        speed, memory = best["images_per_second"], max(record["peak_memory_mib"] for record in members)
        lines.append(
            [
                method,
                name,
                f"{best['seconds']:.0f}",
                " / ".join(f"{record['seconds']:.0f}" for record in members),
                f"{speed:.1f}" if speed else "–",
                str(memory),
                best["device"],
            ]
        )
    return lines


def cell_text(cell: dict[int, float] | None) -> str:
    """Return mean, sample standard deviation and the number of runs of a cell of `side_by_side`, or a dash.

    Args:
        cell: seed to value; None: nothing is finished; empty: nothing was scored.

    Explained in notebook 95, section "Side by side".

    >>> cell_text({0: 40.0, 1: 44.0}), cell_text({0: 40.0}), cell_text(None), cell_text({})
    ('42.0 ± 2.8 (2)', '40.0 (1)', '–', 'not scored')
    """
    if not cell:
        return "–" if cell is None else "not scored"
    return f"{with_spread(list(cell.values()))} ({len(cell)})"
