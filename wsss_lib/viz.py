"""Figures in one style.

Maps are drawn in cividis over the gray image; label maps carry the class names; unknown pixels are hatched. Every figure
is shown with a text that describes it.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
from matplotlib.rcsetup import cycler
from matplotlib.ticker import NullFormatter
from PIL.PngImagePlugin import PngInfo

from wsss_lib.core.files import IGNORE, read_mask, voc_palette
from wsss_lib.core.texts import as_markdown

BESIDE = 4  # a legend with more entries stands beside the axes


def use_style() -> None:
    """Set fonts, sizes and colors for all figures of the project."""
    matplotlib.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.grid": False,
            "image.cmap": "cividis",
            "image.interpolation": "nearest",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
            "text.parse_math": False,  # a class may be named cat$\\foo$
            # Okabe and Ito's colors, distinguishable for nearly everyone; line styles repeat the distinction for print in gray.
            "axes.prop_cycle": cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"])
            + cycler(linestyle=["-", "--", "-.", ":", "-", "--", "-."]),
        }
    )


def show(figure, alt: str) -> None:
    """Show a figure with a text alternative, print the text as its caption, and close the figure.

    Args:
        alt: what is seen, for readers who cannot see it.

    Raises:
        ValueError: the text is missing or has fewer than four words.
    """
    if len(alt.split()) < 4:
        raise ValueError("a figure needs a text of at least four words that says what is seen")
    import matplotlib.pyplot as plt
    from IPython.display import Image, Markdown, display

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if axis.get_scale() in ("log", "symlog"):  # matplotlib writes their numbers as formulas
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    for legend in (axes.get_legend() for axes in figure.axes if axes.get_legend()):
        for words in legend.get_texts():
            words.set_text(short(words.get_text(), 40))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    text, small = PngInfo(), io.BytesIO()
    text.add_text("Description", alt)
    # 256 colors, fitted to the picture, are enough for the eye and keep a stored notebook below 1 MB.
    PIL.Image.open(buffer).convert("RGB").quantize(256, kmeans=1).save(small, format="png", optimize=True, pnginfo=text)
    display(Image(data=small.getvalue(), format="png", alt=alt))
    display(Markdown(f"*{as_markdown(alt)}*"))


def short(name: str, longest: int = 24) -> str:
    """Return a name as it is drawn: a long one is cut, as it would leave no room for the figure."""
    name = str(name)  # matrices are also named by numbers
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def overlay(image: np.ndarray, scores: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """Paint a score map over the gray image.

    Args:
        image: uint8 (H, W, 3).
        scores: (H, W) in [0, 1].
        strength: fraction of the map's color.

    Returns:
        float (H, W, 3) in [0, 1].
    """
    gray = np.asarray(image, np.float32).mean(2, keepdims=True) / 255
    color = matplotlib.colormaps["cividis"](np.clip(scores, 0, 1))[..., :3]
    return (1 - strength) * gray + strength * color


def draw_image(axes, image: np.ndarray, title: str = "") -> None:
    """Draw an image without axes.

    Args:
        image: uint8 (H, W, 3), RGB.
    """
    axes.imshow(image)
    axes.set_title(title)
    axes.set_axis_off()


def draw_outline(axes, values: np.ndarray, threshold: float | None, linestyle: str = "-") -> None:
    """Draw the line at which a map (h, w) crosses a threshold; none if it does not or the threshold is None."""
    if threshold is not None and np.min(values) < threshold < np.max(values):
        axes.contour(values, levels=[threshold], colors="white", linewidths=3)  # an edge that is visible on any background
        axes.contour(values, levels=[threshold], colors="black", linewidths=1.2, linestyles=linestyle)


def draw_scores(axes, image: np.ndarray, scores: np.ndarray, title: str = "", outline: float | None = None):
    """Draw a score map over the gray image.

    Args:
        image: uint8 (H, W, 3), RGB.
        scores: (H, W) floats in [0, 1].
        outline: threshold whose line is drawn.

    Returns:
        the mappable, for a color bar over 0..1.
    """
    axes.imshow(overlay(image, scores))
    draw_outline(axes, scores, outline)
    axes.set_title(title)
    axes.set_axis_off()
    return matplotlib.cm.ScalarMappable(norm=matplotlib.colors.Normalize(0, 1), cmap="cividis")


def draw_map(axes, values, title: str = ""):
    """Draw a map without an image, e.g. boundaries.

    Args:
        values: (h, w) floats in [0, 1].

    Returns:
        the mappable, for a color bar over 0..1.
    """
    mappable = axes.imshow(values, vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_axis_off()
    return mappable


def draw_labels(axes, labels: np.ndarray, classes: Sequence[str], title: str = "", image: np.ndarray | None = None) -> None:
    """Draw a label map: VOC's colors, the class name written on its largest part, unknown pixels hatched.

    Args:
        labels: uint8 (H, W), 0 background, i + 1 for `classes[i]`, 255 unknown.
        classes: foreground class names; one with an empty name is not labeled.
        image: uint8 (H, W, 3), shown under the labels if given.
    """
    colors = voc_palette()[labels].astype(np.float32) / 255
    colors[labels == IGNORE] = 1.0
    if image is not None:
        colors = 0.65 * colors + 0.35 * np.asarray(image, np.float32).mean(2, keepdims=True) / 255
    axes.imshow(colors)
    unknown = labels == IGNORE
    if unknown.any():
        axes.contourf(unknown.astype(float), levels=[0.5, 1.5], colors="none", hatches=["////"])
    named = (value for value in np.unique(labels) if 0 < value <= len(classes) and classes[value - 1])
    places = sorted((*_inside(labels == value), classes[value - 1]) for value in named)
    lowest = -np.inf
    for row, column, name in places:
        lowest = max(row, lowest + labels.shape[0] / 7)  # names of small panels would cover each other
        axes.text(
            column,
            lowest,
            short(name),
            ha="center",
            va="center",
            fontsize=8,
            color="black",
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
        )
    axes.set_title(title)
    axes.set_axis_off()


def _inside(region: np.ndarray) -> tuple[int, int]:
    """Return the pixel of a region that lies deepest inside it."""
    from scipy.ndimage import distance_transform_cdt

    depth = distance_transform_cdt(np.pad(region, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row), int(column)


Panel = Callable[..., object]  # draws into the axes that it is given; returns what a color bar needs, or None


def image(picture: np.ndarray, title: str = "", dot: tuple[float, float] | None = None) -> Panel:
    """Return a panel for `show_panels`; as `draw_image`, with a dot at (x, y) if there is one."""

    def draw(axes) -> None:
        draw_image(axes, np.asarray(picture), title)
        if dot is not None:
            axes.plot(*dot, "o", color="#D55E00", markersize=10, markeredgecolor="white", markeredgewidth=2)

    return draw


def scores(picture: np.ndarray, values: np.ndarray, title: str = "", outline: float | None = None) -> Panel:
    """Return a panel for `show_panels`; as `draw_scores`."""
    return lambda axes: draw_scores(axes, np.asarray(picture), values, title, outline)


def difference(
    before: np.ndarray, after: np.ndarray, title: str = "", limit: float = 1.0, outlines: tuple[float, float] | None = None
) -> Panel:
    """Return a panel for `show_panels` with what a map has gained (red) and lost (blue); in gray, a mark tells them apart.

    Args:
        before, after: (h, w) floats.
        limit: difference of the darkest red; minus it is the darkest blue.
        outlines: thresholds whose lines are drawn, of the map before (dashed) and after (solid).
    """

    def draw(axes):
        change = np.asarray(after) - np.asarray(before)
        drawn = axes.imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit)
        if change.min() < -limit / 4:
            axes.contourf(change, levels=[-np.inf, -limit / 4], colors="none", hatches=["...."])
        for values, threshold, linestyle in zip((before, after), outlines or (), ("--", "-"), strict=False):
            draw_outline(axes, np.asarray(values), threshold, linestyle)
        axes.set_title(title)
        axes.set_axis_off()
        return drawn

    return draw


def heat_map(values, title: str = "", outline: float | None = None) -> Panel:
    """Return a panel for `show_panels`; as `draw_map`, with the line of a threshold."""

    def draw(axes):
        draw_outline(axes, values, outline)
        return draw_map(axes, values, title)

    return draw


def labels(mask: np.ndarray, classes: Sequence[str], title: str = "", picture: np.ndarray | None = None) -> Panel:
    """Return a panel for `show_panels`; as `draw_labels`."""
    return lambda axes: draw_labels(axes, mask, classes, title, picture)


def change(before: np.ndarray, after: np.ndarray, title: str = "") -> Panel:
    """Return a panel for `show_panels`: where a second label map differs from a first one.

    Args:
        before, after: uint8 (H, W), 0 background, i + 1 for class i.

    A gained object is bright, a lost one black, another name hatched; all else is gray.
    """
    gained, lost = (before == 0) & (after > 0), (before > 0) & (after == 0)
    renamed = (before > 0) & (after > 0) & (before != after)

    def draw(axes) -> None:
        axes.imshow(np.select([gained, lost], [1.0, 0.0], 0.5), cmap="cividis", vmin=0, vmax=1)
        if renamed.any():
            axes.contourf(renamed.astype(float), levels=[0.5, 1.5], colors="none", hatches=["////"])
        axes.set_title(title)
        axes.set_axis_off()

    return draw


def blank(words: str = "") -> Panel:
    """Return a panel for `show_panels` that shows nothing but words."""

    def draw(axes) -> None:
        axes.text(0.5, 0.5, words, ha="center", va="center")
        axes.set_axis_off()

    return draw


def curves(
    x,
    lines: Mapping[str, Sequence],
    title: str = "",
    dots: Mapping[str, tuple[float, float]] | None = None,
    marks: Mapping[str, float] | None = None,
    level: float | None = None,
    band: tuple[float, float] | None = None,
    **settings,
) -> Panel:
    """Return a panel for `show_panels` with lines over x.

    Args:
        x: of all lines.
        lines: words in the legend to values; empty words get no entry.
        dots: words in the legend to a point (x, y) that is marked.
        marks: words in the legend to the position of a vertical line.
        level: height of a dotted horizontal line.
        band: start and end of a gray band on the x axis.
        settings: of the axes, as `axes.set` takes them.
    """

    def draw(axes) -> None:
        for words, values in lines.items():
            axes.plot(x, values, label=words)
        for (words, (at, value)), marker in zip((dots or {}).items(), "os^D", strict=False):
            axes.plot(at, value, marker, color="black", label=words)
        if level is not None:
            axes.axhline(level, color="black", linestyle=":")
        if band:
            axes.axvspan(*band, color="grey", alpha=0.3)
        _finish(axes, title, (*lines, *(dots or {})), marks or {}, settings)

    return draw


def bands(
    x,
    groups: Mapping[str, np.ndarray],
    title: str = "",
    dotted: Mapping[str, Sequence] | None = None,
    legend: bool = True,
    frame: tuple[float, float] | None = None,
    **settings,
) -> Panel:
    """Return a panel for `show_panels` with the means of several runs as lines, and one standard deviation as a band.

    Args:
        x: of all lines.
        groups: words in the legend to values, (runs, len(x)).
        dotted: words of a group to values that are drawn dotted in its color, with hollow marks.
        legend: whether there is one.
        frame: start and end of a dashed frame on the x axis.
    """

    def draw(axes) -> None:
        for (words, values), marker in zip(groups.items(), "os^Dv<>P" * len(groups), strict=False):
            middle, spread = np.mean(values, 0), np.std(values, 0)
            (line,) = axes.plot(x, middle, marker=marker, markersize=4, label=words)
            axes.fill_between(x, middle - spread, middle + spread, color=line.get_color(), alpha=0.2, linewidth=0)
            if dotted and words in dotted:
                axes.plot(x, dotted[words], ":", marker=marker, markerfacecolor="white", color=line.get_color(), linewidth=1)
        if frame:
            axes.axvspan(*frame, facecolor="none", edgecolor="black", linestyle="--", linewidth=0.8)
        axes.set(title=title, **settings)
        if legend:
            axes.legend(fontsize=8)

    return draw


def families(groups: Mapping[str, Sequence[Sequence[float]]], title: str = "", level: float | None = None, **settings) -> Panel:
    """Return a panel for `show_panels` with a line for each run, over its index, and one color for each group of runs.

    Args:
        groups: words in the legend to the runs, each a sequence of numbers.
        level: height of a dotted horizontal line.
    """

    def draw(axes) -> None:
        for number, (words, runs) in enumerate(groups.items()):
            for index, values in enumerate(runs):
                axes.plot(values, color=f"C{number}", linestyle=("-", "--", "-.")[number % 3], label=None if index else words)
        if level is not None:
            axes.axhline(level, color="black", linestyle=":")
        _finish(axes, title, groups, {}, settings)

    return draw


def bars(heights: Sequence[float], title: str = "", **settings) -> Panel:
    """Return a panel for `show_panels` with a bar for each number, at 0, 1, …; `settings` as for `curves`."""

    def draw(axes) -> None:
        axes.bar(range(len(heights)), heights)
        axes.set(title=title, **settings)

    return draw


def histogram(
    values: Mapping[str, np.ndarray], bins: np.ndarray, title: str = "", marks: Mapping[str, float] | None = None, **settings
) -> Panel:
    """Return a panel for `show_panels` with stacked bars: words in the legend to values; the rest as for `curves`."""

    def draw(axes) -> None:
        axes.hist(list(values.values()), bins=bins, stacked=True, label=list(values))
        _finish(axes, title, values, marks or {}, settings)

    return draw


def _finish(axes, title: str, words: Iterable[str], marks: Mapping[str, float], settings: Mapping[str, object]) -> None:
    for mark, at in marks.items():
        axes.axvline(at, color="grey", linestyle=":", label=mark)
    axes.set(title=title, **settings)
    if any((*words, *marks)):
        _legend(axes)


def _legend(axes) -> None:
    """Put many entries beside the axes, where they hide no curve."""
    many = len(axes.get_legend_handles_labels()[1]) > BESIDE
    axes.legend(**{"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False} if many else {})


def matrix(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    text: str = "{:.0f}",
    limits: tuple[float, float] | None = None,
    cmap: str = "cividis",
    notes: Mapping[tuple[int, int], str] | None = None,
    **settings,
) -> Panel:
    """Return a panel for `show_panels` with a table as a picture.

    Args:
        values: (R, C); a cell that is not a number stays empty.
        text: format of the number in each cell; empty: none.
        limits: values of the darkest and the brightest color; None: those of the table.
        cmap: matplotlib's name of the color map.
        notes: row and column of an empty cell to the words in it.
    """

    def draw(axes):
        low, high = limits or (None, None)
        drawn = axes.imshow(values, aspect="auto", cmap=cmap, vmin=low, vmax=high)
        for (row, column), words in (notes or {}).items():
            axes.text(column, row, words, ha="center", va="center", fontsize=7)
        for (row, column), value in np.ndenumerate(values if text else np.empty((0, 0))):
            if np.isnan(value):
                continue
            dark = sum(drawn.cmap(drawn.norm(value))[:3]) < 1.5
            axes.text(column, row, text.format(value), ha="center", va="center", color="white" if dark else "black")
        axes.set_xticks(range(len(columns)), list(map(short, columns)), rotation=90 if len(columns) > 3 else 0)
        axes.set_yticks(range(len(rows)), [short(name, 40) for name in rows])
        axes.set(title=title, **settings)
        return drawn

    return draw


def points(groups: Mapping[str, Sequence[tuple[str, float, float]]], **settings) -> Panel:
    """Return a panel for `show_panels` with marks that carry names.

    Args:
        groups: words in the legend to (name, x, y) of each mark.
    """

    def draw(axes) -> None:
        for (words, members), marker in zip(groups.items(), "os^Dv<>P" * len(groups), strict=False):
            axes.plot([member[1] for member in members], [member[2] for member in members], marker, label=words)
            rest = sorted(member for member in members if np.isfinite(member[1:]).all())
            while rest:  # marks whose texts would cover each other share one, beside the last of them
                _, x, y = rest[0]
                near = sorted(
                    (member for member in rest if abs(member[1] - x) < 5 and abs(member[2] - y) < 1.5),
                    key=lambda member: member[1],
                )
                axes.annotate(
                    ", ".join(short(member[0]) for member in near),
                    near[-1][1:],
                    xytext=(5, -3),
                    textcoords="offset points",
                    fontsize=7,
                )
                rest = [member for member in rest if member not in near]
        axes.set(**settings)
        if groups:
            axes.legend(fontsize=7, loc="upper left")

    return draw


def arrows(field: np.ndarray, title: str = "", every: int = 3) -> Panel:
    """Return a panel for `show_panels` with every n-th vector of a field of (dy, dx), (2, h, w), at half its length."""

    def draw(axes) -> None:
        height, width = field.shape[1:]
        y, x = np.mgrid[:height:every, :width:every]
        axes.quiver(
            x, y, field[1, ::every, ::every], field[0, ::every, ::every], angles="xy", scale_units="xy", scale=2, width=0.003
        )
        axes.set(title=title, xlim=(-1, width), ylim=(height, -1), aspect="equal")
        axes.set_axis_off()

    return draw


def show_class_bars(
    values: Mapping[str, Sequence[float | None]],
    names: Sequence[str],
    alt: str,
    ylabel: str = "IoU %",
    title: str = "",
    colors: np.ndarray | None = None,
    log: bool = False,
) -> None:
    """Draw bars side by side for each class.

    Args:
        values: words in the legend to a value for each name; None: no bar.
        colors: (C, 3) in [0, 1], of a single group's bars.
        log: whether the values are drawn on a logarithmic axis.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(max(6, 0.24 * len(names)), 3))
    width = 0.8 / len(values)
    for number, (words, heights) in enumerate(values.items()):
        axes.bar(
            np.arange(len(names)) + width * (number - (len(values) - 1) / 2),
            np.array(heights, float),
            width,
            label=words,
            hatch="//" if number % 2 else "",
            edgecolor="white",
            color=colors,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names)), list(map(short, names)), rotation=90)
    axes.set(ylabel=ylabel, title=title, xlim=(-0.6, len(names) - 0.4), yscale="log" if log else "linear")
    if len(values) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    show(figure, alt)


