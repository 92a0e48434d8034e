"""Decoding with ever more context: ours, whose state has one size, against attention over a cache that grows.

What bounds it: attention reads all keys and values for every token, 2 x layers x dim numbers per token of context, on
top of the weights; from some length on that is more than everything else, and time grows in proportion. Ours reads the
weights and the same state at every length. Both have as many parameters, both run in ONNX Runtime with the same
settings, one stream each. The cache is filled with constants and not read from a prompt, whose cost would grow with
the square of the length: how fast a step is does not depend on the values.
Knows what is compared. Does not know attention's insides (`attention_only`).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import titans_runtime
from studies.speed.attention_only import Decoder, Shape, hidden_for, random_weights
from studies.speed.kit import THREADS, pin, random_bundle
from studies.speed.report import Curve, Figure, Plot, Result, Row
from titans_core.config import TitansConfig
from titans_core.presets import preset
from titans_format.progress import ReportProgress
from titans_measure.speed.timing import Work, medians
from titans_runtime import Session


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """`tokens` whole chunks, so that the commits are in the average."""

    preset: str = "small"
    contexts: tuple[int, ...] = (1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536)
    tokens: int = 64
    rounds: int = 5
    threads: int = THREADS


def measure(sizes: Sizes, progress: ReportProgress) -> Result:
    """Milliseconds per token of both at every context, and where they cross."""
    pin(sizes.threads)
    config = preset(sizes.preset, variant="mac")
    with tempfile.TemporaryDirectory() as folder:
        parameters = random_bundle(config, Path(folder) / "ours.titans").num_parameters()
        model = titans_runtime.load(Path(folder) / "ours.titans", provider="cpu", threads=sizes.threads)
        shape = attention_shape(config, parameters, max(sizes.contexts) + sizes.tokens)
        decoder = Decoder(shape, random_weights(shape), sizes.threads)
        sessions = _along(model, sizes)
        work: dict[str, Work] = {}
        for context in sizes.contexts:
            work[f"ours {context}"] = lambda context=context: _decode(sessions, context, sizes.tokens)  # type: ignore[misc]
            work[f"attention {context}"] = lambda context=context: _attend(decoder, context, sizes.tokens)  # type: ignore[misc]
        seconds = medians(work, sizes.rounds, progress)
    contexts = [float(context) for context in sizes.contexts]
    ours, theirs = (
        [1e3 * seconds[f"{name} {context}"] / sizes.tokens for context in sizes.contexts]
        for name in ("ours", "attention")
    )
    cross = crossing(contexts, ours, theirs)
    rows: list[Row] = [
        {
            "tokens of context": context,
            "ours, ms a token": round(mine, 3),
            "attention, ms a token": round(other, 3),
            "ratio": round(other / mine, 2),
            "cache, MB": round(2 * shape.layers * shape.dim * 4 * context / 1e6, 1),
        }
        for context, mine, other in zip(sizes.contexts, ours, theirs, strict=True)
    ]
    return Result(
        title="Context: where attention falls behind",
        stated=[
            f"`{sizes.preset}` mac, {parameters:,} parameters, {model.state_bytes / 1e6:.1f} MB of state, against"
            f" attention alone of dim {shape.dim}, {shape.layers} layers, {shape.heads} heads and a feed-forward of"
            f" {shape.hidden}, as many parameters; {sizes.tokens} tokens one by one, commits included; medians of"
            f" {sizes.rounds} rounds",
            _crossing_text(cross, sizes.contexts),
        ],
        figures=[
            Figure(
                name=f"attention's time over ours at {sizes.contexts[-1]:,} tokens", unit="x",
                value=theirs[-1] / ours[-1],
            ),
            Figure(
                name=f"our time at {sizes.contexts[-1]:,} tokens over that at {sizes.contexts[0]:,}", unit="x",
                value=ours[-1] / ours[0],
            ),
        ],
        tables={"Milliseconds a token": rows},
        plot=Plot(
            title="Decoding one token", x="tokens of context", y="ms a token",
            curves=[Curve(name="ours", x=contexts, y=ours), Curve(name="attention alone", x=contexts, y=theirs)],
        ),
    )  # fmt: skip


def attention_shape(config: TitansConfig, parameters: int, context: int) -> Shape:
    """Attention alone of equal width, depth and heads, its feed-forward as wide as the parameters allow."""
    shape = Shape(
        dim=config.dim, layers=config.layers, heads=config.heads, hidden=1, vocab=config.outputs, context=context
    )
    return replace(shape, hidden=hidden_for(parameters, shape))


def crossing(x: list[float], ours: list[float], theirs: list[float]) -> float | None:
    """The first x from which `theirs` stays above `ours`, on straight lines between the points; `x[0]` if it is
    above everywhere, None if it is not above at the end."""
    above = [their - our for our, their in zip(ours, theirs, strict=True)]
    if above[-1] <= 0:
        return None
    place = next((i for i in reversed(range(len(x))) if above[i] <= 0), None)
    if place is None:
        return x[0]
    share = -above[place] / (above[place + 1] - above[place])
    return x[place] + share * (x[place + 1] - x[place])


def _crossing_text(cross: float | None, contexts: tuple[int, ...]) -> str:
    if cross is None:
        return f"attention is as fast or faster up to {contexts[-1]:,} tokens of context"
    if cross <= contexts[0]:
        return f"attention is slower at {contexts[0]:,} tokens of context already"
    return f"the lines cross at {round(cross, -2):,.0f} tokens of context: from there on attention is slower"


def _along(model: titans_runtime.Model, sizes: Sizes) -> dict[int, Session]:
    """One stream, a session at every context."""
    stream = np.random.default_rng(0).integers(0, model.vocab_size or 1, max(sizes.contexts))
    session, found = model.session(), {}
    for context in sizes.contexts:
        session.feed(stream[session.position : context])
        found[context] = session.fork()
    return found


def _decode(sessions: dict[int, Session], context: int, tokens: int) -> None:
    session = sessions[context].fork()
    for token in range(tokens):
        session.feed([token])


def _attend(decoder: Decoder, context: int, tokens: int) -> None:
    decoder.position = context
    for token in range(tokens):
        decoder.feed(token)
