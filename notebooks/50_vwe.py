# %% [markdown]
# # 50 · Visual words: VWE and VWL
#
# *In: photographs and their image-level labels. Out: one score map for each class of each image, from a network that must
# also name the visual words of the image.*
#
# | | |
# |---|---|
# | **Needs** | notebook 02 (the data set), notebook 10 (`classifier/`, `maps/` of CAM with the same seed) |
# | **Writes** | `network/weights.safetensors`, `maps/ID.npz` |
# | **Time and memory** | smoke: about 2.5 minutes of one CPU core, 1 GB. One A100, estimated in docs/costs.md: VOC 3 minutes, COCO 50 |
# | **Paper** | VWE: Ru, Du, Wu, *Learning Visual Words for Weakly-Supervised Semantic Segmentation*, IJCAI 2021; VWL: Ru, Du, Zhan, Wu, IJCV 2022, arXiv 2202.04812 |
#
# **Goals.** After this notebook you can
#
# 1. make a second, finer set of labels out of features alone, and say why it makes a classifier look at more of an object,
# 2. say which loss trains which part of the network, and prove it from the graph,
# 3. tell a living codebook from a dead one, and pooling by average from pooling by maximum, in a picture.
#
# Parameters that are not listed here, such as those of batches, are the ones of notebook 10.

# %% tags=["parameters"]
dataset = "toy"  # name of the run's folder below runs_root
data_root = "data/toy"  # VOC devkit folder
method = "vwe"  # name of the folder that gets the network and the maps
seed = 0  # of everything that is random
backbone = "resnet_small"  # resnet50 in VWE, resnet101 in VWL
output_stride = 8  # 16 in the paper; the toy images are small
frozen_stages = 0  # 3 in the paper: stem, layer1 and layer2; 1 in VWL-M
momentum_slip = False  # True in the official runs: momentum is the weight decay, see notebook 10
cam_crop = 96  # 512 in the paper; crops, batches and scales are those of CAM's classifier, see notebook 10
vwe_weights = ""  # a finished network instead of training
vwe_init = "classifier"  # "backbone" in the paper: ImageNet weights, which the small backbone has not
vwe_variant = "vwe"  # vwl_l: words pushed apart; vwl_m: a memory bank
vwe_words = 32  # words of the codebook; 256 in the paper
vwe_temperature = 1.0  # of the soft assignment
vwe_gamma = 2.0  # weight of the average in the pooling
vwe_epochs = 4  # 6 in the paper
vwe_learning_rate = 0.01  # the same in the paper, but there without momentum
vwe_head_learning_rate = 0.1  # ten times the backbone's

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from wsss_lib import results, viz, widgets
from wsss_lib.config import Config
from wsss_lib.core import files, store, training
from wsss_lib.core.parallel import make_maps
from wsss_lib.core.scoring import full_size_maps, mean_part_recall, score_maps, score_masks
from wsss_lib.data import transforms
from wsss_lib.data.dataset import data_hash, open_data
from wsss_lib.data.samples import ClassificationSamples
from wsss_lib.methods import cam, vwe
from wsss_lib.methods.cam import build_classifier
from wsss_lib.nets.backbone import normalization_of
from wsss_lib.ops.metrics import Evaluation, confusion_matrix, scores
from wsss_lib.ops.seeds import argmax_with_background

config = Config.from_notebook(globals())
run_device = training.seed_everything(config)
viz.use_style()

# %% [markdown]
# The first check: are the images there, and CAM's classifier and maps of the same seed? If not, the next cell stops and
# says which notebook to run.

# %%
train_data = open_data(config, config.train_split)
score_data = open_data(config, config.score_split)
classifier_stage = store.open_stage(config, "classifier", "10_cam", method="cam")
cam_stage = store.open_stage(config, "maps", "10_cam", method="cam")
mean, std = normalization_of(config.backbone)
print(f"{len(train_data)} training images, {train_data.num_classes} classes; {len(score_data)} images of split "
      f"{score_data.split!r} are scored")

# %% [markdown]
# ## 1 The problem
#
# A classifier has to answer few questions about an image: one yes or no for each class. The most telling part of an object
# answers them, so the evidence gathers there. **Nothing asks about the rest of the object**, because the labels do not
# mention it. VWE's remedy is to ask more questions, about finer things, without anybody writing more labels.

# %% tags=["nbval-ignore-output"]
image_id = next(name for name in score_data.ids if score_data.label(name).sum() == 1)
photograph = score_data.image(image_id)
picture, present = np.array(photograph), int(np.flatnonzero(score_data.label(image_id))[0])
_, cam_scores = full_size_maps(cam_stage.folder, image_id)
figure, panels = plt.subplots(1, 3, figsize=(6.5, 2.3))
viz.draw_image(panels[0], picture, f"input {image_id}")
viz.draw_labels(panels[1], score_data.mask(image_id), score_data.classes, "truth", picture)
mappable = viz.draw_scores(panels[2], picture, cam_scores.max(0), "CAM")
figure.colorbar(mappable, ax=panels, shrink=0.8, label="score")
covered = 100 * (cam_scores.max(0) > 0.5)[score_data.mask(image_id) == present + 1].mean()
viz.show(figure, f"CAM gives more than half of its highest score to only {covered:.0f} percent of the "
         f"{train_data.classes[present]}")

