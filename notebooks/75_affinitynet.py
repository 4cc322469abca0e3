# %% [markdown]
# # 75 · AffinityNet
#
# *In: score maps and photographs. Out: one pseudo-mask for each training image. An alternative to IRN (notebook 80).*
#
# | | |
# |---|---|
# | **Needs** | notebook 10 (`maps/`, `classifier/`) or the notebook of another method, notebook 70 (`seeds/`, to compare with) |
# | **Writes** | `affinity_scores/ID.npz`, `affinitynet/weights.safetensors`, `affinitynet_masks/ID.png` |
# | **Time and memory** | smoke: about 2 minutes of one CPU core, 1 GB. One A100, estimated in docs/costs.md: VOC 0.6 hours, COCO 5; and CRFs of one step |
# | **Paper** | Ahn, Kwak, *Learning Pixel-level Semantic Affinity with Image-level Supervision*, CVPR 2018 (also called PSA) |
#
# Notebook 90 learns either AffinityNet's masks or IRN's. The parameter `refinement` of a preset (or `snakemake --config refinement=affinitynet`)
# says whose, and the pipeline runs that one only.
#
# **Goals.** After this notebook you can
#
# 1. get labels for pairs of pixels out of a map that finds only parts of objects,
# 2. say what a network learns from such pairs, and read its affinities,
# 3. follow a random walk over a graph of pixels, and say where its time goes.

# %% tags=["parameters"]
dataset = "toy"  # name of the run's folder below runs_root
data_root = "data/toy"  # VOC devkit folder
method = "cam"  # whose score maps are refined
seed = 0  # of everything that is random
affinitynet_weights = ""  # a finished AffinityNet instead of training
affinitynet_init = "classifier"  # "backbone" in the paper: ImageNet weights, which the small backbone has not
affinitynet_stride = 4  # pixels a cell of the grid; 8 in the paper, on pictures five times as large
affinitynet_radius = 5  # pairs are closer than this, in cells
affinitynet_alpha_low = 8.0  # exponent of a strong background; 4 in the paper, whose maps are wider
affinitynet_alpha_high = 48.0  # exponent of a weak background; 24 in the paper, 32 in its released models
affinitynet_images = 400  # the first ones are enough to learn affinities here; 0, all of them, in the paper
affinitynet_epochs = 5  # 8 in the paper
affinitynet_batch_size = 8
affinitynet_learning_rate = 0.03  # of the backbone, ten times that for the new layers; 0.01 in the paper, with next to no momentum
affinitynet_weight_decay = 5.0e-4
affinitynet_crop = 64  # 448 in the paper
affinity_walk_alpha = 16.0  # exponent of the background in the walk
affinity_walk_beta = 16.0  # exponent of the affinities; 8 in the paper
affinity_walk_log2_steps = 6  # 2^6 steps of the random walk; 2^8 in the paper, on a grid five times as large

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from wsss_lib import results, viz, widgets
from wsss_lib.config import Config
from wsss_lib.core import store, training
from wsss_lib.core.scoring import full_size_maps, metric_row, score_masks
from wsss_lib.core.files import IGNORE, read_mask
from wsss_lib.data.dataset import data_hash, open_data
from wsss_lib.ops import affinity
from wsss_lib.ops.crf import crf_from_labels
from wsss_lib.ops.metrics import Evaluation
from wsss_lib.ops.random_walk import random_walk
from wsss_lib.refine import affinitynet

config = Config.from_notebook(globals())
run_device = training.seed_everything(config)
viz.use_style()

# %% [markdown]
# The first check: are the score maps and the seeds there? If not, the next cell stops and says which notebook to run.

