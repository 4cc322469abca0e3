"""Work that fails in the ways of machines, in a module that a worker process imports quickly."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from wsss_lib.config import Config
from wsss_lib.core.parallel import for_each_image

IDS = tuple(f"{number:03d}" for number in range(40))


def note_process(image_id: str, folder: Path) -> None:
    """Take a little time, then write who has worked on the image."""
    time.sleep(0.1)
    (folder / f"{image_id}.txt").write_text(str(os.getpid()))


def killed_at_seven(image_id: str, folder: Path) -> None:
    """Be killed, as by the kernel for want of memory, in the middle of the work."""
    if image_id == "007":
        os.kill(os.getpid(), signal.SIGKILL)
    note_process(image_id, folder)


def run(folder: Path, work=note_process) -> int:
    """Work on all images in two processes."""
    return for_each_image(IDS, lambda image_id: folder / f"{image_id}.txt", partial(work, folder=folder), "work", Config(), 2)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in its background with SIGINT ignored
    try:
        run(Path(sys.argv[1]))
    except KeyboardInterrupt:
        time.sleep(0.5)
        (Path(sys.argv[1]) / "interrupted").touch()
