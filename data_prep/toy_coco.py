"""Make generated images in the layout of COCO 2014: 80 categories, instances JSON, crowd regions, gray and unlabeled images.

    python -m data_prep.toy_coco data/toy-coco --train 400 --val 100
    python -m data_prep.coco14 data/toy-coco --train data/toy-coco/annotations/instances_train2014.json \\
        --val data/toy-coco/annotations/instances_val2014.json --partial

Each image is a mosaic of one to nine scenes of the generated data set, with seven objects on average as in COCO. The six
creatures become 80 categories by their colors: creature k in the hue v is category 6 v + k, counted from 0.
"""

import argparse
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.coco_categories import CATEGORY_IDS, COCO_CLASSES
from data_prep.toy_scenes import CLASSES, draw_scene
from data_prep.workers import map_images
from data_prep.writing import description, write_new
from wsss_lib.core.files import write_json
from wsss_lib.errors import DataError

TILE = 48  # side of a scene in pixels; the smallest that can be drawn
HUES = 13  # 6 creatures of 13 hues are 78 categories; the first two creatures have a hue more
LAYOUTS = ((1, 1), (3, 2), (2, 1), (2, 3), (3, 3))  # columns and rows of the mosaic, in turn
MARKER = "unfinished_toy_coco.json"
GREY, UNLABELLED, TINY, CROWD = 0, 7, 13, 3  # which of every 20 images are special


def make_toy_coco(
    root: Path | str,
    seed: int = 0,
    num_train: int = 400,
    num_val: int = 100,
    width: int = 144,
    names: str = "2014",
    progress: bool = True,
    workers: int | None = None,
) -> Path:
    """Make the images and the two instances JSON files, which are written last; finished ones are left unchanged.

    Args:
        root: the folder to fill.
        seed: other seeds give other images.
        num_train, num_val: number of images.
        width: longer side of the images in pixels, at least 144.
        names: "2014": `train2014/COCO_train2014_000000000001.jpg`; "2017": `train2017/000000000001.jpg`.
        progress: show a progress bar where there is a terminal.
        workers: processes; None: up to four for a large set.

    Returns:
        `root` as a path.

    Raises:
        ValueError: a parameter out of range.
        DataError: the folder holds something else, or files made with other parameters.
    """
    root = Path(root)
    if min(num_train, num_val) < 1 or seed < 0 or width < 3 * TILE or names not in ("2014", "2017"):
        raise ValueError(
            f"num_train and num_val must be at least 1, seed at least 0, width at least {3 * TILE}, names 2014 or "
            f"2017; not {num_train}, {num_val}, {seed}, {width}, {names}"
        )
    info = {
        "description": "generated, not COCO",
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
        "width": width,
        "names": names,
    }
    _begin(root, info)
    begin = 1
    for split, count in (("train", num_train), ("val", num_val)):
        path = root / "annotations" / f"instances_{split}2014.json"
        if not path.is_file():
            prefix = f"COCO_{split}2014_" if names == "2014" else ""
            pattern = f"{split}{names}/{prefix}{{:012d}}.jpg"
            make_one = partial(_make_image, root, seed, width, pattern)
            made = list(map_images(make_one, range(begin, begin + count), f"{split} mosaics", progress, workers))
            text = json.dumps(_instances(info, made, seed))  # on one line, as COCO's
            write_new(path, text)
        begin += count
    (root / MARKER).unlink(missing_ok=True)
    return root


def _begin(root: Path, info: dict[str, Any]) -> None:
    """Refuse a folder that holds anything else, and mark one that is not finished."""
    paths = [root / "annotations" / f"instances_{split}2014.json" for split in ("train", "val")]
    there = [path for path in paths if path.is_file()]
    for path in there:
        if description(path.parent, path.name).get("info") != info:
            raise DataError(f"{path}: made with other parameters; give another folder")
    if len(there) < len(paths):
        ours = bool(there) or description(root, MARKER).get("info") == info
        if not ours and root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise DataError(f"{root}: holds something else than these generated images; give an empty or new folder")
        write_json(root / MARKER, {"info": info})


