"""From recorded torch calls to ONNX nodes: one small rule per torch function.

Only standard operators without control flow, so that ONNX Runtime and TensorRT both take the graph. A function
without a rule is refused by name. Knows torch's signatures; `builder` knows ONNX's format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from titans_export.dtypes import onnx_type
from titans_export.errors import TraceError
from titans_export.graph.builder import GraphBuilder
from titans_export.graph.fused_ops import DOMAIN
from titans_export.graph.record import BatchSize, Call, Constant, Recording, Ref
from titans_export.passes.simplify import simplify

Rule = Callable[[GraphBuilder, Call], list[ir.Value]]
RULES: dict[str, Rule] = {}

_INT_MAX = np.iinfo(np.int64).max


def lower(recording: Recording, name: str) -> ir.Model:
    """The ONNX graph of a recording, as a model; nothing in it is repeated or unused.

    Raises:
        TraceError: a torch function has no rule.
    """
    builder = GraphBuilder(recording)
    for call in recording.calls:
        builder.scope = call.scope
        rule = RULES.get(_short(call.name))
        if rule is None:
            raise TraceError(
                f"{call.name} (in {call.scope or 'the model'}) has no ONNX rule",
                "express it with other torch functions, or add a rule to titans_export.graph.lower",
            )
        for ref, value in zip(call.results, rule(builder, call), strict=True):
            builder.bind(ref, value)
    builder.scope = ""
    model = builder.finish(name)
    simplify(model)
    return model


def _short(name: str) -> str:
    return name.removesuffix(".__get__").rsplit(".", 1)[-1].strip("_")


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        return rule

    return register


def _argument(call: Call, index: int, name: str, default: Any = None) -> Any:
    return call.args[index] if len(call.args) > index else call.kwargs.get(name, default)


def _operands(builder: GraphBuilder, call: Call, dtype: torch.dtype) -> tuple[ir.Value, ir.Value]:
    """Both operands of a broadcasting operator, as values of one dtype."""
    values = []
    for item in call.args[:2]:
        if isinstance(item, (Ref, Constant)):
            own = item.dtype if isinstance(item, Ref) else item.value.dtype
            value = builder.value_of(item, broadcasts=True)
            values.append(value if own == dtype else builder.op("Cast", value, to=onnx_type(dtype)))
        elif isinstance(item, BatchSize):
            raise TraceError(f"{call.name} in {call.scope} computes with the batch size", "derive it from an input")
        else:
            values.append(builder.constant(torch.tensor(item, dtype=dtype)))
    return values[0], values[1]


def _binary(operator: str, swapped: bool = False) -> Rule:
    def rule(builder: GraphBuilder, call: Call) -> list[ir.Value]:
        left, right = _operands(builder, call, call.results[0].dtype)
        return [builder.op(operator, right, left) if swapped else builder.op(operator, left, right)]

    return rule


def _comparison(operator: str) -> Rule:
    def rule(builder: GraphBuilder, call: Call) -> list[ir.Value]:
        tensors = [item for item in call.args[:2] if isinstance(item, (Ref, Constant))]
        dtypes = [item.dtype if isinstance(item, Ref) else item.value.dtype for item in tensors]
        dtype = dtypes[0] if len(dtypes) == 1 else torch.promote_types(dtypes[0], dtypes[1])
        return [builder.op(operator, *_operands(builder, call, dtype))]

    return rule


def _unary(*operators: str) -> Rule:
    def rule(builder: GraphBuilder, call: Call) -> list[ir.Value]:
        value = builder.value_of(call.args[0])
        for operator in operators:
            value = builder.op(operator, value)
        return [value]

    return rule


_BINARY: tuple[tuple[tuple[str, ...], str], ...] = (
    (("add",), "Add"),
    (("sub",), "Sub"),
    (("mul", "rmul"), "Mul"),
    (("div", "truediv"), "Div"),
    (("pow",), "Pow"),
    (("remainder", "mod"), "Mod"),
    (("and", "logical_and"), "And"),
    (("or", "logical_or"), "Or"),
    (("maximum",), "Max"),
    (("minimum",), "Min"),
)
for _names, _operator in _BINARY:
    _rule(*_names)(_binary(_operator))
_rule("rsub")(_binary("Sub", swapped=True))
_rule("rtruediv")(_binary("Div", swapped=True))
for _names, _operator in (
    (("eq",), "Equal"),
    (("lt",), "Less"),
    (("le",), "LessOrEqual"),
    (("gt",), "Greater"),
    (("ge",), "GreaterOrEqual"),
):
    _rule(*_names)(_comparison(_operator))
_UNARY: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("neg",), ("Neg",)),
    (("sqrt",), ("Sqrt",)),
    (("rsqrt",), ("Sqrt", "Reciprocal")),
    (("exp",), ("Exp",)),
    (("log",), ("Log",)),
    (("erf",), ("Erf",)),
    (("sigmoid",), ("Sigmoid",)),
    (("tanh",), ("Tanh",)),
    (("relu",), ("Relu",)),
    (("abs",), ("Abs",)),
    (("cos",), ("Cos",)),
    (("sin",), ("Sin",)),
    (("softplus",), ("Softplus",)),  # torch's threshold only decides where it is called linear
    (("invert", "logical_not"), ("Not",)),
    (("clone", "contiguous", "detach"), ()),
)
for _names, _operators in _UNARY:
    _rule(*_names)(_unary(*_operators))


@_rule("silu")
def _silu(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    x = builder.value_of(call.args[0])
    return [builder.op("Mul", x, builder.op("Sigmoid", x))]


@_rule("gelu")
def _gelu(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    return [builder.op("Gelu", builder.value_of(call.args[0]), approximate=call.kwargs.get("approximate", "none"))]


@_rule("softmax")
def _softmax(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    return [builder.op("Softmax", builder.value_of(call.args[0]), axis=_argument(call, 1, "dim"))]


@_rule("clamp")
def _clamp(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    low, high = _argument(call, 1, "min"), _argument(call, 2, "max")
    bounds = [
        None if bound is None else builder.constant(torch.tensor(bound, dtype=call.results[0].dtype))
        for bound in (low, high)
    ]
    return [builder.op("Clip", builder.value_of(call.args[0]), *(bounds if bounds[1] is not None else bounds[:1]))]


def _reduction(operator: str) -> Rule:
    def rule(builder: GraphBuilder, call: Call) -> list[ir.Value]:
        axes = _argument(call, 1, "dim")
        axes = [axes] if isinstance(axes, int) else list(axes)
        keep = int(_argument(call, 2, "keepdim", False))
        return [builder.op(operator, builder.value_of(call.args[0]), builder.integers(*axes), keepdims=keep)]

    return rule


@_rule("vector_norm")
def _vector_norm(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    if _argument(call, 1, "ord", 2) != 2:
        raise TraceError(f"a norm in {call.scope} is of another order than 2", "express it with other functions")
    axis = _argument(call, 2, "dim")
    keep = int(_argument(call, 3, "keepdim", False))
    return [builder.op("ReduceL2", builder.value_of(call.args[0]), builder.integers(axis), keepdims=keep)]


_rule("mean")(_reduction("ReduceMean"))
_rule("sum")(_reduction("ReduceSum"))
_rule("amax")(_reduction("ReduceMax"))


@_rule("normalize")
def _normalise(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    """Division by a norm, which ONNX has as one operator; torch's epsilon only guards against a norm of 0."""
    order = _argument(call, 1, "p", 2.0)
    if order not in (1.0, 2.0):
        raise TraceError(f"normalize in {call.scope} takes the norm of order {order}", "ONNX has 1 and 2")
    axis = _argument(call, 2, "dim", 1)
    return [builder.op("LpNormalization", builder.value_of(call.args[0]), p=int(order), axis=axis)]


