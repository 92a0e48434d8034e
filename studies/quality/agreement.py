"""Do a bundle and the PyTorch model it came from give the same answers?

    python -m studies.quality.agreement BUNDLE CHECKPOINT --task recall --pairs 16 --gap 4096

Both are asked the same questions by the same evaluator: the bundle through the runtime, the model in eager PyTorch.
The last line on stdout is one JSON document; the exit code is 1 where less than 99.9 % of the predictions agree.

Knows both sides. Does not know how questions are made (`titans_measure.quality`).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import titans_runtime
from titans_core.training.checkpoint import load_model
from titans_export.models.titans import TitansSteppable
from titans_export.verification.torch_stream import TorchStream
from titans_measure.quality import needle
from titans_measure.quality.recall import Questions
from titans_measure.quality.streams import Stream
from titans_runtime.arrays import Array, FloatArray
from titans_tasks.documents import STDLIB, read_corpus
from titans_tasks.needle import Haystack
from titans_tasks.recall import RecallConfig

AGREES = 0.999


@dataclass(frozen=True)
class Told:
    """What an eager stream said: float32 `[B, T, V]`."""

    outputs: FloatArray


class Eager:
    """PyTorch in place of the runtime."""

    def __init__(self, stream: TorchStream) -> None:
        self._stream = stream

    @classmethod
    def of(cls, checkpoint: Path, batch: int) -> Eager:
        """`batch` fresh streams of the model in `checkpoint`."""
        model, _ = load_model(checkpoint)
        return cls(TorchStream(TitansSteppable(model.eval().requires_grad_(False)), batch))

    def feed(self, inputs: Array, all_outputs: bool = False) -> Told:
        """Consume ids `[B, T]`."""
        outputs = self._stream.feed(torch.from_numpy(np.ascontiguousarray(inputs))).numpy()
        return Told(outputs if all_outputs else outputs[:, -1:])

    def fork(self) -> Eager:
        """Other streams that go on from here."""
        branch = copy.copy(self._stream)
        branch.state = {name: value.clone() for name, value in self._stream.state.items()}
        return Eager(branch)

    def reset(self) -> None:
        """Not needed here: every question begins with fresh streams."""
        raise NotImplementedError


def recall_answers(stream: Stream, streams: int, keys: int, pairs: int, gap: int) -> NDArray[np.int64]:
    """What fresh streams answer after the gap, `[streams, pairs]`."""
    return Questions(RecallConfig(keys=keys, values=keys, pairs=pairs), streams).after_gaps(stream, [gap])[gap]


def needle_answers(stream: Stream, options: needle.NeedleOptions) -> NDArray[np.int64]:
    """The bytes that fresh streams answer at the first length, `[streams, A]`."""
    hay = Haystack(read_corpus([STDLIB]).held_out)
    return needle.Hidden.of(hay, options, options.lengths[0]).ask(stream)


def main() -> None:
    """Ask both sides and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--task", choices=["recall", "needle"], default="recall")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--keys", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--gap", type=int, default=4096)
    parser.add_argument("--length", type=int, default=4096, help="bytes of a needle's stream")
    chosen = parser.parse_args()
    torch.set_flush_denormal(True)  # as the runtime does
    sides: dict[str, Any] = {
        "bundle": titans_runtime.load(chosen.bundle, provider="cpu").driver(chosen.streams),
        "checkpoint": Eager.of(chosen.checkpoint, chosen.streams),
    }
    options = needle.NeedleOptions(lengths=(chosen.length,), streams=chosen.streams)
    answers = {}
    for side, stream in sides.items():
        print(f"asking the {side}", file=sys.stderr)
        if chosen.task == "recall":
            answers[side] = recall_answers(stream, chosen.streams, chosen.keys, chosen.pairs, chosen.gap)
        else:
            answers[side] = needle_answers(stream, options)
    same = answers["bundle"] == answers["checkpoint"]
    print(json.dumps({"task": chosen.task, "predictions": same.size, "agree": float(same.mean())}))
    sys.exit(0 if same.mean() >= AGREES else 1)


if __name__ == "__main__":
    main()
