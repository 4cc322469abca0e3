"""DeepLab-v2: dilated backbone, atrous spatial pyramid pooling, three scales with their maximum, losses, solver groups.

Source: Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
Connected CRFs", and the conventions of the weakly-supervised papers that train it on pseudo-masks.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.core.distributed import all_reduce_mean
from wsss_lib.core.files import IGNORE
from wsss_lib.nets.backbone import Backbone, freeze_batch_norm


class ASPPV2(nn.Module):
    """Sum of 3x3 convolutions with different dilations: z = sum over r of Conv3x3_r(f), each with a bias.

    Every branch is a classifier of its own; there is no batch normalization, no ReLU and no pooled branch.

    Args:
        in_channels: channels of the features f.
        num_classes: K, background included.
        rates: the dilations r; branch i is the parameter `c<i>`.

    Explained in notebook 90, section "Atrous spatial pyramid pooling".

    >>> ASPPV2(8, 3)(torch.zeros(1, 8, 5, 7)).shape
    torch.Size([1, 3, 5, 7])
    """

    c0: nn.Conv2d

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int] = (6, 12, 18, 24)):
        super().__init__()
        for number, rate in enumerate(rates):
            branch = nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate)
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.get_parameter("bias"))
            self.add_module(f"c{number}", branch)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits float32 (N, K, h, w) of features float32 (N, in_channels, h, w)."""
        return sum(branch(features) for branch in self.children())  # (N, K, h, w)


class DeepLabV2(nn.Module):
    """DeepLab-v2 at one scale: backbone and ASPP, logits at the backbone's stride.

    Batch normalization is frozen, both statistics and affine parameters, now and after every `train()`.

    Args:
        backbone: a network of `wsss_lib.nets.backbone`, normally with output stride 8.
        num_classes: K, background included.
        rates: dilations of the ASPP branches.

    Explained in notebook 90, section "The network".
    """

    def __init__(self, backbone: Backbone, num_classes: int, rates: Sequence[int] = (6, 12, 18, 24)):
        super().__init__()
        self.backbone = freeze_batch_norm(backbone, affine=True)
        self.aspp = ASPPV2(backbone.channels[-1], num_classes, rates)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits float32 (N, K, about H / stride, about W / stride) of normalized images float32 (N, 3, H, W)."""
        return self.aspp(self.backbone.feature_scale * self.backbone(images))


def multi_scale_logits(net: nn.Module, images: Tensor, scales: Sequence[float] = (0.5, 0.75)) -> list[Tensor]:
    """Run a network at several scales and fuse by the maximum (MSC).

    z_p = net(images resized by p); z_max = max(z_1, z_p resized to the size of z_1, ...). All resizing is bilinear with
    align_corners=False. Training puts a loss on every entry, evaluation uses the last.

    Args:
        images: (N, 3, H, W).
        scales: the factors p besides 1.

    Returns:
        [z_1, z_p for each p at ITS OWN size, z_max at the size of z_1].

    Source: DeepLab, multi-scale inputs. Explained in notebook 90, section "Three scales".
    """
    full = net(images)
    logits, fused = [full], full
    for scale in scales:
        # scale_factor, not size: coordinates are then mapped with p itself, which differs where p * H is not an integer
        room = [max(0, math.ceil(1 / scale) - side) for side in images.shape[-2:]]  # at least one pixel must remain
        filled = F.pad(images, (0, room[1], 0, room[0]), mode="replicate") if any(room) else images
        small = F.interpolate(filled, scale_factor=scale, mode="bilinear", align_corners=False)
        logits.append(net(small))
        fused = torch.maximum(fused, F.interpolate(logits[-1], size=full.shape[-2:], mode="bilinear", align_corners=False))
    return [*logits, fused]


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize label maps by nearest neighbor with pixel centers: source = floor((i + 0.5) * H / h).

    Args:
        labels: (N, H, W) integers.
        size: (h, w) wanted.

    Returns:
        (N, h, w) of the same type; no new value appears. If H is even, a center can fall exactly between two pixels;
        libraries then differ. With the odd crops of DeepLab (321, 481) that cannot happen.

    Source: DeepLab-v2, labels at the size of each logit map. Explained in notebook 90, section "The loss".

    >>> resize_labels(torch.arange(6).reshape(1, 1, 6), (1, 3))
    tensor([[[1, 3, 5]]])
    """
    # float32 holds every label exactly
    resized = F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest-exact")  # (N, 1, h, w)
    return resized[:, 0].to(labels.dtype)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that are not 255 (0 if there are none).

    Args:
        logits: (N, K, h, w).
        labels: (N, h, w) integers, 0..K-1 or 255.

    Source: DeepLab. Explained in notebook 90, section "The loss".
    """
    pixel_loss = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none")  # (N, h, w), 0 at 255
    return pixel_loss.sum() / all_reduce_mean((labels != IGNORE).sum()).clamp(min=1)


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Half the mean cross-entropy over background pixels plus half the mean over object pixels.

    Both means run over the whole batch; 255 counts in neither. An absent kind of pixel contributes 0.

    Args:
        logits: (N, K, h, w).
        labels: (N, h, w) integers, 0..K-1 or 255.

    Source: the balanced loss of DSRG, as AdvCAM, RIB and AMN use it. Explained in notebook 90, section "The loss".
    """
    pixel_loss = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none")  # (N, h, w), 0 at 255
    background = labels == 0
    foreground = (labels != 0) & (labels != IGNORE)
    means = [(pixel_loss * kind).sum() / all_reduce_mean(kind.sum()).clamp(min=1) for kind in (background, foreground)]
    return 0.5 * (means[0] + means[1])


