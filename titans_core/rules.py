"""Rules of learning by name: which objective, retention and momentum a memory has.

`titans` is the default memory. The other named ones are the three models of MIRAS (arXiv 2504.13173 §5.3), whose memory
is `x + LN(W_1 s(W_2 x))` of four times its width and has no momentum; what departs from the paper is in docs/rules.md.
Knows options of a memory. Does not know sizes (`presets`).
"""

from __future__ import annotations

from typing import Any

from titans_core.errors import ConfigError

# The gain starts at 1 in the paper, and by default at next to nothing here. In between recall is learned soonest.
_MIRAS: dict[str, Any] = {
    "depth": 2,
    "expansion": 4.0,
    "residual_norm": True,
    "initial_gain": 0.3,
    "momentum": False,
}

RULES: dict[str, dict[str, Any]] = {
    "titans": {},
    "momentum-free": {"momentum": False},
    "yaad": _MIRAS | {"objective": "huber"},
    "moneta": _MIRAS | {"objective": "lp", "objective_p": 3.0, "retention": "lq", "retention_q": 4.0},
    "memora": _MIRAS | {"retention": "kl"},
}


def rule(name: str) -> dict[str, Any]:
    """The options of `MemoryConfig` that rule `name` sets.

    Raises:
        ConfigError: an unknown rule.
    """
    if name not in RULES:
        raise ConfigError(f"there is no rule {name!r}", f"choose one of {', '.join(RULES)}")
    return dict(RULES[name])
