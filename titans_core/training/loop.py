"""The training loop: AdamW on slices of streams, memory carried from slice to slice (truncated backpropagation).

Any `Task`, any number of processes, with gradient accumulation or without: one global batch of rows, split over
processes and then over accumulation steps, each row's memory staying with its row. So neither changes the loss curve.

Knows the order of things. Does not know data, file formats or terminals.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from titans_core.config import TitansConfig
from titans_core.errors import CheckpointError, ConfigError
from titans_core.state import State
from titans_core.training.checkpoint import (
    TrainingProgress,
    has_checkpoint,
    load_checkpoint,
    load_progress,
    prepare_directory,
    save_checkpoint,
)
from titans_core.training.learner import Learner, TitansLearner
from titans_core.training.log import LogFiles, Observer, StepRecord
from titans_core.training.objective import Slice
from titans_core.training.optimizer import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)
from titans_core.training.schedule import default_warmup, learning_rate
from titans_core.training.threads import MANY_THREADS, own_threads, quicker
from titans_core.training.workers import Workers, join_workers
from titans_format.errors import TitansError
from titans_tasks.task import Scalar, Task, Totals

_FROM = "run.from_sha256"  # the setting that says what a run began with
HELD_OUT = "held_out."  # prefix of the metrics in a checkpoint's provenance


class TrainingError(TitansError):
    """Training that cannot go on."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; what to train on is the `Task`."""

    steps: int
    batch: int = 16  # rows of the global batch, over all processes and accumulation steps
    seed: int = 0  # of the initial weights; the task has its own
    learning_rate: float = 3e-3  # peak
    warmup: int | None = None  # steps; None is `default_warmup`
    weight_decay: float = 0.01
    clip: float = 1.0  # norm of the gradient
    write_cost: float = 0.0  # price of writing, `Objective`'s; from 0 at the first step up to this at the last
    accumulate: int = 1  # pieces a process's rows are run in, one after the other
    eval_every: int = 0  # steps; 0 is only at the end
    save_every: int = 0  # steps; 0 is only at the end
    device: str = "auto"  # auto | cpu | cuda
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto is bf16 autocast on CUDA devices that have it
    compile: bool = False  # the memory's chunks with torch.compile
    recompute: bool = False  # activations of one chunk at a time: less memory, more time
    threads: int | None = None  # of the CPU; None is 1 or `most_threads`, whichever is quicker at the beginning
    most_threads: int | None = None  # None is torch's own number

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("accumulate", 1), ("seed", 0), ("eval_every", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}", f"it must be at least {least}")
        if self.warmup is not None and not 0 <= self.warmup <= self.steps:
            raise ConfigError(f"warmup is {self.warmup}", f"use 0 to {self.steps}, the number of steps")
        for name in ("threads", "most_threads"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ConfigError(f"{name} is {count}", "it must be at least 1")
            if count is not None and count > (most := max(MANY_THREADS, 4 * (os.cpu_count() or 1))):
                raise ConfigError(f"{name} is {count}", f"use at most {most} on this machine")
        if self.save_every < 0:
            raise ConfigError(f"save_every is {self.save_every}", "use a number of steps, or 0 for only at the end")
        if not 0 <= self.write_cost < math.inf:
            raise ConfigError(f"write_cost is {self.write_cost}", "use 0, or a small number such as 0.03")
        if not self.learning_rate > 0 or not self.clip > 0:
            raise ConfigError(
                "the learning rate and the clipping norm must be above 0", "the defaults are 3e-3 and 1.0"
            )

    def settings(self) -> dict[str, Scalar]:
        """The options that shape the loss curve; the others may differ on resume."""
        free = {"eval_every", "save_every", "device", "precision", "accumulate", "compile", "recompute"}
        free |= {"threads", "most_threads"}
        return {name: value for name, value in asdict(self).items() if name not in free}


@dataclass(frozen=True)
class Start:
    """What a run begins with instead of fresh weights.

    The optimizer, the learning rate's schedule and the streams of the data begin anew.

    Attributes:
        tensors: the model's state_dict.
        sha256: of the file they were stored in; a resumed run has to begin with the same.
        provenance: where they come from, for the checkpoints of this run.
    """

    tensors: dict[str, Tensor]
    sha256: str
    provenance: dict[str, str | int | float]


@dataclass(frozen=True)
class TrainResult:
    """The end of a run: `loss` of the last step, `metrics` of the last evaluation (of the first process only)."""

    rank: int  # this process among its peers; 0 is the one that wrote the checkpoint
    step: int
    loss: float
    metrics: dict[str, float]
    parameters: int
    tokens: int
    seconds: float


def train(
    config: TitansConfig,
    task: Task,
    options: TrainOptions,
    out: Path,
    *,
    tokenizer_json: str | None = None,
    series_json: str | None = None,
    head_scale: float = 1.0,
    start: Start | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """Train a model of `config` on `task` into the checkpoint directory `out`.

    With `resume` a checkpoint in `out` is continued exactly, as if the run had never stopped; without one it starts
    from the beginning, which is `start` or fresh weights, and a checkpoint in `out` is an error. Under `torchrun` every
    process calls this. Fresh weights of the head are multiplied by `head_scale`.

    Raises:
        ConfigError: options that cannot be used together, or that differ from those of the run to resume.
        CheckpointError: `out` is not usable.
        TrainingError: the loss is no longer finite.
    """

    def learner(device: torch.device) -> Learner:
        torch.manual_seed(options.seed)
        tensors = None if start is None else start.tensors
        texts = {"tokenizer_json": tokenizer_json, "series_json": series_json}
        return TitansLearner(
            config,
            device,
            tensors=tensors,
            compiled=options.compile,
            recompute=options.recompute,
            head_scale=head_scale,
            **texts,
        )

    return train_learner(learner, task, options, out, start=start, resume=resume, observers=observers)


def train_learner(
    build: Callable[[torch.device], Learner],
    task: Task,
    options: TrainOptions,
    out: Path,
    *,
    start: Start | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """Train what `build` returns for a device, as `train` does; `start` says where its weights came from."""
    with _denormals_as_zero(), own_threads(), join_workers(options.device) as workers:
        run = _Run(build(workers.device), task, options, out, workers, start)
        run.start(resume)
        return run.finish(observers)


@contextlib.contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Decayed momentum ends in denormals, which made CPU matmuls, and so whole steps, ten times slower."""
    tiny = torch.tensor(1e-310, dtype=torch.float64)
    already = bool(tiny * 0.5 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)  # the caller's arithmetic is none of our business


class _Run:
    def __init__(
        self, learner: Learner, task: Task, options: TrainOptions, out: Path, workers: Workers, start: Start | None
    ) -> None:
        pieces = workers.count * options.accumulate
        if options.batch % pieces:
            raise ConfigError(
                f"a batch of {options.batch} rows does not divide into {pieces} equal pieces", "change one"
            )
        self.learner, self.task, self.options, self.out, self.workers = learner, task, options, out, workers
        self.origin = start
        self.model, self.objective = learner.model, learner.objective
        self.optimizer = build_optimizer(self.model, weight_decay=options.weight_decay)
        self.warmup = default_warmup(options.steps) if options.warmup is None else options.warmup
        self.bf16 = _use_bf16(options.precision, workers.device)
        self.states: list[State | None] = [None] * options.accumulate
        self.step, self.tokens, self.loss = 0, 0, math.nan
        self.metrics: dict[str, float] = {}
        self.threads = options.threads

    # -- the run ---------------------------------------------------------------------------------------------------

    def start(self, resume: bool) -> None:
        if has_checkpoint(self.out):
            if not resume:
                raise CheckpointError(
                    f"{self.out} already holds a checkpoint",
                    "add --resume to continue its run, choose another"
                    f" directory, or train it further with --from {self.out} and another --out",
                )
            self._restore()
        elif self.workers.first:
            prepare_directory(self.out)

    def finish(self, observers: Sequence[Observer]) -> TrainResult:
        log = LogFiles(self.out, done=self.step) if self.workers.first else None
        watching: list[Observer] = [log, *observers] if log else []
        began, tokens_before = time.monotonic(), self.tokens
        try:
            forward = self._distributed()
            self._set_threads()
            while self.step < self.options.steps:
                norm, rate = self._train_step(forward)
                speed = (self.tokens - tokens_before) / (time.monotonic() - began)
                for observer in watching:
                    observer.on_step(StepRecord(self.step, self.loss, rate, norm, self.tokens, speed))
                last = self.step == self.options.steps
                if last or _due(self.step, self.options.eval_every):
                    self._evaluate(watching, final=last)
                if last or _due(self.step, self.options.save_every):
                    self._save()
        finally:
            if log:
                log.close()
        seconds = time.monotonic() - began
        parameters = self.learner.num_parameters
        return TrainResult(self.workers.rank, self.step, self.loss, self.metrics, parameters, self.tokens, seconds)

    def _set_threads(self) -> None:
        """One number of threads for the whole run; sums of others differ in their last digits."""
        if self.threads is None:
            most = min(torch.get_num_threads(), self.options.most_threads or torch.get_num_threads())
            choice = most > 1 and self.workers.count == 1 and self.workers.device.type == "cpu"
            self.threads = quicker(self._dry_run, most) if choice and self.step < self.options.steps else most
        torch.set_num_threads(self.threads)

    def _dry_run(self) -> None:
        """The work of one piece of the next step, which leaves nothing behind."""
        batch = self.task.batch(self.step, self.workers.rows(self.options.batch))
        piece = Slice.of(batch, self.workers.device).split(self.options.accumulate)[0]
        with torch.autocast(self.workers.device.type, torch.bfloat16, enabled=self.bf16):
            loss, _, _ = piece.under(self.objective, piece.reset, self.states[0])
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)

    # -- one step --------------------------------------------------------------------------------------------------

    def _train_step(self, forward: nn.Module) -> tuple[float, float]:
        """Advance by one optimizer step; returns the norm of the gradient and the rate used."""
        options, workers = self.options, self.workers
        batch = self.task.batch(self.step, workers.rows(options.batch))
        sizes = [int(batch.mask.sum()), batch.mask.size]
        count, tokens = workers.sum(torch.tensor(sizes, device=workers.device)).tolist()
        rate = learning_rate(self.step, peak=options.learning_rate, warmup=self.warmup, steps=options.steps)
        set_learning_rate(self.optimizer, rate)
        # Rising, because what is not yet needed would be priced away before it is found to be useful.
        self.objective.write_cost = options.write_cost * (self.step + 1) / options.steps
        self.objective.done = self.step / options.steps
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=workers.device)
        pieces = Slice.of(batch, workers.device).split(options.accumulate)
        for i, piece in enumerate(pieces):
            with contextlib.ExitStack() as stack:
                if isinstance(forward, DistributedDataParallel) and i + 1 < len(pieces):
                    stack.enter_context(forward.no_sync())
                loss = self._forward(forward, piece, i)
                # The processes' gradients are averaged, and the loss is a mean over the whole global batch.
                (loss * (workers.count / max(count, 1))).backward()
            total += loss.detach()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip))
        self.loss = float(workers.sum(total)) / max(count, 1)
        self._check_finite(norm)
        self.optimizer.step()
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        return norm, rate

    def _forward(self, forward: nn.Module, piece: Slice, i: int) -> Tensor:
        with torch.autocast(self.workers.device.type, torch.bfloat16, enabled=self.bf16):
            loss, _, state = piece.under(forward, piece.reset, self.states[i])
        if self.task.carries:
            self.states[i] = state
        return loss  # type: ignore[no-any-return]

    def _check_finite(self, norm: float) -> None:
        if math.isfinite(self.loss) and math.isfinite(norm):
            return
        raise TrainingError(
            f"step {self.step + 1}: the loss is {self.loss:g} and the gradient norm {norm:g}",
            f"try a lower --lr (it is {self.options.learning_rate:g}), a longer --warmup (it is {self.warmup})"
            f"{self.learner.advice}",
        )

    # -- evaluation ------------------------------------------------------------------------------------------------

    def _evaluate(self, watching: Sequence[Observer], *, final: bool) -> None:
        """Held-out metrics, on the first process only; the others wait for it at the next step."""
        if not self.workers.first:
            return
        self.metrics = self.task.metrics(self._totals(self.objective, keep=True))
        if final and self.task.carries:
            self._compare("memory_reset", self._totals(self.objective, keep=False))
            if (control := self.learner.writes_off()) is not None:
                self._compare("writes_off", self._totals(control, keep=True))
        for observer in watching:
            observer.on_evaluation(self.step, self.metrics)

    def _compare(self, control: str, totals: Totals) -> None:
        """Add the first of the metrics under a control."""
        name, value = next(iter(self.task.metrics(totals).items()))
        self.metrics[f"{name}_{control}"] = value

    @torch.no_grad()
    def _totals(self, objective: nn.Module, *, keep: bool) -> Totals:
        """The held-out data with the memory kept, or reset at every slice."""
        loss, correct, count = 0.0, 0, 0
        state: State | None = None
        for batch in self.task.held_out():
            piece = Slice.of(batch, self.workers.device)
            reset = piece.reset if keep else None
            with torch.autocast(self.workers.device.type, torch.bfloat16, enabled=self.bf16):
                sums = piece.under(objective, reset, state)
            loss, correct, count = loss + float(sums[0]), correct + int(sums[1]), count + int(np.sum(batch.mask))
            state = sums[2]
        return Totals(loss, correct, count)

    # -- processes and files ---------------------------------------------------------------------------------------

    def _distributed(self) -> nn.Module:
        if self.workers.count == 1:
            return self.objective
        devices = [self.workers.device] if self.workers.device.type == "cuda" else None
        return DistributedDataParallel(self.objective, device_ids=devices)

    def _settings(self) -> dict[str, Scalar]:
        run = {f"run.{name}": value for name, value in self.options.settings().items()}
        run |= {_FROM: self.origin.sha256} if self.origin else {}
        return {**run, **{f"task.{name}": value for name, value in self.task.settings.items()}}

    def _save(self) -> None:
        streams = self._gather_streams()
        if not self.workers.first:
            return
        weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        tensors = {f"optimizer/{k}": v.cpu() for k, v in optimizer_tensors(self.model, self.optimizer).items()}
        tensors |= {f"stream/{name}": value.cpu() for name, value in streams.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        checkpoint = self.learner.checkpoint(weights, self._provenance())
        save_checkpoint(self.out, checkpoint, TrainingProgress(self.step, tensors, self._settings()))

    def _restore(self) -> None:
        checkpoint, progress = load_checkpoint(self.out), load_progress(self.out)
        settings = self._settings()
        for name in [*settings, *(_FROM for _ in progress.settings.keys() & {_FROM} - settings.keys())]:
            if settings.get(name) != progress.settings.get(name):
                raise self._changed(name, progress.settings.get(name), settings.get(name))
        self.learner.restore(checkpoint)
        restore_optimizer(self.model, self.optimizer, _below("optimizer/", progress.tensors))
        torch.set_rng_state(progress.tensors["random/cpu"])
        self.step = progress.step
        stored = checkpoint.provenance
        self.tokens, self.loss = int(stored["tokens"]), float(stored["loss"])
        if self.threads is None and "threads" in stored:  # with another number, last digits would differ
            self.threads = int(stored["threads"])
        held_out = (name for name in stored if name.startswith(HELD_OUT))
        self.metrics = {name.removeprefix(HELD_OUT): float(stored[name]) for name in held_out}
        self._scatter_streams(_below("stream/", progress.tensors))

    def _changed(self, name: str, found: Scalar, value: Scalar) -> ConfigError:
        """Why a run cannot be resumed with another setting, and what to do instead."""
        if name == _FROM:
            return ConfigError(
                f"{self.out} began with other weights than now", "give the --from that it was started with, or none"
            )
        return ConfigError(
            f"{self.out} was trained with {name} = {found}, now it is {value}",
            f"use {found} to resume it, or train it further with --from {self.out} and another --out",
        )

    def _provenance(self) -> dict[str, str | int | float]:
        known: dict[str, Scalar] = {
            "titans_deploy": _version(),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "step": self.step,
            "tokens": self.tokens,
            "loss": self.loss,
            "parameters": self.learner.num_parameters,
            "threads": self.threads,
            **self._settings(),
            **(self.origin.provenance if self.origin else {}),
            **{f"{HELD_OUT}{name}": value for name, value in self.metrics.items()},
        }
        return {name: value for name, value in known.items() if value is not None}

    def _gather_streams(self) -> State:
        """The memory of every row of the global batch, in the order of the rows; nothing if none is carried."""
        states = [state for state in self.states if state is not None]
        if not states:
            return {}
        names = sorted(states[0])  # one order of calls in every process
        return {name: self.workers.gather(torch.cat([state[name] for state in states])) for name in names}

    def _scatter_streams(self, streams: State) -> None:
        """The inverse of `_gather_streams`, for any number of processes and accumulation steps."""
        if not streams:
            return
        rows, pieces = self.workers.rows(self.options.batch), self.options.accumulate
        own = {name: value[rows.start : rows.stop].to(self.workers.device) for name, value in streams.items()}
        split = {name: value.chunk(pieces) for name, value in own.items()}
        self.states = [{name: parts[i] for name, parts in split.items()} for i in range(pieces)]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _use_bf16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def _version() -> str:
    try:
        return metadata.version("titans-deploy")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
