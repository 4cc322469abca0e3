"""What do refinements make of a method's tuned maps, and what does DeepLab make of its masks?

    python benchmarks/refinement_ablations.py cam rib amn --seeds 0          # no refinement, CRF, AffinityNet, IRN
    python benchmarks/refinement_ablations.py cam rib amn --seeds 0 --deeplab   # DeepLab on each method's masks after the CRF

The rules are those of docs/protocol.md. Maps are made with the values that the study has chosen (`--study`, written by
`python -m wsss_lib.tune METHOD --save`), at whose threshold t everything begins: IRN and AffinityNet learn from what is surer
than t + 0.15 or less sure than t - 0.15. What comes after, the exponent of the walk and a threshold or a strength of the
background, is chosen on the images that tune and scored on those that measure. Every row goes into `--save`; a command that was
stopped goes on.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from deeplab_ablations import learn_masks

from wsss_lib.config import Config
from wsss_lib.core.files import read_json, read_maps, write_json
from wsss_lib.core.progress import progress
from wsss_lib.core.scoring import full_size_maps, mask_at, score_masks
from wsss_lib.core.stage import run
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.methods import METHODS
from wsss_lib.ops.metrics import Evaluation, scores
from wsss_lib.ops.random_walk import propagate, random_walk, walk_scores
from wsss_lib.ops.thresholds import ThresholdSweep
from wsss_lib.presets import preset_config
from wsss_lib.refine import affinitynet, irn, seed_masks
from wsss_lib.refine.threshold_choice import MARGIN
from wsss_lib.tune import THRESHOLDS, run_with_inputs, split_of_tuning

IRN_BETAS = (5.0, 10.0, 20.0)  # published: 10
AFFINITYNET_BETAS = (8.0, 16.0, 32.0)  # published: 8
STRENGTHS = tuple(round(0.05 * step, 2) for step in range(2, 16))  # of the background in AffinityNet's walk, as thresholds

Parts = tuple[SegmentationDataset, SegmentationDataset]  # images that tune, images that measure


def alpha_of(threshold: float) -> float:
    """Return the exponent of AffinityNet's background (1 - s)^alpha that equals a class's score s at a threshold."""
    return math.log(threshold) / math.log(1 - threshold)


def tuned_config(method: str, study: dict, options: argparse.Namespace, seed: int) -> Config:
    """Return the configuration of a method's chain: the best trial's values, and all thresholds from its own."""
    if method == "truth":
        return preset_config(options.preset, method, seed=seed, limit=study["images"], runs_root=options.runs_root)
    best = max((trial for trial in study["trials"] if trial["score"]), key=lambda trial: trial["score"])
    threshold = float(best["threshold"])
    after_crf = next(row["crf_threshold"] for row in study["measured"] if row["values"] == best["values"])
    return preset_config(
        options.preset,
        method,
        seed=seed,
        limit=study["images"],
        runs_root=options.runs_root,
        **best["values"],
        seed_threshold=after_crf,
        seed_foreground_threshold=threshold + MARGIN,
        seed_background_threshold=threshold - MARGIN,
        affinitynet_alpha_low=alpha_of(threshold + MARGIN),
        affinitynet_alpha_high=alpha_of(threshold - MARGIN),
        walk_threshold=threshold,
        affinity_walk_alpha=alpha_of(threshold),
        pixel_labels_chose="thresholds and parameters, on 100 of the training images",
    )


def percent(data: SegmentationDataset, masks: Path | Callable[[str], np.ndarray]) -> float:
    """Return the mIoU of some masks."""
    return round(100 * score_masks(data, masks).scores().miou, 2)


def without(config: Config, parts: Parts) -> dict[str, float]:
    """Score the maps at the threshold of the study."""
    maps = run(METHODS[config.method].MAPS, config).folder
    tuning, measuring = (percent(part, mask_at(maps, config.walk_threshold)) for part in parts)
    return {"chosen": config.walk_threshold, "tuning": tuning, "measured": measuring}


def with_crf(config: Config, parts: Parts) -> dict[str, float]:
    """Score the seed masks after the CRF, at the threshold that the study has chosen for it."""
    folder = run(seed_masks.SEEDS, config).folder / "seed_masks"
    return {"chosen": config.seed_threshold, "tuning": percent(parts[0], folder), "measured": percent(parts[1], folder)}


def with_irn(config: Config, parts: Parts) -> dict[str, float]:
    """Train IRN, walk along its boundaries, and choose the walk's exponent and the threshold behind it."""
    run_with_inputs(irn.NETWORK, config)
    net, maps = run(irn.NETWORK, config).net, run(METHODS[config.method].MAPS, config).folder

    def swept(data: SegmentationDataset, betas: Sequence[float]) -> list[ThresholdSweep]:
        sweeps = [ThresholdSweep(data.num_classes + 1, THRESHOLDS) for _ in betas]
        for image_id in progress(data.ids, "walk"):
            classes, small, size = read_maps(maps / f"{image_id}.npz")
            edge = irn.boundary_map(net, data.image(image_id), config)  # the cost: one for all exponents
            start = edge.new_tensor(small) ** config.walk_power
            for sweep, beta in zip(sweeps, betas, strict=True):
                walk = propagate(start, edge, config.walk_radius, beta, config.walk_log2_steps)
                sweep.add(data.mask(image_id), walk_scores(walk, size).numpy(), classes)
        return sweeps

    tried = {beta: sweep.best() for beta, sweep in zip(IRN_BETAS, swept(parts[0], IRN_BETAS), strict=True)}
    beta = max(tried, key=lambda beta: tried[beta][1])
    threshold, tuning = tried[beta]
    at = int(np.abs(THRESHOLDS - threshold).argmin())
    measured = scores(swept(parts[1], [beta])[0].confusions()[at]).miou
    return {
        "beta": beta,
        "chosen": round(threshold, 2),
        "tuning": round(100 * tuning, 2),
        "measured": round(100 * measured, 2),
    }