# %% [markdown]
# ## 2 The idea in ten lines
#
# Take the classifier's features: a vector at each position of an image. Choose $K$ such vectors as **words** (here 16
# positions drawn at random from eight images, which is how VWL-M begins). Give each position of *one* image the word that
# points most nearly in the same direction. Which words the image holds is a label with $K$ yes-or-no entries that nobody
# wrote.

# %%
def features_of(net, image):
    """Return the last feature map (1, D, h, w) of one photograph."""
    tensor = transforms.to_tensor(transforms.normalize(image, mean, std))[None]
    with torch.no_grad():
        return net.backbone(tensor.to(run_device)).cpu()


classifier = build_classifier(config, train_data.num_classes, classifier_stage.folder / "weights.safetensors")
classifier = classifier.to(run_device).eval()

# %%
others = torch.cat([features_of(classifier, score_data.image(name))[0].flatten(1).T for name in score_data.ids[:8]])
chosen = torch.randperm(len(others), generator=torch.Generator().manual_seed(config.seed))[:16]
c = others[chosen]  # the codebook c: (K, D)
x = features_of(classifier, photograph)[0]  # x: (D, h, w)
positions = x.flatten(1).T  # (h w, D)
cosine = F.normalize(positions, dim=1) @ F.normalize(c, dim=1).T  # (h w, K)
a = cosine.softmax(1)  # soft assignment
index = cosine.argmax(1)  # the nearest word
H = a.sum(0)  # histogram: (K,)
w = F.one_hot(index, len(c)).amax(0)  # which words are there: (K,)

# %% [markdown]
# The library does the same for a whole batch. Both must agree:

# %%
words = vwe.encode(x[None], c)
assert torch.equal(words.index.flatten(), index) and torch.equal(words.present[0], w.float())
assert torch.allclose(words.histogram[0], H, atol=1e-4)
assert torch.allclose(words.assignment[0].flatten(1).T, a, atol=1e-5)
print("ten lines = library:", True)
print("sum of the histogram = number of positions:", round(H.sum().item()) == len(positions))

# %% [markdown]
# A word map, painted: each number is a word, written where it owns most. What to look for: one word covers both creatures, and much of
# the ground around them too. These words are only random positions and hardly tell the two apart; section 7 shows learned ones. To predict *all*
# words of an
# object, a network has to look at all of it.

# %% tags=["nbval-ignore-output"]
def draw_words(panel, index, image, title):
    """Draw a word map (h, w) over a photograph: one colour and one number for each word."""
    height, width = np.array(image).shape[:2]
    labels = index % 254 + 1  # the palette has 254 colours; of more words, two and more share one
    large = F.interpolate(labels[None, None].float(), size=(height, width), mode="nearest")[0, 0]
    viz.draw_labels(panel, large.numpy().astype(np.uint8), [str(number) for number in range(254)], title, np.array(image))


figure, panels = plt.subplots(1, 2, figsize=(5, 2.5))
viz.draw_labels(panels[0], score_data.mask(image_id), score_data.classes, "truth", picture)
draw_words(panels[1], words.index[0], photograph, f"{int(w.sum())} of {len(c)} words")
viz.show(figure, f"{int(w.sum())} words share the image; random ones hardly tell object and background apart")

# %% [markdown]
# ## 3 Words
#
# The encoder in the paper's letters, for a feature vector $x_{ij}$ and the words $c_k$, $k = 1 \dots K$:
#
# $$ a_{k,ij} = \mathrm{softmax}_k\!\left(\tau\,\frac{\langle x_{ij}, c_k\rangle}{\lVert x_{ij}\rVert\,\lVert c_k\rVert}\right),
# \qquad H_k = \sum_{ij} a_{k,ij}, \qquad
# w_k = \big[\,k = \mathrm{argmax}_l\, a_{l,ij} \text{ for some } ij\,\big] $$
#
# * The **soft** path ($a$, then the histogram $H$) has a gradient, which trains the codebook.
# * The **hard** path ($w$) has none. It makes labels.
# * $x$ is *detached*: no gradient of the encoder reaches the backbone.
#
# Why two paths? With the temperature $\tau = 1$ of the paper, cosines between $-1$ and $1$ give a nearly flat soft-max:
# $H$ hardly tells one image from another. The hard label is as sharp as can be.

# %% tags=["nbval-ignore-output"]
figure, panels = plt.subplots(1, 3, figsize=(8.5, 2.4), sharex=True)
for panel, temperature in zip(panels[:2], (1.0, 10.0), strict=True):
    histogram = vwe.encode(x[None], c, temperature).histogram[0].numpy()
    panel.bar(range(len(c)), histogram)
    panel.set(xlabel="word k", title=rf"$H_k$ at $\tau$ = {temperature:g}")
panels[2].bar(range(len(c)), words.present[0].numpy(), color="grey")
panels[2].set(xlabel="word k", title="$w_k$, the label")
soft = words.histogram[0]
viz.show(figure, f"At temperature 1 the histogram is flat, from {soft.min():.1f} to {soft.max():.1f}; at 10 it has peaks; "
         f"the label is {int(words.present.sum())} ones")

# %% [markdown]
# **Memory.** The textbook way to get all cosines is a tensor of positions x words x channels. The cosines themselves are
# a matrix product, here a 1x1 convolution whose weights are the words, so that tensor is never built. What that saves for
# one 512-pixel crop with the paper's sizes (`benchmarks/visual_words.py` measures it):

