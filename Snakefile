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

from wsss_lib import presets
from wsss_lib.config import MASKS_OF

root = workflow.basedir
workdir: root

preset = config.get("preset", "smoke")
methods, seeds = config.get("methods", ["cam"]), config.get("seeds", [0])
if not (isinstance(methods, list) and isinstance(seeds, list)):
    raise WorkflowError("methods and seeds are lists: --config methods='[cam]' seeds='[0,1,2]'")
# A method is a notebook `NN_method.ipynb` that turns CAM's classifier and maps into maps of its own.
notebooks_of_methods = {path.stem.split("_", 1)[1]: path for path in sorted(Path("notebooks").glob("[2-6]*_*.ipynb"))}
unknown = [method for method in methods if method not in ("cam", *notebooks_of_methods)]
if unknown:
    raise WorkflowError(f"method {unknown[0]!r} has no notebook; take some of: {', '.join(['cam', *notebooks_of_methods])}")
if config.get("refinement", "irn") not in MASKS_OF:
    raise WorkflowError(f"refinement {config['refinement']!r} is unknown; take one of: {', '.join(MASKS_OF)}")
# Everything else on the command line is a parameter of all notebooks.
given = {name: value for name, value in config.items()
         if name not in ("preset", "methods", "seeds", "runs_root", "shards", "launcher")}
for name in {"method", "seed", "shard"} & set(given):
    raise WorkflowError(f"{name} differs from run to run: give {name}s instead")


def settings_of(method):
    """Return the configuration of a method's stages."""
    return presets.preset_config(preset, method, Path(), **given)


try:
    settings = settings_of("cam")
except (FileNotFoundError, ValueError) as error:
    raise WorkflowError(str(error)) from None
runs_root = config.get("runs_root", settings.runs_root)
base = f"{runs_root}/{settings.dataset}"
# Networks of full size take turns on the GPU. Small ones on a CPU gain more from running side by side than from a second core.
# (On a cluster Snakemake knows no number of cores: --set-threads gives it.)
cores = (workflow.cores or 1) if preset in ("voc12", "coco14") else 1
# Runs of each notebook that share its images, and what starts one of them on another machine, e.g. "srun --exact -n1".
shards, launcher = config.get("shards", 1), config.get("launcher", "")


def parameters(wildcards):
    """Return all parameter values of a method's stages that its results depend on; a rule runs again when one has changed."""
    return settings_of(wildcards.method).model_dump(mode="json", exclude={"processes"})


def preset_options(wildcards):
    """Return papermill's options that hand over the preset files and the parameters of the command line."""
    files = [word for path in presets.preset_files(preset, wildcards.method, Path()) for word in ("-f", str(path))]
    checked = settings_of(wildcards.method)  # Snakemake hands over mere text
    values = {name: getattr(checked, name) for name in given}
    return files + [word for name, value in values.items()
                    for word in ("-r" if isinstance(value, str) else "-p", name, str(value))]


def masks_of(wildcards):
    """Return the executed notebook of the masks that a method's DeepLab learns; DRS makes its own together with its maps."""
    stage, _ = MASKS_OF[settings_of(wildcards.method).refinement]
    return executed("maps" if stage == "drs_masks" else stage, method=wildcards.method, seed=wildcards.seed)


def executed(*stages, method="{method}", seed="{seed}"):
    """Return the path of the executed notebook in the folder of each stage."""
    return [f"{base}/{method}/seed{seed}/{stage}/notebook.ipynb" for stage in stages]


papermill = """{sys.executable:q} -m papermill {input.notebook:q} "$running" {params.presets:q} -r runs_root {runs_root:q} \
    -r method {params.method} -p seed {wildcards.seed} --cwd {root:q} -k python3 --start-timeout 180 \
    --no-progress-bar --log-level ERROR"""
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
# The running notebook lies above the stage folders, because a stage may move its folder aside (to `<stage>.stale`).
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


rule check:
    input: notebook="notebooks/02_datasets_and_labels.ipynb"
    output: executed("check")
    wildcard_constraints: method="data"
    params: settings=parameters, presets=preset_options, method=lambda wildcards: wildcards.method
    shell: run_notebook


rule cam:
    input: executed("check", method="data", seed=0), notebook="notebooks/10_cam.ipynb"
    output: executed("classifier", "maps")
    wildcard_constraints: method="cam"
    params: settings=parameters, presets=preset_options, method=lambda wildcards: wildcards.method
    threads: cores
    shell: run_notebook


rule maps:
    input: executed("classifier", "maps", method="cam"), notebook=lambda wildcards: notebooks_of_methods[wildcards.method]
    output: executed("maps")
    wildcard_constraints: method="|".join(notebooks_of_methods)
    params: settings=parameters, presets=preset_options, method=lambda wildcards: wildcards.method
    threads: cores
    shell: run_notebook


rule seeds:
    input: executed("maps"), notebook="notebooks/70_seeds.ipynb"
    output: executed("seeds")
    params: settings=parameters, presets=preset_options, method=lambda wildcards: wildcards.method
    threads: cores
    shell: run_notebook


rule irn:
    input: executed("seeds"), notebook="notebooks/80_irn.ipynb"
    output: executed("irn", "pseudo_masks")
    params: settings=parameters, presets=preset_options, method=lambda wildcards: wildcards.method
    threads: cores
    shell: run_notebook


rule affinitynet:
    input: executed("seeds"), notebook="notebooks/75_affinitynet.ipynb"
    output: executed("affinitynet", "affinitynet_masks")
    params: settings=parameters, presets=preset_options, method=lambda wildcards: wildcards.method
    threads: cores
    shell: run_notebook


rule deeplab:
    input: masks_of, notebook="notebooks/90_deeplab.ipynb"
    output: executed("deeplab", "predictions")
    params: settings=parameters, presets=preset_options, method=lambda wildcards: wildcards.method
    threads: cores
    shell: run_notebook


# DeepLab trained on the true masks: the upper reference. The classifier is there because it may be its start.
use rule deeplab as deeplab_truth with:
    input: executed("classifier", method="cam"), notebook="notebooks/90_deeplab.ipynb"
    wildcard_constraints: method="truth"


ruleorder: deeplab_truth > deeplab


rule overview:
    input:
        [executed("predictions", method=method, seed=seed) for method in [*methods, "truth"] for seed in seeds],
        notebook="notebooks/00_start_here.ipynb",
    output: executed("overview")
    wildcard_constraints: method="report"
    params: settings=parameters, presets=preset_options, method=methods[0]
    shell: run_notebook


use rule overview as comparison with:
    input:
        [executed("predictions", method=method, seed=seed) for method in [*methods, "truth"] for seed in seeds],
        notebook="notebooks/95_comparison.ipynb",
    output: executed("comparison")
    wildcard_constraints: method="report"


rule report:
    input: executed("overview", "comparison", method="report", seed=0)
    output: f"{base}/report/index.html"
    shell: "{sys.executable:q} -m wsss_lib.report {base:q}"
