"""Tables of numbers in text, as spreadsheets, loggers and programs write them.

What can be read in one way only is read: any usual separator, decimal commas beside another separator, a header, rows
of units, comment lines, a column of times or of row numbers, cells that say "no value". What could mean two numbers is
refused, such as `1,234`, and so is a column that mixes numbers with something else.

Knows lines, rows and headers. Does not know what is in the columns (`columns`) or in files (`textfile`).
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from titans_tasks.columns import TIMES, Row, Table, counts, numbers_of
from titans_tasks.errors import DataError
from titans_tasks.numerals import is_gap, is_infinite, is_numeral

_SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas", " ": "spaces"}
_COMMENT = re.compile(r"\s*(#(?!\s*(?:n/?a|name\?|value!|ref!|div/0!|num!|null!|error))|%|//)", re.IGNORECASE)
_SAMPLE = 2000  # rows that the separator is chosen by


def read_table(text: str, name: str) -> Table:
    """The numbers in `text`, which is called `name` in messages.

    Raises:
        DataError: there are no numbers, rows differ in length, or a cell could mean two things.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1)]
    separator, lines = _declared(lines)
    comments = [line for _, line in lines if _COMMENT.match(line)]
    kept = [(number, line) for number, line in lines if not _COMMENT.match(line)]
    while kept and not kept[-1][1].strip():
        kept.pop()
    separator = separator or _separator([line for _, line in kept if line.strip()][:_SAMPLE])
    rows, blank = _rows(kept, separator, name)
    if not rows:
        return Table(np.zeros((0, 1)), (), ())
    rows = _without_empty_end(rows)
    width = Counter(len(row.cells) for row in rows).most_common(1)[0][0]
    preamble, rows = _without_preamble(rows, width, name)
    header, body = _split_header(rows, width)
    if not header and comments:
        header = _header_in(comments[-1], separator, width)
    body = _equal_width(body, width, name, separator)
    units = _units(body)
    body = body[units:]
    names = _names(header, width)
    if not header:
        _refuse_split_numbers(body, separator, name)
    _refuse_odd_rows(body, name)
    notes = [
        *([f"skipped {preamble} lines before the table"] if preamble else []),
        *([f"skipped {len(comments)} comment lines"] if comments else []),
        *([f"skipped {units} rows of units"] if units else []),
        *([f"skipped {blank} blank lines"] if blank and width > 1 else []),
        *([f"cells are separated by {_SEPARATORS[separator]}"] if separator not in ("", ",") else []),
    ]
    if header and any(is_numeral(cell) for cell in header):
        notes.append(f"took the first row ({', '.join(header)}) for a header")
    return numbers_of(body, names, notes, name, separator)


# -- lines to rows -----------------------------------------------------------------------------------------------------


def _declared(lines: list[tuple[int, str]]) -> tuple[str, list[tuple[int, str]]]:
    """The separator that a first line `sep=;` declares, as Excel writes it, and the lines after it."""
    found = re.fullmatch(r'"?sep=(.)"?', lines[0][1].strip(), re.IGNORECASE) if lines else None
    return (found[1], lines[1:]) if found and found[1] in _SEPARATORS else ("", lines)


def _separator(lines: Sequence[str]) -> str:
    """The separator by which most lines have the same number of cells and most cells are numbers; "" for one column."""
    best, best_score = "", 0.0
    for separator in _SEPARATORS:
        rows = [_cells(line, separator) for line in lines]
        widths = Counter(map(len, rows))
        width, count = widths.most_common(1)[0] if widths else (0, 0)
        if width < 2:
            continue
        cells = [cell for row in rows if len(row) == width for cell in row]
        known = sum(_number_like(cell) if separator != "," else is_numeral(cell) for cell in cells)
        score = count / len(rows) * (known + sum(map(is_gap, cells)) + 1) / (len(cells) + 1)
        if score > best_score + (0.1 if separator == " " else 0.0):  # spaces also stand inside cells
            best, best_score = separator, score
    return best


def _comma_numeral(cell: str) -> bool:
    return cell.count(",") == 1 and "." not in cell and is_numeral(cell.replace(",", "."))


def _cells(line: str, separator: str) -> tuple[str, ...]:
    if separator == " ":
        return tuple(line.split())
    if not separator:
        return (line.strip().strip('"').strip(),)
    try:
        return tuple(cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True), []))
    except csv.Error:  # such as a cell of more than 131,072 characters; whoever reads all lines names the line
        return (line,)


