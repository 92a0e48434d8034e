"""Names of versions before 0.4.0, and the refusal of those that compute otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.export.titans_pytorch import cases
from titans_export.titans_pytorch.older import modern
from titans_export.titans_pytorch.parameters import CheckpointError
from titans_export.titans_pytorch.steppable import TitansPytorchModel

NOW_TO_THEN = {"0.": "0.", "4.": "1.", "5.": "2.branch.", "1.": "2.", "6.": "3.branch.", "2.": "3."}


def older(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict by the names of 0.3.11, keys and values as one matrix."""
    found = {}
    for name, value in tensors.items():
        head, number, place, *rest = [*name.split("."), "", "", ""]
        if head == "layers":
            name = f"layers.{number}.{NOW_TO_THEN[place + '.']}{'.'.join(part for part in rest if part)}"
        found[name] = value
    for name in [name for name in found if name.endswith("to_keys.weight")]:
        values = found.pop(name.replace("to_keys", "to_values"))
        found[name.replace("to_keys", "to_keys_values")] = torch.cat([found.pop(name), values])
    return found


def test_a_checkpoint_by_older_names_is_the_same_model() -> None:
    config = cases.transformer({"num_residual_streams": 1})
    _, tensors = cases.perturbed(config)
    then = older(tensors)
    assert set(then) != set(tensors)
    again = modern(then)
    assert set(again) == set(tensors)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert TitansPytorchModel(config, then).variant == "mac"
    assert modern(tensors) == tensors


def test_three_views_of_the_streams_are_refused_by_name() -> None:
    tensors = {
        "layers.0.0.dynamic_alpha_fn": torch.zeros(6, 7),
        "layers.0.0.static_alpha": torch.zeros(4, 7),
        "layers.0.2.branch.norm.weight": torch.zeros(6),
    }
    with pytest.raises(CheckpointError, match="three mixtures of the residual streams") as found:
        modern(tensors)
    assert "neural_memory_qkv_receives_diff_views" in found.value.remedy


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("layers.0.1.empty_memory_embed", "a learned vector answers"),
        ("layers.0.1.memory_model.ln.gamma", "its own norm inside"),
        ("layers.0.1.memory_model.weights.0", "share one memory network"),
        ("layers.0.0.branch.attn.norm.weight", "in another order"),
    ],
)
def test_a_version_that_computes_otherwise_is_refused_by_what_it_does(name: str, what: str) -> None:
    with pytest.raises(CheckpointError, match=what) as found:
        modern({name: torch.zeros(4)})
    assert name in str(found.value)
    assert "0.3.5" in found.value.remedy