# %%
positions_of_crop, paper_words, paper_channels = 32 * 32, 256, 2048
print(f"positions x words x channels: {positions_of_crop * paper_words * paper_channels * 4 / 2**20:6.0f} MiB")
print(f"cosines alone:                {positions_of_crop * paper_words * 4 / 2**20:6.0f} MiB")

# %% [markdown]
# ## 4 Pooling
#
# CAM's average counts every position alike, which favours large regions. A maximum counts one position for each channel,
# which favours the telling spot. **Hybrid spatial pyramid pooling** (HSPP) mixes the average with maxima over grids of 1
# x 1, 2 x 2 and 4 x 4 blocks:
#
# $$ P(x) = \frac{1}{\gamma + |L|}\Big[\gamma\,\mathrm{avg}(x) + \sum_{l \in L} \mathrm{avg}\big(\mathrm{maxpool}_{\lfloor h/l\rfloor
# \times \lfloor w/l\rfloor}(x)\big)\Big], \qquad \gamma = 2,\; L = \{1, 2, 4\} $$
#
# What does a pooling attend to? The gradient of its output says it: the weight that each position has in the result. For
# the average it is the same everywhere; for a maximum it is one for each channel's winner.

# %%
POOLINGS = {"average": (1.0, ()), "maximum, 1 x 1": (0.0, (1,)), "maxima, 2 x 2": (0.0, (2,)), "maxima, 4 x 4": (0.0, (4,)),
            "mix (HSPP)": (config.vwe_gamma, (1, 2, 4))}


def attention(features, pooling):
    """Return the weight of every position (h, w) in the pooled vector, averaged over the channels."""
    leaf = features.clone().requires_grad_()
    vwe.hspp(leaf, *POOLINGS[pooling]).sum().backward()
    return leaf.grad[0].mean(0).numpy()


def half_of_the_weight(weights):
    """Return how large a share of the positions holds half of the weight."""
    ranked = np.sort(weights.flatten())[::-1].cumsum()
    return (np.searchsorted(ranked, ranked[-1] / 2) + 1) / ranked.size

# %% tags=["nbval-ignore-output"]
figure, panels = plt.subplots(1, 6, figsize=(12, 2.4))
viz.draw_image(panels[0], picture, f"input {image_id}")
lines = []
for panel, name in zip(panels[1:], POOLINGS, strict=True):
    weights = attention(x[None], name)
    share = 100 * half_of_the_weight(weights)
    viz.draw_map(panel, weights / weights.max(), f"{name}\nhalf of it: {share:.0f} %")
    lines.append(f"{name} {share:.0f} %")
viz.show(figure, "Share of the positions that holds half of the weight: " + ", ".join(lines))

# %% [markdown]
# The coarser the grid, the fewer positions decide. Every block sends a winner for each channel, also a block of mere
# background; so the 4 x 4 grid spreads the weight again. A map with fewer than four rows or columns has no such grid; the
# library says so (the official program fails with a kernel of size 0).

# %%
try:
    vwe.hspp(torch.zeros(1, 1, 3, 9))
except ValueError as error:
    print("refused:", error)

# %% [markdown]
# ## 5 Losses
#
# Three heads, each a 1x1 convolution without bias; $M$ is the multi-label soft-margin loss of notebook 10, $y$ the image
# label.
#
# | term | logits | target | asks |
# |---|---|---|---|
# | $L_1$, class | $W\,P(x)$ | $y$ | which classes? |
# | $L_2$, histogram | $W_a\,H$ | $y$ | do the words tell the classes apart? |
# | $L_3$, word | $W_b\,\mathrm{avg}(x)$ | $w$ | which words? |
#
# $L = L_1 + L_2 + L_3$, all weights one. What each term can change follows from what is detached. We do not have to
# believe it: autograd knows, for each term, which parameters it reaches.

# %%
torch.manual_seed(config.seed)
net = vwe.build_vwe(config, train_data.num_classes, classifier_stage.folder / "weights.safetensors").to(run_device)
long_side = config.cam_long_side_min, config.cam_long_side_max
samples = ClassificationSamples(train_data, config.seed, long_side, config.cam_crop, mean, std)
batch = [torch.stack(column).to(run_device) for column in zip(*(samples[0, number] for number in range(4)), strict=True)]
terms, _ = vwe.loss_terms(net.eval(), net.backbone(batch[0]), batch[1])
parts = {"backbone": list(net.backbone.parameters()), "classifier W": [net.classifier.weight],
         "codebook c": [net.codebook], "histogram head W_a": [net.histogram_head.weight],
         "word head W_b": [net.word_head.weight]}
flows = {}  # (term, part) -> length of the gradient, None where autograd knows no way

for term, loss in terms.items():
    for part, parameters in parts.items():
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, trained, allow_unused=True, retain_graph=True) if trained else []
        norms = [gradient.norm().item() ** 2 for gradient in gradients if gradient is not None]
        flows[term, part] = sum(norms) ** 0.5 if norms else None

# %%
print("".ljust(16) + "".join(part.rjust(20) for part in parts))
for term in terms:
    cells = ["stopped" if flows[term, part] is None else "flows" for part in parts]
    print(term.ljust(16) + "".join(cell.rjust(20) for cell in cells))
