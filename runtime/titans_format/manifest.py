"""What a bundle says about itself: the manifest as plain frozen dataclasses.

Knows the fields, their meaning and their JSON form. Does not know how untrusted JSON is checked
(`manifest_reader`), whether the graphs fit the state table (`contract`), or where the files are (`bundle`).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias, cast, get_args

from titans_format.jsonread import JsonObject, JsonValue, parse
from titans_format.seal import seal
from titans_format.series import SeriesInfo, scaling_object

FORMAT = "titans-bundle"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
LAST = "last_output"  # what saved sessions call the outputs after the last token
METADATA = "__metadata__"  # what safetensors files call other things than tensors
MOST_AXES = 16  # of a tensor; ours have up to 5
BATCH = "batch"  # the one symbolic dimension: independent streams

DType = Literal["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"]
StateKind = Literal["carried", "rows"]
GraphKind = Literal["prefill", "extend", "step", "commit"]
Shape: TypeAlias = tuple[int | str, ...]

DTYPES: tuple[DType, ...] = get_args(DType)
STATE_KINDS: tuple[StateKind, ...] = get_args(StateKind)
GRAPH_KINDS: tuple[GraphKind, ...] = get_args(GraphKind)
ITEM_BYTES: dict[DType, int] = {
    "float32": 4,
    "float16": 2,
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Which model this is; `config` is the training definition's and opaque here."""

    name: str
    variant: str
    parameters: int
    config: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TokenInputs:
    """Token ids in 0..vocab_size-1 in, logits out."""

    vocab_size: int

    @property
    def outputs(self) -> int:
        """Channels of the head."""
        return self.vocab_size


