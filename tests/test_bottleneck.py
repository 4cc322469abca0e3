"""The simulation of the information bottleneck by hand: images, losses, gradient maps, HGR, raised logits, all runs."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wsss_lib.config import Config
from wsss_lib.experiments import bottleneck
from wsss_lib.experiments import digits as source


@pytest.fixture(scope="module")
def parts():
    return source.read_digits()


@pytest.fixture(scope="module")
def images(parts):
    return source.make_images(*parts[0], 40, 0.5, seed=3)


@pytest.fixture(scope="module")
def net(images):
    return bottleneck.train_network("sigmoid", images, 1, seed=0)


# ---- digits


def test_digits_of_scikit_learn(parts):
    for (digits, labels), twos, eights in zip(parts, (141, 36), (139, 35), strict=True):
        assert digits.shape == (twos + eights, 20, 20) and digits.dtype == np.float32
        assert (np.bincount(labels) == [twos, eights]).all() and labels.dtype == np.int64
        assert digits.min() == 0 and digits.max() == 1
    training, testing = ({digit.tobytes() for digit in digits} for digits, _ in parts)
    assert not training & testing
    again = source.read_digits()
    assert all(
        (mine == other).all()
        for half, other_half in zip(parts, again, strict=True)
        for mine, other in zip(half, other_half, strict=True)
    )


def write_mnist(root, images, labels):
    """Both parts in the layout and format that torchvision downloads and unpacks."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())
    return folder


