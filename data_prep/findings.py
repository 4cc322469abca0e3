"""Which parts of a data set are there, missing or wrong: lists, files and labels, compared with the official ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.official import ListFacts, Source, list_sha256, matrix_sha256
from wsss_lib.data.dataset import read_labels, read_split
from wsss_lib.errors import DataError


@dataclass(frozen=True)
class Finding:
    """One thing that a data set needs.

    Attributes:
        state: whether it is there as it should be.
        what: its name.
        detail: numbers, or what to do about it.
    """

    state: Literal["have", "missing", "wrong"]
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.state:8s} {self.what:24s} {self.detail}"


def compare_list(split: str, ids: Sequence[str], official: dict[str, ListFacts], page: str) -> Finding:
    """Return whether a list is the official one.

    Args:
        split: its name.
        ids: its image ids.
        official: list name to what is known; a list that is not named there is not compared.
        page: where the official data are, for the remedy.

    Returns:
        "have", or "wrong" with both counts.
    """
    facts = official.get(split)
    if facts is None:
        return Finding("have", f"list {split}", f"{len(ids)} images, not compared with an official list")
    if list_sha256(ids) == facts.sha256:
        return Finding("have", f"list {split}", f"{len(ids)} images, the official list")
    return Finding(
        "wrong",
        f"list {split}",
        f"{len(ids)} images with other ids than the {facts.images} of the official list; "
        f"for a part of the data use --partial, else see {page}",
    )


def compare_labels(
    split: str, labels: dict[str, np.ndarray], ids: Sequence[str], way: str, official: dict[str, ListFacts]
) -> Finding:
    """Return whether the labels of a list are the official ones.

    Args:
        split: name of the list.
        labels: image id to uint8 (C,), 0 or 1.
        ids: image ids of the list.
        way: how the labels were made, "xml" or "masks".
        official: list name to what is known.

    Returns:
        "have" or "wrong".
    """
    what, number = f"labels of {split}", sum(int(labels[image_id].sum()) for image_id in ids)
    known = official[split].labels.get(way) if split in official and len(ids) == official[split].images else None
    if known is None:
        return Finding("have", what, f"{number} from {way}, not compared with an official table")
    if matrix_sha256(labels, ids) == known:
        return Finding("have", what, f"{number} from {way}, the official ones")
    return Finding(
        "wrong",
        what,
        f"{number} from {way}, which differ from the official ones although the list is the same; "
        f"an annotation or mask was changed: unpack the archives anew",
    )


def check_folder(folder: Path, suffix: str, ids: Iterable[str], remedy: str) -> Finding:
    """Return whether a folder holds a file for every image id.

    Args:
        folder: e.g. `JPEGImages`.
        suffix: of the files, e.g. ".jpg".
        ids: that are needed.
        remedy: what to do when some are missing.

    Returns:
        "have" or "missing", with counts and the first missing file.
    """
    wanted = sorted(ids)
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [image_id for image_id in wanted if f"{image_id}{suffix}" not in present]
    if missing or not wanted:
        counts = f"{len(missing)} of {len(wanted)} files, the first is {missing[0]}{suffix}; " if missing else ""
        return Finding("missing", folder.name, counts + remedy)
    return Finding("have", folder.name, f"{len(wanted)} files")


def survey(
    root: Path,
    mask_folders: dict[str, str],
    classes: tuple[str, ...],
    official: dict[str, ListFacts],
    page: str,
    way: str,
    remedies: dict[str, str],
) -> list[Finding]:
    """Look through a prepared data set without decoding an image.

    Args:
        root: devkit folder.
        mask_folders: name of each needed list to the folder of its masks below `root`.
        classes: names of the foreground classes.
        official: list name to what is known.
        page: where the official data are.
        way: how the labels were made, "xml" or "masks".
        remedies: name of a list or folder to what to do when it is missing; "" for all others.

    Returns:
        a finding for each list, each folder and the labels of each list.
    """
    found, ids = [], {}
    for split in mask_folders:
        if not (root / "ImageSets" / "Segmentation" / f"{split}.txt").is_file():
            found.append(Finding("missing", f"list {split}", remedies.get(split, remedies[""])))
            continue
        try:
            ids[split] = read_split(root, split)
            found.append(compare_list(split, ids[split], official, page))
        except DataError as error:
            found.append(Finding("wrong", f"list {split}", str(error)))
    folders = {"JPEGImages": (".jpg", list(ids))}
    folders |= {folder: (".png", [split for split in ids if mask_folders[split] == folder]) for folder in mask_folders.values()}
    found += [
        check_folder(
            root / folder, suffix, {image_id for split in splits for image_id in ids[split]}, remedies.get(folder, remedies[""])
        )
        for folder, (suffix, splits) in folders.items()
    ]
    if not (root / "labels.csv").is_file():
        return [*found, Finding("missing", "labels.csv", remedies[""])]
    try:
        labels = read_labels(root / "labels.csv", classes)
    except DataError as error:
        return [*found, Finding("wrong", "labels.csv", str(error))]
    for split, members in ids.items():
        without = [image_id for image_id in members if image_id not in labels]
        found.append(
            Finding("missing", f"labels of {split}", f"{len(without)} rows, the first is {without[0]}; {remedies['']}")
            if without
            else compare_labels(split, labels, members, way, official)
        )
    return found


def survey_archives(sources: Iterable[Source], folders: Sequence[Path]) -> list[Finding]:
    """Return which official archives are there, by name and size only.

    Args:
        sources: the archives.
        folders: where they may lie.
    """
    found = []
    for source in sources:
        path = next((folder / source.name for folder in folders if (folder / source.name).is_file()), None)
        if path is None:
            found.append(Finding("missing", source.name, f"{source.size / 1e9:.2f} GB from {source.page}, to {folders[0]}"))
        elif path.stat().st_size != source.size:
            found.append(
                Finding(
                    "wrong",
                    source.name,
                    f"{path.stat().st_size} bytes instead of {source.size}; delete {path}, fetch it from {source.page}",
                )
            )
        else:
            found.append(Finding("have", source.name, str(path)))
    return found


def report(found: Iterable[Finding]) -> bool:
    """Return whether everything is there as it should be, after printing what was found.

    Args:
        found: from `survey`.
    """
    found = list(found)
    print("\n".join(map(str, found)))
    return all(finding.state == "have" for finding in found)
