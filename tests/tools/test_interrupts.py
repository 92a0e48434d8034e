"""Ctrl-C, and a reader that goes away: what was read is kept, and no memory is replaced by less than itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import titans_runtime
from titans_cli.main import INTERRUPTED
from titans_runtime.stream.session import PIECE

pytestmark = pytest.mark.usefixtures("no_software_device")

ENDLESS = "1000000"
ROOT = Path(__file__).resolve().parents[2]


def position(state: Path, bundle: Path) -> int:
    return titans_runtime.load(bundle, threads=1).restore(state).position


@pytest.fixture
def memory(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A saved memory of 9 tokens."""
    path = tmp_path / "me.state"
    session = titans_runtime.load(tiny_bundle, threads=1).session()
    session.feed(list(b"remember!"))
    session.save(path)
    return path


# Runs a command whose n-th feed is interrupted, as by Ctrl-C while a graph runs.
INTERRUPT_AT = """
import sys
from titans_runtime.stream.feeder import DirectFeeder
left, feed = int(sys.argv[1]), DirectFeeder.feed

def interrupted(*arguments):
    global left
    left -= 1
    if left == 0:
        raise KeyboardInterrupt
    return feed(*arguments)

DirectFeeder.feed = interrupted
from titans_cli.main import main
sys.argv[1:] = sys.argv[2:]
main()
"""


def interrupted(piece: int, *arguments: str | Path, lines: str = "") -> subprocess.CompletedProcess[str]:
    """`titans` with these arguments, interrupted in the given call of its session."""
    command = [sys.executable, "-c", INTERRUPT_AT, str(piece), *map(str, arguments)]
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("piece", "read"), [(1, 9), (2, 9 + PIECE - 1), (3, 9 + 2 * PIECE - 1)])
def test_an_interrupted_prompt_leaves_the_memory_of_what_was_read(
    tiny_bundle: Path, memory: Path, tmp_path: Path, piece: int, read: int
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("a" * (3 * PIECE), encoding="utf-8")
    where = ("--prompt-file", prompt, "--state-in", memory, "--state-out", memory)
    done = interrupted(piece, "run", tiny_bundle, *where)
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "Interrupted\n")
    assert position(memory, tiny_bundle) == read


@pytest.mark.parametrize("there", [True, False])
def test_a_run_that_has_read_nothing_replaces_nothing(tiny_bundle: Path, memory: Path, there: bool) -> None:
    """Not even with --force, and where no file was, there is none."""
    before = memory.read_bytes()
    out = memory if there else memory.with_name("new.state")
    done = interrupted(1, "run", tiny_bundle, "--prompt", "abc", "--state-out", out, "--force")
    assert done.returncode == INTERRUPTED
    assert memory.read_bytes() == before
    assert out.exists() == there


def test_an_interrupted_message_of_a_chat_counts_as_far_as_it_was_read(tiny_bundle: Path, memory: Path) -> None:
    message = "a" * (2 * PIECE)
    done = interrupted(2, "chat", tiny_bundle, "--memory", memory, lines=f"{message}\n")
    assert (done.returncode, "(interrupted)" in done.stderr) == (0, True)
    assert position(memory, tiny_bundle) == 9 + PIECE - 1


def test_a_message_of_which_nothing_was_read_changes_no_file(tiny_bundle: Path, memory: Path) -> None:
    changed, new = memory.stat().st_mtime_ns, memory.with_name("new.state")
    for place in (memory, new):
        assert interrupted(1, "chat", tiny_bundle, "--memory", place, lines="abc\n").returncode == 0
    assert memory.stat().st_mtime_ns == changed
    assert not new.exists()


def test_an_interrupted_run_leaves_the_memory_of_what_it_read_and_wrote(tiny_bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "me.state"
    command = ["run", tiny_bundle, "--prompt", "def a", "--max-new-tokens", ENDLESS, "--state-out", state]
    process = subprocess.Popen(
        [sys.executable, "-m", "titans_cli.main", *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(20)  # it is under way
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told.decode().splitlines()[-1]) == (INTERRUPTED, "Interrupted")
    assert position(state, tiny_bundle) > len("def a")


def test_interrupts_reach_a_test_run_that_a_script_started_in_the_background() -> None:
    """Such a process begins with SIGINT ignored, and so would all that it starts."""
    child = "import signal; print(signal.getsignal(signal.SIGINT).__name__)"
    code = f"""
import signal, subprocess, sys
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
import tests.conftest
subprocess.run([sys.executable, "-c", {child!r}])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout == "default_int_handler\n"
