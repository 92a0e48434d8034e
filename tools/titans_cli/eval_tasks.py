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
from titans_format.progress import ReportProgress

if TYPE_CHECKING:
    from titans_measure.quality.report import Report
    from titans_runtime import Model
    from titans_tasks.needle import Form

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
        "--gap", "gaps", tasks=["recall", "facts", "dna without --data"], type=click.IntRange(0), multiple=True,
        default=(4096,), show_default=True, help="Filler before the questions; repeatable.",
    ),
    task_option(
        "--form", tasks=["needle"], type=click.Choice(FORMS), default="passkey", show_default=True,
        help="What is hidden.",
    ),
    task_option(
        "--length", "lengths", tasks=["needle"], type=click.IntRange(1), multiple=True,
        help="Bytes of a stream; repeatable.  [default: 256 to 16384, doubling]",
    ),
    task_option(
        "--facts", tasks=["facts"], type=click.IntRange(1), multiple=True, default=(8,), show_default=True,
        help="Facts to remember; repeatable.",
    ),
    task_option(
        "--streams", tasks=["recall", "needle", "facts", "dna without --data"], type=click.IntRange(1),
        help="Streams per figure.  [default: 64 for needle, 8 for facts, else 16]",
    ),
    task_option(
        "--families", tasks=["dna without --data"], type=click.IntRange(1), default=4, show_default=True,
        help="Planted repeats.",
    ),
    task_option(
        "--data", tasks=["text", "needle", "facts", "series", "dna"], multiple=True, metavar="NAME|FILE",
        help="What to read, as in training; repeatable.  [default: stdlib; topics for facts; planted repeats for dna]",
    ),
    task_option(
        "--shortest", tasks=["text", "dna with --data"], type=click.IntRange(2), default=16_384, show_default=True,
        help="Bytes below which a document is left out.",
    ),
    task_option(
        "--longest", tasks=["text", "dna with --data"], type=click.IntRange(2), default=65_536, show_default=True,
        help="Bytes that are read of a document.",
    ),
    task_option(
        "--window", tasks=["text", "dna with --data"], type=click.IntRange(2), default=128, show_default=True,
        help="Tokens between resets, and per window of a frozen memory.",
    ),
    task_option(
        "--frozen-after", tasks=["text", "dna with --data"], type=click.IntRange(1), default=1024, show_default=True,
        help="Tokens that a frozen memory has read.",
    ),
    task_option(
        "--season", tasks=["series"], type=click.IntRange(1), help="Steps per season.  [default: what is known, or 1]"
    ),
    task_option(
        "--anomalies", tasks=["series"], type=click.IntRange(0), default=4, show_default=True,
        help="Times anomalies are put in and looked for.",
    ),
    task_option(
        "--anomaly-size", tasks=["series"], type=click.FloatRange(0, min_open=True), default=4.0, show_default=True,
        help="Their size, in typical changes.",
    ),
    task_option(
        "--first-step", tasks=["series"], type=click.IntRange(1),
        help="First step that is forecast.  [default: after four fifths]",
    ),
    task_option(
        "--last-step", tasks=["series"], type=click.IntRange(1), help="Step before which they end.  [default: the end]"
    ),
    task_option(
        "--horizon", "horizons", tasks=["series"], type=click.IntRange(1), multiple=True,
        help="Judge by the steps up to a shorter horizon too; repeatable.",
    ),
    task_option(
        "--fresh", tasks=["series"], type=click.IntRange(1),
        help="Make every forecast with a fresh memory that reads so many steps.  [default: one stream]",
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
    model: Model,
    progress: ReportProgress,
    *,
    keys: int,
    pairs: tuple[int, ...],
    gaps: tuple[int, ...],
    streams: int | None,
) -> Report:
    from titans_measure.quality.recall import RecallOptions, evaluate

    usual = RecallOptions(keys=keys, pairs=pairs, gaps=gaps)
    return evaluate(model, replace(usual, streams=streams or usual.streams), progress)


