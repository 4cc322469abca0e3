"""Visual words by hand: encoder, pooling, losses and what each trains, the memory bank, maps, training and resuming."""

import runpy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import made
from tests.golden_vwe import Given
from tests.test_full_size import REDUCED, check_log, tame, write_voc
from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.core.files import read_maps
from wsss_lib.core.parallel import make_maps
from wsss_lib.data.dataset import open_data
from wsss_lib.methods import vwe
from wsss_lib.methods.cam import build_classifier
from wsss_lib.nets.backbone import build_backbone
from wsss_lib.ops import merging
from wsss_lib.ops.crf import crf_from_maps
from wsss_lib.ops.metrics import confusion_matrix, scores
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config


def features_of(size=(2, 6, 5, 7), seed=0) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def small_net(variant="vwe", num_words=5, frozen_stages=0, **options) -> vwe.VisualWordNet:
    torch.manual_seed(0)
    return vwe.VisualWordNet(build_backbone("resnet_small", 8), 3, num_words, variant, frozen_stages=frozen_stages, **options)


def batch_of(images=2, side=40) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(1)), torch.eye(3)[:images]


# ---- encoder


def test_words_by_hand():
    features = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.5]]]])  # (1, 2, 1, 2): two positions, (3, 4) and (0, 0.5)
    words = vwe.encode(features, torch.tensor([[2.0, 0.0], [0.0, 0.1], [-1.0, -1.0]]))
    cosines = np.array([[0.6, 0.0], [0.8, 1.0], [-1.4 / 2**0.5, -1 / 2**0.5]])  # of the three words at the two positions
    expected = np.exp(cosines) / np.exp(cosines).sum(0)
    np.testing.assert_allclose(words.assignment[0, :, 0].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(words.histogram[0].numpy(), expected.sum(1), atol=1e-6)
    assert words.index.tolist() == [[[1, 1]]] and words.present.tolist() == [[0.0, 1.0, 0.0]]


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 7), st.sampled_from([0.1, 1.0, 20.0]), st.integers(0, 99))
def test_words_are_the_naive_distances(num_words, channels, temperature, seed):
    features, codebook = features_of((2, channels, 3, 4), seed), features_of((num_words, channels), seed + 1) - 0.5
    words = vwe.encode(features, codebook, temperature)
    x = features.permute(0, 2, 3, 1)[..., None, :].expand(2, 3, 4, num_words, channels)  # positions x words x channels
    cosine = F.cosine_similarity(x, codebook.expand_as(x), dim=-1)
    torch.testing.assert_close(words.assignment, (temperature * cosine).softmax(-1).permute(0, 3, 1, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(words.histogram.sum(1), torch.full((2,), 12.0))
    for image in range(2):  # present words are those of the index, no more and no fewer
        assert set(words.present[image].nonzero().flatten().tolist()) == set(words.index[image].flatten().tolist())


def test_lengths_of_features_and_words_do_not_matter():
    features, codebook = features_of(), features_of((4, 6), 1)
    scaled = vwe.encode(features * 7, codebook * torch.tensor([[1.0], [3.0], [0.1], [20.0]]))
    torch.testing.assert_close(scaled.assignment, vwe.encode(features, codebook).assignment)


def test_a_position_without_features_is_shared_by_all_words():
    words = vwe.encode(torch.zeros(1, 3, 2, 2), features_of((4, 3)))
    assert torch.equal(words.assignment, torch.full((1, 4, 2, 2), 0.25)) and words.index.unique().tolist() == [0]


def test_no_gradient_of_the_encoder_reaches_the_features():
    features, codebook = features_of().requires_grad_(), features_of((4, 6), 1).requires_grad_()
    words = vwe.encode(features, codebook)
    words.histogram.square().sum().backward()
    assert features.grad is None and codebook.grad.abs().sum() > 0 and not words.present.requires_grad


def test_a_high_temperature_makes_the_histogram_count():
    words = vwe.encode(features_of(), features_of((4, 6), 1) - 0.5, temperature=1e5)
    counts = torch.stack([index.flatten().bincount(minlength=4) for index in words.index])
    torch.testing.assert_close(words.histogram, counts.float(), atol=1e-3, rtol=0)


def test_features_and_words_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"features \(2, 6, 5, 7\) and codebook \(4, 5\) do not fit"):
        vwe.encode(features_of(), torch.ones(4, 5))


def test_the_encoder_builds_nothing_of_positions_times_words_times_channels():
    """What autograd keeps for the codebook's gradient stays near the sizes of features and assignment."""
    kept = []
    features, codebook = features_of((1, 64, 32, 32)), features_of((128, 64), 1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        vwe.encode(features, codebook)
    assert max(kept) <= 1024 * 128 and sum(kept) < 10 * 1024 * 128 < 1024 * 128 * 64


# ---- pooling


def test_pooling_by_hand():
    features = torch.zeros(1, 1, 4, 4)
    features[0, 0, 0, 0], features[0, 0, 3, 3] = 16.0, 8.0
    # average 1.5; maxima: whole 16; halves (16 + 0 + 0 + 8) / 4; quarters: every position a block, their average 1.5
    assert vwe.hspp(features).item() == pytest.approx((2 * 1.5 + 16 + 6 + 1.5) / 5)
    assert vwe.hspp(features, gamma=1, levels=()).item() == 1.5
    assert vwe.hspp(features, gamma=0, levels=(1,)).item() == 16


@pytest.mark.parametrize("size, blocks", [((7, 7), (7, 7)), ((11, 11), (5, 5)), ((8, 9), (4, 4)), ((4, 5), (4, 5))])
def test_odd_sizes_make_more_blocks_or_ignore_the_rest(size, blocks):
    features = torch.arange(size[0] * size[1], dtype=torch.float32).view(1, 1, *size)
    kernel = size[0] // 4, size[1] // 4
    rows, columns = (np.arange(1, count + 1) * step - 1 for count, step in zip(blocks, kernel, strict=True))
    corners = features[0, 0][rows][:, columns]  # the maximum of a block is its last position
    assert vwe.hspp(features, gamma=0, levels=(4,)).item() == pytest.approx(corners.mean().item())


@given(st.integers(4, 40), st.integers(4, 40), st.floats(0, 5))
def test_pooling_lies_between_average_and_maximum(height, width, gamma):
    features = features_of((1, 2, height, width))
    pooled = vwe.hspp(features, gamma)
    assert pooled.shape == (1, 2, 1, 1) and (pooled <= features.amax((2, 3), keepdim=True) + 1e-6).all()
    if height % 4 == width % 4 == 0:  # otherwise the ignored rest may hold what is above the average
        assert (pooled >= features.mean((2, 3), keepdim=True) - 1e-6).all()


def test_a_map_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="a map of 3x9 positions has no grid of 4x4 blocks; take a larger cam_crop"):
        vwe.hspp(torch.zeros(1, 1, 3, 9))


# ---- losses

PARTS = {
    "vwe": {
        "class": {"backbone", "classifier"},
        "histogram": {"histogram_head", "codebook"},
        "word": {"backbone", "word_head"},
    },
    "vwl_l": {
        "class": {"backbone", "classifier"},
        "histogram": {"histogram_head", "codebook"},
        "word": {"backbone", "word_head"},
        "decorrelation": {"codebook"},
    },
    "vwl_m": {"class": {"backbone", "classifier"}, "word": {"backbone", "word_head"}},
}


@pytest.mark.parametrize("variant", PARTS)
def test_what_each_loss_trains(variant):
    net = small_net(variant)
    images, labels = batch_of()
    terms, _ = vwe.loss_terms(net, net.backbone(images), labels)
    trained = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, list(net.parameters()), allow_unused=True, retain_graph=True)
        trained[name] = {
            parameter.split(".")[0]
            for (parameter, _), gradient in zip(net.named_parameters(), gradients, strict=True)
            if gradient is not None and gradient.any()
        }
    assert trained == PARTS[variant]


