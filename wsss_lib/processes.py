"""Several processes that train one network together, each on its share of every batch. Alone, everything here does nothing.

`wsss_lib.launch` starts them; `wsss_lib.training` and the losses that divide by a number of pixels ask here.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def together() -> bool:
    """Return whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def place() -> tuple[int, int]:
    """Return this process's number and how many there are; (0, 1) alone. Only number 0 writes files."""
    return (dist.get_rank(), dist.get_world_size()) if together() else (0, 1)


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of each value over all processes; alone the very tensor that was given.

    A loss that divides by a count (of known pixels, of pairs) divides by this mean of the count. Its average over the
    processes is then the sum over the whole batch by the count of the whole batch, as in one process.

    Args:
        values: of any shape, the same in all processes; no gradient flows through the mean.

    Returns:
        the same shape, floating point where there are several processes.

    >>> mean_over_processes(torch.tensor([3, 4]))
    tensor([3, 4])
    """
    if not together():
        return values
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32), copy=True)
    dist.all_reduce(values)
    return values / dist.get_world_size()


def average_gradients(parameters: list[Tensor]) -> None:
    """Put the mean gradient over all processes in the place of every gradient; alone nothing is touched.

    Args:
        parameters: those that have a gradient, in the same order in all processes.
    """
    if together():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = mean_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))  # one message, not hundreds
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def start_alike(tensors: list[Tensor]) -> None:
    """Give all processes the values of process 0; alone nothing is touched.

    Args:
        tensors: parameters and buffers, in the same order in all processes.
    """
    if together():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)
