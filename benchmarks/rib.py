"""RIB on generated images: the plain formulation against ours, image by image in turn, in one process and thread.

python benchmarks/rib.py [--quick]

Plain is what the official program does for every image: read the list and the weights again, build optimiser and loader anew,
send every view through the whole network in every step, decode the companions in every step, make the last update too. Then
the floating-point operations at VOC's published settings are counted and turned into hours for 1,000 images.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from data_prep.toy import make_toy_dataset
from wsss_lib import artifacts, stages, training
from wsss_lib.config import Config, project_path
from wsss_lib.data import transforms
from wsss_lib.methods import cam, rib
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.presets import preset_config
from wsss_lib.training import poly_factor

VOC_SIZE = (375, 500)
GPU_FLOPS = 100e12  # sustained by a large GPU; an assumption
GOAL = 3.0


@dataclass(frozen=True)
class Result:
    """Seconds per image on one thread, and operations per image at VOC's settings."""

    images: int
    plain_seconds: float
    our_seconds: float
    difference: float
    plain_flops: float
    our_flops: float
    flops_per_second: float

    @property
    def ratio(self) -> float:
        return self.plain_seconds / self.our_seconds

    def hours(self, flops: float, rate: float) -> float:
        return 1000 * flops / rate / 3600


def plain_rib(net: cam.ClassActivationNet, weights: Path, image_id: str, rows: Iterator[list[int]],
              config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return classes and maps of one image; arguments as the official program has them, and the companions' rows."""
    data = stages.open_data(config, config.train_split)
    label = data.label(image_id)
    own = {int(number) for number in np.flatnonzero(label)}
    pool = [index for index, name in enumerate(data.ids) if not own & {int(c) for c in np.flatnonzero(data.label(name))}]
    net.load_state_dict(artifacts.read_tensors(weights))
    companions = rib.Companions(net, data, config).samples
    batches = [next(rows) for _ in range(config.rib_iterations)]
    assert set(sum(batches, [])) <= set(pool)
    loader = iter(DataLoader(companions, batch_sampler=[[(0, index) for index in batch] for batch in batches]))
    groups = net.parameter_groups(config.rib_learning_rate, config.rib_head_learning_rate, config.weight_decay)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.weight_decay)
    pairs = []
    for scale in config.cam_scales:
        array = transforms.normalize(transforms.resize_image(data.image(image_id), scale), *normalization_of(config.backbone))
        tensor = transforms.to_tensor(array)
        pairs.append(torch.stack([tensor, tensor.flip(-1)]))
    y, totals = torch.from_numpy(label.astype(np.float32))[None], [0.0] * len(pairs)
    for k in range(config.rib_iterations):
        logits, exploded = [], False
        for number, (scale, pair) in enumerate(zip(config.cam_scales, pairs, strict=True)):
            raw = rib.evidence(net, net.backbone.shallow(pair, rib.FROZEN_STAGES).detach())
            positive = raw.detach().clamp(min=0)
            totals[number] = totals[number] + positive
            if k > 0 and scale == 1.0:
                covered = rib.coverage(positive, y[0].nonzero()[:, 0], config.rib_explode_threshold)
                if exploded := covered > config.rib_explode_ratio:
                    break
            if scale != 0.5:
                logits.append(rib.pooled_logits(raw, y, config.rib_region_threshold))
        if exploded:
            break
        images, labels = next(loader)
        raw = rib.evidence(net, net.backbone.shallow(images, rib.FROZEN_STAGES).detach())
        logits.append(rib.pooled_logits(raw, labels, config.rib_region_threshold))
        loss = rib.rib_loss(torch.cat(logits), torch.cat([y.expand(2 * len(logits) - 2, -1), labels]))
        optimizer.zero_grad()
        loss.backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * poly_factor(k, config.rib_iterations)
        optimizer.step()
        if abs((torch.cat(logits[:-1]) * y).sum().item()) > config.rib_stop_threshold:
            break
    classes = torch.from_numpy(np.flatnonzero(label))
    size = cam.stride4_size(data.image(image_id).size[::-1])
    return classes.numpy(), cam.merge_scales(totals, size, classes).numpy()


