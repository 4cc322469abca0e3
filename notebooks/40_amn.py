# %% [markdown]
# # 40 · AMN: activation manipulation
#
# *In: CAM's score maps. Out: score maps with a wider gap between object and background, on which less depends on the exact threshold.*
#
# | | |
# |---|---|
# | **Needs** | notebook 10 (`classifier/`, `maps/`) |
# | **Writes** | `refined_seeds/ID.png`, `network/weights.safetensors`, `maps/ID.npz`, all in the folder of method `amn` |
# | **Time and memory** | smoke: about 3 minutes of one CPU core, 1 GB. One A100, estimated in docs/costs.md: VOC 4 minutes and 5 core hours of CRF, COCO 36 minutes and 62 |
# | **Paper** | Lee, Kim, Shim, *Threshold Matters in WSSS: Manipulating the Activation for the Robust and Accurate Segmentation Model Against Thresholds*, CVPR 2022 |
#
# **Goals.** After this notebook you can
#
# 1. measure how far the threshold that is best for all images is from the best one of each image, and what that costs,
# 2. explain per-pixel classification with a balanced loss, and label conditioning, each in a few lines of code,
# 3. say which parts of AMN earn its gain on the data at hand, and which do not.

# %% tags=["parameters"]
dataset = "toy"  # name of the run's folder below runs_root
data_root = "data/toy"  # VOC devkit folder
runs_root = "runs"  # results go to runs_root/dataset/method/seedK/stage
method = "amn"  # the folder of this notebook's results
seed = 0  # of everything that is random; CAM's run of the same seed is read
backbone = "resnet_small"  # resnet50 in the paper
output_stride = 8  # 16 in the paper; the toy images are small
cam_scales = [1.0, 0.5, 1.5, 2.0]  # of the maps
irn_crop = 96  # 512 in the paper; training images are scaled and cropped as IRN's
amn_weights = ""  # a finished network instead of training
amn_init = "classifier"  # backbone in the paper, which starts from ImageNet
amn_foreground_threshold = 0.2  # t_f of the refined seeds; 0.30 in the paper
amn_background_threshold = 0.06  # t_b; 0.05 in the paper
amn_epochs = 3  # 5 in the paper
amn_learning_rate = 3.0e-4  # of the backbone; 5e-6 in the paper
amn_head_learning_rate = 1.0e-3  # of label encoder and ASPP; 1e-4 in the paper
amn_smoothing = 0.4  # epsilon, 0.4 in the paper
amn_atrous_rates = [1, 2, 4, 6]  # 6, 12, 18, 24 in the paper
amn_dropout_in_maps = False  # True in the official program, see section 6

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from wsss_lib import results, viz, widgets
from wsss_lib.config import Config
from wsss_lib.core import files, store, training
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import full_size_maps, mean_part_recall, score_maps, score_masks, sweep_maps
from wsss_lib.data import transforms
from wsss_lib.core.files import IGNORE, read_mask
from wsss_lib.data.dataset import data_hash, open_data
from wsss_lib.experiments import amn_ablations
from wsss_lib.methods import amn
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.ops.seeds import argmax_with_background, irn_labels
from wsss_lib.ops.thresholds import ImageThresholds, imbalance_and_gap

config = Config.from_notebook(globals())
run_device = training.seed_everything(config)
viz.use_style()

# %% [markdown]
# The first check: are CAM's classifier and score maps there? If not, the next cell stops and says which notebook to run.

# %%
train_data = open_data(config, config.train_split)
score_data = open_data(config, config.score_split)
classifier_stage = store.open_stage(config, "classifier", "10_cam", method="cam")
cam_stage = store.open_stage(config, "maps", "10_cam", method="cam")
classifier_weights = classifier_stage.folder / "weights.safetensors"
mean, std = normalization_of(config.backbone)
num_labels = train_data.num_classes + 1  # C, with the background
print(f"{len(train_data)} training images, {num_labels} labels with the background")

# %% [markdown]
# ## 1 The problem
#
# A score map becomes a mask by a threshold, and there is **one** for the whole data set: notebook 70 finds the one with the
# highest mIoU. But each image has its own best threshold $t_i^*$. The paper's argument is that the distance between the two
# is what holds CAMs back. That can be measured: one pass over the stored maps keeps a curve of mIoU over the threshold
# *for every image* (the mean over the background and the image's own classes).

# %% tags=["nbval-ignore-output"]
thresholds = np.linspace(0.01, 0.99, 99)
cam_sweep = sweep_maps(score_data, cam_stage.folder, thresholds, ImageThresholds)
cam_summary = cam_sweep.summary()
print({name: round(value, 3) for name, value in cam_summary.items()})

# %% [markdown]
# The picture shows the distribution of $t_i^*$, and what the score would be if a good spirit set every image's threshold (the dotted
# line). What to look for: how many images lie far from the one threshold that serves all?

