# %% [markdown]
# # 02 · Data sets and labels
#
# *In: a folder of images in the layout of PASCAL VOC (the generated one is made here). Out: a record that lists,
# labels, images and masks belong together.*
#
# | | |
# |---|---|
# | **Needs** | nothing for the generated data; else a VOC devkit folder and `python -m data_prep.voc_labels` |
# | **Writes** | `data/toy/` (generated data only), `check/` |
# | **Time and memory** | smoke: half a minute on two CPU cores, below 1 GB. VOC: minutes; COCO: about half an hour |
# | **Papers** | Everingham et al., *The PASCAL Visual Object Classes Challenge: A Retrospective*, IJCV 2015; Hariharan et al., *Semantic Contours from Inverse Detectors*, ICCV 2011 (SBD); Lin et al., *Microsoft COCO*, ECCV 2014 |
#
# **Goals.** After this notebook you can
#
# 1. put a data set of your own into the one layout that all notebooks read,
# 2. read a mask, and say what 0, 7 and 255 mean in it,
# 3. say where an image-level label comes from, and why two papers on "the same" data may use different ones,
# 4. name the split on which a number was measured, and what other splits would have given,
# 5. recognize supervision that is more than an image-level label.

# %% tags=["parameters"]
dataset = "toy"  # name of the run's folder below runs_root; "toy" is made if it is absent
data_root = "data/toy"  # VOC devkit folder
labels = ""  # table of image-level labels; empty: data_root/labels.csv
mask_folder = "SegmentationClass"  # ground truth below data_root
runs_root = "runs"  # results go to runs_root/dataset/data/seedK/check
seed = 0  # of the images that are drawn to be looked at
train_split = "train"  # images with image-level labels, for every training
score_split = "train"  # part of train_split with ground truth, on which maps and masks are scored
val_split = "val"  # images that no training sees
limit = 0  # use only the first images of every split; 0: all
cam_limit = 0  # images that the classifier of notebook 10 learns from, whose labels are cheap; 0: as many
on_bad_image = "stop"  # an image that cannot be decoded stops this notebook; skip: it is left out everywhere

# %%
import hashlib

import numpy as np
from defusedxml.ElementTree import parse
from PIL import Image

from data_prep.toy import make_toy_dataset
from data_prep.voc_xml import read_voc_classes
from wsss_lib import viz, widgets
from wsss_lib.config import Config
from wsss_lib.core.check import CHECK, masked_splits, pixels_of_each_value
from wsss_lib.core.files import IGNORE, voc_palette
from wsss_lib.core.progress import progress
from wsss_lib.core.stage import run
from wsss_lib.data.dataset import open_data, read_split
from wsss_lib.errors import DataError
from wsss_lib.parameters import project_path

config = Config.from_notebook(globals())
viz.use_style()

# %% [markdown]
# ## 1 The generated data set
#
# Real images need a download, and training on thousands of them a GPU. So the project brings generated images in the same
# layout: one or two invented creatures, each with a large dull *body*, whose color two classes share, and a small striking
# *head*, whose pattern alone tells the class. A classifier that finds the heads has solved its task, and has found a small
# part of each object. Every method here attacks this problem.
#
# The next cell makes the images if they are missing, and opens all splits.

# %%
root = project_path(config.data_root)
if config.dataset == "toy" and not (root / "dataset.json").is_file():
    make_toy_dataset(root, seed=0)
train_data, score_data, val_data = (open_data(config, split) for split in (config.train_split, config.score_split, config.val_split))
print(f"{len(train_data)} training images, {len(score_data)} of split {score_data.split!r} are scored, {len(val_data)} validation images")
print(f"{train_data.num_classes} classes:", ", ".join(train_data.classes))

# %% [markdown]
# An image and a list of names are all that the methods are given.

# %%
def label_names(data, image_id):
    """Return the names of the classes in an image."""
    return [data.classes[c] for c in np.flatnonzero(data.label(image_id))]


viz.show_panels([viz.image(train_data.image(name), "\n".join(label_names(train_data, name)[:3])) for name in train_data.ids[:6]],
                f"Six training images of {config.dataset}, each with the names of its classes (at most three) above it", size=2)

