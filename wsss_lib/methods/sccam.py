"""SC-CAM: sub-category exploration (Chang et al., CVPR 2020).

Every class is split into K sub-categories by k-means on image features, and a network must predict class and sub-category.
The harder task needs more of the object, so the class's own activation map becomes more complete. Features of the new
network give new sub-categories, and so on; every round starts again from the pre-trained weights.

Sub-category j of class c is number c * K + j everywhere. `subcategories.py` makes the sub-categories.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wsss_lib import training
from wsss_lib.artifacts import Stage, begin_stage
from wsss_lib.config import Config, fields_of
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import ClassificationSamples, sample_rng, steps_per_epoch
from wsss_lib.formats import read_tensors, write_tensors
from wsss_lib.inference import Localize
from wsss_lib.launch import in_processes
from wsss_lib.methods import cam
from wsss_lib.methods.subcategories import (
    assignment_of,
    cluster_images,
    image_features,
    subcategory_labels,
    used_subcategories,
    write_subcategories,
)
from wsss_lib.nets.backbone import build_backbone, freeze_batch_norm, normalization_of
from wsss_lib.nets.weights import load_whole

ROUND_FIELDS = fields_of("sccam_", "cam_batch_size", "cam_long_side_", "cam_crop")  # what the stage of a round depends on


class SubcategoryNet(nn.Module):
    """A trunk with two linear heads: one for the C classes, one for their C * K sub-categories.

    Args:
        backbone: from `wsss_lib.nets.backbone`; its deepest map, times its `feature_scale`, is M.
        num_classes: foreground classes C.
        clusters: K.
        frozen_batch_norm: keep batch normalisation in inference form, its scale and shift fixed (published).
        frozen_stages: how many of the backbone's five stages are not trained (published: 1).
        dropout: share of the channels of M that training sets to 0 (published: 0.5).

    Source: SC-CAM, section 3.2. Explained in notebook 60, section "The network".
    """

    def __init__(self, backbone: nn.Module, num_classes: int, clusters: int, frozen_batch_norm: bool = True,
                 frozen_stages: int = 1, dropout: float = 0.5):
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
        """Return M, (N, D, h, w), of normalised images (N, 3, H, W)."""
        return self.backbone.feature_scale * self.backbone(images)  # the heads' start is made for a ResNet's values

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits x_p (N, C) and x_s (N, C * K) of normalised images (N, 3, H, W)."""
        maps = self.dropout(self.features(images))  # whole channels of M are dropped, before the mean
        f = F.adaptive_avg_pool2d(maps, 1)  # (N, D, 1, 1)
        return self.classifier(f).flatten(1), self.subclassifier(f).flatten(1)

    def activation_maps(self, images: Tensor) -> Tensor:
        """Return A_c = ReLU(W_p[c] M): (N, C, h, w), not normalised."""
        return F.relu(self.classifier(self.features(images)))

    def subcategory_maps(self, images: Tensor) -> Tensor:
        """Return A_cj = ReLU(W_s[c K + j] M): (N, C * K, h, w), not normalised."""
        return F.relu(self.subclassifier(self.features(images)))

    def parameter_groups(self, learning_rate: float, head_learning_rate: float, weight_decay: float) -> list[dict]:
        """Return SGD's two groups: what is trained of the backbone, and the heads.

        Args:
            learning_rate: of the backbone.
            head_learning_rate: of both heads (published: ten times the backbone's).
            weight_decay: of both groups.
        """
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        heads = [self.classifier.weight, self.subclassifier.weight]
        return [{"params": trained, "lr": learning_rate, "weight_decay": weight_decay},
                {"params": heads, "lr": head_learning_rate, "weight_decay": weight_decay}]


def joint_loss(parent_logits: Tensor, sub_logits: Tensor, parents: Tensor, subs: Tensor,
               weight: float) -> dict[str, Tensor]:
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


# ---- response maps of the sub-categories, which are looked at and not used

