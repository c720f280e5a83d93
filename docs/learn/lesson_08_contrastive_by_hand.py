# %% [markdown]
# # Lesson 8: contrastive losses, one anchor by hand
#
# **After this lesson you can**
#
# * say what an anchor, its positive and its negatives are;
# * compute an anchor's worst-case weights over its negatives;
# * show that CLIP's loss is such a worst case, with a margin set by the batch size;
# * say what a reference changes for a *false negative*.
#
# It builds on [lesson 1](01-mean-max-between.md) and [lesson 4](04-excess-loss.md), and takes about 30 minutes.

# %%
import torch
import torch.nn.functional as F
from classroom import BLUE, GREEN, GREY, ORANGE, PINK, TwoTowers, check, figure, rounded
from matplotlib.patches import Circle

import steering
from steering import functional

# %% [markdown]
# ## Pictures and captions as arrows
#
# A model like CLIP turns a picture into a vector of length one, and a caption too. The **cosine** of two such
# vectors is their inner product: 1 for the same direction, 0 for a right angle. A picture and its own caption
# should have a large cosine.
#
# Take one picture as the **anchor**. Its caption is the **positive**, all other captions are the
# **negatives**. The loss unit is *one anchor with one negative*: how much the wrong caption beats the right one,
#
# $$ \ell_j = S_j - S_{\rm positive}, $$
#
# where $S$ are cosines. It is negative when the right caption wins.

# %%
degrees = torch.tensor([15.0, 40.0, 75.0, 120.0, 170.0, 250.0, 320.0])  # caption 0 is the positive
captions = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], 1)
anchor = torch.tensor([1.0, 0.0])
cosines = captions @ anchor
losses = cosines[1:] - cosines[0]
print("cosine of the positive", round(cosines[0].item(), 2))
print("losses of the negatives", rounded(losses, 2))

# %% [markdown]
# Each anchor has its own adversary, who spreads weights over the *negatives*. Nothing else changes from
# lesson 1.
#
# **Predict.** Which negatives get the weight at a temperature of 0.07?

# %%
fig, axes = figure("One anchor and its negatives: the area of a dot is its weight", 1, 3, 2.9)
for axis, tau in zip(axes, [2.0, 0.5, 0.07], strict=True):
    weights = steering.worst_case(losses, "kl", penalty=tau).weights
    axis.add_patch(Circle((0, 0), 1, fill=False, color=GREY))
    axis.annotate("", (1, 0), (0, 0), arrowprops={"arrowstyle": "->", "linewidth": 2})
    axis.scatter(*captions[:1].T, s=90, marker="*", color=GREEN, zorder=3)
    axis.scatter(*captions[1:].T, s=5 + 500 * weights, color=ORANGE, alpha=0.7, zorder=3)
    axis.set_title(f"τ = {tau:g}", fontsize=10)
    axis.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
    axis.axis("off")
axes[0].text(0.2, -0.25, "anchor", fontsize=9)
axes[0].text(1.05, 0.2, "positive", fontsize=9, color=GREEN)

# %% [markdown]
# **Explain.** At a low temperature the adversary looks only at the nearest wrong captions. Those are the ones
# from which the model can still learn something.
#
# ## CLIP's loss is one of these
#
# CLIP minimises a cross-entropy, called **InfoNCE**: the picture must pick its caption among all $B$ captions of
# the batch. Divide inside the logarithm by the positive's term, and it becomes
#
# $$ -\log\frac{e^{S_{ii}/\tau}}{\sum_j e^{S_{ij}/\tau}}
#    = \log\Big(1+\sum_{j\ne i} e^{\ell_{ij}/\tau}\Big)
#    = \log(B-1) + \log\Big(\frac1{B-1} + u_i\Big), \qquad u_i=\frac1{B-1}\sum_{j\ne i}e^{\ell_{ij}/\tau}. $$
#
# $\tau\log u_i$ is the worst-case value of lesson 1 over the negatives. The number beside $u_i$ is called
# $\varepsilon$. For InfoNCE it is $1/(B-1)$: it depends on the batch size, by accident.
# `steering.GlobalContrastiveLoss` has it as an option.

