# %% [markdown]
# # 90 · The segmentation network: DeepLab
#
# *In: training images with a pseudo-mask each. Out: a network that segments images of which nothing is known, and its
# masks of the validation images.*
#
# | | |
# |---|---|
# | **Needs** | notebook 80 (`pseudo_masks/`); notebook 10 if the network starts from the classifier |
# | **Writes** | `deeplab/weights.safetensors`, `predictions/plain/ID.png`, `predictions/crf/ID.png` |
# | **Time and memory** | smoke: about 3 minutes of one CPU core, 1 GB. One A100, estimated in docs/costs.md: VOC 0.7 hours and 0.8 core hours of CRF, COCO 5 and 37 |
# | **Paper** | Chen, Papandreou, Kokkinos, Murphy, Yuille, *DeepLab* (version 2), TPAMI 2018; Chen, Zhu, Papandreou, Schroff, Adam, *DeepLab-v3+*, ECCV 2018 |
#
# **Goals.** After this notebook you can
#
# 1. say how a dilated convolution sees far without losing resolution, and write one,
# 2. explain why DeepLab-v2 has four losses, three learning rates and a label 255 that is never interpolated,
# 3. read a table of weakly-supervised results and ask the right question: *which initial weights?*
#
# ![The chain of seven steps from left to right: image, classifier, CAM, seed mask, pseudo-mask, DeepLab, prediction; DeepLab and prediction are framed thickly](../docs/figures/chain_deeplab.svg)

# %% tags=["parameters"]
dataset = "toy"  # name of the run's folder below runs_root
data_root = "data/toy"  # VOC devkit folder
method = "cam"  # whose pseudo-masks; "truth": the ground truth, an upper reference
seed = 0  # of everything that is random
val_split = "val"  # images that are segmented
deeplab_version = "v2"  # or "v3plus", see section 11
refinement = "irn"  # whose masks it is trained on: irn (notebook 80), affinitynet (75), drs (30)
deeplab_backbone = "resnet_small"  # resnet101 in the paper
deeplab_weights = ""  # a finished segmentation network instead of training
deeplab_init = "classifier"  # imagenet, classifier (of notebook 10), none, or a file; see section 6
deeplab_output_stride = 8
deeplab_atrous_rates = [1, 2, 4, 6]  # 6, 12, 18, 24 in the paper, on maps of 41 x 41; the toy's maps have 12 x 12
deeplab_iterations = 900  # 20000 in the paper
deeplab_batch_size = 16  # 10 in the paper
deeplab_accumulation = 1  # equal parts of a batch, each with a mean loss of its own; 2 in the paper
deeplab_learning_rate = 0.003  # 2.5e-4 in the paper, for pre-trained weights
deeplab_loss = "cross_entropy"  # or "balanced" (AdvCAM, RIB, AMN) or "self_label" (DRS)
deeplab_crop = 96  # 321 in the paper
deeplab_scales = [1.0, 1.25, 1.5]  # one is drawn for each image; 0.5, 0.75, 1, 1.25, 1.5 in the paper
deeplab_test_scales = [0.5, 0.75]  # beside 1.0, in training and in testing

# %%
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from wsss_lib import results, viz, widgets
from wsss_lib.config import Config
from wsss_lib.core.scoring import iou_of_images, score_masks
from wsss_lib.core.stage import folder_of, open_stage, run, run_folder_of
from wsss_lib.core.training import poly_factor
from wsss_lib.data import transforms
from wsss_lib.data.dataset import open_data
from wsss_lib.methods import cam
from wsss_lib.nets import deeplab_v2, deeplab_v3plus
from wsss_lib.nets.backbone import build_backbone, normalization_of
from wsss_lib.ops.crf import crf_from_labels, crf_from_probabilities, crf_segmentation
from wsss_lib.segment import deeplab

# %%
config = Config.from_notebook(globals())
viz.use_style()

# %% [markdown]
# If an input is missing, the next cell names the notebook to run. With `method = "truth"` the network trains on the ground truth. **That run uses pixel labels**: it is the
# upper reference and not a weakly-supervised result. (On VOC's `train_aug` the ground truth is in another folder: add `-p
# mask_folder SegmentationClassAug`.)

# %%
train_data, val_data = open_data(config, config.train_split), open_data(config, config.val_split).scored()
widgets.leave_out_cells(config, val_data)
training_masks = None if config.method == "truth" else open_stage(deeplab.masks_of(config), config)
print(f"{len(train_data)} training images, {len(val_data)} validation images, {train_data.num_classes} classes and background;",
      "trained on", "pseudo-masks (image-level labels only)" if training_masks else "THE GROUND TRUTH (pixel labels)")

