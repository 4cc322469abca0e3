# %% [markdown]
# # 00 · Start here
#
# *In: a finished run. Out: the map of the whole project, and the results table.*
#
# | | |
# |---|---|
# | **Needs** | a finished run: `make smoke`, or notebooks 02, 10, 70, 80 and 90 in this order. To *read*, nothing |
# | **Writes** | `report/seed0/overview/` |
# | **Time and memory** | seconds, below 1 GB |
#
# **Goals.** After this notebook you can
#
# 1. say what weakly-supervised semantic segmentation (WSSS) is and why it is hard,
# 2. name the steps from image-level labels to a segmentation network, and what each adds,
# 3. find every result of a run, and start one of your own.
#
# ## The task
#
# Semantic segmentation gives every pixel a class. It is learned from masks, and a mask takes a person minutes to draw. An
# *image-level label* ("there is a dog and a person") takes seconds. WSSS learns masks from such labels alone: the network
# is told *what* is in the image, never *where*.
#
# **What you will see.** The stored outputs are of *generated images*: one or two invented creatures on a colored ground,
# each with a small *head*, whose pattern tells the class, and a large *body*, whose color two classes share. One in ten has
# no head. Numbers in all notebooks are those of the stored outputs, **one run with one seed**, unless another source is
# named. The glossary at the end explains new words.

# %% tags=["parameters"]
dataset = "toy"  # name of the run's folder below runs_root
data_root = "data/toy"  # VOC devkit folder
labels = ""  # table of image-level labels; empty: data_root/labels.csv
mask_folder = "SegmentationClass"  # ground truth below data_root
runs_root = "runs"  # where the finished run is
method = "cam"  # the run to walk through
seed = 0  # of the run to walk through
train_split = "train"
score_split = "train"
val_split = "val"
limit = 0  # as in the run
num_workers = 2  # loader processes, and processes for the CRF
device = "auto"  # auto, cpu or cuda
mixed_precision = False  # float16 autocast on a GPU
device_batch_size = 16  # images at once on the device; a larger batch is accumulated
checkpoint_every = 100  # steps between two saved states
seed_threshold = 0.15  # background threshold of the initial seed masks, as in the run

# %%
import numpy as np

from wsss_lib import comparison, overview, results, viz, widgets
from wsss_lib.config import Config
from wsss_lib.core.scoring import full_size_maps, mask_at
from wsss_lib.core.stage import open_stage, run, run_folder_of
from wsss_lib.data.dataset import open_data
from wsss_lib.methods import maps_of
from wsss_lib.refine import seed_masks
from wsss_lib.segment import deeplab

config = Config.from_notebook(globals())
viz.use_style()
data, val_data = open_data(config, config.score_split), open_data(config, config.val_split)
print(f"{len(data)} training images and {len(val_data)} validation images are scored")

# %% [markdown]
# ## The chain
#
# ![Seven steps from left to right: image, classifier, CAM, seed mask, pseudo-mask, DeepLab, prediction; the image-level label enters at the classifier](../docs/figures/chain.svg)
#
# | step, notebook | what goes in | what comes out | why |
# |---|---|---|---|
# | labels, 02 | images | a table of image-level labels | the only supervision |
# | classifier and CAM, 10 | images, labels | class activation maps (CAMs) | a classifier's evidence has a place |
# | *a method*: 20 RIB, 30 DRS, 40 AMN, 50 VWE, 60 SC-CAM | images, labels | better CAMs | CAMs cover only the most discriminative region |
# | initial seed masks, 70 | CAMs | label maps, some pixels unknown | thresholds and the dense CRF make masks |
# | refinement: 80 IRN, 75 AffinityNet | initial seed masks | pseudo-masks | learned boundaries stop the spreading |
# | segmentation, 90 | pseudo-masks | a network that needs no labels | new images come without labels |
#
# A method changes one row of this table, the maps. The next cell opens the finished *stages* of one run, steps with a
# folder of their own.

