"""Unpack an archive that others made: every member is checked before the first file is written.

Refused as a whole: paths that lead outside the folder, links and devices, two members of one name (also if only capitals or
the form of an accent differ, as some disks ignore these), archives that grow more than a hundredfold (bombs), encrypted,
truncated or damaged ones, and those that would change an existing file. Each file is written atomically, so an interrupted
run leaves only whole files, and the next one continues.
"""

import gzip
import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from data_prep.download import readable
from wsss_lib.core.files import write_atomically
from wsss_lib.errors import DataError

RATIO = 100  # photographs and label files are packed by less than a tenth of this
SLACK = 1 << 16  # bytes that a tiny archive may have beyond that
BLOCK = 1 << 20  # no header of an honest tar file is longer
MAX_MEMBERS = 300_000  # COCO's training images are 82,783
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)


@dataclass(frozen=True)
class Member:
    """One file or folder of an archive, as its header describes it.

    Attributes:
        name: path inside the archive.
        size: of the unpacked file in bytes.
        kind: "file", "folder", or what else it is, in words.
        packed: bytes that it takes in the archive; None in a tar file, which is compressed as a whole.
        handle: what the archive's module calls it.
    """

    name: str
    size: int
    kind: str
    packed: int | None
    handle: Any  # a ZipInfo or a TarInfo


def unpack(
    archive: Path, folder: Path, place: Callable[[str], str | None], progress: bool = True, overwrite: bool = False
) -> int:
    """Check all members of a .zip, .tar, .tgz or .tar.gz file, then write those that are wanted and not there yet.

    Args:
        archive: the file.
        folder: where the files go; it is made.
        place: path inside the archive to the path below `folder`, or None to leave the file out.
        progress: show a progress bar where there is a terminal.
        overwrite: replace files of another size; without it they are a reason to refuse.

    Returns:
        the number of files written now.

    Raises:
        DataError: the archive is hostile or damaged, or would change an existing file; then nothing was written, except by a
            damaged one.
        FileNotFoundError: there is no such archive.
        OSError: there is too little space.
    """
    try:
        with _members(archive) as (members, open_member):
            wanted = _check(archive, folder, members, place)
            missing = [(member, path) for member, path in wanted if not (path.is_file() and path.stat().st_size == member.size)]
            _check_free(archive, folder, [path for _, path in missing], overwrite)
            _need_space(folder, sum(member.size for member, _ in missing))
            for member, path in tqdm(
                missing, desc=f"unpacking {archive.name}", unit="file", disable=None if progress else True
            ):
                write_atomically(path, partial(_copy, archive, member, open_member))
            return len(missing)
    except DAMAGED as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{archive}: the archive is damaged ({reason}); fetch it again") from None


@contextmanager
def _members(archive: Path) -> Iterator[tuple[Iterator[Member], Callable[[Member], IO[bytes]]]]:
    """Open an archive: its members, and a function that opens one of them."""
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: there is no such archive")
    if archive.suffix == ".zip":
        with _malformed():
            file = zipfile.ZipFile(archive)
        with file:
            yield map(_zip_member, file.infolist()), lambda member: file.open(member.handle)
    elif archive.name.endswith((".tar", ".tgz", ".tar.gz")):
        opened = open(archive, "rb") if archive.suffix == ".tar" else gzip.open(archive)
        with opened:
            with _malformed():
                stream = _Bounded(archive, opened)
                tar = tarfile.open(fileobj=stream, mode="r:")  # type: ignore[call-overload]  # to read it needs no write()
            yield _tar_members(archive, tar), lambda member: tar.extractfile(member.handle)
    else:
        raise DataError(f"{archive}: only .zip, .tar, .tgz and .tar.gz archives can be unpacked")


