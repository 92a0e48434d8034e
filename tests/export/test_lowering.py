"""Every ONNX rule against the torch function it stands for, and the refusals of the recorder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titans_export.errors import TraceError
from titans_export.graph.builder import is_weight
from titans_export.graph.lower import RULES, lower
from titans_export.graph.record import BatchSize, Feeds, record

Function = Callable[[Tensor, Tensor], Tensor]

BOTH = {
    "add": lambda x, y: x + y,
    "add a number": lambda x, y: 1 + x,
    "sub": lambda x, y: x - y,
    "rsub": lambda x, y: 1 - x,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / (2 + y * y),
    "matmul": lambda x, y: x @ y.transpose(-1, -2),
    "matmul of vectors": lambda x, y: x[..., :1] @ y[:, :1],
    "conv2d": lambda x, y: F.conv2d(x[:, :, None], torch.arange(6.0).reshape(3, 1, 1, 2), groups=3)[:, :, 0],
    "pow": lambda x, y: x.pow(2),
    "neg": lambda x, y: -x,
    "sqrt": lambda x, y: torch.sqrt(x * x + 1),
    "rsqrt": lambda x, y: torch.rsqrt(x * x + 1),
    "exp": lambda x, y: torch.exp(x),
    "log": lambda x, y: torch.log(x * x + 1),
    "erf": lambda x, y: torch.erf(x),
    "sigmoid": lambda x, y: torch.sigmoid(x),
    "tanh": lambda x, y: torch.tanh(x),
    "abs": lambda x, y: torch.abs(x),
    "relu": lambda x, y: F.relu(x),
    "cos": lambda x, y: torch.cos(x),
    "sin": lambda x, y: torch.sin(x),
    "softplus": lambda x, y: F.softplus(x, threshold=40.0),
    "silu": lambda x, y: F.silu(x),
    "gelu": lambda x, y: F.gelu(x),
    "softmax": lambda x, y: torch.softmax(x, dim=-1),
    "clamp below": lambda x, y: x.clamp(min=0.25),
    "clamp above": lambda x, y: x.clamp(max=0.25),
    "clamp": lambda x, y: x.clamp(min=-0.5, max=0.5),
    "mean": lambda x, y: x.mean(-1, keepdim=True),
    "mean away": lambda x, y: x.mean(1),
    "sum": lambda x, y: x.sum(-1, keepdim=True),
    "layer_norm": lambda x, y: F.layer_norm(x, (4,), eps=1e-3),
    "vector_norm": lambda x, y: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "amax": lambda x, y: x.amax(-2, keepdim=True),
    "normalize": lambda x, y: F.normalize(x, dim=1),
    "normalize by the sum": lambda x, y: F.normalize(x.exp(), p=1.0, dim=-2),
    "reshape": lambda x, y: x.reshape(x.shape[0], -1),
    "flatten": lambda x, y: x.flatten(0, 1),
    "transpose": lambda x, y: x.transpose(0, 1),
    "permute": lambda x, y: x.permute(2, 0, 1),
    "unsqueeze": lambda x, y: x.unsqueeze(1),
    "squeeze": lambda x, y: x[:, :1].squeeze(1),
    "view of views": lambda x, y: x.unsqueeze(1).reshape(x.shape[0], 4, 3)[:, None].flatten(1),
    "view and back": lambda x, y: x.reshape(x.shape[0], 12).reshape(x.shape[0], 3, 4) * 2,
    "transpose of an axis of one": lambda x, y: x[:, :1].transpose(1, 2),
    "permute of an axis of one": lambda x, y: x[:, :1].permute(1, 0, 2) * 2,
    "expand": lambda x, y: x[:, :1].expand(-1, 5, -1) * 1.0,
    "expand to the batch": lambda x, y: (x * 0 + 1)[:1].expand(x.shape[0], -1, -1) * x,
    "cat": lambda x, y: torch.cat([x, y], dim=1),
    "cat a constant of the batch": lambda x, y: torch.cat([x, torch.ones(x.shape[0], 1, 4)], dim=1),
    "stack": lambda x, y: torch.stack([x, y], dim=1),
    "chunk": lambda x, y: x.chunk(2, dim=-1)[1],
    "split": lambda x, y: x.split([1, 3], dim=-1)[1],
    "split function": lambda x, y: torch.split(x, [1, 3], dim=-1)[0],
    "getitem slice": lambda x, y: x[:, 1:],
    "getitem everything": lambda x, y: x[:, -3:, 0:4] * 2,
    "getitem of an axis of one": lambda x, y: x[:, :1][:, 0],
    "getitem last": lambda x, y: x[:, -1],
    "getitem ellipsis": lambda x, y: x[..., None, :2],
    "getitem none and number": lambda x, y: x[:, None, 0, ::2],
    "getitem tensor": lambda x, y: torch.arange(12.0).reshape(3, 4)[(x[:, :, 0] > 0).long()],
    "where": lambda x, y: torch.where(x > y, x, y),
    "masked_fill": lambda x, y: x.masked_fill(x < 0, -7.0),
    "eq": lambda x, y: ((x > 0) == (y > 0)).float(),
    "lt": lambda x, y: (x < y).float(),
    "le": lambda x, y: (x <= y).float(),
    "gt": lambda x, y: (x > 0).float(),
    "ge": lambda x, y: (x >= y).float(),
    "and": lambda x, y: ((x > 0) & (y > 0)).float(),
    "or": lambda x, y: ((x > 0) | (y > 0)).float(),
    "invert": lambda x, y: (~(x > 0)).float(),
    "maximum": lambda x, y: torch.maximum(x, y),
    "minimum": lambda x, y: torch.minimum(x, y),
    "remainder": lambda x, y: ((x > 0).long() * 5 % 3).float(),
    "floor division": lambda x, y: (((x > 0).long() * 5 + 2) // 3).float(),
    "to": lambda x, y: x.to(torch.float64).to(torch.float32),
    "clone": lambda x, y: x.clone().contiguous().detach() + 0,
    "zeros_like": lambda x, y: torch.zeros_like(x) + x,
    "ones_like": lambda x, y: torch.ones_like(x),
    "embedding": lambda x, y: F.embedding((x > 0).long()[..., 0], torch.arange(8.0).reshape(2, 4)),
}


class Nothing(nn.Module):
    """A module without parameters."""


def example(batch: int) -> Feeds:
    generator = torch.Generator().manual_seed(batch)
    return {name: torch.randn(batch, 3, 4, generator=generator) for name in ("x", "y")}


def session(function: Callable[[Feeds], Feeds], module: nn.Module) -> ort.InferenceSession:
    lowered = lower(record(function, module, example), "test")
    parameters = dict(module.named_parameters())
    for value in lowered.graph.initializers.values():
        if value.name in parameters:
            value.const_value = ir.tensor(parameters[value.name].detach().numpy())
    model = ir.to_proto(lowered)
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(found: ort.InferenceSession, feeds: Feeds) -> np.ndarray:
    names = {value.name for value in found.get_inputs()}
    return np.asarray(found.run(["out"], {k: v.numpy() for k, v in feeds.items() if k in names})[0])


@pytest.mark.parametrize("name", BOTH)
def test_a_rule_computes_what_torch_computes_for_any_batch(name: str) -> None:
    function = BOTH[name]
    found = session(lambda feeds: {"out": function(feeds["x"], feeds["y"])}, Nothing())
    for batch in (1, 2, 5):
        feeds = example(batch)
        want = function(feeds["x"], feeds["y"]).numpy()
        got = run(found, feeds)
        assert got.dtype == want.dtype
        if got.shape != want.shape:  # only a value that does not depend on any input may lose its batch
            assert name == "ones_like"
        np.testing.assert_allclose(np.broadcast_to(got, want.shape), want, rtol=1e-6, atol=1e-6)


def test_every_rule_is_tried() -> None:
    seen: set[str] = set()
    for function in BOTH.values():
        recorded = record(lambda feeds, f=function: {"out": f(feeds["x"], feeds["y"])}, Nothing(), example)  # type: ignore[misc]
        seen |= {call.name.removesuffix(".__get__").rsplit(".", 1)[-1].strip("_") for call in recorded.calls}
    aliases = {
        "rmul", "truediv", "bmm", "mod", "logical_and", "logical_or", "rtruediv", "logical_not", "view", "unflatten",
        "contiguous",
        "fused_operator",  # in test_fused
        "T", "t", "mT", "expand_as", "floor_divide", "double", "half", "bfloat16", "long", "type", "float",
    }  # fmt: skip
    assert set(RULES) - seen - aliases == set()


class Scaled(nn.Module):
    """A weight and a small table derived from it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.big = nn.Parameter(torch.randn(300, 300))

    def apply_both(self, feeds: Feeds) -> Feeds:
        wide = feeds["x"][:, :1, :1] * self.big.T
        return {"out": feeds["x"] @ self.weight + self.weight.sum(0) + wide.mean(-1, keepdim=True)[:, :3]}