def with_affinitynet(config: Config, parts: Parts) -> dict[str, float]:
    """Train AffinityNet, walk, and choose the walk's exponent and the strength of the background, as a threshold."""
    run_with_inputs(affinitynet.NETWORK, config)
    net, folder = run(affinitynet.NETWORK, config).net, run(METHODS[config.method].MAPS, config).folder

    def scored(data: SegmentationDataset, beta: float, thresholds: Sequence[float]) -> list[float]:
        evaluations = [Evaluation(data.num_classes + 1) for _ in thresholds]
        for image_id in progress(data.ids, "walk"):
            image, (classes, maps) = data.image(image_id), full_size_maps(folder, image_id)
            features = affinitynet.grid_features(net, image, config)
            graph = affinitynet.feature_graph(features, config.affinitynet_radius, beta)
            for evaluation, threshold in zip(evaluations, thresholds, strict=True):
                start = affinitynet.pooled_scores(torch.from_numpy(maps), alpha_of(threshold), net.stride)
                walk = random_walk(graph, start, config.affinity_walk_log2_steps)
                mask = affinitynet.walk_mask(walk, classes, image.size[::-1], net.stride)
                evaluation.add(data.mask(image_id), mask.numpy())
        return [round(100 * evaluation.scores().miou, 2) for evaluation in evaluations]

    tried = {
        (beta, threshold): score
        for beta in AFFINITYNET_BETAS
        for threshold, score in zip(STRENGTHS, scored(parts[0], beta, STRENGTHS), strict=True)
    }
    beta, threshold = max(tried, key=lambda pair: tried[pair])
    measured = scored(parts[1], beta, [threshold])[0]
    return {"beta": beta, "chosen": threshold, "tuning": tried[beta, threshold], "measured": measured}


def with_deeplab(config: Config, work: Path) -> dict[str, float]:
    """Let DeepLab learn the masks after the CRF, or the true ones, and score it on the validation images."""
    data, validation = open_data(config, config.train_split), open_data(config, config.val_split)
    masks = data.root / data.mask_folder
    if config.method != "truth":
        run_with_inputs(seed_masks.SEEDS, config)
        masks = run(seed_masks.SEEDS, config).folder / "seed_masks"
    plain, refined, minutes = learn_masks(config, data, masks, validation, work / f"{config.method}.seed{config.seed}")
    return {"val": plain, "val_crf": refined, "processor_minutes": minutes}


REFINEMENTS = {"none": without, "crf": with_crf, "affinitynet": with_affinitynet, "irn": with_irn}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", choices=[*METHODS, "truth"], help="truth: the ground truth of the same images")
    parser.add_argument("--preset", default="voc12-animals")
    parser.add_argument("--study", type=Path, default=Path("docs/studies/voc12-animals.json"))
    parser.add_argument("--save", type=Path, default=Path("docs/studies/voc12-animals-refined.json"), help="where rows go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--measured", type=int, default=300, help="images that measure")
    parser.add_argument("--deeplab", action="store_true", help="train DeepLab in place of comparing refinements")
    parser.add_argument("--runs-root", default="runs")
    parser.add_argument(
        "--work", type=Path, default=Path("build/refinement_ablations"), help="folder for the networks of DeepLab"
    )
    options = parser.parse_args()
    studies = read_json(options.study)
    for seed in options.seeds:
        for method in options.methods:
            config = tuned_config(method, studies[method if method != "truth" else "cam"], options, seed)
            if method != "truth":
                run_with_inputs(METHODS[method].MAPS, config)
            elif not options.deeplab:
                parser.error("the ground truth needs no refinement: give --deeplab")
            parts = split_of_tuning(open_data(config, config.train_split), measured=options.measured)
            todo = {"deeplab": None} if options.deeplab else REFINEMENTS
            for name, refine in todo.items():
                rows = read_json(options.save) if options.save.is_file() else []
                if any((row["method"], row["seed"], row["refinement"]) == (method, seed, name) for row in rows):
                    continue
                row = refine(config, parts) if refine else with_deeplab(config, options.work)
                row = {"method": method, "seed": seed, "refinement": name} | row
                rows = read_json(options.save) if options.save.is_file() else []  # another command may have written meanwhile
                write_json(options.save, [*rows, row])
                print(row, flush=True)


if __name__ == "__main__":
    main()
