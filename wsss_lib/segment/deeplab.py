"""Notebook 90: DeepLab."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from wsss_lib.core import training
from wsss_lib.core.counting import Cost, Images, crops, inference_cost, training_cost
from wsss_lib.core.distributed import in_processes, rank_and_world_size
from wsss_lib.core.files import IGNORE, image_size, write_mask
from wsss_lib.core.parallel import cpu_workers, for_each_image
from wsss_lib.core.progress import progress
from wsss_lib.core.scoring import metric_row, score_masks
from wsss_lib.core.stage import Job, Stage, network_made, open_stage
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset, truth_hash
from wsss_lib.data.samples import SegmentationSamples, V3PlusSamples
from wsss_lib.methods import METHODS
from wsss_lib.methods.cam import CLASSIFIER
from wsss_lib.nets import deeplab_v2, deeplab_v3plus
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.nets.deeplab_v2 import (
    DeepLabV2,
    balanced_cross_entropy,
    cross_entropy,
    multi_scale_logits,
    multi_scale_loss,
    self_label_loss,
)
from wsss_lib.nets.deeplab_v3plus import DeepLabV3Plus, build_dilated_backbone
from wsss_lib.nets.folding import folded
from wsss_lib.nets.weights import converted_from, load_whole, start_backbone
from wsss_lib.ops.crf import crf_segmentation
from wsss_lib.ops.metrics import Evaluation
from wsss_lib.parameters import (
    TRAINING,
    Count,
    Fraction,
    Integers,
    Numbers,
    ParameterGroup,
    Positive,
    Rate,
    Settings,
    Text,
    project_path,
)
from wsss_lib.refine import affinitynet, irn

NOTEBOOK = "90_deeplab"
# The masks that may be learned: the values of `refinement`, each to the stage that makes them.
MASKS: dict[str, Stage] = {
    module.REFINEMENT: module.MASKS for module in (irn, affinitynet, *METHODS.values()) if hasattr(module, "REFINEMENT")
}


WORKERS_PAY = 10_000_000  # pixels to refine and write; fewer take less time than starting the processes


class Parameters(ParameterGroup):
    """90: DeepLab-v2 and -v3+."""

    deeplab_version: Literal["v2", "v3plus"] = "v2"
    deeplab_backbone: Literal["resnet_small", "resnet50", "resnet101", "resnet101_caffe", "efficientnet_lite0"] = "resnet_small"
    deeplab_weights: Text = ""  # a segmentation network to use instead of training one
    # Start of the backbone: "imagenet", "classifier" (of notebook 10), "none", or a safetensors file of a backbone.
    deeplab_init: Text = "classifier"
    deeplab_output_stride: Literal[8, 16] = 8
    deeplab_atrous_rates: Integers = (1, 2, 4, 6)  # published: 6, 12, 18, 24; v3plus has three: 6, 12, 18 at stride 16
    deeplab_decoder_width: Annotated[int, Field(ge=16)] = 32  # of v3plus; published: 256
    deeplab_iterations: Positive = 900
    deeplab_batch_size: Positive = 16
    deeplab_accumulation: Positive = 1  # equal parts of a batch, whose mean losses are averaged; published: 2
    deeplab_learning_rate: Rate = 3e-3  # published: 2.5e-4; v3plus: 0.01, of the decoder
    deeplab_rate_every: Positive = 10  # of v2: iterations between two changes of the rate; VWE: 1
    deeplab_momentum: Fraction = 0.9
    deeplab_weight_decay: Rate = 5e-4
    deeplab_loss: Literal["cross_entropy", "balanced", "self_label"] = "cross_entropy"
    deeplab_crop: Positive = 96
    deeplab_scales: Numbers = (1.0, 1.25, 1.5)
    deeplab_test_scales: Numbers = (0.5, 0.75)  # of v2, beside 1.0, in training and in testing
    deeplab_padding_is_background: bool = False  # v3plus teaches what lies outside the image as background (published: true)
    deeplab_centre_crop: Count = 0  # also score center crops of this side (published v3plus numbers: 513); 0: full images only

    @model_validator(mode="after")
    def _deeplab_version_fits(self) -> "Parameters":
        if self.deeplab_version == "v3plus" and (self.deeplab_loss == "self_label" or len(self.deeplab_atrous_rates) != 3):
            raise ValueError(
                "deeplab_version 'v3plus' has three deeplab_atrous_rates and no self_label loss; give for "
                "instance deeplab_atrous_rates [6, 12, 18] and deeplab_loss cross_entropy"
            )
        if self.deeplab_batch_size % self.deeplab_accumulation:
            raise ValueError(
                f"deeplab_batch_size ({self.deeplab_batch_size}) must be a multiple of deeplab_accumulation "
                f"({self.deeplab_accumulation})"
            )
        return self


def deeplab_name(config: Settings) -> str:
    """Return "DeepLab-v2" or "DeepLab-v3+".

    Explained in notebook 90, section "The network".
    """
    return {"v2": "DeepLab-v2", "v3plus": "DeepLab-v3+"}[config.deeplab_version]


def build_deeplab(
    config: Settings, num_classes: int, classifier_weights: Path, weights: Path | str = ""
) -> DeepLabV2 | DeepLabV3Plus:
    """Build DeepLab-v2 or -v3+ for the foreground classes and background.

    Args:
        num_classes: foreground classes C.
        classifier_weights: safetensors file of the classifier; read only with deeplab_init "classifier" and without `weights`.
        weights: a safetensors file of a whole DeepLab; empty: the backbone starts as deeplab_init says.

    Raises:
        ValueError: weights that belong to another network, or to Caffe's form of this one.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 90, section "The network".
    """
    build = build_backbone if config.deeplab_version == "v2" else build_dilated_backbone
    backbone = start_backbone(
        partial(build, config.deeplab_backbone, config.deeplab_output_stride), config.deeplab_init, classifier_weights, weights
    )
    start = project_path(config.deeplab_init)
    from_file = not weights and start.is_file()
    if from_file and config.deeplab_backbone != "resnet101_caffe" and converted_from(start) == "deeplab-init":
        raise ValueError(
            f"{start}: these weights compute in Caffe's form of ResNet-101 alone; set deeplab_backbone to resnet101_caffe, "
            f"not {config.deeplab_backbone}"
        )
    if config.deeplab_version == "v2":
        return load_whole(DeepLabV2(backbone, num_classes + 1, config.deeplab_atrous_rates), weights)
    net = DeepLabV3Plus(backbone, num_classes + 1, config.deeplab_atrous_rates, config.deeplab_decoder_width)
    return load_whole(net, weights)


@in_processes
def train_deeplab(
    net: DeepLabV2 | DeepLabV3Plus, data: SegmentationDataset, mask_folder: Path, config: Settings, folder: Path
) -> int:
    """Train DeepLab on (pseudo-)masks, in place.

    Args:
        mask_folder: holds the masks `ID.png` to learn from.

    Raises:
        ValueError: version 3+ with one image at a time on the device; as `training.train`.
        DataError: a mask is missing or broken.

    Explained in notebook 90, section "Training".
    """
    if config.deeplab_version != "v2" and min(config.deeplab_batch_size, config.device_batch_size) < 2:
        raise ValueError(
            "DeepLab-v3+ trains batch normalization on one value an image: deeplab_batch_size and "
            "device_batch_size must be at least 2"
        )
    common = (
        data,
        mask_folder,
        config.seed,
        config.deeplab_scales,
        config.deeplab_crop,
        *normalization_of(config.deeplab_backbone),
    )
    samples: SegmentationSamples
    schedule: Callable[[int, int], float]
    rate, decay = config.deeplab_learning_rate, config.deeplab_weight_decay
    if isinstance(net, DeepLabV2):
        samples = SegmentationSamples(*common, image_labels=config.deeplab_loss == "self_label")
        groups = deeplab_v2.parameter_groups(net, rate, decay)
        schedule = partial(training.poly_factor, every=config.deeplab_rate_every)
    else:
        samples = V3PlusSamples(*common, label_fill=0 if config.deeplab_padding_is_background else IGNORE)
        groups, schedule = deeplab_v3plus.parameter_groups(net, rate, decay), training.poly_factor
    training.train(
        net,
        partial(_deeplab_loss, config=config),
        samples,
        groups,
        config.deeplab_momentum,
        config.deeplab_iterations,
        config.deeplab_batch_size,
        config,
        folder,
        schedule,
        deeplab_name(config),
    )
    return config.deeplab_iterations * config.deeplab_batch_size


def _deeplab_loss(net: nn.Module, batch: tuple[Tensor, ...], config: Settings) -> dict[str, Tensor]:
    images, masks, *image_labels = batch
    losses: dict[str, Callable[..., Tensor]] = {
        "cross_entropy": cross_entropy,
        "balanced": balanced_cross_entropy,
        "self_label": self_label_loss,
    }
    pixel_loss = losses[config.deeplab_loss]
    if config.deeplab_version != "v2":
        logits = F.interpolate(net(images), size=masks.shape[-2:], mode="bilinear", align_corners=False)
        return {"loss": pixel_loss(logits, masks)}
    scales = multi_scale_logits(net, images, config.deeplab_test_scales)

    def mean_of(rows: slice) -> Tensor:
        present = [labels[rows] for labels in image_labels]
        return multi_scale_loss([z[rows] for z in scales], masks[rows], lambda z, mask: pixel_loss(z, mask, *present))

    # The official programs accumulate parts of a batch, each with a mean over its own pixels. So does this code, whatever a
    # device can hold; a device that holds less than such a part has a mean for each of its own.
    together = config.deeplab_batch_size // config.deeplab_accumulation // rank_and_world_size()[1]
    if not together or len(images) % together:
        together = len(images)
    means = [mean_of(slice(first, first + together)) for first in range(0, len(images), together)]
    return {"loss": torch.stack(means).mean()}


def class_probabilities(net: nn.Module, image: Image.Image, config: Settings) -> np.ndarray:
    """Return DeepLab's class probabilities of one image, without image-level labels: float32 (K, H, W) in [0, 1].

    Explained in notebook 90, section "Training".
    """
    return _probabilities(_logits(net, image, config), image.size[::-1])


@torch.inference_mode()
def _logits(net: nn.Module, image: Image.Image, config: Settings) -> np.ndarray:
    """Return the network's logits of one image: float32 (K, h, w) at its own stride."""
    mean, std = normalization_of(config.deeplab_backbone)
    tensor = transforms.to_tensor(transforms.normalize(image, mean, std))[None].to(next(net.parameters()).device)
    logits = multi_scale_logits(net, tensor, config.deeplab_test_scales)[-1] if config.deeplab_version == "v2" else net(tensor)
    return logits[0].float().cpu().numpy()


