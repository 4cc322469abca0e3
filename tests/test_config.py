"""The configuration refuses what it cannot mean, repairs what YAML and papermill lose, and the presets are valid."""

import ast
from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.refresh_notebooks import source_notebook
from wsss_lib.parameters import PROJECT_ROOT, project_path
from wsss_lib.config import Config
from wsss_lib.presets import preset_config, preset_files, read_preset

PRESETS = sorted((PROJECT_ROOT / "configs").glob("*.yaml"))
NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.py"))


def refusal(values) -> str:
    with pytest.raises(ValueError) as error:
        Config.from_values(values)
    message = str(error.value)
    assert "\n" not in message and not isinstance(error.value, ValidationError)
    return message


@pytest.mark.parametrize("values, words", [
    ({"cam_epoch": 3}, "unknown parameter 'cam_epoch'; did you mean 'cam_epochs'?"),
    ({"zzzzzz": 3}, "unknown parameter 'zzzzzz'; wsss_lib/config.py lists them all"),
    ({"cam_epochs": "five"}, "parameter cam_epochs = 'five': Input should be a valid integer"),
    ({"cam_learning_rate": "fast"}, "parameter cam_learning_rate = 'fast': Input should be a valid number"),
    ({"cam_epochs": 2.5}, "parameter cam_epochs = 2.5"),
    ({"cam_epochs": None}, "parameter cam_epochs = None"),
    ({"cam_epochs": 0}, "parameter cam_epochs = 0: Input should be greater than or equal to 1"),
    ({"seed": -1}, "parameter seed = -1"),
    ({"cam_epochs": True}, "parameter cam_epochs = True: must be a number, not True or False"),
    ({"cam_learning_rate": False}, "must be a number, not True or False"),
    ({"cam_scales": [1.0, True]}, "must be a number, not True or False"),
    ({"deeplab_atrous_rates": [True]}, "must be a number, not True or False"),
    ({"cam_learning_rate": float("nan")}, "parameter cam_learning_rate = nan"),
    ({"cam_learning_rate": float("inf")}, "parameter cam_learning_rate = inf"),
    ({"seed_threshold": 1.5}, "parameter seed_threshold = 1.5"),
    ({"cam_scales": []}, "at least 1 item"),
    ({"cam_scales": "half"}, "must be a list of numbers such as [1.0, 0.5], not the text 'half'"),
    ({"cam_scales": "-" * 100_000 + "1"}, "must be a list of numbers"),
    ({"cam_scales": [1.0, 0.0]}, "greater than 0"),
    ({"deeplab_atrous_rates": [6.5]}, "parameter deeplab_atrous_rates"),
    ({"dataset": "../elsewhere"}, "parameter dataset = '../elsewhere': String should match pattern"),
    ({"method": ""}, "parameter method = ''"),
    ({"backbone": "resnet18"}, "'resnet_small', 'resnet50', 'resnet101', 'efficientnet_lite0', 'resnet38' or 'vgg16_largefov'"),
    ({"output_stride": 32}, "Input should be 8 or 16"),
    ({"mixed_precision": "perhaps"}, "parameter mixed_precision"),
    ({"frozen_stages": 5}, "parameter frozen_stages = 5"),
    ({"irn_train_radius": 1}, "parameter irn_train_radius = 1"),
    ({"vwe_words": 1}, "parameter vwe_words = 1"),
    ({"vwe_words": True}, "must be a number, not True or False"),
    ({"vwe_variant": "vwl"}, "'vwe', 'vwl_l' or 'vwl_m'"),
    ({"vwe_temperature": 0}, "parameter vwe_temperature = 0"),
    ({"vwe_gamma": -1}, "parameter vwe_gamma = -1"),
    ({"vwe_word": 5}, "did you mean 'vwe_words'"),
    ({"sccam_dropout": 1.0}, "parameter sccam_dropout = 1.0"),
    ({"sccam_clusters": 0}, "parameter sccam_clusters = 0"),
    ({"refinement": "crf"}, "Input should be 'irn', 'affinitynet' or 'drs'"),
    ({"affinitynet_stride": 16}, "Input should be 4 or 8"),
])
def test_a_value_that_does_not_fit_gives_one_sentence(values, words):
    assert words in refusal(values)


@pytest.mark.parametrize("name", [name for name, field in Config.model_fields.items() if field.annotation is str])
def test_an_id_that_became_a_number_is_refused(name):
    number = yaml.safe_load("2007_000032")  # YAML's underscore in integers
    assert number == 2007000032
    assert f"parameter {name} = 2007000032: must be text; write it in quotes in YAML" in refusal({name: number})
    assert "must be text" in refusal({name: None})
    assert getattr(Config.from_values({name: "2007_000032"}), name) == "2007_000032"


