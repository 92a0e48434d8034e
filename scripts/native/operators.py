"""Writes the table of operators for libtitans from the runtime's own.

python scripts/native/operators.py runtime/libtitans/src/operators.inc
"""

from __future__ import annotations

import sys
from pathlib import Path

from titans_runtime.graphs.operators import OPERATORS, Operator, Returns

_KINDS = {int: "i", float: "f", str: "s", tuple: "l"}
_RETURNS: dict[Returns, str] = {"bool": "bool_", 0: "first", 1: "second"}


def table() -> str:
    """The lines of an array of `Operator` in C++."""
    return "".join(_line(domain, name, operator) for (domain, name), operator in sorted(OPERATORS.items()))


def _line(domain: str, name: str, operator: Operator) -> str:
    attributes = "".join(f" {key}:{_KINDS[kind]} " for key, kind in operator.attributes.items())
    returns = _RETURNS.get(operator.returns, operator.returns)
    return f'{{"{domain}", "{name}", Returns::{returns}, "{attributes}"}},\n'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(table(), encoding="utf-8")
