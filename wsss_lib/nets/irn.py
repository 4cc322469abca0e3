"""IRN's network: a frozen backbone, a boundary head and a displacement head over all five of its stages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MeanShift(nn.Module):
    """Subtract the average displacement, in evaluation mode only.

    Attributes:
        running_mean: float32 (2,), (dy, dx) in cells; a buffer that is set after training.

    Source: IRN, its program.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))

    def forward(self, displacement: Tensor) -> Tensor:
        """Return displacements float32 (N, 2, h, w) in cells, minus their average in evaluation mode."""
        if self.training:
            return displacement
        return displacement - self.running_mean.view(1, 2, 1, 1)


class IRN(nn.Module):
    """Inter-pixel relation network: class boundaries and displacements towards the object's centre.

    The backbone is frozen: no gradient enters it and its batch normalisations stay in inference form.
    Names of parameters are those of the official program, those of the backbone prefixed with `backbone.`.

    Args:
        backbone: has `channels` and `strides` (five integers each) and `stages(images)`, which returns five maps
            (N, channels[i], about H/strides[i], about W/strides[i]); the first two strides are equal.
        displacement_width: channels of the displacement head, a multiple of 32; 256 in the paper's program. This head
            takes most of a training step beside a small backbone, and semantic masks do not need it.

    Raises:
        ValueError: a displacement width that is not a positive multiple of 32.

    Source: IRN (Ahn, Cho, Kwak, CVPR 2019), network architecture; layers and group sizes as in its program.
    Explained in notebook 80, section "The network".
    """

    def __init__(self, backbone: nn.Module, displacement_width: int = 256):
        super().__init__()
        width = displacement_width
        if width < 32 or width % 32:
            raise ValueError(f"displacement_width must be a positive multiple of 32 (group normalisation), not {width}.")
        self.backbone = backbone.requires_grad_(False)
        c1, c2, c3, c4, c5 = backbone.channels
        _, s2, s3, s4, s5 = backbone.strides
        self.fc_edge1 = _block(c1, 32, groups=4)
        self.fc_edge2 = _block(c2, 32, groups=4)
        self.fc_edge3 = _block(c3, 32, groups=4, upsample=s3 // s2)
        self.fc_edge4 = _block(c4, 32, groups=4, upsample=s4 // s2)
        self.fc_edge5 = _block(c5, 32, groups=4, upsample=s5 // s2)
        self.fc_edge6 = nn.Conv2d(5 * 32, 1, 1)
        self.fc_dp1 = _block(c1, width // 4, groups=8)
        self.fc_dp2 = _block(c2, width // 2, groups=16)
        self.fc_dp3 = _block(c3, width, groups=16)
        self.fc_dp4 = _block(c4, width, groups=16, upsample=s4 // s3)
        self.fc_dp5 = _block(c5, width, groups=16, upsample=s5 // s3)
        self.fc_dp6 = _block(3 * width, width, groups=16, upsample=s3 // s2)
        self.fc_dp7 = nn.Sequential(
            *_block(width // 4 + width // 2 + width, width, groups=16), nn.Conv2d(width, 2, 1, bias=False)
        )
        self.mean_shift = MeanShift()

    def train(self, mode: bool = True) -> "IRN":
        """Return the network itself in training or (mode false) evaluation mode; its backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def edge_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the boundary head (published learning rate 0.1)."""
        return [value for name, value in self.named_parameters() if name.startswith("fc_edge")]

    def displacement_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the displacement head (published learning rate 1)."""
        return [value for name, value in self.named_parameters() if name.startswith("fc_dp")]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boundary logits and displacements.

        Args:
            images: (N, 3, H, W), normalised for the backbone.

        Returns:
            edge_logit (N, 1, H/4, W/4): its sigmoid is the boundary probability; and displacement (N, 2, H/4, W/4):
            (dy, dx) in cells of the map, minus its average in evaluation mode.
        """
        with torch.no_grad():
            x1, x2, x3, x4, x5 = self.backbone.stages(images)

        edge1 = self.fc_edge1(x1)
        edge2 = self.fc_edge2(x2)
        edge3 = _cut(self.fc_edge3(x3), x2)
        edge4 = _cut(self.fc_edge4(x4), x2)
        edge5 = _cut(self.fc_edge5(x5), x2)
        edge_logit = self.fc_edge6(torch.cat([edge1, edge2, edge3, edge4, edge5], dim=1))

        dp1 = self.fc_dp1(x1)
        dp2 = self.fc_dp2(x2)
        dp3 = self.fc_dp3(x3)
        dp4 = _cut(self.fc_dp4(x4), x3)
        dp5 = _cut(self.fc_dp5(x5), x3)
        dp6 = _cut(self.fc_dp6(torch.cat([dp3, dp4, dp5], dim=1)), x2)
        displacement = self.mean_shift(self.fc_dp7(torch.cat([dp1, dp2, dp6], dim=1)))
        return edge_logit, displacement

    @torch.no_grad()
    def predict(self, image: Tensor, pad_to: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the boundary map of image and mirror image averaged, and the displacements of the image.

        The padded area takes part in the group normalisation, so the result depends on it; the official program pads
        VOC images to 512 x 512. No part of a larger image is ever cut off: that side is then padded to a multiple of 16.

        Args:
            image: (3, H, W), normalised for the backbone, on the device of the network, which is in evaluation mode.
            pad_to: pad right and bottom with zeros to this side length; None: to the next multiple of 16.

        Returns:
            edge (h, w) in [0, 1], sigmoid of the averaged logits; displacement (2, h, w), (dy, dx) in cells;
            h = (H-1)//4+1, w = (W-1)//4+1.

        Raises:
            ValueError: the image is not (3, H, W), or the network is in training mode.

        Source: IRN, inference of its program.
        Explained in notebook 80, section "The network".
        """
        if image.dim() != 3:
            raise ValueError(f"predict takes one image (3, H, W), but got the shape {tuple(image.shape)}.")
        if self.training:
            raise ValueError("predict needs evaluation mode: call eval() on the network first.")
        height, width = image.shape[1:]
        full_height, full_width = (pad_to if pad_to and pad_to >= side else -(-side // 16) * 16 for side in (height, width))
        pair = torch.stack([image, image.flip(-1)])
        pair = F.pad(pair, (0, full_width - width, 0, full_height - height))
        edge_logit, displacement = self(pair)
        h, w = (height - 1) // 4 + 1, (width - 1) // 4 + 1
        edge_logit, displacement = edge_logit[..., :h, :w], displacement[..., :h, :w]
        edge = torch.sigmoid((edge_logit[0, 0] + edge_logit[1, 0].flip(-1)) / 2)
        return edge, displacement[0]


def _block(in_channels: int, out_channels: int, groups: int, upsample: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.GroupNorm(groups, out_channels)]
    if upsample > 1:
        layers.append(nn.Upsample(scale_factor=upsample, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def _cut(maps: Tensor, like: Tensor) -> Tensor:
    return maps[..., : like.shape[2], : like.shape[3]]
