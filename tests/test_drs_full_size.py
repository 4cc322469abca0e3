"""DRS as published and DeepLab-v3+ at full size: two steps of every training, then every later stage on one photograph."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_drs_stages import write_saliency
from tests.test_full_size import check_log, check_mask, tame, write_voc
from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.core.files import read_maps
from wsss_lib.core.parallel import make_maps
from wsss_lib.data.dataset import open_data
from wsss_lib.data.saliency import check_saliency
from wsss_lib.methods import drs
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config, read_preset
from wsss_lib.segment.deeplab import build_deeplab, make_predictions, score_centre_crops, train_deeplab

pytestmark = [pytest.mark.system, pytest.mark.slow]

# Without weights of ImageNet and without a GPU; networks, sizes, scales and losses are those of the presets.
REDUCED = {
    "train_split": "train",
    "num_workers": 0,
    "device": "cpu",
    "device_batch_size": 1,
    "mixed_precision": False,
    "drs_backbone_weights": "none",
    "drs_epochs": 2,
    "drs_batch_size": 1,
    "drs_refine_epochs": 2,
    "deeplab_init": "none",
    "deeplab_iterations": 2,
    "deeplab_batch_size": 2,
}


def config_of(tmp_path, **others) -> Config:
    folders = {"data_root": str(tmp_path / "VOC2012"), "runs_root": str(tmp_path / "runs")}
    return preset_config("voc12", **others | REDUCED | folders)


@pytest.mark.parametrize("delta", [0.0, 0.55])
def test_drs_of_voc12_runs_at_full_size(tmp_path, delta):
    write_voc(tmp_path / "VOC2012")
    config = config_of(tmp_path, method="drs", drs_delta=delta, limit=1)
    assert (config.drs_backbone, config.drs_crop, config.drs_suppressed_stages) == ("vgg16", 320, 5)
    training.seed_everything(config)
    data = open_data(config, "train")
    runs = tmp_path / "runs"
    saliency = write_saliency(data, data.root / config.drs_saliency_folder)
    check_saliency(data, saliency)

    classifier = drs.build_drs(config, data.num_classes)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    assert drs.train_drs(classifier, data, config, runs / "network") == 2
    same = [name for name, value in classifier.state_dict().items() if torch.equal(value, before[name])]
    assert not same, same  # nothing is frozen
    check_log(runs / "network")
    localize = drs.drs_localization(classifier, config)
    assert make_maps(localize, data, config, runs / "localization") == 1
    check_maps(runs / "localization")
    if delta:
        return  # what follows is the same network for every delta

    refinement = drs.build_refinement(config, data.num_classes)
    assert drs.train_refinement(refinement, data, runs / "localization", config, runs / "refinement") == 2
    check_log(runs / "refinement")
    localize = drs.drs_localization(refinement, config, normalized=False)
    assert make_maps(localize, data, config, runs / "maps") == 1
    check_maps(runs / "maps")
    assert drs.make_pseudo_labels(data, runs / "localization", saliency, config, runs / "drs_masks") == 1
    check_mask(runs / "drs_masks", {0, 12, 15, 255})

    net = build_deeplab(config, data.num_classes, "")  # v2 with the self-label loss
    tame(net)
    assert train_deeplab(net, data, runs / "drs_masks", config, runs / "deeplab") == 4
    check_log(runs / "deeplab")


def check_maps(folder: Path) -> None:
    classes, scores, size = read_maps(folder / "2007_000001.npz")
    assert classes.tolist() == [11, 14] and size == (375, 500) and scores.shape == (2, 94, 125)
    assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1


@pytest.mark.parametrize("option", ["deeplab-v3plus", "deeplab-v3plus-drs"])
def test_v3plus_runs_at_full_size(tmp_path, option):
    write_voc(tmp_path / "VOC2012")
    config = config_of(tmp_path, **read_preset(PROJECT_ROOT / "configs" / "options" / f"{option}.yaml"))
    config = config.model_copy(update={"device_batch_size": 2})  # batch normalization needs more than one
    assert (config.deeplab_crop, config.deeplab_output_stride, config.deeplab_backbone) == (513, 16, "resnet101")
    training.seed_everything(config)
    data = open_data(config.model_copy(update={"limit": 1}), "train")
    net = build_deeplab(config, data.num_classes, "")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert train_deeplab(net, data, data.root / "SegmentationClass", config, tmp_path / "deeplab") == 4
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert {
        "backbone.conv1.weight",
        "backbone.bn1.weight",
        "backbone.bn1.running_mean",
        "classifier.project.0.weight",
        "classifier.aspp.convs.4.1.weight",
        "classifier.classifier.3.bias",
    } <= changed
    check_log(tmp_path / "deeplab")
    assert make_predictions(net.eval(), data, config, tmp_path / "predictions") == 1
    check_mask(tmp_path / "predictions" / "plain", set(range(21)))
    crops = score_centre_crops(net, data, config)
    assert 0 < crops.confusion.sum() <= 513 * 513
