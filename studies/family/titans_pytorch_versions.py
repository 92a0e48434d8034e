"""Every released version of titans-pytorch: does a checkpoint of it import, and does the bundle compute the same?

Installs each version into a folder of its own without its dependencies, builds models with it, moves every parameter,
and drives the imported model beside the version's own full forward: in PyTorch token by token, or with --bundle as a
bundle in random pieces.

    python -m studies.family.titans_pytorch_versions --packages FOLDER [--version 0.4.25] [--bundle] [--tokens 600]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import titans_runtime
from studies.family.titans_pytorch_model import CASES, write
from titans_export.titans_pytorch.importer import import_checkpoint, read_config
from titans_export.titans_pytorch.parameters import read_state_dict
from titans_export.titans_pytorch.parity import LONGEST_PIECE, POLICIES
from titans_export.titans_pytorch.steppable import TitansPytorchModel
from titans_export.verification.pieces import random_pieces
from titans_export.verification.torch_stream import TorchStream
from titans_format.errors import TitansError
from titans_runtime.arrays import Array

CLOSE, SLACK = 2e-4, 5.0  # or so many times the version's own distance between fp32 and fp64


def released() -> list[str]:
    """The versions from 0.1.0 on that the package registry offers, oldest first."""
    pip = [sys.executable, "-m", "pip", "index", "versions", "titans-pytorch"]
    found = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    line = next(line for line in found.splitlines() if line.startswith("Available versions:"))
    versions = [version.strip() for version in line.partition(":")[2].split(",")]
    return [version for version in versions[::-1] if not version.startswith("0.0.")]


def installed(version: str, packages: Path) -> Path:
    """The folder of a version."""
    folder = packages / version
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, f"titans-pytorch=={version}"], check=True)
    return folder


def answered(version: str, case: str, tokens: int, packages: Path, out: Path) -> str:
    """Have a version write its model and its answers; what went wrong, or ""."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "titans_pytorch"]:
        del sys.modules[name]
    sys.path.insert(0, str(installed(version, packages)))
    try:
        write(case, tokens, out)
    except Exception as error:  # whatever an old version meets in newer libraries
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.120}"
    finally:
        del sys.path[0]
    return ""


def compared(folder: Path, bundled: bool) -> dict[str, Any]:
    """Import what a version wrote, and drive it beside the version's answers."""
    answers = torch.load(folder / "answers.pt", weights_only=True)
    try:
        got = _of_bundle(folder, answers["ids"]) if bundled else _of_torch(folder, answers["ids"])
    except TitansError as error:
        return {"imports": False, "reason": str(error)}
    want, exact = answers["logits"].numpy(), answers["exact"].numpy()
    off, own = float(np.abs(got - want).max()), float(np.abs(want - exact).max())
    return {"imports": True, "same": off <= max(CLOSE, SLACK * own), "error": off, "own_rounding": own}


def _of_torch(folder: Path, ids: torch.Tensor) -> Array:
    tensors = read_state_dict(folder / "model.safetensors").tensors
    return TorchStream(TitansPytorchModel(read_config(folder / "config.json"), tensors), 1).feed(ids).numpy()


def _of_bundle(folder: Path, ids: torch.Tensor) -> Array:
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "model.titans"
        import_checkpoint(folder / "model.safetensors", folder / "config.json", bundle, verify_tokens=0)
        driver = titans_runtime.load(bundle, provider="cpu", threads=1).driver(1)
        pieces = random_pieces(ids.numpy(), LONGEST_PIECE, POLICIES, 0)
        fed = [driver.feed(piece.inputs, all_outputs=True, policy=piece.policy).outputs for piece in pieces]
    return np.concatenate(fed, axis=1)


def main() -> None:
    """Print a line for each version, and one JSON document at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="a folder to install the versions into")
    parser.add_argument("--version", action="append", help="one version; repeatable  [default: all from 0.1.0 on]")
    parser.add_argument("--case", choices=CASES, action="append", help="repeatable  [default: defaults]")
    parser.add_argument("--bundle", action="store_true", help="drive a bundle, and not its PyTorch form")
    parser.add_argument("--tokens", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    for version in options.version or released():
        for case in options.case or ["defaults"]:
            with tempfile.TemporaryDirectory() as scratch:
                out = Path(scratch)
                problem = answered(version, case, options.tokens, options.packages.resolve(), out)
                found = {"imports": None, "reason": problem} if problem else compared(out, options.bundle)
            results[f"{version} {case}"] = found
            print(version, case, json.dumps(found), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
