"""Golden cases of SC-CAM and its ResNet-38: see golden_adapters.py for the form."""

import zlib
from collections.abc import Callable

import numpy as np
import torch

from wsss_lib.methods import sccam
from wsss_lib.nets.resnet38 import BottleneckBlock, ResBlock, ResNet38
from wsss_lib.ops import merging
from wsss_lib.ops.metrics import confusion_matrix, scores
from wsss_lib.ops.seeds import argmax_with_background

Arrays = dict[str, np.ndarray]

# Constructor arguments of the block cases: (first dilation, dilation, stride).
BLOCKS = {
    "resnet38__resblock_stride2": (None, 1, 2),
    "resnet38__resblock_same": (None, 1, 1),
    "resnet38__resblock_dil": (1, 2, 1),
    "resnet38__resblock_dil2": (None, 2, 1),
}
HEADS = {"classifier": "fc8_20", "subclassifier": "fc8_200"}  # ours: official


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def recipe(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Value of the official tensor `key`, as the golden files define it for whole networks."""
    random = np.random.RandomState((zlib.crc32(key.encode()) + int(seed)) % 2**32)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    normal = random.standard_normal(shape)
    return np.float32(normal / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1 * normal)


def load_recipe(net: torch.nn.Module, seed: int, official: Callable[[str], str]) -> torch.nn.Module:
    """Load the generated weights; `official` maps our parameter names to the official ones."""
    state = {key: tensor(recipe(official(key), tuple(value.shape), seed)) for key, value in net.state_dict().items()}
    net.load_state_dict(state)
    return net.eval()


def load_weights(block: torch.nn.Module, case: Arrays) -> torch.nn.Module:
    state = {key.removeprefix("weight_"): tensor(value) for key, value in case.items() if key.startswith("weight_")}
    missing, foreign = block.load_state_dict(state, strict=False)
    assert not foreign and all(key.endswith("num_batches_tracked") for key in missing), (missing, foreign)
    return block.eval()


@torch.inference_mode()
def block(case: Arrays, first_dilation: int | None, dilation: int, stride: int) -> Arrays:
    middle, inside = case["weight_conv_branch2a.weight"].shape[:2]
    outside = case["weight_conv_branch2b1.weight"].shape[0]
    net = load_weights(ResBlock(inside, middle, outside, stride, first_dilation, dilation), case)
    x = tensor(case["in_x"])
    return {"out_y": net(x).numpy(), "out_preact": net.preactivate(x).numpy()}


@torch.inference_mode()
def bottleneck(case: Arrays) -> Arrays:
    outside, inside = case["weight_conv_branch1.weight"].shape[:2]
    net = load_weights(BottleneckBlock(inside, outside, dilation=4, dropout=0.3), case)
    x = tensor(case["in_x"])
    return {"out_y": net(x).numpy(), "out_preact": net.preactivate(x).numpy()}


def official_name(key: str) -> str:
    part, rest = key.split(".", 1)
    return rest if part == "backbone" else f"{HEADS[part]}.{rest}"


@torch.inference_mode()
def full_network(case: Arrays) -> Arrays:
    """In double precision: the float32 sums of 38 layers differ between processors by more than the official rounding error."""
    net = load_recipe(sccam.SubcategoryNet(ResNet38(), 20, clusters=10), case["in_seed"].item(), official_name).double()
    image = tensor(case["in_image"]).double()
    conv4, conv5, conv6 = net.backbone.stages(image)[2:]
    parents, subs = net(image)
    return {
        "out_conv4": conv4[:, ::16].numpy(),
        "out_conv5": conv5[:, ::32].numpy(),
        "out_conv6": conv6[:, ::128].numpy(),
        "out_feature": conv6.mean((2, 3)).numpy(),
        "out_x20": parents.numpy(),
        "out_y20": parents.sigmoid().numpy(),
        "out_x200": subs.numpy(),
        "out_cam20": net.activation_maps(image).numpy(),
        "out_cam200": net.subcategory_maps(image)[:, ::10].numpy(),
    }


def losses(case: Arrays) -> Arrays:
    parents, subs = (tensor(case[name]).requires_grad_() for name in ("in_x20", "in_x200"))
    loss = sccam.joint_loss(parents, subs, tensor(case["in_label_20"]), tensor(case["in_label_200"]), case["in_weight"].item())
    loss["loss"].backward()
    return {
        "out_loss_20": loss["parent"].detach().numpy(),
        "out_loss_200": loss["sub"].detach().numpy(),
        "out_loss": loss["loss"].detach().numpy(),
        "out_grad_x20": parents.grad.numpy(),
        "out_grad_x200": subs.grad.numpy(),
    }


def subcategory_labels(case: Arrays) -> Arrays:
    """The numbers of the clusters of a class are arbitrary; only the partition is compared."""
    labels, clusters = case["in_labels"], int(case["in_k"])
    assignment = sccam.cluster_images(case["in_features"], labels, clusters)
    order = sccam.class_major_order(labels)
    return {
        "out_order": order,
        "out_label_20": labels[order],
        "out_label_200": sccam.subcategory_labels(assignment, clusters)[order],
    }


def response_maps(case: Arrays) -> Arrays:
    clusters, threshold = int(case["in_k"]), case["in_th"].item()
    classes = case["in_keys"]
    norm20 = normalized(case["in_cams20"])
    norm200 = sccam.normalize_subcategory_maps(tensor(case["in_cams200"]), clusters)
    merged = sccam.merge_subcategory_maps(norm200, clusters).numpy()
    return {
        "out_norm20": norm20,
        "out_seg20": argmax_with_background(norm20, classes, threshold),
        "out_norm200": norm200.numpy(),
        "out_merged200": merged,
        "out_seg200": argmax_with_background(merged, classes, threshold),
        "out_saved_by_official": (norm20 > threshold).astype(np.uint8),
    }  # the defect: 255 where the map is above it


def normalized(passes: np.ndarray) -> np.ndarray:
    """Sum of the passes, image and mirror image in turn and mirrored back already, divided by the maximum of each class."""
    count, size = passes.shape[1], passes.shape[2:]
    pairs = [torch.stack([tensor(passes[i]), tensor(passes[i + 1]).flip(-1)]) for i in range(0, len(passes), 2)]
    return merging.merge_views(merging.join_flips(pairs, torch.arange(count)), size).numpy()


def entropy(case: Arrays) -> Arrays:
    return {"out_entropy": sccam.subcategory_entropy(tensor(case["in_cams200"]), int(case["in_k"])).numpy()}


def evaluation(case: Arrays) -> Arrays:
    truth = np.where(case["in_gt"] < 21, case["in_gt"], 255)
    result = scores(sum(confusion_matrix(gt, pred, 21) for gt, pred in zip(truth, case["in_pred"], strict=True)), "present")
    return {
        "out_pixel_acc": np.float64(result.pixel_accuracy),
        "out_mean_acc": np.float64(result.mean_accuracy),
        "out_mean_iou": np.float64(result.miou),
        "out_fw_iou": np.float64(result.frequency_weighted_iou),
        "out_class_iou": result.iou,
    }


ADAPTERS: dict[str, Callable[[Arrays], Arrays]] = {
    **{name: (lambda case, arguments=arguments: block(case, *arguments)) for name, arguments in BLOCKS.items()},
    "resnet38__bottleneck_dil4": bottleneck,
    "sccam__entropy": entropy,
    "sccam__losses": losses,
    "sccam__resnet38_full": full_network,
    "sccam__response_maps": response_maps,
    "sccam__scores": evaluation,
    "sccam__subcategory_labels": subcategory_labels,
}

TOLERANCE: dict[str, tuple[tuple[str, str, float], ...]] = {
    **{name: (("*", "of maximum", 1e-5),) for name in (*BLOCKS, "resnet38__bottleneck_dil4")},
    "sccam__entropy": (("*", "absolute", 1e-4),),
    "sccam__losses": (("out_grad*", "absolute", 1e-6), ("*", "absolute", 1e-5)),
    "sccam__resnet38_full": (("*", "relative", 1e-4),),
    "sccam__response_maps": (("out_norm*", "absolute", 1e-5), ("out_merged*", "absolute", 1e-5), ("*", "equal", 1)),
    "sccam__scores": (("*", "absolute", 1e-6),),
    "sccam__subcategory_labels": (("out_label_200", "partition", 20), ("*", "equal", 1)),
}
