"""DRS's classifier with different suppression: learnable or fixed, in the last stage or in all.

Notebook 30 trains each variant for two epochs on few images, from the same initialization; the maps are not refined.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import best_threshold_row, full_size_maps, score_masks
from wsss_lib.core.stage import WEIGHTS, Job, Stage
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.saliency import read_saliency, saliency_hash
from wsss_lib.experiments import a_trial
from wsss_lib.experiments.trials import first_images, recall_by_part
from wsss_lib.methods import drs
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.parameters import TRAINING, Settings

VARIANTS = {  # to delta and the number of suppressed stages
    "no suppression": (1.0, 0),
    "0.8, last stage": (0.8, 1),
    "learnable, last stage": (0.0, 1),
    "0.55, all stages": (0.55, 5),
    "learnable, all stages": (0.0, 5),
}
SCORED_IMAGES = 100
IMAGES_AT_BOUND = 40  # of them, on which `fraction_at_bound` is measured

MaskOf = Callable[[str], np.ndarray]  # image id to a uint8 (H, W) map


# ---- looking into a network


def suppressions(net: nn.Module) -> list[drs.Suppression]:
    """Return a network's suppression modules, in the order of the layers."""
    return [module for module in net.modules() if isinstance(module, drs.Suppression)]


@torch.no_grad()
def modules_and_inputs(net: nn.Module, images: Tensor) -> list[tuple[drs.Suppression, Tensor]]:
    """Return each suppression module with its input for normalized images (N, 3, H, W), in the order of the calls."""
    seen: list[tuple[drs.Suppression, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0])))
        for module in suppressions(net)
    ]
    net(images)
    for handle in handles:
        handle.remove()
    return seen


def to_square(image: Image, config: Settings) -> Tensor:
    """Return an image in the form that the network needs: (1, 3, S, S), resized to a square of `drs_crop` and normalized."""
    square = transforms.resize_square(image, config.drs_crop)
    return transforms.to_tensor(transforms.normalize(square, *normalization_of(config.drs_backbone)))[None]


def fraction_at_bound(net: nn.Module, data: SegmentationDataset, config: Settings, count: int = IMAGES_AT_BOUND) -> float:
    """Return the fraction of positions outside every object at which the last module's channels sit at their bound.

    Returns:
        mean over channels, positions and images, in [0, 1]; NaN if no position lies outside.
    """
    fractions, device = [], next(net.parameters()).device
    for image_id in data.ids[:count]:
        module, x = modules_and_inputs(net, to_square(data.image(image_id), config).to(device))[-1]
        y = module(x)
        at_bound = ((y >= y.amax((2, 3), keepdim=True)) & (y > 0))[0].cpu()  # (C, h, w)
        outside = torch.from_numpy(data.mask(image_id) == 0).float()[None, None]
        outside = F.interpolate(outside, size=at_bound.shape[-2:], mode="area")[0, 0] > 0.99
        fractions.append(at_bound[:, outside].float().mean().item())
    return float(np.nanmean(fractions))


# ---- masks and their scores


def saliency_maps(data: SegmentationDataset, folder: Path) -> MaskOf:
    """Return the function from an image id to its saliency map; zeros if there is none."""

    def saliency_of(image_id: str) -> np.ndarray:
        path, size = folder / f"{image_id}.png", data.image(image_id).size
        return read_saliency(path, size) if path.is_file() else np.zeros(size[::-1], np.uint8)

    return saliency_of


def mask_with_saliency(maps_folder: Path, saliency_of: MaskOf, alpha: float) -> MaskOf:
    """Return the function from an image id to the pseudo-label of its stored maps, without the two rules for 255."""

    def mask_of(image_id: str) -> np.ndarray:
        classes, scores = full_size_maps(maps_folder, image_id)
        return drs.pseudo_label(scores, classes, saliency_of(image_id), alpha).decided

    return mask_of


# ---- the stage


def short_config(config: Config, images: int) -> Config:
    """Return the configuration of the short trainings.

    Args:
        images: of the training set; a fifth of them is used, but no more pixels than 300 generated images have.
    """
    count = max(48, min(300, images // 5) * 128**2 // config.drs_crop**2)
    # One run makes all of it: so few images are not divided among shards.
    return config.model_copy(
        update={
            "limit": count,
            "drs_epochs": 2,
            "drs_selection": "last",
            "drs_delta": 1.0,
            "drs_suppressed_stages": 0,
            "shards": 1,
            "shard": 1,
        }
    )


def _variants(job: Job) -> list[tuple[str, Settings, Path]]:
    """Return name, settings and folder of each variant."""
    return [
        (
            name,
            job.config.model_copy(update={"drs_delta": delta, "drs_suppressed_stages": stages}),
            job.folder / f"variant{number}",
        )
        for number, (name, (delta, stages)) in enumerate(VARIANTS.items())
    ]


def _scored(job: Job) -> SegmentationDataset:
    return first_images(job.data, SCORED_IMAGES)


def _make(job: Job) -> int:
    """Train each variant that is not trained yet, and write its maps of the scored images."""
    start, classes = job.inputs["classifier"].weights if "classifier" in job.inputs else "", job.data.num_classes
    for _, config, folder in _variants(job):
        weights = folder / WEIGHTS
        if not weights.is_file():
            torch.manual_seed(config.seed)
            net = drs.build_drs(config, classes, start).to(job.device)
            with a_trial():
                drs.train_drs(net, job.data, config, folder)
            training.save_weights(net, weights)
        net = drs.build_drs(config, classes, "", weights).to(job.device)
        make_maps(drs.drs_localization(net, config), _scored(job), config, folder)
    return 2 * len(VARIANTS) * len(job.data)


def _score(job: Job) -> list[dict[str, Any]]:
    """Return a row for each variant: percent mIoU with saliency and at best alone, fraction at the bound, recall by part."""
    data, rows = _scored(job), []
    saliency_of = saliency_maps(data, data.root / job.config.drs_saliency_folder)
    for name, config, folder in _variants(job):
        net = drs.build_drs(config, data.num_classes, "", folder / WEIGHTS).to(job.device).eval()
        mask_of = mask_with_saliency(folder, saliency_of, config.drs_alpha)
        rows.append(
            {
                "what": name,
                "split": data.split,
                "images": len(data),
                "saliency": round(100 * score_masks(data, mask_of).scores().miou, 1),
                "alone": best_threshold_row(data, folder)["miou"],
                "bound": fraction_at_bound(net, data, config),
                **(recall_by_part(data, data.ids, mask_of) if (data.root / "PartMasks").is_dir() else {}),
            }
        )
    return rows


def _saliency(job: Job) -> dict[str, str]:
    folder = job.data.root / job.config.drs_saliency_folder
    complete = all((folder / f"{image_id}.png").is_file() for image_id in job.data.ids)
    return {"saliency": saliency_hash(job.data, folder)} if complete else {}


ABLATION = Stage(
    "ablation",
    drs.NOTEBOOK,
    _make,
    score=_score,
    score_split="train_split",
    files=_saliency,
    inputs=drs.NETWORK.inputs,
    reads=(
        "drs_backbone",
        "drs_backbone_weights",
        "output_stride",
        "drs_delta",
        "drs_suppressed_stages",
        "drs_epochs",
        "drs_learning_rate",
        "drs_momentum",
        "drs_weight_decay",
        "drs_frozen_batch_norm",
        "drs_frozen_stages",
        "drs_batch_size",
        "drs_keep_last_batch",
        "map_precision",
        "drs_crop",
        "drs_saliency_folder",
        "drs_alpha",
        *TRAINING,
    ),
)
