"""What a memory should have written, seen from later: two losses that do not go through the memory itself.

A counted prediction needs a token that stood in the stream before. Its query has to find the key of that token among
all others, and that token is what was worth writing; no other one was. Both lessons are clear from the first step on,
where the memory's own answer is still lost among all that an untrained memory writes.

Knows queries, keys, token ids and gates. Does not know how they are made.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHARPNESS = 12.0  # logits between a key that is the query and one that has nothing to do with it


def hindsight(
    queries: Tensor, keys: Tensor, inputs: Tensor, targets: Tensor, mask: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor]:
    """The two losses.

    Args:
        queries, keys: `[B, H, T, d]` of unit length.
        inputs: token ids `[B, T]`.
        targets: the wanted predictions `[B, T]`.
        mask: `[B, T]`, predictions that count.
        gates: logits of the step size, `[B, H, T]`.

    Returns:
        The cross-entropy of finding the right key, summed over the counted predictions whose token stood before; and
        that of the step sizes being open for tokens that were wanted later and shut for all others, summed.
    """
    finding, writing = gates.new_zeros(()), gates.new_zeros(())
    for row in range(len(inputs)):
        places = mask[row].nonzero()[:, 0]
        scores = SHARPNESS * torch.einsum("hqd,htd->qt", queries[row][:, places], keys[row]) / keys.shape[1]
        index = torch.arange(inputs.shape[1], device=inputs.device)
        right = (inputs[row][None] == targets[row][places][:, None]) & (index[None] <= places[:, None])
        known = right.any(1)
        if not bool(known.any()):
            continue
        scores, right, places = scores[known], right[known], places[known]
        # What was written before the right token has been replaced, where it was about the same.
        first = right.int().argmax(1)
        among = (index[None] >= first[:, None]) & (index[None] <= places[:, None])
        every = scores.masked_fill(~among, -torch.inf).logsumexp(1)
        mine = scores.masked_fill(~right, -torch.inf)
        finding = finding + (every - mine.logsumexp(1)).sum()
        wanted = torch.zeros(inputs.shape[1], device=inputs.device, dtype=gates.dtype)
        wanted[mine.detach().argmax(1)] = 1.0
        # An answer stands in the stream as well, and looks like what was told: it is not judged.
        judged = torch.ones_like(wanted)
        judged[(mask[row].nonzero()[:, 0] + 1).clamp(max=inputs.shape[1] - 1)] = 0.0
        loss = F.binary_cross_entropy_with_logits(gates[row], wanted.expand_as(gates[row]), reduction="none")
        writing = writing + (loss * judged.maximum(wanted)).sum() / gates.shape[1]
    return finding, writing
