"""Pretrained models as strangers might hand them over: a GGUF file and a Hugging Face folder, damaged.

Each is opened, built and run over a few tokens, or refused. Knows the sound models. Does not know what must hold
(`targets`).
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from studies.fuzz.mutation import byte_ops, damage, distort, json_ops

Case = dict[str, Any]
GGUF, FOLDER = "model.gguf", "folder"
SHAPES = {
    "token_embd": (48, 32),
    "output_norm": (32,),
    "blk.0.attn_norm": (32,),
    "blk.0.attn_q": (32, 32),
    "blk.0.attn_k": (16, 32),
    "blk.0.attn_v": (16, 32),
    "blk.0.attn_output": (32, 32),
    "blk.0.ffn_norm": (32,),
    "blk.0.ffn_gate": (32, 32),
    "blk.0.ffn_up": (32, 32),
    "blk.0.ffn_down": (32, 32),
}
CONFIG = {
    "model_type": "llama",
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}


def cases() -> st.SearchStrategy[Case]:
    """Bytes of the GGUF file or of the weights, or entries of the configuration."""
    changed = st.lists(byte_ops, min_size=1, max_size=4)
    in_file = st.fixed_dictionaries({"file": st.sampled_from([GGUF, "model.safetensors"]), "bytes": changed})
    # Nine bytes in ten of a GGUF file are numbers; most of the cases are about what stands before them.
    in_head = st.fixed_dictionaries({"file": st.just(GGUF), "head": changed})
    return in_head | in_file | st.fixed_dictionaries({"json": st.lists(json_ops, min_size=1, max_size=4)})


def attempt(case: Case, folder: Path) -> bool:
    """Whether the damaged model differs from the sound one; raises what the damage led to."""
    from titans_core.pretrained import decoder_of, open_pretrained

    files = dict(sound())
    name = case.get("file", "config.json")
    if "head" in case:
        head, rest = files[GGUF][:HEAD], files[GGUF][HEAD:]
        files[GGUF] = damage(head, case["head"]) + rest
    elif "json" in case:
        files[name] = json.dumps(distort(CONFIG, case["json"])).encode()
    else:
        files[name] = damage(files[name], case["bytes"])
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    for file, content in files.items():
        (folder / file if file == GGUF else place / file).write_bytes(content)
    decoder = decoder_of(open_pretrained(folder / GGUF if name == GGUF else place))
    tokens = torch.arange(decoder.config.chunk)[None] % decoder.config.vocab_size
    with torch.no_grad():
        logits, _ = decoder(tokens)
    assert logits.shape == (1, decoder.config.chunk, decoder.config.vocab_size)
    return files != sound()


@cache
def sound() -> dict[str, bytes]:
    """The files of both models."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {GGUF: _gguf(weights), "config.json": json.dumps(CONFIG).encode(), "model.safetensors": _folder(weights)}


def _folder(weights: dict[str, NDArray[np.float32]]) -> bytes:
    from titans_core.pretrained.gguf_model import hugging_face_name

    return save({hugging_face_name(f"{name}.weight"): value for name, value in weights.items()})


def _gguf(weights: dict[str, NDArray[np.float32]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GGUF
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(32)
        writer.add_context_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-5)
        tokens = [chr(place) for place in range(ord("a"), ord("a") + 26)] + [f"[{place}]" for place in range(22)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * 26 + [3] * 22)
        writer.add_token_merges(["a b", "c d"])
        for name, value in weights.items():
            kind = gguf.GGMLQuantizationType.Q8_0 if value.ndim == 2 else gguf.GGMLQuantizationType.F32
            data = gguf.quants.quantize(value, kind) if value.ndim == 2 else value
            writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        return path.read_bytes()


HEAD = 2048  # bytes of the GGUF file that hold its metadata and the table of its tensors
