"""ResNet-38, the wide and shallow residual network of AffinityNet and SC-CAM, at output stride 8.

Parameter names are those of the official programs. ImageNet weights come from `python -m data_prep.resnet38_mxnet`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.nets.base import Backbone


class ResBlock(nn.Module):
    """Pre-activated block of two 3x3 convolutions: y = shortcut + conv_2b1(ReLU(BN(conv_2a(p)))), p = ReLU(BN(x)).

    The shortcut is x where the shapes agree; otherwise a 1x1 convolution of p, not of x.

    Args:
        in_channels, mid_channels, out_channels: of x, between the convolutions, and of y.
        stride: of the first convolution and of the shortcut.
        first_dilation, dilation: of the two convolutions; padding equals dilation.

    Source: Wu, Shen, van den Hengel, "Wider or Deeper", as AffinityNet's program has it.
    Explained in notebook 60, section "The network".
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        stride: int = 1,
        first_dilation: int | None = None,
        dilation: int = 1,
    ):
        super().__init__()
        first = dilation if first_dilation is None else first_dilation
        self.bn_branch2a = nn.BatchNorm2d(in_channels)
        self.conv_branch2a = nn.Conv2d(in_channels, mid_channels, 3, stride, padding=first, dilation=first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(mid_channels)
        self.conv_branch2b1 = nn.Conv2d(mid_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        if stride != 1 or in_channels != out_channels:
            self.conv_branch1 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor, preactivated: Tensor | None = None) -> Tensor:
        """Return y of x.

        Args:
            x: (N, in_channels, H, W).
            preactivated: p, if already known.
        """
        p = self.preactivate(x) if preactivated is None else preactivated
        y = self.conv_branch2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(p))))
        return (self.conv_branch1(p) if hasattr(self, "conv_branch1") else x) + y

    def preactivate(self, x: Tensor) -> Tensor:
        """Return p = ReLU(BN(x)), which AffinityNet reads where blocks 5 and 6 begin."""
        return F.relu(self.bn_branch2a(x))


class BottleneckBlock(nn.Module):
    """Pre-activated block of a 1x1, a dilated 3x3 and a 1x1 convolution with channel dropout; its shortcut is always a 1x1.

    Args:
        in_channels, out_channels: of x and y; between the convolutions out/4, then out/2.
        dilation: of the 3x3 convolution.
        dropout: fraction of the channels that training sets to 0, before the second and the third convolution.

    Source: as `ResBlock`. Explained in notebook 60, section "The network".
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int, dropout: float):
        super().__init__()
        quarter, half = out_channels // 4, out_channels // 2
        self.bn_branch2a = nn.BatchNorm2d(in_channels)
        self.conv_branch2a = nn.Conv2d(in_channels, quarter, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.conv_branch2b1 = nn.Conv2d(quarter, half, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.conv_branch2b2 = nn.Conv2d(half, out_channels, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor, preactivated: Tensor | None = None) -> Tensor:
        """Return y of x.

        Args:
            x: (N, in_channels, H, W).
            preactivated: p, if already known.
        """
        p = self.preactivate(x) if preactivated is None else preactivated
        y = self.conv_branch2b1(self.dropout(F.relu(self.bn_branch2b1(self.conv_branch2a(p)))))
        y = self.conv_branch2b2(self.dropout(F.relu(self.bn_branch2b2(y))))
        return self.conv_branch1(p) + y

    def preactivate(self, x: Tensor) -> Tensor:
        """Return p = ReLU(BN(x))."""
        return F.relu(self.bn_branch2a(x))


class ResNet38(Backbone):
    """The trunk: conv1a, blocks b2 to b7, bn7 and ReLU; a side of n pixels gives ceil(n / 8) positions.

    Args:
        width: channels of the first convolution; 64 in the published network, whose deepest map has 64 times as many.

    Source: AffinityNet (Ahn and Kwak, CVPR 2018) and SC-CAM (Chang et al., CVPR 2020).
    Explained in notebook 60, section "The network".

    >>> net = ResNet38(width=2)
    >>> net.channels, net.strides
    ((4, 8, 16, 32, 128), (4, 4, 8, 8, 8))
    """

    feature_scale = map_power = 1.0

    def __init__(self, width: int = 64):
        super().__init__()
        w2, w3, w4, w5, w6, w7 = (width * factor for factor in (2, 4, 8, 16, 32, 64))
        self.conv1a = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.b2 = ResBlock(width, w2, w2, stride=2)
        self.b2_1, self.b2_2 = (ResBlock(w2, w2, w2) for _ in range(2))
        self.b3 = ResBlock(w2, w3, w3, stride=2)
        self.b3_1, self.b3_2 = (ResBlock(w3, w3, w3) for _ in range(2))
        self.b4 = ResBlock(w3, w4, w4, stride=2)
        self.b4_1, self.b4_2, self.b4_3, self.b4_4, self.b4_5 = (ResBlock(w4, w4, w4) for _ in range(5))
        self.b5 = ResBlock(w4, w4, w5, first_dilation=1, dilation=2)
        self.b5_1, self.b5_2 = (ResBlock(w5, w4, w5, dilation=2) for _ in range(2))
        self.b6 = BottleneckBlock(w5, w6, dilation=4, dropout=0.3)
        self.b7 = BottleneckBlock(w6, w7, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(w7)
        self.channels, self.strides = (w2, w3, w4, w5, w7), (4, 4, 8, 8, 8)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return five maps: the outputs of b2 (pooled to stride 4) and b3, then conv4, conv5 and conv6 of AffinityNet.

        conv4 and conv5 are the pre-activated tensors that b5 and b6 begin with; conv6 is ReLU(bn7(b7)).
        """
        x = self.b2_2(self.b2_1(self.b2(self.conv1a(images))))  # stride 2
        pooled = F.avg_pool2d(x, 2, ceil_mode=True)
        x = third = self.b3_2(self.b3_1(self.b3(x)))  # stride 4
        for block in (self.b4, self.b4_1, self.b4_2, self.b4_3, self.b4_4, self.b4_5):
            x = block(x)  # stride 8 from here on
        conv4 = self.b5.preactivate(x)
        x = self.b5_2(self.b5_1(self.b5(x, conv4)))
        conv5 = self.b6.preactivate(x)
        conv6 = F.relu(self.bn7(self.b7(self.b6(x, conv5))))
        return [pooled, third, conv4, conv5, conv6]

    def forward(self, images: Tensor) -> Tensor:
        """Return conv6: (N, 64 width, ceil(H/8), ceil(W/8)), all >= 0."""
        return self.stages(images)[-1]

    def shallow_modules(self, num_stages: int) -> list[nn.Module]:
        """Return the modules that make the first `num_stages` of the five maps (published: 1 is not trained)."""
        names = (("conv1a", "b2"), ("b3",), ("b4",), ("b5",), ("b6", "b7", "bn7"))
        wanted = [name for group in names[:num_stages] for name in group]
        return [module for name, module in self.named_children() if name.split("_")[0] in wanted]
