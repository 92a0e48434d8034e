"""What the parts share: equal threads for everybody, random models as bundles, probes of the machine, medians.

Knows how comparisons are kept fair. Does not know what is compared.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from titans_core.config import TitansConfig
from titans_core.model import TitansModel
from titans_export.export import export_model
from titans_format.progress import ReportProgress
from titans_measure.speed.roofline import Probes, Roofline
from titans_measure.speed.timing import Work, medians

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 2  # for PyTorch and for ONNX Runtime


def pin(threads: int = THREADS) -> None:
    """Give PyTorch as many threads as ONNX Runtime gets, and spare it denormals as our runtime is spared them.

    Decayed momentum ends in denormals, which slow a product down tenfold; comparing that would be comparing settings.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h


def alone(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What a function returns in a fresh process of its own, with no memory and no threads of anybody else's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


def keep_memory() -> None:
    """Have this process keep what it frees for its next allocations, for good; nothing happens without glibc.

    By default large tensors are given back to the system and faulted in again, page by page. On a virtual machine that
    hands freed memory to its host, that took 0.15 ms per MiB at best and 2.8 ms at worst where this was written.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_TRIM_THRESHOLD, -1)
        library.mallopt(_MMAP_MAX, 0)


def random_bundle(config: TitansConfig, out: Path, dtype: str = "fp32") -> TitansModel:
    """A fresh model and its bundle at `out`; speed does not depend on the weights' values."""
    torch.manual_seed(0)
    model = TitansModel(config)
    export_model(model, out, dtype=dtype, verify_tokens=0)
    return model


def with_probes(
    work: Mapping[str, Work], rounds: int, progress: ReportProgress, threads: int = THREADS
) -> tuple[dict[str, float], Roofline]:
    """Median seconds of each piece of work, and the machine beside them, all in turns."""
    probes = Probes(threads)
    seconds = medians({**probes.work(), **work}, rounds, progress)
    return {name: seconds[name] for name in work}, probes.roofline(seconds)


def inferred(function: Callable[[], object]) -> Work:
    """The work without anything that only a backward pass needs."""

    def run() -> object:
        with torch.inference_mode():
            return function()

    return run
