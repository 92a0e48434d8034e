"""Text at the command line: where it ends, what is read as a token, and terminals of other encodings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests import tokenizer_kinds
from tests.conftest import SMALL
from tests.conftest import titans as document_of
from tests.runtime.toy import Toy, write_toy
from titans_cli.main import cli
from titans_runtime import load
from titans_runtime.stream.session import Session

SHAPE = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
TRAIN = ["train", "--task", "text", "--steps", "2", "--batch", "2", *SHAPE]


def titans(*arguments: str | Path, lines: str = "") -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], input=lines)


def refused(result: Result, *words: str) -> bool:
    """One line of error and nothing else."""
    found = (result.exit_code, result.stdout, result.stderr.count("\n"))
    return found == (2, "", 1) and all(word in result.stderr for word in words)


@pytest.fixture(scope="module")
def chat_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on documents that end with </s>, by the whole command line."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = tokenizer_kinds.write("byte-level", folder)
    for name in ("one", "two", "three"):
        (folder / name).write_text(f"<|user|>{name} is a number</s>" * 20, encoding="utf-8")
    files = [folder / name for name in ("one", "two", "three")]
    common = ["--tokenizer", tokenizer, "--eos", "</s>", "--out", folder / "ck"]
    document_of(*TRAIN, "--data", files[0], "--data", files[1], "--data", files[2], *common)
    document_of("export", folder / "ck", "--out", folder / "chat.titans", "--stop", "<|user|>", "--verify-tokens", "0")
    return folder / "chat.titans"


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What every session chooses from now on, one token after the other."""
    script: list[int] = []
    monkeypatch.setattr(Session, "_choose", lambda session, sampler: script.pop(0))
    return script


def test_ends_go_from_training_into_the_bundle(chat_bundle: Path) -> None:
    manifest = load(chat_bundle, threads=1).manifest
    assert (manifest.ends.eos, manifest.ends.stop) == ((2,), (3,))
    assert json.loads(titans("inspect", chat_bundle, "--json").stdout)["ends"] == {"eos": [2], "stop": [3]}
    assert "text ends at 2 or 3" in titans("inspect", chat_bundle).stdout


@pytest.mark.parametrize(
    ("said", "options", "text", "ended"),
    [
        ("hi</s>", [], "hi", "eos"),
        ("hi<|user|>", [], "hi", "stop"),
        ("hi there", ["--max-new-tokens", "2"], None, "length"),
        ("hi\nyo", ["--stop", "\\n"], "hi", "stop"),
        ("hi<s>yo", ["--stop", "<s>"], "hi", "stop"),
        ("hi</s>yo<s>", ["--stop", "<s>", "--ignore-eos"], "hiyo", "stop"),
    ],
)
def test_a_run_says_why_it_ended(
    chat_bundle: Path, says: list[int], said: str, options: list[str], text: str | None, ended: str
) -> None:
    script = load(chat_bundle, threads=1).encode(said, special=True)
    says[:] = script
    answer = document_of("run", chat_bundle, "--prompt", "a", *options)
    assert answer["ended"] == ended
    assert text in (None, answer["text"])
    says[:] = script
    assert f"ended by {ended}" in titans("run", chat_bundle, "--prompt", "a", *options).stderr


def test_a_prompt_is_text_unless_special_tokens_are_asked_for(chat_bundle: Path, says: list[int]) -> None:
    for options, tokens in (([], 8), (["--special"], 1)):
        says[:] = [2]
        assert document_of("run", chat_bundle, "--prompt", "<|user|>", *options)["prompt_tokens"] == tokens


