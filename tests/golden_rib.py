"""Golden cases of RIB: see `tests/golden_adapters.py`."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.golden_weights import load_recipe
from wsss_lib.config import Config
from wsss_lib.data import samples
from wsss_lib.methods import cam, rib
from wsss_lib.nets.backbone import build_backbone
from wsss_lib.ops import merging, random_walk

Arrays = dict[str, np.ndarray]


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def gndrp(case: Arrays) -> Arrays:
    result, thresholds = {}, [case[name] for name in sorted(case) if name.startswith("in_threshold_")]
    for name in (key.removeprefix("in_map_") for key in case if key.startswith("in_map_")):
        label, row = tensor(case[f"in_label_{name}"]), int(case["in_shared_row"])
        result[f"out_gap_{name}"] = tensor(case[f"in_map_{name}"]).mean((2, 3)).numpy()
        for threshold in thresholds:
            maps = tensor(case[f"in_map_{name}"]).requires_grad_()
            pooled = rib.pooled_logits(maps, label, threshold.item(), first_twenty_only=True)
            (pooled * label).sum().backward()
            suffix = f"{name}_{round(10 * threshold.item())}"
            result |= {f"out_pooled_{suffix}": pooled.detach().numpy(), f"out_grad_{suffix}": maps.grad.numpy()}
        shared = rib.pooled_logits(maps.detach(), label[row : row + 1], thresholds[0].item(), first_twenty_only=True)
        result[f"out_pooled_shared_{name}"] = shared.numpy()
    return result


def loss(case: Arrays) -> Arrays:
    logits, label = tensor(case["in_logits"]).requires_grad_(), tensor(case["in_label"])
    total = rib.rib_loss(logits, label)
    total.backward()
    return {
        "out_loss": total.detach().numpy(),
        "out_grad": logits.grad.numpy(),
        "out_target_loss": -rib.rib_loss(logits.detach()[:6], label[:6]).numpy(),
    }


class TinyBackbone(nn.Module):
    """A 4x4 convolution of stride 4 and a ReLU; nothing of it is frozen."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.channels = (len(weight),)
        self.features = nn.Conv2d(3, len(weight), weight.shape[-1], stride=weight.shape[-1], bias=False)
        self.features.weight.data = weight.clone()

    def shallow_modules(self, num_stages: int) -> list[nn.Module]:
        return []

    def deep(self, features: torch.Tensor, num_stages: int) -> torch.Tensor:
        return F.relu(self.features(features))


def run(
    net: cam.ClassActivationNet,
    views: list[torch.Tensor],
    scales: list[float],
    case: Arrays,
    config: Config,
    companions: list[tuple[torch.Tensor, torch.Tensor]],
    look: Callable[[rib.Step], None],
) -> list[torch.Tensor]:
    """Make all steps of the case's image, call `look` after each, and return the sums of maps in the case's order of scales."""
    order = [scales.index(scale) for scale in rib.scales_in_order(scales)]
    label, in_loss = tensor(case["in_image_label"]), [scales[number] > 0.5 for number in order]
    steps = []
    for step in rib.tune(net, [views[number] for number in order], in_loss, label, companions, config, last_update=True):
        steps.append(step)
        look(step)
    sums = rib.add_up(steps)
    return [sums[order.index(number)] for number in range(len(order))]


def configuration(case: Arrays, **values) -> Config:
    rate = values.pop("rate")
    return Config(
        rib_learning_rate=rate,
        rib_head_learning_rate=10 * rate,
        rib_iterations=int(case["in_steps"]),
        rib_region_threshold=case["in_score_threshold"].item(),
        rib_weight_decay=case["in_weight_decay"].item(),
        rib_momentum=case["in_weight_decay"].item(),
        rib_first_twenty_only=True,
        **values,
    )


