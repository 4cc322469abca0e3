"""A stage is made once, resumed, kept when its parameters change, and found again; it reads what it declares and no more."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.toy import make_toy_dataset
from tests import small_chain
from tests.made import begin
from wsss_lib import runs
from wsss_lib.config import Config
from wsss_lib.core import store
from wsss_lib.core.stage import Job, Stage, open_stage, run
from wsss_lib.core.store import peak_memory_mib
from wsss_lib.errors import DataError
from wsss_lib.methods import METHODS, cam
from wsss_lib.parameters import PROJECT_ROOT, RUNTIME, Settings
from wsss_lib.pipeline import SHARED, STAGES, stages_of
from wsss_lib.segment import deeplab


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def config_of(tmp_path: Path, **values) -> Config:
    return Config(runs_root=str(tmp_path / "runs"), device="cpu", **values)


class Writer:
    """A stage's `make` that writes one file and counts its calls."""

    def __init__(self, content: Callable[[Job], str] = lambda job: f"{job.config.cam_epochs} epochs"):
        self.content, self.calls = content, 0

    def __call__(self, job: Job) -> int:
        self.calls += 1
        (job.folder / "result.txt").write_text(self.content(job))
        return 3


def stage_of(
    make: Callable[[Job], int], name: str = "maps", reads: tuple[str, ...] = ("cam_epochs", "seed"), **values
) -> Stage:
    return Stage(name, "10_cam", make, reads=reads, split="", **values)


# ---- the record


def test_a_finished_stage_holds_its_record(tmp_path):
    stage = stage_of(Writer(), score=lambda job: [{"what": "test", "miou": 1.0}])
    job = run(stage, config_of(tmp_path, seed=3))
    assert job.folder == tmp_path / "runs" / "toy" / "cam" / "seed3" / "maps"
    assert files_below(job.folder) == ["begun.json", "metrics.json", "result.txt", "run.json", "scored.json"]
    record = job.files.record()
    assert record["stage"] == "maps" and record["parameters"] == {"cam_epochs": 8, "seed": 3}
    assert record["files"] == 1 and record["device"] == "cpu" and record["images_per_second"] > 0
    assert record["versions"]["torch"] and record["versions"]["python"].startswith("3.")
    assert record["peak_memory_mib"] > 50 and record["seconds"] >= 0
    assert job.metrics == [{"what": "test", "miou": 1.0}] and job.files.results() == record["results_sha256"]


@pytest.mark.system
def test_the_peak_of_memory_is_that_of_this_process_not_of_the_one_that_started_it():
    ask = [sys.executable, "-c", "from wsss_lib.core.store import peak_memory_mib; print(peak_memory_mib('cpu'))"]
    alone = int(subprocess.check_output(ask, cwd=PROJECT_ROOT))
    much = np.ones(2**28, np.uint8)
    assert int(subprocess.check_output(ask, cwd=PROJECT_ROOT)) < alone + 64 < peak_memory_mib("cpu"), len(much)


def test_run_json_is_written_last(tmp_path, monkeypatch):
    written, write = [], store.write_json
    monkeypatch.setattr(store, "write_json", lambda path, content: (written.append(path.name), write(path, content)))
    run(stage_of(Writer()), config_of(tmp_path))
    assert written == ["begun.json", "metrics.json", "scored.json", "run.json"]


def test_an_unfinished_stage_is_resumed_and_cannot_be_read(tmp_path):
    def fail(job: Job) -> int:
        (job.folder / "half.txt").write_text("half")
        (job.folder / "deep").mkdir(exist_ok=True)
        for leftover in (job.folder / ".writing-1.npz", job.folder / "deep" / ".writing-2.png"):
            leftover.write_text("cut off")
        raise KeyboardInterrupt

    config = config_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(stage_of(fail), config)
    with pytest.raises(DataError, match="maps is not finished: run notebook 10_cam with the same dataset, method and seed"):
        open_stage(stage_of(fail), config)
    found = []
    run(stage_of(lambda job: found.extend(files_below(job.folder)) or 0), config)
    assert found == ["begun.json", "half.txt"]


def test_a_deleted_file_is_made_again(tmp_path):
    make, config = Writer(), config_of(tmp_path)
    job = run(stage_of(make), config)
    (job.folder / "result.txt").unlink()
    run(stage_of(make), config)
    assert make.calls == 2 and (job.folder / "result.txt").is_file()


def test_equal_results_give_equal_hashes_whatever_happened_beside_them(tmp_path):
    first = run(stage_of(Writer()), config_of(tmp_path / "a"))
    second = run(stage_of(Writer(), score=lambda job: [{"miou": 2.0}]), config_of(tmp_path / "b"))
    (second.folder / "notebook.ipynb").write_text("written by papermill, at any time")
    assert first.files.results() == second.files.results()


