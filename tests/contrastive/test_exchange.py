"""The texts' gradient is waited for when there is nothing else to do, and not computed for a frozen
tower."""

import pytest
import torch
import torch.nn.functional as F
from adversaries import stochastic
from torch import Tensor, nn

from steering import distributed
from steering.contrastive import Pairs, exchange, global_risk
from steering.contrastive.risk import anchor_risks, info_nce_losses

B, D, LAYERS = 12, 6, 3


class Tower(nn.Module):
    """A chain of layers, which tells when each of them gets its gradient."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(D, D) for _ in range(LAYERS)])
        self.name, self.log = name, log

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x).tanh()
            x.register_hook(lambda _, number=number: self.log.append(f"{self.name} {number}"))
        return F.normalize(x, dim=-1)


def drrho(image: Tensor, text: Tensor) -> Tensor:
    return anchor_risks(
        stochastic(2 * B, tau=0.3), Pairs(image, text, torch.arange(B), image, text)
    )[0].mean()


def info_nce(image: Tensor, text: Tensor) -> Tensor:
    return info_nce_losses(Pairs(image, text, torch.arange(B)), torch.tensor(0.3)).mean()


@pytest.mark.parametrize("first", ["image", "text"])
@pytest.mark.parametrize("loss", [drrho, info_nce])
def test_the_image_tower_goes_backward_while_the_exchange_is_under_way(loss, first, monkeypatch):
    log: list[str] = []
    parcels: list[exchange.Parcel] = []
    fetch, send = exchange.Parcel.fetch, distributed.send_to_owner
    monkeypatch.setattr(
        exchange.Parcel,
        "fetch",
        lambda self: log.append("wait") or parcels.append(self) or fetch(self),
    )
    monkeypatch.setattr(distributed, "send_to_owner", lambda x: log.append("send") or send(x))
    torch.manual_seed(0)
    towers = {name: Tower(name, log) for name in ("image", "text")}
    order = [first, "text" if first == "image" else "image"]
    made = {name: towers[name](torch.randn(B, D)) for name in order}
    loss(made["image"], made["text"]).backward()
    image, text = (
        [f"{name} {number}" for number in reversed(range(LAYERS))] for name in ("image", "text")
    )
    assert log == ["send", *image, "wait", *text]
    assert [parcel.content for parcel in parcels] == [
        None
    ]  # the memory of what was sent is given back


def sides() -> list[Tensor]:
    return [
        *F.normalize(
            torch.randn(4, B, D, generator=torch.Generator().manual_seed(0)).double(), dim=-1
        )
    ]


def gradients(wanted: tuple[bool, bool]) -> list[Tensor | None]:
    image, text, *guide = sides()
    image.requires_grad_(wanted[0])
    text.requires_grad_(wanted[1])
    risks, _ = anchor_risks(
        stochastic(2 * B, tau=0.3).double(), Pairs(image, text, torch.arange(B), *guide)
    )
    risks.mean().backward()
    return [image.grad, text.grad]


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_a_frozen_tower_costs_neither_a_product_nor_an_exchange(wanted, monkeypatch):
    expected, made, sent = gradients((True, True)), [], []
    of, send = global_risk.gradients, distributed.send_to_owner

    def noted(*arguments):
        made.append(of(*arguments))
        return made[-1]

    monkeypatch.setattr(global_risk, "gradients", noted)
    monkeypatch.setattr(distributed, "send_to_owner", lambda x: sent.append(x) or send(x))
    found = gradients(wanted)
    for want, x, y, computed in zip(wanted, found, expected, made[0], strict=True):
        assert (computed is not None) == want
        if want:
            torch.testing.assert_close(x, y, rtol=0, atol=0)
    assert len(sent) == wanted[1]


def test_the_graph_can_be_used_twice():
    image, text, *guide = (side.requires_grad_(number < 2) for number, side in enumerate(sides()))
    risks, _ = anchor_risks(
        stochastic(2 * B, tau=0.3).double(), Pairs(image, text, torch.arange(B), *guide)
    )
    first = torch.autograd.grad(risks.mean(), (image, text), retain_graph=True)
    (alone,) = torch.autograd.grad(
        risks.mean(), image, retain_graph=True
    )  # nobody fetches the texts' part
    second = torch.autograd.grad(risks.mean(), (image, text))
    torch.testing.assert_close(alone, first[0], rtol=1e-14, atol=0)
    for x, y in zip(second, first, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-14, atol=0)


def test_a_second_derivative_is_refused_and_not_wrong():
    image, text, *guide = (side.requires_grad_(number < 2) for number, side in enumerate(sides()))
    risks, _ = anchor_risks(
        stochastic(2 * B, tau=0.3).double(), Pairs(image, text, torch.arange(B), *guide)
    )
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(risks.mean(), (image, text), create_graph=True)
