# %% [markdown]
# # Lesson 5: mini-batches, their bias, and the moving average
#
# **After this lesson you can**
#
# * say why a worst case over a mini-batch is not the worst case over the data;
# * measure that bias, and compare it with a formula;
# * remove it with a moving average, and choose its rate $\gamma$;
# * read the options `gamma` and `estimator` of `steering.DRRho`.
#
# It builds on [lesson 1](01-mean-max-between.md) and takes about 25 minutes.

# %%
import torch
from classroom import BLUE, GREEN, GREY, ORANGE, PINK, check, figure

import steering

# %% [markdown]
# ## The mean forgives small batches, the worst case does not
#
# The mean loss of a random **mini-batch** is right on average: its expectation is the mean over all data. We
# say that it is *unbiased*. The worst-case value has a logarithm around the mean,
#
# $$ V_\tau = \tau\log u, \qquad u = \frac1n\sum_i e^{h_i/\tau}. $$
#
# $u$ is a mean and forgives. Its logarithm does not. For a batch of *one* example, $\tau\log e^{h/\tau}=h$:
# there is nobody to compare with, and the method is plain training.
#
# **Predict.** Will batches give a value that is too large on average, or too small?

# %%
torch.manual_seed(0)
h = torch.randn(10_000, dtype=torch.float64)  # excess losses of a whole data set
sizes = [1, 2, 4, 8, 16, 32, 64, 128]


def batch_values(tau: float, size: int, batches: int = 4000) -> torch.Tensor:
    """The worst-case value of many random mini-batches, (batches,)."""
    rows = h[torch.randint(len(h), (batches, size))]
    return steering.worst_case(rows, "kl", penalty=tau).value


fig, axis = figure("The worst case of a mini-batch is too small on average")
for tau, colour in [(2.0, GREEN), (1.0, BLUE), (0.5, ORANGE)]:
    true = steering.worst_case(h, "kl", penalty=tau).value
    bias = torch.stack([batch_values(tau, size).mean() for size in sizes]) - true
    scores = h / tau
    spread = (2 * scores).exp().mean() / scores.exp().mean() ** 2
    axis.semilogx(sizes, bias, "o-", color=colour, base=2, label=f"measured, τ = {tau:g}")
    formula = torch.tensor([-tau * (spread - 1) / (2 * size) for size in sizes])
    axis.semilogx(sizes, formula, ":", color=colour, base=2)
axis.axhline(0, color="black", linewidth=0.8)
axis.set(xlabel="batch size", ylabel="bias of the value", ylim=(-1.1, 0.05))
axis.plot([], [], ":", color=GREY, label="formula")
axis.legend(frameon=False, loc="lower right")

# %% [markdown]
# **Explain.** Too small. A small batch often misses the few examples with a large $h$, and those are what
# the worst case is about. The dotted lines are [equation (18)](../theory.md#5-mini-batches-the-bias-and-the-moving-average):
# the bias falls like one over the batch size, and is larger for lower temperatures. (It is an approximation
# for large batches.)
#
# ## What the bias does to training
#
# The thermostat of [lesson 3](03-groups-and-wrong-labels.md): 90 rooms want 20 degrees, 10 want 24. With all
# rooms at once, DRO at $\tau=3$ chooses 21.5. The mean would choose 20.5.

# %%
torch.manual_seed(0)
wishes = torch.cat([20 + 0.5 * torch.randn(90), 24 + 0.5 * torch.randn(10)])
settings = torch.linspace(19, 25, 241)
risks = steering.worst_case((settings[:, None] - wishes).square(), "kl", penalty=3.0).value
exact = settings[risks.argmin()].item()


def train(size: int, gamma: float, steps: int = 500) -> list[float]:
    """The setting after each step of SGD on batches of this size."""
    torch.manual_seed(0)
    setting = torch.tensor(20.5, requires_grad=True)
    optimizer = torch.optim.SGD([setting], lr=0.05)
    steer = steering.DRRho(tau=3.0, gamma=gamma)
    path = []
    for _ in range(steps):
        losses = (setting - wishes[torch.randint(100, (size,))]).square()
        optimizer.zero_grad()
        steer(losses, None).backward()
        optimizer.step()
        path.append(setting.item())
    return path


few = [1, 4, 16, 64]
found = {gamma: [sum(train(size, gamma)[250:]) / 250 for size in few] for gamma in (1.0, 0.1)}
print("batch size         ", few)
for gamma, reached in found.items():
    print(f"setting, γ = {gamma:3} ", [round(value, 1) for value in reached])

