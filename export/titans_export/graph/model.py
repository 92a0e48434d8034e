"""A steppable model's graphs as ONNX models: named inputs and outputs, metadata, weights by reference.

Knows how state names become ONNX names and what the metadata says. Does not know the bundle's other files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import onnx
import onnx_ir as ir
import torch
from msgspec import to_builtins
from torch import Tensor

from titans_core.state import StateSpec as CoreStateSpec
from titans_export.dtypes import element_type
from titans_export.errors import ExportError, TraceError
from titans_export.graph.builder import dims, is_weight
from titans_export.graph.fused_ops import DOMAIN, VERSION, fused
from titans_export.graph.lower import lower
from titans_export.graph.record import record
from titans_export.models.protocol import DATA_INPUTS, Feeds, StepGraph, SteppableModel, initial_state
from titans_format.dtypes import BY_ONNX, DType
from titans_format.fields import ContinuousInputs, TokenInputs
from titans_format.manifest import FORMAT_VERSION
from titans_format.specs import BATCH, GraphSpec, Initial, Shape, StateSpec, TensorSpec


@dataclass(frozen=True)
class ExportedGraph:
    """One graph: the ONNX model without weight data, and the parameters it uses."""

    source: StepGraph
    model: ir.Model
    parameters: tuple[str, ...]

    def spec(self, file: str, sha256: str) -> GraphSpec:
        """Its manifest entry, once it is written to `file`."""
        graph = self.model.graph
        return GraphSpec(
            name=self.source.name,
            kind=self.source.kind,
            file=file,
            sha256=sha256,
            tokens=self.source.tokens,
            inputs=tuple(_tensor_spec(value) for value in graph.inputs),
            outputs=tuple(_tensor_spec(value) for value in graph.outputs),
        )


def past(name: str) -> str:
    """The graph input of state `name`, in the naming of the ONNX language-model ecosystem."""
    return f"past_key_values.{name}"


def present(name: str) -> str:
    """The graph output of state `name`."""
    return f"present.{name}"


def state_table(model: SteppableModel) -> tuple[StateSpec, ...]:
    """The manifest's state table of a model."""
    return tuple(_state(spec, model.initial_tensor(spec)) for spec in model.state_specs())


def _state(spec: CoreStateSpec, start: Tensor) -> StateSpec:
    shape: Shape = (spec.shape[0], BATCH, *spec.shape[1:]) if spec.kind == "rows" else (BATCH, *spec.shape)
    if isinstance(spec.initial, str):
        initial = Initial(kind="learned", tensor=spec.name)
    elif spec.initial == 0.0:
        initial = Initial(kind="zeros")
    else:
        initial = Initial(kind="constant", value=spec.initial)
    return StateSpec(
        name=spec.name,
        kind=spec.kind,
        dtype=cast(DType, element_type(start.dtype).name),
        shape=shape,
        initial=initial,
        input=past(spec.name),
        output=present(spec.name),
    )


def example_feeds(model: SteppableModel, graph: StepGraph, batch: int) -> Feeds:
    """Feeds of the right shapes for a graph; their values do not matter to a recording."""
    feeds: Feeds = {"position": torch.zeros(batch, dtype=torch.int64)}
    if graph.tokens:
        if isinstance(model.inputs, ContinuousInputs):
            feeds["inputs"] = torch.zeros(batch, graph.tokens, model.inputs.features)
        else:
            feeds["input_ids"] = torch.zeros(batch, graph.tokens, dtype=torch.int64)
        if graph.kind == "extend":
            feeds["length"] = torch.ones(batch, dtype=torch.int64)
    return feeds | initial_state(model, batch)


def export_graph(model: SteppableModel, graph: StepGraph) -> ExportedGraph:
    """Record and lower one graph, and have ONNX check it.

    Raises:
        TraceError: the computation cannot be written as a graph.
        ExportError: ONNX refuses the result.
    """
    states = {spec.name for spec in model.state_specs()}

    def run(feeds: Feeds) -> Feeds:
        results = graph.run({name.removeprefix(past("")): value for name, value in feeds.items()})
        return {present(name) if name in states else name: value for name, value in results.items()}

    def example(batch: int) -> Feeds:
        feeds = example_feeds(model, graph, batch)
        return {name if name in DATA_INPUTS else past(name): value for name, value in feeds.items()}

    try:
        exported = lower(record(run, model.module, example), graph.name)
    except TraceError as error:
        raise TraceError(error.finding, error.remedy, where=f"graph {graph.name}") from error
    if any(node.domain == DOMAIN for node in exported.graph):
        exported.graph.opset_imports[DOMAIN] = VERSION
    exported.metadata_props.update(_metadata(model, graph))
    weights = tuple(name for name, value in exported.graph.initializers.items() if is_weight(value))
    return ExportedGraph(graph, exported, weights)


def fused_graph(model: SteppableModel, portable: ExportedGraph) -> ExportedGraph | None:
    """A graph with its memories as single operators (`fused_ops`); None where it has none that can be.

    It declares the inputs of the portable one, used or not, so that both are bound alike.
    """
    with fused(model.module):
        exported = export_graph(model, portable.source)
    graph = exported.model.graph
    if not any(node.domain == DOMAIN for node in graph):
        return None
    own = {value.name: value for value in graph.inputs}
    graph.inputs.clear()
    for like in portable.model.graph.inputs:
        graph.inputs.append(own.get(like.name) or ir.Value(name=like.name, type=like.type, shape=like.shape))
    return exported


def refer_to_weights(model: ir.Model, file: str, places: dict[str, tuple[int, int]]) -> None:
    """Point every weight at its bytes in the shared file; `places` are offsets and lengths by name."""
    for name, value in model.graph.initializers.items():
        weight = value.const_value
        if name in places and weight is not None:
            value.const_value = ir.ExternalTensor(
                file, *places[name], weight.dtype, shape=ir.Shape(dims(weight)), name=name
            )


def check(path: str) -> None:
    """ONNX's checker with strict shape inference, on the written file. Raises `ExportError`."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"ONNX refuses {path} ({error})", "this is a defect of the export, please report it"
        ) from error


def _metadata(model: SteppableModel, graph: StepGraph) -> dict[str, str]:
    table = [
        {"name": s.name, "kind": s.kind, "dtype": s.dtype, "shape": s.shape, "input": s.input, "output": s.output}
        for s in state_table(model)
    ]
    inputs: dict[str, Any]
    if isinstance(model.inputs, TokenInputs):
        inputs = {"kind": "tokens", "vocab_size": model.inputs.vocab_size}
    else:
        inputs = {"kind": "continuous", "features": model.inputs.features, "targets": model.inputs.targets}
    return {
        "titans.format_version": str(FORMAT_VERSION),
        "titans.model": model.name,
        "titans.graph": graph.kind,
        "titans.tokens": str(graph.tokens),
        "titans.chunk": str(model.chunk),
        "titans.inputs": json.dumps(inputs),
        "titans.states": json.dumps(table),
        "titans.schedule": json.dumps([to_builtins(due) for due in model.schedule]),
    }


def _tensor_spec(value: ir.Value) -> TensorSpec:
    if value.name is None or value.dtype is None or value.shape is None:
        raise ExportError(f"{value} has no name, type or shape", "this is a defect of the export, please report it")
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(name=value.name, dtype=cast(DType, BY_ONNX[int(value.dtype)].name), shape=shape)