# %% [markdown]
# ## 2 The folder
#
# All notebooks read one layout, that of the PASCAL VOC devkit. It has a folder for each kind of file; a file's name is the
# image's *id*, and a *split* is a text file with one id a line. Two files are added: `labels.csv`, the table of image-level
# labels, and (except for VOC) `dataset.json` with the names of the classes.

# %%
for path in sorted(root.iterdir(), key=lambda path: (path.is_file(), path)):
    inside = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    print(f"{path.name + '/':22s}{len(inside):7d} files, the first: {inside[0] if inside else 'none'}" if path.is_dir() else path.name)

# %% [markdown]
# Ids are always text. Python and YAML read `2007_000032` as a number (underscores may separate digits), and published
# programs that do so fail with a current NumPy.
#
# **Is it the official list?** Two people who say "train_aug" may have different files. A checksum over the sorted ids
# settles it: the next cell prints its first eight digits for every list, and compares them with those of VOC's official
# lists.

# %%
official = {"aa623bd2": "VOC 2012 train, 1,464 images", "cdc1326d": "VOC 2012 val, 1,449 images",
            "d1326bd5": "VOC 2012 + SBD train_aug, 10,582 images", "5e8fe0c1": "VOC 2012 test, 1,456 images"}
for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
    ids = sorted(read_split(root, path.stem))
    digits = hashlib.sha256("".join(f"{name}\n" for name in ids).encode()).hexdigest()[:8]
    print(f"{path.stem:12s}{len(ids):7d} ids  {digits}  {official.get(digits, 'no official list of VOC 2012')}")

# %% [markdown]
# ### Who may see what
#
# | split | VOC 2012 | image-level labels | masks are used for |
# |---|---|---|---|
# | `train` | 1,464 images | yes | scoring maps, seed masks and pseudo-masks: the usual "seed mIoU" |
# | `train_aug` | 10,582 images: `train` and 9,118 more of SBD | yes, for all training | nothing in this project |
# | `val` | 1,449 images | only to score the classifier, never to predict a mask | the final score |
# | `test` | 1,456 images | none published | scored by the VOC server only |
#
# `train_aug` is a rule, not a file to trust: all of SBD's train and val and VOC's train, without VOC's val. The masks of
# the added images are SBD's, which are coarser: a map scores several points less on all of `train_aug` than on `train`,
# without being any worse. The next cell makes sure that `score_split` is a part of `train_split`:

# %%
outside = sorted(set(score_data.ids) - set(train_data.ids))
if outside:
    raise DataError(f"score_split {score_data.split!r} holds {outside[0]} and {len(outside) - 1} others that are not in "
                    f"train_split {train_data.split!r}: maps are made for training images only, take a part of that list")
print("training images that are also validation images:", len(set(train_data.ids) & set(val_data.ids)))

# %% [markdown]
# COCO 2014 has two traditions: RIB and AMN use all 82,783 training and 40,504 validation images, others leave out the 702
# and 367 without annotation. Each table here gives its image count.
#
# ## 3 Masks
#
# A mask is an 8-bit PNG of the image's size. Its values are *indices*: 0 background, $i + 1$ for class $i$, 255 for "not
# labeled". The colors that a viewer shows come from a palette inside the file.
#
# A data set may have masks for a few images only, which `ImageSets/Segmentation/scored.txt` lists; then only these are
# scored. Without any mask nothing is scored, and cells that begin with `# needs masks` are left out.
#
# What to look for: the raw indices are nearly black, which is why people report "all black" pseudo-labels; the pale line
# around each object is 255.

# %%
has_masks = (root / config.mask_folder).is_dir()
image_id = score_data.example(2)
picture = np.array(score_data.image(image_id))
mask = score_data.mask(image_id) if has_masks else np.zeros(picture.shape[:2], np.uint8)
meaning = {0: "background", IGNORE: "unknown", **{i + 1: name for i, name in enumerate(train_data.classes)}}
print(f"mask of {image_id}: {mask.dtype} {mask.shape}:", ", ".join(f"{value} {meaning[value]}" for value in np.unique(mask).tolist()))

