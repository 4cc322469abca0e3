"""Fold batch normalization into the convolutions before it: the same function with less work, for inference only."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from wsss_lib.nets.base import Network


def folded(net: Network) -> Network:
    """Return a copy of a network in evaluation mode whose batch normalizations are folded into their convolutions.

    Batch normalization is folded only right after its convolution among the children of a block: all of a ResNet's and of
    EfficientNet's, and ResNet-38's inside a block. The copy's outputs differ only by float32 rounding. It uses the
    channels-last memory format, which suits convolutions on a CPU, and its 1x1 convolutions take torch's fast path.

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
    """Let 1x1 convolutions on a CPU take torch's fast path, oneDNN's, and return the same network.

    On one thread and for fewer than 16 views, torch takes another path, a tenth of a ResNet-50's time slower, unless a
    convolution is dilated. Dilation changes nothing in a one-pixel kernel. Results differ only by float32 rounding.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.weight.device.type == "cpu":
            module.dilation = (2, 2)
    return net
