"""Read masks in the forms that annotation tools write: class indices, palettes, and colors with a legend."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.photographs import Photograph, composed, is_nothing
from wsss_lib.core.files import IGNORE, IMAGE_FORMATS, is_junk, read_text, voc_palette
from wsss_lib.errors import DataError

Color = tuple[int, int, int]
SUFFIXES = tuple(".png .bmp .gif .tif .tiff .ppm .pgm .pbm .jpg .jpeg .webp .jp2 .avif".split())
NUMBERS = ("I", "I;16", "I;16B", "I;16L", "F")  # Pillow's modes of wide integers and of floats
LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")
UNKNOWN = {"void", "ignore", "unknown", "unlabelled", "unlabeled", "ignored"}  # names of legends for the value 255
# What tools add to a photograph's name: 0001_mask.png, mask_0001.png, 0001.jpg.png
ADDED = re.compile(
    r"^(mask|masks|seg|label|gt)[_-]|[_-](mask|masks|seg|segmentation|label|labels|labelids|gt|groundtruth)$|\.(jpe?g|png)$",
    re.IGNORECASE,
)
EXACT = "export the masks as PNG without smoothed edges"


class Legend(NamedTuple):
    """What the colors of masks mean.

    Attributes:
        source: where it is written, for messages.
        names: color to class name, in the legend's order; a gray value v stands as (v, v, v).
        values: whether all are gray values, so that the values of palette images count, not their colors.
    """

    source: str
    names: dict[Color, str]
    values: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the foreground classes, in order."""
        return tuple(dict.fromkeys(name for name in self.names.values() if _special(name) is None))


def _special(name: str) -> int | None:
    return 0 if is_nothing(name) else IGNORE if name.casefold() in UNKNOWN else None


def read_legend(given: str) -> Legend:
    """Read what colors mean.

    Args:
        given: a file with a line for each class, `cat,#ff0000` or `cat,255,0,0` or, for a gray value, `cat,1` (CVAT's
            labelmap.txt and JSON {"cat": "#ff0000"} are understood, too); or the lines themselves: "cat=255; dog=#00ff00".

    Raises:
        DataError: there is no such file, a line cannot be understood, or two classes have one color.
    """
    path = Path(given)
    if "=" in given and not path.is_file():
        source, first, lines = "--legend", 0, [line for line in given.split(";") if line.strip()]
    elif path.is_file():
        source, first, text = str(path), 1, read_text(path)  # where headings may stand
        lines = _lines_of_json(source, text) if text.lstrip()[:1] in ("{", "[") else text.splitlines()
    else:
        raise DataError(f"{given}: there is no such legend; give a file with a line such as cat,#ff0000, or 'cat=#ff0000'")
    names: dict[Color, str] = {}
    gray: list[bool] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or re.match(r"\s*#(?![0-9a-fA-F]{6}\b)", line):
            continue
        entry = _entry(line)
        if entry is None and number == first:
            continue
        if entry is None:
            raise DataError(
                f"{source}: {line.strip()!r:.60} names no class with a color; write it as cat,#ff0000 or cat,255,0,0"
            )
        name, color, is_value = entry
        if names.setdefault(color, name) != name:
            raise DataError(f"{source}: {names[color]} and {name} have one color, {_hex(color)}; give each its own")
        gray.append(is_value)
    legend = Legend(source, names, bool(gray) and all(gray))
    if not legend.classes:
        raise DataError(f"{source}: names no class; it needs a line such as cat,#ff0000")
    return legend


def _entry(line: str) -> tuple[str, Color, bool] | None:
    """Return name, color and whether it is a gray value; None: the line has none of these.

    >>> _entry("cat:128,0,0::"), _entry("64 128 64  Animal")
    (('cat', (128, 0, 0), False), ('Animal', (64, 128, 64), False))
    >>> _entry("3;wine glass;#FF0000"), _entry("cell=255")
    (('wine glass', (255, 0, 0), False), ('cell', (255, 255, 255), True))
    """
    hexadecimal = re.search(r"(?:#|0x)([0-9a-fA-F]{6})\b", line)
    three = re.search(r"(?<![\w.])(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?![\w.])", line)
    one = re.search(r"(?<![\w.-])\d{1,3}(?![\w.])\W*$", line) or re.match(r"\W*\d{1,3}(?![\w.])", line)
    found = hexadecimal or three or one
    if not found:
        return None
    if hexadecimal:
        numbers = list(bytes.fromhex(hexadecimal[1]))
    elif three:
        numbers = [int(part) for part in three.groups()]
    else:
        numbers = [int(re.sub(r"\D", "", found[0]))] * 3
    name = (line[: found.start()] + " " + line[found.end() :]).strip(" \t,;:=|()[]{}\"'")
    name = composed(re.sub(r"^\d+[\s,;:]+", "", name)).strip(" \t,;:=\"'")
    if not name or max(numbers) > 255:
        return None
    return name, (numbers[0], numbers[1], numbers[2]), found is one


