"""The exercises: unsolved they say so, the solutions are accepted, wrong answers are not, and both notebooks ask the same.

The cells run in this process, without a kernel: an exercise needs nothing but its imports.
"""

import ast
import contextlib
import io
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch

from tests.refresh_notebooks import source_notebook
from wsss_lib import widgets
from wsss_lib.parameters import PROJECT_ROOT

pytestmark = pytest.mark.system

SOLUTIONS = sorted((PROJECT_ROOT / "notebooks/solutions").glob("*.py"))
NAMES = [path.stem for path in SOLUTIONS]


def exercise_cells(script) -> list[str]:
    """Return the code cells of a percent script that check an answer."""
    return [
        cell.source for cell in source_notebook(script).cells if cell.cell_type == "code" and "widgets.check(" in cell.source
    ]


def checks_of(source: str) -> list[ast.Call]:
    """Return the calls of `widgets.check` in a cell."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) == "widgets.check"]


def printed(source: str) -> list[str]:
    """Run a cell; return the lines that it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source, "exercise", "exec"), {"np": np, "torch": torch, "widgets": widgets})
    return out.getvalue().splitlines()


def answers_of(source: str) -> list[tuple]:
    """Run a cell of the solutions; return its answers with their names."""
    given = []
    looked_at = SimpleNamespace(check=lambda answer, _, name: given.append((answer, name)))
    exec(compile(source, "exercise", "exec"), {"np": np, "torch": torch, "widgets": looked_at})
    return given


def test_no_notebook_shows_an_answer():
    """What an answer is compared with is a digest, which differs between exercises of one answer."""
    digests = [
        ast.literal_eval(check.args[1])
        for script in (PROJECT_ROOT / "notebooks").glob("*.py")
        for cell in exercise_cells(script)
        for check in checks_of(cell)
    ]
    assert digests and all(re.fullmatch("[0-9a-f]{12}", digest) for digest in digests)
    assert widgets.digest(3, "exercise 1") != widgets.digest(3, "exercise 2")


@pytest.mark.parametrize(
    "answer, same, other",
    [
        (0.2857142, 0.2860, 0.2870),
        (1.0, 1, 2),
        (12, 12.0, 12.01),
        ([0, 2], np.array([0, 2]), [2, 0]),
        ((14, 2), [14, 2], (14, 3)),
        ("no", "no", "yes"),
    ],
)
def test_answers_are_compared_to_three_decimals(answer, same, other):
    expected = widgets.digest(answer, "exercise 1")
    widgets.check(same, expected, "exercise 1")
    with pytest.raises(AssertionError, match="exercise 1: .* is not right yet"):
        widgets.check(other, expected, "exercise 1")


def test_every_notebook_with_exercises_has_solutions():
    scripts = (PROJECT_ROOT / "notebooks").glob("*.py")
    with_exercises = {script.stem for script in scripts if script.stem != "00_start_here" and exercise_cells(script)}
    assert with_exercises == set(NAMES) and len(NAMES) >= 12


@pytest.mark.parametrize("solution", SOLUTIONS, ids=NAMES)
def test_solutions_answer_the_same_exercises(solution):
    asked, answered = exercise_cells(solution.parent.parent / solution.name), exercise_cells(solution)
    assert 2 <= len(asked) == len(answered) <= 3

    def expected(cells):  # what is expected, under which name, and for a function with which arguments it is called
        return [ast.unparse(check.args[1]) + ast.unparse(check.args[2]) for cell in cells for check in checks_of(cell)]

    assert expected(asked) == expected(answered)


@pytest.mark.parametrize("solution", SOLUTIONS, ids=NAMES)
def test_unsolved_exercises_say_so_and_solutions_are_right(solution):
    for cell in exercise_cells(solution.parent.parent / solution.name):
        lines = printed(cell)
        assert len(lines) == len(checks_of(cell)) and all(line.endswith(": not answered yet") for line in lines)
    for cell in exercise_cells(solution):
        lines = printed(cell)
        assert len(lines) == len(checks_of(cell)) and all(line.endswith(": right") for line in lines)


@pytest.mark.parametrize("solution", SOLUTIONS, ids=NAMES)
def test_a_wrong_answer_is_refused(solution):
    for cell in exercise_cells(solution.parent.parent / solution.name):
        wrong = re.sub(r"\bNone\b", "-12345.678", cell)
        wrong = re.sub(r"-12345.678, None|-12345.678, -12345.678", "(-12345.678, -12345.678)", wrong)
        with pytest.raises(AssertionError, match="is not right yet"):
            printed(wrong)


@pytest.mark.parametrize("solution", SOLUTIONS, ids=NAMES)
def test_stored_solutions_are_those_of_the_script(solution):
    """Their outputs too; so the stored notebook need not run again here."""
    stored = nbformat.read(solution.with_suffix(".ipynb"), as_version=4)
    twin = source_notebook(solution)
    assert [(cell.cell_type, cell.source) for cell in twin.cells] == [(cell.cell_type, cell.source) for cell in stored.cells], (
        "run make refresh"
    )
    for cell in stored.cells:
        if cell.cell_type == "code" and "widgets.check(" in cell.source:
            assert "".join(output.text for output in cell.outputs).splitlines() == printed(cell.source)


@pytest.mark.parametrize("solution", SOLUTIONS, ids=NAMES)
def test_teaching_states_the_results(solution):
    """docs/teaching.md has a table of results for each notebook, and a plan that fills 90 minutes."""
    page = (PROJECT_ROOT / "docs/teaching.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {solution.stem[:2]} .*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[0]
    expected = [
        (name.removeprefix("exercise "), f"{answer:.3f}" if isinstance(answer, float) else str(answer))
        for cell in exercise_cells(solution)
        for answer, name in answers_of(cell)
    ]
    assert re.findall(r"^\| (\d.*?) \| (.*?) \|$", section.split("| exercise |")[1], re.MULTILINE) == expected
    plan = re.findall(r"^\| (\d+) \| ", section.split("| exercise |")[0], re.MULTILINE)
    assert sum(map(int, plan)) == 90


@pytest.mark.parametrize("controls", [{}, {"threshold": (0, 1)}, {"threshold": (0, 1), "others": [1], "more": [1]}])
def test_a_slider_for_each_argument_or_none_at_all(controls):
    """In JupyterLab an argument without a control stops the cell; without a browser nobody would see it."""
    with pytest.raises(TypeError, match="give a control for each"):
        widgets.explore(lambda threshold=0.5, others=(): None, **controls)


def test_sliders_do_nothing_where_no_person_is(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    drawn = []
    widgets.explore(lambda threshold: drawn.append(threshold), threshold=(0, 1))
    assert not drawn
