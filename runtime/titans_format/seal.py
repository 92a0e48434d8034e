"""A JSON object's own checksum, as one of its fields: what was changed by accident is noticed.

Knows the object's content, not its spelling: indentation and the order of fields are free. Does not know manifests.
It protects against damage and careless edits, not against somebody who computes it anew.
"""

from __future__ import annotations

import hashlib
import json
from typing import cast

from msgspec import Struct

from titans_format.document import EXPORT_AGAIN, Digest, JsonObject, JsonValue, read
from titans_format.errors import BundleError

FIELD = "sha256"


def seal(fields: JsonObject) -> JsonObject:
    """The object with its checksum as the last field, in place of one that it had."""
    content = {key: value for key, value in fields.items() if key != FIELD}
    return {**content, FIELD: _digest(content)}


def check_seal(document: JsonValue, file: str) -> None:
    """Raises `BundleError` unless the object is as it was when it was sealed."""
    written = read(document, Sealed, file).sha256
    fields = cast(JsonObject, document)  # or `Sealed` would not have fitted
    try:
        found = _digest({key: value for key, value in fields.items() if key != FIELD})
    except ValueError:
        raise BundleError(f"{file} has numbers that are not finite", EXPORT_AGAIN) from None
    if written != found:
        raise BundleError(
            f"{file} was changed after it was written: its checksum does not match",
            "copy the bundle again, or export it again",
        )


class Sealed(Struct):
    """What is known of a sealed object."""

    sha256: Digest


def _digest(content: JsonObject) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
