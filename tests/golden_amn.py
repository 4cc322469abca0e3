"""Golden cases of AMN: adapters and tolerances, joined to the others by `tests.golden_adapters`."""

from collections.abc import Callable

import numpy as np
import torch

from wsss_lib.methods import amn
from wsss_lib.ops import random_walk
from wsss_lib.ops.merging import stride4_size
from wsss_lib.ops.metrics import scores
from wsss_lib.ops.seeds import argmax_with_background, irn_labels, seed_mask
from wsss_lib.ops.thresholds import ImageThresholds

Arrays = dict[str, np.ndarray]


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def head_of(case: Arrays) -> amn.ConditionedHead:
    """The head with the weights of the case, dropout off."""
    weight = case["weight_label_enc.weight"]  # (D, K)
    head = amn.ConditionedHead(*weight.shape)
    official = {"label_encoder": "label_enc", "aspp": "classifier.1"}
    head.load_state_dict(
        {
            name: tensor(case[f"weight_{official[part]}.{rest}"])
            for name in head.state_dict()
            for part, rest in [name.split(".", 1)]
        }
    )
    return head.eval()


def balanced_ce(case: Arrays) -> Arrays:
    logits, labels = tensor(case["in_logits"]).requires_grad_(), tensor(case["in_labels"])
    smoothing = case["in_eps"].item()
    target = amn.smoothed_target(labels, logits.shape[1], smoothing)
    losses = amn.balanced_loss(logits, labels, smoothing)
    losses["loss"].backward()
    return {
        "out_target": target.numpy(),
        "out_pixel_loss": amn.pixel_losses(logits, target).detach().numpy(),
        "out_loss_bg": losses["background"].detach().numpy(),
        "out_loss_fg": losses["object"].detach().numpy(),
        "out_loss": losses["loss"].detach().numpy(),
        "out_grad_logits": logits.grad.numpy(),
    }


def resize_labels(case: Arrays) -> Arrays:
    size = tuple(case["in_size"].tolist())
    labels = np.stack([amn.seed_on_grid(label.astype(np.uint8), size) for label in case["in_labels"]])
    rows = np.arange(case["in_labels"].shape[1], dtype=np.uint8)[:, None]  # a map of its own row numbers
    return {"out_labels": labels, "out_sampled_index": amn.seed_on_grid(rows, (size[0], 1))[:, 0]}


def label_conditioning(case: Arrays) -> Arrays:
    head, features = head_of(case), tensor(case["in_features"]).requires_grad_()
    image_labels = tensor(case["in_image_labels"])
    logits = head(features, image_labels)
    loss = amn.balanced_loss(logits, tensor(case["in_labels"]), case["in_eps"].item())["loss"]
    loss.backward()
    encoder, aspp = head.label_encoder, head.aspp
    return {
        "out_condition_vector": encoder(image_labels).detach().numpy(),
        "out_logits": logits.detach().numpy(),
        "out_loss": loss.detach().numpy(),
        "out_grad_features": features.grad.numpy(),
        "out_grad_label_enc.weight": encoder.weight.grad.numpy(),
        "out_grad_label_enc.bias": encoder.bias.grad.numpy(),
        "out_grad_classifier.1.c0.weight": aspp.c0.weight.grad.numpy(),
        "out_grad_classifier.1.c3.bias": aspp.c3.bias.grad.numpy(),
    }


@torch.inference_mode()
def make_cam(case: Arrays) -> Arrays:
    head, image_label, size = head_of(case), tensor(case["in_image_label"]), tuple(case["in_size"].tolist())
    classes = image_label.nonzero()[:, 0]
    logits = [
        amn.merge_flipped(head(tensor(case[f"in_feat_{number}"]), image_label.expand(2, -1)))
        for number in range(len(case["in_scales"]))
    ]
    seed = case["in_seed"].astype(np.uint8)
    strided = amn.seed_on_grid(seed, stride4_size(size))
    return {
        "out_keys": classes.numpy(),
        "out_seed_strided": strided,
        **{f"out_merged_logit_{number}": z.numpy() for number, z in enumerate(logits)},
        "out_cam": amn.manipulated_maps(logits, stride4_size(size), classes, tensor(strided)).numpy(),
        "out_high_res": amn.manipulated_maps(logits, size, classes, tensor(seed)).numpy(),
    }


