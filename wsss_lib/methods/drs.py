"""Discriminative region suppression (DRS; Kim, Han, Kim, AAAI 2021): networks, losses, maps and pseudo-labels.

A module in place of every ReLU caps each channel at a share of its own maximum, so that the most telling place loses its lead
and the loss must be earned elsewhere too. A second network, trained to repeat the first one's maps, completes them. Saliency
maps, which come from outside, say what is background.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from wsss_lib.data import transforms
from wsss_lib.data.dataset import IGNORE
from wsss_lib.methods.cam import stride4_size
from wsss_lib.nets.vgg import VGG

CONFLICT = 0.9  # more than two channels above this: the pixel is unknown


class _Suppress(torch.autograd.Function):
    """y = min(ReLU(x), tau), tau = g max ReLU(x), with its gradient written out.

    Plain autograd gives the same numbers; this keeps only y, which the next layer keeps anyway, and takes a fifth of the time.
    Explained in notebook 30, section "Where the gradient goes".
    """

    @staticmethod
    def forward(context, x: Tensor, g: Tensor) -> Tensor:
        m, peak = F.adaptive_max_pool2d(x, 1, return_indices=True)  # (N, C, 1, 1), and where
        m = m.relu()
        tau = m * g
        y = x.clamp(min=x.new_zeros(()), max=tau)
        context.save_for_backward(y, tau, m, g, peak)
        return y

    @staticmethod
    def backward(context, upstream: Tensor) -> tuple[Tensor, Tensor | None]:
        y, tau, m, g, peak = context.saved_tensors
        positive = y.sign()
        # Below the bound the gradient G passes as it is.
        grad_x = (tau - y).sign_().mul_(positive).mul_(upstream)
        # What arrives at the clamped places, S, goes into the bound: to the one place of the maximum, and to the controller.
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

    Example:
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
    network (the score map itself is the answer).

    Args:
        backbone: a VGG or a network of `wsss_lib.nets.backbone`.
        num_classes: foreground classes C.
        delta: of every `Suppression`; 1: plain ReLUs.
        stages: in how many of the backbone's five stages, counted from the deepest, the ReLUs are replaced. Published: 5.
        extra_std: standard deviation of the extra convolutions' start; 0: sqrt(2 / (k k C_out)), the classifier's.

    Source: section "Network architecture" and the official layout. Explained in notebook 30, section "The network".
    """

    def __init__(self, backbone: nn.Module, num_classes: int, delta: float, stages: int = 5, extra_std: float = 0.0):
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
        """Return the score maps (N, C, h, w) of normalised images (N, 3, H, W), at the backbone's stride."""
        features = self.backbone.feature_scale * self.backbone(images)
        for convolution, activation in zip(self.extra, self.activations, strict=True):
            features = activation(convolution(features))
        return self.classifier(features)


class _PerWidth(nn.Module):
    """One module for each number of channels: torchvision's residual blocks use one ReLU in two or three places."""

    def __init__(self, widths: Sequence[int], delta: float):
        super().__init__()
        self.of = nn.ModuleDict({str(width): Suppression(width, delta) for width in sorted(set(widths))})

    def forward(self, x: Tensor) -> Tensor:
        return self.of[str(x.shape[1])](x)


