"""A remedy that says what to install is a command that works: it names packages that an index has."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from titans_format.install import install, package, reinstall, upgrade

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"dev"}))
def test_an_extra_is_installed_by_the_names_of_its_packages(extra: str) -> None:
    command, *packages = re.split(" (?=')", install(extra))
    assert command == "pip install"
    assert sorted(package.strip("'") for package in packages) == sorted(EXTRAS[extra])


def test_several_extras_are_one_command_and_options_come_first() -> None:
    both = install("export,cpu", "--force-reinstall")
    assert both.startswith("pip install --force-reinstall '")
    assert both.count("'onnxruntime>=") == 1


def test_sources_that_are_not_installed_say_where_the_packages_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert install("cpu") == "pip install '.[cpu]' in a clone of titans-deploy"


def test_no_remedy_sends_anybody_to_a_package_that_no_index_has() -> None:
    for top in ("titans_core", "titans_tasks", "runtime", "export", "tools"):
        for file in (ROOT / top).rglob("*.py"):
            assert not re.search(r"pip install[^\"]*titans-deploy", file.read_text(encoding="utf-8")), file


class _Installed:
    def __init__(self, record: str | None) -> None:
        self._record = record

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self._record


def _came_from(monkeypatch: pytest.MonkeyPatch, record: object) -> None:
    text = None if record is None else json.dumps(record)
    monkeypatch.setattr(metadata, "distribution", lambda name: _Installed(text))


def test_a_clone_is_installed_again_by_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "my clone"
    folder.mkdir()
    _came_from(monkeypatch, {"url": folder.as_uri(), "dir_info": {"editable": True}})
    again = f"pip install --force-reinstall --no-deps --editable '{folder}'"
    assert reinstall() == reinstall(source=True) == f"run: {again}"
    assert upgrade() == f"run: git -C '{folder}' pull, and then {again}"


def test_a_wheel_is_installed_again_by_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "titans_deploy-0.1.0-py3-none-any.whl"
    _came_from(monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    assert reinstall() == f"run: pip install --force-reinstall --no-deps {wheel}"
    assert "clone" in reinstall(source=True)  # a wheel holds what was compiled elsewhere
    assert upgrade() == f"install a newer wheel than {wheel.name}"


@pytest.mark.parametrize("record", [None, [], "text"])
def test_a_package_of_an_index_is_not_named_to_another_index(monkeypatch: pytest.MonkeyPatch, record: object) -> None:
    _came_from(monkeypatch, record)
    assert "pip install" not in reinstall() + upgrade()


def test_a_package_is_named_with_the_versions_that_work() -> None:
    assert package("tokenizers") == "pip install 'tokenizers>=0.20'"
