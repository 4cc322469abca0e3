"""IRN: inter-pixel relations (Ahn, Cho, Kwak, CVPR 2019): boundaries learned from confident labels, and a walk up to them."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from wsss_lib.core import training
from wsss_lib.core.counting import WALK_SECONDS, Cost, Images, crops, inference_cost, training_cost
from wsss_lib.core.distributed import in_processes
from wsss_lib.core.files import read_maps, write_mask
from wsss_lib.core.parallel import for_each_image
from wsss_lib.core.progress import progress
from wsss_lib.core.scoring import metric_row, score_masks
from wsss_lib.core.stage import Job, Stage, network_made
from wsss_lib.data import transforms
from wsss_lib.data.dataset import SegmentationDataset
from wsss_lib.data.samples import AffinitySamples, steps_per_epoch
from wsss_lib.methods import maps_of
from wsss_lib.methods.cam import CLASSIFIER
from wsss_lib.nets.backbone import Backbone, build_backbone, normalization_of
from wsss_lib.nets.folding import folded
from wsss_lib.nets.weights import load_whole, start_backbone
from wsss_lib.ops.affinity import affinity_loss
from wsss_lib.ops.random_walk import propagate, pseudo_mask
from wsss_lib.parameters import (
    TRAINING,
    AtLeastTwo,
    Count,
    Factor,
    Fraction,
    ParameterGroup,
    Positive,
    Rate,
    Settings,
    Text,
    require_order,
    start_of,
)
from wsss_lib.refine.seed_masks import SEEDS

NOTEBOOK = "80_irn"
REFINEMENT = "irn"  # the value of the parameter `refinement` that names these masks


class Parameters(ParameterGroup):
    """80: IRN, the walk that spreads maps up to its boundaries, and the masks made of the result."""

    irn_weights: Text = ""  # an IRN to use instead of training one
    irn_init: Literal["backbone", "classifier"] = "classifier"  # published: backbone, trained on ImageNet only
    irn_epochs: Positive = 8
    irn_batch_size: Positive = 16
    irn_learning_rate: Rate = 0.1
    irn_displacement_learning_rate: Rate = 0.1
    irn_momentum: Fraction = 0.9  # published: 1e-4, the weight decay
    irn_weight_decay: Rate = 1e-4
    irn_scale_min: Rate = 0.5
    irn_scale_max: Rate = 1.5
    irn_crop: Positive = 96
    irn_displacement_width: Annotated[int, Field(ge=32, multiple_of=32)] = 32  # of its head; published: 256
    irn_train_radius: AtLeastTwo = 5
    # Pad images to this side before the network, larger sides to a multiple of 16; 0: not at all.
    # Published: 512 (VOC), 0 (COCO).
    walk_pad_to: Count = 16
    walk_radius: AtLeastTwo = 3
    walk_power: Factor = 1.0  # exponent of the maps before the walk; published: 1 (CAM), 1.3 (RIB, AMN)
    walk_beta: Rate = 10.0  # exponent of the affinities
    walk_log2_steps: Count = 4  # 2^4 = 16 steps of the random walk; published: 8
    walk_threshold: Fraction = 0.15  # background score of the pseudo-masks; published: 0.25

    @model_validator(mode="after")
    def _irn_crop_fits(self) -> "Parameters":
        require_order(self, "irn_scale_min", "irn_scale_max")
        if self.irn_crop % 4:
            raise ValueError(f"irn_crop ({self.irn_crop}) must be a multiple of 4, the stride of the affinity grid")
        return self


class MeanShift(nn.Module):
    """Subtract the average displacement, in evaluation mode only.

    Attributes:
        running_mean: float32 (2,), (dy, dx) in cells; a buffer that is set after training.

    Source: IRN, its program.
    """

    running_mean: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))

    def forward(self, displacement: Tensor) -> Tensor:
        """Return displacements float32 (N, 2, h, w) in cells, minus their average in evaluation mode."""
        if self.training:
            return displacement
        return displacement - self.running_mean.view(1, 2, 1, 1)


class IRN(nn.Module):
    """Inter-pixel relation network: class boundaries and displacements towards the object's center.

    The backbone is frozen: no gradient enters it, and its batch normalization is frozen, too.
    Parameter names are the official program's; the backbone's are prefixed with `backbone.`.

    Args:
        backbone: has `channels` and `strides` (five integers each) and `stages(images)`, which returns five maps
            (N, channels[i], about H/strides[i], about W/strides[i]); the first two strides are equal.
        displacement_width: channels of the displacement head, a multiple of 32; 256 in the paper's program. With a
            small backbone this head takes most of a training step. Semantic masks do not need it.

    Raises:
        ValueError: a displacement width that is not a positive multiple of 32.

    Source: IRN (Ahn, Cho, Kwak, CVPR 2019), network architecture; layers and group sizes as in its program.
    Explained in notebook 80, section "The network".
    """

    def __init__(self, backbone: Backbone, displacement_width: int = 256):
        super().__init__()
        width = displacement_width
        if width < 32 or width % 32:
            raise ValueError(f"displacement_width must be a positive multiple of 32 (group normalization), not {width}.")
        self.backbone = backbone.requires_grad_(False)
        c1, c2, c3, c4, c5 = backbone.channels
        _, s2, s3, s4, s5 = backbone.strides
        self.fc_edge1 = _block(c1, 32, groups=4)
        self.fc_edge2 = _block(c2, 32, groups=4)
        self.fc_edge3 = _block(c3, 32, groups=4, upsample=s3 // s2)
        self.fc_edge4 = _block(c4, 32, groups=4, upsample=s4 // s2)
        self.fc_edge5 = _block(c5, 32, groups=4, upsample=s5 // s2)
        self.fc_edge6 = nn.Conv2d(5 * 32, 1, 1)
        self.fc_dp1 = _block(c1, width // 4, groups=8)
        self.fc_dp2 = _block(c2, width // 2, groups=16)
        self.fc_dp3 = _block(c3, width, groups=16)
        self.fc_dp4 = _block(c4, width, groups=16, upsample=s4 // s3)
        self.fc_dp5 = _block(c5, width, groups=16, upsample=s5 // s3)
        self.fc_dp6 = _block(3 * width, width, groups=16, upsample=s3 // s2)
        self.fc_dp7 = nn.Sequential(
            *_block(width // 4 + width // 2 + width, width, groups=16), nn.Conv2d(width, 2, 1, bias=False)
        )
        self.mean_shift = MeanShift()

    def train(self, mode: bool = True) -> "IRN":
        """Return the network itself in training or (mode false) evaluation mode; its backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def edge_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the boundary head (published learning rate 0.1)."""
        return [value for name, value in self.named_parameters() if name.startswith("fc_edge")]

    def displacement_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the displacement head (published learning rate 1)."""
        return [value for name, value in self.named_parameters() if name.startswith("fc_dp")]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boundary logits and displacements.

        Args:
            images: (N, 3, H, W), normalized for the backbone.

        Returns:
            edge_logit (N, 1, H/4, W/4): its sigmoid is the boundary probability; and displacement (N, 2, H/4, W/4):
            (dy, dx) in cells of the map, minus its average in evaluation mode.
        """
        features = self._features(images)
        return self._edge_logit(features), self._displacement(features)

    def edge_logit(self, images: Tensor) -> Tensor:
        """Return the boundary logits of `forward` alone, (N, 1, H/4, W/4): all that semantic masks need."""
        return self._edge_logit(self._features(images))

    @torch.no_grad()
    def _features(self, images: Tensor) -> list[Tensor]:
        return self.backbone.stages(images)

    def _edge_logit(self, features: list[Tensor]) -> Tensor:
        x1, x2, x3, x4, x5 = features
        edge1 = self.fc_edge1(x1)
        edge2 = self.fc_edge2(x2)
        edge3 = _cut(self.fc_edge3(x3), x2)
        edge4 = _cut(self.fc_edge4(x4), x2)
        edge5 = _cut(self.fc_edge5(x5), x2)
        return self.fc_edge6(torch.cat([edge1, edge2, edge3, edge4, edge5], dim=1))

    def _displacement(self, features: list[Tensor]) -> Tensor:
        x1, x2, x3, x4, x5 = features
        dp1 = self.fc_dp1(x1)
        dp2 = self.fc_dp2(x2)
        dp3 = self.fc_dp3(x3)
        dp4 = _cut(self.fc_dp4(x4), x3)
        dp5 = _cut(self.fc_dp5(x5), x3)
        dp6 = _cut(self.fc_dp6(torch.cat([dp3, dp4, dp5], dim=1)), x2)
        return self.mean_shift(self.fc_dp7(torch.cat([dp1, dp2, dp6], dim=1)))

    @torch.no_grad()
    def predict(self, image: Tensor, pad_to: int = 0) -> tuple[Tensor, Tensor]:
        """Return the boundary map averaged over the image and its flip, and the image's displacements.

        The padding enters the group normalization, so the result depends on it. The official program pads VOC images to
        512 x 512; those of RIB and AMN do not pad COCO's. A larger image is never cropped: that side is then padded to a
        multiple of 16.

        Args:
            image: (3, H, W), normalized for the backbone, on the device of the network, which is in evaluation mode.
            pad_to: pad right and bottom with zeros to this side length, at least 16; 0: no padding.

        Returns:
            edge (h, w) in [0, 1], sigmoid of the averaged logits; displacement (2, h, w), (dy, dx) in cells;
            h = (H-1)//4+1, w = (W-1)//4+1.

        Raises:
            ValueError: the image is not (3, H, W), or the network is in training mode.

        Source: IRN, inference of its program. Explained in notebook 80, section "The network".
        """
        pair, height, width = self._pair(image, pad_to)
        edge_logit, displacement = self(pair)
        return _boundaries(edge_logit, height, width), displacement[0, :, :height, :width]

    @torch.no_grad()
    def predict_boundaries(self, image: Tensor, pad_to: int = 0) -> Tensor:
        """Return the boundary map of `predict`, bit for bit the same, without computing the displacements."""
        pair, height, width = self._pair(image, pad_to)
        return _boundaries(self.edge_logit(pair), height, width)

    def _pair(self, image: Tensor, pad_to: int) -> tuple[Tensor, int, int]:
        """Return the padded image and its horizontal flip, and height and width of the maps without the padding."""
        if image.dim() != 3:
            raise ValueError(f"predict takes one image (3, H, W), but got the shape {tuple(image.shape)}.")
        if self.training:
            raise ValueError("predict needs evaluation mode: call eval() on the network first.")
        height, width = image.shape[1:]
        pair = torch.stack([image, image.flip(-1)])
        if pad_to:
            below, right = (pad_to - side if pad_to >= side else -side % 16 for side in (height, width))
            pair = F.pad(pair, (0, right, 0, below))
        return pair, (height - 1) // 4 + 1, (width - 1) // 4 + 1


def _boundaries(edge_logit: Tensor, height: int, width: int) -> Tensor:
    logit, flipped = edge_logit[:, 0, :height, :width]
    return torch.sigmoid((logit + flipped.flip(-1)) / 2)


def _block(in_channels: int, out_channels: int, groups: int, upsample: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.GroupNorm(groups, out_channels)]
    if upsample > 1:
        layers.append(nn.Upsample(scale_factor=upsample, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def _cut(maps: Tensor, like: Tensor) -> Tensor:
    return maps[..., : like.shape[2], : like.shape[3]]


def build_irn(config: Settings, classifier_weights: Path, weights: Path | str = "") -> IRN:
    """Build IRN on the ImageNet backbone (published) or on the classifier's, or from its own weights.

    Args:
        classifier_weights: safetensors file of the classifier; read only with irn_init "classifier" and without `weights`.
        weights: a safetensors file of a whole IRN; empty: only the backbone has weights.

    Raises:
        ValueError: weights that belong to another network.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 80, section "The network".
    """
    start = config.backbone_weights if config.irn_init == "backbone" else "classifier"
    build = partial(build_backbone, config.backbone, config.output_stride)
    backbone = start_backbone(build, start, classifier_weights, weights)
    net = IRN(backbone, config.irn_displacement_width)
    return load_whole(net, weights)


@in_processes
def train_irn(net: IRN, data: SegmentationDataset, label_folder: Path, config: Settings, folder: Path) -> int:
    """Train IRN's two heads on the confident labels, in place.

    Args:
        label_folder: holds the confident labels `ID.png`.

    Raises:
        ValueError: as `training.train`.
        DataError: a label is missing or broken.

    Explained in notebook 80, section "The network".
    """
    mean, std = normalization_of(config.backbone)
    samples = AffinitySamples(
        data, label_folder, config.seed, (config.irn_scale_min, config.irn_scale_max), config.irn_crop, mean, std
    )
    steps = config.irn_epochs * steps_per_epoch(len(data), config.irn_batch_size)
    groups = [
        {"params": net.edge_parameters(), "lr": config.irn_learning_rate, "weight_decay": config.irn_weight_decay},
        {
            "params": net.displacement_parameters(),
            "lr": config.irn_displacement_learning_rate,
            "weight_decay": config.irn_weight_decay,
        },
    ]

    def loss_of(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels = batch
        edge_logit, displacement = model(images)
        losses = affinity_loss(edge_logit, displacement, labels, config.irn_train_radius, data.num_classes + 1)
        return {"loss": losses.total, **losses._asdict()}

    training.train(net, loss_of, samples, groups, config.irn_momentum, steps, config.irn_batch_size, config, folder, name="IRN")
    return steps * config.irn_batch_size


@torch.inference_mode()
def set_mean_displacement(net: IRN, data: SegmentationDataset, config: Settings) -> None:
    """Set IRN's mean shift to the average displacement over a split, image by image (top-left crops, as published).

    The official program averages the means of full batches of 32 over the list for which masks are made, and drops the last
    short batch. Semantic masks do not use displacements, so no mask depends on it.

    Explained in notebook 80, section "The network".
    """
    mean, std = normalization_of(config.backbone)
    device = net.fc_edge6.weight.device
    net.eval()
    net.mean_shift.running_mean.zero_()
    total = torch.zeros(2, device=device)
    for image_id in progress(data.ids, "mean displacement"):
        array = transforms.normalize(data.image(image_id), mean, std)
        image = transforms.to_tensor(transforms.top_left_crop(array, config.irn_crop, 0))
        total += net(image[None].to(device))[1].mean((0, 2, 3))
    net.mean_shift.running_mean.copy_(total / len(data))


@torch.inference_mode()
def boundary_map(net: IRN, image: Image.Image, config: Settings) -> Tensor:
    """Return IRN's boundary map of one image at stride 4.

    Returns:
        float32 (h, w) in [0, 1], on the device.

    Raises:
        ValueError: the network is in training mode.

    Explained in notebook 80, section "The network".
    """
    tensor = transforms.to_tensor(transforms.normalize(image, *normalization_of(config.backbone)))
    return net.predict_boundaries(tensor.to(net.fc_edge6.weight.device), pad_to=config.walk_pad_to)


def make_pseudo_masks(net: IRN, data: SegmentationDataset, maps_folder: Path, config: Settings, folder: Path) -> int:
    """Write `ID.png`, the maps after the random walk and a threshold, of every image that has none yet.

    Raises:
        DataError: a map is missing or broken.

    Explained in notebook 80, section "All images".
    """
    net, device = folded(net), net.fc_edge6.weight.device

    def work(image_id: str) -> None:
        classes, scores, size = read_maps(maps_folder / f"{image_id}.npz")
        edge = boundary_map(net, data.image(image_id), config)
        maps = torch.from_numpy(scores).to(device)
        walk = propagate(maps**config.walk_power, edge, config.walk_radius, config.walk_beta, config.walk_log2_steps)
        write_mask(folder / f"{image_id}.png", pseudo_mask(walk, classes, size, config.walk_threshold).cpu().numpy())

    return for_each_image(data.ids, lambda image_id: folder / f"{image_id}.png", work, "random walk", config)


# ---- stages


def _make_network(job: Job) -> int:
    given, start = job.config.irn_weights, job.inputs["classifier"].weights if "classifier" in job.inputs else Path()

    def train(net: IRN) -> int:
        images_seen = train_irn(net, job.data, job.inputs["seeds"].folder / "irn_labels", job.config, job.folder)
        set_mean_displacement(net, job.data, job.config)
        return images_seen

    return network_made(job, lambda: build_irn(job.config, start, given), train, given)


def _load_network(job: Job) -> IRN:
    return build_irn(job.config, Path(), job.weights).to(job.device).eval()


def _make_masks(job: Job) -> int:
    return make_pseudo_masks(job.inputs["irn"].net, job.data, job.inputs["maps"].folder, job.config, job.folder)


def _score_masks(job: Job) -> list[dict]:
    evaluation = score_masks(job.score_data, job.folder)
    return [metric_row("IRN pseudo-mask", job.score_data, evaluation, False, job.config)]


NETWORK = Stage(
    "irn",
    NOTEBOOK,
    _make_network,
    load=_load_network,
    inputs=lambda config: {"seeds": SEEDS} | ({"classifier": CLASSIFIER} if config.irn_init == "classifier" else {}),
    reads=lambda config: (*start_of(config.irn_init), "irn_*", *TRAINING),
)
MASKS = Stage(
    "pseudo_masks",
    NOTEBOOK,
    _make_masks,
    score=_score_masks,
    inputs=lambda config: {"maps": maps_of(config.method), "irn": NETWORK},
    reads=("backbone", "walk_*"),
    score_reads=("pixel_labels_chose",),
    shows={"IRN pseudo-mask": ""},
)
STAGES = (NETWORK, MASKS)


# ---- costs


def costs(config: Settings, data: Images) -> list[Cost]:
    """Count IRN and the walk."""
    net, batch = build_irn(config, Path()), crops(config.irn_crop)

    def loss_of(count: int) -> Tensor:
        edge_logit, displacement = net(batch(count))
        labels = torch.empty(count, *edge_logit.shape[2:], dtype=torch.long)
        return affinity_loss(edge_logit, displacement, labels, config.irn_train_radius, data.classes + 1).total

    seen = data.seen(config.irn_epochs, config.irn_batch_size)
    network = training_cost("irn", net, loss_of, seen, config.irn_batch_size, config)
    masks = inference_cost(
        "pseudo_masks",
        net.eval(),
        net.edge_logit,
        data.train,
        (max(data.size[0], config.walk_pad_to), max(data.size[1], config.walk_pad_to)),
        core_seconds=data.train * WALK_SECONDS * data.pixels,
        disk_mib=data.masks_mib,
    )
    return [network, masks]
