# %% [markdown]
# # Lesson 1: mean, max, and what lies between
#
# **After this lesson you can**
#
# * say what the *weights* of training examples are, and what plain training sets them to;
# * move from the mean loss to the largest loss with one number, the *temperature*;
# * say what the temperature buys: the *divergence* of the weights from equal weights;
# * compute all of it with `steering.worst_case`.
#
# You need Python and PyTorch. It takes about 25 minutes.

# %%
import torch
from classroom import BLUE, GREEN, GREY, ORANGE, check, figure, rounded

import steering

# %% [markdown]
# ## Three losses
#
# A model has been tried on three training examples. The **loss** of an example says how wrong the model
# is there: zero is perfect, and more is worse.

# %%
losses = torch.tensor([0.0, 0.69, 1.39])
print("mean", round(losses.mean().item(), 3), " largest", round(losses.max().item(), 3))

# %% [markdown]
# Training needs *one* number to make smaller. Plain training takes the mean. It is a weighted sum in
# which each of the $n$ examples has the **weight** $p_i = 1/n$:
#
# $$ \text{mean loss} = \sum_{i=1}^n p_i\, \ell_i, \qquad p_i = \frac1n. $$
#
# A very careful person would take the largest loss instead. That is a weighted sum too. All the weight
# lies on one example.
#
# Weights are numbers $p_i\ge 0$ that sum to one. Everything in this course is about choosing them.
#
# ## An adversary chooses the weights
#
# Imagine an opponent, the **adversary**, who picks the weights in order to make the weighted loss as
# *large* as possible. A model that does well against it does well under many weightings at once, not
# only under the equal one.
#
# If the adversary may do as it likes, it puts all weight on the worst example. So we make it pay for
# unequal weights. Its price list is the **KL divergence** from equal weights,
#
# $$ D(p) = \sum_i p_i \log(n\, p_i). $$
#
# It is zero for equal weights and grows to $\log n$ when one example has all the weight. The logarithm is the
# natural one, and the unit is then called a **nat**. The price of one nat is the **temperature** $\tau>0$. The adversary solves
#
# $$ \max_p\ \sum_i p_i\,\ell_i - \tau\, D(p). $$
#
# **Predict.** A high temperature makes unequal weights expensive. Which weights do you expect for
# $\tau=100$? Which for $\tau=0.01$?

# %%
for tau in [100.0, 1.0, 0.01]:
    found = steering.worst_case(losses, "kl", penalty=tau)
    print(f"tau {tau:6}: weights", rounded(found.weights, 2))

# %% [markdown]
# **Explain.** `penalty=` is the price $\tau$. At 100 the adversary stays at equal weights: plain training.
# At 0.01 it goes straight to the largest loss. In between, all examples count, and those with larger
# losses count more.
#
# There is a formula for these weights. It is the softmax that you know from classifiers:
#
# $$ p_i = \frac{e^{\ell_i/\tau}}{\sum_j e^{\ell_j/\tau}}. $$

# %%
by_hand = (losses / 1.0).softmax(0)
print("by hand ", rounded(by_hand, 3))
print("solved  ", rounded(steering.worst_case(losses, "kl", penalty=1.0).weights, 3))

# %% [markdown]
# The three losses were chosen so that $e^{\ell}$ is about 1, 2 and 4. The weights at $\tau=1$ are therefore
# about 1/7, 2/7 and 4/7.

# %%
fig, axes = figure("The same three losses under four temperatures", 1, 4, 2.6)
for axis, tau in zip(axes, [100.0, 2.0, 0.7, 0.1], strict=True):
    weights = steering.worst_case(losses, "kl", penalty=tau).weights
    axis.bar(["0", "0.69", "1.39"], weights, color=BLUE)
    axis.set(title=f"τ = {tau:g}", ylim=(0, 1.05), xlabel="loss")
axes[0].set_ylabel("weight")
for axis in axes[1:]:
    axis.set_yticklabels([])

# %% [markdown]
# ## From mean to max on one line
#
# What the adversary reaches, its gain minus what it pays, is the **worst-case value**. For the KL
# divergence it is
#
# $$ V_\tau = \tau\,\log\Big(\frac1n\sum_i e^{\ell_i/\tau}\Big). $$
#
# This is [equation (8)](../theory.md#kl) of the theory page. Look at the two ends of the curve.

# %%
taus = torch.logspace(-2, 2, 60)
values = [steering.worst_case(losses, "kl", penalty=t).value.item() for t in taus.tolist()]
weighted = [
    (steering.worst_case(losses, "kl", penalty=t).weights * losses).sum().item()
    for t in taus.tolist()
]
fig, axis = figure("From the largest loss to the mean, with one temperature")
axis.semilogx(taus, values, color=BLUE, linewidth=2)
axis.semilogx(taus, weighted, color=GREEN, linestyle="--")
axis.axhline(losses.max(), color=ORANGE, linewidth=1)
axis.axhline(losses.mean(), color=GREY, linewidth=1)
axis.text(60, 1.41, "largest loss", color=ORANGE, ha="right", va="bottom")
axis.text(0.012, 0.675, "mean loss", color=GREY, va="top")
axis.text(0.55, 0.87, "value", color=BLUE, ha="right")
axis.text(0.75, 1.12, "weighted loss", color=GREEN)
axis.set(xlabel="temperature τ", ylabel="loss", ylim=(0.6, 1.5))

