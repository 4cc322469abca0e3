"""What a full reproduction costs before it is started, and what a finished run has cost.

python -m wsss_lib.costs voc12 [--methods rib drs amn vwe sccam] [--seeds 0 1 2]
python -m wsss_lib.costs runs/toy

The first estimates GPU hours, memory and disk of every stage, the second reads the records of finished stages. To estimate,
the networks of the preset are built without memory (torch's "meta" device), one training step and one image of the usual size
run through each, and PyTorch's own counter counts multiplications and additions. Hours follow from one assumption, named in
the output; hours of CPU cores, for the CRF and the like, from measured seconds per image. Nothing is measured on a GPU.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wsss_lib.config import MASKS_OF, Config
from wsss_lib.core.store import finished_stages
from wsss_lib.methods import amn, drs, rib, sccam, vwe
from wsss_lib.methods.cam import build_classifier
from wsss_lib.nets.deeplab_v2 import multi_scale_logits
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config
from wsss_lib.refine import affinitynet
from wsss_lib.refine.irn import build_irn
from wsss_lib.results import markdown_table
from wsss_lib.segment.deeplab import build_deeplab

METHODS = ("rib", "drs", "amn", "vwe", "sccam")
PEAK, SHARE = 312e12, 0.30  # float16 matrix peak of an A100, and the share of it that is assumed to be sustained
CRF_SECONDS = 1.0  # of one core, for ten steps over three labels of 500x375 pixels; other sizes in proportion
CRF_SHARED = 1 / 3  # of them, which are spent once on a photograph, however many of its label maps are refined together
WALK_SECONDS = 0.1  # of one core, for one image of that size
MAPS_KIB, MASK_KIB = 40, 6  # on disk, an image of that size


@dataclass(frozen=True)
class Images:
    """Numbers of images and the usual size (H, W) of a data set."""

    train: int
    val: int
    classes: int
    size: tuple[int, int]


DATA = {"voc12": Images(10_582, 1_449, 20, (375, 500)), "coco14": Images(82_081, 40_137, 80, (480, 640))}


@dataclass(frozen=True)
class Cost:
    """Of one stage of one seed: operations on the GPU, seconds of CPU cores, bytes on the GPU, MiB on disk.

    Memory is that of weights, gradients, momentum and of what backpropagation keeps, in half precision where training runs so;
    the allocator and the libraries take more.
    """

    stage: str
    flops: float = 0.0
    core_seconds: float = 0.0
    gpu_bytes: float = 0.0
    disk_mib: float = 0.0

    def gpu_hours(self) -> float:
        """Return the hours on one GPU at the assumed speed."""
        return self.flops / (PEAK * SHARE) / 3600


def training_cost(stage: str, net: torch.nn.Module, run: Callable[[int], list[Tensor]], images: float, at_once: int) -> Cost:
    """Return the cost of a training, from one forward and backward pass of two images.

    Args:
        stage: its name.
        net: on the meta device, in training mode.
        run: number of images to the outputs of the network.
        images: seen in the whole training.
        at_once: images on the device.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    net.train()
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sum(output.sum() for output in run(2)).backward()  # two: a batch normalisation may see one value an image
    weights = sum(parameter.numel() for parameter in net.parameters()) * 4
    return Cost(stage, counter.get_total_flops() / 2 * images, gpu_bytes=sum(kept.values()) / 2 / 2 * at_once + 3 * weights,
                disk_mib=weights / 2**20)