# %% [markdown]
# Why train another network when every training image has a mask? The pseudo-masks need the image-level label; a segmentation
# network needs only the image. It may also average: a mistake that is made in one image but not in fifty like it may not
# survive training (section 9 measures that).
#
# ## 1 The network
#
# A classification network halves its resolution five times, so one feature stands for 32 x 32 pixels, too coarse for outlines.
# DeepLab takes out the last two strides, which leaves 8 x 8 pixels. But a 3x3 convolution that was trained on the coarse grid
# would now look at too small a part of the image. So its nine taps are spread by the *rate* $r$, in the *atrous* (with holes)
# or dilated convolution:
#
# $$ y[i] = \sum_{k \in \{-1, 0, 1\}^2} w[k]\; x[i + r\,k] $$
#
# In plain lines, against torch:

# %%
def atrous_convolution(x, weight, rate):
    """x: (D, h, w), weight: (K, D, 3, 3). Return (K, h, w): every tap is the input, shifted by the rate."""
    channels, height, width = x.shape
    padded = F.pad(x, (rate, rate, rate, rate))  # zeros outside
    y = torch.zeros(len(weight), height, width)
    for ky in range(3):
        for kx in range(3):
            shifted = padded[:, ky * rate:ky * rate + height, kx * rate:kx * rate + width]
            y += torch.einsum("kd,dhw->khw", weight[:, :, ky, kx], shifted)
    return y


torch.manual_seed(config.seed)
for rate in (1, 6, 12):
    layer = torch.nn.Conv2d(8, 5, 3, padding=rate, dilation=rate, bias=False)
    x = torch.randn(8, 20, 30)
    assert torch.allclose(atrous_convolution(x, layer.weight, rate), layer(x[None])[0], atol=1e-5)
print("plain lines = nn.Conv2d for rates 1, 6 and 12:", True)

# %% [markdown]
# The published backbone, ResNet-101, has rates 2 and 4 in `layer3` and `layer4` instead of strides. The small backbone of the
# smoke run is too shallow to need dilation.

# %%
with torch.device("meta"):
    published_net = deeplab_v2.DeepLabV2(build_backbone("resnet101", output_stride=8), num_classes=21)
print(f"ResNet-101, 21 classes: strides {published_net.backbone.strides}, "
      f"{sum(parameter.numel() for parameter in published_net.parameters()):,} parameters")
for name in ("layer1", "layer2", "layer3", "layer4"):
    print(f"  {name}: rate {getattr(published_net.backbone, name)[-1].conv2.dilation[0]}")

# %% tags=["nbval-ignore-output"]
given = config.deeplab_weights if config.deeplab_version == "v2" else ""
as_v2 = config.model_copy(update={"deeplab_version": "v2"})  # sections 1 to 5 are about version 2, whatever is trained
if config.deeplab_weights:  # nothing is trained, so no start is needed
    as_v2 = as_v2.model_copy(update={"deeplab_init": "none"})
start = open_stage(cam.CLASSIFIER, config).weights if as_v2.deeplab_init == "classifier" else ""
net = deeplab.build_deeplab(as_v2, train_data.num_classes, start, given)
images = torch.randn(2, 3, config.deeplab_crop, config.deeplab_crop)
with torch.no_grad():
    features = net.backbone(images)  # f: (N, D, h, w)
    logits = net(images)  # z: (N, K, h, w)
