"""Crops and scalings: image and label stay together, what lies outside is marked, samples depend on their number only."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_lib.core.files import IGNORE
from wsss_lib.data import transforms
from wsss_lib.data.dataset import load_dataset
from wsss_lib.data.samples import (
    AffinitySamples,
    ClassificationSamples,
    SegmentationSamples,
    StepSampler,
    batches,
    sample_rng,
    steps_per_epoch,
)

SIDE = st.integers(1, 60)
SEED = st.integers(0, 1000)


def numbered(height: int, width: int) -> np.ndarray:
    """A label map in which every pixel has a value of its own (up to 0..250), so that it can be found again."""
    return (np.arange(height * width) % 251).astype(np.uint8).reshape(height, width)


# ---- crops


@given(height=SIDE, width=SIDE, side=SIDE, seed=SEED)
def test_a_crop_holds_a_part_of_the_image_and_marks_the_rest(height, width, side, seed):
    box = transforms.crop_box((height, width), side, random.Random(seed))
    top, bottom, left, right, image_top, image_bottom, image_left, image_right = box
    assert bottom - top == image_bottom - image_top == min(height, side) and right - left == min(width, side)
    assert 0 <= top < bottom <= side and 0 <= image_top < image_bottom <= height and 0 <= image_left < image_right <= width
    label = numbered(height, width)
    image = np.stack([label, label + 1.0, label * 2.0], 2).astype(np.float32)
    label_crop, image_crop = transforms.crop(label, box, side, IGNORE), transforms.crop(image, box, side, 0)
    assert label_crop.shape == (side, side) and image_crop.shape == (side, side, 3)
    assert label_crop.dtype == np.uint8 and image_crop.dtype == np.float32
    inside = label_crop != IGNORE
    assert inside.sum() == min(height, side) * min(width, side)
    assert (image_crop[inside] == np.stack([label_crop, label_crop + 1.0, label_crop * 2.0], 2)[inside]).all()
    assert not image_crop[~inside].any()
    assert (label_crop[top:bottom, left:right] == label[image_top:image_bottom, image_left:image_right]).all()


@given(height=SIDE, width=SIDE, side=SIDE, seed=SEED)
def test_a_normalized_crop_is_the_crop_of_the_normalized_image_to_the_last_bit(height, width, side, seed):
    pixels, box = (
        np.stack([numbered(height, width)] * 3, -1)[:, ::-1],
        transforms.crop_box((height, width), side, random.Random(seed)),
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    whole = transforms.crop(transforms.normalize(pixels, mean, std), box, side, fill=0)
    found = transforms.crop_normalized(pixels, box, side, mean, std)
    assert found.dtype == np.float32 and np.array_equal(found, whole)


def test_every_place_of_a_crop_is_drawn():
    larger = {transforms.crop_box((5, 4), 3, random.Random(seed))[4::2] for seed in range(200)}
    assert larger == {(top, left) for top in range(3) for left in range(2)}
    smaller = {transforms.crop_box((2, 1), 3, random.Random(seed))[:4:2] for seed in range(200)}
    assert smaller == {(top, left) for top in range(2) for left in range(3)}


def test_columns_are_drawn_before_rows():
    rng = random.Random(5)
    left, top = rng.randrange(100 - 10 + 1), rng.randrange(50 - 10 + 1)
    assert transforms.crop_box((50, 100), 10, random.Random(5))[4::2] == (top, left)


@given(height=SIDE, width=SIDE, side=SIDE)
def test_top_left_crop(height, width, side):
    label = numbered(height, width)
    result = transforms.top_left_crop(label, side, IGNORE)
    rows, columns = min(height, side), min(width, side)
    assert (result[:rows, :columns] == label[:rows, :columns]).all()
    assert (result[rows:] == IGNORE).all() and (result[:, columns:] == IGNORE).all()


@given(height=st.integers(1, 40).map(lambda n: 4 * n), width=st.integers(1, 40).map(lambda n: 4 * n))
def test_quarter_label_is_pillows_nearest_neighbor(height, width):
    label = numbered(height, width)
    expected = Image.fromarray(label).resize((width // 4, height // 4), Image.Resampling.NEAREST)
    assert (transforms.quarter_label(label) == np.asarray(expected)).all()


# ---- scalings


@given(height=SIDE, width=SIDE, scale=st.floats(0.01, 3))
def test_image_and_label_get_the_same_size_and_no_new_values(height, width, scale):
    label = numbered(height, width)
    image = transforms.resize_image(Image.fromarray(np.stack([label] * 3, 2)), scale)
    resized = transforms.resize_label(label, scale)
    assert image.size == resized.shape[::-1] == (max(1, round(width * scale)), max(1, round(height * scale)))  # half to even
    assert set(np.unique(resized)) <= set(np.unique(label))


@given(height=SIDE, width=SIDE, seed=SEED)
def test_random_long_side(height, width, seed):
    image = transforms.random_long_side(Image.new("RGB", (width, height)), 20, 30, random.Random(seed))
    long, short = max(image.size), min(image.size)
    assert 20 <= long <= 30 and abs(short - max(1, long * min(height, width) / max(height, width))) <= 1


def test_normalize_by_hand():
    image = Image.fromarray(np.uint8([[[0, 51, 255]]]))
    result = transforms.normalize(image, (0.0, 0.1, 0.5), (1.0, 0.5, 0.25))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[[0, 0.2, 2.0]]], atol=1e-6)


# ---- DeepLab's augmentation

DRAWS = st.tuples(SIDE, SIDE, SIDE, st.sampled_from([0.5, 0.75, 1.0, 1.25, 1.5]), SEED)


@given(DRAWS)
def test_scale_crop_flip_keeps_image_and_label_together(draws):
    height, width, side, scale, seed = draws
    label = np.zeros((height, width), np.uint8)
    label[:, width // 2 :] = 9  # left half 0, right half 9; the image shows the same
    image = np.repeat(label[..., None], 3, 2).astype(np.float32) * 10
    scale, top, left, flip = transforms.draw_scale_crop_flip((height, width), (scale,), side, random.Random(seed))
    crop, crop_label = transforms.scale_crop_flip(image, label, scale, top, left, flip, side, (7.0, 8.0, 9.0))
    assert crop.shape == (side, side, 3) and crop_label.shape == (side, side)
    outside = crop_label == IGNORE
    assert (crop[outside] == [7.0, 8.0, 9.0]).all()
    assert (np.abs(crop[~outside] - 10.0 * crop_label[~outside][:, None]) <= 90).all()
    far = ~outside & ((crop == 0).all(2) | (crop == 90).all(2))  # away from the blurred boundary
    if scale == 1.0:
        assert far.sum() == (~outside).sum()  # nothing is blurred
        assert (crop[far][:, 0] == 10.0 * crop_label[far]).all()


@given(DRAWS)
def test_a_crop_of_the_resized_image_is_all_that_is_computed(draws):
    """The same as resizing, filling and cropping the whole image: every label, and the image but for float32's rounding."""
    height, width, side, scale, seed = draws
    image, label = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8), numbered(height, width)
    scale, top, left, flip = transforms.draw_scale_crop_flip((height, width), (scale,), side, random.Random(seed))
    size = tuple(max(1, int(length * scale)) for length in (height, width))
    whole = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    whole = F.interpolate(whole, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    room = [(0, max(0, side - length)) for length in size]
    whole = np.pad(whole, [*room, (0, 0)], constant_values=7)
    labels = np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))
    labels = np.pad(labels, room, constant_values=IGNORE)
    expected, expected_label = (part[top : top + side, left : left + side] for part in (whole, labels))
    crop, crop_label = transforms.scale_crop_flip(image, label, scale, top, left, flip, side, (7.0, 7.0, 7.0))
    if flip:
        crop, crop_label = crop[:, ::-1], crop_label[:, ::-1]
    assert (crop_label == expected_label).all()
    np.testing.assert_allclose(crop, expected, atol=2e-3)  # of 255


