"""Published numbers with their sources, and tables that put ours beside them.

`python -m wsss_lib.results runs/toy` prints the table of a finished run.
"""

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from wsss_lib.config import Config
from wsss_lib.core.store import finished_stages
from wsss_lib.core.texts import as_markdown
from wsss_lib.methods import METHODS
from wsss_lib.pipeline import ROWS


@dataclass(frozen=True)
class Published:
    """One number from the literature.

    Attributes:
        method: short name, as of the folder below `runs/<dataset>`.
        what: the stage in words, as in `metrics.json`.
        split: of VOC 2012: train, val or test.
        value: mIoU in percent on PASCAL VOC 2012.
        source: where it is published, and under which conditions.
        start: what the networks of this stage were trained on before; "not stated" where the source does not say.
        pixel_labels: what masks had a part beyond scoring; "none stated" is no proof that there was nothing.
    """

    method: str
    what: str
    split: str
    value: float
    source: str
    start: str = "not stated"
    pixel_labels: str = "none stated"


PUBLISHED = (
    Published(
        "cam",
        "CAM seed",
        "train",
        48.3,
        "IRN paper, as quoted in jiwoon-ahn/irn#4; ResNet-50, threshold 0.15",
        start="ImageNet",
    ),
    Published("cam", "IRN pseudo-mask", "train", 66.5, "IRN paper, as quoted in jiwoon-ahn/irn#4", start="ImageNet"),
    Published("cam", "DeepLab-v2", "val", 63.5, "IRN row of a public results list; ResNet-50"),
    Published("cam", "DeepLab-v2", "test", 64.8, "IRN row of a public results list; ResNet-50"),
    Published(
        "cam",
        "AffinityNet pseudo-mask",
        "train",
        61.0,
        "jiwoon-ahn/psa README; ResNet-38, alpha 4/16/32, no CRF",
        start="ImageNet",
    ),
    Published(
        "cam",
        "AffinityNet pseudo-mask",
        "val",
        60.2,
        "jiwoon-ahn/psa README; ResNet-38, alpha 4/16/32, no CRF",
        start="ImageNet",
    ),
    Published(
        "sccam", "CAM seed", "train", 50.9, "SC-CAM README; parent head of round 3, ResNet-38, threshold 0.15", start="ImageNet"
    ),
    Published(
        "sccam", "CAM seed", "val", 49.6, "SC-CAM README; parent head of round 3, ResNet-38, threshold 0.15", start="ImageNet"
    ),
    Published(
        "sccam",
        "AffinityNet pseudo-mask",
        "train",
        63.4,
        "SC-CAM paper, as quoted in its repository's issue 4",
        start="ImageNet",
    ),
    Published("sccam", "AffinityNet pseudo-mask", "val", 61.2, "SC-CAM paper (unverified)", start="ImageNet"),
    Published("sccam", "DeepLab-v2", "val", 66.1, "benchmark page of the SC-CAM paper; ResNet-101"),
    Published("sccam", "DeepLab-v2", "test", 65.9, "SC-CAM's author in its repository's issue 19; ResNet-101"),
    Published(
        "drs",
        "DeepLab-v2",
        "val",
        69.4,
        "qjadud1994/DRS README, the released checkpoint; COCO-pretrained, saliency maps",
        start="COCO with masks",
        pixel_labels="saliency maps; the epoch of classifier and refinement; masks of COCO",
    ),
    Published(
        "drs",
        "DeepLab-v2 + CRF",
        "val",
        71.2,
        "DRS row of a public results list; COCO-pretrained, saliency maps; the released checkpoint has 70.4",
        start="COCO with masks",
        pixel_labels="saliency maps; the epoch of classifier and refinement; masks of COCO",
    ),
    Published(
        "drs",
        "DeepLab-v2 + CRF",
        "test",
        71.4,
        "abstract of the DRS paper; COCO-pretrained, saliency maps",
        start="COCO with masks",
        pixel_labels="saliency maps; the epoch of classifier and refinement; masks of COCO",
    ),
    Published(
        "drs",
        "DeepLab-v3+ (513 centre crop)",
        "val",
        70.4,
        "qjadud1994/DRS README, the released checkpoint; ImageNet, saliency maps, another set of pixels; with CRF 71.0",
        start="ImageNet",
        pixel_labels="saliency maps; the epoch of classifier and refinement",
    ),
    Published(
        "truth",
        "DeepLab-v3+ (513 centre crop)",
        "val",
        78.3,
        "VainF/DeepLabV3Plus-Pytorch README, ResNet-101, output stride 16, another set of pixels",
        pixel_labels="all training masks",
    ),
    Published(
        "amn",
        "CAM seed",
        "train",
        62.1,
        "LPCAM paper (CVPR 2023), table 2; the best threshold",
        start="ImageNet",
        pixel_labels="threshold",
    ),
    Published(
        "amn",
        "IRN pseudo-mask",
        "train",
        72.2,
        "LPCAM paper, table 2; called the reported one in gaviotas/AMN#2",
        start="ImageNet",
    ),
    Published("amn", "DeepLab-v2", "val", 69.5, "LPCAM paper, tables 3 and 4; ResNet-101 from ImageNet", start="ImageNet"),
    Published("amn", "DeepLab-v2", "test", 69.6, "LPCAM paper, tables 3 and 4; ResNet-101 from ImageNet", start="ImageNet"),
    Published(
        "amn",
        "DeepLab-v2 from COCO",
        "val",
        70.7,
        "from memory (unverified); pixel labels of COCO",
        start="COCO with masks",
        pixel_labels="masks of COCO",
    ),
    Published(
        "amn",
        "DeepLab-v2 from COCO",
        "test",
        70.6,
        "from memory (unverified); pixel labels of COCO",
        start="COCO with masks",
        pixel_labels="masks of COCO",
    ),
    Published("vwe", "DeepLab-v2", "val", 66.3, "VWE README and its figure res.png; ResNet-50 maps, ResNet-101"),
    Published("vwe", "DeepLab-v2", "test", 66.3, "VWE README and its figure res.png; ResNet-50 maps, ResNet-101"),
    Published("vwe", "DeepLab-v2 + CRF", "val", 67.2, "VWE README, with a table of all classes"),
    Published("vwe", "DeepLab-v2 + CRF", "test", 67.3, "VWE README, with a table of all classes"),
    Published(
        "vwl_m",
        "CAM seed",
        "train",
        56.9,
        "VWL README, ResNet-101; background score 0.13 by its program's default",
        start="ImageNet",
    ),
    Published(
        "vwl_m", "DeepLab-v2 + CRF", "val", 68.7, "VWL README, ImageNet initialisation; with CRF (unverified)", start="ImageNet"
    ),
    Published(
        "vwl_m",
        "DeepLab-v2 + CRF",
        "test",
        69.2,
        "VWL README, ImageNet initialisation; with CRF (unverified)",
        start="ImageNet",
    ),
    Published(
        "vwl_l",
        "CAM seed",
        "train",
        57.3,
        "VWL README, ResNet-101; background score 0.13 by its program's default",
        start="ImageNet",
    ),
    Published(
        "vwl_l", "DeepLab-v2 + CRF", "val", 69.2, "VWL README, ImageNet initialisation; with CRF (unverified)", start="ImageNet"
    ),
    Published(
        "vwl_l",
        "DeepLab-v2 + CRF",
        "test",
        69.2,
        "VWL README, ImageNet initialisation; with CRF (unverified)",
        start="ImageNet",
    ),
    Published(
        "rib",
        "CAM at its best threshold",
        "train",
        56.5,
        "RIB paper, from memory (unverified)",
        start="ImageNet",
        pixel_labels="threshold",
    ),
    Published(
        "rib", "CAM seed + CRF", "train", 62.9, "RIB paper, from memory (unverified); threshold not known", start="ImageNet"
    ),
    Published(
        "rib",
        "IRN pseudo-mask",
        "train",
        70.6,
        "RIB paper, from memory (unverified); probably with CRF, as the author says 69.x without in jbeomlee93/RIB#5",
        start="ImageNet",
    ),
    Published("rib", "DeepLab-v2", "val", 68.3, "RIB entry of a public results list; ResNet-101, CRF not stated"),
    Published("rib", "DeepLab-v2", "test", 68.6, "RIB entry of a public results list; ResNet-101, CRF not stated"),
    Published(
        "rib",
        "DeepLab-v2 with saliency",
        "val",
        70.2,
        "as above, with saliency maps (pixel labels)",
        pixel_labels="saliency maps",
    ),
    Published(
        "rib",
        "DeepLab-v2 with saliency",
        "test",
        70.0,
        "as above, with saliency maps (pixel labels)",
        pixel_labels="saliency maps",
    ),
    Published(
        "rib",
        "CAM at its best threshold",
        "train of COCO 2014",
        36.5,
        "RIB paper, from memory (unverified); a user got 34.8 at threshold 0.31, jbeomlee93/RIB#6",
        start="ImageNet",
        pixel_labels="threshold",
    ),
    Published(
        "rib",
        "IRN pseudo-mask",
        "train of COCO 2014",
        45.6,
        "RIB paper, from memory (unverified); a user got 39.9, jbeomlee93/RIB#6",
        start="ImageNet",
    ),
    Published("rib", "DeepLab-v2", "val of COCO 2014", 43.8, "RIB entry of a public results list; ResNet-101"),
    Published(
        "truth",
        "DeepLab-v2",
        "val",
        76.35,
        "kazuto1011/deeplab-pytorch README, Caffe, COCO initialisation",
        start="COCO with masks",
        pixel_labels="all training masks; masks of COCO",
    ),
    Published(
        "truth",
        "DeepLab-v2 + CRF",
        "val",
        77.69,
        "kazuto1011/deeplab-pytorch README, Caffe, COCO initialisation",
        start="COCO with masks",
        pixel_labels="all training masks; masks of COCO",
    ),
)

