"""Official weights: every layout against the official names, then write, convert, load, run; what is refused; export."""

import json
import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import checkpoints, resnet38_mxnet
from data_prep.restricted import is_safetensors, read_checkpoint
from data_prep.weight_layouts import caffe_name, layouts
from tests.golden_adapters import NAME_MAP
from tests.golden_weights import load
from wsss_lib.config import Config
from wsss_lib.core.files import read_tensors, write_json, write_tensors
from wsss_lib.data import transforms
from wsss_lib.errors import DataError
from wsss_lib.methods.amn import ActivationManipulationNet
from wsss_lib.methods.cam import ClassActivationNet, build_classifier
from wsss_lib.methods.drs import ScoreNet
from wsss_lib.methods.sccam import SubcategoryNet
from wsss_lib.methods.vwe import VisualWordNet
from wsss_lib.nets.backbone import ResNet, build_backbone
from wsss_lib.nets.deeplab_v2 import DeepLabV2, multi_scale_logits
from wsss_lib.nets.deeplab_v3plus import DeepLabV3Plus, build_dilated_backbone
from wsss_lib.nets.weights import load_weights
from wsss_lib.refine.affinitynet import AffinityNet
from wsss_lib.refine.irn import build_irn
from wsss_lib.segment.deeplab import build_deeplab, class_probabilities

GOLDEN = Path(__file__).parent / "golden"
LISTS = {  # list of official names: format, number of the layout, beginning of all names
    "irn_resnet50_cam": ("irn-cam", 0, ""),
    "irn_resnet50_irn": ("irn", 0, ""),
    "amn_resnet50_voc": ("amn", 0, ""),
    "amn_resnet50_coco": ("amn", 0, ""),
    "vwe_resnet50": ("vwe", 0, "module."),
    "vwl_l_resnet101": ("vwe", 1, "module."),
    "vwl_m_resnet101": ("vwe", 2, "module."),
    "drs_vgg16_learnable": ("drs", 0, ""),
    "drs_vgg16_fixed": ("drs", 1, ""),
    "drs_vgg16_refine": ("drs-refine", 0, ""),
    "sccam_resnet38_round1_k10": ("sccam", 0, ""),
    "sccam_resnet38_round0": ("sccam", 1, ""),
    "psa_resnet38_cls": ("psa-cls", 0, ""),
    "psa_vgg16_cls": ("psa-cls", 1, ""),
    "psa_resnet38_aff": ("psa-aff", 0, ""),
    "psa_vgg16_aff": ("psa-aff", 1, ""),
    "deeplabv2_resnet101_msc": ("deeplab-v2", 0, ""),
    "deeplabv1_resnet101_coco_init": ("deeplab-init", 0, ""),
    "deeplabv3plus_resnet101": ("deeplab-v3plus", 0, ""),
}


@cache
def official_list(name: str) -> tuple[dict[str, list[int]], dict[str, str], str]:
    """Return official names to shapes, second names to first ones, and under which name the weights lie in the file."""
    content = json.loads((GOLDEN / f"{name}_keys.json").read_text())
    if "keep" in content:
        return content["keep"], content["alias_of"], ""
    if "keys" in content:
        rows = content["keys"]
        return (
            {row["name"]: row["shape"] for row in rows if "same_tensor_as" not in row},
            {row["name"]: row["same_tensor_as"] for row in rows if "same_tensor_as" in row},
            content.get("state_dict_under") or "",
        )
    return {key: value["shape"] for key, value in content.items()}, {}, ""


