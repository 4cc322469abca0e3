"""What a record says about the machine and the program: versions, randomness, memory."""

import platform
import sys
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Return the versions that a result depends on: "python" and the names of installed packages, each to its version."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "numpy", "pillow", "scipy", "pydensecrf2", "timm")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    return found


def randomness(seed: int | None) -> dict[str, Any]:
    """Return everything beside parameters, inputs and versions on which the bits of a result depend.

    Args:
        seed: of the run.

    Returns:
        `generators`, whatever draws random numbers, with what each is seeded from; `order_of_sums`, what decides in which order
        floats are added: threads, instruction set, GPU and whether torch may choose algorithms that differ from run to run.
    """
    import torch

    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if torch.cuda.is_available() else {}
    return {"generators": {"initial weights, dropout, words (torch)": f"seed {seed}",
                           "Python and NumPy": f"seed {seed}",
                           "crop, scale, mirror and colours of a sample": f"seed {seed}, epoch, index",
                           "order of the samples": f"seed {seed}, epoch",
                           "what a method draws for one image": f"seed {seed}, image id"},
            "order_of_sums": {"torch_threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability(),
                              "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(), **gpu}}


def peak_memory_mib(device: str) -> int:
    """Return the highest memory use of this process so far, in MiB.

    Args:
        device: "cpu", or "cuda…" for torch's memory on the GPU.
    """
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() // 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; its getrusage would also count the process that started this one
        return next(int(line.split()[1]) // 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 1024)
