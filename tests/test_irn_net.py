"""IRN's network: layers, frozen backbone, sizes at any input size, and inference with the mirror image."""

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_lib.nets.backbone import build_backbone
from wsss_lib.ops.affinity import affinity_labels, affinity_loss, edge_to_affinity
from wsss_lib.presets import preset_config
from wsss_lib.refine.irn import IRN, boundary_map


def small_net(output_stride=16, seed=0, **options):
    torch.manual_seed(seed)
    return IRN(build_backbone("resnet_small", output_stride), **options)


def image(height, width, seed=0):
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def test_parameters_of_the_published_network():
    with torch.device("meta"):
        net = IRN(build_backbone("resnet50"))
    assert sum(parameter.numel() for parameter in net.edge_parameters()) == 125_409
    assert sum(parameter.numel() for parameter in net.displacement_parameters()) == 1_269_120
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items() if not name.startswith("backbone.")}
    blocks = [f"fc_edge{i}" for i in range(1, 6)] + [f"fc_dp{i}" for i in range(1, 8)]
    expected = {f"{block}.{part}" for block in blocks for part in ("0.weight", "1.weight", "1.bias")}
    assert set(shapes) == expected | {"fc_edge6.weight", "fc_edge6.bias", "fc_dp7.3.weight", "mean_shift.running_mean"}
    assert shapes["fc_edge5.0.weight"] == (32, 2048, 1, 1) and shapes["fc_dp7.0.weight"] == (256, 448, 1, 1)
    assert shapes["fc_dp6.0.weight"] == (256, 768, 1, 1) and shapes["fc_dp7.3.weight"] == (2, 256, 1, 1)


def test_upsampling_factors_follow_the_strides():
    def factors(net):
        upsamplings = {name: module.scale_factor for name, module in net.named_modules() if hasattr(module, "scale_factor")}
        return {name.split(".")[0]: factor for name, factor in upsamplings.items()}

    assert factors(small_net(16)) == {"fc_edge3": 2, "fc_edge4": 4, "fc_edge5": 4, "fc_dp4": 2, "fc_dp5": 2, "fc_dp6": 2}
    assert factors(small_net(8)) == {"fc_edge3": 2, "fc_edge4": 2, "fc_edge5": 2, "fc_dp6": 2}


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(64, 96), (62, 85), (17, 33), (5, 5)])
def test_size_of_the_maps(output_stride, size):
    net = small_net(output_stride).eval()
    edge_logit, displacement = net(image(*size)[None].repeat(2, 1, 1, 1))
    h, w = (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1
    assert edge_logit.shape == (2, 1, h, w) and displacement.shape == (2, 2, h, w)
    edge, displacement = net.predict(image(*size))
    assert edge.shape == (h, w) and displacement.shape == (2, h, w)
    assert torch.isfinite(edge).all() and edge.amin() >= 0 and edge.amax() <= 1


def test_backbone_is_frozen_and_the_heads_learn():
    net = small_net(displacement_width=32).train()
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    edge_logit, displacement = net(torch.stack([image(40, 40), image(40, 40, 1)]))
    (edge_logit.square().mean() + displacement.square().mean()).backward()
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())
    assert not any(module.training for module in net.backbone.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in net.backbone.parameters())
    heads = net.edge_parameters() + net.displacement_parameters()
    assert len(heads) == len([p for p in net.parameters() if p.requires_grad])
    assert all(parameter.grad is not None for parameter in heads)


def test_mean_shift_acts_in_evaluation_mode_only():
    net = small_net()
    net.mean_shift.running_mean.copy_(torch.tensor([0.5, -2.0]))
    with torch.no_grad():
        raw = net.train()(image(32, 48)[None])[1]
        shifted = net.eval()(image(32, 48)[None])[1]
    assert torch.allclose(raw - shifted, torch.tensor([0.5, -2.0]).view(1, 2, 1, 1).expand_as(raw), atol=1e-5)


def test_prediction_averages_logits_of_image_and_mirror_image():
    net = small_net().eval()
    picture = image(32, 48)
    with torch.no_grad():
        (logit, mirrored_logit), displacement = net(torch.stack([picture, picture.flip(-1)]))
    edge, first_displacement = net.predict(picture)
    assert torch.allclose(edge, torch.sigmoid((logit[0] + mirrored_logit[0].flip(-1)) / 2), atol=1e-6)
    assert torch.allclose(first_displacement, displacement[0], atol=1e-6)
    assert torch.allclose(net.predict(picture.flip(-1))[0], edge.flip(-1), atol=1e-5)


