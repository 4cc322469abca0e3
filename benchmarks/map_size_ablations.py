"""Maps merged at the size of the image beside those enlarged from stride 4: labels, scores, disk and time of one finished run.

    python benchmarks/map_size_ablations.py --preset voc12-small --seeds 0 1 2

The run's stage `maps` must have been made with `map_size: image`, whose files hold both.
"""

import argparse
import time

import numpy as np

from wsss_lib.core.files import read_full_size_maps, read_maps
from wsss_lib.core.stage import folder_of
from wsss_lib.data.dataset import open_data
from wsss_lib.methods import METHODS
from wsss_lib.ops.merging import upsample_scores
from wsss_lib.ops.seeds import argmax_with_background
from wsss_lib.ops.thresholds import ThresholdSweep
from wsss_lib.presets import preset_config

COMPARED = (0.15, 0.30)


def compare(preset: str, method: str, seed: int) -> None:
    """Print one row for each way."""
    config = preset_config(preset, method, seed=seed)
    data, folder = open_data(config, config.score_split), folder_of(METHODS[method].MAPS, config)
    thresholds = np.linspace(0.01, 0.9, 90)
    sweeps = [ThresholdSweep(data.num_classes + 1, thresholds) for _ in range(2)]
    differing, seconds, stored, small = np.zeros(len(COMPARED)), np.zeros(2), 0, 0
    for image_id in data.ids:
        path = folder / f"{image_id}.npz"
        started = time.perf_counter()
        classes, scores, size = read_maps(path)
        enlarged = upsample_scores(scores, size)
        between = time.perf_counter()
        _, merged = read_full_size_maps(path)
        seconds += between - started, time.perf_counter() - between
        truth = data.mask(image_id)
        for sweep, maps in zip(sweeps, (enlarged, merged), strict=True):
            sweep.add(truth, maps, classes)
        labels = [[argmax_with_background(maps, classes, value) for value in COMPARED] for maps in (enlarged, merged)]
        differing += [np.mean(first != second) for first, second in zip(*labels, strict=True)]
        stored, small = stored + path.stat().st_size, small + scores.size * 2
    for words, sweep, time_taken in zip(("stride 4", "image size"), sweeps, seconds, strict=True):
        threshold, miou = sweep.best()
        print(
            f"{method} seed {seed} {words:10s} best mIoU {100 * miou:.2f} % at {threshold:.2f}; "
            f"{1000 * time_taken / len(data):.1f} ms an image to read"
        )
    print(
        f"{method} seed {seed} labels that differ: "
        + ", ".join(f"{100 * value / len(data):.2f} % at {at:.2f}" for at, value in zip(COMPARED, differing, strict=True))
        + f"; {stored / len(data) / 1024:.1f} KiB a file, scores at stride 4 unpacked: {small / len(data) / 1024:.1f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="voc12-small")
    parser.add_argument("--method", default="cam", choices=[name for name in METHODS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    for number in given.seeds:
        compare(given.preset, given.method, number)