# %% tags=["nbval-ignore-output"]
def draw_thresholds(panels, sweep, name):
    """Draw the distribution of the images' best thresholds and the curve for all images."""
    summary, own = sweep.summary(), sweep.best_thresholds()
    panels[0].hist(own[~np.isnan(own)], bins=np.linspace(0, 1, 41))
    panels[0].axvline(summary["threshold"], color="black", linestyle=":")
    panels[0].set(xlabel="best threshold of an image", ylabel="images", title=f"{name}: one value an image", xlim=(0, 1))
    panels[1].plot(thresholds, 100 * sweep.curve())
    panels[1].axhline(summary["upper_bound"], color="black", linestyle=":")
    panels[1].axvspan(summary["low"], summary["high"], color="grey", alpha=0.3)
    panels[1].set(xlabel="threshold for all", ylabel="mIoU %", title=f"{name}: one value for all", ylim=(0, 100))


figure, panels = plt.subplots(1, 2, figsize=(8, 2.6))
draw_thresholds(panels, cam_sweep, "CAM")
viz.show(figure, f"CAM reaches {cam_summary['best']:.1f} percent at threshold {cam_summary['threshold']:.2f}, and would reach "
                 f"{cam_summary['upper_bound']:.1f} with each image at its own; those scatter by {cam_summary['image_spread']:.2f}")

# %% [markdown]
# The grey band holds the thresholds that lose at most two points. Where it is narrow, a threshold chosen without pixel labels will miss
# it. Two numbers of each map say why:
#
# * **imbalance**: how uneven is the score over one object? (standard deviation of $A_k$ over the true pixels of class $k$)
# * **gap**: how far is the object's mean score above the background's?
#
# A threshold fits all images where the imbalance is small and the gap is large. (The paper argues with both words; the two
# formulas are ours.)

# %% tags=["nbval-ignore-output"]
def mean_imbalance_and_gap(folder):
    """Return the means of both numbers over the maps of at most 500 images."""
    values = [imbalance_and_gap(score_data.mask(name), *full_size_maps(folder, name)[::-1]) for name in score_data.ids[:500]]
    return np.nanmean(np.concatenate(values), axis=0)


image_id = next((name for name in score_data.ids if score_data.label(name).sum() == 1), score_data.ids[0])
picture, truth = np.array(score_data.image(image_id)), score_data.mask(image_id)
classes, cam_maps = full_size_maps(cam_stage.folder, image_id)
cam_imbalance, cam_gap = mean_imbalance_and_gap(cam_stage.folder)
print(f"CAM: mean imbalance {cam_imbalance:.3f}, mean gap {cam_gap:.3f}")

# %% tags=["nbval-ignore-output"]
def draw_activation(axes, maps, title):
    """Draw how often each score occurs on the object and on the background of the chosen image."""
    score = maps.max(0, initial=0)
    axes.hist([score[truth == 0], score[(truth > 0) & (truth != IGNORE)]], bins=np.linspace(0, 1, 31), density=True,
              label=["background", "object"], histtype="step", linewidth=1.5)
    axes.set(xlabel="score", ylabel="density", title=title, yscale="symlog")
    axes.legend()


figure, panels = plt.subplots(1, 3, figsize=(9, 2.6))
viz.draw_image(panels[0], picture, f"input {image_id}")
viz.draw_scores(panels[1], picture, cam_maps.max(0, initial=0), "CAM")
draw_activation(panels[2], cam_maps, "its scores")
viz.show(figure, f"The scores of the object spread from the background's level up to 1: imbalance {cam_imbalance:.2f} and gap "
                 f"{cam_gap:.2f} on average, so any threshold cuts through the object")

# %% [markdown]
# A classifier is asked whether a class is *somewhere* in the image. Its evidence may be as uneven as it likes.
#
# ## 2 The idea in ten lines
#
# So ask at every pixel instead. Take the features $x$ of the image, tell the network which classes the image has (the label
# $y$ becomes a vector $v$ that multiplies the feature channels), classify every position into $C = K + 1$ labels, and compare
# with a refined seed $s$ of the image, background and objects weighing the same. Here with a network that is not trained yet.

# %%
torch.manual_seed(config.seed)
net = amn.build_amn(config, train_data.num_classes, classifier_weights, config.amn_weights).eval()
labels_of_image = torch.from_numpy(score_data.label(image_id).astype(np.float32))  # y: (K,)
image_tensor = transforms.to_tensor(transforms.normalize(picture, mean, std))[None]
first_seed = irn_labels(picture, cam_maps, classes, config.amn_foreground_threshold, config.amn_background_threshold)

with torch.no_grad():
    x = net.features(image_tensor)  # (1, D, h, w)
    v = net.head.label_encoder.weight @ labels_of_image + net.head.label_encoder.bias  # (D,)
    z = sum(branch(x * v[:, None, None]) for branch in net.head.aspp.children())  # (1, C, h, w)