def _lines_of_json(source: str, text: str) -> list[str]:
    """Return {"cat": [255, 0, 0]} or [{"name": "cat", "color": "#ff0000"}] as lines of a legend."""
    try:
        content: Any = json.loads(text)
        if isinstance(content, dict) and isinstance(content.get("classes"), list):  # Supervisely's
            content = content["classes"]
        if isinstance(content, list):
            keys = [("name", "label", "title", "class"), ("color", "colour", "rgb", "value", "id")]
            content = {
                next(item[key] for key in keys[0] if key in item): next(item[key] for key in keys[1] if key in item)
                for item in content
            }
        pairs = [
            (str(name), list(color.values()) if isinstance(color, dict) else color)  # {"r": 255, "g": 0, "b": 0}
            for name, color in content.items()
        ]
        if any(isinstance(color, list) and len(color) != 3 for _, color in pairs):
            raise ValueError
    except (ValueError, RecursionError, TypeError, AttributeError, StopIteration, KeyError):
        raise DataError(f'{source}: no legend; a JSON needs the form {{"cat": "#ff0000", "dog": [0, 255, 0]}}') from None
    return [f"{name},{','.join(map(str, color)) if isinstance(color, list) else color}" for name, color in pairs]


class MaskSource(Protocol):
    """Where the masks of photographs come from."""

    values: set[int]  # that were read so far

    def __call__(self, image_id: str) -> np.ndarray | None:
        """Return the mask of a photograph, uint8 (H, W) of class indices and 255; None: it has none."""

    def place(self, image_id: str) -> str:
        """Return where a photograph's mask is, for messages."""


class MaskFolder:
    """The masks of a folder, whatever form they have, as class indices.

    Args:
        folder: of the masks; they have the photographs' names, perhaps in the same folders below it.
        photographs: image id to photograph.
        classes: names of the C classes, in order.
        legend: what colors mean; None: the masks hold class indices.

    Attributes:
        files: image id to its mask.
        without_photograph: masks that belong to none.
        values: class indices that were read so far.

    Raises:
        DataError: there is no such folder, no mask of these photographs, or it is not clear whose a mask is.
    """

    def __init__(
        self, folder: Path, photographs: Mapping[str, Photograph], classes: Sequence[str], legend: Legend | None = None
    ):
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder of masks")
        self.folder, self.legend = folder, legend
        self.classes = {name.casefold(): value for value, name in enumerate(classes, start=1)}
        self.num_classes = len(classes)
        self.values: set[int] = set()
        self._colors: dict[int, tuple[Color, Path]] = {}  # of the palettes seen so far
        masks = [
            path
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in SUFFIXES and path.is_file() and not is_junk(path.relative_to(folder))
        ]
        self.files = _matched(folder, masks, photographs)
        used = set(self.files.values())
        self.without_photograph = [path for path in masks if path not in used]
        if not self.files:
            raise DataError(
                f"{folder}: there is no mask of any photograph; masks need the photographs' names, as "
                f"{next(iter(photographs), 'photograph')}.png"
            )

    def __call__(self, image_id: str) -> np.ndarray | None:
        """Return the mask of a photograph, uint8 (H, W) of class indices and 255; None: it has none.

        Raises:
            DataError: it cannot be read, or holds what is not a class.
        """
        if image_id not in self.files:
            return None
        path = self.files[image_id]
        try:
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                pages = getattr(image, "n_frames", 1)
                image.load()
        except Exception as error:  # Pillow raises one of a dozen types
            reason = "no image" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(f"{path}: the mask cannot be read ({reason}); make it again") from None
        if image.format in LOSSY:
            raise DataError(f"{path}: the mask is a {image.format}, which blurs the values of its pixels; {EXACT}")
        if pages > 1:
            raise DataError(f"{path}: the file holds {pages} pictures, and a mask is one; save the one that is meant")
        mask = self._by_legend(image, path) if self.legend else self._indices(image, path)
        self.values |= set(np.unique(mask).tolist())
        foreign = mask[(mask > self.num_classes) & (mask != IGNORE)]
        if foreign.size:
            raise DataError(
                f"{path}: the mask holds the value {foreign[0]}, but there are only {self.num_classes} classes; check "
                "--classes or the mask, or say with --legend what the values mean"
            )
        return mask.astype(np.uint8)

    def place(self, image_id: str) -> str:
        """Return where a photograph's mask is, or should be."""
        return str(self.files.get(image_id, self.folder / f"{image_id}.png"))

    def _indices(self, image: Image.Image, path: Path) -> np.ndarray:
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if image.mode == "P":
            mask = np.asarray(image)
            self._check_palette(mask, image, path)
            return mask
        if image.mode in ("L", *NUMBERS):
            return _whole_numbers(image, path)
        colors = _colors_of(image, path)
        if not (colors == colors[..., :1]).all():
            seen = np.unique(colors.reshape(-1, 3), axis=0)[:4].tolist()
            raise DataError(
                f"{path}: the mask is a picture of colors ({', '.join(_hex(color) for color in seen)}, …); say with "
                "--legend which class each color is, in a file with lines such as cat,#ff0000"
            )
        return colors[..., 0]

    def _by_legend(self, image: Image.Image, path: Path) -> np.ndarray:
        assert self.legend
        if image.mode in NUMBERS or image.mode == "P" and self.legend.values:
            gray = _whole_numbers(image, path)
            if gray.max(initial=0) > 255:
                raise DataError(f"{path}: the mask has 16-bit values up to {gray.max()}; save it with 8 bits")
            colors = np.repeat(gray[..., None], 3, -1).astype(np.uint8)
        else:
            colors = _colors_of(image, path)
        codes = colors.astype(np.int64) @ (65536, 256, 1)
        mask = np.zeros(codes.shape, np.uint8)
        for code in np.unique(codes).tolist():
            color = (code >> 16, code >> 8 & 255, code & 255)
            name = self.legend.names.get(color)
            if name is None and color == (0, 0, 0):  # black is background, unless the legend says otherwise
                continue
            if name is None and self.legend.values and code == 0xFFFFFF:
                mask[codes == code] = IGNORE
                continue
            if name is None:
                raise DataError(
                    f"{path}: the mask holds the color {_hex(color)}, which {self.legend.source} does not name; {EXACT}"
                )
            value = _special(name)
            if value is None and name.casefold() not in self.classes:
                raise DataError(f"{path}: the mask shows {name!r}, which is none of the classes of the labels; check both")
            mask[codes == code] = self.classes[name.casefold()] if value is None else value
        return mask

    def _check_palette(self, mask: np.ndarray, image: Image.Image, path: Path) -> None:
        """Refuse palettes in which the values mean something other than their order."""
        palette = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
        of_voc = {tuple(color): index for index, color in reversed(list(enumerate(voc_palette().tolist())))}
        for value in np.unique(mask[mask < len(palette)]).tolist():
            color: Color = tuple(palette[value].tolist())
            official = of_voc.get(color, value)
            if official != value and (official < 21 or official == IGNORE) and color != (value, value, value):
                raise DataError(
                    f"{path}: the palette has another order than the classes: the value {value} has the color {_hex(color)} "
                    f"of {official}; save the masks as gray PNGs of class indices, or give --legend"
                )
            first, where = self._colors.setdefault(value, (color, path))
            if first != color:
                raise DataError(
                    f"{path}: the value {value} has the color {_hex(color)} here and {_hex(first)} in {where.name}, so that "
                    "the order of the palettes differs; say with --legend what the colors mean"
                )


