"""Data sets in VOC devkit layout with a table of image-level labels.

A folder holds `JPEGImages/ID.jpg`, `SegmentationClass/ID.png`, `ImageSets/Segmentation/SPLIT.txt`, `labels.csv` and, unless
it is PASCAL VOC, `dataset.json`. Ids are strings everywhere.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss_lib.core.files import IGNORE, image_size, read_image, read_mask, read_table, read_text, sha256
from wsss_lib.core.texts import is_one_line
from wsss_lib.errors import DataError
from wsss_lib.parameters import Settings, project_path

SCORED = "scored"  # the list of the training images that have a mask, if not all of them do

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True)
class SegmentationDataset:
    """One split of a data set: ids, image-level labels, and readers for images and masks.

    Attributes:
        root: the devkit folder.
        split: the list that was read, e.g. "train".
        ids: image ids, in the list's order.
        classes: names of the C foreground classes; class i has the value i + 1 in masks.
        labels: uint8 (N, C), 1 where the class is in the image; rows in the order of `ids`.
        mask_folder: folder of the masks below `root`.
        masked: ids of the images that have a mask; None: all of them.

    Explained in notebook 02, section "Image-level labels".
    """

    root: Path
    split: str
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    mask_folder: str = "SegmentationClass"
    masked: frozenset[str] | None = None

    @property
    def num_classes(self) -> int:
        """Return the number of foreground classes C."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_masks(self) -> bool:
        """Return whether at least one image has a mask, so that anything can be scored."""
        return self.masked is None or not self.masked.isdisjoint(self.ids)

    def example(self, num_classes: int, ids: Sequence[str] = ()) -> str:
        """Return the id of an image to look at, of all or of some: the first with exactly or about so many classes."""
        return min(
            ids or self.ids,
            key=lambda image_id: (self.label(image_id).sum() == 0, abs(int(self.label(image_id).sum()) - num_classes)),
        )

    def scored(self) -> "SegmentationDataset":
        """Return the images that have a mask; if none has, all of them, with unknown masks."""
        if self.masked is None or not self.has_masks:
            return self
        return self.part([row for row, image_id in enumerate(self.ids) if image_id in self.masked])

    def part(self, rows: slice | Sequence[int] | np.ndarray) -> "SegmentationDataset":
        """Return some of the images, in the order of `rows`: a slice, row numbers, or bool (N,)."""
        chosen = np.arange(len(self))[rows if isinstance(rows, slice) or len(rows) else []]
        return replace(self, ids=tuple(self.ids[row] for row in chosen), labels=self.labels[chosen])

    def image_path(self, image_id: str) -> Path:
        """Return the path of the image `JPEGImages/ID.jpg` of an image id, whether or not it exists."""
        return self.root / "JPEGImages" / f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> Path:
        """Return the path of the ground truth of an image id, whether or not it exists."""
        return self.root / self.mask_folder / f"{image_id}.png"

    def image(self, image_id: str) -> Image.Image:
        """Return the image of an image id as RGB; grayscale files are converted.

        Raises:
            DataError: the file is missing or cannot be decoded.
        """
        return read_image(self.image_path(image_id))

    def mask(self, image_id: str) -> np.ndarray:
        """Return the ground truth of an image id: uint8 (H, W), values 0..C and 255; all 255 for an image without a mask.

        Raises:
            DataError: missing where there should be one, unreadable, of another size than the image, or with a value that is no
                class.

        Explained in notebook 02, section "Masks".
        """
        width, height = image_size(self.image_path(image_id))
        if self.masked is not None and image_id not in self.masked:
            return np.full((height, width), IGNORE, np.uint8)
        return read_mask(self.mask_path(image_id), self.num_classes, (width, height))

    def label(self, image_id: str) -> np.ndarray:
        """Return the image-level label of an image id: uint8 (C,), 1 where the class is in the image.

        Raises:
            ValueError: the id is not in the split.
        """
        if image_id not in self._row:
            raise ValueError(f"image {image_id!r} is not in split {self.split!r} of {self.root}")
        return self.labels[self._row[image_id]]

    @cached_property
    def _row(self) -> dict[str, int]:  # searching the list is too slow for COCO's 82,783 ids
        return {image_id: row for row, image_id in enumerate(self.ids)}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_row"}  # a worker process makes its own


def unreadable_images(data: SegmentationDataset) -> dict[str, str]:
    """Return the ids of the images that cannot be read, each with a sentence that says why; every image is decoded.

    Explained in notebook 02, section "The check".
    """
    found = {}
    for image_id in data.ids:
        try:
            data.image(image_id)
        except DataError as error:
            found[image_id] = str(error)
    return found


def check_images(data: SegmentationDataset) -> None:
    """Decode every image of a split before a run starts.

    Raises:
        DataError: some cannot be read; ALL of them are listed.

    Explained in notebook 02, section "The check".
    """
    if bad := unreadable_images(data):
        first = next(iter(bad.values())).split("; ")[0]
        raise DataError(
            f"{first}; of split {data.split!r} {len(bad)} of {len(data)} images cannot be read: {', '.join(bad)}; "
            "fetch them again, take their ids out of the list, or set on_bad_image to 'skip'"
        )


