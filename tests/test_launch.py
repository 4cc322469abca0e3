"""Several processes on one training: the result of one process, resumed by another number, errors, shards of images."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import copy_mask
from tests.made import begin, finish
from wsss_lib.config import Config
from wsss_lib.core import distributed, files, parallel, training
from wsss_lib.core.parallel import make_maps
from wsss_lib.data.dataset import SegmentationDataset, load_dataset, open_data
from wsss_lib.data.samples import StepSampler
from wsss_lib.errors import DataError
from wsss_lib.methods import vwe
from wsss_lib.methods.cam import (
    ClassActivationNet,
    build_classifier,
    cam_localization,
    classification_loss,
    train_classifier,
)
from wsss_lib.nets.backbone import build_backbone
from wsss_lib.nets.deeplab_v2 import cross_entropy
from wsss_lib.nets.deeplab_v3plus import DeepLabV3Plus, build_dilated_backbone
from wsss_lib.ops.affinity import affinity_loss
from wsss_lib.refine.irn import IRN

pytestmark = pytest.mark.system

STEPS = 20
TOLERANCE = 1e-4


class Pixels(torch.utils.data.Dataset):
    """Images of noise and label maps in which more pixels are unknown from image to image."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(100 * key[0] + key[1])
        label = torch.randint(0, 3, (12, 12), generator=generator)
        label[: key[1]] = 255
        return torch.randn(3, 12, 12, generator=generator), label


