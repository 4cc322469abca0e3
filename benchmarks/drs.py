"""What DRS's learnable modules cost in training: their own gradient against autograd's, and against VGG-16 without them.

python benchmarks/drs.py [--quick]

Both networks make the gradients of one image in turn. The second case has no common result: it says which share of the time
with DRS a step without it takes (the modules may cost three tenths).
"""

from functools import partial

import torch
import torch.nn.functional as F
from measuring import Case, Row, compare, main
from torch import nn

from wsss_lib.methods import drs
from wsss_lib.nets.vgg import VGG


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


def prepare(side: int, delta: float = 0):
    """Return a training step of the plain formulation (delta 1: of VGG-16 without suppression) and of ours.

    A step returns the gradients of the first convolution and of the last one, each divided by its norm.
    """
    plain_net, net = vgg(delta), vgg(0)
    if delta == 0:
        plain_net.load_state_dict(net.state_dict())
        replace_by_plain(plain_net)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(1, 3, side, side, generator=generator), torch.zeros(1, 20)
    labels[0, 3] = 1

    def step(net: nn.Module) -> list[torch.Tensor]:
        net.zero_grad(set_to_none=True)
        drs.classification_loss(net, (images, labels))["loss"].backward()
        weights = [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]
        return [weight.grad / weight.grad.norm() for weight in (weights[0], weights[-1])]

    return lambda: step(plain_net), lambda: step(net)


CASES = (
    Case("DRS's training step", (64, 128, 224), prepare, tolerance=1e-3, pairs=7, show=lambda side: f"{side}x{side}"),
    Case(
        "VGG-16 without DRS / with",
        (64, 128, 224),
        partial(prepare, delta=1),
        tolerance=0,
        goal=1 / 1.3,
        pairs=7,
        differ=lambda one, other: 0.0,
        show=lambda side: f"{side}x{side}",
    ),
)


def measure(quick: bool = False) -> list[Row]:
    return [row for case in CASES for row in compare(case, quick)]


if __name__ == "__main__":
    main(measure, __doc__)
