"""Whose engines run here: those that this user built are signed with a key that only this user can read.

A TensorRT engine is a program. Deserialising a stranger's is running a stranger's program, whatever its hashes say. So
`titans build` signs what it builds, and nothing else is loaded unless the user says that it is trusted. Knows the key
and signatures. Does not know engine files (`engine_files`), nor how they are built.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from pathlib import Path

from titans_format import files
from titans_format.document import JsonObject
from titans_runtime.errors import ProviderError, os_remedy

FIELD = "signature"
_BYTES = 32


def key_file() -> Path:
    """Where the user's key is, in the directory for settings."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "titans-deploy" / "engine.key"


def signed(facts: JsonObject) -> JsonObject:
    """What a sidecar says, with this user's signature over it; the key is made if there is none.

    Raises:
        ProviderError: the key cannot be read or made, or others can read it.
    """
    content = {name: value for name, value in facts.items() if name != FIELD}
    return {**content, FIELD: _signature(_read() or _make(), content)}


def is_ours(facts: JsonObject) -> bool:
    """Whether this user signed what a sidecar says. Raises `ProviderError` for a key that cannot be used."""
    written, key = facts.get(FIELD), _read()
    if key is None or not isinstance(written, str):
        return False
    content = {name: value for name, value in facts.items() if name != FIELD}
    return hmac.compare_digest(written.encode("utf-8", "replace"), _signature(key, content).encode())


def _signature(key: bytes, content: JsonObject) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _read() -> bytes | None:
    """The key, or None where there is none."""
    file = key_file()
    try:
        handle = files.open_regular(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ProviderError(files.shown(file, error), os_remedy(error)) from None
    try:
        facts = os.fstat(handle)
        key = files.read_all(handle, _BYTES)
    except OSError as error:
        raise ProviderError(files.shown(file, error), "remove it, and build the engines again") from None
    finally:
        os.close(handle)
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise ProviderError(f"{file} can be read by others or is theirs", "remove it, and build the engines again")
    if len(key) != _BYTES:
        raise ProviderError(f"{file} is not a key of {_BYTES} bytes", "remove it, and build the engines again")
    return key


def _make() -> bytes:
    """A new key, complete as soon as it has its name; another process's, if that was faster."""
    file, key = key_file(), secrets.token_bytes(_BYTES)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, key)
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            os.link(temporary, file)
        except FileExistsError:
            return _read() or _make()
        return key
    except OSError as error:
        raise ProviderError(f"{file} cannot be written ({error.strerror})", os_remedy(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
