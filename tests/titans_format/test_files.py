"""Files that a person names: regular ones, and pipes up to a size; never what has no end."""

from __future__ import annotations

import gzip
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from titans_cli.main import cli
from titans_format import files
from titans_format.files import RefusedFileError, read_given, read_piped
from titans_tasks import textfile
from titans_tasks.documents import read_corpus
from titans_tasks.errors import DataError
from titans_tasks.series_data import read_series


def piped(path: Path, content: bytes) -> threading.Thread:
    """A pipe at `path` that somebody writes to."""
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(content))
    writer.start()
    return writer


def test_a_pipe_is_read_to_its_end_and_a_file_too(tmp_path: Path) -> None:
    writer = piped(tmp_path / "pipe", b"from a pipe")
    assert read_given(tmp_path / "pipe") == b"from a pipe"
    writer.join()
    (tmp_path / "file").write_bytes(b"a" * 3_000_000)
    assert read_given(tmp_path / "file") == b"a" * 3_000_000


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/full", "."])
def test_devices_and_folders_are_refused(name: str) -> None:
    with pytest.raises(RefusedFileError, match="not a file"):
        read_given(name)


def test_a_pipe_without_end_is_refused_at_its_limit() -> None:
    with pytest.raises(RefusedFileError, match="larger than 100 bytes"):
        read_piped(io.BytesIO(b"a" * 101), limit=100)
    assert read_piped(io.BytesIO(b"a" * 100), limit=100) == b"a" * 100


@pytest.mark.parametrize("read", [read_series, lambda source: read_corpus([source]), textfile.read_bytes])
@pytest.mark.parametrize("suffix", ["csv", "npy"])
def test_data_are_never_read_from_a_device(read: object, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"endless.{suffix}").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"device, not a file|there is no series and no file"):
        read(str(tmp_path / f"endless.{suffix}") if read is not textfile.read_bytes else tmp_path / f"endless.{suffix}")  # type: ignore[operator]


def test_what_gzip_holds_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.read_piped, "__defaults__", (10_000,))
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(DataError, match="larger than 10,000 bytes"):
        textfile.read_bytes(tmp_path / "bomb.csv.gz")
    (tmp_path / "sound.csv.gz").write_bytes(gzip.compress(b"a" * 10_000))
    assert textfile.read_bytes(tmp_path / "sound.csv.gz") == b"a" * 10_000


@pytest.mark.parametrize("shape", [(2**40,), (2**62, 4), (2**70,), (-1,)])
def test_an_array_that_claims_to_be_larger_than_its_file_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": shape})
    (tmp_path / "a.npy").write_bytes(content.getvalue() + bytes(800))
    with pytest.raises(DataError, match="is not a"):
        read_series(str(tmp_path / "a.npy"))


@pytest.mark.parametrize("option", ["--prompt-file"])
def test_a_prompt_is_never_read_from_a_device(option: str) -> None:
    result = CliRunner().invoke(cli, ["run", "nothing.titans", option, "/dev/zero"])
    assert result.exit_code == 2
    assert "device, not a file" in result.output