@_rule("layer_norm")
def _layer_norm(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    """Over the last axes, without a gain of its own."""
    x, axes = call.args[0], _argument(call, 1, "normalized_shape")
    if any(_argument(call, place, name) is not None for place, name in ((2, "weight"), (3, "bias"))):
        raise TraceError(f"a layer norm in {call.scope} has a gain or a bias", "multiply and add outside of it")
    ones = builder.constant(torch.ones(tuple(axes), dtype=call.results[0].dtype))
    epsilon = float(_argument(call, 4, "eps", 1e-5))
    return [builder.op("LayerNormalization", builder.value_of(x), ones, axis=-len(axes), epsilon=epsilon)]


@_rule("conv2d")
def _convolution(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    """Without a bias, padding, strides and gaps between the taps."""
    plain = ((2, "bias", None), (3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    if any(_argument(call, place, name, default) != default for place, name, default in plain):
        raise TraceError(f"a convolution in {call.scope} has a bias, padding or steps", "do that outside of it")
    image, kernel = (builder.value_of(item) for item in call.args[:2])
    return [builder.op("Conv", image, kernel, group=_argument(call, 6, "groups", 1))]


@_rule("floordiv", "floor_divide")
def _floor_divide(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    """Of whole numbers from 0, for which ONNX's Div, which cuts off, is the same."""
    if call.results[0].dtype not in (torch.int64, torch.int32):
        raise TraceError(f"a floor division in {call.scope} is not of whole numbers", "divide and take the floor")
    return [builder.op("Div", *_operands(builder, call, call.results[0].dtype))]


def _view(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    """The result is the argument in another shape."""
    source = call.args[0]
    return [builder.reshaped(builder.value_of(source), source.shape, call.results[0].shape)]


_rule("reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze")(_view)


def _rank(item: Ref | Constant) -> int:
    return len(item.shape)


def _permuted(builder: GraphBuilder, call: Call, order: list[int]) -> list[ir.Value]:
    """Axes in another order, which is a view where only axes of size 1 move."""
    sizes = call.args[0].shape
    if [axis for axis in order if sizes[axis] != 1] == [axis for axis in range(len(sizes)) if sizes[axis] != 1]:
        return _view(builder, call)
    return [builder.op("Transpose", builder.value_of(call.args[0]), perm=order)]


@_rule("transpose")
def _transpose(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    order = list(range(_rank(call.args[0])))
    a, b = call.args[1], call.args[2]
    order[a], order[b] = order[b], order[a]
    return _permuted(builder, call, order)


@_rule("T", "t", "mT")
def _matrix_transpose(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    order = list(range(_rank(call.args[0])))
    order[-1], order[-2] = order[-2], order[-1]
    return _permuted(builder, call, order)


@_rule("permute")
def _permute(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    order = call.args[1] if isinstance(call.args[1], (tuple, list)) else call.args[1:]
    return _permuted(builder, call, [axis % len(order) for axis in order])


@_rule("matmul", "bmm")
def _matmul(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    """A product; an outer product of vectors is a broadcast one."""
    left, right = call.args[:2]
    outer = _rank(left) > 1 and _rank(right) > 1 and left.shape[-1] == 1
    return _binary("Mul" if outer else "MatMul")(builder, call)


@_rule("expand", "expand_as")
def _expand(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    before, after = call.args[0].shape, call.results[0].shape
    before = (1,) * (len(after) - len(before)) + tuple(before)
    target = [1 if old == new else new for old, new in zip(before, after, strict=True)]  # 1 leaves an axis alone
    return [builder.op("Expand", builder.value_of(call.args[0]), builder.shape_value(target))]


@_rule("cat")
def _cat(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    values = [builder.value_of(item) for item in call.args[0]]
    axis = _argument(call, 1, "dim", 0)
    return [values[0] if len(values) == 1 else builder.op("Concat", *values, axis=axis)]


@_rule("stack")
def _stack(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    axis = _argument(call, 1, "dim", 0)
    values = [builder.op("Unsqueeze", builder.value_of(item), builder.integers(axis)) for item in call.args[0]]
    return [values[0] if len(values) == 1 else builder.op("Concat", *values, axis=axis)]


@_rule("split", "chunk")
def _split(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    if len(call.results) == 1:
        return [builder.value_of(call.args[0])]
    axis = _argument(call, 2, "dim", 0)
    sizes = [ref.shape[axis] for ref in call.results]
    if not all(isinstance(size, int) for size in sizes):
        raise TraceError(f"a split in {call.scope} cuts the batch axis", "keep streams together")
    inputs = [builder.value_of(call.args[0]), builder.integers(*(size for size in sizes if isinstance(size, int)))]
    return builder.emit("Split", inputs, outputs=len(sizes), attributes={"axis": axis})


@_rule("getitem")
def _getitem(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    source, index = call.args
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [item if item is Ellipsis else None for item in items]:
        place = next(i for i, item in enumerate(items) if item is Ellipsis)
        spare = _rank(source) - sum(item is not None and item is not Ellipsis for item in items)
        items[place : place + 1] = [slice(None)] * spare
    value, axis = builder.value_of(source), 0
    slices: list[tuple[int, int, int, int]] = []  # start, end, axis, step
    dropped: list[int] = []
    added: list[int] = []
    gathered: tuple[int, ir.Value] | None = None
    for item in items:
        if item is None:
            added.append(axis - len(dropped) + len(added))
            continue
        if isinstance(item, (Ref, Constant)):
            if gathered is not None or _is_bool(item):
                raise TraceError(f"an index in {call.scope} needs one integer tensor at most", "use torch.where")
            gathered = (axis, builder.value_of(item))
        elif isinstance(item, int):
            if source.shape[axis] != 1:
                slices.append((item, item + 1 if item != -1 else _INT_MAX, axis, 1))
            dropped.append(axis)
        elif item != slice(None):
            bounds = (item.start or 0, _INT_MAX if item.stop is None else item.stop, item.step or 1)
            if any(isinstance(bound, BatchSize) for bound in bounds):
                raise TraceError(f"a slice in {call.scope} depends on the batch size", "slice other axes")
            if not _everything(bounds, source.shape[axis]):
                slices.append((bounds[0], bounds[1], axis, bounds[2]))
        axis += 1
    if slices:
        value = builder.op("Slice", value, *(builder.integers(*part) for part in zip(*slices, strict=True)))
    if gathered is not None:
        if dropped or added:
            raise TraceError(f"an index in {call.scope} mixes a tensor with integers or None", "index in two steps")
        return [builder.op("Gather", value, gathered[1], axis=gathered[0])]
    after = call.results[0].shape
    if not dropped and not added:
        return [value]
    sizes = list(after)
    for place in reversed(added):
        del sizes[place]
    for place in dropped:
        sizes.insert(place, 1)
    return [builder.reshaped(value, tuple(sizes), after)]


def _everything(bounds: tuple[int, int, int], size: int | BatchSize) -> bool:
    """Whether a slice takes a whole axis."""
    start, end, step = bounds
    if step != 1 or not isinstance(size, int):
        return False
    return start in (0, -size) and end >= size


def _is_bool(item: Ref | Constant) -> bool:
    return (item.dtype if isinstance(item, Ref) else item.value.dtype) == torch.bool


@_rule("embedding")
def _embedding(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    return [builder.op("Gather", builder.value_of(call.args[1]), builder.value_of(call.args[0]), axis=0)]


@_rule("where")
def _where(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    values = [
        builder.value_of(item, broadcasts=True)
        if isinstance(item, (Ref, Constant))
        else builder.constant(torch.tensor(item, dtype=call.results[0].dtype))
        for item in call.args
    ]
    return [builder.op("Where", *values)]


@_rule("masked_fill")
def _masked_fill(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    x, mask, fill = call.args
    filling = builder.constant(torch.tensor(fill, dtype=call.results[0].dtype))
    return [builder.op("Where", builder.value_of(mask, broadcasts=True), filling, builder.value_of(x))]


@_rule("to", "float", "double", "half", "bfloat16", "long", "type")
def _to(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    value, dtype = builder.value_of(call.args[0]), call.results[0].dtype
    own = call.args[0].dtype if isinstance(call.args[0], Ref) else call.args[0].value.dtype
    return [value if own == dtype else builder.op("Cast", value, to=onnx_type(dtype))]


@_rule("fused_operator")
def _fused(builder: GraphBuilder, call: Call) -> list[ir.Value]:
    operator, attributes, inputs, _ = call.args
    values = [builder.value_of(item) for item in inputs]
    return builder.emit(operator, values, len(call.results), domain=DOMAIN, attributes=attributes)