def rates(config: Config, steps: int) -> np.ndarray:
    factors = np.array([rib.poly_factor(k, config.rib_iterations) for k in range(steps)])
    return factors[:, None] * [config.rib_learning_rate, config.rib_head_learning_rate]


def process(case: Arrays) -> Arrays:
    result, size, scales = {}, tuple(case["in_size"].tolist()), case["in_scales"].tolist()
    views = [tensor(case[f"in_image_{number}"]) for number in range(len(scales))]
    companions = list(zip(tensor(case["in_batch_images"]), tensor(case["in_batch_labels"]), strict=True))
    keys = np.flatnonzero(case["in_image_label"])
    names = [key.removeprefix("in_lr_") for key in case if key.startswith("in_lr_")]

    def fine_tune(name: str, ratio: float) -> tuple[cam.ClassActivationNet, Config, list[rib.Step], list[torch.Tensor]]:
        net = cam.ClassActivationNet(
            TinyBackbone(tensor(case["weight_features"])), case["weight_classifier"].shape[0], frozen_stages=0
        ).eval()
        net.classifier.weight.data = tensor(case["weight_classifier"]).clone()
        config = configuration(
            case,
            rate=case[f"in_lr_{name}"].item(),
            rib_stop_threshold=case[f"in_stop_threshold_{name}"].item(),
            rib_explode_threshold=case[f"in_explode_threshold_{name}"].item(),
            rib_explode_ratio=ratio,
        )
        steps: list[rib.Step] = []
        return net, config, steps, run(net, views, scales, case, config, companions, steps.append)

    for name in names:
        net, config, steps, sums = fine_tune(name, case[f"in_explode_ratio_{name}"].item())
        updates = [step for step in steps if step.logits is not None]
        result |= {
            f"out_loss_{name}": np.array([step.loss for step in updates]),
            f"out_target_loss_{name}": np.array([step.target_logit for step in updates]),
            f"out_stop_flags_{name}": np.array([step.stop for step in steps]),
            f"out_keys_{name}": keys,
            f"out_cam_{name}": merging.merge_views(merging.join_flips(sums, tensor(keys)), merging.stride4_size(size)).numpy(),
            f"out_high_res_{name}": merging.merge_views(merging.join_flips(sums, tensor(keys)), size, grid_stride=16).numpy(),
        }
        chosen = slice(None) if name == "normal" else keys
        for number, pair in enumerate(sums):
            result[f"out_sum_cam_{number}_{name}"] = (pair[0] + pair[1].flip(-1))[chosen].numpy()
        if name == "normal":
            result |= {
                "out_logits_normal": torch.stack([step.logits for step in updates]).numpy(),
                "out_lr_normal": rates(config, len(updates)),
                "out_weight_features_normal": net.backbone.features.weight.detach().numpy(),
                "out_weight_classifier_normal": net.classifier.weight.detach().numpy(),
            }
        if name == "explode":
            result["out_coverage_explode_unstopped"] = np.array([step.coverage for step in fine_tune(name, 2.0)[2]])
    return result


