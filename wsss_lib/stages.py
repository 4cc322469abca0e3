"""What each stage of the chain does to an image: read, call the method, write. The notebooks call these functions.

Networks are rebuilt from the configuration; every per-image function skips what is there, so a stage that was interrupted
goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wsss_lib import training
from wsss_lib.artifacts import read_maps, read_tensors, sha256, write_maps, write_mask
from wsss_lib.config import Config, project_path
from wsss_lib.data import transforms
from wsss_lib.data.dataset import DataError, SegmentationDataset, image_size, load_dataset, read_mask
from wsss_lib.data.samples import (
    AffinitySamples,
    ClassificationSamples,
    SegmentationSamples,
    V3PlusSamples,
    steps_per_epoch,
)
from wsss_lib.inference import batches_of_like_size, for_each_image
from wsss_lib.methods import cam
from wsss_lib.metrics import Evaluation, ThresholdSweep, part_recall
from wsss_lib.nets import deeplab_v3plus
from wsss_lib.nets.backbone import build_backbone, load_weights, normalization_of
from wsss_lib.nets.deeplab_v2 import (
    DeepLabV2,
    balanced_cross_entropy,
    cross_entropy,
    multi_scale_logits,
    multi_scale_loss,
    parameter_groups,
    self_label_loss,
)
from wsss_lib.nets.deeplab_v3plus import DeepLabV3Plus, build_dilated_backbone
from wsss_lib.nets.irn import IRN
from wsss_lib.progress import progress
from wsss_lib.refine.affinity import affinity_loss
from wsss_lib.refine.crf import crf_segmentation
from wsss_lib.refine.random_walk import propagate, pseudo_mask
from wsss_lib.refine.seeds import argmax_with_background, irn_labels, seed_mask, upsample_scores

Localize = Callable[[Sequence[str], Sequence[Image.Image], np.ndarray], list[tuple[np.ndarray, np.ndarray]]]


def open_data(config: Config, split: str) -> SegmentationDataset:
    """Open one split of the configured data set; errors as `load_dataset`."""
    labels = project_path(config.labels) if config.labels else ""
    return load_dataset(project_path(config.data_root), split, labels, config.limit, config.mask_folder)


def data_hash(data: SegmentationDataset) -> str:
    """Return a hash of what a stage sees of a data set: ids, image sizes in bytes, classes and image-level labels."""
    identity = hashlib.sha256(json.dumps([data.split, data.classes, data.ids]).encode())
    identity.update(np.ascontiguousarray(data.labels).tobytes())
    identity.update(json.dumps([data.image_path(image_id).stat().st_size for image_id in data.ids]).encode())
    return identity.hexdigest()


def truth_hash(data: SegmentationDataset) -> str:
    """Return a hash of the true masks of a split, for a stage that trains on them.

    Raises:
        DataError: a mask is missing.
    """
    paths = [data.mask_path(image_id) for image_id in data.ids]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: the mask is missing, and {len(missing) - 1} others of split {data.split!r}; set "
                        "mask_folder to the folder that has them all (for train_aug of VOC: SegmentationClassAug)")
    return sha256(paths, data.root)


def saliency_hash(data: SegmentationDataset, folder: Path) -> str:
    """Return a hash of the saliency maps of a split, for a stage that uses them."""
    return sha256([folder / f"{image_id}.png" for image_id in data.ids], folder)


# ---- 10: classifier and maps

def build_classifier(config: Config, num_classes: int, weights: Path | str = "") -> cam.ClassActivationNet:
    """Build the classifier, from its own weights (a safetensors file) or from the backbone's."""
    backbone = build_backbone(config.backbone, config.output_stride, "none" if weights else config.backbone_weights)
    net = cam.ClassActivationNet(backbone, num_classes, config.frozen_batch_norm, config.frozen_stages)
    if weights:
        load_weights(net, read_tensors(project_path(weights)), str(weights))
    return net