def _zip_member(info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16
    kind = "folder" if info.filename.endswith("/") else "file"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "a link" if stat.S_ISLNK(mode) else "a device"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        kind = "packed in an unusual way"
    if info.flag_bits & 1:
        kind = "encrypted"
    return Member(info.filename, info.file_size, kind, info.compress_size, info)


class _Bounded:
    """A tar stream that cannot grow without bound, neither through its files nor through its headers."""

    def __init__(self, archive: Path, file: BufferedReader | gzip.GzipFile):
        self.archive, self.file, self.limit = archive, file, RATIO * archive.stat().st_size + 16 * BLOCK

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= BLOCK:
            raise DataError(f"{self.archive}: a header of {size} bytes, as no honest archive has; nothing was unpacked")
        self._grow(self.file.tell() + size)
        return self.file.read(size)

    def seek(self, position: int) -> int:
        self._grow(position)
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()

    def _grow(self, position: int) -> None:
        if position > self.limit:
            raise DataError(f"{self.archive}: the archive grows more than {RATIO}-fold (a bomb); nothing was unpacked")


def _tar_members(archive: Path, file: tarfile.TarFile) -> Iterator[Member]:
    """Yield the members, then make sure that the list ended because the archive did, and that gzip's checksum is right."""
    for info in _headers(file):
        kind = "folder" if info.isdir() else "file" if info.isreg() and info.sparse is None else "a link or a device"
        yield Member(info.name, info.size, kind, None, info)
    file.fileobj.seek(file.offset)  # a broken header ends tarfile's list silently
    end = file.fileobj.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise tarfile.ReadError("it ends in the middle" if len(end) < tarfile.BLOCKSIZE else "a header is broken")
    while file.fileobj.read(BLOCK):
        pass


def _headers(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    with _malformed():
        yield from file


@contextmanager
def _malformed() -> Iterator[None]:
    """Turn the dozen types that the standard library raises on a malformed header into one."""
    try:
        yield
    except (DataError, OSError, *DAMAGED):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"a header is malformed, {type(error).__name__}") from None


def _check(
    archive: Path, folder: Path, members: Iterator[Member], place: Callable[[str], str | None]
) -> list[tuple[Member, Path]]:
    """Return the wanted files with their paths; refuse the whole archive if any member is hostile."""
    size = archive.stat().st_size
    wanted: list[tuple[Member, Path]] = []
    names: set[str] = set()
    folders: set[str] = set()
    total = count = 0
    for count, member in enumerate(members, start=1):
        if count > MAX_MEMBERS:
            raise DataError(f"{archive}: more than {MAX_MEMBERS} members; nothing was unpacked")
        _check_name(archive, member)
        if member.kind not in ("file", "folder"):
            raise DataError(
                f"{archive}: member {member.name!r} is {member.kind}; nothing was unpacked, fetch the archive "
                "again from its official page"
            )
        total += member.size
        if max(total - RATIO * size, member.size - RATIO * (size if member.packed is None else member.packed)) > SLACK:
            raise DataError(
                f"{archive}: the archive grows more than {RATIO}-fold at member {member.name!r} (a bomb); nothing "
                "was unpacked, fetch it again from its official page"
            )
        if member.kind == "folder":
            continue
        name = str(PurePosixPath(member.name))
        target = place(name)
        same = {name} if target is None else {name, f"to {_folded(target)}"}
        if names & same:
            raise DataError(
                f"{archive}: two members would become the file {target or name!r}; nothing was unpacked, fetch the "
                "archive again"
            )
        names |= same
        if target is not None:
            wanted.append((member, folder / target))
            folders |= {f"to {_folded(str(parent))}" for parent in PurePosixPath(target).parents}
    if names & folders:
        both = min(names & folders).removeprefix("to ")
        raise DataError(f"{archive}: {both!r} is both a file and a folder in it; nothing was unpacked, fetch the archive again")
    return wanted


def _folded(name: str) -> str:
    """Return the same string for names that some disk treats as one: capitals, and the forms of an accent."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _check_free(archive: Path, folder: Path, paths: list[Path], overwrite: bool) -> None:
    """Refuse to write where something else already is."""
    for path in paths:
        taken = next(
            (
                parent
                for parent in path.parents
                if parent.is_relative_to(folder) and os.path.lexists(parent) and not parent.is_dir()
            ),
            None,
        )
        if taken or path.is_dir() or os.path.lexists(path) and not overwrite:
            remedy = "move it away" + ("" if taken or path.is_dir() else ", or give --overwrite")
            raise DataError(
                f"{taken or path}: is there already with other content than in {archive}; {remedy}; nothing was unpacked"
            )


def _check_name(archive: Path, member: Member) -> None:
    """Refuse a path that could lead outside the folder on any system, or nowhere."""
    name, path = member.name, PurePosixPath(member.name)
    if member.kind != "folder" and not path.parts or member.size < 0:
        raise DataError(
            f"{archive}: a member {name!r} of {member.size} bytes has no name or no size; nothing was unpacked, "
            "fetch the archive again from its official page"
        )
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable():
        raise DataError(
            f"{archive}: member {name!r} leads outside the folder; nothing was unpacked, fetch the archive again "
            "from its official page"
        )


def _need_space(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"{folder}: unpacking needs {readable(size)}, but only {readable(free)} are free; make room and run again"
        )


def _copy(archive: Path, member: Member, open_member: Callable[[Member], IO[bytes]], temporary: Path) -> None:
    with open_member(member) as source, open(temporary, "wb") as target:
        shutil.copyfileobj(source, target, BLOCK)
    if temporary.stat().st_size != member.size:
        raise DataError(
            f"{archive}: member {member.name!r} has {temporary.stat().st_size} bytes instead of {member.size}; "
            "fetch the archive again"
        )
