"""The training loop: what a killed run resumes to, accumulation, momentum, schedule, and what it refuses."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from wsss_lib.config import Config
from wsss_lib.core import files, store, training
from wsss_lib.data.dataset import load_dataset
from wsss_lib.data.samples import ClassificationSamples
from wsss_lib.errors import Diverged
from wsss_lib.experiments import a_trial
from wsss_lib.methods import cam
from wsss_lib.methods.cam import build_classifier, train_classifier
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config

pytestmark = pytest.mark.system

STEPS = 23
HERE = {"device": "cpu", "num_workers": 0}


def train_small(
    root: Path, folder: Path, checkpoint_every: int, die_at: int = 0, steps: int = STEPS, batch_size: int = 4, **options
) -> cam.ClassActivationNet:
    """Train a small classifier, with dropout on its input so that torch's random numbers matter.

    Args:
        die_at: kill this process in the middle of that step (1, 2, ...); 0: never.
    """
    config = Config(**HERE | {"checkpoint_every": checkpoint_every, "device_batch_size": 2} | options)
    training.seed_everything(config)
    torch.set_num_threads(1)
    data = load_dataset(root, "train")
    samples = ClassificationSamples(data, config.seed, (36, 48), 32, *normalization_of("resnet_small"))
    net = cam.ClassActivationNet(build_backbone("resnet_small", 16), data.num_classes, frozen_batch_norm=False, frozen_stages=1)
    parts_seen = 0

    def loss_of(model, batch):
        nonlocal parts_seen
        parts_seen += 1
        if parts_seen == 2 * die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return cam.classification_loss(model, (F.dropout(batch[0], 0.2), batch[1]))

    training.train(net, loss_of, samples, net.parameter_groups(0.05, 0.5, 1e-4), 0.9, steps, batch_size, config, folder)
    return net


def die_while_writing_the_state(number: int) -> None:
    """Kill this process when the training state is about to be moved into place for the given time."""
    replace, states = os.replace, 0

    def replace_or_die(source, target):
        nonlocal states
        states += Path(target).name == "state.safetensors"
        if states == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    store.os.replace = replace_or_die


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ---- kill and resume

# folder: (checkpoint_every, step in which the process dies, or the state during whose writing it dies)
KILLED = {
    "every1": (1, random.Random(1).randrange(2, STEPS)),
    "every2": (2, random.Random(2).randrange(2, STEPS)),
    "every3": (3, 12),  # dies after the log line of step 10, which no state has seen
    "early": (3, 2),  # before the first state
    "writing": (2, "state 4"),
}

KILL = """
import os, sys
from pathlib import Path
from tests.test_training import KILLED, die_while_writing_the_state, train_small
for name, (checkpoint_every, place) in KILLED.items():
    child = os.fork()
    if child == 0:
        if isinstance(place, str):
            die_while_writing_the_state(int(place.split()[1]))
            place = 0
        train_small(Path(sys.argv[1]), Path(sys.argv[2]) / name, checkpoint_every, die_at=place)
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def killed(miniature, tmp_path_factory) -> Path:
    """Folders of training runs that were ended by SIGKILL."""
    folder = tmp_path_factory.mktemp("killed")
    run = subprocess.run(
        [sys.executable, "-c", KILL, str(miniature), str(folder)],
        cwd=PROJECT_ROOT,
        text=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.stdout.splitlines() == [f"{name} -{signal.SIGKILL:d}" for name in KILLED], run.stderr
    return folder


@pytest.fixture(scope="module")
def undisturbed(miniature, tmp_path_factory) -> tuple[cam.ClassActivationNet, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    threads = torch.get_num_threads()
    net = train_small(miniature, folder, 1000)
    torch.set_num_threads(threads)
    assert not (folder / "state.safetensors").exists()
    return net, (folder / "log.jsonl").read_bytes()


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_ends_in_the_same_bits(miniature, killed, undisturbed, name):
    checkpoint_every, place = KILLED[name]
    folder = killed / name
    assert (folder / "state.safetensors").is_file() == (name != "early")
    assert any(folder.glob(".writing-*")) == (name == "writing")
    if name == "every3":
        assert [row["step"] for row in training.read_log(folder)] == [1, 10]
    if isinstance(place, int) and name != "early":
        numbers = saved_numbers(folder)
        assert numbers["done"] == (place - 1) // checkpoint_every * checkpoint_every
    net = train_small(miniature, folder, checkpoint_every)
    assert same_weights(net, undisturbed[0])
    assert (folder / "log.jsonl").read_bytes() == undisturbed[1]


def saved_numbers(folder: Path) -> dict:
    from safetensors import safe_open

    with safe_open(folder / "state.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["numbers"])


def test_other_random_numbers_would_have_been_noticed(miniature, undisturbed, tmp_path):
    assert not same_weights(train_small(miniature, tmp_path, 1000, seed=1), undisturbed[0])
    assert (tmp_path / "log.jsonl").read_bytes() != undisturbed[1]


def test_loader_processes_change_nothing(miniature, undisturbed, tmp_path):
    net = train_small(miniature, tmp_path, 1000, num_workers=1)
    assert same_weights(net, undisturbed[0]) and (tmp_path / "log.jsonl").read_bytes() == undisturbed[1]


def test_a_second_call_goes_on_from_the_last_state_and_ends_in_the_same(miniature, undisturbed, tmp_path):
    for _ in range(2):
        net = train_small(miniature, tmp_path, 5)
        assert saved_numbers(tmp_path)["done"] == 20 and not net.training
        assert same_weights(net, undisturbed[0]) and (tmp_path / "log.jsonl").read_bytes() == undisturbed[1]
    training.save_weights(net, tmp_path / "weights.safetensors")
    # The state goes when the stage is finished (tests/test_kill.py): before its record is there, a kill must not cost all.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "state.safetensors", "weights.safetensors"]
    again = cam.ClassActivationNet(build_backbone("resnet_small", 16), 3)
    again.load_state_dict(files.read_tensors(tmp_path / "weights.safetensors"))
    assert same_weights(again, net)


def test_mixed_precision_is_for_gpus_only(miniature, undisturbed, tmp_path):
    assert same_weights(train_small(miniature, tmp_path, 1000, mixed_precision=True), undisturbed[0])


# ---- log


def test_log_holds_the_first_every_tenth_and_the_last_step(undisturbed):
    rows = [json.loads(line) for line in undisturbed[1].splitlines()]
    assert [row["step"] for row in rows] == [1, 10, 20, STEPS] and list(rows[0]) == ["step", "factor", "loss"]
    assert [row["factor"] for row in rows] == [round(training.poly_factor(step - 1, STEPS), 6) for step in (1, 10, 20, STEPS)]
    assert all(0 < row["loss"] < 2 for row in rows)


@pytest.mark.parametrize("tail", ["", '{"step": 4, "loss": 1.0}\n', '{"step": 4, "lo', "garbage\n", '{"loss": 1}\n'])
def test_log_lines_after_the_last_state_are_written_again(tmp_path, tail):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 3, "loss": 1.0}\n' + tail)
    with training._trim_log(path, 3) as log:
        log.write('{"step": 4, "loss": 2.0}\n')
    assert [row["step"] for row in training.read_log(tmp_path)] == [1, 3, 4]
    with training._trim_log(path, 0):
        pass
    assert training.read_log(tmp_path) == []


# ---- accumulation


@pytest.mark.parametrize("device_batch_size", [1, 2, 4])
def test_accumulation_equals_the_big_batch(miniature, tmp_path, device_batch_size):
    """With frozen batch normalization; a live one sees other statistics in a smaller batch."""
    data = load_dataset(miniature, "train")

    def trained(size: int) -> nn.Module:
        config = Config(
            **HERE,
            device_batch_size=size,
            cam_crop=32,
            cam_long_side_min=36,
            cam_long_side_max=48,
            cam_batch_size=8,
            cam_epochs=3,
            cam_frozen_batch_norm=True,
        )
        training.seed_everything(config)
        net = build_classifier(config, 3)
        assert train_classifier(net, data, config, tmp_path / str(size)) == 3 * 8
        return net

    torch.manual_seed(0)
    whole, parts = trained(16), trained(device_batch_size)
    for first, second in zip(whole.parameters(), parts.parameters(), strict=True):
        assert (first - second).abs().max() < 1e-5
    logs = [training.read_log(tmp_path / str(size))[-1]["loss"] for size in (16, device_batch_size)]
    assert abs(logs[0] - logs[1]) < 1e-5


@pytest.mark.parametrize("batch_size, part", [(6, 2), (5, 1)])
def test_a_batch_goes_through_the_device_in_its_largest_equal_parts(miniature, tmp_path, monkeypatch, batch_size, part):
    seen, move = [], training._to_device
    monkeypatch.setattr(training, "_to_device", lambda tensor, device: seen.append(len(tensor)) or move(tensor, device))
    train_small(miniature, tmp_path, 1, batch_size=batch_size)  # device_batch_size is 2
    assert set(seen) == {part}


# ---- optimizer and schedule


class One(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, key):
        return (torch.ones(1),)


def scalar_net() -> nn.Module:
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    return net


def scalar_run(
    folder: Path, momentum: float | None, weight_decay: float = 0.1, net: nn.Module | None = None, loss=None
) -> list[float]:
    """Minimize 2w from w = 1 in three steps at rate 0.5 without a schedule; returns w after every step."""
    net, values = net or scalar_net(), []

    def loss_of(model, batch):
        values.append(model.weight.item())
        return {"loss": 2 * model(batch[0]).sum() if loss is None else loss(model(batch[0]).sum())}

    groups = [{"params": [net.weight], "lr": 0.5, "weight_decay": weight_decay}]
    training.train(net, loss_of, One(), groups, momentum, 3, 1, Config(**HERE), folder, schedule=lambda step, total: 1.0)
    return [*values[1:], net.weight.item()]


def test_sgd_by_hand(tmp_path):
    weight, velocity, expected = 1.0, 0.0, []
    for _ in range(3):
        velocity = 0.9 * velocity + 2 + 0.1 * weight
        weight -= 0.5 * velocity
        expected.append(weight)
    assert scalar_run(tmp_path, momentum=0.9) == pytest.approx(expected, abs=1e-6)


def test_adam_by_hand(tmp_path):
    """No momentum given: Adam with its usual moments 0.9 and 0.999, the weight decay added to the gradient."""
    weight, first, second, expected = 1.0, 0.0, 0.0, []
    for step in (1, 2, 3):
        gradient = 2 + 0.1 * weight
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight -= 0.5 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
        expected.append(weight)
    assert scalar_run(tmp_path, momentum=None) == pytest.approx(expected, abs=1e-6)


def test_the_weight_decay_in_the_place_of_the_momentum_means_almost_none(tmp_path):
    plain = scalar_run(tmp_path / "plain", momentum=0.0, weight_decay=0)
    swapped = scalar_run(tmp_path / "swapped", momentum=preset_config("voc12").cam_momentum, weight_decay=0)
    assert plain == pytest.approx([0.0, -1.0, -2.0]) and swapped == pytest.approx(plain, abs=1e-3) and swapped != plain


def test_a_rate_has_its_floor(tmp_path):
    net, rates = nn.Linear(1, 1), []
    groups = [
        {"params": [net.weight], "lr": 0.01, "min_lr": 0.004, "weight_decay": 0.0},
        {"params": [net.bias], "lr": 0.01, "weight_decay": 0.0},
    ]

    def note(optimizer, *_):
        rates.append([group["lr"] for group in optimizer.param_groups])

    def loss_of(model, batch):
        return {"loss": model(batch[0]).square().sum()}

    hook = register_optimizer_step_pre_hook(note)
    try:
        training.train(net, loss_of, One(), groups, 0.0, 4, 1, Config(**HERE), tmp_path, lambda step, total: 1 - step / total)
    finally:
        hook.remove()
    assert np.allclose(rates, [[0.01, 0.01], [0.0075, 0.0075], [0.005, 0.005], [0.004, 0.0025]])


def test_schedule_by_hand():
    assert [training.poly_factor(step, 4, power=1) for step in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
    assert training.poly_factor(1, 4) == 0.75**0.9
    assert [training.poly_factor(step, 40, power=1, every=10) for step in (0, 9, 10, 19, 20, 39, 40, 99)] == [
        1,
        1,
        0.75,
        0.75,
        0.5,
        0.25,
        0,
        0,
    ]


@given(st.integers(1, 500), st.integers(1, 20))
def test_poly_schedule_equals_the_official_loop(total, every):
    factor = 1.0
    for step in range(1, total + 30):
        if step % every == 0 and step <= total:
            factor = (1 - step / total) ** 0.9
        assert training.poly_factor(step, total, 0.9, every) == factor
    assert training.poly_factor(0, total, 0.9, every) == 1.0


@pytest.mark.parametrize("arguments", [(-1, 10), (0, 0), (0, 10, 0.9, 0)])
def test_a_senseless_schedule_is_refused(arguments):
    with pytest.raises(ValueError, match="step="):
        training.poly_factor(*arguments)


def test_classifier_is_trained_with_the_configured_optimizer(miniature, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        training,
        "train",
        lambda net, loss, samples, groups, momentum, steps, batch_size, *rest, **names: seen.update(
            groups=groups, momentum=momentum, steps=steps, batch_size=batch_size
        ),
    )
    config = Config(
        cam_momentum=0.8,
        cam_batch_size=3,
        cam_epochs=5,
        cam_weight_decay=0.02,
        cam_learning_rate=0.3,
        cam_head_learning_rate=0.7,
    )
    net = build_classifier(config, 3)
    train_classifier(net, load_dataset(miniature, "train"), config, tmp_path)
    assert seen["momentum"] == 0.8 and seen["steps"] == 10 and seen["batch_size"] == 3
    assert [(group["lr"], group["weight_decay"]) for group in seen["groups"]] == [(0.3, 0.02), (0.7, 0.02)]
    assert seen["groups"][1]["params"] == [net.classifier.weight]


# ---- what is refused


@pytest.fixture
def scaled(monkeypatch):
    """The gradient scaler of a GPU's float16 training, here on a CPU."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, enabled=True))


class Overflow(torch.autograd.Function):
    """The identity, with an infinite gradient at the calls (1, 2, ...) that `at` names."""

    calls, at = 0, ()

    @staticmethod
    def forward(context, value):
        Overflow.calls += 1
        context.overflows = Overflow.calls in Overflow.at
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("inf") if context.overflows else gradient


def overflowing_run(folder: Path, steps: int, at) -> nn.Module:
    Overflow.calls, Overflow.at = 0, at
    net = scalar_net()
    groups = [{"params": [net.weight], "lr": 0.01, "weight_decay": 0.0}]

    def loss_of(model, batch):
        return {"loss": Overflow.apply(model(batch[0]).sum())}

    training.train(net, loss_of, One(), groups, 0.0, steps, 1, Config(**HERE), folder, schedule=lambda step, total: 1.0)
    return net


def test_skipped_steps_are_counted(tmp_path, scaled):
    net = overflowing_run(tmp_path, 25, at=(3, 4, 12))
    rows = training.read_log(tmp_path)
    assert [(row["step"], row["skipped_steps"], row["scale"]) for row in rows] == [
        (1, 0, 2.0**16),
        (10, 2, 2.0**14),
        (20, 1, 2.0**13),
        (25, 0, 2.0**13),
    ]
    assert net.weight.item() == pytest.approx(1 - 22 * 0.01)  # 22 of 25 steps were taken


def test_training_stops_when_the_scale_collapses(tmp_path, scaled):
    with pytest.raises(ValueError, match="overflow float16 .* up to 19 were all skipped; set mixed_precision to false"):
        overflowing_run(tmp_path, 100, at=range(3, 200))


def test_a_log_without_a_scaler_tells_nothing_of_it(undisturbed):
    assert all("scale" not in json.loads(line) for line in undisturbed[1].splitlines())


@pytest.mark.parametrize("loss", [lambda value: value * float("nan"), lambda value: value / 0])
def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path, loss):
    def late(value):
        late.calls += 1
        return loss(value) if late.calls == 3 else value

    late.calls, net = 0, scalar_net()
    with pytest.raises(ValueError, match="training: the loss is (nan|-inf) at step 3; lower the learning rate"):
        scalar_run(tmp_path, 0.0, 0.0, net, late)
    assert net.weight.item() == 0.0  # after two steps


def test_the_state_of_another_network_is_refused(miniature, tmp_path):
    train_small(miniature, tmp_path, 5, steps=6)
    data = load_dataset(miniature, "train")
    samples = ClassificationSamples(data, 0, (36, 48), 32, *normalization_of("resnet_small"))
    nets = {
        "classifier.weight has shape": cam.ClassActivationNet(build_backbone("resnet_small", 16), 4),
        "parameters are missing": cam.ClassActivationNet(build_backbone("resnet50", 16), 3),
    }
    for words, net in nets.items():
        before = {key: value.clone() for key, value in net.state_dict().items()}
        groups = net.parameter_groups(0.1, 1.0, 0)
        with pytest.raises(ValueError) as error:
            training.train(net, cam.classification_loss, samples, groups, 0.9, 6, 4, Config(**HERE), tmp_path)
        message = str(error.value)
        assert message.startswith(f"{tmp_path}/state.safetensors does not fit ClassActivationNet: ") and words in message
        assert "\n" not in message and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_state_that_is_no_state_is_refused(miniature, tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="state.safetensors: not a safetensors file"):
        train_small(miniature, tmp_path, 5)
    net = cam.ClassActivationNet(build_backbone("resnet_small", 16), 3)
    files.write_tensors(tmp_path / "state.safetensors", net.state_dict())
    with pytest.raises(ValueError, match="does not fit ClassActivationNet: .* parameters are missing"):
        train_small(miniature, tmp_path, 5)


@pytest.mark.parametrize(
    "words, remedy",
    [
        ("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)", "--shm-size=2g"),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
            "shared memory. Please try to raise your shared memory limit.",
            "--shm-size=2g",
        ),
        ("DataLoader worker (pid 7) is killed by signal: Killed.", "a smaller num_workers"),
    ],
)
def test_a_loader_that_ran_out_of_memory_says_which(words, remedy):
    def batches():
        raise RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\n{words}")
        yield

    with pytest.raises(OSError, match=rf"^classifier: .*{remedy}.*") as error:
        training._next(batches(), "classifier")
    assert "\n" not in str(error.value) and (remedy == "--shm-size=2g") == ("/dev/shm" in str(error.value))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match="device is 'cuda' but torch sees no GPU; set device to 'auto' or 'cpu'"):
        training.seed_everything(Config(device="cuda"))


def test_seeds():
    def numbers(seed):
        import numpy as np

        assert training.seed_everything(Config(seed=seed, device="cpu")) == torch.device("cpu")
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    assert numbers(3) == numbers(3) != numbers(4)
    assert torch.are_deterministic_algorithms_enabled()


# ---- on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_mixed_precision_on_a_gpu_trains_and_resumes(miniature, tmp_path):
    data = load_dataset(miniature, "train")

    def trained(folder: Path, epochs: int = 20) -> nn.Module:
        config = Config(
            device="cuda",
            mixed_precision=True,
            cam_crop=32,
            cam_long_side_min=36,
            cam_long_side_max=48,
            cam_batch_size=8,
            device_batch_size=4,
            cam_epochs=epochs,
            checkpoint_every=7,
            cam_frozen_batch_norm=True,
        )
        device = training.seed_everything(config)
        net = build_classifier(config, 3).to(device)
        train_classifier(net, data, config, folder)
        return net

    first = trained(tmp_path / "a")
    losses = [row["loss"] for row in training.read_log(tmp_path / "a")]
    assert losses[-1] < losses[0]
    second = trained(tmp_path / "a")  # from the state of step 14
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert (left - right).abs().max() < 1e-2


def test_a_lesson_goes_on_where_a_stage_would_stop(capsys):
    with a_trial():
        raise Diverged("short training: the training has diverged")
    assert capsys.readouterr().out == "short training: the training has diverged\n"
    with pytest.raises(ValueError, match="weights of another network"), a_trial():
        raise ValueError("weights of another network")