def ir_label(case: Arrays) -> Arrays:
    image, maps, classes = case["in_image"], case["in_high_res"][1:], case["in_keys"]
    thresholds = {kind: case[f"in_conf_{kind}_thres"].item() for kind in ("fg", "bg")}
    result = {"out_ir_label": irn_labels(image, maps, classes, thresholds["fg"], thresholds["bg"])}
    for kind, threshold in thresholds.items():
        result[f"out_{kind}_argmax"] = argmax_with_background(maps, np.arange(len(classes)), threshold)
        result[f"out_{kind}_conf"] = seed_mask(image, maps, classes, threshold)
    return result


def sem_seg(case: Arrays) -> Arrays:
    cam, edge = tensor(case["in_cam"])[1:] ** case["in_power"].item(), tensor(case["in_edge"])[0]
    walk = random_walk.propagate(cam, edge, int(case["in_radius"]), float(case["in_beta"]), int(case["in_exp_times"]))
    mask = random_walk.pseudo_mask(walk, case["in_keys"], tuple(case["in_size"].tolist()), case["in_sem_seg_bg_thres"].item())
    return {"out_random_walk": walk[:, None].numpy(), "out_pseudo_mask": mask.numpy()}


def threshold_sweep(case: Arrays) -> Arrays:
    sweep = ImageThresholds(21, case["in_thresholds"])
    for maps, keys, truth in zip(case["in_cams"], case["in_keys"], case["in_gt"], strict=True):
        sweep.add(truth, maps[keys >= 0], keys[keys >= 0])
    confusions = sweep.confusions()
    threshold, miou = sweep.best()
    return {
        "out_confusion": confusions,
        "out_iou": np.stack([scores(confusion).iou for confusion in confusions]),
        "out_miou": sweep.curve(),
        "out_best_global_threshold": np.float32(threshold),
        "out_best_global_miou": np.float32(miou),
        "out_image_miou": sweep.curves(),
        "out_best_threshold_per_image": sweep.best_thresholds(),
        "out_upper_bound_confusion": sweep.upper_bound_confusion,
        "out_upper_bound_miou": np.float32(sweep.upper_bound()),
    }


ADAPTERS: dict[str, Callable[[Arrays], Arrays]] = {
    "amn__balanced_ce": balanced_ce,
    "amn__ir_label": ir_label,
    "amn__label_conditioning": label_conditioning,
    "amn__make_cam": make_cam,
    "amn__resize_labels": resize_labels,
    "amn__sem_seg": sem_seg,
    "amn__threshold_sweep": threshold_sweep,
}

TOLERANCE: dict[str, tuple[tuple[str, str, float], ...]] = {
    "amn__balanced_ce": (("out_grad*", "absolute", 1e-6), ("*", "absolute", 1e-5)),
    "amn__ir_label": (("out_*_argmax", "equal", 1), ("*", "equal", 0.995)),
    "amn__label_conditioning": (("out_logits", "absolute", 1e-4), ("*", "absolute", 1e-5)),
    "amn__make_cam": (("out_keys", "equal", 1), ("out_seed_strided", "equal", 1), ("*", "absolute", 1e-5)),
    "amn__resize_labels": (("*", "equal", 1),),
    "amn__sem_seg": (("out_random_walk", "absolute", 5e-5), ("out_pseudo_mask", "equal", 0.995)),
    "amn__threshold_sweep": (("out_confusion", "equal", 1), ("out_upper_bound_confusion", "equal", 1), ("*", "absolute", 1e-5)),
}
