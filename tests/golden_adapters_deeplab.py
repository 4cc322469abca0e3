"""Golden cases of DeepLab-v2, evaluation, palette and CRF labels, computed with wsss_lib.

Every adapter takes the arrays of one npz file and returns the `out_*` arrays that `wsss_lib` gives. The tensors of the
large network are not stored: `recipe` makes them from their official names.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.models.resnet import Bottleneck

from wsss_lib.data.dataset import voc_palette
from wsss_lib.data.transforms import scale_crop_flip
from wsss_lib.metrics import confusion_matrix, scores
from wsss_lib.nets.backbone import ResNet, _make_layer
from wsss_lib.nets.deeplab_v2 import (
    ASPPV2,
    DeepLabV2,
    balanced_cross_entropy,
    multi_scale_logits,
    multi_scale_loss,
    resize_labels,
)
from wsss_lib.refine.crf import crf_from_labels, crf_from_probabilities
from wsss_lib.refine.seeds import argmax_with_background, irn_labels, seed_mask
from wsss_lib.training import poly_factor

Arrays = dict[str, np.ndarray]

NAME_MAP = Path(__file__).parent / "golden" / "deeplabv2_name_map.json"
BLOCK_NAMES = {"reduce.conv": "conv1", "reduce.bn": "bn1", "conv3x3.conv": "conv2", "conv3x3.bn": "bn2",
               "increase.conv": "conv3", "increase.bn": "bn3", "shortcut.conv": "downsample.0",
               "shortcut.bn": "downsample.1", "conv1.conv": "conv1", "conv1.bn": "bn1"}  # official: torchvision


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def recipe(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Value of the official tensor `key`, as the golden files define it."""
    random = np.random.RandomState(zlib.crc32(f"{key}|{int(seed)}".encode()) & 0xFFFFFFFF)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    normal = random.standard_normal(size=shape).astype(np.float32)
    if len(shape) >= 2:
        return normal * np.float32(np.sqrt(2.0 / np.prod(shape[1:])))
    if key.endswith("running_mean"):
        return np.float32(0.1) * normal
    if key.endswith("running_var"):
        return np.float32(1) + np.float32(0.1) * np.abs(normal)
    if key.endswith("weight"):
        return np.float32(0.7) + np.float32(0.1) * normal
    return np.float32(0.05) * normal


def official_weights(arrays: Arrays) -> dict[str, torch.Tensor]:
    """The `weight_*` arrays of one block or stem under torchvision's names."""
    state = {}
    for key, value in arrays.items():
        if key.startswith("weight_"):
            module, field = key.removeprefix("weight_").rsplit(".", 1)
            state[f"{BLOCK_NAMES[module]}.{field}"] = tensor(value)
    return state


def load(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    missing, foreign = module.load_state_dict(state, strict=False)
    assert not foreign and all(key.endswith("num_batches_tracked") for key in missing), (missing, foreign)
    return module.eval()


@torch.inference_mode()
def aspp_v2(a: Arrays) -> Arrays:
    state = {key.removeprefix("weight_"): tensor(value) for key, value in a.items() if key.startswith("weight_")}
    classes, channels = a["weight_c0.weight"].shape[:2]
    head = load(ASPPV2(channels, classes, a["in_rates"].tolist()), state)
    return {"out_y": head(tensor(a["in_x"])).numpy()}


@torch.inference_mode()
def bottleneck(a: Arrays) -> Arrays:
    state = official_weights(a)
    planes, channels = state["conv1.weight"].shape[:2]
    layer = _make_layer(Bottleneck, channels, planes, 1, int(a["in_stride"]), int(a["in_dilation"]), stride_in_1x1=True)
    return {"out_y": load(layer[0], state)(tensor(a["in_x"])).numpy()}


@torch.inference_mode()
def stem(a: Arrays) -> Arrays:
    state = official_weights(a)
    net = ResNet(Bottleneck, (1, 1, 1, 1), width=state["conv1.weight"].shape[0], ceil_mode=True)
    load(net, {key: state.get(key, value) for key, value in net.state_dict().items()})  # the layers are not looked at
    return {"out_y": net.stages(tensor(a["in_x"]))[0].numpy()}


@torch.inference_mode()
def v2_forward(a: Arrays) -> Arrays:
    backbone = ResNet(Bottleneck, (3, 4, 23, 3), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), stride_in_1x1=True,
                      ceil_mode=True)
    net = DeepLabV2(backbone, 21)
    official = {row["torchvision_prefix"]: row["key_prefix"] for row in json.loads(NAME_MAP.read_text())["rows"]}
    state = {}
    for key, value in net.state_dict().items():
        part, name = key.split(".", 1)
        module, field = name.rsplit(".", 1)
        prefix = official[module] if part == "backbone" else f"base.aspp.{module}"
        state[key] = tensor(recipe(f"{prefix}.{field}", tuple(value.shape), int(a["in_seed"])))
    load(net, state)
    image = tensor(a["in_image"])
    layers = net.backbone.stages(image)
    layers.append(net.aspp(layers[-1]))
    return {
        "out_base_logits": layers[-1].numpy(),
        "out_msc_logits": multi_scale_logits(net, image)[-1].numpy(),
        "out_layer_shapes": np.array([list(layer.shape) for layer in layers], np.int32),
        "out_layer_mean_absmax": np.array([[float(z.mean()), float(z.abs().max())] for z in layers], np.float32),
    }


