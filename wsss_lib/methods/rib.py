"""RIB: reducing the information bottleneck (Lee, Choi, Mok, Yoon, NeurIPS 2021) of a trained CAM classifier.

For every image the classifier is tuned for a few steps to raise the raw logits of the image's classes, without the final
activation; the class activation maps of all steps are added up. No weights are kept: the result is a set of maps.
"""

import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wsss_lib.core.counting import Cost, Images, Memory
from wsss_lib.core.parallel import Localize, make_maps
from wsss_lib.core.scoring import score_maps
from wsss_lib.core.stage import Job, Stage
from wsss_lib.core.training import poly_factor
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import ClassificationSamples, batches_of_pool, disjoint_pool
from wsss_lib.methods.cam import CLASSIFIER, IRN_GRID, ClassActivationNet, build_classifier, grid_stride_of
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.ops.merging import Views, join_flips, merge_views, stride4_size
from wsss_lib.parameters import Fraction, ParameterGroup, Positive, Range, Rate, Settings

NOTEBOOK = "20_rib"
SETS_FOR_OTHERS = ("seed_*", "walk_*", "deeplab_*")  # parameters of other notebooks that its presets may set
FROZEN_STAGES = 3  # stem, layer1 and layer2 stay as they are, whatever the classifier's own training froze
COMPANION_BANK = 512  # images that companions are drawn from: enough for the 9 x 20 of one image
KEPT_PUSHES = 32  # label sets whose first push is remembered; 90 MB each with ResNet-50
# The values that a study tries, including the published ones where the network allows them.
TUNED = {
    "rib_learning_rate": Range(1e-6, 1e-3, log=True),
    "rib_head_learning_rate": Range(1e-5, 1e-2, log=True),
    "rib_iterations": Range(2, 10),
    "rib_region_threshold": Range(0.2, 0.7),
}


class Parameters(ParameterGroup):
    """20: the classifier is tuned for every image anew; the small network in one long step instead of nine short ones."""

    rib_learning_rate: Rate = 1e-3  # published: 8e-6 (VOC), 5e-6 (COCO)
    rib_head_learning_rate: Rate = 1e-2  # ten times the backbone's
    # Published: the weight decay, which the official program hands SGD where it expects the momentum.
    rib_momentum: Fraction = 1e-4
    rib_weight_decay: Rate = 1e-4
    rib_iterations: Positive = 2  # K maps are added up, after 0 to K - 1 updates; published: 10
    rib_companions: Positive = 20  # other images in each update; published: 20 (VOC), 15 (COCO)
    rib_region_threshold: Rate = 0.2  # tau; published: 0.4 (VOC), 0.5 (COCO); above 1 it is average pooling
    rib_stop_threshold: Rate = 600.0  # of the image's summed logits; published: 600 (VOC), 1000 (COCO)
    rib_explode_threshold: Fraction = 0.3  # what counts as covered, and ...
    rib_explode_ratio: Rate = 0.7  # ... how much covered stops the steps; published: 0.7 (VOC), 0.8 (COCO)
    rib_variant: Literal["code", "paper"] = "code"  # "paper": mean over the kept positions, the stop threshold is the margin m
    rib_first_twenty_only: bool = False  # True in the published COCO run: classes from index 20 on are pooled plainly


# ---- what is optimized


def pooled_logits(
    maps: Tensor, labels: Tensor, threshold: float, variant: Literal["code", "paper"] = "code", first_twenty_only: bool = False
) -> Tensor:
    """Pool raw maps over the positions that are not yet discriminative (GNDRP); absent classes get the plain mean.

    Args:
        maps: float (N, C, h, w), Z: the classifier's output before any cut or activation.
        labels: (N, C) or (1, C), > 0 where the class is present.
        threshold: tau, a fraction of the map's maximum; positions below it are kept.
        variant: "code" keeps Z / max(Z) < tau and divides the sum by h * w; "paper" keeps CAM <= tau, with the CAM cut at
            zero and divided by its maximum, and divides by the number of kept positions.
        first_twenty_only: repeat a defect of the official code: classes from index 20 on are pooled plainly.

    Returns:
        z: float (N, C). Which positions are kept is a constant for the gradient.

    Source: paper, section 4 (GNDRP); official code, misc/torchutils.py. Explained in notebook 20, section "Where to push".

    >>> maps = torch.tensor([[[[4.0, 1.0, -1.0, 2.0]]]])
    >>> pooled_logits(maps, torch.ones(1, 1), 0.4).item(), pooled_logits(maps, torch.zeros(1, 1), 0.4).item()
    (0.0, 1.5)
    """
    seen = maps.detach()
    if variant == "code":
        kept = seen / seen.amax((2, 3), keepdim=True) < threshold  # nothing of a map that is negative everywhere
        size: int | Tensor = maps[0, 0].numel()
    else:
        seen = seen.clamp(min=0)
        kept = seen / (seen.amax((2, 3), keepdim=True) + 1e-5) <= threshold
        size = kept.sum((2, 3)).clamp(min=1)
    special = labels > 0
    if first_twenty_only:
        special = special & (torch.arange(maps.shape[1], device=maps.device) < 20)
    return torch.where(special, (maps * kept).sum((2, 3)) / size, maps.mean((2, 3)))


