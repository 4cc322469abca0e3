"""Read a study that `wsss_lib.tune --save` has written: paired gains with intervals, and tables of trials and results.

A study is a dictionary from method to its `Study.summary()`. docs/protocol.md says how it is made and what counts as "helps".
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from wsss_lib.errors import DataError
from wsss_lib.results import with_spread

Saved = dict[str, dict]


def read(path: Path) -> Saved:
    """Read a saved study.

    Raises:
        DataError: there is none, or the file is not one.
    """
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        if study and all({"trials", "measured", "images", "tuning"} <= set(kept) for kept in study.values()):
            return study
    except (OSError, ValueError, AttributeError, TypeError):
        pass
    raise DataError(f"{path}: no saved study; write one with `python -m wsss_lib.tune METHOD --save {path}`")


def read_refined(path: Path) -> list[dict]:
    """Read what `benchmarks/refinement_ablations.py` has written next to a study, STUDY-refined.json; it may be missing.

    Returns:
        a row for each method, seed and refinement: none, crf, affinitynet and irn have `measured`, the mIoU in percent of
        masks; deeplab has `val` and `val_crf`, those of predictions.

    Raises:
        DataError: the file is broken.

    Explained in notebook 96, sections 7 and 8.
    """
    file = path.with_name(f"{path.stem}-refined.json")
    if not file.is_file():
        return []
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(
            f"{file}: not valid JSON; remove it, and run `python benchmarks/refinement_ablations.py` again"
        ) from None


def of_seeds(study: Saved, method: str, value: str = "miou") -> dict[int, float]:
    """Return seed to a measured number of a method, in percent."""
    return {row["seed"]: row[value] for row in study[method]["measured"] if row.get(value) is not None}


def paired_gains(study: Saved, method: str, value: str = "miou", baseline: str = "cam") -> list[float]:
    """Return a method's gain over another one in points, for each seed that both have.

    >>> measured = lambda *values: {"measured": [{"seed": seed, "miou": miou} for seed, miou in enumerate(values)]}
    >>> paired_gains({"cam": measured(40.0, 42.0), "rib": measured(41.0, 45.0)}, "rib")
    [1.0, 3.0]
    """
    start, reached = of_seeds(study, baseline, value), of_seeds(study, method, value)
    return [reached[seed] - start[seed] for seed in sorted(start) if seed in reached]


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the ends of Student's interval of a mean; NaN for fewer than two values.

    With three values it is 4.3 standard errors wide on each side, with ten 2.3.

    >>> low, high = interval([1.0, 2.0, 3.0])
    >>> round(low, 2), round(high, 2)
    (-0.48, 4.48)
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def best_so_far(study: Saved, method: str) -> list[float]:
    """Return the highest score after each trial, in percent; a trial that was stopped early or has diverged adds nothing."""
    return np.maximum.accumulate([trial["score"] or 0.0 for trial in study[method]["trials"]]).tolist()


def gain_rows(study: Saved, value: str = "miou") -> list[list[str]]:
    """Return a line for each method but CAM: its gains seed by seed, their mean and interval, and whether it "helps"."""
    rows = []
    for method in study:
        gains = paired_gains(study, method, value)
        if method == "cam" or not gains:
            continue
        low, high = interval(gains)
        verdict = "helps" if low > 0 else "harms" if high < 0 else "not shown"
        seeds = " / ".join(f"{gain:+.1f}" for gain in gains)
        rows.append([method, seeds, f"{np.mean(gains):+.2f}", f"{low:+.2f} to {high:+.2f}", verdict])
    return rows


def measured_rows(study: Saved) -> list[list[str]]:
    """Return a line for each method: threshold, mIoU at it, bound, area, images with one class, with several, after a CRF."""
    values = ("miou", "best_miou", "area", "one_class", "several_classes", "crf_miou")
    return [
        [method, f"{kept['measured'][0]['threshold']:.2f}"]
        + [with_spread(list(reached.values())) if (reached := of_seeds(study, method, value)) else "–" for value in values]
        for method, kept in study.items()
        if kept["measured"]
    ]


def trial_rows(study: Saved) -> list[list[str]]:
    """Return a line for each trial: method, number, score on the tuning images, seconds and values."""
    return [
        [
            method,
            str(number),
            "given up" if trial["score"] is None else f"{trial['score']:.1f}" if trial["score"] else "diverged",
            f"{trial['seconds']:.0f}",
            ", ".join(f"{name} {value:.3g}" for name, value in trial["values"].items()),
        ]
        for method, kept in study.items()
        for number, trial in enumerate(kept["trials"], start=1)
    ]


def refined_rows(rows: Sequence[dict], refinements: Sequence[str] = ("none", "crf", "affinitynet", "irn")) -> list[list[str]]:
    """Return a line for each method and seed whose masks have been refined in all ways: mIoU in percent of each.

    >>> refined_rows([{"method": "cam", "seed": 0, "refinement": "crf", "measured": 50.0}], ["crf"])
    [['cam', '0', '50.0']]
    """
    reached: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        if "measured" in row:
            reached.setdefault((row["method"], row["seed"]), {})[row["refinement"]] = row["measured"]
    return [
        [method, str(seed), *(f"{values[name]:.1f}" for name in refinements)]
        for (method, seed), values in reached.items()
        if set(refinements) <= set(values)
    ]


def deeplab_rows(study: Saved, rows: Sequence[dict]) -> list[list[str]]:
    """Return a line for each network of `read_refined`: what it learned, mIoU of that, of its predictions, and with a CRF.

    Masks are scored on the images that measure; `truth` is the ground truth of the same images.
    """
    learned = [row for row in rows if row["refinement"] == "deeplab"]
    masks = {(method, row["seed"]): row.get("crf_miou") for method, kept in study.items() for row in kept["measured"]}
    return [
        [
            row["method"],
            str(row["seed"]),
            "–" if (taught := masks.get((row["method"], row["seed"]))) is None else f"{taught:.1f}",
            f"{row['val']:.1f}",
            f"{row['val_crf']:.1f}",
        ]
        for row in sorted(learned, key=lambda row: row["val"])
    ]


def networks(rows: Sequence[dict]) -> Saved:
    """Return the networks of `read_refined` that were trained with several seeds as a study, for `gain_rows`.

    Returns:
        method to {"measured": its rows}, whose `val` and `val_crf` are mIoU in percent.

    Explained in notebook 96, section 8.

    >>> rows = [{"method": "cam", "seed": seed, "refinement": "deeplab", "val": 45.0, "val_crf": 47.0} for seed in (0, 1)]
    >>> of_seeds(networks(rows), "cam", "val_crf")
    {0: 47.0, 1: 47.0}
    """
    trained: Saved = {}
    for row in rows:
        if row["refinement"] == "deeplab":
            trained.setdefault(row["method"], {"measured": []})["measured"].append(row)
    return {method: kept for method, kept in trained.items() if len(kept["measured"]) > 1}
