# %% [markdown]
# # 01 · The information bottleneck, simulated
#
# *In: handwritten digits. Out: how much of an image the gradients of a trained network still see, layer by layer.*
#
# | | |
# |---|---|
# | **Needs** | nothing: the digits come with scikit-learn. Your own MNIST is used when `bottleneck_mnist_root` names it |
# | **Writes** | `rib/seed0/bottleneck/`: small networks and their curves |
# | **Time and memory** | the first time about 3 minutes on one CPU core, 1 GB; later seconds |
# | **Paper** | Lee, Choi, Mok, Yoon, *Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation* (RIB), NeurIPS 2021, section 3 and figure 1 |
#
# **Goals.** After this notebook you can
#
# 1. say what an information bottleneck is, and compute RIB's gradient maps and its high gradient ratio,
# 2. tell what of the argument such a simulation supports, and what it leaves open,
# 3. explain the step from here to the method: push the raw logit of one image, carefully.

# %% tags=["parameters"]
dataset = "toy"  # name of the run's folder below runs_root
seed = 0  # of the first network of each kind and of the test images
bottleneck_mnist_root = ""  # folder above torchvision's MNIST/raw; empty: scikit-learn's digits
bottleneck_images = 8000  # for training
bottleneck_shape_share = 0.1  # of the training images have the companion shape, as published
bottleneck_epochs = 1
bottleneck_seeds = 5  # networks of each kind

# %%
import numpy as np
import torch
import torch.nn.functional as F

from wsss_lib import viz, widgets
from wsss_lib.config import Config
from wsss_lib.core.stage import run
from wsss_lib.experiments import bottleneck
from wsss_lib.experiments.digits import CLASSES, REGIONS, companion, read_digits

config = Config.from_notebook(globals())
viz.use_style()

# %% [markdown]
# The first check: are the digits there? The next cell names missing files of MNIST.

# %%
print("digits from", "MNIST" if config.bottleneck_mnist_root else "scikit-learn")
for part, (_, labels) in zip(("training", "testing"), read_digits(config.bottleneck_mnist_root), strict=True):
    print(f"{part}: {(labels == 0).sum()} of the digit 2, {(labels == 1).sum()} of the digit 8")

# %% [markdown]
# ## 1 The claim
#
# A class activation map marks an animal's head and misses its body (notebook 10). RIB explains this by an *information
# bottleneck*.
#
# The **mutual information** $I(X;T)$ is the number of bits that a layer's output $T$ tells about the input $X$. Each layer
# sees only the one before it, so the *data-processing inequality* holds: $I(X;T_1) \ge I(X;T_2) \ge \dots \ge I(X;T_6)$. No
# layer wins back what an earlier one lost, and training decides what is lost. These numbers cannot be computed for images,
# so RIB looks at gradients.
#
# The link is this. Let one pixel vary with a small variance $v$, and let $T$ be one number with noise of a small variance
# $s$. If $T$ is nearly a straight line with slope $g = \partial T / \partial x$ and all is Gaussian, $I(x;T) = \tfrac12
# \log_2(1 + g^2 v / s)$: no slope, no bits. This holds for small changes only: a flat unit may still carry information
# about large ones, and a large gradient does not prove that the class depends on the pixel.
#
# The paper's section 3 finds that the last *hidden* layer still sees pixels that seldom matter, and the *final* one drops
# them. It blames the final activation: sigmoid and its like are flat at both ends, so nothing asks for more evidence once
# an image is classified well. Hence the method tunes the network further *without* that activation.
#
# The evidence is a simulation whose code was not published. This notebook builds it anew; a table at its end says where
# each part comes from.
#
# ## 2 The images
#
# scikit-learn has 351 images of a 2 or an 8, of 8 x 8 pixels; MNIST has twelve thousand of 28 x 28. Enlarged to 20 x 20
# pixels, ours are softer. Test images show digits that no training image shows, and **all** have a shape.

# %%
train, test = bottleneck.images_of(config, config.bottleneck_shape_share, config.seed)
print("training images", tuple(train.images.shape), " regions", tuple(train.regions.shape), train.regions.dtype)
print(f"with a shape: {train.regions[1].any(2).any(1).sum()} of {len(train)} training images, all of {len(test)} test images")
print(f"the disc has {companion(0).sum()} pixels, the square {companion(1).sum()}")

