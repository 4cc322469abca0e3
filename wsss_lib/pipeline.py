"""The table of stages: what a run consists of, in order.

The Snakefile, the costs, and the order of rows and methods in every table follow from it. A new method is found by its file.
"""

from wsss_lib.config import Config
from wsss_lib.core.check import CHECK
from wsss_lib.core.stage import Stage
from wsss_lib.methods import METHODS, cam, sccam
from wsss_lib.refine import affinitynet, irn, seed_masks
from wsss_lib.segment import deeplab

SHARED = (*seed_masks.STAGES, *irn.STAGES, *affinitynet.STAGES, *deeplab.STAGES)  # of every method
STAGES: tuple[Stage, ...] = (CHECK, *(stage for method in METHODS.values() for stage in method.STAGES), *SHARED)
ROWS = list(dict.fromkeys(name for stage in STAGES for name in stage.shows))  # rows with a mIoU, in the order of tables
# Row of `metrics.json` to the stage and the folder that hold its label maps; a threshold turns maps into one.
LABEL_MAPS = {
    name: (stage.name, folder)
    for stage in STAGES
    for name, folder in stage.shows.items()
    if folder is not None or stage.name == "maps"
}


def stages_of(config: Config) -> list[Stage]:
    """Return the stages that a method's run makes, in order, without those of the methods that it builds on.

    >>> [stage.name for stage in stages_of(Config(method="vwe"))]
    ['network', 'maps', 'seeds', 'irn', 'pseudo_masks', 'deeplab', 'predictions']
    >>> [stage.name for stage in stages_of(Config(method="truth"))]
    ['deeplab', 'predictions']
    """
    if config.method == "truth":
        return list(deeplab.STAGES)
    method = METHODS[config.method]
    own = [*(sccam.rounds(config) if method is sccam else ()), *method.STAGES]
    masks = deeplab.masks_of(config)
    refinement = {stage.notebook: module.STAGES for module in (irn, affinitynet) for stage in module.STAGES}
    return [*own, *((*seed_masks.STAGES, *refinement[masks.notebook]) if masks.notebook in refinement else ()), *deeplab.STAGES]


def needed_by(notebook: str, config: Config) -> list[Stage]:
    """Return the stages of other notebooks that must have finished before a notebook runs."""
    if notebook == CHECK.notebook:
        return []
    if notebook == cam.NOTEBOOK:
        return [CHECK]
    if notebook in {method.NOTEBOOK for method in METHODS.values()}:
        return list(cam.STAGES)  # every method starts from CAM's classifier, or is shown next to its maps
    shown = {seed_masks.NOTEBOOK: [], irn.NOTEBOOK: list(seed_masks.STAGES), affinitynet.NOTEBOOK: list(seed_masks.STAGES)}
    found = dict.fromkeys(shown.get(notebook, []))
    for stage in (stage for stage in SHARED if stage.notebook == notebook):
        found |= {other: None for other in stage.inputs(config).values() if other.notebook != notebook}
    return list(found) or list(cam.STAGES)  # DeepLab on ground truth


def notebooks() -> dict[str, list[Stage]]:
    """Return the notebooks of the pipeline, each with the stages whose results other notebooks read."""
    found: dict[str, list[Stage]] = {}
    for stage in STAGES:
        found.setdefault(stage.notebook, []).append(stage)
    return found


def methods_of(notebook: str) -> list[str]:
    """Return the methods for which a notebook runs, as names of folders."""
    if notebook == CHECK.notebook:
        return [CHECK.method]
    own = [name for name, method in METHODS.items() if method.NOTEBOOK == notebook]
    return own or [*METHODS, "truth"]
