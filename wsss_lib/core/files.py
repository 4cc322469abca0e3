"""One reader and one writer for each kind of file: JSON, localization maps, masks, tensors.

Every write goes to a temporary name in the same folder and is then moved into place, so that a file is whole or absent.
Nothing is pickled.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from wsss_lib.errors import DataError, Diverged
from wsss_lib.ops.merging import Views, full_size

IGNORE = 255  # the label of an unknown pixel
# Left alone, Pillow tries some seventy formats, and starts Ghostscript for one of them. The MPO of many phones is a JPEG.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "JPEG2000", "PPM", "AVIF")
JUNK = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin"}  # what archives and systems add to folders
LARGEST_MAPS = 1 << 28  # bytes; those of twenty classes on an image of 10,000 x 10,000 pixels


def is_junk(path: Path | str) -> bool:
    """Return whether a part of a path is hidden, or was added by an archive or a system; give it relative to the named folder.

    >>> is_junk("cats/._a.jpg"), is_junk("__MACOSX/a.jpg"), is_junk("cats/a.jpg")
    (True, True, False)
    """
    return any(part.startswith(".") or part.lower() in JUNK for part in Path(path).parts)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path next to `path`, then move the file into place; on any error nothing remains.

    Args:
        write: writes the whole content to the given path.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full; other errors of `write` pass through.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or set runs_root to another "
            "disk, then run again: finished results are kept"
        ) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that moves to `path` when the block ends; after any error nothing remains.

    Args:
        path: does not exist, is an empty folder, or is a link to one, which stays a link.

    Raises:
        DataError: it cannot be made or written; other errors of the block pass through.
    """
    place = path.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=place.parent, prefix=".writing-"))
    except OSError as error:
        raise DataError(f"{path}: cannot be made ({error.strerror}: {place.parent}); choose another folder") from None
    try:
        yield unfinished
        unfinished.chmod(0o755)
        os.replace(unfinished, place)  # an empty folder is replaced, too
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be written ({reason}); free some space or choose another folder") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, atomically.

    Args:
        content: what the json module can write: dicts, lists, strings, finite numbers, None.

    Raises:
        ValueError: a number is not finite, which JSON cannot express.
        OSError: as `write_atomically`.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"{path}: a number to be recorded is NaN or infinite; a score has nothing to count, or a training has "
            f"diverged ({error})"
        ) from None
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file of a stage.

    Raises:
        DataError: the file is not JSON.
        FileNotFoundError: there is no such file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not valid JSON; delete the folder {path.parent} and run its stage again") from None


def read_text(path: Path, kind: str = "text") -> str:
    """Read a text as editors and Excel write it: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not such text.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 {kind} ({error.reason}); save it as UTF-8, in Excel as 'CSV UTF-8'") from None
    if "\0" in text:
        raise DataError(f"{path}: not a UTF-8 {kind} (it holds zero bytes); save it as one")
    return text


def read_table(path: Path) -> list[tuple[int, list[str]]]:
    """Read a CSV file with commas, semicolons or tabs, with any line endings.

    Returns:
        each line's number and its cells without surrounding spaces; empty lines are left out, as are trailing columns that
        are empty in all lines.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not such a table.
    """
    text = read_text(path, "CSV file")
    delimiter = ","
    if stated := re.match(r"sep=([,;|\t])\s*(\r\n|\r|\n)", text):  # Excel's own first line
        delimiter, text = stated[1], text[stated.end(1) :]
    elif text.strip():
        try:
            delimiter = csv.Sniffer().sniff(text.lstrip().splitlines()[0], ",;\t|").delimiter
        except csv.Error:  # a single column
            pass
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: not a UTF-8 CSV file ({error}); save it again as CSV") from None
    rows = [(number, row) for number, row in rows if any(row)]
    width = max((index + 1 for _, row in rows for index, cell in enumerate(row) if cell), default=0)
    return [(number, row[:width] if len(row) > width else row) for number, row in rows]


def write_maps(
    path: Path, classes: np.ndarray, scores: np.ndarray, size: tuple[int, int], full: Views | np.ndarray | None = None
) -> None:
    """Write localization maps.

    Args:
        classes: (K,) integers, 0-based foreground classes.
        scores: (K, h, w) floats in [0, 1] at stride 4; stored as float16.
        size: (H, W) of the image in pixels.
        full: what the full-size maps are made of, or these maps, (K, H, W) in [0, 1]; None: they are not kept.

    Raises:
        Diverged: a score is NaN, or too large for float16.
        OSError: as `write_atomically`.
    """
    arrays = {"scores": scores} | _arrays_of_full(full)
    with np.errstate(over="ignore"):
        arrays = {name: np.asarray(values, np.float16) for name, values in arrays.items()}
    if not all(np.isfinite(values).all() for values in arrays.values()):
        raise Diverged(
            f"{path}: a score is not finite, or beyond the range of float16; the network has diverged, train it "
            "again with a lower learning rate"
        )
    arrays |= {"classes": np.asarray(classes, np.int16), "size": np.asarray(size, np.int32)}
    if isinstance(full, Views):
        arrays |= {"grid_stride": np.asarray(full.grid_stride, np.int32), "peaks": _peaks(full)}

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # mypy takes them for its options

    write_atomically(path, write)


def _peaks(views: Views) -> np.ndarray:
    """Return each class's largest value over all scales, float32 (K,): divided by it, a map has float16's full precision."""
    return torch.stack([view.amax((1, 2)) for view in views.scales]).amax(0).float().cpu().numpy()


def _arrays_of_full(full: Views | np.ndarray | None) -> dict[str, np.ndarray]:
    if isinstance(full, Views):
        peaks = np.maximum(_peaks(full), np.finfo(np.float32).tiny)[:, None, None]
        return {f"view{number}": view.float().cpu().numpy() / peaks for number, view in enumerate(full.scales)}
    return {} if full is None else {"full": full}


def read_maps(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Read localization maps.

    Returns:
        classes int64 (K,), 0-based; scores float32 (K, h, w) in [0, 1] at stride 4; (H, W) of the image in pixels.

    Raises:
        DataError: the file is missing, broken, or its arrays do not match.

    Explained in notebook 10, section "All images".
    """
    arrays = _checked_maps(path, ("classes", "scores", "size"))
    height, width = arrays["size"].tolist()
    return arrays["classes"].astype(np.int64), arrays["scores"].astype(np.float32), (height, width)


