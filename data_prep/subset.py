"""Make a data set of some classes from a larger one in VOC's layout: the images that show them, their masks and labels.

    python -m data_prep.subset shared/VOC2012 data/animals --classes cat,dog,horse,sheep,cow,person

Objects of other classes become background, as no label names them. The lists keep their names.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.custom import make_dataset
from data_prep.photographs import Photograph, composed
from wsss_lib.core.files import IGNORE
from wsss_lib.data.dataset import SegmentationDataset, load_dataset
from wsss_lib.errors import DataError

SPLITS = ("train", "val")


class Remapped:
    """The masks of a data set, with the numbers of some of its classes."""

    def __init__(self, data: Sequence[SegmentationDataset], classes: Sequence[str]):
        self.values: set[int] = set()
        self.owner = {image_id: split for split in data for image_id in split.ids}
        known = data[0].classes
        self.numbers = np.zeros(IGNORE + 1, np.uint8)
        self.numbers[IGNORE] = IGNORE
        for number, word in enumerate(classes, start=1):
            self.numbers[known.index(word) + 1] = number

    def place(self, image_id: str) -> str:
        """Return where the mask of an image lies, for messages."""
        return str(self.owner[image_id].mask_path(image_id))

    def __call__(self, image_id: str) -> np.ndarray | None:
        """Return the mask of an image, uint8 (H, W); None: it has none."""
        split = self.owner[image_id]
        if split.masked is not None and image_id not in split.masked:
            return None
        mask = self.numbers[split.mask(image_id)]
        self.values.update(np.unique(mask).tolist())
        return mask


def make_subset(source: Path, root: Path, classes: Sequence[str], mask_folder: str = "SegmentationClass") -> dict[str, int]:
    """Write the data set; returns the counts of `custom.make_dataset`.

    Args:
        source: VOC devkit folder with lists `train` and perhaps `val`, labels.csv and perhaps masks.
        root: the folder to make.
        classes: names of classes of `source`, in the new order.

    Raises:
        DataError: a class does not exist, or as `make_dataset`.
    """
    splits = [split for split in SPLITS if split == "train" or (source / f"ImageSets/Segmentation/{split}.txt").is_file()]
    data = [load_dataset(source, split, mask_folder=mask_folder) for split in splits]
    unknown = [word for word in classes if word not in data[0].classes]
    if unknown:
        raise DataError(f"{source}: there is no class {unknown[0]!r}; take some of: {', '.join(data[0].classes)}")
    chosen = [data[0].classes.index(word) for word in classes]
    photographs, lists = {}, {}
    for split in data:
        for image_id, label in zip(split.ids, split.labels, strict=True):
            if image_id not in photographs and label[chosen].any():
                shown = tuple(word for word, index in zip(classes, chosen, strict=True) if label[index])
                photographs[image_id], lists[image_id] = Photograph(split.image_path(image_id), shown), split.split
    masks = Remapped(data, classes) if any(split.has_masks for split in data) else None
    return make_dataset(photographs, classes, root, masks=masks, longest=0, lists=lists)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.subset", description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="VOC devkit folder with labels.csv, perhaps with masks")
    parser.add_argument("root", type=Path, help="the folder to make")
    parser.add_argument("--classes", required=True, help="names of classes, with commas between them")
    parser.add_argument("--masks", default="SegmentationClass", help="folder of the masks; default SegmentationClass")
    options = parser.parse_args(arguments)
    try:
        counts = make_subset(
            options.source, options.root, [composed(word) for word in options.classes.split(",")], options.masks
        )
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.root}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))


if __name__ == "__main__":
    main()
