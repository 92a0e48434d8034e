"""Pretrained decoders of the Llama family, with attention over a window and the first tokens."""

from titans_core.decoder.config import DecoderConfig
from titans_core.decoder.model import Decoder

__all__ = ["Decoder", "DecoderConfig"]
