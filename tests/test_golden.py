"""Every golden case in tests/golden runs through its adapter and agrees with the official program's output."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden_adapters import ADAPTERS, TOLERANCE, disagreement

FOLDER = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("*.npz") if not path.stem.startswith("trace__"))
FULL_NETWORKS = {
    "deeplab__v2_forward",
    "deeplab__v3plus_forward_os16",
    "deeplab__v3plus_forward_os8",
    "drs__localization_map",
    "drs__refine_forward",
    "drs__vgg_forward_fixed",
    "drs__vgg_forward_learnable",
    "irn__cam_net",
    "irn__irn_net",
    "psa__resnet38_aff_full",
    "psa__vgg16_aff_full",
    "psa__vgg16_cls_full",
    "rib__resnet_step",
    "sccam__resnet38_full",
}


def arrays_of(case: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{case}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in FULL_NETWORKS else ()) for case in CASES]
)
def test_case(case):
    assert case in ADAPTERS, f"tests/golden/{case}.npz has no adapter in tests/golden_adapters.py"
    arrays = arrays_of(case)
    result = ADAPTERS[case](arrays)
    expected = {name: value for name, value in arrays.items() if name.startswith("out_")}
    assert expected and not set(expected) - set(result)
    problems = [disagreement(case, name, value, result[name]) for name, value in expected.items()]
    assert not any(problems), [problem for problem in problems if problem]


def test_every_adapter_has_a_case_and_tolerances():
    assert set(ADAPTERS) == set(TOLERANCE) == set(CASES)


@pytest.mark.parametrize("case", ["irn__merge_scales", "irn__poly_sgd", "irn__preprocess", "deeplab__poly_lr"])
def test_adapters_do_not_look_at_the_expected_values(case):
    arrays = arrays_of(case)
    blind = {name: np.zeros_like(value) if name.startswith("out_") else value for name, value in arrays.items()}
    result, again = ADAPTERS[case](arrays), ADAPTERS[case](blind)
    for name in result:
        np.testing.assert_array_equal(result[name], again[name])


@pytest.mark.parametrize(
    "case, name, change",
    [
        ("deeplab__poly_lr", "out_lr_short", lambda value: value * (1 + 3e-6)),
        ("irn__merge_scales", "out_cam", lambda value: value + 3e-6),
        ("irn__path_index", "out_destinations_0", lambda value: value + 1),
        (
            "irn__crf_label",
            "out_t10",
            lambda value: np.where(np.arange(value.size).reshape(value.shape) % 100, value, value + 1),
        ),
        ("deeplab__miou", "out_class_iou_nan", lambda value: np.nan_to_num(value)),
        ("irn__cam_net", "out_logits", lambda value: value[:1]),
    ],
)
def test_a_wrong_value_is_noticed(case, name, change):
    value = arrays_of(case)[name]
    assert not disagreement(case, name, value, value)
    assert disagreement(case, name, value, change(value)).startswith(name)