def draw_mosaic(seed: int, index: int, columns: int, rows: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw scenes side by side and give every creature one of the 80 categories.

    Args:
        seed: of the data set.
        index: number of the image.
        columns, rows: of the mosaic.

    Returns:
        image uint8 (H, W, 3); for each object its category 0..79 and its visible pixels, bool (H, W).

    >>> image, objects = draw_mosaic(0, 1, columns=3, rows=2)
    >>> image.shape, 6 <= len(objects) <= 12
    ((96, 144, 3), True)
    """
    generator = np.random.default_rng([seed, index, 80])
    image = np.zeros((rows * TILE, columns * TILE, 3), np.uint8)
    objects = []
    for tile in range(columns * rows):
        scene = draw_scene(seed, index * columns * rows + tile, TILE)
        area = (
            slice(tile // columns * TILE, (tile // columns + 1) * TILE),
            slice(tile % columns * TILE, (tile % columns + 1) * TILE),
        )
        picture = scene.image
        for number, creature in enumerate(scene.creatures, start=1):
            kind = CLASSES.index(creature.name)
            hue = int(generator.integers(HUES + (kind < len(COCO_CLASSES) - HUES * len(CLASSES))))
            visible = np.zeros(image.shape[:2], bool)
            visible[area] = scene.object_mask == number
            picture = np.where((scene.object_mask == number)[..., None], _turn_hue(picture, hue / (HUES + 1)), picture)
            objects.append((kind + len(CLASSES) * hue, visible))
        image[area] = picture
    return image, objects


def _turn_hue(picture: np.ndarray, turn: float) -> np.ndarray:
    """Rotate all colors around the gray axis: uint8 (H, W, 3), by `turn` full turns."""
    cosine, sine = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn) / np.sqrt(3)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    matrix = cosine * np.eye(3) + (1 - cosine) / 3 + sine * across
    return np.clip(picture @ matrix.T, 0, 255).astype(np.uint8)


def _make_image(root: Path, seed: int, width: int, pattern: str, number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write one image; return its entry and its annotations."""
    kind = number % 20
    columns, rows = LAYOUTS[number % len(LAYOUTS)]
    image, objects = draw_mosaic(seed, number, columns, rows)
    if kind == UNLABELLED:
        noise = np.random.default_rng([seed, number]).integers(60, 180, (6, 6, 3), np.uint8)
        image, objects = np.asarray(Image.fromarray(noise).resize(image.shape[1::-1], Image.Resampling.BICUBIC)), []
    scale = (40 if kind == TINY else width) / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))  # (W, H)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    picture = picture.convert("L") if kind == GREY else picture
    path = root / pattern.format(number)
    content = io.BytesIO()
    picture.save(content, format="JPEG", quality=90)
    write_new(path, content.getvalue())
    entry = {"id": number, "file_name": path.name, "width": size[0], "height": size[1]}
    annotations = [
        _annotation(number, category, visible, size, crowd=kind % 10 == CROWD and place == 0)
        for place, (category, visible) in enumerate(objects)
    ]
    return entry, annotations


def _annotation(image: int, category: int, visible: np.ndarray, size: tuple[int, int], crowd: bool) -> dict[str, Any]:
    """Return one annotation in COCO's form: a polygon, or run lengths for a crowd region."""
    scale = size[0] / visible.shape[1], size[1] / visible.shape[0]
    left, right, rows = visible.argmax(1), visible.shape[1] - visible[:, ::-1].argmax(1), np.flatnonzero(visible.any(1))
    if crowd:
        pixels = np.asarray(Image.fromarray(visible).resize(size, Image.Resampling.NEAREST)).ravel(order="F")  # by columns
        changes = np.flatnonzero(np.diff(np.concatenate([[False], pixels, [False]]).astype(np.int8)))
        segmentation: Any = {
            "size": [size[1], size[0]],
            "counts": np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist(),
        }
    else:  # down along the left edge, up along the right one
        down = [(left[row], row + 0.5) for row in rows]
        up = [(right[row], row + 0.5) for row in rows[::-1]]
        segmentation = [[round(float(value) * scale[axis], 2) for point in down + up for axis, value in enumerate(point)]]
    box = (left[rows].min(), rows[0], right[rows].max(), rows[-1] + 1) if len(rows) else (0, 0, 0, 0)
    x, y, end_x, end_y = (round(float(value) * scale[axis % 2], 2) for axis, value in enumerate(box))
    return {
        "segmentation": segmentation,
        "area": round(float(visible.sum()) * scale[0] * scale[1], 2),
        "iscrowd": int(crowd),
        "image_id": image,
        "bbox": [x, y, round(end_x - x, 2), round(end_y - y, 2)],
        "category_id": CATEGORY_IDS[category],
    }


def _instances(info: dict[str, Any], made: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]], seed: int) -> dict[str, Any]:
    """Return the content of an instances JSON; as in COCO's, neither images nor annotations are sorted."""
    generator = np.random.default_rng([seed, len(made)])
    annotations = [annotation for _, several in made for annotation in several]
    annotations = [
        annotations[place] | {"id": number} for number, place in enumerate(generator.permutation(len(annotations)), start=1)
    ]
    return {
        "info": info,
        "images": [made[place][0] for place in generator.permutation(len(made))],
        "licenses": [],
        "annotations": annotations,
        "categories": [
            {"supercategory": "generated", "id": number, "name": name}
            for number, name in zip(CATEGORY_IDS, COCO_CLASSES, strict=True)
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a failure ends the program with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.toy_coco", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder to make, e.g. data/toy-coco")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other images (default: 0)")
    parser.add_argument("--train", type=int, default=400, metavar="N", help="training images (default: 400)")
    parser.add_argument("--val", type=int, default=100, metavar="N", help="validation images (default: 100)")
    parser.add_argument("--width", type=int, default=144, metavar="PIXELS", help="longer side (default: 144)")
    parser.add_argument("--names", choices=["2014", "2017"], default="2014", help="tradition of file names (default: 2014)")
    options = parser.parse_args(arguments)
    try:
        make_toy_coco(options.root, options.seed, options.train, options.val, options.width, options.names)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.root}: {options.train} training and {options.val} validation images")


if __name__ == "__main__":
    main()
