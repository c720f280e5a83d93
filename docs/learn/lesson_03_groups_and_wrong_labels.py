# %% [markdown]
# # Lesson 3: where the worst case helps, and where it fails
#
# **After this lesson you can**
#
# * train with a worst-case loss instead of the mean, by changing one line;
# * say what it does for a small group that plain training gives up;
# * show, with numbers, why it fails on wrong labels;
# * name what is missing, which is what lesson 4 adds.
#
# It builds on [lesson 1](01-mean-max-between.md) and takes about 25 minutes.

# %%
import torch
import torch.nn.functional as F
from classroom import BLUE, GREEN, GREY, ORANGE, PINK, check, figure

import steering
from steering import functional

# %% [markdown]
# Training against an adversary that chooses the weights has a name: **distributionally robust
# optimisation**, short **DRO**. In code, one line of the loop changes:
#
# ```text
# loss = losses.mean()                              plain training
# loss = functional.dro_loss(losses, tau=1.0)       DRO, KL at temperature 1
# ```
#
# It is the worst-case value of lesson 1, `steering.worst_case(losses, "kl", penalty=1.0).value`, of the losses of a batch.
#
# ## Part one: one number for 100 rooms
#
# A building has 100 rooms and one thermostat. In 90 rooms people want about 20 degrees, in the other 10
# about 24. The loss of a room is the squared distance between its wish and the setting.
#
# **Predict.** Which setting has the smallest mean loss? Which one has the smallest largest loss?

# %%
torch.manual_seed(0)
wishes = torch.cat([20 + 0.5 * torch.randn(90), 24 + 0.5 * torch.randn(10)])
settings = torch.linspace(19, 25, 241)
losses = (settings[:, None] - wishes).square()  # (settings, rooms)

# One row of losses for each setting: `worst_case` solves all rows at once.
curves = {"mean": losses.mean(1)}
for tau in [8.0, 3.0, 1.0]:
    curves[f"DRO, τ = {tau:g}"] = steering.worst_case(losses, "kl", penalty=tau).value
curves["largest loss"] = losses.amax(1)
for name, curve in curves.items():
    best = settings[curve.argmin()]
    print(f"{name:13} best setting {best:.1f}")

# %%
fig, axis = figure("What each risk says about the setting (dot: its minimum)")
for (name, curve), colour in zip(curves.items(), [GREY, GREEN, BLUE, PINK, ORANGE], strict=True):
    axis.plot(settings, curve, color=colour, label=name)
    axis.plot(settings[curve.argmin()], curve.min(), "o", color=colour)
axis.plot(wishes, torch.full((100,), -0.7), "|", color="black")
axis.text(18.75, -0.7, "wishes", ha="right", va="center", fontsize=9)
axis.set(xlabel="thermostat setting", ylabel="risk", xlim=(18.3, 25), ylim=(-1.5, 20))
axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)

# %% [markdown]
# **Explain.** The mean hardly moves for ten cold rooms. The adversary finds them, because their losses are
# large, and DRO moves towards them. Nobody told it which rooms belong together. The lower the price, the
# further it goes.
#
# That is what DRO is for: hard examples that are *right*.
#
# ## Where DRO on examples is not enough: groups
#
# Now a classifier. In the large group (90 %) the label shows in the first coordinate, in the small group
# (10 %) in the second. One straight line must serve both.

# %%
torch.manual_seed(0)
y = torch.randint(2, (1000,))
small = torch.arange(1000) >= 900
x = torch.randn(1000, 2)
x[~small, 0] += 1.5 * (2 * y[~small] - 1)
x[small, 1] += 1.5 * (2 * y[small] - 1)


def fit_line(risk, steps: int = 300) -> torch.nn.Module:
    """A linear classifier; `risk` turns its losses into one number."""
    torch.manual_seed(0)
    line = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(line.parameters(), lr=0.05)
    for _ in range(steps):
        losses = F.cross_entropy(line(x), y, reduction="none")
        optimizer.zero_grad()
        risk(losses).backward()
        optimizer.step()
    return line


