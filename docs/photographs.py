"""Draw the same four photographs through every method of a finished study: `python docs/photographs.py` writes docs/figures.

    python docs/photographs.py --limit 600 --measured 300      # after `python -m wsss_lib.tune METHOD ... --measure`

The maps are those of seed 0 with the values and the threshold that the study has chosen; these images have tuned nothing.
PASCAL VOC 2012, images from Flickr; no recognizable people.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from wsss_lib import viz
from wsss_lib.core.scoring import full_size_maps
from wsss_lib.ops.seeds import argmax_with_background
from wsss_lib.tune import Study

FOLDER = Path(__file__).resolve().parent / "figures"
IMAGES = ("2008_005061", "2008_005304", "2008_006221", "2009_000002")  # one cat, two horses, many sheep, a cat and a dog
NAMES = {"cam": "CAM", "rib": "RIB", "drs": "DRS", "amn": "AMN", "vwe": "VWE", "sccam": "SC-CAM"}


def measured_maps(study: Study) -> tuple[Path, float]:
    """Return the folder of the maps of seed 0 that the study has measured, and its threshold."""
    best = study.best
    return study.folder / f"measured{best.number}.seed0", best.user_attrs["threshold"]


def draw(study: Study, cam: Study) -> None:
    """Write docs/figures/photographs_METHOD.jpg: photograph, ground truth, CAM, the method's map, its mask."""
    data, (maps, threshold), (cam_maps, cam_threshold) = study.measuring, measured_maps(study), measured_maps(cam)
    columns = ["photograph", "ground truth", "CAM", *([] if study.method == "cam" else [NAMES[study.method]]), "mask"]
    figure, grid = plt.subplots(len(IMAGES), len(columns), figsize=(1.7 * len(columns), 1.35 * len(IMAGES)))
    for row, image_id in zip(grid, IMAGES, strict=True):
        picture = np.asarray(data.image(image_id))
        classes, scores = full_size_maps(maps, image_id)
        viz.draw_image(row[0], picture)
        viz.draw_labels(row[1], data.mask(image_id), data.classes, image=picture)
        viz.draw_scores(row[2], picture, full_size_maps(cam_maps, image_id)[1].max(0), outline=cam_threshold)
        if study.method != "cam":
            viz.draw_scores(row[3], picture, scores.max(0), outline=threshold)
        viz.draw_labels(row[-1], argmax_with_background(scores, classes, threshold), data.classes, image=picture)
    for axes, words in zip(grid[0], columns, strict=True):
        axes.set_title(words, fontsize=9)
    figure.savefig(FOLDER / f"photographs_{study.method}.jpg", dpi=110, pil_kwargs={"quality": 85})
    plt.close(figure)


def main() -> None:
    """Draw every method whose study has been measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="voc12-animals")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--measured", type=int, default=0)
    options = parser.parse_args()
    viz.use_style()
    studies = {name: Study(name, options.preset, measured=options.measured, limit=options.limit) for name in NAMES}
    for name, study in studies.items():
        if any(row["seed"] == 0 for row in study.summary()["measured"]):
            draw(study, studies["cam"])
            print(name)


if __name__ == "__main__":
    main()