def resnet_step(case: Arrays) -> Arrays:
    net = cam.ClassActivationNet(build_backbone("resnet50", 16), case["in_image_label"].shape[0]).eval()
    load_recipe(net)
    size, images = tuple(case["in_size"].tolist()), []
    while (name := f"in_image_{len(images)}") in case:
        images.append(tensor(case[name])[None])
    scales = [round(2 * image.shape[-1] / size[1]) / 2 for image in images]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        views = [net.backbone.shallow(torch.cat([image, image.flip(-1)]), rib.FROZEN_STAGES) for image in images]
        companions = [
            (net.backbone.shallow(batch, rib.FROZEN_STAGES), labels)
            for batch, labels in zip(tensor(case["in_batch_images"]), tensor(case["in_batch_labels"]), strict=True)
        ]
    config = configuration(case, rate=case["in_lr"].item(), rib_stop_threshold=1e9, rib_explode_ratio=2.0)
    steps, gradients = [], {}

    def look(step: rib.Step) -> None:
        if not steps:
            backbone = net.backbone
            gradients.update(
                out_grad0_classifier=net.classifier.weight.grad[:, :64, 0, 0].clone(),
                out_grad0_layer4_2_bn3_weight=backbone.layer4[2].bn3.weight.grad.clone(),
                out_grad0_layer3_0_conv1=backbone.layer3[0].conv1.weight.grad[:32, :64, 0, 0].clone(),
            )
        steps.append(step)

    sums, keys = run(net, views, scales, case, config, companions, look), np.flatnonzero(case["in_image_label"])
    moved = {
        name: (value - before[name]).abs().max().item() for name, value in net.state_dict().items() if value.is_floating_point()
    }
    frozen = [change for name, change in moved.items() if name.split(".")[1] in ("conv1", "bn1", "layer1", "layer2")]
    change = net.classifier.weight.detach() - before["classifier.weight"]
    return {
        "out_loss": np.array([step.loss for step in steps]),
        "out_target_loss": np.array([step.target_logit for step in steps]),
        "out_logits": torch.stack([step.logits for step in steps]).numpy(),
        "out_lr": rates(config, len(steps)),
        "out_keys": keys,
        "out_cam": merging.merge_views(merging.join_flips(sums, tensor(keys)), merging.stride4_size(size)).numpy(),
        "out_delta_classifier": change[:, :64, 0, 0].numpy(),
        "out_delta_layer2_max": np.float32(max(frozen)),
        **{name: gradient.numpy() for name, gradient in gradients.items()},
    }


def disjoint_pool(case: Arrays) -> Arrays:
    targets = {key.removeprefix("in_target_"): int(case[key]) for key in case if key.startswith("in_target_")}
    labels = case["in_labels"]
    return {f"out_pool_{name}": samples.disjoint_pool(labels, labels[row]) for name, row in targets.items()}


def sem_seg(case: Arrays) -> Arrays:
    maps, size = tensor(case["in_cam"]), tuple(map(int, case["in_size"]))
    edge, result = tensor(case["in_edge"]).reshape(maps.shape[1:]), {}
    for name in (key.removeprefix("in_power_") for key in case if key.startswith("in_power_")):
        walk = random_walk.propagate(maps ** case[f"in_power_{name}"].item(), edge)
        label = random_walk.pseudo_mask(walk, case["in_keys"], size, case[f"in_bg_threshold_{name}"].item())
        result |= {"out_walk": walk[:, None].numpy(), f"out_label_{name}": label.numpy()}
    return result


ADAPTERS: dict[str, Callable[[Arrays], Arrays]] = {
    "rib__disjoint_pool": disjoint_pool,
    "rib__gndrp": gndrp,
    "rib__loss": loss,
    "rib__process": process,
    "rib__resnet_step": resnet_step,
    "rib__sem_seg": sem_seg,
}

TOLERANCE: dict[str, tuple[tuple[str, str, float], ...]] = {
    "rib__disjoint_pool": (("*", "equal", 1),),
    "rib__gndrp": (("*", "absolute", 1e-6),),
    "rib__loss": (("*", "absolute", 1e-4),),
    "rib__process": (
        ("out_stop_flags*", "equal", 1),
        ("out_keys*", "equal", 1),
        ("out_loss*", "absolute", 1e-4),
        ("out_target_loss*", "absolute", 1e-4),
        ("out_logits*", "absolute", 1e-4),
        ("*", "absolute", 1e-5),
    ),
    "rib__resnet_step": (
        ("out_keys", "equal", 1),
        ("out_delta_layer2_max", "equal", 1),
        ("out_delta*", "absolute", 1e-6),
        ("out_lr", "absolute", 1e-10),
        ("*", "absolute", 1e-3),
    ),
    "rib__sem_seg": (("out_walk", "absolute", 5e-5), ("*", "equal", 0.995)),
}
