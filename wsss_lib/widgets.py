"""What a notebook needs beyond figures: sliders, checks of exercises, and cells that are left out if something is missing.

A notebook never depends on a slider: the same drawing is shown as a static figure beneath.
"""

import hashlib
import inspect
import os
from collections.abc import Callable

import numpy as np
from IPython.core.getipython import get_ipython
from IPython.display import display

from wsss_lib.config import Config
from wsss_lib.data.dataset import SegmentationDataset

NEEDS = "# needs "  # begins a cell that is left out if what it needs is missing


def explore(draw: Callable, **controls) -> None:
    """Show sliders that redraw a figure; do nothing when no person is at the notebook.

    Args:
        draw: a plain function that draws and shows one figure; its arguments are the controls' names.
        controls: name to what `ipywidgets.interactive` takes: (low, high, step), a list of choices, …

    Raises:
        TypeError: an argument has no control, or vice versa; without a person, too.

    Explained in notebook 00, section "Sliders".
    """
    if set(inspect.signature(draw).parameters) != set(controls):
        raise TypeError(f"the arguments of {draw.__name__} and its controls differ: give a control for each of them")
    if not os.environ.get("JPY_SESSION_NAME"):  # set by Jupyter for a notebook that is open in a browser
        return
    import ipywidgets

    display(ipywidgets.interactive(draw, **controls))


def check(answer, expected: str, name: str) -> None:
    """Tell a reader whether an exercise is solved, without showing the answer.

    Args:
        answer: a number, a word, or a list of them; None while the exercise is not answered.
        expected: `digest` of the correct answer; numbers are compared to three decimals.

    Raises:
        AssertionError: the answer is wrong.
    """
    if answer is None:
        print(f"{name}: not answered yet")
        return
    assert expected in _digests(answer, name), f"{name}: {answer} is not right yet"
    print(f"{name}: right")


def digest(answer, name: str) -> str:
    """Return what a notebook holds in place of an exercise's answer.

    >>> digest(7, "exercise 1") == digest(np.int64(7), "exercise 1") != digest(7, "exercise 2")
    True
    """
    return _digests(answer, name)[0]


def _digests(answer, name: str) -> list[str]:
    """Return the digests of an answer in the forms that may be expected, its own first."""
    forms = [str(answer)]
    if isinstance(answer, (list, tuple, np.ndarray)):
        forms = [str([str(entry) for entry in answer])]
    elif isinstance(answer, (int, float, np.number)):
        rounded = [f"{float(answer) + shift:.3f}" for shift in (0, 4.9e-4, -4.9e-4)]
        whole = [str(int(answer))] if float(answer).is_integer() else []
        forms = [*whole, *rounded] if isinstance(answer, (int, np.integer)) else [*rounded, *whole]
    return [hashlib.sha256(f"{name} {form}".encode()).hexdigest()[:12] for form in forms]


def leave_out_cells(config: Config, *splits: SegmentationDataset) -> None:
    """Leave out the cells that this run cannot or need not run, with a sentence for each kind.

    `# needs masks` if a split has no mask at all; `# needs lessons` if the parameter `lessons` is false.

    Explained in notebook 02, section "Masks", and notebook 00, section "Parameters".
    """
    leave_out("masks", all(data.has_masks for data in splits), "there are no masks, so that nothing is scored")
    leave_out("lessons", config.lessons, "lessons = false")


def leave_out(what: str, there: bool, because: str) -> None:
    """Leave out all further cells whose first line is `# needs WHAT` if it is not there; the line may name several.

    Args:
        because: why it is not; printed here and in place of each cell.
    """
    shell = get_ipython()
    if shell is None or there:
        return
    print(f"Cells that begin with {NEEDS + what!r} are left out: {because}.")

    def without(lines: list[str]) -> list[str]:
        first = lines[0].strip() if lines else ""
        needed = first.removeprefix(NEEDS).split(", ") if first.startswith(NEEDS) else []
        return [f"print({'left out: ' + because!r})\n"] if what in needed else lines

    shell.input_transformers_cleanup.append(without)