def test_parameters_keep_their_names_and_only_small_results_of_them_are_folded() -> None:
    module = Scaled()
    graph = lower(record(lambda feeds: module.apply_both(feeds), module, example), "test").graph
    assert {name for name, value in graph.initializers.items() if is_weight(value)} == {"weight", "big"}
    assert [node.op_type for node in graph].count("ReduceSum") == 0
    assert [node.op_type for node in graph].count("Transpose") == 1
    found = session(lambda feeds: module.apply_both(feeds), module)
    feeds = example(3)
    np.testing.assert_allclose(run(found, feeds), module.apply_both(feeds)["out"].detach().numpy(), atol=1e-5)


def test_nodes_carry_the_path_of_the_module_that_made_them() -> None:
    outer = nn.Module()
    outer.inner = Scaled()
    graph = lower(record(lambda feeds: outer.inner.apply_both(feeds), outer, example), "test").graph
    assert all(str(node.name).startswith("inner/") for node in graph)
    assert len({node.name for node in graph}) == len(graph)


def test_repeated_work_is_done_once_and_unused_work_not_at_all() -> None:
    def function(feeds: Feeds) -> Feeds:
        torch.exp(feeds["y"])
        return {"out": torch.exp(feeds["x"]) + torch.exp(feeds["x"])}

    graph = lower(record(function, Nothing(), example), "test").graph
    assert sorted(node.op_type for node in graph) == ["Add", "Exp"]
    assert [value.name for value in graph.inputs] == ["x"]


