"""Hugging Face folders: weights in several files, the text side, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.titans_core.decoder.families import ids, make
from titans_core.errors import CheckpointError, ConfigError
from titans_core.pretrained import decoder_of, open_pretrained


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@torch.no_grad()
def test_weights_may_be_in_several_files_and_in_half_precision(tmp_path: Path) -> None:
    model = make("qwen2", tmp_path / "one").bfloat16()
    model.save_pretrained(tmp_path / "several", max_shard_size="20KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1
    decoder = decoder_of(open_pretrained(tmp_path / "several"))
    tokens, widened = ids(64), type(model).from_pretrained(tmp_path / "several", dtype=torch.float32)
    assert (decoder(tokens)[0] - widened(tokens, use_cache=False).logits).abs().max() <= 2e-4
    assert len(open_pretrained(tmp_path / "several").files) > 3


def test_a_configuration_in_the_words_of_older_files_means_the_same(tmp_path: Path) -> None:
    make("llama-llama3", tmp_path)
    new = open_pretrained(tmp_path).config
    values = json.loads((tmp_path / "config.json").read_text())
    spread = values.pop("rope_parameters")
    values["rope_theta"] = spread.pop("rope_theta")
    values["rope_scaling"] = spread | {"type": spread.pop("rope_type")}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert open_pretrained(tmp_path).config == new


def test_text_comes_along(tmp_path: Path) -> None:
    make("llama", tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}, "post_processor": null}')
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"chat_template": "{{ old }}", "add_bos_token": True, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
            | {"pad_token": None, "model_max_length": 5}
        )
    )
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 5], "bos_token_id": 1, "temperature": 0.6, "top_k": 20, "note": "x"})
    )
    texts = open_pretrained(tmp_path).texts
    assert (texts.bos, texts.eos, texts.chat_template) == (1, (2, 5), "{{ old }}")
    assert texts.generation == {"temperature": 0.6, "top_k": 20}
    assert texts.special == {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "chat_template.jinja").write_text("{{ new }}")
    assert open_pretrained(tmp_path).texts.chat_template == "{{ new }}"


def test_mistral_keeps_within_the_window_that_it_was_trained_with(tmp_path: Path) -> None:
    make("mistral", tmp_path)
    pretrained = open_pretrained(tmp_path)
    assert (pretrained.config.window, pretrained.config.trained_window) == (24, 24)
    with pytest.raises(ConfigError, match="trained with a sliding window of 24"):
        pretrained.streaming(window=25, sinks=0, chunk=8, prefill=8)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "gemma3_text"}, "architecture 'gemma3_text'.*smollm3"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'.*llama3"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor is None"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "model.layers.1.* has no place"),
        ({"intermediate_size": 64}, r"mlp.gate_proj.weight is \[48, 32\].*\[64, 32\]"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"hidden_size": "32"}, "hidden_size is '32', expected a whole number"),
        ({"head_dim": 7}, "even"),
        ({"num_key_value_heads": 3}, "kv_heads 3"),
        ({"rms_norm_eps": float("nan")}, "norm_eps"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    make("llama", tmp_path)
    change_config(tmp_path, **values)
    with pytest.raises(CheckpointError, match=says):
        decoder_of(open_pretrained(tmp_path))


def test_a_missing_shard_and_a_file_of_elsewhere_are_named(tmp_path: Path) -> None:
    make("llama", tmp_path / "one").save_pretrained(tmp_path / "several", max_shard_size="20KB")
    shard = sorted((tmp_path / "several").glob("*.safetensors"))[1]
    shard.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=f"has no {shard.name}"):
        open_pretrained(tmp_path / "several")
    index = tmp_path / "several" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shard.name, "../elsewhere.safetensors"))
    with pytest.raises(CheckpointError, match="not a file of the folder"):
        open_pretrained(tmp_path / "several")


def test_weights_that_are_cut_off_or_not_numbers_are_named(tmp_path: Path) -> None:
    make("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    whole["model.norm.weight"][3] = float("inf")
    save_file(whole, path)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds numbers that are not finite"):
        decoder_of(open_pretrained(tmp_path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_pretrained(tmp_path)


def test_weights_that_would_have_to_be_unpickled_are_refused(tmp_path: Path) -> None:
    make("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="save_pretrained"):
        open_pretrained(tmp_path)
