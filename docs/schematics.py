"""Draw the mechanisms that the notebooks explain, one SVG each, in one style: `python docs/schematics.py` writes docs/figures.

Boxes are data, rounded boxes are computed, thick frames are what the notebook is about. Grey and one blue are told apart in
print too, as what is blue also has a thick frame or a thick line.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

FOLDER = Path(__file__).resolve().parent / "figures"
BLUE, GREY, PALE, INK = "#0072B2", "#767676", "#F2F2F2", "#1A1A1A"
CHAIN = ("image", "classifier", "CAM", "seed mask", "pseudo-mask", "DeepLab", "prediction")


def save(figure, name: str) -> None:
    """Write a drawing; the same drawing always gives the same bytes."""
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


class Sketch:
    """A drawing of boxes and arrows; positions are in boxes: the centre of a box is (column, row), row 0 at the bottom."""

    width, height = 0.82, 0.52  # of a box

    def __init__(self, columns: float, rows: float):
        self.figure, self.axes = plt.subplots(figsize=(1.55 * columns, 1.0 * rows))
        self.axes.set(xlim=(-0.6, columns - 0.4), ylim=(-0.5, rows - 0.5))
        self.axes.axis("off")
        self.figure.subplots_adjust(0, 0, 1, 1)

    def box(self, at: tuple[float, float], words: str, kind: str = "step", blue: bool = False, size: float = 8.5) -> None:
        """Draw a step (rounded) or data (square corners)."""
        x, y = at[0] - self.width / 2, at[1] - self.height / 2
        style = "round,pad=0,rounding_size=0.12" if kind == "step" else "square,pad=0"
        frame = {"edgecolor": BLUE if blue else GREY, "linewidth": 2.6 if blue else 1.0}
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y), self.width, self.height, boxstyle=style, facecolor="white" if kind == "step" else PALE, **frame
            )
        )
        self.axes.text(*at, words, ha="center", va="center", fontsize=size, color=INK)

    def arrow(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        words: str = "",
        blue: bool = False,
        bend: float = 0.0,
        dashed: bool = False,
        where: tuple[float, float] = (0.0, 0.1),
    ) -> None:
        """Draw an arrow from box to box, with words beside its middle."""
        (x0, y0), (x1, y1) = start, end
        if abs(x1 - x0) >= abs(y1 - y0):
            shift = np.sign(x1 - x0) * self.width / 2
            x0, x1 = x0 + shift, x1 - shift
        else:
            shift = np.sign(y1 - y0) * self.height / 2
            y0, y1 = y0 + shift, y1 - shift
        self.axes.add_patch(
            FancyArrowPatch(
                (x0, y0),
                (x1, y1),
                arrowstyle="-|>",
                mutation_scale=11,
                color=BLUE if blue else INK,
                linewidth=2.2 if blue else 1.1,
                linestyle="--" if dashed else "-",
                connectionstyle=f"arc3,rad={bend}",
                shrinkA=1,
                shrinkB=1,
            )
        )
        if words:
            self.note(((x0 + x1) / 2 + where[0], (y0 + y1) / 2 + where[1]), words, color=BLUE if blue else INK)

    def note(self, at: tuple[float, float], words: str, color: str = INK, size: float = 8, align: str = "center") -> None:
        """Write words without a box."""
        self.axes.text(*at, words, ha=align, va="center", fontsize=size, color=color)

    def chain(self, boxes: Sequence[tuple[tuple[float, float], str, str, bool]]) -> None:
        """Draw boxes (position, words, kind, blue) and the arrows from each to the next."""
        for at, words, kind, blue in boxes:
            self.box(at, words, kind, blue)
        for (start, *_), (end, *_) in zip(boxes, boxes[1:], strict=False):
            self.arrow(start, end)

    def save(self, name: str) -> None:
        """Write the drawing."""
        save(self.figure, name)


def chain(name: str, own: Sequence[str], words: str) -> None:
    """Draw the chain with a notebook's own steps in blue."""
    sketch = Sketch(7, 2.0)
    sketch.chain(
        [
            (
                (column, 0.75),
                step,
                "data" if step in ("image", "CAM", "seed mask", "pseudo-mask", "prediction") else "step",
                step in own,
            )
            for column, step in enumerate(CHAIN)
        ]
    )
    between = {2: "threshold,\nCRF", 3: "random walk\n(IRN, AffinityNet)"}
    for column, step in between.items():
        sketch.note((column + 0.5, 1.2), step, color=GREY, size=7)
    sketch.note((1, 1.2), "image-level label", color=GREY, size=7)
    sketch.note((3, 0.0), words, color=BLUE, size=9)
    sketch.save(name)