def time_both(folder: Path, count: int) -> tuple[float, float, float]:
    """Return the processor seconds of all images, plain and ours, and the largest difference of a map.

    Data and classifier are those of a finished `make demo`; without one, small ones are made.
    """
    config = Config(num_workers=0, device="cpu", cam_epochs=4)
    weights = artifacts.stage_folder(config, "classifier", "cam") / "weights.safetensors"
    finished = weights.is_file() and (project_path(config.data_root) / "dataset.json").is_file()
    if not finished:
        root, weights = make_toy_dataset(folder / "toy", num_train=600, num_val=1, progress=False), folder / "own.safetensors"
        config = config.model_copy(update={"data_root": str(root)})
    training.seed_everything(config)
    data = stages.open_data(config, config.train_split)
    if not finished:
        net = stages.build_classifier(config, data.num_classes)
        stages.train_classifier(net, data, config, folder)
        training.save_weights(net, weights)
    net = stages.build_classifier(config, data.num_classes, weights)
    plain_net = stages.build_classifier(config, data.num_classes, weights).eval().to(memory_format=torch.channels_last)
    ours_of = rib.rib_localization(net, data, config)

    # What ours makes once for a run, the companions' features and first pushes, is shared by all its images.
    _, firsts = np.unique(data.labels, axis=0, return_index=True)
    start, companions = time.process_time(), rib.Companions(net, data, config)
    for image_id in (data.ids[row] for row in firsts):
        companions.of_image(image_id, data.label(image_id))
    once = time.process_time() - start
    for image_id in (data.ids[row] for row in firsts):
        ours_of([image_id], [data.image(image_id)], data.label(image_id)[None])

    plain_seconds, our_seconds, difference = 0.0, count * once / len(data), 0.0
    for image_id in data.ids[:count]:
        label = data.label(image_id)
        start = time.process_time()
        classes, maps = plain_rib(plain_net, weights, image_id, companions.indices(image_id, label), config)
        middle = time.process_time()
        ((our_classes, our_maps),) = ours_of([image_id], [data.image(image_id)], label[None])
        end = time.process_time()
        assert np.array_equal(classes, our_classes)
        difference = max(difference, float(np.abs(maps - our_maps).max()))
        plain_seconds, our_seconds = plain_seconds + middle - start, our_seconds + end - middle
    return plain_seconds, our_seconds, difference


def count_flops() -> tuple[float, float]:
    """Return the operations of one VOC image with one class at the published settings, plain and ours."""
    config = preset_config("voc12", "rib", backbone_weights="none")
    with torch.device("meta"):
        net = stages.build_classifier(config, 20).eval()

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
        frozen, forward, backward = count(2, *(round(side * scale) for side in VOC_SIZE))
        backward = backward if scale > 0.5 else 0.0
        plain += steps * (frozen + forward + backward)
        ours += frozen + steps * forward + (steps - 1) * backward
    return plain, ours


def flops_per_second() -> float:
    """Return what this thread sustains in the tuned stages of ResNet-50, forward and backward."""
    net = cam.ClassActivationNet(build_backbone("resnet50"), 20).eval()
    features, rates = torch.randn(2, 512, 32, 32), []
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            start = time.perf_counter()
            rib.evidence(net, features).sum().backward()
            rates.append(counter.get_total_flops() / (time.perf_counter() - start))
    return max(rates)


def measure(images: int = 40) -> Result:
    """Run both formulations on the same images in turn.

    Raises:
        RuntimeError: the maps differ by more than 1e-3.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain_seconds, our_seconds, difference = time_both(Path(folder), images)
        rate = flops_per_second()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    if not difference <= 1e-3:
        raise RuntimeError(f"The maps differ by up to {difference:.1e}, more than 1e-3.")
    return Result(images, plain_seconds / images, our_seconds / images, difference, *count_flops(), rate)


def main(arguments: list[str] | None = None) -> Result:
    """Print one table and return its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 images instead of 40")
    result = measure(10 if parser.parse_args(arguments).quick else 40)
    print(f"RIB, {result.images} generated images, one thread; maps differ by {result.difference:.1e} at most\n")
    print(f"{'formulation':<12} {'s/image':>8} {'TFLOP/VOC image':>16} {'h/1,000, here':>14} {'h/1,000, 100 TFLOP/s':>21}")
    for name, seconds, flops in (("plain", result.plain_seconds, result.plain_flops),
                                 ("ours", result.our_seconds, result.our_flops)):
        print(f"{name:<12} {seconds:>8.3f} {flops / 1e12:>16.1f} {result.hours(flops, result.flops_per_second):>14.0f} "
              f"{result.hours(flops, GPU_FLOPS):>21.2f}")
    print(f"\n{result.ratio:.1f} times faster on generated images (goal {GOAL:g}), "
          f"{result.plain_flops / result.our_flops:.2f} times fewer operations at VOC's settings")
    return result


if __name__ == "__main__":
    main()
