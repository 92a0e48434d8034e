"""A model of the size of a postage stamp that keeps the whole contract, as a bundle written by hand, and its slow twin.

It is a linear fast-weight memory. Per stream: a `memory` W `[D, D]` that only commits change, a `trace` c `[D]`
that every token changes, and a table of `rows` `[C, D]` with this chunk's keys. Token t at chunk position p:

    c_t = c_{t-1} / 2 + x_t        a_t = tanh(c_t)
    y_t = c_t W + 0.1 * sum over this chunk's i <= t of (c_t . a_i) a_i
    output = y_t head + 0.01 p     surprise = (mean((c_t W - a_t)^2), twice that)
    at the end of a chunk: W <- 0.9 W + 0.1 * sum_i a_i a_i^T

The graphs are written in ONNX's text form; the oracle `Oracle` walks token by token.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from msgspec import structs
from numpy.typing import NDArray

from titans_format.fields import ContinuousInputs, ModelInfo, TokenInputs, TokenizerInfo
from titans_format.manifest import Manifest
from titans_format.specs import DataFile, Due, GraphKind, GraphSpec, Initial, StateSpec, TensorSpec

C, D, FEATURES, TARGETS = 8, 6, 3, 2  # chunk, width, and the channels of the continuous version
TRACE_START = 0.25
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Toy:
    """Which toy: `vocab_size` None is continuous and reports no surprise; `letters` answers in a to z."""

    vocab_size: int | None = 256
    extend: bool = True
    prefill: bool = True
    bfloat16_head: bool = False
    letters: bool = False

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows of the embedding, columns of the head."""
        return (FEATURES, TARGETS) if self.vocab_size is None else (self.vocab_size, self.vocab_size)

    def weights(self) -> dict[str, Floats]:
        """The stored tensors, the same in every run; the head already rounded if it is stored in bfloat16."""
        random = np.random.default_rng(7)
        rows, columns = self.sizes
        head = random.standard_normal((D, columns)).astype(np.float32)
        if self.letters:
            head[:, [column for column in range(columns) if not ord("a") <= column <= ord("z")]] = 0
        return {
            "embedding": random.standard_normal((rows, D)).astype(np.float32),
            "head": (head.view(np.uint32) & 0xFFFF0000).view(np.float32) if self.bfloat16_head else head,
        }

    def first_memory(self) -> Floats:
        """The learned initial memory `[D, D]`."""
        return np.random.default_rng(8).standard_normal((D, D)).astype(np.float32)


