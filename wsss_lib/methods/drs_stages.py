"""The stages of DRS: build, train and apply the two networks, make and score pseudo-labels.

Everything that the paper says is in `wsss_lib.methods.drs`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from wsss_lib import training
from wsss_lib.config import Config, fields_of
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.saliency import read_saliency
from wsss_lib.data.samples import MapSamples, SquareSamples, steps_per_epoch
from wsss_lib.formats import read_json, read_maps, read_tensors, write_json, write_mask, write_tensors
from wsss_lib.inference import Localize, for_each_image
from wsss_lib.launch import in_processes
from wsss_lib.methods.drs import (
    ScoreNet,
    classification_loss,
    localization_maps,
    parameter_groups,
    pseudo_label,
    refinement_loss,
    refinement_target,
    staircase,
)
from wsss_lib.metrics import Evaluation
from wsss_lib.nets.backbone import OWN_STRIDE, build_backbone, freeze_batch_norm, normalization_of
from wsss_lib.nets.weights import load_weights, load_whole, start_backbone
from wsss_lib.progress import progress
from wsss_lib.refine.seeds import argmax_with_background, irn_labels, seed_mask, upsample_scores

RESIZE = 1.2  # photographs are squeezed to this multiple of the crop's side before the crop: 384 and 320
SCALES = (0.8, 1.0, 1.2)  # of the crop's side, for the maps: 256, 320 and 384

Choose = Callable[[ScoreNet], float]
MASK_FIELDS = ("drs_background", "drs_saliency_folder", "drs_alpha")  # of the pseudo-labels alone


def network_fields(config: Config) -> tuple[str, ...]:
    """Return the fields that DRS's classifier and its maps depend on.

    What only refinement or pseudo-labels read is not among them, unless these choose the classifier's epoch.

    Args:
        config: `drs_selection`.

    Returns:
        names of fields, for `begin_stage`.

    Explained in notebook 30, section "Training".
    """
    by_pseudo_labels = config.drs_selection == "pixel_labels"
    return fields_of("drs_", without=() if by_pseudo_labels else ("drs_refine_", *MASK_FIELDS))


def refinement_fields(config: Config) -> tuple[str, ...]:
    """Return the fields that DRS's refinement network and its maps depend on.

    Args:
        config: `drs_selection`.

    Returns:
        names of fields, for `begin_stage`.

    Explained in notebook 30, section "Training".
    """
    return fields_of("drs_", without=() if config.drs_selection == "pixel_labels" else MASK_FIELDS)


def build_drs(config: Config, num_classes: int, classifier: Path | str = "", weights: Path | str = "",
              delta: float | None = None) -> ScoreNet:
    """Build the classifier with suppression.

    Args:
        config: the `drs_` fields.
        num_classes: foreground classes C.
        classifier: weights of notebook 10's classifier, whose backbone is the start where `drs_backbone_weights` says so.
        weights: a safetensors file of a whole network of this kind, instead of a start.
        delta: None: the configured one.

    Returns:
        the network, on the CPU.

    Raises:
        ValueError: weights of another network.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 30, section "The network".
    """
    delta = config.drs_delta if delta is None else delta
    net = ScoreNet(_start_backbone(config, classifier, weights), num_classes, delta, config.drs_suppressed_stages)
    return _finish(net, config, weights)


def build_refinement(config: Config, num_classes: int, classifier: Path | str = "", weights: Path | str = "") -> ScoreNet:
    """Build the refinement network: the same start again (not the first network's weights), no suppression.

    Args:
        config, num_classes, classifier: as for `build_drs`.
        weights: a safetensors file of a whole refinement network, instead of a start.

    Returns:
        the network, on the CPU.

    Raises:
        ValueError: weights of another network.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 30, section "Refinement learning".
    """
    net = ScoreNet(_start_backbone(config, classifier, weights), num_classes, delta=1, extra_std=0.01)
    return _finish(net, config, weights)


def _start_backbone(config: Config, classifier: Path | str, weights: Path | str) -> nn.Module:
    """Build the backbone without suppression, with its start weights unless a whole network's weights will follow."""
    build = partial(build_backbone, config.drs_backbone, OWN_STRIDE.get(config.drs_backbone, config.output_stride))
    return start_backbone(build, config.drs_backbone_weights, classifier, weights)


def _finish(net: ScoreNet, config: Config, weights: Path | str) -> ScoreNet:
    if config.frozen_batch_norm:
        freeze_batch_norm(net.backbone)
    for module in net.backbone.shallow_modules(config.frozen_stages):
        module.requires_grad_(False)
    return load_whole(net, weights)


@in_processes
def train_drs(net: ScoreNet, data: SegmentationDataset, config: Config, folder: Path, choose: Choose | None = None) -> int:
    """Train the classifier on image-level labels, in place.

    Args:
        net: changed in place.
        data: with image-level labels.
        config: the `drs_` fields.
        folder: for log and state.
        choose: None: the last epoch is kept; else the epoch for which this gives the highest value (see `chooser`).

    Returns:
        the number of images of the whole training.

    Raises:
        ValueError: as `training.train`.

    Source: section "Training" and the official program. Explained in notebook 30, section "Training".
    """
    resize = round(RESIZE * config.drs_crop)
    samples = SquareSamples(data, config.seed, resize, config.drs_crop, *normalization_of(config.drs_backbone))
    groups = parameter_groups(net, config.drs_learning_rate, config.weight_decay)
    return _train(net, classification_loss, samples, groups, config.drs_epochs, config.momentum, config, folder, "DRS", choose)


@in_processes
def train_refinement(net: ScoreNet, data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path,
                     choose: Choose | None = None) -> int:
    """Train the refinement network on the classifier's maps, in place.

    Args:
        net: changed in place.
        data: the images.
        maps_folder: holds the classifier's maps `ID.npz`.
        config: the `drs_` fields.
        folder: for log and state.
        choose: as for `train_drs`.

    Returns:
        the number of images of the whole training.

    Raises:
        ValueError: as `training.train`.
        DataError: a map is missing or broken.

    Explained in notebook 30, section "Refinement learning".
    """
    samples = MapSamples(data, maps_folder, config.seed, config.drs_crop, *normalization_of(config.drs_backbone))

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, maps = batch
        return refinement_loss(model, (images, refinement_target(maps)))

    groups = [{"params": [part for part in net.parameters() if part.requires_grad], "lr": config.drs_refine_learning_rate,
               "weight_decay": 0.0}]
    return _train(net, loss_of, samples, groups, config.drs_refine_epochs, None, config, folder, "refinement", choose)


def _train(net, loss_of, samples, groups, epochs, momentum, config, folder, name, choose) -> int:
    per_epoch = steps_per_epoch(len(samples), config.drs_batch_size)
    points = (epochs // 3, 2 * epochs // 3) if epochs >= 6 else ()  # published: 5 and 10 of 15, 10 and 20 of 30
    training.train(net, loss_of, samples, groups, momentum, epochs * per_epoch, config.drs_batch_size, config, folder,
                   schedule=lambda step, total: staircase(step // per_epoch + 1, points), name=name,
                   nesterov=momentum is not None,
                   after_step=keep_best_epoch(net, choose, per_epoch, folder) if choose else None)
    if choose:
        load_weights(net, read_tensors(folder / "best.safetensors"), "best.safetensors")
    return epochs * per_epoch * config.drs_batch_size


def drs_localization(net: ScoreNet, config: Config, normalized: bool = True) -> Localize:
    """Return the function that makes maps for `stages.make_maps`.

    Args:
        net: on the device; it is put in evaluation mode.
        config: gives drs_crop and drs_backbone.
        normalized: True: the classifier's maps; False: the refinement network's answers, cut to 0..1.

    Explained in notebook 30, section "All images".
    """
    net.eval()
    arguments = config.drs_crop, SCALES, *normalization_of(config.drs_backbone), normalized
    return lambda ids, images, labels: localization_maps(net, images, labels, *arguments)


# ---- pseudo-labels

def make_pseudo_labels(data: SegmentationDataset, maps_folder: Path, saliency_folder: Path, config: Config,
                       folder: Path) -> int:
    """Write the pseudo-label `ID.png` of every image that has none yet.

    What says background is `drs_background`. "saliency" is the paper's; the others are this project's, for data without
    saliency maps: "constant" (`drs_alpha` as the background's score), "crf" (that, then a dense CRF) and "irn" (IRN's confident
    labels, 255 between the two thresholds).

    Args:
        data: the images.
        maps_folder: holds the refined maps `ID.npz`.
        saliency_folder: holds `ID.png`; read only where saliency is asked for.
        config: gives drs_background, drs_alpha, seed_* and num_workers.
        folder: of the stage.

    Returns:
        the number of images made now.

    Raises:
        DataError: a map or a saliency map is missing or broken.

    Explained in notebook 30, section "Without saliency".
    """
    work = partial(_make_pseudo_label, data=data, maps_folder=maps_folder, saliency_folder=saliency_folder, config=config,
                   folder=folder)
    workers = config.num_workers if config.drs_background in ("crf", "irn") else 0  # they pay where a CRF is to be solved
    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.png", work, "pseudo-labels", config, workers)


def _make_pseudo_label(image_id: str, data: SegmentationDataset, maps_folder: Path, saliency_folder: Path, config: Config,
                       folder: Path) -> None:
    classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
    maps = upsample_scores(scores, size)
    if config.drs_background == "saliency":
        saliency = read_saliency(saliency_folder / f"{image_id}.png", size[::-1])
        mask = pseudo_label(maps, classes, saliency, config.drs_alpha).mask
    else:
        mask = label_without_saliency(data.image(image_id), maps, classes, config)
    write_mask(folder / f"{image_id}.png", mask)


def label_without_saliency(image: Image.Image, maps: np.ndarray, classes: np.ndarray, config: Config) -> np.ndarray:
    """Make a pseudo-label in one of this project's three ways (none is in the paper).

    Args:
        image: RGB photograph, (H, W).
        maps: float32 (K, H, W) in [0, 1].
        classes: int64 (K,), 0-based.
        config: gives drs_background, drs_alpha and seed_*.

    Returns:
        uint8 (H, W): 0, class + 1, or 255 (only with "irn").

    Raises:
        ValueError: `drs_background` is "saliency".

    Explained in notebook 30, section "Without saliency".
    """
    if config.drs_background == "constant":
        return argmax_with_background(maps, classes, config.drs_alpha)
    if config.drs_background == "crf":
        return seed_mask(np.array(image), maps, classes, config.drs_alpha, iterations=config.seed_crf_iterations)
    if config.drs_background == "irn":
        return irn_labels(np.array(image), maps, classes, config.seed_foreground_threshold, config.seed_background_threshold,
                          config.seed_crf_iterations)
    raise ValueError("drs_background is 'saliency': use pseudo_label")


# ---- the choice of an epoch

def chooser(data: SegmentationDataset, saliency_folder: Path, config: Config, normalized: bool = True) -> Choose | None:
    """Return what an epoch is chosen by: None (the last one is kept) unless `drs_selection` is "pixel_labels".

    The official programs keep the epoch whose pseudo-labels are best by the true masks. Scores that follow have used pixel
    labels, and must say so.

    Args:
        data: the split with the true masks.
        saliency_folder: of `ID.png`.
        config: `drs_selection`, and how pseudo-labels are made.
        normalized: see `drs_localization`.

    Returns:
        None, or a function from the network to a value in percent, which can be sent to another process.

    Explained in notebook 30, section "Training".
    """
    if config.drs_selection == "last":
        return None
    return partial(_score_network, data=data, saliency_folder=saliency_folder, config=config, normalized=normalized)


def _score_network(net: ScoreNet, data: SegmentationDataset, saliency_folder: Path, config: Config, normalized: bool) -> float:
    return pseudo_label_miou(drs_localization(net, config, normalized), data, saliency_folder, config)


def pseudo_label_miou(localize: Localize, data: SegmentationDataset, saliency_folder: Path, config: Config) -> float:
    """Return the mIoU in percent of pseudo-labels, without the two rules for 255, of maps made just now.

    Args:
        localize: of `drs_localization`.
        data: the split with the true masks.
        saliency_folder: of `ID.png`.
        config: gives drs_background and drs_alpha.

    Raises:
        DataError: a true mask or a saliency map is missing or broken.

    Explained in notebook 30, section "Training".
    """
    evaluation = Evaluation(data.num_classes + 1)
    for image_id, label in zip(progress(data.ids, "choosing by pixel labels"), data.labels, strict=True):
        image = data.image(image_id)
        ((classes, scores),) = localize([image_id], [image], label[None])
        maps = upsample_scores(scores, image.size[::-1])
        if config.drs_background == "saliency":
            saliency = read_saliency(saliency_folder / f"{image_id}.png", image.size)
            mask = pseudo_label(maps, classes, saliency, config.drs_alpha).decided
        else:
            mask = argmax_with_background(maps, classes, config.drs_alpha)
        evaluation.add(data.mask(image_id), mask)
    return 100 * evaluation.scores().miou


def keep_best_epoch(net: ScoreNet, choose: Choose, steps_per_epoch: int, folder: Path) -> Callable[[int], None]:
    """Return a function for `training.train`'s `after_step` that scores every epoch and keeps the best weights.

    Args:
        net: the network in training.
        choose: gives the value to choose by; the network is in evaluation mode.
        steps_per_epoch: optimiser steps of an epoch.
        folder: gets `best.safetensors` and `epochs.json` (epoch to value).

    Returns:
        the function, which takes the number of finished steps.

    Explained in notebook 30, section "Training".
    """
    def after_step(step: int) -> None:
        if step % steps_per_epoch:
            return
        net.eval()
        value = choose(net)
        net.train()
        record = folder / "epochs.json"
        values = read_json(record) if record.is_file() else {}
        others = [other for epoch, other in values.items() if int(epoch) < step // steps_per_epoch]
        if value > max(others, default=-1.0):
            write_tensors(folder / "best.safetensors", net.state_dict())
        write_json(record, values | {str(step // steps_per_epoch): value})

    return after_step
