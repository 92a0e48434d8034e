"""Which tokenizer and which ends a bundle gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import tokenizer_kinds
from titans_core.config import TitansConfig
from titans_core.model import TitansModel
from titans_core.pretrained import Texts
from titans_export.bundle.texts import AS_FOUND, EndNames, find_ends, tokenizer_of
from titans_export.errors import ExportError
from titans_export.export import export_model
from titans_format.fields import ContinuousInputs, Ends, TokenInputs
from titans_runtime import load
from titans_tasks.errors import DataError
from titans_tasks.tokens import ByteTokenizer, parse_tokenizer

TEXT_TASK = {"task.task": "text"}


@pytest.mark.parametrize(
    ("rows", "provenance", "reads_bytes"),
    [
        (256, {}, True),
        (256, TEXT_TASK, True),
        (512, TEXT_TASK, True),
        (512, {"task.task": "needle"}, True),
        (512, {}, False),
        (512, {"task.task": "recall"}, False),
        (256, {"task.task": "recall"}, False),
    ],
)
def test_ids_are_bytes_where_the_model_learned_bytes(rows: int, provenance: dict[str, str], reads_bytes: bool) -> None:
    found = tokenizer_of(TokenInputs(vocab_size=rows), None, provenance)
    assert isinstance(found, ByteTokenizer) == reads_bytes
    assert (found is None) != reads_bytes


def test_a_padded_vocabulary_keeps_its_tokenizer_and_one_that_is_too_small_is_refused() -> None:
    content = tokenizer_kinds.content("holes")
    for rows in (901, 1024):
        found = tokenizer_of(TokenInputs(vocab_size=rows), content, {})
        assert found is not None
        assert found.json == content
    with pytest.raises(ExportError, match="ids up to 900 and the model 900 rows"):
        tokenizer_of(TokenInputs(vocab_size=900), content, {})
    with pytest.raises(ExportError, match="leave the tokenizer out"):
        tokenizer_of(ContinuousInputs(features=1, targets=1), content, {})


def test_ends_are_those_that_are_named_or_trained_or_go_by_a_known_name() -> None:
    tokenizer = parse_tokenizer(tokenizer_kinds.content("byte-level"), "it")
    trained = {"task.eos": "3"}
    assert find_ends(tokenizer, AS_FOUND, {}) == Ends(eos=(2,))  # </s>
    assert find_ends(tokenizer, AS_FOUND, trained) == Ends(eos=(3,))
    named = EndNames(eos=("<s>", "<s>"), stop=("<|user|>",))
    assert find_ends(tokenizer, named, trained) == Ends(eos=(1,), stop=(3,))
    assert find_ends(tokenizer, EndNames(stop=("<|user|>",)), trained) == Ends(eos=(3,), stop=(3,))
    assert find_ends(ByteTokenizer(), AS_FOUND, {}) == Ends()
    assert find_ends(ByteTokenizer(), EndNames(eos=("\n",)), {}) == Ends(eos=(10,))
    assert find_ends(None, AS_FOUND, trained) == Ends()
    with pytest.raises(DataError, match="has no token"):
        find_ends(tokenizer, EndNames(eos=("<|none|>",)), {})
    with pytest.raises(ExportError, match="leave --eos and --stop out"):
        find_ends(None, named, {})


@pytest.mark.parametrize("with_file", [True, False])
def test_a_padded_model_reads_and_writes_text(tmp_path: Path, with_file: bool) -> None:
    torch.manual_seed(0)
    config = TitansConfig.from_dict(
        {
            "variant": "lmm",
            "dim": 16,
            "heads": 1,
            "chunk": 8,
            "ffn_hidden": 16,
            "vocab_size": 512,
            "persistent_tokens": 0,
            "memory": {"heads": 1},
        }
    )
    content = tokenizer_kinds.content("byte-level") if with_file else None
    provenance = {} if with_file else TEXT_TASK
    out = tmp_path / "padded.titans"
    export_model(TitansModel(config), out, texts=Texts(tokenizer_json=content), provenance=provenance, verify_tokens=0)
    model = load(out, provider="cpu", threads=1)
    assert model.decode(model.encode("記憶 é")) == "記憶 é"
    assert model.decode([*model.encode("a"), 511, *model.encode("b")]) == "ab"  # rows for which there is no token
    session = model.session()
    assert isinstance("".join(session.generate("記憶", 40, seed=0)), str)
    assert session.ended in ("length", "eos")
