"""How much work a template may do: a budget of steps and characters, spent before the work is done.

A template may come from a stranger. Time is bounded because every turn of a loop, call and operation is a step, and
because an operation on text spends its characters. Memory is bounded because a string is paid for before it is made.
The budget grows with the messages, so a long conversation has as much for each of its messages as a short one.

Knows numbers and sizes. Does not know Jinja.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

from titans_runtime.chat.user_text import joined

# Templates in use spend up to 150 steps and 12 characters for each character of a message (measured on ten of them);
# a step takes about a microsecond, a character a nanosecond.
STEPS, STEPS_A_PART = 300_000, 3_000
CHARACTERS, CHARACTERS_A_CHARACTER = 4_000_000, 100
MAX_DEPTH = 50  # of calls, one inside of the other, and of lists inside of lists
MAX_BITS = 4096  # of a whole number


class LimitError(Exception):
    """A template asked for more than it may have; the message says what."""


class Meter:
    """What is left for one rendering.

    Args:
        parts: values in the messages: strings, numbers, lists and mappings.
        characters: of all strings in them.
    """

    def __init__(self, parts: int, characters: int) -> None:
        self._most_steps = self._steps = STEPS + STEPS_A_PART * parts
        self._most_characters = self._characters = CHARACTERS + CHARACTERS_A_CHARACTER * characters
        self._depth = 0

    def spend(self, steps: int = 1, characters: int = 0) -> None:
        """Pay for work that is about to be done. Raises `LimitError`."""
        if steps < 0 or characters < 0:
            raise LimitError("it asks for less than no work")
        self._steps -= steps
        self._characters -= characters
        if self._steps < 0:
            raise LimitError(f"it takes more than {self._most_steps:,} steps")
        if self._characters < 0:
            raise LimitError(f"it makes more than {self._most_characters:,} characters of text")

    def weigh(self, value: object, data: bool = False) -> None:
        """Pay for going through a value, however deep: a step for each part, and the characters of its strings.

        Parts that are there several times are paid for as often.

        Args:
            value: any value.
            data: it has to be text, numbers, lists and mappings alone, or undefined.

        Raises:
            LimitError: it costs too much.
            TypeError: it has something else in it.
        """
        if isinstance(value, str):
            return self.spend(1, len(value))
        waiting = [(value, 0)]
        while waiting:
            each, depth = waiting.pop()
            if isinstance(each, str):
                self.spend(1, len(each))
                continue
            inside: Iterable[object]
            if isinstance(each, Mapping):
                inside = (part for pair in each.items() for part in pair)
            elif isinstance(each, list | tuple):
                inside = each
            else:
                if data and not isinstance(each, bool | int | float | range | None) and not _is_undefined(each):
                    raise TypeError(f"a value of type {type(each).__name__} is written as text")
                self.spend(1 + (len(each) if isinstance(each, range) else 0))
                check_number(each)
                continue
            if depth == MAX_DEPTH:
                raise LimitError(f"it has lists in lists, more than {MAX_DEPTH} deep")
            self.spend(1 + len(each))
            waiting += [(part, depth + 1) for part in inside]
        return None

    def join(self, pieces: Iterable[str]) -> str:
        """All pieces, one behind the other, once they are paid for."""
        pieces = list(pieces)
        self.spend(len(pieces), sum(map(len, pieces)))
        return joined(pieces)

    def enter(self) -> None:
        """Begin a call inside of the present one. Raises `LimitError`."""
        if self._depth == MAX_DEPTH:
            raise LimitError(f"its calls are more than {MAX_DEPTH} deep")
        self._depth += 1

    def leave(self) -> None:
        """End it."""
        self._depth -= 1


def check_number(value: object) -> None:
    """Raise `LimitError` for a whole number that is longer than any template needs."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise LimitError(f"it makes a number of more than {MAX_BITS} bits")


def _is_undefined(value: object) -> bool:
    """Whether it is Jinja's undefined value, which is written as nothing."""
    return type(value).__module__ == "jinja2.runtime" and type(value).__name__ == "Undefined"


def size_of(value: object) -> tuple[int, int]:
    """Parts and characters of a value without cycles."""
    parts, characters, waiting = 0, 0, [value]
    while waiting:
        each = waiting.pop()
        parts += 1
        if isinstance(each, str):
            characters += len(each)
        elif isinstance(each, Mapping):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each
    return parts, characters


def refuse(what: str) -> NoReturn:
    """Raise `LimitError`."""
    raise LimitError(what)