IMAGES_OF = {"train": 1464, "val": 1449, "test": 1456, "train of COCO 2014": 82783, "val of COCO 2014": 40504}

# IoU in percent of the background and VOC's 20 classes, for (method, what, split); from the same sources.
PUBLISHED_CLASSES = {
    ("vwe", "DeepLab-v2 + CRF", "val"): (
        89.2,
        75.7,
        31.1,
        82.4,
        66.1,
        61.7,
        87.5,
        77.8,
        82.8,
        32.2,
        81.4,
        34.1,
        77.4,
        77.6,
        76.7,
        75.0,
        51.2,
        78.1,
        42.4,
        71.4,
        59.6,
    ),
    ("vwe", "DeepLab-v2 + CRF", "test"): (
        90.3,
        76.9,
        31.6,
        89.1,
        54.8,
        57.8,
        86.4,
        77.8,
        81.8,
        32.2,
        76.0,
        39.3,
        80.3,
        80.3,
        81.8,
        74.3,
        44.5,
        80.1,
        54.5,
        63.0,
        60.4,
    ),
}


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
        row: of `summarize`, scored on VOC 2012.

    Explained in notebook 95, section "Published values".

    >>> published_beside({"method": "cam", "what": "CAM seed", "split": "train", "images": 1464})
    '48.3'
    >>> published_beside({"method": "cam", "what": "CAM seed", "split": "train", "images": 300})
    'refused: 300 images here, 1464 there'
    """
    entry = published(row["method"], row["what"], row["split"])
    if not entry:
        return ""
    there = IMAGES_OF[entry.split]
    return f"{entry.value:g}" if row["images"] == there else f"refused: {row['images']} images here, {there} there"


def collect(run_folder: Path) -> list[dict]:
    """Return the mIoU rows of all finished stages of a run.

    Args:
        run_folder: `runs/<dataset>`.

    Returns:
        rows of `metrics.json` (see `stages.metric_row`), each with method, seed and stage added; without stages that were
        moved aside and without those that report on others.
    """
    return [
        {"method": method, "seed": seed, "stage": name} | row
        for (method, seed), group in finished_stages(run_folder).items()
        for name, stage in group.items()
        for row in stage.metrics()
        if "miou" in row
    ]


def fingerprint(rows: list[dict]) -> str:
    """Return a hash of collected rows, for the stage that reports on them.

    Args:
        rows: from `collect`.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def summarize(rows: list[dict]) -> list[dict]:
    """Join the rows of several seeds.

    Args:
        rows: from `collect`.

    Returns:
        one row for each method, stage, split, number of images and use of a CRF: `miou`, the mean in percent; `spread`, the
        sample standard deviation in points, None for one run; `runs`; and what pixel labels chose. Sorted by method, with
        "truth" last, then in the order of the chain.

    >>> row = {"method": "cam", "what": "CAM seed", "split": "train", "images": 9, "crf": False, "pixel_labels_chose": ""}
    >>> [joined] = summarize([row | {"miou": 40.0}, row | {"miou": 44.0}])
    >>> joined["miou"], round(joined["spread"], 2), joined["runs"]
    (42.0, 2.83, 2)
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["method"], row["what"], row["split"], row["images"], row["crf"]].append(row)
    summary = []
    for (method, what, split, images, crf), members in groups.items():
        values = [row["miou"] for row in members]
        chosen = sorted({row["pixel_labels_chose"] for row in members if row["pixel_labels_chose"]})
        summary.append(
            {
                "method": method,
                "what": what,
                "split": split,
                "images": images,
                "crf": crf,
                "miou": mean(values),
                "spread": stdev(values) if len(values) > 1 else None,
                "runs": len(values),
                "pixel_labels_chose": "; ".join(chosen),
            }
        )
    return sorted(
        summary, key=lambda row: (place_of_method(row["method"]), ROWS.index(row["what"]) if row["what"] in ROWS else len(ROWS))
    )


def place_of_method(method: str) -> tuple[int, str]:
    """Return where a method stands in all tables: the methods in the order of their notebooks, then others, then "truth"."""
    known = list(METHODS)
    return (known.index(method) if method in known else len(known) + (method == "truth"), method)


def with_spread(values: Sequence[float], digits: int = 1) -> str:
    """Return mean and, for several values, sample standard deviation in words.

    Args:
        values: of several runs, at least one.
        digits: after the point.

    Explained in notebook 00, section "Results of this run".

    >>> with_spread([40.0, 44.0]), with_spread([40.0])
    ('42.0 ± 2.8', '40.0')
    """
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(rows: list[dict], compare: bool) -> str:
    """Return a plain-text table of summarized rows.

    Args:
        rows: from `summarize`.
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
            "with" if row["crf"] else "without",
            f"{row['miou']:.1f}{spread}",
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
        names: of the classes.
        digits: after the point.

    >>> print(class_table({"IoU %": [50.0, None]}, ["cat", "dog"]))
                            IoU %
    cat                      50.0
    dog              not in split
    """

    def line(name: str, cells: Sequence[str]) -> str:
        return f"{name:14s}" + "".join(f"{cell:>15s}" for cell in cells)

    cells = [["not in split" if value is None else f"{value:.{digits}f}" for value in values] for values in columns.values()]
    return "\n".join([line("", list(columns)), *map(line, names, zip(*cells, strict=True))])


def quote(entries: Iterable[Published | None]) -> str:
    """Return a line for each published number with its source; None is left out."""
    return "\n".join(
        f"published, VOC 2012 {entry.split}, {entry.method}, {entry.what}: {entry.value:g} % ({entry.source})"
        for entry in entries
        if entry
    )


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, which a screen reader can walk through cell by cell.

    Args:
        head: the columns' names.
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
    """Print the table of a run folder; ends the program with a sentence when there is none.

    Args:
        arguments: the words after the program's name: one run folder.
    """
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.exit("usage: python -m wsss_lib.results runs/<dataset>")
    rows = collect(Path(arguments[0]))
    if not rows:
        sys.exit(f"{arguments[0]}: no finished stage with scores")
    print(table(summarize(rows), compare=Path(arguments[0]).name == "voc12"))


if __name__ == "__main__":
    main(sys.argv[1:])
