"""AMN: activation manipulation network (Lee, Kim, Shim, CVPR 2022).

One threshold for the whole data set turns maps into masks, but the best threshold differs from image to image. A small
segmentation head, trained per pixel on refined seed masks and given the image-level label, produces maps whose scores fall
near two levels. One threshold then suits nearly all images.

Statements about the paper rest on its abstract, its project page and its program; the docstrings name the step.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import model_validator
from torch import Tensor, nn

from wsss_lib.core import training
from wsss_lib.core.counting import Cost, Images, crops, inference_cost, training_cost
from wsss_lib.core.distributed import all_reduce_mean, in_processes
from wsss_lib.core.files import IGNORE, read_mask, write_mask
from wsss_lib.core.inference import forward_in_parts
from wsss_lib.core.parallel import Localize, cpu_workers, for_each_image, make_maps
from wsss_lib.core.scoring import full_size_maps, score_maps, score_masks, sweep_maps
from wsss_lib.core.stage import Job, Stage, network_made
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import AffinitySamples, steps_per_epoch
from wsss_lib.errors import DataError
from wsss_lib.methods import cam
from wsss_lib.nets.backbone import Backbone, build_backbone, freeze_batch_norm, normalization_of
from wsss_lib.nets.deeplab_v2 import ASPPV2
from wsss_lib.nets.folding import folded
from wsss_lib.nets.weights import load_whole, start_backbone
from wsss_lib.ops.merging import stride4_size
from wsss_lib.ops.seeds import irn_labels
from wsss_lib.ops.thresholds import ImageThresholds
from wsss_lib.parameters import (
    TRAINING,
    Fraction,
    Integers,
    ParameterGroup,
    Positive,
    Range,
    Rate,
    Settings,
    Text,
    require_order,
    start_of,
)

NOTEBOOK = "40_amn"
SETS_FOR_OTHERS = ("seed_*", "walk_*")  # parameters of other notebooks that its presets may set
DROPOUT = 0.1
# The values that a study tries, including the published ones where the network allows them.
TUNED = {
    "amn_learning_rate": Range(1e-6, 3e-4, log=True),
    "amn_head_learning_rate": Range(3e-5, 1e-2, log=True),
    "amn_smoothing": Range(0.1, 0.6),
}


class Parameters(ParameterGroup):
    """40: batches are the classifier's and crops are IRN's, as in the official program."""

    amn_weights: Text = ""  # a network to use instead of training one
    amn_init: Literal["backbone", "classifier"] = "classifier"  # published: backbone, trained on ImageNet only
    amn_foreground_threshold: Fraction = 0.20  # t_f of the refined seeds, on CAM's maps; published: 0.30
    amn_background_threshold: Fraction = 0.06  # t_b; published: 0.05
    amn_epochs: Positive = 3  # published: 5
    amn_learning_rate: Rate = 3e-4  # Adam's, of the backbone; published: 5e-6
    amn_head_learning_rate: Rate = 1e-3  # of label encoder and ASPP; published: 1e-4
    amn_weight_decay: Rate = 1e-4
    amn_smoothing: Fraction = 0.4  # epsilon of the label smoothing
    amn_atrous_rates: Integers = (1, 2, 4, 6)  # published: 6, 12, 18, 24
    amn_dropout_in_maps: bool = False  # the official program leaves dropout on

    @model_validator(mode="after")
    def _amn_thresholds_in_order(self) -> "Parameters":
        require_order(self, "amn_background_threshold", "amn_foreground_threshold")
        return self


# ---- the loss


def smoothed_target(labels: Tensor, num_labels: int, smoothing: float) -> Tensor:
    """Return the target distribution q of every pixel: 1 - e at its label, e / (C - 1) at every other one.

    Args:
        labels: (N, h, w) integers in 0..C-1 or 255; 255 counts as the background here and is left out by `pixel_means`.
        num_labels: C, background included.
        smoothing: e in [0, 1].

    Returns:
        float32 (N, C, h, w), sums to 1 over C.

    Raises:
        ValueError: a label is neither in 0..C-1 nor 255.

    Source: AMN's program, train_amn, the label-smoothed target. Explained in notebook 40, section "Per-pixel classification".

    >>> smoothed_target(torch.tensor([[[2]]]), 3, 0.4).flatten().tolist()
    [0.20000000298023224, 0.20000000298023224, 0.6000000238418579]
    """
    labels = labels.long().masked_fill(labels == IGNORE, 0)
    if labels.numel() and (labels.min() < 0 or labels.max() >= num_labels):
        wrong = int(labels.max() if labels.max() >= num_labels else labels.min())
        raise ValueError(f"label {wrong} is not in 0..{num_labels - 1}: were the refined seeds made for other classes?")
    target = torch.full((len(labels), num_labels, *labels.shape[1:]), smoothing / (num_labels - 1), device=labels.device)
    return target.scatter_(1, labels[:, None], 1 - smoothing)  # (N, C, h, w)


def pixel_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of every pixel, l = -sum_c q_c log softmax(z)_c.

    Args:
        logits: z, float (N, C, h, w).
        target: q, float (N, C, h, w), from `smoothed_target`.

    Returns:
        float (N, h, w), not below the entropy of the target.

    Source: AMN's program, train_amn. Explained in notebook 40, section "Per-pixel classification".
    """
    return -(target * logits.log_softmax(1)).sum(1)


