"""Every store keeps its promises: compare and swap, time to live, and deletion that leaves nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.serving.databases import Database, free_port, postgresql_server, redis_server
from tests.serve.conftest import database
from titans_runtime import InputError, StateError
from titans_serve.stores import (
    AesCipher,
    ConflictError,
    Key,
    Record,
    SealedStore,
    Store,
    open_store,
    read_cipher,
    without_password,
)
from titans_serve.stores.folder import FolderStore
from titans_serve.stores.sqlite import SQLiteStore

Make = Callable[[], Store]
ALICE = Key("alice", "memory", "diary")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.passed: list[Callable[[float], None]] = []

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        """Also for databases, whose clock is their own: what expires is brought nearer."""
        self.time += seconds
        for nearer in self.passed:
            nearer(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with database(redis_server, tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="session")
def postgresql_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with database(postgresql_server, tmp_path_factory.mktemp("postgresql")) as server:
        yield server.url


@pytest.fixture(params=["folder", "sqlite", "sealed", "redis", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> str:
    """Where an empty store is."""
    if request.param in ("folder", "sealed"):
        return str(tmp_path / request.param)
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'store.db'}"
    url = str(request.getfixturevalue(f"{request.param}_url"))
    if request.param == "redis":
        client = redis.Redis.from_url(url)
        client.flushall()

        def nearer(seconds: float) -> None:
            for key in client.scan_iter():
                if (left := client.pttl(key)) > 0:
                    client.pexpire(key, int(left - seconds * 1000))
    else:
        open_store(url).close()
        database = psycopg.connect(url, autocommit=True)
        database.execute("TRUNCATE titans_value")

        def nearer(seconds: float) -> None:
            database.execute("UPDATE titans_value SET expires = expires - make_interval(secs => %s)", (seconds,))

    clock.passed.append(nearer)
    return url


@pytest.fixture
def make(address: str, clock: Clock) -> Iterator[Make]:
    """Opens the same store as often as it is called."""
    opened: list[Store] = []

    def begin() -> Store:
        opened.append(opened_at(address, clock))
        return opened[-1]

    yield begin
    for store in opened:
        store.close()


def opened_at(address: str, clock: Callable[[], float]) -> Store:
    """The store at an address, with a clock where it takes one."""
    store = open_store(address)
    if isinstance(store, FolderStore | SQLiteStore):
        store._now = clock
    return SealedStore(store, AesCipher([b"k" * 32])) if address.endswith("sealed") else store


def test_a_write_names_what_it_replaces(make: Make) -> None:
    store = make()
    first = store.put(ALICE, b"one", None)
    with pytest.raises(ConflictError):
        store.put(ALICE, b"two", None)
    second = store.put(ALICE, b"two", first)
    with pytest.raises(ConflictError):
        store.put(ALICE, b"three", first)
    assert store.get(ALICE) == Record(b"two", second)
    assert store.version(ALICE) == second
    assert make().get(ALICE) == Record(b"two", second)  # as another process finds it


def test_of_many_writers_one_wins_each_round(make: Make) -> None:
    version = make().put(ALICE, b"", None)
    for _ in range(5):
        won: list[str] = []

        def write(number: int, version: str = version, won: list[str] = won) -> None:
            try:
                won.append(make().put(ALICE, bytes([number]), version))
            except ConflictError:
                return

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (version,) = won
        assert make().version(ALICE) == version


def test_two_processes_lose_no_update(make: Make, address: str) -> None:
    store = make()
    store.put(ALICE, b"0", None)
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from titans_serve.stores import AesCipher, ConflictError, Key, SealedStore, open_store
store = open_store({address!r})
if {address.endswith("sealed")}:
    store = SealedStore(store, AesCipher([b"k" * 32]))
done = 0
while done < 12:
    found = store.get(Key("alice", "memory", "diary"))
    try:
        store.put(Key("alice", "memory", "diary"), str(int(found.data) + 1).encode(), found.version)
        done += 1
    except ConflictError:
        pass
"""
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    found = store.get(ALICE)
    assert found is not None
    assert found.data == b"24"


def test_what_has_expired_is_gone(make: Make, clock: Clock) -> None:
    store = make()
    store.put(ALICE, b"secret", None, lives=10)
    clock.advance(9)
    assert store.names("alice", "memory") == ["diary"]
    clock.advance(1)
    assert store.get(ALICE) is None
    assert store.version(ALICE) is None
    assert store.names("alice", "memory") == []
    store.put(ALICE, b"new", None)  # its place is free again
    assert store.expire() == 0
    store.put(Key("alice", "mark", "m"), b"secret", None, lives=1)
    clock.advance(2)
    assert store.expire() == 1


