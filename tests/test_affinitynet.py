"""AffinityNet: pair affinities of features, labels from two strengths of the CRF, training, and the walk."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.test_full_size import check_log, write_voc
from tests.test_sccam import tame
from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.core.files import read_mask, write_maps
from wsss_lib.data.dataset import open_data
from wsss_lib.errors import DataError
from wsss_lib.methods import cam
from wsss_lib.methods.cam import build_classifier
from wsss_lib.nets.backbone import build_backbone
from wsss_lib.nets.resnet38 import ResNet38
from wsss_lib.nets.vgg16_largefov import VGG16LargeFOV
from wsss_lib.ops import affinity
from wsss_lib.ops.random_walk import random_walk
from wsss_lib.presets import preset_config
from wsss_lib.refine import affinitynet, irn
from wsss_lib.refine.affinitynet import AffinityHead, AffinityNet

# ---- affinities and loss


@given(st.integers(4, 8), st.integers(6, 9), st.integers(2, 4), st.integers(0, 2**16))
def test_affinity_is_that_of_plain_loops(height, width, radius, seed):
    if width < 2 * radius - 1 or height < radius:
        return
    features = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 3, height, width)))
    result = affinity.feature_affinity(features, radius)[0]
    f = features[0]
    sources = [(y, x) for y in range(height - radius + 1) for x in range(radius - 1, width - radius + 1)]
    for row, path in zip(result, affinity.search_paths(radius), strict=True):
        dy, dx = path.destination
        expected = [math.exp(-(f[:, y, x] - f[:, y + dy, x + dx]).abs().mean()) for y, x in sources]
        assert np.allclose(row.numpy(), expected, atol=1e-12)


def test_loss_by_hand():
    value = torch.tensor([[[0.5, 0.25, 0.8]]], requires_grad=True)
    pairs = affinity.PairLabels(
        *(torch.tensor([[flags]]) for flags in ([True, False, False], [False, True, False], [False, False, True]))
    )
    losses = affinity.feature_affinity_loss(value, pairs)
    expected = -math.log(0.5), -math.log(0.25), -math.log(0.2)
    assert [term.item() for term in losses] == pytest.approx(expected, abs=1e-4)
    assert losses.total.item() == pytest.approx(expected[0] / 4 + expected[1] / 4 + expected[2] / 2, abs=1e-4)
    losses.total.backward()
    assert value.grad[0, 0, 0] < 0 < value.grad[0, 0, 2]  # equal pairs are drawn together, different ones apart


def test_a_term_without_pairs_is_nothing_and_one_without_distance_is_finite():
    none = torch.zeros(1, 1, 3, dtype=torch.bool)
    value = torch.ones(1, 1, 3, requires_grad=True)
    losses = affinity.feature_affinity_loss(value, affinity.PairLabels(none, none, ~none))
    assert losses.bg == 0 and losses.fg == 0 and losses.neg.item() == pytest.approx(-math.log(1e-5), rel=1e-2)
    losses.total.backward()
    assert torch.isfinite(value.grad).all()


# ---- labels


def test_every_case_of_a_confident_label():
    """Columns: sure object, sure background, unsure, lost to both (the background wins), outside the image."""
    low = torch.tensor([[0.1, 0.9, 0.9, 0.2, 0.0], [0.9, 0.1, 0.1, 0.8, 0.0]])[:, None]
    high = torch.tensor([[0.0, 0.9, 0.1, 0.9, 0.0], [1.0, 0.1, 0.9, 0.1, 0.0]])[:, None]
    assert affinitynet.confident_labels(low, high).tolist() == [[1, 0, 255, 0, 255]]


def test_the_background_gets_weaker_with_alpha():
    scores = np.array([[[0.0, 0.2, 1.0]], [[0.0, 0.5, 0.0]]])
    strong, weak = (affinitynet.scores_with_background(scores, alpha)[0, 0] for alpha in (4, 32))
    assert np.allclose(strong, [1, 0.5**4, 0]) and np.allclose(weak, [1, 0.5**32, 0])
    assert affinitynet.scores_with_background(np.zeros((0, 2, 3)), 4).tolist() == np.ones((1, 2, 3)).tolist()


@pytest.mark.parametrize("value", [255.0, -0.1, math.nan])
def test_maps_that_are_no_scores_are_refused(value):
    """As the maps that SC-CAM's released program saves: its heat map of 0 and 255 has overwritten them."""
    with pytest.raises(ValueError, match="scores must lie in 0..1, not in .*overwritten by a picture"):
        affinitynet.scores_with_background(np.full((1, 2, 2), value), alpha=16)


