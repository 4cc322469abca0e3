"""Every benchmark in turn, then one table: `make bench`.

python benchmarks/run_all.py [--quick] [NAME ...]
"""

import argparse
import sys
from importlib import import_module

from measuring import Row, table

# The quick ones first; the last measures no pair of formulations.
NAMES = (
    "confusion",
    "threshold_sweep",
    "stored_maps_sweep",
    "map_storage",
    "input_pipeline",
    "path_affinity",
    "random_walk",
    "affinitynet_walk",
    "visual_words",
    "drs",
    "kmeans",
    "inference",
    "rib",
    "crf",
    "coco_preparation",
)


def measure(name: str, quick: bool) -> list[Row]:
    """Return the rows of one benchmark."""
    return import_module(name).measure(quick)


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="the smallest size once, only to see that both ways agree")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; take some of: {', '.join(NAMES)}")
    rows = []
    for name in options.names or NAMES:
        print(f"... {name}", file=sys.stderr, flush=True)
        rows += measure(name, options.quick)
    print(table(rows))
    goals, missed = [row for row in rows if row.goal is not None], [row for row in rows if row.missed]
    if goals:
        print(
            f"\n{len(goals) - len(missed)} of {len(goals)} goals reached"
            + "".join(f"\nmissed: {row.case}, {row.size}" for row in missed)
        )
    return rows


if __name__ == "__main__":
    sys.exit(any(row.missed for row in main()))
