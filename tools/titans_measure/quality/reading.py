"""Long documents read by a bundle: bits per byte, or per base, by position, with the memory and without parts of it.

Knows documents and their tokens. Does not know where they come from (`text`, `dna`) nor how bits are counted
(`likelihood`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from titans_format.progress import ReportProgress
from titans_measure.quality.errors import EvalError
from titans_measure.quality.likelihood import MODES, Bits, Bucket, Ids, Mode, by_position, document_bits
from titans_measure.quality.report import Subject
from titans_runtime import Driver, InputError, Model
from titans_runtime.stream.memories import dead_memories, dead_warning, learned_names
from titans_tasks.documents import Document, character_boundary


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What of the documents is read, and how.

    shortest: documents of fewer bytes say nothing about long ones and are left out.
    longest: bytes of a document that are read.
    window: tokens per window where the memory is reset or frozen.
    frozen_after: tokens that the frozen memory has read.
    """

    shortest: int = 16_384
    longest: int = 65_536
    window: int = 128
    frozen_after: int = 1024

    def __post_init__(self) -> None:
        if self.window < 2 or self.frozen_after < 1 or not 2 <= self.shortest <= self.longest:
            raise EvalError(
                f"documents of {self.shortest} to {self.longest} bytes, windows of {self.window} tokens, frozen after"
                f" {self.frozen_after}",
                "use at least 2, 2 and 1, and a longest that is not below the shortest",
            )


@dataclass(frozen=True, kw_only=True)
class ReadingReport:
    """The curves.

    task: whose documents they are.
    unit: what the bits are counted per, `byte` or `base`.
    bits: the mean over all bytes but the first of each document, in each mode. Bytes that do not come back from the
        tokens are not counted.
    positions: the same by position in the document, in tokens.
    dead_memories: those that could not learn any more at the end of a document, with the memory kept.
    lost: the share of the bytes that do not come back.
    """

    task: str
    unit: str
    subject: Subject
    sizes: Sizes
    data: tuple[str, ...]
    documents: tuple[tuple[str, int], ...]  # names and the bytes that were read
    bits: dict[Mode, float]
    positions: tuple[Bucket, ...]
    dead_memories: tuple[str, ...] = ()
    lost: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "task": self.task,
            "model": self.subject.as_json(),
            "wish": {"data": list(self.data), **asdict(self.sizes)},
            "documents": [{"name": name, f"{self.unit}s": size} for name, size in self.documents],
            f"{self.unit}s": sum(size for _, size in self.documents),
            f"bits_per_{self.unit}": dict(self.bits),
            "positions": [bucket.as_json() for bucket in self.positions],
            "dead_memories": list(self.dead_memories),
            **({"text_lost": self.lost} if self.lost else {}),
        }

    def lines(self) -> Sequence[str]:
        """One line per mode, then one per range of positions."""
        total = sum(size for _, size in self.documents)
        found = [
            f"{self.task}: {self.subject}",
            f"  {len(self.documents)} held-out documents, {total:,} {self.unit}s",
        ]
        if self.lost:
            found.append(f"  the tokenizer loses {self.lost:.2%} of it; bits per {self.unit} count the rest alone")
        words = {
            "kept": "memory kept",
            "reset": f"memory reset every {self.sizes.window} tokens",
            "frozen": f"memory frozen after {self.sizes.frozen_after:,} tokens",
            "writes_off": "memory never written",
        }
        found += [f"  {words[mode]}: {self.bits[mode]:.3f} bits/{self.unit}" for mode in MODES if mode in self.bits]
        for bucket in self.positions:
            off = "" if bucket.writes_off is None else f", never written {bucket.writes_off:.3f}"
            found.append(
                f"  tokens {bucket.start:,} to {bucket.stop - 1:,}: kept {bucket.kept:.3f},"
                f" reset {bucket.reset:.3f}, frozen {bucket.frozen:.3f}{off}"
            )
        if self.dead_memories:
            found.append(f"  warning: {dead_warning(self.dead_memories)}")
        return found


def long_enough(documents: Sequence[Document], sizes: Sizes) -> list[Document]:
    """The documents of at least the shortest size, cut to the longest. Raises `EvalError` if there are none."""
    enough = [document for document in documents if len(document.data) >= sizes.shortest]
    found = [Document(d.name, d.data[: character_boundary(d.data, sizes.longest)]) for d in enough]
    if not found:
        longest = max((len(document.data) for document in documents), default=0)
        raise EvalError(
            f"no held-out document has {sizes.shortest:,} bytes, the longest has {longest:,}",
            "give longer files or a smaller --shortest",
        )
    return found


def read_documents(
    model: Model,
    documents: Sequence[Document],
    tokens: Sequence[Ids],
    sizes: Sizes,
    progress: ReportProgress,
    *,
    task: str,
    unit: str,
    data: tuple[str, ...],
    kept: Sequence[int] | None = None,
) -> ReadingReport:
    """Read documents in all modes.

    Args:
        model: what reads them.
        documents: what it reads.
        tokens: their ids.
        sizes: how they are read.
        progress: hears of tokens.
        task, unit, data: see `ReadingReport`.
        kept: bytes of each document that come back from its ids; None for all.

    Raises:
        EvalError: hardly a byte of a document comes back.
        ExecutionError: a graph failed.
    """
    counted = [len(document.data) for document in documents] if kept is None else kept
    for document, count in zip(documents, counted, strict=True):
        if count < 2:
            raise EvalError(f"none of the text of {document.name} comes back from its tokens", "read other text")
    models: dict[Mode, Model] = dict.fromkeys(MODES, model)
    try:
        models["writes_off"] = model.without_writes()
    except InputError:
        del models["writes_off"]
    done, total = 0, len(models) * sum(len(ids) - 1 for ids in tokens)

    def on_progress(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    windows = {"window": sizes.window, "frozen_after": sizes.frozen_after}
    per_unit = [(len(ids) - 1) / (count - 1) for count, ids in zip(counted, tokens, strict=True)]
    bits: dict[Mode, Sequence[Bits]] = {}
    dead: dict[str, None] = {}  # in the order in which they are met
    for mode, reader in models.items():
        read = []
        for ids in tokens:
            driver = reader.driver()
            read.append(document_bits(driver, ids, mode, **windows, on_progress=on_progress))
            if mode == "kept":
                dead |= dict.fromkeys(_dead(driver))
        bits[mode] = [share * one for share, one in zip(per_unit, read, strict=True)]
    return ReadingReport(
        task=task,
        unit=unit,
        subject=Subject.of(model),
        sizes=sizes,
        data=data,
        documents=tuple((document.name, len(document.data)) for document in documents),
        bits={mode: float(np.concatenate(found).mean()) for mode, found in bits.items()},
        positions=by_position(bits),
        dead_memories=tuple(dead),
        lost=1 - sum(counted) / sum(len(document.data) for document in documents),
    )


def _dead(driver: Driver) -> list[str]:
    """The memories of a stream that cannot learn any more."""
    state = driver.state()
    driver.reset()
    beginning = driver.state()
    return dead_memories({name: beginning[name] for name in learned_names(driver.manifest)}, state)
