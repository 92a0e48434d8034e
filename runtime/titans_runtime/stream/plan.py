"""How a piece of a stream is cut into graph calls: pure arithmetic on positions, tested against every split.

Knows chunk boundaries, what each kind of graph may be asked, and when a commit is due. Does not know tensors,
backends or tokens. All splits give the same logits and state; a plan only chooses a fast one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from titans_format.manifest import Manifest
from titans_format.specs import GraphKind, GraphSpec


@dataclass(frozen=True)
class Call:
    """Run `graph` on `length` tokens of the feed, beginning at `offset` in it and at `position` of the stream.

    A commit has length 0; its position is the one just reached.
    """

    graph: GraphSpec
    position: int
    offset: int
    length: int


@dataclass(frozen=True)
class Policy:
    """Which graphs a plan may use besides step, and from how many tokens on a partial chunk is worth one `extend`.

    An `extend` does a whole chunk's work however few tokens are real. Measured on 2 cores at chunk 64, a
    chunk costs what 4 to 5 steps cost where weights are streamed from memory (16 layers of 768 x 2304) and up to
    14 where call overhead rules (one small memory layer): an eighth of a chunk is where it begins to pay.
    """

    prefill: bool = True
    extend: bool = True
    extend_from: int | None = None  # tokens; None is an eighth of the chunk, at least 2

    def pays(self, length: int, chunk: int) -> bool:
        """Whether `length` tokens are worth an `extend`."""
        threshold = max(2, chunk // 8) if self.extend_from is None else self.extend_from
        return length >= threshold


FASTEST = Policy()
STEPS_ONLY = Policy(prefill=False, extend=False)


class Planner:
    """Plans for one manifest; what does not depend on the position is worked out once.

    Args:
        manifest: which graphs there are, the chunk, the schedule, and how many rows each rows state holds.

    Attributes:
        outputs, surprise_layers: numbers that come out for each token.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.outputs, self.surprise_layers = manifest.inputs.outputs, manifest.surprise_layers
        self._chunk = manifest.chunk
        self._prefill = manifest.graph("prefill")
        self._extend = manifest.graph("extend")
        self._step = manifest.graph("step")
        self._commits = _Timetable(manifest, "commit")
        self._steps = _Timetable(manifest, "step")
        rows = {size for state in manifest.states if state.kind == "rows" and isinstance(size := state.shape[0], int)}
        self._periods = tuple(sorted({manifest.chunk, *rows}))

    def calls(self, position: int, tokens: int, policy: Policy = FASTEST) -> Iterator[Call]:
        """Cut `tokens` tokens that follow `position` consumed ones into calls, commits included, in order."""
        offset = 0
        while offset < tokens:
            call = self._next(position + offset, offset, tokens - offset, policy)
            yield call
            offset += call.length
            if call.graph.kind == "prefill":
                continue  # what is due at its end is fused into it
            for graph in self._commits.at(position + offset):
                yield Call(graph, position + offset, offset, 0)

    def single(self, position: int) -> GraphSpec:
        """The graph of the first call of `calls(position, 1)`."""
        if self._chunk > 1 and self._steps.empty and self._step is not None:  # a token alone pays for no `extend`
            return self._step
        return self._next(position, 0, 1, FASTEST).graph

    def due(self, position: int) -> list[GraphSpec]:
        """The commits that follow once `position` tokens are consumed, in order."""
        return self._commits.at(position)

    def _next(self, position: int, offset: int, left: int, policy: Policy) -> Call:
        if self._prefill and policy.prefill and left >= self._chunk and position % self._chunk == 0:
            return Call(self._prefill, position, offset, self._chunk)
        if self._extend and policy.extend:
            length = int(min(left, self._extend.tokens, self._to_boundary(position)))
            if policy.pays(length, self._chunk):
                return Call(self._extend, position, offset, length)
        if self._step is None:
            raise ValueError("a manifest without a step graph, which Manifest.from_json would have refused")
        return Call(next(iter(self._steps.at(position + 1)), self._step), position, offset, 1)

    def _to_boundary(self, position: int) -> float:
        """Tokens up to the next position where a chunk ends, a commit may be due or a table of rows is full."""
        to_rows = min(period - position % period for period in self._periods)
        return min(to_rows, self._commits.next_after(position) - position)


class _Timetable:
    """The schedule's graphs of one kind, by the position at which they are due."""

    def __init__(self, manifest: Manifest, kind: GraphKind) -> None:
        graphs = {graph.name: graph for graph in manifest.graphs if graph.kind == kind}
        self._entries = [due for due in manifest.schedule if due.graph in graphs]
        self._by_period: dict[int, dict[int, list[tuple[int, GraphSpec]]]] = {}
        for place, due in enumerate(self._entries):
            phases = self._by_period.setdefault(due.period, {})
            phases.setdefault(due.phase, []).append((place, graphs[due.graph]))

    @property
    def empty(self) -> bool:
        """Whether nothing is ever due."""
        return not self._entries

    def at(self, position: int) -> list[GraphSpec]:
        """What is due at a position, in the order of the schedule."""
        found = [entry for period, phases in self._by_period.items() for entry in phases.get(position % period, ())]
        if len(self._by_period) > 1:
            found.sort(key=lambda entry: entry[0])
        return [graph for _, graph in found]

    def next_after(self, position: int) -> float:
        """The next position where something is due; infinite if nothing ever is."""
        waits = ((due.phase - position - 1) % due.period + 1 for due in self._entries)
        return position + min(waits, default=math.inf)