def pixel_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Two losses that divide by counts of pixels and of pairs of the whole batch."""
    images, labels = batch
    logits = model(images)
    pixels = cross_entropy(logits, labels)
    pairs = affinity_loss(logits[:, :1], logits[:, 1:], labels, 3, 3).total
    return {"loss": pixels + pairs, "pixels": pixels, "pairs": pairs}


def pixel_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))


def train_pixels(config: Config, folder: Path, after_step: Callable[[int], None] | None = None) -> nn.Module:
    """Train a net with the losses of pixels, or go on where an earlier call was stopped."""
    folder.mkdir(exist_ok=True)
    net = pixel_net()
    training.train(
        net,
        pixel_losses,
        Pixels(),
        [{"params": net.parameters(), "lr": 0.05, "weight_decay": 1e-4}],
        0.9,
        STEPS,
        6,
        config,
        folder,
        after_step=after_step,
    )
    return net


def stop(step: int) -> None:
    if step == 11:
        raise DataError("stopped after eleven steps")


def half_way(folder: Path, config: Config) -> None:
    """Leave the state of a training of all steps as it was after ten of them."""
    with pytest.raises(DataError, match="eleven"):
        train_pixels(config, folder, stop)
    assert (folder / "state.safetensors").is_file()


@distributed.in_processes
def train_half(net: nn.Module, config: Config, folder: Path) -> None:
    """Stop as `half_way` does; the first process raises, the others are ended."""
    train_pixels(config, folder, stop)


@distributed.in_processes
def train_all(net: nn.Module, data: SegmentationDataset, config: Config, folder: Path, resumed: Path) -> tuple[int, int]:
    """Train the classifier `net`; a net of its own with the losses of pixels; and another from the state in `resumed` on.

    Returns:
        what the stage's function returns, and the number of processes.
    """
    images = train_classifier(net, data, config, folder)
    for name, where in (("whole", folder / "pixels"), ("resumed", resumed)):
        model = train_pixels(config, where)
        if distributed.rank_and_world_size()[0] == 0:
            files.write_tensors(folder / f"{name}.safetensors", model.state_dict())
    return images, distributed.rank_and_world_size()[1]


@distributed.in_processes
def train_badly(net: nn.Module, config: Config, folder: Path) -> int:
    training.train(net, pixel_losses, Pixels(), [{"params": net.parameters(), "lr": 0.1}], 0.9, 1, 5, config, folder)


@distributed.in_processes
def train_slow_to_end(net: nn.Module, config: Config, folder: Path) -> None:
    """Process 0 fails, but only ends after the other, which has lost its connection, has failed too."""
    if distributed.rank_and_world_size()[0] == 0:
        threading.Thread(target=time.sleep, args=[5]).start()  # Python waits for it at its end
        raise DataError("the cause")
    distributed.all_reduce_mean(torch.ones(1))


@distributed.in_processes
def train_until_ended(net: nn.Module, config: Config, folder: Path, end: Callable[[int], None], value: int) -> None:
    if distributed.rank_and_world_size()[0] == 1:
        end(value)
    distributed.all_reduce_mean(torch.ones(1))


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[key] - second[key]).abs().max().item() for key in first)


@pytest.mark.timeout(600)
def test_two_processes_train_as_one_and_either_number_goes_on_where_the_other_has_stopped(small_config, tmp_path):
    config = small_config.model_copy(
        update={
            "cam_frozen_batch_norm": True,
            "cam_learning_rate": 0.003,
            "cam_head_learning_rate": 0.03,
            "cam_epochs": 10,
            "checkpoint_every": 10,
        }
    )
    data, nets = open_data(config, "train"), {}
    for number in (1, 2):
        half_way(tmp_path / f"resumed{number}", config)
        torch.manual_seed(0)
        net, folder = build_classifier(config, data.num_classes), tmp_path / str(number)
        folder.mkdir()
        start = {key: value.clone() for key, value in net.state_dict().items()}
        given = config.model_copy(update={"processes": number})
        assert train_all(net, data, given, folder, tmp_path / f"resumed{number}") == (80, number)
        assert not net.training and not (folder / distributed.TRAINED).exists()
        nets[number] = [net.state_dict()] + [
            files.read_tensors(folder / f"{name}.safetensors") for name in ("whole", "resumed")
        ]
        assert (
            largest_difference(start, nets[number][0]) > 0.01
            and largest_difference(pixel_net().state_dict(), nets[number][1]) > 0.1
        ), "they have learned something"
    assert [largest_difference(one, two) < TOLERANCE for one, two in zip(nets[1], nets[2], strict=True)] == [True] * 3
    assert largest_difference(nets[1][1], nets[1][2]) == 0, "resumed by one process: the same bits"
    begun = tmp_path / "begun"
    begun.mkdir()
    with pytest.raises(RuntimeError, match="process 0 of 2 has failed: DataError: stopped after eleven"):
        train_half(pixel_net(), config.model_copy(update={"processes": 2}), begun)
    assert largest_difference(nets[1][1], train_pixels(config, begun).state_dict()) < TOLERANCE
    logs = [training.read_log(tmp_path / name) for name in ("1/pixels", "2/pixels", "resumed2", "begun", "1", "2")]
    assert all([row["step"] for row in log] == [1, 10, 20] for log in logs), "one writer"
    for rows in zip(*logs[:4], strict=True):
        assert all(
            rows[0][key] == pytest.approx(row[key], abs=TOLERANCE) for row in rows for key in ("loss", "pixels", "pairs")
        )
    assert [row["loss"] for row in logs[4]] == pytest.approx([row["loss"] for row in logs[5]], abs=TOLERANCE)


class Labelled(torch.utils.data.Dataset):
    """Images of noise with image-level labels, label maps, and the same at stride 4."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(100 * key[0] + key[1])
        label = torch.randint(0, 3, (32, 32), generator=generator)
        return torch.randn(3, 32, 32, generator=generator), torch.eye(3)[key[1] % 3], label, label[2::4, 2::4]


def words_with_bank(filled: bool) -> vwe.VisualWordNet:
    """VWL-M, whose codebook has no gradient; one of its heads is not trained either."""
    net = vwe.VisualWordNet(build_backbone("resnet_small", 8), 3, 6, "vwl_m", levels=(1, 2), frozen_stages=1)
    net.bank_filled.fill_(filled)
    return net


