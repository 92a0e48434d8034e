"""Every error has one root, and its message is made of its parts."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from pathlib import Path

import pytest

import titans_core
import titans_export
import titans_measure
import titans_runtime
import titans_tasks
from titans_format.errors import TitansError
from titans_runtime.errors import NonFiniteError, ProviderError

# What never reaches a caller: those of readers, of the file system and of templates, and two between threads.
INTERNAL = {"WireError", "RefusedFileError", "LimitError", "RefusalError", "JobAbandonedError", "JobFailedError"}


def test_a_message_is_its_place_its_finding_and_its_remedy() -> None:
    error = TitansError("chunk is 0", "use at least 1", where=Path("manifest.json"))
    assert str(error) == "manifest.json: chunk is 0; use at least 1"
    assert (error.where, error.what, error.remedy) == ("manifest.json", "chunk is 0", "use at least 1")
    assert str(TitansError("chunk is 0", "use at least 1")) == "chunk is 0; use at least 1"


@pytest.mark.parametrize(
    "error",
    [
        TitansError("what", "remedy", where="file"),
        ProviderError("what", "remedy", "no device"),
        NonFiniteError("step", 7, "memory.0"),
    ],
)
def test_an_error_survives_a_copy_and_another_process(error: TitansError) -> None:
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


@pytest.mark.parametrize("package", [titans_core, titans_export, titans_measure, titans_runtime, titans_tasks])
def test_every_error_of_a_package_has_the_one_root(package: object) -> None:
    path, name = package.__path__, package.__name__  # type: ignore[attr-defined]
    for found in pkgutil.walk_packages(path, f"{name}."):
        if found.name.endswith(".titans_kernels"):  # a library of C, not a module
            continue
        module = importlib.import_module(found.name)
        for kind in vars(module).values():
            ours = isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == module.__name__
            if ours and kind.__name__ not in INTERNAL:
                assert issubclass(kind, TitansError), f"{found.name}.{kind.__name__}"
