"""SC-CAM: sub-categories, the joint loss, the rounds and their maps."""

import math
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import made
from tests.test_full_size import check_log, write_voc
from wsss_lib.config import Config
from wsss_lib.core import files, training
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.stage import open_stage, run
from wsss_lib.data.dataset import load_dataset, open_data
from wsss_lib.errors import DataError
from wsss_lib.experiments import subcategories
from wsss_lib.methods import cam, sccam
from wsss_lib.methods.cam import build_classifier
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config

# ---- sub-categories


def groups_of(column: np.ndarray) -> set[frozenset[int]]:
    """Return the partition that a column of an assignment makes."""
    return {frozenset(np.flatnonzero(column == number).tolist()) for number in np.unique(column[column >= 0])}


def test_clusters_are_found_within_each_class():
    """Two classes see the same two clouds; a third has one image only; a fourth none."""
    features = np.array([[0, 0], [0.1, 0], [5, 5], [5.1, 5], [0, 0.1], [5, 5.1]], np.float32)
    labels = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]])
    assignment = sccam.cluster_images(features, labels, clusters=2)
    assert groups_of(assignment[:, 0]) == {frozenset({0, 1}), frozenset({2, 3})}
    assert groups_of(assignment[:, 1]) == {frozenset({4}), frozenset({3, 5})}
    assert assignment[:, 2].tolist() == [-1, -1, -1, -1, 0, -1] and (assignment[:, 3] == -1).all()
    assert sccam.used_subcategories(assignment).tolist() == [2, 2, 1, 0]


def test_fewer_images_than_clusters_and_equal_images():
    labels = np.ones((3, 1), int)
    apart = sccam.cluster_images(np.eye(3, dtype=np.float32), labels, clusters=10)
    assert sorted(apart[:, 0].tolist()) == [0, 1, 2]
    equal = sccam.cluster_images(np.ones((3, 4), np.float32), labels, clusters=2)
    assert sccam.used_subcategories(equal).tolist() == [1]


@given(st.integers(0, 2**16), st.integers(1, 12), st.integers(1, 5), st.integers(1, 4))
def test_an_assignment_is_a_partition_of_each_class(seed, num_images, num_classes, clusters):
    rng = np.random.default_rng(seed)
    features, labels = rng.normal(size=(num_images, 3)), rng.integers(0, 2, (num_images, num_classes))
    assignment = sccam.cluster_images(features, labels, clusters, seed)
    assert ((assignment >= 0) == (labels == 1)).all() and assignment.max(initial=0) < clusters
    np.testing.assert_array_equal(assignment, sccam.cluster_images(features, labels, clusters, seed))
    multi_hot = sccam.subcategory_labels(assignment, clusters)
    assert multi_hot.shape == (num_images, num_classes * clusters) and multi_hot.dtype == np.uint8
    np.testing.assert_array_equal(multi_hot.reshape(num_images, num_classes, clusters).sum(2), labels)
    for image, number in zip(*np.nonzero(labels), strict=True):
        assert multi_hot[image, number * clusters + assignment[image, number]] == 1
    order = sccam.class_major_order(labels)
    assert sorted(order.tolist()) == np.flatnonzero(labels.any(1)).tolist()
    first_class = labels[order].argmax(1)
    assert (np.diff(first_class) >= 0).all()


@pytest.mark.parametrize(
    "features, labels, clusters, words",
    [
        (np.zeros((2, 3)), np.zeros((3, 1)), 2, r"features \(2, 3\) and labels \(3, 1\)"),
        (np.zeros(3), np.zeros((3, 1)), 2, "must be"),
        (np.full((2, 1), np.nan), np.ones((2, 1)), 2, "not finite; the network that made them has diverged"),
        (np.zeros((2, 1)), np.ones((2, 1)), 0, "clusters must be at least 1, not 0"),
    ],
)
def test_bad_input_of_the_clustering(features, labels, clusters, words):
    with pytest.raises(ValueError, match=words):
        sccam.cluster_images(features, labels, clusters)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=20))
def test_purity_lies_between_the_commonest_kind_and_one(pairs):
    assignment, truth = zip(*pairs, strict=True)
    value = sccam.purity(assignment, truth)
    assert np.bincount(truth).max() / len(truth) - 1e-12 <= value <= 1
    assert sccam.purity(range(len(truth)), truth) == 1  # everyone alone
    assert sccam.purity([0] * len(truth), truth) == pytest.approx(np.bincount(truth).max() / len(truth))


def test_purity_of_nothing():
    with pytest.raises(ValueError, match="purity needs as many sub-categories as true kinds, not 0 and 0"):
        sccam.purity([], [])


