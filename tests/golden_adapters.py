"""Golden cases: inputs and outputs of the methods' official programs, computed again with wsss_lib.

`ADAPTERS` maps the name of a case (the npz file's) to a function from the arrays of the case to its `out_*` arrays. Sizes
are read from the arrays, so cases of other sizes run through the same functions. `disagreement` says whether two arrays
agree, by the rules of `TOLERANCE`.
"""

import json
import random
import tempfile
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.models.resnet import Bottleneck

from tests import golden_amn, golden_data, golden_drs, golden_psa, golden_rib, golden_sccam, golden_vwe
from tests.golden_weights import load, load_recipe, recipe, tensor
from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.core.files import voc_palette
from wsss_lib.data import transforms
from wsss_lib.methods import cam
from wsss_lib.nets.backbone import ResNet, _make_layer, build_backbone, normalization_of
from wsss_lib.nets.deeplab_v2 import (
    ASPPV2,
    DeepLabV2,
    balanced_cross_entropy,
    multi_scale_logits,
    multi_scale_loss,
    resize_labels,
)
from wsss_lib.ops import affinity, merging, random_walk
from wsss_lib.ops.crf import crf_from_labels, crf_from_probabilities
from wsss_lib.ops.metrics import confusion_matrix, scores
from wsss_lib.ops.seeds import argmax_with_background, irn_labels, seed_mask
from wsss_lib.refine.irn import IRN

Arrays = dict[str, np.ndarray]

NAME_MAP = Path(__file__).parent / "golden" / "deeplabv2_name_map.json"
BLOCK_NAMES = {
    "reduce.conv": "conv1",
    "reduce.bn": "bn1",
    "conv3x3.conv": "conv2",
    "conv3x3.bn": "bn2",
    "increase.conv": "conv3",
    "increase.bn": "bn3",
    "shortcut.conv": "downsample.0",
    "shortcut.bn": "downsample.1",
    "conv1.conv": "conv1",
    "conv1.bn": "bn1",
}  # official: torchvision


# ---- classifier and class activation maps


def merge_scales(case: Arrays) -> Arrays:
    keys = np.flatnonzero(case["in_image_label"])
    maps = [tensor(case[f"in_cam_{number}"]) for number in range(len(case["in_scales"]))]
    size = tuple(case["in_size"].tolist())
    return {
        "out_keys": keys,
        "out_cam": merging.merge_views(merging.join_flips(maps, tensor(keys)), merging.stride4_size(size)).numpy(),
        "out_high_res": merging.merge_views(merging.join_flips(maps, tensor(keys)), size, grid_stride=16).numpy(),
    }


def cam_net(case: Arrays) -> Arrays:
    net = cam.ClassActivationNet(build_backbone("resnet50", 16), case["in_image_label"].shape[1])
    load_recipe(net)
    image = tensor(case["in_image"])
    pair, labels = torch.cat([image, image.flip(-1)]), tensor(case["in_image_label"])
    with torch.no_grad():
        stages = net.backbone.stages(pair)[1:]  # the official "stage1" is stem and layer1
        maps = net.activation_maps(pair)
        logits = net.train()(pair)
    loss = cam.classification_loss(net, (pair, labels))["loss"]
    loss.backward()
    backbone = net.backbone
    return {
        "out_stage_shapes": np.array([stage.shape[1:] for stage in stages]),
        **{f"out_stage{number}_mean": stage.mean((2, 3)).numpy() for number, stage in enumerate(stages, start=1)},
        "out_cam": (maps[0] + maps[1].flip(-1)).numpy(),
        "out_logits": logits.numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_classifier": net.classifier.weight.grad[:, :64, 0, 0].numpy(),
        "out_grad_layer4_2_bn3_weight": backbone.layer4[2].bn3.weight.grad.numpy(),
        "out_grad_layer3_0_conv1": backbone.layer3[0].conv1.weight.grad[:32, :32, 0, 0].numpy(),
    }


