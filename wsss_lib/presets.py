"""Presets: the YAML files in `configs/` that say how large a run is, and what a method sets differently.

`configs/<preset>.yaml` holds the values of a whole pipeline, `configs/methods/<preset>.<method>.yaml` those that differ for
one method. Snakemake passes both files to the notebooks; everything else builds the same configuration with `preset_config`.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from wsss_lib.config import Config
from wsss_lib.parameters import NAME, PRESETS, project_path

PHOTOGRAPHS = "voc12-small"  # the preset that a user's own data set modifies


def read_preset(path: Path | str) -> dict[str, Any]:
    """Read a preset file (one key, one parameter) and check it.

    Returns:
        parameter name to value, as the file has it.

    Raises:
        ValueError: not a YAML mapping, or a value that does not fit.
        FileNotFoundError: there is no such file.

    Explained in notebook 00, section "Parameters".
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except Exception as error:  # a value that is not of its tag makes PyYAML raise one of a dozen types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a YAML file ({reason:.200})") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path}: a preset is a list of lines 'name: value'")
    try:
        Config.from_values(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return values


def preset_files(preset: str, method: str = "cam", folder: Path = PRESETS) -> list[Path]:
    """Return the preset's file and, if there is one, the file of what a method sets differently.

    Args:
        preset: name of a file in `configs/`, without ".yaml"; or the path of a file with what differs from
            `voc12-small`, e.g. the one that `data_prep.custom` writes.
        method: the second part of a file's name in `configs/methods/`.

    Returns:
        the paths; values of the later ones win.

    Raises:
        FileNotFoundError: there is no such preset; the known ones are named.
        ValueError: the preset or the method is not a name.

    Explained in notebook 00, section "Parameters".

    >>> [path.name for path in preset_files("voc12", "rib")]
    ['voc12.yaml', 'voc12.rib.yaml']
    """
    if isinstance(preset, str) and preset.endswith((".yaml", ".yml")):
        if not (path := project_path(preset)).is_file():
            raise FileNotFoundError(f"{path}: there is no such preset file; give the name of a preset or the path of a file")
        return [*preset_files(PHOTOGRAPHS, method, folder), path]
    for what, name in (("preset", preset), ("method", method)):
        if not (isinstance(name, str) and re.fullmatch(NAME, name)):
            raise ValueError(f"{what} = {name!r} is not a name; a preset is a file in configs/, named without folder and .yaml")
    common, own = folder / f"{preset}.yaml", folder / "methods" / f"{preset}.{method}.yaml"
    if not common.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise FileNotFoundError(f"preset {preset!r} does not exist in configs/; take one of: {known}")
    return [path for path in (common, own) if path.is_file()]


def preset_values(preset: str, method: str = "cam", folder: Path = PRESETS) -> dict[str, Any]:
    """Return what the preset's files say for a method: parameter name to value; a method's own values win.

    Raises:
        ValueError, FileNotFoundError: as `preset_files` and `read_preset`.

    Explained in notebook 00, section "Parameters".
    """
    merged: dict[str, Any] = {}
    for path in preset_files(preset, method, folder):
        merged |= read_preset(path)
    return merged


def preset_config(preset: str, method: str = "cam", folder: Path = PRESETS, /, **values: Any) -> Config:
    """Build the configuration that the pipeline uses for the stages of a method.

    Raises:
        ValueError: as `read_preset` and `Config.from_values`.
        FileNotFoundError: there is no such preset.

    Explained in notebook 00, section "Parameters".

    >>> preset_config("voc12", "rib", seed=1).walk_power
    1.3
    """
    method = values.pop("method", method)  # also by name
    return Config.from_values(preset_values(preset, method, folder) | {"method": method} | values)
