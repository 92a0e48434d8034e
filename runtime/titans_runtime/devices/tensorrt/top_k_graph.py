"""A small engine beside those of the graphs: it finds the likeliest tokens where only engines compute.

Knows its graph, which `titans build` builds and `device` runs. Does not know how either is done.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from titans_format.fields import TokenInputs
from titans_format.manifest import Manifest
from titans_format.specs import BATCH, GraphSpec, TensorSpec
from titans_runtime.devices.onnx_writer import Node, Value, model

NAME = "choose"
SCORES, IDS, LARGEST, SUM = "scores", "ids", "largest", "sum"
_MOST = 64  # tokens; a top_k above brings all logits
_WORTH = 3  # an id and its logit are three times as large as a logit


@dataclass(frozen=True)
class TopKGraph:
    """The graph.

    spec: what goes in and comes out: logits `[B, V]`; the `count` largest, in descending order, as ids and logits
        `[B, count]`, and the sum of all `[B]`. The manifest does not list it; `file` is what errors call it.
    onnx: the graph itself.
    count: how many it finds.
    """

    spec: GraphSpec
    onnx: bytes
    count: int


def top_k_graph(manifest: Manifest) -> TopKGraph | None:
    """The graph of a model; None for one whose outputs are not chosen among, or are few."""
    if not isinstance(manifest.inputs, TokenInputs):
        return None
    width = manifest.inputs.vocab_size
    count = min(_MOST, width // (_WORTH + 1))
    if count == 0:
        return None
    scores = TensorSpec(name=SCORES, dtype="float32", shape=(BATCH, width))
    outputs = (
        TensorSpec(name=IDS, dtype="int64", shape=(BATCH, count)),
        TensorSpec(name=LARGEST, dtype="float32", shape=(BATCH, count)),
        TensorSpec(name=SUM, dtype="float32", shape=(BATCH,)),
    )
    onnx = model(
        [_value(scores)],
        [_value(tensor) for tensor in outputs],
        [
            Node("TopK", [SCORES, "count"], (LARGEST, IDS), {"axis": 1}),
            Node("ReduceSum", [SCORES, "columns"], SUM, {"keepdims": 0}),
        ],
        {"count": [count], "columns": [1]},
    )
    digest = hashlib.sha256(onnx).hexdigest()
    spec = GraphSpec(
        name=NAME, kind="step", file=f"{NAME}.onnx", sha256=digest, tokens=0, inputs=(scores,), outputs=outputs
    )
    return TopKGraph(spec, onnx, count)


def _value(tensor: TensorSpec) -> Value:
    return Value(tensor.name, tensor.dtype, len(tensor.shape), tensor.shape)
