"""`dna`: bits per base of repeats whose first copy lies far back, or of the bases of FASTA files.

Planted repeats (see `titans_tasks.dna`) need no bit with a perfect memory and 2 with none. The control reads
the second copies alone, with a memory that starts afresh.

Knows the task's measure. Does not know how sequences are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from titans_format.progress import ReportProgress
from titans_measure.quality import reading
from titans_measure.quality.errors import EvalError
from titans_measure.quality.fitness import require_task
from titans_measure.quality.likelihood import Bits, marked_bits
from titans_measure.quality.report import Subject, unwatched
from titans_runtime import Model
from titans_tasks.dna import VOCABULARY, BaseTokenizer, PlantedConfig, planted_sequence, read_fasta
from titans_tasks.documents import split

FIRST_STREAM = 1000  # training judges itself by the first few streams; these are others


@dataclass(frozen=True, kw_only=True)
class DnaOptions:
    """What to ask.

    families: planted repeats per sequence.
    gaps: random bases between the first copies and the second, each a point of the curve.
    streams: sequences per point.
    """

    families: int = 4
    gaps: tuple[int, ...] = (4096,)
    streams: int = 16

    def __post_init__(self) -> None:
        if not self.gaps or min(self.gaps) < 0 or self.streams < 1:
            raise EvalError("dna needs at least one gap and one stream", "add what is missing")


@dataclass(frozen=True, kw_only=True)
class Point:
    """Bits per base of the second bodies after one gap.

    by_offset: the same by place in the body; the first bases have little but the promoter before them.
    """

    gap: int
    bases: int
    bits: float
    by_offset: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DnaReport:
    """The curve over gaps, shortest first, and the control, whose gap is 0."""

    subject: Subject
    options: DnaOptions
    points: tuple[Point, ...]
    reset: Point

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "task": "dna",
            "model": self.subject.as_json(),
            "wish": asdict(self.options),
            "points": [asdict(point) for point in self.points],
            "reset": asdict(self.reset),
        }

    def lines(self) -> Sequence[str]:
        """One line per point."""
        found = [
            f"dna: {self.subject}",
            f"  {self.options.families} planted repeats, bits per base of their second copies",
        ]
        found += [f"  after {point.gap:,} bases: {point.bits:.3f}" for point in self.points]
        return [*found, f"  memory reset before them: {self.reset.bits:.3f}"]


def evaluate(model: Model, options: DnaOptions, progress: ReportProgress = unwatched) -> DnaReport:
    """Ask a bundle about planted repeats.

    Raises:
        EvalError: the model learned other ids.
        ExecutionError: a graph failed.
    """
    require_task(model, "dna", VOCABULARY)
    config = PlantedConfig(families=options.families)
    done, total = 0, sum(gap + 1024 for gap in options.gaps)

    def on_progress(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(min(done, total), total)

    points = [_point(model, config, gap, options.streams, on_progress) for gap in sorted(set(options.gaps))]
    reset = _point(model, config, 0, options.streams, on_progress, afresh=True)
    progress(total, total)
    return DnaReport(subject=Subject.of(model), options=options, points=tuple(points), reset=reset)


def evaluate_fasta(
    model: Model, data: tuple[str, ...], sizes: reading.Sizes, progress: ReportProgress = unwatched
) -> reading.ReadingReport:
    """Read the held-out records of FASTA files with a bundle.

    Raises:
        EvalError: the model learned other ids, or no record is long enough.
        DataError: a file cannot be read.
        ExecutionError: a graph failed.
    """
    require_task(model, "dna", VOCABULARY)
    documents = reading.long_enough(split(read_fasta(data)).held_out, sizes)
    tokens = [BaseTokenizer().encode(document.data).astype(np.int64) for document in documents]
    return reading.read_documents(model, documents, tokens, sizes, progress, task="dna", unit="base", data=data)


def _point(
    model: Model, config: PlantedConfig, gap: int, streams: int, on_progress: Any, afresh: bool = False
) -> Point:
    made = [planted_sequence(config, gap, FIRST_STREAM + number) for number in range(streams)]
    parts = [(one.bases, one.repeated) for one in made]
    if afresh:
        parts = [(one.bases[one.again :], one.repeated[one.again :]) for one in made]
    longest = max(len(bases) for bases, _ in parts)
    tokens = np.zeros((streams, longest), np.int64)
    marked = np.zeros((streams, longest), np.bool_)
    for row, (bases, repeated) in enumerate(parts):
        tokens[row, : len(bases)], marked[row, : len(bases)] = bases, repeated
    bits: Bits = marked_bits(model.driver(streams), tokens, marked, on_progress)[marked]
    by_offset = bits.reshape(-1, config.body).mean(0)
    return Point(gap=gap, bases=len(bits), bits=float(bits.mean()), by_offset=tuple(map(float, by_offset)))
