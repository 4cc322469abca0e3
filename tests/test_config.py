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
from wsss_lib.config import Config
from wsss_lib.parameters import PROJECT_ROOT, project_path
from wsss_lib.pipeline import STAGES
from wsss_lib.presets import preset_config, preset_files, read_preset

PRESETS = sorted((PROJECT_ROOT / "configs").glob("*.yaml"))
NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.py"))


def refusal(values) -> str:
    with pytest.raises(ValueError) as error:
        Config.from_values(values)
    message = str(error.value)
    assert "\n" not in message and not isinstance(error.value, ValidationError)
    return message


@pytest.mark.parametrize(
    "values, words",
    [
        ({"cam_epoch": 3}, "unknown parameter 'cam_epoch'; did you mean 'cam_epochs'?"),
        ({"zzzzzz": 3}, "unknown parameter 'zzzzzz'; notebook 00 says where they are listed"),
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
        (
            {"backbone": "resnet18"},
            "'resnet_small', 'resnet50', 'resnet101', 'efficientnet_lite0', 'resnet38' or 'vgg16_largefov'",
        ),
        ({"output_stride": 32}, "Input should be 8 or 16"),
        ({"mixed_precision": "perhaps"}, "parameter mixed_precision"),
        ({"cam_frozen_stages": 5}, "parameter cam_frozen_stages = 5"),
        ({"irn_train_radius": 1}, "parameter irn_train_radius = 1"),
        ({"vwe_words": 1}, "parameter vwe_words = 1"),
        ({"vwe_words": True}, "must be a number, not True or False"),
        ({"vwe_variant": "vwl"}, "'vwe', 'vwl_l' or 'vwl_m'"),
        ({"vwe_temperature": 0}, "parameter vwe_temperature = 0"),
        ({"vwe_gamma": -1}, "parameter vwe_gamma = -1"),
        ({"vwe_word": 5}, "did you mean 'vwe_words'"),
        ({"sccam_dropout": 1.0}, "parameter sccam_dropout = 1.0"),
        ({"sccam_clusters": 0}, "parameter sccam_clusters = 0"),
        ({"refinement": "a b"}, "parameter refinement = 'a b': String should match pattern"),
        ({"affinitynet_stride": 16}, "Input should be 4 or 8"),
    ],
)
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
    config = Config.from_values(
        {"cam_weight_decay": "1e-4", "cam_scales": "(1.0, 0.5)", "deeplab_atrous_rates": "[3, 6]", "cam_epochs": "7"}
    )
    assert config.cam_weight_decay == 1e-4 and config.cam_epochs == 7
    assert config.cam_scales == (1.0, 0.5) and config.deeplab_atrous_rates == (3, 6)
    assert Config.from_values({"cam_scales": [1, 2]}).cam_scales == (1.0, 2.0)


@pytest.mark.parametrize(
    "values, words",
    [
        (
            {"cam_long_side_min": 200, "cam_long_side_max": 100},
            "cam_long_side_min (200) must not exceed cam_long_side_max (100)",
        ),
        ({"irn_scale_min": 2.0, "irn_scale_max": 1.0}, "irn_scale_min (2.0) must not exceed irn_scale_max (1.0)"),
        (
            {"seed_background_threshold": 0.5, "seed_foreground_threshold": 0.4},
            "seed_background_threshold (0.5) must not exceed seed_foreground_threshold (0.4)",
        ),
        ({"irn_crop": 30}, "irn_crop (30) must be a multiple of 4"),
        ({"amn_background_threshold": 0.5}, "amn_background_threshold (0.5) must not exceed amn_foreground_threshold (0.2)"),
        ({"sccam_round_epochs": [4, 5]}, "sccam_round_epochs (4, 5) must not exceed sccam_schedule_epochs (4)"),
        ({"affinitynet_alpha_low": 60.0}, "affinitynet_alpha_low (60.0) must not exceed affinitynet_alpha_high (48.0)"),
        ({"affinitynet_crop": 90}, "affinitynet_crop (90) must be a multiple of affinitynet_stride (4)"),
        ({"deeplab_version": "v3plus"}, "deeplab_version 'v3plus' has three deeplab_atrous_rates and no self_label loss"),
        (
            {"deeplab_version": "v3plus", "deeplab_atrous_rates": [6, 12, 18], "deeplab_loss": "self_label"},
            "deeplab_version 'v3plus' has three deeplab_atrous_rates and no self_label loss",
        ),
    ],
)
def test_values_that_contradict_each_other(values, words):
    assert words in refusal(values)


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 1


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


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


