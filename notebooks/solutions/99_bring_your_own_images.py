# %% [markdown]
# # Solutions of 99 · Bring your own images
#
# The exercises of [notebook 99](../99_bring_your_own_images.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
import numpy as np

from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** Which classes occur in one photograph only? Write a function that returns how many of them a label table has.
#
# **Answer.** Column sums are the numbers of photographs.

# %%
def classes_seen_once(labels):
    """labels: 0/1 (N, C). Return an int."""
    return int((labels.sum(0) == 1).sum())


widgets.check(classes_seen_once(np.array([[1, 0, 1], [0, 0, 1], [0, 1, 0]])), "fc048292daa7", "exercise 1")

# %% [markdown]
# **Exercise 2.** Two classes of a data set occur in exactly the same photographs. How many different maps can any method that
# sees only these labels justify for the two: one or two?
#
# **Answer.** Nothing in the labels tells the two apart, so no map can be right about one and not about the other.

# %%
maps_justified = 1
widgets.check(maps_justified, "61fc910ff9f8", "exercise 2")