# %%
has_shape = train.regions[1].any(2).any(1)  # (N,)
shown = [int(index) for shape, count in ((False, 3), (True, 1)) for label in (0, 1)
         for index in torch.nonzero((train.labels == label) & (has_shape == shape))[:count, 0]]
titles = [f"{CLASSES[train.labels[index]]}" + (" with its shape" if has_shape[index] else "") for index in shown]
viz.show_panels([[viz.image(train.images[index, 0, ..., None].repeat(1, 1, 3), title) for index, title in zip(shown, titles, strict=True)],
                 [viz.heat_map(train.regions[0, index] / 2 + 1.0 * train.regions[1, index]) for index in shown]],
                "Eight training images: three 2s, three 8s, and one of each with its companion shape, a small disc and a small square; "
                "beneath them their regions: digit grey, shape bright, background dark", size=1.4)

# %% [markdown]
# In the paper's words the digit, which is always there, is **discriminative**; the shape, which would do as well but is
# seldom there, is **non-discriminative**; the background is **irrelevant**.
#
# ## 3 The network and its outputs
#
# Five convolutions with ReLU, then one fully connected layer that gives the logit $z$. With the own logit $\tilde z = (2y-1)\,z$
# (positive: right), or $\tilde z = z_y$ where there are two, the losses are:
#
# | name | loss | saturates |
# |---|---|---|
# | sigmoid | $-\ln \sigma(\tilde z)$ | yes, the paper's main case |
# | softmax | $-\ln \mathrm{softmax}(z)_y$ | yes |
# | tanh, softsign | $(1 - \tanh \tilde z)^2$, $(1 - \tilde z / (1 + \lvert\tilde z\rvert))^2$ | yes |
# | hinge | $\max(0, 1 - \tilde z)$ | no activation; stops at 1. Our control |
# | linear | $(1 - \tilde z)^2$ | no activation; pulls back beyond 1. Our control |
# | *raw* | $-\tilde z$ | no; never stops. Not trainable from scratch; RIB's fine-tuning (section 9) |
#
# How hard does each still push when the answer is right? That is the derivative $-\partial L / \partial \tilde z$:

# %%
own = torch.linspace(-3, 6, 181, requires_grad=True)
logits, labels = own[:, None], torch.ones(len(own), dtype=torch.long)
push = {"raw": torch.ones(len(own))}  # -dL/dz of L = -z
for name, loss_of in bottleneck.LOSSES.items():
    z = F.pad(logits, (1, 0)) if name == "softmax" else logits  # two logits: the other one is zero
    push[name], = torch.autograd.grad(-loss_of(z, labels) * len(own), own)
viz.show_panels([viz.curves(own.detach(), push, "Only the raw logit is pushed without end", xlabel="own logit", ylabel="push on the logit",
                            ylim=(-1.2, 2.7))],
                "The push of sigmoid, softmax, tanh and softsign fades beyond a logit of about 3, the hinge's ends at 1, the linear "
                "one's turns negative there, and the raw logit's stays at one; sigmoid and softmax lie on one line, because only "
                "one of the softmax's two logits is moved here", size=(8, 3))

# %% [markdown]
# One detail matters later: the controls do not saturate, but stop asking as well.
#
# Now the networks are trained: six losses with five seeds each, and the sigmoid's also with other fractions of shapes
# (section 8).

# %% tags=["nbval-ignore-output"]
job = run(bottleneck.RUNS, config)
runs = bottleneck.read_runs(job.folder)
main = {loss: runs[loss, config.bottleneck_shape_share] for loss in bottleneck.LOSSES}
print(f"{sum(map(len, runs.values()))} networks, {len(main)} losses, {len(main['sigmoid'])} seeds each")

# %% [markdown]
# ## 4 Gradient maps in ten lines
#
# Which pixels does layer $k$ still react to? Sum its output $T_k$ and take the gradient with respect to the image:
#
# $$ G_k = \left| \frac{\partial}{\partial x} \sum_{c,i,j} T_k[c,i,j] \right| \Big/ \max(\cdot), \qquad T_6 = \tilde z $$
#
# The next cells choose a 2 and an 8, uncut and of median logit, and make the maps of the 8 with its square:

