"""The options that describe a model: a variant and a preset, or a file, and single options over them.

Knows how they become a `TitansConfig`. Imports PyTorch only when one is built. Does not know tasks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from titans_core.rules import rule
from titans_format.files import MIB, read_regular

if TYPE_CHECKING:
    from titans_cli.start import Beginning
    from titans_core.config import TitansConfig, Variant

VARIANTS = ("lmm", "mac", "mag", "mal")
CONTROLS = ("writes-off", "attention-only")
_MOST_CONFIG = 16 * MIB
PRESETS = ("tiny", "small", "170m", "340m", "400m", "760m")


@dataclass(frozen=True)
class ModelOptions:
    """The model options of the command line."""

    variant: Variant
    preset: str
    config: Path | None
    overrides: tuple[str, ...]
    control: str | None = None  # one of CONTROLS: what the described model is to be compared with
    beginning: Beginning | None = None  # the checkpoint whose model it is instead
    rule: str = "titans"  # how the memory learns

    def build(self, vocab_size: int) -> TitansConfig:
        """The configuration they describe, for a vocabulary of `vocab_size` ids unless a file says otherwise."""
        model = self._described(vocab_size=vocab_size)
        if (model.vocab_size or 0) < vocab_size:
            raise click.UsageError(
                f"the model has {model.vocab_size} token ids, the data needs {vocab_size}; change one"
            )
        return model

    def build_continuous(self, features: int, targets: int) -> TitansConfig:
        """The configuration they describe, for vectors of `features` in and `targets` out."""
        model = self._described(vocab_size=None, features=features, targets=targets)
        if (model.features, model.outputs) != (features, targets):
            raise click.UsageError(
                f"the model takes {model.features} features and has {model.outputs} outputs, the data needs"
                f" {features} and {targets}; change one"
            )
        return model

    def _described(self, **shape: int | None) -> TitansConfig:
        from titans_core import controls
        from titans_core.config import TitansConfig
        from titans_core.presets import preset

        if self.beginning is not None:
            return self.beginning.checkpoint.titans
        if self.config is not None:
            values = _read_json(self.config)
        else:
            values = preset(self.preset, variant=self.variant, **shape).to_dict()
        values["memory"] = {**values.get("memory", {}), **rule(self.rule)}
        for override in self.overrides:
            _override(values, override)
        model = TitansConfig.from_dict(values)
        if self.control == "writes-off":
            return controls.writes_off_config(model)
        return controls.attention_only(model) if self.control == "attention-only" else model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_regular(path, _MOST_CONFIG))
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read ({error.strerror}); give a model configuration") from error
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{path} is not JSON ({error}); give a model configuration") from error
    if not isinstance(values, dict):
        raise click.UsageError(f"{path} is not a JSON object; give a model configuration")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    """Apply `a.b=VALUE` to nested `values`; VALUE is JSON, or else a plain string."""
    name, equals, text = override.partition("=")
    *parents, last = name.split(".")
    for parent in parents:
        values = values.get(parent, {}) if isinstance(values, dict) else {}
    if not equals or not isinstance(values, dict) or last not in values:
        raise click.UsageError(f"--set {override}: use NAME=VALUE with a model option, such as memory.depth=1")
    try:
        values[last] = json.loads(text)
    except (ValueError, RecursionError):
        values[last] = text
