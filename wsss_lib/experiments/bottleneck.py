"""The simulation of the information bottleneck (RIB: Lee, Choi, Mok, Yoon, NeurIPS 2021, section 3), on digits.

Two classes, the digits 2 and 8; a few of the images also hold a small shape that goes with the class. Networks trained on
them show, layer by layer, how much of the digit, of the shape and of the background their gradients still see. The
experiment has no published code; notebook 01 separates what the paper fixes, what is remembered of it and what is ours.
"""

import hashlib
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.core.files import read_json, read_tensors, write_json, write_tensors
from wsss_lib.core.parallel import for_each_image
from wsss_lib.core.stage import Job, Stage
from wsss_lib.experiments.digits import CANVAS, DigitImages, make_images, read_digits
from wsss_lib.parameters import Fraction, ParameterGroup, Positive, Settings, Text

NOTEBOOK = "01_rib_information_bottleneck"
THRESHOLD = 0.3  # a gradient above it is high
TEST_IMAGES = 100
SHAPE_SHARES = (0.0, 0.5, 1.0)  # tried beside the configuration's
RAISE_RATES = (1e-4, 3e-4, 1e-3, 2e-3, 5e-3)  # of the updates on one image
RAISED_IMAGES = 8

# HGR after G_1 to G_6, measured in the published figure (jbeomlee93/RIB, Demo/Figure_toy_pdf_v2.png), +-0.03.
PUBLISHED_HGR = {
    "discriminative": (1.0, 1.0, 1.0, 0.93, 0.63, 0.39),
    "non-discriminative": (1.0, 1.0, 1.0, 1.0, 0.88, 0.10),
    "irrelevant": (1.0, 0.03, 0.08, 0.03, 0.03, 0.05),
}


class Parameters(ParameterGroup):
    """01: the simulation of the information bottleneck."""

    bottleneck_mnist_root: Text = ""  # folder above torchvision's MNIST/raw; empty: scikit-learn's digits
    bottleneck_images: Positive = 8000  # for training
    bottleneck_shape_share: Fraction = 0.1  # of them that have the companion shape
    bottleneck_epochs: Positive = 1
    bottleneck_seeds: Positive = 5  # networks of each kind


# ---- the network


class FiveConvolutions(nn.Module):
    """Five convolutions of 3 x 3 with ReLU and one fully connected layer (section 3; widths and strides are ours).

    Args:
        num_logits: 1, or 2 for the softmax.

    Explained in notebook 01, section "The network and its outputs".
    """

    def __init__(self, num_logits: int = 1):
        super().__init__()
        widths, strides = (1, 8, 16, 16, 32, 32), (1, 2, 1, 2, 2)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1)
            for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        side = -(-CANVAS // 8)  # three strides of 2
        self.linear = nn.Linear(widths[-1] * side * side, num_logits)
        for convolution in self.convolutions:  # torch's own initialization is too small for five layers with ReLU
            nn.init.kaiming_normal_(convolution.get_parameter("weight"), nonlinearity="relu")
            nn.init.zeros_(convolution.get_parameter("bias"))

    def layers(self, images: Tensor) -> list[Tensor]:
        """Return T_1 to T_6 of images (N, 1, 36, 36): five feature maps (N, D, h, w) and the logits (N, num_logits)."""
        outputs, features = [], images
        for convolution in self.convolutions:
            features = F.relu(convolution(features))  # (N, D, h, w)
            outputs.append(features)
        return [*outputs, self.linear(features.flatten(1))]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_logits)."""
        return self.layers(images)[-1]


def own_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of each image's own class, (N,): (2y - 1) z with one logit, z_y with two.

    Args:
        logits: float (N, 1) or (N, 2).
        labels: int64 (N,), 0 or 1.
    """
    return logits[:, 0] * (2 * labels - 1) if logits.shape[1] == 1 else logits.gather(1, labels[:, None])[:, 0]


