"""What the stages of notebook 40 do with AMN: refined seeds, training, maps of all images."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from wsss_lib import training
from wsss_lib.config import Config, fields_of
from wsss_lib.data import transforms
from wsss_lib.data.dataset import DataError, SegmentationDataset, read_mask
from wsss_lib.data.samples import AffinitySamples, steps_per_epoch
from wsss_lib.formats import read_maps, write_mask
from wsss_lib.inference import Localize, for_each_image
from wsss_lib.launch import in_processes
from wsss_lib.methods.amn import ActivationManipulationNet, balanced_loss, localization_maps, seed_on_grid
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.nets.weights import load_whole, start_backbone
from wsss_lib.refine.seeds import irn_labels, upsample_scores

# What the stage of the network depends on, beside the seeds that it learns.
NETWORK_FIELDS = fields_of("amn_", "cam_batch_size", "irn_scale_", "irn_crop",
                           without=("amn_dropout_in_maps", "amn_foreground_", "amn_background_"))


class ConditionedSamples(AffinitySamples):
    """Images, refined seeds and image-level labels: joint random scale, mirror and crop.

    Yields image float32 (3, crop, crop), 0 outside it; label int64 (h, h) on the grid of the logits, 255 outside the image;
    the WHOLE image's label float32 (K,), even where the crop has lost a class.

    Args:
        stride: of the logits.
        arguments: of `AffinitySamples`.

    Explained in notebook 40, section "Refined seeds".
    """

    def __init__(self, stride: int, *arguments):
        super().__init__(*arguments)
        self.grid = -(-self.crop // stride)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        array, label = self.augmented(key)
        label = seed_on_grid(np.ascontiguousarray(label), (self.grid, self.grid))
        image_label = torch.from_numpy(self.data.labels[key[1]].astype(np.float32))
        return transforms.to_tensor(array), transforms.to_tensor(label), image_label


def make_refined_seeds(data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> int:
    """Write `ID.png`, the refined seed of every image that has none yet: CAM, two thresholds, dense CRF.

    Args:
        data: the images.
        maps_folder: of CAM's `ID.npz`.
        config: amn_foreground_threshold, amn_background_threshold, seed_crf_iterations, num_workers.
        folder: gets the seeds, uint8 with 255 for unknown.

    Returns:
        the number of images made now.

    Raises:
        DataError: a map or an image is missing or broken.

    Source: AMN's program, cam_to_ir_label.
    Explained in notebook 40, section "Refined seeds".
    """
    work = partial(_refined_seed, data=data, maps_folder=maps_folder, config=config, folder=folder)
    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.png", work, "refined seeds", config,
                          config.num_workers)


def _refined_seed(image_id: str, data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> None:
    classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
    write_mask(folder / f"{image_id}.png",
               irn_labels(np.array(data.image(image_id)), upsample_scores(scores, size), classes,
                          config.amn_foreground_threshold, config.amn_background_threshold, config.seed_crf_iterations))


def _check_seeds(data: SegmentationDataset, folder: Path) -> None:
    missing = [path for image_id in data.ids if not (path := folder / f"{image_id}.png").is_file()]
    if missing:
        raise DataError(f"{missing[0]}: the refined seed is missing, and {len(missing) - 1} others of split {data.split!r}; "
                        "run make_refined_seeds on this split first")


def build_amn(config: Config, num_classes: int, classifier_weights: Path | str,
              weights: Path | str = "") -> ActivationManipulationNet:
    """Build AMN on the ImageNet backbone (published) or on the classifier's, or from its own weights.

    Args:
        config: backbone, output_stride, backbone_weights, amn_init, amn_atrous_rates.
        num_classes: foreground classes K.
        classifier_weights: CAM's classifier, read when amn_init says so.
        weights: a safetensors file of a whole network of this kind; empty: none.

    Returns:
        the network, not yet in evaluation mode.

    Raises:
        ValueError: weights of another network.
        FileNotFoundError: there is no such weights file.
    """
    start = config.backbone_weights if config.amn_init == "backbone" else "classifier"
    build = partial(build_backbone, config.backbone, config.output_stride)
    backbone = start_backbone(build, start, classifier_weights, weights)
    net = ActivationManipulationNet(backbone, num_classes, config.amn_atrous_rates)
    return load_whole(net, weights)


@in_processes
def train_amn(net: ActivationManipulationNet, data: SegmentationDataset, seed_folder: Path, config: Config, folder: Path,
              loss_of: Callable[[nn.Module, tuple[Tensor, ...]], dict[str, Tensor]] | None = None) -> int:
    """Train AMN on refined seeds with Adam at constant rates.

    Where a batch does not fit the device (`device_batch_size`), the loss's two means run over each of its parts.

    Args:
        net: from `build_amn`.
        data: the training images.
        seed_folder: of `ID.png`, the refined seeds.
        config: amn_*, weight_decay, and what AMN shares: cam_batch_size, irn_scale_min, irn_scale_max, irn_crop.
        folder: of the stage.
        loss_of: (network, batch of `ConditionedSamples`) to named losses; None: `balanced_loss` with `amn_smoothing`.

    Returns:
        the number of images seen.

    Raises:
        DataError: a refined seed is missing.
        ValueError: as `training.train`.

    Source: AMN's program, train_amn.
    Explained in notebook 40, section "Training".
    """
    _check_seeds(data, seed_folder)
    mean, std = normalization_of(config.backbone)
    samples = ConditionedSamples(net.backbone.strides[-1], data, seed_folder, config.seed,
                                 (config.irn_scale_min, config.irn_scale_max), config.irn_crop, mean, std)

    def balanced(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels, image_labels = batch
        return balanced_loss(model(images, image_labels), labels, config.amn_smoothing)

    steps = config.amn_epochs * steps_per_epoch(len(data), config.cam_batch_size)
    groups = net.parameter_groups(config.amn_learning_rate, config.amn_head_learning_rate, config.weight_decay)
    training.train(net, loss_of or balanced, samples, groups, None, steps, config.cam_batch_size, config, folder,
                   schedule=lambda step, total: 1.0, name="AMN")
    return steps * config.cam_batch_size


def amn_localization(net: ActivationManipulationNet, data: SegmentationDataset, seed_folder: Path | None,
                     config: Config) -> Localize:
    """Return the function that makes AMN's maps, for `stages.make_maps`.

    Args:
        net: trained; put into evaluation mode here.
        data: the images whose maps will be made.
        seed_folder: of `ID.png`, their refined seeds; None: the maps are stretched everywhere (not the published way).
        config: cam_scales, amn_dropout_in_maps, seed.

    Raises:
        DataError: a refined seed is missing.
    """
    if seed_folder:
        _check_seeds(data, seed_folder)
    mean, std = normalization_of(config.backbone)
    net.eval().to(memory_format=torch.channels_last)

    def localize(ids: Sequence[str], images: Sequence[Image.Image], labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        seeds = [seed_folder and read_mask(seed_folder / f"{image_id}.png", data.num_classes, image.size)
                 for image_id, image in zip(ids, images, strict=True)]
        keys = [f"{config.seed}/{image_id}" for image_id in ids] if config.amn_dropout_in_maps else ()
        return localization_maps(net, images, labels, seeds, config.cam_scales, mean, std, keys)

    return localize
