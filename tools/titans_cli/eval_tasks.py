"""What `titans eval --task` can measure: for every task its options, how it is run and how it is drawn.

Imports a task's module only when it runs. Does not know how reports are shown (`eval`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from titans_cli.task_options import task_option

if TYPE_CHECKING:
    from titans_eval.report import Progress, Report
    from titans_runtime import Model

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
        "--streams", tasks=["recall"], type=click.IntRange(1), default=16, show_default=True,
        help="Streams per figure.",
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
    model: Model, progress: Progress, *, keys: int, pairs: tuple[int, ...], gaps: tuple[int, ...], streams: int
) -> Report:
    from titans_eval.recall import Wish, evaluate

    return evaluate(model, Wish(keys=keys, pairs=pairs, gaps=gaps, streams=streams), progress)


def _draw_recall(report: Any, path: Path) -> None:
    from titans_eval.plots import draw_recall

    draw_recall(report, path)


TASKS = {
    "recall": EvalTask(_recall, _draw_recall),
}
