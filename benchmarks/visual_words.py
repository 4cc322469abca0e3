"""The encoder of visual words: the plain tensor of positions x words x channels against one convolution, in one process.

python benchmarks/visual_words.py [--quick]

Both assign the positions of one 512-pixel crop at stride 16 to 256 words of 2,048 channels, and return the codebook's gradient.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.methods.vwe import encode

SIDE, WORDS, CHANNELS = 32, 256, 2048
GOAL = 5.0
Result = tuple[Tensor, Tensor, Tensor]


def naive_encode(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The plain formulation: every position times every word, channel by channel, then the sum over channels."""
    positions = F.normalize(features, dim=1).permute(0, 2, 3, 1)[:, :, :, None]  # (N, h, w, 1, D)
    product = positions * F.normalize(codebook, dim=1)  # (N, h, w, K, D)
    assignment = product.sum(-1).softmax(-1).permute(0, 3, 1, 2)
    return assignment, assignment.sum((2, 3))


def with_gradient(encoder: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], features: Tensor, codebook: Tensor) -> Result:
    """Return assignment, histogram, and the codebook's gradient of a weighted sum of the histogram."""
    codebook = codebook.clone().requires_grad_()
    assignment, histogram = encoder(features, codebook)
    (histogram * torch.linspace(-1, 1, histogram.shape[1])).sum().backward()
    return assignment.detach(), histogram.detach(), codebook.grad


def ours(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    words = encode(features, codebook)
    return words.assignment, words.histogram


def measure(channels: int, runs: int) -> dict[str, float]:
    """Run both formulations in turn on one thread; assert that they agree.

    Returns:
        Seconds and peak MiB of both, the ratios, and the largest difference.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        features = torch.rand(1, channels, SIDE, SIDE, generator=generator)
        codebook = torch.randn(WORDS, channels, generator=generator)
        with_gradient(ours, features[:, :, :4, :4], codebook)  # the first call loads libraries
        our_mib = peak_mib(lambda: with_gradient(ours, features, codebook))
        naive_mib = peak_mib(lambda: with_gradient(naive_encode, features, codebook))
        times = []
        for _ in range(runs):
            naive_seconds, naive_result = timed(lambda: with_gradient(naive_encode, features, codebook))
            our_seconds, our_result = timed(lambda: with_gradient(ours, features, codebook))
            times.append((naive_seconds, our_seconds))
    finally:
        torch.set_num_threads(threads)
    difference = max((one - other).abs().max().item() for one, other in zip(naive_result, our_result, strict=True))
    assert difference <= 1e-4, f"the two formulations differ by {difference:.1e}, more than 1e-4"
    # Memory that the process held already does not show, so ours counts at least what it surely allocates: one map of
    # cosines, one of assignments, and the gradient.
    our_mib = max(our_mib, (2 * SIDE * SIDE * WORDS + WORDS * channels) * 4 / 2**20)
    naive, our = (statistics.median(column) for column in zip(*times, strict=True))
    return {"naive_s": naive, "ours_s": our, "ratio": naive / our, "naive_mib": naive_mib, "ours_mib": our_mib,
            "memory_ratio": naive_mib / our_mib, "difference": difference}


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def peak_mib(function: Callable[[], Result]) -> float:
    """Return how much the resident memory grows while the function runs, sampled every millisecond."""
    process = psutil.Process()
    start = peak = process.memory_info().rss
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        function()
    finally:
        done.set()
        sampler.join()
    return (peak - start) / 2**20


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 channels and one run instead of 2,048 and three")
    channels, runs = (256, 1) if parser.parse_args(arguments).quick else (CHANNELS, 3)
    numbers = measure(channels, runs)
    print(f"{SIDE}x{SIDE} positions, {WORDS} words, {channels} channels, forward and backward, one thread; largest difference "
          f"{numbers['difference']:.1e}\n"
          f"positions x words x channels: {1000 * numbers['naive_s']:8.1f} ms, {numbers['naive_mib']:7.1f} MiB at most\n"
          f"one convolution:              {1000 * numbers['ours_s']:8.1f} ms, {numbers['ours_mib']:7.1f} MiB at most\n"
          f"ratio of times {numbers['ratio']:.1f}, of memory {numbers['memory_ratio']:.1f} (goal: at least {GOAL:.0f})")
    return numbers


if __name__ == "__main__":
    main()
