"""Files of text as programs of all kinds write them: compressed or not, with a byte order mark, with any line ends.

Knows bytes and characters. Does not know what the text means (`table`, `dna`).
"""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

from titans_format.files import read_given, read_piped
from titans_tasks.errors import DataError

_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_GZIP = b"\x1f\x8b"
# The first bytes of files that people mistake for text.
_OTHERS = {
    b"PK\x03\x04": "a zip archive or a workbook (.xlsx, .ods)",
    b"\xd0\xcf\x11\xe0": "an old workbook (.xls)",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"\x93NUMPY": "a NumPy array",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
}


@dataclass(frozen=True)
class Text:
    """A file's text, its lines ended by `\\n`; `notes` says what was unusual about the file."""

    text: str
    notes: tuple[str, ...] = ()


def suffix_of(path: Path) -> str:
    """The ending of a file's name in lower case, without that of compression: `.csv` of `A.CSV.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_text(path: Path, remedy: str) -> Text:
    """The text in a file: UTF-8, UTF-16 with a byte order mark, or else Windows-1252; compressed with gzip or not.

    Args:
        path: the file.
        remedy: what to do with a file that is not text, for messages.

    Raises:
        DataError: the file is missing, damaged, or holds something else than text.
    """
    data = read_bytes(path)
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        raise DataError(f"{path} is UTF-32", "save it in UTF-8")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    notes: tuple[str, ...] = ()
    if encoding is not None:
        data = data.removeprefix(next(mark for mark, name in _MARKS if name == encoding))
    other = next((what for start, what in _OTHERS.items() if data.startswith(start)), None)
    if other is not None:
        raise DataError(f"{path} is {other}, not text", remedy)
    if encoding is None and b"\0" in data:
        raise DataError(f"{path} has zero bytes in it, so it is neither UTF-8 nor marked as UTF-16", remedy)
    if encoding is None and not _decodes(data):
        encoding, notes = "cp1252", ("read as Windows-1252, because it is not UTF-8",)
    try:
        text = data.decode(encoding or "utf-8", errors="replace" if encoding == "cp1252" else "strict")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is damaged: it is not the {encoding} it begins as ({error.reason})", "fetch or save it again"
        ) from error
    if encoding is not None and encoding.startswith("utf-16"):
        notes = ("read as UTF-16",)
    text = text.replace("\ufeff", "")  # of files that were joined, each with its mark
    # `\r\r\n` is what a program leaves that ends lines twice.
    for end in ("\r\r\n", "\r\n", "\r"):
        text = text.replace(end, "\n")
    return Text(text, notes)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, decompressed where they are gzip's. Raises `DataError`."""
    try:
        data = read_given(path)
        return inflated(data) if data.startswith(_GZIP) else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file ({error})", "fetch or compress it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})", "check the path and its permissions") from error


def inflated(data: bytes) -> bytes:
    """What gzip holds, which may be a thousand times as much: at most as much as of a pipe. Raises as `read_bytes`."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return read_piped(file)


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