print("images", tuple(images.shape), "-> features", tuple(features.shape), "-> logits", tuple(logits.shape))
net.train()
frozen = [module for module in net.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
assert not any(module.training or module.weight.requires_grad for module in frozen)
print(f"{len(frozen)} batch normalizations frozen, even after train():", True)

# %% [markdown]
# Batch normalization is frozen entirely, statistics and affine parameters: a batch of ten images is too small to estimate
# statistics, so the initial ones stay.
#
# ## 2 Atrous spatial pyramid pooling
#
# ![Four grids with the nine positions of a 3 by 3 kernel at dilation 6, 12, 18 and 24, farther and farther apart; the four results are added](../docs/figures/aspp.svg)
#
# Objects come in all sizes. So the head (ASPP) looks with four rates at once: four 3x3 convolutions, each a classifier of its
# own, and their sum
#
# $$ z = \sum_{r \in \{6, 12, 18, 24\}} \mathrm{Conv}^{3\times3}_r(f). $$
#
# There is no normalization, no ReLU and no pooled branch. The gradient of one output pixel with respect to the input is not
# zero where the input matters. What to look for: nine points each, with one in common.

# %%
rates = (6, 12, 18, 24)
cases = {f"rate {rate}": (rate,) for rate in rates} | {"sum of all four": rates}


def seen_by_one_pixel(rates, side=57):
    """Return where the gradient of the central output pixel is not zero: bool (side, side)."""
    head = deeplab_v2.ASPPV2(1, 1, rates)
    x = torch.zeros(1, 1, side, side, requires_grad=True)
    head(x)[0, 0, side // 2, side // 2].backward()
    return x.grad[0, 0] != 0


seen = {name: seen_by_one_pixel(chosen) for name, chosen in cases.items()}
viz.show_panels([viz.heat_map(points, f"{name}: {points.sum()} points") for name, points in seen.items()],
                "Four square patterns of nine points, each wider than the one before; their sum is a star of 33 points", size=2.6)

# %% [markdown]
# On the feature map a single rate sees eight directions at one distance; the sum sees them at four. What to look for in the
# gradient down to the pixels of an image: the backbone's own receptive field smears every point and closes the holes of the
# small rates (those of rates 18 and 24 stay open with this small backbone).

# %%
# needs lessons
def strength_in_image(rates, side=417):
    """Return how much each block of 4 x 4 pixels matters for the central output pixel: (h, w), the largest 1."""
    probe = deeplab_v2.DeepLabV2(build_backbone("resnet_small", 8), 2, rates).eval()
    pixels = torch.full((1, 3, side, side), 0.1, requires_grad=True)
    z = probe(pixels)
    z[0, 1, z.shape[2] // 2, z.shape[3] // 2].backward()
    strength = F.avg_pool2d(pixels.grad.abs().sum(1), 4)[0]
    return strength / strength.max()


torch.manual_seed(config.seed)
viz.show_panels([viz.heat_map(strength_in_image(chosen) ** 0.25, name) for name, chosen in cases.items()],
                "In the image every point is a soft patch; all four rates make a star, dense in the middle", size=2.6)

# %% [markdown]
# **A limit.** A tap that falls off the map sees zeros. On a small map the large rates keep only their center and are 1x1
# convolutions. How many taps of a central pixel lie inside? The side of the map is 41 for the published crop of 321 pixels, 12
# for a toy image:

# %%
for side in (12, 41, 63):
    inside = {rate: sum(0 <= side // 2 + a * rate < side and 0 <= side // 2 + b * rate < side for a in (-1, 0, 1) for b in (-1, 0, 1))
              for rate in rates}
    print(f"map of {side} x {side}:", inside, "of 9 taps")
print("rates of this run:", config.deeplab_atrous_rates)

# %% [markdown]
# Even on the published crop, rate 24 has only its center left in the middle of the map; its other taps serve pixels near the
# rim, and larger test images. On the toy's maps that would happen to three of the four rates, so the smoke run has smaller
# ones.
#
# ## 3 Three scales
#
# The network runs on the image at full size, at three quarters and at half. The logits are brought to one size, and each pixel
# takes the *maximum* for each class:
#
# $$ z_{\max} = \max\big(z_1,\ \mathrm{up}(z_{0.75}),\ \mathrm{up}(z_{0.5})\big) $$
#
# A large object fits the network's view better in the small image, a small one in the full image; the maximum takes
# whichever is surer. In plain lines:

# %% tags=["nbval-ignore-output"]
net.eval()
with torch.no_grad():
    z = [net(images)]
    z_max = z[0]
    for p in config.deeplab_test_scales:
        z.append(net(F.interpolate(images, scale_factor=p, mode="bilinear", align_corners=False)))
        z_max = torch.maximum(z_max, F.interpolate(z[-1], size=z[0].shape[-2:], mode="bilinear", align_corners=False))
    from_library = deeplab_v2.multi_scale_logits(net, images, config.deeplab_test_scales)
assert all(torch.equal(a, b) for a, b in zip([*z, z_max], from_library, strict=True))
print("plain lines = library:", True)
print("sizes of z_1, the smaller ones and the maximum:", [tuple(part.shape[-2:]) for part in from_library])

# %% [markdown]
# Training returns all three, each at its own size, and the maximum.
#
# ## 4 The loss
#
# Each of the four logit maps has its own loss, and the four are *summed*. The label map must be brought to the size of each,
# and here is the classic mistake: a label is a name, not a quantity. Between class 1 and class 3 there is no class 2, and
# between class 1 and unknown (255) there is nothing at all:

# %%
label = torch.tensor([[[1, 1, 1, 1, 255, 255, 3, 3, 3, 3, 3, 3]]])  # (N, H, W) of one row
blurred = F.interpolate(label[None].float(), size=(1, 8), mode="bilinear", align_corners=False)[0].round().long()
nearest = deeplab_v2.resize_labels(label, (1, 8))
print("bilinear:", blurred.flatten().tolist())
print("nearest: ", nearest.flatten().tolist())
sources = [int((i + 0.5) * 12 / 8) for i in range(8)]  # floor((i + 0.5) H / h)
assert nearest.flatten().tolist() == label.flatten()[sources].tolist()
assert set(nearest.flatten().tolist()) <= {1, 3, 255} and not set(blurred.flatten().tolist()) <= {1, 3, 255}

# %% [markdown]
# Bilinear resizing invents classes, and turns unknown into labels that punish the network for being right. Nearest neighbor
# makes no new value. 255 stands for what nobody knows (void borders of ground truth) and for what lies outside the image in a
# crop; it is left out of every mean.
#
# **Two losses.** Plain cross-entropy is the mean over all known pixels. If nine tenths are background, so is nine tenths of the
# loss. The balanced form (of DSRG; used by AdvCAM, RIB and AMN) takes half the mean over background and half the mean over
# objects:
#
# $$ \mathcal{L} = \tfrac12 \operatorname*{mean}_{y = 0} \ell + \tfrac12 \operatorname*{mean}_{y > 0} \ell $$
#
# Take nine background pixels, one object pixel and two unknown ones, and a lazy network that says "background, 90 % sure"
# everywhere:

# %%
y = torch.tensor([[[0] * 9 + [1] + [255] * 2]])  # (N, h, w)
lazy = torch.tensor([0.9, 0.1]).log().view(1, 2, 1, 1).expand(1, 2, 1, 12)  # logits (N, K, h, w)
on_background, on_object = -np.log(0.9), -np.log(0.1)
plain, balanced = deeplab_v2.cross_entropy(lazy, y), deeplab_v2.balanced_cross_entropy(lazy, y)
assert np.isclose(plain, (9 * on_background + on_object) / 10) and np.isclose(balanced, (on_background + on_object) / 2)
print(f"cross-entropy {plain:.2f}, balanced {balanced:.2f}: the lazy answer costs {balanced / plain:.1f} times as much")

# %% [markdown]
# Which is better depends on the pseudo-masks: balancing (`deeplab_loss`) raises recall, and with it the mistakes of masks that
# are too large. Both must ignore 255, and the sum over the four maps must be the library's:

# %%
everything_unknown = torch.full_like(y, 255)
assert deeplab_v2.cross_entropy(lazy, everything_unknown) == 0 == deeplab_v2.balanced_cross_entropy(lazy, everything_unknown)
true_label = torch.randint(0, train_data.num_classes + 1, (2, config.deeplab_crop, config.deeplab_crop))
by_hand = sum(deeplab_v2.cross_entropy(part, deeplab_v2.resize_labels(true_label, part.shape[-2:])) for part in from_library)
assert torch.equal(by_hand, deeplab_v2.multi_scale_loss(from_library, true_label))
print("sum over four maps = library:", True)

# %% [markdown]
# **A third loss** belongs to DRS's training of DeepLab-v2 (`deeplab_loss = "self_label"`): beside the mask, the network is
# taught its own best class among those of the *image-level* label, $q = \arg\max_k z_k y_k$, at every pixel, the unknown ones
# included. An absent class counts with 0, not with minus infinity. So where the logits of all present classes are negative, the
# official program chooses an absent one, as we do:

# %%
z = torch.tensor([[2.0, 9.0, 1.0], [-1.0, 9.0, 3.0], [-1.0, 9.0, -2.0]]).T[None, :, None]  # (1, 3 classes, 1, 3 pixels)
present = torch.tensor([[1.0, 0.0, 1.0]])  # background and class 2
own = deeplab_v2.self_labels(z, present)
print("own labels of three pixels:", own.flatten().tolist())
assert own.flatten().tolist() == (z * present[..., None, None]).argmax(1).flatten().tolist() == [0, 2, 1]

# %% [markdown]
# ## 5 The schedule
#
# The backbone is trained already, the head is new. So the weights of the head learn at ten times the backbone's rate, its
# biases at twenty times (and without weight decay). All fall by the *poly* rule, in stairs of ten iterations (right panel):
#
# $$ \eta(t) = \eta_0 \left(1 - \frac{10 \lfloor t / 10 \rfloor}{T}\right)^{0.9} $$

# %% tags=["nbval-ignore-output"]
groups = deeplab_v2.parameter_groups(net, config.deeplab_learning_rate, config.deeplab_weight_decay)
names = ("backbone", "head, weights", "head, biases")
iterations = np.arange(config.deeplab_iterations)
factor = np.array([poly_factor(int(t), config.deeplab_iterations, every=10) for t in iterations])
rates_of = {name: group["lr"] * factor for name, group in zip(names, groups, strict=True)}
viz.show_panels([viz.curves(iterations, rates_of, "the three rates", xlabel="iteration", ylabel="learning rate", yscale="log"),
                 viz.curves(iterations[:50], {"": factor[:50]}, "their common factor, 50 iterations", xlabel="iteration", ylabel="factor")],
                "Left: three parallel curves, a factor of ten and one of two apart, fall to zero. Right: the factor falls in stairs of ten "
                f"iterations, from 1 to {factor[:50].min():.3f}", size=(5, 2.8))

# %%
for name, group in zip(names, groups, strict=True):
    print(f"{name:14s} {group['lr'] / config.deeplab_learning_rate:3.0f} x, weight decay {group['weight_decay']}, "
          f"{len(group['params'])} tensors")
steps = (0, 9, 10, 19, 20)
print("factors at iterations", steps, "of 100:", [round(poly_factor(step, 100, every=10), 3) for step in steps])

# %% [markdown]
# ## 6 Training
#
# > **Which initial weights?** DeepLab-v2 is usually distributed with weights that were pre-trained on MS-COCO *segmentation
# > masks*. A network that starts from them has learned outlines from pixel labels, whatever its training masks are. Result
# > lists mark such rows "I+C" (ImageNet and COCO) and fair ones "I". The start alone is worth one to two points (VWL reports
# > both), more than many methods differ by. **Never compare across initial weights.** The starts `imagenet`, `classifier`
# > (image-level labels only) and `none` have seen no pixel label; a file can be given too (`docs/checkpoints.md`), and every
# > score then names it.
#
# The smoke run starts from notebook 10's classifier, because its small backbone has no ImageNet weights.

# %%
network = run(deeplab.DEEPLAB, config)
net = network.net

# %% [markdown]
# The loss of version 2 is a sum of four, so guessing costs $4 \ln K$, here 7.8, near the first value (8.2); version 3+ has one.
# The last value should not be zero: a network that fits every mistake of the pseudo-masks has learned the mistakes.

# %% tags=["nbval-ignore-output"]
terms = 4 if config.deeplab_version == "v2" else 1
viz.show_training(network.log(), alt="Training loss falls from {first[loss]:.2f} to {last[loss]:.2f} in {last[step]} steps",
                  title=f"{deeplab.deeplab_name(config)}: training loss", ylabel=f"loss (terms: {terms})",
                  chance=terms * np.log(train_data.num_classes + 1))

# %% [markdown]
# The figure takes, of the first twenty validation images, the one in which the network is surest to see an object (no label is
# asked). Each scale shows how sure it is that a pixel is *not* background. What to look for at the right: which scale gave the
# maximum for the winning class (1.0 is brightest)? Here it is 0.75 on the upper object, the full size nearly everywhere else.

# %%
def sure_pixels(name):
    """Return the fraction of pixels in which one class has more than half of the probability and is not background."""
    return (deeplab.class_probabilities(net, val_data.image(name), config)[1:].max(0) > 0.5).mean()


image_id = max(val_data.ids[:20], key=sure_pixels)
image = val_data.image(image_id)
picture = np.array(image)

# %% tags=["nbval-ignore-output"]
x = transforms.to_tensor(transforms.normalize(image, *normalization_of(config.deeplab_backbone)))[None].to(network.device)
with torch.inference_mode():
    maps = deeplab_v2.multi_scale_logits(net, x, config.deeplab_test_scales)
maps = torch.cat([F.interpolate(part, size=picture.shape[:2], mode="bilinear", align_corners=False) for part in maps]).cpu()
winner = maps[:-1].gather(1, maps[-1].argmax(0)[None, None].expand(len(maps) - 1, 1, -1, -1))[:, 0].argmax(0)
scales = np.array([1.0, *config.deeplab_test_scales])
viz.show_panels([viz.image(picture, f"input {image_id}"),
                 *(viz.scores(picture, 1 - part.softmax(0)[0].numpy(), name)
                   for part, name in zip(maps, [*(f"scale {p}" for p in scales), "maximum"], strict=True)),
                 viz.heat_map(scales[winner], "scale that decided")],
                "Maps of one image at each scale, coarser with smaller scale, their maximum, and which scale decided where",
                bar="not background; scale")

# %% [markdown]
# ## 7 All validation images
#
# **No image-level label is used here.** Class activation maps and pseudo-masks know which classes are in an image; this network
# is asked about all. To be sure, the next cell erases every label and predicts an image.

# %%
unlabelled = replace(val_data, labels=np.zeros_like(val_data.labels))
probabilities = deeplab.class_probabilities(net, unlabelled.image(image_id), config)  # (K, H, W)
assert not unlabelled.labels.any() and len(probabilities) == val_data.num_classes + 1 and np.allclose(probabilities.sum(0), 1, atol=1e-4)
print("prediction without any label:", True)

# %%
predictions = run(deeplab.PREDICTIONS, config)
plain, with_crf = (viz.masks_in(predictions.folder / folder, val_data) for folder in ("plain", "crf"))
print("predictions with and without CRF for", len(val_data), "images")

# %% [markdown]
# ## 8 Dense CRF
#
# The network's masks are smooth at stride 8; the image has sharp edges. The dense CRF joins every pixel with every other and
# asks for labels $y$ of low energy
#
# $$ E(y) = \sum_i -\log P_i(y_i) + \sum_{i<j} [y_i \ne y_j]
# \Big( w_1 e^{-\frac{|p_i - p_j|^2}{2\theta_\alpha^2} - \frac{|I_i - I_j|^2}{2\theta_\beta^2}}
# + w_2 e^{-\frac{|p_i - p_j|^2}{2\theta_\gamma^2}} \Big) $$
#
# with position $p$ and color $I$: near pixels of like color should agree. Unlike in notebook 70, the unary term is the
# network's probability and not a hard label, and the constants are DeepLab's: $w_1 = 4$, $\theta_\alpha = 67$ pixels,
# $\theta_\beta = 3$ gray levels, $w_2 = 3$, $\theta_\gamma = 1$. Ten steps of mean field find a good answer. Without the
# pairwise terms nothing must change, and the image must enter as it is, not normalized:

# %%
same = crf_from_probabilities(picture, probabilities, bilateral_compat=0, gaussian_compat=0)
assert np.array_equal(same.argmax(0), probabilities.argmax(0)) and picture.dtype == np.uint8
assert np.mean(crf_segmentation(picture, probabilities) == with_crf(image_id)) > 0.99
print("no pairwise terms, no change; the stored mask is that of the CRF:", True)

# %% [markdown]
# What to look for in the strip: what do one step, ten steps and two other color constants change? (Sliders appear in
# JupyterLab.)

# %% tags=["nbval-ignore-output"]
def refined(iterations=10, color=3.0, space=67.0):
    """Return a panel with the labels of the chosen image after the CRF."""
    mask = crf_segmentation(picture, probabilities, iterations=iterations, bilateral_srgb=color, bilateral_sxy=space)
    return viz.labels(mask, val_data.classes, f"{iterations} steps, color {color:g}", picture)


widgets.explore(lambda iterations=10, color=3.0, space=67.0: viz.show_panels(
    [refined(iterations, color, space)], f"Segmentation of {image_id} after {iterations} steps of the CRF, color {color:.0f}, space "
    f"{space:.0f}", size=3), iterations=(0, 10, 1), color=(1.0, 30.0, 1.0), space=(5.0, 100.0, 5.0))

# %% tags=["nbval-ignore-output"]
truth = viz.labels(val_data.mask(image_id), val_data.classes, "ground truth", picture)
viz.show_panels([viz.image(picture, f"input {image_id}"), truth,
                 *(refined(*setting) for setting in ((0, 3), (1, 3), (10, 3), (10, 10), (10, 30)))],
                "The mask before the CRF, after one step and after ten, and with two wider color constants", size=2)

# %% [markdown]
# ## 9 Numbers
#
# The scores come from one confusion matrix over all validation images.

# %% tags=["nbval-ignore-output"]
# needs masks
rows = predictions.metrics
chain = (training_masks.metrics if training_masks else []) + rows
with_truth = [row for row in results.collect(run_folder_of(config))
              if (row["method"], row["seed"], row["stage"]) == ("truth", config.seed, "predictions")]
print(results.run_table(chain, config), "initial weights of this run: " + config.deeplab_init, sep="\n")
print(results.quote(results.published(config.method, row["what"], row["split"]) for row in chain))
for row in with_truth:
    print(f"trained on the ground truth: {row['what']}, {row['miou']:.1f} % on {row['images']} images of {row['split']}")

# %% [markdown]
# In this run the CRF adds 6.3 points. The pseudo-masks were scored on `train`, the network on `val`: their numbers may not be
# subtracted. The fair comparison is the same network, trained on the ground truth (method `truth`) and scored on the same
# images: 77.6 % without CRF and 82.1 % with it. If your network stays far below a published score, compare initial weights,
# loss and iterations, and ask whether that score includes a CRF, scales and flips. Class by class:

# %% tags=["nbval-ignore-output"]
# needs masks
iou_of = {title: [*row["class_iou"], row["miou"]] for title, row in zip(("plain", "+ CRF"), rows, strict=False)}
print(results.class_table(iou_of, ["background", *val_data.classes, "mean"]))

# %% [markdown]
# **Does training average mistakes out?** The next cells score the network on images that it was trained on, beside the masks
# that it was taught there, without and with a CRF. The pseudo-masks know the image-level label, so the network is also scored
# with its absent classes struck out. And a small network may be unable to repeat even perfect masks: the last row is one that
# was taught the ground truth, if this run has it.

# %%
# needs masks, lessons
known = open_data(config, config.score_split).scored()
known = replace(known, ids=known.ids[:150], labels=known.labels[:150])
taught = viz.masks_in(training_masks.folder, known) if training_masks else known.mask
nets, of_truth = {"network": net}, config.model_copy(update={"method": "truth"})
if training_masks and (folder_of(deeplab.DEEPLAB, of_truth) / "run.json").is_file():  # the same network, taught the ground truth
    nets["network taught the ground truth"] = open_stage(deeplab.DEEPLAB, of_truth).net
learned = {words: {name: deeplab.class_probabilities(taught_net, known.image(name), config) for name in known.ids}
           for words, taught_net in nets.items()}

# %%
# needs masks, lessons
def mask_of(name, words, crf=False, label_known=False):
    """Return the mask of a training image: the one that was taught, or a network's, of all classes or of those of the label."""
    picture, present = np.array(known.image(name)), np.array([True, *known.label(name)], bool)
    if words == "taught masks":
        ids = np.flatnonzero(present)
        places = np.searchsorted(ids, np.where(taught(name) == 255, 0, taught(name)))
        return ids[crf_from_labels(picture, places, len(ids)) if crf else places].astype(np.uint8)
    p = (learned[words][name] + 1e-6) * (present[:, None, None] if label_known else 1)  # a sum of 0 cannot be divided by
    return (crf_segmentation(picture, p / p.sum(0)) if crf else p.argmax(0)).astype(np.uint8)

# %% tags=["nbval-ignore-output"]
# needs masks, lessons
kinds = [("taught masks", False), ("network", False), ("network", True), *((words, False) for words in list(nets)[1:])]
results.show_table([f"{len(known)} training images", "no CRF", "+ CRF"], [
    [words + (", label known" if label_known else ""), *(
        f"{100 * score_masks(known, lambda name, w=words, c=crf, k=label_known: mask_of(name, w, c, k)).scores().miou:.1f}" for crf in (False, True))]
    for words, label_known in kinds])

# %% [markdown]
# A score does not say which pixels have changed. What to look for: does the network mend more pixels than it spoils?

# %% tags=["nbval-ignore-output"]
# needs masks, lessons
for words in nets:
    pairs = [(known.mask(name), mask_of(name, "taught masks"), mask_of(name, words)) for name in known.ids]
    wrong, right = (np.concatenate([network[keep(true, taught_mask)] == true[keep(true, taught_mask)] for true, taught_mask, network in pairs])
                    for keep in (lambda t, m: (t != 255) & (m != t), lambda t, m: (t != 255) & (m == t)))
    print(f"{words}: right in {100 * wrong.mean():.0f} % of the pixels that the masks have wrong ({100 * len(wrong) / (len(wrong) + len(right)):.1f} % "
          f"of all), wrong in {100 * (1 - right.mean()):.1f} % of those that they have right")

# %% [markdown]
# On images that it has seen the network scores 62.0 %, 5.8 points less than the masks that it was taught (67.8 %); with a CRF
# the two have 69.8 and 78.0 %. With the label known it still stays 3.3 points below them (64.5 %). **A part of the mistakes is
# averaged out, most of them are learned**: the network is right in 22 % of the pixels that its masks have wrong, where the one
# taught the ground truth is right in 86 %. And it spoils 4.0 % of the right pixels, of which there are ten
# times as many; the other one, whose errors here are its own coarseness, spoils 2.1 %. What training does give is a network that needs no label.
#
# ## 10 Look
#
# What to look for in the best, a random and the worst validation image by the IoU before the CRF: is the outline wrong or the
# name?

# %% tags=["nbval-ignore-output"]
ranking = iou_of_images(val_data, plain)
viz.show_examples(val_data, viz.best_worst_random(ranking, count=1, seed=config.seed), {"segmentation": plain, "+ CRF": with_crf},
                  "Best, random and worst validation image: input, ground truth, segmentation, with CRF; the IoU stands above", size=2.2,
                  iou={"segmentation": ranking, "+ CRF": iou_of_images(val_data, with_crf)})

# %% [markdown]
# In the second row it is the outline, and the CRF lifts the IoU from 45 to 78 %. In the lowest row it is the *name*: classes
# that look alike except for the head are confused over a whole object. A CRF cannot help there (20 % before and after), because
# it moves outlines, not names. Which kind costs more over all images?

# %% tags=["nbval-ignore-output"]
# needs masks
confusion = score_masks(val_data, predictions.folder / "plain").confusion
wrong = confusion - np.diag(np.diag(confusion))
kinds = {"object called background": wrong[1:, 0], "background called object": wrong[0, 1:], "one class called another": wrong[1:, 1:]}
for name, pixels in kinds.items():
    print(f"{name:26s} {100 * pixels.sum() / max(1, wrong.sum()):5.1f} % of the wrong pixels")

# %% [markdown]
# Wrong names make up only 14 % of the wrong pixels. Half (51 %) are background called object: masks that are too large. Another
# 35 % are objects called background.
#
# ## The test server
#
# VOC's test masks are not public. Scores on `test` come from a server that takes an archive of palette PNGs. The network needs
# no label for these images: `make_predictions` writes their masks, and `python -m wsss_lib.submission make` packs and checks
# the archive. The server takes few uploads, and choosing parameters by its answers would be using pixel labels of the test set.
#
# ## 11 Version 2 and version 3+ side by side
#
# | | version 2 | version 3+ |
# |---|---|---|
# | scales | three, fused by the maximum | one |
# | pyramid | four 3x3 classifiers, summed | 1x1, three 3x3 and a view of the whole image, joined; dropout |
# | decoder | none: logits at stride 8 | logits at stride 4, early features join |
# | batch normalization | frozen entirely | trained |
# | learning rates | backbone 1, head 10, its biases 20; stairs of ten | backbone 1, decoder 10; every iteration |
# | loss | four cross-entropies | one, on enlarged logits |
# | published recipe, VOC | batch 10, 20,000 iterations, 321-pixel crops | batch 16, 30,000, 513 (DRS: batch 32, 20,000, five times the rate) |
# | published score | full images, with CRF | **center crops of 513 pixels**: other pixels, not comparable with full images |
#
# Both are here for every method: `deeplab_version`, and `configs/options/` with the two published recipes. The published
# version 3+ program has two faults: what lies outside a small image is taught as *background* (here it is 255;
# `deeplab_padding_is_background = True` repeats the fault), and its scores are those of center crops (`deeplab_centre_crop =
# 513` adds such a row beside that of full images).

# %%
# needs lessons
with torch.device("meta"):
    both = {"v2": deeplab_v2.DeepLabV2(build_backbone("resnet101", 8), 21),
            "v3+": deeplab_v3plus.DeepLabV3Plus(deeplab_v3plus.build_dilated_backbone("resnet101", 16), 21)}
    for name, published in both.items():
        print(f"{name:4s} ResNet-101: {sum(part.numel() for part in published.parameters()):,} parameters, 513 pixels -> "
              f"logits {tuple(published(torch.zeros(2, 3, 513, 513)).shape[2:])}")

# %% [markdown]
# What does the stride alone cost? The ground truth, reduced to logits of stride 8 or 4 and enlarged again, is the best that
# either grid can hold:

# %%
# needs masks
def on_grid(name, stride):
    """Return the ground truth of an image after it was reduced to a grid and enlarged again."""
    mask = torch.from_numpy(val_data.mask(name)).long()
    one_hot = F.one_hot(torch.where(mask == 255, 0, mask), val_data.num_classes + 1).permute(2, 0, 1)[None].float()
    coarse = F.interpolate(one_hot, size=[-(-side // stride) for side in mask.shape], mode="area")
    return F.interpolate(coarse, size=mask.shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy().astype(np.uint8)


few = replace(val_data, ids=val_data.ids[:100], labels=val_data.labels[:100])
for stride in (8, 4):
    best = score_masks(few, lambda name, stride=stride: on_grid(name, stride)).scores().miou
    print(f"stride {stride}: at most {100 * best:.1f} % mIoU on {len(few)} images")

# %% [markdown]
# A short training of the *other* version from the same start on the same masks has far fewer iterations (120 against 900), so
# this is a look and not a comparison; for that, run the notebook again with `-p deeplab_version v3plus` into another
# `runs_root`.

# %%
# needs lessons
version, rate = ("v3plus", 10) if config.deeplab_version == "v2" else ("v2", 0.1)
other = config.model_copy(update={"deeplab_version": version, "deeplab_atrous_rates": config.deeplab_atrous_rates[:3],
                                  "deeplab_iterations": max(1, min(120, config.deeplab_iterations // 5)),
                                  "deeplab_learning_rate": config.deeplab_learning_rate * rate})
OTHER = replace(deeplab.DEEPLAB, name="other_version")
other_net = run(OTHER, other).net if config.deeplab_crop <= 128 else None

# %% tags=["nbval-ignore-output"]
# needs lessons
if other_net is not None:
    panels = [viz.image(picture, f"input {image_id}"), truth]
    for one, answer in ((config, probabilities), (other, deeplab.class_probabilities(other_net, image, other))):
        words = f"{deeplab.deeplab_name(one).removeprefix('DeepLab-')}, {one.deeplab_iterations} steps"
        panels += [viz.labels(answer.argmax(0), val_data.classes, words, picture), viz.scores(picture, 1 - answer[0], "not background")]
    viz.show_panels(panels, "One image by both versions: label and score of not background; the other version, after fewer steps, finds "
                    "the same parts but less of the bodies", size=2)

# %% [markdown]
# ## 12 Summary and exercises
#
# * Dilation keeps resolution, ASPP and three scales bring in the surroundings, frozen batch normalization keeps the initial
#   statistics.
# * Labels are names: nearest neighbor only, and no mean counts 255.
# * In this run the network has 59.8 % on `val` (66.1 % with the CRF); taught the ground truth, 77.6 % (82.1 %). On training
#   images it stays below its own pseudo-masks.
#
# **Exercise 1.** How wide is the field of a 3x3 convolution of rate 24 on a feature map of stride 8, in pixels from the
# center of its first tap to the center of its last?

# %%
width_in_pixels = None  # your answer
widgets.check(width_in_pixels, "70d5f6cd4603", "exercise 1")

# %% [markdown]
# **Exercise 2.** Write the learning-rate factor of iteration $t$ of $T$ (counted from 0) with stairs of ten.

# %%
def factor_of(t, T):
    """Return a float in [0, 1]."""
    return None  # your code


widgets.check(factor_of(1234, 20000), "0b20aca623e2", "exercise 2")

# %% [markdown]
# **Exercise 3.** A paper reports 68.0 % with weights "I+C", another 67.2 % with "I". A start with COCO's masks is worth
# at least 1.4 points (VWL's own two rows: 69.2 and 70.6 for one network, 68.7 and 70.6 for another). Does the first
# method make the better pseudo-masks? Answer `"yes"`, `"no"` or `"unknown"`.

# %%
better = None  # your answer
widgets.check(better, "dbe0a6cc4059", "exercise 3")

# %% [markdown]
# **References.** Krähenbühl, Koltun: Efficient
# Inference in Fully Connected CRFs with Gaussian Edge Potentials, NeurIPS 2011. Huang et al.: Weakly-Supervised
# Semantic Segmentation Network with Deep Seeded Region Growing (DSRG), CVPR 2018. Lee, Kim, Yoon: Anti-Adversarially
# Manipulated Attributions (AdvCAM), CVPR 2021.