# %%
train_data = open_data(config, config.train_split)
count = min(config.affinitynet_images or len(train_data), len(train_data))
learn_data = replace(train_data, ids=train_data.ids[:count], labels=train_data.labels[:count])
score_data = open_data(config, config.score_split)
maps_stage = store.open_stage(config, "maps", "10_cam" if config.method == "cam" else f"of method {config.method!r}")
seeds_stage = store.open_stage(config, "seeds", "70_seeds")
print(f"{len(train_data)} training images, {train_data.num_classes} classes; AffinityNet learns from {len(learn_data)}; "
      f"{len(score_data)} images of split {score_data.split!r} are scored")

# %% [markdown]
# ## 1 Two strengths of the background
#
# A map says how much each pixel looks like a class. What is background? AffinityNet gives it a score of its own,
#
# $$ M_{bg} = \big(1 - \max_c M_c\big)^{\alpha} , $$
#
# and lets the dense CRF (notebook 70) decide. A **small** $\alpha$ makes the background strong: what is still an object then is *surely*
# one. A **large** $\alpha$ makes it weak: what is still background then is *surely* background. What is neither, stays unknown.
# Before the CRF, $\alpha$ is a threshold in disguise: background and class are equal where $(1 - M)^\alpha = M$, that is at $M$ =
# 0.28 for $\alpha$ = 4, at 0.19 for 8, at 0.08 for 32 and at 0.06 for 48. The maps of the small network of a smoke run reach 0.28 on
# about a third of the body pixels only, so that 4 leaves little more than heads; 8 and 48 are used there, near notebook 70's thresholds. These
# two, the crop, the
# learning rate, $\beta$ and the number of steps were tried on a hundred images of seed 0 **with their true masks in view**.

# %% tags=["nbval-ignore-output"]
measured = [name for name in score_data.ids if name in set(learn_data.ids)]  # of these there will be scores and true masks
image_id = next(name for name in measured if score_data.label(name).sum() == 1)
photograph = score_data.image(image_id)
picture = np.array(photograph)
classes, scores = full_size_maps(maps_stage.folder, image_id)
low = affinitynet.crf_with_alpha(picture, scores, config.affinitynet_alpha_low)  # (1 + K, H, W)
high = affinitynet.crf_with_alpha(picture, scores, config.affinitynet_alpha_high)
named = np.full(256, IGNORE, np.uint8)  # class number of each channel; 255 stays
named[:len(low)] = [0, *(classes + 1)]

merged = affinitynet.confident_labels(torch.from_numpy(low), torch.from_numpy(high)).numpy()
panels_of = ((low.argmax(0), f"alpha {config.affinitynet_alpha_low:g}"), (high.argmax(0), f"alpha {config.affinitynet_alpha_high:g}"),
             (merged, "merged"))
figure, panels = plt.subplots(1, 6, figsize=(12, 2.4))
viz.draw_image(panels[0], picture, f"input {image_id}")
viz.draw_labels(panels[1], score_data.mask(image_id), score_data.classes, "truth", picture)
viz.draw_scores(panels[2], picture, scores.max(0), "map")
for panel, (label, title) in zip(panels[3:], panels_of, strict=True):
    viz.draw_labels(panel, named[label], score_data.classes, title, picture)
viz.show(figure, "With a strong background the object is small, with a weak one large; merged, a hatched zone lies between")

# %% [markdown]
# The merged label in plain lines; the order matters, because a pixel that the strong background gives to an object and the weak one
# to the background is called background. The library does the same:

# %%
by_hand = np.where(low.argmax(0) == 0, IGNORE, low.argmax(0))  # sure objects
by_hand = np.where(high.argmax(0) == 0, 0, by_hand)  # sure background
assert (by_hand == merged).all()
print("plain lines = library:", True)

# %% [markdown]
# The images that AffinityNet learns from (`affinitynet_images`), at both strengths: the CRF's scores, not only its labels, because a
# training crop averages them over the cells of its own grid. They are stored as float16.

# %%
scores_stage = store.begin_stage(config, "affinity_scores", ("affinitynet_alpha_",),
                                     {"data": data_hash(learn_data), "maps": maps_stage})
