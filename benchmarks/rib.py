"""RIB on generated images: the plain formulation against ours, image by image in turn, in one process and thread.

python benchmarks/rib.py [--quick]

Plain is what the official program does for every image: read the list and the weights again, build optimizer and loader anew,
send every view through the whole network in every step, decode the companions in every step, make the last update too. Then
the floating-point operations at VOC's published settings are counted and turned into hours for 1,000 images.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import Row, main, one_thread
from torch.utils.data import DataLoader

from data_prep.toy import make_toy_dataset
from wsss_lib.config import Config
from wsss_lib.core import files, training
from wsss_lib.core.stage import folder_of
from wsss_lib.core.training import poly_factor
from wsss_lib.data import transforms
from wsss_lib.data.dataset import open_data
from wsss_lib.methods import cam, rib
from wsss_lib.methods.cam import build_classifier, train_classifier
from wsss_lib.methods.rib import rib_flops
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.ops import merging
from wsss_lib.parameters import project_path
from wsss_lib.presets import preset_config

VOC_SIZE = (375, 500)
GPU_FLOPS = 100e12  # sustained by a large GPU; an assumption
GOAL, TOLERANCE = 3.0, 1e-3


def plain_rib(
    net: cam.ClassActivationNet, weights: Path, image_id: str, rows: Iterator[list[int]], config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Return classes and maps of one image; arguments as the official program has them, and the companions' rows."""
    data = open_data(config, config.train_split)
    label = data.label(image_id)
    own = {int(number) for number in np.flatnonzero(label)}
    pool = [index for index, name in enumerate(data.ids) if not own & {int(c) for c in np.flatnonzero(data.label(name))}]
    net.load_state_dict(files.read_tensors(weights))
    companions = rib.Companions(net, data, config).samples
    batches = [next(rows) for _ in range(config.rib_iterations)]
    assert set(sum(batches, [])) <= set(pool)
    loader = iter(DataLoader(companions, batch_sampler=[[(0, index) for index in batch] for batch in batches]))
    groups = net.parameter_groups(config.rib_learning_rate, config.rib_head_learning_rate, config.rib_weight_decay)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.rib_momentum)
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
    size = merging.stride4_size(data.image(image_id).size[::-1])
    return classes.numpy(), merging.merge_views(merging.join_flips(totals, classes), size).numpy()


def time_both(folder: Path, counts: tuple[int, ...], quick: bool) -> list[tuple[float, float, float]]:
    """Return processor seconds per image, plain and ours, and the largest difference of a map, after so many images.

    Data and classifier are those of a finished `make demo`; without one, and for `quick`, small ones are made.
    """
    config = Config(num_workers=0, device="cpu", cam_epochs=1 if quick else 4)
    weights = folder_of(cam.CLASSIFIER, config) / "weights.safetensors"
    finished = not quick and weights.is_file() and (project_path(config.data_root) / "dataset.json").is_file()
    if not finished:
        root = make_toy_dataset(folder / "toy", num_train=60 if quick else 600, num_val=1, progress=False)
        weights = folder / "own.safetensors"
        config = config.model_copy(update={"data_root": str(root)})
    training.seed_everything(config)
    data = open_data(config, config.train_split)
    if not finished:
        net = build_classifier(config, data.num_classes)
        train_classifier(net, data, config, folder)
        training.save_weights(net, weights)
    net = build_classifier(config, data.num_classes, weights)
    plain_net = build_classifier(config, data.num_classes, weights).eval().to(memory_format=torch.channels_last)
    ours_of = rib.rib_localization(net, data, config)

    # What ours makes once for a run, the companions' features and first pushes, is shared by all its images.
    _, firsts = np.unique(data.labels, axis=0, return_index=True)
    start, companions = time.process_time(), rib.Companions(net, data, config)
    for image_id in (data.ids[row] for row in firsts):
        companions.of_image(image_id, data.label(image_id))
    once = time.process_time() - start
    for image_id in (data.ids[row] for row in firsts):
        ours_of([image_id], [data.image(image_id)], data.label(image_id)[None])

    plain_seconds, our_seconds, difference, results = 0.0, 0.0, 0.0, []
    for number, image_id in enumerate(data.ids[: counts[-1]], start=1):
        label = data.label(image_id)
        start = time.process_time()
        classes, maps = plain_rib(plain_net, weights, image_id, companions.indices(image_id, label), config)
        middle = time.process_time()
        ((our_classes, our_maps),) = ours_of([image_id], [data.image(image_id)], label[None])
        end = time.process_time()
        assert np.array_equal(classes, our_classes)
        difference = max(difference, float(np.abs(maps - our_maps).max()))
        plain_seconds, our_seconds = plain_seconds + middle - start, our_seconds + end - middle
        if number in counts:
            results.append((plain_seconds / number, our_seconds / number + once / len(data), difference))
    return results


def measure(quick: bool = False) -> list[Row]:
    """Run both formulations on the same images in turn, and count operations at VOC's settings.

    Raises:
        RuntimeError: the maps differ by more than 1e-3.
    """
    counts, deterministic = (2,) if quick else (10, 20, 40), torch.are_deterministic_algorithms_enabled()
    try:
        with one_thread(), tempfile.TemporaryDirectory() as folder:
            results = time_both(Path(folder), counts, quick)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    rows = []
    for count, (plain, ours, largest) in zip(counts, results, strict=True):
        if not largest <= TOLERANCE:
            raise RuntimeError(f"RIB: the maps differ by up to {largest:.1e}, more than {TOLERANCE:.0e}")
        rows.append(
            Row("RIB, seconds an image", f"{count} of 96x96", plain, ours, plain / ours, GOAL if count == 40 else None, largest)
        )
    if not quick:
        plain, ours = rib_flops(preset_config("voc12", "rib", backbone_weights="none"), 20, VOC_SIZE)
        hours = 1000 / GPU_FLOPS / 3600
        rows += [
            Row("RIB, operations", "1 of 375x500", plain / 1e12, ours / 1e12, plain / ours, unit="TFLOP"),
            Row("RIB at 100 TFLOP/s", "1,000 of 375x500", plain * hours, ours * hours, plain / ours, unit="hours"),
        ]
    return rows


if __name__ == "__main__":
    main(measure, __doc__)
