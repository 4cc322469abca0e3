"""AffinityNet (Ahn and Kwak, CVPR 2018): labels from two strengths of the CRF, training, and the random walk over features.

The loss and the pairs are in `affinity.py`, the walk itself in `random_walk.py`, the network in `nets/affinitynet.py`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from wsss_lib import training
from wsss_lib.artifacts import read_maps, read_tensors, write_atomically, write_mask
from wsss_lib.config import Config, project_path
from wsss_lib.data import transforms
from wsss_lib.data.dataset import IGNORE, DataError, SegmentationDataset
from wsss_lib.data.samples import sample_rng, steps_per_epoch
from wsss_lib.inference import for_each_image
from wsss_lib.nets.affinitynet import AffinityNet
from wsss_lib.nets.backbone import build_backbone, load_weights, normalization_of
from wsss_lib.refine.affinity import affinity_labels, feature_affinity, feature_affinity_loss, search_paths
from wsss_lib.refine.crf import crf_from_probabilities
from wsss_lib.refine.random_walk import Graph, pair_graph, random_walk
from wsss_lib.refine.seeds import upsample_scores

# ---- labels

def scores_with_background(scores: np.ndarray, alpha: float) -> np.ndarray:
    """Put the background's score before the classes': (1 - max_c M_c)^alpha.

    Args:
        scores: M, (K, H, W) float in [0, 1]; K may be 0.
        alpha: exponent; the larger, the weaker is the background.

    Returns:
        (1 + K, H, W) float32.

    Raises:
        ValueError: scores outside [0, 1]. SC-CAM's released program overwrites its maps by a picture of 0 and 255 before it
            saves them; a background of (1 - 255)^alpha would then win everywhere.

    Source: AffinityNet, equation 2. Explained in notebook 75, section "Two strengths of the background".

    >>> scores_with_background(np.array([[[0.5, 0.0]]]), alpha=4)[0]
    array([[0.0625, 1.    ]], dtype=float32)
    """
    scores = np.asarray(scores, np.float32)
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):  # false for NaN
        raise ValueError(f"scores must lie in 0..1, not in {scores.min():g}..{scores.max():g}: were the maps divided by their "
                         "maximum, or overwritten by a picture?")
    return np.concatenate([(1 - scores.max(0, keepdims=True, initial=0)) ** np.float32(alpha), scores])


def crf_with_alpha(image: np.ndarray, scores: np.ndarray, alpha: float) -> np.ndarray:
    """Refine maps and background by the dense CRF, with AffinityNet's parameters.

    Args:
        image: (H, W, 3) uint8, RGB.
        scores: M, (K, H, W) float in [0, 1].
        alpha: exponent of the background.

    Returns:
        (1 + K, H, W) float32, the probabilities after ten steps; background first.

    Source: AffinityNet, section 3.3, and its program. Explained in notebook 75, section "Two strengths of the background".
    """
    if not len(scores):  # nothing to decide: all is background
        return np.ones((1, *scores.shape[1:]), np.float32)
    return crf_from_probabilities(image, scores_with_background(scores, alpha), gaussian_sxy=3, gaussian_compat=3,
                                  bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10)


def confident_labels(low: Tensor, high: Tensor) -> Tensor:
    """Merge the scores of two strengths of the background into a label: an object has to survive the strong one.

    Args:
        low, high: (1 + K, h, w), the scores with low alpha (strong background) and high alpha (weak background).

    Returns:
        (h, w) int64: position 1..K where the object wins with low alpha; 0 where the background wins with high alpha; 255
        where neither is so, and where all scores vanish (outside the image).

    Source: AffinityNet, section 3.3, in the order of its program.
    Explained in notebook 75, section "Two strengths of the background".
    """
    label = low.argmax(0)
    label = label.masked_fill(label == 0, IGNORE)
    label = label.masked_fill(high.argmax(0) == 0, 0)
    return label.masked_fill(torch.maximum(low, high).amax(0) < 1e-5, IGNORE)


def write_scores(path: Path, low: np.ndarray, high: np.ndarray) -> None:
    """Write the CRF's scores of one image: two arrays (1 + K, H, W), as float16."""
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, low=low.astype(np.float16), high=high.astype(np.float16))

    write_atomically(path, write)