def self_labels(logits: Tensor, image_labels: Tensor) -> Tensor:
    """Return for each pixel the network's best class among those of the image-level label: q = arg-max_k (z_k y_k).

    An absent class has the value 0, not minus infinity: where all present logits are negative, the first absent class is
    chosen, as in the official code.

    Args:
        logits: z, (N, K, h, w).
        image_labels: y, (N, K) of 0 and 1; background (index 0) is 1.

    Returns:
        (N, h, w) int64.

    Source: DRS, official DeepLab-v2 training. Explained in notebook 90, section "The loss".

    >>> z = torch.tensor([[1.0, 5.0, 2.0], [-1.0, 5.0, -2.0]]).view(2, 3, 1, 1)
    >>> self_labels(z, torch.tensor([[1.0, 0.0, 1.0]] * 2)).flatten().tolist()
    [2, 1]
    """
    return (logits.detach() * image_labels[..., None, None]).argmax(1)


def self_label_loss(logits: Tensor, labels: Tensor, image_labels: Tensor) -> Tensor:
    """Cross-entropy against the mask plus cross-entropy against the network's own labels (`self_labels`).

    Args:
        logits: (N, K, h, w).
        labels: (N, h, w) integers, 0..K-1 or 255.
        image_labels: (N, K) of 0 and 1, with background.

    Source: DRS, official DeepLab-v2 training. Explained in notebook 90, section "The loss".
    """
    return cross_entropy(logits, labels) + cross_entropy(logits, self_labels(logits, image_labels))


def multi_scale_loss(
    logits: Sequence[Tensor], labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
) -> Tensor:
    """SUM of the loss over all logit maps, the labels resized to each.

    With gradient accumulation, divide by the number of accumulated batches.

    Args:
        logits: result of `multi_scale_logits`.
        labels: (N, H, W) integers, 0..K-1 or 255.
        loss: `cross_entropy` or `balanced_cross_entropy`.

    Source: DeepLab-v2, a loss on each scale and on their maximum. Explained in notebook 90, section "The loss".
    """
    return reduce(torch.add, (loss(z, resize_labels(labels, z.shape[-2:])) for z in logits))


def parameter_groups(net: DeepLabV2, base_lr: float = 2.5e-4, weight_decay: float = 5e-4) -> list[dict]:
    """Split the parameters into the three groups of the DeepLab-v2 solver.

    Backbone convolutions: 1x the rate; ASPP weights: 10x; ASPP biases: 20x without weight decay. The frozen affine
    parameters of batch normalization are in no group.

    Returns:
        Three dicts `params`, `lr`, `weight_decay`, for `torch.optim.SGD(groups, momentum=0.9)`.

    Source: DeepLab-v2's solver. Explained in notebook 90, section "The schedule".
    """
    backbone = [parameter for parameter in net.backbone.parameters() if parameter.requires_grad]
    weights = [branch.weight for branch in net.aspp.children()]
    biases = [branch.bias for branch in net.aspp.children()]
    return [
        {"params": backbone, "lr": base_lr, "weight_decay": weight_decay},
        {"params": weights, "lr": 10 * base_lr, "weight_decay": weight_decay},
        {"params": biases, "lr": 20 * base_lr, "weight_decay": 0.0},
    ]
