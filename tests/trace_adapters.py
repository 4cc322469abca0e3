"""Traces of official training programs: the same steps made again with wsss_lib, in float64 (contract: trace.md).

`ADAPTERS` maps a case's name to a function from its arrays to its `out_*` arrays. The stage functions of the library are
called as the notebooks call them; only the samples are replaced, by the batches of the file, and weights are made by the
file's rule. `disagreement` compares.
"""

import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchvision.models.resnet import Bottleneck

from data_prep.weight_layouts import layouts
from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.data.samples import StepSampler
from wsss_lib.methods import amn, cam, drs, rib, sccam, vwe
from wsss_lib.methods.cam import build_classifier, train_classifier
from wsss_lib.nets import deeplab_v3plus as deeplab_v3plus_nets
from wsss_lib.nets.backbone import ResNet
from wsss_lib.nets.deeplab_v2 import DeepLabV2, resize_labels
from wsss_lib.nets.resnet38 import ResNet38
from wsss_lib.ops import merging
from wsss_lib.presets import preset_config
from wsss_lib.refine import affinitynet
from wsss_lib.refine import irn as irn_module
from wsss_lib.refine.irn import build_irn, train_irn
from wsss_lib.segment import deeplab
from wsss_lib.segment.deeplab import build_deeplab, train_deeplab

Arrays = dict[str, np.ndarray]
COMMON = {"device": "cpu", "mixed_precision": False, "num_workers": 0, "backbone_weights": "none", "checkpoint_every": 10**6}
NUM_CLASSES = 20


# ---- weights and fingerprints, as the contract defines them


def official_weights(case: Arrays) -> dict[str, Tensor]:
    """Make the float64 start value of every official tensor from its name, its shape and the case's seed."""
    weights = {}
    for name, padded in zip(case["in_names"].tolist(), case["in_shapes"].tolist(), strict=True):
        shape, kind = tuple(side for side in padded if side), name.rsplit(".", 1)[-1]
        random = np.random.RandomState(zlib.crc32(f"{name}|{int(case['in_weight_seed'])}".encode()))
        z = random.standard_normal(shape).astype(np.float32)
        if kind == "running_mean":
            value = np.float32(0.1) * z
        elif kind == "running_var":
            value = 1 + np.float32(0.2) * np.abs(z)
        elif len(shape) > 1:
            value = z * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif kind == "bias":
            value = np.float32(0.1) * z
        else:
            value = 1 + np.float32(0.1) * z
        value = value.astype(np.float64)
        for pattern, factor in zip(case["in_rule_pattern"].tolist(), case["in_rule_factor"].tolist(), strict=True):
            if re.search(pattern, name):
                value = value * factor
        weights[name] = torch.from_numpy(value)
    return weights


