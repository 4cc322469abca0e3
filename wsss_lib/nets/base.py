"""What every backbone offers, whichever network it is; `wsss_lib.nets.backbone` builds them."""

from typing import TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)  # for a function that returns the network it was given


class Backbone(nn.Module):
    """Base class of all backbones: five feature maps, shallow to deep. Called with images, it returns the deepest map.

    Attributes:
        channels: of the five maps.
        strides: of the five maps, in pixels of the image.
        feature_scale: factor on the deepest map before a head with a fixed initialization (DeepLab's ASPP).
        map_power: exponent of the activation maps.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    feature_scale: float
    map_power: float

    def forward(self, images: Tensor) -> Tensor:
        """Return the deepest map of normalized images float32 (N, 3, H, W)."""
        raise NotImplementedError

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the five maps (N, channels[i], about H/strides[i], about W/strides[i]) of images (N, 3, H, W)."""
        raise NotImplementedError

    def shallow_modules(self, num_stages: int) -> list[nn.Module]:
        """Return the modules that make the first `num_stages` of the five maps (0 to 5)."""
        raise NotImplementedError

    def shallow(self, images: Tensor, num_stages: int) -> Tensor:
        """Return the output of the first `num_stages` (1 to 5). RIB needs it; ResNets and EfficientNet-Lite0 have it."""
        raise NotImplementedError

    def deep(self, features: Tensor, num_stages: int) -> Tensor:
        """Return the deepest map from the output of `shallow` with the same `num_stages`: together they are `forward`."""
        raise NotImplementedError
