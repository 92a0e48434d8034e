"""A server of the toy model on loopback, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis  # noqa: F401  (imported at the end of a run, it meets a fault of CPython 3.11 with many types loaded)
import openai
import pytest
import uvicorn

from studies.serving.databases import Database, MissingProgramError
from tests.runtime.toy import Toy, write_toy
from titans_runtime import Model, load
from titans_serve.app import Server
from titans_serve.keys import Keys
from titans_serve.listen import Protocol, bind
from titans_serve.service import Service
from titans_serve.settings import Settings
from titans_serve.stores import open_store

ALICE, BOB = "key-of-alice-0123456789", "key-of-bob-0123456789"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The byte-level toy, whose answers are letters, so that they are read again as they were written."""
    return write_toy(tmp_path_factory.mktemp("served") / "toy.titans", Toy(letters=True))


@pytest.fixture(scope="session")
def model(bundle: Path) -> Model:
    """The toy, loaded."""
    return load(bundle, threads=1)


@dataclass
class Running:
    """A server that answers."""

    url: str
    service: Service
    loop: asyncio.AbstractEventLoop
    _server: uvicorn.Server
    _thread: threading.Thread

    def client(self, key: str = ALICE) -> openai.OpenAI:
        """OpenAI's own client, which gives up at the first error."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def ask(
        self, method: str, path: str, body: object = None, key: str = ALICE, raw: bytes | None = None
    ) -> tuple[int, bytes]:
        """One request by hand: the status, and the body of the answer."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"authorization": f"Bearer {key}"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def stop(self) -> None:
        """As SIGTERM does."""
        self.service.stop()
        self._server.should_exit = True
        self._thread.join()


Start = Callable[..., Running]


@contextlib.contextmanager
def database(make: Callable[[Path], Database], folder: Path) -> Iterator[Database]:
    """A database server, ended afterwards; the test is skipped where the program is missing."""
    try:
        server = make(folder)
    except MissingProgramError as error:
        pytest.skip(str(error))
    with contextlib.closing(server):
        yield server


@pytest.fixture
def start(model: Model, tmp_path: Path) -> Iterator[Start]:
    """Starts servers; they are stopped after the test."""
    running: list[Running] = []

    def begin(
        store: str | None = None,
        settings: Settings | None = None,
        keys: Keys | None = None,
        other: Model | None = None,
    ) -> Running:
        service = Service(other or model, open_store(store or f"sqlite:{tmp_path / 'memories.db'}"), settings, "toy")
        app = Server(service, keys or Keys({"alice": ALICE, "bob": BOB})).app()
        listener = bind("127.0.0.1", 0)
        server = uvicorn.Server(
            uvicorn.Config(app, http=Protocol, timeout_keep_alive=0, log_config=None, access_log=False)
        )
        started = threading.Event()
        startup = server.startup

        loops: list[asyncio.AbstractEventLoop] = []

        async def announced(sockets: object = None) -> None:
            loops.append(asyncio.get_running_loop())
            await startup(sockets)  # type: ignore[arg-type]
            started.set()

        server.startup = announced  # type: ignore[method-assign]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        started.wait()
        running.append(Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service, loops[0], server, thread))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture
def server(start: Start) -> Running:
    """One server with two keys."""
    return start()