def read_full_size_maps(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read localization maps at the size of their image: merged there if the file allows it, else upsampled from stride 4.

    Returns:
        classes int64 (K,), 0-based; scores float32 (K, H, W) in [0, 1].

    Raises:
        DataError: as `read_maps`.

    Explained in notebook 70, section "Thresholds".
    """
    arrays = _checked_maps(path)
    height, width = arrays["size"].tolist()
    full: Views | np.ndarray | None = arrays["full"].astype(np.float32) if "full" in arrays else None
    if "peaks" in arrays:
        peaks = arrays["peaks"][:, None, None]
        views = [arrays[f"view{number}"].astype(np.float32) * peaks for number in range(len(arrays) - 5)]
        full = Views([torch.from_numpy(view) for view in views], int(arrays["grid_stride"]))
    return arrays["classes"].astype(np.int64), full_size(arrays["scores"], (height, width), full)


def _checked_maps(path: Path, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return arrays of a file of maps, all or those named, after checks of their types, shapes and values."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if sum(entry.file_size for entry in file.zip.infolist()) > LARGEST_MAPS:
                raise DataError(f"it would take more than {LARGEST_MAPS >> 20} MiB")
            arrays = {name: file[name] for name in names or file.files}
            classes, scores, size = arrays["classes"], arrays["scores"], arrays["size"]
    except FileNotFoundError:
        raise DataError(f"{path}: the localization maps are missing; run notebook 10_cam on this split first") from None
    except Exception as error:  # a broken zip file or array header makes NumPy raise one of a dozen types
        raise DataError(f"{path}: not a file of localization maps ({error}); delete it and run its stage again") from None
    if (classes.dtype.kind, scores.dtype.kind, size.dtype.kind) != ("i", "f", "i") or size.shape != (2,) or (size < 1).any():
        raise DataError(
            f"{path}: classes, scores and size must be integers, floats and two positive integers; delete it and "
            "run its stage again"
        )
    if classes.ndim != 1 or scores.shape != (len(classes), *((size - 1) // 4 + 1)):
        raise DataError(
            f"{path}: classes {classes.shape} and scores {scores.shape} do not belong to an image of "
            f"{size[0]}x{size[1]}; delete it and run its stage again"
        )
    if not _full_fits(arrays):
        raise DataError(f"{path}: its maps of full size do not fit its classes and size; delete it and run its stage again")
    if not all(np.isfinite(values).all() for values in arrays.values()):
        raise DataError(f"{path}: a score is NaN or infinite; delete it and run its stage again")
    return arrays


def _full_fits(arrays: dict[str, np.ndarray]) -> bool:
    """Whether the arrays of a file besides `classes`, `scores` and `size` are the maps that `write_maps` writes."""
    rest = {name: values for name, values in arrays.items() if name not in ("classes", "scores", "size")}
    count, size = len(arrays["classes"]), tuple(arrays["size"].tolist())
    if "full" in rest:
        return set(rest) == {"full"} and rest["full"].dtype.kind == "f" and rest["full"].shape == (count, *size)
    if not rest:
        return True
    views = [rest.pop(f"view{number}", None) for number in range(len(rest) - 2)]
    if set(rest) != {"grid_stride", "peaks"} or not views:
        return False
    stride, peaks = rest["grid_stride"], rest["peaks"]
    return (
        (stride.dtype.kind, stride.shape) == ("i", ())
        and 0 < int(stride) <= 64
        and (peaks.dtype.kind, peaks.shape) == ("f", (count,))
        and all(
            view is not None and (view.dtype.kind, view.ndim, len(view)) == ("f", 3, count) and (view.size > 0 or not count)
            for view in views
        )
    )


def voc_palette() -> np.ndarray:
    """Return VOC's colors: uint8 (256, 3), RGB; bit 3j + c of the index becomes bit 7 - j of channel c.

    >>> voc_palette()[1].tolist(), voc_palette()[255].tolist()
    ([128, 0, 0], [224, 224, 192])
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for j in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * j + channel)) & 1) << (7 - j)).astype(np.uint8)
    return palette