def test_a_broken_record_names_the_folder_to_delete(tmp_path):
    config = config_of(tmp_path)
    job = run(stage_of(Writer()), config)
    (job.folder / "run.json").write_text('{"results_sha')
    with pytest.raises(DataError, match="not valid JSON; delete the folder .*maps and run its stage again"):
        open_stage(stage_of(Writer()), config)
    (job.folder / "begun.json").write_text("[")
    with pytest.raises(DataError, match="not valid JSON; delete the folder"):
        run(stage_of(Writer()), config)


# ---- keys


def test_same_parameters_do_nothing(tmp_path, capsys):
    make, config = Writer(), config_of(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run(stage_of(make), config).folder.iterdir()}
    time.sleep(0.01)
    elsewhere = config_of(tmp_path, seed_threshold=0.4, num_workers=1, device_batch_size=1, irn_epochs=3)
    for again in (config, elsewhere):
        assert {path: path.stat().st_mtime_ns for path in run(stage_of(make), again).folder.iterdir()} == before
    assert make.calls == 1 and capsys.readouterr().out == ""


def test_a_parameter_changed_and_set_back_finds_the_old_results(tmp_path, capsys):
    make = Writer()
    for epochs in (8, 80, 8, 80, 9, 8):
        job = run(stage_of(make), config_of(tmp_path, cam_epochs=epochs))
        assert (job.folder / "result.txt").read_text() == f"{epochs} epochs" and job.folder.name == "maps"
    assert make.calls == 3
    assert "the earlier results are kept in maps." in capsys.readouterr().out


def test_the_lock_of_a_process_that_was_killed_at_the_end_is_removed(tmp_path):
    job = run(stage_of(Writer()), config_of(tmp_path))
    left = job.folder.with_name(f".{job.folder.name}.lock")
    left.write_text("process 1 on nowhere")
    run(stage_of(Writer()), config_of(tmp_path))
    assert not left.exists()


def test_an_interrupted_result_is_kept_too(tmp_path):
    def stopped(job: Job) -> int:
        (job.folder / "state.txt").write_text("half of 80 epochs")
        raise KeyboardInterrupt

    make = Writer()
    run(stage_of(make), config_of(tmp_path, cam_epochs=8))
    with pytest.raises(KeyboardInterrupt):
        run(stage_of(stopped), config_of(tmp_path, cam_epochs=80))
    job = run(stage_of(make), config_of(tmp_path, cam_epochs=8))
    assert make.calls == 1 and (job.folder / "result.txt").read_text() == "8 epochs"
    job = run(stage_of(lambda job: 0), config_of(tmp_path, cam_epochs=80))
    assert (job.folder / "state.txt").read_text() == "half of 80 epochs"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    make, rename = Writer(), os.replace
    for epochs in (8, 80):
        run(stage_of(make), config_of(tmp_path, cam_epochs=epochs))

    def killed(source, target):
        rename(source, target)
        if Path(source).name == "maps":  # the first rename is made, the second is not
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", killed)
        run(stage_of(make), config_of(tmp_path, cam_epochs=8))
    assert (run(stage_of(make), config_of(tmp_path, cam_epochs=8)).folder / "result.txt").read_text() == "8 epochs"
    assert (run(stage_of(make), config_of(tmp_path, cam_epochs=80)).folder / "result.txt").read_text() == "80 epochs"
    assert make.calls == 2


def test_a_folder_on_another_disk_keeps_its_results(tmp_path):
    make, config = Writer(), config_of(tmp_path)
    (tmp_path / "big").mkdir()
    (tmp_path / "runs/toy/cam/seed0").mkdir(parents=True)
    (tmp_path / "runs/toy/cam/seed0/maps").symlink_to(tmp_path / "big")
    run(stage_of(make), config)
    run(stage_of(make), config_of(tmp_path, cam_epochs=9))
    assert (run(stage_of(make), config).folder / "result.txt").read_text() == "8 epochs" and make.calls == 2
    assert (tmp_path / "big/result.txt").read_text() == "8 epochs"


def test_foreign_files_are_not_thrown_away(tmp_path):
    make, config = Writer(), config_of(tmp_path)
    run(stage_of(make), config)
    run(stage_of(make), config_of(tmp_path, cam_epochs=9))
    folder = tmp_path / "runs/toy/cam/seed0/maps"
    os.replace(folder, folder.with_name("maps.moved"))
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="holds files of no finished or begun stage; move them away"):
        run(stage_of(make), config)
    assert (folder / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["cam_weights", "deeplab_init"])
