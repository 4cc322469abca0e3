"""The methods that turn a classifier into class activation maps, one file each.

Every module of this folder is a method of the same name. It declares `NOTEBOOK`, `Parameters` and `STAGES`. It need not be
registered anywhere.
"""

import pkgutil
from importlib import import_module
from types import ModuleType

from wsss_lib.core.stage import Job, Stage
from wsss_lib.errors import DataError


def _find_methods() -> dict[str, ModuleType]:
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {module.__name__.rsplit(".", 1)[1]: module for module in sorted(modules, key=lambda module: module.NOTEBOOK)}


METHODS = _find_methods()  # name to module, in the order of their notebooks; "cam" comes first


def maps_of(method: str) -> Stage:
    """Return the stage of a method's maps; for a name without a file, the stage of imported maps (`data_prep.maps`)."""
    if method in METHODS:
        return METHODS[method].MAPS
    return Stage("maps", f"of method {method!r}", _refuse, method=method, reads=("backbone",))


def _refuse(job: Job) -> int:
    raise DataError(
        f"{job.folder}: there is no method {job.stage.method!r} that could make these maps; import some with "
        f"python -m data_prep.maps, or take one of {', '.join(METHODS)}"
    )
