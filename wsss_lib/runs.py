"""What a run has made: every result with its key, what differs from the current parameters, and its size on disk.

`python -m wsss_lib.runs runs/toy` lists; `--remove KEY ...` and `--remove-kept` delete, after a question.
"""

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from wsss_lib.core.store import StageFolder, lock_folder, unlock_folder
from wsss_lib.errors import DataError


@dataclass(frozen=True)
class Result:
    """One result of a stage.

    Attributes:
        folder: where it lies.
        stage: method, seed and stage, e.g. "cam/seed0/maps".
        key: of its parameters and inputs.
        present: whether later stages read it; else it is kept until its parameters come back.
        finished: whether the stage has finished with it.
        differs: parameters whose values differ from the current result's, each to its own value.
        mib: on disk.
    """

    folder: Path
    stage: str
    key: str
    present: bool
    finished: bool
    differs: dict[str, object]
    mib: float


def results_of(run_folder: Path) -> list[Result]:
    """Return all results of a run, the current one of each stage first.

    Raises:
        DataError: a record is broken.
    """
    found = []
    for begun in sorted(run_folder.glob("*/seed*/[!.]*/begun.json")):  # a hidden one was being removed
        folder = StageFolder(begun.parent)
        name = folder.name.split(".")[0]
        present = StageFolder(begun.parent.with_name(name))
        parameters = folder.parameters()
        reference = present.parameters() if present.key() else parameters
        size = sum(os.path.getsize(Path(root) / file) for root, _, files in os.walk(folder.folder) for file in files)
        found.append(
            Result(
                folder.folder,
                "/".join((*begun.parts[-4:-2], name)),
                folder.key(),
                folder.name == name,
                folder.is_complete(),
                {key: value for key, value in parameters.items() if reference.get(key) != value},
                size / 2**20,
            )
        )
    return sorted(found, key=lambda result: (result.stage, not result.present, result.key))


def table(results: list[Result]) -> str:
    """Return the list in plain text."""
    lines = []
    for result in results:
        state = ("present" if result.present else "kept") + ("" if result.finished else ", unfinished")
        differs = ", ".join(f"{name}={value}" for name, value in result.differs.items())
        if not (result.present or differs):
            differs = "other inputs"
        lines.append(f"{result.stage:32s} {result.key}  {result.mib:9.1f} MiB  {state:20s} {differs}".rstrip())
    total = sum(result.mib for result in results)
    return "\n".join([*lines, f"{len(results)} results, {total:.1f} MiB"])


def remove(results: list[Result]) -> None:
    """Delete results; one that another process is making is refused. Of a link, only the link is removed, which is said.

    Raises:
        DataError: another process is making the stage.
    """
    for result in results:
        lock = lock_folder(result.folder)
        try:
            trash = result.folder.with_name(f".removing-{result.folder.name}")  # never half a result under its own name
            if result.folder.is_symlink():
                print(f"{result.folder}: only this link is removed; the results lie in {result.folder.resolve()}")
                result.folder.unlink()
                continue
            if trash.is_dir() and not trash.is_symlink():  # of a call that was killed
                shutil.rmtree(trash)
            os.replace(result.folder, trash)
            shutil.rmtree(trash)
        finally:
            unlock_folder(lock)


def main(arguments: list[str]) -> None:
    """List or remove; ends the program with a sentence when that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m wsss_lib.runs", description=__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path, metavar="FOLDER", help="runs/<dataset>")
    parser.add_argument("--remove", nargs="+", metavar="KEY", default=[], help="delete the results with these keys")
    parser.add_argument("--remove-kept", action="store_true", help="delete all results that are not the present ones")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args(arguments)
    try:
        results = results_of(options.run_folder)
        if not results:
            sys.exit(f"{options.run_folder}: no results of any stage; name a folder such as runs/toy")
        unknown = set(options.remove) - {result.key for result in results}
        if unknown:
            sys.exit(f"{options.run_folder}: no result has the key {sorted(unknown)[0]}")
        unwanted = [result for result in results if result.key in options.remove or options.remove_kept and not result.present]
        print(table(unwanted or results))
        if not unwanted:
            return
        if not options.yes and input("Delete these? [y/N] ").strip().lower() not in ("y", "yes"):
            sys.exit("nothing was deleted")
        remove(unwanted)
    except (DataError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
