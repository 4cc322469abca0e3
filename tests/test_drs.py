"""DRS: the suppression module and its gradient, networks, maps, refinement and pseudo-labels, by hand and by properties."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tests.golden_drs import official_name
from wsss_lib.data import transforms
from wsss_lib.methods import drs
from wsss_lib.nets.backbone import OWN_STRIDE, build_backbone
from wsss_lib.nets.vgg import VGG

GOLDEN = Path(__file__).parent / "golden"
EFFICIENTNET = pytest.param("efficientnet_lite0", marks=pytest.mark.skipif(find_spec("timm") is None, reason="no timm"))
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def small_net(delta: float = 0.8, num_classes: int = 3, seed: int = 0, stages: int = 5) -> drs.ScoreNet:
    torch.manual_seed(seed)
    return drs.ScoreNet(VGG(4, (1, 1, 1, 1, 1)), num_classes, delta, stages).eval()


# ---- the module


def test_one_channel_by_hand():
    x = torch.tensor([[[[-2.0, 1.0], [3.0, 4.0]]]])
    assert drs.Suppression(1, 0.5)(x).flatten().tolist() == [0, 1, 2, 2]
    assert drs.Suppression(1, 0.25)(x).flatten().tolist() == [0, 1, 1, 1]
    assert drs.Suppression(1, 1)(x).flatten().tolist() == [0, 1, 3, 4]
    learnable = drs.Suppression(1, 0)
    learnable.controller.weight.data = torch.tensor([[0.5]])
    g = 1 / (1 + np.exp(-0.5 * 2))  # the mean of 0, 1, 3, 4 is 2
    assert learnable.control(x).item() == pytest.approx(g)
    assert learnable(x).flatten().tolist() == pytest.approx([0, 1, min(3, 4 * g), 4 * g])


def test_every_image_and_channel_has_its_own_bound():
    x = torch.tensor([[[[2.0, 1.0]], [[8.0, 6.0]]], [[[1.0, 4.0]], [[-1.0, -2.0]]]])
    assert drs.Suppression(2, 0.5)(x).tolist() == [[[[1, 1]], [[4, 4]]], [[[1, 2]], [[0, 0]]]]


def test_gradient_by_hand():
    """0 below zero, G in between, and at the peak delta times the sum over the clamped places; the others get nothing."""
    x = torch.tensor([[[[-1.0, 1.0, 3.0, 4.0]]]], requires_grad=True)
    drs.Suppression(1, 0.5)(x).backward(torch.tensor([[[[10.0, 20.0, 30.0, 40.0]]]]))
    assert x.grad.flatten().tolist() == [0, 20, 0, 0.5 * 70]


def plain(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    r = F.relu(x)
    return torch.minimum(r, g * r.amax((2, 3), keepdim=True))


shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


@given(shapes, st.floats(0.05, 1.0), st.booleans(), st.integers(0, 2**31))
def test_value_and_gradient_are_those_of_the_plain_formula(shape, delta, channels_last, seed):
    generator = torch.Generator().manual_seed(seed)
    x, upstream = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x[0, 0] -= 10  # a channel without a positive value
    g = torch.full(shape[:2], delta, dtype=torch.float64)[..., None, None]
    results = []
    for function in (plain, drs._Suppress.apply):
        a = x.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_()
        b = g.clone().requires_grad_()
        y = function(a, b)
        y.backward(upstream)
        results.append((y.detach(), a.grad, b.grad))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


@given(shapes, st.floats(0.05, 0.999), st.integers(0, 2**31))
def test_what_a_module_does_to_any_channel(shape, delta, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    y, r = drs.Suppression(shape[1], delta)(x), F.relu(x)
    peak = r.amax((2, 3))
    torch.testing.assert_close(y.amax((2, 3)), delta * peak)  # 0 where no value is positive
    below = r < delta * peak[..., None, None]
    assert ((0 <= y) & (y <= r)).all() and torch.equal(y[below], r[below])


@pytest.mark.parametrize("training", [True, False])
def test_delta_1_is_the_relu_and_mode_does_not_matter(training):
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(drs.Suppression(3, 1).train(training)(x), F.relu(x))
    half = drs.Suppression(3, 0.5)
    assert torch.equal(half.train(training)(x), half.eval()(x))


def test_a_learnable_module_starts_near_one_half():
    torch.manual_seed(0)
    module = drs.Suppression(64, 0)
    assert module.controller.bias is None and module.controller.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (module.control(torch.randn(4, 64, 9, 9)) - 0.5).abs().max() < 0.03


@pytest.mark.parametrize("delta", [-0.1, 1.1])
def test_delta_outside_its_range_is_refused(delta):
    with pytest.raises(ValueError, match="delta must lie between 0 .learnable. and 1"):
        drs.Suppression(2, delta)


# ---- networks


def test_vgg16_is_torchvisions_without_the_last_two_strides():
    from torchvision.models import vgg16

    with torch.device("meta"):
        ours, official = VGG(), vgg16()
    official = {key: value.shape for key, value in official.state_dict().items() if key.startswith("features.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == official
    assert [convolution.dilation[0] for convolution in ours.convolutions()] == [1] * 10 + [2] * 3
    assert (ours.channels, ours.strides) == ((64, 128, 256, 512, 512), (2, 4, 8, 8, 8))


@pytest.mark.parametrize("size, cells", [((64, 48), (8, 6)), ((40, 71), (5, 8)), ((5, 3), (1, 1)), ((1, 20), (1, 2))])
def test_sizes_of_the_stages(size, cells):
    outputs = VGG(4, (1, 1, 1, 1, 1)).stages(torch.randn(1, 3, *size))
    assert outputs[-1].shape == (1, 32, *cells) and [output.shape[1] for output in outputs] == [4, 8, 16, 32, 32]


@pytest.mark.parametrize("delta, kind, count", [(0, "learnable", 24_401_236), (0.55, "fixed", 21_804_372), (1, "refine", None)])
def test_names_shapes_and_rates_are_the_official_ones(delta, kind, count):
    with torch.device("meta"):
        net = drs.ScoreNet(VGG(), 20, delta)
    content = json.loads((GOLDEN / f"drs_vgg16_{kind}_keys.json").read_text())
    official = {row["name"]: row for row in content["keys"]}
    ours = {official_name(name): list(value.shape) for name, value in net.state_dict().items()}
    twins = {row["name"] for row in content["keys"]} - set(ours)  # every backbone convolution has a second official name
    assert ours == {name: official[name]["shape"] for name in ours} and all("_conv" in name for name in twins)
    if count:
        assert sum(value.numel() for value in net.state_dict().values()) == count
        assert sum(isinstance(module, drs.Suppression) for module in net.modules()) == 16
        rates = {id(part): group["lr"] for group in drs.parameter_groups(net, 1.0, 5e-4) for part in group["params"]}
        for name, parameter in net.named_parameters():
            factor = float(official[official_name(name)]["lr_group"].split("x")[0])
            assert rates[id(parameter)] == factor, name


def test_any_number_of_classes():
    assert small_net(num_classes=80)(torch.randn(1, 3, 32, 32)).shape == (1, 80, 4, 4)


def test_start_of_the_new_layers():
    torch.manual_seed(0)
    classifier, refinement = drs.ScoreNet(VGG(16), 5, 0.5), drs.ScoreNet(VGG(16), 5, 1, extra_std=0.01)
    for convolution in classifier.extra:
        assert convolution.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02) and not convolution.bias.any()
    assert all(part.weight.std().item() == pytest.approx(0.01, rel=0.02) for part in refinement.extra)


@pytest.mark.parametrize(
    "name, stages, modules",
    [
        ("vgg_small", 5, 8),
        ("vgg_small", 1, 2),
        ("vgg_small", 0, 0),
        ("resnet_small", 1, 1),
        ("resnet_small", 5, 5),
        ("resnet50", 2, 18),
        pytest.param("efficientnet_lite0", 1, 10, marks=EFFICIENTNET.marks),
    ],
)
def test_modules_take_the_place_of_relus_in_any_backbone(name, stages, modules):
    torch.manual_seed(0)
    backbone = build_backbone(name, OWN_STRIDE.get(name, 16)).eval()
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        before, names = backbone(images), set(backbone.state_dict())
        drs.suppress_backbone(backbone, 0.999999, stages)
        assert sum(isinstance(module, drs.Suppression) for module in backbone.modules()) == modules
        assert set(backbone.state_dict()) == names
        assert torch.allclose(backbone(images), before, rtol=1e-3, atol=1e-3)  # hardly any suppression, hardly any change


def test_suppression_reaches_the_score_maps():
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        plain_scores, suppressed = small_net(1)(images), small_net(0.5)(images)
    assert not torch.allclose(plain_scores, suppressed)


def test_every_parameter_learns_and_is_in_one_group():
    net = small_net(0).train()
    drs.classification_loss(net, (torch.randn(2, 3, 32, 32), torch.eye(3)[:2]))["loss"].backward()
    grouped = [id(part) for group in drs.parameter_groups(net, 1.0, 5e-4) for part in group["params"]]
    assert sorted(grouped) == sorted(id(part) for part in net.parameters()) and len(grouped) == len(set(grouped))
    assert all(part.grad is not None and torch.isfinite(part.grad).all() for part in net.parameters())


# ---- maps


def test_class_maps_by_hand():
    scores = torch.tensor([[[2.0, 4.0]], [[-1.0, -3.0]]])
    maps = drs.class_maps(scores, (1, 3))  # corners aligned: the middle is the mean
    assert torch.allclose(maps[0], torch.tensor([[0.5, 0.75, 1.0]]), atol=1e-5) and not maps[1].any()
    assert drs.class_maps(torch.zeros(0, 2, 2), (3, 4)).shape == (0, 3, 4)


class Brightness(nn.Module):
    """A "network" whose score map of class c is c + 1 times the image's red channel, so that maps can be foretold."""

    classifier = nn.Conv2d(1, 1, 1)

    def forward(self, images):
        return images[:, :1] * torch.tensor([1.0, -2.0, 3.0])[:, None, None]


