"""`titans bench`: what it counts and reads out of profiles, and the shape of its report. Never how fast anything is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec import structs

from studies.speed import kernels as compared
from tests.export.conftest import build
from titans_cli.main import cli
from titans_export.bundle.writer import write_manifest
from titans_export.export import export_model
from titans_format.manifest import Manifest
from titans_format.specs import Cost
from titans_measure.speed.demand import decoding, reading
from titans_measure.speed.measure import BenchOptions, measure
from titans_measure.speed.profile import part_of, profile, read_profile
from titans_measure.speed.timing import interleaved
from titans_runtime.native import kernels

OPTIONS = BenchOptions(batches=(1, 2), prompt=40, tokens=20, rounds=2, threads=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "mac.titans"
    export_model(build("mac-tokens"), path, verify_tokens=0)
    return path


def manifest_of(bundle: Path) -> Manifest:
    return Manifest.from_json((bundle / "manifest.json").read_text())


def costs(bundle: Path) -> dict[str, Cost]:
    found = {graph.name: graph.cost for graph in manifest_of(bundle).graphs}
    return {name: cost for name, cost in found.items() if cost is not None}


def test_pieces_of_work_take_turns_and_the_first_round_does_not_count() -> None:
    done: list[str] = []
    told: list[tuple[int, int]] = []
    work = {name: lambda name=name: done.append(name) for name in "ab"}  # type: ignore[misc]
    times = interleaved(work, 2, lambda *now: told.append(now))
    assert done == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}
    assert told == [(place, 6) for place in range(1, 7)]


def test_a_prompt_needs_what_its_calls_need(bundle: Path) -> None:
    manifest, each = manifest_of(bundle), costs(bundle)
    chunks = reading(manifest, 2 * manifest.chunk, 3, widened=False)
    assert chunks is not None
    assert chunks.flops == 3 * 2 * each["prefill"].flops
    prefill = each["prefill"]
    assert chunks.bytes == 2 * (prefill.weight_bytes + 3 * (prefill.read_bytes + prefill.written_bytes))


def test_tokens_need_their_steps_and_the_commits_between_them(bundle: Path) -> None:
    manifest, each = manifest_of(bundle), costs(bundle)
    tokens = decoding(manifest, 5, 2 * manifest.chunk, 1, widened=False)
    assert tokens is not None
    assert tokens.flops == 2 * manifest.chunk * each["step"].flops + 2 * each["commit"].flops
    assert tokens.bytes == 2 * manifest.chunk * each["step"].moved_bytes + 2 * each["commit"].moved_bytes


def test_half_precision_weights_are_twice_as_many_bytes_where_they_are_widened(tmp_path: Path) -> None:
    export_model(build("lmm-tokens"), tmp_path / "m.titans", dtype="fp16", verify_tokens=0)
    manifest = manifest_of(tmp_path / "m.titans")
    stored, widened = (decoding(manifest, 1, 1, 1, widened=wide) for wide in (False, True))
    assert stored is not None
    assert widened is not None
    assert widened.bytes - stored.bytes == costs(tmp_path / "m.titans")["step"].weight_bytes
    assert widened.flops == stored.flops


def test_a_report_adds_up(bundle: Path) -> None:
    report = measure(bundle, OPTIONS)
    assert report.roofline is not None
    assert [speed.batch for speed in report.decode] == [speed.batch for speed in report.prefill] == [1, 2]
    for speeds, tokens, bound in ((report.prefill, 40, "sgemm_gflops"), (report.decode, 20, "read_gb_per_second")):
        for speed in speeds:
            needs = (
                reading if speeds is report.prefill else lambda m, t, b, widened: decoding(m, 40, t, b, widened=widened)
            )(manifest_of(bundle), tokens, speed.batch, widened=False)
            assert needs is not None
            assert speed.gflops is not None
            assert speed.gb_per_second is not None
            seconds = speed.batch * tokens / speed.tokens_per_second
            assert speed.flops_per_token == needs.flops / speed.batch / tokens
            assert speed.bytes_per_token == needs.bytes / speed.batch / tokens
            assert speed.gflops * seconds * 1e9 == pytest.approx(needs.flops)
            assert speed.gb_per_second * seconds * 1e9 == pytest.approx(needs.bytes)
            rate = speed.gflops if speeds is report.prefill else speed.gb_per_second
            assert speed.share == pytest.approx(rate / getattr(report.roofline, bound))
    latency = report.decode[0].latency_ms
    assert latency is not None
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert 0 < report.start.load_seconds < report.start.cold_seconds
    assert report.start.peak_rss_bytes is None or 10 * 2**20 < report.start.peak_rss_bytes < 2**30


def test_a_bundle_that_does_not_say_what_it_costs_has_speeds_and_no_shares(bundle: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.titans"
    old.mkdir()
    for path in bundle.iterdir():
        (old / path.name).write_bytes(path.read_bytes())
    manifest = manifest_of(old)
    graphs = tuple(structs.replace(graph, cost=None) for graph in manifest.graphs)
    write_manifest(old, structs.replace(manifest, graphs=graphs))
    result = CliRunner().invoke(
        cli, ["bench", str(old), "--batch", "1", "--prompt", "8", "--tokens", "2", "--rounds", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "cold start" in result.output
    report = measure(old, replace(OPTIONS, batches=(1,), rounds=1))
    assert [speed.share for speed in (*report.prefill, *report.decode)] == [None, None]
    assert report.decode[0].tokens_per_second > 0


def test_the_command_gives_one_document_with_the_profile_in_it(bundle: Path) -> None:
    arguments = ["bench", str(bundle), "--json", "--profile", "--provider", "cpu", "--threads", "1"]
    arguments += ["--batch", "2", "--batch", "2", "--prompt", "40", "--tokens", "20", "--rounds", "1"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {"bundle", "model", "machine", "wish", "provider", "roofline", "start", "prefill", "decode"} <= set(document)
    assert [speed["batch"] for speed in document["decode"]] == [2]  # named twice, measured once
    assert document["model"]["parameters"] == manifest_of(bundle).model.parameters
    assert {graph["graph"] for graph in document["profile"]} >= {"prefill", "step", "commit"}
    for graph in document["profile"]:
        assert sum(part["share"] for part in graph["parts"]) == pytest.approx(1)
        assert sum(part["share"] for part in graph["operators"]) == pytest.approx(1)


@pytest.mark.skipif(kernels() is None, reason="no kernels")
def test_a_profile_names_fused_parts_too(bundle: Path) -> None:
    step = next(graph for graph in profile(bundle, replace(OPTIONS, prompt=48)) if graph.graph == "step")
    assert {"blocks.*.mixer.reader", "blocks.*.mixer.attention"} <= {part.name for part in step.parts}
    assert {"Memory", "TokenAttention"} <= {row.name for row in step.operators}


@pytest.mark.skipif(kernels() is None, reason="no kernels")
def test_kernels_are_compared_with_none_in_turns(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kernels", "--bundle", str(bundle), "--rounds", "1", "--threads", "1"])
    compared.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {"chunks", "single tokens", "16 streams"}
    assert all(set(forms) == {"portable", "fused"} and min(forms.values()) > 0 for forms in found.values())


@pytest.mark.usefixtures("portable")
def test_a_profile_names_the_parts_of_the_model(bundle: Path) -> None:
    graphs = {graph.graph: graph for graph in profile(bundle, replace(OPTIONS, prompt=48))}
    parts = {part.name: part for part in graphs["step"].parts}
    assert {"blocks.*.mixer.reader.memory", "blocks.*.mixer.attention"} <= set(parts)
    assert graphs["prefill"].calls == 2  # of three, the first warmed up
    assert graphs["step"].calls == 19
    assert {"MatMul", "Mul"} <= {row.name for row in graphs["step"].operators}


def test_profiles_are_counted_per_call_without_the_first(tmp_path: Path) -> None:
    def run(at: int) -> list[dict[str, object]]:
        return [
            {
                "cat": "Node",
                "name": "blocks.3.mixer/Mul_0_kernel_time",
                "ts": at + 1,
                "dur": at,
                "args": {"op_name": "Mul"},
            },
            {"cat": "Node", "name": "y_kernel_time", "ts": at + 2, "dur": 10, "args": {"op_name": "Add"}},
            {"cat": "Node", "name": "y_fence_before", "ts": at + 2, "dur": 5, "args": {"op_name": "Add"}},
            {"cat": "Session", "name": "model_run", "ts": at, "dur": 50},
        ]

    path = tmp_path / "p.json"
    path.write_text(json.dumps([*run(900), *run(1000), *run(2000)]))
    found = read_profile("step", path)
    assert (found.calls, found.call_microseconds, found.node_microseconds) == (2, 50, 1510)
    assert [(part.name, part.microseconds, part.nodes) for part in found.parts] == [
        ("blocks.*.mixer", 1500, 1),
        ("(graph)", 10, 1),
    ]
    assert [row.name for row in found.operators] == ["Mul", "Add"]


@pytest.mark.parametrize(
    ("node", "part"),
    [
        ("blocks.11.mixer.reader.memory.to_query/MatMul_0", "blocks.*.mixer.reader.memory.to_query"),
        ("memories.0/Mul_3/Reshape", "memories.*"),
        ("Reshape_7", "(graph)"),
    ],
)
def test_a_node_belongs_to_a_part_whatever_its_block(node: str, part: str) -> None:
    assert part_of(node) == part


def test_wrong_usage_is_refused(bundle: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", str(bundle), "--batch", "0"])
    assert result.exit_code == 2
    assert "--batch" in result.output
    result = CliRunner().invoke(cli, ["bench", str(bundle), "--profile", "--provider", "webgpu"])
    assert result.exit_code == 2
    assert "use --provider cpu" in result.output
    result = CliRunner().invoke(cli, ["bench", str(bundle / "nothing")])
    assert result.exit_code == 2
    assert "is not a bundle directory; give the directory" in result.output
