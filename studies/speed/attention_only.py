"""A transformer of attention alone, in PyTorch and as an ONNX graph that decodes one token over a cache in place.

The graph is what a careful deployment uses: one product for queries, keys and values, ONNX Runtime's attention with
rotary positions, which appends to the caller's cache without a copy, fused norms and a gated feed-forward of two
products. Every head has keys and values of its own, as ours have. A bound cache is as long as allowed; a step reads
only what is filled.
Knows the architecture. Does not know what it is compared with (`context`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from titans_core.layers import NORM_EPS, rms_normalise, rotary_table, rotate, split_heads
from titans_runtime.devices.ort_sessions import import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime as ort

MICROSOFT = "com.microsoft"
BASE = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The model; `context` is the most tokens that the cache holds."""

    dim: int
    layers: int
    heads: int
    hidden: int
    vocab: int
    context: int

    @property
    def width(self) -> int:
        """Channels of a head."""
        return self.dim // self.heads


def hidden_for(parameters: int, shape: Shape, multiple: int = 32) -> int:
    """The feed-forward width that brings the model closest to so many parameters."""
    rest = 2 * shape.vocab * shape.dim + shape.dim + shape.layers * (4 * shape.dim**2 + 2 * shape.dim)
    return max(1, round((parameters - rest) / (shape.layers * 3 * shape.dim) / multiple)) * multiple


def random_weights(shape: Shape) -> dict[str, Tensor]:
    """By name, matrices `[in, out]`."""
    torch.manual_seed(0)

    def matrix(inputs: int, outputs: int) -> Tensor:
        return torch.randn(inputs, outputs) / math.sqrt(inputs)

    dim, hidden = shape.dim, shape.hidden
    weights = {"embedding": torch.randn(shape.vocab, dim), "norm": torch.ones(dim), "head": matrix(dim, shape.vocab)}
    for layer in range(shape.layers):
        weights[f"{layer}.norm"], weights[f"{layer}.mlp_norm"] = torch.ones(dim), torch.ones(dim)
        weights[f"{layer}.qkv"], weights[f"{layer}.out"] = matrix(dim, 3 * dim), matrix(dim, dim)
        weights[f"{layer}.up"], weights[f"{layer}.down"] = matrix(dim, 2 * hidden), matrix(hidden, dim)
    return weights


