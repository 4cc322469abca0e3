"""Every stage of two methods on forty generated images, in the order and by the calls of the notebooks, in one process.

The notebooks' figures and prose are left out, so that a test can run the chain often: about ten seconds on one core.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data_prep.toy import make_toy_dataset
from wsss_lib import formats, report, results, stages, training
from wsss_lib.artifacts import Stage, begin_stage, open_stage
from wsss_lib.config import MASKS_OF, PROJECT_ROOT, Config
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.methods import amn_stages

TRAIN, VAL, SIDE = 30, 10, 48
SETTINGS = {"device": "cpu", "num_workers": 0, "checkpoint_every": 2, "device_batch_size": 4, "cam_epochs": 2,
            "cam_batch_size": 8, "cam_crop": 48, "cam_long_side_min": 40, "cam_long_side_max": 56, "cam_scales": (1.0, 0.5),
            "irn_crop": 48, "irn_epochs": 2, "irn_batch_size": 8, "irn_train_radius": 3, "amn_epochs": 2,
            "seed_num_thresholds": 9, "deeplab_crop": 49, "deeplab_batch_size": 8, "deeplab_iterations": 6}
METHODS = ("cam", "amn")
# Imports everything once and then runs a chain in a process of its own, in a group of its own, for each line that it reads.
SERVER = """
import json, os, sys, traceback
from pathlib import Path
import torch
from tests import small_chain
from wsss_lib import report
torch.set_num_threads(1)
for line in sys.stdin:
    data, runs, values = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(2, 1)  # what a stage prints is none of the answers
        try:
            small_chain.run(Path(data), Path(runs), **values)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    _, status, usage = os.wait4(child, 0)
    print(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, flush=True)
"""


def make_data(root: Path) -> Path:
    """Make the images of the chain, or leave them as they are."""
    return make_toy_dataset(root, 0, TRAIN, VAL, SIDE, progress=False, workers=1)


def config_of(data: Path, runs: Path, method: str, **values) -> Config:
    """Return the configuration of a method's stages."""
    return Config(**SETTINGS | {"data_root": str(data), "runs_root": str(runs), "dataset": "micro", "method": method} | values)


def write_preset(root: Path, data: Path) -> None:
    """Write the chain's values as the preset `micro` of a checkout, for its notebooks."""
    values = SETTINGS | {"data_root": str(data), "dataset": "micro", "num_workers": 1}
    (root / "configs/micro.yaml").write_text(json.dumps({name: list(value) if isinstance(value, tuple) else value
                                                         for name, value in values.items()}))


def run(data_root: Path, runs: Path, methods: tuple[str, ...] = METHODS, **values) -> None:
    """Run all stages of the methods, and the report, or go on where an earlier call was stopped."""
    for method in methods:
        config = config_of(data_root, runs, method, **values)
        data = stages.open_data(config, "train")
        training.seed_everything(config)
        if method == "cam":
            check(config)
            cam_maps(config, data)
        else:
            amn_maps(config, data)
        seeds(config, data)
        irn_masks(config, data)
        deeplab(config, data, stages.open_data(config, "val"))
    overview(config_of(data_root, runs, "cam", **values))


def check(config: Config) -> None:
    """Notebook 02."""
    data = {split: stages.open_data(config, split) for split in ("train", "val")}
    stage = begin_stage(config, "check", (), {split: stages.data_hash(part) for split, part in data.items()}, method="data")
    if not stage.is_complete():
        stage.finish([{"what": "data check", "split": split, "images": len(part)} for split, part in data.items()])


