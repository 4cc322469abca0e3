"""Counting what a stage costs before it is run: operations and memory on meta tensors, seconds of a CRF, bytes on disk."""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from wsss_lib.core.inference import forward_in_parts
from wsss_lib.core.training import images_at_once
from wsss_lib.parameters import Settings

PEAK, SUSTAINED = 312e12, 0.30  # float16 matrix peak of an A100, and the fraction of it assumed to be reached
PEAK_FLOAT32 = 156e12  # of convolutions in float32, which torch computes in TF32
CRF_SECONDS = 0.2  # of one core, for ten steps over three labels of 500x375 pixels; other sizes in proportion
CRF_SHARED = 0.5  # of them, spent once per image, however many of its label maps are refined together
WALK_SECONDS = 0.1  # of one core, for one image of that size
MAPS_KIB, FULL_MAPS_KIB, MASK_KIB = 60, 400, 6  # on disk, per image of that size


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
    def full_maps_mib(self) -> float:
        """The same with full-size maps besides the stride-4 ones, as no smaller ones make them (AMN, DRS)."""
        return self.train * FULL_MAPS_KIB * self.pixels / 1024

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
    """Cost of one stage for one seed: operations on the GPU, seconds of CPU cores, bytes on the GPU, MiB on disk.

    The bytes on the GPU are the most that tensors hold at one time; the allocator and the libraries take more. `half`: the
    convolutions run in float16.
    """

    stage: str
    flops: float = 0.0
    core_seconds: float = 0.0
    gpu_bytes: float = 0.0
    disk_mib: float = 0.0
    half: bool = False

    def gpu_hours(self) -> float:
        """Return the hours on one GPU at the assumed speed."""
        return self.flops / ((PEAK if self.half else PEAK_FLOAT32) * SUSTAINED) / 3600


class Memory(TorchDispatchMode):
    """A context that counts the bytes of the meta tensors created in it.

    Attributes:
        now: bytes of those that are alive.
        peak: the most that ever were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            del self.alive[key]

        if key not in self.alive:
            self.alive[key] = weakref.ref(storage, gone)
            self.now += size
            self.peak = max(self.peak, self.now)


class MetaAutocast(TorchFunctionMode):
    """What `torch.autocast` to float16 does to a network on a GPU, for meta tensors, which it does not support."""

    HALF = {"conv2d", "linear", "matmul", "__matmul__", "bmm", "einsum"}
    FLOAT = {
        *("__pow__", "pow", "exp", "log", "log1p", "reciprocal", "softplus", "sum", "prod", "norm", "softmax", "log_softmax"),
        *("group_norm", "normalize", "cross_entropy", "nll_loss", "mse_loss", "l1_loss", "soft_margin_loss"),
    }

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function on arguments of the type that it takes on a GPU."""
        name = getattr(func, "__name__", "")
        wanted = torch.float16 if name in self.HALF else torch.float32 if name in self.FLOAT else None

        def cast(value: Any) -> Any:
            return value.to(wanted) if wanted and isinstance(value, Tensor) and value.is_floating_point() else value

        return func(*tree_map(cast, args), **tree_map(cast, kwargs or {}))


def training_cost(
    stage: str,
    net: torch.nn.Module,
    loss_of: Callable[[int], Tensor],
    images: float,
    batch_size: int,
    config: Settings,
    moments: int = 1,
) -> Cost:
    """Return the cost of a training, from one forward and backward pass of as many images as are on the device at once.

    Args:
        loss_of: number of images to the loss that is minimized.
        images: seen in the whole training.
        moments: numbers that the optimizer keeps for each weight: SGD 1, Adam 2.
    """
    at_once = images_at_once(batch_size, config)
    net.train()
    with FlopCounterMode(display=False) as counter, Memory() as memory:
        with MetaAutocast() if config.mixed_precision else nullcontext():
            loss = loss_of(at_once)
        loss.backward()
    trained = 4 * sum(parameter.numel() for parameter in net.parameters() if parameter.grad is not None)
    net.zero_grad()
    return Cost(
        stage,
        counter.get_total_flops() / at_once * images,
        gpu_bytes=memory.peak + _weights(net) + moments * trained,
        disk_mib=_weights(net) / 2**20,
        half=config.mixed_precision,
    )


def inference_cost(
    stage: str,
    net: torch.nn.Module,
    run: Callable[[Tensor], Tensor],
    images: float,
    size: tuple[int, int],
    scales: tuple[float, ...] = (1.0,),
    views: int = 2,
    at_once: int = 1,
    core_seconds: float = 0.0,
    disk_mib: float = 0.0,
) -> Cost:
    """Return the cost of inference in float32, from a batch at the largest scale; operations grow with the pixels.

    Args:
        run: the network, or the part that is run; views (N, 3, H, W) to a tensor with a row for each.
        size: (H, W) of the image.
        scales: factors on both sides.
        views: 2 with the flipped image.
        at_once: images in one batch.
        core_seconds, disk_mib: of the whole stage, as in `Cost`.
    """
    largest = max(scales)
    with FlopCounterMode(display=False) as counter, Memory() as memory, torch.no_grad():
        forward_in_parts(run, torch.empty(views * at_once, 3, *(round(side * largest) for side in size), device="meta"))
    flops = counter.get_total_flops() / at_once * sum((scale / largest) ** 2 for scale in scales)
    return Cost(stage, images * flops, core_seconds, memory.peak + _weights(net), disk_mib)


def _weights(net: torch.nn.Module) -> int:
    """Return the bytes of a network."""
    return sum(tensor.nbytes for tensor in net.state_dict().values())


def crops(side: int) -> Callable[[int], Tensor]:
    """Return the function from a number of images to a batch of square crops on the meta device."""
    return lambda count: torch.empty(count, 3, side, side, device="meta")
