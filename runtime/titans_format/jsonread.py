"""Typed reading of JSON that came from outside: every access says where it was when it fails.

Knows JSON and how to name a place in it (`states[3].shape`). Does not know what a manifest is.
A wrong document raises `BundleError`; `KeyError`, `TypeError` and `RecursionError` never get out.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from titans_format.errors import BundleError

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]

# Anything counted in a manifest (dimensions, bytes, parameters, tokens) fits; larger is damage, not data.
MAX_INTEGER = 2**62
# A surrogate as JSON writes it: alone, it is no character.
_SURROGATE = re.compile(r"\\u[dD][89abcdefABCDEF]")


@dataclass(frozen=True)
class Node:
    """One value of a JSON document, with the file and the path that lead to it."""

    value: JsonValue
    file: str
    path: str = ""

    def fail(self, expected: str) -> NoReturn:
        """Raise the error for a value that is not what was `expected`."""
        where = f"{self.file}: {self.path}" if self.path else self.file
        raise BundleError(f"{where} must be {expected}, found {_shown(self.value)}", "export the bundle again")

    def field(self, key: str) -> Node:
        """The value at `key`, which must be there."""
        found = self.optional(key)
        if found is None:
            where = f"{self.file}: {self.path}" if self.path else self.file
            raise BundleError(f'{where} has no field "{key}"', "export the bundle again")
        return found

    def optional(self, key: str) -> Node | None:
        """The value at `key`, or None where the key is absent."""
        fields = self.fields()
        if key not in fields:
            return None
        return Node(fields[key], self.file, f"{self.path}.{key}" if self.path else key)

    def fields(self) -> JsonObject:
        """The object itself."""
        if not isinstance(self.value, dict):
            self.fail("an object")
        return self.value

    def items(self) -> list[Node]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            self.fail("a list")
        return [Node(item, self.file, f"{self.path}[{i}]") for i, item in enumerate(self.value)]

    def pair(self) -> tuple[Node, Node]:
        """The two elements of a list."""
        items = self.items()
        if len(items) != 2:
            self.fail("a list of two")
        return items[0], items[1]

    def text(self) -> str:
        """A string with something in it."""
        if not isinstance(self.value, str) or not self.value:
            self.fail("a string that is not empty")
        return self.value

    def choice(self, options: tuple[str, ...]) -> str:
        """One of `options`."""
        if not isinstance(self.value, str) or self.value not in options:
            self.fail("one of " + ", ".join(options))
        return self.value

    def boolean(self) -> bool:
        """true or false."""
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return self.value

    def integer(self, minimum: int) -> int:
        """A whole number from `minimum` to `MAX_INTEGER`; `true` is not one."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= MAX_INTEGER:
            self.fail(f"a whole number of at least {minimum}")
        return value

    def number(self) -> float:
        """A finite number."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail("a number")
        try:
            number = float(value)
        except OverflowError:
            self.fail("a finite number")
        if not math.isfinite(number):
            self.fail("a finite number")
        return number

    def sha256(self) -> str:
        """A SHA-256 digest in lower-case hexadecimal."""
        value = self.value
        if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
            self.fail("a SHA-256 digest of 64 lower-case hexadecimal digits")
        return value


def parse(text: str, file: str) -> Node:
    """Parse one JSON document; `file` is the name that errors give it."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return Node(value, file)
    except UnicodeEncodeError:
        raise BundleError(f"{file} has text that UTF-8 cannot express", "export the bundle again") from None
    except RecursionError:
        raise BundleError(f"{file} is nested too deeply to be a manifest", "export the bundle again") from None
    except TypeError:
        raise BundleError(f"{file} is not text", "pass the document as a string") from None
    except ValueError as error:
        raise BundleError(f"{file} is not valid JSON ({error})", "it may be truncated: copy the bundle again") from None


def _object(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    """An object whose names are different: readers do not agree on which of two equal ones counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        again = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{_clipped(repr(again))} appears twice")
    return found


def _shown(value: JsonValue) -> str:
    """A value as an error message shows it: short whatever it is."""
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list):
        return f"a list of {len(value)}" if len(value) > 8 else _clipped(repr(value))
    return "null" if value is None else _clipped(repr(value))


def _clipped(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