if config.vwe_variant == "vwe":
    assert {part for part in parts if flows["histogram", part]} == {"codebook c", "histogram head W_a"}
    assert {part for part in parts if flows["word", part]} == {"backbone", "word head W_b"}

# %% [markdown]
# The same as a drawing: a line where a gradient arrives, none where it is stopped. The codebook learns from $L_2$ alone, so no
# gradient lets it choose words that are merely easy to predict. The backbone learns from $L_1$ and $L_3$ and takes the words as
# they are.

# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(figsize=(6.5, 2.8))
rows = {name: 1 - place / (len(terms) - 1) for place, name in enumerate(terms)}
columns = {name: 1 - place / (len(parts) - 1) for place, name in enumerate(parts)}
for term, part in flows:
    if flows[term, part] is not None:
        color = f"C{list(terms).index(term)}"
        axes.annotate("", (1, columns[part]), (0, rows[term]), arrowprops={"arrowstyle": "->", "color": color, "lw": 2})
for name, height in rows.items():
    axes.text(-0.02, height, f"loss: {name}", ha="right", va="center")
for name, height in columns.items():
    axes.text(1.02, height, name, ha="left", va="center")
axes.set(xlim=(-0.4, 1.6), ylim=(-0.15, 1.15))
axes.set_axis_off()
drawn = [f"{term} to {part}" for (term, part), norm in flows.items() if norm is not None]
viz.show(figure, "Gradients flow from " + ", ".join(drawn) + "; all others are stopped")

# %% [markdown]
# ## 6 Two other codebooks
#
# The journal version has two variants; both are options of the same file (`vwe_variant`).
#
# **VWL-L** learns its codebook as above, and a fourth loss pushes the words apart: with $G$ the matrix of all products of
# the words, each minus its own mean, $L_4 = \tfrac12\left(\lVert G\rVert - \lVert \mathrm{diag}\,G\rVert\right)$. It
# vanishes when all words are at right angles.

# %%
apart = torch.eye(4) - 0.25
print(f"four words as far apart as can be: {vwe.decorrelation(apart).item():.3f}")
print(f"four equal words:                  {vwe.decorrelation(apart[:1].repeat(4, 1)).item():.3f}")

# %% [markdown]
# **VWL-M** learns nothing here: its codebook is a **memory bank**. The first step fills it with random feature vectors;
# every later step moves each word a little towards the mean feature of the positions that it won, $c \leftarrow \rho\,m +
# (1-\rho)\,c$ with $\rho = 0.001$, and $L_2$ is left out. A word that won nothing has $m = 0$. It becomes shorter but
# keeps its direction, and only directions count.

# %%
bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
features = torch.tensor([[[[4.0, 4.0]], [[0.0, 1.0]]]])  # two positions, both nearest to the first word
index = vwe.encode(features, bank).index
print("won by word", index.flatten().tolist(), "-> bank after a step with rho = 0.5:")
print(vwe.moving_average(bank, features, index, rho=0.5).round(decimals=2).tolist())

# %% [markdown]
# So a word of the bank that dies stays dead, unless the features turn towards it. It matters how a codebook starts. Here is
# how many words are the nearest of some position in eight images, for random directions (the start of VWE and VWL-L) and for
# random feature vectors (the start of VWL-M):

# %% tags=["nbval-ignore-output"]
def in_use(codebook):
    """Return how many words are nearest to some of the positions that section 2 has collected."""
    return len(vwe.encode(others.T[None, :, :, None], codebook).index.unique())


generator = torch.Generator().manual_seed(config.seed)
directions = torch.randn(config.vwe_words, others.shape[1], generator=generator)
drawn_vectors = others[torch.randperm(len(others), generator=generator)[:config.vwe_words]]
print(f"random directions:      {in_use(directions)} of {len(directions)} words are in use")
print(f"random feature vectors: {in_use(drawn_vectors)} of {len(drawn_vectors)} words are in use")

# %% [markdown]
# **A trap.** The published VWL-M training cannot run: it counts words by `one_hot` of the *soft* assignment, where the
# nearest words were meant. The library uses the nearest words.

# %%
try:
    F.one_hot(vwe.encode(features, bank).assignment)
except RuntimeError as error:
    print("RuntimeError:", str(error).splitlines()[0])

# %% [markdown]
# ## 7 Training
#
# As CAM's classifier: the same images, crops and batches. The paper starts at ImageNet weights with a tenth of IRN's
# learning rates. The small backbone has no such weights, so at smoke size the network starts at the classifier of
# notebook 10 (`vwe_init`). *This is not the same*: the start already knows the classes of this data set. Section 10
# therefore compares with an average pooling that is trained on from the same start.

# %%
inputs = {"data": data_hash(train_data)}
if config.vwe_init == "classifier":
    inputs["classifier"] = classifier_stage
network_stage = store.begin_stage(config, "network", vwe.NETWORK_FIELDS, inputs)
weights_file = network_stage.folder / "weights.safetensors"
if not network_stage.is_complete():
    torch.manual_seed(config.seed)
    net = vwe.build_vwe(config, train_data.num_classes, classifier_stage.folder / "weights.safetensors", config.vwe_weights)
    net, images_seen = net.to(run_device), 0
    if not config.vwe_weights:
        images_seen = vwe.train_vwe(net, train_data, config, network_stage.folder)
    training.save_weights(net, weights_file)
    network_stage.finish([], images_seen, str(run_device))
