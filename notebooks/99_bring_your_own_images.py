# %% [markdown]
# # 99 · Bring your own images
#
# *In: a folder of photographs and a note of what is in each. Out: a mask for each photograph.*
#
# | | |
# |---|---|
# | **Needs** | the extra `pretrained` (EfficientNet-Lite0 with ImageNet weights, and photographs to begin with); no other notebook |
# | **Writes** | a data set below `data/`; `classifier/`, `maps/` and `seeds/` below `runs/` |
# | **Time and memory** | about two minutes on two CPU cores for sixteen photographs, 1 GB |
# | **Paper** | none of its own; the steps are those of notebooks 10 and 70 |
#
# **Goals.** After this notebook you can
#
# 1. turn a folder of photographs into a data set that every notebook reads,
# 2. get masks from it on a laptop, without a single drawn pixel,
# 3. tell which of these masks to believe, and what more photographs would cure.

# %% tags=["parameters"]
own_photographs = ""  # folder of photographs, or of one folder for each class; empty: photographs that installed packages carry
own_labels = ""  # table of what is in each photograph; empty: they lie in class folders
own_longest = 320  # larger photographs are made smaller until their longer side has so many pixels; 0: none is
seed = 0  # of everything that is random

# %% [markdown]
# All other parameters come from the preset `voc12-small`, for photographs and a CPU. The dictionary says what a handful of
# photographs needs otherwise, and `own_values` how long and how fast to train for their number and that of their classes. What
# you name on papermill's command line wins.

# %%
import numpy as np

from data_prep import custom
from data_prep.own_preset import own_values
from data_prep.sample_photographs import installed_photographs
from wsss_lib import predict, viz, widgets
from wsss_lib.config import Config
from wsss_lib.contact_sheet import signs_of, write_contact_sheet
from wsss_lib.core.scoring import full_size_maps, mask_at
from wsss_lib.core.stage import folder_of, run, run_folder_of
from wsss_lib.data.dataset import open_data
from wsss_lib.methods import cam
from wsss_lib.ops.seeds import seed_mask
from wsss_lib.parameters import project_path
from wsss_lib.presets import preset_config
from wsss_lib.refine import seed_masks
from wsss_lib.segment.deeplab import DEEPLAB

viz.use_style()

# %%
given = Config.from_notebook(globals())
source = project_path(given.own_photographs) if given.own_photographs else None
small = {"labels": "", "val_split": "train", "num_workers": 0, "cam_long_side_min": 200, "cam_long_side_max": 320, "cam_crop": 224,
         "pixel_labels_chose": ""}

# %% [markdown]
# ## 1 From a folder to a data set
#
# A note of what is in each photograph can have three forms (`python -m data_prep.custom` understands each):
#
# * **class folders**: `photographs/cat/…`, `photographs/dog/…`; a file that lies in two folders has both classes;
# * **a table** with a line for each photograph: `beach.jpg,dog;person`;
# * **masks**, where you have them: the classes are read off, and the masks are kept to score the result.
#
# Without a folder of your own the notebook takes free photographs that come with scikit-image, scikit-learn and matplotlib.
# They are few, **sixteen and not a thousand**, and half of them show none of the six classes. Those matter as much: they tell
# the classifier what does *not* count.

# %%
if source is None:
    found = installed_photographs()
    photographs = {custom.image_id(path): custom.Photograph(path, sample.classes) for path, sample in found}
    classes = sorted({word for _, sample in found for word in sample.classes})
elif given.own_labels:
    photographs, classes = custom.from_table(source, project_path(given.own_labels))
else:
    photographs, classes = custom.from_class_folders(source)
name, made_of = custom.dataset_name(source) if source else "samples", custom.source_hash(photographs, classes, given.own_longest)
wanted = project_path(given.data_root) if "data_root" in given.model_fields_set else project_path("data") / name
root = custom.place_of(wanted.parent, wanted.name, made_of)
if not root.exists():
    custom.make_dataset(dict(sorted(photographs.items())), classes, root, val_share=0, longest=given.own_longest)
chosen = {"dataset": name if root == wanted else root.name, "data_root": str(root)} | small | own_values(len(photographs), len(classes))
config = preset_config("voc12-small", **chosen | given.model_dump(include=given.model_fields_set - {"data_root"}))
data = open_data(config, "train")

# %% [markdown]
# The picture shows the photographs with their labels, **all that the classifier will be told**. Other photographs or labels get
# another data set.

# %% tags=["nbval-ignore-output"]
print(f"{len(data)} photographs, {data.num_classes} classes: {', '.join(data.classes)}; "
      f"{int((data.labels.sum(1) == 0).sum())} photographs show none of them")
words_of = {name: ", ".join(data.classes[index] for index in np.flatnonzero(data.label(name))) or "none of them" for name in data.ids}
panels = [viz.image(data.image(name), words_of[name]) for name in data.ids[:24]]
panels += [viz.blank()] * (-len(panels) % 8)
viz.show_panels([panels[start:start + 8] for start in range(0, len(panels), 8)],
                f"The first {min(len(data), 24)} of {len(data)} photographs, each with the names of its classes", size=(1.5, 1.9))