def train_classifier(net: cam.ClassActivationNet, data: SegmentationDataset, config: Config, folder: Path) -> int:
    """Train the classifier on image-level labels; returns the number of images seen."""
    mean, std = normalization_of(config.backbone)
    samples = ClassificationSamples(data, config.seed, (config.cam_long_side_min, config.cam_long_side_max),
                                    config.cam_crop, mean, std)
    steps = config.cam_epochs * steps_per_epoch(len(data), config.cam_batch_size)
    momentum = training.momentum_of(config.momentum, config.weight_decay, config.momentum_slip)
    groups = net.parameter_groups(config.cam_learning_rate, config.cam_head_learning_rate, config.weight_decay)
    training.train(net, cam.classification_loss, samples, groups, momentum, steps, config.cam_batch_size, config, folder,
                   name="classifier")
    return steps * config.cam_batch_size


def score_classifier(net: cam.ClassActivationNet, data: SegmentationDataset, config: Config) -> np.ndarray:
    """Return class probabilities of all images of a split: float32 (N, C)."""
    mean, std = normalization_of(config.backbone)
    net.eval()
    return np.concatenate([cam.classification_scores(net, [data.image(image_id)], mean, std)
                           for image_id in progress(data.ids, "classifier on " + data.split)])


def cam_localization(net: cam.ClassActivationNet, config: Config) -> Localize:
    """Return the function that makes a classifier's plain maps, for `make_maps`."""
    mean, std = normalization_of(config.backbone)
    net.eval().to(memory_format=torch.channels_last)
    return lambda ids, images, labels: cam.localization_maps(net, images, labels, config.cam_scales, mean, std)


def make_maps(localize: Localize, data: SegmentationDataset, config: Config, folder: Path) -> int:
    """Write `ID.npz` with the localization maps of every image that has none yet.

    Args:
        localize: a method; (ids, photographs of one size, labels uint8 (N, C)) to classes (K,) and scores (K, h, w) at stride
            4 of each image. What it draws at random must depend on the id alone, so that a resumed run makes the same maps.
        data: the images.
        config: device_batch_size is the number of images handed over at once.
        folder: of the stage.

    Returns:
        the number of images made now.
    """
    row = {image_id: index for index, image_id in enumerate(data.ids)}
    missing = [image_id for image_id in data.ids if not (folder / f"{image_id}.npz").is_file()]
    groups = batches_of_like_size(missing, lambda image_id: image_size(data.image_path(image_id)), config.device_batch_size)
    for group in progress(groups, "localization maps"):
        images = [data.image(image_id) for image_id in group]
        labels = data.labels[[row[image_id] for image_id in group]]
        for image_id, image, (classes, scores) in zip(group, images, localize(group, images, labels), strict=True):
            write_maps(folder / f"{image_id}.npz", classes, scores, image.size[::-1])
    return len(missing)


# ---- 70: seeds

