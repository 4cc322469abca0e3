"""Notebook 10: the classifier, and the localization maps of every method."""

from pathlib import Path

import numpy as np
import torch

from wsss_lib import training
from wsss_lib.config import Config, fields_of
from wsss_lib.data.dataset import SegmentationDataset, image_size
from wsss_lib.data.samples import ClassificationSamples, steps_per_epoch
from wsss_lib.formats import write_maps
from wsss_lib.inference import Localize, batches_of_like_size, end_of_shard, shard_of
from wsss_lib.launch import in_processes
from wsss_lib.methods import cam
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.nets.weights import load_whole
from wsss_lib.progress import progress

CLASSIFIER_FIELDS = fields_of("cam_", without=("cam_scales",))  # what the stage of the classifier depends on


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
    return load_whole(net, weights)


@in_processes
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
    """Write `ID.npz` with the localization maps of every image that has none yet, or of those of this run's shard.

    Args:
        localize: a method; (ids, photographs of one size, labels uint8 (N, C)) to classes (K,) and scores (K, h, w) at stride
            4 of each image. What it draws at random must depend on the id alone, so that a resumed run makes the same maps.
        data: the images.
        config: device_batch_size is the number of images handed over at once; shard and shards.
        folder: of the stage.

    Returns:
        the number of images made now.

    Raises:
        ShardDone: as `inference.end_of_shard`.

    Explained in notebook 10, section "All images".
    """
    row = {image_id: index for index, image_id in enumerate(data.ids)}
    done = {image_id for image_id in data.ids if (folder / f"{image_id}.npz").is_file()}
    # All images are grouped, not only the missing ones: the last bits of a map depend on how many images its batch holds.
    batches = batches_of_like_size(data.ids, lambda image_id: image_size(data.image_path(image_id)), config.device_batch_size)
    groups = [group for group in shard_of(batches, config) if not done.issuperset(group)]
    for group in progress(groups, "localization maps"):
        images = [data.image(image_id) for image_id in group]
        labels = data.labels[[row[image_id] for image_id in group]]
        for image_id, image, (classes, scores) in zip(group, images, localize(group, images, labels), strict=True):
            write_maps(folder / f"{image_id}.npz", classes, scores, image.size[::-1])
    made = sum(image_id not in done for group in groups for image_id in group)
    end_of_shard(config, folder.name, made < len(data) - len(done))
    return made
