"""The one per-image loop: skip what exists, share with other runs by index, several processes on a CPU."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from wsss_lib.config import Config
from wsss_lib.progress import progress
from wsss_lib.workers import map_in_processes

# What a method gives `stages.make_maps`: ids, photographs of one size and labels uint8 (N, C) to each image's classes (K,) and
# scores (K, h, w) in [0, 1] at stride 4.
Localize = Callable[[Sequence[str], Sequence[Image.Image], np.ndarray], list[tuple[np.ndarray, np.ndarray]]]


class ShardDone(Exception):
    """This run has done its shard of a stage. No failure: when all have, shard 0 is run again and goes on."""


def for_each_image(ids: Sequence[str], output: Callable[[str], Path | tuple[Path, ...]], work: Callable[[str], None], name: str,
                   config: Config, num_workers: int = 0) -> int:
    """Call `work(image_id)` for every image whose output is not there yet, or for those of this run's shard.

    Args:
        ids: image ids.
        output: image id to the file, or the files, that `work` writes (atomically).
        work: makes that file. With workers it must be importable: a function of the library or a `functools.partial` of one.
        name: for the progress bar.
        config: gives shard and shards.
        num_workers: processes; 0 works in this one.

    Returns:
        the number of images that were worked on.

    Raises:
        ShardDone: as `end_of_shard`.
        OSError: a worker process was killed.
        Exception: whatever `work` raises; results that were written before are kept.
    """
    outputs = ((image_id, output(image_id)) for image_id in ids)
    missing = {image_id for image_id, paths in outputs
               if not all(path.is_file() for path in (paths if isinstance(paths, tuple) else (paths,)))}
    mine = [image_id for image_id in shard_of(ids, config) if image_id in missing]
    if num_workers == 0 or len(mine) < 2:
        for image_id in progress(mine, name):
            work(image_id)
    else:
        for _ in progress(map_in_processes(work, mine, num_workers, 1, name), name, total=len(mine)):
            pass
    end_of_shard(config, name, len(missing) > len(mine))
    return len(mine)


def shard_of(items: Sequence, config: Config) -> Sequence:
    """Return this run's share: all items, every `shards`-th one from its own on, or for shard 0 none.

    Args:
        items: image ids, or batches of them.
        config: gives shard and shards.

    Example:
        >>> [shard_of("abcde", Config(shard=shard, shards=2)) for shard in (0, 1, 2)]
        ['', 'ace', 'bd']
    """
    return items[config.shard - 1::config.shards] if config.shard else items[:0]


def end_of_shard(config: Config, name: str, others_missing: bool) -> None:
    """End the notebook of a shard after its images, and that of shard 0 before images that are to be done.

    So shard 0 alone trains, scores and goes on from one stage to the next; the Snakefile calls them in turn.

    Args:
        config: gives shard and shards.
        name: of the work.
        others_missing: whether images outside this run's shard had no result.

    Raises:
        ShardDone: see above; never without shards.
    """
    if config.shards > 1 and (config.shard or others_missing):
        raise ShardDone(f"{name}: shard {config.shard} of {config.shards} is done; when all are, run shard 0 again")


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

