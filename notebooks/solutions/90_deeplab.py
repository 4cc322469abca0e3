# %% [markdown]
# # Solutions of 90 · The segmentation network: DeepLab
#
# The exercises of [notebook 90](../90_deeplab.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** How wide is the field of a 3x3 convolution of rate 24 on a feature map of stride 8, in pixels from the
# center of its first tap to the center of its last?
#
# **Answer.** Two steps of 24 cells of 8 pixels.

# %%
width_in_pixels = 2 * 24 * 8
widgets.check(width_in_pixels, "70d5f6cd4603", "exercise 1")

# %% [markdown]
# **Exercise 2.** Write the learning-rate factor of iteration $t$ of $T$ (counted from 0) with stairs of ten.
#
# **Answer.** The counter is rounded down to a multiple of ten first.

# %%
def factor_of(t, T):
    """Return a float in [0, 1]."""
    return (1 - t // 10 * 10 / T) ** 0.9


widgets.check(factor_of(1234, 20000), "0b20aca623e2", "exercise 2")

# %% [markdown]
# **Exercise 3.** A paper reports 68.0 % with weights "I+C", another 67.2 % with "I". A start with COCO's masks is worth
# at least 1.4 points (VWL's own two rows: 69.2 and 70.6 for one network, 68.7 and 70.6 for another). Does the first
# method make the better pseudo-masks? Answer `"yes"`, `"no"` or `"unknown"`.
#
# **Answer.** The start alone is worth more than the difference of 0.8 points, so nothing follows.

# %%
better = "unknown"
widgets.check(better, "dbe0a6cc4059", "exercise 3")
