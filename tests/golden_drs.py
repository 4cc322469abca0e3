"""Golden cases of DRS and of DeepLab-v3+: adapters and tolerances, merged by tests/golden_adapters.py."""

import re
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tests.golden_weights import recipe, tensor
from wsss_lib.data import transforms
from wsss_lib.methods import drs
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.nets.deeplab_v2 import self_label_loss, self_labels
from wsss_lib.nets.deeplab_v3plus import DeepLabV3Plus, build_dilated_backbone
from wsss_lib.nets.vgg import VGG
from wsss_lib.ops.metrics import confusion_matrix, scores

Arrays = dict[str, np.ndarray]
NUM_CLASSES = 20


def official_name(name: str) -> str:
    """Translate a parameter name of `drs.ScoreNet` on a VGG-16 into the official one."""
    if match := re.fullmatch(r"backbone\.features\.(\d+)\.controller\.weight", name):
        place = int(match[1]) - 1  # of the convolution before it
        stage, number = next(
            (stage, indices.index(place) + 1)
            for stage, indices in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), start=1)
            if place in indices
        )
        return f"layer{stage}_relu{number}.fc.0.weight"
    name = re.sub(r"^activations\.(\d)\.controller", lambda match: f"extra_relu{int(match[1]) + 1}.fc.0", name)
    name = re.sub(r"^extra\.(\d)", lambda match: f"extra_conv{int(match[1]) + 1}", name)
    return name.replace("classifier.", "extra_conv4.").removeprefix("backbone.")


def load_recipe(net: torch.nn.Module, seed: int, official: Callable[[str], str] = str) -> torch.nn.Module:
    net.load_state_dict(
        {name: tensor(recipe(official(name), tuple(value.shape), seed)) for name, value in net.state_dict().items()}
    )
    return net.eval()


def score_net(seed: int, delta: float, extra_std: float = 0.0) -> drs.ScoreNet:
    return load_recipe(drs.ScoreNet(VGG(), NUM_CLASSES, delta, extra_std=extra_std), seed, official_name)


def module_learnable(a: Arrays) -> Arrays:
    x = tensor(a["in_x"]).requires_grad_()
    module = drs.Suppression(x.shape[1], delta=0)
    module.controller.weight.data = tensor(a["weight_fc.0.weight"])
    y = module(x)
    (y * tensor(a["in_grad_y"])).sum().backward()
    return {
        "out_y": y.detach().numpy(),
        "out_max": x.detach().relu().amax((2, 3)).numpy(),
        "out_control": module.control(x)[..., 0, 0].detach().numpy(),
        "out_grad_x": x.grad.numpy(),
        "out_grad_fc.0.weight": module.controller.weight.grad.numpy(),
    }


def module_fixed(a: Arrays) -> Arrays:
    result = {}
    for i in sorted(key.removeprefix("in_delta") for key in a if key.startswith("in_delta")):
        x = tensor(a["in_x"]).requires_grad_()
        y = drs.Suppression(x.shape[1], a[f"in_delta{i}"].item())(x)
        (y * tensor(a["in_grad_y"])).sum().backward()
        result |= {f"out_y{i}": y.detach().numpy(), f"out_grad_x{i}": x.grad.numpy()}
    return result


def controller_grad(a: Arrays) -> Arrays:
    width, inputs = a["weight_conv_weight"].shape[:2]
    convolution = torch.nn.Conv2d(inputs, width, 3, padding=1)
    module, head = drs.Suppression(width, delta=0), torch.nn.Conv2d(width, len(a["weight_cls_bias"]), 1)
    for target, name in (
        (convolution.weight, "conv_weight"),
        (convolution.bias, "conv_bias"),
        (module.controller.weight, "fc.0.weight"),
        (head.weight, "cls_weight"),
        (head.bias, "cls_bias"),
    ):
        target.data = tensor(a[f"weight_{name}"])
    net = torch.nn.Sequential(convolution, module, head)
    images, labels = tensor(a["in_x"]), tensor(a["in_label"])
    loss = drs.classification_loss(net, (images, labels))["loss"]
    loss.backward()
    return {
        "out_logit": net(images).mean((2, 3)).detach().numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_fc.0.weight": module.controller.weight.grad.numpy(),
        "out_grad_conv_weight": convolution.weight.grad.numpy(),
    }


def recipe_probe(a: Arrays) -> Arrays:
    net = drs.ScoreNet(VGG(), NUM_CLASSES, delta=0)
    seed = int(a["in_seed"])
    values = {
        official_name(name): recipe(official_name(name), tuple(value.shape), seed).ravel()[:4]
        for name, value in net.state_dict().items()
    }
    return {f"out_{name}": value for name, value in values.items()}