# %%
raw_indices = np.repeat(mask[..., None], 3, 2)  # as grey levels
viz.show_panels([viz.image(picture, f"input {image_id}"), viz.image(raw_indices, "raw indices"),
                 viz.image(voc_palette()[mask], "palette"), viz.labels(mask, train_data.classes, "this project", picture)],
                f"One mask in three ways; {100 * (mask == IGNORE).mean():.1f} percent of its pixels are unknown, pale in the palette, "
                "then hatched", size=2.5)

# %% [markdown]
# This project hatches unknown pixels and names each region, because colors alone fail many readers.
#
# **What 255 means** depends on where it stands. In the ground truth it is the border of an object, where the annotators did
# not decide; it is left out of every loss and score. VOC has such borders, SBD's own masks and COCO's have none. In a label
# made by a program (notebook 70) it means "I do not know", and in a crop larger than its image, padding.
#
# **Two traps.** An image library that decodes the palette gives colors, not indices: read masks with Pillow, as
# `read_mask` does. And indices must never be interpolated:

# %%
line = Image.fromarray(np.array([[0, 0, 15, 15]], np.uint8))
for how in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR):
    print(f"{how.name:10s}", np.array(line.resize((8, 1), how))[0].tolist())

# %% [markdown]
# Between 0, the background, and 15, VOC's *person*, the bilinear filter has invented 4, a boat, and 11, a dining table.
# This project resizes labels by the nearest pixel, measured between pixel centers (notebook 40).
#
# ## 4 Image-level labels
#
# Where does a label such as "a dog and a person" come from? VOC's annotators drew *boxes* around objects, which the image's
# XML file holds. Image-level labels keep only the names. One such file:

# %%
annotation = root / "Annotations" / f"{image_id}.xml"
has_annotations = annotation.is_file()
print("\n".join(annotation.read_text().splitlines()[:26]) if has_annotations else "this data set has no XML annotations")

# %% [markdown]
# The published rule is: **every element `<name>`, anywhere in the file, whose text is one of the classes counts.** Objects
# marked as difficult or cut off count too; body parts (head, hand, foot) are no classes and do not.

# %%
if has_annotations:
    found = {element.text for element in parse(annotation).iter("name")}
    label = [int(name in found) for name in train_data.classes]
    print(image_id, label, label_names(train_data, image_id))
    assert [name for name in train_data.classes if name in found] == read_voc_classes(annotation, train_data.classes)

# %% [markdown]
# `python -m data_prep.voc_labels` does this for all images and writes `labels.csv`: the id, then a 0 or 1 for each class.
# Unlike the pickled files of the official programs, it can be read by a person and made by a spreadsheet, and runs no code
# when opened. Does it say the same as the XML files?

# %%
for data in (train_data, val_data) if has_annotations else ():
    agree = sum(label_names(data, name) == read_voc_classes(root / "Annotations" / f"{name}.xml", data.classes)
                for name in progress(data.ids, "annotations"))
    print(f"{data.split}: table and XML agree for {agree} of {len(data)} images")

# %% [markdown]
# ### Counts
#
# How many images has each class? What to look for: rare classes, whose scores will be unsteady, and one class that
# outnumbers all others (in VOC *person*, in 4,155 of the 10,582 images of `train_aug`; generated classes are about equally
# frequent).

# %%
per_class = train_data.labels.sum(0)
rare, common = per_class.argmin(), per_class.argmax()
viz.show_class_bars({f"{data.split}, {len(data)} images": data.labels.sum(0) for data in (train_data, val_data)}, train_data.classes,
                    f"The commonest class in training is {train_data.classes[common]} with {per_class[common]} images, the rarest is "
                    f"{train_data.classes[rare]} with {per_class[rare]}", ylabel="images", title="Images with each class",
                    log=per_class[common] > 20 * max(per_class[rare], 1))

# %% [markdown]
# How many classes does an image have? Images with several are harder: only there must a map say which part belongs to which
# class.

# %%
per_image = np.bincount(train_data.labels.sum(1))
viz.show_class_bars({train_data.split: per_image}, [f"{count} classes" for count in range(len(per_image))],
                    f"{per_image[1]} of {len(train_data)} training images show one class; the mean is "
                    f"{train_data.labels.sum(1).mean():.3f} classes an image", ylabel="images", title=train_data.split)

