"""From a folder of photographs to masks: `python -m data_prep.own PHOTOGRAPHS` makes the data set and runs the pipeline.

`make own DATA=/path/to/photographs` is the same. The options of `data_prep.custom` say what is in the photographs; without any,
they lie in class folders. A command that was stopped resumes; one that is finished finds everything made.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep import custom
from data_prep.photographs import given_lists
from wsss_lib.config import Config
from wsss_lib.contact_sheet import write_contact_sheet
from wsss_lib.core.files import write_atomically
from wsss_lib.core.stage import run_folder_of
from wsss_lib.errors import DataError
from wsss_lib.parameters import PROJECT_ROOT
from wsss_lib.presets import preset_config, read_preset
from wsss_lib.refine.threshold_choice import chosen_thresholds, curve_of

STEPS = {  # name to the stage that ends it, and what it makes
    "maps": ("maps", "maps"),
    "seeds": ("seeds", "first masks"),
    "irn": ("pseudo_masks", "refined masks"),
    "deeplab": ("predictions", "masks by the network"),
}


def data_set_of(options: argparse.Namespace) -> Path:
    """Make the data set, or find the one made from the same photographs and labels, and return its folder.

    Raises:
        DataError: as `data_prep.custom.make_dataset`.
    """
    photographs, classes, masks = custom.sources_of(options)
    name = custom.dataset_name(options.photographs)
    root = custom.place_of(PROJECT_ROOT / "data", name, custom.source_hash(photographs, classes, options.longest, masks))
    if not root.exists():
        lists = given_lists(options.photographs, photographs)
        custom.make_dataset(photographs, classes, root, name, masks, options.val_share, options.longest, lists)
    return root


def with_threshold(preset: Path, config: Config) -> Config:
    """Choose the seed-mask thresholds from the maps, unless the data set's preset has one, and write them into it.

    Args:
        preset: the data set's `preset.yaml`; the first method run decides for all.
        config: of a run whose maps are finished.

    Returns:
        the configuration with these thresholds.

    Raises:
        DataError: the maps are not finished.
    """
    if "seed_threshold" in read_preset(preset):
        return config
    chosen = chosen_thresholds(curve_of(config))
    lines = "".join(f"{name}: {value}\n" for name, value in chosen.items())
    text = preset.read_text(encoding="utf-8") + "# Chosen without masks: python -m wsss_lib.refine.threshold_choice\n" + lines
    write_atomically(preset, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return config.model_copy(update=chosen)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the program with a sentence when it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.own", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path, help="folder of photographs, or of one folder for each class")
    custom.add_sources(parser, val_share=0.0)
    parser.add_argument("--method", default="cam", help="of the class activation maps; default cam")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--until", choices=STEPS, default="deeplab", help="the last step; default deeplab")
    options = parser.parse_args(arguments)
    try:
        root = data_set_of(options)
        config = preset_config(str(root / "preset.yaml"), options.method)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(str(error))
    base = f"{config.runs_root}/{config.dataset}/{config.method}/seed0"
    for step, (stage, what) in STEPS.items():
        command = [sys.executable, "-m", "snakemake", f"{base}/{stage}/notebook.ipynb", "--cores", str(options.cores)]
        command += ["--quiet", "host", "--config", f"preset={root / 'preset.yaml'}", f"methods=[{options.method}]"]
        if subprocess.run(command, cwd=PROJECT_ROOT).returncode:
            sys.exit(f"{what} could not be made; the message above says why. Run the command again to go on")
        try:
            if step == "maps":
                config = with_threshold(root / "preset.yaml", config)
            else:
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
