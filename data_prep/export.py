"""Masks for other programs: `python -m data_prep.export MASKS DATA OUT` writes them in two forms.

`OUT` gets `SegmentationClass/ID.png` at the photographs' own size and `labelmap.txt` (VOC's form, which CVAT and Label
Studio import), and `annotations.json`
(COCO's form, one annotation for each class of an image, compressed run lengths).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from wsss_lib.core.files import IGNORE, image_size, read_mask, voc_palette, write_json, write_mask
from wsss_lib.core.progress import progress
from wsss_lib.data.dataset import read_classes
from wsss_lib.errors import DataError


def export(masks: Path, data_root: Path, out: Path, photographs: Path | None = None) -> int:
    """Export a folder of masks.

    Args:
        masks: folder of `ID.png`, as a stage has made them.
        data_root: the data set; its classes and, without `photographs`, its images' sizes count.
        out: a new folder.
        photographs: folder of the photographs in their own size, named as the images are; masks are enlarged to it.

    Returns:
        the number of masks.

    Raises:
        DataError: `out` exists, there is no mask, or a photograph is missing.
    """
    if out.exists():
        raise DataError(f"{out}: exists already; give the name of a new folder")
    paths, classes = sorted(masks.glob("*.png")), read_classes(data_root)
    if not paths:
        raise DataError(f"{masks}: this folder holds no masks ID.png; give the folder of a stage, e.g. pseudo_masks")
    own = {path.stem: path for path in sorted(photographs.rglob("*")) if path.is_file()} if photographs else {}
    if missing := [path.stem for path in paths if photographs and path.stem not in own]:
        raise DataError(f"{photographs}: {len(missing)} photographs that have masks are missing, the first is {missing[0]!r}")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, path in enumerate(progress(paths, "export"), start=1):
        photograph = own.get(path.stem, data_root / "JPEGImages" / f"{path.stem}.jpg")
        width, height = size = _upright_size(photograph)
        mask = np.asarray(Image.fromarray(read_mask(path, len(classes))).resize(size, Image.Resampling.NEAREST))
        write_mask(out / "SegmentationClass" / path.name, mask)
        images.append({"id": number, "file_name": photograph.name, "width": width, "height": height})
        for label in (int(value) for value in np.unique(mask) if 0 < value < IGNORE):
            area = mask == label
            encoded = run_lengths.encode(np.asfortranarray(area, np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                    "area": int(area.sum()),
                    "bbox": run_lengths.toBbox(encoded).tolist(),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(classes, start=1)]
    lines = (f"{name}:{','.join(map(str, voc_palette()[index]))}::" for index, name in enumerate(("background", *classes)))
    (out / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n", encoding="utf-8")
    write_json(out / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})
    return len(paths)


def _upright_size(photograph: Path) -> tuple[int, int]:
    width, height = image_size(photograph)
    with Image.open(photograph) as image:
        turned = image.getexif().get(274, 1) >= 5  # orientations that swap the sides
    return (height, width) if turned else (width, height)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the program with a sentence when it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("masks", type=Path, help="folder of ID.png, e.g. runs/mine/cam/seed0/pseudo_masks")
    parser.add_argument("data", type=Path, help="the data set that they belong to, e.g. data/mine")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--photographs", type=Path, help="the photographs in their own size")
    options = parser.parse_args(arguments)
    try:
        count = export(options.masks, options.data, options.out, options.photographs)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{options.out}: {count} masks in SegmentationClass/ with labelmap.txt (VOC), and annotations.json (COCO)")


if __name__ == "__main__":
    main()
