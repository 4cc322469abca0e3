"""SC-CAM: sub-category exploration (Chang et al., CVPR 2020).

Every class is split into K sub-categories by k-means on image features, and a network must predict class and sub-category.
The harder task needs more of the object, so the class's own activation map becomes more complete. Features of the new
network give new sub-categories, and so on; every round starts again from the pre-trained weights.

Sub-category j of class c is number c * K + j everywhere.
"""

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import model_validator
from torch import Tensor, nn

from wsss_lib.core import training
from wsss_lib.core.counting import Cost, Images, crops, inference_cost, training_cost
from wsss_lib.core.distributed import in_processes
from wsss_lib.core.files import image_size, read_tensors, write_atomically, write_tensors
from wsss_lib.core.inference import forward_in_parts
from wsss_lib.core.parallel import Localize, batches_of_like_size, make_maps
from wsss_lib.core.progress import progress
from wsss_lib.core.scoring import score_maps
from wsss_lib.core.stage import Job, Stage
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import ClassificationSamples, sample_rng, steps_per_epoch
from wsss_lib.errors import DataError, Diverged
from wsss_lib.methods import cam
from wsss_lib.nets.backbone import Backbone, build_backbone, freeze_batch_norm, normalization_of
from wsss_lib.nets.folding import folded
from wsss_lib.nets.weights import load_whole
from wsss_lib.parameters import (
    BACKBONE,
    TRAINING,
    BelowOne,
    Fraction,
    FrozenStages,
    Integers,
    ParameterGroup,
    Positive,
    Range,
    Rate,
    Settings,
    Text,
)

NOTEBOOK = "60_sccam"
SETS_FOR_OTHERS = (
    "refinement",
    "backbone",
    "backbone_weights",
    "output_stride",
    "affinitynet_*",
    "seed_*",
    "walk_*",
    "deeplab_*",
)  # parameters of other notebooks that its presets may set
STARTS = 10  # of k-means; scikit-learn's default when the method was published, 1 today
# The values that a study tries, including the published ones where the network allows them.
TUNED = {
    "sccam_learning_rate": Range(3e-4, 0.03, log=True),
    "sccam_head_learning_rate": Range(3e-3, 3.0, log=True),
    "sccam_loss_weight": Range(0.5, 10.0, log=True),
    "sccam_clusters": Range(2, 10),
}


class Parameters(ParameterGroup):
    """60: crops, batches and scales are those of the classifier; the published ones are in configs/methods."""

    sccam_weights: Text = ""  # a network of a finished round to use instead of all rounds
    # A classifier on the rounds' backbone whose features make the first sub-categories (published: AffinityNet's ResNet-38);
    # empty: that of notebook 10.
    sccam_first_weights: Text = ""
    sccam_clusters: Positive = 10  # K, sub-categories of a class
    sccam_loss_weight: Rate = 5.0  # lambda, of the sub-categories' loss
    sccam_round_epochs: Integers = (4, 4, 4)  # epochs trained in each round; published: 31, 41, 51
    sccam_schedule_epochs: Positive = 4  # epochs for which the learning rate is laid out; published: 61
    sccam_dropout: BelowOne = 0.0  # published: 0.5
    sccam_color_jitter: Fraction = 0.0  # strength; published: 1
    sccam_learning_rate: Rate = 0.03  # published: 0.01, without momentum
    sccam_head_learning_rate: Rate = 0.3  # published: 0.1
    sccam_momentum: Fraction = 0.9  # published: 5e-4, the weight decay
    sccam_weight_decay: Rate = 5e-4
    sccam_frozen_batch_norm: bool = False  # published: true
    sccam_frozen_stages: FrozenStages = 0  # published: 1

    @model_validator(mode="after")
    def _sccam_trainedfit(self) -> "Parameters":
        if max(self.sccam_round_epochs) > self.sccam_schedule_epochs:
            raise ValueError(
                f"sccam_round_epochs {self.sccam_round_epochs} must not exceed sccam_schedule_epochs "
                f"({self.sccam_schedule_epochs})"
            )
        return self


