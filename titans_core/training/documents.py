"""Documents for language modelling: files, or the standard library's source; which are held out.

Knows where documents come from and how they are split, by file, the same on every machine. Does not know
tokens, batches or torch.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from titans_core.errors import DataError

STDLIB = "stdlib"
HELD_OUT_FRACTION = 0.1

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


def read_corpus(sources: Sequence[str]) -> Corpus:
    """The corpus in `sources`: the word `stdlib`, and paths of files.

    Raises:
        DataError: a file is missing or unreadable, or there is no text in them.
    """
    documents: list[Document] = []
    if STDLIB in sources:
        documents += stdlib_documents()
    documents += _read_files([Path(source) for source in sources if source != STDLIB])
    documents = [document for document in documents if len(document.data) > 1]
    if not documents:
        raise DataError("there is no text in the training data; name files that have some, or use stdlib")
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
        raise DataError(f"no standard library source under {root}; name files instead of stdlib")
    return [Document(path.relative_to(root).as_posix(), _read(path)) for path in paths]


def split(documents: Sequence[Document]) -> Corpus:
    """Hold out about a tenth of the documents, chosen by a hash of the name; a lone document gives its last tenth."""
    if len(documents) == 1:
        name, data = documents[0].name, documents[0].data
        cut = character_boundary(data, len(data) - max(2, round(len(data) * HELD_OUT_FRACTION)))
        if cut < 2:
            raise DataError(f"{name} has only {len(data)} bytes of text; give a longer file or more files")
        return Corpus((Document(name, data[:cut], whole=False),), (Document(f"{name}[{cut}:]", data[cut:]),))
    threshold = max(HELD_OUT_FRACTION, min(_hash(document.name) for document in documents))
    held_out = {document.name for document in documents if _hash(document.name) <= threshold}
    ordered = sorted(documents, key=lambda document: document.name)
    train = tuple(document for document in ordered if document.name not in held_out)
    if not train:  # a handful of files, all of them below the threshold: keep one back instead of all
        return Corpus(tuple(ordered[1:]), tuple(ordered[:1]))
    return Corpus(train, tuple(document for document in ordered if document.name in held_out))


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
            raise DataError(f"{path} is a directory; name the files in it, for example {path}/*.txt")
        if not path.exists():
            raise DataError(f"there is no file {path}; check the path")
    return [Document(path.relative_to(root).as_posix(), _read(path)) for path in resolved]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); check the path and its permissions") from error
