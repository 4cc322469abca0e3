"""Training in several processes on this machine, one per GPU, started from wherever the training is called.

A training function of the library that is marked with `in_processes` runs unchanged with `processes: 1`. With more, PyTorch's
elastic launcher (the one behind `torchrun`) starts that many fresh processes, which run the same function together: gloo joins
them on CPUs, nccl on GPUs. This works in a notebook, under papermill and in a Slurm job, as nothing is forked. The global
batch stays the same; `training.train` gives each rank its part.
"""

import copy
import functools
import inspect
import os
import signal
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wsss_lib.core.files import read_tensors, write_tensors


def together() -> bool:
    """Return whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the world size; (0, 1) alone. Only rank 0 writes files."""
    return (dist.get_rank(), dist.get_world_size()) if together() else (0, 1)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum of each value over all processes; in a single process, the given tensor itself.

    Args:
        values: of any shape, the same in all processes; no gradient flows through the sum.

    Returns:
        the same shape, floating point with several processes.

    >>> all_reduce_sum(torch.tensor([3, 4]))
    tensor([3, 4])
    """
    if not together():
        return values
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32), copy=True)
    dist.all_reduce(values)
    return values


def all_reduce_mean(values: Tensor) -> Tensor:
    """Return the mean of each value over all processes; in a single process, the given tensor itself.

    A loss that divides by a count (of known pixels, of pairs) divides by this mean of the count. Its average over the
    processes is then the whole batch's sum divided by the whole batch's count, as in one process.

    >>> all_reduce_mean(torch.tensor([3, 4]))
    tensor([3, 4])
    """
    return all_reduce_sum(values) / dist.get_world_size() if together() else values


def broadcast(values: Tensor) -> Tensor:
    """Overwrite the values with those of rank 0 and return them; a single process changes nothing.

    Args:
        values: of the same shape and type in all processes.
    """
    if together():
        dist.broadcast(values, 0)
    return values


# How long a process waits for the others: rank 0 may score a whole split alone between two steps. If a process ends, the
# launcher ends all others.
PATIENCE = timedelta(days=1)
TRAINED = "trained.safetensors"  # how rank 0 hands the network back
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def in_processes(train: Callable[..., int]) -> Callable[..., int]:
    """Mark a training function, so that it runs on `config.processes` processes.

    Args:
        train: function of a module of the library. Its arguments `net` (changed in place), `config` and `folder` have these
            names, and all of them can be sent to another process: no function defined in a notebook.

    Returns:
        the function. With several processes it raises a RuntimeError that ends in the message of the process that failed first,
        and a ValueError if there are fewer GPUs than processes.
    """
    signature = inspect.signature(train)

    @functools.wraps(train)
    def wrapper(*arguments: Any, **named: Any) -> int:
        given = signature.bind(*arguments, **named).arguments
        if given["config"].processes == 1 or dist.is_initialized():
            return train(*arguments, **named)
        return _launch(wrapper, given)

    return wrapper


def _launch(train: Callable[..., int], given: dict[str, Any]) -> int:
    """Run `train` in new processes and bring its result and the trained network back."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    net, config, folder = (given[name] for name in ("net", "config", "folder"))
    device = next(net.parameters()).device
    if device.type == "cuda" and config.processes > torch.cuda.device_count():
        raise ValueError(
            f"{train.__name__}: processes is {config.processes}, but this machine has {torch.cuda.device_count()} of the GPUs "
            "that each process needs for itself; set processes to that number or less"
        )
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.processes,
        run_id=uuid.uuid4().hex,
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        start_method="spawn",
    )
    # Silence torch's advice to skip the search for parameters that a loss does not use: some losses leave some out.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    net.cpu()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the processes share a GPU with this one
    handlers = {number: signal.getsignal(number) for number in SIGNALS}  # the launcher sets its own and leaves them
    with tempfile.TemporaryDirectory() as notes:
        first_failure = Path(notes) / "first_failure.txt"
        try:
            results = elastic_launch(settings, _work)(train, given | {"net": net}, first_failure)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raised = failure.exitcode == 1 and first_failure.is_file()  # else something ended it before it could say why
            message = (
                first_failure.read_text("utf-8")
                if raised
                else f"process {rank} of {config.processes} has failed: {failure.message}"
            )
            raise RuntimeError(f"{train.__name__}: {message}") from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            net.to(device)
    net.load_state_dict(read_tensors(folder / TRAINED))
    (folder / TRAINED).unlink()
    net.eval()
    return results[0]


def _work(train: Callable[..., int], given: dict[str, Any], first_failure: Path) -> int:
    """Do the work of each process: join the others, train with them; rank 0 writes the network for the one that started all.

    One failure soon fails all others, which lose the connection; the launcher may see any of them first. So the process that
    fails first says why in a file, while the others still wait for it.
    """
    from wsss_lib.core.training import seed_everything  # it imports this module

    config, rank = given["config"], int(os.environ["RANK"])
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.processes))
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    try:
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
        device = seed_everything(config)
        net = copy.deepcopy(given["net"]).to(device)  # a copy, as the received tensors lie in memory that all share
        result = train(**given | {"net": net})
        if rank == 0:
            write_tensors(given["folder"] / TRAINED, net.state_dict())
        dist.barrier()
        return result
    except Exception as error:
        with suppress(FileExistsError), open(first_failure, "x", encoding="utf-8") as file:
            file.write(f"process {rank} of {config.processes} has failed: {type(error).__name__}: {error}")
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
