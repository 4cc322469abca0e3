"""AMN with one part changed at a time: what does each part contribute?

Notebook 40 runs some of these on few images, `benchmarks/amn_ablations.py` all of them on the whole set with three seeds.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.core import training
from wsss_lib.core.files import IGNORE
from wsss_lib.core.parallel import Localize, make_maps
from wsss_lib.core.scoring import sweep_maps
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.experiments import a_trial
from wsss_lib.methods.amn import (
    ActivationManipulationNet,
    amn_localization,
    balanced_loss,
    build_amn,
    make_refined_seeds,
    pixel_losses,
    smoothed_target,
    train_amn,
)
from wsss_lib.methods.cam import localization_maps
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.ops.thresholds import ImageThresholds
from wsss_lib.parameters import Settings


@dataclass(frozen=True)
class Variant:
    """One way to change AMN.

    Attributes:
        loss: "balanced": AMN's; "plain": one mean over all known pixels; "image": no pixel labels, but the image-level label
            against the average of the logits; its maps are then made as CAM's, too.
        conditioned: whether the image-level label enters the network.
        crf: whether the seed masks have been refined by a CRF; without it they are CAM at the same two thresholds.
        seed_rule: whether the maps keep their probabilities where the refined seed mask says background.
        settings: parameters set differently.
    """

    loss: Literal["balanced", "plain", "image"] = "balanced"
    conditioned: bool = True
    crf: bool = True
    seed_rule: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    def training_key(self) -> tuple:
        """Return what the trained network depends on: variants of one key can share it."""
        settings = {name: value for name, value in self.settings.items() if name != "amn_dropout_in_maps"}
        return self.loss, self.conditioned, self.crf, tuple(sorted(settings.items()))


VARIANTS = {  # those that share a trained network follow each other
    "AMN as published": Variant(),
    "maps stretched everywhere": Variant(seed_rule=False),
    "dropout left on in the maps": Variant(settings={"amn_dropout_in_maps": True}),
    "seeds without CRF": Variant(crf=False),
    "plain mean, not balanced": Variant(loss="plain"),
    "no label conditioning": Variant(conditioned=False),
    "image-level loss, not per pixel": Variant(loss="image", conditioned=False),
    "no label smoothing": Variant(settings={"amn_smoothing": 0.0}),
    "label smoothing 0.2": Variant(settings={"amn_smoothing": 0.2}),
}


def plain_loss(logits: Tensor, labels: Tensor, smoothing: float) -> dict[str, Tensor]:
    """Return the mean of the smoothed cross-entropy over all known pixels, whatever their kind.

    Args:
        logits: (N, C, h, w).
        labels: (N, h, w) integers, 0..C-1 or 255.
        smoothing: e.

    Returns:
        {"loss": scalar}; 0 for a batch without a known pixel.

    Explained in notebook 40, section "What helps and what does not".
    """
    known = labels != IGNORE
    losses = pixel_losses(logits, smoothed_target(labels, logits.shape[1], smoothing))
    return {"loss": (losses * known).sum() / known.sum().clamp(min=1)}


def image_loss(logits: Tensor, image_labels: Tensor) -> dict[str, Tensor]:
    """Return CAM's loss: the soft-margin loss of the averaged foreground logits; no pixel label is used.

    Args:
        logits: (N, 1 + K, h, w); the background's channel is not used.
        image_labels: float (N, K), 0 or 1.

    Explained in notebook 40, section "What helps and what does not".
    """
    return {"loss": F.multilabel_soft_margin_loss(logits[:, 1:].mean((2, 3)), image_labels)}


def without_conditioning(net: ActivationManipulationNet) -> ActivationManipulationNet:
    """Return the network with its condition vector fixed to ones: the features pass unchanged, whatever the label."""
    encoder = net.head.label_encoder.requires_grad_(False)
    encoder.weight.zero_()
    encoder.bias.fill_(1)
    return net


def variant_seeds(
    variant: Variant, data: Sequence[SegmentationDataset], seed_folder: Path, maps_folder: Path, config: Settings, folder: Path
) -> Path:
    """Return the folder of `ID.png` that a variant learns from, and make those without a CRF.

    Args:
        data: the images that need seed masks: those of training, and those whose maps are made.
        seed_folder: of the refined seed masks.
        maps_folder: of CAM's `ID.npz`.
        folder: gets the seed masks without a CRF.

    Explained in notebook 40, section "What helps and what does not".
    """
    if variant.crf:
        return seed_folder
    for part in data:  # zero steps of mean field leave the labels unchanged
        make_refined_seeds(part, maps_folder, config.model_copy(update={"seed_crf_iterations": 0}), folder)
    return folder


def train_variant(
    variant: Variant, data: SegmentationDataset, seed_folder: Path, classifier_weights: Path, config: Settings, folder: Path
) -> ActivationManipulationNet:
    """Build and train one variant, from the same random initialization whatever was trained before.

    Args:
        classifier_weights: CAM's classifier, for `amn_init` "classifier".

    Explained in notebook 40, section "What helps and what does not".
    """
    config = config.model_copy(update=variant.settings)
    device = training.seed_everything(config)
    net = build_amn(config, data.num_classes, classifier_weights).to(device)
    if not variant.conditioned:
        without_conditioning(net)

    def loss_of(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels, image_labels = batch
        logits = model(images, image_labels)
        if variant.loss == "image":
            return image_loss(logits, image_labels)
        return {"plain": plain_loss, "balanced": balanced_loss}[variant.loss](logits, labels, config.amn_smoothing)

    with a_trial():
        train_amn(net, data, seed_folder, config, folder, loss_of)
    return net.eval()


def variant_localization(
    variant: Variant, net: ActivationManipulationNet, data: SegmentationDataset, seed_folder: Path, config: Settings
) -> Localize:
    """Return the function that makes a variant's maps, for `make_maps`.

    Raises:
        DataError: a refined seed mask is missing.

    Explained in notebook 40, section "What helps and what does not".
    """
    if variant.loss != "image":
        config = config.model_copy(update=variant.settings)
        return amn_localization(net, data, seed_folder if variant.seed_rule else None, config)
    view, (mean, std) = _AsClassifier(net.eval()), normalization_of(config.backbone)
    return lambda ids, images, labels: localization_maps(view, images, labels, config.cam_scales, mean, std)


def score_variants(
    names: Sequence[str],
    data: SegmentationDataset,
    scored: SegmentationDataset,
    seed_folder: Path,
    maps_folder: Path,
    classifier_weights: Path,
    config: Settings,
    thresholds: np.ndarray,
) -> dict[str, dict[str, float]]:
    """Train what is needed, without keeping it, and score the maps of each variant.

    Args:
        scored: the images whose maps are made and scored.
        thresholds: (T,) strictly increasing.

    Returns:
        name to `ImageThresholds.summary`.
    """
    summaries, trained = {}, {}
    for name in names:
        variant, key = VARIANTS[name], VARIANTS[name].training_key()
        with tempfile.TemporaryDirectory() as folder:
            learned = variant_seeds(variant, (data, scored), seed_folder, maps_folder, config, Path(folder) / "seeds")
            if key not in trained:  # variants of the maps alone share one network
                trained[key] = train_variant(variant, data, learned, classifier_weights, config, Path(folder))
            localize = variant_localization(variant, trained[key], scored, learned, config)
            make_maps(localize, scored, config, Path(folder) / "maps")
            summaries[name] = sweep_maps(scored, Path(folder) / "maps", thresholds, ImageThresholds).summary()
    return summaries


class _AsClassifier:
    """An unconditioned AMN as CAM's extraction expects it: evidence is the positive part of the foreground logits."""

    def __init__(self, net: ActivationManipulationNet):
        self.net, self.classifier = net, net.head.aspp.c0

    def activation_maps(self, images: Tensor) -> Tensor:
        no_labels = images.new_zeros(len(images), self.net.head.label_encoder.in_features)
        return F.relu(self.net(images, no_labels)[:, 1:])
