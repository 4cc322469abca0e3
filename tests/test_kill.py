"""The chain of two methods is killed again and again, at random points, and ends in the same bytes as one left in peace.

`make test` kills it a few times. More, or with worker processes (docs/reliability.md has the results):

    WSSS_KILLS=30 python -m pytest tests/test_kill.py -s
    WSSS_KILLS=8 WSSS_KILL_WORKERS=2 python -m pytest tests/test_kill.py -s -k chain
    WSSS_KILLS_OF_NOTEBOOKS=20 python -m pytest tests/test_kill.py -s -k notebooks
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.checkout import environment, git, second_checkout
from tests.small_chain import METHODS, ChainServer, chain_server, everything, make_data, unfinished, write_preset

KILLS = int(os.environ.get("WSSS_KILLS", 5))
KILLS_OF_NOTEBOOKS = int(os.environ.get("WSSS_KILLS_OF_NOTEBOOKS", 0))
WORKERS = int(os.environ.get("WSSS_KILL_WORKERS", 0))
GROWING = {"log.jsonl", "state.safetensors"}  # the only files that change after they have appeared
KINDS = {
    "classifier": "training",
    "network": "training",
    "irn": "training",
    "deeplab": "training",
    "maps": "images",
    "refined_seeds": "images",
    "predictions": "images",
    "seeds": "refinement",
    "pseudo_masks": "refinement",
    "overview": "report",
    "": "report or between two stages",
}

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The images of the chain."""
    return make_data(tmp_path_factory.mktemp("data") / "micro")


def processor_seconds(process: psutil.Process) -> float:
    """Return what a process and those that it has started have taken so far."""
    family = [process, *process.children(recursive=True)] if WORKERS else [process]
    return sum(sum(part.cpu_times()[:2]) for part in family)


def kill_after(server: ChainServer, pid: int, seconds: float) -> bool:
    """Kill the whole group of a run after it has worked for so long; return whether it had not finished before.

    Processor seconds, not those of the clock, so that kills are spread alike on a busy machine.
    """
    try:
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE and processor_seconds(process) < seconds:
            time.sleep(0.02)
        os.killpg(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):  # it was quicker
        pass
    status, _ = server.end()
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_a_chain_that_is_killed_often_ends_in_the_same_bytes(data, tmp_path):
    rng, places, runs = random.Random(0), Counter(), 0
    with chain_server() as server:
        server.begin_chain(data, tmp_path / "left in peace", num_workers=WORKERS)
        status, total = server.end()
        assert status == 0
        expected = everything(tmp_path / "left in peace")
        names = [name.rsplit("/", 1)[-1] for name in expected]
        assert len(expected) > 300 and not [name for name in names if name.startswith(".") or name in GROWING - {"log.jsonl"}]
        while sum(places.values()) < KILLS:
            folder, runs, killed = tmp_path / f"killed {runs}", runs + 1, True
            while killed:
                pid = server.begin_chain(data, folder, num_workers=WORKERS)
                enough = sum(places.values()) >= KILLS
                if enough:
                    assert server.end()[0] == 0
                    break
                killed = kill_after(server, pid, max(total / KILLS, 0.8) * rng.uniform(0.3, 1.7))
                if killed:
                    places[unfinished(folder).split("/")[-1]] += 1
                    check_that_files_are_whole(everything(folder), expected)
            found = everything(folder)
            assert sorted(found) == sorted(expected)
            assert [name for name in expected if found[name] != expected[name]] == []
    kinds = Counter()
    for stage, number in places.items():
        kinds[KINDS[stage]] += number
    print(f"\n{sum(places.values())} kills in {runs} runs of {total:.1f} processor seconds: {dict(kinds)}; {dict(places)}")
    assert KILLS < 20 or len(kinds) >= 4


def finished(runs: Path) -> dict[tuple[str, str], str]:
    """Return stage and key of every finished result, present or kept, to the hash of what it holds."""
    found = {}
    for record in runs.glob("*/*/seed*/*/run.json"):
        if not record.parent.name.startswith("."):
            content = json.loads(record.read_text())
            found["/".join(record.parent.parts[-3:-1]) + content["stage"], content["key"]] = content["results_sha256"]
    return found


