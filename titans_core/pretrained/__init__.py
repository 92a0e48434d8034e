"""Reading pretrained decoders: Hugging Face folders and GGUF files, with their tokenizers."""

from titans_core.pretrained.opening import open_pretrained
from titans_core.pretrained.source import Pretrained, Texts, decoder_of

__all__ = ["Pretrained", "Texts", "decoder_of", "open_pretrained"]
