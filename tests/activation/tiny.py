"""Causal models of a few thousand weights, made on the spot."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

END = 23
SIZES = {
    "gpt2": {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": 64},
    "llama": {
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    },
}
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}


def causal(kind="gpt2", dtype=torch.float64):
    """A model with random weights that are large enough for its answers to differ."""
    special = {"vocab_size": 24, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    config = AutoConfig.for_model(kind, **special, **SIZES[kind])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model
