"""A model is asked only what its ids can mean: other models are refused, however large their vocabulary."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from titans_format.fields import ContinuousInputs, TokenInputs
from titans_measure.quality.errors import EvalError
from titans_measure.quality.fitness import require_bytes, require_task
from titans_runtime import Model


def model(ids: int | None, tokenizer: str | None = None, **provenance: str) -> Model:
    """What of a model the checks look at; provenance without its prefix."""
    manifest: dict[str, Any] = {
        "inputs": ContinuousInputs(features=1, targets=1) if ids is None else TokenInputs(vocab_size=ids),
        "tokenizer": tokenizer and SimpleNamespace(kind=tokenizer),
        "provenance": {f"task.{name}": value for name, value in provenance.items()},
    }
    return cast(Model, SimpleNamespace(manifest=SimpleNamespace(**manifest)))


@pytest.mark.parametrize("able", [model(256, "byte"), model(256, "byte", task="text"), model(300, None, task="needle")])
def test_bytes_are_asked_of_models_of_bytes(able: Model) -> None:
    require_bytes(able, "needle")


@pytest.mark.parametrize(
    ("unable", "words"),
    [
        (model(None), "takes vectors"),
        (model(257), "the 257 ids of this model are others"),
        (model(32000, "tokenizers", task="text"), "without --tokenizer"),
        (model(256, "tokenizers"), "are others"),
        (model(256, "byte", task="dna"), "trained with --task dna, are others"),
    ],
)
def test_bytes_are_not_asked_of_others(unable: Model, words: str) -> None:
    with pytest.raises(EvalError, match=words):
        require_bytes(unable, "needle")


@pytest.mark.parametrize(
    "able",
    [
        model(129),
        model(129, task="recall", keys="64"),
        model(256, "byte", task="recall", keys="64"),  # a vocabulary made larger than it had to be
    ],
)
def test_a_task_is_asked_of_models_of_its_ids(able: Model) -> None:
    require_task(able, "recall", 129, keys=64)


@pytest.mark.parametrize(
    ("unable", "words"),
    [
        (model(None), "takes vectors"),
        (model(128), "129 token ids and the model 128"),
        (model(256, "byte"), "or train one with --task recall"),
        (model(129, task="text"), "learned those of text"),
        (model(129, task="recall", keys="32"), "use --keys 32"),
        (model(65, task="recall", keys="32"), "use --keys 32"),
    ],
)
def test_a_task_is_not_asked_of_others(unable: Model, words: str) -> None:
    with pytest.raises(EvalError, match=words):
        require_task(unable, "recall", 129, keys=64)
