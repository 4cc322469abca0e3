"""The smoke run that the tests of the pipeline and the notebooks share."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from filelock import FileLock

from wsss_lib.config import PROJECT_ROOT

RUN = PROJECT_ROOT / "runs" / "toy"
METHODS = sorted(path.stem.split("_", 1)[1] for path in (PROJECT_ROOT / "notebooks").glob("[2-6]*_*.ipynb"))
# Everything that `make demo` makes, and the maps of every method.
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "2", "--nolock", "--rerun-incomplete", "all",
             *(f"runs/toy/{method}/seed0/maps/notebook.ipynb" for method in METHODS), "--config", "preset=smoke"]


@cache
def finish_smoke_run() -> Path:
    """Run the pipeline to its end, or wait until another test process has done so; return its folder."""
    RUN.mkdir(parents=True, exist_ok=True)
    with FileLock(RUN / ".tests.lock"):
        run = subprocess.run(SNAKEMAKE, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return RUN
