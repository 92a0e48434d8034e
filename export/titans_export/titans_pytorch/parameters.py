"""A titans-pytorch state dict, taken apart by name and shape.

Every parameter a model asks for must be there and fit; what nobody asked for is an error too, since it would be a part
of the trained model that is silently left out. Matrices come out as `[in, out]`. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from titans_export.errors import ExportError


class CheckpointError(ExportError):
    """A checkpoint that cannot be read or does not fit its configuration."""


# What wrappers put before every name (DistributedDataParallel, torch.compile, Lightning and its kind) ...
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "_forward_module.")
# ... and into the middle of some, where a part of the model was wrapped.
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts keep it beside an optimizer's


@dataclass(frozen=True)
class StateDict:
    """The tensors of a checkpoint by the names its model gave them; `notes` says what was taken off or left out."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_state_dict(path: Path) -> StateDict:
    """The tensors of a `.pt` file (read with `weights_only`) or a safetensors file, by name.

    Names lose the prefixes that `torch.compile`, DistributedDataParallel and training frameworks give all of them.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors.
    """
    remedy = "save the model with torch.save(model.state_dict(), path), or as safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file", "name a state_dict in a .pt or .safetensors file")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            found: object = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # neither reader has an exception of its own for all it meets
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be read as plain tensors ({first:.200})", remedy) from error
    notes = []
    if isinstance(found, Mapping):
        inner = [key for key in _NESTED if isinstance(found.get(key), Mapping)]
        if inner and not all(isinstance(value, Tensor) for value in found.values()):
            notes.append(f"took {inner[0]!r} of what the file holds")
            found = found[inner[0]]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds something else than named tensors", remedy)
    tensors, taken_off = plain_names({str(name): value for name, value in found.items()})
    return StateDict(tensors, (*notes, *([f"took {taken_off!r} off the names of parameters"] if taken_off else [])))


def plain_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors by the names that the model itself gave them, and what wrappers had put before or into these.

    Raises:
        CheckpointError: two names become one.
    """
    names = {name: name for name in tensors}
    taken_off = ""
    while prefix := next((p for p in _PREFIXES if names and all(n.startswith(p) for n in names.values())), ""):
        names = {name: plain.removeprefix(prefix) for name, plain in names.items()}
        taken_off += prefix
    for part in _INSIDE:
        inside = {name: ".".join(word for word in plain.split(".") if word != part) for name, plain in names.items()}
        taken_off = taken_off if inside == names else f"{taken_off}{part}."
        names = inside
    found: dict[str, Tensor] = {}
    for name, plain in names.items():
        if plain in found:
            raise CheckpointError(
                f"the checkpoint has {plain!r} twice, with and without {taken_off!r} before it", "save one state_dict"
            )
        found[plain] = tensors[name]
    return found, taken_off


class Reader:
    """Hands out parameters below `prefix`, and remembers which were taken."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "", taken: set[str] | None = None) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self._taken: set[str] = set() if taken is None else taken

    def below(self, prefix: str) -> Reader:
        """A reader of what is below `prefix`."""
        return Reader(self._tensors, f"{self._prefix}{prefix}.", self._taken)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a parameter, whatever its shape."""
        return self._prefix + name in self._tensors

    def rows(self, name: str) -> int:
        """The length of a parameter's first axis.

        Raises:
            CheckpointError: the checkpoint has no such parameter.
        """
        full = self._prefix + name
        if full not in self._tensors or not self._tensors[full].dim():
            some = ", ".join(repr(key) for key in sorted(self._tensors)[:3]) or "nothing"
            raise CheckpointError(f"the checkpoint has no parameter {full!r} (it has {some})", "correct the name")
        return self._tensors[full].shape[0]

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """A parameter in fp32.

        Raises:
            CheckpointError: naming the parameter that is missing or has another shape or is not finite.
        """
        full = self._prefix + name
        if full not in self._tensors:
            raise CheckpointError(
                f"the checkpoint has no parameter {full!r}, which the configuration asks for with shape {list(shape)}",
                self._likeliest_cause(full),
            )
        value = self._tensors[full]
        if tuple(value.shape) != tuple(shape):
            raise CheckpointError(
                f"parameter {full!r} has shape {list(value.shape)}, and the configuration asks for {list(shape)}",
                "give the constructor's arguments that the model was trained with",
            )
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"parameter {full!r} holds numbers that are not finite floats", "train the model again"
            )
        self._taken.add(full)
        return value.detach().to(torch.float32)

    def _likeliest_cause(self, missing: str) -> str:
        """Why a parameter is missing, and what to do."""
        longer = next((name for name in self._tensors if name.endswith(f".{missing}")), None)
        if longer is not None:
            prefix = longer.removesuffix(missing)
            return (
                f"it has {longer!r}: take {prefix!r} off all names, or save the state_dict of the model itself"
                " instead of what it is a part of"
            )
        if not self._taken:
            some = ", ".join(repr(name) for name in sorted(self._tensors)[:3]) or "nothing"
            return (
                f"it has {some}: this is the checkpoint of another model, or the configuration names another class"
                " than it was trained with"
            )
        return "give the constructor's arguments that the model was trained with"

    def parameter(self, name: str, shape: Sequence[int]) -> nn.Parameter:
        """A parameter as it is."""
        return nn.Parameter(self.tensor(name, shape).clone(), requires_grad=False)

    def matrix(self, name: str, inputs: int, outputs: int) -> nn.Parameter:
        """A linear layer's weight, stored `[out, in]` by torch, as `[in, out]`."""
        return nn.Parameter(self.tensor(name, (outputs, inputs)).t().contiguous(), requires_grad=False)

    def skip(self, name: str) -> None:
        """Count everything below `name` as taken: titans-pytorch saves it and never computes with it."""
        full = self._prefix + name
        self._taken.update(key for key in self._tensors if key == full or key.startswith(full + "."))

    def finish(self) -> None:
        """Refuse parameters that nobody asked for."""
        if left := sorted(set(self._tensors) - self._taken):
            own = {name.partition(".")[0] for name in self._taken}
            beside = next((name for name in left if name.partition(".")[0] not in own), None)
            raise CheckpointError(
                f"the checkpoint has a parameter {beside or left[0]!r} ({len(left)} such) that a model of this"
                " configuration has not",
                ("save the state_dict of the model alone, or " if beside else "")
                + "give the constructor's arguments that the model was trained with",
            )