def _needle(
    model: Model,
    progress: ReportProgress,
    *,
    form: Form,
    lengths: tuple[int, ...],
    data: tuple[str, ...],
    streams: int | None,
) -> Report:
    from titans_measure.quality.needle import NeedleOptions, evaluate

    usual = NeedleOptions(form=form)
    options = NeedleOptions(
        form=form,
        lengths=lengths or usual.lengths,
        data=data or usual.data,
        streams=streams or usual.streams,
    )
    return evaluate(model, options, progress)


def _facts(
    model: Model,
    progress: ReportProgress,
    *,
    facts: tuple[int, ...],
    gaps: tuple[int, ...],
    data: tuple[str, ...],
    streams: int | None,
) -> Report:
    from titans_measure.quality.facts import FactsOptions, evaluate, source_of
    from titans_tasks.documents import TOPICS, read_corpus

    usual = FactsOptions(facts=facts, gaps=gaps)
    documents = read_corpus(data or (TOPICS,)).held_out
    return evaluate(model, source_of(model, documents), replace(usual, streams=streams or usual.streams), progress)


def _draw_recall(report: Any, path: Path) -> None:
    from titans_measure.quality.plots import draw_recall

    draw_recall(report, path)


def _draw_facts(report: Any, path: Path) -> None:
    from titans_measure.quality.plots import draw_facts

    draw_facts(report, path)


def _draw_needle(report: Any, path: Path) -> None:
    from titans_measure.quality.plots import draw_needle

    draw_needle(report, path)


def _text(model: Model, progress: ReportProgress, *, data: tuple[str, ...], **sizes: int) -> Report:
    from titans_measure.quality.reading import Sizes
    from titans_measure.quality.text import evaluate

    return evaluate(model, data or ("stdlib",), Sizes(**sizes), progress)


def _series(
    model: Model,
    progress: ReportProgress,
    *,
    data: tuple[str, ...],
    season: int | None,
    anomalies: int,
    anomaly_size: float,
    first_step: int | None,
    last_step: int | None,
    horizons: tuple[int, ...],
    fresh: int | None,
) -> Report:
    from titans_measure.quality.series import SeriesOptions, evaluate
    from titans_tasks.series_data import SOURCES

    if len(data) != 1:
        raise click.UsageError(f"--task series needs one --data: a .csv or .npy file, or one of {', '.join(SOURCES)}")
    options = SeriesOptions(
        data=data[0],
        season=season,
        anomalies=anomalies,
        size=anomaly_size,
        first=first_step,
        last=last_step,
        horizons=horizons,
        window=fresh,
    )
    return evaluate(model, options, progress)


def _dna(
    model: Model,
    progress: ReportProgress,
    *,
    data: tuple[str, ...],
    families: int,
    gaps: tuple[int, ...],
    streams: int | None,
    **sizes: int,
) -> Report:
    from titans_measure.quality.dna import DnaOptions, evaluate, evaluate_fasta
    from titans_measure.quality.reading import Sizes

    if data:
        return evaluate_fasta(model, data, Sizes(**sizes), progress)
    return evaluate(model, DnaOptions(families=families, gaps=gaps, streams=streams or 16), progress)


def _draw_documents(report: Any, path: Path) -> None:
    from titans_measure.quality import dna, plots_documents, series

    if isinstance(report, dna.DnaReport):
        plots_documents.draw_dna(report, path)
    elif isinstance(report, series.SeriesReport):
        plots_documents.draw_series(report, path)
    else:
        plots_documents.draw_reading(report, path)


TASKS = {
    "recall": EvalTask(_recall, _draw_recall),
    "needle": EvalTask(_needle, _draw_needle),
    "facts": EvalTask(_facts, _draw_facts),
    "text": EvalTask(_text, _draw_documents),
    "series": EvalTask(_series, _draw_documents),
    "dna": EvalTask(_dna, _draw_documents),
}
