"""The module under audit: what goes in, what comes out, how a state is carried, and copies that remember nothing.

Input and output are `[streams, tokens, ...]`. What the module takes is found by trying: ids below the size of its
embedding, or vectors as wide as its first layer. Does not know any check.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from titans_core.audit.factory import AuditError, described

LENGTHS = (96, 64, 32, 16)  # tokens, tried in this order
MULTIPLES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)  # of tokens in a call
_STATES = (
    *("state", "states", "hx", "hidden", "hidden_state", "past_key_values", "cache", "cache_params"),
    *("memory_state", "memory_states", "past_state", "carry", "mems"),
)
_OUTPUTS = ("logits", "last_hidden_state", "predictions", "outputs", "output")
_WRAP = "write a factory whose module takes [streams, tokens] or [streams, tokens, features] and returns the like"


@dataclass(frozen=True)
class Inputs:
    """What goes in: token ids below `ids`, or vectors of `features` channels."""

    ids: int = 0
    features: int = 0

    def sample(self, streams: int, tokens: int, seed: int, dtype: torch.dtype) -> Tensor:
        """Random ids `[streams, tokens]` (int64) or normal vectors `[streams, tokens, features]`."""
        generator = torch.Generator().manual_seed(seed)
        if self.ids:
            return torch.randint(self.ids, (streams, tokens), generator=generator)
        return torch.randn(streams, tokens, self.features, generator=generator, dtype=torch.float64).to(dtype)

    def __str__(self) -> str:
        return f"token ids below {self.ids:,}" if self.ids else f"vectors of {self.features} channels"


@dataclass(frozen=True)
class Subject:
    """A module with all that is needed to call it.

    Attributes:
        module: in evaluation mode; never called itself.
        inputs: what it takes.
        length: tokens of a sequence.
        multiple: every call has a multiple of so many tokens; 0 if it takes `length` alone.
        state: the argument that takes a state, or "" if there is none.
        reset: the method that makes the module forget, or "".
        dtype: of parameters and vectors.
        keeps: whether a call changes the module, so that every one needs a copy of its own.
    """

    module: nn.Module
    inputs: Inputs
    length: int
    multiple: int = 1
    state: str = ""
    reset: str = ""
    dtype: torch.dtype = torch.float64
    keeps: bool = True

    def sample(self, streams: int, seed: int) -> Tensor:
        """Random inputs of full length."""
        return self.inputs.sample(streams, self.length, seed, self.dtype)

    def fresh(self) -> nn.Module:
        """A module that has not been called."""
        return _copied(self.module) if self.keeps else self.module

    def answer(self, inputs: Tensor, seed: int = 0, module: nn.Module | None = None) -> Tensor:
        """The outputs of one call from the beginning of a stream.

        Args:
            inputs: `[streams, tokens, ...]`.
            seed: PyTorch's, before the call.
            module: the one to call; a fresh one without.

        Raises:
            AuditError: the call raises, or its outputs do not go with its inputs.
        """
        module = self.fresh() if module is None else module
        if self.reset:
            getattr(module, self.reset)()
        return outputs_of(call(module, inputs, {}, seed), inputs).detach()

    def answer_in_parts(self, parts: list[Tensor]) -> Tensor:
        """The outputs of consecutive calls that carry the state, joined."""
        module, state, found = self.fresh(), None, []
        if self.reset:
            getattr(module, self.reset)()
        for part in parts:
            given: dict[str, Any] = {} if state is None else {self.state: state}
            if self.state and "use_cache" in _parameters(module):
                given["use_cache"] = True
            result = call(module, part, given, 0)
            found.append(outputs_of(result, part).detach())
            if self.state:
                state = _state_of(result, self.state)
        return torch.cat(found, dim=1)

    def moved(self, seed: int) -> Subject:
        """The same with every parameter moved: what starts at zero no longer hides what it multiplies."""
        module, generator = _copied(self.module), torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            if parameter.is_floating_point():
                values = parameter.detach().double()
                spread = 0.02 + (0.1 * float(values.std(correction=0)) if values.numel() else 0.0)
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * spread
                parameter.data = parameter.data + noise.to(parameter.dtype)
        return replace(self, module=module)

    def rounded(self, seed: int) -> Subject:
        """The same with every parameter off by a few units in its last place."""
        module, generator = _copied(self.module), torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                unit = 4.0 * torch.finfo(parameter.dtype).eps
                parameter.data = (parameter.data.double() * (1.0 + unit * noise)).to(parameter.dtype)
        return replace(self, module=module)


def call(module: nn.Module, inputs: Tensor, given: Mapping[str, Any], seed: int) -> Any:
    """What a module returns; without gradients, or with them where it takes its own.

    Raises:
        AuditError: it raises.
    """
    torch.manual_seed(seed)
    try:
        with torch.no_grad():
            return module(inputs, **given)
    except Exception as first:
        torch.manual_seed(seed)
        try:
            with torch.enable_grad():
                return module(inputs, **given)
        except Exception as error:
            shape = list(inputs.shape)
            raise AuditError(f"a call with inputs {shape} raised {described(error)}", _WRAP) from first


def outputs_of(result: Any, inputs: Tensor) -> Tensor:
    """The outputs among what a call returned, `[streams, tokens, ...]`, with their history.

    Raises:
        AuditError: there are none.
    """
    found = result
    if isinstance(result, Mapping):
        found = next((result[name] for name in _OUTPUTS if name in result), next(iter(result.values()), None))
    elif isinstance(result, (tuple, list)):
        found = result[0] if result else None
    elif not isinstance(result, Tensor):
        found = next((getattr(result, name) for name in _OUTPUTS if hasattr(result, name)), None)
    if not isinstance(found, Tensor):
        raise AuditError(f"a call returned a {type(result).__name__} without outputs", _WRAP)
    if found.dim() < 2 or found.shape[:2] != inputs.shape[:2]:
        raise AuditError(
            f"inputs {list(inputs.shape)} gave outputs {list(found.shape)}, expected one output for every token of"
            " every stream",
            _WRAP,
        )
    return found


def _state_of(result: Any, name: str) -> Any:
    if isinstance(result, Mapping) and name in result:
        return result[name]
    if hasattr(result, name):
        return getattr(result, name)
    if isinstance(result, (tuple, list)) and len(result) > 1:
        return result[1]
    raise AuditError(
        f"the module takes {name!r} and returns none", "return (outputs, state), or audit it with --state none"
    )


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise AuditError(
            f"the module cannot be copied ({described(error)})", "let the factory return one that copy.deepcopy takes"
        ) from error


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return {}


# ---------------------------------------------------------------- finding out


def examine(
    module: nn.Module,
    *,
    inputs: Inputs | None = None,
    length: int | None = None,
    multiple: int | None = None,
    state: str | None = None,
    reset: str | None = None,
) -> Subject:
    """Find out how a module is called; what is given is not looked for.

    Raises:
        AuditError: no way to call it works, or an argument names something that it has not.
    """
    if getattr(module, "batch_first", True) is False:
        raise AuditError(
            "the module has batch_first=False, so tokens come before streams", "build it with batch_first=True"
        )
    if reset and not callable(getattr(module, reset, None)):
        raise AuditError(f"the module has no method {reset!r}", "name the method that makes it forget")
    named = _parameters(module)
    if state and state != "none" and state not in named:
        raise AuditError(
            f"forward has no argument {state!r} (it has {', '.join(named) or 'none'})",
            "name the one that takes a state",
        )
    if state is None:
        # Who has to ask for a cache is asked to feed it in a way of its own: not guessed.
        unusual = reset or "return_cache" in named
        state = "" if unusual else next((name for name in _STATES if name in named), "")
    state = "" if state == "none" else state
    last: AuditError | None = None
    for dtype in (torch.float64, torch.float32):
        ready = _copied(module).to("cpu").eval()
        ready = ready.double() if dtype == torch.float64 else ready.float()
        for tokens, taken in itertools.product((length,) if length else LENGTHS, _guesses(module, inputs)):
            subject = Subject(ready, taken, tokens, state=state, reset=reset or "", dtype=dtype)
            try:
                found = subject.answer(subject.sample(2, 0))
            except AuditError as error:
                last = last or error
                continue
            if found.is_floating_point():
                return replace(subject, multiple=multiple or _multiple(subject))
            last = AuditError(f"outputs are {found.dtype}, expected floating point", _WRAP)
    raise last or AuditError("nothing says what goes into the module", "give --ids or --vectors")


def _guesses(module: nn.Module, given: Inputs | None) -> list[Inputs]:
    return [given] if given is not None else list(dict.fromkeys(_likely(module)))


def _likely(module: nn.Module) -> Iterator[Inputs]:
    """What a module may take, likeliest first."""
    config = getattr(module, "config", None)
    for ids in (getattr(config, "vocab_size", None), getattr(module, "vocab_size", None)):
        if isinstance(ids, int) and ids > 1:
            yield Inputs(ids=ids)
    layers = list(module.modules())
    for layer in layers:
        if isinstance(layer, nn.Embedding):
            yield Inputs(ids=layer.num_embeddings)
    widths: list[Callable[[nn.Module], object]] = [
        lambda layer: getattr(layer, "input_size", None),
        lambda layer: getattr(layer, "in_features", None),
        lambda layer: getattr(layer, "in_channels", None),
        lambda layer: getattr(layer, "embed_dim", None),
    ]
    for layer in layers:
        for width in widths:
            features = width(layer)
            if isinstance(features, int) and features > 0:
                yield Inputs(features=features)
    for parameter in module.parameters():
        for size in reversed(parameter.shape):
            yield Inputs(features=size)


def _multiple(subject: Subject) -> int:
    """The fewest tokens of which any multiple can be a call; 0 if there is none but the whole."""
    for multiple in (number for number in MULTIPLES if number < subject.length):
        try:
            for tokens in {multiple, min(3, subject.length // multiple) * multiple}:
                subject.answer(subject.sample(1, 0)[:, :tokens])
        except AuditError:
            continue
        return multiple
    return 0
