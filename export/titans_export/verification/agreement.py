"""Does the bundle compute what the model computes? The runtime and PyTorch, side by side over a long stream.

The stream is fed to the bundle in random pieces under random policies (whole chunks, parts of chunks, single
tokens), and to PyTorch in its own pieces. After every piece the outputs and every state tensor are compared, and the
outputs once more with PyTorch's training form, which knows no pieces at all. Errors are absolute, those of states
divided by the tensor's largest value where that exceeds 1; the tolerances are data (`tolerances.json`).

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
from pathlib import Path

import numpy as np

from titans_export.errors import ExportError
from titans_export.models.precision import StoredStates, precision, reference
from titans_export.models.protocol import initial_state
from titans_export.models.source_model import made_from, source_of
from titans_export.models.titans import OurModel, TitansSteppable
from titans_export.passes.blocks import bits_of
from titans_export.passes.quantise import codes_name
from titans_export.verification import distance
from titans_export.verification.pieces import random_pieces, random_stream
from titans_export.verification.report import VerificationReport
from titans_export.verification.sides import (
    BundleSide,
    Side,
    TorchSide,
    TrainingSide,
    side_by_side,
    threads_for,
)
from titans_export.verification.tolerances import tolerance
from titans_format.progress import ReportProgress
from titans_runtime.arrays import Array
from titans_runtime.bundle import Bundle, open_bundle, read_manifest_of
from titans_runtime.native import kernels
from titans_runtime.stream.memories import can_die, dead_memories, learned_names
from titans_runtime.stream.plan import FASTEST, STEPS_ONLY, Policy

POLICIES = (FASTEST, FASTEST, STEPS_ONLY, Policy(prefill=False, extend_from=2))
LONGEST_PIECE_IN_CHUNKS = 4
GROWN = 0.25  # share of a tolerance from which on they continue from one state: before chance takes one of them over it


def verify_bundle(
    bundle: Path, checkpoint: Path, *, tokens: int, seed: int = 0, progress: ReportProgress | None = None
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
    bundle: Path, model: OurModel, *, tokens: int, seed: int = 0, progress: ReportProgress | None = None
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
    codes = {name: opened.weights.get(codes_name(name)) for name, _ in model.named_parameters()}
    stored = {name: bits_of(tensor.array.shape) for name, tensor in codes.items() if tensor is not None}
    steppable = reference(model, wanted, stored)
    stream = random_stream(manifest.inputs, tokens, seed)
    forms = _forms(opened)
    with threads_for(model):
        plain = _drive(forms, steppable, stream, seed, twin=None, progress=progress)
        if plain.ok:
            return plain
        double = copy.deepcopy(steppable.module).double()
        twin = TitansSteppable(double) if wanted.name == "fp32" else StoredStates(double, wanted.states)
        beside = _drive(forms, steppable, stream, seed, twin=twin, progress=progress)
        # The training form runs in no pieces, so it is compared in the first pass only. What it disagrees in is no
        # rounding where the second found none to speak of.
        return beside if beside.resynchronised or not plain.disowned else plain


def _forms(bundle: Bundle) -> dict[str, BundleSide]:
    """What of a bundle is driven: its portable graphs, and the fused ones where this machine has kernels."""
    forms = {"portable": BundleSide(bundle, fused=False)}
    if kernels() is not None and any(graph.fused is not None for graph in bundle.manifest.graphs):
        forms["fused"] = BundleSide(bundle)
    return forms


def _drive(
    forms: dict[str, BundleSide],
    model: TitansSteppable,
    stream: Array,
    seed: int,
    *,
    twin: TitansSteppable | None,
    progress: ReportProgress | None,
) -> VerificationReport:
    """One pass over the stream; with an fp64 `twin`, from one state wherever the model's own rounding has grown.

    All forms of the bundle see the same pieces; the report has the largest errors of any.
    """
    for side in forms.values():
        side.restart()
    manifest, tokens = forms["portable"].manifest, stream.shape[1]
    allowed, eager = tolerance(manifest.dtype), TorchSide(model)
    report = VerificationReport(tokens, manifest.dtype, allowed, seed, forms=tuple(forms))
    specs = list(eager.stream.specs.values())
    carried = [spec for spec in specs if spec.kind == "carried"]
    if twin is None:
        exact = None
        others: dict[str, Side] = {"eager": eager, "training form": TrainingSide(model.module, stream)}
    else:  # in short pieces: rounding must not grow through the tolerance within one
        exact = TorchSide(twin)
        others = {"eager": eager, "exact": exact}
    at_most = None if exact is None else manifest.chunk
    pieces = random_pieces(stream, LONGEST_PIECE_IN_CHUNKS * manifest.chunk, POLICIES, seed, at_most=at_most)
    for piece, results in side_by_side({**forms, **others}, pieces, tokens, progress):
        want, position = results["eager"], piece.stop
        outputs = max(distance.difference(results[form], want) for form in forms)
        report.max_abs_error = max(report.max_abs_error, outputs)
        if exact is None:
            error = max(distance.difference(results[form], results["training form"]) for form in forms)
            report.training_form_error = max(report.training_form_error or 0.0, error)
            outputs = max(outputs, error)
        if allowed.relative:
            outputs /= max(1.0, float(np.abs(want).max()))
        states = 0.0
        for side in forms.values():
            errors = distance.state_differences(side.states(), eager.states(), specs, position)
            report.states = {name: max(error, report.states.get(name, 0.0)) for name, error in errors.items()}
            states = max(states, *errors.values()) if errors else states
        report.pieces += 1
        own = 0.0
        if exact is not None:
            rounded = distance.state_differences(eager.states(), exact.states(), carried, position)
            own = max([distance.difference(want, results["exact"]), *rounded.values()])
        slack = allowed.rounding * own if np.isfinite(own) else 0.0  # a twin that is not finite excuses nothing
        if outputs > max(allowed.outputs, slack) or states > max(allowed.states, slack):
            report.worst_at = position if report.worst_at is None else report.worst_at
        amplifies = slack > GROWN * min(allowed.outputs, allowed.states)
        if exact is not None and (amplifies or manifest.dtype != "fp32"):
            report.resynchronised += 1
            if amplifies and report.amplifies_from is None:
                report.amplifies_from = position
            for side in forms.values():
                side.load(eager.states())
            exact.load(eager.states())
    start = initial_state(model, batch=1)
    learned = {name: start[name].numpy() for name in learned_names(manifest)}
    if can_die(manifest):
        report.dead_memories = tuple(dead_memories(learned, forms["portable"].states()))
    return report