def _rows(lines: list[tuple[int, str]], separator: str, name: str) -> tuple[list[Row], int]:
    """The rows, and how many blank lines were left out between them; in a single column a blank line is a gap."""
    if separator in ("", " "):
        parsed = [Row(number, _cells(line, separator)) for number, line in lines]
    else:
        numbers = [number for number, _ in lines]
        reader = csv.reader(
            io.StringIO("\n".join(line for _, line in lines)), delimiter=separator, skipinitialspace=True
        )
        parsed, at = [], 0
        try:
            for cells in reader:
                parsed.append(Row(numbers[at], tuple(cell.strip() for cell in cells)))
                at = min(reader.line_num, len(numbers) - 1)
        except csv.Error as error:
            raise DataError(f"{name} line {numbers[at]}: {error}", "check the quotes") from error
    first = next((i for i, row in enumerate(parsed) if any(row.cells)), len(parsed))
    parsed = parsed[first:]
    if not separator:
        return parsed, 0
    full = [row for row in parsed if row.cells]
    return full, len(parsed) - len(full)


def _without_empty_end(rows: list[Row]) -> list[Row]:
    """Leave out the empty cells that separators at the ends of lines make."""
    width = Counter(len(row.cells) for row in rows).most_common(1)[0][0]
    full = [row for row in rows if len(row.cells) == width]
    if width < 2 or any(row.cells[-1] for row in full[1:]) or len(full) < 2 or full[0].cells[-1]:
        return rows
    return [Row(row.line, row.cells[:-1]) if len(row.cells) == width else row for row in rows]


def _without_preamble(rows: list[Row], width: int, name: str) -> tuple[int, list[Row]]:
    """Leave out what a logger writes before its table: rows of another width, if a header of full width follows."""
    first = next(i for i, row in enumerate(rows) if len(row.cells) == width)
    if not first:
        return 0, rows
    if _is_short_header(rows, width):
        return 0, rows
    if any(is_numeral(cell) for cell in rows[first].cells):
        raise DataError(
            f"{name} row {rows[0].line} has {len(rows[0].cells)} columns, the rows below have {width}",
            "give every"
            " column a name; if a comma is a decimal comma, write a decimal point or separate cells by semicolons",
        )
    return first, rows[first:]


def _is_short_header(rows: list[Row], width: int) -> bool:
    """Whether a header has no name for a first column of row numbers, as R writes it."""
    first, body = rows[0].cells, [row.cells for row in rows[1:] if len(row.cells) == width]
    return len(first) == width - 1 and not any(map(is_numeral, first)) and counts([row[0] for row in body])


def _split_header(rows: list[Row], width: int) -> tuple[tuple[str, ...], list[Row]]:
    first, body = rows[0].cells, [row.cells for row in rows[1:] if len(row.cells) == width]
    if len(first) == width - 1:
        return ("", *first), rows[1:]
    return (first, rows[1:]) if body and _is_header(first, body) else ((), rows)


def _is_header(first: Sequence[str], body: list[tuple[str, ...]]) -> bool:
    """Whether the first row names the columns below it."""
    columns = list(zip(*body, strict=True))
    for cell, column in zip(first, columns, strict=True):
        if is_numeral(cell) or is_gap(cell) or is_infinite(cell):
            continue
        if any(map(_number_like, column)):
            return True  # a word above numbers
        if not re.search(r"\d", cell) and all(re.search(r"\d", other) for other in column if not is_gap(other)):
            return True  # `time` above dates
        if cell.lower() in TIMES:
            return True
    if not first[0] and len(first) > 1 and all(row[0] for row in body):
        return True  # the empty name that pandas gives an index
    return _is_numeric_header(first, columns)


