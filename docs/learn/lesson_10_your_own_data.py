# %% [markdown]
# # Lesson 10: your own data, from the first look to a result you can defend
#
# **After this lesson you can**
#
# * add steering to a PyTorch loop of your own, with five changed lines;
# * check before training whether a reference is likely to help;
# * look at the examples with the largest and smallest weights;
# * report a comparison over seeds with an interval;
# * decide which method to try.
#
# It builds on lessons 4 and 6 and takes about 30 minutes. The data are the handwritten digits of scikit-learn:
# 1797 pictures of 8 × 8 pixels.

# %%
import torch
import torch.nn.functional as F
from classroom import BLUE, GREY, ORANGE, check, figure
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import steering

# %% [markdown]
# ## Step 1: the data as you would meet them
#
# To have something to find, we copy a common accident: 40 % of the 1200 training labels have slipped by one, so
# that a 3 is called 4. 150 other pictures have been labelled with care. They train the reference and nothing else.
# The rest is for testing.

# %%
pictures, digits = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
pictures = pictures.float() / 16


def split(seed: int) -> tuple[torch.Tensor, ...]:
    """Numbers of the training, careful and test pictures, and the training labels as given."""
    torch.manual_seed(seed)
    order = torch.randperm(len(digits))
    train, careful, test = order[:1200], order[1200:1350], order[1350:]
    slipped = torch.rand(1200) < 0.4
    labels = torch.where(slipped, (digits[train] + 1) % 10, digits[train])
    return train, careful, test, labels


train, careful, test, labels = split(0)
wrong = labels != digits[train]
print("pictures for training", len(train), " with a wrong label", wrong.sum().item())

# %% [markdown]
# ## Step 2: the loop you have, and the lines that change
#
# The five marked lines are all there is.

# %%


def network(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)
    )