s = torch.from_numpy(amn.seed_on_grid(first_seed, z.shape[2:]).astype(np.int64))[None]  # (1, h, w)
q = torch.full_like(z, config.amn_smoothing / (num_labels - 1))
q.scatter_(1, s.masked_fill(s == IGNORE, 0)[:, None], 1 - config.amn_smoothing)
l = -(q * z.log_softmax(1)).sum(1)  # noqa: E741 - the paper's letter
L = sum(l[kind].mean() / 2 for kind in (s == 0, (s > 0) & (s != IGNORE)) if kind.any())

# %% [markdown]
# The library says the same:

# %%
with torch.no_grad():
    from_library = amn.balanced_loss(net(image_tensor, labels_of_image[None]), s, config.amn_smoothing)
assert torch.allclose(from_library["loss"], L, atol=1e-5)
print("features", tuple(x.shape), "-> logits", tuple(z.shape), "   ten lines = library:", True)

# %% [markdown]
# The next four sections take this apart.
#
# ## 3 Refined seeds
#
# The pixel labels to learn from come out of CAM itself, refined as in notebook 70: a high threshold $t_f$ says what is surely
# object, a low one $t_b$ what is surely background, a dense CRF moves both to the photograph's edges, and the rest is
# unknown (255):
#
# $$ F = \mathrm{CRF}(\arg\max[t_f, A]), \quad B = \mathrm{CRF}(\arg\max[t_b, A]), \quad
# s_i = \begin{cases} F_i & F_i \neq 0 \\ 0 & F_i = 0,\ B_i = 0 \\ 255 & \text{otherwise.} \end{cases} $$
#
# This is a production step: a stage of its own, made for every training image. No pixel label is read.

# %%
seeds_stage = store.begin_stage(config, "refined_seeds", ("amn_foreground", "amn_background", "seed_crf"),
                                    {"maps": cam_stage, "data": data_hash(train_data)})
if not seeds_stage.is_complete():
    images_made = amn.make_refined_seeds(train_data, cam_stage.folder, config, seeds_stage.folder)
    evaluation = score_masks(score_data, seeds_stage.folder)
    seeds_stage.finish([{"what": "refined seeds", "split": score_data.split, "images": len(score_data), "crf": True,
                         "unknown_share": round(evaluation.unknown_share, 4),
                         "miou_with_unknown_as_background": round(100 * evaluation.scores().miou, 2)}], images_made)
seed_row = seeds_stage.metrics()[0]

# %% tags=["nbval-ignore-output"]
figure, panels = plt.subplots(1, 4, figsize=(9, 2.4))
viz.draw_image(panels[0], picture, f"input {image_id}")
viz.draw_labels(panels[1], truth, score_data.classes, "truth", picture)
viz.draw_scores(panels[2], picture, cam_maps.max(0, initial=0), "CAM")
seed_mask_of_image = read_mask(seeds_stage.folder / f"{image_id}.png", train_data.num_classes)
viz.draw_labels(panels[3], seed_mask_of_image, score_data.classes, "refined seed", picture)
viz.show(figure, f"The refined seeds leave {100 * seed_row['unknown_share']:.0f} percent of all pixels unknown (hatched); with those "
                 f"counted as background their mIoU is {seed_row['miou_with_unknown_as_background']:.1f} percent")

# %% [markdown]
# **A trap.** Unknown pixels are not errors. Whoever scores such a file with 255 as a wrong label gets a meaningless number (37.8 %
# on VOC's train images, reports a user of the official program).
#
# For training, image and seed are scaled, mirrored and cropped together, and the seed is brought to the coarse grid of the
# logits by Pillow's nearest neighbour, which takes the pixel at $\lfloor (i + 0.5)\,H/h \rfloor$. Torch's default takes
# $\lfloor i\,H/h \rfloor$, half a cell off:

# %%
line = np.arange(32, dtype=np.uint8)[None]
print("Pillow:       ", amn.seed_on_grid(line, (1, 4))[0])
print("torch, default:", F.interpolate(torch.from_numpy(line)[None].float(), size=4, mode="nearest")[0, 0].int().numpy())

# %% [markdown]
# ## 4 Per-pixel classification
#
# Every position $p$ of the logits $z$ has a label: the seed's class, or the background. Two twists:
#
# **Smoothing.** The target is not one but $1-\varepsilon$ at the seed's label and $\frac{\varepsilon}{C-1}$ at every other one, with a
# large $\varepsilon = 0.4$: the seeds are wrong in many places, and nobody shall be sure of them. The loss cannot fall below the
# entropy of that target.
#
# **Balance.** Background fills most images. So the means over background and over object pixels are taken apart, over the *whole
# batch*, and weigh one half each; unknown pixels have no part:
#
# $$ l_p = -\sum_c q_{p,c} \log \mathrm{softmax}(z_p)_c, \qquad
# L = \tfrac12\Big[ \operatorname*{mean}_{p:\, s_p = 0} l_p + \operatorname*{mean}_{p:\, s_p \notin \{0, 255\}} l_p \Big] $$

