"""What the server counts, for Prometheus. No label holds anything that a client has written."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Metrics:
    """The figures of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("titans_requests", "Requests answered", ("route", "status"), registry=self.registry)
        self.tokens = Counter(
            "titans_tokens", "Tokens: read, reused instead of read, written", ("kind",), registry=self.registry
        )
        self.running = Gauge("titans_turns_running", "Turns that generate now", registry=self.registry)
        self.waiting = Gauge("titans_turns_waiting", "Turns that wait for a place", registry=self.registry)
        self.resident = Gauge("titans_memories_resident", "Memories that are open", registry=self.registry)
        self.first_token = Histogram(
            "titans_first_token_seconds", "From the start of a turn to its first token", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.turn = Histogram(
            "titans_turn_seconds", "From the start of a turn to its end", buckets=_SECONDS, registry=self.registry
        )

    def page(self, resident: Callable[[], int]) -> bytes:
        """The exposition text."""
        self.resident.set(resident())
        return generate_latest(self.registry)