if not scores_stage.is_complete():
    made = affinitynet.make_affinity_scores(learn_data, maps_stage.folder, config, scores_stage.folder)
    scores_stage.finish([{"what": "CRF scores", "split": learn_data.split, "images": len(learn_data)}], made, "cpu")
low_stored, high_stored = affinitynet.read_scores(scores_stage.folder / f"{image_id}.npz", picture.shape[:2])
assert low_stored.shape == low.shape and np.abs(low_stored - low).max() < 0.01

# %% [markdown]
# How good are these labels? (The true masks are read here to *measure*, nothing else.)

# %% tags=["nbval-ignore-output"]
known = right = total = 0
for name in measured[:100]:
    label = affinitynet.confident_labels(*map(torch.from_numpy, affinitynet.read_scores(
        scores_stage.folder / f"{name}.npz", score_data.mask(name).shape))).numpy()
    present = np.array([0, *(np.flatnonzero(score_data.label(name)) + 1)])
    truth, sure = score_data.mask(name), label != IGNORE
    counted = sure & (truth != IGNORE)
    known, total = known + sure.sum(), total + label.size
    right += (present[label[counted]] == truth[counted]).sum() / max(1, counted.sum())
print(f"{100 * known / total:.0f} % of the pixels get a label, {right:.0f} % of those are right (mean of {min(100, len(measured))} images)")

# %% [markdown]
# ## 2 Affinity of features
#
# As in notebook 80, nothing is known about single pixels of the unknown zone; but *pairs* of near pixels with known labels say what
# belongs together. AffinityNet gives each cell of a grid a feature vector $f_i \in \mathbb{R}^{448}$ and compares the vectors directly:
#
# $$ W_{ij} = \exp\Big(-\tfrac{1}{448} \sum_k |f_{ik} - f_{jk}| \Big) \quad \text{for cells closer than the radius } r = 5 . $$
#
# (IRN learns boundaries instead and derives the affinity from them.) In ten lines, on features that need no network: the colour of
# each cell.

# %%
colour = F.avg_pool2d(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 32, config.affinitynet_stride)[0]  # f: (3, h, w)


def plain_affinity(f, radius):
    """Return W of every direction and source: (n, S)."""
    height, width = f.shape[1:]
    rows, columns = range(height - radius + 1), range(radius - 1, width - radius + 1)
    return torch.stack([torch.stack([torch.exp(-(f[:, y, x] - f[:, y + dy, x + dx]).abs().mean()) for y in rows for x in columns])
                        for dy, dx in (path.destination for path in affinity.search_paths(radius))])


W = affinity.feature_affinity(colour[None], 5)[0]
assert torch.allclose(plain_affinity(colour, 5), W, atol=1e-6)
print("ten lines = library:", True, "for", tuple(W.shape), "directions and sources")

# %% [markdown]
# Pick one cell and look at its affinities. What to look for: they fall where the colour changes, and nowhere else; colour alone
# cannot know which changes are outlines.

# %%
def affinities_of(f, cell, radius=5, beta=1.0):
    """Return the row of one cell in the matrix of all pairs as a map."""
    row = affinitynet.feature_graph(f, radius, beta).matrix().to_dense()[cell[0] * f.shape[2] + cell[1]]
    return row.view(f.shape[1:])


outline = (score_data.mask(image_id) == classes[0] + 1)[::config.affinitynet_stride, ::config.affinitynet_stride]
points = np.argwhere(outline)
cell = tuple(points[np.abs(points - points.mean(0)).sum(1).argmin()])  # of the object, near its centre
figure, panels = plt.subplots(1, 2, figsize=(5.5, 2.5))
viz.draw_image(panels[0], picture, f"input {image_id}")
panels[0].plot(*((np.array(cell[::-1]) + 0.5) * config.affinitynet_stride), "o", color="#D55E00")
mappable = viz.draw_map(panels[1], affinities_of(colour, cell), "affinity by colour")
figure.colorbar(mappable, ax=panels, shrink=0.8)
viz.show(figure, "A photograph with one marked cell, and the affinities of that cell to its neighbours by colour")

