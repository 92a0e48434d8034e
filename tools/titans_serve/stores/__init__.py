"""Where memories are kept between turns: one protocol, one module for each kind of store."""

from titans_serve.stores.base import ConflictError, Key, Record, Store
from titans_serve.stores.locate import open_store

__all__ = ["ConflictError", "Key", "Record", "Store", "open_store"]
