"""The fuzzer finds nothing in a short run, keeps what it once found, and would notice if a check were missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from studies.fuzz.__main__ import BLOCK, REGRESSIONS, plan, watched
from studies.fuzz.bundles import make_bundles
from studies.fuzz.mutation import damage, distort
from studies.fuzz.targets import CASES, SUBJECTS, DefectError, check
from studies.fuzz.victim import Victim
from studies.fuzz.worker import run_block
from titans_runtime import bundle as bundle_module
from titans_runtime.stream import state_file

SHORT = {"interrupts": 20, "mixups": 8}  # cases that are a dozen calls each
KEPT = json.loads(REGRESSIONS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bundles(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def tiny(bundles: dict[str, Path]) -> Path:
    return bundles["tiny"]


@pytest.fixture
def victim(tiny: Path, tmp_path: Path) -> Victim:
    return Victim(tiny, tmp_path)


def renamed(victim: Victim) -> list[list[object]]:
    """The operation that gives the model another name."""
    for place in range(10):
        operation: list[list[object]] = [["set", place, "renamed"]]
        model = distort(victim.manifest, operation)["model"]
        if isinstance(model, dict) and model["name"] == "renamed":
            return operation
    raise AssertionError("the name is not among the first places of the manifest")


@pytest.mark.parametrize("target", CASES)
def test_a_short_run_finds_nothing(bundles: dict[str, Path], tmp_path: Path, target: str) -> None:
    result = run_block(bundles[SUBJECTS[target]], target, 0, SHORT.get(target, 40), tmp_path / "current")
    assert result["error"] is None, result
    assert (tmp_path / "current").is_file()


def test_what_was_found_once_stays_mended(bundles: dict[str, Path], tmp_path: Path) -> None:
    for name in bundles:
        victim = Victim(bundles[name], tmp_path / name)
        for kept in KEPT:
            if SUBJECTS[kept["target"]] == name:
                check(victim, kept["target"], kept["case"])


@pytest.mark.parametrize("file", ["manifest", "graph", "weights", "state"])
def test_a_change_that_nobody_signed_is_refused_and_none_is_none(victim: Victim, file: str) -> None:
    name = {"graph": "step.onnx", "weights": "weights.safetensors"}.get(file)
    case = {"signed": False} | ({} if name is None else {"file": name})
    assert check(victim, file, {**case, "bytes": [["flip", 0.5, 0]]}) == "refused"
    assert check(victim, file, {**case, "bytes": [["insert", 0.5, ""]]}) == "unchanged"


def test_a_forged_change_that_does_no_harm_works(victim: Victim) -> None:
    rename = renamed(victim)
    assert check(victim, "manifest", {"signed": True, "json": rename}) == "works"
    assert check(victim, "manifest", {"signed": False, "json": rename}) == "refused"


def test_a_missing_check_of_the_manifest_would_be_noticed(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "check_seal", lambda root, file: None)
    with pytest.raises(DefectError, match="accepted"):
        check(victim, "manifest", {"signed": False, "json": renamed(victim)})


def test_a_missing_check_of_a_state_would_be_noticed(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "_check_digest", lambda data, head, digest, source: None)
    with pytest.raises(DefectError, match="accepted"):
        check(victim, "state", {"signed": False, "bytes": [["flip", 0.999, 0]]})


def test_a_failing_case_is_shrunk_and_handed_over(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "_check_digest", lambda data, head, digest, source: None)
    result = run_block(tiny, "state", 0, 200, tmp_path / "current")
    assert result["failed"] is not None
    assert "accepted" in str(result["error"])


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os; os.abort()", "exit status -6"),
        ("raise MemoryError('no room')", "no room"),
        ("import time; time.sleep(60)", "no end after 0.3 s"),
        ("pass", "exit status 0"),
    ],
)
def test_a_worker_that_dies_or_hangs_is_reported_with_its_case(tmp_path: Path, code: str, says: str) -> None:
    current = tmp_path / "current"
    current.write_text('{"signed": true}', encoding="utf-8")
    result = watched([sys.executable, "-c", code], current, patience=0.3)
    assert says in result["error"]
    assert result["failed"] == {"signed": True}


def test_blocks_come_to_the_cases_asked_for() -> None:
    blocks = plan(20_000, list(CASES), seed=3)
    assert sum(cases for _, _, cases in blocks) == 20_000
    assert all(0 < cases <= BLOCK for _, _, cases in blocks)
    assert len({(target, seed) for target, seed, _ in blocks}) == len(blocks)


def test_damage_and_distortion_do_what_they_say() -> None:
    data = bytes(range(10))
    assert damage(data, [["flip", 0.0, 0]])[0] == 1
    assert damage(data, [["cut", 0.5]]) == data[:5]
    assert damage(data, [["insert", 0.5, "ff"]]) == data[:5] + b"\xff" + data[5:]
    assert damage(data, [["overwrite", 0.5, "ffff"]]) == data[:5] + b"\xff\xff" + data[7:]
    assert damage(data, [["delete", 0.5, 2]]) == data[:5] + data[7:]
    assert damage(data, [["repeat", 0.5, 2]]) == data[:7] + data[5:]
    document = {"a": [1, 2], "b": {"c": 3}}
    assert distort(document, [["drop", 1]]) == {"a": [2], "b": {"c": 3}}
    assert distort(document, [["set", 4, "x"]]) == {"a": [1, 2], "b": {"c": "x"}}
    assert distort(document, [["copy", 4, 0]]) == {"a": [1, 2], "b": {"c": [1, 2]}}
    assert distort(document, [["rename", 4, "d"]]) == {"a": [1, 2], "b": {"d": 3}}
    assert document == {"a": [1, 2], "b": {"c": 3}}
