"""How pytest and nbval treat the notebooks.

nbval compares what notebooks print; warnings on stderr and pictures, whose bytes differ between machines, are left out.
"""

from tests.pipeline import finish_smoke_run

collect_ignore_glob = ["notebooks/solutions/*.ipynb"]  # tests/test_exercises.py runs their cells without a kernel


def pytest_collectstart(collector):
    """Add to nbval's list of outputs that are not compared."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "image/png", "application/vnd.jupyter.widget-view+json")


def pytest_collection_modifyitems(items):
    """Put the longest file first, so that several processes end at about the same time; the notebooks need its results.

    What is slow, or belongs to a notebook, is left out by `make check`, too.
    """
    for item in items:
        if item.get_closest_marker("slow") or item.path.suffix == ".ipynb":
            item.add_marker("system")
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


def pytest_runtest_setup(item):
    """Finish the smoke run before the first cell of a notebook, for a notebook reads the stages before its own."""
    if item.path.suffix == ".ipynb":
        finish_smoke_run()
