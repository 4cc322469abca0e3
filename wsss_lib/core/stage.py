"""A stage of the pipeline, and `run`, which makes it, resumes it, or finds it finished.

A stage says in one place what it is called, what it needs, which parameters it reads, and which plain function makes it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wsss_lib.core import training
from wsss_lib.core.files import sha256
from wsss_lib.core.store import StageFolder, claim
from wsss_lib.data.dataset import SegmentationDataset, data_hash, mask_hash, open_data
from wsss_lib.errors import DataError
from wsss_lib.nets.base import Network
from wsss_lib.parameters import RUNTIME, project_path

if TYPE_CHECKING:
    from wsss_lib.config import Config

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, eq=False)  # a stage equals only itself
class Stage:
    """One step of the pipeline.

    Attributes:
        name: of its folder `runs/<dataset>/<method>/seed<k>/<name>`.
        notebook: stem of the notebook that runs it.
        make: fills `job.folder`; returns the number of images handled, for the record's speed. It may be called again after
            a kill and resumes where it stopped.
        reads: parameters that `make` and `load` may read; "vwe_*" stands for all that begin so. A function of the configuration
            if one parameter decides whether others are read.
        inputs: name to the stage whose finished results `make` needs, for a configuration.
        files: name to a hash of whatever else `make` reads, e.g. ground truth.
        split: the parameter that names the split of `job.data`; empty: the stage reads no data set.
        limit: the parameter that says how many of its first images are used; if that is 0, `limit` does.
        load: returns the network that `make` left, on the device, in evaluation mode.
        score: rows of `metrics.json`; recomputed, without the stage, when the images or masks that it reads change.
        score_reads: parameters that only `score` may read.
        needs_masks: whether `score` reads masks; without any it is not called.
        score_split: the parameter that names the split of `job.score_data`.
        method: the one whose folder holds the stage; empty: the configuration's method.
        shows: names of the rows with a mIoU that `score` returns, in the order of all tables, each to the folder of its label
            maps below the stage's; None where no label maps are stored.
    """

    name: str
    notebook: str
    make: Callable[["Job"], int]
    reads: tuple[str, ...] | Callable[["Config"], tuple[str, ...]] = ()
    inputs: Callable[["Config"], dict[str, "Stage"]] = lambda config: {}
    files: Callable[["Job"], dict[str, str]] = lambda job: {}
    split: str = "train_split"
    limit: str = "limit"
    load: Callable[["Job"], torch.nn.Module] | None = None
    score: Callable[["Job"], list[dict[str, Any]]] | None = None
    score_reads: tuple[str, ...] = ()
    needs_masks: bool = True
    score_split: str = "score_split"
    method: str = ""
    shows: Mapping[str, str | None] = field(default_factory=dict)

    def read_by(self, config: "Config") -> tuple[str, ...]:
        """Return the parameters that the stage reads under a configuration."""
        return self.reads(config) if callable(self.reads) else self.reads


class Job:
    """One stage with one configuration: what its functions are given, and what `run` returns.

    Attributes:
        config: the parameters that the stage declares, no others.
        whole: the whole configuration, for what is not a parameter of a stage: where the data lie, whose maps are used.
        folder: where the results lie.
        inputs: name to the finished job of each input.
    """

    def __init__(self, stage: Stage, config: "Config"):
        self.stage, self.whole = stage, config
        self.config = config.settings(stage.read_by(config), stage.name)
        self.folder = folder_of(stage, config)
        self.files = StageFolder(self.folder)
        self.inputs: dict[str, Job] = {}

    @cached_property
    def data(self) -> SegmentationDataset:
        """The split that the stage works on."""
        limit = getattr(self.whole, self.stage.limit) or self.whole.limit
        data = open_data(self.whole.model_copy(update={"limit": limit}), getattr(self.whole, self.stage.split))
        if self.stage.split == "train_split" and not data.labels.any():
            raise DataError(
                f"{data.root}: no image of split {data.split!r} has a label, so that there is nothing to learn from"
            )
        return data

    @cached_property
    def score_data(self) -> SegmentationDataset:
        """The images on which the stage is scored; those that have a mask, where one is needed."""
        data = open_data(self.whole, getattr(self.whole, self.stage.score_split))
        return data.scored() if self.stage.needs_masks else data

    @cached_property
    def device(self) -> torch.device:
        """Where networks compute."""
        return training.device_of(self.whole)

    @property
    def weights(self) -> Path:
        """The file of the network's weights."""
        return self.folder / WEIGHTS

    @cached_property
    def net(self) -> Any:  # the stage knows which network
        """The stage's network, on the device, in evaluation mode."""
        if self.stage.load is None:
            raise ValueError(f"stage {self.stage.name!r} has no network")
        return self.stage.load(self)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The stage's scores, rows of `metrics.json`."""
        return self.files.metrics()

    def log(self) -> list[dict[str, float]]:
        """Return the rows of the training's log, as `training.read_log`."""
        return training.read_log(self.folder)

    def scoring(self) -> "Job":
        """Return the job for `Stage.score`: what only scores depend on may be read, too."""
        job = Job(replace(self.stage, reads=(*self.stage.read_by(self.whole), *self.stage.score_reads)), self.whole)
        job.inputs = self.inputs
        return job