# %% [markdown]
# How often does each class occur, alone and with others? What to look for: a class that occurs once, and two classes that
# always occur together. Nothing in image-level labels can tell such two apart.

# %% tags=["nbval-ignore-output"]
together = data.labels.T.astype(int) @ data.labels.astype(int)
for index, word in enumerate(data.classes):
    others = [f"{data.classes[other]} {together[index, other]}x" for other in np.flatnonzero(together[index]) if other != index]
    print(f"{word:12s} {together[index, index]:3d} photographs{', with ' + ', '.join(others) if others else ''}")

# %% [markdown]
# ## 2 A classifier from very little
#
# Sixteen photographs cannot teach a network to see. But it has seen ImageNet's million photographs, and only has to learn which
# of its features mean *cup* and which *temple*. So the early stages and the statistics of batch normalization stay as they are,
# and a few passes are enough. Random sizes, crops and horizontal flips make each photograph count several times.

# %%
classifier = run(cam.CLASSIFIER, config)

# %% [markdown]
# Does it believe the labels of the photographs that it was trained on? **That is no test of the classifier**; with a photograph
# or two a class there is nothing left to test on. But a label that it does not even believe after training is a warning: its
# map will be noise.

# %% tags=["nbval-ignore-output"]
probabilities, present = cam.score_classifier(classifier.net, data, config), data.labels == 1
doubted = [(data.ids[row], data.classes[index]) for row, index in zip(*np.nonzero(present & (probabilities < 0.5)), strict=True)]
print(f"labels that are there: probability {probabilities[present].mean():.2f} on average, {len(doubted)} of {present.sum()} below one half", doubted or "")
print(f"labels that are not there: {probabilities[~present].mean():.2f} on average")

# %% [markdown]
# ## 3 Maps
#
# A class activation map is the classifier's evidence before it is averaged (notebook 10), at three sizes, each also flipped
# horizontally, for the classes of the label only. A photograph without a class gets an empty file.

# %%
maps_folder = run(cam.MAPS, config).folder
shown = [name for name in data.ids if data.label(name).any()][:8]
print("a file of maps for every photograph:", {path.stem for path in maps_folder.glob("*.npz")} == set(data.ids))

# %% [markdown]
# What to look for: does the light lie on the object, on a part of it, or beside it? Beside it means that something else told
# the photographs apart. Three people before a flag, a camera and a field do not say what a person is.

# %% tags=["nbval-ignore-output"]
def first_map(name):
    """Return a panel with the map of the first class of a photograph."""
    classes, scores = full_size_maps(maps_folder, name)
    return viz.scores(data.image(name), scores[0], data.classes[classes[0]])


inputs = [viz.image(data.image(name), name[:14]) for name in shown]
viz.show_panels([inputs, [first_map(name) for name in shown]],
                f"{len(shown)} photographs and, beneath, the map of the first class of each; bright is strong evidence", size=1.7, bar="score")

# %% [markdown]
# ## 4 From maps to masks
#
# A pixel belongs to the class with the highest score, or to the background where no score exceeds a threshold. A dense CRF then
# moves the outline to where the colors change (notebook 70). **Which threshold?** Without ground truth nobody can say. The
# preset's was chosen on 60 photographs of VOC, with their masks; for yours, look at the strip.

# %% tags=["nbval-ignore-output"]
def mask_of(name, threshold, crf=False):
    """Return a panel with the mask of one photograph."""
    picture, (classes, scores) = np.array(data.image(name)), full_size_maps(maps_folder, name)
    mask = seed_mask(picture, scores, classes, threshold) if crf else mask_at(maps_folder, threshold)(name)
    return viz.labels(mask, data.classes, f"{threshold:.2f}" + (" and CRF" if crf else ""), picture)


