"""From the maps of several scales to one map, at stride 4 or at the size of the image.

Published thresholds belong to maps merged at the size of the image. A random walk would be too large there and takes maps
merged at stride 4. Both come from the same small maps of the single scales.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Views(NamedTuple):
    """The maps of one image at each scale, not yet added: what its full-size maps are made of."""

    scales: list[Tensor]  # each float (K, h_s, w_s), >= 0
    grid_stride: int  # of `merge_views`


def stride4_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) = (H - 1) // 4 + 1 and likewise: the size of stored localization maps.

    Args:
        size: (H, W) of the image in pixels.

    >>> stride4_size((375, 500))
    (94, 125)
    """
    return (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1


def join_flips(maps: Sequence[Tensor], classes: Tensor, join: Callable[[Tensor, Tensor], Tensor] = torch.add) -> list[Tensor]:
    """Return, for each scale, one map per class from those of the image and of its horizontal flip: float (K, h_s, w_s).

    Args:
        maps: for each scale a float tensor (2, C, h_s, w_s), >= 0.
        classes: int64 (K,) the image's foreground classes, 0-based.
        join: how two maps become one (VWE: `torch.maximum`).
    """
    chosen = [scale_maps[:, classes.to(scale_maps.device)] for scale_maps in maps]
    return [join(pair[0], pair[1].flip(-1)) for pair in chosen]


def merge_views(views: Sequence[Tensor], size: tuple[int, int], grid_stride: int = 1) -> Tensor:
    """Add the maps of all scales at one size and divide every class by its maximum (IRN, section 5).

    Args:
        views: for each scale float (K, h_s, w_s), >= 0.
        size: (H, W) of the result: the stride-4 size, or that of the image.
        grid_stride: the maps are resized to the area that a grid of this stride covers and cropped to `size`. 1 resizes
            straight to `size`; IRN's and RIB's full-size maps use 16, the stride of their network.

    Returns:
        float (K, H, W) in [0, 1].

    Explained in notebook 70, section "Thresholds".

    >>> merge_views([torch.ones(1, 2, 2), torch.ones(1, 1, 1)], (20, 30), grid_stride=16).shape
    torch.Size([1, 20, 30])
    """
    covered = tuple((side - 1) // grid_stride * grid_stride + grid_stride for side in size)
    total = torch.zeros(len(views[0]), *size, dtype=views[0].dtype, device=views[0].device)
    for view in views if len(total) else ():  # an image without a class has no map; torch cannot resize an empty tensor
        total += F.interpolate(view[None], size=covered, mode="bilinear", align_corners=False)[0, :, : size[0], : size[1]]
    return total / (total.amax((1, 2), keepdim=True) + 1e-5)


def upsample_scores(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsample stored localization maps (stride 4) to the size of their image.

    Bilinear times 4 with `align_corners=False`, cropped to (H, W) at the top left.

    Args:
        scores: (K, h, w) float, h = (H - 1) // 4 + 1 and w likewise; K may be 0.
        size: (H, W) of the image.

    Returns:
        (K, H, W) float32.

    Raises:
        ValueError: the maps do not belong to an image of this size.

    Source: IRN, make_sem_seg_labels: u = bilinear x4 of v, cut. Explained in notebook 70, section "Thresholds".

    >>> upsample_scores(np.ones((1, 2, 2), np.float16), (5, 8)).shape
    (1, 5, 8)
    """
    height, width = (int(side) for side in size)
    expected = stride4_size((height, width))
    if scores.ndim != 3 or scores.shape[1:] != expected:
        raise ValueError(
            f"The maps have the shape {scores.shape}, an image of {height}x{width} pixels needs "
            f"(K, {expected[0]}, {expected[1]}): were they made from another version of the image?"
        )
    if scores.shape[0] == 0:
        return np.zeros((0, height, width), np.float32)
    maps = torch.from_numpy(np.asarray(scores, np.float32))[None]  # (1, K, h, w)
    maps = F.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)[0]  # (K, 4h, 4w)
    return maps[:, :height, :width].contiguous().numpy()


def full_size(scores: np.ndarray, size: tuple[int, int], full: Views | np.ndarray | None = None) -> np.ndarray:
    """Return an image's maps at its own size, as precisely as what is stored allows.

    Args:
        scores: (K, h, w) float at stride 4.
        size: (H, W) of the image.
        full: what is stored besides them: the maps of each scale, or full-size maps; None: nothing, so `scores` are
            upsampled.

    Returns:
        (K, H, W) float32.
    """
    if full is None:
        return upsample_scores(scores, size)
    if isinstance(full, Views):
        return merge_views(full.scales, size, full.grid_stride).cpu().numpy()
    return full