# %% [markdown]
# ## 3 The loss
#
# Equal pairs (both background, or both the same class) want an affinity of 1, different pairs 0; each kind has its own mean over the
# pairs of the **whole batch**:
#
# $$ \mathcal{L} = \tfrac14 \mathcal{L}_{bg} + \tfrac14 \mathcal{L}_{fg} + \tfrac12 \mathcal{L}_{neg}, \qquad
# \mathcal{L}_{fg} = -\operatorname*{mean} \log W_{ij}, \qquad \mathcal{L}_{neg} = -\operatorname*{mean} \log (1 - W_{ij}) . $$

# %%
tiny_label = torch.tensor([[0, 0, 3, 3], [0, 255, 3, 3]])
tiny_features = torch.rand(1, 448, 2, 4, generator=torch.Generator().manual_seed(0)) * 3
pairs = affinity.affinity_labels(tiny_label, radius=2, num_classes=21)
w = affinity.feature_affinity(tiny_features, 2)[0]
by_hand = [-torch.log(w[pairs.bg_pos]).mean(), -torch.log(w[pairs.fg_pos]).mean(), -torch.log(1 - w[pairs.neg]).mean()]

losses = affinity.feature_affinity_loss(w[None], affinity.PairLabels(*(mask[None] for mask in pairs)))
assert torch.allclose(torch.stack(by_hand), torch.stack(list(losses)), atol=1e-3)
assert torch.isclose(losses.total, by_hand[0] / 4 + by_hand[1] / 4 + by_hand[2] / 2, atol=1e-3)
print(f"background {losses.bg:.3f}, objects {losses.fg:.3f}, different {losses.neg:.3f}: the same by hand and from the library")

# %% [markdown]
# ## 4 The network
#
# Three maps of the backbone, shallow to deep, pass a 1x1 convolution each (64, 128 and 256 channels), and one more over all 448. In
# the published networks (ResNet-38 and VGG-16) all three maps have stride 8. Here the first is the one that is as fine as
# the grid, and the deeper ones are enlarged to it. **Unlike IRN, the backbone is trained along**; only batch normalisation is frozen.

# %%
classifier_file = ""
if config.affinitynet_init == "classifier":
    classifier_stage = store.open_stage(config, "classifier", "10_cam", method="cam")
    classifier_file = classifier_stage.folder / "weights.safetensors"
torch.manual_seed(config.seed)
net = affinitynet.build_affinitynet(config, classifier_file)
images = torch.randn(2, 3, config.affinitynet_crop, config.affinitynet_crop)
maps = net.backbone.stages(images)
print("maps", [tuple(maps[level].shape) for level in net.levels], "-> features", tuple(net(images).shape))

net.train()
net(images).mean().backward()
assert all(parameter.grad is not None for group in net.parameter_groups(1, 1) for parameter in group["params"])
assert not any(module.training for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d))
print("gradients reach head and backbone:", True)

# %% [markdown]
# ## 5 Training
#
# Each sample is a crop with jittered colours; the image is normalised *after* the crop, so that the surroundings of a small image
# are black, and the two CRF scores are averaged over the cells of the crop's own grid before they are compared. **No pixel label is
# read.**

# %%
inputs = {"data": data_hash(learn_data), "scores": scores_stage}
if config.affinitynet_init == "classifier":
    inputs["classifier"] = classifier_stage
net_stage = store.begin_stage(config, "affinitynet", ("affinitynet_",), inputs)
weights_file = net_stage.folder / "weights.safetensors"
if not net_stage.is_complete():
    torch.manual_seed(config.seed)
    net = affinitynet.build_affinitynet(config, classifier_file, config.affinitynet_weights).to(run_device)
    images_seen = 0
    if not config.affinitynet_weights:
        images_seen = affinitynet.train_affinitynet(net, learn_data, scores_stage.folder, config, net_stage.folder)
    training.save_weights(net, weights_file)
    net_stage.finish([{"what": "AffinityNet", "split": learn_data.split, "images": len(learn_data)}], images_seen, str(run_device))