def test_what_yaml_and_papermill_lose_is_repaired():
    assert yaml.safe_load("1e-4") == "1e-4"  # YAML 1.1 wants a point
    config = Config.from_values({"weight_decay": "1e-4", "cam_scales": "(1.0, 0.5)", "deeplab_atrous_rates": "[3, 6]",
                                 "cam_epochs": "7"})
    assert config.weight_decay == 1e-4 and config.cam_epochs == 7
    assert config.cam_scales == (1.0, 0.5) and config.deeplab_atrous_rates == (3, 6)
    assert Config.from_values({"cam_scales": [1, 2]}).cam_scales == (1.0, 2.0)


@pytest.mark.parametrize("values, words", [
    ({"cam_long_side_min": 200, "cam_long_side_max": 100}, "cam_long_side_min (200) must not exceed cam_long_side_max (100)"),
    ({"irn_scale_min": 2.0, "irn_scale_max": 1.0}, "irn_scale_min (2.0) must not exceed irn_scale_max (1.0)"),
    ({"seed_background_threshold": 0.5, "seed_foreground_threshold": 0.4},
     "seed_background_threshold (0.5) must not exceed seed_foreground_threshold (0.4)"),
    ({"irn_crop": 30}, "irn_crop (30) must be a multiple of 4"),
    ({"amn_background_threshold": 0.5}, "amn_background_threshold (0.5) must not exceed amn_foreground_threshold (0.2)"),
    ({"sccam_round_epochs": [4, 5]}, "sccam_round_epochs (4, 5) must not exceed sccam_schedule_epochs (4)"),
    ({"affinitynet_alpha_low": 60.0}, "affinitynet_alpha_low (60.0) must not exceed affinitynet_alpha_high (48.0)"),
    ({"affinitynet_crop": 90}, "affinitynet_crop (90) must be a multiple of affinitynet_stride (4)"),
    ({"deeplab_version": "v3plus"}, "deeplab_version 'v3plus' has three deeplab_atrous_rates and no self_label loss"),
    ({"deeplab_version": "v3plus", "deeplab_atrous_rates": [6, 12, 18], "deeplab_loss": "self_label"},
     "deeplab_version 'v3plus' has three deeplab_atrous_rates and no self_label loss"),
])
def test_values_that_contradict_each_other(values, words):
    assert words in refusal(values)


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 1


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from(sorted(Config.model_fields)) | st.text(), JSON_LIKE, max_size=3))
@example({"cam_scales": "(" * 500})
@example({"cam_scales": "9" * 5000})
@example({"cam_scales": "\0"})
@example({"cam_learning_rate": 10**400})
@example({"seed": 10**5000})
@example({"": 1})
def test_nothing_but_a_value_error_ever_comes_out(values):
    try:
        config = Config.from_values(values)
    except ValueError as error:
        assert str(error)
    else:
        assert Config.from_values(config.model_dump()) == config


# ---- parameters of a stage

STAGE_PREFIXES = ("bottleneck_", "cam_", "rib_", "drs_", "amn_", "vwe_", "sccam_", "seed_", "affinitynet_",
                  "affinity_walk_", "irn_", "walk_", "deeplab_", "own_")


def test_parameters_of_a_stage_are_the_common_ones_and_its_own():
    config = Config()
    cam, seeds = config.parameters_of("cam_"), config.parameters_of("seed_")
    assert {"dataset", "seed", "backbone", "cam_epochs"} <= set(cam) and not any(name.startswith("irn_") for name in cam)
    assert set(cam) & set(seeds) == {name for name in cam if not name.startswith("cam_")}
    moved = Config(runs_root="/elsewhere", data_root="/copy", num_workers=4, device="cpu", checkpoint_every=3)
    assert moved.parameters_of("cam_") == cam  # where and how it runs does not change a result
    named = set().union(*(config.parameters_of(prefix) for prefix in STAGE_PREFIXES))
    assert set(Config.model_fields) - named == {"runs_root", "data_root", "labels", "num_workers", "device", "processes",
                                                "shards", "shard", "checkpoint_every", "device_batch_size", "method",
                                                "pixel_labels_chose", "refinement", "on_bad_image"}


def test_relative_paths_start_at_the_project():
    assert project_path("configs") == PROJECT_ROOT / "configs" and project_path("/a/b") == Path("/a/b")
    assert project_path("x/../runs") == PROJECT_ROOT / "runs"


# ---- notebooks

