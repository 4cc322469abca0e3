"""Golden cases of VWE and VWL: see tests/golden_adapters.py."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsss_lib.config import Config
from wsss_lib.core import training
from wsss_lib.methods import cam, vwe
from wsss_lib.ops import merging
from wsss_lib.ops.crf import crf_from_maps, soft_scores
from wsss_lib.ops.metrics import confusion_matrix, scores

Arrays = dict[str, np.ndarray]


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


class Given(torch.nn.Module):
    """A backbone that returns its input, which stands for the last feature map."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels, self.map_power = (channels,), 1

    def forward(self, features: Tensor) -> Tensor:
        return features

    def shallow_modules(self, num_stages: int) -> list:
        return []


def network(case: Arrays, codebook: np.ndarray, variant: vwe.Variant) -> vwe.VisualWordNet:
    """Build the three heads and the codebook of a case."""
    num_classes, channels = case["weight_classifier.weight"].shape[:2]
    net = vwe.VisualWordNet(Given(channels), num_classes, len(codebook), variant)
    for head, name in ((net.classifier, "classifier"), (net.histogram_head, "fc_a"), (net.word_head, "fc_b")):
        head.weight.data = tensor(case[f"weight_{name}.weight"])
    net.codebook.data = tensor(codebook).flatten(1).clone()
    return net


def encoder(case: Arrays) -> Arrays:
    codebook = tensor(case["weight_centroid"]).flatten(1).requires_grad_()
    words = vwe.encode(tensor(case["in_features"]), codebook, float(case.get("in_tau", 1.0)))
    result = {
        "out_assignment": words.assignment,
        "out_word_index": words.index,
        "out_histogram": words.histogram[:, :, None, None],
        "out_word_label": words.present,
    }
    if "in_upstream" in case:
        (result["out_histogram"] * tensor(case["in_upstream"])).sum().backward()
        result["out_grad_centroid"] = codebook.grad[:, :, None, None]
    return {name: value.detach().numpy() for name, value in result.items()}


def hspp(case: Arrays) -> Arrays:
    result = {}
    for number in (name.removeprefix("in_x_") for name in case if name.startswith("in_x_")):
        x = tensor(case[f"in_x_{number}"]).requires_grad_()
        y = vwe.hspp(x, float(case["in_gamma"]), case["in_levels"].tolist())
        (y * tensor(case[f"in_upstream_{number}"])).sum().backward()
        result |= {f"out_y_{number}": y.detach().numpy(), f"out_grad_x_{number}": x.grad.numpy()}
    return result


def forward_losses(case: Arrays, variant: vwe.Variant = "vwe") -> Arrays:
    net = network(case, case["weight_VWE.centroid"], variant)
    features, labels = tensor(case["in_features"]).requires_grad_(), tensor(case["in_image_labels"])
    terms, out = vwe.loss_terms(net, features, labels)
    loss = vwe.losses(net, (features, labels))["loss"]
    loss.backward(retain_graph=True)
    result = {
        "out_logits": out.logits,
        "out_hist_logits": out.histogram_logits,
        "out_word_logits": out.word_logits,
        "out_word_labels": out.words.present,
        "out_loss_cls": terms["class"],
        "out_loss_hist": terms["histogram"],
        "out_loss_word": terms["word"],
        "out_loss": loss,
        "out_grad_features": features.grad,
        "out_cam": net.activation_maps(features),
        "out_grad_classifier.weight": net.classifier.weight.grad,
        "out_grad_fc_a.weight": net.histogram_head.weight.grad,
        "out_grad_fc_b.weight": net.word_head.weight.grad,
        "out_grad_VWE.centroid": net.codebook.grad[:, :, None, None],
    }
    if variant == "vwl_l":
        entropy = vwe.entropy(out.word_logits)
        (codebook_gradient,) = torch.autograd.grad(terms["decorrelation"], net.codebook)
        (feature_gradient,) = torch.autograd.grad(entropy, features)
        result |= {
            "out_loss_decov": terms["decorrelation"],
            "out_entropy": entropy,
            "out_grad_decov_centroid": codebook_gradient[:, :, None, None],
            "out_grad_entropy_features": feature_gradient,
        }
    return {name: value.detach().numpy() for name, value in result.items()}


def memory_bank(case: Arrays) -> Arrays:
    codebook = tensor(case["in_codebook"])
    steps: dict[str, list] = {name: [] for name in ("counts", "word_labels", "loss_cls", "loss_word")}
    codebooks = [codebook]
    for features in map(tensor, case["in_features"]):
        net = network(case, codebook.numpy(), "vwl_m")
        terms, out = vwe.loss_terms(net, features, tensor(case["in_image_labels"]))
        codebook = vwe.moving_average(codebook, features, out.words.index, case["in_rho"].item())
        codebooks.append(codebook)
        steps["counts"].append(out.words.index.flatten().bincount(minlength=len(codebook)))
        steps["word_labels"].append(out.words.present)
        steps["loss_cls"].append(terms["class"].detach())
        steps["loss_word"].append(terms["word"].detach())
    return {
        "out_codebooks": torch.stack(codebooks).numpy(),
        **{f"out_{name}": torch.stack(values).numpy() for name, values in steps.items()},
    }


