"""VGG-16 in DRS's layout: torchvision's convolutions, without the last two strides and without fully connected layers.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"; layout of the classifier
of DRS (Kim, Han, Kim, AAAI 2021).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.nets.base import Backbone


class VGG(Backbone):
    """The convolutions of VGG-16 with output stride 8; one interface with the other backbones (`wsss_lib.nets.backbone`).

    `features` has torchvision's indices (convolution, ReLU, ..., pooling), so its ImageNet weights fit unchanged. Stages
    1 to 3 end in a pooling of stride 2, stage 4 in one of stride 1, stage 5 has dilation 2 instead and no pooling.

    Args:
        width: channels of stage 1 (64 in the published network); they double up to stage 4.
        layers: convolutions in each of the five stages.

    Explained in notebook 30, section "The network".

    >>> net = VGG(width=4, layers=(1, 1, 1, 1, 1))
    >>> net.channels, net.strides
    ((4, 8, 16, 32, 32), (2, 4, 8, 8, 8))
    """

    strides = (2, 4, 8, 8, 8)
    feature_scale = map_power = 1.0

    def __init__(self, width: int = 64, layers: Sequence[int] = (2, 2, 3, 3, 3)):
        super().__init__()
        self.channels = (width, 2 * width, 4 * width, 8 * width, 8 * width)
        modules, ends, channels = [], [], 3
        for stage, (count, out_channels) in enumerate(zip(layers, self.channels, strict=True), start=1):
            rate = 2 if stage == 5 else 1
            for _ in range(count):
                modules += [nn.Conv2d(channels, out_channels, 3, padding=rate, dilation=rate), nn.ReLU()]
                channels = out_channels
            if stage < 5:
                modules.append(nn.MaxPool2d(2) if stage < 4 else nn.MaxPool2d(3, stride=1, padding=1))
            ends.append(len(modules))
        self.features, self._ends = nn.Sequential(*modules), ends
        for module in self.convolutions():
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.get_parameter("bias"))

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the five stages: tensors (N, channels[i], H/strides[i], W/strides[i]), rounded down."""
        # An image smaller than the stride still gets one position.
        missing = [max(0, 8 - side) for side in images.shape[-2:]]
        features, start = F.pad(images, (0, missing[1], 0, missing[0])) if any(missing) else images, 0
        outputs = []
        for end in self._ends:
            features = self.features[start:end](features)
            outputs.append(features)
            start = end
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """Return the deepest features: float (N, channels[4], H/8, W/8), rounded down.

        Args:
            images: float (N, 3, H, W), normalized.
        """
        return self.stages(images)[-1]

    def convolutions(self) -> list[nn.Conv2d]:
        """Return the convolutions, shallow to deep."""
        return [module for module in self.features if isinstance(module, nn.Conv2d)]

    def shallow_modules(self, num_stages: int) -> list[nn.Module]:
        """Return the modules that make the first `num_stages` of the five feature maps (0 to 5)."""
        return list(self.features[: self._ends[num_stages - 1]]) if num_stages else []

    def activation_places(self, num_stages: int) -> list[tuple[int, int]]:
        """Return index in `features` and channels of every ReLU of the LAST `num_stages` stages (0 to 5)."""
        first = self._ends[4 - num_stages] if num_stages < 5 else 0
        return [
            (index, before.out_channels)
            for index, before in enumerate(self.features, start=1)
            if index >= first and isinstance(before, nn.Conv2d)
        ]
