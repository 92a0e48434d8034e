"""Models of titans-unofficial: the bundle's outputs and final memory against the package's own full forward."""

from __future__ import annotations

import importlib
import itertools
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn

import titans_runtime
from titans_cli.main import cli
from titans_export.errors import ExportError
from titans_export.titans_unofficial.importer import import_checkpoint
from titans_export.titans_unofficial.options import read_options
from titans_export.titans_unofficial.steppable import TitansUnofficialModel
from titans_export.verification.torch_stream import TorchStream

try:
    metadata.version("titans-unofficial")
    MISSING = False
except metadata.PackageNotFoundError:
    MISSING = True

needs_package = pytest.mark.skipif(MISSING, reason="needs titans-unofficial==2.0.0, imported as `titans`")
WIDTH = 8
CLOSE = 2e-4
Config = dict[str, Any]

CASES: dict[str, Config] = {
    "mac": {"class": "TitansMAC", "args": {"chunk_size": 5}},
    "mac-window": {"class": "TitansMAC", "args": {"chunk_size": 5, "window_size": 4}},
    "mac-window-over-both": {"class": "TitansMAC", "args": {"chunk_size": 4, "window_size": 6}},
    "mac-chunk-1-deep": {"class": "TitansMAC", "args": {"chunk_size": 1, "memory_depth": 3}},
    "mac-no-persistent": {"class": "TitansMAC", "args": {"chunk_size": 8, "persistent_tokens": 0}},
    "mag": {"class": "TitansMAG", "args": {"window_size": 6}},
    "mag-window-1-linear": {"class": "TitansMAG", "args": {"window_size": 1, "memory_depth": 1}},
    "mag-no-persistent": {"class": "TitansMAG", "args": {"window_size": 40, "persistent_tokens": 0}},
    "mal": {"class": "TitansMAL", "args": {"window_size": 6}},
    "mal-deep": {"class": "TitansMAL", "args": {"window_size": 3, "memory_depth": 3}},
    "mal-no-persistent": {"class": "TitansMAL", "args": {"window_size": 2, "persistent_tokens": 0}},
}


def full(config: Config) -> Config:
    """A configuration with sizes."""
    args = {"d_model": WIDTH, "n_layers": 2, "n_heads": 2, "persistent_tokens": 3, **config["args"]}
    return {**config, "args": args}


def theirs(config: Config) -> nn.Module:
    """The package's model with every parameter moved."""
    torch.manual_seed(0)
    package = importlib.import_module("titans.models")
    model: nn.Module = getattr(package, config["class"])(**config["args"], persist_memory=True).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def memories(model: nn.Module) -> list[Tensor]:
    """The final memory and momentum of every state, as the package keeps them."""
    states = model._memory_states
    assert isinstance(states, list)
    return [part for weights, momentum in states for part in (*weights, *momentum)]


def ours_in_that_order(model: TitansUnofficialModel, state: dict[str, Any]) -> list[Any]:
    """The same of a bundle or of our PyTorch form."""
    options = model.module.options
    numbers = [f"{n}." for n in range(options.layers)] if options.variant == "mal" else [""]
    found = []
    for number in numbers:
        for name in ("memory", "momentum"):
            for index in range(options.memory_depth):
                found.append(np.swapaxes(np.asarray(state[f"{number}{name}_matrix_{index}"]), 1, 2))
                found.append(np.asarray(state[f"{number}{name}_bias_{index}"]))
    return found


@needs_package
@pytest.mark.parametrize("name", CASES)
def test_the_form_in_pytorch_is_the_packages(name: str) -> None:
    config = full(CASES[name])
    model = theirs(config)
    ours = TitansUnofficialModel(config, model.state_dict())
    x = torch.randn(2, 40, WIDTH)
    stream = TorchStream(ours, 2)
    torch.testing.assert_close(stream.feed(x), model(x), rtol=0, atol=2e-5)
    for got, want in zip(ours_in_that_order(ours, stream.state), memories(model), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=2e-5)


@needs_package
@pytest.mark.parametrize("name", ["mac", "mag", "mal"])
def test_the_bundle_is_the_package_in_any_pieces(name: str, tmp_path: Path) -> None:
    config = full(CASES[name])
    model = theirs(config)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    (tmp_path / "m.json").write_text(json.dumps(config))
    bundle = tmp_path / "m.titans"
    manifest = import_checkpoint(tmp_path / "m.safetensors", tmp_path / "m.json", bundle, verify_tokens=20)
    assert manifest.verification is not None
    assert manifest.verification["reference"].startswith("titans-unofficial")
    x = torch.randn(1, 600, WIDTH)
    driver = titans_runtime.load(bundle, provider="cpu", threads=1).driver(1)
    cuts = [0, 1, 7, 100, 103, 350, 600]
    pieces = [x[:, a:b].numpy() for a, b in itertools.pairwise(cuts)]
    got = np.concatenate([driver.feed(piece, all_outputs=True).outputs for piece in pieces], axis=1)
    np.testing.assert_allclose(got, model(x).numpy(), rtol=0, atol=CLOSE)
    ours = TitansUnofficialModel(config, model.state_dict())
    for mine, want in zip(ours_in_that_order(ours, driver.state()), memories(model), strict=True):
        np.testing.assert_allclose(mine, want.numpy(), rtol=0, atol=CLOSE)


