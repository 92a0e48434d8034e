"""Does an imported bundle compute what its library computes? Both over one stream, the bundle in random pieces.

The reference is the installed library's full forward, without a cache, or where that package is missing our own
PyTorch form; the report says which. Some memories amplify rounding, in their library too, so an output may differ by 5
times what the reference itself differs by between fp32 and fp64, where that is more. State tensors are compared with
our own PyTorch form under the same rule.

Knows bundles and steppable models. Does not know any library.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from titans_export.errors import VerificationError
from titans_export.models.protocol import SteppableModel
from titans_export.verification import distance
from titans_export.verification.pieces import Piece, random_pieces, random_stream
from titans_export.verification.sides import BundleSide, KnownSide, Side, TorchSide, side_by_side
from titans_export.verification.tolerances import tolerance
from titans_format.progress import ReportProgress
from titans_runtime.arrays import Array
from titans_runtime.bundle import open_bundle
from titans_runtime.stream.plan import FASTEST, STEPS_ONLY

SOURCE = "titans-pytorch"  # in the table of tolerances
POLICIES = (FASTEST, STEPS_ONLY)
LONGEST_PIECE = 40  # tokens

Answers = Callable[[Tensor], tuple[Array, Array]]  # to a whole stream, in fp32 and in fp64
Model = TypeVar("Model", bound=SteppableModel)


def compare_imported(
    bundle: Path,
    model: SteppableModel,
    library: tuple[str, Answers] | None,
    *,
    tokens: int,
    seed: int = 0,
    progress: ReportProgress | None = None,
    unstable: str = "verify fewer tokens",
) -> dict[str, Any]:
    """The verification report, for the manifest.

    Args:
        bundle: the bundle directory.
        model: what it was made from.
        library: name and version of the installed library, and its answers; None compares with our PyTorch form.
        tokens: length of the stream.
        seed: of the stream and of its pieces.
        progress: called with (tokens, of tokens).
        unstable: what to do about a reference that computes numbers that are not finite.

    Raises:
        VerificationError: they disagree, or the reference computes numbers that are not finite.
    """
    opened = open_bundle(bundle)
    stream = random_stream(model.inputs, tokens, seed)
    everything = Piece(stream, 0)
    eager, exact = TorchSide(model), TorchSide(_in_double(model))
    want, want_exact = eager.feed(everything), exact.feed(everything)
    reference = "own PyTorch form"
    if library is not None:
        reference = f"{library[0]}, full forward"
        want, want_exact = library[1](torch.from_numpy(stream))
    finite = np.isfinite(want).all(-1).all(0)
    if not finite.all():
        raise VerificationError(
            f"{reference} itself computes numbers that are not finite from token {int(np.argmin(finite))} on",
            unstable,
        )
    ours, error, pieces = BundleSide(opened), 0.0, 0
    sides: dict[str, Side] = {"bundle": ours, "reference": KnownSide(want)}
    cut = random_pieces(stream, LONGEST_PIECE, POLICIES, seed)
    for _, results in side_by_side(sides, cut, tokens, progress):
        error, pieces = max(error, distance.difference(results["bundle"], results["reference"])), pieces + 1
    limit, own = tolerance(SOURCE), distance.difference(want, want_exact)
    specs = eager.stream.specs.values()
    states = distance.state_differences(ours.states(), eager.states(), specs, tokens)
    rounded = distance.state_differences(eager.states(), exact.states(), specs, tokens)
    allowed = max(limit.outputs, limit.rounding * own)
    allowed_states = {name: max(limit.states, limit.rounding * rounded[name]) for name in states}
    worst = max(states, key=lambda name: states[name] / allowed_states[name])
    report = {
        # an infinite error is none that an infinite allowance could excuse
        "ok": np.isfinite(error)
        and error <= allowed
        and all(np.isfinite(states[name]) and states[name] <= allowed_states[name] for name in states),
        "max_abs_error": error,
        "tokens": tokens,
        "states": states,
        "reference": reference,
        "own_rounding": own,
        "tolerance": {"outputs": allowed, "states": allowed_states[worst]},
        "pieces": pieces,
        "seed": seed,
        "dtype": "fp32",
    }
    if not report["ok"]:
        raise VerificationError(
            f"outputs differ from {reference} by {error:.1e} (allowed {allowed:.1e}), and state {worst} from the own"
            f" PyTorch form by {states[worst]:.1e} (allowed {allowed_states[worst]:.1e}); the bundle"
            " does not compute what the model computes, and nothing was written",
            "please report it with the configuration",
        )
    return report


def _in_double(model: Model) -> Model:
    twin = copy.copy(model)
    object.__setattr__(twin, "module", copy.deepcopy(model.module).double())
    return twin