def show_bars(
    values: Mapping[str, float], alt: str, title: str = "", hatched: Sequence[str] = (), xlabel: str = "mIoU %"
) -> None:
    """Draw a horizontal bar for each name, the first at the top, on an axis from 0 to 100.

    Args:
        hatched: names whose bars are set apart.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.42 * len(values) + 1))
    bars = axes.barh(list(values), list(values.values()), hatch=["//" if name in hatched else "" for name in values])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, xlim=(0, 100), title=title)
    show(figure, alt)


def show_panels(
    panels: Sequence[Panel] | Sequence[Sequence[Panel]], alt: str, size: float | tuple[float, float] = 2.2, bar: str = ""
) -> None:
    """Draw a row, or rows of equal length, of panels and show them.

    Args:
        panels: of `image`, `scores`, `heat_map`, `labels` and the like, or functions of the axes.
        size: side of a panel in inches, or its width and height.
        bar: what the color bar of the last panel with values says; empty: no bar.
    """
    import matplotlib.pyplot as plt

    rows = [list(row) for row in panels if isinstance(row, Sequence)]
    rows = rows or [[panel for panel in panels if not isinstance(panel, Sequence)]]
    width, height = size if isinstance(size, tuple) else (size, 1.05 * size)
    figure, grid = plt.subplots(len(rows), len(rows[0]), figsize=(width * len(rows[0]), height * len(rows)), squeeze=False)
    mappable: Any = None
    for axes, draw in zip(grid.flat, (draw for row in rows for draw in row), strict=True):
        mappable = draw(axes) or mappable
    if bar:
        figure.colorbar(mappable, ax=grid, shrink=0.8, label=bar)
    show(figure, alt)


def masks_in(folder: Path, data) -> Callable[[str], np.ndarray]:
    """Return the function from an image id to its stored label map, uint8 (H, W); `data` says how many classes there are."""
    return lambda image_id: read_mask(folder / f"{image_id}.png", data.num_classes)


def highest_scores(maps_folder: Path) -> Callable[[str], np.ndarray]:
    """Return the function from an image id to the highest score of each pixel over the classes of its label: (H, W)."""
    from wsss_lib.core.scoring import full_size_maps

    return lambda image_id: full_size_maps(maps_folder, image_id)[1].max(0, initial=0)


def show_examples(
    data,
    ids: Sequence[str],
    columns: Mapping[str, Callable[[str], np.ndarray]],
    alt: str,
    size: float = 1.8,
    iou: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Draw a row for each image: input, ground truth if the data have any, and the columns.

    Args:
        columns: title to a function from an image id to a label map, uint8 (H, W), or to scores in [0, 1], float (H, W).
        iou: title of a column to its images' ids, each to a number in [0, 1] that is added to the title.
    """
    rows = []
    for image_id in ids:
        picture = np.array(data.image(image_id))
        row = [image(picture, f"input {image_id[:14]}")]
        if data.has_masks:
            row.append(labels(data.mask(image_id), data.classes, "ground truth", picture))
        for title, values_of in columns.items():
            value = iou[title][image_id] if iou and title in iou else np.nan
            words = title if np.isnan(value) else f"{title}, IoU {100 * value:.0f} %"
            values = values_of(image_id)
            row.append(
                scores(picture, values, words) if values.dtype.kind == "f" else labels(values, data.classes, words, picture)
            )
        rows.append(row)
    show_panels(rows, alt, size)


