"""Does a bundle compute what titans-pytorch computes? Knows which version is installed, and its full forward."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from titans_export.titans_pytorch import installed as library
from titans_export.titans_pytorch.steppable import TitansPytorchModel
from titans_export.verification.imported import LONGEST_PIECE as LONGEST_PIECE
from titans_export.verification.imported import POLICIES as POLICIES
from titans_export.verification.imported import SOURCE, compare_imported
from titans_format.progress import ReportProgress
from titans_runtime.arrays import Array


def compare(
    bundle: Path,
    model: TitansPytorchModel,
    tensors: dict[str, Tensor],
    *,
    tokens: int,
    seed: int = 0,
    progress: ReportProgress | None = None,
) -> dict[str, Any]:
    """The verification report, for the manifest.

    Args:
        bundle: the bundle directory.
        model: what it was made from; `tensors` the state dict.
        tokens: length of the stream.
        seed: of the stream and of its pieces.
        progress: called with (tokens, of tokens).

    Raises:
        VerificationError: they disagree, or the reference computes numbers that are not finite.
    """
    installed = library.version()
    # Only the installed version's own kind of joints can be loaded into it.
    same = installed is not None and library.fits(model.config, tensors)
    answers = partial(_answers, model.config, tensors)
    return compare_imported(
        bundle,
        model,
        (f"{SOURCE} {installed}", answers) if same else None,
        tokens=library.longest_answered(model.config, tokens),
        seed=seed,
        progress=progress,
        unstable="lower default_step_transform_max_lr and train again, or verify fewer tokens",
    )


def _answers(config: dict[str, Any], tensors: dict[str, Tensor], inputs: Tensor) -> tuple[Array, Array]:
    """What the installed library answers to a whole sequence, in fp32 and in fp64."""
    theirs = library.build(config, tensors)
    want = library.answers(theirs, inputs, config)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return want.numpy(), library.answers(theirs.double(), inputs, config).numpy()
