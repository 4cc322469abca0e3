"""The chain of the preset voc12 at full size: ResNet-50 and ResNet-101 for two steps, then every later stage on one image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_lib.core import training
from wsss_lib.core.files import read_maps, read_mask, write_maps, write_mask
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import metric_row, score_masks, sweep_maps
from wsss_lib.data.dataset import VOC_CLASSES, open_data
from wsss_lib.methods import amn
from wsss_lib.methods.cam import build_classifier, cam_localization, score_classifier, train_classifier
from wsss_lib.presets import preset_config
from wsss_lib.refine.irn import build_irn, make_pseudo_masks, set_mean_displacement, train_irn
from wsss_lib.refine.seed_masks import make_seeds
from wsss_lib.segment.deeplab import build_deeplab, make_predictions, train_deeplab

pytestmark = [pytest.mark.system, pytest.mark.slow]

# Without weights of ImageNet and without a GPU; the networks, crops, scales and losses are those of the preset.
REDUCED = {
    "train_split": "train",
    "num_workers": 0,
    "device": "cpu",
    "device_batch_size": 1,
    "backbone_weights": "none",
    "cam_epochs": 2,
    "cam_batch_size": 1,
    "irn_epochs": 2,
    "irn_batch_size": 1,
    "deeplab_init": "none",
    "deeplab_iterations": 2,
    "deeplab_batch_size": 1,
}


def write_voc(root: Path) -> None:
    """Three photographs of VOC's usual sizes with one or two colored objects on noise."""
    rng = np.random.default_rng(0)
    objects = {
        "2007_000001": ((375, 500), {"person": (40, 60, 300, 220), "dog": (180, 260, 360, 470)}),
        "2007_000002": ((500, 375), {"cat": (100, 50, 420, 330)}),
        "2007_000003": ((375, 500), {"dog": (30, 30, 340, 400)}),
    }
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rows = [",".join(("image_id", *VOC_CLASSES))]
    for image_id, (size, boxes) in objects.items():
        image, mask = rng.integers(60, 190, (*size, 3)), np.zeros(size, np.uint8)
        for name, (top, left, bottom, right) in boxes.items():
            image[top:bottom, left:right, len(name) % 3] += 60
            mask[top:bottom, left:right] = VOC_CLASSES.index(name) + 1
        Image.fromarray(image.astype(np.uint8)).save(root / "JPEGImages" / f"{image_id}.jpg")
        write_mask(root / "SegmentationClass" / f"{image_id}.png", mask)
        rows.append(",".join((image_id, *(str(int(name in boxes)) for name in VOC_CLASSES))))
    (root / "labels.csv").write_text("\n".join(rows))
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(objects))
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000003")


def test_every_stage_of_voc12_runs_at_full_size(tmp_path):
    root, runs = tmp_path / "VOC2012", tmp_path / "runs"
    write_voc(root)
    config = preset_config("voc12", **REDUCED, data_root=str(root), runs_root=str(runs))
    assert (config.cam_crop, config.irn_crop, config.deeplab_crop) == (512, 512, 321)
    training.seed_everything(config)
    data = open_data(config, "train")
    one = open_data(config.model_copy(update={"limit": 1}), "train")

    classifier = build_classifier(config, data.num_classes)
    tame(classifier)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    assert train_classifier(classifier, one, config, runs / "classifier") == 2
    changed = {name.split(".")[1] for name, value in classifier.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"layer3", "layer4", "weight"}  # the last is the classifier's
    check_log(runs / "classifier")
    training.save_weights(classifier, runs / "classifier" / "weights.safetensors")
    classifier = build_classifier(config, data.num_classes, runs / "classifier" / "weights.safetensors")
    probabilities = score_classifier(classifier, one, config)
    assert probabilities.shape == (1, 20) and np.isfinite(probabilities).all()

    assert make_maps(cam_localization(classifier, config), one, config, runs / "maps") == 1
    classes, scores, size = read_maps(runs / "maps" / "2007_000001.npz")
    assert [VOC_CLASSES[number] for number in classes] == ["dog", "person"] and size == (375, 500)
    assert scores.shape == (2, 94, 125) and scores.min() >= 0 and scores.max() <= 1
    assert len(sweep_maps(one, runs / "maps", (0.1, 0.3)).curve()) == 2

    assert make_seeds(one, runs / "maps", config, runs) == 1
    check_mask(runs / "seed_masks", {0, 12, 15})
    check_mask(runs / "irn_labels", {0, 12, 15, 255})

    irn = build_irn(config, "")
    tame(irn)
    before = {name: value.clone() for name, value in irn.state_dict().items()}
    assert train_irn(irn, one, runs / "irn_labels", config, runs / "irn") == 2
    changed = {name.split(".")[0] for name, value in irn.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"fc_edge{number}" for number in range(1, 7)} | {f"fc_dp{number}" for number in range(1, 8)}
    check_log(runs / "irn")
    set_mean_displacement(irn, one, config)
    assert irn.mean_shift.running_mean.abs().max() > 0
    assert make_pseudo_masks(irn, one, runs / "maps", config, runs / "pseudo") == 1
    check_mask(runs / "pseudo", {0, 12, 15})

    deeplab = build_deeplab(config, data.num_classes, "")
    tame(deeplab)
    before = {name: value.clone() for name, value in deeplab.state_dict().items()}
    assert train_deeplab(deeplab, one, runs / "pseudo", config, runs / "deeplab") == 2
    changed = {name for name, value in deeplab.state_dict().items() if not torch.equal(value, before[name])}
    assert {"backbone.conv1.weight", "backbone.layer4.2.conv3.weight", "aspp.c0.weight", "aspp.c3.bias"} <= changed
    assert not any("bn" in name or "downsample.1" in name for name in changed)
    check_log(runs / "deeplab")
    assert make_predictions(deeplab, one, config, runs / "predictions") == 1
    for kind in ("plain", "crf"):
        check_mask(runs / "predictions" / kind, set(range(21)))
    row = metric_row("DeepLab-v2", one, score_masks(one, runs / "predictions" / "plain"), False, config)
    assert 0 <= row["miou"] <= 100 and row["images"] == 1 and len(row["class_iou"]) == 21


