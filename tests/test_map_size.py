"""Maps merged at the size of the image: what is stored of them, what is read again, and that every method keeps them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tests import small_chain
from tests.test_extreme_images import IMAGES, METHODS, write_data
from wsss_lib.core import files, training
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import full_size_maps
from wsss_lib.data.dataset import open_data
from wsss_lib.errors import DataError
from wsss_lib.methods import amn, cam, drs
from wsss_lib.nets.backbone import BACKBONES, OWN_STRIDE, build_backbone
from wsss_lib.nets.folding import folded
from wsss_lib.ops.merging import Views, merge_views, upsample_scores


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    count=st.integers(0, 3),
    grid=st.sampled_from([1, 16]),
    power=st.integers(-8, 30),
    seed=st.integers(0, 99),
)
def test_what_is_stored_of_every_scale_makes_the_maps_of_full_size(tmp_path_factory, size, count, grid, power, seed):
    """Whatever the range of the network's evidence: float16 holds a map divided by its peak."""
    torch.manual_seed(seed)
    scales = [torch.rand(count, -(-size[0] // side), -(-size[1] // side)) * 10.0**power for side in (16, 32, 8)]
    path = tmp_path_factory.mktemp("maps") / "a.npz"
    small = np.zeros((count, (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1), np.float32)
    files.write_maps(path, np.arange(count), small, size, Views(scales, grid))
    classes, scores = files.read_full_size_maps(path)
    assert classes.tolist() == list(range(count)) and scores.shape == (count, *size) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, merge_views(scales, size, grid).numpy(), atol=2e-3)
    assert files.read_maps(path)[1].shape == small.shape


def test_the_published_grid_moves_the_maps_at_the_right_edge():
    """A network of stride 16 sees 500 pixels as 512: enlarged to 500, its last column lies up to 12 pixels too far left."""
    view = torch.zeros(1, 24, 32)
    view[0, :, 30] = 1  # center of its cell: pixel 487.5
    published = merge_views([view], (375, 500), 16)[0, 100]
    straight = merge_views([view], (375, 500))[0, 100]
    assert int(published.argmax()) in (487, 488) and int(straight.argmax()) in (475, 476)


def test_a_file_without_them_is_enlarged_from_stride_4(tmp_path):
    scores = np.random.default_rng(0).random((2, 3, 4), np.float32)
    files.write_maps(tmp_path / "a.npz", np.array([1, 4]), scores, (12, 14))
    classes, full = files.read_full_size_maps(tmp_path / "a.npz")
    np.testing.assert_array_equal(full, upsample_scores(scores.astype(np.float16), (12, 14)))
    assert classes.tolist() == [1, 4]


@pytest.mark.parametrize(
    "extra",
    [
        {"full": np.zeros((1, 12, 13), np.float16)},
        {"full": np.zeros((1, 12, 14), np.int16)},
        {"full": np.zeros((1, 12, 14), np.float16), "view0": np.zeros((1, 1, 1), np.float16)},
        {"view0": np.zeros((1, 1, 1), np.float16)},
        {"peaks": np.ones(1, np.float32), "grid_stride": np.int32(16)},
        {"view0": np.zeros((2, 1, 1), np.float16), "peaks": np.ones(1, np.float32), "grid_stride": np.int32(16)},
        {"view0": np.zeros((1, 1, 1), np.float16), "peaks": np.ones(1, np.float32), "grid_stride": np.int32(0)},
        {"view0": np.zeros((1, 0, 1), np.float16), "peaks": np.ones(1, np.float32), "grid_stride": np.int32(1)},
        {"view0": np.zeros((1, 1, 1), np.float16), "peaks": np.ones(2, np.float32), "grid_stride": np.int32(1)},
        {"view1": np.zeros((1, 1, 1), np.float16), "peaks": np.ones(1, np.float32), "grid_stride": np.int32(1)},
        {"something": np.zeros(3)},
    ],
    ids=lambda extra: " ".join(extra),
)
def test_maps_of_full_size_that_do_not_fit_are_refused(tmp_path, extra):
    stored = {"classes": np.int16([3]), "scores": np.zeros((1, 3, 4), np.float16), "size": np.int32([12, 14])}
    np.savez(tmp_path / "a.npz", **stored, **extra)
    with pytest.raises(DataError, match="a.npz: its maps of full size do not fit its classes and size; delete it and run its"):
        files.read_full_size_maps(tmp_path / "a.npz")


def test_a_view_that_is_not_finite_is_refused(tmp_path):
    view = torch.tensor([[[float("nan"), 1.0]]])
    with pytest.raises(ValueError, match="a.npz: a score is not finite"):
        files.write_maps(tmp_path / "a.npz", np.array([0]), np.zeros((1, 1, 1)), (2, 2), Views([view], 1))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "extreme", IMAGES)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_them(data, tmp_path, method):
    """On images of one pixel to 300, of no class and of several; near the enlarged ones, as they show the same evidence."""
    config = small_chain.config_of(
        data, tmp_path, "cam", drs_crop=32, rib_companions=4, cam_scales=(1.0, 0.5), map_size="image"
    )
    training.seed_everything(config)
    split = open_data(config, "train")
    weights = tmp_path / "classifier.safetensors"
    training.save_weights(cam.build_classifier(config, 3), weights)
    localize = METHODS[method](config, split, weights)
    if method == "drs":  # those of its second network; what that learns is made smaller anyway
        localize = drs.drs_localization(drs.build_refinement(config, 3, weights), config, normalized=False)
    assert make_maps(localize, split, config, tmp_path / "maps") == len(IMAGES)
    for name, (size, labels, _) in IMAGES.items():
        classes, full = full_size_maps(tmp_path / "maps", name)
        _, scores, _ = files.read_maps(tmp_path / "maps" / f"{name}.npz")
        assert full.shape == (labels.count("1"), *size) and len(classes) == len(full)
        assert np.isfinite(full).all() and full.min(initial=0) >= 0 and full.max(initial=0) <= 1.001
        stored = np.load(tmp_path / "maps" / f"{name}.npz").files
        assert "view0" in stored or "full" in stored or not len(classes)
        if min(size) >= 64 and len(full):
            assert np.abs(full - upsample_scores(scores, size)).mean() < 0.1


def test_amn_takes_its_soft_max_at_full_size():
    """A soft-max of enlarged logits is not the enlarged soft-max: the case is made so that they differ by a half."""
    torch.manual_seed(0)
    net = amn.ActivationManipulationNet(build_backbone("resnet_small"), 3).eval()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 52, 3), np.uint8))
    mean, std = (0.5,) * 3, (0.5,) * 3
    (result,) = amn.localization_maps(net, [image], np.uint8([[1, 0, 1]]), [None], (1.0,), mean, std, keep_full=True)
    classes, scores, full = result
    tensor = torch.from_numpy((np.asarray(image, np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    with torch.no_grad():
        pair = net(torch.cat([tensor, tensor.flip(-1)]), torch.tensor([[1.0, 0, 1], [1, 0, 1]]))
    logits = (pair[0] + pair[1].flip(-1)) / 2
    p = F.interpolate(logits[None], size=(40, 52), mode="bilinear", align_corners=False)[0].softmax(0)[[1, 3]]
    low, high = p.amin((1, 2), keepdim=True), p.amax((1, 2), keepdim=True)
    np.testing.assert_allclose(full, ((p - low) / (high - low + 1e-5)).numpy(), atol=1e-4)
    assert classes.tolist() == [0, 2] and scores.shape == (2, 10, 13)


# ---- what makes inference faster changes no map


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in ("resnet101", "resnet101_caffe")])
def test_folded_batch_normalization_computes_the_same(name):
    torch.manual_seed(0)
    net = build_backbone(name, OWN_STRIDE.get(name, 16))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1)
    net.train()
    images, before = torch.randn(2, 3, 49, 64), {key: value.clone() for key, value in net.state_dict().items()}
    with torch.inference_mode():
        fast = folded(net)(images)
        expected = net.eval()(images)
    assert torch.allclose(fast, expected, atol=1e-4 * expected.abs().max().item())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    kept = [type(module) for module in folded(net).modules() if isinstance(module, nn.BatchNorm2d)]
    assert (len(kept) > 0) == (name == "resnet38")  # whose blocks begin with one
    assert all(module.dilation == (1, 1) for module in net.modules() if getattr(module, "kernel_size", None) == (1, 1))


def test_maps_in_bfloat16_are_near(data, tmp_path):
    config = small_chain.config_of(data, tmp_path, "cam")
    training.seed_everything(config)
    net, split = cam.build_classifier(config, 3), open_data(config, "train")
    image_id = max(split.ids, key=lambda name: split.image(name).width if split.label(name).any() else 0)
    item = ([image_id], [split.image(image_id)], split.label(image_id)[None])
    ((_, exact),) = cam.cam_localization(net, config)(*item)
    ((_, rough),) = cam.cam_localization(net, config.model_copy(update={"map_precision": "bfloat16"}))(*item)
    assert rough.dtype == np.float32 and 0 < np.abs(exact - rough).max() < 0.1