def run_folder_of(config: "Config") -> Path:
    """Return the folder of all methods and seeds of a run, `runs_root/dataset`."""
    return project_path(config.runs_root) / config.dataset


def folder_of(stage: Stage, config: "Config") -> Path:
    """Return the folder of a stage's current results, whether or not it exists."""
    return run_folder_of(config) / (stage.method or config.method) / f"seed{config.seed}" / stage.name


def open_stage(stage: Stage, config: "Config") -> Job:
    """Open what another notebook has made, whatever parameters it was made with.

    Raises:
        DataError: it has not finished.
    """
    job = Job(stage, config)
    if not job.files.is_complete():
        raise DataError(
            f"{job.folder} is not finished: run notebook {stage.notebook} with the same dataset, method and seed first"
        )
    recorded = {name: value for name, value in job.files.parameters().items() if name in type(config).model_fields}
    try:
        made_with = type(config).from_values(config.model_dump() | recorded)
    except ValueError as error:
        raise DataError(f"{job.folder / 'begun.json'}: {error}; delete its folder and run the stage again") from None
    job.config = made_with.settings(stage.read_by(made_with), stage.name)
    return job


def run(stage: Stage, config: "Config") -> Job:
    """Make a stage, resume an interrupted one, or find it finished; return it with its results.

    Raises:
        DataError: an input is not finished, or another process is making this stage.
        ShardDone: this process has made its part of the images.
        ValueError: what the stage's own function refuses.
        OSError: a file cannot be written.
    """
    job = Job(stage, config)
    job.inputs = {name: open_stage(other, config) for name, other in stage.inputs(config).items()}
    content = _identity(job)
    score_key = _score_key(job, content["key"])
    job.files = claim(job.folder, content, config.shard if config.shards > 1 else 0)
    training.seed_everything(config)
    try:
        if not job.files.is_complete():
            started = time.monotonic()
            images = stage.make(job)
            job.files.write_metrics(_scores(job), score_key)
            job.files.finish(max(time.monotonic() - started, 1e-3), images, str(job.device))
        elif job.files.scored_with() != score_key:
            job.files.write_metrics(_scores(job), score_key)
    finally:
        job.files.release()
    for row in job.files.metrics():
        if "not_scored" in row:
            print(f"{stage.name} is not scored: the images of {row['split']!r} have {row['not_scored']}")
    return job


def _scores(job: Job) -> list[dict[str, Any]]:
    """Return the stage's scores, or why there are none."""
    stage = job.stage
    if stage.score is None:
        return []
    if stage.split and stage.needs_masks and not job.score_data.has_masks:
        return [{"what": stage.name, "split": job.score_data.split, "images": 0, "not_scored": "no masks"}]
    return stage.score(job.scoring())


def _identity(job: Job) -> dict[str, Any]:
    """Return what `begun.json` holds: parameters, hashes of inputs, the key (one hash over both), class names."""
    config, stage = job.whole, job.stage
    parameters = config.parameters_of(*stage.read_by(config))
    for name in RUNTIME:
        parameters.pop(name, None)
    hashes = {name: other.files.results() for name, other in job.inputs.items()}
    if stage.split:
        hashes["data"] = data_hash(job.data)
    hashes |= stage.files(job)
    for name, value in parameters.items():  # a weights file counts by its content, not only by its name
        if name.endswith(("_weights", "_init")) and (file := project_path(value)).is_file():
            hashes[name] = sha256([file], file.parent)
    classes = {"classes": job.data.classes} if stage.split else {}
    return {"key": _hash([parameters, hashes]), "parameters": parameters, "inputs": hashes} | classes


def _score_key(job: Job, key: str) -> str:
    if job.stage.score is None:
        return key
    data = [data_hash(job.score_data), mask_hash(job.score_data)] if job.stage.split else []
    return _hash([key, job.whole.parameters_of(*job.stage.score_reads), data])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def network_made(job: Job, build: Callable[[], Network], train: Callable[[Network], int], finished_weights: str) -> int:
    """Build a network, train it unless a file of finished weights is named, and save it: the `make` of every network's stage.

    Args:
        build: returns the network with its initial weights, or with the finished ones.
        train: changes it in place; returns the number of images seen.
        finished_weights: the parameter that names a file of weights to use instead of training; may be empty.
    """
    net = build().to(job.device)
    images_seen = 0 if finished_weights else train(net)
    training.save_weights(net, job.weights)
    return images_seen
