"""Forward passes of inference: bounded in pixels, halved where memory is short."""

import pytest
import torch
from torch import Tensor

from wsss_lib.core import inference
from wsss_lib.core.inference import forward_in_parts


class Network:
    """Twice the mean of each view, as on a GPU with room for so many views; the parts that it saw."""

    def __init__(self, room: int):
        self.room, self.seen = room, []

    def __call__(self, views: Tensor, factors: Tensor) -> Tensor:
        self.seen.append(len(views))
        if len(views) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return factors * views.mean((1, 2, 3))


@pytest.mark.parametrize(
    "pixels, room, seen",
    [
        (10**6, 99, [10]),
        (4 * 12, 99, [4, 4, 2]),  # four views of twelve pixels each
        (4 * 12 + 11, 99, [4, 4, 2]),
        (1, 99, [1] * 10),  # a view is not cut
        (10**6, 3, [10, 5, 2, 2, 2, 2, 2]),  # what did not fit is tried again in halves, which stay
    ],
)
def test_parts_hold_a_bounded_number_of_pixels_and_make_up_the_whole(monkeypatch, pixels, room, seen):
    monkeypatch.setattr(inference, "CPU_PIXELS", pixels)
    views, factors, network = torch.rand(10, 3, 3, 4), torch.arange(10.0), Network(room)
    assert torch.equal(forward_in_parts(network, views, factors), factors * views.mean((1, 2, 3)))
    assert network.seen == seen


def test_a_cpu_gets_fewer_pixels_than_a_gpu():
    photographs = torch.empty(1, 1, 1, 1).expand(40, 3, 375, 500)
    assert inference.views_at_once(photographs) == 4 and inference.views_at_once(photographs[:3]) == 3
    assert inference.views_at_once(torch.empty(40, 3, 375, 500, device="meta")) == 40


def test_a_view_that_does_not_fit_is_told():
    with pytest.raises(MemoryError, match="an image of 4x3 pixels does not fit the GPU's memory; leave out the largest scale"):
        forward_in_parts(Network(0), torch.rand(5, 3, 3, 4), torch.ones(5))
