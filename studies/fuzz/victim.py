"""The bundle and the saved session that are damaged, and what "works" means for them.

Knows how a file is signed again after it was changed, as a careful forger would. Does not know how files are damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import titans_runtime
from titans_format.seal import seal
from titans_runtime import Model, Session

MANIFEST = "manifest.json"
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]  # more than a chunk, and not a multiple of it


class Victim:
    """A bundle directory of one's own: `folder` is spoilt and mended again.

    Args:
        bundle: a sound bundle; it is copied.
        folder: where to.
    """

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.sound = bundle
        self.folder = folder / "victim.titans"
        shutil.copytree(bundle, self.folder)
        self.files = {file.name: file.read_bytes() for file in sorted(bundle.iterdir()) if file.is_file()}
        self.manifest: dict[str, Any] = json.loads(self.files[MANIFEST])

    @cached_property
    def model(self) -> Model:
        """The sound bundle, loaded."""
        return titans_runtime.load(self.sound, provider="cpu", threads=1)

    @cached_property
    def state(self) -> bytes:
        """A saved session in the middle of a chunk."""
        session = self.model.session()
        session.feed(TOKENS)
        return session.to_bytes()

    @contextlib.contextmanager
    def with_file(self, name: str, content: bytes, *, signed: bool) -> Iterator[Path]:
        """The bundle with another content in one file; `signed`: and a manifest that vouches for it."""
        changed = {name: content}
        if signed and name != MANIFEST:
            changed[MANIFEST] = json.dumps(seal(self._vouching(name, content))).encode()
        try:
            for file, data in changed.items():
                (self.folder / file).write_bytes(data)
            yield self.folder
        finally:
            for file in changed:
                (self.folder / file).unlink(missing_ok=True)  # never in place: it may still be mapped
                (self.folder / file).write_bytes(self.files[file])

    def _vouching(self, name: str, content: bytes) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.files[MANIFEST])
        twins = [graph["fused"] for graph in document["graphs"] if "fused" in graph]
        for entry in [*document["graphs"], *twins, document["weights"], document["initial_state"]]:
            if entry is not None and entry["file"] == name:
                entry["sha256"] = hashlib.sha256(content).hexdigest()
                if "bytes" in entry:
                    entry["bytes"] = len(content)
        return document


def use(session: Session, model: Model) -> None:
    """What a user does: read, step, save and come back. Fails if the outputs are of the wrong form."""
    kept = session.to_bytes()
    for feed in ([1] * (model.manifest.chunk + 3), [2]):
        outputs = session.feed(feed)
        assert outputs.shape == (model.manifest.inputs.outputs,), outputs.shape
        assert np.isfinite(outputs).all()
    again = model.restore_bytes(kept)
    again.feed([1] * (model.manifest.chunk + 3))
    assert np.array_equal(again.feed([2]), outputs)
