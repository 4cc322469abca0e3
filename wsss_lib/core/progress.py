"""The one progress bar."""

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(items: Iterable, name: str, total: int | None = None, initial: int = 0, show: bool = True) -> Iterable:
    """Iterate with a bar in a terminal or a live notebook; silent when headless (papermill, nbval, tests).

    Args:
        show: False is silent, too: only one of several processes shows its bar.
    """
    live = sys.stderr.isatty() or os.environ.get("JUPYTERHUB_USER") is not None or bool(os.environ.get("JPY_SESSION_NAME"))
    quiet = os.environ.get("WSSS_PROGRESS", "bar" if live else "none") == "none"
    return tqdm(items, desc=name, total=total, initial=initial, disable=quiet or not show, dynamic_ncols=True, mininterval=0.5)
