"""Every option of a command reaches what does its work: what arrives there is recorded, and the work left undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import titans_runtime
from titans_cli.main import cli
from titans_measure.quality import dna, needle, recall, series
from titans_measure.quality.reading import Sizes
from titans_measure.speed.measure import BenchOptions
from titans_runtime import InputError, SamplingOptions
from titans_runtime.stream.session import Session

STOP = "recorded, and nothing done; as this test wants it"


class Recorder:
    """Stands in for functions: keeps what each was called with, and ends the command there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._monkeypatch = monkeypatch

    def __call__(self, *values: Any, **named: Any) -> Iterator[Any]:
        self.calls.append((values, named))
        raise InputError(*STOP.split("; "))

    def instead_of(self, place: str) -> None:
        self._monkeypatch.setattr(place, self)

    def after(self, *arguments: str | Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the one call was given that a command line leads to."""
        self.calls.clear()
        result = CliRunner().invoke(cli, [*map(str, arguments)], input="hello\n")
        assert STOP in result.output, result.output
        assert len(self.calls) == 1
        return self.calls[0]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.mark.parametrize("command", ["run", "chat", "eval"])
def test_where_a_bundle_runs(tiny_bundle: Path, recorder: Recorder, command: str) -> None:
    recorder.instead_of("titans_runtime.load")
    more = {"run": ["--prompt", "a"], "chat": [], "eval": ["--task", "recall"]}[command]
    _, named = recorder.after(command, tiny_bundle, *more, "--provider", "webgpu", "--threads", "3")
    assert (named["provider"], named["threads"]) == ("webgpu", 3)


SAMPLING = [
    *("--temperature", "0.5", "--top-k", "7", "--top-p", "0.6", "--min-p", "0.1", "--repetition-penalty", "1.2"),
    *("--seed", "11"),
]


def test_a_run(tiny_bundle: Path, recorder: Recorder) -> None:
    recorder.instead_of("titans_runtime.stream.session.Session.generate_tokens")
    values, _ = recorder.after("run", tiny_bundle, "--prompt", "a", "--max-new-tokens", "9", *SAMPLING)
    wanted = SamplingOptions(temperature=0.5, top_k=7, top_p=0.6, min_p=0.1, repetition_penalty=1.2, seed=11)
    assert values == ("a", 9, wanted)


def test_the_stop_strings_of_a_run_end_it(tiny_bundle: Path) -> None:
    model = titans_runtime.load(tiny_bundle, threads=1)
    text = "".join(model.session().generate("def a", 40, temperature=0))
    stop = text[5:7]
    common = ["run", str(tiny_bundle), "--prompt", "def a", "--max-new-tokens", "40", "--temperature", "0"]
    result = CliRunner().invoke(cli, [*common, "--stop", "\x00never", "--stop", stop])
    assert result.stdout == text[: text.index(stop)] + "\n"


def test_a_chat(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def record(self: Session, prompt: bytes, on_progress: Callable[[int, int], None], **options: Any) -> Iterator[str]:
        asked.append((prompt, options))
        return iter(())

    monkeypatch.setattr("titans_runtime.stream.session.Session.generate", record)
    options = [
        "--temperature",
        "0.5",
        "--top-k",
        "3",
        "--top-p",
        "0.6",
        "--min-p",
        "0.1",
        "--repetition-penalty",
        "1.5",
    ]
    options += ["--seed", "11", "--stop", "A", "--stop", "B", "--max-new-tokens", "9"]
    arguments = ["chat", str(tiny_bundle), "--template", "<{message}>", *options]
    assert CliRunner().invoke(cli, arguments, input="hello\n").exit_code == 0
    sampling = {"temperature": 0.5, "top_k": 3, "top_p": 0.6, "min_p": 0.1, "repetition_penalty": 1.5, "seed": 11}
    assert asked == [(b"<hello>", {"max_new_tokens": 9, "stop": ("A", "B"), **sampling})]


def test_a_verification(tiny_bundle: Path, recorder: Recorder, tmp_path: Path) -> None:
    recorder.instead_of("titans_export.verification.agreement.verify_bundle")
    recorder.instead_of("titans_export.verification.drift.measure_drift")
    common = ["verify", tiny_bundle, "--checkpoint", "ck", "--tokens", "77", "--seed", "5"]
    values, named = recorder.after(*common)
    assert (values, named["tokens"], named["seed"]) == ((tiny_bundle, Path("ck")), 77, 5)
    values, named = recorder.after(*common, "--drift", "--data", "one", "--data", "two")
    assert (values, named["tokens"], named["seed"]) == ((tiny_bundle, Path("ck")), 77, 5)
    assert named["data"] == ("one", "two")


def test_a_benchmark(tiny_bundle: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.instead_of("titans_measure.speed.measure.measure")
    sizes = ["--batch", "3", "--batch", "5", "--prompt", "40", "--tokens", "20", "--rounds", "2"]
    values, _ = recorder.after("bench", tiny_bundle, "--provider", "webgpu", "--threads", "3", *sizes)
    wanted = BenchOptions(provider="webgpu", threads=3, batches=(3, 5), prompt=40, tokens=20, rounds=2)
    assert values[:2] == (tiny_bundle, wanted)
    monkeypatch.setattr("titans_measure.speed.measure.measure", lambda *given: None)
    recorder.instead_of("titans_measure.speed.profile.profile")
    values, _ = recorder.after("bench", tiny_bundle, "--provider", "cpu", "--rounds", "2", "--profile")
    assert values == (tiny_bundle, BenchOptions(provider="cpu", rounds=2))


READ = ["--shortest", "100", "--longest", "200", "--window", "30", "--frozen-after", "60"]
SIZES = Sizes(shortest=100, longest=200, window=30, frozen_after=60)


@pytest.mark.parametrize(
    ("task", "place", "options", "wanted"),
    [
        (
            "recall",
            "titans_measure.quality.recall.evaluate",
            ["--keys", "40", "--pairs", "3", "--pairs", "5", "--gap", "7", "--gap", "8", "--streams", "2"],
            (recall.RecallOptions(keys=40, pairs=(3, 5), gaps=(7, 8), streams=2),),
        ),
        (
            "needle",
            "titans_measure.quality.needle.evaluate",
            ["--form", "uuid", "--length", "300", "--length", "500", "--streams", "2", "--data", "x"],
            (needle.NeedleOptions(form="uuid", lengths=(300, 500), streams=2, data=("x",)),),
        ),
        ("text", "titans_measure.quality.text.evaluate", ["--data", "x", "--data", "y", *READ], (("x", "y"), SIZES)),
        (
            "series",
            "titans_measure.quality.series.evaluate",
            ["--data", "x", "--season", "6", "--anomalies", "2", "--anomaly-size", "1.5"],
            (series.SeriesOptions(data="x", season=6, anomalies=2, size=1.5),),
        ),
        (
            "series",
            "titans_measure.quality.series.evaluate",
            [
                "--data",
                "x",
                "--first-step",
                "5",
                "--last-step",
                "9",
                "--horizon",
                "2",
                "--horizon",
                "3",
                "--fresh",
                "4",
            ],
            (series.SeriesOptions(data="x", first=5, last=9, horizons=(2, 3), window=4),),
        ),
        (
            "dna",
            "titans_measure.quality.dna.evaluate",
            ["--families", "3", "--gap", "7", "--gap", "8", "--streams", "2"],
            (dna.DnaOptions(families=3, gaps=(7, 8), streams=2),),
        ),
        ("dna", "titans_measure.quality.dna.evaluate_fasta", ["--data", "x", *READ], (("x",), SIZES)),
    ],
)
def test_an_evaluation(
    tiny_bundle: Path, recorder: Recorder, task: str, place: str, options: list[str], wanted: tuple[object, ...]
) -> None:
    recorder.instead_of(place)
    values, _ = recorder.after("eval", tiny_bundle, "--task", task, *options)
    assert values[1 : 1 + len(wanted)] == wanted
