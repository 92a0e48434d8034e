"""Does the bundle compute what the model computes? The runtime and PyTorch, side by side over a long stream.

The stream is fed to the bundle in random pieces under random policies (whole chunks, parts of chunks, single
tokens), and to PyTorch in its own pieces. After every piece the outputs and every state tensor are compared, and the
outputs once more with PyTorch's training form, which knows no pieces at all. Errors are absolute, those of states
divided by the tensor's largest value where that exceeds 1; the tolerances are data, per dtype.

A memory whose writes overshoot amplifies rounding: such a model disagrees with itself in PyTorch, fp32 against fp64,
and no two implementations of it can agree for long. So when a bundle disagrees, the stream is driven again beside an
fp64 twin: a piece may differ by up to ten times the model's own rounding in it, and wherever that comes near the
tolerance all three continue from one state. A wrong bundle fails all the same, since every piece has to agree by
itself; the report says how often this was needed and from where on the model amplifies.

A bundle of lower precision is compared with fp32 arithmetic on the weights as it stores them, so the tolerances stay
tight; how far that is from the fp32 model is another question, which `drift` answers. Where the two part company (a
number at the edge of two fp16 ones, activations rounded to integers), they continue from one state after every piece.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from titans_core.state import State
from titans_export.errors import ExportError
from titans_export.models.precision import StoredStates, precision, reference
from titans_export.models.protocol import initial_state
from titans_export.models.source_model import made_from, source_of
from titans_export.models.titans import OurModel, TitansSteppable
from titans_export.passes.quantise import values_name
from titans_export.verification.torch_stream import TorchStream
from titans_format.fields import ContinuousInputs
from titans_runtime.arrays import Array
from titans_runtime.bundle import open_bundle, read_manifest_of
from titans_runtime.devices.select import select
from titans_runtime.native import kernels
from titans_runtime.state.calls import LoadOptions
from titans_runtime.stream.driver import Driver
from titans_runtime.stream.memories import dead_memories, dead_warning, learned_names
from titans_runtime.stream.plan import FASTEST, STEPS_ONLY, Policy

Progress = Callable[[int, int], None]

POLICIES = (FASTEST, FASTEST, STEPS_ONLY, Policy(prefill=False, extend_from=2))
LONGEST_PIECE_IN_CHUNKS = 4
SMALL_MODEL = 10_000_000  # parameters
ROUNDING_SLACK = 10.0  # two fp32 implementations may be this much further apart than one of them is from fp64
GROWN = 0.25  # share of a tolerance from which on they continue from one state: before chance takes one of them over it


@dataclass(frozen=True)
class Tolerance:
    """The largest errors that are still agreement; `relative`: those of outputs too are divided by the largest."""

    outputs: float
    states: float
    relative: bool = False


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


def tolerance(dtype: str) -> Tolerance:
    """The tolerances of a precision. Raises `ExportError` if there are none."""
    table = json.loads(resources.files(__package__).joinpath("tolerances.json").read_text(encoding="utf-8"))
    if dtype not in table:
        raise ExportError(f"there is no tolerance for dtype {dtype!r}", f"verify knows {', '.join(table)}")
    return Tolerance(table[dtype]["outputs"], table[dtype]["states"], table[dtype].get("relative", False))


def verify_bundle(
    bundle: Path, checkpoint: Path, *, tokens: int, seed: int = 0, progress: Progress | None = None
) -> VerificationReport:
    """Compare a bundle with the checkpoint it was made from.

    Args:
        bundle: the bundle directory.
        checkpoint: the checkpoint directory.
        tokens: length of the stream.
        seed: of the stream and of the pieces it is fed in.
        progress: called with (tokens done, tokens).

    Raises:
        TitansError: one of the two cannot be loaded.
        ExportError: they are not the same model.
    """
    model = source_of(bundle, read_manifest_of(bundle), checkpoint)
    return compare(bundle, model, tokens=tokens, seed=seed, progress=progress)


def compare(
    bundle: Path, model: OurModel, *, tokens: int, seed: int = 0, progress: Progress | None = None
) -> VerificationReport:
    """`verify_bundle` with the model in hand."""
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if not made_from(manifest, model):
        raise ExportError(
            f"{bundle} was not made from this model: their configurations differ", "export the model again"
        )
    model.eval().requires_grad_(False)
    wanted = precision(manifest.dtype)
    stored = {name for name, _ in model.named_parameters() if values_name(name) in opened.weights}
    steppable = reference(model, wanted, stored)
    random = np.random.default_rng(seed)
    if isinstance(manifest.inputs, ContinuousInputs):
        stream: Array = random.standard_normal((1, tokens, manifest.inputs.features), dtype=np.float32)
    else:
        stream = random.integers(0, manifest.inputs.vocab_size, (1, tokens), dtype=np.int64)
    # One thread for ONNX Runtime: its workers go on spinning after a call, and would fight torch's for the cores.
    forms = {"portable": LoadOptions(threads=1, fused=False)}
    if kernels() is not None and any(graph.fused is not None for graph in manifest.graphs):
        forms["fused"] = LoadOptions(threads=1)
    backends = {name: select(opened, "cpu", options).backend for name, options in forms.items()}

    def drive(twin: TitansSteppable | None) -> VerificationReport:
        drivers = {name: Driver(manifest, backend) for name, backend in backends.items()}
        return _drive(drivers, steppable, stream, seed, twin=twin, progress=progress)

    with threads_for(model):
        plain = drive(None)
        if plain.ok:
            return plain
        double = copy.deepcopy(steppable.module).double()
        twin = TitansSteppable(double) if wanted.name == "fp32" else StoredStates(double, wanted.states)
        beside = drive(twin)
        # The training form runs in no pieces, so it is compared in the first pass only. What it disagrees in is no
        # rounding where the second found none to speak of.
        return beside if beside.resynchronised or not plain.disowned else plain


@contextmanager
def threads_for(model: OurModel) -> Iterator[None]:
    """One torch thread for a small model, whose operators are over before a second thread has woken up."""
    before = torch.get_num_threads()
    if model.num_parameters() < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _drive(
    drivers: Mapping[str, Driver],
    model: TitansSteppable,
    stream: Array,
    seed: int,
    *,
    twin: TitansSteppable | None,
    progress: Progress | None,
) -> VerificationReport:
    """One pass over the stream; with an fp64 `twin`, from one state wherever the model's own rounding has grown.

    All forms of the bundle see the same pieces; the report has the largest errors of any.
    """
    manifest, tokens = next(iter(drivers.values())).manifest, stream.shape[1]
    allowed = tolerance(manifest.dtype)
    report = VerificationReport(tokens, manifest.dtype, allowed, seed, forms=tuple(drivers))
    random = np.random.default_rng(seed)
    eager = TorchStream(model, batch=1)
    exact = None if twin is None else TorchStream(twin, batch=1)
    whole = None if twin is not None else _TrainingForm(model.module, torch.from_numpy(stream))
    position = 0
    while position < tokens:
        length = min(int(random.integers(1, LONGEST_PIECE_IN_CHUNKS * manifest.chunk + 1)), tokens - position)
        if exact is not None:  # short pieces: rounding must not grow through the tolerance within one
            length = min(length, manifest.chunk)
        now = slice(position, position + length)
        policy = POLICIES[int(random.integers(len(POLICIES)))]
        results = [driver.feed(stream[:, now], all_outputs=True, policy=policy).outputs for driver in drivers.values()]
        want = eager.feed(torch.from_numpy(stream[:, now])).numpy()
        outputs = max(_difference(got, want) for got in results)
        report.max_abs_error = max(report.max_abs_error, outputs)
        if whole is not None:
            expected = whole.up_to(position + length)
            form = max(_difference(got, expected) for got in results)
            report.training_form_error = max(report.training_form_error or 0.0, form)
            outputs = max(outputs, form)
        position += length
        if allowed.relative:
            outputs /= max(1.0, float(np.abs(want).max()))
        states = max(_compare_states(report, driver.state(), eager, position) for driver in drivers.values())
        report.pieces += 1
        own = 0.0
        if exact is not None:
            own = _own_rounding(want, exact.feed(torch.from_numpy(stream[:, now])).numpy(), eager, exact)
        slack = ROUNDING_SLACK * own if np.isfinite(own) else 0.0  # a twin that is not finite excuses nothing
        if outputs > max(allowed.outputs, slack) or states > max(allowed.states, slack):
            report.worst_at = position if report.worst_at is None else report.worst_at
        amplifies = slack > GROWN * min(allowed.outputs, allowed.states)
        if exact is not None and (amplifies or manifest.dtype != "fp32"):
            report.resynchronised += 1
            if amplifies and report.amplifies_from is None:
                report.amplifies_from = position
            for driver in drivers.values():
                driver.load({name: value.numpy() for name, value in eager.state.items()})
            exact.state = {name: value.to(exact.state[name].dtype, copy=True) for name, value in eager.state.items()}
        if progress is not None:
            progress(position, tokens)
    start = initial_state(model, batch=1)
    learned = {name: start[name].numpy() for name in learned_names(manifest)}
    report.dead_memories = tuple(dead_memories(learned, next(iter(drivers.values())).state()))
    return report


def _own_rounding(want: Array, exact_outputs: Array, eager: TorchStream, exact: TorchStream) -> float:
    """How far the fp32 model is from its fp64 twin after a piece, outputs and carried state."""
    own = _difference(want, exact_outputs)
    for name, spec in eager.specs.items():
        if spec.kind == "carried":
            reference = exact.state[name]
            scale = max(1.0, float(reference.abs().max()))
            own = max(own, float((eager.state[name] - reference).abs().max()) / scale)
    return own


def _compare_states(report: VerificationReport, got: dict[str, Array], eager: TorchStream, position: int) -> float:
    """The largest error of any state after a piece; the report keeps the largest of each."""
    worst = 0.0
    for spec in eager.specs.values():
        mine, theirs = got[spec.name], eager.state[spec.name].numpy()
        if spec.kind == "rows":  # rows from the current chunk position on are stale
            mine, theirs = mine[: position % spec.shape[0]], theirs[: position % spec.shape[0]]
        scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
        error = _difference(mine, theirs) / scale
        report.states[spec.name] = max(report.states.get(spec.name, 0.0), error)
        worst = max(worst, error)
    return worst


def _json(error: float | None) -> float | None:
    """JSON has no infinity; null stands for it."""
    return error if error is not None and np.isfinite(error) else None


def _difference(a: Array, b: Array) -> float:
    """Largest absolute difference; infinite where either is not finite."""
    if not a.size:
        return 0.0
    largest = float(np.abs(a - b).max())
    return largest if np.isfinite(largest) else float("inf")


class _TrainingForm:
    """Outputs of the training form along a stream, computed some whole chunks at a time."""

    def __init__(self, model: OurModel, stream: Tensor) -> None:
        self._model, self._stream = model, stream
        self._state: State | None = None
        self._ready = torch.empty(0)  # [1, n, V], computed and not yet handed out
        self._done = self._given = 0

    @torch.no_grad()
    def up_to(self, end: int) -> Array:
        """Outputs `[1, n, V]` of the tokens since the last call, up to place `end` of the stream."""
        chunk = self._model.config.chunk
        while self._done < end:
            piece = self._stream[:, self._done : self._done + 16 * chunk]
            padding = piece[:, :1].expand(-1, -piece.shape[1] % chunk, *piece.shape[2:])  # only the last piece has any
            out, self._state = self._model(torch.cat([piece, padding], dim=1), self._state)
            self._done += piece.shape[1]
            known = out[:, : piece.shape[1]]
            self._ready = torch.cat([self._ready, known], dim=1) if self._ready.numel() else known
        wanted = end - self._given
        given, self._ready, self._given = self._ready[:, :wanted], self._ready[:, wanted:], end
        outputs: Array = given.numpy()
        return outputs
