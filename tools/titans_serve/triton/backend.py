"""What Triton's Python backend calls: tensors and flags of its requests to `Sequences`, and answers back.

Triton's own module, `triton_python_backend_utils`, exists only inside of Triton and is given here. Tensors cross by
DLPack, because Triton's `as_numpy` of 2024 miscounts with NumPy 2.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from titans_format.errors import TitansError
from titans_format.fields import TokenInputs
from titans_runtime import InputError, SamplingOptions, load
from titans_runtime.arrays import Array
from titans_runtime.text.sampling import chosen_options
from titans_serve.stores import open_store
from titans_serve.triton.sequences import Answer, Limits, Request, Sequences

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
_OURS = ("memory", "max_new_tokens", *_SAMPLING)
# Triton's own, among a request's parameters.
_TRITONS = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output")


class TitansPythonModel:
    """The `TritonPythonModel` of a repository, less Triton's module."""

    def __init__(self, utils: Any, args: Mapping[str, str]) -> None:
        """Load the bundle.

        Args:
            utils: Triton's `triton_python_backend_utils`.
            args: what Triton gives to `initialize`.

        Raises:
            TitansError: the bundle, the provider or the store is not usable.
        """
        self._utils = utils
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        folder = Path(args["model_repository"], args["model_version"])
        threads = int(settings["threads"]) or None
        model = load(folder / settings["bundle"], settings["provider"], threads)
        store = open_store(settings["store"]) if settings["store"] else None
        chosen = json.loads(settings["limits"])
        self._sequences = Sequences(model, store, Limits(**{f.name: chosen[f.name] for f in fields(Limits)}))
        self._model = model
        self._input = "ids" if isinstance(model.manifest.inputs, TokenInputs) else "inputs"
        self._output = "logits" if self._input == "ids" else "outputs"

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers in the order of the requests; each is of another sequence."""
        requested: list[Request | TitansError] = [self._read(request) for request in requests]
        answers = iter(self._sequences.run([each for each in requested if isinstance(each, Request)]))
        return [self._written(next(answers) if isinstance(each, Request) else each) for each in requested]

    def finalize(self) -> None:
        """Store what has a memory, and end."""
        self._sequences.close()

    def _read(self, request: Any) -> Request | TitansError:
        utils = self._utils
        try:
            given = utils.get_input_tensor_by_name(request, self._input)
            inputs = np.from_dlpack(given).copy()[0]  # the batch of Triton's is one: a request is of one sequence
            options = _parameters(request.parameters())
            sampling = {name: options[name] for name in _SAMPLING if name in options}
            flags = request.flags()
            return Request(
                str(request.correlation_id()),
                inputs,
                begins=bool(flags & utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START),
                ends=bool(flags & utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END),
                memory=options.get("memory"),
                generate=options.get("max_new_tokens", 0),
                options=self._sampling(sampling),
            )
        except TitansError as error:
            return error

    def _sampling(self, chosen: Mapping[str, Any]) -> SamplingOptions | None:
        return chosen_options(self._model.manifest.generation, **chosen) if chosen else None

    def _written(self, answer: Answer | TitansError) -> Any:
        utils = self._utils
        if isinstance(answer, TitansError):
            code = utils.TritonError.INVALID_ARG if isinstance(answer, InputError) else utils.TritonError.INTERNAL
            return utils.InferenceResponse(error=utils.TritonError(str(answer), code))
        tensors = {
            self._output: answer.outputs,
            "generated": answer.generated,
            "surprise": answer.surprise,
            "position": np.array([answer.position], np.int64),
        }
        if not len(answer.generated):
            del tensors["generated"]  # Triton takes an empty tensor for one that is not contiguous
        return utils.InferenceResponse(
            [
                utils.Tensor.from_dlpack(name, _Exported(np.ascontiguousarray(value)[None].copy()))
                for name, value in tensors.items()
            ]
        )


class _Exported:
    """An array for Triton to take. Triton renames the capsule in a way of its own; NumPy's last look at it then fails,
    and would say so on stderr for every tensor. Triton frees the array itself."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __dlpack__(self, **_options: object) -> object:
        capsule = self._array.__dlpack__()
        ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
        return capsule

    def __dlpack_device__(self) -> object:
        return self._array.__dlpack_device__()


def _parameters(document: str) -> dict[str, Any]:
    """A request's own parameters, by name. Raises `InputError` for those that nobody knows."""
    given = json.loads(document or "{}")
    unknown = sorted(set(given) - set(_OURS) - set(_TRITONS))
    if unknown:
        raise InputError(f"nobody knows the parameter {unknown[0]!r}", f"known are {', '.join(_OURS)}")
    chosen = {name: given[name] for name in _OURS if name in given}
    memory, limit = chosen.get("memory", ""), chosen.get("max_new_tokens", 0)
    if not isinstance(memory, str):
        raise InputError(f"memory is {memory!r}, not a name", "send a string")
    if type(limit) is not int or limit < 0:
        raise InputError(f"max_new_tokens is {limit!r}, not a count", "send a whole number from 0 on")
    return chosen