def namespace(*cells: str) -> dict:
    """What a notebook's globals() hold after its cells have run."""
    values = {"In": ["", *cells]}
    for cell in cells:
        if "from_notebook" not in cell and "broken" not in cell:
            exec(cell, values)
    return values


def test_from_notebook_takes_the_cells_before_the_set_up_cell():
    cells = ("seed = 1  # of everything\ncam_epochs = 2", "seed = 3", "broken cell (",
             "config = Config.from_notebook(globals())", "labels = [1, 2]\nmean = 0.5")
    config = Config.from_notebook(namespace(*cells))
    assert (config.seed, config.cam_epochs, config.labels) == (3, 2, "")
    with pytest.raises(ValueError, match="did you mean 'cam_epochs'"):
        Config.from_notebook(namespace("cam_epoch = 2", "config = Config.from_notebook(globals())"))


def test_from_notebook_without_a_history_takes_the_fields_that_are_there():
    """nbval runs cells without keeping them in `In`; a method's notebook must still write to its own folder."""
    names = {"In": [""], "method": "rib", "cam_epochs": 2, "np": ast, "run_device": "cpu"}
    config = Config.from_notebook(names)
    assert (config.method, config.cam_epochs, config.seed) == ("rib", 2, 0)


# ---- presets

@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_valid(path):
    assert isinstance(Config.from_values(read_preset(path)), Config)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(FileNotFoundError, match="preset 'voc13' does not exist in configs/; take one of: coco-toy, "):
        preset_config("voc13")


def test_what_a_method_sets_wins_over_the_preset_and_given_values_over_both(tmp_path):
    (tmp_path / "configs" / "methods").mkdir(parents=True)
    (tmp_path / "configs" / "small.yaml").write_text("cam_epochs: 3\nrib_iterations: 4\nseed: 1\n")
    (tmp_path / "configs" / "methods" / "small.rib.yaml").write_text("rib_iterations: 5\nseed: 2\n")
    config = preset_config("small", "rib", tmp_path, seed=3)
    assert (config.method, config.cam_epochs, config.rib_iterations, config.seed) == ("rib", 3, 5, 3)
    assert preset_config("small", "amn", tmp_path).rib_iterations == 4


def test_all_presets_are_there():
    """The four sizes, and the rehearsal of coco14 on generated images."""
    assert {path.stem for path in PRESETS} == {"smoke", "voc12-small", "voc12", "coco14", "coco-toy"}