def normalize_subcategory_maps(maps: Tensor, clusters: int) -> Tensor:
    """Divide the K maps of each class by their common maximum over maps and pixels.

    Args:
        maps: A_cj, (n * K, h, w), >= 0, of n classes.
        clusters: K.

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
        clusters: K.

    Source: SC-CAM's program (figures only). Explained in notebook 60, section "Response maps".
    """
    return maps.unflatten(0, (-1, clusters)).amax(1)


def subcategory_entropy(maps: Tensor, clusters: int) -> Tensor:
    """Return how evenly the K maps of each class share a pixel: 0 one map alone, 1 all alike.

    Args:
        maps: A_cj, (n * K, h, w), >= 0.
        clusters: K >= 2.

    Returns:
        -sum_k p_k log p_k / log K with p_k the share of map k, (n, h, w), not below 0.

    Source: SC-CAM's program (figures only). Explained in notebook 60, section "Response maps".
    """
    by_class = maps.unflatten(0, (-1, clusters))  # (n, K, h, w)
    share = by_class / (by_class.sum(1, keepdim=True) + 1e-5)  # p_k
    return (-(share * torch.log(share + 1e-5)).sum(1) / np.log(clusters)).clamp(min=0)


# ---- 60: rounds and maps

class SubcategorySamples(ClassificationSamples):
    """SC-CAM's recipe: random long side, mirror, colour jitter, random crop; with the labels of the sub-categories.

    Yields image float32 (3, crop, crop), normalised, 0 outside the image; labels float32 (C,) and (C * K,).

    Args:
        data: the split.
        subcategories: Y_s, 0 or 1, (N, C * K).
        seed: of the run.
        long_side: the shortest and the longest random long side, both included, in pixels.
        crop: side of the crop in pixels.
        mean, std: (R, G, B) of the normalisation, in 0..1.
        jitter: strength of the colour jitter (published: 1).

    Source: SC-CAM's program. Explained in notebook 60, section "Training".
    """

    def __init__(self, data: SegmentationDataset, subcategories: np.ndarray, seed: int, long_side: tuple[int, int], crop: int,
                 mean: tuple, std: tuple, jitter: float = 1.0):
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
        array = transforms.normalize(transforms.color_jitter(image, rng, self.jitter), self.mean, self.std)
        array = transforms.crop(array, transforms.crop_box(array.shape[:2], self.crop, rng), self.crop, fill=0)
        labels = (torch.from_numpy(table[index].astype(np.float32)) for table in (self.data.labels, self.subcategories))
        return transforms.to_tensor(array), *labels


def build_sccam(config: Config, num_classes: int, weights: Path | str = "") -> SubcategoryNet:
    """Build the network from the backbone's pre-trained weights (as every round begins) or from its own.

    Args:
        config: backbone and `sccam_*`.
        num_classes: foreground classes C.
        weights: safetensors file of a trained network; empty: none.

    Returns:
        the network, on the CPU.

    Raises:
        ValueError: weights of another network or of another number of clusters.
        FileNotFoundError: there is no such file.

    Explained in notebook 60, section "The network".
    """
    backbone = build_backbone(config.backbone, config.output_stride, "none" if weights else config.backbone_weights)
    net = SubcategoryNet(backbone, num_classes, config.sccam_clusters, config.frozen_batch_norm, config.frozen_stages,
                         config.sccam_dropout)
    return load_whole(net, weights)


