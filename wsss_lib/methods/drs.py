"""Discriminative region suppression (DRS; Kim, Han, Kim, AAAI 2021): networks, losses, maps and pseudo-labels.

A module in place of every ReLU caps each channel at a fraction of its own maximum, so that the most discriminative region
loses its lead and the network must find evidence elsewhere, too. A second network, trained to reproduce the first one's maps,
completes them. External saliency maps mark the background.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from wsss_lib.core import training
from wsss_lib.core.counting import Cost, Images, crops, inference_cost, training_cost
from wsss_lib.core.distributed import in_processes
from wsss_lib.core.files import IGNORE, read_json, read_tensors, write_json, write_mask, write_tensors
from wsss_lib.core.inference import forward_in_parts
from wsss_lib.core.parallel import Localize, cpu_workers, for_each_image, make_maps
from wsss_lib.core.progress import progress
from wsss_lib.core.scoring import full_size_maps, metric_row, score_maps, score_masks
from wsss_lib.core.stage import Job, Stage, network_made
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset, mask_hash, open_data
from wsss_lib.data.saliency import read_saliency, saliency_hash
from wsss_lib.data.samples import MapSamples, SquareSamples, steps_per_epoch
from wsss_lib.errors import DataError
from wsss_lib.methods.cam import CLASSIFIER, MAP_FORM, in_precision
from wsss_lib.nets.backbone import OWN_STRIDE, Backbone, ResNet, build_backbone, freeze_batch_norm, normalization_of
from wsss_lib.nets.folding import folded
from wsss_lib.nets.vgg import VGG
from wsss_lib.nets.weights import load_weights, load_whole, start_backbone
from wsss_lib.ops.merging import full_size, stride4_size
from wsss_lib.ops.metrics import Evaluation
from wsss_lib.ops.seeds import argmax_with_background, irn_labels, seed_mask
from wsss_lib.parameters import TRAINING, Fraction, FrozenStages, ParameterGroup, Positive, Range, Rate, Settings, Text

NOTEBOOK = "30_drs"
SETS_FOR_OTHERS = ("refinement", "seed_*", "walk_*", "deeplab_*")  # parameters of other notebooks that its presets may set
REFINEMENT = "drs"  # the value of the parameter `refinement` that names this method's own masks
CONFLICT = 0.9  # more than two channels above this: the pixel is unknown
# The values that a study tries, including the published ones where the network allows them.
TUNED = {
    "drs_delta": Range(0.3, 0.95),
    "drs_learning_rate": Range(3e-4, 0.03, log=True),
    "drs_refine_learning_rate": Range(1e-5, 1e-3, log=True),
}


class Parameters(ParameterGroup):
    """30: classifier with suppression, refinement network, pseudo-labels."""

    drs_backbone: Literal["vgg_small", "vgg16", "resnet_small", "resnet50", "resnet101", "efficientnet_lite0"] = (
        "resnet_small"  # published: vgg16
    )
    # Start of both networks: "imagenet" (published), "classifier" (of notebook 10), "none", or a safetensors file.
    drs_backbone_weights: Text = "classifier"
    drs_weights: Text = ""  # a classifier to use instead of training one
    drs_refine_weights: Text = ""  # a refinement network to use instead of training one
    drs_delta: Fraction = 0.0  # 0: learnable (published), 1: no suppression
    # Of the backbone's five stages, from the deepest, whose ReLUs are replaced; published: 5.
    drs_suppressed_stages: Annotated[int, Field(ge=0, le=5)] = 1
    drs_epochs: Positive = 1  # published: 15
    drs_learning_rate: Rate = 3e-4  # of the backbone; the new layers have ten times this; published: 1e-3
    drs_momentum: Fraction = 0.9
    drs_weight_decay: Rate = 1e-4  # published: 5e-4
    drs_frozen_batch_norm: bool = False  # VGG-16 has none
    drs_frozen_stages: FrozenStages = 0
    drs_batch_size: Positive = 16  # published: 10
    drs_keep_last_batch: bool = False  # an epoch ends with a short batch; published: true
    drs_crop: Positive = 128  # of images resized to a square that is a fifth larger; published: 320
    drs_refine_epochs: Positive = 2  # published: 30
    drs_refine_learning_rate: Rate = 3e-4  # Adam; published: 1e-4
    drs_selection: Literal["last", "pixel_labels"] = "last"  # which epoch is kept; published: the best by pixel labels
    drs_background: Literal["saliency", "constant", "crf", "irn"] = "saliency"  # what says background in pseudo-labels
    drs_saliency_folder: Text = "saliency_map"  # below data_root
    drs_alpha: Fraction = 0.2  # smaller scores count as 0


class _Suppress(torch.autograd.Function):
    """y = min(ReLU(x), tau), tau = g max ReLU(x), with its gradient written out.

    Plain autograd gives the same numbers; this keeps only y, which the next layer keeps anyway, and takes a fifth of the time.
    Explained in notebook 30, section "Where the gradient goes".
    """

    @staticmethod
    def forward(context, x: Tensor, g: Tensor) -> Tensor:
        m, peak = F.adaptive_max_pool2d(x, 1, return_indices=True)  # (N, C, 1, 1), and its position
        m = m.relu()
        tau = m * g
        y = x.clamp(min=x.new_zeros(()), max=tau)
        context.save_for_backward(y, tau, m, g, peak)
        return y

    @staticmethod
    def backward(context, upstream: Tensor) -> tuple[Tensor, Tensor | None]:
        y, tau, m, g, peak = context.saved_tensors
        positive = y.sign()
        # Below the bound the gradient G passes unchanged.
        grad_x = (tau - y).sign_().mul_(positive).mul_(upstream)
        # What arrives at the clamped positions, S, goes into the bound: to the position of the maximum, and to the controller.
        into_bound = positive.mul_(upstream).sub_(grad_x).sum((2, 3), keepdim=True)  # S: (N, C, 1, 1)
        peak, width = peak[..., 0, 0], y.shape[3]
        image, channel = (torch.arange(size, device=y.device) for size in peak.shape)
        grad_x[image[:, None], channel, peak // width, peak % width] += (g * into_bound)[..., 0, 0]
        return grad_x, m * into_bound if context.needs_input_grad[1] else None


class Suppression(nn.Module):
    """The DRS module: max-element extractor, suppression controller and suppressor, with the ReLU inside.

    For each image and channel m = max ReLU(x), tau = g m and y = min(ReLU(x), tau).

    Args:
        channels: C.
        delta: the controller's factor g for every channel, in (0, 1]; 1 is the plain ReLU. 0: learnable, g = sigmoid(W r)
            with r the mean of ReLU(x) over the positions, one C x C matrix W without bias, started at N(0, 0.01).

    Raises:
        ValueError: delta lies outside 0..1.

    Source: section "Discriminative region suppression". Explained in notebook 30, section "One channel".

    >>> Suppression(1, delta=0.5)(torch.tensor([[[[-1.0, 1.0, 3.0, 4.0]]]])).flatten().tolist()
    [0.0, 1.0, 2.0, 2.0]
    """

    def __init__(self, channels: int, delta: float):
        super().__init__()
        if not 0 <= delta <= 1:
            raise ValueError(f"delta must lie between 0 (learnable) and 1 (plain ReLU), not {delta}")
        self.delta = delta
        if delta == 0:
            self.controller = nn.Linear(channels, channels, bias=False)  # W
            nn.init.normal_(self.controller.weight, std=0.01)

    def control(self, x: Tensor) -> Tensor:
        """Return the factor g for x (N, C, H, W), before the ReLU: (N, C, 1, 1) in 0..1, or a scalar for a fixed delta."""
        if self.delta:
            return x.new_tensor(self.delta)
        return torch.sigmoid(self.controller(F.relu(x).mean((2, 3))))[..., None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Return y = min(ReLU(x), tau) of x: both float (N, C, H, W)."""
        return F.relu(x) if self.delta == 1 else _Suppress.apply(x, self.control(x))


