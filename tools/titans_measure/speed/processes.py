"""What only a process of its own can show: starting cold, and the memory it ends with.

Knows how to start Python and ask it. Everything measured is told on the last line of its output.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from titans_runtime.errors import ExecutionError

_FIRST = """
import json, sys, time
import titans_runtime
from titans_format.fields import TokenInputs
bundle, provider, threads, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3]) or None, int(sys.argv[4])
imported = time.perf_counter()
model = titans_runtime.load(bundle, provider=provider, threads=threads)
loaded = time.perf_counter()
kind = model.manifest.inputs
piece = [0] if isinstance(kind, TokenInputs) else [[0.0] * kind.features]
session = model.session()
session.feed(piece)
print('first', flush=True)
for _ in range(2):
    session.feed(piece * tokens)
for _ in range(4):
    session.feed(piece)
try:  # not getrusage: its figure counts what the parent held when it forked
    status = open("/proc/self/status").read()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
except OSError:
    peak = None
print(json.dumps({"load": loaded - imported, "peak": peak}))
"""


@dataclass(frozen=True)
class Start:
    """A process that loads a bundle, feeds a token, then two chunks and a few tokens; medians of seconds.

    cold_seconds: from before the process exists to its first token.
    load_seconds: of `load`, hashes included.
    peak_rss_bytes: of the process; None where the system does not say.
    """

    cold_seconds: float
    load_seconds: float
    peak_rss_bytes: int | None


def starts(bundle: Path, provider: str, threads: int | None, chunk: int, times: int = 3) -> Start:
    """Start so many processes, one after another. Raises `ExecutionError` if one fails."""
    cold, load, peak = [], [], []
    for _ in range(times):
        arguments = [str(bundle), provider, str(threads or 0), str(chunk)]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", _FIRST, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        with process:
            if process.stdout is None or process.stdout.readline().strip() != "first":
                process.wait()
                raise ExecutionError("a process that loads the bundle fails", "see above, and try `titans run` with it")
            cold.append(time.perf_counter() - began)
            result = json.loads(process.stdout.read())
        load.append(result["load"])
        peak.append(result["peak"])
    return Start(statistics.median(cold), statistics.median(load), None if None in peak else max(peak))