# %%
toy_seed = torch.tensor([[[0, 0, 0, 0, 0, 0, 2, 255]]])  # six background pixels, one of class 2, one unknown
toy_logits = torch.zeros(1, 3, 1, 8)
toy_logits[:, 0] = 2.0  # everything is called background
target = amn.smoothed_target(toy_seed, 3, 0.4)
losses = amn.pixel_losses(toy_logits, target)
background, objects = amn.pixel_means(losses, toy_seed)
print("targets of pixels 0 and 6:", target[0, :, 0, 0].numpy().round(2), target[0, :, 0, 6].numpy().round(2))
print(f"background {background:.3f}, object {objects:.3f}, balanced {(background + objects) / 2:.3f}, "
      f"plain mean {losses[toy_seed != IGNORE].mean():.3f}")

# %% [markdown]
# Calling everything background is cheap for the plain mean, because six of seven pixels agree; the balanced loss is half made
# of the one that does not. A batch without any object (or without any background) would divide zero by zero; the official
# program then gives NaN and training is lost. Here the missing half is 0:

# %%
only_background = amn.balanced_loss(toy_logits, torch.zeros_like(toy_seed), 0.4)
print({name: round(value.item(), 3) for name, value in only_background.items()})

# %% [markdown]
# ## 5 Label conditioning
#
# The training images' labels are known, also when their maps are made. AMN tells them to the network: one linear layer turns
# the multi-hot label $y$ into a factor for every feature channel,
#
# $$ v = W_e\,y + b_e \in \mathbb{R}^D, \qquad z = \mathrm{ASPP}(\mathrm{dropout}(x \odot v)), $$
#
# in training and in extraction, at this one place. Factors may be negative, and an image with two classes gets the sum of their vectors
# (plus the bias). Nothing else hides the logits of absent classes; the conditioning alone is meant to suppress them. ASPP is
# DeepLab-v2's: the *sum* of four 3 x 3 convolutions with dilations 6, 12, 18 and 24 (notebook 90).

# %%
encoder = net.head.label_encoder
one, two = torch.eye(train_data.num_classes)[:2]
with torch.no_grad():
    both = encoder(one + two)
    assert torch.allclose(both, encoder(one) + encoder(two) - encoder.bias, atol=1e-5)
    share = (both < 0).float().mean().item()
parameters = sum(parameter.numel() for parameter in net.head.parameters())
print(f"v has {len(both)} factors, {100 * share:.0f} % of them negative at the start; label encoder and ASPP: {parameters:,} parameters")

# %% [markdown]
# The price: this network needs labels at test time. It makes training masks; it is no segmenter for unlabelled photographs.
#
# ## 6 From logits to maps
#
# Each image runs at four scales, mirrored too. Here it is the **logits** that are averaged (CAM sums its maps), then $p =
# \mathrm{softmax}$ over all $C$ labels, and only the channels of the background and of the image's classes are kept. The
# last step uses the refined seed once more, which abstract and project page do not mention:
#
# $$ A = \begin{cases} p & \text{where } s = 0 \\ n = \dfrac{p - \min p}{\max p - \min p + 10^{-5}} & \text{elsewhere, minimum and
# maximum over the image} \end{cases} $$
#
# So a pixel that the seed calls background keeps its low probability, and all others are stretched to the full range.