# %%
torch.manual_seed(0)
B, tau = 8, 0.1
image, text = (F.normalize(torch.randn(B, 4), dim=1) for _ in range(2))
infonce = functional.clip_loss(image, text, tau=tau)
ours = steering.GlobalContrastiveLoss(B, tau=tau, epsilon=1 / (B - 1))(image, text, torch.arange(B))
print(f"InfoNCE                        {infonce:.5f}")
print(f"worst case / τ + log(B − 1)    {ours / tau + torch.tensor(B - 1.0).log():.5f}")

# %% [markdown]
# ## What ε does: an anchor lets go
#
# The weights of an anchor sum to $u/(\varepsilon+u)$. While its negatives are near, $u$ is large and the sum is
# one. When the positive wins by enough, $u$ falls below $\varepsilon$ and the anchor stops pulling. It wins by
# enough when the gap exceeds the **margin** $\tau\ln(1/\varepsilon)$.

# %%
gap = torch.linspace(-0.2, 1.2, 100)  # positive minus the negatives, all alike
fig, axis = figure("How hard an anchor still pulls, over the gap to its negatives (τ = 0.07)")
for epsilon, colour in [(1e-1, ORANGE), (1e-2, GREEN), (1e-4, BLUE), (1e-6, PINK)]:
    log_u = -gap / 0.07
    axis.plot(
        gap, (log_u - torch.tensor(epsilon).log()).sigmoid(), color=colour, label=f"ε = {epsilon:g}"
    )
    axis.axvline(-0.07 * torch.tensor(epsilon).log(), color=colour, linestyle=":", linewidth=1)
axis.set(xlabel="gap in cosine", ylabel="sum of the weights")
axis.legend(frameon=False, loc="lower left")

# %% [markdown]
# The dotted lines are the margins. This is [section 7](../theory.md#7-the-margin-τ-ln1ε) of the theory.
#
# ## False negatives, and a reference
#
# Two pictures may show the same thing. Then the caption of one fits the other, and calling it a negative is a
# mistake: it is a **false negative**. It is also the *nearest* negative, so the adversary loves it.
#
# Here is a small world: 50 concepts, and each pair shows one of them, with noise. In a batch of 100 every
# concept appears about twice.
#
# The model is `TwoTowers` of [classroom.py](classroom.py): one linear map for pictures, one for captions, and vectors of
# length one. Its `fit` is a plain loop as in lesson 4. Its `accuracy` is how often a picture finds the right one
# of the 50 names.

# %%