# %% [markdown]
# The dashed line is the weighted loss $\sum_i p_i \ell_i$ itself. The gap down to the solid line is what
# the adversary paid, $\tau D(p)$.
#
# ## A budget instead of a price
#
# There is a second contract. Instead of paying, the adversary gets a **budget** $R$, also called the
# **radius**: it may choose any weights with $D(p)\le R$. In code it is `radius=`.

# %%
found = steering.worst_case(losses, "kl", radius=0.1)
spent = (found.weights * (3 * found.weights).log()).sum()
print("weights", rounded(found.weights, 3))
print("spent  ", round(spent.item(), 4), "of 0.1")
print("the price at which it would have chosen the same:", round(found.dual.tau.item(), 3))

# %% [markdown]
# **Explain.** The two contracts give the same family of weights. A budget implies a price, and a price
# implies how much is spent. The price that belongs to a budget is `dual.tau`.
#
# **Predict.** Multiply all losses by ten. Under a fixed price of $\tau=1$, do the weights change? Under a
# fixed budget of $R=0.1$?

# %%
for name, contract in [("price  1", {"penalty": 1.0}), ("budget 0.1", {"radius": 0.1})]:
    once, ten = (steering.worst_case(scale * losses, "kl", **contract).weights for scale in (1, 10))
    print(f"{name:10}", rounded(once, 2), "->", rounded(ten, 2))

# %% [markdown]
# With a fixed price, larger differences between losses make the adversary bolder. With a fixed budget, only
# the *shape* of the losses counts, not their scale.

# %%
spent = []
for tau in taus.tolist():
    p = steering.worst_case(losses, "kl", penalty=tau).weights.double().clamp_min(1e-30)
    spent.append((p * (3 * p).log()).sum().item())
fig, axis = figure("Each price is a budget: what the adversary spends at temperature τ")
axis.semilogx(taus, spent, color=BLUE, linewidth=2)
axis.axhline(torch.tensor(3.0).log(), color=GREY, linewidth=1)
axis.text(60, 1.07, "log 3: all weight on one example", color=GREY, ha="right", va="top")
axis.plot([found.dual.tau.item()], [0.1], "o", color=ORANGE)
axis.text(found.dual.tau.item() * 1.2, 0.14, "R = 0.1", color=ORANGE)
axis.set(xlabel="temperature τ", ylabel="divergence D(p), nats", ylim=(0, 1.2))

# %% [markdown]
# ## Why weights are all that training needs
#
# Let the losses come from a model with parameters $\theta$. Then the gradient of the worst-case value is
# the weighted gradient of the losses, with the weights held fixed:
#
# $$ \nabla V = \sum_i p_i\, \nabla \ell_i(\theta). $$
#
# PyTorch can confirm it. Differentiate the value by the losses, and out come the weights. This is
# [equation (16)](../theory.md#4-the-gradient-and-why-weights-are-detached).

# %%
leaf = losses.clone().requires_grad_()
found = steering.worst_case(leaf, "kl", penalty=1.0)
found.value.backward()
print("gradient", rounded(leaf.grad, 3))
print("weights ", rounded(found.weights, 3))

# %% [markdown]
# So a training loop changes in one line. In the place of `losses.mean()` stands a weighted sum.
#
# ## Exercises
#
# Replace `None` by your answer and run the cell.
#
# **1.1** Two examples have the losses 0 and 1. Which weight does the second get at $\tau=1$? Use a
# calculator, not the package.

# %%
answer = None
check("1.1", answer)

# %% [markdown]
# **1.2** Add 5 to every loss of this lesson. By how much does each *weight* change at $\tau=1$? Give the
# largest change.

# %%
answer = None
check("1.2", answer)

# %% [markdown]
# **1.3** What is the largest budget that can be spent on 1000 examples? In nats, to two digits after the
# point.

# %%
answer = None
check("1.3", answer)

# %% [markdown]
# **1.4** Four examples have the losses 1, 1, 1 and 3. At which temperature, to one digit after the point,
# does the last one get half of the weight?

# %%
answer = None
check("1.4", answer)

# %% [markdown]
# **Words of this lesson**: *loss*, *weight*, *adversary*, *KL divergence*, *temperature* $\tau$ (a price),
# *radius* $R$ (a budget), *worst-case value*. The theory page has them
# [in order](../theory.md#1-empirical-risk-and-an-adversary).
# Move the temperature yourself in the [interactive picture](interactive/temperature.html).
