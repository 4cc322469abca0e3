"""AMN by hand: loss, conditioning, maps and their rule by the seed; bad input; the stages on the miniature."""

import json
import runpy
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import made
from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.core.files import read_maps, read_mask, write_maps, write_mask
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import full_size_maps
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.errors import DataError
from wsss_lib.experiments import amn_ablations
from wsss_lib.methods import amn
from wsss_lib.methods.cam import build_classifier
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.ops.merging import upsample_scores
from wsss_lib.ops.seeds import irn_labels

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
GOLDEN = Path(__file__).parent / "golden"


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def small_net(num_classes: int = 3, seed: int = 0) -> amn.ActivationManipulationNet:
    """A small network whose logits are large enough to tell places apart."""
    torch.manual_seed(seed)
    net = amn.ActivationManipulationNet(build_backbone("resnet_small", 8), num_classes, (1, 2))
    for branch in net.head.aspp.children():
        torch.nn.init.normal_(branch.weight, std=0.1)
    return net.eval()


# ---- the loss


def test_target_by_hand():
    target = amn.smoothed_target(torch.tensor([[[0, 2, 255]]]), 3, 0.4)
    expected = torch.tensor([[0.6, 0.2, 0.2], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]])  # one row a pixel; unknown as background
    assert torch.allclose(target[0, :, 0].T, expected) and target.shape == (1, 3, 1, 3)


def test_loss_by_hand():
    """Two background pixels and one object pixel in two images, one unknown; two labels, e = 0.2."""
    z = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]], [[[0.0, 9.0]], [[1.0, 0.0]]]])  # (N, C, h, w) = (2, 2, 1, 2)
    losses = amn.balanced_loss(z, torch.tensor([[[0, 0]], [[1, 255]]]), 0.2)

    def one(right: float, wrong: float) -> float:
        total = np.log(np.exp(right) + np.exp(wrong))
        return -0.8 * (right - total) - 0.2 * (wrong - total)

    background, foreground = (one(0, 0) + one(2, 0)) / 2, one(1, 0)
    assert losses["background"].item() == pytest.approx(background, abs=1e-6)
    assert losses["object"].item() == pytest.approx(foreground, abs=1e-6)
    assert losses["loss"].item() == pytest.approx((background + foreground) / 2, abs=1e-6)


@given(seed=st.integers(0, 999), num_labels=st.integers(2, 6), smoothing=st.floats(0, 0.8))
def test_loss_is_a_label_smoothed_cross_entropy_and_never_below_the_entropy(seed, num_labels, smoothing):
    torch.manual_seed(seed)
    z, labels = 3 * torch.randn(2, num_labels, 3, 4), torch.randint(0, num_labels, (2, 3, 4))
    target = amn.smoothed_target(labels, num_labels, smoothing)
    ours = amn.pixel_losses(z, target)
    other_spelling = smoothing * num_labels / (num_labels - 1)  # torch spreads its share over all labels, the right one too
    expected = F.cross_entropy(z, labels, reduction="none", label_smoothing=min(other_spelling, 1.0))
    if other_spelling <= 1:
        assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.allclose(target.sum(1), torch.ones(2, 3, 4))
    entropy = -(target * target.clamp(min=1e-30).log()).sum(1)
    assert (ours >= entropy - 1e-5).all()


def test_one_object_pixel_weighs_as_much_as_all_the_background():
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[0, 3, 3] = 1
    z = torch.zeros(1, 2, 8, 8, requires_grad=True)
    amn.balanced_loss(z, labels, 0.0)["loss"].backward()
    share = z.grad.abs().sum(1)[0]
    assert share[3, 3].item() == pytest.approx((share.sum() - share[3, 3]).item(), rel=1e-5)


@pytest.mark.parametrize("value, absent", [(0, "object"), (2, "background"), (255, "object"), (255, "background")])
def test_a_batch_without_one_kind_of_pixel_gives_no_nan(value, absent):
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    losses = amn.balanced_loss(z, torch.full((2, 4, 4), value), 0.4)
    losses["loss"].backward()
    assert losses[absent].item() == 0 and all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(z.grad).all() and (value == 255) == (not z.grad.any())