def test_a_chat_says_why_it_ended_and_its_template_has_tokens(
    chat_bundle: Path, says: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(chat_bundle, threads=1)
    prompts: list[object] = []
    generate = Session.generate
    monkeypatch.setattr(
        Session,
        "generate",
        lambda self, prompt, *rest, **named: prompts.append(prompt) or generate(self, prompt, *rest, **named),
    )
    says[:] = model.encode("hi</s>yo\nno", special=True)
    arguments = ["chat", chat_bundle, "--template", "<|user|>{message}\\n", "--stop", "\\n", "--json"]
    exchanges = json.loads(titans(*arguments, lines="one</s>\ntwo\n").stdout)["exchanges"]
    assert [(each["answer"], each["ended"]) for each in exchanges] == [("hi", "eos"), ("yo", "stop")]
    assert prompts[0] == [3, *model.encode("one</s>\n")]


@pytest.mark.parametrize("command", [["run", "--prompt", "a"], ["chat"]])
def test_a_stop_string_that_can_never_be_met_is_refused_at_once(tmp_path: Path, command: list[str]) -> None:
    bundle = write_toy(tmp_path / "toy.titans", Toy(vocab_size=1000), tokenizer_kinds.content("wordpiece").encode())
    name, *rest = command
    assert refused(titans(name, bundle, *rest, "--stop", "END", lines="a\n"), "can never be met", "'D', 'E', 'N'")


@pytest.mark.parametrize("name", ["<|none|>", "ab"])
def test_an_end_that_is_no_token_is_refused(tmp_path: Path, tiny_checkpoint: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("some text " * 50)
    result = titans(*TRAIN, "--data", tmp_path / "a.txt", "--eos", name, "--out", tmp_path / "ck")
    assert refused(result, f"{name!r} is not a token"), result.output
    result = titans("export", tiny_checkpoint, "--out", tmp_path / "out.titans", "--eos", name)
    assert refused(result, f"{name!r} is not a token"), result.output
    assert not (tmp_path / "out.titans").exists()


def test_text_that_a_tokenizer_loses_is_told_of_in_training_and_evaluation(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The Memory\n" * 500)
    tokenizer = tokenizer_kinds.write("wordpiece", tmp_path)
    common = [*TRAIN, "--data", tmp_path / "a.txt", "--tokenizer", tokenizer, "--out", tmp_path / "ck"]
    result = titans(*common, "--json")
    assert result.exit_code == 0, result.output
    assert "note: the tokenizer loses text: 27.2" in result.stderr
    assert "text_lost 0.27" in " ".join(result.stderr.split())
    assert json.loads(result.stdout)["metrics"]["text_lost"] == pytest.approx(3 / 11, rel=0.02)
    assert "the tokenizer loses text" in json.loads(result.stdout)["notes"][0]
    records = [json.loads(line) for line in (tmp_path / "ck" / "log.jsonl").read_text().splitlines()]
    assert any("text_lost" in record.get("held_out", {}) for record in records)
    document_of("export", tmp_path / "ck", "--out", tmp_path / "a.titans", "--verify-tokens", "0")
    sizes = ["--shortest", "100", "--window", "16", "--frozen-after", "16", "--data", tmp_path / "a.txt"]
    report = document_of("eval", tmp_path / "a.titans", "--task", "text", *sizes)
    assert report["text_lost"] == pytest.approx(3 / 11, rel=0.02)
    assert "the tokenizer loses 27." in titans("eval", tmp_path / "a.titans", "--task", "text", *sizes).stdout


def test_a_padded_model_of_bytes_keeps_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text " * 50)
    config = json.loads((document_config(tmp_path)).read_text()) | {"vocab_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    common = ["train", "--task", "text", "--steps", "1", "--batch", "2", "--config", tmp_path / "config.json"]
    document_of(*common, "--data", tmp_path / "a.txt", "--out", tmp_path / "padded")
    document_of("export", tmp_path / "padded", "--out", tmp_path / "padded.titans", "--verify-tokens", "0")
    assert document_of("run", tmp_path / "padded.titans", "--prompt", "some")["prompt_tokens"] == 4


def document_config(folder: Path) -> Path:
    """The configuration of a small model of bytes."""
    document_of(*TRAIN, "--data", folder / "a.txt", "--out", folder / "plain")
    return next((folder / "plain").glob("step-*/config.json"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_of_another_encoding_gets_escapes_and_the_memory_is_saved(
    tiny_bundle: Path, tmp_path: Path, encoding: str
) -> None:
    """The answer has a character that none of them but UTF-8 has."""
    script = (
        "from titans_runtime.stream.session import Session\n"
        "from titans_cli import main\n"
        "said = list('a\\u8a18\\u00e9!'.encode())\n"
        "Session._choose = lambda session, sampler: said.pop(0)\n"
        "main.main()\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C"}
    state = tmp_path / "a.state"

    def run(*arguments: str, lines: bytes = b"") -> bytes:
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, input=lines, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    known = "a記é!".encode(encoding, "backslashreplace")
    common = ("run", str(tiny_bundle), "--prompt", "x", "--max-new-tokens", "7")
    assert run(*common, "--state-out", str(state)) == known + b"\n"
    assert load(tiny_bundle, threads=1).restore(state).position == 8
    assert json.loads(run(*common, "--json"))["text"] == "a記é!"
    chat = ("chat", str(tiny_bundle), "--max-new-tokens", "7")
    assert run(*chat, lines=b"x\n") == known + b"\n"
    assert json.loads(run(*chat, "--json", lines="記\n".encode()))["exchanges"][0]["message"] == "記"


def test_a_prompt_in_bytes_that_the_locale_does_not_have_is_what_was_typed(tiny_bundle: Path) -> None:
    """Python reads such bytes of an argument as half surrogates."""
    answer = document_of("run", tiny_bundle, "--prompt", "caf\udcc3\udca9", "--max-new-tokens", "1")
    assert answer["prompt_tokens"] == 5
    assert refused(titans("run", tiny_bundle, "--prompt", "caf\ud800"), "U+D800")