def cam() -> None:
    sketch = Sketch(6, 2.6)
    sketch.box((0, 1.5), "image\n3 × H × W", "data")
    sketch.box((1, 1.5), "backbone")
    sketch.box((2, 1.5), "features f\nD × h × w", "data")
    sketch.box((3, 1.5), "average\nover positions")
    sketch.box((4, 1.5), "weights W\nC × D")
    sketch.box((5, 1.5), "logits\nC", "data")
    sketch.box((3, 0.4), "the same W at\nevery position", blue=True)
    sketch.box((4, 0.4), "ReLU,\n÷ maximum", blue=True)
    sketch.box((5, 0.4), "maps M\nC × h × w", "data", blue=True)
    for column in range(5):
        sketch.arrow((column, 1.5), (column + 1, 1.5))
    sketch.arrow((2, 1.5), (3, 0.4), blue=True)
    sketch.arrow((3, 0.4), (4, 0.4), blue=True)
    sketch.arrow((4, 0.4), (5, 0.4), blue=True)
    sketch.arrow((4, 1.5), (3, 0.4), "", dashed=True)
    sketch.note((0.9, 0.4), "Training goes along the top.\nThe map leaves out the average.", align="center")
    sketch.note((4.5, 2.02), "loss: image-level label", color=GREY)
    sketch.save("cam")


def rib() -> None:
    sketch = Sketch(5.7, 3.0)
    sketch.box((0, 2), "trained\nclassifier", "data")
    sketch.box((1.2, 2), "copy of it", "data")
    sketch.box((2.4, 2), "raw scores\nof this image", blue=True)
    sketch.box((3.6, 2), "mean over where\nCAM ≤ τ")
    sketch.box((4.6, 1.2), "push the scores up\nno sigmoid", blue=True, size=7.5)
    sketch.box((2.4, 0.6), "one step of SGD", blue=True)
    sketch.box((3.6, 0.2), "companions:\nsame loss", size=8)
    sketch.box((0.6, 0.6), "add the maps", "data", blue=True)
    sketch.arrow((0, 2), (1.2, 2), "for each image", where=(0, 0.42))
    sketch.arrow((1.2, 2), (2.4, 2))
    sketch.arrow((2.4, 2), (3.6, 2))
    sketch.arrow((3.6, 2), (4.6, 1.2))
    sketch.arrow((4.6, 1.2), (2.4, 0.6), bend=-0.05)
    sketch.arrow((3.6, 0.2), (2.4, 0.6))
    sketch.arrow((2.4, 0.6), (1.2, 2), "K times", blue=True, where=(0.35, 0.1))
    sketch.arrow((1.2, 2), (0.6, 0.6), blue=True)
    sketch.save("rib")


