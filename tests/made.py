"""Stages that tests put in place by hand, without the functions that would make them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from wsss_lib.config import Config
from wsss_lib.core.stage import run_folder_of
from wsss_lib.core.store import StageFolder, claim


def place(config: Config, name: str, method: str = "") -> Path:
    """Return the folder of a stage."""
    return run_folder_of(config) / (method or config.method) / f"seed{config.seed}" / name


def begin(
    config: Config, name: str, reads: tuple[str, ...] = (), inputs: dict[str, str] | None = None, method: str = ""
) -> StageFolder:
    """Claim the folder of a stage, as `run` does."""
    parameters = config.parameters_of(*reads)
    key = hashlib.sha256(json.dumps([parameters, inputs], sort_keys=True).encode()).hexdigest()[:16]
    content = {"key": key, "parameters": parameters, "inputs": inputs or {}}
    return claim(place(config, name, method), content, config.shard if config.shards > 1 else 0)


def finish(stage: StageFolder, rows: list[dict[str, Any]] = (), images: int = 0, device: str = "cpu") -> StageFolder:
    """Write scores and record."""
    stage.write_metrics(list(rows), stage.key())
    stage.finish(1.0, images, device)
    stage.release()
    return stage
