"""One process at a time makes a stage: a lock file beside its folder, which ends with the process, however that ends."""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from wsss_lib.data.dataset import DataError

WAIT = 20.0  # seconds for what is left of a killed run: a kernel sees within one that its parent is gone, a loader within five


def lock_folder(folder: Path) -> FileLock:
    """Keep other processes from a stage's folder, after a short wait for one that is just ending.

    Args:
        folder: of the stage; the lock is the file `.<name>.lock` beside it.

    Returns:
        the lock, held until `unlock_folder`, the end of this process or that of the last object that refers to it. The same
        process may take it again.

    Raises:
        DataError: another process holds it.
        OSError: the lock file cannot be made.
    """
    path = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path, is_singleton=True, thread_local=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")  # to be named below
    except Timeout:
        holder = path.read_text(encoding="utf-8") if path.is_file() else ""
        raise DataError(f"{folder}: another run is making this stage ({holder or 'unknown process'}); wait until it has "
                        "finished, or end it (a notebook: shut its kernel down), then run again") from None
    except OSError as error:
        lock.release(force=True)
        raise OSError(f"{path}: cannot be written ({error.strerror or error}); free some space or set runs_root to another "
                      "disk, then run again: finished results are kept") from error
    return lock


def unlock_folder(lock: FileLock) -> None:
    """Let other processes in, and leave no file behind.

    Args:
        lock: of `lock_folder`.
    """
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: who waits for it sees that this file is no more
        lock.release(force=True)
