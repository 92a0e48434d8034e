"""A bundle takes the place of another in one step: there is one at every moment, and a link stays a link."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from titans_export.bundle.writer import staged
from titans_export.errors import ExportError
from titans_format import folders
from titans_format.document import MANIFEST_FILE


def write(out: Path, text: str, overwrite: bool = True) -> None:
    """Something that passes for a bundle where only names count."""
    with staged(out, overwrite) as stage:
        (stage / MANIFEST_FILE).write_text(text, encoding="utf-8")


def read(out: Path) -> str:
    return (out / MANIFEST_FILE).read_text(encoding="utf-8")


def test_a_bundle_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "new" / "model.titans"
    write(out, "one")
    assert out.stat().st_mode & 0o777 == 0o755
    out.chmod(0o750)
    write(out, "two")
    assert (read(out), out.stat().st_mode & 0o777) == ("two", 0o750)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    real, link, nowhere = tmp_path / "there" / "real.titans", tmp_path / "link.titans", tmp_path / "nowhere.titans"
    write(real, "one")
    link.symlink_to(real)
    nowhere.symlink_to(tmp_path / "there" / "other.titans")
    for place in (link, nowhere):
        write(place, "two")
        assert (place.is_symlink(), read(place)) == (True, "two")
    assert read(real) == "two"
    assert sorted(path.name for path in real.parent.iterdir()) == ["other.titans", "real.titans"]
    with pytest.raises(ExportError, match="exists"):
        write(link, "three", overwrite=False)


KILLED = """
import os, sys
from pathlib import Path
from tests.export.test_staged import write
left = int(sys.argv[2])

def counted(event, arguments):
    global left
    if event == "os.rename":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)

sys.addaudithook(counted)
write(Path(sys.argv[1]), "two")
"""


def test_a_kill_at_any_rename_leaves_a_whole_bundle(tmp_path: Path) -> None:
    out = tmp_path / "model.titans"
    for killed_at in (1, 2, 3):
        write(out, "one")
        root = Path(__file__).resolve().parents[2]
        subprocess.run([sys.executable, "-c", KILLED, str(out), str(killed_at)], check=False, cwd=root)
        assert read(out) in ("one", "two")


def test_a_failure_of_the_system_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model.titans"
    write(out, "one")
    rename: Callable[[Path, Path], Path] = Path.rename
    monkeypatch.setattr(folders, "exchange", lambda first, second: False)

    def failing(path: Path, to: Path) -> Path:
        if to == out and not path.name.endswith(".old"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(ExportError, match="No space left"):
            write(out, "two")
    assert read(out) == "one"
    assert list(tmp_path.iterdir()) == [out]


def test_what_came_there_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "model.titans"
    with pytest.raises(ExportError, match="exists"), staged(out, overwrite=False):
        write(out, "somebody else's")
    assert read(out) == "somebody else's"


def test_what_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "model.titans" / "notes.txt"
    notes.parent.mkdir()
    notes.touch()
    with pytest.raises(ExportError, match="is not a bundle"):
        write(notes.parent, "one")
    assert notes.exists()
