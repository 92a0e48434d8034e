"""Does an imported bundle compute what titans-pytorch computes? Both over one stream, the bundle in random pieces.

The reference is the installed titans-pytorch's full forward, without a cache, or where that package is missing our own
PyTorch form; the report says which. A memory whose gradients are orthogonalised amplifies rounding, in titans-pytorch
too, so an output may differ by 5 times what the reference itself differs by between fp32 and fp64, where that is more.
State tensors are compared with our own PyTorch form under the same rule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from titans_export.errors import VerificationError
from titans_export.titans_pytorch import installed as library
from titans_export.titans_pytorch.steppable import TitansPytorchModel
from titans_export.verification.torch_stream import TorchStream
from titans_format.fields import ContinuousInputs, TokenInputs
from titans_runtime.arrays import Array
from titans_runtime.bundle import open_bundle
from titans_runtime.devices.select import select
from titans_runtime.state.calls import LoadOptions
from titans_runtime.stream.driver import Driver
from titans_runtime.stream.plan import FASTEST, STEPS_ONLY

TOLERANCE = 2e-4  # fp32, absolute for outputs; for states relative to max(1, largest value)
ROUNDING_SLACK = 5.0
LONGEST_PIECE = 40  # tokens

Progress = Callable[[int, int], None]


def random_stream(inputs: TokenInputs | ContinuousInputs, tokens: int, seed: int) -> Array:
    """Ids `[1, T]` or vectors `[1, T, F]`."""
    random = np.random.default_rng(seed)
    if isinstance(inputs, ContinuousInputs):
        return random.standard_normal((1, tokens, inputs.features), dtype=np.float32)
    return random.integers(0, inputs.vocab_size, (1, tokens), dtype=np.int64)


def drive(driver: Driver, stream: Array, seed: int, progress: Progress | None = None) -> tuple[Array, int]:
    """The bundle's outputs over a stream in random pieces, and how many pieces there were."""
    random, outputs, position = np.random.default_rng(seed), [], 0
    while position < stream.shape[1]:
        length = int(random.integers(1, LONGEST_PIECE + 1))
        policy = (FASTEST, STEPS_ONLY)[int(random.integers(2))]
        piece = stream[:, position : position + length]
        outputs.append(driver.feed(piece, all_outputs=True, policy=policy).outputs)
        position += piece.shape[1]
        if progress is not None:
            progress(position, stream.shape[1])
    return np.concatenate(outputs, axis=1), len(outputs)


def compare(
    bundle: Path,
    model: TitansPytorchModel,
    tensors: dict[str, Tensor],
    *,
    tokens: int,
    seed: int = 0,
    progress: Progress | None = None,
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
    opened = open_bundle(bundle)
    installed = library.version()
    tokens = library.longest_answered(model.config, tokens)
    stream = random_stream(model.inputs, tokens, seed)
    inputs = torch.from_numpy(stream)
    eager, exact = TorchStream(model, 1), TorchStream(_in_double(model), 1)
    ours, ours_exact = eager.feed(inputs), exact.feed(_double(inputs))
    if installed is None:
        reference, want, want_exact = "own PyTorch form", ours, ours_exact
    else:
        reference = f"titans-pytorch {installed}, full forward"
        theirs = library.build(model.config, tensors)
        want = library.answers(theirs, inputs, model.config)
        want_exact = library.answers(theirs.double(), _double(inputs), model.config)
    finite = torch.isfinite(want).all(-1).all(0)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise VerificationError(
            f"{reference} itself computes numbers that are not finite from token {first} on",
            "lower default_step_transform_max_lr and train again, or verify fewer tokens",
        )
    driver = Driver(opened.manifest, select(opened, "cpu", LoadOptions(threads=1)).backend)
    got, pieces = drive(driver, stream, seed, progress)
    error, own = _distance(got, want), _distance(want, want_exact)
    states, allowed_states = _compare_states(driver, eager, exact)
    allowed = max(TOLERANCE, ROUNDING_SLACK * own)
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


def _in_double(model: TitansPytorchModel) -> TitansPytorchModel:
    twin = copy.copy(model)
    twin.module = copy.deepcopy(model.module).double()
    return twin


def _double(inputs: Tensor) -> Tensor:
    return inputs.double() if inputs.is_floating_point() else inputs


def _distance(a: Array | Tensor, b: Array | Tensor) -> float:
    """Largest absolute difference; infinite where either is not finite."""
    largest = float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0.0))
    return largest if np.isfinite(largest) else float("inf")


def _compare_states(
    driver: Driver, eager: TorchStream, exact: TorchStream
) -> tuple[dict[str, float], dict[str, float]]:
    """Errors by state, and what is allowed."""
    errors, allowed = {}, {}
    for name, got in driver.state().items():
        want, wanted = eager.state[name].numpy(), exact.state[name].numpy()
        if eager.specs[name].kind == "rows":  # rows from the current place on are stale
            filled = driver.position % got.shape[0]
            got, want, wanted = got[:filled], want[:filled], wanted[:filled]
        scale = max(1.0, float(np.abs(want).max(initial=0.0)))
        errors[name] = _distance(got, want) / scale
        allowed[name] = max(TOLERANCE, ROUNDING_SLACK * _distance(want, wanted) / scale)
    return errors, allowed
