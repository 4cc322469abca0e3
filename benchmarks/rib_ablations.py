"""When does RIB help? The same recipe on CAM's classifier and on one that was trained on for longer, with several seeds.

python benchmarks/rib_ablations.py [--seeds 0 1 2] [--images 200] [--epochs 10] [--preset smoke]

The paper's premise is a classifier that has nothing left to learn. Trained on, ours comes nearer to that. Needs notebook 10's
classifier of each seed; finished rows are kept in `runs/<dataset>/rib_ablations/` and not made again.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from wsss_lib.config import Config
from wsss_lib.core import files, training
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import best_threshold_row, mean_part_recall
from wsss_lib.core.stage import open_stage, run_folder_of
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.methods import cam, rib
from wsss_lib.methods.cam import build_classifier, train_classifier
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.presets import preset_config
from wsss_lib.results import with_spread

# What differs from the preset. The steps of the last are shorter and more, of about the same length together.
RECIPES = {
    "CAM": {"rib_iterations": 1},
    "RIB": {},
    "RIB, six steps": {"rib_iterations": 6, "rib_learning_rate": 3e-4, "rib_head_learning_rate": 3e-3},
}
SURE = float(np.log(9))  # the logit of a probability of 0.9
FIXED_THRESHOLD = 0.15  # IRN's and RIB's published background score


def classifier_of(config: Config, epochs: int, folder: Path) -> cam.ClassActivationNet:
    """Return CAM's classifier in evaluation mode, trained on for some epochs by CAM's recipe (0: as it is)."""
    weights = open_stage(cam.CLASSIFIER, config).weights
    device = training.seed_everything(config)
    data = open_data(config, config.train_split)
    net = build_classifier(config, data.num_classes, weights).to(device)
    if epochs:
        train_classifier(net, data, config.model_copy(update={"cam_epochs": epochs}), folder)
    return net.to(memory_format=torch.channels_last).eval()


@torch.inference_mode()
def sure_share(net: cam.ClassActivationNet, data: SegmentationDataset, config: Config) -> float:
    """Return which share of the present classes has a probability above 0.9, in 0..1."""
    sure = []
    for image_id in data.ids:
        (view,) = rib.frozen_features(net, data.image(image_id), [1.0], *normalization_of(config.backbone))
        logits = rib.evidence(net, view).mean((0, 2, 3)).cpu()
        sure += (logits[torch.from_numpy(data.label(image_id) > 0)] > SURE).tolist()
    return float(np.mean(sure))


def run(config: Config, images: int, epochs: int) -> dict:
    """Score all recipes on one classifier; return {recipe: row}, from an earlier run if there is one."""
    folder = run_folder_of(config) / "rib_ablations" / f"seed{config.seed}" / f"epochs{epochs}"
    classifier = open_stage(cam.CLASSIFIER, config)
    settings = {
        "images": images,
        "recipes": RECIPES,
        "classifier": classifier.files.results(),
        **config.parameters_of("cam_*", "rib_*"),
    }
    record = folder / "rows.json"
    if record.is_file() and (kept := files.read_json(record))["settings"] == settings:
        return kept["rows"]
    data = open_data(config, config.train_split)
    scored = open_data(config.model_copy(update={"limit": min(images, len(data))}), config.score_split)
    rows = {}
    with tempfile.TemporaryDirectory() as work:
        net = classifier_of(config, epochs, Path(work, "training"))
        share = sure_share(net, scored, config)
        for name, values in RECIPES.items():
            maps = Path(work, f"maps{len(rows)}")
            make_maps(rib.rib_localization(net, data, config.model_copy(update=values)), scored, config, maps)
            row = best_threshold_row(scored, maps)
            recall = mean_part_recall(scored, maps, row["threshold"])
            rows[name] = {
                "sure": share,
                "miou": row["miou"],
                "threshold": row["threshold"],
                "body": recall and recall["body"],
                "fixed": float(np.interp(FIXED_THRESHOLD, row["thresholds"], row["curve"])),
            }
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(record, {"settings": settings, "rows": rows})
    return rows


def main(arguments: list[str] | None = None) -> dict[int, list[dict]]:
    """Print one table and return its rows: epochs of further training to one {recipe: row} a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=200, help="scored images, the first ones of the split")
    parser.add_argument("--epochs", type=int, default=10, help="of further training of the second classifier")
    parser.add_argument("--preset", default="smoke", help="a file of configs/, with what the method sets otherwise")
    options = parser.parse_args(arguments)
    columns = ("sure %", "best mIoU %", "at", "gain", "at 0.15", "gain", "body recall")
    print(f"{'classifier':17} {'maps':14}", *(f"{title:>12}" for title in columns), "  best of each seed")
    table = {}
    for epochs in (0, options.epochs):
        table[epochs] = [run(preset_config(options.preset, "rib", seed=seed), options.images, epochs) for seed in options.seeds]
        for name in RECIPES:
            rows, plain = [found[name] for found in table[epochs]], [found["CAM"] for found in table[epochs]]
            bodies = [row["body"] for row in rows if row["body"] is not None]
            gains = [[row[key] - cam_row[key] for row, cam_row in zip(rows, plain, strict=True)] for key in ("miou", "fixed")]
            cells = (
                with_spread([100 * row["sure"] for row in rows]),
                with_spread([row["miou"] for row in rows]),
                with_spread([row["threshold"] for row in rows], 2),
                with_spread(gains[0]),
                with_spread([row["fixed"] for row in rows]),
                with_spread(gains[1]),
                with_spread(bodies, 2) if bodies else "-",
            )
            print(
                f"{f'{epochs} epochs longer' if epochs else 'as in notebook 10':17} {name:14}",
                *(f"{cell:>12}" for cell in cells),
                "  " + " / ".join(f"{row['miou']:.1f}" for row in rows),
                flush=True,
            )
    return table


if __name__ == "__main__":
    main()