class ScoreNet(nn.Module):
    """Backbone, three extra 3x3 convolutions and a 1x1 convolution that gives a score map for each class.

    With suppression it is DRS's classifier (the logit is the mean of the score map); with `delta=1` it is the refinement
    network (the score map itself is the output).

    Args:
        backbone: a VGG or a network of `wsss_lib.nets.backbone`.
        num_classes: foreground classes C.
        delta: of every `Suppression`; 1: plain ReLUs.
        stages: how many of the backbone's five stages, counted from the deepest, have their ReLUs replaced. Published: 5.
        extra_std: standard deviation of the extra convolutions' initial weights; 0: sqrt(2 / (k k C_out)), the classifier's.

    Source: section "Network architecture" and the official layout. Explained in notebook 30, section "The network".
    """

    def __init__(self, backbone: Backbone, num_classes: int, delta: float, stages: int = 5, extra_std: float = 0.0):
        super().__init__()
        self.backbone, width = backbone, backbone.channels[-1]
        self.extra = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.activations = nn.ModuleList(Suppression(width, delta) for _ in range(3))
        self.classifier = nn.Conv2d(width, num_classes, 1)
        for convolution in (*self.extra, self.classifier):
            nn.init.normal_(convolution.weight, std=extra_std or (2 / convolution.weight[:, 0].numel()) ** 0.5)
            nn.init.zeros_(convolution.bias)
        if delta != 1:
            suppress_backbone(backbone, delta, stages)

    def forward(self, images: Tensor) -> Tensor:
        """Return the score maps (N, C, h, w) of normalized images (N, 3, H, W), at the backbone's stride."""
        features = self.backbone.feature_scale * self.backbone(images)
        for convolution, activation in zip(self.extra, self.activations, strict=True):
            features = activation(convolution(features))
        return self.classifier(features)


