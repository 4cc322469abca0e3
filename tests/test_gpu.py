"""The way of every stage through a GPU, on a pretended one: where tensors lie, and trainings that change their device."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.pretended_gpu import on_gpu, pretended_gpu
from wsss_lib.config import Config
from wsss_lib.core import files, stage, training
from wsss_lib.core.check import CHECK
from wsss_lib.core.distributed import in_processes
from wsss_lib.errors import DataError
from wsss_lib.methods import METHODS
from wsss_lib.pipeline import stages_of

pytestmark = pytest.mark.system

SMALL = {
    "num_workers": 0,
    "device": "cuda",
    "mixed_precision": True,
    "device_batch_size": 2,
    "cam_epochs": 1,
    "cam_scales": (1.0, 0.5),
    "drs_epochs": 1,
    "drs_refine_epochs": 1,
    "drs_batch_size": 4,
    "drs_crop": 32,
    "amn_epochs": 1,
    "vwe_epochs": 1,
    "sccam_round_epochs": (1,),
    "sccam_schedule_epochs": 1,
    "sccam_clusters": 2,
    "rib_iterations": 2,
    "rib_companions": 2,
    "irn_epochs": 1,
    "affinitynet_epochs": 1,
    "affinitynet_batch_size": 4,
    "seed_num_thresholds": 3,
    "seed_crf_iterations": 1,
    "deeplab_iterations": 1,
}
VARIANTS = {
    "cam": {},
    "rib": {},
    "drs": {"drs_selection": "pixel_labels", "drs_background": "constant"},
    "amn": {"amn_dropout_in_maps": True, "deeplab_version": "v3plus", "deeplab_atrous_rates": (1, 2, 3)},
    "vwe": {"vwe_variant": "vwl_m", "deeplab_loss": "balanced"},
    "sccam": {"refinement": "affinitynet", "sccam_dropout": 0.5},
}


def refused() -> list[str]:
    """Return what the pretended GPU says to what a real one refuses."""
    there, here = torch.ones(3).to("cuda"), torch.ones(3)
    attempts = [
        lambda: there + here,
        lambda: here.add_(there),
        lambda: here[torch.tensor([1]).to("cuda")],
        lambda: torch.cat([there, here]),
        lambda: there.numpy(),
        lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
        lambda: (there.requires_grad_() * 2).sum().backward() or there.grad + here,
    ]
    said = []
    for attempt in attempts:
        with pytest.raises((RuntimeError, TypeError)) as error:
            attempt()
        said.append(str(error.value))
    return said


def test_the_pretended_gpu_refuses_what_a_gpu_refuses_and_nothing_else():
    with pretended_gpu():
        assert len(refused()) == 7
        there = torch.arange(3.0).to("cuda")
        assert on_gpu(there * 2 + torch.tensor(1.0)) and on_gpu(there[torch.tensor([0, 2])])
        assert there.cpu().numpy().tolist() == [0, 1, 2] and (there + 1).device.type == "cuda"
        assert not on_gpu(torch.zeros(3).copy_(there))
    assert not on_gpu(there)


@pytest.mark.parametrize("method", VARIANTS)
def test_every_stage_keeps_to_the_gpu(method, small_config, tmp_path):
    config = Config(**small_config.model_dump() | SMALL | VARIANTS[method] | {"method": method})
    before = [CHECK, *(METHODS["cam"].STAGES if method != "cam" else ())]
    with pretended_gpu():
        for part in (*before, *stages_of(config)):
            done = stage.run(part, config.model_copy(update={"method": "cam"}) if part in before else config)
            assert done.files.record()["device"].startswith("cuda")
            assert not part.load or all(on_gpu(value) for value in done.net.state_dict().values())


class Noise(torch.utils.data.Dataset):
    """Images of noise, and a number to predict of each."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(key[1])), torch.ones(2)


def noise_loss(net: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {"loss": (net(batch[0]).float() - batch[1]).square().mean()}


def train(folder: Path, device: str, momentum: float | None, die_at: int = 0, loss_of=noise_loss) -> nn.Module:
    """Train a small net for 24 steps, or go on with it; `die_at` ends it after that step."""
    config = Config(device=device, mixed_precision=True, checkpoint_every=4, num_workers=0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).to(device)

    def die(step: int) -> None:
        if step == die_at:
            raise DataError("stopped")

    groups = [{"params": list(net.parameters()), "lr": 0.01, "weight_decay": 0}]
    training.train(net, loss_of, Noise(), groups, momentum, 24, 4, config, folder, after_step=die)
    return net


@pytest.mark.parametrize("momentum", [0.9, None])
@pytest.mark.parametrize("first, second", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_a_training_goes_on_on_another_device(first, second, momentum, tmp_path):
    with pretended_gpu():
        with pytest.raises(DataError, match="stopped"):
            train(tmp_path, first, momentum, die_at=10)
        before = files.read_tensors(tmp_path / "state.safetensors")
        net = train(tmp_path, second, momentum)
        assert {on_gpu(value) for value in net.state_dict().values()} == {second == "cuda"}
        weights = {key: value.cpu() for key, value in net.state_dict().items()}
        if first == second:
            (tmp_path / "whole").mkdir()
            whole = {key: value.cpu() for key, value in train(tmp_path / "whole", first, momentum).state_dict().items()}
            assert all(torch.equal(weights[key], value) for key, value in whole.items())
    assert all(weights[key].isfinite().all() and not torch.equal(weights[key], before[f"model.{key}"]) for key in weights)
    log = training.read_log(tmp_path)
    assert [row["step"] for row in log] == [1, 10, 20, 24] and log[0]["loss"] > log[1]["loss"] > log[3]["loss"]


def test_a_loss_that_is_not_finite_is_found_at_the_next_line_of_the_log_on_a_gpu(tmp_path):
    calls = 0

    def loss_of(net: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return {"loss": noise_loss(net, batch)["loss"] * (float("nan") if calls == 13 else 1)}

    with pretended_gpu(), pytest.raises(ValueError, match="the loss is nan at step 13; lower the learning rate"):
        train(tmp_path, "cuda", 0.9, loss_of=loss_of)
    assert calls == 16, "before the state of step 16 is saved"
    assert files.read_tensors(tmp_path / "state.safetensors")["model.0.weight"].isfinite().all()


def test_more_processes_than_gpus_are_refused(tmp_path):
    net = nn.Conv2d(3, 1, 1)
    with pretended_gpu(), pytest.raises(ValueError, match="processes is 2, but this machine has 1 of the GPUs"):
        in_processes(never)(net.to("cuda"), Config(device="cuda", processes=2), tmp_path)


def never(net: nn.Module, config: Config, folder: Path) -> int:
    raise AssertionError("started")
