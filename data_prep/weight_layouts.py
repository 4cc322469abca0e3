"""The layouts of official weights: for each format the names and shapes that a file must have, and our names for them.

The long lists of names lie in `layouts/*.json`, one for each trunk. A shape may hold letters: C, the number of foreground
classes; S, of sub-categories per class; W, of visual words. "C+1" counts the background too. The first weight that has a letter
fixes its value for the whole file.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).with_name("layouts")
Shape = tuple[int | str, ...]


class Layout(NamedTuple):
    """One kind of official file.

    Attributes:
        network: in words.
        keys: official name to shape and our name.
        usage: the parameters with which a notebook uses the converted file, besides those of a published preset; FILE stands
            for its path, letters in braces for their values.
        aliases: beginning of a second name of the same weights to the beginning of the first; a file may leave them out.
        dropped: beginnings of names that only training needed.
        prefix: the beginning of all names, which a file may leave out.
    """

    network: str
    keys: dict[str, tuple[Shape, str]]
    usage: str
    aliases: dict[str, str] = {}
    dropped: tuple[str, ...] = ()
    prefix: str = ""


@cache
def _names(name: str) -> dict[str, Shape]:
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return {key: tuple(shape) for key, shape in content["keys"].items()}


def _trunk(name: str, official: str = "", ours: str = "backbone.") -> dict[str, tuple[Shape, str]]:
    return {official + key: (shape, ours + key) for key, shape in _names(name).items()}


def _registered_twice(trunk: str, stages: tuple[tuple[str, ...], ...]) -> dict[str, str]:
    """IRN's family lists its trunk again as `stageN` and as `backbone.N`; `stages` says what stands at which position."""
    aliases: dict[str, str] = {}
    for number, parts in enumerate(stages):
        for part in parts:
            place, module = part.split("=")
            aliases |= {f"stage{number + 1}.{place}.": f"{trunk}{module}.", f"backbone.{number}.{place}.": f"{trunk}{module}."}
    return aliases


_FOUR = (("0=conv1", "1=bn1", "4=layer1"), ("0=layer2",), ("0=layer3",), ("0=layer4",))
_FIVE = (("0=conv1", "1=bn1"), ("0=layer1",), ("0=layer2",), ("0=layer3",), ("0=layer4",))


def _irn_cam() -> Layout:
    keys = _trunk("resnet50", "resnet50.") | {"classifier.weight": (("C", 2048, 1, 1), "classifier.weight")}
    return Layout(
        "the classifier of IRN and RIB, ResNet-50",
        keys,
        "-p backbone resnet50 -p cam_weights FILE",
        _registered_twice("resnet50.", _FOUR) | {"newly_added.0.": "classifier."},
    )


def _irn() -> Layout:
    keys = _trunk("resnet50", "resnet50.") | _trunk("irn_heads", "", "")
    aliases = {f"edge_layers.{number - 1}.": f"fc_edge{number}." for number in range(1, 7)}
    aliases |= {f"dp_layers.{number - 1}.": f"fc_dp{number}." for number in range(1, 8)}
    aliases |= {"fc_dp7.4.": "mean_shift.", "dp_layers.6.4.": "mean_shift."}
    return Layout(
        "IRN with both heads, ResNet-50",
        keys,
        "-p backbone resnet50 -p irn_displacement_width 256 -p irn_weights FILE",
        _registered_twice("resnet50.", _FIVE) | aliases,
        ("path_indices", "disp_target"),
    )


def _amn() -> Layout:
    keys = _trunk("resnet50", "resnet50.")
    keys |= {
        "label_enc.weight": ((2048, "C"), "head.label_encoder.weight"),
        "label_enc.bias": ((2048,), "head.label_encoder.bias"),
    }
    for branch in range(4):
        keys |= {
            f"classifier.1.c{branch}.weight": (("C+1", 2048, 3, 3), f"head.aspp.c{branch}.weight"),
            f"classifier.1.c{branch}.bias": (("C+1",), f"head.aspp.c{branch}.bias"),
        }
    return Layout(
        "AMN, ResNet-50",
        keys,
        "-p backbone resnet50 -p amn_weights FILE",
        _registered_twice("resnet50.", _FOUR) | {"newly_added.0.": "classifier.", "newly_added.1.": "label_enc."},
    )


