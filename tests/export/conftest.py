"""Small bundles of every variant and both input kinds and of a decoder with a memory, exported once per process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.titans_core.decoder.grafts import grafted
from titans_core.config import VARIANTS, TitansConfig
from titans_core.decoder import Decoder
from titans_core.model import TitansModel
from titans_export.export import export_model

KINDS = [f"{variant}-{kind}" for variant in VARIANTS for kind in ("tokens", "continuous")] + ["decoder-tokens"]


@dataclass(frozen=True)
class Exported:
    """A bundle and the model it was made from."""

    path: Path
    model: TitansModel | Decoder
    continuous: bool


def build(kind: str, layers: int = 2) -> TitansModel | Decoder:
    """A model of `variant-inputs`, its parameters moved off their start, its gates stable."""
    variant, inputs = kind.split("-")
    if variant == "decoder":
        return grafted("side")
    torch.manual_seed(len(kind))
    config = TitansConfig.from_dict(
        {
            "variant": variant,
            "dim": 32,
            "layers": layers,
            "heads": 2,
            "chunk": 16,
            "window": 24,
            "ffn_hidden": 48,
            "persistent_tokens": 0 if variant == "lmm" else 3,
            "memory": {"heads": 2, "residual_norm": variant == "mag", "depth": 1 if variant == "mal" else 2},
            "vocab_size": None if inputs == "continuous" else 50,
            "features": 3 if inputs == "continuous" else None,
            "targets": 2 if inputs == "continuous" else None,
        }
    )
    return moved(TitansModel(config))


def moved(model: TitansModel) -> TitansModel:
    """The model with its parameters off their start; gates stay where they are stable."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate_bias" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


@pytest.fixture(scope="session", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One bundle per variant and input kind, not yet verified."""
    model = build(request.param)
    path = tmp_path_factory.mktemp("bundles") / f"{request.param}.titans"
    export_model(model, path, verify_tokens=0)
    return Exported(path, model, request.param.endswith("continuous"))