# From logits (N, num_logits) and labels (N,) to the mean loss. The first four saturate; "hinge" and "linear" are our controls:
# one-sided on the raw logit, and squared like tanh and softsign but without an activation.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": lambda logits, labels: F.binary_cross_entropy_with_logits(logits[:, 0], labels.float()),
    "softmax": F.cross_entropy,
    "tanh": lambda logits, labels: (1 - torch.tanh(own_logit(logits, labels))).square().mean(),
    "softsign": lambda logits, labels: (1 - F.softsign(own_logit(logits, labels))).square().mean(),
    "hinge": lambda logits, labels: F.relu(1 - own_logit(logits, labels)).mean(),
    "linear": lambda logits, labels: (1 - own_logit(logits, labels)).square().mean(),
}
SATURATING = ("sigmoid", "softmax", "tanh", "softsign")


def build_network(loss: str) -> FiveConvolutions:
    """Return an untrained network with the logits that a loss needs.

    Raises:
        ValueError: there is no such loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss {loss!r} is unknown; take one of: {', '.join(LOSSES)}")
    net = FiveConvolutions(2 if loss == "softmax" else 1)
    return net.to(memory_format=torch.channels_last)  # the same numbers, a little faster


def train_network(
    loss: str, data: DigitImages, epochs: int, seed: int, batch_size: int = 32, learning_rate: float = 2e-3
) -> FiveConvolutions:
    """Train a network with Adam; the learning rate falls linearly to zero.

    Args:
        seed: of weights and order; torch's own random state stays unchanged.

    Raises:
        ValueError: there is no such loss.

    Explained in notebook 01, section "The network and its outputs".
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_network(loss)
        optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
        batches = [batch for _ in range(epochs) for batch in torch.randperm(len(data)).split(batch_size)]
        for step, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / len(batches))
            optimizer.zero_grad()
            LOSSES[loss](net(data.images[batch]), data.labels[batch]).backward()
            optimizer.step()
    return net.eval()


@torch.inference_mode()
def accuracy(net: FiveConvolutions, data: DigitImages) -> float:
    """Return the fraction of images whose own class has the larger logit (one logit: the right sign), in [0, 1]."""
    logits = net(data.images)
    own = own_logit(logits, data.labels)
    other = -own if logits.shape[1] == 1 else own_logit(logits, 1 - data.labels)
    return (own > other).float().mean().item()


# ---- gradients


