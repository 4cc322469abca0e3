"""Localization maps on disk: what this project stores of an image against dense arrays.

python benchmarks/map_storage.py [--quick]

Ours: present classes at stride 4, float16, compressed. Plain: the same classes at full resolution in float32 (IRN's family),
and DRS's 20 dense channels of 320x320 bytes. What is read back must be what was written, to half precision.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import Row, difference, main

from wsss_lib.core.files import read_maps, write_maps

VOC_SIZE = (375, 500)
SIZES = ((96, 128), VOC_SIZE, (750, 1000))
GOAL, TOLERANCE = 10.0, 1e-3


def maps_of(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return classes and stride-4 maps of an image with one or two classes, from maps at stride 16 as networks give them."""
    rng = np.random.default_rng(index)
    classes = np.sort(rng.choice(20, 1 + index % 2, replace=False))  # 1.5 classes an image, as in VOC
    coarse = torch.from_numpy(rng.random((1, len(classes), *(-(-side // 16) for side in size)))).float()
    return classes, F.interpolate(coarse, size=[(side - 1) // 4 + 1 for side in size], mode="bilinear")[0].numpy()


def measure(quick: bool = False) -> list[Row]:
    rows, count = [], 4 if quick else 40
    for size in SIZES[: 1 if quick else None]:
        full, ours, largest = [], [], 0.0
        with tempfile.TemporaryDirectory() as folder:
            for index in range(count):
                (classes, scores), path = maps_of(index, size), Path(folder, f"{index}.npz")
                write_maps(path, classes, scores, size)
                largest = max(largest, difference(scores, read_maps(path)[1]))
                ours.append(path.stat().st_size / 1024)
                full.append(len(classes) * size[0] * size[1] * 4 / 1024)
        if not largest <= TOLERANCE:
            raise RuntimeError(f"maps read back differ by {largest:.1e} from those written")
        plain, stored = statistics.mean(full), statistics.mean(ours)
        rows.append(
            Row(
                "maps on disk",
                "x".join(map(str, size)),
                plain,
                stored,
                plain / stored,
                GOAL if size == VOC_SIZE else None,
                largest,
                unit="KiB",
            )
        )
        if size == VOC_SIZE:
            dense = 20 * 320 * 320 / 1024
            rows.append(Row("maps on disk, DRS", "20x320x320", dense, stored, dense / stored, GOAL, largest, unit="KiB"))
    return rows


if __name__ == "__main__":
    main(measure, __doc__)
