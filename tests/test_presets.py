"""The presets hold the published values; no method's file moves a stage that it does not say it moves."""

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests import fidelity
from tests.fidelity import PUBLISHED
from tests.trace_adapters import Split
from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.methods import METHODS, amn, cam, drs, rib, sccam, vwe
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.pipeline import stages_of
from wsss_lib.presets import preset_config, preset_files, read_preset
from wsss_lib.refine import affinitynet, irn
from wsss_lib.segment import deeplab

ALL_PRESETS = ("smoke", "voc12-small", "voc12", "coco14")
FILES = sorted((PROJECT_ROOT / "configs/methods").glob("*.yaml"))


def header_of(preset: str, method: str) -> str:
    """Return the comments at the beginning of a preset's files."""
    lines = (path.read_text().splitlines() for path in preset_files(preset, method))
    return "\n".join(line for file in lines for line in takewhile(lambda line: line.startswith("#"), file))


@pytest.mark.parametrize("preset, method", [(preset, method) for preset, methods in PUBLISHED.items() for method in methods])
def test_a_preset_holds_the_published_values_or_names_its_departures(preset, method):
    config = preset_config(preset, method)
    for name, entry in PUBLISHED[preset][method].items():
        assert (fidelity.state(entry, getattr(config, name)) == "declared") == ("departure" in entry), (name, entry)
        assert "departure" not in entry or re.search(rf"\b{name}\b", header_of(preset, method)), name


def test_every_method_and_deeplabs_recipe_are_in_the_table_of_voc12():
    assert set(PUBLISHED["voc12"]) == {"cam", "rib", "drs", "amn", "vwe", "sccam"}
    recipe = {f"deeplab_{name}" for name in ("init", "iterations", "batch_size", "learning_rate", "loss", "scales")}
    for method in PUBLISHED["voc12"]:
        assert recipe <= PUBLISHED["voc12"][method].keys(), method


def test_no_value_is_given_twice():
    """YAML takes the last one without a word."""
    node = yaml.compose((PROJECT_ROOT / "docs/published_values.yaml").read_text())
    for _, methods in node.value:
        for _, values in methods.value:
            names = [name.value for name, _ in values.value]
            assert len(set(names)) == len(names)


def test_ribs_seeds_lie_between_its_sure_labels():
    for preset in ("voc12", "coco14"):
        config = preset_config(preset, "rib")
        assert config.seed_background_threshold < config.seed_threshold < config.seed_foreground_threshold


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
VWES_DEEPLAB = (0.9, 4 * 5e-4)  # of the sum of four losses, not of their mean
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


class OptimizerMadeError(Exception):
    """A training has made its optimizer; what follows would learn."""


@pytest.fixture
def given(monkeypatch):
    """What torch's optimizer was given last, and the steps that were planned."""
    seen: dict[str, Any] = {}
    train = training.train

    def optimizer(groups, lr, momentum=None, nesterov=False):
        seen.update(momentum=momentum, groups=groups, nesterov=nesterov)
        raise OptimizerMadeError

    def watched(net, loss_of, samples, groups, momentum, steps, *rest, **options):
        seen.update(steps=steps, keep_last=options.get("keep_last", False))
        train(net, loss_of, samples, groups, momentum, steps, *rest, **options)

    for name in ("SGD", "Adam"):
        monkeypatch.setattr(torch.optim, name, optimizer)
    monkeypatch.setattr(training, "train", watched)
    monkeypatch.setattr(amn, "_check_seeds", lambda *_: None)
    return seen


def made_optimizers(
    config: Config, folder: Path, given: dict[str, Any], images: int = 320
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Begin every training of a method's run without weights and without memory; yield what its optimizer was given."""
    start = {name: "backbone" for name in Config.model_fields if name.endswith("_init")}
    config = config.model_copy(
        update=start | {"deeplab_init": "none", "backbone_weights": "none", "drs_backbone_weights": "none"}
    )
    data = Split(images)
    data.root, data.classes = folder, tuple("abcdefghijklmnopqrst")
    with torch.device("meta"):
        for name, net, train, between in networks(config):
            with pytest.raises(OptimizerMadeError):
                getattr(train, "__wrapped__", train)(net, data, *between, config, folder)
            yield name, given


@pytest.mark.parametrize("preset", ALL_PRESETS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("refinement", ["", "irn", "affinitynet"])
def test_every_network_has_the_momentum_and_the_weight_decay_of_its_own_program(preset, method, refinement, given, tmp_path):
    values = {"refinement": refinement} if refinement else {}
    expected = OPTIMIZERS if preset in ("voc12", "coco14") else OWN
    for name, made in made_optimizers(preset_config(preset, method, **values), tmp_path, given):
        momentum, weight_decay = expected[name]
        if (preset, method, name) == ("voc12", "vwe", "deeplab"):
            momentum, weight_decay = VWES_DEEPLAB
        decays = {group["weight_decay"] for group in made["groups"]}
        assert made["momentum"] == momentum and max(decays) == weight_decay, (name, made["momentum"], decays)
        assert made["nesterov"] == (name == "drs")


def test_the_numbers_of_steps_are_those_of_the_programs(given, tmp_path):
    """On the 10,582 images of VOC; DRS's loaders keep the last batch, the others drop it."""
    expected = {
        "cam": {"classifier": 661 * 5, "irn": 330 * 3, "deeplab": 30_000},
        "drs": {"drs": 1059 * 15, "refinement": 1059 * 30, "deeplab": 10_000},
        "amn": {"amn": 661 * 5, "irn": 330 * 3, "deeplab": 30_000},
        "vwe": {"vwe": 661 * 6, "irn": 330 * 3, "deeplab": 20_000},
        "sccam": {"sccam": 661 * 31, "affinitynet": 1322 * 8, "deeplab": 20_000},
    }
    for method, steps in expected.items():
        found = {}
        for name, made in made_optimizers(preset_config("voc12", method), tmp_path, given, 10_582):
            found[name] = made["steps"]
            assert made["keep_last"] == (method == "drs" and name != "deeplab")
        assert found == steps


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
