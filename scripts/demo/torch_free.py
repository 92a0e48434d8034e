"""The half of the demo that runs without PyTorch: ask the exported bundles, and write what they answered as JSON.

Runs in an environment that has the wheel with its [cpu] extra and nothing else. Knows the runtime. Does not know
how the bundles were trained.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import titans_runtime as titans

PIECE = 4096  # tokens per feed


def main() -> None:
    """`torch_free.py text|recall BUNDLE DATA.npz OUT.json`."""
    task, bundle, data, out = sys.argv[1], *map(Path, sys.argv[2:])
    for module in ("torch", "onnx"):
        if importlib.util.find_spec(module):
            raise SystemExit(f"{module} is installed here; this part of the demo is to run without it")
    model = titans.load(bundle, provider="cpu")
    with np.load(data, allow_pickle=False) as arrays:
        answers = {"text": text, "recall": recall}[task](model, dict(arrays))
    out.write_text(json.dumps(answers), encoding="utf-8")


def text(model: titans.Model, data: dict[str, NDArray[np.int64]]) -> dict[str, object]:
    """Bits per byte of held-out documents, with the memory kept and with it reset at every window.

    Both are counted over the same bytes: the first of a window has no context after a reset, so it never counts.
    """
    window = int(data.pop("window"))
    prompt = bytes(data.pop("prompt").astype(np.uint8)).decode()
    kept = reset = seconds = 0.0
    counted = fed = 0
    surprise: list[float] = []
    session = model.session()
    session.feed(data["document_0"][:PIECE])  # graphs are loaded when first used; that is not throughput
    longest = max(data, key=lambda name: len(data[name]))
    for name, document in data.items():
        session.reset()
        bits, spent = _bits(session, document, surprise if name == longest else None)
        seconds, fed = seconds + spent, fed + len(document)
        apart = np.zeros_like(bits)
        for start in range(0, len(document), window):
            session.reset()
            part = document[start : start + window]
            apart[start : start + len(part)], _ = _bits(session, part, None)
        inside = np.arange(len(document)) % window != 0
        kept, reset, counted = kept + bits[inside].sum(), reset + apart[inside].sum(), counted + int(inside.sum())
    sample = "".join(model.session().generate(prompt, max_new_tokens=300, temperature=0.7, seed=1))
    return {
        "bytes": fed,
        "window": window,
        "bits_per_byte_kept": kept / counted,
        "bits_per_byte_reset": reset / counted,
        "tokens_per_second": fed / seconds,
        "prompt": prompt,
        "sample": sample,
        "surprise": surprise,
    }


def _bits(
    session: titans.Session, document: NDArray[np.int64], surprise: list[float] | None
) -> tuple[NDArray[np.float64], float]:
    """Bits the model needs for every byte given those before it (the first costs 8), and the seconds spent feeding."""
    bits, seconds = np.full(len(document), 8.0), 0.0
    for start in range(0, len(document), PIECE):
        piece = document[start : start + PIECE]
        began = time.perf_counter()
        logits = session.feed(piece, all_logits=True).astype(np.float64)
        seconds += time.perf_counter() - began
        if surprise is not None:
            surprise += [float(value) for value in session.surprise]
        targets = document[start + 1 : start + 1 + len(piece)]
        logits = logits[: len(targets)]
        shifted = logits - logits.max(axis=-1, keepdims=True)
        chosen = shifted[np.arange(len(targets)), targets] - np.log(np.exp(shifted).sum(axis=-1))
        bits[start + 1 : start + 1 + len(targets)] = -chosen / np.log(2)
    return bits, seconds


def recall(model: titans.Model, data: dict[str, NDArray[np.int64]]) -> dict[str, object]:
    """Accuracy on the questions after the gap, with the memory as it is and with it reset just before them."""
    right = {"kept": 0, "reset": 0}
    questions = 0
    for tokens, queries, answers in zip(data["tokens"], data["queries"], data["answers"], strict=True):
        first = int(queries[0])
        for mode in right:
            session = model.session()
            session.feed(tokens[:first])
            if mode == "reset":
                session.reset()
            logits = session.feed(tokens[first:], all_logits=True)
            right[mode] += int((logits[queries - first].argmax(-1) == answers).sum())
        questions += len(queries)
    return {"questions": questions, **{f"accuracy_{mode}": count / questions for mode, count in right.items()}}


if __name__ == "__main__":
    main()