@pytest.mark.parametrize("variant", PARTS)
def test_the_loss_is_the_sum_of_its_terms(variant):
    net = small_net(variant).eval()
    result = vwe.losses(net, batch_of())
    assert result["loss"].item() == pytest.approx(sum(result[name].item() for name in PARTS[variant]), rel=1e-6)
    assert 1 <= result["words_per_image"] <= result["words_in_batch"] <= 5


def test_losses_by_hand():
    """One position, two classes, two words; the image holds class 0 and word 1."""
    net = vwe.VisualWordNet(Given(2), 2, 2)
    identity = torch.eye(2)[:, :, None, None]
    for head in (net.classifier, net.histogram_head, net.word_head):
        head.weight.data = identity.clone()
    net.codebook.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    net.levels = (1,)
    terms, out = vwe.loss_terms(net, torch.tensor([[[[0.0]], [[2.0]]]]), torch.tensor([[1.0, 0.0]]))

    def soft_margin(logits, targets):
        return np.mean([np.log(1 + np.exp(-z if y else z)) for z, y in zip(logits, targets, strict=True)])

    share = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    assert out.words.present.tolist() == [[0.0, 1.0]]
    assert terms["class"].item() == pytest.approx(soft_margin([0, 2], [1, 0]), abs=1e-6)
    assert terms["histogram"].item() == pytest.approx(soft_margin(share, [1, 0]), abs=1e-6)
    assert terms["word"].item() == pytest.approx(soft_margin([0, 2], [0, 1]), abs=1e-6)