def without_unreadable_images(data: SegmentationDataset) -> SegmentationDataset:
    """Return a split without the images that cannot be read, which are printed.

    Raises:
        DataError: no image can be read.

    Explained in notebook 02, section "The check".
    """
    bad = unreadable_images(data)
    if len(bad) == len(data):
        raise DataError(f"{next(iter(bad.values()))}; none of the {len(data)} images of split {data.split!r} can be read")
    if bad:
        print(f"{data.split}: {len(bad)} of {len(data)} images cannot be read and are left out: {', '.join(bad)}")
    kept = [row for row, image_id in enumerate(data.ids) if image_id not in bad]
    return data.part(kept)


def load_dataset(
    root: Path | str, split: str, labels: Path | str = "", limit: int = 0, mask_folder: str = "SegmentationClass"
) -> SegmentationDataset:
    """Open one split of a data set and check that every image and every label row is there.

    Args:
        labels: the label table; empty: `root/labels.csv`.
        limit: keep only the first `limit` ids (0: all).
        mask_folder: folder of the masks below `root`, e.g. "SegmentationClassAug".

    Returns:
        the split; no image or mask has been decoded yet. A split without a row in the table has neither labels nor
        masks.

    Raises:
        DataError: something is missing or contradicts itself; the message names the first such file and how many there are.

    Explained in notebook 02, section "The folder".
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"{root}: the data set folder does not exist; run notebook 02_datasets_and_labels first or set data_root"
        )
    classes = read_classes(root)
    ids = read_split(root, split)
    table = read_labels(Path(labels) if labels else root / "labels.csv", classes)
    ids = ids[:limit] if limit else ids
    if not all(image_id.isascii() for image_id in ids):
        ids, table = _as_on_disk(root, ids), {_composed(image_id): label for image_id, label in table.items()}
        table |= {image_id: table[_composed(image_id)] for image_id in ids if _composed(image_id) in table}
    without_row = [image_id for image_id in ids if image_id not in table]
    unlabelled = len(without_row) == len(ids)  # new images, or those of VOC's test split: to be segmented, not to learn from
    if without_row and not unlabelled:
        raise DataError(
            f"{labels or root / 'labels.csv'}: no row for image {without_row[0]!r} and {len(without_row) - 1} "
            f"others of split {split!r}; make the table again with python -m data_prep.voc_labels"
        )
    rows = np.stack([table.get(image_id, np.zeros(len(classes), np.uint8)) for image_id in ids])
    dataset = SegmentationDataset(
        root, split, ids, classes, rows, mask_folder, frozenset() if unlabelled else read_masked(root, mask_folder)
    )
    missing = [image_id for image_id in ids if not os.path.isfile(dataset.image_path(image_id))]  # also for a name too long
    if missing:
        there = [path.name for path in (root / "JPEGImages").glob("*") if missing[0] in (path.stem, path.name)]
        remedy = f"{there[0]} is there, rename it" if there else "put them there or take their ids out of the list"
        raise DataError(
            f"{dataset.image_path(missing[0])}: the image is missing, and {len(missing) - 1} others of {split!r}; {remedy}"
        )
    return dataset


def read_masked(root: Path, mask_folder: str = "SegmentationClass") -> frozenset[str] | None:
    """Return the ids of the images that have a mask; None: all of them should.

    A data set without masks has no mask folder. One with masks for a few images has the list
    `ImageSets/Segmentation/scored.txt`, and those in the folder count.

    Args:
        mask_folder: folder of the masks below `root`; one with an unusual name must exist.

    Raises:
        DataError: the folder of another name is missing, or the list is broken.

    Explained in notebook 02, section "Masks".
    """
    folder = root / mask_folder
    if not folder.is_dir() or not any(folder.glob("[!.]*")):
        if mask_folder != SegmentationDataset.mask_folder:
            raise DataError(
                f"{folder}: there is no mask in this folder; correct mask_folder, or leave it out if there are no masks"
            )
        return frozenset()
    if (root / "ImageSets" / "Segmentation" / f"{SCORED}.txt").is_file():
        return frozenset([*read_split(root, SCORED), *(path.stem for path in folder.glob("*.png"))])
    return None


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _as_on_disk(root: Path, ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return ids with accents as their images have them: some systems store letter and accent apart."""
    there = {_composed(path.stem): path.stem for path in (root / "JPEGImages").glob("*.jpg")}
    return tuple(there.get(_composed(image_id), image_id) for image_id in ids)


