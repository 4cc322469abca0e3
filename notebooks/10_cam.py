# %% [markdown]
# # 10 · Class activation maps
#
# *In: images and their image-level labels. Out: one class activation map for each class of each image.*
#
# | | |
# |---|---|
# | **Needs** | notebook 02 (the data set) |
# | **Writes** | `classifier/weights.safetensors`, `maps/ID.npz` |
# | **Time and memory** | smoke: about 1.5 minutes of one CPU core, 1 GB. One A100, estimated in docs/costs.md: VOC 3 minutes, COCO half an hour |
# | **Paper** | Zhou et al., *Learning Deep Features for Discriminative Localization*, CVPR 2016 (figure 2); recipe of Ahn, Cho, Kwak, *Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations* (IRN), CVPR 2019, section 3 |
#
# **Goals.** After this notebook you can
#
# 1. say why a classifier that never saw a mask knows where an object is,
# 2. compute a class activation map (CAM) in ten lines,
# 3. name and measure the flaw of CAMs that every method here attacks.
#
# The stored outputs show generated creatures: a small head, whose pattern tells the class, and a large dull body (notebook
# 00).
#
# ![The chain of seven steps from left to right: image, classifier, CAM, seed mask, pseudo-mask, DeepLab, prediction; classifier and CAM are framed thickly](../docs/figures/chain_cam.svg)

# %% tags=["parameters"]
dataset = "toy"  # name of the run's folder below runs_root
data_root = "data/toy"  # VOC devkit folder
seed = 0  # of everything that is random
backbone = "resnet_small"  # resnet_small, resnet50, resnet101, efficientnet_lite0
backbone_weights = "none"  # imagenet, none, or a safetensors file
output_stride = 8  # 16 in the paper; the toy images are small
cam_weights = ""  # a finished classifier instead of training
cam_epochs = 8  # 5 in the paper
cam_batch_size = 16
cam_learning_rate = 0.03  # 0.1 in the paper, without momentum
cam_head_learning_rate = 0.3  # ten times the backbone's
cam_momentum = 0.9  # 1e-4 in the official runs, the weight decay: see section 2
cam_weight_decay = 1.0e-4
cam_frozen_batch_norm = False  # True in the paper, where the backbone is pre-trained
cam_frozen_stages = 0  # 3 in the paper: stem, layer1 and layer2 are not trained
cam_long_side_min = 80  # 320 in the paper
cam_long_side_max = 112  # 640 in the paper
cam_crop = 96  # 512 in the paper
cam_scales = [1.0, 0.5, 1.5, 2.0]
map_size = "stride4"  # where the scales are merged for thresholds; as published: "image"

# %%
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from wsss_lib import results, viz, widgets
from wsss_lib.config import Config
from wsss_lib.core.files import read_maps
from wsss_lib.core.scoring import iou_of_images, mask_at, mean_part_recall, part_mask
from wsss_lib.core.stage import run
from wsss_lib.data import transforms
from wsss_lib.data.dataset import open_data
from wsss_lib.methods import cam
from wsss_lib.nets.backbone import normalization_of

config = Config.from_notebook(globals())
viz.use_style()

# %% [markdown]
# The first check: are images, lists and label table there?

# %%
train_data, val_data = open_data(config, config.train_split), open_data(config, config.val_split)
score_data = open_data(config, config.score_split).scored()
widgets.leave_out_cells(config, score_data)
mean, std = normalization_of(config.backbone)
print(f"{len(train_data)} training images, {len(val_data)} validation images, {train_data.num_classes} classes:", ", ".join(train_data.classes))

