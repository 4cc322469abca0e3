"""Published numbers with their sources, and tables that put ours beside them.

`python -m wsss_lib.results runs/toy` prints the table of a finished run.
"""

import hashlib
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from wsss_lib.artifacts import read_json


@dataclass(frozen=True)
class Published:
    """One number from the literature; `value` is mIoU in percent on PASCAL VOC 2012."""

    method: str
    what: str
    split: str
    value: float
    source: str


PUBLISHED = (
    Published("cam", "CAM seed", "train", 48.3, "IRN paper, as quoted in jiwoon-ahn/irn#4; ResNet-50, threshold 0.15"),
    Published("cam", "IRN pseudo-mask", "train", 66.5, "IRN paper, as quoted in jiwoon-ahn/irn#4"),
    Published("cam", "DeepLab-v2", "val", 63.5, "IRN row of a public results list; ResNet-50"),
    Published("cam", "DeepLab-v2", "test", 64.8, "IRN row of a public results list; ResNet-50"),
    Published("drs", "DeepLab-v2", "val", 69.4,
              "qjadud1994/DRS README, the released checkpoint; COCO-pretrained, saliency maps"),
    Published("drs", "DeepLab-v2 + CRF", "val", 71.2,
              "DRS row of a public results list; COCO-pretrained, saliency maps; the released checkpoint has 70.4"),
    Published("drs", "DeepLab-v2 + CRF", "test", 71.4, "abstract of the DRS paper; COCO-pretrained, saliency maps"),
    Published("drs", "DeepLab-v3+ (513 centre crop)", "val", 70.4,
              "qjadud1994/DRS README, the released checkpoint; ImageNet, saliency maps, another set of pixels; with CRF 71.0"),
    Published("truth", "DeepLab-v3+ (513 centre crop)", "val", 78.3,
              "VainF/DeepLabV3Plus-Pytorch README, ResNet-101, output stride 16, another set of pixels"),
    Published("truth", "DeepLab-v2", "val", 76.35, "kazuto1011/deeplab-pytorch README, Caffe, COCO initialisation"),
    Published("truth", "DeepLab-v2 + CRF", "val", 77.69, "kazuto1011/deeplab-pytorch README, Caffe, COCO initialisation"),
)


def published(method: str, what: str, split: str) -> Published | None:
    """Return the published number for a stage, or None."""
    matches = (entry for entry in PUBLISHED if (entry.method, entry.what, entry.split) == (method, what, split))
    return next(matches, None)


def collect(run_folder: Path) -> list[dict]:
    """Return the mIoU rows of all finished stages below `runs/<dataset>`, with method, seed and stage added."""
    rows = []
    for record in sorted(Path(run_folder).glob("*/seed*/*/run.json")):
        if record.parent.name.endswith(".stale"):
            continue
        method, seed, stage = record.parent.parts[-3:]
        for row in read_json(record.parent / "metrics.json"):
            if "miou" in row:
                rows.append({"method": method, "seed": int(seed.removeprefix("seed")), "stage": stage} | row)
    return rows


def fingerprint(rows: list[dict]) -> str:
    """Return a hash of collected rows, for the stage that reports on them."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def summarize(rows: list[dict]) -> list[dict]:
    """Join the rows of several seeds: mean, spread (sample standard deviation) and number of runs."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["method"], row["what"], row["split"], row["images"], row["crf"]].append(row)
    summary = []
    for (method, what, split, images, crf), members in groups.items():
        values = [row["miou"] for row in members]
        chosen = sorted({row["pixel_labels_chose"] for row in members if row["pixel_labels_chose"]})
        summary.append({"method": method, "what": what, "split": split, "images": images, "crf": crf, "miou": mean(values),
                        "spread": stdev(values) if len(values) > 1 else None, "runs": len(values),
                        "pixel_labels_chose": "; ".join(chosen)})
    order = {"CAM at its best threshold": 0, "DRS pseudo-label": 1, "CAM seed": 2, "CAM seed + CRF": 3, "IRN pseudo-mask": 4,
             "DeepLab-v2": 5, "DeepLab-v2 + CRF": 6, "DeepLab-v3+": 7, "DeepLab-v3+ + CRF": 8}
    return sorted(summary, key=lambda row: (row["method"] == "truth", row["method"], order.get(row["what"], 9)))


def table(rows: list[dict], compare: bool) -> str:
    """Return a plain-text table of summarized rows.

    Args:
        rows: from `summarize`.
        compare: add the published values of the full VOC 2012; only rows of that data set may stand beside them.
    """
    head = ["method", "stage", "split", "images", "CRF", "mIoU %", "runs", "chosen by pixel labels"]
    lines = []
    for row in rows:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.1f}"
        cells = [row["method"], row["what"], row["split"], str(row["images"]), "with" if row["crf"] else "without",
                 f"{row['miou']:.1f}{spread}", str(row["runs"]), row["pixel_labels_chose"] or "nothing"]
        if compare:
            entry = published(row["method"], row["what"], row["split"])
            cells.append(f"{entry.value:g}" if entry else "")
        lines.append(cells)
    if compare:
        head.append("published, full VOC 2012")
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in [head, rule, *lines])


def main(arguments: list[str]) -> None:
    """Print the table of a run folder."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.exit("usage: python -m wsss_lib.results runs/<dataset>")
    rows = collect(Path(arguments[0]))
    if not rows:
        sys.exit(f"{arguments[0]}: no finished stage with scores")
    print(table(summarize(rows), compare=Path(arguments[0]).name == "voc12"))


if __name__ == "__main__":
    main(sys.argv[1:])