class GivenGradients(torch.utils.data.Dataset):
    """One sample an epoch, so that with batches of one image the epoch is the step: the gradients of that step."""

    def __init__(self, *gradients: np.ndarray):
        self.gradients = gradients

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        return tuple(tensor(gradient[key[0]]) for gradient in self.gradients)


def poly_sgd(case: Arrays) -> Arrays:
    """The library's training loop on a loss that is linear in two parameters, so that the gradients are those given."""
    net = torch.nn.Module()
    net.p, net.q = (torch.nn.Parameter(tensor(case[name]).clone()) for name in ("in_p0", "in_q0"))
    lr, weight_decay = case["in_lr"].item(), case["in_weight_decay"].item()
    steps, max_step = len(case["in_grad_p"]), int(case["in_max_step"])
    momentum = weight_decay  # the program hands it over where SGD expects the momentum
    rates, before = [], []

    def schedule(step: int, _: int) -> float:
        factor = training.poly_factor(min(step, max_step - 1), max_step)  # the official rate stays at its last value
        rates.append([factor * lr, factor * 10 * lr])
        return factor

    def loss_of(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        before.append((model.p.detach().numpy().copy(), model.q.detach().numpy().copy()))
        return {"loss": (model.p * batch[0][0]).sum() + (model.q * batch[1][0]).sum()}

    groups = [
        {"params": [net.p], "lr": lr, "weight_decay": weight_decay},
        {"params": [net.q], "lr": 10 * lr, "weight_decay": weight_decay},
    ]
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            net,
            loss_of,
            GivenGradients(case["in_grad_p"], case["in_grad_q"]),
            groups,
            momentum,
            steps,
            1,
            Config(num_workers=0, checkpoint_every=10 * steps),
            Path(folder),
            schedule,
        )
    after = [*before[1:], (net.p.detach().numpy(), net.q.detach().numpy())]
    return {
        "out_lr": np.array(rates),
        "out_p": np.stack([p for p, _ in after]),
        "out_q": np.stack([q for _, q in after]),
        "out_effective_momentum": np.float64(momentum),
    }


def preprocess(case: Arrays) -> Arrays:
    image, label = Image.fromarray(case["in_image"]), case["in_label"]
    normalized = transforms.normalize(image, *normalization_of("resnet50"))
    side, random_side = int(case["in_crop"]), int(case["in_random_crop"])
    top_left_label = transforms.top_left_crop(label, side, 255)
    boxes = [transforms.crop_box(label.shape, random_side, random.Random(seed)) for seed in range(4)]
    result = {
        "out_normalized": normalized,
        "out_top_left_image": transforms.top_left_crop(normalized, side, 0),
        "out_top_left_label": top_left_label,
        "out_quarter_label": transforms.quarter_label(top_left_label),
        "out_crop_boxes": np.array(boxes),
        "out_crop_labels": np.stack([transforms.crop(label, box, random_side, 255) for box in boxes]),
    }
    for seed, box in enumerate(boxes):
        result[f"out_crop_image_sum_{seed}"] = transforms.crop(normalized, box, random_side, 0).sum()
    for name in (key for key in case if key.startswith("in_scale_")):
        scale, number = float(str(case[name])), name.removeprefix("in_scale_")  # the decimals, not the float32
        result[f"out_resized_{number}"] = np.asarray(transforms.resize_image(image, scale))
        result[f"out_label_{number}"] = transforms.resize_label(label, scale)
    return result


# ---- IRN


