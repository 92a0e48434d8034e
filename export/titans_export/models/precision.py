"""The precisions a bundle can have, and a model at each of them.

fp16 and bf16 hold weights and activations; norms, gates, fast weights and momentum stay fp32, because the first
overflow and the others add up over a whole stream. int8 is weights alone (`quantise` does it to the graphs); all
arithmetic around them is fp32. Knows which parameters keep fp32. Knows no ONNX.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from titans_core.decoder.side_memory import SideMemory
from titans_core.layers import Linear, RMSNorm
from titans_core.memory import AssociativeMemory
from titans_core.state import StateSpec
from titans_export.errors import ExportError
from titans_export.models.protocol import Feeds, StepGraph
from titans_export.models.titans import OurModel, TitansSteppable
from titans_export.passes.quantise import rounded, rounded_rows


@dataclass(frozen=True)
class Precision:
    """One `--dtype`.

    Attributes:
        name: as the manifest says it.
        compute: dtype of weights and activations in the graphs.
        states: dtype of activations that are state. bfloat16 ones travel as float32, which holds every one of them:
            NumPy, and so the runtime's host side, has no bfloat16.
        quantised: whether weight matrices are stored as 8-bit integers.
        providers: what can run it; None is everything.
    """

    name: str
    compute: torch.dtype
    states: torch.dtype
    quantised: bool = False
    providers: tuple[str, ...] | None = None


_LOST = 0.01  # share of a weight's norm; rounding to bf16 takes 0.002, so more is lost only where numbers become 0

PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", torch.float32, torch.float32),
        Precision("fp16", torch.float16, torch.float16),
        Precision("bf16", torch.bfloat16, torch.float32),
        Precision("int8", torch.float32, torch.float32, quantised=True, providers=("cpu",)),
    )
}


def precision(name: str) -> Precision:
    """The precision of that name. Raises `ExportError`."""
    if name not in PRECISIONS:
        raise ExportError(f"dtype {name!r} is not offered", f"choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def at_precision(model: OurModel, wanted: Precision) -> TitansSteppable:
    """The model as its graphs compute it: weights and activations in the precision's dtype.

    The parameters that keep their dtype are shared with `model`.
    """
    if wanted.compute == torch.float32:
        return TitansSteppable(model)
    kept = _kept(model)
    lowered = _with_parameters(model, lambda name, value: value if name in kept else value.to(wanted.compute))
    return StoredStates(lowered, wanted.states)


def reference(model: OurModel, wanted: Precision, quantised: Collection[str] = ()) -> TitansSteppable:
    """fp32 arithmetic on the weights as the bundle stores them: what its graphs for CPUs have to compute.

    What meets 8-bit weights is rounded as the integer kernels round it.

    Args:
        model: the model before rounding.
        wanted: the bundle's precision.
        quantised: parameters that it stores as 8-bit integers.
    """
    if wanted.name == "fp32":
        return TitansSteppable(model)
    kept = _kept(model)

    def stored(name: str, value: Tensor) -> Tensor:
        if wanted.quantised:
            return rounded(value, axis=1 if name == "embedding" else 0) if name in quantised else value
        return value if name in kept else value.to(wanted.compute).to(value.dtype)

    copied = _with_parameters(model, stored)
    if wanted.quantised:
        _round_what_meets(copied, quantised)
    return StoredStates(copied, wanted.states)


def _round_what_meets(model: OurModel, quantised: Collection[str]) -> None:
    """Let the products with these parameters take activations of 8 bits."""
    for path, module in model.named_modules():
        if isinstance(module, Linear) and f"{path}.weight" in quantised:
            module.register_forward_pre_hook(lambda _, inputs: tuple(rounded_rows(x) for x in inputs))
    if model.config.tie_embeddings and "embedding" in quantised:
        model.norm.register_forward_hook(lambda _, __, normed: rounded_rows(normed))


class StoredStates(TitansSteppable):
    """A model whose activations are kept in `dtype` between calls, whatever it computes in."""

    def __init__(self, model: OurModel, dtype: torch.dtype) -> None:
        super().__init__(model)
        self._stored, self._compute = dtype, next(model.parameters()).dtype
        self._names = {spec.name for spec in model.state_specs() if spec.dtype == "activation"}

    def initial_tensor(self, spec: StateSpec) -> Tensor:
        """The model's, in the dtype it is kept in."""
        start = super().initial_tensor(spec)
        return start.to(self._stored) if spec.name in self._names else start

    def graphs(self) -> Sequence[StepGraph]:
        """The model's, converting activations on the way in and out."""
        return [replace(graph, run=self._converting(graph.run)) for graph in super().graphs()]

    def _converting(self, run: Callable[[Feeds], Feeds]) -> Callable[[Feeds], Feeds]:
        def converting(feeds: Feeds) -> Feeds:
            return self._cast(run(self._cast(feeds, self._compute)), self._stored)

        return converting

    def _cast(self, feeds: Feeds, dtype: torch.dtype) -> Feeds:
        return {name: value.to(dtype) if name in self._names else value for name, value in feeds.items()}


