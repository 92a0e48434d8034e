"""Small models for the audit: sound ones of every kind, and one for each fault that was met in other packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_core.config import MemoryConfig, TitansConfig
from titans_core.model import TitansModel

WIDTH, IDS = 8, 12
Memory = tuple[Tensor, Tensor]


# ---------------------------------------------------------------- sound


class CausalTransformer(nn.Module):
    """PyTorch's encoder under a causal mask, with positions."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.embedding, self.places = nn.Embedding(IDS, WIDTH), nn.Embedding(64, WIDTH)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, IDS)

    def forward(self, ids: Tensor) -> Tensor:
        count = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(count, dtype=self.head.weight.dtype)
        x = self.embedding(ids) + self.places(torch.arange(count))
        out: Tensor = self.head(self.layers(x, mask=mask, is_causal=True))
        return out


class CachedAttention(nn.Module):
    """Attention whose keys and values are the state."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, past_key_values: Memory | None = None) -> tuple[Tensor, Memory]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        before = 0 if past_key_values is None else past_key_values[0].shape[1]
        if past_key_values is not None:
            k, v = torch.cat([past_key_values[0], k], 1), torch.cat([past_key_values[1], v], 1)
        seen = torch.arange(k.shape[1]) <= before + torch.arange(q.shape[1])[:, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen), (k, v)


class CausalConvolution(nn.Module):
    """A convolution that is padded on the left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convolution(F.pad(x.transpose(1, 2), (3, 0)))
        return out.transpose(1, 2)


class MeanSoFar(nn.Module):
    """The mean of all inputs up to each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])
        return out


class FastWeights(nn.Module):
    """A linear memory by the delta rule; it takes gradients of its own, and the state is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.memory: Tensor | None = None

    def forget(self) -> None:
        self.memory = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        memory = torch.zeros(x.shape[0], WIDTH, WIDTH, dtype=x.dtype) if self.memory is None else self.memory
        found = []
        for t in range(x.shape[1]):
            weights = memory.detach().requires_grad_()
            with torch.enable_grad():
                loss = ((k[:, t, None] @ weights).squeeze(1) - v[:, t]).pow(2).sum()
                (slope,) = torch.autograd.grad(loss, weights)
            memory = 0.9 * memory - 0.1 * slope
            found.append(q[:, t, None] @ memory)
        self.memory = memory
        return torch.cat(found, 1)


class ZeroAtFirst(nn.Module):
    """A residual block whose branch begins at zero."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch, self.out = branch, nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        out: Tensor = x + self.out(y[0] if isinstance(y, tuple) else y)
        return out


class Mapped(nn.Module):
    """Outputs in a dictionary beside others, in half the precision whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, IDS)

    def forward(self, ids: Tensor) -> dict[str, Any]:
        x = self.embedding(ids)
        return {"loss": None, "logits": self.head(x).float(), "hidden_states": [x]}


def ours(variant: Any) -> TitansModel:
    """A model of this package."""
    sizes = {"vocab_size": IDS, "dim": 8, "layers": 1, "heads": 2, "chunk": 4, "window": 8, "ffn_hidden": 16}
    persistent = 0 if variant == "lmm" else 2
    config = TitansConfig(variant=variant, memory=MemoryConfig(heads=2), persistent_tokens=persistent, **sizes)
    return TitansModel(config)


SOUND: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(WIDTH, 6, batch_first=True),
    "gru": lambda: nn.GRU(WIDTH, 6, 2, batch_first=True, dropout=0.5),
    "causal-transformer": CausalTransformer,
    "cached-attention": CachedAttention,
    "causal-convolution": CausalConvolution,
    "mean-so-far": MeanSoFar,
    "token-by-token": lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.GELU(), nn.LayerNorm(4)),
    "zero-at-first": lambda: ZeroAtFirst(CausalConvolution()),
    "dictionary": Mapped,
    "our-mac": lambda: ours("mac"),
    "our-mag": lambda: ours("mag"),
    "our-lmm": lambda: ours("lmm"),
}


# ---------------------------------------------------------------- faults


class SeesTheNext(nn.Module):
    """A convolution that is padded on both sides (titans-memory, open-titans' Atlas)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.convolution = nn.Embedding(IDS, WIDTH), nn.Conv1d(WIDTH, IDS, 3, padding=1)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.convolution(self.embedding(ids).transpose(1, 2))
        return out.transpose(1, 2)


class AnsweredAfterTheChunk(nn.Module):
    """Every token reads what its whole chunk has written (titans-memory, Taderich73/OpenTitans)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        memory, found = torch.zeros(x.shape[0], WIDTH, WIDTH, dtype=x.dtype), []
        for start in range(0, x.shape[1], 4):
            piece = slice(start, start + 4)
            memory = memory + k[:, piece].transpose(1, 2) @ v[:, piece]
            found.append(q[:, piece] @ memory)
        return torch.cat(found, 1)


class SharedOverTheBatch(nn.Module):
    """A memory that is written with the mean of the streams (titans-trainer, aheschl1/titans)."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, dim=-1)
        written = (k.unsqueeze(-1) * v.unsqueeze(-2)).mean(0).cumsum(0)  # [T, d, d]
        return (x.unsqueeze(2) @ written).squeeze(2)


class ScaledByTheBatch(nn.Module):
    """What depends on how many streams there are, and not on what is in them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) / x.shape[0]
        return out


class ChunkedByTheLength(nn.Module):
    """Chunks are a divisor of the call's length (tptt)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        chunk = next(size for size in range(8, 0, -1) if x.shape[1] % size == 0)
        out: Tensor = self.linear(x.unflatten(1, (-1, chunk)).cumsum(2).flatten(1, 2))
        return out


class FixedLength(nn.Module):
    """A learned mixture over a fixed number of places (tf-titans)."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = nn.Parameter(torch.randn(24, 24).tril())

    def forward(self, x: Tensor) -> Tensor:
        return self.mixture.tril() @ x


class DropsItsCache(CachedAttention):
    """A call that goes on has the state, and not the keys (llama-titans, open-titans)."""

    def forward(self, x: Tensor, past_key_values: Memory | None = None) -> tuple[Tensor, Memory]:
        return super().forward(x, None)


class DropoutLeftOn(nn.Module):
    """The functional form forgets to ask whether it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.1)


class NormalisedOverTime(nn.Module):
    """Statistics of the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x - 0.01 * x.mean(1, keepdim=True))
        return out


# Model -> the checks that it fails.
FAULTS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "sees-the-next": (SeesTheNext, {"causal", "prefix"}),
    "answered-after-the-chunk": (AnsweredAfterTheChunk, {"causal", "prefix"}),
    "normalised-over-time": (NormalisedOverTime, {"causal", "prefix"}),
    "shared-over-the-batch": (SharedOverTheBatch, {"batch"}),
    "scaled-by-the-batch": (ScaledByTheBatch, {"batch"}),
    "chunked-by-the-length": (ChunkedByTheLength, {"prefix"}),
    "fixed-length": (FixedLength, {"prefix"}),
    "drops-its-cache": (DropsItsCache, {"split"}),
    "dropout-left-on": (DropoutLeftOn, {"repeat"}),
    "keeps-its-memory": (FastWeights, {"repeat"}),
    "zero-hides-it": (lambda: ZeroAtFirst(AnsweredAfterTheChunk()), {"causal", "prefix"}),
}