@torch.inference_mode()
def make_cam(case: Arrays) -> Arrays:
    weight = case["weight_classifier.weight"]
    net = cam.ClassActivationNet(Given(weight.shape[1]), len(weight))
    net.classifier.weight.data = tensor(weight)
    numbers = sorted(int(name.removeprefix("in_feat_")) for name in case if name.startswith("in_feat_"))
    maps = [net.activation_maps(tensor(case[f"in_feat_{number}"])) for number in numbers]
    keys, size = np.flatnonzero(case["in_image_label"]), tuple(case["in_size"].tolist())
    return {
        "out_keys": keys,
        "out_cam": merging.merge_views(
            merging.join_flips(maps, tensor(keys), torch.maximum), merging.stride4_size(size)
        ).numpy(),
        "out_high_res": merging.merge_views(merging.join_flips(maps, tensor(keys), torch.maximum), size).numpy(),
    }


def poly_sgd(case: Arrays) -> Arrays:
    """The library's training loop on a loss that is linear in two parameters, so that the gradients are those given."""
    from tests.golden_adapters import GivenGradients  # which imports this module

    net = torch.nn.Module()
    net.p, net.q = (torch.nn.Parameter(tensor(case[name]).clone()) for name in ("in_p0", "in_q0"))
    rates, weight_decay = case["in_lr"].tolist(), case["in_weight_decay"].item()
    steps, max_step, power = len(case["in_grad_p"]), int(case["in_max_step"]), case["in_power"].item()
    momentum = weight_decay  # the program hands it over where SGD expects the momentum
    used, before = [], []

    def schedule(step: int, _: int) -> float:
        factor = training.poly_factor(min(step, max_step - 1), max_step, power)  # the official rate stays at its last value
        used.append([factor * rate for rate in rates])
        return factor

    def loss_of(model: torch.nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        before.append((model.p.detach().numpy().copy(), model.q.detach().numpy().copy()))
        return {"loss": (model.p * batch[0][0]).sum() + (model.q * batch[1][0]).sum()}

    groups = [
        {"params": [parameter], "lr": rate, "weight_decay": weight_decay}
        for parameter, rate in zip((net.p, net.q), rates, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            net,
            loss_of,
            GivenGradients(case["in_grad_p"], case["in_grad_q"]),
            groups,
            momentum,
            steps,
            1,
            Config(num_workers=0, checkpoint_every=10 * steps),
            Path(folder),
            schedule,
        )
    after = [*before[1:], (net.p.detach().numpy(), net.q.detach().numpy())]
    return {
        "out_lr": np.array(used),
        "out_p": np.stack([p for p, _ in after]),
        "out_q": np.stack([q for _, q in after]),
        "out_effective_momentum": np.float64(momentum),
    }


def score_rules(case: Arrays) -> Arrays:
    confusion = confusion_matrix(case["in_gt"], case["in_pred"], 21)
    official = scores(confusion, "present")
    return {
        "out_mean_iou": official.miou,
        "out_pixel_accuracy": official.pixel_accuracy,
        "out_mean_accuracy": official.mean_accuracy,
        "out_class_iou": official.iou,
        "out_chainercv_mean_iou": scores(confusion, "union").miou,
    }


def crf(case: Arrays) -> Arrays:
    maps, background = case["in_high_res"], case["in_bkgscore"].item()
    return {
        "out_prob_before": soft_scores(maps, background),
        "out_pred": crf_from_maps(case["in_image"], maps, case["in_keys"], background),
    }


ADAPTERS: dict[str, Callable[[Arrays], Arrays]] = {
    "vwe__encoder": encoder,
    "vwe__forward_losses": forward_losses,
    "vwe__hspp": hspp,
    "vwe__make_cam": make_cam,
    "vwe__poly_sgd": poly_sgd,
    "vwe__scores": score_rules,
    "vwl__crf": crf,
    "vwl__encoder_tau": encoder,
    "vwl__forward_losses": lambda case: forward_losses(case, "vwl_l"),
    "vwl__memory_bank": memory_bank,
}

LOSSES = (("out_word_labels", "equal", 1), ("out_grad_features", "absolute", 1e-6), ("out_grad_*", "absolute", 1e-4))
TOLERANCE: dict[str, tuple[tuple[str, str, float], ...]] = {
    "vwe__encoder": (("out_word_*", "equal", 1), ("out_grad_centroid", "absolute", 1e-4), ("*", "absolute", 1e-5)),
    "vwe__forward_losses": (*LOSSES, ("*", "absolute", 1e-5)),
    "vwe__hspp": (("out_grad_*", "absolute", 1e-6), ("*", "absolute", 1e-5)),
    "vwe__make_cam": (("out_keys", "equal", 1), ("*", "absolute", 1e-5)),
    "vwe__poly_sgd": (("*", "absolute", 1e-5),),
    "vwe__scores": (("*", "absolute", 1e-5),),
    "vwl__crf": (("out_pred", "equal", 0.995), ("*", "absolute", 1e-5)),
    "vwl__encoder_tau": (("out_word_*", "equal", 1), ("*", "absolute", 1e-5)),
    "vwl__forward_losses": (
        ("out_grad_entropy_features", "absolute", 1e-6),
        *LOSSES,
        ("out_loss_decov", "absolute", 1e-4),
        ("*", "absolute", 1e-5),
    ),
    "vwl__memory_bank": (("out_word_labels", "equal", 1), ("out_counts", "equal", 1), ("*", "absolute", 1e-5)),
}
