"""titans-pytorch models as steppable models: which form becomes which graph, and when each of them is due.

A token that completes a chunk reads what it has just written, so writing cannot wait for a commit: such tokens have a
step graph of their own, `step_close`. Long-term memory tokens are commits without input, one call each, after every
segment. If chunks do not divide segments the pattern repeats after several segments, and the schedule spells it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from titans_core.state import StateSpec
from titans_export.models.protocol import Feeds, StepGraph
from titans_export.titans_pytorch.memory_only import MOST_CHUNKS, MemoryStream
from titans_export.titans_pytorch.older import modern
from titans_export.titans_pytorch.options import MemoryOptions, read_options
from titans_export.titans_pytorch.parameters import Reader
from titans_export.titans_pytorch.transformer import Transformer
from titans_format.fields import ContinuousInputs, TokenInputs
from titans_format.specs import Due

STEP, CLOSE, LONGTERM, LONGTERM_CLOSE, SEGMENT_END = "step", "step_close", "longterm", "longterm_close", "segment_end"


class TitansPytorchModel:
    """A `SteppableModel` of a titans-pytorch state dict.

    Args:
        config: `{"class": …, "args": {…}}`, the constructor call.
        tensors: the state dict.

    Raises:
        ConfigError: the configuration is wrong, or asks for what is not carried over.
        CheckpointError: a parameter is missing, superfluous or of another shape.
    """

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        options = read_options(config)
        read = Reader(modern(tensors))
        self.module: Transformer | MemoryStream
        if isinstance(options, MemoryOptions):
            self.module = stream = MemoryStream(options, read)
            segment, longterm, memory_chunk = stream.segment_len, 0, options.store_chunk
        else:
            self.module = Transformer(options, read)
            segment, longterm = options.segment_len, options.num_longterm_mem_tokens
            memory_chunk = options.memory_segment_len
        read.finish()
        self.config = config
        self.variant = "memory" if isinstance(options, MemoryOptions) else "mac"
        self.name = f"titans-pytorch-{self.variant}"
        self._plan = _Plan(segment, longterm, memory_chunk)
        self.schedule: Sequence[Due] = self._plan.schedule(self._ends_change())
        self.chunk = self._plan.cycle

    @property
    def inputs(self) -> TokenInputs | ContinuousInputs:
        """Token ids or vectors."""
        if isinstance(self.module, Transformer):
            return TokenInputs(vocab_size=self.module.options.num_tokens)
        return ContinuousInputs(features=self.module.features, targets=self.module.options.dim)

    def state_specs(self) -> Sequence[StateSpec]:
        """The module's."""
        return self.module.state_specs()

    def initial_tensor(self, spec: StateSpec) -> Tensor:
        """The module's, or a constant in the module's precision."""
        if isinstance(spec.initial, str):
            return self.module.initial_tensor(spec.name)
        some = next(self.module.parameters())
        return some.new_full(spec.shape, spec.initial)

    def graphs(self) -> list[StepGraph]:
        """The ordinary step first, then what else the schedule and the module have."""
        plan = self._plan
        named = {due.graph for due in self.schedule}
        graphs = [StepGraph(STEP, "step", 1, lambda feeds: self._step(feeds, plan.always_closes))]
        if CLOSE in named:
            graphs.append(StepGraph(CLOSE, "step", 1, lambda feeds: self._step(feeds, True)))
        if LONGTERM in named:
            graphs.append(StepGraph(LONGTERM, "commit", 0, lambda feeds: self._longterm(feeds, False)))
        if LONGTERM_CLOSE in named:
            graphs.append(StepGraph(LONGTERM_CLOSE, "commit", 0, lambda feeds: self._longterm(feeds, True)))
        if SEGMENT_END in named:
            graphs.append(StepGraph(SEGMENT_END, "commit", 0, self._end_segment))
        lags = isinstance(self.module, MemoryStream) and self.module.lags
        if plan.prefills and not lags:
            graphs.append(StepGraph("prefill", "prefill", plan.segment, self._prefill))
        return graphs

    def _named(self, outputs: tuple[Tensor, Feeds]) -> Feeds:
        return {"logits" if isinstance(self.module, Transformer) else "predictions": outputs[0]} | outputs[1]

    def _step(self, feeds: Feeds, closing: bool) -> Feeds:
        tokens = feeds["input_ids" if isinstance(self.module, Transformer) else "inputs"]
        return self._named(self.module.token(tokens, feeds["position"], feeds, closing))

    def _prefill(self, feeds: Feeds) -> Feeds:
        tokens = feeds["input_ids" if isinstance(self.module, Transformer) else "inputs"]
        return self._named(self.module.segment(tokens, feeds["position"], feeds))

    def _longterm(self, feeds: Feeds, closing: bool) -> Feeds:
        if not isinstance(self.module, Transformer):
            raise TypeError("only a transformer has long-term memory tokens")
        return self.module.longterm_token(feeds["position"], feeds, closing)

    def _end_segment(self, feeds: Feeds) -> Feeds:
        return self.module.end_segment(feeds) if isinstance(self.module, Transformer) else {}

    def _ends_change(self) -> bool:
        """Whether the end of a segment leaves something to do."""
        return any(".past_" in spec.name or ".history_" in spec.name for spec in self.state_specs())


class _Plan:
    """When chunks of `chunk` tokens close in segments of `segment` tokens with `longterm` others behind each."""

    def __init__(self, segment: int, longterm: int, chunk: int) -> None:
        self.segment, self.longterm, self.chunk = segment, longterm, chunk
        self.window = segment + longterm
        self.segments = chunk // math.gcd(self.window, chunk)  # after which the pattern repeats
        self.cycle = self.segments * segment

    @property
    def always_closes(self) -> bool:
        """Whether every token completes a chunk."""
        return self.chunk == 1

    @property
    def prefills(self) -> bool:
        """Whether whole segments are worth a graph: chunks divide them, and there are not too many to unroll."""
        return self.segments == 1 and self.segment > 1 and self.window // self.chunk <= MOST_CHUNKS

    def closes(self, segment: int, slot: int) -> bool:
        """Whether a place completes a chunk."""
        return (segment * self.window + slot + 1) % self.chunk == 0

    def schedule(self, ends: bool) -> tuple[Due, ...]:
        """All entries; `ends` if there is something to do at the end of every segment."""
        dues = list(self._closing_steps())
        for segment in range(self.segments):
            after = (segment + 1) * self.segment % self.cycle
            for slot in range(self.segment, self.window):
                name = LONGTERM_CLOSE if self.closes(segment, slot) else LONGTERM
                dues.append(Due(graph=name, period=self.cycle, phase=after))
        if ends:
            dues.append(Due(graph=SEGMENT_END, period=self.segment))
        return tuple(dues)

    def _closing_steps(self) -> list[Due]:
        if self.always_closes:
            return []
        if self.segments == 1 and self.segment % self.chunk == 0:
            return [Due(graph=CLOSE, period=self.chunk)]
        places = [
            (segment * self.segment + slot + 1) % self.cycle
            for segment in range(self.segments)
            for slot in range(self.segment)
            if self.closes(segment, slot)
        ]
        return [Due(graph=CLOSE, period=self.cycle, phase=place) for place in places]
