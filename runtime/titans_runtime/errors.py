"""What can go wrong while a bundle is loaded or driven, as types.

Every one is a `TitansError` of `titans_format`: it says what was wrong and where, and ends in a remedy. Knows nothing
about exit codes or terminals.
"""

from __future__ import annotations

import errno
from typing import Literal

from titans_format.errors import TitansError

_OS_REMEDIES = {
    errno.ENOSPC: "free some disk space or choose another place",
    errno.EDQUOT: "free some of your quota or choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "check the permissions or choose another place",
    errno.EPERM: "check the permissions or choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "name a file, not a directory",
    errno.EEXIST: "choose another place or remove what is there",
    errno.ELOOP: "check the path: its links lead round in a circle",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "close files that this process holds open, or raise its limit with `ulimit -n`",
    errno.ENFILE: "close programs that hold many files open: the whole machine is at its limit",
    errno.EFBIG: "the file would be larger than is allowed (ulimit -f): raise the limit or choose another place",
    errno.ENOMEM: "free some memory",
    errno.EIO: "the disk or the network gave an error: check them, and copy the file again",
}


def os_remedy(error: OSError) -> str:
    """What to do about a file that the system refuses."""
    own: object = getattr(error, "remedy", None)  # of `files.RefusedFileError`
    if isinstance(own, str):
        return own
    return _OS_REMEDIES.get(error.errno or 0, "check the path and try again")


class InputError(TitansError, ValueError):
    """Tokens, vectors or options that the model cannot take. Raised before any state changes."""


class TextError(InputError):
    """Text that cannot become tokens, such as a prompt that is not UTF-8, or a model without a tokenizer."""


ProviderStatus = Literal["ready", "not installed", "no device", "not working", "no engines"]


class ProviderError(TitansError):
    """An execution provider that is unknown, not installed, without a device, or that fails here.

    status: which of these it is.
    """

    def __init__(self, what: str, remedy: str, status: ProviderStatus = "not working") -> None:
        super().__init__(what, remedy)
        self.status = status


class ExecutionError(TitansError):
    """A graph that failed while running."""


def out_of_memory() -> ExecutionError:
    """What a feed raises that asks for more memory than there is."""
    return ExecutionError(
        "there is not enough memory for this feed", "feed fewer tokens at a time, or without all_logits"
    )


class NonFiniteError(ExecutionError):
    """A graph returned numbers that are not finite: the weights are damaged or the memory diverged.

    token: position in the stream, counted from 0, of the first token that is affected.
    state: the first state tensor that is affected, whose name says its layer; None if only the outputs are.
    """

    def __init__(self, graph: str, token: int, state: str | None) -> None:
        where = f"first in state {state!r}" if state is not None else "in the outputs only, in no layer's state"
        damaged = (
            "if a new session meets them at its first token, the weights are not finite themselves: export a sound"
            " checkpoint"
        )
        diverged = "if it recurs train with memory.surprise_bound set"
        super().__init__(
            f"graph {graph!r} returned numbers that are not finite at token {token}, {where}",
            f"go back with reset(), rewind() or a saved state, and {diverged if token else damaged}",
        )
        self.args = (graph, token, state)  # what a copy or another process makes it of
        self.graph, self.token, self.state = graph, token, state


class SessionPoisonedError(TitansError):
    """A session that met numbers that are not finite: it is as it was before, and refuses to go on from there."""


class SessionBusyError(TitansError):
    """A session that another thread is using, or that a callback of its own call tries to use."""


class ForkError(TitansError):
    """A model, session or batch in a process that was forked after it was made: its threads stayed with the parent."""


class StateError(TitansError):
    """A saved state that is missing, damaged, of a newer format, or of another model."""
