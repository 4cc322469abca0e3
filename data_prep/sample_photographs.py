"""Photographs with a free license that installed Python packages carry, so that notebook 99 runs without any download."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Sample(NamedTuple):
    """One photograph.

    Attributes:
        package: the module that carries it.
        file: below the module's folder.
        classes: what is in it, of the six classes of notebook 99.
        licence: as the package states it, with the photographer if it names one.
    """

    package: str
    file: str
    classes: tuple[str, ...]
    licence: str


SAMPLES = (
    Sample("skimage", "data/astronaut.png", ("person", "rocket"), "public domain, NASA"),
    Sample("skimage", "data/camera.png", ("person",), "CC0, Lav Varshney"),
    Sample("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", ("person",), "public domain, US Navy"),
    Sample("skimage", "data/chelsea.png", ("cat",), "CC0, Stefan van der Walt"),
    Sample("skimage", "data/coffee.png", ("cup",), "CC0, Rachel Michetti"),
    Sample("skimage", "data/rocket.jpg", ("rocket",), "public domain, SpaceX"),
    Sample("sklearn", "datasets/images/china.jpg", ("temple",), "CC BY 2.0, danielbuechele"),
    Sample("sklearn", "datasets/images/flower.jpg", ("flower",), "CC BY 2.0, vultilion"),
    # photographs without any of the classes: they tell what does not count
    Sample("skimage", "data/brick.png", (), "CC0, CC0Textures"),
    Sample("skimage", "data/grass.png", (), "CC0, linolafett"),
    Sample("skimage", "data/gravel.png", (), "CC0, CC0Textures"),
    Sample("skimage", "data/coins.png", (), "no known restrictions, Brooklyn Museum"),
    Sample("skimage", "data/clock_motion.png", (), "public domain, Stefan van der Walt"),
    Sample("skimage", "data/hubble_deep_field.jpg", (), "public domain, NASA"),
    Sample("skimage", "data/retina.jpg", (), "CC0, Mikael Häggström"),
    Sample("skimage", "data/text.png", (), "public domain"),
)


def installed_photographs() -> list[tuple[Path, Sample]]:
    """Find the photographs of `SAMPLES` whose packages are installed; none of these is imported.

    Returns:
        (path, sample) of each that is there, in the order of `SAMPLES`.

    Raises:
        FileNotFoundError: there is none.
    """
    found = []
    for sample in SAMPLES:
        spec = find_spec(sample.package)
        for folder in spec.submodule_search_locations or () if spec else ():
            if (Path(folder) / sample.file).is_file():
                found.append((Path(folder) / sample.file, sample))
                break
    if not found:
        raise FileNotFoundError(
            "no installed package carries photographs: pip install -e '.[pretrained]', or set "
            "own_photographs to a folder of your own"
        )
    return found