def drs() -> None:
    figure, axes = plt.subplots(figsize=(8.6, 2.7))
    x = np.linspace(0, 1, 300)
    y = np.exp(-(((x - 0.3) / 0.07) ** 2)) + 0.42 * np.exp(-(((x - 0.66) / 0.14) ** 2)) + 0.04
    cut = 0.55 * y.max()
    axes.plot(x, y, color=GREY, linewidth=1.2, linestyle=":")
    axes.plot(x, np.minimum(y, cut), color=BLUE, linewidth=2.6)
    axes.axhline(cut, color=INK, linewidth=0.8, linestyle="--")
    axes.annotate(
        "the peak: above g · max the network sees a constant", (0.3, y.max()), (0.37, y.max() - 0.02), fontsize=9, va="center"
    )
    axes.text(0.995, cut + 0.03, "g · max", ha="right", fontsize=9)
    for where in (0.17, 0.52, 0.6, 0.68, 0.76, 0.84):
        height = np.interp(where, x, np.minimum(y, cut))
        axes.add_patch(
            FancyArrowPatch(
                (where, height - 0.28), (where, height - 0.02), arrowstyle="-|>", mutation_scale=11, color=BLUE, linewidth=2
            )
        )
    axes.text(0.3, 0.2, "no gradient here", ha="center", fontsize=9, color=INK)
    axes.text(0.70, -0.26, "the gradient arrives here: the rest must be recognized, too", ha="center", fontsize=9, color=BLUE)
    axes.set(xlim=(0, 1), ylim=(-0.36, 1.15), yticks=[], xticks=[])
    axes.set_xlabel("positions of one channel: x (dotted) becomes min(x, g · max x) (thick)", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    save(figure, "drs")


def amn() -> None:
    sketch = Sketch(6.6, 2.7)
    sketch.box((0, 1.7), "image", "data")
    sketch.box((1.1, 1.7), "backbone")
    sketch.box((2.2, 1.7), "features x", "data")
    sketch.box((0, 0.5), "image-level\nlabel y", "data")
    sketch.box((1.1, 0.5), "v = W y + b", blue=True)
    sketch.box((3.3, 1.7), "x · v\nchannel by channel", blue=True, size=7.8)
    sketch.box((4.4, 1.7), "ASPP:\nevery pixel\na class", size=7.8)
    sketch.box((5.5, 1.7), "logits z\nK + 1", "data")
    sketch.box((5.5, 0.5), "cross-entropy\nat every pixel", size=7.8)
    sketch.box((4.2, 0.5), "refined seeds\nCAM, thresholds, CRF", "data", size=6.6)
    for start, end in (
        ((0, 1.7), (1.1, 1.7)),
        ((1.1, 1.7), (2.2, 1.7)),
        ((2.2, 1.7), (3.3, 1.7)),
        ((3.3, 1.7), (4.4, 1.7)),
        ((4.4, 1.7), (5.5, 1.7)),
        ((5.5, 1.7), (5.5, 0.5)),
        ((0, 0.5), (1.1, 0.5)),
        ((4.2, 0.5), (5.5, 0.5)),
    ):
        sketch.arrow(start, end)
    sketch.arrow((1.1, 0.5), (3.3, 1.7), "one factor a channel", blue=True, where=(0.35, -0.3))
    sketch.save("amn")


def vwe() -> None:
    sketch = Sketch(6.8, 3.4)
    sketch.box((0, 1.4), "image", "data")
    sketch.box((1.1, 1.4), "backbone")
    sketch.box((2.2, 1.4), "features x", "data")
    sketch.box((3.4, 2.5), "pooling", size=8.5)
    sketch.box((4.6, 2.5), "class head W", blue=False)
    sketch.box((3.4, 1.4), "nearest of K\nwords: codebook", blue=True, size=7.8)
    sketch.box((4.6, 1.4), "histogram of\nwords", "data", blue=True, size=7.8)
    sketch.box((5.7, 1.4), "histogram\nhead", blue=True)
    sketch.box((3.4, 0.3), "pooling", size=8.5)
    sketch.box((4.6, 0.3), "word head:\nwhich words\nare there?", blue=True, size=7.4)
    sketch.arrow((0, 1.4), (1.1, 1.4))
    sketch.arrow((1.1, 1.4), (2.2, 1.4))
    for row in (2.5, 1.4, 0.3):
        sketch.arrow((2.2, 1.4), (3.4, row))
        sketch.arrow((3.4, row), (4.6, row))
    sketch.arrow((4.6, 1.4), (5.7, 1.4))
    sketch.arrow((4.6, 1.4), (4.6, 0.3), "target", dashed=True, where=(0.3, 0))
    sketch.note((5.7, 2.5), "loss 1:\nclasses", size=8)
    sketch.note((5.7, 0.78), "loss 2: classes", size=8)
    sketch.note((5.7, 0.3), "loss 3:\nwords", size=8)
    sketch.save("vwe")


def sccam() -> None:
    sketch = Sketch(6.1, 2.9)
    sketch.box((0, 1.8), "classifier\nof round 0", "step")
    sketch.box((1.25, 1.8), "feature vectors\nof all images", "data", size=7.6)
    sketch.box((2.5, 1.8), "k-means within\neach class", blue=True, size=7.8)
    sketch.box((3.75, 1.8), "sub-category\nlabels", "data", blue=True)
    sketch.box((5.0, 1.8), "two heads:\nclass and\nsub-category", blue=True, size=7.6)
    sketch.box((5.0, 0.6), "maps of the\nclass head", "data")
    for column in range(4):
        sketch.arrow((1.25 * column, 1.8), (1.25 * (column + 1), 1.8))
    sketch.arrow((5.0, 1.8), (5.0, 0.6))
    sketch.axes.add_patch(
        FancyArrowPatch(
            (4.6, 1.55),
            (1.25, 1.5),
            arrowstyle="-|>",
            mutation_scale=11,
            color=BLUE,
            linewidth=2.2,
            connectionstyle="arc3,rad=-0.25",
        )
    )
    sketch.note((2.9, 0.62), "next round: cluster the new network's features", color=BLUE)
    sketch.save("sccam")


def affinity() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.0), gridspec_kw={"width_ratios": (1, 1.15)})
    left.add_patch(Rectangle((4, -0.5), 1, 6, facecolor="#B0B0B0", hatch="///", edgecolor="white"))
    for x in range(9):
        left.scatter([x] * 6, range(6), s=14, color=GREY, zorder=3)
    start, near, far = (2, 3), (1, 1), (6, 3)
    for end, blue in ((near, True), (far, False)):
        left.plot(
            *zip(start, end, strict=True),
            color=BLUE if blue else INK,
            linewidth=2.6 if blue else 1.4,
            linestyle="-" if blue else "--",
            zorder=4,
        )
    left.scatter(*start, s=70, color=INK, zorder=5)
    left.scatter(*near, s=70, color=BLUE, zorder=5)
    left.scatter(*far, s=70, facecolor="white", edgecolor=INK, zorder=5)
    left.text(4.5, 5.75, "boundary B", ha="center", fontsize=8.5)
    left.text(1.7, -1.15, "no boundary on the path:\naffinity near 1", ha="center", fontsize=8.5, color=BLUE)
    left.text(6.8, -1.15, "boundary on the path:\naffinity 1 − max B, near 0", ha="center", fontsize=8.5)
    left.set(xlim=(-0.6, 8.6), ylim=(-1.7, 6.1))
    left.axis("off")
    x = np.arange(24)
    start_values = np.exp(-(((x - 5) / 1.6) ** 2))
    affinities = np.where((np.minimum.outer(x, x) < 13) & (np.maximum.outer(x, x) >= 13), 0.02, 1.0) * (
        abs(x[:, None] - x) <= 2
    )
    transition = affinities / affinities.sum(0)
    spread = np.linalg.matrix_power(transition, 24) @ start_values
    right.bar(x, start_values / start_values.max(), color="#C8C8C8", width=0.9, label="map M: the head only")
    right.plot(x, spread / spread.max(), color=BLUE, linewidth=2.6, label="after the walk, T^t M")
    right.axvline(12.5, color=INK, linewidth=1.4, linestyle="--")
    right.text(12.8, 0.9, "boundary: the walk\nhardly crosses it", fontsize=8.5)
    right.set(xticks=[], yticks=[], xlabel="positions across the object")
    right.xaxis.label.set_size(8.5)
    right.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1.0, 0.72), frameon=False)
    for side in ("top", "right"):
        right.spines[side].set_visible(False)
    figure.tight_layout()
    save(figure, "affinity")


