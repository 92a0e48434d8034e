"""What a stretch of a stream costs at least: the costs of the calls that the runtime would make for it, added up.

Knows plans and the costs in a manifest. Does not know machines or clocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from titans_format.manifest import Manifest
from titans_format.specs import Cost, GraphSpec
from titans_runtime.stream.plan import Call, Planner


@dataclass(frozen=True)
class Demand:
    """Multiplications and additions, and bytes that must move, of some tokens."""

    flops: int
    bytes: int


def reading(manifest: Manifest, tokens: int, batch: int, *, widened: bool) -> Demand | None:
    """What a prompt of so many tokens costs from the beginning; see `_total`."""
    return _total(Planner(manifest).calls(0, tokens), batch, widened=widened)


def decoding(manifest: Manifest, start: int, tokens: int, batch: int, *, widened: bool) -> Demand | None:
    """What so many tokens cost that follow `start` others and are fed one at a time; see `_total`."""
    planner = Planner(manifest)
    calls = (call for place in range(start, start + tokens) for call in planner.calls(place, 1))
    return _total(calls, batch, widened=widened)


def _total(calls: Iterator[Call], batch: int, *, widened: bool) -> Demand | None:
    """The demand of calls for `batch` streams at once; None if the bundle does not say what its graphs cost.

    `widened`: half-precision weights are float32 where this runs, and twice as many bytes.
    """
    flops = moved = 0
    for call in calls:
        needs = _cost(call.graph, widened=widened)
        if needs is None:
            return None
        flops += batch * needs.flops
        moved += needs.weight_bytes + batch * (needs.read_bytes + needs.written_bytes)
    return Demand(flops, moved)


def _cost(graph: GraphSpec, *, widened: bool) -> Cost | None:
    needs = graph.cost
    if needs is None or not (widened and graph.cpu is not None):
        return needs
    return Cost(
        flops=needs.flops,
        weight_bytes=2 * needs.weight_bytes,
        read_bytes=needs.read_bytes,
        written_bytes=needs.written_bytes,
    )
