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
from PIL import Image

from wsss_lib import training
from wsss_lib.artifacts import read_maps, read_tensors, sha256, write_maps, write_mask
from wsss_lib.config import Config, project_path
from wsss_lib.data.dataset import (
    DataError,
    SegmentationDataset,
    image_size,
    load_dataset,
    read_mask,
    without_unreadable_images,
)
from wsss_lib.data.samples import ClassificationSamples, steps_per_epoch
from wsss_lib.inference import batches_of_like_size, for_each_image
from wsss_lib.late_stages import (  # noqa: F401 - the notebooks call the functions of every stage by this module
    boundary_map,
    build_deeplab,
    build_irn,
    class_probabilities,
    deeplab_name,
    load_backbone_of_classifier,
    make_predictions,
    make_pseudo_masks,
    score_centre_crops,
    set_mean_displacement,
    train_deeplab,
    train_irn,
)
from wsss_lib.methods import cam
from wsss_lib.metrics import Evaluation, part_recall
from wsss_lib.nets.backbone import build_backbone, load_weights, normalization_of
from wsss_lib.progress import progress
from wsss_lib.refine.seeds import argmax_with_background, irn_labels, seed_mask, upsample_scores
from wsss_lib.thresholds import ThresholdSweep

Localize = Callable[[Sequence[str], Sequence[Image.Image], np.ndarray], list[tuple[np.ndarray, np.ndarray]]]


def open_data(config: Config, split: str) -> SegmentationDataset:
    """Open one split of the configured data set.

    Args:
        config: gives data_root, labels, limit, mask_folder and on_bad_image.
        split: name of a list in `ImageSets/Segmentation`.

    Returns:
        the split, checked; with on_bad_image "skip" every image has been decoded, and those that cannot be are left out.

    Raises:
        DataError: as `load_dataset`.
    """
    labels = project_path(config.labels) if config.labels else ""
    data = load_dataset(project_path(config.data_root), split, labels, config.limit, config.mask_folder)
    return without_unreadable_images(data) if config.on_bad_image == "skip" else data


def data_hash(data: SegmentationDataset) -> str:
    """Return a hash of what a stage sees of a data set: ids, image sizes in bytes, classes and image-level labels.

    Args:
        data: one split.

    Returns:
        64 hexadecimal digits.
    """
    identity = hashlib.sha256(json.dumps([data.split, data.classes, data.ids]).encode())
    identity.update(np.ascontiguousarray(data.labels).tobytes())
    identity.update(json.dumps([data.image_path(image_id).stat().st_size for image_id in data.ids]).encode())
    return identity.hexdigest()


def truth_hash(data: SegmentationDataset) -> str:
    """Return a hash of the true masks of a split, for a stage that trains on them.

    Args:
        data: one split.

    Returns:
        64 hexadecimal digits.

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
    """Return a hash of the saliency maps of a split, for a stage that uses them.

    Args:
        data: one split.
        folder: of `ID.png`.

    Returns:
        64 hexadecimal digits.

    Raises:
        FileNotFoundError: a map is missing (`check_saliency` lists them all).

    Explained in notebook 30, section "Pseudo-labels with saliency".
    """
    return sha256([folder / f"{image_id}.png" for image_id in data.ids], folder)


# ---- 10: classifier and maps

def build_classifier(config: Config, num_classes: int, weights: Path | str = "") -> cam.ClassActivationNet:
    """Build the classifier, from its own weights or from the backbone's.

    Args:
        config: gives backbone, backbone_weights, output_stride, frozen_batch_norm and frozen_stages.
        num_classes: foreground classes C.
        weights: a safetensors file of a whole classifier; empty: config.backbone_weights and a random last layer.

    Returns:
        the network, on the CPU.

    Raises:
        ValueError: the weights belong to another network.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 10, section "The network".
    """
    backbone = build_backbone(config.backbone, config.output_stride, "none" if weights else config.backbone_weights)
    net = cam.ClassActivationNet(backbone, num_classes, config.frozen_batch_norm, config.frozen_stages)
    if weights:
        load_weights(net, read_tensors(project_path(weights)), str(weights))
    return net


def train_classifier(net: cam.ClassActivationNet, data: SegmentationDataset, config: Config, folder: Path) -> int:
    """Train the classifier on image-level labels, in place.

    Args:
        net: on the device.
        data: the training split.
        config: gives cam_* and the fields of SGD.
        folder: gets the log and the state of the training (`training.train`).

    Returns:
        the number of images of the whole training.

    Raises:
        ValueError: as `training.train`.

    Explained in notebook 10, section "Training on image-level labels".
    """
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
    """Return class probabilities of all images of a split: float32 (N, C) in [0, 1].

    Args:
        net: on the device; it is put in evaluation mode.
        data: one split of N images.
        config: gives the backbone's name, which says how to normalise.

    Explained in notebook 10, section "Score of the classifier".
    """
    mean, std = normalization_of(config.backbone)
    net.eval()
    return np.concatenate([cam.classification_scores(net, [data.image(image_id)], mean, std)
                           for image_id in progress(data.ids, "classifier on " + data.split)])


def cam_localization(net: cam.ClassActivationNet, config: Config) -> Localize:
    """Return the function that makes a classifier's plain maps, for `make_maps`.

    Args:
        net: on the device; it is put in evaluation mode.
        config: gives cam_scales and the backbone's name.

    Explained in notebook 10, section "Several scales and a mirror".
    """
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

    Explained in notebook 10, section "All images".
    """
    row = {image_id: index for index, image_id in enumerate(data.ids)}
    done = {image_id for image_id in data.ids if (folder / f"{image_id}.npz").is_file()}
    # All images are grouped, not only the missing ones: the last bits of a map depend on how many images its batch holds.
    groups = batches_of_like_size(data.ids, lambda image_id: image_size(data.image_path(image_id)), config.device_batch_size)
    for group in progress([group for group in groups if not done.issuperset(group)], "localization maps"):
        images = [data.image(image_id) for image_id in group]
        labels = data.labels[[row[image_id] for image_id in group]]
        for image_id, image, (classes, scores) in zip(group, images, localize(group, images, labels), strict=True):
            write_maps(folder / f"{image_id}.npz", classes, scores, image.size[::-1])
    return len(data) - len(done)


