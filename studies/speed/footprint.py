"""What a model costs to export and to hold: seconds and bytes, measured in processes of their own.

    python -m studies.speed.footprint --preset 170m --variant mac

Exports a randomly initialised model with the command a user would type, loads the bundle in a fresh process, feeds it
and takes the peak memory from the operating system. Then the time from process start to the first token of a `tiny`
bundle. The last line is one JSON document. Knows nothing about speed under load (`python -m studies.speed`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 2**20
STARTS = 7  # process starts; the median counts

LOAD = """
import resource, sys, numpy as np, titans_runtime as titans
model = titans.load(sys.argv[1], provider="cpu")
session = model.session()
session.feed(np.arange(3 * model.manifest.chunk + 5) % 250)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

FIRST_TOKEN = """
import sys, titans_runtime as titans
next(iter(titans.load(sys.argv[1], provider="cpu").session().generate_tokens("def main():", 1)))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="170m")
    parser.add_argument("--variant", default="mac")
    parser.add_argument("--verify-tokens", type=int, default=2048, help="as in titans export")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        result: dict[str, Any] = {"preset": options.preset, "variant": options.variant}
        parameters = checkpoint(options.preset, options.variant, work / "model")
        result["parameters"] = parameters
        seconds, peak = command(
            "export", work / "model", "--out", work / "model.titans", "--verify-tokens", options.verify_tokens
        )
        result |= {"export_seconds": round(seconds, 1), "export_peak_rss_mib": peak}
        size = sum(file.stat().st_size for file in (work / "model.titans").iterdir())
        weights = (work / "model.titans" / "weights.safetensors").stat().st_size
        result |= {"bundle_mib": round(size / MIB, 1), "bundle_over_parameters": round(size / (4 * parameters), 4)}
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD, work / "model.titans"], capture_output=True, text=True, check=True
        )
        result |= {"weights_mib": round(weights / MIB, 1), "runtime_peak_rss_mib": int(loaded.stdout)}
        checkpoint("tiny", options.variant, work / "tiny")
        command("export", work / "tiny", "--out", work / "tiny.titans", "--verify-tokens", 0)
        starts = []
        for _ in range(STARTS):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", FIRST_TOKEN, work / "tiny.titans"], check=True)
            starts.append(time.perf_counter() - began)
        result["tiny_first_token_seconds"] = round(statistics.median(starts), 3)
    print(json.dumps(result))


def checkpoint(preset_name: str, variant: Any, path: Path) -> int:
    """A checkpoint of a randomly initialised model, made in a process of its own; returns its parameters."""
    code = """
import sys, torch
from pathlib import Path
from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_core.training.checkpoint import Checkpoint, TrainingProgress, prepare_directory, save_checkpoint
torch.manual_seed(0)
model = TitansModel(preset(sys.argv[1], variant=sys.argv[2]))
prepare_directory(Path(sys.argv[3]))
state = Checkpoint(model.config, model.state_dict(), None, {"seed": 0})
save_checkpoint(Path(sys.argv[3]), state, TrainingProgress(0, {}))
print(model.num_parameters())
"""
    made = subprocess.run(
        [sys.executable, "-c", code, preset_name, variant, path], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(made.stdout)


def command(*arguments: object) -> tuple[float, int]:
    """Run a `titans` command; returns its seconds and its peak resident memory in MiB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "titans_cli.main", *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("titans export failed; see above")
    return time.perf_counter() - began, usage.ru_maxrss // 1024


if __name__ == "__main__":
    main()
