"""What each stage of the chain does: open the data, build, train, and for every image read, call the method, write.

The notebooks call these functions as `stages.<name>`; one module for each notebook of the chain holds them. Networks are
rebuilt from the configuration; every per-image function skips what is there, so an interrupted stage goes on where it stopped.
The stages of a method stand in the method's own file, or, where that would grow too long, beside it (`methods/drs_stages.py`).
"""

from wsss_lib.stages.cam import (
    CLASSIFIER_FIELDS,
    build_classifier,
    cam_localization,
    make_maps,
    score_classifier,
    train_classifier,
)
from wsss_lib.stages.data import (
    data_hash,
    open_data,
    saliency_hash,
    truth_hash,
)
from wsss_lib.stages.deeplab import (
    DEEPLAB_FIELDS,
    build_deeplab,
    class_probabilities,
    deeplab_name,
    make_predictions,
    score_centre_crops,
    train_deeplab,
)
from wsss_lib.stages.irn import (
    boundary_map,
    build_irn,
    make_pseudo_masks,
    set_mean_displacement,
    train_irn,
)
from wsss_lib.stages.scores import (
    metric_row,
    score_masks,
)
from wsss_lib.stages.seeds import (
    full_size_maps,
    make_seeds,
    mean_part_recall,
    score_maps,
    sweep_maps,
)

__all__ = [
    "CLASSIFIER_FIELDS",
    "DEEPLAB_FIELDS",
    "boundary_map",
    "build_classifier",
    "build_deeplab",
    "build_irn",
    "cam_localization",
    "class_probabilities",
    "data_hash",
    "deeplab_name",
    "full_size_maps",
    "make_maps",
    "make_predictions",
    "make_pseudo_masks",
    "make_seeds",
    "mean_part_recall",
    "metric_row",
    "open_data",
    "saliency_hash",
    "score_centre_crops",
    "score_classifier",
    "score_maps",
    "score_masks",
    "set_mean_displacement",
    "sweep_maps",
    "train_classifier",
    "train_deeplab",
    "train_irn",
    "truth_hash",
]
