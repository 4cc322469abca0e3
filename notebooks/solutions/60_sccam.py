# %% [markdown]
# # Solutions of 60 · SC-CAM: sub-categories
#
# The exercises of [notebook 60](../60_sccam.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** VOC has 20 classes, 10,582 images and 16,458 labels. With $K = 10$: how many of the
# $10{,}582 \times 200$ sub-category labels are 1? Give the fraction in percent.
#
# **Answer.** Every label turns into exactly one sub-category of its class: as many ones as labels, in a table ten times as wide.

# %%
fraction = 100 * 16458 / (10582 * 200)
widgets.check(fraction, "ba267e356d26", "exercise 1")

# %% [markdown]
# **Exercise 2.** Purity can always be raised by taking more clusters. Write a function that returns the purity when every image has a
# cluster of its own.
#
# **Answer.** A cluster of one image has one kind: 1, always. So purity may only be compared at one number of clusters.

# %%
def purity_of_hermits(truth):
    """truth: a list of kinds, at least one. Return a float."""
    return 1.0


widgets.check(purity_of_hermits(["round", "long", "long"]), "aa9c63c8a5c5", "exercise 2")

# %% [markdown]
# **Exercise 3.** Class 3 has sub-category 7 of $K = 10$. Which output of the sub-category head is that? And whose output is number 142?
#
# **Answer.** Output $kK + j$ belongs to class $k$ and sub-category $j$; division with remainder turns it round.

# %%
output, owner = 3 * 10 + 7, divmod(142, 10)
widgets.check(output, "50ed5233d9ff", "exercise 3, first part")
widgets.check(owner, "9ebe12d86ca5", "exercise 3, second part")
