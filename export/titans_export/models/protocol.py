"""What a model must offer to be exported: a state table, and its computation as a few graphs over named tensors.

Ours offers it through `titans`; a foreign model can offer it the same way. Knows no model and no ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from titans_core.state import StateSpec
from titans_format.fields import ContinuousInputs, TokenInputs
from titans_format.specs import Due, GraphKind

Feeds = dict[str, Tensor]

DATA_INPUTS = ("input_ids", "inputs", "position", "length")


@dataclass(frozen=True)
class StepGraph:
    """One graph.

    Attributes:
        name: file stem in the bundle.
        kind: prefill, extend, step or commit; the runtime's manifest says what each promises.
        tokens: positions one call holds; 0 for a commit.
        run: maps feeds to results, for any batch. Feeds hold `input_ids` `[B, tokens]` (or `inputs`
            `[B, tokens, F]`), `position` `[B]`, for extend `length` `[B]`, and every state by its name. Results hold
            `logits` or `predictions` `[B, tokens, V]`, `surprise` `[B, tokens, M]` if the model has memories, and
            the states that change, by name. It may ignore what it does not need.
    """

    name: str
    kind: GraphKind
    tokens: int
    run: Callable[[Feeds], Feeds]


class SteppableModel(Protocol):
    """A model whose state is external tensors."""

    @property
    def name(self) -> str:
        """Such as `titans-mac`."""

    @property
    def variant(self) -> str:
        """Such as `mac`."""

    @property
    def config(self) -> dict[str, Any]:
        """Everything that describes the model, as plain JSON values."""

    @property
    def module(self) -> nn.Module:
        """Holds the parameters that the graphs use."""

    @property
    def chunk(self) -> int:
        """Tokens of a prefill call."""

    @property
    def inputs(self) -> TokenInputs | ContinuousInputs:
        """What goes in and how wide the head is."""

    @property
    def schedule(self) -> Sequence[Due]:
        """Which graphs fall due after how many tokens."""

    def state_specs(self) -> Sequence[StateSpec]:
        """The state table."""

    def initial_tensor(self, spec: StateSpec) -> Tensor:
        """What a fresh stream starts `spec` from, `[*spec.shape]`."""

    def graphs(self) -> Sequence[StepGraph]:
        """The graphs, any order."""


def initial_state(model: SteppableModel, batch: int) -> Feeds:
    """The whole state of `batch` fresh streams, as separate contiguous tensors."""
    return {
        spec.name: model.initial_tensor(spec)
        .detach()
        .unsqueeze(1 if spec.kind == "rows" else 0)
        .expand(spec.batched(batch))
        .clone()
        for spec in model.state_specs()
    }
