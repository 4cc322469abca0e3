"""RIB: pooling, loss and stops by hand; the network as it was after every image; maps that depend on the image alone."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsss_lib.config import Config
from wsss_lib.core.files import read_maps
from wsss_lib.core.parallel import make_maps
from wsss_lib.data.dataset import open_data
from wsss_lib.methods import rib
from wsss_lib.methods.cam import build_classifier, cam_localization

RAW = torch.tensor([[[[4.0, 1.0, -1.0, 2.0]], [[-1.0, -2.0, -3.0, -2.0]]]])  # two classes on a grid of 1 x 4


# ---- pooling and loss by hand


def test_pooling_keeps_what_is_not_yet_telling():
    present = torch.ones(1, 2)
    # Class 0: at a threshold of 0.4 the values 1 and -1 are kept; at 0.6 also 2. A map below zero keeps nothing.
    assert rib.pooled_logits(RAW, present, 0.4).tolist() == [[0.0, 0.0]]
    assert rib.pooled_logits(RAW, present, 0.6).tolist() == [[0.5, 0.0]]
    assert rib.pooled_logits(RAW, torch.zeros(1, 2), 0.4).tolist() == [[1.5, -2.0]]  # absent classes: plain means


def test_the_paper_divides_by_the_kept_positions():
    kept_mean = rib.pooled_logits(RAW, torch.ones(1, 2), 0.6, "paper")
    assert kept_mean[0, 0].item() == pytest.approx(2 / 3) and kept_mean[0, 1].item() == pytest.approx(-2.0)


def test_the_defect_beyond_the_twentieth_class_is_there_on_request_only():
    maps, labels = RAW[:, :1].expand(1, 30, 1, 4), torch.ones(1, 30)
    assert rib.pooled_logits(maps, labels, 0.6).unique().tolist() == [0.5]
    defect = rib.pooled_logits(maps, labels, 0.6, first_twenty_only=True)[0]
    assert defect[:20].unique().tolist() == [0.5] and defect[20:].unique().tolist() == [1.5]


def test_the_gradient_reaches_kept_positions_only():
    maps = RAW.clone().requires_grad_()
    rib.rib_loss(rib.pooled_logits(maps, torch.tensor([[1, 0]]), 0.6), torch.tensor([[1, 0]])).backward()
    assert maps.grad.tolist() == [[[[0.0, -0.25, -0.25, -0.25]], [[0.0, 0.0, 0.0, 0.0]]]]


def test_loss_pushes_present_classes_up_to_the_margin():
    logits, labels = torch.tensor([[3.0, 5.0], [-1.0, 2.0]]), torch.tensor([[1, 0], [1, 1]])
    assert rib.rib_loss(logits, labels).item() == -(3 - 1 + 2)
    assert rib.rib_loss(logits, labels, margin=2.5).item() == -(2.5 - 1 + 2)


def test_coverage_counts_positions_of_any_present_class():
    maps = torch.zeros(2, 3, 1, 4)
    maps[0, 0, 0] = torch.tensor([1.0, 0.2, 0.0, 0.0])
    maps[1, 1, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # of the mirror image: the last position
    maps[0, 2] = 1.0  # a class that is absent
    assert rib.coverage(maps, torch.tensor([0, 1]), 0.3) == 0.5


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8), st.integers(0, 7))
def test_a_disjoint_image_shares_no_class(rows, target):
    labels = np.array(rows, np.uint8)
    label = labels[target % len(labels)]
    expected = [row for row in range(len(labels)) if not (labels[row] & label).any()]
    assert rib.disjoint_pool(labels, label).tolist() == expected


# ---- one image


@pytest.fixture
def rib_config(small_config) -> Config:
    return small_config.model_copy(
        update={
            "rib_iterations": 4,
            "rib_companions": 2,
            "rib_learning_rate": 1e-3,
            "rib_head_learning_rate": 1e-2,
            "cam_scales": (1.0, 0.5),
            "rib_explode_ratio": 2.0,
        }
    )


@pytest.fixture
def classifier(rib_config):
    torch.manual_seed(0)
    return build_classifier(rib_config, 3).eval()


def maps_of(net, data, config, ids) -> dict[str, np.ndarray]:
    """Return the maps of some images, each made alone."""
    localize = rib.rib_localization(net, data, config)
    return {name: localize([name], [data.image(name)], data.label(name)[None])[0][1] for name in ids}


def steps_of(net, data, config, image_id) -> list[rib.Step]:
    """Return the steps of one image."""
    scales = rib.scales_in_order(config.cam_scales)
    views = rib.frozen_features(net, data.image(image_id), scales, (0.5,) * 3, (0.2,) * 3)
    label = data.label(image_id)
    companions = rib.Companions(net, data, config).of_image(image_id, label)
    with rib.original_weights(net):
        return list(rib.tune(net, views, [scale > 0.5 for scale in scales], torch.tensor(label).float(), companions, config))


def test_the_network_is_bit_for_bit_as_before(classifier, rib_config):
    data = open_data(rib_config, "train")
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    maps = maps_of(classifier, data, rib_config, data.ids[:2])
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())
    plain = cam_localization(classifier, rib_config)
    for name, scores in maps.items():
        unchanged = plain([name], [data.image(name)], data.label(name)[None])[0][1]
        assert scores.shape == unchanged.shape and np.abs(scores - unchanged).max() > 1e-4  # the updates did something


def test_weights_come_back_after_an_error(classifier):
    before = classifier.classifier.weight.clone()
    with pytest.raises(RuntimeError, match="in between"), rib.original_weights(classifier):
        classifier.classifier.weight.data.add_(1)
        raise RuntimeError("in between")
    assert torch.equal(classifier.classifier.weight, before)


def test_maps_depend_on_the_image_alone(classifier, rib_config):
    data = open_data(rib_config, "train")
    forwards = maps_of(classifier, data, rib_config, data.ids[:4])
    backwards = maps_of(classifier, data, rib_config, data.ids[3::-1])
    for name in data.ids[:4]:
        np.testing.assert_array_equal(forwards[name], backwards[name])
    other_seed = maps_of(classifier, data, rib_config.model_copy(update={"seed": 1}), data.ids[:1])
    assert not np.array_equal(other_seed[data.ids[0]], forwards[data.ids[0]])


def test_one_iteration_is_the_plain_map(classifier, rib_config):
    config = rib_config.model_copy(update={"rib_iterations": 1})
    data = open_data(config, "train")
    plain = cam_localization(classifier, config)
    for name, scores in maps_of(classifier, data, config, data.ids[:3]).items():
        np.testing.assert_allclose(scores, plain([name], [data.image(name)], data.label(name)[None])[0][1], atol=1e-5)


def test_the_pushed_logits_grow(classifier, rib_config):
    data = open_data(rib_config, "train")
    steps = steps_of(classifier, data, rib_config, data.ids[0])
    assert len(steps) == 4 and steps[-1].logits is None  # nothing is updated after the last map
    targets = [step.target_logit for step in steps[:-1]]
    assert targets[-1] > targets[0]  # not in every step, because the kept positions change
    for step in steps[:-1]:  # the companions share no class with the image
        assert not (step.labels[2:] * torch.tensor(data.label(data.ids[0]))).any()


def test_an_explosion_adds_the_first_scale_only(classifier, rib_config):
    data = open_data(rib_config, "train")
    steps = steps_of(classifier, data, rib_config.model_copy(update={"rib_explode_ratio": 0.0}), data.ids[0])
    assert [len(step.maps) for step in steps] == [2, 1] and steps[-1].stop
    total = rib.add_up(steps)
    torch.testing.assert_close(total[0], steps[0].maps[0] + steps[1].maps[0])
    torch.testing.assert_close(total[1], steps[0].maps[1])


def test_a_large_logit_stops_after_its_update(classifier, rib_config):
    data = open_data(rib_config, "train")
    steps = steps_of(classifier, data, rib_config.model_copy(update={"rib_stop_threshold": 0.0}), data.ids[0])
    assert len(steps) == 1 and steps[0].stop and steps[0].logits is not None


def test_the_papers_variant_adds_one_map_more(classifier, rib_config):
    data = open_data(rib_config, "train")
    assert len(steps_of(classifier, data, rib_config.model_copy(update={"rib_variant": "paper"}), data.ids[0])) == 5


# ---- what goes wrong with an image


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rib_learning_rate": 1e30, "rib_head_learning_rate": 1e30, "rib_stop_threshold": 1e30}, "not finite"),
        ({"classes everywhere": True}, "no companion"),
    ],
)
def test_an_image_that_fails_gets_its_plain_map_with_a_warning(classifier, rib_config, change, words, voc_folder):
    if change.pop("classes everywhere", False):
        table = (voc_folder / "labels.csv").read_text().splitlines()
        rows = [table[0], *(line.split(",")[0] + ",1,1,1" for line in table[1:])]
        (voc_folder / "labels.csv").write_text("\n".join(rows) + "\n")
        rib_config = rib_config.model_copy(update={"data_root": str(voc_folder)})
    config = rib_config.model_copy(update=change)
    data = open_data(config, "train")
    name = data.ids[0]
    with pytest.warns(UserWarning, match=f"{name} gets its plain CAM: .*{words}"):
        scores = maps_of(classifier, data, config, [name])[name]
    plain = cam_localization(classifier, config)([name], [data.image(name)], data.label(name)[None])[0][1]
    np.testing.assert_allclose(scores, plain, atol=1e-5)


def test_maps_whose_sum_is_too_large_are_not_kept(classifier, rib_config, monkeypatch):
    """Each step's maps are finite; mirror images and scales together are not."""
    data = open_data(rib_config, "train")
    name, make = data.ids[0], rib.tune
    plain = maps_of(classifier, data, rib_config.model_copy(update={"rib_iterations": 1}), [name])[name]
    monkeypatch.setattr(
        rib,
        "tune",
        lambda *arguments: (
            step
            if arguments[5].rib_iterations == 1
            else step._replace(maps=[torch.full_like(maps, 3e38) for maps in step.maps])
            for step in list(make(*arguments))[-1:]
        ),
    )
    with pytest.warns(UserWarning, match=f"{name} gets its plain CAM: its tuned maps are not finite"):
        scores = maps_of(classifier, data, rib_config, [name])[name]
    np.testing.assert_array_equal(scores, plain)