class Oracle:
    """One stream, token by token, in float64."""

    def __init__(self, toy: Toy) -> None:
        self.weights = {name: value.astype(np.float64) for name, value in toy.weights().items()}
        self.tokens = toy.vocab_size is not None
        self.memory = toy.first_memory().astype(np.float64)
        self.trace = np.full(D, TRACE_START)
        self.keys: list[NDArray[np.float64]] = []

    def feed(self, inputs: NDArray[np.int64] | Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Outputs `[T, O]` and surprise `[T, 2]`."""
        told = [self._token(item) for item in inputs]
        return np.stack([output for output, _ in told]), np.stack([surprise for _, surprise in told])

    def _token(self, item: NDArray[np.int64] | Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        embedding = self.weights["embedding"]
        self.trace = self.trace / 2 + (embedding[int(item)] if self.tokens else item @ embedding)
        place = len(self.keys)
        key = np.tanh(self.trace)
        self.keys.append(key)
        slow = self.trace @ self.memory
        fast = sum(0.1 * (self.trace @ a) * a for a in self.keys)
        output = (slow + fast) @ self.weights["head"] + 0.01 * place
        surprise = float(np.mean((slow - key) ** 2))
        if len(self.keys) == C:
            self.memory = 0.9 * self.memory + 0.1 * sum(np.outer(a, a) for a in self.keys)
            self.keys = []
        return output, np.array([surprise, 2 * surprise])


# Shared first lines of the graphs; T is how many tokens a call holds.
_READ = """
    start = Unsqueeze(trace, one)
    slow = MatMul(c, memory)
    a = Tanh(c)
    y = Add(slow, fast)
    float_place = Cast<to=1>(place)
    phase = Mul(float_place, hundredth)
    headf = Cast<to=1>(head)
    read = MatMul(y, headf)
    OUT = Add(read, phase)
"""
_SURPRISE = """
    error = Sub(slow, a)
    square = Mul(error, error)
    surprise_0 = ReduceMean<keepdims=1>(square, last)
    surprise_1 = Add(surprise_0, surprise_0)
    surprise = Concat<axis=-1>(surprise_0, surprise_1)
"""
_OLD_KEYS = """
    chunk_position = Mod(position, chunk)
    column = Unsqueeze(chunk_position, one)
    filled = Less(ramp, column)
    filledf = Cast<to=1>(filled)
    mask = Unsqueeze(filledf, one)
    old = Transpose<perm=[1, 0, 2]>(rows)
    old_t = Transpose<perm=[0, 2, 1]>(old)
    old_scores = MatMul(c, old_t)
    old_masked = Mul(old_scores, mask)
    old_read = MatMul(old_masked, old)
"""
_TRACES = """
    fresh = MatMul(decay, x)
    kept = Mul(powers, start)
    c = Add(fresh, kept)
"""
_OWN_KEYS = """
    a_t = Transpose<perm=[0, 2, 1]>(a)
    own_scores = MatMul(c, a_t)
    own_masked = Mul(own_scores, causal)
    own_read = MatMul(own_masked, a)
"""
_NODES: dict[GraphKind, str] = {
    "step": """
    halved = Mul(start, half)
    c = Add(halved, x)
    present_trace = Squeeze(c, one)
    product = Mul(c, a)
    own_score = ReduceSum<keepdims=1>(product, last)
    own_read = Mul(own_score, a)
    both = Add(own_read, old_read)
    fast = Mul(both, tenth)
    place = Unsqueeze(column, one)
    present_rows = Transpose<perm=[1, 0, 2]>(a)
    """
    + _OLD_KEYS,
    "extend": _TRACES
    + _OLD_KEYS
    + _OWN_KEYS
    + """
    both = Add(own_read, old_read)
    fast = Mul(both, tenth)
    last_token = Sub(length, one)
    last_column = Unsqueeze(last_token, one)
    is_last = Equal(ramp, last_column)
    is_lastf = Cast<to=1>(is_last)
    selector = Unsqueeze(is_lastf, one)
    selected = MatMul(selector, c)
    present_trace = Squeeze(selected, one)
    places = Add(column, ramp)
    place = Unsqueeze(places, last)
    present_rows = Transpose<perm=[1, 0, 2]>(a)
    """,
    "prefill": _TRACES
    + _OWN_KEYS
    + """
    fast = Mul(own_read, tenth)
    selected = Slice(c, minus_one, end, one)
    present_trace = Squeeze(selected, one)
    place = Unsqueeze(ramp, last)
    outer = MatMul(a_t, a)
    kept_memory = Mul(memory, nine_tenths)
    written = Mul(outer, tenth)
    present_memory = Add(kept_memory, written)
    """,
    "commit": """
    keys = Transpose<perm=[1, 0, 2]>(rows)
    keys_t = Transpose<perm=[0, 2, 1]>(keys)
    outer = MatMul(keys_t, keys)
    kept_memory = Mul(memory, nine_tenths)
    written = Mul(outer, tenth)
    present_memory = Add(kept_memory, written)
    """,
}
_TOKENS: dict[GraphKind, int] = {"step": 1, "extend": C, "prefill": C, "commit": 0}
_INPUTS: dict[GraphKind, tuple[str, ...]] = {
    "step": ("position", "memory", "trace", "rows"),
    "extend": ("position", "length", "memory", "trace", "rows"),
    "prefill": ("memory", "trace"),
    "commit": ("memory", "rows"),
}
_OUTPUTS: dict[GraphKind, tuple[str, ...]] = {
    "step": ("present_trace", "present_rows"),
    "extend": ("present_trace", "present_rows"),
    "prefill": ("present_trace", "present_memory"),
    "commit": ("present_memory",),
}
STATES = (
    StateSpec(
        name="0.memory_0",
        kind="carried",
        dtype="float32",
        shape=("batch", D, D),
        initial=Initial(kind="learned", tensor="0.memory_0"),
        input="memory",
        output="present_memory",
    ),
    StateSpec(
        name="0.trace",
        kind="carried",
        dtype="float32",
        shape=("batch", D),
        initial=Initial(kind="constant", value=TRACE_START),
        input="trace",
        output="present_trace",
    ),
    StateSpec(
        name="0.rows",
        kind="rows",
        dtype="float32",
        shape=(C, "batch", D),
        initial=Initial(kind="zeros"),
        input="rows",
        output="present_rows",
    ),
)


def _constants() -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
    t = np.arange(C)
    causal = np.tril(np.ones((C, C)))
    floats = {
        "decay": np.where(causal > 0, 0.5 ** np.maximum(t[:, None] - t[None, :], 0), 0),
        "powers": 0.5 ** (t[:, None] + 1),
        "causal": causal,
        "half": np.array(0.5),
        "tenth": np.array(0.1),
        "nine_tenths": np.array(0.9),
        "hundredth": np.array(0.01),
    }
    integers = {
        "ramp": t[None],
        "chunk": np.array([C]),
        "one": np.array([1]),
        "last": np.array([-1]),
        "minus_one": np.array([-1]),
        "end": np.array([C]),
    }
    return {
        **{name: value.astype(np.float32) for name, value in floats.items()},
        **{name: value.astype(np.int64) for name, value in integers.items()},
    }


def _spec(toy: Toy, kind: GraphKind, name: str) -> TensorSpec:
    tokens = _TOKENS[kind]
    shapes: dict[str, tuple[int | str, ...]] = {
        "input_ids": ("batch", tokens),
        "inputs": ("batch", tokens, FEATURES),
        "position": ("batch",),
        "length": ("batch",),
        "logits": ("batch", tokens, toy.sizes[1]),
        "predictions": ("batch", tokens, toy.sizes[1]),
        "surprise": ("batch", tokens, 2),
    }
    for state in STATES:
        shapes[state.input] = state.shape
        shapes[state.output] = (tokens, *state.shape[1:]) if state.kind == "rows" else state.shape
    integer = name in ("input_ids", "position", "length")
    return TensorSpec(name=name, dtype="int64" if integer else "float32", shape=shapes[name])


def _graph_spec(toy: Toy, kind: GraphKind) -> GraphSpec:
    tokens = toy.vocab_size is not None
    data = (["input_ids" if tokens else "inputs"] if kind != "commit" else []) + list(_INPUTS[kind])
    told = (["logits", "surprise"] if tokens else ["predictions"]) if kind != "commit" else []
    return GraphSpec(
        name=kind,
        kind=kind,
        file=f"{kind}.onnx",
        sha256="",
        tokens=_TOKENS[kind],
        inputs=tuple(_spec(toy, kind, name) for name in data),
        outputs=tuple(_spec(toy, kind, name) for name in [*told, *_OUTPUTS[kind]]),
    )


def _sorted_nodes(lines: list[str], known: set[str]) -> list[str]:
    """ONNX wants nodes in topological order; the fragments above are in the order that reads well."""
    ordered: list[str] = []
    while lines:
        for line in lines:
            name, _, call = line.partition(" = ")
            arguments = call[call.rindex("(") + 1 : -1].split(", ")
            if set(arguments) <= known:
                break
        else:
            raise ValueError(f"nothing provides the inputs of {lines}")
        known = known | {name}
        lines = [other for other in lines if other is not line]
        ordered.append(line)
    return ordered


def _text(spec: TensorSpec) -> str:
    kind = "int64" if spec.dtype == "int64" else "float"
    return f"{kind}[{', '.join(map(str, spec.shape))}] {spec.name}"


def _onnx(toy: Toy, spec: GraphSpec, offsets: dict[str, tuple[int, int]]) -> bytes:
    body = _NODES[spec.kind]
    if spec.kind != "commit":
        embed = "x = Gather(embedding, input_ids)" if toy.vocab_size else "x = MatMul(inputs, embedding)"
        head = _READ.replace("OUT", spec.outputs[0].name)
        body = f"{embed}\n{body}\n{head}\n{_SURPRISE if toy.vocab_size else ''}"
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    constants = _constants()
    stored = toy.weights()
    nodes = _sorted_nodes(lines, {t.name for t in spec.inputs} | set(constants) | set(stored))
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> {spec.name} ({", ".join(map(_text, spec.inputs))})'
        f" => ({', '.join(map(_text, spec.outputs))}) {{ {' '.join(nodes)} }}"
    )
    used = {name for node in model.graph.node for name in node.input}
    for name, value in constants.items():
        if name in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for name, value in stored.items():
        if name in used:
            model.graph.initializer.append(_external(name, value, offsets[name], toy.bfloat16_head and name == "head"))
    return bytes(model.SerializeToString())


def _external(name: str, value: Floats, span: tuple[int, int], bfloat16: bool) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=value.shape, data_location=onnx.TensorProto.EXTERNAL)
    tensor.data_type = onnx.TensorProto.BFLOAT16 if bfloat16 else onnx.TensorProto.FLOAT
    for key, entry in (("location", "weights.safetensors"), ("offset", str(span[0])), ("length", str(span[1]))):
        tensor.external_data.add(key=key, value=entry)
    return tensor


def _safetensors(tensors: dict[str, Floats], bfloat16: frozenset[str] = frozenset()) -> bytes:
    """A safetensors file, by hand: the format is a length, a JSON header and the data."""
    header: dict[str, object] = {"__metadata__": {"made_by": "a test"}}
    data = b""
    for name, value in tensors.items():
        stored = (value.view(np.uint32) >> 16).astype(np.uint16) if name in bfloat16 else value
        start, data = len(data), data + stored.tobytes()
        kind = "BF16" if name in bfloat16 else "F32"
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _offsets(content: bytes) -> dict[str, tuple[int, int]]:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (8 + length + start, end - start) for name, (start, end) in spans.items()}


def _put(folder: Path, name: str, content: bytes) -> DataFile:
    (folder / name).write_bytes(content)
    return DataFile(file=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def write_toy(folder: Path, toy: Toy, tokenizer_json: bytes | None = None) -> Path:
    """Write the toy as a bundle and return its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    content = _safetensors(toy.weights(), frozenset({"head"} if toy.bfloat16_head else ()))
    weights = _put(folder, "weights.safetensors", content)
    kinds: list[GraphKind] = ["step", "commit"]
    kinds += ["prefill"] if toy.prefill else []
    kinds += ["extend"] if toy.extend else []
    graphs = []
    for kind in kinds:
        spec = _graph_spec(toy, kind)
        file = _put(folder, spec.file, _onnx(toy, spec, _offsets(content)))
        onnx.checker.check_model(str(folder / spec.file))
        graphs.append(GraphSpec(**{**structs.asdict(spec), "sha256": file.sha256}))
    tokenizer = None
    if tokenizer_json is not None:
        tokenizer = TokenizerInfo(kind="tokenizers", **structs.asdict(_put(folder, "tokenizer.json", tokenizer_json)))
    elif toy.vocab_size is not None and toy.vocab_size >= 256:
        tokenizer = TokenizerInfo(kind="byte")
    token_inputs = None if toy.vocab_size is None else TokenInputs(vocab_size=toy.vocab_size)
    manifest = Manifest(
        model=ModelInfo(name="toy", variant="lmm", parameters=sum(w.size for w in toy.weights().values())),
        dtype="fp32",
        opset=20,
        inputs=token_inputs or ContinuousInputs(features=FEATURES, targets=TARGETS),
        chunk=C,
        tokenizer=tokenizer,
        states=STATES,
        graphs=tuple(graphs),
        schedule=(Due(graph="commit", period=C),),
        weights=weights,
        initial_state=_put(folder, "initial_state.safetensors", _safetensors({"0.memory_0": toy.first_memory()})),
        provenance={"made_by": "a test"},
        verification={"ok": True, "tokens": 0},
    )
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder
