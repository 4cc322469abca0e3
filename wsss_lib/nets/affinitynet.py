"""AffinityNet: features in which neighbouring pixels of one class lie close together."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.nets.backbone import freeze_batch_norm
from wsss_lib.nets.vgg16_largefov import VGG16LargeFOV

WIDTHS = (64, 128, 256)  # f8_3, f8_4, f8_5; together the 448 channels of the released weights (the paper has 896)
GROUPS = (8, 16, 32)


class AffinityHead(nn.Module):
    """Three 1x1 convolutions side by side, one over all of them: f = ELU(W9 [ELU(W3 c4), ELU(W4 c5), ELU(W5 c6)]).

    Args:
        channels: of the three maps.
        widths: channels that each is reduced to.
        groups: of the group normalisations before the first three ELUs (published for VGG-16); None: there are none
            (published for ResNet-38).

    Source: AffinityNet (Ahn and Kwak, CVPR 2018), section 3.2; names and widths as in its program.
    Explained in notebook 75, section "The network".

    >>> AffinityHead((6, 9, 14))([torch.zeros(1, channels, 5, 7) for channels in (6, 9, 14)]).shape
    torch.Size([1, 448, 5, 7])
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int] = WIDTHS, groups: Sequence[int] | None = None):
        super().__init__()
        for level, (inside, outside) in enumerate(zip(channels, widths, strict=True), start=3):
            convolution = nn.Conv2d(inside, outside, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight)
            self.add_module(f"f8_{level}", convolution)
            if groups:
                self.add_module(f"gn8_{level}", nn.GroupNorm(groups[level - 3], outside))
        self.f9 = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        self.group_norm = groups is not None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the features f of three maps.

        Args:
            maps: three tensors (N, channels[i], h, w).

        Returns:
            (N, sum(widths), h, w).
        """
        reduced = []
        for level, x in enumerate(maps, start=3):
            x = getattr(self, f"f8_{level}")(x)
            reduced.append(F.elu(getattr(self, f"gn8_{level}")(x) if self.group_norm else x))
        return F.elu(self.f9(torch.cat(reduced, dim=1)))


class AffinityNet(nn.Module):
    """A backbone that is trained along (batch normalisation frozen) and the head over its three deepest kinds of maps.

    The published networks have all three maps at stride 8. For other backbones the first of them is the deepest of the
    shallow three that is as fine as the grid, and the two deeper ones are enlarged to it.

    Args:
        backbone: of `wsss_lib.nets.backbone`; VGG-16 gets fc6 with dilation 4.
        stride: of the grid on which pixels are compared; 8 in the paper.
        group_norm: group normalisation in the head; published for VGG-16, not for ResNet-38.

    Raises:
        ValueError: the backbone has no map as fine as the grid.

    Source: AffinityNet (Ahn and Kwak, CVPR 2018), section 3.2.
    Explained in notebook 75, section "The network".
    """

    def __init__(self, backbone: nn.Module, stride: int = 8, group_norm: bool = False):
        super().__init__()
        if isinstance(backbone, VGG16LargeFOV):
            backbone.dilate_fc6(4)
        fine = [level for level in (0, 1, 2) if backbone.strides[level] <= stride]
        if not fine:
            raise ValueError(f"the affinity grid has stride {stride}, but the backbone's maps have {backbone.strides}")
        self.levels = (fine[-1], 3, 4)
        self.stride = stride
        self.backbone = freeze_batch_norm(backbone, affine=True)
        self.head = AffinityHead([backbone.channels[level] for level in self.levels], groups=GROUPS if group_norm else None)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features f of normalised images.

        Args:
            images: (N, 3, H, W).

        Returns:
            (N, 448, ceil(H/stride), ceil(W/stride)).
        """
        maps = self.backbone.stages(images)
        size = [-(-side // self.stride) for side in images.shape[-2:]]
        return self.head([_enlarged(maps[level], size) for level in self.levels])

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict]:
        """Return SGD's groups as published: new convolutions ten times the rate, biases twice and without decay.

        Args:
            learning_rate: of the backbone's weights.
            weight_decay: of all weights.
        """
        groups = {(1, True): [], (2, False): [], (10, True): []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                new = name.startswith("head.f")
                bias = name.endswith("bias")
                groups[10 if new else 2 if bias else 1, not bias].append(parameter)
        return [{"params": parameters, "lr": factor * learning_rate, "weight_decay": weight_decay * decays}
                for (factor, decays), parameters in groups.items() if parameters]


def _enlarged(maps: Tensor, size: list[int]) -> Tensor:
    if list(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
