"""Our own models as steppable models: which forms of a `TitansModel` or a `Decoder` become which graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from titans_core.decoder import Decoder, DecoderConfig
from titans_core.model import Outputs, TitansModel
from titans_core.state import StateSpec
from titans_export.models.protocol import Feeds, StepGraph
from titans_format.fields import ContinuousInputs, TokenInputs
from titans_format.specs import Due

OurModel = TitansModel | Decoder


class TitansSteppable:
    """A `SteppableModel` over a model of ours, which it uses in place."""

    def __init__(self, model: OurModel) -> None:
        self.module = model
        self.rows = model.config.chunk  # tokens between commits
        if isinstance(model, Decoder):
            self.variant, self.name = "decoder", f"{model.config.architecture}-decoder"
            self.chunk, self._commits = model.config.prefill, True
        else:
            self.variant = str(model.config.variant)
            self.name, self.chunk = f"titans-{self.variant}", model.config.chunk
            # A segment's keys and values are simply forgotten: mac without any memory has nothing to commit.
            self._commits = self.variant != "mac" or any(model.config.has_memory(i) for i in range(model.config.layers))
        self.schedule: Sequence[Due] = (Due(graph="commit", period=self.rows),) if self._commits else ()

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration."""
        return self.module.config.to_dict()

    @property
    def inputs(self) -> TokenInputs | ContinuousInputs:
        """Token ids or vectors."""
        config = self.module.config
        if isinstance(config, DecoderConfig):
            return TokenInputs(vocab_size=config.vocab_size)
        if config.vocab_size is not None:
            return TokenInputs(vocab_size=config.vocab_size)
        return ContinuousInputs(features=config.features or 0, targets=config.outputs)

    def state_specs(self) -> Sequence[StateSpec]:
        """The model's."""
        return self.module.state_specs()

    def initial_tensor(self, spec: StateSpec) -> Tensor:
        """The model's."""
        return self.module.initial_tensor(spec)

    def graphs(self) -> Sequence[StepGraph]:
        """prefill, extend, step and commit; no commit where nothing is ever committed."""
        graphs = [
            StepGraph("prefill", "prefill", self.chunk, self._prefill),
            StepGraph("extend", "extend", self.rows, self._extend),
            StepGraph("step", "step", 1, self._step),
        ]
        return [*graphs, StepGraph("commit", "commit", 0, self.module.commit)] if self._commits else graphs

    def _tokens(self, feeds: Feeds) -> Tensor:
        return feeds["input_ids" if "input_ids" in feeds else "inputs"]

    def _named(self, outputs: Outputs) -> Feeds:
        head, surprise, changed = outputs
        named = {"logits" if self.module.config.vocab_size is not None else "predictions": head}
        if surprise is not None:
            named["surprise"] = surprise
        return named | changed

    def _prefill(self, feeds: Feeds) -> Feeds:
        return self._named(self.module.prefill(self._tokens(feeds), feeds["position"], feeds))

    def _extend(self, feeds: Feeds) -> Feeds:
        return self._named(self.module.extend(self._tokens(feeds), feeds["position"], feeds["length"], feeds))

    def _step(self, feeds: Feeds) -> Feeds:
        return self._named(self.module.extend(self._tokens(feeds), feeds["position"], None, feeds))
