"""What a machine does to a run: full disks, dead processes, broken files, a second run, a key press, a clock that is set back.

Each fault is put in at its place; then there is one sentence, nothing half-written, and the next run ends in the same files.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from PIL import Image

from data_prep.check import check_dataset
from tests import faulty_work, made
from wsss_lib.config import Config
from wsss_lib.core import files, store, training
from wsss_lib.core.scoring import score_masks, sweep_maps
from wsss_lib.core.stage import open_stage, run
from wsss_lib.data.dataset import check_images, data_hash, load_dataset, open_data
from wsss_lib.errors import DataError
from wsss_lib.methods import cam
from wsss_lib.methods.cam import build_classifier
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.refine import seed_masks

pytestmark = pytest.mark.system

HERE = {"cwd": PROJECT_ROOT, "env": os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}}
REMEDY = "free some space or set runs_root to another disk, then run again: finished results are kept"


def short_run(config: Config) -> dict[str, str]:
    """Train a classifier, make maps and seeds; return name to hash of every file that is no record of time."""
    for stage in (cam.CLASSIFIER, cam.MAPS, seed_masks.SEEDS):
        run(stage, config)
    return files_of(config)


def files_of(config: Config) -> dict[str, str]:
    root = Path(config.runs_root)
    return {
        path.relative_to(root).as_posix(): files.sha256([path], root)
        for path in root.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


@pytest.fixture
def config(small_config) -> Config:
    """Two images in a batch on the device, one epoch, a training state after every step."""
    return small_config.model_copy(
        update={"checkpoint_every": 1, "device_batch_size": 2, "cam_scales": (1.0,), "cam_epochs": 2, "seed_crf_iterations": 1}
    )


@pytest.fixture(scope="module")
def undisturbed(miniature, tmp_path_factory) -> dict[str, str]:
    """What `short_run` makes."""
    return short_run(
        Config(
            dataset="miniature",
            data_root=str(miniature),
            runs_root=str(tmp_path_factory.mktemp("undisturbed")),
            device="cpu",
            num_workers=0,
            cam_crop=32,
            cam_long_side_min=36,
            cam_long_side_max=48,
            cam_batch_size=4,
            checkpoint_every=1,
            device_batch_size=2,
            cam_scales=(1.0,),
            cam_epochs=2,
            seed_crf_iterations=1,
        )
    )


# ---- the disk


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_at_any_write(config, undisturbed, monkeypatch, error):
    """The n-th file cannot be moved into place, for n = 2, 7, 12, ... until a run gets through."""
    replace, failures = os.replace, 0
    for number in range(2, 1000, 5):
        left = number

        def fails_once(source, target):
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(error, os.strerror(error))
            replace(source, target)

        monkeypatch.setattr(os, "replace", fails_once)
        try:
            short_run(config)
        except OSError as failed:
            failures += 1
            assert str(failed).endswith(f"cannot be written ({os.strerror(error)}); {REMEDY}")
            assert not list(Path(config.runs_root).rglob(".writing-*"))
        else:
            break
    assert failures >= 4 and files_of(config) == undisturbed


def without_the_powers_of_root() -> None:
    """Before a program starts: let the rights of files count for root, too."""
    import ctypes

    for power in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, power, 0, 0, 0)  # PR_CAPBSET_DROP


def test_a_folder_that_may_not_be_written_to(tmp_path):
    runs = tmp_path / "runs/toy/cam/seed0"
    runs.mkdir(parents=True)
    runs.chmod(0o555)
    program = (
        "import sys; from pathlib import Path; from tests import made; from wsss_lib.config import Config\n"
        "try: made.begin(Config(runs_root=sys.argv[1]), 'maps')\n"
        "except OSError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "runs")],
        text=True,
        capture_output=True,
        **HERE,
        preexec_fn=without_the_powers_of_root,
    )
    assert run.returncode == 0, run.stderr
    if not run.stdout:
        pytest.skip("the rights of files do not count for this user")
    assert run.stdout == f"{runs}/.maps.lock: cannot be written (Permission denied); {REMEDY}\n" and not list(runs.iterdir())


# ---- two runs

HOLDER = """
import sys, time
from pathlib import Path
from wsss_lib.core.store import lock_folder, unlock_folder
held = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
unlock_folder(held)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that makes the stage "maps"."""
    folder = tmp_path / "runs/toy/cam/seed0/maps"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **HERE
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def begin(tmp_path: Path) -> store.StageFolder:
    return made.begin(Config(runs_root=str(tmp_path / "runs")), "maps")


def test_a_second_run_of_a_stage_is_refused(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "WAIT", 0.2)
    with pytest.raises(DataError) as error:
        begin(tmp_path)
    assert f"seed0/maps: another run is making this stage (process {holder.pid} on " in str(error.value)
    assert str(error.value).endswith(
        "); wait until it has finished, or end it (a notebook: shut its kernel down), then run again"
    )
    assert not (tmp_path / "runs/toy/cam/seed0/maps").exists()


def test_a_run_that_was_killed_locks_nothing(holder, tmp_path):
    holder.kill()
    stage = begin(tmp_path)  # waits until it is dead
    assert store.FileLock(stage.lock.lock_file, is_singleton=True, thread_local=False).is_locked


def test_a_second_run_waits_for_one_that_is_just_ending(holder, tmp_path):
    print(file=holder.stdin, flush=True)
    made.finish(begin(tmp_path))
    assert [path.name for path in (tmp_path / "runs/toy/cam/seed0").iterdir()] == ["maps"]


def test_a_process_may_begin_a_stage_twice_and_a_finished_one_is_free(tmp_path):
    first, second = begin(tmp_path), begin(tmp_path)
    assert first.lock is second.lock and first.lock.is_locked
    made.finish(second)
    assert not first.lock.is_locked and begin(tmp_path).lock is None
    (tmp_path / "runs").rename(tmp_path / "moved")  # a finished run can be read anywhere, also where nothing can be written
    assert open_stage(cam.MAPS, Config(runs_root=str(tmp_path / "moved"))).files.is_complete()


# ---- processes


def test_a_worker_that_is_killed_gives_one_sentence_and_the_rest_is_kept(tmp_path):
    with pytest.raises(OSError, match="work: a worker process was killed, perhaps because memory ran out; run"):
        faulty_work.run(tmp_path, faulty_work.killed_at_seven)
    assert workers_of(psutil.Process()) == []
    kept = len(list(tmp_path.iterdir()))
    assert kept < len(faulty_work.IDS) and faulty_work.run(tmp_path) == len(faulty_work.IDS) - kept


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the worker processes that a process has started."""
    servers = [child for child in process.children() if "forkserver" in " ".join(child.cmdline())]
    return [worker for server in servers for worker in server.children()]


