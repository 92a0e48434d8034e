"""The JSON Schema of a manifest, for drivers in other languages: generated from the structs that read it.

A manifest that fits it may still be refused: its parts have to fit together (`contract`), and its checksum has to be
right (`seal`). `python -m titans_format.schema` prints it.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from titans_format.document import JsonObject
from titans_format.manifest import FORMAT, FORMAT_VERSION, Manifest
from titans_format.seal import FIELD, Sealed

SCHEMA_FILE = Path(__file__).with_name("bundle.schema.json")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> JsonObject:
    """The schema of `manifest.json`."""
    _, components = msgspec.json.schema_components([Manifest, Sealed], ref_template="#/$defs/{name}")
    manifest = components.pop("Manifest")
    checksum = components.pop(Sealed.__name__)
    header: JsonObject = {
        "format": {"const": FORMAT},
        "format_version": {"const": FORMAT_VERSION},
        FIELD: {**checksum["properties"][FIELD], "description": "of the other fields; see docs/bundle-format.md"},
    }
    return {
        "$schema": _DIALECT,
        **manifest,
        "title": "The manifest of a Titans bundle",
        "description": "Everything a runtime needs to know to drive the graphs. Fields that are not here are ignored.",
        "properties": {**header, **manifest["properties"]},
        "required": [*header, *manifest["required"]],
        "$defs": components,
    }


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
