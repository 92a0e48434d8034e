"""One door to pretrained models, whichever files they are in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from titans_core.errors import CheckpointError
from titans_core.pretrained.folder import open_folder
from titans_core.pretrained.gguf_model import open_gguf
from titans_core.pretrained.source import Pretrained
from titans_tasks.tokens import load_tokenizer


def open_pretrained(path: Path, tokenizer: Path | None = None) -> Pretrained:
    """The model in a Hugging Face folder or a GGUF file; nothing but headers is read of its weights.

    Args:
        path: the folder, or the `.gguf` file.
        tokenizer: a `tokenizer.json` to take instead of the model's own.

    Raises:
        CheckpointError: there is none, it is damaged, or it asks for what is not supported.
        DataError: `tokenizer` is not a tokenizer.
    """
    if not path.exists():
        raise CheckpointError(f"there is nothing at {path}", "give a Hugging Face folder or a .gguf file")
    opened = open_folder(path) if path.is_dir() else open_gguf(path, tokenizer=tokenizer is None)
    if tokenizer is None:
        return opened
    given = load_tokenizer(tokenizer).json
    return dataclasses.replace(opened, texts=dataclasses.replace(opened.texts, tokenizer_json=given))