def fit(model, x, y, epochs, steer=None, reference_losses=None) -> torch.nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(100):
            losses = F.cross_entropy(model(x[index]), y[index], reduction="none")  # 1: per example
            if steer is None:
                loss = losses.mean()
            else:
                loss = steer(losses, reference_losses[index])  # 2: in the place of the mean
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def loss_fn(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


torch.manual_seed(0)
reference = fit(network(16), pictures[careful], digits[careful], epochs=60)
loader = DataLoader(TensorDataset(pictures[train], labels), batch_size=300)  # 3: not shuffled
reference_losses = steering.reference_losses(reference, loader, loss_fn, progress=False)  # 4: once
steer = steering.DRRho(tau=1.0)  # 5
target = fit(network(64), pictures[train], labels, 15, steer, reference_losses)


def accuracy(model, numbers) -> float:
    return 100 * model(pictures[numbers]).argmax(1).eq(digits[numbers]).float().mean().item()


print(f"reference {accuracy(reference, test):.0f} %, steered target {accuracy(target, test):.0f} %")

# %% [markdown]
# ## Step 3: will a reference help? Look before you train
#
# Train the target without steering for a short time, and compare losses. Two questions.
#
# * Do the losses of target and reference go up and down together? Their correlation should be positive.
# * Are there examples that the target has *not* learned and the reference has?
#
# You do not know which labels are wrong in your own data. These two questions need no such knowledge.

# %%
torch.manual_seed(0)
trial = fit(network(64), pictures[train], labels, epochs=3)
with torch.no_grad():
    losses = loss_fn(trial, (pictures[train], labels))
correlation = torch.corrcoef(torch.stack([losses, reference_losses]))[0, 1]
learnable = ((losses > losses.median()) & (reference_losses < reference_losses.median())).float()
print(
    f"correlation {correlation:.2f}, share that only the reference has learned {learnable.mean():.2f}"
)

# %%
weights = steering.worst_case(losses - reference_losses, "kl", penalty=1.0).weights
fig, axis = figure("The map of your data: target loss against reference loss, coloured by weight")
drawn = axis.scatter(reference_losses, losses, c=1200 * weights, s=8, cmap="viridis")
fig.colorbar(drawn, label="weight × n")
axis.set(xlabel="reference loss", ylabel="target loss after 3 epochs")

# %% [markdown]
# ## Step 4: look at examples, not only at numbers
#
# **Predict.** Which pictures will have the smallest weights?

# %%
order = weights.argsort()
fig, axes = figure(
    "Smallest weights (upper row) and largest (lower row), with the given label", 2, 8, 2.6
)
for row, chosen in zip(axes, [order[:8], order[-8:]], strict=True):
    for axis, number in zip(row, chosen.tolist(), strict=True):
        axis.imshow(pictures[train[number]].view(8, 8), cmap="gray_r")
        colour = ORANGE if wrong[number] else BLUE
        axis.set_title(f"“{labels[number]}”", fontsize=10, color=colour)
        axis.axis("off")

# %% [markdown]
# Labels in orange are wrong. This look takes a minute, and it finds broken data more often than any number.
#
# ## Step 5: a comparison that you can defend
#
# Same data, same number of steps, several seeds, and the *difference* within each seed. A difference within a
# seed is less noisy than two means, because both methods had the same data.

# %%


def one_seed(seed: int) -> list[float]:
    train, careful, test, labels = split(seed)
    x = pictures[train]
    reference = fit(network(16), pictures[careful], digits[careful], epochs=60)
    with torch.no_grad():
        guide = loss_fn(reference, (x, labels))
    scores = [100 * reference(pictures[test]).argmax(1).eq(digits[test]).float().mean().item()]
    for steer in (None, steering.DRRho(tau=1.0), steering.SoftFilter(prior=1.0)):
        model = fit(network(64), x, labels, 15, steer, guide)
        scores.append(100 * model(pictures[test]).argmax(1).eq(digits[test]).float().mean().item())
    return scores


seeds = range(5)
table = torch.tensor([one_seed(seed) for seed in seeds])
print("mean over five seeds, percent")
for name, scores in zip(["reference", "plain", "DRRho", "SoftFilter"], table.T, strict=True):
    print(f"{name:10} {scores.mean():.0f}")
gain = table[:, 2] - table[:, 1]
error = gain.std() / len(gain) ** 0.5
print(f"DRRho minus plain: {gain.mean():.0f} points, 95 % interval ± {2.78 * error:.0f}")

# %% [markdown]
# 2.78 is the factor of Student's $t$ for five seeds (four degrees of freedom). With three seeds it is 4.30.

# %%
fig, axis = figure("Every seed is a line: test accuracy of four ways", height=3.2)
for scores in table:
    axis.plot(range(4), scores, "o-", color=GREY, linewidth=0.8)
axis.plot(range(4), table.mean(0), "D-", color=BLUE, linewidth=2)
axis.set_xticks(range(4), ["reference", "plain", "DRRho", "SoftFilter"])
axis.set(ylabel="test accuracy, percent", xlim=(-0.3, 3.3))

# %% [markdown]
# ## Step 6: which method?
#
# | You have | Start with |
# |---|---|
# | clean data, no reference, a small group is lost | `GroupDRO` if you know the groups, else `DRRho` without a reference |
# | wrong labels or captions, a reference trained on clean data | `DRRho` and `SoftFilter`; compare them |
# | pairs with wrong captions | `NestedContrastiveLoss` with a large `outer_tau`: a filter |
# | a reference of unknown quality | `strength="auto"`, and step 3 first |
# | clean data and a weak reference | plain training; expect no gain |
# | more data than time | a selector such as `RhoLoss`: train on the best part of each batch |
#
# ## Step 7: what to watch while it trains
#
# `steer.estimate` returns weights and numbers for a log. In TensorBoard, or printed:

# %%
steer = steering.DRRho(tau=1.0)
with torch.no_grad():
    found = steer.estimate(losses[:100], reference_losses[:100])
for name in sorted(found.metrics):
    print(f"{name:24} {found.metrics[name]:.2f}")

# %% [markdown]
# An `effective_sample_share` near 1 means that nothing is steered. Below 0.1, a few examples decide, and $\tau$ is
# too low. Every number is explained [tag by tag](../tensorboard.md).
#
# ## Exercises
#
# **10.1** Five seeds, differences 1, 2, 3, 4, 5 points. What is the standard error of their mean? To two digits.

# %%
answer = None
check("10.1", answer)

# %% [markdown]
# **10.2** Is zero inside the 95 % interval for these five differences? a: yes. b: no.

# %%
answer = None
check("10.2", answer)

# %% [markdown]
# **10.3** The correlation in step 3 comes out as $-0.5$. What do you do? a: $\alpha=1$ all the same. b: look at the
# data and the reference first. c: raise $\tau$.

# %%
answer = None
check("10.3", answer)

# %% [markdown]
# **Change.** Give the wrong labels by chance, `torch.randint(10, (1200,))`, instead of slipping by one. Plain training
# is then as good as steering: random mistakes cancel each other. Systematic ones do not.
#
# Then put your own data in the place of the digits: any `pictures` and `labels` will do, and go on to the
# [guides](../index.md#all-of-model-steering): with a config, with several processes, in other trainers.
