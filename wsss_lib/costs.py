"""What a full reproduction costs before it is started, and what a finished run has cost.

`python -m wsss_lib.costs voc12`, `python -m wsss_lib.costs runs/toy`; docs/costs.md explains the assumptions.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch

from wsss_lib import pipeline
from wsss_lib.comparison import COMPARISON, OVERVIEW
from wsss_lib.config import Config
from wsss_lib.core.check import CHECK
from wsss_lib.core.counting import CRF_SECONDS, PEAK, PEAK_FLOAT32, SUSTAINED, Cost, Images
from wsss_lib.core.store import finished_stages
from wsss_lib.methods import METHODS
from wsss_lib.presets import preset_config
from wsss_lib.refine import affinitynet, irn
from wsss_lib.results import markdown_table
from wsss_lib.segment import deeplab

DATA = {"voc12": Images(10_582, 1_449, 20, (375, 500)), "coco14": Images(82_081, 40_137, 80, (480, 640))}


def stage_costs(preset: str, method: str) -> list[Cost]:
    """Return the costs of a method's own notebooks in order: its network and maps, seed masks, masks, DeepLab.

    Args:
        preset: "voc12" or "coco14".
        method: the name of a method, or "truth": DeepLab alone.

    Raises:
        ValueError: there is no such method.
    """
    data = DATA[preset]
    if method not in (*METHODS, "truth"):
        raise ValueError(f"there is no method {method!r}; take one of {', '.join(METHODS)}")
    config = _without_weights(preset_config(preset, method))
    with torch.device("meta"):
        costs = deeplab.costs(config, data)
        if method != "truth":
            made_by = getattr(METHODS[method], "costs", None)
            own = made_by(config, data) if made_by else [Cost("maps (not counted)", disk_mib=data.maps_mib)]
            costs = own + _mask_costs(config, data) + costs
    return costs


def _without_weights(config: Config) -> Config:
    """Return a configuration whose networks start at random: their shapes count, not their values."""
    start = {name: "backbone" for name in type(config).model_fields if name.endswith("_init")}
    return config.model_copy(
        update=start | {"deeplab_init": "none", "backbone_weights": "none", "drs_backbone_weights": "none"}
    )


def _mask_costs(config: Config, data: Images) -> list[Cost]:
    """Seed masks, and the masks of IRN or AffinityNet; none if a method makes its own."""
    refinement = {module.MASKS: module for module in (irn, affinitynet)}.get(deeplab.masks_of(config))
    if refinement is None:
        return []
    seeds = Cost("seeds", core_seconds=data.train * data.crf_seconds(3), disk_mib=2 * data.masks_mib)
    return [seeds, *refinement.costs(config, data)]


def jobs(preset: str, methods: list[str], seeds: list[int]) -> Counter:
    """Return how often each notebook runs, by (notebook, method): the graph of the Snakefile."""
    count = Counter({(CHECK.notebook, "data"): 1, (OVERVIEW.notebook, methods[0]): 1, (COMPARISON.notebook, methods[0]): 1})
    for method in dict.fromkeys(["cam", *methods, "truth"]):
        stages = pipeline.stages_of(preset_config(preset, method))
        names = [stage.notebook for stage in stages]
        if method == "cam" and "cam" not in methods:
            names = [stage.notebook for stage in METHODS["cam"].STAGES]
        count.update({(name, method): len(seeds) for name in dict.fromkeys(names)})
    return count


def table(preset: str, methods: list[str], seeds: list[int]) -> str:
    """Return the graph of a reproduction as a Markdown table, with the costs of each stage for one seed, and the totals.

    Args:
        preset: "voc12" or "coco14".
        methods: short names; what they need from CAM, and DeepLab on the ground truth, is added.
    """
    needed = list(dict.fromkeys(["cam", *methods, "truth"]))
    lines, hours, cores, disk = [], 0.0, 0.0, 0.0
    for method in needed:
        costs = stage_costs(preset, method)
        if method == "cam" and "cam" not in methods:
            costs = costs[:2]  # the others need its classifier and maps only
        for cost in costs:
            numbers = (
                cost.flops / 1e15,
                cost.gpu_hours(),
                cost.core_seconds / 3600,
                cost.gpu_bytes / 2**30,
                cost.disk_mib / 1024,
            )
            lines.append([method, cost.stage, *map(_cell, numbers)])
        hours += sum(cost.gpu_hours() for cost in costs)
        cores += sum(cost.core_seconds for cost in costs) / 3600
        disk += sum(cost.disk_mib for cost in costs) / 1024
    for words, n in (("one seed", 1), (f"{len(seeds)} seeds", len(seeds))):
        lines.append(["all", words, "", f"{n * hours:.0f}", f"{n * cores:.0f}", "", f"{n * disk:.1f}"])
    data, runs = DATA[preset], jobs(preset, methods, seeds).total()
    head = (
        f"{preset}: {data.train:,} training and {data.val:,} validation images; {len(methods)} methods, "
        f"{len(seeds)} seeds: {runs} notebooks.\n"
        f"Hours are counted operations at {100 * SUSTAINED:.0f} % of an A100's {PEAK / 1e12:.0f} TFLOP/s in float16, or "
        f"{PEAK_FLOAT32 / 1e12:.0f} in float32 (TF32), an assumption; core hours come from {CRF_SECONDS:g} s for a CRF.\n\n"
    )
    return head + markdown_table(["method", "stage", "PFLOP", "GPU hours", "core hours", "GPU memory, GiB", "disk, GiB"], lines)


def measured(run_folder: Path) -> str:
    """Return what the finished stages of a run have cost, from their records, as a Markdown table.

    Raises:
        FileNotFoundError: no stage has finished there.
    """
    lines = []
    for (method, seed), group in finished_stages(run_folder).items():
        for name, stage in group.items():
            record = stage.record()
            disk = sum(file.stat().st_size for file in stage.folder.rglob("*") if file.is_file()) / 2**20
            lines.append(
                [
                    method,
                    str(seed),
                    name,
                    f"{record['seconds']:.0f}",
                    str(record["images_per_second"] or ""),
                    str(record["peak_memory_mib"]),
                    f"{disk:.1f}",
                    record["device"],
                ]
            )
    if not lines:
        raise FileNotFoundError(f"{run_folder}: no finished stage; run the pipeline first, or name voc12 or coco14")
    head = ["method", "seed", "stage", "seconds", "images a second", "peak memory, MiB", "disk, MiB", "device"]
    return markdown_table(head, lines)


def _cell(value: float) -> str:
    return "" if value == 0 else "≤0.1" if value < 0.05 else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m wsss_lib.costs", description=__doc__.splitlines()[0])
    parser.add_argument("what", metavar="PRESET or FOLDER", help="voc12, coco14: estimate; runs/<dataset>: what was measured")
    parser.add_argument(
        "--methods", nargs="+", default=[name for name in METHODS if name != "cam"], choices=list(METHODS), metavar="NAME"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    options = parser.parse_args(arguments)
    try:
        print(table(options.what, options.methods, options.seeds) if options.what in DATA else measured(Path(options.what)))
    except FileNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
