"""Manifests: they round-trip, and whatever else a file says is a `BundleError` that names the place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from titans_format.fields import ChatTemplateInfo, GenerationDefaults
from titans_format.specs import Cost
from titans_runtime import BundleError, Manifest

Document = dict[str, Any]


@pytest.fixture(scope="module")
def text(toy_bundle: Path) -> str:
    return (toy_bundle / "manifest.json").read_text(encoding="utf-8")


def put(*path: str | int, value: object) -> Callable[[Document], None]:
    """An edit that sets the value at a path."""

    def edit(document: Document) -> None:
        node: Any = document
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return edit


def repeat(key: str, index: int = 0) -> Callable[[Document], None]:
    """An edit that lists an element twice."""
    return lambda document: document[key].append(document[key][index])


def add_step(scheduled: bool = False) -> Callable[[Document], None]:
    """An edit that adds a second step graph, in the schedule or not."""

    def edit(document: Document) -> None:
        step = next(graph for graph in document["graphs"] if graph["kind"] == "step")
        document["graphs"].append({**step, "name": "other_step"})
        if scheduled:
            document["schedule"].append({"graph": "other_step", "period": 4, "phase": 1})

    return edit


def add_table() -> Callable[[Document], None]:
    """An edit that adds a table of rows which no graph returns rows for."""

    def edit(document: Document) -> None:
        table = next(state for state in document["states"] if state["kind"] == "rows")
        document["states"].append({**table, "name": "0.other", "input": "other", "output": "other_row"})

    return edit


def template(**fields: object) -> dict[str, object]:
    """A chat template's entry."""
    return {"file": "chat_template.jinja", "sha256": "0" * 64, "bytes": 5, "tokens": {"bos_token": "<s>"}} | fields