@torch.inference_mode()
def image_features(
    backbone: Backbone,
    data: SegmentationDataset,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    batch_size: int,
) -> np.ndarray:
    """Return f, the mean of the deepest map of every whole image at scale 1: float32 (N, D), rows in the order of the ids.

    Args:
        backbone: a trunk, in evaluation mode.
        batch_size: images of one size at once.

    Source: SC-CAM, section 3.3. Explained in notebook 60, section "Sub-categories".
    """
    device = next(backbone.parameters()).device
    row = {image_id: index for index, image_id in enumerate(data.ids)}
    groups = batches_of_like_size(data.ids, lambda image_id: image_size(data.image_path(image_id)), batch_size)
    features = np.zeros((len(data), backbone.channels[-1]), np.float32)
    for group in progress(groups, "features"):
        images = [transforms.to_tensor(transforms.normalize(data.image(image_id), mean, std)) for image_id in group]
        means = forward_in_parts(lambda views: backbone(views).float().mean((2, 3)), torch.stack(images).to(device))
        features[[row[image_id] for image_id in group]] = means.cpu().numpy()
    return features


def cluster_images(features: np.ndarray, labels: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """Split every class into sub-categories: k-means on the features of the images that carry the class.

    A class with fewer images than clusters gets one sub-category per image; its other numbers are never used.

    Args:
        features: f, float (N, D), not scaled.
        labels: 0 or 1, (N, C).
        seed: of the starts.

    Returns:
        int64 (N, C): the sub-category 0..K-1 of an image in a class, -1 where it does not carry the class.

    Raises:
        ValueError: the shapes do not fit, or K is below 1.
        Diverged: a feature is not finite.

    Source: SC-CAM, equation 1. Explained in notebook 60, section "Sub-categories".

    >>> features = np.array([[0.0], [9.0], [0.1], [9.1]])
    >>> of_class = cluster_images(features, np.array([[1, 0], [1, 1], [1, 0], [1, 0]]), clusters=2)
    >>> bool(of_class[0, 0] == of_class[2, 0] != of_class[1, 0] == of_class[3, 0]), of_class[:, 1].tolist()
    (True, [-1, 0, -1, -1])
    """
    from sklearn.cluster import KMeans  # it takes a second to import, and few notebooks need it
    from sklearn.exceptions import ConvergenceWarning

    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"features {features.shape} and labels {labels.shape} must be (N, D) and (N, C) of the same N images")
    if not np.isfinite(features).all():
        raise Diverged("the features hold values that are not finite; the network that made them has diverged")
    if clusters < 1:
        raise ValueError(f"clusters must be at least 1, not {clusters}")
    result = np.full(labels.shape, -1, np.int64)
    for number in range(labels.shape[1]):
        members = np.flatnonzero(labels[:, number])  # S_c
        if not len(members):
            continue
        kmeans = KMeans(min(clusters, len(members)), n_init=STARTS, max_iter=300, random_state=seed)
        with warnings.catch_warnings():  # equal images give fewer clusters than requested, which `used` tells
            warnings.simplefilter("ignore", ConvergenceWarning)
            result[members, number] = kmeans.fit_predict(_with_the_same_distances(features[members]))
    return result


def _with_the_same_distances(points: np.ndarray) -> np.ndarray:
    """Turn n points of D > n numbers, (n, D), into n numbers each: n points span no more, and k-means uses only distances."""
    if len(points) >= points.shape[1]:
        return points
    different, index = np.unique(points, axis=0, return_inverse=True)  # equal images must stay equal to the last digit
    r = np.linalg.qr(different.T, mode="r")  # X^T = QR, so that X X^T = R^T R
    return r.T[index.ravel()]  # type: ignore[attr-defined]  # an array; NumPy declares what other modes return


def subcategory_labels(assignment: np.ndarray, clusters: int) -> np.ndarray:
    """Return Y_s: uint8 (N, C * K), a 1 for each class of an image.

    Args:
        assignment: from `cluster_images`.

    >>> subcategory_labels(np.array([[1, -1], [0, 1]]), clusters=2).tolist()
    [[0, 1, 0, 0], [1, 0, 0, 1]]
    """
    return (assignment[:, :, None] == np.arange(clusters)).reshape(len(assignment), -1).astype(np.uint8)


