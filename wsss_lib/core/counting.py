"""Counting what a stage costs before it is run: operations on meta tensors, seconds of a CRF, bytes on disk."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

PEAK, SUSTAINED = 156e12, 0.30  # TF32 matrix peak of an A100, and the fraction of it that is assumed to be reached
CRF_SECONDS = 1.0  # of one core, for ten steps over three labels of 500x375 pixels; other sizes in proportion
CRF_SHARED = 1 / 3  # of them, which are spent once on a image, however many of its label maps are refined together
WALK_SECONDS = 0.1  # of one core, for one image of that size
MAPS_KIB, MASK_KIB = 40, 6  # on disk, an image of that size


@dataclass(frozen=True)
class Images:
    """Numbers of images and the usual size (H, W) of a data set."""

    train: int
    val: int
    classes: int
    size: tuple[int, int]

    @property
    def pixels(self) -> float:
        """Pixels of an image, as multiples of 500x375."""
        return self.size[0] * self.size[1] / (375 * 500)

    @property
    def maps_mib(self) -> float:
        """Class activation maps of the training images on disk."""
        return self.train * MAPS_KIB * self.pixels / 1024

    @property
    def masks_mib(self) -> float:
        """One mask of each training image on disk."""
        return self.train * MASK_KIB * self.pixels / 1024

    def crf_seconds(self, label_maps: int = 1) -> float:
        """Seconds of one core for the CRFs of several label maps of one image."""
        return CRF_SECONDS * self.pixels * (CRF_SHARED + label_maps * (1 - CRF_SHARED))

    def seen(self, epochs: int, batch: int) -> int:
        """Images seen in a training."""
        return epochs * (self.train // batch) * batch


@dataclass(frozen=True)
class Cost:
    """Of one stage of one seed: operations on the GPU, seconds of CPU cores, bytes on the GPU, MiB on disk.

    Memory is that of weights, gradients, momentum and of what backpropagation keeps, in half precision where training runs so;
    the allocator and the libraries take more.
    """

    stage: str
    flops: float = 0.0
    core_seconds: float = 0.0
    gpu_bytes: float = 0.0
    disk_mib: float = 0.0

    def gpu_hours(self) -> float:
        """Return the hours on one GPU at the assumed speed."""
        return self.flops / (PEAK * SUSTAINED) / 3600


def training_cost(stage: str, net: torch.nn.Module, run: Callable[[int], list[Tensor]], images: float, at_once: int) -> Cost:
    """Return the cost of a training, from one forward and backward pass of two images.

    Args:
        stage: its name.
        run: number of images to the outputs of the network.
        images: seen in the whole training.
        at_once: images on the device.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    net.train()
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.autograd.backward([output.sum() for output in run(2)])  # two: a batch normalization may see one value an image
    weights = sum(parameter.numel() for parameter in net.parameters()) * 4
    return Cost(
        stage,
        counter.get_total_flops() / 2 * images,
        gpu_bytes=sum(kept.values()) / 2 / 2 * at_once + 3 * weights,
        disk_mib=weights / 2**20,
    )


def inference_flops(run: Callable[[Tensor], object], size: tuple[int, int], scales: tuple[float, ...], views: int = 2) -> float:
    """Return the operations of one image at several scales; they grow with the pixels.

    Args:
        run: the network, on the meta device and in evaluation mode.
        size: (H, W) of the image.
        scales: factors on both sides.
        views: 2 with the flipped image.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(torch.empty(views, 3, *size, device="meta"))
    return counter.get_total_flops() * sum(scale**2 for scale in scales)


def crops(side: int) -> Callable[[int], Tensor]:
    """Return the function from a number of images to a batch of square crops on the meta device."""
    return lambda count: torch.empty(count, 3, side, side, device="meta")
