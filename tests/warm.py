"""Commands and cells in processes forked from one that has imported the project: the same code without seconds of imports."""

import atexit
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from wsss_lib.parameters import PROJECT_ROOT

IMPORTED = ("IPython", "snakemake.cli", "snakemake.report", "snakemake.workflow", "wsss_lib.pipeline", "wsss_lib.widgets")


def run_module(*words: str, cwd: Path = PROJECT_ROOT) -> subprocess.CompletedProcess:
    """Return what `python -m` with these words would: return code, and what it printed."""
    with TemporaryDirectory() as folder:
        job = {"words": [str(word) for word in words], "cwd": str(cwd), "out": folder}
        server = _server()
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        printed = [Path(folder, name).read_text(errors="replace") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(words, code, *printed)


def run_cells(sources: Sequence[str], folder: Path) -> subprocess.CompletedProcess:
    """Run the code cells of a notebook in a folder, without a kernel; the first that fails ends it with its traceback."""
    script = folder / ".cells.json"
    script.write_text(json.dumps(list(sources)))
    return run_module("tests.warm", str(script), cwd=folder)


@cache
def _server() -> subprocess.Popen:
    """Start the process that forks; it ends with this one, which holds its input."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.warm"], cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _serve() -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # or the first collection of a child would copy all pages
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _become(job)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(job: dict) -> None:
    for number, name in ((0, os.devnull), (1, f"{job['out']}/stdout"), (2, f"{job['out']}/stderr")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    os.chdir(job["cwd"])
    sys.argv, code = job["words"], 0
    try:
        runpy.run_module(job["words"][0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        code = 1
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # taking all imported modules apart would take longer than what was to be done


def _run_cells(script: str) -> None:
    import matplotlib
    from IPython.core.interactiveshell import InteractiveShell

    matplotlib.use("Agg")
    shell = InteractiveShell.instance()
    for source in json.loads(Path(script).read_text()):
        if not shell.run_cell(source).success:
            print(source, file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    _run_cells(sys.argv[1]) if len(sys.argv) > 1 else _serve()
