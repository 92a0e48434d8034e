"""`titans run --state-in/--state-out`, `titans chat` and `titans state` on a real bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import titans_runtime
from tests.runtime.toy import Toy, write_toy
from titans_cli.main import cli


def titans(*arguments: str | Path, lines: str | bytes = "") -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], input=lines)


def greedy(bundle: Path, *arguments: str | Path) -> dict[str, object]:
    result = titans("run", bundle, "--temperature", "0", *arguments, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert isinstance(answer, dict)
    return answer


def test_two_runs_with_a_state_between_them_are_one_run(tiny_bundle: Path, tmp_path: Path) -> None:
    whole = greedy(tiny_bundle, "--prompt", "def a", "--max-new-tokens", "30")
    state = tmp_path / "a.state"
    first = greedy(tiny_bundle, "--prompt", "def a", "--max-new-tokens", "11", "--state-out", state)
    second = greedy(tiny_bundle, "--state-in", state, "--max-new-tokens", "19", "--state-out", state)
    assert str(first["text"]) + str(second["text"]) == whole["text"]
    assert (first["position"], second["position"], second["prompt_tokens"]) == (16, 35, 0)
    assert titans_runtime.load(tiny_bundle, threads=1).restore(state).position == 35


def test_a_prompt_goes_on_from_a_saved_state(tiny_bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "a.state"
    greedy(tiny_bundle, "--prompt", "def a", "--max-new-tokens", "1", "--state-out", state)
    second = greedy(tiny_bundle, "--prompt", "more", "--max-new-tokens", "2", "--state-in", state)
    assert (second["prompt_tokens"], second["position"]) == (4, 12)


def test_streaming_can_be_chosen(tiny_bundle: Path) -> None:
    common = ("run", tiny_bundle, "--prompt", "def ", "--max-new-tokens", "9", "--temperature", "0")
    text = json.loads(titans(*common, "--json").stdout)["text"]
    streamed = titans(*common, "--json", "--stream")
    assert json.loads(streamed.stdout)["text"] == text
    assert text in streamed.stderr
    assert titans(*common, "--no-stream").stdout == text + "\n"


@pytest.mark.parametrize("command", [["run", "--state-in"], ["chat", "--memory"]])
def test_a_damaged_memory_is_one_line_and_stays_as_it_is(tiny_bundle: Path, tmp_path: Path, command: list[str]) -> None:
    state = tmp_path / "a.state"
    greedy(tiny_bundle, "--prompt", "a", "--max-new-tokens", "1", "--state-out", state)
    damaged = bytearray(state.read_bytes())
    damaged[-1] ^= 1
    state.write_bytes(damaged)
    result = titans(command[0], tiny_bundle, command[1], state, lines="hello\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "checksum does not match; restore another copy" in result.stderr
    assert state.read_bytes() == damaged


@pytest.mark.parametrize("content", [b"", None])
def test_a_run_replaces_what_it_has_not_read_only_by_force(
    tiny_bundle: Path, tmp_path: Path, content: bytes | None
) -> None:
    """Anything but the file of --state-in and an empty file: refused before anything is generated."""
    state, other = tmp_path / "me.state", tmp_path / "other.state"
    if content is not None:
        other.write_bytes(content)
    run = ("run", tiny_bundle, "--max-new-tokens", "1", "--prompt")
    assert titans(*run, "one", "--state-out", state).exit_code == 0
    assert titans(*run, "other", "--state-out", other).exit_code == 0
    before = other.read_bytes()
    for given in ((), ("--state-in", state)):
        refused = titans(*run, "two", *given, "--state-out", other)
        assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert "has not read" in refused.stderr
        assert "(--force)" in refused.stderr
        assert other.read_bytes() == before
    assert titans(*run, "two", "--state-in", state, "--state-out", other, "--force").exit_code == 0
    assert titans(*run, "three", "--state-in", other, "--state-out", other).exit_code == 0


def test_a_chat_whose_memory_somebody_else_wrote_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    memory, other = tmp_path / "me.state", tmp_path / "other.state"
    other.write_bytes(b"")

    def interfere(event: titans_runtime.FeedEvent) -> None:
        memory.write_bytes(other.read_bytes())

    session = titans_runtime.load(tiny_bundle, threads=1).session()
    session.feed([1, 2, 3])
    session.save(other)
    load = titans_runtime.load

    def watched(*arguments: object, **options: object) -> titans_runtime.Model:
        model = load(tiny_bundle, threads=1)
        model.observe(interfere)
        return model

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(titans_runtime, "load", watched)
        chat = ("chat", tiny_bundle, "--max-new-tokens", "1", "--json", "--memory", memory)
        refused = titans(*chat, lines="one\ntwo\n")
        assert (refused.exit_code, len(json.loads(refused.stdout)["exchanges"])) == (2, 1)
        assert "has not read" in refused.stderr
        assert memory.read_bytes() == other.read_bytes()
        assert titans(*chat, "--force", lines="one\ntwo\n").exit_code == 0
        assert memory.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("command", [["run", "--prompt", "a", "--state-out"], ["chat", "--memory"]])
@pytest.mark.parametrize(
    ("place", "says"), [("nowhere/a.state", "is no directory); make it"), (".", "is a directory; name a file")]
)
def test_a_memory_that_cannot_be_written_is_an_error_before_anything_is_generated(
    tiny_bundle: Path, tmp_path: Path, command: list[str], place: str, says: str
) -> None:
    result = titans(command[0], tiny_bundle, *command[1:], tmp_path / place, lines="hello\n")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_chat_remembers_in_the_next_process(tiny_bundle: Path, tmp_path: Path) -> None:
    memory = tmp_path / "me.state"
    options = ("--memory", memory, "--temperature", "0", "--max-new-tokens", "7", "--json")
    whole = json.loads(titans("chat", tiny_bundle, *options[2:], lines="one\ntwo\nthree\n").stdout)
    first = json.loads(titans("chat", tiny_bundle, *options, lines="one\ntwo\n").stdout)
    second = titans("chat", tiny_bundle, *options, lines="three\n/quit\n")
    assert "goes on after" in second.stderr
    assert first["exchanges"] + json.loads(second.stdout)["exchanges"] == whole["exchanges"]
    assert json.loads(second.stdout)["position"] == whole["position"]


def test_a_chat_undoes_resets_and_tells_its_figures(tiny_bundle: Path, tmp_path: Path) -> None:
    memory = tmp_path / "me.state"
    options = ("--memory", memory, "--temperature", "0", "--max-new-tokens", "7")
    lines = "one\ntwo\n/undo\n/stats\n/reset\n/undo\n/save\n/undo\n/undo\nwhat\n/undo\n/something\n"
    result = titans("chat", tiny_bundle, *options, lines=lines)
    assert result.exit_code == 0, result.output
    told = result.stderr
    assert "back at 11 tokens" in told  # one newline and seven tokens
    assert "everything is forgotten" in told
    assert "back at 0 tokens" in told
    assert "nothing to undo" in told
    assert "there is no command /something" in told
    assert json.loads(titans("state", "inspect", memory, "--json").stdout)["position"] == 0


def test_a_chat_without_a_file_has_nowhere_to_save(tiny_bundle: Path) -> None:
    result = titans("chat", tiny_bundle, lines="/save\n")
    assert (result.exit_code, "--memory FILE" in result.stderr) == (0, True)


def test_a_chat_document_has_every_line_and_says_what_was_taken_back(tiny_bundle: Path) -> None:
    lines = "one\n/etc/passwd is a file\ntwo\n/undo\n//etc\n/help\n"
    result = titans("chat", tiny_bundle, "--max-new-tokens", "2", "--json", lines=lines)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    told = [(each["message"], "error" in each, each.get("undone", False)) for each in document["exchanges"]]
    assert told == [
        ("one", False, False),
        ("/etc/passwd is a file", True, False),
        ("two", False, True),
        ("/etc", False, False),
    ]
    assert document["position"] == len("one\n/etc\n") + 2 * 2
    assert "/undo" in result.stderr  # /help


def test_a_chat_whose_memory_cannot_be_written_says_what_was_said(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise titans_runtime.StateError("the disk is full", "free some disk space")

    monkeypatch.setattr("titans_runtime.stream.session.write_atomically", full)
    for command in (["chat", "--memory"], ["run", "--prompt", "one", "--state-out"]):
        place = tmp_path / "me.state"
        name, *options = command
        result = titans(name, tiny_bundle, "--max-new-tokens", "2", "--json", *options, place, lines="one\ntwo\n")
        assert (result.exit_code, result.stderr) == (2, "Error: the disk is full; free some disk space\n")
        document = json.loads(result.stdout)
        assert len(document.get("exchanges", [document])) == 1


def test_a_template_has_new_lines_as_a_shell_passes_them(tiny_bundle: Path) -> None:
    result = titans(
        "chat", tiny_bundle, "--template", r"U: {message}\nB\\n", "--max-new-tokens", "1", "--json", lines="hi\n"
    )
    assert json.loads(result.stdout)["position"] == len("U: hi\nB\\n") + 1


class Trap(Toy):
    """A message with a "Z" in it makes the memory infinite."""

    def weights(self) -> dict[str, np.ndarray]:
        weights = super().weights()
        weights["embedding"][ord("Z")] = np.inf
        return weights


def test_a_chat_goes_on_after_a_message_whose_numbers_are_not_finite(tmp_path: Path) -> None:
    options = ("--temperature", "0", "--max-new-tokens", "3")
    memories = tmp_path / "whole.state", tmp_path / "damaged.state"
    trap = write_toy(tmp_path / "trap", Trap())
    whole = titans("chat", trap, *options, "--memory", memories[0], "--json", lines="one\ntwo\n/undo\nthree\n")
    told = titans(
        "chat", trap, *options, "--memory", memories[1], "--json", lines="one\ntwo\ntZwo\n/undo\ntZwo\nthree\n"
    )
    assert (whole.exit_code, told.exit_code) == (0, 0), told.output
    assert told.stderr.count("this message is forgotten, back at") == 2
    document = json.loads(told.stdout)
    failed = [exchange for exchange in document["exchanges"] if "error" in exchange]
    assert [exchange["message"] for exchange in failed] == ["tZwo"] * 2
    assert all("not finite" in exchange["error"] for exchange in failed)
    assert [exchange for exchange in document["exchanges"] if exchange not in failed] == json.loads(whole.stdout)[
        "exchanges"
    ]
    assert memories[0].read_bytes() == memories[1].read_bytes()


def test_a_line_that_is_not_utf8_is_bytes_to_a_model_of_bytes(tiny_bundle: Path) -> None:
    result = titans("chat", tiny_bundle, "--max-new-tokens", "1", "--json", lines=b"caf\xe9\r\n")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["exchanges"][0]["message"] == "caf\ufffd"
    assert document["position"] == 6  # four bytes, the template's newline and one token


def test_a_line_that_is_not_utf8_is_told_and_forgotten_where_text_is_needed(
    tiny_checkpoint_with_tokenizer: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "words.titans"
    assert titans("export", tiny_checkpoint_with_tokenizer, "--out", bundle, "--verify-tokens", "0").exit_code == 0
    result = titans("chat", bundle, "--max-new-tokens", "1", lines=b"caf\xe9\n/\xe9\ndef double\n")
    assert result.exit_code == 0, result.output
    assert "back at 0 tokens: the text is not UTF-8 (byte 3 is 0xe9); convert it to UTF-8 first" in result.stderr
    assert "there is no command /\ufffd; /help" in result.stderr
    assert result.stdout.strip()


def test_a_chat_needs_a_tokenizer_before_it_reads_a_line(tmp_path: Path) -> None:
    result = titans("chat", write_toy(tmp_path / "toy", Toy(vocab_size=None)), lines="one\n")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "has no tokenizer to talk with" in result.stderr


def test_a_template_without_a_message_is_refused(tiny_bundle: Path) -> None:
    result = titans("chat", tiny_bundle, "--template", "User:")
    assert result.exit_code == 2
    assert "{message}" in result.stderr


@pytest.fixture
def two_states(tiny_bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """One session saved twice, the second time nine tokens later and compressed."""
    session = titans_runtime.load(tiny_bundle, threads=1).session()
    session.feed(list(b"some text of the user"))
    session.save(tmp_path / "first.state")
    session.feed(list(b" and more"))
    session.save(tmp_path / "second.state", compress=True)
    return tmp_path / "first.state", tmp_path / "second.state"


def test_inspect_tells_what_a_state_holds(two_states: tuple[Path, Path], tiny_bundle: Path) -> None:
    manifest = titans_runtime.load(tiny_bundle, threads=1).manifest
    for path, position in zip(two_states, (21, 30), strict=True):
        facts = json.loads(titans("state", "inspect", path, "--json").stdout)
        assert (facts["position"], facts["identity"]) == (position, manifest.state_identity)
        assert set(facts["tensors"]) == {spec.name for spec in manifest.states} | {"last_output"}
        assert facts["surprise_mean"] > 0
        plain = titans("state", "inspect", path)
        assert plain.exit_code == 0
        assert f"{position} tokens" in plain.stdout


def test_diff_tells_states_apart(two_states: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = two_states
    same = titans("state", "diff", first, first, "--json")
    assert (same.exit_code, json.loads(same.stdout)["same"]) == (0, True)
    other = titans("state", "diff", first, second, "--json")
    document = json.loads(other.stdout)
    assert (other.exit_code, document["same"]) == (1, False)
    assert document["tensors"]["last_output"]["max_abs_difference"] > 0
    plain = titans("state", "diff", first, second)
    assert plain.exit_code == 1
    assert "last_output" in plain.stdout
    missing = titans("state", "diff", first, tmp_path / "nobody.state")
    assert (missing.exit_code, "nobody.state" in missing.stderr) == (2, True)


def test_states_of_different_models_are_not_compared(two_states: tuple[Path, Path], tmp_path: Path) -> None:
    from tests.runtime.toy import Toy, write_toy

    toy = titans_runtime.load(write_toy(tmp_path / "toy", Toy()), threads=1)
    toy.session().save(tmp_path / "toy.state")
    result = titans("state", "diff", two_states[0], tmp_path / "toy.state")
    assert (result.exit_code, "different models" in result.stderr) == (2, True)
