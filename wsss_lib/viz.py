"""Figures in one style.

Maps are drawn in cividis over a grey photograph; label maps carry the class names; unknown pixels are hatched. Every figure
is shown with a text that says what is seen.
"""

import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from wsss_lib.core.files import IGNORE, voc_palette


def use_style() -> None:
    """Set fonts, sizes and colours for all figures of the project."""
    matplotlib.rcParams.update({
        "figure.dpi": 80, "savefig.dpi": 80, "font.size": 10, "axes.titlesize": 10, "axes.grid": False, "image.cmap": "cividis",
        "image.interpolation": "nearest", "axes.spines.top": False, "axes.spines.right": False,
        "figure.constrained_layout.use": True,
        # Okabe and Ito's colours, told apart by nearly everybody; line styles repeat the distinction for print in grey.
        "axes.prop_cycle": matplotlib.cycler(
            color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"])
        + matplotlib.cycler(linestyle=["-", "--", "-.", ":", "-", "--", "-."])})


def show(figure, alt: str) -> None:
    """Show a figure with a text alternative, print the text as its caption, and close the figure.

    Args:
        figure: a matplotlib figure.
        alt: what is seen, for readers who cannot see it.

    Raises:
        ValueError: the text is missing or has fewer than four words.
    """
    if len(alt.split()) < 4:
        raise ValueError("a figure needs a text of at least four words that says what is seen")
    import matplotlib.pyplot as plt
    from IPython.display import Image, Markdown, display

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    text, small = PngInfo(), io.BytesIO()
    text.add_text("Description", alt)
    # 256 colours are enough for the eye and keep a stored notebook below 1 MB.
    PIL.Image.open(buffer).convert("RGB").quantize(256).save(small, format="png", optimize=True, pnginfo=text)
    display(Image(data=small.getvalue(), format="png", alt=alt))
    display(Markdown(f"*{alt}*"))


def overlay(image: np.ndarray, scores: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """Paint a score map over a grey photograph.

    Args:
        image: uint8 (H, W, 3).
        scores: (H, W) in [0, 1].
        strength: share of the map's colour.

    Returns:
        float (H, W, 3) in [0, 1].
    """
    grey = np.asarray(image, np.float32).mean(2, keepdims=True) / 255
    colour = matplotlib.colormaps["cividis"](np.clip(scores, 0, 1))[..., :3]
    return (1 - strength) * grey + strength * colour


def draw_image(axes, image: np.ndarray, title: str = "") -> None:
    """Draw a photograph without axes.

    Args:
        axes: matplotlib axes.
        image: uint8 (H, W, 3), RGB.
        title: above the picture.
    """
    axes.imshow(image)
    axes.set_title(title)
    axes.set_axis_off()


def draw_scores(axes, image: np.ndarray, scores: np.ndarray, title: str = ""):
    """Draw a score map over a grey photograph.

    Args:
        axes: matplotlib axes.
        image: uint8 (H, W, 3), RGB.
        scores: (H, W) floats in [0, 1].
        title: above the picture.

    Returns:
        the mappable, for a colour bar over 0..1.
    """
    axes.imshow(overlay(image, scores))
    axes.set_title(title)
    axes.set_axis_off()
    return matplotlib.cm.ScalarMappable(norm=matplotlib.colors.Normalize(0, 1), cmap="cividis")


def draw_map(axes, values, title: str = ""):
    """Draw a map without a photograph, e.g. boundaries.

    Args:
        axes: matplotlib axes.
        values: (h, w) floats in [0, 1].
        title: above the picture.

    Returns:
        the mappable, for a colour bar over 0..1.
    """
    mappable = axes.imshow(values, vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_axis_off()
    return mappable


def draw_labels(axes, labels: np.ndarray, classes: Sequence[str], title: str = "", image: np.ndarray | None = None) -> None:
    """Draw a label map: VOC's colours, the class name written on its largest part, unknown pixels hatched.

    Args:
        axes: matplotlib axes.
        labels: uint8 (H, W), 0 background, i + 1 for `classes[i]`, 255 unknown.
        classes: foreground class names.
        title: above the picture.
        image: uint8 (H, W, 3), shines through when given.
    """
    colours = voc_palette()[labels].astype(np.float32) / 255
    colours[labels == IGNORE] = 1.0
    if image is not None:
        colours = 0.65 * colours + 0.35 * np.asarray(image, np.float32).mean(2, keepdims=True) / 255
    axes.imshow(colours)
    unknown = labels == IGNORE
    if unknown.any():
        axes.contourf(unknown.astype(float), levels=[0.5, 1.5], colors="none", hatches=["////"])
    places = sorted((*_inside(labels == value), classes[value - 1]) for value in np.unique(labels) if 0 < value <= len(classes))
    lowest = -np.inf
    for row, column, name in places:
        lowest = max(row, lowest + labels.shape[0] / 7)  # names of small panels would cover each other
        axes.text(column, lowest, name, ha="center", va="center", fontsize=8, color="black",
                  bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1})
    axes.set_title(title)
    axes.set_axis_off()


def _inside(region: np.ndarray) -> tuple[int, int]:
    """Return the pixel of a region that lies deepest inside it."""
    from scipy.ndimage import distance_transform_cdt

    depth = distance_transform_cdt(np.pad(region, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row), int(column)


Panel = Callable[..., object]  # draws into the axes that it is given; returns what a color bar needs, or None


def image(picture: np.ndarray, title: str = "") -> Panel:
    """Return a panel for `show_panels`; as `draw_image`."""
    return lambda axes: draw_image(axes, np.asarray(picture), title)


def scores(picture: np.ndarray, values: np.ndarray, title: str = "") -> Panel:
    """Return a panel for `show_panels`; as `draw_scores`."""
    return lambda axes: draw_scores(axes, np.asarray(picture), values, title)


def heat_map(values, title: str = "") -> Panel:
    """Return a panel for `show_panels`; as `draw_map`."""
    return lambda axes: draw_map(axes, values, title)


def labels(mask: np.ndarray, classes: Sequence[str], title: str = "", picture: np.ndarray | None = None) -> Panel:
    """Return a panel for `show_panels`; as `draw_labels`."""
    return lambda axes: draw_labels(axes, mask, classes, title, picture)


def show_panels(panels: Sequence[Panel] | Sequence[Sequence[Panel]], alt: str, size: float = 2.2, bar: str = "") -> None:
    """Draw a row, or rows of equal length, of panels and show them.

    Args:
        panels: of `image`, `scores`, `heat_map`, `labels`, or functions of the axes.
        alt: as for `show`.
        size: side of a panel in inches.
        bar: what the color bar of the last panel with values says; empty: no bar.
    """
    import matplotlib.pyplot as plt

    rows = [list(row) for row in panels] if isinstance(panels[0], Sequence) else [list(panels)]
    figure, grid = plt.subplots(len(rows), len(rows[0]), figsize=(size * len(rows[0]), size * 1.05 * len(rows)), squeeze=False)
    mappable = None
    for axes, draw in zip(grid.flat, (draw for row in rows for draw in row), strict=True):
        mappable = draw(axes) or mappable
    if bar:
        figure.colorbar(mappable, ax=grid, shrink=0.8, label=bar)
    show(figure, alt)


def show_training(log: Sequence[Mapping[str, float]], *panels: Mapping[str, str], alt: str, title: str = "training loss",
                  ylabel: str = "loss", chance: float | None = None) -> None:
    """Draw a training's log.

    Args:
        log: of `Job.log`; nothing is drawn if it is empty.
        panels: of each panel the names in the log, each to its words in the legend; none: the loss alone.
        alt: as for `show`; `{first[loss]:.2f}` and `{last[loss]:.2f}` stand for values of the first and the last row.
        title: above a single panel.
        ylabel: beside the first panel.
        chance: loss of a network that knows nothing, drawn as a dotted line.
    """
    import matplotlib.pyplot as plt

    if not log:
        return
    chosen = panels or ({"loss": ""},)
    figure, grid = plt.subplots(1, len(chosen), figsize=(0.5 + 4.5 * len(chosen), 2.6), squeeze=False)
    for axes, names in zip(grid[0], chosen, strict=True):
        for name, words in names.items():
            axes.plot([row["step"] for row in log], [row[name] for row in log], label=words)
        axes.set(xlabel="step", ylim=(0, None))
        if any(names.values()):
            axes.legend()
    if chance is not None:
        grid[0, 0].axhline(chance, color="grey", linestyle=":")
    grid[0, 0].set(ylabel=ylabel, title=title if len(chosen) == 1 else "")
    show(figure, alt.format(first=log[0], last=log[-1]))


def show_threshold_curves(rows: Mapping[str, Mapping], alt: str, title: str = "", marks: Mapping[str, float] | None = None) -> None:
    """Draw mIoU over the background threshold, with a dot at each curve's best.

    Args:
        rows: name to a row of `metrics.json` with thresholds, curve, threshold and miou.
        alt: as for `show`.
        title: above the picture; empty: which images.
        marks: words to a threshold that is marked by a vertical line.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 2.8))
    for name, row in rows.items():
        axes.plot(row["thresholds"], row["curve"], label=name)
        axes.plot(row["threshold"], row["miou"], "o", color="black")
    for words, threshold in (marks or {}).items():
        axes.axvline(threshold, color="grey", linestyle=":", label=words)
    first = next(iter(rows.values()))
    axes.set(xlabel="background threshold", ylabel="mIoU %", title=title or f"{first['images']} images of {first['split']}")
    if len(rows) > 1 or marks:
        axes.legend()
    show(figure, alt)


def best_worst_random(values: dict[str, float], count: int = 2, seed: int = 0) -> list[str]:
    """Choose image ids to look at: the best, random and the worst ones by a value, never the best only.

    Args:
        values: image id to a number, high is good.
        count: how many of each kind.
        seed: of the random ones.

    Returns:
        up to 3 * `count` ids: best, random, worst; all, ranked, when there are at most 2 * `count`.

    >>> best_worst_random({"a": 0.1, "b": 0.9, "c": 0.5}, count=1)
    ['b', 'c', 'a']
    """
    ranked = sorted(values, key=lambda image_id: (-values[image_id], image_id))
    if len(ranked) <= 2 * count:
        return ranked
    rest = ranked[count:-count]
    drawn = np.random.default_rng(seed).choice(len(rest), size=min(count, len(rest)), replace=False)
    return ranked[:count] + [rest[int(index)] for index in drawn] + ranked[len(ranked) - count:]