def gradient_maps(net: FiveConvolutions, images: Tensor, labels: Tensor) -> Tensor:
    """Return G_1 to G_6: how strongly each pixel moves the sum of a layer's output.

    G_k = |d sum(T_k) / dx| / max; for the last layer T_6 is the logit of the image's own class.

    Args:
        images: float (N, 1, H, W).
        labels: int64 (N,).

    Returns:
        float (K, N, H, W) in [0, 1], each map divided by its maximum; zero where the gradient is zero or not finite.

    Source: section 3 of the paper. Explained in notebook 01, section "Gradient maps in ten lines".
    """
    images = images.detach().clone().requires_grad_()
    *features, logits = net.layers(images)
    totals = [output.sum() for output in features] + [own_logit(logits, labels).sum()]
    gradients = [torch.autograd.grad(total, images, retain_graph=True)[0][:, 0] for total in totals]  # (N, H, W) each
    maps = torch.nan_to_num(torch.stack(gradients).abs(), nan=0.0, posinf=0.0)  # (K, N, H, W)
    return maps / maps.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def high_gradient_ratio(maps: Tensor, region: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Return the fraction of a region's pixels whose gradient is high (HGR), averaged over the images that have the region.

    Args:
        maps: float (..., N, H, W) in [0, 1].
        region: bool (N, H, W).
        threshold: a gradient above it is high.

    Returns:
        float (...) in [0, 1].

    Raises:
        ValueError: the sizes differ, or no image has the region.

    Source: section 3 of the paper. Explained in notebook 01, section "The high gradient ratio".

    >>> high_gradient_ratio(torch.tensor([[[1.0, 0.2, 0.4]]]), torch.tensor([[[True, True, False]]])).item()
    0.5
    """
    if maps.shape[-3:] != region.shape:
        raise ValueError(f"maps {tuple(maps.shape)} and region {tuple(region.shape)} must have the same images and sizes")
    pixels = region.sum((-2, -1))  # (N,)
    if not pixels.any():
        raise ValueError("no image has a pixel of this region; make images with shape_share above 0")
    high = ((maps > threshold) & region).sum((-2, -1))  # (..., N)
    return (high[..., pixels > 0] / pixels[pixels > 0]).mean(-1)


def hgr_curves(net: FiveConvolutions, data: DigitImages, threshold: float = THRESHOLD) -> Tensor:
    """Return the HGR of digit, shape and background after each layer: float (3, 6) in [0, 1].

    Args:
        threshold: a gradient above it is high.

    Raises:
        ValueError: no image has one of the regions.
    """
    maps = gradient_maps(net, data.images, data.labels)
    return torch.stack([high_gradient_ratio(maps, region, threshold) for region in data.regions])


# ---- the step to the method


def raise_logit(
    net: FiveConvolutions,
    image: Tensor,
    label: Tensor,
    others: DigitImages,
    learning_rate: float,
    steps: int = 10,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Push the raw logit of one image up, for a few steps of SGD from the trained weights, and watch its last map.

    The loss is minus the sum of the own logits of the image and of one companion of the other class, a new one in each step:
    nothing saturates, and only the learning rate holds the logits back.

    Args:
        image: float (1, H, W).
        label: int64 scalar.
        others: images to draw the companions from.
        learning_rate, steps: of SGD.

    Returns:
        G_6 before each step and after the last, float (steps + 1, H, W), and the image's own logit, float (steps + 1,). If
        the logit overflows, the updates end: the remaining maps are zero and the logits NaN.

    Raises:
        ValueError: `others` has no image of the other class.

    Source: RIB without its pooling and its stops. Explained in notebook 01, section "From the toy to the
    method".
    """
    pool = torch.nonzero(others.labels != label)[:, 0]
    if not len(pool):
        raise ValueError(f"no companion: none of the {len(others)} other images has another label than {int(label)}")
    net, random = deepcopy(net), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate)
    maps, logits = torch.zeros(steps + 1, *image.shape[-2:]), torch.full((steps + 1,), torch.nan)
    for step in range(steps + 1):
        other = pool[torch.randint(len(pool), (1,), generator=random)]
        images, labels = torch.cat([image[None], others.images[other]]), torch.cat([label[None], others.labels[other]])
        own = own_logit(net(images), labels)  # (2,)
        if not torch.isfinite(own[0]):
            break
        maps[step], logits[step] = gradient_maps(net, image[None], label[None])[-1, 0], own[0].detach()
        optimizer.zero_grad()
        (-own.sum()).backward()
        optimizer.step()
    return maps, logits


# ---- all runs of notebook 01


def run_name(loss: str, shape_share: float, seed: int) -> str:
    """Return the name of a run's files, without their endings.

    Args:
        shape_share: fraction of the training images that have a shape, in [0, 1].

    >>> run_name("sigmoid", 0.5, 0)
    'sigmoid_0.5_0'
    """
    return f"{loss}_{shape_share:g}_{seed}"


def train_all(config: Settings, folder: Path) -> int:
    """Train the networks of all losses and of all fractions of images with a shape, each with several seeds.

    Returns:
        the number of networks trained.

    Explained in notebook 01, section "The network and its outputs".
    """
    share = config.bottleneck_shape_share
    kinds = [(loss, share) for loss in LOSSES] + [("sigmoid", other) for other in SHAPE_SHARES if other != share]
    seeds = range(config.seed, config.seed + config.bottleneck_seeds)
    names = [run_name(*kind, seed) for kind in kinds for seed in seeds]
    return for_each_image(
        names,
        lambda name: folder / f"{name}.json",
        partial(_run, config=config, folder=folder),
        "networks",
        config,
        config.num_workers,
    )


def images_of(config: Settings, shape_share: float, seed: int) -> tuple[DigitImages, DigitImages]:
    """Return the training images of a run and the test images, which are the same for all runs and all have a shape.

    Args:
        shape_share: fraction of the training images that have a shape, in [0, 1].

    Raises:
        FileNotFoundError: a file of MNIST is missing.
        DataError: it is broken.
        ValueError: no training images, or a fraction outside [0, 1].
    """
    for_training, for_testing = read_digits(config.bottleneck_mnist_root)
    return (
        make_images(*for_training, config.bottleneck_images, shape_share, seed + 1),
        make_images(*for_testing, TEST_IMAGES, 1.0, config.seed),
    )


