"""Jinja's sandbox, made narrower: what a chat template may reach, and what it costs.

A template sees its messages, a few functions, the filters, tests and methods that are listed here, and nothing else:
no attribute of a Python object, no file, no other template. Every one of them asks the meter of the rendering.

Conventions are those of transformers: `trim_blocks`, `lstrip_blocks`, `break` and `continue`, `raise_exception`,
`strftime_now`, `namespace`, JSON without HTML's escapes, `{% generation %}`. Imports jinja2.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import filters, nodes, pass_context, tests
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from titans_runtime.chat import operations
from titans_runtime.chat.meter import Meter, check_number, refuse
from titans_runtime.chat.rewrite import CONCAT, ITERATE, KEY, LOOK_IN, SLICE, SPEND, WEIGH, GenerationTag, rewritten
from titans_runtime.chat.user_text import joined, like, marks, plain, sliced, with_marks

_LOOP = ("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem")
_LOOP_METHODS = ("cycle", "changed")
_LONGEST_DATE = 200  # characters of a format
_LARGEST_POWER = 64
_SCALARS = (str, int, float, type(None))  # what may be a key: to hash a tuple of tuples may take for ever


class RefusalError(Exception):
    """What `raise_exception` raises: the template does not take these messages."""


class MeteredContext(Context):
    """The variables of one rendering, and its meter."""

    meter: Meter


@dataclass(frozen=True)
class _Method:
    """A method of a value, not called yet."""

    owner: Any
    name: str


class _Turns:
    """What a loop goes through, paying for every turn."""

    def __init__(self, meter: Meter, items: list[Any], steps: int, characters: int) -> None:
        self._meter, self._items, self._steps, self._characters = meter, items, steps, characters

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._meter.spend(self._steps, self._characters)
            yield item


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
    context_class = MeteredContext

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            optimized=False,  # or what is constant would be computed while it is compiled
            finalize=_written,
            cache_size=0,
        )
        self.filters = {name: pass_context(_metered(each)) for name, each in FILTERS.items()}
        self.filters |= {name: pass_context(each) for name, each in _OF_CONTEXT.items()}
        self.tests = {name: pass_context(_metered_test(name)) for name in _TESTS}
        self.globals = dict(GLOBALS)

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A filter by the name that `map` was given; none of those that the rewriting puts in."""
        if name.startswith(" "):
            raise SecurityError(f"there is no filter named {name!r}")
        return super().call_filter(name, *args, **kwargs)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """What a macro or a block wrote."""
        pieces = list(pieces)
        for each in pieces:
            if not isinstance(each, str):
                raise SecurityError(f"a call block writes a value of type {type(each).__name__}, which is not text")
        return joined(pieces)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = rewritten(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`: a method from the lists, an item of a mapping, or undefined."""
        if isinstance(obj, Undefined):
            return getattr(obj, attribute)  # raises, and says what is undefined
        if attribute.startswith("_"):
            return self.unsafe_undefined(obj, attribute)
        if isinstance(obj, Namespace):
            return getattr(obj, attribute, self.undefined(obj=obj, name=attribute))
        if isinstance(obj, LoopContext):
            if attribute in _LOOP:
                return getattr(obj, attribute)
            known: Iterable[str] = _LOOP_METHODS
        else:
            known = _methods_of(obj)
        if attribute in known:
            return _Method(obj, attribute)
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`."""
        if isinstance(obj, Undefined):
            return obj[argument]
        if isinstance(argument, _SCALARS) and isinstance(obj, str | Mapping | list | tuple | range):
            key: Any = argument
            try:
                return sliced(obj, _place(obj, key)) if isinstance(obj, str) else obj[key]
            except (TypeError, LookupError):
                if isinstance(argument, str):
                    return self.getattr(obj, argument)
        return self.undefined(obj=obj, name=argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, `+` of texts and of lists, and `%`."""
        meter = _meter(context)
        meter.spend()
        for value in (left, right):
            check_number(value)
        if isinstance(left, str) and operator == "%":
            return operations.percent(meter, left, right)
        if isinstance(left, str) and isinstance(right, str) and operator == "+":
            return meter.join([left, right])
        if isinstance(left, list | tuple) and type(left) is type(right) and operator == "+":
            meter.spend(len(left) + len(right))
        elif operator == "*" and any(isinstance(value, str | list | tuple) for value in (left, right)):
            return _repeated(meter, left, right)
        elif operator == "**" and (isinstance(right, bool | int) and abs(right) > _LARGEST_POWER):
            refuse(f"it raises a number to a power above {_LARGEST_POWER}")
        result = self.binop_table[operator](left, right)
        check_number(result)
        return result

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A macro, a method from the lists, or a function of the environment."""
        meter = _meter(context)
        for name in ("_loop_vars", "_block_vars"):  # Jinja's own, for functions that want the context
            kwargs.pop(name, None)
        for value in (*args, *kwargs.values()):
            meter.weigh(value)
        if isinstance(obj, Macro):
            meter.enter()
            try:
                written = context.call(obj, *args, **kwargs)
            finally:
                meter.leave()
            meter.weigh(written)
            return written
        if isinstance(obj, _Method):
            return _call_method(meter, obj, args, kwargs)
        if isinstance(obj, Undefined):
            return obj(*args, **kwargs)  # raises, and says what is undefined
        if any(obj is each for each in GLOBALS.values()):
            return obj(*args, **kwargs)
        raise SecurityError(f"a value of type {type(obj).__name__} cannot be called")


def _meter(context: Context) -> Meter:
    if not isinstance(context, MeteredContext):
        raise SecurityError("the rendering has no meter")
    return context.meter


@pass_context
def _written(context: Context, value: Any) -> str:
    """A value as it is written out."""
    return operations.text_of(_meter(context), value)


def _methods_of(obj: Any) -> Iterable[str]:
    if isinstance(obj, str):
        return operations.METHODS
    if isinstance(obj, Mapping):
        return operations.OF_MAPPINGS
    return operations.OF_LISTS if isinstance(obj, list | tuple) else ()


def _call_method(meter: Meter, method: _Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    owner, name = method.owner, method.name
    if isinstance(owner, str):
        meter.weigh(owner)
        return operations.METHODS[name](meter, owner, *args, **kwargs)
    if isinstance(owner, LoopContext):
        return getattr(owner, name)(*args, **kwargs)
    if name == "get":
        _key(meter, args[0] if args else None)
        return owner.get(*args, **kwargs)
    if isinstance(owner, Mapping):
        return operations.elements(meter, getattr(owner, name)(*args, **kwargs))
    meter.weigh(owner)
    return getattr(owner, name)(*args, **kwargs)


def _place(text: str, argument: Any) -> slice:
    """A character of a text, by its number, as a slice."""
    number = operator.index(argument)
    if not -len(text) <= number < len(text):
        raise IndexError(number)
    return slice(number, number + 1 or None)


def _repeated(meter: Meter, left: Any, right: Any) -> Any:
    """A text or a list times a number."""
    value, count = (left, right) if isinstance(left, str | list | tuple) else (right, left)
    times = max(0, operator.index(count))
    if isinstance(value, str):
        meter.spend(1, times * len(value))
        return with_marks(plain(value) * times, marks(value) * times)
    meter.spend(1 + times * len(value))
    return value * times


def _raise_exception(message: Any = "") -> None:
    raise RefusalError(message if isinstance(message, str) else "")


def _strftime_now(format: str) -> str:
    if not isinstance(format, str) or len(format) > _LONGEST_DATE:
        refuse(f"it formats the date with more than {_LONGEST_DATE} characters")
    return like(datetime.now().strftime(plain(format)), format)


GLOBALS: dict[str, Callable[..., Any]] = {
    "range": safe_range,
    "dict": dict,
    "namespace": Namespace,
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
}


# -- filters and tests -------------------------------------------------------------------------------------------------


def _metered(operation: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is given the meter of its rendering."""

    def metered(context: Context, *args: Any, **kwargs: Any) -> Any:
        meter = _meter(context)
        meter.spend()
        return operation(meter, *args, **kwargs)

    return metered


def _getter(context: Context, attribute: Any) -> Callable[[Any], Any] | None:
    """What reads `attribute="a.b"` of each value; None where there is none."""
    if attribute is None:
        return None
    parts = [int(part) if part.isdigit() else part for part in str(attribute).split(".")]

    def read(value: Any) -> Any:
        for part in parts:
            value = context.environment.getitem(value, part)
        return value

    return read


def _with_attribute(operation: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with the argument `attribute`: it sees that of each value instead of the value."""

    def filtered(context: Context, values: Any, *args: Any, attribute: Any = None, **kwargs: Any) -> Any:
        meter = _meter(context)
        meter.spend()
        read = _getter(context, attribute)
        found = values if read is None else [read(each) for each in operations.elements(meter, values)]
        return operation(meter, found, *args, **kwargs)

    return filtered


def _sort(
    context: Context, value: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None
) -> Any:
    return operations.in_order(_meter(context), value, reverse, case_sensitive, _getter(context, attribute))


def _sum(context: Context, value: Any, attribute: Any = None, start: Any = 0) -> int | float:
    meter, read = _meter(context), _getter(context, attribute)
    found = operations.elements(meter, value)
    return operations.total(meter, [start, *(found if read is None else map(read, found))])


def _extreme(last: bool) -> Callable[..., Any]:
    """The `min` and `max` filters."""

    def found(context: Context, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Any:
        ordered = _sort(context, value, last, case_sensitive, attribute)
        return ordered[0] if ordered else context.environment.undefined("there is nothing to choose from")

    return found


def _dictsort(
    meter: Meter, value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False
) -> list[tuple[Any, Any]]:
    place = {"key": 0, "value": 1}[by]
    pairs = operations.elements(meter, value.items())
    return operations.in_order(meter, pairs, reverse, case_sensitive, lambda pair: pair[place])


def _chosen(name: str) -> Callable[..., Any]:
    """A filter of Jinja's that picks or maps values one by one, as a list that is paid for."""
    jinja = getattr(filters, f"sync_do_{name}", None) or getattr(filters, f"do_{name}")

    def listed(context: Context, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        meter = _meter(context)
        items = operations.elements(meter, value)
        return operations.elements(meter, jinja(context, items, *args, **kwargs))

    return listed


def _end(last: bool) -> Callable[..., Any]:
    """The `first` and `last` filters."""

    def found(context: Context, value: Any) -> Any:
        items = operations.elements(_meter(context), value)
        return items[-1 if last else 0] if items else context.environment.undefined("there is no first or last item")

    return found


def _reverse(meter: Meter, value: Any) -> Any:
    if isinstance(value, str):
        meter.spend(1, len(value))
        return sliced(value, slice(None, None, -1))
    return operations.elements(meter, value)[::-1]


def _items(meter: Meter, value: Any) -> list[tuple[Any, Any]]:
    return [] if isinstance(value, Undefined) else operations.elements(meter, value.items())


def _round(meter: Meter, value: Any, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > _LARGEST_POWER:
        refuse(f"it rounds to more than {_LARGEST_POWER} places")
    return filters.do_round(value, precision, method)  # type: ignore[arg-type]


def _cased(change: Callable[[str], str]) -> Callable[..., Any]:
    """A filter that changes letters."""
    method = operations.changing_case(change)
    return lambda meter, value: method(meter, operations.text_of(meter, value))


def _replace(meter: Meter, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    value, old, new = (operations.text_of(meter, each) for each in (value, old, new))
    return operations.replaced(meter, value, old, new, count)


def _iterate(meter: Meter, value: Any, steps: int, characters: int) -> _Turns:
    if isinstance(value, LoopContext):
        raise TypeError("a loop goes through itself")
    return _Turns(meter, operations.elements(meter, value), steps, characters)


def _weigh(meter: Meter, value: Any) -> Any:
    meter.weigh(value)
    return value


def _look_in(meter: Meter, value: Any) -> Any:
    """What something is looked for in: in a mapping that takes one step."""
    return value if isinstance(value, Mapping) else _weigh(meter, value)


def _slice(meter: Meter, value: Any, start: Any, stop: Any, step: Any) -> Any:
    part = slice(start, stop, step)
    if isinstance(value, str):
        meter.spend(1, len(value))
        return sliced(value, part)
    if isinstance(value, list | tuple | range):
        meter.spend(len(range(*part.indices(len(value)))))
        return value[part]
    return value[part]  # raises


def _key(meter: Meter, value: Any) -> Any:
    if not isinstance(value, _SCALARS):
        raise TypeError(f"a key is of type {type(value).__name__}")
    return _weigh(meter, value)


# By the meter.
FILTERS: dict[str, Callable[..., Any]] = {
    ITERATE: _iterate,
    SPEND: lambda meter, nothing, steps, characters: meter.spend(steps, characters),
    WEIGH: _weigh,
    LOOK_IN: _look_in,
    CONCAT: lambda meter, values: operations.joined_by(meter, values),
    SLICE: _slice,
    KEY: _key,
    "trim": operations.trimmed,
    "upper": _cased(str.upper),
    "lower": _cased(str.lower),
    "capitalize": _cased(str.capitalize),
    "title": _cased(filters.do_title),
    "replace": _replace,
    "indent": operations.indented,
    "tojson": operations.as_json,
    "string": operations.text_of,
    "safe": lambda meter, value: value,
    "length": lambda meter, value: len(value),
    "count": lambda meter, value: len(value),
    "list": operations.elements,
    "reverse": _reverse,
    "items": _items,
    "dictsort": _dictsort,
    "default": lambda meter, *args, **named: filters.do_default(*args, **named),
    "d": lambda meter, *args, **named: filters.do_default(*args, **named),
    "int": lambda meter, value, default=0, base=10: filters.do_int(_weigh(meter, value), default, base),
    "float": lambda meter, value, default=0.0: filters.do_float(_weigh(meter, value), default),
    "abs": lambda meter, value: abs(_weigh(meter, value)),
    "round": _round,
    "format": lambda meter, text, *values: operations.percent(meter, operations.text_of(meter, text), values),
}
# By the context.
_OF_CONTEXT: dict[str, Callable[..., Any]] = {
    **{name: _chosen(name) for name in ("map", "select", "reject", "selectattr", "rejectattr")},
    "first": _end(last=False),
    "last": _end(last=True),
    "join": _with_attribute(operations.joined_by),
    "unique": _with_attribute(operations.without_repeats),
    "sum": _sum,
    "sort": _sort,
    "min": _extreme(last=False),
    "max": _extreme(last=True),
}
_TESTS = (
    *("defined", "undefined", "none", "boolean", "true", "false", "integer", "float", "number", "string", "mapping"),
    *("iterable", "sequence", "callable", "odd", "even", "divisibleby", "lower", "upper", "sameas", "in"),
    *("eq", "==", "equalto", "ne", "!=", "gt", ">", "greaterthan", "ge", ">=", "lt", "<", "lessthan", "le", "<="),
)
_BY_TYPE = frozenset(_TESTS[: _TESTS.index("odd")])  # they do not look into a value


def _metered_test(name: str) -> Callable[..., Any]:
    """A test of Jinja's that pays for what it compares."""
    test: Callable[..., object] = tests.TESTS[name]  # type: ignore[assignment]

    def metered(context: Context, *values: Any) -> bool:
        meter = _meter(context)
        meter.spend()
        for value in () if name in _BY_TYPE else values:
            _look_in(meter, value)
        return bool(test(*values))

    return metered