# ---- 70: seeds

def full_size_maps(maps_folder: Path, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Read an image's maps at full resolution.

    Args:
        maps_folder: of `ID.npz`.
        image_id: of the image.

    Returns:
        classes int64 (K,), 0-based; scores float32 (K, H, W) in [0, 1].

    Raises:
        DataError: the file is missing or broken.

    Explained in notebook 70, section "Thresholds".
    """
    classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
    return classes, upsample_scores(scores, size)


def sweep_maps(data: SegmentationDataset, maps_folder: Path, thresholds: Sequence[float],
               kind: type[ThresholdSweep] = ThresholdSweep) -> ThresholdSweep:
    """Compare the maps of a split with the true masks at all thresholds in one pass.

    Args:
        data: with true masks.
        maps_folder: of `ID.npz`.
        thresholds: (T,) strictly increasing, in [0, 1].
        kind: `ImageThresholds` also keeps each image's own curve.

    Returns:
        the filled sweep.

    Raises:
        DataError: a map or a true mask is missing or broken.

    Explained in notebook 70, section "All thresholds in one pass".
    """
    sweep = kind(data.num_classes + 1, thresholds)
    for image_id in progress(data.ids, "threshold sweep"):
        classes, scores = full_size_maps(maps_folder, image_id)
        sweep.add(data.mask(image_id), scores, classes)
    return sweep


def score_maps(data: SegmentationDataset, maps_folder: Path) -> dict:
    """Return the row of `metrics.json` for maps at their best threshold, which the true masks choose, with the whole curve.

    Args:
        data: with true masks.
        maps_folder: of `ID.npz`.

    Returns:
        what, split, images, crf, pixel_labels_chose; `miou` in percent; `threshold`; `thresholds` (0.01 to 0.90) and, in
        percent, `curve`.

    Explained in notebook 10, section "Numbers".
    """
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
    """Write seed masks after the CRF (`seed_masks/ID.png`) and IRN's labels (`irn_labels/ID.png`) of every image without them.

    Args:
        data: the images.
        maps_folder: of `ID.npz`.
        config: gives seed_* and num_workers.
        folder: of the stage.

    Returns:
        the number of images made now.

    Explained in notebook 70, section "All images".
    """
    work = partial(_make_seeds_of_image, data=data, maps_folder=maps_folder, config=config, folder=folder)
    return for_each_image(data.ids, lambda image_id: (folder / "seed_masks" / f"{image_id}.png",
                                                      folder / "irn_labels" / f"{image_id}.png"), work, "seeds",
                          config.num_workers)


def _make_seeds_of_image(image_id: str, data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> None:
    image = np.array(data.image(image_id))
    classes, scores = full_size_maps(maps_folder, image_id)
    write_mask(folder / "seed_masks" / f"{image_id}.png",
               seed_mask(image, scores, classes, config.seed_threshold, iterations=config.seed_crf_iterations))
    write_mask(folder / "irn_labels" / f"{image_id}.png",
               irn_labels(image, scores, classes, config.seed_foreground_threshold, config.seed_background_threshold,
                          config.seed_crf_iterations))


# ---- scores

def score_masks(data: SegmentationDataset, mask_of: Callable[[str], np.ndarray] | Path) -> Evaluation:
    """Compare masks with the true ones over a split.

    Args:
        data: with true masks.
        mask_of: a folder of `ID.png`, or a function from image id to a uint8 (H, W) map.

    Returns:
        the filled `Evaluation`.

    Raises:
        DataError: a mask is missing or broken.

    Explained in notebook 70, section "Numbers".
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

    Returns:
        what, split, images, crf, pixel_labels_chose; `miou`, mean `precision` and mean `recall` in percent; `class_iou`, one
        value in percent a class, the background first, None where undefined; `unknown_share` in [0, 1].

    Raises:
        ValueError: the true masks hold no labelled pixel.

    Explained in notebook 70, section "Numbers".
    """
    result = evaluation.scores()
    if np.isnan(result.miou):
        raise ValueError(f"{data.root / data.mask_folder}: the true masks of split {data.split!r} hold no labelled pixel, so "
                         "that there is nothing to score; check mask_folder")
    return {"what": what, "split": data.split, "images": len(data), "crf": crf, "miou": round(100 * result.miou, 2),
            "precision": round(100 * float(np.nanmean(result.precision)), 2),
            "recall": round(100 * float(np.nanmean(result.recall)), 2),
            "class_iou": [None if np.isnan(value) else round(100 * float(value), 2) for value in result.iou],
            "unknown_share": round(evaluation.unknown_share, 4), "pixel_labels_chose": config.pixel_labels_chose}