def aspp() -> None:
    figure, panels = plt.subplots(1, 5, figsize=(9.6, 2.3))
    for axes, rate in zip(panels[:4], (1, 2, 3, 4), strict=True):
        axes.set(xlim=(-0.5, 10.5), ylim=(-0.5, 10.5), aspect="equal", xticks=[], yticks=[])
        for line in np.arange(-0.5, 11):
            axes.axhline(line, color="#DDDDDD", linewidth=0.5)
            axes.axvline(line, color="#DDDDDD", linewidth=0.5)
        for row in (-rate, 0, rate):
            for column in (-rate, 0, rate):
                axes.add_patch(Rectangle((5 + column - 0.5, 5 + row - 0.5), 1, 1, facecolor=BLUE, edgecolor="white"))
        axes.set_title(f"3 × 3, dilation {6 * rate}", fontsize=9)
    panels[4].axis("off")
    panels[4].text(
        0.0,
        0.5,
        "four branches see\nfour neighborhoods;\ntheir logits are added",
        fontsize=9,
        va="center",
        transform=panels[4].transAxes,
    )
    figure.tight_layout()
    save(figure, "aspp")


def draw_all() -> None:
    """Write every figure."""
    with matplotlib.rc_context({"svg.hashsalt": "wsss", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        chain("chain", (), "From an image and its label to a mask for every pixel")
        for name, own, words in (
            ("chain_cam", ("classifier", "CAM"), "This notebook: a classifier, and where it looked"),
            ("chain_rib", ("CAM",), "RIB: the classifier is tuned for each image before its map is made"),
            ("chain_drs", ("classifier", "CAM"), "DRS: the classifier may not rely on its most discriminative region"),
            ("chain_amn", ("CAM", "seed mask"), "AMN: a second network learns the seeds pixel by pixel and makes new maps"),
            ("chain_vwe", ("classifier", "CAM"), "VWE: the classifier must tell apart visual words, too"),
            ("chain_sccam", ("classifier", "CAM"), "SC-CAM: the classifier must tell apart sub-categories, too"),
            ("chain_seeds", ("seed mask",), "This notebook: from maps to initial seed masks"),
            ("chain_refinement", ("pseudo-mask",), "This notebook: seed masks teach a network where objects end"),
            ("chain_deeplab", ("DeepLab", "prediction"), "This notebook: a network that needs no label any more"),
        ):
            chain(name, own, words)
        for draw in (cam, rib, drs, amn, vwe, sccam, affinity, aspp):
            draw()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw all schematics of the notebooks as SVG.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where they are written; default %(default)s")
    FOLDER = parser.parse_args().folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw_all()