# %% tags=["nbval-ignore-output"]
net = bottleneck.read_network(job.folder, "sigmoid", config.bottleneck_shape_share, config.seed)
frame = torch.ones_like(test.regions[0, 0])  # (H, W)
frame[1:-1, 1:-1] = False  # what is left is the border
whole = ~(test.regions[0] & frame).any(2).any(1)  # (N,): the digit is not cut off
own_logits = net(test.images)[:, 0].detach() * (2 * test.labels - 1)  # (N,): own logits
typical = []  # a 2 and an 8 that are not cut off, each with the median of their own logits
for label in (0, 1):
    candidates = torch.nonzero((test.labels == label) & whole)[:, 0]
    typical.append(int(candidates[own_logits[candidates].argsort()[len(candidates) // 2]]))
index = typical[1]

# %% tags=["nbval-ignore-output"]
x = test.images[[index]].clone().requires_grad_()  # (1, 1, H, W)

T, sums = x, []
for convolution in net.convolutions:
    T = F.relu(convolution(T))  # (1, D, h, w)
    sums.append(T.sum())
sums.append(net.linear(T.flatten(1))[0, 0])  # T_6 = z; its own logit, because this is an 8
G = []
for total in sums:
    gradient, = torch.autograd.grad(total, x, retain_graph=True)  # (1, 1, H, W)
    G.append(gradient[0, 0].abs() / gradient.abs().max())  # (H, W)
print("logit of the 8:", round(sums[-1].item(), 1), " maps:", len(G), "of", tuple(G[0].shape))

# %% [markdown]
# The library takes many images at once, and must agree:

# %%
from_library = bottleneck.gradient_maps(net, test.images[[index]], test.labels[[index]])[:, 0]  # (6, H, W)
assert torch.allclose(torch.stack(G), from_library, atol=1e-5)
print("ten lines = library:", True)

# %% [markdown]
# It makes no difference whether $z$ or $\sigma(z)$ is differentiated: $\partial\sigma(z)/\partial x = \sigma'(z)\,\partial
# z/\partial x$, one factor for the whole image, which dividing by the maximum removes. Whatever the last layer loses, it
# loses in the **trained weights**, not in the derivative of the output.
#
# ## 5 The high gradient ratio
#
# The HGR of a region is the fraction of its pixels whose $G_k$ exceeds 0.3, averaged over the test images.

# %% tags=["nbval-ignore-output"]
by_hand = torch.stack([(G[5] > 0.3)[region].float().mean() for region in test.regions[:, index]])
from_library = torch.stack([bottleneck.high_gradient_ratio(G[5][None], region[[index]]) for region in test.regions])
assert torch.allclose(by_hand, from_library)
for name, value in zip(REGIONS, by_hand, strict=True):
    print(f"G_6, {name:18s} HGR {value:.2f}")

# %% [markdown]
# ## 6 The published figure, with five seeds
#
# Here are maps of two test images, as in the paper: does the shape fade?

# %% tags=["nbval-ignore-output"]
def outlined(values, title, item=index):
    """Return a panel with a map and the edges of digit (thin) and shape (dashed)."""
    def draw(axes):
        for region, style, width in ((0, "-", 0.6), (1, "--", 1.5)):
            axes.contour(test.regions[region, item], levels=[0.5], colors="white", linewidths=width, linestyles=style)
        return viz.draw_map(axes, values, title)

    return draw


maps = bottleneck.gradient_maps(net, test.images[typical], test.labels[typical])  # (6, 2, H, W)
viz.show_panels([[viz.image(test.images[item, 0, ..., None].repeat(1, 1, 3), "input"),
                  *(outlined(maps[layer, row], f"G{chr(8321 + layer)}", item) for layer in range(6))] for row, item in enumerate(typical)],
                "Gradient maps of a 2 and an 8 from the first layer to the logit; the dashed outline is the shape: it is as bright as the "
                "digit up to the fifth layer and mostly dark in the last", size=1.6, bar="gradient / max")

# %% [markdown]
# Lines are means over the seeds, bands one standard deviation; dotted lines with hollow marks are the published values
# (read off the paper's figure, ±0.03). The paper's frame marks the step into the last layer.

# %% tags=["nbval-ignore-output"]
def hgr_curves(rows, title, published=False, legend=True):
    """Return a panel with the HGR of the three regions over the layers, for the runs of one kind."""
    values = np.array([row["hgr"] for row in rows]).transpose(1, 0, 2)  # (3, seeds, 6)
    return viz.bands(range(1, 7), dict(zip(REGIONS, values, strict=True)), title, bottleneck.PUBLISHED_HGR if published else None, legend,
                     frame=(4.8, 6.2), xticks=range(1, 7), xticklabels=[f"G{chr(8320 + layer)}" for layer in range(1, 7)], ylim=(-0.03, 1.05))


digit, shape, ground = np.mean([row["hgr"] for row in main["sigmoid"]], 0)
viz.show_panels([hgr_curves(main["sigmoid"], f"HGR, sigmoid, {len(main['sigmoid'])} seeds", published=True)],
                f"From G5 to G6 the digit's high gradient ratio falls from {digit[4]:.2f} to {digit[5]:.2f} (published 0.63 to 0.39), the "
                f"shape's from {shape[4]:.2f} to {shape[5]:.2f} (published 0.88 to 0.10), the background's stays at {ground[5]:.2f}", size=(8, 3.4))

# %% [markdown]
# The published pattern is there: five layers see the shape at least as well as the digit, and the last sees it less. But
# our curves sink from the second layer on, while the paper's stay high up to the fourth; its widths and strides are
# unknown.
#
# ## 7 Other outputs
#
# Is the saturating activation the cause? The paper's appendix repeats the curves for other activations that saturate
# (unverified). It does not show the control: what happens **without** one? The two gray panels show that.

# %% tags=["nbval-ignore-output"]
kinds = [hgr_curves(rows, f"{loss} ({'saturates' if loss in bottleneck.SATURATING else 'control, does not saturate'})", loss == "sigmoid",
                    loss == "sigmoid") for loss, rows in main.items()]
ends = {loss: np.mean([row["hgr"] for row in rows], 0)[1, 4:] for loss, rows in main.items()}
viz.show_panels([kinds[:3], kinds[3:]], "Six panels with nearly the same curves; the shape falls from G5 to G6: "
                + ", ".join(f"{loss} {before:.2f} to {after:.2f}" for loss, (before, after) in ends.items()), size=(3.4, 2.5))

# %% [markdown]
# One more control is networks before training. And one test needs no gradient: with the digit taken away, does the network
# tell a disc from a square?

# %% tags=["nbval-ignore-output"]
def measure(seed, loss="sigmoid"):
    """Return the measurements of a network that was not trained."""
    net = bottleneck.train_network(loss, train, 0, seed)
    return {"hgr": bottleneck.hgr_curves(net, test).tolist(), "accuracy_digits_alone": bottleneck.accuracy(net, test.digits_alone()),
            "accuracy_shapes_alone": bottleneck.accuracy(net, test.shapes_alone())}


untrained = [measure(config.seed + number) for number in range(config.bottleneck_seeds)]
print("            accuracy: digits  shapes   digit G_5 > G_6, kept    shape G_5 > G_6, kept by the last layer")
for loss, rows in {**main, "untrained": untrained}.items():
    values = np.array([row["hgr"] for row in rows])[:, :2, 4:]  # (seeds, digit or shape, G_5 or G_6)
    kept = 100 * values[..., 1] / np.maximum(values[..., 0], 1e-9)  # (seeds, 2)
    digits, shapes = (np.mean([row[f"accuracy_{part}_alone"] for row in rows]) for part in ("digits", "shapes"))
    print(f"{loss:20s}  {digits:.2f}    {shapes:.2f}  ", *(f"  {before:.2f} > {after:.2f}  {mean:3.0f} ± {spread:2.0f} % "
          for (before, after), mean, spread in zip(values.mean(0), kept.mean(0), kept.std(0), strict=True)))
print("published                               0.63 > 0.39   62 %          0.88 > 0.10   11 %")

# %% [markdown]
# ### What holds, and what this toy cannot show
#
# Not one network decides; the next cell counts all of them.

# %% tags=["nbval-ignore-output"]
def loses_the_shape(row):
    """Return whether the last layer keeps a smaller part of the shape than of the digit."""
    digit, shape = np.array(row["hgr"])[:2, 4:]
    return bool(shape[1] * digit[0] < digit[1] * shape[0])


groups = {kind: [row for loss in main if (loss in bottleneck.SATURATING) == saturates for row in main[loss]]
          for kind, saturates in (("saturating", True), ("not saturating", False))}
for name, rows in {**groups, "untrained": untrained}.items():
    print(f"{name:15s} the last layer keeps less of the shape than of the digit in {sum(map(loses_the_shape, rows)):2d} of {len(rows):2d} "
          f"networks; accuracy on shapes alone {np.mean([row['accuracy_shapes_alone'] for row in rows]):.2f} (guessing: 0.50)")

# %% [markdown]
# *What holds here:* with every saturating output the last hidden layer still sees the shape, the logit hardly does, and
# the background matters to neither.
#
# *What this toy cannot show:* that the **activation** is the cause. The controls have none and lose the shape, too (10 of
# 10 networks).
#
# Part of the step needs no training: untrained networks keep 56 % of the shape, with a spread of 19 points, and trained
# ones 22 to 34 %. With the digit taken away, all losses score 0.40 to 0.43, no better than guessing. So the last layer does
# not throw away a cue that the network could have used: its output has never *learned* the cue, because the digit answers
# the question, and every loss stops asking when the answer is right (section 3). Only a probe could tell whether an earlier
# layer holds it. The simulation supports a milder statement, which is all the method needs: *a classifier that is content
# with the digit does not look at the shape.*
#
# ## 8 How many images have the shape
#
# Is it because the shape is rare? If so, a shape in every image should be used: it tells the class as well as the digit.
# The sigmoid's networks, trained with other fractions of shapes, on the same test images:

# %% tags=["nbval-ignore-output"]
ratios = sorted(part for loss, part in runs if loss == "sigmoid")


def over_ratios(key):
    """Return a measurement of all networks with sigmoid, (seeds, ratios, ...)."""
    return np.array([[row[key] for row in runs["sigmoid", part]] for part in ratios]).swapaxes(0, 1)


hgr = {f"{name}, G{chr(8321 + layer)}": over_ratios("hgr")[:, :, number, layer] for number, name in enumerate(REGIONS[:2]) for layer in (4, 5)}
accuracy = {"digits alone": over_ratios("accuracy_digits_alone"), "digit and shape": over_ratios("accuracy"),
            "shapes alone": over_ratios("accuracy_shapes_alone")}
last = dict(zip(ratios, hgr[f"{REGIONS[1]}, G₆"].mean(0), strict=True))
axes = {"xticks": range(len(ratios)), "xticklabels": [f"{100 * part:g} %" for part in ratios], "ylim": (0, 1.05), "xlabel": "training images with a shape"}
viz.show_panels([viz.bands(range(len(ratios)), values, title, **axes) for title, values in (("high gradient ratio", hgr), ("accuracy", accuracy))],
                "The shape's HGR in the last layer is " + ", ".join(f"{value:.2f} with {100 * part:g} %" for part, value in last.items())
                + " of shapes in training; shapes alone are answered by guessing; a shape beside the digit harms only networks that have seen "
                "few of them", size=(5, 3.2))

# %% [markdown]
# No. Networks that never met a shape react to it in their last layer about as strongly as to the digit (0.28), and it
# misleads them: with a shape beside the digit they err in about a fifth of the images. The more shapes are met in training,
# the *less* the logit reacts. Even where every image has one, the shapes alone tell the network next to nothing. It learns
# to ignore them, because the digit is enough. Rarity is not needed for the effect.
#
# What to look for in the last map of the 8: does the dashed square fade from left to right?

# %% tags=["nbval-ignore-output"]
def last_map(part):
    """Return the last gradient map of the 8, by the network trained with a fraction of shapes."""
    chosen = bottleneck.read_network(job.folder, "sigmoid", part, config.seed)
    return bottleneck.gradient_maps(chosen, test.images[[index]], test.labels[[index]])[-1, 0]


def draw_ratios(parts):
    """Show the last map for some fractions."""
    maps = {part: last_map(part) for part in parts}
    square = {part: values[test.regions[1, index]].mean().item() for part, values in maps.items()}
    viz.show_panels([outlined(values, f"{100 * part:g} % with a shape") for part, values in maps.items()],
                    "Mean gradient inside the square: " + ", ".join(f"{mean:.2f} with {100 * part:g} %" for part, mean in square.items()),
                    size=2.2, bar="gradient / max")


widgets.explore(lambda ratio: draw_ratios([ratio]), ratio=ratios)
draw_ratios(ratios)

# %% [markdown]
# It fades: the mean gradient inside the square falls from 0.18 to 0.03.
#
# ## 9 From the toy to the method
#
# RIB takes a trained classifier and *one* image, drops the final activation, pushes the raw logit of the image's classes up
# by a few steps of SGD, and goes back to the trained weights for the next image. The push does not fade, so the network
# goes on looking for evidence. A few other images without the same classes are pushed along, so that the step is not spent
# on one. In the toy:
#
# $$ L = -\,\tilde z(x) - \tilde z(x'), \qquad \theta \leftarrow \theta - \eta\, \partial L / \partial \theta, \qquad \text{ten times} $$
#
# with one companion $x'$ of the other class, a new one in each step (RIB: 20 on VOC). How large may the learning rate
# $\eta$ be?

# %% tags=["nbval-ignore-output"]
steps = range(11)
of_rate = list(zip(*(row["raised"] for row in main["sigmoid"]), strict=True))  # (rates, seeds)
raised = [(np.array([row["hgr"] for row in rows]), np.median([row["logit"] for row in rows], 0)) for rows in of_rate]  # (seeds, 3, 11), (11,)
viz.show_panels([viz.bands(steps, dict(zip(REGIONS, hgr.transpose(1, 0, 2), strict=True)), f"rate {rate:g}", legend=rate == 1e-4, xlabel="step",
                           ylabel="HGR of G₆", xticks=steps[::2], ylim=(-0.03, 0.85))
                 for rate, (hgr, _) in zip(bottleneck.RAISE_RATES, raised, strict=True)],
                "HGR of the last map over ten updates: at the smallest rates the shape only sinks, at 0.001 "
                "digit and shape rise, and at the larger rates they rise faster and collapse", size=(2.4, 2.8))

# %% tags=["nbval-ignore-output"]
print("rate     step where the shape is highest; then digit, shape, background, and the logit of the image, from before to there")
for rate, (hgr, logits) in zip(bottleneck.RAISE_RATES, raised, strict=True):
    best = int(hgr.mean(0)[1].argmax())
    changes = "    ".join(f"{before:.2f} > {after:.2f}" for before, after in hgr.mean(0)[:, [0, best]])
    print(f"{rate:<8g} {best:4d}    {changes}    {logits[0]:.3g} > {logits[best]:.3g}")

# %% [markdown]
# The gain has a price. At the two smallest rates ten steps only lower the shape's HGR, because more of the same digit is
# the cheapest way up. At larger rates high gradients spread over digit and shape, and over the background by a larger
# factor (0.03 to 0.11 at rate 0.001, where the shape goes from 0.16 to 0.30), so the push does not single out the object.
# Collapse follows: a logit, a product of all layers' weights, feeds on its own growth.
#
# The strip shows one image at three rates.

# %% tags=["nbval-ignore-output"]
def raised_maps(rate, steps=(0, 2, 4, 6, 8, 10)):
    """Return panels with the last map of the 8 from section 4 while its logit is raised."""
    maps, logits = bottleneck.raise_logit(net, test.images[index], test.labels[index], train, rate)
    values = [f"z = {logit:.3g}" if np.isfinite(logit) else "overflow" for logit in logits]
    return [outlined(maps[step], f"rate {rate:g}, step {step}\n{values[step]}") for step in steps]


def draw_updates(rates):
    """Show these maps, a row for each rate."""
    viz.show_panels([raised_maps(rate) for rate in rates],
                    f"The last gradient map of one 8 over the steps, at learning rates {', '.join(f'{rate:g}' for rate in rates)}: the "
                    "larger the rate, the sooner it spreads over digit, shape and background, and then it is lost", size=(1.7, 1.9))


widgets.explore(lambda rate: draw_updates([rate]), rate=list(bottleneck.RAISE_RATES))
draw_updates([3e-4, 1e-3, 5e-3])

# %% [markdown]
# Shortly before the end the map is coarse blobs. A high HGR of the shape then does not show that the shape was found, so
# RIB is careful. It takes a tiny rate ($8 \cdot 10^{-6}$ on VOC) and ten steps, *adds up* the maps over the steps, and
# stops when the map covers 70 % of the image or the summed logits exceed 600. Notebook 20 asks whether that brings back an
# object's body.
#
# ## 10 Try it
#
# Choose output, region, layer and the threshold of a high gradient. What to look for: is there any threshold at which the
# controls behave differently from the sigmoid?

# %% tags=["nbval-ignore-output"]
def draw(output="sigmoid", region=REGIONS[1], layer=6, threshold=0.3):
    """Show one map with its high gradients, and the region's HGR over all thresholds."""
    chosen = bottleneck.read_network(job.folder, output, config.bottleneck_shape_share, config.seed)
    maps = bottleneck.gradient_maps(chosen, test.images, test.labels)[layer - 1]  # (N, H, W)
    area, grid = test.regions[REGIONS.index(region)], np.linspace(0.02, 0.98, 33)
    ratios = [bottleneck.high_gradient_ratio(maps, area, value) for value in grid]
    viz.show_panels([outlined(maps[index], f"{output}, G{chr(8320 + layer)}"), outlined(1.0 * (maps[index] > threshold), f"above {threshold:.2f}"),
                     viz.curves(grid, {"": ratios}, f"HGR, {region}", marks={"threshold": threshold}, xlabel="threshold", ylim=(0, 1.03))],
                    f"{output}: layer {layer} sees {100 * bottleneck.high_gradient_ratio(maps, area, threshold):.0f} percent of the {region} "
                    f"pixels above {threshold:.2f}", size=2.8)


widgets.explore(draw, output=list(bottleneck.LOSSES), region=list(REGIONS), layer=(1, 6, 1), threshold=(0.05, 0.8, 0.05))
draw()

# %% tags=["nbval-ignore-output"]
def last_maps(output):
    """Return the maps of the fifth and the last layer for the 8."""
    chosen = bottleneck.read_network(job.folder, output, config.bottleneck_shape_share, config.seed)
    return bottleneck.gradient_maps(chosen, test.images[[index]], test.labels[[index]])[4:, 0]


viz.show_panels([[outlined(last_maps(output)[row], f"{output}, G{chr(8325 + row)}") for output in bottleneck.LOSSES] for row in (0, 1)],
                "Maps of the fifth and the last layer for all six outputs: the square, dashed, is seen by every fifth layer and by hardly any "
                "last one", size=1.8, bar="gradient / max")

# %% [markdown]
# ## Summary and exercises
#
# * $G_k$ shows which pixels move layer $k$; the HGR counts them by region. The paper's curves come out again: the last
#   layer drops the shape.
# * They come out without a saturating activation as well, and with a shape in every image. The toy shows a *content*
#   classifier; it does not single out the activation.
# * Pushing the raw logit spreads the map over more than the object and ends in collapse, so it needs a stopping rule.
# * Next: notebook 10 makes the classifier and the maps that RIB starts from.
#
# **Exercise 1.** Binary cross-entropy pushes the own logit with $\sigma(-\tilde z)$. From which logit on is the push below 1 %? (Three decimals.)

# %%
logit = None  # your answer
widgets.check(logit, "47a91423c0f2", "exercise 1")

# %% [markdown]
# **Exercise 2.** Write the HGR of one map and one region without the library.

# %%
def ratio_of(gradient_map, region, threshold):
    """gradient_map: float (H, W), region: bool (H, W). Return a float."""
    return None  # your code


example, area = np.array([[0.9, 0.1, 0.3], [0.5, 0.0, 1.0]]), np.array([[True, True, True], [True, False, False]])
widgets.check(ratio_of(example, area, 0.3), "2700abeff30f", "exercise 2")

# %% [markdown]
# **Exercise 3.** By which factor is $\partial \sigma(z)/\partial x$ smaller than $\partial z/\partial x$ at $z = 2$, in
# every pixel?

# %%
factor = None  # your answer
widgets.check(factor, "1d2f548bcad2", "exercise 3")

# %% [markdown]
# **Where each part comes from.**
#
# | part | from |
# |---|---|
# | digits 2 and 8 on black; a small shape beside the digit in 10 % of the training images (disc or diamond with a 2, square with an 8); gradient maps $G_1 \ldots G_6$ (section 4); three regions; the published curves | the paper's figure 1 in its repository (`jbeomlee93/RIB`, `Demo/`) |
# | five convolutions, one fully connected layer, sigmoid; a gradient is high above 0.3 (section 5); mean over 100 images; the appendix repeats it for softmax, tanh and softsign | memory of the paper's text, **unverified**; the figure only puts the threshold between 0.18 and 0.63 |
# | scikit-learn's digits; canvas of 36, digit of 20, shape of 5 pixels; widths and strides; squared error for tanh and softsign; Adam, one pass over 8,000 images; five seeds | our choice |
# | the controls (hinge, linear, untrained), the test on shapes alone, other fractions of shapes, the updates of section 9 | our additions, **not in the paper** |
#
# **References.** The paper's repository is `jbeomlee93/RIB`. Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998 (scikit-learn's digits). LeCun, Bottou,
# Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998 (MNIST).