@pytest.mark.parametrize("text, words", [
    ("cam_epoch: 3", "did you mean"), ("cam_epochs: five", "parameter cam_epochs = 'five'"),
    ("- seed", "a preset is a list of lines"), ("1: 2", "a preset is a list of lines"), ("", "a preset is a list of lines"),
    ("seed: [", "not a YAML file"),
    ("labels: 2007_000032", "must be text"), ("!!python/object/apply:os.getcwd []", "not a YAML file"),
])
def test_broken_preset_names_the_file(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_preset(path)
    assert str(error.value).startswith(str(path)) and words in str(error.value) and "\n" not in str(error.value)


def parameters_of_notebook(path: Path) -> list[str]:
    """Names that the cell tagged "parameters" of a percent script assigns."""
    cells = [cell for cell in jupytext.read(path, fmt="py:percent").cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, f"{path.name} must have one cell tagged 'parameters'"
    return [target.id for node in ast.parse(cells[0].source).body for target in node.targets]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_of_a_notebook_are_fields(path, tmp_path):
    names = parameters_of_notebook(path)
    assert names and len(set(names)) == len(names)
    assert not set(names) - set(Config.model_fields)
    nbformat.write(source_notebook(path), tmp_path / "made.ipynb")
    found = papermill.inspect_notebook(tmp_path / "made.ipynb")
    assert list(found) == names, "papermill does not see a parameter whose comment contains '='"
    Config.from_values({name: ast.literal_eval(entry["default"]) for name, entry in found.items()})


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_name_of_a_preset_is_a_parameter_of_some_notebook(path):
    known = {name for notebook in NOTEBOOKS for name in parameters_of_notebook(notebook)}
    assert not set(read_preset(path)) - known


# Value that the preset voc12 must hold, and where it was published.
PUBLISHED = {
    "train_split": ("train_aug", "10,582 images, all papers"),
    "backbone": ("resnet50", "IRN: ResNet-50 with the stride of layer4 removed"),
    "output_stride": (16, "IRN"),
    "frozen_batch_norm": (True, "IRN: running statistics, always"),
    "frozen_stages": (3, "IRN: conv1, layer1 and layer2 receive no gradient"),
    "cam_epochs": (5, "IRN program, run_sample"),
    "cam_batch_size": (16, "IRN program, run_sample"),
    "cam_learning_rate": (0.1, "IRN program, train_cam"),
    "cam_head_learning_rate": (1.0, "IRN program, train_cam: ten times"),
    "weight_decay": (1e-4, "IRN program, run_sample"),
    "momentum_slip": (True, "IRN program, PolyOptimizer: weight decay in the place of the momentum"),
    "cam_long_side_min": (320, "IRN program, train_cam"),
    "cam_long_side_max": (640, "IRN program, train_cam"),
    "cam_crop": (512, "IRN program, run_sample"),
    "cam_scales": ((1.0, 0.5, 1.5, 2.0), "IRN program, run_sample"),
    "seed_threshold": (0.15, "IRN program, eval_cam"),
    "seed_foreground_threshold": (0.30, "IRN: t_f"),
    "seed_background_threshold": (0.05, "IRN: t_b"),
    "seed_crf_iterations": (10, "IRN program, crf_inference_label"),
    "irn_init": ("backbone", "IRN program: the ImageNet backbone, not the classifier"),
    "irn_epochs": (3, "IRN program, run_sample"),
    "irn_batch_size": (32, "IRN program, run_sample"),
    "irn_learning_rate": (0.1, "IRN program, train_irn: edge blocks"),
    "irn_displacement_learning_rate": (1.0, "IRN program, train_irn: displacement blocks, ten times"),
    "irn_scale_min": (0.5, "IRN program, train_irn"),
    "irn_scale_max": (1.5, "IRN program, train_irn"),
    "irn_crop": (512, "IRN program, run_sample"),
    "irn_displacement_width": (256, "IRN program, resnet50_irn: fc_dp3 to fc_dp7"),
    "affinitynet_init": ("backbone", "AffinityNet program: ImageNet weights, not the classifier (issue 18)"),
    "affinitynet_stride": (8, "AffinityNet: maps of ResNet-38 and VGG-16"),
    "affinitynet_radius": (5, "AffinityNet"),
    "affinitynet_alpha_low": (4.0, "AffinityNet program, infer_cls"),
    "affinitynet_alpha_high": (32.0, "AffinityNet program, infer_cls; 24 in the paper"),
    "affinitynet_images": (0, "AffinityNet program: all of train_aug"),
    "affinitynet_epochs": (8, "AffinityNet program, train_aff"),
    "affinitynet_batch_size": (8, "AffinityNet program, train_aff"),
    "affinitynet_learning_rate": (0.01, "users of ResNet-38 (issues 8 and 18); 0.1 is for VGG-16"),
    "affinitynet_weight_decay": (5e-4, "AffinityNet program, train_aff"),
    "affinitynet_crop": (448, "AffinityNet program, train_aff"),
    "affinity_walk_alpha": (16.0, "AffinityNet program, infer_aff"),
    "affinity_walk_beta": (8.0, "AffinityNet program, infer_aff"),
    "affinity_walk_log2_steps": (8, "AffinityNet program, infer_aff"),
    "walk_pad_to": (512, "IRN program, EdgeDisplacement"),
    "irn_train_radius": (10, "IRN: neighbourhood of training"),
    "walk_radius": (5, "IRN: neighbourhood of the random walk"),
    "walk_beta": (10.0, "IRN: beta"),
    "walk_log2_steps": (8, "IRN: 2^8 = 256 steps"),
    "walk_threshold": (0.25, "IRN program, run_sample: sem_seg_bg_thres"),
    "deeplab_backbone": ("resnet101", "DeepLab-v2"),
    "deeplab_init": ("imagenet", "AdvCAM, RIB and AMN, for weak supervision"),
    "deeplab_output_stride": (8, "DeepLab-v2"),
    "deeplab_atrous_rates": ((6, 12, 18, 24), "DeepLab-v2: ASPP-L"),
    "deeplab_iterations": (30_000, "AdvCAM's author"),
    "deeplab_batch_size": (10, "AdvCAM's author"),
    "deeplab_learning_rate": (2.5e-4, "DeepLab-v2"),
    "deeplab_momentum": (0.9, "DeepLab-v2"),
    "deeplab_weight_decay": (5e-4, "DeepLab-v2"),
    "deeplab_loss": ("balanced", "AdvCAM, RIB and AMN"),
    "deeplab_crop": (321, "DeepLab-v2"),
    "deeplab_scales": ((0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), "AdvCAM's author: 0.5 to 2.0 in steps of 0.25"),
    "deeplab_test_scales": ((0.5, 0.75), "DeepLab-v2: beside the full size, fused by their maximum"),
}


# The same for what a method sets otherwise.
PUBLISHED_OF_AMN = {
    "amn_init": ("backbone", "AMN program: ImageNet weights, not the classifier's"),
    "amn_foreground_threshold": (0.30, "AMN program, generate_pseudo_mask: first stage"),
    "amn_background_threshold": (0.05, "AMN program, generate_pseudo_mask: first stage"),
    "amn_epochs": (5, "AMN program, run_sample"),
    "amn_learning_rate": (5e-6, "AMN program, train_amn: Adam, backbone"),
    "amn_head_learning_rate": (1e-4, "AMN program, train_amn: Adam, label encoder and ASPP"),
    "amn_smoothing": (0.4, "AMN program, train_amn"),
    "amn_atrous_rates": ((6, 12, 18, 24), "AMN program, resnet50_amn"),
    "cam_batch_size": (16, "AMN program, run_sample"),
    "irn_crop": (512, "AMN program, run_sample"),
    "irn_scale_min": (0.5, "AMN program, train_amn"),
    "irn_scale_max": (1.5, "AMN program, train_amn"),
    "cam_scales": ((1.0, 0.5, 1.5, 2.0), "AMN program, make_amn_cam"),
    "seed_threshold": (0.25, "AMN program, run_sample: cam_eval_thres"),
    "seed_foreground_threshold": (0.45, "AMN program, generate_pseudo_mask: second stage"),
    "seed_background_threshold": (0.15, "AMN program, generate_pseudo_mask: second stage"),
    "walk_power": (1.3, "AMN program, make_sem_seg_labels"),
    "walk_threshold": (0.25, "AMN program, run_sample: sem_seg_bg_thres"),
}


@pytest.mark.parametrize("name", PUBLISHED_OF_AMN)
def test_voc12_with_amn_holds_the_published_value(name):
    value, source = PUBLISHED_OF_AMN[name]
    assert getattr(preset_config("voc12", "amn"), name) == value, source


@pytest.mark.parametrize("path", sorted((PROJECT_ROOT / "configs" / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_method_sets_is_valid_beside_its_preset(path):
    preset, method = path.stem.split(".")
    assert preset_files(preset, method)[1] == path
    assert preset_config(preset, method).method == method


@pytest.mark.parametrize("name", PUBLISHED)
def test_voc12_holds_the_published_value(name):
    value, source = PUBLISHED[name]
    assert getattr(preset_config("voc12"), name) == value, source


# The same for what the method sccam sets otherwise.
PUBLISHED_SCCAM = {
    "backbone": ("resnet38", "SC-CAM"),
    "output_stride": (8, "SC-CAM"),
    "frozen_batch_norm": (True, "SC-CAM program: every batch normalisation in inference form"),
    "frozen_stages": (1, "SC-CAM program: conv1a and b2 are not trained"),
    "cam_batch_size": (16, "SC-CAM program, train_cls"),
    "cam_long_side_min": (256, "SC-CAM program, train_cls"),
    "cam_long_side_max": (512, "SC-CAM program, train_cls"),
    "cam_crop": (224, "SC-CAM program, train_cls"),
    "cam_scales": ((1.0, 0.5, 1.5, 2.0), "SC-CAM program, infer_cls"),
    "sccam_clusters": (10, "SC-CAM: K"),
    "sccam_loss_weight": (5.0, "SC-CAM: lambda"),
    "sccam_round_epochs": ((31, 41, 51), "SC-CAM program, script.sh: indices 30, 40 and 50"),
    "sccam_schedule_epochs": (61, "SC-CAM program, train_cls"),
    "sccam_dropout": (0.5, "SC-CAM program, resnet38_cls"),
    "sccam_color_jitter": (1.0, "SC-CAM program, train_cls"),
    "sccam_learning_rate": (0.01, "SC-CAM program, train_cls"),
    "sccam_head_learning_rate": (0.1, "SC-CAM program, train_cls: ten times"),
    "sccam_weight_decay": (5e-4, "SC-CAM program, train_cls"),
    "momentum_slip": (True, "SC-CAM program, PolyOptimizer: weight decay in the place of the momentum"),
    "seed_threshold": (0.15, "SC-CAM program, infer_cls"),
    "refinement": ("affinitynet", "SC-CAM: AffinityNet's random walk"),
}


@pytest.mark.parametrize("name", PUBLISHED_SCCAM)
def test_sccam_holds_the_published_value(name):
    value, source = PUBLISHED_SCCAM[name]
    assert getattr(preset_config("voc12", "sccam"), name) == value, source
