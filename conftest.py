"""nbval compares what notebooks print; warnings on stderr and pictures, whose bytes differ between machines, are left out."""


def pytest_collectstart(collector):
    """Add to nbval's list of outputs that are not compared."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "image/png", "application/vnd.jupyter.widget-view+json")
