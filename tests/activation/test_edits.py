"""Edits of hidden states: what stays, what adds, and that batches, padding and caches change
nothing."""

import copy

import pytest
import torch
from tiny import BLOCKS, END, causal
from torch import nn

from steering.activation import (
    Edit,
    Householder,
    Rotation,
    Shift,
    Speaker,
    answer_activations,
    answer_losses,
    block_names,
    load_edits,
    recorded,
    sample,
    save_edits,
    steered,
)
from steering.errors import SteeringError

PROMPTS = [[3, 5, 7, 1, 2], [9], [4, 4, 8], [11, 0, 6, 2]]
KINDS = ["gpt2", "llama"]
SCOPES = ["all", "prompt", "answer", "decoded"]


def clouds(width=16):
    generator = torch.Generator().manual_seed(1)
    up, down = torch.randn(2, 20, width, generator=generator)
    return up + 1, down


def edits_for(kind, scope, strength=1.0):
    """A shift and a rotation at two layers."""
    up, down = clouds()
    moves = (
        Shift(5 * torch.randn(16, generator=torch.Generator().manual_seed(2))),
        Householder(epochs=1).fit(up, down),
    )
    return [
        Edit(f"{BLOCKS[kind]}.{number}", move, strength, scope) for number, move in enumerate(moves)
    ]


def tokens(rows):
    return torch.tensor(rows)


def logits(model, rows):
    with torch.no_grad():
        return model(input_ids=tokens(rows)).logits


# ---- what stays


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_and_no_edits_are_the_base_to_the_bit(kind):
    model, row = causal(kind, torch.float32), [[1, 2, 3, 4]]
    base = logits(model, row)
    for edits in ([], edits_for(kind, "all", 0.0)):
        for keep_norm in (False, True):
            with steered(model, edits, keep_norm=keep_norm):
                assert torch.equal(logits(model, row), base)
                assert not any(module._forward_hooks for module in model.modules())
    with steered(model, edits_for(kind, "all")):
        assert not torch.allclose(logits(model, row), base, atol=1e-3)


def test_weights_stay_and_undo_leaves_nothing_behind():
    model = causal()
    before = copy.deepcopy(model.state_dict())
    row = [[1, 2, 3, 4]]
    base = logits(model, row)
    with pytest.raises(ZeroDivisionError), steered(model, edits_for("gpt2", "all")):  # noqa: PT012
        logits(model, row)
        1 / 0  # noqa: B018
    with (
        pytest.raises(ValueError, match="no 'nothing'"),
        steered(model, [*edits_for("gpt2", "all"), Edit("nothing", Shift(torch.ones(16)))]),
    ):
        pass
    assert torch.equal(logits(model, row), base)
    for module in model.modules():
        left = [module._forward_hooks, module._forward_pre_hooks]
        left += [module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs]
        assert not any(left)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_several_edits_of_a_layer_add():
    """Each sees the activation without the others, so their order plays no part."""
    model = causal()
    layer = block_names(model)[0]
    with torch.no_grad(), recorded(model, [layer]) as base_outputs:
        model(input_ids=tokens([[1, 2, 3]]))
    away = -base_outputs[layer][0].mean(0)  # so that the rotation sees its negative side
    turn = Rotation(away, (torch.zeros(1, dtype=torch.float64),))
    one, _ = edits_for("gpt2", "all")
    pair = [Edit(layer, one.move, 0.3), Edit(layer, turn, 0.7)]

    def output(edits):
        with torch.no_grad(), steered(model, edits), recorded(model, [layer]) as found:
            model(input_ids=tokens([[1, 2, 3]]))
        return found[layer]

    base, both = output([]), output(pair)
    parts = [output([edit]) - base for edit in pair]
    assert all(part.norm() > 1 for part in parts)
    torch.testing.assert_close(both - base, parts[0] + parts[1])
    torch.testing.assert_close(output(pair[::-1]), both)


def test_the_norm_is_kept_on_request():
    model = causal()
    layer = block_names(model)[1]
    edit = [Edit(layer, Shift(torch.ones(16, dtype=torch.float64)))]

    def output(edits, keep_norm):
        policy = steered(model, edits, keep_norm=keep_norm)
        with torch.no_grad(), policy, recorded(model, [layer]) as found:
            model(input_ids=tokens([[1, 2, 3]]))
        return found[layer]

    base, free, kept = output([], False), output(edit, False), output(edit, True)
    torch.testing.assert_close(kept.norm(dim=-1), base.norm(dim=-1))
    assert not torch.allclose(free.norm(dim=-1), base.norm(dim=-1))
    torch.testing.assert_close(
        nn.functional.cosine_similarity(kept, free, dim=-1), torch.ones(1, 3, dtype=torch.float64)
    )