def test_unknown_pixels_have_no_part_in_the_loss():
    labels = torch.tensor([[[0, 1, 255, 255]]])
    z = torch.randn(1, 2, 1, 4, requires_grad=True)
    amn.balanced_loss(z, labels)["loss"].backward()
    assert z.grad[..., :2].abs().min() > 0 and not z.grad[..., 2:].any()


# ---- the network


def test_conditioning_by_hand():
    """v = W_e y + b_e multiplies the features channel by channel, and may turn their sign."""
    head = amn.ConditionedHead(2, 2, rates=(1,)).eval()
    head.label_encoder.weight.data = torch.tensor([[1.0, 2.0], [0.0, -3.0]])
    head.label_encoder.bias.data = torch.tensor([0.5, 1.0])
    head.aspp.c0.weight.data.zero_()
    head.aspp.c0.weight.data[:, :, 1, 1] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    features = torch.tensor([10.0, 100.0]).view(1, 2, 1, 1).expand(3, 2, 1, 1)
    logits = head(features, torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))[:, :, 0, 0]
    # v: (0.5, 1), (1.5, 1), (3.5, -2)
    assert logits.tolist() == [[5.0, 100.0, 105.0], [15.0, 100.0, 115.0], [35.0, -200.0, -165.0]]


def test_the_label_changes_the_map():
    net, image = small_net(), photograph(40, 40)
    first, second = (
        amn.localization_maps(net, [image], np.uint8([label]), [None], (1.0,), MEAN, STD)[0][1]
        for label in ([1, 0, 0], [1, 0, 1])
    )
    assert first.shape == (1, 10, 10) and second.shape == (2, 10, 10)
    assert np.abs(first[0] - second[0]).max() > 0.01


def test_the_stem_is_not_trained_and_batch_normalization_keeps_its_statistics():
    torch.manual_seed(0)
    net = small_net().train()
    groups = net.parameter_groups(1e-3, 1e-2, 1e-4)
    assert [group["lr"] for group in groups] == [1e-3, 1e-2]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam(groups)
    logits = net(torch.randn(2, 3, 32, 32), torch.eye(3)[:2])
    amn.balanced_loss(logits, torch.randint(0, 4, (2, *logits.shape[2:])))["loss"].backward()
    optimizer.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    unchanged = set(before) - changed
    assert {
        "head.label_encoder.weight",
        "head.label_encoder.bias",
        "head.aspp.c0.weight",
        "backbone.layer1.0.bn1.weight",
        "backbone.layer4.0.conv2.weight",
    } <= changed
    assert unchanged == {
        name
        for name in before
        if "running" in name
        or "num_batches" in name
        or name in ("backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias")
    }


@pytest.mark.parametrize("name, num_classes", [("voc", 20), ("coco", 80)])
def test_layout_of_the_published_network(name, num_classes):
    """Every tensor of the official file has its place here, of the same shape."""
    official = json.loads((GOLDEN / f"amn_resnet50_{name}_keys.json").read_text())["keep"]
    with torch.device("meta"):
        net = amn.ActivationManipulationNet(build_backbone("resnet50"), num_classes)
    theirs = {"backbone": "resnet50", "head.label_encoder": "label_enc", "head.aspp": "classifier.1"}
    ours = {}
    for key, value in net.state_dict().items():
        part = next(part for part in theirs if key.startswith(part + "."))
        ours[theirs[part] + key.removeprefix(part)] = list(value.shape)
    assert ours == {key: list(shape) for key, shape in official.items()}
    assert num_classes != 20 or sum(parameter.numel() for parameter in net.parameters()) == 25_099_412


# ---- maps


