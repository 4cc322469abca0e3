"""Class activation maps (Zhou et al., CVPR 2016) with the classifier of IRN (Ahn, Cho, Kwak, CVPR 2019).

The classifier is a backbone, a 1x1 convolution without bias and a global average. Because both are linear, their order can
be exchanged, and the convolution's output before averaging shows where the evidence for a class lies: the CAM.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wsss_lib.data import transforms
from wsss_lib.nets.backbone import freeze_batch_norm


class ClassActivationNet(nn.Module):
    """A multi-label classifier whose last layer is a convolution.

    Args:
        backbone: from `wsss_lib.nets.backbone`.
        num_classes: foreground classes C.
        frozen_batch_norm: keep batch normalisation in inference form while training (needs a pre-trained backbone).
        frozen_stages: how many of the backbone's five stages are not trained (published: 3).

    Explained in notebook 10, section "The network".
    """

    def __init__(self, backbone: nn.Module, num_classes: int, frozen_batch_norm: bool = True, frozen_stages: int = 3):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[-1], num_classes, 1, bias=False)  # W
        if frozen_batch_norm:
            freeze_batch_norm(self.backbone)
        for module in backbone.shallow_modules(frozen_stages):
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits float32 (N, C) of normalised images float32 (N, 3, H, W)."""
        features = self.backbone(images)  # f: (N, D, h, w), at the backbone's stride
        return self.classifier(F.adaptive_avg_pool2d(features, 1)).flatten(1)

    def activation_maps(self, images: Tensor) -> Tensor:
        """Return the evidence for every class, ReLU(W f), not normalised: (N, C, h, w) at the backbone's stride.

        Of AffinityNet's VGG-16 (`map_power` of the backbone) it is the square root, as published.

        Args:
            images: float32 (N, 3, H, W), normalised.

        Source: Zhou et al., CVPR 2016, M_c(x, y) = sum_k w_k^c f_k(x, y), cut off below 0.
        Explained in notebook 10, section "One map in ten lines".
        """
        return F.relu(self.classifier(self.backbone(images))) ** self.backbone.map_power

    def parameter_groups(self, learning_rate: float, head_learning_rate: float, weight_decay: float) -> list[dict]:
        """Return SGD's two groups: what is trained of the backbone, and the classifier.

        Args:
            learning_rate: of the backbone.
            head_learning_rate: of the classifier (published: ten times the backbone's).
            weight_decay: of both.
        """
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        return [{"params": trained, "lr": learning_rate, "weight_decay": weight_decay},
                {"params": list(self.classifier.parameters()), "lr": head_learning_rate, "weight_decay": weight_decay}]


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the multi-label soft-margin loss, a mean over images and classes: {"loss": scalar}.

    Args:
        model: images to logits (N, C).
        batch: images float32 (N, 3, H, W), normalised; labels float32 (N, C), 0 or 1.

    Explained in notebook 10, section "Training on image-level labels".

    >>> round(classification_loss(nn.Identity(), (torch.zeros(1, 2), torch.ones(1, 2)))["loss"].item(), 4)  # ln 2
    0.6931
    """
    images, labels = batch
    return {"loss": F.multilabel_soft_margin_loss(model(images).float(), labels)}


def stride4_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size (h, w) of the stride-4 grid of an image: one cell for each 4x4 block, the last ones cut.

    Args:
        size: (H, W) of the image in pixels.

    Example:
        >>> stride4_size((375, 500))
        (94, 125)
    """
    return (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1


def merge_scales(maps: Sequence[Tensor], size: tuple[int, int], classes: Tensor, grid_stride: int = 1,
                 join: Callable[[Tensor, Tensor], Tensor] = torch.add) -> Tensor:
    """Add mirrored and unmirrored maps of all scales and divide every class by its maximum (IRN, section 5).

    Args:
        maps: for each scale a float tensor (2, C, h_s, w_s), >= 0: of the image and of its mirror image.
        size: (H, W) of the result: the stride-4 size for stored maps.
        classes: int64 (K,) the image's foreground classes, 0-based.
        grid_stride: the maps are resized to the area that a grid of this stride covers and cut to `size`. 1 (stored
            maps) resizes straight to `size`; the official full-resolution maps use 16.
        join: how the maps of image and mirror become one, before the scales are added (VWE: `torch.maximum`).

    Returns:
        float (K, H, W) in [0, 1].

    Explained in notebook 10, section "Several scales and a mirror".
    """
    covered = tuple((side - 1) // grid_stride * grid_stride + grid_stride for side in size)
    total = torch.zeros(len(classes), *size, dtype=maps[0].dtype, device=maps[0].device)
    for scale_maps in maps if len(classes) else ():  # an image without a class has no map; torch resizes no empty tensor
        chosen = scale_maps[:, classes.to(scale_maps.device)]
        both = join(chosen[0], chosen[1].flip(-1))  # (K, h_s, w_s)
        total += F.interpolate(both[None], size=covered, mode="bilinear", align_corners=False)[0, :, :size[0], :size[1]]
    return total / (total.amax((1, 2), keepdim=True) + 1e-5)


@torch.inference_mode()
def localization_maps(net: ClassActivationNet, images: Sequence[Image.Image], labels: np.ndarray, scales: Sequence[float],
                      mean: tuple, std: tuple,
                      join: Callable[[Tensor, Tensor], Tensor] = torch.add) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the stride-4 maps of a batch of photographs of equal size.

    Args:
        net: in evaluation mode.
        images: N RGB photographs of one size (H, W).
        labels: uint8 (N, C), the image-level labels; maps are made for the present classes only.
        scales: factors on the image's size.
        mean, std: of the normalisation, in 0..1.
        join: how image and mirror become one map, as in `merge_scales`.

    Returns:
        for each image: classes int64 (K,), 0-based; scores float32 (K, h, w) in [0, 1].

    Explained in notebook 10, section "Several scales and a mirror".
    """
    device = net.classifier.weight.device
    maps = []
    for scale in scales:
        arrays = [transforms.normalize(transforms.resize_image(image, scale), mean, std) for image in images]
        batch = torch.stack([transforms.to_tensor(array) for array in arrays]).to(device)  # (N, 3, H_s, W_s)
        maps.append(net.activation_maps(torch.cat([batch, batch.flip(-1)])).float())  # (2N, C, h_s, w_s)
    size = stride4_size(images[0].size[::-1])
    result = []
    for index in range(len(images)):
        classes = torch.from_numpy(np.flatnonzero(labels[index]))
        pairs = [scale_maps[[index, index + len(images)]] for scale_maps in maps]  # (2, C, h_s, w_s)
        result.append((classes.numpy(), merge_scales(pairs, size, classes, join=join).cpu().numpy()))
    return result


@torch.inference_mode()
def classification_scores(net: ClassActivationNet, images: Sequence[Image.Image], mean: tuple, std: tuple) -> np.ndarray:
    """Return the class probabilities of photographs at scale 1: float32 (N, C) in [0, 1].

    Args:
        net: in evaluation mode.
        images: N RGB photographs of one size.
        mean, std: of the normalisation, in 0..1.

    Explained in notebook 10, section "Score of the classifier".
    """
    device = net.classifier.weight.device
    batch = torch.stack([transforms.to_tensor(transforms.normalize(image, mean, std)) for image in images]).to(device)
    return torch.sigmoid(net(batch)).cpu().numpy()
