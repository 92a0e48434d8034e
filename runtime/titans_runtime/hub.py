"""Bundles by name: `ORG/NAME` or `ORG/NAME@REVISION` of a model hub, fetched once and kept in its cache.

A path that exists is always a path. The hub is the one that `HF_ENDPOINT` names; with `HF_HUB_OFFLINE=1` only the cache
is used. Knows huggingface_hub, which comes with the tokenizers. What was fetched is checked like any bundle.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from titans_format.errors import BundleError
from titans_format.install import package
from titans_runtime.errors import os_remedy

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?")


def is_name(path: str | os.PathLike[str]) -> bool:
    """Whether this names a bundle of a hub, because there is no such path and it could be a name."""
    return _NAME.fullmatch(os.fspath(path)) is not None and not Path(path).exists()


def fetch(name: str) -> Path:
    """The folder of a bundle of the hub, downloaded where it is not in the cache.

    Raises:
        BundleError: no such bundle or revision, no network, or no huggingface_hub.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise BundleError(f"{name!r} is not the name of a bundle", "write ORG/NAME or ORG/NAME@REVISION")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise BundleError(
            f"there is no folder {name}, and to fetch it from a hub huggingface_hub is missing",
            f"check the path, or run: {package('huggingface_hub')}",
        ) from error
    try:
        folder = snapshot_download(
            match["repo"],
            revision=match["revision"],
            endpoint=os.environ.get("HF_ENDPOINT"),
            local_files_only=os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
        )
    except Exception as error:  # of the hub's client, of its HTTP library and of the system
        reason = " ".join(str(error).split())[:300]
        raise BundleError(
            f"there is no folder {name}, and the hub did not give it ({reason})",
            "check the name, the network and your access, or give the path of a bundle",
        ) from error
    try:
        return _with_real_files(Path(folder))
    except OSError as error:
        raise BundleError(f"{folder} cannot be used ({error.strerror})", os_remedy(error)) from error


def _with_real_files(snapshot: Path) -> Path:
    """A folder beside the cache's snapshot with its files, and not links that lead elsewhere.

    ONNX Runtime refuses weights that lie outside of the folder of their graph. Hard links take no room.
    """
    folder = snapshot.parent.parent / "bundles" / snapshot.name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        stage = Path(made, "bundle")
        for file in snapshot.rglob("*"):
            if file.is_file():
                target = stage / file.relative_to(snapshot)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    target.hardlink_to(file.resolve())
                except OSError:  # a file system without them
                    shutil.copyfile(file, target)
        try:
            stage.rename(folder)
        except OSError:
            if not folder.is_dir():  # or another process was quicker
                raise
    return folder