def test_crf_of_an_image_without_class():
    image = np.zeros((6, 8, 3), np.uint8)
    assert (affinitynet.crf_with_alpha(image, np.zeros((0, 6, 8)), 4) == 1).all()


def test_crop_fills_with_black_and_unknown_and_mirrors():
    image = np.full((8, 8, 3), 255, np.uint8)
    low = np.zeros((2, 8, 8), np.float32)
    low[1, :, :4], low[0, :, 4:] = 1, 1  # object on the left
    box = (0, 8, 4, 12, 0, 8, 0, 8)  # the image lies at columns 4 to 11 of a canvas of 12
    straight, label = affinitynet.crop_sample(image, low, low, box, 12, False, 4, (0.5,) * 3, (0.5,) * 3)
    assert straight[0, 0].tolist() == [-1] * 4 + [1] * 8 and (straight[:, 8:] == -1).all()
    assert label.tolist() == [[255, 1, 0], [255, 1, 0], [255, 255, 255]]
    mirrored, mirrored_label = affinitynet.crop_sample(image, low, low, box, 12, True, 4, (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(mirrored, straight.flip(-1)) and torch.equal(mirrored_label, label.flip(-1))


def test_scores_come_back(tmp_path):
    low, high = np.random.default_rng(0).random((2, 3, 5, 7), dtype=np.float32)
    affinitynet.write_scores(tmp_path / "a.npz", low, high)
    for ours, expected in zip(affinitynet.read_scores(tmp_path / "a.npz", (5, 7)), (low, high), strict=True):
        assert ours.dtype == np.float32 and np.abs(ours - expected).max() < 1e-3


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.unlink(), "are missing; run notebook 75_affinitynet from its start"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "not a file of CRF scores"),
        (lambda path: path.write_bytes(b""), "not a file of CRF scores"),
        (lambda path: affinitynet.write_scores(path, np.zeros((2, 7, 5)), np.zeros((2, 7, 5))), "to an image of 5x7"),
        (lambda path: affinitynet.write_scores(path, np.zeros((2, 5, 7)), np.zeros((3, 5, 7))), "to an image of 5x7"),
    ],
)
def test_broken_scores_give_one_sentence(tmp_path, damage, words):
    path = tmp_path / "a.npz"
    affinitynet.write_scores(path, np.zeros((2, 5, 7)), np.zeros((2, 5, 7)))
    damage(path)
    with pytest.raises(DataError) as error:
        affinitynet.read_scores(path, (5, 7))
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


# ---- the walk


@given(st.integers(1, 9), st.integers(1, 12), st.integers(2, 4), st.integers(0, 6), st.integers(0, 2**16))
def test_walk_agrees_with_the_dense_one(height, width, radius, log2_steps, seed):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(3, height, width)))
    graph = affinitynet.feature_graph(features, radius, beta=8)
    matrix = graph.matrix().to_dense()
    assert torch.equal(matrix, matrix.T) and (matrix.diagonal() == 1).all()
    start = torch.from_numpy(rng.random((2, height, width)))
    walk = random_walk(graph, start, log2_steps)
    dense = start.flatten(1) @ torch.matrix_power(matrix / matrix.sum(0), 2**log2_steps)
    assert torch.allclose(walk.flatten(1), dense, atol=1e-6)
    assert (walk <= start.amax((1, 2), keepdim=True)).all() and (walk >= start.amin((1, 2), keepdim=True)).all()


def test_ten_cells_have_no_neighbor_and_keep_their_score():
    features = torch.zeros(2, 11, 13)  # all alike: everybody else mixes
    graph = affinitynet.feature_graph(features, radius=5, beta=8)
    alone = np.flatnonzero(graph.degree().numpy() == 1)
    h, w = 11, 13
    expected = [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (h - 2, 0),
        (h - 1, 0),
        (h - 1, 1),
        (h - 2, w - 1),
        (h - 1, w - 2),
        (h - 1, w - 1),
    ]
    assert sorted(alone.tolist()) == sorted(y * w + x for y, x in expected)
    start = torch.rand(1, h, w)
    walk = random_walk(graph, start, 8)
    assert torch.allclose(walk.flatten()[alone], start.double().flatten()[alone])
    assert walk.flatten().std() < start.std()