WRONG: list[tuple[str, Callable[[Document], None], str]] = [
    ("another format", put("format", value="zip"), "format"),
    ("no version", put("format_version", value=None), "format_version"),
    ("a version that is a float", put("format_version", value=1.0), "format_version"),
    ("a version that is true", put("format_version", value=True), "format_version"),
    ("chunk of zero", put("chunk", value=0), "chunk"),
    ("chunk beyond belief", put("chunk", value=10**30), "chunk"),
    ("an unknown kind of input", put("inputs", "kind", value="pixels"), "inputs.kind"),
    ("a kind that is a list", put("inputs", "kind", value=["tokens"]), "inputs.kind"),
    ("an empty vocabulary", put("inputs", "vocab_size", value=0), "inputs.vocab_size"),
    ("another vocabulary than the graphs'", put("inputs", "vocab_size", value=300), "logits"),
    ("states as an object", put("states", value={}), "states"),
    ("a state without a name", put("states", 0, "name", value=""), "states[0].name"),
    ("a state of a dtype unheard of", put("states", 0, "dtype", value="float8"), "states[0].dtype"),
    ("a state without a batch axis", put("states", 0, "shape", value=[1, 6, 6]), "states[0].shape"),
    ("a state with two batch axes", put("states", 0, "shape", value=["batch", "batch", 6]), "states[0].shape"),
    ("a state with another symbol", put("states", 0, "shape", value=["batch", "n", 6]), "states[0].shape[1]"),
    ("rows with the batch first", put("states", 2, "shape", value=["batch", 8, 6]), "states[2].shape"),
    ("a state too large to hold", put("states", 0, "shape", value=["batch", 2**40]), "states[0].shape"),
    ("an initial value that is text", put("states", 1, "initial", "value", value="one"), "states[1].initial.value"),
    ("an initial value beyond floats", put("states", 1, "initial", "value", value=10**400), "states[1].initial.value"),
    ("an initial value that is NaN", put("states", 1, "initial", "value", value=float("nan")), "initial.value"),
    ("a state named twice", repeat("states"), "0.memory_0"),
    ("two states over one tensor", put("states", 1, "input", value="memory"), "memory"),
    ("a graph named twice", repeat("graphs"), "step"),
    ("no step graph", put("graphs", value=[]), "step"),
    ("a graph of an unknown kind", put("graphs", 0, "kind", value="leap"), "graphs[0].kind"),
    ("a step of two tokens", put("graphs", 0, "tokens", value=2), "step"),
    ("a graph that reads an unknown thing", put("graphs", 0, "inputs", 0, "name", value="clock"), "clock"),
    ("a graph that writes an unknown thing", put("graphs", 0, "outputs", 0, "name", value="clock"), "clock"),
    ("a graph with a state of another shape", put("graphs", 0, "inputs", 2, "shape", value=["batch", 6]), "memory"),
    ("a graph with a state of another dtype", put("graphs", 0, "inputs", 2, "dtype", value="float16"), "memory"),
    ("a graph without its data", put("graphs", 0, "inputs", value=[]), "input_ids"),
    ("a graph with rows for some tables alone", add_table(), "other_row"),
    ("a graph without its head", put("graphs", 0, "outputs", value=[]), "logits"),
    ("a surprise without layers", put("graphs", 0, "outputs", 1, "shape", value=["batch", 1, "batch"]), "surprise"),
    ("a surprise of fewer layers", put("graphs", 0, "outputs", 1, "shape", value=["batch", 1, 1]), "surprise"),
    ("a hash that is none", put("graphs", 0, "sha256", value="abc"), "graphs[0].sha256"),
    ("a schedule of a graph that is not there", put("schedule", 0, "graph", value="fold"), "fold"),
    ("a schedule of a step", put("schedule", 0, "graph", value="step"), "step"),
    ("a period of zero", put("schedule", 0, "period", value=0), "schedule[0].period"),
    ("a step graph that is never due", add_step(), "other_step"),
    ("a phase that never comes", put("schedule", 0, "phase", value=8), "schedule"),
    ("a phase below zero", put("schedule", 0, "phase", value=-1), "schedule[0].phase"),
    ("an extend that jumps over a step", add_step(scheduled=True), "extend"),
    ("a period that does not divide the chunk", put("schedule", 0, "period", value=3), "schedule"),
    ("learned state without a file", put("initial_state", value=None), "0.memory_0"),
    ("a file that is a number", put("weights", "file", value=3), "weights.file"),
    ("provenance of numbers", put("provenance", "torch", value=2.13), "provenance.torch"),
    ("verification as text", put("verification", value="fine"), "verification"),
    ("a tokenizer of an unknown kind", put("tokenizer", "kind", value="words"), "tokenizer.kind"),
    ("a tokenizer file without a name", put("tokenizer", "kind", value="tokenizers"), "tokenizer"),
    ("generation as a list", put("generation", value=[]), "generation"),
    ("a temperature below zero", put("generation", value={"temperature": -1}), "generation.temperature"),
    ("a temperature that is text", put("generation", value={"temperature": "hot"}), "generation.temperature"),
    ("a choice among no tokens", put("generation", value={"top_k": 0}), "generation.top_k"),
    ("a choice among a part of a token", put("generation", value={"top_k": 1.5}), "generation.top_k"),
    ("a probability above one", put("generation", value={"top_p": 1.1}), "generation.top_p"),
    ("a fraction above one", put("generation", value={"min_p": 1.1}), "generation.min_p"),
    ("a penalty of zero", put("generation", value={"repetition_penalty": 0}), "generation.repetition_penalty"),
    ("answers without end", put("generation", value={"max_new_tokens": 2**40}), "generation.max_new_tokens"),
    ("a template without a hash", put("chat_template", value={"file": "a"}), "chat_template"),
    ("a template elsewhere", put("chat_template", value=template(file="../a")), "chat_template.file"),
    (
        "a template's token of a strange name",
        put("chat_template", value=template(tokens={"messages": "a"})),
        "messages",
    ),
    ("a template's token that is a number", put("chat_template", value=template(tokens={"bos_token": 1})), "bos_token"),
    ("a token without end", put("chat_template", value=template(tokens={"eos_token": "a" * 5000})), "eos_token"),
    (
        "a template and no tokenizer",
        lambda document: document.update(tokenizer=None, chat_template=template()),
        "chat template",
    ),
]
ESCAPES = ["/etc/passwd", "../weights", "a/../../b", "C:weights", "..\\weights", "a\0b", ".", "./"]


