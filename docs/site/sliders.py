"""Store what sliders show, so that they move on the static site, too, which has no kernel.

    python docs/site/sliders.py 70_seeds 80_irn       # runs these notebooks; their own outputs stay as they are

The figures of a slider's positions lie one below another in docs/figures/sliders/NOTEBOOK.NUMBER.webp, and what the page has
to know about them in NOTEBOOK.NUMBER.json.
"""

import base64
import io
import json
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
import nbformat
import numpy as np
from IPython.utils.capture import capture_output
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
STRIPS = ROOT / "docs/figures/sliders"
POSITIONS = 7  # of a slider, at most


def positions(control: Any) -> tuple[list[Any], list[str], int]:
    """Return some values of a control, what is written beside each, and the place of the one that it starts with."""
    if hasattr(control, "options"):
        values, labels = list(control._options_values), list(control._options_labels)
    else:
        steps = round((control.max - control.min) / control.step)
        places = set(np.linspace(0, steps, min(POSITIONS, steps + 1)).round().astype(int).tolist())
        start = round((control.value - control.min) / control.step)
        if start not in places:  # it takes the place of the nearest between the ends
            places = places - {min(places - {0, steps}, key=lambda place: abs(place - start))} | {start}
        whole = isinstance(control.step, int)
        values = [control.min + place * control.step for place in sorted(places)]
        values = [value if whole else round(value, 6) for value in values]
        labels = [str(value) if whole else f"{value:.2f}" for value in values]
        return values, labels, sorted(places).index(start)
    return values, labels, values.index(control.value)


def figure_of(draw: Callable, values: dict[str, Any]) -> Image.Image:
    """Return the figure that a notebook's function draws."""
    with capture_output() as captured:
        draw(**values)
    data = next(output.data["image/png"] for output in reversed(captured.outputs) if "image/png" in output.data)
    return Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))


def strip_of(draw: Callable, controls: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
    """Draw a figure at some positions of each control, the others at their start.

    Returns:
        All figures, one below another; a dictionary of their number, the description of the first, and the controls.
    """
    widgets = ipywidgets.interactive(draw, **controls).children[:-1]  # the last holds the output
    start = {widget.description: widget.value for widget in widgets}
    frames, described = [], []
    for widget in widgets:
        values, labels, at = positions(widget)
        described.append({"name": widget.description, "first": len(frames), "start": at, "labels": labels})
        frames += [figure_of(draw, start | {widget.description: value}) for value in values]
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    strip = Image.new("RGB", (size[0], size[1] * len(frames)), "white")
    for number, frame in enumerate(frames):
        strip.paste(frame.convert("RGB"), (0, number * size[1]))
    alt = frames[described[0]["start"]].text.get("Description", "")
    return strip, {"frames": len(frames), "size": size, "alt": alt, "controls": described}


def record(notebook: str) -> None:
    """Let the sliders of the notebook that is running store their strips; called in its kernel."""
    from wsss_lib import widgets

    STRIPS.mkdir(parents=True, exist_ok=True)
    count = iter(range(100))

    def explore(draw: Callable, **controls: Any) -> None:
        strip, described = strip_of(draw, controls)
        path = STRIPS / f"{notebook}.{next(count)}"
        strip.save(path.with_name(f"{path.name}.webp"), quality=80, method=6)
        path.with_name(f"{path.name}.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")

    widgets.explore = explore


def run(notebook: str) -> None:
    """Run a notebook for its sliders."""
    content = nbformat.read(ROOT / f"notebooks/{notebook}.ipynb", as_version=4)
    begin = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import sliders; sliders.record({notebook!r})"
    content.cells.insert(0, nbformat.v4.new_code_cell(begin))
    NotebookClient(
        content, timeout=1200, kernel_name="python3", resources={"metadata": {"path": ROOT / "notebooks"}}, record_timing=False
    ).execute()
    print(notebook, flush=True)


def html_of(name: str, described: dict[str, Any]) -> str:
    """Return the picture of a strip, of which one figure is seen, and its sliders."""
    start = described["controls"][0]["first"] + described["controls"][0]["start"]
    width, height = described["size"]
    inputs = "".join(
        f'<label>{escape(control["name"])} <input type="range" min="0" max="{len(control["labels"]) - 1}" '
        f'value="{control["start"]}" data-first="{control["first"]}" data-labels="{escape(json.dumps(control["labels"]))}">'
        f" <output>{escape(control['labels'][control['start']])}</output></label>"
        for control in described["controls"]
    )
    return (
        f'<figure class="strip"><div style="aspect-ratio: {width} / {height}; max-width: {1.25 * width:.0f}px">'
        f'<img src="../_static/{name}.webp" alt="{escape(described["alt"])}" style="--frames: {described["frames"]}; '
        f'--frame: {start}"></div>{inputs}'
        "<figcaption>Stored positions; a slider that moves puts the others back. In JupyterLab every value can be had."
        "</figcaption></figure>"
    )


def add_strips(path: Path) -> None:
    """Put the stored strips into a copy of a notebook, each behind the cell of its slider."""
    if not any(STRIPS.glob(f"{path.stem}.*.json")):
        return
    notebook = nbformat.read(path, as_version=4)
    sliders = [cell for cell in notebook.cells if cell.cell_type == "code" and "widgets.explore(" in cell.source]
    for number, cell in enumerate(sliders):
        if (file := STRIPS / f"{path.stem}.{number}.json").is_file():
            html = html_of(f"{path.stem}.{number}", json.loads(file.read_text(encoding="utf-8")))
            cell.outputs.append(nbformat.v4.new_output("display_data", {"text/html": html}))
    nbformat.write(notebook, path)


def main(names: Sequence[str]) -> None:
    """Run the command."""
    if not names:
        sys.exit("usage: python docs/site/sliders.py NOTEBOOK ...")
    for name in names:
        run(name)


if __name__ == "__main__":
    main(sys.argv[1:])
