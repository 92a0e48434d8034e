"""The oracle: the memory as the paper prints it, one token at a time, with autograd on the inner loss.

No chunk algebra, no closed-form gradient, no state between calls: a loop over tokens that forms `M_t` explicitly
and asks `torch.autograd` for the gradient of `||M(k) - v||^2`. Slow and obviously right; everything fast is compared
with it, gradients of an outer loss included. It shares parameters with `NeuralMemory`, and no code path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from titans_core.memory import NeuralMemory

Fast = list[Tensor]  # the fast weights of one head of one stream: matrices [d_in, d_out], then the gain [d] if any


@dataclass(frozen=True)
class ReferenceResult:
    """Answers `[B, T, dim]` (heads merged, no norm), and per stream and head the final memory and momentum."""

    answers: Tensor
    memory: list[list[Fast]]
    momentum: list[list[Fast]]


def reference_memory(layer: NeuralMemory, x: Tensor) -> ReferenceResult:
    """Run a memory layer literally over fresh streams `x` `[B, T, dim]`; T is any length."""
    options, width, heads = layer.options, layer.width, layer.heads
    answers: list[Tensor] = []
    memories: list[list[Fast]] = []
    momenta: list[list[Fast]] = []
    for stream in x:
        wide, gates = _projections(layer, stream)
        per_head, memory_heads, momentum_heads = [], [], []
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            q, k, v = (part[:, columns] for part in wide)
            q, k = _unit(q), _unit(k)
            memory: Fast = [matrix[head] for matrix in layer.initial]
            if options.residual_norm:
                memory.append(layer.initial_gain[head])
            momentum = [torch.zeros_like(weight) for weight in memory]
            goal = memory if options.forget_to == "start" else momentum
            base, outputs = memory, []
            for t in range(stream.shape[0]):
                if t % layer.chunk == 0:
                    base = memory  # [16]-[18]: gradients are taken at the memory of the chunk's start
                row = (t // layer.chunk) * layer.chunk if options.gate_scope == "chunk" else t
                alpha, eta, theta = (gates[name][row, head] for name in ("forget", "momentum", "step_size"))
                gradient = _gradient(layer, base, k[t], v[t])
                momentum = [eta * s - theta * g for s, g in zip(momentum, gradient, strict=True)]  # [14]
                memory = [
                    (1 - alpha) * m + alpha * w + s for m, w, s in zip(memory, goal, momentum, strict=True)
                ]  # [13], and where forgetting goes to
                outputs.append(_apply(layer, memory, q[t]))  # [15]
            per_head.append(torch.stack(outputs))
            memory_heads.append(memory)
            momentum_heads.append(momentum)
        answers.append(torch.cat(per_head, dim=-1))
        memories.append(memory_heads)
        momenta.append(momentum_heads)
    return ReferenceResult(torch.stack(answers), memories, momenta)


def _projections(layer: NeuralMemory, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Query, key and value `[T, dim]`, and the gates alpha, eta, theta `[T, H]` as plain numbers."""
    dim, heads, taps = layer.dim, layer.heads, layer.options.conv_kernel
    weight = layer.to_write.weight
    parts = [x @ layer.to_query.weight, x @ weight[:, :dim], x @ weight[:, dim : 2 * dim]]
    if taps > 1:
        convolved = []
        for index, part in enumerate(parts):
            kernel = layer.conv.weight[:, index * dim : (index + 1) * dim]
            rows = []
            for t in range(x.shape[0]):
                terms = [kernel[taps - 1 - lag] * part[t - lag] for lag in range(taps) if t - lag >= 0]
                rows.append(torch.stack(terms).sum(0))
            convolved.append(torch.stack(rows))
        parts = convolved
    wide = [part * torch.sigmoid(part) for part in parts]
    raw = (x @ weight[:, 2 * dim :]).reshape(x.shape[0], len(layer.gate_names), heads)
    gates = {name: torch.sigmoid(raw[:, i] + layer.gate_bias[name]) for i, name in enumerate(layer.gate_names)}
    off = torch.zeros(x.shape[0], heads, dtype=x.dtype)
    if layer.options.step_size == "constant":
        gates["step_size"] = torch.sigmoid(layer.gate_bias["step_size"]) + off
    gates = {name: gates.get(name, off) for name in ("forget", "momentum", "step_size")}
    gates["step_size"] = gates["step_size"] * layer.options.max_step_size
    return wide, gates


def _unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def _apply(layer: NeuralMemory, fast: Fast, x: Tensor, watch: Callable[[Tensor], None] = lambda z: None) -> Tensor:
    """`M(x)` for one vector `[d]`; `watch` sees the output of every matrix and of the residual norm."""
    hidden = x
    for index in range(layer.options.depth):
        hidden = hidden @ fast[index]
        watch(hidden)
        if index < layer.options.depth - 1:
            hidden = F.silu(hidden) if layer.options.activation == "silu" else F.gelu(hidden)
    if not layer.options.residual_norm:
        return hidden
    answer = x + fast[-1] * F.layer_norm(hidden, hidden.shape, eps=1e-5)
    watch(answer)
    return answer


def _gradient(layer: NeuralMemory, base: Fast, key: Tensor, value: Tensor) -> Fast:
    """The gradient of `||M(k) - v||^2` [12] at the memory `base`, by autograd, with bounded surprise."""
    training = torch.is_grad_enabled()  # an outer loss wants to differentiate through the inner gradient
    bound = layer.options.surprise_bound
    hooks: list[RemovableHandle] = []

    def shrink(gradient: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(gradient)
        return gradient * (bound / norm) if bound is not None and norm > bound else gradient

    def watch(z: Tensor) -> None:
        hooks.append(z.register_hook(shrink))  # type: ignore[no-untyped-call]

    with torch.enable_grad():
        fast = list(base) if training else [weight.detach().requires_grad_() for weight in base]
        loss = (_apply(layer, fast, key, watch) - value).pow(2).sum()
        gradient = list(torch.autograd.grad(loss, fast, create_graph=training))
    for hook in hooks:  # the bound belongs to the inner gradient; left on, it would also bound the outer one
        hook.remove()
    return gradient
