"""Tables are read as spreadsheets, loggers and programs write them, or refused with words that fit; never misread."""

from __future__ import annotations

import gzip
import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_tasks.errors import DataError
from titans_tasks.series_data import read_series
from titans_tasks.table import read_table
from titans_tasks.textfile import read_text

STEPS = 80
WAVE = [round(20 + 5 * math.sin(i / 9), 4) for i in range(STEPS)]
SLOW = [round(3 - 2 * math.cos(i / 17), 2) for i in range(STEPS)]
GAPS = ["", "nan", "NaN", "NA", "N/A", "#N/A", "-", "null", "None", "#DIV/0!", "?", "--", "-nan", "1.#QNAN"]


def rows(*columns: list[object], separator: str = ",", header: str = "", end: str = "\n") -> str:
    lines = [separator.join(map(str, cells)) for cells in zip(*columns, strict=True)]
    return end.join([*([header] if header else []), *lines, ""])


def commas(values: list[float]) -> list[str]:
    return [str(value).replace(".", ",") for value in values]


DATES = [f"2026-01-{1 + i // 24:02} {i % 24:02}:00" for i in range(STEPS)]
GERMAN = [f"{1 + i // 24:02}.01.2026 {i % 24:02}:00" for i in range(STEPS)]
COUNT = list(range(STEPS))
BOTH, ONE = ("a", "b"), ("a",)
READ = {
    "a header": (rows(WAVE, SLOW, header="a,b"), BOTH),
    "no header": (rows(WAVE, SLOW), ("column 1", "column 2")),
    "one column": (rows(WAVE, header="a"), ONE),
    "one column without a header": (rows(WAVE), ("column 1",)),
    "dates": (rows(DATES, WAVE, SLOW, header="time,a,b"), BOTH),
    "dates without a header": (rows(DATES, WAVE, SLOW), ("column 2", "column 3")),
    "a date and a time": (rows([d[:10] for d in DATES], [d[11:] for d in DATES], WAVE, header="date,time,a"), ONE),
    "the index of pandas": (rows(COUNT, WAVE, SLOW, header=",a,b"), BOTH),
    "the row names of R": (rows([f'"{i}"' for i in range(1, STEPS + 1)], WAVE, SLOW, header='"a","b"'), BOTH),
    "row numbers without a header": (rows(COUNT, WAVE), ("column 2",)),
    "a clock": (rows([i * 0.25 for i in COUNT], WAVE, header="seconds,a"), ONE),
    "seconds since 1970": (rows([1_700_000_000 + 60 * i + i % 3 for i in COUNT], WAVE, header="when,a"), ONE),
    "days as numbers": (rows([20260100 + i for i in range(1, 29)] * 1, WAVE[:28], header="when,a"), ONE),
    "a calendar": (rows([2026] * STEPS, [1 + i // 28 for i in COUNT], WAVE, header="year,month,a"), ONE),
    "names that are numbers": (rows(DATES, WAVE, SLOW, header="time,1,2"), ("1", "2")),
    "years for names": (rows(WAVE, SLOW, header="2019,2020"), ("2019", "2020")),
    "numbered columns of pandas": (rows(COUNT, WAVE, SLOW, header=",0,1"), ("0", "1")),
    "semicolons and decimal commas": (rows(GERMAN, commas(WAVE), commas(SLOW), separator=";", header="Zeit;a;b"), BOTH),
    "three decimals and commas": (rows([f"{v:.3f}".replace(".", ",") for v in WAVE], COUNT[::-1], separator=";",
                                       header="a;b"), BOTH),
    "semicolons and points": (rows(DATES, WAVE, SLOW, separator=";", header="t;a;b"), BOTH),
    "tabs": (rows(DATES, WAVE, SLOW, separator="\t", header="t\ta\tb"), BOTH),
    "tabs and decimal commas": (rows(commas(WAVE), commas(SLOW), separator="\t", header="a\tb"), BOTH),
    "quoted decimal commas": (rows([f'"{v}"' for v in commas(WAVE)], [f'"{v}"' for v in commas(SLOW)],
                                   header='"a","b"'), BOTH),
    "spaces": (rows([f"  {v:8.4f}" for v in WAVE], SLOW, separator="   ", header="a b"), BOTH),
    "bars": (rows(WAVE, SLOW, separator="|", header="a|b"), BOTH),
    "quotes": (rows([f'"{d}, UTC"' for d in DATES], [f'"{v}"' for v in WAVE], header='"time, UTC","a"'), ONE),
    "spaces after commas": (rows(WAVE, [f" {v}" for v in SLOW], header="a, b"), BOTH),
    "trailing separators": (rows(WAVE, SLOW, [""] * STEPS, header="a,b,"), BOTH),
    "trailing separators below the header": (rows(WAVE, SLOW, [""] * STEPS, header="a,b"), BOTH),
    "carriage returns and line feeds": (rows(WAVE, SLOW, header="a,b", end="\r\n"), BOTH),
    "carriage returns": (rows(WAVE, SLOW, header="a,b", end="\r"), BOTH),
    "line ends written twice": (rows(WAVE, SLOW, header="a,b", end="\r\r\n"), BOTH),
    "comments": ("# made by a logger\n# on a Monday\n" + rows(WAVE, SLOW, header="a,b"), BOTH),
    "a commented header": ("# a b\n" + rows(WAVE, SLOW, separator=" "), BOTH),
    "units": ("time,a,b\n(s),°C,m/s\n" + rows(DATES, WAVE, SLOW), BOTH),
    "a preamble": ("Logger 12\nSerial,4711\n\n" + rows(DATES, WAVE, SLOW, header="time,a,b"), BOTH),
    "a declared separator": ("sep=;\n" + rows(WAVE, SLOW, separator=";", header="a;b"), BOTH),
    "words beside numbers": (rows(DATES, WAVE, ["ok"] * STEPS, SLOW, header="time,a,state,b"), BOTH),
    "an empty column": (rows(WAVE, [""] * STEPS, SLOW, header="a,none,b"), BOTH),
    "signs and exponents": (rows([f"{v:+.6E}" for v in WAVE], SLOW, header="a,b"), BOTH),
    "blank lines at the end": (rows(WAVE, header="a") + "\n\n", ONE),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_in_one_way_is_read(tmp_path: Path, name: str) -> None:
    text, columns = READ[name]
    path = tmp_path / "Table.CSV"
    path.write_text(text, encoding="utf-8", newline="")
    table = read_table(read_text(path, "").text, path.name)
    assert table.columns == columns
    known = {"a": WAVE, "b": SLOW}
    for column, values in zip(columns, table.values.T, strict=True):
        if column == "b" and name == "three decimals and commas":
            assert values.tolist() == COUNT[::-1]
        elif column == "a" or (column not in known and np.isclose(values[0], WAVE[0])):
            assert values == pytest.approx(WAVE[: len(values)], abs=5e-4 if "three" in name else 1e-9)
        else:
            assert values == pytest.approx(SLOW[: len(values)])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "gzip"])
def test_encodings_and_compression(tmp_path: Path, encoding: str) -> None:
    text = rows(DATES, WAVE, header="time,temperature °C")
    path = tmp_path / ("a.csv.gz" if encoding == "gzip" else "a.Csv")
    path.write_bytes(gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding))
    series = read_series(str(path))
    assert series.columns == ("temperature °C",)
    assert series.values[:, 0].tolist() == WAVE


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("separator", [",", ";"])
def test_a_gap_is_filled_with_the_value_before_it_and_said(tmp_path: Path, gap: str, separator: str) -> None:
    cells: list[object] = [gap if i in (7, 8, 40) else value for i, value in enumerate(WAVE)]
    if separator == ";":
        cells = [str(cell).replace(".", ",") if isinstance(cell, float) else cell for cell in cells]
    path = tmp_path / "a.csv"
    path.write_text(rows(DATES, cells, separator=separator, header=f"time{separator}a"))
    series = read_series(str(path))
    expected = [WAVE[6] if i in (7, 8) else WAVE[39] if i == 40 else value for i, value in enumerate(WAVE)]
    assert series.values[:, 0].tolist() == expected
    assert np.flatnonzero(~series.observed).tolist() == [7, 8, 40]
    assert "filled gaps in 3 steps" in series.notes


def test_a_blank_line_is_a_gap_where_there_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(rows(["" if i == 9 else v for i, v in enumerate(WAVE)], header="a"))
    series = read_series(str(tmp_path / "a.csv"))
    assert len(series.values) == STEPS
    assert np.flatnonzero(~series.observed).tolist() == [9]


def test_steps_before_the_first_value_are_left_out_and_said(tmp_path: Path) -> None:
    cells: list[object] = ["" if i < 5 else value for i, value in enumerate(WAVE)]
    (tmp_path / "a.csv").write_text(rows(SLOW, cells, header="b,a"))
    series = read_series(str(tmp_path / "a.csv"))
    assert series.values[:, 1].tolist() == WAVE[5:]
    assert "left out 5 steps before the first value of every column" in series.notes


def test_marks_of_instruments_for_no_value_are_gaps_and_said(tmp_path: Path) -> None:
    cells: list[object] = [-9999.0 if i % 20 == 3 else value for i, value in enumerate(WAVE)]
    (tmp_path / "a.csv").write_text(rows(cells, header="a"))
    series = read_series(str(tmp_path / "a.csv"))
    assert series.values.min() > 10
    assert (~series.observed).sum() == 4
    assert any("took -9999 for gaps" in line for line in series.notes)


def test_a_value_of_nines_among_its_like_is_a_value(tmp_path: Path) -> None:
    cells = [990 + i % 20 for i in COUNT]
    (tmp_path / "a.csv").write_text(rows(cells, header="a"))
    assert read_series(str(tmp_path / "a.csv")).values[:, 0].tolist() == cells


def test_gaps_in_an_array_are_gaps(tmp_path: Path) -> None:
    values = np.array(WAVE)
    values[30] = np.nan
    np.save(tmp_path / "a.npy", values)
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    series = read_series(str(tmp_path / "A.NPY"))
    assert series.values[30, 0] == WAVE[29]
    assert not series.observed[30]


REFUSED = {
    "thousands": (rows([f'"{1000 + i:,}.5"' for i in COUNT], header="a"), "thousands separators"),
    "thousands without a fraction": (rows([f'"{900 + 10 * i:,}"' for i in COUNT], header="a"), "a thousand and more"),
    "thousands between semicolons": (rows([f"{900 + 10 * i:,}" for i in COUNT], SLOW, separator=";", header="a;b"),
                                     "has a comma where"),
    "thousands between tabs": (rows([f"{900 + 10 * i:,}" for i in COUNT], COUNT[::-1], separator="\t", header="a\tb"),
                               "a thousand and more"),
    "thousands with points": (rows([f"{900 + 10 * i:,}".replace(",", ".") for i in COUNT], COUNT[::-1], separator=";",
                                   header="a;b"), "a thousand and more"),
    "millions": (rows([f"{10**6 + i:,}".replace(",", ".") for i in COUNT], header="a"), "thousands separators"),
    "apostrophes": (rows([f"{1000 + i:,}".replace(",", "'") for i in COUNT], header="a"), "thousands separators"),
    "spaces in numbers": (rows([f"{1000 + i:,}".replace(",", " ") for i in COUNT]), "could be 2 numbers or one"),
    "thousands that look like columns": (rows([f"{1000 + i:,}" for i in COUNT]), "could be 2 numbers or one"),
    "decimal commas that look like columns": (rows([f"{i // 7},{i % 7:02}" for i in COUNT]), "could be 2 numbers"),
    "decimal commas below one name": (rows(commas(WAVE), header="a"), "decimal comma"),
    "both marks": (rows(commas(WAVE), SLOW, separator=";", header="a;b"), "has a comma where"),
    "infinity": (rows([*WAVE[:-1], "inf"], header="a"), "is infinite"),
    "minus infinity": (rows([*WAVE[:-1], "-Infinity"], SLOW, header="a,b"), "is infinite"),
    "too large": (rows([*WAVE[:-1], "1e999"], header="a"), "too large for a 64-bit number"),
    "a word": (rows([*WAVE[:-1], "two"], SLOW, header="a,b"), "row 81: 'two' of a is not a number"),
    "units in cells": (rows([f"{v} °C" for v in WAVE], SLOW, header="a,b"), "'20.0 °C' of a is not a number"),
    "percent": (rows(SLOW, [f"{v}%" for v in WAVE], header="b,a"), "% of a is not a number".replace("% ", "%' ")),
    "underscores": (rows([f"{1000 + i:_}" for i in COUNT], header="a"), "thousands separators"),
    "a short row": (rows(WAVE, SLOW) + "1\n", "row 81 has 1 columns"),
    "a total": (rows(DATES, WAVE, header="time,a") + "Total,100\n", "row 82 begins with 'Total'"),
    "the newest first": (rows(DATES[::-1], WAVE, header="time,a"), "newest row first"),
    "no numbers": (rows(DATES, header="time"), "no column of numbers"),
    "one long row": (",".join(map(str, WAVE)), "one step per row"),
    "a column without values": (rows(WAVE[:10], header="a"), "has 10 steps"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path, name: str) -> None:
    text, words = REFUSED[name]
    (tmp_path / "bad.csv").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(DataError, match=words):
        read_series(str(tmp_path / "bad.csv"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04rest", "a workbook .*; save the series as CSV"),
        ("a\n1\n".encode("utf-16-le"), "zero bytes"),
        (b"\x1f\x8bnot gzip at all", "not a whole gzip file"),
        (gzip.compress(b"1\n" * 1000, mtime=0)[:-9], "not a whole gzip file"),
        (b"\xff\xfea", "damaged"),
        ("a\n1\n".encode("utf-32"), "UTF-32; save it in UTF-8"),
        (b"t,a\n" + b"1,2\n" * 100 + b"1," + b"9" * 200_000, "line 102: field larger than field limit"),
    ],
)
def test_files_that_are_not_text_are_refused_by_their_name(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(DataError, match=words):
        read_series(str(tmp_path / "a.csv"))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(*[st.floats(allow_nan=True, allow_infinity=False, width=64)] * 3), min_size=3, max_size=30),
    st.sampled_from([",", ";", "\t"]),
)
def test_what_numpy_writes_is_what_is_read(values: list[tuple[float, ...]], separator: str) -> None:
    array = np.array([(i * 1.5 + 0.25, *row) for i, row in enumerate(values)])
    stream = io.StringIO()
    np.savetxt(stream, array, delimiter=separator, header=separator.join(["when", "a", "b", "c"]), comments="")
    table = read_table(stream.getvalue(), "written.csv")
    for column, found in zip(table.columns, table.values.T, strict=True):
        expected = array[:, ["when", "a", "b", "c"].index(column)]
        assert np.array_equal(found[~np.isnan(found)], expected[~np.isnan(found)])
        assert set(expected[np.isnan(found) & ~np.isnan(expected)]) <= {
            float(f"{s}{'9' * n}") for s in ("", "-") for n in range(3, 17)
        }
