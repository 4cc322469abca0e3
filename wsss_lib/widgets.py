"""Sliders for JupyterLab. A notebook never depends on one: the same drawing is shown as a static figure beneath."""

import os
from collections.abc import Callable

from IPython.display import display


def explore(draw: Callable, **controls) -> None:
    """Show sliders that redraw a figure; do nothing when no person is at the notebook.

    Args:
        draw: a plain function that draws and shows one figure; its arguments are the controls' names.
        controls: name to what `ipywidgets.interactive` takes: (low, high, step), a list of choices, …

    Explained in notebook 00, section "Sliders".
    """
    if not os.environ.get("JPY_SESSION_NAME"):  # set by Jupyter for a notebook that is open in a browser
        return
    import ipywidgets

    display(ipywidgets.interactive(draw, **controls))


def check(answer, expected, name: str) -> None:
    """Tell a reader whether an exercise is solved.

    Args:
        answer: None while the exercise is not answered.
        expected: the right answer; floats are compared to three decimals.
        name: e.g. "exercise 1".

    Raises:
        AssertionError: the answer is wrong.
    """
    if answer is None:
        print(f"{name}: not answered yet")
        return
    right = abs(answer - expected) < 5e-4 if isinstance(expected, float) else answer == expected
    assert right, f"{name}: {answer} is not right yet"
    print(f"{name}: right")