def test_decorrelation_by_hand():
    apart = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    assert vwe.decorrelation(apart + 5).item() == pytest.approx(0, abs=1e-5)  # the means do not count
    equal = torch.tensor([[1.0, -1.0], [1.0, -1.0]])  # G is 2 everywhere
    assert vwe.decorrelation(equal).item() == pytest.approx((4 - 8**0.5) / 2, abs=1e-6)


def test_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, np.log(3.0)]])
    expected = (np.log(2) + 0.25 * np.log(4) + 0.75 * np.log(4 / 3)) / 2
    assert vwe.entropy(logits).item() == pytest.approx(expected, abs=1e-6)


def test_groups_hold_every_trained_parameter_once():
    for variant, count in (("vwe", 4), ("vwl_m", 3)):
        net = small_net(variant, frozen_stages=3)
        backbone, head = net.parameter_groups(0.01, 0.1, 1e-4)
        grouped = [id(parameter) for parameter in backbone["params"] + head["params"]]
        assert sorted(grouped) == sorted(id(parameter) for parameter in net.parameters() if parameter.requires_grad)
        assert (backbone["lr"], head["lr"], len(head["params"])) == (0.01, 0.1, count)


# ---- memory bank


def test_a_word_moves_towards_the_mean_of_its_features_by_hand():
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    features = torch.tensor([[[3.0, 5.0, 0.0]], [[0.0, 0.0, 7.0]]])[None]  # (1, 2, 1, 3): (3, 0), (5, 0) and (0, 7)
    moved = vwe.moving_average(codebook, features, torch.tensor([[[0, 0, 1]]]), rho=0.25)
    # 0.25 * 4 + 0.75 * 1; 0.25 * 7 + 0.75 * 1; the third word has no position
    torch.testing.assert_close(moved, torch.tensor([[1.75, 0.0], [0.0, 2.5], [1.5, 1.5]]), atol=1e-3, rtol=0)


def test_moving_average_by_hand():
    features = torch.tensor([[[[2.0, 4.0, 0.0]], [[0.0, 0.0, 6.0]]]])
    moved = vwe.moving_average(torch.ones(3, 2), features, torch.tensor([[[0, 0, 2]]]), rho=0.5)
    expected = [[0.5 * 6 / 2.0001 + 0.5, 0.5], [0.5, 0.5], [0.5, 0.5 * 6 / 1.0001 + 0.5]]
    np.testing.assert_allclose(moved.numpy(), expected, atol=1e-6)


def test_the_first_step_fills_the_bank_with_features_and_later_steps_move_it():
    net = small_net("vwl_m").train()
    before = net.codebook.clone()
    torch.manual_seed(3)
    net.fill_bank(features := features_of((2, 128, 3, 4)), torch.zeros(2, 3, 4, dtype=torch.int64))
    vectors = features.permute(0, 2, 3, 1).flatten(0, 2)
    assert all((vectors == word).all(1).any() for word in net.codebook) and not torch.equal(before, net.codebook)
    filled, index = net.codebook.clone(), net.encode(features).index
    net.fill_bank(features, index)
    assert torch.equal(net.codebook, vwe.moving_average(filled, features, index))


def test_the_bank_moves_in_training_only_and_a_learned_codebook_never():
    for variant, training_mode, moves in (("vwl_m", True, True), ("vwl_m", False, False), ("vwe", True, False)):
        net = small_net(variant).train(training_mode)
        before = net.codebook.detach().clone()
        loss = vwe.losses(net, batch_of())["loss"]
        assert torch.equal(before, net.codebook) != moves
        loss.backward()  # the bank's change must not disturb the graph


# ---- maps


def test_the_maximum_of_image_and_mirror_by_hand():
    maps = torch.zeros(2, 1, 1, 2)
    maps[0, 0, 0], maps[1, 0, 0] = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])  # mirror, turned back: (3, 2)
    merged = merging.merge_views(merging.join_flips([maps, maps], torch.tensor([0]), torch.maximum), (1, 2))
    assert merged.flatten().tolist() == pytest.approx([0.75, 1.0], abs=1e-5)


