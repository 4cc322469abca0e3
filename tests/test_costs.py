"""The estimated costs: operations counted by hand, and tables that hold together."""

import pytest
import torch
from torch import nn

from tests import made
from wsss_lib import costs
from wsss_lib.config import Config
from wsss_lib.core import counting
from wsss_lib.methods import METHODS
from wsss_lib.presets import preset_config


def test_operations_and_memory_by_hand():
    """A 1x1 convolution from 3 to 5 channels: 2 * 3 * 5 operations a pixel; backward as much for the weights."""
    config = Config(device_batch_size=4)
    with torch.device("meta"):
        net = nn.Conv2d(3, 5, 1, bias=False)
        trained = {
            half: counting.training_cost(
                "one",
                net,
                lambda count: net(torch.empty(count, 3, 8, 8)).sum(),
                images=100,
                batch_size=8,
                config=config.model_copy(update={"mixed_precision": half}),
                moments=2,
            )
            for half in (False, True)
        }
        inference = counting.inference_cost("two", net, net, 10, (8, 6), (1.0, 0.5), at_once=3)
    assert trained[False].flops == trained[True].flops == 100 * 2 * (2 * 3 * 5 * 64)
    weights, images, output = 3 * 5 * 4, 4 * 3 * 64 * 4, 4 * 5 * 64 * 4  # of four images, in float32
    assert trained[False].gpu_bytes == images + output + 4 + weights + 2 * weights  # with the sum, and two moments
    halves = (images + output + weights) / 2  # kept for the backward pass; the sum is made in float32
    assert trained[True].gpu_bytes == halves + output + 4 + weights + 2 * weights
    assert inference.flops == 10 * 2 * (2 * 3 * 5) * (8 * 6 + 4 * 3)
    assert inference.gpu_bytes == 2 * 3 * (3 + 5 + 5) * 8 * 6 * 4 + weights  # the parts of the output, and the whole of it


def test_memory_is_the_most_that_lives_at_one_time():
    with counting.Memory() as memory:
        kept = torch.empty(100, device="meta")
        for _ in range(3):
            kept.exp()  # gone before the next one
        assert (memory.now, memory.peak) == (400, 800)
        kept[:50].add_(1)  # a view
    assert (memory.now, memory.peak) == (400, 800)


def test_hours_are_operations_by_the_assumed_speed():
    assert costs.Cost("one", flops=3600 * 312e12 * 0.3, half=True).gpu_hours() == pytest.approx(1)
    assert costs.Cost("one", flops=3600 * 312e12 * 0.3).gpu_hours() == pytest.approx(2)


@pytest.mark.parametrize("preset", ["voc12", "coco14"])
def test_every_stage_of_the_presets_fits_16_gib(preset, monkeypatch):
    made = {}
    for method in (*METHODS, "truth"):
        if method not in ("cam", "drs"):  # DeepLab's costs are those of "cam", or, of DRS's own masks, those of "drs"
            monkeypatch.setattr(costs.deeplab, "costs", lambda *arguments: [])
        if method not in ("cam", "sccam"):  # IRN's are those of "cam", AffinityNet's those of "sccam"
            monkeypatch.setattr(costs, "_mask_costs", lambda *arguments: [])
        made |= {(method, cost.stage): cost for cost in costs.stage_costs(preset, method)}
        monkeypatch.undo()
    on_gpu = {name: cost.gpu_bytes / 2**30 for name, cost in made.items() if cost.flops}
    assert len(on_gpu) >= 23 and all(0.1 < memory < 16 for memory in on_gpu.values()), on_gpu
    assert on_gpu["cam", "irn"] > 4  # of 16 images: its loss keeps numbers for all pairs of cells
    trainings = {"classifier", "network", "refinement", "irn", "affinitynet", "deeplab", "round1", "round2", "round3"}
    for (method, stage), cost in made.items():
        assert cost.half == (stage in trainings and preset_config(preset, method).mixed_precision), (method, stage)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="there is no method 'nonsense'; take one of cam, rib, "):
        costs.stage_costs("voc12", "nonsense")


def test_the_table_adds_up_and_seeds_multiply(monkeypatch):
    made = {
        "cam": [costs.Cost("classifier", 1e18, disk_mib=1024), costs.Cost("maps", 0), costs.Cost("deeplab", 9e18)],
        "rib": [costs.Cost("maps", 2e18, core_seconds=7200)],
        "truth": [costs.Cost("deeplab", 1e18)],
    }
    monkeypatch.setattr(costs, "stage_costs", lambda preset, method: made[method])
    text = costs.table("voc12", ["rib"], [0, 1, 2])
    hours = 4e18 / (156e12 * 0.3) / 3600  # in float32
    assert f"| all | one seed |  | {hours:.0f} | 2 |  | 1.0 |" in text
    assert f"| all | 3 seeds |  | {3 * hours:.0f} | 6 |  | 3.0 |" in text
    assert "| cam | deeplab |" not in text, "only what RIB needs of CAM"


def test_the_published_networks_are_counted(monkeypatch):
    """ResNet-50 at 224 pixels is known for 4.1 billion multiply-adds; at stride 16 the last stage is four times as large."""
    monkeypatch.setattr(costs.deeplab, "costs", lambda *arguments: [])
    monkeypatch.setattr(costs, "_mask_costs", lambda *arguments: [])  # they take a quarter of a minute more
    stages = {cost.stage: cost for cost in costs.stage_costs("voc12", "cam")}
    assert list(stages) == ["classifier", "maps"]
    pixels = sum(2 * scale**2 * 375 * 500 for scale in (1.0, 0.5, 1.5, 2.0))
    per_pixel = stages["maps"].flops / 10_582 / pixels
    assert 1.4 < per_pixel / (2 * 4.1e9 / 224**2) < 1.75  # four times a fifth of it instead of that fifth
    assert 1 < stages["classifier"].gpu_bytes / 2**30 < 40


def test_a_finished_run_tells_what_it_has_cost(small_config, tmp_path, capsys):
    stage = made.begin(small_config, "maps")
    (stage.folder / "image.npz").write_bytes(bytes(2**20))
    made.finish(stage, images=10)
    costs.main([str(tmp_path / "runs" / "miniature")])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| cam | 0 | maps | 1 | ") and row.endswith(" | 1.0 | cpu |")


def test_an_unknown_preset_is_told():
    with pytest.raises(SystemExit, match="voc13: no finished stage; run the pipeline first, or name voc12 or coco14"):
        costs.main(["voc13"])
