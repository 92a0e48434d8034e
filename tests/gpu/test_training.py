"""The training definition on a CUDA device: `pytest -m gpu`. Skipped, with the reason, elsewhere."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.conftest import train
from tests.export.conftest import build
from titans_core.config import VARIANTS
from titans_core.training.checkpoint import load_model
from titans_export.export import export_model
from titans_export.verification.agreement import compare

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")]

CLOSE = 2e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_state_and_gradients_are_the_cpus(variant: str) -> None:
    here = build(f"{variant}-tokens")
    there = copy.deepcopy(here).to("cuda")
    ids = torch.randint(0, 50, (2, 96), generator=torch.Generator().manual_seed(0))
    wanted, after = here(ids)
    found, state = there(ids.to("cuda"))
    torch.testing.assert_close(found.cpu(), wanted, rtol=CLOSE, atol=CLOSE)
    for name, value in after.items():
        torch.testing.assert_close(state[name].cpu(), value, rtol=CLOSE, atol=CLOSE)
    wanted.square().mean().backward()
    found.square().mean().backward()
    for (name, ours), theirs in zip(there.named_parameters(), here.parameters(), strict=True):
        assert theirs.grad is not None, name
        assert ours.grad is not None, name
        scale = float(theirs.grad.abs().max()) + 1e-6
        assert float((ours.grad.cpu() - theirs.grad).abs().max()) <= 1e-3 * scale, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_trained_there_is_exported_as_from_a_cpu(variant: str, precision: str, tmp_path: Path) -> None:
    arguments = ["--variant", variant, "--device", "cuda", "--precision", precision]
    if variant == "lmm":
        arguments += ["--set", "persistent_tokens=0"]
    model, _ = load_model(train(tmp_path, *arguments))
    export_model(model, tmp_path / "model.titans", verify_tokens=0)
    report = compare(tmp_path / "model.titans", model, tokens=64)
    assert report.ok, report.explain()
