"""Images one by one or in batches: skip what exists, share with other runs by index, several processes on a CPU."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from wsss_lib.core.files import image_size, write_maps
from wsss_lib.core.progress import progress
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.parameters import Settings

# What a method gives `make_maps`: ids, images of one size and labels uint8 (N, C) to each image's classes (K,), scores
# (K, h, w) in [0, 1] at stride 4, and, where full-size maps are kept, these or the `Views` that they are made of.
Localize = Callable[[Sequence[str], Sequence[Image.Image], np.ndarray], list[tuple]]


class ShardDone(Exception):
    """This run has done its shard of a stage. Not an error: when all have, shard 0 is run again and goes on."""


def for_each_image(
    ids: Sequence[str],
    output: Callable[[str], Path | tuple[Path, ...]],
    work: Callable[..., None],
    name: str,
    config: Settings,
    workers: int = 0,
    prepare: Callable[[str], Any] | None = None,
) -> int:
    """Call `work(image_id)` for every image whose output is not there yet, or for those of this run's shard.

    Args:
        output: image id to the file, or the files, that `work` writes (atomically).
        work: makes that file. With workers it must be importable: a function of the library or a `functools.partial` of one.
        prepare: what this process, which holds the network, computes for an image before `work(image_id, prepared)`: it goes on
            with the next image while the workers are busy.

    Raises:
        ShardDone: as `end_of_shard`.
        OSError: a worker process was killed.
        Exception: whatever `work` raises; results that were written before are kept.
    """
    outputs = ((image_id, output(image_id)) for image_id in ids)
    missing = {
        image_id
        for image_id, paths in outputs
        if not all(path.is_file() for path in (paths if isinstance(paths, tuple) else (paths,)))
    }
    mine = [image_id for image_id in shard_of(ids, config) if image_id in missing]
    items = ((image_id, prepare(image_id)) if prepare else (image_id,) for image_id in mine)
    if workers == 0 or len(mine) < 2:
        for item in progress(items, name, total=len(mine)):
            work(*item)
    else:
        for _ in progress(_in_turn(work, items, workers, name), name, total=len(mine)):
            pass
    end_of_shard(config, name, len(missing) > len(mine))
    return len(mine)


def cpu_workers(config: Settings) -> int:
    """Return the number of processes for work that needs no GPU."""
    return config.cpu_workers or config.num_workers


def few_workers() -> int:
    """Return the number of processes for short work outside a stage: one per core, at most four."""
    return min(4, os.cpu_count() or 1)


def shard_of(items: Sequence, config: Settings) -> Sequence:
    """Return this run's part: all items, every `shards`-th one from its own on, or for shard 0 none.

    Args:
        items: image ids, or batches of them.

    >>> [shard_of("abcde", Settings({"shard": shard, "shards": 2})) for shard in (0, 1, 2)]
    ['', 'ace', 'bd']
    """
    return items[config.shard - 1 :: config.shards] if config.shard else items[:0]


def end_of_shard(config: Settings, name: str, others_missing: bool) -> None:
    """End the notebook of a shard after its images, and that of shard 0 before missing images.

    Thus only shard 0 trains, scores and goes from one stage to the next; the Snakefile calls the shards in turn.

    Args:
        others_missing: whether images outside this run's shard had no result.

    Raises:
        ShardDone: see above; never without shards.
    """
    if config.shards > 1 and (config.shard or others_missing):
        raise ShardDone(f"{name}: shard {config.shard} of {config.shards} is done; when all are, run shard 0 again")


def batches_of_like_size(ids: Iterable[str], size_of: Callable[[str], tuple[int, int]], batch_size: int) -> list[list[str]]:
    """Group image ids into batches of images of equal size.

    Args:
        size_of: image id to (width, height) in pixels.
        batch_size: maximum number of images in one batch, at least 1.

    Returns:
        batches of ids, ordered by size, then by id.

    >>> batches_of_like_size(["a", "b", "c"], {"a": (1, 2), "b": (2, 1), "c": (1, 2)}.get, 2)
    [['a', 'c'], ['b']]
    """
    groups = []
    for _, group in groupby(sorted(ids, key=lambda image_id: (size_of(image_id), image_id)), key=size_of):
        members = list(group)
        groups += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return groups


Item = TypeVar("Item")
Result = TypeVar("Result")


def make_maps(localize: Localize, data: SegmentationDataset, config: Settings, folder: Path) -> int:
    """Write `ID.npz` with the localization maps of every image that has none yet, or of those in this run's shard.

    Args:
        localize: a method; (ids, images of one size, labels uint8 (N, C)) to what `write_maps` takes for each image: classes
            (K,), scores (K, h, w) at stride 4, and perhaps full-size maps. Its random draws must depend on the id
            alone, so that a resumed run makes the same maps.

    Raises:
        ShardDone: as `end_of_shard`.

    Explained in notebook 10, section "All images".
    """
    row = {image_id: index for index, image_id in enumerate(data.ids)}
    done = {image_id for image_id in data.ids if (folder / f"{image_id}.npz").is_file()}
    # All images are grouped, not only the missing ones: the last bits of a map depend on how many images its batch holds.
    batches = batches_of_like_size(data.ids, lambda image_id: image_size(data.image_path(image_id)), config.device_batch_size)
    groups = [group for group in shard_of(batches, config) if not done.issuperset(group)]
    for group in progress(groups, "localization maps"):
        images = [data.image(image_id) for image_id in group]
        labels = data.labels[[row[image_id] for image_id in group]]
        for image_id, image, (classes, scores, *full) in zip(group, images, localize(group, images, labels), strict=True):
            write_maps(folder / f"{image_id}.npz", classes, scores, image.size[::-1], *full)
    made = sum(image_id not in done for group in groups for image_id in group)
    end_of_shard(config, folder.name, made < len(data) - len(done))
    return made


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int, name: str
) -> Iterator[Result]:
    """Return an iterator over `work(item)` of every item, in order.

    If it is interrupted or a call fails, the calls already running are finished, no other is started, and all processes
    end. If this process is killed, they end, too.

    Args:
        work: importable, as worker processes load it by its name: a function of a module or a `functools.partial` of one. It is
            sent to a process once, not with every item.
        chunk: items that a process takes at once.

    Raises:
        OSError: a worker process was killed; errors of `work` pass through.
    """
    with _pool(work, workers, name) as pool:
        yield from pool.map(_do, items, chunksize=chunk)


def _in_turn(work: Callable[..., None], items: Iterable[tuple], workers: int, name: str) -> Iterator[None]:
    """Return an iterator over `work(*item)` of every item, which is made only when a worker will soon be free for it."""
    with _pool(work, workers, name) as pool:
        running: deque[Future] = deque()
        for item in items:
            if len(running) == 2 * workers:
                yield running.popleft().result()
            running.append(pool.submit(_do_with, item))
        while running:
            yield running.popleft().result()


@contextmanager
def _pool(work: Callable[..., Any], workers: int, name: str) -> Iterator[ProcessPoolExecutor]:
    # No fork of this process: torch's threads do not survive one, and a notebook's kernel has more of them. All workers are
    # forks of a server, which runs nothing and imports torch and torchvision once for all of them: four seconds of a core.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(work, "func", work).__module__])
    with ProcessPoolExecutor(workers, context, _begin, (work,)) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise OSError(
                f"{name}: a worker process was killed, perhaps because memory ran out; run again with fewer of them "
                "(cpu_workers, num_workers, --workers), finished files are kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_work: Callable[..., Any]  # of a worker process


def _begin(work: Callable[..., Any]) -> None:
    """Set up a worker process."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key press reaches all processes of a terminal; the parent ends this one
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # or the processes crowd each other out
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone: it would wait for work forever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _do(item: Any) -> Any:
    return _work(item)


def _do_with(item: tuple) -> Any:
    return _work(*item)