@torch.inference_mode()
def _probabilities(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    full = F.interpolate(torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=False)
    return full.softmax(1)[0].numpy()


def make_predictions(net: nn.Module, data: SegmentationDataset, config: Settings, folder: Path) -> int:
    """Write `plain/ID.png` and, after the CRF, `crf/ID.png` of every image that has none yet.

    A CRF takes a core a hundred times as long as the network takes a GPU. So this process computes the small logits image by
    image, and workers upsample, refine and write them.

    Explained in notebook 90, section "All validation images".
    """
    net, pixels = folded(net), len(data) * math.prod(image_size(data.image_path(data.ids[0])))
    return for_each_image(
        data.ids,
        lambda image_id: tuple(folder / name / f"{image_id}.png" for name in ("plain", "crf")),
        partial(_write_prediction, data=data, folder=folder),
        "prediction",
        config,
        cpu_workers(config) if pixels > WORKERS_PAY else 0,
        lambda image_id: _logits(net, data.image(image_id), config),
    )


def _write_prediction(image_id: str, logits: np.ndarray, data: SegmentationDataset, folder: Path) -> None:
    image = data.image(image_id)
    probabilities = _probabilities(logits, image.size[::-1])
    write_mask(folder / "plain" / f"{image_id}.png", probabilities.argmax(0))
    write_mask(folder / "crf" / f"{image_id}.png", crf_segmentation(np.array(image), probabilities))


def score_centre_crops(net: nn.Module, data: SegmentationDataset, config: Settings) -> Evaluation:
    """Score a network on center crops; not comparable with a score of full images.

    Raises:
        DataError: a ground-truth mask is missing or broken.

    Explained in notebook 90, section "Numbers".
    """
    net.eval()
    evaluation = Evaluation(data.num_classes + 1)
    for image_id in progress(data.ids, "center crops"):
        image, mask = transforms.centre_crop(data.image(image_id), data.mask(image_id), config.deeplab_centre_crop)
        evaluation.add(mask, class_probabilities(net, image, config).argmax(0))
    return evaluation


# ---- stages


def masks_of(config: Any) -> Stage:
    """Return the stage whose masks DeepLab learns.

    Raises:
        ValueError: no method makes masks of that name.
    """
    if config.refinement not in MASKS:
        raise ValueError(f"refinement {config.refinement!r} is unknown; take one of: {', '.join(MASKS)}")
    return MASKS[config.refinement]


def _inputs(config: Any) -> dict[str, Stage]:
    masks = {} if config.method == "truth" else {"masks": masks_of(config)}
    return masks | ({"classifier": CLASSIFIER} if config.deeplab_init == "classifier" else {})


def _make_network(job: Job) -> int:
    given, start = job.config.deeplab_weights, job.inputs["classifier"].weights if "classifier" in job.inputs else Path()
    masks = job.inputs["masks"].folder if "masks" in job.inputs else job.data.root / job.data.mask_folder
    return network_made(
        job,
        lambda: build_deeplab(job.config, job.data.num_classes, start, given),
        lambda net: train_deeplab(net, job.data, masks, job.config, job.folder),
        given,
    )


def _load_network(job: Job) -> nn.Module:
    return build_deeplab(job.config, job.data.num_classes, Path(), job.weights).to(job.device).eval()


def _make_predictions(job: Job) -> int:
    unlabelled = replace(job.data, labels=np.zeros_like(job.data.labels))
    return make_predictions(job.inputs["deeplab"].net, unlabelled, job.config, job.folder)


def _score_predictions(job: Job) -> list[dict]:
    data, config = job.score_data, job.config
    honest = (
        "all training masks"
        if job.whole.method == "truth"
        else open_stage(masks_of(job.whole), job.whole).metrics[-1].get("pixel_labels_chose", "")
    )
    start = job.whole.deeplab_init
    if start not in ("imagenet", "classifier", "none"):  # it may have seen masks, as the authors' weights have seen COCO's
        honest = "; ".join(filter(None, (honest, f"whatever made the start {Path(start).name}")))
    name = deeplab_name(config)
    scored = [
        (name, score_masks(data, job.folder / "plain"), False),
        (f"{name} + CRF", score_masks(data, job.folder / "crf"), True),
    ]
    if config.deeplab_centre_crop:  # another set of pixels, as the row's name says
        crops = score_centre_crops(job.inputs["deeplab"].net, data, config)
        scored.append((f"{name} ({config.deeplab_centre_crop} center crop)", crops, False))
    return [
        metric_row(what, data, evaluation, crf, config) | {"pixel_labels_chose": honest} for what, evaluation, crf in scored
    ]


def _read_by_network(config: Any) -> tuple[str, ...]:
    own = (
        ("deeplab_decoder_width", "deeplab_padding_is_background")
        if config.deeplab_version == "v3plus"
        else ("deeplab_test_scales", "deeplab_accumulation", "deeplab_rate_every")
    )
    return (
        *own,
        "deeplab_version",
        "deeplab_backbone",
        "deeplab_weights",
        "deeplab_init",
        "deeplab_output_stride",
        "deeplab_atrous_rates",
        "deeplab_iterations",
        "deeplab_batch_size",
        "deeplab_learning_rate",
        "deeplab_momentum",
        "deeplab_weight_decay",
        "deeplab_loss",
        "deeplab_crop",
        "deeplab_scales",
        *TRAINING,
    )


def _read_by_predictions(config: Any) -> tuple[str, ...]:
    scales = ("deeplab_test_scales",) if config.deeplab_version == "v2" else ()
    return "deeplab_version", "deeplab_backbone", *scales


DEEPLAB = Stage(
    "deeplab",
    NOTEBOOK,
    _make_network,
    load=_load_network,
    inputs=_inputs,
    reads=_read_by_network,
    files=lambda job: {"ground truth": truth_hash(job.data)} if job.whole.method == "truth" else {},
)
PREDICTIONS = Stage(
    "predictions",
    NOTEBOOK,
    _make_predictions,
    inputs=lambda config: {"deeplab": DEEPLAB},
    split="val_split",
    score=_score_predictions,
    score_split="val_split",
    reads=_read_by_predictions,
    score_reads=("deeplab_centre_crop", "pixel_labels_chose"),
    shows={"DeepLab-v2": "plain", "DeepLab-v2 + CRF": "crf", "DeepLab-v3+": "plain", "DeepLab-v3+ + CRF": "crf"},
)
STAGES = (DEEPLAB, PREDICTIONS)


# ---- costs


def costs(config: Settings, data: Images) -> list[Cost]:
    """Count the training and the predictions of the validation images."""
    net, batch, side = build_deeplab(config, data.classes, Path()), crops(config.deeplab_crop), config.deeplab_crop

    def loss_of(count: int) -> Tensor:
        labels = [torch.empty(count, side, side, dtype=torch.long)]
        if config.deeplab_loss == "self_label":
            labels.append(torch.empty(count, data.classes + 1))
        return _deeplab_loss(net, (batch(count), *labels), config)["loss"]

    def logits_of(image: Tensor) -> Tensor:
        logits = (
            multi_scale_logits(net, image, config.deeplab_test_scales)[-1] if config.deeplab_version == "v2" else net(image)
        )
        return F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False).softmax(1)

    seen = config.deeplab_iterations * config.deeplab_batch_size
    network = training_cost("deeplab", net, loss_of, seen, config.deeplab_batch_size, config)
    predictions = inference_cost(
        "predictions",
        net.eval(),
        logits_of,
        data.val,
        data.size,
        views=1,
        core_seconds=2 * data.val * data.crf_seconds(),  # twice the labels of a seed mask: what the network considers possible
        disk_mib=2 * data.masks_mib * data.val / data.train,
    )
    return [network, predictions]
