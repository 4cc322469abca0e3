"""Class activation maps by hand: evidence, scales and mirror, several images, frozen stages."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from wsss_lib.config import Config
from wsss_lib.core.files import read_maps, write_maps
from wsss_lib.data import transforms
from wsss_lib.methods import cam
from wsss_lib.methods.cam import build_classifier
from wsss_lib.nets.backbone import build_backbone
from wsss_lib.ops import merging

EFFICIENTNET = pytest.param("efficientnet_lite0", marks=pytest.mark.skipif(find_spec("timm") is None, reason="no timm"))
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Colors(nn.Module):
    """A backbone whose features are the three colors, averaged over blocks of 4 x 4 pixels."""

    channels, strides, map_power = (3,) * 5, (4,) * 5, 1

    def forward(self, images):
        return F.avg_pool2d(images, 4, ceil_mode=True)

    def shallow_modules(self, num_stages):
        return []


def color_net(weight) -> cam.ClassActivationNet:
    """A classifier of colors; class c weighs red, green and blue by row c."""
    net = cam.ClassActivationNet(Colors(), len(weight))
    net.classifier.weight.data = torch.tensor(weight, dtype=torch.float32)[:, :, None, None]
    return net.eval()


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def maps_of(net, images, labels, scales=(1.0,)):
    return cam.localization_maps(net, images, np.uint8(labels), scales, MEAN, STD)


# ---- the network


def test_evidence_by_hand():
    net = color_net([[1, 0, 0], [0, 1, -1]])
    images = torch.zeros(1, 3, 4, 8)
    images[0, 0, :, :4], images[0, 1, :, 4:], images[0, 2, :, :4] = 3.0, 2.0, 5.0  # left: red 3, blue 5; right: green 2
    assert net.activation_maps(images)[0].tolist() == [[[3.0, 0.0]], [[0.0, 2.0]]]  # -5 is cut off
    assert net(images).tolist() == [[1.5, -1.5]]  # the logit is the mean of the evidence before the cut


@pytest.mark.parametrize("name", ["resnet_small", EFFICIENTNET])
def test_a_logit_is_the_mean_of_its_evidence(name):
    torch.manual_seed(0)
    net = cam.ClassActivationNet(build_backbone(name), 4).eval()
    images = torch.randn(2, 3, 33, 48)
    with torch.no_grad():
        evidence = net.classifier(net.backbone(images))
        assert torch.allclose(evidence.mean((2, 3)), net(images), atol=1e-4)
        assert torch.equal(evidence.clamp(min=0), net.activation_maps(images))


def test_loss_by_hand():
    net = color_net([[1, 0, 0], [0, 1, 0]])
    images = torch.zeros(1, 3, 4, 4)
    images[0, 0] = 2.0  # logits 2 and 0
    loss = cam.classification_loss(net, (images, torch.tensor([[1.0, 1.0]])))["loss"].item()
    assert loss == pytest.approx((np.log(1 + np.exp(-2)) + np.log(2)) / 2, abs=1e-6)


@pytest.mark.parametrize("name", ["resnet_small", "resnet50", EFFICIENTNET])
@pytest.mark.parametrize("frozen_stages", [0, 3])
def test_frozen_stages_receive_no_gradient_and_are_in_no_group(name, frozen_stages):
    net = cam.ClassActivationNet(build_backbone(name), 3, frozen_stages=frozen_stages).train()
    cam.classification_loss(net, (torch.randn(2, 3, 32, 32), torch.eye(3)[:2]))["loss"].backward()
    frozen = {id(parameter) for module in net.backbone.shallow_modules(frozen_stages) for parameter in module.parameters()}
    grouped = {id(parameter) for group in net.parameter_groups(0.1, 1.0, 1e-4) for parameter in group["params"]}
    assert bool(frozen) == (frozen_stages > 0)
    for name, parameter in net.named_parameters():
        assert (id(parameter) in frozen) == (parameter.grad is None) == (id(parameter) not in grouped), name
    if frozen_stages and hasattr(net.backbone, "layer3"):
        still = {name.split(".")[1] for name, parameter in net.named_parameters() if parameter.grad is None}
        assert still == {"conv1", "bn1", "layer1", "layer2"}  # IRN, section 3.2


def test_frozen_batch_norm_keeps_its_statistics_but_learns_scale_and_shift():
    torch.manual_seed(0)
    net = cam.ClassActivationNet(build_backbone("resnet_small"), 3, frozen_batch_norm=True, frozen_stages=0).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameter_groups(0.1, 1.0, 1e-4))
    cam.classification_loss(net, (torch.randn(2, 3, 32, 32), torch.eye(3)[:2]))["loss"].backward()
    optimizer.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert {"backbone.bn1.weight", "backbone.bn1.bias", "backbone.layer4.0.bn2.weight", "classifier.weight"} <= changed


def test_live_batch_norm_when_it_is_not_frozen():
    net = build_classifier(Config(cam_frozen_batch_norm=False), 3).train()
    net(torch.randn(2, 3, 32, 32))
    assert net.backbone.bn1.num_batches_tracked == 1


def test_groups_hold_the_two_rates():
    net = cam.ClassActivationNet(build_backbone("resnet_small"), 3, frozen_stages=0)
    backbone, head = net.parameter_groups(0.1, 1.0, 1e-4)
    assert (backbone["lr"], head["lr"]) == (0.1, 1.0) and backbone["weight_decay"] == head["weight_decay"] == 1e-4
    assert head["params"] == [net.classifier.weight] and net.classifier.bias is None


# ---- merging


def test_merging_by_hand():
    """Two scales on a grid of 1 x 2; class 2 only: map + mirrored mirror map, summed over scales, divided by the maximum."""
    first, second = torch.zeros(2, 3, 1, 2), torch.zeros(2, 3, 1, 1)
    first[0, 2, 0], first[1, 2, 0] = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 2.0])  # + mirror: (1 + 2, 0 + 3)
    second[0, 2], second[1, 2] = 1.0, 0.0  # everywhere 1
    first[:, 0] = 99.0  # another class
    merged = merging.merge_views(merging.join_flips([first, second], torch.tensor([2])), (1, 2))
    assert torch.allclose(merged, torch.tensor([[[4.0, 4.0]]]) / (4 + 1e-5))
    first[1, 2, 0] = torch.tensor([0.0, 2.0])  # + mirror: (1 + 2, 0 + 0)
    merged = merging.merge_views(merging.join_flips([first, second], torch.tensor([2])), (1, 2))
    assert torch.allclose(merged, torch.tensor([[[4.0, 1.0]]]) / (4 + 1e-5))


def test_every_class_is_divided_by_its_own_maximum():
    maps = torch.zeros(2, 2, 1, 2)
    maps[0, 0, 0], maps[0, 1, 0] = torch.tensor([8.0, 4.0]), torch.tensor([0.1, 0.2])
    merged = merging.merge_views(merging.join_flips([maps], torch.tensor([0, 1])), (1, 2))
    assert merged.flatten().tolist() == pytest.approx([1.0, 0.5, 0.5, 1.0], abs=1e-4)


def test_a_map_without_evidence_stays_zero():
    merged = merging.merge_views(merging.join_flips([torch.zeros(2, 1, 2, 3)], torch.tensor([0])), (4, 5))
    assert merged.shape == (1, 4, 5) and not merged.any()


def test_grid_of_the_full_size_maps():
    """The official full-resolution maps are resized to the area that a grid of stride 16 covers, and cut."""
    maps = torch.rand(2, 1, 3, 2)
    merged = merging.merge_views(merging.join_flips([maps], torch.tensor([0])), (35, 20), grid_stride=16)
    full = F.interpolate(maps[:1] + maps[1:].flip(-1), size=(48, 32), mode="bilinear", align_corners=False)[0, :, :35, :20]
    assert torch.allclose(merged, full / (full.max() + 1e-5))


@given(height=st.integers(1, 20), width=st.integers(1, 20), classes=st.sets(st.integers(0, 3)), seed=st.integers(0, 99))
def test_merged_maps_lie_between_0_and_1_and_mirror_with_the_image(height, width, classes, seed):
    torch.manual_seed(seed)
    maps = [torch.rand(2, 4, side, side + 1) * 10.0 ** (seed % 30) for side in (2, 3)]
    classes = torch.tensor(sorted(classes), dtype=torch.int64)
    merged = merging.merge_views(merging.join_flips(maps, classes), (height, width))
    assert merged.shape == (len(classes), height, width) and torch.isfinite(merged).all()
    assert ((merged >= 0) & (merged <= 1)).all()
    mirrored = merging.merge_views(merging.join_flips([scale.flip(0) for scale in maps], classes), (height, width))
    assert torch.allclose(mirrored.flip(-1), merged, atol=1e-5)


# ---- whole images


def test_ten_lines_say_the_same():
    torch.manual_seed(0)
    net = cam.ClassActivationNet(build_backbone("resnet_small"), 3).eval()
    image, scales = photograph(45, 62), (1.0, 0.5, 1.5)
    ((classes, scores),) = maps_of(net, [image], [[0, 1, 1]], scales)

    total = 0
    for scale in scales:
        small = image.resize((round(62 * scale), round(45 * scale)), Image.Resampling.BICUBIC)
        x = torch.from_numpy((np.array(small) / 255 - MEAN) / STD).float().permute(2, 0, 1)[None]
        with torch.no_grad():
            W = net.classifier.weight[1:, :, 0, 0]
            M, M_mirror = (torch.einsum("kd,dhw->khw", W, net.backbone(view)[0]).clamp(min=0) for view in (x, x.flip(-1)))
        total = total + F.interpolate((M + M_mirror.flip(-1))[None], size=(12, 16), mode="bilinear", align_corners=False)[0]
    expected = total / (total.amax((1, 2), keepdim=True) + 1e-5)

    assert classes.tolist() == [1, 2] and scores.dtype == np.float32 and scores.shape == (2, 12, 16)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)


def test_the_map_lies_where_the_color_is():
    net = color_net([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    array = np.zeros((24, 40, 3), np.uint8)
    array[8:16, 4:20, 0] = array[:8, 24:36, 1] = 255
    ((classes, scores),) = maps_of(net, [Image.fromarray(array)], [[1, 1, 0]])
    assert classes.tolist() == [0, 1] and scores.shape == (2, 6, 10)
    places = [set(zip(*np.nonzero(score > 0.9), strict=True)) for score in scores]
    assert places == [
        {(row, column) for row in (2, 3) for column in range(1, 5)},
        {(row, column) for row in (0, 1) for column in range(6, 9)},
    ]


def test_images_of_a_batch_do_not_touch_each_other():
    torch.manual_seed(0)
    net = cam.ClassActivationNet(build_backbone("resnet_small"), 3).eval()
    images, labels = [photograph(30, 41, seed) for seed in range(3)], [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    together = maps_of(net, images, labels, (1.0, 0.5))
    for image, label, (classes, scores) in zip(images, labels, together, strict=True):
        ((alone_classes, alone),) = maps_of(net, [image], [label], (1.0, 0.5))
        assert classes.tolist() == alone_classes.tolist() == np.flatnonzero(label).tolist()
        np.testing.assert_allclose(scores, alone, atol=1e-5)


def test_an_image_without_a_class_has_no_map():
    ((classes, scores),) = maps_of(color_net([[1, 0, 0]]), [photograph(9, 14)], [[0]], (1.0, 2.0))
    assert classes.shape == (0,) and scores.shape == (0, 3, 4) and scores.dtype == np.float32


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5), (17, 4)])
@pytest.mark.parametrize("name", ["resnet_small", EFFICIENTNET])
def test_the_smallest_images(name, size):
    torch.manual_seed(0)
    net = cam.ClassActivationNet(build_backbone(name), 2).eval()
    ((_, scores),) = maps_of(net, [photograph(*size)], [[1, 1]], (1.0, 0.5, 1.5, 2.0))
    assert scores.shape == (2, *merging.stride4_size(size))
    assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1
    assert cam.classification_scores(net, [photograph(*size)], MEAN, STD).shape == (1, 2)


@pytest.mark.parametrize("strength", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_maps_fit_half_precision_whatever_the_evidence(tmp_path, strength):
    net = color_net([[strength, 0, 0]])
    ((classes, scores),) = maps_of(net, [photograph(21, 30)], [[1]])
    assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1
    assert scores.max() > 0.99 if strength >= 1 else scores.max() < 0.6  # maximum / (maximum + 1e-5)
    write_maps(tmp_path / "a.npz", classes, scores, (21, 30))
    stored = read_maps(tmp_path / "a.npz")[1]
    assert np.isfinite(stored).all() and stored.max() <= 1 and np.abs(stored - scores).max() <= 2**-11


def test_stride4_size():
    sizes = [(1, 1), (4, 5), (8, 9), (375, 500)]
    assert [merging.stride4_size(size) for size in sizes] == [(1, 1), (1, 2), (2, 3), (94, 125)]


def test_scores_by_hand():
    net = color_net([[1, 0, 0], [0, 1, 0]])
    image = Image.new("RGB", (8, 8), (255, 0, 128))
    normalized = transforms.normalize(image, MEAN, STD)[0, 0]
    probabilities = cam.classification_scores(net, [image, image], MEAN, STD)
    assert probabilities.dtype == np.float32 and probabilities.shape == (2, 2)
    np.testing.assert_allclose(probabilities[1], 1 / (1 + np.exp(-normalized[:2])), atol=1e-6)