def cam_maps(config: Config, data: SegmentationDataset) -> None:
    """Notebook 10."""
    classifier = begin_stage(config, "classifier", stages.CLASSIFIER_FIELDS, {"data": stages.data_hash(data)})
    weights, images_seen = classifier.folder / "weights.safetensors", 0
    if not classifier.is_complete():
        torch.manual_seed(config.seed)
        net = stages.build_classifier(config, data.num_classes)
        images_seen = stages.train_classifier(net, data, config, classifier.folder)
        training.save_weights(net, weights)
    net = stages.build_classifier(config, data.num_classes, weights).eval()
    if not classifier.is_complete():
        probabilities = stages.score_classifier(net, data, config)
        classifier.finish([{"what": "classifier", "sum": float(probabilities.sum())}], images_seen)
    maps = begin_stage(config, "maps", ("cam_",), {"classifier": classifier})
    if not maps.is_complete():
        made = stages.make_maps(stages.cam_localization(net, config), data, config, maps.folder)
        maps.finish([stages.score_maps(data, maps.folder)], made)


def amn_maps(config: Config, data: SegmentationDataset) -> None:
    """Notebook 40."""
    classifier = open_stage(config, "classifier", "10_cam", method="cam")
    cam = open_stage(config, "maps", "10_cam", method="cam")
    refined = begin_stage(config, "refined_seeds", ("amn_foreground", "amn_background", "seed_crf"),
                          {"maps": cam, "data": stages.data_hash(data)})
    if not refined.is_complete():
        made = amn_stages.make_refined_seeds(data, cam.folder, config, refined.folder)
        refined.finish([{"what": "refined seeds", "unknown": stages.score_masks(data, refined.folder).unknown_share}], made)
    network = begin_stage(config, "network", amn_stages.NETWORK_FIELDS,
                          {"data": stages.data_hash(data), "seeds": refined, "classifier": classifier})
    weights, start = network.folder / "weights.safetensors", classifier.folder / "weights.safetensors"
    if not network.is_complete():
        torch.manual_seed(config.seed)
        net = amn_stages.build_amn(config, data.num_classes, start)
        images_seen = amn_stages.train_amn(net, data, refined.folder, config, network.folder)
        training.save_weights(net, weights)
        network.finish([{"what": "AMN", "split": data.split, "images": len(data)}], images_seen)
    net = amn_stages.build_amn(config, data.num_classes, start, weights).eval()
    maps = begin_stage(config, "maps", ("amn_", "cam_scales"), {"network": network, "seeds": refined})
    if not maps.is_complete():
        localize = amn_stages.amn_localization(net, data, refined.folder, config)
        made = stages.make_maps(localize, data, config, maps.folder)
        maps.finish([stages.score_maps(data, maps.folder)], made)


def seeds(config: Config, data: SegmentationDataset) -> None:
    """Notebook 70."""
    maps = open_stage(config, "maps", "10_cam")
    stage = begin_stage(config, "seeds", ("seed_",), {"maps": maps, "data": stages.data_hash(data)})
    if not stage.is_complete():
        sweep = stages.sweep_maps(data, maps.folder, np.linspace(0.1, 0.9, config.seed_num_thresholds))
        made = stages.make_seeds(data, maps.folder, config, stage.folder)
        evaluation = stages.score_masks(data, stage.folder / "seed_masks")
        rows = [{"what": "threshold sweep", "curve": sweep.curve().tolist()},
                stages.metric_row("CAM seed + CRF", data, evaluation, True, config)]
        stage.finish(rows, made)


def irn_masks(config: Config, data: SegmentationDataset) -> None:
    """Notebook 80."""
    classifier = open_stage(config, "classifier", "10_cam", method="cam")
    maps, labels = open_stage(config, "maps", "10_cam"), open_stage(config, "seeds", "70_seeds")
    irn = begin_stage(config, "irn", ("irn_",), {"data": stages.data_hash(data), "seeds": labels, "classifier": classifier})
    weights, start = irn.folder / "weights.safetensors", classifier.folder / "weights.safetensors"
    if not irn.is_complete():
        torch.manual_seed(config.seed)
        net = stages.build_irn(config, start)
        images_seen = stages.train_irn(net, data, labels.folder / "irn_labels", config, irn.folder)
        stages.set_mean_displacement(net, data, config)
        training.save_weights(net, weights)
        irn.finish([{"what": "IRN", "split": data.split, "images": len(data)}], images_seen)
    net = stages.build_irn(config, start, weights).eval()
    masks = begin_stage(config, "pseudo_masks", ("walk_",), {"data": stages.data_hash(data), "maps": maps, "irn": irn})
    if not masks.is_complete():
        made = stages.make_pseudo_masks(net, data, maps.folder, config, masks.folder)
        evaluation = stages.score_masks(data, masks.folder)
        masks.finish([stages.metric_row("IRN pseudo-mask", data, evaluation, False, config)], made)