# %%
with torch.no_grad():
    pair = net(torch.cat([image_tensor, image_tensor.flip(-1)]), labels_of_image.repeat(2, 1))
    merged = (pair[0] + pair[1].flip(-1)) / 2  # mean with the mirror image, mirrored back: (C, h, w)
    size = tuple((side - 1) // 4 + 1 for side in truth.shape)
    p = F.interpolate(merged[None], size=size, mode="bilinear", align_corners=False)[0].softmax(0)[classes + 1]
low, high = p.amin((1, 2), keepdim=True), p.amax((1, 2), keepdim=True)
n = (p - low) / (high - low + 1e-5)
small_seed = np.array(Image.fromarray(seed_mask_of_image).resize(size[::-1], Image.Resampling.NEAREST))
A = np.where(small_seed == 0, p, n)

(_, library_map), = amn.localization_maps(net, [Image.fromarray(picture)], score_data.label(image_id)[None],
                                          [seed_mask_of_image], (1.0,), mean, std)
assert np.allclose(library_map, A, atol=1e-4)
print("plain lines = library:", True, " map", A.shape)

# %% [markdown]
# **A slip to know about.** The official network overrides `train()` without calling the parent's, so `eval()` changes nothing and the
# dropout of the head **stays on** while the maps are made. If the published numbers come from that code, they contain its
# noise (averaged over eight passes). Here it is off; `amn_dropout_in_maps = True` repeats the slip by name, with a mask that depends on
# seed and image only.
#
# ## 7 Training
#
# Adam at constant learning rates, a small one for the backbone and a larger one for label encoder and ASPP. Batch normalisation keeps its
# statistics, the stem is not trained. The paper starts from ImageNet, not from the classifier; the small network has no
# such start, so it takes the classifier's weights.

# %%
network_stage = store.begin_stage(config, "network", amn.NETWORK_FIELDS,
                                      {"data": data_hash(train_data), "seeds": seeds_stage, "classifier": classifier_stage})
weights_file = network_stage.folder / "weights.safetensors"
if not network_stage.is_complete():
    torch.manual_seed(config.seed)
    net = amn.build_amn(config, train_data.num_classes, classifier_weights, config.amn_weights).to(run_device)
    images_seen = 0
    if not config.amn_weights:
        images_seen = amn.train_amn(net, train_data, seeds_stage.folder, config, network_stage.folder)
    training.save_weights(net, weights_file)
    network_stage.finish([{"what": "AMN", "split": train_data.split, "images": len(train_data)}], images_seen, str(run_device))
net = amn.build_amn(config, train_data.num_classes, classifier_weights, weights_file).to(run_device).eval()

# %% [markdown]
# The dotted line is the entropy of the smoothed target, which no network can get below. What to look for: object pixels cost only a little more
# than background pixels, although there are far fewer of them.

# %% tags=["nbval-ignore-output"]
if not config.amn_weights:
    log = training.read_log(network_stage.folder)
    e = config.amn_smoothing
    floor = -(1 - e) * np.log(1 - e) - (e * np.log(e / (num_labels - 1)) if e else 0)
    figure, axes = plt.subplots(figsize=(6.5, 2.6))
    for name in ("loss", "background", "object"):
        axes.plot([row["step"] for row in log], [row[name] for row in log], label=name)
    axes.axhline(floor, color="grey", linestyle=":", label="entropy of the target")
    axes.set(xlabel="step", ylabel="loss", title="AMN: training loss")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    viz.show(figure, f"The training loss falls from {log[0]['loss']:.2f} to {log[-1]['loss']:.2f}; the entropy of the target is {floor:.2f}")

# %% [markdown]
# ## 8 All images
#
# The maps of the whole training set, in the same form as CAM's, so that every later step takes them unchanged. The
# background's channel is not stored, because every reader drops it: the background gets a constant score again.

# %%
maps_stage = store.begin_stage(config, "maps", ("amn_", "cam_scales"), {"network": network_stage, "seeds": seeds_stage})
if not maps_stage.is_complete():
    localize = amn.amn_localization(net, train_data, seeds_stage.folder, config)
    images_made = make_maps(localize, train_data, config, maps_stage.folder)
_, scores, _ = files.read_maps(maps_stage.folder / f"{image_id}.npz")
assert scores.min() >= 0 and scores.max() <= 1
print(f"{sum(1 for _ in maps_stage.folder.glob('*.npz'))} files of maps")

# %% [markdown]
# ## 9 Numbers
#
# Both maps at their best threshold, **chosen by the pixel labels of the scored images**, so upper bounds both; and at the
# threshold that was published for each (0.15 and 0.25), which no pixel label of ours has chosen. The published values are of VOC 2012, for
# orientation only.

# %% tags=["nbval-ignore-output"]
amn_sweep = sweep_maps(score_data, maps_stage.folder, thresholds, ImageThresholds)
amn_summary = amn_sweep.summary()
if not maps_stage.is_complete():
    spread = {"what": "thresholds", "split": score_data.split, "images": len(score_data), **amn_summary}
    maps_stage.finish([score_maps(score_data, maps_stage.folder), spread], images_made, str(run_device))
cam_row, amn_row = cam_stage.metrics()[0], maps_stage.metrics()[0]
for name, row, sweep, fixed in (("CAM", cam_row, cam_sweep, 0.15), ("AMN", amn_row, amn_sweep, 0.25)):
    at_fixed = 100 * np.interp(fixed, thresholds, sweep.curve())
    print(f"{name}: {row['images']} images of {row['split']}: mIoU {row['miou']:.1f} % at its best threshold "
          f"{row['threshold']:.2f}, {at_fixed:.1f} % at {fixed:.2f}")
for name in ("cam", "amn"):
    entry = results.published(name, "CAM seed", "train")
    print(f"published, {name}, VOC 2012 train (1,464 images): {entry.value} % ({entry.source})")

# %% [markdown]
# AMN has 80.7 % and CAM 52.7 % at the best thresholds, 72.4 and 51.7 % at the published ones.
#
# ### Before and after
#
# Now the paper's argument again, on both maps. What to look for in the table: the *range* of thresholds within two points of the best, and
# the gap between object and background. The scatter of the images' own thresholds has to be read with care: CAM's best
# thresholds are squeezed into the lowest part of the scale, so that the same scatter means more there. What an image loses on
# average, because the threshold was not its own, stands there in points, whichever way it comes out.

# %% tags=["nbval-ignore-output"]
amn_imbalance, amn_gap = mean_imbalance_and_gap(maps_stage.folder)
lines = [("best mIoU %", "best", 1), ("... with each image at its own threshold", "upper_bound", 1), ("best threshold", "threshold", 2),
         ("mean of the images' own thresholds", "image_mean", 2), ("their standard deviation", "image_spread", 3),
         ("an image loses by the one for all, points", "image_loss", 1)]
print(f"{'':45s}{'CAM':>8s}{'AMN':>8s}")
for words, key, digits in lines:
    print(f"{words:45s}{cam_summary[key]:8.{digits}f}{amn_summary[key]:8.{digits}f}")
widths = [summary["high"] - summary["low"] for summary in (cam_summary, amn_summary)]
print(f"{'width of the range within 2 points':45s}{widths[0]:8.2f}{widths[1]:8.2f}")
print(f"{'imbalance of the activation':45s}{cam_imbalance:8.3f}{amn_imbalance:8.3f}")
print(f"{'gap between object and background':45s}{cam_gap:8.3f}{amn_gap:8.3f}")
print(f"\nAMN gains {amn_summary['best'] - cam_summary['best']:.1f} points; CAM with each image at its own threshold would gain "
      f"{cam_summary['upper_bound'] - cam_summary['best']:.1f}")

# %% tags=["nbval-ignore-output"]
figure, panels = plt.subplots(2, 2, figsize=(8, 4.6))
draw_thresholds(panels[0], cam_sweep, "CAM")
draw_thresholds(panels[1], amn_sweep, "AMN")
viz.show(figure, f"The range within two points of the best is {widths[0]:.2f} wide for CAM and {widths[1]:.2f} for AMN; each image at its "
                 f"own threshold would add {cam_summary['upper_bound'] - cam_summary['best']:.1f} and "
                 f"{amn_summary['upper_bound'] - amn_summary['best']:.1f} points")

# %% [markdown]
# The last line is a warning: thresholds alone, however well chosen, would have given CAM 2.9 of the 28.0 points; the rest has another source,
# the maps now cover the objects. The range of good thresholds doubles, from 0.09 to 0.19, while the images' own thresholds scatter as before.
# Threshold
# and coverage are two questions.
#
# ### Every method in one figure
#
# The same curve for the maps of every method that has been run with this data set and this seed.

# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(figsize=(6, 3.2))
best_of = {}
for record in sorted(maps_stage.folder.parents[2].glob(f"*/seed{config.seed}/maps/run.json")):
    rows = [row for row in files.read_json(record.parent / "metrics.json") if "curve" in row]
    for row in rows[:1]:
        name = record.parts[-4]
        axes.plot(row["thresholds"], row["curve"], label=name)
        axes.plot(row["threshold"], row["miou"], "o", color="black", markersize=3)
        best_of[name] = f"{name} {row['miou']:.1f} at {row['threshold']:.2f}"
axes.set(xlabel="threshold of the background", ylabel="mIoU %", title=f"Maps on {len(score_data)} images of {score_data.split}")
axes.legend()
viz.show(figure, "The best points of the curves: " + ", ".join(best_of.values()))

# %% [markdown]
# ### Heads and bodies
#
# Recall by part, for the generated creatures: heads tell the classes apart, bodies do not. Each map at its own best threshold.

# %% tags=["nbval-ignore-output"]
for name, folder, threshold in (("CAM", cam_stage.folder, cam_row["threshold"]), ("AMN", maps_stage.folder, amn_row["threshold"])):
    recall = mean_part_recall(score_data, folder, threshold)
    print(f"{name} at {threshold:.2f}: recall of heads {recall['head']:.2f}, of bodies {recall['body']:.2f}" if recall
          else "no part masks in this data set")

# %% [markdown]
# AMN finds 0.87 of the bodies, CAM 0.73; the heads are found by both.
#
# ## 10 What helps and what does not
#
# One part is changed at a time, on few images and few steps so that it takes a minute; `benchmarks/amn_ablations.py` does
# the same on all images with three seeds. Differences of a point or two are noise here.

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

chosen = ("AMN as published", "plain mean, not balanced", "no label conditioning", "image-level loss, not per pixel",
          "maps stretched everywhere", "dropout left on in the maps")
small = config.model_copy(update={"amn_epochs": 3, "num_workers": 0})
few = max(16, min(480, len(train_data) // 3))
few_train = replace(train_data, ids=train_data.ids[:few], labels=train_data.labels[:few])
scored = max(8, min(100, few // 3))
few_score = replace(few_train, ids=few_train.ids[:scored], labels=few_train.labels[:scored])

# %%
def score_variants(names):
    """Train what is needed and score the maps of each variant on the few scored images: name to summary."""
    summaries, trained = {}, {}
    for name in names:
        variant = amn_ablations.VARIANTS[name]
        key = variant.training_key()
        with tempfile.TemporaryDirectory() as folder:
            if key not in trained:  # variants of the maps alone share one network
                trained[key] = amn_ablations.train_variant(variant, few_train, seeds_stage.folder, classifier_weights, small,
                                                           Path(folder))
            localize = amn_ablations.variant_localization(variant, trained[key], few_score, seeds_stage.folder, small)
            make_maps(localize, few_score, small, Path(folder) / "maps")
            summaries[name] = sweep_maps(few_score, Path(folder) / "maps", thresholds, ImageThresholds).summary()
    return summaries

# %% tags=["nbval-ignore-output"]
if config.backbone == "resnet_small":
    summaries = score_variants(chosen)
    print(f"{'':34s}{'best mIoU %':>12s}{'at':>6s}{'range':>14s}{'own thresholds':>16s}")
    for name, summary in summaries.items():
        print(f"{name:34s}{summary['best']:12.1f}{summary['threshold']:6.2f}{summary['low']:9.2f}-{summary['high']:.2f}"
              f"{summary['upper_bound']:16.1f}")  # each image at its own threshold
    reference = summaries[chosen[0]]["best"]
    gains = {name: reference - summary["best"] for name, summary in summaries.items() if name != chosen[0]}
    print("most is lost with the change to:", max(gains, key=gains.get), f"({-max(gains.values()):+.1f} points);",
          "changes that cost less than 1:", ", ".join(name for name, gain in gains.items() if gain < 1) or "nothing")
else:
    print("made with the small network only; for others run benchmarks/amn_ablations.py")

# %% [markdown]
# Read the table from the top. Learning *per pixel* from the seeds is what carries the method: with the image-level loss, the same network
# from the same start makes maps no better than CAM's. What the other parts give differs with the data and with the length of
# training; the last line says which changes cost nothing *here*. Generated scenes have few classes and objects of fair size: a "no
# gain here" is not a "no gain on VOC", and the other way round. Look at the columns *at* and *range*, too: the balanced mean, for one, moves the
# best threshold.
#
# **Where does the gain come from?** The refined seeds alone do not show it: they have 50.5 % with their unknown pixels, a sixth, counted as
# background,
# and CAM has 52.7 %. But the CRF has moved their labels to the edges of the photograph, and the network, which learns from *all* seeds
# together, fills in what is unknown.
#
# **With three seeds** on all 1,500 images (mean of the best mIoU, tables and commands in docs/results.md): CAM 52.0 %, AMN 77.1 %, with
# one plain mean 76.4 %, without label conditioning 70.7 %, without the loss for each pixel 46.1 %. The range of thresholds within two
# points grows from 0.10 to 0.21, while the images' own best thresholds scatter as before (0.11 and 0.12). **On 311 real photographs**
# (preset `voc12-small`, one seed): CAM 38.7 %, AMN 42.4 %; IRN's pseudo-masks 48.6 % on CAM's maps and 47.5 % on AMN's.
#
# ## 11 Look
#
# Best, random and worst image by the IoU of AMN's mask at its best threshold (for ranking only, never averaged), in the project's
# order: input, truth, CAM, AMN.

# %% tags=["nbval-ignore-output"]
at_best = int(np.argmin(np.abs(thresholds - amn_summary["threshold"])))
curves = amn_sweep.curves()[:200, at_best]
ranking = {name: float(value) for name, value in zip(score_data.ids[:200], curves, strict=False) if not np.isnan(value)}
shown = viz.best_worst_random(ranking, count=1, seed=config.seed)
figure, panels = plt.subplots(len(shown), 4, figsize=(7, 1.85 * len(shown)), squeeze=False)
for name, line in zip(shown, panels, strict=True):
    photograph = np.array(score_data.image(name))
    viz.draw_image(line[0], photograph, f"input {name}")
    viz.draw_labels(line[1], score_data.mask(name), score_data.classes, "truth", photograph)
    viz.draw_scores(line[2], photograph, full_size_maps(cam_stage.folder, name)[1].max(0, initial=0), "CAM")
    viz.draw_scores(line[3], photograph, full_size_maps(maps_stage.folder, name)[1].max(0, initial=0),
                    f"AMN, IoU {100 * ranking[name]:.0f} %")
viz.show(figure, "Best, random and worst image: input, truth, CAM, and AMN's map with the IoU of its mask")

# %% [markdown]
# In the worst row the refined seed, not drawn here, names three quarters of one creature after the other, and AMN has learned it: a wrong seed is
# learned as willingly as a right one. Now the activation of the image of section 1,
# before and after:

# %% tags=["nbval-ignore-output"]
amn_classes, amn_maps = full_size_maps(maps_stage.folder, image_id)
figure, panels = plt.subplots(1, 2, figsize=(7, 2.6), sharey=True)
draw_activation(panels[0], cam_maps, "CAM")
draw_activation(panels[1], amn_maps, "AMN")
viz.show(figure, f"Object and background of {image_id} move apart: the mean gap over many images is {cam_gap:.2f} for CAM and "
                 f"{amn_gap:.2f} for AMN")

# %% [markdown]
# ## 12 Try it
#
# Move the threshold and watch both masks. What to look for: over which range does each of them stay the same? (Sliders appear in
# JupyterLab; the strip shows the same for readers of the page.)

# %% tags=["nbval-ignore-output"]
def draw_masks(panels, threshold):
    """Draw the masks of CAM and AMN at one threshold."""
    for panel, name, maps in zip(panels, ("CAM", "AMN"), (cam_maps, amn_maps), strict=True):
        mask = argmax_with_background(maps, classes, threshold)
        viz.draw_labels(panel, mask, score_data.classes, f"{name}, {threshold:.2f}", picture)


def draw(threshold=0.25):
    """Show both masks of the chosen image."""
    figure, panels = plt.subplots(1, 2, figsize=(5.5, 2.8))
    draw_masks(panels, threshold)
    viz.show(figure, f"Masks of {image_id} where the score exceeds {threshold:.2f}")


widgets.explore(draw, threshold=(0.0, 0.95, 0.05))

# %% tags=["nbval-ignore-output"]
steps = (0.05, 0.15, 0.3, 0.45, 0.6)
figure, panels = plt.subplots(2, len(steps), figsize=(9.5, 4.2))
for column, threshold in zip(panels.T, steps, strict=True):
    draw_masks(column, threshold)
areas = [[100 * (maps.max(0, initial=0) > threshold).mean() for threshold in (steps[1], steps[-1])] for maps in (cam_maps, amn_maps)]
viz.show(figure, f"From threshold {steps[1]} to {steps[-1]} the object shrinks from {areas[0][0]:.0f} to {areas[0][1]:.0f} percent of the image "
                 f"for CAM and from {areas[1][0]:.0f} to {areas[1][1]:.0f} for AMN")

# %% [markdown]
# ## 13 Summary and exercises
#
# * One threshold for all images costs accuracy, because each image has its own best one; what it costs is measured with one pass
#   over stored maps, and need not be much.
# * AMN learns per pixel from refined seeds, with a balanced and smoothed loss, and is told the image-level label. Its maps
#   have a larger gap between object and background, and near the best threshold the score changes more slowly.
# * Its maps stay between 0 and 1 in another way than CAM's: thresholds of the one do not fit the other. Published for AMN: 0.25 for
#   seeds, 0.45 and 0.15 for IRN's labels (notebook 80), maps to the power 1.3 before the random walk.
# * Written: `maps/` in the folder of `amn`. Next: notebooks 70, 80 and 90 with `method = "amn"`.
#
# **Limits and differences.** The text of the paper was not at hand: what is said here rests on its abstract, project page
# and program. The program leaves dropout on in the maps and gives NaN for a batch without objects; we do neither. It uses the refined
# seed at extraction, and so do we. Its backbone starts from ImageNet; the generated data's from the classifier, with higher rates.
#
# **Exercise 1.** A batch holds 900 background pixels with a loss of 0.2 each and 100 object pixels with a loss of 1.4 each.
# What is the balanced loss?

# %%
answer = None  # your answer
widgets.check(answer, 0.5 * 0.2 + 0.5 * 1.4, "exercise 1")

# %% [markdown]
# **Exercise 2.** How many parameters has the label encoder on VOC (20 classes) with a ResNet-50 (2,048 channels)?

# %%
answer = None  # your answer
widgets.check(answer, 20 * 2048 + 2048, "exercise 2")

# %% [markdown]
# **Exercise 3.** Write the rule of section 6 for one pixel: its probability, the smallest and largest of its channel, and the refined
# seed's value there.

# %%
def map_value(p, low, high, s):
    """p, low, high: floats; s: 0, class + 1 or 255. Return a float."""
    return None  # your code


widgets.check(map_value(0.4, 0.1, 0.7, 255), (0.4 - 0.1) / (0.7 - 0.1 + 1e-5), "exercise 3a")
widgets.check(map_value(0.4, 0.1, 0.7, 0), 0.4, "exercise 3b")

# %% [markdown]
# **References.** Lee, Kim, Shim: Threshold Matters in WSSS: Manipulating the Activation for the Robust and Accurate Segmentation Model
# Against Thresholds, CVPR 2022. Ahn, Cho, Kwak: Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations,
# CVPR 2019. Chen, Papandreou, Kokkinos, Murphy, Yuille: DeepLab, PAMI 2018 (ASPP).
