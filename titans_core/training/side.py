"""Training of the memory beside a decoder: no gradient goes through the decoder, and what it reads is computed once.

The loss of a counted prediction is that of the memory's answer alone, through the decoder's own head. The right token
has to win by a margin, because the decoder will have an opinion of its own. At all other tokens the memory learns to
be unsure: there the decoder knows better. What was to be found and written is learned from hindsight besides. In the
first steps that is all, and how sure to be is learned from what the memory would about answer.

Knows the memory and the lower layers. Does not know tasks, steps or optimizers.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from titans_core.decoder.model import Decoder, DecoderLayer
from titans_core.decoder.side_memory import Projected, SideMemory
from titans_core.model import detach
from titans_core.state import State, pick, prefixed
from titans_core.training.hindsight import hindsight
from titans_core.training.objective import Trainable
from titans_core.training.write_cost import WriteMeter

ALONE = 0.6  # share of the steps, the first ones, in which keys and gates learn from hindsight alone
MARGIN = 6.0  # logits by which the right token has to be ahead: the decoder does not fade altogether
UNSURE = 30.0  # what a wanted answer that the memory is unsure of counts: for each, about as many want none
OTHERS = 2048  # tokens of the vocabulary that a right one is told from, besides those of the batch
_LOWER, _SIDE = "lower.", "side."


class LowerLayers:
    """The part of a decoder that a memory reads, run over whole chunks without gradients."""

    def __init__(self, decoder: Decoder, read: tuple[int, ...]) -> None:
        self._decoder, self._read = decoder, read
        self._layers = [layer for layer in list(decoder.layers)[: max(read)] if isinstance(layer, DecoderLayer)]

    @torch.no_grad()
    def hidden(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Inputs of the read layers `[B, T, n * dim]` for ids `[B, T]`, and the state after them.

        Args:
            ids: whole chunks from a chunk boundary.
            state: `initial_state` or what an earlier call returned; it holds `position`.
        """
        pieces = []
        for piece in torch.split(ids, self._decoder.config.prefill, dim=1):
            x, seen = self._decoder.embedding[piece], []
            changed: State = {}
            for number in range(max(self._read) + 1):
                if number in self._read:
                    seen.append(x)
                if number < len(self._layers):
                    x, new = self._layers[number].chunks(x, pick(state, f"{number}."), state["position"])
                    changed |= prefixed(new, f"{number}.")
            pieces.append(torch.cat(seen, dim=-1))
            state = {**state, **changed, "position": state["position"] + piece.shape[1]}
        return torch.cat(pieces, dim=1), state

    def initial_state(self, batch: int) -> State:
        """Of `batch` fresh streams."""
        prefixes = tuple(f"{number}." for number in range(max(self._read)))
        state = self._decoder.initial_state(batch)
        return {name: value for name, value in state.items() if name.startswith(prefixes) or name == "position"}


@dataclass(frozen=True)
class _Kept:
    features: Tensor  # fp16 [B, T, n * dim]


