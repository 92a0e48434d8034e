"""Writing down what a PyTorch function does: a list of calls on tensors, with the batch axis left open.

The function runs twice, with batch sizes 2 and 3, under a `TorchFunctionMode` that records every torch call on a
tensor that depends on an input or a large parameter. Whatever does not (masks, tables, slices of small weights) is
simply computed, which is constant folding for free. A parameter in another shape stays a parameter, so that it keeps
its name and its place in the weight file. Integers that differ between the two runs are the ones that
depend on the batch; they come back as `BatchSize`, and everything else must agree, or the function is refused.

Why not `torch.onnx.export`: it spends minutes of symbolic shape arithmetic on these graphs (about 14 s for two
layers against milliseconds here) and names nodes only by modules entered through `__call__`. Knows nothing about
ONNX; `lower` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from titans_export.errors import TraceError

BATCHES = (2, 3)
FOLD_LIMIT = 65_536  # elements; a larger result of parameters alone stays a node, so no big weight is stored twice
HOLLOW_LIMIT = 20_000  # calls whose results are kept
SHAPE_ONLY = {"torch.zeros_like", "torch.ones_like", "torch.full_like", "torch.empty_like"}
IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__"}

_SAME = "make the computation the same for every batch"

Feeds = dict[str, Tensor]
Function = Callable[[Feeds], dict[str, Tensor]]
Example = Callable[[int], Feeds]  # the feeds of a batch of that size


@dataclass(frozen=True)
class BatchSize:
    """An integer that is `factor * batch + offset`."""

    factor: int
    offset: int


@dataclass(frozen=True)
class Ref:
    """A tensor computed, fed or learned inside the graph; `shape` has `BatchSize` where it depends on the batch."""

    index: int
    shape: tuple[int | BatchSize, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Constant:
    """A tensor that depends on no input. Where its size follows the batch, its values do not and one is kept."""

    value: Tensor
    shape: tuple[int | BatchSize, ...]


@dataclass(frozen=True)
class Call:
    """One torch call.

    Attributes:
        name: torch's name of the function, such as `torch.Tensor.matmul`.
        args, kwargs: its arguments, tensors replaced by `Ref` and `Constant`.
        results: its tensors, in order.
        scope: path of the module method that made it.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Ref, ...]
    scope: str


@dataclass(frozen=True)
class Recording:
    """A whole function: inputs, parameters by index, calls in order, outputs."""

    inputs: dict[str, Ref]
    parameters: dict[int, str]
    parameter_refs: dict[str, Ref]
    calls: list[Call]
    outputs: dict[str, Ref | Constant]


def record(function: Function, module: nn.Module, example: Example) -> Recording:
    """Record `function` over `module`'s parameters.

    Args:
        function: maps named tensors to named tensors, whatever their batch size.
        module: holds the parameters the function uses; its buffers count as constants.
        example: makes feeds for a batch size.

    Raises:
        TraceError: the function changes tensors in place, or does not treat the batch as a batch.
    """
    runs = [_record(function, module, example(batch)) for batch in BATCHES]
    return _Unifier(*runs).unified()


@dataclass
class _RawCall:
    name: str
    args: Any
    kwargs: dict[str, Any]
    results: list[Tensor]
    scope: str


@dataclass
class _Run:
    inputs: Feeds
    parameters: dict[str, Tensor]
    calls: list[_RawCall] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)


class _Recorder(TorchFunctionMode):
    def __init__(self, run: _Run, scopes: list[str]) -> None:
        super().__init__()
        self.run, self.scopes = run, scopes
        self.live = {id(tensor) for tensor in run.inputs.values()}  # depends on an input
        self.learned = {id(tensor) for tensor in run.parameters.values()}  # depends on parameters alone
        self.keep: list[Any] = []  # ids stay unique only while their tensors live

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = resolve_name(func) or getattr(func, "__name__", repr(func))
        used = [item for item in _flat((args, kwargs)) if isinstance(item, Tensor)]
        live = name not in SHAPE_ONLY and any(id(item) in self.live for item in used)
        asks = name.endswith(".__get__")  # a shape, a device, a transpose: nothing is computed
        result = _hollow(func, args, kwargs, used) if live and not asks else func(*args, **kwargs)
        results = [item for item in _flat(result) if isinstance(item, Tensor)]
        self.keep += [*results, *used]
        method = name.rsplit(".", 1)[-1]
        if method in IN_PLACE or (method.endswith("_") and not method.endswith("__")):
            raise TraceError(f"{name} changes a tensor in place", "write the exported computation without it")
        learned = any(id(item) in self.learned for item in used)
        if not results or any(result is item for item in used):  # `.to` of the same dtype, `.contiguous`
            return result
        kept = learned and (_reshaped(results, used) or max(item.numel() for item in results) > FOLD_LIMIT)
        if live or kept:
            self.run.calls.append(_RawCall(name, args, kwargs, results, self.scopes[-1] if self.scopes else ""))
            (self.live if live else self.learned).update(id(item) for item in results)
        return result


