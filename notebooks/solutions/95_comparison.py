# %% [markdown]
# # Solutions of 95 · All methods side by side
#
# The exercises of [notebook 95](../95_comparison.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
import numpy as np

from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** Method A has 50, 40 and 60 % with seeds 0, 1, 2, and method B 52, 43 and 61 %. Write a function that returns the mean gain
# of B over A divided by the sample standard deviation of the three gains.
#
# **Answer.** The gains are 2, 3 and 1: mean 2, spread 1. The methods' own spreads of 10 and 9 points do not enter.

# %%
def gain_over_spread(a, b):
    """a, b: lists of floats, seed by seed. Return a float."""
    gains = np.array(b) - np.array(a)
    return float(gains.mean() / gains.std(ddof=1))


widgets.check(gain_over_spread([50.0, 40.0, 60.0], [52.0, 43.0, 61.0]), "1a0069739fe0", "exercise 1")

# %% [markdown]
# **Exercise 2.** Both methods have a spread of about 10 points over their seeds. Does it follow that B's gain is luck?
# Answer "yes" or "no".
#
# **Answer.** The spread is common to both: a lucky classifier helps them alike. The gains, seed by seed, are what counts.

# %%
answer = "no"
widgets.check(answer, "3154a2c96a48", "exercise 2")

# %% [markdown]
# **Exercise 3.** One table line has CAM's mIoU on the 1,464 images of `train`, the other a method's on the 10,582 of `train_aug`. Which
# function of this notebook refuses them? Answer with its name.
#
# **Answer.** It compares split, number of images and CRF of all rows of a line.

# %%
name_of_function = "side_by_side"
widgets.check(name_of_function, "9cf868953945", "exercise 3")
