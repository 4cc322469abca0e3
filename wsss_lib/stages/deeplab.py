"""Notebook 90: DeepLab."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wsss_lib import training
from wsss_lib.config import Config, fields_of
from wsss_lib.data import transforms
from wsss_lib.data.dataset import IGNORE, SegmentationDataset
from wsss_lib.data.samples import SegmentationSamples, V3PlusSamples
from wsss_lib.formats import write_mask
from wsss_lib.inference import for_each_image
from wsss_lib.launch import in_processes
from wsss_lib.metrics import Evaluation
from wsss_lib.nets import deeplab_v2, deeplab_v3plus
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.nets.deeplab_v2 import (
    DeepLabV2,
    balanced_cross_entropy,
    cross_entropy,
    multi_scale_logits,
    multi_scale_loss,
    self_label_loss,
)
from wsss_lib.nets.deeplab_v3plus import DeepLabV3Plus, build_dilated_backbone
from wsss_lib.nets.weights import load_whole, start_backbone
from wsss_lib.progress import progress
from wsss_lib.refine.crf import crf_segmentation

DEEPLAB_FIELDS = fields_of("deeplab_", without=("deeplab_centre_crop",))  # what the stage of the training depends on


def deeplab_name(config: Config) -> str:
    """Return "DeepLab-v2" or "DeepLab-v3+".

    Args:
        config: gives deeplab_version.

    Explained in notebook 90, section "The network".
    """
    return {"v2": "DeepLab-v2", "v3plus": "DeepLab-v3+"}[config.deeplab_version]


def build_deeplab(config: Config, num_classes: int, classifier_weights: Path, weights: Path | str = "") -> nn.Module:
    """Build DeepLab-v2 or -v3+ for the foreground classes and background.

    Args:
        config: gives deeplab_version, -backbone, -init, -output_stride, -atrous_rates and, for v3+, -decoder_width.
        num_classes: foreground classes C.
        classifier_weights: safetensors file of the classifier; read only with deeplab_init "classifier" and without `weights`.
        weights: a safetensors file of a whole DeepLab; empty: the backbone starts as deeplab_init says.

    Returns:
        the network, on the CPU; logits of C + 1 classes.

    Raises:
        ValueError: weights that belong to another network.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 90, section "The network".
    """
    build = build_backbone if config.deeplab_version == "v2" else build_dilated_backbone
    backbone = start_backbone(partial(build, config.deeplab_backbone, config.deeplab_output_stride), config.deeplab_init,
                              classifier_weights, weights)
    if config.deeplab_version == "v2":
        net = DeepLabV2(backbone, num_classes + 1, config.deeplab_atrous_rates)
    else:
        net = DeepLabV3Plus(backbone, num_classes + 1, config.deeplab_atrous_rates, config.deeplab_decoder_width)
    return load_whole(net, weights)


@in_processes
def train_deeplab(net: nn.Module, data: SegmentationDataset, mask_folder: Path, config: Config, folder: Path) -> int:
    """Train DeepLab on (pseudo-)masks, in place.

    Args:
        net: of `build_deeplab`, on the device.
        data: the training split.
        mask_folder: of the masks `ID.png` to learn from.
        config: gives deeplab_*.
        folder: gets the log and the state of the training (`training.train`).

    Returns:
        the number of images of the whole training.

    Raises:
        ValueError: version 3+ with one image at once on the device; as `training.train`.
        DataError: a mask is missing or broken.

    Explained in notebook 90, section "Training".
    """
    v2 = config.deeplab_version == "v2"
    if not v2 and min(config.deeplab_batch_size, config.device_batch_size) < 2:
        raise ValueError("DeepLab-v3+ trains batch normalisation on one value an image: deeplab_batch_size and "
                         "device_batch_size must be at least 2")
    common = (data, mask_folder, config.seed, config.deeplab_scales, config.deeplab_crop,
              *normalization_of(config.deeplab_backbone))
    if v2:
        samples = SegmentationSamples(*common, image_labels=config.deeplab_loss == "self_label")
        groups_of, schedule = deeplab_v2.parameter_groups, partial(training.poly_factor, every=10)
    else:
        samples = V3PlusSamples(*common, label_fill=0 if config.deeplab_padding_is_background else IGNORE)
        groups_of, schedule = deeplab_v3plus.parameter_groups, training.poly_factor
    groups = groups_of(net, config.deeplab_learning_rate, config.deeplab_weight_decay)
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
    """Return DeepLab's class probabilities of one photograph, no image-level label used: float32 (K, H, W) in [0, 1].

    Args:
        net: on the device, in evaluation mode.
        image: RGB photograph, (H, W).
        config: gives deeplab_version, deeplab_test_scales (of v2) and deeplab_backbone.

    Explained in notebook 90, section "Training".
    """
    mean, std = normalization_of(config.deeplab_backbone)
    tensor = transforms.to_tensor(transforms.normalize(image, mean, std))[None].to(next(net.parameters()).device)
    logits = multi_scale_logits(net, tensor, config.deeplab_test_scales)[-1] if config.deeplab_version == "v2" else net(tensor)
    logits = F.interpolate(logits.float(), size=image.size[::-1], mode="bilinear", align_corners=False)
    return logits.softmax(1)[0].cpu().numpy()


def make_predictions(net: nn.Module, data: SegmentationDataset, config: Config, folder: Path) -> int:
    """Write `plain/ID.png` and, after the CRF, `crf/ID.png` of every image that has none yet.

    Args:
        net: trained, on the device; it is put in evaluation mode.
        data: the images; neither labels nor masks are read.
        config: as for `class_probabilities`.
        folder: of the stage.

    Returns:
        the number of images made now.

    Explained in notebook 90, section "All validation images".
    """
    net.eval()

    def work(image_id: str) -> None:
        image = data.image(image_id)
        probabilities = class_probabilities(net, image, config)
        write_mask(folder / "plain" / f"{image_id}.png", probabilities.argmax(0))
        write_mask(folder / "crf" / f"{image_id}.png", crf_segmentation(np.array(image), probabilities))

    return for_each_image(data.ids, lambda image_id: tuple(folder / name / f"{image_id}.png" for name in ("plain", "crf")),
                          work, "prediction", config)


def score_centre_crops(net: nn.Module, data: SegmentationDataset, config: Config) -> Evaluation:
    """Score a network on centre crops; not comparable with a score of full images.

    Args:
        net: trained, on the device; it is put in evaluation mode.
        data: with true masks.
        config: gives deeplab_centre_crop, the side of the crops in pixels, and as for `class_probabilities`.

    Returns:
        the filled `Evaluation`.

    Raises:
        DataError: a true mask is missing or broken.

    Explained in notebook 90, section "Numbers".
    """
    net.eval()
    evaluation = Evaluation(data.num_classes + 1)
    for image_id in progress(data.ids, "centre crops"):
        image, mask = transforms.centre_crop(data.image(image_id), data.mask(image_id), config.deeplab_centre_crop)
        evaluation.add(mask, class_probabilities(net, image, config).argmax(0))
    return evaluation
