"""What DRS costs: a training step with the learnable modules against plain VGG's, and maps on disk against dense storage.

python benchmarks/drs.py [--quick]

Both networks run in this process, step by step in turn, on the same images; the modules' own gradient is first compared with
plain autograd's.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wsss_lib.artifacts import read_maps, write_maps
from wsss_lib.methods import drs
from wsss_lib.nets.vgg import VGG

GOAL_STEP, GOAL_STORAGE = 1.3, 10.0


class PlainSuppression(nn.Module):
    """The learnable module in the plain formulation, its gradient left to autograd."""

    def __init__(self, module: drs.Suppression):
        super().__init__()
        self.controller = module.controller

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r = F.relu(x)
        g = torch.sigmoid(self.controller(r.mean((2, 3))))[..., None, None]
        return torch.minimum(r, g * r.amax((2, 3), keepdim=True))


def vgg(delta: float) -> drs.ScoreNet:
    """Return VGG-16 with 20 classes; the same start for every delta."""
    torch.manual_seed(0)
    net = drs.ScoreNet(VGG(), 20, delta=1)
    if delta != 1:
        drs.suppress_backbone(net.backbone, delta)
        net.activations = nn.ModuleList(drs.Suppression(512, delta) for _ in range(3))
    return net.train()


def replace_by_plain(module: nn.Module) -> None:
    """Put the plain formulation in the place of every `Suppression`."""
    for name, child in module.named_children():
        if isinstance(child, drs.Suppression):
            setattr(module, name, PlainSuppression(child))
        else:
            replace_by_plain(child)


def gradient_difference(channels: int = 64, side: int = 40) -> float:
    """Return by how much the module's gradient differs from autograd's, relative to its size."""
    x, upstream = torch.randn(2, channels, side, side), torch.randn(2, channels, side, side)
    module, gradients = drs.Suppression(channels, 0), []
    for function in (module, PlainSuppression(module)):
        leaf = x.clone().requires_grad_()
        module.zero_grad()
        function(leaf).backward(upstream)
        gradients.append(torch.cat([leaf.grad.flatten(), module.controller.weight.grad.flatten()]))
    return ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()


def step_seconds(side: int, pairs: int) -> dict[str, float]:
    """Time one optimiser step (one image) of plain VGG, of ours and of the plain formulation, in turn; medians."""
    nets = {"plain VGG-16": vgg(1), "with DRS, ours": vgg(0), "with DRS, autograd": vgg(0)}
    replace_by_plain(nets["with DRS, autograd"])
    images, labels = torch.randn(1, 3, side, side), torch.zeros(1, 20)
    labels[0, 3] = 1
    seconds = {name: [] for name in nets}
    optimizers = {name: torch.optim.SGD(drs.parameter_groups(net, 1e-5, 5e-4), momentum=0.9, nesterov=True)
                  for name, net in nets.items()}
    for turn in range(pairs + 1):  # the first is not counted
        for name, net in nets.items():
            start = time.process_time()  # one thread: other programs do not count
            optimizers[name].zero_grad(set_to_none=True)
            drs.classification_loss(net, (images, labels))["loss"].backward()
            optimizers[name].step()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def storage(count: int) -> tuple[float, float]:
    """Return KiB an image of our maps and of the dense official array (20, 320, 320) uint8, and check what can be read back."""
    rng, sizes = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            classes = np.sort(rng.choice(20, 1 + index % 2, replace=False))  # 1.5 classes an image, as in VOC
            coarse = torch.from_numpy(rng.random((len(classes), 40, 40))).float()
            scores = F.interpolate(coarse[None], size=(94, 125), mode="bilinear", align_corners=True)[0].numpy()
            path = Path(folder, f"{index}.npz")
            write_maps(path, classes, scores, (375, 500))
            assert np.abs(read_maps(path)[1] - scores).max() < 1e-3
            sizes.append(path.stat().st_size)
    return statistics.mean(sizes) / 1024, 20 * 320 * 320 / 1024


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print the table and return its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller images, fewer repetitions")
    options = parser.parse_args(arguments)
    side, pairs, count = (96, 3, 8) if options.quick else (224, 7, 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if not (difference := gradient_difference()) < 1e-5:
            raise RuntimeError(f"the module's gradient differs by {difference:.1e} from autograd's")
        seconds = step_seconds(side, pairs)
    finally:
        torch.set_num_threads(threads)
    base = seconds["plain VGG-16"]
    print(f"training step, one image of {side}x{side}, one thread (goal: at most {GOAL_STEP})")
    for name, value in seconds.items():
        print(f"  {name:20s} {value:7.3f} s  {value / base:5.2f} x")
    ours, dense = storage(count)
    print(f"maps of an image with 1.5 classes: {ours:.0f} KiB, dense official array {dense:.0f} KiB: {dense / ours:.0f} times "
          f"(goal: at least {GOAL_STORAGE:.0f})")
    return {"step_ratio": seconds["with DRS, ours"] / base, "autograd_ratio": seconds["with DRS, autograd"] / base,
            "storage_ratio": dense / ours}


if __name__ == "__main__":
    main()