def full_size_maps(maps_folder: Path, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Read an image's maps: classes (K,), scores float32 (K, H, W) at full resolution."""
    classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
    return classes, upsample_scores(scores, size)


def sweep_maps(data: SegmentationDataset, maps_folder: Path, thresholds: Sequence[float]) -> ThresholdSweep:
    """Compare the maps of a split with the true masks at all thresholds in one pass."""
    sweep = ThresholdSweep(data.num_classes + 1, thresholds)
    for image_id in progress(data.ids, "threshold sweep"):
        classes, scores = full_size_maps(maps_folder, image_id)
        sweep.add(data.mask(image_id), scores, classes)
    return sweep


def score_maps(data: SegmentationDataset, maps_folder: Path) -> dict:
    """Return the row of `metrics.json` for maps at their best threshold, which the true masks choose, with the whole curve."""
    sweep = sweep_maps(data, maps_folder, np.linspace(0.01, 0.9, 90))
    threshold, miou = sweep.best()
    return {"what": "CAM at its best threshold", "split": data.split, "images": len(data), "crf": False,
            "miou": round(100 * miou, 2), "pixel_labels_chose": f"threshold {threshold:.2f}", "threshold": round(threshold, 4),
            "thresholds": np.round(sweep.thresholds, 4).tolist(), "curve": np.round(100 * sweep.curve(), 2).tolist()}


def mean_part_recall(data: SegmentationDataset, maps_folder: Path, threshold: float,
                     count: int = 300) -> dict[str, float] | None:
    """Return which share of the heads and of the bodies of generated creatures the maps find.

    Args:
        data: with part masks in the folder `PartMasks`.
        maps_folder: of `ID.npz`.
        threshold: the score of the background.
        count: only the first images.

    Returns:
        {"head": mean over images in 0..1, "body": mean}, or None where the data have no part masks.

    Explained in notebook 10, section "The flaw, measured".
    """
    if not (data.root / "PartMasks").is_dir():
        return None
    recalls = []
    for image_id in data.ids[:count]:
        classes, scores = full_size_maps(maps_folder, image_id)
        parts = np.array(Image.open(data.root / "PartMasks" / f"{image_id}.png"))
        recalls.append(part_recall(argmax_with_background(scores, classes, threshold), parts, data.mask(image_id)))
    return {part: float(np.nanmean([recall[part] for recall in recalls])) for part in ("head", "body")}


def make_seeds(data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> int:
    """Write seed masks after the CRF (`seed_masks/ID.png`) and IRN's labels (`irn_labels/ID.png`); returns how many now."""
    work = partial(_make_seeds_of_image, data=data, maps_folder=maps_folder, config=config, folder=folder)
    return for_each_image(data.ids, lambda image_id: folder / "irn_labels" / f"{image_id}.png", work, "seeds",
                          config.num_workers)


def _make_seeds_of_image(image_id: str, data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> None:
    image = np.array(data.image(image_id))
    classes, scores = full_size_maps(maps_folder, image_id)
    write_mask(folder / "seed_masks" / f"{image_id}.png",
               seed_mask(image, scores, classes, config.seed_threshold, iterations=config.seed_crf_iterations))
    write_mask(folder / "irn_labels" / f"{image_id}.png",  # last: its presence says that the image is done
               irn_labels(image, scores, classes, config.seed_foreground_threshold, config.seed_background_threshold,
                          config.seed_crf_iterations))


# ---- 80: IRN

def build_irn(config: Config, classifier_weights: Path, weights: Path | str = "") -> IRN:
    """Build IRN on the ImageNet backbone (published) or on the classifier's, or from its own weights."""
    backbone = build_backbone(config.backbone, config.output_stride,
                              "none" if weights or config.irn_init == "classifier" else config.backbone_weights)
    if config.irn_init == "classifier" and not weights:
        load_backbone_of_classifier(backbone, classifier_weights)
    net = IRN(backbone, config.irn_displacement_width)
    if weights:
        load_weights(net, read_tensors(project_path(weights)), str(weights))
    return net


def load_backbone_of_classifier(backbone: nn.Module, weights: Path) -> None:
    """Copy the backbone out of a classifier's weights."""
    state = {key.removeprefix("backbone."): value for key, value in read_tensors(project_path(weights)).items()
             if key.startswith("backbone.")}
    load_weights(backbone, state, str(weights))


def train_irn(net: IRN, data: SegmentationDataset, label_folder: Path, config: Config, folder: Path) -> int:
    """Train IRN's two heads on the confident labels; returns the number of images seen."""
    mean, std = normalization_of(config.backbone)
    samples = AffinitySamples(data, label_folder, config.seed, (config.irn_scale_min, config.irn_scale_max),
                              config.irn_crop, mean, std)
    steps = config.irn_epochs * steps_per_epoch(len(data), config.irn_batch_size)
    momentum = training.momentum_of(config.momentum, config.weight_decay, config.momentum_slip)
    groups = [{"params": net.edge_parameters(), "lr": config.irn_learning_rate, "weight_decay": config.weight_decay},
              {"params": net.displacement_parameters(), "lr": config.irn_displacement_learning_rate,
               "weight_decay": config.weight_decay}]

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        losses = affinity_loss(*model(images), labels, config.irn_train_radius, data.num_classes + 1)
        return {"loss": losses.total, **losses._asdict()}

    training.train(net, loss_of, samples, groups, momentum, steps, config.irn_batch_size, config, folder, name="IRN")
    return steps * config.irn_batch_size


@torch.inference_mode()
def set_mean_displacement(net: IRN, data: SegmentationDataset, config: Config) -> None:
    """Set IRN's mean shift to the average displacement over a split (top-left crops, as published)."""
    mean, std = normalization_of(config.backbone)
    device = net.fc_edge6.weight.device
    net.eval()
    net.mean_shift.running_mean.zero_()
    total = torch.zeros(2, device=device)
    for image_id in progress(data.ids, "mean displacement"):
        array = transforms.normalize(data.image(image_id), mean, std)
        image = transforms.to_tensor(transforms.top_left_crop(array, config.irn_crop, 0))
        total += net(image[None].to(device))[1].mean((0, 2, 3))
    net.mean_shift.running_mean.copy_(total / len(data))


@torch.inference_mode()
def boundary_map(net: IRN, image: Image.Image, config: Config) -> tuple[Tensor, Tensor]:
    """Return IRN's boundary map (h, w) and displacement field (2, h, w) of one photograph at stride 4."""
    tensor = transforms.to_tensor(transforms.normalize(image, *normalization_of(config.backbone)))
    return net.predict(tensor.to(net.fc_edge6.weight.device), pad_to=config.walk_pad_to or None)


def make_pseudo_masks(net: IRN, data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> int:
    """Write `ID.png`: the maps after the random walk, thresholded; returns the number of images made now."""
    device = net.fc_edge6.weight.device

    def work(image_id: str) -> None:
        classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
        edge, _ = boundary_map(net, data.image(image_id), config)
        maps = torch.from_numpy(scores).to(device)
        walk = propagate(maps ** config.walk_power, edge, config.walk_radius, config.walk_beta, config.walk_log2_steps)
        write_mask(folder / f"{image_id}.png", pseudo_mask(walk, classes, size, config.walk_threshold).cpu().numpy())

    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.png", work, "random walk")


# ---- 90: DeepLab

def deeplab_name(config: Config) -> str:
    """Return "DeepLab-v2" or "DeepLab-v3+"."""
    return {"v2": "DeepLab-v2", "v3plus": "DeepLab-v3+"}[config.deeplab_version]


def build_deeplab(config: Config, num_classes: int, classifier_weights: Path, weights: Path | str = "") -> nn.Module:
    """Build DeepLab-v2 or -v3+ for `num_classes` foreground classes and background."""
    imagenet = config.deeplab_init == "imagenet" and not weights
    build = build_backbone if config.deeplab_version == "v2" else build_dilated_backbone
    backbone = build(config.deeplab_backbone, config.deeplab_output_stride, "imagenet" if imagenet else "none")
    if config.deeplab_init == "classifier" and not weights:
        load_backbone_of_classifier(backbone, classifier_weights)
    if config.deeplab_version == "v2":
        net = DeepLabV2(backbone, num_classes + 1, config.deeplab_atrous_rates)
    else:
        net = DeepLabV3Plus(backbone, num_classes + 1, config.deeplab_atrous_rates, config.deeplab_decoder_width)
    if weights:
        load_weights(net, read_tensors(project_path(weights)), str(weights))
    return net


def train_deeplab(net: nn.Module, data: SegmentationDataset, mask_folder: Path, config: Config, folder: Path) -> int:
    """Train DeepLab on (pseudo-)masks; returns the number of images seen.

    Raises:
        ValueError: version 3+ with one image at once on the device; errors of `training.train`.
    """
    v2 = config.deeplab_version == "v2"
    if not v2 and min(config.deeplab_batch_size, config.device_batch_size) < 2:
        raise ValueError("DeepLab-v3+ trains batch normalisation on one value an image: deeplab_batch_size and "
                         "device_batch_size must be at least 2")
    kind = SegmentationSamples if v2 else V3PlusSamples
    samples = kind(data, mask_folder, config.seed, config.deeplab_scales, config.deeplab_crop,
                   *normalization_of(config.deeplab_backbone))
    samples.image_labels = config.deeplab_loss == "self_label"
    if config.deeplab_padding_is_background:
        samples.label_fill = 0
    groups_of = parameter_groups if v2 else deeplab_v3plus.parameter_groups
    groups = groups_of(net, config.deeplab_learning_rate, config.deeplab_weight_decay)
    schedule = partial(training.poly_factor, every=10) if v2 else training.poly_factor
    training.train(net, partial(_deeplab_loss, config=config), samples, groups, config.deeplab_momentum,
                   config.deeplab_iterations, config.deeplab_batch_size, config, folder, schedule, deeplab_name(config))
    return config.deeplab_iterations * config.deeplab_batch_size


def _deeplab_loss(net: nn.Module, batch: tuple[Tensor, ...], config: Config) -> dict[str, Tensor]:
    images, masks, *image_labels = batch
    pixel_loss = {"cross_entropy": cross_entropy, "balanced": balanced_cross_entropy,
                  "self_label": lambda logits, labels: self_label_loss(logits, labels, *image_labels)}[config.deeplab_loss]
    if config.deeplab_version == "v2":
        return {"loss": multi_scale_loss(multi_scale_logits(net, images, config.deeplab_test_scales), masks, pixel_loss)}
    logits = F.interpolate(net(images), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    return {"loss": pixel_loss(logits, masks)}


@torch.inference_mode()
def class_probabilities(net: nn.Module, image: Image.Image, config: Config) -> np.ndarray:
    """Return DeepLab's class probabilities of one photograph, no image-level label used: float32 (K, H, W)."""
    mean, std = normalization_of(config.deeplab_backbone)
    tensor = transforms.to_tensor(transforms.normalize(image, mean, std))[None].to(next(net.parameters()).device)
    logits = multi_scale_logits(net, tensor, config.deeplab_test_scales)[-1] if config.deeplab_version == "v2" else net(tensor)
    logits = F.interpolate(logits.float(), size=image.size[::-1], mode="bilinear", align_corners=False)
    return logits.softmax(1)[0].cpu().numpy()


def make_predictions(net: nn.Module, data: SegmentationDataset, config: Config, folder: Path) -> int:
    """Write `plain/ID.png` and, after the CRF, `crf/ID.png`; returns the number of images made now."""
    net.eval()

    def work(image_id: str) -> None:
        image = data.image(image_id)
        probabilities = class_probabilities(net, image, config)
        write_mask(folder / "plain" / f"{image_id}.png", probabilities.argmax(0))
        write_mask(folder / "crf" / f"{image_id}.png", crf_segmentation(np.array(image), probabilities))

    return for_each_image(data.ids, lambda image_id: folder / "crf" / f"{image_id}.png", work, "prediction")


def score_centre_crops(net: nn.Module, data: SegmentationDataset, config: Config) -> Evaluation:
    """Score a network on centre crops of `deeplab_centre_crop` pixels; not comparable with a score of full images."""
    net.eval()
    evaluation = Evaluation(data.num_classes + 1)
    for image_id in progress(data.ids, "centre crops"):
        image, mask = transforms.centre_crop(data.image(image_id), data.mask(image_id), config.deeplab_centre_crop)
        evaluation.add(mask, class_probabilities(net, image, config).argmax(0))
    return evaluation


# ---- scores

def score_masks(data: SegmentationDataset, mask_of: Callable[[str], np.ndarray] | Path) -> Evaluation:
    """Compare masks with the true ones over a split.

    Args:
        data: with true masks.
        mask_of: a folder of `ID.png`, or a function from image id to a uint8 (H, W) map.
    """
    evaluation = Evaluation(data.num_classes + 1)
    for image_id in progress(data.ids, "scoring"):
        if callable(mask_of):
            mask = mask_of(image_id)
        else:
            size = image_size(data.image_path(image_id))
            mask = read_mask(Path(mask_of) / f"{image_id}.png", data.num_classes, size)
        evaluation.add(data.mask(image_id), mask)
    return evaluation


def metric_row(what: str, data: SegmentationDataset, evaluation: Evaluation, crf: bool, config: Config) -> dict:
    """Return one row of `metrics.json`.

    Args:
        what: the stage in words, e.g. "CAM seed".
        data: the split that was scored.
        evaluation: its confusion matrix.
        crf: whether a dense CRF was applied.
        config: says what was chosen by looking at pixel labels.
    """
    result = evaluation.scores()
    return {"what": what, "split": data.split, "images": len(data), "crf": crf, "miou": round(100 * result.miou, 2),
            "precision": round(100 * float(np.nanmean(result.precision)), 2),
            "recall": round(100 * float(np.nanmean(result.recall)), 2),
            "class_iou": [None if np.isnan(value) else round(100 * float(value), 2) for value in result.iou],
            "unknown_share": round(evaluation.unknown_share, 4), "pixel_labels_chose": config.pixel_labels_chose}
