"""DRS as stages: training that resumes, maps, pseudo-labels with and without saliency, the choice of an epoch, bad input."""

import pickle
import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import saliency as command
from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.core.files import read_json, read_maps, read_mask, read_tensors, write_maps
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import score_masks
from wsss_lib.data.dataset import load_dataset
from wsss_lib.data.saliency import check_saliency, read_saliency
from wsss_lib.data.samples import MapSamples, SquareSamples
from wsss_lib.errors import DataError
from wsss_lib.methods import drs
from wsss_lib.methods.cam import build_classifier
from wsss_lib.presets import preset_config

SMALL = {
    "drs_crop": 32,
    "drs_batch_size": 4,
    "drs_epochs": 6,
    "drs_refine_epochs": 6,
    "drs_learning_rate": 1e-3,
    "drs_backbone": "vgg_small",
    "drs_backbone_weights": "none",
}


@pytest.fixture
def config(small_config) -> Config:
    return Config.from_values(small_config.model_dump() | SMALL)


@pytest.fixture
def data(miniature):
    return load_dataset(miniature, "train")


def write_saliency(data, folder, seed=0):
    """Bright where the true mask has an object, with some noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for image_id in data.ids:
        mask = data.mask(image_id)
        array = np.clip((mask > 0) * 180 + rng.integers(0, 40, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(array).save(folder / f"{image_id}.png")
    return folder


def new_net(config, data):
    torch.manual_seed(0)
    return drs.build_drs(config, data.num_classes)


def same(first, second) -> bool:
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


# ---- training


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", ["classifier", "refinement"])
def test_training_that_was_stopped_ends_in_the_same_bits(data, config, tmp_path, kind):
    """Nesterov's and Adam's state are kept too."""
    config = config.model_copy(update={"checkpoint_every": 2})
    make_maps(drs.drs_localization(new_net(config, data), config), data, config, tmp_path / "maps")

    def train(folder, choose=None):
        net = new_net(config, data)
        if kind == "classifier":
            drs.train_drs(net, data, config, folder, choose)
        else:
            drs.train_refinement(net, data, tmp_path / "maps", config, folder, choose)
        return net

    def stop(net):
        if (tmp_path / "stopped" / "state.safetensors").is_file():  # after the second epoch
            raise Stop
        return 0.0

    whole = train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "stopped", stop)
    assert (tmp_path / "stopped" / "state.safetensors").is_file()
    assert same(train(tmp_path / "stopped"), whole) and not same(new_net(config, data), whole)
    log = training.read_log(tmp_path / "whole")
    assert log == training.read_log(tmp_path / "stopped") and log[-1]["factor"] == 0.01 and np.isfinite(log[-1]["loss"])


def test_both_networks_start_from_the_same_classifier(data, config, tmp_path):
    config = config.model_copy(
        update={
            "drs_backbone": "resnet_small",
            "drs_backbone_weights": "classifier",
            "drs_delta": 0.0,
            "drs_suppressed_stages": 5,
        }
    )
    classifier = build_classifier(config, data.num_classes)
    training.save_weights(classifier, tmp_path / "classifier.safetensors")
    start = classifier.backbone.state_dict()
    first = drs.build_drs(config, data.num_classes, tmp_path / "classifier.safetensors")
    second = drs.build_refinement(config, data.num_classes, tmp_path / "classifier.safetensors")
    for net in (first, second):
        own = net.backbone.state_dict()
        assert start and all(torch.equal(value, own[key]) for key, value in start.items())
    assert sum(".controller." in name for name in first.state_dict()) == 8  # stem, four blocks, three extra convolutions
    assert set(second.backbone.state_dict()) == set(start)
    training.save_weights(first, tmp_path / "weights.safetensors")
    assert same(drs.build_drs(config, data.num_classes, weights=tmp_path / "weights.safetensors"), first)
    with pytest.raises(ValueError, match=r"weights.safetensors does not fit ScoreNet: 8 parameters are foreign"):
        fixed = config.model_copy(update={"drs_delta": 0.5})
        drs.build_drs(fixed, data.num_classes, weights=tmp_path / "weights.safetensors")


def test_frozen_stages_and_batch_norm_of_other_backbones(data, config):
    config = config.model_copy(update={"drs_backbone": "resnet_small", "drs_frozen_batch_norm": True, "drs_frozen_stages": 2})
    net = new_net(config, data).train()
    assert not any(module.training for module in net.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d))
    frozen = {name.split(".")[1] for name, part in net.named_parameters() if not part.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}


def test_samples_are_functions_of_seed_epoch_and_index(data, config, tmp_path):
    make_maps(drs.drs_localization(new_net(config, data), config), data, config, tmp_path)
    arguments = (0.5,) * 3, (0.25,) * 3
    for first, second in (
        (SquareSamples(data, 0, 36, 32, *arguments), SquareSamples(data, 0, 36, 32, *arguments)),
        (MapSamples(data, tmp_path, 0, 32, *arguments), MapSamples(data, tmp_path, 0, 32, *arguments)),
    ):
        wanted = first[2, 5]
        second[0, 1]
        assert all(torch.equal(left, right) for left, right in zip(second[2, 5], wanted, strict=True))
        assert not torch.equal(second[3, 5][0], wanted[0])
        assert wanted[0].shape == (3, 32, 32) and wanted[0].dtype == torch.float32


def test_image_and_maps_of_a_sample_are_mirrored_together(data, tmp_path):
    """Maps that copy the left half of the image's place stay on its side."""
    for image_id in data.ids:
        width, height = data.image(image_id).size
        scores = np.zeros((1, (height - 1) // 4 + 1, (width - 1) // 4 + 1), np.float32)
        scores[..., : scores.shape[2] // 2] = 1
        write_maps(tmp_path / f"{image_id}.npz", np.array([1]), scores, (height, width))
    samples, sides = MapSamples(data, tmp_path, 0, 32, (0.5,) * 3, (0.25,) * 3), set()
    for epoch in range(6):
        image, maps = samples[epoch, 0]
        assert maps.shape == (3, 32, 32) and not maps[[0, 2]].any()
        mirrored = bool(maps[1, 0, 31])
        sides.add(mirrored)
        # the square of image m_00 with the lowest class (red) lies left of the middle
        assert (image[0] - image[2]).clamp(min=0).sum(0).argmax() // 16 == int(mirrored)
    assert sides == {True, False}


# ---- maps


def test_maps_are_made_again_equal_and_only_where_missing(data, config, tmp_path):
    localize = drs.drs_localization(new_net(config, data), config)
    assert make_maps(localize, data, config, tmp_path) == 8
    first = {image_id: (tmp_path / f"{image_id}.npz").read_bytes() for image_id in data.ids}
    (tmp_path / "m_02.npz").unlink()
    assert make_maps(localize, data, config, tmp_path) == 1
    for image_id in data.ids:
        classes, scores, size = read_maps(tmp_path / f"{image_id}.npz")
        assert classes.tolist() == np.flatnonzero(data.label(image_id)).tolist() and size == data.image(image_id).size[::-1]
        assert scores.min() >= 0 and scores.max() <= 1
    np.testing.assert_array_equal(read_maps(tmp_path / "m_02.npz")[1].shape[1:], (10, 13))
    del first["m_02"]
    assert all((tmp_path / f"{image_id}.npz").read_bytes() == content for image_id, content in first.items())


def test_refined_maps_are_cut_at_one(data, config, tmp_path):
    net = drs.build_drs(config, data.num_classes, delta=1)
    torch.nn.init.constant_(net.classifier.bias, 3.0)
    make_maps(drs.drs_localization(net, config, normalized=False), data, config, tmp_path)
    assert all(read_maps(tmp_path / f"{image_id}.npz")[1].max() == 1 for image_id in data.ids)


# ---- pseudo-labels


@pytest.fixture
def maps(data, tmp_path):
    """The truth as maps: 0.9 in the object's cells, so that a pseudo-label can be foretold."""
    for image_id in data.ids:
        mask, classes = data.mask(image_id), np.flatnonzero(data.label(image_id))
        rows, columns = (mask.shape[0] - 1) // 4 + 1, (mask.shape[1] - 1) // 4 + 1
        scores = np.stack([0.9 * (mask == number + 1)[::4, ::4][:rows, :columns] for number in classes])
        write_maps(tmp_path / "maps" / f"{image_id}.npz", classes, scores, mask.shape)
    return tmp_path / "maps"


@pytest.mark.parametrize("background", ["saliency", "constant", "crf", "irn"])
def test_pseudo_labels_of_every_kind(data, config, maps, tmp_path, background):
    config = config.model_copy(update={"drs_background": background})
    folder, saliency = tmp_path / "out", write_saliency(data, tmp_path / "saliency")
    assert drs.make_pseudo_labels(data, maps, saliency, config, folder) == 8
    assert drs.make_pseudo_labels(data, maps, saliency, config, folder) == 0
    evaluation = score_masks(data, folder)
    assert evaluation.scores().miou > 0.7 and (background in ("saliency", "irn") or evaluation.unknown_share == 0)
    for image_id in data.ids:
        allowed = {0, 255, *(np.flatnonzero(data.label(image_id)) + 1)}
        assert set(np.unique(read_mask(folder / f"{image_id}.png", data.num_classes))) <= allowed


def test_constant_background_needs_no_saliency(data, config, maps, tmp_path):
    config = config.model_copy(update={"drs_background": "constant"})
    assert drs.make_pseudo_labels(data, maps, tmp_path / "none", config, tmp_path / "out") == 8
    with pytest.raises(ValueError, match="drs_background is 'saliency'"):
        drs.label_without_saliency(
            data.image("m_00"),
            np.zeros((0, 40, 56)),
            np.zeros(0, int),
            config.model_copy(update={"drs_background": "saliency"}),
        )


# ---- the choice of an epoch


def test_the_best_epoch_is_kept_also_after_a_resume(data, config, tmp_path):
    net, values, seen = new_net(config, data), iter([10.0, 30.0, 20.0, 20.0]), []

    def score(scored):
        assert scored is net and not net.training
        return next(values)

    after_step = drs.keep_best_epoch(net, score, 2, tmp_path)
    for step in (1, 2, 3, 4, 5, 6, 6):  # the last epoch comes twice, as after a resume
        torch.nn.init.constant_(net.classifier.bias, step)
        after_step(step)
        seen.append(net.training)
    assert read_json(tmp_path / "epochs.json") == {"1": 10.0, "2": 30.0, "3": 20.0} and seen[-1]
    assert read_tensors(tmp_path / "best.safetensors")["classifier.bias"].tolist() == [4.0] * 3


def test_the_chosen_epoch_is_what_training_ends_with(data, config, tmp_path):
    assert drs.chooser(data, tmp_path, config) is None  # the default: the last epoch, no mask is read
    saliency = write_saliency(data, tmp_path / "saliency")
    by_labels = config.model_copy(update={"drs_selection": "pixel_labels"})
    net = new_net(config, data)
    choose = drs.chooser(data, saliency, by_labels)
    assert pickle.dumps(choose), "several processes are given it"
    drs.train_drs(net, data, by_labels, tmp_path / "net", choose)
    values = read_json(tmp_path / "net" / "epochs.json")
    assert list(values) == ["1", "2", "3", "4", "5", "6"] and all(0 <= value <= 100 for value in values.values())
    best = read_tensors(tmp_path / "net" / "best.safetensors")
    assert all(torch.equal(value, best[name]) for name, value in net.state_dict().items())
    localize = drs.drs_localization(net, config)
    again = drs.pseudo_label_miou(localize, data, saliency, config)
    assert again == pytest.approx(max(values.values()), abs=0.5)


def test_pixel_labels_choose_by_the_score_of_pseudo_labels(data, config, tmp_path):
    saliency = write_saliency(data, tmp_path)

    def truth(ids, images, labels):
        maps = []
        for image_id in ids:
            mask, classes = data.mask(image_id), np.flatnonzero(data.label(image_id))
            maps.append((classes, np.stack([(mask == number + 1)[::4, ::4] for number in classes]).astype(np.float32)))
        return maps

    def nothing(ids, images, labels):
        return [(classes, np.zeros_like(scores)) for classes, scores in truth(ids, images, labels)]

    scores = [drs.pseudo_label_miou(localize, data, saliency, config) for localize in (truth, nothing)]
    assert scores[0] > 70 and scores[1] < 30
    assert drs.pseudo_label_miou(truth, data, saliency, config.model_copy(update={"drs_background": "constant"})) > 70


# ---- saliency maps


def test_all_missing_maps_are_named_before_the_run_starts(data, tmp_path):
    folder = write_saliency(data, tmp_path / "saliency")
    check_saliency(data, folder)
    for image_id in ("m_01", "m_06"):
        (folder / f"{image_id}.png").unlink()
    with pytest.raises(DataError, match=r"2 of 8 images of split 'train' have no saliency map: m_01, m_06; make them with"):
        check_saliency(data, folder)
    with pytest.raises(DataError, match="m_01.png: the saliency map is missing"):
        read_saliency(folder / "m_01.png")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: Image.new("RGB", (56, 40)).save(path), "has mode RGB, not 8-bit gray"),
        (lambda path: Image.new("P", (56, 40)).save(path), "has mode P, not 8-bit gray"),
        (lambda path: Image.new("I;16", (56, 40)).save(path), "has mode I;16, not 8-bit gray"),
        (lambda path: Image.new("L", (40, 56)).save(path), "is 40x56 pixels but its image is 56x40"),
        (lambda path: path.write_bytes(b"no picture"), "cannot be read"),
    ],
)
def test_a_map_that_does_not_fit_is_named(data, tmp_path, damage, message):
    folder = write_saliency(data, tmp_path / "saliency")
    damage(folder / "m_04.png")
    with pytest.raises(DataError, match=f"1 of 8 saliency maps cannot be used: m_04.png {re.escape(message)}"):
        check_saliency(data, folder)
    with pytest.raises(DataError, match=rf"m_04.png: the saliency map {re.escape(message)}"):
        read_saliency(folder / "m_04.png", (56, 40))


