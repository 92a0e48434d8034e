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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from titans_core.errors import DataError

SHORTEST = 64  # steps; less than that has no training part worth the name


@dataclass(frozen=True)
class Series:
    """One recording. `values` float64 [T, F], all finite; `observed` bool [T], False where a gap was filled."""

    name: str
    values: NDArray[np.float64]
    observed: NDArray[np.bool_]
    season: int  # steps in the most obvious period; 1 if there is none

    def __post_init__(self) -> None:
        if len(self.values) < SHORTEST:
            raise DataError(f"{self.name} has {len(self.values)} steps; give a series of at least {SHORTEST}")
        if not 1 <= self.season <= len(self.values) // 2:
            raise DataError(
                f"a season of {self.season} steps does not fit {self.name}, which has {len(self.values)};"
                f" use 1 to {len(self.values) // 2}"
            )

    @property
    def features(self) -> int:
        """Channels."""
        return int(self.values.shape[1])


@dataclass(frozen=True)
class Source:
    """A series that a package ships: its domain in words, its season, and how to read it."""

    domain: str
    season: int
    read: Callable[[], tuple[NDArray[np.float64], NDArray[np.bool_]]]


def read_series(source: str, *, season: int | None = None) -> Series:
    """The series called `source` in `SOURCES`, or the one in the file of that name.

    Files are .npy (float or integer [T] or [T, F]) or .csv (one step per line, a header line or none, a first column
    that is not a number is taken for the time and left out).

    Args:
        source: a name, or the path of a file.
        season: steps in a period; None is what `SOURCES` knows, or 1 for a file.

    Raises:
        DataError: no such name or file, a package that is not installed, or data that are not a series.
    """
    if source in SOURCES:
        known = SOURCES[source]
        values, observed = known.read()
        return Series(source, values, observed, known.season if season is None else season)
    path = Path(source)
    if not path.is_file():
        raise DataError(f"there is no series and no file {source}; name a .csv or .npy file, or one of {_names()}")
    if path.suffix not in (".csv", ".npy"):
        raise DataError(f"{path} is neither .csv nor .npy; save the series as one of them, one step per line")
    values = _read_npy(path) if path.suffix == ".npy" else _read_csv(path)
    return Series(path.name, values, np.ones(len(values), np.bool_), 1 if season is None else season)


def _names() -> str:
    return ", ".join(sorted(SOURCES))


# -- files -------------------------------------------------------------------------------------------------------------


def _read_npy(path: Path) -> NDArray[np.float64]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a NumPy array ({error}); write it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise DataError(f"{path} is not an array of numbers [T] or [T, F]; write it with numpy.save")
    return _finite(path.name, array.astype(np.float64).reshape(len(array), -1))


def _read_csv(path: Path) -> NDArray[np.float64]:
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} ({error}); give comma-separated text in UTF-8") from error
    header = bool(rows) and not any(_is_number(cell) for cell in rows[0])
    body = rows[1:] if header else rows
    first = 1 if body and len(body[0]) > 1 and not _is_number(body[0][0]) else 0
    width = len(body[0]) if body else 0
    lines = []
    for number, row in enumerate(body, 2 if header else 1):
        cells = row[first:]
        wrong = next((cell for cell in cells if not _is_number(cell)), None)
        if wrong is not None:
            raise DataError(f"{path} row {number}: {wrong!r} is not a number; keep only columns of numbers")
        if len(row) != width:
            raise DataError(f"{path} row {number} has {len(row)} columns, the first has {width}; make them equal")
        lines.append([float(cell) for cell in cells])
    return _finite(path.name, np.array(lines, np.float64).reshape(len(lines), width - first))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _finite(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        step, channel = wrong[0]
        raise DataError(
            f"{name}: step {step} of channel {channel} is {values[step, channel]}; fill it in or cut the series there"
        )
    return values


# -- packages ----------------------------------------------------------------------------------------------------------


def _package_file(package: str, name: str) -> str:
    """The text of a data file, without importing its package (which would import pandas)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"{package}, which ships this series, is not installed; run: pip install {package.replace('_', '-')}"
        )
    path = Path(spec.submodule_search_locations[0]) / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{package} has no {name} ({error.strerror}); install the version of the [data] extra"
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


def _weather() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return _timed("vega_datasets", "_data/seattle-weather.csv", ("date", "temp_max"), "%Y/%m/%d", 24 * 60)


SOURCES: dict[str, Source] = {
    "sea-temperature": Source("oceanography: a buoy on the Western Maine Shelf, °C every half hour", 48, _sea),
    "glucose": Source("medicine: continuous blood glucose of one person, mg/dL every 5 minutes", 288, _glucose),
    "pulse": Source("physiology: light through a finger, 117 readings a second", 117, _pulse),
    "unemployment": Source("economics: US unemployment since 1948, % every month, not adjusted", 12, _unemployment),
    "daily-maximum": Source("meteorology: Seattle, highest temperature of the day, °C", 365, _weather),
}
