"""The smoke run that the tests of the pipeline and the notebooks share."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from filelock import FileLock

from wsss_lib.parameters import PROJECT_ROOT

RUN = PROJECT_ROOT / "runs" / "toy"
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "2", "--nolock", "--rerun-incomplete", "--config", "preset=smoke"]


@cache
def finish_smoke_run() -> Path:
    """Run the pipeline to its end, or wait until another test process has done so; return its folder."""
    RUN.mkdir(parents=True, exist_ok=True)
    with FileLock(RUN / ".tests.lock"):
        run = subprocess.run(SNAKEMAKE, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return RUN