def rib_loss(logits: Tensor, labels: Tensor, margin: float = float("inf")) -> Tensor:
    """Return -sum(y min(m, z)) over all rows and classes: only the logits of present classes are pushed, and only up.

    Args:
        logits: z, float (N, C), without a final activation.
        labels: y, (N, C) or (1, C), 0 or 1.
        margin: m; infinite in the official code, which stops instead.

    Source: paper, section 4; official code, obtain_RIB_CAM.py. Explained in notebook 20, section "A loss without activation".

    >>> rib_loss(torch.tensor([[2.0, -1.0, 5.0]]), torch.tensor([[1, 1, 0]])).item()
    -1.0
    """
    return -(labels * logits.clamp(max=margin)).sum()


def coverage(maps: Tensor, classes: Tensor, threshold: float) -> float:
    """Return the fraction of positions where some present class exceeds a fraction of its map's maximum.

    Args:
        maps: float (2, C, h, w), >= 0: of the image and of its horizontal flip.
        classes: int64 (K,).
        threshold: fraction of the maximum, published 0.3.

    Explained in notebook 20, section "When to stop".
    """
    both = maps[0, classes] + maps[1, classes].flip(-1)  # (K, h, w)
    return (both / (both.amax((1, 2), keepdim=True) + 1e-5) > threshold).any(0).float().mean().item()


# ---- one image


class Step(NamedTuple):
    """One iteration k: the maps before its update, and the update."""

    maps: list[Tensor]  # for each scale float (2, C, h_s, w_s), >= 0; only the first scale's in a step that explodes
    coverage: float  # of the first scale's map, see `coverage`
    logits: Tensor | None = None  # z, float (2 * scales in the loss + companions, C); None where there was no update
    labels: Tensor | None = None  # y of the same rows
    loss: float = 0.0
    target_logit: float = 0.0  # sum of y * z over the rows of the image itself
    stop: bool = False  # one of the two rules ended the process


class Push(NamedTuple):
    """What a batch of companions does to the untouched network; the same for every image that starts with this batch."""

    gradients: list[Tensor]  # of `tuned_parameters`
    logits: Tensor  # z, float (B, C)
    labels: Tensor  # y, float (B, C)


def tuned_parameters(net: ClassActivationNet) -> list[nn.Parameter]:
    """Return the parameters that RIB changes: stages 4 and 5 of the backbone, and the classifier."""
    frozen = {id(parameter) for module in net.backbone.shallow_modules(FROZEN_STAGES) for parameter in module.parameters()}
    return [parameter for parameter in net.parameters() if parameter.requires_grad and id(parameter) not in frozen]


@contextmanager
def original_weights(net: ClassActivationNet) -> Iterator[None]:
    """Return a context in which the network may be tuned; afterwards its parameters are restored bit for bit."""
    parameters = tuned_parameters(net)
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
                parameter.grad = None


