"""Get an official file: found in a folder or downloaded, always compared with its size and SHA-256.

A download goes to `NAME.wsss-download`; if interrupted, it is resumed if the server can do that. It gets its name only when its
checksum is correct.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from data_prep.official import Source
from wsss_lib.errors import DataError

BLOCK = 1 << 20
UNFINISHED = ".wsss-download"  # a name that no browser uses: such a file may be continued and deleted
ATTEMPTS = 4  # in a row without a single new byte


def obtain(source: Source, folders: Sequence[Path], fetch: bool = True, progress: bool = True, pause: float = 2.0) -> Path:
    """Return the path of an official file with correct content: an existing one, else a download.

    Args:
        source: the file with its size and checksum.
        folders: where to look for it; a download goes to the first.
        fetch: whether to download it when it is in none of them.
        progress: show a progress bar where there is a terminal.
        pause: seconds between two attempts.

    Raises:
        FileNotFoundError: it is not there and should not be fetched, or the network has failed.
        DataError: a file of this name is there, or comes from the server, but has other content.
    """
    for path in (folder / source.name for folder in folders):
        if path.is_file():
            problem = difference(path, source, progress)
            if problem:
                raise DataError(f"{path}: {problem}; delete it and run again, or fetch it from {source.page}")
            return path
    if not fetch:
        raise FileNotFoundError(
            f"{folders[0] / source.name}: missing; fetch it ({readable(source.size)}) from {source.page} "
            "and put it there, or run again with a network and without --no-download"
        )
    return download(source, folders[0], progress, pause)


def readable(size: int) -> str:
    """Return a number of bytes in readable form, e.g. 2.0 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def difference(path: Path, source: Source, progress: bool = True) -> str:
    """Return what is wrong with a file, or an empty string.

    Args:
        source: its official size and checksum.
        progress: show a progress bar where there is a terminal.
    """
    size = path.stat().st_size
    if size != source.size:
        return f"the file has {size} bytes, the official one {source.size}"
    digest = hashlib.sha256()
    with open(path, "rb") as file, _bar(source, "checking", 0, progress) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != source.sha256:
        return f"the file has SHA-256 {digest.hexdigest()[:16]}…, the official one {source.sha256[:16]}…"
    return ""


def download(source: Source, folder: Path, progress: bool = True, pause: float = 2.0) -> Path:
    """Download an official file, resuming what an earlier attempt left.

    Args:
        source: address, size and checksum.
        folder: where the file goes; it is made.
        progress: show a progress bar where there is a terminal.
        pause: seconds between two attempts.

    Returns:
        the path of the file, whose checksum is correct.

    Raises:
        FileNotFoundError: the server cannot be reached or stopped sending; what has come is kept for the next attempt.
        DataError: the server has another file than the official one.
        OSError: there is too little space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / source.name, folder / f"{source.name}{UNFINISHED}"
    have = part.stat().st_size if part.is_file() else 0
    if shutil.disk_usage(folder).free < source.size - have:
        raise OSError(
            f"{path}: {readable(source.size)} are needed, but only {readable(shutil.disk_usage(folder).free)} are "
            "free; make room or give another folder with --archives"
        )
    failures, reason = 0, "the connection ended early"
    while failures < ATTEMPTS and have != source.size:
        try:
            _receive(source, part, have, progress)
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code == 416:  # the part does not fit the server's file: begin anew
                part.unlink(missing_ok=True)
            elif isinstance(error, HTTPError) and error.code < 500:
                raise FileNotFoundError(
                    f"{source.url}: the server answers {error.code} {error.reason}; fetch {source.name} "
                    f"from {source.page} and put it into {folder}"
                ) from None
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        now = part.stat().st_size if part.is_file() else 0
        failures, have = (0 if now > have else failures + 1), now
        if have != source.size and failures < ATTEMPTS:
            time.sleep(pause * failures)
    if have != source.size:
        raise FileNotFoundError(
            f"{source.url}: {readable(have)} of {readable(source.size)} have come ({reason}); run the same "
            f"command again to go on, or fetch the file from {source.page} and put it into {folder}"
        )
    problem = difference(part, source, progress)
    if problem:
        part.unlink()
        raise DataError(
            f"{source.url}: {problem}, so it was deleted; run again, or fetch it from {source.page} and put it into {folder}"
        )
    os.replace(part, path)
    return path


def _receive(source: Source, part: Path, have: int, progress: bool) -> None:
    """Append to `part` what the server sends from byte `have` on, or write it anew if the server cannot do that."""
    headers = {"User-Agent": "wsss-notebooks", **({"Range": f"bytes={have}-"} if have else {})}
    with urlopen(Request(source.url, headers=headers), timeout=60) as response:
        begin = 0
        if response.status == 206:
            answer = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            begin = int(answer[1]) if answer else -1
        announced = response.headers.get("Content-Length")
        if begin not in (0, have) or (announced or "").isdigit() and begin + int(announced) != source.size:
            raise DataError(
                f"{source.url}: the server offers {announced} bytes from byte {begin} on, which is not a part of "
                f"the official file of {source.size}; see {source.page}"
            )
        with open(part, "ab" if begin else "wb") as file, _bar(source, "downloading", begin, progress) as bar:
            while block := response.read(min(BLOCK, source.size - file.tell() + 1)):
                if file.tell() + len(block) > source.size:
                    raise DataError(
                        f"{source.url}: the server sends more than the official {source.size} bytes; see {source.page}"
                    )
                file.write(block)
                bar.update(len(block))


def _bar(source: Source, verb: str, initial: int, progress: bool) -> tqdm:
    return tqdm(
        total=source.size,
        initial=initial,
        desc=f"{verb} {source.name}",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    )
