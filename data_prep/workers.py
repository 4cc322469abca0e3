"""One function over many images in several processes, with one progress bar."""

from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from wsss_lib.core.parallel import Item, Result, few_workers, map_in_processes


def map_images(
    work: Callable[[Item], Result], items: Sequence[Item], name: str, progress: bool = True, workers: int | None = None
) -> Iterator[Result]:
    """Return an iterator over `work(item)` of every item, in order.

    Args:
        work: importable, as worker processes load it by its name; a `functools.partial` of such a function is.
        items: one per image.
        name: for the progress bar.
        progress: show a progress bar where there is a terminal.
        workers: processes; None: up to four for a large set, this process alone for a small one.

    Raises:
        OSError: a worker process was killed; errors of `work` pass through.
    """
    workers = workers or (few_workers() if len(items) >= 400 else 1)
    bar = {"total": len(items), "desc": name, "unit": "image", "disable": None if progress else True}
    if workers == 1:
        yield from tqdm(map(work, items), **bar)
        return
    yield from tqdm(map_in_processes(work, items, workers, 20, name), **bar)
