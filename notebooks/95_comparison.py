# %% [markdown]
# # 95 · All methods side by side
#
# *In: every finished stage of a run, of all methods and seeds. Out: one comparison that mixes nothing, and what it does not say.*
#
# | | |
# |---|---|
# | **Needs** | at least one finished method, e.g. `make smoke`; more: `snakemake --config preset=smoke methods='[cam,rib,drs,amn,vwe,sccam]' seeds='[0,1,2]'` |
# | **Writes** | `report/seed0/comparison/` |
# | **Time and memory** | on one CPU core about 2 seconds for each method, stage and seed; below 1 GB |
# | **Paper** | Cheng, Girshick, Dollár, Berg, Kirillov, *Boundary IoU: Improving Object-Centric Image Segmentation Evaluation*, CVPR 2021; Choe, Oh, Lee, Chun, Akata, Shim, *Evaluating Weakly Supervised Object Localization Methods Right*, CVPR 2020 |
#
# **What the stored tables show.** They hold *three* seeds, on generated images; a gain is over CAM of the same seed.
#
# * At their best thresholds, the maps of VWE gain 4.9 ± 0.4 points, those of RIB 0.4 ± 0.5; SC-CAM's lose 2.0 ± 1.8, and DRS's,
#   before saliency cuts them, 12.3 ± 2.8.
# * AMN's maps gain 25.1 ± 3.3, but hold a CRF. On 100 images of seed 0 CAM with a CRF has 70.0 % at its own threshold, AMN with
#   another CRF 84.7 % (section 8).
# * RIB's gain of 4.3 ± 0.2 points at the inherited threshold, with a CRF, is the threshold's: at their best ones both have 70
#   %.
# * At the end of the chain gains are large and unsure: VWE 8.1 ± 6.9, AMN 8.0 ± 7.1, DRS with saliency 12.2 ± 8.2, RIB 2.0 ±
#   2.7, SC-CAM -6.8 ± 6.3. With seed 2, whose CAM is best, AMN and VWE gain nothing.
# * IRN's masks score below the seed masks with a CRF for all methods but CAM, whose CRF stands at an inherited threshold.
# * The same network reaches 83.5 ± 1.9 % when it learns from the ground truth.
#
# Three seeds are few, and some methods' values were tried with more care than others': this is no ranking.
#
# **Goals.** After this notebook you can
#
# 1. read a table of results and name what must be equal before two of its numbers may be compared,
# 2. tell a gain from luck by the seeds that two methods share,
# 3. say which scores the mean IoU hides: classes, boundaries, the choice of a threshold, and cost.

# %% tags=["parameters"]
dataset = "toy"  # name of the run's folder below runs_root
data_root = "data/toy"  # VOC devkit folder
labels = ""  # table of image-level labels; empty: data_root/labels.csv
mask_folder = "SegmentationClass"  # ground truth below data_root
runs_root = "runs"  # where the finished runs are
score_split = "train"  # the split of maps, seed masks and pseudo-masks
val_split = "val"  # the split of the segmentation networks
limit = 0  # as in the runs
lessons = True  # False: cells that train or score only to teach are left out; the results are the same
seed_threshold = 0.15  # a background threshold that no mask has chosen, for section 8

# %%
import numpy as np
from scipy.ndimage import binary_erosion

from wsss_lib import comparison, pipeline, results, viz, widgets
from wsss_lib.config import Config
from wsss_lib.core.stage import run, run_folder_of
from wsss_lib.core.store import finished_stages
from wsss_lib.data.dataset import open_data
from wsss_lib.ops.metrics import BoundaryEvaluation

config = Config.from_notebook(globals())
viz.use_style()

# %% [markdown]
# If nothing is finished, the next cell says what to run.

# %%
finished, rows = finished_stages(run_folder_of(config)), results.collect(run_folder_of(config))
if not finished:
    raise RuntimeError(f"{run_folder_of(config)}: no finished stage with scores; run `make smoke`, or notebook 10_cam and those after it")