@torch.no_grad()
def frozen_features(
    net: ClassActivationNet,
    image: Image.Image,
    scales: Sequence[float],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> list[Tensor]:
    """Return the input of the network's tuned part for an image and its horizontal flip; it is the same in all steps.

    Args:
        scales: factors on its size.

    Returns:
        for each scale float (2, D, h_s, w_s).

    Explained in notebook 20, section "The idea in ten lines".
    """
    device, views = net.classifier.weight.device, []
    for scale in scales:
        array = transforms.normalize(transforms.resize_image(image, scale), mean, std)
        tensor = transforms.to_tensor(array)[None].to(device)
        views.append(net.backbone.shallow(torch.cat([tensor, tensor.flip(-1)]), FROZEN_STAGES))
    return views


def scales_in_order(scales: Sequence[float]) -> list[float]:
    """Return the scales with 1.0 first: the first scale's map is the one watched for an explosion."""
    return sorted(scales, key=lambda scale: scale != 1.0)


def evidence(net: ClassActivationNet, features: Tensor) -> Tensor:
    """Return the raw maps Z, float (N, C, h, w), before any cut or activation.

    Args:
        features: float (N, D, h, w), the output of its frozen stages.
    """
    return net.classifier(net.backbone.deep(features, FROZEN_STAGES))


def push(raw: Tensor, labels: Tensor, config: Settings) -> Tensor:
    """Add the gradient of these rows' loss to the parameters' gradients.

    The loss is a plain sum over rows, so each part's gradient can be computed and its activations freed right away.

    Args:
        raw: Z, float (N, C, h, w).
        labels: y, (N, C) or (1, C), 0 or 1.

    Returns:
        the pooled logits z, float (N, C), detached.
    """
    z = pooled_logits(raw, labels, config.rib_region_threshold, config.rib_variant, config.rib_first_twenty_only)
    rib_loss(z, labels, _margin(config)).backward()
    return z.detach()


def _margin(config: Settings) -> float:
    return config.rib_stop_threshold if config.rib_variant == "paper" else float("inf")


def tune(
    net: ClassActivationNet,
    views: Sequence[Tensor],
    in_loss: Sequence[bool],
    label: Tensor,
    companions: Iterable[tuple[Tensor, Tensor] | Push],
    config: Settings,
    last_update: bool = False,
) -> Iterator[Step]:
    """Run the iterations of one image; call it inside `original_weights`.

    Args:
        views: from `frozen_features`, for each scale float (2, D, h_s, w_s).
        in_loss: for each scale, whether it enters the loss (published: all but 0.5).
        label: y, float (C,).
        companions: for each update features (B, D, h, w) and labels (B, C) of other images, which share no class with this one;
            the first may be a `Push`.
        last_update: make the last update too, although no map is computed with its result.

    Yields:
        a `Step` for k = 0, 1, ..., after its update, until all are made or a rule stops.

    Source: official code, obtain_RIB_CAM.py; paper, section 4. Explained in notebook 20, section "The idea in ten lines".
    """
    groups = net.parameter_groups(config.rib_learning_rate, config.rib_head_learning_rate, config.rib_weight_decay)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.rib_momentum)
    optimizer.zero_grad()
    paper = config.rib_variant == "paper"
    classes, label, companions = label.nonzero()[:, 0], label[None], iter(companions)
    num_maps = config.rib_iterations + (1 if paper else 0)
    for k in range(num_maps):
        update = last_update or k + 1 < num_maps
        maps, rows = [], []
        for features, counts in zip(views, in_loss, strict=True):
            with torch.set_grad_enabled(update and counts):
                raw = evidence(net, features)
            maps.append(raw.detach().clamp(min=0))
            if len(maps) == 1:
                covered = coverage(maps[0], classes, config.rib_explode_threshold)
                if k > 0 and covered > config.rib_explode_ratio:
                    yield Step(maps, covered, stop=True)
                    return
            if update and counts:
                rows.append(push(raw, label, config))
        if not update:
            yield Step(maps, covered)
            return
        others = next(companions)
        if isinstance(others, Push):
            _, other_logits, other_labels = others
            for parameter, gradient in zip(tuned_parameters(net), others.gradients, strict=True):
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
        else:
            other_features, other_labels = others
            other_logits = push(evidence(net, other_features), other_labels, config)
        logits = torch.cat([*rows, other_logits])
        labels = torch.cat([label.expand(2 * len(rows), -1), other_labels])
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * poly_factor(k, config.rib_iterations)
        optimizer.step()
        target = (labels * logits)[: 2 * len(rows)].sum().item()
        stop = not paper and abs(target) > config.rib_stop_threshold
        yield Step(maps, covered, logits, labels, rib_loss(logits, labels, _margin(config)).item(), target, stop)
        optimizer.zero_grad()
        if stop:
            return


def add_up(steps: Iterable[Step]) -> list[Tensor]:
    """Return the sum of the maps of all steps: for each scale float (2, C, h_s, w_s)."""
    total: list[Tensor] = []
    for step in steps:
        for number, maps in enumerate(step.maps):
            total[number : number + 1] = [total[number] + maps if number < len(total) else maps]
    return total


