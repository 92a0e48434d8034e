"""`titans train --from`: the checkpoint that a run begins with, and what it settles.

The model, its tokenizer, the task and what else fixes the shape or the meaning of the model are the checkpoint's. Data,
steps, rates and all the rest are the new run's own. Imports PyTorch only when a checkpoint is opened. Does not know how
training goes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from titans_cli.task_options import was_given

if TYPE_CHECKING:
    from titans_core.decoder import DecoderConfig
    from titans_core.pretrained import Texts
    from titans_core.training.checkpoint import Checkpoint
    from titans_core.training.loop import Start
    from titans_tasks.facts import Render
    from titans_tasks.series import Forecasting, Scaling
    from titans_tasks.series_data import Series
    from titans_tasks.tokens import Tokenizer

_MODEL_OPTIONS = {"variant": "--variant", "preset": "--preset", "config": "--config", "overrides": "--set"}
_MODEL_OPTIONS |= {"control": "--control", "rule": "--rule"}
GRAFT_TASKS = ("facts", "text")  # what a pretrained decoder can learn: it has words already
# Options of tasks that say what the model's inputs and outputs are.
_FIXED = {"series": ("horizon", "lookback", "span"), "recall": ("keys",)}


@dataclass(frozen=True)
class Beginning:
    """The checkpoint of `--from`, opened."""

    path: Path
    checkpoint: Checkpoint

    @classmethod
    def at(cls, path: Path) -> Beginning:
        """The newest step in `path`. Raises `CheckpointError`."""
        from titans_core.training.checkpoint import load_checkpoint

        return cls(path, load_checkpoint(path))

    def refuse_model_options(self, context: click.Context) -> None:
        """Raise `UsageError` for an option that describes another model."""
        for name, option in _MODEL_OPTIONS.items():
            if was_given(context, name):
                raise click.UsageError(
                    f"{option} describes a new model, and --from goes on with the one in {self.path}; leave it out, or"
                    " train a new model without --from"
                )

    def task(self, requested: str | None) -> str:
        """The task that the checkpoint was trained on, which is also what was `requested` for, if anything was."""
        known = self.checkpoint.provenance.get("task.task")
        if self.decoder is not None and requested is not None:
            if requested not in GRAFT_TASKS:
                raise click.UsageError(
                    f"a pretrained model learns --task {' or '.join(GRAFT_TASKS)}, and {requested} has ids of its own;"
                    " train a new model without --from"
                )
            return requested
        if known is None and requested is None:
            raise click.UsageError(f"{self.path} does not say what it was trained on; add --task")
        if known is not None and requested not in (None, known):
            raise click.UsageError(
                f"{self.path} was trained on --task {known}, and --task {requested} needs a model of its own; leave"
                " --task out, or train a new model without --from"
            )
        return str(requested or known)

    def settle(self, context: click.Context, task: str, own: dict[str, Any]) -> dict[str, Any]:
        """The task's options `own`, those that fix the model as the checkpoint has them."""
        settled = dict(own)
        for name in _FIXED.get(task, ()):
            known = self.checkpoint.provenance.get(f"task.{name}")
            if known is None:
                continue
            if was_given(context, name) and own[name] != known:
                raise click.UsageError(
                    f"{self.path} was trained with --{name} {known}, and --{name} {own[name]} needs a model of its own;"
                    f" leave --{name} out, or train a new model without --from"
                )
            settled[name] = known
        return settled

    def tokenizer(self, given: Path | None) -> Tokenizer:
        """The checkpoint's tokenizer, which is also the one `given`, if one is."""
        from titans_tasks.tokens import load_tokenizer, parse_tokenizer

        text = self.checkpoint.tokenizer_json if self.decoder is None else self._texts.tokenizer_json
        own = load_tokenizer(None) if text is None else parse_tokenizer(text, f"the tokenizer in {self.path}")
        if given is not None and _plain(load_tokenizer(given).json) != _plain(text):
            kind = "bytes" if text is None else "another tokenizer"
            raise click.UsageError(
                f"{self.path} was trained with {kind}, whose ids mean other text than those of {given}; leave"
                " --tokenizer out, or train a new model without --from"
            )
        return own

    def read_series(self, source: str) -> Series:
        """The series called `source`, with the channels that the checkpoint's model takes."""
        from titans_tasks.series_data import read_series

        series = read_series(source)
        return series if self._scaling is None else series.of_columns(self._scaling.columns)

    def scaled(self, forecasting: Forecasting) -> Forecasting:
        """`forecasting` with the scaling that the checkpoint's model has learned to read."""
        return forecasting if self._scaling is None else forecasting.scaled_as(self._scaling)

    def in_same_units(self, forecasting: Forecasting) -> Forecasting:
        """`forecasting` in the deviations of the training part that the checkpoint's model has seen."""
        if self._scaling is None:
            return forecasting
        return forecasting.in_units_of(self._scaling.mean, self._scaling.deviation)

    @property
    def decoder(self) -> DecoderConfig | None:
        """The configuration of a pretrained decoder; None for a model that is ours from the start."""
        from titans_core.decoder import DecoderConfig

        config = self.checkpoint.config
        return config if isinstance(config, DecoderConfig) else None

    @cached_property
    def _texts(self) -> Texts:
        from titans_core.training.backbone import open_backbone

        return open_backbone(self.path, self.checkpoint).texts

    @property
    def render(self) -> Render | None:
        """Writes turns as the pretrained model's chat template does; None without one."""
        source = self._texts.chat_template
        if source is None:
            return None
        from titans_runtime.chat.template import ChatTemplate
        from titans_runtime.chat.user_text import plain

        template = ChatTemplate(source, self._texts.special)
        return lambda turns, opened: plain(template.render(turns, opened))

    @cached_property
    def _scaling(self) -> Scaling | None:
        from titans_tasks.series import Scaling

        text = self.checkpoint.series_json
        return None if text is None else Scaling.from_json(text)

    def start(self) -> Start:
        """What the run takes over."""
        from titans_core.training.loop import Start

        known = self.checkpoint.provenance
        origin = {f"from.{name}": known[name] for name in ("step", "tokens", "loss") if name in known}
        earlier = {name: value for name, value in known.items() if name.startswith("task.") and "sha256" in name}
        origin |= {f"from.{name}": value for name, value in earlier.items()}
        return Start(self.checkpoint.tensors, self.checkpoint.weights_sha256, {"from.name": self.path.name, **origin})


def _plain(text: str | None) -> object:
    """A tokenizer's document, whatever its layout."""
    return None if text is None else json.loads(text)