def test_no_finished_result_is_lost_when_parameters_change_between_kills(data, tmp_path):
    """Three values of a parameter of the maps take turns, and each run is killed somewhere: what was finished stays."""
    rng, kills, rounds, values = random.Random(KILLS), 0, 0, ((1.0, 0.5), (1.0,), (0.5,))
    with chain_server() as server:
        while kills < KILLS:
            folder, known, open_values, rounds = tmp_path / f"runs {rounds}", {}, set(values), rounds + 1
            while open_values and kills < KILLS:  # a run that has all its results ends before it can be killed
                scales = values[rng.randrange(3)]
                pid = server.begin_chain(data, folder, num_workers=WORKERS, cam_scales=scales)
                killed = kill_after(server, pid, rng.uniform(0.3, 4))
                kills, open_values = kills + killed, open_values - (set() if killed else {scales})
                now = finished(folder)
                assert known.items() <= now.items()
                known = now
        for runs in (folder, tmp_path / "left in peace"):  # the end is that of a run of its own
            server.begin_chain(data, runs, num_workers=WORKERS, cam_scales=scales)
            assert server.end()[0] == 0
        alone, found = finished(tmp_path / "left in peace"), finished(folder)
        assert len(alone) > 5 and alone.items() <= found.items() and known.items() <= found.items()
    print(f"\n{kills} kills between three values of a parameter in {rounds} rounds, {len(found)} results in the last")


def check_that_files_are_whole(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """At any moment a file that has its name has its content; what a killed process leaves besides is marked."""
    for name, content in found.items():
        last = name.rsplit("/", 1)[-1]
        if last.startswith(".writing-") or last.endswith(".lock") or last in GROWING:
            continue
        assert content == expected[name], name


@pytest.mark.skipif(KILLS_OF_NOTEBOOKS == 0, reason="takes half a minute a kill: set WSSS_KILLS_OF_NOTEBOOKS=20")
@pytest.mark.timeout(4 * 3600)
def test_the_pipeline_of_notebooks_is_killed(data, tmp_path):
    """Snakemake, papermill and a kernel, which has a group of its own, sees that it is alone and holds the lock till then."""
    root, rng, places, runs = second_checkout(tmp_path), random.Random(0), Counter(), 0
    write_preset(root, data)

    def begin(folder: Path) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "snakemake",
            f"{folder}/micro/report/index.html",
            "--cores",
            "1",
            "--nolock",
            "--rerun-incomplete",
            "--config",
            "preset=micro",
            f"runs_root={folder}",
            f"methods={json.dumps(METHODS)}",
        ]
        with (tmp_path / "snakemake.log").open("ab") as log:
            return subprocess.Popen(command, cwd=root, env=environment(root), start_new_session=True, stdout=log, stderr=log)

    def failure() -> str:
        return (tmp_path / "snakemake.log").read_text()[-3000:]

    assert begin(tmp_path / "left in peace").wait() == 0, failure()
    expected = everything(tmp_path / "left in peace")
    # Executed notebooks, and the report's pages made of them, hold the time of each cell and the folder's name.
    pages = {name for name in expected if name.endswith("notebook.ipynb") or "/report/" in name and "-seed0-" in name}
    assert len(pages) > 30
    while sum(places.values()) < KILLS_OF_NOTEBOOKS:
        folder, runs, killed = tmp_path / f"killed {runs}", runs + 1, True
        while killed:  # begun again at once: a run waits for the kernel that is just ending
            process = begin(folder)
            enough = sum(places.values()) >= KILLS_OF_NOTEBOOKS
            try:
                process.wait(None if enough else rng.uniform(3, 40))
                killed = False
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                places[unfinished(folder).split("/")[-1]] += 1
        assert process.returncode == 0, failure()
        found = everything(folder)
        assert sorted(found) == sorted(expected)
        assert [name for name in set(expected) - pages if found[name] != expected[name]] == []
    assert git(root, "status", "--porcelain").split() == ["??", "configs/micro.yaml"]
    print(f"\n{sum(places.values())} kills of Snakemake and its notebooks in {runs} runs: {dict(places)}")
