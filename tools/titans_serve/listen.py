"""Run an application on a socket until it is told to stop. Knows uvicorn and sockets, and nothing of what is served."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from titans_runtime import InputError
from titans_runtime.errors import os_remedy

_PATIENCE = 30  # seconds that answers under way may take once the server is told to stop
_CONNECTIONS = 1024
_HEAD = 15.0  # seconds that the head of a request may take to arrive


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `InputError` where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = os_remedy(error) if isinstance(error, OSError) else "use a port from 0 to 65535"
        raise InputError(
            f"cannot listen on {host}:{port} ({reason})", f"choose another --port or --host, or {remedy}"
        ) from error


class Protocol(H11Protocol):
    """HTTP/1.1 as uvicorn has it, whose clients may not take for ever to say what they want."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        """Give the head of a request its time, from its first byte or from the connection on."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEAD, self._end)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()


def run(app: Starlette, listener: socket.socket, on_stop: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; then take nothing new, finish what was begun, and return."""

    class _Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: object) -> None:
            """As uvicorn's, which would also die of the signal once everything is done."""
            on_stop()
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    config = uvicorn.Config(
        app,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_PATIENCE,
        timeout_keep_alive=15,
    )
    _Server(config).run(sockets=[listener])


class JsonLines(logging.Formatter):
    """A log line as one JSON document: time, level, event, and what the event carries."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        entry |= getattr(record, "titans", {})
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)
