"""The folder of a stage: its lock, and the record that completes it."""

import os
import platform
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from wsss_lib.core.files import read_json, sha256, write_json
from wsss_lib.errors import DataError
from wsss_lib.ops.crf import whose_crf

WAIT = 20.0  # seconds for what is left of a killed run: a kernel sees within one that its parent is gone, a loader within five


def lock_folder(folder: Path) -> FileLock:
    """Lock other processes out of a stage's folder, after a short wait for one that is just ending.

    Returns:
        the lock, held until `unlock_folder`, the end of this process or of the last object that refers to it. The same
        process may take it again.

    Raises:
        DataError: another process holds it.
        OSError: the lock file cannot be made.
    """
    path = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path, is_singleton=True, thread_local=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")  # to be named below
    except Timeout:
        holder = path.read_text(encoding="utf-8") if path.is_file() else ""
        raise DataError(
            f"{folder}: another run is making this stage ({holder or 'unknown process'}); wait until it has "
            "finished, or end it (a notebook: shut its kernel down), then run again"
        ) from None
    except OSError as error:
        lock.release(force=True)
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or set runs_root to another "
            "disk, then run again: finished results are kept"
        ) from error
    return lock


def unlock_folder(lock: FileLock) -> None:
    """Let other processes in, and leave no file behind."""
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: whoever waits for it sees that this file is gone
        lock.release(force=True)


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


def randomness(seed: int) -> dict[str, Any]:
    """Return everything besides parameters, inputs and versions that the bits of a result depend on.

    Returns:
        `generators`, whatever draws random numbers, with what each is seeded from; `order_of_sums`, what decides in which order
        floats are added: threads, instruction set, whose CRF, GPU and whether torch may choose algorithms that differ from run
        to run.
    """
    import torch

    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if torch.cuda.is_available() else {}
    return {
        "generators": {
            "initial weights, dropout, words (torch)": f"seed {seed}",
            "Python and NumPy": f"seed {seed}",
            "crop, scale, flip and colors of a sample": f"seed {seed}, epoch, index",
            "order of the samples": f"seed {seed}, epoch",
            "what a method draws for one image": f"seed {seed}, image id",
        },
        "order_of_sums": {
            "torch_threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "dense_crf": whose_crf(),
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            **gpu,
        },
    }


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


RECORDS = {"begun.json", "run.json", "metrics.json", "scored.json", "notebook.ipynb"}


def entry(content: Any, name: str, kind: type, path: Path) -> Any:
    """Return an entry of a stage's record, of the given type.

    Raises:
        DataError: the entry is missing or of another type.
    """
    if not isinstance(content, dict) or not isinstance(content.get(name), kind):
        raise DataError(
            f"{path}: {name!r} is missing or of a wrong kind; delete the folder {path.parent} and run its stage again"
        )
    return content[name]


