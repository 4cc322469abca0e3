"""Training samples as a function of (seed, epoch, index), so that a run resumed at any step sees the same data.

A torch data set gets a pair (epoch, index) and seeds its own `random.Random` from it; nothing depends on which worker
process loads it or on what was loaded before.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from wsss_lib.core.files import IGNORE, read_maps, read_mask
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset


def sample_rng(seed: int, epoch: int, index: int) -> random.Random:
    """Return the random generator of one sample: the same for the same three numbers, on every machine.

    Args:
        epoch: number of the pass over the data, from 0.
        index: number of the image in the split, from 0.

    >>> sample_rng(0, 1, 2).random() == sample_rng(0, 1, 2).random() != sample_rng(0, 2, 1).random()
    True
    """
    return random.Random(f"{seed}/{epoch}/{index}")


class ClassificationSamples(Dataset):
    """Images and image-level labels for the classifier: random long side, horizontal flip, random crop (IRN's recipe).

    Yields image float32 (3, crop, crop), normalized, 0 outside the image; label float32 (C,), 0 or 1.

    Args:
        long_side: the shortest and the longest random long side, both included, in pixels.
        mean, std: (R, G, B) of the normalization, in 0..1.

    Explained in notebook 10, section "Training on image-level labels".
    """

    def __init__(
        self,
        data: SegmentationDataset,
        seed: int,
        long_side: tuple[int, int],
        crop: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ):
        self.data, self.seed, self.long_side, self.crop, self.mean, self.std = data, seed, long_side, crop, mean, std

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image = transforms.random_long_side(self.data.image(self.data.ids[index]), *self.long_side, rng)
        pixels = np.asarray(image)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        box = transforms.crop_box(pixels.shape[:2], self.crop, rng)
        array = transforms.crop_normalized(pixels, box, self.crop, self.mean, self.std)
        return transforms.to_tensor(array), torch.from_numpy(self.data.labels[index].astype(np.float32))


class SquareSamples(Dataset):
    """Images and image-level labels for DRS's classifier: resized to a square, horizontal flip, color jitter, random crop.

    Yields image float32 (3, crop, crop), normalized, and label float32 (C,).

    Args:
        resize: side in pixels that images are resized to.
        crop: side of the crop in pixels, at most `resize`.
        mean, std: (R, G, B) of the normalization, in 0..1.

    Source: DRS, official loader. Explained in notebook 30, section "Training".
    """

    def __init__(
        self,
        data: SegmentationDataset,
        seed: int,
        resize: int,
        crop: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ):
        self.data, self.seed, self.resize, self.crop, self.mean, self.std = data, seed, resize, crop, mean, std

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image = transforms.resize_square(self.data.image(self.data.ids[index]), self.resize)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = transforms.color_jitter(image, rng)
        left, top = (rng.randrange(self.resize - self.crop + 1) for _ in range(2))
        array = transforms.normalize(image.crop((left, top, left + self.crop, top + self.crop)), self.mean, self.std)
        return transforms.to_tensor(array), torch.from_numpy(self.data.labels[index].astype(np.float32))


class MapSamples(Dataset):
    """Images and localization maps for DRS's refinement: both resized to a square, color jitter, joint horizontal flip.

    Yields image float32 (3, side, side), normalized, and maps float32 (C, side, side), 0 for absent classes.

    Args:
        mean, std: (R, G, B) of the normalization, in 0..1.

    Source: DRS, official loader. Explained in notebook 30, section "Refinement learning".
    """

    def __init__(
        self,
        data: SegmentationDataset,
        maps_folder: Path,
        seed: int,
        side: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ):
        self.data, self.maps_folder, self.seed = data, Path(maps_folder), seed
        self.side, self.mean, self.std = side, mean, std

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image_id = self.data.ids[index]
        image = transforms.resize_square(self.data.image(image_id), self.side)
        array = transforms.normalize(transforms.color_jitter(image, rng), self.mean, self.std)
        classes, scores, _ = read_maps(self.maps_folder / f"{image_id}.npz")
        maps = torch.zeros(self.data.num_classes, self.side, self.side)
        if len(classes):
            maps[classes] = F.interpolate(
                torch.from_numpy(scores)[None], size=(self.side, self.side), mode="bilinear", align_corners=False
            )[0]
        tensor = transforms.to_tensor(array)
        return (tensor.flip(-1), maps.flip(-1)) if rng.random() < 0.5 else (tensor, maps)


class AffinitySamples(Dataset):
    """Images and reduced label maps for IRN: joint random scale, horizontal flip and crop.

    Yields image float32 (3, crop, crop) and label int64 (crop/4, crop/4) with 255 outside the image.

    Args:
        label_folder: holds the confident labels `ID.png` at the images' sizes.
        scale: the smallest and the largest random factor on the image's size.
        crop: side of the crop in pixels, a multiple of 4.
        mean, std: (R, G, B) of the normalization, in 0..1.

    Source: IRN (Ahn, Cho, Kwak, CVPR 2019), training recipe of its program.
    """

    def __init__(
        self,
        data: SegmentationDataset,
        label_folder: Path,
        seed: int,
        scale: tuple[float, float],
        crop: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ):
        self.data, self.label_folder, self.seed = data, Path(label_folder), seed
        self.scale, self.crop, self.mean, self.std = scale, crop, mean, std

    def __len__(self) -> int:
        return len(self.data)

    def augmented(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return image float32 (crop, crop, 3), normalized, and label uint8 (crop, crop) of one sample."""
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image_id = self.data.ids[index]
        scale = rng.uniform(*self.scale)
        image = self.data.image(image_id)
        label = read_mask(self.label_folder / f"{image_id}.png", self.data.num_classes, image.size)
        image, label = transforms.resize_image(image, scale), transforms.resize_label(label, scale)
        pixels = np.asarray(image)
        if rng.random() < 0.5:
            pixels, label = pixels[:, ::-1], label[:, ::-1]
        box = transforms.crop_box(label.shape, self.crop, rng)
        array = transforms.crop_normalized(pixels, box, self.crop, self.mean, self.std)
        return array, transforms.crop(label, box, self.crop, IGNORE)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        array, label = self.augmented(key)
        return transforms.to_tensor(array), transforms.to_tensor(transforms.quarter_label(label))


class SegmentationSamples(Dataset):
    """Images and (pseudo-)masks for DeepLab-v2: one of the scales, padding with the mean color and 255, crop, horizontal flip.

    Yields image float32 (3, crop, crop) and label int64 (crop, crop), 0..C and 255; with `image_labels` also the
    image-level label with background in front, float32 (1 + C,).

    Args:
        mask_folder: holds the masks `ID.png` at the images' sizes.
        scales: factors on the image's size, one of which is drawn.
        mean, std: (R, G, B) of the normalization, in 0..1.
        image_labels: whether the image-level label is yielded, too.

    Source: DeepLab-v2's augmentation, see `transforms.scale_crop_flip`.
    """

    def __init__(
        self,
        data: SegmentationDataset,
        mask_folder: Path,
        seed: int,
        scales: tuple[float, ...],
        crop: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        image_labels: bool = False,
    ):
        self.data, self.mask_folder, self.seed = data, Path(mask_folder), seed
        self.scales, self.crop, self.mean, self.std, self.image_labels = scales, crop, mean, std, image_labels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image_id = self.data.ids[index]
        image = self.data.image(image_id)
        label = read_mask(self.mask_folder / f"{image_id}.png", self.data.num_classes, image.size)
        array, label = self.augment(image, label, rng)
        sample = transforms.to_tensor(transforms.normalize(array, self.mean, self.std)), transforms.to_tensor(label)
        present = torch.from_numpy(np.concatenate([[1], self.data.labels[index]]).astype(np.float32))
        return (*sample, present) if self.image_labels else sample

    def augment(self, image: Image.Image, label: np.ndarray, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Return a randomly augmented image and its label.

        Args:
            label: uint8 (H, W), 0..C or 255.

        Returns:
            image (crop, crop, 3) in 0..255; label (crop, crop).
        """
        draws = transforms.draw_scale_crop_flip(label.shape, self.scales, self.crop, rng)
        red, green, blue = (255 * value for value in self.mean)
        return transforms.scale_crop_flip(np.asarray(image), label, *draws, self.crop, (red, green, blue))


class V3PlusSamples(SegmentationSamples):
    """The same for DeepLab-v3+: a scale from the whole range, black around small images, crop, horizontal flip.

    Args:
        label_fill: label of what lies outside the image: 255, or 0, background, as in the published program.

    Source: see `transforms.pad_all_sides`. Explained in notebook 90, section "Version 2 and version 3+ side by side".
    """

    def __init__(self, *others, label_fill: int = IGNORE):
        super().__init__(*others)
        self.label_fill = label_fill

    def augment(self, image: Image.Image, label: np.ndarray, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Return a randomly augmented image and its label.

        Args:
            label: uint8 (H, W), 0..C or 255.

        Returns:
            image (crop, crop, 3) in 0..255; label (crop, crop).
        """
        scale = rng.uniform(min(self.scales), max(self.scales))
        width, height = (max(1, int(side * scale)) for side in image.size)
        array = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        label = np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
        array, label = transforms.pad_all_sides(array, label, self.crop, self.label_fill)
        top, left = (rng.randrange(length - self.crop + 1) for length in label.shape)
        array, label = (part[top : top + self.crop, left : left + self.crop] for part in (array, label))
        return (array[:, ::-1], label[:, ::-1]) if rng.random() < 0.5 else (array, label)


def disjoint_pool(labels: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the indices of the images that share no class with an image.

    Args:
        labels: (N, C), 0 or 1; an image without a class is disjoint from all.
        label: (C,).

    Returns:
        int64, increasing.

    Source: RIB, official code, voc12/dataloader.py. Explained in notebook 20, section "Companions".

    >>> disjoint_pool(np.array([[1, 0], [0, 1], [0, 0]]), np.array([1, 0])).tolist()
    [1, 2]
    """
    return np.flatnonzero(labels.astype(np.int64) @ label.astype(np.int64) == 0)


def batches_of_pool(pool: Sequence[int], size: int, first_rng: random.Random, rng: random.Random) -> Iterator[list[int]]:
    """Yield endless batches of a pool, in which every index is used before one repeats.

    Args:
        pool: at least one index.
        size: of a batch; a smaller pool is repeated in it.
        first_rng: draws the first batch.

    Returns:
        an endless iterator; each batch is a list of `size` indices.

    >>> batches = batches_of_pool(range(4), 2, random.Random(0), random.Random(1))
    >>> sorted(next(batches) + next(batches))
    [0, 1, 2, 3]
    """
    order = first_rng.sample(list(pool), min(size, len(pool)))
    rest = sorted(set(pool) - set(order))
    order += rng.sample(rest, len(rest))
    while True:
        while len(order) < size:
            order += rng.sample(list(pool), len(pool))
        yield order[:size]
        del order[:size]


class StepSampler(Sampler):
    """Batches of (epoch, index) pairs for the steps [first_step, last_step), each in equal parts.

    Every epoch is a new permutation; its last short batch is dropped, or kept. A data set smaller than a batch is repeated
    in it.

    Args:
        parts: a step's batch is yielded in this many equal parts (gradient accumulation); changes no sample's position.
        ranks: rank and world size; each rank has an equal, contiguous part of every batch, which is divided
            into `parts`.
        first_step, last_step: half-open range.
        keep_last: the short batch at an epoch's end is a step too, with as few repeated images as equal parts need.

    >>> steps = list(StepSampler(5, 2, 1, 0, 4, seed=0))
    >>> steps[2:] == list(StepSampler(5, 2, 1, 2, 4, seed=0))
    True
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        parts: int,
        first_step: int,
        last_step: int,
        seed: int,
        ranks: tuple[int, int] = (0, 1),
        keep_last: bool = False,
    ):
        self.num_samples, self.batch_size, self.parts, self.keep_last = num_samples, batch_size, parts, keep_last
        self.first_step, self.last_step, self.seed, self.ranks = first_step, last_step, seed, ranks

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch_now, order = -1, []
        rank, world_size = self.ranks
        pieces = world_size * self.parts
        for step in range(self.first_step, self.last_step):
            epoch, position = divmod(step, steps_per_epoch(self.num_samples, self.batch_size, self.keep_last))
            if epoch != epoch_now:
                order = random.Random(f"{self.seed}/order/{epoch}").sample(range(self.num_samples), self.num_samples)
                epoch_now = epoch
            start = position * self.batch_size
            left = self.num_samples - start if self.keep_last else self.batch_size
            part_size = -(-min(left, self.batch_size) // pieces)
            batch = [(epoch, order[(start + offset) % self.num_samples]) for offset in range(part_size * pieces)]
            for part in range(rank * self.parts, (rank + 1) * self.parts):
                yield batch[part * part_size : (part + 1) * part_size]


def steps_per_epoch(num_samples: int, batch_size: int, keep_last: bool = False) -> int:
    """Return the number of batches in an epoch, at least 1.

    Args:
        keep_last: count the short batch at the end, too.

    >>> steps_per_epoch(10582, 10), steps_per_epoch(10582, 10, keep_last=True)
    (1058, 1059)
    """
    return max(1, -(-num_samples // batch_size) if keep_last else num_samples // batch_size)


def batches(
    samples: Dataset,
    batch_size: int,
    parts: int,
    first_step: int,
    last_step: int,
    seed: int,
    num_workers: int,
    ranks: tuple[int, int] = (0, 1),
    keep_last: bool = False,
) -> DataLoader:
    """Return a loader over the steps [first_step, last_step) of a training run.

    Args:
        parts: a step's batch comes in this many equal parts (gradient accumulation).
        first_step, last_step: half-open range.
        num_workers: loader processes; 0 loads in this one. It changes no sample.

    Returns:
        a loader of (last_step - first_step) * parts batches of batch_size / parts samples, divided by the world size.
    """
    count = len(samples)  # type: ignore[arg-type]  # torch's Dataset does not say that it has a length
    sampler = StepSampler(count, batch_size, parts, first_step, last_step, seed, ranks, keep_last)
    # A generator of its own: the loader draws a number when it starts, which would shift torch's after a resume.
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=num_workers,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
