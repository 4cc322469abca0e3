"""Visual words: VWE (Ru, Du, Wu, IJCAI 2021) and its journal versions VWL-L and VWL-M (Ru, Du, Zhan, Wu, IJCV 2022).

A codebook assigns to every position of the last feature map the word nearest in angle. The words in an image are a second,
finer set of labels that needs no annotation. A classifier that must predict them has to look at the whole object.
Sections and equations below are numbered as in notebook 50.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from wsss_lib.core import training
from wsss_lib.core.counting import Cost, Images, crops, training_cost
from wsss_lib.core.distributed import all_reduce_sum, broadcast, in_processes
from wsss_lib.core.parallel import Localize, make_maps
from wsss_lib.core.scoring import score_maps
from wsss_lib.core.stage import Job, Stage, network_made
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import ClassificationSamples, steps_per_epoch
from wsss_lib.methods import cam
from wsss_lib.nets.backbone import Backbone, build_backbone, normalization_of
from wsss_lib.nets.folding import folded
from wsss_lib.nets.weights import load_whole, start_backbone
from wsss_lib.parameters import (
    TRAINING,
    AtLeastTwo,
    Count,
    Factor,
    Fraction,
    FrozenStages,
    ParameterGroup,
    Positive,
    Range,
    Rate,
    Settings,
    Text,
    require_order,
    start_of,
)

Variant = Literal["vwe", "vwl_l", "vwl_m"]
NOTEBOOK = "50_vwe"
SETS_FOR_OTHERS = ("seed_*", "walk_*", "backbone", "deeplab_*")  # parameters of other notebooks that its presets may set
RHO = 1e-3  # fraction of the new average in VWL-M's codebook
# The values that a study tries, including the published ones where the network allows them.
TUNED = {
    "vwe_learning_rate": Range(3e-4, 0.1, log=True),
    "vwe_head_learning_rate": Range(3e-3, 1.0, log=True),
    "vwe_words": Range(16, 256, log=True),
}


class Parameters(ParameterGroup):
    """50: visual words; images, crops, batches and scales are those of the classifier."""

    vwe_weights: Text = ""  # a network to use instead of training one
    vwe_init: Literal["backbone", "classifier"] = "classifier"  # published: backbone, trained on ImageNet
    vwe_variant: Variant = "vwe"  # the journal's: words pushed apart; a memory bank
    vwe_words: AtLeastTwo = 32  # K; published: 256
    vwe_temperature: Factor = 1.0  # tau of the soft assignment
    vwe_gamma: Rate = 2.0  # weight of the average in the pooling
    vwe_epochs: Positive = 4  # published: 6; VWL-L's maps are of the fifth
    vwe_schedule_epochs: Count = 0  # epochs for which the learning rate is laid out; 0: vwe_epochs
    vwe_learning_rate: Rate = 0.01  # published: 0.01 without momentum, a tenth of the classifier's
    vwe_head_learning_rate: Rate = 0.1
    vwe_momentum: Fraction = 0.9  # published: 1e-4, the weight decay
    vwe_weight_decay: Rate = 1e-4
    vwe_frozen_batch_norm: bool = False  # published: true
    vwe_frozen_stages: FrozenStages = 0  # published: 3, the stem, layer1 and layer2; VWL-M: 1

    @model_validator(mode="after")
    def _vwe_epochs_fit(self) -> "Parameters":
        if self.vwe_schedule_epochs:
            require_order(self, "vwe_epochs", "vwe_schedule_epochs")
        return self


class Words(NamedTuple):
    """The encoder's output for a batch; see `encode`."""

    assignment: Tensor  # a: (N, K, h, w)
    index: Tensor  # type: ignore[assignment]  # (N, h, w); hides the method of tuples, which nobody calls here
    histogram: Tensor  # H: (N, K)
    present: Tensor  # w: (N, K)