# %%
maps, seeds = open_stage(maps_of(config.method), config), open_stage(seed_masks.SEEDS, config)
pseudo_masks, predictions = open_stage(deeplab.masks_of(config), config), open_stage(deeplab.PREDICTIONS, config)
print("finished:", ", ".join(job.stage.name for job in (maps, seeds, pseudo_masks, predictions)))

# %% [markdown]
# ## Two images through every stage
#
# One is easy (at the upper quartile of the pseudo-masks), one hard (of the lowest tenth). No step has seen the ground
# truth; its hatched pixels are unknown and not scored. What to look for: do the masks have the right *extent*, and the
# right *name*?

# %% tags=["nbval-ignore-output"]
chosen = overview.easy_and_hard(data, pseudo_masks.files)
masks = {"seed mask + CRF": seeds.folder / "seed_masks", "pseudo-mask (IRN)": pseudo_masks.folder}


def stages_of(image_id):
    """Return a row of panels: input, ground truth, a map for each class (two at most), and the masks."""
    picture, (classes, values) = np.array(data.image(image_id)), full_size_maps(maps.folder, image_id)
    cams = [viz.scores(picture, score, f"CAM, {data.classes[c]}", config.seed_threshold) for c, score in zip(classes, values, strict=True)]
    read = ({"ground truth": data.mask} if data.has_masks else {}) | {title: viz.masks_in(folder, data) for title, folder in masks.items()}
    labels = [viz.labels(mask_of(image_id), data.classes, title, picture) for title, mask_of in read.items()]
    made = labels[-len(masks):]
    return [viz.image(picture, f"input {image_id}"), *labels[:-len(made)], *(cams + [viz.blank("no other class")])[:2], *made]


viz.show_panels([stages_of(name) for name in chosen], f"An easy image ({chosen[0]}) and a hard one ({chosen[-1]}): input, ground truth, "
                "the map of each class with a line at the threshold, seed mask after CRF, pseudo-mask after IRN", size=2.1)

# %% [markdown]
# In the easy image the chain works: each line takes in a creature and some ground, and the CRF cuts it back to the color
# edge. In the hard image the crosser's map stays at its head. What lies outside of all lines becomes background, and no
# later step brings the body back: in the CRF the many ground pixels outvote a body of another color than the head, and the
# walk only spreads scores that are there.
#
# The last step is shown on *validation* images, of which the network knows nothing, not even the classes. What does the CRF
# change?

# %% tags=["nbval-ignore-output"]
viz.show_examples(val_data, val_data.ids[:3], {"segmentation": viz.masks_in(predictions.folder / "plain", data),
                                               "segmentation + CRF": viz.masks_in(predictions.folder / "crf", data)},
                  "Three validation images: input, ground truth, DeepLab-v2 without and with the dense CRF", size=2.4)

# %% [markdown]
# The first creature has no head, so nothing tells a striper from a ringer. The network uses both names; the CRF keeps the
# larger region, which is wrong here. In the others it removes crumbs of a third class, in the last the crosser's body too.
#
# ## Two images through every method
#
# Each row is a method: `make smoke` makes the first and the last,
# `snakemake --config preset=smoke methods='[cam,rib,drs,amn,vwe,sccam]'` all. The last is the upper reference, a network
# that learned from the ground truth; it segments *training* images here. Maps show the highest-scoring class. What to look
# for: in the hard image, does any row give the right name?

# %% tags=["nbval-ignore-output", "report"]
overview.show_methods(config, data)

