"""Five checks of a module, each a comparison of calls whose outputs have to agree.

Changes are compared with the scale of the outputs. Where shapes differ between the calls, or kernels might, a model
that amplifies rounding is allowed 30 times what parameters off by a few units in the last place change.

Knows a `Subject`. Does not train anything (`noise`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from titans_core.audit.factory import AuditError
from titans_core.audit.report import Verdict
from titans_core.audit.subject import Subject

# Of the outputs' scale. Calls of one shape round alike; calls of different shapes may use different kernels, and parts
# of a float64 module that compute in float32 whatever they are given may then round differently.
SAME_SHAPE, OTHER_SHAPE = 1e-10, 1e-6  # in float64
SAME_SHAPE_UNITS, OTHER_SHAPE_UNITS = 8, 2000  # units in the last place, in anything less
AMPLIFIED = 30.0
PLACES = 11  # at which a future begins
SEED = 1


@dataclass(frozen=True)
class Measure:
    """One subject's outputs for a reference input, and how far others may be from them."""

    subject: Subject
    inputs: Tensor
    outputs: Tensor
    scale: float
    rounding: float

    @classmethod
    def of(cls, subject: Subject) -> Measure:
        """Raises `AuditError` if the outputs are not finite or are constant."""
        inputs = subject.sample(3, SEED)
        outputs = subject.answer(inputs)
        if not bool(torch.isfinite(outputs).all()):
            raise AuditError("outputs are not finite", "audit a model that computes finite numbers")
        scale = float(outputs.abs().max())
        if float((outputs - subject.answer(subject.sample(3, SEED + 1))).abs().max()) <= 1e-12 * scale:
            raise AuditError(
                "the outputs do not depend on the inputs", "audit a trained model, or one that does not start at zero"
            )
        near = subject.rounded(SEED).answer(inputs)
        rounding = float((near - outputs).abs().nan_to_num(0.0).max())
        return cls(subject, inputs, outputs, scale, rounding)

    def allowed(self, same_shape: bool) -> float:
        """The largest change that counts as rounding."""
        share = _share(self.outputs.dtype, same_shape)
        return max(share * self.scale, 0.0 if same_shape else AMPLIFIED * self.rounding)

    def judged(self, change: float, same_shape: bool, well: str, badly: str) -> Verdict:
        """The verdict on a largest change; NaN is a failure."""
        allowed = self.allowed(same_shape)
        ok = change <= allowed
        finding = f"{well} (largest change {change:.1e})" if ok else f"{badly} by {change:.1e} of {self.scale:.1e}"
        return Verdict(ok, finding, change, allowed)


def _share(dtype: torch.dtype, same_shape: bool) -> float:
    if dtype == torch.float64:
        return SAME_SHAPE if same_shape else OTHER_SHAPE
    return (SAME_SHAPE_UNITS if same_shape else OTHER_SHAPE_UNITS) * torch.finfo(dtype).eps