def pixel_means(losses: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss of the background pixels and of the object pixels of the whole batch.

    Unknown pixels (255) count in neither. A kind of pixel that the batch lacks gives 0, where the official program gives
    NaN.

    Args:
        losses: float (N, h, w).
        labels: (N, h, w) integers, 0..C-1 or 255.

    Returns:
        two scalars.

    Source: AMN's program, train_amn. Explained in notebook 40, section "Per-pixel classification".

    >>> [mean.item() for mean in pixel_means(torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[[3, 255, 3]]]))]
    [0.0, 2.5]
    """
    kinds = labels == 0, (labels != 0) & (labels != IGNORE)
    background, objects = ((losses * kind).sum() / all_reduce_mean(kind.sum()).clamp(min=1) for kind in kinds)
    return background, objects


def balanced_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.4) -> dict[str, Tensor]:
    """Return AMN's loss: half the background's mean and half the objects' mean of the smoothed cross-entropy.

    Its lowest possible value is the entropy of the smoothed target, not 0.

    Args:
        logits: z, (N, C, h, w).
        labels: s, (N, h, w) integers, 0..C-1 or 255.
        smoothing: e.

    Returns:
        {"loss": their sum, "background": scalar, "object": scalar}.

    Raises:
        ValueError: labels and logits differ in size, or a label is neither in 0..C-1 nor 255.

    Source: AMN's program, train_amn: per-pixel classification with a balanced cross-entropy.
    Explained in notebook 40, section "Per-pixel classification".
    """
    if labels.shape != (len(logits), *logits.shape[2:]):
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit the logits {tuple(logits.shape)}: resize them to the logits' grid first"
        )
    losses = pixel_losses(logits, smoothed_target(labels, logits.shape[1], smoothing))  # l: (N, h, w)
    background, objects = pixel_means(losses, labels)
    return {"loss": 0.5 * (background + objects), "background": background, "object": objects}


# ---- the network


class ConditionedHead(nn.Module):
    """Label conditioning and ASPP: z = ASPP(dropout(x * v)) with v = W_e y + b_e.

    The vector v has one factor for each feature channel; a factor may be negative, and an image with several classes gets the
    sum of its classes' vectors plus the bias.

    Args:
        channels: D, of the features.
        num_classes: K foreground classes; the output has C = K + 1 logits.
        rates: dilations of the ASPP's branches.

    Source: AMN's program, resnet50_amn. Explained in notebook 40, section "Label conditioning".
    """

    def __init__(self, channels: int, num_classes: int, rates: Sequence[int] = (6, 12, 18, 24)):
        super().__init__()
        self.label_encoder = nn.Linear(num_classes, channels)  # W_e, b_e
        self.dropout = nn.Dropout(DROPOUT)
        self.aspp = ASPPV2(channels, num_classes + 1, rates)

    def forward(self, features: Tensor, image_labels: Tensor) -> Tensor:
        """Return the logits of conditioned features.

        Args:
            features: x, float (N, D, h, w).
            image_labels: y, float (N, K), 0 or 1.

        Returns:
            z, float (N, C, h, w).
        """
        vector = self.label_encoder(image_labels)  # v: (N, D)
        return self.aspp(self.dropout(features * vector[:, :, None, None]))


class ActivationManipulationNet(nn.Module):
    """A backbone and the conditioned head; logits at the backbone's stride.

    Batch normalization is frozen but for its scale and shift; the stem is not trained, everything else is.

    Args:
        backbone: from `wsss_lib.nets.backbone`.
        num_classes: K foreground classes.
        rates: dilations of the ASPP's branches.

    Source: AMN's program, resnet50_amn. Explained in notebook 40, section "Label conditioning".
    """

    def __init__(self, backbone: Backbone, num_classes: int, rates: Sequence[int] = (6, 12, 18, 24)):
        super().__init__()
        self.backbone = freeze_batch_norm(backbone)
        for module in backbone.shallow_modules(1):
            module.requires_grad_(False)
        self.head = ConditionedHead(backbone.channels[-1], num_classes, rates)

    def features(self, images: Tensor) -> Tensor:
        """Return x (N, D, h, w) of normalized images (N, 3, H, W)."""
        return self.backbone.feature_scale * self.backbone(images)

    def forward(self, images: Tensor, image_labels: Tensor) -> Tensor:
        """Return the logits of images.

        Args:
            images: float (N, 3, H, W), normalized.
            image_labels: y, float (N, K), 0 or 1.

        Returns:
            z, float (N, C, h, w) at the backbone's stride.
        """
        return self.head(self.features(images), image_labels)

    def parameter_groups(self, learning_rate: float, head_learning_rate: float, weight_decay: float) -> list[dict]:
        """Return Adam's two groups: the trained part of the backbone; label encoder and ASPP.

        Args:
            learning_rate: of the backbone (published: 5e-6).
            head_learning_rate: of the head (published: 1e-4).
            weight_decay: of both, added to the gradient as Adam does (published: 1e-4).
        """
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        return [
            {"params": trained, "lr": learning_rate, "weight_decay": weight_decay},
            {"params": list(self.head.parameters()), "lr": head_learning_rate, "weight_decay": weight_decay},
        ]


# ---- localization


def seed_on_grid(seed: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map by Pillow's nearest neighbor, as the official program does: row i is row floor((i + 0.5) H / h).

    Args:
        seed: uint8 (H, W).
        size: (h, w) wanted.

    Returns:
        uint8 (h, w); no new value appears.

    Source: AMN's program, train_amn and make_amn_cam. Explained in notebook 40, section "Refined seeds".

    >>> seed_on_grid(np.arange(8, dtype=np.uint8)[None], (1, 2))
    array([[2, 6]], dtype=uint8)
    """
    return np.asarray(Image.fromarray(seed).resize((size[1], size[0]), Image.Resampling.NEAREST))