# %% [markdown]
# VOC's `train_aug` has 1.555 classes an image, and 6,249 of its 10,582 images show one class (official lists).
#
# Which classes come together? If a table is nearly always seen with chairs and people, "table" may be learned from a
# chair's leg. The matrix shows which fraction of the images with the row's class also has the column's; the diagonal is the
# fraction with the class *alone*. The generator draws an image's second class with equal chances, so its matrix is flat by
# construction.

# %%
present = train_data.labels.astype(np.int64)  # (N, C)
together = present.T @ present  # (C, C): images with both classes
ratio = together / np.maximum(np.diag(together), 1)[:, None]
alone = (present * (present.sum(1, keepdims=True) == 1)).sum(0)
np.fill_diagonal(ratio, alone / np.maximum(np.diag(together), 1))

least = int(np.where(per_class > 0, np.diag(ratio), 1).argmin())
viz.show_panels([viz.matrix(ratio, train_data.classes, train_data.classes, "Also in the image (diagonal: alone)", text="",
                            limits=(0, 1), xlabel="also shows", ylabel="images with")],
                f"The class that is least often alone is {train_data.classes[least]}: in {alone[least]} of its {per_class[least]} "
                "images", size=max(4, 0.9 + 0.19 * len(per_class)), bar="fraction of the row's images")

# %% [markdown]
# Real images differ. These are the fractions in the 525 images of VOC 2012 whose ids begin with 2007 (preset
# `voc12-small`):
#
# | images with | alone | also person | also chair | also dining table | also sofa |
# |---|---|---|---|---|---|
# | chair (59) | 2 % | 31 % | | 32 % | 36 % |
# | sofa (39) | 5 % | 28 % | 54 % | 13 % | |
# | dining table (38) | 11 % | 47 % | 50 % | | 13 % |
# | horse (36) | 14 % | 83 % | 3 % | 0 % | 0 % |
# | sheep (25) | 88 % | 8 % | 0 % | 0 % | 0 % |
#
# In `train_aug`, 21 of 613 images with a dining table show it alone (official lists). So the label hardly says where the
# table is.
#
# ## 5 Labels by XML and labels by masks
#
# An image-level label may instead list the classes in the *mask*. It sounds the same and is not: a class may have a box but
# no pixel in the mask, because its object is tiny or SBD's annotators skipped it. DRS trains on such labels; IRN, RIB, AMN,
# VWE and SC-CAM on those of the XML files. Counted from the official lists:
#
# | | images that differ | entries missing in the masks | entries added |
# |---|---|---|---|
# | `train_aug` | 817 of 10,582 | 903 of 16,458 | 0 |
# | `train` | 1 of 1,464 | 1 | 0 |
# | `val` | 1 of 1,449 | 0 | 1 |
#
# The 903 entries are person 257, sofa 158, chair 147, dining table 85, car 64, bottle 60, potted plant 35, tv monitor 19,
# others 78. They are hard cases, so labels by masks are *cleaned by pixel annotation*, and a classifier trained on them has
# an easier task. This project takes `labels.csv`; how it was made is for the user to say.
#
# What do the data at hand say? The next cell reads every mask of the scored and validation splits once. It stops at a mask
# of a wrong size or with a value that is no class, and names the file.

# %%
check = run(CHECK, config)
masked = masked_splits(check)  # split to its data
pixels = {split: pixels_of_each_value(check, split) for split in masked}  # (N, C + 2): background, classes, 255
print("masks read:", {split: len(counts) for split, counts in pixels.items()} or "none, there is no folder of masks")

# %% [markdown]
# A class *is missing* if the table names it and the mask has no pixel of it, and *is added* in the opposite case.

# %%
for split, counts in pixels.items():
    by_mask, by_table = counts[:, 1:-1] > 0, masked[split].labels > 0  # (N, C)
    missing, added = by_table & ~by_mask, by_mask & ~by_table
    differing = np.flatnonzero((missing | added).any(1))
    print(f"{split}: {len(differing)} of {len(counts)} images differ, "
          f"{missing.sum()} of {by_table.sum()} entries missing, {added.sum()} added")
    for row in differing[:5]:
        names = [("-" if missing[row, c] else "+") + train_data.classes[c] for c in np.flatnonzero((missing | added)[row])]
        print("   ", masked[split].ids[row], " ".join(names))