def deeplab(config: Config, data: SegmentationDataset, val_data: SegmentationDataset) -> None:
    """Notebook 90."""
    masks = open_stage(config, *MASKS_OF[config.refinement])
    classifier = open_stage(config, "classifier", "10_cam", method="cam")
    stage = begin_stage(config, "deeplab", stages.DEEPLAB_FIELDS,
                        {"data": stages.data_hash(data), "masks": masks, "classifier": classifier})
    weights, start = stage.folder / "weights.safetensors", classifier.folder / "weights.safetensors"
    if not stage.is_complete():
        torch.manual_seed(config.seed)
        net = stages.build_deeplab(config, data.num_classes, start)
        images_seen = stages.train_deeplab(net, data, masks.folder, config, stage.folder)
        training.save_weights(net, weights)
        stage.finish([{"what": "DeepLab-v2 training", "split": data.split, "images": len(data)}], images_seen)
    net = stages.build_deeplab(config, data.num_classes, start, weights).eval()
    predictions = begin_stage(config, "predictions", ("deeplab_",), {"data": stages.data_hash(val_data), "deeplab": stage})
    if not predictions.is_complete():
        unlabelled = replace(val_data, labels=np.zeros_like(val_data.labels))
        made = stages.make_predictions(net, unlabelled, config, predictions.folder)
        rows = [stages.metric_row(what, val_data, stages.score_masks(val_data, predictions.folder / name), crf, config)
                for what, name, crf in (("DeepLab-v2", "plain", False), ("DeepLab-v2 + CRF", "crf", True))]
        predictions.finish(rows, made)


def overview(config: Config) -> None:
    """Notebook 00 and the report."""
    run_folder = Path(config.runs_root) / config.dataset
    stage = begin_stage(config, "overview", (), {"results": results.fingerprint(results.collect(run_folder))}, method="report")
    if not stage.is_complete():
        formats.write_json(stage.folder / "table.json", results.summarize(results.collect(run_folder)))
        stage.finish([])
    report.write_report(run_folder)


def everything(runs: Path) -> dict[str, bytes]:
    """Return name to content of every file of a run; a record without what differs from run to run (time, memory, speed)."""
    found = {}
    for path in sorted(path for path in runs.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name == "run.json":
            record = json.loads(content)
            content = json.dumps({name: value for name, value in record.items()
                                  if name not in ("seconds", "images_per_second", "peak_memory_mib")}).encode()
        found[path.relative_to(runs).as_posix()] = content
    return found


def unfinished(runs: Path) -> str:
    """Return method and name of the stage that was begun and not finished, or an empty text."""
    begun = [Stage(path.parent) for path in sorted(runs.glob("*/*/seed*/*/begun.json"))]
    return next((f"{stage.folder.parts[-3]}/{stage.name}" for stage in begun if not stage.is_complete()), "")


class ChainServer:
    """Runs chains, one after the other, each in a process that may be killed."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def begin(self, data: Path, runs: Path, **values) -> int:
        """Begin or continue a run; return the number of its process, which leads a group."""
        print(json.dumps([str(data), str(runs), values]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def end(self) -> tuple[int, float]:
        """Wait for the run's end; return its exit status, negative for a signal, and the processor seconds that it took."""
        status, seconds = self.process.stdout.readline().split()
        return int(status), float(seconds)


@contextmanager
def chain_server() -> Iterator[ChainServer]:
    """Start a `ChainServer`, and end it."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    with process:
        yield ChainServer(process)
        process.stdin.close()