def test_a_weights_file_counts_by_its_content(tmp_path, name):
    weights = tmp_path / "own.safetensors"
    make = Writer(lambda job: Path(getattr(job.config, name)).read_text())
    stage, config = stage_of(make, reads=(name, "seed")), config_of(tmp_path, **{name: str(weights)})
    for content in ("first", "second", "first"):
        weights.write_text(content)
        job = run(stage, config)
        assert (job.folder / "result.txt").read_text() == content and set(job.files.record()["inputs"]) == {name}
    assert make.calls == 2


def test_a_changed_input_makes_what_follows_anew_and_finds_it_again(tmp_path):
    first, second = Writer(), Writer(lambda job: "from " + (job.inputs["maps"].folder / "result.txt").read_text())
    before = stage_of(first)
    after = stage_of(second, "seeds", ("seed_threshold",), inputs=lambda config: {"maps": before})
    for epochs in (8, 9, 8):
        config = config_of(tmp_path, cam_epochs=epochs)
        run(before, config)
        assert (run(after, config).folder / "result.txt").read_text() == f"from {epochs} epochs"
    run(after, config_of(tmp_path, irn_epochs=9))
    assert (first.calls, second.calls) == (2, 2)


def test_the_classifier_may_learn_from_more_images_than_the_later_steps(tmp_path):
    root = str(make_toy_dataset(tmp_path / "data", num_train=6, num_val=2, side=48, progress=False))

    def images(stage: Stage, **values) -> int:
        return len(Job(stage, config_of(tmp_path, data_root=root, **values)).data)

    assert [images(stage, limit=2, cam_limit=5) for stage in (cam.CLASSIFIER, cam.MAPS, deeplab.DEEPLAB)] == [5, 2, 2]
    assert [images(cam.CLASSIFIER, **values) for values in ({"limit": 2}, {"cam_limit": 4}, {})] == [2, 4, 6]


def test_reading_what_is_not_declared_is_an_error(tmp_path):
    with pytest.raises(AttributeError, match="stage 'maps' reads the parameter 'cam_crop' without declaring it"):
        run(stage_of(Writer(lambda job: str(job.config.cam_crop))), config_of(tmp_path))
    with pytest.raises(AttributeError, match="cannot be changed"):
        Config().settings(("cam_crop",)).cam_crop = 3
    with pytest.raises(ValueError, match="no parameter fits 'cam_nonsense'"):
        Config().settings(("cam_nonsense",))


# ---- scores


def test_scores_are_made_again_without_the_stage(tmp_path):
    make = Writer()
    stage = stage_of(
        make,
        score=lambda job: [{"what": "sweep", "count": job.config.seed_num_thresholds}],
        score_reads=("seed_num_thresholds",),
    )
    for count in (60, 9):
        assert run(stage, config_of(tmp_path, seed_num_thresholds=count)).metrics == [{"what": "sweep", "count": count}]
    assert make.calls == 1


def test_other_masks_are_scored_without_making_the_maps_again(tmp_path):
    data = small_chain.make_data(tmp_path / "data")
    config = small_chain.config_of(data, tmp_path / "runs", "cam")
    run(cam.CLASSIFIER, config)
    before = run(cam.MAPS, config)
    made = {path: path.stat().st_mtime_ns for path in before.folder.glob("*.npz")}
    rows = before.metrics
    (data / "Better").mkdir()
    for path in (data / "SegmentationClass").glob("*.png"):
        (data / "Better" / path.name).write_bytes((data / "PartMasks" / path.name).read_bytes())
    after = run(cam.MAPS, config.model_copy(update={"mask_folder": "Better"}))
    assert after.metrics != rows and {path: path.stat().st_mtime_ns for path in after.folder.glob("*.npz")} == made


# ---- the stages of the pipeline


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    data = small_chain.make_data(root / "data")
    small_chain.run(data, root / "runs", ("cam",))
    return small_chain.config_of(data, root / "runs", "cam")


@pytest.mark.system
def test_other_validation_images_leave_the_trained_network_complete(chain, monkeypatch):
    monkeypatch.setattr("wsss_lib.core.training.train", None)  # nothing may be trained
    other = chain.model_copy(update={"val_split": "train"})
    assert run(deeplab.DEEPLAB, other).files.is_complete()
    run(deeplab.PREDICTIONS, other)
    rows = run(deeplab.PREDICTIONS, chain).metrics
    assert {row["split"] for row in rows} == {"val"}


@pytest.mark.parametrize("method", METHODS)
def test_every_stage_declares_parameters_that_exist(method):
    config = Config(method=method)
    for stage in stages_of(config):
        assert set(config.names_of(*stage.read_by(config), *stage.score_reads)) and not set(stage.read_by(config)) & set(
            RUNTIME
        )