# %% [markdown]
# The same counts say how much of the images is object. What to look for: the background is by far the most common label, so
# a mask of background only has most pixels right. The mean over classes gives little credit for that.

# %%
for split, counts in pixels.items():
    objects, known = counts[:, 1:-1].sum(1), counts[:, :-1].sum()
    covered = (objects / counts.sum(1))[objects > 0]
    print(f"{split}: background {100 * counts[:, 0].sum() / known:.1f} % of the labelled pixels, unknown "
          f"{100 * counts[:, -1].sum() / counts.sum():.1f} % of all pixels; objects cover {100 * np.median(covered):.0f} % of an image "
          f"(median), in the smallest tenth less than {100 * np.quantile(covered, 0.1):.0f} %")

# %% [markdown]
# ## 6 More than a label
#
# Three things besides the label can help or mislead a method.
#
# **Parts.** Only generated data have a map of parts: 1 is body, 2 is head. No method may read it; it measures which part of
# an object the maps find (notebook 10).
#
# **Saliency.** DRS also uses a *saliency map* of each image: "something stands out here" where it exceeds 50. It comes from
# a detector trained with pixel labels of other images, so a method that uses it has **extra supervision**, and its results
# say so. (The generated maps are drawn from the ground truth and spoiled on purpose.)

# %%
def optional(folder, image_id):
    """Return a grey or palette PNG of an optional folder, or None."""
    path = root / folder / f"{image_id}.png"
    return np.array(Image.open(path)) if path.is_file() else None


parts, saliency = optional("PartMasks", image_id), optional("saliency_map", image_id)
there = " and ".join(name for name, values in (("parts", parts), ("saliency", saliency)) if values is not None)
viz.show_panels([viz.image(picture, f"input {image_id}"), viz.labels(mask, train_data.classes, "ground truth", picture),
                 viz.blank("no parts here") if parts is None else viz.labels(parts, ["body", "head"], "parts", picture),
                 viz.blank("no saliency here") if saliency is None else viz.scores(picture, saliency / 255, "saliency")],
                f"Beside the ground truth this image has {there or 'neither parts nor saliency'}; a saliency map knows no classes and "
                "has soft edges", size=2.5)

# %% [markdown]
# How good are these saliency maps, and how small are the heads? On the first 300 scored images:

# %%
sample = score_data.ids[:300] if has_masks else []
part_pixels, hits, union = np.zeros(3, int), 0, 0
for name in sample:
    truth, parts, saliency = score_data.mask(name), optional("PartMasks", name), optional("saliency_map", name)
    if parts is not None:
        part_pixels += np.bincount(parts.ravel(), minlength=3)[:3]
    if saliency is not None:
        salient, foreground = (saliency > 50) & (truth != IGNORE), (truth > 0) & (truth != IGNORE)
        hits, union = hits + (salient & foreground).sum(), union + (salient | foreground).sum()
print(f"heads are {100 * part_pixels[2] / max(1, part_pixels[1:].sum()):.0f} % of the creatures' pixels")
print(f"saliency above 50 against all objects together: IoU {100 * hits / union:.0f} %" if union else "no saliency maps here")

# %% [markdown]
# A fifth of a creature is head, and the saliency maps are good but not perfect: 85 %.
#
# **Backgrounds.** Some classes live in one place: boats on water, airplanes in the sky. For a classifier the water is as
# good a sign as the boat. In generated images *discus* is mostly on blue water, which is also seen without it. The next
# cell measures the mean color of each class's background.

# %%
grounds = {name: score_data.mask(name) == 0 for name in sample}
ground_colors = {name: np.array(score_data.image(name))[ground].mean(0) for name, ground in grounds.items() if ground.any()}  # each (3,)
color_sum, seen = np.zeros((train_data.num_classes, 3)), np.zeros(train_data.num_classes, int)
for name, ground_color in ground_colors.items():
    color_sum[score_data.label(name) > 0] += ground_color
    seen += score_data.label(name)