def read_image(path: Path) -> Image.Image:
    """Read any whole image file as RGB.

    Raises:
        DataError: the file is missing or cannot be decoded.
    """
    return _read(path, lambda image: image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image file in pixels, without decoding it.

    Raises:
        DataError: the file is missing or not an image.
    """
    return _read(path, lambda image: image.size)


def _read(path: Path, read: Callable[[Image.Image], Any]) -> Any:
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return read(image)
    except FileNotFoundError:
        raise DataError(f"{path}: the image is missing; put it there or take its id out of the list") from None
    except Exception as error:  # Pillow raises one of a dozen types
        reason = "no image" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path}: the image cannot be read ({reason}); fetch it again or take its id out of the list") from None


def read_mask(path: Path, num_classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read the index values of a palette or gray PNG.

    Args:
        num_classes: foreground classes C.
        size: (width, height) of the image that the mask belongs to; None: not checked.

    Returns:
        uint8 (H, W), values 0..C and 255.

    Raises:
        DataError: missing, unreadable, of another size than the image, or with a value that is not a class.

    Explained in notebook 02, section "Masks".
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            mode, mask = image.mode, np.array(image)
    except FileNotFoundError:
        raise DataError(f"{path}: the mask is missing; scoring and training need one for every image of the split") from None
    except Exception as error:  # Pillow raises one of a dozen types
        reason = "no image" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path}: the mask cannot be read ({reason}); make it again") from None
    if mode not in ("P", "L"):
        raise DataError(f"{path}: the mask has mode {mode}; masks are 8-bit palette or gray PNGs of class indices")
    if size and mask.shape[::-1] != size:
        raise DataError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels but its image is {size[0]}x{size[1]}; "
            "make the mask again from the original annotation"
        )
    foreign = mask[(mask > num_classes) & (mask != IGNORE)]
    if foreign.size:
        raise DataError(
            f"{path}: the mask holds the value {foreign[0]}, but there are only {num_classes} classes; "
            "check dataset.json or the mask"
        )
    return mask


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a map of class indices as a palette PNG in VOC's colors.

    Args:
        mask: (H, W) integers in 0..255; stored as uint8.

    Explained in notebook 02, section "Masks".
    """
    image = Image.fromarray(np.asarray(mask, np.uint8), mode="P")
    image.putpalette(voc_palette().tobytes())
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))


def write_tensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write torch tensors as safetensors.

    Args:
        tensors: name to tensor, of any shape, type and device.
        metadata: strings by name, stored in the file's header.
    """
    from safetensors.torch import save  # its own save_file does not report a full disk as an OSError

    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_atomically(path, lambda temporary: temporary.write_bytes(save(tensors, metadata)))


def read_tensors(path: Path) -> dict[str, Any]:
    """Read the torch tensors of a safetensors file, or say in one sentence why that cannot be done.

    Returns:
        name to tensor on the CPU, in the shape and type of the file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not a safetensors file.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such weights file")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own undocumented type
        raise DataError(
            f"{path}: not a safetensors file ({error}); give one that this project has "
            "written, or run the stage again that should write it"
        ) from None


def sha256(paths: Iterable[Path], root: Path) -> str:
    """Return one hash over the names (below `root`) and contents of files.

    Args:
        paths: files below `root`, in any order.
        root: the folder that names are relative to, so that it can be moved.
    """
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
