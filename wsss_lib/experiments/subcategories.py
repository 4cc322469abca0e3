"""Pictures of sub-categories, and quick scores and short trainings of SC-CAM's networks, for notebook 60."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import nn

from wsss_lib import viz
from wsss_lib.core import training
from wsss_lib.core.scoring import full_size_maps
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.methods import cam, sccam
from wsss_lib.ops.seeds import upsample_scores
from wsss_lib.ops.thresholds import ThresholdSweep
from wsss_lib.parameters import Settings

THRESHOLDS = np.linspace(0.02, 0.8, 40)
NAMED = 8  # so many groups have a legend


def examples_of_kinds(data: SegmentationDataset, members: Sequence[int], kind_of: Mapping[int, str]) -> list[list[int]]:
    """Choose images of a class, if possible without another class: one of each kind, and if there are, as many others.

    Args:
        data: with the labels.
        members: indices of the images of the class.
        kind_of: index to the image's kind.

    Returns:
        one or two rows of equal length, of indices.
    """
    alone = [index for index in members if data.labels[index].sum() == 1] or list(members)
    first = [next(index for index in alone if kind_of[index] == kind) for kind in sorted({kind_of[index] for index in alone})]
    others = [index for index in alone if index not in first][:len(first)]
    return [first, others] if len(others) == len(first) else [first]


def image_and_map(data: SegmentationDataset, maps_folder: Path, index: int, number: int, title: str) -> list[viz.Panel]:
    """Return two panels: an image, and its map of one class.

    Args:
        data: with the images.
        maps_folder: of `ID.npz`.
        index: of the image.
        number: of the class, 0-based.
        title: above the image.
    """
    image = data.image(data.ids[index])
    classes, scores = full_size_maps(maps_folder, data.ids[index])
    return [viz.image(image, title), viz.scores(image, scores[list(classes).index(number)], "CAM")]


def groups_of_points(points: np.ndarray, groups: np.ndarray, title: str) -> viz.Panel:
    """Return a panel with one color and one mark for each group.

    Args:
        points: (N, 2).
        groups: (N,), the group of each.
        title: above the picture.
    """
    def draw(axes) -> None:
        names = np.unique(groups)
        colors = matplotlib.colormaps["cividis"](np.linspace(0, 1, len(names)))
        for name, color, marker in zip(names, colors, "os^vD<>P*Xhdp" * 20, strict=False):
            axes.scatter(*points[groups == name].T, s=14, marker=marker, color=color, label=str(name))
        axes.set(title=title, xlabel="first component", ylabel="second component")
        if len(names) <= NAMED:
            axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)

    return draw


def losses_of_rounds(logs: Mapping[str, Sequence[Mapping[str, float]]], name: str, title: str) -> viz.Panel:
    """Return a panel with one loss of several trainings, each value a mean of up to five rows of the log.

    Args:
        logs: words in the legend to the rows of a log.
        name: of the loss in them.
        title: above the picture.
    """
    def draw(axes) -> None:
        for words, log in logs.items():
            means = [np.mean([row[name] for row in log[max(0, end - 5):end]]) for end in range(1, len(log) + 1)]
            axes.plot([row["step"] for row in log], means, label=words)
        axes.set(xlabel="step", ylabel="loss", title=title, ylim=(0, None))
        axes.legend()

    return draw


def quick_maps(net: nn.Module, data: SegmentationDataset, image_id: str, mean: tuple,
               std: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes (K,) of an image and their maps (K, H, W) at a single scale, in [0, 1].

    Args:
        net: in evaluation mode.
        data: with the image.
        image_id: of the image.
        mean, std: of the normalization.
    """
    image = data.image(image_id)
    (classes, scores), = cam.localization_maps(net, [image], data.label(image_id)[None], [1.0], mean, std)
    return classes, upsample_scores(scores, image.size[::-1])


def quick_row(net: nn.Module, data: SegmentationDataset, mean: tuple, std: tuple) -> dict:
    """Return the mIoU of the maps at a single scale over the background threshold, as `show_threshold_curves` takes it.

    Args:
        net: in evaluation mode.
        data: with ground truth.
        mean, std: of the normalization.
    """
    sweep = ThresholdSweep(data.num_classes + 1, THRESHOLDS)
    for image_id in data.ids:
        classes, scores = quick_maps(net, data, image_id, mean, std)
        sweep.add(data.mask(image_id), scores, classes)
    curve = 100 * sweep.curve()
    return {"split": data.split, "images": len(data), "thresholds": THRESHOLDS, "curve": curve,
            "threshold": THRESHOLDS[curve.argmax()], "miou": curve.max()}


def short_training(start: nn.Module, data: SegmentationDataset, assignment: np.ndarray, config: Settings, loss_weight: float,
                   clusters: int, epochs: int = 2) -> sccam.SubcategoryNet:
    """Train on with other sub-categories or another weight of their loss, from a classifier; nothing is stored.

    Args:
        start: the classifier, of the same backbone.
        data: the training images.
        assignment: their sub-categories, (N, C).
        config: of the whole run.
        loss_weight: lambda.
        clusters: K.
        epochs: of the training, and of its learning rate's schedule.

    Returns:
        the network.

    Explained in notebook 60, section "What helps and what does not".
    """
    short = config.model_copy(update={"sccam_loss_weight": loss_weight, "sccam_clusters": clusters,
                                      "sccam_round_epochs": (epochs,), "sccam_schedule_epochs": epochs})
    torch.manual_seed(config.seed)
    net = sccam.build_sccam(short, data.num_classes).to(training.device_of(config))
    net.backbone.load_state_dict(start.backbone.state_dict())
    net.classifier.load_state_dict(start.classifier.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        sccam.train_sccam(net, data, assignment, short, Path(folder), 1)
    return net