def inference_flops(run: Callable[[Tensor], object], size: tuple[int, int], scales: tuple[float, ...], views: int = 2) -> float:
    """Return the operations of one image at several scales; they grow with the pixels.

    Args:
        run: the network, on the meta device and in evaluation mode.
        size: (H, W) of the image.
        scales: factors on both sides.
        views: 2 with the mirror image.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(torch.empty(views, 3, *size, device="meta"))
    return counter.get_total_flops() * sum(scale**2 for scale in scales)


def stage_costs(preset: str, method: str) -> list[Cost]:
    """Return the costs of a method's own notebooks in order: its network and maps, seeds, masks, DeepLab.

    Args:
        preset: "voc12" or "coco14".
        method: "cam", "truth" (DeepLab alone), or another method.
    """
    data = DATA[preset]
    config = preset_config(preset, method if method != "truth" else "cam")
    # Networks without weights: their shapes count, not their values.
    plain = config.model_copy(update=dict.fromkeys(("backbone_weights", "deeplab_init", "drs_backbone_weights"), "none")
                              | dict.fromkeys(("amn_init", "vwe_init", "irn_init", "affinitynet_init"), "backbone"))
    pixels = data.size[0] * data.size[1] / (375 * 500)
    maps_mib, masks_mib = (data.train * kib * pixels / 1024 for kib in (MAPS_KIB, MASK_KIB))
    crf = CRF_SECONDS * pixels
    with torch.device("meta"):
        costs = _deeplab_costs(plain, data, crf, masks_mib)
        if method != "truth":
            own = _method_costs(method, plain, data, crf, maps_mib, masks_mib)
            costs = own + _mask_costs(plain, data, crf, pixels, masks_mib) + costs
    return costs


def _passes(config: Config, data: Images, epochs: int, batch: int) -> int:
    return epochs * (data.train // batch) * batch


def _crops(side: int) -> Callable[[int], Tensor]:
    return lambda count: torch.empty(count, 3, side, side, device="meta")


def _method_costs(method: str, config: Config, data: Images, crf: float, maps_mib: float, masks_mib: float) -> list[Cost]:
    """Network and maps: what the method's notebook does."""
    if method == "cam":
        net = build_classifier(config, data.classes)
        crops = _crops(config.cam_crop)
        first = training_cost("classifier", net, lambda n: [net(crops(n))],
                              _passes(config, data, config.cam_epochs, config.cam_batch_size), config.cam_batch_size)
        return [first, Cost("maps", data.train * inference_flops(net.eval().activation_maps, data.size, config.cam_scales),
                            disk_mib=maps_mib)]
    if method == "rib":
        return [Cost("maps", data.train * rib_flops(config, data.classes, data.size)[1], disk_mib=maps_mib)]
    if method == "drs":
        costs, crops = [], _crops(config.drs_crop)
        for stage, maps, build, epochs in (
                ("network", "localization", drs.build_drs, config.drs_epochs),
                ("refinement", "maps", drs.build_refinement, config.drs_refine_epochs)):
            net = build(config, data.classes)
            costs.append(training_cost(stage, net, lambda n, net=net: [net(crops(n))],
                                       _passes(config, data, epochs, config.drs_batch_size), config.drs_batch_size))
            forward = inference_flops(net.eval(), (config.drs_crop, config.drs_crop), (1.0,), views=1)
            costs.append(Cost(maps, data.train * forward, disk_mib=maps_mib))
        return [*costs, Cost("drs_masks", core_seconds=data.train * crf, disk_mib=masks_mib)]
    if method == "amn":
        net, crops, labels = amn.build_amn(config, data.classes, ""), _crops(config.irn_crop), torch.empty
        seeds = Cost("refined_seeds", core_seconds=data.train * _crfs(2, crf), disk_mib=masks_mib)
        network = training_cost("network", net, lambda n: [net(crops(n), labels(n, data.classes, device="meta"))],
                                _passes(config, data, config.amn_epochs, config.cam_batch_size), config.cam_batch_size)
        net.eval()
        forward = inference_flops(lambda views: net(views, labels(len(views), data.classes, device="meta")), data.size,
                                  config.cam_scales)
        return [seeds, network, Cost("maps", data.train * forward, disk_mib=maps_mib)]
    if method == "vwe":
        net, crops = vwe.build_vwe(config, data.classes, ""), _crops(config.cam_crop)
        network = training_cost("network", net, lambda n: [net(crops(n))],
                                _passes(config, data, config.vwe_epochs, config.cam_batch_size), config.cam_batch_size)
        forward = inference_flops(net.eval(), data.size, config.cam_scales)
        return [network, Cost("maps", data.train * forward, disk_mib=maps_mib)]
    net, crops, rounds = sccam.build_sccam(config, data.classes), _crops(config.cam_crop), []
    for number, epochs in enumerate(config.sccam_round_epochs, start=1):
        rounds.append(training_cost(f"round{number}", net, lambda n: list(net(crops(n))),
                                    _passes(config, data, epochs, config.cam_batch_size), config.cam_batch_size))
    forward = inference_flops(net.eval().activation_maps, data.size, config.cam_scales)
    return [*rounds, Cost("maps", data.train * forward, disk_mib=maps_mib)]