def show_training(
    log: Sequence[Mapping[str, float]],
    *panels: Mapping[str, str],
    alt: str,
    title: str = "training loss",
    ylabel: str = "loss",
    chance: float | None = None,
    mean_of: int = 1,
) -> None:
    """Draw a training's log.

    Args:
        log: of `Job.log`; nothing is drawn if it is empty.
        panels: of each panel the names in the log, each to its words in the legend; none: the loss alone.
        alt: as for `show`; `{first[loss]:.2f}` and `{last[loss]:.2f}` stand for values of the first and the last row.
        chance: loss of a network that knows nothing, drawn as a dotted line.
        mean_of: rows over which a curve is averaged, each with those before it.
    """
    import matplotlib.pyplot as plt

    if not log:
        return
    chosen = panels or ({"loss": ""},)
    figure, grid = plt.subplots(1, len(chosen), figsize=(0.5 + 4.5 * len(chosen), 2.6), squeeze=False)
    for axes, names in zip(grid[0], chosen, strict=True):
        for name, words in names.items():
            values = [row[name] for row in log]
            means = [np.mean(values[max(0, end - mean_of) : end]) for end in range(1, len(log) + 1)]
            axes.plot([row["step"] for row in log], means, label=words)
        axes.set(xlabel="step", ylim=(0, None))
        if any(names.values()):
            axes.legend()
    if chance is not None:
        grid[0, 0].axhline(chance, color="grey", linestyle=":")
    grid[0, 0].set(ylabel=ylabel, title=title if len(chosen) == 1 else "")
    show(figure, alt.format(first=log[0], last=log[-1]))