def _vwe(trunk: str, codebook: bool, network: str, variant: str) -> Layout:
    keys = _trunk(trunk, "resnet.")
    keys |= {
        "classifier.weight": (("C", 2048, 1, 1), "classifier.weight"),
        "fc_a.weight": (("C", "W", 1, 1), "histogram_head.weight"),
        "fc_b.weight": (("W", 2048, 1, 1), "word_head.weight"),
    }
    heads = ("classifier", "VWE", "fc_a", "fc_b") if codebook else ("classifier", "fc_a", "fc_b")
    if codebook:
        keys["VWE.centroid"] = (("W", 2048, 1, 1), "codebook")
    return Layout(
        network,
        keys,
        f"-p backbone {trunk} -p vwe_variant {variant} -p vwe_words {{W}} -p vwe_weights FILE",
        _registered_twice("resnet.", _FOUR) | {f"newly_added.{i}.": f"{head}." for i, head in enumerate(heads)},
    )


def _drs(network: str, learnable: bool, usage: str) -> Layout:
    keys, aliases = _trunk("vgg16"), {}
    places = [int(key.split(".")[1]) for key in _names("vgg16") if key.endswith("weight")]  # 0, 2, 5, … in `features`
    depth = (2, 2, 3, 3, 3)
    layers = [f"layer{stage + 1}_{{}}{number + 1}" for stage in range(5) for number in range(depth[stage])]
    for place, layer in zip(places, layers, strict=True):
        aliases[layer.format("conv") + "."] = f"features.{place}."
        if learnable:
            width = _names("vgg16")[f"features.{place}.weight"][0]
            keys[layer.format("relu") + ".fc.0.weight"] = ((width, width), f"backbone.features.{place + 1}.controller.weight")
    for number in range(3):
        keys |= {
            f"extra_conv{number + 1}.weight": ((512, 512, 3, 3), f"extra.{number}.weight"),
            f"extra_conv{number + 1}.bias": ((512,), f"extra.{number}.bias"),
        }
        if learnable:
            keys[f"extra_relu{number + 1}.fc.0.weight"] = ((512, 512), f"activations.{number}.controller.weight")
    keys |= {"extra_conv4.weight": (("C", 512, 1, 1), "classifier.weight"), "extra_conv4.bias": (("C",), "classifier.bias")}
    return Layout(network, keys, usage, aliases)


def _classifier(trunk: str, network: str, parameter: str = "cam_weights") -> Layout:
    width = {"resnet38": 4096, "vgg16_largefov": 1024}[trunk]
    keys = _trunk(trunk) | {"fc8.weight": (("C", width, 1, 1), "classifier.weight")}
    return Layout(network, keys, f"-p backbone {trunk} -p output_stride 8 -p {parameter} FILE")


def _sccam() -> Layout:
    keys = _trunk("resnet38")
    keys |= {
        "fc8_20.weight": (("C", 4096, 1, 1), "classifier.weight"),
        "fc8_200.weight": (("C*S", 4096, 1, 1), "subclassifier.weight"),
    }
    return Layout(
        "SC-CAM after a round, ResNet-38",
        keys,
        "-p backbone resnet38 -p output_stride 8 -p sccam_clusters {S} -p sccam_weights FILE",
    )


def _affinitynet(trunk: str, inputs: tuple[int, int, int], norm: bool, network: str) -> Layout:
    keys = _trunk(trunk)
    for level, inside, outside in zip((3, 4, 5), inputs, (64, 128, 256), strict=True):
        keys[f"f8_{level}.weight"] = ((outside, inside, 1, 1), f"head.f8_{level}.weight")
        if norm:
            keys |= {f"gn8_{level}.{field}": ((outside,), f"head.gn8_{level}.{field}") for field in ("weight", "bias")}
    keys["f9.weight"] = ((448, 448, 1, 1), "head.f9.weight")
    return Layout(network, keys, f"-p backbone {trunk} -p output_stride 8 -p affinitynet_weights FILE")


def caffe_name(key: str) -> str:
    """Return DeepLab-v2's official name, which follows Caffe's, for torchvision's name of a ResNet's parameter.

    Args:
        key: e.g. of `torchvision.models.resnet101().state_dict()`, without `fc`.

    >>> caffe_name("layer3.0.downsample.1.weight"), caffe_name("layer1.2.conv2.weight"), caffe_name("bn1.bias")
    ('layer4.block1.shortcut.bn.weight', 'layer2.block3.conv3x3.conv.weight', 'layer1.conv1.bn.bias')
    """
    module, field = key.rsplit(".", 1)
    match = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", module)
    kind = "bn" if "bn" in module or module.endswith("downsample.1") else "conv"
    if not match:
        return f"layer1.conv1.{kind}.{field}"
    layer, block, part = match.groups()
    part = "shortcut" if part.startswith("downsample") else {"1": "reduce", "2": "conv3x3", "3": "increase"}[part[-1]]
    return f"layer{int(layer) + 1}.block{int(block) + 1}.{part}.{kind}.{field}"


