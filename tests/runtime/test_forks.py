"""A child forked after loading is told at once, and neither side loses anything; batches end with whoever uses them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

START = """
import gc, os, sys, threading
from pathlib import Path
import numpy as np
import titans_runtime as titans

bundle, folder = sys.argv[1], Path(sys.argv[2])
model = titans.load(bundle, provider="cpu", threads=2)
batch = model.batch(lanes=2, resident=2, folder=folder)
session, members = model.session(), [batch.session() for _ in range(4)]
session.feed([1] * 20)
batch.feed(members, [[1], [2], [3], [4]])
mark, generator = session.mark(), session.generate_tokens([1], 8)
next(generator)


def forked(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(0)  # as a program does, with everything that Python does at its end
    assert os.waitpid(pid, 0)[1] == 0
"""


def run(code: str, bundle: Path, folder: Path) -> list[str]:
    """The lines that a program of its own prints; one that hangs is a failure."""
    done = subprocess.run(
        [sys.executable, "-c", START + code, str(bundle), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},  # whose thread the end of a child would wait for
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_whatever_a_child_does_with_what_it_inherited_is_refused_at_once(toy_bundle: Path, tmp_path: Path) -> None:
    code = """
def child():
    calls = {
        "feed": lambda: session.feed([1]), "fork": session.fork, "mark": session.mark, "save": session.to_bytes,
        "rewind": lambda: session.rewind(mark), "reset": session.reset, "stats": lambda: session.stats,
        "generator": lambda: next(generator), "generate": lambda: list(session.generate_tokens([1], 2)),
        "new session": model.session, "driver": model.driver, "new batch": lambda: model.batch().session(),
        "member": lambda: members[0].feed([1]), "spilled member": lambda: [m.fork() for m in members],
        "submit": lambda: members[0].submit([1]), "batch.feed": lambda: batch.feed(members, [[1]] * 4),
        "batch.session": batch.session, "resident": lambda: batch.resident,
    }
    for name, call in calls.items():
        try:
            call()
            print(name, "works")
        except titans.ForkError as error:
            print(name, "told" if "load the model after the fork" in str(error) else error)
    batch.close()  # nothing of the parent's
    print("position", session.position)

forked(child)
"""
    lines = run(code, toy_bundle, tmp_path)
    assert lines.pop() == "position 22"
    assert len(lines) == 18
    assert [line for line in lines if not line.endswith(" told")] == []


def test_the_parent_goes_on_and_keeps_its_files_whatever_becomes_of_the_child(toy_bundle: Path, tmp_path: Path) -> None:
    code = """
def drop():
    global session, members, batch, model, generator, mark
    del session, members, batch, model, generator, mark
    gc.collect()

for _ in range(3):
    forked(drop)
    forked(lambda: None)
print(len(list(folder.rglob("*.state"))))
for number, member in enumerate(members):
    alone = model.session()
    alone.feed([number + 1])
    print(np.allclose(member.feed([5]), alone.feed([5]), atol=1e-5))
session.feed([1])
batch.close()
"""
    assert run(code, toy_bundle, tmp_path) == ["2", *["True"] * 4]


def test_a_child_that_loads_for_itself_works_and_its_own_child_is_told(toy_bundle: Path, tmp_path: Path) -> None:
    code = """
def child():
    own = titans.load(bundle, provider="cpu", threads=2)
    with own.batch() as mine:
        for stream in (own.session(), mine.session()):
            print(len(stream.feed([1] * 20)))
    def grandchild():
        try:
            own.session()
        except titans.ForkError:
            print("told")
    forked(grandchild)

forked(child)
"""
    assert run(code, toy_bundle, tmp_path) == ["256", "256", "told"]


def test_a_fork_while_others_feed_leaves_no_child_waiting(toy_bundle: Path, tmp_path: Path) -> None:
    code = """
stop = threading.Event()

def busy(stream):
    while not stop.is_set():
        stream.feed([1] * 20)

threads = [threading.Thread(target=busy, args=(s,)) for s in (model.session(), *members)]
for thread in threads:
    thread.start()

def child():
    for call in (lambda: members[0].feed([1]), model.session, lambda: session.feed([1]), lambda: batch.resident):
        try:
            call()
        except titans.ForkError:
            print("told")

for _ in range(10):
    forked(child)
stop.set()
for thread in threads:
    thread.join()
"""
    assert run(code, toy_bundle, tmp_path) == ["told"] * 40


@pytest.mark.parametrize("left", ["everything", "a feed under way", "a callback", "nothing"])
def test_a_batch_that_nobody_closed_ends_with_the_interpreter(toy_bundle: Path, tmp_path: Path, left: str) -> None:
    code = {
        "everything": "",
        "a feed under way": "future = members[0].submit(np.zeros(100_000, np.int64))",
        "a callback": "members[0].submit([1]).add_done_callback(lambda f: members[0].submit([1] * 1000))",
        "nothing": "del session, members, batch, model, generator, mark",
    }[left]
    assert run(code + "\nprint('end')", toy_bundle, tmp_path) == ["end"]
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_nobody_can_reach_ends_its_thread_and_removes_its_files(toy_bundle: Path, tmp_path: Path) -> None:
    code = """
(thread,) = [thread for thread in threading.enumerate() if thread.name == "titans-batch"]
del batch
gc.collect()
print(thread.is_alive())  # its sessions live, and may go on
members[0].feed([1])
members.clear()
gc.collect()
thread.join()
gc.collect()
print(thread.is_alive(), list(folder.iterdir()))
for _ in range(50):
    model.batch(lanes=2).session().feed([1])
gc.collect()
for thread in threading.enumerate():
    if thread.name == "titans-batch":
        thread.join()
print(threading.active_count())
"""
    assert run(code, toy_bundle, tmp_path) == ["True", "False []", "1"]


def test_a_killed_process_leaves_a_folder_that_the_next_batch_removes_and_a_living_one_keeps_its(
    toy_bundle: Path, tmp_path: Path
) -> None:
    run("print('x', flush=True); os.kill(os.fork() or os.getpid(), 0); os._exit(0)", toy_bundle, tmp_path)
    (left,) = tmp_path.iterdir()  # `os._exit` tidies up as little as a kill does
    os.utime(left)
    code = """
print(len(list(folder.iterdir())))
import subprocess
other = "import sys, titans_runtime as t; t.load(sys.argv[1], threads=1).batch(resident=1, folder=sys.argv[2])"
subprocess.run([sys.executable, "-c", other, bundle, str(folder)], check=True)
print(len(list(folder.rglob("*.state"))))
"""
    assert run(code, toy_bundle, tmp_path) == ["1", "2"]
    assert list(tmp_path.iterdir()) == []
