"""Notebook 80: IRN and the random walk along its boundaries."""

from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from wsss_lib import training
from wsss_lib.config import Config
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import AffinitySamples, steps_per_epoch
from wsss_lib.formats import read_maps, write_mask
from wsss_lib.inference import for_each_image
from wsss_lib.launch import in_processes
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.nets.irn import IRN
from wsss_lib.nets.weights import load_whole, start_backbone
from wsss_lib.progress import progress
from wsss_lib.refine.affinity import affinity_loss
from wsss_lib.refine.random_walk import propagate, pseudo_mask


def build_irn(config: Config, classifier_weights: Path, weights: Path | str = "") -> IRN:
    """Build IRN on the ImageNet backbone (published) or on the classifier's, or from its own weights.

    Args:
        config: gives irn_init, irn_displacement_width, backbone, backbone_weights and output_stride.
        classifier_weights: safetensors file of the classifier; read only with irn_init "classifier" and without `weights`.
        weights: a safetensors file of a whole IRN; empty: only the backbone has weights.

    Returns:
        the network, on the CPU.

    Raises:
        ValueError: weights that belong to another network.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 80, section "The network".
    """
    start = config.backbone_weights if config.irn_init == "backbone" else "classifier"
    build = partial(build_backbone, config.backbone, config.output_stride)
    backbone = start_backbone(build, start, classifier_weights, weights)
    net = IRN(backbone, config.irn_displacement_width)
    return load_whole(net, weights)


@in_processes
def train_irn(net: IRN, data: SegmentationDataset, label_folder: Path, config: Config, folder: Path) -> int:
    """Train IRN's two heads on the confident labels, in place.

    Args:
        net: on the device.
        data: the training split.
        label_folder: of the confident labels `ID.png`.
        config: gives irn_* and the fields of SGD.
        folder: gets the log and the state of the training (`training.train`).

    Returns:
        the number of images of the whole training.

    Raises:
        ValueError: as `training.train`.
        DataError: a label is missing or broken.

    Explained in notebook 80, section "The network".
    """
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
    """Set IRN's mean shift to the average displacement over a split (top-left crops, as published).

    Args:
        net: trained, on the device; it is put in evaluation mode.
        data: the training split.
        config: gives irn_crop and the backbone's name.

    Explained in notebook 80, section "The network".
    """
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
    """Return IRN's boundary map and displacement field of one photograph at stride 4.

    Args:
        net: on the device, in evaluation mode.
        image: RGB photograph, (H, W).
        config: gives walk_pad_to and the backbone's name.

    Returns:
        edge float32 (h, w) in [0, 1]; displacement float32 (2, h, w), (dy, dx) in cells; on the device.

    Raises:
        ValueError: the network is in training mode.

    Explained in notebook 80, section "The network".
    """
    tensor = transforms.to_tensor(transforms.normalize(image, *normalization_of(config.backbone)))
    return net.predict(tensor.to(net.fc_edge6.weight.device), pad_to=config.walk_pad_to or None)


def make_pseudo_masks(net: IRN, data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> int:
    """Write `ID.png`, the maps after the random walk and a threshold, of every image that has none yet.

    Args:
        net: trained, on the device, in evaluation mode.
        data: the images.
        maps_folder: of `ID.npz`.
        config: gives walk_* and the backbone's name.
        folder: of the stage.

    Returns:
        the number of images made now.

    Raises:
        DataError: a map is missing or broken.

    Explained in notebook 80, section "All images".
    """
    device = net.fc_edge6.weight.device

    def work(image_id: str) -> None:
        classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
        edge, _ = boundary_map(net, data.image(image_id), config)
        maps = torch.from_numpy(scores).to(device)
        walk = propagate(maps ** config.walk_power, edge, config.walk_radius, config.walk_beta, config.walk_log2_steps)
        write_mask(folder / f"{image_id}.png", pseudo_mask(walk, classes, size, config.walk_threshold).cpu().numpy())

    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.png", work, "random walk", config)
