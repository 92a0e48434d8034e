"""What a memory should have written, seen from later: two losses that do not go through the memory itself.

A counted prediction needs a token that stood in the stream before. Its query has to find the key of that token among
all others that are written, and that token is what was worth writing; no other one was. Both lessons are clear from the
first step on, where the memory's own answer is still lost among all that an untrained memory writes. They are cheap,
too: nothing is written and nothing is read.

Knows queries, keys, token ids and gates. Does not know how they are made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits between a key that is the query and one that has nothing to do with it. A memory adds up what it reads in
# proportion to the likeness of keys, so likeness has to be far apart, which a sharp loss would not ask for.
SHARPNESS = 8.0
LIKENESS = 4.0  # weight of the squared errors of likeness beside the sharp loss
REPLACED = 0.5  # likeness from which an earlier token is one that was replaced, and not one to be left alone
MISSED = 3.0  # what a token that should have been written counts, where one that should not have been counts 1


@dataclass(frozen=True)
class Lessons:
    """Summed losses, and how many counted predictions found their token.

    finding: cross-entropy of finding the right key, over the counted predictions whose token stood before; and the
        squared errors of likeness, which is to be 1 for the right key and 0 for the others that are written.
    writing: cross-entropy of the step sizes being open for tokens that were wanted later, and shut for all others.
    """

    finding: Tensor
    writing: Tensor
    found: Tensor  # int64


def hindsight(queries: Tensor, keys: Tensor, inputs: Tensor, targets: Tensor, mask: Tensor, gates: Tensor) -> Lessons:
    """What is to be learned from a batch.

    Args:
        queries, keys: `[B, H, T, d]` of unit length.
        inputs: token ids `[B, T]`.
        targets: the wanted predictions `[B, T]`.
        mask: `[B, T]`, predictions that count.
        gates: logits of the step size, `[B, H, T]`.
    """
    rows = [_row(*row) for row in zip(queries, keys, inputs, targets, mask, gates, strict=True)]
    return Lessons(
        sum((row.finding for row in rows), gates.new_zeros(())),
        sum((row.writing for row in rows), gates.new_zeros(())),
        sum((row.found for row in rows), mask.new_zeros((), dtype=torch.int64)),
    )


def _row(queries: Tensor, keys: Tensor, inputs: Tensor, targets: Tensor, mask: Tensor, gates: Tensor) -> Lessons:
    """The same of one stream; shapes without the batch."""
    places, index = mask.nonzero()[:, 0], torch.arange(len(inputs), device=inputs.device)
    right = (inputs[None] == targets[places][:, None]) & (index[None] <= places[:, None])
    known = right.any(1)
    if not bool(known.any()):
        idle = F.softplus(gates).sum() / len(gates) if not len(places) else gates.new_zeros(())  # nothing was wanted
        return Lessons(gates.new_zeros(()), idle, known.sum())
    places, right = places[known], right[known]
    likeness = torch.einsum("hqd,htd->qt", queries[:, places], keys) / len(keys)
    scores = SHARPNESS * likeness + F.logsigmoid(gates).mean(0)  # what is not written is no rival, and is not found
    # What was written before the right token has been replaced, where it was about the same.
    first = right.int().argmax(1)
    rivals = scores.masked_fill((index[None] < first[:, None]) | (index[None] > places[:, None]), -torch.inf)
    mine = scores.masked_fill(~right, -torch.inf)
    finding = (rivals.logsumexp(1) - mine.logsumexp(1)).sum()
    found = (inputs[rivals.argmax(1)] == targets[places]).sum()
    best = mine.detach().argmax(1)
    wanted = torch.zeros_like(gates[0])
    wanted[best] = 1.0
    others = likeness * wanted * ~right
    finding = finding + LIKENESS * ((1 - likeness.gather(1, best[:, None])).square().sum() + others.square().sum())
    # An answer stands in the stream as well, and looks like what was told: it is not judged.
    judged = torch.ones_like(wanted)
    # Nor is a value that was replaced later: when it was told, nobody could know.
    judged[((likeness > REPLACED) & (index[None] < first[:, None])).any(0)] = 0.0
    judged[(mask.nonzero()[:, 0] + 1).clamp(max=len(inputs) - 1)] = 0.0
    loss = F.binary_cross_entropy_with_logits(
        gates, wanted.expand_as(gates), reduction="none", pos_weight=gates.new_tensor(MISSED)
    )
    return Lessons(finding, (loss * judged.maximum(wanted)).sum() / len(gates), found)
