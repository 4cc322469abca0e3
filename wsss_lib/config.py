"""The one configuration: a frozen, validated model whose fields are the notebooks' parameters.

A notebook's `parameters` cell holds flat scalars; papermill overwrites them (`-f configs/voc12.yaml -p seed 1`). The set-up
cell turns them into a `Config`, which refuses unknown names and repairs what papermill and YAML lose ("1e-4", tuples).
"""

import ast
import difflib
import os
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

PROJECT_ROOT = Path(__file__).resolve().parent.parent
LONGEST_TUPLE = 1000  # characters
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 80
# The stage that holds the masks of each refinement, and its notebook.
MASKS_OF = {"irn": ("pseudo_masks", "80_irn"), "affinitynet": ("affinitynet_masks", "75_affinitynet"),
            "drs": ("drs_masks", "30_drs")}


def _refuse_number(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be text; write it in quotes in YAML, and with -r on papermill's command line "
                         "(2007_000032 without quotes becomes a number)")
    return value


def _tuple_from_text(value: Any) -> Any:
    """papermill hands a tuple over as the text "(1.0, 0.5)"."""
    if isinstance(value, str):
        try:
            return tuple(ast.literal_eval(value[:LONGEST_TUPLE]))  # a long nest of brackets can end Python
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"must be a list of numbers such as [1.0, 0.5], not the text {value[:60]!r}") from None
    return value


def _refuse_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not True or False")
    return value


Text = Annotated[str, BeforeValidator(_refuse_number)]
Name = Annotated[str, BeforeValidator(_refuse_number), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # of a folder
Count = Annotated[int, BeforeValidator(_refuse_truth_value), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_refuse_truth_value), Field(ge=1)]
Rate = Annotated[float, BeforeValidator(_refuse_truth_value), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_refuse_truth_value), Field(ge=0, le=1)]
Factor = Annotated[float, BeforeValidator(_refuse_truth_value), Field(gt=0, allow_inf_nan=False)]
Numbers = Annotated[tuple[Factor, ...], BeforeValidator(_tuple_from_text), Field(min_length=1)]
Integers = Annotated[tuple[Positive, ...], BeforeValidator(_tuple_from_text), Field(min_length=1)]


