"""Count what the notebooks are made of: `python -m tests.notebook_numbers [FOLDER ...]` prints the table of docs/notebooks.md.

With folders of finished runs, e.g. `runs/toy/*/seed1`, the last column holds the seconds that papermill recorded, start of the
kernel included; the longest where a notebook ran for several methods.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

import nbformat

from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.results import markdown_table

HEADER = ["notebook", "code cells", "median lines", "longest", "words of prose", "figures", "with text", "seconds"]


def seconds_of(folders: list[Path]) -> dict[str, float]:
    """Return the name of each executed notebook in some folders of runs, and the longest time that it took."""
    seconds = defaultdict(float)
    for path in (path for folder in folders for path in folder.glob("*/notebook.ipynb")):
        record = nbformat.read(path, as_version=4).metadata.papermill
        name = Path(record["input_path"]).stem
        seconds[name] = max(seconds[name], record["duration"])
    return seconds


def counts(path: Path) -> tuple[int, float, int, int, int, int]:
    """Return code cells, their median and greatest number of lines, words of prose, figures, and figures that have a text."""
    cells = nbformat.read(path, as_version=4).cells
    lines = [len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code"]
    words = sum(len(re.findall(r"\w+", cell.source)) for cell in cells if cell.cell_type == "markdown")
    outputs = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    described = sum(bool(output.metadata.get("image/png", {}).get("alt")) for output in outputs)
    return len(lines), median(lines), max(lines), words, len(outputs), described


def main() -> None:
    """Print one line for each notebook."""
    seconds = seconds_of([Path(name) for name in sys.argv[1:]])
    rows = []
    for path in sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb")):
        rows.append([path.stem, *map(str, counts(path)), f"{seconds[path.stem]:.0f}" if path.stem in seconds else ""])
    print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