class StageFolder:
    """The folder of a stage: results, and the records that say how they were made.

    `begun.json` holds the key (the hash of parameters and inputs) and is written first; `metrics.json` holds the scores;
    `run.json` is written last, and a stage without it is not finished.
    """

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.lock: FileLock | None = None
        self._complete = False

    def key(self) -> str:
        """Return the key with which the folder was begun; empty: it was not."""
        begun = self.folder / "begun.json"
        return entry(read_json(begun), "key", str, begun) if begun.is_file() else ""

    def is_complete(self) -> bool:
        """Return whether the stage has finished: its `run.json` is there, and no fewer files than it counts."""
        if not self._complete:
            path = self.folder / "run.json"
            self._complete = path.is_file() and self._count() >= entry(read_json(path), "files", int, path)
        return self._complete

    def _count(self) -> int:
        """Return the number of result files; only names are read, as there may be 82,000."""
        return sum(name not in RECORDS for _, _, names in os.walk(self.folder) for name in names)

    def files(self) -> list[Path]:
        """Return the results: all files but the records."""
        return [Path(root) / name for root, _, names in os.walk(self.folder) for name in names if name not in RECORDS]

    def record(self) -> dict[str, Any]:
        """Return the content of `run.json`: parameters, hashes of inputs and results, versions, time and memory.

        Raises:
            DataError: the stage has not finished.
        """
        if not self.is_complete():
            raise DataError(f"{self.folder}: stage {self.name!r} has not finished; run its notebook first")
        return read_json(self.folder / "run.json")

    def results(self) -> str:
        """Return the hash of the results, 64 hexadecimal digits, as it was when the stage finished."""
        return entry(self.record(), "results_sha256", str, self.folder / "run.json")

    def parameters(self) -> dict[str, Any]:
        """Return the parameters with which the stage was begun."""
        begun = self.folder / "begun.json"
        return entry(read_json(begun), "parameters", dict, begun)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.json`."""
        return read_json(self.folder / "metrics.json")

    def scored_with(self) -> str:
        """Return the key of the scores in `metrics.json`; empty: there are none."""
        path = self.folder / "scored.json"
        return entry(read_json(path), "key", str, path) if path.is_file() else ""

    def write_metrics(self, rows: list[dict[str, Any]], key: str) -> None:
        """Write the scores, then the key of what they were scored with."""
        (self.folder / "scored.json").unlink(missing_ok=True)
        write_json(self.folder / "metrics.json", rows)
        write_json(self.folder / "scored.json", {"key": key})

    def finish(self, seconds: float, num_images: int, device: str) -> None:
        """Write `run.json`; from then on other stages and processes may use the folder."""
        _remove_leftovers(self.folder, "state.safetensors")  # of a training: until here a killed run resumes from it
        files = self.files()
        content = read_json(self.folder / "begun.json")
        write_json(
            self.folder / "run.json",
            {
                "stage": self.name,
                **content,
                "results_sha256": sha256(files, self.folder),
                "files": len(files),
                "versions": versions(),
                "device": device,
                "randomness": randomness(int(self.folder.parent.name.removeprefix("seed"))),
                "seconds": round(seconds, 1),
                "images_per_second": round(num_images / seconds, 2) if num_images else None,
                "peak_memory_mib": peak_memory_mib(device),
            },
        )
        _remove_leftovers(self.folder.parent, f".{self.name}.shard*.lock")

    def release(self) -> None:
        """Let other processes in."""
        if self.lock:
            unlock_folder(self.lock)
            self.lock = None


def claim(folder: Path, content: dict[str, Any], shard: int) -> StageFolder:
    """Make `folder` the place of the results with the key `content["key"]`, and lock it unless they are finished.

    Nothing is ever deleted: results with another key are kept beside it as `<name>.<their key>`, and come back when their
    parameters do.

    Args:
        content: of `begun.json`: key, parameters, inputs.
        shard: of per-image work; 0: the one run that may prepare the folder.

    Returns:
        the folder; its `lock` is None if the stage is complete.

    Raises:
        DataError: another process makes the stage; or this is a shard above 0 and the stage was not begun.
        OSError: a file cannot be written.
    """
    stage, key, name = StageFolder(folder), content["key"], folder.name
    if stage.key() == key and stage.is_complete():
        _remove_stale_lock(folder)
        return stage
    if shard:  # others make their images in parallel; shard 0 has prepared the folder
        if stage.key() != key:
            raise DataError(f"{folder}: not begun with these parameters and inputs; run shard 0 before shard {shard}")
        stage.lock = lock_folder(folder.with_name(f"{name}.shard{shard}"))
        return stage
    stage.lock = lock_folder(folder)
    try:
        _exchange(stage, key)
        _remove_leftovers(folder, ".writing-*")  # of a process that was killed while it wrote
        if not (folder / "begun.json").is_file():
            write_json(folder / "begun.json", content)
        if stage.is_complete():  # it was kept, or the process that held the lock has finished it
            stage.release()
    except BaseException:
        stage.release()
        raise
    return stage


def _remove_stale_lock(folder: Path) -> None:
    """Remove the lock file of a process that was killed between the end of a stage and its release."""
    path = folder.with_name(f".{folder.name}.lock")
    if path.is_file():
        lock = FileLock(path, is_singleton=True, thread_local=False)
        with suppress(Timeout, OSError):  # held by a living process, or on a disk that is read-only
            lock.acquire(timeout=0)
            unlock_folder(lock)


def _exchange(stage: StageFolder, key: str) -> None:
    """Put aside the results of another key, and bring back those of this one."""
    folder, other = stage.folder, stage.key()
    kept = folder.with_name(f"{stage.name}.{key}")
    if other not in ("", key):
        aside = folder.with_name(f"{stage.name}.{other}")
        if aside.exists():
            raise DataError(f"{folder} and {aside} hold results of the same parameters; move one of them away")
        os.replace(folder, aside)
        print(f"{stage.name}: parameters or inputs have changed; the earlier results are kept in {aside.name}")
    if stage.key() != key and kept.is_dir():
        if folder.exists():  # without a record: a copy of the notebook at most
            (folder / "notebook.ipynb").unlink(missing_ok=True)
            if any(folder.iterdir()):
                raise DataError(f"{folder}: holds files of no finished or begun stage; move them away, then run again")
            folder.rmdir()
        os.replace(kept, folder)
        print(f"{stage.name}: the results of these parameters are found again")


def _remove_leftovers(folder: Path, pattern: str) -> None:
    for leftover in folder.rglob(pattern):
        leftover.unlink(missing_ok=True)


def finished_stages(run_folder: Path | str) -> dict[tuple[str, int], dict[str, StageFolder]]:
    """Return the current finished stages of all methods of a run, without the kept results of other parameters.

    Returns:
        (method, seed) to stage name to folder, sorted by method, seed and name.
    """
    found: dict[tuple[str, int], dict[str, StageFolder]] = {}
    for record in sorted(Path(run_folder).glob("*/seed*/*/run.json")):
        method, seed, name = record.parent.parts[-3:]
        if method not in ("data", "report") and "." not in name:
            found.setdefault((method, int(seed.removeprefix("seed"))), {})[name] = StageFolder(record.parent)
    return found