def segmentation_losses(net: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {"loss": cross_entropy(F.interpolate(net(batch[0]), size=(32, 32)), batch[2])}


def boundary_losses(net: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    losses = affinity_loss(*net(batch[0]), batch[3], 3, 3)
    return {"loss": losses.total, **losses._asdict()}


def of_labels(loss_of: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    return lambda net, batch: loss_of(net, batch[:2])


NETS = {  # name to the network, its losses, and images at once on the device
    "parts": (lambda: ClassActivationNet(build_backbone("resnet_small", 8), 3), of_labels(classification_loss), 1),
    "empty bank": (lambda: words_with_bank(False), of_labels(vwe.losses), 6),
    "filled bank": (lambda: words_with_bank(True), of_labels(vwe.losses), 6),
    "mean shift": (lambda: IRN(build_backbone("resnet_small", 16), 32), boundary_losses, 6),
    "batch norm": (
        lambda: DeepLabV3Plus(build_dilated_backbone("resnet_small", 16), 3, (1, 2, 3), 16),
        segmentation_losses,
        3,  # the statistics of half a batch, in one process and in two
    ),
}


def start_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = NETS[name][0]()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each process draws its own
    return net


@distributed.in_processes
def train_nets(net: nn.Module, config: Config, folder: Path) -> None:
    """Train each network but for its first convolution; every process writes what it has in the end."""
    rank = distributed.rank_and_world_size()[0]
    for name, (_, loss_of, at_once) in NETS.items():
        model = start_of(name)
        trained = [value for key, value in model.named_parameters() if value.requires_grad and key != "backbone.conv1.weight"]
        groups = [{"params": trained, "lr": 0.01, "weight_decay": 0.1}]
        steps = 1 if name == "empty bank" else 6  # later the buffers of process 0 would be taken over
        given, place = config.model_copy(update={"device_batch_size": at_once}), folder / f"{name}{rank}"
        place.mkdir()
        training.train(model, loss_of, Labelled(), groups, 0.9, steps, 6, given, place)
        files.write_tensors(folder / f"{name}{rank}.safetensors", model.state_dict())


@pytest.mark.timeout(600)
def test_state_outside_the_gradient_and_parts_of_batches_are_those_of_one_process(tmp_path):
    """VWL-M's codebook, IRN's mean shift, and batch normalization that is trained, but for its statistics."""
    found: dict[tuple[str, int], list[dict[str, Tensor]]] = {}
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        train_nets(pixel_net(), Config(device="cpu", num_workers=0, processes=number), folder)
        for name in NETS:
            ranks = [files.read_tensors(folder / f"{name}{rank}.safetensors") for rank in range(number)]
            found[name, number] = [{key: value for key, value in one.items() if "tracked" not in key} for one in ranks]
    for name in NETS:
        one, (first, second) = found[name, 1][0], found[name, 2]
        statistics = [key for key in first if "running" in key] if name == "batch norm" else []
        weights = [{key: net[key].float() for key in net if key not in statistics} for net in (one, first, second)]
        assert largest_difference(weights[1], weights[2]) == 0, f"{name}: both processes have the same network"
        assert name == "empty bank" or largest_difference(weights[0], weights[1]) < TOLERANCE, name
        assert largest_difference(weights[0], {key: start_of(name).state_dict()[key].float() for key in weights[0]}) > 1e-3
    assert found["empty bank", 2][0]["bank_filled"]
    # The first batch normalization sees images behind a convolution that stays; its statistics are those of process 0.
    backbone, expected = start_of("batch norm").backbone, torch.zeros(16)
    for batch in StepSampler(12, 6, 1, 0, 6, 0, ranks=(0, 2)):
        with torch.no_grad():
            means = backbone.conv1(torch.stack([Labelled()[key][0] for key in batch])).mean((0, 2, 3))
        expected += backbone.bn1.momentum * (means - expected)
    assert (found["batch norm", 2][0]["backbone.bn1.running_mean"] - expected).abs().max() < 1e-6 < expected.abs().max()


def test_shares_alone_have_other_means():
    """Why losses ask for the mean of their counts: two halves' means are not the whole's."""
    labels = torch.stack([Pixels()[0, index][1] for index in (1, 2, 10, 11)])
    logits = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    halves = (cross_entropy(logits[:2], labels[:2]) + cross_entropy(logits[2:], labels[2:])) / 2
    assert abs(halves - cross_entropy(logits, labels)) > 10 * TOLERANCE


@pytest.mark.timeout(600)
def test_a_batch_that_cannot_be_shared_is_told_by_the_process_that_started_all(tmp_path):
    with pytest.raises(RuntimeError, match="train_badly: process . of 2 has failed: .*cannot be shared by 2 processes"):
        train_badly(pixel_net(), Config(device="cpu", processes=2), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.timeout(600)
def test_the_cause_is_told_even_if_another_process_ends_first(tmp_path):
    with pytest.raises(RuntimeError, match="^train_slow_to_end: process 0 of 2 has failed: DataError: the cause$"):
        train_slow_to_end(pixel_net(), Config(device="cpu", processes=2), tmp_path)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("end, value, words", [(signal.raise_signal, int(signal.SIGKILL), "Signal 9"), (os._exit, 3, "")])
def test_a_process_that_cannot_say_why_it_ends_is_told(end, value, words, tmp_path):
    with pytest.raises(RuntimeError, match=f"^train_until_ended: process 1 of 2 has failed: {words}"):
        train_until_ended(pixel_net(), Config(device="cpu", processes=2), tmp_path, end, value)


def test_alone_nothing_is_touched():
    values = torch.tensor([1, 2])
    assert distributed.rank_and_world_size() == (0, 1) and distributed.all_reduce_mean(values) is values
    assert distributed.all_reduce_sum(values) is values and distributed.broadcast(values) is values
    assert values.tolist() == [1, 2]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_shares_make_up_the_batch(number):
    whole = list(StepSampler(14, 12, 1, 2, 5, seed=0))
    shares = [list(StepSampler(14, 12, 2, 2, 5, seed=0, ranks=(rank, number))) for rank in range(number)]
    joined = [sum((share[2 * step] + share[2 * step + 1] for share in shares), []) for step in range(3)]
    assert joined == whole and len({len(part) for share in shares for part in share}) == 1


# ---- per-image work in shards


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def in_shards(shards: int, config: Config, make: Callable[[Config], int]) -> int:
    """Call `make(config)` as the Snakefile calls a notebook: shard 0, all others, shard 0 again; return the last result."""
    for shard in range(shards + 1) if shards > 1 else ():
        with pytest.raises(parallel.ShardDone, match=f"shard {shard} of {shards} is done"):
            make(config.model_copy(update={"shard": shard, "shards": shards}))
    return make(config.model_copy(update={"shard": 0, "shards": shards}) if shards > 1 else config)


def test_shards_together_make_what_one_process_makes(miniature, small_config, tmp_path):
    data = load_dataset(miniature, "train")
    torch.manual_seed(0)
    net = build_classifier(small_config, data.num_classes)
    results = {}
    for shards in (1, 2, 5):
        folder, calls = tmp_path / str(shards), Counter()

        def masks(config, folder=folder / "masks", calls=calls):
            def work(name):
                calls[name] += 1
                copy_mask(name, data, folder)

            return parallel.for_each_image(data.ids, lambda name: folder / f"{name}.png", work, "masks", config)

        assert in_shards(shards, small_config, masks) == (len(data) if shards == 1 else 0)
        assert calls == Counter(data.ids), "each image once"
        # Batches are those of the whole data set, so that no image meets others in its batch than without shards.
        in_shards(
            shards,
            small_config,
            lambda config, folder=folder: make_maps(cam_localization(net, config), data, config, folder / "maps"),
        )
        results[shards] = contents(folder / "maps"), contents(folder / "masks")
    assert len(results[1][0]) == len(results[1][1]) == len(data) and results[1] == results[2] == results[5]


def test_only_shard_0_begins_a_stage_trains_and_finishes(miniature, small_config, tmp_path):
    zero = small_config.model_copy(update={"runs_root": str(tmp_path), "shard": 0, "shards": 5})
    second = zero.model_copy(update={"shard": 2})
    with pytest.raises(DataError, match="run shard 0 before shard 2"):
        begin(second, "maps")
    stage = begin(zero, "maps")
    stage.release()  # as at the end of its process
    assert not begin(second, "maps").is_complete()
    with pytest.raises(DataError, match="run shard 0 before shard 2"):
        begin(second, "maps", inputs={"other": "input"})
    stage = begin(zero, "maps")
    finish(stage)
    assert not list(stage.folder.parent.glob(".*.lock"))
    data = load_dataset(miniature, "train")
    with pytest.raises(ValueError, match="only shard 0 trains, and this is shard 2 of 5"):
        train_classifier(build_classifier(second, data.num_classes), data, second, tmp_path)


@pytest.mark.parametrize("values", [{"shard": 3, "shards": 2}, {"shard": 0}, {"shard": 2}])
def test_a_shard_that_does_not_exist_is_refused(values):
    with pytest.raises(ValueError, match="there is no shard"):
        Config.from_values(values)
