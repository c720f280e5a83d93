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
from classroom import BLUE, GREEN, GREY, ORANGE, check, figure, rounded

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
# ## Part one: two groups, one straight line
#
# Here are 1000 points with two labels. In the large group (90 %) the label depends on the first
# coordinate. In the small group (10 %) it depends on the second. One straight line must serve both.

# %%
torch.manual_seed(0)
x = torch.randn(1000, 2)
small = torch.arange(1000) >= 900
y = torch.where(small, x[:, 1], x[:, 0]).gt(0).long()


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


# %% [markdown]
# **Predict.** Plain training minimises the mean. On which group will its line be right? What will DRO at a
# low temperature do to the large group?

# %%
risks = {
    "plain": torch.Tensor.mean,
    "DRO, τ = 1": lambda losses: functional.dro_loss(losses, tau=1.0),
    "DRO, τ = 0.3": lambda losses: functional.dro_loss(losses, tau=0.3),
}
lines = {name: fit_line(risk) for name, risk in risks.items()}
print("accuracy       large group   small group   all")
for name, line in lines.items():
    right = line(x).argmax(1).eq(y).float()
    print(f"{name:14} {right[~small].mean():8.2f} {right[small].mean():13.2f} {right.mean():10.2f}")

# %%
fig, axes = figure("One line for two groups (large dots: the small group)", 1, 3, 2.9)
colours = [BLUE if label else ORANGE for label in y]
for axis, (name, line) in zip(axes, lines.items(), strict=True):
    axis.scatter(*x[:900].T, s=4, c=colours[:900], alpha=0.3)
    axis.scatter(*x[900:].T, s=22, c=colours[900:], edgecolors="black", linewidths=0.5)
    with torch.no_grad():
        slope, offset = line.weight[1] - line.weight[0], line.bias[1] - line.bias[0]
    across = torch.linspace(-4, 4, 2)
    axis.plot(across, -(slope[0] * across + offset) / slope[1], color="black", linewidth=2)
    axis.set(title=name, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    axis.title.set_fontsize(10)

# %% [markdown]
# **Explain.** Plain training finds that the small group is cheap to lose: 10 % of the points. The adversary
# finds exactly those points, because their losses are large. Nobody told it which point belongs to which
# group. The line tilts, the small group gains, and the large one pays for it.
#
# That is what DRO is for: hard examples that are *right*.
#
# Where the groups are known, `steering.GroupDRO` weighs the groups instead of the examples, and the
# adversary cannot pick single points.

# %%
torch.manual_seed(0)
steer = steering.GroupDRO(num_groups=2, step=0.1)
by_group = fit_line(lambda losses: steer(losses, None, small.long()))
right = by_group(x).argmax(1).eq(y).float()
print(f"GroupDRO: large {right[~small].mean():.2f}, small {right[small].mean():.2f}")

# %% [markdown]
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
# The loop below is an ordinary PyTorch loop. After each epoch it asks for the adversary's weights on the
# whole training set, and adds up those of the wrong labels. We call that sum the **mass on wrong labels**.
# With equal weights it is 0.30.

# %%


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(20, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))


def train(risk, epochs: int = 10) -> dict[str, list[float]]:
    """Test accuracy, and mass on wrong labels at τ = 1, after each epoch."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    seen = {"accuracy": [], "mass": []}
    for _ in range(epochs):
        for index in torch.randperm(len(train_x)).split(128):
            losses = F.cross_entropy(model(train_x[index]), train_y[index], reduction="none")
            optimizer.zero_grad()
            risk(losses).backward()
            optimizer.step()
        with torch.no_grad():
            losses = F.cross_entropy(model(train_x), train_y, reduction="none")
            accuracy = model(test_x).argmax(1).eq(test_y).float().mean()
        weights = steering.worst_case(losses, "kl", penalty=1.0).weights
        seen["accuracy"].append(accuracy.item())
        seen["mass"].append(weights[wrong].sum().item())
    return seen


# %% [markdown]
# **Predict.** Which examples have a large loss here? What will the adversary do?

# %%
runs = {
    "plain": train(torch.Tensor.mean),
    "DRO, τ = 1": train(lambda losses: functional.dro_loss(losses, tau=1.0)),
    "DRO, τ = 0.3": train(lambda losses: functional.dro_loss(losses, tau=0.3)),
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
left.axhline(0.3, color="black", linewidth=0.8)
left.text(10, 0.31, "equal weights", ha="right", fontsize=9)
left.set(xlabel="epoch", ylabel="mass on wrong labels, τ = 1", ylim=(0.25, 0.62))
right.set(xlabel="epoch", ylabel="test accuracy")
right.legend(frameon=False, fontsize=9)

# %% [markdown]
# **Explain.** A wrong label has a large loss as long as the model has not learned it by heart. So the
# adversary puts more than its share of the weight there, and training pulls hardest in the wrong direction.
# The mass falls in later epochs only because the model begins to remember wrong labels, which is worse
# still.
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
