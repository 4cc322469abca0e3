"""Weights of the authors' shapes, converted, and taken by their notebooks with exactly the parameters that the command prints.

Papermill runs the notebooks under the published presets, on a CPU, on four tiny images, and without a way to the network. The
formats whose notebooks take longest are left to those who ask for them:

    WSSS_OFFICIAL_WEIGHTS=1 python -m pytest tests/test_official_weights.py
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.weight_layouts import layouts
from tests.checkout import environment
from tests.test_checkpoints import official_file, official_list, random_weights
from tests.test_resnet38 import mxnet_file, mxnet_names
from tests.warm import run_module
from wsss_lib.core.check import CHECK
from wsss_lib.core.files import write_mask
from wsss_lib.core.stage import run
from wsss_lib.data.dataset import VOC_CLASSES
from wsss_lib.errors import DataError
from wsss_lib.methods import cam
from wsss_lib.nets.backbone import build_backbone
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config, preset_files
from wsss_lib.refine import irn, seed_masks

NOWHERE = "http://127.0.0.1:9"  # nobody listens
BY_HAND = "WSSS_OFFICIAL_WEIGHTS"
pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
# What makes a run small and changes no network: one scale, and images of which four are all.
SMALL = {"limit": 4, "device": "cpu", "num_workers": 0, "cam_scales": [1.0], "deeplab_test_scales": [0.5], "walk_pad_to": 0}
OBJECTS = {"2007_000001": ("person", "dog"), "2007_000002": ("cat",), "2007_000003": ("dog",), "2007_000004": ("person",)}
HEIGHT, WIDTH = 64, 96


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four images of colored objects on noise, in VOC's layout, with saliency maps."""
    root, rng = tmp_path_factory.mktemp("data") / "VOC2012", np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "saliency_map"):
        (root / folder).mkdir(parents=True)
    rows = [",".join(("image_id", *VOC_CLASSES))]
    for image_id, names in OBJECTS.items():
        image, mask = rng.integers(60, 190, (HEIGHT, WIDTH, 3)), np.zeros((HEIGHT, WIDTH), np.uint8)
        for number, name in enumerate(names):
            place = np.s_[12:52, 8 + 44 * number : 44 + 44 * number]
            image[(*place, number)] += 60
            mask[place] = VOC_CLASSES.index(name) + 1
        Image.fromarray(image.astype(np.uint8)).save(root / "JPEGImages" / f"{image_id}.jpg")
        write_mask(root / "SegmentationClass" / f"{image_id}.png", mask)
        Image.fromarray(np.uint8(255 * (mask > 0))).save(root / "saliency_map" / f"{image_id}.png")
        rows.append(",".join((image_id, *(str(int(name in names)) for name in VOC_CLASSES))))
    (root / "labels.csv").write_text("\n".join(rows))
    for split in ("train", "train_aug", "val"):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(OBJECTS))
    return root


@pytest.fixture(scope="module")
def before(data, tmp_path_factory) -> Path:
    """What notebooks 02, 10, 70 and 80 have made with a small network; a notebook takes it, however it was made."""
    runs = tmp_path_factory.mktemp("before")
    small = {
        "backbone": "resnet_small",
        "backbone_weights": "none",
        "cam_epochs": 1,
        "cam_batch_size": 4,
        "cam_crop": 64,
        "irn_epochs": 1,
        "irn_batch_size": 4,
        "irn_crop": 64,
        "irn_train_radius": 5,
        "irn_displacement_width": 32,
    }
    config = preset_config("voc12", **SMALL | small, data_root=str(data), runs_root=str(runs))
    for stage in (CHECK, *cam.STAGES, *seed_masks.STAGES, *irn.STAGES):
        run(stage, config)
    return runs


def converted(folder: Path, format_name: str, official: str) -> list[str]:
    """Convert random weights of an official list's names and shapes; return the options that the command prints."""
    source, made, options = folder / "official.pth", folder / "ours.safetensors", []
    if format_name == "resnet38-mxnet":
        shapes = official_list("psa_resnet38_cls")[0]
        weights = random_weights({ours: shapes[ours] for ours in mxnet_names()})
        mxnet_file(source, {name: weights[ours].numpy() for ours, name in mxnet_names().items()})
    else:
        official_file(source, official, random_weights(official_list(official)[0]))
    if official == "vwl_m_resnet101":
        np.save(folder / "codebook.npy", np.random.default_rng(0).standard_normal((256, 2048), np.float32))
        options = ["--codebook", str(folder / "codebook.npy")]
    command = ["data_prep.checkpoints", "convert", "--format", format_name, *options, str(source), str(made)]
    done = run_module(*command)
    assert done.returncode == 0, done.stderr
    source.unlink()
    words = done.stdout.splitlines()[-1].partition("(")[0]
    return shlex.split(words.removeprefix("take it with a preset of published sizes and"))


