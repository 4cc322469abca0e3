"""How every benchmark measures: two formulations of one computation in one process, in turn, on one thread.

A case makes the plain formulation (as papers and official programs describe it, written by us) and ours at each of its
sizes. Both run in pairs, one after the other, so that whatever else the machine does meets both alike; the ratio is the
median over the pairs, and the results must agree. Times are seconds of the processor, which other programs prolong little,
unless several processes take part.
"""

import argparse
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One line of the table: a case at one size.

    `plain` and `ours` are in `unit` (seconds unless it says otherwise), medians over the pairs; `ratio` is plain to ours, by
    pair; `goal` is the least ratio that was asked for, None at the other sizes; memory is in MiB, None where not measured.
    """

    case: str
    size: str
    plain: float | None
    ours: float
    ratio: float | None = None
    goal: float | None = None
    difference: float | None = None
    plain_mib: float | None = None
    our_mib: float | None = None
    unit: str = "s"

    @property
    def missed(self) -> bool:
        return self.goal is not None and not self.ratio >= self.goal


@dataclass(frozen=True)
class Case:
    """Two ways to one result.

    Attributes:
        name: in the table.
        sizes: growing; `--quick` takes the first alone.
        prepare: size to (plain, ours), functions of no argument that return tensors or arrays, also nested in tuples and
            lists; plain is None at a size that it cannot reach.
        tolerance: the largest difference of any number of the two results.
        goal: the ratio to be reached at `goal_size`.
        goal_size: None: the largest size that has a plain form.
        pairs: how often both run.
        clock: `time.perf_counter` where several processes work.
        differ: (plain result, our result) to how much they differ; None: the largest difference of a number.
        memory: measure it too.
        warm: call ours once before anything is measured, as the first call loads libraries and fills caches.
        show: size to text.
    """

    name: str
    sizes: Sequence[Any]
    prepare: Callable[[Any], tuple[Callable[[], Any] | None, Callable[[], Any]]]
    tolerance: float
    goal: float = 1.0
    goal_size: Any = None
    pairs: int = 5
    clock: Clock = time.process_time
    differ: Callable[[Any, Any], float] | None = None
    memory: bool = True
    warm: bool = True
    show: Callable[[Any], str] = lambda size: "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def compare(case: Case, quick: bool = False) -> list[Row]:
    """Measure a case at all its sizes (quick: one pair at the smallest, without memory).

    Raises:
        RuntimeError: the two formulations do not agree.
    """
    rows, pairs, reached = [], 1 if quick else case.pairs, case.goal_size
    with one_thread():
        for size in case.sizes[: 1 if quick else None]:
            plain, ours = case.prepare(size)
            repeats, memory = 1, (None, None)
            if case.warm:
                ours()
            if case.memory and not quick:
                memory = plain and peak_mib(plain), peak_mib(ours)
                repeats = max(1, min(20, round(0.05 / max(1e-4, seconds_of(ours, case.clock)[0]))))
            times, largest = [], None
            for _ in range(pairs):
                plain_seconds, plain_result = seconds_of(plain, case.clock) if plain else (float("nan"), None)
                our_seconds, our_result = seconds_of(ours, case.clock, repeats)
                times.append((plain_seconds, our_seconds))
            if plain:
                largest = (case.differ or difference)(plain_result, our_result)
                if not largest <= case.tolerance:
                    raise RuntimeError(
                        f"{case.name}, {case.show(size)}: the formulations differ by {largest:.1e}, more than "
                        f"{case.tolerance:.0e}"
                    )
                reached = size if case.goal_size is None else case.goal_size
            rows.append(
                (
                    size,
                    Row(
                        case.name,
                        case.show(size),
                        statistics.median(pair[0] for pair in times) if plain else None,
                        statistics.median(pair[1] for pair in times),
                        statistics.median(pair[0] / pair[1] for pair in times) if plain else None,
                        None,
                        largest,
                        *memory,
                    ),
                )
            )
    return [Row(**vars(row) | {"goal": case.goal}) if size == reached and not quick else row for size, row in rows]


def seconds_of(function: Callable[[], Any], clock: Clock = time.process_time, repeats: int = 1) -> tuple[float, Any]:
    """Return the mean seconds of a call, and the last result."""
    start = clock()
    for _ in range(repeats):
        result = function()
    return (clock() - start) / repeats, result


def difference(first: Any, second: Any) -> float:
    """Return the largest absolute difference of two equally nested results.

    Raises:
        RuntimeError: they are not made alike.
    """
    if isinstance(first, (tuple, list)):
        if len(first) != len(second):
            raise RuntimeError(f"the formulations give {len(first)} and {len(second)} results")
        return float(np.max([0.0, *map(difference, first, second)]))  # NaN stays
    first, second = (
        np.asarray(value.detach() if isinstance(value, torch.Tensor) else value, np.float64) for value in (first, second)
    )
    if first.shape != second.shape:
        raise RuntimeError(f"the formulations give the shapes {first.shape} and {second.shape}")
    return float(np.abs(first - second).max(initial=0.0))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def peak_mib(function: Callable[[], Any], interval: float = 0.001) -> float:
    """Return by how many MiB the resident memory grows while the function runs, sampled every millisecond.

    Memory that the process holds already, free for another use, does not show: small numbers are too small.
    """
    gc.collect()  # what is garbage already would be given back while the function runs, and hide as much of its memory
    process, done = psutil.Process(), threading.Event()
    start = peak = process.memory_info().rss

    def sample() -> None:
        nonlocal peak
        while not done.wait(interval):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        function()
    finally:
        done.set()
        sampler.join()
    return (max(peak, process.memory_info().rss) - start) / 2**20


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table that also reads well as plain text."""
    head = ["case", "size", "plain", "ours", "unit", "ratio", "goal", "difference", "plain MiB", "our MiB"]
    lines = [
        [
            row.case,
            row.size,
            _number(row.plain),
            _number(row.ours),
            row.unit,
            "" if row.ratio is None else f"{row.ratio:.3g}x" if row.ratio < 100 else f"{row.ratio:.0f}x",
            "" if row.goal is None else f"{row.goal:g}x" + (" MISSED" if row.missed else ""),
            "" if row.difference is None else "none" if row.difference == 0 else f"{row.difference:.0e}",
            *("" if mib is None else f"{mib:.0f}" for mib in (row.plain_mib, row.our_mib)),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [head, rule, *lines]
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def main(measure: Callable[[bool], list[Row]], description: str) -> None:
    """Run one benchmark from the command line and print its table; exit with 1 when it misses its goal."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest size once, only to see that both ways agree")
    rows = measure(parser.parse_args().quick)
    print(table(rows))
    sys.exit(any(row.missed for row in rows))
