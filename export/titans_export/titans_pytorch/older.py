"""Checkpoints of titans-pytorch before 0.4.0: what has only other names is renamed, what computes otherwise is refused.

Attention and feed-forward were inside of their joints then, keys and values came from one matrix. Knows names of
parameters. Does not know what a model computes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from titans_export.titans_pytorch.parameters import CheckpointError

# Place in a layer before 0.4.0 -> now; a joint has its branch inside.
_PLACES = {"0.": "0.", "1.": "4.", "2.branch.": "5.", "2.": "1.", "3.branch.": "6.", "3.": "2."}
_LAYER = re.compile(r"layers\.(\d+)\.(\d\.(?:branch\.)?)(.+)")
_STREAMS = "expand_streams.stream_embed"
_KEYS_VALUES = "to_keys_values.weight"

# Parameter that tells -> what the version did that no later one does.
_OTHERWISE = {
    "empty_memory_embed": "a learned vector answers before the first chunk is stored",
    "memory_model.ln.gamma": "all heads share one memory network, which has its own norm inside",
    "memory_model.weights.0": "all heads share one memory network without a norm and a residual",
}


def modern(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that 0.4.0 and later give them; those of such versions as they are.

    Raises:
        CheckpointError: the version computes something else, naming what.
    """
    older = any(".branch." in name for name in tensors if _LAYER.fullmatch(name))
    learned = any("memory_model_parameters." in name for name in tensors)
    for ending, what in _OTHERWISE.items():
        found = next((name for name in tensors if name.endswith(ending)), None)
        if found is not None and (ending == "empty_memory_embed" or not learned):
            raise _refused(found, what)
    for name in [name for name in tensors if older and name.endswith(".0.dynamic_alpha_fn")]:
        mixture = tensors.get(name.replace("dynamic_alpha_fn", "static_alpha"))
        if mixture is not None and mixture.dim() == 2 and mixture.shape[1] > mixture.shape[0] + 1:
            raise CheckpointError(
                f"the checkpoint is of titans-pytorch before 0.4.0 ({name!r}), where queries, keys and values of a"
                " memory are three mixtures of the residual streams",
                "train without neural_memory_qkv_receives_diff_views, or with 0.4.0 or later",
            )
    inside = next((name for name in tensors if re.match(r"layers\.\d+\.[01]\.branch\.", name)), None)
    if inside is not None:
        raise _refused(inside, "the parts of a layer stand in another order")
    found_names: dict[str, Tensor] = {}
    for name, value in tensors.items():
        parts = _LAYER.fullmatch(name) if older else None
        plain = f"layers.{parts[1]}.{_PLACES[parts[2]]}{parts[3]}" if parts and parts[2] in _PLACES else name
        if plain.endswith(_KEYS_VALUES):
            keys, values = value.chunk(2, dim=0)
            stem = plain.removesuffix(_KEYS_VALUES)
            found_names |= {f"{stem}to_keys.weight": keys, f"{stem}to_values.weight": values}
        else:
            found_names[plain] = value
    joint = next((name for name in found_names if older and name.endswith(".1.static_alpha")), None)
    if joint is not None and _STREAMS not in found_names:  # before 0.3.11 all streams began alike
        streams, dim = found_names[joint].shape[0], found_names[joint.replace("static_alpha", "norm.gamma")].shape[0]
        found_names[_STREAMS] = found_names[joint].new_zeros(streams, dim)
    return found_names


def _refused(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint is of titans-pytorch before 0.3.5 ({name!r}), where {what}",
        "train the model on with 0.4.0 or later; models from 0.3.5 on are carried over",
    )
