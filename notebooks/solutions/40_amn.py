# %% [markdown]
# # Solutions of 40 · AMN: activation manipulation
#
# The exercises of [notebook 40](../40_amn.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** A batch holds 900 background pixels with a loss of 0.2 each and 100 object pixels with a loss of 1.4 each.
# What is the balanced loss?
#
# **Answer.** The mean of background and the mean of objects count one half each; a plain mean over all pixels would be 0.32.

# %%
answer = 0.5 * 0.2 + 0.5 * 1.4
widgets.check(answer, "8a8081ce2a52", "exercise 1")

# %% [markdown]
# **Exercise 2.** How many parameters has the label encoder on VOC (20 classes) with a ResNet-50 (2,048 channels)?
#
# **Answer.** A linear layer from labels to channels, with a bias.

# %%
answer = 20 * 2048 + 2048
widgets.check(answer, "b56f83c56922", "exercise 2")

# %% [markdown]
# **Exercise 3.** Write the rule of section 6 for one pixel: its probability, the smallest and largest of its channel, and the refined
# seed's value there.
#
# **Answer.** Where the seed says background the probability stays; everywhere else, unknown pixels too, it is stretched.

# %%
def map_value(p, low, high, s):
    """p, low, high: floats; s: 0, class + 1 or 255. Return a float."""
    return p if s == 0 else (p - low) / (high - low + 1e-5)


widgets.check(map_value(0.4, 0.1, 0.7, 255), "8521e6b7d958", "exercise 3a")
widgets.check(map_value(0.4, 0.1, 0.7, 0), "1c92cb92a8a0", "exercise 3b")