def merge_flipped(logits: Tensor) -> Tensor:
    """Return the mean of an image's logits and its flip's, flipped back: (2, C, h, w) to (C, h, w)."""
    return (logits[0] + logits[1].flip(-1)) / 2


def manipulated_maps(logits: Sequence[Tensor], size: tuple[int, int], classes: Tensor, seed: Tensor | None) -> Tensor:
    """Turn the merged logits of all scales into maps.

    The logits are averaged over the scales at `size`, p = softmax over all C channels, and the channels of the background and
    of the image's classes are kept. With n = (p - min) / (max - min + 1e-5) per channel, the map is p where the refined
    seed mask says background and n elsewhere, i.e. on objects and on unknown pixels.

    Args:
        logits: for each scale float (C, h_s, w_s), from `merge_flipped`.
        size: (H, W) of the maps: the stride-4 size, or the image's.
        classes: int64 (K,) the image's foreground classes, 0-based.
        seed: (H, W) integers, the refined seed mask at `size`; None: n everywhere.

    Returns:
        float (1 + K, H, W) in [0, 1], the background's first.

    Source: AMN's program, make_amn_cam. Abstract and project page do not mention the use of the seed.
    Explained in notebook 40, section "From logits to maps".
    """
    resized = [F.interpolate(z[None], size=tuple(size), mode="bilinear", align_corners=False)[0] for z in logits]
    probabilities = torch.stack(resized).mean(0).softmax(0)  # p: (C, H, W)
    kept = probabilities[torch.cat([classes.new_zeros(1), classes + 1]).to(probabilities.device)]  # (1 + K, H, W)
    low, high = kept.amin((1, 2), keepdim=True), kept.amax((1, 2), keepdim=True)
    stretched = (kept - low) / (high - low + 1e-5)  # n
    return stretched if seed is None else torch.where(seed == 0, kept, stretched)