def test_amn_of_voc12_runs_at_full_size(tmp_path):
    """ResNet-50, 512-pixel crops, ASPP with the published dilations: two steps of Adam, then the maps of one image."""
    root, runs = tmp_path / "VOC2012", tmp_path / "runs"
    write_voc(root)
    published = preset_config("voc12", "amn")
    assert (published.amn_epochs, published.amn_learning_rate, published.walk_power) == (5, 5e-6, 1.3)
    config = preset_config("voc12", "amn", **REDUCED, amn_epochs=2, data_root=str(root), runs_root=str(runs))
    training.seed_everything(config)
    data = open_data(config, "train")
    one = open_data(config.model_copy(update={"limit": 1}), "train")
    for image_id in data.ids:  # maps that are right, with some doubt
        mask, classes = data.mask(image_id), np.flatnonzero(data.label(image_id))
        full = np.stack([np.where(mask == number + 1, 0.9, 0.01) for number in classes])
        write_maps(runs / "cam" / f"{image_id}.npz", classes, full[:, ::4, ::4], mask.shape)
    assert amn.make_refined_seeds(data, runs / "cam", config, runs / "seeds") == 3
    check_mask(runs / "seeds", {0, 12, 15, 255})

    net = amn.build_amn(config, data.num_classes, "")
    tame(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert amn.train_amn(net, one, runs / "seeds", config, runs / "network") == 2
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert {
        "backbone.layer1.0.conv1.weight",
        "backbone.layer4.2.conv3.weight",
        "head.label_encoder.weight",
        "head.aspp.c3.weight",
    } <= changed
    assert not any("running" in name or name.startswith(("backbone.conv1", "backbone.bn1")) for name in changed)
    check_log(runs / "network")
    training.save_weights(net, runs / "network" / "weights.safetensors")
    net = amn.build_amn(config, data.num_classes, "", runs / "network" / "weights.safetensors")

    assert make_maps(amn.amn_localization(net, one, runs / "seeds", config), one, config, runs / "maps") == 1
    classes, scores, size = read_maps(runs / "maps" / "2007_000001.npz")
    assert [VOC_CLASSES[number] for number in classes] == ["dog", "person"] and size == (375, 500)
    assert scores.shape == (2, 94, 125) and scores.min() >= 0 and scores.max() <= 1 and np.isfinite(scores).all()


def tame(net: torch.nn.Module) -> None:
    """Weaken the residual branches: without weights of ImageNet, frozen batch normalization lets activations explode."""
    for name, module in net.named_modules():
        if name.endswith("bn3"):
            torch.nn.init.constant_(module.weight, 0.2)


def check_log(folder: Path, steps: int = 2) -> None:
    """So many steps were made, the last at the full rate or less, with finite losses."""
    (row,) = training.read_log(folder)
    assert row["step"] == steps and 0 < row["factor"] <= 1 and all(np.isfinite(value) for value in row.values())


def check_mask(folder: Path, allowed: set[int]) -> None:
    mask = read_mask(folder / "2007_000001.png", 20)
    assert mask.shape == (375, 500) and set(np.unique(mask).tolist()) <= allowed