@pytest.mark.parametrize("pad_to", [0, 16, 128])
def test_boundaries_need_no_displacements(monkeypatch, pad_to):
    net, picture = small_net().eval(), image(20, 70)
    expected, _ = net.predict(picture, pad_to)
    monkeypatch.setattr(net, "fc_dp1", None)  # so that the other head cannot run
    assert torch.equal(net.predict_boundaries(picture, pad_to), expected)


def test_padding_takes_part_but_no_image_is_cut():
    net = small_net().eval()
    picture = image(20, 70)
    assert not torch.allclose(net.predict(picture)[0], net.predict(picture, pad_to=128)[0], atol=1e-4)
    for pad_to in (64, 16, 0):
        assert net.predict(picture, pad_to=pad_to)[0].shape == (5, 18)
    wide = image(24, 530)
    assert net.predict(wide, pad_to=512)[0].shape == (6, 133)


@pytest.mark.parametrize("height, width", [(20, 70), (33, 47), (64, 49)])
def test_without_padding_the_network_sees_the_image_alone(height, width):
    """RIB's and AMN's programs on COCO; the zeros of a padding would enter every group normalization."""
    net = small_net().eval()
    picture = image(height, width)
    with torch.no_grad():
        logits, displacements = net(torch.stack([picture, picture.flip(-1)]))
    h, w = (height - 1) // 4 + 1, (width - 1) // 4 + 1
    edge, displacement = net.predict(picture, pad_to=0)
    expected = torch.sigmoid((logits[0, 0] + logits[1, 0].flip(-1)) / 2)
    assert expected.shape == (h, w) and torch.equal(edge, expected) and torch.equal(displacement, displacements[0])
    assert not torch.allclose(net.predict(picture, pad_to=16)[0], edge, atol=1e-4)


def test_the_walk_pads_as_the_programs_of_the_data_set_do(monkeypatch):
    """VOC's images to 512 x 512 with every method, COCO's not at all, and one's own to a multiple of 16."""
    sizes = []
    net = small_net().eval()
    edge_logit = net.edge_logit

    def watched(pair):
        sizes.append(tuple(pair.shape[-2:]))
        return edge_logit(pair)

    monkeypatch.setattr(net, "edge_logit", watched)
    photograph = Image.fromarray(np.zeros((33, 50, 3), np.uint8))
    for preset in ("voc12", "coco14", "voc12-small"):
        for method in ("cam", "rib", "amn"):
            boundary_map(net, photograph, preset_config(preset, method))
    assert sizes == [(512, 512)] * 3 + [(33, 50)] * 3 + [(48, 64)] * 3


@pytest.mark.system
def test_boundaries_appear_in_training_though_no_boundary_label_is_given():
    net = small_net(8, displacement_width=32).train()
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., 16:48, 20:44] = 1.5
    label = torch.zeros(1, 16, 16, dtype=torch.long)
    label[:, 4:12, 5:11] = 1
    optimizer = torch.optim.SGD(net.edge_parameters() + net.displacement_parameters(), lr=0.1)
    totals = []
    for _ in range(121):
        edge_logit, displacement = net(picture)
        losses = affinity_loss(edge_logit, displacement, label, radius=4, num_classes=2)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[-1] < totals[0] / 2
    pairs = affinity_labels(label, 4, num_classes=2)
    affinity = edge_to_affinity(edge_logit.detach().sigmoid()[:, 0], 4)
    assert affinity[pairs.neg].mean() < 0.25
    assert affinity[pairs.bg_pos].mean() > 0.4 and affinity[pairs.fg_pos].mean() > 0.7


def test_bad_calls_are_refused():
    net = small_net()
    with pytest.raises(ValueError, match="call eval"):
        net.train().predict(image(16, 16))
    with pytest.raises(ValueError, match="one image"):
        net.eval().predict(image(16, 16)[None])
    with pytest.raises(ValueError, match="multiple of 32"):
        small_net(displacement_width=48)