def encode(features: Tensor, codebook: Tensor, temperature: float = 1.0) -> Words:
    """Assign every position to visual words, by the cosine of feature and word.

    The features are detached: no gradient of the encoder reaches the backbone. The soft path (assignment, histogram)
    trains the codebook, the hard path (index, present) makes labels. One 1x1 convolution gives all cosines, so no tensor
    of size positions x words x channels is ever built.

    Args:
        features: x, float (N, D, h, w).
        codebook: c, float (K, D), one word in each row.
        temperature: tau > 0, sharpens the soft assignment (1 in the published runs).

    Returns:
        assignment (N, K, h, w), sums to 1 over the words; index int64 (N, h, w), the nearest word; histogram (N, K), the
        assignment summed over positions, so it sums to h w; present float (N, K), 1 for words that are nearest somewhere.

    Raises:
        ValueError: features and words differ in length.

    Source: VWE, visual words encoder; the temperature is VWL's. Explained in notebook 50, section "Words".

    >>> words = encode(torch.tensor([[[[3.0, 0.0, 1.0]], [[0.0, 2.0, 9.0]]]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    >>> words.index.tolist(), words.present.tolist()
    ([[[0, 1, 1]]], [[1.0, 1.0]])
    """
    if features.dim() != 4 or codebook.dim() != 2 or features.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and codebook {tuple(codebook.shape)} do not fit: (N, D, h, w) and "
            "(K, D) are needed"
        )
    features = features.detach()
    lengths = features.norm(dim=1, keepdim=True).clamp(min=1e-12)  # (N, 1, h, w)
    cosine = F.conv2d(features, F.normalize(codebook, dim=1)[:, :, None, None]) / lengths  # (N, K, h, w)
    assignment = (temperature * cosine).softmax(1)
    index = assignment.argmax(1)
    present = torch.zeros_like(assignment[:, :, 0, 0]).scatter_(1, index.flatten(1), 1.0)
    return Words(assignment, index, assignment.sum((2, 3)), present.detach())


