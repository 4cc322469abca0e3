"""AffinityNet (Ahn and Kwak, CVPR 2018): features that lie close for neighboring pixels of one class, and a walk on them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset

from wsss_lib.core import training
from wsss_lib.core.counting import WALK_SECONDS, Cost, Images, crops, inference_cost, training_cost
from wsss_lib.core.distributed import in_processes
from wsss_lib.core.files import IGNORE, write_atomically, write_mask
from wsss_lib.core.parallel import cpu_workers, for_each_image
from wsss_lib.core.scoring import full_size_maps, metric_row, score_masks
from wsss_lib.core.stage import Job, Stage, network_made
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import sample_rng, steps_per_epoch
from wsss_lib.errors import DataError
from wsss_lib.methods import maps_of
from wsss_lib.methods.cam import CLASSIFIER
from wsss_lib.nets.backbone import Backbone, build_backbone, freeze_batch_norm, normalization_of
from wsss_lib.nets.folding import folded
from wsss_lib.nets.vgg16_largefov import VGG16LargeFOV
from wsss_lib.nets.weights import load_whole, start_backbone
from wsss_lib.ops.affinity import affinity_labels, feature_affinity, feature_affinity_loss, search_paths
from wsss_lib.ops.crf import crf_from_probabilities
from wsss_lib.ops.random_walk import Graph, pair_graph, random_walk
from wsss_lib.parameters import (
    TRAINING,
    AtLeastTwo,
    Count,
    Factor,
    Fraction,
    FrozenStages,
    ParameterGroup,
    Positive,
    Rate,
    Settings,
    Text,
    require_order,
    start_of,
)

NOTEBOOK = "75_affinitynet"
REFINEMENT = "affinitynet"  # the value of the parameter `refinement` that names these masks
WIDTHS = (64, 128, 256)  # f8_3, f8_4, f8_5; together the 448 channels of the released weights (the paper has 896)
GROUPS = (8, 16, 32)


class Parameters(ParameterGroup):
    """75: AffinityNet and its random walk."""

    affinitynet_weights: Text = ""  # an AffinityNet to use instead of training one
    affinitynet_init: Literal["backbone", "classifier"] = "classifier"  # published: backbone, trained on ImageNet only
    affinitynet_stride: Literal[4, 8] = 4  # pixels a cell of the affinity grid; published: 8
    affinitynet_radius: AtLeastTwo = 5
    affinitynet_alpha_low: Factor = 8.0  # exponent of a strong background, what stays is surely an object; published: 4
    affinitynet_alpha_high: Factor = 48.0  # of a weak one, what it keeps is surely background; published: 32
    affinitynet_images: Count = 400  # the first ones of the split, to learn from; published: 0, all of them
    affinitynet_epochs: Positive = 5  # published: 8
    affinitynet_batch_size: Positive = 8
    affinitynet_learning_rate: Rate = 0.03  # of the backbone, ten times that for the new layers; published: 0.01
    affinitynet_momentum: Fraction = 0.9  # published: 5e-4, the weight decay
    affinitynet_weight_decay: Rate = 5e-4
    affinitynet_frozen_stages: FrozenStages = 0  # published: 1 with ResNet-38
    affinitynet_crop: Positive = 64  # published: 448
    affinity_walk_alpha: Factor = 16.0  # exponent of the background before the walk
    affinity_walk_beta: Rate = 16.0  # exponent of the affinities; published: 8
    affinity_walk_log2_steps: Count = 6  # published: 8, on a grid five times as large

    @model_validator(mode="after")
    def _affinitynet_fits(self) -> "Parameters":
        require_order(self, "affinitynet_alpha_low", "affinitynet_alpha_high")
        if self.affinitynet_crop % self.affinitynet_stride:
            raise ValueError(
                f"affinitynet_crop ({self.affinitynet_crop}) must be a multiple of affinitynet_stride "
                f"({self.affinitynet_stride})"
            )
        return self


class AffinityHead(nn.Module):
    """Three parallel 1x1 convolutions, one over all of them: f = ELU(W9 [ELU(W3 c4), ELU(W4 c5), ELU(W5 c6)]).

    Args:
        channels: of the three maps.
        groups: of the group normalizations before the first three ELUs (published for VGG-16); None: none
            (published for ResNet-38).

    Source: AffinityNet (Ahn and Kwak, CVPR 2018), section 3.2; names and widths as in its program.
    Explained in notebook 75, section "The network".

    >>> AffinityHead((6, 9, 14))([torch.zeros(1, channels, 5, 7) for channels in (6, 9, 14)]).shape
    torch.Size([1, 448, 5, 7])
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int] = WIDTHS, groups: Sequence[int] | None = None):
        super().__init__()
        for level, (inside, outside) in enumerate(zip(channels, widths, strict=True), start=3):
            convolution = nn.Conv2d(inside, outside, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight)
            self.add_module(f"f8_{level}", convolution)
            if groups:
                self.add_module(f"gn8_{level}", nn.GroupNorm(groups[level - 3], outside))
        self.f9 = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        self.group_norm = groups is not None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the features f of three maps.

        Args:
            maps: three tensors (N, channels[i], h, w).

        Returns:
            (N, sum(widths), h, w).
        """
        reduced = []
        for level, x in enumerate(maps, start=3):
            x = getattr(self, f"f8_{level}")(x)
            reduced.append(F.elu(getattr(self, f"gn8_{level}")(x) if self.group_norm else x))
        return F.elu(self.f9(torch.cat(reduced, dim=1)))


class AffinityNet(nn.Module):
    """A jointly trained backbone (frozen batch normalization) and the head over its three deepest kinds of maps.

    The published networks have all three maps at stride 8. For other backbones, the first is the deepest of the three
    shallow maps that is as fine as the grid; the two deeper ones are upsampled to it.

    Args:
        backbone: from `wsss_lib.nets.backbone`; VGG-16 gets fc6 with dilation 4.
        stride: of the grid on which pixels are compared; 8 in the paper.
        group_norm: group normalization in the head; published for VGG-16, not for ResNet-38.

    Raises:
        ValueError: the backbone has no map as fine as the grid.

    Source: AffinityNet (Ahn and Kwak, CVPR 2018), section 3.2. Explained in notebook 75, section "The network".
    """

    def __init__(self, backbone: Backbone, stride: int = 8, group_norm: bool = False):
        super().__init__()
        if isinstance(backbone, VGG16LargeFOV):
            backbone.dilate_fc6(4)
        fine = [level for level in (0, 1, 2) if backbone.strides[level] <= stride]
        if not fine:
            raise ValueError(f"the affinity grid has stride {stride}, but the backbone's maps have {backbone.strides}")
        self.levels = (fine[-1], 3, 4)
        self.stride = stride
        self.backbone = freeze_batch_norm(backbone, affine=True)
        self.head = AffinityHead([backbone.channels[level] for level in self.levels], groups=GROUPS if group_norm else None)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features f of normalized images.

        Args:
            images: (N, 3, H, W).

        Returns:
            (N, 448, ceil(H/stride), ceil(W/stride)).
        """
        maps = self.backbone.stages(images)
        size = [-(-side // self.stride) for side in images.shape[-2:]]
        return self.head([_enlarged(maps[level], size) for level in self.levels])

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict]:
        """Return SGD's groups as published: new convolutions at ten times the rate, biases at twice and without decay."""
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {(1, True): [], (2, False): [], (10, True): []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                new = name.startswith("head.f")
                bias = name.endswith("bias")
                groups[10 if new else 2 if bias else 1, not bias].append(parameter)
        return [
            {"params": parameters, "lr": factor * learning_rate, "weight_decay": weight_decay * decays}
            for (factor, decays), parameters in groups.items()
            if parameters
        ]


def _enlarged(maps: Tensor, size: list[int]) -> Tensor:
    if list(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


# ---- labels


def scores_with_background(scores: np.ndarray, alpha: float) -> np.ndarray:
    """Prepend the background's score to the classes': (1 - max_c M_c)^alpha.

    Args:
        scores: M, (K, H, W) float in [0, 1]; K may be 0.
        alpha: exponent; the larger, the weaker the background.

    Returns:
        (1 + K, H, W) float32.

    Raises:
        ValueError: scores outside [0, 1]. SC-CAM's released program overwrites its maps with an image of 0 and 255 before
            saving them; a background of (1 - 255)^alpha would then win everywhere.

    Source: AffinityNet, equation 2. Explained in notebook 75, section "Two strengths of the background".

    >>> scores_with_background(np.array([[[0.5, 0.0]]]), alpha=4)[0]
    array([[0.0625, 1.    ]], dtype=float32)
    """
    scores = np.asarray(scores, np.float32)
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):  # false for NaN
        raise ValueError(
            f"scores must lie in 0..1, not in {scores.min():g}..{scores.max():g}: were the maps divided by their "
            "maximum, or overwritten by a picture?"
        )
    return np.concatenate([(1 - scores.max(0, keepdims=True, initial=0)) ** np.float32(alpha), scores])


def crf_with_alpha(image: np.ndarray, scores: np.ndarray, alpha: float) -> np.ndarray:
    """Refine maps and background with the dense CRF and AffinityNet's parameters.

    Args:
        image: (H, W, 3) uint8, RGB.
        scores: M, (K, H, W) float in [0, 1].

    Returns:
        (1 + K, H, W) float32, the probabilities after ten steps; background first.

    Raises:
        ValueError: image and scores do not fit, or scores outside [0, 1].

    Source: AffinityNet, section 3.3, and its program. Explained in notebook 75, section "Two strengths of the background".
    """
    if not len(scores):  # nothing to decide: all is background
        return np.ones((1, *scores.shape[1:]), np.float32)
    return crf_from_probabilities(
        image,
        scores_with_background(scores, alpha),
        gaussian_sxy=3,
        gaussian_compat=3,
        bilateral_sxy=80,
        bilateral_srgb=13,
        bilateral_compat=10,
    )


def confident_labels(low: Tensor, high: Tensor) -> Tensor:
    """Merge the scores of two background strengths into a label: an object must survive the strong one.

    Args:
        low, high: (1 + K, h, w), the scores with low alpha (strong background) and high alpha (weak background).

    Returns:
        (h, w) int64: position 1..K where the object wins with low alpha; 0 where the background wins with high alpha; 255
        where neither holds, and where all scores vanish (outside the image).

    Source: AffinityNet, section 3.3, in the order of its program.
    Explained in notebook 75, section "Two strengths of the background".
    """
    label = low.argmax(0)
    label = label.masked_fill(label == 0, IGNORE)
    label = label.masked_fill(high.argmax(0) == 0, 0)
    return label.masked_fill(torch.maximum(low, high).amax(0) < 1e-5, IGNORE)


def crop_sample(
    image: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    box: tuple[int, ...],
    side: int,
    flip: bool,
    stride: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> tuple[Tensor, Tensor]:
    """Crop image and scores together and reduce the scores to a label on the grid.

    The image is normalized after the crop, so the surroundings of a small image are black. The scores are averaged
    over the cells of the grid before they are compared; that depends on where the crop lies.

    Args:
        image: uint8 (H, W, 3).
        box: from `transforms.crop_box`.
        side: of the crop, a multiple of `stride`.
        flip: horizontally.

    Returns:
        image float32 (3, side, side), label int64 (side/stride, side/stride).

    Source: AffinityNet's program. Explained in notebook 75, section "Training".
    """
    array = transforms.normalize(transforms.crop(image, box, side, fill=0), mean, std)
    stacked = np.concatenate([low, high]).transpose(1, 2, 0)  # (H, W, 2 + 2K)
    cut = transforms.crop(stacked, box, side, fill=0)
    if flip:
        array, cut = array[:, ::-1], cut[:, ::-1]
    pooled = F.avg_pool2d(torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1))), stride)  # (2 + 2K, h, w)
    return transforms.to_tensor(array), confident_labels(pooled[: len(low)], pooled[len(low) :])


