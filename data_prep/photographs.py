"""Find the photographs of a folder, as cameras, downloads and operating systems leave it."""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from PIL import Image

from wsss_lib.core.files import IMAGE_FORMATS, is_junk
from wsss_lib.core.texts import is_one_line
from wsss_lib.errors import DataError

try:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    FORMATS: tuple[str, ...] = (*IMAGE_FORMATS, "HEIF")
except ImportError:
    FORMATS = IMAGE_FORMATS

HEIC = (".heic", ".heif")
SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .jif .mpo .png .bmp .dib .webp .tif .tiff .gif .jp2 .j2k .jpx .ppm .pgm .pbm .pnm .avif".split()
) + (HEIC if "HEIF" in FORMATS else ())
# What is a picture for its owner; we only report that it was left out.
OTHER_PICTURES = tuple(
    ".heic .heif .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .svg .psd .xcf .eps .ps .pdf .tga .exr .hdr .jxl .dcm".split()
)
LONGEST_NAME = 255  # bytes, on all usual file systems
NOTHING = {"none", "background"}  # names for photographs of no class
# Folders of data sets that hold all photographs, or masks and labels, whatever is in them.
NO_CLASSES = set("images image img imgs jpegimages photos photographs pictures masks mask labels annotations".split()) | {
    "segmentationclass",
    "segmentationobject",
    "imagesets",
}
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

Note = Callable[[str], object]


class Photograph(NamedTuple):
    """One photograph of a new data set.

    Attributes:
        path: of the file.
        classes: names of what is in it; None: not known yet.
    """

    path: Path
    classes: tuple[str, ...] | None


def composed(text: str) -> str:
    """Return a name with composed accents and without spaces around it: macOS stores 'é' as two characters, tables as one."""
    return unicodedata.normalize("NFC", text).strip()


def is_nothing(name: str) -> bool:
    """Return whether a class's name says that nothing of interest is there: none, background, __background__.

    Args:
        name: in any capitals.
    """
    return composed(name).casefold().strip("_ ") in NOTHING


def image_id(path: Path) -> str:
    """Return the id of a photograph: its file name without the ending, blanks replaced.

    Args:
        path: of the file.

    >>> image_id(Path("holiday/My dog (2).JPG"))
    'My_dog_(2)'
    """
    return re.sub(r"\s+", "_", composed(path.stem))


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder in order; hidden ones and what systems add to folders are skipped.

    Raises:
        DataError: a link leads nowhere, or to a folder that it lies in, which would never end.
    """
    above |= {folder.resolve()}
    for path in sorted(folder.iterdir()):
        if not is_junk(path.name):
            if path.is_symlink() and (not path.exists() or path.resolve() in above):
                raise DataError(f"{path}: the link leads nowhere, or to a folder that it lies in; mend it or take it out")
            if path.is_dir():
                yield from _walk(path, above)
            elif path.is_file():
                yield path


def _folders(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if path.is_dir() and not is_junk(path.name)) if source.is_dir() else []


def find_photographs(files: Iterable[Path], note: Note = print) -> list[Path]:
    """Return those files that are photographs, and say how many pictures of which endings are left out.

    Args:
        files: of any kind.
        note: takes a sentence about what was left out.
    """
    found, renamed, left_out = [], [], Counter[str]()
    for path in files:
        suffix = path.suffix.lower()
        if suffix in SUFFIXES and (suffix not in HEIC or _opens(path)):
            found.append(path)
        elif suffix in OTHER_PICTURES:
            left_out[suffix] += 1
        elif _opens(path):
            renamed.append(path)
    if renamed:
        note(f"left out: {len(renamed)} pictures without the ending of one, the first is {renamed[0].name}; rename them")
    if left_out:
        heic = "; for .heic: pip install -e '.[heic]'" if set(HEIC) & set(left_out) and "HEIF" not in FORMATS else ""
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))
        note(f"left out: {counts}, which cannot be opened here; save them as JPEG{heic}")
    return found


def _opens(path: Path) -> bool:
    """Return whether a file is a picture that can be opened: a HEIC may not open, a download without an ending may."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # Pillow raises one of a dozen types
        return False


def from_folder(source: Path, note: Note = print) -> dict[str, Photograph]:
    """Find the photographs in a folder and below it; other files are left alone.

    Args:
        source: the folder.
        note: takes a sentence about pictures that were left out.

    Returns:
        image id to photograph without classes, ids sorted. Different photographs of one name in two folders have the folder's
        name in their ids.

    Raises:
        DataError: there is no such folder or no photograph in it, or two in one folder have one id.
    """
    if not source.is_dir():
        raise DataError(f"{source}: there is no such folder of photographs")
    found = {name: Photograph(paths[0], None) for name, paths in named(source, find_photographs(_walk(source), note)).items()}
    if not found:
        raise DataError(f"{source}: no photographs were found; their names must end in {', '.join(SUFFIXES)}")
    return found


