"""Columns of cells as channels of numbers: which of them are times or words, and what each cell of the others says.

Knows columns. Does not know how a text becomes rows (`table`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from titans_tasks.errors import DataError
from titans_tasks.numerals import Decimal, is_gap, is_infinite, is_numeral, looks_like_quantity, sentinels

# Words in the names of columns that are times or row numbers where they rise from row to row.
_ROW_NUMBERS = frozenset({"index", "id", "step", "row", "no", "nr", "number", "#", "nummer"})
TIMES = _ROW_NUMBERS | {
    *("time", "date", "datetime", "timestamp", "t", "epoch", "unix"),
    *("zeit", "datum", "uhrzeit", "temps", "heure", "fecha"),
}
_CALENDAR = frozenset({"year", "month", "day", "hour", "minute", "second", "weekday", "dayofyear", "doy"})


@dataclass(frozen=True)
class Table:
    """Numbers of a text. `values` float64 [T, F], NaN where a cell had no value; `columns` are the F names."""

    values: NDArray[np.float64]
    columns: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One row of cells."""

    line: int  # in the file, from 1
    cells: tuple[str, ...]


def numbers_of(body: list[Row], names: tuple[str, ...], notes: list[str], name: str, separator: str) -> Table:
    """The channels of a table.

    Args:
        body: rows of one length, without the header.
        names: of the columns.
        notes: what was noticed so far.
        name: of the file, for messages.
        separator: between its cells.

    Raises:
        DataError: there is no column of numbers, or a cell of one is not a number or could be two.
    """
    columns = list(zip(*(row.cells for row in body), strict=True)) or [()] * len(names)
    decimal = Decimal.of(columns, separator, name)
    if decimal.comma:
        notes.append("commas are decimal commas")
    used: list[str] = []
    found: list[NDArray[np.float64]] = []
    for place, (column, cells) in enumerate(zip(names, columns, strict=True)):
        why = _why_skipped(column, cells, decimal, place, len(names))
        if why is not None:
            if why:
                notes.append(f"skipped {column}: {why}")
            continue
        values = np.array(
            [_value(cell, row.line, column, decimal, name) for cell, row in zip(cells, body, strict=True)]
        )
        filled = sentinels(values)
        if len(filled):
            marks = ", ".join(f"{value:g}" for value in filled)
            notes.append(f"{column}: took {marks} for gaps, far outside all other values")
            values[np.isin(values, filled)] = np.nan
        used.append(column)
        found.append(values)
    if not found:
        sample = ", ".join(repr(cell) for cell in (body[0].cells if body else ())[:4])
        raise DataError(f"{name} has no column of numbers (its first row is {sample})", "give one step per line")
    return Table(np.stack(found, 1), tuple(used), tuple(notes))


def _why_skipped(column: str, cells: Sequence[str], decimal: Decimal, place: int, width: int) -> str | None:
    """Why a column is not a channel, "" where there is nothing to say, or None for a channel."""
    values = [cell for cell in cells if not is_gap(cell)]
    if not values:
        return "" if column.startswith("column ") else "it is empty"
    numerals = [cell for cell in values if decimal.reads(cell) or is_infinite(cell)]
    if not numerals and not any(map(looks_like_quantity, values)):
        return f"it is not numbers ({values[0]!r})"
    if column.lower() in _CALENDAR and width > 1:
        return "it is part of the time"
    if width == 1 or len(numerals) < len(values) or len(values) < len(cells):
        return None
    word = re.sub(r"[^a-z#]+", " ", column.lower()).split()
    named = bool(TIMES.intersection(word)) or column.lower().startswith("unnamed")
    if place == 0 and counts(cells):
        return "it counts the rows"
    numbers = [decimal.value(cell) for cell in cells]
    rising = all(a < b for a, b in itertools.pairwise(numbers))
    if rising and (named or (place == 0 and _are_times(numbers))):
        return "it is the time"
    return None


def counts(cells: Sequence[str]) -> bool:
    """Whether the cells are numbers one step apart each, as of rows or of a clock."""
    if len(cells) < 3 or not all(map(is_numeral, cells)):
        return False
    numbers = np.array([float(cell) for cell in cells])
    steps = np.diff(numbers)
    return bool(steps[0] > 0 and np.allclose(steps, steps.mean(), rtol=0.1, atol=0))


def _are_times(numbers: Sequence[float]) -> bool:
    """Whether rising numbers are seconds, milliseconds, micro- or nanoseconds since 1970, or days as YYYYMMDD."""
    first, last = numbers[0], numbers[-1]
    if any(3e8 * unit <= first and last <= 5e9 * unit for unit in (1, 1e3, 1e6, 1e9)):
        return True
    days = all(number.is_integer() and 1800_01_01 <= number <= 2200_12_31 for number in numbers)
    return days and all(1 <= number // 100 % 100 <= 12 and 1 <= number % 100 <= 31 for number in numbers)


def _value(cell: str, line: int, column: str, decimal: Decimal, name: str) -> float:
    if is_gap(cell):
        return math.nan
    if is_infinite(cell):
        raise DataError(
            f"{name} row {line}: {cell!r} of {column} is infinite", "leave the cell empty if there is no value"
        )
    if not decimal.reads(cell):
        raise DataError(
            f"{name} row {line}: {cell!r} of {column} is not a number",
            "keep only columns of numbers, written such as -1234.5, and leave cells without a value empty",
        )
    value = decimal.value(cell)
    if math.isinf(value):
        raise DataError(f"{name} row {line}: {cell!r} of {column} is too large for a 64-bit number", "use another unit")
    return value
