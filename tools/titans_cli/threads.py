"""`--threads`, for the commands that compute with PyTorch and those that compute with ONNX Runtime.

Knows which environment variables OpenMP reads, and when. Imports PyTorch only for `torch_threads`.
Does not know how many threads are the quicker ones (`titans_core.training.threads`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., None])
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def threads_option(default: str) -> Callable[[Command], Command]:
    """`--threads N`; `default` says in words what goes without."""
    return click.option(
        "--threads", type=click.IntRange(1), callback=_checked, help=f"CPU threads.  [default: {default}]"
    )


def _checked(context: click.Context, option: click.Parameter, threads: int | None) -> int | None:
    """As many as `titans_runtime.load` takes, and no more."""
    from titans_runtime.devices.cores import most_threads

    if threads is not None and threads > (most := most_threads()):
        raise click.BadParameter(f"{threads} is more than the {most} that this machine has a use for")
    return threads


def wait_passively() -> None:
    """Let PyTorch's threads sleep at barriers, unless the environment says how they wait.

    OpenMP reads it when it is loaded, so this has to come before PyTorch. Threads that wait by spinning hold the core
    that the one they wait for needs, wherever another process has the other one.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def torch_threads(threads: int | None) -> None:
    """Let PyTorch use `threads`, or for None no more than this process has cores."""
    from titans_runtime.devices.cores import usable_cores

    wait_passively()
    import torch

    torch.set_num_threads(threads or max(1, min(torch.get_num_threads(), usable_cores())))
