# %% [markdown]
# # Solutions of 50 · Visual words: VWE and VWL
#
# The exercises of [notebook 50](../50_vwe.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
import numpy as np

from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** A feature map has 12 x 12 positions and 20 channels. At most how many positions win in at least one
# channel, if the maxima over the grid of 2 x 2 blocks are taken?
#
# **Answer.** 2 x 2 blocks are four winners a channel; they are different positions for 20 channels at most.

# %%
winners = 4 * 20
widgets.check(winners, "2436272adf95", "exercise 1")

# %% [markdown]
# **Exercise 2.** All $K = 256$ words have the same cosine to every position of a 32 x 32 map. What is each entry of the
# histogram $H$?
#
# **Answer.** Equal cosines give every word the same fraction of every position: 32 x 32 / 256.

# %%
entry_of_histogram = 32 * 32 / 256
widgets.check(entry_of_histogram, "306781a98195", "exercise 2")

# %% [markdown]
# **Exercise 3.** Write the fraction of dead words: words that no image of a data set has, from the labels $w$ of its images.
#
# **Answer.** A word is dead if its column has no 1.

# %%
def dead_fraction(labels):
    """labels: 0/1 (images, K). Return a float in 0..1."""
    return float((labels.sum(0) == 0).mean())


widgets.check(dead_fraction(np.array([[1, 0, 0, 1], [1, 0, 1, 0]])), "2ebc7e0f07c1", "exercise 3")