def path_index(case: Arrays) -> Arrays:
    out = {}
    for number in sorted(int(key.rsplit("_", 1)[1]) for key in case if key.startswith("in_radius_")):
        radius, size = int(case[f"in_radius_{number}"]), tuple(map(int, case[f"in_size_{number}"]))
        paths, index = affinity.search_paths(radius), affinity.path_index(radius, size)
        lengths = np.array([len(path.points) for path in paths])
        group_lengths, group_counts = np.unique(lengths, return_counts=True)
        result = {
            "radius_floor": radius - 1,
            "destinations": [path.destination for path in paths],
            "path_length": lengths,
            "path_coords": np.concatenate([path.points for path in paths]),
            "src_indices": index.source,
            "dst_indices": index.destination,
            "group_lengths": group_lengths,
            "group_counts": group_counts,
        }
        if radius < 10:
            result["path_indices_flat"] = np.concatenate([points.flatten() for points in index.paths])
        out |= {f"out_{key}_{number}": np.asarray(value) for key, value in result.items()}
    return out


def edge_to_affinity(case: Arrays) -> Arrays:
    result = affinity.edge_to_affinity(tensor(case["in_edge"]), int(case["in_radius"]))
    return {"out_affinity": result.numpy()}


def affinity_labels(case: Arrays) -> Arrays:
    labels = affinity.affinity_labels(tensor(case["in_label"]), int(case["in_radius"]), num_classes=21)
    return {f"out_{name}": mask.float().numpy() for name, mask in labels._asdict().items()}


def affinity_loss(case: Arrays) -> Arrays:
    radius = int(case["in_radius"])
    edge_logit = tensor(case["in_edge_logit"]).requires_grad_()
    displacement = tensor(case["in_displacement"]).requires_grad_()
    losses = affinity.affinity_loss(edge_logit, displacement, tensor(case["in_label"]), radius, num_classes=21)
    losses.total.backward()
    return {
        "out_affinity": affinity.edge_to_affinity(edge_logit.detach().sigmoid()[:, 0], radius).numpy(),
        "out_pair_displacement": affinity.pair_displacement(displacement.detach(), radius).numpy(),
        "out_disp_target": affinity.displacement_target(radius).numpy(),
        "out_pos_aff_loss": losses.pos.detach().numpy(),
        "out_neg_aff_loss": losses.neg.detach().numpy(),
        "out_dp_fg_loss": losses.dp_fg.detach().numpy(),
        "out_dp_bg_loss": losses.dp_bg.detach().numpy(),
        "out_total": losses.total.detach().numpy(),
        "out_grad_edge_logit": edge_logit.grad.numpy(),
        "out_grad_displacement": displacement.grad.numpy(),
    }


def walk(case: Arrays) -> Arrays:
    cam, edge = tensor(case["in_cam"]), tensor(case["in_edge"])[0]
    radius, beta, log2_steps = int(case["in_radius"]), float(case["in_beta"]), int(case["in_exp_times"])
    transition = random_walk.affinity_graph(edge, radius, beta).matrix().to_dense()
    transition = transition / transition.sum(0)
    return {
        "out_affinity_dense": random_walk.affinity_graph(edge, radius).matrix().to_dense().numpy(),
        "out_transition_first_row": transition[0].numpy(),
        "out_transition_first_col": transition[:, 0].numpy(),
        "out_walk": random_walk.propagate(cam, edge, radius, beta, log2_steps)[:, None].numpy(),
        "out_walk_r3_b5_e2": random_walk.propagate(cam, edge, radius=3, beta=5, log2_steps=2)[:, None].numpy(),
    }


def sem_seg(case: Arrays) -> Arrays:
    cam, size = tensor(case["in_cam"]), tuple(map(int, case["in_size"]))
    edge = tensor(case["in_edge"]).reshape(cam.shape[1:])
    result = random_walk.propagate(cam, edge, int(case["in_radius"]), float(case["in_beta"]), int(case["in_exp_times"]))
    label = random_walk.pseudo_mask(result, case["in_keys"], size, float(case["in_bg_threshold"]))
    return {
        "out_walk": result[:, None].numpy(),
        "out_score": random_walk.walk_scores(result, size).numpy(),
        "out_label": label.numpy(),
    }


