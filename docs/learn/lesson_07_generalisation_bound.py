# %% [markdown]
# # Lesson 7: the bound, on a problem where it bites
#
# **After this lesson you can**
#
# * say what a *generalisation bound* promises;
# * see plain training learn at the slow rate $1/\sqrt n$;
# * see a weak reference turn that into the fast rate $1/n$, and say why;
# * say what the bound does *not* promise.
#
# It builds on [lesson 2](02-divergences.md) and [lesson 4](04-excess-loss.md), and takes about 30 minutes.

# %%
import math

import torch
from classroom import BLUE, GREEN, GREY, ORANGE, check, figure

import steering

# %% [markdown]
# ## The question
#
# We choose a model by its losses on $n$ training examples. What counts is its **risk**, the mean loss on all
# possible examples. How far above the best possible risk do we end? That distance is the **excess risk**. A
# **generalisation bound** is a number that it stays below, with high probability.
#
# Plain training trusts the mean over the sample. A mean over $n$ examples is off by about $\sigma/\sqrt n$, where
# $\sigma$ is the standard deviation of the loss. So plain training can be fooled by that much.
#
# ## A class of models that fools plain training
#
# The loss is 0 (right) or 1 (wrong). Three examples in ten are *hard*: the best model is wrong there, and only
# there. Its risk is 0.3. There are two kinds of other models.
#
# * A **sensible** model is wrong on the hard examples too, and on a few easy ones besides.
# * A **tempting** model is wrong on a share of *all* examples, wherever. Its errors have nothing to do with
#   those of the best model.
#
# Both kinds come in many qualities: $g$ is how much the risk is above 0.3.

# %%
HARD, KIND = 0.3, 12
steps = torch.arange(1, KIND + 1, dtype=torch.float64) / KIND
sensible = torch.cat([torch.zeros(1, dtype=torch.float64), steps**3 / 2])  # the best one first
tempting = steps**2 / 3
excess_risk = torch.cat([sensible, tempting])
print(len(excess_risk), "models; the best tempting one is worse by", round(tempting[0].item(), 4))

# %% [markdown]
# The **reference** is a sensible model that is worse than the best by $r=0.01$. It is not in the class, and
# the examples on which it is wrong are largely those on which the best model is wrong.
#
# **Predict.** Take the difference of the losses of two models on each example. For which kind of model does
# the difference from the reference vary *little*?

# %%


