# %% [markdown]
# # Lesson 2: divergences, six price lists for unequal weights
#
# **After this lesson you can**
#
# * draw weight against loss for six divergences, and tell the curves apart;
# * say which examples each divergence ignores;
# * see a divergence as the shape of a set of weights, and the worst case as a point on its edge;
# * choose one by what you want to happen to outliers.
#
# It builds on [lesson 1](01-mean-max-between.md) and takes about 25 minutes.

# %%
import torch
from classroom import BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW, check, figure

import steering
from steering.dro import KL, ChiSquare, CressieRead, TotalVariation, distance

COLOURS = [BLUE, ORANGE, GREEN, PINK, YELLOW, SKY]

# %% [markdown]
# ## What a divergence measures
#
# A **divergence** $D(p)$ says how far weights $p$ are from equal weights. All divergences of this course
# look at the **ratio** $t_i = n\,p_i$: how many times its equal share an example has. Each ratio has a cost
# $\varphi(t)$, and the divergence is the mean cost,
#
# $$ D_\varphi(p) = \frac1n\sum_i \varphi(n\,p_i). $$
#
# $\varphi$ is zero at $t=1$ and grows on both sides. That is [equation (2)](../theory.md#1-empirical-risk-and-an-adversary).
#
# | Name | $\varphi(t)$ | In words |
# |---|---|---|
# | KL | $t\log t-t+1$ | the one of lesson 1 |
# | half chi-square | $(t-1)^2/2$ | the cost is a square |
# | CVaR, level $a$ | 0 up to $t=1/a$, then infinite | a ratio has a ceiling, below it all is free |
# | CVaR with a KL price | as KL up to $t=1/a$, then infinite | the same ceiling, below it the price of KL |
# | total variation | $\lvert t-1\rvert/2$ | the mass that has been moved |
# | Cressie–Read, order $k$ | $\frac{t^k-kt+k-1}{k(k-1)}$ | a family: $k=1$ is KL, $k=2$ half chi-square |

# %%
ratio = torch.linspace(0.001, 3.2, 200)
costs = {
    "KL": ratio * ratio.log() - ratio + 1,
    "half chi-square": (ratio - 1) ** 2 / 2,
    "total variation": (ratio - 1).abs() / 2,
    "Cressie–Read, k = 1.5": (ratio**1.5 - 1.5 * ratio + 0.5) / 0.75,
}
fig, axis = figure("The cost φ of a ratio t: zero at the equal share")
for (name, cost), colour in zip(costs.items(), COLOURS, strict=False):
    axis.plot(ratio, cost, color=colour, label=name)
axis.plot([0, 2, 2], [0, 0, 2.5], color=SKY, linewidth=2, linestyle="--", label="CVaR, level 0.5")
axis.set(xlabel="ratio t = n p", ylabel="cost φ(t)", ylim=(-0.05, 2.2))
axis.legend(frameon=False, loc="upper left")

# %% [markdown]
# ## Weight against loss
#
# **Predict.** Take 41 examples with losses spread evenly from 0 to 2. With KL, the weight is an exponential
# of the loss. What shape will the square cost give? What shape a ceiling?

# %%
losses = torch.linspace(0, 2, 41, dtype=torch.float64)
asked = {
    "KL, τ = 0.5": ("kl", {"penalty": 0.5}),
    "half chi-square, τ = 0.5": ("chi2", {"penalty": 0.5}),
    "CVaR, level 0.3": ("cvar", {"level": 0.3}),
    "CVaR with a KL price": ("cvar-kl", {"level": 0.3, "penalty": 0.5}),
    "Cressie–Read, k = 4": ("cressie-read", {"order": 4.0, "penalty": 0.5}),
    "total variation, R = 0.3": ("tv", {"radius": 0.3}),
}
fig, axes = figure("Weight against loss: six divergences, the same losses", 2, 3, 4.4)
for axis, (name, (key, contract)), colour in zip(axes.flat, asked.items(), COLOURS, strict=True):
    ratios = len(losses) * steering.worst_case(losses, key, **contract).weights
    axis.axhline(1, color=GREY, linewidth=0.8)
    axis.plot(losses, ratios, ".-", color=colour, markersize=4)
    axis.set_title(name, fontsize=9.5)
    axis.set_ylim(-0.15, min(float(ratios.max()), 4.0) + 0.3)