def test_an_image_without_a_class_has_no_map(classifier, rib_config):
    data = open_data(rib_config, "train")
    localize = rib.rib_localization(classifier, data, rib_config)
    classes, scores = localize([data.ids[0]], [data.image(data.ids[0])], np.zeros((1, 3), np.uint8))[0]
    assert classes.shape == (0,) and scores.shape == (0, 10, 14)


@pytest.mark.system
def test_a_resumed_stage_ends_in_the_same_files(classifier, rib_config, tmp_path):
    data = open_data(rib_config, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_maps(rib.rib_localization(classifier, data, rib_config), data, rib_config, tmp_path / "a") == 8
        make_maps(rib.rib_localization(classifier, data, rib_config), data, rib_config, tmp_path / "b")
        for name in data.ids[2:6]:
            (tmp_path / "b" / f"{name}.npz").unlink()
        assert make_maps(rib.rib_localization(classifier, data, rib_config), data, rib_config, tmp_path / "b") == 4
    for name in data.ids:
        files = (tmp_path / side / f"{name}.npz" for side in "ab")
        for one, other in zip(*map(read_maps, files), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_two_steps_with_the_published_network_at_full_size(rib_config):
    config = Config.from_values(
        rib_config.model_dump()
        | {
            "backbone": "resnet50",
            "output_stride": 16,
            "cam_frozen_batch_norm": True,
            "cam_frozen_stages": 3,
            "rib_iterations": 2,
            "rib_companions": 2,
            "cam_crop": 512,
            "cam_long_side_min": 320,
            "cam_long_side_max": 640,
            "cam_scales": (1.0, 0.5),
            "rib_learning_rate": 8e-6,
            "rib_head_learning_rate": 8e-5,
        }
    )
    torch.manual_seed(0)
    net = build_classifier(config, 3).eval()
    data = open_data(config, "train")
    image = data.image(data.ids[0]).resize((500, 375))
    ((classes, scores),) = rib.rib_localization(net, data, config)([data.ids[0]], [image], data.label(data.ids[0])[None])
    assert scores.shape == (len(classes), 94, 125) and np.isfinite(scores).all() and scores.max() > 0.9
