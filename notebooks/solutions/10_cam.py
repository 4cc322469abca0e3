# %% [markdown]
# # Solutions of 10 · Class activation maps
#
# The exercises of [notebook 10](../10_cam.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
import numpy as np

from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** The maps are divided by their maximum, so every class of the label gets a score of 1 somewhere, even if
# the classifier does not believe in it. Write a function that returns how many of an image's present classes have a probability below
# one half.
#
# **Answer.** Both conditions in one mask, counted.

# %%
def unbelieved_classes(probabilities, label):
    """probabilities: float (C,), label: 0/1 (C,). Return an int."""
    return int(((probabilities < 0.5) & (label == 1)).sum())


widgets.check(unbelieved_classes(np.array([0.9, 0.2, 0.4]), np.array([1, 1, 0])), "ea26f6feae2e", "exercise 1")

# %% [markdown]
# **Exercise 2.** With stride 16 and an image of 375 x 500 pixels, how many positions has the feature map at scale 2.0? (Sides are
# rounded up.)
#
# **Answer.** 750 x 1000 pixels at scale 2; 750 / 16 = 46.9 and 1000 / 16 = 62.5, rounded up.

# %%
positions = int(np.ceil(2 * 375 / 16) * np.ceil(2 * 500 / 16))
widgets.check(positions, "f646c2b12878", "exercise 2")
