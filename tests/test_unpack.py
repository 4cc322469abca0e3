"""Unpacking archives of strangers: what is hostile or damaged writes nothing that is not whole."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.unpack import unpack
from wsss_lib.errors import DataError

CONTENT = {"top/a.txt": b"first", "top/deep/b.bin": os.urandom(3000), "other/c.txt": b"left out"}


def place(name: str) -> str | None:
    return name.removeprefix("top/") if name.startswith("top/") else None


def zip_of(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def tar_of(path: Path, content: dict[str, bytes], change=lambda info: None) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as file:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            change(info)
            file.addfile(info, io.BytesIO(data))
    return path


def archive_of(path: Path, content: dict[str, bytes]) -> Path:
    return (zip_of if path.suffix == ".zip" else tar_of)(path, content)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


KINDS = ("x.zip", "x.tar", "x.tgz", "x.tar.gz")


@pytest.mark.parametrize("name", KINDS)
def test_wanted_files_are_written_and_a_second_run_does_nothing(tmp_path, name):
    archive, folder = archive_of(tmp_path / name, CONTENT), tmp_path / "out"
    assert unpack(archive, folder, place) == 2
    assert files(folder) == {"a.txt": b"first", "deep/b.bin": CONTENT["top/deep/b.bin"]}
    assert unpack(archive, folder, place) == 0


@pytest.mark.parametrize("name", KINDS)
def test_an_interrupted_run_is_completed(tmp_path, name):
    archive, folder = archive_of(tmp_path / name, CONTENT), tmp_path / "out"
    unpack(archive, folder, place)
    (folder / "a.txt").unlink()
    (folder / "deep/b.bin").write_bytes(b"half")
    before = files(folder)
    with pytest.raises(DataError, match=r"b.bin: is there already with other content .*--overwrite"):
        unpack(archive, folder, place)
    assert files(folder) == before
    assert unpack(archive, folder, place, overwrite=True) == 2
    assert files(folder)["deep/b.bin"] == CONTENT["top/deep/b.bin"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("member", ["../x", "top/../../x", "/etc/x", "top\\..\\x", "C:/x", "top/a\nb"])
def test_a_path_that_leads_outside_is_refused(tmp_path, name, member):
    archive = archive_of(tmp_path / name, {"top/good.txt": b"1", member: b"2"})
    with pytest.raises(DataError, match="leads outside the folder; nothing was unpacked"):
        unpack(archive, tmp_path / "out", lambda name: name)
    assert not (tmp_path / "out").exists() and set(files(tmp_path)) == {name}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_tar_files_are_refused(tmp_path, kind):
    def change(info):
        if info.name == "top/bad":
            info.type, info.linkname, info.size = kind, "../../etc/passwd", 0

    archive = tar_of(tmp_path / "x.tar", {"top/a": b"1", "top/bad": b""}, change)
    with pytest.raises(DataError, match="'top/bad' is a link or a device; nothing was unpacked"):
        unpack(archive, tmp_path / "out", place)
    assert not (tmp_path / "out").exists()


def test_links_and_encrypted_files_in_zip_files_are_refused(tmp_path):
    link = zipfile.ZipInfo("top/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="'top/link' is a link"):
        unpack(tmp_path / "x.zip", tmp_path / "out", place)
    data = bytearray(zip_of(tmp_path / "y.zip", CONTENT).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag "encrypted" of the first entry of the directory
    (tmp_path / "y.zip").write_bytes(data)
    with pytest.raises(DataError, match="is encrypted"):
        unpack(tmp_path / "y.zip", tmp_path / "out", place)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
@pytest.mark.parametrize("member", ["top/zeros", "elsewhere/zeros"])
def test_a_bomb_is_refused_by_its_ratio(tmp_path, name, member):
    archive = archive_of(tmp_path / name, {"top/a.txt": b"1", member: bytes(4_000_000)})
    assert archive.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"more than 100-fold at member .*zeros' \(a bomb\); nothing was unpacked"):
        unpack(archive, tmp_path / "out", place)
    assert not (tmp_path / "out").exists()


def test_many_small_bombs_are_refused_together(tmp_path):
    archive = tar_of(tmp_path / "x.tgz", {f"top/{number}": bytes(30_000) for number in range(200)})
    with pytest.raises(DataError, match="100-fold"):
        unpack(archive, tmp_path / "out", place)


def test_a_bomb_in_a_header_or_after_the_end_of_a_tar_file_is_refused(tmp_path):
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 50_000_000
    with gzip.open(tmp_path / "x.tgz", "wb") as file:
        file.write(long_name.tobuf(tarfile.GNU_FORMAT) + bytes(50_000_000))
    with pytest.raises(DataError, match="a header of 50000.* bytes"):
        unpack(tmp_path / "x.tgz", tmp_path / "out", place)
    with gzip.open(tmp_path / "y.tgz", "wb") as file:
        file.write(tar_of(tmp_path / "y.tar", CONTENT).read_bytes() + bytes(50_000_000))
    with pytest.raises(DataError, match="100-fold"):
        unpack(tmp_path / "y.tgz", tmp_path / "out", place)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", KINDS)
def test_two_members_of_one_name_or_for_one_file_are_refused(tmp_path, name):
    archive = archive_of(tmp_path / name, {"a/1.jpg": b"1", "b/1.jpg": b"2"})
    with pytest.raises(DataError, match="two members would become the file '1.jpg'"):
        unpack(archive, tmp_path / "out", lambda member: Path(member).name)
    assert not (tmp_path / "out").exists()


ODD = {
    "empty name": ({"": b"1"}, "has no name or no size"),
    "dot": ({"./": b"", ".": b"1"}, "has no name or no size"),
    "file and folder": ({"a": b"1", "a/b": b"2"}, "both a file and a folder"),
    "folder and file": ({"a/b/c": b"1", "a/B": b"2"}, "both a file and a folder"),
    "upper case": ({"a/x.jpg": b"1", "A/X.JPG": b"2"}, "two members would become the file"),
    "two forms of a letter": ({"caf\u00e9": b"1", "cafe\u0301": b"2"}, "two members would become the file"),
    "long s": ({"a\u017f": b"1", "as": b"2"}, "two members would become the file"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ODD)
def test_names_that_no_two_files_can_have_are_refused(tmp_path, name, kind):
    content, words = ODD[kind]
    if (name, kind) == ("x.zip", "empty name"):  # which zipfile does not write
        archive = zip_of(tmp_path / name, {"QQ": b"1"})
        archive.write_bytes(archive.read_bytes().replace(b"QQ", b"\0Q"))
    else:
        archive = archive_of(tmp_path / name, content)
    with pytest.raises(DataError, match=words):
        unpack(archive, tmp_path / "out", lambda member: member)
    assert not (tmp_path / "out").exists()


def sparse_by_pax(records: dict[str, str]) -> bytes:
    """Return a tar file whose one member claims to be sparse."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("top/a")
        info.size, info.pax_headers = 3, records
        archive.addfile(info, io.BytesIO(b"abc"))
    return file.getvalue()


