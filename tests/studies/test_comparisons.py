"""`make bench`: that what it compares is equal, that every part runs, and that the page says what was measured.

Never how fast anything is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import titans_runtime
from studies.speed import __main__ as command
from studies.speed import gpu
from studies.speed.attention_only import Decoder, Shape, forward, hidden_for, random_weights
from studies.speed.context import crossing
from studies.speed.memory_layer import MemoryLayer, export_layer, layer_config
from studies.speed.page import filled
from studies.speed.report import Figure
from studies.speed.state_size import cache_bytes, state_bytes
from studies.speed.suite import PARTS, OtherMachineError, here, run_part, write
from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_export.models.titans import TitansSteppable

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks"
SHAPE = Shape(dim=32, layers=2, heads=2, hidden=48, vocab=50, context=16)


@pytest.fixture(autouse=True)
def denormals_as_before() -> Iterator[None]:
    """The parts switch them off, in processes of their own when they are not tested."""
    yield
    torch.set_flush_denormal(False)


def test_the_memory_layers_bundle_computes_what_the_layer_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = MemoryLayer(layer_config(32, 2, 8))
    export_layer(layer, tmp_path / "layer.titans")
    x = torch.randn(1, 24, 32)
    model = titans_runtime.load(tmp_path / "layer.titans", provider="cpu", threads=1)
    expected = layer(x).numpy()
    whole = model.driver(1).feed(x.numpy(), all_outputs=True).outputs
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    driver = model.driver(1)  # some tokens of a chunk, single ones, and the rest
    pieces = [driver.feed(x[:, a:b].numpy(), all_outputs=True).outputs for a, b in ((0, 5), (5, 6), (6, 7), (7, 24))]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, atol=1e-5)


def test_attention_over_a_cache_in_place_equals_attention_over_all_tokens() -> None:
    weights = random_weights(SHAPE)
    weights |= {name: value + 0.1 * torch.randn_like(value) for name, value in weights.items() if value.dim() == 1}
    ids = torch.randint(0, SHAPE.vocab, (1, SHAPE.context))
    decoder = Decoder(SHAPE, weights, threads=1)
    found = np.stack([decoder.feed(token).copy() for token in ids[0].tolist()])
    np.testing.assert_allclose(found, forward(SHAPE, weights, ids)[0].numpy(), atol=1e-4)


def test_attention_alone_gets_as_many_parameters_as_asked_for() -> None:
    count = sum(value.numel() for value in random_weights(SHAPE).values())
    assert hidden_for(count, SHAPE, multiple=1) == SHAPE.hidden


def test_lines_cross_where_they_stay_crossed() -> None:
    x = [1.0, 2.0, 4.0, 8.0]
    assert crossing(x, [2, 2, 2, 2], [1, 3, 1, 5]) == 5.0
    assert crossing(x, [2, 2, 2, 2], [3, 3, 3, 3]) == 1.0
    assert crossing(x, [2, 2, 2, 2], [3, 3, 3, 2]) is None


def test_a_states_size_is_that_of_its_tensors() -> None:
    config = preset("tiny", variant="mag")
    specs = TitansSteppable(TitansModel(config)).state_specs()
    assert state_bytes(config) == sum(4 * int(np.prod(spec.shape)) for spec in specs)
    assert cache_bytes(config, 10) == 10 * 2 * config.layers * config.dim * 4


@pytest.mark.parametrize("name", PARTS)
def test_a_part_measures_toy_sizes(name: str, tmp_path: Path) -> None:
    part = json.loads(json.dumps(run_part(name, quick=True), allow_nan=False))
    assert part["title"]
    assert part["stated"]
    assert part["figures"]
    for figure in part["figures"]:
        assert figure["value"] > 0
        assert figure["met"] in ((None,) if figure["at_least"] is figure["at_most"] is None else (True, False))
    for rows in part["tables"].values():
        assert len({tuple(row) for row in rows}) == 1  # the same columns in every row
    page = f"by hand\n<!-- begin {name} -->\n<!-- end {name} -->\nby hand\n"
    (tmp_path / "index.md").write_text(page)
    write({"machine": {"cores": 2}, "parts": {name: part}}, tmp_path)
    written = (tmp_path / "index.md").read_text()
    assert part["figures"][0]["name"] in written
    assert written.startswith("by hand\n")
    assert written.endswith("by hand\n")
    assert (tmp_path / f"{name}.svg").exists() == (part["plot"] is not None)


def test_parts_that_were_not_measured_keep_their_results(tmp_path: Path) -> None:
    def results(*names: str) -> dict[str, Any]:
        part = {"title": "t", "stated": ["s"], "figures": [], "tables": {}, "plot": None}
        return {"machine": {"cores": 2}, "parts": dict.fromkeys(names, part)}

    write(results("large", "layer"), tmp_path)
    write(results("training"), tmp_path)
    assert list(json.loads((tmp_path / "results.json").read_text())["parts"]) == ["layer", "large", "training"]


@pytest.mark.parametrize("change", [{"cores": 3}, {"torch": "1.0"}])
def test_results_of_two_machines_do_not_share_a_page(
    tmp_path: Path, change: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = {"title": "t", "stated": ["s"], "figures": [], "tables": {}, "plot": None}
    monkeypatch.setattr(command, "run_parts", lambda names, *_: {"machine": here(False), "parts": {names[0]: part}})
    command.main(["--only", "layer", "--out", str(tmp_path)])
    command.main(["--only", "large", "--out", str(tmp_path)])
    before = (tmp_path / "results.json").read_bytes()
    (key, value), were = next(iter(change.items())), here(False)
    monkeypatch.setattr(command, "here", lambda quick: {**were, **change})
    monkeypatch.setattr(command, "run_parts", lambda *_: pytest.fail("measured all the same"))
    with pytest.raises(SystemExit) as ended:
        command.main(["--only", "large", "--out", str(tmp_path)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"keeps layer of another machine ({key} {were[key]}, here {value})" in told
    assert "measure every part here (make bench), or choose another place with --out" in told
    with pytest.raises(OtherMachineError):
        write({"machine": {**were, **change}, "parts": {"large": part}}, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before
    write({"machine": {**were, **change}, "parts": {"layer": part, "large": part}}, tmp_path)  # nothing is left over
    assert json.loads((tmp_path / "results.json").read_text())["machine"][key] == value


def test_a_figure_meets_its_target_or_not() -> None:
    assert Figure(name="f", value=6.0, unit="x", at_least=6.0).met is True
    assert Figure(name="f", value=5.9, unit="x", at_least=6.0).met is False
    assert Figure(name="f", value=1.1, unit="share", at_most=1.0).met is False
    assert Figure(name="f", value=1.1, unit="share").met is None


def test_the_command_runs_what_it_is_asked_for_and_ends_in_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command.main(["--quick", "--only", "state_size", "--out", str(tmp_path)])
    said = capsys.readouterr()
    document = json.loads(said.out.splitlines()[-1])
    assert list(document["parts"]) == ["state_size"]
    assert "cache over state" in said.err
    assert list(tmp_path.iterdir()) == []  # toy sizes are nobody's results


def test_the_page_says_what_was_measured() -> None:
    page = (PAGE / "index.md").read_text(encoding="utf-8")
    results = json.loads((PAGE / "results.json").read_text(encoding="utf-8"))
    assert set(results["parts"]) == set(PARTS)
    assert page == filled(page, results), "docs/benchmarks/index.md is behind results.json; run: make bench"
    for name, part in results["parts"].items():
        assert f"<!-- begin {name} -->" in page
        assert part["plot"] is None or (PAGE / f"{name}.svg").exists()


@pytest.mark.slow
def test_the_comparison_on_a_gpu_runs_in_toy_sizes_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--quick", "--provider", "cpu"])
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [result["title"] for result in results] == ["Generation", "One memory layer", "A large model"]
    for result in results:
        for rows in result["tables"].values():
            assert all(row["tokens/s"] > 0 for row in rows)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "run it on a machine with an NVIDIA GPU" in capsys.readouterr().err