def rib_flops(config: Config, num_classes: int, size: tuple[int, int]) -> tuple[float, float]:
    """Return the operations of RIB's steps on one image, in the plain formulation and in ours.

    Plain runs the whole network in every step. Ours runs its frozen stages once for all steps, and the last step, whose update
    nobody uses, without its backward pass.

    Args:
        config: `rib_*`, the backbone and `cam_scales`, without weights.
        num_classes: foreground classes.
        size: (H, W) of the image.

    Explained in notebook 20, section "The idea in ten lines".
    """
    with torch.device("meta"):
        net = build_classifier(config, num_classes).eval()

    def count(images: int, height: int, width: int) -> tuple[float, float, float]:
        """Return the operations of the frozen stages, of the others forward, and of the others backward."""
        batch, numbers = torch.empty(images, 3, height, width, device="meta"), []
        with FlopCounterMode(display=False) as counter:
            features = net.backbone.shallow(batch, rib.FROZEN_STAGES).detach()
            numbers.append(counter.get_total_flops())
            raw = rib.evidence(net, features)
            numbers.append(counter.get_total_flops())
            raw.sum().backward()
            numbers.append(counter.get_total_flops())
        return numbers[0], numbers[1] - numbers[0], numbers[2] - numbers[1]

    steps = config.rib_iterations
    frozen, forward, backward = count(config.rib_companions, config.cam_crop, config.cam_crop)
    plain, ours = steps * (frozen + forward + backward), (steps - 1) * (forward + backward)
    for scale in config.cam_scales:
        frozen, forward, backward = count(2, *(round(side * scale) for side in size))
        backward = backward if scale > 0.5 else 0.0
        plain += steps * (frozen + forward + backward)
        ours += frozen + steps * forward + (steps - 1) * backward
    return plain, ours


def _crfs(count: int, crf: float) -> float:
    """Return the seconds of the CRFs of several label maps of one photograph."""
    return crf * (CRF_SHARED + count * (1 - CRF_SHARED))


def _mask_costs(config: Config, data: Images, crf: float, pixels: float, masks_mib: float) -> list[Cost]:
    """Seeds, and the masks of IRN or AffinityNet (none where DRS makes its own)."""
    if config.refinement == "drs":
        return []
    costs = [Cost("seeds", core_seconds=data.train * _crfs(3, crf), disk_mib=2 * masks_mib)]
    walk = data.train * WALK_SECONDS * pixels
    if config.refinement == "irn":
        net, crops = build_irn(config, ""), _crops(config.irn_crop)
        costs.append(training_cost("irn", net, lambda n: list(net(crops(n))),
                                   _passes(config, data, config.irn_epochs, config.irn_batch_size), config.irn_batch_size))
        net.eval()
        side = (max(data.size[0], config.walk_pad_to), max(data.size[1], config.walk_pad_to))
        costs.append(Cost("pseudo_masks", data.train * inference_flops(net, side, (1.0,)), walk, disk_mib=masks_mib))
    else:
        net, crops = affinitynet.build_affinitynet(config, ""), _crops(config.affinitynet_crop)
        costs.append(training_cost("affinitynet", net, lambda n: [net(crops(n))],
                                   _passes(config, data, config.affinitynet_epochs, config.affinitynet_batch_size),
                                   config.affinitynet_batch_size))
        forward = inference_flops(net.eval(), data.size, (1.0,), views=1)
        costs.append(Cost("affinitynet_masks", data.train * forward, walk, disk_mib=masks_mib))
    return costs


def _deeplab_costs(config: Config, data: Images, crf: float, masks_mib: float) -> list[Cost]:
    net = build_deeplab(config, data.classes, "")
    crops, scales = _crops(config.deeplab_crop), config.deeplab_test_scales
    training = training_cost("deeplab", net, lambda n: multi_scale_logits(net, crops(n), scales),
                             config.deeplab_iterations * config.deeplab_batch_size, config.deeplab_batch_size)
    net.eval()
    forward = inference_flops(lambda image: multi_scale_logits(net, image, scales), data.size, (1.0,), views=1)
    core_seconds = 2 * data.val * crf  # twice the labels of a seed: what the network holds possible in an image
    return [training, Cost("predictions", data.val * forward, core_seconds, disk_mib=2 * masks_mib * data.val / data.train)]