# %% [markdown]
# **Explain.** The row $\gamma=1$ uses each batch alone. With batches of one it stays at the mean, 20.5. The row
# $\gamma=0.1$ remembers. It reaches 21.5 with batches of four, and comes near it with batches of one.
#
# ## Remember the normaliser
#
# The weight of example $i$ is $e^{h_i/\tau}$ divided by $u$. The numerator is known exactly. Only $u$ needs many
# examples, and it is *one number*. So keep a **moving average** of it,
#
# $$ u \leftarrow (1-\gamma)\,u + \gamma\,\hat u, $$
#
# where $\hat u$ is the mean of $e^{h/\tau}$ over the current batch, and $0<\gamma\le1$ is a rate. In plain Python,
# with logarithms so that nothing overflows:

# %%
gamma, log_u = 0.1, None
torch.manual_seed(1)
trace = []
for _ in range(150):
    batch = h[torch.randint(len(h), (4,))]
    fresh = batch.exp().mean().log()
    if log_u is None:
        log_u = fresh
    else:
        log_u = torch.logaddexp(
            log_u + torch.tensor(1 - gamma).log(), fresh + torch.tensor(gamma).log()
        )
    trace.append((fresh.item(), log_u.item()))
fresh, kept = torch.tensor(trace).T
true = h.exp().mean().log()
fig, axis = figure("log u from batches of four: each alone, and remembered")
axis.plot(fresh, ".", color=GREY, markersize=4, label="batch alone")
axis.plot(kept, color=BLUE, linewidth=2, label="moving average, γ = 0.1")
axis.axhline(true, color=ORANGE, label="all data")
axis.set(xlabel="step", ylabel="log u")
axis.legend(frameon=False, ncols=3, loc="upper right", fontsize=9)

# %% [markdown]
# For losses that stand still, $\gamma=0.1$ makes one batch count for 19: the average has the variance of
# $(2-\gamma)/\gamma$ batches.
#
# ## The price of memory is lag
#
# While the model learns, $u$ changes, and the average is late.
#
# **Predict.** The losses fall quickly at the beginning of training. Is the remembered $u$ then too large or
# too small? Are the weights then too large or too small?

# %%
torch.manual_seed(2)
level = 2 * torch.exp(-torch.arange(200) / 40)  # all losses sink by this much
fig, axis = figure("A long memory is smooth and late")
target = level + true
axis.plot(target, color=ORANGE, linewidth=2, label="all data")
batches = h[torch.randint(len(h), (200, 16))] + level[:, None]
for gamma, colour in [(1.0, GREY), (0.3, GREEN), (0.03, PINK)]:
    u = batches[0].exp().mean()
    path = []
    for batch in batches:
        u = (1 - gamma) * u + gamma * batch.exp().mean()
        path.append(u.log().item())
    axis.plot(path, color=colour, linewidth=1.2, label=f"γ = {gamma:g}")
axis.set(xlabel="step", ylabel="log u")
axis.legend(frameon=False, fontsize=9)

# %% [markdown]
# **Explain.** With $\gamma=0.03$ the average stays too large for a hundred steps, so all weights are too small
# for a while. That acts like a smaller learning rate. Noise asks for a small $\gamma$, change asks for a large
# one. `gamma_decay_epochs` begins with 1 and moves to `gamma`,
# [equation (21)](../theory.md#5-mini-batches-the-bias-and-the-moving-average).
#
# What `steering.DRRho` offers:
#
# | Option | What it does |
# |---|---|
# | `gamma=0.9`, the default for examples | nearly each batch alone; good for batches of 100 and more |
# | `gamma=0.1` | small batches, low temperatures |
# | `estimator="batch"` | each batch alone, every divergence |
# | `estimator="proximal"` | a remembered threshold instead of $u$; for half chi-square and CVaR |
# | `estimator="mirror_descent"` | another way to move $u$ (arXiv 2602.02877) |
#
# ## Exercises
#
# **5.1** Losses $h/\tau$ with $e^{h/\tau}=1, 2, 4$. What is the mean of $\log\hat u$ over the three batches of
# size one? To three digits. (The true value is $\log\frac73=0.847$.)

# %%
answer = None
check("5.1", answer)

# %% [markdown]
# **5.2** The same, for the three different batches of size two.

# %%
answer = None
check("5.2", answer)

# %% [markdown]
# **5.3** $u$ starts with 1. Then come batches with $\hat u=2$ and $\hat u=4$, and $\gamma=\frac12$. What is $u$?

# %%
answer = None
check("5.3", answer)

# %% [markdown]
# **5.4** For how many batches does one count with $\gamma=0.02$?

# %%
answer = None
check("5.4", answer)

# %% [markdown]
# **Change.** In `train`, use `steering.DRRho(tau=0.5, gamma=gamma)`. What goes wrong for small batches, and
# which $\gamma$ mends it?
#
# **Words of this lesson**: *mini-batch*, *bias*, *normaliser* $u$, *moving average*, *rate* $\gamma$, *lag*.
