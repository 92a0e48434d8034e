"""Modules that moved can be imported from where they were: the same objects, and a warning that says where they are."""

from __future__ import annotations

import importlib
import sys

import pytest

import titans_core.errors
import titans_runtime.text
from titans_runtime.text.tokenizer import LibraryTokenizer
from titans_tasks.errors import DataError

MOVED = {
    "titans_core.tokens": "titans_tasks.tokens",
    "titans_core.training.documents": "titans_tasks.documents",
    "titans_core.training.series_data": "titans_tasks.series_data",
    "titans_export.titans_pytorch.live": "titans_export.titans_pytorch.config_from_model",
    "titans_runtime.backends.nvidia": "titans_runtime.devices.tensorrt.nvidia",
}


@pytest.mark.parametrize(("was", "now"), MOVED.items(), ids=MOVED)
def test_a_module_that_moved_is_the_same_at_its_former_place(was: str, now: str) -> None:
    sys.modules.pop(was, None)
    with pytest.warns(DeprecationWarning, match=now):
        former = importlib.import_module(was)
    assert former is importlib.import_module(now)


def test_classes_that_moved_are_the_same_too() -> None:
    assert titans_core.errors.DataError is DataError
    assert titans_runtime.text.LibraryTokenizer is LibraryTokenizer