# ---- the walk


def feature_graph(features: Tensor, radius: int, beta: float) -> Graph:
    """Connect the cells of a map by the affinity of their features, V = W^beta; the diagonal is 1.

    As published, only cells whose whole neighborhood lies inside the map begin a pair. Cells near the left, right and lower
    border therefore have fewer neighbors, ten cells of every map (for radius 5) have none: they keep their scores.

    Args:
        features: f, (D, h, w).
        beta: exponent of every affinity.

    Returns:
        h * w vertices, float64 values.

    Source: AffinityNet, equation 8. Explained in notebook 75, section "The random walk".
    """
    height, width = features.shape[1:]
    if height < radius or width < 2 * radius - 1:  # no cell begins a pair
        pairs = features.new_zeros(len(search_paths(radius)), 0)
    else:
        pairs = feature_affinity(features[None], radius)[0]  # W, (n, S)
    return graph_of_pairs(pairs.double() ** beta, (height, width), radius)


def graph_of_pairs(affinity: Tensor, size: tuple[int, int], radius: int) -> Graph:
    """Return the symmetric graph of the affinities that `feature_affinity` returns; see `feature_graph`.

    Args:
        affinity: (n, S), float64.
        size: (h, w) of the map; too small for a pair if S is 0.

    Explained in notebook 75, section "The random walk".
    """
    on_grid = affinity.new_zeros(len(affinity), *size)
    if affinity.shape[1]:
        rows, columns, left = size[0] - radius + 1, size[1] - 2 * (radius - 1), radius - 1
        on_grid[:, :rows, left : left + columns] = affinity.unflatten(1, (rows, columns))
    return pair_graph(on_grid, radius)


