"""DeepLab-v3+: dilated backbone, pyramid pooling with image-level features, and a decoder at stride 4.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018, in the form
whose published VOC numbers the weakly-supervised papers compare with: ONE 3x3 convolution in the decoder (the paper has two),
batch normalization trained, one scale, one loss.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.models.segmentation.deeplabv3 import ASPP

from wsss_lib.core.files import read_tensors
from wsss_lib.nets.backbone import Backbone, ResNet, build_backbone
from wsss_lib.nets.weights import imagenet_weights, load_weights
from wsss_lib.parameters import project_path

BACKBONE_MOMENTUM = 0.01  # of batch normalization's running statistics; the head has torch's 0.1
LEAST_RATE = 1e-6  # the official schedule goes no lower


def build_dilated_backbone(name: str, output_stride: int, weights: str = "none") -> Backbone:
    """Build a backbone with DeepLab-v3+'s dilations.

    A ResNet-50 or -101 keeps torchvision's rule: the last one (stride 16) or two (stride 8) layers lose their stride and get
    dilation, and the first block of a dilated layer still has the dilation of the previous layer. The other backbones are those
    of `build_backbone`.

    Args:
        name: one of `wsss_lib.nets.backbone.BACKBONES`.
        output_stride: 8 or 16.
        weights: "none", "imagenet", or the path of a safetensors file.

    Explained in notebook 90, section "Version 2 and version 3+ side by side".
    """
    if name not in ("resnet50", "resnet101"):
        return build_backbone(name, output_stride, weights)
    layers = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}[name]
    strides, dilations = {16: ((1, 2, 2, 1), (1, 1, 1, 2)), 8: ((1, 2, 1, 1), (1, 1, 2, 4))}[output_stride]
    backbone = ResNet(Bottleneck, layers, strides=strides, dilations=dilations)
    for number in (2, 3):
        if dilations[number] != dilations[number - 1]:
            convolution = getattr(backbone, f"layer{number + 1}")[0].conv2
            convolution.dilation = convolution.padding = (dilations[number - 1],) * 2
    if weights == "imagenet":
        load_weights(backbone, imagenet_weights(name, backbone), "ImageNet weights")
    elif weights != "none":
        load_weights(backbone, read_tensors(project_path(weights)), weights)
    return backbone


class Decoder(nn.Module):
    """Pyramid pooling on the deep features, joined with reduced early features: logits at stride 4.

    Args:
        low_channels, high_channels: of the early (stride 4) and the deep features.
        num_classes: K, background included.
        rates: dilations of the three 3x3 branches.
        width: channels of every branch (published: 256; early features are reduced to 3/16 of it, 48).
    """

    def __init__(self, low_channels: int, high_channels: int, num_classes: int, rates: Sequence[int], width: int = 256):
        super().__init__()
        reduced = 3 * width // 16
        self.project = nn.Sequential(nn.Conv2d(low_channels, reduced, 1, bias=False), nn.BatchNorm2d(reduced), nn.ReLU())
        self.aspp = ASPP(high_channels, rates, width)
        self.aspp.project[3].p = 0.1  # torchvision's dropout is 0.5
        self.classifier = nn.Sequential(
            nn.Conv2d(reduced + width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, num_classes, 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Return the logits float (N, K, H/4, W/4).

        Args:
            low: early features, float (N, C, H/4, W/4).
            high: deep features, float (N, D, H/s, W/s), s the output stride.
        """
        pooled = F.interpolate(self.aspp(high), size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(torch.cat([self.project(low), pooled], 1))  # (N, K, H/4, W/4)


class DeepLabV3Plus(nn.Module):
    """DeepLab-v3+: logits at stride 4; all batch normalization is trained.

    Args:
        backbone: with early features of stride 4 as its second stage (from `build_dilated_backbone`).
        num_classes: K, background included.
        rates: published: 6, 12, 18 at output stride 16; 12, 24, 36 at 8.
        width: of the decoder.

    Explained in notebook 90, section "Version 2 and version 3+ side by side".

    >>> net = DeepLabV3Plus(build_backbone("resnet_small", 8), 3, (1, 2, 3), width=16).eval()
    >>> net(torch.zeros(1, 3, 33, 48)).shape
    torch.Size([1, 3, 9, 12])
    """

    def __init__(self, backbone: Backbone, num_classes: int, rates: Sequence[int] = (6, 12, 18), width: int = 256):
        super().__init__()
        self.backbone = backbone
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BACKBONE_MOMENTUM
        self.classifier = Decoder(backbone.channels[1], backbone.channels[-1], num_classes, rates, width)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K, about H / 4, about W / 4).

        Args:
            images: float (N, 3, H, W), normalized.
        """
        features = self.backbone.stages(images)
        return self.classifier(features[1], features[-1])


def parameter_groups(net: DeepLabV3Plus, learning_rate: float, weight_decay: float) -> list[dict]:
    """Split the parameters into SGD's two groups: the backbone at a tenth of the rate, the decoder at the rate.

    Args:
        learning_rate: of the decoder.
        weight_decay: of everything, batch normalization included.

    Returns:
        params, lr, its floor min_lr, and weight_decay of both groups.

    Source: the published v3+ recipes. Explained in notebook 90, section "Version 2 and version 3+ side by side".
    """
    common = {"min_lr": LEAST_RATE, "weight_decay": weight_decay}
    return [
        {"params": list(net.backbone.parameters()), "lr": learning_rate / 10} | common,
        {"params": list(net.classifier.parameters()), "lr": learning_rate} | common,
    ]
