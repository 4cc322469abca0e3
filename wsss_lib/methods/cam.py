"""Class activation maps (Zhou et al., CVPR 2016) with the classifier of IRN (Ahn, Cho, Kwak, CVPR 2019).

The classifier is a backbone, a 1x1 convolution without bias and a global average. Because both are linear, their order can
be exchanged, and the convolution's output before averaging shows where the evidence for a class lies: the CAM.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import model_validator
from torch import Tensor, nn

from wsss_lib.core import training
from wsss_lib.core.counting import Cost, Images, crops, inference_cost, training_cost
from wsss_lib.core.distributed import in_processes
from wsss_lib.core.inference import forward_in_parts
from wsss_lib.core.parallel import Localize, make_maps
from wsss_lib.core.progress import progress
from wsss_lib.core.scoring import score_maps
from wsss_lib.core.stage import Job, Stage, network_made
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import ClassificationSamples, steps_per_epoch
from wsss_lib.nets.backbone import Backbone, build_backbone, freeze_batch_norm, normalization_of
from wsss_lib.nets.folding import folded
from wsss_lib.nets.weights import load_whole
from wsss_lib.ops.merging import Views, join_flips, merge_views, stride4_size
from wsss_lib.ops.metrics import average_precision
from wsss_lib.parameters import (
    BACKBONE,
    TRAINING,
    Count,
    Fraction,
    FrozenStages,
    Numbers,
    ParameterGroup,
    Positive,
    Range,
    Rate,
    Settings,
    Text,
    require_order,
)

NOTEBOOK = "10_cam"
IRN_GRID = 16  # the stride of IRN's network; the programs of IRN and RIB lay this grid over the image
MAP_FORM = ("map_precision", "map_size")  # how maps are computed and what is kept of them
CROPS = ("cam_batch_size", "cam_long_side_min", "cam_long_side_max", "cam_crop")  # batches and crops of the classifier's images
# The values that a study tries, including the published ones where the network allows them.
TUNED = {
    "cam_learning_rate": Range(3e-4, 0.1, log=True),
    "cam_head_learning_rate": Range(3e-3, 1.0, log=True),
    "cam_weight_decay": Range(1e-5, 1e-2, log=True),
}


class Parameters(ParameterGroup):
    """10: the classifier and its class activation maps."""

    cam_weights: Text = ""  # a classifier to use instead of training one
    # Images that the classifier learns from, where all later stages use the first `limit`; 0: these.
    cam_limit: Count = 0
    cam_epochs: Positive = 8
    cam_batch_size: Positive = 16
    cam_learning_rate: Rate = 0.03  # published: 0.1, without momentum
    cam_head_learning_rate: Rate = 0.3
    cam_momentum: Fraction = 0.9  # published: 1e-4, as the official program hands SGD the weight decay where it expects this
    cam_weight_decay: Rate = 1e-4
    cam_frozen_batch_norm: bool = False  # published: true, the statistics of ImageNet stay
    cam_frozen_stages: FrozenStages = 0  # published: 3, the stem, layer1 and layer2
    cam_long_side_min: Positive = 80
    cam_long_side_max: Positive = 112
    cam_crop: Positive = 96
    cam_scales: Numbers = (1.0, 0.5, 1.5, 2.0)
    # float16 moves 0.1 % of the cells across a threshold, bfloat16 0.7 %; on a CPU that computes in it, bfloat16 is fast
    map_precision: Literal["float32", "float16", "bfloat16"] = "float32"
    map_size: Literal["stride4", "image"] = "stride4"  # where scales are merged for thresholds; published: the image's size

    @model_validator(mode="after")
    def _cam_in_order(self) -> "Parameters":
        require_order(self, "cam_long_side_min", "cam_long_side_max")
        return self


class ClassActivationNet(nn.Module):
    """A multi-label classifier whose last layer is a convolution.

    Args:
        backbone: from `wsss_lib.nets.backbone`.
        num_classes: foreground classes C.
        frozen_batch_norm: train with frozen batch normalization (needs a pre-trained backbone).
        frozen_stages: how many of the backbone's five stages are not trained (published: 3).

    Explained in notebook 10, section "The network".
    """

    def __init__(self, backbone: Backbone, num_classes: int, frozen_batch_norm: bool = True, frozen_stages: int = 3):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[-1], num_classes, 1, bias=False)  # W
        if frozen_batch_norm:
            freeze_batch_norm(self.backbone)
        for module in backbone.shallow_modules(frozen_stages):
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits float32 (N, C) of normalized images float32 (N, 3, H, W)."""
        features = self.backbone(images)  # f: (N, D, h, w), at the backbone's stride
        return self.classifier(F.adaptive_avg_pool2d(features, 1)).flatten(1)

    def activation_maps(self, images: Tensor) -> Tensor:
        """Return the evidence for every class, ReLU(W f), not normalized: (N, C, h, w) at the backbone's stride.

        For AffinityNet's VGG-16 (`map_power` of the backbone) it is the square root, as published.

        Args:
            images: float32 (N, 3, H, W), normalized.

        Source: Zhou et al., CVPR 2016, M_c(x, y) = sum_k w_k^c f_k(x, y), cut off below 0.
        Explained in notebook 10, section "One map in ten lines".
        """
        return F.relu(self.classifier(self.backbone(images))) ** self.backbone.map_power

    def parameter_groups(self, learning_rate: float, head_learning_rate: float, weight_decay: float) -> list[dict]:
        """Return SGD's two groups: the trained part of the backbone, and the classifier.

        Args:
            head_learning_rate: of the classifier (published: ten times the backbone's).
        """
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        return [
            {"params": trained, "lr": learning_rate, "weight_decay": weight_decay},
            {"params": list(self.classifier.parameters()), "lr": head_learning_rate, "weight_decay": weight_decay},
        ]


