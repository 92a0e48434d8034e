"""The glossary tells the truth, and words that it replaced do not come back into the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
NATIVE = ROOT / "runtime" / "titans_runtime" / "native"
PYTHON = ("titans_core", "titans_tasks", "export", "tools", "studies", "scripts")

# Home-made word -> what to say.
IDENTIFIERS = {
    "told": "results, on_progress, values, or the name of the thing",
    "asked": "queries, requested, or the name of the thing",
    "turn_large": "weights_on_left",
    "widen": "float32_for_cpu",
    "original_of": "source_of",
    "EagerStream": "TorchStream",
    "without_writes": "writes_off",
}
MODULES = {
    "left": "weights_on_left",
    "widen": "float32_for_cpu",
    "original": "source_model",
    "eager": "torch_stream",
    "trace": "record",
    "fuse": "fused_ops",
    "alone": "memory_only",
    "live": "config_from_model",
    "library": "installed",
    "store": "memory_store",
    "titans_bench": "titans_measure.speed",
    "titans_eval": "titans_measure.quality",
    "seats": "lane_table",
    "tickets": "completion",
    "spill": "offload",
    "jobs": "run",
    "moment": "snapshot",
    "chooser": "top_k",
    "tensorrt_choice": "top_k",
    "ort_moves": "ort_copies",
    "ort_replay": "ort_cuda_graphs",
}
KERNEL_WORDS = {
    "asked": "queries",
    "told": "keys_values_gates, keys_values",
    "impulse": "momentum",
    "turned": "transposed, rotated",
    "answers": "outputs",
    "new_past": "new_conv_state",
}
# The runtime's public method keeps the name that programs call.
FACTS = {"facts.py", "fact_words.py"}  # in a task about facts, facts are told and asked for
KEPT = {("without_writes", "tools/titans_measure/quality/reading.py"), ("without_writes", "studies/quality/writes.py")}


def identifiers(path: Path) -> set[str]:
    """Every name that a module binds, takes or uses."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


def rows() -> list[list[str]]:
    """The cells of every line of the glossary's tables."""
    lines = [line for line in GLOSSARY.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| term")]


def test_every_term_of_the_glossary_lives_where_it_says() -> None:
    assert len(rows()) >= 40
    places = {term: re.findall(r"`([\w./-]+)`", where)[-1] for term, _, where in rows()}
    assert {term: place for term, place in places.items() if not (ROOT / place).exists()} == {}


def test_every_term_of_the_glossary_is_there_once_and_short() -> None:
    terms = [re.sub(r" \(\*\w+\*\)", "", term) for term, _, _ in rows()]
    assert sorted(terms) == sorted(set(terms))
    assert [meaning for _, meaning, _ in rows() if len(meaning.split()) > 25] == []


def test_no_module_has_a_name_that_was_replaced() -> None:
    tops = (*PYTHON, "runtime")
    paths = [path for top in tops for path in (ROOT / top).rglob("*.py")]
    paths = [path for path in paths if not path.read_text(encoding="utf-8").startswith('"""The former place of ')]
    assert {p.as_posix(): MODULES[p.stem] for p in paths if p.stem in MODULES} == {}
    assert {p.parent.as_posix() for p in paths if p.parent.name in MODULES} == set()


def test_no_name_in_the_code_is_one_that_was_replaced() -> None:
    found = {}
    for path in (path for top in PYTHON for path in (ROOT / top).rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        for word in sorted(identifiers(path) & set(IDENTIFIERS)):
            if (word, place) not in KEPT and path.name not in FACTS:
                found[f"{place}: {word}"] = IDENTIFIERS[word]
    assert found == {}


def test_the_kernels_use_the_papers_words() -> None:
    found = {}
    for path in [*NATIVE.glob("*.cpp"), *NATIVE.glob("*.h")]:
        code = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        for word in sorted(set(re.findall(r"\b[a-z_]+\b", code)) & set(KERNEL_WORDS)):
            found[f"{path.name}: {word}"] = KERNEL_WORDS[word]
    assert found == {}
