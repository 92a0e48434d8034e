"""The precisions a bundle can have, and a model at each of them.

fp16 and bf16 hold weights and activations; norms, gates, fast weights and momentum stay fp32, because the first
overflow and the others add up over a whole stream. int8 and int4 are weights alone (`quantise` does
it to the graphs); all arithmetic around them is fp32. Knows which parameters keep fp32. Knows no ONNX.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from titans_core.decoder import Decoder
from titans_core.decoder.side_memory import SideMemory
from titans_core.layers import Linear, RMSNorm
from titans_core.memory import AssociativeMemory
from titans_core.state import StateSpec
from titans_export.errors import ExportError
from titans_export.models.protocol import Feeds, StepGraph
from titans_export.models.titans import OurModel, TitansSteppable
from titans_export.passes.blocks import GGUF_KINDS, MIDDLE, Blocks, from_gguf, in_blocks, rounded, rounded_rows


@dataclass(frozen=True)
class Precision:
    """One `--dtype`.

    Attributes:
        name: as the manifest says it.
        compute: dtype of weights and activations in the graphs.
        states: dtype of activations that are state. bfloat16 ones travel as float32, which holds every one of them:
            NumPy, and so the runtime's host side, has no bfloat16.
        bits: of the integers that weight matrices are stored as, or None. What is looked up has 8.
        providers: what can run it; None is everything.
    """

    name: str
    compute: torch.dtype
    states: torch.dtype
    bits: Literal[4, 8] | None = None
    providers: tuple[str, ...] | None = None


_FEWEST_STEPS = 16  # of the smallest float16 up to a matrix's largest number
_LOST = 0.01  # share of a weight's norm; rounding to bf16 takes 0.002, so more is lost only where numbers become 0

PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", torch.float32, torch.float32),
        Precision("fp16", torch.float16, torch.float16),
        Precision("bf16", torch.bfloat16, torch.float32),
        Precision("int8", torch.float32, torch.float32, bits=8, providers=("cpu",)),
        Precision("int4", torch.float32, torch.float32, bits=4, providers=("cpu",)),
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


def reference(
    model: OurModel, wanted: Precision, quantised: Mapping[str, Literal[4, 8]] | None = None
) -> TitansSteppable:
    """fp32 arithmetic on the weights as the bundle stores them: what its graphs for CPUs have to compute.

    What meets integer weights is rounded as the integer kernels round it.

    Args:
        model: the model before rounding.
        wanted: the bundle's precision.
        quantised: parameters that it stores as integers, and of how many bits.
    """
    quantised, ready = quantised or {}, ready_blocks(model, wanted)
    if wanted.name == "fp32":
        return TitansSteppable(model)
    kept = _kept(model)

    def stored(name: str, value: Tensor) -> Tensor:
        if wanted.bits is not None:
            axis = 1 if name == "embedding" else 0
            return rounded(value, axis, quantised[name]) if name in quantised and name not in ready else value
        return value if name in kept else value.to(wanted.compute).to(value.dtype)

    copied = _with_parameters(model, stored)
    if wanted.bits is not None:
        _round_what_meets(copied, quantised, ready)
    return StoredStates(copied, wanted.states)


def ready_blocks(model: nn.Module, wanted: Precision) -> dict[str, Blocks]:
    """The parameters of a model that are in blocks already, and are still what those blocks say.

    Blocks of 8 bits where 4 are wanted are cut anew, but for an embedding.
    """
    if wanted.bits is None or not isinstance(model, Decoder):
        return {}
    parameters = dict(model.named_parameters())
    found = {}
    for name, (kind, rows) in model.stored.items():
        looked_up = name == "embedding"
        if kind not in GGUF_KINDS or not (looked_up or GGUF_KINDS[kind][0] <= wanted.bits):
            continue
        value = parameters[name].detach()
        value = value if looked_up else value.T
        blocks = from_gguf(kind, rows.reshape(-1), *value.shape)
        if torch.equal(blocks.numbers(), value.float()):
            found[name] = blocks
    return found


def _round_what_meets(model: OurModel, quantised: Mapping[str, Literal[4, 8]], ready: Mapping[str, Blocks]) -> None:
    """Let the products with these parameters take activations of 8 bits."""
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if isinstance(module, Linear) and name in quantised:
            module.register_forward_pre_hook(lambda _, inputs: tuple(rounded_rows(x) for x in inputs))
            centres = ready[name].centres() if name in ready else None
            if centres is not None:
                _multiply_sums(module, centres)
    if model.config.tie_embeddings and "embedding" in quantised:
        model.norm.register_forward_hook(lambda _, __, normed: rounded_rows(normed))


def _multiply_sums(module: Linear, centres: Tensor) -> None:
    """Let a product take what its middle codes mean times activations as they were before they were rounded."""
    lost: list[Tensor] = []

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        lost[:] = [(in_blocks(x) - in_blocks(rounded_rows(x))).sum(-1) @ centres.T.to(x.dtype)]

    module.register_forward_pre_hook(before, prepend=True)
    module.register_forward_hook(lambda _, __, out: out + lost.pop())


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
        if wanted.bits is not None and value.dim() == 2:
            _check_scales(name, value, wanted)
        if name in kept or wanted.compute == value.dtype:
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


def _check_scales(name: str, value: Tensor, wanted: Precision) -> None:
    """Whether float16 scales reach a matrix's numbers. Raises `ExportError`."""
    half, largest = torch.finfo(torch.float16), float(value.abs().max())
    top, least = half.max * (MIDDLE[wanted.bits or 8] - 1), half.smallest_normal * half.eps * _FEWEST_STEPS
    if largest > top or 0 < largest < least:
        raise ExportError(
            f"the weight {name} holds numbers up to {largest:g}, and {wanted.name} has scales for {least:.1g} to"
            f" {top:.1g}",
            "use --dtype fp32",
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