image_id = shown[len(shown) // 2]
viz.show_panels([viz.scores(data.image(image_id), full_size_maps(maps_folder, image_id)[1].max(0), "highest score"),
                 *(mask_of(image_id, threshold) for threshold in (0.3, 0.45, 0.6, 0.75)), mask_of(image_id, config.seed_threshold, crf=True)],
                f"{image_id}: masks shrink as the threshold grows; with the CRF the outline follows the colors", size=2)

# %% [markdown]
# The slider does the same for any photograph (in JupyterLab).

# %% tags=["nbval-ignore-output"]
widgets.explore(lambda image_id=shown[0], threshold=config.seed_threshold, crf=True: viz.show_panels(
    [mask_of(image_id, threshold, crf)], f"Mask of {image_id} where the score exceeds {threshold:.2f}", size=4),
    image_id=list(data.ids), threshold=(0.05, 0.9, 0.05), crf=[True, False])

# %% [markdown]
# All photographs get two masks: a full one, and one that keeps only what is sure and leaves the rest unknown, from which
# AffinityNet and IRN learn.

# %%
seeds = run(seed_masks.SEEDS, config)
assert all((seeds.folder / "seed_masks" / f"{name}.png").is_file() for name in data.ids)
print("a mask for every photograph:", True)

# %% [markdown]
# ## 5 Look, and know what to believe
#
# Without ground truth there is no score, and this notebook prints none. What to look for: is the outline the object's? Is a
# part missing? Is something in the mask that always stands beside the object? Among the samples the rocket is such a case: its
# mask is evening sky. No photograph has that sky without a rocket, so nothing speaks against the sky, which is easier to see.
# (The astronaut's photograph has a rocket, too, and no sky; two pictures are soon learned one by one.)

# %% tags=["nbval-ignore-output"]
full, sure = (viz.masks_in(seeds.folder / folder, data) for folder in ("seed_masks", "irn_labels"))
viz.show_panels([inputs, *([viz.labels(mask_of(name), data.classes, "", data.image(name)) for name in shown] for mask_of in (full, sure))],
                f"{len(shown)} photographs, their masks, and the sure part of these, where hatched pixels are unknown", size=1.7)

# %% [markdown]
# Four signs need no ground truth and say where to look first. A class whose mask covers nearly the whole photograph has found
# the background. A large mask whose outline hardly differs in color from what is around it may end anywhere in lawn or sky. A
# mask that is nearly empty has found a spot. A label with a low probability in section 2 has found nothing. Of the samples they
# name the camera (mostly lawn) and the rocket (sky), and three photographs whose masks are better.

# %% tags=["nbval-ignore-output"]
for name, believed in zip(data.ids, probabilities, strict=True):
    for sign in signs_of(np.array(data.image(name)), full(name), data.label(name), data.classes, believed):
        print(f"{name[:20]:20s} {sign}")

# %% [markdown]
# The next cell writes a page with every photograph, the most doubtful first, for a browser.

# %% tags=["nbval-ignore-output"]
page = write_contact_sheet(config)
print("page:", page.relative_to(page.parents[5]), "with", len(data), "photographs")

# %% [markdown]
# ## 6 Your own folder
#
# This runs the whole notebook on twenty photographs of your own, in class folders or with a table:
#
# ```
# papermill notebooks/99_bring_your_own_images.ipynb mine.ipynb -r own_photographs /path/to/photographs
# papermill notebooks/99_bring_your_own_images.ipynb mine.ipynb -r own_photographs /path/to/photographs \
#     -r own_labels /path/to/table.csv
# ```
#
# What helps, in this order: **more photographs of each class before different backgrounds** (ten each are a good start);
# photographs of the same places *without* the object; objects that fill a tenth to a half of the photograph; then more passes,
# `-p cam_epochs 60`. For the whole chain, with refined masks and a network that needs no labels, run `make own
# DATA=/path/to/photographs` (`docs/own_photographs.md`). If you draw some masks, what is made is scored on these.
#
# ## 7 New photographs
#
# Once `make own` has trained a segmentation network, it needs no label: `python -m wsss_lib.predict RUN FOLDER OUT` segments
# any folder of photographs and writes masks at their own size, pictures with the masks on them, and a page. The next cell does
# so with these photographs, if the network is there.

# %% tags=["nbval-ignore-output"]
if (folder_of(DEEPLAB, config) / "run.json").is_file():
    out = run_folder_of(config) / "new_photographs"
    print(predict.predict(predict.open_run(folder_of(DEEPLAB, config)), root / "JPEGImages", out), "photographs segmented into", out.name)
else:
    print("no network is trained on these photographs yet: `make own` trains one")

# %% [markdown]
# ## 8 Summary and exercises
#
# * A folder and a note of what is in it are enough for masks; a preset and an ImageNet network do the rest.
# * The masks show what *told the photographs apart*. With one photograph a class that may be the background.
# * Without ground truth there is no score: look, and distrust what covers too much, too little, or is not believed.
#
# **Exercise 1.** Which classes occur in one photograph only? Write a function that returns how many of them a label table has.

# %%
def classes_seen_once(labels):
    """labels: 0/1 (N, C). Return an int."""
    return None  # your code


widgets.check(classes_seen_once(np.array([[1, 0, 1], [0, 0, 1], [0, 1, 0]])), "fc048292daa7", "exercise 1")

# %% [markdown]
# **Exercise 2.** Two classes of a data set occur in exactly the same photographs. How many different maps can any method that
# sees only these labels justify for the two: one or two?

# %%
maps_justified = None  # your answer
widgets.check(maps_justified, "61fc910ff9f8", "exercise 2")

# %% [markdown]
# **Photographs.** Licences as the packages state them.

# %% tags=["nbval-ignore-output"]
for path, sample in installed_photographs() if source is None else ():
    print(f"{path.name:22s} {sample.package:11s} {sample.licence}")

# %% [markdown]
# **References.** Zhou, Khosla, Lapedriza, Oliva, Torralba: Learning Deep Features for Discriminative Localization, CVPR 2016.
# Krähenbühl, Koltun: Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NeurIPS 2011. Van der Walt et al.:
# scikit-image: image processing in Python, PeerJ 2014.