def classification_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the multi-label soft-margin loss, a mean over images and classes: {"loss": scalar}.

    Args:
        model: images to logits (N, C).
        batch: images float32 (N, 3, H, W), normalized; labels float32 (N, C), 0 or 1.

    Explained in notebook 10, section "Training on image-level labels".

    >>> round(classification_loss(nn.Identity(), (torch.zeros(1, 2), torch.ones(1, 2)))["loss"].item(), 4)  # ln 2
    0.6931
    """
    images, labels = batch
    return {"loss": F.multilabel_soft_margin_loss(model(images).float(), labels)}


class MakesMaps(Protocol):
    """What `localization_maps` needs from a network: where its weights lie, and its maps."""

    classifier: nn.Conv2d

    def activation_maps(self, images: Tensor) -> Tensor:
        """Return maps (N, C, h, w), >= 0, of normalized images (N, 3, H, W); see `ClassActivationNet.activation_maps`."""


@torch.inference_mode()
def localization_maps(
    net: MakesMaps,
    images: Sequence[Image.Image],
    labels: np.ndarray,
    scales: Sequence[float],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    join: Callable[[Tensor, Tensor], Tensor] = torch.add,
    grid_stride: int = 0,
) -> list[tuple]:
    """Return the stride-4 maps of a batch of equally sized images, and what the full-size maps are made of.

    Args:
        images: N RGB images of one size (H, W).
        labels: uint8 (N, C), the image-level labels; maps are made for the present classes only.
        scales: factors on the image's size.
        join: how image and flip become one map, as in `join_flips`.
        grid_stride: of the full-size maps, as in `merge_views`; 0: they are not kept.

    Returns:
        for each image: classes int64 (K,), 0-based; scores float32 (K, h, w) in [0, 1]; with a `grid_stride` its `Views`.

    Explained in notebook 10, section "Several scales and a horizontal flip".
    """
    device = net.classifier.weight.device
    maps = []
    for scale in scales:
        arrays = [transforms.normalize(transforms.resize_image(image, scale), mean, std) for image in images]
        batch = torch.stack([transforms.to_tensor(array) for array in arrays]).to(device)  # (N, 3, H_s, W_s)
        maps.append(forward_in_parts(net.activation_maps, torch.cat([batch, batch.flip(-1)])).float())  # (2N, C, h_s, w_s)
    size = stride4_size(images[0].size[::-1])
    result = []
    for index in range(len(images)):
        classes = torch.from_numpy(np.flatnonzero(labels[index]))
        pairs = [scale_maps[[index, index + len(images)]] for scale_maps in maps]  # (2, C, h_s, w_s)
        views = join_flips(pairs, classes, join)
        full = [Views(views, grid_stride)] if grid_stride else []
        result.append((classes.numpy(), merge_views(views, size).cpu().numpy(), *full))
    return result


def grid_stride_of(config: Settings, published: int) -> int:
    """Return the grid of a method's full-size maps, or 0 where only the stride-4 maps are kept."""
    return published if config.map_size == "image" else 0


