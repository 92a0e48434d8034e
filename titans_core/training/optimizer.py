"""AdamW with weight decay where it belongs, and its state as named tensors.

Knows which parameters decay: the projections. Does not know steps, rates or files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from titans_core.layers import Linear

BETAS = (0.9, 0.95)  # a shorter second moment than the default 0.999: runs of a few hundred steps never fill that one


def build_optimizer(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over `model`. Only projection matrices decay.

    Gate biases, norms, convolutions, embeddings, persistent tokens and the learned initial memory do not: zero is
    not a neutral value for them.
    """
    projections = {id(module.weight) for module in model.modules() if isinstance(module, Linear)}
    decayed = [p for p in model.parameters() if id(p) in projections]
    others = [p for p in model.parameters() if id(p) not in projections]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=BETAS)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` for every parameter from now on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `{"exp_avg.<parameter>": tensor, ...}`."""
    return {
        f"{kind}.{name}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, bit for bit; moments move to their parameter's device."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        parameter = parameters[name]
        device = value.device if kind == "step" else parameter.device  # AdamW counts steps on the CPU
        optimizer.state[parameter][kind] = value.to(device)
