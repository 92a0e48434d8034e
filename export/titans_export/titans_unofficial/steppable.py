"""titans-unofficial models as steppable models: a step, and for mac a commit after every chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from titans_core.state import StateSpec
from titans_export.models.protocol import Feeds, StepGraph
from titans_export.titans_pytorch.parameters import Reader
from titans_export.titans_unofficial.model import Body
from titans_export.titans_unofficial.options import read_options
from titans_format.fields import ContinuousInputs, TokenInputs
from titans_format.specs import Due


class TitansUnofficialModel:
    """A `SteppableModel` of a titans-unofficial state dict.

    Args:
        config: the constructor call and the names around it, as `read_options` takes them.
        tensors: the state dict.

    Raises:
        ConfigError: the configuration is wrong.
        CheckpointError: a parameter is missing, superfluous or of another shape.
    """

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        options = read_options(config)
        outside = Reader(tensors)
        prefix = options.prefix.rstrip(".")
        self.module = Body(options, outside.below(prefix) if prefix else outside, outside)
        outside.finish()
        self.config, self.variant = config, options.variant
        self.name, self.chunk = f"titans-unofficial-{options.variant}", options.chunk
        commits = options.variant == "mac" and options.chunk
        self.schedule: Sequence[Due] = (Due(graph="commit", period=options.chunk),) if commits else ()

    @property
    def inputs(self) -> TokenInputs | ContinuousInputs:
        """Token ids or vectors."""
        body = self.module
        if body.embedding is not None:
            return TokenInputs(vocab_size=body.vocabulary)
        return ContinuousInputs(features=body.options.dim, targets=body.outputs or body.options.dim)

    def state_specs(self) -> Sequence[StateSpec]:
        """The module's."""
        return self.module.state_specs()

    def initial_tensor(self, spec: StateSpec) -> Tensor:
        """The module's, or a constant in the module's precision."""
        if isinstance(spec.initial, str):
            return self.module.initial_tensor(spec.name)
        return next(self.module.parameters()).new_full(spec.shape, spec.initial)

    def graphs(self) -> list[StepGraph]:
        """step, and for mac commit."""
        step = StepGraph("step", "step", 1, self._step)
        return [step, StepGraph("commit", "commit", 0, self.module.commit)] if self.schedule else [step]

    def _step(self, feeds: Feeds) -> Feeds:
        tokens = feeds["inputs" if self.module.embedding is None else "input_ids"]
        out, changed = self.module.token(tokens, feeds["position"], feeds)
        return {"predictions" if self.module.embedding is None else "logits": out} | changed
