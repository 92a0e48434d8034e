"""A process counts the cores that it may use: those it is bound to, and the share of time that its groups have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from titans_runtime.devices.cores import usable_cores

CORES = 8
ROOT_V2 = "0::/user/job\n"
QUOTA, PERIOD = "cpu_DOT_cfs_quota_us", "cpu_DOT_cfs_period_us"
ROOT_V1 = "5:cpu,cpuacct:/user/job\n3:memory:/user\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(CORES)))


def machine(folder: Path, own: str, **files: str) -> tuple[Path, Path]:
    """A tree of cgroups; `__` in a name stands for `/`, and `_DOT_` for a full stop."""
    for name, text in files.items():
        path = folder / "groups" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return folder / "groups", folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (ROOT_V2, {}, CORES),
        (ROOT_V2, {"user__job__cpu_DOT_max": "max 100000\n"}, CORES),
        (ROOT_V2, {"user__job__cpu_DOT_max": "200000 100000\n"}, 2),
        (ROOT_V2, {"user__job__cpu_DOT_max": "150000 100000\n"}, 2),
        (ROOT_V2, {"user__job__cpu_DOT_max": "140000 100000\n"}, 1),
        (ROOT_V2, {"user__job__cpu_DOT_max": "10000 100000\n"}, 1),
        (ROOT_V2, {"user__job__cpu_DOT_max": "900000 100000\n"}, CORES),
        (ROOT_V2, {"user__cpu_DOT_max": "300000 100000\n", "user__job__cpu_DOT_max": "max 100000\n"}, 3),
        ("0::/\n", {"cpu_DOT_max": "400000 100000\n"}, 4),
        ("0::/../elsewhere\n", {"cpu_DOT_max": "400000 100000\n"}, 4),
        (ROOT_V2, {"user__job__cpu_DOT_max": "nonsense\n"}, CORES),
        (ROOT_V2, {"user__job__cpu_DOT_max": "200000 0\n"}, CORES),
        (ROOT_V1, {f"cpu__user__job__{QUOTA}": "250000", f"cpu__user__job__{PERIOD}": "100000"}, 3),
        (ROOT_V1, {"cpu__cpu_DOT_cfs_quota_us": "200000", "cpu__cpu_DOT_cfs_period_us": "100000"}, 2),
        (ROOT_V1, {f"cpu__user__job__{QUOTA}": "-1", f"cpu__user__job__{PERIOD}": "100000"}, CORES),
        ("damaged", {}, CORES),
    ],
)  # fmt: skip
def test_a_quota_counts(tmp_path: Path, own: str, files: dict[str, str], expected: int) -> None:
    assert usable_cores(*machine(tmp_path, own, **files)) == expected


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
    assert usable_cores(*machine(tmp_path, ROOT_V2, user__job__cpu_DOT_max="400000 100000")) == 1


def test_a_machine_without_these_files_has_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path / "none", tmp_path / "neither") == 6
