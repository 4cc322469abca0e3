"""Does a person's small set of photographs train by itself? Classes x photographs x seeds, with the settings of `make own`.

python benchmarks/own_ablations.py ROOT [--sizes 3x10 1x10 6x10] [--seeds 0 1 2] [--rates own preset]

ROOT is a data set with masks, which only measure: for each case classes are drawn, then so many photographs of each, and a
classifier is trained. A line says how sure it is of labels that are there, the best mIoU of its maps, and the mIoU at the
threshold that is chosen without masks, at VOC's (0.45), each in percent.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep import custom
from data_prep.own_preset import own_values
from wsss_lib.core.scoring import sweep_maps
from wsss_lib.core.stage import run
from wsss_lib.data.dataset import SegmentationDataset, load_dataset
from wsss_lib.errors import Diverged
from wsss_lib.methods import cam
from wsss_lib.presets import preset_config
from wsss_lib.refine.threshold_choice import agreement_curve, chosen_thresholds
from wsss_lib.results import markdown_table

VOC_THRESHOLD = 0.45
MOST = 100  # a class with fewer photographs is not drawn, unless all are
HEAD = ["classes x photographs", "rates", "seed", "loss", "sure", "below half", "best", "at", "chosen", "at"]
HEAD.append(f"at {VOC_THRESHOLD}")


def photographs_of(
    data: SegmentationDataset, classes: int, each: int, seed: int
) -> tuple[dict[str, custom.Photograph], list[str]]:
    """Draw classes, then photographs of each, with all labels that are among these classes."""
    drawn = random.Random(f"{classes}/{each}/{seed}")
    often = [index for index in range(data.num_classes) if data.labels[:, index].sum() >= MOST]
    chosen = drawn.sample(often if len(often) >= classes else range(data.num_classes), classes)
    found: dict[str, custom.Photograph] = {}
    for index in chosen:
        members = [name for name in data.ids if data.label(name)[index]]
        for name in drawn.sample(members, min(each, len(members))):
            words = tuple(data.classes[other] for other in chosen if data.label(name)[other])
            found[name] = custom.Photograph(data.image_path(name), words)
    return found, [data.classes[index] for index in chosen]


def add_masks(data: SegmentationDataset, root: Path, classes: list[str]) -> None:
    """Write the masks of the chosen classes into a data set, at its images' sizes."""
    (root / "SegmentationClass").mkdir(exist_ok=True)
    for path in (root / "JPEGImages").glob("*.jpg"):
        truth = data.mask(path.stem)
        mask = np.where(truth == 255, 255, 0).astype(np.uint8)
        for number, word in enumerate(classes, start=1):
            mask[truth == data.classes.index(word) + 1] = number
        with Image.open(path) as image:
            small = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
        small.save(root / "SegmentationClass" / f"{path.stem}.png")


def measure(data: SegmentationDataset, classes: int, each: int, seed: int, rates: str, work: Path) -> list[str]:
    """Return the line of one case."""
    photographs, words = photographs_of(data, classes, each, seed)
    root = work / f"{classes}x{each}_{seed}"
    if not root.exists():
        custom.make_dataset(photographs, words, root, val_share=0, longest=320, note=lambda text: None)
        add_masks(data, root, words)
    values = {name: value for name, value in own_values(len(photographs), classes).items() if name.startswith("cam_")}
    if rates == "preset":
        values = {name: value for name, value in values.items() if "learning_rate" not in name}
    config = preset_config(
        "voc12-small",
        dataset=root.name,
        data_root=str(root),
        labels="",
        val_split="train",
        runs_root=str(work / "runs" / rates),
        seed=seed,
        num_workers=0,
        **values,
    )
    name = [f"{classes} x {each}", rates, str(seed)]
    try:
        classifier = run(cam.CLASSIFIER, config)
    except Diverged as error:
        return [*name, str(error).split(";")[0], *["–"] * (len(HEAD) - 4)]
    maps, own = run(cam.MAPS, config), load_dataset(root, "train")
    sure = cam.score_classifier(classifier.net, own, config)[own.labels == 1]
    sweep = sweep_maps(own, maps.folder, np.linspace(0.01, 0.9, 90))
    threshold = chosen_thresholds(agreement_curve(own, maps.folder))["seed_threshold"]

    def at(value: float) -> str:
        return f"{100 * np.interp(value, sweep.thresholds, sweep.curve()):.1f}"

    loss = [row["loss"] for row in classifier.log()]
    best = sweep.best()
    numbers = [f"{sure.mean():.2f}", f"{(sure < 0.5).mean():.2f}", f"{100 * best[1]:.1f}", f"{best[0]:.2f}"]
    return [*name, f"{loss[0]:.2f} to {loss[-1]:.2f}", *numbers, at(threshold), f"{threshold:.2f}", at(VOC_THRESHOLD)]


def main() -> None:
    """Print a line for each case as soon as it is measured, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["1x10", "3x10", "6x10"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", choices=("own", "preset"), default=["own"])
    parser.add_argument("--work", type=Path, default=Path("build/own_ablations"), help="folder for data sets and runs")
    options = parser.parse_args()
    data, lines = load_dataset(options.root, "train"), []
    for size in options.sizes:
        classes, each = map(int, size.split("x"))
        for seed in options.seeds:
            for rates in options.rates:
                lines.append(measure(data, classes, each, seed, rates, options.work.absolute()))
                print(lines[-1], flush=True)
    print(markdown_table(HEAD, lines))


if __name__ == "__main__":
    main()