# %% [markdown]
# In the easy image all rows find both creatures. In the hard one AMN's and VWE's masks have the whole crosser, and yet
# nearly every *prediction* calls a part of its body a **checker**, even that of the network that learned from the ground
# truth. Crossers and checkers share a body color, so only the head tells them apart. A segmentation network must carry that
# name over the whole body, and this small one does not. So not every error comes from weak labels. Two images rank no
# methods.
#
# ## Which method should I choose?
#
# A table of scores names no winner (notebook 95). What differs for sure is what a method *needs*. "Because" gives each
# paper's argument, not a result of ours:
#
# | your situation | try | because | price |
# |---|---|---|---|
# | a first result, or a baseline | CAM and IRN | every other method starts from it | the maps cover little of an object |
# | you have saliency maps | DRS | it spreads without care for the outside, which saliency supplies | they come from a network that learned from masks |
# | good seed masks after the CRF, a few masks for a threshold | AMN | it learns from them per pixel, so that one threshold fits all images | a second network; its published threshold costs 8 points here (notebook 40) |
# | a trained classifier, and no second network | RIB | it tunes that classifier for each image | the slowest maps: several training steps an image |
# | classes with several appearances, many images of each | SC-CAM | sub-categories are meant to ask for more than one discriminative region | three rounds of clustering and training |
# | objects with parts of their own texture | VWE | visual words are meant to ask for all textures that come with a class | no help where classes share textures |
# | repeating SC-CAM's published numbers | AffinityNet in place of IRN | that paper used it | its features gained less than a CRF here |
#
# Run CAM as well, with the same seeds, and compare as notebook 95 does.
#
# ## Results of this run
#
# *mIoU* is the mean overlap with the ground truth over all classes. Column `truth` is no weakly-supervised result. "CAM at
# its best threshold" means the maps of the column's method. How to read it: follow one column from top to bottom.
# `python -m wsss_lib.results runs/toy` prints a table, with the spread over seeds and what masks have chosen.

# %% tags=["nbval-ignore-output"]
rows = results.summarize(results.collect(run_folder_of(config)))
print(f"{len(rows)} scores of {len({row['method'] for row in rows})} methods")

# %% tags=["nbval-ignore-output", "report"]
overview.show_scores(rows)

# %% [markdown]
# All numbers are means over three seeds. CAM's maps and initial seed masks score nearly the same (52.0 and 51.1), since the
# masks are the maps at a fixed threshold. The CRF lifts them to 62.6. IRN's 65.3 is no better than a CRF at its own best
# threshold (notebook 80), and below the seed masks of RIB, AMN and VWE with one. DeepLab's 58.0 (63.9 with its CRF) is
# measured on `val`, without labels. Trained on the ground truth, it reaches 78.3 (83.5). The difference is what *this
# chain* loses, not what image-level labels cost: from the same labels AMN's and VWE's chains end at 72.
#
# **Compare two columns with care.** AMN's maps have a CRF inside: they learned from masks after it. DRS has 39.7 without
# saliency and 72.4 with it. AMN and VWE have seed thresholds of their own, which masks have chosen; the others have CAM's
# 0.15. RIB's maps are ahead of CAM's at 0.15 and behind them at 0.11 (notebook 20). Where no mask chooses, 0.15 costs AMN
# 18.3 points of its best, DRS 13.4 and the others at most 1.5 (notebook 95).
#
# ## Parameters
#
# Every notebook has one cell of parameters and takes all fields of `wsss_lib.config.Config`. papermill runs it with other
# values: `papermill notebooks/80_irn.ipynb out.ipynb -f configs/voc12.yaml -p seed 1`;
# `snakemake --cores 2 --config preset=smoke limit=300 runs_root=runs/few` sets them for all notebooks of a run. The presets
# in `configs/` are `smoke` (these generated images), `voc12-small` (real images on a laptop), `voc12` and `coco14` (the
# papers' sizes). `lessons=false` leaves out the cells that only teach (`# needs lessons`) and changes no result. Unknown
# names and unfit values are refused:

# %%
for wrong in ({"sed": 1}, {"cam_epochs": "many"}, {"dataset": 2007_000032}):
    try:
        Config.from_values(wrong)
    except ValueError as error:
        print(error)

