"""A titans-pytorch state dict, taken apart by name and shape.

Every parameter a model asks for must be there and fit; what nobody asked for is an error too, since it would be a part
of the trained model that is silently left out. Matrices come out as `[in, out]`. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from titans_export.errors import ExportError


class CheckpointError(ExportError):
    """A checkpoint that cannot be read or does not fit its configuration."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` file (read with `weights_only`) or a safetensors file, by name.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors.
    """
    remedy = "save the model with torch.save(model.state_dict(), path), or as safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; name a state_dict in a .pt or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: object = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # neither reader has an exception of its own for all it meets
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be read as plain tensors ({first:.200}); {remedy}") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds something else than named tensors; {remedy}")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


class Reader:
    """Hands out parameters below `prefix`, and remembers which were taken."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "", taken: set[str] | None = None) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self._taken: set[str] = set() if taken is None else taken

    def below(self, prefix: str) -> Reader:
        """A reader of what is below `prefix`."""
        return Reader(self._tensors, f"{self._prefix}{prefix}.", self._taken)

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """A parameter in fp32.

        Raises:
            CheckpointError: naming the parameter that is missing or has another shape or is not finite.
        """
        full = self._prefix + name
        if full not in self._tensors:
            raise CheckpointError(
                f"the checkpoint has no parameter {full!r}, which the configuration asks for with shape"
                f" {list(shape)}; give the constructor's arguments that the model was trained with"
            )
        value = self._tensors[full]
        if tuple(value.shape) != tuple(shape):
            raise CheckpointError(
                f"parameter {full!r} has shape {list(value.shape)}, and the configuration asks for {list(shape)};"
                " give the constructor's arguments that the model was trained with"
            )
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"parameter {full!r} holds numbers that are not finite floats; train the model again")
        self._taken.add(full)
        return value.detach().to(torch.float32)

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
            raise CheckpointError(
                f"the checkpoint has a parameter {left[0]!r} ({len(left)} such) that a model of this configuration has"
                " not; give the constructor's arguments that the model was trained with"
            )