CASES = {
    "cam": {},
    "amn": {},
    "rib": {"rib_companions": 2},
    "vwe": {"vwe_epochs": 1, "vwe_words": 4},
    "drs": {"drs_crop": 48},
    "sccam": {"sccam_round_epochs": (1,), "sccam_schedule_epochs": 1, "refinement": "affinitynet", "affinitynet_crop": 48},
}


@pytest.mark.system
@pytest.mark.parametrize("method, values", CASES.items())
def test_a_stage_reads_all_that_it_declares(chain, tmp_path, monkeypatch, method, values):
    """A key that holds what a stage never reads throws results away; one that lacks what it reads is an error anyway."""
    seen: set[str] = set()
    read = Settings.__getattribute__

    def watched(self, name):
        if not name.startswith("_"):
            seen.add(name)
        return read(self, name)

    config = chain.model_copy(update={"runs_root": str(tmp_path), "method": method} | values)
    base = config.model_copy(update={"method": "cam"})
    for stage in (cam.CLASSIFIER, cam.MAPS) if method != "cam" else ():
        run(stage, base)
    monkeypatch.setattr(Settings, "__getattribute__", watched)
    for stage in stages_of(config):
        seen.clear()
        run(stage, config).net if stage.load else run(stage, config)
        declared = set(config.names_of(*stage.read_by(config), *stage.score_reads))
        assert declared - seen <= {"seed"}, (stage.name, declared - seen)


# ---- the command


def listed(capsys, folder: Path, *words: str) -> str:
    runs.main([str(folder), *words])
    return capsys.readouterr().out


def test_results_are_listed_with_what_differs_and_removed_by_key(tmp_path, capsys, monkeypatch):
    make = Writer()
    for epochs in (8, 80):
        run(stage_of(make), config_of(tmp_path, cam_epochs=epochs))
    folder = tmp_path / "runs/toy"
    capsys.readouterr()
    text = listed(capsys, folder)
    (kept,) = [line for line in text.splitlines() if "kept" in line]
    assert "cam_epochs=8" in kept and "2 results" in text
    monkeypatch.setattr("builtins.input", lambda question: "n")
    with pytest.raises(SystemExit, match="nothing was deleted"):
        runs.main([str(folder), "--remove-kept"])
    assert len(runs.results_of(folder)) == 2
    listed(capsys, folder, "--remove-kept", "--yes")
    (left,) = runs.results_of(folder)
    assert left.present and left.finished and run(stage_of(make), config_of(tmp_path, cam_epochs=80)) and make.calls == 2
    with pytest.raises(SystemExit, match="no result has the key nonsense"):
        runs.main([str(folder), "--remove", "nonsense"])
    with pytest.raises(SystemExit, match="no results of any stage"):
        runs.main([str(tmp_path)])


def test_removing_ends_what_was_killed_and_never_follows_a_link(tmp_path, capsys):
    run(stage_of(Writer()), config_of(tmp_path))
    (result,) = runs.results_of(tmp_path / "runs/toy")
    elsewhere = tmp_path / "large disk"
    result.folder.rename(elsewhere)
    result.folder.symlink_to(elsewhere)
    left = result.folder.with_name(f".removing-{result.folder.name}")  # by a call that was killed
    shutil.copytree(elsewhere, left)
    assert "only this link is removed" in listed(capsys, tmp_path / "runs/toy", "--remove", result.key, "--yes")
    assert (elsewhere / "run.json").is_file() and not result.folder.is_symlink()
    elsewhere.rename(result.folder)
    listed(capsys, tmp_path / "runs/toy", "--remove", result.key, "--yes")
    assert not result.folder.exists() and not left.exists()


@pytest.mark.system
def test_a_result_that_is_being_made_is_not_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "WAIT", 0.1)
    stage = begin(config_of(tmp_path), "maps")
    code = (
        "import sys; from wsss_lib import runs; from wsss_lib.core import store; store.WAIT = 0.1\n"
        "runs.main([sys.argv[1], '--remove', sys.argv[2], '--yes'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "runs/toy"), stage.key()], cwd=PROJECT_ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1 and "another run is making this stage" in result.stderr and stage.folder.is_dir()


def test_stages_have_names_of_folders_of_their_own():
    for method in METHODS.values():
        names = [(stage.method, stage.name) for stage in (*method.STAGES, *SHARED)]
        assert len(set(names)) == len(names)
    assert not any("." in stage.name for stage in STAGES)


def test_a_score_of_another_key_is_not_taken_for_this_one(tmp_path):
    stage = stage_of(Writer(), score=lambda job: [{"n": 1}])
    job = run(stage, config_of(tmp_path))
    (job.folder / "scored.json").unlink()  # a kill between the two files
    assert run(replace(stage, score=lambda job: [{"n": 2}]), config_of(tmp_path)).metrics == [{"n": 2}]