def test_a_manifest_survives_the_round_trip(text: str) -> None:
    manifest = Manifest.from_json(text)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.to_json() == text


def test_what_a_call_costs_survives_too_and_has_to_be_whole(text: str) -> None:
    manifest = Manifest.from_json(text)
    costed = replace(manifest.graphs[0], cost=Cost(flops=1, weight_bytes=2, read_bytes=3, written_bytes=4))
    again = Manifest.from_json(replace(manifest, graphs=(costed, *manifest.graphs[1:])).to_json())
    assert again.graphs[0].cost == costed.cost
    assert again.graphs[0].cost is not None
    assert again.graphs[0].cost.moved_bytes == 9
    document = json.loads(again.to_json())
    document["graphs"][0]["cost"]["flops"] = -1
    with pytest.raises(BundleError, match=r"graphs\[0\]\.cost\.flops"):
        Manifest.from_json(json.dumps(document))


def test_a_template_and_how_to_generate_survive_too(text: str) -> None:
    manifest = Manifest.from_json(text)
    assert not {"generation", "chat_template"} & set(json.loads(text))  # absent where nothing is said
    said = replace(
        manifest,
        generation=GenerationDefaults(temperature=0.0, top_k=40, repetition_penalty=1.1),
        chat_template=ChatTemplateInfo(
            file="chat_template.jinja", sha256="0" * 64, bytes=5, tokens={"bos_token": "<s>"}
        ),
    )
    document = json.loads(said.to_json())
    assert document["generation"] == {"temperature": 0.0, "top_k": 40, "repetition_penalty": 1.1}
    assert document["chat_template"] == template()
    assert Manifest.from_json(said.to_json()) == said
    assert said.files()[-1].file == "chat_template.jinja"


@pytest.mark.parametrize(("edit", "where"), [(e, w) for _, e, w in WRONG], ids=[name for name, _, _ in WRONG])
def test_a_wrong_manifest_is_an_error_that_names_the_place(
    text: str, edit: Callable[[Document], None], where: str
) -> None:
    document = json.loads(text)
    edit(document)
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert where in str(caught.value)
    assert "; " in str(caught.value)  # the remedy


@pytest.mark.parametrize("name", ESCAPES)
def test_a_file_outside_the_bundle_is_refused(text: str, name: str) -> None:
    document = json.loads(text)
    document["weights"]["file"] = name
    with pytest.raises(BundleError, match=r"weights\.file must be a relative path"):
        Manifest.from_json(json.dumps(document))


def test_a_newer_format_asks_for_an_upgrade(text: str) -> None:
    document = json.loads(text)
    document["format_version"] = 2
    document["states"] = "in a form that version 1 does not know"
    with pytest.raises(BundleError, match=r"format_version is 2.*install a newer titans-deploy"):
        Manifest.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "[" * 100_000, '{"format": "titans-bundle"}', "\0"])
def test_what_is_no_manifest_at_all_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        Manifest.from_json(text)


def places(node: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value in a document."""
    if path:
        yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), value=junk, remove=st.booleans())
def test_junk_anywhere_is_a_bundle_error_or_a_sound_manifest(
    text: str, data: st.DataObject, value: object, remove: bool
) -> None:
    document = json.loads(text)
    path = data.draw(st.sampled_from(sorted(places(document), key=str)))
    if remove:
        node: Any = document
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
    else:
        put(*path, value=value)(document)
    try:
        manifest = Manifest.from_json(json.dumps(document))
    except BundleError:
        return
    assert Manifest.from_json(manifest.to_json()) == manifest
