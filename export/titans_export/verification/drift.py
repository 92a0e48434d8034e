"""How far a bundle's precision moves a model from itself in fp32, and whether it moves further as the stream grows.

`agreement` asks whether a bundle computes what its stored weights say; this asks what storing them so has cost. The
same tokens go through the fp32 model in PyTorch and through the bundle, and for half precision also through PyTorch in
that arithmetic, which is what a GPU computes (the bundle's graphs for CPUs round weights alone). None of them is ever
brought back to the other's state, so whatever adds up shows. Compared are the choice of the next token (top-1
agreement), the distributions (KL divergence from fp32's, nats per token), and every carried state tensor (Euclidean
norm of the difference over that of fp32's). Growth of a state's error is the slope of a line through its second half of
the stream. What is allowed is data, per precision. Knows nothing of plots."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titans_export.errors import ExportError
from titans_export.models.precision import at_precision, precision
from titans_export.models.source_model import source_of
from titans_export.models.titans import OurModel, TitansSteppable
from titans_export.verification.pieces import even_pieces, random_stream, text_stream
from titans_export.verification.sides import BundleSide, Side, TorchSide, side_by_side, threads_for
from titans_export.verification.tolerances import DriftLimits, limits
from titans_format.progress import ReportProgress
from titans_runtime.arrays import Array
from titans_runtime.bundle import Bundle, open_bundle

SAMPLES = 64  # places at which states are compared
PER = 1000  # tokens that a slope is told for


@dataclass
class Curve:
    """One side beside fp32. Lists have an entry for each sampled stretch of the stream.

    top1, kl: over the tokens of the stretch; of continuous models, `kl` is the relative error of the predictions and
        `top1` is empty.
    states: relative error of each carried tensor at the end of the stretch.
    """

    top1: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    states: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class DriftReport:
    """What the precision of a bundle costs along one stream.

    positions: where the stretches end.
    curves: "bundle" is the runtime on a CPU; "arithmetic" is PyTorch in half precision.
    """

    dtype: str
    tokens: int
    limits: DriftLimits
    positions: list[int] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)

    def top1(self, side: str) -> float | None:
        """Share of tokens after which both would choose the same next one; None for a continuous model."""
        found = self.curves[side].top1
        return float(np.average(found, weights=self.weights)) if found else None

    def kl(self, side: str) -> float:
        """Mean over the stream, nats per token."""
        return float(np.average(self.curves[side].kl, weights=self.weights))

    def slope(self, side: str, state: str) -> float:
        """Growth of a state's relative error in a thousand tokens, over the second half of the stream."""
        half = len(self.positions) // 2
        errors = self.curves[side].states[state][half:]
        if len(errors) < 2:
            return 0.0
        return float(np.polyfit(np.array(self.positions[half:]) / PER, errors, 1)[0])

    @property
    def ok(self) -> bool:
        """Whether every side stays within the limits."""
        return not self.excesses()

    def excesses(self) -> list[str]:
        """What is outside the limits, for a person."""
        found = []
        for side, curve in self.curves.items():
            top1 = self.top1(side)
            if top1 is not None and top1 < self.limits.top1:
                found.append(f"{side}: top-1 agreement {top1:.2%}, at least {self.limits.top1:.0%} is wanted")
            for state in curve.states:
                slope = self.slope(side, state)
                if slope > self.limits.slope:
                    found.append(
                        f"{side}: the error of state {state} grows by {slope:.1e} in {PER:,} tokens, at most"
                        f" {self.limits.slope:.0e} is wanted"
                    )
        return found

    def to_json_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        sides = {
            side: {
                "top1": self.top1(side),
                "kl": self.kl(side),
                "states": {
                    name: {"max": max(errors), "last": errors[-1], "slope_per_1000_tokens": self.slope(side, name)}
                    for name, errors in curve.states.items()
                },
                "curve": {"top1": curve.top1, "kl": curve.kl, "states": curve.states},
            }
            for side, curve in self.curves.items()
        }
        return {
            "ok": self.ok,
            "dtype": self.dtype,
            "tokens": self.tokens,
            "limits": {"top1": self.limits.top1, "slope_per_1000_tokens": self.limits.slope},
            "positions": self.positions,
            "sides": sides,
        }

    def explain(self) -> str:
        """A line per side for a person, and what is outside the limits."""
        lines = []
        for side, curve in self.curves.items():
            top1 = self.top1(side)
            agree = "" if top1 is None else f"top-1 agreement {top1:.2%}, "
            what = "relative error" if top1 is None else "KL"
            name = max(curve.states, key=lambda state: max(curve.states[state]), default=None)
            worst = "" if name is None else f", largest state error {max(curve.states[name]):.1e} ({name})"
            lines.append(f"{self.dtype} {side}, {self.tokens:,} tokens: {agree}{what} {self.kl(side):.1e}{worst}")
        return "\n".join([*lines, *(f"outside the limits: {excess}" for excess in self.excesses())])


