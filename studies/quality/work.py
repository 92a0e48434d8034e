"""Experiments as a folder of JSON files: every `titans` command is run once, and what it said is kept.

    OUT/checkpoints/NAME   OUT/bundles/NAME.titans   OUT/results/NAME.json

A step whose result is there is not run again, so a study that was interrupted goes on where it stopped. It is run again
where its command is another one by now, or what it was made from was made again since. Every result holds the command
that made it and the processor seconds it took.

Knows commands and files. Does not know any task.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titans_runtime.atomic import replace_file

OUT = Path("evidence-out")
Reports = dict[str, dict[str, Any]]  # of one seed, by run
VERIFY = ("--verify-tokens", 512)  # every bundle is verified, on a stream shorter than usual: there are dozens of them


@dataclass(frozen=True)
class Study:
    """A folder of results."""

    out: Path
    threads: int | None = None  # of `titans eval`; None is one per core

    def train(self, name: str, *options: object) -> dict[str, Any]:
        """`titans train`, once; what it printed."""
        checkpoint = self.out / "checkpoints" / name
        return self._run(f"train-{name}", None, "train", *options, "--out", checkpoint, replaces=checkpoint)

    def export(self, name: str, *options: object, checkpoint: str | None = None) -> Path:
        """`titans export` of the checkpoint of that name (the bundle's own, if None), once; the bundle."""
        bundle = self.out / "bundles" / f"{name}.titans"
        source = self.out / "checkpoints" / (checkpoint or name)
        made_from = f"train-{checkpoint or name}"
        self._run(f"export-{name}", made_from, "export", source, "--out", bundle, "--overwrite", *VERIFY, *options)
        return bundle

    def evaluate(self, name: str, bundle: Path, *options: object) -> dict[str, Any]:
        """`titans eval`, once; its report."""
        threads = () if self.threads is None else ("--threads", self.threads)
        return self._run(f"eval-{name}", f"export-{bundle.stem}", "eval", bundle, *options, *threads)

    def _run(self, name: str, made_from: str | None, *words: object, replaces: Path | None = None) -> dict[str, Any]:
        """A command's JSON document, kept or made now; `replaces` is a folder that an interrupted run may have left."""
        result = self._result(name)
        command = [str(word) for word in words]
        header = {"command": f"titans {shlex.join(command)}", "made_from": self._fingerprint(made_from)}
        kept = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        if any(kept.get(key) != value for key, value in header.items()):
            if replaces:
                shutil.rmtree(replaces, ignore_errors=True)
            print(f"$ titans {shlex.join(command)}", file=sys.stderr, flush=True)
            before = os.times()
            done = subprocess.run(
                [sys.executable, "-m", "titans_cli.main", *command, "--json"],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"titans {shlex.join(command)} failed with exit code {done.returncode}")
            after = os.times()
            seconds = after.children_user + after.children_system - before.children_user - before.children_system
            kept = {**header, "seconds": round(seconds, 1), "result": json.loads(done.stdout)}
            write(result, kept)
        return dict(kept["result"])

    def _fingerprint(self, name: str | None) -> str | None:
        """Of a kept result; None where there is none."""
        if name is None or not self._result(name).exists():
            return None
        return hashlib.sha256(self._result(name).read_bytes()).hexdigest()

    def seconds(self, name: str) -> float:
        """Processor seconds, of all cores together, that the step whose result has this name took."""
        return float(json.loads(self._result(name).read_text(encoding="utf-8"))["seconds"])

    def _result(self, name: str) -> Path:
        return self.out / "results" / f"{name}.json"


def write(path: Path, document: object) -> None:
    """A JSON file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(document, indent=1) + "\n").encode())


def options(description: str | None, seeds: Sequence[int] = ()) -> argparse.ArgumentParser:
    """The options that every study has, and those of one that is drawn and whose `seeds` may be others."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help=f"where everything goes (default {OUT})")
    parser.add_argument("--threads", type=int, help="CPU threads of titans eval (default one per core)")
    if seeds:
        parser.add_argument("--plot", type=Path, help="also draw it")
        usual = " ".join(map(str, seeds))
        parser.add_argument("--seeds", type=int, nargs="+", default=seeds, help=f"of the trainings (default {usual})")
    return parser


def drawn_study(
    name: str,
    description: str | None,
    seeds: Sequence[int],
    one_seed: Callable[[Study, int], Reports],
    summary: Callable[[list[Reports]], dict[str, Any]],
    tables: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None],
) -> None:
    """A whole study: its options, every seed, NAME.json, the tables on stdout and, if asked for, the picture."""
    arguments = options(description, seeds).parse_args()
    study = Study(arguments.out, arguments.threads)
    found = summary([one_seed(study, seed) for seed in arguments.seeds])
    write(arguments.out / f"{name}.json", found)
    print(tables(found))
    if arguments.plot:
        draw(found, arguments.plot)


def mean_and_range(values: list[float]) -> str:
    """`mean (least to most)` of shares, in per cent."""
    mean = 100 * sum(values) / len(values)
    least, most = 100 * min(values), 100 * max(values)
    return f"{mean:.1f}" if most - least < 0.05 else f"{mean:.1f} ({least:.1f} to {most:.1f})"
