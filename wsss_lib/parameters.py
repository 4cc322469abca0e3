"""Types of parameters, the parameters that belong to no single stage, and the view of them that a stage gets.

A parameter is declared once, in the class `Parameters` of the module that reads it. `wsss_lib.config` joins these classes.
"""

import ast
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LONGEST_TUPLE = 1000  # characters


def _require_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(
            "must be text; write it in quotes in YAML, and with -r on papermill's command line "
            "(2007_000032 without quotes becomes a number)"
        )
    return value


def _tuple_from_text(value: Any) -> Any:
    """papermill passes a tuple as the string "(1.0, 0.5)"."""
    if isinstance(value, str):
        try:
            return tuple(ast.literal_eval(value[:LONGEST_TUPLE]))  # a long nest of brackets can end Python
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"must be a list of numbers such as [1.0, 0.5], not the text {value[:60]!r}") from None
    return value


def _reject_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not True or False")
    return value


Text = Annotated[str, BeforeValidator(_require_text)]
NAME = "[A-Za-z0-9][A-Za-z0-9_.-]*"
Name = Annotated[str, BeforeValidator(_require_text), Field(pattern=f"^{NAME}$")]  # of a folder
Count = Annotated[int, BeforeValidator(_reject_bool), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_reject_bool), Field(ge=1)]
AtLeastTwo = Annotated[int, BeforeValidator(_reject_bool), Field(ge=2)]
Rate = Annotated[float, BeforeValidator(_reject_bool), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_reject_bool), Field(ge=0, le=1)]
BelowOne = Annotated[float, BeforeValidator(_reject_bool), Field(ge=0, lt=1)]
Factor = Annotated[float, BeforeValidator(_reject_bool), Field(gt=0, allow_inf_nan=False)]
Numbers = Annotated[tuple[Factor, ...], BeforeValidator(_tuple_from_text), Field(min_length=1)]
Integers = Annotated[tuple[Positive, ...], BeforeValidator(_tuple_from_text), Field(min_length=1)]
FrozenStages = Annotated[int, BeforeValidator(_reject_bool), Field(ge=0, le=4)]  # of a backbone's five, from the image on


class Range(NamedTuple):
    """Where `wsss_lib.tune` looks for a parameter's value: whole numbers between whole numbers, else any."""

    low: float
    high: float
    log: bool = False  # equal factors are equally likely, not equal differences


class ParameterGroup(BaseModel):
    """The parameters that one module declares; every field has a default, the value for the generated images."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def require_order(group: BaseModel, low: str, high: str) -> None:
    """Refuse a lower bound above its upper bound.

    Raises:
        ValueError: the field `low` exceeds the field `high`.
    """
    if getattr(group, low) > getattr(group, high):
        raise ValueError(f"{low} ({getattr(group, low)}) must not exceed {high} ({getattr(group, high)})")


class Common(ParameterGroup):
    """What data, which run, and on which machine."""

    dataset: Name = "toy"  # name of the folder below runs_root
    data_root: Text = "data/toy"  # VOC devkit folder
    labels: Text = ""  # table of image-level labels; empty: data_root/labels.csv
    mask_folder: Text = "SegmentationClass"  # ground truth below data_root
    runs_root: Text = "runs"
    method: Name = "cam"  # whose class activation maps are used; "truth": train DeepLab on the ground truth
    seed: Count = 0
    train_split: Text = "train"  # images with labels, for every training
    score_split: Text = "train"  # the part of train_split on which maps and masks are scored
    val_split: Text = "val"
    limit: Count = 0  # use only the first images of every split; 0: all
    # An image that cannot be decoded stops the run, at the check of notebook 02; "skip": it is left out, and named.
    on_bad_image: Literal["stop", "skip"] = "stop"
    # Which of these values were chosen by looking at masks; printed with every score.
    pixel_labels_chose: Text = "thresholds and walk, on generated images"
    num_workers: Count = 2  # processes that load images for a training
    cpu_workers: Count = 0  # processes of per-image work on the CPU, such as CRFs; 0: as many as num_workers
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Positive = 1  # that train one network together, one for each GPU; they divide the global batch
    shards: Positive = 1  # runs of a notebook, on one machine or many, that divide the images of its stages, and ...
    shard: Count = 1  # ... which of them this is, from 1; 0: only what has to be there before the images
    lessons: bool = True  # false: cells that train or score only to teach are left out; results are the same
    study: Text = "docs/studies/voc12-animals.json"  # 96: what `python -m wsss_lib.tune METHOD --save FILE` has written
    mixed_precision: bool = False  # float16 autocast; on a GPU only
    device_batch_size: Positive = 16  # images at once on a device; a larger global batch is accumulated
    checkpoint_every: Positive = 100  # optimizer steps between two saved states
    # Whose masks DeepLab learns: those of 80 (IRN), of 75 (AffinityNet), or a method's own (DRS, notebook 30).
    refinement: Name = "irn"
    # Backbone of the classifier and of the networks that start where it starts (IRN, AffinityNet, AMN, VWE, SC-CAM).
    backbone: Literal["resnet_small", "resnet50", "resnet101", "efficientnet_lite0", "resnet38", "vgg16_largefov"] = (
        "resnet_small"
    )
    backbone_weights: Text = "none"  # "imagenet", "none", or a safetensors file
    output_stride: Literal[8, 16] = 8

    @model_validator(mode="after")
    def _shard_exists(self) -> "Common":
        if self.shard > self.shards or (self.shard, self.shards) == (0, 1):
            raise ValueError(f"there is no shard {self.shard} of {self.shards}; give one from 0 to {self.shards}, or neither")
        return self


# Every stage may read these: they change how a result is computed, not what it is.
RUNTIME = ("device", "num_workers", "cpu_workers", "processes", "shards", "shard", "device_batch_size", "checkpoint_every")
BACKBONE = ("backbone", "backbone_weights", "output_stride")
TRAINING = ("seed", "mixed_precision")  # what `training.train` reads besides RUNTIME


def start_of(init: str) -> tuple[str, ...]:
    """Return the parameters that initializing a network reads: "backbone" asks for its own weights, "classifier" for CAM's."""
    return BACKBONE if init == "backbone" else ("backbone", "output_stride")


class Settings:
    """A configuration cut down to what a stage declares that it reads; reading anything else is an error.

    So the key of a stage, the hash of these values, is complete and minimal by construction. Where the library writes
    `config: Settings`, a whole `Config` works, too.
    """

    def __init__(self, values: dict[str, Any], stage: str = ""):
        vars(self).update(values)
        vars(self)["_stage"] = stage

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"stage {vars(self).get('_stage', '')!r} reads the parameter {name!r} without declaring it; add "
            "it to the stage's `reads`"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"parameter {name!r} cannot be changed; make other settings with model_copy(update=...)")

    def model_copy(self, update: dict[str, Any]) -> "Settings":
        """Return the same settings with other values; `update` may name only what these settings hold."""
        for name in update:
            getattr(self, name)
        values = {name: value for name, value in vars(self).items() if name != "_stage"}
        return Settings(values | update, vars(self)["_stage"])


def _project_root() -> Path:
    """Return the checkout's root; for an installed package, which has none, the working directory."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


PROJECT_ROOT = _project_root()
PRESETS = next(folder for folder in (PROJECT_ROOT / "configs", Path(__file__).parent / "configs") if folder.is_dir())


def project_path(path: Path | str) -> Path:
    """Return an absolute path; a relative one starts at the project's root, whatever the working directory is."""
    return Path(os.path.normpath(PROJECT_ROOT / Path(path).expanduser()))
