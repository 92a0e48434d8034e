"""What `titans eval --task` can measure: for every task its options, how it is run and how it is drawn.

Imports a task's module only when it runs. Does not know how reports are shown (`eval`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from titans_cli.task_options import task_option

if TYPE_CHECKING:
    from titans_core.training.needle import Form
    from titans_eval.report import Progress, Report
    from titans_runtime import Model

FORMS = ("passkey", "number", "uuid")

OPTIONS = (
    task_option(
        "--keys", tasks=["recall"], type=click.IntRange(1), default=32, show_default=True, help="Keys, and values."
    ),
    task_option(
        "--pairs", tasks=["recall"], type=click.IntRange(1), multiple=True, default=(16,), show_default=True,
        help="Pairs to remember; repeatable.",
    ),
    task_option(
        "--gap", "gaps", tasks=["recall"], type=click.IntRange(0), multiple=True, default=(4096,), show_default=True,
        help="Filler before the questions; repeatable.",
    ),
    task_option(
        "--form", tasks=["needle"], type=click.Choice(FORMS), default="passkey", show_default=True,
        help="What is hidden.",
    ),
    task_option(
        "--length", "lengths", tasks=["needle"], type=click.IntRange(1), multiple=True,
        help="Bytes of a stream; repeatable.  [default: 256 to 16384, doubling]",
    ),
    task_option("--data", tasks=["needle"], multiple=True, metavar="stdlib|FILE", help="Haystack.  [default: stdlib]"),
    task_option(
        "--streams", tasks=["recall", "needle"], type=click.IntRange(1),
        help="Streams per figure.  [default: 16 for recall, 64 for needle]",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class EvalTask:
    """A task of the command line.

    evaluate: called with the model, the progress and the task's own options by name.
    draw: writes a picture of the report that `evaluate` returned.
    """

    evaluate: Callable[..., Report]
    draw: Callable[[Any, Path], None]


def _recall(
    model: Model, progress: Progress, *, keys: int, pairs: tuple[int, ...], gaps: tuple[int, ...], streams: int | None
) -> Report:
    from titans_eval.recall import Wish, evaluate

    usual = Wish(keys=keys, pairs=pairs, gaps=gaps)
    return evaluate(model, replace(usual, streams=streams or usual.streams), progress)


def _needle(
    model: Model,
    progress: Progress,
    *,
    form: Form,
    lengths: tuple[int, ...],
    data: tuple[str, ...],
    streams: int | None,
) -> Report:
    from titans_eval.needle import Wish, evaluate

    usual = Wish(form=form)
    wish = Wish(
        form=form,
        lengths=lengths or usual.lengths,
        data=data or usual.data,
        streams=streams or usual.streams,
    )
    return evaluate(model, wish, progress)


def _draw_recall(report: Any, path: Path) -> None:
    from titans_eval.plots import draw_recall

    draw_recall(report, path)


def _draw_needle(report: Any, path: Path) -> None:
    from titans_eval.plots import draw_needle

    draw_needle(report, path)


TASKS = {
    "recall": EvalTask(_recall, _draw_recall),
    "needle": EvalTask(_needle, _draw_needle),
}
