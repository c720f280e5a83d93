"""The methods of the field against their facts in docs/facts.md."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from adversaries import options_of
from torch import Tensor

from steering.contrastive import Pairs
from steering.dro import worst_case
from steering.errors import SteeringError
from steering.items import Units
from steering.methods import Method, Needs, build_method, find_method, jest
from steering.methods.distillation import pairs_divergence, units_divergence
from steering.methods.jest import joint_selection
from steering.methods.rho1 import top_share
from steering.methods.selection import Selector, largest, sampled

ROW = torch.tensor(0)


def make(name: str, groups: tuple[str, ...] = ("a", "b", "c"), **options: object) -> Method:
    return build_method(name, options_of(name, **options), 100, groups).double()


def selector(name: str, **options: object) -> Selector:
    found = make(name, **options).selector  # type: ignore[arg-type]
    assert found is not None
    return found


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(method: Method, losses: Units) -> Tensor:
    leaf = losses.target.detach().requires_grad_()
    changed = Units(leaf, losses.reference, losses.rows, losses.mask, groups=losses.groups)
    method(changed).loss.backward()
    assert leaf.grad is not None
    return leaf.grad


# ---- RHO-LOSS and its soft form: facts 1, 2, 3
# ------------------------------------------------------------------------


def test_rho_loss_with_a_constant_irreducible_loss_takes_the_highest_losses():
    losses = noise(50)
    chosen = selector("rho_loss").choose(Units(losses, torch.full_like(losses, 0.7), ROW), 7)
    assert chosen.tolist() == losses.topk(7).indices.tolist()


def test_rho_loss_with_an_untrained_target_takes_what_the_reference_knows_best():
    target, reference = torch.full((50,), math.log(10.0)), noise(50).abs().float()
    chosen = selector("rho_loss").choose(Units(target, reference, ROW), 7)
    assert set(chosen.tolist()) == set((-reference).topk(7).indices.tolist())


def test_rho_loss_breaks_ties_by_position():
    assert selector("rho_loss").choose(Units(row(1, 2, 2, 1, 2), None, ROW), 4).tolist() == [
        1,
        2,
        4,
        0,
    ]


def test_mislabelled_examples_are_not_preferred():
    # High loss under both: nothing to learn. Fact 2.
    target, reference = row(3.0, 3.0, 1.0, 0.2), row(2.9, 0.5, 0.4, 0.1)
    assert selector("rho_loss").choose(Units(target, reference, ROW), 2).tolist() == [1, 2]


@pytest.mark.parametrize("name", ["rho_loss", "soft_rho"])
def test_a_constant_of_each_example_changes_no_selection(name: str):
    target, reference, shift = noise(40, seed=1), noise(40, seed=2), noise(40, seed=3)
    chosen = []
    for by in (torch.zeros_like(shift), shift):
        torch.manual_seed(0)
        chosen.append(selector(name).choose(Units(target + by, reference + by, ROW), 10).tolist())
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("name", ["rho_loss", "soft_rho"])
def test_selecting_everything_is_plain_training(name: str):
    method, losses = make(name, share=1.0), Units(noise(20).abs(), noise(20).abs(), ROW)
    assert method.selector is not None
    assert sorted(method.selector.choose(losses, 20).tolist()) == [*range(20)]
    torch.testing.assert_close(
        gradient(method, losses), torch.full((20,), 1 / 20, dtype=torch.float64)
    )


def test_a_cold_choice_is_the_top_and_a_hot_one_uniform():
    scores = Units(noise(30), None, ROW)
    cold = selector("soft_rho", temperature=1e-9).choose(scores, 5)
    assert cold.tolist() == scores.target.topk(5).indices.tolist()
    hot = selector("soft_rho", temperature=1e9)
    torch.manual_seed(1)
    counts = torch.zeros(30)
    for _ in range(3000):
        counts[hot.choose(scores, 5)] += 1
    expected = 3000 * 5 / 30
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


def test_draws_without_replacement_have_the_probabilities_of_one_after_another():
    weights = row(1, 2, 4, 0.5)
    exact = {}
    for first, second in itertools.permutations(range(4), 2):
        p = weights / weights.sum()
        exact[first, second] = float(p[first] * p[second] / (1 - p[first]))
    torch.manual_seed(0)
    n = 20000
    drawn = [tuple(sampled(weights.log() + 300, 2).tolist()) for _ in range(n)]
    for pair, probability in exact.items():
        error = math.sqrt(probability * (1 - probability) / n)
        assert abs(drawn.count(pair) / n - probability) < 5 * error


def test_selection_wants_one_row_of_examples():
    with pytest.raises(SteeringError, match=r"method \(rho_loss\): selects examples"):
        selector("rho_loss").choose(Units(noise(3, 4), None, torch.arange(3)), 2)


# ---- JEST: fact 4, and section 1, fact 15
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "count", "chunks"), [(12, 12, 1), (20, 8, 4), (20, 7, 3), (9, 2, 16)]
)
@pytest.mark.parametrize("top", [True, False])
def test_jest_chooses_different_pairs_and_as_many_as_asked(
    n: int, count: int, chunks: int, top: bool
):
    chosen = joint_selection(noise(n, n), noise(n, n, seed=1), count, chunks, top=top).tolist()
    assert len(set(chosen)) == len(chosen) == count
    if count == n:
        assert sorted(chosen) == [*range(n)]


def test_jest_in_one_chunk_or_without_interaction_is_independent_selection():
    learner, reference = noise(15, 15), noise(15, 15, seed=1)
    own = (reference - learner).diagonal()
    assert joint_selection(learner, reference, 6, 1, top=True).tolist() == largest(own, 6).tolist()
    diagonal = torch.diag_embed(learner.diagonal()), torch.diag_embed(reference.diagonal())
    shared = noise(15, 15, seed=2).fill_diagonal_(0)  # off the diagonal both models agree
    for chunks in (2, 5):
        found = joint_selection(diagonal[0] + shared, diagonal[1] + shared, 6, chunks, top=True)
        assert found.tolist() == largest(own, 6).tolist()


def test_jest_against_a_loop():
    learner, reference, chosen = 3 * noise(30, 30), 3 * noise(30, 30, seed=1), []
    for _ in range(3):  # three chunks of two
        scores = {}
        for i in {*range(30)} - {*chosen}:
            score = float(reference[i, i] - learner[i, i])
            for sign, logits in ((1, learner), (-1, reference)):
                for direction in (logits, logits.T):
                    if chosen:
                        score += (
                            sign
                            * 0.5
                            * math.log(sum(math.exp(float(direction[i, j])) for j in chosen))
                        )
            scores[i] = score
        chosen += sorted(scores, key=lambda i: -scores[i])[:2]
    assert joint_selection(learner, reference, 6, 3, top=True).tolist() == chosen


def test_jest_reads_both_models_at_their_own_temperatures():
    features = [F.normalize(noise(10, 6, seed=seed), dim=-1) for seed in range(4)]
    pairs = Pairs(features[0], features[1], torch.arange(10), features[2], features[3])
    method = selector("jest", top=True, chunks=2, tau=0.2, reference_scale=7.0)
    expected = joint_selection(
        features[0] @ features[1].T / 0.2, 7 * features[2] @ features[3].T, 4, 2, top=True
    )
    assert method.choose(pairs, 4).tolist() == expected.tolist()
    with pytest.raises(SteeringError, match="needs a reference"):
        method.choose(Pairs(features[0], features[1], torch.arange(10)), 4)


# ---- Rho-1: fact 5
# ----------------------------------------------------------------------------------------------------


def tokens(seed: int = 0) -> Units:
    mask = torch.rand(40, generator=torch.Generator().manual_seed(seed)) < 0.7
    return Units(noise(40, seed=seed).abs(), noise(40, seed=seed + 1).abs(), ROW, mask)


def test_rho1_with_all_tokens_is_the_masked_mean():
    losses = tokens()
    assert losses.mask is not None
    expected = losses.mask.double() / losses.mask.sum()
    torch.testing.assert_close(gradient(make("rho1", share=1.0), losses), expected)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.6])
def test_rho1_learns_from_the_top_tokens_alone(keep: float):
    losses = tokens()
    assert losses.mask is not None
    found = gradient(make("rho1", share=keep), losses)
    excess = [(-float(h), i) for i, h in enumerate(losses.excess()) if losses.mask[i]]
    top = [i for _, i in sorted(excess)[: math.ceil(keep * len(excess))]]
    expected = torch.zeros(40, dtype=torch.float64)
    expected[top] = 1 / len(top)
    torch.testing.assert_close(found, expected)
    assert not found[~losses.mask].any()


def test_rho1_is_cvar_when_the_share_is_whole():
    target, reference = noise(20).abs(), noise(20, seed=1).abs()
    exact = worst_case(target - reference, "cvar", level=0.25)
    torch.testing.assert_close(
        gradient(make("rho1", share=0.25), Units(target, reference, ROW)), exact.weights
    )


def test_the_top_share_of_rows_of_their_own_length():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    chosen = top_share(torch.tensor([[1.0, 5, 5, 9], [0, 7, 7, 7]]), mask, 0.5)
    assert chosen.tolist() == [[False, True, True, False], [True, False, False, False]]


# ---- DoReMi and group DRO: facts 6, 7, 8
# ------------------------------------------------------------------------------


def grouped(losses: Tensor, reference: Tensor | None, groups: list[int]) -> Units:
    return Units(losses, reference, ROW, groups=torch.tensor(groups))


GROUPS = [0, 0, 1, 2, 2, 2]


def test_doremi_weights_domains_by_their_clipped_excess():
    target, reference = row(1, 2, 3, 0.5, 0.4, 3), row(2, 1, 1, 1, 0.2, 1)
    scores = [(0 + 1) / 2, 2.0, (0 + 0.2 + 2) / 3]  # clipped item by item, then averaged
    a = torch.tensor([math.exp(s) for s in scores], dtype=torch.float64)
    a = 0.9 * a / a.sum() + 0.1 / 3
    method = make("doremi", step=1.0, smoothing=0.1)
    found = gradient(method, grouped(target, reference, GROUPS))
    expected = torch.stack(
        [a[0] / 2, a[0] / 2, a[1], *[a[2] / 3] * 3]
    )  # Σ_d a_d · mean of the domain
    torch.testing.assert_close(found, expected)
    assert method.summary()["data_mix"] == pytest.approx(dict(zip("abc", a.tolist(), strict=True)))


def test_doremi_weights_sum_to_one_without_the_domains_that_are_absent():
    found = gradient(
        make("doremi", step=0.7), grouped(row(1, 2, 3), torch.zeros(3).double(), [0, 0, 2])
    )
    assert found.sum().item() == pytest.approx(1)
    method = make("doremi", step=0.7)
    method(grouped(row(1, 2, 3), torch.zeros(3).double(), [0, 0, 2]))
    a = method.weights.log_q.exp()
    torch.testing.assert_close(found, torch.stack([a[0] / 2, a[0] / 2, a[2]]) / (a[0] + a[2]))


def test_doremi_where_all_scores_are_equal_or_clipped_stays_or_drifts_to_uniform():
    same = row(2, 2, 2, 2, 2, 2)
    method = make("doremi")
    for _ in range(5):
        method(grouped(same, torch.zeros(6).double(), GROUPS))
    assert method.summary()["data_mix"] == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    skewed = make("doremi", smoothing=0.01)
    skewed(grouped(row(9, 9, 1, 1, 1, 1), torch.zeros(6).double(), GROUPS))
    before = skewed.weights.log_q.exp()
    skewed(
        grouped(torch.zeros(6).double(), torch.ones(6).double(), GROUPS)
    )  # the reference is worse everywhere
    torch.testing.assert_close(skewed.weights.log_q.exp(), 0.99 * before + 0.01 / 3)


def test_doremi_without_a_reference_is_group_dro_and_with_a_step_of_zero_fixed_weights():
    batches = [noise(6, seed=seed).abs() for seed in range(4)]
    ours, theirs = make("doremi", step=0.3, smoothing=0.0), make("group_dro", step=0.3)
    still = make("doremi", step=0.0, smoothing=0.0)
    for losses in batches:
        zero = torch.zeros_like(losses)
        torch.testing.assert_close(
            gradient(ours, grouped(losses, zero, GROUPS)),
            gradient(theirs, grouped(losses, None, GROUPS)),
        )
        fixed = row(1 / 6, 1 / 6, 1 / 3, 1 / 9, 1 / 9, 1 / 9)
        torch.testing.assert_close(gradient(still, grouped(losses, zero, GROUPS)), fixed)


def test_group_dro_with_a_huge_step_takes_the_worst_group_and_with_equal_losses_stays():
    losses = row(1, 2, 1.6, 0.5, 0.4, 3)  # means 1.5, 1.6, 1.3
    found = gradient(make("group_dro", step=1e6), grouped(losses, None, GROUPS))
    torch.testing.assert_close(found, row(0, 0, 1, 0, 0, 0))
    method = make("group_dro", step=1.0)
    method(grouped(torch.full((6,), 3.0).double(), None, GROUPS))
    torch.testing.assert_close(
        method.weights.log_q.exp(), torch.full((3,), 1 / 3, dtype=torch.float64)
    )


def test_a_masked_item_counts_in_no_group():
    losses = Units(
        row(1, 99, 2), None, ROW, torch.tensor([True, False, True]), groups=torch.tensor([0, 0, 1])
    )
    for name in ("group_dro", "doremi"):
        assert gradient(make(name), losses)[1] == 0


@pytest.mark.parametrize("name", ["group_dro", "doremi"])
def test_losses_without_groups_are_refused(name: str):
    with pytest.raises(SteeringError, match=rf"method \({name}\): weights groups"):
        make(name)(Units(row(1, 2), row(1, 1), ROW))


# ---- distillation: fact 9
# ---------------------------------------------------------------------------------------------


def soft(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Units:
    label = torch.arange(len(student)) % student.shape[-1]
    loss = F.cross_entropy(student, label, reduction="none")
    return Units(loss, loss.detach(), ROW, mask, logits=student, reference_logits=teacher)


def test_distillation_with_weight_zero_is_erm_and_wants_no_reference():
    method = make("distillation", weight=0.0)
    assert method.needs == Needs()
    losses = Units(noise(6).abs(), None, ROW)
    torch.testing.assert_close(gradient(method, losses), gradient(make("erm"), losses))


def test_a_teacher_equal_to_the_student_pulls_nowhere():
    logits = noise(5, 4)
    student = logits.clone().requires_grad_()
    kd = units_divergence(soft(student, logits), 3.0, "distillation")
    kd.backward()
    assert abs(kd.item()) < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("T", [1.0, 2.5])
def test_distillation_against_the_formula(T):
    student, teacher = noise(5, 4), noise(5, 4, seed=1)
    p, q = (teacher / T).softmax(-1), (student / T).softmax(-1)
    kl = (p * (p / q).log()).sum(-1).mean() * T * T
    losses = soft(student, teacher)
    found = make("distillation", weight=0.3, temperature=T)(losses).loss
    torch.testing.assert_close(found, 0.7 * losses.target.mean() + 0.3 * kl)


def test_a_class_that_the_teacher_rules_out_costs_nothing():
    student, teacher = noise(5, 4).requires_grad_(), noise(5, 4, seed=1)
    teacher[:, 2] = -torch.inf
    kd = units_divergence(soft(student, teacher), 1.5, "distillation")
    p, log_q = (teacher / 1.5).softmax(-1), (student / 1.5).log_softmax(-1)
    rest = [0, 1, 3]  # 0·log 0 is 0
    kl = (p[:, rest] * (p[:, rest].log() - log_q[:, rest])).sum(-1).mean() * 1.5**2
    torch.testing.assert_close(kd, kl)
    (found,) = torch.autograd.grad(kd, student)
    torch.testing.assert_close(found, torch.autograd.grad(kl, student)[0])


def test_a_very_soft_teacher_matches_centred_logits():
    student, teacher = noise(5, 4).requires_grad_(), noise(5, 4, seed=1)
    units_divergence(soft(student, teacher), 1e4, "distillation").backward()
    found = student.grad
    centred = [x - x.mean(-1, keepdim=True) for x in (student.detach(), teacher)]
    leaf = centred[0].clone().requires_grad_()
    (0.5 * (leaf - centred[1]).square().sum(-1) / 4).mean().backward()
    torch.testing.assert_close(found, leaf.grad, rtol=1e-3, atol=1e-5)


def test_masked_items_teach_nothing():
    student, teacher = noise(3, 4).requires_grad_(), noise(3, 4, seed=1)
    mask = torch.tensor([True, False, True])
    kd = units_divergence(soft(student, teacher, mask), 1.0, "distillation")
    whole = units_divergence(soft(student[mask], teacher[mask]), 1.0, "distillation")
    torch.testing.assert_close(kd, whole)


def test_distillation_of_pairs_by_a_loop():
    image, text, *guide = (F.normalize(noise(5, 6, seed=seed), dim=-1) for seed in range(4))
    pairs = Pairs(image, text, torch.arange(5), *guide)
    found = pairs_divergence(pairs, torch.tensor(9.0, dtype=torch.float64), 20.0)
    total = 0.0
    for transpose in (False, True):
        s, t = 9 * image @ text.T, 20 * guide[0] @ guide[1].T
        s, t = (s.T, t.T) if transpose else (s, t)
        for i in range(5):
            p, q = t[i].softmax(0), s[i].softmax(0)
            total += 0.5 / 5 * float((p * (p / q).log()).sum())
    assert found.item() == pytest.approx(total)


def test_drrho_with_distillation_is_the_sum_of_both():
    losses = soft(noise(6, 4), noise(6, 4, seed=1))
    both = make("drrho", tau=1.0, distill=0.7, distill_temperature=2.0)
    assert both.needs == Needs(reference=True, logits=True)
    alone = make("drrho", tau=1.0)(losses).loss
    torch.testing.assert_close(
        both(losses).loss, alone + 0.7 * units_divergence(losses, 2.0, "drrho")
    )


def test_distillation_says_what_is_missing():
    with pytest.raises(SteeringError, match="needs the logits"):
        make("distillation")(Units(row(1, 2), row(1, 1), ROW))
    with pytest.raises(SteeringError, match="over 4 classes, the reference over 3"):
        make("distillation")(soft(noise(6, 4), noise(6, 3)))


def test_jest_scores_a_half_precision_reference_in_float32(monkeypatch):
    seen = []
    monkeypatch.setattr(
        jest, "joint_selection", lambda _, guide, *__: seen.append(guide) or torch.arange(2)
    )
    image, text = F.normalize(
        torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    method = build_method("jest", find_method("jest").options(), 8)
    assert method.selector is not None
    method.selector.choose(
        Pairs(image, text, torch.arange(8), image.half(), text.half(), torch.full((8,), 20.0)), 2
    )
    torch.testing.assert_close(
        seen[0], 20 * image.half().float() @ text.half().float().T, rtol=0, atol=1e-4
    )
