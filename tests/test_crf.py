"""The dense CRF against an exact mean field on tiny images, its edge cases, and the restriction to likely classes."""

import sys
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wsss_lib.ops import crf
from wsss_lib.ops.crf import crf_from_labels, crf_from_probabilities, crf_segmentation
from wsss_lib.parameters import PROJECT_ROOT

COMPILED = crf._compiled


@pytest.fixture(autouse=True, params=["compiled", "pydensecrf"])
def _both_ways(request, monkeypatch):
    if request.param == "pydensecrf":
        monkeypatch.setattr(crf, "_compiled", lambda: None)


def two_halves(height=12, width=14, edge=7):
    """A dark and a bright half with a little noise."""
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, edge:] = 200
    return image + rng.integers(0, 6, image.shape, dtype=np.uint8)


def exact_mean_field(image, unary, iterations, gaussian, bilateral):
    """Mean field with full N x N kernels, symmetrically normalized, Potts compatibility; Q (K, H, W)."""
    num_labels, height, width = unary.shape
    position = np.stack(np.meshgrid(range(height), range(width), indexing="ij"), -1).reshape(-1, 2).astype(float)
    color = image.reshape(-1, 3).astype(float)
    spatial = ((position[:, None] - position[None]) ** 2).sum(-1)
    colors = ((color[:, None] - color[None]) ** 2).sum(-1)
    kernels = [
        (gaussian[1], np.exp(-spatial / (2 * gaussian[0] ** 2))),
        (bilateral[2], np.exp(-spatial / (2 * bilateral[0] ** 2) - colors / (2 * bilateral[1] ** 2))),
    ]
    energy = unary.reshape(num_labels, -1)

    def softmax(x):
        weights = np.exp(x - x.max(0))
        return weights / weights.sum(0)

    q = softmax(-energy)
    for _ in range(iterations):
        message = np.zeros_like(q)
        for compat, kernel in kernels:
            norm = 1 / np.sqrt(kernel.sum(1))
            message += compat * (norm * (kernel @ (norm * q).T).T)
        q = softmax(-energy + message)
    return q.reshape(num_labels, height, width)


def test_label_crf_agrees_with_exact_mean_field():
    image = two_halves()
    labels = np.zeros((12, 14), int)
    labels[:, 8:] = 1  # one column off the edge of the image
    labels[2, 3], labels[9, 12] = 1, 2  # two wrong pixels
    unary = np.where(np.arange(3)[:, None, None] == labels, -np.log(0.7), -np.log(0.15))
    exact = exact_mean_field(image, unary, 10, (3, 3), (50, 5, 10)).argmax(0)
    result = crf_from_labels(image, labels, 3)
    assert (result == exact).mean() >= 0.98
    assert result[2, 3] == 0 and result[9, 12] == 1 and (result[:, 8:] == 1).all()  # the wrong pixels are gone


def test_probability_crf_agrees_with_exact_mean_field():
    image = two_halves()
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (4, 12, 14))
    logits[1, :, :7] += 1
    logits[2, :, 7:] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    q = crf_from_probabilities(image, probabilities)
    exact = exact_mean_field(image, -np.log(probabilities), 10, (1, 3), (67, 3, 4))
    assert q.shape == (4, 12, 14) and q.dtype == np.float32
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)
    assert (q.argmax(0) == exact.argmax(0)).mean() >= 0.98
    assert (probabilities.argmax(0) != exact.argmax(0)).mean() > 0.1  # the CRF had something to do


def test_the_edge_of_the_image_attracts_the_edge_of_the_labels():
    image = two_halves(20, 20, 10)
    labels = np.zeros((20, 20), int)
    labels[:, 12:] = 1
    result = crf_from_labels(image, labels, 2, gaussian_sxy=1)
    assert abs((result[:, :10] == 0).mean() - 1) < 0.01 and (result[:, 10:] == 1).mean() > 0.99


def test_one_label_gives_zeros_without_a_warning(recwarn):
    result = crf_from_labels(two_halves(), np.zeros((12, 14), np.uint8), 1)
    assert result.shape == (12, 14) and not result.any() and not recwarn.list


