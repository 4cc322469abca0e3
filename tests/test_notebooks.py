"""What every notebook must keep to: its twin, one parameters cell, short cells, figures with texts, no local paths."""

import ast
import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from tests.refresh_notebooks import source_notebook
from wsss_lib.config import Config
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.widgets import NEEDS

NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
PAGES = [
    PROJECT_ROOT / "README.md",
    *sorted((PROJECT_ROOT / "docs").glob("*.md")),
    *sorted((PROJECT_ROOT / "notebooks").glob("*.py")),
]


def read(path: Path) -> nbformat.NotebookNode:
    """Read a stored notebook."""
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list:
    """Return the code cells of a stored notebook."""
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def parameters_of(path: Path) -> dict:
    """Return names and literal values of the parameters cell."""
    cells = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, "exactly one cell is tagged parameters"
    body = ast.parse(cells[0].source).body
    return {node.targets[0].id: ast.literal_eval(node.value) for node in body}


def test_the_chain_is_there():
    assert {"00_start_here", "02_datasets_and_labels", "10_cam", "70_seeds", "80_irn", "90_deeplab"} <= set(NAMES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_twin_is_in_step(path):
    twin = source_notebook(path.with_suffix(".py"))
    stored = read(path)
    assert [(cell.cell_type, cell.source) for cell in twin.cells] == [(cell.cell_type, cell.source) for cell in stored.cells], (
        "run make refresh"
    )


def names_in(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Return the names that a cell makes and those that it takes from other cells."""
    nodes = list(ast.walk(tree))
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    own = {argument.arg for node in nodes if isinstance(node, ast.arguments) for argument in (*node.args, *node.kwonlyargs)}
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return made, read - own - made


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_what_is_left_out_is_not_missed(path):
    """A cell that is run where others are left out reads nothing of theirs (`# needs masks`, `# needs lessons`, …)."""
    made: dict[str, list[frozenset]] = {}  # a name: what the cells that make it need
    for cell in code_cells(path):
        first = cell.source.partition("\n")[0]
        needs = frozenset(first.removeprefix(NEEDS).split(", ") if first.startswith(NEEDS) else ())
        names, read = names_in(ast.parse(cell.source))
        missed = {name for name in read & made.keys() if not any(before <= needs for before in made[name])}
        assert missed == set(), f"{sorted(missed)} in the cell that begins with {first!r}"
        for name in names:
            made.setdefault(name, []).append(needs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_parameters_are_fields_with_valid_values_and_comments(path):
    values = parameters_of(path)
    Config.from_values(values)
    source = next(cell.source for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", []))
    assert all(line.count("=") == 1 or "#" in line for line in source.splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_no_import_takes_the_name_of_a_parameter(path):
    """A preset's values stand above the imports, also those of parameters that the notebook does not list."""
    sources = [cell.source for cell in code_cells(path)]
    setup = next((number for number, source in enumerate(sources) if "Config.from_notebook" in source), -1)
    lines = "\n".join(sources[: setup + 1])
    imports = [node for node in ast.parse(lines).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not {(name.asname or name.name).partition(".")[0] for node in imports for name in node.names} & set(
        Config.model_fields
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_smoke_values_are_those_of_the_configuration(path):
    """One default for one name: a notebook and the library must not disagree."""
    defaults = Config()
    for name, value in parameters_of(path).items():
        if name == "method":  # says whose maps a notebook reads, not how
            continue
        expected = getattr(defaults, name)
        assert value == (list(expected) if isinstance(expected, tuple) else expected), name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_cells_are_short_and_prose_is_near(path):
    run = 0
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            run = 0
            continue
        run += 1
        assert run <= 3, "more than three code cells in a row without prose"
        assert len(cell.source.splitlines()) <= 20, cell.source[:200]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_stored_outputs_are_complete_small_and_neutral(path):
    assert path.stat().st_size < 1_000_000
    stored = read(path)
    assert stored.metadata.kernelspec.name == "python3" and "widgets" not in stored.metadata
    text = path.read_text()
    assert str(PROJECT_ROOT) not in text and "/home/" not in text and "/tmp/" not in text
    for cell in code_cells(path):
        assert cell.execution_count, "run make refresh"
        assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_every_figure_has_a_text(path):
    """Each stored picture carries its text, and the same text stands beneath it; nothing else shows pictures."""
    for cell in code_cells(path):
        assert "plt.show" not in cell.source, "figures are shown by viz.show, which asks for a text"
        for output, following in zip(cell.outputs, [*cell.outputs[1:], None], strict=False):
            if "image/png" in output.get("data", {}):
                picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                assert following is not None and len(following.data["text/markdown"].split()) >= 4
                assert following.data["text/markdown"] == f"*{picture.text['Description']}*"
            assert not {"image/svg+xml", "image/jpeg"} & set(output.get("data", {}))


def test_all_pictures_are_counted():
    """A walk that found no picture would pass the test above."""
    cells = [cell for path in NOTEBOOKS for cell in code_cells(path)]
    pictures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert pictures >= 80 and pictures >= sum("viz.show(" in cell.source and "def " not in cell.source for cell in cells)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pictures_in_prose_have_a_text(path):
    for text, _ in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", path.read_text(encoding="utf-8")):
        assert len(text.split()) >= 4
    assert "<img" not in path.read_text(encoding="utf-8")


def test_back_pointers_lead_to_sections():
    """`Explained in notebook 10, section "The network"`: the notebook and the section exist."""
    headings = {
        path.stem[:2]: re.findall(r"^# #+ (?:\d+ )?(.*)$", path.with_suffix(".py").read_text(), re.M) for path in NOTEBOOKS
    }
    pointers = 0
    for file in (PROJECT_ROOT / "wsss_lib").rglob("*.py"):
        text = re.sub(r"\s+", " ", file.read_text())
        for number, section in re.findall(r'Explained in notebook (\d\d), section "([^"]+)"', text):
            pointers += 1
            found = [heading for heading in headings[number] if section == heading]
            assert found, f"{file.name} points to section {section!r} of notebook {number}, which has {headings[number]}"
    assert pointers > 20
