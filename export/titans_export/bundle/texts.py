"""What a bundle says about text: its tokenizer, and the ids that end a text.

Knows how both follow from a checkpoint. Does not know how they are written (`writer`).

Ends are, in this order: the tokens that the export names; the one that training put at the end of every document; the
special tokens of a `tokenizer.json` by whose names models in use end a text (`titans_tasks.tokens.END_NAMES`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from titans_export.errors import ExportError
from titans_format.manifest import ContinuousInputs, Ends, TokenInputs
from titans_tasks.tokens import ByteTokenizer, FileTokenizer, Tokenizer, parse_tokenizer

# Tasks whose ids are bytes; any other one's ids are its own, whatever their number.
_TASK, _BYTE_TASKS = "task.task", ("text", "needle")
_EOS = "task.eos"  # what `titans train --eos` leaves in the provenance


@dataclass(frozen=True, kw_only=True)
class EndNames:
    """Tokens by their names: `eos` end a text, `stop` end an answer."""

    eos: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


AS_FOUND = EndNames()  # nobody names any


def tokenizer_of(
    inputs: TokenInputs | ContinuousInputs, tokenizer_json: str | None, provenance: Mapping[str, str]
) -> Tokenizer | None:
    """The tokenizer of a model; None if its inputs are no text.

    A vocabulary may be padded: have rows for more ids than there are tokens. Without a file, ids are bytes where the
    model was trained on bytes, and where nobody says what it was trained on and there are just 256.

    Raises:
        ExportError: the model has too few rows for the tokenizer.
        DataError: the file is not a tokenizer.
    """
    if not isinstance(inputs, TokenInputs):
        if tokenizer_json is not None:
            raise ExportError("a model of vectors reads no text", "leave the tokenizer out")
        return None
    if tokenizer_json is not None:
        tokenizer = parse_tokenizer(tokenizer_json, "the tokenizer")
        if tokenizer.vocab_size > inputs.vocab_size:
            raise ExportError(
                f"the tokenizer has ids up to {tokenizer.vocab_size - 1:,} and the model {inputs.vocab_size:,} rows",
                "give the tokenizer that it was trained with",
            )
        return tokenizer
    task = provenance.get(_TASK)
    if inputs.vocab_size == 256 if task is None else task in _BYTE_TASKS:
        return ByteTokenizer()
    return None


def find_ends(tokenizer: Tokenizer | None, names: EndNames, provenance: Mapping[str, str]) -> Ends:
    """The ids that end a text. Raises `ExportError` without a tokenizer, `DataError` for a token that it lacks."""
    if tokenizer is None:
        if names != AS_FOUND:
            raise ExportError("this model has no tokenizer whose tokens could end a text", "leave --eos and --stop out")
        return Ends()
    stop = tuple(dict.fromkeys(map(tokenizer.token_id, names.stop)))
    if names.eos:
        return Ends(eos=tuple(dict.fromkeys(map(tokenizer.token_id, names.eos))), stop=stop)
    if _EOS in provenance:
        return Ends(eos=(int(provenance[_EOS]),), stop=stop)
    return Ends(eos=tokenizer.end_ids if isinstance(tokenizer, FileTokenizer) else (), stop=stop)
