"""Which recipe gives a segmentation network most in a given time? DeepLab on the ground truth, scored on unseen images.

    python benchmarks/deeplab_ablations.py --preset voc12-animals deeplab_iterations=600 deeplab_learning_rate=1e-3

The network starts from ImageNet's weights and learns the masks of the training images that measure in docs/protocol.md. A line
gives its mIoU in percent on those that tune, without and with the CRF, beside the processor minutes of its training. The best
recipe is then frozen for the masks of all methods. A command that was stopped goes on.
"""

import argparse
import time
from pathlib import Path

from wsss_lib.config import Config
from wsss_lib.core.scoring import score_masks
from wsss_lib.core.training import save_weights, seed_everything
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.presets import preset_config
from wsss_lib.segment.deeplab import build_deeplab, make_predictions, train_deeplab
from wsss_lib.tune import split_of_tuning


def learn_masks(
    config: Config, learned: SegmentationDataset, masks: Path, scored: SegmentationDataset, folder: Path
) -> tuple[float, float, float]:
    """Train DeepLab on some masks, or go on with it, and score it on other images.

    Returns:
        mIoU in percent without and with the CRF; processor minutes of the training, since it was last stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = seed_everything(config)
    net = build_deeplab(config, learned.num_classes, Path()).to(device)
    started = time.process_time()
    train_deeplab(net, learned, masks, config, folder)
    minutes = (time.process_time() - started) / 60
    save_weights(net, folder / "weights.safetensors")
    make_predictions(net, scored, config, folder)
    plain, refined = (round(100 * score_masks(scored, folder / name).scores().miou, 2) for name in ("plain", "crf"))
    return plain, refined, round(minutes, 1)


def measure(preset: str, values: dict[str, str], work: Path) -> None:
    """Train on the ground truth with some values and print the line."""
    config = preset_config(preset, method="truth", **{"deeplab_init": "imagenet"} | values)
    tuning, learned = split_of_tuning(open_data(config, config.train_split))
    recipe = " ".join(f"{name}={value}" for name, value in values.items()) or "the preset's"
    folder = work / recipe.replace("/", "_").replace(" ", "-")
    plain, refined, minutes = learn_masks(config, learned, learned.root / learned.mask_folder, tuning, folder)
    print(f"{recipe}: {plain:.1f} %, with CRF {refined:.1f} %, in {minutes:.1f} processor minutes", flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="voc12-animals")
    parser.add_argument("--work", type=Path, default=Path("build/deeplab_ablations"), help="folder for the networks")
    parser.add_argument("values", nargs="*", metavar="name=value", help="parameters of notebook 90")
    options = parser.parse_args()
    measure(options.preset, dict(text.split("=", 1) for text in options.values), options.work)


if __name__ == "__main__":
    main()