@torch.inference_mode()
def localization_maps(
    net: ActivationManipulationNet,
    images: Sequence[Image.Image],
    labels: np.ndarray,
    seeds: Sequence[np.ndarray | None],
    scales: Sequence[float],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dropout_keys: Sequence[str] = (),
    keep_full: bool = False,
) -> list[tuple]:
    """Return the stride-4 foreground maps of a batch of equally sized images.

    Args:
        images: N RGB images of one size (H, W).
        labels: uint8 (N, K), the image-level labels.
        seeds: for each image its refined seed mask uint8 (H, W), or None to stretch the maps everywhere.
        scales: factors on the image's size.
        dropout_keys: one string for each image leaves dropout on, drawn from that string alone; empty: dropout is off.
        keep_full: also return full-size maps: the softmax stands between them and the scales, so nothing smaller
            holds them.

    Returns:
        for each image: classes int64 (K,), scores float32 (K, h, w) in [0, 1]; with `keep_full` also float32 (K, H, W).

    Source: AMN's program, make_amn_cam. Explained in notebook 40, section "From logits to maps".
    """
    device = net.head.label_encoder.weight.device
    image_labels = torch.from_numpy(np.asarray(labels, np.float32)).to(device)  # y: (N, K)
    logits = []
    for scale in scales:
        arrays = [transforms.normalize(transforms.resize_image(image, scale), mean, std) for image in images]
        batch = torch.stack([transforms.to_tensor(array) for array in arrays]).to(device)  # (N, 3, H_s, W_s)
        views = torch.cat([batch, batch.flip(-1)])
        if dropout_keys:
            features = forward_in_parts(net.features, views)  # x: (2N, D, h_s, w_s)
            pairs = [
                _with_dropout(net.head, features[[index, index + len(images)]], image_labels[[index, index]], f"{key}/{scale}")
                for index, key in enumerate(dropout_keys)
            ]
        else:
            z = forward_in_parts(net, views, image_labels.repeat(2, 1)).float()
            pairs = [z[[index, index + len(images)]] for index in range(len(images))]  # (2, C, h_s, w_s)
        logits.append([merge_flipped(pair) for pair in pairs])
    full, result = images[0].size[::-1], []
    for index, seed in enumerate(seeds):
        classes, maps = torch.from_numpy(np.flatnonzero(labels[index])), []
        for size in (stride4_size(full), full) if keep_full else (stride4_size(full),):
            grid = None if seed is None else torch.from_numpy(seed_on_grid(seed, size).copy()).to(device)  # (h, w)
            both = manipulated_maps([merged[index] for merged in logits], size, classes, grid)
            maps.append(both[1:].cpu().numpy())  # every reader of the maps drops the background's
        result.append((classes.numpy(), *maps))
    return result


def _with_dropout(head: ConditionedHead, features: Tensor, image_labels: Tensor, key: str) -> Tensor:
    """Return the logits with dropout as in training, its mask a function of `key`."""
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(key.encode()))
        head.dropout.train()
        logits = head(features, image_labels).float()
        head.dropout.eval()
    return logits


