"""JSON that came from outside, as structs: every error names the place that is wrong.

Knows JSON, `msgspec` and how to name a place in a document (`states[3].shape`). Does not know what a manifest is.
msgspec decides whether a value fits its type; where one does not, this module finds it and says what would have fitted.
A wrong document raises `BundleError`; nothing else gets out.
"""

from __future__ import annotations

import json
import re
import sys
from types import UnionType
from typing import Annotated, Any, Final, NoReturn, TypeAlias, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Meta, inspect

from titans_format.errors import BundleError
from titans_format.names import INSIDE, INSIDE_PATTERN, PLAIN, PLAIN_PATTERN

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]
T = TypeVar("T")

# Anything counted in a manifest (dimensions, bytes, parameters, tokens) fits; larger is damage, not data.
MAX_INTEGER = 2**62
ANY_FLOAT = sys.float_info.max
TINY = 1e-300

# What fields are made of. Strings are checked with the patterns that the JSON Schema publishes.
DIGEST_PATTERN = r"^[0-9a-f]{64}$(?!\n)"
BATCH_PATTERN = r"^batch$(?!\n)"
TOKEN_NAME_PATTERN = r"^[a-z_]{1,40}_token$(?!\n)"
Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
Positive = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
Number = Annotated[float, Meta(ge=-ANY_FLOAT, le=ANY_FLOAT)]
Digest = Annotated[str, Meta(pattern=DIGEST_PATTERN)]
FilePath = Annotated[str, Meta(pattern=INSIDE_PATTERN)]
PlainName = Annotated[str, Meta(pattern=PLAIN_PATTERN)]
_PHRASES = {
    DIGEST_PATTERN: "a SHA-256 digest of 64 lower-case hexadecimal digits",
    BATCH_PATTERN: '"batch"',
    TOKEN_NAME_PATTERN: "a name such as bos_token",
    INSIDE_PATTERN: INSIDE,
    PLAIN_PATTERN: PLAIN,
}

MANIFEST_FILE: Final = "manifest.json"
EXPORT_AGAIN: Final = "export the bundle again"
# A surrogate as JSON writes it: alone, it is no character.
_SURROGATE = re.compile(r"\\u[dD][89abcdefABCDEF]")
_SHORT = 80  # characters of a value that an error shows


def parse(text: str, file: str) -> JsonValue:
    """Parse one JSON document; `file` is the name that errors give it. Raises `BundleError`."""
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=_object)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise BundleError(f"{file} has text that UTF-8 cannot express", EXPORT_AGAIN) from None
    except RecursionError:
        raise BundleError(f"{file} is nested too deeply to be a manifest", EXPORT_AGAIN) from None
    except TypeError:
        raise BundleError(f"{file} is not text", "pass the document as a string") from None
    except ValueError as error:
        raise BundleError(f"{file} is not valid JSON ({error})", "it may be truncated: copy the bundle again") from None


