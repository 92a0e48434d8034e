"""The study of long streams runs to its end, and would notice a session that is not what was saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.speed.endurance import endure, figures
from tests.runtime.toy import Toy, write_toy
from titans_runtime import Model, Session, load


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(write_toy(tmp_path / "toy.titans", Toy(letters=True)), provider="cpu", threads=1)


def test_restored_sessions_are_compared_at_every_place(model: Model) -> None:
    run = endure(model, 4_000, 4)
    assert (run.compared, run.unequal, run.finite) == (4, [], True)
    chunk = model.manifest.chunk
    assert figures(run, chunk)["tokens"] == 4_000 // chunk * chunk


def test_a_restored_session_that_differs_is_found(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    restore = Model.restore

    def another(self: Model, path: Path) -> Session:
        session = restore(self, path)
        session.feed([7])
        return session

    monkeypatch.setattr(Model, "restore", another)
    run = endure(model, 4_000, 4)
    assert len(run.unequal) == 4
