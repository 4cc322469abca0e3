"""AMN with one part changed at a time, on the whole set, with several seeds: what does each part give?

python benchmarks/amn_ablations.py --seeds 0 1 2 [--preset smoke] [--out runs/amn_ablations.json]

Needs CAM's finished `classifier` and `maps` of each seed below `runs_root`; the refined seeds are made if notebook 40 has not
made them. Every finished (seed, variant) is stored at once, so an interrupted run goes on where it stopped.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from wsss_lib.config import Config
from wsss_lib.core import files
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import sweep_maps
from wsss_lib.core.stage import folder_of, open_stage
from wsss_lib.data.dataset import open_data
from wsss_lib.experiments.amn_ablations import VARIANTS, train_variant, variant_localization, variant_seeds
from wsss_lib.methods import amn, cam
from wsss_lib.ops.thresholds import ImageThresholds
from wsss_lib.parameters import project_path
from wsss_lib.presets import preset_config
from wsss_lib.results import with_spread

THRESHOLDS = np.linspace(0.01, 0.99, 99)
PUBLISHED_THRESHOLD = 0.25  # AMN's, chosen without a pixel label of ours


def scored(data, folder: Path) -> dict[str, float]:
    """Return the summary of a folder of maps, and its mIoU at the published threshold."""
    sweep = sweep_maps(data, folder, THRESHOLDS, ImageThresholds)
    return sweep.summary() | {"at_published": round(100 * float(np.interp(PUBLISHED_THRESHOLD, THRESHOLDS, sweep.curve())), 2)}


def run_seed(config: Config, names: list[str], rows: dict, out: Path) -> None:
    """Train and score the variants of one seed that `rows` does not hold yet."""
    data, score_data = (open_data(config, split) for split in (config.train_split, config.score_split))
    classifier = open_stage(cam.CLASSIFIER, config).weights
    cam_maps = open_stage(cam.MAPS, config).folder
    finished = rows.setdefault(str(config.seed), {})
    if "CAM" not in finished:
        finished["CAM"] = scored(score_data, cam_maps)
    work, trained = Path(tempfile.mkdtemp()), {}
    seed_folder = folder_of(amn.REFINED_SEEDS, config)
    if not (seed_folder / "run.json").is_file():
        seed_folder = work / "seeds"
        amn.make_refined_seeds(data, cam_maps, config, seed_folder)
    for name in names:
        if name in finished:
            continue
        start, variant, folder = time.time(), VARIANTS[name], work / name.replace(" ", "_")
        key = variant.training_key()
        learned = variant_seeds(variant, (data, score_data), seed_folder, cam_maps, config, work / "seeds_without_crf")
        if key not in trained:  # variants of the maps alone share one network
            trained = {key: train_variant(variant, data, learned, classifier, config, folder)}
        localize = variant_localization(variant, trained[key], score_data, learned, config)
        make_maps(localize, score_data, config, folder / "maps")
        finished[name] = scored(score_data, folder / "maps") | {"seconds": round(time.time() - start, 1)}
        files.write_json(out, rows)
        shutil.rmtree(folder)
    shutil.rmtree(work)


def table(rows: dict) -> str:
    """Return a table of all variants: mean and spread over the seeds."""
    columns = {
        "best": "best mIoU %",
        "threshold": "at",
        "at_published": f"at {PUBLISHED_THRESHOLD}",
        "width": "range",
        "image_spread": "own thr. sd",
        "upper_bound": "own thr. %",
        "image_loss": "loss",
    }
    lines = [f"{'':34s}" + "".join(f"{title:>15s}" for title in columns.values()) + "   runs"]
    names = ["CAM", *VARIANTS]
    for name in names:
        found = [seed[name] | {"width": seed[name]["high"] - seed[name]["low"]} for seed in rows.values() if name in seed]
        if found:
            cells = []
            for key in columns:
                values = [row[key] for row in found]
                digits = 1 if max(values) > 1 else 2
                cells.append(with_spread(values, digits))
            lines.append(f"{name:34s}" + "".join(f"{cell:>15s}" for cell in cells) + f"{len(found):7d}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="of finished CAM runs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--limit", type=int, default=0, help="only the first images; 0: all")
    parser.add_argument("--runs-root", default="runs")
    parser.add_argument("--out", default="runs/amn_ablations.json", help="gets the numbers, and holds those of an earlier run")
    options = parser.parse_args(arguments)
    if not options.seeds:
        print("This takes about ten minutes of one core for each seed at smoke size; name them: --seeds 0 1 2")
        return {}
    out = project_path(options.out)
    rows = files.read_json(out) if out.is_file() else {}
    for seed in options.seeds:
        config = preset_config(options.preset, "amn", seed=seed, runs_root=options.runs_root, limit=options.limit)
        run_seed(config, options.variants, rows, out)
    files.write_json(out, rows)
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
