"""How the documents read is measured, and held to limits; drawings and versions are those of the code."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_documents_read_easily() -> None:
    prose = runpy.run_path(str(ROOT / "scripts/docs/prose.py"))
    assert prose["faults"]([prose["read"](page) for page in prose["documents"]()]) == []


def test_drawings_are_those_of_their_script() -> None:
    drawings = runpy.run_path(str(ROOT / "scripts/docs/drawings.py"))
    for name, draw in drawings["DRAWINGS"].items():
        file = ROOT / "docs/images" / name
        assert file.read_text(encoding="utf-8") == draw().svg(), f"{name} is behind its script; run: make docs"


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, date = re.findall(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", changelog, re.M)[0]
    assert newest == version
    assert date >= "2026-11-28"


def test_the_packages_say_that_they_are_typed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    for package in packages["wheel"]["packages"]:
        assert (ROOT / package / "py.typed").exists(), package
