"""A remedy that says what to install is a command that works: it names packages that an index has."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from titans_runtime.install import install

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
    for top in ("titans_core", "runtime", "export", "tools"):
        for file in (ROOT / top).rglob("*.py"):
            assert not re.search(r"pip install[^\"]*titans-deploy", file.read_text(encoding="utf-8")), file
