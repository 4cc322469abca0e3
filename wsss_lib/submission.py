"""The archive for the PASCAL VOC test server: make it, and check it before anyone uploads it.

python -m wsss_lib.submission make PREDICTIONS --ids test.txt --images JPEGImages results.tgz
python -m wsss_lib.submission check results.tgz --ids test.txt --images JPEGImages
"""

import argparse
import gzip
import io
import re
import sys
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wsss_lib.core.files import image_size, voc_palette, write_atomically

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"  # comp6: segmentation, any training data
NUM_CLASSES = 21
LARGEST_FILE = 16 * 2**20  # bytes; a VOC mask has about 5 kB
LARGEST_IMAGE = 64 * 2**20  # pixels


def make_submission(
    prediction_folder: Path | str,
    ids: Sequence[str],
    archive_path: Path | str,
    sizes: Mapping[str, tuple[int, int]] | None = None,
) -> Path:
    """Pack predictions into the archive that the VOC test server takes, check it, and only then give it its name.

    The same predictions give the same bytes: members are sorted and carry no dates, owners or modes of their own.

    Args:
        prediction_folder: holds `ID.png`, 8-bit palette PNGs of class indices 0..20 at the image's size.
        ids: image ids of the test list; other files of the folder are left out.
        archive_path: the `.tgz` to write.
        sizes: (H, W) of each image, to compare with; None leaves that check out.

    Raises:
        FileNotFoundError: a prediction is missing; says how many.
        ValueError: the archive would be refused by `check_submission`; nothing is left behind.

    Source: the VOC 2012 development kit, results format of the segmentation competitions.
    Explained in notebook 90, section "The test server".
    """
    folder, archive_path = Path(prediction_folder), Path(archive_path)
    if archive_path.suffix != ".tgz":
        raise ValueError(f"{archive_path}: the archive must be named *.tgz.")
    ids = sorted(_checked_ids(ids))
    missing = [image_id for image_id in ids if not (folder / f"{image_id}.png").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder / missing[0]}.png: the prediction is missing, and {len(missing) - 1} others of "
            f"{len(ids)}: run the segmentation network on the whole test list first."
        )

    def write(temporary: Path) -> None:
        # gzip's own header would carry the name and the time of writing
        with (
            open(temporary, "wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for image_id in ids:
                content = (folder / f"{image_id}.png").read_bytes()
                member = tarfile.TarInfo(f"{FOLDER}/{image_id}.png")
                member.size, member.mode, member.mtime = len(content), 0o644, 0
                archive.addfile(member, io.BytesIO(content))
        defects = check_submission(temporary, ids, sizes)
        if defects:
            more = f" ({len(defects) - 1} more defects)" if len(defects) > 1 else ""
            raise ValueError(f"{folder}: {defects[0]}{more}")

    write_atomically(archive_path, write)
    return archive_path


def check_submission(
    archive_path: Path | str, ids: Sequence[str], sizes: Mapping[str, tuple[int, int]] | None = None
) -> list[str]:
    """Say everything that is wrong with an archive for the VOC test server. Nothing is unpacked to disk.

    Args:
        ids: image ids of the test list.
        sizes: (H, W) of each image; None leaves that check out.

    Returns:
        One sentence for each defect; empty: the archive is in order.

    Raises:
        FileNotFoundError: there is no such archive.
        ValueError: the list of ids is empty, holds an id twice or something that is not an id, or a size is not given.

    Source: the VOC 2012 development kit. Explained in notebook 90, section "The test server".
    """
    archive_path = Path(archive_path)
    if not archive_path.is_file():
        raise FileNotFoundError(f"{archive_path}: there is no such archive: make it with make_submission.")
    unsized = [] if sizes is None else [image_id for image_id in ids if image_id not in sizes]
    if unsized:
        raise ValueError(
            f"The size of image {unsized[0]} is not given, nor that of {len(unsized) - 1} others: give the "
            "sizes of all images, or none."
        )
    wanted = {f"{FOLDER}/{image_id}.png": image_id for image_id in _checked_ids(ids)}
    defects: list[str] = []
    seen: set[str] = set()
    try:
        # as a stream: forwards only, one member in memory
        with gzip.open(archive_path) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
            for member in archive:
                name = member.name
                defect = _member_defect(member, wanted, seen)
                if defect is None and member.isreg() and (file := archive.extractfile(member)):
                    seen.add(name)
                    image_id = wanted[name]
                    size = None if sizes is None else sizes[image_id]
                    defect = _mask_defect(file.read(), size)
                if defect:
                    defects.append(f"{name}: {defect}")
            while unpacked.read(2**20):  # to the very end, where gzip's checksum stands
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        return [*defects, f"The archive cannot be read to its end as gzip-compressed tar ({error}): make it again."]
    missing = [image_id for name, image_id in wanted.items() if name not in seen]
    if missing:
        defects.append(
            f"{len(missing)} of {len(wanted)} predictions are missing, the first is {missing[0]}: add "
            f"{FOLDER}/{missing[0]}.png."
        )
    return defects


def _member_defect(member: tarfile.TarInfo, wanted: Mapping[str, str], seen: set[str]) -> str | None:
    name = member.name
    if name.startswith("/") or ".." in name.split("/"):
        return "the name leaves the archive's folder: only relative names without '..' are allowed."
    if member.isdir() and f"{FOLDER}/".startswith(f"{name}/"):
        return None  # results/, results/VOC2012/, ... do no harm
    if not member.isreg():
        return "this is a link, folder or device: only plain files are allowed."
    if name not in wanted:
        return f"this file does not belong here: only {FOLDER}/<id>.png for the ids of the list are allowed."
    if name in seen:
        return "this name stands in the archive twice: keep one."
    if member.size > LARGEST_FILE:
        return f"the file has {member.size} bytes, too many for a mask: make it again."
    return None


def _mask_defect(content: bytes, size: tuple[int, int] | None) -> str | None:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.mode != "P":
                return f"the PNG has the mode {image.mode}: save class indices as an 8-bit palette PNG (mode P)."
            if size is not None and image.size != (size[1], size[0]):
                return (
                    f"the mask has {image.size[0]}x{image.size[1]} pixels, its image {size[1]}x{size[0]}: bring the "
                    "prediction to the size of the original image."
                )
            if image.size[0] * image.size[1] > LARGEST_IMAGE:
                return f"the mask claims {image.size[0]}x{image.size[1]} pixels: make it again."
            palette = image.getpalette()
            labels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"this is not a readable PNG ({error}): make it again."
    wrong = labels[labels >= NUM_CLASSES]
    if wrong.size:
        return (
            f"the mask holds the value {wrong[0]} at {wrong.size} pixels: only 0..{NUM_CLASSES - 1} are allowed, "
            "and every pixel needs a class (255 is not an answer)."
        )
    used = 3 * (int(labels.max()) + 1)
    if palette is None or palette[:used] != voc_palette().ravel().tolist()[:used]:
        return "the colors are not VOC's palette: save the mask with wsss_lib.data.dataset.voc_palette()."
    return None


def _checked_ids(ids: Sequence[str]) -> list[str]:
    ids = list(ids)
    wrong = [image_id for image_id in ids if not re.fullmatch(r"[A-Za-z0-9_-]+", image_id)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not an image id: letters, digits, '_' and '-' are allowed; correct the list of ids.")
    if not ids or len(set(ids)) != len(ids):
        raise ValueError("The list of ids is empty." if not ids else "An id stands in the list of ids twice: keep one.")
    return ids


def image_sizes(folder: Path | str, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Read the sizes of images from the file headers.

    Returns:
        image id to (H, W) in pixels.

    Raises:
        ValueError: as `check_submission` for the list of ids.
        DataError: an image is missing or not an image.
    """
    return {image_id: image_size(Path(folder) / f"{image_id}.jpg")[::-1] for image_id in _checked_ids(ids)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        the exit code: 0 in order, 1 defects, 2 wrong use.
    """
    parser = argparse.ArgumentParser(
        prog="python -m wsss_lib.submission",
        description=("Make or check the archive of segmentation results for the PASCAL VOC 2012 test server."),
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("make", "pack a folder of predictions, check, write"), ("check", "check an archive")):
        command = commands.add_parser(name, help=text)
        if name == "make":
            command.add_argument("predictions", type=Path, help="folder of ID.png")
        command.add_argument("archive", type=Path, help="the .tgz")
        command.add_argument("--ids", type=Path, required=True, help="list of test ids, one a line")
        command.add_argument("--images", type=Path, help="folder of ID.jpg, to compare the sizes with")
    options = parser.parse_args(arguments)
    try:
        ids = options.ids.read_text(encoding="utf-8").split()
        sizes = None if options.images is None else image_sizes(options.images, ids)
        if options.command == "make":
            make_submission(options.predictions, ids, options.archive, sizes)
            defects = []
        else:
            defects = check_submission(options.archive, ids, sizes)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for defect in defects:
        print(defect, file=sys.stderr)
    if not defects:
        compared = "sizes compared with the images" if sizes else "sizes NOT compared: give --images"
        print(f"{options.archive}: {len(ids)} predictions, in order ({compared}).")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