@torch.inference_mode()
def vgg_forward(a: Arrays) -> Arrays:
    net = score_net(int(a["in_seed"]), a["in_delta"].item())
    images, labels = tensor(a["in_image"]), a["in_label"]
    layers = net.backbone.stages(images)
    features = layers[-1]
    for convolution, activation in zip(net.extra, net.activations, strict=True):
        features = activation(convolution(features))
    scores_ = net.classifier(features)
    layers += [features, scores_]
    cams = [
        drs.class_maps(score[np.flatnonzero(label)], images.shape[-2:])
        for score, label in zip(net(images), labels, strict=True)
    ]
    return {
        "out_logit": scores_.mean((2, 3)).numpy(),
        "out_score_map": scores_.numpy(),
        "out_cam_img0": cams[0].numpy(),
        "out_cam_img1": cams[1].numpy(),
        "out_layer_mean_absmax": np.array([[float(z.mean()), float(z.abs().max())] for z in layers], np.float32),
    }


def cam_normalize(a: Arrays) -> Arrays:
    size = tuple(a["in_size"].tolist())
    return {
        "out_cam": np.stack(
            [
                drs.class_maps(tensor(score), size).numpy() * label[:, None, None]
                for score, label in zip(a["in_score_map"], a["in_label"], strict=True)
            ]
        )
    }


@torch.inference_mode()
def localization_map(a: Arrays) -> Arrays:
    net = score_net(int(a["in_seed"]), delta=0)
    crop, images = int(a["in_crop"]), tensor(a["in_image"])
    classes = torch.from_numpy(np.flatnonzero(a["in_label"][0]))
    sides = a["in_scales"].tolist()
    (fused,) = drs.fused_maps(net, images, [classes], sides, (crop, crop), normalized=True)
    single = [drs.fused_maps(net, images, [classes], [side], (crop, crop), normalized=True)[0].numpy() for side in sides]
    return {
        "out_cam_per_scale": np.stack(single),
        "out_map": fused.numpy(),
        "out_channels": classes.numpy(),
        "out_map_uint8": (255 * fused.numpy()).astype(np.uint8),
    }


def refine_loss(a: Arrays) -> Arrays:
    target = drs.refinement_target(tensor(a["in_att_uint8"]).float() / 255)
    answer = tensor(a["in_pred"]).requires_grad_()
    loss = drs.refinement_loss(torch.nn.Identity(), (answer, target))["loss"]
    loss.backward()
    return {"out_target": target.numpy(), "out_loss": loss.detach().numpy(), "out_grad_pred": answer.grad.numpy()}


@torch.inference_mode()
def refine_forward(a: Arrays) -> Arrays:
    net = score_net(int(a["in_seed"]), delta=1, extra_std=0.01)
    images = tensor(a["in_image"])
    answer = net(images)
    training = torch.stack([drs.resize_aligned(score, images.shape[-2:]) for score in answer])
    channels = np.arange(0, NUM_CLASSES, 5)  # the case keeps every fifth class
    result = {"out_map_train": training[:, channels].numpy(), "out_train_channels": channels}
    for index, label in enumerate(a["in_label"]):
        chosen = answer[index, np.flatnonzero(label)]
        result[f"out_map_infer_img{index}"] = drs.resize_aligned(chosen, tuple(a["in_size"].tolist())).numpy()
    return result


def pseudo_label(a: Arrays) -> Arrays:
    labels = [
        drs.pseudo_label(maps, a["in_channels"], saliency, a["in_alpha"].item(), int(a["in_sal_threshold"]))
        for maps, saliency in zip(a["in_maps"], a["in_saliency_uint8"], strict=True)
    ]
    return {
        "out_label": np.stack([label.mask for label in labels]),
        "out_label_eval": np.stack([label.decided for label in labels]),
    }


def lr_schedule(a: Arrays) -> Arrays:
    result = {}
    for name, epochs in (("cls", 15), ("refine", 30)):
        points, base = a[f"in_{name}_points"].tolist(), a[f"in_{name}_base"].item()
        factor = np.array([drs.staircase(epoch, points) for epoch in range(1, epochs + 1)])
        result[f"out_{name}_epoch_lr"] = base * factor[:, None] * np.array([1, 10])
    return result


def iou_metric(a: Arrays) -> Arrays:
    result = scores(confusion_matrix(a["in_gt"], a["in_pred"], NUM_CLASSES + 1))
    return {
        "out_mean_iou": np.float64(result.miou),
        "out_pixel_acc": np.float64(result.pixel_accuracy),
        "out_mean_acc": np.float64(result.mean_accuracy),
        "out_fw_iou": np.float64(result.frequency_weighted_iou),
        "out_class_iou_nan": result.iou,
    }


def selftrain_loss(a: Arrays) -> Arrays:
    logits, image_labels = tensor(a["in_logit"]).requires_grad_(), tensor(a["in_image_label21"])
    loss = self_label_loss(logits, tensor(a["in_label"]), image_labels)
    loss.backward()
    return {
        "out_pseudo": self_labels(logits, image_labels).numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_logit": logits.grad.numpy(),
    }


