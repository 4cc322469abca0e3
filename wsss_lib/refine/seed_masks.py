"""70: initial seed masks, IRN's confident labels, and their scores."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import model_validator

from wsss_lib.core.files import IGNORE, read_mask, write_mask
from wsss_lib.core.parallel import cpu_workers, for_each_image
from wsss_lib.core.progress import progress
from wsss_lib.core.scoring import full_size_maps, metric_row, score_masks, sweep_maps
from wsss_lib.core.stage import Job, Stage
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.methods import maps_of
from wsss_lib.ops.metrics import Evaluation
from wsss_lib.ops.seeds import argmax_with_background, seed_mask_and_irn_labels
from wsss_lib.ops.thresholds import ThresholdSweep
from wsss_lib.parameters import Fraction, ParameterGroup, Positive, Settings, require_order

NOTEBOOK = "70_seeds"


class Parameters(ParameterGroup):
    """70: from maps to initial seed masks and confident labels."""

    seed_threshold: Fraction = 0.15
    seed_foreground_threshold: Fraction = 0.20  # t_f; published: 0.30
    seed_background_threshold: Fraction = 0.06  # t_b; published: 0.05
    seed_crf_iterations: Positive = 10
    seed_num_thresholds: Positive = 60

    @model_validator(mode="after")
    def _seed_thresholds_in_order(self) -> "Parameters":
        require_order(self, "seed_background_threshold", "seed_foreground_threshold")
        return self


def make_seeds(data: SegmentationDataset, maps_folder: Path, config: Settings, folder: Path) -> int:
    """Write seed masks after the CRF (`seed_masks/ID.png`) and IRN's labels (`irn_labels/ID.png`) of every image without them.

    Explained in notebook 70, section "All images".
    """
    work = partial(_make_seeds_of_image, data=data, maps_folder=maps_folder, config=config, folder=folder)
    return for_each_image(
        data.ids,
        lambda image_id: (folder / "seed_masks" / f"{image_id}.png", folder / "irn_labels" / f"{image_id}.png"),
        work,
        "seeds",
        config,
        cpu_workers(config),
    )


def _make_seeds_of_image(image_id: str, data: SegmentationDataset, maps_folder: Path, config: Settings, folder: Path) -> None:
    image = np.array(data.image(image_id))
    classes, scores = full_size_maps(maps_folder, image_id)
    mask, labels = seed_mask_and_irn_labels(
        image,
        scores,
        classes,
        config.seed_threshold,
        config.seed_foreground_threshold,
        config.seed_background_threshold,
        config.seed_crf_iterations,
    )
    write_mask(folder / "seed_masks" / f"{image_id}.png", mask)
    write_mask(folder / "irn_labels" / f"{image_id}.png", labels)


# ---- scores


def sweep_thresholds(count: int) -> np.ndarray:
    """Return the thresholds of the sweep: float32 (count,), evenly spaced up to 0.9."""
    return np.linspace(0.9 / count, 0.9, count).astype(np.float32)


def labels_without_crf(maps: np.ndarray, classes: np.ndarray, t_f: float, t_b: float) -> np.ndarray:
    """Return confident labels made by two thresholds alone: uint8 (H, W), 255 between them."""
    objects, background = (argmax_with_background(maps, classes, threshold) for threshold in (t_f, t_b))
    return np.where(objects > 0, objects, np.where(background == 0, 0, IGNORE)).astype(np.uint8)


def confident_row(
    what: str, data: SegmentationDataset, mask_of: Callable[[str], np.ndarray], crf: bool, config: Settings
) -> dict:
    """Return a row about partly unknown labels; no mIoU, which would penalize unknown pixels."""
    everything, known = Evaluation(data.num_classes + 1), Evaluation(data.num_classes + 1)
    for image_id in progress(data.ids, what):
        truth, label = data.mask(image_id), mask_of(image_id)
        everything.add(truth, label)
        known.add(np.where(label == IGNORE, IGNORE, truth), label)
    n, k = everything.confusion, known.confusion
    return {
        "what": what,
        "split": data.split,
        "images": len(data),
        "crf": crf,
        "pixel_labels_chose": config.pixel_labels_chose,
        "unknown_share": round(everything.unknown_share, 4),
        "object_precision": round(100 * float(np.trace(k[1:, 1:]) / max(k[:, 1:].sum(), 1)), 2),
        "background_precision": round(100 * float(k[0, 0] / max(k[:, 0].sum(), 1)), 2),
        "object_recall": round(100 * float(np.trace(n[1:, 1:]) / max(n[1:].sum(), 1)), 2),
    }


def _sweep_row(job: Job) -> dict:
    data, maps_folder = job.score_data, job.inputs["maps"].folder
    thresholds = sweep_thresholds(job.config.seed_num_thresholds)
    sweep: ThresholdSweep = sweep_maps(data, maps_folder, thresholds)
    tenth: ThresholdSweep = sweep_maps(data.part(slice(None, None, 10)), maps_folder, thresholds)
    chosen_on = sweep if np.isnan(tenth.curve()).all() else tenth  # few images, and every tenth is entirely unknown
    return {
        "what": "threshold sweep",
        "split": data.split,
        "images": len(data),
        "crf": False,
        "thresholds": np.round(thresholds.astype(float), 4).tolist(),
        "curve": np.round(100 * sweep.curve(), 2).tolist(),
        "best": round(sweep.best()[0], 4),
        "best_on_every_tenth_image": round(chosen_on.best()[0], 4),
    }


def _score(job: Job) -> list[dict]:
    data, config, maps_folder = job.score_data, job.config, job.inputs["maps"].folder

    def plain(image_id: str) -> np.ndarray:
        classes, maps = full_size_maps(maps_folder, image_id)
        return argmax_with_background(maps, classes, config.seed_threshold)

    def without_crf(image_id: str) -> np.ndarray:
        classes, maps = full_size_maps(maps_folder, image_id)
        return labels_without_crf(maps, classes, config.seed_foreground_threshold, config.seed_background_threshold)

    def confident(image_id: str) -> np.ndarray:
        return read_mask(job.folder / "irn_labels" / f"{image_id}.png", data.num_classes)

    return [
        _sweep_row(job),
        metric_row("CAM seed", data, score_masks(data, plain), False, config),
        metric_row("CAM seed + CRF", data, score_masks(data, job.folder / "seed_masks"), True, config),
        confident_row("IRN labels without CRF", data, without_crf, False, config),
        confident_row("IRN labels", data, confident, True, config),
    ]


SEEDS = Stage(
    "seeds",
    NOTEBOOK,
    lambda job: make_seeds(job.data, job.inputs["maps"].folder, job.config, job.folder),
    inputs=lambda config: {"maps": maps_of(config.method)},
    score=_score,
    reads=("seed_threshold", "seed_foreground_threshold", "seed_background_threshold", "seed_crf_iterations"),
    score_reads=("seed_num_thresholds", "pixel_labels_chose"),
    shows={"CAM seed": None, "CAM seed + CRF": "seed_masks"},
)
STAGES = (SEEDS,)
