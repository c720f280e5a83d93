# %% [markdown]
# # Lesson 4: the excess loss, or how a second model steers
#
# **After this lesson you can**
#
# * say what a *reference model* and the *excess loss* are;
# * compute the losses of a reference once, and train with `steering.DRRho`;
# * read the picture of loss against reference loss;
# * compare plain training, DRO and steering over several seeds.
#
# It builds on [lesson 3](03-groups-and-wrong-labels.md), uses the same data, and takes about 25 minutes.

# %%
import torch
import torch.nn.functional as F
from classroom import BLUE, GREEN, GREY, ORANGE, check, figure
from torch.utils.data import DataLoader, TensorDataset

import steering

# %% [markdown]
# ## The idea in one line
#
# Suppose that somebody has already trained a small model. It is frozen, and we call it the **reference**.
# For each training example we compare the two losses:
#
# $$ h_i = \ell_i(\text{target}) - \ell_i(\text{reference}). $$
#
# $h_i$ is the **excess loss**: what the target model still loses *beyond* the reference.
#
# | Example | Loss of the target | Loss of the reference | Excess loss |
# |---|---|---|---|
# | learned already | small | small | about 0 |
# | not learned yet | large | small | **large** |
# | wrong label | large | large | about 0 |
#
# The adversary of lesson 1 now looks at $h$ instead of $\ell$. Everything else stays as it was. This is
# **DRRho**: DRO on the excess loss (arXiv 2505.06699, [equation (6)](../theory.md#2-the-excess-loss-and-drrho)).
#
# ## Data and reference
#
# The data of lesson 3: 4000 training points of which 30 % have a wrong label. The reference was trained on 800
# *other* points whose labels were checked by hand, which is a usual situation. It is eight times smaller than
# the target.

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


