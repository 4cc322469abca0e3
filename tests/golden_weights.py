"""The generated weights of the golden network cases, as their contracts define them by name and shape."""

import zlib

import numpy as np
import torch


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def recipe_state(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Return the generated weights of the network cases for parameter names (torchvision's, IRN's) and their shapes."""
    state = {}
    for name, shape in shapes.items():
        module, kind = ("." + name).rsplit(".", 2)[1:]
        z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
        if kind == "running_mean":
            value = 0.1 * z
        elif kind == "running_var":
            value = 1 + 0.2 * np.abs(z)
        elif len(shape) > 1:
            value = z * np.sqrt(2 / np.prod(shape[1:]))
        elif kind == "bias":
            value = 0.1 * z
        else:
            value = (1 + 0.1 * z) * (0.3 if module == "bn3" else 1)
        state[name] = tensor(np.float32(value))
    return state


def load_recipe(net: torch.nn.Module, **others: torch.Tensor) -> None:
    """Load the generated weights, and `others`, into a network whose backbone has torchvision's parameter names."""
    ours = {name.removeprefix("backbone."): name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    weights = recipe_state({canonical: net.state_dict()[name].shape for canonical, name in ours.items()}) | others
    load(net, {ours[canonical]: value for canonical, value in weights.items()})


def recipe(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Value of the official tensor `key`, as the golden files define it."""
    random = np.random.RandomState(zlib.crc32(f"{key}|{int(seed)}".encode()) & 0xFFFFFFFF)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    normal = random.standard_normal(size=shape).astype(np.float32)
    if len(shape) >= 2:
        return normal * np.float32(np.sqrt(2.0 / np.prod(shape[1:])))
    if key.endswith("running_mean"):
        return np.float32(0.1) * normal
    if key.endswith("running_var"):
        return np.float32(1) + np.float32(0.1) * np.abs(normal)
    if key.endswith("weight"):
        return np.float32(0.7) + np.float32(0.1) * normal
    return np.float32(0.05) * normal


def load(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    missing, foreign = module.load_state_dict(state, strict=False)
    assert not foreign and all(key.endswith("num_batches_tracked") for key in missing), (missing, foreign)
    return module.eval()