def irn_net(case: Arrays) -> Arrays:
    net = IRN(build_backbone("resnet50", output_stride=16, weights="none"))
    load_recipe(net, **{"mean_shift.running_mean": tensor(case["in_running_mean"])})

    image, side = tensor(case["in_image"])[0], int(case["in_crop"])
    pair = torch.stack([image, image.flip(-1)])
    pair = F.pad(pair, (0, side - image.shape[2], 0, side - image.shape[1]))
    with torch.no_grad():
        _, train_mode = net.train()(pair)
        edge_logit, displacement = net.eval()(pair)
    edge, cut_displacement = net.predict(image, pad_to=side)
    return {
        "out_edge": edge[None].numpy(),
        "out_displacement": cut_displacement.numpy(),
        "out_edge_logit_raw": edge_logit.numpy(),
        "out_displacement_raw": displacement.numpy(),
        "out_displacement_train_mode": train_mode.numpy(),
    }


# ---- DeepLab-v2, CRF, evaluation


def official_weights(arrays: Arrays) -> dict[str, torch.Tensor]:
    """The `weight_*` arrays of one block or stem under torchvision's names."""
    state = {}
    for key, value in arrays.items():
        if key.startswith("weight_"):
            module, field = key.removeprefix("weight_").rsplit(".", 1)
            state[f"{BLOCK_NAMES[module]}.{field}"] = tensor(value)
    return state


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
    backbone = ResNet(
        Bottleneck, (3, 4, 23, 3), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), stride_in_1x1=True, ceil_mode=True
    )
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
    factor = np.array([training.poly_factor(t, total, power, every) for t in range(rows)])
    result = {"out_lr_short": base * factor[:, None] * np.array([1, 10, 20])}
    if "in_voc_points" in a:
        result["out_voc_lr"] = np.array([2.5e-4 * training.poly_factor(int(t), 20000, every=10) for t in a["in_voc_points"]])
    total = a["in_v3_max"].item()
    smooth = np.array([training.poly_factor(t, total) for t in range(total + 1)])
    result["out_v3_lr"] = np.maximum(smooth[:, None] * np.array([0.001, 0.01]), a["in_v3_min_lr"])
    return result


def resize_label_maps(a: Arrays) -> Arrays:
    sizes = {key.removeprefix("in_size"): int(value) for key, value in a.items() if key.startswith("in_size")}
    return {f"out_label{i}": resize_labels(tensor(a["in_label"]), (side, side)).numpy() for i, side in sizes.items()}


def augment(a: Arrays) -> Arrays:
    mean = np.float32([104.008, 116.669, 122.675])  # BGR
    result = {}
    for i in sorted(key.removeprefix("in_image") for key in a if key.startswith("in_image")):
        image, label = transforms.scale_crop_flip(
            a[f"in_image{i}"],
            a[f"in_label{i}"],
            a[f"in_scale{i}"].item(),
            int(a[f"in_top{i}"]),
            int(a[f"in_left{i}"]),
            bool(a[f"in_flip{i}"]),
            int(a[f"in_crop{i}"]),
            tuple(mean),
        )
        result |= {f"out_image{i}": (image - mean).transpose(2, 0, 1), f"out_label{i}": label}
    return result


def crf(a: Arrays) -> Arrays:
    image = a["in_image_rgb_uint8"]
    logits = F.interpolate(tensor(a["in_logits_low"])[None], size=image.shape[:2], mode="bilinear", align_corners=False)
    probabilities = logits.softmax(1)[0].numpy()
    parameters = {
        "iterations": a["in_iter"].item(),
        "gaussian_sxy": a["in_pos_xy"].item(),
        "gaussian_compat": a["in_pos_w"].item(),
        "bilateral_sxy": a["in_bi_xy"].item(),
        "bilateral_srgb": a["in_bi_rgb"].item(),
        "bilateral_compat": a["in_bi_w"].item(),
    }
    q = crf_from_probabilities(image, probabilities, **parameters)
    wrapped = crf_from_probabilities(a["in_image_meansub_wrapped_bgr_uint8"], probabilities, **parameters)
    return {
        "out_prob": probabilities,
        "out_q": q,
        "out_label": q.argmax(0),
        "out_label_nocrf": probabilities.argmax(0),
        "out_label_wrapped": wrapped.argmax(0),
    }