whole = {name: open_data(config, name).scored() for name in dict.fromkeys((config.score_split, config.val_split))}
widgets.leave_out_cells(config, *whole.values())
print("splits:", ", ".join(f"{name} with {len(data)} images" for name, data in whole.items()))

# %% [markdown]
# ## 1 What is finished
#
# A cell lists the seeds. A dash is a run that nobody has made, not a failure. `truth` is DeepLab trained on the ground truth.

# %% tags=["nbval-ignore-output"]
methods = sorted({name for name, _ in finished}, key=results.place_of_method)
names = [name for name in dict.fromkeys(stage.name for stage in pipeline.STAGES) if any(name in group for group in finished.values())]
results.show_table(["method", *names],
      [[method, *(" ".join(str(seed) for (name, seed), group in finished.items() if name == method and stage in group) or "–"
                  for stage in names)] for method in methods])

# %% [markdown]
# ## 2 Counted anew
#
# Here *one* piece of code gives all label maps a mean IoU, precision and recall, the IoU of every class, and a score of the
# boundaries, on at most 300 evenly spaced images of each split. Where these are all images, the mean IoU must be that of the
# stage's record.

# %% tags=["nbval-ignore-output"]
counted = run(comparison.COMPARISON, config).metrics

# %%
# needs masks
on_all_images = [row for row in counted if row["images"] == row["of_images"]]
assert all(abs(row["miou"] - row["recorded"]) < 0.02 for row in on_all_images)
print("where all images are counted, the mean IoU is that of the stage's record")

# %% [markdown]
# ## 3 Side by side
#
# The table holds the stages' own numbers, on all images: mean and sample standard deviation over the seeds, and in brackets how
# many. **Two things are not equal.** AMN's network learned from CAM's seed masks after the CRF, so compare its 77.1 % with 62.6
# %, too. And AMN (0.40) and VWE (0.20) have their own seed thresholds, chosen with masks of these images, where CAM has 0.15
# and loses 4 points with a CRF by it (section 8). DRS's pseudo-labels need saliency, here drawn from the ground truth.

# %% tags=["nbval-ignore-output"]
# needs masks
comparison.check_settings(finished)
scored = comparison.side_by_side(rows)
place = {row["what"]: f"{row['split']}, {row['images']} images" for row in rows}
lines = [what for what in pipeline.ROWS if what in scored]
results.show_table(["mIoU %", "scored on", *methods],
      [[what, place[what], *(comparison.cell_text(scored[what].get(method)) for method in methods)] for what in lines])

# %% [markdown]
# ## 4 Mixed comparisons are refused
#
# The function behind this table takes only rows that were scored on the same split and the same number of images, all with or
# all without a CRF. These tables would look as good and be wrong:

# %%
example = {"what": "CAM seed", "split": "train", "images": 1464, "crf": False, "seed": 0, "method": "cam", "miou": 48.3}
for other in ({"images": 10582}, {"split": "val", "images": 1449}, {"crf": True}):
    try:
        comparison.side_by_side([example, example | {"method": "yours"} | other])
    except ValueError as error:
        print(error)

# %% [markdown]
# `check_settings`, called above, refuses a mean over seeds whose runs differ in any other parameter in `run.json`.
#
# ## 5 Gains, seed by seed
#
# All methods of a seed start from the same classifier of notebook 10. So what does a method gain *over plain CAM of the same
# seed*? The luck of that classifier drops out of the difference; that of the method's own training does not. If a method did
# nothing, the gains of three seeds would still be **all of one sign in a quarter of the cases** (2 of 8). What to look for:
# where does a gain stop being larger than its spread?

# %% tags=["nbval-ignore-output"]
# needs masks
results.show_table(["gain over CAM, points", "method", "seed by seed", "mean ± spread", "all of one sign?"],
      comparison.gain_table({what: scored[what] for what in lines}))

