"""A store in Redis, for servers on several machines.

A value is a hash with its version and its bytes; a set beside it lists the names of its kind. Each change is one Lua
script, which Redis runs by itself. All keys of a namespace share a hash tag, so a cluster keeps them on one node. Times
to live are Redis's own, so the clocks of the servers do not matter. Knows redis-py.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import redis

from titans_runtime import StateError
from titans_serve.stores.base import KINDS, Key, Record, conflict, new_version, without_password

log = logging.getLogger("titans_serve")
_PATIENCE = 10.0  # seconds for an answer; Redis itself needs milliseconds for a megabyte

# Replaces KEYS[1] if it has the version ARGV[1] ("" for none). A second try of the same write succeeds, because the
# client sends a command again where the connection broke before the answer.
_PUT = """
local found = redis.call('HGET', KEYS[1], 'version') or ''
if found == ARGV[2] then return 1 end
if found ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'data', ARGV[3])
if ARGV[4] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
redis.call('SADD', KEYS[2], ARGV[5])
return 1
"""
_DELETE = "redis.call('SREM', KEYS[2], ARGV[1]) return redis.call('DEL', KEYS[1])"
# The names of one kind that are still there; the others leave the set.
_NAMES = """
local alive, gone = {}, 0
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    if redis.call('EXISTS', KEYS[1] .. ':' .. name) == 1 then
        table.insert(alive, name)
    else
        redis.call('SREM', KEYS[1], name)
        gone = gone + 1
    end
end
return {gone, alive}
"""
_DELETE_KIND = """
local count = 0
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    count = count + redis.call('DEL', KEYS[1] .. ':' .. name)
end
redis.call('DEL', KEYS[1])
return count
"""


class RedisStore:
    """Values in a Redis database. `url` is `redis://[:PASSWORD@]HOST[:PORT][/DATABASE]`, or `rediss://` with TLS."""

    def __init__(self, url: str, prefix: str = "titans") -> None:
        self.url, self.shown, self._prefix = url, without_password(url), prefix
        with self._errors():
            try:
                self._redis = redis.Redis.from_url(url, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE)
            except ValueError as error:
                raise StateError(f"{self.shown} is not an address of Redis ({error})", "write redis://HOST") from error
            self._redis.ping()
            self._put = self._redis.register_script(_PUT)
            self._delete = self._redis.register_script(_DELETE)
            self._names = self._redis.register_script(_NAMES)
            self._delete_kind = self._redis.register_script(_DELETE_KIND)
        self._warn()

    def get(self, key: Key) -> Record | None:
        """See `Store`."""
        with self._errors():
            version, data = self._redis.hmget(self._value(key), ["version", "data"])
        return None if version is None or data is None else Record(_bytes(data), _text(version))

    def version(self, key: Key) -> str | None:
        """See `Store`."""
        with self._errors():
            found = self._redis.hget(self._value(key), "version")
        return None if found is None else _text(found)

    def put(self, key: Key, data: bytes, replaces: str | None, lives: float | None = None) -> str:
        """See `Store`."""
        version = new_version()
        milliseconds = "" if lives is None else max(1, int(lives * 1000))
        with self._errors():
            done = self._put(
                keys=[self._value(key), self._set(key.namespace, key.kind)],
                args=[replaces or "", version, data, milliseconds, key.name],
            )
        if not done:
            raise conflict(key)
        return version

    def delete(self, key: Key) -> bool:
        """See `Store`."""
        with self._errors():
            keys = [self._value(key), self._set(key.namespace, key.kind)]
            return bool(self._delete(keys=keys, args=[key.name]))

    def names(self, namespace: str, kind: str) -> list[str]:
        """See `Store`."""
        with self._errors():
            _, alive = self._names(keys=[self._set(Key(namespace, kind, "x").namespace, kind)])
        return sorted(_text(name) for name in alive)

    def delete_namespace(self, namespace: str) -> int:
        """See `Store`. Where Redis keeps a log on disk, it is asked to write it anew without the deleted values."""
        name = Key(namespace, KINDS[0], "x").namespace
        with self._errors():
            count = sum(int(self._delete_kind(keys=[self._set(name, kind)])) for kind in KINDS)
            with contextlib.suppress(redis.ResponseError):  # one is being written, or the user may not say so
                self._redis.bgrewriteaof()
        return count

    def expire(self) -> int:
        """See `Store`. Redis removes the values by itself; what is counted are the names that were left."""
        with self._errors():
            kinds = list(self._redis.scan_iter(match=f"{self._prefix}:{{*}}:*", _type="SET", count=1000))
            return sum(int(self._names(keys=[key])[0]) for key in kinds)

    def close(self) -> None:
        """See `Store`."""
        self._redis.close()

    def _set(self, namespace: str, kind: str) -> str:
        return f"{self._prefix}:{{{namespace}}}:{kind}"

    def _value(self, key: Key) -> str:
        return f"{self._set(key.namespace, key.kind)}:{key.name}"

    def _warn(self) -> None:
        """Say so where a crash of Redis may lose what was acknowledged."""
        try:
            found: Mapping[Any, Any] = self._redis.config_get("append*")
        except redis.RedisError:  # services do not let their users see this
            return
        if found.get("appendonly") != "yes" or found.get("appendfsync") != "always":
            log.warning(
                "%s may lose acknowledged memories if it crashes; set appendonly yes and appendfsync always", self.shown
            )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise StateError(
                f"the store {self.shown} failed ({error})",
                "see whether Redis runs, has memory left and takes this user",
            ) from error


def _bytes(value: bytes | str) -> bytes:
    """What redis-py gives, which it types as if it might have been decoded."""
    return value.encode() if isinstance(value, str) else value


def _text(value: bytes | str) -> str:
    return _bytes(value).decode()
