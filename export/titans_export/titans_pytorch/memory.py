"""titans-pytorch's `NeuralMemory` as two functions of external state: `retrieve` for tokens, `close` for a chunk.

A chunk of c tokens is stored when its last token arrives. One gradient per weight matrix is taken for the whole chunk,
at the weights in use (those of the last batch boundary), each token's loss weighted by its own step size:

    u_k = (1 - α_k) u_{k-1} + S_k,    S_k = η_k S_{k-1} - ∇ Σ_i θ_i mean((M(k_i) - v_i)²)

with α, η from the chunk's pooled inputs, S of any order, and between S and u the optional combination of orders and
spectral norm. Token t (from 0) reads u of all chunks that end at t or before, its own included.

Knows one memory and its parameters. Does not know where a chunk's tokens wait, when it closes, or any graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_export.titans_pytorch.options import MemoryOptions
from titans_export.titans_pytorch.parameters import Reader

SMALLEST = 1e-30  # of a gradient's largest element; below it a gradient counts as that large
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_EPSILON = 1e-7

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "SiLU": F.silu,
    "GELU": F.gelu,
    "ReLU": F.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class Fast:
    """A memory's state, tensors in the order of the network's weights.

    update: u, `[B, H, …]`.
    momentum: S of every order, `[B, o, H, …]`; empty without momentum.
    in_use: the weights that gradients are taken at, `[B, H, …]`.
    """

    update: list[Tensor]
    momentum: list[Tensor] = field(default_factory=list)
    in_use: list[Tensor] = field(default_factory=list)


def rms_norm(x: Tensor, gain: Tensor | None = None) -> Tensor:
    """torch's RMSNorm with its default epsilon, the machine's; in the words that ONNX Runtime makes one operator of."""
    x = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)
    return x if gain is None else x * gain


def split_last(x: Tensor, *sizes: int) -> Tensor:
    """The last axis as several."""
    return x.reshape(*x.shape[:-1], *sizes)


class Memory(nn.Module):
    """The parameters of one memory and what it computes."""

    def __init__(self, options: MemoryOptions, read: Reader) -> None:
        super().__init__()
        self.options = o = options
        pairs = o.inner * o.num_kv_per_token
        sub = ".0" if o.activation else ""
        self.to_query = read.matrix(f"to_queries{sub}.weight", o.dim, o.inner)
        self.to_key = read.matrix(f"to_keys{sub}.weight", o.dim, pairs)
        self.to_value = read.matrix(f"to_values{sub}.weight", o.dim, pairs)
        self.retrieve_norm = read.parameter("retrieve_norm.weight", (o.dim,)) if o.pre_rmsnorm else None
        self.store_norm = read.parameter("store_norm.weight", (o.dim,)) if o.pre_rmsnorm else None
        self.out_gain = self._head_gain(read, "multihead_rmsnorm", o.post_rmsnorm)
        self.query_gain = self._head_gain(read, "q_norm", o.qk_rmsnorm)
        self.key_gain = self._head_gain(read, "k_norm", o.qk_rmsnorm)
        several = o.heads > 1
        self.combine = read.matrix("combine_heads.weight", o.inner, o.dim) if several else None
        self.gate = read.matrix("retrieve_gate.0.weight", o.dim, o.heads) if several else None
        self._linear(read, "step_size", "to_adaptive_step.0", o.heads * o.num_kv_per_token)
        self._linear(read, "decay", "to_decay_factor.0", o.heads)
        self._linear(read, "momentum", "to_momentum.0", o.heads * o.momentum_order)
        self._linear(read, "combination", "to_learned_momentum_combine.0", o.heads * o.combined_orders)
        modulated = o.heads * len(o.weight_shapes) if o.per_parameter_lr_modulation else 0
        self._linear(read, "modulation", "to_layer_modulation.0", modulated)
        self._linear(read, "mix", "to_learned_weight_residual_mix.0", o.heads * o.accept_weight_residual)
        self._linear(read, "pool", "reduce_to_chunk_rep.to_attn_logits", o.dim * o.attn_pool_chunks)
        heads = (o.heads,) if o.per_head_learned_parameters else ()
        self.initial = nn.ParameterList()
        for index, shape in enumerate(o.weight_shapes):
            value = read.tensor(f"memory_model_parameters.{index}", (*heads, *shape))
            value = value.expand(o.heads, *shape).clone()
            self.initial.append(nn.Parameter(value, requires_grad=False))
        read.skip("memory_model")

    def _head_gain(self, read: Reader, name: str, there: bool) -> nn.Parameter | None:
        """The factor of a norm per head, `[H, d]`.

        It is applied before heads become an axis of the batch: ONNX Runtime moves a transpose through a product by
        transposing the parameter, and then finds the shared one in its place.
        """
        if not there:
            return None
        o = self.options
        gain = read.tensor(f"{name}.gamma", (o.heads, 1, o.dim_head))
        return nn.Parameter(gain.squeeze(1) + 1.0, requires_grad=False)

    def _linear(self, read: Reader, name: str, key: str, outputs: int) -> None:
        """A linear layer as the attributes `{name}_weight` and `{name}_bias`; none for no outputs."""
        dim = self.options.dim
        self.register_parameter(f"{name}_weight", read.matrix(f"{key}.weight", dim, outputs) if outputs else None)
        self.register_parameter(f"{name}_bias", read.parameter(f"{key}.bias", (outputs,)) if outputs else None)

    def _apply_linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.get_parameter(f"{name}_weight") + self.get_parameter(f"{name}_bias")

    def _activated(self, x: Tensor) -> Tensor:
        return x if self.options.activation is None else _ACTIVATIONS[self.options.activation](x)

    def _heads(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """`[B, n, H * u * d]` to `[B, H, n * u, d]`, normalised per head if there is a `gain`."""
        o = self.options
        x = split_last(x, o.heads, -1, o.dim_head)
        if gain is not None:
            x = rms_norm(x, gain.unsqueeze(1))
        return x.transpose(1, 2).flatten(2, 3)

    def retrieve(self, view: Tensor, update: list[Tensor]) -> Tensor:
        """What the memory answers.

        Args:
            view: `[B, n, dim]`, what queries are made from.
            update: the weights that answer, `[B, H, …]`.

        Returns:
            `[B, n, dim]`.
        """
        x = rms_norm(view, self.retrieve_norm) if self.retrieve_norm is not None else view
        queries = self._heads(self._activated(x @ self.to_query), self.query_gain)
        answers = self.options.network.forward(update, queries).transpose(1, 2)  # [B, n, H, d]
        if self.out_gain is not None:
            answers = rms_norm(answers, self.out_gain)
        if self.gate is None or self.combine is None:
            return answers.squeeze(2)
        answers = answers * torch.sigmoid(x @ self.gate).unsqueeze(-1)
        return answers.flatten(2) @ self.combine

    def close(
        self, key_view: Tensor, value_view: Tensor, now: Fast, before: list[Tensor] | None, boundary: Tensor | None
    ) -> Fast:
        """Store one chunk.

        Args:
            key_view, value_view: the chunk, `[B, c, dim]`.
            now: the state before it.
            before: the weights of the memory in an earlier layer as they stood before the chunk, if this one mixes
                them in.
            boundary: `[B]` bool, whether a batch ends with this chunk; None if it always or never does.

        Returns:
            The state after it.
        """
        o = self.options
        keyed = rms_norm(key_view, self.store_norm) if self.store_norm is not None else key_view
        valued = keyed
        if value_view is not key_view:
            valued = rms_norm(value_view, self.store_norm) if self.store_norm is not None else value_view
        pooled = self._pooled(keyed)  # [B, dim]
        base = now.in_use
        if before is not None:
            mix = torch.sigmoid(self._apply_linear("mix", pooled))
            base = [w + _spread(mix, w) * b for w, b in zip(base, before, strict=True)]
        update, momentum = [], []
        surprises = self._surprises(keyed, valued, pooled, base)
        decay = 1.0 - torch.sigmoid(self._apply_linear("decay", pooled))
        for index, surprise in enumerate(surprises):
            step = surprise
            if o.momentum_order:
                orders = self._momenta(surprise, now.momentum[index], pooled)
                momentum.append(torch.stack(orders, dim=1))
                step = self._combined(surprise, orders, pooled)
            if o.spectral_norm_surprises and step.dim() == 4:
                step = newton_schulz(step)
            update.append(_spread(decay, step) * now.update[index] + step)
        return Fast(update, momentum, self._next_in_use(now, update, boundary))

    def _next_in_use(self, now: Fast, update: list[Tensor], boundary: Tensor | None) -> list[Tensor]:
        o = self.options
        if o.batch_size is None:
            return now.in_use
        if o.batch_size == o.store_chunk or boundary is None:
            return update
        return [
            torch.where(boundary.reshape(-1, *[1] * (u.dim() - 1)), u, w)
            for u, w in zip(update, now.in_use, strict=True)
        ]

    def _pooled(self, x: Tensor) -> Tensor:
        if not self.options.attn_pool_chunks:
            return x.mean(1)
        return (x * torch.softmax(self._apply_linear("pool", x), dim=1)).sum(1)

    def _surprises(self, keyed: Tensor, valued: Tensor, pooled: Tensor, base: list[Tensor]) -> list[Tensor]:
        """Minus the gradient of every weight, `[B, H, …]`, as far as it goes into the momentum."""
        o = self.options
        per = o.num_kv_per_token
        step_size = torch.sigmoid(self._apply_linear("step_size", keyed)) * o.max_lr
        step_size = split_last(step_size, o.heads, per).transpose(1, 2).flatten(2)  # [B, H, c * u]
        keys = self._heads(self._activated(keyed @ self.to_key), self.key_gain)
        values = self._heads(self._activated(valued @ self.to_value))
        if o.store_with_lookahead_value:
            if keys.shape[2] == 1:
                return [torch.zeros_like(weight) for weight in base]
            step_size, keys, values = step_size[:, :, :-1], keys[:, :, :-1], values[:, :, 1:]
        scale = (step_size * (-2.0 / o.dim_head)).unsqueeze(-1)
        grads, _ = o.network.gradient(base, keys, lambda out: scale * (out - values))
        if o.max_grad_norm is not None:
            grads = [soft_clamped(grad, o.max_grad_norm) for grad in grads]
        if o.per_parameter_lr_modulation:
            factor = torch.sigmoid(self._apply_linear("modulation", pooled)) * o.max_mem_layer_modulation
            factor = split_last(factor, o.heads, len(grads))
            grads = [_spread(factor[:, :, index], grad) * grad for index, grad in enumerate(grads)]
        return grads

    def _momenta(self, surprise: Tensor, past: Tensor, pooled: Tensor) -> list[Tensor]:
        """Momentum of every order: each gathers the one below it."""
        o = self.options
        gates = split_last(torch.sigmoid(self._apply_linear("momentum", pooled)), o.heads, o.momentum_order)
        orders: list[Tensor] = []
        for order in range(o.momentum_order):
            gathered = orders[-1] if orders else surprise
            orders.append(_spread(gates[:, :, order], gathered) * past[:, order] + gathered)
        return orders

    def _combined(self, surprise: Tensor, orders: list[Tensor], pooled: Tensor) -> Tensor:
        o = self.options
        if not o.combined_orders:
            return orders[-1]
        parts = [surprise, *orders] if o.combined_orders > o.momentum_order else orders
        share = split_last(self._apply_linear("combination", pooled), o.heads, o.combined_orders)
        share = torch.softmax(share, dim=-1)
        total = _spread(share[:, :, 0], parts[0]) * parts[0]
        for index, part in enumerate(parts[1:], 1):
            total = total + _spread(share[:, :, index], part) * part
        return total


def _spread(x: Tensor, like: Tensor) -> Tensor:
    """`[B, H]` with as many axes as `like`."""
    return x.reshape(-1, x.shape[1], *[1] * (like.dim() - 2))


def soft_clamped(grad: Tensor, limit: float) -> Tensor:
    """A gradient whose norm per stream and head is pressed into limit/2 .. limit.

    That blows up gradients however small, whose squares would not be numbers any more: the norm is taken of the
    gradient divided by its largest element.
    """
    flat = grad.flatten(2)
    largest = flat.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
    scaled = flat / largest
    norm = torch.sqrt((scaled * scaled).sum(-1)).clamp(min=1.0) * largest.squeeze(-1)
    half = limit / 2
    return grad * _spread((torch.tanh(norm / half) * half + half) / norm, grad)


def newton_schulz(x: Tensor) -> Tensor:
    """The nearest matrix with singular values near 1, by five steps of the quintic iteration."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.transpose(-1, -2) if tall else x
    norm = torch.sqrt((x * x).sum((-2, -1), keepdim=True))
    x = x / norm.clamp(min=NEWTON_SCHULZ_EPSILON)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.transpose(-1, -2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(-1, -2) if tall else x
