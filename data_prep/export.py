"""Masks for other programs: `python -m data_prep.export MASKS DATA OUT` writes them in two forms.

`OUT` gets `SegmentationClass/ID.png` at the photographs' own size and `labelmap.txt` (VOC's form, which CVAT and Label
Studio import), and `annotations.json`
(COCO's form, one annotation for each class of an image, compressed run lengths).
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from data_prep.custom import ORIENTATION
from data_prep.photographs import FORMATS, find_by_name, from_folder
from wsss_lib.core.files import IGNORE, read_mask, voc_palette, whole_folder, write_json, write_mask
from wsss_lib.core.progress import progress
from wsss_lib.data.dataset import read_classes
from wsss_lib.errors import DataError


def export(masks: Path, data_root: Path, out: Path, photographs: Path | None = None) -> int:
    """Export a folder of masks.

    Args:
        masks: folder of `ID.png`, as a stage made them.
        data_root: the data set; its classes and, without `photographs`, its images' sizes count.
        out: a new folder.
        photographs: folder of the photographs in their own size, named like the images; masks are upsampled to it.

    Returns:
        the number of masks.

    Raises:
        DataError: `out` exists, there is no mask, or a photograph is missing.
    """
    if os.path.lexists(out):
        raise DataError(f"{out}: exists already; give the name of a new folder")
    paths, classes = sorted(masks.glob("*.png")), read_classes(data_root)
    if not paths:
        raise DataError(f"{masks}: this folder holds no masks ID.png; give the folder of a stage, e.g. pseudo_masks")
    own = _photographs(photographs, [path.stem for path in paths]) if photographs else {}
    with whole_folder(out) as unfinished:
        _write(paths, classes, data_root, own, unfinished)
    return len(paths)


def _photographs(folder: Path, ids: Sequence[str]) -> dict[str, Path]:
    """Return id to photograph, whatever `data_prep.custom` has replaced in its name."""
    found = from_folder(folder)
    find = find_by_name(found, folder)
    names = {image_id: find(image_id) for image_id in ids}
    if missing := [image_id for image_id in ids if not names[image_id]]:
        raise DataError(f"{folder}: {len(missing)} photographs that have masks are missing, the first is {missing[0]!r}")
    if several := [image_id for image_id in ids if len(names[image_id]) > 1]:
        raise DataError(
            f"{folder}: {several[0]!r} may be {' or '.join(names[several[0]][:3])}; give only the photographs meant"
        )
    return {image_id: found[names[image_id][0]].path for image_id in ids}


def _write(paths: Sequence[Path], classes: Sequence[str], data_root: Path, own: Mapping[str, Path], out: Path) -> None:
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


def _upright_size(photograph: Path) -> tuple[int, int]:
    try:
        with Image.open(photograph, formats=FORMATS) as image:
            width, height = image.size
            turned = 5 <= image.getexif().get(ORIENTATION, 1) <= 8  # those that swap the sides
    except Exception as error:  # Pillow raises one of a dozen types
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{photograph}: the photograph cannot be read ({reason}); put it there or mend it") from None
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
