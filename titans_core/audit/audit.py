"""The audit: every check, on the module as it is built and once more with every parameter moved."""

from __future__ import annotations

from dataclasses import replace

from titans_core.audit import checks
from titans_core.audit.factory import AuditError
from titans_core.audit.noise import Budget, noise
from titans_core.audit.report import MEANING, Report, Verdict
from titans_core.audit.subject import Subject
from titans_format.progress import ReportProgress

_COMPARED = {"causal": checks.causal, "batch": checks.batch, "prefix": checks.prefix, "split": checks.split}
_RANDOM = "not tested, because the outputs are random"
_MOVED = " (with every parameter moved)"


def audit(
    subject: Subject, target: str = "module", budget: Budget | None = None, on_progress: ReportProgress | None = None
) -> Report:
    """Run all checks.

    Args:
        subject: from `examine`.
        target: its name in the report.
        budget: for training on noise; the default without.
        on_progress: called with (done, total).

    Raises:
        AuditError: the module cannot be called, or its outputs are constant or not finite.
    """
    total, done = 2 * len(_COMPARED) + 2, 0

    def advance() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    found: dict[str, Verdict] = {}
    found["repeat"], random, keeps = checks.repeat(subject)
    subject = replace(subject, keeps=keeps and not subject.reset)
    advance()
    for measure, note in _measures(subject):
        for name, check in _COMPARED.items():
            if random and name != "causal":
                found[name] = Verdict(None, _RANDOM)
            elif found.get(name) is None or found[name].ok:
                verdict = check(measure)
                if not verdict.ok or name not in found:
                    found[name] = replace(verdict, finding=verdict.finding + (note if verdict.ok is False else ""))
            advance()
    found["noise"] = noise(subject, budget or Budget())
    advance()
    return Report(
        target=target,
        inputs=str(subject.inputs),
        length=subject.length,
        multiple=subject.multiple,
        dtype=str(subject.dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in subject.module.parameters()),
        checks={name: found[name] for name in MEANING},
    )


def _measures(subject: Subject) -> list[tuple[checks.Measure, str]]:
    """The module as built, and moved. One of them may say nothing, not both."""
    found: list[tuple[checks.Measure, str]] = []
    errors: list[AuditError] = []
    for variant, note in ((subject, ""), (subject.moved(0), _MOVED)):
        try:
            found.append((checks.Measure.of(variant), note))
        except AuditError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found
