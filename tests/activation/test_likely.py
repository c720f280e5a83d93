"""Shifts that are fitted through the model, by the likelihood of answers."""

import copy

import pytest
import torch
from tiny import BLOCKS, END, causal

from steering.activation import Edit, Likely, Shift, Speaker, answer_losses, steered

PROMPTS = [[1, 2, 3], [4], [5, 6]]
BETTER = [[7, 8, 7, 8], [8, 7], [7, 7, 8]]
WORSE = [[9, 10, 9], [10, 9, 9, 10], [9]]
LAYERS = [f"{BLOCKS['gpt2']}.{number}" for number in (0, 2)]


def likelihood(speaker, edits, answers):
    with_edits = Speaker(speaker.network, END, [*speaker.edits, *edits], speaker.keep_norm)
    return -float(answer_losses(with_edits, PROMPTS, answers).sum())


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_better_answers_become_likelier_and_no_weight_moves(keep_norm, beta):
    model = causal(dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    speaker = Speaker(model, END, keep_norm=keep_norm)
    edits = Likely(epochs=12, batch_size=2, beta=beta).fit(
        speaker, LAYERS, PROMPTS, BETTER, WORSE, "answer"
    )
    assert [(edit.layer, edit.strength, edit.scope) for edit in edits] == [
        (layer, 1.0, "answer") for layer in LAYERS
    ]
    gains = [
        likelihood(speaker, edits, side) - likelihood(speaker, [], side) for side in (BETTER, WORSE)
    ]
    assert gains[0] - gains[1] > 5
    assert beta or gains[0] > 5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(edit.move.direction.requires_grad for edit in edits)


def test_a_fit_is_the_same_again_and_a_large_ridge_leaves_nothing():
    speaker = Speaker(causal(dtype=torch.float32), END)
    fits = [
        Likely(epochs=3, batch_size=2, ridge=ridge, seed=4).fit(
            speaker, LAYERS, PROMPTS, BETTER, WORSE
        )
        for ridge in (0.0, 0.0, 1e4)
    ]
    norms = [[float(edit.move.direction.norm()) for edit in edits] for edits in fits]
    assert norms[0] == norms[1]
    assert sum(norms[2]) < 0.3 * sum(norms[0])


def test_a_shift_is_beside_the_speakers_own_edits():
    """A speaker that is steered already: where its own edit says all, little is left to learn."""
    plain = Speaker(causal(dtype=torch.float32), END)
    how = Likely(epochs=12, batch_size=3)
    (first,) = how.fit(plain, LAYERS[1:], PROMPTS, BETTER, WORSE)
    own = Speaker(plain.network, END, [Edit(first.layer, first.move, 1.0, first.scope)])
    (second,) = how.fit(own, LAYERS[1:], PROMPTS, BETTER, WORSE)
    assert likelihood(own, [second], BETTER) > likelihood(plain, [first], BETTER)


def test_the_gradient_of_an_edit_is_that_of_its_shift():
    model = causal()
    shift = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    row = torch.tensor([[1, 2, 3]])

    def loss(vector):
        with steered(model, [Edit(LAYERS[0], Shift(vector))], keep_norm=True):
            return model(input_ids=row).logits.log_softmax(-1)[0, -1, 5]

    (gradient,) = torch.autograd.grad(loss(shift), [shift])
    step = 1e-5 * torch.eye(16, dtype=torch.float64)[3]
    with torch.no_grad():
        wanted = (loss(step) - loss(-step)) / 2e-5
    torch.testing.assert_close(gradient[3], wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": 0.0}, {"ridge": -1.0}, {"beta": -1.0}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="expected numbers"):
        Likely(**wrong)
    with pytest.raises(ValueError, match="at least one answer"):
        Likely().fit(Speaker(causal(), END), LAYERS, [], [], [])
