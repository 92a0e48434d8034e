"""Pretrained decoders of the Llama family, with attention over a window and the first tokens."""

from titans_core.decoder.config import DecoderConfig
from titans_core.decoder.model import Decoder
from titans_core.decoder.side_memory import SideConfig
from titans_core.decoder.stream_memory import StreamConfig

__all__ = ["Decoder", "DecoderConfig", "SideConfig", "StreamConfig"]
