"""Between text and token ids: the tokenizer, sampling, and where a text ends."""

from titans_runtime.text.tokenizer import ByteTokenizer, LibraryTokenizer, Tokenizer

__all__ = ["ByteTokenizer", "LibraryTokenizer", "Tokenizer"]
