"""Pseudo-labels with saliency by the published rules, of plain CAM and of DRS before and after refinement, over alpha.

python benchmarks/drs_ablations.py [--preset smoke] [--seeds 0 1 2] [--images 0]

Needs CAM's finished `maps` and DRS's finished `localization` and `maps` of each seed (notebooks 10 and 30) below `runs_root`.
"""

import argparse
from pathlib import Path

from wsss_lib.core.scoring import full_size_maps
from wsss_lib.core.stage import open_stage
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.data.saliency import read_saliency
from wsss_lib.methods import cam, drs
from wsss_lib.ops.metrics import Evaluation
from wsss_lib.presets import preset_config
from wsss_lib.results import markdown_table

ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
MAPS = {"plain CAM": cam.MAPS, "DRS before refinement": drs.LOCALIZATION, "DRS after refinement": drs.MAPS}


def label_scores(data: SegmentationDataset, maps_folder: Path, saliency_folder: Path) -> list[float]:
    """Return the mIoU in percent of the decided pixels of all pseudo-labels for each of ALPHAS.

    Args:
        data: with ground truth.
        maps_folder: one file of maps an image.
        saliency_folder: one gray PNG an image.
    """
    evaluations = [Evaluation(data.num_classes + 1) for _ in ALPHAS]
    for image_id in data.ids:
        classes, scores = full_size_maps(maps_folder, image_id)
        truth, saliency = data.mask(image_id), read_saliency(saliency_folder / f"{image_id}.png", scores.shape[1:][::-1])
        for alpha, evaluation in zip(ALPHAS, evaluations, strict=True):
            evaluation.add(truth, drs.pseudo_label(scores, classes, saliency, alpha).decided)
    return [100 * evaluation.scores().miou for evaluation in evaluations]


def main() -> None:
    """Print one line for each kind of maps and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=0, help="only the first; 0: all")
    given = parser.parse_args()
    lines = []
    for name, stage in MAPS.items():
        for seed in given.seeds:
            config = preset_config(given.preset, "drs", seed=seed, limit=given.images)
            data = open_data(config, config.score_split)
            maps = open_stage(stage, config)
            values = label_scores(data, maps.folder, data.root / config.drs_saliency_folder)
            lines.append([name, str(seed), str(len(data)), *(f"{value:.1f}" for value in values)])
    print(markdown_table(["maps", "seed", "images", *(f"alpha {alpha}" for alpha in ALPHAS)], lines))


if __name__ == "__main__":
    main()
