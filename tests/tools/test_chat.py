"""`titans chat` and `titans run` with a bundle that has a chat template and generation defaults, through pipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.chat_templates import CHATML, TEMPLATES
from tests.runtime.chat.test_conversation import bundle
from titans_cli.main import cli
from titans_format.fields import GenerationDefaults
from titans_runtime import SamplingOptions, load
from titans_runtime.stream.session import Session


def titans(*arguments: str | Path, lines: str = "") -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], input=lines)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What every session chooses from now on, one token after the other."""
    script: list[int] = []
    monkeypatch.setattr(Session, "_choose", lambda session, sampler: script.pop(0))
    return script


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every prompt that a session is given, with its limit and its options."""
    seen: list[Any] = []
    begin = Session._begin
    monkeypatch.setattr(Session, "_begin", lambda self, *rest: seen.append(rest[:3]) or begin(self, *rest))
    return seen


def test_a_conversation_streams_and_says_why_each_answer_ended(tmp_path: Path, says: list[int]) -> None:
    path = bundle(tmp_path)
    model = load(path, threads=1)
    says[:] = model.encode("It is I.<|im_end|>Yes", special=True)
    result = titans("chat", path, "--max-new-tokens", "9", lines="Who?\n")
    assert result.stdout == "It is I.\n"
    first = len(model.encode("It is I.")) + 1
    assert result.stderr == f"({first} tokens, ended by eos)\n"
    says[:] = model.encode("Yes", special=True)
    document = json.loads(titans("chat", path, "--max-new-tokens", "2", "--json", lines="Sure?\n").stdout)
    assert document["exchanges"] == [
        {"message": "Sure?", "answer": document["exchanges"][0]["answer"], "ended": "length", "tokens": 2}
    ]


def test_three_processes_are_one_conversation(tmp_path: Path, says: list[int], prompts: list[Any]) -> None:
    """Each reads what is new; the system prompt is read once, and what a message spells is text."""
    path, memory = bundle(tmp_path), tmp_path / "me.state"
    model = load(path, threads=1)
    command = ("chat", path, "--memory", memory, "--system", "Be brief.")
    errors = []
    for line in ("Who?", "<|im_end|>", "Again?"):
        says[:] = model.encode("I.<|im_end|>", special=True)
        result = titans(*command, lines=f"{line}\n")
        assert result.stdout == "I.\n"
        errors.append(result.stderr)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert prompts[0][0] == model.encode_chat(messages)
    said = [
        *model.encode("\n<|im_start|>user\n", special=True),
        *model.encode("<|im_end|>"),
        *model.encode("<|im_end|>\n<|im_start|>assistant\n", special=True),
    ]
    assert len(prompts[1][0]) == len(said)
    assert model.decode(prompts[1][0], special=True) == model.decode(said, special=True)
    assert list(prompts[1][0]).count(model.encode("<|im_end|>", special=True)[0]) == 1
    assert prompts[2][0] == model.encode("\n<|im_start|>user\nAgain?<|im_end|>\n<|im_start|>assistant\n", special=True)
    assert "--system is not read again" not in errors[0]
    assert "goes on after" in errors[1]
    assert "--system is not read again" in errors[2]


def test_undo_and_reset_go_back_in_the_conversation(tmp_path: Path, says: list[int], prompts: list[Any]) -> None:
    path = bundle(tmp_path)
    model = load(path, threads=1)
    lines = "one\ntwo\n/undo\nthree\n/reset\nfour\n//five\n"
    says[:] = model.encode("I.<|im_end|>" * 5, special=True)
    assert titans("chat", path, "--system", "Be brief.", lines=lines).exit_code == 0
    texts = [model.decode(prompt, special=True) for prompt, *_ in prompts]
    assert ["Be brief." in text for text in texts] == [True, False, False, True, False]
    for word, text in zip(["one", "two", "three", "four", "/five"], texts, strict=True):
        assert f"user\n{word}<|im_end|>" in text


def test_a_message_that_the_template_does_not_take_is_forgotten(tmp_path: Path, says: list[int]) -> None:
    path = bundle(tmp_path, TEMPLATES["gemma"], ("<end_of_turn>",))
    says[:] = load(path, threads=1).encode("I.<end_of_turn>", special=True)
    result = titans("chat", path, "--system", "Be brief.", lines="Who?\n")
    assert result.exit_code == 0
    assert "this message is forgotten" in result.stderr
    assert "System role not supported" in result.stderr
    assert titans("chat", path, lines="Who?\n").stdout == "I.\n"


def test_a_template_of_ones_own_takes_the_place_of_the_bundles(
    tmp_path: Path, says: list[int], prompts: list[Any]
) -> None:
    path = bundle(tmp_path)
    model = load(path, threads=1)
    says[:] = model.encode("I.<|im_end|>", special=True)
    assert titans("chat", path, "--template", "Q: {message}\\nA:", lines="Who?\n").stdout == "I.\n"
    assert prompts[0][0] == b"Q: Who?\nA:"


@pytest.mark.parametrize(
    ("template", "options", "says"),
    [
        (CHATML, ["--template", "{message}", "--system", "a"], "--system is for the bundle's chat template"),
        (None, ["--system", "a"], "--system needs a chat template"),
        (CHATML, ["--greedy", "--temperature", "1"], "one of --greedy and --temperature"),
        (CHATML, ["--temperature", "-1"], "temperature is -1.0"),
        (CHATML, ["--top-k", "-1"], "top_k is -1"),
        ("{% if %}", [], "is not a template that can be used"),
        ("{% include 'a' %}", [], "which no conversation needs"),
    ],
)
def test_what_cannot_be_talked_to_is_refused_in_one_line(
    tmp_path: Path, template: str | None, options: list[str], says: str
) -> None:
    result = titans("chat", bundle(tmp_path, template), *options, lines="Who?\n")
    assert (result.exit_code, result.stdout, result.stderr.count("\n") <= 3) == (2, "", True)
    assert says in result.stderr


DEFAULTS = GenerationDefaults(temperature=0.25, top_k=7, max_new_tokens=2)


@pytest.mark.parametrize("command", ["run", "chat"])
def test_the_bundles_defaults_hold_unless_an_option_says_otherwise(
    tmp_path: Path, prompts: list[Any], command: str
) -> None:
    path = bundle(tmp_path, generation=DEFAULTS)
    more = ["--prompt", "a"] if command == "run" else []

    def options(*given: str) -> tuple[int, SamplingOptions]:
        assert titans(command, path, *more, *given, lines="a\n").exit_code == 0
        _, limit, chosen = prompts.pop()
        return limit, chosen

    expected = SamplingOptions(temperature=0.25, top_k=7)
    assert options()[1] == expected
    assert options("--greedy")[1] == SamplingOptions(temperature=0.0, top_k=7)
    assert options("--temperature", "0.5", "--top-k", "0", "--top-p", "0.9", "--seed", "1")[1] == SamplingOptions(
        temperature=0.5, top_p=0.9, seed=1
    )
    assert options("--max-new-tokens", "3")[0] == 3
    answer = json.loads(titans(command, path, *more, "--json", lines="a\n").stdout)
    tokens = answer["tokens"] if command == "run" else answer["exchanges"][0]["tokens"]
    assert tokens <= 2
    plain = bundle(tmp_path / "plain")
    assert titans(command, plain, *more, "--max-new-tokens", "1", lines="a\n").exit_code == 0
    assert prompts.pop()[2] == SamplingOptions(temperature=0.8)
