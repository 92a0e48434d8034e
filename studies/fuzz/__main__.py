"""Damages manifests, graphs, weights, saved sessions and call sequences by the thousand, and says what did not hold.

    python -m studies.fuzz --cases 20000
    python -m studies.fuzz --cases 2000 --target state --seed 7 --json
    python -m studies.fuzz --cases 6000 --target interrupts    # about 100,000 interrupts that met a call

Exit codes: 0 every case was refused with an error of ours or works as it should, 1 some case crashed, hung, raised
something else, or passed unnoticed. With --keep such cases are added to regressions.json, which the tests replay.
Runs blocks of cases in processes of their own (`worker`). Does not know what a case is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from studies.fuzz.bundles import make_bundles
from studies.fuzz.targets import CASES, SUBJECTS

BLOCK = 200  # cases per process
PATIENCE = 60.0  # seconds a case may take before it counts as a hang; they take milliseconds
_LOOK = 0.05  # seconds between two looks at a worker
REGRESSIONS = Path(__file__).with_name("regressions.json")
SHARES = {
    "manifest": 0.1,
    "graph": 0.1,
    "types": 0.1,
    "operators": 0.1,
    "external": 0.05,
    "weights": 0.1,
    "state": 0.15,
    "calls": 0.1,
    "interrupts": 0.05,
    "mixups": 0.05,
    "pretrained": 0.1,
    "stream": 0.05,
    "side": 0.05,
}


@dataclass
class Findings:
    """What came of all blocks. `failed`: target, case and what went wrong. `interrupts`: how many met a call."""

    verdicts: dict[str, Counter[str]] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)
    interrupts: Counter[str] = field(default_factory=Counter)

    @property
    def cases(self) -> int:
        """How many were run to an end."""
        return sum(sum(counter.values()) for counter in self.verdicts.values())


def watched(command: list[str], current: Path, patience: float = PATIENCE) -> dict[str, Any]:
    """The result that a worker prints, or what became of it instead."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=out, stderr=complaints, text=True)
        seen, waited = 0, 0.0  # looks are counted, not the clock's time: a machine may be put to sleep meanwhile
        while process.poll() is None:
            time.sleep(_LOOK)
            at = current.stat().st_mtime_ns if current.exists() else 0
            waited = waited + _LOOK if at == seen else 0.0
            seen = at
            if waited > patience:
                process.kill()
                process.wait()
                return _died(current, f"no end after {patience:g} s")
        out.seek(0)
        complaints.seek(0)
        lines = out.read().splitlines()
        if process.returncode or not lines:
            return _died(current, f"exit status {process.returncode}: {complaints.read()[-500:]}")
        result: dict[str, Any] = json.loads(lines[-1])
        return result


def _died(current: Path, why: str) -> dict[str, Any]:
    case = json.loads(current.read_text(encoding="utf-8")) if current.exists() else {}
    return {"verdicts": {}, "failed": case, "error": why}


def run(bundles: dict[str, Path], blocks: list[tuple[str, int, int]], workers: int, console: Console) -> Findings:
    """Run blocks `(target, seed, cases)` on the bundles that the targets are about."""
    findings = Findings()
    lock = threading.Lock()
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(
            TextColumn("fuzzing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        ) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        bar = progress.add_task("", total=sum(cases for _, _, cases in blocks))

        def one(number: int, target: str, seed: int, cases: int) -> None:
            current = Path(folder) / f"{number}.json"
            words = [str(bundles[SUBJECTS[target]]), target, str(seed), str(cases), str(current)]
            result = watched([sys.executable, "-m", "studies.fuzz.worker", *words], current)
            with lock:
                findings.verdicts.setdefault(target, Counter()).update(result["verdicts"])
                findings.interrupts.update(result.get("interrupts", {}))
                if result["error"] is not None:
                    findings.failed.append({"target": target, "case": result["failed"], "error": result["error"]})
                    progress.console.print(f"[red]{target}[/]:", result["error"], highlight=False)
                    progress.console.print(json.dumps(result["failed"]), highlight=False, markup=False, soft_wrap=True)
            progress.advance(bar, cases)

        for future in [pool.submit(one, number, *block) for number, block in enumerate(blocks)]:
            future.result()
    return findings


def plan(cases: int, targets: list[str], seed: int) -> list[tuple[str, int, int]]:
    """Blocks that come to `cases` cases, those of different targets in turn."""
    whole, share, given = sum(SHARES[target] for target in targets), 0.0, 0
    blocks: list[tuple[str, int, int]] = []
    for target in targets:
        share += SHARES[target]
        left = round(cases * share / whole) - given  # rounded together, so that the parts make the whole
        given += left
        for number in range(-(-left // BLOCK)):
            blocks.append((target, seed * 1_000_000 + number, min(BLOCK, left - number * BLOCK)))
    return sorted(blocks, key=lambda block: block[1])


@click.command(epilog="Example:  python -m studies.fuzz --cases 20000")
@click.option("--cases", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--target", "targets", multiple=True, type=click.Choice(list(CASES)), help="Only this; may be repeated.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes side by side.")
@click.option("--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Damage this one.")
@click.option("--keep", is_flag=True, help="Add what fails to regressions.json.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def main(
    cases: int, targets: tuple[str, ...], seed: int, workers: int, bundle: Path | None, keep: bool, as_json: bool
) -> None:
    """Damage files and shuffle calls; report what was not refused properly."""
    console = Console(stderr=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bundles = dict.fromkeys(SUBJECTS.values(), bundle) if bundle else make_bundles(Path(folder))
        found = run(bundles, plan(cases, list(targets or CASES), seed), workers, console)
    if keep and found.failed:
        kept = json.loads(REGRESSIONS.read_text(encoding="utf-8"))
        kept += [{"target": item["target"], "case": item["case"]} for item in found.failed]
        REGRESSIONS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    report = {
        "cases": found.cases,
        "verdicts": found.verdicts,
        "failed": found.failed,
        "interrupts": found.interrupts,
        "seconds": round(time.monotonic() - began, 1),
    }
    if as_json:
        click.echo(json.dumps(report))
    else:
        for target, verdicts in found.verdicts.items():
            click.echo(f"{target:10} " + "  ".join(f"{name} {count}" for name, count in sorted(verdicts.items())))
        for kind, count in sorted(found.interrupts.items()):
            click.echo(f"{count} interrupts met a call of a {kind}")
        click.echo(f"{found.cases} cases in {report['seconds']} s, {len(found.failed)} failed")
    sys.exit(1 if found.failed else 0)


if __name__ == "__main__":
    main()
