# %% [markdown]
# # Solutions of 80 · Inter-pixel relations: IRN
#
# The exercises of [notebook 80](../80_irn.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
import torch

from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** The paper trains with radius 10 on maps of 128 x 128 cells. How many pairs has one image? (Rows of
# sources times columns of sources times directions; the neighborhood reaches 9 cells to the left, to the right and
# down.)
#
# **Answer.** 128 - 9 rows, 128 - 18 columns, 152 directions.

# %%
number_of_pairs = (128 - 9) * (128 - 2 * 9) * 152
widgets.check(number_of_pairs, "c96471076481", "exercise 1")

# %% [markdown]
# **Exercise 2.** Three cells in a row, no boundary, radius 2. The score is 1 in the left cell and 0 in the others.
# Which value has every cell after infinitely many steps? (The limit is a mean weighted with the column sums of $A$.)
#
# **Answer.** Column sums of A are 2, 3 and 2: the ends have one neighbor and themselves. The left cell's 1 counts with 2 of 7.

# %%
limit = 2 / (2 + 3 + 2)
widgets.check(limit, "2e0bcf56e0d1", "exercise 2")

# %% [markdown]
# **Exercise 3.** Write a function that returns which classes of an image vanish for a given threshold.
#
# **Answer.** All maps are divided by one maximum; a class whose own peak stays below the threshold then loses to the background everywhere.

# %%
def vanished(walk, classes, threshold):
    """walk: float (K, h, w) with a positive maximum, classes: list of K integers. Return a list of integers."""
    peaks = walk.flatten(1).amax(1) / walk.max()
    return [number for number, peak in zip(classes, peaks, strict=True) if peak < threshold]


example = torch.tensor([0.8, 0.1, 0.3]).view(3, 1, 1)
widgets.check(vanished(example, [4, 7, 9], 0.25), "0105faa19e30", "exercise 3")