net = vwe.build_vwe(config, train_data.num_classes, "", weights_file).to(run_device).eval()

# %% [markdown]
# What to look for on the left: the histogram loss falls as the codebook learns to tell the classes apart. The word loss
# falls less, because which words an image holds is a harder question than which classes, and the words themselves move. On
# the right: words in use. A word that is nearest to no position is **dead**; it asks nothing.

# %% tags=["nbval-ignore-output"]
if not config.vwe_weights:
    log = training.read_log(network_stage.folder)
    steps = [row["step"] for row in log]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.7))
    for name in terms:
        left.plot(steps, [row[name] for row in log], label=name)
    left.set(xlabel="step", ylabel="loss", title="Losses", ylim=(0, 1.5))
    left.legend()
    for name, label in (("words_in_batch", f"in a batch of {config.cam_batch_size}"), ("words_per_image", "in an image")):
        right.plot(steps, [row[name] for row in log], label=label)
    right.axhline(config.vwe_words, color="grey", linestyle=":")
    right.set(xlabel="step", title=f"Words in use, of {config.vwe_words}", ylim=(0, 1.1 * config.vwe_words))
    right.legend()
    first, last = log[0], log[-1]
    viz.show(figure, f"The word loss goes from {first['word']:.2f} to {last['word']:.2f}; words in a batch go from "
             f"{first['words_in_batch']:.0f} to {last['words_in_batch']:.0f} of {config.vwe_words}")

# %% [markdown]
# ### The codebook seen
#
# Now the trained network reads its words on some of the images. First the word maps of three of them, each beside its truth.

# %%
looked_at = list(score_data.ids[:120])
word_maps = {}  # image id -> (index (h, w), cosine of each position to its word)
with torch.no_grad():
    codebook = F.normalize(net.codebook.detach().cpu(), dim=1)
    for name in looked_at:
        features = F.normalize(features_of(net, score_data.image(name)), dim=1)
        cosine = F.conv2d(features, codebook[:, :, None, None])[0]  # (K, h, w)
        word_maps[name] = cosine.argmax(0), cosine.amax(0)

# %% tags=["nbval-ignore-output"]
figure, panels = plt.subplots(2, 4, figsize=(10, 5))
for name, (above, below) in zip(looked_at[:4], panels.T, strict=True):
    index = word_maps[name][0]
    viz.draw_labels(above, score_data.mask(name), score_data.classes, name, np.array(score_data.image(name)))
    draw_words(below, index, score_data.image(name), f"{len(index.unique())} words")
counts = [len(index.unique()) for index, _ in word_maps.values()]
viz.show(figure, f"Four truths and their word maps; an image holds {np.mean(counts):.0f} words on average")

# %% [markdown]
# What does a word stand for? Its **nearest patches** say it: the positions of all these images with the largest cosine,
# at most one of each image, each cut out of its photograph. What to look for: some words are background, others are
# heads, others bodies. Since the histogram has to tell the classes, many words belong to one class.

