"""A template from a stranger: it cannot loop for ever, fill the memory or reach anything, and it says what is wrong."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest

from titans_runtime import BundleError, TextError, TitansError
from titans_runtime.chat import meter
from titans_runtime.chat.meter import LimitError, Meter
from titans_runtime.chat.template import MAX_CHARACTERS, ChatTemplate

GROW = "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = STEP %}{% endfor %}"
TREES = (
    "{% set ns = namespace(l=(1,), m=(1,)) %}{% for i in range(40) %}{% set ns.l = (ns.l, ns.l) %}"
    "{% set ns.m = (ns.m, ns.m) %}{% endfor %}"
)
LONG = "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}STEP{% endfor %}"

ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "loops with a test": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}"
    "{% endmacro %}{{ f(45) }}",
    "blocks that are called twice": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 25
    + "a"
    + "{% endcall %}" * 25,
    "a power": "{{ 2 ** 64 ** 64 }}",
    "a power of powers": "{{ 9 ** (9 ** 9) }}",
    "a number that is squared": GROW.replace("'a'", "2").replace("STEP", "ns.s * ns.s"),
    "rounding": "{{ 5 | round(-1000000000) }}",
    "filters in loops": "{% for i in range(100000) %}{{ range(100000) | select('odd') | list | length }}{% endfor %}",
    "sorting": "{% for i in range(100) %}{% set x = range(100000) | sort %}{% endfor %}",
    "comparing texts": LONG.replace("STEP", "{% if s == s ~ '' %}{% endif %}"),
    "searching texts": LONG.replace("STEP", "{% if 'ab' in s %}{% endif %}"),
    "methods of texts": LONG.replace("STEP", "{% if s.find('ab') %}{% endif %}"),
    "slices of texts": LONG.replace("STEP", "{% set x = s[::-1] %}"),
    "slices of lists": "{% set s = range(9999) | list %}{% for i in range(100000) %}{% set x = s[:] %}{% endfor %}",
    "lists that are searched": "{% set l = range(9999) | list %}{% for i in range(99999) %}"
    "{% if -1 in l %}{% endif %}{% endfor %}",
    "comparing trees": TREES + "{{ ns.l == ns.m }}",
    "writing trees": TREES + "{{ ns.l }}",
    "trees in a namespace": TREES + "{{ ns }}",
    "trees as keys": TREES + "{{ {ns.l: 1} }}",
    "trees that are looked up": TREES + "{{ {}.get(ns.l) }}",
    "trees as arguments": TREES + "{{ dict([[ns.l, 1]]) }}",
    "trees that are told apart": TREES + "{{ [ns.l] | unique }}",
    "trees in mappings": TREES + "{{ ns.l in {} }}",
    "trees as blocks": TREES + "{% set d = {'get': ns.l} %}{% set x %}{% call d.get('get') %}{% endcall %}{% endset %}",
    "trees as JSON": TREES + "{{ ns.l | tojson }}",
    "work that gives steps back": "{% set x = [-1000000000] | map(' spend', 0) | list %}",
}
LARGE = {
    "a text that is doubled": GROW.replace("STEP", "ns.s ~ ns.s"),
    "a sum that is doubled": GROW.replace("STEP", "ns.s + ns.s"),
    "a list that is doubled": GROW.replace("'a'", "[1]").replace("STEP", "ns.s + ns.s"),
    "a text times a number": "{{ 'a' * 10 ** 9 }}",
    "a number times a text": "{{ 10 ** 9 * 'a' }}",
    "a list times a number": "{{ ([1] * 10 ** 9) | length }}",
    "a width of %": "{{ '%1000000000d' % 1 }}",
    "a width that is a value": "{{ '%*d' | format(1000000000, 1) }}",
    "a width of format": "{{ '{:>1000000000}'.format(1) }}",
    "indentation": "{{ 'a\nb' | indent(1000000000, true) }}",
    "indentation of JSON": "{{ [[1]] | tojson(indent=1000000000) }}",
    "separators of JSON": "{{ [1, 2] | tojson(separators=('a' * 100000, 'b')) }}",
    "replacing": "{{ ('a' * 10000) | replace('a', 'b' * 100000) }}",
    "replacing nothing": "{{ ('a' * 10000).replace('', 'b' * 100000) }}",
    "joining": "{{ (['b' * 100000] * 10000) | join('x' * 100000) }}",
    "a method that joins": "{{ ('x' * 100000).join(['b'] * 10000) }}",
    "formatting one value often": "{{ ('{0}' * 10000).format('a' * 100000) }}",
    "ranges": "{{ range(10 ** 9) }}",
    "text of the template in a loop": "{% for i in range(100000) %}" + "a" * 200_000 + "{% endfor %}",
    "text of the template in a macro": "{% macro f() %}" + "a" * 200_000 + "{% endmacro %}"
    "{% for i in range(100000) %}{% set x = f() %}{% endfor %}",
    "lists of the template in a loop": "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}"
    "{% set ns.l = [ns.l, [" + "1," * 2000 + "]] %}{% endfor %}",
    "a date": "{{ strftime_now('%Y' * 1000) }}",
    "whole numbers of text": "{{ ('9' * 100000) | int('a' * 5000000) }}",
}
REACHING = {
    "files": "{% include '/etc/passwd' %}",
    "modules": "{% import 'os' as os %}",
    "parts of modules": "{% from 'os' import environ %}",
    "other templates": "{% extends 'base' %}",
    "blocks": "{% block a %}{{ self.a() }}{% endblock %}",
    "recursive loops": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "markup": "{% autoescape true %}a{% endautoescape %}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "classes by item": "{{ ''['__class__']['__mro__'] }}",
    "classes by format": "{{ '{0.__class__}'.format('') }}",
    "classes by filter": "{{ '' | attr('__class__') }}",
    "classes by map": "{{ [''] | map(attribute='__class__.__mro__') | list }}",
    "functions": "{{ raise_exception.__globals__['os'] }}",
    "macros": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "loops": "{% for i in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "the template itself": "{{ self.__init__.__globals__ }}",
    "the namespace": "{{ namespace.__init__.__globals__ }}",
    "the environment": "{{ environment.globals.x }}",
    "methods of types": "{{ dict.fromkeys([1]) }}",
    "changes of a list": "{% set l = [] %}{{ l.append(1) }}",
    "changes of a mapping": "{{ messages[0].update(role='a') }}",
    "what is not callable": "{{ messages() }}",
    "a loop that is called": "{% for i in [1] %}{{ loop() }}{% endfor %}",
}
BROKEN = {
    "no end": "{% for a in b %}",
    "no condition": "{% if %}",
    "no expression": "{{ }}",
    "an open string": "{{ 'a",
    "an open comment": "{# a",
    "no tag": "{% nothing %}",
    "no filter": "{{ 1 | nothing }}",
    "no test": "{{ 1 is nothing }}",
    "many brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "many conditions": "{% if a %}" * 120 + "{% endif %}" * 120,
    "many loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "many filters": "{{ a" + "|trim" * 500 + " }}",
    "many terms": "{{ 1" + "+1" * 500 + " }}",
    "many braces": "{" * 3000,
    "a large number": "{{ 0x" + "f" * 20_000 + " }}",
    "too much": "a" * (MAX_CHARACTERS + 1),
}
FAILING = {
    "what is not there": "{{ nothing.at.all }}",
    "a function that is not there": "{{ nothing() }}",
    "a filter that is reached": "{% if true %}{{ 1 | nothing }}{% endif %}",
    "zero": "{{ 1 / 0 }}",
    "kinds": "{{ 'a' + 1 }}",
    "a refusal": "{{ raise_exception('no system prompts') }}",
    "a refusal without words": "{{ raise_exception() }}",
    "a field that is not there": "{{ messages[5].content }}",
    "more values than places": "{{ '%s' % (1, 2) }}",
    "fewer values than places": "{{ '{}{}'.format(1) }}",
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A tenth of the work, so that the tests take a tenth of the time."""
    monkeypatch.setattr(meter, "STEPS", meter.STEPS // 10)


@pytest.mark.parametrize("name", ENDLESS)
def test_no_template_works_for_ever(name: str) -> None:
    with pytest.raises(TitansError, match="; "):
        ChatTemplate(ENDLESS[name], {}).render("hello")


@pytest.mark.parametrize("name", LARGE)
def test_no_template_fills_the_memory(name: str) -> None:
    template = ChatTemplate(LARGE[name], {})
    template.check()
    tracemalloc.start()
    try:
        with pytest.raises(TextError, match="; "):
            template.render("hello")
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", REACHING)
def test_no_template_reaches_anything(name: str) -> None:
    """Most are errors; a few are undefined, as in Jinja, and are written as nothing."""
    messages = [{"role": "user", "content": "hello"}]
    with contextlib.suppress(TitansError):
        assert ChatTemplate(REACHING[name], {}).render(messages) in ("", "[Undefined]")
    assert messages == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_a_template_is_an_error_of_the_bundle(name: str) -> None:
    template = ChatTemplate(BROKEN[name], {}, "toy.titans/chat_template.jinja")
    for call in (template.check, lambda: template.render("hello")):
        with pytest.raises(
            BundleError, match=r"toy\.titans/chat_template\.jinja .*; export the bundle with another one"
        ):
            call()


@pytest.mark.parametrize("name", FAILING)
def test_a_template_that_fails_says_how(name: str) -> None:
    with pytest.raises(TextError, match=r"the chat template .*; "):
        ChatTemplate(FAILING[name], {}).render("hello")


def test_what_a_template_says_of_the_messages_is_passed_on() -> None:
    with pytest.raises(TextError, match=r"does not take these messages: 'roles must alternate'; change them"):
        ChatTemplate("{{ raise_exception('roles must\\nalternate') }}", {}).render("hello")


def test_a_long_conversation_has_as_much_work_for_each_message_as_a_short_one() -> None:
    source = "{% for message in messages %}{{ message.role ~ message.content | trim }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 200}] * 3000
    assert len(ChatTemplate(source, {}).render(messages)) == 3000 * (4 + 999)


def test_work_is_paid_for_in_advance() -> None:
    paid = Meter(0, 0)
    with pytest.raises(LimitError, match="characters"):
        paid.join(["a" * 2_000_000] * 3)
    with pytest.raises(LimitError, match="less than no work"):
        paid.spend(-1)