@given(DRAWS)
def test_mirrored_last(draws):
    height, width, side, scale, seed = draws
    rng = np.random.default_rng(seed)
    image, label = rng.random((height, width, 3), dtype=np.float32), numbered(height, width)
    scale, top, left, _ = transforms.draw_scale_crop_flip((height, width), (scale,), side, random.Random(seed))
    plain, flipped = (
        transforms.scale_crop_flip(image, label, scale, top, left, flip, side, (0, 0, 0)) for flip in (False, True)
    )
    assert (plain[0][:, ::-1] == flipped[0]).all() and (plain[1][:, ::-1] == flipped[1]).all()


def test_small_images_are_filled_at_the_bottom_right_with_255():
    image, label = np.ones((2, 3, 3), np.float32), np.uint8([[1, 2, 3], [4, 5, 6]])
    crop, crop_label = transforms.scale_crop_flip(image, label, 1.0, 0, 0, False, 4, (0.5, 0.5, 0.5))
    assert crop_label.tolist() == [[1, 2, 3, 255], [4, 5, 6, 255], [255] * 4, [255] * 4]
    assert (crop[:2, :3] == 1).all() and (crop[2:] == 0.5).all() and (crop[:, 3] == 0.5).all()


def test_draws_cover_all_scales_and_both_directions():
    draws = [transforms.draw_scale_crop_flip((50, 60), (0.5, 1.5), 33, random.Random(seed)) for seed in range(200)]
    assert {scale for scale, *_ in draws} == {0.5, 1.5} and 60 < sum(flip for *_, flip in draws) < 140
    for scale, top, left, _ in draws:
        assert 0 <= top <= max(33, int(50 * scale)) - 33 and 0 <= left <= max(33, int(60 * scale)) - 33


def test_tensors_own_their_memory():
    image, label = np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.uint8)
    pair = transforms.to_tensor(image[:, ::-1]), transforms.to_tensor(label[::-1, ::-1])
    assert pair[0].shape == (3, 4, 5) and pair[0].dtype == torch.float32 and pair[1].dtype == torch.int64
    image += 1
    label += 1
    assert not pair[0].any() and not pair[1].any()


# ---- samples


def all_kinds(data, seed=0):
    folder, mean, std = data.root / "SegmentationClass", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    return [
        ClassificationSamples(data, seed, (36, 60), 40, mean, std),
        AffinitySamples(data, folder, seed, (0.5, 1.5), 40, mean, std),
        SegmentationSamples(data, folder, seed, (0.5, 1.0, 1.5), 41, mean, std),
    ]


def equal(first, second) -> bool:
    return all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


def test_shapes_and_types(miniature):
    classification, affinity, segmentation = (kind[3, 2] for kind in all_kinds(load_dataset(miniature, "train")))
    assert classification[0].shape == (3, 40, 40) and classification[1].tolist() == [0, 0, 1]
    assert affinity[0].shape == (3, 40, 40) and affinity[1].shape == (10, 10) and affinity[1].dtype == torch.int64
    assert segmentation[0].shape == (3, 41, 41) and segmentation[1].shape == (41, 41) and segmentation[1].dtype == torch.int64
    assert all(image.dtype == torch.float32 for image, _ in (classification, affinity, segmentation))
    for _, label in (affinity, segmentation):
        assert set(label.unique().tolist()) <= {0, 1, 2, 3, 255}


def test_a_sample_is_a_function_of_seed_epoch_and_index(miniature):
    data = load_dataset(miniature, "train")
    for first, second, other in zip(all_kinds(data), all_kinds(data), all_kinds(data, seed=1), strict=True):
        random.seed(1)
        wanted = first[2, 5]
        random.seed(2)
        np.random.seed(3)
        second[0, 0], second[7, 1]  # whatever was loaded before
        assert equal(second[2, 5], wanted)
        assert not torch.equal(second[3, 5][0], wanted[0]) and not torch.equal(other[2, 5][0], wanted[0])


def test_random_numbers_of_a_sample_are_the_same_on_every_machine():
    assert [sample_rng(0, 1, 2).randrange(1000) for _ in range(2)] == [random.Random("0/1/2").randrange(1000)] * 2
    assert sample_rng(0, 12, 3).random() != sample_rng(0, 1, 23).random()


def test_image_and_label_of_a_sample_are_moved_together(miniature):
    """In the miniature the pixels of class c have their channel c raised by 130: labels can be read off the image."""
    data = load_dataset(miniature, "train")
    _, affinity, segmentation = all_kinds(data)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    for samples, stride in ((affinity, 4), (segmentation, 1)):
        agreeing = total = 0
        for epoch in range(4):
            for index in range(len(data)):
                image, label = samples[epoch, index]
                image = image * std + mean
                image = image[:, 2::4, 2::4] if stride == 4 else image
                foreground = (label > 0) & (label < 255)
                agreeing += int((image.argmax(0) + 1 == label)[foreground].sum())
                total += int(foreground.sum())
        assert total > 1000 / stride and agreeing / total > 0.8  # a third by chance; bicubic edges and noise cost some


def test_outside_the_image_is_mean_color_and_unknown(miniature):
    """A photograph of 40 x 56 is halved to 20 x 28 and lies on a canvas of 64 x 64."""
    data, masks = load_dataset(miniature, "train"), miniature / "SegmentationClass"
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    image, _ = ClassificationSamples(data, 0, (28, 28), 64, mean, std)[0, 0]
    assert (image == 0).all(0).sum() == 64 * 64 - 20 * 28
    image, label = AffinitySamples(data, masks, 0, (0.5, 0.5), 64, mean, std)[0, 0]
    outside = (image == 0).all(0)
    assert outside.sum() == 64 * 64 - 20 * 28 and (label[outside[2::4, 2::4]] == 255).all()
    image, label = SegmentationSamples(data, masks, 0, (0.5,), 64, mean, std)[0, 0]
    image, label = (image.flip(-1), label.flip(-1)) if (label[:, 0] == 255).all() else (image, label)  # it was mirrored
    for part in (np.s_[..., 20:, :], np.s_[..., 28:]):
        assert image[part].abs().max() < 1e-5 and (label[part] == 255).all()
    assert (label[:20, :28] == 0).any()