def forward(shape: Shape, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Logits `[B, T, vocab]` of ids `[B, T]`: the slow twin of the graph."""
    x = weights["embedding"][ids]
    cosine, sine = rotary_table(ids.shape[1], shape.width, BASE).float()
    for layer in range(shape.layers):
        q, k, v = (rms_normalise(x) * weights[f"{layer}.norm"] @ weights[f"{layer}.qkv"]).chunk(3, dim=-1)
        q, k = (rotate(split_heads(part, shape.heads), cosine, sine) for part in (q, k))
        heads = F.scaled_dot_product_attention(q, k, split_heads(v, shape.heads), is_causal=True)
        x = x + heads.transpose(1, 2).reshape(x.shape) @ weights[f"{layer}.out"]
        gate, value = (rms_normalise(x) * weights[f"{layer}.mlp_norm"] @ weights[f"{layer}.up"]).chunk(2, dim=-1)
        x = x + (F.silu(gate) * value) @ weights[f"{layer}.down"]
    return rms_normalise(x) * weights["norm"] @ weights["head"]


def decoder(shape: Shape, weights: dict[str, Tensor]) -> onnx.ModelProto:
    """One token: `input_ids` `[1, 1]`, `seqlens_k` `[1]` (tokens before it), `total` `[1]`, and per layer a cache of
    keys and one of values `[1, heads, context, width]`; out come `logits` `[1, 1, vocab]` and the caches."""
    cosine, sine = (part[:, : shape.width // 2] for part in rotary_table(shape.context, shape.width, BASE).float())
    nodes: list[onnx.NodeProto] = []
    constants = {**weights, "cosine": cosine, "sine": sine}

    def add(operator: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def norm(x: str, gain: str) -> str:
        return add("SimplifiedLayerNormalization", [x, gain], [f"{gain}.y"], axis=-1, epsilon=NORM_EPS)

    x = add("Gather", ["embedding", "input_ids"], ["x"])
    cache = (1, shape.heads, shape.context, shape.width)
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, (1, 1)),
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, (1,)),
        helper.make_tensor_value_info("total", TensorProto.INT32, (1,)),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 1, shape.vocab))]
    for i in range(shape.layers):
        qkv = add("MatMul", [norm(x, f"{i}.norm"), f"{i}.qkv"], [f"{i}.qkv.y"])
        past, present = cache_names(i, "past"), cache_names(i, "present")
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in past]
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in present]
        add(
            "GroupQueryAttention", [qkv, "", "", *past, "seqlens_k", "total", "cosine", "sine"], [f"{i}.y", *present],
            MICROSOFT, num_heads=shape.heads, kv_num_heads=shape.heads, do_rotary=1,
        )  # fmt: skip
        x = add("Add", [x, add("MatMul", [f"{i}.y", f"{i}.out"], [f"{i}.out.y"])], [f"{i}.x"])
        up = add("MatMul", [norm(x, f"{i}.mlp_norm"), f"{i}.up"], [f"{i}.up.y"])
        add("Split", [up], [f"{i}.gate", f"{i}.value"], axis=-1, num_outputs=2)
        silu = add("QuickGelu", [f"{i}.gate"], [f"{i}.silu"], MICROSOFT, alpha=1.0)
        hidden = add("Mul", [silu, f"{i}.value"], [f"{i}.hidden"])
        x = add("Add", [x, add("MatMul", [hidden, f"{i}.down"], [f"{i}.down.y"])], [f"{i}.x2"])
    add("MatMul", [norm(x, "norm"), "head"], ["logits"])
    graph = helper.make_graph(
        nodes, "attention", inputs, outputs, [numpy_helper.from_array(v.numpy(), k) for k, v in constants.items()]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def cache_names(layer: int, which: str) -> list[str]:
    """Of keys and of values."""
    return [f"{which}.{layer}.key", f"{which}.{layer}.value"]


class Decoder:
    """A stream that is fed one token at a time; the cache is bound once, as input and as output."""

    def __init__(self, shape: Shape, weights: dict[str, Tensor], threads: int) -> None:
        self._ort = import_onnxruntime()
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")  # as our runtime has it
        options.add_session_config_entry("session.intra_op.spin_duration_us", "1000")
        self._session: ort.InferenceSession = self._ort.InferenceSession(
            decoder(shape, weights).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        wrap = self._ort.OrtValue.ortvalue_from_numpy
        self._ids = np.zeros((1, 1), np.int64)
        self._before, self._total = np.zeros(1, np.int32), np.ones(1, np.int32)
        self._logits = np.zeros((1, 1, shape.vocab), np.float32)
        self._binding = self._session.io_binding()
        self._kept = [wrap(array) for array in (self._ids, self._before, self._total, self._logits)]
        for name, value in zip(("input_ids", "seqlens_k", "total"), self._kept, strict=False):
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output("logits", self._kept[3])
        size = (1, shape.heads, shape.context, shape.width)
        for layer in range(shape.layers):
            for past, present in zip(cache_names(layer, "past"), cache_names(layer, "present"), strict=True):
                cache = wrap(np.full(size, 0.01, np.float32))  # a cache that was never written would not be in memory
                self._kept.append(cache)
                self._binding.bind_ortvalue_input(past, cache)
                self._binding.bind_ortvalue_output(present, cache)
        self.position = 0

    def feed(self, token: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits `[vocab]`, valid until the next token."""
        self._ids[0, 0], self._before[0], self._total[0] = token, self.position, self.position + 1
        self._session.run_with_iobinding(self._binding)
        self.position += 1
        logits: np.ndarray[Any, np.dtype[np.float32]] = self._logits[0, 0]
        return logits
