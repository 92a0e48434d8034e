"""Bits per byte after the same wall-clock time: a model of ours and titans-pytorch's MAC of equal size, same bytes.

    python -m studies.quality.peer --seconds 90
    python -m studies.quality.peer --judge

Both are trained by one loop in one process after the other: AdamW, clipping at 1, a linear warm-up over a tenth of the
time and a cosine to zero at its end, `--threads` threads. Each reads the bytes the way it is meant to: ours one
document per row, slice after slice with its memory carried along; theirs random windows of the same documents, as its
own training script does. Both are then judged by their full forward over the same windows of held-out documents, each
read from nothing. Needs titans-pytorch.

Knows both models. Their settings are the best found by trial, see docs/evidence/text.md.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from studies.quality.work import OUT, write
from titans_core.config import MemoryConfig
from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_core.training.objective import Objective, Slice
from titans_core.training.optimizer import BETAS, build_optimizer, set_learning_rate
from titans_tasks.documents import Corpus, read_corpus
from titans_tasks.text import TextTask
from titans_tasks.tokens import ByteTokenizer

SHORTEST, LONGEST = 16_384, 8192  # held-out documents of at least so many bytes; that are read of each
DOCUMENTS = 8
TOGETHER = 8  # windows that are judged at once
WINDOWS = (512, 4096)
WARM_UP = 0.1  # of the time

OURS: dict[str, Any] = {
    "batch": 8,
    "length": 128,
    "rate": 3e-3,
    "weight_decay": 0.01,
    "variant": "mal",
    "depth": 1,
    "ffn_hidden": 355,  # as many parameters as theirs
}
THEIRS: dict[str, Any] = {"batch": 8, "length": 256, "rate": 2e-3, "weight_decay": 0.01}
THEIR_MODEL: dict[str, Any] = {
    "num_tokens": 256,
    "dim": 128,
    "depth": 2,
    "segment_len": 32,
    "num_persist_mem_tokens": 4,
    "num_longterm_mem_tokens": 4,
    "dim_head": 32,
    "heads": 4,
    "ff_mult": 1,
    "num_residual_streams": 1,
    "neural_memory_segment_len": 32,
}
THEIR_MEMORY: dict[str, Any] = {
    "dim_head": 64,
    "heads": 2,
    "attn_pool_chunks": True,
    "qk_rmsnorm": True,
    "momentum": True,
    "momentum_order": 1,
    "default_step_transform_max_lr": 0.1,
    "use_accelerated_scan": False,
    "per_parameter_lr_modulation": True,
}

Losses = Iterator[Tensor]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, losses: Losses, rate: float, seconds: float) -> int:
    """Train until the time is up; the number of steps."""
    began, steps = time.monotonic(), 0
    while (passed := (time.monotonic() - began) / seconds) < 1:
        warm = min(1.0, (passed + 1e-3) / WARM_UP)
        decay = 0.5 * (1 + math.cos(math.pi * max(0.0, passed - WARM_UP) / (1 - WARM_UP)))
        set_learning_rate(optimizer, rate * warm * decay)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([next(losses)])
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    return steps


def our_model(seed: int) -> TitansModel:
    """A byte-level model of the tiny preset with a linear memory."""
    torch.manual_seed(seed)
    memory = MemoryConfig(heads=2, depth=OURS["depth"])
    return TitansModel(preset("tiny", variant=OURS["variant"], memory=memory, ffn_hidden=OURS["ffn_hidden"]))


def our_losses(model: nn.Module, corpus: Corpus, seed: int) -> Losses:
    """Mean losses of one slice after the other."""
    assert isinstance(model, TitansModel)
    objective, state = Objective(model), None
    task = TextTask(corpus, ByteTokenizer(), window=OURS["length"], seed=seed)
    step = 0
    while True:
        batch = task.batch(step, range(OURS["batch"]))
        piece = Slice.of(batch, torch.device("cpu"))
        loss, _, state = objective(piece.inputs, piece.targets, piece.mask, piece.reset, state)
        yield loss / int(batch.mask.sum())
        step += 1


def their_model(seed: int) -> nn.Module:
    """titans-pytorch's MAC."""
    from titans_pytorch import MemoryAsContextTransformer, MemoryMLP

    torch.manual_seed(seed)
    network = MemoryMLP(dim=64, depth=1)
    model: nn.Module = MemoryAsContextTransformer(
        **THEIR_MODEL, neural_memory_model=network, neural_memory_kwargs=THEIR_MEMORY
    )
    # A parameter that several heads start from is one row in memory, which AdamW refuses: give it its own.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def their_losses(model: nn.Module, corpus: Corpus, seed: int) -> Losses:
    """Mean losses of random windows of the training documents, joined as its training script joins them."""
    joined = np.frombuffer(b"".join(document.data for document in corpus.train), np.uint8)
    random, length = np.random.default_rng(seed), THEIRS["length"]
    while True:
        starts = random.integers(len(joined) - length - 1, size=THEIRS["batch"])
        windows = np.stack([joined[start : start + length + 1] for start in starts]).astype(np.int64)
        yield model(torch.from_numpy(windows), return_loss=True)


