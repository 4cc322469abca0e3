"""The Snakefile: every preset plans the same graph, and a run that was killed goes on where it stopped."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.warm import run_module
from wsss_lib import costs
from wsss_lib.config import Config
from wsss_lib.methods import METHODS
from wsss_lib.presets import read_preset

pytestmark = pytest.mark.system

ROOT = Path(__file__).parent.parent
PRESETS = sorted((ROOT / "configs").glob("*.yaml"))

# What each notebook makes in which method's folder, and what must be there before.
GRAPH = {
    ("02_datasets_and_labels", "data"): (["check"], []),
    ("10_cam", "cam"): (["classifier", "maps"], ["data/seed0/check"]),
    ("70_seeds", "cam"): (["seeds"], ["cam/seed0/maps"]),
    ("80_irn", "cam"): (["irn", "pseudo_masks"], ["cam/seed0/seeds"]),
    ("90_deeplab", "cam"): (["deeplab", "predictions"], ["cam/seed0/pseudo_masks"]),
    ("90_deeplab", "truth"): (["deeplab", "predictions"], ["cam/seed0/classifier"]),
    ("00_start_here", "report"): (["overview"], ["cam/seed0/predictions", "truth/seed0/predictions"]),
    ("95_comparison", "report"): (["comparison"], ["cam/seed0/predictions", "truth/seed0/predictions"]),
}


def snakemake(*arguments: str, folder: Path = ROOT, config: tuple[str, ...] = ()) -> list[str]:
    """Return the words after `python -m` that run Snakemake as `make smoke` does."""
    return [
        "snakemake",
        "--directory",
        str(folder),
        "--snakefile",
        str(folder / "Snakefile"),
        "--cores",
        "2",
        "--nolock",
        "--rerun-incomplete",
        *arguments,
        "--config",
        *config,
    ]


def output_of(words: list[str]) -> str:
    """Run a module that must succeed; return what it printed."""
    done = run_module(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_four_sizes_are_there():
    assert {path.stem for path in PRESETS} >= {"smoke", "voc12-small", "voc12", "coco14"}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_graph(preset, tmp_path):
    """Nothing exists below a new runs_root: every notebook is planned, with parameters that the configuration knows."""
    dataset = read_preset(preset).get("dataset", "toy")
    base = tmp_path / dataset
    plan = output_of(snakemake("--dry-run", "--printshellcmds", config=(f"preset={preset.stem}", f"runs_root={tmp_path}")))
    planned = {}
    for block in plan.split("\nrule ")[1:]:
        lines = dict(re.findall(r"^    (input|output): (.*)$", block, flags=re.MULTILINE))
        if "-m papermill" in block:
            words = shlex.split(re.search(r"^\S+ -m papermill .*?(?= \|\|)", block, flags=re.MULTILINE)[0])
            options = [words[i : i + 3] for i, word in enumerate(words) if word in ("-r", "-p")]
            given = {name: int(value) if option == "-p" else value for option, name, value in options}
            assert words[words.index("-f") + 1] == f"configs/{preset.stem}.yaml"
            config = Config.from_values(read_preset(preset) | given)
            assert config.runs_root == str(tmp_path) and config.seed == 0
            notebook = Path(words[words.index("papermill") + 1])
            assert (ROOT / notebook).is_file()
            outputs, inputs = lines["output"].split(", "), lines["input"].split(", ")
            folder = Path(outputs[0]).relative_to(base).parts[0]
            assert config.method == ("cam" if folder == "report" else folder)  # the report is about a method
            planned[notebook.stem, folder] = outputs, inputs
    assert set(planned) == set(GRAPH)
    made = {output for outputs, _ in planned.values() for output in outputs}
    for (notebook, method), (stages, inputs) in GRAPH.items():
        outputs, needed = planned[notebook, method]
        assert outputs == [f"{base}/{method}/seed0/{stage}/notebook.ipynb" for stage in stages]
        assert {f"notebooks/{notebook}.ipynb", *(f"{base}/{stage}/notebook.ipynb" for stage in inputs)} <= set(needed)
        assert set(needed) - {f"notebooks/{notebook}.ipynb"} <= made
    assert f"output: {base}/report/index.html" in plan


def test_seeds_and_methods_multiply(tmp_path):
    plan = output_of(snakemake("--dry-run", "--printshellcmds", config=(f"runs_root={tmp_path}", "seeds=[0,1,2]")))
    rules = Counter(re.findall(r"^rule (\w+):", plan, flags=re.MULTILINE))
    once = dict.fromkeys(("datasets_and_labels", "overview", "comparison", "report", "all"), 1)
    assert rules == once | dict.fromkeys(("cam", "seeds", "irn"), 3) | {"deeplab": 6}


def notebooks_of(plan: str) -> list[str]:
    """Return "method notebook" for every planned run of a notebook, sorted."""
    runs = re.findall(r"-m papermill notebooks/(\S+)\.ipynb .*? -r method (\S+)", plan)
    return sorted(f"{method} {notebook}" for notebook, method in runs)


@pytest.mark.parametrize(
    "preset, refinement, expected",
    [
        ("smoke", "", {"cam": "80_irn", "drs": "30_drs", "sccam": "80_irn"}),  # configs/methods/smoke.drs.yaml says so
        ("smoke", "affinitynet", {"cam": "75_affinitynet", "drs": "75_affinitynet", "sccam": "75_affinitynet"}),
        ("voc12", "", {"cam": "80_irn", "drs": "30_drs", "sccam": "75_affinitynet"}),  # configs/methods/voc12.*.yaml say so
        ("coco14", "", {"cam": "80_irn", "drs": "30_drs", "sccam": "75_affinitynet"}),
        ("voc12", "irn", {"cam": "80_irn", "drs": "80_irn", "sccam": "80_irn"}),
    ],
)
def test_the_refinement_is_chosen_by_preset_method_or_command(tmp_path, preset, refinement, expected):
    choice = (f"refinement={refinement}",) if refinement else ()
    plan = output_of(
        snakemake(
            "--dry-run",
            "--printshellcmds",
            config=(f"preset={preset}", f"runs_root={tmp_path}", "methods=[cam,drs,sccam]", *choice),
        )
    )
    runs = notebooks_of(plan)
    assert [run for run in runs if run.endswith(("75_affinitynet", "80_irn"))] == sorted(
        f"{method} {notebook}" for method, notebook in expected.items() if notebook != "30_drs"
    )
    base = tmp_path / read_preset(ROOT / "configs" / f"{preset}.yaml").get("dataset", "toy")
    stage = {"80_irn": "pseudo_masks", "75_affinitynet": "affinitynet_masks", "30_drs": "maps"}
    for method, notebook in expected.items():
        folder = base / method / "seed0"
        inputs = re.search(rf"input: (.*notebooks/90_deeplab.ipynb)\n    output: {folder}/deeplab/", plan)[1].split(", ")
        assert f"{folder}/{stage[notebook]}/notebook.ipynb" in inputs
    assert plan.count("-r refinement ") == (plan.count("-m papermill") if refinement else 0)


def test_any_parameter_can_be_given_on_the_command_line(tmp_path):
    plan = output_of(
        snakemake(
            "--dry-run",
            "--printshellcmds",
            config=(
                f"runs_root={tmp_path}",
                "methods=[amn]",
                "cam_scales=[1.0, 0.5]",
                "limit=3",
                "mixed_precision=true",
                "labels=my.csv",
            ),
        )
    )
    options = "-p cam_scales '(1.0, 0.5)' -p limit 3 -p mixed_precision True -r labels my.csv "
    assert plan.count(options) == plan.count("-m papermill") > 5
    files = "-f configs/smoke.yaml -f configs/methods/smoke.amn.yaml"
    assert f"{files} {options}" in plan, "what the command line says wins over files"


def test_the_demo_takes_all_methods_through_the_chain(tmp_path):
    """What `make demo` calls, planned below a new folder."""
    planned = subprocess.run(["make", "-n", "demo"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    line = next(line for line in planned.replace("\\\n", " ").splitlines() if "--config" in line)
    config = shlex.split(line.partition("--config")[2])
    plan = output_of(snakemake("--dry-run", "--printshellcmds", config=(f"runs_root={tmp_path}", *config)))
    counts = Counter(run.split()[1] for run in notebooks_of(plan))
    assert counts["90_deeplab"] == 7 and counts["80_irn"] == 5 and counts["10_cam"] == 1
    assert {"20_rib", "30_drs", "40_amn", "50_vwe", "60_sccam", "95_comparison"} <= set(counts)


@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
def test_a_cluster_gets_the_graph_that_the_costs_are_made_for(profile, tmp_path):
    """Five methods, three seeds, as Snakemake itself plans them with the profile (only the executor is not the cluster's)."""
    methods, seeds = [name for name in METHODS if name != "cam"], [0, 1, 2]
    plan = output_of(
        [
            word
            for word in snakemake(
                "--profile",
                str(ROOT / "configs" / "profiles" / profile),
                "--executor",
                "local",
                "--dry-run",
                "--printshellcmds",
                config=(
                    "preset=voc12",
                    f"runs_root={tmp_path}",
                    f"methods=[{','.join(methods)}]",
                    "seeds=[0,1,2]",
                    "processes=2",
                ),
            )
        ]
    )
    runs = Counter(re.findall(r"-m papermill notebooks/(\S+)\.ipynb .*? -r method (\S+)", plan))
    assert runs == costs.jobs("voc12", methods, seeds) and runs.total() == plan.count("-p processes 2")
    with_gpu = Counter(re.findall(r"^rule (\w+):(?:(?!^rule ).)*?resources: [^\n]*gpu=1", plan, flags=re.MULTILINE | re.DOTALL))
    assert with_gpu == {"cam": 3, "maps": 15, "irn": 9, "affinitynet": 3, "deeplab": 18}


@pytest.mark.parametrize(
    "config, message",
    [
        ("refinement=crf", "refinement 'crf' is unknown; take one of: irn, affinitynet, drs"),
        ("preset=voc13", "preset 'voc13' does not exist in configs/; take one of: coco-toy, coco14, "),
        ("methods=cam", "methods and seeds are lists"),
        ("seed=3", "seed differs from run to run: give seeds instead"),
        ("limt=30", "unknown parameter 'limt'; did you mean 'limit'?"),
        ("limit=few", "parameter limit = 'few': Input should be a valid integer"),
        ("methods=[nonsense]", "there is no method 'nonsense'; take some of: cam"),
        ("methods=[[cam]]", "there is no method ['cam']; take some of: cam"),
        ("methods=[]", "methods and seeds are lists"),
        ("seeds=[$(touch x)]", "parameter seed = '$(touch x)': Input should be a valid integer"),
        ("seeds=[-1]", "parameter seed = '-1': Input should be greater than or equal to 0"),
        ("shards=$(touch x)2", "parameter shards = '$(touch x)2': Input should be a valid integer"),
        ("shards=0", "parameter shards = 0: Input should be greater than or equal to 1"),
        ("launcher=[a, b]", "launcher = ['a', 'b'] is a command and must be text"),
        ("runs_root=-rf", "runs_root = '-rf' is not a folder that a run can use; give one without {}<>"),
        ("runs_root={x}", "parameter runs_root = {'x': ''}: must be text"),
        ("runs_root=a{x}", "runs_root = 'a{x}' is not a folder that a run can use"),
        ("runs_root=<x>", "runs_root = '<x>' is not a folder that a run can use"),
        ("runs_root=7", "parameter runs_root = 7: must be text"),
        ("dataset=../x", "parameter dataset = '../x': String should match pattern"),
        ("dataset='a\nb'", "String should match pattern"),
        ("dataset=a'b", "String should match pattern"),
        ("preset=../../etc/passwd", "preset = '../../etc/passwd' is not a name"),
        ("preset=[smoke]", "preset = ['smoke'] is not a name"),
        ("folder=/etc", "unknown parameter 'folder'"),
    ],
)
def test_wrong_settings_give_one_sentence(config, message):
    done = run_module(*snakemake("--dry-run", config=(config,)))
    assert done.returncode != 0 and message in done.stdout + done.stderr


def test_values_of_the_command_line_are_words_and_no_commands(tmp_path):
    """What --config names stands in the commands as one word; bash splits them here as it would."""
    touch = f"; touch {tmp_path / 'x'}'\"`touch {tmp_path / 'x'}`$(touch {tmp_path / 'x'})%s\\"
    values = {"runs_root": f"{tmp_path}/a b{touch}", "data_root": f"-rf {{x}}{touch}", "labels": touch, "shards": "2"}
    config = [f"{name}={value}" for name, value in values.items()]
    plan = output_of(snakemake("--dry-run", "--printshellcmds", config=("launcher=env", *config)))
    commands = re.findall(r"^    env \S+ -m papermill .*?(?= -p shards)", plan, flags=re.MULTILINE | re.DOTALL)
    assert len(commands) == plan.count("-m papermill") > 5
    for command in commands:
        shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, cwd=tmp_path).stdout
        words = shown.split("\0")
        for name in ("runs_root", "data_root", "labels"):
            assert ("-r", name, values[name]) in zip(words, words[1:], words[2:], strict=False)
    report = re.search(r"(\S+ -m wsss_lib.report .*)$", plan, flags=re.MULTILINE)[1]
    assert shlex.split(report)[3:] == [f"{values['runs_root']}/toy"]
    assert not (tmp_path / "x").exists()


