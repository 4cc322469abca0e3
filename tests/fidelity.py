"""Set everything that is done here beside what the official programs do: `python -m tests.fidelity` writes docs/fidelity.md.

Values come from docs/published_values.yaml and the presets, everything else from docs/fidelity.yaml.
"""

from collections import Counter
from typing import Any

import yaml

from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config
from wsss_lib.results import markdown_table

PAGE = PROJECT_ROOT / "docs/fidelity.md"
PUBLISHED = yaml.safe_load((PROJECT_ROOT / "docs/published_values.yaml").read_text(encoding="utf-8"))
ROWS = yaml.safe_load((PROJECT_ROOT / "docs/fidelity.yaml").read_text(encoding="utf-8"))
INTRODUCTION = """# Official programs and this project, row by row

Made by `python -m tests.fidelity`; a test keeps it in step. **same**: what is here is what the official program does.
**option**: a parameter makes it so, and the table names it. **declared**: it is otherwise. The last column names what holds the
row: golden cases and traces of the official programs in `tests/golden`, or tests. Whole trainings agree with the official ones
to rounding, step by step in float64 (`tests/test_trace.py`).

**Precision.** `voc12` and `coco14` train in float32, as every official program but DRS's DeepLab-v3+ does. The published values
belong to it, and scaled float16 leaves out steps whose gradients overflow, so that a schedule is no longer the published one.
Float32 means what torch makes of it: on GPUs that can, convolutions round their inputs to TF32. With `mixed_precision: true`,
which is meant to be faster and was not timed here, `log.jsonl` counts the steps left out and holds the scale, and a training
whose scale falls below 1 stops with a sentence.

"""


def state(entry: dict[str, Any], value: Any) -> str:
    """Return whether a preset's value is the published one, or lies in the published range: "same" or "declared"."""
    if "range" in entry:
        low, high = entry["range"]
        return "same" if low <= value <= high else "declared"
    return "same" if (list(value) if isinstance(value, tuple) else value) == entry["value"] else "declared"


def text_of(value: Any) -> str:
    """Return a value as a preset has it."""
    return ", ".join(map(text_of, value)) if isinstance(value, tuple | list) else str(value) if value != "" else "none"


def value_table(preset: str, method: str) -> str:
    """Return the published values of a method beside those of its preset."""
    config = preset_config(preset, method)
    lines = []
    for name, entry in PUBLISHED[preset][method].items():
        value = getattr(config, name)
        official = " to ".join(map(str, entry["range"])) if "range" in entry else text_of(entry["value"])
        reason = f" ({entry['departure']})" if "departure" in entry else ""
        lines.append([name, official, text_of(value) + reason, state(entry, value), entry["source"]])
    return markdown_table(["parameter", "official", "ours", "state", "source"], lines)


def page() -> str:
    """Return docs/fidelity.md."""
    found = Counter(row[3] for rows in ROWS.values() for row in rows)
    parts = [INTRODUCTION, "## What is done\n\n", f"{', '.join(f'{count} {kind}' for kind, count in sorted(found.items()))}.\n"]
    for program, rows in ROWS.items():
        lines = [[part, official, ours or "as there", kind, ", ".join(held)] for part, official, ours, kind, held in rows]
        parts.append(f"\n### {program}\n\n{markdown_table(['what', 'official', 'ours', 'state', 'held by'], lines)}\n")
    parts.append("\n## Values\n")
    for preset, methods in PUBLISHED.items():
        for method in methods:
            parts.append(f"\n### {preset}, {method}\n\n{value_table(preset, method)}\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