def make_round(previous: nn.Module, normalization: tuple[tuple, tuple], data: SegmentationDataset, config: Config,
               folder: Path, number: int) -> int:
    """Make round `number` (1, 2, …) in its folder: features, sub-categories, weights.

    What is there already is used again, so that an interrupted round goes on where it stopped.

    Args:
        previous: the trunk of the round before, in evaluation mode; in round 1 that of a plain classifier.
        normalization: mean and standard deviation for `previous`.
        data: the training images.
        config: `sccam_*`, and the crops and batches of the classifier.
        folder: gets `features.safetensors`, `subcategories.csv` and `weights.safetensors`.
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


def make_rounds(classifier: Stage, trunk: nn.Module, data: SegmentationDataset, data_hash: str, config: Config) -> list[Stage]:
    """Make all rounds, each a stage of its own with the features of the one before; a finished round is left alone.

    Args:
        classifier: the finished stage of the plain classifier, round 0.
        trunk: its backbone in evaluation mode, on the device to train on; it may be another one than the rounds'.
        data: the training images.
        data_hash: what identifies them (`stages.data_hash`).
        config: as for `make_round`; `sccam_round_epochs` has one number for each round.

    Returns:
        the finished stages of rounds 1, 2, …

    Source: SC-CAM, section 3.4. Explained in notebook 60, section "Training".
    """
    device = next(trunk.parameters()).device
    normalization, rounds = normalization_of(classifier.configuration(config).backbone), [classifier]
    for number in range(1, len(config.sccam_round_epochs) + 1):
        stage = begin_stage(config, f"round{number}", ROUND_FIELDS, {"data": data_hash, "previous": rounds[-1]})
        if not stage.is_complete():
            seen = make_round(trunk, normalization, data, config, stage.folder, number)
            used = used_subcategories(assignment_of(stage.folder / "subcategories.csv", data, config.sccam_clusters))
            row = {"what": f"SC-CAM, round {number}", "split": data.split, "images": len(data), "used": used.tolist()}
            stage.finish([row], seen, str(device))
        net = build_sccam(config, data.num_classes, stage.folder / "weights.safetensors")
        trunk, normalization = net.to(device).eval().backbone, normalization_of(config.backbone)
        rounds.append(stage)
    return rounds[1:]


@in_processes
def train_sccam(net: SubcategoryNet, data: SegmentationDataset, assignment: np.ndarray, config: Config, folder: Path,
                number: int) -> int:
    """Train round `number` (1, 2, …) on classes and sub-categories.

    The learning rate is laid out for `sccam_schedule_epochs`, of which the round uses the first `sccam_round_epochs`.

    Args:
        net: in place.
        data: the training images.
        assignment: their sub-categories, (N, C), from `cluster_images`.
        config: `sccam_*`, and the crops and batches of the classifier.
        folder: for log and training state.
        number: of the round.

    Returns:
        the number of images seen.

    Source: SC-CAM, section 4.1, and its program. Explained in notebook 60, section "Training".
    """
    mean, std = normalization_of(config.backbone)
    samples = SubcategorySamples(data, subcategory_labels(assignment, net.clusters), config.seed,
                                 (config.cam_long_side_min, config.cam_long_side_max), config.cam_crop, mean, std,
                                 config.sccam_color_jitter)
    epoch = steps_per_epoch(len(data), config.cam_batch_size)
    steps, planned = config.sccam_round_epochs[number - 1] * epoch, config.sccam_schedule_epochs * epoch

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        images, parents, subs = batch
        return joint_loss(*model(images), parents, subs, config.sccam_loss_weight)

    groups = net.parameter_groups(config.sccam_learning_rate, config.sccam_head_learning_rate, config.sccam_weight_decay)
    momentum = training.momentum_of(config.momentum, config.sccam_weight_decay, config.momentum_slip)
    training.train(net, loss_of, samples, groups, momentum, steps, config.cam_batch_size, config, folder,
                   schedule=lambda step, _: training.poly_factor(step, planned), name=f"SC-CAM, round {number}")
    return steps * config.cam_batch_size


def sccam_localization(net: SubcategoryNet, config: Config) -> Localize:
    """Return the function that makes the parent head's maps, for `stages.make_maps`.

    Args:
        net: of the last round.
        config: scales and backbone.
    """
    mean, std = normalization_of(config.backbone)
    net.eval().to(memory_format=torch.channels_last)
    return lambda ids, images, labels: cam.localization_maps(net, images, labels, config.cam_scales, mean, std)
