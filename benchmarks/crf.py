"""The dense CRF: our compiled file beside pydensecrf, present classes instead of all, images shared among processes.

python benchmarks/crf.py [--quick]

The first cases refine label maps and probabilities by pydensecrf and by `wsss_lib/ops/dense_crf.cpp`; one label in 1,000 may
differ. The next refines a probability map in which three of 21 classes occur; the labels may differ at one pixel in 10,000. One
more refines three label maps of a photograph, those of its seed and of IRN's labels, one by one and together. Then come
seed masks and IRN's labels of some images, in this process and in two others, which counts wall-clock seconds, the start of the
processes (five seconds of a core each) with them, and so needs two idle cores. The last leaves the start out: what two
processes gain on this machine at most.
"""

import multiprocessing
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
from measuring import Case, Row, compare, main
from PIL import Image
from scipy.ndimage import gaussian_filter

from wsss_lib.config import Config
from wsss_lib.core.files import write_maps
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.ops import crf
from wsss_lib.ops.crf import crf_from_labels, crf_from_probabilities, crf_segmentation
from wsss_lib.ops.seeds import argmax_with_background
from wsss_lib.refine.seed_masks import make_seeds

CLASSES, PRESENT = 21, (0, 8, 15)
VOC_SIZE = (375, 500)


def scene(size: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy photograph uint8 (H, W, 3) of two discs, and scores (2, H, W) in [0, 1] blurred over their outlines."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    discs = np.stack([(y - cy) ** 2 + (x - cx) ** 2 < 0.03 for cy, cx in rng.uniform(0.2, 0.7, (2, 2))])
    photograph = 90 + 60 * discs[0][..., None] * [1, 0, 1] + 70 * discs[1][..., None] * [0, 1, 1]
    photograph = photograph + rng.normal(0, 12, (*size, 3))
    scores = np.stack([gaussian_filter(disc.astype(np.float32), max(size) / 40) for disc in discs])
    return np.clip(photograph, 0, 255).astype(np.uint8), scores / scores.max((1, 2), keepdims=True)


def photograph_and_probabilities(size: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a photograph and a probability map float32 (21, H, W) in which three classes occur."""
    image, scores = scene(size, seed)
    probabilities = np.zeros((CLASSES, *size), np.float32)
    probabilities[PRESENT[1:], :] = 0.9 * scores / np.maximum(1, scores.sum(0))
    probabilities[0] = 1 - probabilities.sum(0)
    return image, probabilities


def prepare_compiled(job: tuple[int, int, tuple[int, int]]):
    maps, labels, size = job
    photograph = Image.fromarray(skimage.data.coffee()).resize(size[::-1], Image.Resampling.BICUBIC)
    image = np.array(photograph)
    near, like = ((3, 3), (50, 5, 10)) if maps > 1 else ((1, 3), (67, 3, 4))  # IRN's, DeepLab's
    coarse = np.random.default_rng(0).random((maps, labels, *(side // 25 + 1 for side in size)))
    winner = coarse.repeat(25, 2).repeat(25, 3)[..., : size[0], : size[1]].argmax(1)[:, None]
    unaries = np.where(np.arange(labels)[:, None, None] == winner, -np.log(0.7), -np.log(0.3 / (labels - 1))).astype(np.float32)
    return (
        lambda: crf._pydensecrf(image, unaries, 10, near, like).argmax(1),
        lambda: crf._mean_field(image, unaries, 10, near, like).argmax(1),
    )


def prepare_classes(size: tuple[int, int]):
    image, probabilities = photograph_and_probabilities(size)
    return lambda: crf_from_probabilities(image, probabilities).argmax(0), lambda: crf_segmentation(image, probabilities)


def prepare_label_maps(size: tuple[int, int]):
    image, scores = scene(size)
    stack = np.stack([argmax_with_background(scores, np.arange(len(scores)), threshold) for threshold in (0.15, 0.3, 0.05)])
    return (
        lambda: np.stack([crf_from_labels(image, labels, len(scores) + 1) for labels in stack]),
        lambda: crf_from_labels(image, stack, len(scores) + 1),
    )


def prepare_workers(job: tuple[int, tuple[int, int]]):
    count, size = job
    folder = tempfile.TemporaryDirectory()  # lives as long as the functions that are returned
    root, ids = Path(folder.name), tuple(f"{number:06d}" for number in range(count))
    (root / "JPEGImages").mkdir()
    for number, image_id in enumerate(ids):
        image, scores = scene(size, number)
        Image.fromarray(image).save(root / "JPEGImages" / f"{image_id}.jpg")
        write_maps(root / "maps" / f"{image_id}.npz", np.array([3, 7]), scores[:, ::4, ::4], size)
    data = SegmentationDataset(root, "train", ids, tuple("abcdefghij"), np.ones((count, 10), np.uint8))

    def make(workers: int) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory(dir=folder.name) as out:
            make_seeds(data, root / "maps", Config(num_workers=workers, device="cpu"), Path(out))
            return [np.array(Image.open(path)) for path in sorted(Path(out).rglob("*.png"))]

    return partial(make, 0), partial(make, 2)


def refined(seed: int) -> np.ndarray:
    return crf_segmentation(*photograph_and_probabilities(VOC_SIZE, seed))


def prepare_started(count: int):
    pool = multiprocessing.get_context("spawn").Pool(2)
    pool.map(refined, range(2), 1)  # both have imported everything
    return lambda: [refined(seed) for seed in range(count)], lambda: pool.map(refined, range(count), 1)


def share_of_changed(first: np.ndarray, second: np.ndarray) -> float:
    return float((first != second).mean())


CASES = (
    *(
        Case(
            name,
            tuple((maps, labels, size) for size in ((94, 125), (188, 250), VOC_SIZE)),
            prepare_compiled,
            tolerance=1e-3,
            goal=goal,
            differ=share_of_changed,
            show=lambda job: f"{job[2][0]}x{job[2][1]}",
        )
        for name, maps, labels, goal in (
            ("CRF, compiled: seed and IRN's two label maps", 3, 3, 3),
            ("CRF, compiled: IRN's two label maps", 2, 3, 3),
            ("CRF, compiled: DeepLab, 7 of 21 classes kept", 1, 7, 1.5),
            ("CRF, compiled: DeepLab, 21 classes", 1, 21, 1.3),
        )
    ),
    Case(
        "CRF, 3 of 21 classes",
        ((94, 125), (188, 250), VOC_SIZE),
        prepare_classes,
        tolerance=1e-4,
        goal=2,
        differ=share_of_changed,
    ),
    Case("CRF, three label maps", ((94, 125), (188, 250), VOC_SIZE), prepare_label_maps, tolerance=0),
    Case(
        "CRF, two processes",
        ((4, (47, 63)), (40, VOC_SIZE), (300, VOC_SIZE)),
        prepare_workers,
        tolerance=0,
        goal=1.8,
        pairs=1,
        clock=time.perf_counter,
        memory=False,
        warm=False,
        show=lambda job: f"{job[0]} of {job[1][0]}x{job[1][1]}",
    ),
    Case(
        "CRF, two processes that wait",
        (4, 20, 40),
        prepare_started,
        tolerance=0,
        pairs=3,
        clock=time.perf_counter,
        memory=False,
        warm=False,
        show=lambda count: f"{count} of {VOC_SIZE[0]}x{VOC_SIZE[1]}",
    ),
)


def measure(quick: bool = False) -> list[Row]:
    return [row for case in CASES for row in compare(case, quick)]


if __name__ == "__main__":
    main(measure, __doc__)
