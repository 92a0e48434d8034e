"""The contract between graphs, state table and schedule: what a manifest must hold together.

Knows which data inputs and outputs each kind of graph may have, and with which shapes. Does not open the
graphs: that the ONNX files agree with the manifest is `titans_runtime.graphs.check`'s business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from titans_format.document import EXPORT_AGAIN, MANIFEST_FILE
from titans_format.errors import BundleError
from titans_format.fields import Fields, TokenInputs
from titans_format.series import misfit
from titans_format.specs import BATCH, LAST, METADATA, GraphKind, GraphSpec, StateSpec, TensorSpec

# More is damage or an attack. The largest that we export: 8 graphs, 300 state tensors, 0.1 GiB of them.
MOST_GRAPHS, MOST_STATES = 256, 16_384
MOST_BYTES = 2**36  # of a stream's state, or of the outputs of a call
# What saved sessions call other things; a state of that name could not be restored.
_TAKEN = frozenset({METADATA, LAST})


def check_contract(manifest: Fields) -> None:
    """Check that names are unique, sizes bounded, graphs fit the state table, and the schedule can be followed.

    Raises:
        BundleError: naming the graph, state or entry that does not fit.
    """
    _check_shapes(manifest)
    _check_sizes(manifest)
    _unique("state name", (state.name for state in manifest.states))
    _unique("state tensor", (name for state in manifest.states for name in (state.input, state.output)))
    _unique("graph name", (graph.name for graph in manifest.graphs))
    _unique("graph kind", (graph.kind for graph in manifest.graphs if graph.kind not in ("commit", "step")))
    if manifest.graph("step") is None:
        _fail("graphs has no step graph, without which no stream can be driven")
    layers = {t.shape[-1] for g in manifest.graphs for t in g.outputs if t.name == "surprise" and t.shape}
    if len(layers) > 1:
        _fail("graphs report surprise for different numbers of memory layers")
    allowed: dict[tuple[GraphKind, int], _Allowed] = {}
    for graph in manifest.graphs:
        key = (graph.kind, graph.tokens)
        if key not in allowed:
            allowed[key] = _Allowed(_allowed_inputs(manifest, graph), _allowed_outputs(manifest, graph))
        _check_graph(manifest, graph, allowed[key])
    _check_schedule(manifest)
    _check_initial(manifest)
    _check_series(manifest)
    _check_tokenizer(manifest)
    _check_ends(manifest)


def head_name(manifest: Fields) -> str:
    """The output that the model is run for."""
    return "logits" if isinstance(manifest.inputs, TokenInputs) else "predictions"


def data_name(manifest: Fields) -> str:
    """The input that carries the stream."""
    return "input_ids" if isinstance(manifest.inputs, TokenInputs) else "inputs"


def _fail(what: str) -> NoReturn:
    raise BundleError(what, EXPORT_AGAIN, where=MANIFEST_FILE)


def _unique(what: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        _fail(f"{what} {repeated[0]!r} appears more than once")


def _check_shapes(manifest: Fields) -> None:
    for number, state in enumerate(manifest.states):
        if [axis for axis, size in enumerate(state.shape) if size == BATCH] != [state.batch_axis]:
            _fail(
                f'states[{number}].shape must have "{BATCH}" at axis {state.batch_axis} alone, as {state.kind} has it,'
                f" found {list(state.shape)}"
            )


def _check_sizes(manifest: Fields) -> None:
    for what, count, most in (
        ("graphs", len(manifest.graphs), MOST_GRAPHS),
        ("state tensors", len(manifest.states), MOST_STATES),
    ):
        if count > most:
            _fail(f"there are {count:,} {what}, more than {most:,}")
    if manifest.stream_bytes > MOST_BYTES:
        _fail(f"the state of a stream has {manifest.stream_bytes:,} bytes, more than {MOST_BYTES:,}")
    for graph in manifest.graphs:
        if (size := 4 * graph.tokens * manifest.inputs.outputs) > MOST_BYTES:
            _fail(f"graph {graph.name!r} returns {size:,} bytes for a stream, more than {MOST_BYTES:,}")
    for state in manifest.states:
        if state.name in _TAKEN:
            _fail(f"a state is called {state.name!r}, which is the name of something else in saved sessions")


@dataclass(frozen=True)
class _Allowed:
    """The inputs and outputs that a graph may have, worked out once for all of one kind."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


def _check_graph(manifest: Fields, graph: GraphSpec, allowed: _Allowed) -> None:
    tokens_ok = {
        "prefill": graph.tokens == manifest.chunk,
        "extend": 1 <= graph.tokens <= manifest.chunk,
        "step": graph.tokens == 1,
        "commit": graph.tokens == 0,
    }
    if not tokens_ok[graph.kind]:
        _fail(f"graph {graph.name!r} of kind {graph.kind} holds {graph.tokens} tokens, with chunk {manifest.chunk}")
    _check_tensors(graph, "input", graph.inputs, allowed.inputs)
    _check_tensors(graph, "output", graph.outputs, allowed.outputs)
    inputs, outputs = {t.name for t in graph.inputs}, {t.name for t in graph.outputs}
    required = {data_name(manifest)} if graph.tokens else set()
    for name in sorted(required - inputs):
        _fail(f"graph {graph.name!r} has no input {name!r}")
    rows = {state.output for state in manifest.states if state.kind == "rows"}
    if rows & outputs and (missing := sorted(rows - outputs)):
        _fail(f"graph {graph.name!r} returns rows, and none for {missing[0]!r}")
    if graph.tokens and head_name(manifest) not in outputs:
        _fail(f"graph {graph.name!r} has no output {head_name(manifest)!r}")