# %% [markdown]
# ## 1 The network
#
# ![Above, training: an image goes through the backbone to features, their average over positions, the weights W, and logits. Below, the map: the features go past the average to the same weights at every position, and the result is cut at zero and divided by its maximum](../docs/figures/cam.svg)
#
# The classifier has a backbone that turns an image $x$ into a map of features $f(x) \in \mathbb{R}^{D \times h \times w}$,
# an average over all positions $(i, j)$, and a linear layer $W \in \mathbb{R}^{C \times D}$ that gives a logit for each of
# $C$ classes (its sigmoid is the class's probability). Averaging and multiplying by $W$ are linear, so their order does not
# matter:
#
# $$ W\,\frac{1}{hw}\sum_{ij} f_{ij}(x) \;=\; \frac{1}{hw}\sum_{ij} \underbrace{W f_{ij}(x)}_{\text{evidence at } (i,j)} $$
#
# So a logit is an average of local evidence. Cut off below zero, that evidence is the CAM: $M_c = \mathrm{ReLU}(W_c f)$,
# with $W_c$ the row of class $c$. A bias, here absent, would change all positions alike and name none. Negative evidence
# lowers the logit, and the cut hides it.

# %%
torch.manual_seed(config.seed)
net = cam.build_classifier(config, train_data.num_classes, config.cam_weights).eval()
images = torch.randn(2, 3, config.cam_crop, config.cam_crop)
with torch.no_grad():
    features = net.backbone(images)  # f: (N, D, h, w)
    evidence = net.classifier(features)  # W f: (N, C, h, w)
    logits = net(images)  # (N, C)
print("images", tuple(images.shape), "-> features", tuple(features.shape), "-> evidence", tuple(evidence.shape))
assert torch.allclose(evidence.mean((2, 3)), logits, atol=1e-4)
print("mean of the evidence = logits:", True)

# %% [markdown]
# The feature map is coarse: a position stands for a block of `output_stride` pixels on each side (96 / 8 = 12). ImageNet
# networks end at stride 32; here the last strides are taken out. A position *sees* more than its block, its receptive
# field, so its evidence need not lie under it. The equation holds for any features; a map says "here" only as far as they
# describe what is near.
#
# ## 2 Training on image-level labels
#
# Each class is its own yes-or-no question, so the loss is the multi-label soft-margin loss, a mean of binary
# cross-entropies. Images are randomly resized, flipped horizontally and cropped.
#
# **A slip.** The official IRN program (and RIB, AMN and VWE after it) hands the *weight decay* to SGD as the *momentum*. A
# momentum of 0.0001 is none, so the published learning rates (0.1 and 1.0) belong to SGD without it; with 0.9 a step is ten
# times as long. The papers' presets repeat it (`cam_momentum: 1.0e-4`).
#
# The next cell trains.

# %%
classifier = run(cam.CLASSIFIER, config)
net = classifier.net
print(f"learned from the labels of {len(classifier.data)} images")

# %% [markdown]
# What to look for: does the curve fall and flatten? At the dotted line, $\ln 2 \approx 0.69$, nothing is learned (every
# answer is "one half").

# %% tags=["nbval-ignore-output"]
viz.show_training(classifier.log(), alt="Training loss falls from {first[loss]:.2f} to {last[loss]:.2f} in {last[step]} steps",
                  title="Classifier: training loss", chance=np.log(2))

# %% [markdown]
# It flattens near 0.1; the last point, 0.15, is a single batch.
#
# ## 3 Score of the classifier
#
# Average precision asks of each class: if the validation images are ranked by its probability, do those that have it come
# first (100 %: all)? The mAP is the mean over the classes that occur. It reads image-level labels only.

# %% tags=["nbval-ignore-output"]
row = classifier.metrics[0]
print(f"mAP on {row['images']} images of {row['split']}:", "no image has a class" if row["map"] is None else f"{row['map']:.1f} %")
print(results.class_table({"average precision": row["class_ap"]}, train_data.classes))

# %% [markdown]
# With a mAP of 98.9 % the classifier must have found *something* that tells the classes apart. Is it the object?
#
# ## 4 One map in ten lines
#
# The map of one image and class is the evidence $W_c f$, cut at zero and divided by its maximum.

# %%
image_id = score_data.example(1)
image = score_data.image(image_id)
present = int(np.flatnonzero(score_data.label(image_id))[0])

x = transforms.to_tensor(transforms.normalize(image, mean, std))[None].to(classifier.device)  # (1, 3, H, W)
with torch.no_grad():
    f = net.backbone(x)[0]  # (D, h, w)
    W = net.classifier.weight[present, :, 0, 0]  # (D,)
    M = torch.einsum("d,dhw->hw", W, f).clamp(min=0)  # M_c = ReLU(W_c f)
    M = M ** net.backbone.map_power  # 1 but for AffinityNet's VGG-16, whose program takes the root
