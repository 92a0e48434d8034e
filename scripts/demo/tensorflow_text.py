"""A trained text model driven from TensorFlow: ids and logits cross by DLPack, and TensorFlow chooses the tokens.

    titans train --task text --data stdlib --variant mac --preset tiny --steps 300 --out checkpoint
    titans export checkpoint --out model.titans
    python scripts/demo/tensorflow_text.py model.titans --prompt "def main():" --tokens 64

Needs `tensorflow` or `tensorflow-cpu` beside the runtime, and no torch. The runtime keeps the state; TensorFlow sees
ids and logits.

Knows TensorFlow. Does not know what is in a bundle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf

import titans_runtime
from titans_runtime import Session

ALIGNMENT = 64  # bytes; TensorFlow ends the process where a tensor that it is given by DLPack lies elsewhere


def main() -> None:
    """Continue a prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", default="def main():")
    parser.add_argument("--tokens", type=int, default=64)
    chosen = parser.parse_args()
    model = titans_runtime.load(chosen.bundle, provider="cpu")
    ids = generate(model.session(), tf.constant(model.encode(chosen.prompt), tf.int64), chosen.tokens)
    assert model.tokenizer is not None
    print(chosen.prompt + model.tokenizer.decode(ids))


def generate(session: Session, ids: tf.Tensor, tokens: int) -> list[int]:
    """The most likely continuation of `ids` `[T]` int64, chosen by TensorFlow token by token."""
    chosen: list[int] = []
    for _ in range(tokens):
        logits = to_tensorflow(session.feed(np.from_dlpack(ids)))
        ids = tf.argmax(logits, output_type=tf.int64)[None]
        chosen.append(int(ids[0]))
    return chosen


def to_tensorflow(array: np.ndarray) -> tf.Tensor:
    """An array as a tensor on the same memory, copied first where TensorFlow could not take it."""
    if array.ctypes.data % ALIGNMENT:
        room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
        start = -room.ctypes.data % ALIGNMENT
        copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        array = copy
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


if __name__ == "__main__":
    main()
