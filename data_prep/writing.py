"""The one rule that every command follows in writing: it never changes what it has not made itself.

A new file is added; an existing one with the same content is left alone; one with other content is a reason to refuse, before
the first file is written, unless `overwrite` is set. What a command may make anew, such as a data set's label table, it
remembers: a hidden record in the folder holds the hashes of what was written there.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from wsss_lib.core.files import write_atomically
from wsss_lib.errors import DataError

RECORD = ".made_by_data_prep.json"  # name of a file to the SHA-256 of every content that was written to it


def write_new(path: Path, content: bytes | str, overwrite: bool = False, inputs: Sequence[Path] = ()) -> None:
    """Write a file atomically, unless it exists with the same content.

    Args:
        path: the file; its folder is made.
        content: a string is written as UTF-8.
        overwrite: replace another content.
        inputs: files that the content was made from, which are never replaced.

    Raises:
        DataError: the file is one of the inputs, or exists with other content.
        OSError: as `write_atomically`.
    """
    content = content.encode() if isinstance(content, str) else content
    if any(os.path.exists(path) and os.path.exists(given) and os.path.samefile(path, given) for given in inputs):
        raise DataError(f"{path}: is the file that is read; give another name for the one to write")
    if not _is_there(path, content):
        if os.path.lexists(path) and not overwrite:
            raise _taken(path)
        write_atomically(path, partial(Path.write_bytes, data=content))


def check_tables(root: Path, texts: Mapping[str, str], overwrite: bool = False) -> None:
    """Refuse to replace a table that `write_tables` has not made.

    Args:
        root: the data set's folder.
        texts: name of each table below `root` to its new content.
        overwrite: replace it anyway; then nothing is refused.

    Raises:
        DataError: a table exists with other content, which was not written by `write_tables`.
    """
    made = _record(root)
    for name, text in texts.items():
        path = root / name
        if not overwrite and os.path.lexists(path) and not _is_there(path, text.encode()):
            if not path.is_file() or _hash(path.read_bytes()) not in made.get(name, ()):
                raise _taken(path)


def write_tables(root: Path, texts: Mapping[str, str], overwrite: bool = False) -> None:
    """Write the tables of a data set, each atomically: all, or none if one may not be replaced.

    Args:
        root: the data set's folder.
        texts: name of each table below `root` to its new content.
        overwrite: replace tables that others made.

    Raises:
        DataError: as `check_tables`.
        OSError: as `write_atomically`.
    """
    check_tables(root, texts, overwrite)
    made = _record(root)
    after = made | {name: sorted({*made.get(name, ()), _hash(text.encode())}) for name, text in texts.items()}
    if after != made:  # recorded first, so that a killed run's tables are known as its own
        write_atomically(root / RECORD, partial(Path.write_text, data=json.dumps(after, indent=1) + "\n", encoding="utf-8"))
    for name, text in texts.items():
        write_new(root / name, text, overwrite=True)


def description(root: Path, name: str = "dataset.json") -> dict:
    """Return the content of a data set's description; empty when there is no such file.

    Args:
        root: the data set's folder.
        name: of the file.

    Raises:
        DataError: it is not a JSON object.
    """
    path = root / name
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a data set description; correct the file, or give another folder")
    return content


def _taken(path: Path) -> DataError:
    return DataError(
        f"{path}: is there already with other content, which this command has not made; move it away, or give "
        "--overwrite to replace it"
    )


def _is_there(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _record(root: Path) -> dict[str, list[str]]:
    """Return the record of a folder; a damaged one counts as empty."""
    try:
        content = json.loads((root / RECORD).read_text(encoding="utf-8"))
        return {str(name): [str(value) for value in hashes] for name, hashes in content.items()}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return {}
