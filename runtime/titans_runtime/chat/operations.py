"""What a template may do to text, so that the result still knows which characters a user wrote, and is paid for.

Methods of strings, formatting, and the filters that make new text. Every one gives the characters that Python or
Jinja gives. Marks follow their characters. Where they cannot (JSON, a change of case that changes the length) and a
user's text is in it, all of the result is a user's.

Knows strings, marks and the meter. Does not know how a template is compiled (`sandbox`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any

from titans_runtime.chat.meter import Meter, check_number, refuse
from titans_runtime.chat.user_text import characters, joined, like, marks, piece, plain, with_marks

_FORMAT = re.compile("%[sd%]")
_MOST_INDENT = 8  # characters for each level of JSON
_MOST_SPACES = 64  # characters in front of an indented line


def elements(meter: Meter, value: Any) -> list[Any]:
    """What iterating over a value gives, as a list that is paid for. Raises `TypeError` for what cannot be iterated."""
    if isinstance(value, str):
        meter.spend(len(value), len(value))
        return list(characters(value))
    if isinstance(value, Sequence | Mapping):
        meter.spend(len(value))
        return list(value)
    items = []
    for item in value:  # a generator, whose every step may be dear
        meter.spend()
        items.append(item)
    return items


def text_of(meter: Meter, value: object) -> str:
    """A value as a template writes it. Raises `TypeError` for what is no data, such as a macro or a namespace."""
    meter.weigh(value, data=True)
    return value if isinstance(value, str) else like(str(value), value)


# -- methods -----------------------------------------------------------------------------------------------------------


def _strip(meter: Meter, text: str, chars: str | None = None, left: bool = True, right: bool = True) -> str:
    bare = plain(text)
    begin = len(bare) - len(bare.lstrip(chars)) if left else 0
    end = len(bare.rstrip(chars)) if right else len(bare)
    return piece(text, begin, max(begin, end))


def _split(meter: Meter, text: str, sep: str | None = None, maxsplit: int = -1, right: bool = False) -> list[str]:
    bare = plain(text)
    found = bare.rsplit(sep, maxsplit) if right else bare.split(sep, maxsplit)
    meter.spend(len(found))
    parts, at = [], 0
    for part in found:
        at = bare.index(part, at) if sep is None else at  # between parts there is white space, which none begins with
        parts.append(piece(text, at, at + len(part)))
        at += len(part) + len(sep or "")
    return parts


def _splitlines(meter: Meter, text: str, keepends: bool = False) -> list[str]:
    bare = plain(text)
    whole = bare.splitlines(True)
    meter.spend(len(whole))
    lines, at = [], 0
    for line, kept in zip(whole, bare.splitlines(bool(keepends)), strict=True):
        lines.append(piece(text, at, at + len(kept)))
        at += len(line)
    return lines


def _partition(meter: Meter, text: str, sep: str, right: bool = False) -> tuple[str, str, str]:
    bare = plain(text)
    head, found, _ = bare.rpartition(sep) if right else bare.partition(sep)
    at = len(head)
    return piece(text, 0, at), piece(text, at, at + len(found)), piece(text, at + len(found), len(bare))


def replaced(meter: Meter, text: str, old: str, new: str, count: int | None = -1) -> str:
    """`str.replace`; a count of None is all of them."""
    bare, most = plain(text), len(text) + 1 if count is None or count < 0 else count
    if old == "":
        places = list(range(min(most, len(bare) + 1)))
    else:
        places, at = [], bare.find(old)
        while at >= 0 and len(places) < most:
            places.append(at)
            at = bare.find(old, at + len(old))
    meter.spend(len(places), len(bare) + len(places) * len(new))
    pieces, at = [], 0
    for place in places:
        pieces += [piece(text, at, place), new]
        at = place + len(old)
    return joined([*pieces, piece(text, at, len(bare))])


def _joined(meter: Meter, separator: str, parts: object) -> str:
    pieces: list[str] = []
    for part in elements(meter, parts):
        if not isinstance(part, str):
            raise TypeError(f"join takes strings, and one is of type {type(part).__name__}")
        pieces += [separator, part] if pieces else [part]
    return meter.join(pieces)


def changing_case(change: Callable[[str], str]) -> Callable[[Meter, str], str]:
    """A method that changes letters."""

    def changed(meter: Meter, text: str) -> str:
        made = change(plain(text))
        return with_marks(made, marks(text)) if len(made) == len(text) else like(made, text)

    return changed


def _remove(meter: Meter, text: str, affix: str, front: bool = True) -> str:
    bare = plain(text)
    kept = len(bare.removeprefix(affix) if front else bare.removesuffix(affix))
    return piece(text, len(bare) - kept, len(bare)) if front else piece(text, 0, kept)


def formatted(meter: Meter, text: str, *values: object, **named: object) -> str:
    """`str.format` with fields that are numbered, named or empty; they have no widths and no attributes."""
    pieces: list[str] = []
    number = 0
    for literal, name, spec, conversion in Formatter().parse(plain(text)):
        pieces.append(like(literal, text))
        if name is None:
            continue
        if spec or conversion or not (name.isdigit() or name.isidentifier() or not name):
            refuse("it formats with more than {}, {0} or {name}")
        value = named[name] if name and not name.isdigit() else values[int(name or number)]
        number += 1
        pieces.append(text_of(meter, value))
    return meter.join(pieces)


def percent(meter: Meter, text: str, values: object) -> str:
    """`text % values` with %s and %d alone."""
    given = list(values) if isinstance(values, tuple) else [values]
    pieces, at, bare = [], 0, plain(text)
    for found in _FORMAT.finditer(bare):
        pieces.append(piece(text, at, found.start()))
        at = found.end()
        if found.group() == "%%":
            pieces.append(piece(text, at - 1, at))
        elif not given:
            raise TypeError("not enough values for the format")
        elif found.group() == "%s":
            pieces.append(text_of(meter, given.pop(0)))
        else:
            pieces.append(text_of(meter, int(_number(given.pop(0)))))
    pieces.append(piece(text, at, len(bare)))
    if given or any("%" in each for each in pieces[::2]):
        refuse("it formats with more than %s and %d, or with other values than it has")
    return meter.join(pieces)


def _number(value: object) -> int | float:
    if isinstance(value, bool | int | float):
        return value
    raise TypeError(f"%d takes a number, and this is of type {type(value).__name__}")


def _asked(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that makes no text."""
    return lambda meter, text, *values: method(plain(text), *values)


