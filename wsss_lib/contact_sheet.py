"""One HTML page with every image and its mask, the most doubtful first, for masks that no ground truth can score.

`python -m wsss_lib.contact_sheet data/mine/preset.yaml` writes that of a run.
"""

import argparse
import html
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from wsss_lib.comparison import most_refined
from wsss_lib.config import Config
from wsss_lib.core.files import IGNORE, read_mask, voc_palette, write_atomically
from wsss_lib.core.progress import progress
from wsss_lib.core.scoring import mask_at
from wsss_lib.core.stage import folder_of, open_stage, run_folder_of
from wsss_lib.core.store import finished_stages
from wsss_lib.data.dataset import open_data
from wsss_lib.methods import maps_of
from wsss_lib.methods.cam import CLASSIFIER, score_classifier
from wsss_lib.presets import preset_config
from wsss_lib.refine.seed_masks import SEEDS

THUMBNAIL = 240  # pixels of a thumbnail's longer side
TOO_SMALL, LARGE, TOO_LARGE = 0.02, 0.45, 0.75  # fractions of an image
FAINT = 25  # levels of gray; an outline with less contrast may lie anywhere in lawn or sky
RING = 8  # pixels around a mask, whose color is compared with the mask's

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>:root{{color-scheme:light dark}} body{{font-family:sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}}
ul{{display:flex;flex-wrap:wrap;gap:1rem;list-style:none;padding:0}} li{{width:16rem}} img{{max-width:100%;display:block}}
.mark{{display:inline-block;width:1em;height:1em;border:1px solid;vertical-align:-.1em}}
.look{{border-left:.4rem solid #d55e00;padding-left:.5rem}}
</style></head><body><h1>{title}</h1><p>{words}</p><p>{legend}</p><ul>{items}</ul></body></html>
"""


@dataclass(frozen=True)
class Entry:
    """One image of the page.

    Attributes:
        name: of the image.
        overlay: file below the page's folder.
        classes: what the mask shows, or should show.
        doubt: from 0 to 1, the order of the page.
        signs: sentences on what looks wrong; empty if nothing does.
    """

    name: str
    overlay: str
    classes: tuple[str, ...]
    doubt: float
    signs: tuple[str, ...] = ()


def write_overlay(path: Path, image: Image.Image, mask: np.ndarray) -> None:
    """Write a small JPEG of an image with its mask in VOC's colors; unknown pixels are white.

    Args:
        image: RGB, (H, W).
        mask: uint8 (H, W).
    """
    size = [max(1, round(side * min(1, THUMBNAIL / max(image.size)))) for side in image.size]
    picture = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float32)
    small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    colors = np.where((small == IGNORE)[..., None], 255, voc_palette()[small]).astype(np.float32)
    mixed = np.where((small > 0)[..., None], 0.45 * picture + 0.55 * colors, picture)
    write_atomically(path, lambda temporary: Image.fromarray(mixed.astype(np.uint8)).save(temporary, "JPEG", quality=85))


def contrast(image: np.ndarray, area: np.ndarray) -> float:
    """Return how far the mean color of an area lies from that of a ring around it, in levels of gray.

    Args:
        image: uint8 (H, W, 3).
        area: bool (H, W).

    >>> contrast(np.uint8([[[9] * 3, [9] * 3, [0] * 3]]), np.array([[True, True, False]]))
    9.0
    """
    ring = binary_dilation(area, iterations=RING) & ~area
    if not (area.any() and ring.any()):
        return 0.0
    return float(np.abs(image[area].mean(0) - image[ring].mean(0)).mean())


def signs_of(
    image: np.ndarray, mask: np.ndarray, label: np.ndarray, classes: Sequence[str], probabilities: np.ndarray | None = None
) -> list[str]:
    """Return what may be wrong with a mask, as far as this shows without ground truth.

    These signs find gross failures and raise some false alarms: they say where to look first.

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W).
        label: of the image, uint8 (C,).
        probabilities: of the classifier, float (C,); None: it is not known.

    >>> signs_of(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), np.array([1]), ["cat"])
    ['nothing of the cat is found']
    """
    signs = []
    for index in map(int, np.flatnonzero(label)):
        covered, name = float((mask == index + 1).mean()), classes[index]
        if covered == 0:
            signs.append(f"nothing of the {name} is found")
        elif covered < TOO_SMALL:
            signs.append(f"the {name} covers {100 * covered:.1f} % of the image")
        elif covered > TOO_LARGE:
            signs.append(f"the {name} covers {100 * covered:.0f} % of the image, perhaps the background")
        elif covered > LARGE and contrast(image, mask == index + 1) < FAINT:
            signs.append(f"the {name} covers {100 * covered:.0f} % of the image with a faint outline, perhaps lawn or sky")
        if probabilities is not None and probabilities[index] < 0.5:
            signs.append(f"the classifier does not believe in the {name} ({100 * probabilities[index]:.0f} %)")
    return signs


def write_page(path: Path, title: str, words: str, classes: Sequence[str], entries: Iterable[Entry]) -> None:
    """Write the page; whatever names it holds is shown as text.

    Args:
        words: a paragraph on what the page shows and where the masks lie.
        classes: names of the C classes, for the legend.
    """
    palette = voc_palette()
    colors = [f"rgb{tuple(map(int, palette[index + 1]))}" for index in range(len(classes))]
    legend = " ".join(
        f'<span class="mark" style="background:{color}"></span> {html.escape(name)}'
        for color, name in zip(colors, classes, strict=True)
    )
    items = []
    for entry in sorted(entries, key=lambda entry: (-len(entry.signs), -entry.doubt, entry.name)):
        text = html.escape(f"{entry.name}: {', '.join(entry.classes) or 'nothing'}")
        signs = "".join(f"<br>{html.escape(sign)}" for sign in entry.signs)
        items.append(
            f'<li class="{"look" if entry.signs else "fine"}"><img loading="lazy" src="{quote(entry.overlay)}" alt="{text}">'
            f"{text}<br>doubt {entry.doubt:.2f}{signs}</li>"
        )
    page = PAGE.format(title=html.escape(title), words=html.escape(words), legend=legend, items="".join(items))
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def write_contact_sheet(config: Config) -> Path:
    """Write the page of all training images with a method's most refined masks, and return its path.

    The doubt of an image is the disagreement of its map at the threshold with its refined mask: one minus the intersection
    over union of their objects.

    Args:
        config: of a finished run, at least up to the seed masks.

    Raises:
        DataError: the seed masks are not finished, or a mask is broken.
    """
    data, seeds = open_data(config, config.train_split), open_stage(SEEDS, config)
    stages = finished_stages(run_folder_of(config))[config.method, config.seed]
    folder, what = most_refined(stages) or (seeds.folder / "seed_masks", "CAM seed + CRF")
    probabilities = None
    if (folder_of(CLASSIFIER, config) / "run.json").is_file():
        classifier = open_stage(CLASSIFIER, config)
        probabilities = score_classifier(classifier.net, data, classifier.config)
    plain = mask_at(open_stage(maps_of(config.method), config).folder, seeds.config.seed_threshold)
    page, entries = seeds.folder.parent / "contact_sheet" / "index.html", []
    for row, image_id in enumerate(progress(data.ids, "contact sheet")):
        image = data.image(image_id)
        mask = read_mask(folder / f"{image_id}.png", data.num_classes, image.size)
        start = plain(image_id)
        both, either = ((mask == start) & (mask > 0)).sum(), ((mask > 0) | (start > 0)).sum()
        write_overlay(page.parent / "overlays" / f"{image_id}.jpg", image, mask)
        entries.append(
            Entry(
                image_id,
                f"overlays/{image_id}.jpg",
                tuple(data.classes[index] for index in np.flatnonzero(data.label(image_id))),
                float(1 - both / either) if either else 0.0,
                tuple(
                    signs_of(
                        np.asarray(image),
                        mask,
                        data.label(image_id),
                        data.classes,
                        None if probabilities is None else probabilities[row],
                    )
                ),
            )
        )
    words = (
        f"{len(data)} images with their masks ({what}), the most doubtful first. The masks lie in {folder}; to try another "
        "threshold, run notebook 70 again with another seed_threshold: only what follows from it is made anew."
    )
    write_page(page, f"{config.dataset}: {config.method}", words, data.classes, entries)
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page of a run; ends the program with a sentence when that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m wsss_lib.contact_sheet", description=__doc__)
    parser.add_argument("preset", help="of the run: data/mine/preset.yaml, or a name")
    parser.add_argument("--method", default="cam")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        print(write_contact_sheet(preset_config(options.preset, options.method, seed=options.seed)))
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
