# %% [markdown]
# # Solutions of 01 · The information bottleneck, simulated
#
# The exercises of [notebook 01](../01_rib_information_bottleneck.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
import numpy as np
import torch

from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** Binary cross-entropy pushes the own logit with $\sigma(-\tilde z)$. From which logit on is the push below 1 %? (Three decimals.)
#
# **Answer.** $\sigma(-z) = 1/(1 + e^z) = 0.01$ gives $e^z = 99$.

# %%
logit = float(np.log(99))
widgets.check(logit, "47a91423c0f2", "exercise 1")

# %% [markdown]
# **Exercise 2.** Write the HGR of one map and one region without the library.
#
# **Answer.** A share of the region, not of the bright pixels: of its four pixels 0.9 and 0.5 exceed 0.3 (0.3 itself does not).

# %%
def ratio_of(gradient_map, region, threshold):
    """gradient_map: float (H, W), region: bool (H, W). Return a float."""
    return float((gradient_map[region] > threshold).mean())


example, area = np.array([[0.9, 0.1, 0.3], [0.5, 0.0, 1.0]]), np.array([[True, True, True], [True, False, False]])
widgets.check(ratio_of(example, area, 0.3), "2700abeff30f", "exercise 2")

# %% [markdown]
# **Exercise 3.** By which factor is $\partial \sigma(z)/\partial x$ smaller than $\partial z/\partial x$ at $z = 2$, in every pixel? (Section 4
# says why $G_6$ does not notice.)
#
# **Answer.** The chain rule: $\partial\sigma(z)/\partial x = \sigma(z)(1-\sigma(z)) \cdot \partial z/\partial x$; one factor for all pixels, so it drops out when a map is divided by its maximum.

# %%
factor = float(torch.sigmoid(torch.tensor(2.0)) * (1 - torch.sigmoid(torch.tensor(2.0))))
widgets.check(factor, "1d2f548bcad2", "exercise 3")