def until(condition, seconds: float = 60) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, how):
    """Killed alone, they see that it is gone; a key press reaches all, and the parent ends them."""
    command = [sys.executable, "-m", "tests.faulty_work", str(tmp_path)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, **HERE) as parent:
        until(lambda: len(list(tmp_path.iterdir())) > 4)
        workers = workers_of(psutil.Process(parent.pid))
        assert len(workers) == 2
        if how == signal.SIGKILL:
            os.kill(parent.pid, how)
        else:
            os.killpg(parent.pid, how)
            until((tmp_path / "interrupted").exists)
        until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 20)
        parent.wait()
    assert len(list(tmp_path.iterdir())) < len(faulty_work.IDS)


def test_the_kernel_of_a_notebook_stays_usable_after_an_interrupt(tmp_path):
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(PROJECT_ROOT), env=HERE["env"])
    try:
        kernel = psutil.Process(manager.provisioner.pid)
        begun = client.execute(
            f"from pathlib import Path; from tests import faulty_work\nfaulty_work.run(Path({str(tmp_path)!r}))",
            stop_on_error=False,
        )  # or the kernel refuses what reaches it within the next moment
        until(lambda: len(list(tmp_path.iterdir())) > 4)
        assert len(workers_of(kernel)) == 2
        manager.interrupt_kernel()
        until(lambda: client.get_shell_msg(timeout=60)["parent_header"]["msg_id"] == begun)
        assert workers_of(kernel) == []
        reply = client.execute_interactive("seven = 3 + 4", user_expressions={"seven": "seven"}, timeout=60, output_hook=print)
        assert reply["content"]["user_expressions"]["seven"]["data"]["text/plain"] == "7"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


