"""What a stage reads and writes: its folder and record, and one reader and one writer for each kind of file.

Every write goes to a temporary name in the same folder and is then moved into place, so that a file is whole or absent.
Nothing is pickled.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss_lib.config import Config, project_path
from wsss_lib.data.dataset import DataError, voc_palette
from wsss_lib.lock import FileLock, lock_folder, unlock_folder
from wsss_lib.machine import peak_memory_mib, randomness, versions

LARGEST_MAPS = 1 << 28  # bytes; those of twenty classes on an image of 10,000 x 10,000 pixels


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, then move the file into place; on any error nothing remains.

    Args:
        path: the file to make; its folder is made too.
        write: writes the whole content to the path that it is given.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full; other errors of `write` pass through.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error}); free some space or set runs_root to another "
                      "disk, then run again: finished results are kept") from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, atomically.

    Args:
        path: the file to make.
        content: what the json module can write: dicts, lists, texts, finite numbers, None.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
        OSError: as `write_atomically`.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: a number to be recorded is NaN or infinite; a score has nothing to count, or a training has "
                         f"diverged ({error})") from None
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file of a stage.

    Args:
        path: the file.

    Returns:
        its content: dicts, lists, texts, numbers, None.

    Raises:
        DataError: the file is no JSON.
        FileNotFoundError: there is no such file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not valid JSON; delete the folder {path.parent} and run its stage again") from None


def write_maps(path: Path, classes: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> None:
    """Write localization maps.

    Args:
        path: `ID.npz`.
        classes: (K,) integers, 0-based foreground classes.
        scores: (K, h, w) floats in [0, 1] at stride 4; stored as float16.
        size: (H, W) of the image in pixels.

    Raises:
        ValueError: a score is NaN, or too large for float16.
        OSError: as `write_atomically`.
    """
    with np.errstate(over="ignore"):
        scores = np.asarray(scores, np.float16)
    if not np.isfinite(scores).all():
        raise ValueError(f"{path}: a score is not finite, or beyond the range of float16; the network has diverged, train it "
                         "again with a lower learning rate")

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, classes=np.asarray(classes, np.int16), scores=scores, size=np.asarray(size, np.int32))

    write_atomically(path, write)


def read_maps(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Read localization maps.

    Args:
        path: `ID.npz`.

    Returns:
        classes int64 (K,), 0-based; scores float32 (K, h, w) in [0, 1] at stride 4; (H, W) of the image in pixels.

    Raises:
        DataError: the file is missing, broken, or its arrays do not belong together.

    Explained in notebook 10, section "All images".
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if sum(entry.file_size for entry in file.zip.infolist()) > LARGEST_MAPS:
                raise DataError(f"it would take more than {LARGEST_MAPS >> 20} MiB")
            classes, scores, size = file["classes"], file["scores"], file["size"]
    except FileNotFoundError:
        raise DataError(f"{path}: the localization maps are missing; run notebook 10_cam on this split first") from None
    except Exception as error:  # a broken zip file or array header makes NumPy raise one of a dozen types
        raise DataError(f"{path}: not a file of localization maps ({error}); delete it and run its stage again") from None
    if (classes.dtype.kind, scores.dtype.kind, size.dtype.kind) != ("i", "f", "i") or size.shape != (2,) or (size < 1).any():
        raise DataError(f"{path}: classes, scores and size must be integers, floats and two positive integers; delete it and "
                        "run its stage again")
    if classes.ndim != 1 or scores.shape != (len(classes), *((size - 1) // 4 + 1)):
        raise DataError(f"{path}: classes {classes.shape} and scores {scores.shape} do not belong to an image of "
                        f"{size[0]}x{size[1]}; delete it and run its stage again")
    if not np.isfinite(scores).all():
        raise DataError(f"{path}: a score is NaN or infinite; delete it and run its stage again")
    return classes.astype(np.int64), scores.astype(np.float32), (int(size[0]), int(size[1]))


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a map of class indices as palette PNG in VOC's colours.

    Args:
        path: `ID.png`.
        mask: (H, W) integers in 0..255; stored as uint8.

    Explained in notebook 02, section "Masks".
    """
    image = Image.fromarray(np.asarray(mask, np.uint8), mode="P")
    image.putpalette(voc_palette().tobytes())
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))


def write_tensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write torch tensors as safetensors.

    Args:
        path: the file to make.
        tensors: name to tensor, of any shape, type and device.
        metadata: texts by name, stored in the file's header.
    """
    from safetensors.torch import save  # its own save_file reports a full disk as no OSError

    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_atomically(path, lambda temporary: temporary.write_bytes(save(tensors, metadata)))


def read_tensors(path: Path) -> dict[str, Any]:
    """Read the torch tensors of a safetensors file, or say in one sentence why that cannot be done.

    Args:
        path: the file.

    Returns:
        name to tensor on the CPU, in the shape and type of the file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no safetensors file.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such weights file")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own undocumented type
        raise DataError(f"{path}: not a safetensors file ({error}); give one that this project has "
                        "written, or delete it and run its stage again") from None


def sha256(paths: Iterable[Path], root: Path) -> str:
    """Return one hash over the names (below `root`) and contents of files.

    Args:
        paths: files below `root`, in any order.
        root: the folder from which names are counted, so that it can be moved.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


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
        DataError: a stage among the inputs has not finished, or another process is making this one.

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