def miou(a: Arrays) -> Arrays:
    confusion = confusion_matrix(a["in_gt"], a["in_pred"], 21)
    result = scores(confusion)
    return {
        "out_confusion": confusion,
        "out_class_iou_nan": result.iou,
        "out_miou_valid_only": np.float64(scores(confusion, "present").miou),
        "out_miou_nanmean": np.float64(result.miou),
        "out_miou_chainercv": np.float64(result.miou),
        "out_pixel_acc": np.float64(result.pixel_accuracy),
        "out_mean_acc": np.float64(result.mean_accuracy),
        "out_fw_iou": np.float64(result.frequency_weighted_iou),
    }


def palette(case: Arrays) -> Arrays:
    result = {"out_palette": voc_palette()}
    for labels in (value for name, value in case.items() if name.startswith("in_")):  # a label map: its colors
        names = [name for name in case if name.startswith("out_") and name not in result] or ["out_colors"]
        result |= {name: voc_palette()[labels] for name in names}
    return result


def crf_label(a: Arrays) -> Arrays:
    inputs = a["in_image"], a["in_labels"], int(a["in_n_labels"])
    return {
        "out_t10": crf_from_labels(*inputs),
        "out_t1": crf_from_labels(*inputs, iterations=1),
        "out_t10_gt09": crf_from_labels(*inputs, certainty=0.9),
    }


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
    "data__voc_palette": palette,
    "deeplab__aspp_v2": aspp_v2,
    "deeplab__augment": augment,
    "deeplab__balanced_ce": balanced_ce,
    "deeplab__bottleneck_dilated": bottleneck,
    "deeplab__bottleneck_down": bottleneck,
    "deeplab__crf": crf,
    "deeplab__miou": miou,
    "deeplab__msc_fusion": msc_fusion,
    "deeplab__msc_loss": msc_loss,
    "deeplab__poly_lr": poly_lr,
    "deeplab__resize_labels": resize_label_maps,
    "deeplab__stem": stem,
    "deeplab__v2_forward": v2_forward,
    "irn__affinity_labels": affinity_labels,
    "irn__affinity_loss": affinity_loss,
    "irn__cam_net": cam_net,
    "irn__crf_label": crf_label,
    "irn__edge_to_affinity": edge_to_affinity,
    "irn__ir_label": ir_label,
    "irn__irn_net": irn_net,
    "irn__merge_scales": merge_scales,
    "irn__path_index": path_index,
    "irn__poly_sgd": poly_sgd,
    "irn__preprocess": preprocess,
    "irn__random_walk": walk,
    "irn__sem_seg": sem_seg,
}

