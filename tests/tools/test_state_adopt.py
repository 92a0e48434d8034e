"""`titans state adopt` and `replay` move a memory to another model and say what that is worth."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.runtime.toy import Toy, write_toy
from titans_cli.main import cli
from titans_measure.quality.adoption import compare_readings
from titans_measure.quality.errors import EvalError
from titans_runtime import load
from titans_runtime.stream.journal import write_journal

READ = list(b"what the memory has read, more than a chunk of it")


def titans(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two toys that differ in their head, a state of the first and its journal."""
    write_toy(tmp_path / "old.titans", Toy())
    write_toy(tmp_path / "new.titans", Toy(letters=True))
    session = load(tmp_path / "old.titans", threads=1).session()
    session.feed(READ)
    session.save(tmp_path / "me.state")
    (tmp_path / "journal.json").write_bytes(write_journal(READ, "toy"))
    (tmp_path / "notes.txt").write_text("and so it goes on")
    return tmp_path


def test_an_adopted_memory_is_compared_with_a_fresh_one_and_a_replayed_one(place: Path) -> None:
    command = (
        "state", "adopt", place / "me.state", "--bundle", place / "new.titans", "--out", place / "new.state",
        "--from", place / "old.titans", "--journal", place / "journal.json", "--data", place / "notes.txt",
    )  # fmt: skip
    result = titans(*command, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    readings = document["readings"]
    assert list(readings) == ["old model", "adopted", "replayed", "fresh"]
    assert readings["old model"]["kl"] == 0
    # The toy's memory does not depend on its head, so what is replayed is what was adopted.
    assert readings["adopted"]["nats"] == pytest.approx(readings["replayed"]["nats"])
    assert readings["fresh"]["nats"] != pytest.approx(readings["adopted"]["nats"])
    assert load(place / "new.titans", threads=1).restore(place / "new.state").position == len(READ)
    assert "exists" in titans(*command).stderr
    plain = titans(*command, "--force")
    assert plain.exit_code == 0
    assert "same likeliest token" in plain.stdout


def test_a_replay_reads_the_journal(place: Path) -> None:
    result = titans(
        "state", "replay", place / "journal.json", "--bundle", place / "new.titans", "--out", place / "r.state"
    )
    assert result.exit_code == 0, result.output
    model = load(place / "new.titans", threads=1)
    session = model.session()
    session.feed(READ)
    assert model.restore(place / "r.state").feed([7]).tolist() == session.feed([7]).tolist()
    assert (
        "is missing"
        in titans("state", "replay", place / "no", "--bundle", place / "new.titans", "--out", place / "x").stderr
    )


def test_readings_are_those_of_the_definition(place: Path) -> None:
    """KL and surprise by the plain formulas, token by token."""
    model, other = load(place / "old.titans", threads=1), load(place / "new.titans", threads=1)
    ids = list(b"some text, of a hundred tokens, so that it is read in more than one piece by whoever compares them")
    readings = compare_readings({"a": model.session(), "b": other.session()}, ids)
    kl = nats = 0.0
    one, two = model.session(), other.session()
    for token, after in itertools.pairwise(ids):
        p, q = (
            np.exp(x - x.max()) / np.exp(x - x.max()).sum()
            for x in (s.feed([token]).astype(np.float64) for s in (one, two))
        )
        kl += float((p * np.log(p / q)).sum())
        nats -= float(np.log(q[after]))
    assert readings["b"].kl == pytest.approx(kl / (len(ids) - 1), rel=1e-4)
    assert readings["b"].nats == pytest.approx(nats / (len(ids) - 1), rel=1e-4)
    with pytest.raises(EvalError, match="too few"):
        compare_readings({"a": model.session()}, [1])