def test_namespaces_and_kinds_never_meet(make: Make) -> None:
    store = make()
    for namespace in ("alice", "bob"):
        for kind in ("memory", "mark"):
            store.put(Key(namespace, kind, "x"), f"{namespace} {kind}".encode(), None)
    assert store.delete_namespace("alice") == 2
    assert store.names("alice", "memory") == []
    found = store.get(Key("bob", "mark", "x"))
    assert found is not None
    assert found.data == b"bob mark"


def test_deleted_bytes_are_in_no_file(make: Make, address: str, tmp_path: Path) -> None:
    if "://" in address:
        pytest.skip("a database frees deleted bytes when it rewrites its files; see docs/serving.md")
    store = make()
    secret = b"the colour of Zorblax is crimson" * 40
    store.put(ALICE, secret, None)
    store.put(Key("bob", "memory", "diary"), secret.replace(b"crimson", b"magenta"), None)
    before = files_under(tmp_path)
    assert store.delete(ALICE)
    assert not store.delete(ALICE)
    assert b"crimson" not in files_under(tmp_path)
    assert (b"magenta" in before) is not address.endswith("sealed")
    assert (b"crimson" in before) is not address.endswith("sealed")


def files_under(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


@given(names=st.lists(st.text(max_size=20), max_size=8))
@settings(deadline=None)
def test_a_name_is_plain_or_refused(names: list[str]) -> None:
    for name in names:
        try:
            key = Key("alice", "memory", name)
        except InputError:
            continue
        assert "/" not in key.name
        assert key.name not in ("", ".", "..")


def test_an_unknown_kind_of_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="postgresql"):
        open_store("mysql://localhost")
    with pytest.raises(InputError, match="sqlite:FILE"):
        open_store("sqlite:")
    (tmp_path / "not.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StateError, match=r"not\.db"):
        open_store(f"sqlite:{tmp_path / 'not.db'}")
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="file"):
        open_store(str(tmp_path / "file"))


@pytest.mark.parametrize(
    "url", ["redis://user:secret@127.0.0.1:{}/0", "postgresql://user:secret@127.0.0.1:{}/x?password=secret"]
)
def test_a_database_that_does_not_answer_is_named_without_its_password(url: str) -> None:
    with pytest.raises(StateError, match=r"127\.0\.0\.1") as error:
        open_store(url.format(free_port()))
    assert "secret" not in str(error.value)
    assert "secret" not in without_password(url)


@pytest.mark.parametrize("start", [redis_server, postgresql_server])
def test_what_a_database_has_acknowledged_survives_its_crash(start: Callable[[Path], Database], tmp_path: Path) -> None:
    with database(start, tmp_path / "database") as server:
        store = open_store(server.url)
        versions = {n: store.put(Key("alice", "memory", f"m{n}"), bytes([n]) * 9000, None) for n in range(8)}
        server.kill()
        with pytest.raises(StateError, match="failed"):
            store.get(ALICE)
        server.start()
        for number, version in versions.items():  # the same store object goes on
            assert store.get(Key("alice", "memory", f"m{number}")) == Record(bytes([number]) * 9000, version)
        store.close()


def test_redis_forgets_what_a_user_deleted_on_its_disk_too(tmp_path: Path) -> None:
    with database(redis_server, tmp_path / "redis") as server:
        store = open_store(server.url)
        store.put(ALICE, b"the colour is crimson", None)
        assert b"crimson" in files_under(tmp_path)
        assert store.delete_namespace("alice") == 1
        client = redis.Redis.from_url(server.url)
        while client.info("persistence")["aof_rewrite_in_progress"] or b"crimson" in files_under(tmp_path):
            assert client.ping()  # ends when Redis has written its log anew; a limit is the test runner's
        store.close()


def test_a_sealed_value_is_bound_to_its_key_and_to_its_place(tmp_path: Path) -> None:
    plain = open_store(str(tmp_path / "store"))
    store = SealedStore(plain, AesCipher([b"a" * 32]))
    store.put(ALICE, b"secret", None)
    found = plain.get(ALICE)
    assert found is not None
    assert b"secret" not in found.data
    plain.put(Key("bob", "memory", "diary"), found.data, None)
    with pytest.raises(StateError, match="altered"):
        store.get(Key("bob", "memory", "diary"))
    with pytest.raises(StateError, match="key is missing"):
        SealedStore(plain, AesCipher([b"b" * 32])).get(ALICE)
    assert SealedStore(plain, AesCipher([b"b" * 32, b"a" * 32])).get(ALICE) == Record(b"secret", found.version)
    plain.put(ALICE, b"as it is", found.version)
    with pytest.raises(StateError, match="not encrypted"):
        store.get(ALICE)


@pytest.mark.parametrize(
    ("text", "mode", "word"),
    [("ab", 0o600, "32 bytes"), ("xy", 0o600, "hexadecimal"), ("", 0o600, "32 bytes"), ("ab" * 32, 0o644, "chmod")],
)
def test_a_key_file_that_is_none_is_refused(text: str, mode: int, word: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(InputError, match=word):
        read_cipher(file)
