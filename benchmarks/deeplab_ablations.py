"""Which recipe gives a segmentation network most in a given time? DeepLab on true masks, scored on images that it has not seen.

    python benchmarks/deeplab_ablations.py --preset voc12-animals deeplab_iterations=600 deeplab_learning_rate=1e-3

The network starts from ImageNet's weights and learns the masks of the training images that measure in docs/protocol.md. A line
gives its mIoU in percent on those that tune, without a CRF, beside the processor minutes of its training. The best recipe is
then frozen for the masks of all methods. A command that was stopped goes on.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from wsss_lib.core.progress import progress
from wsss_lib.core.training import save_weights
from wsss_lib.data.dataset import open_data
from wsss_lib.nets.folding import folded
from wsss_lib.ops.metrics import Evaluation
from wsss_lib.presets import preset_config
from wsss_lib.segment.deeplab import build_deeplab, class_probabilities, train_deeplab
from wsss_lib.tune import split_of_tuning


def measure(preset: str, values: dict, work: Path) -> None:
    """Train with some values and print the line."""
    config = preset_config(preset, method="truth", **{"deeplab_init": "imagenet"} | values)
    tuning, learned = split_of_tuning(open_data(config, config.train_split))
    folder = work / ("-".join(f"{name.removeprefix('deeplab_')}={value}" for name, value in values.items()) or "preset")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    net = build_deeplab(config, learned.num_classes, Path())
    started = time.process_time()
    train_deeplab(net, learned, learned.root / learned.mask_folder, config, folder)
    minutes = (time.process_time() - started) / 60
    save_weights(net, folder / "weights.safetensors")
    net, evaluation = folded(net), Evaluation(learned.num_classes + 1)
    for image_id in progress(tuning.ids, "images that tune"):
        evaluation.add(tuning.mask(image_id), class_probabilities(net, tuning.image(image_id), config).argmax(0))
    scores = evaluation.scores()
    each = np.round(100 * scores.iou, 1).tolist()
    print(json.dumps(values), f"{100 * scores.miou:.1f} % in {minutes:.1f} processor minutes; classes {each}", flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="voc12-animals")
    parser.add_argument("--work", type=Path, default=Path("build/deeplab_ablations"), help="folder for the networks")
    parser.add_argument("values", nargs="*", metavar="name=value", help="parameters of notebook 90")
    options = parser.parse_args()
    pairs = (text.split("=", 1) for text in options.values)
    measure(options.preset, {name: _value(text) for name, text in pairs}, options.work)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