@pytest.mark.parametrize(
    "records",
    [
        {"GNU.sparse.map": "1,x"},
        {"GNU.sparse.map": "1"},
        {"GNU.sparse.size": "x"},
        {"GNU.sparse.realsize": "-5"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"size": "-512"},
        {"size": "x"},
        {"GNU.sparse.offset": "1"},
    ],
)
@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
def test_malformed_headers_give_a_sentence(tmp_path, records, name):
    content = sparse_by_pax(records)
    (tmp_path / name).write_bytes(content if name == "x.tar" else gzip.compress(content))
    try:
        unpack(tmp_path / name, tmp_path / "out", place)
    except DataError as error:
        assert str(tmp_path / name) in str(error) and "\n" not in str(error)
        assert not (tmp_path / "out").exists()
    else:
        assert files(tmp_path / "out") == {"a": b"abc"}


def test_what_a_zip_file_packs_in_an_unusual_way_is_refused(tmp_path):
    """LZMA's header says how much memory to reserve."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("top/a", b"1" * 1000)
    with pytest.raises(DataError, match="is packed in an unusual way"):
        unpack(tmp_path / "x.zip", tmp_path / "out", place)


def test_folders_count_as_members(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.unpack.MAX_MEMBERS", 50)
    archive = tar_of(
        tmp_path / "x.tar", {f"top/{number}": b"" for number in range(101)}, lambda info: setattr(info, "type", tarfile.DIRTYPE)
    )
    with pytest.raises(DataError, match="more than 50 members"):
        unpack(archive, tmp_path / "out", place)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_in_the_place_of_a_folder_stays(tmp_path, name):
    archive, folder = archive_of(tmp_path / name, CONTENT), tmp_path / "out"
    folder.mkdir()
    (folder / "deep").write_text("mine")
    with pytest.raises(DataError, match="deep: is there already"):
        unpack(archive, folder, place, overwrite=True)
    assert files(folder) == {"deep": b"mine"}


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
def test_a_flipped_bit_leaves_no_broken_file(tmp_path, name):
    original = archive_of(tmp_path / name, CONTENT).read_bytes()
    found = 0
    for place_of_bit in range(len(original) // 4, len(original) - 40, 211):
        damaged = bytearray(original)
        damaged[place_of_bit] ^= 0x10
        (tmp_path / name).write_bytes(damaged)
        out = tmp_path / f"out{place_of_bit}"
        try:
            unpack(tmp_path / name, out, place)
        except DataError as error:
            assert str(tmp_path / name) in str(error)
            found += 1
        for path, content in files(out).items() if out.exists() else ():
            assert CONTENT[f"top/{path}"] == content, place_of_bit
    assert found > 5


def test_a_broken_header_or_a_cut_end_of_a_tar_file_is_noticed(tmp_path):
    archive = tar_of(tmp_path / "x.tar", CONTENT)
    whole = archive.read_bytes()
    damaged = bytearray(whole)
    damaged[1024 + 2] ^= 1  # in the second header
    for content in (bytes(damaged), whole[:1024], whole[:2000], whole[:600]):
        archive.write_bytes(content)
        with pytest.raises(DataError, match="the archive is damaged"):
            unpack(archive, tmp_path / "out", place)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_archive_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>Not found</html>" * 40)
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / name, tmp_path / "out", place)
    (tmp_path / "x.rar").write_bytes(b"1")
    with pytest.raises(DataError, match="only .zip, .tar, .tgz"):
        unpack(tmp_path / "x.rar", tmp_path / "out", place)
    with pytest.raises(FileNotFoundError, match="there is no such archive"):
        unpack(tmp_path / "none.zip", tmp_path / "out", place)


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "x.zip", CONTENT)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=9))
    with pytest.raises(OSError, match="only 0.0 MB are free"):
        unpack(archive, tmp_path / "out", place)
    assert not files(tmp_path / "out")