net = affinitynet.build_affinitynet(config, classifier_file, weights_file).to(run_device).eval()

# %% [markdown]
# What to look for: the three terms pull against each other. Affinities that are all 1 would make the first two vanish and the
# third infinite.

# %% tags=["nbval-ignore-output"]
if not config.affinitynet_weights:
    log = training.read_log(net_stage.folder)
    figure, panel = plt.subplots(figsize=(5.5, 2.8))
    for key, words in (("bg", "background pairs"), ("fg", "object pairs"), ("neg", "different pairs")):
        means = [np.mean([line[key] for line in log[max(0, i - 4):i + 1]]) for i in range(len(log))]  # of five lines
        panel.plot([line["step"] for line in log], means, label=words)
    panel.set(xlabel="step", ylabel="loss", ylim=(0, None))
    panel.legend()
    viz.show(figure, f"The total loss goes from {log[0]['loss']:.2f} to {log[-1]['loss']:.2f} in {log[-1]['step']} steps")

# %% [markdown]
# The affinities of the same cell as in section 2, now by the trained features:

# %% tags=["nbval-ignore-output"]
f = affinitynet.grid_features(net, photograph, config).cpu()
figure, panels = plt.subplots(1, 3, figsize=(8, 2.5))
viz.draw_image(panels[0], picture, f"input {image_id}")
panels[0].plot(*((np.array(cell[::-1]) + 0.5) * config.affinitynet_stride), "o", color="#D55E00")
viz.draw_map(panels[1], affinities_of(colour, cell), "by colour")
mappable = viz.draw_map(panels[2], affinities_of(f, cell), "by AffinityNet")
figure.colorbar(mappable, ax=panels, shrink=0.8)
viz.show(figure, "Affinities of the marked cell to its neighbours, by colour and by the trained features")

# %% [markdown]
# ## 6 The random walk
#
# $W$ makes a graph of the cells. With $V_{ij} = W_{ij}^\beta$, $V_{ii} = 1$ and columns divided by their sums,
#
# $$ T = V D^{-1}, \qquad m^{\text{out}} = m \, T^{\,t}, \qquad t = 2^8 = 256 , $$
#
# as published (fewer steps in a smoke run, whose grid is smaller), where $m$ holds the maps **with the background as one more
# channel**, averaged over the cells. Afterwards the strongest channel wins; $\alpha$ takes the place of the threshold, and matters as much
# (section 9). In ten lines with dense matrices, against the library's sparse walk:

