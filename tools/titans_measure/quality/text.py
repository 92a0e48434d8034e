"""`text`: bits per byte along long documents that were held out of training, memory kept, reset and frozen.

Documents are the held-out part of the same split that training uses, so a model trained by `titans train --task text`
on the same data has seen none of them.

Knows which documents. Does not know how they are split (`titans_tasks.documents`) or read (`reading`).
"""

from __future__ import annotations

import numpy as np

from titans_format.progress import ReportProgress
from titans_measure.quality.fitness import require_tokens
from titans_measure.quality.likelihood import Ids
from titans_measure.quality.reading import ReadingReport, Sizes, long_enough, read_documents
from titans_measure.quality.report import unwatched
from titans_runtime import Model
from titans_tasks.documents import Document, read_corpus
from titans_tasks.round_trip import round_trip

_DEFAULT = Sizes()


def evaluate(
    model: Model, data: tuple[str, ...] = ("stdlib",), sizes: Sizes = _DEFAULT, progress: ReportProgress = unwatched
) -> ReadingReport:
    """Read held-out documents with a bundle.

    Args:
        model: a model of tokens with a tokenizer.
        data: `stdlib`, and paths of files; about a tenth of them is held out.
        sizes: what of the documents is read, and how.
        progress: hears of tokens.

    Raises:
        EvalError: the model has no tokens, or no document is long enough.
        TextError: the model has no tokenizer.
        DataError: the data cannot be read.
        ExecutionError: a graph failed.
    """
    require_tokens(model, "text")
    documents = long_enough(read_corpus(data).held_out, sizes)
    tokens = [np.array(model.encode(document.data, special=True), np.int64) for document in documents]
    kept = [_kept(model, document, ids) for document, ids in zip(documents, tokens, strict=True)]
    return read_documents(model, documents, tokens, sizes, progress, task="text", unit="byte", data=data, kept=kept)


def _kept(model: Model, document: Document, ids: Ids) -> int:
    """Bytes of a document that come back from its ids; text that is read as bytes comes back whatever it is."""
    if model.manifest.tokenizer is not None and model.manifest.tokenizer.kind == "byte":
        return len(document.data)
    return round_trip(document.data, model.decode(ids.tolist(), special=True).encode()).kept