def class_major_order(labels: np.ndarray) -> np.ndarray:
    """Return the order of the official training list: all images of class 0, then those of class 1 not yet named, and so on.

    >>> class_major_order(np.array([[0, 1], [1, 1], [1, 0]])).tolist()
    [1, 2, 0]
    """
    _, images = np.nonzero(np.asarray(labels).T)  # (class, image) pairs, class after class
    return np.array(list(dict.fromkeys(images.tolist())), np.int64)


def used_subcategories(assignment: np.ndarray) -> np.ndarray:
    """Return how many sub-categories each class actually has: int64 (C,)."""
    return np.array([len(np.unique(column[column >= 0])) for column in assignment.T])


def purity(assignment: Sequence | np.ndarray, truth: Sequence | np.ndarray) -> float:
    """Return the fraction of images that are of the most common true kind of their sub-category.

    It cannot fall below the fraction of the most common kind overall, and grows with the number of sub-categories: compare
    it with the value for the same sub-categories assigned at random.

    Args:
        assignment: sub-category of each image.
        truth: its true kind.

    Raises:
        ValueError: there are no images, or the two lengths differ.

    Source: the usual measure of a clustering. Explained in notebook 60, section "Sub-categories".

    >>> purity([0, 0, 0, 1], ["a", "a", "b", "b"])
    0.75
    """
    assignment, truth = np.asarray(assignment), np.asarray(truth)
    if not len(truth) or assignment.shape != truth.shape:
        raise ValueError(f"purity needs as many sub-categories as true kinds, not {len(assignment)} and {len(truth)}")
    commonest = [np.unique(truth[assignment == number], return_counts=True)[1].max() for number in np.unique(assignment)]
    return float(sum(commonest) / len(truth))


def write_subcategories(path: Path, data: SegmentationDataset, assignment: np.ndarray) -> None:
    """Write `image_id,class,subcategory`, one line for each class of each image, class after class.

    Args:
        path: the table.
        assignment: from `cluster_images`, (N, C).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "class", "subcategory"])
    writer.writerows(
        [data.ids[image], data.classes[number], assignment[image, number]]
        for number, image in zip(*np.nonzero(assignment.T >= 0), strict=True)
    )
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def read_subcategories(path: Path) -> dict[tuple[str, str], str]:
    """Read a table of sub-categories.

    Args:
        path: the table; the generated data set has one with the true kinds.

    Returns:
        (image id, class name) to the sub-category's name.

    Raises:
        DataError: the file is missing or malformed.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError:
        raise DataError(f"{path}: the table of sub-categories is missing; run notebook 60_sccam first") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 CSV file ({error}); delete it and run its stage again") from None
    if rows[:1] != [["image_id", "class", "subcategory"]] or any(len(row) != 3 for row in rows):
        raise DataError(f"{path}: the columns must be image_id, class and subcategory; delete it and run its stage again")
    return {(image_id, name): kind for image_id, name, kind in rows[1:]}


def assignment_of(path: Path, data: SegmentationDataset, clusters: int) -> np.ndarray:
    """Read what `write_subcategories` wrote.

    Args:
        path: the table.

    Returns:
        int64 (N, C), -1 where an image does not carry the class.

    Raises:
        DataError: as `read_subcategories`, or the table does not belong to these images, labels and K.
    """
    table = read_subcategories(path)
    assignment = np.full(data.labels.shape, -1, np.int64)
    for image, number in zip(*np.nonzero(data.labels), strict=True):
        kind = table.get((data.ids[image], data.classes[number]), "")
        if not kind.isascii() or not kind.isdigit() or int(kind) >= clusters:
            raise DataError(
                f"{path}: image {data.ids[image]} has the sub-category {kind!r} of class {data.classes[number]}, "
                f"not one of 0..{clusters - 1}; delete the file and run its stage again"
            )
        assignment[image, number] = int(kind)
    return assignment