def fit(model, x, y, epochs, steer=None, reference_losses=None) -> list[torch.Tensor]:
    """Trains the model; returns its training losses after each epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    seen = []
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(128):
            losses = F.cross_entropy(model(x[index]), y[index], reduction="none")
            if steer is None:
                loss = losses.mean()
            elif reference_losses is None:
                loss = steer(losses, None)
            else:
                loss = steer(losses, reference_losses[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            seen.append(F.cross_entropy(model(x), y, reduction="none"))
    return seen


def accuracy(model, x, y) -> float:
    return model(x).argmax(1).eq(y).float().mean().item()


torch.manual_seed(1)
train_x, train_y, wrong = make_data(4000, wrong=0.3)
clean_x, clean_y, _ = make_data(800, wrong=0.0)
test_x, test_y, _ = make_data(5000, wrong=0.0)
reference = network(16)
fit(reference, clean_x, clean_y, epochs=20)
print(f"test accuracy of the reference: {accuracy(reference, test_x, test_y):.2f}")

# %% [markdown]
# The losses of the reference are computed **once**, before training. `steering.reference_losses` does it
# for a whole data set, with the model in eval mode and without gradients.

# %%


def loss_fn(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


loader = DataLoader(TensorDataset(train_x, train_y), batch_size=500)
reference_losses = steering.reference_losses(reference, loader, loss_fn, progress=False)
print("shape", tuple(reference_losses.shape))
print(f"mean on right labels {reference_losses[~wrong].mean():.2f}")
print(f"mean on wrong labels {reference_losses[wrong].mean():.2f}")

# %% [markdown]
# **Explain.** The reference never saw these labels. It finds the wrong ones surprising. That is the
# information that DRO did not have.
#
# ## The map: loss against reference loss
#
# Train a target for two epochs without steering, and look at every training example as a point.
#
# **Predict.** Where in this picture are the wrong labels? Where are the examples that the target still has
# to learn?

# %%
torch.manual_seed(0)
target = network(128)
losses = fit(target, train_x, train_y, epochs=2)[-1]
excess = losses - reference_losses
weights = {
    "DRO: weights by the loss": steering.worst_case(losses, "kl", penalty=1.0).weights,
    "DRRho: weights by the excess loss": steering.worst_case(excess, "kl", penalty=1.0).weights,
}
shown = torch.arange(1200)
fig, axes = figure("Loss against reference loss, coloured by weight", 2, 2, 5.8)
for (upper, lower), (name, p) in zip(axes.T, weights.items(), strict=True):
    ratio = (len(p) * p)[shown]
    drawn = upper.scatter(
        reference_losses[shown], losses[shown], c=ratio, s=7, cmap="viridis", vmin=0, vmax=3
    )
    upper.set_title(name, fontsize=10)
    lower.scatter(
        reference_losses[shown][~wrong[shown]], ratio[~wrong[shown]], s=4, color=BLUE, alpha=0.5
    )
    lower.scatter(
        reference_losses[shown][wrong[shown]], ratio[wrong[shown]], s=4, color=ORANGE, alpha=0.5
    )
    lower.set(xlabel="reference loss", ylim=(0, 4.5))
axes[0, 0].set_ylabel("target loss")
axes[1, 0].set_ylabel("weight × n")
axes[1, 0].text(4.4, 0.4, "blue: right labels\norange: wrong labels", fontsize=9)
fig.colorbar(drawn, ax=axes[0, :], label="weight × n", shrink=0.9)
for name, p in weights.items():
    print(
        f"{name:34} mass on wrong labels {p[wrong].sum():.2f} (equal weights: {wrong.float().mean():.2f})"
    )

# %% [markdown]
# **Explain.** DRO colours the picture from bottom to top: a large loss is enough. DRRho colours it from the
# lower right to the upper left. A point must have a large target loss *and* a small reference loss. The
# wrong labels have a large reference loss. Most of them sit on the right, and their weight falls *below* the
# equal share.
#
# ## Train with it
#
# `steering.DRRho` is a module without parameters. It takes the losses of a batch and the reference's losses of
# the same examples, and returns one loss.

# %%
torch.manual_seed(0)
target = network(128)
fit(
    target,
    train_x,
    train_y,
    epochs=10,
    steer=steering.DRRho(tau=1.0),
    reference_losses=reference_losses,
)
print(f"steered target: {accuracy(target, test_x, test_y):.2f}")

# %% [markdown]
# **Predict.** The target was steered by a smaller model. Can it become better than that model?
#
# One run says little. Here are three seeds of everything: data, reference and target.

# %%
METHODS = ["reference", "plain", "DRO", "DRRho"]


def one_seed(seed: int) -> tuple[list[float], dict[str, list[float]]]:
    """Test accuracy by method, and the mass on wrong labels after each epoch."""
    torch.manual_seed(seed)
    x, y, wrong = make_data(4000, wrong=0.3)
    clean = make_data(800, wrong=0.0)
    test = make_data(5000, wrong=0.0)
    reference = network(16)
    fit(reference, *clean[:2], epochs=20)
    with torch.no_grad():
        guide = F.cross_entropy(reference(x), y, reduction="none")
    scores, mass = [accuracy(reference, *test[:2])], {}
    ways = {
        "plain": (None, None),
        "DRO": (steering.DRRho(tau=1.0), None),
        "DRRho": (steering.DRRho(tau=1.0), guide),
    }
    for name, (steer, known) in ways.items():
        model = network(128)
        seen = torch.stack(fit(model, x, y, 8, steer, known))
        scores.append(accuracy(model, *test[:2]))
        if steer is None:
            p = torch.full_like(seen, 1 / len(x))
        elif known is None:
            p = steering.worst_case(seen, "kl", penalty=1.0).weights
        else:
            p = steering.worst_case(seen - known, "kl", penalty=1.0).weights
        mass[name] = p[:, wrong].sum(1).tolist()
    return scores, mass


found = [one_seed(seed) for seed in (1, 2, 3)]
scores = 100 * torch.tensor([one for one, _ in found])
print("test accuracy, percent, mean ± standard error over three seeds")
for place, name in enumerate(METHODS):
    error = scores[:, place].std() / len(found) ** 0.5
    print(f"{name:10} {scores[:, place].mean():.0f} ± {error:.0f}")

# %%
fig, (left, right) = figure("Steering by the excess loss on 30 % wrong labels", 1, 2, 3.4)
for name, colour in zip(["plain", "DRO", "DRRho"], [GREY, ORANGE, BLUE], strict=True):
    for place, (_, mass) in enumerate(found):
        label = name if place == 0 else None
        left.plot(range(1, 9), mass[name], ".-", color=colour, linewidth=1, label=label)
left.set(xlabel="epoch", ylabel="mass on wrong labels", ylim=(0, 0.65))
left.legend(frameon=False, fontsize=9)
for place, colour in enumerate([GREEN, GREY, ORANGE, BLUE]):
    right.plot([place] * len(found), scores[:, place], "o", color=colour)
    right.plot([place - 0.2, place + 0.2], [scores[:, place].mean()] * 2, color=colour)
right.set_xticks(range(4), METHODS)
right.set(ylabel="test accuracy, percent", xlim=(-0.5, 3.5))

# %% [markdown]
# **Explain.** The curve on the left is what the weights do: DRO runs after wrong labels, DRRho turns away
# from them. The points on the right are what comes of it. The steered target is better than plain training, and
# better than its own reference: a small model that has seen few examples knows *which* labels to
# doubt, and the target learns the rest from 4000 examples.
#
# Two honest remarks. The reference needed 800 clean examples, and plain training did not get those. And a
# bad reference steers badly; that is [lesson 6](06-strength-and-bad-references.md).
#
# ## Exercises
#
# **4.1** An example has target loss 2.3 and reference loss 2.1; another has 0.9 and 0.1. By which factor is the
# weight of the second larger, at $\tau=1$?

# %%
answer = None
check("4.1", answer)

# %% [markdown]
# **4.2** Same two examples, but DRO without a reference. Which factor now (second over first)?

# %%
answer = None
check("4.2", answer)

# %% [markdown]
# **4.3** All reference losses are equal to 0.7. What is DRRho then? a: plain training. b: DRO. c: neither.

# %%
answer = None
check("4.3", answer)

# %% [markdown]
# **4.4** The target has become equal to the reference. Which weight does each of $n=200$ examples get?

# %%
answer = None
check("4.4", answer)

# %% [markdown]
# **Change.** Train the reference on 100 clean examples instead of 800 (`make_data(800, ...)` in `one_seed`).
# How good does the reference have to be before steering beats plain training?
#
# **Words of this lesson**: *reference*, *target*, *excess loss*, *DRRho*, *steering*. Theory:
# [section 2](../theory.md#2-the-excess-loss-and-drrho).
