"""ResNet-38 and VGG-16 have the official shapes, names and frozen parts; the MXNet file is read without MXNet."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.resnet38_mxnet import convert, main, read_mxnet, torch_key
from wsss_lib.core.files import read_tensors
from wsss_lib.errors import DataError
from wsss_lib.methods.cam import ClassActivationNet
from wsss_lib.methods.sccam import SubcategoryNet
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.nets.resnet38 import ResNet38
from wsss_lib.nets.vgg16_largefov import VGG16LargeFOV
from wsss_lib.nets.weights import load_weights
from wsss_lib.refine.affinitynet import AffinityNet
from wsss_lib.refine.irn import IRN

GOLDEN = Path(__file__).parent / "golden"


# ---- the networks


@pytest.mark.parametrize("backbone", [ResNet38(width=2), VGG16LargeFOV(width=2)], ids=["resnet38", "vgg16_largefov"])
@pytest.mark.parametrize("size", [(16, 24), (17, 31), (33, 8)])
def test_five_maps_with_the_strides_that_they_promise(backbone, size):
    maps = backbone.eval().stages(torch.randn(2, 3, *size))
    for x, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert x.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert torch.equal(backbone(torch.zeros(1, 3, *size)), backbone.stages(torch.zeros(1, 3, *size))[-1])
    assert all((x >= 0).all() for x in maps[2:])  # each after its ReLU
    assert len(backbone.shallow_modules(0)) == 0
    assert len(backbone.shallow_modules(5)) == sum(bool(list(child.parameters())) for child in backbone.children())


def test_irn_can_stand_on_resnet38():
    edge, displacement = IRN(ResNet38(width=2), displacement_width=32)(torch.randn(1, 3, 32, 40))
    assert edge.shape == (1, 1, 8, 10) and displacement.shape == (1, 2, 8, 10)


def official(part: str, key: str, heads: dict[str, str]) -> str:
    """Return the official name of one of our parameters."""
    first, rest = key.split(".", 1)
    return rest if first in ("backbone", "head") else f"{heads[first]}.{rest}"


def networks() -> list:
    with torch.device("meta"):
        classifier = ClassActivationNet(ResNet38(), 20, frozen_stages=1)
        return [
            ("sccam_resnet38_round0", classifier, {"classifier": "fc8"}, None),
            (
                "sccam_resnet38_round1_k10",
                SubcategoryNet(ResNet38(), 20, 10),
                {"classifier": "fc8_20", "subclassifier": "fc8_200"},
                lambda net: net.parameter_groups(1, 10, 1),
            ),
            ("psa_resnet38_aff", frozen(AffinityNet, ResNet38()), {}, lambda net: net.parameter_groups(1, 1)),
            ("psa_vgg16_cls", ClassActivationNet(VGG16LargeFOV(), 20, frozen_stages=1), {"classifier": "fc8"}, None),
            (
                "psa_vgg16_aff",
                frozen(AffinityNet, VGG16LargeFOV(), group_norm=True),
                {},
                lambda net: net.parameter_groups(1, 1),
            ),
        ]


def frozen(kind, backbone, **options):
    for module in backbone.shallow_modules(1):
        module.requires_grad_(False)
    return kind(backbone, **options)


@pytest.mark.parametrize("name, net, heads, groups_of", networks(), ids=lambda value: str(value)[:30])
def test_names_shapes_and_frozen_parts_are_the_official_ones(name, net, heads, groups_of):
    expected = json.loads((GOLDEN / f"{name}_keys.json").read_text())
    ours = {official(name, key, heads): value for key, value in net.state_dict().items()}
    assert {key: list(value.shape) for key, value in ours.items()} == {key: entry["shape"] for key, entry in expected.items()}
    net.train()
    rates = {}
    if groups_of:
        rates = {id(parameter): group["lr"] for group in groups_of(net) for parameter in group["params"]}
    for key, parameter in net.named_parameters():
        entry = expected[official(name, key, heads)]
        if groups_of:  # the classifiers of notebook 10 train the scale and shift of batch normalization
            assert parameter.requires_grad == entry["trainable"], key
            assert rates.get(id(parameter)) == (entry["lr_mult"] if entry["trainable"] else None), key
    if groups_of:
        decays = {id(parameter): group["weight_decay"] for group in groups_of(net) for parameter in group["params"]}
        assert all(
            (decays[id(parameter)] == 0) == key.endswith("bias")
            for key, parameter in net.named_parameters()
            if parameter.requires_grad
        )
    assert not any(module.training for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_the_backbones_can_be_chosen():
    assert isinstance(build_backbone("vgg16_largefov", 8), VGG16LargeFOV)
    for name in ("resnet38", "vgg16_largefov"):
        with pytest.raises(ValueError, match=f"{name} is built at output_stride 8 only"):
            build_backbone(name, 16)
    with torch.device("meta"), pytest.raises(ValueError, match="python -m data_prep.resnet38_mxnet"):
        build_backbone("resnet38", 8, "imagenet")


def test_vgg_takes_rgb_in_caffes_units():
    mean, std = normalization_of("vgg16_largefov")
    assert np.allclose((np.array([255, 255, 255]) / 255 - mean) / std, 255 - np.array([122.675, 116.669, 104.008]))
    net = VGG16LargeFOV(width=2).eval()
    seen = []
    net.conv1_1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    image = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    net(image)
    assert seen[0][0, :, 0, 0].tolist() == [2, 1, 0]


def test_vgg_maps_are_roots():
    net = ClassActivationNet(VGG16LargeFOV(width=2), 3).eval()
    image = torch.randn(1, 3, 24, 24)
    assert torch.allclose(net.activation_maps(image) ** 2, net.classifier(net.backbone(image)).clamp(min=0), atol=1e-6)


# ---- the MXNet file


def mxnet_file(path: Path, arrays: dict[str, np.ndarray], form: str = "V2") -> Path:
    """Write arrays as MXNet does."""
    out = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        sides = "q"
        if form == "V2":
            out += struct.pack("<Ii", 0xF993FAC9, 0)
        elif form == "V1":
            out += struct.pack("<I", 0xF993FAC8)
        else:
            sides = "I"
        out += struct.pack(f"<I{array.ndim}{sides}", array.ndim, *array.shape)
        out += struct.pack("<iii", 1, 0, 0) + array.astype("<f4").tobytes()
    out += struct.pack("<Q", len(arrays))
    for name in arrays:
        out += struct.pack("<Q", len(name)) + name.encode()
    path.write_bytes(out)
    return path


def mxnet_names() -> dict[str, str]:
    return json.loads((GOLDEN / "resnet38_mxnet_name_map.json").read_text())["map"]


def small_arrays(width: int = 2) -> dict[str, np.ndarray]:
    """A whole ResNet-38 of small width under MXNet's names, with the classifier that is left out."""
    rng = np.random.default_rng(0)
    state = ResNet38(width).state_dict()
    arrays = {name: rng.standard_normal(state[key].shape).astype(np.float32) for key, name in mxnet_names().items()}
    return arrays | {"arg:linear1000_weight": np.zeros((5, 64 * width), np.float32), "arg:linear1000_bias": np.zeros(5)}