def hspp(features: Tensor, gamma: float = 2.0, levels: Sequence[int] = (1, 2, 4)) -> Tensor:
    """Pool features by hybrid spatial pyramid pooling: the average mixed with maxima over grids.

    P(x) = [gamma avg(x) + sum_l avg(maxpool_l(x))] / (gamma + number of levels), with blocks of floor(h/l) x floor(w/l)
    positions. Where l does not divide the side, the remainder is ignored or makes further blocks, as in the official program.

    Args:
        features: x, float (N, D, h, w).
        gamma: weight of the global average against 1 for each level. `levels=()` is plain average pooling, `gamma=0,
            levels=(1,)` plain maximum pooling.
        levels: l, blocks on each side of a grid.

    Returns:
        float (N, D, 1, 1).

    Raises:
        ValueError: the map has fewer rows or columns than the finest grid.

    Source: VWE, hybrid spatial pyramid pooling. Explained in notebook 50, section "Pooling".

    >>> hspp(torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]]), gamma=2, levels=(1, 2)).item()  # (2*1 + 4 + 1) / 4
    1.75
    """
    height, width = features.shape[2:]
    if min(height, width) < max(levels, default=1):
        raise ValueError(
            f"a map of {height}x{width} positions has no grid of {max(levels)}x{max(levels)} blocks; take a "
            "larger cam_crop or a smaller output_stride"
        )
    total = gamma * features.mean((2, 3), keepdim=True)
    for level in levels:
        total = total + F.max_pool2d(features, (height // level, width // level)).mean((2, 3), keepdim=True)
    return total / (gamma + len(levels))


def decorrelation(codebook: Tensor) -> Tensor:
    """Return VWL-L's fourth loss, which pushes words apart: (||G|| - ||diag G||) / 2 of their covariances G (no squares).

    Args:
        codebook: c, float (K, D).

    Returns:
        scalar >= 0; 0 for words whose deviations from their own means are at right angles.

    Source: VWL, learning-based strategy. Explained in notebook 50, section "Two other codebooks".
    """
    centered = codebook - codebook.mean(1, keepdim=True)
    gram = centered @ centered.T  # G: (K, K)
    return 0.5 * (gram.norm() - gram.diagonal().norm())


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of softmax(logits) over a batch: a scalar in nats, which VWL-L logs for its words.

    Args:
        logits: v, float (N, K).
    """
    probabilities = logits.softmax(1) + 1e-8
    return -(probabilities * probabilities.log()).sum(1).mean()


def moving_average(codebook: Tensor, features: Tensor, index: Tensor, rho: float = RHO) -> Tensor:
    """Return VWL-M's codebook after one step: c <- rho m + (1 - rho) c, m the mean feature of each word in the batch.

    A word without a position has m = 0 and is scaled by 1 - rho. Its angle, hence its assignments, stay.

    Args:
        codebook: c, float (K, D), before the step.
        features: x, float (N, D, h, w), not scaled to length 1.
        index: int64 (N, h, w), the nearest word of each position under `codebook`.
        rho: in 0..1.

    Returns:
        float (K, D).

    Source: VWL, memory bank strategy. The published program calls one-hot on the soft assignment and stops; the nearest
    word is what it needs. Of several processes that train together, m is the mean over the features of all of them.
    Explained in notebook 50, section "Two other codebooks".
    """
    vectors = features.detach().transpose(0, 1).flatten(1).T  # (N h w, D)
    counts = index.flatten().bincount(minlength=len(codebook))[:, None]  # n_k
    sums = torch.zeros_like(codebook).index_add_(0, index.flatten(), vectors.to(codebook.dtype))
    return rho * all_reduce_sum(sums) / (all_reduce_sum(counts) + 1e-4) + (1 - rho) * codebook


class VisualWordNet(cam.ClassActivationNet):
    """The classifier of CAM with other pooling, a codebook, and two heads that connect words with classes.

    Args:
        backbone, num_classes: as in `cam.ClassActivationNet`.
        num_words: K (published: 256).
        variant: "vwe"; "vwl_l": its words are pushed apart; "vwl_m": its codebook is a moving average of features.
        temperature: tau of the soft assignment.
        gamma, levels: of `hspp`.
        frozen_batch_norm, frozen_stages: as in `cam.ClassActivationNet`. Published: three stages, for VWL-M one.

    Explained in notebook 50, section "Losses".
    """

    codebook: Tensor
    bank_filled: Tensor  # VWL-M's: whether its codebook holds features yet

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_words: int,
        variant: Variant = "vwe",
        temperature: float = 1.0,
        gamma: float = 2.0,
        levels: Sequence[int] = (1, 2, 4),
        frozen_batch_norm: bool = True,
        frozen_stages: int = 3,
    ):
        super().__init__(backbone, num_classes, frozen_batch_norm, frozen_stages)
        self.variant, self.temperature, self.gamma, self.levels = variant, temperature, gamma, tuple(levels)
        channels = backbone.channels[-1]
        self.histogram_head = nn.Conv2d(num_words, num_classes, 1, bias=False)  # W_a
        self.word_head = nn.Conv2d(channels, num_words, 1, bias=False)  # W_b
        codebook = torch.randn(num_words, channels) / (3 * channels) ** 0.5  # c: (K, D), kaiming-normal with a = sqrt(5)
        if variant == "vwl_m":  # no gradient; as a buffer it is saved with the training state
            self.register_buffer("codebook", codebook)
            self.register_buffer("bank_filled", torch.tensor(False))
        else:
            self.codebook = nn.Parameter(codebook)

    def pooled(self, features: Tensor) -> Tensor:
        """Return P(x), float (N, D, 1, 1), of a feature map (N, D, h, w); as `hspp`."""
        return hspp(features, self.gamma, self.levels)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class logits (N, C) of normalized images (N, 3, H, W)."""
        return self.classifier(self.pooled(self.backbone(images))).flatten(1)

    def encode(self, features: Tensor) -> Words:
        """Return the words of a feature map (N, D, h, w) under the network's codebook; as the function `encode`."""
        return encode(features, self.codebook, self.temperature)

    def parameter_groups(self, learning_rate: float, head_learning_rate: float, weight_decay: float) -> list[dict]:
        """Return SGD's two groups: the trained part of the backbone; all heads, and the codebook if it has a gradient.

        Args:
            head_learning_rate: of heads and codebook (published: ten times the backbone's).
        """
        backbone, head = super().parameter_groups(learning_rate, head_learning_rate, weight_decay)
        head["params"] += [self.histogram_head.weight, self.word_head.weight]
        if isinstance(self.codebook, nn.Parameter):
            head["params"].append(self.codebook)
        return [backbone, head]

    @torch.no_grad()
    def fill_bank(self, features: Tensor, index: Tensor) -> None:
        """Update VWL-M's codebook after a step; the first step replaces it with random feature vectors of its batch.

        With several processes, these are vectors of rank 0's part of the batch.

        Args:
            features: x, float (N, D, h, w).
            index: int64 (N, h, w), the nearest word of each position under the codebook as it was.
        """
        if self.bank_filled:
            self.codebook.copy_(moving_average(self.codebook, features, index))
        else:
            vectors = features.transpose(0, 1).flatten(1).T  # (N h w, D)
            self.codebook.copy_(vectors[torch.randint(len(vectors), (len(self.codebook),)).to(vectors.device)])
            broadcast(self.codebook)
            self.bank_filled.fill_(True)


class Outputs(NamedTuple):
    """The outputs of the three heads for a batch; see `heads`."""

    logits: Tensor  # o: (N, C)
    histogram_logits: Tensor  # u: (N, C)
    word_logits: Tensor  # v: (N, K)
    words: Words


def heads(net: VisualWordNet, features: Tensor) -> Outputs:
    """Return class logits from P(x), class logits from the histogram, word logits from the average of x, and the words.

    Args:
        features: x, float (N, D, h, w), of its backbone.
    """
    words = net.encode(features)
    return Outputs(
        net.classifier(net.pooled(features)).flatten(1),
        net.histogram_head(words.histogram[:, :, None, None]).flatten(1),
        net.word_head(F.adaptive_avg_pool2d(features, 1)).flatten(1),
        words,
    )


def loss_terms(net: VisualWordNet, features: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Outputs]:
    """Return the variant's losses, each a scalar with weight 1, and the outputs that they were computed from.

    M is the multi-label soft-margin loss, a mean over images and classes (or words).

    * class = M(o, y) trains backbone and classifier;
    * histogram = M(u, y) trains the codebook and its own head only (not in VWL-M, whose codebook has no gradient);
    * word = M(v, w) trains backbone and word head;
    * decorrelation trains the codebook (VWL-L only).

    Args:
        features: x, float (N, D, h, w), of its backbone.
        labels: y, float (N, C), 0 or 1.

    Returns:
        name of each loss to its value; outputs as from `heads`.

    Source: VWE, total loss; VWL. Explained in notebook 50, section "Losses".
    """
    out = heads(net, features)
    terms = {
        "class": F.multilabel_soft_margin_loss(out.logits.float(), labels),
        "word": F.multilabel_soft_margin_loss(out.word_logits.float(), out.words.present),
    }
    if net.variant != "vwl_m":
        terms["histogram"] = F.multilabel_soft_margin_loss(out.histogram_logits.float(), labels)
    if net.variant == "vwl_l":
        terms["decorrelation"] = decorrelation(net.codebook)
    return terms, out


def losses(net: VisualWordNet, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return what `training.train` minimizes ("loss", the sum of all terms), every term, and counts of words for the log.

    In training, VWL-M's codebook is updated here; if a batch is accumulated in parts, with each part.

    Args:
        batch: images float32 (N, 3, H, W), normalized; labels float32 (N, C), 0 or 1.

    Explained in notebook 50, section "Training".
    """
    images, labels = batch
    features = net.backbone(images)
    terms, out = loss_terms(net, features, labels)
    if net.variant == "vwl_m" and net.training:
        net.fill_bank(features, out.words.index)
    present = out.words.present
    seen = {"words_in_batch": present.amax(0).sum(), "words_per_image": present.sum(1).mean()}
    if net.variant == "vwl_l":
        seen["word_entropy"] = entropy(out.word_logits.detach().float())
    return {"loss": torch.stack(list(terms.values())).sum(), **terms, **seen}


# ---- what the notebook runs


def build_vwe(config: Settings, num_classes: int, classifier_weights: Path | str, weights: Path | str = "") -> VisualWordNet:
    """Build the network on the ImageNet backbone (published) or on the classifier's, or from its own weights.

    Args:
        num_classes: C, foreground only.
        classifier_weights: CAM's (safetensors); read if vwe_init is "classifier".
        weights: of a finished network (safetensors); empty: a new one.

    Returns:
        the network on the CPU, in training mode.

    Raises:
        ValueError: the weights belong to another network.
        FileNotFoundError: there are no such weights.
    """
    start = config.backbone_weights if config.vwe_init == "backbone" else "classifier"
    build = partial(build_backbone, config.backbone, config.output_stride)
    backbone = start_backbone(build, start, classifier_weights, weights)
    net = VisualWordNet(
        backbone,
        num_classes,
        config.vwe_words,
        config.vwe_variant,
        config.vwe_temperature,
        config.vwe_gamma,
        frozen_batch_norm=config.vwe_frozen_batch_norm,
        frozen_stages=config.vwe_frozen_stages,
    )
    return load_whole(net, weights)


@in_processes
def train_vwe(
    net: VisualWordNet,
    data: SegmentationDataset,
    config: Settings,
    folder: Path,
    loss_of: Callable[..., dict[str, Tensor]] = losses,
) -> int:
    """Train on image-level labels, with the images, batches and crops of CAM's classifier.

    Args:
        loss_of: as for `training.train`; `cam.classification_loss` trains the pooling without the words.

    Returns:
        int, the number of images seen.

    Raises:
        ValueError: the crop is too small for the pooling, or as `training.train`.

    Explained in notebook 50, section "Training".
    """
    mean, std = normalization_of(config.backbone)
    samples = ClassificationSamples(
        data, config.seed, (config.cam_long_side_min, config.cam_long_side_max), config.cam_crop, mean, std
    )
    epoch = steps_per_epoch(len(data), config.cam_batch_size)
    steps, planned = config.vwe_epochs * epoch, (config.vwe_schedule_epochs or config.vwe_epochs) * epoch
    groups = net.parameter_groups(config.vwe_learning_rate, config.vwe_head_learning_rate, config.vwe_weight_decay)
    training.train(
        net,
        loss_of,
        samples,
        groups,
        config.vwe_momentum,
        steps,
        config.cam_batch_size,
        config,
        folder,
        schedule=lambda step, _: training.poly_factor(step, planned),
        name="visual words",
    )
    return steps * config.cam_batch_size


def vwe_localization(net: VisualWordNet, config: Settings) -> Localize:
    """Return the function that makes the maps, for `make_maps`: CAM's, but with the maximum of image and flip.

    Source: VWE, its program; IRN adds the maps of image and flip. Explained in notebook 50, section "All images".
    """
    mean, std = normalization_of(config.backbone)
    net = folded(net)
    localize = partial(cam.localization_maps, scales=config.cam_scales, mean=mean, std=std, join=torch.maximum)
    grid = cam.grid_stride_of(config, 1)
    return cam.in_precision(
        lambda ids, images, labels: localize(net, images, labels, grid_stride=grid), net.classifier.weight.device, config
    )


# ---- stages


def _make_network(job: Job) -> int:
    given, start = job.config.vwe_weights, job.inputs["classifier"].weights if job.inputs else ""
    return network_made(
        job,
        lambda: build_vwe(job.config, job.data.num_classes, start, given),
        lambda net: train_vwe(net, job.data, job.config, job.folder),
        given,
    )


def _load_network(job: Job) -> VisualWordNet:
    return build_vwe(job.config, job.data.num_classes, "", job.weights).to(job.device).eval()


NETWORK = Stage(
    "network",
    NOTEBOOK,
    _make_network,
    load=_load_network,
    inputs=lambda config: {"classifier": cam.CLASSIFIER} if config.vwe_init == "classifier" else {},
    reads=lambda config: (*start_of(config.vwe_init), *cam.CROPS, "vwe_*", *TRAINING),
)
MAPS = Stage(
    "maps",
    NOTEBOOK,
    lambda job: make_maps(vwe_localization(job.inputs["network"].net, job.config), job.data, job.config, job.folder),
    inputs=lambda config: {"network": NETWORK},
    score=score_maps,
    reads=("backbone", "cam_scales", *cam.MAP_FORM),
    shows={"CAM at its best threshold": None},
)
STAGES = (NETWORK, MAPS)


# ---- costs


def costs(config: Settings, data: Images) -> list[Cost]:
    """Count network and maps."""
    net, batch = build_vwe(config, data.classes, ""), crops(config.cam_crop)
    network = training_cost(
        "network",
        net,
        lambda n: sum(loss_terms(net, net.backbone(batch(n)), torch.empty(n, data.classes))[0].values(), torch.zeros(())),
        data.seen(config.vwe_epochs, config.cam_batch_size),
        config.cam_batch_size,
        config,
    )
    return [network, cam.maps_cost(net, config, data)]
