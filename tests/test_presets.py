"""The presets hold the published values; no method's file moves a stage that it does not say it moves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.trace_adapters import Split
from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.methods import METHODS, amn, cam, drs, rib, sccam, vwe
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.pipeline import stages_of
from wsss_lib.presets import preset_config, preset_files, read_preset
from wsss_lib.refine import affinitynet, irn
from wsss_lib.segment import deeplab

PUBLISHED = yaml.safe_load((PROJECT_ROOT / "docs/published_values.yaml").read_text())
ALL_PRESETS = ("smoke", "voc12-small", "voc12", "coco14")
FILES = sorted((PROJECT_ROOT / "configs/methods").glob("*.yaml"))


@pytest.mark.parametrize("method, name", [(method, name) for method, values in PUBLISHED.items() for name in values])
def test_voc12_holds_the_published_value(method, name):
    expected, value = PUBLISHED[method][name]["value"], getattr(preset_config("voc12", method), name)
    assert (list(value) if isinstance(value, tuple) else value) == expected, PUBLISHED[method][name]["source"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_method_moves_no_stage_of_another_notebook_without_saying_so(path):
    preset, method = path.stem.split(".")
    config = preset_config(preset, method)
    read_by_others: set[str] = {
        name
        for stage in stages_of(config)
        if stage.notebook != METHODS[method].NOTEBOOK
        for name in config.names_of(*stage.read_by(config))
    }
    declared = set(config.names_of(*METHODS[method].SETS_FOR_OTHERS))
    assert not (set(read_preset(path)) & read_by_others) - declared


# ---- what the optimizers are given, in every preset, for every method

# Momentum and weight decay of every network: of the programs for voc12 and coco14, of this project for the others.
OPTIMIZERS = {
    "classifier": (1e-4, 1e-4),
    "irn": (1e-4, 1e-4),
    "vwe": (1e-4, 1e-4),
    "sccam": (5e-4, 5e-4),
    "affinitynet": (5e-4, 5e-4),
    "drs": (0.9, 5e-4),
    "refinement": (None, 0.0),
    "amn": (None, 1e-4),
    "deeplab": (0.9, 5e-4),
}
OWN = OPTIMIZERS | {
    "classifier": (0.9, 1e-4),
    "irn": (0.9, 1e-4),
    "vwe": (0.9, 1e-4),
    "sccam": (0.9, 5e-4),
    "affinitynet": (0.9, 5e-4),
    "drs": (0.9, 1e-4),
}


def networks(config: Config) -> Iterator[tuple[str, torch.nn.Module, Any, tuple]]:
    """Every network that a method's run trains: its name, itself, its training function and what that is given between."""
    if config.method == "cam":
        yield "classifier", cam.build_classifier(config, 20), cam.train_classifier, ()
    if config.method == "vwe":
        yield "vwe", vwe.build_vwe(config, 20, ""), vwe.train_vwe, ()
    if config.method == "sccam":
        assignment = np.full((320, 20), -1)
        yield (
            "sccam",
            sccam.build_sccam(config, 20),
            lambda net, data, config, folder: sccam.train_sccam.__wrapped__(net, data, assignment, config, folder, 1),
            (),
        )
    if config.method == "drs":
        yield "drs", drs.build_drs(config, 20), drs.train_drs, ()
        yield "refinement", drs.build_refinement(config, 20), drs.train_refinement, (Path(),)
    if config.method == "amn":
        yield "amn", amn.build_amn(config, 20, ""), amn.train_amn, (Path(),)
    stages = {stage.name for stage in stages_of(config)}
    if "irn" in stages:
        yield "irn", irn.build_irn(config, ""), irn.train_irn, (Path(),)
    if "affinitynet" in stages:
        yield "affinitynet", affinitynet.build_affinitynet(config, ""), affinitynet.train_affinitynet, (Path(),)
    yield "deeplab", deeplab.build_deeplab(config, 20, ""), deeplab.train_deeplab, (Path(),)


@pytest.fixture
def given(monkeypatch):
    """What `training.train` was given last."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        training,
        "train",
        lambda net, loss_of, samples, groups, momentum, *_, **__: seen.update(momentum=momentum, groups=groups),
    )
    monkeypatch.setattr(amn, "_check_seeds", lambda *_: None)
    return seen


@pytest.mark.parametrize("preset", ALL_PRESETS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("refinement", ["", "irn", "affinitynet"])
def test_every_network_has_the_momentum_and_the_weight_decay_of_its_own_program(preset, method, refinement, given, tmp_path):
    values = {"refinement": refinement} if refinement else {}
    config = preset_config(preset, method, **values)
    start = {name: "backbone" for name in Config.model_fields if name.endswith("_init")}
    config = config.model_copy(
        update=start | {"deeplab_init": "none", "backbone_weights": "none", "drs_backbone_weights": "none"}
    )
    expected = OPTIMIZERS if preset in ("voc12", "coco14") else OWN
    data = Split(320)
    data.root, data.classes = tmp_path, tuple("abcdefghijklmnopqrst")
    with torch.device("meta"):
        for name, net, train, between in networks(config):
            getattr(train, "__wrapped__", train)(net, data, *between, config, tmp_path)
            momentum, weight_decay = expected[name]
            decays = {group["weight_decay"] for group in given["groups"]}
            assert given["momentum"] == momentum and max(decays) == weight_decay, (name, given["momentum"], decays)


@pytest.mark.parametrize("refinement", ["irn", "affinitynet"])
def test_drs_classifier_leaves_irn_and_affinitynet_as_they_are(refinement):
    """Once its file set momentum, weight decay and frozen stages for all."""
    fields = [name for name in Config.model_fields if name.startswith(("irn_", "affinitynet_"))]
    values = [
        [getattr(preset_config("voc12", method, refinement=refinement), name) for name in fields] for method in ("cam", "drs")
    ]
    assert values[0] == values[1]


def test_rib_tunes_with_the_published_optimizer():
    config = preset_config("voc12", "rib")
    assert (config.rib_momentum, config.rib_weight_decay) == (1e-4, 1e-4) and rib.FROZEN_STAGES == 3


def test_presets_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preset_files("voc12", "rib")[0].is_file()
