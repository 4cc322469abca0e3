"""The pipeline: which notebook makes which stages out of which others. `make demo` runs it at smoke size; by hand:

    snakemake --cores 2 --config preset=voc12-small methods='[cam,sccam]' seeds='[0,1,2]' refinement=affinitynet

What `--config` names beside these and `runs_root`, `shards` and `launcher` is a parameter of all notebooks, as `refinement` is.
Every rule runs one notebook with papermill. A stage's own record, `run.json`, belongs to the notebook, which finishes an
interrupted stage and leaves a finished one alone. So Snakemake, which deletes the outputs of a rule before it runs and when
it fails, must not own that record: a rule's outputs are copies of the executed notebook, one in each stage's folder.
"""

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from wsss_lib import pipeline, presets
from wsss_lib.comparison import COMPARISON, OVERVIEW
from wsss_lib.config import Config
from wsss_lib.core.check import CHECK
from wsss_lib.core.texts import is_one_line
from wsss_lib.data.dataset import read_masked
from wsss_lib.methods import METHODS
from wsss_lib.parameters import project_path

root = workflow.basedir
workdir: root

# What people write after --config goes into paths and shell commands: each value is checked here, and quoted where it is used.
preset = config.get("preset", "smoke")
methods, seeds = config.get("methods", ["cam"]), config.get("seeds", [0])
if not (isinstance(methods, list) and isinstance(seeds, list) and methods and seeds):
    raise WorkflowError("methods and seeds are lists: --config methods='[cam]' seeds='[0,1,2]'")
notebooks_of_methods = {name: method.NOTEBOOK for name, method in METHODS.items() if name != "cam"}
unknown = [method for method in methods if method not in list(METHODS)]
if unknown:
    raise WorkflowError(f"there is no method {unknown[0]!r}; take some of: {', '.join(METHODS)}")
# Everything else on the command line is a parameter of all notebooks.
# (Snakemake hands over an empty text, as in labels=, as None.)
given = {name: "" if value is None else value for name, value in config.items()
         if name not in ("preset", "methods", "seeds", "runs_root", "shards", "launcher")}
for name in {"method", "seed", "shard"} & set(given):
    raise WorkflowError(f"{name} differs from run to run: give {name}s instead")


def settings_of(method):
    """Return the configuration of a method's stages."""
    return presets.preset_config(preset, method, Path("configs"), **given)


try:
    settings = settings_of("cam")
    pipeline.stages_of(settings)  # refuses an unknown refinement
    seeds = [Config.from_values({"seed": seed}).seed for seed in seeds]
    places = Config.from_values({name: config[name] for name in ("runs_root", "shards") if name in config})
except (FileNotFoundError, ValueError) as error:
    raise WorkflowError(str(error)) from None
runs_root = places.runs_root if "runs_root" in config else settings.runs_root
if not is_one_line(runs_root) or runs_root.startswith("-") or set(runs_root) & set("{}<>"):  # Snakemake fills in what they hold
    raise WorkflowError(f"runs_root = {runs_root!r} is not a folder that a run can use; give one without {{}}<> and line breaks, "
                        "and with ./ before a '-'")
base = f"{runs_root}/{settings.dataset}"
# A network trained on the ground truth is the reference beside all methods, where every training image has a mask.
data_root = project_path(settings.data_root)
references = ["truth"] if not data_root.is_dir() or read_masked(data_root, settings.mask_folder) is None else []
# Networks of full size take turns on the GPU. Small ones on a CPU gain more from running side by side than from a second core,
# which only a run that stands alone gets. (On a cluster Snakemake knows no number of cores: --set-threads gives it.)
side_by_side = len(methods) * len(seeds) + len(references) > 1 and preset not in ("voc12", "coco14")
cores = 1 if side_by_side else workflow.cores or 1
# Runs of each notebook that share its images, and what starts one of them on another machine, e.g. "srun --exact -n1". The
# launcher is the one value that IS a command: the shell reads it as it stands.
shards, launcher = places.shards, config.get("launcher", "")
if not isinstance(launcher, str):
    raise WorkflowError(f"launcher = {launcher!r} is a command and must be text, in two pairs of quotes: launcher='\"srun -n1\"'")


def parameters(wildcards):
    """Return all parameter values of a method's stages that its results depend on; a rule runs again when one has changed."""
    return settings_of(wildcards.method).model_dump(mode="json", exclude={"processes"})


def preset_options(wildcards):
    """Return papermill's options that hand over the preset files and the parameters of the command line."""
    files = [word for path in presets.preset_files(preset, wildcards.method, Path("configs")) for word in ("-f", str(path))]
    checked = settings_of(wildcards.method)  # Snakemake hands over mere text
    values = {name: getattr(checked, name) for name in given}
    return files + [word for name, value in values.items()
                    for word in ("-r" if isinstance(value, str) else "-p", name, str(value))]