def _deeplab_v2() -> Layout:
    keys = {f"base.{caffe_name(key)}": (shape, f"backbone.{key}") for key, shape in _names("resnet101").items()}
    for branch in range(4):
        keys |= {
            f"base.aspp.c{branch}.weight": (("C+1", 2048, 3, 3), f"aspp.c{branch}.weight"),
            f"base.aspp.c{branch}.bias": (("C+1",), f"aspp.c{branch}.bias"),
        }
    return Layout(
        "DeepLab-v2, ResNet-101 in Caffe's form",
        keys,
        "-p deeplab_backbone resnet101_caffe -r deeplab_atrous_rates '[6, 12, 18, 24]' -p deeplab_weights FILE",
        prefix="base.",
    )


def _deeplab_init() -> Layout:
    """DeepLab-v1's container of the initial weights: the trunk alone; its classifier is not used."""
    return Layout(
        "the start of DeepLab-v2, ResNet-101 in Caffe's form",
        {caffe_name(key): (shape, key) for key, shape in _names("resnet101").items()},
        "-p deeplab_backbone resnet101_caffe -p deeplab_init FILE (the file made on COCO has learned from COCO's masks)",
        dropped=("fc.", "aspp."),
    )


def _deeplab_v3plus() -> Layout:
    keys = _trunk("resnet101", "backbone.") | _trunk("deeplab_v3plus_head", "", "")
    return Layout(
        "DeepLab-v3+, ResNet-101",
        keys,
        "-p deeplab_version v3plus -p deeplab_backbone resnet101 -p deeplab_decoder_width 256 "
        "-p deeplab_output_stride 16 -r deeplab_atrous_rates '[6, 12, 18]' -p deeplab_weights FILE "
        "(a network of stride 8 has '[12, 24, 36]')",
    )


@cache
def layouts() -> dict[str, tuple[Layout, ...]]:
    """Return the name of every format to its layouts; a format has several if the authors' files differ.

    >>> len(layouts()["irn"][0].keys), layouts()["sccam"][0].keys["fc8_200.weight"]
    (358, (('C*S', 4096, 1, 1), 'subclassifier.weight'))
    """
    return {
        "irn-cam": (_irn_cam(),),
        "irn": (_irn(),),
        "rib": (_irn_cam(),),
        "drs": (
            _drs(
                "DRS's classifier with learnable suppression", True, "-p drs_backbone vgg16 -p drs_delta 0 -p drs_weights FILE"
            ),
            _drs("DRS's classifier with a fixed delta", False, "-p drs_backbone vgg16 -p drs_delta DELTA -p drs_weights FILE"),
        ),
        "drs-refine": (_drs("DRS's refinement network", False, "-p drs_backbone vgg16 -p drs_refine_weights FILE"),),
        "amn": (_amn(),),
        "vwe": (
            _vwe("resnet50", True, "VWE, ResNet-50", "vwe"),
            _vwe("resnet101", True, "VWL-L, ResNet-101", "vwl_l"),
            _vwe("resnet101", False, "VWL-M, ResNet-101", "vwl_m"),
        ),
        "sccam": (_sccam(), _classifier("resnet38", "SC-CAM's classifier of round 0, ResNet-38", "sccam_first_weights")),
        "psa-cls": (
            _classifier("resnet38", "AffinityNet's classifier, ResNet-38"),
            _classifier("vgg16_largefov", "AffinityNet's classifier, VGG-16"),
        ),
        "psa-aff": (
            _affinitynet("resnet38", (512, 1024, 4096), False, "AffinityNet, ResNet-38"),
            _affinitynet("vgg16_largefov", (512, 512, 1024), True, "AffinityNet, VGG-16"),
        ),
        "resnet38-mxnet": (
            Layout(
                "ResNet-38 with ImageNet weights",
                _trunk("resnet38", "", ""),
                "-p backbone resnet38 -p output_stride 8 -p backbone_weights FILE",
            ),
        ),
        "deeplab-v2": (_deeplab_v2(),),
        "deeplab-init": (_deeplab_init(),),
        "deeplab-v3plus": (_deeplab_v3plus(),),
    }