# %% tags=["nbval-ignore-output"]
# needs masks
gained = comparison.gains(scored[lines[0]])
others = sorted(gained, key=results.place_of_method)
of_seed = {f"seed {seed}": [gained[name].get(seed, np.nan) for name in others] for seed in sorted({seed for cell in gained.values() for seed in cell})}
viz.show_panels([viz.curves(range(len(others)), of_seed, f"{lines[0]}: gain over CAM", xticks=range(len(others)), xticklabels=others,
                            ylabel="points", level=0)],
                f"{lines[0]}, gain over CAM of the same seed in points: " + "; ".join(
                    f"{name} {' / '.join(f'{value:+.1f}' for value in gained[name].values())}" for name in others), size=(8, 3.2))

# %% [markdown]
# In the maps gains are alike from seed to seed (RIB with a CRF: 4.5, 4.3, 4.2). At the end of the chain they are not, for every
# step adds luck of its own. AMN's last row ends 0.2 points below CAM's with seed 2; in an earlier run, whose masks scored the
# same within 0.1 points, it ended 6 points higher.
#
# ## 6 Classes, precision and recall
#
# A mean can hide that a method wins on one class and loses on another. The IoU is at the maps' best threshold; darker is lower.
# What to look for: is one class hardest for every method?

# %% tags=["nbval-ignore-output"]
# needs masks
names = ("background", *whole[config.score_split].classes)
class_iou = comparison.mean_over_seeds(counted, "CAM at its best threshold", "class_iou")
best, worst = ({method: names[1 + int(chosen(values[1:]))] for method, values in class_iou.items()} for chosen in (np.nanargmax, np.nanargmin))
viz.show_panels([viz.matrix(np.array(list(class_iou.values())), list(class_iou), names, "IoU % of each class", limits=(0, 100))],
                "Table of IoU by method and class; best and worst class: "
                + "; ".join(f"{method} {best[method]} and {worst[method]}" for method in class_iou),
                size=(1.2 + 0.75 * len(names), 1.2 + 0.4 * len(class_iou)))

# %% [markdown]
# Yes, the checker, whose body has the crosser's color.
#
# Precision says how much of what was marked is right, recall how much of the object was marked. At its best threshold CAM has
# 61.4 and 77.0 %. Means over the classes:

# %% tags=["nbval-ignore-output"]
# needs masks
results.show_table(["what", "method", "precision %", "recall %", "mIoU %", "boundary IoU %", "seeds"], comparison.counted_table(counted, lines))

# %% [markdown]
# ## 7 Boundaries
#
# The inside of an object has many pixels and is easy, its edge has few and is hard; so the mean IoU hardly notices a careless
# edge. *Boundary IoU* compares only the inner edges of both masks, as wide as 2 % of the image's diagonal. In ten lines:

# %%
truth = np.zeros((96, 96), np.uint8)
truth[20:70, 25:75] = 1
shifted = np.roll(truth, 3, axis=1)
width = round(0.02 * np.hypot(96, 96))
square = np.ones((3, 3), bool)
edge, shifted_edge = ((mask == 1) & ~binary_erosion(mask == 1, square, iterations=width) for mask in (truth, shifted))
by_hand = (edge & shifted_edge).sum() / (edge | shifted_edge).sum()
evaluation = BoundaryEvaluation(2)
evaluation.add(truth, shifted)
assert np.isclose(evaluation.miou, by_hand)
plain = (truth & shifted).sum() / (truth | shifted).sum()
print(f"a square moved by 3 of 96 pixels: IoU {100 * plain:.0f} %, boundary IoU {100 * by_hand:.0f} %")

# %% tags=["nbval-ignore-output"]
# needs masks
marks = {split: {} for split in (config.score_split, config.val_split)}
for what in lines:
    inside, edges = (comparison.mean_over_seeds(counted, what, value) for value in ("miou", "boundary_iou"))
    marks[place[what].split(",")[0]][what] = [(method, inside[method], edges[method]) for method in inside]
highest = max(((*mark, what) for groups in marks.values() for what, group in groups.items() for mark in group), key=lambda mark: mark[2])
viz.show_panels([viz.points(groups, xlabel=f"mIoU % ({split})", ylabel="boundary IoU %") for split, groups in marks.items()],
                f"Boundary IoU against mean IoU, one mark for each method and stage; {highest[3]} of {highest[0]} has the best edges, "
                f"{highest[2]:.1f} %", size=(4.5, 4))