def test_rule_by_the_seed_by_hand():
    """One scale, softmax of two classes and the background; stretched where the seed does not say background."""
    probabilities = np.array([[0.5, 0.2, 0.1, 0.1], [0.3, 0.7, 0.5, 0.4], [0.2, 0.1, 0.4, 0.5]])  # background, class 0, class 1
    logits = torch.from_numpy(np.log(probabilities)).float().view(3, 1, 4)
    seed = torch.tensor([[0, 1, 255, 0]])
    maps = amn.manipulated_maps([logits], (1, 4), torch.tensor([0]), seed)
    p = probabilities[:2]
    n = (p - p.min(1, keepdims=True)) / (np.ptp(p, axis=1, keepdims=True) + 1e-5)
    expected = np.where([True, False, False, True], p, n)
    np.testing.assert_allclose(maps[:, 0], expected, atol=1e-6)
    stretched = amn.manipulated_maps([logits], (1, 4), torch.tensor([0]), None)
    np.testing.assert_allclose(stretched[:, 0], n, atol=1e-6)


def test_the_mean_over_scales_and_mirror_is_taken_of_logits():
    pair = torch.tensor([[[[1.0, 2.0]], [[0.0, 0.0]]], [[[5.0, 3.0]], [[0.0, 2.0]]]])  # (2, C, 1, 2)
    merged = amn.merge_flipped(pair)
    assert merged.tolist() == [[[2.0, 3.5]], [[1.0, 0.0]]]
    coarse = torch.tensor([[[4.0]], [[1.0]]])
    maps = amn.manipulated_maps([merged, coarse], (1, 2), torch.tensor([0]), torch.zeros(1, 2))
    expected = torch.softmax(torch.tensor([[3.0, 3.75], [1.0, 0.5]]), 0)
    assert torch.allclose(maps[:, 0], expected, atol=1e-6)


def test_ten_lines_say_the_same():
    net, image, scales = small_net(), photograph(45, 62), (1.0, 0.5)
    seed = np.random.default_rng(0).choice([0, 1, 3, 255], (45, 62)).astype(np.uint8)
    ((classes, scores),) = amn.localization_maps(net, [image], np.uint8([[1, 0, 1]]), [seed], scales, MEAN, STD)

    z = 0
    for scale in scales:
        small = image.resize((round(62 * scale), round(45 * scale)), Image.Resampling.BICUBIC)
        x = torch.from_numpy((np.array(small) / 255 - MEAN) / STD).float().permute(2, 0, 1)[None]
        with torch.no_grad():
            f = net.backbone(torch.cat([x, x.flip(-1)]))
            v = net.head.label_encoder.weight @ torch.tensor([1.0, 0.0, 1.0]) + net.head.label_encoder.bias
            pair = net.head.aspp(f * v[:, None, None])
        mean = (pair[0] + pair[1].flip(-1)) / 2
        z = z + F.interpolate(mean[None], size=(12, 16), mode="bilinear", align_corners=False)[0] / len(scales)
    p = z.softmax(0)[[1, 3]]
    n = (p - p.amin((1, 2), keepdim=True)) / (p.amax((1, 2), keepdim=True) - p.amin((1, 2), keepdim=True) + 1e-5)
    grid = np.array(Image.fromarray(seed).resize((16, 12), Image.Resampling.NEAREST))
    expected = np.where(grid == 0, p, n)
    assert classes.tolist() == [0, 2] and scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@given(height=st.integers(1, 40), width=st.integers(1, 40), present=st.sets(st.integers(0, 2)), seed=st.integers(0, 9))
def test_maps_lie_between_0_and_1_at_stride_4(height, width, present, seed):
    torch.manual_seed(seed)
    logits = [torch.randn(4, side, side + 1) * 10.0 ** (seed % 3) for side in (2, 3)]
    classes, size = torch.tensor(sorted(present), dtype=torch.int64), ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
    grid = torch.from_numpy(
        amn.seed_on_grid(np.random.default_rng(seed).choice([0, 1, 255], (height, width)).astype(np.uint8), size).copy()
    )
    for rule in (grid, None):
        maps = amn.manipulated_maps(logits, size, classes, rule)
        assert maps.shape == (1 + len(classes), *size) and ((maps >= 0) & (maps <= 1)).all()
    everywhere = amn.manipulated_maps(logits, size, classes, torch.zeros(size))
    assert torch.equal(everywhere[:, grid == 0], amn.manipulated_maps(logits, size, classes, grid)[:, grid == 0])