def test_features_are_the_mean_map_of_the_whole_image(miniature):
    data = open_data(Config(data_root=str(miniature)), "train")
    backbone = build_backbone("resnet_small", 8).eval()
    features = sccam.image_features(backbone, data, (0.5,) * 3, (0.5,) * 3, batch_size=3)
    assert features.shape == (8, 128) and features.dtype == np.float32
    for row in (0, 2, 3):  # of three sizes
        image = torch.from_numpy(np.array(data.image(data.ids[row]), np.float32)).permute(2, 0, 1) / 127.5 - 1
        with torch.inference_mode():
            alone = backbone(image[None]).mean((2, 3))[0].numpy()
        np.testing.assert_allclose(features[row], alone, atol=1e-5)


# ---- tables


def test_a_table_comes_back(miniature, tmp_path):
    data = open_data(Config(data_root=str(miniature)), "train")
    assignment = np.where(data.labels, np.arange(len(data))[:, None] % 3, -1)
    sccam.write_subcategories(tmp_path / "table.csv", data, assignment)
    np.testing.assert_array_equal(sccam.assignment_of(tmp_path / "table.csv", data, clusters=3), assignment)
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[:2] == ["image_id,class,subcategory", "m_00,red,0"]
    assert [line.split(",")[1] for line in lines[1:]] == ["red"] * 3 + ["green"] * 4 + ["blue"] * 3


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "is missing; run notebook 60_sccam first"),
        ("image,class,kind\n", "the columns must be image_id, class and subcategory"),
        ("image_id,class,subcategory\nm_00,red\n", "the columns must be"),
        ("image_id,class,subcategory\nm_00,red,7\n", "image m_00 has the sub-category '7' of class red, not one of 0..2"),
        ("image_id,class,subcategory\nm_00,red,round\n", "'round'"),
        ("image_id,class,subcategory\nm_01,green,1\n", "image m_00 has the sub-category '' of class red"),
        (b"\xff\xfe", "not a UTF-8 CSV file"),
    ],
)
def test_a_broken_table_gives_one_sentence(miniature, tmp_path, text, words):
    path = tmp_path / "table.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    data = open_data(Config(data_root=str(miniature)), "train")
    with pytest.raises(DataError) as error:
        sccam.assignment_of(path, data, clusters=3)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


# ---- network, loss, maps


def small_net(clusters: int = 3, **options) -> sccam.SubcategoryNet:
    torch.manual_seed(0)
    return sccam.SubcategoryNet(build_backbone("resnet_small", 8), 4, clusters, **options)


def test_logits_are_the_mean_evidence_of_one_trunk():
    net = small_net().eval()
    images = torch.randn(2, 3, 24, 32)
    parents, subs = net(images)
    features = net.backbone(images)
    assert parents.shape == (2, 4) and subs.shape == (2, 12)
    assert torch.allclose(parents, net.classifier(features).mean((2, 3)), atol=1e-5)
    assert torch.allclose(subs, net.subclassifier(features).mean((2, 3)), atol=1e-5)
    assert torch.equal(net.activation_maps(images), net.classifier(features).clamp(min=0))
    assert torch.equal(net.subcategory_maps(images), net.subclassifier(features).clamp(min=0))


def test_dropout_takes_whole_channels_before_the_mean():
    net = small_net(dropout=0.5).train()
    net.backbone = torch.nn.Identity()
    net.backbone.feature_scale = 1.0
    torch.nn.init.eye_(net.classifier.weight[:, :4, 0, 0].data)
    net.classifier.weight.data[:, 4:] = 0
    logits, _ = net(torch.ones(50, 128, 2, 2))
    assert set(logits.detach().flatten().tolist()) == {0.0, 2.0}  # dropped, or kept and doubled; never half of the places


def test_frozen_batch_norm_and_stages():
    net = small_net(frozen_batch_norm=True, frozen_stages=1).train()
    assert not any(module.training for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert not any(p.requires_grad for name, p in net.named_parameters() if "bn" in name or "downsample.1" in name)
    assert not net.backbone.conv1.weight.requires_grad and net.backbone.layer1[0].conv1.weight.requires_grad
    trained = {id(p) for group in net.parameter_groups(1, 10, 0.1) for p in group["params"]}
    assert trained == {id(p) for p in net.parameters() if p.requires_grad}


def test_loss_by_hand():
    x_p, x_s = np.array([[0.5, -1.0]]), np.array([[2.0, -0.3, 0.0, 1.0]])
    y_p, y_s = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0, 0.0, 0.0]])

    def by_hand(x, y):
        p = 1 / (1 + np.exp(-x))
        return float(np.mean(-y * np.log(p) - (1 - y) * np.log(1 - p)))

    loss = sccam.joint_loss(*(torch.from_numpy(array) for array in (x_p, x_s, y_p, y_s)), weight=5)
    assert loss["parent"].item() == pytest.approx(by_hand(x_p, y_p), abs=1e-6)
    assert loss["sub"].item() == pytest.approx(by_hand(x_s, y_s), abs=1e-6)
    assert loss["loss"].item() == pytest.approx(by_hand(x_p, y_p) + 5 * by_hand(x_s, y_s), abs=1e-5)