def test_one_value_may_be_two_outputs_an_input_or_a_constant() -> None:
    def function(feeds: Feeds) -> Feeds:
        exp = torch.exp(feeds["x"])
        return {"out": exp, "again": torch.exp(feeds["x"]), "same": exp, "x2": feeds["x"], "one": torch.ones(2)}

    model = lower(record(function, Nothing(), example), "test")
    assert sorted(node.op_type for node in model.graph) == ["Exp", "Identity", "Identity", "Identity", "Identity"]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    x = example(2)["x"].numpy()
    found = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    for got, want in zip(found, [np.exp(x), np.exp(x), np.exp(x), x, np.ones(2)], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_batch_axis_is_named() -> None:
    graph = lower(record(lambda feeds: {"out": feeds["x"] * 2}, Nothing(), example), "test").graph
    dims = list(graph.outputs[0].shape or ())
    assert dims == ["batch", 3, 4]


def test_integers_that_follow_the_batch_are_found() -> None:
    recorded = record(lambda feeds: {"out": feeds["x"].reshape(feeds["x"].shape[0] * 3, 4)}, Nothing(), example)
    assert recorded.calls[0].results[0].shape == (BatchSize(3, 0), 4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda feeds: {"out": feeds["x"].add_(1)}, "in place"),
        (lambda feeds: {"out": torch.linalg.inv(feeds["x"][:, :, :3])}, "has no ONNX rule"),
        (lambda feeds: {"out": F.normalize(feeds["x"], p=3.0)}, "order 3"),
        (lambda feeds: {"out": feeds["x"] // 2}, "whole numbers"),
        (lambda feeds: {"out": F.layer_norm(feeds["x"], (4,), torch.ones(4))}, "a gain or a bias"),
        (lambda feeds: {"out": F.conv2d(feeds["x"][:, None], torch.ones(1, 1, 2, 2), padding=1)}, "a bias, padding or"),
        (lambda feeds: {"out": feeds["x"] * feeds["x"].shape[0]}, "derive it from an input"),
        (lambda feeds: {"out": feeds["x"] + torch.randn(feeds["x"].shape[0], 1, 1)}, "differs between the streams"),
        (lambda feeds: {"out": feeds["x"].exp() if len(feeds["x"]) == 2 else feeds["x"].log()}, "batch of 3 calls"),
    ],
)
def test_what_cannot_be_written_down_is_refused(function: Callable[[Feeds], Feeds], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        lower(record(function, Nothing(), example), "test")