def test_an_image_without_a_class_has_no_map():
    ((classes, scores),) = amn.localization_maps(
        small_net(), [photograph(20, 30)], np.zeros((1, 3), np.uint8), [np.zeros((20, 30), np.uint8)], (1.0,), MEAN, STD
    )
    assert classes.shape == (0,) and scores.shape == (0, 5, 8)


def test_images_of_a_batch_do_not_touch_each_other():
    net, labels = small_net(), np.uint8([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    images = [photograph(30, 41, number) for number in range(3)]
    seeds = [np.random.default_rng(number).choice([0, 1, 255], (30, 41)).astype(np.uint8) for number in range(3)]
    for keys in ((), ("0/a", "0/b", "0/c")):
        together = amn.localization_maps(net, images, labels, seeds, (1.0, 0.5), MEAN, STD, keys)
        for number, (classes, scores) in enumerate(together):
            ((alone_classes, alone),) = amn.localization_maps(
                net,
                images[number : number + 1],
                labels[number : number + 1],
                seeds[number : number + 1],
                (1.0, 0.5),
                MEAN,
                STD,
                keys[number : number + 1],
            )
            assert classes.tolist() == alone_classes.tolist() == np.flatnonzero(labels[number]).tolist()
            np.testing.assert_allclose(scores, alone, atol=1e-4)


def test_dropout_in_maps_depends_on_the_key_alone_and_is_off_otherwise():
    net, image, label = small_net(), photograph(30, 41), np.uint8([[1, 0, 1]])
    maps = partial(amn.localization_maps, net, [image], label, [None], (1.0,), MEAN, STD)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    (_, first), (_, again), (_, other), (_, off) = (maps(keys)[0] for keys in (("0/a",), ("0/a",), ("1/a",), ()))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - off).max() > 1e-3
    np.testing.assert_array_equal(off, maps()[0][1])
    assert torch.equal(torch.get_rng_state(), state) and not net.head.dropout.training


# ---- the stages on the miniature


@pytest.fixture
def config(small_config) -> Config:
    return small_config.model_copy(
        update={"amn_epochs": 2, "amn_init": "backbone", "amn_atrous_rates": (1, 2), "cam_scales": (1.0, 0.5)}
    )


@pytest.fixture
def data(config) -> SegmentationDataset:
    return open_data(config, "train")


@pytest.fixture
def seed_folder(config, data, tmp_path) -> Path:
    """Maps that are right with some doubt, and the refined seeds made of them."""
    for image_id in data.ids:
        mask, classes = data.mask(image_id), np.flatnonzero(data.label(image_id))
        full = np.stack([np.where(mask == number + 1, 0.9, 0.02) for number in classes])
        write_maps(tmp_path / "cam" / f"{image_id}.npz", classes, full[:, ::4, ::4], mask.shape)
    assert amn.make_refined_seeds(data, tmp_path / "cam", config, tmp_path / "seeds") == len(data)
    return tmp_path / "seeds"


def test_refined_seeds_are_irns_labels_at_amns_thresholds(config, data, seed_folder):
    assert amn.make_refined_seeds(data, seed_folder.parent / "cam", config, seed_folder) == 0
    image_id = data.ids[0]
    classes, scores, size = read_maps(seed_folder.parent / "cam" / f"{image_id}.npz")
    expected = irn_labels(np.array(data.image(image_id)), upsample_scores(scores, size), classes, 0.20, 0.06)
    np.testing.assert_array_equal(read_mask(seed_folder / f"{image_id}.png", 3), expected)
    assert len(np.unique(expected)) > 1


def test_samples_carry_the_whole_images_label(config, data, seed_folder):
    samples = amn.ConditionedSamples(8, data, seed_folder, 0, (0.5, 1.5), 33, MEAN, STD)
    image, label, image_label = samples[3, 2]
    assert image.shape == (3, 33, 33) and label.shape == (5, 5) and image_label.tolist() == data.labels[2].tolist()
    assert label.dtype == torch.int64 and image_label.dtype == torch.float32
    assert set(label.flatten().tolist()) <= {0, 255, *(np.flatnonzero(data.labels[2]) + 1)}
    again, other = samples[3, 2], samples[4, 2]
    assert torch.equal(again[0], image) and torch.equal(again[1], label) and not torch.equal(other[0], image)


def test_grid_of_the_samples_is_that_of_the_logits(config, data, seed_folder):
    for crop in (32, 33, 40):
        net = amn.build_amn(config, 3, "")
        samples = amn.ConditionedSamples(net.backbone.strides[-1], data, seed_folder, 0, (0.5, 1.5), crop, MEAN, STD)
        image, label, image_label = samples[0, 0]
        assert net(image[None], image_label[None]).shape[2:] == label.shape


def trained(config: Config, data: SegmentationDataset, seed_folder: Path, folder: Path) -> amn.ActivationManipulationNet:
    training.seed_everything(config)
    net = amn.build_amn(config, data.num_classes, "")
    assert amn.train_amn(net, data, seed_folder, config, folder) == 2 * 2 * 4  # epochs, steps, images
    return net


def test_training_resumes_to_the_same_weights_with_adam(config, data, seed_folder, tmp_path, monkeypatch):
    whole = trained(config, data, seed_folder, tmp_path / "whole")
    often = config.model_copy(update={"checkpoint_every": 1})

    class Killed(Exception):
        pass

    def killed_after_the_third(*arguments, count=[0]):  # noqa: B006
        save(*arguments)
        count[0] += 1
        if count[0] == 3:
            raise Killed

    save = training._save_state
    monkeypatch.setattr(training, "_save_state", killed_after_the_third)
    with pytest.raises(Killed):
        trained(often, data, seed_folder, tmp_path / "parts")
    monkeypatch.setattr(training, "_save_state", save)
    parts = trained(often, data, seed_folder, tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    rows = training.read_log(tmp_path / "whole")
    assert rows[-1]["step"] == 4 and rows[-1]["factor"] == 1.0 and {"loss", "background", "object"} <= set(rows[-1])


def test_maps_are_the_same_whatever_was_finished_before(config, data, seed_folder, tmp_path):
    config = config.model_copy(update={"amn_dropout_in_maps": True})
    net = amn.build_amn(config, 3, "")
    localize = amn.amn_localization(net, data, seed_folder, config)
    assert make_maps(localize, data, config, tmp_path / "a") == len(data)
    for image_id in data.ids[::2]:
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / f"{image_id}.npz").write_bytes((tmp_path / "a" / f"{image_id}.npz").read_bytes())
    small = config.model_copy(update={"device_batch_size": 1})
    localize = amn.amn_localization(net, data, seed_folder, small)
    assert make_maps(localize, data, small, tmp_path / "b") == len(data) // 2
    for image_id in data.ids:
        first, second = (read_maps(tmp_path / side / f"{image_id}.npz") for side in "ab")
        assert first[0].tolist() == second[0].tolist() == np.flatnonzero(data.label(image_id)).tolist()
        np.testing.assert_allclose(first[1], second[1], atol=1e-3)


def test_weights_of_a_classifier_or_of_its_own(config, data, tmp_path):
    classifier = build_classifier(config, 3)
    training.save_weights(classifier, tmp_path / "classifier.safetensors")
    net = amn.build_amn(config.model_copy(update={"amn_init": "classifier"}), 3, tmp_path / "classifier.safetensors")
    assert torch.equal(net.backbone.layer4[0].conv1.weight, classifier.backbone.layer4[0].conv1.weight)
    training.save_weights(net, tmp_path / "amn.safetensors")
    again = amn.build_amn(config, 3, "", tmp_path / "amn.safetensors")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match="does not fit ActivationManipulationNet"):
        amn.build_amn(config, 4, "", tmp_path / "amn.safetensors")


