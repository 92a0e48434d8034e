"""The parts of the benchmarks: in which order they run, each in a process of its own, and where results go.

Knows the parts' names and toy sizes, and how results become `results.json`, plots and the page. Does not know what a
part measures, or the command line (`__main__`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from studies.speed.page import draw, filled
from titans_cli.terminal import progress_bar
from titans_measure.speed.measure import machine

RESULTS = "results.json"
QUICK = {"rounds": 1, "threads": 1}  # of every part that has them
# Toy sizes of every part, in the order in which they run.
PARTS: dict[str, dict[str, Any]] = {
    "layer": {"dim": 32, "heads": 2, "chunk": 8, "tokens": 32, "slow_tokens": 8, "compiled": False},
    "generation": {
        "dim": 32, "layers": 2, "heads": 2, "segment": 8, "tokens": 8, "library_tokens": 4, "near": 16, "far": 32,
        "block": 8, "blocks": 1,
    },
    "large": {"preset": "tiny", "prompt": 64, "tokens": 4},
    "training": {"dim": 32, "heads": 2, "chunk": 8, "shapes": ((2, 8),), "compiled": False},
    "lockstep": {"preset": "tiny", "variants": ("lmm",), "streams": 2, "prompt": 32, "tokens": 4},
    "state_size": {"presets": ("tiny",), "variants": ("mac",)},
    "context": {"preset": "tiny", "contexts": (32, 64), "tokens": 4},
}  # fmt: skip


def run_part(name: str, quick: bool) -> dict[str, Any]:
    """One part's results as plain data, and the seconds it took."""
    module = import_module(f"studies.speed.{name}")
    sizes = module.Sizes(**_toy(name, module)) if quick else module.Sizes()
    began = time.perf_counter()
    with progress_bar(name) as progress:
        result: dict[str, Any] = module.measure(sizes, progress).as_json()
    return {**result, "seconds": round(time.perf_counter() - began, 1)}


class OtherMachineError(Exception):
    """Results that are to stand beside those of another machine."""


def here(quick: bool) -> dict[str, Any]:
    """What results depend on: the machine, the threads and the versions of what runs."""
    from studies.speed.kit import THREADS

    versions = {name: metadata.version(name.replace("_", "-")) for name in ("torch", "titans_pytorch")}
    return {**machine(), "threads": 1 if quick else THREADS, **versions}


def check_beside(names: Collection[str], where: dict[str, Any], out: Path) -> None:
    """Whether results of these parts may stand beside those that `out` keeps: all of a page is of one machine.

    Raises:
        OtherMachineError: other parts' results are of another machine, or of other versions.
    """
    before = _stored(out)
    others = [name for name in before["parts"] if name not in names]
    differing = {key for key in {*before["machine"], *where} if before["machine"].get(key) != where.get(key)}
    if others and differing:
        differs = ", ".join(f"{key} {before['machine'].get(key)}, here {where.get(key)}" for key in sorted(differing))
        raise OtherMachineError(
            f"{out / RESULTS} keeps {', '.join(others)} of another machine ({differs}), and one page cannot hold both;"
            " measure every part here (make bench), or choose another place with --out"
        )


def run_parts(names: Sequence[str], quick: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Every part in a fresh process."""
    from studies.speed.kit import alone

    parts = {}
    for name in names:
        tell(f"{name} …")
        parts[name] = alone(run_part, name, quick)
        for figure in parts[name]["figures"]:
            tell(f"  {figure['name']}: {figure['value']:.4g}{wanted(figure)}")
        tell(f"  {parts[name]['seconds']} s")
    return {"machine": here(quick), "parts": parts}


def write(results: dict[str, Any], out: Path) -> None:
    """`results.json`, the plots, and the marked parts of `index.md` if it is there; other parts' results are kept.

    Raises:
        OtherMachineError: they are of another machine; nothing is written.
    """
    check_beside(results["parts"], results["machine"], out)
    out.mkdir(parents=True, exist_ok=True)
    path, page = out / RESULTS, out / "index.md"
    together = {**_stored(out)["parts"], **results["parts"]}
    document = {**results, "parts": {name: together[name] for name in PARTS if name in together}}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, part in results["parts"].items():
        if part["plot"]:
            draw(part["plot"], out / f"{name}.svg")
    if page.exists():
        page.write_text(filled(page.read_text(encoding="utf-8"), document), encoding="utf-8")


def _stored(out: Path) -> dict[str, Any]:
    path = out / RESULTS
    found: dict[str, Any] = {"machine": {}, "parts": {}}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    return found


def _toy(name: str, module: Any) -> dict[str, Any]:
    known = {field.name for field in fields(module.Sizes)}
    return {**{key: value for key, value in QUICK.items() if key in known}, **PARTS[name]}


def wanted(figure: dict[str, Any]) -> str:
    for name, sign in (("at_least", "≥"), ("at_most", "≤")):
        if figure[name] is not None:
            return f" (wanted {sign} {figure[name]:g}: {'met' if figure['met'] else 'missed'})"
    return ""
