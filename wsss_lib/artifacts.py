"""The folder of a stage and the record that completes it."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from wsss_lib.config import Config, project_path
from wsss_lib.data.dataset import DataError
from wsss_lib.formats import read_json, sha256, write_json
from wsss_lib.lock import FileLock, lock_folder, unlock_folder
from wsss_lib.machine import peak_memory_mib, randomness, versions


def _entry(content: Any, name: str, kind: type, path: Path) -> Any:
    """Return an entry of a stage's record, of the given type."""
    if not isinstance(content, dict) or not isinstance(content.get(name), kind):
        raise DataError(f"{path}: {name!r} is missing or of a wrong kind; delete the folder {path.parent} and run its stage "
                        "again")
    return content[name]


class Stage:
    """The folder of one step of the pipeline, with the record that completes it.

    Made by `begin_stage` (to fill it) or `open_stage` (to read what another notebook has made).

    Args:
        folder: `runs/<dataset>/<method>/seed<k>/<stage>`; it need not exist yet.

    Attributes:
        folder: as given.
        name: of the stage, the folder's last part.
        started: when this object was made, in seconds of a clock that is never set back; `finish` counts from it.
        lock: held while this process makes the stage, else None.

    Explained in notebook 00, section "A stage's folder".
    """

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.started = time.monotonic()
        self.lock: FileLock | None = None

    def is_complete(self) -> bool:
        """Return whether the stage has finished: its `run.json` is there, and no fewer files than it counts.

        So a damaged file needs only to be deleted: the stage then makes it again.

        Raises:
            DataError: `run.json` is broken.
        """
        path = self.folder / "run.json"
        return path.is_file() and len(self._files()) >= _entry(read_json(path), "files", int, path)

    def _files(self) -> list[Path]:
        """Return the results: all files but the records."""
        records = {"begun.json", "run.json", "metrics.json", "notebook.ipynb"}
        return [path for path in self.folder.rglob("*") if path.name not in records and path.is_file()]

    def results(self) -> str:
        """Return the hash of the stage's results: 64 hexadecimal digits.

        Raises:
            DataError: the stage has not finished.
        """
        return _entry(self.record(), "results_sha256", str, self.folder / "run.json")

    def record(self) -> dict[str, Any]:
        """Return the content of `run.json`: parameters, hashes of inputs and results, versions, time and memory.

        Raises:
            DataError: the stage has not finished.
        """
        if not self.is_complete():
            raise DataError(f"{self.folder}: stage {self.name!r} has not finished; run its notebook first")
        return read_json(self.folder / "run.json")

    def configuration(self, config: Config) -> Config:
        """Return `config` with the values that this stage was made with where its record names them, e.g. its backbone.

        Args:
            config: of the run that reads the stage.

        Raises:
            DataError: the record holds a value that no longer fits.
        """
        path = self.folder / "run.json"
        parameters = _entry(self.record(), "parameters", dict, path)
        recorded = {name: value for name, value in parameters.items() if name in Config.model_fields}
        try:
            return Config.from_values(config.model_dump() | recorded)
        except ValueError as error:
            raise DataError(f"{path}: {error}; delete the folder {self.folder} and run its stage again") from None

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.json`: a list of dicts, as they were given to `finish`."""
        return read_json(self.folder / "metrics.json")

    def finish(self, metrics: list[dict[str, Any]], num_images: int = 0, device: str = "cpu") -> None:
        """Write `metrics.json` and, last, `run.json`; then other processes may use the folder.

        Args:
            metrics: rows with what, split, images, value, and how it was made (crf, thresholds chosen by pixel labels, …).
            num_images: images (or training samples) handled since the stage was begun or resumed, for the speed.
            device: name of the device, "cpu" or "cuda…".
        """
        write_json(self.folder / "metrics.json", metrics)
        _remove_leftovers(self.folder, "state.safetensors")  # of a training: until here a killed run goes on from it
        seconds = max(time.monotonic() - self.started, 1e-3)
        files = self._files()
        begun = self.folder / "begun.json"
        content = read_json(begun)
        parameters = _entry(content, "parameters", dict, begun)
        write_json(self.folder / "run.json", {
            "stage": self.name, **content, "results_sha256": sha256(files, self.folder), "files": len(files),
            "versions": versions(), "device": device, "randomness": randomness(parameters.get("seed")),
            "seconds": round(seconds, 1), "images_per_second": round(num_images / seconds, 2) if num_images else None,
            "peak_memory_mib": peak_memory_mib(device)})
        _remove_leftovers(self.folder.parent, f".{self.name}.shard*.lock")
        if self.lock:
            unlock_folder(self.lock)


def begin_stage(config: Config, name: str, uses: tuple[str, ...], inputs: dict[str, Stage | str], method: str = "") -> Stage:
    """Open a stage to fill it; a folder that was begun with other parameters or inputs is moved aside first.

    Unless the stage is complete, other processes are kept from it until `finish` or until this process ends.

    Args:
        config: the run's configuration.
        name: the folder's name, e.g. "maps".
        uses: prefixes of the parameters that can change the result (`Config.parameters_of`).
        inputs: name to finished stage, or to a text that identifies other input (the data set's hash).
        method: the folder's method; empty: the configuration's.

    Returns:
        the stage; `is_complete()` says whether there is anything left to do.

    Raises:
        DataError: a stage among the inputs has not finished, or another process is making this one; a shard comes before
            shard 0.

    Explained in notebook 00, section "A stage's folder".
    """
    stage = Stage(stage_folder(config, name, method))
    parameters = config.parameters_of(*uses)
    hashes = {key: value if isinstance(value, str) else value.results() for key, value in inputs.items()}
    for parameter, value in parameters.items():  # a weights file counts by its content, not only by its name
        if parameter.endswith("_weights") and (file := project_path(value)).is_file():
            hashes[parameter] = sha256([file], file.parent)
    key = hashlib.sha256(json.dumps([parameters, hashes], sort_keys=True).encode()).hexdigest()[:16]
    begun = stage.folder / "begun.json"
    if stage.is_complete() and begun.is_file() and _entry(read_json(begun), "key", str, begun) == key:
        return stage
    if config.shards > 1 and config.shard:  # others make their images beside this run; shard 0 has made the folder ready
        if not begun.is_file() or _entry(read_json(begun), "key", str, begun) != key:
            raise DataError(f"{stage.folder}: not begun with these parameters and inputs; run shard 0 before shard "
                            f"{config.shard}")
        stage.lock = lock_folder(stage.folder.with_name(f"{name}.shard{config.shard}"))
        return stage
    stage.lock = lock_folder(stage.folder)
    if begun.is_file() and _entry(read_json(begun), "key", str, begun) != key:
        aside = stage.folder.with_name(name + ".stale")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(stage.folder, aside)
        print(f"{name}: parameters or inputs have changed; the old results are now in {aside.name}")
    _remove_leftovers(stage.folder, ".writing-*")  # of a process that was killed while it wrote
    if stage.is_complete():  # the process that held the lock has finished it
        unlock_folder(stage.lock)
    if not begun.is_file():
        write_json(begun, {"key": key, "parameters": parameters, "inputs": hashes})
    return stage


def _remove_leftovers(folder: Path, pattern: str) -> None:
    for leftover in folder.rglob(pattern):
        leftover.unlink(missing_ok=True)


def stage_folder(config: Config, name: str, method: str = "") -> Path:
    """Return the path `runs_root/dataset/method/seedK/name`, whether or not it exists.

    Args:
        config: gives runs_root, dataset, method and seed.
        name: of the stage, e.g. "maps".
        method: the folder's method; empty: the configuration's.
    """
    return project_path(config.runs_root) / config.dataset / (method or config.method) / f"seed{config.seed}" / name


def open_stage(config: Config, name: str, notebook: str, method: str = "") -> Stage:
    """Open a stage that another notebook has made.

    Args:
        config: gives runs_root, dataset, method and seed.
        name: of the stage, e.g. "maps".
        notebook: the notebook that makes it, e.g. "10_cam", for the message.
        method: the folder's method; empty: the configuration's.

    Returns:
        the finished stage.

    Raises:
        DataError: it has not finished; the message names the notebook to run first.

    Explained in notebook 00, section "A stage's folder".
    """
    stage = Stage(stage_folder(config, name, method))
    if not stage.is_complete():
        raise DataError(f"{stage.folder} is not finished: run notebook {notebook} with the same dataset, method and seed first")
    return stage


def finished_stages(run_folder: Path | str) -> dict[tuple[str, int], dict[str, Stage]]:
    """Return the finished stages of all methods of a run, without those that were moved aside.

    Args:
        run_folder: `runs/<dataset>`.

    Returns:
        (method, seed) to stage name to stage, sorted.

    Explained in notebook 95, section "What is finished".
    """
    found: dict[tuple[str, int], dict[str, Stage]] = {}
    for record in sorted(Path(run_folder).glob("*/seed*/*/run.json")):
        method, seed, name = record.parent.parts[-3:]
        if method not in ("data", "report") and not name.endswith(".stale"):
            found.setdefault((method, int(seed.removeprefix("seed"))), {})[name] = Stage(record.parent)
    return found