@dataclass(frozen=True, kw_only=True)
class ContinuousInputs:
    """Vectors of `features` channels in, predictions of `targets` channels out."""

    features: int
    targets: int

    @property
    def outputs(self) -> int:
        """Channels of the head."""
        return self.targets


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file of the bundle, relative to it; `bytes` is None where only the hash is recorded."""

    file: str
    sha256: str
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """How text becomes ids: UTF-8 bytes, or a `tokenizer.json` of the tokenizers library."""

    kind: Literal["byte", "tokenizers"]
    file: DataFile | None = None


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Token ids that end a text: `eos` because the model says so, `stop` because an answer in its format ends there."""

    eos: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """How the model wants its text generated where the caller does not say; None leaves a setting to the runtime.

    temperature, top_k, top_p, min_p, repetition_penalty: see `sampling.SamplingOptions`.
    max_new_tokens: tokens of one answer at most.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ChatTemplateInfo:
    """How a conversation is written for the model: a file with a Jinja template.

    tokens: what the template knows as `bos_token`, `eos_token` and the like, as they are written.
    """

    file: DataFile
    tokens: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Initial:
    """How a state tensor starts. `tensor` names an entry of the initial state file, shaped without the batch axis."""

    kind: Literal["zeros", "constant", "learned"] = "zeros"
    value: float = 0.0
    tensor: str | None = None


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """One state tensor.

    carried: `[batch, ...]`; a graph that outputs it returns its next value.
    rows: `[R, batch, ...]`; a graph returns new rows, stored at position % R. Rows at and after position % R
    are stale.
    """

    name: str
    kind: StateKind
    dtype: DType
    shape: Shape
    initial: Initial
    input: str
    output: str

    @property
    def batch_axis(self) -> int:
        """Where the streams are."""
        return 0 if self.kind == "carried" else 1

    def concrete(self, batch: int) -> tuple[int, ...]:
        """The shape for `batch` streams."""
        return tuple(batch if isinstance(size, str) else size for size in self.shape)

    @property
    def stream_bytes(self) -> int:
        """Bytes that one stream needs for this tensor."""
        return math.prod(self.concrete(1)) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    dtype: DType
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one call with one stream costs at least; for benchmarks.

    flops: multiplications and additions of its matrix products.
    weight_bytes: of the weights that it reads, each once.
    read_bytes, written_bytes: of its inputs and outputs, state included.
    """

    flops: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int

    @property
    def moved_bytes(self) -> int:
        """Bytes that must move."""
        return self.weight_bytes + self.read_bytes + self.written_bytes


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One ONNX graph and what it reads and writes.

    tokens: how many positions one call holds; 0 for a commit.
    cpu: the same graph for CPUs, which have few half-precision kernels: it computes in float32, and takes the
        half-precision weights that it uses as float32 inputs under their names. None where `file` runs everywhere.
    fused: the same graph with memories as single operators, for CPUs where the runtime has kernels for them
        (`titans_runtime.native`). None where there is none of these.
    cost: of one call; None in bundles that were exported before it was counted.
    """

    name: str
    kind: GraphKind
    file: str
    sha256: str
    tokens: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cpu: DataFile | None = None
    fused: DataFile | None = None
    cost: Cost | None = None


@dataclass(frozen=True, kw_only=True)
class Due:
    """Run `graph` whenever the position reaches `phase` more than a multiple of `period` tokens.

    A commit runs once the position is reached. A step graph takes the place of the ordinary one for the token that
    reaches it.
    """

    graph: str
    period: int
    phase: int = 0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a runtime needs to know to drive a bundle.

    providers: what can run it; None is everything.
    omitted: files that were left out for want of use to these providers (`titans slim`).
    series: how a forecaster's series was scaled; None for other models.
    generation: how text is generated where the caller does not say.
    chat_template: how a conversation is written; None for a model that was not trained on any.
    """

    model: ModelInfo
    dtype: str
    opset: int
    inputs: TokenInputs | ContinuousInputs
    chunk: int
    tokenizer: TokenizerInfo | None
    states: tuple[StateSpec, ...]
    graphs: tuple[GraphSpec, ...]
    schedule: tuple[Due, ...]
    weights: DataFile
    initial_state: DataFile | None
    provenance: dict[str, str] = field(default_factory=dict)
    verification: JsonObject | None = None
    engines: tuple[JsonObject, ...] = ()
    providers: tuple[str, ...] | None = None
    omitted: tuple[str, ...] = ()
    ends: Ends = Ends()
    series: SeriesInfo | None = None
    generation: GenerationDefaults = GenerationDefaults()
    chat_template: ChatTemplateInfo | None = None

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read and check a manifest. Raises `BundleError` for anything that is not a sound version-1 manifest."""
        from titans_format.manifest_reader import read_manifest  # imports this module

        return read_manifest(parse(text, MANIFEST_FILE))

    def to_json(self) -> str:
        """The manifest as JSON text with its own checksum; `from_json` gives back an equal manifest."""
        return json.dumps(seal(_to_object(self)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def graph(self, kind: GraphKind) -> GraphSpec | None:
        """The graph of this kind (the first: a commit or step may have others, in the schedule), or None."""
        return next((graph for graph in self.graphs if isinstance(kind, str) and graph.kind == kind), None)

    @property
    def stream_bytes(self) -> int:
        """Bytes of state that one stream owns."""
        return sum(state.stream_bytes for state in self.states)

    @cached_property
    def state_identity(self) -> str:
        """A SHA-256 of what a saved state depends on: the weights, the chunk and the state table.

        Graphs may be exported anew and engines built without making saved states useless.
        """
        table = [_state(state) for state in self.states]
        facts = json.dumps([self.weights.sha256, self.chunk, _inputs(self.inputs), table], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    @property
    def surprise_layers(self) -> int:
        """How many memory layers report their surprise; 0 for a model without memory."""
        for graph in self.graphs:
            for tensor in graph.outputs:
                if tensor.name == "surprise":
                    return cast(int, tensor.shape[-1])
        return 0

    def files(self) -> tuple[DataFile, ...]:
        """Every file that the bundle must have besides the manifest, in the order of the manifest."""
        files = [DataFile(file=graph.file, sha256=graph.sha256) for graph in self.graphs]
        files += [twin for graph in self.graphs for twin in (graph.cpu, graph.fused) if twin is not None]
        files.append(self.weights)
        if self.initial_state is not None:
            files.append(self.initial_state)
        if self.tokenizer is not None and self.tokenizer.file is not None:
            files.append(self.tokenizer.file)
        if self.chat_template is not None:
            files.append(self.chat_template.file)
        return tuple(file for file in files if file.file not in self.omitted)


def _to_object(manifest: Manifest) -> JsonObject:
    model = manifest.model
    providers: JsonObject = {} if manifest.providers is None else {"providers": list(manifest.providers)}
    omitted: JsonObject = {"omitted": list(manifest.omitted)} if manifest.omitted else {}
    ends: JsonObject = {}
    if manifest.ends != Ends():
        ends["ends"] = {"eos": list(manifest.ends.eos), "stop": list(manifest.ends.stop)}
    series: JsonObject = {} if manifest.series is None else {"series": scaling_object(manifest.series)}
    return (
        providers
        | omitted
        | ends
        | series
        | _generation(manifest.generation)
        | _chat_template(manifest.chat_template)
        | {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": {
                "name": model.name,
                "variant": model.variant,
                "parameters": model.parameters,
                "config": model.config,
            },
            "dtype": manifest.dtype,
            "opset": manifest.opset,
            "inputs": _inputs(manifest.inputs),
            "chunk": manifest.chunk,
            "tokenizer": _tokenizer(manifest.tokenizer),
            "states": [_state(state) for state in manifest.states],
            "graphs": [_graph(graph) for graph in manifest.graphs],
            "schedule": [due_object(due) for due in manifest.schedule],
            "weights": _file(manifest.weights),
            "initial_state": None if manifest.initial_state is None else _file(manifest.initial_state),
            "provenance": dict(manifest.provenance),
            "verification": manifest.verification,
            "engines": list(manifest.engines),
        }
    )


def _inputs(inputs: TokenInputs | ContinuousInputs) -> JsonObject:
    if isinstance(inputs, TokenInputs):
        return {"kind": "tokens", "vocab_size": inputs.vocab_size}
    return {"kind": "continuous", "features": inputs.features, "targets": inputs.targets}


def _file(file: DataFile) -> JsonObject:
    out: JsonObject = {"file": file.file, "sha256": file.sha256}
    if file.bytes is not None:
        out["bytes"] = file.bytes
    return out


def _tokenizer(tokenizer: TokenizerInfo | None) -> JsonValue:
    if tokenizer is None:
        return None
    return {"kind": tokenizer.kind, **({} if tokenizer.file is None else _file(tokenizer.file))}


def _generation(defaults: GenerationDefaults) -> JsonObject:
    said: JsonObject = {name: value for name, value in asdict(defaults).items() if value is not None}
    return {"generation": said} if said else {}


def _chat_template(template: ChatTemplateInfo | None) -> JsonObject:
    if template is None:
        return {}
    return {"chat_template": {**_file(template.file), "tokens": dict(template.tokens)}}


def _initial(initial: Initial) -> JsonObject:
    out: JsonObject = {"kind": initial.kind}
    if initial.kind == "constant":
        out["value"] = initial.value
    if initial.kind == "learned":
        out["tensor"] = initial.tensor
    return out


def _state(state: StateSpec) -> JsonObject:
    return {
        "name": state.name,
        "kind": state.kind,
        "dtype": state.dtype,
        "shape": list(state.shape),
        "initial": _initial(state.initial),
        "input": state.input,
        "output": state.output,
    }


def due_object(due: Due) -> JsonObject:
    """An entry of the schedule as it is written; a phase of 0 goes without saying."""
    return {"graph": due.graph, "period": due.period, **({"phase": due.phase} if due.phase else {})}


def _tensor(tensor: TensorSpec) -> JsonObject:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _graph(graph: GraphSpec) -> JsonObject:
    twins: JsonObject = {} if graph.cpu is None else {"cpu": _file(graph.cpu)}
    twins |= {} if graph.fused is None else {"fused": _file(graph.fused)}
    cost: JsonObject = {} if graph.cost is None else {"cost": asdict(graph.cost)}
    return (twins | cost) | {
        "name": graph.name,
        "kind": graph.kind,
        "file": graph.file,
        "sha256": graph.sha256,
        "tokens": graph.tokens,
        "inputs": [_tensor(tensor) for tensor in graph.inputs],
        "outputs": [_tensor(tensor) for tensor in graph.outputs],
    }