# ---- order of the samples


@given(
    num_samples=st.integers(1, 30),
    parts=st.integers(1, 3),
    part_size=st.integers(1, 5),
    first=st.integers(0, 20),
    seed=st.integers(0, 5),
)
def test_sampler_goes_on_where_it_stopped_whatever_the_parts(num_samples, parts, part_size, first, seed):
    batch_size, last = parts * part_size, 20
    whole = list(StepSampler(num_samples, batch_size, 1, 0, last, seed))
    assert len(whole) == last and all(len(batch) == batch_size for batch in whole)
    sampler = StepSampler(num_samples, batch_size, parts, first, last, seed)
    resumed = list(sampler)
    assert len(resumed) == len(sampler) == (last - first) * parts and all(len(part) == part_size for part in resumed)
    assert sum(resumed, []) == sum(whole[first:], [])


@given(num_samples=st.integers(1, 30), batch_size=st.integers(1, 10), seed=st.integers(0, 5))
def test_an_epoch_visits_every_image_at_most_once(num_samples, batch_size, seed):
    steps = steps_per_epoch(num_samples, batch_size)
    assert steps == max(1, num_samples // batch_size)
    batches_of_all = list(StepSampler(num_samples, batch_size, 1, 0, 3 * steps, seed))
    for number in range(3):
        pairs = sum(batches_of_all[number * steps : (number + 1) * steps], [])
        assert {pair[0] for pair in pairs} == {number}
        indices = [index for _, index in pairs]
        assert set(indices) <= set(range(num_samples))
        if num_samples >= batch_size:
            assert len(set(indices)) == len(indices) == steps * batch_size
        else:  # a data set smaller than a batch is repeated in it
            assert len(indices) == batch_size and set(indices) == set(range(num_samples))


@given(
    num_samples=st.integers(1, 30),
    part_size=st.integers(1, 4),
    parts=st.integers(1, 2),
    processes=st.integers(1, 2),
    seed=st.integers(0, 5),
)
def test_a_kept_last_batch_holds_what_is_left(num_samples, part_size, parts, processes, seed):
    shares = parts * processes
    batch_size = shares * part_size
    steps = steps_per_epoch(num_samples, batch_size, keep_last=True)
    assert steps == np.ceil(num_samples / batch_size)
    made = [
        list(StepSampler(num_samples, batch_size, parts, 0, 2 * steps, seed, (rank, processes), keep_last=True))
        for rank in range(processes)
    ]
    for step in range(2 * steps):
        lots = [batch for share in made for batch in share[step * parts : (step + 1) * parts]]
        assert len({len(lot) for lot in lots}) == 1  # one mean over all is the mean of theirs
        left = num_samples - step % steps * batch_size if (step + 1) % steps == 0 else batch_size
        assert left <= sum(map(len, lots)) < left + shares
    for epoch in range(2):
        indices = [index for share in made for batch in share for number, index in batch if number == epoch]
        assert set(indices) == set(range(num_samples)) and len(indices) < num_samples + shares


def test_epochs_and_seeds_have_orders_of_their_own():
    order = [pair[1] for batch in StepSampler(50, 50, 1, 0, 2, seed=0) for pair in batch]
    other = [pair[1] for batch in StepSampler(50, 50, 1, 0, 1, seed=1) for pair in batch]
    assert order[:50] != order[50:] and order[:50] != other and order[:50] != list(range(50))


@pytest.mark.system
@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_change_nothing(miniature, num_workers):
    data = load_dataset(miniature, "train")
    samples = all_kinds(data)[0]
    alone = list(batches(samples, 4, 2, 1, 4, 0, num_workers=0))
    shared = list(batches(samples, 4, 2, 1, 4, 0, num_workers=num_workers))
    assert len(alone) == 6 and all(equal(first, second) for first, second in zip(alone, shared, strict=True))


def test_a_loader_leaves_torchs_random_numbers_alone(miniature):
    samples = all_kinds(load_dataset(miniature, "train"))[0]
    before = torch.get_rng_state()
    next(iter(batches(samples, 4, 1, 0, 2, 0, num_workers=0)))
    assert torch.equal(torch.get_rng_state(), before)