class Config(BaseModel):
    """Every parameter of every stage; the defaults are the published methods' values at smoke sizes.

    Prefixes say which stage reads a field (`cam_`, `rib_`, …, `seed_`, `irn_`, `walk_`, `deeplab_`); fields without one are
    common.
    Explained in notebook 00, section "Parameters".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    # Where things are and which run this is.
    dataset: Name = "toy"  # name of the folder below runs_root
    data_root: Text = "data/toy"  # VOC devkit folder
    labels: Text = ""  # table of image-level labels; empty: data_root/labels.csv
    mask_folder: Text = "SegmentationClass"  # true masks below data_root
    runs_root: Text = "runs"
    method: Name = "cam"  # whose localization maps are used; "truth": train DeepLab on the true masks
    seed: Count = 0
    train_split: Text = "train"  # images with labels, for every training
    score_split: Text = "train"  # the part of train_split on which maps and masks are scored
    val_split: Text = "val"
    limit: Count = 0  # use only the first images of every split; 0: all
    # An image that cannot be decoded stops the run, at the check of notebook 02; "skip": it is left out, and named.
    on_bad_image: Literal["stop", "skip"] = "stop"
    # Which of these values were chosen by looking at masks; printed with every score.
    pixel_labels_chose: Text = "thresholds and walk, on generated images"
    num_workers: Count = 2  # loader processes, and processes of per-image stages on the CPU
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Positive = 1  # that train one network together, one for each GPU; the global batch is shared among them
    shards: Positive = 1  # runs of a notebook, on one machine or many, that share the images of its stages, and ...
    shard: Count = 1  # ... which of them this is, from 1; 0: only what has to be there before the images
    mixed_precision: bool = False  # float16 autocast; on a GPU only
    device_batch_size: Positive = 16  # images at once on a device; a larger global batch is accumulated
    checkpoint_every: Positive = 100  # optimiser steps between two saved states
    # Backbone of the classifier and of IRN.
    backbone: Literal["resnet_small", "resnet50", "resnet101", "efficientnet_lite0", "resnet38",
                      "vgg16_largefov"] = "resnet_small"
    backbone_weights: Text = "none"  # "imagenet", "none", or a safetensors file
    output_stride: Literal[8, 16] = 8
    frozen_batch_norm: bool = False  # inference form during training (published: true)
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 0  # of five; published: 3, the stem, layer1 and layer2
    # SGD of the classifier and of IRN.
    momentum: Share = 0.9
    weight_decay: Rate = 1e-4
    momentum_slip: bool = False  # published runs: True, the momentum is in truth the weight decay
    # 01: the simulation of the information bottleneck.
    bottleneck_mnist_root: Text = ""  # folder above torchvision's MNIST/raw; empty: scikit-learn's digits
    bottleneck_images: Positive = 8000  # for training
    bottleneck_shape_share: Share = 0.1  # of them that have the companion shape
    bottleneck_epochs: Positive = 1
    bottleneck_seeds: Positive = 5  # networks of each kind
    # 10: classifier and class activation maps.
    cam_weights: Text = ""  # a classifier to use instead of training one
    cam_epochs: Positive = 8
    cam_batch_size: Positive = 16
    cam_learning_rate: Rate = 0.03  # published: 0.1, without momentum
    cam_head_learning_rate: Rate = 0.3
    cam_long_side_min: Positive = 80
    cam_long_side_max: Positive = 112
    cam_crop: Positive = 96
    cam_scales: Numbers = (1.0, 0.5, 1.5, 2.0)
    # 20: RIB, which tunes the classifier for every image anew; the small network in one long step instead of nine short ones.
    rib_learning_rate: Rate = 1e-3  # published: 8e-6 (VOC), 5e-6 (COCO)
    rib_head_learning_rate: Rate = 1e-2  # ten times the backbone's
    rib_iterations: Positive = 2  # K maps are added up, after 0 to K - 1 updates; published: 10
    rib_companions: Positive = 20  # other images in each update; published: 20 (VOC), 15 (COCO)
    rib_region_threshold: Rate = 0.2  # tau; published: 0.4 (VOC), 0.5 (COCO); above 1 it is average pooling
    rib_stop_threshold: Rate = 600.0  # of the image's summed logits; published: 600 (VOC), 1000 (COCO)
    rib_explode_threshold: Share = 0.3  # what counts as covered, and ...
    rib_explode_ratio: Rate = 0.7  # ... how much covered stops the steps; published: 0.7 (VOC), 0.8 (COCO)
    rib_variant: Literal["code", "paper"] = "code"  # "paper": mean over the kept positions, the stop threshold is the margin m
    rib_first_twenty_only: bool = False  # True in the published COCO run: classes from index 20 on are pooled plainly
    # 30: DRS: classifier with suppression, refinement network, pseudo-labels.
    drs_backbone: Literal["vgg_small", "vgg16", "resnet_small", "resnet50", "resnet101",
                          "efficientnet_lite0"] = "resnet_small"  # published: vgg16
    # Start of both networks: "imagenet" (published), "classifier" (of notebook 10), "none", or a safetensors file.
    drs_backbone_weights: Text = "classifier"
    drs_weights: Text = ""  # a classifier to use instead of training one
    drs_refine_weights: Text = ""  # a refinement network to use instead of training one
    drs_delta: Share = 0.0  # 0: learnable (published), 1: no suppression
    # Of the backbone's five stages, from the deepest, whose ReLUs are replaced; published: 5.
    drs_suppressed_stages: Annotated[int, Field(ge=0, le=5)] = 1
    drs_epochs: Positive = 1  # published: 15
    drs_learning_rate: Rate = 3e-4  # of the backbone; the new layers have ten times this; published: 1e-3
    drs_batch_size: Positive = 16  # published: 10
    drs_crop: Positive = 128  # of photographs squeezed to a square that is a fifth larger; published: 320
    drs_refine_epochs: Positive = 2  # published: 30
    drs_refine_learning_rate: Rate = 3e-4  # Adam; published: 1e-4
    drs_selection: Literal["last", "pixel_labels"] = "last"  # which epoch is kept; published: the best by pixel labels
    drs_background: Literal["saliency", "constant", "crf", "irn"] = "saliency"  # what says background in pseudo-labels
    drs_saliency_folder: Text = "saliency_map"  # below data_root
    drs_alpha: Share = 0.2  # smaller scores count as 0
    # 40: AMN. Batches are the classifier's and crops are IRN's, as in the official program.
    amn_weights: Text = ""  # a network to use instead of training one
    amn_init: Literal["backbone", "classifier"] = "classifier"  # published: backbone, trained on ImageNet only
    amn_foreground_threshold: Share = 0.20  # t_f of the refined seeds, on CAM's maps; published: 0.30
    amn_background_threshold: Share = 0.06  # t_b; published: 0.05
    amn_epochs: Positive = 3  # published: 5
    amn_learning_rate: Rate = 3e-4  # Adam's, of the backbone; published: 5e-6
    amn_head_learning_rate: Rate = 1e-3  # of label encoder and ASPP; published: 1e-4
    amn_smoothing: Share = 0.4  # epsilon of the label smoothing
    amn_atrous_rates: Integers = (1, 2, 4, 6)  # published: 6, 12, 18, 24
    amn_dropout_in_maps: bool = False  # the official program leaves dropout on
    # 50: visual words; images, crops, batches and scales are those of the classifier above.
    vwe_weights: Text = ""  # a network to use instead of training one
    vwe_init: Literal["backbone", "classifier"] = "classifier"  # published: backbone, trained on ImageNet
    vwe_variant: Literal["vwe", "vwl_l", "vwl_m"] = "vwe"  # the journal's: words pushed apart; a memory bank
    vwe_words: Annotated[int, BeforeValidator(_refuse_truth_value), Field(ge=2)] = 32  # K; published: 256
    vwe_temperature: Factor = 1.0  # tau of the soft assignment
    vwe_gamma: Rate = 2.0  # weight of the average in the pooling
    vwe_epochs: Positive = 4  # published: 6
    vwe_learning_rate: Rate = 0.01  # published: 0.01 without momentum, a tenth of the classifier's
    vwe_head_learning_rate: Rate = 0.1
    # 60: SC-CAM. Crops, batches and scales are those of the classifier (cam_); the published ones are in configs/methods.
    sccam_weights: Text = ""  # a network of a finished round to use instead of all rounds
    sccam_clusters: Positive = 10  # K, sub-categories of a class
    sccam_loss_weight: Rate = 5.0  # lambda, of the sub-categories' loss
    sccam_round_epochs: Integers = (4, 4, 4)  # epochs trained in each round; published: 31, 41, 51
    sccam_schedule_epochs: Positive = 4  # epochs for which the learning rate is laid out; published: 61
    sccam_dropout: Annotated[float, BeforeValidator(_refuse_truth_value), Field(ge=0, lt=1)] = 0.0  # published: 0.5
    sccam_color_jitter: Share = 0.0  # strength; published: 1
    sccam_learning_rate: Rate = 0.03  # published: 0.01, without momentum
    sccam_head_learning_rate: Rate = 0.3  # published: 0.1
    sccam_weight_decay: Rate = 5e-4
    # 70: seeds.
    seed_threshold: Share = 0.15
    seed_foreground_threshold: Share = 0.20  # t_f; published: 0.30
    seed_background_threshold: Share = 0.06  # t_b; published: 0.05
    seed_crf_iterations: Positive = 10
    seed_num_thresholds: Positive = 60
    # Whose masks DeepLab learns: those of 80 (IRN), of 75 (AffinityNet), or DRS's own, of 30.
    refinement: Literal["irn", "affinitynet", "drs"] = "irn"
    # 75: AffinityNet.
    affinitynet_weights: Text = ""  # an AffinityNet to use instead of training one
    affinitynet_init: Literal["backbone", "classifier"] = "classifier"  # published: backbone, trained on ImageNet only
    affinitynet_stride: Literal[4, 8] = 4  # pixels a cell of the affinity grid; published: 8
    affinitynet_radius: Annotated[int, Field(ge=2)] = 5
    affinitynet_alpha_low: Factor = 8.0  # exponent of a strong background, what stays is surely an object; published: 4
    affinitynet_alpha_high: Factor = 48.0  # of a weak one, what it keeps is surely background; published: 32
    affinitynet_images: Count = 400  # the first ones of the split, to learn from; published: 0, all of them
    affinitynet_epochs: Positive = 5  # published: 8
    affinitynet_batch_size: Positive = 8
    affinitynet_learning_rate: Rate = 0.03  # of the backbone, ten times that for the new layers; published: 0.01
    affinitynet_weight_decay: Rate = 5e-4
    affinitynet_crop: Positive = 64  # published: 448
    # 75: its random walk.
    affinity_walk_alpha: Factor = 16.0  # exponent of the background before the walk
    affinity_walk_beta: Rate = 16.0  # exponent of the affinities; published: 8
    affinity_walk_log2_steps: Count = 6  # published: 8, on a grid five times as large
    # 80: IRN.
    irn_weights: Text = ""  # an IRN to use instead of training one
    irn_init: Literal["backbone", "classifier"] = "classifier"  # published: backbone, trained on ImageNet only
    irn_epochs: Positive = 8
    irn_batch_size: Positive = 16
    irn_learning_rate: Rate = 0.1
    irn_displacement_learning_rate: Rate = 0.1
    irn_scale_min: Rate = 0.5
    irn_scale_max: Rate = 1.5
    irn_crop: Positive = 96
    irn_displacement_width: Annotated[int, Field(ge=32, multiple_of=32)] = 32  # of its head; published: 256
    irn_train_radius: Annotated[int, Field(ge=2)] = 5
    # 80: the walk that spreads maps up to the boundaries, and the masks made of its result.
    walk_pad_to: Count = 0  # pad photographs to this side before the network; 0: only to a multiple of 16
    walk_radius: Annotated[int, Field(ge=2)] = 3
    walk_power: Factor = 1.0  # exponent of the maps before the walk; published: 1 (CAM), 1.3 (RIB, AMN)
    walk_beta: Rate = 10.0  # exponent of the affinities
    walk_log2_steps: Count = 4  # 2^4 = 16 steps of the random walk; published: 8
    walk_threshold: Share = 0.15  # background score of the pseudo-masks; published: 0.25
    # 90: DeepLab.
    deeplab_version: Literal["v2", "v3plus"] = "v2"
    deeplab_backbone: Literal["resnet_small", "resnet50", "resnet101", "resnet101_caffe", "efficientnet_lite0"] = "resnet_small"
    deeplab_weights: Text = ""  # a segmentation network to use instead of training one
    deeplab_init: Literal["imagenet", "classifier", "none"] = "classifier"
    deeplab_output_stride: Literal[8, 16] = 8
    deeplab_atrous_rates: Integers = (1, 2, 4, 6)  # published: 6, 12, 18, 24; v3plus has three: 6, 12, 18 at stride 16
    deeplab_decoder_width: Annotated[int, Field(ge=16)] = 32  # of v3plus; published: 256
    deeplab_iterations: Positive = 900
    deeplab_batch_size: Positive = 16
    deeplab_learning_rate: Rate = 3e-3  # published: 2.5e-4; v3plus: 0.01, of the decoder
    deeplab_momentum: Share = 0.9
    deeplab_weight_decay: Rate = 5e-4
    deeplab_loss: Literal["cross_entropy", "balanced", "self_label"] = "cross_entropy"
    deeplab_crop: Positive = 96
    deeplab_scales: Numbers = (1.0, 1.25, 1.5)
    deeplab_test_scales: Numbers = (0.5, 0.75)  # of v2, beside 1.0, in training and in testing
    deeplab_padding_is_background: bool = False  # v3plus teaches what lies outside the image as background (published: true)
    deeplab_centre_crop: Count = 0  # also score centre crops of this side (published v3plus numbers: 513); 0: full images only
    # 99: a reader's own photographs.
    own_photographs: Text = ""  # folder of photographs, or of one folder for each class; empty: those of installed packages
    own_labels: Text = ""  # table of their classes; empty: they lie in class folders
    own_longest: Count = 320  # larger photographs are made smaller until their longer side has so many pixels; 0: none is

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        ordered = (("cam_long_side_min", "cam_long_side_max"), ("irn_scale_min", "irn_scale_max"),
                   ("affinitynet_alpha_low", "affinitynet_alpha_high"),
                   ("amn_background_threshold", "amn_foreground_threshold"),
                   ("seed_background_threshold", "seed_foreground_threshold"))
        for low, high in ordered:
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} ({getattr(self, low)}) must not exceed {high} ({getattr(self, high)})")
        if self.shard > self.shards or (self.shard, self.shards) == (0, 1):
            raise ValueError(f"there is no shard {self.shard} of {self.shards}; give one from 0 to {self.shards}, or neither")
        if self.irn_crop % 4:
            raise ValueError(f"irn_crop ({self.irn_crop}) must be a multiple of 4, the stride of the affinity grid")
        if self.affinitynet_crop % self.affinitynet_stride:
            raise ValueError(f"affinitynet_crop ({self.affinitynet_crop}) must be a multiple of affinitynet_stride "
                             f"({self.affinitynet_stride})")
        if max(self.sccam_round_epochs) > self.sccam_schedule_epochs:
            raise ValueError(f"sccam_round_epochs {self.sccam_round_epochs} must not exceed sccam_schedule_epochs "
                             f"({self.sccam_schedule_epochs})")
        if self.deeplab_version == "v3plus" and (self.deeplab_loss == "self_label" or len(self.deeplab_atrous_rates) != 3):
            raise ValueError("deeplab_version 'v3plus' has three deeplab_atrous_rates and no self_label loss; give for "
                             "instance deeplab_atrous_rates [6, 12, 18] and deeplab_loss cross_entropy")
        return self

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Config":
        """Build a configuration from names and values.

        Args:
            values: field name to value, as YAML or papermill give them ("1e-4" and "(1.0, 0.5)" are understood).

        Returns:
            the configuration; fields that are not named have their defaults.

        Raises:
            ValueError: an unknown name (the nearest known one is suggested) or a value that does not fit; one sentence each.

        Explained in notebook 00, section "Parameters".

        >>> Config.from_values({"seed": 3, "cam_scales": "(1.0, 0.5)"}).cam_scales
        (1.0, 0.5)
        """
        unknown = [name for name in values if name not in cls.model_fields]
        if unknown:
            nearest = difflib.get_close_matches(unknown[0][:100], cls.model_fields, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else "; wsss_lib/config.py lists them all"
            raise ValueError(f"unknown parameter {unknown[0][:100]!r}{hint}")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"][:1])
            message = first["msg"].removeprefix("Value error, ")
            # reprlib, because a few lines of YAML can stand for a value of many gigabytes
            sentence = f"parameter {name} = {SHORT.repr(values.get(name)):.80}: {message}" if name else message
            raise ValueError(sentence) from None

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> "Config":
        """Build the configuration from a notebook's `parameters` cell and the cell that papermill injects after it.

        Args:
            namespace: the notebook's `globals()`. Names count when a cell before the one that calls this function assigned
                them, so that values computed later never reach a configuration when the set-up cell is run again.

        Returns:
            the configuration.

        Raises:
            ValueError: as `from_values`.

        Explained in notebook 00, section "Parameters".
        """
        names = []
        for source in namespace.get("In", [""])[1:]:
            if "from_notebook" in source:
                return cls.from_values({name: namespace[name] for name in names})
            try:
                statements = ast.parse(source).body
            except SyntaxError:  # a cell that failed to run
                continue
            for node in statements:
                if isinstance(node, ast.Assign):
                    names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        # No history is kept when nbval runs the cells, each once and in order: then all names so far count.
        return cls.from_values({name: namespace[name] for name in cls.model_fields if name in namespace})

    def parameters_of(self, *prefixes: str) -> dict[str, Any]:
        """Return the fields that can change the results of a stage: the common ones and those with one of the prefixes.

        Args:
            prefixes: of the stage's own fields, e.g. "cam_".

        Returns:
            name to value, as JSON has it. Fields that change no result (folders, device, loader processes) are left out.
        """
        result_free = {"runs_root", "data_root", "labels", "on_bad_image", "num_workers", "device", "processes", "shards",
                       "shard", "checkpoint_every", "device_batch_size", "method", "pixel_labels_chose", "refinement"}
        stage_prefixes = ("bottleneck_", "cam_", "rib_", "drs_", "amn_", "vwe_", "sccam_", "seed_", "affinitynet_",
                          "affinity_walk_", "irn_", "walk_", "deeplab_", "own_")
        return {name: value for name, value in self.model_dump(mode="json").items()
                if name not in result_free and (name.startswith(prefixes) or not name.startswith(stage_prefixes))}


def fields_of(*prefixes: str, without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the fields with one of the prefixes, without those that change nothing in the stage that asks.

    A training names what it depends on in this way, so that a change that matters only to what is made with the network does
    not train it again.

    Args:
        prefixes: of the stage's own fields.
        without: prefixes of fields that only later stages read.

    Returns:
        names of fields of `Config`, in their order there.

    Explained in notebook 10, section "Training on image-level labels".

    Example:
        >>> fields_of("walk_", without=("walk_pad_to", "walk_threshold"))
        ('walk_radius', 'walk_power', 'walk_beta', 'walk_log2_steps')
    """
    return tuple(name for name in Config.model_fields if name.startswith(prefixes) and not name.startswith(without))


def project_path(path: Path | str) -> Path:
    """Return an absolute path; a relative one starts at the project's root, whatever the working directory is."""
    return Path(os.path.normpath(PROJECT_ROOT / Path(path).expanduser()))
