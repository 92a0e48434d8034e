"""What a memory is worth to another model: casts between precisions, a fine-tuned successor, and eight bits at rest.

    python -m studies.quality.casts

For every variant a tiny model is trained for 100 steps and exported at every precision. The fp32 bundle reads 2,001
bytes of a held-out file, and its state goes to each of the others; all of them read the next 999 bytes beside it. Then
the model is trained for 50 more steps, and its memory is adopted, replayed and begun afresh. The last part saves the
states of recall models 200 times in eight bits a number and asks what they still know.

Knows the recipes and the tables. Does not know how readings are compared (`titans_measure.quality.adoption`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import titans_runtime
from studies.quality import recall as recall_study
from studies.quality.work import Study, options, write
from titans_core.config import VARIANTS
from titans_measure.quality.adoption import compare_readings
from titans_runtime import Model, Session
from titans_tasks.documents import read_corpus
from titans_tasks.recall import RecallConfig, recall_stream

READ, AFTER = 2001, 1000  # bytes before the cast; and after it, the first of which is only read
PRECISIONS = ("fp16", "bf16", "int8", "int4")
SAVES = 200
STREAMS, PAIRS, GAP, FIRST = 32, 16, 4096, 1000  # of recall; the streams are those of `titans eval`


def main() -> None:
    """Everything, casts.json and the tables."""
    chosen = options(__doc__).parse_args()
    study = Study(chosen.out, chosen.threads)
    ids = _text()
    found: dict[str, Any] = {
        "casts": {variant: casts(study, variant, ids) for variant in VARIANTS},
        "successors": {variant: successor(study, variant, ids) for variant in VARIANTS},
        "recall": {variant: at_rest(_recall(study, variant)) for variant in ("lmm", "mal")},
    }
    write(chosen.out / "casts.json", found)
    print(tables(found))


def casts(study: Study, variant: str, ids: list[int]) -> dict[str, Any]:
    """The readings of every precision from the state of fp32, and of fp32 from nothing."""
    exact = _model(study, variant, "fp32")
    session = exact.session()
    session.feed(ids[:READ])
    data = session.to_bytes()
    streams: dict[str, Session] = {"fp32": session}
    for dtype in PRECISIONS:
        streams[dtype] = _model(study, variant, dtype).adopt_bytes(data)
    streams["fp32, int8 at rest"] = exact.restore_bytes(session.to_bytes(int8=True))
    streams["fresh"] = exact.session()
    return {name: asdict(reading) for name, reading in compare_readings(streams, ids[READ : READ + AFTER]).items()}


def successor(study: Study, variant: str, ids: list[int]) -> dict[str, Any]:
    """The readings of a model that was trained for 50 more steps: adopted, replayed, fresh."""
    name = f"casts-{variant}-tuned"
    before = _model(study, variant, "fp32")
    study.train(
        name, "--from", study.out / "checkpoints" / f"casts-{variant}", "--task", "text", "--data", "stdlib", "--steps",
        "50", "--batch", "4", "--lr", "1e-3", "--seed", "1", "--threads", "1",
    )  # fmt: skip
    after = titans_runtime.load(study.export(name), threads=1)
    session, replayed = before.session(), after.session()
    session.feed(ids[:READ])
    replayed.feed(ids[:READ])
    streams = {
        "replayed": replayed, "adopted": after.adopt_bytes(session.to_bytes()), "fresh": after.session(),
        "old model": session,
    }  # fmt: skip
    return {name: asdict(reading) for name, reading in compare_readings(streams, ids[READ : READ + AFTER]).items()}


def at_rest(bundle: Path) -> dict[str, float]:
    """The share of pairs that are known after a gap: never saved, and saved 200 times in eight bits a number."""
    model = titans_runtime.load(bundle, threads=1)
    streams = [recall_stream(RecallConfig(pairs=PAIRS), GAP, FIRST + number) for number in range(STREAMS)]
    right = {"exact": 0, "int8": 0}
    for stream in streams:
        before = stream.tokens[: stream.questions]
        exact = model.session()
        exact.feed(before)
        saved = model.session()
        for piece in np.array_split(before, SAVES):
            saved.feed(piece)
            saved = model.restore_bytes(saved.to_bytes(int8=True))
        for kind, session in (("exact", exact), ("int8", saved)):
            logits = session.feed(stream.tokens[stream.questions :], all_logits=True)
            right[kind] += int((logits[::2].argmax(axis=1) == stream.answers).sum())
    return {kind: count / (STREAMS * PAIRS) for kind, count in right.items()}


def tables(found: dict[str, Any]) -> str:
    """All three, in Markdown."""
    lines = ["| variant | to | KL, nats/token | same likeliest token | nats/token |", "|---|---|---|---|---|"]
    for part in ("casts", "successors"):
        for variant, readings in found[part].items():
            for name, each in readings.items():
                lines.append(f"| {variant} | {name} | {each['kl']:.2g} | {each['top1']:.2%} | {each['nats']:.4f} |")
        lines.append("")
    lines += ["| recall | exact | 200 saves in int8 |", "|---|---|---|"]
    lines += [f"| {name} | {each['exact']:.2%} | {each['int8']:.2%} |" for name, each in found["recall"].items()]
    return "\n".join(lines)


def _model(study: Study, variant: str, dtype: str) -> Model:
    name = f"casts-{variant}"
    recipe = ("--task", "text", "--data", "stdlib", "--variant", variant, "--preset", "tiny")
    study.train(name, *recipe, "--steps", "100", "--batch", "4", "--seed", "0", "--threads", "1")
    return titans_runtime.load(study.export(f"{name}-{dtype}", "--dtype", dtype, checkpoint=name), threads=1)


def _recall(study: Study, variant: str) -> Path:
    """The model of the recall study, seed 0."""
    name = f"recall-{variant}-0"
    study.train(name, *recall_study.recipe(variant, 0))
    return study.export(name)


def _text() -> list[int]:
    """Bytes of the longest held-out file."""
    documents = read_corpus(("stdlib",)).held_out
    longest = max(documents, key=lambda document: len(document.data))
    return list(longest.data[: READ + AFTER])


if __name__ == "__main__":
    main()