def fingerprint(name: str, start: Tensor, final: Tensor) -> list[float]:
    """Norm of a tensor, norm of its change, and the change's products with four random vectors."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    value, change = final.contiguous().numpy().ravel(), (final - start).contiguous().numpy().ravel()
    return [np.linalg.norm(value), np.linalg.norm(change), *(change @ random.standard_normal(change.size) for _ in range(4))]


class Names:
    """The official names of a network's tensors, and what differs in their form.

    Args:
        layout: name of a format of `data_prep.weight_layouts`, and which of its layouts.
        bgr: official name of a convolution whose input channels stand in the other order there.
    """

    def __init__(self, layout: str, which: int = 0, bgr: str = ""):
        chosen = layouts()[layout][which]
        self.ours = {official: name for official, (_, name) in chosen.keys.items()}
        self.aliases, self.bgr = chosen.aliases, bgr

    def of(self, official: str) -> str:
        for alias, name in self.aliases.items():
            if official.startswith(alias):
                official = name + official.removeprefix(alias)
        return self.ours[official]

    def load(self, net: nn.Module, weights: dict[str, Tensor]) -> None:
        state = net.double().state_dict()
        new = {self.of(name): (value.flip(1) if name == self.bgr else value) for name, value in weights.items()}
        untouched = {name for name in set(state) - set(new) if not name.endswith("num_batches_tracked")}
        assert not untouched - {"mean_shift.running_mean"} and not set(new) - set(state), (untouched, set(new) - set(state))
        net.load_state_dict({name: new.get(name, value).reshape(value.shape) for name, value in state.items()})

    def fingerprints(self, net: nn.Module, weights: dict[str, Tensor]) -> np.ndarray:
        state = net.state_dict()
        rows = []
        for name, start in weights.items():
            final = state[self.of(name)].detach().reshape(start.shape)
            rows.append(fingerprint(name, start, final.flip(1) if name == self.bgr else final))
        return np.array(rows)


# ---- the batches of a file as samples of the library


class Batches(torch.utils.data.Dataset):
    """Samples indexed by (epoch, index) such that the library's own sampler makes the batches of the file.

    Args:
        case: gives in_order, (steps, batch) or (steps, parts, batch): one step is one epoch of `len(self)` samples.
        columns: what a sample consists of, each with one entry for each picture of the pool.
        seed: of the run.
    """

    def __init__(self, case: Arrays, columns: tuple[Any, ...], seed: int):
        order = case["in_order"]
        self.size, parts = int(np.prod(order.shape[1:])), order.shape[1] if order.ndim == 3 else 1
        keys = [key for batch in StepSampler(self.size, self.size, parts, 0, len(order), seed) for key in batch]
        self.number = dict(zip(keys, order.ravel().tolist(), strict=True))
        self.columns = columns

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        return tuple(column[self.number[key]] for column in self.columns)


class Split:
    """What the stage functions ask of a data set."""

    def __init__(self, size: int):
        self.size, self.num_classes, self.labels = size, NUM_CLASSES, np.zeros((size, NUM_CLASSES), np.uint8)
        self.ids = tuple(map(str, range(size)))

    def __len__(self) -> int:
        return self.size


def normalized(pixels: np.ndarray) -> Tensor:
    return (torch.from_numpy(pixels).double() - 128) / 64


def images(case: Arrays, bgr: bool = False) -> Tensor:
    values = normalized(case["in_images"])
    return values.flip(1) if bgr else values


def doubles(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))


# ---- running a stage and watching it


class AllStepsMadeError(Exception):
    """The file's last step is made, though the schedule goes on."""


class Watch:
    """What a training did: rates of every optimizer step, losses of every step."""

    def __init__(self, steps: int, parts: int):
        self.steps, self.parts = steps, parts
        self.rates: list[list[float]] = []
        self.losses: list[dict[str, float]] = []
        self.momentum: list[float] = []
        self.weight_decay: list[float] = []

    def after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        self.rates.append([group["lr"] for group in groups])
        self.momentum = [group["momentum"] if "momentum" in group else group["betas"][0] for group in groups]
        self.weight_decay = [group["weight_decay"] for group in groups]
        if len(self.rates) == self.steps:
            raise AllStepsMadeError

    def arrays(self, names: dict[str, str]) -> Arrays:
        result = {
            "out_lr": np.array(self.rates),
            "out_momentum": np.array(self.momentum),
            "out_weight_decay": np.array(self.weight_decay),
        }
        for ours, theirs in names.items():
            values = np.array([loss[ours] for loss in self.losses]).reshape(-1, self.parts)
            result[f"out_{theirs}"] = values.mean(1)
        return result


