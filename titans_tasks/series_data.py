"""Real time series: those that installed packages ship, and the user's own files, on a regular grid of steps.

Nothing is downloaded. A gap in the recording is filled with the last value seen, which a forecaster at that moment also
had, and is marked, so that nobody is judged by a value nobody measured.

Knows where series come from and how they are checked. Does not know models, normalisation or training.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from titans_tasks.errors import DataError
from titans_tasks.table import read_table
from titans_tasks.textfile import read_bytes, read_text, suffix_of

SHORTEST = 64  # steps; less than that has no training part worth the name
_ENDINGS = (".csv", ".tsv", ".txt", ".dat", ".npy")


@dataclass(frozen=True)
class Series:
    """One recording. `values` float64 [T, F], all finite; `observed` bool [T], False where a gap was filled."""

    name: str
    values: NDArray[np.float64]
    observed: NDArray[np.bool_]
    season: int  # steps in the most obvious period; 1 if there is none
    columns: tuple[str, ...] = ()  # a name per channel; () is "column 1" and so on
    notes: tuple[str, ...] = ()  # what was read and what was not, for a person

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(self, "columns", tuple(f"column {i}" for i in range(1, self.features + 1)))
        if len(self.values) < SHORTEST:
            raise DataError(f"{self.name} has {len(self.values)} steps", f"give a series of at least {SHORTEST}")
        if not 1 <= self.season <= len(self.values) // 2:
            raise DataError(
                f"a season of {self.season} steps does not fit {self.name}, which has {len(self.values)}",
                f"use 1 to {len(self.values) // 2}",
            )

    def of_columns(self, columns: Sequence[str]) -> Series:
        """The channels called `columns`, in that order. Where one side has no names, the series stays as it is.

        Raises:
            DataError: it has no such columns.
        """
        own = self.columns
        if own == tuple(columns) or not _named(columns) or (self.features == len(columns) and not _named(own)):
            return self
        if self.name in SOURCES and len(columns) == 1 == self.features:
            return self
        missing = [column for column in columns if column not in own]
        if missing:
            raise DataError(
                f"{self.name} has the columns {_listed(own)}, and the model was trained on {_listed(tuple(columns))}",
                f"give a file with {missing[0]}, or rename its columns",
            )
        places = [own.index(column) for column in columns]
        return replace(self, values=np.ascontiguousarray(self.values[:, places]), columns=tuple(columns))

    @property
    def features(self) -> int:
        """Channels."""
        return int(self.values.shape[1])


@dataclass(frozen=True)
class Source:
    """A series that a package ships: its domain in words, its season, how to read it, and names of its channels.

    A series without names has one channel, which is called as the series is.
    """

    domain: str
    season: int
    read: Callable[[], tuple[NDArray[np.float64], NDArray[np.bool_]]]
    columns: tuple[str, ...] = ()


def read_series(source: str, *, season: int | None = None) -> Series:
    """The series called `source` in `SOURCES`, or the one in the file of that name.

    Files are .npy (float or integer [T] or [T, F], NaN for a gap) or text with one step per line (`read_table`),
    compressed with gzip or not. A column of times or row numbers is left out; `Series.notes` says so.

    Args:
        source: a name, or the path of a file.
        season: steps in a period; None is what `SOURCES` knows, or 1 for a file.

    Raises:
        DataError: no such name or file, a package that is not installed, or data that are not a series.
    """
    if source in SOURCES:
        known = SOURCES[source]
        values, observed = known.read()
        gaps = f", gaps filled in {int((~observed).sum()):,}" if not observed.all() else ""
        notes = (f"{len(values):,} steps of {known.domain}{gaps}",)
        own_season = known.season if season is None else season
        return Series(source, values, observed, own_season, known.columns or (source,), notes)
    path = Path(source)
    if not path.is_file():
        raise DataError(f"there is no series and no file {source}", f"name a .csv or .npy file, or one of {_names()}")
    return _read_file(path, 1 if season is None else season)


def _names() -> str:
    return ", ".join(sorted(SOURCES))


# -- files -------------------------------------------------------------------------------------------------------------


def _read_file(path: Path, season: int) -> Series:
    """The series in a file; see `read_series`."""
    ending = suffix_of(path)
    if ending not in _ENDINGS:
        raise DataError(
            f"{path} does not end in {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]}",
            "save the series as one of them, one step per line",
        )
    if ending == ".npy":
        values = _read_npy(path)
        return _filled(path.name, values, tuple(f"column {i}" for i in range(1, values.shape[1] + 1)), (), season)
    text = read_text(path, "save the series as CSV in UTF-8, or an array with numpy.save as .npy")
    table = read_table(text.text, path.name)
    return _filled(path.name, table.values, table.columns, text.notes + table.notes, season)


def _read_npy(path: Path) -> NDArray[np.float64]:
    try:
        array = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError, TypeError) as error:  # also of a size that it claims
        raise DataError(f"{path} is not a NumPy array ({error})", "write it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim not in (1, 2) or not array.size:
        raise DataError(f"{path} is not an array of numbers [T] or [T, F]", "write it with numpy.save")
    values = array.astype(np.float64).reshape(len(array), -1)
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        step, channel = infinite[0]
        raise DataError(
            f"step {step} of channel {channel} is infinite", "write NaN if there is no value", where=path.name
        )
    return values


def _filled(
    name: str, values: NDArray[np.float64], columns: tuple[str, ...], notes: tuple[str, ...], season: int
) -> Series:
    """`values` [T, F] with gaps filled by the last value; steps before every channel has one are left out."""
    if len(values) < SHORTEST <= values.shape[1]:
        raise DataError(f"{name} has {len(values)} steps of {values.shape[1]} channels", "give one step per row")
    known = np.isfinite(values)
    empty = ~known.any(0)
    if len(values) and empty.any():
        raise DataError(f"{columns[int(np.argmax(empty))]} has no values", "leave it out", where=name)
    first = int(known.argmax(0).max()) if len(values) else 0
    values, known = values[first:], known[first:]
    latest = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], 0), axis=0)
    observed = np.asarray(known.all(1))
    summary = [
        f"{len(values):,} steps of {len(columns)} column{'' if len(columns) == 1 else 's'} ({_listed(columns)})",
        *notes,
        *([f"left out {first} steps before the first value of every column"] if first else []),
        *([f"filled gaps in {len(values) - int(observed.sum()):,} steps"] if not observed.all() else []),
    ]
    filled = np.take_along_axis(values, latest, axis=0)
    return Series(name, filled, observed, season, columns, tuple(summary))


def _named(columns: Sequence[str]) -> bool:
    """Whether the columns have names of their own, rather than `column 1` and so on."""
    return any(not re.fullmatch(r"column \d+", column) for column in columns)


def _listed(columns: tuple[str, ...]) -> str:
    return ", ".join(columns if len(columns) <= 8 else (*columns[:7], f"{len(columns) - 7} more"))


# -- packages ----------------------------------------------------------------------------------------------------------


def _package_file(package: str, name: str) -> str:
    """The text of a data file, without importing its package (which would import pandas)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"{package}, which ships this series, is not installed", f"run: pip install {package.replace('_', '-')}"
        )
    path = Path(spec.submodule_search_locations[0]) / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{package} has no {name} ({error.strerror})", "install the version of the [data] extra"
        ) from error
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def _timed(
    package: str, name: str, columns: tuple[str, str], form: str, minutes: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A column of readings with their times, as one reading every `minutes`: the last one in each interval."""
    when, what = columns
    rows = list(csv.DictReader(io.StringIO(_package_file(package, name))))
    times = [datetime.strptime(row[when], form).replace(tzinfo=UTC) for row in rows]
    places = np.array([round((time - times[0]).total_seconds() / 60 / minutes) for time in times])
    values = np.full(places.max() + 1, np.nan)
    values[places] = [float(row[what]) for row in rows]
    observed = np.isfinite(values)
    latest = np.maximum.accumulate(np.where(observed, np.arange(len(values)), 0))
    return values[latest][:, None], observed


def _sea() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    columns = ("time (UTC)", "temperature (celsius)")
    return _timed("bokeh_sampledata", "_data/sea_surface_temperature.csv.gz", columns, "%Y-%m-%dT%H:%M:%SZ", 30)


def _glucose() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return _timed("bokeh_sampledata", "_data/CGM.csv.gz", ("datetime", "glucose"), "%Y-%m-%d %H:%M:%S", 5)


def _unemployment() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rows = csv.DictReader(io.StringIO(_package_file("bokeh_sampledata", "_data/unemployment1948.csv")))
    months = [value for row in rows for name, value in row.items() if name not in ("Year", "Annual")]
    values = np.array([float(value) for value in months if value.strip()])
    return values[:, None], np.ones(len(values), np.bool_)


def _pulse() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rows = csv.DictReader(io.StringIO(_package_file("heartpy", "data/data2.csv")))
    values = np.array([float(row["hr"]) for row in rows])
    return values[:, None], np.ones(len(values), np.bool_)


def _stocks() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Logarithms of prices, so that a change is a return whatever the price."""
    rows = list(csv.DictReader(io.StringIO(_package_file("bokeh_sampledata", "_data/stocks.csv.gz"))))
    prices = [
        [float(row["Adj Close"]) for row in rows if row["Ticker"] == ticker] for ticker in ("AAPL", "IBM", "MSFT")
    ]
    values = np.log(np.array(prices).T)
    return values, np.ones(len(values), np.bool_)


def _weather() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return _timed("vega_datasets", "_data/seattle-weather.csv", ("date", "temp_max"), "%Y/%m/%d", 24 * 60)


SOURCES: dict[str, Source] = {
    "sea-temperature": Source("oceanography: a buoy on the Western Maine Shelf, °C every half hour", 48, _sea),
    "glucose": Source("medicine: continuous blood glucose of one person, mg/dL every 5 minutes", 288, _glucose),
    "pulse": Source("physiology: light through a finger, 117 readings a second", 117, _pulse),
    "unemployment": Source("economics: US unemployment since 1948, % every month, not adjusted", 12, _unemployment),
    "stocks": Source("finance: logarithms of closing prices by trading day", 5, _stocks, ("Apple", "IBM", "Microsoft")),
    "daily-maximum": Source("meteorology: Seattle, highest temperature of the day, °C", 365, _weather),
}
