"""Tiny random models that transformers makes, saved as folders, and what transformers says of them.

Also attention with sinks, written out token by token from its definition, over transformers' own layers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama-biased": ("LlamaForCausalLM", {"attention_bias": True, "head_dim": 12}),
    "llama-llama3": ("LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "llama-linear": ("LlamaForCausalLM", {"rope_parameters": LINEAR}),
    "llama-yarn": ("LlamaForCausalLM", {"rope_parameters": YARN}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 24}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "smollm3": ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0], "pad_token_id": 0}),
}


def make(name: str, folder: Path, **changes: Any) -> Any:
    """A random model of a family, saved in `folder`; its weights are large enough for logits to tell them apart."""
    import transformers

    kind, options = FAMILIES[name]
    model_class = getattr(transformers, kind)
    torch.manual_seed(7)
    config = model_class.config_class(**SMALL | options | changes)
    config._attn_implementation = "eager"
    model = model_class(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(6.0)
    model.save_pretrained(folder)
    return model


def ids(tokens: int, batch: int = 1, vocab: int = 96) -> Tensor:
    return torch.randint(0, vocab, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


@torch.no_grad()
def banded(model: Any, tokens: Tensor, window: int) -> Tensor:
    """transformers' logits with every query confined to the last `window` tokens."""
    places = torch.arange(tokens.shape[1])
    back = places[:, None] - places
    hidden = torch.finfo(torch.float32).min
    mask = torch.where((back >= 0) & (back < window), 0.0, hidden)[None, None].expand(tokens.shape[0], 1, -1, -1)
    kinds = {"full_attention": mask, "sliding_attention": mask}
    several = hasattr(model.config, "layer_types") and model.config.model_type in ("qwen2", "qwen3", "smollm3")
    return model(tokens, attention_mask=kinds if several else mask, use_cache=False).logits


@torch.no_grad()
def with_sinks(model: Any, tokens: Tensor, window: int, sinks: int) -> Tensor:
    """Logits of a model whose queries see their window, and the first tokens as if they stood right before it.

    Written out from the definition, one query at a time: for a query at place i the visible tokens are lined up, sinks
    first, and turned by their place in that line counted back from the query.
    """
    inner, config = model.model, model.config
    x = inner.embed_tokens(tokens)[0]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    count = len(x)
    cosine, sine = inner.rotary_emb(x[None], torch.arange(sinks + window + 1)[None])
    cosine, sine = cosine[0], sine[0]

    def turn(rows: Tensor, at: Tensor) -> Tensor:
        half = width // 2
        swapped = torch.cat([-rows[..., half:], rows[..., :half]], dim=-1)
        return rows * cosine[at] + swapped * sine[at]

    for layer in inner.layers:
        normed, own = layer.input_layernorm(x), layer.self_attn
        q, k, v = (part(normed).view(count, -1, width).transpose(0, 1) for part in (own.q_proj, own.k_proj, own.v_proj))
        if hasattr(own, "q_norm"):
            q, k = own.q_norm(q), own.k_norm(k)
        rows = []
        for i in range(count):
            first = max(0, i - window + 1)
            seen = [s for s in range(sinks) if s < first] + list(range(first, i + 1))
            line = torch.arange(len(seen))
            query = turn(q[:, i], line[-1:])
            heads = []
            for head in range(config.num_attention_heads):
                score = turn(k[head // group, seen], line) @ query[head] * width**-0.5
                heads.append(torch.softmax(score, dim=0) @ v[head // group, seen])
            rows.append(torch.cat(heads))
        x = x + own.o_proj(torch.stack(rows))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(inner.norm(x))[None]
