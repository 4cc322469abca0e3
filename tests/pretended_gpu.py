"""A GPU for machines without one: tensors of the CPU, some of which are said to lie on a GPU, and must not meet the others.

What CUDA refuses is refused: an operation on tensors of both kinds (but for tensors without a dimension, and indices from the
CPU), NumPy's look at a tensor of the GPU, a generator of the other device. Which kind a tensor is of belongs to its storage and
goes from operands to results, backwards too.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsss_lib.data import samples

GPU = torch.device("cuda", 0)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
COPYING = ("copy_", "_to_copy", "set_", "_foreach_copy_")

_on_gpu: dict[int, weakref.ref] = {}  # the storages


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    parts = [tensor] if tensor.layout == torch.strided else [tensor.values(), tensor.crow_indices(), tensor.col_indices()]
    return [part.untyped_storage() for part in parts if part.device.type == "cpu"]


def on_gpu(tensor: Tensor) -> bool:
    """Return whether a tensor is said to lie on the GPU."""
    with torch._C.DisableTorchFunction():
        return any(storage._cdata in _on_gpu for storage in _storages(tensor)[:1])


def _tag(tensor: Tensor) -> Tensor:
    for storage in _storages(tensor):
        key = storage._cdata
        _on_gpu.setdefault(key, weakref.ref(storage, lambda _, key=key: _on_gpu.pop(key, None)))
    return tensor


def _tensors(*values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.split("::")[-1], kwargs or {}
        tensors = _tensors(args, kwargs)
        there = [on_gpu(tensor) for tensor in tensors]
        if any(there) and name not in COPYING:
            if name in INDEXING:  # of the own tensor alone, whose indices may lie on the CPU
                met = [on_gpu(tensor) == there[0] for tensor in _tensors(args[2:]) if tensor.dim()]
                mixed = not all(met) or not there[0]
            else:
                strict = name in ("cat", "stack") or (name.endswith("_") and not there[0])
                mixed = any(not gpu and (strict or tensor.dim()) for gpu, tensor in zip(there, tensors, strict=True))
            if mixed:
                raise RuntimeError(f"{name}: Expected all tensors to be on the same device")
        result = func(*args, **kwargs)
        if any(there) and not (name in (*COPYING, *INDEXING) and not there[0]):
            for tensor in _tensors(result):
                _tag(tensor)
        return result


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return GPU if on_gpu(args[0]) else func(*args)
        if func == Tensor.is_cuda.__get__:
            return on_gpu(args[0])
        if func == Tensor.is_cpu.__get__:
            return func(*args) and not on_gpu(args[0])
        if func in (Tensor.numpy, Tensor.__array__) and on_gpu(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.cpu:
            return self._moved(args[0], torch.device("cpu"))
        if func is Tensor.to:
            tensor, *given = args
            kwargs.pop("non_blocking", None)
            device = kwargs.pop("device", None)
            for value in given:
                if isinstance(value, Tensor):
                    device, kwargs["dtype"] = GPU if on_gpu(value) else value.device, value.dtype
                elif isinstance(value, str | torch.device):
                    device = value
                elif isinstance(value, torch.dtype):
                    kwargs["dtype"] = value
            result = func(tensor, **kwargs) if kwargs else tensor
            if device is None:
                return result
            device = torch.device(device)
            return func(result, device) if device.type == "meta" else self._moved(result, device)
        device, generator = kwargs.get("device"), kwargs.get("generator")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        if generator is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        result = func(*args, **kwargs | {"device": "cpu"})
        for tensor in _tensors(result):
            _tag(tensor)
        return result

    @staticmethod
    def _moved(tensor: Tensor, device: torch.device) -> Tensor:
        if on_gpu(tensor) == (device.type == "cuda"):
            return tensor
        with torch._C.DisableTorchFunction():
            copy = torch.empty_like(tensor).copy_(tensor) if tensor.layout == torch.strided else tensor.clone()
        for storage in _storages(copy):
            _on_gpu.pop(storage._cdata, None)
        return _tag(copy) if device.type == "cuda" else copy


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """A context in which torch sees a GPU."""
    fork, autocast, loader = torch.random.fork_rng, torch.autocast, samples.DataLoader
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda *_: "a pretended GPU",
            "max_memory_allocated": lambda *_: 0,
            "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": nothing,
            "manual_seed": nothing,
            "manual_seed_all": nothing,
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", nothing)
        patch.setattr(torch, "autocast", lambda _, *others, **options: autocast("cpu", *others, **options))
        patch.setattr(torch.random, "fork_rng", lambda: fork(devices=[]))
        patch.setattr(samples, "DataLoader", lambda *given, **options: loader(*given, **options | {"pin_memory": False}))
        patch.setattr(torch.backends.cudnn, "flags", lambda **_: nullcontext())
        with _Functions(), _Operations():
            yield
    _on_gpu.clear()