class _PerWidth(nn.Module):
    """One module for each number of channels: torchvision's residual blocks use one ReLU two or three times."""

    def __init__(self, widths: Sequence[int], delta: float):
        super().__init__()
        self.of = nn.ModuleDict({str(width): Suppression(width, delta) for width in sorted(set(widths))})

    def forward(self, x: Tensor) -> Tensor:
        return self.of[str(x.shape[1])](x)


def suppress_backbone(backbone: Backbone, delta: float, stages: int = 5) -> None:
    """Replace every ReLU of a backbone's deepest stages with a `Suppression`, in place.

    Parameter names stay, so weights still fit. In a residual block the ReLUs of one width share a module; in EfficientNet
    the module follows the ReLU6, whose limit the ImageNet weights need.

    Args:
        backbone: a VGG or a network of `wsss_lib.nets.backbone`.
        delta: see `Suppression`.
        stages: how many of the five stages, counted from the deepest (5: all, as published).

    Explained in notebook 30, section "The network".
    """
    if isinstance(backbone, VGG):
        for index, channels in backbone.activation_places(stages):
            backbone.features[index] = Suppression(channels, delta)
        return
    deep = backbone.shallow_modules(5)[len(backbone.shallow_modules(5 - stages)) :]
    for module in (part for group in deep for part in group.modules()):
        if isinstance(module, BasicBlock | Bottleneck):
            norms = [part for part in module.children() if isinstance(part, nn.BatchNorm2d)]
            module.relu = _PerWidth([norm.num_features for norm in norms], delta)
        elif isinstance(module, nn.BatchNorm2d) and isinstance(act := getattr(module, "act", None), nn.ReLU6):
            module.act = nn.Sequential(act, Suppression(module.num_features, delta))
    if stages == 5 and isinstance(backbone, ResNet):
        backbone.relu = Suppression(backbone.conv1.out_channels, delta)


def parameter_groups(net: ScoreNet, learning_rate: float, weight_decay: float) -> list[dict]:
    """Return SGD's groups: backbone weights 1x, backbone biases 2x, new weights and all W 10x, new biases 20x.

    Biases and scales of batch normalization count as the backbone's.

    Args:
        weight_decay: of everything, W included.

    Returns:
        params, lr and weight_decay of each of at most four groups.

    Source: official optimizer. Explained in notebook 30, section "Training".
    """
    groups: dict[int, list[nn.Parameter]] = {1: [], 2: [], 10: [], 20: []}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            new = not name.startswith("backbone.") or ".controller." in name
            groups[(10 if new else 1) * (2 if name.endswith("bias") else 1)].append(parameter)
    return [
        {"params": members, "lr": factor * learning_rate, "weight_decay": weight_decay}
        for factor, members in groups.items()
        if members
    ]


def staircase(epoch: int, points: Sequence[int]) -> float:
    """Return the learning-rate factor of an epoch: it falls to a tenth at the start of each of the `points`.

    Args:
        epoch: 1, 2, ...
        points: 1-based epochs (published: 5, 10 of 15 and 10, 20 of 30).

    Source: official schedule. Explained in notebook 30, section "Training".

    >>> [staircase(epoch, (2, 3)) for epoch in (1, 2, 3)]
    [1.0, 0.1, 0.010000000000000002]
    """
    return 0.1 ** sum(epoch >= point for point in points)


def classification_loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the multi-label soft-margin loss of the averaged score maps: {"loss": scalar}.

    Args:
        batch: images, and labels float32 (N, C) of 0 and 1.

    Explained in notebook 30, section "The network".
    """
    images, labels = batch
    return {"loss": F.multilabel_soft_margin_loss(net(images).float().mean((2, 3)), labels)}


def class_maps(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the normalized maps of score maps: ReLU, bilinear to `size`, divided by each map's maximum + 1e-5.

    Args:
        scores: (K, h, w) of one image's present classes.
        size: (H, W) wanted; corners are aligned.

    Returns:
        (K, H, W) in [0, 1).

    Source: official class activation map. Explained in notebook 30, section "From score map to class activation map".
    """
    maps = resize_aligned(F.relu(scores), size)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-5)