def jobs(preset: str, methods: list[str], seeds: list[int]) -> Counter:
    """Return how often each notebook runs, by (notebook, method): the graph of the Snakefile.

    Args:
        preset: of `configs/`.
        methods: short names; what "cam" and "truth" need is added.
        seeds: each runs everything.
    """
    notebooks = {path.stem.split("_", 1)[1]: path.stem for path in (PROJECT_ROOT / "notebooks").glob("[2-6]*_*.ipynb")}
    count = Counter({("02_datasets_and_labels", "data"): 1, ("00_start_here", methods[0]): 1, ("95_comparison", methods[0]): 1})
    for _ in seeds:
        count["10_cam", "cam"] += 1
        count["90_deeplab", "truth"] += 1
        for method in methods:
            if method != "cam":
                count[notebooks[method], method] += 1
            stage, notebook = MASKS_OF[preset_config(preset, method).refinement]
            if stage != "drs_masks":
                count["70_seeds", method] += 1
                count[notebook, method] += 1
            count["90_deeplab", method] += 1
    return count


def table(preset: str, methods: list[str], seeds: list[int]) -> str:
    """Return the graph of a reproduction as a Markdown table, with the costs of each stage for one seed, and the totals.

    Args:
        preset: "voc12" or "coco14".
        methods: short names; what they need of CAM, and DeepLab on the true masks, is added.
        seeds: of the runs.
    """
    needed = list(dict.fromkeys(["cam", *methods, "truth"]))
    lines, hours, cores, disk = [], 0.0, 0.0, 0.0
    for method in needed:
        costs = stage_costs(preset, method)
        if method == "cam" and "cam" not in methods:
            costs = costs[:2]  # the others need its classifier and maps only
        for cost in costs:
            numbers = (cost.flops / 1e15, cost.gpu_hours(), cost.core_seconds / 3600, cost.gpu_bytes / 2**30,
                       cost.disk_mib / 1024)
            lines.append([method, cost.stage, *map(_cell, numbers)])
        hours += sum(cost.gpu_hours() for cost in costs)
        cores += sum(cost.core_seconds for cost in costs) / 3600
        disk += sum(cost.disk_mib for cost in costs) / 1024
    for words, n in (("one seed", 1), (f"{len(seeds)} seeds", len(seeds))):
        lines.append(["all", words, "", f"{n * hours:.0f}", f"{n * cores:.0f}", "", f"{n * disk:.1f}"])
    data, runs = DATA[preset], jobs(preset, methods, seeds).total()
    head = (f"{preset}: {data.train:,} training and {data.val:,} validation images; {len(methods)} methods, "
            f"{len(seeds)} seeds: {runs} notebooks.\n"
            f"Hours are counted operations at {100 * SHARE:.0f} % of an A100's {PEAK / 1e12:.0f} TFLOP/s, an assumption; core "
            f"hours come from {CRF_SECONDS:g} s for a CRF.\n\n")
    return head + markdown_table(["method", "stage", "PFLOP", "GPU hours", "core hours", "GPU memory, GiB", "disk, GiB"], lines)


def measured(run_folder: Path) -> str:
    """Return what the finished stages of a run have cost, from their records, as a Markdown table.

    Args:
        run_folder: `runs/<dataset>`.

    Raises:
        FileNotFoundError: no stage has finished there.
    """
    lines = []
    for (method, seed), group in finished_stages(run_folder).items():
        for name, stage in group.items():
            record = stage.record()
            disk = sum(file.stat().st_size for file in stage.folder.rglob("*") if file.is_file()) / 2**20
            lines.append([method, str(seed), name, f"{record['seconds']:.0f}", str(record["images_per_second"] or ""),
                          str(record["peak_memory_mib"]), f"{disk:.1f}", record["device"]])
    if not lines:
        raise FileNotFoundError(f"{run_folder}: no finished stage; run the pipeline first, or name voc12 or coco14")
    head = ["method", "seed", "stage", "seconds", "images a second", "peak memory, MiB", "disk, MiB", "device"]
    return markdown_table(head, lines)


def _cell(value: float) -> str:
    return "" if value == 0 else "<0.1" if value < 0.05 else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def main(arguments: list[str]) -> None:
    """Print the table.

    Args:
        arguments: the words after the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m wsss_lib.costs", description=__doc__.splitlines()[0])
    parser.add_argument("what", metavar="PRESET or FOLDER", help="voc12, coco14: estimate; runs/<dataset>: what was measured")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=("cam", *METHODS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    options = parser.parse_args(arguments)
    try:
        print(table(options.what, options.methods, options.seeds) if options.what in DATA else measured(Path(options.what)))
    except FileNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
