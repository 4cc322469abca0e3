"""Golden cases of AffinityNet: see golden_adapters.py for the form."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.golden_sccam import Arrays, load_recipe, load_weights, normalized, tensor
from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.data import transforms
from wsss_lib.methods.cam import ClassActivationNet
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.nets.resnet38 import ResNet38
from wsss_lib.nets.vgg16_largefov import VGG16LargeFOV
from wsss_lib.ops import affinity
from wsss_lib.ops.random_walk import Graph, random_walk
from wsss_lib.ops.seeds import argmax_with_background
from wsss_lib.refine import affinitynet
from wsss_lib.refine.affinitynet import AffinityHead, AffinityNet

RADIUS = 5


def official_order(radius: int) -> list[int]:
    """Ours are sorted by the length of the path, the official directions by row and column."""
    destinations = [path.destination for path in affinity.search_paths(radius)]
    return sorted(range(len(destinations)), key=destinations.__getitem__)


def pairs(case: Arrays) -> Arrays:
    out = {}
    for number in (key.rsplit("_", 1)[1] for key in case if key.startswith("in_radius_")):
        radius = int(case[f"in_radius_{number}"])
        index = affinity.path_index(radius, tuple(map(int, case[f"in_size_{number}"])))
        destination = index.destination[official_order(radius)]
        source = index.source.expand_as(destination)
        out |= {
            f"out_from_{number}": index.source.numpy(),
            f"out_to_{number}": destination.flatten().numpy(),
            f"out_from_to_{number}": torch.stack([source.flatten(), destination.flatten()], dim=1).numpy(),
        }
    return out


def affinity_label(case: Arrays) -> Arrays:
    out = {}
    for number in (key.rsplit("_", 1)[1] for key in case if key.startswith("in_radius_")):
        out |= pair_labels(tensor(case[f"in_label_{number}"]), int(case[f"in_radius_{number}"]), f"_{number}")
    return out


def pair_labels(label: torch.Tensor, radius: int, suffix: str = "") -> Arrays:
    masks = affinity.affinity_labels(label, radius, num_classes=255)
    return {
        f"out_{name}{suffix}": mask[official_order(radius)].numpy().astype(np.uint8)
        for name, mask in zip(("bg", "fg", "neg"), masks, strict=True)
    }


def label_merge(case: Arrays) -> Arrays:
    side = int(case["in_crop"])
    spans = []
    for length, on_image, on_canvas in zip(
        case["in_image"].shape,
        (case["in_img_top"], case["in_img_left"]),
        (case["in_cont_top"], case["in_cont_left"]),
        strict=False,
    ):
        length = min(length, side)
        spans.append((int(on_canvas), int(on_canvas) + length, int(on_image), int(on_image) + length))
    (top, bottom, image_top, image_bottom), (left, right, image_left, image_right) = spans
    box = (top, bottom, left, right, image_top, image_bottom, image_left, image_right)
    image, label = affinitynet.crop_sample(
        case["in_image"], case["in_la"], case["in_ha"], box, side, bool(case["in_flip"]), 8, *normalization_of("resnet38")
    )
    return {"out_image": image[:, ::4, ::4].numpy(), "out_label": label.numpy(), **pair_labels(label, RADIUS)}


@torch.inference_mode()
def head(case: Arrays) -> Arrays:
    maps = [tensor(case[f"in_conv{level}"]) for level in (4, 5, 6)]
    widths = [len(case[f"weight_f8_{level}.weight"]) for level in (3, 4, 5)]
    groups = (2, 4, 4) if "weight_gn8_3.weight" in case else None
    features = load_weights(AffinityHead([x.shape[1] for x in maps], widths, groups), case)(maps)
    return {
        "out_aff": affinity.feature_affinity(features, RADIUS)[:, official_order(RADIUS)].numpy(),
        "out_dense": affinitynet.feature_graph(features[0], RADIUS, beta=1).matrix().to_dense().numpy(),
    }


def losses(case: Arrays) -> Arrays:
    value = tensor(case["in_aff"]).requires_grad_()
    result = affinity.feature_affinity_loss(
        value, affinity.PairLabels(*(tensor(case[f"in_{name}"]) for name in ("bg", "fg", "neg")))
    )
    result.total.backward()
    return {
        "out_bg_loss": result.bg.detach().numpy(),
        "out_fg_loss": result.fg.detach().numpy(),
        "out_neg_loss": result.neg.detach().numpy(),
        "out_loss": result.total.detach().numpy(),
        "out_grad": value.grad.numpy(),
    }


def walk(case: Arrays) -> Arrays:
    """The case gives the affinities as a dense matrix; the walk goes over its entries that are not 0."""
    matrix = (tensor(case["in_aff"]).double() ** case["in_beta"].item()).to_sparse_csr()
    graph = Graph(matrix.crow_indices().int(), matrix.col_indices().int(), matrix.values())
    size, classes = tuple(map(int, case["in_size"])), case["in_keys"].tolist()
    start = affinitynet.pooled_scores(tensor(case["in_cams"]), case["in_alpha"].item(), stride=8)
    walked = random_walk(graph, start, case["in_logt"].item())
    return {
        "out_cam_pooled": start.numpy(),
        "out_rw_low": walked.numpy(),
        "out_pred": affinitynet.walk_mask(walked, classes, size, stride=8).numpy(),
    }


def several_scales(case: Arrays) -> Arrays:
    out, mean_std = {}, normalization_of("resnet38")
    for number, scale in enumerate((1.0, 0.5, 1.5, 2.0)):
        array = transforms.normalize(transforms.resize_image(Image.fromarray(case["in_image"]), scale), *mean_std)
        out |= {f"out_{2 * number}": array.transpose(2, 0, 1), f"out_{2 * number + 1}": array[:, ::-1].transpose(2, 0, 1)}
    return out


def center_box(size: tuple[int, int], side: int) -> tuple[int, ...]:
    """Return the box of the central crop in the form of `crop_box`; half a pixel is rounded half to even."""
    spans = []
    for length in size:
        offset, covered = round(abs(length - side) / 2), min(length, side)
        on_canvas, in_image = (0, offset) if length > side else (offset, 0)
        spans.append((on_canvas, on_canvas + covered, in_image, in_image + covered))
    (top, bottom, *rows), (left, right, *columns) = spans
    return top, bottom, left, right, *rows, *columns


def augment(case: Arrays) -> Arrays:
    array, seed = case["in_arr"], int(case["in_python_seed"])
    out = {"out_sizes": np.array([transforms.long_side_size((w, h), target) for w, h, target in case["in_sizes"].tolist()])}
    for name in ("crop16", "crop24", "crop40", "center16", "center25", "center40"):
        kind, side = name.rstrip("0123456789"), int(name.lstrip("cropenta"))
        box = (
            transforms.crop_box(array.shape[:2], side, random.Random(seed + side))
            if kind == "crop"
            else center_box(array.shape[:2], side)
        )
        out[f"out_{name}"] = transforms.crop(array, box, side, fill=0)
    return out


class GivenGradients(torch.utils.data.Dataset):
    """One sample an epoch, so that with batches of one the epoch is the step: the gradients of that step."""

    def __init__(self, gradients: np.ndarray):
        self.gradients = gradients

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        return (tensor(self.gradients[key[0]]),)


def poly_sgd(case: Arrays) -> Arrays:
    """The library's training loop on a loss that is linear in the parameters, so that the gradients are those given."""
    net = torch.nn.Module()
    net.rows = torch.nn.ParameterList([tensor(row).clone() for row in case["in_init"]])
    base, decay, total = case["in_base_lr"].tolist(), case["in_weight_decay"].tolist(), int(case["in_max_step"])
    groups = [
        {"params": [row], "lr": lr, "weight_decay": weight_decay}
        for row, lr, weight_decay in zip(net.rows, base, decay, strict=True)
    ]
    momentum = max(decay)  # the program hands it over where SGD expects the momentum
    steps, factors, before = len(case["in_grads"]), [], []

    def schedule(step: int, _: int) -> float:
        factors.append(training.poly_factor(min(step, total - 1), total))  # the official rate stays at its last value
        return factors[-1]

    def loss_of(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        before.append(np.stack([row.detach().numpy().copy() for row in model.rows]))
        return {"loss": sum((row * gradient).sum() for row, gradient in zip(model.rows, batch[0][0], strict=True))}

    with tempfile.TemporaryDirectory() as folder:
        training.train(
            net,
            loss_of,
            GivenGradients(case["in_grads"]),
            groups,
            momentum,
            steps,
            1,
            Config(num_workers=0, checkpoint_every=10 * steps),
            Path(folder),
            schedule,
        )
    after = [*before[1:], np.stack([row.detach().numpy() for row in net.rows])]
    return {"out_lrs": np.array(factors)[:, None] * case["in_base_lr"], "out_params": np.stack(after)}


def crf_alpha(case: Arrays) -> Arrays:
    return {f"out_alpha{alpha}": affinitynet.crf_with_alpha(case["in_image"], case["in_cams"], alpha) for alpha in (4, 32)}


def cam_norm(case: Arrays) -> Arrays:
    norm = normalized(case["in_cams"])
    return {"out_norm": norm, "out_pred": argmax_with_background(norm, case["in_keys"], 0.2)}


@torch.inference_mode()
def full_affinity(case: Arrays, backbone: torch.nn.Module) -> Arrays:
    vgg = isinstance(backbone, VGG16LargeFOV)
    net = AffinityNet(backbone, group_norm=vgg)
    load_recipe(net, case["in_seed"].item(), lambda key: key.split(".", 1)[1])
    image = tensor(case["in_image"])
    features = net(image.flip(1) if vgg else image)  # ours takes RGB
    return {
        "out_aff": affinity.feature_affinity(features, RADIUS)[:, official_order(RADIUS)].numpy(),
        "out_dense_rowsum": affinitynet.feature_graph(features[0], RADIUS, beta=1).degree().numpy(),
    }


@torch.inference_mode()
def full_classifier(case: Arrays) -> Arrays:
    net = load_recipe(
        ClassActivationNet(VGG16LargeFOV(), 20),
        case["in_seed"].item(),
        lambda key: key.removeprefix("backbone.").replace("classifier", "fc8"),
    )
    image = tensor(case["in_image"]).flip(1)
    return {"out_logits": net(image).numpy(), "out_cam": net.activation_maps(image).numpy()}


ADAPTERS: dict[str, Callable[[Arrays], Arrays]] = {
    "psa__aff_head_resnet38": head,
    "psa__aff_head_vgg16": head,
    "psa__affinity_label": affinity_label,
    "psa__augment": augment,
    "psa__cam_norm": cam_norm,
    "psa__crf_alpha": crf_alpha,
    "psa__label_merge": label_merge,
    "psa__losses": losses,
    "psa__losses_nofg": losses,
    "psa__msf": several_scales,
    "psa__pairs": pairs,
    "psa__poly_sgd": poly_sgd,
    "psa__random_walk": walk,
    "psa__random_walk_t1": walk,
    "psa__resnet38_aff_full": lambda case: full_affinity(case, ResNet38()),
    "psa__vgg16_aff_full": lambda case: full_affinity(case, VGG16LargeFOV()),
    "psa__vgg16_cls_full": full_classifier,
}

TOLERANCE: dict[str, tuple[tuple[str, str, float], ...]] = {
    "psa__aff_head_resnet38": (("*", "absolute", 1e-5),),
    "psa__aff_head_vgg16": (("*", "absolute", 1e-5),),
    "psa__affinity_label": (("*", "equal", 1),),
    "psa__augment": (("*", "equal", 1),),
    "psa__cam_norm": (("out_norm", "absolute", 1e-5), ("*", "equal", 1)),
    "psa__crf_alpha": (("*", "absolute", 1e-3),),
    "psa__label_merge": (("out_image", "absolute", 1e-5), ("*", "equal", 1)),
    "psa__losses": (("out_grad", "relative", 1e-4), ("*", "absolute", 1e-5)),
    "psa__losses_nofg": (("out_grad", "relative", 1e-4), ("*", "absolute", 1e-5)),
    "psa__msf": (("*", "absolute", 0.02),),
    "psa__pairs": (("*", "equal", 1),),
    "psa__poly_sgd": (("*", "absolute", 1e-5),),
    "psa__random_walk": (("out_pred", "equal", 0.999), ("*", "absolute", 1e-4)),
    "psa__random_walk_t1": (("out_pred", "equal", 0.999), ("*", "absolute", 1e-4)),
    "psa__resnet38_aff_full": (("*", "absolute", 1e-4),),
    "psa__vgg16_aff_full": (("*", "relative", 1e-4),),
    "psa__vgg16_cls_full": (("out_logits", "relative", 1e-4), ("out_cam", "absolute", 1e-3)),
}
