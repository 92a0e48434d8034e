"""Which process something was made in. What a fork leaves in the child is refused there at once.

A fork copies memory but not threads. ONNX Runtime's threads, a batch's thread and a device's context stay with the
parent, so a model that the child inherited would wait for threads that are not there. Knows processes. Does not know
models.
"""

from __future__ import annotations

import ctypes
import os
import weakref

from titans_runtime.errors import ForkError

generation = 0  # how many forks lie between the first process and this one
_kept: weakref.WeakSet[object] = weakref.WeakSet()


def keep(inherited: object) -> None:
    """Never destroy this object in a child: its destructor would wait for threads that stayed with the parent."""
    _kept.add(inherited)


def check(made_in: int, what: str) -> None:
    """Raise `ForkError` unless `what` was made in this process, at that `generation`."""
    if made_in != generation:
        raise ForkError(
            f"{what} was made before this process was forked, and its threads stayed with the parent",
            "load the model after the fork, or start the process with multiprocessing's 'spawn'",
        )


def _in_the_child() -> None:
    global generation
    generation += 1
    for inherited in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_the_child)
