# %% [markdown]
# # Solutions of 75 · AffinityNet
#
# The exercises of [notebook 75](../75_affinitynet.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
import numpy as np

from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** A photograph of 375 x 500 pixels at stride 8 (sides rounded up). How many entries has the dense matrix?
#
# **Answer.** One row and one column for each cell.

# %%
entries = (47 * 63) ** 2
widgets.check(entries, "8779232955c7", "exercise 1")

# %% [markdown]
# **Exercise 2.** How many pairs has a training crop of 56 x 56 cells with radius 5? (34 directions; sources as in section 6.)
#
# **Answer.** Sources need four cells to the left, to the right and below: 52 rows and 48 columns.

# %%
number_of_pairs = (56 - 4) * (56 - 8) * 34
widgets.check(number_of_pairs, "f58a8432545f", "exercise 2")

# %% [markdown]
# **Exercise 3.** A pixel has the map values 0.5 and 0.2. Write a function that returns the alpha at which background and strongest class
# are equal.
#
# **Answer.** $(1 - \max)^\alpha = \max$, so $\alpha = \log\max / \log(1 - \max)$.

# %%
def break_even(values):
    """values: a list of map values, the largest strictly between 0 and 1. Return a float."""
    return float(np.log(max(values)) / np.log(1 - max(values)))


widgets.check(break_even([0.5, 0.2]), "113ee1b66ac9", "exercise 3")