# A stand-in for every notebook: a stage of eight slow steps that goes on where it stopped, as the library's stages do.
STAND_IN = """
import json, pathlib, time
for stage in {stages}:
    folder = pathlib.Path(runs_root, "toy", method, f"seed{{seed}}", stage)
    if (folder / "run.json").exists():
        continue
    for step in range(8):
        if not (folder / f"{{step}}.txt").exists():
            with open(pathlib.Path(runs_root, "work.log"), "a") as log:
                print(stage, step, file=log)
            time.sleep(0.25)
            (folder / f"{{step}}.txt").write_text("result")
    (folder / "run.json").write_text(json.dumps({{"cam_epochs": cam_epochs}}))
"""


def write_notebook(path: Path, *sources: str) -> None:
    """Write a notebook: a `parameters` cell, then the given cells."""
    parameters = new_code_cell("runs_root, method, seed, cam_epochs = '', '', 0, 0", metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [parameters, *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture
def small(tmp_path) -> Path:
    """A copy of the pipeline with stand-ins for the notebooks."""
    shutil.copy(ROOT / "Snakefile", tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "smoke.yaml").write_text("dataset: toy\ncam_epochs: 1\n")
    (tmp_path / "notebooks").mkdir()
    for (name, _), (stages, _) in GRAPH.items():
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", STAND_IN.format(stages=stages))
    return tmp_path


@pytest.mark.slow
def test_killed_run_goes_on(small):
    """Kill everything in the middle of a stage, start again: no finished step is done twice, no record is lost."""
    maps, log = small / "runs/toy/cam/seed0/maps", small / "runs/work.log"
    command = snakemake("runs/toy/cam/seed0/maps/notebook.ipynb", folder=small)
    steps = [f"{stage} {step}" for stage in ("check", "classifier", "maps") for step in range(8)]

    first = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (maps / "2.txt").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (maps / "run.json").exists() and not (maps / "notebook.ipynb").exists()
    record = small / "runs/toy/cam/seed0/classifier/run.json"
    before = record.stat().st_mtime_ns
    time.sleep(2)  # a kernel sees within a second that its parent is gone

    output_of(command)
    done = log.read_text().splitlines()
    assert sorted(set(done)) == sorted(steps) and len(done) <= len(steps) + 1  # at most the step that was cut off
    assert record.stat().st_mtime_ns == before
    executed = nbformat.read(maps / "notebook.ipynb", as_version=4)
    assert [cell.execution_count for cell in executed.cells] == [1, 2, 3]  # with the injected cell
    assert not list(small.rglob("*.running.ipynb"))

    # A finished pipeline does nothing; a new parameter runs every notebook again, and each decides for itself.
    assert "Nothing to be done" in output_of(command)
    (small / "configs" / "smoke.yaml").write_text("dataset: toy\ncam_epochs: 2\n")
    assert "2 of 2 steps (100%) done" in output_of(command)
    assert log.read_text().splitlines() == done

    # A stage that was deleted is made again, from what is left.
    shutil.rmtree(maps)
    assert "1 of 1 steps (100%) done" in output_of(command)
    assert log.read_text().splitlines() == done + [step for step in steps if step.startswith("maps")]


def test_a_notebook_that_fails_leaves_no_output(small):
    """Neither one that raises (it is kept, to be read) nor one that ends without finishing its stage."""
    notebook, folder = small / "notebooks/02_datasets_and_labels.ipynb", small / "runs/toy/data/seed0"
    command = snakemake("runs/toy/data/seed0/check/notebook.ipynb", folder=small)

    write_notebook(notebook, "raise ValueError('labels.csv is missing')")
    failed = run_module(*command)
    assert failed.returncode != 0 and not (folder / "check/notebook.ipynb").exists()
    assert "labels.csv is missing" in failed.stderr and "shows in which cell it stopped" in failed.stderr
    assert "labels.csv is missing" in (folder / "02_datasets_and_labels.running.ipynb").read_text()

    write_notebook(notebook, "seed")
    failed = run_module(*command)
    assert failed.returncode != 0 and not (folder / "check/notebook.ipynb").exists()
    assert "left runs/toy/data/seed0/check unfinished" in failed.stderr


# Two per-image stages after each other; who made which image is noted.
SHARED = """
import pathlib
from wsss_lib.config import Config
from wsss_lib.core.parallel import for_each_image
config = Config(shard=shard, shards=shards)
for stage in ("first", "check"):
    folder = pathlib.Path(runs_root, "toy", method, f"seed{seed}", stage)
    if (folder / "run.json").exists():
        continue
    folder.mkdir(parents=True, exist_ok=True)
    def work(name):
        assert (shard, name) != broken
        (folder / name).write_text(str(shard))
    for_each_image([f"{number}.txt" for number in range(5)], lambda name: folder / name, work, stage, config)
    (folder / "run.json").write_text("{}")
"""


def test_images_are_shared_by_shards_and_one_of_them_may_fail(small):
    notebook, folder = small / "notebooks/02_datasets_and_labels.ipynb", small / "runs/toy/data/seed0"
    command = snakemake("runs/toy/data/seed0/check/notebook.ipynb", folder=small, config=("shards=2", "launcher=env"))

    def made() -> dict[str, str]:
        return {f"{path.parent.name}/{path.stem}": path.read_text() for path in sorted(folder.glob("*/*.txt"))}

    write_notebook(notebook, "broken = (2, '3.txt')", SHARED)
    failed = run_module(*command)
    assert failed.returncode != 0 and not (folder / "first/run.json").exists()
    assert "AssertionError" in failed.stderr and "shard2.ipynb shows in which cell it stopped" in failed.stderr
    assert made() == {"first/0": "1", "first/1": "2", "first/2": "1", "first/4": "1"}, "the other shard has done its work"

    write_notebook(notebook, "broken = ()", SHARED)
    output_of(command)
    assert made() == {f"{stage}/{number}": "12121"[number] for stage in ("first", "check") for number in range(5)}
    executed = (folder / "check/notebook.ipynb").read_text()
    assert "ShardDone" not in executed and "shard = 0" in executed
    assert not list(small.rglob("*.running*"))
