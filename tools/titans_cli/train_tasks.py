"""What `titans train --task` can learn: for every task its options, and how they become a model and a source of data.

Imports PyTorch only when a task is made. Does not know how training goes (`train`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from titans_cli.model_options import ModelOptions
from titans_cli.options import unescaped
from titans_cli.task_options import task_option

if TYPE_CHECKING:
    from titans_core.config import TitansConfig
    from titans_core.decoder import DecoderConfig
    from titans_tasks.needle import Form
    from titans_tasks.task import Task

FORMS = ("passkey", "number", "uuid")
# Of a forecaster with a look-back: a head of full size begins with noise that short runs do not unlearn.
_HEAD_SCALE = 0.1
CHUNKS_PER_WINDOW = 4  # tokens per slice, in chunks of the model

OPTIONS = (
    task_option(
        "--data", tasks=["text", "needle", "facts", "series", "dna"], multiple=True, metavar="NAME|FILE",
        help="What to read; any number. stdlib, topics or files of text; one series by name or in a file; FASTA files.",
    ),
    task_option(
        "--tokenizer", tasks=["text"], type=click.Path(path_type=Path), help="A tokenizer.json; the default is bytes."
    ),
    task_option(
        "--eos", tasks=["text"], metavar="TOKEN",
        help="A token to end every document with, by its name; generated text ends there too.",
    ),
    task_option(
        "--window-tokens", "window", tasks=["text", "series", "dna with --data"], type=click.IntRange(1),
        help="Tokens per slice, between memory hand-overs.",
    ),
    task_option(
        "--horizon", tasks=["series"], type=click.IntRange(1), default=12, show_default=True, help="Steps to forecast."
    ),
    task_option(
        "--lookback", tasks=["series"], type=click.IntRange(2),
        help="A stream for each channel, scaled by its own past: the last values that a step shows.",
    ),
    task_option(
        "--span", tasks=["series"], type=click.IntRange(2),
        help="Steps that the trailing mean and deviation are taken over.  [default: as --lookback]",
    ),
    task_option(
        "--stream", tasks=["series"], type=click.IntRange(1),
        help="Steps of a training stream before its memory starts afresh.  [default: 2048; needs --lookback]",
    ),
    task_option(
        "--loss", tasks=["series"], type=click.Choice(["squared", "absolute"]), default="squared", show_default=True,
        help="What to make small; absolute needs --lookback.",
    ),
    task_option(
        "--train-steps", tasks=["series"], type=click.IntRange(1),
        help="Steps to train on, from the first.  [default: four fifths]",
    ),
    task_option(
        "--held-out-steps", tasks=["series"], type=click.IntRange(1),
        help="Steps after them to judge by at the end.  [default: all; needs --lookback]",
    ),
    task_option(
        "--keys", tasks=["recall"], type=click.IntRange(1), default=32, show_default=True, help="Keys, and values."
    ),
    task_option(
        "--pairs", tasks=["recall"], type=click.IntRange(1), default=16, show_default=True, help="Pairs to remember."
    ),
    task_option(
        "--facts", tasks=["facts"], type=click.IntRange(1), default=8, show_default=True, help="Facts to remember."
    ),
    task_option(
        "--repeat", tasks=["facts"], type=click.IntRange(1), default=100, show_default=True,
        help="Steps after which the same streams come again; their features are kept.",
    ),
    task_option(
        "--families", tasks=["dna without --data"], type=click.IntRange(1), default=4, show_default=True,
        help="Planted repeats.",
    ),
    task_option(
        "--gap", tasks=["recall", "facts", "dna without --data"], type=click.IntRange(0), default=128,
        show_default=True, help="Longest training gap.",
    ),
    task_option(
        "--eval-gap", tasks=["recall", "facts", "dna without --data"], type=click.IntRange(0), default=4096,
        show_default=True, help="Held-out gap.",
    ),
    task_option(
        "--form", tasks=["needle"], type=click.Choice(FORMS), default="passkey", show_default=True,
        help="What is hidden.",
    ),
    task_option(
        "--length", tasks=["needle"], type=click.IntRange(1), default=256, show_default=True,
        help="Longest training stream, in bytes.",
    ),
    task_option(
        "--eval-length", tasks=["needle"], type=click.IntRange(1), default=1024, show_default=True,
        help="Bytes of a held-out stream.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Lesson:
    """What to train, and on what.

    tokenizer_json: what the checkpoint carries along, or None for bytes and plain ids.
    series_json: how a series was scaled, which the checkpoint carries along too.
    read: what was read and what is held out, for a person.
    head_scale: of the fresh head's weights.
    notes: what whoever trains should know of the data, as sentences.
    """

    model: TitansConfig | DecoderConfig
    task: Task
    tokenizer_json: str | None = None
    series_json: str | None = None
    read: tuple[str, ...] = ()
    head_scale: float = 1.0
    notes: tuple[str, ...] = ()

    @property
    def titans(self) -> TitansConfig:
        """The model, where it is ours from the start."""
        from titans_core.config import TitansConfig

        if not isinstance(self.model, TitansConfig):
            raise TypeError("a pretrained decoder is not trained as a Titans model")
        return self.model

    @property
    def variant(self) -> str:
        """How the model is called in a report: its variant, or the architecture of a pretrained one."""
        from titans_core.config import TitansConfig

        return self.model.variant if isinstance(self.model, TitansConfig) else self.model.architecture


def _text(
    base: ModelOptions,
    seed: int,
    *,
    data: tuple[str, ...],
    tokenizer: Path | None,
    eos: str | None,
    window: int | None,
) -> Lesson:
    if not data:
        raise click.UsageError("--task text needs --data: stdlib, or files")
    from titans_tasks.documents import read_corpus
    from titans_tasks.text import TextTask
    from titans_tasks.tokens import load_tokenizer

    reader = base.beginning.tokenizer(tokenizer) if base.beginning else load_tokenizer(tokenizer)
    known = base.beginning.decoder if base.beginning else None
    model = known or base.build(reader.vocab_size)
    window = _slice(window, model)
    corpus = read_corpus(data)
    end = None if eos is None else reader.token_id(unescaped(eos))
    task = TextTask(corpus, reader, window=window, seed=seed, eos=end)
    return Lesson(model, task, reader.json, read=(corpus.described(),), notes=task.notes)


def _recall(base: ModelOptions, seed: int, *, keys: int, pairs: int, gap: int, eval_gap: int) -> Lesson:
    from titans_tasks.recall import RecallConfig, RecallTask

    recall = RecallConfig(keys=keys, values=keys, pairs=pairs, gap=gap, held_out_gap=eval_gap)
    model = base.build(recall.vocab_size)
    return Lesson(model, RecallTask(recall, chunk=model.chunk, seed=seed))


def _facts(
    base: ModelOptions, seed: int, *, data: tuple[str, ...], facts: int, gap: int, eval_gap: int, repeat: int
) -> Lesson:
    if base.beginning is None or base.beginning.decoder is None:
        raise click.UsageError(
            "--task facts is told and asked in plain language; give a pretrained model by --from, the --out of"
            " titans graft"
        )
    from titans_tasks.documents import TOPICS, read_corpus
    from titans_tasks.facts import FactsConfig, FactsTask

    model, reader = base.beginning.decoder, base.beginning.tokenizer(None)
    corpus = read_corpus(data or (TOPICS,))
    sizes = FactsConfig(facts=facts, gap=gap, repeat=repeat, held_out_gap=eval_gap, held_out_streams=6)
    task = FactsTask(sizes, corpus, reader.encode, base.beginning.render, chunk=model.chunk, seed=seed)
    return Lesson(model, task, reader.json, read=(corpus.described(),))


def _needle(
    base: ModelOptions, seed: int, *, data: tuple[str, ...], form: Form, length: int, eval_length: int
) -> Lesson:
    from titans_tasks.documents import STDLIB, read_corpus
    from titans_tasks.needle import VOCAB_SIZE, NeedleConfig, NeedleTask

    needle = NeedleConfig(form=form, length=length, held_out_length=eval_length)
    model = base.build(VOCAB_SIZE)
    corpus = read_corpus(data or (STDLIB,))
    return Lesson(model, NeedleTask(needle, corpus, chunk=model.chunk, seed=seed), read=(corpus.described(),))


def _series(
    base: ModelOptions,
    seed: int,
    *,
    data: tuple[str, ...],
    window: int | None,
    horizon: int,
    lookback: int | None,
    span: int | None,
    stream: int | None,
    loss: str,
    train_steps: int | None,
    held_out_steps: int | None,
) -> Lesson:
    from titans_tasks.lookback import Lookback, LookbackTask
    from titans_tasks.series import Forecasting, SeriesTask
    from titans_tasks.series_data import SOURCES, read_series

    if len(data) != 1:
        raise click.UsageError(f"--task series needs one --data: a .csv or .npy file, or one of {', '.join(SOURCES)}")
    if lookback is None:
        absolute = loss if loss == "absolute" else None
        alone = {"span": span, "stream": stream, "held-out-steps": held_out_steps, "loss": absolute}
        for name, value in alone.items():
            if value is not None:
                raise click.UsageError(f"--{name} belongs to --lookback; add it, such as --lookback 96")
    series = base.beginning.read_series(data[0]) if base.beginning else read_series(data[0])
    forecasting = Forecasting.of(series, horizon=horizon, train_steps=train_steps)
    held_out = len(series.values) - forecasting.split if held_out_steps is None else held_out_steps
    split = f"trains on the first {forecasting.split:,} steps; holds out {held_out:,}"
    if lookback is not None:
        if base.beginning is not None:
            forecasting = base.beginning.in_same_units(forecasting)
        reading = Lookback(forecasting, lookback, span or lookback)
        model = base.build_continuous(reading.features, reading.targets)
        task = LookbackTask(
            reading,
            window=_slice(window, model),
            seed=seed,
            stream=stream,
            held_out=held_out_steps,
            absolute=loss == "absolute",
        )
        scaling = json.dumps(reading.document(), indent=1)
        return Lesson(model, task, series_json=scaling, read=(*series.notes, split), head_scale=_HEAD_SCALE)
    model = base.build_continuous(forecasting.features, forecasting.targets)
    if base.beginning is not None:
        forecasting = base.beginning.scaled(forecasting)
    return Lesson(
        model,
        SeriesTask(forecasting, window=_slice(window, model), seed=seed),
        series_json=json.dumps(forecasting.document(), indent=1),
        read=(*series.notes, split),
    )


def _dna(
    base: ModelOptions,
    seed: int,
    *,
    data: tuple[str, ...],
    window: int | None,
    families: int,
    gap: int,
    eval_gap: int,
) -> Lesson:
    from titans_tasks.dna import VOCABULARY, GenomeTask, PlantedConfig, PlantedTask, described, read_fasta
    from titans_tasks.documents import split

    model = base.build(VOCABULARY)
    if data:
        records = read_fasta(data)
        task = GenomeTask(records, window=_slice(window, model), seed=seed)
        return Lesson(model, task, read=(described(records), split(records).described("record")))
    planted = PlantedConfig(families=families, gap=gap, held_out_gap=eval_gap)
    return Lesson(model, PlantedTask(planted, chunk=model.chunk, seed=seed))


def _slice(window: int | None, model: TitansConfig | DecoderConfig) -> int:
    """Tokens per slice, whole chunks of the model."""
    window = window or CHUNKS_PER_WINDOW * model.chunk
    if window % model.chunk:
        raise click.UsageError(f"--window-tokens {window} is not a multiple of the model's chunk, {model.chunk}")
    return window


# Called with the model options, the seed and the task's own options by name; FILEs are part of `data`.
TASKS: dict[str, Callable[..., Lesson]] = {
    "text": _text,
    "recall": _recall,
    "needle": _needle,
    "facts": _facts,
    "series": _series,
    "dna": _dna,
}
