"""How fast libtitans decodes beside Python's runtime, in turns within one run; and how soon its first token comes.

python scripts/native/speed.py BUNDLE --steps 2000

Both feed single tokens greedily, with one thread and the fused kernels. The last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

import titans_runtime
from titans_runtime import native

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 5


def python_step_us(session: titans_runtime.Session, steps: int) -> float:
    """CPU time of a step in Python, in microseconds."""
    token = 1
    began = time.process_time()
    for _ in range(steps):
        token = int(np.argmax(session.feed([token])))
    return 1e6 * (time.process_time() - began) / steps


def c_steps(bundle: Path, kernels: str, steps: int) -> dict[str, Any]:
    """What the program of the tests prints."""
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    words = [str(ROOT / "build/libtitans/steps"), str(bundle), str(library), kernels, str(steps), "200"]
    found: dict[str, Any] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return found


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True)
def main(bundle: Path, steps: int) -> None:
    """Compare the two on BUNDLE. Needs `make native`."""
    library = native.kernels()
    kernels = "-" if library is None else str(library.path)
    session = titans_runtime.load(bundle, provider="cpu", threads=1).session()
    python_step_us(session, 200)
    rounds = [(python_step_us(session, steps), c_steps(bundle, kernels, steps)) for _ in range(ROUNDS)]
    python = [each for each, _ in rounds]
    ours = [float(found["cpu_us"]) for _, found in rounds]
    report = {
        "python_cpu_us": round(statistics.median(python), 1),
        "c_cpu_us": round(statistics.median(ours), 1),
        "ratio": round(statistics.median(p / c for p, c in zip(python, ours, strict=True)), 2),
        "first_token_ms": round(statistics.median(float(found["first_token_ms"]) for _, found in rounds), 1),
        "fused": library is not None,
    }
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
