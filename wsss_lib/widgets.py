"""What a notebook needs beyond figures: sliders, checks of exercises, and cells that are left out where there are no masks.

A notebook never depends on a slider: the same drawing is shown as a static figure beneath.
"""

import os
from collections.abc import Callable

from IPython.core.getipython import get_ipython
from IPython.display import display

from wsss_lib.data.dataset import SegmentationDataset

NEEDS_MASKS = "# needs masks"  # first line of a cell that compares something with the ground truth


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


def leave_out_without_masks(*splits: SegmentationDataset) -> None:
    """Leave out all further cells that begin with `# needs masks`, with a sentence, where a split has no mask at all.

    Explained in notebook 02, section "Masks".
    """
    shell = get_ipython()
    if shell is None or all(data.has_masks for data in splits):
        return
    print(f"No masks: cells that begin with {NEEDS_MASKS!r} are left out, and nothing is scored.")
    if _without_cell_that_needs_masks not in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.append(_without_cell_that_needs_masks)


def _without_cell_that_needs_masks(lines: list[str]) -> list[str]:
    return ["print('not scored: no masks')\n"] if lines and lines[0].strip() == NEEDS_MASKS else lines
