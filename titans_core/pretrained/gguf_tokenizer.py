"""The `tokenizer.json` of a GGUF file: its vocabulary and merges in the form that the `tokenizers` library reads.

Two kinds are rebuilt: byte-level BPE (`gpt2`) and SentencePiece's BPE (`llama`). How text is cut before the merges is
only named in the file, so names that are not known are refused: another cut gives other ids without a sign of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from titans_core.errors import CheckpointError
from titans_core.pretrained.gguf import Value, text

if TYPE_CHECKING:
    import tokenizers

MOST_TOKENS = 2**22
MOST_LETTERS = 1024  # of a token whose merges are found by cutting it everywhere
_CONTROL, _USER = 3, 4  # kinds of tokens, as llama.cpp numbers them

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{_REST}"
# Where text is cut, by the name that files give it; None stands for GPT-2's own pattern.
_GPT2_CUTS = ("gpt-2", "gpt2", "mpt", "olmo", "jais")
_DIGIT_CUTS = ("smollm", "starcoder", "refact", "codeshell")  # every digit by itself, then GPT-2's
_PATTERNS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
}
_WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3")  # a word that is a token is not merged


def tokenizer_json(metadata: Mapping[str, Value], where: str) -> str | None:
    """The tokenizer that a file's metadata describes, or None where it describes none.

    Raises:
        CheckpointError: it is of a kind that cannot be rebuilt exactly, or damaged.
    """
    kind = text(metadata, "tokenizer.ggml.model")
    if kind is None or kind == "none":
        return None
    builders: dict[str, Callable[[Mapping[str, Value], list[str], str], tokenizers.Tokenizer]] = {
        "gpt2": _byte_level,
        "llama": _sentencepiece,
    }
    if kind not in builders:
        raise CheckpointError(
            f"tokenizer {kind!r} cannot be rebuilt", "give the model's tokenizer.json with --tokenizer", where=where
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens", where)
    if not 0 < len(tokens) <= MOST_TOKENS:
        raise CheckpointError(f"{where} has {len(tokens):,} tokens", "download it again")
    try:
        built = builders[kind](metadata, tokens, where)
        _add_whole(built, metadata, tokens, where)
        return str(built.to_str())
    except CheckpointError:
        raise
    except Exception as error:  # what the library raises is a bare Exception
        message = " ".join(str(error).split())[:200]
        raise CheckpointError(f"its tokenizer is damaged ({message})", "download it again", where=where) from error


def special_id(metadata: Mapping[str, Value], name: str, where: str) -> int | None:
    """The id that the file gives as `bos`, `eos` or `eot`."""
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < MOST_TOKENS:
        raise CheckpointError(
            f"{name}_token_id is {value!r}",
            "download it again",
            where=where,
        )
    return value


def special_tokens(metadata: Mapping[str, Value], where: str) -> dict[str, str]:
    """The tokens that templates know as `bos_token` and `eos_token`."""
    ids = {f"{name}_token": special_id(metadata, name, where) for name in ("bos", "eos")}
    tokens = _strings(metadata, "tokenizer.ggml.tokens", where) if "tokenizer.ggml.tokens" in metadata else []
    return {name: tokens[token] for name, token in ids.items() if token is not None and token < len(tokens)}


def _strings(metadata: Mapping[str, Value], key: str, where: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"{where} has no list of strings {key}", "download it again")
    return [str(item) for item in value]


def _byte_level(metadata: Mapping[str, Value], tokens: list[str], where: str) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut = text(metadata, "tokenizer.ggml.pre") or "default"
    pairs = [merge.partition(" ") for merge in _strings(metadata, "tokenizer.ggml.merges", where)]
    merges = [(left, right) for left, _, right in pairs]
    if not all(left and right for left, right in merges):
        raise CheckpointError(
            "a merge of its tokenizer is not two tokens",
            "download it again",
            where=where,
        )
    whole = cut in _WHOLE_WORDS_FIRST
    built = Tokenizer(models.BPE(vocab=_numbered(tokens), merges=merges, ignore_merges=whole))
    cuts: list[Any] = []
    if cut in _PATTERNS:
        cuts = [pre_tokenizers.Split(Regex(_PATTERNS[cut]), behavior="isolated")]
    elif cut in _DIGIT_CUTS:
        cuts = [pre_tokenizers.Digits(individual_digits=True)]
    elif cut not in _GPT2_CUTS:
        known = ", ".join(sorted((*_PATTERNS, *_DIGIT_CUTS, *_GPT2_CUTS)))
        raise CheckpointError(
            f"its tokenizer cuts text in a way {cut!r} that is not known ({known} are)",
            "give the model's tokenizer.json with --tokenizer",
            where=where,
        )
    if cut in _PATTERNS and _PATTERNS[cut] == _QWEN2:
        built.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut not in _PATTERNS)
    built.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    built.decoder = decoders.ByteLevel()
    return built


def _sentencepiece(metadata: Mapping[str, Value], tokens: list[str], where: str) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError(
            "its tokenizer has no score for every token",
            "download it again",
            where=where,
        )
    numbered = _numbered(tokens)
    unknown = special_id(metadata, "unknown", where)
    model = models.BPE(
        vocab=numbered,
        merges=_merges(numbered, tokens, [float(score) for score in scores], where),
        unk_token=None if unknown is None or unknown >= len(tokens) else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    built = Tokenizer(model)
    spaced = metadata.get("tokenizer.ggml.add_space_prefix", True) is True
    replace: list[Any] = [normalizers.Replace(" ", "▁")]
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *replace] if spaced else replace)
    joined: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence([*joined, decoders.Strip(" ", 1, 0)] if spaced else joined)
    return built


def _merges(
    numbered: dict[str, int], tokens: Sequence[str], scores: Sequence[float], where: str
) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose whole has the highest score; as merges, all pairs by that score."""
    found: list[tuple[float, int, int]] = []
    for number, token in enumerate(tokens):
        if len(token) > MOST_LETTERS:
            raise CheckpointError(
                f"token {number} has {len(token):,} letters",
                "download it again",
                where=where,
            )
        for cut in range(1, len(token)):
            left, right = numbered.get(token[:cut]), numbered.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[number], left, right))
    found.sort()
    return [(tokens[left], tokens[right]) for _, left, right in found]


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    """Ids by token; of two tokens that read alike, the first is written."""
    numbered: dict[str, int] = {}
    for number, token in enumerate(tokens):
        numbered.setdefault(token, number)
    return numbered


def _add_whole(built: tokenizers.Tokenizer, metadata: Mapping[str, Value], tokens: Sequence[str], where: str) -> None:
    """Tokens that are never cut: control tokens are special, those of users are not."""
    from tokenizers import AddedToken

    kinds = metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        return
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise CheckpointError(
            "its tokenizer has no kind for every token",
            "download it again",
            where=where,
        )
    pairs = list(zip(tokens, kinds, strict=True))
    control = [AddedToken(token, special=True, normalized=False) for token, kind in pairs if kind == _CONTROL and token]
    user = [AddedToken(token, special=False, normalized=False) for token, kind in pairs if kind == _USER and token]
    built.add_special_tokens(control)
    built.add_tokens(user)