METHODS: dict[str, Callable[..., Any]] = {
    "strip": _strip,
    "lstrip": lambda meter, text, chars=None: _strip(meter, text, chars, right=False),
    "rstrip": lambda meter, text, chars=None: _strip(meter, text, chars, left=False),
    "split": lambda meter, text, sep=None, maxsplit=-1: _split(meter, text, sep, maxsplit),
    "rsplit": lambda meter, text, sep=None, maxsplit=-1: _split(meter, text, sep, maxsplit, right=True),
    "splitlines": _splitlines,
    "partition": lambda meter, text, sep: _partition(meter, text, sep),
    "rpartition": lambda meter, text, sep: _partition(meter, text, sep, right=True),
    "replace": replaced,
    "join": _joined,
    "removeprefix": lambda meter, text, affix: _remove(meter, text, affix),
    "removesuffix": lambda meter, text, affix: _remove(meter, text, affix, front=False),
    "format": formatted,
    **{
        name: changing_case(getattr(str, name))
        for name in ("lower", "upper", "title", "capitalize", "swapcase", "casefold")
    },
    **{name: _asked(getattr(str, name)) for name in ("startswith", "endswith", "find", "rfind", "index", "count")},
    **{name: _asked(getattr(str, name)) for name in dir(str) if name.startswith("is")},
}
OF_MAPPINGS = frozenset({"get", "items", "keys", "values"})
OF_LISTS = frozenset({"count", "index"})


# -- filters that make text --------------------------------------------------------------------------------------------


def trimmed(meter: Meter, value: Any, chars: str | None = None) -> str:
    """The `trim` filter."""
    return _strip(meter, text_of(meter, value), chars)


def joined_by(meter: Meter, values: Any, d: Any = "") -> str:
    """The `join` filter, of values that are written as text."""
    return _joined(meter, text_of(meter, d), [text_of(meter, each) for each in elements(meter, values)])


def indented(meter: Meter, value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    """The `indent` filter."""
    space = width if isinstance(width, str) else " " * min(int(width), _MOST_SPACES + 1)
    if len(space) > _MOST_SPACES:
        refuse(f"it indents by more than {_MOST_SPACES} characters")
    text = text_of(meter, value)
    lines = _splitlines(meter, meter.join([text, "\n"]))
    pieces = [space] if first else []
    for number, line in enumerate(lines):
        if number:
            pieces += ["\n", *([space] if line or blank else [])]
        pieces.append(line)
    return meter.join(pieces)


def as_json(
    meter: Meter,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` filter as transformers has it: without HTML's escapes."""
    meter.weigh(value)
    if indent is not None and (len(indent) if isinstance(indent, str) else int(indent)) > _MOST_INDENT:
        refuse(f"it indents JSON by more than {_MOST_INDENT} characters")
    if separators is not None and sum(map(len, separators)) > _MOST_INDENT:
        refuse(f"it separates JSON by more than {_MOST_INDENT} characters")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    meter.spend(1, len(text))
    return like(text, value, indent, separators)


def in_order(
    meter: Meter, values: Any, reverse: bool = False, case_sensitive: bool = False, key: Any = None
) -> list[Any]:
    """Values in order, letters of either case as one unless they are told apart."""
    found = elements(meter, values)
    keys = [key(each) if key else each for each in found]
    for _ in range(len(found).bit_length()):  # as many comparisons as sorting takes
        meter.weigh(keys)
    if not case_sensitive:
        keys = [each.lower() if isinstance(each, str) else each for each in keys]
    order = sorted(range(len(found)), key=keys.__getitem__, reverse=bool(reverse))
    return [found[number] for number in order]


def without_repeats(meter: Meter, values: Any, case_sensitive: bool = False) -> list[Any]:
    """The first of each value."""
    seen, kept = set(), []
    for each in elements(meter, values):
        meter.weigh(each)
        same = each.lower() if isinstance(each, str) and not case_sensitive else each
        if same not in seen:
            seen.add(same)
            kept.append(each)
    return kept


def total(meter: Meter, values: Any) -> int | float:
    """The sum of numbers."""
    result: int | float = 0
    for each in elements(meter, values):
        result += _number(each)
        check_number(result)
    return result