def test_scores_are_averaged_over_cells_and_vanish_outside():
    scores = torch.zeros(1, 5, 6)
    scores[0, :4, :4] = 0.5
    pooled = affinitynet.pooled_scores(scores, alpha=2, stride=4)
    assert pooled.shape == (2, 2, 2)
    assert torch.allclose(pooled[1], torch.tensor([[0.5, 0.0], [0.0, 0.0]]))
    assert torch.allclose(pooled[0], torch.tensor([[0.25, 8 / 16], [4 / 16, 2 / 16]]))  # no background beyond the border


def test_mask_takes_the_strongest_and_names_its_class():
    walk = torch.tensor([[[0.5, 0.5]], [[0.5, 0.2]], [[0.1, 0.6]]])
    mask = affinitynet.walk_mask(walk, [3, 8], (3, 8), stride=4)
    assert mask.dtype == torch.uint8 and mask.shape == (3, 8) and mask[:, 0].tolist() == [0] * 3  # a tie: background
    assert mask[:, -1].tolist() == [9] * 3
    for classes in ([3], [3, 254], [-1, 2]):
        with pytest.raises(ValueError, match="3 maps need a background and 2 classes in 0..253"):
            affinitynet.walk_mask(walk, classes, (3, 8), stride=4)


# ---- the network


def test_head_by_hand():
    torch.manual_seed(0)
    head = AffinityHead((2, 3, 4), widths=(2, 2, 4), groups=(1, 2, 2)).eval()
    maps = [torch.randn(1, channels, 3, 3) for channels in (2, 3, 4)]

    def linear(layer, x):
        return torch.einsum("oi,nihw->nohw", layer.weight[:, :, 0, 0], x)

    reduced = [
        F.elu(norm(linear(layer, x)))
        for layer, norm, x in zip((head.f8_3, head.f8_4, head.f8_5), (head.gn8_3, head.gn8_4, head.gn8_5), maps, strict=True)
    ]
    by_hand = F.elu(linear(head.f9, torch.cat(reduced, 1)))
    assert torch.allclose(head(maps), by_hand, atol=1e-6)


@pytest.mark.parametrize(
    "backbone, stride, levels, size",
    [
        (ResNet38(width=2), 8, (2, 3, 4), (4, 5)),
        (VGG16LargeFOV(width=2), 8, (2, 3, 4), (4, 5)),
        (build_backbone("resnet_small", 8), 4, (1, 3, 4), (8, 9)),
        (build_backbone("resnet_small", 16), 8, (2, 3, 4), (4, 5)),
    ],
)
def test_levels_and_grid(backbone, stride, levels, size):
    net = AffinityNet(backbone, stride).train()
    assert net.levels == levels
    assert net(torch.randn(1, 3, 32, 35)).shape == (1, 448, *size)
    assert not any(module.training for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d))
    if isinstance(backbone, VGG16LargeFOV):
        assert backbone.fc6.dilation == backbone.fc6.padding == (4, 4)


def test_a_grid_finer_than_the_backbone_is_refused():
    with pytest.raises(ValueError, match=r"the affinity grid has stride 2, but the backbone's maps have \(4, 4, 8, 8, 8\)"):
        AffinityNet(build_backbone("resnet_small", 8), stride=2)


# ---- stages


@pytest.fixture
def small(small_config) -> Config:
    return small_config.model_copy(
        update={
            "affinitynet_crop": 48,
            "affinitynet_batch_size": 4,
            "affinitynet_epochs": 2,
            "affinitynet_init": "backbone",
            "affinitynet_radius": 3,
            "checkpoint_every": 1,
        }
    )


def maps_of_squares(data, folder) -> None:
    """Maps that are 1 on the colored squares and 0 elsewhere."""
    for image_id in data.ids:
        classes = np.flatnonzero(data.label(image_id))
        mask = data.mask(image_id)
        scores = np.stack([(mask == number + 1)[::4, ::4] for number in classes]).astype(np.float32)
        write_maps(folder / f"{image_id}.npz", classes, scores, mask.shape)


