"""RIB on single images, step by step: how the maps grow, what the stops prevent, and what each setting contributes.

Used by notebook 20. `data` are the training images, `settings` a whole configuration.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from wsss_lib.core.scoring import part_mask
from wsss_lib.core.training import poly_factor
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.experiments.trials import Maps, recall_by_part
from wsss_lib.methods import rib
from wsss_lib.methods.cam import ClassActivationNet
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.ops.merging import join_flips, merge_views, stride4_size, upsample_scores
from wsss_lib.ops.metrics import Evaluation
from wsss_lib.ops.seeds import argmax_with_background


class SingleImages:
    """The steps of single images with any settings; the frozen layers' output for companions is shared.

    Args:
        companions: of the same network.
    """

    def __init__(self, net: ClassActivationNet, data: SegmentationDataset, config: Any, companions: rib.Companions):
        self.net, self.data, self.config = net, data, config
        self.scales = rib.scales_in_order(config.cam_scales)

        @cache
        def companions_of(settings: Any) -> rib.Companions:
            others = rib.Companions(net, data, settings)
            others.features = companions.features
            return others

        self._companions_of = companions_of

    def steps(self, image_id: str, settings: Any) -> list[rib.Step]:
        """Return all steps of one image; the network is left unchanged."""
        label = self.data.label(image_id)
        views = rib.frozen_features(self.net, self.data.image(image_id), self.scales, *normalization_of(self.config.backbone))
        target = torch.from_numpy(label.astype(np.float32)).to(views[0].device)
        others = self._companions_of(settings).of_image(image_id, label)
        if others is None:
            raise ValueError(f"{image_id}: no companion is without its classes")
        with rib.original_weights(self.net):
            return list(rib.tune(self.net, views, [scale > 0.5 for scale in self.scales], target, others, settings))

    def merged(self, image_id: str, steps: Iterable[rib.Step]) -> Maps:
        """Return classes and full-size scores from the sum of some steps' maps."""
        size, classes = self.data.image(image_id).size[::-1], np.flatnonzero(self.data.label(image_id))
        maps = merge_views(join_flips(rib.add_up(steps), torch.from_numpy(classes)), stride4_size(size))
        return classes, upsample_scores(maps.cpu().numpy(), size)

    def final(self, ids: Iterable[str], settings: Any) -> dict[str, Maps]:
        """Return classes and full-size scores as the stage of maps would make them: image id to maps."""
        localize, found = rib.rib_localization(self.net, self.data, settings), {}
        for image_id in ids:
            image = self.data.image(image_id)
            ((classes, scores),) = localize([image_id], [image], self.data.label(image_id)[None])
            found[image_id] = classes, upsample_scores(scores, image.size[::-1])
        return found


def rise_by_region(data: SegmentationDataset, image_id: str, steps: list[rib.Step]) -> dict[str, tuple[float, float]]:
    """Return how the first present class's map at scale 1 changes from the first step to the last, by region.

    Returns:
        mean rise as a fraction of the map's peak before, and mean change of the map divided by its own peak before and after,
        which is what masks are made of: of `head`, `body` (`object` without part masks) and `background`; a region that the
        image does not have is left out. Pixels of other classes and unknown ones are in no region.
    """
    chosen, mask = int(np.flatnonzero(data.label(image_id))[0]), data.mask(image_id)
    first, last = (maps[0][:, chosen] for maps in (steps[0].maps, steps[-1].maps))
    before, after = (pair[0] + pair[1].flip(-1) for pair in (first, last))
    old, new = (pair.relu() / pair.max().clamp(min=1e-5) for pair in (before, after))
    grown = torch.stack([(after - before) / before.max().clamp(min=1e-5), new - old])
    both = F.interpolate(grown[None], mask.shape, mode="bilinear")[0].cpu().numpy()
    regions = {"object": mask == chosen + 1}
    if (data.root / "PartMasks").is_dir():
        number = part_mask(data, image_id)
        regions = {part: (number == value) & regions["object"] for part, value in (("head", 2), ("body", 1))}
    regions["background"] = mask == 0
    return {region: tuple(both[:, there].mean(1).tolist()) for region, there in regions.items() if there.any()}


def total_length(iterations: int) -> float:
    """Return the total length of the updates of `iterations` maps, in units of the first."""
    return sum(poly_factor(k, iterations) for k in range(iterations - 1))


def of_length(config: Any, iterations: int, length: float = 1.0, **others: Any) -> Any:
    """Return settings whose updates add up to `length` times the configured ones."""
    factor = length * total_length(config.rib_iterations) / total_length(iterations)
    return config.model_copy(
        update={
            "rib_iterations": iterations,
            "rib_learning_rate": factor * config.rib_learning_rate,
            "rib_head_learning_rate": factor * config.rib_head_learning_rate,
        }
        | others
    )


def until_stopped(steps: list[rib.Step], config: Any, target_rule: bool, explosion_rule: bool) -> list[rib.Step]:
    """Return the steps that the rules allow, of a process that was not stopped."""
    for k, step in enumerate(steps):
        if explosion_rule and k > 0 and step.coverage > config.rib_explode_ratio:
            return [*steps[:k], step._replace(maps=step.maps[:1])]
        if target_rule and abs(step.target_logit) > config.rib_stop_threshold:
            return steps[: k + 1]
    return steps


def at_threshold(data: SegmentationDataset, maps: Mapping[str, Maps], threshold: float) -> tuple[float, float, float]:
    """Return recall of heads, recall of bodies (NaN without part masks) and the classes' mean precision, all in [0, 1]."""
    masks = {image_id: argmax_with_background(scores, classes, threshold) for image_id, (classes, scores) in maps.items()}
    evaluation = Evaluation(data.num_classes + 1)
    for image_id, mask in masks.items():
        evaluation.add(data.mask(image_id), mask)
    recall = recall_by_part(data, masks, masks.__getitem__)
    return recall["head"], recall["body"], float(np.nanmean(evaluation.scores().precision[1:]))
