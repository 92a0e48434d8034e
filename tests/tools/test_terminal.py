"""Nothing that a file holds, or is called, steers the terminal; and what nobody reads any more ends quietly."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

import titans_runtime
from tests.runtime.toy import Toy, write_toy
from titans_cli import terminal
from titans_cli.main import UNREAD, cli
from titans_export.bundle.writer import write_manifest
from titans_runtime.bundle import open_bundle
from titans_runtime.stream.session import PIECE

pytestmark = pytest.mark.usefixtures("no_software_device")

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "titans_cli.main"]
# What a terminal or an eye would obey: a title, colours, a cursor that goes up, a line that is turned round, a forged
# line, markup of rich's.
HOSTILE = "\x1b]0;owned\x07\x1b[31m\x1b[1A\x9b2J\u202egnp.exe\r\nall hashes match [bold]x[/nothing] :smile:\x7f"
NAME = HOSTILE.replace("/", "")
STYLES = re.compile(r"\x1b\[[0-9;]*m")  # what a table of ours is drawn with


def titans(*arguments: str | Path, lines: str | bytes = "") -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], input=lines)


def assert_harmless(text: str) -> None:
    assert not [char for char in STYLES.sub("", text) if terminal._STEERING.match(char) and char not in "\n\t"]
    assert "\x1b[31m" not in text
    assert "gnp.exe" in text  # it is shown, spelled out
    assert "\nall hashes match [bold]" not in text


def on_terminal(*arguments: str | Path) -> str:
    """What a command writes to a terminal."""
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "300"}
    command = [*COMMAND, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    written = b""
    try:
        while piece := os.read(ours, 65536):
            written += piece
    except OSError:  # how a terminal ends
        pass
    os.close(ours)
    process.wait()
    return written.decode("utf-8").replace("\r\n", "\n")


@pytest.fixture
def hostile_bundle(tmp_path: Path) -> Path:
    """A sound bundle that is called, and calls its model, what nobody should."""
    bundle = write_toy(tmp_path / NAME, Toy())
    manifest = open_bundle(bundle).manifest
    made_with = {**manifest.provenance, HOSTILE: HOSTILE}
    write_manifest(bundle, replace(manifest, model=replace(manifest.model, name=HOSTILE), provenance=made_with))
    return bundle


@pytest.fixture
def hostile_state(hostile_bundle: Path) -> Path:
    """A state of it."""
    session = titans_runtime.load(hostile_bundle, threads=1).session()
    session.feed([1, 2, 3])
    state = hostile_bundle.with_name(f"{hostile_bundle.name}.state")
    session.save(state)
    return state


def test_what_is_read_from_files_never_steers_the_terminal(hostile_bundle: Path, hostile_state: Path) -> None:
    other = hostile_state.with_name("other gnp.exe")
    other.write_bytes(b"not a state")
    for arguments in (
        ("inspect", hostile_bundle),
        ("state", "inspect", hostile_state),
        ("state", "diff", hostile_state, hostile_state.with_name(f"no{hostile_state.name}")),
        ("inspect", hostile_bundle.with_name(f"no{hostile_bundle.name}")),
        ("run", hostile_bundle, "--prompt", "a", "--state-out", other, "--provider", HOSTILE),
        ("run", hostile_bundle, "--prompt", "a", "--state-in", hostile_bundle / "gnp.exe\x1b[2J"),
        (HOSTILE,),
        (f"--{HOSTILE}",),
    ):
        result = titans(*arguments)
        assert not isinstance(result.exception, Exception), result.exception
        assert_harmless(result.output)
    assert_harmless(on_terminal("inspect", hostile_bundle))
    assert_harmless(on_terminal("state", "inspect", hostile_state))


def test_json_says_the_same_and_harmlessly(hostile_bundle: Path, hostile_state: Path) -> None:
    documents = []
    for arguments in (("inspect", hostile_bundle), ("state", "inspect", hostile_state)):
        result = titans(*arguments, "--json")
        assert result.exit_code == 0
        assert not [char for char in result.stdout if terminal._STEERING.match(char) and char != "\n"]
        documents.append(json.loads(result.stdout))
    bundle, state = documents
    assert (bundle["bundle"], bundle["model"]["name"], bundle["provenance"][HOSTILE]) == (
        str(hostile_bundle),
        HOSTILE,
        HOSTILE,
    )
    assert (state["file"], state["model"]) == (str(hostile_state), HOSTILE)


def test_generated_text_is_itself_for_a_pipe_and_harmless_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    said = "a\x1b[31m\x9b\x07\r\tb\nc"
    terminal.write_text(said)
    assert capfdbinary.readouterr().out == said.encode()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    terminal.write_text(said)
    assert capfdbinary.readouterr().out == rb"a\x1b[31m\x9b\x07\r" + b"\tb\nc"


def test_no_command_writes_but_through_the_one_place() -> None:
    writing = re.compile(r"click\.(s?echo|secho)\(|\bConsole\(|\bTable\(|(?<![\w.])print\(|sys\.std(out|err)\.write")
    allowed = {"terminal.py": None, "main.py": ["click.echo("]}  # the error itself
    for file in (ROOT / "tools" / "titans_cli").glob("*.py"):
        found = [match[0] for match in writing.finditer(file.read_text(encoding="utf-8"))]
        assert (file.name in allowed and allowed[file.name] in (None, found)) or not found, file


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_lacks_a_character_has_it_spelled_out(tiny_bundle: Path, encoding: str, tmp_path: Path) -> None:
    state = tmp_path / "日本語 é"
    session = titans_runtime.load(tiny_bundle, threads=1).session()
    session.feed([1])
    session.save(state)

    def said(*arguments: str) -> bytes:
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        return subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, check=True).stdout

    assert json.loads(said("state", "inspect", str(state), "--json").decode(encoding))["file"] == str(state)
    assert str(state).encode(encoding, "backslashreplace") in said("state", "inspect", str(state))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("run", "--help"),
        ("doctor",),
        ("inspect", "BUNDLE"),
        ("inspect", "BUNDLE", "--json"),
        ("run", "BUNDLE", "--prompt", "a", "--max-new-tokens", "3"),
    ],
    ids=" ".join,
)
def test_a_command_whose_reader_has_gone_ends_as_others_do(tiny_bundle: Path, arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, *(str(tiny_bundle) if word == "BUNDLE" else word for word in arguments)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (UNREAD, "")


def test_a_run_whose_reader_has_gone_keeps_its_memory(tiny_bundle: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for name, arguments in {
        "run.state": ("run", "--prompt", "abc", "--max-new-tokens", "100", "--state-out"),
        "chat.state": ("chat", "--memory"),
    }.items():
        command = [*COMMAND, arguments[0], str(tiny_bundle), *arguments[1:], str(tmp_path / name)]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, input="abc\n", check=False)
        assert done.returncode == UNREAD
        assert titans_runtime.load(tiny_bundle, threads=1).restore(tmp_path / name).position >= len("abc")
    os.close(writer)


def test_nothing_is_cut_where_there_is_no_terminal(tiny_bundle: Path) -> None:
    told = titans("bench", tiny_bundle, "--prompt", "8", "--tokens", "2").stdout
    for heading in ("MFLOP a token", "GFLOP/s", "of the machine", "MB a token", "p50, ms"):
        assert heading in told
    assert "…" not in told


def test_a_narrow_terminal_folds_and_cuts_nothing() -> None:
    code = "from titans_cli.terminal import *; t = PlainTable('a heading that is long'); t.add_row('x' * 30); show(t)"
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "16"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=its, env=environment)
    process.wait()
    told = os.read(ours, 65536).decode()
    assert told.count("x") == 30
    assert "…" not in told


def test_numbers_gone_bad_are_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    class Broken(Toy):
        def weights(self) -> dict[str, object]:  # type: ignore[override]
            weights = super().weights()
            weights["head"][0, 0] = float("nan")
            return weights

    bundle = write_toy(tmp_path / "broken", Broken())
    command = [*COMMAND, "run", str(bundle), "--prompt", "abc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "not finite" in done.stderr


def test_a_prompt_may_come_from_stdin(tiny_bundle: Path) -> None:
    options = ("--max-new-tokens", "5", "--temperature", "0", "--json")
    piped = titans("run", tiny_bundle, "--prompt-file", "-", *options, lines=b"caf\xc3\xa9 \xff")
    assert piped.exit_code == 0, piped.output
    assert json.loads(piped.stdout)["prompt_tokens"] == 7


@pytest.mark.parametrize("value", ["banana", "V3", "v5", " off"])
def test_a_switch_that_means_nothing_names_its_choices(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TITANS_KERNELS", value)
    result = titans("run", tiny_bundle, "--prompt", "a")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"TITANS_KERNELS is {value!r}; set it to off or one of v1, v3, v4" in result.stderr
    assert f"TITANS_KERNELS is {value!r}" in titans("doctor").stdout


def test_a_name_that_is_not_utf8_is_what_is_said_to_be_wrong(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    name = tmp_path / "caf\udce9"
    name.symlink_to(tiny_bundle)
    ck = tmp_path / "ck\udce9"
    ck.symlink_to(tiny_checkpoint)
    for arguments in (
        ("run", name, "--prompt", "a"),
        ("chat", name),
        ("export", ck, "--out", tmp_path / "a.titans"),
        ("export", tiny_checkpoint, "--out", tmp_path / "out\udce9"),
        ("verify", name, "--checkpoint", tiny_checkpoint),
        ("train", "--task", "text", "--data", "stdlib", "--steps", "1", "--out", tmp_path / "new\udce9"),
    ):
        result = titans(*arguments)
        read, error = result.stderr.rstrip("\n").rpartition("\n")[::2]
        assert result.exit_code == 2, result.output
        assert all(line.startswith("data: ") for line in read.splitlines()), result.output
        assert re.search(r"not UTF-8.*(rename it|choose another)", error), result.stderr
    assert titans("inspect", name).exit_code == 0
    assert sorted(tmp_path.iterdir()) == sorted([name, ck])


def test_a_long_prompt_shows_its_progress_on_a_terminal_only(tiny_bundle: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    for pieces, shown in ((3, True), (1, False)):
        prompt.write_text("a" * pieces * PIECE, encoding="utf-8")
        arguments = ("run", tiny_bundle, "--prompt-file", prompt, "--max-new-tokens", "1", "--threads", "1")
        assert ("reading the prompt" in on_terminal(*arguments)) == shown
        assert titans(*arguments).stderr.count("\n") == 1  # the summary
    chat = subprocess.run(
        [*COMMAND, "chat", str(tiny_bundle), "--max-new-tokens", "1"],
        input="a" * 3 * PIECE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert chat.stderr == "(1 token, ended by length)\n"
