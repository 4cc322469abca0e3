"""Published numbers with their sources (published.csv), and tables that put ours beside them.

`python -m wsss_lib.results runs/toy` prints the table of a finished run.
"""

import csv
import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from wsss_lib.config import Config
from wsss_lib.core.store import finished_stages
from wsss_lib.core.texts import as_markdown
from wsss_lib.errors import DataError
from wsss_lib.methods import METHODS
from wsss_lib.pipeline import ROWS


@dataclass(frozen=True)
class Published:
    """One number from the literature.

    Attributes:
        method: short name, as of the folder below `runs/<dataset>`.
        what: the stage in words, as in `metrics.json`.
        split: train, val or test of PASCAL VOC 2012, or in words of another data set ("train of COCO 2014").
        value: mIoU in percent.
        source: where it is published, and under which conditions.
        start: what the networks of this stage were trained on before; "not stated" if the source does not say.
        pixel_labels: how masks were used beyond scoring; "none stated" does not prove that they were not.
        crf: whether a dense CRF was applied in the end: "with", "without", "not stated".
    """

    method: str
    what: str
    split: str
    value: float
    source: str
    start: str = "not stated"
    pixel_labels: str = "none stated"
    crf: str = "not stated"

    @property
    def dataset(self) -> str:
        """Return the data set in words."""
        return self.split.partition(" of ")[2] or "VOC 2012"

    @property
    def part(self) -> str:
        """Return the split without the data set: train, val or test."""
        return self.split.partition(" of ")[0]


def _published(file: str) -> list[dict[str, str]]:
    with open(Path(__file__).with_name(file), newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows))


PUBLISHED = tuple(Published(**row | {"value": float(row["value"])}) for row in _published("published.csv"))  # type: ignore[arg-type]
IMAGES_OF = {"train": 1464, "val": 1449, "test": 1456, "train of COCO 2014": 82783, "val of COCO 2014": 40504}

# IoU in percent of the background and VOC's 20 classes, for (method, what, split); from the same sources.
PUBLISHED_CLASSES = {
    (row.pop("method"), row.pop("what"), row.pop("split")): tuple(map(float, row.values()))
    for row in _published("published_classes.csv")
}
FOLDERS = {"VOC 2012": "voc12", "COCO 2014": "coco14"}  # data set in words to the name of its runs


def published(method: str, what: str, split: str) -> Published | None:
    """Return the published number for a stage, or None.

    Args:
        method: short name, e.g. "cam".
        what: the stage in words, e.g. "CAM seed".
        split: of VOC 2012: train, val or test.
    """
    matches = (entry for entry in PUBLISHED if (entry.method, entry.what, entry.split) == (method, what, split))
    return next(matches, None)


def published_beside(row: dict) -> str:
    """Return the published value that may stand beside a row of a full data set, or the reason why none may.

    Args:
        row: from `summarize`, scored on VOC 2012.

    Explained in notebook 95, section "Published values".

    >>> row = {"method": "cam", "what": "CAM seed", "split": "train", "images": 1464, "crf": False, "pixel_labels_chose": ""}
    >>> published_beside(row)
    '48.3'
    >>> published_beside(row | {"images": 300})
    'refused: 300 images here, 1464 there'
    >>> published_beside(row | {"method": "amn"})
    'refused: the best threshold there, a fixed one here'
    """
    entry = published(row["method"], row["what"], row["split"])
    if not entry or row.get("miou", 0) is None:
        return ""
    reason = incomparable(entry, row)
    return f"refused: {reason}" if reason else f"{entry.value:g}"


def incomparable(entry: Published, row: dict) -> str:
    """Return why a published value may not stand beside a row of the same stage, split and data set; empty: it may."""
    there, here = IMAGES_OF[entry.split], row["images"]
    if here != there:
        return f"{here} images here, {there} there"
    if entry.crf == "not stated":
        return "whether with CRF is not stated there"
    if entry.crf != (crf := "with" if row["crf"] else "without"):
        return f"{entry.crf} CRF there, {crf} here"
    best_there, best_here = ("threshold" in words for words in (entry.pixel_labels, row["pixel_labels_chose"]))
    if best_there != best_here:
        words = {True: "the best threshold", False: "a fixed one"}
        return f"{words[best_there]} there, {words[best_here]} here"
    return ""


def collect(run_folder: Path) -> list[dict]:
    """Return the mIoU rows of all finished stages of a run.

    Returns:
        rows of `metrics.json` (see `scoring.metric_row`), each with method, seed and stage added, and a `miou` of None if the
        row says that it was not scored; without stages that were moved aside and without those that report on others.
    """
    return [
        {"method": method, "seed": seed, "stage": name, "miou": None} | row
        for (method, seed), group in finished_stages(run_folder).items()
        for name, stage in group.items()
        for row in stage.metrics()
        if "miou" in row or "not_scored" in row
    ]


