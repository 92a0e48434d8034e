"""What a cell of a table says: a number, no value, infinity, or something that could mean two numbers.

Knows spellings. Does not know rows or files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from titans_tasks.errors import DataError

_NUMERAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORDS = "nan +nan -nan na n/a <na> n.a. nd n.d. nat nil none null (null) missing bad err error noread overrange"
_SIGNS = "- -- --- – — . .. ... ? * \\n"
_ERRORS = "#n/a #na #value! #div/0! #num! #ref! #name? #null! #error #error! 1.#qnan -1.#qnan 1.#ind -1.#ind 1.#snan"
_GAPS = frozenset([*_WORDS.split(), *_SIGNS.split(), *_ERRORS.split(), "", "#n/a n/a", "no data", "no reading"])
_INFINITE = re.compile(r"[+-]?(?:inf(?:inity)?|∞|1\.#inf)", re.IGNORECASE)
# Digits in groups of three: `1,234`, `1.234.567`, `1'234`, `1 234`; with a fraction after the other mark.
_MARK = r"[,.'’ \u00a0\u202f_]"
_GROUPS = re.compile(rf"[+-]?[1-9][0-9]{{0,2}}(?P<mark>{_MARK})[0-9]{{3}}(?:(?P=mark)[0-9]{{3}})*(?:[.,][0-9]+)?")
_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?")
_QUANTITY = re.compile(
    r"[<>~≈=]*\s*[$€£¥]?\s*[+-]?[0-9]+(?:[.,][0-9]+)?(?:[eEdD][+-]?[0-9]+)?"  # < 1.5D3
    r"\s*(?:[%‰°$€£¥]\s*[A-Za-z]*|\s[A-Za-zµΩ]+[/^0-9]*[A-Za-z]*)?"  # % or ° C or m/s
)


def is_gap(cell: str) -> bool:
    """Whether the cell says that there is no value."""
    return cell.strip().lower() in _GAPS


def is_infinite(cell: str) -> bool:
    """Whether the cell says infinity."""
    return _INFINITE.fullmatch(cell) is not None


def is_numeral(cell: str) -> bool:
    """Whether the cell is a number with a decimal point or none."""
    return _NUMERAL.fullmatch(_plain(cell)) is not None


def looks_like_quantity(cell: str) -> bool:
    """Whether a person would read a number, perhaps with a unit, in a cell that is not plainly one."""
    return _QUANTITY.fullmatch(cell) is not None


def _plain(cell: str) -> str:
    return cell.replace("\u2212", "-")  # the minus sign of typesetters


@dataclass
class _Marks:
    """A cell of each sort in a column, or ""; `perhaps_` are those that may be groups of thousands, such as `1,234`."""

    grouped: str = ""
    comma: str = ""
    perhaps_comma: str = ""
    point: str = ""
    perhaps_point: str = ""
    bare: str = ""  # a whole number below a thousand

    @classmethod
    def of(cls, cells: Iterable[str]) -> _Marks:
        found = cls()
        for cell in cells:
            groups = _GROUPS.fullmatch(cell)
            if groups and (groups["mark"] not in ",." or len(re.findall("[,.]", cell)) > 1):
                found.grouped = cell
            elif _COMMA.fullmatch(cell):
                found.perhaps_comma, found.comma = (cell, found.comma) if groups else (found.perhaps_comma, cell)
            elif "." in cell and is_numeral(cell):
                found.perhaps_point, found.point = (cell, found.point) if groups else (found.perhaps_point, cell)
            elif re.fullmatch(r"[+-]?[0-9]{1,3}", cell):
                found.bare = cell
        return found


@dataclass(frozen=True)
class Decimal:
    """The decimal mark of a table: a point, or a comma."""

    comma: bool

    @classmethod
    def of(cls, columns: Iterable[Sequence[str]], separator: str, name: str) -> Decimal:
        """The mark that fits all cells of `columns`.

        Raises:
            DataError: numbers are grouped by thousands, or nothing tells groups of thousands from decimals.
        """
        found = [_Marks.of(cells) for cells in columns]
        grouped = next((marks.grouped for marks in found if marks.grouped), "")
        if grouped:
            raise _refusal(name, grouped, "has thousands separators")
        comma = next((marks.comma or marks.perhaps_comma for marks in found if marks.comma or marks.perhaps_comma), "")
        point = next((marks.point or marks.perhaps_point for marks in found if marks.point or marks.perhaps_point), "")
        if comma and point:
            raise _refusal(name, comma, f"has a comma where {point!r} has a point")
        for marks in found:
            # `1,234` above `987` counts thousands as likely as not; above `2,500` it has three decimals.
            doubt = marks.perhaps_comma and not marks.comma and (separator != ";" or marks.bare)
            doubt = doubt or (separator == ";" and marks.perhaps_point and not marks.point and marks.bare)
            if doubt:
                raise _refusal(name, comma or point, "could be a decimal number or a thousand and more")
        return cls(comma=bool(comma))

    def reads(self, cell: str) -> bool:
        """Whether the cell is a number."""
        return is_numeral(cell.replace(",", ".", 1) if self.comma else cell)

    def value(self, cell: str) -> float:
        """The number in a cell that `reads` accepts."""
        return float(_plain(cell.replace(",", ".") if self.comma else cell))


def _refusal(name: str, cell: str, what: str) -> DataError:
    return DataError(
        f"{cell!r} {what}", "write numbers with a decimal point and without thousands separators", where=name
    )


def sentinels(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The numbers in `values` [T] that instruments write for "no value": -999, -9999, 99999 and the like.

    Only those that lie farther from all other values than these from one another.
    """
    known = values[np.isfinite(values)]
    marks = np.array([value for value in np.unique(known) if re.fullmatch(r"-?9{3,}(\.0|\.9+)?", repr(float(value)))])
    others = known[~np.isin(known, marks)]
    if not len(marks) or len(others) < 2:
        return np.zeros(0)
    low, high = others.min(), others.max()
    far = (marks < low - (high - low)) | (marks > high + (high - low))
    return np.asarray(marks[far])
