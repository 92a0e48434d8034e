"""Training on noise: a causal model predicts random tokens no better than chance; one that reads its answers does.

Finds what a comparison of calls can miss, and shows what a leak is worth. Knows a `Subject` and an optimizer.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_core.audit.factory import AuditError
from titans_core.audit.report import Verdict
from titans_core.audit.subject import Inputs, Subject, outputs_of
from titans_format.progress import ReportProgress

IDS = 8  # of which noise is made; chance is log 8
STREAMS, TOKENS = 8, 48
MOST_STEPS = 400
RATE = 3e-3
JUDGED_ON = 6  # fresh batches
SURE = 5.0  # standard errors below chance
CLEARLY = 0.03  # of chance below it


@dataclass(frozen=True)
class Budget:
    """How long to train: `seconds`, and at most `steps`. Zero of either skips the check."""

    seconds: float = 20.0
    steps: int = MOST_STEPS


def noise(subject: Subject, budget: Budget, on_progress: ReportProgress | None = None) -> Verdict:
    """Train a copy to predict the next of random tokens, and judge it on fresh ones."""
    if not budget.seconds or not budget.steps:
        return Verdict(None, "not trained (--noise SECONDS trains a copy on random tokens)")
    tokens = min(TOKENS, subject.length)
    if subject.multiple:
        tokens = max(subject.multiple, tokens // subject.multiple * subject.multiple)
    tokens = tokens if subject.multiple else subject.length
    learner = _Learner(subject, tokens)
    ended, step, recent = time.monotonic() + budget.seconds, 0, learner.chance
    try:
        for step in range(1, budget.steps + 1):
            loss = learner.step(step)
            if not math.isfinite(loss):
                return Verdict(None, f"the loss was not finite after {step} steps of training on noise")
            recent += 0.1 * (loss - recent)
            if on_progress is not None:
                on_progress(step, budget.steps)
            if recent < 0.6 * learner.chance or time.monotonic() > ended:
                break
        mean, error = learner.judged()
    except AuditError as problem:
        return Verdict(None, f"cannot be trained: {problem.what}")
    ok = mean >= learner.chance - max(CLEARLY * learner.chance, SURE * error)
    measured = f"loss {mean:.3f} after {step} steps on noise, chance is {learner.chance:.3f}"
    return Verdict(ok, measured, max(0.0, learner.chance - mean), max(CLEARLY * learner.chance, SURE * error))


class _Learner:
    """A copy of the module, a head where its outputs are not logits, and their optimizer."""

    def __init__(self, subject: Subject, tokens: int) -> None:
        self.subject, self.tokens = subject, tokens
        self.module = copy.deepcopy(subject.module).float()
        self.ids = min(IDS, subject.inputs.ids)
        self.inputs = Inputs(ids=self.ids) if self.ids else subject.inputs
        self.chance = math.log(self.ids) if self.ids else 1.0
        with torch.no_grad():
            width = self._run(self._sample(0)).shape[-1]
        torch.manual_seed(0)
        self.head: nn.Module = nn.Identity()
        if not self.ids or width < self.ids:
            self.head = nn.Linear(width, self.ids or subject.inputs.features)
        parameters = [p.requires_grad_() for p in self.module.parameters() if p.is_floating_point()]
        self.optimizer = torch.optim.Adam([*parameters, *self.head.parameters()], lr=RATE)
        self.parameters = parameters

    def _sample(self, seed: int) -> Tensor:
        return self.inputs.sample(STREAMS, self.tokens, 1000 + seed, torch.float32)

    def _run(self, inputs: Tensor) -> Tensor:
        module = copy.deepcopy(self.module) if self.subject.keeps and not torch.is_grad_enabled() else self.module
        if self.subject.reset:
            getattr(module, self.subject.reset)()
        try:
            result = module(inputs)
        except Exception as error:
            raise AuditError(f"{type(error).__name__} in training", "audit it with --noise 0") from error
        found: Tensor = outputs_of(result, inputs)
        return found.unsqueeze(-1) if found.dim() == 2 else found.flatten(2)

    def _losses(self, seed: int) -> Tensor:
        inputs = self._sample(seed)
        predicted: Tensor = self.head(self._run(inputs))[:, :-1]
        if self.ids:
            return F.cross_entropy(predicted[..., : self.ids].flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
        return (predicted - inputs[:, 1:]).pow(2).mean(-1).flatten()

    def step(self, number: int) -> float:
        """One step of training; the loss before it."""
        with torch.enable_grad():
            loss = self._losses(number).mean()
            self.optimizer.zero_grad()
            if not loss.requires_grad:
                raise AuditError("no parameter gets a gradient", "audit it with --noise 0")
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def judged(self) -> tuple[float, float]:
        """Mean loss of fresh noise, and its standard error."""
        with torch.no_grad():
            losses = torch.cat([self._losses(-1 - number) for number in range(JUDGED_ON)]).double()
        return float(losses.mean()), float(losses.std() / math.sqrt(losses.numel()))