def test_maps_of_subcategories_are_divided_by_the_maximum_of_their_class():
    maps = torch.tensor([1.0, 4.0, 0.0, 3.0]).view(4, 1, 1).repeat(1, 2, 2)
    maps[3, 1, 1] = 6
    normal = sccam.normalize_subcategory_maps(maps, clusters=2)
    assert torch.allclose(normal[:, 0, 0], torch.tensor([0.25, 1.0, 0.0, 0.5]), atol=1e-4)
    merged = sccam.merge_subcategory_maps(normal, clusters=2)
    assert torch.allclose(merged[:, 0, 0], torch.tensor([1.0, 0.5]), atol=1e-4) and merged.shape == (2, 2, 2)


def test_entropy_of_one_map_and_of_equal_maps():
    one, equal, none = torch.zeros(4, 1, 1), torch.ones(4, 1, 1), torch.zeros(4, 1, 1)
    one[2] = 3
    values = sccam.subcategory_entropy(torch.cat([one, equal, none]), clusters=4).flatten()
    assert torch.allclose(values, torch.tensor([0.0, 1.0, 0.0]), atol=1e-3) and (values >= 0).all()


# ---- rounds


@pytest.fixture
def small(small_config) -> Config:
    return small_config.model_copy(
        update={"sccam_clusters": 2, "sccam_round_epochs": (1, 2), "sccam_schedule_epochs": 4, "backbone_weights": "none"}
    )


def test_samples_depend_on_seed_epoch_and_index_alone(small):
    data = open_data(small, "train")
    table = np.arange(len(data) * 6).reshape(len(data), 6) % 2
    options = small.seed, (36, 48), 32, (0.5,) * 3, (0.25,) * 3
    samples = sccam.SubcategorySamples(data, table, *options)
    again = sccam.SubcategorySamples(data, table, *options)
    again[1, 5]
    image, parents, subs = samples[3, 2]
    assert image.shape == (3, 32, 32) and parents.tolist() == data.labels[2].tolist() and subs.tolist() == table[2].tolist()
    assert all(torch.equal(a, b) for a, b in zip(samples[3, 2], again[3, 2], strict=True))
    assert not torch.equal(samples[4, 2][0], image)
    plain = sccam.SubcategorySamples(data, table, *options, jitter=0)[3, 2][0]
    assert not torch.equal(plain, image) and torch.equal(plain == 0, image == 0)  # other colors, the same crop


def test_a_round_stops_early_on_the_long_schedule(small, tmp_path):
    data = open_data(small, "train")
    assignment = np.where(data.labels, 0, -1)
    for number, epochs in ((1, 1), (2, 2)):
        folder = tmp_path / str(number)
        assert sccam.train_sccam(sccam.build_sccam(small, 3), data, assignment, small, folder, number) == 8 * epochs
        row = training.read_log(folder)[-1]
        assert row["step"] == 2 * epochs
        assert row["factor"] == pytest.approx(training.poly_factor(2 * epochs - 1, 8), abs=1e-6)
        assert row["loss"] == pytest.approx(row["parent"] + 5 * row["sub"], abs=1e-4)


def test_the_first_sub_categories_may_come_from_a_classifier_of_another_program(small, tmp_path):
    """Published: AffinityNet's, on the rounds' backbone; notebook 10 need not have run."""
    torch.manual_seed(3)
    classifier = build_classifier(small, 3).eval()
    training.save_weights(classifier, tmp_path / "first.safetensors")
    config = small.model_copy(update={"sccam_first_weights": str(tmp_path / "first.safetensors"), "method": "sccam"})
    first, second = sccam.rounds(config)
    job = run(first, config)
    data = open_data(config, "train")
    features = sccam.image_features(classifier.backbone, data, *normalization_of("resnet_small"), 4)
    np.testing.assert_allclose(files.read_tensors(job.folder / "features.safetensors")["features"], features, atol=1e-5)
    assert "sccam_first_weights" in job.files.record()["inputs"]
    assert list(run(second, config).inputs) == ["previous"]
    with pytest.raises(DataError, match="classifier is not finished"):
        run(sccam.rounds(small)[0], small.model_copy(update={"method": "sccam"}))