def test_maps_do_not_depend_on_batches_or_on_where_a_run_stopped(small_config, tmp_path):
    config = small_config.model_copy(update={"vwe_init": "backbone", "vwe_words": 5, "device_batch_size": 3})
    data = open_data(config, "train")
    torch.manual_seed(0)
    localize = vwe.vwe_localization(vwe.build_vwe(config, data.num_classes, ""), config)
    assert make_maps(localize, data, config, tmp_path / "a") == len(data.ids)
    (tmp_path / "b").mkdir()
    for image_id in data.ids[::2]:
        (tmp_path / "b" / f"{image_id}.npz").write_bytes((tmp_path / "a" / f"{image_id}.npz").read_bytes())
    assert make_maps(localize, data, config, tmp_path / "b") == len(data.ids) - len(data.ids[::2])
    for image_id in data.ids:
        classes, first, _ = read_maps(tmp_path / "a" / f"{image_id}.npz")
        np.testing.assert_allclose(first, read_maps(tmp_path / "b" / f"{image_id}.npz")[1], atol=1e-3)
        assert classes.tolist() == np.flatnonzero(data.label(image_id)).tolist() and 0 <= first.min() <= first.max() <= 1


def test_the_smallest_images_have_maps():
    """The maps need no pooling, so that no image is too small for its grids."""
    config = Config(vwe_init="backbone")
    localize = vwe.vwe_localization(vwe.build_vwe(config, 3, ""), config)
    ((classes, maps),) = localize(["a"], [Image.new("RGB", (9, 5))], np.uint8([[1, 0, 1]]))
    assert classes.tolist() == [0, 2] and maps.shape == (2, 2, 3) and np.isfinite(maps).all()


def test_crf_of_certain_maps_is_their_arg_max():
    image = np.full((20, 30, 3), 40, np.uint8)
    image[:, 15:] = 220
    maps = np.zeros((2, 20, 30), np.float32)
    maps[0, :, :15], maps[1, :, 15:] = 1.0, 1.0
    mask = crf_from_maps(image, maps, np.array([4, 2]))
    assert set(mask[:, :14].flatten()) == {5} and set(mask[:, 16:].flatten()) == {3}
    assert not crf_from_maps(image, np.zeros((1, 20, 30), np.float32), np.array([4])).any()


# ---- training


@pytest.mark.parametrize("variant", PARTS)
def test_a_stopped_training_ends_in_the_same_weights(small_config, tmp_path, variant):
    config = small_config.model_copy(
        update={"vwe_init": "backbone", "vwe_variant": variant, "vwe_words": 6, "vwe_epochs": 2, "checkpoint_every": 2}
    )
    data = open_data(config, "train")
    states = []
    for folder, stops in ((tmp_path / "a", False), (tmp_path / "b", True)):
        training.seed_everything(config)
        net = vwe.build_vwe(config, data.num_classes, "")
        if stops:
            with pytest.raises(KeyboardInterrupt):
                vwe.train_vwe(net, data, config, folder, stop_after(3))
            torch.manual_seed(99)
            net = vwe.build_vwe(config, data.num_classes, "")  # other weights, which the saved state replaces
        assert vwe.train_vwe(net, data, config, folder) == 16
        states.append(net.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert {"class", "word", "words_in_batch", "words_per_image"} <= training.read_log(tmp_path / "a")[-1].keys()


def stop_after(steps: int):
    """A loss that is interrupted in the step after `steps`."""
    made = []

    def loss_of(net, batch):
        if len(made) == steps:
            raise KeyboardInterrupt
        made.append(1)
        return vwe.losses(net, batch)

    return loss_of


def test_a_network_starts_at_its_backbone_at_the_classifier_or_at_its_own_weights(tmp_path):
    config = Config(vwe_words=4)
    classifier = build_classifier(config, 3)
    training.save_weights(classifier, tmp_path / "classifier.safetensors")
    net = vwe.build_vwe(config, 3, tmp_path / "classifier.safetensors")
    assert torch.equal(net.backbone.conv1.weight, classifier.backbone.conv1.weight)
    training.save_weights(net, tmp_path / "own.safetensors")
    again = vwe.build_vwe(config, 3, "", tmp_path / "own.safetensors")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match="does not fit VisualWordNet: codebook has shape"):
        vwe.build_vwe(config.model_copy(update={"vwe_words": 5}), 3, "", tmp_path / "own.safetensors")