def test_stages_from_maps_to_masks(small, tmp_path):
    data = open_data(small, "train")
    maps_of_squares(data, tmp_path / "maps")
    assert affinitynet.make_affinity_scores(data, tmp_path / "maps", small, tmp_path / "scores") == 8
    assert affinitynet.make_affinity_scores(data, tmp_path / "maps", small, tmp_path / "scores") == 0
    image, label = affinitynet.AffinityScoreSamples(data, tmp_path / "scores", small)[0, 0]
    assert image.shape == (3, 48, 48) and label.shape == (12, 12) and set(label.unique().tolist()) <= {0, 1, 2, 255}
    assert {0, 1} <= set(label.unique().tolist())
    same = affinitynet.AffinityScoreSamples(data, tmp_path / "scores", small)[0, 0]
    assert torch.equal(image, same[0]) and torch.equal(label, same[1])

    weights = {}
    for run in ("once", "stopped"):
        torch.manual_seed(0)
        net = affinitynet.build_affinitynet(small, "")
        if run == "stopped":  # after the third of four steps
            stop_after(net, 3)
            with pytest.raises(KeyboardInterrupt):
                affinitynet.train_affinitynet(net, data, tmp_path / "scores", small, tmp_path / run)
            torch.manual_seed(7)
            net = affinitynet.build_affinitynet(small, "")
        assert affinitynet.train_affinitynet(net, data, tmp_path / "scores", small, tmp_path / run) == 16
        weights[run] = net.state_dict()
    assert all(torch.equal(value, weights["stopped"][name]) for name, value in weights["once"].items())
    assert set(training.read_log(tmp_path / "once")[-1]) >= {"loss", "bg", "fg", "neg"}

    assert affinitynet.make_affinitynet_masks(net, data, tmp_path / "maps", small, tmp_path / "masks") == 8
    for image_id in data.ids:
        mask = read_mask(tmp_path / "masks" / f"{image_id}.png", 3, data.image(image_id).size)
        assert set(np.unique(mask).tolist()) <= {0, *(np.flatnonzero(data.label(image_id)) + 1).tolist()}
    assert affinitynet.make_affinitynet_masks(net, data, tmp_path / "maps", small, tmp_path / "masks") == 0


def stop_after(net: torch.nn.Module, steps: int) -> None:
    """Let the forward pass after `steps` of them fail, as a user who interrupts."""
    calls = iter(range(steps))

    def hook(module, inputs):
        if next(calls, None) is None:
            raise KeyboardInterrupt

    net.register_forward_pre_hook(hook)


def test_network_starts_from_the_classifier_or_its_own_weights(small, tmp_path):
    classifier = build_classifier(small, 3)
    training.save_weights(classifier, tmp_path / "classifier.safetensors")
    config = small.model_copy(update={"affinitynet_init": "classifier"})
    net = affinitynet.build_affinitynet(config, tmp_path / "classifier.safetensors")
    assert torch.equal(net.backbone.layer4[0].conv1.weight, classifier.backbone.layer4[0].conv1.weight)
    training.save_weights(net, tmp_path / "own.safetensors")
    again = affinitynet.build_affinitynet(config, "", tmp_path / "own.safetensors")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())


def test_the_choice_of_the_refinement_changes_no_other_stage():
    for stage in (*irn.STAGES, *cam.STAGES):
        assert "refinement" not in Config().names_of(*stage.read_by(Config()))
    names = affinitynet.SCORES.reads
    assert "affinitynet_alpha_low" in names and "affinitynet_epochs" not in names and "affinity_walk_beta" not in names


# ---- the published network


@pytest.mark.slow
def test_resnet38_runs_a_step_at_full_size(tmp_path):
    """What a second step does is shown by test_sccam.py, with the same network, and by the traces."""
    root = tmp_path / "VOC2012"
    write_voc(root)
    config = preset_config(
        "voc12",
        "sccam",
        data_root=str(root),
        train_split="train",
        num_workers=0,
        device="cpu",
        backbone_weights="none",
        affinitynet_batch_size=1,
        device_batch_size=1,
        affinitynet_epochs=1,
    )
    assert (config.backbone, config.affinitynet_crop, config.affinitynet_stride) == ("resnet38", 448, 8)
    data = open_data(config, "train")
    one = replace(data, ids=data.ids[:1], labels=data.labels[:1])
    maps_of_squares(one, tmp_path / "maps")
    assert affinitynet.make_affinity_scores(one, tmp_path / "maps", config, tmp_path / "scores") == 1
    net = affinitynet.build_affinitynet(config, "")
    tame(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert affinitynet.train_affinitynet(net, one, tmp_path / "scores", config, tmp_path / "net") == 1
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert {"head.f8_3.weight", "head.f8_5.weight", "head.f9.weight", "backbone.b3.conv_branch2a.weight"} <= changed
    assert not {name for name in changed if "bn" in name or "conv1a" in name or ".b2" in name}
    check_log(tmp_path / "net", steps=1)
    assert affinitynet.make_affinitynet_masks(net, one, tmp_path / "maps", config, tmp_path / "masks") == 1
    mask = read_mask(tmp_path / "masks" / f"{one.ids[0]}.png", 20)
    assert mask.shape == (375, 500) and set(np.unique(mask).tolist()) <= {0, 12, 15}