def random_weights(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return weights of a network that neither vanishes nor explodes."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif key.endswith("running_var"):
            value = 1 + 0.2 * value.abs()
        elif len(shape) > 1:
            value *= (1.0 / np.prod(shape[1:])) ** 0.5
        elif key.endswith("weight"):
            value = 0.7 + 0.1 * value
        else:
            value *= 0.1
        state[key] = value
    return state


def light_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return weights of which every tensor holds one number, another one for each name."""
    whole = torch.tensor(7)
    return {
        key: whole if key.endswith("num_batches_tracked") else torch.full(shape, 0.5 + number / 1000)
        for number, (key, shape) in enumerate(shapes.items())
    }


def official_file(path: Path, name: str, weights: dict[str, torch.Tensor] | None = None, **options) -> dict[str, torch.Tensor]:
    """Write a file as the authors' program does, second names included; return its weights under their first names."""
    shapes, aliases, under = official_list(name)
    weights = weights or light_weights(shapes)
    content = weights | {second: weights[first] for second, first in aliases.items()}
    # numbers beside the weights are NumPy's, as training programs leave them there
    torch.save(
        {under: content, "epoch": 3, "miou": np.float64(0.5), "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
        if under
        else content,
        path,
        **options,
    )
    return weights


def without_counts(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def refused(capsys, *words: str) -> str:
    """Run the command, which must fail with one sentence, and return that."""
    with pytest.raises(SystemExit) as stop:
        checkpoints.main(list(words))
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1 and "Traceback" not in error
    return error


# ---- the layouts


@pytest.mark.parametrize("name", LISTS)
def test_a_layout_has_the_names_and_shapes_of_the_official_list(name):
    shapes, aliases, _ = official_list(name)
    format_name, number, prefix = LISTS[name]
    layout = layouts()[format_name][number]
    shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items()}
    kept = {key: shape for key, shape in shapes.items() if not key.startswith(layout.dropped or "no such name")}
    assert set(kept) == set(layout.keys)
    letters = {}
    assert all(checkpoints._fits(tuple(shape), layout.keys[key][0], letters) for key, shape in kept.items())
    assert letters.get("C") in {None, 80 if "coco" in name else 20} and letters.get("S") in {None, 10}
    assert len({ours for _, ours in layout.keys.values()}) == len(layout.keys)
    for second, first in aliases.items():
        second, first = second.removeprefix(prefix), first.removeprefix(prefix)
        assert checkpoints._first_name(second, layout) == ("" if first.startswith(layout.dropped or "no such name") else first)


def test_caffe_names_are_those_of_the_official_table():
    rows = json.loads(NAME_MAP.read_text())["rows"]
    checked = 0
    for row in rows:
        if row["torchvision_prefix"]:
            field = "weight"
            assert f"base.{caffe_name(row['torchvision_prefix'] + '.' + field)}" == f"{row['key_prefix']}.{field}"
            checked += 1
    assert checked > 200


@pytest.mark.parametrize(
    "name, legacy",
    [*((name, False) for name in LISTS), ("drs_vgg16_fixed", True), ("psa_vgg16_aff", True), ("amn_resnet50_voc", True)],
)
def test_every_value_arrives_under_our_name(tmp_path, name, legacy):
    format_name, number, prefix = LISTS[name]
    layout = layouts()[format_name][number]
    weights = official_file(tmp_path / "in.pth", name, _use_new_zipfile_serialization=not legacy)
    codebook = torch.full((256, 2048), 0.25) if name == "vwl_m_resnet101" else None
    result, found, _ = checkpoints.convert(read_checkpoint(tmp_path / "in.pth"), format_name, name, codebook)
    assert found is layout and all(value.is_contiguous() for value in result.values())
    expected = {ours: weights[prefix + official] for official, (_, ours) in layout.keys.items()}
    assert set(result) - set(expected) == ({"codebook", "bank_filled"} if name == "vwl_m_resnet101" else set())
    for key, value in expected.items():
        assert torch.equal(result[key], value.flatten(1) if key == "codebook" else value), key


# ---- load and run, the same result as by the official names


@pytest.mark.system
@torch.inference_mode()
def test_irns_classifier_runs_as_torchvisions_resnet_without_its_last_stride(tmp_path):
    weights = official_file(tmp_path / "in.pth", "irn_resnet50_cam", random_weights(official_list("irn_resnet50_cam")[0]))
    checkpoints.convert_file(tmp_path / "in.pth", "irn-cam", tmp_path / "cam.safetensors")
    config = Config(backbone="resnet50", output_stride=16)
    ours = build_classifier(config, 20, tmp_path / "cam.safetensors").eval()
    trunk = torchvision.models.resnet50()
    trunk.layer4[0].conv2.stride = trunk.layer4[0].downsample[0].stride = (1, 1)
    trunk.fc = trunk.avgpool = torch.nn.Identity()
    load(trunk, {key.removeprefix("resnet50."): value for key, value in weights.items() if key.startswith("resnet50.")})
    image = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    features = trunk(image).reshape(1, 2048, 4, 5)
    expected = torch.einsum("cd,ndhw->nchw", weights["classifier.weight"][..., 0, 0], features)
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(ours.classifier(ours.backbone(image)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.system
@torch.inference_mode()
def test_irn_runs_with_the_official_values(tmp_path):
    shapes = official_list("irn_resnet50_irn")[0]
    small = {key: shape if not key.startswith("path_indices") else [2, 2, 3] for key, shape in shapes.items()}
    weights = random_weights(small)
    weights |= {key: value.long() for key, value in weights.items() if key.startswith("path_indices")}
    official_file(tmp_path / "in.pth", "irn_resnet50_irn", weights)
    checkpoints.convert_file(tmp_path / "in.pth", "irn", tmp_path / "irn.safetensors")
    config = Config(backbone="resnet50", output_stride=16, irn_displacement_width=256)
    net = build_irn(config, Path("unused"), tmp_path / "irn.safetensors").eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    maps = net.backbone.stages(image)
    # one branch and the mean shift by hand, from the official values
    branch = torch.nn.functional.conv2d(maps[1], weights["fc_edge2.0.weight"])
    branch = torch.nn.functional.group_norm(branch, 4, weights["fc_edge2.1.weight"], weights["fc_edge2.1.bias"]).relu()
    torch.testing.assert_close(net.fc_edge2(maps[1]), branch)
    shifted, plain = net(image)[1], net.train()(image)[1]
    torch.testing.assert_close(plain - shifted, weights["mean_shift.running_mean"].view(1, 2, 1, 1).expand_as(plain))


@pytest.mark.system
@torch.inference_mode()
def test_deeplab_v2_sees_rgb_and_gives_what_the_official_network_gives_on_bgr(tmp_path):
    shapes = official_list("deeplabv2_resnet101_msc")[0]
    weights = official_file(tmp_path / "in.pth", "deeplabv2_resnet101_msc", random_weights(shapes))
    checkpoints.convert_file(tmp_path / "in.pth", "deeplab-v2", tmp_path / "v2.safetensors")
    config = Config(deeplab_backbone="resnet101_caffe", deeplab_atrous_rates=(6, 12, 18, 24))
    net = build_deeplab(config, 20, Path("unused"), tmp_path / "v2.safetensors").eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 57, 3), np.uint8))
    ours = class_probabilities(net, image, config)

    backbone = ResNet(
        torchvision.models.resnet.Bottleneck,
        (3, 4, 23, 3),
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        stride_in_1x1=True,
        ceil_mode=True,
    )
    prefixes = {row["torchvision_prefix"]: row["key_prefix"] for row in json.loads(NAME_MAP.read_text())["rows"]}
    official = DeepLabV2(backbone, 21)
    state = {}
    for key in official.state_dict():
        part, name = key.split(".", 1)
        module, field = name.rsplit(".", 1)
        state[key] = weights[f"{prefixes[module]}.{field}" if part == "backbone" else f"base.aspp.{name}"]
    load(official, state)
    bgr = np.asarray(image)[..., ::-1].astype(np.float32) - np.float32([104.008, 116.669, 122.675])
    logits = multi_scale_logits(official, transforms.to_tensor(bgr)[None])[-1]
    expected = torch.nn.functional.interpolate(logits, size=(41, 57), mode="bilinear", align_corners=False).softmax(1)[0]
    assert expected.std(0).max() > 1e-3
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


@pytest.mark.system
def test_deeplab_starts_from_the_published_file(tmp_path):
    shapes = official_list("deeplabv1_resnet101_coco_init")[0]
    weights = official_file(tmp_path / "in.pth", "deeplabv1_resnet101_coco_init", random_weights(shapes))
    said = checkpoints.convert_file(tmp_path / "in.pth", "deeplab-init", tmp_path / "start.safetensors")
    assert "-p deeplab_backbone resnet101_caffe -p deeplab_init" in said
    fields: dict = {"deeplab_backbone": "resnet101_caffe", "deeplab_atrous_rates": (6, 12, 18, 24)}
    fields["deeplab_init"] = str(tmp_path / "start.safetensors")
    with pytest.raises(
        ValueError, match="Caffe's form of ResNet-101 alone; set deeplab_backbone to resnet101_caffe, not resnet101"
    ):
        build_deeplab(Config(**fields | {"deeplab_backbone": "resnet101"}), 20, Path("unused"))
    net = build_deeplab(Config(**fields), 20, Path("unused"))
    for key, value in net.backbone.state_dict().items():
        official = weights[caffe_name(key)]
        assert torch.equal(value, official.flip(1) if key == "conv1.weight" else official), key
    for branch in net.aspp.children():  # published: N(0, 0.01), not the file's
        assert branch.weight.shape == (21, 2048, 3, 3) and branch.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not branch.bias.any()


def test_a_start_of_deeplab_that_does_not_fit_is_refused(tmp_path, capsys):
    shapes = official_list("deeplabv1_resnet101_coco_init")[0]
    for change, words in (
        (
            {"layer4.block23.conv3x3.conv.weight": torch.zeros(256, 256, 1, 1)},
            "has shape (256, 256, 1, 1) instead of (256, 256, 3, 3)",
        ),
        ({"layer6.block1.conv.weight": torch.zeros(1)}, "1 weights are foreign (first: layer6.block1.conv.weight)"),
    ):
        torch.save(light_weights(shapes) | change, tmp_path / "in.pth")
        error = refused(
            capsys, "convert", "--format", "deeplab-init", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")
        )
        assert words in error and not (tmp_path / "out.safetensors").exists()
    write_tensors(tmp_path / "vgg.safetensors", build_backbone("vgg_small", 8).state_dict())
    for version, rates in (("v2", (1, 2)), ("v3plus", (1, 2, 3))):
        fields = {"deeplab_version": version, "deeplab_atrous_rates": rates, "deeplab_init": str(tmp_path / "vgg.safetensors")}
        with pytest.raises(ValueError, match="vgg.safetensors does not fit ResNet"):
            build_deeplab(Config(**fields), 20, Path("unused"))
    with pytest.raises(DataError, match="in.pth: not a safetensors file"):
        build_deeplab(Config(deeplab_init=str(tmp_path / "in.pth")), 20, Path("unused"))


def network(name: str) -> torch.nn.Module:
    """Build the network that takes a converted file."""
    if name.startswith("drs"):
        delta = {"drs_vgg16_learnable": 0, "drs_vgg16_fixed": 0.5}.get(name, 1)
        return ScoreNet(build_backbone("vgg16", 8), 20, delta)
    if name.startswith("deeplabv3plus"):
        return DeepLabV3Plus(build_dilated_backbone("resnet101", 16), 21)
    if name.startswith("deeplabv1"):
        return build_backbone("resnet101_caffe", 8)
    if name.startswith("amn"):
        return ActivationManipulationNet(build_backbone("resnet50", 16), 80 if "coco" in name else 20)
    if name.startswith("vw"):
        variant = "vwl_l" if "vwl_l" in name else "vwl_m" if "vwl_m" in name else "vwe"
        return VisualWordNet(build_backbone("resnet101" if "101" in name else "resnet50", 16), 20, 256, variant)
    trunk = "resnet38" if "resnet38" in name else "vgg16_largefov"
    if name.endswith("aff"):
        return AffinityNet(build_backbone(trunk, 8), group_norm=trunk != "resnet38")
    if name == "sccam_resnet38_round1_k10":
        return SubcategoryNet(build_backbone(trunk, 8), 20, 10)
    return ClassActivationNet(build_backbone(trunk, 8), 20)


@pytest.mark.parametrize("name", [name for name in LISTS if not name.startswith(("irn", "deeplabv2"))])
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_converted_weights_fit_the_networks_of_the_methods(name):
    with torch.device("meta"):  # names and shapes only
        net = network(name)
    codebook = torch.zeros(256, 2048) if name == "vwl_m_resnet101" else None
    state, _, _ = checkpoints.convert(light_weights(official_list(name)[0]), LISTS[name][0], name, codebook)
    load_weights(net, state, "the converted file")  # refuses whatever does not fit


@pytest.mark.system
def testimagenet_weights_of_resnet38_come_from_the_mxnet_file(tmp_path):
    names = json.loads((GOLDEN / "resnet38_mxnet_name_map.json").read_text())["map"]
    shapes = official_list("psa_resnet38_cls")[0]
    values = light_weights({key: shapes[key] for key in names})
    path = tmp_path / "resnet38.params"
    with open(path, "wb") as file:  # MXNet's format, as data_prep.resnet38_mxnet describes it
        np.array([0x112, 0, len(names)], "<u8").tofile(file)
        for key in names:
            np.array([0xF993FAC9, 0, len(shapes[key])], "<u4").tofile(file)
            np.array(shapes[key], "<i8").tofile(file)
            np.array([1, 0, 0], "<i4").tofile(file)
            np.ascontiguousarray(values[key].numpy(), "<f4").tofile(file)
        np.array([len(names)], "<u8").tofile(file)
        for name in names.values():
            file.write(len(name).to_bytes(8, "little") + name.encode())
    assert resnet38_mxnet.read_mxnet(path).keys() == set(names.values())
    checkpoints.convert_file(path, "resnet38-mxnet", tmp_path / "out.safetensors")
    result = read_tensors(tmp_path / "out.safetensors")
    assert set(result) == set(names) and all(torch.equal(result[key], values[key]) for key in names)


# ---- what files look like in the wild


def test_second_names_data_parallel_prefixes_and_counts_may_be_missing_or_there(tmp_path):
    shapes, aliases, _ = official_list("irn_resnet50_cam")
    weights = without_counts(light_weights(shapes))  # as torch 0.4 wrote them
    forms = {
        "first names only": weights,
        "second names only": {second: weights[first] for second, first in aliases.items() if first in weights},
        "DataParallel": {f"module.{key}": value for key, value in weights.items()},
        "under a name": {"state_dict": weights, "epoch": 5},
    }
    results = []
    for name, content in forms.items():
        torch.save(content, tmp_path / "in.pth")
        checkpoints.convert_file(tmp_path / "in.pth", "irn-cam", tmp_path / "out.safetensors", overwrite=True)
        results.append(read_tensors(tmp_path / "out.safetensors"))
        assert len(results[-1]) == 266, name
        assert all(torch.equal(results[0][key], value) for key, value in results[-1].items()), name


def light_classifier() -> dict[str, torch.Tensor]:
    return light_weights(official_list("irn_resnet50_cam")[0])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"model_state_dict": weights, "epoch": 3, "loss": 0.5},
        lambda weights: {"net": weights},
        lambda weights: {
            "network": weights,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        },
        lambda weights: {"epoch": 90, "best_acc1": torch.tensor(0.7), "state_dict": weights},
        lambda weights: {"checkpoint": {"model": weights}},
        lambda weights: {
            "state_dict": {f"model.{key}": value for key, value in weights.items()},
            "pytorch-lightning_version": "2.0",
        },
        lambda weights: {f"model.module.{key}": value for key, value in weights.items()},
        lambda weights: {"n_averaged": torch.tensor(5)} | {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {"generator": {"a": torch.ones(3), "b": torch.ones(2)}, "classifier": weights},
    ],
)
def test_weights_are_found_in_any_usual_wrapper(tmp_path, wrap):
    torch.save(wrap(light_classifier()), tmp_path / "in.pth")
    checkpoints.convert_file(tmp_path / "in.pth", "irn-cam", tmp_path / "out.safetensors")
    assert len(read_tensors(tmp_path / "out.safetensors")) == 319