# %%
small = f[:, :12, :14]
V = affinitynet.feature_graph(small, config.affinitynet_radius, config.affinity_walk_beta).matrix().to_dense()
m = torch.rand(3, *small.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = V / V.sum(0)
for _ in range(config.affinity_walk_log2_steps):
    T = T @ T
dense = (m.flatten(1) @ T).view_as(m)

graph = affinitynet.feature_graph(small, config.affinitynet_radius, config.affinity_walk_beta)
assert torch.allclose(dense, random_walk(graph, m, config.affinity_walk_log2_steps), atol=1e-6)
print("dense = sparse:", True, f" entries that are not 0: {100 * (V > 0).double().mean():.0f} % of this small matrix")

# %% [markdown]
# The published program builds the dense matrix and squares it eight times: about 6 s for a photograph at stride 8. The library keeps it sparse
# and never forms the power (the Chebyshev series of notebook 80): `python benchmarks/affinitynet_walk.py` measures both.
#
# One row of $T^t$ says where the score of a cell goes. What to look for: it spreads over head and body first; after many steps some of it has crossed
# what the network takes for an outline.

# %% tags=["nbval-ignore-output"]
graph = affinitynet.feature_graph(f, config.affinitynet_radius, config.affinity_walk_beta)
single = torch.zeros(1, *f.shape[1:])
single[0, cell[0], cell[1]] = 1
figure, panels = plt.subplots(1, 6, figsize=(12, 2.3))
viz.draw_labels(panels[0], score_data.mask(image_id), score_data.classes, "truth", picture)
for panel, power in zip(panels[1:], (0, 2, 4, 6, 8), strict=True):
    spread = random_walk(graph, single, power)[0]
    viz.draw_map(panel, spread / spread.max(), f"t = {2**power}")
viz.show(figure, "The score of one cell after 1 to 256 steps, each divided by its maximum, beside the true mask")

# %% [markdown]
# **A curiosity that is kept.** Only cells whose whole neighbourhood lies inside the map begin a pair. For radius 5 ten cells
# of every map are in no pair at all and keep their scores, and cells at the left, right and lower border have fewer neighbours:

# %%
lonely = affinitynet.feature_graph(torch.zeros(1, 12, 16), radius=5, beta=8).degree().view(12, 16)
print(f"{(lonely == 1).sum()} cells without a neighbour: {[tuple(c) for c in torch.nonzero(lonely == 1).tolist()]}")
assert (lonely == 1).sum() == 10

# %% [markdown]
# **A defect that is avoided.** SC-CAM's released program saves maps of 0 and 255 (notebook 60, section "Response maps"). With those the
# background's score is $(1 - 255)^{16} \approx 3 \cdot 10^{38}$, and everything becomes background. Here such maps are refused:

# %%
print(f"background under a defective map: {(1.0 - 255.0) ** 16:.1e}")
try:
    affinitynet.scores_with_background(255.0 * (scores > 0.15), config.affinity_walk_alpha)
except ValueError as error:
    print("refused:", error)

# %% [markdown]
# ## 7 All images
#
# Every training image: features, graph, walk, mask. **The image-level labels are used**: only the classes that the label names have
# maps.

# %%
walk_inputs = {"data": data_hash(train_data), "maps": maps_stage, "affinitynet": net_stage}
masks_stage = store.begin_stage(config, "affinitynet_masks", ("affinity_walk_",), walk_inputs)
if not masks_stage.is_complete():
    images_made = affinitynet.make_affinitynet_masks(net, train_data, maps_stage.folder, config, masks_stage.folder)
mask = read_mask(masks_stage.folder / f"{image_id}.png", train_data.num_classes)
assert set(np.unique(mask)) <= {0, *(np.flatnonzero(train_data.label(image_id)) + 1)}
print("every value of the mask is background or a class of the label:", True)

# %% [markdown]
# ## 8 Numbers
#
# The pseudo-masks against the true masks, beside the seeds of notebook 70. The last column says what was chosen by looking at pixel
# labels, the lines beneath what was published for the full VOC 2012 (orientation only).

# %% tags=["nbval-ignore-output"]
if not masks_stage.is_complete():
    evaluation = score_masks(score_data, masks_stage.folder)
    row = metric_row("AffinityNet pseudo-mask", score_data, evaluation, False, config)
    masks_stage.finish([row], images_made, str(run_device))
rows = [{"method": config.method, "seed": config.seed} | row for row in seeds_stage.metrics() + masks_stage.metrics()
        if row["what"] in ("CAM seed", "CAM seed + CRF", "AffinityNet pseudo-mask")]
print(results.table(results.summarize(rows), compare=config.dataset == "voc12"))
for entry in (entry for entry in results.PUBLISHED if "AffinityNet" in entry.what):
    print(f"published, VOC 2012 {entry.split}, {entry.method}, {entry.what}: {entry.value} % ({entry.source})")

# %% [markdown]
# ### Against IRN
#
# If notebook 80 has refined the same maps, its score stands here beside AffinityNet's.

# %% tags=["nbval-ignore-output"]
irn_masks = store.Stage(store.stage_folder(config, "pseudo_masks"))
if irn_masks.is_complete():
    of_irn = [{"method": config.method, "seed": config.seed} | row for row in irn_masks.metrics()]
    print(results.table(results.summarize(rows[-1:] + of_irn), compare=False))
else:
    print("no masks of IRN in this run's folder: notebook 80 makes them")

# %% [markdown]
# ## 9 What helps and what does not
#
# The exponents of background and affinities and the number of steps, one changed at a time, on a few images. Features are computed once.

# %% tags=["nbval-ignore-output"]
tried = replace(score_data, ids=score_data.ids[:60], labels=score_data.labels[:60])
features_of = {name: affinitynet.grid_features(net, score_data.image(name), config) for name in tried.ids}


def walked_mask(name, alpha=config.affinity_walk_alpha, beta=config.affinity_walk_beta, power=config.affinity_walk_log2_steps):
    """Return the pseudo-mask of one image for one setting."""
    classes, scores = full_size_maps(maps_stage.folder, name)
    graph = affinitynet.feature_graph(features_of[name], config.affinitynet_radius, beta)
    start = affinitynet.pooled_scores(torch.from_numpy(scores).to(run_device), alpha, net.stride)
    walk = random_walk(graph, start, power)
    return affinitynet.walk_mask(walk, classes, scores.shape[1:], net.stride).cpu().numpy()


def score_of(**setting):
    """Return the mIoU in percent over the few images."""
    return 100 * score_masks(tried, lambda name: walked_mask(name, **setting)).scores().miou


# %% tags=["nbval-ignore-output"]
usual = score_of()
for words, settings in (("alpha", (4, 8, 32)), ("beta", (4, 8, 32)), ("power", (0, 2, 4, 8))):
    print(f"{words:6s}", ", ".join(f"{value}: {score_of(**{words: value}):.1f} %" for value in settings), f" (usual: {usual:.1f} %)")

# %% [markdown]
# The paper's last step before segmentation is another CRF over these masks. Does it help?

# %% tags=["nbval-ignore-output"]
def after_crf(name):
    """Return the pseudo-mask of one image after the dense CRF on its labels."""
    classes = np.flatnonzero(score_data.label(name))
    ids = np.array([0, *(classes + 1)])
    label = np.searchsorted(ids, read_mask(masks_stage.folder / f"{name}.png", score_data.num_classes))
    return ids[crf_from_labels(np.array(score_data.image(name)), label, len(ids))].astype(np.uint8)


with_crf = 100 * score_masks(tried, after_crf).scores().miou
without = 100 * score_masks(tried, masks_stage.folder).scores().miou
print(f"{len(tried)} images: {without:.1f} % as they are, {with_crf:.1f} % after a CRF")

# %% [markdown]
# ## 10 Look
#
# Best, random and worst images by their own IoU, in the project's order: input, truth, map, refined (the seed after the dense CRF), and
# AffinityNet.

# %% tags=["nbval-ignore-output"]
def image_iou(name):
    """Return the mean IoU of one image (for ranking only, never averaged)."""
    evaluation = Evaluation(score_data.num_classes + 1)
    evaluation.add(score_data.mask(name), read_mask(masks_stage.folder / f"{name}.png", score_data.num_classes))
    return evaluation.scores().miou


ranking = {name: image_iou(name) for name in score_data.ids[:200]}
chosen = viz.best_worst_random(ranking, count=1, seed=config.seed)
figure, panels = plt.subplots(len(chosen), 5, figsize=(8, 1.7 * len(chosen)), squeeze=False)
for name, line in zip(chosen, panels, strict=True):
    image = np.array(score_data.image(name))
    viz.draw_image(line[0], image, f"input {name}")
    viz.draw_labels(line[1], score_data.mask(name), score_data.classes, "truth")
    viz.draw_scores(line[2], image, full_size_maps(maps_stage.folder, name)[1].max(0, initial=0), "map")
    for panel, folder, title in ((line[3], seeds_stage.folder / "seed_masks", "refined"),
                                 (line[4], masks_stage.folder, f"AffinityNet, {100 * ranking[name]:.0f} %")):
        viz.draw_labels(panel, read_mask(folder / f"{name}.png", score_data.num_classes), score_data.classes, title)
viz.show(figure, "Best, random and worst image: maps, seeds after the CRF, and AffinityNet's masks")

# %% [markdown]
# ## 11 Try it
#
# Number of steps and exponent of the background, on the image from the start. (Sliders appear in JupyterLab; the strip
# shows the same for readers of the page.)

# %% tags=["nbval-ignore-output"]
features_of[image_id] = f.to(run_device)


def draw(power=6, alpha=16.0):
    """Show the pseudo-mask of the chosen image."""
    figure, axes = plt.subplots(figsize=(3, 3))
    mask = walked_mask(image_id, alpha=alpha, power=power)
    viz.draw_labels(axes, mask, score_data.classes, f"t = {2**power}, alpha {alpha:g}", picture)
    viz.show(figure, f"Pseudo-mask of {image_id} after {2**power} steps with alpha {alpha:g}")


widgets.explore(draw, power=(0, 10, 1), alpha=(1.0, 40.0, 1.0))

# %% tags=["nbval-ignore-output"]
figure, panels = plt.subplots(1, 6, figsize=(11, 2.2))
viz.draw_labels(panels[0], score_data.mask(image_id), score_data.classes, "truth", picture)
for panel, (power, alpha) in zip(panels[1:], ((0, 16), (3, 16), (6, 4), (6, 16), (6, 32)), strict=True):
    viz.draw_labels(panel, walked_mask(image_id, alpha=alpha, power=power), score_data.classes, f"t = {2**power}, alpha {alpha}", picture)
viz.show(figure, "Masks after 1, 8 and 64 steps; a larger alpha weakens the background and enlarges the mask")

# %% [markdown]
# ## 12 Summary and exercises
#
# * Two strengths of one background turn a partial map into sure labels and an honest "unknown".
# * The network learns features that are alike inside objects; the walk averages scores over what is alike.
# * The background walks along as a channel, and its exponent takes the place of a threshold. It gains 6.1 points over the plain seed here, but
# the CRF alone
#   gains 14.1.
# * **Limits.** The grid is coarse (8 pixels as published); a class whose map is wrong stays wrong; thin parts vanish in a cell.
# * **Paper and code.** The paper says 896 channels, Adam and alpha 24; the released program has 448, SGD (with the momentum slip of
#   notebook 10) and 32. The paper's best masks go through one more CRF, the program's do not.
# * Written: `affinity_scores/`, `affinitynet/`, `affinitynet_masks/`. Next: notebook 90 with `refinement = "affinitynet"`.
#
# **Exercise 1.** A photograph of 375 x 500 pixels at stride 8 (sides rounded up). How many entries has the dense matrix?

# %%
entries = None  # your answer
widgets.check(entries, (47 * 63) ** 2, "exercise 1")

# %% [markdown]
# **Exercise 2.** How many pairs has a training crop of 56 x 56 cells with radius 5? (34 directions; sources as in section 6.)

# %%
number_of_pairs = None  # your answer
widgets.check(number_of_pairs, 52 * 48 * 34, "exercise 2")

# %% [markdown]
# **Exercise 3.** A pixel has the map values 0.5 and 0.2. Write a function that returns the alpha at which background and strongest class
# are equal.

# %%
def break_even(values):
    """values: a list of map values, the largest strictly between 0 and 1. Return a float."""
    return None  # your code


widgets.check(break_even([0.5, 0.2]), 1.0, "exercise 3")

# %% [markdown]
# **References.** Ahn, Kwak: Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
# Segmentation, CVPR 2018. Krähenbühl, Koltun: Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NeurIPS 2011.
