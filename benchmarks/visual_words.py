"""VWE's encoder of visual words: the plain tensor of positions x words x channels against one convolution.

python benchmarks/visual_words.py [--quick]

Both assign the positions of one crop at stride 16 to 256 words, and return the codebook's gradient. The largest size, 32x32
positions of 2,048 channels, is that of a 512-pixel crop with ResNet-50.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from measuring import Case, Row, compare, main
from torch import Tensor

from wsss_lib.methods.vwe import encode

SIDE, WORDS = 32, 256


def naive_encode(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The plain formulation: every position times every word, channel by channel, then the sum over channels."""
    positions = F.normalize(features, dim=1).permute(0, 2, 3, 1)[:, :, :, None]  # (N, h, w, 1, D)
    product = positions * F.normalize(codebook, dim=1)  # (N, h, w, K, D)
    assignment = product.sum(-1).softmax(-1).permute(0, 3, 1, 2)
    return assignment, assignment.sum((2, 3))


def our_encode(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    words = encode(features, codebook)
    return words.assignment, words.histogram


def with_gradient(
    encoder: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], features: Tensor, codebook: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return assignment, histogram, and the codebook's gradient of a weighted sum of the histogram."""
    codebook = codebook.clone().requires_grad_()
    assignment, histogram = encoder(features, codebook)
    (histogram * torch.linspace(-1, 1, histogram.shape[1])).sum().backward()
    return assignment.detach(), histogram.detach(), codebook.grad


def prepare(channels: int):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(1, channels, SIDE, SIDE, generator=generator)
    codebook = torch.randn(WORDS, channels, generator=generator)
    return lambda: with_gradient(naive_encode, features, codebook), lambda: with_gradient(our_encode, features, codebook)


CASE = Case(
    "VWE's encoder", (128, 512, 2048), prepare, tolerance=1e-4, goal=5, pairs=3, show=lambda channels: f"{channels:,} channels"
)


def measure(quick: bool = False) -> list[Row]:
    return compare(CASE, quick)


if __name__ == "__main__":
    main(measure, __doc__)
