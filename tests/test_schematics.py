"""The drawn mechanisms: the script makes them, every page that shows one finds it, and a text says what is drawn."""

import re
import subprocess
import sys

import pytest

from wsss_lib.parameters import PROJECT_ROOT

FIGURES = PROJECT_ROOT / "docs/figures"
PAGES = sorted([*PROJECT_ROOT.glob("notebooks/*.py"), *PROJECT_ROOT.glob("docs/*.md"), PROJECT_ROOT / "README.md"])


@pytest.mark.system
def test_the_script_draws_what_is_committed(tmp_path):
    subprocess.run([sys.executable, str(PROJECT_ROOT / "docs/schematics.py"), str(tmp_path)], check=True)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in FIGURES.glob("*.svg")}


def test_every_drawing_is_shown_and_described():
    shown = set()
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert len(words) > 60, f"{page.name}: the text of {target} does not say what is drawn"
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            shown.add((page.parent / target).resolve())
    assert {path for path in FIGURES.glob("*.svg")} <= shown
