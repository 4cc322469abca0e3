"""Batch normalizations become part of the convolutions before them: the same function with less work, for inference only."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from wsss_lib.nets.base import Network


def folded(net: Network) -> Network:
    """Return a copy of a network in evaluation mode whose batch normalizations are folded into their convolutions.

    Only a batch normalization that stands right after its convolution among the children of a block is folded: all of a
    ResNet's and of EfficientNet's, and of ResNet-38 those inside a block. Its outputs differ by float32's rounding alone.
    Its channels lie last in memory, which convolutions on a CPU like better, and its 1x1 convolutions take torch's fast way.

    >>> block = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    >>> [type(module).__name__ for module in folded(block)]
    ['Conv2d', 'Identity']
    """
    net = copy.deepcopy(net).eval()
    for block in list(net.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(block.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(block, conv_name, fuse_conv_bn_eval(conv, norm))
                # timm's batch normalization is followed by an activation of its own
                setattr(block, norm_name, getattr(norm, "act", nn.Identity()))
    return fast_1x1(net).to(memory_format=torch.channels_last)


def fast_1x1(net: Network) -> Network:
    """Let 1x1 convolutions on a CPU take torch's fast way, oneDNN's, and return the same network.

    On one thread torch takes another, a tenth of a ResNet-50's time slower, for less than 16 views, but not if a convolution
    is dilated; and dilation changes nothing in a kernel of one pixel. Results differ by float32's rounding alone.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.weight.device.type == "cpu":
            module.dilation = (2, 2)
    return net
