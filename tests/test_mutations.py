"""The changes of tests/mutations.py still fit the code: each of them is possible, in one place only, and changes something."""

import pytest

from tests.mutations import MUTATIONS
from wsss_lib.parameters import PROJECT_ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.file}: {mutation.before.strip()[:40]}")
def test_a_mutation_fits(mutation):
    assert (PROJECT_ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.before) == 1
    assert mutation.after != mutation.before
    files = mutation.tests.partition(" -k ")[0].split()
    assert files and all((PROJECT_ROOT / file).is_file() for file in files)