color = color_sum / np.maximum(seen, 1)[:, None]  # (C, 3), 0..255
blue = np.where(seen > 0, color[:, 2] - color[:, 0], 0)
viz.show_class_bars({"": blue}, train_data.classes, f"The bluest background belongs to {train_data.classes[int(blue.argmax())]}: blue "
                    f"exceeds red by {blue.max():.0f} grey levels, while the median of the classes is {np.median(blue):.0f}",
                    ylabel="blue minus red", title=f"Mean color of the background, {len(sample)} images", colors=color / 255)

# %% [markdown]
# A map of such a class may light up on its background too: image-level labels only say *seen together*. A class may also
# have sub-categories: *starling* has two kinds that look different, which SC-CAM (notebook 60) seeks.
#
# ## 7 The check
#
# `run(CHECK, config)` in section 5 has also opened every image, so that a broken file stops this notebook and not the
# training, hours later. With `on_bad_image = "skip"` every notebook leaves broken images out. The pipeline starts notebook
# 10 only after this check.

# %%
for row in check.metrics:
    print(f"{row['split']}: {row['images']} images, {sum(row['images_per_class'])} labels, {row['masks_checked']} sound masks, "
          f"height and width from {row['smallest_image']} to {row['largest_image']}")

# %% [markdown]
# ## 8 Try it
#
# Browse the training set (the slider appears in JupyterLab). Cover the creatures with your hand: for which image would you
# still guess a class, and is the guess right?

# %%
def browse(number=0):
    """Show one scored image and its ground truth."""
    name = score_data.ids[number]
    words = " and ".join(label_names(score_data, name)) or "no class"
    viz.show_examples(score_data, [name], {}, f"Image {name} with {words}", size=3)


widgets.explore(browse, number=(0, len(score_data) - 1, 1))

# %%
drawn = np.random.default_rng(config.seed).choice(score_data.ids, size=min(4, len(score_data)), replace=False).tolist()
drawn += sorted(ground_colors, key=lambda name: ground_colors[name][2] - ground_colors[name][0])[-1:]  # the bluest
panels = [[viz.image(score_data.image(name), name) for name in drawn]]
if has_masks:
    panels.append([viz.labels(score_data.mask(name), score_data.classes, "ground truth", score_data.image(name)) for name in drawn])
viz.show_panels(panels, f"Four images of {score_data.split} drawn at random, the one with the bluest background of {len(ground_colors)}, and their ground "
                "truth where there is any", size=1.9)

# %% [markdown]
# The last image lies on water. A classifier that has learned "water" would wrongly answer *discus*.
#
# ## 9 Summary and exercises
#
# * One layout for everything: images, index masks, lists of ids, `labels.csv`. 255 in a ground truth is "not labeled" and is not scored.
# * Labels by XML and labels by masks differ; saliency is extra supervision; a number belongs to a split and an image count.
# * Next: notebook 10 trains a classifier on the labels and asks where it looked.
#
# **Exercise 1.** VOC's *dog* is class 11, counted from 0. Which value has a dog's pixel in a mask?

# %%
value = None  # your answer
widgets.check(value, "e7e1e76633b2", "exercise 1")

# %% [markdown]
# **Exercise 2.** Write the label by mask: the 0-based classes that a mask shows, as a sorted list of ints.

# %%
def classes_in_mask(mask):
    """mask: uint8 (H, W), 0 background, i + 1 for class i, 255 unknown. Return a list of ints."""
    return None  # your code


widgets.check(classes_in_mask(np.array([[0, 3, 3], [255, 1, 0]], np.uint8)), "e736858dc6c1", "exercise 2")

# %% [markdown]
# **Exercise 3.** From a label matrix (images in rows, classes in columns), in how many images are the classes `a` and
# `b` both present? Use no loop.

# %%
def images_with_both(label_matrix, a, b):
    """label_matrix: 0/1 (N, C). Return an int."""
    return None  # your code


widgets.check(images_with_both(np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]]), 0, 1), "1055b9629b9f", "exercise 3")

# %% [markdown]
# **References.** Kim, Han, Kim: Discriminative Region Suppression for Weakly-Supervised Semantic Segmentation, AAAI 2021.
