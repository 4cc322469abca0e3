"""The test-server archive: what is written, and that every kind of defect is named."""

import gzip
import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wsss_lib.core.files import write_mask
from wsss_lib.submission import FOLDER, check_submission, image_sizes, main, make_submission

IDS = ["2008_000006", "2008_000011", "2009_000002"]
SIZES = {"2008_000006": (6, 9), "2008_000011": (5, 5), "2009_000002": (8, 4)}


@pytest.fixture
def predictions(tmp_path):
    folder = tmp_path / "predictions"
    for number, image_id in enumerate(IDS):
        write_mask(folder / f"{image_id}.png", np.random.default_rng(number).integers(0, 21, SIZES[image_id]))
    return folder


def png(array, mode="P", **options):
    image = Image.fromarray(np.asarray(array, np.uint8))
    if mode == "P":
        from wsss_lib.core.files import voc_palette

        image.putpalette(options.get("palette", voc_palette()).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def archive(path, members):
    """Write a .tgz of (name or TarInfo, content)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def good_members():
    return [(f"{FOLDER}/{image_id}.png", png(np.ones(SIZES[image_id]))) for image_id in IDS]


def special(kind, name=f"{FOLDER}/2008_000006.png", target="/etc/passwd"):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_the_archive_holds_the_predictions_under_the_servers_names(predictions, tmp_path):
    (predictions / "notes.txt").write_text("not for the server")
    path = make_submission(predictions, reversed(IDS), tmp_path / "out" / "results.tgz", SIZES)
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png" for image_id in IDS]
        for member, image_id in zip(tar.getmembers(), IDS, strict=True):
            assert tar.extractfile(member).read() == (predictions / f"{image_id}.png").read_bytes()
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
    assert check_submission(path, IDS, SIZES) == []
    assert [file.name for file in path.parent.iterdir()] == ["results.tgz"]


def test_the_same_predictions_give_the_same_bytes(predictions, tmp_path):
    first = make_submission(predictions, IDS, tmp_path / "a.tgz").read_bytes()
    for file in predictions.iterdir():
        file.touch()
    assert make_submission(predictions, IDS[::-1], tmp_path / "b.tgz").read_bytes() == first


def test_a_missing_prediction_is_named_and_nothing_is_written(predictions, tmp_path):
    (predictions / f"{IDS[1]}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{IDS[1]}\.png.*0 others of 3"):
        make_submission(predictions, IDS, tmp_path / "out" / "results.tgz")
    assert not (tmp_path / "out").exists()


def test_a_bad_prediction_is_named_and_the_old_archive_stays(predictions, tmp_path):
    target = make_submission(predictions, IDS, tmp_path / "results.tgz")
    before = target.read_bytes()
    write_mask(predictions / f"{IDS[2]}.png", np.full((8, 4), 255))
    with pytest.raises(ValueError, match=rf"{IDS[2]}\.png: the mask holds the value 255 at 32 pixels"):
        make_submission(predictions, IDS, target, SIZES)
    assert target.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["predictions", "results.tgz"]


@pytest.mark.parametrize(
    ("ids", "name", "error"),
    [
        ([], "a.tgz", "list of ids is empty"),
        ([IDS[0], IDS[0]], "a.tgz", "twice"),
        (["../x"], "a.tgz", "not an image id"),
        (IDS, "a.zip", r"named \*\.tgz"),
    ],
)
def test_bad_arguments_are_refused(predictions, tmp_path, ids, name, error):
    with pytest.raises(ValueError, match=error):
        make_submission(predictions, ids, tmp_path / name)


def test_folders_in_the_archive_do_no_harm(tmp_path):
    folders = [(special(tarfile.DIRTYPE, name), b"") for name in ("results", "results/VOC2012", FOLDER)]
    assert check_submission(archive(tmp_path / "a.tgz", folders + good_members()), IDS, SIZES) == []


FIRST = f"{FOLDER}/{IDS[0]}.png"


@pytest.mark.parametrize(
    ("replacement", "sentence"),
    [
        ((FIRST, png(np.full((6, 9), 21))), "value 21 at 54 pixels"),
        ((FIRST, png(np.full((6, 9), 255))), "255 is not an answer"),
        ((FIRST, png(np.ones((6, 9)), mode="L")), "mode L"),
        ((FIRST, png(np.ones((6, 9, 3)), mode="RGB")), "mode RGB"),
        ((FIRST, png(np.ones((9, 6)))), "6x9 pixels, its image 9x6"),
        ((FIRST, png(np.ones((6, 9)), palette=np.arange(768).reshape(256, 3).astype(np.uint8))), "not VOC's palette"),
        ((FIRST, b"GIF89a"), "not a readable PNG"),
        ((FIRST, png(np.ones((6, 9)))[:-30]), "not a readable PNG"),
        ((FIRST, b""), "not a readable PNG"),
        ((FIRST, bytes(17 * 2**20)), "too many for a mask"),
        ((special(tarfile.SYMTYPE), b""), "link, folder or device"),
        ((special(tarfile.LNKTYPE), b""), "link, folder or device"),
        ((special(tarfile.FIFOTYPE), b""), "link, folder or device"),
        ((special(tarfile.DIRTYPE), b""), "link, folder or device"),
    ],
)
def test_each_bad_member_is_named_with_its_defect(tmp_path, replacement, sentence):
    defects = check_submission(archive(tmp_path / "a.tgz", [replacement, *good_members()[1:]]), IDS, SIZES)
    assert defects[0].startswith(f"{FIRST}: ") and sentence in defects[0]
    assert all("\n" not in defect and defect.endswith(".") for defect in defects)
    assert len(defects) == 1 or (len(defects) == 2 and "missing" in defects[1])


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("/etc/x.png", b""), "leaves the archive"),
        ((f"{FOLDER}/../../x.png", b""), "leaves the archive"),
        ((f"{FOLDER}/2010_000001.png", png(np.ones((2, 2)))), "does not belong"),
        ((f"{FOLDER}/._{IDS[0]}.png", b"x"), "does not belong"),
        (("README", b"x"), "does not belong"),
        ((FIRST, png(np.ones((6, 9)))), "twice"),
        ((special(tarfile.DIRTYPE, "other"), b""), "only plain files"),
    ],
)
def test_each_foreign_member_is_named(tmp_path, extra, sentence):
    defects = check_submission(archive(tmp_path / "a.tgz", [*good_members(), extra]), IDS, SIZES)
    assert len(defects) == 1 and sentence in defects[0]


def test_missing_members_are_counted(tmp_path):
    assert check_submission(archive(tmp_path / "a.tgz", good_members()[:1]), IDS) == [
        f"2 of 3 predictions are missing, the first is {IDS[1]}: add {FOLDER}/{IDS[1]}.png."
    ]


def test_all_defects_are_told_at_once(tmp_path):
    members = [(FIRST, b"x"), ("README", b""), *good_members()[2:]]
    assert len(check_submission(archive(tmp_path / "a.tgz", members), IDS)) == 3


def test_unreadable_archives(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such archive"):
        check_submission(tmp_path / "none.tgz", IDS)
    whole = archive(tmp_path / "whole.tgz", good_members()).read_bytes()
    uncompressed = gzip.decompress(whole)
    for content in (b"", b"PK\x03\x04 no tar", uncompressed, whole[:40], whole[:-20]):
        (tmp_path / "bad.tgz").write_bytes(content)
        assert any(
            "cannot be read" in defect or "missing" in defect for defect in check_submission(tmp_path / "bad.tgz", IDS)
        ), content[:10]


def test_sizes_must_be_given_for_all_or_none(tmp_path):
    with pytest.raises(ValueError, match=f"size of image {IDS[1]}"):
        check_submission(archive(tmp_path / "a.tgz", good_members()), IDS, {IDS[0]: (6, 9)})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_a_damaged_archive_never_raises_and_never_passes_unnoticed(tmp_path, position, value, compressed):
    content = bytearray(archive(tmp_path / "a.tgz", good_members()).read_bytes())
    content = content if compressed else bytearray(gzip.decompress(bytes(content)))
    position %= len(content)
    changed = content[position] != value
    content[position] = value
    (tmp_path / "b.tgz").write_bytes(bytes(content) if compressed else gzip.compress(bytes(content)))
    defects = check_submission(tmp_path / "b.tgz", IDS, SIZES)
    assert all(isinstance(defect, str) and defect for defect in defects)
    if not changed:
        assert defects == []


def test_command_line(predictions, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for image_id, (height, width) in SIZES.items():
        Image.new("RGB", (width, height)).save(tmp_path / "images" / f"{image_id}.jpg")
    ids = tmp_path / "test.txt"
    ids.write_text("\n".join(IDS) + "\n")
    assert image_sizes(tmp_path / "images", IDS) == SIZES
    path = str(tmp_path / "results.tgz")
    rest = ["--ids", str(ids), "--images", str(tmp_path / "images")]
    assert main(["make", str(predictions), path, *rest]) == 0
    assert "3 predictions, in order (sizes compared" in capsys.readouterr().out
    assert main(["check", path, "--ids", str(ids)]) == 0
    assert "NOT compared" in capsys.readouterr().out
    archive(tmp_path / "bad.tgz", good_members()[:2])
    assert main(["check", str(tmp_path / "bad.tgz"), *rest]) == 1
    assert "1 of 3 predictions are missing" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none.tgz"), *rest]) == 2
    (predictions / f"{IDS[0]}.png").unlink()
    assert main(["make", str(predictions), path, *rest]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.system
def test_module_runs_from_the_shell():
    result = subprocess.run([sys.executable, "-m", "wsss_lib.submission", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "Make or check the archive" in result.stdout
