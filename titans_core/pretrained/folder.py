"""Hugging Face folders: `config.json`, safetensors in one file or several, and what there is besides.

Knows the configurations of the architectures that a `Decoder` can be, and refuses all others by name. Nothing is
unpickled and nothing downloaded; names of files that the folder itself gives stay inside the folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from titans_core.config import is_finite
from titans_core.decoder import DecoderConfig
from titans_core.decoder.config import CHUNK, PREFILL, SINKS, WINDOW
from titans_core.errors import CheckpointError, ConfigError
from titans_core.pretrained.gguf_blocks import BlockType, Bytes
from titans_core.pretrained.rotary import rotary
from titans_core.pretrained.source import Pretrained, Texts
from titans_format.files import MIB, check_regular, read_regular

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION = "generation_config.json"
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
_MOST_JSON, _MOST_TOKENIZER = 64 * MIB, 128 * MIB
_READABLE = {"F32", "F16", "BF16"}
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
# Buffers that old checkpoints carry and that follow from the configuration.
_COMPUTED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


def open_folder(folder: Path) -> Pretrained:
    """The model in a folder.

    Raises:
        CheckpointError: the folder lacks something, is damaged, or asks for what is not supported.
    """
    config = _Section(_json(folder / CONFIG), str(folder / CONFIG))
    weights = FolderWeights(folder)
    texts, besides = _texts(folder, config)
    files = (folder / CONFIG, *weights.files, *besides)
    return Pretrained(_config(config), weights, texts, files)


class FolderWeights:
    """The safetensors of a folder."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self.files, self._place = _shards(folder)

    def names(self) -> set[str]:
        """Without what follows from the configuration."""
        return {name for name in self._place if not name.endswith(_COMPUTED)}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Out of the file's header."""
        if name not in self._place:
            return None
        with self._opened(name) as file:
            return tuple(file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """Widened from half precision."""
        with self._opened(name) as file:
            kind = file.get_slice(name).get_dtype()
            if kind not in _READABLE:
                raise CheckpointError(
                    f"{self._place[name]}: weight {name} has dtype {kind}",
                    f"give a model in one of {', '.join(sorted(_READABLE))}",
                )
            found: Tensor = file.get_tensor(name)
        return found.to(torch.float32, copy=True)

    def blocks(self, name: str) -> tuple[BlockType, Bytes] | None:
        """Safetensors are in no blocks."""
        return None

    def _opened(self, name: str) -> Any:
        try:
            return safe_open(self._place[name], framework="pt")
        except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: it cannot be mapped
            raise _damaged(self._place[name], error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({error})", "download it again")


def _shards(folder: Path) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """The files of the weights, and which of them holds each tensor."""
    index = folder / INDEX
    if not index.exists():
        if not (folder / WEIGHTS).exists():
            raise CheckpointError(
                f"{folder} has no {WEIGHTS}", "give a folder with safetensors, or save the model with save_pretrained"
            )
        return (folder / WEIGHTS,), dict.fromkeys(_tensor_names(folder / WEIGHTS), folder / WEIGHTS)
    placed = _json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise CheckpointError(f"{index} has no weight_map of file names", "download it again")
    for file in placed.values():
        if Path(file).name != file or file in ("", ".", ".."):
            raise CheckpointError(f"{index} names {file!r}, which is not a file of the folder", "download it again")
    files = sorted(set(placed.values()))
    held: dict[str, set[str]] = {}
    for file in files:
        if not (folder / file).exists():
            raise CheckpointError(f"{folder} has no {file}, which {INDEX} names", "download it")
        held[file] = _tensor_names(folder / file)
    for name, file in placed.items():
        if name not in held[file]:
            raise CheckpointError(f"{folder / file} has no weight {name}, which {INDEX} names", "download it again")
    return (index, *(folder / file for file in files)), {name: folder / file for name, file in placed.items()}


def _tensor_names(path: Path) -> set[str]:
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _json(path: Path, most: int = _MOST_JSON) -> dict[str, Any]:
    try:
        values = json.loads(read_regular(path, most))
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error.strerror})", "give a Hugging Face folder") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})", "download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object", "download it again")
    return values


