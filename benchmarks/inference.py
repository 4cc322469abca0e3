"""Maps of several scales and mirrors, with ResNet-50 on a set of images of mixed sizes: CAM and AMN.

python benchmarks/inference.py [--quick]

Plain: one image, one scale, one view at a time, tensors in the usual layout, without gradients. Ours, as the stages do it:
batches of images of like size with both views, channels-last layout, inference mode. Weights are random. The sizes are those
of the images relative to VOC's. (On one thread torch takes its slow way through 1x1 convolutions for less than 16 views, unless
they are dilated: `wsss_lib.nets.folding`.)

Last, one photograph at full size as this project ran it before and as it does now. Before: batch normalizations folded, both
heads of IRN, and torch's own way through 1x1 convolutions.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from measuring import Case, Row, compare, main
from PIL import Image

from wsss_lib.core.parallel import batches_of_like_size
from wsss_lib.data import transforms
from wsss_lib.methods import amn, cam
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.nets.folding import folded
from wsss_lib.ops import merging
from wsss_lib.refine.irn import IRN

CLASSES, BATCH, SCALES = 20, 16, (1.0, 0.5, 1.5, 2.0)
VOC_SIZES = 8 * ((375, 500), (500, 375), (333, 500))  # (H, W), VOC's three most frequent ones
NORMALIZATION = normalization_of("resnet50")


def image_set(share: float) -> tuple[list[Image.Image], np.ndarray]:
    """Return 24 images whose sides are a share of VOC's, and their labels (24, C) of one or two classes."""
    rng = np.random.default_rng(0)
    sizes = [tuple(round(side * share) for side in size) for size in VOC_SIZES]
    labels = np.zeros((len(sizes), CLASSES), np.uint8)
    labels[np.arange(len(sizes)), rng.integers(0, CLASSES, len(sizes))] = labels[::2, 7] = 1
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes], labels


def view(image: Image.Image, scale: float) -> torch.Tensor:
    return transforms.to_tensor(transforms.normalize(transforms.resize_image(image, scale), *NORMALIZATION))[None]


def in_batches(localize: Callable, images: list[Image.Image], labels: np.ndarray) -> list[np.ndarray]:
    """Return the maps of `localize(numbers, images, labels)` on batches of like size, in the order of the images."""
    maps = {}
    names = [f"{number:03d}" for number in range(len(images))]
    for group in batches_of_like_size(names, lambda name: images[int(name)].size, BATCH):
        numbers = [int(name) for name in group]
        for number, (_, scores) in zip(
            numbers, localize(numbers, [images[number] for number in numbers], labels[numbers]), strict=True
        ):
            maps[number] = scores
    return [maps[number] for number in range(len(images))]


def twins(kind: type[torch.nn.Module]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return a network with random weights twice; the second has its channels last in memory."""
    torch.manual_seed(0)
    plain_net = kind(build_backbone("resnet50"), CLASSES).eval()
    return plain_net, folded(plain_net)


def prepare_cam(share: float):
    plain_net, net = twins(cam.ClassActivationNet)
    images, labels = image_set(share)

    @torch.no_grad()
    def plain() -> list[np.ndarray]:
        results = []
        for image, label in zip(images, labels, strict=True):
            maps = []
            for scale in SCALES:
                tensor = view(image, scale)
                maps.append(torch.cat([plain_net.activation_maps(one) for one in (tensor, tensor.flip(-1))]))
            classes = torch.from_numpy(np.flatnonzero(label))
            results.append(
                merging.merge_views(merging.join_flips(maps, classes), merging.stride4_size(image.size[::-1])).numpy()
            )
        return results

    return plain, lambda: in_batches(
        lambda _, batch, some: cam.localization_maps(net, batch, some, SCALES, *NORMALIZATION), images, labels
    )


def prepare_amn(share: float):
    plain_net, net = twins(amn.ActivationManipulationNet)
    images, labels = image_set(share)
    rng = np.random.default_rng(1)
    seeds = [rng.integers(0, 2, image.size[::-1], np.uint8) for image in images]

    @torch.no_grad()
    def plain() -> list[np.ndarray]:
        results = []
        for image, label, seed in zip(images, labels, seeds, strict=True):
            y, logits = torch.from_numpy(label.astype(np.float32))[None], []
            for scale in SCALES:
                tensor = view(image, scale)
                logits.append(amn.merge_flipped(torch.cat([plain_net(one, y) for one in (tensor, tensor.flip(-1))])))
            size = merging.stride4_size(image.size[::-1])
            grid = torch.from_numpy(amn.seed_on_grid(seed, size).copy())
            results.append(amn.manipulated_maps(logits, size, torch.from_numpy(np.flatnonzero(label)), grid)[1:].numpy())
        return results

    def localize(numbers: list[int], batch: list[Image.Image], some: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return amn.localization_maps(net, batch, some, [seeds[number] for number in numbers], SCALES, *NORMALIZATION)

    return plain, lambda: in_batches(localize, images, labels)


def without_fast_1x1(net: torch.nn.Module) -> torch.nn.Module:
    """Return a copy whose 1x1 convolutions take torch's own way."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1):
            module.dilation = (1, 1)
    return net


def prepare_boundaries(side: int):
    torch.manual_seed(0)
    net = folded(IRN(build_backbone("resnet50")).eval())
    before, image = without_fast_1x1(net), torch.randn(3, side * 3 // 4, side)
    return torch.inference_mode()(lambda: before.predict(image, side)[0]), lambda: net.predict_boundaries(image, side)


SIZES = (0.0625, 0.125, 0.25)
CASES = (
    Case(
        "multi-scale CAM, ResNet-50",
        SIZES,
        prepare_cam,
        tolerance=1e-3,
        goal=1.3,
        goal_size=0.25,
        pairs=3,
        show=lambda share: f"24 of {share:g} VOC",
    ),
    Case(
        "AMN's maps, ResNet-50",
        SIZES,
        prepare_amn,
        tolerance=1e-3,
        goal_size=0.25,
        pairs=3,
        show=lambda share: f"24 of {share:g} VOC",
    ),
    Case("IRN's boundaries, before and now", (128, 512), prepare_boundaries, tolerance=1e-4, pairs=3),
)


def measure(quick: bool = False) -> list[Row]:
    return [row for case in CASES for row in compare(case, quick)]


if __name__ == "__main__":
    main(measure, __doc__)