@contextmanager
def in_double(watch: Watch) -> Iterator[None]:
    """Return a context in which the library computes in float64 and `watch` sees every step."""
    train = training.train

    def watched(model: nn.Module, loss_of: Callable[..., dict[str, Tensor]], *args: Any, **options: Any) -> None:
        def loss(net: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
            result = loss_of(net, batch)
            watch.losses.append({name: value.item() for name, value in result.items()})
            return result

        train(model, loss, *args, **options)

    handle = register_optimizer_step_post_hook(watch.after_step)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of counts to which a small number is added
    try:
        with patch.object(training, "train", watched), patch.object(Tensor, "float", Tensor.double):
            yield
    except AllStepsMadeError:
        pass
    finally:
        handle.remove()
        torch.set_default_dtype(usual)


def trace(
    case: Arrays,
    names: Names,
    net: nn.Module,
    config: Config,
    run: Callable[[Split, Path], Any],
    samples: tuple[tuple[ModuleType, str], ...],
    columns: tuple[Any, ...],
    losses: dict[str, str],
) -> Arrays:
    """Train `net` from the file's weights on the file's batches with a stage function, and return what the file records.

    Args:
        case: of the file.
        names: of the network's tensors.
        net: of the library, still with other weights.
        config: what the stage reads.
        run: calls the stage function with a split and a folder.
        samples: (module, name) of the classes of samples that the batches stand in for.
        columns: of `Batches`.
        losses: names of the library's losses to those of the file.
    """
    weights = official_weights(case)
    names.load(net, weights)
    batches = Batches(case, columns, config.seed)
    watch = Watch(int(case["in_steps"]), case["in_order"].shape[1] if case["in_order"].ndim == 3 else 1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for module, name in samples:
            stack.enter_context(patch.object(module, name, lambda *args, **options: batches))
        with in_double(watch):
            run(Split(len(batches)), Path(folder))
    return watch.arrays(losses) | {"out_fingerprint": names.fingerprints(net, weights)}


def rates(case: Arrays, *fields: str) -> dict[str, float]:
    return dict(zip(fields, case["in_lr"].tolist(), strict=False))


def slipped(case: Arrays, prefix: str) -> dict[str, float]:
    """The weight decay, and the momentum, for which these programs give SGD the weight decay, too."""
    value = float(np.ravel(case["in_weight_decay_set"])[0])
    return {f"{prefix}_weight_decay": value, f"{prefix}_momentum": value}


def sizes(case: Arrays, batch_field: str) -> dict[str, int]:
    shape = case["in_order"].shape
    return {batch_field: int(np.prod(shape[1:])), "device_batch_size": shape[-1]}


# ---- the methods


def irn_cam(case: Arrays) -> Arrays:
    config = preset_config(
        "voc12",
        "cam",
        **COMMON,
        **rates(case, "cam_learning_rate", "cam_head_learning_rate"),
        **sizes(case, "cam_batch_size"),
        cam_epochs=int(case["in_planned_steps"]),
        **slipped(case, "cam"),
    )
    net = build_classifier(config, NUM_CLASSES)
    return trace(
        case,
        Names("irn-cam"),
        net,
        config,
        lambda data, folder: train_classifier(net, data, config, folder),
        ((cam, "ClassificationSamples"),),
        (images(case), doubles(case["in_image_labels"])),
        {"loss": "loss"},
    )


def irn(case: Arrays) -> Arrays:
    config = preset_config(
        "voc12",
        "cam",
        **COMMON,
        **rates(case, "irn_learning_rate", "irn_displacement_learning_rate"),
        **sizes(case, "irn_batch_size"),
        irn_epochs=int(case["in_planned_steps"]),
        irn_init="backbone",
        **slipped(case, "irn"),
        irn_train_radius=int(case["in_radius"]),
    )
    net = build_irn(config, "")
    result = trace(
        case,
        Names("irn"),
        net,
        config,
        lambda data, folder: train_irn(net, data, folder, config, folder),
        ((irn_module, "AffinitySamples"),),
        (images(case), torch.from_numpy(case["in_labels"])),
        {"loss": "total", "pos": "pos", "neg": "neg", "dp_fg": "dp_fg", "dp_bg": "dp_bg"},
    )
    with torch.no_grad():
        means = [net.eval()(image[None])[1].mean((0, 2, 3)) for image in images(case)]
    return result | {"out_mean_displacement": torch.stack(means).mean(0).numpy()}


def trace_amn(case: Arrays) -> Arrays:
    config = preset_config(
        "voc12",
        "amn",
        **COMMON,
        **rates(case, "amn_learning_rate", "amn_head_learning_rate"),
        **sizes(case, "cam_batch_size"),
        amn_epochs=int(case["in_planned_steps"]),
        amn_init="backbone",
        amn_weight_decay=case["in_weight_decay_set"].item(),
        amn_smoothing=case["in_smoothing"].item(),
    )
    net = amn.build_amn(config, NUM_CLASSES, "")
    without_dropout(net)
    side = -(-case["in_images"].shape[-1] // 16)
    labels = resize_labels(torch.from_numpy(case["in_labels"]).long(), (side, side))
    with patch.object(amn, "_check_seeds"):
        return trace(
            case,
            Names("amn"),
            net,
            config,
            lambda data, folder: amn.train_amn(net, data, folder, config, folder),
            ((amn, "ConditionedSamples"),),
            (images(case), labels, doubles(case["in_image_labels"])),
            {"loss": "loss"},
        )


def drs_config(case: Arrays, **values: Any) -> Config:
    return preset_config("voc12", "drs", **COMMON, **sizes(case, "drs_batch_size"), drs_backbone_weights="none", **values)


def drs_classifier(case: Arrays) -> Arrays:
    config = drs_config(
        case,
        drs_learning_rate=case["in_lr"][0].item(),
        drs_weight_decay=case["in_weight_decay_set"].item(),
        drs_epochs=int(case["in_planned_steps"]),
    )
    net = drs.build_drs(config, NUM_CLASSES, delta=0.0)
    return trace(
        case,
        Names("drs"),
        net,
        config,
        lambda data, folder: drs.train_drs(net, data, config, folder),
        ((drs, "SquareSamples"),),
        (images(case), doubles(case["in_image_labels"])),
        {"loss": "loss"},
    )


def drs_refine(case: Arrays) -> Arrays:
    config = drs_config(case, drs_refine_learning_rate=case["in_lr"][0].item(), drs_refine_epochs=int(case["in_planned_steps"]))
    net = drs.build_refinement(config, NUM_CLASSES)
    return trace(
        case,
        Names("drs-refine"),
        net,
        config,
        lambda data, folder: drs.train_refinement(net, data, folder, config, folder),
        ((drs, "MapSamples"),),
        (images(case), doubles(case["in_maps"]) / 255),
        {"loss": "loss"},
    )


def visual_words(case: Arrays, variant: str) -> Arrays:
    backbone, layout = {"vwe": ("resnet50", 0), "vwl_l": ("resnet101", 1)}[variant]
    config = preset_config(
        "voc12",
        "vwe",
        **COMMON,
        **rates(case, "vwe_learning_rate", "vwe_head_learning_rate"),
        **sizes(case, "cam_batch_size"),
        vwe_epochs=int(case["in_planned_steps"]),
        vwe_init="backbone",
        **slipped(case, "vwe"),
        vwe_words=int(case["in_words"]),
        vwe_variant=variant,
        backbone=backbone,
    )
    depth = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}[backbone]
    narrow = ResNet(Bottleneck, depth, width=int(case["in_width"]))
    with patch.object(vwe, "start_backbone", lambda *args: narrow):
        net = vwe.build_vwe(config, NUM_CLASSES, "")
    losses = {"loss": "loss", "class": "class", "histogram": "histogram", "word": "word"}
    if variant == "vwl_l":
        losses["decorrelation"] = "decorrelation"
    return trace(
        case,
        Names("vwe", layout),
        net,
        config,
        lambda data, folder: vwe.train_vwe(net, data, config, folder),
        ((vwe, "ClassificationSamples"),),
        (images(case), doubles(case["in_image_labels"])),
        losses,
    )


def subcategories(case: Arrays) -> Arrays:
    config = preset_config(
        "voc12",
        "sccam",
        **COMMON,
        **sizes(case, "cam_batch_size"),
        sccam_dropout=0.0,
        sccam_learning_rate=case["in_lr"][0].item(),
        sccam_head_learning_rate=case["in_lr"][2].item(),
        sccam_round_epochs=[int(case["in_steps"])],
        sccam_schedule_epochs=int(case["in_planned_steps"]),
        **slipped(case, "sccam"),
        sccam_loss_weight=case["in_loss_weight"].item(),
        sccam_clusters=int(case["in_clusters"]),
    )
    with patch.object(sccam, "build_backbone", lambda *args: ResNet38(width=int(case["in_width"]))):
        net = sccam.build_sccam(config, NUM_CLASSES)
    without_dropout(net)
    assignment = np.full((int(np.prod(case["in_order"].shape[1:])), NUM_CLASSES), -1)
    return trace(
        case,
        Names("sccam"),
        net,
        config,
        lambda data, folder: sccam.train_sccam(net, data, assignment, config, folder, 1),
        ((sccam, "SubcategorySamples"),),
        (images(case), doubles(case["in_image_labels"]), doubles(case["in_sub_labels"])),
        {"loss": "loss", "parent": "class", "sub": "sub"},
    )


def psa(case: Arrays) -> Arrays:
    config = preset_config(
        "voc12",
        "sccam",
        **COMMON,
        **sizes(case, "affinitynet_batch_size"),
        affinitynet_init="backbone",
        affinitynet_learning_rate=case["in_lr"][0].item(),
        affinitynet_radius=int(case["in_radius"]),
        **slipped(case, "affinitynet"),
        affinitynet_epochs=int(case["in_planned_steps"]),
    )
    with patch.object(affinitynet, "start_backbone", lambda *args: ResNet38(width=int(case["in_width"]))):
        net = affinitynet.build_affinitynet(config, "")
    without_dropout(net)
    return trace(
        case,
        Names("psa-aff"),
        net,
        config,
        lambda data, folder: affinitynet.train_affinitynet(net, data, folder, config, folder),
        ((affinitynet, "AffinityScoreSamples"),),
        (images(case), torch.from_numpy(case["in_labels"])),
        {"loss": "loss", "bg": "bg", "fg": "fg", "neg": "neg"},
    )


def deeplab_config(case: Arrays, method: str, **values: Any) -> Config:
    return preset_config(
        "voc12",
        method,
        **COMMON,
        **sizes(case, "deeplab_batch_size"),
        deeplab_init="none",
        deeplab_iterations=int(case["in_planned_steps"]),
        deeplab_momentum=case["in_momentum_set"].item(),
        deeplab_loss="cross_entropy",
        deeplab_atrous_rates=case["in_atrous_rates"].tolist(),
        **values,
    )


def deeplab_v2(case: Arrays) -> Arrays:
    config = deeplab_config(
        case,
        "cam",
        deeplab_backbone="resnet101_caffe",
        deeplab_learning_rate=case["in_lr"][0].item(),
        deeplab_weight_decay=case["in_weight_decay_set"][0].item(),
        deeplab_test_scales=case["in_scales"].tolist(),
    )
    backbone = ResNet(
        Bottleneck,
        (3, 4, 23, 3),
        width=int(case["in_width"]),
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        stride_in_1x1=True,
        ceil_mode=True,
    )
    net = DeepLabV2(backbone, NUM_CLASSES + 1, config.deeplab_atrous_rates)
    labels = torch.from_numpy(case["in_labels"]).long()
    return trace(
        case,
        Names("deeplab-v2", bgr="base.layer1.conv1.conv.weight"),
        net,
        config,
        lambda data, folder: train_deeplab(net, data, folder, config, folder),
        ((deeplab, "SegmentationSamples"),),
        (images(case, bgr=True), labels),
        {"loss": "loss"},
    )


def deeplab_v3plus(case: Arrays) -> Arrays:
    config = deeplab_config(
        case,
        "cam",
        deeplab_version="v3plus",
        deeplab_backbone="resnet101",
        deeplab_learning_rate=case["in_lr"][1].item(),
        deeplab_weight_decay=case["in_weight_decay_set"].item(),
        deeplab_output_stride=int(case["in_output_stride"]),
        deeplab_decoder_width=int(case["in_decoder_width"]),
    )
    narrow = narrow_dilated(int(case["in_width"]))
    with patch.object(deeplab, "start_backbone", lambda *args: narrow):
        net = build_deeplab(config, NUM_CLASSES, "")
    without_dropout(net)
    return trace(
        case,
        Names("deeplab-v3plus"),
        net,
        config,
        lambda data, folder: train_deeplab(net, data, folder, config, folder),
        ((deeplab, "V3PlusSamples"),),
        (images(case), torch.from_numpy(case["in_labels"]).long()),
        {"loss": "loss"},
    )


def rib_tuning(case: Arrays, runs: tuple[str, ...] = ("normal", "stop", "explode")) -> Arrays:
    weights, names, scales = official_weights(case), Names("rib"), case["in_scales"].tolist()
    order = [scales.index(scale) for scale in rib.scales_in_order(scales)]
    pool, labels, label = images(case), doubles(case["in_image_labels"]), doubles(case["in_label"])
    classes, size = torch.from_numpy(np.flatnonzero(case["in_label"])), tuple(case["in_size"].tolist())
    result: Arrays = {}
    for run in runs:
        config = preset_config(
            "voc12",
            "rib",
            **COMMON,
            **rates(case, "rib_learning_rate", "rib_head_learning_rate"),
            **slipped(case, "rib"),
            rib_iterations=int(case["in_planned_steps"]),
            rib_region_threshold=case["in_region_threshold"].item(),
            rib_explode_threshold=case["in_explode_threshold"].item(),
            rib_stop_threshold=case[f"in_stop_threshold_{run}"].item(),
            rib_explode_ratio=case[f"in_explode_ratio_{run}"].item(),
        )
        net = build_classifier(config, NUM_CLASSES)
        names.load(net.eval(), weights)
        with torch.no_grad():
            views = [normalized(case[f"in_view_{number}"])[None] for number in order]
            views = [net.backbone.shallow(torch.cat([view, view.flip(-1)]), rib.FROZEN_STAGES) for view in views]
            companions = [
                (net.backbone.shallow(pool[row], rib.FROZEN_STAGES), labels[row])
                for row in torch.from_numpy(case["in_order"]).long()
            ]
        watch = Watch(10**9, 1)
        with in_double(watch):
            steps = list(
                rib.tune(net, views, [scales[number] > 0.5 for number in order], label, companions, config, last_update=True)
            )
        made = [step for step in steps if step.logits is not None]
        result |= {
            f"out_loss_{run}": np.array([step.loss for step in made]),
            f"out_target_loss_{run}": np.array([step.target_logit for step in made]),
            f"out_stop_flags_{run}": np.array([step.stop for step in steps]),
            f"out_cam_{run}": merging.merge_views(
                merging.join_flips(rib.add_up(steps), classes), merging.stride4_size(size)
            ).numpy(),
            f"out_fingerprint_{run}": names.fingerprints(net, weights),
        }
        if run == "normal":
            result |= watch.arrays({}) | {"out_fingerprint": result["out_fingerprint_normal"]}
    return result


def narrow_dilated(width: int) -> nn.Module:
    with patch.object(deeplab_v3plus_nets, "ResNet", partial(ResNet, width=width)):
        return deeplab_v3plus_nets.build_dilated_backbone("resnet101", 16)


def without_dropout(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0


ADAPTERS: dict[str, Callable[[Arrays], Arrays]] = {
    "trace__amn": trace_amn,
    "trace__deeplab_v2": deeplab_v2,
    "trace__deeplab_v2_single": deeplab_v2,
    "trace__deeplab_v3plus": deeplab_v3plus,
    "trace__drs_classifier": drs_classifier,
    "trace__drs_refine": drs_refine,
    "trace__irn": irn,
    "trace__irn_cam": irn_cam,
    "trace__psa": psa,
    "trace__rib": rib_tuning,
    "trace__sccam": subcategories,
    "trace__vwe": lambda case: visual_words(case, "vwe"),
    "trace__vwl_l": lambda case: visual_words(case, "vwl_l"),
}


# ---- comparison


def distances(case: Arrays, result: Arrays) -> dict[str, float]:
    """Return, for everything that the file expects, the distance in units of what is allowed: above 1 is wrong."""
    found = {}
    for name in (key for key in case if key.startswith("out_") and key in result):
        expected, value = case[name], np.asarray(result[name])
        if expected.shape != value.shape:
            found[name] = np.inf
        elif name.startswith("out_fingerprint"):
            norm, change = expected[:, 0], expected[:, 1]
            error = np.abs(value - expected)
            scale = np.concatenate([norm[:, None], np.repeat(change[:, None], 5, 1)], 1)
            allowed = np.where(scale > 0, 1e-5 * scale + 1e-12 * norm[:, None], 1e-30)  # what is fixed must be so exactly
            found[name] = float(np.max(error / allowed))
        elif name.startswith(("out_mean_displacement", "out_cam")):
            found[name] = float(np.max(np.abs(value - expected)) / (1e-5 * np.abs(expected).max()))
        else:
            found[name] = float(np.max(np.abs(value.astype(float) - expected) / (1e-6 * np.abs(expected) + 1e-12)))
    return found