def check_range(model: OurModel, wanted: Precision) -> None:
    """Whether every weight of `model` can be stored at that precision.

    Raises:
        ExportError: one is not finite, too large, or all but lost because it is too small.
    """
    kept = _kept(model)
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if not bool(torch.isfinite(value).all()):
            raise ExportError(
                f"the weight {name} holds {_first(value, ~torch.isfinite(value))}, which is not finite",
                "go back to an earlier step of the checkpoint, or train it again with a lower --lr",
            )
        if wanted.quantised or name in kept or wanted.compute == value.dtype:
            continue
        stored, limits = value.to(wanted.compute).to(value.dtype), torch.finfo(wanted.compute)
        if bool((beyond := ~torch.isfinite(stored)).any()):
            raise ExportError(
                f"the weight {name} holds {_first(value, beyond)}, and {wanted.name} ends at {limits.max:g}",
                f"use {_wider(wanted)}",
            )
        lost = float((stored - value).double().norm())
        if lost > _LOST * float(value.double().norm()):
            raise ExportError(
                f"the weight {name} holds {_first(value, stored != value)}, and {wanted.name} has no numbers but 0"
                f" below {limits.smallest_normal * limits.eps:g}",
                f"use {_wider(wanted)}",
            )


def _first(value: Tensor, where: Tensor) -> str:
    """The first number of a weight that stands out, and its place."""
    place = [int(i) for i in torch.nonzero(where)[0]]
    return f"{float(value[tuple(place)]):g} at {place}"


def _wider(wanted: Precision) -> str:
    return "--dtype bf16 or fp32" if wanted.name == "fp16" else "--dtype fp32"


def _kept(model: OurModel) -> set[str]:
    """Parameters that stay fp32: norms, and of a memory the gates' biases and the initial fast weights.

    Of a memory beside a decoder it is all of them, as all of its arithmetic is fp32.
    """
    kept = set()
    for path, module in model.named_modules():
        if isinstance(module, RMSNorm):
            kept |= {f"{path}.{name}" for name, _ in module.named_parameters()}
        if isinstance(module, AssociativeMemory):
            own, whole = [name for name, _ in module.named_parameters()], isinstance(module, SideMemory)
            kept |= {f"{path}.{name}" for name in own if whole or name.startswith(("gate_bias.", "initial"))}
    return kept


def _with_parameters(model: OurModel, change: Callable[[str, Tensor], Tensor]) -> OurModel:
    """A copy of the model with other parameters; those that do not change are shared."""
    memo: dict[int, object] = {}
    for name, parameter in model.named_parameters():
        changed = change(name, parameter.detach())
        same = changed.dtype == parameter.dtype and changed.data_ptr() == parameter.data_ptr()
        memo[id(parameter)] = parameter if same else nn.Parameter(changed, requires_grad=False)
    return copy.deepcopy(model, memo)