def fingerprint(rows: list[dict]) -> str:
    """Return a hash of collected rows, for the stage that reports on them."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def summarize(rows: list[dict]) -> list[dict]:
    """Join the rows of several seeds.

    Returns:
        one row for each method, stage, split, number of images and use of a CRF: `miou`, the mean in percent; `spread`, the
        sample standard deviation in points, None for one run; `runs`; and what pixel labels chose. If nothing was scored,
        `miou` is None and `not_scored` says why. Sorted by method, with "truth" last, then in the order of the chain.

    >>> row = {"method": "cam", "what": "CAM seed", "split": "train", "images": 9, "crf": False, "pixel_labels_chose": ""}
    >>> [joined] = summarize([row | {"miou": 40.0}, row | {"miou": 44.0}])
    >>> joined["miou"], round(joined["spread"], 2), joined["runs"]
    (42.0, 2.83, 2)
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["method"], row["what"], row["split"], row["images"], row.get("crf")].append(row)
    summary = []
    for (method, what, split, images, crf), members in groups.items():
        values = [row["miou"] for row in members if row.get("miou") is not None]
        chosen = sorted({row["pixel_labels_chose"] for row in members if row.get("pixel_labels_chose")})
        summary.append(
            {
                "method": method,
                "what": what,
                "split": split,
                "images": images,
                "crf": crf,
                "miou": mean(values) if values else None,
                "spread": stdev(values) if len(values) > 1 else None,
                "runs": len(values) or len(members),
                "pixel_labels_chose": "; ".join(chosen),
            }
            | ({} if values else {"not_scored": members[0].get("not_scored") or "no masks"})
        )
    return sorted(
        summary, key=lambda row: (place_of_method(row["method"]), ROWS.index(row["what"]) if row["what"] in ROWS else len(ROWS))
    )


def place_of_method(method: str) -> tuple[int, str]:
    """Return a method's position in all tables: the methods in the order of their notebooks, then others, then "truth"."""
    known = list(METHODS)
    return (known.index(method) if method in known else len(known) + (method == "truth"), method)


def with_spread(values: Sequence[float], digits: int = 1) -> str:
    """Return mean and, for several values, sample standard deviation in words.

    Explained in notebook 00, section "Results of this run".

    >>> with_spread([40.0, 44.0]), with_spread([40.0])
    ('42.0 ± 2.8', '40.0')
    """
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(rows: list[dict], compare: bool) -> str:
    """Return a plain-text table of summarized rows.

    Args:
        compare: add the published values of the full VOC 2012; only rows of that data set may stand beside them, and a row of
            another number of images gets the reason instead.

    Explained in notebook 00, section "Results of this run".
    """
    head = ["method", "stage", "split", "images", "CRF", "mIoU %", "runs", "chosen by pixel labels"]
    lines = []
    for row in rows:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.1f}"
        cells = [
            row["method"],
            row["what"],
            row["split"],
            str(row["images"]),
            {None: "", True: "with", False: "without"}[row["crf"]],
            f"not scored: {row['not_scored']}" if row["miou"] is None else f"{row['miou']:.1f}{spread}",
            str(row["runs"]),
            row["pixel_labels_chose"] or "nothing",
        ]
        if compare:
            cells.append(published_beside(row))
        lines.append(cells)
    if compare:
        head.append("published, full VOC 2012")
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in [head, rule, *lines]
    )


def run_table(rows: list[dict], config: Config) -> str:
    """Return `table` for rows of `metrics.json` of one method and seed."""
    own = [{"method": config.method, "seed": config.seed} | row for row in rows]
    return table(summarize(own), compare=config.dataset == "voc12")


def class_table(columns: Mapping[str, Sequence[float | None]], names: Sequence[str], digits: int = 1) -> str:
    """Return a plain-text table with a line for each class.

    Args:
        columns: words above a column to its values in percent; None: the class is not in the split.

    >>> print(class_table({"IoU %": [50.0, None]}, ["cat", "dog"]))
                            IoU %
    cat                      50.0
    dog              not in split
    """

    def cell_of(value: float | None) -> str:
        return "not in split" if value is None or math.isnan(value) else f"{value:.{digits}f}"

    def line(name: str, cells: Sequence[str]) -> str:
        return f"{name:14s}" + "".join(f"{cell:>15s}" for cell in cells)

    cells = [[cell_of(value) for value in values] for values in columns.values()]
    return "\n".join([line("", list(columns)), *map(line, names, zip(*cells, strict=True))])


def quote(entries: Iterable[Published | None]) -> str:
    """Return a line for each published number with its source; None is left out."""
    return "\n".join(
        f"published, {entry.dataset} {entry.part}, {entry.method}, {entry.what}: {entry.value:g} % ({entry.source})"
        for entry in entries
        if entry
    )


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, which a screen reader can walk through cell by cell.

    Args:
        lines: as many texts each, shown as they are: what Markdown or HTML would read in them is escaped.

    >>> print(markdown_table(["method", "mIoU"], [["cam", "52.0"]]))
    | method | mIoU |
    |---|---|
    | cam | 52.0 |
    """
    rows = ["| " + " | ".join(map(as_markdown, line)) + " |" for line in [head, *lines]]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


def show_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Show `markdown_table` in a notebook."""
    from IPython.display import Markdown, display

    display(Markdown(markdown_table(head, lines)))


def main(arguments: list[str]) -> None:
    """Print the table of a run folder; ends the program with a sentence when there is none."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.exit("usage: python -m wsss_lib.results runs/<dataset>")
    try:
        rows = collect(Path(arguments[0]))
    except (DataError, OSError) as error:
        sys.exit(str(error))
    if not rows:
        sys.exit(f"{arguments[0]}: no finished stage with scores")
    print(table(summarize(rows), compare=Path(arguments[0]).name == "voc12"))


if __name__ == "__main__":
    main(sys.argv[1:])
