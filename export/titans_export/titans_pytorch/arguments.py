"""Constructor arguments from JSON, read one by one: each has a type, a default and a place in error messages.

Knows JSON values only. What the arguments mean is `options`' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from titans_export.errors import ExportError

_CORRECT = "correct the configuration"


class ConfigError(ExportError):
    """A configuration that is no constructor call of titans-pytorch, or asks for something that is not carried over."""


class Arguments:
    """The keyword arguments of one constructor.

    Args:
        owner: the class, for error messages.
        values: the arguments as JSON values.
        source: the package and version whose constructor it is.
    """

    def __init__(self, owner: str, values: object, source: str = "titans-pytorch 0.5.5") -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"arguments are {values!r}, expected an object of keyword arguments", _CORRECT, where=owner
            )
        self.owner, self.source = owner, source
        self._values: Mapping[str, Any] = values
        self._read: set[str] = set()

    def fail(self, name: str, expected: str) -> NoReturn:
        """Refuse the value of an argument."""
        raise ConfigError(f"{name} is {self._values.get(name)!r}, expected {expected}", _CORRECT, where=self.owner)

    def value(self, name: str, default: Any = None) -> Any:
        """Whatever is there."""
        self._read.add(name)
        return self._values.get(name, default)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number; without a default it has to be given."""
        value = self.value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.fail(name, f"a whole number from {least}")
        return value

    def optional_integer(self, name: str) -> int | None:
        """A whole number or null."""
        return None if self.value(name) is None else self.integer(name)

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self.value(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            self.fail(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.value(name, default)
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers or null."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or any(not isinstance(v, int) or isinstance(v, bool) for v in value):
            self.fail(name, "a list of whole numbers")
        return tuple(value)

    def irrelevant(self, *names: str) -> None:
        """Arguments that decide how a model starts or how fast it computes, not what it computes."""
        self._read.update(names)

    def refuse(self, name: str, allowed: object, why: str, remedy: str) -> None:
        """An option that is not carried over unless it has this value."""
        if self.value(name, allowed) != allowed:
            raise ConfigError(f"{name} is not carried over: {why}", remedy, where=self.owner)

    def finish(self) -> None:
        """Refuse what is left."""
        if unknown := sorted(set(self._values) - self._read):
            raise ConfigError(
                f"{self.owner} of {self.source} has no argument {unknown[0]!r}",
                "correct the configuration"
                + (
                    ", or write it from the model with titans_export.titans_pytorch.config_from_model.write_config"
                    if self.source.startswith("titans-pytorch")
                    else ""
                ),
            )


def constructor(owner: str, value: object) -> tuple[str, object]:
    """The class and the arguments of `{"class": name, "args": {…}}`; args may be absent."""
    if not isinstance(value, Mapping) or not isinstance(value.get("class"), str) or set(value) - {"class", "args"}:
        raise ConfigError(f'{owner} is {value!r:.200}, expected {{"class": name, "args": {{…}}}}', _CORRECT)
    return value["class"], value.get("args", {})