def largest(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; infinite where one is not finite."""
    return float((a - b).abs().nan_to_num(nan=torch.inf).max()) if a.numel() else 0.0


def repeat(subject: Subject) -> tuple[Verdict, bool, bool]:
    """The same call again: by the same module, and with other random numbers.

    Returns:
        The verdict, whether outputs are random, and whether the module keeps something between calls.
    """
    inputs, scale = subject.sample(2, SEED), 0.0
    one = subject.answer(inputs, seed=1)
    scale = float(one.abs().max())
    allowed = _share(one.dtype, True) * scale
    other = largest(one, subject.answer(inputs, seed=2))
    if not other <= allowed:
        return (
            Verdict(False, f"outputs are random: {other:.1e} of {scale:.1e} between calls in eval()", other, allowed),
            True,
            True,
        )
    module = subject.fresh()
    subject.answer(inputs, module=module, seed=1)
    try:
        kept = largest(one, subject.answer(inputs, module=module, seed=1))
    except AuditError as error:
        return Verdict(False, f"the second call of a module fails: {error.what}"), False, True
    if not kept <= allowed:
        return (
            Verdict(
                False, f"a call changes the module: the next one differs by {kept:.1e} of {scale:.1e}", kept, allowed
            ),
            False,
            True,
        )
    return (
        Verdict(True, f"calls agree (largest change {max(other, kept):.1e})", max(other, kept), allowed),
        False,
        False,
    )


def causal(measure: Measure) -> Verdict:
    """Everything from a place on is replaced; what came before it must stay."""
    subject = measure.subject
    inputs, outputs = measure.inputs[:1], subject.answer(measure.inputs[:1])
    others = subject.sample(1, SEED + 2)
    if subject.inputs.ids:
        others = torch.where(others == inputs, (others + 1) % subject.inputs.ids, others)
    worst, first, place = 0.0, 0, 0
    for start in sorted({round(1 + i * (subject.length - 2) / (PLACES - 1)) for i in range(PLACES)}):
        changed = torch.cat([inputs[:, :start], others[:, start:]], dim=1)
        difference = (subject.answer(changed) - outputs)[:, :start].abs().nan_to_num(nan=torch.inf)
        if float(difference.max()) > worst:
            worst, place = float(difference.max()), start
            first = int((difference[0].flatten(1).amax(1) > measure.allowed(True)).to(torch.int8).argmax())
    return measure.judged(
        worst,
        True,
        "the past stays when the future is another",
        f"with other tokens from {place} on, outputs from {first} on change",
    )


def batch(measure: Measure) -> Verdict:
    """A stream beside others, and alone."""
    subject, inputs = measure.subject, measure.inputs
    others = torch.cat([inputs[:1], subject.sample(2, SEED + 3)])
    beside = largest(subject.answer(others)[:1], measure.outputs[:1])
    verdict = measure.judged(beside, True, "", "a stream changes with the streams beside it")
    if not verdict.ok:
        return verdict
    try:
        alone = subject.answer(inputs[:1])
    except AuditError as error:
        return Verdict(False, f"a stream alone fails: {error.what}")
    return measure.judged(
        largest(alone, measure.outputs[:1]),
        False,
        "a stream is the same alone and beside others",
        "a stream alone differs from the same beside others",
    )


def _lengths(subject: Subject) -> list[int]:
    """Some lengths that a call can have, short and long."""
    unit, whole = max(1, subject.multiple), subject.length
    wanted = [1, 2, 3, 5, 7, 8, whole // 3, whole // 2, whole // 2 + 1, whole - 3, whole - 1]
    return sorted({n // unit * unit or unit for n in wanted} - {n for n in wanted if n >= whole} - {whole})


def prefix(measure: Measure) -> Verdict:
    """Shorter calls against the whole."""
    subject = measure.subject
    if not subject.multiple:
        return Verdict(False, f"only calls with {subject.length} tokens work, so no shorter stream has an answer")
    inputs, whole = measure.inputs[:1], subject.answer(measure.inputs[:1])
    worst, place = 0.0, 0
    for length in _lengths(subject):
        try:
            change = largest(subject.answer(inputs[:, :length]), whole[:, :length])
        except AuditError as error:
            return Verdict(False, f"a call with {length} tokens fails: {error.what}")
        if change > worst:
            worst, place = change, length
    return measure.judged(
        worst, False, "shorter calls agree", f"a call with {place} tokens differs from one with {subject.length}"
    )


def split(measure: Measure) -> Verdict:
    """Two and more calls that carry the state, against one."""
    subject = measure.subject
    if not subject.state and not subject.reset:
        return Verdict(None, "forward takes no state (--state names the argument, --reset a method that forgets)")
    if not subject.multiple:
        return Verdict(None, f"only calls with {subject.length} tokens work")
    inputs, whole = measure.inputs[:2], subject.answer(measure.inputs[:2])
    lengths, worst, place = _lengths(subject), 0.0, ""
    unit = max(1, subject.multiple)
    cuts = [[length] for length in lengths]
    cuts.append([*range(unit, min(subject.length, 9 * unit), unit)])  # piece by piece
    for cut in cuts:
        edges = [0, *cut, subject.length]
        parts = [inputs[:, a:b] for a, b in itertools.pairwise(edges)]
        name = f"calls with {' and '.join(str(part.shape[1]) for part in parts[:2])}"
        name += " tokens" if len(parts) == 2 else " tokens and so on"
        try:
            change = largest(subject.answer_in_parts(parts), whole)
        except AuditError as error:
            return Verdict(False, f"{name} fail: {error.what}")
        if change > worst:
            worst, place = change, name
    return measure.judged(worst, False, "calls that carry the state agree", f"{place} differ from one call")