class SideObjective(Trainable):
    """The memory with the loss it is trained on; called as `training.objective.Objective`.

    Attributes:
        cached_tokens: tokens whose features are kept, each `cached_bytes / cached_tokens` bytes large.
    """

    def __init__(self, model: SideMemory, decoder: Decoder) -> None:
        super().__init__()
        self.model = model
        self._frozen = (decoder, LowerLayers(decoder, model.config.read))  # a tuple, so that nothing of it is trained
        self._meter = WriteMeter(model)
        self._cache: dict[bytes, _Kept] = {}

    @property
    def cached_tokens(self) -> int:
        """Tokens whose features are kept."""
        return sum(kept.features.shape[0] * kept.features.shape[1] for kept in self._cache.values())

    @property
    def cached_bytes(self) -> int:
        """Memory that they take."""
        return sum(kept.features.nbytes for kept in self._cache.values())

    def forward(
        self, inputs: Tensor, targets: Tensor, mask: Tensor, reset: Tensor | None, state: State | None
    ) -> tuple[Tensor, Tensor, State]:
        """One slice of B streams; arguments and results are those of `Objective.forward`."""
        decoder, lower = self._frozen
        learning = torch.is_grad_enabled()
        carried = state if state is not None and reset is not None else self._fresh(len(inputs))
        if reset is not None and state is not None and bool(reset.any()):
            carried = _reset(carried, self._fresh(len(inputs)), reset)
        if learning and state is None:
            x = self._remembered(inputs)
            after: State = {}
        else:
            hidden, after = lower.hidden(inputs, pick(carried, _LOWER))
            x = self.model.features(hidden)
        own = pick(carried, _SIDE)
        projected = self.model.project(x, decoder.embedding[inputs], own["conv_state"])
        lessons = None
        if learning:
            step_size = projected[3][..., -1] + self.model.gate_bias["step_size"][:, None]
            lessons = hindsight(projected[0], projected[1], inputs, targets, mask, step_size)
            if self.done < ALONE and state is None:
                sure = self._sure(self._recalled(projected), projected[4], mask)
                return lessons.finding + lessons.writing + sure, lessons.found, {}
        with self._meter.watching() if self.write_cost and learning else nullcontext():
            answers, changed, _ = self.model.run_projected(projected, own)
        answer = self.model.answer(answers, projected[4])
        following = prefixed(after, _LOWER) | prefixed(own | changed, _SIDE)
        if lessons is None:
            logits = decoder.logits(answer[mask])
            loss = F.cross_entropy(logits, targets[mask], reduction="sum")
            return loss, (logits.argmax(-1) == targets[mask]).sum(), detach(following)
        loss, correct = self._loss(answer[mask], targets[mask], inputs)
        loss = loss + self._sure(answers, projected[4], mask)
        loss = loss + lessons.finding + lessons.writing + self.write_cost * self._meter.mean * mask.sum()
        return loss, correct, detach(following)

    def _sure(self, answers: Tensor, sure: Tensor, mask: Tensor) -> Tensor:
        """What it costs to be unsure where an answer is wanted, and sure elsewhere; the answers stay as they are."""
        confidence = self.model.confidence(answers.detach(), sure)[..., 0]
        return F.binary_cross_entropy_with_logits(
            confidence, mask.to(confidence.dtype), reduction="sum", pos_weight=confidence.new_tensor(UNSURE)
        )

    @torch.no_grad()
    def _recalled(self, projected: Projected) -> Tensor:
        """About what the memory would answer, all tokens at once: what was written is added up, nothing replaced."""
        queries, keys, values, logits, *_ = projected
        written = 2 * self.model.gates(logits).step_size[..., None] * values
        answers: Tensor = (queries @ keys.transpose(-1, -2)).tril() @ written
        return answers

    def _loss(self, answers: Tensor, wanted: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Among the batch's tokens and some of the others: the whole vocabulary costs more than all the rest."""
        decoder, _ = self._frozen
        vocabulary = decoder.config.vocab_size
        others = torch.randint(vocabulary, (min(OTHERS, vocabulary),))
        candidates = torch.unique(torch.cat([wanted, inputs.flatten(), others]))
        places = torch.searchsorted(candidates, wanted)
        head = decoder.embedding[candidates].T if decoder.head is None else decoder.head.weight[:, candidates]
        logits = answers @ head
        correct = (logits.argmax(-1) == places).sum()
        behind = logits - MARGIN * F.one_hot(places, len(candidates))
        return F.cross_entropy(behind, places, reduction="sum"), correct

    def _remembered(self, inputs: Tensor) -> Tensor:
        """Features of fresh streams, kept from the first time that they were asked for."""
        key = hashlib.blake2b(inputs.numpy().tobytes(), digest_size=16).digest()
        if key not in self._cache:
            _, lower = self._frozen
            hidden, _ = lower.hidden(inputs, lower.initial_state(len(inputs)))
            self._cache[key] = _Kept(self.model.features(hidden).half())
        return self._cache[key].features.float()

    def _fresh(self, batch: int) -> State:
        _, lower = self._frozen
        return prefixed(lower.initial_state(batch), _LOWER) | prefixed(self.model.initial_state(batch), _SIDE)


def _reset(state: State, fresh: State, reset: Tensor) -> State:
    """The rows of `reset` `[B]` from `fresh`."""
    return {
        name: torch.where(reset.reshape(-1, *[1] * (value.ndim - 1)), fresh[name], value)
        for name, value in state.items()
    }
