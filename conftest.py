"""How pytest and nbval treat the notebooks.

nbval compares what notebooks print; warnings on stderr and pictures, whose bytes differ between machines, are left out. The
stored outputs come from the smoke run. Here the notebooks run on `make demo`'s 200 images: what would differ, the number of
images and all that depends on trained weights, is not compared.
"""

from tests.pipeline import finish_run, with_values_of_the_run

collect_ignore_glob = ["notebooks/solutions/*.ipynb"]  # tests/test_exercises.py runs their cells without a kernel


def pytest_collectstart(collector):
    """Add to nbval's list of outputs that are not compared."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "image/png", "application/vnd.jupyter.widget-view+json")
        collector.sanitize_patterns[r"\b(200|300|400|1500)\b"] = "N"


def pytest_collection_modifyitems(items):
    """Put the longest file first, so that several processes end at about the same time; the notebooks need its results.

    What is slow, or belongs to a notebook, is left out by `make check`, too.
    """
    for item in items:
        if item.get_closest_marker("slow") or item.path.suffix == ".ipynb":
            item.add_marker("system")
        if "parameters" in getattr(item, "cell", {}).get("metadata", {}).get("tags", []):
            item.cell.source = with_values_of_the_run(item.cell.source, item.path.stem)
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


def pytest_runtest_setup(item):
    """Finish the run before the first cell of a notebook, for a notebook reads the stages before its own."""
    if item.path.suffix == ".ipynb":
        finish_run()
