"""What a run reports: a CSV and a JSON-lines log beside the checkpoint, and a line of progress on the terminal.

Knows how figures are shown. Does not know where they come from.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

CSV_NAME, JSONL_NAME = "log.csv", "log.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step. `step` counts from 1; `loss` is per counted prediction, over the global batch."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int  # since the start of the run
    tokens_per_second: float


class Observer(Protocol):
    """Whoever wants to follow a run."""

    def on_step(self, record: StepRecord) -> None:
        """A step is done."""

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """The held-out data was evaluated after `step` steps."""


class LogFiles:
    """`log.csv` has the steps; `log.jsonl` has steps and evaluations. A resumed run continues both without a gap."""

    def __init__(self, directory: Path, *, done: int) -> None:
        """Continue after step `done`: what a killed run wrote beyond its last checkpoint is dropped."""
        kept = _records(directory / JSONL_NAME, done)
        self._jsonl = (directory / JSONL_NAME).open("w", encoding="utf-8", buffering=1)
        self._csv_file = (directory / CSV_NAME).open("w", encoding="utf-8", newline="", buffering=1)
        self._csv = csv.writer(self._csv_file)
        self._csv.writerow([field.name for field in dataclasses.fields(StepRecord)])
        for record in kept:
            self._write(record)

    def on_step(self, record: StepRecord) -> None:
        """One line in each file."""
        self._write(dataclasses.asdict(record))

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """One line in the JSON-lines file: `{"step": …, "held_out": {…}}`."""
        self._write({"step": step, "held_out": metrics})

    def close(self) -> None:
        """Close both files."""
        self._jsonl.close()
        self._csv_file.close()

    def _write(self, record: dict[str, object]) -> None:
        self._jsonl.write(json.dumps(record) + "\n")
        if "loss" in record:
            self._csv.writerow(record.values())


class ProgressLine:
    """Steps, loss, held-out figure and tokens/s on a terminal; about ten plain lines where there is none."""

    def __init__(self, stream: TextIO, *, steps: int) -> None:
        self._console = Console(file=stream)
        self._lines_at = {round(steps * i / 10) for i in range(1, 11)}
        self._latest = ""
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._bar = self._progress.add_task("training", total=steps, figures="")
        self._shown = 0.0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def on_step(self, record: StepRecord) -> None:
        """Move the bar, at most ten times a second."""
        figures = f"loss {record.loss:.4f}  {record.tokens_per_second:,.0f} tokens/s{self._latest}"
        if not self._console.is_terminal:
            if record.step in self._lines_at:
                self._console.print(f"step {record.step}  {figures}", highlight=False)
            return
        self._progress.start()  # only now: of several processes, only the one that reports shows a bar
        now = time.monotonic()
        if now - self._shown > 0.1:
            self._shown = now
            self._progress.update(self._bar, completed=record.step, figures=figures)

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Show the first figure beside the loss from now on."""
        name, value = next(iter(metrics.items()))
        self._latest = f"  held-out {name} {value:.4f}"
        text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._console.print(f"step {step}  held out: {text}", highlight=False, soft_wrap=True)


def _records(path: Path, done: int) -> list[dict[str, object]]:
    """The records of an earlier run up to step `done`; a half-written last line ends them."""
    records: list[dict[str, object]] = []
    if done == 0 or not path.exists():
        return records
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or record.get("step", done + 1) > done:
            break
        records.append(record)
    return records
