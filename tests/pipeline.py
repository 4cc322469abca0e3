"""The run that the tests of pipeline and notebooks share: of `make demo`, CAM's chain and the network of the true masks."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from filelock import FileLock

from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_values

PRESET = "demo"
RUN = PROJECT_ROOT / "runs" / "demo" / "toy"
SNAKEMAKE = [
    sys.executable,
    "-m",
    "snakemake",
    "--cores",
    "2",
    "--nolock",
    "--rerun-incomplete",
    "--config",
    f"preset={PRESET}",
]


@cache
def finish_run() -> Path:
    """Run the pipeline to its end, or wait until another test process has done so; return its folder."""
    RUN.mkdir(parents=True, exist_ok=True)
    with FileLock(RUN / ".tests.lock"):
        run = subprocess.run(SNAKEMAKE, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return RUN


def with_values_of_the_run(source: str, notebook: str) -> str:
    """Append the run's values to the source of a notebook's parameters cell, as papermill would, but with all lessons.

    Notebook 02 keeps its own: what it says about all generated images takes seconds and is compared.
    """
    names: dict = {}
    exec(source, names)
    if notebook.startswith("02_") or "dataset" not in names:  # 96 and 99 take their data from elsewhere
        return source
    values = preset_values(PRESET, names.get("method", "cam")) | {"lessons": True, "bottleneck_seeds": 2}
    return "\n".join([source, *(f"{name} = {value!r}" for name, value in values.items())])