def draw(n: int, times: int, r: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of all models, (times, models, n), and of the reference, (times, 1, n)."""
    generator = torch.Generator().manual_seed(seed)

    def chance(share, *shape):
        return torch.rand(shape, generator=generator) < share

    hard = chance(HARD, times, 1, n)
    extra = (sensible / (1 - HARD)).float()[:, None]
    wrong_sensible = hard | chance(extra, times, len(sensible), n)
    wrong_tempting = chance((HARD + tempting).float()[:, None], times, len(tempting), n)
    reference = hard | chance(r / (1 - HARD), times, 1, n)
    return torch.cat([wrong_sensible, wrong_tempting], 1).float(), reference.float()


losses, reference = draw(2000, 1, 0.01, seed=0)
for name, of in [("loss", losses), ("excess loss", losses - reference)]:
    deviation = of[0].std(1)
    print(
        f"standard deviation of the {name:11}: best {deviation[0]:.2f}, tempting {deviation[len(sensible)]:.2f}"
    )

# %% [markdown]
# **Explain.** The *losses* of all models vary alike, so they are no help. The *excess* loss of the best model
# hardly varies: it is wrong where the reference is wrong. The excess loss of a tempting model varies a lot.
# An adversary that charges for spread can now tell the two kinds apart.
#
# ## Three ways to choose a model
#
# Each way takes the model with the smallest risk on the sample, where the risk is
#
# * **plain**: the mean loss;
# * **DRO**: the worst case of the loss, in a half chi-square ball of radius $\rho/n$;
# * **DRRho**: the worst case of the *excess* loss in the same ball.
#
# The number $\rho$ pays for confidence and for the number of models $N$: $\rho=\log(4N/\delta)$, where
# $\delta=0.05$ is the probability with which the promise may fail.
#
# An excess loss is $-1$, 0 or 1, so it is enough to *count* how often each occurs. `worst_case` takes the
# counts as its `prior`.

# %%
RHO = math.log(4 * len(excess_risk) / 0.05)
VALUES = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)


def chosen(h: torch.Tensor, rho: float, seed: int) -> torch.Tensor:
    """Excess risk of the model with the smallest worst case in each repetition, (times,)."""
    n = h.shape[-1]
    counts = torch.stack([(h == value).sum(-1) for value in VALUES], -1).double()
    rows = VALUES.expand_as(counts)
    risk = steering.worst_case(rows, "chi2", radius=rho / n, prior=counts).value
    ties = 1e-9 * torch.rand(risk.shape, generator=torch.Generator().manual_seed(seed))
    return excess_risk[(risk + ties).argmin(-1)]


sizes = [50, 100, 200, 400, 800, 1600]
found = {"plain": [], "DRO": [], "DRRho": []}
for n in sizes:
    losses, reference = draw(n, 120, 0.01, seed=n)
    found["plain"].append(chosen(losses, 0.0, n))
    found["DRO"].append(chosen(losses, RHO, n))
    found["DRRho"].append(chosen(losses - reference, RHO, n))

print("mean excess risk, in thousandths")
print("n     ", "".join(f"{n:7}" for n in sizes))
for name, rows in found.items():
    print(f"{name:6}", "".join(f"{1000 * row.mean():7.1f}" for row in rows))

# %%
fig, axis = figure("Excess risk of the chosen model over the number of examples")
for (name, rows), colour in zip(found.items(), [GREY, ORANGE, BLUE], strict=True):
    means = torch.stack([row.mean() for row in rows])
    errors = torch.stack([2 * row.std() / len(row) ** 0.5 for row in rows])
    axis.errorbar(sizes, means, errors, color=colour, marker="o", markersize=4, label=name)
start = torch.tensor(sizes[0])
axis.plot(sizes, [0.1 * (start / n) ** 0.5 for n in sizes], ":", color="black")
axis.plot(sizes, [0.012 * (start / n) for n in sizes], ":", color="black")
axis.text(900, 0.031, "1/√n", fontsize=9)
axis.text(900, 0.0004, "1/n", fontsize=9)
axis.set(xscale="log", yscale="log", xlabel="examples n", ylabel="mean excess risk")
axis.set_xticks(sizes, [str(n) for n in sizes])
axis.minorticks_off()
axis.legend(frameon=False)

# %% [markdown]
# **Explain.** Plain training falls like $1/\sqrt n$. DRO without a reference is no better here: all losses vary
# alike. DRRho falls much faster, with a reference that is not even in the class.
#
# ## What the theorem says
#
# With probability at least $1-\delta$, the model $\tilde\theta$ that DRRho chooses satisfies
#
# $$ \operatorname{Risk}(\tilde\theta) \le \min_\theta\Big\{\operatorname{Risk}(\theta)
#    + 2\sqrt{\tfrac{2\rho}{n}\operatorname{Var}(\ell_\theta-\alpha\,\ell_{\rm ref})}\Big\} + \frac{7(1+\alpha)\rho}{n} $$
#
# for losses between 0 and 1. It is [equation (33)](../theory.md#10-what-the-generalisation-bound-says), with its
# proof. Read it from the inside. The minimum may be taken at *any* model. At one whose losses go up and down
# with the reference's, the variance is small, the root is small, and only the last term is left. That one
# falls like $1/n$.


# %%
def bound(n: int, r: float, alpha: float) -> float:
    """The right-hand side minus the least risk, from the true variances."""
    loss = HARD + excess_risk
    both_sensible = HARD + r * sensible / (1 - HARD)
    both = torch.cat([both_sensible, (HARD + r) * (HARD + tempting)])
    mean = loss - alpha * (HARD + r)
    variance = loss - 2 * alpha * both + alpha**2 * (HARD + r) - mean.square()
    slow = excess_risk + 2 * (2 * RHO / n * variance.clamp_min(0)).sqrt()
    return slow.min().item() + 7 * (1 + alpha) * RHO / n


many = [10**k for k in range(2, 8)]
fig, axis = figure("What the theorem promises: without and with a reference")
for name, r, alpha, colour in [
    ("without a reference", 0.0, 0.0, ORANGE),
    ("reference worse by 0.2", 0.2, 1.0, GREEN),
    ("reference worse by 0.01", 0.01, 1.0, BLUE),
    ("the best model as reference", 0.0, 1.0, "black"),
]:
    axis.loglog(
        many, [bound(n, r, alpha) for n in many], "o-", markersize=4, color=colour, label=name
    )
axis.set(xlabel="examples n", ylabel="bound on the excess risk")
axis.legend(frameon=False)

# %% [markdown]
# **Explain.** Without a reference the bound falls like $1/\sqrt n$. With a reference that is worse by $r$, it
# falls like $1/n$ at first, and later like $1/\sqrt n$ with a small factor. The better the reference, the
# longer the fast part.
#
# The promise is cautious. Compare it with what was measured above.

# %%
for n in (400, 1600):
    kept = found["DRRho"][sizes.index(n)].quantile(0.95)
    print(f"n = {n:4}: promised {bound(n, 0.01, 1.0):.2f}, kept by 95 % of the runs {kept:.4f}")

# %% [markdown]
# **What it does not say.** It is an upper bound, so it does not promise that you beat the reference, or plain
# training. It is about the exact minimiser of the half chi-square form, not about ten epochs of AdamW. And the
# reference must have been fixed *before* the training examples were drawn.
#
# ## Exercises
#
# **7.1** The standard deviation of a loss is 0.5. By how much is the mean over 10,000 examples off, typically?

# %%
answer = None
check("7.1", answer)

# %% [markdown]
# **7.2** A bound falls like $1/\sqrt n$. How many times more examples does it take to make it ten times smaller?

# %%
answer = None
check("7.2", answer)

# %% [markdown]
# **7.3** The same for a bound that falls like $1/n$.

# %%
answer = None
check("7.3", answer)

# %% [markdown]
# **7.4** The target equals the reference and $\alpha=\frac12$. Which share of $\operatorname{Var}(\ell^{\rm ref})$ is left
# under the root?

# %%
answer = None
check("7.4", answer)

# %% [markdown]
# **Change.** Make the reference worse: `r = 0.2` in `draw`. Does DRRho still beat plain training for large $n$?
#
# **Words of this lesson**: *risk*, *excess risk*, *generalisation bound*, *rate*, *variance*. A larger version
# of this experiment is [measured here](../solver-study.md#the-bound-made-visible).
