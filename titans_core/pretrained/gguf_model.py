"""Models in GGUF files: what the metadata says of a decoder, and its tensors by their Hugging Face names.

llama.cpp turns neighbouring channels together where transformers turns one half against the other, and stores the rows
of queries and keys of `llama` models in that order. They are put back here, in numbers and in blocks alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from titans_core.decoder import DecoderConfig
from titans_core.decoder.config import CHUNK, PREFILL, SINKS, WINDOW
from titans_core.errors import CheckpointError, ConfigError
from titans_core.pretrained.gguf import GgufFile, Value, text
from titans_core.pretrained.gguf_blocks import BlockType, Bytes
from titans_core.pretrained.gguf_tokenizer import special_id, special_tokens, tokenizer_json
from titans_core.pretrained.rotary import divided, rotary
from titans_core.pretrained.source import Pretrained, Texts

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_PERMUTED = ("llama",)  # whose rows of queries and keys stand in another order
_FACTORS = "rope_freqs.weight"  # what frequencies are divided by, in models with llama3's scaling
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
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
}
_INNER_BACK = {ours: theirs for theirs, ours in _INNER.items()}
_OUTER_BACK = {ours: theirs for theirs, ours in _OUTER.items()}


def open_gguf(path: Path, tokenizer: bool = True) -> Pretrained:
    """The model in a file.

    Args:
        path: a `.gguf` file.
        tokenizer: whether its tokenizer is wanted; without, one that cannot be rebuilt does not matter.

    Raises:
        CheckpointError: it is no GGUF file, damaged, or asks for what is not supported.
    """
    file = GgufFile(path)
    config = _config(file)
    weights = GgufWeights(file, config)
    return Pretrained(config, weights, _texts(file, tokenizer), (path,))


class GgufWeights:
    """The tensors of a file."""

    def __init__(self, file: GgufFile, config: DecoderConfig) -> None:
        self.where = str(file.path)
        self._file = file
        permuted = config.architecture in _PERMUTED
        self._heads = {"q_proj": config.heads, "k_proj": config.kv_heads} if permuted else {}

    def names(self) -> set[str]:
        """Every tensor but the frequencies' factors."""
        return {hugging_face_name(name) for name in self._file.tensors if name != _FACTORS}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """As the file has it."""
        stored = self._file.tensors.get(_gguf_name(name))
        return None if stored is None else stored.shape

    def tensor(self, name: str) -> Tensor:
        """Dequantised."""
        numbers = torch.from_numpy(self._file.numbers(_gguf_name(name)))
        order = self._order(name, numbers.shape[0])
        return numbers if order is None else numbers[torch.from_numpy(order)]

    def blocks(self, name: str) -> tuple[BlockType, Bytes] | None:
        """As they lie in the file, rows put back in order."""
        if len(self._file.tensors[_gguf_name(name)].shape) != 2:
            return None
        kind, rows = self._file.rows(_gguf_name(name))
        if kind.numbers == 1:
            return None
        order = self._order(name, len(rows))
        return kind, rows if order is None else rows[order]

    def _order(self, name: str, rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
        """Where each row of a matrix or a bias stands in the file; None where nothing was moved."""
        heads = next((count for part, count in self._heads.items() if f".{part}." in name), None)
        if heads is None:
            return None
        stored: np.ndarray[tuple[int], np.dtype[np.int64]] = np.arange(rows, dtype=np.int64)
        return np.ascontiguousarray(stored.reshape(heads, rows // heads // 2, 2).swapaxes(1, 2)).reshape(-1)


def _gguf_name(name: str) -> str:
    """The file's name of a tensor."""
    if name in _OUTER:
        return _OUTER[name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None or match[2] not in _INNER:
        return name
    return f"blk.{match[1]}.{_INNER[match[2]]}.{match[3]}"


def hugging_face_name(name: str) -> str:
    """The Hugging Face name of a tensor; one that has none keeps its own."""
    if name in _OUTER_BACK:
        return _OUTER_BACK[name]
    match = re.fullmatch(r"blk\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None or match[2] not in _INNER_BACK:
        return name
    return f"model.layers.{match[1]}.{_INNER_BACK[match[2]]}.{match[3]}"


class _Entries:
    """The metadata below an architecture's name, each entry of the type that is asked for."""

    def __init__(self, metadata: Mapping[str, Value], kind: str, where: str) -> None:
        self.metadata, self.kind, self.where = metadata, kind, where

    def wrong(self, name: str, wanted: str) -> CheckpointError:
        found = self.metadata.get(f"{self.kind}.{name}")
        shown = "missing" if found is None else repr(found)[:60]
        return CheckpointError(
            f"{self.kind}.{name} is {shown}, expected {wanted}", "download it again", where=self.where
        )

    def whole(self, name: str, other: int | None = None) -> int:
        value = self.metadata.get(f"{self.kind}.{name}", other)
        if type(value) is not int:
            raise self.wrong(name, "a whole number")
        return value

    def number(self, name: str, other: float | None = None) -> float:
        value = self.metadata.get(f"{self.kind}.{name}", other)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, "a number")
        return float(value)


def _config(file: GgufFile) -> DecoderConfig:
    where, kind = str(file.path), text(file.metadata, "general.architecture")
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"architecture {kind!r} is not supported", f"choose a model of {', '.join(ARCHITECTURES)}", where=where
        )
    given = _Entries(file.metadata, kind, where)
    if given.whole("expert_count", 0):
        raise CheckpointError(
            "a mixture of experts is not supported",
            "choose a dense model",
            where=where,
        )
    dim, heads, layers = (given.whole(name) for name in ("embedding_length", "attention.head_count", "block_count"))
    if min(dim, heads, layers) < 1:
        raise CheckpointError(
            "sizes must be above 0",
            "download it again",
            where=where,
        )
    width = given.whole("attention.key_length", dim // heads)
    if not 2 <= width <= 2**13 or given.whole("attention.value_length", width) != width:
        raise CheckpointError(
            f"heads of {width} channels are not supported",
            "choose another model",
            where=where,
        )
    if given.whole("rope.dimension_count", width) != width:
        raise CheckpointError(
            "rotary positions of part of a head are not supported", "choose another model", where=where
        )
    embedding = file.tensors.get("token_embd.weight")
    trained = given.whole("attention.sliding_window", 0) or None
    window = min(WINDOW, trained or WINDOW)
    turning = rotary(given.number("rope.freq_base", 1e4), width, _scaling(given), where)
    factors = file.tensors.get(_FACTORS)
    if factors is not None:
        if factors.shape != (width // 2,):
            raise CheckpointError(
                f"{_FACTORS} has shape {list(factors.shape)}",
                "download it again",
                where=where,
            )
        turning = divided(turning, file.numbers(_FACTORS))
    try:
        return DecoderConfig(
            architecture=kind,
            vocab_size=embedding.shape[0] if embedding is not None else given.whole("vocab_size"),
            dim=dim,
            layers=layers,
            heads=heads,
            kv_heads=given.whole("attention.head_count_kv", heads),
            head_width=width,
            ffn_hidden=given.whole("feed_forward_length"),
            norm_eps=given.number("attention.layer_norm_rms_epsilon"),
            rotary_frequencies=turning.frequencies,
            rotary_magnitude=turning.magnitude,
            qkv_bias="blk.0.attn_q.bias" in file.tensors,
            out_bias="blk.0.attn_output.bias" in file.tensors,
            qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
            tie_embeddings="output.weight" not in file.tensors,
            trained_window=trained,
            window=window,
            sinks=min(SINKS, window),
            chunk=min(CHUNK, window),
            prefill=PREFILL if window >= CHUNK else window,
        )
    except ConfigError as error:
        raise CheckpointError(error.finding, error.remedy, where=where) from error


def _scaling(given: _Entries) -> dict[str, object]:
    kind = given.metadata.get(f"{given.kind}.rope.scaling.type", "none")
    if kind == "none":
        return {}
    return {
        "rope_type": kind,
        "factor": given.number("rope.scaling.factor"),
        "original_max_position_embeddings": given.whole(
            "rope.scaling.original_context_length", given.whole("context_length", 2048)
        ),
    }


def _texts(file: GgufFile, tokenizer: bool) -> Texts:
    where, metadata = str(file.path), file.metadata
    bos, eos, eot = (special_id(metadata, name, where) for name in ("bos", "eos", "eot"))
    opens = metadata.get("tokenizer.ggml.add_bos_token", text(metadata, "tokenizer.ggml.model") == "llama")
    return Texts(
        tokenizer_json=tokenizer_json(metadata, where) if tokenizer else None,
        chat_template=text(metadata, "tokenizer.chat_template"),
        bos=bos if opens is True else None,
        eos=tuple(dict.fromkeys(end for end in (eos, eot) if end is not None)),
        special=special_tokens(metadata, where) if tokenizer else {},
    )
