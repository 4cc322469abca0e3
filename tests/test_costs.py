"""The estimated costs: operations counted by hand, and tables that hold together."""

import pytest
import torch
from torch import nn

from tests import made
from wsss_lib import costs
from wsss_lib.core import counting


def test_operations_by_hand():
    """A 1x1 convolution from 3 to 5 channels: 2 * 3 * 5 operations a pixel; backward as much for the weights."""
    with torch.device("meta"):
        net = nn.Conv2d(3, 5, 1, bias=False)
        cost = counting.training_cost("one", net, lambda count: [net(torch.empty(count, 3, 8, 8))], images=100, at_once=4)
        forward = counting.inference_flops(net, (8, 6), (1.0, 0.5))
    assert cost.flops == 100 * 2 * (2 * 3 * 5 * 64)
    kept = 3 * 8 * 8 * 2 + 15 * 4 / 2 / 2  # the image in two bytes a number; the weights are kept once for both images
    assert cost.gpu_bytes == 4 * kept + 3 * 15 * 4  # four images; weights, gradients and momentum
    assert forward == 2 * (2 * 3 * 5) * (8 * 6 + 4 * 3)


def test_hours_are_operations_by_the_assumed_speed():
    assert costs.Cost("one", flops=3600 * 156e12 * 0.3).gpu_hours() == pytest.approx(1)


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
    hours = 4e18 / (156e12 * 0.3) / 3600
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
