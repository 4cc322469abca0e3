"""docs/fidelity.md is in step with presets, published values and tests; no golden case is forgotten."""

from pathlib import Path

import pytest

from tests import fidelity

FOLDER = Path(__file__).parent
ROWS = [(program, row) for program, rows in fidelity.ROWS.items() for row in rows]


def test_the_page_is_in_step():
    assert fidelity.PAGE.read_text(encoding="utf-8") == fidelity.page(), "run: python -m tests.fidelity"


@pytest.mark.parametrize("program, row", ROWS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_row_is_complete_and_what_holds_it_exists(program, row):
    part, official, ours, state, held = row
    assert part and official and state in ("same", "option", "declared")
    assert ours or state == "same"  # what differs is told
    assert held or state != "same" or ours
    for name in held:
        file, _, test = name.partition("::")
        if file.endswith(".py"):
            assert f"def {test}" in (FOLDER / file).read_text(encoding="utf-8")
        else:
            assert (FOLDER / "golden" / f"{name}.npz").is_file()


def test_every_golden_case_holds_a_row():
    named = {name for _, row in ROWS for name in row[4]}
    cases = {path.stem for path in (FOLDER / "golden").glob("*.npz")}
    assert not cases - named
