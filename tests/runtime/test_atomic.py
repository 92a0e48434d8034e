"""A file is replaced in one step, keeps its mode, and may have any name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from titans_runtime import atomic


def test_a_file_keeps_its_mode_and_a_new_one_has_that_of_the_process(tmp_path: Path) -> None:
    path, umask = tmp_path / "manifest.json", os.umask(0o022)
    try:
        atomic.replace_file(path, b"one")
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o640)
    atomic.replace_file(path, b"two")
    assert (path.stat().st_mode & 0o777, path.read_bytes()) == (0o640, b"two")
    atomic.replace_file(tmp_path / "private", b"", private=True)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["a" * 240, "\u20ac" * 80, "\udcff.state"])
def test_a_file_may_have_any_name_that_the_system_takes(tmp_path: Path, name: str) -> None:
    atomic.write_atomically(tmp_path / name, b"data")
    assert [path.name for path in tmp_path.iterdir()] == [name]