def test_a_map_that_was_cut_off_is_named(data, tmp_path):
    folder = write_saliency(data, tmp_path / "saliency")
    path = folder / "m_04.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="m_04.png: the saliency map cannot be read"):
        read_saliency(path, (56, 40))


def test_maps_from_any_function(data, tmp_path):
    def network(batch):
        assert batch.shape == (1, 3, 24, 24) and batch.dtype == np.float32
        return batch[:, :1] * 20 - 10  # logits: salient where red is above one half

    made = command.make_saliency(data, network, tmp_path, 24, (0, 0, 0), (1, 1, 1), logits=True)
    assert made == 8 and command.make_saliency(data, network, tmp_path, 24, (0, 0, 0), (1, 1, 1), logits=True) == 0
    check_saliency(data, tmp_path)
    red, salient = np.asarray(data.image("m_00"))[..., 0], read_saliency(tmp_path / "m_00.png") > 127
    assert np.mean((red > 127) == salient) > 0.9


@pytest.mark.parametrize(
    "network, message",
    [
        (lambda batch: batch, r"m_00: the network's first output has the shape \(1, 3, 24, 24\)"),
        (lambda batch: batch[:, :1] * 50, "m_00: the network's answer ranges over .* instead of 0..1"),
    ],
)
def test_an_answer_that_is_no_map_is_refused(data, tmp_path, network, message):
    with pytest.raises(ValueError, match=message):
        command.make_saliency(data, network, tmp_path, 24, (0, 0, 0), (1, 1, 1))
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["check", "{root}"], "8 of 8 images of split 'train' have no saliency map"),
        (["check", "{root}", "--split", "other"], "there is no list for split 'other'"),
        (["make", "{root}", "--network", "net.pt"], "a saliency network is an .onnx file"),
        (["make", "{root}", "--network", "net.onnx"], "there is no such network"),
    ],
)
def test_command_says_what_is_wrong(voc_folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        command.main([argument.format(root=voc_folder) for argument in arguments])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_command_checks_a_whole_folder(voc_folder, capsys):
    write_saliency(load_dataset(voc_folder, "train"), voc_folder / "saliency_map")
    command.main(["check", str(voc_folder)])
    assert "a map for each of the 8 images of train" in capsys.readouterr().out


def test_without_onnxruntime_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(ImportError, match=r"needs the package onnxruntime: pip install -e '.\[saliency\]'"):
        command.onnx_network(tmp_path / "net.onnx")


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="no onnxruntime")
def test_a_file_that_is_no_network_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match="not an ONNX network with one input"):
        command.onnx_network(tmp_path / "net.onnx")


# ---- parameters


@pytest.mark.parametrize("preset", ["voc12", "voc12-small", "coco14"])
def test_presets_select_no_epoch_by_pixel_labels(preset):
    assert preset_config(preset, "drs").drs_selection == "last"


def test_sizes_are_the_published_ones():
    crop = preset_config("voc12", "drs").drs_crop
    assert round(drs.RESIZE * crop) == 384 and [round(scale * crop) for scale in drs.SCALES] == [256, 320, 384]


def test_only_what_a_network_depends_on_trains_it_again():
    config = preset_config("voc12", "drs")
    by_labels = config.model_copy(update={"drs_selection": "pixel_labels"})  # pseudo-labels choose the epoch
    for stage in (drs.NETWORK, drs.REFINED):
        assert set(stage.read_by(by_labels)) - set(stage.read_by(config)) == {*drs.MASK_READS, *drs.MAP_FORM}
    assert "drs_delta" in drs.NETWORK.read_by(config) and "drs_delta" not in drs.REFINED.read_by(config)
