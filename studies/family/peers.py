"""Models of other packages, small and with random parameters, as `titans audit` takes them: functions that build one.

Each needs its package on the path; `studies.family.audits` installs them. Knows their constructors, and how their users
carry a state. Imports a package only when a model of it is built.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

VOCABULARY = 32


def _module(name: str) -> Any:
    return importlib.import_module(name)


# ---------------------------------------------------------------- titans-memory


def _titans_memory(variant: str) -> nn.Module:
    config = _module("titans.utils.config").TitansConfig(
        variant=variant, vocab_size=VOCABULARY, d_model=16, n_layers=2, n_persistent=2, chunk_size=8, window=16
    )
    model: nn.Module = _module("titans.utils.factory").build_model(config)
    return model


def titans_memory_mac() -> nn.Module:
    """titans-memory's MAC."""
    return _titans_memory("MAC")


def titans_memory_mag() -> nn.Module:
    """titans-memory's MAG."""
    return _titans_memory("MAG")


def titans_memory_mal() -> nn.Module:
    """titans-memory's MAL."""
    return _titans_memory("MAL")


def titans_memory_lmm() -> nn.Module:
    """titans-memory's LMM."""
    return _titans_memory("LMM")


# ---------------------------------------------------------------- titans-trainer


def titans_trainer() -> nn.Module:
    """titans-trainer's model with causal=True."""
    model: nn.Module = _module("titans_trainer").TitansModel(
        vocab_size=VOCABULARY,
        d_model=16,
        n_layers=2,
        n_heads=2,
        n_persistent=2,
        chunk_size=8,
        max_seq_len=128,
        causal=True,
    )
    return model


# ---------------------------------------------------------------- tptt


class _Llama(nn.Module):
    """tptt's attention in a small random Llama, with the cache that it makes for itself."""

    def __init__(self) -> None:
        super().__init__()
        transformers = _module("transformers")
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            attn_implementation="eager",
        )
        tptt = _module("tptt.modeling_tptt")
        base = transformers.LlamaForCausalLM(config)
        modes = _module("tptt.configuration_tptt").TpttConfig.RECURRENT_MODES
        self.model, self.linear_cache = tptt.get_tptt_model(
            base, config, operator_mode="delta_rule", recurrent_config=modes["delta_rule"]
        )

    def forward(self, ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        """Logits; with `use_cache` also what the next call takes."""
        return self.model(input_ids=ids, past_key_values=past_key_values, use_cache=use_cache)


def tptt() -> nn.Module:
    """tptt's delta rule in a Llama."""
    return _Llama()


# ---------------------------------------------------------------- titans-unofficial


def _titans_unofficial(name: str, **changes: Any) -> nn.Module:
    arguments = {"d_model": 16, "n_layers": 2, "n_heads": 2, "persistent_tokens": 3, **changes}
    model: nn.Module = getattr(_module("titans.models"), name)(**arguments)
    return model


def titans_unofficial_mac() -> nn.Module:
    """titans-unofficial's MAC."""
    return _titans_unofficial("TitansMAC", chunk_size=8)


def titans_unofficial_mac_persisting() -> nn.Module:
    """The same with `persist_memory`; `reset_memory` makes it forget."""
    return _titans_unofficial("TitansMAC", chunk_size=8, persist_memory=True)


def titans_unofficial_mag() -> nn.Module:
    """titans-unofficial's MAG."""
    return _titans_unofficial("TitansMAG", window_size=8)


def titans_unofficial_mal() -> nn.Module:
    """titans-unofficial's MAL."""
    return _titans_unofficial("TitansMAL", window_size=8)


# ---------------------------------------------------------------- open-titans


class _Cached(nn.Module):
    """A model of open-titans with the cache that it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits, and the cache that the next call takes."""
        found = self.model(ids, cache=cache, return_cache=True)
        return found.logits, found.past_key_values


def _open_titans(name: str) -> nn.Module:
    package = _module(f"open_titans.models.titans_{name.lower()}")
    config = getattr(package, f"Titans{name}Config")(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        window_size=8,
        segment_len=8,
        num_persist_mem_tokens=2,
        num_attention_heads=2,
        dim_head=8,
        intermediate_size=32,
    )
    model: nn.Module = getattr(package, f"Titans{name}Model")(config, default_step_transform_max_lr=0.1)
    return model


def open_titans_mac() -> nn.Module:
    """open-titans' MAC."""
    return _open_titans("MAC")


def open_titans_mag() -> nn.Module:
    """open-titans' MAG, with its cache."""
    return _Cached(_open_titans("MAG"))


def open_titans_mal() -> nn.Module:
    """open-titans' MAL, with its cache."""
    return _Cached(_open_titans("MAL"))


# ---------------------------------------------------------------- titans-pytorch and its relative


def titans_pytorch_mac() -> nn.Module:
    """titans-pytorch's MAC."""
    model: nn.Module = _module("titans_pytorch").MemoryAsContextTransformer(
        num_tokens=VOCABULARY,
        dim=16,
        depth=2,
        segment_len=8,
        dim_head=8,
        heads=2,
        neural_memory_kwargs={"default_step_transform_max_lr": 0.1},
    )
    return model


class _Stateful(nn.Module):
    """titans-pytorch's memory alone; a call goes on from the state of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = _module("titans_pytorch").NeuralMemory(
            dim=16, chunk_size=4, batch_size=4, default_step_transform_max_lr=0.1
        )

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Retrieved vectors and the next state."""
        retrieved, state = self.memory(x, state=state)
        return retrieved, state


def titans_pytorch_memory() -> nn.Module:
    """titans-pytorch's memory."""
    return _Stateful()


def python_titans_miras() -> nn.Module:
    """python-titans-miras' MAC."""
    package = _module("titans_miras")
    model: nn.Module = package.MACTransformer(
        config=package.TransformerConfig(
            num_tokens=VOCABULARY,
            dim=16,
            depth=2,
            segment_len=8,
            dim_head=8,
            heads=2,
            neural_mem=package.NeuralMemoryConfig(default_step_transform_max_lr=0.1),
        )
    )
    return model