for axis in axes[1]:
    axis.set_xlabel("loss")
for axis in axes[:, 0]:
    axis.set_ylabel("ratio n p")
axes[1, 2].annotate("13.3", (2, 4.3), (1.3, 3.7), color=SKY, arrowprops={"arrowstyle": "->"})

# %% [markdown]
# **Explain.** The grey line is the equal share.
#
# * **KL**: everybody keeps some weight, and the largest losses get exponentially more.
# * **Half chi-square**: a straight line, cut off at zero. Small losses are ignored.
# * **CVaR**: the worst 30 % of the examples share all weight equally. The rest is ignored.
# * **CVaR with a KL price**: the same ceiling, but the way up to it is smooth.
# * **Cressie–Read** with a large order: nearly flat over most losses, with a steep end towards zero.
# * **Total variation**: takes its mass from the lowest losses and gives all of it to the *single* largest.
#   Here that one example gets 13 times its share.
#
# The two words in code are `penalty=` for a price and `radius=` for a budget, as in lesson 1. CVaR has a
# `level` instead: a ceiling has no price.
#
# ## The same thing as a picture of sets
#
# With three examples, all possible weights form a triangle, the **simplex**. Its corners have all weight on
# one example, its centre is equal weights. A budget cuts a set around the centre out of it. The adversary
# walks to the point of that set where the weighted loss is largest.
#
# **Predict.** Which divergence gives a circle? Which a hexagon?

# %%
three = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.866]], dtype=torch.float64)


def grid(steps: int = 240) -> torch.Tensor:
    """Points of the plane as weights, (steps, steps, 3); negative outside of the triangle."""
    x, y = torch.meshgrid(
        torch.linspace(0, 1, steps, dtype=torch.float64),
        torch.linspace(0, 0.866, steps, dtype=torch.float64),
        indexing="xy",
    )
    top = y / 0.866
    right = x - top / 2
    return torch.stack([1 - top - right, right, top], -1)


weights = grid()
inside = (weights >= 0).all(-1)
safe = weights.clamp_min(1e-9)
safe = safe / safe.sum(-1, keepdim=True)
balls = {
    "KL": (distance(safe, KL()), 0.1, "kl", {"radius": 0.1}),
    "half chi-square": (distance(safe, ChiSquare()), 0.1, "chi2", {"radius": 0.1}),
    "Cressie–Read, k = 4": (
        distance(safe, CressieRead(4.0)),
        0.1,
        "cressie-read",
        {"order": 4.0, "radius": 0.1},
    ),
    "total variation": (distance(safe, TotalVariation()), 0.2, "tv", {"radius": 0.2}),
    "CVaR, level 0.5": (weights.amax(-1), 2 / 3, "cvar", {"level": 0.5}),
    "CVaR, level 0.8": (weights.amax(-1), 1 / 0.8 / 3, "cvar", {"level": 0.8}),
}
fig, axes = figure("Where the adversary may go, and where it goes (dot)", 2, 3, 4.6)
x, y = torch.linspace(0, 1, 240), torch.linspace(0, 0.866, 240)
for axis, (name, (far, limit, key, contract)), colour in zip(
    axes.flat, balls.items(), COLOURS, strict=True
):
    shown = torch.where(inside, far, torch.nan)
    axis.contourf(x, y, shown, levels=[-1, limit], colors=[colour], alpha=0.35)
    axis.plot(*CORNERS[[0, 1, 2, 0]].T, color="black", linewidth=1)
    axis.plot(*(torch.full((3,), 1 / 3, dtype=torch.float64) @ CORNERS), "+", color="black")
    worst = steering.worst_case(three, key, **contract).weights
    axis.plot(*(worst @ CORNERS), "o", color=colour, markeredgecolor="black")
    axis.set_title(name, fontsize=9.5)
    axis.set(xlim=(-0.15, 1.15), ylim=(-0.14, 1.0), aspect="equal")
    axis.axis("off")
    axis.text(0, -0.04, "loss 0", ha="center", va="top", fontsize=8)
    axis.text(1, -0.04, "loss 0.5", ha="center", va="top", fontsize=8)
    axis.text(0.5, 0.89, "loss 1", ha="center", fontsize=8)