def test_digits_of_mnist(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    write_mnist(tmp_path, images, np.uint8([8, 5, 2, 8]))
    for digits, labels in source.read_digits(str(tmp_path)):
        assert labels.tolist() == [1, 0, 1]
        assert digits.dtype == np.float32 and np.allclose(digits * 255, images[[0, 2, 3], 4:24, 4:24])


def sentence(error) -> str:
    message = str(error.value)
    assert "\n" not in message and message.count(". ") == 0
    return message


def test_missing_mnist_names_the_file_and_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        source.read_digits(str(tmp_path))
    message = sentence(error)
    assert str(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte") in message
    assert "bottleneck_mnist_root" in message and "leave it empty" in message
    folder = write_mnist(tmp_path, np.zeros((2, 28, 28), np.uint8), np.uint8([2, 8]))
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        source.read_digits(str(tmp_path))


@pytest.mark.parametrize(
    "images, labels, damage, words",
    [
        ((2, 28, 28), [2, 8], lambda data: data[:-5], "cannot be read as MNIST"),
        ((2, 28, 28), [2, 8], lambda data: b"", "cannot be read as MNIST"),
        ((2, 28, 28), [2, 8], lambda data: b"PK\3\4" + data, "cannot be read as MNIST"),
        ((2, 28, 20), [2, 8], bytes, "instead of equally many of 28 x 28"),
        ((3, 28, 28), [2, 8], bytes, "and 2 labels"),
        ((2, 28, 28), [2, 2], bytes, "2s and 8s among them"),
    ],
)
def test_broken_mnist_gives_one_sentence(tmp_path, images, labels, damage, words):
    file = write_mnist(tmp_path, np.zeros(images, np.uint8), np.uint8(labels)) / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(source.DataError) as error:
        source.read_digits(str(tmp_path))
    assert words in sentence(error) and str(file.parent) in str(error.value)


# ---- images


def test_shapes_by_hand():
    assert source.companion(0).astype(int).tolist() == [
        [0, 0, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 0, 0],
    ]
    assert source.companion(1).all() and source.companion(1).shape == (5, 5)


@given(count=st.integers(1, 12), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_images_have_what_was_asked_for(count, share, seed):
    digits = np.full((2, 20, 20), 0.5, np.float32)  # blocks: the worst case for a free place
    data = source.make_images(digits, np.array([0, 1]), count, share, seed)
    assert data.images.shape == (count, 1, 36, 36) and data.regions.shape == (3, count, 36, 36) and len(data) == count
    assert (data.regions.sum(0) == 1).all()  # every pixel is in one region
    digit, shape, ground = data.regions
    assert shape.any(2).any(1).sum() == round(count * share)
    for index, label in enumerate(data.labels.tolist()):
        assert digit[index].sum() == 400 and (data.images[index, 0][digit[index]] == 0.5).all()
        if shape[index].any():
            rows, columns = (torch.nonzero(shape[index].any(axis))[:, 0] for axis in (1, 0))
            found = shape[index][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert (found.numpy() == source.companion(label)).all()
        assert (data.images[index, 0][shape[index]] == 1).all() and (data.images[index, 0][ground[index]] == 0).all()
    assert torch.equal(data.digits_alone().images[:, 0], 0.5 * digit)
    assert torch.equal(data.shapes_alone().images[:, 0], shape.float())


def test_images_depend_on_the_seed_alone(parts):
    first, same, other = (source.make_images(*parts[0], 8, 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, same.images) and torch.equal(first.labels, same.labels)
    assert torch.equal(first.regions, same.regions) and not torch.equal(first.images, other.images)


@pytest.mark.parametrize("digits, count, share", [(0, 1, 0.5), (1, 0, 0.5), (1, 1, -0.1), (1, 1, 1.1), (1, 1, float("nan"))])
def test_impossible_images(digits, count, share):
    with pytest.raises(ValueError) as error:
        source.make_images(np.zeros((digits, 20, 20), np.float32), np.zeros(digits, np.int64), count, share, 0)
    assert "a fraction between 0 and 1" in sentence(error)


# ---- network and losses


@pytest.mark.parametrize("loss, num_logits", [("sigmoid", 1), ("softmax", 2)])
def test_layers(loss, num_logits):
    net = bottleneck.build_network(loss)
    images = torch.rand(2, 1, 36, 36)
    outputs = net.layers(images)
    assert [tuple(output.shape[1:]) for output in outputs] == [
        (8, 36, 36),
        (16, 18, 18),
        (16, 18, 18),
        (32, 9, 9),
        (32, 5, 5),
        (num_logits,),
    ]
    assert all((output >= 0).all() for output in outputs[:-1]) and torch.equal(net(images), outputs[-1])


def test_own_logit_by_hand():
    labels = torch.tensor([0, 1])
    assert bottleneck.own_logit(torch.tensor([[3.0], [-2.0]]), labels).tolist() == [-3.0, -2.0]
    assert bottleneck.own_logit(torch.tensor([[3.0, 5.0], [1.0, -2.0]]), labels).tolist() == [3.0, -2.0]


@pytest.mark.parametrize(
    "loss, expected",
    [
        ("sigmoid", (np.log(1 + np.exp(2)) + np.log(1 + np.exp(-1))) / 2),
        ("tanh", ((1 + np.tanh(2)) ** 2 + (1 - np.tanh(1)) ** 2) / 2),
        ("softsign", ((1 + 2 / 3) ** 2 + (1 - 1 / 2) ** 2) / 2),
        ("hinge", (3 + 0) / 2),
        ("linear", (9 + 0) / 2),
    ],
)
def test_losses_by_hand(loss, expected):
    logits, labels = torch.tensor([[2.0], [1.0]]), torch.tensor([0, 1])  # own logits -2 and 1
    assert bottleneck.LOSSES[loss](logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_softmax_is_the_sigmoid_of_the_difference():
    both, labels = torch.tensor([[1.0, 3.0], [0.5, -4.0]]), torch.tensor([0, 1])
    one = both[:, 1:] - both[:, :1]
    assert bottleneck.LOSSES["softmax"](both, labels).item() == pytest.approx(bottleneck.LOSSES["sigmoid"](one, labels).item())


@pytest.mark.parametrize("loss", bottleneck.LOSSES)
def test_what_saturates_fades_on_both_or_on_the_right_side(loss):
    far = torch.tensor([[20.0, -20.0] if loss == "softmax" else [-30.0]], requires_grad=True)  # a very sure class 0
    (push,) = torch.autograd.grad(bottleneck.LOSSES[loss](far, torch.tensor([0])), far)
    assert (push.abs().max() < 0.005) == (loss != "linear")
    far.data *= -1  # as sure, and wrong: only squared saturating outputs are flat here as well
    (push,) = torch.autograd.grad(bottleneck.LOSSES[loss](far, torch.tensor([0])), far)
    assert (push.abs().max() < 0.005) == (loss in ("tanh", "softsign"))


def test_an_unknown_loss():
    with pytest.raises(ValueError, match="'relu' is unknown; take one of: sigmoid, softmax, tanh, softsign, hinge, linear"):
        bottleneck.build_network("relu")


def test_training_is_repeatable_and_leaves_the_random_state_alone(images):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = bottleneck.train_network("tanh", images, 1, seed=1)
    assert torch.equal(torch.rand(3), expected)
    same, other, drawn = (bottleneck.train_network("tanh", images, epochs, seed) for epochs, seed in ((1, 1), (1, 2), (0, 1)))

    def weights(net):
        return torch.cat([parameter.flatten() for parameter in net.parameters()])

    assert torch.equal(weights(first), weights(same)) and not first.training
    assert not torch.equal(weights(first), weights(other)) and not torch.equal(weights(first), weights(drawn))


@pytest.mark.parametrize("loss", ["softmax", "hinge"])
def test_training_learns(parts, loss):
    data = source.make_images(*parts[0], 64, 0.0, seed=0)
    assert bottleneck.accuracy(bottleneck.train_network(loss, data, 25, seed=0), data) > 0.9


def test_accuracy_by_hand():
    class Brightness(nn.Module):
        def forward(self, images):
            return images.mean((1, 2, 3))[:, None] - 0.5

    pictures = torch.tensor([0.9, 0.1, 0.8, 0.3])[:, None, None, None].expand(4, 1, 36, 36)
    data = source.DigitImages(pictures, torch.tensor([1, 0, 0, 1]), torch.zeros(3, 4, 36, 36, dtype=torch.bool))
    assert bottleneck.accuracy(Brightness(), data) == 0.5


# ---- gradients


class TwoLayers(nn.Module):
    """T_1 = (x_0^2, 3 x_1), z = 5 x_0 - 10 x_2."""

    def layers(self, images):
        x = images[:, 0, 0]  # (N, W)
        return [torch.stack([x[:, 0] ** 2, 3 * x[:, 1]], 1), (5 * x[:, 0] - 10 * x[:, 2])[:, None]]


def test_gradient_maps_by_hand():
    images = torch.tensor([[[[1.0, 1.0, 1.0]]], [[[3.0, 7.0, 0.0]]]])  # (2, 1, 1, 3)
    maps = bottleneck.gradient_maps(TwoLayers(), images, torch.tensor([1, 0]))
    expected = [[[2 / 3, 1, 0], [1, 0.5, 0]], [[0.5, 0, 1], [0.5, 0, 1]]]  # |(2 x_0, 3, 0)| and |(5, 0, -10)|, each / max
    assert torch.allclose(maps[:, :, 0], torch.tensor(expected))
    assert not images.requires_grad


def test_maps_without_a_gradient_are_zero():
    class Flat(nn.Module):
        def layers(self, images):
            return [0 * images, torch.sqrt(images[:, 0, 0, :1] - 1)]  # no gradient; an infinite one at 1

    maps = bottleneck.gradient_maps(Flat(), torch.ones(1, 1, 2, 2), torch.tensor([1]))
    assert torch.equal(maps, torch.zeros(2, 1, 2, 2))


def test_gradient_maps_of_one_image_do_not_depend_on_the_others(net, images):
    together = bottleneck.gradient_maps(net, images.images[:3], images.labels[:3])
    alone = bottleneck.gradient_maps(net, images.images[1:2], images.labels[1:2])
    assert torch.allclose(together[:, 1:2], alone, atol=1e-4)
    assert together.shape == (6, 3, 36, 36) and together.min() >= 0 and (together.amax((2, 3)) == 1).all()


def test_hgr_by_hand():
    maps = torch.tensor([[[0.31, 0.30], [1.0, 0.0]], [[0.0, 0.9], [0.2, 0.4]], [[1.0, 1.0], [1.0, 1.0]]])  # (3, 2, 2)
    region = torch.tensor([[[1, 1], [1, 1]], [[0, 1], [1, 0]], [[0, 0], [0, 0]]]).bool()  # the third image does not have it
    assert bottleneck.high_gradient_ratio(maps, region).item() == pytest.approx((2 / 4 + 1 / 2) / 2)  # 0.30 is not above 0.3
    layers = bottleneck.high_gradient_ratio(torch.stack([maps, 0 * maps]), region, threshold=0.1)
    assert layers.tolist() == pytest.approx([(3 / 4 + 2 / 2) / 2, 0.0])


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_hgr_falls_with_the_threshold(seed, low, high):
    low, high = sorted((low, high))
    maps = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(seed))
    region = maps.roll(1) > 0.2
    ratios = [bottleneck.high_gradient_ratio(maps, region, value).item() for value in (low, high)]
    assert 1 >= ratios[0] >= ratios[1] >= 0


def test_hgr_of_nothing():
    with pytest.raises(ValueError) as error:
        bottleneck.high_gradient_ratio(torch.ones(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.bool))
    assert "no image has a pixel of this region" in sentence(error)
    with pytest.raises(ValueError, match=r"maps \(2, 3, 3\) and region \(2, 3, 4\)"):
        bottleneck.high_gradient_ratio(torch.ones(2, 3, 3), torch.ones(2, 3, 4, dtype=torch.bool))


def test_curves_are_the_ratios_of_the_maps(net, images):
    curves = bottleneck.hgr_curves(net, images, threshold=0.5)
    maps = bottleneck.gradient_maps(net, images.images, images.labels)
    assert curves.shape == (3, 6)
    assert curves[1, 4] == bottleneck.high_gradient_ratio(maps[4], images.regions[1], 0.5)


# ---- raised logits


def test_one_update_by_hand(net, images):
    """With one companion to draw from, the first step is SGD on minus the sum of both own logits."""
    image, label = images.images[0], images.labels[0]
    other = int(torch.nonzero(images.labels != label)[0])
    companion = source.DigitImages(images.images[[other]], images.labels[[other]], images.regions[:, [other]])
    before = [parameter.clone() for parameter in net.parameters()]
    maps, logits = bottleneck.raise_logit(net, image, label, companion, 0.01, steps=1)
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))  # the network is as it was

    pair, labels = torch.stack([image, images.images[other]]), torch.stack([label, images.labels[other]])
    total = bottleneck.own_logit(net(pair), labels).sum()
    updated = bottleneck.FiveConvolutions()
    updated.load_state_dict(net.state_dict())
    for parameter, gradient in zip(updated.parameters(), torch.autograd.grad(total, list(net.parameters())), strict=True):
        parameter.data += 0.01 * gradient
    for step, by_hand in enumerate((net, updated)):
        expected = bottleneck.own_logit(by_hand(image[None]), label[None])[0]
        assert logits[step].item() == pytest.approx(expected.item(), rel=1e-4)
        assert torch.allclose(maps[step], bottleneck.gradient_maps(by_hand, image[None], label[None])[-1, 0], atol=1e-3)
    assert logits[1] > logits[0]


def test_updates_that_explode_end_in_empty_maps(net, images):
    maps, logits = bottleneck.raise_logit(net, images.images[0], images.labels[0], images, 100.0)
    assert maps.shape == (11, 36, 36) and logits.shape == (11,)
    assert logits[:1].isfinite().all() and logits[-1].isnan() and not maps.isnan().any()
    assert maps[0].max() == 1 and not maps[-1].any()


def test_updates_are_repeatable(net, images):
    first, same, other = (
        bottleneck.raise_logit(net, images.images[1], images.labels[1], images, 1e-3, seed=seed)[1] for seed in (4, 4, 5)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_updates_need_another_class(net, images):
    chosen = torch.nonzero(images.labels == images.labels[0])[:, 0]
    same = source.DigitImages(images.images[chosen], images.labels[chosen], images.regions[:, chosen])
    with pytest.raises(ValueError, match="no companion: none of the"):
        bottleneck.raise_logit(net, images.images[0], images.labels[0], same, 1e-3)


# ---- all runs


def test_all_runs_are_kept_and_repeatable(tmp_path, monkeypatch):
    monkeypatch.setattr(bottleneck, "TEST_IMAGES", 10)
    monkeypatch.setattr(bottleneck, "RAISED_IMAGES", 2)
    monkeypatch.setattr(bottleneck, "RAISE_RATES", (1e-3, 10.0))
    config = Config(bottleneck_images=48, bottleneck_seeds=1, bottleneck_shape_share=0.25, seed=7, num_workers=0)
    assert bottleneck.train_all(config, tmp_path) == len(bottleneck.LOSSES) + len(bottleneck.SHAPE_SHARES)
    runs = bottleneck.read_runs(tmp_path)
    assert set(runs) == {(loss, 0.25) for loss in bottleneck.LOSSES} | {("sigmoid", share) for share in bottleneck.SHAPE_SHARES}
    (row,) = runs["sigmoid", 0.25]
    assert row["seed"] == 7 and np.shape(row["hgr"]) == (3, 6) and "raised" not in runs["hinge", 0.25][0]
    _, test = bottleneck.images_of(config, 0.25, 7)
    net = bottleneck.read_network(tmp_path, "sigmoid", 0.25, 7)
    assert torch.allclose(bottleneck.hgr_curves(net, test), torch.tensor(row["hgr"]), atol=1e-3)
    assert np.shape(row["raised"][1]["hgr"]) == (3, 11) and abs(row["raised"][1]["logit"][-1]) <= 1e9

    assert bottleneck.train_all(config, tmp_path) == 0
    file = tmp_path / f"{bottleneck.run_name('sigmoid', 0.25, 7)}.json"
    before = file.read_bytes()
    file.unlink()
    assert bottleneck.train_all(config, tmp_path) == 1 and file.read_bytes() == before


def test_test_images_are_the_same_for_every_run():
    config = Config(bottleneck_images=4)
    (train, test), (other_train, other_test) = (bottleneck.images_of(config, 0.5, seed) for seed in (0, 1))
    assert torch.equal(test.images, other_test.images) and not torch.equal(train.images, other_train.images)
    assert len(test) == bottleneck.TEST_IMAGES and test.regions[1].any(2).any(1).all()