@torch.inference_mode()
def msc_fusion(a: Arrays) -> Arrays:
    def base(images):
        return F.conv2d(images, tensor(a["weight_base_weight"]), tensor(a["weight_base_bias"]), stride=2, padding=1)

    logits = multi_scale_logits(base, tensor(a["in_x"]), a["in_scales"].tolist())
    names = ("out_train_100", "out_train_50", "out_train_75", "out_train_max")
    return {**{name: z.numpy() for name, z in zip(names, logits, strict=True)}, "out_eval": logits[-1].numpy()}


def msc_loss(a: Arrays) -> Arrays:
    logits = [tensor(a[f"in_logit{i}"]).requires_grad_() for i in range(4)]
    loss = multi_scale_loss(logits, tensor(a["in_label"])) / int(a["in_iter_size"])
    loss.backward()
    return {"out_loss": loss.detach().numpy(), **{f"out_grad{i}": z.grad.numpy() for i, z in enumerate(logits)}}


def balanced_ce(a: Arrays) -> Arrays:
    logits = tensor(a["in_logit"]).requires_grad_()
    loss = balanced_cross_entropy(logits, tensor(a["in_label"]))
    loss.backward()
    return {"out_loss": loss.detach().numpy(), "out_grad": logits.grad.numpy()}


def poly_lr(a: Arrays) -> Arrays:
    base, total, every, power = (a[name].item() for name in ("in_base", "in_iter_max", "in_step", "in_power"))
    rows = len(a["out_lr_short"]) if "out_lr_short" in a else total + 6  # some rows beyond the end
    factor = np.array([poly_factor(t, total, power, every) for t in range(rows)])
    result = {"out_lr_short": base * factor[:, None] * np.array([1, 10, 20])}
    if "in_voc_points" in a:
        result["out_voc_lr"] = np.array([2.5e-4 * poly_factor(int(t), 20000, every=10) for t in a["in_voc_points"]])
    total = a["in_v3_max"].item()
    smooth = np.array([poly_factor(t, total, every=1) for t in range(total + 1)])
    result["out_v3_lr"] = np.maximum(smooth[:, None] * np.array([0.001, 0.01]), a["in_v3_min_lr"])
    return result


def resize_label_maps(a: Arrays) -> Arrays:
    sizes = {key.removeprefix("in_size"): int(value) for key, value in a.items() if key.startswith("in_size")}
    return {f"out_label{i}": resize_labels(tensor(a["in_label"]), (side, side)).numpy() for i, side in sizes.items()}


def augment(a: Arrays) -> Arrays:
    mean = np.float32([104.008, 116.669, 122.675])  # BGR
    result = {}
    for i in sorted(key.removeprefix("in_image") for key in a if key.startswith("in_image")):
        image, label = scale_crop_flip(
            a[f"in_image{i}"], a[f"in_label{i}"], a[f"in_scale{i}"].item(), int(a[f"in_top{i}"]), int(a[f"in_left{i}"]),
            bool(a[f"in_flip{i}"]), int(a[f"in_crop{i}"]), tuple(mean))
        result |= {f"out_image{i}": (image - mean).transpose(2, 0, 1), f"out_label{i}": label}
    return result


def crf(a: Arrays) -> Arrays:
    image = a["in_image_rgb_uint8"]
    logits = F.interpolate(tensor(a["in_logits_low"])[None], size=image.shape[:2], mode="bilinear", align_corners=False)
    probabilities = logits.softmax(1)[0].numpy()
    parameters = {"iterations": a["in_iter"].item(), "gaussian_sxy": a["in_pos_xy"].item(),
                  "gaussian_compat": a["in_pos_w"].item(), "bilateral_sxy": a["in_bi_xy"].item(),
                  "bilateral_srgb": a["in_bi_rgb"].item(), "bilateral_compat": a["in_bi_w"].item()}
    q = crf_from_probabilities(image, probabilities, **parameters)
    wrapped = crf_from_probabilities(a["in_image_meansub_wrapped_bgr_uint8"], probabilities, **parameters)
    return {"out_prob": probabilities, "out_q": q, "out_label": q.argmax(0),
            "out_label_nocrf": probabilities.argmax(0), "out_label_wrapped": wrapped.argmax(0)}