# ---- where


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scope", "changed"),
    [
        ("all", [1, 1, 1, 1, 1]),
        ("prompt", [1, 1, 1, 0, 0]),
        ("answer", [0, 0, 0, 1, 1]),
        ("decoded", [0, 0, 1, 1, 1]),
    ],
)
def test_a_scope_is_a_set_of_positions(kind, scope, changed):
    """Three tokens of a prompt, two of an answer; and the same after padding on the left."""
    model, layer = causal(kind), f"{BLOCKS[kind]}.1"
    edit = [Edit(layer, Shift(torch.ones(16, dtype=torch.float64)), scope=scope)]
    row = [1, 2, 3, 4, 5]
    for pad in (0, 2):
        ids, mask = tokens([[END] * pad + row]), tokens([[0] * pad + [1] * 5])
        inputs = {"input_ids": ids, "attention_mask": mask}

        def output(edits):
            policy = steered(model, edits, prompt=[3])
            with torch.no_grad(), policy, recorded(model, [layer]) as found:
                model(**inputs)  # noqa: B023
            return found[layer][0]

        moved = (output(edit) - output([])).norm(dim=-1)
        assert (moved > 0).int().tolist() == [0] * pad + changed
        torch.testing.assert_close(moved.max().item(), 4.0)  # √16: nothing is edited twice


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_batched_padded_and_cached_answers_equal_single_uncached_ones(kind, scope):
    model = causal(kind)
    speaker = Speaker(model, END, edits_for(kind, scope), batch_size=3)
    numbers = range(10, 14)
    found = sample(speaker, PROMPTS, numbers, 20, seed=4)
    alone = [
        sample(speaker, [prompt], [number], 20, seed=4, cached=False)[0]
        for prompt, number in zip(PROMPTS, numbers, strict=True)
    ]
    assert found == alone
    base = sample(Speaker(model, END), PROMPTS, numbers, 20, seed=4)
    assert base != found
    assert sample(speaker, PROMPTS, numbers, 20, seed=5) != found
    assert speaker.tally.samples == 3 * 4