# %% [markdown]
# Marks of like mean IoU lie at different heights: VWE's seed mask + CRF has 74.6 and 40.0 %, its IRN pseudo-mask 72.0 and 20.8
# %. The dense CRF (notebook 70) moves label edges to color edges; a random walk at stride 4 cannot draw a finer edge than its
# grid.
#
# ## 8 How much the threshold matters
#
# The *best* threshold is chosen with the ground truth. Two numbers say how much a method leans on that: what it loses at a
# threshold that no mask has chosen, and how wide the range is that loses at most 2 points. ("Lowest seed" in the figure is the
# smallest number.)

# %% tags=["nbval-ignore-output"]
# needs masks
results.show_table(["method", "best mIoU %", "best threshold, seed by seed", f"points lost at {config.seed_threshold}",
       "width of the range within 2 points", "seeds"], comparison.threshold_table(finished, config.seed_threshold))

# %% tags=["nbval-ignore-output"]
# needs masks
curves = {}
for name, seed in sorted(finished, key=lambda run: (results.place_of_method(run[0]), run[1])):
    for row in finished[name, seed]["maps"].metrics() if "maps" in finished[name, seed] else ():
        curves.setdefault(name, row)  # of the lowest seed
viz.show_threshold_curves(curves, "Curves of mIoU over the threshold; best at "
                          + ", ".join(f"{row['threshold']:.2f} for {name}" for name, row in curves.items()),
                          "mIoU of the maps over the threshold, lowest seed of each method", {"threshold of the seed masks": config.seed_threshold})

# %% [markdown]
# The peaks lie apart. At 0.15 AMN loses 18.3 points on average and DRS 13.4, the others at most 1.5. A comparison at *one*
# threshold praises the method whose peak is there; one at each method's best praises the method that profits most from being
# tuned. A table must say which it is.
#
# ### The same with a CRF
#
# In use a dense CRF corrects a thresholded map and gives back much of what a wrong threshold has taken. AMN's maps *hold* a CRF
# already, that of the seeds which its network learned. So the fair neighbor of AMN is CAM with a CRF, at its own threshold.
# What to look for at seven thresholds: which methods differ at every one, and which only at the inherited one?

# %% tags=["nbval-ignore-output"]
# needs masks, lessons
at, few = [0.05, 0.08, 0.11, 0.15, 0.2, 0.3, 0.45], comparison.evenly_spaced(whole[config.score_split], 100)
refined = {name: comparison.curve_with_crf(few, finished[name, seed]["maps"].folder, at)
           for name, seed in sorted(finished, key=lambda run: (results.place_of_method(run[0]), run[1])) if seed == min(
               other for method, other in finished if method == name) and "maps" in finished[name, seed]}
viz.show_panels([viz.curves(at, refined, f"{len(few)} images, with the CRF", marks={"threshold of the seed masks": config.seed_threshold},
                            xlabel="threshold", ylabel="mIoU %", xlim=(0.03, 0.47))],
                "mIoU after the CRF over the threshold; best: " + ", ".join(f"{name} {max(line):.1f} %" for name, line in refined.items()), size=(8, 3.6))

# %% tags=["nbval-ignore-output"]
# needs masks, lessons
here = int(np.argmin(np.abs(np.array(at) - config.seed_threshold)))
results.show_table(["method", f"with CRF at {at[here]}", "at its best threshold", "which is"],
                   [[name, f"{line[here]:.1f}", f"{max(line):.1f}", f"{at[int(np.argmax(line))]}"] for name, line in refined.items()])

# %% [markdown]
# At the inherited 0.15 RIB is 4.2 points ahead of CAM (69.9 and 65.7 %). At 0.08, which suits it better, CAM has 70.0 %: **that gain was
# the threshold's, not RIB's.** VWE stays 5 points ahead of CAM when both are at their best, AMN 15. DRS is not made for this use.
#
# **Try it.** Move the threshold that all methods share, and watch the order change.

