"""What a comparison of a bundle with its model found: for the manifest, and in words.

Knows figures and their meaning. Does not know how they were found (`agreement`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from titans_export.verification.tolerances import Tolerance
from titans_runtime.stream.memories import dead_warning


@dataclass
class VerificationReport:
    """What was compared and how far apart it was.

    Attributes:
        tokens: length of the stream.
        dtype: precision of the bundle, which chose the tolerance.
        tolerance: what was allowed.
        max_abs_error: largest difference between outputs, after any piece.
        training_form_error: the same against PyTorch's training form over the whole stream.
        states: largest error of every state tensor, at any point of the stream.
        pieces: how many feeds the stream was cut into.
        worst_at: position after the first piece with an output or state outside its tolerance, or None.
        resynchronised: how often both sides had to continue from one state, because the model amplifies rounding.
        amplifies_from: position from which it does, or None.
        dead_memories: memories that had faded to nothing at the end of the stream and could not learn any more.
        forms: what of the bundle was driven: its portable graphs, and the fused ones where this machine has kernels.
    """

    tokens: int
    dtype: str
    tolerance: Tolerance
    seed: int
    max_abs_error: float = 0.0
    training_form_error: float | None = None
    states: dict[str, float] = field(default_factory=dict)
    pieces: int = 0
    worst_at: int | None = None
    resynchronised: int = 0
    amplifies_from: int | None = None
    dead_memories: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("portable",)

    @property
    def ok(self) -> bool:
        """Whether everything was inside its tolerance."""
        return self.worst_at is None

    @property
    def disowned(self) -> bool:
        """Whether the training form says something else."""
        return self.training_form_error is not None and not self.training_form_error <= self.tolerance.outputs

    def to_json_dict(self) -> dict[str, Any]:
        """The report as JSON values, as stored in the manifest."""
        return {
            "ok": self.ok,
            "max_abs_error": _json(self.max_abs_error),
            "tokens": self.tokens,
            "states": {name: _json(error) for name, error in self.states.items()},
            "training_form_error": _json(self.training_form_error),
            "dtype": self.dtype,
            "tolerance": {"outputs": self.tolerance.outputs, "states": self.tolerance.states},
            "pieces": self.pieces,
            "seed": self.seed,
            "forms": list(self.forms),
            "first_failure_at": self.worst_at,
            "resynchronised": self.resynchronised,
            "amplifies_rounding_from": self.amplifies_from,
            "dead_memories": list(self.dead_memories),
        }

    def explain(self) -> str:
        """For a person: what disagreed, where, and what it means; and what to be warned of."""
        warning = f"\nwarning: {dead_warning(self.dead_memories)}" if self.dead_memories else ""
        return f"{self._verdict()}{warning}"

    def _verdict(self) -> str:
        if self.ok:
            agreed = f"agreed over {self.tokens:,} tokens, largest error {self.max_abs_error:.1e}"
            if not self.resynchronised:
                return agreed
            if self.amplifies_from is None:
                return f"{agreed}, from one state in each of {self.pieces} pieces, as {self.dtype} rounds on the way"
            return (
                f"{agreed}, from one state {self.resynchronised} times over: this model amplifies rounding errors from"
                f" token {self.amplifies_from} on, in PyTorch too; train it longer, or lower memory.max_step_size"
            )
        finding, remedy = self.disagreement()
        return f"{finding}; {remedy}"

    def disagreement(self) -> tuple[str, str]:
        """What a report that is not `ok` found, and what to do about it."""
        name, error = max(self.states.items(), key=lambda item: item[1], default=("outputs", self.max_abs_error))
        form = f", from the training form by {self.training_form_error:.1e}" if self.disowned else ""
        finding = (
            f"outputs differ by {self.max_abs_error:.1e}{form} (allowed {self.tolerance.outputs:.0e}) and state {name}"
            f" by {error:.1e} (allowed {self.tolerance.states:.0e}), first at token {self.worst_at}; the bundle does"
            " not compute what the model computes"
        )
        return finding, "do not use it, export again, and report it if it recurs"


def _json(error: float | None) -> float | None:
    """JSON has no infinity; null stands for it."""
    return error if error is not None and np.isfinite(error) else None
