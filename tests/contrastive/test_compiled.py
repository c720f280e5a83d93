"""A loop of one's own under torch.compile: the loss breaks the graph, and the gradient is the one
without.

The backend is AOT autograd without code generation: it needs no compiler, and a wrong gradient
would be made there.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steering

B, D = 24, 6


def gradients(compiled: bool, options: dict) -> list[Tensor]:
    torch.manual_seed(0)
    towers = nn.ModuleList([nn.Linear(5, D), nn.Linear(5, D)]).double()
    image, text = torch.randn(2, B, 5).double()
    guide = F.normalize(torch.randn(2, B, D).double(), dim=-1)
    criterion = steering.GlobalContrastiveLoss(B, tau=0.2, gamma=0.5, **options).double()

    def loss(image: Tensor, text: Tensor) -> Tensor:
        sides = (
            F.normalize(tower(x), dim=-1) for tower, x in zip(towers, (image, text), strict=True)
        )
        return criterion(*sides, torch.arange(B), *guide)

    step = torch.compile(loss, backend="aot_eager") if compiled else loss
    for _ in range(2):  # the second visit reads history
        towers.zero_grad()
        found = step(image, text)
        found.backward()
    return [found.detach(), *(p.grad for p in towers.parameters() if p.grad is not None)]


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
@pytest.mark.parametrize(
    "options", [{}, {"radius": 0.3}, {"radius": 0.3, "individual_tau": True}], ids=str
)
def test_a_compiled_loop_has_the_same_gradient(options):
    torch.compiler.reset()
    found, expected = gradients(True, options), gradients(False, options)
    assert len(found) == 5
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-10)
