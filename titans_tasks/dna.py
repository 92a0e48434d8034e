"""Nucleotide sequences: planted long-range repeats whose answer is known, or the user's own FASTA files.

A planted sequence is made like this. There are `families` promoters, short boxes that are the same in all sequences, as
a TATA box is in all genomes of a kind. A sequence has a body of its own behind each promoter, of random bases. First
every promoter appears once with its body, then comes a stretch of random bases, then every promoter again, in another
order, with the same body. Between them lie a few random bases. Only the bases of the second bodies count: a model that
remembers the first ones needs no bit for them, any other needs 2.

Knows the layout of a sequence and what FASTA looks like. Does not know models or torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from titans_tasks.documents import Document, split
from titans_tasks.errors import DataError
from titans_tasks.task import Batch, Scalar, Totals
from titans_tasks.text import TextTask
from titans_tasks.textfile import read_text
from titans_tasks.tokens import Ids

BASES = "ACGT"
VOCABULARY = 5  # the four bases, and N for everything else that FASTA allows
_UNKNOWN = 4
_SPACER = 8  # most random bases between two planted pieces
_TRAINING, _HELD_OUT, _GAPS, _PROMOTERS = 8, 9, 10, 11  # first numbers of the random seeds, as in `recall`


@dataclass(frozen=True, kw_only=True)
class PlantedConfig:
    """The size of the problem."""

    families: int = 4
    promoter: int = 8  # bases
    body: int = 8  # bases
    gap: int = 128  # longest gap in training, in bases
    held_out_gap: int = 4096  # the gap of the held-out sequences
    held_out_streams: int = 8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (0 if "gap" in name else 1):
                raise DataError(f"dna {name} is {value}", "use a larger number")
        if self.families > 4**self.promoter // 4:
            raise DataError(
                f"{self.families} promoters of {self.promoter} bases would look alike", "use longer or fewer ones"
            )


@dataclass(frozen=True)
class PlantedSequence:
    """One sequence.

    bases: int64 [T], indices into BASES.
    repeated: bool [T], the bases of the second bodies.
    again: where the second copies begin: the first copies and the gap lie before it.
    """

    bases: NDArray[np.int64]
    repeated: NDArray[np.bool_]
    again: int


def planted_sequence(config: PlantedConfig, gap: int, seed: int) -> PlantedSequence:
    """The held-out sequence number `seed` with `gap` bases between the first copies and the second."""
    return _planted(config, gap, np.random.default_rng([_HELD_OUT, seed]))


def promoters(config: PlantedConfig) -> NDArray[np.int64]:
    """The boxes of all sequences of this size: int64 [families, promoter], all different."""
    random = np.random.default_rng([_PROMOTERS, config.promoter])
    found: dict[bytes, NDArray[np.int64]] = {}
    while len(found) < config.families:
        box = random.integers(len(BASES), size=config.promoter)
        found.setdefault(box.tobytes(), box)
    return np.stack(list(found.values()))


def _planted(config: PlantedConfig, gap: int, random: np.random.Generator) -> PlantedSequence:
    boxes = promoters(config)
    bodies = random.integers(len(BASES), size=(config.families, config.body))
    pieces: list[tuple[NDArray[np.int64], bool]] = []
    for again in (False, True):
        for family in random.permutation(config.families):
            pieces.append((random.integers(len(BASES), size=random.integers(_SPACER + 1)), False))
            pieces += [(boxes[family], False), (bodies[family], again)]
        if not again:
            pieces.append((random.integers(len(BASES), size=gap), False))
    repeated = np.concatenate([np.full(len(bases), marked) for bases, marked in pieces])
    first = 3 * config.families + 1  # pieces of the first copies, and the gap
    second = sum(len(bases) for bases, _ in pieces[:first])
    return PlantedSequence(np.concatenate([bases for bases, _ in pieces]), repeated, second)


class PlantedTask:
    """Fresh sequences at every step, one gap per step, padded to whole chunks."""

    carries = False

    def __init__(self, config: PlantedConfig, *, chunk: int, seed: int) -> None:
        self.config = config
        self._chunk, self._seed = chunk, seed

    @property
    def settings(self) -> dict[str, Scalar]:
        """The sizes, the chunk the padding follows, and the seed."""
        return {"task": "dna", **asdict(self.config), "chunk": self._chunk, "seed": self._seed}

    def batch(self, step: int, rows: range) -> Batch:
        """Whole sequences; every row of every step is new."""
        gap = int((self.config.gap + 1) ** np.random.default_rng([_GAPS, self._seed, step]).random()) - 1
        randoms = (np.random.default_rng([_TRAINING, self._seed, step, row]) for row in rows)
        return self._pack([_planted(self.config, gap, random) for random in randoms])

    def held_out(self) -> Iterator[Batch]:
        """The first of `planted_sequence` across the long gap, in slices so that memory use stays small."""
        config = self.config
        sequences = [planted_sequence(config, config.held_out_gap, seed) for seed in range(config.held_out_streams)]
        whole = self._pack(sequences)
        length = -(-512 // self._chunk) * self._chunk
        for start in range(0, whole.inputs.shape[1], length):
            part = slice(start, start + length)
            reset = np.full(len(sequences), start == 0)
            yield Batch(whole.inputs[:, part], whole.targets[:, part], whole.mask[:, part], reset)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """`bits_per_base` of the repeated bodies: 2 without memory, 0 with a perfect one."""
        return {
            "bits_per_base": totals.mean_loss / float(np.log(2)),
            "loss": totals.mean_loss,
            "accuracy": totals.correct / max(totals.count, 1),
        }

    def _pack(self, sequences: list[PlantedSequence]) -> Batch:
        longest = max(len(sequence.bases) for sequence in sequences)
        length = -(-longest // self._chunk) * self._chunk
        inputs = np.zeros((len(sequences), length), np.int64)
        targets, mask = np.zeros_like(inputs), np.zeros(inputs.shape, np.bool_)
        for row, sequence in enumerate(sequences):
            size = len(sequence.bases) - 1
            inputs[row, : size + 1] = sequence.bases
            targets[row, :size], mask[row, :size] = sequence.bases[1:], sequence.repeated[1:]
        return Batch(inputs, targets, mask, np.ones(len(sequences), np.bool_))


# -- FASTA -------------------------------------------------------------------------------------------------------------

_LETTERS = set("ACGTURYKMSWBDHVN-*.")  # IUPAC's, gaps of alignments, and the end of a translated reading frame
_LEAST_BASES = 0.5  # share of A, C, G, T and U in a record; a protein that has no other letters has a third
_FORMATS = {"@": "FASTQ", "LOCUS": "GenBank", "ID ": "EMBL", "##gff": "GFF", "CLUSTAL": "Clustal", "#NEXUS": "NEXUS"}


class BaseTokenizer:
    """Bases to ids: A, C, G, T (or U) in either case, and N for what else there is."""

    vocab_size = VOCABULARY
    json: str | None = None
    exact = True  # as bases: what else a letter says, such as masking by lower case, is not asked
    has_decoder = True

    def encode(self, data: bytes) -> Ids:
        """Ids uint8 [T], one per base."""
        table = np.full(256, _UNKNOWN, np.uint8)
        for number, base in enumerate(BASES):
            table[[ord(base), ord(base.lower())]] = number
        table[[ord("U"), ord("u")]] = BASES.index("T")  # what RNA has in its place
        return table[np.frombuffer(data, np.uint8)]

    def decode(self, ids: Ids) -> bytes:
        """The letters of `ids` [T]."""
        return bytes((BASES + "N").encode()[i] for i in ids)

    def token_id(self, name: str) -> int:
        """The id of a letter."""
        letters = BASES + "N"
        if name not in letters:
            raise DataError(f"{name!r} is not one of the letters {letters}", "name one of them")
        return letters.index(name)


def read_fasta(paths: Sequence[str]) -> list[Document]:
    """The records of FASTA files, in order, without line breaks; compressed with gzip or not.

    Raises:
        DataError: a file is missing, unreadable or not FASTA, or its letters are those of a protein.
    """
    records: list[Document] = []
    for path in map(Path, paths):
        text = read_text(path, "give FASTA, compressed with gzip or not").text
        lines = [line for line in text.split("\n") if line.strip() and not line.startswith(";")]
        if not lines or not lines[0].startswith(">"):
            raise _not_fasta(path, lines[0] if lines else "")
        starts = [i for i, line in enumerate(lines) if line.startswith(">")]
        for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
            header, sequence = lines[start][1:].strip(), "".join("".join(lines[start + 1 : stop]).split())
            _check_nucleotides(path, header, sequence)
            if len(sequence) > 1:
                name = (header.split() or ["record"])[0]
                records.append(Document(f"{path.name}/{len(records)}-{name}", sequence.encode("ascii")))
    if not records:
        raise DataError("there is no sequence in the FASTA files", "name files that have some")
    return records


def described(records: Sequence[Document]) -> str:
    """What was read, for a person: records and bases, and how many letters stand for U or for N."""
    whole = b"".join(record.data for record in records).upper()
    unknown = int((BaseTokenizer().encode(whole) == _UNKNOWN).sum())
    plain = whole.count(b"N")
    notes = [
        f"{len(records):,} records, {len(whole):,} bases",
        *([f"{uracil:,} U read as T"] if (uracil := whole.count(b"U")) else []),
        *([f"{unknown - plain:,} other letters read as N"] if unknown > plain else []),
        *([f"{plain:,} N"] if plain else []),
    ]
    return ", ".join(notes)


def _not_fasta(path: Path, line: str) -> DataError:
    known = next((name for start, name in _FORMATS.items() if line.startswith(start)), None)
    found = f", and looks like {known}" if known else ""
    remedy = "convert it" if known else "give a header line before every sequence"
    return DataError(f"{path} is not FASTA, which starts with '>'{found}", remedy)


def _check_nucleotides(path: Path, header: str, sequence: str) -> None:
    wrong = sorted(letter for letter in set(sequence) if letter.upper() not in _LETTERS)
    if wrong:
        raise DataError(f"{wrong[0]!r} in {header!r} is no nucleotide", "give DNA or RNA, not protein", where=path)
    sequence = sequence.upper()
    letters = len(sequence) - sum(map(sequence.count, "N-*."))
    if sum(map(sequence.count, "ACGTU")) < _LEAST_BASES * letters:
        raise DataError(f"{header!r} is hardly any A, C, G, T or U", "give DNA or RNA, not protein", where=path)


class GenomeTask(TextTask):
    """Next-base prediction on FASTA records."""

    def __init__(self, records: Sequence[Document], *, window: int, seed: int) -> None:
        super().__init__(split(records), BaseTokenizer(), window=window, seed=seed)

    @property
    def settings(self) -> dict[str, Scalar]:
        """As for text."""
        return {**super().settings, "task": "dna"}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """`bits_per_base`, of every base."""
        values = super().metrics(totals)
        return {"bits_per_base": values.pop("bits_per_byte"), **values}
