# %% [markdown]
# # Solutions of 30 · Suppressing the most discriminative region: DRS
#
# The exercises of [notebook 30](../30_drs.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** A channel has the positive values 1, 2, 4 and 10 and $\delta = 0.5$. Which gradient arrives at the value
# 10 if $\partial L/\partial y = 1$ everywhere? And if another place rises from 4 to 6?
#
# **Answer.** The peak is cut to $\delta \cdot 10$, so it passes on $\delta$. After the rise the other place (6) is above $\delta \cdot 10 = 5$ and is cut to the same bound: its gradient reaches the peak too, $2\delta$.

# %%
at_the_peak, after_the_rise = 0.5, 2 * 0.5
widgets.check(at_the_peak, "63afe278c8d4", "exercise 1, first part")
widgets.check(after_the_rise, "da5d91b570dd", "exercise 1, second part")

# %% [markdown]
# **Exercise 2.** Inside the salient part two classes have the scores 0.95 and 0.93; outside it a class has 0.97. Write
# the two labels (class numbers start at 1; the classes are 3, 8 and 3).
#
# **Answer.** Inside, the background's score is 0 and the larger of both classes wins; two sure channels are no conflict yet. Outside, the background's score is 1, and 0.97 cannot beat it.

# %%
inside, outside = 3, 0
widgets.check(inside, "515c0c5d07a5", "exercise 2, inside")
widgets.check(outside, "de7e5cca4e08", "exercise 2, outside")

# %% [markdown]
# **Exercise 3.** Write the pseudo-label of one pixel in plain Python.
#
# **Answer.** A class needs at least alpha; a salient pixel without one is unexplained. (Three sure channels, the conflict of rule 4, are left out here.)

# %%
def label_of_pixel(scores, saliency, alpha=0.2):
    """scores: class number to score, saliency: 0..255. Return 0, a class number or 255."""
    if saliency <= 50:
        return 0
    sure = {number: score for number, score in scores.items() if score >= alpha}
    return max(sure, key=sure.get) if sure else 255


widgets.check(label_of_pixel({3: 0.15, 8: 0.1}, 200), "66570d39d9e7", "exercise 3")
