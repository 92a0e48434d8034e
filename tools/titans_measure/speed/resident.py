"""Loads a bundle in a process of its own, and says what that took of the machine's memory.

python -m titans_measure.speed.resident BUNDLE STREAMS

Linux only: it reads /proc/self/status. The last line is JSON.

Knows what a process holds. Does not know what a budget is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from titans_format.fields import TokenInputs
from titans_runtime import Model, Session, load
from titans_runtime.devices.ort_sessions import import_onnxruntime

_STATUS = Path("/proc/self/status")


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process that are in memory; the most that ever were with `VmHWM`."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")


def read(model: Model, session: Session) -> None:
    """A stream through every graph: parts of chunks, whole ones, single tokens, and what is due at their ends."""
    inputs, chunk = model.manifest.inputs, model.manifest.chunk
    pieces = (chunk, chunk // 2 or 1, *([1] * min(chunk, 3)), chunk)
    for count in pieces:
        tokens = np.zeros(count, np.int64)
        session.feed(tokens if isinstance(inputs, TokenInputs) else np.zeros((count, inputs.features), np.float32))
    session.feed([0] * 2 if isinstance(inputs, TokenInputs) else np.zeros((2, inputs.features), np.float32))


def main(bundle: str, streams: str) -> None:
    """Measure, and print."""
    import_onnxruntime()
    found = {"runtime": resident()}
    model = load(bundle, provider="cpu", threads=1)
    first = model.session()
    read(model, first)
    read(model, first)
    found["one_stream"], found["peak"] = resident(), resident("VmHWM")
    others = []
    for _ in range(int(streams) - 1):
        others.append(model.session())
        read(model, others[-1])
    found["all_streams"] = resident()
    found["streams"] = 1 + len(others)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