@torch.inference_mode()
def classification_scores(
    net: ClassActivationNet, images: Sequence[Image.Image], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> np.ndarray:
    """Return the class probabilities of images at scale 1: float32 (N, C) in [0, 1].

    Args:
        images: N RGB images of one size.

    Explained in notebook 10, section "Score of the classifier".
    """
    device = net.classifier.weight.device
    batch = torch.stack([transforms.to_tensor(transforms.normalize(image, mean, std)) for image in images]).to(device)
    return torch.sigmoid(net(batch)).cpu().numpy()


def build_classifier(config: Settings, num_classes: int, weights: Path | str = "") -> ClassActivationNet:
    """Build the classifier, from its own weights or from the backbone's.

    Args:
        num_classes: foreground classes C.
        weights: a safetensors file of a whole classifier; empty: config.backbone_weights and a random last layer.

    Raises:
        ValueError: the weights belong to another network.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 10, section "The network".
    """
    backbone = build_backbone(config.backbone, config.output_stride, "none" if weights else config.backbone_weights)
    net = ClassActivationNet(backbone, num_classes, config.cam_frozen_batch_norm, config.cam_frozen_stages)
    return load_whole(net, weights)


@in_processes
def train_classifier(net: ClassActivationNet, data: SegmentationDataset, config: Settings, folder: Path) -> int:
    """Train the classifier on image-level labels, in place.

    Raises:
        ValueError: as `training.train`.

    Explained in notebook 10, section "Training on image-level labels".
    """
    mean, std = normalization_of(config.backbone)
    samples = ClassificationSamples(
        data, config.seed, (config.cam_long_side_min, config.cam_long_side_max), config.cam_crop, mean, std
    )
    steps = config.cam_epochs * steps_per_epoch(len(data), config.cam_batch_size)
    groups = net.parameter_groups(config.cam_learning_rate, config.cam_head_learning_rate, config.cam_weight_decay)
    training.train(
        net,
        classification_loss,
        samples,
        groups,
        config.cam_momentum,
        steps,
        config.cam_batch_size,
        config,
        folder,
        name="classifier",
    )
    return steps * config.cam_batch_size


def score_classifier(net: ClassActivationNet, data: SegmentationDataset, config: Settings) -> np.ndarray:
    """Return class probabilities of all images of a split: float32 (N, C) in [0, 1].

    Explained in notebook 10, section "Score of the classifier".
    """
    mean, std = normalization_of(config.backbone)
    net.eval()
    return np.concatenate(
        [
            classification_scores(net, [data.image(image_id)], mean, std)
            for image_id in progress(data.ids, "classifier on " + data.split)
        ]
    )


def cam_localization(net: ClassActivationNet, config: Settings) -> Localize:
    """Return the function that makes a classifier's plain maps, for `make_maps`.

    Explained in notebook 10, section "Several scales and a horizontal flip".
    """
    mean, std = normalization_of(config.backbone)
    net, grid = folded(net), grid_stride_of(config, IRN_GRID)
    return in_precision(
        lambda ids, images, labels: localization_maps(net, images, labels, config.cam_scales, mean, std, grid_stride=grid),
        net.classifier.weight.device,
        config,
    )


def in_precision(localize: Localize, device: torch.device, config: Settings) -> Localize:
    """Run a method's forward passes in config.map_precision; in float16 or bfloat16 the maps have that type's rounding."""
    precision = getattr(torch, config.map_precision)

    def localize_in_precision(ids: Sequence[str], images: Sequence[Image.Image], labels: np.ndarray) -> list[tuple]:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return localize(ids, images, labels)

    return localize_in_precision


# ---- stages


def _make_classifier(job: Job) -> int:
    given, classes = job.config.cam_weights, job.data.num_classes
    return network_made(
        job,
        lambda: build_classifier(job.config, classes, given),
        lambda net: train_classifier(net, job.data, job.config, job.folder),
        given,
    )


def _load_classifier(job: Job) -> nn.Module:
    return build_classifier(job.config, job.data.num_classes, job.weights).to(job.device).eval()


def _score_classifier(job: Job) -> list[dict]:
    """Mean average precision over the classes of the validation split."""
    data = job.score_data
    precisions = average_precision(score_classifier(job.net, data, job.config), data.labels)
    return [
        {
            "what": "classifier mAP",
            "split": data.split,
            "images": len(data),
            "map": None if np.isnan(precisions).all() else round(100 * float(np.nanmean(precisions)), 2),
            "class_ap": [None if np.isnan(value) else round(100 * float(value), 1) for value in precisions],
        }
    ]


def _make_maps(job: Job) -> int:
    return make_maps(cam_localization(job.inputs["classifier"].net, job.config), job.data, job.config, job.folder)


CLASSIFIER = Stage(
    "classifier",
    NOTEBOOK,
    _make_classifier,
    load=_load_classifier,
    score=_score_classifier,
    needs_masks=False,
    method="cam",
    limit="cam_limit",
    score_split="val_split",
    reads=(
        *BACKBONE,
        *CROPS,
        "cam_weights",
        "cam_epochs",
        "cam_learning_rate",
        "cam_head_learning_rate",
        "cam_momentum",
        "cam_weight_decay",
        "cam_frozen_batch_norm",
        "cam_frozen_stages",
        *TRAINING,
    ),
)
MAPS = Stage(
    "maps",
    NOTEBOOK,
    _make_maps,
    inputs=lambda config: {"classifier": CLASSIFIER},
    score=score_maps,
    method="cam",
    reads=("backbone", "cam_scales", *MAP_FORM),
    shows={"CAM at its best threshold": None},
)
STAGES = (CLASSIFIER, MAPS)


# ---- costs


def costs(config: Settings, data: Images) -> list[Cost]:
    """Count the classifier and its maps."""
    net, batch = build_classifier(config, data.classes), crops(config.cam_crop)
    classifier = training_cost(
        "classifier",
        net,
        lambda n: classification_loss(net, (batch(n), torch.empty(n, data.classes)))["loss"],
        data.seen(config.cam_epochs, config.cam_batch_size),
        config.cam_batch_size,
        config,
    )
    return [classifier, maps_cost(net, config, data)]


def maps_cost(net: Any, config: Settings, data: Images) -> Cost:
    """Count the maps of `localization_maps`.

    Args:
        net: a module that `MakesMaps`, on the meta device.
    """
    return inference_cost(
        "maps",
        net.eval(),
        net.activation_maps,
        data.train,
        data.size,
        config.cam_scales,
        at_once=config.device_batch_size,
        disk_mib=data.maps_mib,
    )