def test_more_trust_keeps_more_of_the_given_labels():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, (12, 14))
    image = two_halves()
    kept = [(crf_from_labels(image, labels, 2, certainty=p) == labels).mean() for p in (0.55, 0.7, 0.999999)]
    assert kept[0] <= kept[1] <= kept[2] and kept[2] > kept[0]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_any_size_gives_labels_of_the_same_size_and_range(height, width, num_labels, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = crf_from_labels(image, rng.integers(0, num_labels, (height, width)), num_labels)
    assert result.shape == (height, width) and 0 <= result.min() and result.max() < num_labels


def test_label_maps_of_one_photograph_are_refined_by_themselves():
    """The filters of the photograph are shared, and nothing else: the same bits in any order."""
    rng = np.random.default_rng(3)
    image, stack = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8), rng.integers(0, 3, (4, 12, 14))
    stack[2] = stack[0]
    refined = crf_from_labels(image, stack, 3)
    assert refined.shape == stack.shape and not np.array_equal(refined[0], refined[1])
    for labels, result in zip(stack, refined, strict=True):
        np.testing.assert_array_equal(result, crf_from_labels(image, labels, 3))
    assert crf_from_labels(image, stack * 0, 1).shape == stack.shape


def test_inputs_are_left_unchanged_and_need_not_be_contiguous():
    image, labels = two_halves(), np.zeros((12, 14), np.int64)
    labels[:, 8:] = 1
    before = image.copy(), labels.copy()
    plain = crf_from_labels(image, labels, 2)
    assert np.array_equal(image, before[0]) and np.array_equal(labels, before[1])
    mirrored = crf_from_labels(np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(labels[:, ::-1]), 2)
    assert np.array_equal(crf_from_labels(image[:, ::-1], labels[:, ::-1], 2), mirrored)
    assert (mirrored[:, ::-1] == plain).mean() > 0.95


IMAGE, LABELS, HALF = two_halves(), np.zeros((12, 14), int), np.full((2, 12, 14), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crf_from_labels(IMAGE / 255, LABELS, 2), "uint8"),
        (lambda: crf_from_labels(IMAGE[..., 0], LABELS, 2), r"\(H, W, 3\)"),
        (lambda: crf_from_labels(IMAGE[1:], LABELS, 2), r"\(11, 14\) pixels.*\(12, 14\)"),
        (lambda: crf_from_labels(IMAGE, LABELS[None, None], 2), r"\(1, 1, 12, 14\), \(H, W\) or \(N, H, W\)"),
        (lambda: crf_from_labels(IMAGE, np.zeros((0, 12, 14), int), 2), r"shape \(0, 12, 14\).* none of them 0"),
        (lambda: crf_from_labels(IMAGE, LABELS + 255, 2), r"0\.\.1, it holds int64 255"),
        (lambda: crf_from_labels(IMAGE, LABELS - 1, 2), r"0\.\.1"),
        (lambda: crf_from_labels(IMAGE, LABELS.astype(float), 2), "float64"),
        (lambda: crf_from_labels(IMAGE, LABELS, 2, certainty=1.0), "certainty=1.0"),
        (lambda: crf_from_probabilities(IMAGE, HALF[0]), r"\(K, H, W\)"),
        (lambda: crf_from_probabilities(IMAGE, HALF[:, 1:]), "pixels"),
        (lambda: crf_from_probabilities(IMAGE, HALF * 9), "soft-max"),
        (lambda: crf_from_probabilities(IMAGE, HALF - 1), "soft-max"),
        (lambda: crf_from_probabilities(IMAGE, HALF * np.nan), "soft-max"),
        (lambda: crf_segmentation(IMAGE, HALF[0]), r"\(K, H, W\)"),
        (lambda: crf_segmentation(IMAGE, HALF, min_probability=0.6), "min_probability=0.6"),
    ],
)
def test_bad_input_gives_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_pydensecrf_names_the_remedy(monkeypatch):
    monkeypatch.setattr(crf, "_compiled", lambda: None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ImportError, match="pip install pydensecrf2"):
        crf_from_labels(IMAGE, LABELS, 2)
    assert not crf_from_labels(IMAGE, LABELS, 1).any()  # needed only where there is something to decide


def test_segmentation_leaves_unlikely_classes_out_and_keeps_class_numbers():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 0.5, (21, 12, 14)) - 9
    logits[5, :, :7] += 11
    logits[17, :, 7:] += 11
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    assert ((probabilities.max((1, 2)) >= 0.01) == np.isin(np.arange(21), (5, 17))).all()
    restricted = crf_segmentation(IMAGE, probabilities)
    assert set(np.unique(restricted)) == {5, 17}
    assert np.array_equal(restricted, crf_from_probabilities(IMAGE, probabilities).argmax(0))
    everything = crf_segmentation(IMAGE, probabilities, min_probability=0)
    assert np.array_equal(everything, restricted)