def make_world(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What each concept looks like, and how it is called, (50, 24) each."""
    torch.manual_seed(seed)
    return torch.randn(50, 24), torch.randn(50, 24)


def make_pairs(n: int, world) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures (n, 24), captions (n, 24), and their concept (n,)."""
    looks, names = world
    concept = torch.randint(50, (n,))
    picture, caption = looks[concept], names[concept]
    noise = 0.7 * torch.randn(2, n, 24)
    return picture + noise[0], caption + noise[1], concept


world = make_world(0)
train, other, test = (make_pairs(n, world) for n in (2000, 600, 2000))
torch.manual_seed(0)
reference = TwoTowers(8)
reference.fit(other, lambda a, b, _: functional.clip_loss(a, b, tau=0.1), epochs=20)
with torch.no_grad():
    guide = reference(*train[:2])
print(f"reference: {reference.accuracy(test, world):.2f} right")

# %% [markdown]
# `estimate` returns the weights $p_{ij}$ of every anchor over its negatives. We add up those that lie on false
# negatives, for a target that has been trained for two epochs.
#
# **Predict.** The reference thinks that a false negative is near, too. Is the excess loss of a false negative
# large or small?

# %%
torch.manual_seed(0)
target = TwoTowers(16)
target.fit(train, lambda a, b, _: functional.clip_loss(a, b, tau=0.07), epochs=2)
index = torch.arange(200)
with torch.no_grad():
    image, text = target(train[0][index], train[1][index])
false = train[2][index][:, None].eq(train[2][index]) & ~torch.eye(200, dtype=torch.bool)
strengths = [0.0, 0.25, 0.5, 0.75, 1.0]
shares = []
for strength in strengths:
    loss = steering.GlobalContrastiveLoss(2000, tau=0.07, strength=strength).eval()
    weights = loss.estimate(image, text, index, *(side[index] for side in guide)).weights
    shares.append((weights * false).sum().item() / weights.sum().item())
print(f"false negatives are {false.sum() / (200 * 199):.1%} of all negatives")
fig, axis = figure("Weight on false negatives, over the strength of the reference", height=3.0)
axis.plot(strengths, shares, "o-", color=BLUE)
axis.axhline(false.sum() / (200 * 199), color=GREY, linewidth=1)
axis.text(0.0, 0.03, "their share among the negatives", color=GREY, fontsize=9)
axis.set(xlabel="strength α", ylabel="share of the weight", ylim=(0, None))

# %% [markdown]
# **Explain.** Without a reference, the captions that are not wrong at all pull ten times harder than their
# number would suggest. The reference has a small gap there too. So the excess loss of a false negative is small,
# and the weight moves to captions that the reference can already tell apart.
#
# ## Does it help? Measure it
#
# Whether that makes a better model is another question. Here the pairs are clean and the reference is weak.

# %%


def with_clip(image, text, _index):
    return functional.clip_loss(image, text, tau=0.07)


def with_strength(strength: float):
    steer = steering.GlobalContrastiveLoss(2000, tau=0.07, strength=strength)
    return lambda image, text, index: steer(image, text, index, *(side[index] for side in guide))


ways = {
    "CLIP": with_clip,
    "α = 0": with_strength(0.0),
    "α = 0.5": with_strength(0.5),
    "α = 1": with_strength(1.0),
}
print("share of test pictures that find their name")
for name, criterion in ways.items():
    torch.manual_seed(0)
    model = TwoTowers(16)
    model.fit(train, criterion, epochs=10)
    print(f"{name:8} {model.accuracy(test, world):.2f}")

# %% [markdown]
# **Explain.** Here the reference does not help, and at full strength it does harm: it is so much weaker than the
# target that it holds the target back. Moving weights is one thing, a better model another. Always compare.
# In [lesson 9](09-pairs-filter-adversary.md) the captions are wrong, and the same reference helps.
#
# ## Exercises
#
# **8.1** The positive has cosine 0.8, a negative 0.3. What is the loss $\ell_j$?

# %%
answer = None
check("8.1", answer)

# %% [markdown]
# **8.2** Which margin in cosine do $\tau=0.05$ and $\varepsilon=0.01$ give? To two digits.

# %%
answer = None
check("8.2", answer)

# %% [markdown]
# **8.3** Which $\varepsilon$ does InfoNCE have in a batch of 257 pairs?

# %%
answer = None
check("8.3", answer)

# %% [markdown]
# **8.4** A negative has $\ell=-0.1$; the reference has $\ell^{\rm ref}=-0.1$ there. Another has $\ell=-0.2$ and
# $\ell^{\rm ref}=-0.9$. Which gets more weight at $\alpha=1$: the first (a) or the second (b)?

# %%
answer = None
check("8.4", answer)

# %% [markdown]
# **Words of this lesson**: *anchor*, *positive*, *negative*, *InfoNCE*, *margin*, *false negative*. Theory:
# [section 6](../theory.md#6-contrastive-losses-one-adversary-per-anchor).