def test_a_stage_is_given_what_it_names():
    config = Config()
    assert set(config.names_of("rib_*", "seed")) == {name for name in Config.model_fields if name.startswith("rib_")} | {"seed"}
    settings = config.settings(("rib_*",))
    assert settings.rib_iterations == 2 and settings.num_workers == 2
    with pytest.raises(AttributeError, match="reads the parameter 'seed' without declaring it"):
        settings.seed  # noqa: B018


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
    cells = (
        "seed = 1  # of everything\ncam_epochs = 2",
        "seed = 3",
        "broken cell (",
        "config = Config.from_notebook(globals())",
        "labels = [1, 2]\nmean = 0.5",
    )
    config = Config.from_notebook(namespace(*cells))
    assert (config.seed, config.cam_epochs, config.labels) == (3, 2, "")
    with pytest.raises(ValueError, match="did you mean 'cam_epochs'"):
        Config.from_notebook(namespace("cam_epoch = 2", "config = Config.from_notebook(globals())"))


def test_from_notebook_takes_every_form_of_assignment():
    cells = (
        "seed: int = 3\ncam_epochs, cam_crop = 2, 64\nirn_epochs = vwe_epochs = 5",
        "config = Config.from_notebook(globals())",
    )
    config = Config.from_notebook(namespace(*cells))
    assert (config.seed, config.cam_epochs, config.cam_crop, config.irn_epochs, config.vwe_epochs) == (3, 2, 64, 5, 5)
    with pytest.raises(ValueError, match="unknown parameter 'sed'"):
        Config.from_notebook(namespace("sed: int = 3", "config = Config.from_notebook(globals())"))


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
    config = preset_config("small", "rib", tmp_path / "configs", seed=3)
    assert (config.method, config.cam_epochs, config.rib_iterations, config.seed) == ("rib", 3, 5, 3)
    assert preset_config("small", "amn", tmp_path / "configs").rib_iterations == 4


def test_all_presets_are_there():
    """The four sizes, the data of the comparison, the short run of all methods, and the rehearsal of coco14."""
    assert {path.stem for path in PRESETS} == {"smoke", "demo", "voc12-small", "voc12-animals", "voc12", "coco14", "coco-toy"}


@pytest.mark.parametrize(
    "text, words",
    [
        ("cam_epoch: 3", "did you mean"),
        ("cam_epochs: five", "parameter cam_epochs = 'five'"),
        ("- seed", "a preset is a list of lines"),
        ("1: 2", "a preset is a list of lines"),
        ("", "a preset is a list of lines"),
        ("seed: [", "not a YAML file"),
        ("labels: 2007_000032", "must be text"),
        ("!!python/object/apply:os.getcwd []", "not a YAML file"),
    ],
)
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
    """It stands in the notebook's list, which has room for twenty, or a stage that the notebook runs reads it."""
    config = preset_config(path.stem)
    shown = {name for notebook in NOTEBOOKS for name in parameters_of_notebook(notebook)}
    read = {name for stage in STAGES for name in config.names_of(*stage.read_by(config))}
    assert not set(read_preset(path)) - shown - read


@pytest.mark.parametrize("path", sorted((PROJECT_ROOT / "configs" / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_method_sets_is_valid_beside_its_preset(path):
    preset, method = path.stem.split(".")
    assert preset_files(preset, method)[1] == path
    assert preset_config(preset, method).method == method