def test_scales_are_fused_by_their_maximum_from_zero():
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, 0, 0] = 1.0
    single = [drs.fused_maps(Brightness(), image, [torch.tensor([0, 1])], [side], (4, 4), False)[0] for side in (2, 4, 8)]
    (fused,) = drs.fused_maps(Brightness(), image, [torch.tensor([0, 1])], [2, 4, 8], (4, 4), False)
    assert torch.equal(fused, torch.stack(single).amax(0))
    assert not fused[1].any()  # a negative answer counts as none
    (normalized,) = drs.fused_maps(Brightness(), 7 * image, [torch.tensor([2])], [4], (4, 4), True)
    assert normalized.max().item() == pytest.approx(1, abs=1e-5)


def maps_of(net, images, labels, normalized=True, side=32):
    return drs.localization_maps(net, images, np.uint8(labels), side, (0.8, 1.0, 1.2), MEAN, STD, normalized)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (37, 51)])
@pytest.mark.parametrize("normalized", [True, False])
def test_maps_of_photographs(size, normalized):
    net, images = small_net(), [photograph(*size, seed) for seed in range(3)]
    labels = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    together = maps_of(net, images, labels, normalized)
    for image, label, (classes, scores) in zip(images, labels, together, strict=True):
        assert classes.tolist() == np.flatnonzero(label).tolist() and scores.dtype == np.float32
        assert scores.shape == (len(classes), (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
        assert np.isfinite(scores).all() and (not scores.size or (scores.min() >= 0 and scores.max() <= 1))
        ((_, alone),) = maps_of(net, [image], [label], normalized)
        np.testing.assert_allclose(scores, alone, atol=1e-5)


def test_cells_of_a_map_lie_where_their_pixels_are():
    """A bright block of 4 x 4 pixels of a square photograph fills exactly one cell."""
    array = np.zeros((16, 16, 3), np.uint8)
    array[4:8, 8:12, 0] = 255
    ((_, scores),) = drs.localization_maps(
        Brightness(), [Image.fromarray(array)], np.uint8([[1, 0, 0]]), 16, (1.0,), (0, 0, 0), (1, 1, 1), True
    )
    assert scores[0].round(3).tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


# ---- refinement


def test_target_keeps_the_strongest_class_and_ties():
    maps = torch.tensor([[0.2, 0.5, 0.0, 0.3], [0.7, 0.5, 0.0, 0.1]])[:, None]
    expected = torch.tensor([[0.0, 0.5, 0.0, 0.3], [0.7, 0.5, 0.0, 0.0]])[:, None]
    assert torch.equal(drs.refinement_target(maps), expected)
    assert torch.equal(drs.refinement_target(maps[None])[0], expected)


@given(st.integers(0, 2**31))
def test_target_is_its_own_target(seed):
    maps = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
    target = drs.refinement_target(maps)
    assert torch.equal(drs.refinement_target(target), target)
    assert torch.equal(target.amax(1), maps.amax(1)) and ((target > 0).sum(1) == 1).all()


def test_refinement_loss_by_hand():
    target = torch.zeros(1, 2, 3, 3)
    target[0, 0] = 1
    answers = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)  # errors 0.5 and 1
    loss = drs.refinement_loss(nn.Identity(), (answers, target))["loss"]
    assert loss.item() == pytest.approx((0.25 + 1) / 2)


# ---- pseudo-labels


def test_every_rule_of_the_pseudo_label():
    classes = np.array([3, 7])  # labels 4 and 8
    columns = {  # scores of both classes, saliency: decided, mask
        "salient, one class": ((0.5, 0.1), 255, 4, 4),
        "below alpha": ((0.19, 0.1), 255, 0, 255),
        "exactly alpha": ((0.0, 0.2), 255, 8, 8),
        "saliency 50 is background": ((0.8, 0.0), 50, 0, 0),
        "saliency 51 is salient": ((0.8, 0.0), 51, 4, 4),
        "two sure classes in the salient part": ((0.95, 0.97), 255, 8, 8),
        "two sure classes outside": ((0.95, 0.97), 0, 0, 255),
        "above 1 beats the background": ((1.2, 0.0), 0, 4, 4),
        "exactly 1 does not": ((1.0, 0.0), 0, 0, 0),
        "a tie goes to the first class": ((0.6, 0.6), 255, 4, 4),
    }
    maps = np.array([scores for scores, *_ in columns.values()], np.float32).T[:, None]  # (2, 1, n)
    saliency = np.array([[saliency for _, saliency, _, _ in columns.values()]], np.uint8)
    label = drs.pseudo_label(maps, classes, saliency)
    assert dict(zip(columns, label.decided[0].tolist(), strict=True)) == {name: row[2] for name, row in columns.items()}
    assert dict(zip(columns, label.mask[0].tolist(), strict=True)) == {name: row[3] for name, row in columns.items()}
    assert label.mask.dtype == label.decided.dtype == np.uint8
    assert label.conflict.sum() == label.unexplained.sum() == 1


def test_an_image_without_a_class_is_background_and_unknown():
    saliency = np.array([[0, 200]], np.uint8)
    assert drs.pseudo_label(np.zeros((0, 1, 2), np.float32), np.zeros(0, np.int64), saliency).mask.tolist() == [[0, 255]]


@given(st.integers(0, 3), st.integers(0, 2**31))
def test_labels_are_classes_of_the_image_background_or_unknown(count, seed):
    rng = np.random.default_rng(seed)
    classes = rng.choice(20, count, replace=False)
    maps, saliency = rng.random((count, 6, 7)).astype(np.float32), rng.integers(0, 256, (6, 7)).astype(np.uint8)
    label = drs.pseudo_label(maps, classes, saliency)
    assert set(np.unique(label.decided)) <= {0, *(classes + 1)} and set(np.unique(label.mask)) <= {0, 255, *(classes + 1)}
    assert not label.decided[saliency <= 50].any()  # scores of at most 1 never win outside the salient part


def test_a_saliency_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"maps \(1, 2, 2\), classes \(1,\) and saliency \(3, 2\) do not fit"):
        drs.pseudo_label(np.zeros((1, 2, 2)), np.array([0]), np.zeros((3, 2), np.uint8))


def test_the_published_staircases():
    assert [round(drs.staircase(epoch, (5, 10)), 9) for epoch in (1, 4, 5, 9, 10, 15)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [round(drs.staircase(epoch, (10, 20)), 9) for epoch in (9, 10, 19, 20, 30)] == [1, 0.1, 0.1, 0.01, 0.01]


def test_the_jitter_stays_in_its_range_and_depends_on_the_generator():
    import random

    image = Image.new("RGB", (4, 4), (100, 100, 100))
    values = {np.asarray(transforms.color_jitter(image, random.Random(seed)))[0, 0, 0].item() for seed in range(60)}
    assert min(values) >= 69 and max(values) <= 131 and len(values) > 20  # gray: only the brightness can be seen
    again = [np.asarray(transforms.color_jitter(photograph(9, 9), random.Random(5))) for _ in range(2)]
    assert np.array_equal(*again)