class SubcategoryNet(nn.Module):
    """A trunk with two linear heads: one for the C classes, one for their C * K sub-categories.

    Args:
        backbone: from `wsss_lib.nets.backbone`; its deepest map, times its `feature_scale`, is M.
        num_classes: foreground classes C.
        frozen_batch_norm: frozen batch normalization, its scale and shift fixed, too (published).
        frozen_stages: how many of the backbone's five stages are not trained (published: 1).
        dropout: fraction of the channels of M that training sets to 0 (published: 0.5).

    Source: SC-CAM, section 3.2. Explained in notebook 60, section "The network".
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        clusters: int,
        frozen_batch_norm: bool = True,
        frozen_stages: int = 1,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.backbone, self.clusters = backbone, clusters
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(backbone.channels[-1], num_classes, 1, bias=False)  # W_p
        self.subclassifier = nn.Conv2d(backbone.channels[-1], num_classes * clusters, 1, bias=False)  # W_s
        for head in (self.classifier, self.subclassifier):
            nn.init.xavier_uniform_(head.weight)
        if frozen_batch_norm:
            freeze_batch_norm(self.backbone, affine=True)
        for module in backbone.shallow_modules(frozen_stages):
            module.requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Return M, (N, D, h, w), of normalized images (N, 3, H, W)."""
        return self.backbone.feature_scale * self.backbone(images)  # the heads' initialization is made for a ResNet's values

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits x_p (N, C) and x_s (N, C * K) of normalized images (N, 3, H, W)."""
        maps = self.dropout(self.features(images))  # whole channels of M are dropped, before the mean
        f = F.adaptive_avg_pool2d(maps, 1)  # (N, D, 1, 1)
        return self.classifier(f).flatten(1), self.subclassifier(f).flatten(1)

    def activation_maps(self, images: Tensor) -> Tensor:
        """Return A_c = ReLU(W_p[c] M): (N, C, h, w), not normalized."""
        return F.relu(self.classifier(self.features(images)))

    def subcategory_maps(self, images: Tensor) -> Tensor:
        """Return A_cj = ReLU(W_s[c K + j] M): (N, C * K, h, w), not normalized."""
        return F.relu(self.subclassifier(self.features(images)))

    def parameter_groups(self, learning_rate: float, head_learning_rate: float, weight_decay: float) -> list[dict]:
        """Return SGD's two groups: what is trained of the backbone, and the heads.

        Args:
            head_learning_rate: of both heads (published: ten times the backbone's).
            weight_decay: of both groups.
        """
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        heads = [self.classifier.weight, self.subclassifier.weight]
        return [
            {"params": trained, "lr": learning_rate, "weight_decay": weight_decay},
            {"params": heads, "lr": head_learning_rate, "weight_decay": weight_decay},
        ]


def joint_loss(parent_logits: Tensor, sub_logits: Tensor, parents: Tensor, subs: Tensor, weight: float) -> dict[str, Tensor]:
    """Return L = L_p + lambda L_s, both multi-label soft-margin losses: means over images and outputs.

    Args:
        parent_logits: x_p, (N, C).
        sub_logits: x_s, (N, C * K).
        parents, subs: float 0 or 1, of the same shapes.
        weight: lambda.

    Returns:
        scalars "loss", "parent" (L_p) and "sub" (L_s).

    Source: SC-CAM, equations 4 to 6. Explained in notebook 60, section "The joint loss".

    >>> loss = joint_loss(torch.zeros(1, 2), torch.zeros(1, 4), torch.ones(1, 2), torch.ones(1, 4), weight=5)
    >>> {name: round(value.item(), 3) for name, value in loss.items()}  # ln 2 and six times ln 2
    {'loss': 4.159, 'parent': 0.693, 'sub': 0.693}
    """
    parent = F.multilabel_soft_margin_loss(parent_logits.float(), parents)
    sub = F.multilabel_soft_margin_loss(sub_logits.float(), subs)
    return {"loss": parent + weight * sub, "parent": parent, "sub": sub}


# ---- response maps of the sub-categories, which are only looked at, not used


def normalize_subcategory_maps(maps: Tensor, clusters: int) -> Tensor:
    """Divide the K maps of each class by their common maximum over maps and pixels.

    Args:
        maps: A_cj, (n * K, h, w), >= 0, of n classes.

    Returns:
        (n * K, h, w) in [0, 1).

    Source: SC-CAM's program. Explained in notebook 60, section "Response maps".
    """
    by_class = maps.unflatten(0, (-1, clusters))  # (n, K, h, w)
    return (by_class / (by_class.amax((1, 2, 3), keepdim=True) + 1e-5)).flatten(0, 1)


def merge_subcategory_maps(maps: Tensor, clusters: int) -> Tensor:
    """Return the strongest of the K maps of each class at every pixel: (n, h, w).

    Args:
        maps: (n * K, h, w), of n classes.

    Source: SC-CAM's program (figures only). Explained in notebook 60, section "Response maps".
    """
    return maps.unflatten(0, (-1, clusters)).amax(1)


def subcategory_entropy(maps: Tensor, clusters: int) -> Tensor:
    """Return how evenly the K maps of each class share a pixel: 0: one map alone, 1: all alike.

    Args:
        maps: A_cj, (n * K, h, w), >= 0.
        clusters: K >= 2.

    Returns:
        -sum_k p_k log p_k / log K with p_k the fraction of map k, (n, h, w), not below 0.

    Source: SC-CAM's program (figures only). Explained in notebook 60, section "Response maps".
    """
    by_class = maps.unflatten(0, (-1, clusters))  # (n, K, h, w)
    share = by_class / (by_class.sum(1, keepdim=True) + 1e-5)  # p_k
    return (-(share * torch.log(share + 1e-5)).sum(1) / np.log(clusters)).clamp(min=0)


# ---- 60: rounds and maps


class SubcategorySamples(ClassificationSamples):
    """SC-CAM's recipe: random long side, horizontal flip, color jitter, random crop; with the labels of the sub-categories.

    Yields image float32 (3, crop, crop), normalized, 0 outside the image; labels float32 (C,) and (C * K,).

    Args:
        subcategories: Y_s, 0 or 1, (N, C * K).
        long_side: the shortest and the longest random long side, both included, in pixels.
        mean, std: (R, G, B) of the normalization, in 0..1.
        jitter: strength of the color jitter (published: 1).

    Source: SC-CAM's program. Explained in notebook 60, section "Training".
    """

    def __init__(
        self,
        data: SegmentationDataset,
        subcategories: np.ndarray,
        seed: int,
        long_side: tuple[int, int],
        crop: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        jitter: float = 1.0,
    ):
        super().__init__(data, seed, long_side, crop, mean, std)
        self.subcategories, self.jitter = subcategories, jitter

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image = self.data.image(self.data.ids[index])
        size = transforms.long_side_size(image.size, rng.randint(*self.long_side))
        image = image.resize(size, Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(transforms.color_jitter(image, rng, self.jitter))
        box = transforms.crop_box(pixels.shape[:2], self.crop, rng)
        array = transforms.crop_normalized(pixels, box, self.crop, self.mean, self.std)
        tables = self.data.labels, self.subcategories
        parents, subs = (torch.from_numpy(table[index].astype(np.float32)) for table in tables)
        return transforms.to_tensor(array), parents, subs


def build_sccam(config: Settings, num_classes: int, weights: Path | str = "") -> SubcategoryNet:
    """Build the network from the backbone's pre-trained weights (as every round begins) or from its own.

    Args:
        num_classes: foreground classes C.
        weights: safetensors file of a trained network; empty: none.

    Raises:
        ValueError: the weights belong to another network or another number of clusters.
        FileNotFoundError: there is no such file.

    Explained in notebook 60, section "The network".
    """
    backbone = build_backbone(config.backbone, config.output_stride, "none" if weights else config.backbone_weights)
    net = SubcategoryNet(
        backbone,
        num_classes,
        config.sccam_clusters,
        config.sccam_frozen_batch_norm,
        config.sccam_frozen_stages,
        config.sccam_dropout,
    )
    return load_whole(net, weights)


def make_round(
    previous: Backbone,
    normalization: tuple[tuple[float, float, float], tuple[float, float, float]],
    data: SegmentationDataset,
    config: Settings,
    folder: Path,
    number: int,
) -> int:
    """Make round `number` (1, 2, …) in its folder: features, sub-categories, weights.

    What already exists is reused, so an interrupted round resumes where it stopped.

    Args:
        previous: the trunk of the previous round, in evaluation mode; in round 1 that of a plain classifier.
        normalization: mean and standard deviation for `previous`.
        number: of the round.

    Returns:
        the number of images seen in training.

    Source: SC-CAM, section 3.4. Explained in notebook 60, section "Training".
    """
    features_file, table = folder / "features.safetensors", folder / "subcategories.csv"
    if not features_file.is_file():
        features = image_features(previous, data, *normalization, config.device_batch_size)
        write_tensors(features_file, {"features": torch.from_numpy(features)})
    if not table.is_file():
        features = read_tensors(features_file)["features"].numpy()
        write_subcategories(table, data, cluster_images(features, data.labels, config.sccam_clusters, config.seed))
    torch.manual_seed(config.seed)
    net = build_sccam(config, data.num_classes).to(next(previous.parameters()).device)
    seen = train_sccam(net, data, assignment_of(table, data, config.sccam_clusters), config, folder, number)
    training.save_weights(net, folder / "weights.safetensors")
    return seen


@in_processes
def train_sccam(
    net: SubcategoryNet, data: SegmentationDataset, assignment: np.ndarray, config: Settings, folder: Path, number: int
) -> int:
    """Train round `number` (1, 2, …) on classes and sub-categories.

    The learning rate is laid out for `sccam_schedule_epochs`, of which the round uses the first `sccam_round_epochs`.

    Args:
        assignment: the images' sub-categories, (N, C), from `cluster_images`.
        number: of the round.

    Source: SC-CAM, section 4.1, and its program. Explained in notebook 60, section "Training".
    """
    mean, std = normalization_of(config.backbone)
    samples = SubcategorySamples(
        data,
        subcategory_labels(assignment, net.clusters),
        config.seed,
        (config.cam_long_side_min, config.cam_long_side_max),
        config.cam_crop,
        mean,
        std,
        config.sccam_color_jitter,
    )
    epoch = steps_per_epoch(len(data), config.cam_batch_size)
    steps, planned = config.sccam_round_epochs[number - 1] * epoch, config.sccam_schedule_epochs * epoch

    def loss_of(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, parents, subs = batch
        parent_logits, sub_logits = model(images)
        return joint_loss(parent_logits, sub_logits, parents, subs, config.sccam_loss_weight)

    groups = net.parameter_groups(config.sccam_learning_rate, config.sccam_head_learning_rate, config.sccam_weight_decay)
    training.train(
        net,
        loss_of,
        samples,
        groups,
        config.sccam_momentum,
        steps,
        config.cam_batch_size,
        config,
        folder,
        schedule=lambda step, _: training.poly_factor(step, planned),
        name=f"SC-CAM, round {number}",
    )
    return steps * config.cam_batch_size


def sccam_localization(net: SubcategoryNet, config: Settings) -> Localize:
    """Return the function that makes the parent head's maps, for `make_maps`."""
    mean, std = normalization_of(config.backbone)
    net, grid = folded(net), cam.grid_stride_of(config, 1)
    return cam.in_precision(
        lambda ids, images, labels: cam.localization_maps(net, images, labels, config.cam_scales, mean, std, grid_stride=grid),
        net.classifier.weight.device,
        config,
    )


# ---- stages

ROUND_READS = (
    "sccam_clusters",
    "sccam_loss_weight",
    "sccam_round_epochs",
    "sccam_schedule_epochs",
    "sccam_dropout",
    "sccam_color_jitter",
    "sccam_learning_rate",
    "sccam_head_learning_rate",
    "sccam_momentum",
    "sccam_weight_decay",
    "sccam_frozen_batch_norm",
    "sccam_frozen_stages",
)


def round_stage(number: int) -> Stage:
    """Return the stage of round `number` (1, 2, …), on features of the previous round; round 0 is CAM's classifier."""

    def make(job: Job) -> int:
        previous, normalization = _trunk_before(job)
        return make_round(previous, normalization, job.data, job.config, job.folder, number)

    def inputs(config: Any) -> dict[str, Stage]:
        if number > 1:
            return {"previous": round_stage(number - 1)}
        return {} if config.sccam_first_weights else {"previous": cam.CLASSIFIER}

    def score(job: Job) -> list[dict]:
        used = used_subcategories(assignment_of(job.folder / "subcategories.csv", job.data, job.config.sccam_clusters))
        return [{"what": f"SC-CAM, round {number}", "split": job.data.split, "images": len(job.data), "used": used.tolist()}]

    return Stage(
        f"round{number}",
        NOTEBOOK,
        make,
        load=_load_round,
        score=score,
        needs_masks=False,
        score_split="train_split",
        inputs=inputs,
        reads=lambda config: (
            *BACKBONE,
            *cam.CROPS,
            *ROUND_READS,
            *(("sccam_first_weights",) if number == 1 and config.sccam_first_weights else ()),
            *TRAINING,
        ),
    )


def _trunk_before(job: Job) -> tuple[Backbone, tuple[tuple[float, float, float], tuple[float, float, float]]]:
    """Return the trunk whose features a round clusters, on the device, and the normalization that it needs."""
    if job.inputs:
        before = job.inputs["previous"]
        return before.net.backbone, normalization_of(before.config.backbone)
    net = cam.ClassActivationNet(build_backbone(job.config.backbone, job.config.output_stride), job.data.num_classes)
    trunk = load_whole(net, job.config.sccam_first_weights).backbone
    return trunk.to(job.device).eval(), normalization_of(job.config.backbone)


def rounds(config: Any) -> tuple[Stage, ...]:
    """Return the stages of all rounds: none if a finished network is given."""
    count = 0 if config.sccam_weights else len(config.sccam_round_epochs)
    return tuple(round_stage(number) for number in range(1, count + 1))


def _load_round(job: Job) -> SubcategoryNet:
    return build_sccam(job.config, job.data.num_classes, job.weights).to(job.device).eval()


def _make_maps(job: Job) -> int:
    if job.config.sccam_weights:
        net = build_sccam(job.config, job.data.num_classes, job.config.sccam_weights).to(job.device)
    else:
        net = job.inputs["network"].net
    return make_maps(sccam_localization(net, job.config), job.data, job.config, job.folder)


MAPS = Stage(
    "maps",
    NOTEBOOK,
    _make_maps,
    inputs=lambda config: {} if config.sccam_weights else {"network": rounds(config)[-1]},
    score=score_maps,
    reads=lambda config: (
        "backbone",
        "cam_scales",
        *cam.MAP_FORM,
        "sccam_weights",
        *(
            (*BACKBONE, "sccam_clusters", "sccam_dropout", "sccam_frozen_batch_norm", "sccam_frozen_stages")
            if config.sccam_weights
            else ()
        ),
    ),
    shows={"CAM at its best threshold": None},
)
STAGES = (MAPS,)  # after the rounds, whose number is a parameter


# ---- costs


def costs(config: Settings, data: Images) -> list[Cost]:
    """Count all rounds and the maps of the last."""
    net, batch = build_sccam(config, data.classes), crops(config.cam_crop)

    def loss_of(count: int) -> Tensor:
        logits, sub_logits = net(batch(count))
        parents, subs = torch.empty_like(logits), torch.empty_like(sub_logits)
        return joint_loss(logits, sub_logits, parents, subs, config.sccam_loss_weight)["loss"]

    features = inference_cost(
        "features", net.eval(), net.features, data.train, data.size, views=1, at_once=config.device_batch_size
    )
    epoch = training_cost("epoch", net, loss_of, data.seen(1, config.cam_batch_size), config.cam_batch_size, config)
    trained = [
        replace(epoch, stage=f"round{number}", flops=epochs * epoch.flops, gpu_bytes=max(epoch.gpu_bytes, features.gpu_bytes))
        for number, epochs in enumerate(config.sccam_round_epochs, start=1)
    ]
    return [*trained, cam.maps_cost(net, config, data)]