def suppress_backbone(backbone: nn.Module, delta: float, stages: int = 5) -> None:
    """Put a `Suppression` in the place of every ReLU of a backbone's deepest stages, in place.

    Parameter names stay, so weights fit as before. In a residual block the ReLUs of one width share a module; in EfficientNet
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
    deep = backbone.shallow_modules(5)[len(backbone.shallow_modules(5 - stages)):]
    for module in (part for group in deep for part in group.modules()):
        if isinstance(module, BasicBlock | Bottleneck):
            norms = [part for part in module.children() if isinstance(part, nn.BatchNorm2d)]
            module.relu = _PerWidth([norm.num_features for norm in norms], delta)
        elif isinstance(getattr(module, "act", None), nn.ReLU6):
            module.act = nn.Sequential(module.act, Suppression(module.num_features, delta))
    if stages == 5 and hasattr(backbone, "conv1"):
        backbone.relu = Suppression(backbone.conv1.out_channels, delta)


def parameter_groups(net: ScoreNet, learning_rate: float, weight_decay: float) -> list[dict]:
    """Return SGD's groups: backbone weights 1x, backbone biases 2x, new weights and all W 10x, new biases 20x.

    Biases and scales of batch normalisation count as the backbone's.

    Args:
        net: the classifier with suppression.
        learning_rate: of the backbone's weights.
        weight_decay: of everything, W included.

    Returns:
        params, lr and weight_decay of each of at most four groups.

    Source: official optimiser. Explained in notebook 30, section "Training".
    """
    groups: dict[int, list[nn.Parameter]] = {1: [], 2: [], 10: [], 20: []}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            new = not name.startswith("backbone.") or ".controller." in name
            groups[(10 if new else 1) * (2 if name.endswith("bias") else 1)].append(parameter)
    return [{"params": members, "lr": factor * learning_rate, "weight_decay": weight_decay}
            for factor, members in groups.items() if members]


def staircase(epoch: int, points: Sequence[int]) -> float:
    """Return the factor on the learning rates in an epoch: a tenth from the start of each of the `points` on.

    Args:
        epoch: 1, 2, ...
        points: 1-based epochs (published: 5, 10 of 15 and 10, 20 of 30).

    Source: official schedule. Explained in notebook 30, section "Training".

    Example:
        >>> [staircase(epoch, (2, 3)) for epoch in (1, 2, 3)]
        [1.0, 0.1, 0.010000000000000002]
    """
    return 0.1 ** sum(epoch >= point for point in points)


def classification_loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the multi-label soft-margin loss of the averaged score maps: {"loss": scalar}.

    Args:
        net: images (N, 3, H, W) to score maps (N, C, h, w).
        batch: images, and labels float32 (N, C) of 0 and 1.

    Explained in notebook 30, section "The network".
    """
    images, labels = batch
    return {"loss": F.multilabel_soft_margin_loss(net(images).float().mean((2, 3)), labels)}


