"""Whether a model can be asked a task at all: its ids must mean what the task's ids mean.

Any model takes any ids that its vocabulary has, and answers; the figures would only say nothing. What ids mean is told
by the tokenizer, and by the training task and its sizes in the provenance of a bundle. Where a bundle does not say what
it was trained on, its vocabulary must have exactly the size that the task's has.

Knows bundles' manifests. Does not know how a task is measured.
"""

from __future__ import annotations

from titans_format.fields import TokenInputs
from titans_measure.quality.errors import EvalError
from titans_runtime import Model

_SETTING = "task."  # prefix of the training task's settings in a bundle's provenance


def require_tokens(model: Model, task: str) -> int:
    """The size of the model's vocabulary. Raises `EvalError` for a model that takes vectors."""
    kind = model.manifest.inputs
    if not isinstance(kind, TokenInputs):
        raise EvalError(f"{task} needs a model of tokens, and this one takes vectors", "use --task series")
    return kind.vocab_size


def require_bytes(model: Model, task: str) -> None:
    """Raise `EvalError` unless the model's ids are the bytes of text."""
    size = require_tokens(model, task)
    tokenizer, trained = model.manifest.tokenizer, _setting(model, "task")
    reads_bytes = tokenizer is not None and tokenizer.kind == "byte" and trained in (None, "text")
    if not (reads_bytes or trained == task):
        learned = "" if trained is None else f", trained with --task {trained},"
        raise EvalError(
            f"{task} is asked in bytes, 256 token ids, and the {size} ids of this model{learned} are others",
            f"train one with --task {task}, or with --task text and without --tokenizer",
        )


def require_task(model: Model, task: str, ids: int, **sizes: int) -> None:
    """Raise `EvalError` unless the model learned `task`, whose vocabulary has `ids` ids, with the same `sizes`.

    `sizes` are the options of the task that the meaning of an id depends on.
    """
    size, trained = require_tokens(model, task), _setting(model, "task")
    if trained not in (None, task):
        raise EvalError(
            f"{task} is asked in ids of its own, and this model learned those of {trained}",
            f"use --task {trained}, or train one with --task {task}",
        )
    for name, wanted in sizes.items():
        known = _setting(model, name)
        if known not in (None, str(wanted)):
            raise EvalError(
                f"{task} with {wanted} {name} has {ids} token ids and the model {size}, as it was trained with"
                f" {known} {name}",
                f"use --{name} {known}",
            )
    if size < ids or (size != ids and trained is None):
        raise EvalError(
            f"{task} of this size has {ids} token ids and the model {size}",
            f"ask for the sizes it was trained with, or train one with --task {task}",
        )


def _setting(model: Model, name: str) -> str | None:
    return model.manifest.provenance.get(_SETTING + name)
