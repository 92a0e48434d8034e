"""What a bundle gets of a checkpoint's chat template and generation settings, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests import tokenizer_kinds
from titans_cli.main import cli
from titans_core.config import TitansConfig
from titans_core.model import TitansModel
from titans_core.pretrained import Texts
from titans_export.bundle.slim import slim
from titans_export.bundle.texts import check_template, generation_defaults, with_closing
from titans_export.errors import ExportError
from titans_export.export import export_model
from titans_format.fields import Ends, GenerationDefaults
from titans_format.manifest import Manifest
from titans_runtime import load
from titans_tasks.tokens import ByteTokenizer, parse_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>{% endif %}"
)
TEXTS = Texts(
    tokenizer_json=tokenizer_kinds.content("byte-level"),
    chat_template=TEMPLATE,
    eos=(1,),
    generation={"do_sample": True, "temperature": 0.25, "top_k": 0, "top_p": 0.5, "typical_p": 0.9},
    special={"bos_token": "<s>"},
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = TitansConfig.from_dict(
        {"variant": "lmm", "dim": 16, "heads": 1, "chunk": 8, "ffn_hidden": 16, "vocab_size": 512}
        | {"persistent_tokens": 0, "memory": {"heads": 1}}
    )
    out = tmp_path_factory.mktemp("exported") / "chat.titans"
    export_model(TitansModel(config), out, texts=TEXTS, verify_tokens=0)
    return out


def manifest_of(bundle: Path) -> Manifest:
    return Manifest.from_json((bundle / "manifest.json").read_text(encoding="utf-8"))


def test_template_defaults_and_ends_go_into_the_bundle(exported: Path) -> None:
    manifest = manifest_of(exported)
    assert (exported / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE
    assert manifest.chat_template is not None
    assert manifest.chat_template.tokens == {"bos_token": "<s>"}
    assert manifest.generation == GenerationDefaults(temperature=0.25, top_p=0.5)
    assert manifest.ends == Ends(eos=(1,), stop=(2,))  # the settings' own, and what the template closes answers with
    load(exported, threads=1)  # hashed with the rest


def test_a_template_that_was_changed_is_noticed(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy.titans")
    (copy / "chat_template.jinja").write_text(TEMPLATE.replace("user", "evil"))
    result = CliRunner().invoke(cli, ["inspect", str(copy)])
    assert result.exit_code == 2
    assert "chat_template.jinja is not the file that was exported" in result.stderr


def test_a_slim_bundle_keeps_its_template(exported: Path, tmp_path: Path) -> None:
    slim(exported, tmp_path / "slim.titans", target="cpu")
    assert (tmp_path / "slim.titans" / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE


def test_inspect_shows_them(exported: Path) -> None:
    text = CliRunner().invoke(cli, ["inspect", str(exported)]).stdout
    assert f"chat template of {len(TEMPLATE)} bytes, bos_token <s>" in " ".join(text.split())
    assert "generates with temperature 0.25, top_p 0.5" in text
    document = json.loads(CliRunner().invoke(cli, ["inspect", str(exported), "--json"]).stdout)
    assert document["generation"] == {"temperature": 0.25, "top_p": 0.5}
    assert document["chat_template"]["tokens"] == {"bos_token": "<s>"}
    assert document["file_bytes"]["chat_template.jinja"] == len(TEMPLATE)


@pytest.mark.parametrize(
    ("settings", "defaults"),
    [
        ({}, GenerationDefaults()),
        ({"do_sample": False, "temperature": 0.7}, GenerationDefaults(temperature=0.0)),
        ({"do_sample": True}, GenerationDefaults()),
        ({"top_k": 0}, GenerationDefaults()),
        ({"top_k": 50, "repetition_penalty": 1.1}, GenerationDefaults(top_k=50, repetition_penalty=1.1)),
        ({"max_new_tokens": 300, "min_p": 0.1}, GenerationDefaults(max_new_tokens=300, min_p=0.1)),
    ],
)
def test_generation_settings_become_defaults(settings: dict[str, Any], defaults: GenerationDefaults) -> None:
    assert generation_defaults(settings) == defaults


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 2.0}, "top_p is 2.0"),
        ({"top_k": -5}, "top_k is -5"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
    ],
)
def test_generation_settings_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ExportError, match=says):
        generation_defaults(settings)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% if %}", "is not a template that can be used"),
        ("{% include 'a' %}", "is refused: line 1 has Include"),
        ("{{ nothing.a }}", "misses something"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "asks for too much"),
        ("{{ messages[-1].content }}", "does not write earlier answers"),
        ("{{ raise_exception('no') }}", "does not take these messages: 'no'"),
        ("a" * 300_000, "characters"),
    ],
)
def test_a_template_that_could_not_be_used_is_refused_at_export(template: str, says: str) -> None:
    tokenizer = parse_tokenizer(tokenizer_kinds.content("byte-level"), "it")
    with pytest.raises(ExportError, match=f"{says}.*; give another one with --chat-template"):
        check_template(Texts(chat_template=template), tokenizer)
    with pytest.raises(ExportError, match="has no tokenizer"):
        check_template(Texts(chat_template="{{ messages[0].content }}"), None)


def test_what_closes_an_answer_ends_it() -> None:
    tokenizer = parse_tokenizer(tokenizer_kinds.content("byte-level"), "it")
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert check_template(Texts(chat_template=plain), tokenizer) is None
    assert check_template(Texts(chat_template=plain), ByteTokenizer()) is None
    assert check_template(TEXTS, tokenizer) == "</s>"
    assert with_closing(Ends(eos=(2,)), "</s>", tokenizer) == Ends(eos=(2,))
    assert with_closing(Ends(eos=(1,)), "</s>", tokenizer) == Ends(eos=(1,), stop=(2,))


def test_a_template_is_given_at_the_command_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}", encoding="utf-8")
    (tmp_path / "broken.jinja").write_bytes(b"\xff")

    def export(*options: str) -> Any:
        out = ["--out", str(tmp_path / "out.titans"), "--verify-tokens", "0", "--overwrite"]
        return CliRunner().invoke(cli, ["export", str(tiny_checkpoint), *out, *options])

    assert export("--chat-template", str(tmp_path / "t.jinja")).exit_code == 0
    assert manifest_of(tmp_path / "out.titans").chat_template is not None
    assert export("--chat-template", "none").exit_code == 0
    assert manifest_of(tmp_path / "out.titans").chat_template is None
    for name in ("nothing.jinja", "broken.jinja", "."):
        result = export("--chat-template", str(tmp_path / name))
        assert result.exit_code == 2
        assert "cannot read the chat template" in result.stderr