# ---- bad input: one sentence each


def test_missing_refined_seeds_are_named(config, data, seed_folder, tmp_path):
    (seed_folder / f"{data.ids[0]}.png").unlink()
    with pytest.raises(DataError, match=f"{data.ids[0]}.png: the refined seed is missing"):
        amn.amn_localization(amn.build_amn(config, 3, ""), data, seed_folder, config)
    with pytest.raises(DataError, match=f"{data.ids[0]}.png: the refined seed is missing, and 0 others"):
        amn.train_amn(amn.build_amn(config, 3, ""), data, seed_folder, config, tmp_path / "net")
    assert not list(tmp_path.glob("net/*"))


def test_a_seed_of_another_image_is_refused(config, data, seed_folder, tmp_path):
    write_mask(seed_folder / f"{data.ids[0]}.png", np.zeros((3, 3)))
    localize = amn.amn_localization(amn.build_amn(config, 3, ""), data, seed_folder, config)
    with pytest.raises(DataError, match="the mask is 3x3 pixels but its image is"):
        make_maps(localize, data, config, tmp_path / "maps")
    assert not (tmp_path / "maps" / f"{data.ids[0]}.npz").exists() and not list(tmp_path.rglob(".writing-*"))


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.tensor([[[0, 3]]]), "label 3"),
        (torch.tensor([[[-1, 0]]]), "label -1"),
        (torch.tensor([[[0, 1, 2]]]), r"labels \(1, 1, 3\)"),
    ],
)
def test_labels_that_do_not_fit_the_logits_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        amn.balanced_loss(torch.zeros(1, 3, 1, 2), labels)