def test_every_official_name_is_understood():
    names = mxnet_names()
    assert len(names) == 191 and {torch_key(name): name for name in names.values()} == names
    assert torch_key("arg:linear1000_weight") is None and torch_key("data") is None


@pytest.mark.parametrize("form", ["oldest", "V1", "V2"])
def test_a_file_becomes_weights(tmp_path, form, capsys):
    arrays = small_arrays()
    source = mxnet_file(tmp_path / "small.params", arrays, form)
    main([str(source), str(tmp_path / "out" / "resnet38.safetensors")])
    assert "191 arrays" in capsys.readouterr().out
    net = ResNet38(width=2)
    load_weights(net, read_tensors(tmp_path / "out" / "resnet38.safetensors"), "file")
    for key, name in mxnet_names().items():
        np.testing.assert_array_equal(net.state_dict()[key].numpy(), arrays[name])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda arrays: arrays.pop("arg:conv1a_weight"), "another network than ResNet-38"),
        (lambda arrays: arrays.pop("aux:bn7_moving_var"), "1 arrays are missing (first: bn7.running_var)"),
        (lambda arrays: arrays.update({"arg:res9a_branch2a_weight": np.zeros(2)}), "b9.conv_branch2a.weight"),
        (lambda arrays: arrays.update({"arg:bn7_beta": np.zeros(3)}), "bn7.bias has shape (3,) instead of (128,)"),
    ],
)
def test_arrays_of_another_network_are_refused(change, words):
    arrays = small_arrays()
    change(arrays)
    with pytest.raises(DataError) as error:
        convert(arrays)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_broken_file_gives_one_sentence_and_no_output(tmp_path, capsys):
    whole = mxnet_file(tmp_path / "whole", {"arg:a": np.ones((2, 3)), "aux:b": np.ones(1)}).read_bytes()
    broken = tmp_path / "broken"
    for length in range(len(whole)):  # cut off anywhere
        broken.write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a file of MXNet parameters .*; fetch it again"):
            read_mxnet(broken)
    for content, words in (
        (b"\0" * 64, "begins with 0x0"),
        (whole.replace(b"arg:a", b"arg:\xff"), "a name is not text"),
        (whole.replace(b"\xc9\xfa\x93\xf9\0", b"\xc9\xfa\x93\xf9\1"), "sparse"),
    ):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_mxnet(broken)
    with pytest.raises(FileNotFoundError, match="there is no such MXNet parameter file"):
        read_mxnet(tmp_path / "absent")
    with pytest.raises(SystemExit):
        main([str(broken), str(tmp_path / "out.safetensors")])
    assert "fetch it again" in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


@given(st.binary(max_size=200), st.booleans())
def test_nothing_but_a_data_error_ever_comes_out(tmp_path_factory, content, with_head):
    path = tmp_path_factory.getbasetemp() / "random.params"
    path.write_bytes(struct.pack("<QQQ", 0x112, 0, 1) * with_head + content)
    try:
        read_mxnet(path)
    except DataError as error:
        assert "\n" not in str(error)
