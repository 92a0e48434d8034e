"""Tokenizers of every kind in use, trained on the spot by the tokenizers library, and texts to try them on.

Knows how each kind is put together. The files are what the library saves, so that nothing here is ours but the texts.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]

# Ten scripts, combining marks, emoji alone, with skin tones and joined, and the spaces that decoders care about.
TEXTS = {
    "latin": "The naïve façade of Ångström's résumé, co-operate!",
    "combining": "e\u0301 o\u0308 n\u0303 Z\u0351\u036b\u0343a\u0323\u0302lgo",
    "greek": "Ἡ μνήμη γράφει ὅ,τι μαθαίνει.",
    "cyrillic": "Память пишет то, что узнаёт; ёж и й.",
    "hebrew": "הַזִּכָּרוֹן כּוֹתֵב",
    "arabic": "الذّاكرة تكتب ما تتعلّمه",
    "devanagari": "स्मृति लिखती है क्षत्रिय",
    "thai": "ความจำเขียนสิ่งที่เรียนรู้",
    "han": "記憶は流れである。記憶，寫下它學到的東西。",
    "kana": "がぎぐげご ガギグゲゴ ﾊﾝｶｸ",
    "hangul": "기억은 흐름이다 각 값",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ 🇩🇪 a👨🏿‍🚀b",
    "spaces": "  two  spaces\n\n\tand a tab, then\u00a0none ",
    "ascii": "def main():\n    return self.memory[0]  # it's",
}
CORPUS = [*TEXTS.values(), "the memory of a stream is a tensor"] * 3


def _saved(tokenizer: tokenizers.Tokenizer) -> str:
    return str(tokenizer.to_str())


def _byte_level(extra: int = 40) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = 256 + len(SPECIAL) + extra
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level() -> str:
    """As GPT-2 and its followers have it, with few merges: many tokens are parts of characters."""
    return _saved(_byte_level())


def _byte_fallback() -> tokenizers.Tokenizer:
    """BPE of sentencepiece's kind: words, and `<0x..>` for the bytes of what it does not know."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *bytes_, *"▁abcdefghilmnorstuy.,'"])}
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("i", "n"), ("▁", "m")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def llama_strip() -> str:
    """As Llama 2 has it: a space is put in front, and stripped again at the end of decoding."""
    tokenizer = _byte_fallback()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return _saved(tokenizer)


def llama_metaspace() -> str:
    """As newer exports have it: the space in front is the pre-tokenizer's, and nothing strips it but Metaspace."""
    tokenizer = _byte_fallback()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _saved(tokenizer)


def gemma() -> str:
    """Byte fallback without a space in front."""
    tokenizer = _byte_fallback()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _saved(tokenizer)


def wordpiece() -> str:
    """As BERT has it: lower case, no accents, words and their ends."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _saved(tokenizer)


def unigram() -> str:
    """As T5 has it."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _saved(tokenizer)


def end_of_word() -> str:
    """As the first GPT has it: the end of a word is marked, so a token's space depends on whether another follows."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _saved(tokenizer)


def with_holes() -> str:
    """An id far above the number of tokens, and none in between."""
    document = json.loads(byte_level())
    document["model"]["vocab"]["e"] = 900
    return json.dumps(document)


def for_batches() -> str:
    """With somebody else's settings for batches: it cuts, pads, puts tokens around, and merges at random."""
    tokenizer = _byte_level()
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=1, pad_token="<s>")
    pair = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A $A </s>", pair="<s> $A </s> $B </s>", special_tokens=pair
    )
    tokenizer.model.dropout = 0.9
    return _saved(tokenizer)


def without_decoder() -> str:
    """Byte-level, but nobody said how it is decoded."""
    document = json.loads(byte_level())
    document["decoder"] = None
    return json.dumps(document)


KINDS: dict[str, Callable[[], str]] = {
    "byte-level": byte_level,
    "llama, strip": llama_strip,
    "llama, metaspace": llama_metaspace,
    "gemma": gemma,
    "wordpiece": wordpiece,
    "unigram": unigram,
    "end of word": end_of_word,
    "holes": with_holes,
    "batches": for_batches,
    "no decoder": without_decoder,
}
WHOLE = ("byte-level", "llama, strip", "gemma", "holes", "batches")  # express any text


@functools.cache
def content(kind: str) -> str:
    """The file of a kind, made once: training breaks ties differently each time."""
    return KINDS[kind]()


def write(kind: str, folder: Path) -> Path:
    """The file of a kind, in a folder."""
    path = folder / f"{kind.replace(', ', '-').replace(' ', '-')}.json"
    path.write_text(content(kind), encoding="utf-8")
    return path


def library(kind: str) -> tokenizers.Tokenizer:
    """What the tokenizers library makes of it, for comparison: without the settings for batches."""
    tokenizer = tokenizers.Tokenizer.from_str(content(kind))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    return tokenizer