# ---- one part changed at a time


def test_without_conditioning_the_label_has_no_part():
    net = amn_ablations.without_conditioning(small_net())
    features = torch.randn(2, 128, 4, 5)
    with torch.no_grad():
        assert torch.equal(net.head(features, torch.zeros(2, 3)), net.head(features, torch.ones(2, 3)))
        assert torch.allclose(net.head(features, torch.ones(2, 3)), net.head.aspp(features))
    assert not any(parameter.requires_grad for parameter in net.head.label_encoder.parameters())


def test_plain_loss_is_the_mean_over_known_pixels():
    z = torch.zeros(1, 2, 1, 4)
    z[0, 0] = torch.tensor([[2.0, 2.0, 2.0, 9.0]])
    labels = torch.tensor([[[0, 0, 1, 255]]])
    right, wrong = np.log(1 + np.exp(-2)), np.log(1 + np.exp(2))
    assert amn_ablations.plain_loss(z, labels, 0.0)["loss"].item() == pytest.approx((2 * right + wrong) / 3, abs=1e-6)
    assert amn_ablations.plain_loss(z, torch.full((1, 1, 4), 255), 0.4)["loss"].item() == 0


def test_image_loss_looks_at_the_mean_logit_of_each_class_only():
    z = torch.zeros(1, 3, 1, 2)
    z[0, 0], z[0, 1] = 50.0, torch.tensor([[3.0, 1.0]])  # the background's channel; mean logits 2 and 0
    loss = amn_ablations.image_loss(z, torch.tensor([[1.0, 0.0]]))["loss"].item()
    assert loss == pytest.approx((np.log(1 + np.exp(-2)) + np.log(2)) / 2, abs=1e-6)


def test_variants_of_the_maps_alone_share_a_network_and_stand_together():
    keys = [variant.training_key() for variant in amn_ablations.VARIANTS.values()]
    groups = [key for number, key in enumerate(keys) if number == 0 or key != keys[number - 1]]
    assert len(groups) == len(set(keys)) == len(keys) - 2
    for variant in amn_ablations.VARIANTS.values():
        Config.from_values(variant.settings)


