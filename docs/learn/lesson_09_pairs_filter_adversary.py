# %% [markdown]
# # Lesson 9: weights on pairs, a filter and an adversary, the steering plane
#
# **After this lesson you can**
#
# * say why weights on negatives cannot see a wrong caption;
# * put weights on *pairs*, with an adversary, with a filter, or with both;
# * find each of them on one map, the steering plane;
# * choose between them for noisy pairs.
#
# It builds on [lesson 6](06-strength-and-bad-references.md) and [lesson 8](08-contrastive-by-hand.md), and takes
# about 30 minutes.

# %%
import torch
from classroom import BLUE, GREEN, GREY, ORANGE, PINK, TwoTowers, check, figure

import steering
from steering import functional

# %% [markdown]
# ## Wrong captions
#
# The small world of lesson 8, but 40 % of the training pairs have the caption of another picture. The
# reference was trained on 600 other pairs that are right.

# %%


def make_pairs(n: int, world, wrong: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Pictures (n, 24), captions (n, 24), concept of the picture (n,), and which are wrong (n,)."""
    concept = torch.randint(50, (n,))
    told = torch.where(torch.rand(n) < wrong, torch.randint(50, (n,)), concept)
    noise = 0.7 * torch.randn(2, n, 24)
    return world[0][concept] + noise[0], world[1][told] + noise[1], concept, concept != told


torch.manual_seed(0)
world = torch.randn(50, 24), torch.randn(50, 24)
train, other, test = (
    make_pairs(2000, world, wrong=0.4),
    make_pairs(600, world),
    make_pairs(2000, world),
)
wrong = train[3]
reference = TwoTowers(8)
reference.fit(other, lambda a, b, _: functional.clip_loss(a, b, tau=0.1), epochs=20)
with torch.no_grad():
    guide = reference(*train[:2])
print(
    f"wrong captions: {wrong.float().mean():.2f}; reference: {reference.accuracy(test, world):.2f} right"
)

# %% [markdown]
# Lesson 8 spread each anchor's weights over its negatives. They sum to one for *every* anchor, however wrong
# its caption is. To trust some pairs more than others takes a second set of weights, $q_i$, on the pairs.
# We write $G_i$ for the worst-case value of anchor $i$ over its negatives, and $G_i^{\rm ref}$ for the same
# with the reference's cosines. Then
#
# $$ q_i \propto \exp\Big(\frac{G_i - \beta\,G_i^{\rm ref}}{\lambda} - \kappa\,G_i^{\rm ref}\Big). $$
#
# | Letter | Name | Without it |
# |---|---|---|
# | $\lambda$ | temperature of the outer adversary | $\lambda\to\infty$: no adversary |
# | $\beta$ | strength of the reference there | $\beta=0$: DRO on pairs |
# | $\kappa$ | prior: trust in what the reference finds plausible | $\kappa=0$: equal trust |
#
# This is [equation (40)](../theory.md#12-nested-risk-an-adversary-over-anchors-ours). In code it is
# `steering.NestedContrastiveLoss`, and the three are `outer_tau`, `outer_strength` and `outer_prior`.
#
# **Predict.** Four ways are below. Which puts most weight on wrong captions? Which least?

# %%
WAYS = {
    "adversary alone": {"outer_tau": 0.1, "outer_strength": 0.0, "outer_prior": 0.0},
    "adversary, excess loss": {"outer_tau": 0.1, "outer_strength": 1.0, "outer_prior": 0.0},
    "filter": {"outer_tau": 100.0, "outer_strength": 0.0, "outer_prior": 3.0},
    "filter and adversary": {"outer_tau": 0.3, "outer_strength": 1.0, "outer_prior": 3.0},
}


def steered(options: dict) -> tuple[float, torch.Tensor]:
    """Test accuracy, and the mass on wrong captions of each epoch."""
    loss = steering.NestedContrastiveLoss(2000, tau=0.07, **options)
    mass = []

    def criterion(image, text, index):
        found = loss.estimate(image, text, index, *(side[index] for side in guide))
        mass.append(found.weights[wrong[index]].sum().item())
        return found.loss

    torch.manual_seed(0)
    model = TwoTowers(16)
    model.fit(train, criterion, epochs=8)
    return model.accuracy(test, world), torch.tensor(mass).view(8, -1).mean(1)


plain = steering.GlobalContrastiveLoss(2000, tau=0.07)
torch.manual_seed(0)
model = TwoTowers(16)
model.fit(train, plain, epochs=8)
found = {"no weights on pairs": (model.accuracy(test, world), wrong.float().mean().expand(8))}
found |= {name: steered(options) for name, options in WAYS.items()}
print("                         accuracy   mass on wrong captions")
for name, (score, mass) in found.items():
    print(f"{name:24} {score:8.2f} {mass[-1]:12.2f}")

# %%
fig, (left, right) = figure(
    "40 % wrong captions: where the weight goes, and what comes of it", 1, 2, 3.6
)
for place, ((name, (score, mass)), colour) in enumerate(
    zip(found.items(), [GREY, ORANGE, BLUE, GREEN, PINK], strict=True)
):
    left.plot(range(1, 9), mass, ".-", color=colour)
    right.barh(place, score, color=colour)
    right.text(0.01, place, name, va="center", color="white", fontsize=9)
left.set(xlabel="epoch", ylabel="mass on wrong captions", ylim=(0, 0.7))
right.set(xlabel="test accuracy", yticks=[])
right.invert_yaxis()

# %% [markdown]
# **Explain.**
#
# * The adversary alone runs after wrong captions, as DRO did in lesson 3. It ends far below plain training.
# * On the excess loss, it turns away from them.
# * The filter has nothing adversarial in it. It simply trusts pairs that the reference finds plausible, and
#   it gains most here.
# * Both together are no better than the filter alone.
#
# So the honest advice for noisy pairs is: try the filter first.
#
# ## The steering plane
#
# With KL, *every* way of this course gives weights of one form. For examples with losses $\ell$,
#
# $$ p_i \propto \exp\big(x\,\ell_i - y\,\ell_i^{\rm ref}\big), \qquad
#    x=\frac1\tau, \qquad y=\frac\alpha\tau+\kappa. $$
#
# A method is a point $(x, y)$ of a plane. We draw the mass on wrong captions over it, for the pairs of a
# half-trained target.

# %%
torch.manual_seed(0)
half = TwoTowers(16)
half.fit(train, plain, epochs=2)


def pair_values(image: torch.Tensor, text: torch.Tensor, tau: float = 0.07) -> torch.Tensor:
    """G of each pair, (n,): the mean of both directions."""
    cosine = image @ text.T
    unit = cosine - cosine.diagonal()[:, None], cosine.T - cosine.diagonal()[:, None]
    own = torch.eye(len(image), dtype=torch.bool)
    values = [steering.worst_case(rows, "kl", penalty=tau, mask=~own).value for rows in unit]
    return (values[0] + values[1]) / 2


some = torch.arange(500)
with torch.no_grad():
    value = pair_values(*half(train[0][some], train[1][some]))
    reference_value = pair_values(*(side[some] for side in guide))
across, up = torch.linspace(0, 10, 41), torch.linspace(0, 10, 41)
scores = across[None, :, None] * value - up[:, None, None] * reference_value  # (y, x, pairs)
p = scores.softmax(-1)
mass, effective = p[..., wrong[some]].sum(-1), 1 / (500 * p.square().sum(-1))

fig, axes = figure("The steering plane: each method is a point", 1, 2, 3.9)
for axis, shown, name in [
    (axes[0], mass, "mass on wrong captions"),
    (axes[1], effective, "effective share of the pairs"),
]:
    axis.grid(False)
    drawn = axis.contourf(across, up, shown, levels=11, cmap="cividis")
    fig.colorbar(drawn, ax=axis, location="bottom", label=name)
    axis.plot([0, 10], [0, 10], "--", color="white", linewidth=1)
    for x, y, label, place in [
        (0, 0, "plain", (6, 6)),
        (8, 0, "DRO", (-12, 8)),
        (8, 8, "DRRho", (-18, 9)),
        (0, 3, "filter", (8, -3)),
        (3.33, 6.33, "both", (8, -3)),
    ]:
        axis.plot(x, y, "o", color="white", markeredgecolor="black", clip_on=False, zorder=5)
        axis.annotate(label, (x, y), place, textcoords="offset points", color="white", fontsize=9)
    axis.set(xlabel="x = 1/τ", ylabel="y = α/τ + κ")

# %% [markdown]
# **Explain.**
#
# * The origin is plain training: equal weights.
# * The lower edge is DRO without a reference. Its mass on wrong captions rises to the right.
# * The diagonal (dashed) is DRRho with $\alpha=1$.
# * The left edge is the filter.
#
# Up is good for the left picture. But the right picture shows the price: far from the origin, a few pairs have all
# the weight, and the rest of the data is thrown away.
#
# ## Exercises
#
# **9.1** Which point of the plane is $\tau=0.5$, $\alpha=0.5$, $\kappa=1$? Give a list $[x, y]$.

# %%
answer = None
check("9.1", answer)

# %% [markdown]
# **9.2** You stand at $(2, 2)$ with $\alpha=1$ and $\kappa=0$. You set $\alpha=0$. Which $\kappa$ brings you back?

# %%
answer = None
check("9.2", answer)

# %% [markdown]
# **9.3** Which option makes `NestedContrastiveLoss` a pure filter? a: `outer_prior=0`. b: a very large
# `outer_tau`. c: `outer_strength=1`.

# %%
answer = None
check("9.3", answer)

# %% [markdown]
# **9.4** Ten pairs; two have the weight 1/2 each. What is the effective share?

# %%
answer = None
check("9.4", answer)

# %% [markdown]
# **Change.** Train the reference on noisy pairs too: `make_pairs(600, world, wrong=0.4)`. Does the filter still help?
#
# **Words of this lesson**: *pair weights* $q$, *nested risk*, *filter*, *steering plane*. Measured on real
# pictures: [noisy data](../noisy-data.md).