# %% [markdown]
# **Explain.** The cross is equal weights. Half chi-square is a circle, because its cost is a square. Total
# variation is a hexagon. KL is a circle that bulges a little towards the corners of the triangle, and
# Cressie–Read with $k=4$ bulges away from them. A CVaR set is the part of the triangle in which no weight is
# above its ceiling $\frac{1}{a n}$.
#
# The dot is where the weighted loss is largest. On a set with corners, the dot jumps from corner to corner
# as the losses change. On a round set, it moves smoothly. That is why KL and half chi-square are easy to
# train with.
#
# ## What the worst case costs
#
# The solver gives a certificate: `gap` is how far its value can be from the true worst case.
#
# For a small budget, half chi-square has a simple formula, [equation (12)](../theory.md#half-chi-square):
#
# $$ V_R = \text{mean} + \sqrt{2R}\cdot\text{standard deviation}. $$
#
# So "do well in the worst case" means: make the mean loss small, *and* make the losses less spread out.

# %%
by_formula = losses.mean() + (2 * 0.1) ** 0.5 * losses.std(correction=0)
solved = steering.worst_case(losses, "chi2", radius=0.1)
print(f"formula {by_formula:.4f}, solver {solved.value:.4f}")
print("off by less than a millionth of a millionth:", abs(solved.gap.item()) < 1e-12)

# %%
budgets = torch.logspace(-3, 0.5, 40, dtype=torch.float64)
fig, axis = figure("Worst-case value over the budget: mean plus a spread, then the largest loss")
for (name, key, more), colour in zip(
    [("KL", "kl", {}), ("half chi-square", "chi2", {}), ("total variation", "tv", {})],
    [BLUE, ORANGE, SKY],
    strict=True,
):
    rows = losses.expand(len(budgets), -1)
    axis.semilogx(
        budgets,
        steering.worst_case(rows, key, radius=budgets, **more).value,
        color=colour,
        label=name,
    )
line = losses.mean() + (2 * budgets).sqrt() * losses.std(correction=0)
axis.semilogx(budgets, line, ":", color=ORANGE, label="mean + √(2R) · deviation")
axis.set(xlabel="radius R", ylabel="worst-case value", ylim=(0.95, 2.05))
axis.legend(frameon=False, loc="upper left")

# %% [markdown]
# ## How to choose
#
# | You want | Take |
# |---|---|
# | a good default, smooth, nobody ignored | KL |
# | the mean plus a multiple of the spread, and easy examples ignored | half chi-square |
# | exactly the worst share of the examples | CVaR |
# | something between KL and half chi-square | Cressie–Read, order between 1 and 2 |
# | one example may decide | total variation; this is rarely what training needs |
#
# **Change.** Go back to the picture of six curves. Add one example with the loss 6 to `losses`
# (`torch.cat([losses, torch.tensor([6.0])])`, and mind the dtype). Which curves hardly notice? Which give
# it almost everything?
#
# ## Exercises
#
# **2.1** Ten examples, CVaR at level 0.2. How many of them get any weight, if all losses differ?

# %%
answer = None
check("2.1", answer)

# %% [markdown]
# **2.2** Losses 0, 1 and 2, half chi-square, radius $R=\frac1{12}$. What is the worst-case value? Use the
# formula; the variance is the one with $1/n$.

# %%
answer = None
check("2.2", answer)

# %% [markdown]
# **2.3** Which of these sets contains the weights (1/2, 1/2, 0), whose ratios are 1.5, 1.5 and 0?
# a: CVaR with level 0.5. b: total variation with $R=0.2$. c: both. d: none.

# %%
answer = None
check("2.3", answer)

# %% [markdown]
# **2.4** Losses 0, 1, 2, 3 and total variation with $R=\frac14$. What are the four weights? Give a list.

# %%
answer = None
check("2.4", answer)

# %% [markdown]
# **Words of this lesson**: *ratio* $t$, *divergence* $D_\varphi$, *simplex*, *half chi-square*, *CVaR* and
# its *level*, *total variation*, *Cressie–Read family*. Their duals and proofs are in
# [the theory, section 3](../theory.md#3-duals). Move the budget and the level in the
# [interactive picture](interactive/budget.html).