class _Section:
    """Values of a `config.json`, each of the type that is asked for."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def wrong(self, name: str, wanted: str) -> CheckpointError:
        found = repr(self.values[name])[:60] if name in self.values else "missing"
        return CheckpointError(
            f"{name} is {found}, expected {wanted}",
            "restore the file",
            where=self.where,
        )

    def whole(self, name: str, other: int | None = None) -> int:
        value = self.values.get(name)
        value = other if value is None else value
        if type(value) is not int:
            raise self.wrong(name, "a whole number")
        return value

    def number(self, name: str, other: float | None = None) -> float:
        value = self.values.get(name)
        value = other if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_finite(value):
            raise self.wrong(name, "a finite number")
        return float(value)

    def flag(self, name: str, other: bool = False) -> bool:
        value = self.values.get(name)
        value = other if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def word(self, name: str, other: str | None = None) -> str:
        value = self.values.get(name, other)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def section(self, name: str) -> dict[str, Any]:
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return value or {}

    def wholes(self, name: str) -> list[int] | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.wrong(name, "a list of whole numbers")
        return value


def _config(given: _Section) -> DecoderConfig:
    kind = given.word("model_type")
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"architecture {kind!r} is not supported",
            f"choose a model of {', '.join(ARCHITECTURES)}",
            where=given.where,
        )
    _refuse(given)
    dim, heads = given.whole("hidden_size"), given.whole("num_attention_heads")
    layers = given.whole("num_hidden_layers")
    if min(dim, heads, layers) < 1:
        raise CheckpointError(
            "sizes must be above 0",
            "restore the file",
            where=given.where,
        )
    width = given.whole("head_dim", 128 if kind == "qwen3" else dim // heads)
    spread = given.section("rope_parameters") or given.section("rope_scaling")
    base = spread.get("rope_theta") or given.number("rope_theta", 2e6 if kind == "smollm3" else 1e4)
    context = given.whole("max_position_embeddings", 2048)
    if not 2 <= width <= 2**13:
        raise CheckpointError(
            f"a head of {width} channels is not supported",
            "restore the file",
            where=given.where,
        )
    turning = rotary(base, width, {"original_max_position_embeddings": context} | spread, given.where)
    biased = given.flag("attention_bias")
    trained = _trained_window(given, kind, layers)
    window = min(WINDOW, trained or WINDOW)
    try:
        return DecoderConfig(
            architecture=kind,
            vocab_size=given.whole("vocab_size"),
            dim=dim,
            layers=layers,
            heads=heads,
            kv_heads=given.whole("num_key_value_heads", heads),
            head_width=width,
            ffn_hidden=given.whole("intermediate_size"),
            norm_eps=given.number("rms_norm_eps", 1e-6),
            rotary_frequencies=turning.frequencies,
            rotary_magnitude=turning.magnitude,
            unrotated_layers=_unrotated(given, kind, layers),
            qkv_bias=biased or kind == "qwen2",
            out_bias=biased and kind != "qwen2",
            qk_norm=kind == "qwen3",
            tie_embeddings=given.flag("tie_word_embeddings", kind == "smollm3"),
            trained_window=trained,
            window=window,
            sinks=min(SINKS, window),
            chunk=min(CHUNK, window),
            prefill=PREFILL if window >= CHUNK else window,
        )
    except ConfigError as error:
        raise CheckpointError(error.finding, error.remedy, where=given.where) from error


def _refuse(given: _Section) -> None:
    """Raise `CheckpointError` for what a `Decoder` does not compute."""
    act = given.word("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise CheckpointError(
            f"hidden_act {act!r} is not supported",
            "choose a model with silu",
            where=given.where,
        )
    if given.flag("mlp_bias"):
        raise CheckpointError(
            "mlp_bias is not supported",
            "choose a model without it",
            where=given.where,
        )
    for name in ("partial_rotary_factor",):
        share = given.section("rope_parameters").get(name, given.values.get(name))
        if share not in (None, 1, 1.0):
            raise CheckpointError(
                f"{name} {share!r} is not supported", "choose a model that turns all", where=given.where
            )
    if given.values.get("quantization_config") is not None:
        raise CheckpointError(
            "the weights are quantised (quantization_config), which is not read from a folder",
            "give the unquantised model, or a GGUF file",
            where=given.where,
        )


def _trained_window(given: _Section, kind: str, layers: int) -> int | None:
    """The sliding window of any layer."""
    if kind == "mistral":
        return given.whole("sliding_window", 4096) if given.values.get("sliding_window", 4096) is not None else None
    if kind == "llama" or not given.flag("use_sliding_window") or given.values.get("sliding_window") is None:
        return None
    types = given.values.get("layer_types")
    slides = isinstance(types, list) and "sliding_attention" in types
    if types is None:
        slides = kind == "smollm3" or given.whole("max_window_layers", 28) < layers
    return given.whole("sliding_window") if slides else None


def _unrotated(given: _Section, kind: str, layers: int) -> tuple[int, ...]:
    """SmolLM3's layers without positions."""
    if kind != "smollm3":
        return ()
    rotated = given.wholes("no_rope_layers")  # 1 for a layer that has them, whatever the name says
    if rotated is None:
        every = given.whole("no_rope_layer_interval", 4)
        if every < 1:
            raise given.wrong("no_rope_layer_interval", "a number above 0")
        rotated = [int((layer + 1) % every != 0) for layer in range(min(layers, 2**10))]
    return tuple(layer for layer, turns in enumerate(rotated) if not turns)