# ---- companions


class Companions:
    """The other images that an image is tuned together with.

    For each image they are the same as in the official program: random crops of random disjoint images, new ones in each
    step. But a bank of images is drawn once per run, and each is read, cropped and passed through the frozen stages at most
    once. Images with the same labels share their first batch; its push on the untouched network is then the same and is
    computed once.

    Explained in notebook 20, section "Companions".
    """

    def __init__(self, net: ClassActivationNet, data: SegmentationDataset, config: Settings):
        self.net, self.data, self.config = net, data, config
        self.samples = ClassificationSamples(
            data,
            config.seed,
            (config.cam_long_side_min, config.cam_long_side_max),
            config.cam_crop,
            *normalization_of(config.backbone),
        )
        self.bank = np.array(self._random("bank").sample(range(len(data)), min(len(data), COMPANION_BANK)))
        self.features: dict[int, tuple[Tensor, Tensor]] = {}
        self.pushes: dict[bytes, Push] = {}

    def indices(self, image_id: str, label: np.ndarray) -> Iterator[list[int]] | None:
        """Return endless batches of rows of the data set for one image; None if no image of the bank is disjoint.

        They depend on the seed, the image's id and labels, and the data set.

        Args:
            image_id: of the image that is tuned.
            label: its classes, (C,), 0 or 1.
        """
        pool = self.bank[disjoint_pool(self.data.labels[self.bank], label)].tolist()
        return (
            batches_of_pool(
                pool, self.config.rib_companions, self._random(f"labels {label.tolist()}"), self._random(f"image {image_id}")
            )
            if pool
            else None
        )

    def of_image(self, image_id: str, label: np.ndarray) -> Iterator[tuple[Tensor, Tensor] | Push] | None:
        """Return the same batches loaded, the first as a `Push`; None like `indices`. Call it while the network is untouched.

        Args:
            image_id: of the image that is tuned.
            label: its classes, (C,), 0 or 1.
        """
        indices = self.indices(image_id, label)
        if indices is None:
            return None
        return chain([self._first_push(label, next(indices))], map(self.read, indices))

    def _first_push(self, label: np.ndarray, batch: list[int]) -> Push:
        key = label.tobytes()
        if key not in self.pushes:
            features, labels = self.read(batch)
            logits, parameters = push(evidence(self.net, features), labels, self.config), tuned_parameters(self.net)
            if len(self.pushes) == KEPT_PUSHES:
                del self.pushes[next(iter(self.pushes))]  # the oldest
            self.pushes[key] = Push([parameter.grad for parameter in parameters if parameter.grad is not None], logits, labels)
            for parameter in parameters:
                parameter.grad = None
        return self.pushes[key]

    @torch.no_grad()
    def read(self, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return features (B, D, h, w) after the frozen stages and labels (B, C) of rows of the data set."""
        device = self.net.classifier.weight.device
        for index in batch:
            if index not in self.features:
                image, label = (tensor.to(device) for tensor in self.samples[0, index])
                self.features[index] = self.net.backbone.shallow(image[None], FROZEN_STAGES)[0], label
        features, labels = zip(*(self.features[index] for index in batch), strict=True)
        return torch.stack(features), torch.stack(labels)

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"{self.config.seed}/companions/{purpose}")


# ---- all images


def rib_localization(net: ClassActivationNet, data: SegmentationDataset, config: Settings) -> Localize:
    """Return the function that makes RIB's maps, for `make_maps`.

    Explained in notebook 20, section "All images".
    """
    net.eval().to(memory_format=torch.channels_last)
    mean, std = normalization_of(config.backbone)
    companions, scales = Companions(net, data, config), scales_in_order(config.cam_scales)
    in_loss = [scale > 0.5 for scale in scales]
    plain = config.model_copy(update={"rib_iterations": 1, "rib_variant": "code"})

    grid = grid_stride_of(config, IRN_GRID)

    def of_image(image_id: str, image: Image.Image, label: np.ndarray) -> tuple:
        size, classes = stride4_size(image.size[::-1]), torch.from_numpy(np.flatnonzero(label))
        if not len(classes):
            return classes.numpy(), np.zeros((0, *size), np.float32)
        views, others = frozen_features(net, image, scales, mean, std), companions.of_image(image_id, label)
        target = torch.from_numpy(label.astype(np.float32)).to(views[0].device)
        if others:
            with original_weights(net):
                merged = join_flips(add_up(tune(net, views, in_loss, target, others, config)), classes)
                maps = merge_views(merged, size)
            finite = torch.isfinite(maps).all()
            problem = "" if finite else "its tuned maps are not finite, which a lower rib_learning_rate may prevent"
        else:
            problem = "no companion is without its classes"
        if problem:
            warnings.warn(f"{image_id} gets its plain CAM: {problem}", stacklevel=2)
            merged = join_flips(add_up(tune(net, views, in_loss, target, (), plain)), classes)
            maps = merge_views(merged, size)
        return classes.numpy(), maps.cpu().numpy(), *([Views(merged, grid)] if grid else [])

    return lambda ids, images, labels: [of_image(*item) for item in zip(ids, images, labels, strict=True)]


# ---- stages


def _make_maps(job: Job) -> int:
    net = job.inputs["classifier"].net
    return make_maps(rib_localization(net, job.data, job.config), job.data, job.config, job.folder)


MAPS = Stage(
    "maps",
    NOTEBOOK,
    _make_maps,
    inputs=lambda config: {"classifier": CLASSIFIER},
    score=score_maps,
    reads=("backbone", "cam_scales", "map_size", "cam_crop", "cam_long_side_min", "cam_long_side_max", "rib_*", "seed"),
    shows={"CAM at its best threshold": None},
)
STAGES = (MAPS,)


# ---- costs


def rib_flops(config: Settings, num_classes: int, size: tuple[int, int]) -> tuple[float, float]:
    """Count the operations of RIB's steps on one image, in the plain formulation and in ours.

    Plain runs the whole network in every step. Ours runs its frozen stages once for all steps, and the last step, whose update
    is never used, without its backward pass.

    Args:
        num_classes: foreground classes.
        size: (H, W) of the image.

    Explained in notebook 20, section "The idea in ten lines".
    """
    with torch.device("meta"):
        net = build_classifier(config, num_classes).eval()

    def count(images: int, height: int, width: int) -> tuple[float, float, float]:
        """Return the operations of the frozen stages, of the others forward, and of the others backward."""
        batch, numbers = torch.empty(images, 3, height, width, device="meta"), []
        with FlopCounterMode(display=False) as counter:
            features = net.backbone.shallow(batch, FROZEN_STAGES).detach()
            numbers.append(counter.get_total_flops())
            raw = evidence(net, features)
            numbers.append(counter.get_total_flops())
            raw.sum().backward()
            numbers.append(counter.get_total_flops())
        return numbers[0], numbers[1] - numbers[0], numbers[2] - numbers[1]

    steps = config.rib_iterations
    frozen, forward, backward = count(config.rib_companions, config.cam_crop, config.cam_crop)
    plain, ours = steps * (frozen + forward + backward), (steps - 1) * (forward + backward)
    for scale in config.cam_scales:
        frozen, forward, backward = count(2, *(round(side * scale) for side in size))
        backward = backward if scale > 0.5 else 0.0
        plain += steps * (frozen + forward + backward)
        ours += frozen + steps * forward + (steps - 1) * backward
    return plain, ours


def costs(config: Settings, data: Images) -> list[Cost]:
    """Count the maps; RIB trains nothing that stays."""
    flops = data.train * rib_flops(config, data.classes, data.size)[1]
    return [Cost("maps", flops, gpu_bytes=_memory(config, data), disk_mib=data.maps_mib)]


def _memory(config: Settings, data: Images) -> int:
    """Return the bytes of the network, of all that is kept for later images, and of one step on the largest views."""
    with Memory() as memory:
        net = build_classifier(config, data.classes).eval()
        tuned = sum(parameter.numel() for parameter in tuned_parameters(net))
        with torch.no_grad():
            crop = net.backbone.shallow(torch.empty(1, 3, config.cam_crop, config.cam_crop), FROZEN_STAGES)
            bank = torch.empty(COMPANION_BANK, *crop.shape[1:])
            sizes = [[round(side * scale) for side in data.size] for scale in config.cam_scales]
            views = [net.backbone.shallow(torch.empty(2, 3, *size), FROZEN_STAGES) for size in sizes]
        kept = torch.empty(KEPT_PUSHES + 2, tuned)  # the pushes, the original weights, and the momentum
        for features in (*views, bank[: config.rib_companions]):
            evidence(net, features).sum().backward()
    del kept
    return memory.peak