def _check_tensors(graph: GraphSpec, side: str, listed: tuple[TensorSpec, ...], allowed: list[TensorSpec]) -> None:
    _unique(f"graph {graph.name!r} {side}", (tensor.name for tensor in listed))
    known = {tensor.name: tensor for tensor in allowed}
    for tensor in listed:
        if tensor.name not in known:
            _fail(f"graph {graph.name!r} has an unknown {side} {tensor.name!r}")
        expected = known[tensor.name]
        shape = expected.shape
        if tensor.name == "surprise" and len(tensor.shape) == len(shape) and isinstance(tensor.shape[-1], int):
            shape = (*shape[:-1], tensor.shape[-1])  # any number of memory layers
        if tensor.dtype != expected.dtype or tensor.shape != shape:
            _fail(
                f"graph {graph.name!r} {side} {tensor.name!r} is {tensor.dtype} {list(tensor.shape)},"
                f" expected {expected.dtype} {list(shape)}"
            )


def _allowed_inputs(manifest: Fields, graph: GraphSpec) -> list[TensorSpec]:
    allowed = [_state_tensor(state, state.input) for state in manifest.states]
    allowed.append(TensorSpec(name="position", dtype="int64", shape=(BATCH,)))
    if graph.kind == "extend":
        allowed.append(TensorSpec(name="length", dtype="int64", shape=(BATCH,)))
    if graph.tokens and isinstance(manifest.inputs, TokenInputs):
        allowed.append(TensorSpec(name="input_ids", dtype="int64", shape=(BATCH, graph.tokens)))
    elif graph.tokens and not isinstance(manifest.inputs, TokenInputs):
        shape = (BATCH, graph.tokens, manifest.inputs.features)
        allowed.append(TensorSpec(name="inputs", dtype="float32", shape=shape))
    return allowed


def _allowed_outputs(manifest: Fields, graph: GraphSpec) -> list[TensorSpec]:
    allowed = [_state_tensor(state, state.output) for state in manifest.states if state.kind == "carried"]
    if graph.kind in ("step", "extend"):
        rows = [state for state in manifest.states if state.kind == "rows"]
        allowed += [_state_tensor(state, state.output, rows=graph.tokens) for state in rows]
    if graph.tokens:
        shape = (BATCH, graph.tokens, manifest.inputs.outputs)
        allowed.append(TensorSpec(name=head_name(manifest), dtype="float32", shape=shape))
        allowed.append(TensorSpec(name="surprise", dtype="float32", shape=(BATCH, graph.tokens, 1)))
    return allowed


def _state_tensor(state: StateSpec, name: str, rows: int | None = None) -> TensorSpec:
    shape = state.shape if rows is None else (rows, *state.shape[1:])
    return TensorSpec(name=name, dtype=state.dtype, shape=shape)


def _check_schedule(manifest: Fields) -> None:
    commits = {graph.name for graph in manifest.graphs if graph.kind == "commit"}
    steps = [graph.name for graph in manifest.graphs if graph.kind == "step"]
    named = {due.graph for due in manifest.schedule}
    for due in manifest.schedule:
        if due.graph not in commits and due.graph not in steps[1:]:
            _fail(f"schedule names {due.graph!r}, which is neither a commit graph nor a step graph after the first")
        if due.phase >= due.period:
            _fail(f"schedule runs {due.graph!r} at {due.phase} of every {due.period} tokens, which never comes")
        if manifest.chunk % due.period:
            _fail(
                f"schedule runs {due.graph!r} every {due.period} tokens, which does not divide chunk {manifest.chunk}"
            )
    if spare := [name for name in steps[1:] if name not in named]:
        _fail(f"step graph {spare[0]!r} is not in the schedule, and only the first one is used otherwise")
    if steps[1:] and manifest.graph("extend") is not None:
        _fail("an extend graph would jump over tokens that the schedule gives to a step graph of their own")


def _check_initial(manifest: Fields) -> None:
    for state in manifest.states:
        if (state.initial.kind == "learned") != (state.initial.tensor is not None):
            _fail(f"state {state.name!r} starts from {state.initial.kind}, and names {state.initial.tensor!r}")
        if state.initial.kind == "learned" and manifest.initial_state is None:
            _fail(f"state {state.name!r} starts from a learned tensor, and initial_state is null")


def _check_tokenizer(manifest: Fields) -> None:
    if manifest.tokenizer is None:
        if manifest.chat_template is not None:
            _fail("a model without a tokenizer has a chat template")
        return
    if not isinstance(manifest.inputs, TokenInputs):
        _fail("a continuous model has a tokenizer")
    if manifest.tokenizer.kind == "tokenizers" and manifest.tokenizer.data_file is None:
        _fail("tokenizer has no file, or no sha256 of it")
    if manifest.tokenizer.kind == "byte" and manifest.inputs.vocab_size < 256:
        _fail(f"a byte tokenizer needs a vocabulary of at least 256, and it is {manifest.inputs.vocab_size}")


def _check_ends(manifest: Fields) -> None:
    ids = (*manifest.ends.eos, *manifest.ends.stop)
    if ids and not isinstance(manifest.inputs, TokenInputs):
        _fail("a continuous model has token ids that end a text")
    if isinstance(manifest.inputs, TokenInputs) and ids and max(ids) >= manifest.inputs.vocab_size:
        _fail(f"id {max(ids)} ends a text, and the vocabulary is {manifest.inputs.vocab_size}")


def _check_series(manifest: Fields) -> None:
    if (series := manifest.series) is None:
        return
    if problem := misfit(series):
        _fail(f"series.{problem}")
    kind, wanted = manifest.inputs, (series.features, series.targets)
    if isinstance(kind, TokenInputs) or (kind.features, kind.targets) != wanted:
        _fail(f"inputs must be continuous, {wanted[0]} features and {wanted[1]} targets, as the series makes them")