@pytest.mark.parametrize("scope", SCOPES)
def test_generate_of_transformers_is_edited_in_the_same_way(scope):
    """Left padding, a cache, two samples a prompt: greedily the same as ours without any of it."""
    model, edits = causal(), edits_for("gpt2", scope)
    rows = [[END] * (5 - len(prompt)) + prompt for prompt in PROMPTS]
    mask = tokens([[0] * (5 - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    with torch.no_grad(), steered(model, edits, prompt=mask.sum(1)):
        found = model.generate(
            input_ids=tokens(rows).repeat_interleave(2, 0),
            attention_mask=mask.repeat_interleave(2, 0),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=END,
        )[:, 5:].tolist()
    speaker = Speaker(model, END, edits)
    for number, prompt in enumerate(PROMPTS):
        wanted = sample(speaker, [prompt], [0], 12, temperature=0, cached=False)[0]
        for copy_of in found[2 * number : 2 * number + 2]:
            assert copy_of[: len(wanted)] == wanted
            assert set(copy_of[len(wanted) :]) <= {END}


@pytest.mark.parametrize("named", ["nothing", "position_ids"])
def test_a_cache_without_a_mask_says_where_the_positions_are(named):
    """Two calls, the second on top of the first's cache, against one call."""
    model, row = causal(), [1, 2, 3, 4, 5, 6]
    for scope in SCOPES:
        with torch.no_grad(), steered(model, edits_for("gpt2", scope), prompt=[4]):
            whole = model(input_ids=tokens([row])).logits
            first = model(input_ids=tokens([row[:3]]), use_cache=True)
            name = "cache" if "cache" in first else "past_key_values"
            more = {name: first[name]}
            more |= {"position_ids": tokens([[3, 4, 5]])} if named == "position_ids" else {}
            second = model(input_ids=tokens([row[3:]]), **more).logits
        torch.testing.assert_close(torch.cat([first.logits, second], 1), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_answers_are_the_policys(kind):
    """Against a pass over one row at a time, on the log-softmax by hand."""
    model, edits = causal(kind), edits_for(kind, "decoded")
    answers = [[1, 2], [5], [], [7, 8, 9]]
    found = answer_losses(Speaker(model, END, edits, batch_size=4), PROMPTS, answers)
    for prompt, answer, value in zip(PROMPTS, answers, found, strict=True):
        with steered(model, edits, prompt=[len(prompt)]):
            rows = logits(model, [prompt + answer]).log_softmax(-1)[0]
        wanted = -sum(float(rows[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))
        assert value.item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_samples_follow_the_distribution():
    """The first token of many samples of one prompt, against the softmax."""
    model = causal(dtype=torch.float32)
    speaker = Speaker(model, END, batch_size=2000)
    drawn = sample(speaker, [[3, 5]] * 4000, range(4000), 1, temperature=2.0, seed=1)
    counts = torch.zeros(24)
    for row in drawn:
        counts[row[0] if row else END] += 1
    wanted = (logits(model, [[3, 5]])[0, -1] / 2).softmax(-1)
    assert (counts / 4000 - wanted).abs().max() < 4 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("cached", [True, False])
def test_tokens_behind_an_answers_end_are_not_counted(cached):
    model, counts = causal(), []
    for size in (len(PROMPTS), 1):
        speaker = Speaker(model, END, batch_size=size)
        answers = sample(speaker, PROMPTS, range(4), 12, temperature=2.0, seed=4, cached=cached)
        counts.append(speaker.tally.tokens)
    assert len({len(answer) for answer in answers}) > 1  # some end before others
    assert counts[0] == counts[1]


def test_activations_are_those_of_the_answers_tokens():
    model = causal()
    layers = block_names(model)
    answers = [[1, 2], [5], [6, 6, 6], [7]]
    found = answer_activations(Speaker(model, END), layers, PROMPTS, answers)
    assert layers == [f"transformer.h.{n}" for n in range(3)]
    for number, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        with torch.no_grad(), recorded(model, layers) as alone:
            model(input_ids=tokens([prompt + answer]))
        for layer in layers:
            wanted = alone[layer][0, len(prompt) :].float()
            torch.testing.assert_close(found[layer][number], wanted)


# ---- other models


def test_an_encoder_is_edited_by_layer_name():
    """A tower without masks: open_clip's, whose blocks stand in a list."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    tower = VisionTransformer(
        image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=8
    ).eval()
    layer = "transformer.resblocks.1"
    assert layer in block_names(tower)
    image = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        base = tower(image)
        with steered(tower, [Edit(layer, Shift(torch.randn(16)))]):
            batch, alone = tower(image), tower(image[:1])
        assert torch.equal(tower(image), base)
    assert (batch - base).abs().max() > 0.01
    torch.testing.assert_close(batch[:1], alone)


def test_any_module_with_rows_of_activations():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    with steered(net, [Edit("0", Shift(torch.ones(4)), 2.0)]):
        found = net(x)
    torch.testing.assert_close(found, net[1](net[0](x) + 2))


def test_half_precision_stays_half_precision():
    net = nn.Linear(3, 4).bfloat16()
    x = torch.randn(5, 3).bfloat16()
    with steered(nn.Sequential(net), [Edit("0", Shift(torch.ones(4)))]):
        pass
    wrapped = nn.Sequential(net)
    with steered(wrapped, [Edit("0", Shift(torch.ones(4)))]):
        found = wrapped(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, (net(x).float() + 1).bfloat16())


# ---- files and messages


def test_saved_edits_are_the_same_edits(tmp_path):
    model, path = causal(), tmp_path / "sub" / "edits.safetensors"
    edits = edits_for("gpt2", "decoded", 0.5)
    save_edits(path, edits, {"model": "tiny", "seed": 1})
    found, about = load_edits(path)
    assert about == {"model": "tiny", "seed": 1}
    assert [(e.layer, e.strength, e.scope) for e in found] == [
        (e.layer, e.strength, e.scope) for e in edits
    ]
    results = []
    for one in (edits, found):
        with steered(model, one, prompt=[2]):
            results.append(logits(model, [[1, 2, 3, 4]]))
    assert torch.equal(*results)
    first = path.read_bytes()
    save_edits(path, edits, {"seed": 1, "model": "tiny"})
    assert path.read_bytes() == first


def test_what_is_no_file_of_edits_is_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(SteeringError, match="no such file"):
        load_edits(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    save_file({"a": torch.ones(1)}, tmp_path / "weights")
    for name in ("text", "weights"):
        with pytest.raises(SteeringError, match="holds no edits of activations"):
            load_edits(tmp_path / name)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda m: steered(m, [Edit("transformer.h.9", Shift(torch.ones(16)))]),
            r"transformer\.h\.2",
        ),
        (lambda m: steered(m, edits_for("gpt2", "answer")), "'answer': prompt is needed"),
        (lambda m: Edit("x", Shift(torch.ones(16)), scope="answers"), "expected all, prompt"),  # noqa: ARG005
        (lambda m: sample(Speaker(m, END), [[]], [0], 3), "at least one token"),
        (lambda m: sample(Speaker(m, END), [[1]], [0], 3, temperature=-1), "temperature"),
    ],
)
def test_wrong_input_is_refused(act, message):
    model = causal()
    with pytest.raises(ValueError, match=message):  # noqa: SIM117
        with act(model):
            pass


def test_rows_that_do_not_fit_the_prompts_are_refused():
    model, net = causal(), nn.Sequential(nn.Linear(3, 4))
    wrong = pytest.raises(ValueError, match="2 prompts for a batch of 3 rows")
    with steered(model, edits_for("gpt2", "answer"), prompt=[1, 2]), wrong:
        logits(model, [[1, 2], [3, 4], [5, 6]])
    flat = pytest.raises(ValueError, match="expected activations")
    with steered(net, [Edit("0", Shift(torch.ones(4)), scope="answer")], prompt=[1]), flat:
        net(torch.randn(5, 3))
