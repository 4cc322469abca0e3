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

IMPORTED = (
    "IPython",
    "snakemake.cli",
    "snakemake.report",
    "snakemake.workflow",
    "tests.small_chain",
    "wsss_lib.pipeline",
    "wsss_lib.widgets",
)


class Server:
    """Runs modules one after the other, each in a process forked for it, which leads a group and may be killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"], cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, *words: object, cwd: Path = PROJECT_ROOT, out: Path | None = None) -> int:
        """Begin what `python -m` with these words would do; return the number of its process.

        Args:
            out: folder for the files `stdout` and `stderr`; None: both go to this process's errors.
        """
        job = {"words": [str(word) for word in words], "cwd": str(cwd), "out": str(out or "")}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def end(self) -> tuple[int, float]:
        """Wait for its end; return its exit status, negative for a signal, and the processor seconds that it took."""
        status, seconds = self.process.stdout.readline().split()
        return int(status), float(seconds)


def run_module(*words: str, cwd: Path = PROJECT_ROOT) -> subprocess.CompletedProcess:
    """Return what `python -m` with these words would: return code, and what it printed."""
    with TemporaryDirectory() as folder:
        _server().begin(*words, cwd=cwd, out=Path(folder))
        code, _ = _server().end()
        printed = [Path(folder, name).read_text(errors="replace") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(words, code, *printed)


def run_cells(sources: Sequence[str], folder: Path) -> subprocess.CompletedProcess:
    """Run the code cells of a notebook in a folder, without a kernel; the first that fails ends it with its traceback."""
    script = folder / ".cells.json"
    script.write_text(json.dumps(list(sources)))
    return run_module("tests.warm", str(script), cwd=folder)


@cache
def _server() -> Server:
    """Return the server of all tests of this process; it ends with the process, which holds its input."""
    return Server()


def _serve() -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # or the first collection of a child would copy all pages
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _become(job)
        print(child, flush=True)
        _, status, usage = os.wait4(child, 0)
        print(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, flush=True)


def _become(job: dict) -> None:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if job["out"]:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{job['out']}/{name}", os.O_WRONLY | os.O_CREAT), number)
    else:
        os.dup2(2, 1)  # what is printed is none of the answers
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
