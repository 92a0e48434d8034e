"""The oracle: the memory as the paper prints it, one token at a time, with autograd on the inner loss.

No chunk algebra, no closed-form gradient, no state between calls: a loop over tokens that forms `M_t` explicitly
and asks `torch.autograd` for the gradient of its objective. Slow and obviously right; everything fast is compared
with it, gradients of an outer loss included. It shares parameters with `NeuralMemory`, and no code path.
"""

from __future__ import annotations

import math
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
    """Answers `[B, T, dim]` (heads merged, no norm), and per stream and head the final memory and momentum.

    The memory is what was accumulated, from which a retention's link makes the weights.
    """

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
            base, opened, outputs = memory, memory, []
            for t in range(stream.shape[0]):
                if t % layer.chunk == 0:
                    # [16]-[18]: gradients are taken at the memory of the chunk's start
                    opened, base = memory, _linked(layer, memory)
                row = (t // layer.chunk) * layer.chunk if options.gate_scope == "chunk" else t
                alpha, eta, theta = (gates[name][row, head] for name in ("forget", "momentum", "step_size"))
                threshold = gates["threshold"][row, head]
                gradient = _gradient(layer, base, k[t], v[t], threshold)
                momentum = [eta * s - theta * g for s, g in zip(momentum, gradient, strict=True)]  # [14]
                memory = [
                    (1 - alpha) * m + alpha * w + s for m, w, s in zip(memory, goal, momentum, strict=True)
                ]  # [13], and where forgetting goes to
                outputs.append(_apply(layer, _read(layer, memory, opened), q[t]))  # [15]
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
    logits = {name: raw[:, i] + layer.gate_bias[name] for i, name in enumerate(layer.gate_names)}
    gates = {name: torch.sigmoid(value) for name, value in logits.items()}
    off = torch.zeros(x.shape[0], heads, dtype=x.dtype)
    if "threshold" in logits:
        gates["threshold"] = torch.log1p(torch.exp(logits["threshold"]))
    if layer.options.step_size == "constant":
        gates["step_size"] = torch.sigmoid(layer.gate_bias["step_size"]) + off
    gates = {name: gates.get(name, off) for name in ("forget", "momentum", "step_size", "threshold")}
    floor = layer.options.step_floor
    above = torch.where(gates["step_size"] > floor, gates["step_size"] - floor, 0.0) / (1 - floor)
    gates["step_size"] = above * layer.options.max_step_size
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


def _linked(layer: NeuralMemory, accumulated: Fast) -> Fast:
    """The weights of what was accumulated: the retention's link of every matrix; a gain is itself."""
    options, depth = layer.options, layer.options.depth
    q = options.retention_q

    def link(matrix: Tensor) -> Tensor:
        if options.retention == "kl":
            powers = torch.exp(matrix)
            return math.sqrt(len(matrix)) * powers / powers.sum(0)  # every output's weights over its inputs
        norm = matrix.abs().pow(q).sum().pow(1 / q)
        if options.link == "printed":
            return matrix / norm.pow(q - 2)
        return torch.sign(matrix) * matrix.abs().pow(q - 1) / norm.pow(q - 2)

    if options.retention == "l2":
        return accumulated
    return [link(matrix) for matrix in accumulated[:depth]] + accumulated[depth:]


def _read(layer: NeuralMemory, accumulated: Fast, opened: Fast) -> Fast:
    """The weights that a token reads; `opened` is what was accumulated when its chunk began."""
    options, depth = layer.options, layer.options.depth
    if options.retention == "l2" or options.link_at == "read":
        return _linked(layer, accumulated)
    if options.retention == "lq" and options.link == "printed":  # the normaliser waits, the accumulator does not
        norms = [matrix.abs().pow(options.retention_q).sum() ** (1 / options.retention_q) for matrix in opened[:depth]]
        scaled = [a / n ** (options.retention_q - 2) for a, n in zip(accumulated[:depth], norms, strict=True)]
        return scaled + accumulated[depth:]
    return _linked(layer, opened)[:depth] + accumulated[depth:]


def _loss(layer: NeuralMemory, miss: Tensor, threshold: Tensor) -> Tensor:
    """The objective of one token, as a number, for the miss `M(k) - v`."""
    objective = layer.options.objective
    length: Tensor = torch.linalg.vector_norm(miss)
    smooth = torch.sqrt(miss * miss + 1e-6)
    if objective == "l1":
        return smooth.sum()
    if objective == "lp":
        return smooth.pow(layer.options.objective_p).sum()
    if objective == "l2" or bool(length <= threshold):
        return miss.pow(2).sum()
    if objective == "huber":
        return 2 * threshold * length - threshold * threshold
    return threshold * smooth.sum()  # huber-switch


def _gradient(layer: NeuralMemory, base: Fast, key: Tensor, value: Tensor, threshold: Tensor) -> Fast:
    """The gradient of the objective ([12] for l2) at the memory `base`, by autograd, with bounded surprise."""
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
        loss = _loss(layer, _apply(layer, fast, key, watch) - value, threshold)
        gradient = list(torch.autograd.grad(loss, fast, create_graph=training))
    for hook in hooks:  # the bound belongs to the inner gradient; left on, it would also bound the outer one
        hook.remove()
    return gradient