def read(value: JsonValue, kind: type[T], file: str, path: str = "") -> T:
    """A parsed value as a struct, or as any other type that msgspec knows.

    Fields that the type does not have are ignored.

    Args:
        value: what `parse` returned, or a part of it.
        kind: the type; its constraints are held.
        file, path: what errors call the document, and the place of `value` in it.

    Raises:
        BundleError: the first field that is missing or does not fit.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        _explain(value, kind, file, path)


def refuse(file: str, path: str, expected: str, found: JsonValue) -> NoReturn:
    """Raise the error for a value that is not what was `expected`."""
    place = f"{path} must" if path else "the document must"
    raise BundleError(f"{place} be {expected}, found {_shown(found)}", EXPORT_AGAIN, where=file)


def _explain(value: JsonValue, kind: Any, file: str, path: str) -> NoReturn:
    """Raise the error for the first place within `value`, which does not fit, that does not fit by itself."""
    whole, kind = kind, _chosen(kind, value)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        _check_tag(value, whole, kind, file, path)
        for field in msgspec.structs.fields(kind):
            if field.encode_name in value:
                _descend(value[field.encode_name], field.type, file, _joined(path, field.encode_name))
            elif field.required:
                where = f"{file}: {path}" if path else file
                raise BundleError(f'{where} has no field "{field.encode_name}"', EXPORT_AGAIN)
    elif get_origin(kind) is dict and isinstance(value, dict):
        of_key, of_value = get_args(kind)
        for key, item in value.items():
            if not _fits(key, of_key):
                refuse(file, _joined(path, key), f"named by {_expected(of_key)}", key)
            _descend(item, of_value, file, _joined(path, key))
    elif get_origin(kind) is tuple and isinstance(value, list):
        of = get_args(kind)
        each = of[:1] * len(value) if of[-1] is Ellipsis else of
        for index, (item, one) in enumerate(zip(value, each, strict=False)):
            _descend(item, one, file, f"{path}[{index}]")
    refuse(file, path, _expected(whole), value)


def _descend(value: JsonValue, kind: Any, file: str, path: str) -> None:
    if not _fits(value, kind):
        _explain(value, kind, file, path)


def _fits(value: JsonValue, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union but None, or the type itself; without the constraints of a container."""
    found = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    bare = (get_args(each)[0] if get_origin(each) is Annotated else each for each in found)
    return tuple(each for each in bare if each is not type(None))


def _chosen(kind: Any, value: JsonValue) -> Any:
    """The type of a union that `value` was meant for: by its tag, else the first."""
    members = _members(kind)
    for each in members:
        config = getattr(each, "__struct_config__", None)
        if config is not None and isinstance(value, dict) and value.get(config.tag_field) == config.tag:
            return each
    return members[0]


def _check_tag(value: JsonObject, whole: Any, kind: type[msgspec.Struct], file: str, path: str) -> None:
    """Raise the error for a struct of a union whose tag is missing or unknown."""
    name = kind.__struct_config__.tag_field
    if name is None:
        return
    tags = [str(each.__struct_config__.tag) for each in _members(whole)]
    if name not in value:
        raise BundleError(f'{file}: {path} has no field "{name}"', EXPORT_AGAIN)
    if value[name] not in tags:
        refuse(file, _joined(path, name), f"one of {', '.join(tags)}", value[name])


def _expected(kind: Any) -> str:
    """What fits a type, in words."""
    info = inspect.type_info(kind)
    each = info.types if isinstance(info, inspect.UnionType) else (info,)
    return " or ".join(dict.fromkeys(_words(one) for one in each if not isinstance(one, inspect.NoneType)))


def _words(info: inspect.Type) -> str:
    match info:
        case inspect.LiteralType():
            return "one of " + ", ".join(map(str, info.values)) if len(info.values) > 1 else f'"{info.values[0]}"'
        case inspect.StrType(pattern=str(pattern)):
            return _PHRASES[pattern]
        case inspect.StrType(max_length=int(most)):
            return f"a string of 1 to {most} characters"
        case inspect.StrType():
            return "a string that is not empty" if info.min_length else "a string"
        case inspect.IntType():
            return "a whole number" + _range(info.ge, info.le)
        case inspect.FloatType():
            return "a number above 0" if 0 < (info.ge or 0) < TINY else "a number" + _range(info.ge, info.le)
        case inspect.BoolType():
            return "true or false"
        case inspect.VarTupleType():
            some = " with something in it" if info.min_length else ""
            return f"a list{some}" + (f" of at most {info.max_length}" if info.max_length else "")
        case inspect.TupleType():
            return f"a list of {len(info.item_types)}"
        case _:
            return "an object"


def _range(least: float | None, most: float | None) -> str:
    """The bounds that a person would want to know: those of any number that can be held go without saying."""
    above = f" of at least {least:,}".replace(",", "") if least is not None and abs(least) < ANY_FLOAT else ""
    below = most is not None and most < MAX_INTEGER
    return above + (f"{' and' if above else ' of'} at most {most}" if below else "")


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
    return text if len(text) <= _SHORT else text[: _SHORT - 3] + "..."
