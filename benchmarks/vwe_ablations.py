"""What pooling, words and codebook do for the maps: every variant trained from the same classifier, several seeds each.

python benchmarks/vwe_ablations.py [--seeds 0 1 2] [--variants average hspp hspp+words ...] [--images 600] [--preset smoke]

Needs notebook 10's classifier of each seed (`make demo`; for more seeds Snakemake with seeds='[0,1,2]'). Finished pairs of
variant and seed are kept in `runs/<dataset>/vwe_ablations/` and not made again.
"""

import argparse

import torch
from torch import nn

from wsss_lib.config import Config
from wsss_lib.core import files, training
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import best_threshold_row, mean_part_recall
from wsss_lib.core.stage import open_stage, run_folder_of
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.methods import cam, vwe
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.presets import preset_config
from wsss_lib.results import with_spread

# name: (gamma, levels, with words, what the configuration sets otherwise, whether the codebook stays as it was drawn)
VARIANTS = {
    "average": (1.0, (), False, {}, False),
    "maximum": (0.0, (1,), False, {}, False),
    "hspp": (2.0, (1, 2, 4), False, {}, False),
    "average+words": (1.0, (), True, {}, False),
    "hspp+words": (2.0, (1, 2, 4), True, {}, False),
    "hspp+words, K = 8": (2.0, (1, 2, 4), True, {"vwe_words": 8}, False),
    "hspp+words, K = 64": (2.0, (1, 2, 4), True, {"vwe_words": 64}, False),
    "hspp+words, tau = 10": (2.0, (1, 2, 4), True, {"vwe_temperature": 10.0}, False),
    "hspp+words, decorrelated (VWL-L)": (2.0, (1, 2, 4), True, {"vwe_variant": "vwl_l"}, False),
    "hspp+words, memory bank (VWL-M)": (2.0, (1, 2, 4), True, {"vwe_variant": "vwl_m"}, False),
    "hspp+words, fixed random codebook": (2.0, (1, 2, 4), True, {}, True),
}
MAIN = ("average", "hspp", "average+words", "hspp+words")


def run(name: str, base: Config, images: int) -> dict:
    """Train one variant with one seed and score its maps; return its row, from an earlier run if there is one."""
    gamma, levels, with_words, values, fixed = VARIANTS[name]
    config = base.model_copy(update=values)
    classifier = open_stage(cam.CLASSIFIER, config)
    folder = (
        run_folder_of(config)
        / "vwe_ablations"
        / f"seed{config.seed}"
        / "".join(letter if letter.isalnum() else "_" for letter in name)
    )
    settings = {
        "variant": name,
        "images": images,
        "classifier": classifier.files.results(),
        **config.parameters_of("cam_*", "vwe_*"),
    }
    record = folder / "row.json"
    if record.is_file() and (row := files.read_json(record))["settings"] == settings:
        return row
    device = training.seed_everything(config)
    data = open_data(config, config.train_split)
    scored = open_data(config.model_copy(update={"limit": min(images, len(data))}), config.score_split)
    net = vwe.build_vwe(config, data.num_classes, classifier.folder / "weights.safetensors").to(device)
    net.gamma, net.levels = gamma, levels
    if fixed and isinstance(net.codebook, nn.Parameter):
        net.codebook.requires_grad_(False)
    weights, maps = folder / "weights.safetensors", folder / "maps"
    for leftover in (weights, folder / "state.safetensors", *maps.glob("*.npz")):  # of a run with other settings
        leftover.unlink(missing_ok=True)
    vwe.train_vwe(net, data, config, folder, vwe.losses if with_words else cam.classification_loss)
    training.save_weights(net, weights)
    make_maps(vwe.vwe_localization(net, config), scored, config, maps)
    row = {
        "settings": settings,
        **best_threshold_row(scored, maps),
        "recall": mean_part_recall(scored, maps, 0.3),
        "first": training.read_log(folder)[0],
        "last": training.read_log(folder)[-1],
        "words_used": words_used(net, scored, config) if with_words else None,
    }
    files.write_json(record, row)
    return row


@torch.inference_mode()
def words_used(net: vwe.VisualWordNet, data: SegmentationDataset, config: Config) -> int:
    """Return how many words are the nearest of some position of the data; the others are dead."""
    normalization = normalization_of(config.backbone)
    seen = torch.zeros(config.vwe_words)
    for image_id in data.ids:
        array = transforms.normalize(data.image(image_id), *normalization)
        image = transforms.to_tensor(array)[None].to(net.codebook.device)
        seen += net.encode(net.backbone(image)).present[0].cpu()
    return int((seen > 0).sum())


def describe(name: str, rows: list[dict]) -> str:
    """Return one line of the table."""
    cells = [
        name.ljust(34),
        with_spread([row["miou"] for row in rows]).rjust(12),
        with_spread([row["threshold"] for row in rows], 2).rjust(12),
    ]
    recalls = [row["recall"]["body"] for row in rows if row["recall"]]
    cells.append((with_spread(recalls, 2) if recalls else "-").rjust(12))
    used = [row["words_used"] for row in rows]
    cells.append(("-" if None in used else f"{with_spread(used, 0)} of {rows[0]['settings']['vwe_words']}").rjust(14))
    return " ".join(cells) + "   " + " / ".join(f"{row['miou']:.1f}" for row in rows)


def main(arguments: list[str] | None = None) -> dict[str, list[dict]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(MAIN), choices=[*VARIANTS, "all"], metavar="NAME")
    parser.add_argument("--images", type=int, default=600, help="scored images, the first ones of the split")
    parser.add_argument("--preset", default="smoke", help="a file of configs/, with what the method sets otherwise")
    options = parser.parse_args(arguments)
    names = list(VARIANTS) if "all" in options.variants else options.variants
    print(f"{'variant':34} {'best mIoU %':>12} {'threshold':>12} {'body recall':>12} {'words used':>14}   mIoU of each seed")
    table = {}
    for name in names:
        table[name] = [run(name, preset_config(options.preset, "vwe", seed=seed), options.images) for seed in options.seeds]
        print(describe(name, table[name]), flush=True)
    return table


if __name__ == "__main__":
    main()