def made_up(config: Config, around: dict[str, Tensor] | None = None, prefix: str = "") -> dict[str, Tensor]:
    """A state dict of a one-layer MAG by the names that the package documents, without the package."""
    torch.manual_seed(0)
    d, persistent = WIDTH, config["args"]["persistent_tokens"]
    shapes: dict[str, tuple[int, ...]] = {"persistent_memory.memory_tokens": (1, persistent, d)}
    for name in ("W_K", "W_V", "W_Q"):
        shapes[f"neural_memory.{name}.weight"] = (d, d)
    for name in ("theta", "eta", "alpha"):
        shapes |= {f"neural_memory.{name}_proj.weight": (1, d), f"neural_memory.{name}_proj.bias": (1,)}
    linears = {
        "neural_memory.memory_layers.0": (d, d),
        "neural_memory.memory_layers.1": (d, d),
        "ffns.0.0": (4 * d, d),
        "ffns.0.3": (d, 4 * d),
        "gate_proj.0": (d, 2 * d),
        "gate_proj.2": (d, d),
        "output_projection": (d, d),
    }
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("Q", "K", "V", "O"):
        shapes[f"attention_layers.0.attention.W_{name}.weight"] = (d, d)
    for name in ("layer_norms1.0", "layer_norms2.0", "gate_norm1", "gate_norm2"):
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    return {prefix + name: torch.randn(shape) * 0.3 for name, shape in shapes.items()} | (around or {})


MAG = {"class": "TitansMAG", "args": {"d_model": WIDTH, "n_layers": 1, "n_heads": 2, "persistent_tokens": 2}}


def test_a_language_model_comes_with_its_users_embedding_and_head(tmp_path: Path) -> None:
    around = {"tokens.weight": torch.randn(11, WIDTH), "out.weight": torch.randn(11, WIDTH), "out.bias": torch.ones(11)}
    config = {**MAG, "prefix": "core.", "embedding": "tokens", "head": "out"}
    save_file(made_up(MAG, around, "core."), tmp_path / "m.safetensors")
    (tmp_path / "m.json").write_text(json.dumps(config))
    arguments = [str(tmp_path / "m.safetensors"), "--config", str(tmp_path / "m.json"), "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(
        cli, ["import", "titans-unofficial", *arguments, "--verify-tokens", "20", "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["model"] == "titans-unofficial-mag"
    model = titans_runtime.load(tmp_path / "b", provider="cpu", threads=1)
    assert model.manifest.inputs.vocab_size == 11


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"class": "TitansLMM"}, "choose one of TitansMAC, TitansMAG, TitansMAL"),
        ({**MAG, "args": {**MAG["args"], "n_heads": 3}}, "n_heads 3 does not divide d_model 8"),
        ({**MAG, "args": {**MAG["args"], "depth": 3}}, "titans-unofficial 2.0.0 has no argument 'depth'"),
        ({**MAG, "embedding": "tokens"}, "names an embedding and no head"),
        ({**MAG, "embedding": 3, "head": "out"}, "embedding is 3"),
        ([], "the configuration is []"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(config: Any, complaint: str) -> None:
    with pytest.raises(ExportError) as found:
        read_options(config)
    assert complaint in str(found.value)


def test_what_does_not_fit_is_refused_by_name() -> None:
    tensors = made_up(MAG)
    with pytest.raises(ExportError, match=r"no parameter 'tokens.weight'"):
        TitansUnofficialModel({**MAG, "embedding": "tokens", "head": "output_projection"}, tensors)
    with pytest.raises(ExportError, match=r"'position.weight'"):
        TitansUnofficialModel(MAG, tensors | {"position.weight": torch.zeros(4, WIDTH)})
    with pytest.raises(ExportError, match="memory_norm"):
        TitansUnofficialModel({**MAG, "class": "TitansMAL"}, tensors)


@pytest.mark.parametrize("name", ["tf-titans", "aheschl1-titans", "open-titans", "titans-memory"])
def test_sources_that_cannot_be_carried_over_are_refused_by_name(name: str) -> None:
    result = CliRunner().invoke(cli, ["import", name, "model.pt", "--config", "c.json", "--out", "b"])
    assert result.exit_code == 2
    assert f"{name} is not carried over" in result.stderr
    assert "titans train" in result.stderr