M = M / (M.max() + 1e-5)
print(f"image {image_id}, class {train_data.classes[present]}: map of {tuple(M.shape)} positions")

# %% [markdown]
# The library must agree. What to look for in the map: which part of the creatures is bright (scores high)?

# %%
with torch.inference_mode():
    from_library = net.activation_maps(x)[0, present]
from_library = from_library / (from_library.max() + 1e-5)
assert torch.allclose(M, from_library, atol=1e-4)
print("ten lines = library:", True)

# %% tags=["nbval-ignore-output"]
viz.show_panels([viz.image(image, "input"), viz.heat_map(M.cpu(), f"map of {train_data.classes[present]}")],
                f"The map of {train_data.classes[present]} has {M.shape[0]} x {M.shape[1]} positions, of which {int((M > 0.5).sum())} "
                "have more than half of the highest score", size=2.6, bar="score")

# %% [markdown]
# The heads are bright; the bodies hardly are.
#
# ### What the division hides
#
# Every map is divided by its own maximum, so its brightest position scores 1, **whether or not the classifier believes in
# the class**. Of 200 images, these are the labels that it doubts most and is surest of, with the class's probability and
# the map's maximum before the division. What to look for: can you tell from the colors which map to believe?

# %% tags=["nbval-ignore-output"]
few = open_data(config.model_copy(update={"limit": 200}), config.score_split)
probabilities = np.where(few.labels == 1, cam.score_classifier(net, few, config), np.nan)


def believed(row, index):
    """Return the panels of an image: itself, and the map of one class with what the division hides."""
    picture, x = few.image(few.ids[row]), transforms.to_tensor(transforms.normalize(few.image(few.ids[row]), mean, std))[None]
    with torch.inference_mode():
        raw = net.activation_maps(x.to(classifier.device))[0, index].cpu()
    words = f"{few.classes[index]}: p = {probabilities[row, index]:.2f}, maximum {raw.max():.1f}"
    return [viz.image(picture, "input"), viz.heat_map(raw / (raw.max() + 1e-5), words)]


least, most = (divmod(int(pick(probabilities)), few.num_classes) for pick in (np.nanargmin, np.nanargmax))
viz.show_panels([believed(*least) + believed(*most)], f"A label with probability {probabilities[least]:.2f} and one with "
                f"{probabilities[most]:.2f}: both maps reach the score 1", size=2.4, bar="score")

# %% [markdown]
# They look alike, although the checker's probability is 0.02 and its maximum 5.4, the starling's 1.00 and 106.2. A map says
# *where* the evidence is, not how much there is.
#
# ## 5 Several scales and a horizontal flip
#
# One pass is coarse and shaky. The usual recipe runs the image at several scales, each also flipped horizontally, *adds*
# the maps on a grid of stride 4, and divides the sum by its maximum. With $M_c^{(s)}$ the map at scale $s$ on that grid:
#
# $$ M_c \leftarrow \frac{\sum_s \left[M_c^{(s)}(x) + \mathrm{flip}(M_c^{(s)}(\mathrm{flip}\,x))\right]}{\max(\cdot) + 10^{-5}} $$
#
# What to look for: are both creatures found at every scale, and how closely?

# %% tags=["nbval-ignore-output"]
def map_at(scales):
    """Return a panel with the map of the chosen class at some scales, added up."""
    (_, scores), = cam.localization_maps(net, [image], score_data.label(image_id)[None], scales, mean, std)
    full = F.interpolate(torch.from_numpy(scores)[None], size=image.size[::-1], mode="bilinear")[0, 0].numpy()
    return viz.scores(image, full, "scales " + ", ".join(map(str, scales)))


viz.show_panels([viz.image(image, "input"), *map(map_at, ([1.0], [0.5], [2.0], list(config.cam_scales)))],
                f"The map of {train_data.classes[present]} gets finer with the scale; the last panel is the sum of all scales", bar="score")

# %% [markdown]
# At scale 0.5 (6 x 6 positions) the map is a wide blur that misses one creature; at 2.0 it keeps to the heads and traces of
# the bodies. In the sum both heads glow.
#
# ## 6 All images
#
# Every training image gets a file with the classes of its label, the maps at stride 4, and the image's size. **Image-level
# labels are used here**, which is fair for training images; the segmentation network at the end sees none.

# %%
maps = run(cam.MAPS, config)
classes, scores, size = read_maps(maps.folder / f"{image_id}.npz")
print("classes", classes.dtype, classes.shape, " scores", scores.dtype, scores.shape, " size", size)
assert scores.min() >= 0 and scores.max() <= 1

# %% [markdown]
# ## 7 Numbers
#
# A map is scored as a mask: a pixel is background where no class exceeds a threshold, else it gets the highest-scoring
# class. The *IoU* of a class is the pixels in both mask and ground truth divided by those in either; **mIoU** is its mean
# over background and classes. All thresholds are tried (notebook 70). **Pixel labels choose the best**, so it is an upper
# bound. The published score is of other images and no comparison. What to look for in the curve: how sharp is the peak, and
# on which side is an error costlier?

# %% tags=["nbval-ignore-output"]
# needs masks
row = maps.metrics[0]
print(f"{row['images']} images of {row['split']}: mIoU {row['miou']:.1f} % at threshold {row['threshold']:.2f} (its best)")
print("published, VOC 2012 train (1,464 images), ResNet-50, threshold 0.15: 48.3 % (IRN paper, quoted in jiwoon-ahn/irn#4)")

# %% tags=["nbval-ignore-output"]
# needs masks
viz.show_threshold_curves({"": row}, f"The mean IoU has one peak of {row['miou']:.1f} percent at threshold {row['threshold']:.2f} and "
                          "falls on both sides", title=f"Maps of {row['images']} images against the ground truth")

# %% [markdown]
# The peak, 52.7 % at 0.11, lies far down the scale: most of an object's pixels score low. Below it the curve drops at once,
# as the background floods in; above it, the curve falls slowly, pixel by pixel of the bodies.
#
# ### The flaw, measured
#
# Generated images (and no real ones) have a map of *parts*, **head** and **body**. Recall by part is the fraction of its
# pixels that the maps find, at the published threshold 0.15 and twice that.

# %% tags=["nbval-ignore-output"]
for threshold in (0.15, 0.3):
    recall = mean_part_recall(score_data, maps.folder, threshold)
    print(f"threshold {threshold:.2f}: recall of heads {recall['head']:.2f}, of bodies {recall['body']:.2f}" if recall
          else "no part masks in this data set")

# %% [markdown]
# The heads are found (1.00); of the bodies, four fifths of the objects, 38 % is missed at 0.15 and 67 % at 0.30. But recall
# cannot say that the classifier *uses* heads: any blurred spot covers a small head whole. So the next cell paints over
# heads, bodies, or as much ground as the heads take, in the image's mean color. What to look for: which of the three does
# the label's probability need?

# %% tags=["nbval-ignore-output"]
# needs masks, lessons
def probability(name, region):
    """Return the probability of the one label of an image in which a region has been painted over."""
    picture, parts = np.array(few.image(name)), part_mask(few, name)
    elsewhere = np.roll(parts == 2, (48, 48), (0, 1)) & (parts == 0)
    hidden = {"nothing": parts < 0, "heads": parts == 2, "bodies": parts == 1, "ground": elsewhere}[region]
    picture[hidden] = picture.mean((0, 1))
    x = transforms.to_tensor(transforms.normalize(Image.fromarray(picture), mean, std))[None].to(classifier.device)
    with torch.inference_mode():
        return net(x).sigmoid()[0, few.label(name).argmax()].item()


for region in ("nothing", "heads", "bodies", "ground") if (few.root / "PartMasks").is_dir() else ():
    asked = [name for name in few.ids if few.label(name).sum() == 1 and (part_mask(few, name) == 2).any()]
    p = np.array([probability(name, region) for name in asked])
    print(f"{region:7s} painted over: mean probability {p.mean():.2f}, below one half in {100 * (p < 0.5).mean():.0f} % of {len(p)} images")

# %% [markdown]
# The heads: without them its mean falls from 1.00 to 0.39; without the far larger bodies it stays at 0.99. Nothing in the
# classification loss asks for the body: one discriminative region answers the question. A lower threshold finds more of the
# body and lets in the background. RIB, DRS, AMN, VWE and SC-CAM (notebooks 20 to 60) ask for more; notebooks 70 and 80
# spread what was found toward the object's edges.
#
# ## 8 Look
#
# What to look for: how does the image with the best IoU differ from a random one and the worst?

# %% tags=["nbval-ignore-output"]
ranking = iou_of_images(score_data, mask_at(maps.folder, maps.metrics[0].get("threshold", 0.15)))
viz.show_examples(score_data, viz.best_worst_random(ranking, count=1, seed=config.seed), {"CAM": viz.highest_scores(maps.folder)},
                  "Best, random and worst image: where there are heads, the maps sit on them and leave out much of the bodies",
                  size=2.2, iou={"CAM": ranking})

# %% [markdown]
# The best (92 %) has *no head*, as one creature in ten. That does not show that the network recognizes bodies: it does not
# believe in this *discus* (a probability of 0.09, not printed), and only the division by the maximum makes the map bright
# (section 4). The other two (54 and 44 %) have heads.
#
# ### On photographs
#
# ![Four rows of photographs, their ground truth, the class activation map with the line of its threshold, and its mask: one cat, two horses, a herd of sheep, a cat and a dog on snow; the masks are round and larger than the animals, the one of the horses ends behind a shoulder](../docs/figures/photographs_cam.jpg)
#
# *PASCAL VOC 2012, images from Flickr; seed 0, drawn by `docs/photographs.py` from the study of notebook 96; nothing was tuned on these images.*
#
# What to look for: the animals are found, their outlines are not. The stride of 16 pixels draws round masks that flow over
# the legs; one map covers a whole herd and the grass between. On 300 such photographs the maps reach 45.5 ± 0.6 % over
# three seeds, after a CRF 50.4 ± 1.0 %.
#
# ## 9 Try it
#
# Move the threshold (JupyterLab) and watch the mask: no single value is right for both small discriminative regions and
# whole objects.

# %% tags=["nbval-ignore-output"]
def thresholded(threshold):
    """Return a panel with the mask of the chosen image."""
    return viz.labels(mask_at(maps.folder, threshold)(image_id), score_data.classes, f"threshold {threshold:.2f}", image)


widgets.explore(lambda threshold=0.15: viz.show_panels(
    [thresholded(threshold)], f"Mask of {image_id} where the score exceeds {threshold:.2f}", size=3), threshold=(0.0, 0.9, 0.05))

# %% tags=["nbval-ignore-output"]
truth = viz.labels(score_data.mask(image_id), score_data.classes, "ground truth", image)
viz.show_panels([truth, *map(thresholded, (0.05, 0.15, 0.3, 0.5))],
                "A low threshold floods the background, a high one keeps only the most discriminative region")

# %% [markdown]
# ## 10 Summary and exercises
#
# * A logit is an average of local evidence; the evidence is the map.
# * The maps find what tells classes apart, not the object: this classifier needs heads, and its maps miss much of the
#   bodies.
# * Next: notebook 70 turns maps into initial seed masks.
#
# **Exercise 1.** Write a function that returns how many of an image's present classes have a probability below one half.

# %%
def unbelieved_classes(probabilities, label):
    """probabilities: float (C,), label: 0/1 (C,). Return an int."""
    return None  # your code


widgets.check(unbelieved_classes(np.array([0.9, 0.2, 0.4]), np.array([1, 1, 0])), "ea26f6feae2e", "exercise 1")

# %% [markdown]
# **Exercise 2.** With stride 16 and an image of 375 x 500 pixels, how many positions has the feature map at scale 2.0? (Sides are
# rounded up.)

# %%
positions = None  # your answer
widgets.check(positions, "f646c2b12878", "exercise 2")

# %% [markdown]
# The papers are named at the top.
