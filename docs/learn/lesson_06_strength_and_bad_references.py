# %% [markdown]
# # Lesson 6: strength, and what a bad reference does
#
# **After this lesson you can**
#
# * set how much of the reference's loss is subtracted, with the *strength* $\alpha$;
# * compute the strength that makes the excess loss least spread out;
# * tell four references apart by what they do to training;
# * say what `strength="auto"` protects you from, and what it costs.
#
# It builds on [lesson 4](04-excess-loss.md) and takes about 25 minutes.

# %%
import torch
import torch.nn.functional as F
from classroom import BLUE, GREEN, GREY, ORANGE, check, figure

import steering

# %% [markdown]
# ## A knob on the reference
#
# So far the excess loss was $\ell_i - \ell_i^{\rm ref}$. In general,
#
# $$ h_i = \ell_i - \alpha\,\ell_i^{\rm ref}, \qquad \alpha \ge 0. $$
#
# $\alpha$ is the **strength**. $\alpha=0$ is DRO without a reference, $\alpha=1$ is lesson 4.
#
# The same data as before, and the same reference, trained on 800 clean examples.

# %%


def make_data(n: int, wrong: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points (n, 20), labels (n,), and which labels are wrong (n,)."""
    x = torch.randn(n, 20)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()
    flipped = torch.rand(n) < wrong
    return x, torch.where(flipped, 1 - y, y), flipped


def network(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(20, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
    )


def fit(model, x, y, epochs, steer=None, guide=None) -> torch.nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(128):
            losses = F.cross_entropy(model(x[index]), y[index], reduction="none")
            loss = losses.mean() if steer is None else steer(losses, guide[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def losses_of(model, x, y, sharpness: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        return F.cross_entropy(sharpness * model(x), y, reduction="none")


torch.manual_seed(1)
x, y, wrong = make_data(3000, wrong=0.3)
clean_x, clean_y, _ = make_data(800, wrong=0.0)
test_x, test_y, _ = make_data(5000, wrong=0.0)
good = fit(network(16), clean_x, clean_y, epochs=20)
half_trained = fit(network(128), x, y, epochs=2)
losses, guide = losses_of(half_trained, x, y), losses_of(good, x, y)

# %% [markdown]
# ## The strength of least variance
#
# The worst case costs *mean plus a multiple of the standard deviation* of $h$ (lesson 2). So a good $\alpha$ makes
# $h$ vary little. As a function of $\alpha$ its variance is a parabola,
#
# $$ \operatorname{Var}(\ell - \alpha\,\ell^{\rm ref}), \qquad\text{lowest at}\quad
#    \alpha^\ast = \frac{\operatorname{Cov}(\ell, \ell^{\rm ref})}{\operatorname{Var}(\ell^{\rm ref})}. $$
#
# That is the slope of the line through the points (reference loss, target loss), and
# [equation (30)](../theory.md#8-the-strength-α-the-reference-as-a-control-variate).
#
# **Predict.** Multiply all reference losses by four, as a model does that is too sure of itself. What happens
# to $\alpha^\ast$?


# %%
def best_strength(losses: torch.Tensor, guide: torch.Tensor) -> float:
    both = torch.cov(torch.stack([losses, guide]))
    return (both[0, 1] / both[1, 1]).item()


guides = {
    "good": guide,
    "too sure": losses_of(good, x, y, sharpness=4.0),
    "shuffled": guide[torch.randperm(len(guide))],
    "opposite": losses_of(fit(network(16), clean_x, 1 - clean_y, epochs=20), x, y),
}
COLOURS = dict(zip(guides, [BLUE, GREEN, GREY, ORANGE], strict=True))
strengths = torch.linspace(0, 1.1, 56)
fig, axis = figure("Variance of the excess loss over the strength (dot: its minimum)")
for name, reference_losses in guides.items():
    variance = (losses - strengths[:, None] * reference_losses).var(1)
    axis.plot(strengths, variance, color=COLOURS[name], label=name)
    best = max(0.0, best_strength(losses, reference_losses))
    axis.plot(best, (losses - best * reference_losses).var(), "o", color=COLOURS[name])
    print(f"{name:9} α* = {best_strength(losses, reference_losses):5.2f}")
axis.set(xlabel="strength α", ylabel="variance of ℓ − α ℓ_ref", ylim=(0, 0.8))
axis.legend(frameon=False)

# %% [markdown]
# Four references:
#
# * **good** is that of lesson 4.
# * **too sure** is the same model with logits times four. It knows the same, on another scale.
# * **shuffled** has the losses of *other* examples. It knows nothing about this one.
# * **opposite** was trained on flipped labels. It trusts the wrong labels and doubts the right ones.
#
# **Explain.** A scale of four is met by an $\alpha^\ast$ that is about a quarter: the product
# $\alpha^\ast\ell^{\rm ref}$ hardly notices. The shuffled reference gets $\alpha^\ast\approx0$. The opposite one would
# get a negative strength, which counts as zero.
#
# ## The map again, with the line of slope α*

# %%
fig, axes = figure("Target loss against reference loss, and the line of slope α*", 1, 4, 2.7)
for axis, (name, reference_losses) in zip(axes, guides.items(), strict=True):
    axis.plot(reference_losses[:600], losses[:600], ".", color=COLOURS[name], markersize=2)
    slope = best_strength(losses, reference_losses)
    across = torch.tensor([0.0, float(reference_losses[:600].max())])
    middle = losses.mean() - slope * reference_losses.mean()
    axis.plot(across, middle + slope * across, color="black", linewidth=1.5)
    axis.set_title(name, fontsize=10)
    axis.set(xlabel="reference loss", ylim=(0, 2))
axes[0].set_ylabel("target loss")

# %% [markdown]
# ## What each of them does to training
#
# **Predict.** Which combination will be worst? Which will be better than plain training?

# %%
SETTINGS = [0.5, 1.0, "auto"]


def steered(reference_losses: torch.Tensor, strength: float | str, seed: int) -> float:
    torch.manual_seed(seed)
    steer = steering.DRRho(tau=1.0, strength=strength)
    model = fit(network(128), x, y, 6, steer, reference_losses)
    return model(test_x).argmax(1).eq(test_y).float().mean().item()


def plain(seed: int) -> float:
    torch.manual_seed(seed)
    return fit(network(128), x, y, 6)(test_x).argmax(1).eq(test_y).float().mean().item()


def mean(score) -> float:
    """In percent, over two seeds."""
    return 100 * sum(score(seed) for seed in (0, 1)) / 2


without = mean(plain)
# At strength 0 the reference is not heard, so that all four are one.
unheard = mean(lambda seed: steered(guide, 0.0, seed))
scores = {
    name: [unheard] + [mean(lambda seed, a=a, r=r: steered(r, a, seed)) for a in SETTINGS]
    for name, r in guides.items()
}
print(f"test accuracy in percent; plain training: {without:.0f}")
print("strength    0   0.5     1  auto")
for name, row in scores.items():
    print(f"{name:8}", " ".join(f"{score:5.0f}" for score in row))

# %%
fig, axis = figure("Test accuracy over the strength, for four references")
for name, row in scores.items():
    axis.plot([0, 0.5, 1], row[:3], "o-", color=COLOURS[name], label=name)
    axis.plot([1.4], row[3:], "D", color=COLOURS[name])
axis.axhline(without, color="black", linewidth=0.8, linestyle="--")
axis.text(0.02, without + 1, "plain training", fontsize=9)
axis.set_xticks([0, 0.5, 1, 1.4], ["0", "0.5", "1", "auto"])
axis.set(xlabel="strength α", ylabel="test accuracy, percent")
axis.legend(frameon=False, loc="lower left")

# %% [markdown]
# **Explain.**
#
# * The good reference helps more, the more it may say.
# * The one that is too sure helps too. Its scale is wrong, what it knows is right.
# * The shuffled one is noise on the weights: a small harm that grows with $\alpha$.
# * The opposite one is a disaster at $\alpha=1$. It steers towards the wrong labels.
#
# `strength="auto"` estimates $\alpha^\ast$ while training. It never follows the opposite reference, and it gives
# up a part of the gain of the good one. It minimises a variance, not the error that you care about.
#
# A rule of thumb: know your reference? Take 0.5 or 1. Never seen it before? Take `"auto"`, or first look at
# the map.
#
# ## Another knob: the prior κ
#
# There is a second way to listen to a reference. Let the adversary start from unequal weights,
#
# $$ q_i \propto e^{-\kappa\,\ell_i^{\rm ref}}, $$
#
# so that an example that the reference finds wrong counts less from the beginning. $\kappa\ge0$ is the **prior**. In
# code it is `steering.DRRho(tau=1.0, prior=0.5)`. With KL both knobs give weights of the same form, because
# only the sum counts:
#
# $$ p_i \propto \exp\Big(\frac{\ell_i}{\tau} - \Big(\frac{\alpha}{\tau}+\kappa\Big)\ell_i^{\rm ref}\Big). $$

# %%
by_strength = steering.worst_case(losses - 1.0 * guide, "kl", penalty=2.0).weights
by_prior = steering.worst_case(losses, "kl", penalty=2.0, prior=(-0.5 * guide).exp()).weights
print("the same weights:", torch.allclose(by_strength, by_prior, atol=1e-7))

# %%
amounts = torch.linspace(0, 4, 33)
mass = torch.stack([(-k * guide).softmax(0)[wrong].sum() for k in amounts])
size = torch.stack([1 / (len(guide) * (-k * guide).softmax(0).square().sum()) for k in amounts])
fig, axis = figure("A prior takes mass from wrong labels, and examples from training")
axis.plot(amounts, mass, color=ORANGE)
axis.plot(amounts, size, color=BLUE)
axis.text(2.6, float(mass[-1]) + 0.03, "mass on wrong labels", color=ORANGE)
axis.text(2.0, float(size[20]) + 0.05, "effective share of the examples", color=BLUE)
axis.set(xlabel="prior κ", ylabel="share", ylim=(0, 1.02))

# %% [markdown]
# The **effective share** is $1/(n\sum_i p_i^2)$: 1 for equal weights, $1/n$ if one example has everything. It is
# the number to watch in a log. In `steer.estimate(...).metrics` it is called `effective_sample_share`.
#
# ## Exercises
#
# **6.1** Target losses 1, 2, 6, reference losses 0, 1, 2. What is $\alpha^\ast$?

# %%
answer = None
check("6.1", answer)

# %% [markdown]
# **6.2** Target and reference losses have the correlation 0.8. Which share of the variance of $\ell$ is left
# at $\alpha^\ast$?

# %%
answer = None
check("6.2", answer)

# %% [markdown]
# **6.3** You train with $\tau=0.5$ and $\alpha=1$. You now want the same weights with $\alpha=0$ and a prior. Which
# $\kappa$?

# %%
answer = None
check("6.3", answer)

# %% [markdown]
# **6.4** Your reference assigns *every* example the loss 0.69. Which strength should you take? a: 0. b: 1. c: it
# does not matter.

# %%
answer = None
check("6.4", answer)

# %% [markdown]
# **Words of this lesson**: *strength* $\alpha$, *covariance*, *prior* $\kappa$, *effective share*. Theory:
# [section 8](../theory.md#8-the-strength-α-the-reference-as-a-control-variate). Interactive:
# [strength](interactive/strength.html), [prior](interactive/prior.html).