def pooled_scores(scores: Tensor, alpha: float, stride: int) -> Tensor:
    """Prepend the background to the maps and average everything over the cells of the grid.

    Args:
        scores: M, (K, H, W) in [0, 1].
        stride: pixels of a cell; missing pixels of a border cell count as 0 in every channel, background included.

    Returns:
        (1 + K, ceil(H/stride), ceil(W/stride)), float32.

    Raises:
        ValueError: scores outside [0, 1].

    Source: AffinityNet's program. Explained in notebook 75, section "The random walk".
    """
    height, width = scores.shape[1:]
    maps = torch.from_numpy(scores_with_background(scores.cpu().numpy(), alpha)).to(scores.device)
    return F.avg_pool2d(F.pad(maps, (0, -width % stride, 0, -height % stride)), stride)


def walk_mask(walk: Tensor, classes: Sequence[int] | np.ndarray, size: tuple[int, int], stride: int) -> Tensor:
    """Assign every pixel the strongest of background and classes.

    Args:
        walk: (1 + K, h, w), background first.
        classes: K foreground classes, 0-based.
        size: (H, W) of the image.

    Returns:
        (H, W) uint8: 0 background, i + 1 for class i. Ties go to the background, then to the first class.

    Raises:
        ValueError: classes and maps without the background differ in number, or a class is not in 0..253.

    Source: AffinityNet's program. Explained in notebook 75, section "The random walk".

    >>> walk_mask(torch.tensor([[[0.4]], [[0.6]]]), [6], (1, 2), stride=8)
    tensor([[7, 7]], dtype=torch.uint8)
    """
    if len(walk) != len(classes) + 1 or any(not 0 <= number < IGNORE - 1 for number in classes):
        raise ValueError(f"{len(walk)} maps need a background and {len(walk) - 1} classes in 0..253, not {list(classes)}")
    full = F.interpolate(walk.float()[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    ids = torch.tensor([0, *(int(number) + 1 for number in classes)], dtype=torch.uint8, device=walk.device)
    return ids[full.argmax(0)[: size[0], : size[1]]]


def write_scores(path: Path, low: np.ndarray, high: np.ndarray) -> None:
    """Write the CRF's scores of one image as float16.

    Args:
        low, high: (1 + K, H, W), with low and with high alpha.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, low=low.astype(np.float16), high=high.astype(np.float16))

    write_atomically(path, write)


def read_scores(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Read what `write_scores` wrote.

    Args:
        size: (H, W) of the image.

    Returns:
        low and high, float32 (1 + K, H, W).

    Raises:
        DataError: missing, unreadable, or not of an image of `size` (H, W).
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            low, high = file["low"].astype(np.float32), file["high"].astype(np.float32)
    except FileNotFoundError:
        raise DataError(f"{path}: the CRF's scores are missing; run notebook 75_affinitynet from its start") from None
    except Exception as error:  # a broken zip file or array header makes NumPy raise one of a dozen types
        raise DataError(f"{path}: not a file of CRF scores ({error}); delete it and run its stage again") from None
    if low.ndim != 3 or low.shape != high.shape or low.shape[1:] != size:
        raise DataError(
            f"{path}: the scores {low.shape} and {high.shape} do not belong to an image of {size[0]}x{size[1]}; "
            "delete the file and run its stage again"
        )
    return low, high


def make_affinity_scores(data: SegmentationDataset, maps_folder: Path, config: Settings, folder: Path) -> int:
    """Write `ID.npz` with the CRF's scores at both background strengths for every image that has none yet.

    Explained in notebook 75, section "Two strengths of the background".
    """
    work = partial(_make_scores_of_image, data=data, maps_folder=maps_folder, config=config, folder=folder)
    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.npz", work, "CRF", config, cpu_workers(config))


def _make_scores_of_image(image_id: str, data: SegmentationDataset, maps_folder: Path, config: Settings, folder: Path) -> None:
    image = np.array(data.image(image_id))
    _, scores = full_size_maps(maps_folder, image_id)
    write_scores(
        folder / f"{image_id}.npz",
        crf_with_alpha(image, scores, config.affinitynet_alpha_low),
        crf_with_alpha(image, scores, config.affinitynet_alpha_high),
    )


class AffinityScoreSamples(Dataset):
    """AffinityNet's recipe: color jitter, a random crop without scaling, and a horizontal flip.

    Yields image float32 (3, crop, crop), normalized, and label int64 (crop/stride, crop/stride): positions among the classes
    of the image, 0 background, 255 unknown.

    Source: AffinityNet's program. Explained in notebook 75, section "Training".
    """

    def __init__(self, data: SegmentationDataset, score_folder: Path, config: Settings):
        self.data, self.score_folder, self.config = data, Path(score_folder), config

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        rng = sample_rng(self.config.seed, epoch, index)
        image_id = self.data.ids[index]
        image = self.data.image(image_id)
        low, high = read_scores(self.score_folder / f"{image_id}.npz", image.size[::-1])
        array = np.array(transforms.color_jitter(image, rng))
        box = transforms.crop_box(array.shape[:2], self.config.affinitynet_crop, rng)
        return crop_sample(
            array,
            low,
            high,
            box,
            self.config.affinitynet_crop,
            rng.random() < 0.5,
            self.config.affinitynet_stride,
            *normalization_of(self.config.backbone),
        )


def build_affinitynet(config: Settings, classifier_weights: Path | str, weights: Path | str = "") -> AffinityNet:
    """Build AffinityNet on the ImageNet backbone (published) or on the classifier's, or from its own weights.

    Args:
        classifier_weights: safetensors file of notebook 10's classifier, read if `affinitynet_init` is "classifier".
        weights: safetensors file of a trained AffinityNet; empty: none.

    Raises:
        ValueError: weights of another network.
        FileNotFoundError: there is no such file.
    """
    start = config.backbone_weights if config.affinitynet_init == "backbone" else "classifier"
    build = partial(build_backbone, config.backbone, config.output_stride)
    backbone = start_backbone(build, start, classifier_weights, weights)
    for module in backbone.shallow_modules(config.affinitynet_frozen_stages):
        module.requires_grad_(False)
    # Published without group normalization for ResNet-38, with it for VGG-16; the others' maps differ in scale like VGG's.
    net = AffinityNet(backbone, config.affinitynet_stride, group_norm=config.backbone != "resnet38")
    return load_whole(net, weights)


@in_processes
def train_affinitynet(net: AffinityNet, data: SegmentationDataset, score_folder: Path, config: Settings, folder: Path) -> int:
    """Train backbone and head on the confident labels.

    Source: AffinityNet, section 3.3. Explained in notebook 75, section "Training".
    """
    steps = config.affinitynet_epochs * steps_per_epoch(len(data), config.affinitynet_batch_size)

    def loss_of(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels = batch
        affinity = feature_affinity(model(images).float(), config.affinitynet_radius)
        losses = feature_affinity_loss(affinity, affinity_labels(labels, config.affinitynet_radius, IGNORE))
        return {"loss": losses.total, **losses._asdict()}

    groups = net.parameter_groups(config.affinitynet_learning_rate, config.affinitynet_weight_decay)
    training.train(
        net,
        loss_of,
        AffinityScoreSamples(data, score_folder, config),
        groups,
        config.affinitynet_momentum,
        steps,
        config.affinitynet_batch_size,
        config,
        folder,
        name="AffinityNet",
    )
    return steps * config.affinitynet_batch_size


@torch.inference_mode()
def grid_features(net: AffinityNet, image: Image.Image, config: Settings) -> Tensor:
    """Return f of an image, padded at the right and bottom to whole cells.

    Returns:
        float32 (D, ceil(H/stride), ceil(W/stride)), on the device of the network.
    """
    tensor = transforms.to_tensor(transforms.normalize(image, *normalization_of(config.backbone)))
    right, bottom = (-side % net.stride for side in image.size)
    return net(F.pad(tensor, (0, right, 0, bottom))[None].to(net.head.f9.weight.device))[0].float()


def refined_mask(
    net: AffinityNet, image: Image.Image, scores: np.ndarray, classes: Sequence[int] | np.ndarray, config: Settings
) -> np.ndarray:
    """Return the pseudo-mask of one image.

    Args:
        scores: its maps at full resolution, (K, H, W) in [0, 1].
        classes: K foreground classes, 0-based.

    Returns:
        uint8 (H, W).

    Source: AffinityNet, section 3.4. Explained in notebook 75, section "The random walk".
    """
    graph = feature_graph(grid_features(net, image, config), config.affinitynet_radius, config.affinity_walk_beta)
    start = pooled_scores(torch.from_numpy(scores), config.affinity_walk_alpha, net.stride).to(graph.values.device)
    walk = random_walk(graph, start, config.affinity_walk_log2_steps)
    return walk_mask(walk, classes, image.size[::-1], net.stride).cpu().numpy()


def make_affinitynet_masks(
    net: AffinityNet, data: SegmentationDataset, maps_folder: Path, config: Settings, folder: Path
) -> int:
    """Write `ID.png`, the mask after AffinityNet's walk, for every image that has none yet."""
    net = folded(net)

    def work(image_id: str) -> None:
        classes, scores = full_size_maps(maps_folder, image_id)
        write_mask(folder / f"{image_id}.png", refined_mask(net, data.image(image_id), scores, classes, config))

    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.png", work, "AffinityNet's walk", config)


# ---- stages


def images_to_learn_from(data: SegmentationDataset, count: int) -> SegmentationDataset:
    """Return the first `count` images of a split; 0: all."""
    return data.part(slice(count)) if count else data


def _learned(job: Job) -> SegmentationDataset:
    return images_to_learn_from(job.data, job.config.affinitynet_images)


def _make_network(job: Job) -> int:
    given, start = job.config.affinitynet_weights, job.inputs["classifier"].weights if "classifier" in job.inputs else ""
    scores = job.inputs["scores"].folder
    return network_made(
        job,
        lambda: build_affinitynet(job.config, start, given),
        lambda net: train_affinitynet(net, _learned(job), scores, job.config, job.folder),
        given,
    )


def _load_network(job: Job) -> AffinityNet:
    return build_affinitynet(job.config, "", job.weights).to(job.device).eval()


def _make_masks(job: Job) -> int:
    net, maps = job.inputs["affinitynet"].net, job.inputs["maps"].folder
    return make_affinitynet_masks(net, job.data, maps, job.config, job.folder)


def _score_masks(job: Job) -> list[dict]:
    evaluation = score_masks(job.score_data, job.folder)
    return [metric_row("AffinityNet pseudo-mask", job.score_data, evaluation, False, job.config)]


SCORES = Stage(
    "affinity_scores",
    NOTEBOOK,
    lambda job: make_affinity_scores(_learned(job), job.inputs["maps"].folder, job.config, job.folder),
    inputs=lambda config: {"maps": maps_of(config.method)},
    reads=("affinitynet_alpha_low", "affinitynet_alpha_high", "affinitynet_images"),
)
NETWORK = Stage(
    "affinitynet",
    NOTEBOOK,
    _make_network,
    load=_load_network,
    inputs=lambda config: {"scores": SCORES} | ({"classifier": CLASSIFIER} if config.affinitynet_init == "classifier" else {}),
    reads=lambda config: (
        *start_of(config.affinitynet_init),
        "affinitynet_weights",
        "affinitynet_init",
        "affinitynet_stride",
        "affinitynet_radius",
        "affinitynet_images",
        "affinitynet_epochs",
        "affinitynet_batch_size",
        "affinitynet_learning_rate",
        "affinitynet_momentum",
        "affinitynet_weight_decay",
        "affinitynet_frozen_stages",
        "affinitynet_crop",
        *TRAINING,
    ),
)
MASKS = Stage(
    "affinitynet_masks",
    NOTEBOOK,
    _make_masks,
    score=_score_masks,
    inputs=lambda config: {"maps": maps_of(config.method), "affinitynet": NETWORK},
    reads=("backbone", "affinitynet_radius", "affinity_walk_*"),
    score_reads=("pixel_labels_chose",),
    shows={"AffinityNet pseudo-mask": ""},
)
STAGES = (SCORES, NETWORK, MASKS)


# ---- costs


def costs(config: Settings, data: Images) -> list[Cost]:
    """Count AffinityNet and the walk."""
    net, batch, radius = build_affinitynet(config, ""), crops(config.affinitynet_crop), config.affinitynet_radius

    def loss_of(count: int) -> Tensor:
        features = net(batch(count)).float()
        labels = torch.empty(count, *features.shape[2:], dtype=torch.long)
        return feature_affinity_loss(feature_affinity(features, radius), affinity_labels(labels, radius, IGNORE)).total

    seen = data.seen(config.affinitynet_epochs, config.affinitynet_batch_size)
    network = training_cost("affinitynet", net, loss_of, seen, config.affinitynet_batch_size, config)
    masks = inference_cost(
        "affinitynet_masks",
        net.eval(),
        net,
        data.train,
        data.size,
        views=1,
        core_seconds=data.train * WALK_SECONDS * data.pixels,
        disk_mib=data.masks_mib,
    )
    return [network, masks]
