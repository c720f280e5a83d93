"""Edits in models of `transformers` where caches, towers or attention are of another kind."""

import pytest
import torch
from tiny import BLOCKS, END, causal
from transformers import AutoConfig, AutoModelForCausalLM, CLIPConfig, CLIPModel

from steering.activation import Edit, Shift, Speaker, answer_losses, block_names, steered

PROMPTS = [[3, 5, 7, 1, 2], [9], [4, 4, 8]]


def shift(seed=2, width=16):
    return Shift(5 * torch.randn(width, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(
    ("kind", "attention", "beams", "cache"),
    [
        ("gpt2", "eager", 3, "static"),
        ("llama", "sdpa", 3, "dynamic"),
        ("llama", "eager", 1, "static"),
    ],
)
def test_beams_and_kinds_of_cache_change_nothing(kind, attention, beams, cache):
    """A padded batch with beams and that cache, against one prompt at a time without a cache."""
    model = causal(kind, torch.float32)  # plain attention masks with float32's smallest number
    model.set_attn_implementation(attention)
    edits = [
        Edit(f"{BLOCKS[kind]}.{number}", shift(number), 1.0, scope)
        for number, scope in enumerate(["prompt", "decoded"])
    ]
    how = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams}
    how |= {"pad_token_id": END}

    def answers(rows, mask, **more):
        ids = torch.tensor(rows)
        mask = torch.tensor(mask)
        with torch.no_grad(), steered(model, edits, prompt=mask.sum(1)):
            return model.generate(input_ids=ids, attention_mask=mask, **how, **more)[:, -8:]

    rows = [[END] * (5 - len(prompt)) + prompt for prompt in PROMPTS]
    mask = [[0] * (5 - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]
    together = answers(rows, mask, cache_implementation=cache)
    for number, prompt in enumerate(PROMPTS):
        alone = answers([prompt], [[1] * len(prompt)], use_cache=False)
        assert alone[0].tolist() == together[number].tolist()
    edits = []
    assert not torch.equal(answers(rows, mask), together)


def test_a_padded_text_hides_no_patch_of_the_image_beside_it():
    """A whole CLIP: the mask is of the text, and the vision tower has other positions."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = sizes | {"vocab_size": 24, "max_position_embeddings": 8, "eos_token_id": END}
    vision = sizes | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    row = torch.tensor([[0, 5, 6, END, 1, 1, 1, 1], [0, 5, 7, 8, 9, 3, 4, END]])
    mask = (row != 1).long()
    image = torch.randn(2, 3, 16, 16)

    def both():
        with torch.no_grad():
            found = model(input_ids=row, attention_mask=mask, pixel_values=image)
        return found.image_embeds, found.text_embeds

    base = both()
    layer = "encoder.layers.0"
    with steered(model.vision_model, [Edit(layer, shift())]):
        wanted = both()[0]
    with steered(model, [Edit(f"vision_model.{layer}", shift())]):
        found = both()
    assert (wanted - base[0]).abs().max() > 0.01
    torch.testing.assert_close(found[0], wanted)
    assert torch.equal(found[1], base[1])
    with steered(model, [Edit(f"text_model.{layer}", shift())]):
        padded = both()[1]
        with torch.no_grad():
            alone = model(input_ids=row[:1, :4], pixel_values=image[:1]).text_embeds
    assert (padded - base[1]).abs().max() > 0.01
    torch.testing.assert_close(padded[:1], alone)
    edit = Edit(f"vision_model.{layer}", shift(), scope="answer")
    with steered(model, [edit], prompt=[4, 8]), pytest.raises(ValueError, match="for 8 tokens"):
        both()


def test_a_cache_of_states_is_edited_everywhere_or_told():
    """A state-space model's cache keeps no count of its tokens."""
    special = {"vocab_size": 24, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    config = AutoConfig.for_model(
        "mamba", **special, hidden_size=16, state_size=4, num_hidden_layers=2
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    row = torch.tensor([[3, 5, 7]])

    def answer(scope, **more):
        with (
            torch.no_grad(),
            steered(model, [Edit(block_names(model)[0], shift(), scope=scope)], [3]),
        ):
            return model.generate(row, max_new_tokens=6, do_sample=False, **more).tolist()

    assert answer("all") == answer("all", use_cache=False)
    with pytest.raises(ValueError, match="does not say how many tokens"):
        answer("decoded")
    assert len(answer("decoded", use_cache=False)[0]) == 9


def test_a_harness_that_scores_inside_the_block_gets_the_policys_losses():
    """As lm-evaluation-harness calls a causal model: tokens by position, padded on the right, and no
    mask."""
    model = causal("llama")
    edits = [Edit(f"{BLOCKS['llama']}.1", shift())]
    answers = [[7, 1], [2, 8, 9, 1], [5]]
    whole = [[*prompt, *answer] for prompt, answer in zip(PROMPTS, answers, strict=True)]
    width = max(map(len, whole))
    with torch.no_grad(), steered(model, edits):
        logits = model(torch.tensor([row + [END] * (width - len(row)) for row in whole])).logits
    found = [
        -sum(logits[row, t - 1].log_softmax(-1)[own[t]] for t in range(len(prompt), len(own)))
        for row, (own, prompt) in enumerate(zip(whole, PROMPTS, strict=True))
    ]
    wanted = answer_losses(Speaker(model, END, edits), PROMPTS, answers)
    torch.testing.assert_close(torch.stack(found), wanted)
    plain = answer_losses(Speaker(model, END), PROMPTS, answers)
    assert not torch.allclose(plain, wanted)
