"""Evidence for `recall`: every variant beside its controls, over seeds, and how far the memory reaches.

    python -m evidence.recall             train, export and ask everything; summary.json and the pictures
    python -m evidence.recall --push      also more keys, more pairs, more heads, and gaps up to a million tokens

Everything goes through `titans train`, `titans export` and `titans eval`, one command after the other. Knows the
recipes. Does not know how anything is measured.
"""

from __future__ import annotations

VARIANTS = ("lmm", "mal", "mag", "mac")
SEEDS = (0, 1, 2)
WINDOW = 16
GAP = 4096  # 32 times the longest gap in training, 256 times the window
GAPS = (0, 128, 1024, GAP)


def recipe(variant: str, seed: int, **changes: object) -> list[str]:
    """The options of `titans train`."""
    model = {
        "dim": 64,
        "chunk": WINDOW,
        "window": WINDOW,
        "heads": 2,
        "persistent_tokens": 0 if variant == "lmm" else 4,
        "ffn_hidden": 128,
        "memory.heads": 1,
        "memory.depth": 2,
        **changes,
    }
    shape = [word for name, value in model.items() for word in ("--set", f"{name}={value}")]
    return ["--task", "recall", "--variant", variant, *shape, "--seed", str(seed)]
