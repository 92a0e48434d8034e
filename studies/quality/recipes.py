"""The model that recall, needles and the ablations are trained with, as options of `titans train`.

Knows one small shape. Does not know any task.
"""

from __future__ import annotations


def shape(variant: str, window: int, **changes: object) -> list[str]:
    """`--variant` and `--set`s, with chunks and attention windows of `window` tokens.

    `changes` are options of the model by name; those of its memory with two underscores, as in `memory__depth`.
    """
    model = {
        "dim": 64,
        "chunk": window,
        "window": window,
        "heads": 2,
        "persistent_tokens": 0 if variant == "lmm" else 4,
        "ffn_hidden": 128,
        "memory.depth": 2,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return ["--variant", variant, *(word for name, value in model.items() for word in ("--set", f"{name}={value}"))]


def run(steps: int, seed: int, rate: str = "4e-3") -> list[str]:
    """How long and how fast: streams, steps and rates."""
    return ["--steps", str(steps), "--batch", "16", "--lr", rate, "--warmup", "50", "--seed", str(seed)]
