"""A save never silently replaces what the session has not read: two users of one memory file are told."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from titans_runtime import Model, Session, StateError
from titans_runtime.serving.batch import Batch
from titans_runtime.stream import lineage

REFUSED = r"holds what this session has not read.*restore it first.*force=True \(--force\)"


@pytest.fixture(params=["model", "batch"])
def source(request: pytest.FixtureRequest, toy_model: Model) -> Iterator[Model | Batch]:
    """What sessions are made by."""
    with toy_model.batch(lanes=2) as batch:
        yield toy_model if request.param == "model" else batch


def started(source: Model | Batch, *tokens: int) -> Session:
    session = source.session()
    session.feed(list(tokens))
    return session


def test_the_later_of_two_users_of_a_file_is_told(source: Model | Batch, tmp_path: Path) -> None:
    path = tmp_path / "alice.state"
    started(source, 1).save(path)
    first, second = source.restore(path), source.restore(path)
    first.feed([2])
    second.feed([3])
    first.save(path)
    kept = path.read_bytes()
    for refused in (second.save, second.check_save):
        with pytest.raises(StateError, match=REFUSED):
            refused(path)
    assert path.read_bytes() == kept
    second.save(tmp_path / "other.state")
    second.save(path, force=True)
    assert source.restore(path).to_bytes() == second.to_bytes()


def test_two_who_both_began_without_a_file_are_told_too(source: Model | Batch, tmp_path: Path) -> None:
    path = tmp_path / "alice.state"
    first, second = started(source, 1), started(source, 2)
    first.save(path)
    with pytest.raises(StateError, match=REFUSED):
        second.save(path)
    path.unlink()
    second.save(path)  # nothing is lost


@pytest.mark.parametrize(
    "go_on",
    [
        lambda source, path, session: session,
        lambda source, path, session: session.fork(),
        lambda source, path, session: source.restore(path),
        lambda source, path, session: source.restore(path).fork().fork(),
        lambda source, path, session: source.restore_bytes(path.read_bytes()),
    ],
    ids=["itself", "fork", "restored", "fork of a fork", "from bytes"],
)
def test_who_has_read_or_written_a_file_may_replace_it_again_and_again(
    source: Model | Batch, tmp_path: Path, go_on: Callable[[Model | Batch, Path, Session], Session]
) -> None:
    path = tmp_path / "alice.state"
    session = started(source, 1)
    session.save(path)
    after = go_on(source, path, session)
    for compress in (False, True, False):
        after.feed([5])
        after.check_save(path)
        after.save(path, compress=compress)
        after.save(tmp_path / "backup.state")
    after.reset()
    after.save(path)
    assert source.restore(path).position == 0


def test_bytes_that_the_session_gave_are_its_own_wherever_they_were_written(toy_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "alice.state"
    session = started(toy_model, 1)
    path.write_bytes(session.to_bytes())
    session.feed([2])
    session.save(path)


def test_a_link_is_the_file_that_it_leads_to(toy_model: Model, tmp_path: Path) -> None:
    path, link = tmp_path / "alice.state", tmp_path / "link.state"
    started(toy_model, 1).save(path)
    link.symlink_to(path)
    session = toy_model.restore(link)
    session.feed([2])
    session.save(path)
    with pytest.raises(StateError, match=REFUSED):
        started(toy_model, 3).save(link)


@pytest.mark.parametrize("content", [b"notes of mine", b"\xff" * 30, b"\x00" * 8, (2).to_bytes(8, "little") + b"{}"])
def test_what_is_no_state_is_not_replaced(toy_model: Model, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(StateError, match=REFUSED):
        toy_model.session().save(path)
    assert path.read_bytes() == content


def test_an_empty_file_is_nobodys_memory(toy_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "new.state"
    path.touch()
    started(toy_model, 1).save(path)
    assert toy_model.restore(path).position == 1


def test_between_the_look_and_the_replacement_nobody_else_saves(toy_model: Model, tmp_path: Path) -> None:
    """Eight threads save at once to a file that is not there: one wins, seven are told, whoever is where."""
    path = tmp_path / "alice.state"
    sessions = [started(toy_model, number) for number in range(8)]
    everybody, told = threading.Barrier(len(sessions)), []

    def save(session: Session) -> None:
        everybody.wait()
        try:
            session.save(path)
        except StateError as error:
            told.append(str(error))

    threads = [threading.Thread(target=save, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == len(sessions) - 1
    assert all("has not read" in message for message in told)


INCREMENT = """
import sys
import titans_runtime
model = titans_runtime.load(sys.argv[1], threads=1)
done = 0
while done < 10:
    session = model.restore(sys.argv[2])
    session.feed([int(sys.argv[3])])
    try:
        session.save(sys.argv[2])
        done += 1
    except titans_runtime.StateError as error:
        assert "has not read" in str(error), error
"""


def test_no_update_of_three_processes_is_lost(toy_model: Model, toy_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "alice.state"
    started(toy_model, 1).save(path)
    command = [sys.executable, "-c", INCREMENT, str(toy_bundle), str(path)]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert toy_model.restore(path).position == 1 + 3 * 10


def test_a_lock_that_somebody_keeps_does_not_stop_saves_for_ever(
    toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "_PATIENCE", 0.0)
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        started(toy_model, 1).save(tmp_path / "alice.state")
    finally:
        os.close(handle)


def test_a_file_system_without_locks_still_refuses(
    toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    path = tmp_path / "alice.state"
    session = started(toy_model, 1)
    session.save(path)
    session.save(path)
    with pytest.raises(StateError, match=REFUSED):
        started(toy_model, 2).save(path)


def test_a_lock_is_given_back(toy_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "alice.state"
    session = started(toy_model, 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        session.save(path)
        with pytest.raises(StateError):
            started(toy_model, 2).save(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