def preprocess(a: Arrays) -> Arrays:
    side = int(a["in_side"])
    resized = transforms.resize_square(Image.fromarray(a["in_image_uint8"]), side)
    normalized = transforms.normalize(resized, *normalization_of("resnet50"))
    label = Image.fromarray(a["in_label_uint8"]).resize((side, side), Image.Resampling.NEAREST)
    return {
        "out_resized_uint8": np.asarray(resized),
        "out_tensor": transforms.to_tensor(normalized).numpy(),
        "out_label_nearest": np.asarray(label),
    }


# ---- DeepLab-v3+


@torch.inference_mode()
def v3plus_forward(a: Arrays) -> Arrays:
    stride = int(a["in_output_stride"])
    rates = {16: (6, 12, 18), 8: (12, 24, 36)}[stride]
    net = load_recipe(DeepLabV3Plus(build_dilated_backbone("resnet101", stride), NUM_CLASSES + 1, rates), int(a["in_seed"]))
    image = tensor(a["in_image"])
    features = net.backbone.stages(image)
    pooled, logits = net.classifier.aspp(features[-1]), net(image)
    layers = [features[1], features[-1], pooled, logits]
    full = F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)
    return {
        "out_shapes": np.array([list(layer.shape) for layer in layers], np.int32),
        "out_mean_absmax": np.array([[float(z.mean()), float(z.abs().max())] for z in layers], np.float32),
        "out_aspp_first16": pooled[:, :16].numpy(),
        "out_logits_stride4": logits.numpy(),
        "out_logits_full_first5": full[:, :5].numpy(),
    }


def v3plus_crop(a: Arrays) -> Arrays:
    result = {}
    for i in sorted(key.removeprefix("in_image") for key in a if key.startswith("in_image")):
        top, left, side = (int(a[f"in_{name}{i}"]) for name in ("top", "left", "crop"))
        padded = transforms.pad_all_sides(a[f"in_image{i}"], a[f"in_label{i}"], side, label_fill=0)
        image, label = (part[top : top + side, left : left + side] for part in padded)
        result |= {f"out_image{i}": image, f"out_label{i}": label}
    return result


ADAPTERS: dict[str, Callable[[Arrays], Arrays]] = {
    "deeplab__v3plus_crop": v3plus_crop,
    "deeplab__v3plus_forward_os16": v3plus_forward,
    "deeplab__v3plus_forward_os8": v3plus_forward,
    "drs__cam_normalize": cam_normalize,
    "drs__controller_grad": controller_grad,
    "drs__iou_metric": iou_metric,
    "drs__localization_map": localization_map,
    "drs__lr_schedule": lr_schedule,
    "drs__module_fixed": module_fixed,
    "drs__module_learnable": module_learnable,
    "drs__preprocess": preprocess,
    "drs__pseudo_label": pseudo_label,
    "drs__recipe_probe": recipe_probe,
    "drs__refine_forward": refine_forward,
    "drs__refine_loss": refine_loss,
    "drs__selftrain_loss": selftrain_loss,
    "drs__vgg_forward_fixed": vgg_forward,
    "drs__vgg_forward_learnable": vgg_forward,
}

TOLERANCE: dict[str, tuple[tuple[str, str, float], ...]] = {
    "deeplab__v3plus_crop": (("*", "equal", 1),),
    "deeplab__v3plus_forward_os16": (("out_shapes", "equal", 1), ("*", "absolute", 1e-3)),
    "deeplab__v3plus_forward_os8": (("out_shapes", "equal", 1), ("*", "absolute", 1e-3)),
    "drs__cam_normalize": (("*", "absolute", 1e-5),),
    "drs__controller_grad": (("*", "absolute", 1e-5),),
    "drs__iou_metric": (("*", "absolute", 1e-6),),
    "drs__localization_map": (("out_channels", "equal", 1), ("out_map_uint8", "equal", 0.99), ("*", "absolute", 1e-4)),
    "drs__lr_schedule": (("*", "relative", 1e-6),),
    "drs__module_fixed": (("*", "absolute", 1e-5),),
    "drs__module_learnable": (("out_grad*", "absolute", 1e-4), ("*", "absolute", 1e-5)),
    "drs__preprocess": (("out_resized_uint8", "equal", 1), ("out_label_nearest", "equal", 1), ("*", "absolute", 1e-5)),
    "drs__pseudo_label": (("*", "equal", 1),),
    "drs__recipe_probe": (("*", "equal", 1),),
    "drs__refine_forward": (("out_train_channels", "equal", 1), ("*", "absolute", 1e-3)),
    "drs__refine_loss": (("*", "absolute", 1e-6),),
    "drs__selftrain_loss": (("out_pseudo", "equal", 1), ("*", "absolute", 1e-5)),
    "drs__vgg_forward_fixed": (("*", "absolute", 1e-3),),
    "drs__vgg_forward_learnable": (("*", "absolute", 1e-3),),
}
