# %% [markdown]
# # Solutions of 02 · Data sets and labels
#
# The exercises of [notebook 02](../02_datasets_and_labels.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
import numpy as np

from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** VOC's classes are in alphabetical order; *dog* is class 11, counted from 0. Which value has a dog's
# pixel in a mask?
#
# **Answer.** Masks count the background as 0, so class $i$ has the value $i + 1$.

# %%
value = 11 + 1
widgets.check(value, "e7e1e76633b2", "exercise 1")

# %% [markdown]
# **Exercise 2.** Write the label by mask: the 0-based classes that a mask shows, as a sorted list of ints.
#
# **Answer.** 0 is the background and 255 is unknown; neither is a class.

# %%
def classes_in_mask(mask):
    """mask: uint8 (H, W), 0 background, i + 1 for class i, 255 unknown. Return a list of ints."""
    return [int(value) - 1 for value in np.unique(mask) if value not in (0, 255)]


widgets.check(classes_in_mask(np.array([[0, 3, 3], [255, 1, 0]], np.uint8)), "e736858dc6c1", "exercise 2")

# %% [markdown]
# **Exercise 3.** From a label matrix (images in rows, classes in columns), in how many images are the classes `a` and
# `b` both present? Use no loop.
#
# **Answer.** A product of two 0/1 columns is 1 where both are.

# %%
def images_with_both(label_matrix, a, b):
    """label_matrix: 0/1 (N, C). Return an int."""
    return int((label_matrix[:, a] * label_matrix[:, b]).sum())


widgets.check(images_with_both(np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]]), 0, 1), "1055b9629b9f", "exercise 3")
