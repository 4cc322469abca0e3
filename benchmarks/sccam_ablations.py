"""SC-CAM round by round beside plain CAM, and beside a round without or with meaningless sub-categories; several seeds.

python benchmarks/sccam_ablations.py --seeds 0 1 2 [--images 600] [--controls NAME ...] [--preset smoke] [--out FILE.json]

Needs CAM's finished `classifier` and `maps` of each seed below `runs_root`; rounds that notebook 60 has not made yet are made.
The two controls are trained exactly as round 1: "no sub-categories" has lambda = 0, "dealt at random" gives every image of a
class a random one.
Every finished (seed, row) is stored at once, so an interrupted run goes on where it stopped.
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
from wsss_lib.core.stage import open_stage, run
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.methods import cam, sccam
from wsss_lib.ops.thresholds import near_best_range
from wsss_lib.parameters import project_path
from wsss_lib.presets import preset_config
from wsss_lib.results import with_spread

CONTROLS = ("no sub-categories", "dealt at random")
COLUMNS = {
    "miou": "best mIoU %",
    "threshold": "at",
    "low": "within 2 from",
    "high": "to",
    "head": "heads found",
    "body": "bodies found",
    "purity": "purity",
    "chance": "by chance",
    "beside": "of company",
    "beside_chance": "by chance",
}


def scored(data: SegmentationDataset, folder: Path) -> dict[str, float]:
    """Return the best mIoU of a folder of maps, its threshold, the range within two points, and the parts found at 0.3."""
    row = best_threshold_row(data, folder)
    low, high = near_best_range(row["thresholds"], row["curve"], within=2)
    return {
        "miou": row["miou"],
        "threshold": row["threshold"],
        "low": low,
        "high": high,
        **(mean_part_recall(data, folder, 0.3) or {}),
    }


def purities(data: SegmentationDataset, assignment: np.ndarray) -> dict[str, float]:
    """Return the purity of the sub-categories of the classes with known kinds: by kind, and by the classes beside it."""
    file = data.root / "subcategories.csv"
    kinds = sccam.read_subcategories(file) if file.is_file() else {}
    rng, rows = np.random.default_rng(0), []
    for number, name in enumerate(data.classes):
        members = [i for i in np.flatnonzero(data.labels[:, number]) if (data.ids[i], name) in kinds]
        if not members:
            continue
        clusters = assignment[members, number]
        row = {}
        for words, truth in (
            ("purity", [kinds[data.ids[i], name] for i in members]),
            ("beside", ["".join(map(str, data.labels[i])) for i in members]),
        ):
            row[words] = sccam.purity(clusters, truth)
            row["chance" if words == "purity" else "beside_chance"] = float(
                np.mean([sccam.purity(rng.permutation(clusters), truth) for _ in range(20)])
            )
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} if rows else {}


def maps_of(net: sccam.SubcategoryNet, data: SegmentationDataset, config: Config) -> dict[str, float]:
    """Make the maps of some images in a temporary folder and score them."""
    with tempfile.TemporaryDirectory() as folder:
        make_maps(sccam.sccam_localization(net, config), data, config, Path(folder))
        return scored(data, Path(folder))


def control(name: str, data: SegmentationDataset, assignment: np.ndarray, config: Config) -> sccam.SubcategoryNet:
    """Train one round as round 1, without the second loss or with sub-categories dealt at random."""
    if name == "dealt at random":
        dealt = np.random.default_rng(config.seed).integers(0, config.sccam_clusters, assignment.shape)
        assignment = np.where(assignment >= 0, dealt, -1)
    else:
        config = config.model_copy(update={"sccam_loss_weight": 0.0})
    torch.manual_seed(config.seed)
    net = sccam.build_sccam(config, data.num_classes)
    with tempfile.TemporaryDirectory() as folder:
        sccam.train_sccam(net, data, assignment, config, Path(folder), 1)
    return net


def made_rounds(config: Config) -> list[Path]:
    """Return the folders of all rounds, as notebook 60 makes them."""
    return [run(stage, config).folder for stage in sccam.rounds(config)]


def run_seed(config: Config, images: int, controls: list[str], rows: dict, out: Path) -> None:
    """Score the rounds and controls of one seed that `rows` does not hold yet."""
    device = training.seed_everything(config)
    data = open_data(config, config.train_split)
    some = open_data(config.model_copy(update={"limit": min(images or len(data), len(data))}), config.score_split)
    finished = rows.setdefault(str(config.seed), {})
    if "CAM" not in finished:
        finished["CAM"] = scored(some, open_stage(cam.MAPS, config).folder)
    folders = made_rounds(config)
    tables = [sccam.assignment_of(folder / "subcategories.csv", data, config.sccam_clusters) for folder in folders]
    for name, folder, table in zip([f"round {t + 1}" for t in range(len(folders))], folders, tables, strict=True):
        if name not in finished:
            net = sccam.build_sccam(config, data.num_classes, folder / "weights.safetensors").to(device)
            finished[name] = maps_of(net, some, config) | purities(data, table)
            files.write_json(out, rows)
    for name in controls:
        if name not in finished:
            finished[name] = maps_of(control(name, data, tables[0], config), some, config)
            files.write_json(out, rows)


def table(rows: dict) -> str:
    """Return a table of all rows: mean and sample spread over the seeds."""
    lines = [f"{'':20s}" + "".join(f"{title:>15s}" for title in COLUMNS.values()) + "   runs"]
    for name in dict.fromkeys(name for seed in rows.values() for name in seed):
        found = [seed[name] for seed in rows.values() if name in seed]
        cells = []
        for key in COLUMNS:
            values, digits = [row[key] for row in found if key in row], 1 if key == "miou" else 2
            cells.append(with_spread(values, digits) if values else "")
        lines.append(f"{name:20s}" + "".join(f"{cell:>15s}" for cell in cells) + f"{len(found):7d}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="of finished CAM and SC-CAM runs")
    parser.add_argument("--images", type=int, default=600, help="are scored, the first ones; 0: all")
    parser.add_argument("--controls", nargs="*", choices=CONTROLS, default=list(CONTROLS), metavar="NAME")
    parser.add_argument("--runs-root", default="runs")
    parser.add_argument("--out", default="runs/sccam_ablations.json", help="gets the numbers, holds those of an earlier run")
    options = parser.parse_args(arguments)
    if not options.seeds:
        print("This takes about three minutes of one core for each seed at smoke size; name them: --seeds 0 1 2")
        return {}
    out = project_path(options.out)
    rows = files.read_json(out) if out.is_file() else {}
    for seed in options.seeds:
        run_seed(
            preset_config(options.preset, "sccam", seed=seed, runs_root=options.runs_root),
            options.images,
            options.controls,
            rows,
            out,
        )
    files.write_json(out, rows)
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