def measure_drift(
    bundle: Path,
    checkpoint: Path,
    *,
    tokens: int,
    data: tuple[str, ...] = (),
    seed: int = 0,
    progress: ReportProgress | None = None,
) -> DriftReport:
    """Drive a bundle beside the fp32 model it was made from.

    Args:
        bundle: the bundle directory.
        checkpoint: the checkpoint directory.
        tokens: length of the stream.
        data: text to feed: files, or `stdlib` for the standard library's source, of which the documents that training
            holds out are taken; nothing is random tokens or vectors.
        seed: of random tokens.
        progress: called with (tokens done, tokens).

    Raises:
        TitansError: something cannot be loaded.
        ExportError: they are not the same model, or there is too little text.
    """
    opened = open_bundle(bundle)
    model = source_of(bundle, opened.manifest, checkpoint)
    model.eval().requires_grad_(False)
    stream = text_stream(opened, tokens, data) if data else random_stream(opened.manifest.inputs, tokens, seed)
    return drift(opened, model, stream, progress)


def drift(bundle: Bundle, model: OurModel, stream: Array, progress: ReportProgress | None = None) -> DriftReport:
    """`measure_drift` with everything in hand; `stream` is `[1, T]` ids or `[1, T, F]` vectors."""
    manifest, tokens = bundle.manifest, stream.shape[1]
    wanted = precision(manifest.dtype)
    report = DriftReport(manifest.dtype, tokens, limits(manifest.dtype))
    sides: dict[str, Side] = {"bundle": BundleSide(bundle)}
    if wanted.compute != torch.float32:
        sides["arithmetic"] = TorchSide(at_precision(model, wanted))
    exact = TorchSide(TitansSteppable(model))
    carried = [state.name for state in manifest.states if state.kind == "carried"]
    report.curves = {name: Curve(states={state: [] for state in carried}) for name in sides}
    stretch = max(manifest.chunk, -(-tokens // SAMPLES // manifest.chunk) * manifest.chunk)
    with threads_for(model):
        pieces = even_pieces(stream, stretch)
        for piece, results in side_by_side({**sides, "exact": exact}, pieces, tokens, progress):
            want, states = results["exact"], exact.states()
            for name, side in sides.items():
                _compare(report.curves[name], results[name], want, side.states(), states, tokens=stream.ndim == 2)
            report.positions.append(piece.stop)
            report.weights.append(piece.inputs.shape[1])
    return report


def _compare(
    curve: Curve, got: Array, want: Array, states: dict[str, Array], exact: dict[str, Array], *, tokens: bool
) -> None:
    if not np.isfinite(got).all():
        raise ExportError(
            "the model's numbers are not finite in this precision: an activation leaves its range",
            "export with another --dtype (bf16 has the range of fp32)",
        )
    if tokens:
        curve.top1.append(float((got.argmax(-1) == want.argmax(-1)).mean()))
        curve.kl.append(_divergence(got, want))
    else:
        curve.kl.append(float(np.linalg.norm(got - want)) / max(float(np.linalg.norm(want)), 1e-30))
    for name, errors in curve.states.items():
        size = float(np.linalg.norm(exact[name].astype(np.float64)))
        difference = float(np.linalg.norm(states[name].astype(np.float64) - exact[name]))
        errors.append(difference / size if size else difference)


def _divergence(got: Array, want: Array) -> float:
    """Mean KL divergence of `softmax(got)` from `softmax(want)`, nats."""
    p, q = (
        x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (want.astype(np.float64), got.astype(np.float64))
    )
    return float((np.exp(p) * (p - q)).sum(-1).mean())
