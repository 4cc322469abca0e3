"""DeepLab-v3+, DRS's self-label loss and the center-crop protocol: by hand, by the official key list, through the stages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.core.scoring import score_masks
from wsss_lib.data import transforms
from wsss_lib.data.dataset import load_dataset
from wsss_lib.data.samples import SegmentationSamples, V3PlusSamples
from wsss_lib.methods.cam import build_classifier
from wsss_lib.nets.backbone import build_backbone
from wsss_lib.nets.deeplab_v2 import cross_entropy, self_label_loss, self_labels
from wsss_lib.nets.deeplab_v3plus import Decoder, DeepLabV3Plus, build_dilated_backbone, parameter_groups
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config, read_preset
from wsss_lib.segment.deeplab import build_deeplab, class_probabilities, score_centre_crops, train_deeplab

KEYS = json.loads((Path(__file__).parent / "golden" / "deeplabv3plus_resnet101_keys.json").read_text())["keys"]


@pytest.fixture
def config(small_config) -> Config:
    return Config.from_values(
        small_config.model_dump()
        | {
            "deeplab_version": "v3plus",
            "deeplab_atrous_rates": (1, 2, 3),
            "deeplab_decoder_width": 16,
            "deeplab_scales": (0.5, 2.0),
        }
    )


# ---- the network


def test_names_shapes_and_rates_are_the_official_ones():
    with torch.device("meta"):
        net = DeepLabV3Plus(build_dilated_backbone("resnet101", 16), 21)
    assert {name: list(value.shape) for name, value in net.state_dict().items()} == {row["name"]: row["shape"] for row in KEYS}
    assert sum(parameter.numel() for parameter in net.parameters()) == 58_753_973
    groups = parameter_groups(net, 0.01, 1e-4)
    assert {group["min_lr"] for group in groups} == {1e-6}
    rates = {id(part): group["lr"] for group in groups for part in group["params"]}
    official = {row["name"]: row["lr_group"] for row in KEYS}
    for name, parameter in net.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.01 * float(official[name].removesuffix("x"))), name


@pytest.mark.parametrize("stride, dilations", [(16, {3: [1] * 23, 4: [1, 2, 2]}), (8, {3: [1] + [2] * 22, 4: [2, 4, 4]})])
def test_the_first_block_has_the_dilation_of_the_layer_before(stride, dilations):
    with torch.device("meta"):
        backbone = build_dilated_backbone("resnet101", stride)
    for number, expected in dilations.items():
        convolutions = [block.conv2 for block in getattr(backbone, f"layer{number}")]
        assert [convolution.dilation[0] for convolution in convolutions] == expected
        assert [convolution.padding for convolution in convolutions] == [(rate, rate) for rate in expected]
    assert backbone.strides[-1] == stride


def test_batch_norm_and_dropout():
    net = DeepLabV3Plus(build_backbone("resnet_small", 8), 4, (1, 2, 3), width=16).train()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.training and norm.weight.requires_grad for norm in norms)
    assert {norm.momentum for norm in net.backbone.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.01}
    assert {norm.momentum for norm in net.classifier.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.1}
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.1]


def test_early_features_come_first_in_the_decoder():
    torch.manual_seed(0)
    decoder = Decoder(4, 8, 3, (1, 2, 3), width=16).eval()
    low, high = torch.randn(1, 4, 12, 10), torch.randn(1, 8, 6, 5)
    joined = []
    decoder.classifier[0].register_forward_pre_hook(lambda module, inputs: joined.append(inputs[0]))
    with torch.no_grad():
        assert decoder(low, high).shape == (1, 3, 12, 10)
        assert torch.equal(joined[0][:, :3], decoder.project(low)) and joined[0].shape[1] == 3 + 16


@pytest.mark.parametrize("size", [(1, 1), (33, 48), (41, 40)])
def test_logits_have_stride_4(size):
    net = DeepLabV3Plus(build_backbone("resnet_small", 8), 4, (1, 2, 3), width=16).eval()
    assert net(torch.randn(2, 3, *size)).shape == (2, 4, (size[0] + 3) // 4, (size[1] + 3) // 4)


# ---- DRS's self-label loss


def test_own_labels_by_hand():
    """Background, class 1 (absent) and class 2 (present)."""
    z = torch.tensor([[3.0, 9.0, 1.0], [-1.0, 9.0, 2.0], [-1.0, 9.0, -2.0]]).T[None, :, None]  # (1, 3, 1, 3 pixels)
    present = torch.tensor([[1.0, 0.0, 1.0]])
    assert self_labels(z, present).flatten().tolist() == [0, 2, 1]  # the last: all present logits are below 0
    labels = torch.tensor([[[0, 255, 2]]])
    expected = cross_entropy(z, labels) + nn.functional.cross_entropy(z, torch.tensor([[[0, 2, 1]]]))
    assert self_label_loss(z, labels, present).item() == pytest.approx(expected.item())


@given(st.integers(0, 2**31))
def test_own_labels_are_present_classes_where_one_is_positive(seed):
    generator = torch.Generator().manual_seed(seed)
    z, present = torch.randn(2, 5, 3, 4, generator=generator), torch.randint(0, 2, (2, 5), generator=generator).float()
    present[:, 0] = 1
    chosen = self_labels(z.requires_grad_(), present)
    assert not chosen.requires_grad
    some_positive = ((z > 0) & (present[..., None, None] > 0)).any(1)
    picked = torch.gather(present, 1, chosen.flatten(1)).view_as(chosen)
    assert (picked[some_positive] == 1).all()


# ---- crops


def test_a_small_image_is_filled_on_all_four_sides_with_unknown():
    image, label = np.full((3, 4, 3), 7, np.uint8), np.ones((3, 4), np.uint8)
    padded, filled = transforms.pad_all_sides(image, label, 5)
    assert padded.shape == (5, 6, 3)  # width 4 of 5: one pixel on every side; then the height is 5
    assert filled.tolist() == [[255] * 6, *[[255, 1, 1, 1, 1, 255]] * 3, [255] * 6]
    assert not padded[filled == 255].any() and (padded[filled == 1] == 7).all()
    assert set(np.unique(transforms.pad_all_sides(image, label, 5, label_fill=0)[1])) == {0, 1}  # the official fault


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_padded_images_are_large_enough_and_hold_the_image(height, width, side):
    label = np.arange(height * width, dtype=np.int32).reshape(height, width) + 1000
    image = np.repeat(label[..., None], 3, 2)
    padded, filled = transforms.pad_all_sides(image, label, side)
    assert padded.shape[:2] == filled.shape and min(filled.shape) >= side
    assert (filled.shape == label.shape) == (min(height, width) >= side)
    inside = filled != 255
    assert (filled[inside] == label.ravel()).all()  # every pixel once, in its order
    assert (padded[..., 0][inside] == filled[inside]).all() and not padded[~inside].any()


def test_centre_crop_by_hand():
    image, label = Image.new("RGB", (80, 40)), np.zeros((40, 80), np.uint8)
    label[:, 40:] = 3
    cut, cropped = transforms.centre_crop(image, label, 20)  # shorter side 40 to 20: 40 x 20, then columns 10 to 30
    assert cut.size == (20, 20) and (cropped[:, :10] == 0).all() and (cropped[:, 10:] == 3).all()


def test_samples_of_both_versions(miniature):
    data = load_dataset(miniature, "train")
    masks, statistics = miniature / "SegmentationClass", ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    samples = V3PlusSamples(data, masks, 0, (0.5, 2.0), 64, *statistics)
    wanted = samples[1, 3]
    assert all(torch.equal(a, b) for a, b in zip(samples[1, 3], wanted, strict=True)) and len(wanted) == 2
    assert wanted[0].shape == (3, 64, 64) and set(wanted[1].unique().tolist()) <= {0, 1, 2, 3, 255}
    assert any((samples[epoch, 0][1][0] == 255).all() for epoch in range(6))  # a strip outside the image is unknown
    samples = V3PlusSamples(data, masks, 0, (0.5, 2.0), 64, *statistics, label_fill=0)
    assert any((samples[epoch, 0][1][0] == 0).all() for epoch in range(6))
    with_labels = SegmentationSamples(data, masks, 0, (1.0,), 33, *statistics, image_labels=True)
    assert with_labels[0, 1][2].tolist() == [1, 0, 1, 0]  # background, then red, green, blue


# ---- stages


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"deeplab_padding_is_background": True},
        {"deeplab_loss": "balanced"},
        {"deeplab_version": "v2", "deeplab_loss": "self_label", "deeplab_scales": (1.0,)},
    ],
)
def test_training_prediction_and_scores(config, miniature, tmp_path, changes):
    config = config.model_copy(update=changes)
    data = load_dataset(miniature, "train")
    training.seed_everything(config)
    net = build_deeplab(config, data.num_classes, "")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert train_deeplab(net, data, miniature / "SegmentationClass", config, tmp_path) == 16
    row = training.read_log(tmp_path)[-1]
    assert np.isfinite(row["loss"]) and any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    probabilities = class_probabilities(net, data.image("m_02"), config)
    assert probabilities.shape == (4, 37, 51) and np.allclose(probabilities.sum(0), 1, atol=1e-5)
    training.save_weights(net, tmp_path / "weights.safetensors")
    again = build_deeplab(config, data.num_classes, "", tmp_path / "weights.safetensors").eval()
    np.testing.assert_allclose(class_probabilities(again, data.image("m_02"), config), probabilities, atol=1e-5)
    whole = score_masks(data, lambda image_id: class_probabilities(net, data.image(image_id), config).argmax(0))
    crops = score_centre_crops(net, data, config.model_copy(update={"deeplab_centre_crop": 24}))
    assert crops.images == whole.images == 8 and crops.confusion.sum() <= 8 * 24 * 24 < whole.confusion.sum()


def test_it_starts_from_the_classifier(config, miniature, tmp_path):
    config = config.model_copy(update={"deeplab_init": "classifier"})
    classifier = build_classifier(config, 3)
    training.save_weights(classifier, tmp_path / "classifier.safetensors")
    net = build_deeplab(config, 3, tmp_path / "classifier.safetensors")
    state = classifier.backbone.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in net.backbone.state_dict().items())


def test_one_image_at_once_is_refused(config, miniature, tmp_path):
    config = config.model_copy(update={"device_batch_size": 1})
    data = load_dataset(miniature, "train")
    with pytest.raises(ValueError, match="deeplab_batch_size and device_batch_size must be at least 2"):
        train_deeplab(build_deeplab(config, 3, ""), data, miniature / "SegmentationClass", config, tmp_path)


@pytest.mark.parametrize(
    "option, batch, rate, iterations", [("deeplab-v3plus", 16, 0.01, 30_000), ("deeplab-v3plus-drs", 32, 0.05, 20_000)]
)
@pytest.mark.parametrize("method", ["cam", "drs"])
def test_published_recipes(option, batch, rate, iterations, method):
    config = preset_config("voc12", method, **read_preset(PROJECT_ROOT / "configs" / "options" / f"{option}.yaml"))
    assert (config.deeplab_batch_size, config.deeplab_learning_rate, config.deeplab_iterations) == (batch, rate, iterations)
    assert (config.deeplab_crop, config.deeplab_weight_decay, config.deeplab_centre_crop) == (513, 1e-4, 513)
