"""Saved sessions: whole or refused, tied to their model, and replaced atomically whatever happens."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.toy import C, Toy, write_toy
from titans_runtime import Model, StateError, load
from titans_runtime.atomic import check_writable, lock_of_nobody

TEXT = list(b"what is to be remembered")  # three chunks
ODD = TEXT[:-3]  # ends inside a chunk


def saved(model: Model, tokens: list[int] = ODD, compress: bool = False) -> bytes:
    session = model.session()
    if tokens:
        session.feed(tokens)
    return session.to_bytes(compress=compress)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("tokens", [[], ODD, TEXT])
def test_a_saved_session_comes_back_with_everything_that_counts(
    toy_model: Model, tmp_path: Path, tokens: list[int], compress: bool
) -> None:
    session = toy_model.session()
    if tokens:
        session.feed(tokens)
    path = tmp_path / "alice.state"
    session.save(path, compress=compress)
    restored = toy_model.restore(path, name="alice")
    assert (restored.name, restored.position) == ("alice", len(tokens))
    assert restored.to_bytes() == session.to_bytes()
    ours, theirs = session.stats, restored.stats
    assert ours.commits == len(tokens) // C
    assert (ours.surprise_mean, ours.surprise_highest) == (theirs.surprise_mean, theirs.surprise_highest)
    assert ours.state_norms == theirs.state_norms
    if tokens:  # it can go on without a prompt
        assert "".join(restored.generate(None, 9, seed=1)) == "".join(session.generate(None, 9, seed=1))


def test_the_same_session_gives_the_same_bytes(toy_model: Model) -> None:
    assert saved(toy_model) == saved(toy_model)
    assert saved(toy_model, compress=True) == saved(toy_model, compress=True)


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_with_any_byte_changed_is_refused(toy_model: Model, compress: bool) -> None:
    data = saved(toy_model, compress=compress)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(StateError, match=r"; [a-z]"):
            toy_model.restore_bytes(bytes(changed))


def test_a_file_cut_anywhere_or_with_something_behind_it_is_refused(toy_model: Model) -> None:
    data = saved(toy_model)
    for length in range(0, len(data), 7):
        with pytest.raises(StateError):
            toy_model.restore_bytes(data[:length])
    with pytest.raises(StateError):
        toy_model.restore_bytes(data + b"\0")


def forged(data: bytes, **changes: object) -> bytes:
    """The file with entries of its metadata changed and the checksum made right again, as an attacker would."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    titans = json.loads(header["__metadata__"]["titans"]) | {"sha256": "0" * 64} | changes
    return sealed({**header, "__metadata__": {"titans": json.dumps(titans)}}, data[8 + length :])


def sealed(header: dict[str, object], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text + body
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "something"}, "not a saved session"),
        ({"format_version": 2}, "newer than 1; run: git"),
        ({"identity": "0" * 63 + "1"}, "another model"),
        ({"position": len(ODD) + 1}, "'0.rows' is"),
        ({"position": -1}, "position"),
        ({"position": "5"}, "position"),
        ({"compressed": True}, "decompress"),
        ({"compressed": 1}, "true or false"),
        ({"surprise": None}, "surprise"),
        ({"commits": None}, "commits"),
    ],
)
def test_a_forged_header_is_refused(toy_model: Model, changes: dict[str, object], message: str) -> None:
    with pytest.raises(StateError, match=message):
        toy_model.restore_bytes(forged(saved(toy_model), **changes))


def test_a_header_forged_without_a_change_is_accepted_so_that_the_test_above_tests_something(toy_model: Model) -> None:
    assert toy_model.restore_bytes(forged(saved(toy_model))).position == len(ODD)


