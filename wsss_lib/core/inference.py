"""Forward passes of inference that fit a GPU: bounded in pixels, not in images, as images and scales differ in size."""

from collections.abc import Callable

import torch
from torch import Tensor

# Pixels of one forward pass, as many as 32 crops of 512 x 512 have. ResNet-38, the largest network, takes 10 GiB for them.
FORWARD_PIXELS = 32 * 512 * 512
# On a CPU, as many as four images have: what is larger leaves the caches, and its memory is new pages each time.
CPU_PIXELS = 4 * 375 * 500


def views_at_once(views: Tensor) -> int:
    """Return how many of the views (N, 3, H, W) go through a network in one forward pass of inference, at least 1."""
    pixels = CPU_PIXELS if views.device.type == "cpu" else FORWARD_PIXELS
    return min(len(views), max(1, pixels // views[0, 0].numel()))


def forward_in_parts(run: Callable[..., Tensor], views: Tensor, *others: Tensor) -> Tensor:
    """Return `run(views, *others)`, computed in parts of a bounded number of pixels, halved while GPU memory is short.

    Args:
        run: a network, or a part of one; returns a tensor with a row for each view.
        views: (N, 3, H, W).
        others: further arguments with a row for each view.

    Raises:
        MemoryError: not even one view fits.
    """
    at_once, start, done = views_at_once(views), 0, []
    while start < len(views):
        part = [values[start : start + at_once] for values in (views, *others)]
        try:
            done.append(run(*part))
        except torch.OutOfMemoryError:
            if at_once == 1:
                height, width = views.shape[-2:]
                raise MemoryError(
                    f"an image of {width}x{height} pixels does not fit the GPU's memory; leave out the largest scale, make the "
                    "images smaller, or set device to 'cpu'"
                ) from None
            at_once //= 2
        else:
            start += at_once
    return torch.cat(done)