def test_maps_may_be_those_of_an_epoch_before_the_last(small_config, tmp_path):
    """VWL-L: the fifth of six epochs, on the schedule of six."""
    config = small_config.model_copy(update={"vwe_init": "backbone", "vwe_epochs": 2, "vwe_schedule_epochs": 3})
    net = vwe.build_vwe(config, 3, "")
    assert vwe.train_vwe(net, open_data(config, "train"), config, tmp_path) == 16
    [row] = training.read_log(tmp_path)
    assert row["step"] == 4 and row["factor"] == pytest.approx(training.poly_factor(3, 6), abs=1e-6)
    with pytest.raises(ValueError, match=r"vwe_epochs \(6\) must not exceed vwe_schedule_epochs \(5\)"):
        Config(vwe_epochs=6, vwe_schedule_epochs=5)


def test_a_crop_that_is_too_small_is_refused_before_anything_is_learned(small_config, tmp_path):
    config = small_config.model_copy(update={"vwe_init": "backbone", "cam_crop": 16})
    net = vwe.build_vwe(config, 3, "")
    with pytest.raises(ValueError, match="a map of 2x2 positions has no grid of 4x4 blocks"):
        vwe.train_vwe(net, open_data(config, "train"), config, tmp_path)


def test_absent_classes_and_the_two_rules():
    """Class 2 is only predicted. It counts as 0 by the usual rule, and not at all by VWE's."""
    confusion = confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), 21)
    assert scores(confusion).miou == pytest.approx((0.5 + 1 + 0) / 3) and scores(confusion).average == "union"
    assert scores(confusion, "present").miou == pytest.approx((0.5 + 1) / 2)


def test_ablations_start_at_one_classifier_and_are_kept(small_config, tmp_path, capsys):
    script = runpy.run_path(str(PROJECT_ROOT / "benchmarks" / "vwe_ablations.py"))
    config = small_config.model_copy(update={"vwe_words": 6, "vwe_epochs": 1})
    with pytest.raises(ValueError, match="run notebook 10_cam"):
        script["run"]("average", config, 4)
    stage = made.begin(config, "classifier", ("backbone", "output_stride"), method="cam")
    training.save_weights(build_classifier(config, 3), stage.folder / "weights.safetensors")
    made.finish(stage)
    rows = {name: script["run"](name, config, 4) for name in ("average", "hspp+words, fixed random codebook")}
    assert all(row["images"] == 4 and 0 <= row["miou"] <= 100 for row in rows.values())
    assert rows["average"]["words_used"] is None and 1 <= rows["hspp+words, fixed random codebook"]["words_used"] <= 6
    line = script["describe"]("average", [rows["average"]] * 2)
    assert f"{rows['average']['miou']:.1f} ± 0.0" in line
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    assert script["run"]("average", config, 4) == rows["average"]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, {"vwe_variant": "vwl_m", "backbone": "resnet101", "vwe_frozen_stages": 1}])
def test_two_steps_at_full_size(tmp_path, values):
    """VWE as published (ResNet-50, 512-pixel crops, 256 words), and VWL-M, which trains layer1 and layer2 too."""
    write_voc(tmp_path / "VOC2012")
    config = preset_config(
        "voc12",
        "vwe",
        **REDUCED | values,
        data_root=str(tmp_path / "VOC2012"),
        runs_root=str(tmp_path / "runs"),
        vwe_epochs=2,
        limit=1,
    )
    assert (config.cam_crop, config.vwe_words, config.vwe_momentum) == (512, 256, 1e-4)
    training.seed_everything(config)
    data = open_data(config, "train")
    net = vwe.build_vwe(config, data.num_classes, "")
    tame(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert vwe.train_vwe(net, data, config, tmp_path / "network") == 2
    changed = {
        name.removeprefix("backbone.").split(".")[0]
        for name, value in net.state_dict().items()
        if not torch.equal(value, before[name])
    }
    heads = {"classifier", "word_head", "codebook", "layer3", "layer4"}
    assert changed == heads | ({"layer1", "layer2", "bank_filled"} if values else {"histogram_head"})
    check_log(tmp_path / "network")
    assert make_maps(vwe.vwe_localization(net, config), data, config, tmp_path / "maps") == 1
    classes, maps, _ = read_maps(tmp_path / "maps" / "2007_000001.npz")
    assert maps.shape == (2, 94, 125) and 0 <= maps.min() <= maps.max() <= 1
