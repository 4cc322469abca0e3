"""Run all notebooks with their own (smoke) parameters and store them with outputs: the only way in which outputs change.

`notebooks/NN_name.py` (percent format) is the text that people edit; `NN_name.ipynb` is made from it. Without arguments
every notebook is refreshed, in order; with names, only those: `python tests/refresh_notebooks.py 10_cam solutions/10_cam`.
"""

import base64
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def source_notebook(script: Path) -> nbformat.NotebookNode:
    """Return the notebook of a percent script, without outputs, with stable cell ids and a neutral kernel."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    return notebook


def refresh(script: Path) -> None:
    """Execute one notebook in the notebooks' folder and write it beside its script."""
    notebook = source_notebook(script)
    NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": ROOT / "notebooks"}}, record_timing=False
    ).execute()
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, script.with_suffix(".ipynb"))
    if script.stem == "00_start_here":  # its first figure is the README's
        pictures = (
            output["data"]["image/png"]
            for cell in notebook.cells
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        )
        (ROOT / "docs" / "chain.png").write_bytes(base64.b64decode(next(pictures)))
    print(script.stem, flush=True)


if __name__ == "__main__":
    # 00 and 95 show finished runs, so they come last.
    everything = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
    solutions = sorted(f"solutions/{path.stem}" for path in (ROOT / "notebooks/solutions").glob("*.py"))
    names = sys.argv[1:] or sorted(everything, key=lambda name: name[:2] in ("00", "95")) + solutions
    for name in names:
        refresh(ROOT / "notebooks" / f"{name}.py")