def _texts(folder: Path, config: _Section) -> tuple[Texts, list[Path]]:
    """Tokenizer, template and generation defaults, and the files that they stand in."""
    files = [folder / name for name in (TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, GENERATION)]
    files = [file for file in files if file.exists()]
    tokenizer = _text(folder / TOKENIZER, _MOST_TOKENIZER)
    names = _json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).exists() else {}
    sampling = _json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    ends = sampling.get("eos_token_id", config.values.get("eos_token_id"))
    begin = sampling.get("bos_token_id", config.values.get("bos_token_id"))
    return Texts(
        tokenizer_json=tokenizer,
        chat_template=_text(folder / TEMPLATE, _MOST_JSON) or _template(names.get("chat_template")),
        bos=begin if type(begin) is int and _opens(begin, names, tokenizer) else None,
        eos=tuple(end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int),
        generation={name: sampling[name] for name in _SAMPLING if isinstance(sampling.get(name), (bool, int, float))},
        special=_special(names),
    ), files


def _opens(bos: int, names: dict[str, Any], tokenizer: str | None) -> bool:
    """Whether the tokenizer puts that id in front of every text."""
    said = names.get("add_bos_token")
    if isinstance(said, bool) or tokenizer is None:
        return said is True
    try:
        processor = json.loads(tokenizer).get("post_processor") or {}
        steps = processor.get("processors", [processor])
        firsts = [step["single"][0]["SpecialToken"]["id"] for step in steps if step.get("type") == "TemplateProcessing"]
        return any(bos in step["special_tokens"][first]["ids"] for step in steps for first in firsts)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return False


def _text(path: Path, most: int) -> str | None:
    if not path.exists():
        return None
    try:
        return read_regular(path, most).decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error.strerror})", "check the file") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8", "download it again") from error


def _special(names: dict[str, Any]) -> dict[str, str]:
    """Of a `tokenizer_config.json`: the tokens that have a name, each a text or an object with one."""
    found = {name: value.get("content") if isinstance(value, dict) else value for name, value in names.items()}
    return {name: text for name, text in found.items() if name.endswith("_token") and isinstance(text, str) and text}


def _template(found: object) -> str | None:
    """Of a `tokenizer_config.json`: one template, or a list of named ones."""
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        named = [each for each in found if isinstance(each, dict) and isinstance(each.get("template"), str)]
        for each in sorted(named, key=lambda each: each.get("name") != "default"):
            return str(each["template"])
    return None