# %% tags=["nbval-ignore-output"]
def patch(name, row, column, side):
    """Cut a square of `side` pixels around a position of the word map out of a photograph."""
    image, shape = np.array(score_data.image(name)), word_maps[name][0].shape
    y, x = (int((place + 0.5) * image.shape[axis] / shape[axis]) for axis, place in enumerate((row, column)))
    return np.pad(image, ((side, side), (side, side), (0, 0)), mode="edge")[y + side // 2:, x + side // 2:][:side, :side]


def nearest_patches(word, count):
    """Return the patches of a word from the images in which it is nearest, best first."""
    found = []
    for name, (index, cosine) in word_maps.items():
        if (index == word).any():
            place = int(torch.where(index == word, cosine, -2.0).argmax())
            found.append((float(cosine.flatten()[place]), name, *divmod(place, index.shape[1])))
    return [patch(name, row, column, 2 * config.cam_crop // 8) for _, name, row, column in sorted(found, reverse=True)[:count]]

# %% tags=["nbval-ignore-output"]
wins = torch.stack([index.flatten().bincount(minlength=config.vwe_words) for index, _ in word_maps.values()])  # (images, K)
frequent = [word for word in wins.sum(0).argsort(descending=True).tolist() if (wins[:, word] > 0).sum() >= 6][:8]
figure, panels = plt.subplots(len(frequent), 6, figsize=(6, 0.95 * len(frequent)), squeeze=False)
for word, line in zip(frequent, panels, strict=True):
    for panel, cut in zip(line, nearest_patches(word, 6), strict=True):
        viz.draw_image(panel, cut)
    line[0].set_title(f"word {word}", loc="left", fontsize=8, pad=2)
viz.show(figure, f"Six nearest patches for each of the {len(frequent)} most frequent words: textures and parts that recur")

# %% [markdown]
# **Words and classes.** For images of one class each: which share of an image's positions does a word own, on average? A
# column that is bright in one row only is a word of that class; a column that is equally bright in all rows is
# background. Dark columns are rare words; a dead one is black in every
# row.

# %% tags=["nbval-ignore-output"]
labels = np.stack([score_data.label(name) for name in looked_at])
shares = (wins / wins.sum(1, keepdim=True)).numpy()  # (images, K)
single = labels.sum(1) == 1
shown = [number for number in range(score_data.num_classes) if (labels[single][:, number] == 1).any()]
table = np.stack([shares[single][labels[single][:, number] == 1].mean(0) for number in shown])
order = np.argsort(-table.mean(0), kind="stable")[:64]
figure, axes = plt.subplots(figsize=(9, 0.7 + 0.3 * len(shown)))
image = axes.imshow(table[:, order], aspect="auto", vmin=0)
axes.set_yticks(range(len(shown)), [score_data.classes[number] for number in shown])
axes.set_xticks(range(len(order)), order, fontsize=6, rotation=90)
axes.set(xlabel="word, most frequent first")
figure.colorbar(image, ax=axes, label="share of positions")
used = int((wins.sum(0) > 0).sum())
viz.show(figure, f"{used} of {config.vwe_words} words are in use on {len(looked_at)} images, {config.vwe_words - used} are "
         f"dead; the most frequent word owns {100 * table.mean(0).max():.0f} percent of the positions")

# %% [markdown]
# ## 8 All images
#
# The maps are CAM's: $\mathrm{ReLU}(W x)$ at several scales. One detail differs from notebook 10: of an image and its
# mirror image, VWE takes the *maximum* at each position, IRN the sum. Pooling, codebook and the two other heads are no
# longer needed.

# %%
maps_stage = store.begin_stage(config, "maps", ("cam_", "vwe_"), {"network": network_stage})
if not maps_stage.is_complete():
    images_made = make_maps(vwe.vwe_localization(net, config), train_data, config, maps_stage.folder)
    maps_stage.finish([score_maps(score_data, maps_stage.folder)], images_made, str(run_device))
classes, maps, size = files.read_maps(maps_stage.folder / f"{image_id}.npz")
print("classes", classes.dtype, classes.shape, " scores", maps.dtype, maps.shape, " size", size)
assert maps.min() >= 0 and maps.max() <= 1

# %% [markdown]
# ## 9 Numbers
#
# Each method at the threshold that is best for it. **That threshold is chosen by looking at pixel labels**, so these are
# upper bounds. The published values are of VOC 2012, for orientation only. What to look for in the curves: the height and the place of
# the peaks.

# %% tags=["nbval-ignore-output"]
row, cam_row = maps_stage.metrics()[0], cam_stage.metrics()[0]
for name, entry in (("CAM", cam_row), (config.vwe_variant.upper(), row)):
    print(f"{name:6s} {entry['images']} images of {entry['split']}: mIoU {entry['miou']:.1f} % at threshold "
          f"{entry['threshold']:.2f} (its best)")
print(f"difference: {row['miou'] - cam_row['miou']:+.1f} points, one seed")
print("published, full VOC 2012:")
for entry in results.PUBLISHED:
    if entry.method in ("vwe", "vwl_l", "vwl_m"):
        print(f"  {entry.method:6s} {entry.what:17s} {entry.split:6s} {entry.value:.1f} %   {entry.source}")

# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(figsize=(5.5, 2.8))
for name, entry in (("CAM", cam_row), (config.vwe_variant.upper(), row)):
    axes.plot(entry["thresholds"], entry["curve"], label=name)
    axes.plot(entry["threshold"], entry["miou"], "o", color="black")
axes.set(xlabel="background threshold", ylabel="mIoU %", title=f"Maps of {row['images']} images against true masks")
axes.legend()
viz.show(figure, f"CAM peaks at {cam_row['miou']:.1f} percent at threshold {cam_row['threshold']:.2f}, visual words at "
         f"{row['miou']:.1f} percent at {row['threshold']:.2f}")

# %% [markdown]
# VWE's peak is 4.9 points higher (57.6 and 52.7 %), at a higher threshold: its maps are broader.
#
# **Each class, and absent classes.** Two rules for the mean are in use. Usually a class that is in the truth *or* in the
# prediction counts ("union"). The official VWE program drops classes that are not in the *truth* ("present"), so that
# wrongly predicted ones cost nothing in the mean. On whole VOC splits all classes are in the truth and both agree; on
# four pixels they do not:

# %%
tiny = confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), 21)  # class 2 is predicted but not there
for rule in ("union", "present"):
    print(f"rule {rule:8s} mIoU {100 * scores(tiny, rule).miou:.1f} %")

# %% [markdown]
# Now our maps by both rules, class by class, and the published table, which is of another stage: DeepLab-v2 with its CRF
# on VOC's val split.

# %% tags=["nbval-ignore-output"]
def mask_of(name):
    """Return the mask of an image at the best threshold."""
    classes, maps = full_size_maps(maps_stage.folder, name)
    return argmax_with_background(maps, classes, row["threshold"])


evaluation = score_masks(score_data, mask_of)
for rule in ("union", "present"):
    print(f"our maps, rule {rule:8s} mIoU {100 * evaluation.scores(rule).miou:.1f} %")
print("our maps: ", ", ".join(f"{name} {100 * value:.1f}" for name, value in zip(
    ("background", *score_data.classes), evaluation.scores().iou, strict=True)))
for (variant, what, split), values in results.PUBLISHED_CLASSES.items():
    print(f"published, {variant}, {what}, VOC {split}, background first: {', '.join(map(str, values))}")

# %% [markdown]
# **VWL's own CRF.** Its program refines maps directly by a dense CRF that takes the soft-max of the scores for
# probabilities. As scores lie between 0 and 1, that soft-max is nearly flat, and the CRF decides much by itself. On a few
# images, with a background score of 0.15:

# %% tags=["nbval-ignore-output"]
from wsss_lib.ops.crf import crf_from_maps

plain, refined = (Evaluation(score_data.num_classes + 1) for _ in range(2))
for name in score_data.ids[:60]:
    classes, maps = full_size_maps(maps_stage.folder, name)
    plain.add(score_data.mask(name), argmax_with_background(maps, classes, 0.15))
    refined.add(score_data.mask(name), crf_from_maps(np.array(score_data.image(name)), maps, classes, 0.15))
print(f"{plain.images} images, background score 0.15: mIoU {100 * plain.scores().miou:.1f} % without, "
      f"{100 * refined.scores().miou:.1f} % with VWL's CRF")

# %% [markdown]
# ### Heads and bodies
#
# Which pixels of the objects are found, at the threshold 0.15 and at twice that? (Real data sets have no part masks;
# this cell then says so.)

# %% tags=["nbval-ignore-output"]
for threshold in (0.15, 0.3):
    for name, folder in (("CAM", cam_stage.folder), (config.vwe_variant.upper(), maps_stage.folder)):
        recall = mean_part_recall(score_data, folder, threshold)
        print(f"threshold {threshold:.2f}, {name:6s} recall of heads {recall['head']:.2f}, of bodies {recall['body']:.2f}"
              if recall else "no part masks in this data set")

# %% [markdown]
# More of the bodies at the same threshold (0.84 instead of 0.62 at 0.15) is what the method promises. A recall alone says nothing
# about what spills over into the background; the curves above do.
#
# ## 10 What helps and what does not
#
# Pooling and words, each with and without, trained on from the same classifier for a short while on a part of the data and
# scored on images of that part. **Read this as a rehearsal**: one seed, few images, few steps.
# `benchmarks/vwe_ablations.py` does it on all images with three seeds; its table is in docs/results.md.

# %%
count, epochs = (max(1, min(30, len(train_data) // 50)), 4) if config.dataset == "toy" else (2, 1)  # a large network takes its time
small = config.model_copy(update={"limit": count * config.cam_batch_size, "vwe_epochs": epochs})
small_data = open_data(small, config.train_split)
scored = open_data(small.model_copy(update={"limit": 120}), config.train_split)


def trained_for_a_moment(pooling, with_words):
    """Return best mIoU and its threshold in percent after a short training with one pooling, with or without words."""
    torch.manual_seed(config.seed)
    net = vwe.build_vwe(small, train_data.num_classes, classifier_stage.folder / "weights.safetensors").to(run_device)
    net.gamma, net.levels = POOLINGS[pooling]
    with tempfile.TemporaryDirectory() as folder:
        vwe.train_vwe(net, small_data, small, Path(folder), vwe.losses if with_words else cam.classification_loss)
        make_maps(vwe.vwe_localization(net, small), scored, small, Path(folder) / "maps")
        entry = score_maps(scored, Path(folder) / "maps")
    return entry["miou"], entry["threshold"]

# %% tags=["nbval-ignore-output"]
print(f"{len(small_data)} images, {small.vwe_epochs} epochs, scored on {len(scored)}; best mIoU and its threshold")
ablation = {}
for pooling in ("average", "mix (HSPP)"):
    for with_words in (False, True):
        ablation[pooling, with_words] = trained_for_a_moment(pooling, with_words)
        value, threshold = ablation[pooling, with_words]
        print(f"{pooling:15s} {'with words' if with_words else 'without   '}  {value:5.1f} %  at {threshold:.2f}")

# %% tags=["nbval-ignore-output"]
gains = {pooling: ablation[pooling, True][0] - ablation[pooling, False][0] for pooling, _ in ablation}
for pooling, gain in gains.items():
    print(f"words with {pooling}: {gain:+.1f} points" + (" (less than one point: nothing)" if abs(gain) < 1 else ""))
mixed = ablation["mix (HSPP)", False][0] - ablation["average", False][0]
print(f"HSPP instead of the average, without words: {mixed:+.1f} points" + (" (less than one point: nothing)" if abs(mixed) < 1 else ""))

# %% [markdown]
# The script can also try the number of words, the temperature, the two other codebooks and one of fixed random words. Three
# cautions, from trials that were not kept. The row "average, without words" is CAM *trained on*: what it gains over notebook 10 is longer
# training and not
# VWE. The start matters: from random weights, at CAM's learning rates and for as many epochs, the whole recipe ended *below* CAM. And the scales
# matter: with maps of one scale the four rows hardly differed. Nor do
# the four above differ by more than 1.4 points; only the three seeds below decide.
#
# **With three seeds** (mean of the best mIoU on 600 images; tables and commands in docs/results.md): average pooling 53.7 %, HSPP 56.0 %,
# average and words 55.3 %, HSPP and words 57.0 %. **On 311 real photographs** (preset `voc12-small`, one seed, 64 words): 37.2 %, where
# CAM has 38.7 %; IRN's pseudo-masks 37.3 % and 48.6 %.
#
# ## 11 Look
#
# Best, random and worst image by their own IoU, in the project's order: input, truth, CAM, visual words. What to look for: where is
# VWE's map broader than CAM's?

# %% tags=["nbval-ignore-output"]
def image_iou(name):
    """Return the mean IoU of one image at the best threshold (for ranking only, never averaged)."""
    evaluation = Evaluation(score_data.num_classes + 1)
    evaluation.add(score_data.mask(name), mask_of(name))
    return evaluation.scores().miou


ranking = {name: image_iou(name) for name in score_data.ids[:200]}
chosen = viz.best_worst_random(ranking, count=1, seed=config.seed)
figure, panels = plt.subplots(len(chosen), 4, figsize=(9, 2.3 * len(chosen)), squeeze=False)
for name, line in zip(chosen, panels, strict=True):
    shown_picture = np.array(score_data.image(name))
    viz.draw_image(line[0], shown_picture, f"input {name}")
    viz.draw_labels(line[1], score_data.mask(name), score_data.classes, "truth")
    viz.draw_scores(line[2], shown_picture, full_size_maps(cam_stage.folder, name)[1].max(0, initial=0), "CAM")
    own = full_size_maps(maps_stage.folder, name)[1].max(0, initial=0)
    viz.draw_scores(line[3], shown_picture, own, f"visual words, IoU {100 * ranking[name]:.0f} %")
viz.show(figure, f"Best, random and worst image: IoU {', '.join(f'{100 * ranking[name]:.0f}' for name in chosen)} percent")

# %% [markdown]
# In the first image over the body; in the last one over the ground as well.
#
# ## 12 Try it
#
# Choose a pooling and an image, and see where the *trained* network's pooled features come from. (Sliders appear in
# JupyterLab; the strip shows the same for readers of the page.)

# %% tags=["nbval-ignore-output"]
def draw(pooling="mix (HSPP)", number=0):
    """Show the weights of one pooling on one image."""
    name = score_data.ids[number]
    weights = attention(features_of(net, score_data.image(name)), pooling)
    figure, axes = plt.subplots(figsize=(3, 3))
    viz.draw_map(axes, weights / weights.max(), f"{name}: {pooling}")
    share = 100 * half_of_the_weight(weights)
    viz.show(figure, f"Half of the weight of {pooling} lies on {share:.0f} percent of the positions")


widgets.explore(draw, pooling=list(POOLINGS), number=(0, 20, 1))

# %% tags=["nbval-ignore-output"]
figure, panels = plt.subplots(2, 6, figsize=(12, 4.4))
for name, line in zip(score_data.ids[:2], panels, strict=True):
    viz.draw_image(line[0], np.array(score_data.image(name)), f"input {name}")
    features = features_of(net, score_data.image(name))
    for panel, pooling in zip(line[1:], POOLINGS, strict=True):
        weights = attention(features, pooling)
        viz.draw_map(panel, weights / weights.max(), pooling)
viz.show(figure, "Two images and the weights of five poolings: the average is even, maxima pick single spots, the mix has both")

# %% [markdown]
# The single maximum sits mostly on the heads, finer grids and the average spread the weight again, and the mix has a part of each.
#
# ## 13 Summary and exercises
#
# * Words are labels out of features: the nearest of $K$ directions, present or absent. Predicting them asks about the
#   whole image.
# * The encoder's gradient trains the codebook, never the backbone; the word label trains the backbone, never the codebook.
# * HSPP lies between average and maximum. What it gains, and what the words gain, has to be read from several seeds.
# * Written: `network/` and `maps/`. Next: notebook 70 turns maps into seeds.
#
# **Differences from the papers.** At smoke size: 32 words instead of 256, a start at CAM's classifier instead of
# ImageNet, a true momentum. Always: one-hot is replaced by a scatter and the memory bank by `index_add` (equal results);
# VWL-M's crash is repaired. Kept: $H$ is a sum and not a mean, so that $L_2$ depends on the size of the crop; floors in
# the pooling's grids. **Limits.** A word counts alike whether it owns one position or half of the image. Words know
# nothing about classes that share a texture. Background has words too, and predicting them teaches nothing about objects.
#
# **Exercise 1.** A feature map has 12 x 12 positions and 20 channels. At most how many positions win in at least one
# channel, if the maxima over the grid of 2 x 2 blocks are taken?

# %%
winners = None  # your answer
widgets.check(winners, 80, "exercise 1")

# %% [markdown]
# **Exercise 2.** All $K = 256$ words have the same cosine to every position of a 32 x 32 map. What is each entry of the
# histogram $H$?

# %%
entry_of_histogram = None  # your answer
widgets.check(entry_of_histogram, 4.0, "exercise 2")

# %% [markdown]
# **Exercise 3.** Write the share of dead words: words that no image of a data set has, from the labels $w$ of its images.

# %%
def dead_share(labels):
    """labels: 0/1 (images, K). Return a float in 0..1."""
    return None  # your code


widgets.check(dead_share(np.array([[1, 0, 0, 1], [1, 0, 1, 0]])), 0.25, "exercise 3")

# %% [markdown]
# **References.** Ru, Du, Wu: Learning Visual Words for Weakly-Supervised Semantic Segmentation, IJCAI 2021.
# Ru, Du, Zhan, Wu: Weakly-Supervised Semantic Segmentation with Visual Words Learning and Hybrid Pooling, IJCV 2022.
# Ahn, Cho, Kwak: Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations, CVPR 2019.