def test_the_same_weights_in_another_wrapper_leave_the_file_as_it_is(tmp_path):
    weights, output = light_classifier(), tmp_path / "out.safetensors"
    for number, content in enumerate((weights, {"net": weights}, {"net": {key: value + 1 for key, value in weights.items()}})):
        torch.save(content, tmp_path / f"{number}.pth")
    checkpoints.convert_file(tmp_path / "0.pth", "irn-cam", output)
    before = output.read_bytes()
    checkpoints.convert_file(tmp_path / "1.pth", "irn-cam", output)
    with pytest.raises(DataError, match="is there already with other content"):
        checkpoints.convert_file(tmp_path / "2.pth", "irn-cam", output)
    assert output.read_bytes() == before


def test_safetensors_are_converted_too_and_the_printed_path_is_right_everywhere(tmp_path, monkeypatch, capsys):
    write_tensors(tmp_path / "in.safetensors", {key: value.clone() for key, value in light_classifier().items()})
    monkeypatch.chdir(tmp_path)
    checkpoints.main(["convert", "--format", "irn-cam", "in.safetensors", "my weights.safetensors"])
    assert f"-p cam_weights '{tmp_path}/my weights.safetensors'" in capsys.readouterr().out


def test_of_two_networks_in_a_file_one_must_be_chosen(tmp_path, capsys):
    weights = light_classifier()
    torch.save({"model": weights, "ema": {key: value * 0 for key, value in weights.items()}}, tmp_path / "in.pth")
    words = ["convert", "--format", "irn-cam", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]
    with pytest.raises(SystemExit):
        checkpoints.main(words)
    assert "holds weights under model and ema; choose one with --entry model" in capsys.readouterr().err
    checkpoints.main([*words, "--entry", "ema"])
    assert not any(value.any() for value in read_tensors(tmp_path / "out.safetensors").values())


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "holds no weights, but epoch, optimizer"),
        ({}, "holds no weights, but nothing"),
        ({"a": {"x": torch.ones(2)}, "b": {"x": torch.ones(2)}}, "holds tensors under a and b, and none are all weights of"),
        ({"a": {"x": torch.ones(2)}}, "not the weights of the classifier of IRN"),
    ],
)
def test_files_without_the_weights_say_what_they_hold(tmp_path, content, message):
    torch.save(content, tmp_path / "in.pth")
    with pytest.raises(DataError, match=message):
        checkpoints.convert_file(tmp_path / "in.pth", "irn-cam", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_deeplab_v2_may_come_without_its_prefix(tmp_path):
    weights = light_weights(official_list("deeplabv2_resnet101_msc")[0])
    torch.save({key.removeprefix("base."): value for key, value in weights.items()}, tmp_path / "in.pth")
    checkpoints.convert_file(tmp_path / "in.pth", "deeplab-v2", tmp_path / "out.safetensors")
    assert len(read_tensors(tmp_path / "out.safetensors")) == 632


def test_coco_classifiers_of_rib_have_80_classes(tmp_path, capsys):
    shapes = official_list("irn_resnet50_cam")[0] | {"classifier.weight": [80, 2048, 1, 1]}
    torch.save(light_weights(shapes), tmp_path / "res50_cam_coco.pth.pth")
    checkpoints.main(["convert", "--format", "rib", str(tmp_path / "res50_cam_coco.pth.pth"), str(tmp_path / "o.safetensors")])
    printed = capsys.readouterr().out
    assert "80 classes" in printed and f"-p cam_weights {tmp_path / 'o.safetensors'}" in printed


def test_the_parameters_that_the_command_prints_exist():
    """Parameters of methods that are not part of this checkout are left out."""
    known = 0
    for variants in layouts().values():
        for layout in variants:
            for name in re.findall(r"-[pr] (\w+) ", layout.usage):
                method = name.split("_")[0]
                if any(field.startswith(method + "_") for field in Config.model_fields) and name in Config.model_fields:
                    known += 1
                else:
                    assert method in ("amn", "drs", "vwe", "sccam", "affinitynet", "deeplab"), name
    assert known > 15


# ---- what is refused


def one_is_missing(weights):
    del weights["resnet50.layer3.2.conv2.weight"]


def two_are_foreign(weights):
    weights["fc.weight"] = weights["fc.bias"] = torch.zeros(3)


def another_shape(weights):
    weights["resnet50.conv1.weight"] = torch.zeros(64, 3, 3, 3)


def copies_differ(weights):
    weights["stage2.0.1.conv1.weight"] = weights["resnet50.layer2.1.conv1.weight"] + 1


def not_a_number(weights):
    weights["classifier.weight"] = torch.full((20, 2048, 1, 1), torch.nan)


def whole_numbers(weights):
    weights["classifier.weight"] = torch.ones((20, 2048, 1, 1), dtype=torch.int32)


def no_tensor(weights):
    weights["classifier.weight"] = [1.0, 2.0]


def sparse(weights):
    weights["classifier.weight"] = torch.zeros(20, 2048, 1, 1).to_sparse()


@pytest.mark.parametrize(
    "damage, words",
    [
        (one_is_missing, "1 weights are missing (first: resnet50.layer3.2.conv2.weight)"),
        (two_are_foreign, "2 weights are foreign (first: fc.weight)"),
        (another_shape, "resnet50.conv1.weight has shape (64, 3, 3, 3) instead of (64, 3, 7, 7)"),
        (copies_differ, "stage2.0.1.conv1.weight and resnet50.layer2.1.conv1.weight, two names of one weight, differ"),
        (not_a_number, "classifier.weight holds values that are no finite numbers"),
        (whole_numbers, "classifier.weight holds values that are no finite numbers"),
        (no_tensor, "classifier.weight is not a tensor"),
        (sparse, "classifier.weight is not a tensor"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_written(tmp_path, capsys, damage, words):
    weights = light_weights(official_list("irn_resnet50_cam")[0])
    damage(weights)
    torch.save(weights, tmp_path / "in.pth")
    error = refused(capsys, "convert", "--format", "irn-cam", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"))
    assert error.startswith(str(tmp_path / "in.pth")) and words in error
    assert os.listdir(tmp_path) == ["in.pth"]


def test_a_file_of_another_format_is_recognized(tmp_path, capsys):
    official_file(tmp_path / "in.pth", "drs_vgg16_learnable")
    error = refused(capsys, "convert", "--format", "irn-cam", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"))
    assert "its weights are those of format drs" in error and os.listdir(tmp_path) == ["in.pth"]


@pytest.mark.parametrize(
    "letters, words",
    [
        ({"classifier.1.c2.bias": [20]}, "classifier.1.c2.bias has shape (20,) instead of (21)"),
        ({"label_enc.weight": [2048, 19]}, "classifier.1.c0.weight has shape (21, 2048, 3, 3) instead of (20, 2048, 3, 3)"),
    ],
)
def test_numbers_of_classes_must_agree_within_a_file(tmp_path, capsys, letters, words):
    torch.save(light_weights(official_list("amn_resnet50_voc")[0] | letters), tmp_path / "in.pth")
    error = refused(capsys, "convert", "--format", "amn", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"))
    assert words in error


def test_subcategories_are_a_multiple_of_the_classes(tmp_path, capsys):
    shapes = official_list("sccam_resnet38_round1_k10")[0]
    torch.save(light_weights(shapes | {"fc8_200.weight": [205, 4096, 1, 1]}), tmp_path / "in.pth")
    error = refused(capsys, "convert", "--format", "sccam", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"))
    assert "fc8_200.weight has shape (205, 4096, 1, 1)" in error


@settings(max_examples=10)
@given(data=st.data())
def test_a_damaged_list_of_names_never_gives_anything_but_a_sentence(data):
    """Names lost, added, emptied or of any shape: a DataError, or the file is right."""
    name = data.draw(st.sampled_from(["amn_resnet50_voc", "drs_vgg16_learnable", "sccam_resnet38_round1_k10", "psa_vgg16_aff"]))
    shapes = dict(official_list(name)[0])
    heads = [key for key in shapes if not key.startswith(("resnet50", "features", "b", "conv"))]
    for key in data.draw(st.lists(st.sampled_from(heads), min_size=1, max_size=6)):
        kind = data.draw(st.sampled_from(["lost", "emptied", "scalar", "longer"]))
        shape = shapes.pop(key, None)
        if shape and kind != "lost":
            shapes[key] = {"emptied": [0, *shape[1:]], "scalar": [], "longer": [shape[0] + 1, *shape[1:]]}[kind]
    with pytest.raises(DataError, match="not the weights of"):
        checkpoints.convert(light_weights(shapes), LISTS[name][0], "file.pth")


@pytest.mark.system
def test_the_separate_codebook(tmp_path, capsys):
    official_file(tmp_path / "m.pth", "vwl_m_resnet101")
    official_file(tmp_path / "l.pth", "vwl_l_resnet101")
    np.save(tmp_path / "small.npy", np.zeros((20, 2048), np.float32))
    np.save(tmp_path / "right.npy", np.full((256, 2048), 0.25, np.float32))
    command = ["convert", "--format", "vwe"]
    out = str(tmp_path / "out.safetensors")
    assert "give that with --codebook" in refused(capsys, *command, str(tmp_path / "m.pth"), out)
    codebook = ["--codebook", str(tmp_path / "small.npy")]
    assert "shape (20, 2048) instead of (256, 2048)" in refused(capsys, *command, str(tmp_path / "m.pth"), out, *codebook)
    assert "leave out --codebook" in refused(capsys, *command, str(tmp_path / "l.pth"), out, *codebook)
    assert not Path(out).exists()
    checkpoints.main([*command, str(tmp_path / "m.pth"), out, "--codebook", str(tmp_path / "right.npy")])
    assert "VWL-M" in capsys.readouterr().out
    result = read_tensors(Path(out))
    assert result["codebook"].shape == (256, 2048) and bool(result["bank_filled"])


class RunsACommand:
    """A pickle that would make a file when it is read by plain `torch.load`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_hostile_file_runs_nothing(tmp_path, capsys, legacy):
    weights = light_weights(official_list("irn_resnet50_cam")[0]) | {"extra": RunsACommand(tmp_path / "ran")}
    torch.save(weights, tmp_path / "in.pth", _use_new_zipfile_serialization=not legacy)
    error = refused(capsys, "convert", "--format", "irn-cam", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"))
    assert "asks for posix.system" in error and os.listdir(tmp_path) == ["in.pth"]


def test_missing_truncated_and_other_files_are_refused(tmp_path, capsys):
    official_file(tmp_path / "whole.pth", "drs_vgg16_fixed")
    content = (tmp_path / "whole.pth").read_bytes()
    for name, damaged in {"cut": content[: len(content) // 2], "empty": b"", "text": b"no weights here"}.items():
        (tmp_path / name).write_bytes(damaged)
        error = refused(capsys, "convert", "--format", "drs", str(tmp_path / name), str(tmp_path / "out.safetensors"))
        assert "not a .pth file that can be read safely" in error
    assert "there is no such weights file" in refused(capsys, "convert", "--format", "drs", str(tmp_path / "x.pth"), "out")
    with pytest.raises(SystemExit):
        checkpoints.main(["convert", "--format", "irn-camera", str(tmp_path / "whole.pth"), "out"])
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"PK\x03\x04" + bytes(200), "it is cut off"),  # was said to use PERSID
        (b"\n<!DOCTYPE html><title>Quota exceeded</title>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS's reference"),
    ],
)
def test_what_downloads_leave_is_recognized(tmp_path, content, words):
    (tmp_path / "in.pth").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_checkpoint(tmp_path / "in.pth")


def test_safetensors_are_known_by_their_content(tmp_path):
    for name in ("a.pth", "a.SAFETENSORS"):
        write_tensors(tmp_path / name, {"a": torch.zeros(3)})
        assert is_safetensors(tmp_path / name)
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert not is_safetensors(tmp_path / "a.safetensors")


# ---- the way back


@pytest.mark.system
@pytest.mark.parametrize(
    "name, count",
    [("irn_resnet50_cam", 956), ("irn_resnet50_irn", 1035), ("deeplabv2_resnet101_msc", 632), ("deeplabv3plus_resnet101", 674)],
)
def test_export_gives_the_official_file_again(tmp_path, capsys, name, count):
    format_name = LISTS[name][0]
    shapes, aliases, under = official_list(name)
    weights = official_file(tmp_path / "in.pth", name, random_weights(shapes) if "v2" in name else None)
    checkpoints.convert_file(tmp_path / "in.pth", format_name, tmp_path / "ours.safetensors")
    checkpoints.main(["export", "--format", format_name, str(tmp_path / "ours.safetensors"), str(tmp_path / "out.pth")])
    assert layouts()[format_name][0].network in capsys.readouterr().out
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    content = content[under] if under else content
    training_only = ("path_indices", "disp_target")  # of IRN; its own inference does without
    expected = {key: value for key, value in weights.items() if not key.startswith(training_only)}
    expected |= {second: weights[first] for second, first in aliases.items() if not first.startswith(training_only)}
    assert set(content) == set(expected) and len(content) == count
    assert all(torch.equal(content[key], value) for key, value in expected.items())


@pytest.mark.system
@torch.inference_mode()
def test_an_exported_classifier_loads_where_the_official_one_does(tmp_path):
    """A trained classifier of ours, out and in again: bit for bit the same maps."""
    config = Config(backbone="resnet50", output_stride=16)
    net = build_classifier(config, 3).eval()
    write_tensors(tmp_path / "ours.safetensors", net.state_dict())
    checkpoints.export_file(tmp_path / "ours.safetensors", "irn-cam", tmp_path / "out.pth")
    checkpoints.convert_file(tmp_path / "out.pth", "irn-cam", tmp_path / "again.safetensors")
    again = build_classifier(config, 3, tmp_path / "again.safetensors").eval()
    image = torch.randn(1, 3, 32, 48)
    assert torch.equal(net.activation_maps(image), again.activation_maps(image))


def test_what_cannot_be_exported_is_refused(tmp_path, capsys):
    small = build_classifier(Config(), 3)
    write_tensors(tmp_path / "small.safetensors", small.state_dict())
    error = refused(capsys, "export", "--format", "irn-cam", str(tmp_path / "small.safetensors"), str(tmp_path / "out.pth"))
    assert "only published sizes can be exported" in error
    write_json(tmp_path / "begun.json", {"parameters": {"deeplab_backbone": "resnet101"}})
    error = refused(capsys, "export", "--format", "deeplab-v2", str(tmp_path / "small.safetensors"), str(tmp_path / "out.pth"))
    assert "was trained with deeplab_backbone resnet101" in error
    (tmp_path / "no.safetensors").write_text("nothing")
    error = refused(capsys, "export", "--format", "irn", str(tmp_path / "no.safetensors"), str(tmp_path / "out.pth"))
    assert "not a safetensors file" in error and not (tmp_path / "out.pth").exists()
