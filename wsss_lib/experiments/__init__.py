"""What single notebooks try out besides the pipeline."""

from collections.abc import Iterator
from contextlib import contextmanager

from wsss_lib.errors import Diverged


@contextmanager
def a_trial() -> Iterator[None]:
    """Let a lesson's short training end above its start: the sentence is printed, and the network is scored as it is.

    A stage of the pipeline stops there, as what follows would learn from a network that has learned nothing.
    """
    try:
        yield
    except Diverged as error:
        print(error)