def miou(a: Arrays) -> Arrays:
    confusion = confusion_matrix(a["in_gt"], a["in_pred"], 21)
    result = scores(confusion)
    return {
        "out_confusion": confusion, "out_class_iou_nan": result.iou,
        "out_miou_valid_only": np.float64(scores(confusion, "present").miou),
        "out_miou_nanmean": np.float64(result.miou), "out_miou_chainercv": np.float64(result.miou),
        "out_pixel_acc": np.float64(result.pixel_accuracy), "out_mean_acc": np.float64(result.mean_accuracy),
        "out_fw_iou": np.float64(result.frequency_weighted_iou),
    }


def palette(_: Arrays) -> Arrays:
    return {"out_palette": voc_palette()}


def crf_label(a: Arrays) -> Arrays:
    inputs = a["in_image"], a["in_labels"], int(a["in_n_labels"])
    return {"out_t10": crf_from_labels(*inputs), "out_t1": crf_from_labels(*inputs, iterations=1),
            "out_t10_gt09": crf_from_labels(*inputs, certainty=0.9)}


def ir_label(a: Arrays) -> Arrays:
    image, maps, classes = a["in_image"], a["in_high_res"], a["in_keys"]
    result = {}
    for name in (key.removeprefix("in_fg_threshold_") for key in a if key.startswith("in_fg_threshold_")):
        thresholds = {kind: a[f"in_{kind}_threshold_{name}"].item() for kind in ("fg", "bg")}
        for kind, threshold in thresholds.items():
            result[f"out_{kind}_argmax_{name}"] = argmax_with_background(maps, np.arange(len(classes)), threshold)
            result[f"out_{kind}_conf_{name}"] = seed_mask(image, maps, classes, threshold)
        result[f"out_ir_label_{name}"] = irn_labels(image, maps, classes, thresholds["fg"], thresholds["bg"])
    return result


ADAPTERS: dict[str, Callable[[Arrays], Arrays]] = {
    "deeplab__aspp_v2": aspp_v2,
    "deeplab__v2_forward": v2_forward,
    "deeplab__bottleneck_down": bottleneck,
    "deeplab__bottleneck_dilated": bottleneck,
    "deeplab__stem": stem,
    "deeplab__msc_fusion": msc_fusion,
    "deeplab__msc_loss": msc_loss,
    "deeplab__balanced_ce": balanced_ce,
    "deeplab__poly_lr": poly_lr,
    "deeplab__resize_labels": resize_label_maps,
    "deeplab__augment": augment,
    "deeplab__crf": crf,
    "deeplab__miou": miou,
    "data__voc_palette": palette,
    "irn__crf_label": crf_label,
    "irn__ir_label": ir_label,
}

# Absolute tolerance of a case, or of one of its arrays ("case/array"); 0 is exact. Others: 1e-5.
TOLERANCE: dict[str, float] = {
    "deeplab__aspp_v2": 1e-4,
    "deeplab__v2_forward": 1e-3,
    "deeplab__v2_forward/out_layer_shapes": 0,
    "deeplab__bottleneck_down": 1e-4,
    "deeplab__bottleneck_dilated": 1e-4,
    "deeplab__stem": 1e-4,
    "deeplab__resize_labels": 0,
    "deeplab__augment": 1e-2,
    "deeplab__augment/out_label0": 0,
    "deeplab__augment/out_label1": 0,
    "deeplab__augment/out_label2": 0,
    "deeplab__crf/out_label_nocrf": 0,
    "deeplab__miou": 1e-6,
    "deeplab__miou/out_confusion": 0,
    "data__voc_palette": 0,
    "irn__ir_label/out_fg_argmax_irn": 0,
    "irn__ir_label/out_bg_argmax_irn": 0,
    "irn__ir_label/out_fg_argmax_rib": 0,
    "irn__ir_label/out_bg_argmax_rib": 0,
}

# Tolerance relative to the expected value, instead of an absolute one.
RELATIVE: dict[str, float] = {"deeplab__poly_lr": 1e-6}

# Label maps that may differ in a few pixels: the share that must be equal.
EQUAL_SHARE: dict[str, float] = {
    "deeplab__crf/out_label": 0.995,
    "deeplab__crf/out_label_wrapped": 0.995,
    "irn__crf_label/out_t10": 0.995,
    "irn__crf_label/out_t1": 0.995,
    "irn__crf_label/out_t10_gt09": 0.995,
    "irn__ir_label/out_fg_conf_irn": 0.995,
    "irn__ir_label/out_bg_conf_irn": 0.995,
    "irn__ir_label/out_ir_label_irn": 0.995,
    "irn__ir_label/out_fg_conf_rib": 0.995,
    "irn__ir_label/out_bg_conf_rib": 0.995,
    "irn__ir_label/out_ir_label_rib": 0.995,
}

# Not compared: the probabilities of the CRF's approximate filter; its labels are.
NOT_COMPARED = {"deeplab__crf/out_q"}