def test_an_interrupted_round_goes_on_to_the_same_result(small, tmp_path, monkeypatch):
    data = open_data(small, "train")
    config = small.model_copy(update={"checkpoint_every": 1})
    torch.manual_seed(0)
    classifier = build_classifier(config, 3).eval()
    arguments = classifier.backbone, ((0.5,) * 3, (0.25,) * 3), data, config
    assert sccam.make_round(*arguments, tmp_path / "once", 2) == 16

    steps = iter(range(3))
    loss = sccam.joint_loss

    def loss_that_stops(*values):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return loss(*values)

    monkeypatch.setattr(sccam, "joint_loss", loss_that_stops)
    with pytest.raises(KeyboardInterrupt):
        sccam.make_round(*arguments, tmp_path / "twice", 2)
    monkeypatch.setattr(sccam, "joint_loss", loss)
    features = (tmp_path / "twice" / "features.safetensors").stat().st_mtime_ns
    assert not (tmp_path / "twice" / "weights.safetensors").exists()
    torch.manual_seed(99)
    sccam.make_round(*arguments, tmp_path / "twice", 2)
    assert (tmp_path / "twice" / "features.safetensors").stat().st_mtime_ns == features
    for name in ("subcategories.csv", "weights.safetensors", "log.jsonl"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name


def test_every_round_starts_from_the_pretrained_weights(small, tmp_path):
    file = tmp_path / "backbone.safetensors"
    training.save_weights(build_backbone("resnet_small", 8), file)
    config = small.model_copy(update={"backbone_weights": str(file)})
    first, second = sccam.build_sccam(config, 3), sccam.build_sccam(config, 3)
    for name, value in first.backbone.state_dict().items():
        assert torch.equal(value, second.backbone.state_dict()[name]), name
    training.save_weights(first, tmp_path / "round1.safetensors")
    reread = sccam.build_sccam(config, 3, tmp_path / "round1.safetensors")
    assert torch.equal(reread.subclassifier.weight, first.subclassifier.weight)
    with pytest.raises(ValueError, match="round1.safetensors does not fit SubcategoryNet: subclassifier.weight has shape"):
        sccam.build_sccam(config.model_copy(update={"sccam_clusters": 5}), 3, tmp_path / "round1.safetensors")


def test_maps_made_in_two_goes_are_the_same(small, tmp_path):
    data = open_data(small, "train")
    torch.manual_seed(0)
    localize = sccam.sccam_localization(sccam.build_sccam(small, 3), small)
    assert make_maps(localize, data, small, tmp_path / "once") == 8
    assert make_maps(localize, replace(data, ids=data.ids[:5], labels=data.labels[:5]), small, tmp_path / "twice") == 5
    assert make_maps(localize, data, small, tmp_path / "twice") == 3
    for image_id in data.ids:
        classes, scores, size = files.read_maps(tmp_path / "once" / f"{image_id}.npz")
        other = files.read_maps(tmp_path / "twice" / f"{image_id}.npz")
        assert classes.tolist() == np.flatnonzero(data.label(image_id)).tolist() == other[0].tolist()
        np.testing.assert_allclose(scores, other[1], atol=2e-3)  # batches of another size round differently
        assert 0 <= scores.min() and scores.max() <= 1


def test_rounds_and_controls_are_scored_one_by_one(small, tmp_path, capsys):
    program = runpy.run_path(str(PROJECT_ROOT / "benchmarks" / "sccam_ablations.py"))
    config = small.model_copy(update={"method": "sccam", "cam_scales": (1.0,)})
    data = open_data(config, "train")
    kinds = [[data.ids[i], data.classes[0], "a" if i % 2 else "b"] for i in np.flatnonzero(data.labels[:, 0])]
    table = np.where(data.labels, (np.arange(len(data)) % 2)[:, None], -1)
    maps = made.begin(config, "maps", ("cam_scales",), method="cam")
    torch.manual_seed(0)
    net = sccam.build_sccam(config, 3)
    make_maps(sccam.sccam_localization(net, config), data, config, maps.folder)
    made.finish(maps)
    classifier = made.begin(config, "classifier", ("backbone", "output_stride"), method="cam")
    training.save_weights(build_classifier(config, 3), classifier.folder / "weights.safetensors")
    made.finish(classifier)
    out, rows = tmp_path / "out.json", {}
    program["run_seed"](config, 0, [], rows, out)
    first = files.read_json(out)["0"]
    assert list(first) == ["CAM", "round 1", "round 2"] and all(0 <= row["miou"] <= 100 for row in first.values())
    program["run_seed"](config, 0, list(program["CONTROLS"]), rows, out)
    found = files.read_json(out)["0"]
    assert list(found) == [*first, *program["CONTROLS"]] and all(found[name] == first[name] for name in first)
    assert "purity" not in found["round 1"], "no class of these data has known kinds"
    assert all(name in program["table"](rows) for name in found)
    assert program["main"]([]) == {} and "name them" in capsys.readouterr().out

    root = tmp_path / "known"
    shutil.copytree(data.root, root)
    with open(root / "subcategories.csv", "w", encoding="utf-8") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in [["image_id", "class", "subcategory"], *kinds])
    values = program["purities"](replace(data, root=root), table)
    assert values["purity"] == 1 and 0.5 <= values["chance"] < 1 and values["beside"] <= 1


