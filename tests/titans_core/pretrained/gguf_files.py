"""GGUF files of tiny models, written with the `gguf` package as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def interleaved(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of queries or keys in llama.cpp's order: each half's channels side by side."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(model: Any, path: Path, kind: str = "F32", tokenizer: bool = False, **entries: Any) -> Path:
    """A model of transformers as a GGUF file, matrices in format `kind`; `entries` are further metadata."""
    config = model.config
    architecture = "llama" if config.model_type == "mistral" else config.model_type
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key, value in entries.items():
        if isinstance(value, str):
            writer.add_string(key.replace("__", "."), value)
        else:
            writer.add_uint32(key.replace("__", "."), value)
    if tokenizer:
        add_tokenizer(writer, config.vocab_size)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        add_tensor(writer, name, tensor.numpy(), kind, architecture, config)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = config.rope_parameters["rope_theta"] ** -(np.arange(0, width, 2) / width)
        factors = plain / model.model.rotary_emb.inv_freq.numpy().astype(np.float64)
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tensor(writer: Any, name: str, values: NDArray[Any], kind: str, architecture: str, config: Any) -> None:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    if architecture == "llama" and ".attn_q." in name:
        values = interleaved(values, config.num_attention_heads)
    if architecture == "llama" and ".attn_k." in name:
        values = interleaved(values, config.num_key_value_heads)
    quantised = gguf.GGMLQuantizationType[kind]
    if values.ndim < 2 or kind == "F32":
        writer.add_tensor(name, values.astype(np.float32))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)


def add_tokenizer(writer: Any, vocab: int, cut: str = "smollm") -> None:
    """A byte-level vocabulary: control tokens, letters, and merges of a few of them."""
    control = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o"]
    letters = sorted({letter for merge in merges for letter in merge if letter != " "} | set("abcrd123Ġ,Ċ"))
    tokens = [*control, *letters, *(merge.replace(" ", "") for merge in merges)]
    tokens += [f"[{number}]" for number in range(vocab - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(control) + [1] * (vocab - len(control)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")
