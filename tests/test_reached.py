"""What the golden cases guard is what the pipeline runs: every function that an adapter calls is reached from a stage."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType

import pytest

from tests import small_chain
from tests.golden_adapters import ADAPTERS
from tests.test_golden import CASES, FULL_NETWORKS, arrays_of
from wsss_lib.core import stage
from wsss_lib.methods import METHODS, vwe
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.segment.deeplab import DEEPLAB

LIBRARY, TESTS = str(PROJECT_ROOT / "wsss_lib"), str(PROJECT_ROOT / "tests")
SHORT = {
    "map_size": "image",
    "drs_crop": 32,
    "rib_companions": 4,
    "rib_iterations": 2,
    "deeplab_iterations": 2,
    "affinitynet_crop": 48,
    "sccam_round_epochs": (1, 1, 1),
    **{f"{name}_epochs": 1 for name in ("irn", "cam", "amn", "vwe", "drs", "drs_refine", "affinitynet")},
}
# What no stage calls, and why it is guarded all the same.
NOT_IN_A_STAGE = {
    "affinity.path_index": "the pairs as tables: the stages shift windows by the same `search_paths`; drawn in notebook 80",
    "crf.crf_from_maps": "VWL's own CRF of maps, an alternative in notebook 50",
    "crf.soft_scores": "as crf_from_maps",
    "sccam.class_major_order": "the order of the official list, in which notebook 60 compares cluster numbers",
    "sccam.merge_subcategory_maps": "maps of the sub-category head, looked at in notebook 60",
    "sccam.normalize_subcategory_maps": "as merge_subcategory_maps",
    "sccam.subcategory_entropy": "as merge_subcategory_maps",
    "resnet38.BottleneckBlock.__init__": "of ResNet-38, too large for this chain; the full-size test of SC-CAM trains it",
    "resnet38.BottleneckBlock.preactivate": "as above",
    "resnet38.ResBlock.__init__": "as above",
    "resnet38.ResBlock.preactivate": "as above",
}


def name_of(code: CodeType) -> str:
    return f"{Path(code.co_filename).stem}.{code.co_qualname}"


@contextmanager
def recorded(wanted: Callable) -> Iterator[set[str]]:
    """Collect the library's functions that are called meanwhile, where `wanted(frame)`."""
    names: set[CodeType] = set()

    def see(frame, event, _) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(LIBRARY) and wanted(frame):
            names.add(frame.f_code)

    found: set[str] = set()
    sys.setprofile(see)
    try:
        yield found
    finally:
        sys.setprofile(None)
        found |= {name_of(code) for code in names}


@pytest.fixture(scope="module")
def reached(tmp_path_factory) -> set[str]:
    """All functions that a run of all methods calls, with the options that the presets choose."""
    folder = tmp_path_factory.mktemp("runs")
    data = small_chain.make_data(folder / "data")

    def config_of(method: str, **values):
        return small_chain.config_of(data, folder / "runs", method, **SHORT | values)

    with recorded(lambda frame: True) as found:
        small_chain.run(data, folder / "runs", tuple(METHODS), **SHORT)
        small_chain.run(data, folder / "runs", ("cam",), refinement="affinitynet", **SHORT)
        small_chain.run(data, folder / "runs", ("cam",), deeplab_version="v3plus", deeplab_atrous_rates=(2, 4, 6), **SHORT)
        for loss in ("balanced", "self_label"):
            stage.run(DEEPLAB, config_of("cam", deeplab_loss=loss))
        for variant in ("vwl_l", "vwl_m"):
            stage.run(vwe.NETWORK, config_of("vwe", vwe_variant=variant))
        drs_masks = {"refinement": "drs", "drs_background": "crf", "drs_backbone": "vgg_small", "drs_backbone_weights": "none"}
        small_chain.run(data, folder / "runs", ("drs",), **SHORT | drs_masks)
    return found


@pytest.mark.system
def test_every_golden_case_is_reached_from_a_stage(reached):
    problems = {}
    for case in CASES:
        if case in FULL_NETWORKS:
            continue
        arrays = arrays_of(case)
        with recorded(lambda frame: frame.f_back.f_code.co_filename.startswith(TESTS)) as called:
            ADAPTERS[case](arrays)
        if missing := called - reached - set(NOT_IN_A_STAGE):
            problems[case] = sorted(missing)
    assert not problems
    assert not set(NOT_IN_A_STAGE) & reached, "a stage calls it now: leave it out of the list"