# How the arrays of a case must agree: (pattern of the array's name, kind, limit), the first pattern that fits counts.
# "absolute": |difference| <= limit everywhere, NaN equal to NaN. "relative": |difference| <= limit * |expected|.
# "of maximum": |difference| <= limit * max|expected|. "equal": at least this share of the elements is equal; 1 is exact.
# "partition": the columns of each of `limit` classes are equal but for their order. "ignored": probabilities of the
# approximate CRF filter.
TOLERANCE: dict[str, tuple[tuple[str, str, float], ...]] = {
    "data__voc_palette": (("*", "equal", 1),),
    "deeplab__aspp_v2": (("*", "absolute", 1e-4),),
    "deeplab__augment": (("out_label*", "equal", 1), ("*", "absolute", 1e-2)),
    "deeplab__balanced_ce": (("*", "absolute", 1e-5),),
    "deeplab__bottleneck_dilated": (("*", "absolute", 1e-4),),
    "deeplab__bottleneck_down": (("*", "absolute", 1e-4),),
    "deeplab__crf": (
        ("out_prob", "absolute", 1e-5),
        ("out_q", "ignored", 0),
        ("out_label_nocrf", "equal", 1),
        ("out_label*", "equal", 0.995),
    ),
    "deeplab__miou": (("out_confusion", "equal", 1), ("*", "absolute", 1e-6)),
    "deeplab__msc_fusion": (("*", "absolute", 1e-5),),
    "deeplab__msc_loss": (("*", "absolute", 1e-5),),
    "deeplab__poly_lr": (("*", "relative", 1e-6),),
    "deeplab__resize_labels": (("*", "equal", 1),),
    "deeplab__stem": (("*", "absolute", 1e-4),),
    "deeplab__v2_forward": (("out_layer_shapes", "equal", 1), ("*", "absolute", 1e-3)),
    "irn__affinity_labels": (("*", "equal", 1),),
    "irn__affinity_loss": (("*", "absolute", 1e-6),),
    "irn__cam_net": (("out_stage_shapes", "equal", 1), ("out_grad*", "absolute", 1e-4), ("*", "absolute", 1e-3)),
    "irn__crf_label": (("*", "equal", 0.995),),
    "irn__edge_to_affinity": (("*", "absolute", 1e-6),),
    "irn__ir_label": (("out_*_argmax_*", "equal", 1), ("*", "equal", 0.995)),
    "irn__irn_net": (("*", "absolute", 1e-3),),
    "irn__merge_scales": (("out_keys", "equal", 1), ("*", "absolute", 1e-6)),
    "irn__path_index": (("*", "equal", 1),),
    "irn__poly_sgd": (("*", "absolute", 1e-5),),
    "irn__preprocess": (
        ("out_resized*", "absolute", 1),
        ("out_normalized", "absolute", 1e-5),
        ("out_top_left_image", "absolute", 1e-5),
        ("out_crop_image_sum*", "relative", 1e-4),
        ("*", "equal", 1),
    ),
    "irn__random_walk": (("out_walk", "absolute", 5e-5), ("*", "absolute", 1e-5)),
    "irn__sem_seg": (("out_walk", "absolute", 5e-5), ("out_score", "absolute", 1e-4), ("out_label", "equal", 0.995)),
}

for cases in (golden_amn, golden_data, golden_drs, golden_psa, golden_rib, golden_sccam, golden_vwe):
    ADAPTERS |= cases.ADAPTERS
    TOLERANCE |= cases.TOLERANCE


def disagreement(case: str, name: str, expected: np.ndarray, ours: np.ndarray) -> str:
    """Say how one array of a case differs by more than its tolerance; empty if it agrees."""
    kind, limit = next(rule[1:] for rule in TOLERANCE[case] if fnmatchcase(name, rule[0]))
    expected, ours = np.asarray(expected), np.asarray(ours)
    if expected.shape != ours.shape:
        return f"{name}: shape {ours.shape} instead of {expected.shape}"
    if kind == "equal":
        share = float(np.mean(expected == ours)) if expected.size else 1.0
        return "" if share >= limit else f"{name}: only {share:.3%} of the elements are equal"
    if kind == "partition":
        columns = [
            [sorted(map(tuple, of_class.T.tolist())) for of_class in np.split(table, limit, axis=1)]
            for table in (expected, ours)
        ]
        return "" if columns[0] == columns[1] else f"{name}: the images of a class are divided in another way"
    expected, ours = expected.astype(np.float64), ours.astype(np.float64)
    difference = np.where(np.isnan(expected) & np.isnan(ours), 0, np.abs(expected - ours))
    largest = np.abs(expected).max(initial=0)
    # A millionth of the largest value is the rounding of float32 sums, in whose order processors and numbers of threads differ.
    allowed = {
        "absolute": limit,
        "relative": limit * np.abs(expected) + 1e-6 * largest,
        "of maximum": limit * largest,
        "ignored": np.inf,
    }[kind]
    return "" if (difference <= allowed).all() else f"{name}: differs by up to {difference.max():.3g} (allowed: {kind} {limit})"
