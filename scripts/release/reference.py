"""What installations are held to: small bundles of all variants, and streams through their portable graphs here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import titans_runtime
from titans_core.config import VARIANTS
from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_export.export import export_model
from titans_runtime.arrays import Array, FloatArray

TOKENS, SAVED = 400, 200
CLOSE = 5e-6  # fused kernels, and other processors, sum in another order


@dataclass(frozen=True)
class Reference:
    """A bundle, the stream that it is fed, and what comes out."""

    bundle: Path
    file: Path
    ids: Array
    logits: FloatArray

    def rest(self, state: Path) -> float:
        """The largest difference of a stream that goes on here from a state that was saved elsewhere."""
        session = titans_runtime.load(self.bundle, provider="cpu", threads=1).restore(state)
        found = session.feed(self.ids[SAVED:], all_logits=True)
        return float(np.abs(found - self.logits[SAVED:]).max())


def references(folder: Path) -> list[Reference]:
    """One of every variant. Needs the kernels switched off (`TITANS_KERNELS`), so that what is compared differs."""
    made = []
    for number, variant in enumerate(VARIANTS):
        torch.manual_seed(number)
        model = TitansModel(preset("tiny", variant=variant, vocab_size=256))
        bundle = folder / f"{variant}.titans"
        export_model(model, bundle, verify_tokens=0)
        random = np.random.default_rng(number)
        ids = random.integers(0, 256, TOKENS)
        cuts = random.choice(np.arange(1, TOKENS), 40, replace=False)
        pieces = np.unique(np.append(cuts, SAVED))
        logits = titans_runtime.load(bundle, provider="cpu", threads=1).session().feed(ids, all_logits=True)
        file = folder / f"{variant}.npz"
        np.savez(file, ids=ids, pieces=pieces, logits=logits, saved=SAVED)
        made.append(Reference(bundle, file, ids, logits))
    return made
