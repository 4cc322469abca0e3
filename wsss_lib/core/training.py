"""The one training loop: mixed precision, gradient accumulation, resume from any step, a JSON-lines log.

A run resumed at step t sees the same batches, random numbers, learning rates and momenta as one that was never stopped; on
a CPU its weights are bit-identical.
"""

import json
import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from wsss_lib.core.distributed import all_reduce_mean, rank_and_world_size
from wsss_lib.core.files import read_tensors, write_atomically, write_tensors
from wsss_lib.core.progress import progress
from wsss_lib.data.samples import batches
from wsss_lib.errors import Diverged
from wsss_lib.nets.weights import load_weights
from wsss_lib.parameters import Settings

LOG_EVERY = 10
DIVERGED = 1.1  # the last losses divided by the first; less is the noise of single batches
LEAST_SCALE = 1.0  # of float16 losses; below it the scale protects nothing and every step has been skipped for long
HARMLESS = 0.2  # a loss that no diverged network has; one that continues from trained weights may rise below it


def device_of(config: Settings) -> torch.device:
    """Return the device to compute on; "auto" takes the GPU when there is one.

    Raises:
        ValueError: `device` is "cuda" and there is no GPU.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda' but torch sees no GPU; set device to 'auto' or 'cpu'")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def seed_everything(config: Settings) -> torch.device:
    """Seed Python, NumPy and torch, choose deterministic algorithms on a CPU, and return `device_of(config)`."""
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    device = device_of(config)
    torch.use_deterministic_algorithms(device.type == "cpu")
    return device


def poly_factor(step: int, total: int, power: float = 0.9, every: int = 1) -> float:
    """Return the factor of the polynomial learning-rate schedule after `step` finished steps: (1 - step / total)^power.

    Args:
        step: finished optimizer steps, 0, 1, ...
        total: planned steps T.
        every: the factor changes only at multiples of `every` and not after T (DeepLab-v2: 10; all others: 1).

    Returns:
        the factor, in [0, 1].

    Raises:
        ValueError: step is negative, or total or every below 1.

    Source: the "poly" policy of DeepLab, also used by IRN. Explained in notebook 90, section "The schedule".

    >>> [round(poly_factor(step, 100, every=10), 3) for step in (0, 9, 10, 19, 50)]
    [1.0, 1.0, 0.91, 0.91, 0.536]
    """
    if step < 0 or total < 1 or every < 1:
        raise ValueError(f"step={step} must be at least 0, total={total} and every={every} at least 1")
    return (1 - min(step, total) // every * every / total) ** power


def images_at_once(batch_size: int, config: Settings) -> int:
    """Return how many images of a batch go through the network together: its largest divisor up to `device_batch_size`.

    >>> [images_at_once(20, Settings({"device_batch_size": limit})) for limit in (32, 16, 8, 3)]
    [20, 10, 5, 2]
    """
    return max(size for size in range(1, min(batch_size, config.device_batch_size) + 1) if batch_size % size == 0)


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, tuple[Tensor, ...]], dict[str, Tensor]],
    samples: Dataset,
    parameter_groups: list[dict],
    momentum: float | None,
    steps: int,
    batch_size: int,
    config: Settings,
    folder: Path,
    schedule: Callable[[int, int], float] = poly_factor,
    name: str = "training",
    nesterov: bool = False,
    after_step: Callable[[int], None] | None = None,
    keep_last: bool = False,
) -> None:
    """Train `model` in place for `steps` optimizer steps and keep its state in `folder`.

    With several processes (`wsss_lib.core.distributed`), each takes its part of every batch, gradients and losses are
    averaged, and rank 0 writes. The result is that of one process except for rounding, for trained batch normalization
    (each part of a batch has its own statistics, and those of rank 0 are kept), and for dropout. A run may be resumed with
    another number of processes, and on another device.

    Args:
        model: the network, in training mode after `model.train()`.
        loss_of: (model, batch on the device) to named scalar losses; the one named "loss" is minimized, and must be a mean
            over the images of the batch if batches are accumulated; what divides by counts of pixels uses their
            `distributed.all_reduce_mean`.
        samples: torch data set that is indexed by (epoch, index), see `wsss_lib.data.samples`.
        parameter_groups: params, lr and weight_decay of each group; min_lr if the schedule has a floor.
        momentum: of SGD; None: Adam with its usual two moments (AMN, DRS's refinement).
        steps: optimizer steps T of the whole run.
        batch_size: images in one optimizer step, whatever a device can hold and however many processes there are.
        schedule: (steps already made, T) to the factor on every group's lr.
        nesterov: the momentum is Nesterov's (DRS).
        after_step: called with the number of finished steps, by rank 0; after a resume also for steps that it has seen
            before.
        keep_last: the short batch at an epoch's end is a step too (DRS).

    Raises:
        Diverged: the loss is not finite (says at which step), or higher at the end than at the start.
        ValueError: this is a shard of per-image work, the batch cannot be divided evenly, the gradients overflow float16 step
            after step, or `folder` holds the state of another network.
        OSError: a loader process was killed, /dev/shm is too small for the loaded batches, or a file cannot be written.
    """
    if config.shards > 1 and config.shard:
        raise ValueError(f"{name}: only shard 0 trains, and this is shard {config.shard} of {config.shards}; run shard 0 first")
    device = next(model.parameters()).device
    rank, world_size = rank_and_world_size()
    if batch_size % world_size:
        raise ValueError(
            f"the global batch of {batch_size} images cannot be shared by {world_size} processes; choose a divisor"
        )
    part = images_at_once(batch_size // world_size, config)
    parts = batch_size // world_size // part
    model.to(memory_format=torch.channels_last)  # the same numbers; twice as fast with depthwise convolutions on a CPU
    half = config.mixed_precision and device.type == "cuda"
    optimizer = (
        torch.optim.Adam(parameter_groups, lr=0.0)
        if momentum is None
        else torch.optim.SGD(parameter_groups, lr=0.0, momentum=momentum, nesterov=nesterov)
    )
    base_rates = [group["lr"] for group in parameter_groups]
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    state_file = folder / "state.safetensors"
    done = _load_state(state_file, model, optimizer, scaler) if state_file.is_file() else 0
    loader = iter(
        batches(samples, batch_size, parts, done, steps, config.seed, config.num_workers, (rank, world_size), keep_last)
    )
    losses_of: nn.Module = _Losses(model, loss_of)
    accumulate: Callable[[], AbstractContextManager] = nullcontext
    if world_size > 1:
        together = DistributedDataParallel(losses_of, find_unused_parameters=True)  # heads that this loss does not train
        losses_of, accumulate = together, together.no_sync  # gradients are averaged with the last part of a step
        torch.manual_seed(random.Random(f"{config.seed}/{done}/{rank}").getrandbits(63))  # each drops different values
    model.train()
    skipped = 0
    last: deque[float] = deque(maxlen=max(1, min(10, steps // 5)))
    unread: list[Tensor] = []  # the losses of the steps since they were last read: on a GPU, reading them waits for it
    with (
        _trim_log(folder / "log.jsonl", done) if rank == 0 else open(os.devnull, "w") as log,
        torch.backends.cudnn.flags(enabled=True, benchmark=True),  # crops have one size, whose fastest algorithm is found
    ):
        for step in progress(range(done, steps), name, total=steps, initial=done, show=rank == 0):
            factor = schedule(step, steps)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = max(rate * factor, group.get("min_lr", 0.0))
            optimizer.zero_grad(set_to_none=True)
            means: dict[str, Tensor] = {}
            for number in range(parts):
                batch = tuple(_to_device(tensor, device) for tensor in _next(loader, name))
                with accumulate() if number + 1 < parts else nullcontext():
                    with torch.autocast(device.type, torch.float16, enabled=half):
                        losses = losses_of(batch)
                    scaler.scale(losses["loss"] / parts).backward()
                for key, value in losses.items():
                    means[key] = means.get(key, 0.0) + value.detach().double() / parts
            unread.append(torch.stack([*means.values()]))
            logged = (step == 0 and steps >= LOG_EVERY) or (step + 1) % LOG_EVERY == 0 or step + 1 == steps
            saved = (step + 1) % config.checkpoint_every == 0 and step + 1 < steps
            if logged or saved or device.type == "cpu":
                rows = [dict(zip(means, row, strict=True)) for row in all_reduce_mean(torch.stack(unread)).tolist()]
                unread.clear()
                for at, row in enumerate(rows, start=step + 2 - len(rows)):
                    if not np.isfinite(row["loss"]):
                        raise Diverged(f"{name}: the loss is {row['loss']} at step {at}; lower the learning rate")
                    last.append(row["loss"])
            scale = scaler.get_scale()
            scaler.step(optimizer)  # skipped if a gradient is not finite; the scale is then halved
            scaler.update()
            skipped += scaler.get_scale() < scale
            if scaler.get_scale() < LEAST_SCALE:
                raise ValueError(
                    f"{name}: the gradients overflow float16 at every scale, the last steps up to {step + 1} were all skipped; "
                    "set mixed_precision to false"
                )
            if logged:
                row = {"step": step + 1, "factor": round(factor, 6)} | {key: round(value, 6) for key, value in rows[-1].items()}
                if scaler.is_enabled():  # steps without an update since the row before
                    row, skipped = row | {"skipped_steps": skipped, "scale": scaler.get_scale()}, 0
                log.write(json.dumps(row) + "\n")
                log.flush()
            if after_step and rank == 0:
                after_step(step + 1)
            if saved and rank == 0:
                _save_state(state_file, model, optimizer, scaler, step + 1)
    model.eval()
    if rank == 0 and steps >= LOG_EVERY:
        _check_convergence(read_log(folder)[0]["loss"], float(np.mean(last)), name)


class _Losses(nn.Module):
    """A network with its loss, which `DistributedDataParallel` takes together as one module."""

    def __init__(self, model: nn.Module, loss_of: Callable[[nn.Module, tuple[Tensor, ...]], dict[str, Tensor]]):
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {key: value if key == "loss" else value.detach() for key, value in self.loss_of(self.model, batch).items()}


def _check_convergence(first: float, last: float, name: str) -> None:
    """Refuse a training that ends above its start: a network that has learned nothing would go through the whole chain."""
    if first > 0 and last > DIVERGED * max(first, HARMLESS):
        raise Diverged(
            f"{name}: the training has diverged, its loss has gone from {first:.3g} at the start to {last:.3g} at the end; "
            "take a fifth of the learning rate and run it again"
        )


def _next(loader: Iterator[tuple[Tensor, ...]], name: str) -> tuple[Tensor, ...]:
    try:
        return next(loader)
    except RuntimeError as error:
        if "shared memory" in str(error):  # batches come from the loader processes through /dev/shm
            raise OSError(
                f"{name}: the loader processes need more shared memory than /dev/shm has left, which is 64 MB in a container "
                "by default; give the container more (docker run --shm-size=2g) or set num_workers to 0"
            ) from None
        if "is killed by signal" not in str(error) and "exited unexpectedly" not in str(error):
            raise
        raise OSError(
            f"{name}: a loader process was killed, perhaps because memory ran out; run again with a smaller num_workers, "
            "the training goes on where it stopped"
        ) from None


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.dim() == 4:
        return tensor.to(device, non_blocking=True, memory_format=torch.channels_last)
    return tensor.to(device, non_blocking=True)


def _save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, done: int
) -> None:
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():  # SGD: the momentum; Adam: two moments and its own step
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if value is not None}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    numbers = {"done": done, "scaler": scaler.state_dict()}
    write_tensors(path, tensors, metadata={"numbers": json.dumps(numbers)})


def _load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
    tensors = read_tensors(path)
    load_weights(model, {key[6:]: value for key, value in tensors.items() if key.startswith("model.")}, str(path))
    with safe_open(path, framework="pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
    state = optimizer.state_dict()
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(state)
    if numbers["scaler"]:  # empty if the run began without mixed precision, as on a CPU; then scaling begins now
        scaler.load_state_dict(numbers["scaler"])
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return numbers["done"]


def _trim_log(path: Path, done: int):
    """Open the log to append, without the lines after the last saved state, which will be written again."""
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= done:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            break  # the line that a killed process left half-written
    write_atomically(path, lambda temporary: temporary.write_text("".join(kept)))
    return open(path, "a", encoding="utf-8")


def read_log(folder: Path) -> list[dict]:
    """Return the rows of a training's log: dicts with step, factor and every named loss; empty if nothing was trained."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors; the training state next to them is removed when the stage is finished.

    Args:
        path: the file to make, in the folder that was given to `train`.
    """
    write_tensors(path, model.state_dict())
