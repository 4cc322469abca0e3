"""From a folder of photographs to masks: `python -m data_prep.own PHOTOGRAPHS` makes the data set and runs the pipeline.

`make own DATA=/path/to/photographs` is the same. The options of `data_prep.custom` say what is in the photographs; without any
they lie in class folders. A command that was stopped goes on; one that is finished finds everything made.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep import custom
from data_prep.photographs import given_lists
from wsss_lib.contact_sheet import write_contact_sheet
from wsss_lib.core.stage import run_folder_of
from wsss_lib.errors import DataError
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config


def data_set_of(options: argparse.Namespace) -> Path:
    """Make the data set, or find the one that was made of the same photographs and labels, and return its folder.

    Raises:
        DataError: as `data_prep.custom.make_dataset`.
    """
    photographs, classes, masks = custom.sources_of(options)
    name = custom.dataset_name(options.photographs)
    root = custom.place_of(PROJECT_ROOT / "data", name, custom.source_hash(photographs, classes, options.longest))
    if not root.exists():
        lists = given_lists(options.photographs, photographs)
        custom.make_dataset(photographs, classes, root, name, masks, options.val_share, options.longest, lists)
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the program with a sentence when it cannot be done.

    Args:
        arguments: the words after the program's name; None: those of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.own", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path, help="folder of photographs, or of one folder for each class")
    custom.add_sources(parser, val_share=0.0)
    parser.add_argument("--method", default="cam", help="of the class activation maps; default cam")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument(
        "--until", choices=("seeds", "irn", "deeplab"), default="deeplab", help="the last step; default deeplab"
    )
    options = parser.parse_args(arguments)
    try:
        root = data_set_of(options)
        config = preset_config(str(root / "preset.yaml"), options.method)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(str(error))
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        str(options.cores),
        "--nolock",
        "--rerun-incomplete",
        "--quiet",
        "host",
    ]
    command += ["--snakefile", str(PROJECT_ROOT / "Snakefile"), "--config", f"preset={root / 'preset.yaml'}"]
    command += [f"methods=[{options.method}]"]
    base = f"{config.runs_root}/{config.dataset}/{config.method}/seed0"
    for step, stage, what in (
        ("seeds", "seeds", "first masks"),
        ("irn", "pseudo_masks", "refined masks"),
        ("deeplab", "predictions", "masks by the network"),
    ):
        target = [*command[:3], f"{base}/{stage}/notebook.ipynb", *command[3:]]
        if subprocess.run(target, cwd=PROJECT_ROOT).returncode:
            sys.exit(f"{what} could not be made; the message above says why. Run the command again to go on")
        try:
            print(f"{what}: {write_contact_sheet(config)}", flush=True)
        except (DataError, OSError) as error:
            sys.exit(str(error))
        if step == options.until:
            break
    run = run_folder_of(config) / config.method / "seed0"
    print(
        f"data set: {root}\nmasks: {run}\nanother threshold: --config seed_threshold=0.4, see docs/own_photographs.md\n"
        f"new photographs: {sys.executable} -m wsss_lib.predict {run} FOLDER OUT"
    )


if __name__ == "__main__":
    main()
