"""VGG-16 as DeepLab-LargeFOV reduced it (20 million parameters): the smaller of AffinityNet's two backbones.

Parameter names are those of the official program.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.nets.base import Backbone

LAYERS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of conv1 to conv5


class VGG16LargeFOV(Backbone):
    """VGG-16 at output stride 8: the fourth pooling keeps the resolution, conv5 is dilated, fc6 and fc7 are convolutions.

    Takes RGB images with the mean subtracted, values in 0..255 (`normalization_of`); they become Caffe's BGR order inside.

    Args:
        width: channels of the first convolution; 64 in the published network.

    Source: AffinityNet (Ahn and Kwak, CVPR 2018), VGG-16 version. Explained in notebook 75, section "The network".

    >>> VGG16LargeFOV(width=2).channels
    (4, 8, 16, 16, 32)
    """

    feature_scale = 1.0
    map_power = 0.5  # the published maps of this classifier are sqrt(ReLU(W f))
    strides = (4, 4, 8, 8, 8)

    def __init__(self, width: int = 64):
        super().__init__()
        in_channels = 3
        for level, (channels, count) in enumerate(LAYERS, start=1):
            out_channels, dilation = channels * width // 64, 2 if level == 5 else 1
            for number in range(1, count + 1):
                setattr(
                    self, f"conv{level}_{number}", nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
                )
                in_channels = out_channels
        self.fc6 = nn.Conv2d(in_channels, 16 * width, 3, padding=1)
        self.fc7 = nn.Conv2d(16 * width, 16 * width, 1)
        self.dropout = nn.Dropout2d(0.5)
        self.channels = tuple(width * factor for factor in (2, 4, 8, 8, 16))

    def dilate_fc6(self, dilation: int) -> None:
        """Set the dilation of fc6: 1 for the classifier, 4 for AffinityNet; the weights are the same."""
        self.fc6.dilation = self.fc6.padding = (dilation, dilation)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return five maps: conv2 (pooled to stride 4), conv3, conv4, conv5 and fc7, each after its ReLU."""
        x, maps = images.flip(1), []  # RGB, as everywhere in this project, to BGR
        for level, (_, count) in enumerate(LAYERS, start=1):
            if level > 1:
                x = F.max_pool2d(x, 3, stride=2 if level < 5 else 1, padding=1)
            for number in range(1, count + 1):
                x = F.relu(getattr(self, f"conv{level}_{number}")(x))
            maps.append(x)
        x = F.relu(self.fc7(self.dropout(F.relu(self.fc6(x)))))
        return [F.avg_pool2d(maps[1], 2, ceil_mode=True), *maps[2:], x]

    def forward(self, images: Tensor) -> Tensor:
        """Return fc7 after its ReLU: (N, 16 width, about H/8, about W/8)."""
        return self.stages(images)[-1]

    def shallow_modules(self, num_stages: int) -> list[nn.Module]:
        """Return the modules that make the first `num_stages` of the five maps (published: 1 is not trained)."""
        names = (("conv1", "conv2"), ("conv3",), ("conv4",), ("conv5",), ("fc6", "fc7"))
        wanted = [name for group in names[:num_stages] for name in group]
        return [module for name, module in self.named_children() if name.split("_")[0] in wanted]
