"""DeepLab-v2: head, scales, label sizes, losses, groups and schedule against hand counts and plain formulations."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.core.files import write_tensors
from wsss_lib.core.stage import run
from wsss_lib.data.dataset import load_dataset
from wsss_lib.nets.backbone import build_backbone
from wsss_lib.nets.deeplab_v2 import (
    ASPPV2,
    DeepLabV2,
    balanced_cross_entropy,
    cross_entropy,
    multi_scale_logits,
    multi_scale_loss,
    parameter_groups,
    resize_labels,
)
from wsss_lib.presets import preset_config
from wsss_lib.segment import deeplab
from wsss_lib.segment.deeplab import build_deeplab, train_deeplab


@pytest.fixture
def net():
    torch.manual_seed(0)
    return DeepLabV2(build_backbone("resnet_small", output_stride=8), num_classes=4)


def test_aspp_sees_exactly_the_dilated_positions():
    head = ASPPV2(1, 1, rates=(2, 5))
    for branch in head.children():
        nn.init.ones_(branch.weight)
    impulse = torch.zeros(1, 1, 15, 15)
    impulse[0, 0, 7, 7] = 1
    expected = torch.zeros(15, 15)
    for rate in (2, 5):
        for dy in (-rate, 0, rate):
            for dx in (-rate, 0, rate):
                expected[7 + dy, 7 + dx] += 1
    assert torch.equal(head(impulse)[0, 0].detach(), expected)


def test_aspp_names_and_initial_values():
    torch.manual_seed(0)
    head = ASPPV2(64, 21)
    assert list(head.state_dict()) == [f"c{i}.{field}" for i in range(4) for field in ("weight", "bias")]
    assert [branch.dilation for branch in head.children()] == [(r, r) for r in (6, 12, 18, 24)]
    weights = torch.cat([branch.weight.flatten() for branch in head.children()])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02) and abs(weights.mean().item()) < 2e-4
    assert all(not branch.bias.any() for branch in head.children())


def test_logits_have_the_stride_of_the_backbone(net):
    assert net(torch.zeros(2, 3, 64, 48)).shape == (2, 4, 8, 6)


def test_batch_norm_stays_frozen_through_train_and_a_step(net):
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before = {name: {key: value.clone() for key, value in module.state_dict().items()} for name, module in norms.items()}
    net.train()
    assert norms and net.training and not any(module.training for module in norms.values())
    optimizer = torch.optim.SGD(parameter_groups(net, base_lr=0.1), momentum=0.9)
    loss = multi_scale_loss(multi_scale_logits(net, torch.randn(2, 3, 65, 65)), torch.randint(0, 4, (2, 65, 65)))
    loss.backward()
    first = net.backbone.conv1.weight.clone()
    optimizer.step()
    assert not torch.equal(first, net.backbone.conv1.weight)  # the convolutions learn
    for name, module in norms.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[name][key]), f"{name}.{key} moved"


def test_three_groups_hold_every_trained_parameter_once(net):
    backbone, weights, biases = parameter_groups(net, base_lr=2.5e-4, weight_decay=5e-4)
    assert [(group["lr"], group["weight_decay"]) for group in (backbone, weights, biases)] == [
        (2.5e-4, 5e-4),
        (2.5e-3, 5e-4),
        (5e-3, 0.0),
    ]
    assert [len(group["params"]) for group in (weights, biases)] == [4, 4]
    grouped = [id(parameter) for group in (backbone, weights, biases) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in net.parameters() if parameter.requires_grad)
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    assert frozen and all("bn" in name or "downsample.1" in name for name in frozen)


def test_resnet101_has_the_published_numbers_of_tensors():
    with torch.device("meta"):
        net = DeepLabV2(build_backbone("resnet101", output_stride=8), 21)
    groups = parameter_groups(net)
    assert [len(group["params"]) for group in groups] == [104, 4, 4]
    assert sum(parameter.numel() for parameter in net.parameters()) == 44_048_532
    assert sum(not parameter.requires_grad for parameter in net.parameters()) == 208


def test_scales_by_hand_with_the_identity_as_network():
    image = torch.zeros(1, 1, 5, 8)
    image[0, 0, :, 4] = 8.0
    full, half, fused = multi_scale_logits(nn.Identity(), image, scales=(0.5,))
    assert torch.equal(full, image)
    assert half.shape == (1, 1, 2, 4)  # floor(5 / 2), 8 / 2
    # at factor 0.5 pixel i lies at 2 i + 0.5: the mean of two columns
    assert half[0, 0, 0].tolist() == [0, 0, 4, 0]
    up = F.interpolate(half, size=(5, 8), mode="bilinear", align_corners=False)
    assert torch.equal(fused, torch.maximum(full, up)) and fused[0, 0, 0, 4] == 8 and fused[0, 0, 0, 5] > 0


def test_coordinates_are_mapped_with_the_factor_not_with_the_ratio_of_sizes():
    image = torch.arange(9.0).expand(1, 1, 9, 9).contiguous()
    half = multi_scale_logits(nn.Identity(), image, scales=(0.5,))[1]
    # 4 columns at 2 i + 0.5; with the ratio 9 / 4 the last would lie at 7.375
    assert half[0, 0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]


def test_the_maximum_is_taken_for_each_class():
    def net(images):
        mean = images.mean((2, 3), keepdim=True)
        return torch.cat([mean, -mean * images.shape[-1]], 1).expand(-1, -1, 2, 2)

    logits = multi_scale_logits(net, torch.ones(1, 3, 8, 8).mean(1, keepdim=True))
    assert [z[0, :, 0, 0].tolist() for z in logits] == [[1, -8], [1, -4], [1, -6], [1, -4]]


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_label_resizing_equals_pillow_and_the_formula(half_height, half_width, h, w, seed):
    height, width = 2 * half_height + 1, 2 * half_width + 1  # odd, as all crops: no center falls between two pixels
    labels = torch.randint(0, 256, (1, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    result = resize_labels(labels, (h, w))
    rows = [(2 * i + 1) * height // (2 * h) for i in range(h)]
    columns = [(2 * i + 1) * width // (2 * w) for i in range(w)]
    assert result.dtype == torch.uint8
    assert torch.equal(result[0], labels[0][rows][:, columns])
    pillow = Image.fromarray(labels[0].numpy()).resize((w, h), Image.Resampling.NEAREST)
    assert result[0].flatten().tolist() == list(pillow.tobytes())


def test_cross_entropy_by_hand():
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 1, 0, 0] = math.log(3)  # probabilities 1/4, 3/4; the others 1/2, 1/2
    labels = torch.tensor([[[1, 0, 255]]])
    assert cross_entropy(logits, labels).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert cross_entropy(logits, labels).item() == pytest.approx(F.cross_entropy(logits, labels, ignore_index=255).item())


def test_balanced_cross_entropy_by_hand():
    logits = torch.zeros(2, 2, 1, 2)
    logits[0, 1, 0, 0] = math.log(3)
    labels = torch.tensor([[[1, 0]], [[0, 0]]])  # one object pixel against three of background
    object_mean, background_mean = math.log(4 / 3), math.log(2)
    assert balanced_cross_entropy(logits, labels).item() == pytest.approx((object_mean + background_mean) / 2)
    assert cross_entropy(logits, labels).item() == pytest.approx((object_mean + 3 * background_mean) / 4)


@pytest.mark.parametrize(("labels", "expected"), [([0, 0, 255], 0.5), ([1, 2, 255], 0.5), ([255, 255, 255], 0.0)])
def test_an_absent_kind_of_pixel_gives_no_nan(labels, expected):
    logits = torch.zeros(1, 3, 1, 3, requires_grad=True)
    loss = balanced_cross_entropy(logits, torch.tensor([[labels]]))
    assert loss.item() == pytest.approx(expected * math.log(3))
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[..., 2].abs().sum() == 0  # the ignored pixel


def test_labels_that_are_all_ignored_give_zero_and_finite_gradients():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("loss", [cross_entropy, balanced_cross_entropy])
def test_multi_scale_loss_is_the_sum_with_labels_at_each_size(loss):
    torch.manual_seed(1)
    labels = torch.randint(0, 3, (2, 17, 17)).to(torch.uint8)
    labels[:, :2] = 255
    logits = [torch.randn(2, 3, side, side) for side in (9, 5, 7, 9)]
    expected = sum(
        loss(
            z,
            labels[:, [math.floor((i + 0.5) * 17 / z.shape[-1]) for i in range(z.shape[-1])]][
                :, :, [math.floor((i + 0.5) * 17 / z.shape[-1]) for i in range(z.shape[-1])]
            ],
        )
        for z in logits
    )
    assert multi_scale_loss(logits, labels, loss).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_label_that_is_no_class_fails_loudly():
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(torch.zeros(1, 3, 1, 1), torch.tensor([[[7]]]))


@pytest.mark.system
def test_a_tiny_network_learns_a_toy_scene(net):
    torch.manual_seed(0)
    images = torch.rand(4, 3, 64, 64) * 0.2
    labels = torch.zeros(4, 64, 64, dtype=torch.uint8)
    for number in range(4):
        top = 8 * number
        images[number, number % 3, top : top + 32, 16:48] += 1
        labels[number, top : top + 32, 16:48] = 1 + number % 3
    optimizer = torch.optim.SGD(parameter_groups(net.train(), base_lr=1e-3), momentum=0.9)
    losses = []
    for _ in range(30):
        loss = multi_scale_loss(multi_scale_logits(net, images), labels, balanced_cross_entropy)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# ---- training


def trained(config: Config, root, folder, **values) -> dict[str, torch.Tensor]:
    """Train on the ground truth of the miniature and return the weights."""
    config = config.model_copy(update={"deeplab_atrous_rates": (1, 2), "deeplab_learning_rate": 0.01} | values)
    training.seed_everything(config)
    net = build_deeplab(config, 3, "")
    train_deeplab(net, load_dataset(root, "train"), root / "SegmentationClass", config, folder)
    return net.state_dict()


def furthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max((value - second[name]).abs().max().item() for name, value in first.items())


def test_each_accumulated_part_has_a_mean_of_its_own_whatever_a_device_holds(small_config, miniature, tmp_path):
    """Official: the loss of each half-batch is a mean over its own pixels; the halves hold unlike numbers of known ones."""
    halves = trained(small_config, miniature, tmp_path / "halves", device_batch_size=2)
    whole = trained(small_config, miniature, tmp_path / "whole", device_batch_size=4, deeplab_accumulation=2)
    one_mean = trained(small_config, miniature, tmp_path / "one", device_batch_size=4)
    assert furthest(halves, whole) < 1e-6 < 1e-4 < furthest(halves, one_mean)


def test_a_batch_that_has_no_equal_parts_is_refused():
    with pytest.raises(ValueError, match=r"deeplab_batch_size \(10\) must be a multiple of deeplab_accumulation \(3\)"):
        Config(deeplab_batch_size=10, deeplab_accumulation=3)


def test_vwes_recipe_is_that_of_its_program(small_config, miniature, tmp_path):
    """Its program: rate 1e-3 on the MEAN of the four losses, weight decay 5e-4; ours: the sum at a quarter of the rate."""
    config = preset_config("voc12", "vwe")
    assert config.deeplab_learning_rate == pytest.approx(1e-3 / 4) and config.deeplab_weight_decay == pytest.approx(4 * 5e-4)
    common = {"deeplab_rate_every": config.deeplab_rate_every, "deeplab_iterations": 8}
    ours = trained(
        small_config, miniature, tmp_path / "ours", **common, deeplab_learning_rate=0.02 / 4, deeplab_weight_decay=4 * 5e-2
    )
    with pytest.MonkeyPatch.context() as patch:
        train = training.train
        patch.setattr(
            training,
            "train",
            lambda net, loss_of, *rest: train(net, lambda *batch: {"loss": loss_of(*batch)["loss"] / 4}, *rest),
        )
        theirs = trained(
            small_config, miniature, tmp_path / "theirs", **common, deeplab_learning_rate=0.02, deeplab_weight_decay=5e-2
        )
    assert furthest(ours, theirs) < 1e-5
    factors = [row["factor"] for row in training.read_log(tmp_path / "ours")]
    assert factors == pytest.approx([(1 - 7 / 8) ** 0.9], abs=1e-6)  # the rate changes with every iteration


@pytest.mark.system
@pytest.mark.parametrize("version", ["v2", "v3plus"])
def test_a_start_from_a_file_is_named_with_every_score(small_config, tmp_path, version):
    backbone = build_backbone("resnet_small", 8)
    write_tensors(tmp_path / "start.safetensors", backbone.state_dict())
    values = {"deeplab_init": str(tmp_path / "start.safetensors"), "deeplab_version": version, "method": "truth"}
    config = small_config.model_copy(update=values | {"deeplab_atrous_rates": (1, 2, 3), "deeplab_decoder_width": 16})
    net = build_deeplab(config, 3, "")
    assert all(torch.equal(value, net.backbone.state_dict()[name]) for name, value in backbone.state_dict().items())
    run(deeplab.DEEPLAB, config)
    rows = run(deeplab.PREDICTIONS, config).metrics
    assert {row["pixel_labels_chose"] for row in rows} == {"all training masks; whatever made the start start.safetensors"}