def _reshaped(results: list[Tensor], used: list[Tensor]) -> bool:
    """Whether a call only looks at one tensor in another shape."""
    if len(results) != 1 or len(used) != 1:
        return False
    view, whole = results[0], used[0]
    return view.numel() == whole.numel() and view.data_ptr() == whole.data_ptr() and view.is_contiguous()


@dataclass(frozen=True)
class _Result:
    """A tensor that a call gives: the argument it is itself, or None, and its shape and dtype."""

    same: int | None
    shape: tuple[int, ...]
    dtype: torch.dtype


_HOLLOW: dict[Any, Any] = {}  # results by call: layers and graphs make the same ones, and "meta" is slow


def _described(value: Any, places: dict[int, int]) -> Any:
    """Arguments as a key: of a tensor, which one it is and all that a shape can depend on."""
    if isinstance(value, Tensor):
        return (places[id(value)], value.shape, value.stride(), value.dtype)
    if isinstance(value, (tuple, list)):
        return (type(value), *(_described(item, places) for item in value))
    if isinstance(value, dict):
        return tuple((name, _described(item, places)) for name, item in value.items())
    if isinstance(value, slice):
        return (slice, _described((value.start, value.stop, value.step), places))
    return (type(value), value)


def _hollow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], used: list[Tensor]) -> Any:
    """A call's result with the right shapes and dtypes, and zeros in one number's room.

    No value that depends on an input matters to a recording. Computed, those of a 170 M model took minutes and the
    intermediate results of a decoder's prefill eight gigabytes.
    """
    places = {id(item): place for place, item in enumerate(used)}
    key = (func, _described((args, kwargs), places))
    results = _HOLLOW.get(key)
    if results is None:
        shadows = [item.to("meta") for item in used]
        shadow_places = {id(item): place for place, item in enumerate(shadows)}

        def shadow(value: Any) -> Any:
            return shadows[places[id(value)]] if isinstance(value, Tensor) else value

        def described(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return _Result(shadow_places.get(id(value)), tuple(value.shape), value.dtype)

        results = _mapped(described, func(*_mapped(shadow, args), **_mapped(shadow, kwargs)))
        if len(_HOLLOW) >= HOLLOW_LIMIT:
            _HOLLOW.clear()
        _HOLLOW[key] = results

    def hollow(value: Any) -> Any:
        if not isinstance(value, _Result):
            return value
        return torch.zeros((), dtype=value.dtype).expand(value.shape) if value.same is None else used[value.same]

    return _mapped(hollow, results)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """`value` with everything inside its tuples, lists and dictionaries changed."""
    if isinstance(value, (tuple, list)):
        items = [_mapped(change, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    return change(value)


def _record(function: Function, module: nn.Module, feeds: Feeds) -> _Run:
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    run = _Run(feeds, parameters)
    scopes: list[str] = []
    with torch.no_grad(), _scoped(module, scopes), _Recorder(run, scopes):
        run.outputs = function(feeds)
    return run


@contextmanager
def _scoped(module: nn.Module, scopes: list[str]) -> Iterator[None]:
    """While active, every method of every submodule pushes its module's path, so calls know where they were made."""
    wrapped: list[tuple[nn.Module, str, Any]] = []  # and what the module itself had under that name

    def wrap(owner: nn.Module, path: str, name: str) -> None:
        method = getattr(owner, name)

        def scoped(*args: Any, **kwargs: Any) -> Any:
            scopes.append(path)
            try:
                return method(*args, **kwargs)
            finally:
                scopes.pop()

        wrapped.append((owner, name, owner.__dict__.get(name)))
        object.__setattr__(owner, name, scoped)

    try:
        for path, owner in module.named_modules():
            done = set()
            for cls in type(owner).__mro__:
                if cls.__module__.startswith("torch."):
                    break
                for name, member in vars(cls).items():
                    if callable(member) and not name.startswith("__") and name not in done:
                        done.add(name)
                        wrap(owner, path, name)
        yield
    finally:
        for owner, name, own in wrapped:
            if own is None:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, own)


class _Unifier:
    """Two runs of one function, read side by side."""

    def __init__(self, first: _Run, second: _Run) -> None:
        self.runs = (first, second)
        self.refs: dict[int, Ref] = {}  # by id of the first run's tensor
        self.twin: dict[int, int] = {}  # id in the first run -> id in the second
        self.count = 0

    def unified(self) -> Recording:
        first, second = self.runs
        if len(first.calls) != len(second.calls):
            raise TraceError("the computation depends on the batch size", _SAME)
        inputs = {name: self._define(value, second.inputs[name]) for name, value in first.inputs.items()}
        parameters = {name: self._define(value, second.parameters[name]) for name, value in first.parameters.items()}
        calls = []
        for a, b in zip(first.calls, second.calls, strict=True):
            if a.name != b.name:
                raise TraceError(f"a batch of 2 calls {a.name} where a batch of 3 calls {b.name} (in {a.scope})", _SAME)
            args = self._merge(a.args, b.args, a)
            kwargs = {key: self._merge(value, b.kwargs[key], a) for key, value in a.kwargs.items()}
            results = tuple(self._define(x, y) for x, y in zip(a.results, b.results, strict=True))
            calls.append(Call(a.name, tuple(args), kwargs, results, a.scope))
        outputs = {name: self._tensor(value, second.outputs[name]) for name, value in first.outputs.items()}
        return Recording(inputs, {ref.index: name for name, ref in parameters.items()}, parameters, calls, outputs)

    def _define(self, a: Tensor, b: Tensor) -> Ref:
        if id(a) in self.refs:
            return self.refs[id(a)]
        ref = Ref(self.count, self._shape(a, b), a.dtype)
        self.count += 1
        self.refs[id(a)] = ref
        self.twin[id(a)] = id(b)
        return ref

    def _shape(self, a: Tensor, b: Tensor) -> tuple[int | BatchSize, ...]:
        if a.dim() != b.dim():
            raise TraceError(f"a tensor has {a.dim()} axes for a batch of 2 and {b.dim()} for a batch of 3", _SAME)
        return tuple(_dimension(x, y) for x, y in zip(a.shape, b.shape, strict=True))

    def _tensor(self, a: Tensor, b: Tensor) -> Ref | Constant:
        if id(a) in self.refs and self.twin[id(a)] == id(b):
            return self.refs[id(a)]
        shape = self._shape(a, b)
        for axis, size in enumerate(shape):
            if isinstance(size, BatchSize):  # keep one entry: a batch of constants has equal rows
                a, b = a.narrow(axis, 0, 1), _uniform(b, axis)
        if not torch.equal(a, b):
            raise TraceError("a constant of the computation depends on the batch size", "derive it from an input")
        return Constant(a.detach(), shape)

    def _merge(self, a: Any, b: Any, call: _RawCall) -> Any:
        if isinstance(a, Tensor):
            return self._tensor(a, b)
        if isinstance(a, (tuple, list)):
            merged = [self._merge(x, y, call) for x, y in zip(a, b, strict=True)]
            return merged if isinstance(a, list) else tuple(merged)
        if isinstance(a, slice):
            return slice(*(self._merge(getattr(a, n), getattr(b, n), call) for n in ("start", "stop", "step")))
        if isinstance(a, int) and not isinstance(a, bool):
            return _dimension(a, b)
        if a != b:
            raise TraceError(
                f"{call.name} in {call.scope} is called with {a!r} for a batch of 2 and {b!r} for 3", _SAME
            )
        return a


def _uniform(x: Tensor, axis: int) -> Tensor:
    first = x.narrow(axis, 0, 1)
    if not torch.equal(first.expand(x.shape), x):
        raise TraceError(
            "a constant of the computation differs between the streams of a batch", "derive it from an input"
        )
    return first


def _dimension(a: int, b: int) -> int | BatchSize:
    if a == b:
        return a
    factor = Fraction(b - a, BATCHES[1] - BATCHES[0])
    return BatchSize(int(factor), int(a - factor * BATCHES[0]))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _flat(item)
    else:
        yield value
