"""A folder is replaced in one step: all of the old or all of the new, and a failure changes nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from titans_format import folders as module

Folders = tuple[Path, Path]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """A new folder, and an old one to be replaced."""
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name, encoding="utf-8")
    return tmp_path / "new", tmp_path / "old"


def contents(*folders: Path) -> list[str]:
    return [(folder / "file").read_text(encoding="utf-8") for folder in folders]


@pytest.fixture(params=["exchange", "two renames"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that can exchange two names, and one that cannot."""
    if request.param != "exchange":
        monkeypatch.setattr(module, "exchange", lambda first, second: False)
    return str(request.param)


def test_a_folder_takes_the_place_of_another_or_of_nothing(system: str, folders: Folders) -> None:
    new, old = folders
    module.replace_folder(new, old)
    assert contents(old, new) == ["new", "old"]
    module.replace_folder(old, old.with_name("third"))
    assert contents(old.with_name("third")) == ["new"]
    assert sorted(path.name for path in old.parent.iterdir()) == ["new", "third"]


def test_a_second_rename_that_fails_undoes_the_first(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = folders
    monkeypatch.setattr(module, "exchange", lambda first, second: False)
    rename: Callable[[Path, Path], Path] = Path.rename

    def failing(path: Path, to: Path) -> Path:
        if (path, to) == (new, old):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space"):
        module.replace_folder(new, old)
    assert contents(new, old) == ["new", "old"]
    assert len(list(old.parent.iterdir())) == 2


def test_the_system_exchanges_two_names_or_says_that_it_cannot(folders: Folders) -> None:
    new, old = folders
    if module.exchange(new, old):
        assert contents(new, old) == ["old", "new"]
    else:
        assert contents(new, old) == ["new", "old"]
    with pytest.raises(FileNotFoundError):
        module.exchange(new, old.with_name("nothing"))