def test_numbers_that_are_not_finite_are_refused(toy_model: Model) -> None:
    data = saved(toy_model)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    body = np.frombuffer(data[8 + length :], np.float32).copy()
    body[header["0.memory_0"]["data_offsets"][0] // 4] = np.nan
    titans = json.loads(header["__metadata__"]["titans"]) | {"sha256": "0" * 64}
    with pytest.raises(StateError, match=r"0\.memory_0.*not finite"):
        toy_model.restore_bytes(sealed({**header, "__metadata__": {"titans": json.dumps(titans)}}, body.tobytes()))


def test_a_state_of_another_model_is_refused_and_both_are_named(
    toy_model: Model, series_model: Model, tmp_path: Path
) -> None:
    with pytest.raises(StateError, match=r"state of another model.*'toy'.*load the bundle"):
        series_model.restore_bytes(saved(toy_model))
    smaller = load(write_toy(tmp_path / "toy", Toy(vocab_size=20)), threads=1)
    with pytest.raises(StateError, match="another model"):
        smaller.restore_bytes(saved(toy_model))


def test_a_bundle_exported_again_from_the_same_weights_takes_the_state(toy_model: Model, tmp_path: Path) -> None:
    again = load(write_toy(tmp_path / "toy", Toy(extend=False)), threads=1)
    assert again.restore_bytes(saved(toy_model)).position == len(ODD)


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(toy_model: Model, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="is missing; check the path"):
        toy_model.restore(tmp_path / "nobody.state")
    with pytest.raises(StateError, match="cannot be read"):
        toy_model.restore(tmp_path)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(StateError, match="larger than a state"):
        toy_model.restore(tmp_path / "huge")


def test_a_full_disk_leaves_the_old_file_and_the_session_alone(
    toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "alice.state"
    session = toy_model.session()
    session.feed(ODD)
    session.save(path)
    before = path.read_bytes()
    session.feed(TEXT)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StateError, match=r"No space left on device.*free some disk space"):
            session.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["alice.state"]
    session.save(path)
    assert toy_model.restore(path).position == len(ODD) + len(TEXT)


SAVE_WITHOUT_ROOM = """
import resource, sys
import titans_runtime
model = titans_runtime.load(sys.argv[1], threads=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))  # from here on the system refuses to write more
try:
    model.session().save(sys.argv[2], force=True)
except titans_runtime.StateError as error:
    print(error)
"""


def test_a_write_that_the_system_really_refuses_leaves_the_old_file(
    toy_bundle: Path, toy_model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "alice.state"
    path.write_bytes(saved(toy_model))
    arguments = [sys.executable, "-c", SAVE_WITHOUT_ROOM, str(toy_bundle), str(path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "cannot be written (File too large)" in done.stdout
    assert path.read_bytes() == saved(toy_model)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder that this process may not write to, even if it is root's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)
            Path(name).chmod(0o755)


def test_a_read_only_folder_is_a_clear_error(toy_model: Model, read_only_folder: Path) -> None:
    with pytest.raises(StateError, match="Permission denied"):
        toy_model.session().save(read_only_folder / "alice.state")


def test_a_folder_that_is_not_there_is_a_clear_error(toy_model: Model, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"No such file or directory.*choose another place"):
        toy_model.session().save(tmp_path / "nowhere" / "alice.state")


def test_a_saved_memory_is_its_users_alone_and_keeps_the_mode_it_was_given(toy_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "alice.state"
    toy_model.session().save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    toy_model.session().save(path)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("age", [0, 7200, -7200])  # seconds; also of a clock that was put back
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    toy_model: Model, tmp_path: Path, age: float
) -> None:
    names = (".alice.state.1.titans-tmp", ".bob.state.2.titans-tmp", ".alice.state.3.titans-tmp", ".somebody.tmp")
    files = [tmp_path / name for name in names]
    then = time.time() - age
    for file in files:
        file.write_bytes(b"half a state")
        os.utime(file, (then, then))
    with files[2].open("rb") as writing:  # by somebody who lives
        assert lock_of_nobody(writing.fileno())
        toy_model.session().save(tmp_path / "alice.state")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*names[2:], "alice.state"])


def test_a_save_that_is_killed_at_any_moment_leaves_nothing_that_the_next_one_does_not_remove(
    toy_bundle: Path, tmp_path: Path
) -> None:
    """A process that is killed while its temporary file is locked and half written."""
    code = f"""
import os, signal
from titans_runtime import atomic, load
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
load({str(toy_bundle)!r}, threads=1).session().save({str(tmp_path / "alice.state")!r})
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    load(toy_bundle, threads=1).session().save(tmp_path / "alice.state")
    assert [file.name for file in tmp_path.iterdir()] == ["alice.state"]


def test_a_link_stays_and_the_file_it_leads_to_is_replaced(toy_model: Model, tmp_path: Path) -> None:
    link, there = tmp_path / "alice.state", tmp_path / "elsewhere" / "real.state"
    there.parent.mkdir()
    link.symlink_to(there)
    session = toy_model.session()
    for _ in range(2):  # a link that leads nowhere yet, and one to a file
        session.feed([1])
        session.save(link)
        assert link.is_symlink()
        assert toy_model.restore(there).position == session.position


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_is_refused_and_stays(toy_model: Model, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    for refused in (toy_model.session().save, check_writable):
        with pytest.raises(StateError, match="name a file"):
            refused(place)
    assert place.is_fifo() if kind == "pipe" else place.is_dir()
    assert list(tmp_path.iterdir()) == [place]


SAVE_FOREVER = """
import sys
import titans_runtime
model = titans_runtime.load(sys.argv[1], threads=1)
session = model.session()
print("ready", flush=True)
while True:
    session.feed([1])
    session.save(sys.argv[2], force=True)
    print(session.position, flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_a_whole_state(
    toy_bundle: Path, toy_model: Model, tmp_path: Path
) -> None:
    """200 saves or more, 20 kills; what is found is the last state reported as saved, or the one after it."""
    path, clock, saves = tmp_path / "agent.state", random.Random(0), 0
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(toy_bundle), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        reported = 0
        for _ in range(clock.randrange(5, 30)):
            reported = int(process.stdout.readline())
        time.sleep(clock.random() * 0.01)  # where in a save the kill falls is chance, as it should be
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        process.wait()
        reported = max([reported, *(int(line) for line in rest if line and line.isdigit())])
        saves += reported
        restored = toy_model.restore(path)
        assert restored.position in (reported, reported + 1)
        twin = toy_model.session()
        for _ in range(restored.position):
            twin.feed([1])
        assert restored.to_bytes() == twin.to_bytes()
    assert saves >= 200