class ConditionedSamples(AffinitySamples):
    """Images, refined seed masks and image-level labels: joint random scale, horizontal flip and crop.

    Yields image float32 (3, crop, crop), 0 outside it; label int64 (h, h) on the grid of the logits, 255 outside the image;
    the WHOLE image's label float32 (K,), even if the crop has lost a class.

    Args:
        stride: of the logits.
        arguments: of `AffinitySamples`.

    Explained in notebook 40, section "Refined seeds".
    """

    def __init__(self, stride: int, *arguments):
        super().__init__(*arguments)
        self.grid = -(-self.crop // stride)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        array, label = self.augmented(key)
        label = seed_on_grid(np.ascontiguousarray(label), (self.grid, self.grid))
        image_label = torch.from_numpy(self.data.labels[key[1]].astype(np.float32))
        return transforms.to_tensor(array), transforms.to_tensor(label), image_label


def make_refined_seeds(data: SegmentationDataset, maps_folder: Path, config: Settings, folder: Path) -> int:
    """Write `ID.png`, the refined seed mask of every image that has none yet: CAM, two thresholds, dense CRF.

    Args:
        maps_folder: holds CAM's `ID.npz`.

    Raises:
        DataError: a map or an image is missing or broken.

    Source: AMN's program, cam_to_ir_label. Explained in notebook 40, section "Refined seeds".
    """
    work = partial(_refined_seed, data=data, maps_folder=maps_folder, config=config, folder=folder)
    return for_each_image(
        data.ids, lambda image_id: folder / f"{image_id}.png", work, "refined seeds", config, cpu_workers(config)
    )


def _refined_seed(image_id: str, data: SegmentationDataset, maps_folder: Path, config: Settings, folder: Path) -> None:
    classes, scores = full_size_maps(maps_folder, image_id)
    write_mask(
        folder / f"{image_id}.png",
        irn_labels(
            np.array(data.image(image_id)),
            scores,
            classes,
            config.amn_foreground_threshold,
            config.amn_background_threshold,
            config.seed_crf_iterations,
        ),
    )


def _check_seeds(data: SegmentationDataset, folder: Path) -> None:
    missing = [path for image_id in data.ids if not (path := folder / f"{image_id}.png").is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: the refined seed is missing, and {len(missing) - 1} others of split {data.split!r}; "
            "run make_refined_seeds on this split first"
        )


def build_amn(
    config: Settings, num_classes: int, classifier_weights: Path | str, weights: Path | str = ""
) -> ActivationManipulationNet:
    """Build AMN on the ImageNet backbone (published) or on the classifier's, or from its own weights.

    Args:
        num_classes: foreground classes K.
        classifier_weights: CAM's classifier, read if amn_init says so.
        weights: a safetensors file of a whole network of this kind; empty: none.

    Returns:
        the network, not yet in evaluation mode.

    Raises:
        ValueError: weights of another network.
        FileNotFoundError: there is no such weights file.
    """
    start = config.backbone_weights if config.amn_init == "backbone" else "classifier"
    build = partial(build_backbone, config.backbone, config.output_stride)
    backbone = start_backbone(build, start, classifier_weights, weights)
    net = ActivationManipulationNet(backbone, num_classes, config.amn_atrous_rates)
    return load_whole(net, weights)


@in_processes
def train_amn(
    net: ActivationManipulationNet,
    data: SegmentationDataset,
    seed_folder: Path,
    config: Settings,
    folder: Path,
    loss_of: Callable[[nn.Module, tuple[Tensor, ...]], dict[str, Tensor]] | None = None,
) -> int:
    """Train AMN on refined seed masks with Adam at constant rates.

    If a batch does not fit the device (`device_batch_size`), the loss's two means run over each of its parts.

    Args:
        seed_folder: holds the refined seed masks `ID.png`.
        loss_of: (network, batch of `ConditionedSamples`) to named losses; None: `balanced_loss` with `amn_smoothing`.

    Raises:
        DataError: a refined seed mask is missing.
        ValueError: as `training.train`.

    Source: AMN's program, train_amn. Explained in notebook 40, section "Training".
    """
    _check_seeds(data, seed_folder)
    mean, std = normalization_of(config.backbone)
    samples = ConditionedSamples(
        net.backbone.strides[-1],
        data,
        seed_folder,
        config.seed,
        (config.irn_scale_min, config.irn_scale_max),
        config.irn_crop,
        mean,
        std,
    )

    def balanced(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels, image_labels = batch
        return balanced_loss(model(images, image_labels), labels, config.amn_smoothing)

    steps = config.amn_epochs * steps_per_epoch(len(data), config.cam_batch_size)
    groups = net.parameter_groups(config.amn_learning_rate, config.amn_head_learning_rate, config.amn_weight_decay)
    training.train(
        net,
        loss_of or balanced,
        samples,
        groups,
        None,
        steps,
        config.cam_batch_size,
        config,
        folder,
        schedule=lambda step, total: 1.0,
        name="AMN",
    )
    return steps * config.cam_batch_size


def amn_localization(
    net: ActivationManipulationNet, data: SegmentationDataset, seed_folder: Path | None, config: Settings
) -> Localize:
    """Return the function that makes AMN's maps, for `make_maps`.

    Args:
        seed_folder: holds the refined seed masks `ID.png`; None: the maps are stretched everywhere (not the published way).

    Raises:
        DataError: a refined seed mask is missing.
    """
    if seed_folder:
        _check_seeds(data, seed_folder)
    mean, std = normalization_of(config.backbone)
    net = folded(net)

    def localize(ids: Sequence[str], images: Sequence[Image.Image], labels: np.ndarray) -> list[tuple]:
        seeds = [
            read_mask(seed_folder / f"{image_id}.png", data.num_classes, image.size) if seed_folder else None
            for image_id, image in zip(ids, images, strict=True)
        ]
        keys = [f"{config.seed}/{image_id}" for image_id in ids] if config.amn_dropout_in_maps else ()
        keep_full = config.map_size == "image"
        return localization_maps(net, images, labels, seeds, config.cam_scales, mean, std, keys, keep_full)

    return cam.in_precision(localize, net.head.label_encoder.weight.device, config)


# ---- stages


def _score_seeds(job: Job) -> list[dict]:
    data = job.score_data
    evaluation = score_masks(data, job.folder)
    return [
        {
            "what": "refined seeds",
            "split": data.split,
            "images": len(data),
            "crf": True,
            "unknown_share": round(evaluation.unknown_share, 4),
            "miou_with_unknown_as_background": round(100 * evaluation.scores().miou, 2),
        }
    ]


def _make_network(job: Job) -> int:
    given, start = job.config.amn_weights, job.inputs["classifier"].weights if "classifier" in job.inputs else ""
    return network_made(
        job,
        lambda: build_amn(job.config, job.data.num_classes, start, given),
        lambda net: train_amn(net, job.data, job.inputs["seeds"].folder, job.config, job.folder),
        given,
    )


def _load_network(job: Job) -> ActivationManipulationNet:
    return build_amn(job.config, job.data.num_classes, "", job.weights).to(job.device).eval()


def _make_maps(job: Job) -> int:
    localize = amn_localization(job.inputs["network"].net, job.data, job.inputs["seeds"].folder, job.config)
    return make_maps(localize, job.data, job.config, job.folder)


def _score_maps(job: Job) -> list[dict]:
    """The best threshold of all images together, and how far apart those of single images lie."""
    sweep = sweep_maps(job.score_data, job.folder, np.linspace(0.01, 0.9, 90), ImageThresholds)
    spread = {"what": "thresholds", "split": job.score_data.split, "images": len(job.score_data), **sweep.summary()}
    return [*score_maps(job), spread]


REFINED_SEEDS = Stage(
    "refined_seeds",
    NOTEBOOK,
    lambda job: make_refined_seeds(job.data, job.inputs["maps"].folder, job.config, job.folder),
    inputs=lambda config: {"maps": cam.MAPS},
    score=_score_seeds,
    reads=("amn_foreground_threshold", "amn_background_threshold", "seed_crf_iterations"),
)
NETWORK = Stage(
    "network",
    NOTEBOOK,
    _make_network,
    load=_load_network,
    inputs=lambda config: (
        {"seeds": REFINED_SEEDS} | ({"classifier": cam.CLASSIFIER} if config.amn_init == "classifier" else {})
    ),
    reads=lambda config: (
        *start_of(config.amn_init),
        "cam_batch_size",
        "irn_scale_min",
        "irn_scale_max",
        "irn_crop",
        "amn_weights",
        "amn_init",
        "amn_epochs",
        "amn_learning_rate",
        "amn_head_learning_rate",
        "amn_weight_decay",
        "amn_smoothing",
        "amn_atrous_rates",
        *TRAINING,
    ),
)
MAPS = Stage(
    "maps",
    NOTEBOOK,
    _make_maps,
    inputs=lambda config: {"network": NETWORK, "seeds": REFINED_SEEDS},
    score=_score_maps,
    reads=("backbone", "cam_scales", *cam.MAP_FORM, "amn_dropout_in_maps", "seed"),
    shows={"CAM at its best threshold": None},
)
STAGES = (REFINED_SEEDS, NETWORK, MAPS)


# ---- costs


def costs(config: Settings, data: Images) -> list[Cost]:
    """Count refined seed masks, network and maps."""
    net, batch = build_amn(config, data.classes, ""), crops(config.irn_crop)

    def loss_of(count: int) -> Tensor:
        logits = net(batch(count), torch.empty(count, data.classes))
        labels = torch.empty(count, *logits.shape[2:], dtype=torch.long)
        target = torch.empty(logits.shape)  # as from `smoothed_target`, which looks at the labels' values
        return sum(pixel_means(pixel_losses(logits, target), labels), torch.zeros(()))

    seeds = Cost("refined_seeds", core_seconds=data.train * data.crf_seconds(2), disk_mib=data.masks_mib)
    seen = data.seen(config.amn_epochs, config.cam_batch_size)
    network = training_cost("network", net, loss_of, seen, config.cam_batch_size, config, moments=2)
    maps = inference_cost(
        "maps",
        net.eval(),
        lambda views: net(views, torch.empty(len(views), data.classes)),
        data.train,
        data.size,
        config.cam_scales,
        at_once=config.device_batch_size,
        disk_mib=data.full_maps_mib,
    )
    return [seeds, network, maps]