def show_threshold_curves(
    rows: Mapping[str, Mapping], alt: str, title: str = "", marks: Mapping[str, float] | None = None
) -> None:
    """Draw mIoU over the background threshold, with a dot at each curve's best.

    Args:
        rows: name to a row of `metrics.json` with thresholds, curve, threshold and miou.
        title: above the picture; empty: which images.
        marks: words to a threshold that is marked by a vertical line.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8 if len(rows) + len(marks or {}) > BESIDE else 5.5, 2.8))
    for name, row in rows.items():
        axes.plot(row["thresholds"], row["curve"], label=name)
        axes.plot(row["threshold"], row["miou"], "o", color="black")
    for words, threshold in (marks or {}).items():
        axes.axvline(threshold, color="grey", linestyle=":", label=words)
    first = next(iter(rows.values()))
    axes.set(xlabel="background threshold", ylabel="mIoU %", title=title or f"{first['images']} images of {first['split']}")
    if len(rows) > 1 or marks:
        _legend(axes)
    show(figure, alt)


def best_worst_random(values: dict[str, float], count: int = 2, seed: int = 0) -> list[str]:
    """Choose image ids to look at: the best, random and the worst ones by a value, never only the best.

    Args:
        values: image id to a number, high is good; NaN where an image has no mask.
        count: how many of each kind.

    Returns:
        up to 3 * `count` ids: best, random, worst; all, ranked, when there are at most 2 * `count`.

    >>> best_worst_random({"a": 0.1, "b": 0.9, "c": 0.5}, count=1)
    ['b', 'c', 'a']
    """
    ranked = sorted(values, key=lambda image_id: (-np.nan_to_num(values[image_id]), image_id))
    if len(ranked) <= 2 * count:
        return ranked
    rest = ranked[count:-count]
    drawn = np.random.default_rng(seed).choice(len(rest), size=min(count, len(rest)), replace=False)
    return ranked[:count] + [rest[int(index)] for index in drawn] + ranked[len(ranked) - count :]