def from_class_folders(source: Path, note: Note = print) -> tuple[dict[str, Photograph], tuple[str, ...]]:
    """Find the photographs in folders that are named after classes.

    Args:
        source: holds one folder for each class, or the folders train and val (or test), which hold these. A file that lies in
            two class folders has both classes; one in a folder `none` or `background` has no class.
        note: takes sentences about what was left out or joined.

    Returns:
        image id to photograph, ids sorted; the class names, sorted.

    Raises:
        DataError: there is no such folder, no class folder, no photograph in one, or two of one class have one id.
    """
    source = top_folder(source)
    folders = [folder for part in _parts(source) for folder in _folders(part)]
    if not folders:
        reason = "" if source.is_dir() else ", as it is no folder or does not exist"
        raise DataError(
            f"{source}: holds no folders that are named after classes{reason}; make them, or give --labels or --masks"
        )
    names = [composed(folder.name) for folder in folders]
    if {name.casefold() for name in names} <= NO_CLASSES:
        raise DataError(
            f"{source}: {', '.join(names)} are no names of classes; name the folders after what is in the photographs, or say "
            "it with --labels or --masks"
        )
    class_of: dict[Path, str] = {}
    for folder in folders:
        files = find_photographs(_walk(folder), lambda text, folder=folder: note(f"{folder.name}: {text}"))  # type: ignore[misc]
        if not files and not is_nothing(folder.name):
            raise DataError(f"{folder}: no photographs were found; their names must end in {', '.join(SUFFIXES)}")
        class_of |= dict.fromkeys(files, composed(folder.name))
    loose = find_photographs(
        path for part in {source, *_parts(source)} for path in part.iterdir() if path.is_file() and not is_junk(path.name)
    )
    if loose:
        note(
            f"left out: {len(loose)} photographs that lie in no class folder, the first is {loose[0].name}; put "
            "those that show none of the classes into a folder 'none'"
        )
    one_name = same_spelling(class_of.values(), note)
    found = {
        name: Photograph(paths[0], tuple(sorted({one_name[class_of[path]] for path in paths} - {""})))
        for name, paths in named(source, class_of, prefixes=class_of).items()
    }
    return found, tuple(sorted(set(one_name.values()) - {""}))


def class_folder_names(source: Path) -> list[str]:
    """Return the names of the folders that `from_class_folders` takes for classes.

    Args:
        source: folder of the photographs.
    """
    return [composed(folder.name) for part in _parts(top_folder(source)) for folder in _folders(part)]


def given_lists(source: Path, photographs: Mapping[str, Photograph]) -> dict[str, str]:
    """Return for each photograph the list that its folder train, val or test stands for; empty if there are none.

    Args:
        source: folder of the photographs.
        photographs: found below it.

    Returns:
        image id to "train" or "val" or "test"; photographs for tests are for validation if there are no others.
    """
    source = top_folder(source)
    if _parts(source) == [source] or any(path.parent == source for path, _ in photographs.values()):
        return {}
    lists = {name: SPLIT_FOLDERS[path.relative_to(source).parts[0].lower()] for name, (path, _) in photographs.items()}
    if set(lists.values()) == {"train"}:
        return {}
    if "val" not in lists.values():
        lists = {name: "val" if split == "test" else split for name, split in lists.items()}
    return lists


def top_folder(source: Path) -> Path:
    """Return the folder itself, or the one folder in it if an archive put everything into one more.

    Args:
        source: as given by the user.
    """
    folders = _folders(source)
    if (
        len(folders) == 1
        and _folders(folders[0])
        and not any(
            path.suffix.lower() in SUFFIXES and not is_junk(path.name)
            for place in (source, folders[0])
            for path in place.iterdir()
        )
    ):
        return folders[0]
    return source


def _parts(source: Path) -> list[Path]:
    """Return the folders train, val and test if a folder holds no others, else the folder itself."""
    folders = _folders(source)
    if len(folders) > 1 and all(folder.name.lower() in SPLIT_FOLDERS for folder in folders):
        return folders
    return [source]


