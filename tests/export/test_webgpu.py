"""WebGPU, for real, on a software device: all variants agree with the CPU, and their state stays where it is.

Skipped where there is no WebGPU device; `scripts/webgpu_packages.sh` installs one on Debian.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from tests.export.conftest import Exported
from tests.runtime.devices import skip_without, told, traffic
from titans_cli.main import cli
from titans_format.manifest import Manifest
from titans_runtime import Model, SamplingOptions, load
from titans_runtime.devices import ort_providers

CLOSE = 2e-4  # fp32, outputs and states
# Prompts and single tokens in turn; together 512 tokens that run every graph, from both sides of a chunk's end.
PIECES = [100, 1, 1, 1, 9, 1, 16, 47, 1, 1, 80, 5, 1, 121, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 114]


@pytest.fixture(autouse=True)
def webgpu() -> None:
    """Skip, with the reason, where there is no WebGPU."""
    skip_without("webgpu")


def stream(exported: Exported, tokens: int) -> np.ndarray:
    random = np.random.default_rng(0)
    if exported.continuous:
        return random.standard_normal((tokens, 3), dtype=np.float32)
    return random.integers(0, 50, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["lmm-tokens", "mac-tokens", "mag-continuous", "mal-tokens"], indirect=True)
def test_512_tokens_equal_the_cpus_and_no_state_crosses_the_bus(exported: Exported) -> None:
    there = load(exported.path, provider="webgpu")
    here = load(exported.path, provider="cpu", threads=1)
    ours, theirs = there.session(), here.session()
    inputs = stream(exported, 512)
    assert sum(PIECES) == len(inputs)
    before = traffic(there).uploads, traffic(there).downloads
    settled, worst = 0, 0.0
    for i, piece in enumerate(np.split(inputs, np.cumsum(PIECES)[:-1])):
        outputs = ours.feed(piece, all_logits=True)
        worst = max(worst, float(np.abs(outputs - theirs.feed(piece, all_logits=True)).max()))
        if i == 8:  # by then every graph has run and the stream has the blocks that it alternates between
            settled = traffic(there).state_copies
    assert 0 < worst <= CLOSE
    assert (traffic(there).uploads, traffic(there).downloads) == before
    assert traffic(there).state_copies == settled
    ours_after, theirs_after = state(there, ours._stream.now.state), state(here, theirs._stream.now.state)
    for name, value in theirs_after.items():
        assert np.abs(ours_after[name] - value).max(initial=0.0) <= CLOSE, name


def state(model: Model, value: object) -> dict[str, np.ndarray]:
    return model._backend.read(value)  # type: ignore[arg-type]


def ancestors(graph: onnx.GraphProto, tensor: str) -> set[str]:
    """Everything that a tensor of a graph is computed from, itself included."""
    makers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    left = [tensor]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += list(makers[name].input) if name in makers else []
    return found


@pytest.mark.parametrize("exported", ["mal-tokens", "mac-tokens", "decoder-tokens"], indirect=True)
def test_onnxruntime_itself_copies_no_state_either(exported: Exported, tmp_path: Path) -> None:
    """Operators that the provider lacks run on the CPU; none of them may be on a state tensor's way."""
    manifest = Manifest.from_json((exported.path / "manifest.json").read_text())
    reads, writes = {s.input for s in manifest.states}, {s.output for s in manifest.states}
    device = ort_providers.plugin_devices(onnxruntime, "onnxruntime_ep_webgpu")[0]
    for spec in manifest.graphs:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_provider_for_devices([device], {})
        options.optimized_model_filepath = str(tmp_path / spec.file)
        onnxruntime.InferenceSession(str(exported.path / spec.file), options)
        graph = onnx.load(tmp_path / spec.file, load_external_data=False).graph
        copied = [node for node in graph.node if node.op_type in ("MemcpyFromHost", "MemcpyToHost")]
        if spec.name in ("step", "extend"):
            assert copied, "masks are made of positions on the host, so there must be something to look at"
        for node in copied:
            assert not ancestors(graph, node.input[0]) & reads, f"{spec.name}: {node.input[0]}"
            assert not set(node.output) & writes, f"{spec.name}: {node.output[0]}"


@pytest.mark.parametrize("exported", ["lmm-tokens"], indirect=True)
def test_sessions_fork_and_run_in_batches_there(exported: Exported) -> None:
    there, here = load(exported.path, provider="webgpu"), load(exported.path, provider="cpu", threads=1)
    ours, theirs = there.session(), here.session()
    for session in (ours, theirs):
        session.feed([1, 2, 3])
    branches = ours.fork(), theirs.fork()
    for session in (ours, theirs):
        session.feed([4, 5])
    np.testing.assert_allclose(branches[0].feed([6]), branches[1].feed([6]), atol=CLOSE)
    np.testing.assert_allclose(ours.feed([7]), theirs.feed([7]), atol=CLOSE)
    with there.batch(lanes=2) as batch:
        streams = [batch.session() for _ in range(2)]
        told = [session.feed(piece) for piece in ([1, 2, 3], [4], [5]) for session in streams]
    alone = here.session()
    for i, piece in enumerate(([1, 2, 3], [4], [5])):
        expected = alone.feed(piece)
        np.testing.assert_allclose(told[2 * i], expected, atol=CLOSE)
        np.testing.assert_allclose(told[2 * i + 1], expected, atol=CLOSE)


@pytest.mark.parametrize("exported", ["mac-tokens"], indirect=True)
@pytest.mark.parametrize(("options", "numbers"), [({"temperature": 0}, 3), ({"top_k": 4, "seed": 1}, 9)])
def test_tokens_are_chosen_there_and_only_what_is_chosen_among_comes_back(
    exported: Exported, options: dict[str, int], numbers: int
) -> None:
    there, here = load(exported.path, provider="webgpu"), load(exported.path, provider="cpu", threads=1)
    ours, theirs = there.session(), here.session()
    sampling = SamplingOptions(**options)  # type: ignore[arg-type]
    assert list(ours.generate_tokens([1, 2, 3], 8, sampling)) == list(theirs.generate_tokens([1, 2, 3], 8, sampling))
    assert told(there, ours, sampling) == numbers


def test_titans_run_takes_the_provider(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(
        cli, ["run", str(tiny_bundle), "--prompt", "de", "--max-new-tokens", "2", "--provider", "webgpu", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert '"provider": "webgpu"' in result.stdout


def test_a_software_device_is_not_what_auto_takes(tiny_bundle: Path) -> None:
    if not ort_providers.TARGETS["webgpu"](onnxruntime, "").software:
        pytest.skip("this WebGPU device is a GPU")
    model = load(tiny_bundle, provider="auto")
    assert model.provider != "webgpu"
    assert "processor in disguise" in model.passed_over["webgpu"]
