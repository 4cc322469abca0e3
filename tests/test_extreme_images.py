"""Images of one pixel, of one row, long strips, constant ones; masks of 255 only; no class, all classes: no NaN anywhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import small_chain
from wsss_lib.config import Config
from wsss_lib.core import files, training
from wsss_lib.core.files import read_mask
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import metric_row, score_masks
from wsss_lib.data.dataset import open_data
from wsss_lib.errors import DataError
from wsss_lib.methods import drs, rib, sccam, vwe
from wsss_lib.methods.cam import build_classifier
from wsss_lib.nets.deeplab_v2 import multi_scale_logits

pytestmark = pytest.mark.system

# name: (H, W), labels of three classes, what the true mask holds
IMAGES = {
    "point": ((1, 1), "100", "void"),
    "row": ((1, 40), "111", "nothing"),
    "column": ((40, 1), "100", "one"),
    "strip": ((33, 4000), "100", "one"),
    "black": ((24, 24), "000", "nothing"),
    "white": ((24, 24), "010", "void"),
    "noise": ((24, 24), "111", "all"),
    "five": ((5, 5), "001", "one"),
}
METHODS = {
    "vwe": lambda config, data, net: vwe.vwe_localization(vwe.build_vwe(config, 3, net), config),
    "rib": lambda config, data, net: rib.rib_localization(build_classifier(config, 3, net), data, config),
    "drs": lambda config, data, net: drs.drs_localization(drs.build_drs(config, 3, net), config),
    "sccam": lambda config, data, net: sccam.sccam_localization(sccam.build_sccam(config, 3), config),
}


def write_data(root: Path, images: dict) -> Path:
    """Write images, masks, labels and the lists "train" and "val", which are the same."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng, rows = np.random.default_rng(0), ["image_id,red,green,blue"]
    for name, (size, labels, kind) in images.items():
        picture = np.full((*size, 3), 255 * (name == "white"), np.uint8)
        if name not in ("black", "white"):
            picture = rng.integers(0, 256, (*size, 3), np.uint8)
        mask = {
            "void": np.full(size, 255),
            "nothing": np.zeros(size),
            "one": np.full(size, labels.find("1") + 1),
            "all": np.resize([0, 1, 2, 3, 255], size),
        }[kind]
        Image.fromarray(picture).save(root / f"JPEGImages/{name}.jpg")
        files.write_mask(root / f"SegmentationClass/{name}.png", mask)
        rows.append(",".join([name, *labels]))
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    (root / "dataset.json").write_text(json.dumps({"name": "extreme", "classes": ["red", "green", "blue"]}))
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(images))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "extreme", IMAGES)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Path:
    """CAM's and AMN's chain over these images."""
    folder = tmp_path_factory.mktemp("runs")
    small_chain.run(
        data,
        folder,
        cam_batch_size=4,
        irn_batch_size=4,
        deeplab_batch_size=4,
        deeplab_iterations=2,
        cam_epochs=1,
        irn_epochs=1,
        amn_epochs=1,
    )
    return folder


def check_maps(folder: Path) -> None:
    """All maps are there, in [0, 1], for the image's own classes and of its size."""
    for name, (size, labels, _) in IMAGES.items():
        classes, scores, found = files.read_maps(folder / f"{name}.npz")
        assert found == size and classes.tolist() == [index for index, label in enumerate(labels) if label == "1"]
        assert np.isfinite(scores).all() and scores.min(initial=0) >= 0 and scores.max(initial=0) <= 1


@pytest.mark.parametrize("method", small_chain.METHODS)
def test_no_stage_of_a_chain_has_a_nan(runs, method):
    folder = runs / f"micro/{method}/seed0"
    check_maps(folder / "maps")
    for weights in folder.rglob("weights.safetensors"):
        for name, tensor in files.read_tensors(weights).items():
            assert torch.isfinite(tensor).all(), f"{weights}: {name}"
    masks = list(folder.rglob("*.png"))
    assert len(masks) == len(IMAGES) * (5 if method == "cam" else 6)
    for path in masks:
        mask = read_mask(path, 3, IMAGES[path.stem][0][::-1])
        own = {index + 1 for index, label in enumerate(IMAGES[path.stem][1]) if label == "1"}
        foreign = set(np.unique(mask)) - {0, 255} - own
        assert not foreign or "predictions" in path.parts  # which knows no label
    for path in folder.rglob("*.json*"):
        json.loads(
            path.read_text().splitlines()[-1] if path.suffix == ".jsonl" else path.read_text(),
            parse_constant=lambda word, path=path: pytest.fail(f"{path}: {word}"),
        )


@pytest.mark.parametrize("method", METHODS)
def test_the_maps_of_the_other_methods_have_no_nan(data, runs, tmp_path, method):
    config = small_chain.config_of(data, tmp_path, "cam", drs_crop=32, rib_companions=4, cam_scales=(1.0, 0.5, 1.5))
    training.seed_everything(config)
    split = open_data(config, "train")
    localize = METHODS[method](config, split, runs / "micro/cam/seed0/classifier/weights.safetensors")
    assert make_maps(localize, split, config, tmp_path) == len(IMAGES)
    check_maps(tmp_path)


def test_a_split_without_a_labelled_pixel_has_no_score_and_says_so(tmp_path):
    root = write_data(tmp_path / "void", {name: value for name, value in IMAGES.items() if value[2] == "void"})
    split = open_data(Config(data_root=str(root)), "train")
    evaluation = score_masks(split, lambda image_id: np.zeros(IMAGES[image_id][0], np.uint8))
    with pytest.raises(ValueError, match="SegmentationClass: the ground truth of split 'train' holds no labelled pixel, so"):
        metric_row("CAM seed", split, evaluation, False, Config())


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 70000.0, -70000.0])
def test_scores_that_float16_cannot_hold_are_never_stored(tmp_path, score):
    scores = np.full((1, 3, 4), score, np.float32)
    with pytest.raises(ValueError, match="a.npz: a score is not finite, or beyond the range of float16; the network has diver"):
        files.write_maps(tmp_path / "a.npz", np.array([0]), scores, (12, 16))
    assert list(tmp_path.iterdir()) == []
    with open(tmp_path / "b.npz", "wb") as file:  # by an earlier version
        np.savez(file, classes=np.int16([0]), scores=np.full((1, 3, 4), np.float16(np.inf)), size=np.int32([12, 16]))
    with pytest.raises(DataError, match="b.npz: a score is NaN or infinite; delete it and run its stage again"):
        files.read_maps(tmp_path / "b.npz")


def test_a_record_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="metrics.json: a number to be recorded is NaN or infinite"):
        files.write_json(tmp_path / "metrics.json", [{"miou": float("nan")}])
    assert list(tmp_path.iterdir()) == []


def test_a_photograph_of_one_pixel_at_half_its_size():
    """Continued by its edge until one pixel remains; larger photographs are not touched."""
    seen = []
    point = torch.rand(1, 3, 1, 5)
    multi_scale_logits(lambda images: (seen.append(images), images)[1], point, (0.5, 0.25))
    assert [tuple(images.shape[-2:]) for images in seen] == [(1, 5), (1, 2), (1, 1)]
    assert torch.allclose(seen[2][..., 0], point[..., 1:3].mean(-1))  # its center lies between the second and third pixel