def executed(name, method="{method}", seed="{seed}"):
    """Return the path of the executed notebook in the folder of a stage."""
    return f"{base}/{method}/seed{seed}/{name}/notebook.ipynb"


def needed(wildcards, notebook):
    """Return the executed notebooks of the stages that a notebook reads."""
    stages = pipeline.needed_by(notebook, settings_of(wildcards.method))
    names = {stage: "maps" if stage.notebook in notebooks_of_methods.values() else stage.name for stage in stages}
    return list(dict.fromkeys(
        executed(names[stage], stage.method or wildcards.method, 0 if stage.method == "data" else wildcards.seed)
        for stage in stages))


# papermill writes the whole notebook when it ends or fails and every half minute, not after each cell: a second a notebook.
papermill = """{sys.executable:q} -m papermill {input.notebook:q} "$running" {params.presets:q} -r runs_root {runs_root:q} \
    -r method {params.method} -p seed {wildcards.seed} --cwd {root:q} -k python3 --start-timeout 180 \
    --no-progress-bar --no-request-save-on-cell-execute --log-level ERROR"""
one_run = papermill + r""" || {{ echo "$running shows in which cell it stopped" >&2; exit 1; }}"""
# Shard 0 goes from one per-image stage to the next; before each of them the others make its images.
shard_runs = r"""
in_shard() {{  # run the notebook as one of the shards; status 0: it went to its end, 3: its images are made
    {launcher} """ + papermill + r""" -p shards {shards} -p shard "$1" 2> "$running.log" && return
    grep -q '"ename": "ShardDone"' "$running" && return 3
    cat "$running.log" >&2; echo "$running shows in which cell it stopped" >&2; return 1
}}
until in_shard 0; do
    [ $? -eq 3 ] || exit 1
    [ "${{before:-}}" != "$(grep ^ShardDone "$running.log")" ] || {{ echo "its shards leave images out" >&2; exit 1; }}
    before="$(grep ^ShardDone "$running.log")"
    pids=()
    for shard in $(seq {shards}); do
        ( running="${{running%.ipynb}}.shard$shard.ipynb"; in_shard "$shard" || [ $? -eq 3 ] && rm "$running" "$running.log" ) &
        pids+=($!)
    done
    for pid in "${{pids[@]}}"; do wait "$pid" || failed=1; done
    [ -z "${{failed:-}}" ] || exit 1
done
rm "$running.log"
"""
# The running notebook lies above the stage folders, because a stage may put its folder aside.
run_notebook = r"""
export OMP_WAIT_POLICY=passive  # threads that wait must not take the core from loader processes or other programs
running="$(dirname "$(dirname {output[0]:q})")/$(basename {input.notebook:q} .ipynb).running.ipynb"
""" + (one_run if shards == 1 else shard_runs) + r"""
for copy in {output:q}; do
    test -f "$(dirname "$copy")/run.json" || {{ echo "{input.notebook} left $(dirname "$copy") unfinished" >&2; exit 1; }}
    cp "$running" "$copy"
done
rm "$running"
"""


wildcard_constraints:
    seed=r"\d+",


rule all:
    input: f"{base}/report/index.html"


# One rule for each notebook, and one for the notebooks of all methods but CAM, whose only output that others read are maps. What
# they make and need stands in the table of stages, wsss_lib/pipeline.py.
for notebook, stages in pipeline.notebooks().items():
    if notebook not in notebooks_of_methods.values():

        rule:
            name: notebook.split("_", 1)[1]
            input: lambda wildcards, notebook=notebook: needed(wildcards, notebook), notebook=f"notebooks/{notebook}.ipynb"
            output: [executed(stage.name) for stage in stages]
            wildcard_constraints: method="|".join(pipeline.methods_of(notebook))
            params: settings=parameters, presets=preset_options, method=lambda wildcards: wildcards.method
            threads: 1 if notebook == CHECK.notebook else cores
            shell: run_notebook


rule maps:
    input:
        lambda wildcards: needed(wildcards, notebooks_of_methods[wildcards.method]),
        notebook=lambda wildcards: f"notebooks/{notebooks_of_methods[wildcards.method]}.ipynb",
    output: executed("maps")
    wildcard_constraints: method="|".join(notebooks_of_methods)
    params: settings=parameters, presets=preset_options, method=lambda wildcards: wildcards.method
    threads: cores
    shell: run_notebook


for stage in (OVERVIEW, COMPARISON):

    rule:
        name: stage.name
        input:
            [executed("predictions", method, seed) for method in [*methods, *references] for seed in seeds],
            notebook=f"notebooks/{stage.notebook}.ipynb",
        output: executed(stage.name)
        wildcard_constraints: method=stage.method
        params: settings=parameters, presets=preset_options, method=methods[0]
        shell: run_notebook


rule report:
    input: executed("overview", "report", 0), executed("comparison", "report", 0)
    output: f"{base}/report/index.html"
    shell: "{sys.executable:q} -m wsss_lib.report {base:q}"
