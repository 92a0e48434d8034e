"""What a bundle says about text: its tokenizer, the ids that end a text, its chat template, and how to generate.

Knows how they follow from a checkpoint. Does not know how they are written (`writer`).

Ends are, in this order: the tokens that the export names; the one that training put at the end of every document; those
of the model's generation settings; the special tokens of a `tokenizer.json` by whose names models in use end a text
(`titans_tasks.tokens.END_NAMES`). The control token by which the chat template closes an answer ends one in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from titans_core.pretrained import Texts
from titans_export.errors import ExportError
from titans_format.errors import BundleError
from titans_format.fields import ContinuousInputs, Ends, GenerationDefaults, TokenInputs
from titans_runtime.arguments import whole
from titans_runtime.chat.template import ChatTemplate
from titans_runtime.chat.turns import closing_text
from titans_runtime.errors import InputError
from titans_runtime.text.sampling import SamplingOptions
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


def find_ends(
    tokenizer: Tokenizer | None, names: EndNames, provenance: Mapping[str, str], known: tuple[int, ...] = ()
) -> Ends:
    """The ids that end a text, `known` being those of the model's own settings.

    Raises:
        ExportError: there is no tokenizer.
        DataError: it lacks a token.
    """
    if tokenizer is None:
        if names != AS_FOUND:
            raise ExportError("this model has no tokenizer whose tokens could end a text", "leave --eos and --stop out")
        return Ends()
    stop = tuple(dict.fromkeys(map(tokenizer.token_id, names.stop)))
    if names.eos:
        return Ends(eos=tuple(dict.fromkeys(map(tokenizer.token_id, names.eos))), stop=stop)
    if _EOS in provenance:
        return Ends(eos=(int(provenance[_EOS]),), stop=stop)
    if inside := tuple(token for token in known if 0 <= token < tokenizer.vocab_size):
        return Ends(eos=inside, stop=stop)
    return Ends(eos=tokenizer.end_ids if isinstance(tokenizer, FileTokenizer) else (), stop=stop)


def generation_defaults(settings: Mapping[str, float | int | bool]) -> GenerationDefaults:
    """How text is generated where the caller does not say, from the fields of a `generation_config.json`.

    `do_sample: false` is a temperature of 0. A `top_k` of 0 is none.

    Raises:
        ExportError: a value outside of its range.
    """
    given = dict(settings)
    if given.pop("do_sample", True) is False:
        given["temperature"] = 0.0
    if not given.get("top_k", 1):
        del given["top_k"]
    names = set(GenerationDefaults.__struct_fields__)
    limit = given.pop("max_new_tokens", None)
    try:
        options = SamplingOptions(**{name: value for name, value in given.items() if name in names})  # type: ignore[arg-type]
        limit = None if limit is None else whole("max_new_tokens", limit, 1, "use 1 or more", 2**31 - 1)
    except InputError as error:
        raise ExportError(f"the model's generation settings are wrong: {error.finding}", "mend them") from None
    return GenerationDefaults(max_new_tokens=limit, **{name: getattr(options, name) for name in names & set(given)})


def check_template(texts: Texts, tokenizer: Tokenizer | None) -> str | None:
    """The control token by which a chat template closes an answer, once it has written a conversation; None for none.

    Raises:
        ExportError: it is not a template, or cannot write a conversation, or there is no tokenizer.
    """
    if texts.chat_template is None:
        return None
    remedy = "give another one with --chat-template FILE, or leave it out with --chat-template none"
    if tokenizer is None:
        raise ExportError("this model has no tokenizer, and a chat template", remedy)
    template = ChatTemplate(texts.chat_template, texts.special)
    try:
        template.render("Hello")
        closing = closing_text(template)
    except (BundleError, InputError) as error:
        raise ExportError(error.finding, remedy) from error
    if not isinstance(tokenizer, FileTokenizer):
        return None
    found = [(at, -len(name), name) for name in tokenizer.special_names if (at := closing.find(name)) >= 0]
    return min(found)[2] if found else None


def with_closing(ends: Ends, closing: str | None, tokenizer: Tokenizer | None) -> Ends:
    """Ends at which an answer of the chat template's ends too, whatever the model's settings say."""
    if closing is None or tokenizer is None or (token := tokenizer.token_id(closing)) in (*ends.eos, *ends.stop):
        return ends
    return Ends(eos=ends.eos, stop=(*ends.stop, token))
