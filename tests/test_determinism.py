"""One seed, one result; another seed, another; a changed parameter or input makes again what comes after it, and only that."""

import json
import shutil
from pathlib import Path

import pytest

from tests.small_chain import chain_server, everything, make_data
from wsss_lib.config import Config
from wsss_lib.methods import amn, cam, vwe
from wsss_lib.segment import deeplab

STAGES = ["check", "classifier", "maps", "seeds", "irn", "pseudo_masks", "deeplab", "predictions", "overview"]

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The images of the chain."""
    return make_data(tmp_path_factory.mktemp("data") / "micro")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A function that runs CAM's chain in a folder to its end, in a process of its own."""
    with chain_server() as server:

        def finished(folder: Path, **values) -> Path:
            server.begin_chain(data, folder, methods=["cam"], **values)
            assert server.end()[0] == 0
            return folder

        yield finished


@pytest.fixture(scope="module")
def first(run, tmp_path_factory) -> Path:
    """A run with seed 0; a test that changes it puts it back."""
    return run(tmp_path_factory.mktemp("first") / "runs")


def stages_of(runs: Path) -> dict[str, tuple[int, str]]:
    """Return the name of each stage, when its record was written, and what it was made from: parameters and inputs."""
    return {
        path.parent.name: (path.stat().st_mtime_ns, (path.parent / "begun.json").read_text())
        for path in runs.rglob("run.json")
        if "." not in path.parent.name
    }


def test_the_same_seed_gives_the_same_bytes_with_other_processes_and_batches_in_another_folder(run, first, tmp_path):
    second = run(tmp_path / "an äußerst other folder", num_workers=1, checkpoint_every=5)
    assert everything(second) == everything(first)


def test_another_seed_gives_others(run, first, tmp_path):
    other = {name.replace("seed1", "seed0"): content for name, content in everything(run(tmp_path, seed=1)).items()}
    mine = everything(first)
    equal = [name for name in mine if mine[name] == other.get(name) and "/report/" not in name]
    assert sorted(other) == sorted(mine)
    trained = [name for name in mine if name.endswith(("weights.safetensors", "log.jsonl"))]
    assert len(trained) == 6 and not set(trained) & set(equal)
    maps = [name for name in mine if name.endswith(".npz")]
    assert len(maps) == 30 and len(set(maps) & set(equal)) < 20  # after so short a training many have no evidence at all


def test_every_record_lists_what_the_bits_depend_on(first):
    records = [json.loads(path.read_text()) for path in first.rglob("run.json")]
    assert sorted(record["stage"] for record in records) == sorted(STAGES)
    for record in records:
        assert record["randomness"]["order_of_sums"]["torch_threads"] == 1
        assert record["randomness"]["order_of_sums"]["instructions"]
        assert record["randomness"]["order_of_sums"]["dense_crf"] == "compiled"
        assert all("seed 0" in source for source in record["randomness"]["generators"].values())
        assert record["versions"]["torch"] and record["versions"]["numpy"]
        assert record["stage"] == "check" or record["inputs"]


@pytest.mark.parametrize(
    "changed, surely, never",
    [
        (
            {"num_workers": 1, "checkpoint_every": 9, "pixel_labels_chose": "something else", "on_bad_image": "skip"},
            [],
            STAGES[:-1],
        ),
        ({"deeplab_iterations": 5}, ["deeplab", "predictions"], STAGES[:6]),
        ({"cam_scales": [1.0]}, ["maps"], STAGES[:2]),
        ({"deeplab_centre_crop": 32}, [], STAGES[:-1]),  # the overview shows the new row
        ({"seed_threshold": 0.3}, ["seeds"], STAGES[:3]),
    ],
)
def test_a_changed_parameter_makes_what_depends_on_it_again_and_nothing_else(run, first, tmp_path, changed, surely, never):
    """A stage is made again if a parameter of its own or the RESULT of an input has changed; then back to the first bytes."""
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    before, after = stages_of(copy), stages_of(run(copy, **changed))
    again = {stage for stage in STAGES if after[stage][0] != before[stage][0]}
    assert again == {stage for stage in STAGES if after[stage][1] != before[stage][1]}
    assert set(surely) <= again and not again & set(never)
    assert {path.name.split(".")[0] for path in copy.glob("*/*/seed0/*.*") if path.is_dir()} == again
    if surely == ["seeds"]:
        found = everything(run(copy))
        assert {name: content for name, content in found.items() if "." not in Path(name).parts[3:4]} | everything(
            first
        ) == found
        back = stages_of(copy)
        assert all(back[stage][0] == before[stage][0] for stage in again - {"overview"}), "found again, not made again"


def test_a_lost_result_is_made_again_and_nothing_after_it(run, first, tmp_path):
    """The seeds are completed; as they are the same as before, what was made from them stays."""
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    before = stages_of(copy)
    next((copy / "micro/cam/seed0/seeds/seed_masks").iterdir()).unlink()
    after = stages_of(run(copy))
    assert [stage for stage in STAGES if after[stage][0] != before[stage][0]] == ["seeds"]
    assert everything(copy) == everything(first)


@pytest.mark.parametrize(
    "stage, changes_nothing",
    [
        (cam.CLASSIFIER, {"cam_scales": (1.0,)}),
        (vwe.NETWORK, {"cam_scales": (1.0,)}),
        (amn.NETWORK, {"amn_dropout_in_maps": True}),
        (deeplab.DEEPLAB, {"deeplab_centre_crop": 513}),
    ],
)
def test_what_only_later_stages_read_trains_nothing_again(stage, changes_nothing):
    config = Config()
    other = config.model_copy(update=changes_nothing)
    assert other != config and other.parameters_of(*stage.read_by(other)) == config.parameters_of(*stage.read_by(config))
    assert set(changes_nothing) <= set(Config.model_fields)
