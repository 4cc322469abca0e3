"""The file `preset.yaml` of a user's own data set: what its size and number of classes need besides `voc12-small`."""

import re
from pathlib import Path

import yaml

from wsss_lib.presets import PHOTOGRAPHS, preset_config

CLASSES_OF_RATES = 20  # of VOC, for which the preset's learning rates were found
VIEWS = (480, 12_000)  # photographs that a classifier sees in its whole training, at least and at most
EPOCHS = 12  # between the two
SCALED = ("cam", "drs", "vwe", "sccam")  # methods whose loss is a mean over the classes

HEADER = """\
# Written by data_prep.custom for {photographs} photographs of {classes} classes; all else is as in configs/voc12-small.yaml.
# A loss that is a mean over classes takes larger steps where these are few, so that the learning rates are {factor:.3g} of
# those for 20 classes. Nothing here was chosen by looking at masks of these photographs; change it as you like.
"""


def dataset_name(folder: Path) -> str:
    """Return a name for the data set of a folder: the folder's, with everything but letters, digits, dots and dashes replaced.

    Args:
        folder: of the photographs.

    >>> dataset_name(Path("/home/me/Fotos (Sommer)"))
    'Fotos_Sommer'
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "_", folder.absolute().name).strip("_.-") or "mine"


def own_values(photographs: int, num_classes: int) -> dict[str, float | int]:
    """Return the parameters that follow from the size of a data set.

    >>> own_values(30, 3)["cam_epochs"], own_values(30, 3)["cam_learning_rate"]
    (16, 0.0015)
    """
    factor = min(1.0, num_classes / CLASSES_OF_RATES)
    values: dict[str, float | int] = {"cam_batch_size": 8 if photographs < 100 else 16}
    values["cam_epochs"] = round(min(max(EPOCHS * photographs, VIEWS[0]), VIEWS[1]) / photographs) or 1
    for method in SCALED:
        config = preset_config(PHOTOGRAPHS, method)
        names = (f"{method}_learning_rate", f"{method}_head_learning_rate")
        values |= {name: round(factor * getattr(config, name), 8) for name in names if hasattr(config, name)}
    return values


def write_preset(folder: Path, root: Path, photographs: int, num_classes: int, has_val: bool) -> None:
    """Write `preset.yaml` of a data set.

    Args:
        folder: where it is written.
        root: where the data set will lie; its name is the run's.
        photographs: for training.
        has_val: whether there is a list `val`; without it, `train` takes its place.
    """
    values = {
        "dataset": dataset_name(root),
        "data_root": str(root.absolute()),
        "labels": "",
        "val_split": "val" if has_val else "train",
        "pixel_labels_chose": "",
        "lessons": False,  # what is wanted are masks
    } | own_values(photographs, num_classes)
    factor = min(1.0, num_classes / CLASSES_OF_RATES)
    text = HEADER.format(photographs=photographs, classes=num_classes, factor=factor)
    (folder / "preset.yaml").write_text(text + yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