by_group = steering.GroupDRO(num_groups=2, step=0.1)
risks = {
    "plain": torch.Tensor.mean,
    "DRO, τ = 1": lambda losses: functional.dro_loss(losses, tau=1.0),
    # The losses, no reference (that is lesson 4), and the number of each example's group.
    "GroupDRO": lambda losses: by_group(losses, None, small.long()),
}
lines = {name: fit_line(risk) for name, risk in risks.items()}
print("accuracy     large group   small group")
for name, line in lines.items():
    right = line(x).argmax(1).eq(y).float()
    print(f"{name:12} {right[~small].mean():8.2f} {right[small].mean():13.2f}")

# %%
fig, axes = figure("One line for two groups (large dots: the small group)", 1, 3, 2.9)
colours = [BLUE if label else ORANGE for label in y]
for axis, (name, line) in zip(axes, lines.items(), strict=True):
    axis.scatter(*x[:900].T, s=4, c=colours[:900], alpha=0.3)
    axis.scatter(*x[900:].T, s=22, c=colours[900:], edgecolors="black", linewidths=0.5)
    with torch.no_grad():
        slope, offset = line.weight[1] - line.weight[0], line.bias[1] - line.bias[0]
    across = torch.linspace(-9, 9, 2)
    axis.plot(across, -(slope[0] * across + offset) / slope[1], color="black", linewidth=2)
    axis.set(title=name, xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
    axis.title.set_fontsize(10)

# %% [markdown]
# **Explain.** Plain training gives the small group up. DRO on single examples changes little here. Both
# groups have points on the wrong side, and the adversary cannot tell which of those belong together. The
# classifier can also calm it in a cheap way: it becomes less sure of everything.
#
# `steering.GroupDRO` is told the groups. Its adversary weighs groups instead of examples, and both groups come
# out alike.
#
# ## Part two: wrong labels
#
# Now points in 20 dimensions with two classes and a curved border. In the training data, 30 % of the labels
# are **wrong**: they have been flipped. We know which, the methods do not. The test data are clean.

# %%


def make_data(n: int, wrong: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points (n, 20), labels (n,), and which labels are wrong (n,)."""
    x = torch.randn(n, 20)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()
    flipped = torch.rand(n) < wrong
    return x, torch.where(flipped, 1 - y, y), flipped


torch.manual_seed(1)
train_x, train_y, wrong = make_data(4000, wrong=0.3)
test_x, test_y, _ = make_data(5000, wrong=0.0)
print("wrong labels:", wrong.sum().item(), "of", len(wrong))

# %% [markdown]
# The loop below is an ordinary PyTorch loop. After each epoch it asks for the weights that its own adversary
# gives to the whole training set, and adds up those of the wrong labels. We call that sum the **mass on wrong labels**.
# With equal weights it is 0.30.

# %%


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(20, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))


def train(tau: float, epochs: int = 10) -> dict[str, list[float]]:
    """Test accuracy, and mass on wrong labels, after each epoch; τ = ∞ is plain training."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    seen = {"accuracy": [], "mass": []}
    for _ in range(epochs):
        for index in torch.randperm(len(train_x)).split(128):
            losses = F.cross_entropy(model(train_x[index]), train_y[index], reduction="none")
            optimizer.zero_grad()
            steering.worst_case(losses, "kl", penalty=tau).value.backward()
            optimizer.step()
        with torch.no_grad():
            losses = F.cross_entropy(model(train_x), train_y, reduction="none")
            accuracy = model(test_x).argmax(1).eq(test_y).float().mean()
        weights = steering.worst_case(losses, "kl", penalty=tau).weights
        seen["accuracy"].append(accuracy.item())
        seen["mass"].append(weights[wrong].sum().item())
    return seen


# %% [markdown]
# **Predict.** Which examples have a large loss here? What will the adversary do?

# %%
runs = {
    "plain": train(tau=float("inf")),
    "DRO, τ = 1": train(tau=1.0),
    "DRO, τ = 0.3": train(tau=0.3),
}
for name, seen in runs.items():
    print(
        f"{name:13} test accuracy: best {max(seen['accuracy']):.2f}, last {seen['accuracy'][-1]:.2f}"
    )

# %%
fig, (left, right) = figure("DRO on 30 % wrong labels: it runs after them", 1, 2, 3.3)
for (name, seen), colour in zip(runs.items(), [GREY, BLUE, ORANGE], strict=True):
    epochs = range(1, len(seen["accuracy"]) + 1)
    left.plot(epochs, seen["mass"], ".-", color=colour, label=name)
    right.plot(epochs, seen["accuracy"], ".-", color=colour, label=name)
left.set(xlabel="epoch", ylabel="mass on wrong labels", ylim=(0.2, 0.6))
right.set(xlabel="epoch", ylabel="test accuracy")
right.legend(frameon=False, fontsize=9)

# %% [markdown]
# **Explain.** A wrong label has a large loss as long as the model has not learned it by heart. So the
# adversary puts more than its share of the weight there, and training pulls hardest in the wrong direction.
# The bolder the adversary, the worse the model.
#
# Look at the losses of one model after two epochs. Right and wrong labels overlap, but at the right end of
# the axis, where the adversary looks, almost everything is wrong.

# %%
model = network()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(2):
    for index in torch.randperm(len(train_x)).split(128):
        optimizer.zero_grad()
        F.cross_entropy(model(train_x[index]), train_y[index]).backward()
        optimizer.step()
with torch.no_grad():
    losses = F.cross_entropy(model(train_x), train_y, reduction="none")
fig, axis = figure("A large loss does not say why it is large")
bins = torch.linspace(0, 3, 31).numpy()
axis.hist(losses[~wrong].numpy(), bins, color=BLUE, alpha=0.6, label="right labels")
axis.hist(losses[wrong].numpy(), bins, color=ORANGE, alpha=0.6, label="wrong labels")
axis.set(xlabel="loss", ylabel="examples")
axis.legend(frameon=False)
share = wrong[losses.topk(400).indices].float().mean()
print(f"wrong labels among the 400 largest losses: {share:.2f}")

# %% [markdown]
# The loss alone mixes up two things: what the model *has not learned yet*, and what it *should never
# learn*. Somebody has to tell them apart. In [lesson 4](04-excess-loss.md) that is a second, small model.
#
# ## Exercises
#
# **3.1** A group holds 10 % of the examples. All its losses are 2, all others are 0. Which mass does the
# group get at $\tau=1$? To two digits.

# %%
answer = None
check("3.1", answer)

# %% [markdown]
# **3.2** The same, but the price is 0.3.

# %%
answer = None
check("3.2", answer)

# %% [markdown]
# **3.3** A model gives the right label of *every* example the probability 0.8. A share 0.3 of the given labels
# is wrong. Which mass do the wrong ones get at $\tau=1$? (The loss is the negative logarithm of the
# probability of the *given* label.)

# %%
answer = None
check("3.3", answer)

# %% [markdown]
# **3.4** Which change makes the mass in 3.3 *smaller*? a: a lower temperature. b: a higher temperature. c: a
# model that is surer of the right labels.

# %%
answer = None
check("3.4", answer)

# %% [markdown]
# **Change.** In part two, set `wrong=0.0` in the training data and run the cells again. Does DRO still do
# harm?
#
# **Words of this lesson**: *DRO*, *group*, *wrong label*, *mass on wrong labels*. Theory:
# [section 1](../theory.md#1-empirical-risk-and-an-adversary), and
# [groups](../theory.md#13-groups-instead-of-examples).
