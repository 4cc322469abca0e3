# %% [markdown]
# # Solutions of 20 · RIB: reducing the information bottleneck
#
# The exercises of [notebook 20](../20_rib.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
import numpy as np

from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** A raw map of two rows and two columns is [[6, 2], [1, -1]]. What is its pooled logit (code's form) with $\tau = 0.4$?
#
# **Answer.** The peak is 6, so positions above $0.4 \cdot 6 = 2.4$ are dropped; 2, 1 and -1 stay, and the code divides by all four positions: 2 / 4.

# %%
pooled_logit = (2 + 1 - 1) / 4
widgets.check(pooled_logit, "32db298d6c6d", "exercise 1")

# %% [markdown]
# **Exercise 2.** How many files of companions does the official program decode for VOC's 10,582 training images, with 20 companions and ten
# steps?
#
# **Answer.** 20 companions in each of ten steps, for every image: two million files. Keeping decoded images in memory is what makes it bearable.

# %%
files = 10_582 * 20 * 10
widgets.check(files, "715af2ff481d", "exercise 2")

# %% [markdown]
# **Exercise 3.** Which rows of a label table may be companions of an image? Write it as one line of NumPy.
#
# **Answer.** No class in common: the dot product of both label rows is 0.

# %%
def may_be_companions(labels, label):
    """labels: 0/1 (N, C), label: 0/1 (C,). Return a list of row numbers."""
    return np.flatnonzero(labels @ label == 0).tolist()


widgets.check(may_be_companions(np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]]), np.array([1, 0, 0])), "bc950c9e61a0", "exercise 3")