def read_classes(root: Path) -> tuple[str, ...]:
    """Return the foreground class names of `root/dataset.json`, or VOC's when there is no such file.

    Raises:
        DataError: the file has no list `classes` of 1 to 254 different names.
    """
    path = root / "dataset.json"
    if not path.is_file():
        return VOC_CLASSES
    try:
        content = json.loads(read_text(path))
        classes = content["classes"]
        valid = isinstance(classes, list) and 0 < len(classes) < IGNORE and all(isinstance(name, str) for name in classes)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: not a data set description ({problem}); it needs a list 'classes'") from None
    if not valid or len(set(classes)) != len(classes):
        raise DataError(f"{path}: 'classes' must be a list of 1 to 254 different names")
    for name in classes:
        if not is_one_line(name):
            raise DataError(
                f"{path}: 'classes' holds {name[:60]!r}, a name that is empty or has a line break or control character; "
                "rename that class, in the label table too"
            )
    return tuple(classes)


def read_split(root: Path, split: str) -> tuple[str, ...]:
    """Return the ids of one list, in its order; an id is the first word of a line, as a string.

    Raises:
        DataError: there is no such list, or it is empty, not text, or names an id twice or something that is not an id.

    Explained in notebook 02, section "The folder".
    """
    folder = root / "ImageSets" / "Segmentation"
    path = folder / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("[!.]*.txt"))) or "none"
        raise DataError(f"{path}: there is no list for split {split!r}; lists at hand: {known}")
    try:
        ids = tuple(line.split()[0] for line in read_text(path).splitlines() if line.strip())
    except DataError:
        raise DataError(f"{path}: the list is not UTF-8 text; it needs one image id a line") from None
    if not ids:
        raise DataError(f"{path}: the split is empty; it needs one image id a line")
    outside = [name for name in ids if "/" in name or "\\" in name or name.startswith(".") or not is_one_line(name)]
    if outside or len(set(ids)) != len(ids):
        raise DataError(f"{path}: {outside[0]!r} is not an image id" if outside else f"{path}: an image id stands there twice")
    return ids


def read_labels(path: Path, classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the table of image-level labels: image id to uint8 (C,), 1 where the class is in the image.

    Args:
        path: the CSV file: first column `image_id`, then one 0/1 column for each class, in order.
        classes: the C foreground class names that the columns must have.

    Raises:
        DataError: the file is missing or not such a table, or an image has two rows.

    Explained in notebook 02, section "Image-level labels".
    """
    if not path.is_file():
        raise DataError(f"{path}: the label table is missing; make it with python -m data_prep.voc_labels, or set labels")
    rows = read_table(path)
    header = rows[0][1] if rows else []
    if header[:1] != ["image_id"]:
        raise DataError(f"{path}: the first column of the label table must be named image_id")
    unknown = [name for name in header[1:] if name not in classes]
    if unknown or tuple(header[1:]) != classes:
        raise DataError(
            f"{path}: unknown class {unknown[0]!r}; the data set has {', '.join(classes)}"
            if unknown
            else f"{path}: the class columns must be, in this order: {', '.join(classes)}"
        )
    table = {}
    for number, row in rows[1:]:
        if len(row) != len(header) or any(value not in ("0", "1") for value in row[1:]):
            raise DataError(f"{path}, line {number}: a row is an image id and then {len(classes)} values 0 or 1")
        if row[0] in table:
            raise DataError(f"{path}, line {number}: image {row[0]!r} has a second row; take one of them out")
        table[row[0]] = np.array(row[1:], dtype=np.uint8)
    return table


def open_data(config: Settings, split: str) -> SegmentationDataset:
    """Open one split of the configured data set.

    Returns:
        the split, checked; with on_bad_image "skip" every image has been decoded, and those that cannot be are left out.

    Raises:
        DataError: as `load_dataset`.
    """
    labels = project_path(config.labels) if config.labels else ""
    data = load_dataset(project_path(config.data_root), split, labels, config.limit, config.mask_folder)
    return without_unreadable_images(data) if config.on_bad_image == "skip" else data


def data_hash(data: SegmentationDataset) -> str:
    """Return a hash of what a stage sees of a data set: ids, image sizes in bytes, classes and image-level labels."""
    identity = hashlib.sha256(json.dumps([data.split, data.classes, data.ids]).encode())
    identity.update(np.ascontiguousarray(data.labels).tobytes())
    identity.update(json.dumps([data.image_path(image_id).stat().st_size for image_id in data.ids]).encode())
    return identity.hexdigest()


def mask_hash(data: SegmentationDataset) -> str:
    """Return a hash of what a score sees of the ground truth: which images have masks, and the masks' sizes in bytes."""
    paths = [data.mask_path(image_id) for image_id in data.ids]
    sizes = [path.stat().st_size if path.is_file() else None for path in paths]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def truth_hash(data: SegmentationDataset) -> str:
    """Return a hash of the ground truth of a split, for a stage that trains on it.

    Raises:
        DataError: a mask is missing.
    """
    if data.masked is not None and not data.masked.issuperset(data.ids):
        raise DataError(
            f"{data.root}: not all images of split {data.split!r} have a mask, which training on the ground truth needs; "
            "leave the method 'truth' out"
        )
    paths = [data.mask_path(image_id) for image_id in data.ids]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: the mask is missing, and {len(missing) - 1} others of split {data.split!r}; set "
            "mask_folder to the folder that has them all (for train_aug of VOC: SegmentationClassAug)"
        )
    return sha256(paths, data.root)
