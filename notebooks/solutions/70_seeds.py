# %% [markdown]
# # Solutions of 70 · Seeds
#
# The exercises of [notebook 70](../70_seeds.ipynb), each with its answer and the reason. Nothing else has to run first.

# %%
from wsss_lib import widgets

# %% [markdown]
# **Exercise 1.** A class has 60 true pixels. It was predicted for 90 pixels, 50 of them rightly. Its IoU?
#
# **Answer.** Intersection over union: 50 hits; 60 + 90 counts them twice.

# %%
answer = 50 / (60 + 90 - 50)
widgets.check(answer, "32db298d6c6d", "exercise 1")

# %% [markdown]
# **Exercise 2.** Write the confident label of one pixel without the CRF: its scores for some classes are given, with
# those classes' 0-based numbers.
#
# **Answer.** Above t_f surely the best class, below t_b surely background, between them unknown.

# %%
def confident_label(scores, classes, t_f, t_b):
    """scores: list of floats; classes: list of ints of the same length. Return 0, class + 1 or 255."""
    best = max(range(len(scores)), key=scores.__getitem__)
    if scores[best] > t_f:
        return classes[best] + 1
    return 0 if scores[best] < t_b else 255


widgets.check(confident_label([0.20, 0.28], [3, 7], 0.30, 0.05), "3ddc6fa04d93", "exercise 2a")
widgets.check(confident_label([0.20, 0.28], [3, 7], 0.25, 0.05), "52823a8e0659", "exercise 2b")

# %% [markdown]
# **Exercise 3.** An image holds two classes, so the CRF has three labels. The certainty is 0.7. Which probability
# does the unary term give to each of the two labels that the seed did *not* choose?
#
# **Answer.** What the certainty leaves is shared by the labels that were not chosen.

# %%
probability = (1 - 0.7) / 2
widgets.check(probability, "5f4fc1fbb251", "exercise 3")