def named(source: Path, files: Iterable[Path], prefixes: Mapping[Path, str] | None = None) -> dict[str, list[Path]]:
    """Give photographs their ids.

    Args:
        source: the folder below which they all lie.
        files: the photographs.
        prefixes: what goes before the names of different photographs of one name; None: the folder.

    Returns:
        image id to the files that are this photograph: several if the same content lies in several folders under one name.

    Raises:
        DataError: a photograph has no name, or two that differ cannot be told apart by their folders.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if not image_id(path):
            raise DataError(f"{path}: a photograph needs a name; rename it")
        groups[image_id(path)].append(path)
    found: dict[str, list[Path]] = {}
    for name, paths in groups.items():
        copies = _by_content(paths)
        folders = ["_".join(same[0].relative_to(source).parent.parts) for same in copies]
        short = [prefixes[same[0]] for same in copies] if prefixes else folders
        names = [name] if len(copies) == 1 else [_joined(folder, name) for folder in short]
        if len(set(names)) < len(names):
            names = [_joined(folder, name) for folder in folders]
        for new, same in zip(names, copies, strict=True):
            _check_name(new, same[0])
            if new in found:
                raise DataError(f"{same[0]}: has the same name as {found[new][0].name}; rename one of them")
            found[new] = same
    return dict(sorted(found.items()))


def _check_name(name: str, path: Path) -> None:
    """Refuse an id that no list can hold, or that is too long for a file."""
    length = len(os.fsencode(f"{name}.jpg"))
    if not is_one_line(name):
        shown = os.fsencode(path).decode(errors="replace")
        raise DataError(f"{shown!r}: the name has characters that are none of UTF-8's, or cannot be shown; rename it")
    if length > LONGEST_NAME:
        raise DataError(f"{path}: the name is too long, with its folder {length} bytes of {LONGEST_NAME}; rename it")


def _joined(folder: str, name: str) -> str:
    return re.sub(r"\s+", "_", "_".join(filter(None, (composed(folder), name))))


def _by_content(paths: Sequence[Path]) -> list[list[Path]]:
    """Group files with the same content."""
    if len(paths) == 1:
        return [list(paths)]
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path in paths:
        groups[hashlib.sha256(path.read_bytes()).digest()].append(path)
    return list(groups.values())


def same_spelling(names: Iterable[str], note: Note = print) -> dict[str, str]:
    """Return one spelling for class names that differ only in capitals or accents; "" for none and background.

    Args:
        names: one for each time that it is used.
        note: takes a sentence about names that were joined.

    >>> same_spelling(["cat", "Cat", "cat", "none"])
    Cat is taken as cat
    {'cat': 'cat', 'Cat': 'cat', 'none': ''}
    """
    counts = Counter(names)
    chosen: dict[str, str] = {}
    for name, _ in counts.most_common():
        chosen.setdefault(composed(name).casefold(), composed(name))
    result = {name: "" if is_nothing(name) else chosen[composed(name).casefold()] for name in counts}
    for name, one in result.items():
        if one and composed(name) != one:
            note(f"{name} is taken as {one}")
    return result


def find_by_name(photographs: Mapping[str, Photograph], source: Path) -> Callable[[str], list[str]]:
    """Return a function from what a table calls a photograph to the ids that it may mean.

    Paths of any system are understood, with or without folders and ending; capitals count only where they must, and
    leading zeros, which spreadsheets drop, may be missing.

    Args:
        photographs: image id to photograph.
        source: their folder.
    """
    exact: dict[str, set[str]] = defaultdict(set)
    loose: dict[str, set[str]] = defaultdict(set)
    for name, (path, _) in photographs.items():
        parts = Path(composed(os.path.relpath(path, source))).parts
        for start in range(len(parts)):
            whole = "/".join(parts[start:])
            for key in {whole, os.path.splitext(whole)[0]}:
                exact[key].add(name)
                loose[_loosely(key)].add(name)
        exact[name].add(name)
        loose[_loosely(name)].add(name)

    def find(text: str) -> list[str]:
        return next((names for form in _forms(text) if (names := find_form(form))), [])

    def find_form(text: str) -> list[str]:
        parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
        for table, form in ((exact, str), (loose, _loosely)):
            for start in range(len(parts)):
                whole = "/".join(parts[start:])
                stem = os.path.splitext(whole)[0] if whole.lower().endswith((*SUFFIXES, *OTHER_PICTURES)) else whole
                for key in (whole, stem):
                    if names := table.get(form(key)):
                        return sorted(names)
        return []

    return find


def _forms(text: str) -> Iterator[str]:
    """Yield a name unchanged, as the address that it may be, and without what Label Studio adds when it imports a file.

    >>> list(_forms("https://x.org/my%20cat.jpg?w=3"))[1], list(_forms("upload/1/1a2b3c4d-cat.jpg"))[-1]
    ('https://x.org/my cat.jpg', 'upload/1/cat.jpg')
    """
    yield composed(text)
    yield (address := composed(unquote(re.sub(r"(?<=\w)[?#].*", "", text))))
    yield re.sub(r"(^|[/\\])[0-9a-f]{8}-(?=[^/\\]+$)", r"\1", address)


def _loosely(key: str) -> str:
    key = re.sub(r"\s+", "_", key.casefold())
    return key.lstrip("0") or "0" if re.fullmatch(r"\d+(\.\w+)?", key) else key
