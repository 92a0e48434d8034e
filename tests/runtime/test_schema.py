"""The published JSON Schema is the one of the structs, and takes every manifest that the reader takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.test_manifest import junk, places
from titans_format.errors import BundleError
from titans_format.manifest import Manifest
from titans_format.schema import SCHEMA_FILE, schema, schema_text

ROOT = Path(__file__).resolve().parents[2]
VALIDATOR = jsonschema.Draft202012Validator(schema())


@pytest.mark.parametrize("file", [SCHEMA_FILE, ROOT / "docs/bundle.schema.json"], ids=["package", "documents"])
def test_what_is_published_is_current(file: Path) -> None:
    found = file.read_text(encoding="utf-8")
    assert found == schema_text(), f"run: python -m titans_format.schema > {file.relative_to(ROOT)}"


def test_the_schema_itself_is_sound() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"chunk": 0}, "chunk"),
        ({"weights": {"file": "../weights", "sha256": "0" * 64}}, "file"),
        ({"weights": {"file": "con.txt", "sha256": "0" * 64}}, "file"),
        ({"weights": {"file": "weights", "sha256": "0"}}, "sha256"),
        ({"inputs": {"kind": "pixels"}}, "inputs"),
        ({"format": "zip"}, "format"),
        ({"format_version": 99}, "format_version"),
    ],
)
def test_it_refuses_what_is_wrong_by_itself(toy_bundle: Path, change: dict[str, object], place: str) -> None:
    document = json.loads((toy_bundle / "manifest.json").read_text(encoding="utf-8"))
    assert VALIDATOR.is_valid(document)
    (error,) = VALIDATOR.iter_errors({**document, **change})
    assert place in error.absolute_path


@settings(max_examples=200, deadline=None)
@given(data=st.data(), value=junk)
def test_what_the_reader_takes_fits_it(toy_bundle: Path, data: st.DataObject, value: object) -> None:
    document = json.loads((toy_bundle / "manifest.json").read_text(encoding="utf-8"))
    *path, last = data.draw(st.sampled_from(sorted(places(document), key=str)))
    node: Any = document
    for key in path:
        node = node[key]
    node[last] = value
    try:
        Manifest.from_json(json.dumps(document))
    except BundleError:
        return
    del document["sha256"]  # which the reader of a manifest alone does not look at
    assert [error for error in VALIDATOR.iter_errors(document) if error.validator != "required"] == []
