"""Where memories are kept between turns: one protocol, one module for each kind of store."""

from titans_serve.stores.base import KINDS, ConflictError, Key, Record, Store, without_password
from titans_serve.stores.locate import everywhere, open_store
from titans_serve.stores.sealed import AesCipher, Cipher, SealedStore, read_cipher

__all__ = [
    "KINDS", "AesCipher", "Cipher", "ConflictError", "Key", "Record", "SealedStore", "Store", "everywhere",
    "open_store", "read_cipher", "without_password",
]  # fmt: skip
