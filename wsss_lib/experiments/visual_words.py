"""Views of visual words, and short trainings with one part of VWE at a time; used by notebook 50."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wsss_lib import viz
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import best_threshold_row
from wsss_lib.core.training import device_of
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import ClassificationSamples
from wsss_lib.experiments import a_trial
from wsss_lib.methods import cam, vwe
from wsss_lib.nets.backbone import normalization_of

COLORS = 254  # of the palette
NAMED = 4  # words of a word map that carry their number; more would cover each other
WordMaps = dict[str, tuple[Tensor, Tensor]]  # image id to index int64 (h, w) and cosine float (h, w) of each position's word


def word_panel(index: Tensor, image: Image.Image, title: str) -> viz.Panel:
    """Return a panel for `viz.show_panels` with a word map (h, w): a color for each word, and the numbers of the largest."""
    labels = index % COLORS + 1  # with more words, two or more share a color
    large = F.interpolate(labels[None, None].float(), size=image.size[::-1], mode="nearest")[0, 0]
    named = labels.flatten().bincount(minlength=COLORS + 1).argsort(descending=True)[:NAMED].tolist()
    names = [str(number) if number + 1 in named else "" for number in range(COLORS)]
    return viz.labels(large.numpy().astype(np.uint8), names, title, np.array(image))


def half_of_the_weight(weights: np.ndarray) -> float:
    """Return the percentage of positions that hold half of the weight.

    >>> half_of_the_weight(np.array([[3.0, 1.0], [1.0, 1.0]]))
    25.0
    """
    ranked = np.sort(weights.flatten())[::-1].cumsum()
    return 100 * float(np.searchsorted(ranked, ranked[-1] / 2) + 1) / ranked.size


def flow_diagram(flows: Mapping[tuple[str, str], bool]) -> viz.Panel:
    """Return a panel with an arrow from each loss to each part of the network that its gradient reaches.

    Args:
        flows: (loss, part) to whether a gradient arrives.
    """
    losses, parts = (list(dict.fromkeys(pair[side] for pair in flows)) for side in (0, 1))

    def height(names: list[str], name: str) -> float:
        return 1 - names.index(name) / max(1, len(names) - 1)

    def draw(axes) -> None:
        for (loss, part), arrives in flows.items():
            if arrives:
                axes.annotate(
                    "",
                    (1, height(parts, part)),
                    (0, height(losses, loss)),
                    arrowprops={"arrowstyle": "->", "color": f"C{losses.index(loss)}", "lw": 2},
                )
        for loss in losses:
            axes.text(-0.02, height(losses, loss), f"loss: {loss}", ha="right", va="center")
        for part in parts:
            axes.text(1.02, height(parts, part), part, ha="left", va="center")
        axes.set(xlim=(-0.4, 1.6), ylim=(-0.15, 1.15))
        axes.set_axis_off()

    return draw


def nearest_patches(data: SegmentationDataset, word_maps: WordMaps, word: int, count: int, side: int) -> list[viz.Panel]:
    """Return a panel for each of the patches that lie nearest to a word, at most one of an image, best first.

    Args:
        word_maps: of some of the images.
        word: its number.
        count: of patches at most.
        side: of a patch in pixels.
    """
    found = []
    for image_id, (index, cosine) in word_maps.items():
        if (index == word).any():
            place = int(torch.where(index == word, cosine, -2.0).argmax())
            found.append((float(cosine.flatten()[place]), image_id, *divmod(place, index.shape[1])))
    panels = []
    for number, (_, image_id, *position) in enumerate(sorted(found, reverse=True)[:count]):
        image, shape = np.array(data.image(image_id)), word_maps[image_id][0].shape
        y, x = (int((place + 0.5) * image.shape[axis] / shape[axis]) for axis, place in enumerate(position))
        padded = np.pad(image, ((side, side), (side, side), (0, 0)), mode="edge")
        patch = padded[y + side // 2 :, x + side // 2 :][:side, :side]
        panels.append(_small(patch, "" if number else f"word {word}"))
    return panels


def _small(patch: np.ndarray, title: str) -> viz.Panel:
    def draw(axes) -> None:
        viz.draw_image(axes, patch)
        axes.set_title(title, loc="left", fontsize=8, pad=2)

    return draw


def fractions_by_class(data: SegmentationDataset, ids: Sequence[str], wins: Tensor) -> dict[str, np.ndarray]:
    """Return the fraction of an image's positions that each word owns, averaged over the images of one class alone.

    Args:
        ids: of the images, N.
        wins: (N, K), how many positions each word owns.

    Returns:
        name of each class that is alone in some image to its fractions, (K,).
    """
    labels = np.stack([data.label(image_id) for image_id in ids])
    fractions, single = (wins / wins.sum(1, keepdim=True)).numpy(), labels.sum(1) == 1
    return {
        data.classes[number]: fractions[single & (labels[:, number] == 1)].mean(0)
        for number in np.flatnonzero(labels[single].any(0))
    }


def first_samples(data: SegmentationDataset, config: Any, count: int) -> tuple[Tensor, Tensor]:
    """Return at most the first `count` training images: float32 (N, 3, crop, crop), and their labels, (N, C)."""
    samples = ClassificationSamples(
        data,
        config.seed,
        (config.cam_long_side_min, config.cam_long_side_max),
        config.cam_crop,
        *normalization_of(config.backbone),
    )
    images, labels = zip(*(samples[0, number] for number in range(min(count, len(data)))), strict=True)
    device = device_of(config)
    return torch.stack(images).to(device), torch.stack(labels).to(device)


def short_training(
    pooling: tuple[float, tuple[int, ...]],
    with_words: bool,
    data: SegmentationDataset,
    scored: SegmentationDataset,
    classifier_weights: Path,
    config: Any,
) -> dict[str, Any]:
    """Train briefly with one pooling, with or without the words' losses, and score the maps.

    Args:
        pooling: gamma and levels of `vwe.hspp`.
        with_words: whether the words' losses are added.
        scored: those whose maps are made and scored.
        classifier_weights: CAM's classifier, the initialization; the network of `vwe_weights`, if given, replaces it.

    Returns:
        the row of `best_threshold_row`.
    """
    torch.manual_seed(config.seed)
    net = vwe.build_vwe(config, data.num_classes, classifier_weights, config.vwe_weights).to(device_of(config))
    net.gamma, net.levels = pooling
    with tempfile.TemporaryDirectory() as folder:
        with a_trial():
            vwe.train_vwe(net, data, config, Path(folder), vwe.losses if with_words else cam.classification_loss)
        make_maps(vwe.vwe_localization(net, config), scored, config, Path(folder) / "maps")
        return best_threshold_row(scored, Path(folder) / "maps")