def resize_aligned(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps, bilinear with aligned corners.

    Args:
        scores: float (K, h, w); K may be 0.
        size: (H, W) wanted.

    Returns:
        float (K, H, W).

    Explained in notebook 30, section "From score map to class activation map".
    """
    if not len(scores):
        return scores.new_zeros((0, *size))
    return F.interpolate(scores[None], size=tuple(size), mode="bilinear", align_corners=True)[0]


def fused_maps(
    net: ScoreNet, images: Tensor, classes: Sequence[Tensor], sides: Sequence[int], size: tuple[int, int], normalized: bool
) -> list[Tensor]:
    """Return the maximum over scales of an image's maps.

    Args:
        images: (N, 3, S, S), normalized, resized to a square.
        classes: of each image, int64 (K,), the classes present.
        sides: of the resized images, one for each scale (published: 256, 320, 384 of S = 320).
        size: (H, W) of the result.
        normalized: True: the classifier's maps (`class_maps`); False: the refinement network's raw output.

    Returns:
        for each image (K, H, W), at least 0; in [0, 1) when normalized, unbounded otherwise.

    Source: official map generation. Explained in notebook 30, section "From score map to class activation map".
    """
    totals = [images.new_zeros((len(present), *size)) for present in classes]  # from zero: negative outputs count as 0
    for side in sides:
        resized = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
        scores = forward_in_parts(net, resized).float()  # (N, C, h, w)
        for index, present in enumerate(classes):
            chosen = scores[index, present.to(scores.device)]
            maps = class_maps(chosen, size) if normalized else resize_aligned(chosen, size)
            totals[index] = torch.maximum(totals[index], maps)
    return totals


@torch.inference_mode()
def localization_maps(
    net: ScoreNet,
    images: Sequence[Image.Image],
    labels: np.ndarray,
    side: int,
    scales: Sequence[float],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    normalized: bool,
    keep_full: bool = False,
) -> list[tuple]:
    """Return the stride-4 maps of images of one size.

    Args:
        images: N RGB images of one size (H, W).
        labels: uint8 (N, C), the image-level labels; maps are made for the present classes only.
        side: S of the square that an image is resized to (published: 320).
        scales: factors on S (published: 0.8, 1, 1.2).
        normalized: see `fused_maps`.
        keep_full: also return full-size maps.

    Returns:
        for each image: classes int64 (K,), scores float32 (K, h, w) in [0, 1]: means of blocks of 4 x 4 pixels, values above 1
        (of the refinement network) clipped to 1; with `keep_full` also float32 (K, H, W), the pixels themselves.

    Explained in notebook 30, section "All images".
    """
    device, size = net.classifier.weight.device, images[0].size[::-1]
    squares = [transforms.to_tensor(transforms.normalize(transforms.resize_square(image, side), mean, std)) for image in images]
    classes = [torch.from_numpy(np.flatnonzero(label)) for label in labels]
    sides = [round(side * scale) for scale in scales]
    result = []
    for present, maps in zip(
        classes, fused_maps(net, torch.stack(squares).to(device), classes, sides, size, normalized), strict=True
    ):
        maps = maps.clamp(max=1)
        blocks = F.avg_pool2d(maps[None], 4, ceil_mode=True)[0] if len(present) else maps.new_zeros((0, *stride4_size(size)))
        result.append((present.numpy(), blocks.cpu().numpy(), *([maps.cpu().numpy()] if keep_full else [])))
    return result


def refinement_target(maps: Tensor) -> Tensor:
    """Keep only the strongest class at each pixel, 0 elsewhere; tied classes are all kept.

    Args:
        maps: (..., C, H, W) in [0, 1], 0 for absent classes.

    Returns:
        as `maps`.

    Source: official refinement data. Explained in notebook 30, section "Refinement learning".

    >>> refinement_target(torch.tensor([[[0.2, 0.5, 0.0]], [[0.7, 0.5, 0.0]]])).tolist()
    [[[0.0, 0.5, 0.0]], [[0.699999988079071, 0.5, 0.0]]]
    """
    return maps * (maps == maps.amax(-3, keepdim=True))


def refinement_loss(net: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the mean squared error between the refinement network's output and the target: {"loss": scalar}.

    Args:
        batch: images (N, 3, S, S) and targets (N, C, S, S).

    Source: refinement learning. Explained in notebook 30, section "Refinement learning".
    """
    images, target = batch
    answer = F.interpolate(net(images).float(), size=target.shape[-2:], mode="bilinear", align_corners=True)
    return {"loss": F.mse_loss(answer, target)}


class PseudoLabel(NamedTuple):
    """A pseudo-label and why some of its pixels are unknown.

    Attributes:
        decided: uint8 (H, W), the best channel, 0 or class + 1: what the official evaluation scores.
        conflict: bool (H, W), more than two channels (background included) are above 0.9.
        unexplained: bool (H, W), salient, but no class claims it.
    """

    decided: np.ndarray
    conflict: np.ndarray
    unexplained: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Return `decided` with 255 where a rule says unknown: uint8 (H, W)."""
        return np.where(self.conflict | self.unexplained, np.uint8(IGNORE), self.decided)


def pseudo_label(
    maps: np.ndarray, classes: np.ndarray, saliency: np.ndarray, alpha: float = 0.2, saliency_threshold: int = 50
) -> PseudoLabel:
    """Make a pseudo-label from refined maps (the objects) and a saliency map (the background).

    Args:
        maps: float (K, H, W), at least 0; K may be 0.
        classes: int (K,) 0-based foreground classes.
        saliency: uint8 (H, W).
        alpha: smaller scores count as 0.
        saliency_threshold: a pixel is salient ABOVE this value.

    Returns:
        the label and its unknown pixels.

    Raises:
        ValueError: the shapes do not fit.

    Source: official pseudo-label generation. Explained in notebook 30, section "Pseudo-labels with saliency".

    >>> scores = np.array([[[0.9, 0.1, 0.3]]])
    >>> pseudo_label(scores, np.array([6]), np.array([[200, 200, 10]], np.uint8)).mask.tolist()
    [[7, 255, 0]]
    """
    maps, classes = np.asarray(maps), np.asarray(classes)
    if maps.ndim != 3 or classes.shape != maps.shape[:1] or saliency.shape != maps.shape[1:]:
        raise ValueError(
            f"maps {maps.shape}, classes {classes.shape} and saliency {saliency.shape} do not fit: (K, H, W), "
            "(K,) and (H, W) are needed"
        )
    salient = saliency > saliency_threshold  # S
    channels = np.concatenate([1.0 - salient[None], np.where(maps < alpha, 0, maps)])  # P: (1 + K, H, W)
    values = np.concatenate([[0], classes + 1]).astype(np.uint8)
    decided = values[channels.argmax(0)]  # the first wins, so a tie goes to the background
    return PseudoLabel(decided, (channels > CONFLICT).sum(0) > 2, salient & (decided == 0))


RESIZE = 1.2  # images are resized to this multiple of the crop's side before cropping: 384 and 320
SCALES = (0.8, 1.0, 1.2)  # of the crop's side, for the maps: 256, 320 and 384

Choose = Callable[[ScoreNet], float]


def build_drs(
    config: Settings, num_classes: int, classifier: Path | str = "", weights: Path | str = "", delta: float | None = None
) -> ScoreNet:
    """Build the classifier with suppression.

    Args:
        num_classes: foreground classes C.
        classifier: weights of notebook 10's classifier; its backbone is the initialization if `drs_backbone_weights` says so.
        weights: a safetensors file of a whole network of this kind, instead of an initialization.
        delta: None: the configured one.

    Raises:
        ValueError: weights of another network.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 30, section "The network".
    """
    delta = config.drs_delta if delta is None else delta
    net = ScoreNet(_start_backbone(config, classifier, weights), num_classes, delta, config.drs_suppressed_stages)
    return _finish(net, config, weights)


def build_refinement(config: Settings, num_classes: int, classifier: Path | str = "", weights: Path | str = "") -> ScoreNet:
    """Build the refinement network: the same initialization (not the first network's weights), no suppression.

    Args:
        num_classes, classifier: as for `build_drs`.
        weights: a safetensors file of a whole refinement network, instead of an initialization.

    Raises:
        ValueError: weights of another network.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 30, section "Refinement learning".
    """
    net = ScoreNet(_start_backbone(config, classifier, weights), num_classes, delta=1, extra_std=0.01)
    return _finish(net, config, weights)


def _start_backbone(config: Settings, classifier: Path | str, weights: Path | str) -> Backbone:
    """Build the backbone without suppression, with its initial weights unless a whole network's weights are loaded later."""
    build = partial(build_backbone, config.drs_backbone, OWN_STRIDE.get(config.drs_backbone, config.output_stride))
    return start_backbone(build, config.drs_backbone_weights, classifier, weights)


def _finish(net: ScoreNet, config: Settings, weights: Path | str) -> ScoreNet:
    if config.drs_frozen_batch_norm:
        freeze_batch_norm(net.backbone)
    for module in net.backbone.shallow_modules(config.drs_frozen_stages):
        module.requires_grad_(False)
    return load_whole(net, weights)


@in_processes
def train_drs(net: ScoreNet, data: SegmentationDataset, config: Settings, folder: Path, choose: Choose | None = None) -> int:
    """Train the classifier on image-level labels, in place.

    Args:
        choose: None: keep the last epoch; otherwise the epoch for which this returns the highest value (see `chooser`).

    Raises:
        ValueError: as `training.train`.

    Source: section "Training" and the official program. Explained in notebook 30, section "Training".
    """
    resize = round(RESIZE * config.drs_crop)
    samples = SquareSamples(data, config.seed, resize, config.drs_crop, *normalization_of(config.drs_backbone))
    groups = parameter_groups(net, config.drs_learning_rate, config.drs_weight_decay)
    return _train(
        net, classification_loss, samples, groups, config.drs_epochs, config.drs_momentum, config, folder, "DRS", choose
    )


@in_processes
def train_refinement(
    net: ScoreNet, data: SegmentationDataset, maps_folder: Path, config: Settings, folder: Path, choose: Choose | None = None
) -> int:
    """Train the refinement network on the classifier's maps, in place.

    Args:
        choose: as for `train_drs`.

    Raises:
        ValueError: as `training.train`.
        DataError: a map is missing or broken.

    Explained in notebook 30, section "Refinement learning".
    """
    samples = MapSamples(data, maps_folder, config.seed, config.drs_crop, *normalization_of(config.drs_backbone))

    def loss_of(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, maps = batch
        return refinement_loss(model, (images, refinement_target(maps)))

    groups = [
        {
            "params": [part for part in net.parameters() if part.requires_grad],
            "lr": config.drs_refine_learning_rate,
            "weight_decay": 0.0,
        }
    ]
    return _train(net, loss_of, samples, groups, config.drs_refine_epochs, None, config, folder, "refinement", choose)


def _train(net, loss_of, samples, groups, epochs, momentum, config, folder, name, choose) -> int:
    per_epoch = steps_per_epoch(len(samples), config.drs_batch_size, config.drs_keep_last_batch)
    points = (epochs // 3, 2 * epochs // 3) if epochs >= 6 else ()  # published: 5 and 10 of 15, 10 and 20 of 30
    training.train(
        net,
        loss_of,
        samples,
        groups,
        momentum,
        epochs * per_epoch,
        config.drs_batch_size,
        config,
        folder,
        schedule=lambda step, total: staircase(step // per_epoch + 1, points),
        name=name,
        nesterov=momentum is not None,
        after_step=keep_best_epoch(net, choose, per_epoch, folder) if choose else None,
        keep_last=config.drs_keep_last_batch,
    )
    if choose:
        load_weights(net, read_tensors(folder / "best.safetensors"), "best.safetensors")
    return epochs * (len(samples) if config.drs_keep_last_batch else per_epoch * config.drs_batch_size)


def drs_localization(net: ScoreNet, config: Settings, normalized: bool = True) -> Localize:
    """Return the function that makes maps for `make_maps`.

    Args:
        normalized: True: the classifier's maps; False: the refinement network's outputs, clipped to 0..1.

    Explained in notebook 30, section "All images".
    """
    net = folded(net)
    keep_full = not normalized and config.map_size == "image"  # the refinement network's targets are resized down anyway
    arguments = config.drs_crop, SCALES, *normalization_of(config.drs_backbone), normalized, keep_full
    return in_precision(
        lambda ids, images, labels: localization_maps(net, images, labels, *arguments), net.classifier.weight.device, config
    )


# ---- pseudo-labels


def make_pseudo_labels(
    data: SegmentationDataset, maps_folder: Path, saliency_folder: Path, config: Settings, folder: Path
) -> int:
    """Write the pseudo-label `ID.png` of every image that has none yet.

    `drs_background` says what marks the background. "saliency" is the paper's; the others are this project's, for data
    without saliency maps: "constant" (`drs_alpha` as the background's score), "crf" (the same, then a dense CRF) and "irn"
    (IRN's confident labels, 255 between the two thresholds).

    Args:
        maps_folder: holds the refined maps `ID.npz`.
        saliency_folder: holds `ID.png`; read only if saliency is used.

    Raises:
        DataError: a map or a saliency map is missing or broken.

    Explained in notebook 30, section "Without saliency".
    """
    work = partial(
        _make_pseudo_label, data=data, maps_folder=maps_folder, saliency_folder=saliency_folder, config=config, folder=folder
    )
    workers = cpu_workers(config) if config.drs_background in ("crf", "irn") else 0  # they pay off only where a CRF runs
    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.png", work, "pseudo-labels", config, workers)


def _make_pseudo_label(
    image_id: str, data: SegmentationDataset, maps_folder: Path, saliency_folder: Path, config: Settings, folder: Path
) -> None:
    classes, maps = full_size_maps(maps_folder, image_id)
    if config.drs_background == "saliency":
        saliency = read_saliency(saliency_folder / f"{image_id}.png", maps.shape[:0:-1])
        mask = pseudo_label(maps, classes, saliency, config.drs_alpha).mask
    else:
        mask = label_without_saliency(data.image(image_id), maps, classes, config)
    write_mask(folder / f"{image_id}.png", mask)


def label_without_saliency(image: Image.Image, maps: np.ndarray, classes: np.ndarray, config: Settings) -> np.ndarray:
    """Make a pseudo-label in one of this project's three ways (none is in the paper).

    Args:
        maps: float32 (K, H, W) in [0, 1].
        classes: int64 (K,), 0-based.

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
        return irn_labels(
            np.array(image),
            maps,
            classes,
            config.seed_foreground_threshold,
            config.seed_background_threshold,
            config.seed_crf_iterations,
        )
    raise ValueError("drs_background is 'saliency': use pseudo_label")


# ---- the choice of an epoch


def chooser(data: SegmentationDataset, saliency_folder: Path, config: Settings, normalized: bool = True) -> Choose | None:
    """Return what an epoch is chosen by: None (keep the last one) unless `drs_selection` is "pixel_labels".

    The official programs keep the epoch whose pseudo-labels score best against the ground truth. Later scores have then used
    pixel labels and must say so.

    Args:
        saliency_folder: holds `ID.png`.
        normalized: see `drs_localization`.

    Returns:
        None, or a function from the network to a value in percent; it can be sent to another process.

    Explained in notebook 30, section "Training".
    """
    if config.drs_selection == "last":
        return None
    return partial(_score_network, data=data, saliency_folder=saliency_folder, config=config, normalized=normalized)


def _score_network(
    net: ScoreNet, data: SegmentationDataset, saliency_folder: Path, config: Settings, normalized: bool
) -> float:
    return pseudo_label_miou(drs_localization(net, config, normalized), data, saliency_folder, config)


def pseudo_label_miou(localize: Localize, data: SegmentationDataset, saliency_folder: Path, config: Settings) -> float:
    """Make maps and return the mIoU in percent of their pseudo-labels without the two rules for 255.

    Args:
        localize: from `drs_localization`.
        saliency_folder: holds `ID.png`.

    Raises:
        DataError: a ground-truth mask or a saliency map is missing or broken.

    Explained in notebook 30, section "Training".
    """
    evaluation = Evaluation(data.num_classes + 1)
    for image_id, label in zip(progress(data.ids, "choosing by pixel labels"), data.labels, strict=True):
        image = data.image(image_id)
        ((classes, scores, *full),) = localize([image_id], [image], label[None])
        maps = full_size(scores, image.size[::-1], *full)
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
        choose: gives the value to choose by; the network is in evaluation mode.
        steps_per_epoch: optimizer steps of an epoch.

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


# ---- stages


def _saliency_folder(job: Job) -> Path:
    return job.data.root / job.config.drs_saliency_folder


def _classifier_input(config: Any) -> dict[str, Stage]:
    return {"classifier": CLASSIFIER} if config.drs_backbone_weights == "classifier" else {}


def _trained(
    job: Job, build: Callable[..., ScoreNet], train: Callable[[ScoreNet, Choose | None], int], given: str, normalized: bool
) -> int:
    start = job.inputs["classifier"].weights if "classifier" in job.inputs else ""
    choose = None
    if job.config.drs_selection == "pixel_labels":
        scored = open_data(job.whole, job.whole.score_split).scored()
        if not scored.has_masks:
            raise DataError(f"{scored.root}: there are no masks for drs_selection 'pixel_labels'; set it to 'last'")
        choose = chooser(scored, _saliency_folder(job), job.config, normalized)
    return network_made(
        job, lambda: build(job.config, job.data.num_classes, start, given), lambda net: train(net, choose), given
    )


def _make_network(job: Job) -> int:
    return _trained(
        job,
        build_drs,
        lambda net, choose: train_drs(net, job.data, job.config, job.folder, choose),
        job.config.drs_weights,
        normalized=True,
    )


def _make_refinement(job: Job) -> int:
    maps = job.inputs["localization"].folder
    return _trained(
        job,
        build_refinement,
        lambda net, choose: train_refinement(net, job.data, maps, job.config, job.folder, choose),
        job.config.drs_refine_weights,
        normalized=False,
    )


def _load(build: Callable[..., ScoreNet]) -> Callable[[Job], ScoreNet]:
    return lambda job: build(job.config, job.data.num_classes, "", job.weights).to(job.device).eval()


def _make_localization(job: Job) -> int:
    return make_maps(drs_localization(job.inputs["network"].net, job.config), job.data, job.config, job.folder)


def _make_maps(job: Job) -> int:
    localize = drs_localization(job.inputs["refinement"].net, job.config, normalized=False)
    return make_maps(localize, job.data, job.config, job.folder)


def _score_maps(job: Job) -> list[dict]:
    rows = score_maps(job)
    if job.config.drs_selection == "pixel_labels":
        rows[0]["pixel_labels_chose"] += "; epochs of DRS"
    return rows


def _score_masks(job: Job) -> list[dict]:
    config = job.config
    row = metric_row(
        "DRS pseudo-label",
        job.score_data,
        score_masks(job.score_data, job.folder),
        config.drs_background in ("crf", "irn"),
        config,
    )
    used = [
        config.pixel_labels_chose,
        "saliency maps" if config.drs_background == "saliency" else "",
        "epochs of DRS" if config.drs_selection == "pixel_labels" else "",
    ]
    return [row | {"pixel_labels_chose": "; ".join(filter(None, used))}]


BACKGROUND_READS = {
    "saliency": (),
    "constant": (),
    "crf": ("seed_crf_iterations",),
    "irn": ("seed_crf_iterations", "seed_foreground_threshold", "seed_background_threshold"),
}
MASK_READS = ("drs_background", "drs_saliency_folder", "drs_alpha")


def _network_reads(*own: str) -> Callable[[Any], tuple[str, ...]]:
    """What a training reads; if pseudo-labels choose the epoch, also what makes them."""
    common = (
        "drs_backbone",
        "drs_backbone_weights",
        "output_stride",
        "drs_frozen_batch_norm",
        "drs_frozen_stages",
        "drs_batch_size",
        "drs_keep_last_batch",
        "drs_crop",
        "drs_selection",
        *TRAINING,
    )
    return lambda config: (*common, *own, *((*MASK_READS, *MAP_FORM) if config.drs_selection == "pixel_labels" else ()))


def _choosing_masks(job: Job) -> dict[str, str]:
    if job.config.drs_selection == "last":
        return {}
    return {"chosen by": mask_hash(open_data(job.whole, job.whole.score_split))}


NETWORK = Stage(
    "network",
    NOTEBOOK,
    _make_network,
    load=_load(build_drs),
    inputs=_classifier_input,
    files=_choosing_masks,
    reads=_network_reads(
        "drs_weights",
        "drs_delta",
        "drs_suppressed_stages",
        "drs_epochs",
        "drs_learning_rate",
        "drs_momentum",
        "drs_weight_decay",
    ),
)
LOCALIZATION = Stage(
    "localization",
    NOTEBOOK,
    _make_localization,
    inputs=lambda config: {"network": NETWORK},
    reads=("drs_backbone", "drs_crop", "map_precision"),
)
REFINED = Stage(
    "refinement",
    NOTEBOOK,
    _make_refinement,
    load=_load(build_refinement),
    inputs=lambda config: {"localization": LOCALIZATION} | _classifier_input(config),
    files=_choosing_masks,
    reads=_network_reads("drs_refine_weights", "drs_refine_epochs", "drs_refine_learning_rate"),
)
MAPS = Stage(
    "maps",
    NOTEBOOK,
    _make_maps,
    inputs=lambda config: {"refinement": REFINED},
    score=_score_maps,
    reads=("drs_backbone", "drs_crop", *MAP_FORM),
    score_reads=("drs_selection",),
    shows={"CAM at its best threshold": None},
)
MASKS = Stage(
    "drs_masks",
    NOTEBOOK,
    lambda job: make_pseudo_labels(job.data, job.inputs["maps"].folder, _saliency_folder(job), job.config, job.folder),
    inputs=lambda config: {"maps": MAPS},
    score=_score_masks,
    files=lambda job: (
        {"saliency": saliency_hash(job.data, _saliency_folder(job))} if job.config.drs_background == "saliency" else {}
    ),
    reads=lambda config: (*MASK_READS, *BACKGROUND_READS[config.drs_background]),
    score_reads=("pixel_labels_chose", "drs_selection"),
    shows={"DRS pseudo-label": ""},
)
STAGES = (NETWORK, LOCALIZATION, REFINED, MAPS, MASKS)


# ---- costs


def costs(config: Settings, data: Images) -> list[Cost]:
    """Count both networks, their maps and the pseudo-labels."""
    batch, side = crops(config.drs_crop), (config.drs_crop, config.drs_crop)

    def count(stage: str, maps: str, net: ScoreNet, loss_of: Callable[[int], Tensor], epochs: int, moments: int) -> list[Cost]:
        seen = data.seen(epochs, config.drs_batch_size)
        network = training_cost(stage, net, loss_of, seen, config.drs_batch_size, config, moments)
        at_once, disk = config.device_batch_size, data.full_maps_mib if maps == "maps" else data.maps_mib
        return [
            network,
            inference_cost(maps, net.eval(), net, data.train, side, SCALES, views=1, at_once=at_once, disk_mib=disk),
        ]

    net, refinement = build_drs(config, data.classes), build_refinement(config, data.classes)
    return [
        *count(
            "network",
            "localization",
            net,
            lambda n: classification_loss(net, (batch(n), torch.empty(n, data.classes)))["loss"],
            config.drs_epochs,
            1,
        ),
        *count(
            "refinement",
            "maps",
            refinement,
            lambda n: refinement_loss(refinement, (batch(n), torch.empty(n, data.classes, *side)))["loss"],
            config.drs_refine_epochs,
            2,
        ),
        Cost("drs_masks", core_seconds=data.train * data.crf_seconds(), disk_mib=data.masks_mib),
    ]