def bits_per_byte(logits: Callable[[Tensor], Tensor], documents: list[bytes], window: int) -> float:
    """Mean bits of every byte but the first of each window; windows are read from nothing."""
    nats, count = 0.0, 0
    for data in documents:
        ids = torch.from_numpy(np.frombuffer(data, np.uint8).astype(np.int64))
        windows = ids[: len(ids) // window * window].reshape(-1, window)
        for start in range(0, len(windows), TOGETHER):
            rows = windows[start : start + TOGETHER]
            with torch.no_grad():
                scores = logits(rows[:, :-1])
            nats += float(nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
            count += rows[:, 1:].numel()
    return nats / count / math.log(2)


def padded(model: TitansModel) -> Callable[[Tensor], Tensor]:
    """Our model's logits for any length; it reads whole chunks, so the right is padded."""

    def logits(ids: Tensor) -> Tensor:
        chunk, length = model.config.chunk, ids.shape[1]
        whole = nn.functional.pad(ids, (0, -length % chunk))
        outputs: Tensor = model(whole, model.initial_state(len(ids)))[0]
        return outputs[:, :length]

    return logits


def main() -> None:
    """Train and judge both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=90, help="training time of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["ours", "theirs"], help="one of them, for trials")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of theirs, for trials"
    )
    parser.add_argument("--judge", action="store_true", help="judge what was trained; without it, train")
    parser.add_argument("--out", type=Path, default=OUT / "peer", help="folder of weights and figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # for both
    for setting in arguments.set:
        name, _, value = setting.partition("=")
        place = next(table for table in (THEIRS, THEIR_MODEL, THEIR_MEMORY) if name in table)
        place[name] = json.loads(value)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for who in ("ours", "theirs") if arguments.only is None else (arguments.only,):
        stem = arguments.out / f"{who}-{arguments.seed}"
        found = judged(who, stem) if arguments.judge else trained(who, stem, arguments.seconds, arguments.seed)
        print(who, json.dumps(found), flush=True)


def trained(who: str, stem: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Train one of the two; weights and what there is to know about them are left at `stem`."""
    corpus = read_corpus(["stdlib"])
    model: nn.Module
    if who == "ours":
        settings, model = OURS, our_model(seed)
        optimizer = build_optimizer(model, weight_decay=OURS["weight_decay"])
        losses = our_losses(model, corpus, seed)
    else:
        settings, model = THEIRS, their_model(seed)
        optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=THEIRS["weight_decay"])
        losses = their_losses(model, corpus, seed)
    steps = train(model, optimizer, losses, settings["rate"], seconds)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, f"{stem}.safetensors")
    about = {
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "settings": settings if who == "ours" else {**THEIRS, "model": THEIR_MODEL, "memory": THEIR_MEMORY},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "bytes": steps * settings["batch"] * settings["length"],
    }
    write(Path(f"{stem}.json"), about)
    return about


def judged(who: str, stem: Path) -> dict[str, Any]:
    """Add bits per byte to what is known about a trained model."""
    documents = [d.data[:LONGEST] for d in read_corpus(["stdlib"]).held_out if len(d.data) >= SHORTEST][:DOCUMENTS]
    model = our_model(0) if who == "ours" else their_model(0)
    model.load_state_dict(load_file(f"{stem}.safetensors"))
    model.eval()
    logits = padded(model) if isinstance(model, TitansModel) else model
    bits = {str(window): bits_per_byte(logits, documents, window) for window in WINDOWS}
    about = {**json.loads(Path(f"{stem}.json").read_text(encoding="utf-8")), "bits_per_byte": bits}
    write(Path(f"{stem}.json"), about)
    return about


if __name__ == "__main__":
    main()
