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
    Its channels lie last in memory, which convolutions on a CPU like better.

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
    return net.to(memory_format=torch.channels_last)
