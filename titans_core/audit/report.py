"""What an audit found, as values, as text and as JSON. Does not know how anything is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MEANING = {
    "causal": "An output never changes when a later token does.",
    "batch": "A stream's outputs do not depend on the streams beside it.",
    "prefix": "The outputs for the first tokens are those of a call with these tokens alone.",
    "split": "Two calls that carry the state give what one call gives.",
    "repeat": "The same call gives the same outputs.",
    "noise": "Trained to predict random tokens, it does no better than chance.",
}
ADVICE = {
    "causal": "It has seen its answers in training: its loss says nothing, and it cannot generate.",
    "batch": "Served to several users at once, it mixes what they wrote.",
    "prefix": "It is not a function of the past, so no stream can agree with its full forward.",
    "split": "What is decoded is not what was trained.",
    "repeat": "Nothing that is measured of it can be measured twice.",
    "noise": "It reads what it is to predict.",
}


@dataclass(frozen=True)
class Verdict:
    """One check.

    Attributes:
        ok: whether it holds; None if it could not be tested.
        finding: what was measured, as a sentence.
        change: the largest change of an output that should not have changed; None where nothing is compared.
        allowed: the largest that counts as rounding.
    """

    ok: bool | None
    finding: str
    change: float | None = None
    allowed: float | None = None


@dataclass(frozen=True)
class Report:
    """All checks of one module.

    Attributes:
        target: what was audited.
        inputs, length, multiple, dtype, parameters: of the module and its calls.
        checks: by name, in the order of `MEANING`.
    """

    target: str
    inputs: str
    length: int
    multiple: int
    dtype: str
    parameters: int
    checks: dict[str, Verdict]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(verdict.ok is not False for verdict in self.checks.values())

    def to_json_dict(self) -> dict[str, Any]:
        """`ok`, then one true, false or null for each check, then what was measured."""
        return {
            "ok": self.ok,
            **{name: verdict.ok for name, verdict in self.checks.items()},
            "checks": {name: asdict(verdict) for name, verdict in self.checks.items()},
            "target": self.target,
            "inputs": self.inputs,
            "length": self.length,
            "multiple": self.multiple,
            "dtype": self.dtype,
            "parameters": self.parameters,
        }

    def explain(self) -> str:
        """Lines for a person."""
        lines = [f"{self.target}: {self.parameters:,} parameters, {self.inputs}, {self.length} tokens in {self.dtype}"]
        for name, verdict in self.checks.items():
            word = {True: "ok", False: "FAILS", None: "untested"}[verdict.ok]
            lines.append(f"  {name:<7} {word:<9} {verdict.finding}")
            if verdict.ok is False:
                lines.append(f"  {'':<17} {ADVICE[name]}")
        failed = [name for name, verdict in self.checks.items() if verdict.ok is False]
        lines.append(f"{', '.join(failed)}: not sound" if failed else "nothing wrong found")
        return "\n".join(lines)
