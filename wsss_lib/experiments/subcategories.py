"""Pictures of sub-categories, and quick scores and short trainings of SC-CAM's networks, for notebook 60."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
import torch

from wsss_lib import viz
from wsss_lib.core import training
from wsss_lib.core.scoring import full_size_maps
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.experiments import a_trial
from wsss_lib.experiments.trials import sweep_of
from wsss_lib.methods import cam, sccam
from wsss_lib.ops.merging import upsample_scores
from wsss_lib.ops.thresholds import near_best_range
from wsss_lib.parameters import Settings

THRESHOLDS = np.linspace(0.02, 0.8, 40)
Net = cam.ClassActivationNet | sccam.SubcategoryNet
NAMED = 8  # so many groups have a legend


def kinds_and_maps(
    data: SegmentationDataset, maps_folder: Path, number: int, kind_of: Mapping[int, str]
) -> list[list[viz.Panel]]:
    """Return panels with images of a class next to their maps: one of each kind, and below them as many others.

    Args:
        number: of the class, 0-based.
        kind_of: index of each image of the class to its kind; images with another class are shown only if all have one.
    """
    alone = [index for index in kind_of if data.labels[index].sum() == 1] or list(kind_of)
    first = [next(index for index in alone if kind_of[index] == kind) for kind in sorted({kind_of[index] for index in alone})]
    others = [index for index in alone if index not in first][: len(first)]
    rows: list[list[viz.Panel]] = []
    for chosen in (first, others) if len(others) == len(first) else (first,):
        rows.append([])
        for index in chosen:
            image = np.array(data.image(data.ids[index]))
            classes, scores = full_size_maps(maps_folder, data.ids[index])
            rows[-1] += [
                viz.image(image, f"{data.classes[number]}, {kind_of[index]}"),
                viz.scores(image, scores[list(classes).index(number)], "CAM"),
            ]
    return rows


def nearest_to_center(
    data: SegmentationDataset, features: np.ndarray, members: np.ndarray, title: str, kind_of: Mapping[int, str], count: int = 5
) -> list[viz.Panel]:
    """Return a panel for each of the images whose features lie nearest to their mean, empty ones if there are too few.

    Args:
        features: of all images, (N, D).
        members: indices of the images of a cluster.
        title: stands before the kind of the first image.
        kind_of: index to the image's kind.
        count: of panels.
    """
    inside = features[members]
    nearest = members[np.argsort(((inside - inside.mean(0)) ** 2).sum(1))[:count]]
    panels = [
        viz.image(np.array(data.image(data.ids[index])), ("" if place else title) + kind_of[index])
        for place, index in enumerate(nearest)
    ]
    return panels + [viz.blank()] * (count - len(panels))


def groups_of_points(points: np.ndarray, groups: np.ndarray, title: str) -> viz.Panel:
    """Return a panel with one color and one mark for each group.

    Args:
        points: (N, 2).
        groups: (N,), the group of each.
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
    """

    def draw(axes) -> None:
        for words, log in logs.items():
            means = [np.mean([row[name] for row in log[max(0, end - 5) : end]]) for end in range(1, len(log) + 1)]
            axes.plot([row["step"] for row in log], means, label=words)
        axes.set(xlabel="step", ylabel="loss", title=title, ylim=(0, None))
        axes.legend()

    return draw


def quick_maps(
    net: Net, data: SegmentationDataset, image_id: str, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes (K,) of an image and their maps (K, H, W) at a single scale, in [0, 1].

    Args:
        mean, std: of the normalization.
    """
    image = data.image(image_id)
    ((classes, scores),) = cam.localization_maps(
        cast(cam.ClassActivationNet, net), [image], data.label(image_id)[None], [1.0], mean, std
    )
    return classes, upsample_scores(scores, image.size[::-1])


def quick_row(net: Net, data: SegmentationDataset, mean: tuple[float, float, float], std: tuple[float, float, float]) -> dict:
    """Return the mIoU of the maps at a single scale over the background threshold, as `show_threshold_curves` takes it.

    Thresholds "from" and "to" limit the range in which it is within two points of its best.

    Args:
        mean, std: of the normalization.
    """
    curve = 100 * sweep_of(data, data.ids, lambda image_id: quick_maps(net, data, image_id, mean, std), THRESHOLDS).curve()
    lowest, highest = near_best_range(THRESHOLDS.tolist(), curve.tolist(), within=2)
    return {
        "split": data.split,
        "images": len(data),
        "thresholds": THRESHOLDS,
        "curve": curve,
        "from": lowest,
        "to": highest,
        "threshold": THRESHOLDS[curve.argmax()],
        "miou": curve.max(),
    }


def known_kinds(data: SegmentationDataset, kinds: Mapping[tuple[str, str], str], clusters: int) -> np.ndarray:
    """Return the sub-categories that clustering looks for: the kinds that the generated images were made from.

    Args:
        kinds: (image id, class name) to the name of the object's kind, of the classes that have several.
        clusters: K, of which at most so many are used.

    Returns:
        int64 (N, C): -1 where the image does not carry the class, 0 where the class has a single kind.
    """
    names = sorted(set(kinds.values()))[:clusters]
    assignment = np.where(data.labels, 0, -1)
    for row, image_id in enumerate(data.ids):
        for index in np.flatnonzero(data.labels[row]):
            kind = kinds.get((image_id, data.classes[index]))
            assignment[row, index] = names.index(kind) if kind in names else 0
    return assignment


def short_training(
    start: cam.ClassActivationNet,
    data: SegmentationDataset,
    assignment: np.ndarray,
    config: Settings,
    loss_weight: float,
    clusters: int,
    epochs: int = 2,
) -> sccam.SubcategoryNet:
    """Train on with other sub-categories or another weight of their loss, from a classifier; nothing is stored.

    Args:
        start: the classifier, of the same backbone.
        assignment: their sub-categories, (N, C).
        loss_weight: lambda.
        epochs: of the training, and of its learning rate's schedule.

    Returns:
        the network.

    Explained in notebook 60, section "What helps and what does not".
    """
    short = config.model_copy(
        update={
            "sccam_loss_weight": loss_weight,
            "sccam_clusters": clusters,
            "sccam_round_epochs": (epochs,),
            "sccam_schedule_epochs": epochs,
        }
    )
    torch.manual_seed(config.seed)
    net = sccam.build_sccam(short, data.num_classes).to(training.device_of(config))
    net.backbone.load_state_dict(start.backbone.state_dict())
    net.classifier.load_state_dict(start.classifier.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        with a_trial():
            sccam.train_sccam(net, data, assignment, short, Path(folder), 1)
    return net