def test_seeds_without_a_crf_are_maps_at_two_thresholds(config, data, seed_folder, tmp_path):
    maps_folder, folder = seed_folder.parent / "cam", tmp_path / "without_crf"
    variant = amn_ablations.VARIANTS["seeds without CRF"]
    assert amn_ablations.variant_seeds(variant, (data, data), seed_folder, maps_folder, config, folder) == folder
    for image_id in data.ids:
        classes, scores = full_size_maps(maps_folder, image_id)
        best, name = scores.max(0), classes[scores.argmax(0)] + 1
        sure, nothing = best > config.amn_foreground_threshold, best <= config.amn_background_threshold
        expected = np.where(sure, name, np.where(nothing, 0, 255))
        np.testing.assert_array_equal(read_mask(folder / f"{image_id}.png", data.num_classes), expected)
    other = amn_ablations.VARIANTS["AMN as published"]
    assert amn_ablations.variant_seeds(other, (data,), seed_folder, maps_folder, config, tmp_path / "unused") == seed_folder
    assert not (tmp_path / "unused").exists()


def test_ablations_are_stored_one_by_one(config, data, seed_folder, tmp_path, monkeypatch, capsys):
    program = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "amn_ablations.py"))
    training.save_weights(build_classifier(config, 3), tmp_path / "classifier.safetensors")
    sources = {"classifier": tmp_path / "classifier.safetensors", "maps": seed_folder.parent / "cam"}
    for name, source in sources.items():
        stage = made.begin(config, name, ("backbone", "output_stride"), method="cam")
        shutil.copytree(source, stage.folder, dirs_exist_ok=True) if source.is_dir() else shutil.copy(
            source, stage.folder / "weights.safetensors"
        )
        made.finish(stage)
    config = config.model_copy(update={"method": "amn", "amn_init": "classifier", "amn_epochs": 1, "cam_scales": (1.0,)})
    names = ["AMN as published", "dropout left on in the maps", "image-level loss, not per pixel"]
    out, rows = tmp_path / "out.json", {}
    program["run_seed"](config, names[:1], rows, out)
    first = json.loads(out.read_text())["0"]
    assert set(first) == {"CAM", names[0]} and 0 <= first[names[0]]["best"] <= first[names[0]]["upper_bound"] <= 100
    program["run_seed"](config, names, rows, out)
    both = json.loads(out.read_text())["0"]
    assert set(both) == {"CAM", *names} and both[names[0]] == first[names[0]]
    text = program["table"](rows)
    assert all(name in text for name in names) and "no label smoothing" not in text
    assert program["main"]([]) == {} and "name them" in capsys.readouterr().out


def test_maps_of_the_image_level_variant_are_made_as_cams():
    net, image = amn_ablations.without_conditioning(small_net()), photograph(33, 40)
    variant = amn_ablations.VARIANTS["image-level loss, not per pixel"]
    config = Config(cam_scales=(1.0,))
    localize = amn_ablations.variant_localization(variant, net, None, Path("nowhere"), config)
    ((classes, scores),) = localize(["a"], [image], np.uint8([[0, 1, 1]]))
    array = (np.array(image) / 255 - normalization_of("resnet_small")[0]) / normalization_of("resnet_small")[1]
    x = torch.from_numpy(array).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        pair = net(torch.cat([x, x.flip(-1)]), torch.zeros(2, 3))[:, 2:].clamp(min=0)  # channels of classes 1 and 2
    total = F.interpolate((pair[0] + pair[1].flip(-1))[None], size=(9, 10), mode="bilinear", align_corners=False)[0]
    assert classes.tolist() == [1, 2]
    np.testing.assert_allclose(scores, total / (total.amax((1, 2), keepdim=True) + 1e-5), atol=1e-5)
