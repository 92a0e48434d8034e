"""Train, export, evaluate: each a `titans` command of its own, and none of them run twice.

What is finished in the output folder is taken as it is, and an interrupted training goes on where it was, so a script
can be stopped at any time and started again. Delete a file or a folder to have it made anew.

Knows the commands. Does not know tasks.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SAVE_EVERY = 100  # steps of a training that an interruption can cost


class Pipeline:
    """The runs below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def trained(self, name: str, *options: object) -> Path:
        """The checkpoint `name` of `titans train`; what it said is in `name`.train.json."""
        checkpoint, said = self.folder / f"{name}.checkpoint", self.folder / f"{name}.train.json"
        if not said.exists():
            document = titans("train", *options, "--out", checkpoint, "--save-every", SAVE_EVERY, "--resume")
            write_json(said, document)
        return checkpoint

    def exported(self, name: str, checkpoint: Path, *options: object) -> Path:
        """The bundle `name` of `checkpoint`, verified; what the export said is in `name`.export.json."""
        bundle, said = self.folder / f"{name}.titans", self.folder / f"{name}.export.json"
        if not said.exists():
            shutil.rmtree(bundle, ignore_errors=True)
            write_json(said, titans("export", checkpoint, "--out", bundle, *options))
        return bundle

    def evaluated(self, name: str, bundle: Path, *options: object) -> dict[str, Any]:
        """What `titans eval` said about `bundle`; kept in `name`.eval.json."""
        said = self.folder / f"{name}.eval.json"
        if not said.exists():
            write_json(said, titans("eval", bundle, *options))
        return read_json(said)


def titans(*arguments: object) -> dict[str, Any]:
    """Run a `titans` command as a user would; its progress goes to the terminal, its JSON is returned."""
    words = [str(argument) for argument in arguments]
    print(f"$ titans {' '.join(words)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "titans_cli.main", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document so that it is there as a whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The inverse of `write_json`."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over the seeds (n - 1), and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": list(values)}