class DiesInALoader(torch.utils.data.Dataset):
    """Samples whose loader process is killed at the fifth."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor]:
        if torch.utils.data.get_worker_info() and key[1] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return (torch.full((1,), float(key[1])),)


def test_a_loader_process_that_is_killed_gives_one_sentence(tmp_path):
    def trained(folder: Path, num_workers: int) -> bytes:
        torch.manual_seed(0)
        net = torch.nn.Linear(1, 1)
        config = Config(device="cpu", num_workers=num_workers, checkpoint_every=1)
        training.train(
            net,
            lambda model, batch: {"loss": model(batch[0]).square().mean()},
            DiesInALoader(),
            [{"params": list(net.parameters()), "lr": 1e-3}],
            0.9,
            12,
            2,
            config,
            folder,
        )
        training.save_weights(net, folder / "weights.safetensors")
        return (folder / "weights.safetensors").read_bytes()

    with pytest.raises(
        OSError,
        match="training: a loader process was killed, perhaps because memory ran out; run again with a "
        "smaller num_workers, the training goes on where it stopped",
    ):
        trained(tmp_path / "a", 1)
    assert trained(tmp_path / "a", 0) == trained(tmp_path / "b", 0)


# ---- a kill between the weights and the record


def test_a_training_that_ends_before_its_record_is_not_lost(config, undisturbed, monkeypatch):
    """The state stays until the stage is finished, so that only the steps since the last one are made again."""
    steps, save = [], training.save_weights

    def interrupted(net, path):
        save(net, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        short_run(config)
    folder = made.place(config, "classifier")
    assert (folder / "state.safetensors").is_file() and (folder / "weights.safetensors").is_file()
    monkeypatch.setattr(training, "save_weights", save)
    monkeypatch.setattr(training, "progress", lambda items, *rest, **names: steps.extend(items) or items)
    assert short_run(config) == undisturbed and steps == [3]
    assert not (folder / "state.safetensors").exists()


# ---- broken files


@pytest.fixture(scope="module")
def two_hundred(tmp_path_factory) -> Path:
    """Two hundred tiny photographs of one class, the hundredth cut off in the middle, the hundred and first empty."""
    root = tmp_path_factory.mktemp("two_hundred") / "voc"
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    ids = [f"p{number:03d}" for number in range(200)]
    for number, image_id in enumerate(ids):
        array = np.random.default_rng(number).integers(0, 255, (24, 32, 3), np.uint8)
        Image.fromarray(array).save(root / f"JPEGImages/{image_id}.jpg")
    for image_id, share in (("p100", 0.6), ("p101", 0)):
        content = (root / f"JPEGImages/{image_id}.jpg").read_bytes()
        (root / f"JPEGImages/{image_id}.jpg").write_bytes(content[: int(len(content) * share)])
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids))
    (root / "labels.csv").write_text("image_id,thing\n" + "".join(f"{image_id},1\n" for image_id in ids))
    (root / "dataset.json").write_text('{"name": "two hundred", "classes": ["thing"]}')
    return root


def test_broken_images_are_listed_before_a_run_begins(two_hundred):
    with pytest.raises(DataError) as error:
        check_images(load_dataset(two_hundred, "train"))
    assert str(error.value).startswith(f"{two_hundred}/JPEGImages/p100.jpg: the image cannot be read (")
    assert str(error.value).endswith(
        "; of split 'train' 2 of 200 images cannot be read: p100, p101; fetch them again, take "
        "their ids out of the list, or set on_bad_image to 'skip'"
    )
    report = check_dataset(two_hundred, workers=1)
    assert report.counts["unreadable"] == 2 and report.images == 198


def test_broken_images_are_left_out_on_demand(two_hundred, capsys):
    config = Config(data_root=str(two_hundred), on_bad_image="skip")
    whole, part = open_data(Config(data_root=str(two_hundred)), "train"), open_data(config, "train")
    assert set(whole.ids) - set(part.ids) == {"p100", "p101"} and len(part) == len(part.labels) == 198
    assert capsys.readouterr().out == "train: 2 of 200 images cannot be read and are left out: p100, p101\n"
    assert data_hash(whole) != data_hash(part)  # so that a stage made with one is not taken for the other
    (two_hundred / "ImageSets/Segmentation/bad.txt").write_text("p100\np101\n")
    with pytest.raises(DataError, match="p100.jpg: .*none of the 2 images of split 'bad' can be read"):
        open_data(config, "bad")


@pytest.mark.parametrize(
    "name", ["classifier/weights.safetensors", "maps/m_03.npz", "seeds/seed_masks/m_03.png", "seeds/irn_labels/m_03.png"]
)
def test_a_file_cut_off_by_an_earlier_crash_is_deleted_and_made_again(config, undisturbed, name):
    assert short_run(config) == undisturbed
    path = Path(config.runs_root) / "miniature/cam/seed0" / name
    path.write_bytes(path.read_bytes()[:-40])
    data = open_data(config, "train")
    with pytest.raises(DataError) as error:  # whatever reads it
        if path.suffix == ".safetensors":
            build_classifier(config, 3, path)
        elif path.suffix == ".npz":
            sweep_maps(data, path.parent, [0.1, 0.2])
        else:
            score_masks(data, path.parent)
    assert str(error.value).startswith(f"{path}: ") and "again" in str(error.value)
    path.unlink()
    stage = path.relative_to(config.runs_root).parts[3]
    with pytest.raises(DataError, match=f"{stage} is not finished: run notebook"):
        open_stage({"classifier": cam.CLASSIFIER, "maps": cam.MAPS, "seeds": seed_masks.SEEDS}[stage], config)
    assert short_run(config) == undisturbed


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"files": "1"}', b'{"files": 0}', b'{"files": 0, "results_sha256": 3}', b"[" * 100_000],
    ids=lambda content: content[:40].decode(),
)
def test_a_broken_record_gives_one_sentence(tmp_path, content):
    stage = begin(tmp_path)
    (stage.folder / "run.json").write_bytes(content)
    with pytest.raises(DataError, match=r"run.json: .*; delete the folder .*maps and run its stage again$"):
        open_stage(cam.MAPS, Config(runs_root=str(tmp_path / "runs"))).files.results()


# ---- the clock


def test_a_clock_that_is_set_back(tmp_path, monkeypatch):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    stage = begin(tmp_path)
    (stage.folder / "a.txt").write_text("a")
    os.utime(stage.folder / "a.txt", (2**32, 2**32))  # made in the year 2106
    made.finish(stage, images=5)
    record = json.loads((stage.folder / "run.json").read_text())
    assert 0 <= record["seconds"] < 60 and record["images_per_second"] > 0
    assert begin(tmp_path).is_complete()