def test_segmentation_with_one_likely_class():
    probabilities = np.zeros((3, 12, 14), np.float32)
    probabilities[2] = 1
    assert (crf_segmentation(IMAGE, probabilities) == 2).all()


PHOTOGRAPH = PROJECT_ROOT / "docs/figures/photographs_cam.jpg"
KERNELS = [((3, 3), (50, 5, 10)), ((1, 3), (67, 3, 4)), ((0.5, 2), (5, 0.7, 3))]


def test_the_file_is_compiled_by_the_installation():
    assert COMPILED() is not None


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF of another machine"])
def test_a_file_compiled_for_another_machine_gives_way_to_pydensecrf(monkeypatch, tmp_path, content):
    (foreign := tmp_path / "_dense_crf.so").write_bytes(content)
    COMPILED.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(crf, "_compiled", COMPILED)
            patched.setattr(crf, "find_spec", lambda name: ModuleSpec(name, None, origin=str(foreign)))
            assert crf.whose_crf() == "pydensecrf"
            assert crf_from_labels(IMAGE, LABELS, 2).shape == LABELS.shape
    finally:
        COMPILED.cache_clear()
    assert COMPILED() is not None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.tuples(st.integers(1, 5), st.integers(2, 26)),
    st.sampled_from([0, 1, 10]),
    st.sampled_from(KERNELS),
    st.integers(0, 2**32 - 1),
)
def test_the_compiled_file_computes_what_pydensecrf_does(height, width, stack, iterations, kernels, seed):
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (height, width, 3))
    image = np.where(rng.random((height, width, 1)) < 0.2, rough, rough[:1, :1]).astype(np.uint8)
    unaries = rng.exponential(2, (*stack, height, width)).astype(np.float32)
    ours = crf._mean_field(image, unaries, iterations, *kernels)
    theirs = crf._pydensecrf(image, unaries, iterations, *kernels)
    np.testing.assert_allclose(ours.sum(1), 1, atol=1e-4)
    np.testing.assert_allclose(ours, theirs, atol=5e-3)


def test_on_a_photograph_labels_are_equal():
    """What the compiled file is allowed to change: one label in a thousand."""
    image = np.array(Image.open(PHOTOGRAPH).convert("RGB"))
    rng = np.random.default_rng(0)
    coarse = rng.random((4, 2, *(side // 16 + 1 for side in image.shape[:2])))
    labels = coarse.repeat(16, 2).repeat(16, 3)[..., : image.shape[0], : image.shape[1]].argmax(1)
    q = [
        function(
            image, np.where(np.arange(2)[:, None, None] == labels[:, None], 0.357, 1.204).astype(np.float32), 10, *KERNELS[0]
        )
        for function in (crf._mean_field, crf._pydensecrf)
    ]
    assert (q[0].argmax(1) == q[1].argmax(1)).mean() >= 0.999
    assert (q[0].argmax(1) != labels).mean() > 0.1  # and there was something to do


def test_more_labels_than_the_compiled_file_takes_are_refined_by_pydensecrf(monkeypatch):
    done = []
    plain = crf._pydensecrf
    monkeypatch.setattr(crf, "_pydensecrf", lambda *arguments: done.append(1) or plain(*arguments))
    probabilities = np.full((25, 12, 14), 1 / 25)
    assert crf_from_probabilities(IMAGE, probabilities).shape == (25, 12, 14) and len(done) == 1


@pytest.mark.parametrize("width", [0, -1, float("nan"), 1e-4, 1e-7])
@pytest.mark.parametrize("name", ["gaussian_sxy", "bilateral_sxy", "bilateral_srgb"])
def test_widths_are_not_too_small_for_the_lattice(name, width):
    with pytest.raises(ValueError, match="for an image of 12x14 they must be at least"):
        crf_from_labels(IMAGE, LABELS, 2, **{name: width})


@pytest.mark.parametrize("size", [(2, 9), (1, 3000), (400, 3)])
def test_the_smallest_widths_and_longest_images_work(size, monkeypatch):
    """The bounds of the test above, at black and white noise: hardly a pixel has one near or like itself."""
    image = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (*size, 3))
    labels, longest = np.arange(image[..., 0].size).reshape(size) % 3, max(size)
    widths = {"gaussian_sxy": longest / 9_999, "bilateral_sxy": longest / 999, "bilateral_srgb": 255 / 999}
    refined = crf_from_labels(image, labels, 3, **widths)
    monkeypatch.setattr(crf, "_compiled", lambda: None)
    assert (refined == crf_from_labels(image, labels, 3, **widths)).mean() > 0.99
