"""What AffinityNet's stages do to a data set: CRF scores, training, pseudo-masks. Notebook 75 calls these functions."""

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
from wsss_lib.config import Config
from wsss_lib.data import transforms
from wsss_lib.data.dataset import IGNORE, DataError, SegmentationDataset
from wsss_lib.data.samples import sample_rng, steps_per_epoch
from wsss_lib.formats import read_maps, write_atomically, write_mask
from wsss_lib.inference import for_each_image
from wsss_lib.launch import in_processes
from wsss_lib.nets.affinitynet import AffinityNet
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.nets.weights import load_whole, start_backbone
from wsss_lib.refine.affinity import affinity_labels, feature_affinity, feature_affinity_loss
from wsss_lib.refine.affinitynet import crf_with_alpha, crop_sample, feature_graph, pooled_scores, walk_mask
from wsss_lib.refine.random_walk import random_walk
from wsss_lib.refine.seeds import upsample_scores


def write_scores(path: Path, low: np.ndarray, high: np.ndarray) -> None:
    """Write the CRF's scores of one image as float16.

    Args:
        path: `ID.npz`.
        low, high: (1 + K, H, W), with low and with high alpha.
    """
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, low=low.astype(np.float16), high=high.astype(np.float16))

    write_atomically(path, write)


def read_scores(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Read what `write_scores` wrote.

    Args:
        path: `ID.npz`.
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
        raise DataError(f"{path}: the scores {low.shape} and {high.shape} do not belong to an image of {size[0]}x{size[1]}; "
                        "delete the file and run its stage again")
    return low, high


def make_affinity_scores(data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> int:
    """Write `ID.npz` with the CRF's scores at both strengths of the background for every image that has none yet.

    Args:
        data: the images.
        maps_folder: of their localization maps.
        config: the two exponents (`affinitynet_alpha_`) and the number of processes.
        folder: of the stage.

    Returns:
        the number of images made now.

    Explained in notebook 75, section "Two strengths of the background".
    """
    work = partial(_make_scores_of_image, data=data, maps_folder=maps_folder, config=config, folder=folder)
    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.npz", work, "CRF", config, config.num_workers)


def _make_scores_of_image(image_id: str, data: SegmentationDataset, maps_folder: Path, config: Config, folder: Path) -> None:
    image = np.array(data.image(image_id))
    _, scores, size = read_maps(maps_folder / f"{image_id}.npz")
    scores = upsample_scores(scores, size)
    write_scores(folder / f"{image_id}.npz", crf_with_alpha(image, scores, config.affinitynet_alpha_low),
                 crf_with_alpha(image, scores, config.affinitynet_alpha_high))


class AffinityScoreSamples(Dataset):
    """AffinityNet's recipe: colour jitter and a random crop without scaling, mirror.

    Yields image float32 (3, crop, crop), normalised, and label int64 (crop/stride, crop/stride): positions among the classes
    of the image, 0 background, 255 unknown.

    Args:
        data: the split.
        score_folder: of the CRF's scores.
        config: seed, crop, stride and backbone.

    Source: AffinityNet's program. Explained in notebook 75, section "Training".
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
    """Build AffinityNet on the ImageNet backbone (published) or on the classifier's, or from its own weights.

    Args:
        config: backbone, `affinitynet_init` and stride.
        classifier_weights: safetensors file of notebook 10's classifier, read where `affinitynet_init` is "classifier".
        weights: safetensors file of a trained AffinityNet; empty: none.

    Returns:
        the network, on the CPU.

    Raises:
        ValueError: weights of another network.
        FileNotFoundError: there is no such file.
    """
    start = config.backbone_weights if config.affinitynet_init == "backbone" else "classifier"
    build = partial(build_backbone, config.backbone, config.output_stride)
    backbone = start_backbone(build, start, classifier_weights, weights)
    for module in backbone.shallow_modules(config.frozen_stages):
        module.requires_grad_(False)
    # Published without group normalisation for ResNet-38, with it for VGG-16; the others' maps differ in scale as VGG's do.
    net = AffinityNet(backbone, config.affinitynet_stride, group_norm=config.backbone != "resnet38")
    return load_whole(net, weights)


@in_processes
def train_affinitynet(net: AffinityNet, data: SegmentationDataset, score_folder: Path, config: Config, folder: Path) -> int:
    """Train backbone and head on the confident labels.

    Args:
        net: in place.
        data: the training images.
        score_folder: of the CRF's scores.
        config: `affinitynet_*`.
        folder: of the stage, for log and training state.

    Returns:
        the number of images seen.

    Source: AffinityNet, section 3.3. Explained in notebook 75, section "Training".
    """
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


@torch.inference_mode()
def grid_features(net: AffinityNet, image: Image.Image, config: Config) -> Tensor:
    """Return f of a photograph, filled at the right and bottom to whole cells.

    Args:
        net: in evaluation mode.
        image: RGB.
        config: names the backbone, for the normalisation.

    Returns:
        float32 (D, ceil(H/stride), ceil(W/stride)), on the device of the network.
    """
    tensor = transforms.to_tensor(transforms.normalize(image, *normalization_of(config.backbone)))
    right, bottom = (-side % net.stride for side in image.size)
    return net(F.pad(tensor, (0, right, 0, bottom))[None].to(net.head.f9.weight.device))[0].float()


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
    """Write `ID.png`, the maps after AffinityNet's walk, for every image that has none yet.

    Args:
        net: AffinityNet.
        data: the images.
        maps_folder: of their localization maps.
        config: as in `refined_mask`.
        folder: of the stage.

    Returns:
        the number of images made now.
    """
    net.eval()

    def work(image_id: str) -> None:
        classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
        write_mask(folder / f"{image_id}.png",
                   refined_mask(net, data.image(image_id), upsample_scores(scores, size), classes, config))

    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.png", work, "AffinityNet's walk", config)
