"""Every stage of two methods on forty generated images, in the order of the notebooks, in one process.

The notebooks' figures and prose are left out, so that a test can run the chain often: about ten seconds on one core.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from data_prep.toy import make_toy_dataset
from tests.warm import Server
from wsss_lib import report
from wsss_lib.comparison import OVERVIEW
from wsss_lib.config import Config
from wsss_lib.core import stage
from wsss_lib.core.check import CHECK
from wsss_lib.core.stage import run_folder_of
from wsss_lib.core.store import StageFolder
from wsss_lib.pipeline import stages_of

TRAIN, VAL, SIDE = 30, 10, 48
SETTINGS = {
    "device": "cpu",
    "num_workers": 0,
    "checkpoint_every": 2,
    "device_batch_size": 4,
    "cam_epochs": 2,
    "cam_batch_size": 8,
    "cam_crop": 48,
    "cam_long_side_min": 40,
    "cam_long_side_max": 56,
    "cam_scales": (1.0, 0.5),
    "irn_crop": 48,
    "irn_epochs": 2,
    "irn_batch_size": 8,
    "irn_train_radius": 3,
    "amn_epochs": 2,
    "seed_num_thresholds": 9,
    "deeplab_crop": 49,
    "deeplab_batch_size": 8,
    "deeplab_iterations": 6,
}
METHODS = ("cam", "amn")


def make_data(root: Path) -> Path:
    """Make the images of the chain, or leave them as they are."""
    return make_toy_dataset(root, 0, TRAIN, VAL, SIDE, progress=False, workers=1)


def config_of(data: Path, runs: Path, method: str, **values) -> Config:
    """Return the configuration of a method's stages."""
    return Config(**SETTINGS | {"data_root": str(data), "runs_root": str(runs), "dataset": "micro", "method": method} | values)


def write_preset(root: Path, data: Path) -> None:
    """Write the chain's values as the preset `micro` of a checkout, for its notebooks."""
    values = SETTINGS | {"data_root": str(data), "dataset": "micro", "num_workers": 1}
    (root / "configs/micro.yaml").write_text(
        json.dumps({name: list(value) if isinstance(value, tuple) else value for name, value in values.items()})
    )


def run(data_root: Path, runs: Path, methods: tuple[str, ...] = METHODS, **values) -> None:
    """Run all stages of the methods, and the report, or go on where an earlier call was stopped."""
    for method in methods:
        config = config_of(data_root, runs, method, **values)
        if method == "cam":
            stage.run(CHECK, config)
        for part in stages_of(config):
            stage.run(part, config)
    config = config_of(data_root, runs, "cam", **values)
    stage.run(OVERVIEW, config)
    report.write_report(run_folder_of(config))


def everything(runs: Path) -> dict[str, bytes]:
    """Return name to content of every file of a run; a record without what differs from run to run (time, memory, speed)."""
    found = {}
    for path in sorted(path for path in runs.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name == "run.json":
            record = json.loads(content)
            content = json.dumps(
                {
                    name: value
                    for name, value in record.items()
                    if name not in ("seconds", "images_per_second", "peak_memory_mib")
                }
            ).encode()
        found[path.relative_to(runs).as_posix()] = content
    return found


def unfinished(runs: Path) -> str:
    """Return method and name of the stage that was begun and not finished, or an empty text."""
    begun = [StageFolder(path.parent) for path in sorted(runs.glob("*/*/seed*/*/begun.json")) if "." not in path.parent.name]
    return next((f"{folder.folder.parts[-3]}/{folder.name}" for folder in begun if not folder.is_complete()), "")


class ChainServer(Server):
    """Runs chains, one after the other, each in a process that may be killed."""

    def begin_chain(self, data: Path, runs: Path, **values) -> int:
        """Begin or continue a run; return the number of its process, which leads a group."""
        return self.begin("tests.small_chain", data, runs, json.dumps(values))


@contextmanager
def chain_server() -> Iterator[ChainServer]:
    """Start a `ChainServer`, and end it."""
    server = ChainServer()
    with server.process:
        yield server
        server.process.stdin.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))
