"""What is released together carries one number, and no compiler makes kernels for a machine it is not for."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

import hatch_build

ROOT = Path(__file__).resolve().parents[1]


def test_the_packages_for_python_and_javascript_have_one_version_and_its_page_names_it() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    package = ROOT / "runtime" / "npm"
    assert json.loads((package / "package.json").read_text(encoding="utf-8"))["version"] == version
    lock = json.loads((package / "package-lock.json").read_text(encoding="utf-8"))
    assert lock["version"] == version
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
    assert f"| {version} |" in (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")


def test_kernels_for_another_machine_need_a_compiler_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hatch_build, "PLATFORM", "manylinux_2_28_aarch64")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("TITANS_KERNELS", raising=False)
    assert hatch_build.build(tmp_path, tmp_path / "kernels.so") == "set CXX to a compiler for that machine"