@pytest.mark.parametrize("content", [None, b"", b"<html>not found</html>"], ids=["absent", "empty", "a page"])
def test_imagenet_weights_that_cannot_be_read_end_in_one_sentence(content, tmp_path, monkeypatch):
    for name, value in {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "TORCH_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "hub/checkpoints/resnet50-0676ba61.pth"
    if content is not None:
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    with pytest.raises(DataError) as error:
        build_backbone("resnet50", 16, "imagenet")
    words = str(error.value)
    assert words.startswith(str(file)) and "/resnet50-0676ba61.pth there" in words and "SHA-256 begins with 0676ba61" in words
    assert "\n" not in words


SHORT = {"cam_crop": 64, "cam_batch_size": 2}  # for cells that train a little to compare
START = {"cam_epochs": 1, "sccam_round_epochs": [1], "deeplab_iterations": 1, "deeplab_batch_size": 2} | SHORT
NO_IMAGENET = {"backbone_weights": "none"}
# Official lists and their formats, the notebook, the method, and what is set beside what the command prints.
CASES = [
    (["irn_resnet50_cam"], "irn-cam", "10_cam", "cam", {}),
    (["irn_resnet50_cam"], "rib", "10_cam", "cam", {}),
    (["irn_resnet50_irn"], "irn", "80_irn", "cam", {}),
    (["drs_vgg16_learnable", "drs_vgg16_refine"], "drs drs-refine", "30_drs", "drs", {}),
    (["drs_vgg16_fixed", "drs_vgg16_refine"], "drs drs-refine", "30_drs", "drs", {}),
    (["amn_resnet50_voc"], "amn", "40_amn", "amn", {}),
    (["vwe_resnet50"], "vwe", "50_vwe", "vwe", SHORT),
    (["vwl_l_resnet101"], "vwe", "50_vwe", "vwe", SHORT),
    (["vwl_m_resnet101"], "vwe", "50_vwe", "vwe", SHORT),
    (["sccam_resnet38_round1_k10"], "sccam", "60_sccam", "sccam", SHORT),
    (["sccam_resnet38_round0"], "sccam", "60_sccam", "sccam", START | NO_IMAGENET),
    (["psa_resnet38_cls"], "psa-cls", "10_cam", "cam", {}),
    (["psa_vgg16_cls"], "psa-cls", "10_cam", "cam", {}),
    (["psa_resnet38_aff"], "psa-aff", "75_affinitynet", "cam", {"affinitynet_crop": 64}),
    (["psa_vgg16_aff"], "psa-aff", "75_affinitynet", "cam", {"affinitynet_crop": 64}),
    ([""], "resnet38-mxnet", "10_cam", "cam", START),
    (["deeplabv2_resnet101_msc"], "deeplab-v2", "90_deeplab", "cam", {}),
    (["deeplabv1_resnet101_coco_init"], "deeplab-init", "90_deeplab", "cam", START),
    (["deeplabv3plus_resnet101"], "deeplab-v3plus", "90_deeplab", "cam", {}),
]

EVERY_DAY = [case for case in CASES if case[0][0] in ("irn_resnet50_irn", "amn_resnet50_voc", "deeplabv2_resnet101_msc")]


def test_every_format_has_a_case():
    assert {name for case in CASES for name in case[1].split()} == set(layouts())


def parameters(case: tuple):
    """Return the case for pytest; all but three notebooks take longer than the tests of every day may."""
    name = "-".join([case[1], *case[0]])
    by_hand = pytest.mark.skipif(BY_HAND not in os.environ, reason="half a minute, and a variable")
    return pytest.param(*case, id=name, marks=() if case in EVERY_DAY else (pytest.mark.slow, by_hand))


@pytest.mark.parametrize("lists, formats, notebook, method, values", [parameters(case) for case in CASES])
def test_a_notebook_takes_converted_weights(lists, formats, notebook, method, values, data, before, tmp_path):
    options = []
    for number, (official, format_name) in enumerate(zip(lists, formats.split(), strict=True)):
        (tmp_path / str(number)).mkdir()
        options += converted(tmp_path / str(number), format_name, official)
    options = ["0.55" if word == "DELTA" else word for word in options]  # a fixed delta is not in the file
    shutil.copytree(before, tmp_path / "runs")
    values = SMALL | values | {"data_root": str(data), "runs_root": str(tmp_path / "runs"), "method": method}
    presets = [word for path in preset_files("voc12", method) for word in ("-f", str(path))]
    source, out = PROJECT_ROOT / "notebooks" / f"{notebook}.ipynb", tmp_path / "out.ipynb"
    command = ["papermill", str(source), str(out), "-k", "python3", "--no-progress-bar", "--log-level", "ERROR"]
    offline = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "TORCH_HOME": str(tmp_path / "torch")}
    done = subprocess.run(
        [sys.executable, "-m", *command, *presets, *options, "-y", json.dumps(values), "--cwd", str(tmp_path)],
        cwd=PROJECT_ROOT,
        env=environment(PROJECT_ROOT) | offline,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "torch").exists()
