"""Work over many items in several processes, which end with the work, an error, a key press or their parent."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(work: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int,
                     name: str) -> Iterator[Result]:
    """Return an iterator over `work(item)` of every item, in order.

    When it is interrupted or a piece of work fails, what is being worked on is finished, nothing else is begun, and all
    processes end. When this process is killed, they end too.

    Args:
        work: importable, as worker processes load it by its name: a function of a module or a `functools.partial` of one. It is
            handed to a process once, not with every item.
        items: what to work on.
        workers: processes, at least 1.
        chunk: items that a process takes at once.
        name: of the work, for the message.

    Raises:
        OSError: a worker process was killed; errors of `work` pass through.
    """
    # spawn, not fork: torch's threads do not survive a fork, and a notebook's kernel has more of them.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (work,)) as pool:
        try:
            yield from pool.map(_do, items, chunksize=chunk)
        except BrokenProcessPool:
            raise OSError(f"{name}: a worker process was killed, perhaps for want of memory; run again with fewer of them "
                          "(num_workers, --workers), finished files are kept") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Item], Result]) -> None:
    """Set up a worker process."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key press reaches all processes of a terminal; the parent ends this one
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # or the processes crowd each other out
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone: it would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _do(item: Item) -> Result:
    return _work(item)
