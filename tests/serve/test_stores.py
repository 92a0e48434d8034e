"""Every store keeps its promises: compare and swap, time to live, and deletion that leaves nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_runtime import InputError, StateError
from titans_serve.stores import ConflictError, Key, Record, Store, open_store
from titans_serve.stores.folder import FolderStore
from titans_serve.stores.sqlite import SQLiteStore

Make = Callable[[], Store]
ALICE = Key("alice", "memory", "diary")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["folder", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Make:
    """Opens the same store as often as it is called."""
    if request.param == "folder":
        return lambda: FolderStore(tmp_path / "store", clock)
    return lambda: SQLiteStore(tmp_path / "store.db", clock)


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


def test_two_processes_lose_no_update(make: Make, tmp_path: Path) -> None:
    store = make()
    store.put(ALICE, b"0", None)
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from titans_serve.stores import ConflictError, Key
from titans_serve.stores.folder import FolderStore
from titans_serve.stores.sqlite import SQLiteStore
store = {type(store).__name__}({str(store.path)!r}, lambda: 1000.0)  # type: ignore[attr-defined]
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
    clock.time += 9
    assert store.names("alice", "memory") == ["diary"]
    clock.time += 1
    assert store.get(ALICE) is None
    assert store.version(ALICE) is None
    assert store.names("alice", "memory") == []
    store.put(ALICE, b"new", None)  # its place is free again
    assert store.expire() == 0
    store.put(Key("alice", "mark", "m"), b"secret", None, lives=1)
    clock.time += 2
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


def test_deleted_bytes_are_in_no_file(make: Make, tmp_path: Path) -> None:
    store = make()
    secret = b"the colour of Zorblax is crimson" * 40
    store.put(ALICE, secret, None)
    store.put(Key("bob", "memory", "diary"), secret.replace(b"crimson", b"magenta"), None)
    assert store.delete(ALICE)
    assert not store.delete(ALICE)
    left = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"crimson" not in left
    assert b"magenta" in left


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
    with pytest.raises(InputError, match="redis"):
        open_store("redis://localhost")
    with pytest.raises(InputError, match="sqlite:FILE"):
        open_store("sqlite:")
    (tmp_path / "not.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StateError, match=r"not\.db"):
        open_store(f"sqlite:{tmp_path / 'not.db'}")
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="file"):
        open_store(str(tmp_path / "file"))
