"""A miniature data set in VOC layout: 12 tiny images, 3 classes, every true class visible as a colored square."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from wsss_lib.config import Config
from wsss_lib.core.files import write_mask
from wsss_lib.data.dataset import SegmentationDataset

# The same examples on every machine, and no time limit for a single one: a slow machine is no failure.
settings.register_profile("project", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)  # pytest --hypothesis-profile=search
settings.load_profile("project")

CLASSES = ("red", "green", "blue")
SIZES = ((40, 56), (40, 56), (37, 51), (56, 40))  # (H, W), in turn


def write_miniature(root: Path) -> None:
    """Images m_00 to m_11; image i has class i % 3, every fourth also the next class; 8 in train, 4 in val."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rows, ids = [",".join(("image_id", *CLASSES))], [f"m_{index:02d}" for index in range(12)]
    for index, image_id in enumerate(ids):
        rng = np.random.default_rng(index)
        height, width = SIZES[index % len(SIZES)]
        image = rng.integers(0, 120, (height, width, 3))
        mask = np.zeros((height, width), np.uint8)
        present = {index % 3} | ({(index + 1) % 3} if index % 4 == 0 else set())
        for place, number in enumerate(sorted(present)):
            area = slice(4, 22), slice(4 + 20 * place, 20 + 20 * place)
            mask[4 - 1 : 22 + 1, 3 + 20 * place : 21 + 20 * place] = 255  # a border that is not scored
            mask[area] = number + 1
            image[(*area, number)] += 130
        Image.fromarray(image.astype(np.uint8)).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95)
        write_mask(root / "SegmentationClass" / f"{image_id}.png", mask)
        rows.append(",".join((image_id, *(str(int(number in present)) for number in range(3)))))
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    (root / "dataset.json").write_text(json.dumps({"name": "miniature", "classes": CLASSES, "ignore_index": 255}))
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids[:8]) + "\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(ids[8:]) + "\n")


def copy_mask(image_id: str, data: SegmentationDataset, folder: Path) -> None:
    """Work on one image, in a module that a worker process imports quickly."""
    write_mask(folder / f"{image_id}.png", data.mask(image_id))


class CountedWork:
    """Work that notes in `folder/loads` whenever it is handed to a process, and writes an empty file for each image."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        with open(self.folder / "loads", "a") as file:
            file.write("x")

    def __call__(self, image_id: str) -> None:
        (self.folder / f"{image_id}.png").touch()


@pytest.fixture(scope="session")
def miniature(tmp_path_factory) -> Path:
    """The data set, shared by all tests: to be read only."""
    root = tmp_path_factory.mktemp("miniature") / "voc"
    write_miniature(root)
    return root


@pytest.fixture
def voc_folder(miniature, tmp_path) -> Path:
    """A copy of the data set that a test may damage."""
    return Path(shutil.copytree(miniature, tmp_path / "voc"))


@pytest.fixture
def small_config(miniature, tmp_path) -> Config:
    """A configuration for the miniature that trains in a second."""
    return Config(
        dataset="miniature",
        data_root=str(miniature),
        runs_root=str(tmp_path / "runs"),
        device="cpu",
        num_workers=0,
        cam_crop=32,
        cam_long_side_min=36,
        cam_long_side_max=48,
        cam_batch_size=4,
        cam_epochs=2,
        irn_crop=32,
        irn_batch_size=4,
        irn_train_radius=4,
        irn_init="backbone",
        deeplab_crop=33,
        deeplab_batch_size=4,
        deeplab_iterations=4,
        deeplab_init="none",
    )
