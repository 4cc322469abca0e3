"""How fast, and in how much memory, does the COCO command prepare images of COCO's usual size?

python benchmarks/coco_preparation.py [--quick]

5,000 generated images of 640 pixels with seven objects in the mean (500 different ones, each under ten numbers) go through
`python -m data_prep.coco14`. Beside that, an instances JSON as large as that of COCO's 82,783 training images is indexed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from measuring import Row, main

from data_prep.toy_coco import make_toy_coco

NAME = "COCO_train2014_{:012d}.jpg"
INDEX = (
    "import sys; from pathlib import Path; from data_prep.coco_json import read_instances; "
    "index = read_instances(Path(sys.argv[1])); index.places(), index.labels()"
)


def repeat(source: Path, target: Path, times: int, images: bool = True) -> Path:
    """Write an instances JSON, and link the images, with every image under `times` numbers; return the JSON's path."""
    content = json.loads((source / "annotations/instances_train2014.json").read_text())
    step = max(entry["id"] for entry in content["images"])
    target.mkdir(parents=True)
    path = target / "instances.json"
    images_of = [(json.dumps(entry | {"id": "@", "file_name": "@"}).split('"@"'), entry["id"]) for entry in content["images"]]
    parts = [(json.dumps(entry | {"image_id": "@"}).split('"@"'), entry["image_id"]) for entry in content["annotations"]]
    with open(path, "w") as file:  # piece by piece, as the whole would fill the memory
        file.write('{"images": [')
        for k in range(times):
            file.write(
                ", " * bool(k)
                + ", ".join(f'{a}{n + k * step}{b}"{NAME.format(n + k * step)}"{c}' for (a, b, c), n in images_of)
            )
        file.write('], "annotations": [')
        for k in range(times):
            file.write(", " * bool(k) + ", ".join(f"{a}{n + k * step}{b}" for (a, b), n in parts))
        file.write(f'], "categories": {json.dumps(content["categories"])}}}')
    for k in range(times) if images else ():
        for entry in content["images"]:
            os.link(source / "train2014" / entry["file_name"], target / NAME.format(entry["id"] + k * step))
    return path


def run(*command: str) -> dict[str, float]:
    """Run a Python command; return its wall and processor seconds and the peak memory of it and its children in MB."""
    start, process = time.perf_counter(), psutil.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    before, peak = os.times(), 0
    while process.poll() is None:
        try:
            peak = max(peak, sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.05)
    assert process.returncode == 0, command
    after = os.times()
    return {
        "seconds": time.perf_counter() - start,
        "peak_mb": peak / 1e6,
        "cpu_seconds": after.children_user + after.children_system - before.children_user - before.children_system,
    }


def prepare_and_index(num_images: int, copies: int, index_copies: int, workers: int = 2) -> dict[str, float]:
    """Prepare `num_images * copies` images, and index a JSON of `num_images * index_copies`, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="coco_preparation_") as folder:
        source = make_toy_coco(
            Path(folder, "source"), num_train=num_images, num_val=1, width=640, progress=False, workers=workers
        )
        annotations = repeat(source, Path(folder, "images"), copies)
        root = Path(folder, "coco14")
        result = run(
            "-m",
            "data_prep.coco14",
            str(root),
            "--train",
            str(annotations),
            "--images",
            str(annotations.parent),
            "--partial",
            "--workers",
            str(workers),
        )
        masks = len(list((root / "SegmentationClass").glob("*.png")))
        assert masks == num_images * copies, (masks, num_images, copies)
        large = repeat(source, Path(folder, "large"), index_copies, images=False)
        index = run("-c", INDEX, str(large))
        return {
            "images": masks,
            "speed": masks / result["seconds"],
            "cpu_ms": 1000 * result["cpu_seconds"] / masks,
            "peak_mb": result["peak_mb"],
            "json_mb": large.stat().st_size / 1e6,
            "index_seconds": index["seconds"],
            "index_cpu_seconds": index["cpu_seconds"],
            "index_peak_mb": index["peak_mb"],
        }


def measure(quick: bool = False) -> list[Row]:
    """Measure; there is no plain formulation to compare with."""
    numbers = prepare_and_index(8, 2, 2) if quick else prepare_and_index(500, 10, 166)
    return [
        Row(
            "COCO's masks, two processes",
            f"{numbers['images']:.0f} of 640 px",
            None,
            1000 / numbers["speed"],
            our_mib=numbers["peak_mb"] * 1e6 / 2**20,
            unit="ms/image",
        ),
        Row("COCO's masks, one core", f"{numbers['images']:.0f} of 640 px", None, numbers["cpu_ms"], unit="ms/image"),
        Row(
            "index of an instances JSON",
            f"{numbers['json_mb']:.0f} MB",
            None,
            numbers["index_cpu_seconds"],
            our_mib=numbers["index_peak_mb"] * 1e6 / 2**20,
        ),
    ]


if __name__ == "__main__":
    main(measure, __doc__)