def class_maps(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the normalised maps of score maps: ReLU, bilinear to `size`, divided by each map's maximum + 1e-5.

    Args:
        scores: (K, h, w) of one image's present classes.
        size: (H, W) wanted; corners are aligned.

    Returns:
        (K, H, W) in [0, 1).

    Source: official class activation map. Explained in notebook 30, section "From score map to localization map".
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

    Explained in notebook 30, section "From score map to localization map".
    """
    if not len(scores):
        return scores.new_zeros((0, *size))
    return F.interpolate(scores[None], size=tuple(size), mode="bilinear", align_corners=True)[0]


def fused_maps(net: ScoreNet, images: Tensor, classes: Sequence[Tensor], sides: Sequence[int], size: tuple[int, int],
               normalized: bool) -> list[Tensor]:
    """Return the maximum over scales of an image's maps.

    Args:
        net: the classifier, or the refinement network.
        images: (N, 3, S, S), normalised, squeezed to a square.
        classes: of each image, int64 (K,), the classes present.
        sides: to which the images are resized for each scale (published: 256, 320, 384 of S = 320).
        size: (H, W) of the result.
        normalized: True: the classifier's maps (`class_maps`); False: the refinement network's raw answer.

    Returns:
        for each image (K, H, W), at least 0; in [0, 1) when normalised, unbounded otherwise.

    Source: official map generation. Explained in notebook 30, section "From score map to localization map".
    """
    totals = [images.new_zeros((len(present), *size)) for present in classes]  # from zero: negative answers count as none
    for side in sides:
        scores = net(F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)).float()  # (N, C, h, w)
        for index, present in enumerate(classes):
            chosen = scores[index, present.to(scores.device)]
            maps = class_maps(chosen, size) if normalized else resize_aligned(chosen, size)
            totals[index] = torch.maximum(totals[index], maps)
    return totals


@torch.inference_mode()
def localization_maps(net: ScoreNet, images: Sequence[Image.Image], labels: np.ndarray, side: int, scales: Sequence[float],
                      mean: tuple, std: tuple, normalized: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the stride-4 maps of photographs of one size.

    Args:
        net: in evaluation mode.
        images: N RGB photographs of one size (H, W).
        labels: uint8 (N, C), the image-level labels; maps are made for the present classes only.
        side: S of the square that a photograph is squeezed to (published: 320).
        scales: factors on S (published: 0.8, 1, 1.2).
        mean, std: of the normalisation.
        normalized: see `fused_maps`.

    Returns:
        for each image: classes int64 (K,), scores float32 (K, h, w) in [0, 1]: means of blocks of 4 x 4 pixels, values above 1
        (of the refinement network) cut to 1.

    Explained in notebook 30, section "All images".
    """
    device, size = net.classifier.weight.device, images[0].size[::-1]
    squares = [transforms.to_tensor(transforms.normalize(transforms.resize_square(image, side), mean, std)) for image in images]
    classes = [torch.from_numpy(np.flatnonzero(label)) for label in labels]
    sides = [round(side * scale) for scale in scales]
    result = []
    for present, maps in zip(classes, fused_maps(net, torch.stack(squares).to(device), classes, sides, size, normalized),
                             strict=True):
        blocks = F.avg_pool2d(maps.clamp(max=1)[None], 4, ceil_mode=True)[0] if len(present) else maps.new_zeros(
            (0, *stride4_size(size)))
        result.append((present.numpy(), blocks.cpu().numpy()))
    return result


def refinement_target(maps: Tensor) -> Tensor:
    """Keep in each pixel only the strongest class, 0 elsewhere; classes that tie are all kept.

    Args:
        maps: (..., C, H, W) in [0, 1], 0 for absent classes.

    Returns:
        as `maps`.

    Source: official refinement data. Explained in notebook 30, section "Refinement learning".

    Example:
        >>> refinement_target(torch.tensor([[[0.2, 0.5, 0.0]], [[0.7, 0.5, 0.0]]])).tolist()
        [[[0.0, 0.5, 0.0]], [[0.699999988079071, 0.5, 0.0]]]
    """
    return maps * (maps == maps.amax(-3, keepdim=True))


def refinement_loss(net: ScoreNet, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the mean squared error between the refinement network's answer and the target: {"loss": scalar}.

    Args:
        net: the refinement network.
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


def pseudo_label(maps: np.ndarray, classes: np.ndarray, saliency: np.ndarray, alpha: float = 0.2,
                 saliency_threshold: int = 50) -> PseudoLabel:
    """Make a pseudo-label of refined maps (the objects) and a saliency map (the background).

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

    Example:
        >>> scores = np.array([[[0.9, 0.1, 0.3]]])
        >>> pseudo_label(scores, np.array([6]), np.array([[200, 200, 10]], np.uint8)).mask.tolist()
        [[7, 255, 0]]
    """
    maps, classes = np.asarray(maps), np.asarray(classes)
    if maps.ndim != 3 or classes.shape != maps.shape[:1] or saliency.shape != maps.shape[1:]:
        raise ValueError(f"maps {maps.shape}, classes {classes.shape} and saliency {saliency.shape} do not fit: (K, H, W), "
                         "(K,) and (H, W) are needed")
    salient = saliency > saliency_threshold  # S
    channels = np.concatenate([1.0 - salient[None], np.where(maps < alpha, 0, maps)])  # P: (1 + K, H, W)
    values = np.concatenate([[0], classes + 1]).astype(np.uint8)
    decided = values[channels.argmax(0)]  # the first wins, so a tie goes to the background
    return PseudoLabel(decided, (channels > CONFLICT).sum(0) > 2, salient & (decided == 0))