def _is_numeric_header(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    """Whether whole numbers in the first row are names, such as 0, 1, 2 or 2019, 2020, above measured values."""
    named = [(cell, column) for cell, column in zip(first, columns, strict=True) if re.fullmatch(r"\d+", cell)]
    if len(named) < len(first) or len(first) < 2 or len(set(first)) < len(first):
        return False
    numbers = [int(cell) for cell, _ in named]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return False
    bodies = [[cell for cell in column if not is_gap(cell)] for _, column in named]
    if all(re.search(r"[.,]\d|[eE]", cell) for body in bodies for cell in body):
        return True
    ranges = [[float(cell) for cell in body if is_numeral(cell)] for body in bodies]
    return all(
        found and (number > max(found) + (spread := max(found) - min(found)) + 1 or number < min(found) - spread - 1)
        for number, found in zip(numbers, ranges, strict=True)
    )


def _number_like(cell: str) -> bool:
    return is_numeral(cell) or _comma_numeral(cell)


def _header_in(comment: str, separator: str, width: int) -> tuple[str, ...]:
    """The names in a comment line right before the numbers, as numpy.savetxt writes them; () if there are none."""
    cells = _cells(re.sub(r"^\s*(#|%|//)\s*", "", comment), separator)
    return cells if len(cells) == width and not any(map(is_numeral, cells)) else ()


def _units(body: list[Row]) -> int:
    """How many rows below the header hold units: no numbers where the rows below have them."""
    for count, row in enumerate(body[:3]):
        below = body[count + 1 : count + 50]
        columns = list(zip(*(other.cells for other in below), strict=True))
        numeric = [i for i, column in enumerate(columns) if sum(map(_number_like, column)) > len(column) / 2]
        words = [row.cells[i] for i in numeric]
        if not words or any(map(_number_like, words)) or all(is_gap(word) for word in words):
            return count
        if not all(is_gap(word) or re.fullmatch(r"[^\d]{1,12}|.*[/^°²³].*|\[.*\]|\(.*\)", word) for word in words):
            return count
    return 0


def _equal_width(rows: list[Row], width: int, name: str, separator: str) -> list[Row]:
    """The rows, all of one length. Cells beyond the others' are left out where they are empty."""
    equal = []
    for row in rows:
        cells = row.cells
        while len(cells) > width and not cells[-1]:
            cells = cells[:-1]
        if len(cells) != width:
            raise DataError(
                f"{name} row {row.line} has {len(cells)} columns, the first has {width}",
                "make them equal"
                + (" (a decimal comma also splits a cell; write decimal points)" if separator == "," else ""),
            )
        equal.append(Row(row.line, cells))
    return equal


def _refuse_split_numbers(body: list[Row], separator: str, name: str) -> None:
    """Raise where columns without names may be numbers that a decimal comma or a thousands separator cut in two."""
    if separator not in (",", " ") or not body or len(body[0].cells) < 2:
        return
    cells = [row.cells for row in body]
    if not all(re.fullmatch(r"[+-]?[0-9]+", cell) for row in cells for cell in row if not is_gap(cell)):
        return
    rest = [cell for row in cells for cell in row[1:]]
    if all(re.fullmatch("[0-9]{3}", cell) for cell in rest) or any(re.fullmatch("0[0-9]+", cell) for cell in rest):
        example = separator.join(cells[0])
        raise DataError(
            f"{example!r} could be {len(cells[0])} numbers or one",
            "name the columns in a first row, or write numbers with a decimal point and without thousands separators",
            where=name,
        )


def _refuse_odd_rows(body: list[Row], name: str) -> None:
    """Raise for a row of another kind among rows of times, such as `Total`, and for a table that is newest first."""
    first = [(row.line, row.cells[0]) for row in body if not is_gap(row.cells[0])]
    odd = [(line, cell) for line, cell in first if not re.search(r"\d", cell)]
    times = len(body[0].cells) > 1 and not any(_number_like(cell) for _, cell in first) if body else False
    if odd and times and len(odd) <= len(first) / 10:
        line, cell = odd[0]
        raise DataError(f"{name} row {line} begins with {cell!r}, the others with a number or a time", "leave it out")
    dates = [cell for _, cell in first]
    if all(re.match(r"\d{4}-\d\d-\d\d", cell) for cell in dates) and _falls(dates):
        raise DataError(f"{name} has its newest row first ({dates[0]} to {dates[-1]})", "sort it by time")


def _falls(dates: Sequence[str]) -> bool:
    return len(dates) > 1 and all(a >= b for a, b in itertools.pairwise(dates)) and dates[0] > dates[-1]


def _names(header: Sequence[str], width: int) -> tuple[str, ...]:
    """One printable name per column, of at most 80 characters."""
    cleaned = ("".join(c if c.isprintable() else " " for c in cell).strip()[:80] for cell in header or [""] * width)
    return tuple(cell or f"column {i}" for i, cell in enumerate(cleaned, 1))
