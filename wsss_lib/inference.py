"""The one per-image loop: skip what exists, shard by index, several processes on a CPU."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from wsss_lib.progress import progress
from wsss_lib.workers import map_in_processes

# What a method gives `stages.make_maps`: ids, photographs of one size and labels uint8 (N, C) to each image's classes (K,) and
# scores (K, h, w) in [0, 1] at stride 4.
Localize = Callable[[Sequence[str], Sequence[Image.Image], np.ndarray], list[tuple[np.ndarray, np.ndarray]]]


def for_each_image(ids: Sequence[str], output: Callable[[str], Path | tuple[Path, ...]], work: Callable[[str], None], name: str,
                   num_workers: int = 0) -> int:
    """Call `work(image_id)` for every image whose output is not there yet.

    Args:
        ids: image ids.
        output: image id to the file, or the files, that `work` writes (atomically).
        work: makes that file. With workers it must be importable: a function of the library or a `functools.partial` of one.
        name: for the progress bar.
        num_workers: processes; 0 works in this one.

    Returns:
        the number of images that were worked on.

    Raises:
        OSError: a worker process was killed.
        Exception: whatever `work` raises; results that were written before are kept.
    """
    outputs = ((image_id, output(image_id)) for image_id in ids)
    missing = [image_id for image_id, paths in outputs
               if not all(path.is_file() for path in (paths if isinstance(paths, tuple) else (paths,)))]
    if num_workers == 0 or len(missing) < 2:
        for image_id in progress(missing, name):
            work(image_id)
        return len(missing)
    for _ in progress(map_in_processes(work, missing, num_workers, 4, name), name, total=len(missing)):
        pass
    return len(missing)


def shard_of(items: Sequence, shard: int, shards: int) -> Sequence:
    """Return every `shards`-th item, so that several processes or machines share them.

    Whoever has no shared memory and no network may work so, on one folder: every image is a file of its own, whole or absent.

    Args:
        items: image ids, or batches of them.
        shard: number of the shard, from 0.
        shards: how many there are.

    Raises:
        ValueError: there is no such shard.

    Example:
        >>> [shard_of("abcde", shard, 2) for shard in range(2)]
        ['ace', 'bd']
    """
    if not 0 <= shard < shards:
        raise ValueError(f"there is no shard {shard} of {shards}; they are numbered from 0 to {shards - 1}")
    return items[shard::shards]


def batches_of_like_size(ids: Iterable[str], size_of: Callable[[str], tuple[int, int]], batch_size: int) -> list[list[str]]:
    """Group image ids into batches of images of equal size.

    Args:
        ids: image ids.
        size_of: image id to (width, height) in pixels.
        batch_size: the most images in one batch, at least 1.

    Returns:
        batches of ids, ordered by size, then by id.

    Example:
        >>> batches_of_like_size(["a", "b", "c"], {"a": (1, 2), "b": (2, 1), "c": (1, 2)}.get, 2)
        [['a', 'c'], ['b']]
    """
    groups = []
    for _, group in groupby(sorted(ids, key=lambda image_id: (size_of(image_id), image_id)), key=size_of):
        members = list(group)
        groups += [members[start:start + batch_size] for start in range(0, len(members), batch_size)]
    return groups