def test_a_finished_stage_keeps_the_values_that_it_was_made_with(small):
    made.finish(made.begin(small, "classifier", cam.CLASSIFIER.reads, method="cam"))
    other = small.model_copy(update={"backbone": "resnet38", "cam_epochs": 7})
    remembered = open_stage(cam.CLASSIFIER, other).config
    assert (remembered.backbone, remembered.cam_epochs) == ("resnet_small", 2)


# ---- the published network


@pytest.mark.slow
def test_resnet38_runs_two_steps_at_full_size(tmp_path):
    """The preset's own network, crops, clusters and learning rates; without ImageNet weights and with one image a step."""
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
        cam_batch_size=1,
        device_batch_size=1,
        sccam_round_epochs=[2],
        cam_scales=[0.5],
    )
    assert (config.backbone, config.cam_crop, config.sccam_clusters) == ("resnet38", 224, 10)
    data = open_data(config, "train")
    training.seed_everything(config)
    net = sccam.build_sccam(config, data.num_classes)
    assert sum(p.numel() for p in net.parameters()) == 105_972_032
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 105_103_360
    tame(net)
    features = sccam.image_features(
        net.eval().backbone, replace(data, ids=data.ids[:1], labels=data.labels[:1]), (0.5,) * 3, (0.25,) * 3, batch_size=1
    )
    assert features.shape == (1, 4096) and np.isfinite(features).all()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assignment = sccam.cluster_images(np.repeat(features, 3, axis=0) * [[1], [2], [3]], data.labels, 10)
    one = replace(data, ids=data.ids[:1], labels=data.labels[:1])
    assert sccam.train_sccam(net, one, assignment[:1], config, tmp_path / "round1", number=1) == 2
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in changed if "bn" in name or "conv1a" in name or ".b2" in name}
    assert {
        "backbone.b3.conv_branch2a.weight",
        "backbone.b7.conv_branch2b2.weight",
        "classifier.weight",
        "subclassifier.weight",
    } <= changed
    check_log(tmp_path / "round1")
    assert make_maps(sccam.sccam_localization(net, config), one, config, tmp_path / "maps") == 1
    check_maps(tmp_path / "maps" / f"{data.ids[0]}.npz")


def check_maps(path: Path) -> None:
    classes, scores, size = files.read_maps(path)
    assert classes.tolist() == [11, 14] and size == (375, 500) and np.isfinite(scores).all()
    assert scores.shape == (2, 94, 125) and 0 <= scores.min() and scores.max() <= 1


def tame(net: torch.nn.Module) -> None:
    """Weaken the residual branches: without weights of ImageNet, frozen batch normalization lets activations explode."""
    for name, parameter in net.named_parameters():
        if name.endswith(("conv_branch2b1.weight", "conv_branch2b2.weight")):
            parameter.data *= 0.3 / math.sqrt(2)


def test_known_kinds_by_hand(miniature):
    data = load_dataset(miniature, "train")
    first = int(np.flatnonzero(data.labels[0])[0])
    kinds = {(data.ids[0], data.classes[first]): "long", (data.ids[1], "another"): "round"}
    found = subcategories.known_kinds(data, kinds, 4)
    assert ((found == -1) == (data.labels == 0)).all() and set(np.unique(found)) <= {-1, 0, 1}
    assert found[0, first] == 0  # "long" comes before "round"
    kinds[data.ids[0], data.classes[first]] = "round"
    kinds[data.ids[1], "another"] = "long"
    assert subcategories.known_kinds(data, kinds, 4)[0, first] == 1 and subcategories.known_kinds(data, kinds, 1)[0, first] == 0