# %% [markdown]
# ## A stage's folder
#
# Results lie in `runs/<dataset>/<method>/seed<k>/<stage>/`. `run.json` is written last and says how everything was made; a
# stage without it goes on where it stopped. Results of earlier parameters or inputs are kept as `<stage>.<key>` and come
# back with them. `python -m wsss_lib.runs runs/toy` lists all results, and removes those you name.

# %%
record = pseudo_masks.files.record()
for name in ("parameters", "inputs"):
    print(f"{name}:", ", ".join(sorted(record[name])))
print("run.json also holds:", ", ".join(sorted(set(record) - {"parameters", "inputs"})))

# %% [markdown]
# ## Sliders
#
# In JupyterLab some figures have sliders; no result depends on one. What to look for: at a low threshold the mask floods the
# background, at a high one it shrinks to the heads.

# %% tags=["nbval-ignore-output"]
def draw(threshold=config.seed_threshold, others=()):
    """Show the masks that thresholds make of the easy image's map."""
    columns = {"CAM": viz.highest_scores(maps.folder)}
    columns |= {f"threshold {value:.2f}": mask_at(maps.folder, value) for value in (threshold, *others)}
    viz.show_examples(data, chosen[:1], columns, f"The map of {chosen[0]} and its mask: {', '.join(list(columns)[1:])}", size=2.1)


widgets.explore(lambda threshold=config.seed_threshold: draw(threshold), threshold=(0.0, 0.9, 0.05))
draw(0.05, (config.seed_threshold, 0.5))

# %% [markdown]
# ## Glossary
#
# | word | meaning |
# |---|---|
# | image-level label | the classes in an image; 0 or 1 for each |
# | head, body | parts of the generated creatures; real data have no masks of parts |
# | CAM | class activation map: a classifier's evidence for a class at each position, in [0, 1]; also the map of any method |
# | background threshold | the background's score: a pixel where no class exceeds it is background |
# | initial seed mask | label map from CAMs by a background threshold (and a CRF) |
# | seed | a run's random seed, and nothing else |
# | discriminative region | the part of an object that tells a classifier its class, such as a head |
# | ground truth | masks drawn by people; read to score, never to train (except method `truth`) |
# | logits | a network's scores before sigmoid or softmax |
# | pseudo-mask, pseudo-label | refined label map that trains the segmentation network |
# | boundary map | probability of a class boundary at a position (IRN) |
# | displacement | vector toward the object's center (IRN) |
# | affinity | how likely two positions belong to the same class |
# | random walk | scores flow step by step between positions of high affinity, and spread over an object |
# | saliency map | which pixels stand out, of whatever class |
# | unknown (ignore), 255 | pixels without a label; left out of every loss, and of scores where the *ground truth* has them; in a prediction they count as background |
# | train / train_aug / val | VOC 2012: 1,464 images / 10,582 with SBD's / 1,449 |
# | IoU | intersection over union of one class: pixels in both prediction and ground truth, divided by those in either |
# | mIoU | mean IoU over background and classes, counted over all images of the split together |
# | boundary IoU | IoU of the masks' inner edges only; notebook 95 |
# | dense CRF | a model of all pixel pairs that moves label edges to color edges |
# | stage | a step of the chain with a folder of its own |
# | preset, smoke | a file of parameters in `configs/`; the one for generated images |
#
# ## Which notebook next?
#
# To learn, read the chain (02, 10, 70, 80, 90), then a method (20 to 60; 01 goes with 20, and 75 is the older alternative
# to 80). 96 compares the methods on photographs, 99 takes your own. To reproduce a paper, one command runs the chain for a preset (README). To
# add a method, write maps in the format of notebook 10, which all later steps take
# ([docs/adding_a_method.md](../docs/adding_a_method.md)).

# %% tags=["nbval-ignore-output"]
run(comparison.OVERVIEW, config)
print("The overview is complete.")
