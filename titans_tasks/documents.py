"""Documents for language modelling: files, or the standard library's source; which are held out.

Knows where documents come from and how they are split, by file, the same on every machine. Does not know
tokens, batches or torch.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from titans_format.files import read_given
from titans_tasks.errors import DataError

STDLIB, TOPICS = "stdlib", "topics"
HELD_OUT_FRACTION = 0.1
_LEAST, _MOST = 0.02, 0.25  # share of the bytes that whole documents may be held out as

# Not source in the sense of the rest: installed packages, test data, and modules that are one big table.
_STDLIB_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "__pycache__"}
)


@dataclass(frozen=True)
class Document:
    """One file, or a part of one.

    name: its relative path with `/` between the parts.
    whole: it ends where its text ends, and was not cut there.
    """

    name: str
    data: bytes
    whole: bool = True


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents to judge by, disjoint, each in the order of their names."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    tails: bool = False  # whether what is held out are the ends of documents that are trained on

    def described(self, unit: str = "file") -> str:
        """What is trained on and what is held out, for a person; `unit` is what a document is called."""
        size, held_out = _size(self.train), _size(self.held_out)
        parts = ("the last tenth of " if self.tails else "") + _counted(len(self.held_out), unit)
        return (
            f"trains on {_counted(len(self.train), unit)}, {size:,} bytes; holds out {parts}, {held_out:,} bytes"
            f" ({held_out / (size + held_out):.1%})"
        )


def read_corpus(sources: Sequence[str]) -> Corpus:
    """The corpus in `sources`: the words `stdlib` and `topics`, and paths of files.

    Raises:
        DataError: a file is missing or unreadable, or there is no text in them.
    """
    documents: list[Document] = []
    if STDLIB in sources:
        documents += stdlib_documents()
    if TOPICS in sources:
        documents += topic_documents()
    documents += _read_files([Path(source) for source in sources if source not in (STDLIB, TOPICS)])
    documents = [document for document in documents if len(document.data) > 1]
    if not documents:
        raise DataError("there is no text in the training data", "name files that have some, or use stdlib")
    return split(documents)


def stdlib_documents() -> list[Document]:
    """The running interpreter's standard library, sorted by path: real source that every machine has."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if path.is_file() and not _STDLIB_EXCLUDED.intersection(path.relative_to(root).parts)
    ]
    if not paths:
        raise DataError(f"no standard library source under {root}", "name files instead of stdlib")
    return [Document(path.relative_to(root).as_posix(), _read(path)) for path in paths]


def topic_documents() -> list[Document]:
    """What `help()` of the running interpreter says about the language: English prose that every machine has."""
    from pydoc_data.topics import topics

    return [Document(f"topics/{name}", text.encode()) for name, text in sorted(topics.items())]


def split(documents: Sequence[Document]) -> Corpus:
    """Hold out about a tenth of the bytes.

    Documents are held out whole, by a hash of their names, where that is between a fiftieth and a quarter of all
    bytes. Of few documents, or one that is larger than all others together, it may be none or nearly all: then every
    document is trained on and its last tenth held out.
    """
    ordered = sorted(documents, key=lambda document: document.name)
    held_out = tuple(document for document in ordered if _hash(document.name) <= HELD_OUT_FRACTION)
    train = tuple(document for document in ordered if _hash(document.name) > HELD_OUT_FRACTION)
    if _LEAST <= _size(held_out) / max(1, _size(ordered)) <= _MOST:
        return Corpus(train, held_out)
    return _tails(ordered)


def _tails(documents: Sequence[Document]) -> Corpus:
    """The last tenth of every document that is long enough held out, the rest trained on."""
    train, held_out = [], []
    for document in documents:
        name, data = document.name, document.data
        cut = tail_start(data, HELD_OUT_FRACTION)
        if cut < 2 or len(data) - cut < 2:
            train.append(document)
            continue
        train.append(Document(name, data[:cut], whole=False))
        held_out.append(Document(f"{name}[{cut}:]", data[cut:]))
    if held_out:
        return Corpus(tuple(train), tuple(held_out), tails=True)
    if len(train) > 1:  # all of a few bytes: keep the shortest back
        least = min(train, key=lambda document: len(document.data))
        return Corpus(tuple(document for document in train if document is not least), (least,))
    size = _size(train)
    raise DataError(f"{documents[0].name} has only {size} bytes of text", "give a longer file or more files")


def tail_start(data: bytes, share: float) -> int:
    """Where the last `share` of `data` begins, at least two bytes from its end and between two characters."""
    return character_boundary(data, len(data) - max(2, round(len(data) * share)))


def _size(documents: Iterable[Document]) -> int:
    return sum(len(document.data) for document in documents)


def _counted(count: int, unit: str) -> str:
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def character_boundary(data: bytes, at: int) -> int:
    """`at`, or the few bytes before it where a UTF-8 character begins that it would cut; bytes of no text are cut."""
    for begin in range(at, max(at - 4, -1), -1):
        if begin >= len(data) or data[begin] & 0xC0 != 0x80:  # no byte that continues a character
            return begin
    return at


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _read_files(paths: Sequence[Path]) -> list[Document]:
    if not paths:
        return []
    resolved = list(dict.fromkeys(path.resolve() for path in paths))
    root = Path(os.path.commonpath([path.parent for path in resolved]))
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path} is a directory", f"name the files in it, for example {path}/*.txt")
        if not path.exists():
            raise DataError(f"there is no file {path}", "check the path")
    return [Document(path.relative_to(root).as_posix(), _read(path)) for path in resolved]


def _read(path: Path) -> bytes:
    try:
        return read_given(path)
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})", "check the path and its permissions") from error