def _hex(color: Iterable[int]) -> str:
    return "#" + bytes(color).hex()


def _whole_numbers(image: Image.Image, path: Path) -> np.ndarray:
    """Return the values of a mask that holds numbers, int64 (H, W)."""
    values = np.asarray(image)
    wrong = values[~((values >= 0) & (values == np.floor(values)))]  # also for NaN
    if wrong.size:
        raise DataError(
            f"{path}: the mask holds the value {wrong[0]:g}; masks hold whole numbers, 0 and the classes, and 255 for unknown"
        )
    return values.astype(np.int64)


def _colors_of(image: Image.Image, path: Path) -> np.ndarray:
    """Return uint8 (H, W, 3); transparent pixels are black."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info and image.mode != "P":
        pixels = np.asarray(image.convert("RGBA"))
        if not np.isin(pixels[..., 3], (0, 255)).all():
            raise DataError(f"{path}: the mask has pixels that are half transparent; {EXACT}")
        return np.where(pixels[..., 3:] == 0, np.uint8(0), pixels[..., :3])
    return np.asarray(image.convert("RGB"))


def _matched(folder: Path, masks: Sequence[Path], photographs: Mapping[str, Photograph]) -> dict[str, Path]:
    """Return image id to its mask: by folder and name, by the id, or by the name if one photograph and one mask have it."""
    plain: dict[str, list[Path]] = defaultdict(list)
    stripped: dict[str, list[Path]] = defaultdict(list)
    for path in masks:
        for stem in _keys(path.relative_to(folder)):
            plain[stem].append(path)
            stripped[_strip(stem)].append(path)
    stems = Counter(_keys(path)[-1] for path, _ in photographs.values())
    found: dict[str, Path] = {}
    for name, (path, _) in photographs.items():
        *long, short = _keys(path)
        for table in (plain, stripped):
            candidates = next((table[key] for key in (*long, name.casefold(), short) if key in table), [])
            by_short = short in table and candidates is table[short] and name.casefold() != short
            if len(candidates) > 1 or candidates and by_short and stems[short] > 1:
                raise DataError(
                    f"{candidates[0]}: is not the only mask of this name, or not of one photograph only; name masks by the "
                    f"photographs' ids, as {name}.png, or put them into the same folders"
                )
            if candidates:
                found[name] = candidates[0]
                break
    return found


def _keys(path: Path) -> list[str]:
    """Return folder/stem, if there is a folder, and stem; in lowercase, with composed accents."""
    stem = composed(path.stem).casefold()
    return [*([f"{composed(path.parent.name).casefold()}/{stem}"] if path.parent.name else []), stem]


def _strip(stem: str) -> str:
    folder, _, name = stem.rpartition("/")
    while (shorter := ADDED.sub("", name, count=1)) not in (name, ""):
        name = shorter
    return f"{folder}/{name}" if folder else name