def read_scores(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Read them: low and high, float32 (1 + K, H, W).

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
        raise DataError(f"{path}: the scores {low.shape} and {high.shape} do not belong to an image of {size[0]}x{size[1]}; "
                        "delete the file and run its stage again")
    return low, high


def make_affinity_scores(data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> int:
    """Write `ID.npz` with the CRF's scores at both strengths for every image; returns how many were made now."""
    work = partial(_make_scores_of_image, data=data, maps_folder=maps_folder, config=config, folder=folder)
    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.npz", work, "CRF", config.num_workers)


def _make_scores_of_image(image_id: str, data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> None:
    image = np.array(data.image(image_id))
    _, scores, size = read_maps(maps_folder / f"{image_id}.npz")
    scores = upsample_scores(scores, size)
    write_scores(folder / f"{image_id}.npz", crf_with_alpha(image, scores, config.affinitynet_alpha_low),
                 crf_with_alpha(image, scores, config.affinitynet_alpha_high))


# ---- training

def crop_sample(image: np.ndarray, low: np.ndarray, high: np.ndarray, box: Sequence[int], side: int, flip: bool, stride: int,
                mean: tuple, std: tuple) -> tuple[Tensor, Tensor]:
    """Crop image and scores together and reduce the scores to a label on the grid.

    The image is normalised after the crop, so that the surroundings of a small image are black. The scores are averaged
    over the cells of the grid before they are compared; that depends on where the crop lies.

    Args:
        image: uint8 (H, W, 3).
        low, high: (1 + K, H, W), as in `confident_labels`.
        box: from `transforms.crop_box`.
        side: of the crop, a multiple of `stride`.
        flip: mirror left and right.
        stride: pixels of a cell.
        mean, std: of the normalisation.

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
    return transforms.to_tensor(array), confident_labels(pooled[:len(low)], pooled[len(low):])


class AffinityScoreSamples(Dataset):
    """AffinityNet's recipe: colour jitter and a random crop without scaling, mirror.

    Yields image float32 (3, crop, crop), normalised, and label int64 (crop/stride, crop/stride): positions among the classes
    of the image, 0 background, 255 unknown.
    """

    def __init__(self, data: SegmentationDataset, score_folder: Path, config: Config):
        self.data, self.score_folder, self.config = data, Path(score_folder), config

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        rng = sample_rng(self.config.seed, epoch, index)
        image_id = self.data.ids[index]
        image = self.data.image(image_id)
        low, high = read_scores(self.score_folder / f"{image_id}.npz", image.size[::-1])
        image = np.array(transforms.color_jitter(image, rng))
        box = transforms.crop_box(image.shape[:2], self.config.affinitynet_crop, rng)
        return crop_sample(image, low, high, box, self.config.affinitynet_crop, rng.random() < 0.5,
                           self.config.affinitynet_stride, *normalization_of(self.config.backbone))


def build_affinitynet(config: Config, classifier_weights: Path | str, weights: Path | str = "") -> AffinityNet:
    """Build AffinityNet on the ImageNet backbone (published) or on the classifier's, or from its own weights."""
    from_classifier = config.affinitynet_init == "classifier" and not weights
    backbone = build_backbone(config.backbone, config.output_stride,
                              "none" if weights or from_classifier else config.backbone_weights)
    for module in backbone.shallow_modules(config.frozen_stages):
        module.requires_grad_(False)
    if from_classifier:
        state = read_tensors(project_path(classifier_weights))
        load_weights(backbone, {key.removeprefix("backbone."): value for key, value in state.items()
                                if key.startswith("backbone.")}, str(classifier_weights))
    # Published without group normalisation for ResNet-38, with it for VGG-16; the others' maps differ in scale as VGG's do.
    net = AffinityNet(backbone, config.affinitynet_stride, group_norm=config.backbone != "resnet38")
    if weights:
        load_weights(net, read_tensors(project_path(weights)), str(weights))
    return net


def train_affinitynet(net: AffinityNet, data: SegmentationDataset, score_folder: Path, config: Config, folder: Path) -> int:
    """Train backbone and head on the confident labels; returns the number of images seen."""
    steps = config.affinitynet_epochs * steps_per_epoch(len(data), config.affinitynet_batch_size)

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        affinity = feature_affinity(model(images).float(), config.affinitynet_radius)
        losses = feature_affinity_loss(affinity, affinity_labels(labels, config.affinitynet_radius, IGNORE))
        return {"loss": losses.total, **losses._asdict()}

    momentum = training.momentum_of(config.momentum, config.affinitynet_weight_decay, config.momentum_slip)
    groups = net.parameter_groups(config.affinitynet_learning_rate, config.affinitynet_weight_decay)
    training.train(net, loss_of, AffinityScoreSamples(data, score_folder, config), groups, momentum, steps,
                   config.affinitynet_batch_size, config, folder, name="AffinityNet")
    return steps * config.affinitynet_batch_size


# ---- the walk

@torch.inference_mode()
def grid_features(net: AffinityNet, image: Image.Image, config: Config) -> Tensor:
    """Return f of a photograph, filled at the right and bottom to whole cells: (D, ceil(H/stride), ceil(W/stride))."""
    tensor = transforms.to_tensor(transforms.normalize(image, *normalization_of(config.backbone)))
    right, bottom = (-side % net.stride for side in image.size)
    return net(F.pad(tensor, (0, right, 0, bottom))[None].to(net.head.f9.weight.device))[0].float()


def feature_graph(features: Tensor, radius: int, beta: float) -> Graph:
    """Connect the cells of a map by the affinity of their features, V = W^beta; the diagonal is 1.

    As published, only cells whose whole neighbourhood lies inside the map begin a pair. Cells near the left, right and lower
    border therefore have fewer neighbours, ten cells of every map (for radius 5) none at all: they keep their scores.

    Args:
        features: f, (D, h, w).
        radius: r >= 2, in cells.
        beta: exponent of every affinity.

    Source: AffinityNet, equation 8. Explained in notebook 75, section "The random walk".
    """
    height, width = features.shape[1:]
    if height < radius or width < 2 * radius - 1:  # no cell begins a pair
        pairs = features.new_zeros(len(search_paths(radius)), 0)
    else:
        pairs = feature_affinity(features[None], radius)[0]  # W, (n, S)
    return graph_of_pairs(pairs.double() ** beta, (height, width), radius)


def graph_of_pairs(affinity: Tensor, size: tuple[int, int], radius: int) -> Graph:
    """Return the symmetric graph of affinities (n, S) as `feature_affinity` gives them; see `feature_graph`."""
    on_grid = affinity.new_zeros(len(affinity), *size)
    if affinity.shape[1]:
        rows, columns, left = size[0] - radius + 1, size[1] - 2 * (radius - 1), radius - 1
        on_grid[:, :rows, left:left + columns] = affinity.unflatten(1, (rows, columns))
    return pair_graph(on_grid, radius)


def pooled_scores(scores: Tensor, alpha: float, stride: int) -> Tensor:
    """Put the background before the maps and average everything over the cells of the grid.

    Args:
        scores: M, (K, H, W) in [0, 1].
        alpha: exponent of the background.
        stride: pixels of a cell; what a cell at the border lacks counts as 0 in every channel, background included.

    Returns:
        (1 + K, ceil(H/stride), ceil(W/stride)).

    Source: AffinityNet's program. Explained in notebook 75, section "The random walk".
    """
    height, width = scores.shape[1:]
    maps = torch.from_numpy(scores_with_background(scores.cpu().numpy(), alpha)).to(scores.device)
    return F.avg_pool2d(F.pad(maps, (0, -width % stride, 0, -height % stride)), stride)


def walk_mask(walk: Tensor, classes: Sequence[int], size: tuple[int, int], stride: int) -> Tensor:
    """Give every pixel the strongest of background and classes.

    Args:
        walk: (1 + K, h, w), background first.
        classes: K foreground classes, 0-based.
        size: (H, W) of the image.
        stride: pixels of a cell.

    Returns:
        (H, W) uint8: 0 background, i + 1 for class i.

    Source: AffinityNet's program. Explained in notebook 75, section "The random walk".

    >>> walk_mask(torch.tensor([[[0.4]], [[0.6]]]), [6], (1, 2), stride=8)
    tensor([[7, 7]], dtype=torch.uint8)
    """
    if len(walk) != len(classes) + 1 or any(not 0 <= number < IGNORE - 1 for number in classes):
        raise ValueError(f"{len(walk)} maps need a background and {len(walk) - 1} classes in 0..253, not {list(classes)}")
    full = F.interpolate(walk.float()[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    ids = torch.tensor([0, *(int(number) + 1 for number in classes)], dtype=torch.uint8, device=walk.device)
    return ids[full.argmax(0)[:size[0], :size[1]]]


def refined_mask(net: AffinityNet, image: Image.Image, scores: np.ndarray, classes: Sequence[int],
                 config: Config) -> np.ndarray:
    """Return the pseudo-mask of one photograph.

    Args:
        net: in evaluation mode.
        image: RGB.
        scores: its maps at full resolution, (K, H, W) in [0, 1].
        classes: K foreground classes, 0-based.
        config: alpha, beta and number of steps (`affinity_walk_`), radius.

    Returns:
        uint8 (H, W).

    Source: AffinityNet, section 3.4. Explained in notebook 75, section "The random walk".
    """
    graph = feature_graph(grid_features(net, image, config), config.affinitynet_radius, config.affinity_walk_beta)
    start = pooled_scores(torch.from_numpy(scores), config.affinity_walk_alpha, net.stride).to(graph.values.device)
    walk = random_walk(graph, start, config.affinity_walk_log2_steps)
    return walk_mask(walk, classes, image.size[::-1], net.stride).cpu().numpy()


def make_affinitynet_masks(net: AffinityNet, data: SegmentationDataset, maps_folder: Path, config: Config,
                           folder: Path) -> int:
    """Write `ID.png`, the maps after AffinityNet's walk; returns the number of images made now."""
    net.eval()

    def work(image_id: str) -> None:
        classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
        write_mask(folder / f"{image_id}.png",
                   refined_mask(net, data.image(image_id), upsample_scores(scores, size), classes, config))

    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.png", work, "AffinityNet's walk")
