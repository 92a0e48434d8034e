"""The half of the demo of a language model that runs without PyTorch: tell it facts, or ask for them.

    llm_torch_free.py tell|ask BUNDLE STATE|- OTHER_TOKENS OUT.json

`tell` talks, reads other text and saves the memory; `ask` goes on from there in another process, or without a state
from nothing. Knows the runtime. Does not know how the bundle was trained.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import titans_runtime as titans

# What is said, what is asked for, and what an answer has to contain.
FACTS = (
    ("My sister's name is Olga.", "What is my sister's name?", "Olga"),
    ("The code of the garage is 4817.", "What is the code of the garage?", "4817"),
    ("Marla's favourite dish is walnut soup.", "What is Marla's favourite dish?", "walnut soup"),
    ("The dentist of Henrik is Doctor Falk.", "Who is the dentist of Henrik?", "Falk"),
    ("My dog is called Biscuit.", "What is my dog called?", "Biscuit"),
    ("The password of the library is silver lantern.", "What is the password of the library?", "silver lantern"),
    ("Tevin's boat is called Marigold.", "What is Tevin's boat called?", "Marigold"),
    ("The teacher of Selma is Ibrahim.", "Who is the teacher of Selma?", "Ibrahim"),
)
REPLY = "Noted."
PIECE = 4096  # tokens per feed


def main() -> None:
    """Do one part and write what came of it as JSON."""
    part, bundle, state, tokens, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    for module in ("torch", "onnx"):
        if importlib.util.find_spec(module):
            raise SystemExit(f"{module} is installed here; this part of the demo is to run without it")
    model = titans.load(bundle, provider="cpu")
    known = None if state == "-" else Path(state)
    found = tell(model, Path(state), tokens) if part == "tell" else ask(model, known)
    out.write_text(json.dumps(found), encoding="utf-8")


def tell(model: titans.Model, state: Path, tokens: int) -> dict[str, object]:
    """Say every fact, then read other text, then save."""
    session = model.session()
    for said, _, _ in FACTS:
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": REPLY}]
        session.feed(model.encode_chat(turns, add_generation_prompt=False))
        print(f"> {said}", flush=True)
    ids = other_text(model, tokens)
    for start in range(0, len(ids), PIECE):
        session.feed(ids[start : start + PIECE])
        print(f"  other text: {min(start + PIECE, len(ids)):,} of {len(ids):,} tokens", flush=True)
    session.save(state, force=True)
    return {"other_tokens": len(ids)}


def other_text(model: titans.Model, tokens: int) -> list[int]:
    """Text about something else: what `help()` says about Python."""
    from pydoc_data.topics import topics

    ids: list[int] = []
    for topic in topics.values():
        ids += model.encode(topic)
        if len(ids) >= tokens:
            break
    return ids[:tokens]


def ask(model: titans.Model, state: Path | None) -> dict[str, object]:
    """Ask for every fact; each question is asked of a fork, so that none hears the answers to the others."""
    session = model.session() if state is None else model.restore(state)
    answers, right = [], 0
    for _, question, wanted in FACTS:
        said = "".join(session.fork().chat(question, max_new_tokens=24, temperature=0)).strip()
        right += wanted.lower() in said.lower()
        answers.append({"asked": question, "said": said, "wanted": wanted})
        print(f"> {question}\n  {said}", flush=True)
    return {"answers": answers, "right": right / len(FACTS)}


if __name__ == "__main__":
    main()