# %% tags=["nbval-ignore-output"]
# needs masks
def draw(threshold=config.seed_threshold):
    """Show what every method reaches at one common threshold."""
    reached = {name: float(np.interp(threshold, row["thresholds"], row["curve"])) for name, row in curves.items()}
    ranked = dict(sorted(reached.items(), key=lambda pair: -pair[1]))
    viz.show_bars(ranked, f"Bars at the common threshold {threshold:.2f}: " + ", ".join(f"{name} {value:.1f} %" for name, value in ranked.items()),
                  f"all maps at threshold {threshold:.2f}")


widgets.explore(draw, threshold=(0.02, 0.9, 0.02))
draw()

# %% [markdown]
# ## 9 Cost
#
# Other programs lengthen a stage's seconds, so its fastest run counts. A method's cost is the sum of *its own* stages up to its maps, beside
# CAM's classifier: 55 s for AMN, 72 s for RIB and 85 s for SC-CAM.

# %% tags=["nbval-ignore-output"]
results.show_table(["method", "stage", "seconds, fastest run", "all runs, fastest first", "images/s", "peak memory, MiB", "device"],
      comparison.cost_table(finished))

# %% [markdown]
# ## 10 Published values
#
# The table quotes what the papers report for the full VOC 2012 (RIB also for COCO), on which data the networks were trained
# before, and where masks had a part other than in scoring. Our number stands beside theirs only if it was scored on the same
# images.

# %% tags=["nbval-ignore-output"]
results.show_table(["method", "what", "split", "published", "ours", "start", "pixel labels", "source"],
      comparison.published_table(results.summarize(rows), config.dataset))

# %% [markdown]
# ## 11 What these tables say, and what they do not
#
# They say what each method did *on these images, with these networks, at these settings*. **They do not say**
#
# * *which method is best on VOC.* The smoke networks are small and trained from scratch; a method that needs a strong
#   classifier cannot show here what it can do.
# * *that the settings are equally good.* Learning rates and thresholds at smoke size were tried with masks in view, more for
#   some methods than for others ([docs/results.md](../docs/results.md)).
# * *that a better map makes a better network.* Read down a column: RIB is above CAM in the maps and below it after IRN.
# * *that DRS is weak or strong.* Its maps are made to be cut by a saliency map; its pseudo-labels (72.4 %) use saliency maps,
#   which are additional supervision.
# * *that a gain is not luck.* With three seeds a spread is itself uncertain by about half. The mean gain of $n$ seeds with
#   spread $s$ is known to $\pm t s/\sqrt n$ (95 %, Student's $t$): three seeds give $\pm 2.5\,s$, and one point at a spread of
#   one point takes seven.
#
# ## 12 Summary and exercises
#
# * Compare what was scored on the same images, at the same stage, with or without a CRF, from the same start.
# * Gains over the same seed's CAM say more than means over seeds, if there are enough seeds.
# * Classes, edges, thresholds and cost are what one number hides.
# * Next: notebook 99 brings your own images; `docs/adding_a_method.md` your own method.
#
# **Exercise 1.** Method A has 50, 40 and 60 % with seeds 0, 1, 2, and method B 52, 43 and 61 %. Write a function that returns the mean gain
# of B over A divided by the sample standard deviation of the three gains.

# %%
def gain_over_spread(a, b):
    """a, b: lists of floats, seed by seed. Return a float."""
    return None  # your code


widgets.check(gain_over_spread([50.0, 40.0, 60.0], [52.0, 43.0, 61.0]), "1a0069739fe0", "exercise 1")

# %% [markdown]
# **Exercise 2.** Both methods have a spread of about 10 points over their seeds. Does it follow that B's gain is luck?
# Answer "yes" or "no".

# %%
answer = None  # "yes" or "no"
widgets.check(answer, "3154a2c96a48", "exercise 2")

# %% [markdown]
# **Exercise 3.** One table line has CAM's mIoU on the 1,464 images of `train`, the other a method's on the 10,582 of `train_aug`. Which
# function of this notebook refuses them? Answer with its name.

# %%
name_of_function = None  # your answer, a text
widgets.check(name_of_function, "9cf868953945", "exercise 3")

# %% [markdown]
# The sources of the published values stand beside them.
