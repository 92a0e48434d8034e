"""The start of a graft's keys: what the layers that it reads say of natural text, whitened.

Hidden states of pretrained models have a few channels far larger than all others, and raw ones find the wrong neighbour
ten to thirty times in a hundred where whitened ones find the right one. Knows text. Does not know how the memories use
what they are given.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable, Iterator, Sequence

import torch

from titans_core.decoder import Decoder
from titans_core.decoder.graft import StreamGraft
from titans_core.decoder.side_memory import SideMemory
from titans_core.training.side import LowerLayers
from titans_tasks.documents import read_corpus
from titans_tasks.errors import DataError
from titans_tasks.tokens import Tokenizer

TOKENS = 4096  # enough for the second moments of a thousand channels
_STRETCH = 512  # tokens of a stream, several of which are read side by side

Counter = Callable[[int, int], None]  # (streams done, streams in all)


def start_from_text(
    decoder: Decoder, tokenizer: Tokenizer, sources: Sequence[str] = (), *, progress: Counter | None = None
) -> None:
    """Let the graft of a decoder start from natural text.

    Args:
        decoder: with a graft.
        tokenizer: the decoder's.
        sources: as `read_corpus` takes them; Python's own documentation where there are none.
        progress: called with (streams done, streams in all).

    Raises:
        DataError: the text cannot be read, or is too short.
    """
    graft = decoder.graft
    if graft is None:
        return
    chunk = decoder.config.chunk
    stretch = max(_STRETCH // chunk, 1) * chunk
    ids = _ids(tokenizer, sources, stretch)
    layers = graft.config.read if isinstance(graft, SideMemory) else tuple(map(int, graft.memories()))
    lower, found = LowerLayers(decoder, layers), []
    for done, stream in enumerate(ids):
        found.append(lower.hidden(stream[None], lower.initial_state(1))[0][0])
        if progress is not None:
            progress(done + 1, len(ids))
    hidden = torch.cat(found)
    if isinstance(graft, SideMemory):
        graft.start_from(hidden, decoder.embedding)
    elif isinstance(graft, StreamGraft):
        for memory, x in zip(graft.memories().values(), hidden.chunk(len(layers), dim=-1), strict=True):
            memory.start_from(x)


def _ids(tokenizer: Tokenizer, sources: Sequence[str], stretch: int) -> torch.Tensor:
    """The first `TOKENS` ids of the text or a few less, in whole stretches: `[n, stretch]`."""
    found: list[int] = []
    for text in _texts(sources):
        found += tokenizer.encode(text).tolist()
        if len(found) >= TOKENS:
            break
    whole = min(len(found), max(TOKENS, stretch)) // stretch * stretch
    if not whole:
        raise DataError(f"the text has {len(found):,} tokens, at least {stretch:,} are wanted", "name more of it")
    return torch.tensor(found[:whole]).reshape(-1, stretch)


def _texts(sources: Sequence[str]) -> Iterator[bytes]:
    if not sources:
        for topic in pydoc_data.topics.topics.values():
            yield topic.encode()
        return
    for document in read_corpus(sources).train:
        yield document.data
