"""Panels that show maps: lines of thresholds, differences, words; and where a step of RIB raises a map."""

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from wsss_lib import viz
from wsss_lib.data.dataset import load_dataset
from wsss_lib.experiments import rib_ablations, visual_words
from wsss_lib.methods.rib import Step

matplotlib.use("Agg")


@pytest.fixture
def axes():
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_the_line_lies_where_the_map_crosses_the_threshold(axes):
    ramp = np.tile(np.linspace(0, 1, 11), (4, 1))  # column k holds k / 10
    viz.scores(np.zeros((4, 11, 3), np.uint8), ramp, outline=0.35)(axes)
    at = np.concatenate([path.vertices[:, 0] for line in axes.collections for path in line.get_paths()])
    np.testing.assert_allclose(at, 3.5)
    viz.draw_outline(axes, ramp, 1.5)
    assert len(axes.collections) == 2, "a map that stays below has no line"


def test_a_difference_is_symmetric_and_marks_only_what_is_lost(axes):
    before, won, lost = np.full((4, 4), 0.5), np.full((4, 4), 0.6), np.full((4, 4), 0.5)
    lost[:, 2:] = 0.4
    drawn = viz.difference(before, won, limit=0.1)(axes)
    assert drawn.get_clim() == (-0.1, 0.1) and not axes.collections
    np.testing.assert_allclose(drawn.get_array(), 0.1)
    viz.difference(before, lost, limit=0.1)(axes)
    (marked,) = axes.collections
    columns = np.concatenate([path.vertices[:, 0] for path in marked.get_paths()])
    assert 1 < columns.min() < 2 and columns.max() == 3


def test_only_the_largest_words_of_a_word_map_carry_their_numbers(axes):
    index = torch.tensor([9] * 20 + [7] * 10 + [5] * 8 + [300] * 6 + [1] * 3 + [2]).view(6, 8)
    visual_words.word_panel(index, Image.new("RGB", (32, 24)), "words")(axes)
    assert {text.get_text() for text in axes.texts} == {"9", "7", "5", str(300 % 254)}


def test_a_rise_is_told_by_region(voc_folder):
    """A map of peak 8 rises by 2 on the object and by 1 beside it; tripled, it does not change once it is normalized."""
    data = load_dataset(voc_folder, "train")
    image_id = data.ids[0]
    mask, chosen = data.mask(image_id), int(np.flatnonzero(data.label(image_id))[0])
    first = torch.zeros(2, data.num_classes, *mask.shape)
    first[:, chosen, 0, 0] = 8.0  # an image and its flip: 8 in two corners of their sum
    rise = torch.from_numpy(np.where(mask == chosen + 1, 1.0, 0.5)).float()
    last = first.clone()
    last[0, chosen] += rise
    last[1, chosen] += rise.flip(-1)
    found = rib_ablations.rise_by_region(data, image_id, [Step([first], 0.0), Step([last], 0.0)])
    assert found["background"][0] == pytest.approx(0.125)
    on_object = [rise for region, (rise, _) in found.items() if region != "background"]
    assert set(found) <= {"object", "head", "body", "background"} and on_object == pytest.approx([0.25] * len(on_object))
    tripled = rib_ablations.rise_by_region(data, image_id, [Step([last], 0.0), Step([3 * last], 0.0)])
    assert all(rise > 0 and share == pytest.approx(0) for rise, share in tripled.values())
