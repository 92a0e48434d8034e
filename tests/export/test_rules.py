"""Objectives and retentions in bundles: verified, any split the same, and no kernel of another rule claims them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

import titans_runtime
from tests.export.conftest import moved
from titans_cli.main import cli
from titans_core.config import TitansConfig
from titans_core.model import TitansModel
from titans_core.rules import rule
from titans_export.export import export_model
from titans_export.graph.fused_ops import DOMAIN, qualifies
from titans_export.verification.agreement import compare
from titans_runtime.arrays import Array

CHUNK, TOKENS = 8, 96
MEMORIES: dict[str, tuple[str, dict[str, Any]]] = {
    "yaad in mac": ("mac", rule("yaad")),
    "moneta": ("lmm", rule("moneta")),
    "memora in mag": ("mag", rule("memora")),
    "kl and lp, linked for every token": (
        "lmm",
        rule("memora") | {"link_at": "read", "gate_scope": "chunk", "objective": "lp", "objective_p": 1.5},
    ),
    "huber-switch, lq by the other map, momentum": (
        "mal",
        {"objective": "huber-switch", "retention": "lq", "retention_q": 3.0, "link": "mirror", "link_at": "read"},
    ),
}


@dataclass(frozen=True)
class Made:
    """A bundle and the model it was made from."""

    path: Path
    model: TitansModel

    @property
    def close(self) -> float:
        """Largest error allowed; outputs of nearly equal weights of kl are differences of nearly equal numbers."""
        return 5e-4 if self.model.config.memory.retention == "kl" else 1e-4


@pytest.fixture(scope="module", params=MEMORIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle of one memory, not yet verified."""
    variant, memory = MEMORIES[request.param]
    torch.manual_seed(5)
    shape = {"variant": variant, "dim": 16, "layers": 1, "heads": 2, "chunk": CHUNK, "window": 12, "ffn_hidden": 20}
    start = {"heads": 2, "initial_step_size": 0.05} | memory
    config = shape | {"persistent_tokens": 0 if variant == "lmm" else 2, "vocab_size": 30, "memory": start}
    model = moved(TitansModel(TitansConfig.from_dict(config)))
    path = tmp_path_factory.mktemp("rules") / "m.titans"
    export_model(model, path, verify_tokens=0)
    return Made(path, model)


def test_a_bundle_is_verified_and_no_kernel_claims_its_memory(made: Made) -> None:
    report = compare(made.path, made.model, tokens=300)
    assert report.ok, report.explain()
    assert 0 < report.max_abs_error <= made.close
    assert set(report.states) == {spec.name for spec in made.model.state_specs()}
    for file in made.path.glob("*.onnx"):
        operators = {node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node}
        assert not {name for name in operators if name.startswith("Memory")}, file.name
    assert DOMAIN in {
        node.domain for node in onnx.load(str(made.path / "step.fused.onnx"), load_external_data=False).graph.node
    }  # the rest of the layer has its kernels all the same


def test_any_split_any_batch_a_save_and_a_fork_give_the_same(made: Made) -> None:
    ids = np.random.default_rng(1).integers(0, 30, (3, TOKENS))
    with torch.no_grad():
        want = made.model(torch.from_numpy(ids))[0].numpy()
    model = titans_runtime.load(made.path, provider="cpu", threads=1)
    for lengths in ([TOKENS], [1] * TOKENS, [5, 30, 1, 1, 20, 3, 36]):
        driver, place, outputs = model.driver(3), 0, []
        for length in lengths:
            outputs.append(driver.feed(ids[:, place : place + length], all_outputs=True).outputs)
            place += length
        assert np.abs(np.concatenate(outputs, 1) - want).max() <= made.close
    session = model.session()
    session.feed(ids[0, :45])
    restored, fork = model.restore_bytes(session.to_bytes()), session.fork()
    ends = [each.feed(ids[0, 45:], all_logits=True) for each in (session, restored, fork)]
    assert np.abs(_rows(ends[0]) - want[0, 45:]).max() <= made.close
    assert all(np.array_equal(ends[0], end) for end in ends[1:])
    assert session.to_bytes() == restored.to_bytes() == fork.to_bytes()


def _rows(outputs: Array) -> Array:
    return outputs.reshape(-1, outputs.shape[-1])


def test_the_manifest_names_the_rule_and_a_model_comes_back_from_it(made: Made) -> None:
    stored = titans_runtime.load(made.path, provider="cpu", threads=1).manifest.model.config
    assert TitansConfig.from_stored(stored) == made.model.config
    memory = made.model.config.memory
    assert (stored["memory"]["objective"], stored["memory"]["retention"]) == (memory.objective, memory.retention)
    shown = CliRunner().invoke(cli, ["inspect", str(made.path)])
    assert shown.exit_code == 0, shown.output
    assert f"objective {memory.objective}" in shown.stdout
    assert f"retention {memory.retention}" in shown.stdout


@pytest.mark.parametrize("memory", [{"objective": "huber"}, {"objective": "lp", "objective_p": 2.0}])
def test_a_memory_with_another_objective_does_not_qualify_for_the_kernel(memory: dict[str, Any]) -> None:
    plain, other = (TitansModel(TitansConfig.from_dict({"dim": 16, "heads": 2, "memory": m})) for m in ({}, memory))
    ours, theirs = ([m for m in model.modules() if type(m).__name__ == "NeuralMemory"] for model in (plain, other))
    assert qualifies(ours[0])
    assert not qualifies(theirs[0])


@pytest.mark.slow
def test_engines_of_tensorrt_rtx_are_built_of_every_graph(made: Made) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs titans-deploy[tensorrt-rtx]", exc_type=ImportError)
    from titans_export.tensorrt.engines import build_engines

    manifest = titans_runtime.load(made.path, provider="cpu", threads=1).manifest
    engines = build_engines(made.path, backend="tensorrt-rtx")
    assert [engine.graph for engine in engines] == [*(graph.name for graph in manifest.graphs), "choose"]