def _run(name: str, config: Settings, folder: Path) -> None:
    """Train one network; write its weights, then its measurements."""
    loss, share, seed = name.split("_")
    train, test = images_of(config, float(share), int(seed))
    net = train_network(loss, train, config.bottleneck_epochs, int(seed))
    row = {
        "loss": loss,
        "shape_share": float(share),
        "seed": int(seed),
        "hgr": hgr_curves(net, test).tolist(),
        "accuracy": accuracy(net, test),
        "accuracy_digits_alone": accuracy(net, test.digits_alone()),
        "accuracy_shapes_alone": accuracy(net, test.shapes_alone()),
    }
    if loss == "sigmoid" and float(share) == config.bottleneck_shape_share:
        row["raised"] = [raised_hgr(net, train, test, rate) for rate in RAISE_RATES]
    write_tensors(folder / f"{name}.safetensors", net.state_dict())
    write_json(folder / f"{name}.json", row)


def raised_hgr(net: FiveConvolutions, train: DigitImages, test: DigitImages, learning_rate: float) -> dict[str, list]:
    """Return the mean HGR of the three regions and the median own logit while the logits of some test images are raised.

    Args:
        train: images to draw the companions from.
        test: its first `RAISED_IMAGES` images are raised, each alone.
        learning_rate: of the updates.

    Returns:
        "hgr": three lists of steps + 1 numbers in [0, 1]; "logit": steps + 1 numbers in [-1e9, 1e9], where an image whose
        logit has overflowed counts as 1e9.

    Raises:
        ValueError: an image has no companion of the other class, or none of the images has one of the regions.
    """
    images = range(min(RAISED_IMAGES, len(test)))
    pairs = [raise_logit(net, test.images[index], test.labels[index], train, learning_rate, seed=index) for index in images]
    maps = torch.stack([maps for maps, _ in pairs], 1)  # (steps + 1, N, H, W)
    logits = torch.stack([logits for _, logits in pairs])  # (N, steps + 1)
    hgr = torch.stack([high_gradient_ratio(maps, region[: len(images)]) for region in test.regions])
    return {"hgr": hgr.tolist(), "logit": torch.nan_to_num(logits, nan=torch.inf).clamp(-1e9, 1e9).median(0).values.tolist()}


def read_network(folder: Path, loss: str, shape_share: float, seed: int) -> FiveConvolutions:
    """Return a trained network of `train_all`, in evaluation mode.

    Args:
        shape_share: fraction of the training images that had a shape, in [0, 1].

    Raises:
        ValueError: there is no such loss.
        FileNotFoundError: there is no such run.
        DataError: its weights file is broken.
    """
    net = build_network(loss)
    net.load_state_dict(read_tensors(folder / f"{run_name(loss, shape_share, seed)}.safetensors"))
    return net.eval()


def read_runs(folder: Path) -> dict[tuple[str, float], list[dict]]:
    """Return the measurements of `train_all`, by (loss, fraction of images with a shape), in the order of the seeds."""
    runs: dict[tuple[str, float], list[dict]] = {}
    for row in sorted((read_json(path) for path in folder.glob("*_*_*.json")), key=lambda row: row["seed"]):
        runs.setdefault((row["loss"], row["shape_share"]), []).append(row)
    return runs


# ---- stage


def _score(job: Job) -> list[dict]:
    return [
        {
            "what": "high gradient ratio",
            "split": "test",
            "images": TEST_IMAGES,
            "loss": loss,
            "shape_share": part,
            "runs": len(runs),
            "hgr": np.mean([run["hgr"] for run in runs], 0).round(4).tolist(),
        }
        for (loss, part), runs in read_runs(job.folder).items()
    ]


def _hash_of_digits(job: Job) -> dict[str, str]:
    arrays = [array for part in read_digits(job.config.bottleneck_mnist_root) for array in part]
    return {"digits": hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()}


RUNS = Stage(
    "bottleneck",
    NOTEBOOK,
    lambda job: train_all(job.config, job.folder) * job.config.bottleneck_images * job.config.bottleneck_epochs,
    files=_hash_of_digits,
    split="",
    score=_score,
    needs_masks=False,
    method="rib",
    reads=("bottleneck_*", "seed"),
)
