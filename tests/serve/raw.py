"""HTTP by hand, for what no client would send."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterable

from tests.serve.conftest import ALICE


def address(process: subprocess.Popen[str]) -> str | None:
    """Where a `titans serve --json` listens, once it does; None if it ended before."""
    assert process.stdout is not None
    lines = ""
    for line in process.stdout:
        lines += line
        if line.startswith("}"):
            return str(json.loads(lines)["url"])
    return None


def connected(url: str, receive_buffer: int | None = None) -> socket.socket:
    """A connection to a server."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect((host, int(port)))
    return connection


def exchange(url: str, parts: Iterable[bytes]) -> bytes:
    """Everything that comes back until the server closes the connection, which it does when nothing more is sent."""
    answer = b""
    with connected(url) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while data := connection.recv(65536):
                answer += data
        except ConnectionError:
            pass
    return answer


def post(path: str, body: object, key: str = ALICE, *headers: str) -> bytes:
    """A whole request."""
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"authorization: Bearer {key}", f"content-length: {len(data)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + data


def statuses(answer: bytes) -> list[int]:
    """The status of each response in what came back."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
