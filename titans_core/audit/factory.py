"""`MODULE:FACTORY` to a PyTorch module: the user's own code, imported as `python -m` would import it.

Knows names and files. Does not know what is done with the module.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from titans_core.errors import ConfigError

_FORM = "write MODULE:FACTORY, such as my_package.models:build or models.py:build"


class AuditError(ConfigError):
    """A module that cannot be found, built or called, or whose outputs say nothing."""


def build(target: str) -> nn.Module:
    """The module that `target` names.

    Args:
        target: `MODULE:FACTORY`. MODULE is an import name, found from the current folder too, or a `.py` file. FACTORY
            is a function or class that needs no arguments, or a module itself.

    Raises:
        AuditError: naming the part that is missing, or what the user's code raised.
    """
    where, found, name = target.rpartition(":")
    if not found or not where or not name:
        raise AuditError(f"{target!r} names no factory", _FORM)
    value: object = _module(where)
    for part in name.split("."):
        if not hasattr(value, part):
            raise AuditError(f"{where} has no {name!r}", "name a function or class in it that returns a module")
        value = getattr(value, part)
    if not isinstance(value, nn.Module):
        if not callable(value):
            raise AuditError(f"{target} is a {type(value).__name__}", "name a function that returns a torch.nn.Module")
        value = _called(target, value)
    if not isinstance(value, nn.Module):
        raise AuditError(f"{target} returned a {type(value).__name__}", "let it return a torch.nn.Module")
    return value


def described(error: BaseException) -> str:
    """An exception of the user's code as one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first:.200}" if first else type(error).__name__


def _called(target: str, factory: object) -> object:
    torch.manual_seed(0)  # a model that starts at random is the same in every audit
    try:
        return factory()  # type: ignore[operator]
    except (Exception, SystemExit) as error:
        raise AuditError(
            f"{target}() raised {described(error)}", "correct it; TITANS_DEBUG=1 shows the traceback"
        ) from error


def _module(where: str) -> ModuleType:
    path = Path(where)
    folder = path.parent if where.endswith(".py") else Path()
    if (place := str(folder.resolve())) not in sys.path:
        sys.path.insert(0, place)
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        if not path.is_file():
            raise AuditError(f"{where} is not a file", _FORM)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise AuditError(f"{where} cannot be imported", _FORM)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # what dataclasses and pickles of its classes look for
        spec.loader.exec_module(module)
        return module
    except AuditError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and where.split(".")[0] == error.name.split(".")[0]:
            raise AuditError(f"there is no module {where!r} here", f"{_FORM}, from the folder it is in") from error
        raise AuditError(
            f"importing {where} raised {described(error)}", "correct it; TITANS_DEBUG=1 shows the traceback"
        ) from error
