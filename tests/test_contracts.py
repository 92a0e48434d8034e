"""What holds for the project as a whole: who imports whom, file sizes, and that the documents tell the truth."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from titans_cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("titans_core", "titans_tasks", "export/titans_export", "runtime/titans_format", "runtime/titans_runtime")
TOOLS = ("tools", "studies", "scripts")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = sorted(p for top in (*PACKAGES, *TOOLS, "tests") for p in (ROOT / top).rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TEXTS = sorted({*SOURCES, *DOCUMENTS, ROOT / "Makefile", ROOT / "pyproject.toml", *(ROOT / ".ci").iterdir()})
MAX_LINES = 600  # the longest file must be readable in one sitting


def shell_lines(document: Path) -> list[str]:
    """The command lines of a document's shell blocks, continuation lines joined."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def titans_invocations() -> list[tuple[str, list[str]]]:
    """Every `titans …` that a document prints, as (document name, arguments)."""
    found = []
    for document in DOCUMENTS:
        for line in shell_lines(document):
            words = shlex.split(line)
            if words and Path(words[0]).name == "titans":
                found.append((document.name, words[1:]))
    return found


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that sees the four roots and nothing of this process."""
    roots = [ROOT, ROOT / "export", ROOT / "runtime", ROOT / "tools"]
    prelude = f"import sys; sys.path[:0] = {[str(root) for root in roots]!r}\n"
    return subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False)


def test_import_contracts_hold() -> None:
    code = f"""
import os; os.chdir({str(ROOT)!r})
from importlinter.cli import lint_imports
sys.exit(lint_imports(no_cache=True))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "code",
    [
        "from titans_cli.main import cli\ncli(['--help'], standalone_mode=False)",
        "from titans_cli.main import cli\ncli(['run', '--help'], standalone_mode=False)",
        "from titans_cli.main import cli\ncli(['inspect', '--help'], standalone_mode=False)",
        "import titans_runtime",
    ],
)
def test_the_runtime_side_starts_without_torch_and_onnx(code: str) -> None:
    result = run_python(f"{code}\nsys.exit(', '.join({{'torch', 'onnx', 'onnxscript'}} & set(sys.modules)) or 0)")
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_ships_imports_nothing_that_does_not() -> None:
    ships = [
        p
        for package in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        for p in (ROOT / package).rglob("*.py")
    ]
    stays = re.compile(r"^\s*(?:from|import) (?:studies|scripts|bench|tests)\b", re.M)
    assert len(ships) > 150
    assert [p.relative_to(ROOT).as_posix() for p in ships if stays.search(p.read_text(encoding="utf-8"))] == []


def test_no_file_is_longer_than_one_sitting() -> None:
    lengths = {p.relative_to(ROOT).as_posix(): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    home = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp)/\w")
    found = {p.relative_to(ROOT).as_posix(): home.findall(p.read_text(encoding="utf-8")) for p in TEXTS}
    assert {name: places for name, places in found.items() if places} == {}


def test_every_module_says_what_it_is() -> None:
    modules = [p for p in SOURCES if p.stat().st_size]
    silent = [p.relative_to(ROOT).as_posix() for p in modules if not p.read_text(encoding="utf-8").startswith('"""')]
    assert silent == []


def test_the_generated_cli_reference_is_current() -> None:
    result = run_python(
        f"import pathlib, runpy\n"
        f"page = runpy.run_path({str(ROOT / 'scripts/docs/generate_cli.py')!r})['page']()\n"
        f"sys.exit(page != pathlib.Path({str(ROOT / 'docs/cli.md')!r}).read_text(encoding='utf-8'))"
    )
    assert result.returncode == 0, f"docs/cli.md is behind the commands; run: make docs\n{result.stderr}"


def test_the_documents_print_titans_commands() -> None:
    assert {"train", "export", "run", "verify"} <= {words[0] for _, words in titans_invocations()}


@pytest.mark.parametrize(("document", "words"), titans_invocations(), ids=lambda x: x if isinstance(x, str) else x[0])
def test_documented_commands_exist_with_these_options(document: str, words: list[str]) -> None:
    context = click.Context(cli, info_name="titans")
    command = cli.get_command(context, words[0])
    assert command is not None, f"{document} mentions titans {words[0]}"
    if isinstance(command, click.Group):
        assert words[1] in command.commands, f"{document} mentions titans {words[0]} {words[1]}"
        command = command.commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    wanted = {w for d in DOCUMENTS for w in re.findall(r"`make ([a-z-]+)", d.read_text(encoding="utf-8"))}
    wanted |= {line.split()[1] for d in DOCUMENTS for line in shell_lines(d) if line.startswith("make ")}
    assert wanted - targets == set()


def test_documented_modules_exist_where_an_editable_install_looks() -> None:
    roots = [ROOT / root for root in PYPROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]]
    wanted = {
        module
        for document in DOCUMENTS
        for module in re.findall(r"python3? -m ((?:studies|bench)[\w.]*)", document.read_text(encoding="utf-8"))
    }
    assert {"studies.speed.streams", "bench.gpu"} <= wanted
    paths = {module: module.replace(".", "/") for module in wanted}
    missing = {
        module
        for module, path in paths.items()
        if not any((root / name).is_file() for root in roots for name in (f"{path}.py", f"{path}/__main__.py"))
    }
    assert missing == set()


def test_documented_extras_exist() -> None:
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    named = {
        extra
        for text in TEXTS
        if text.name != "test_contracts.py"
        for group in re.findall(r"titans-deploy\[([\w,-]+)\]", text.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert named - extras == set()


def test_the_extras_check_tries_what_is_said_of_it() -> None:
    tried = set(runpy.run_path(str(ROOT / "scripts/extras_check.py"))["WANTED"])
    assert tried <= set(PYPROJECT["project"]["optional-dependencies"])
    page = (ROOT / "docs/devices.md").read_text(encoding="utf-8")
    (claim,) = re.findall(r"`make extras-check` installs the extras (.*?), each into", page, re.S)
    assert set(re.findall(r"`([\w-]+)`", claim)) == tried
    (help_line,) = re.findall(r"^extras-check:.*## (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"\[([\w-]+)\]", help_line)) == tried


@pytest.mark.parametrize(("name", "heading"), [("TitansConfig", "| option |"), ("MemoryConfig", "| `memory.` |")])
def test_every_option_of_a_model_is_documented_with_its_default(name: str, heading: str) -> None:
    from titans_core import config

    page = (ROOT / "docs/variants.md").read_text(encoding="utf-8")
    table = page[page.index(heading) :].partition("\n\n")[0].splitlines()
    for option in dataclasses.fields(getattr(config, name)):
        if option.default is dataclasses.MISSING:  # `memory`, which has a table of its own
            continue
        cells = next((line.split("|") for line in table if f"`{option.name}`" in line.split("|")[1]), ["", "", ""])
        assert json.dumps(option.default).strip('"') in cells[2], option.name


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def anchors(document: Path) -> set[str]:
    """What links into a document may name: its headings, as GitHub makes anchors of them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_into_documents_name_a_heading() -> None:
    seen = 0
    for document in DOCUMENTS:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", document.read_text(encoding="utf-8")):
            place = document.parent / target if target else document
            if place.suffix == ".md":
                seen += 1
                assert anchor in anchors(place), f"{document.name} links to {target}#{anchor}"
    assert seen > 20


def test_no_document_has_a_placeholder() -> None:
    for document in DOCUMENTS:
        text = re.sub(r"```.*?```|`[^`]*`", "", document.read_text(encoding="utf-8"), flags=re.S)
        assert not re.findall(r"\b[A-Z]+_[A-Z_]+\b|\bTODO\b|\bTBD\b", text), document


def leaves(command: click.Command, name: str) -> list[tuple[str, click.Command]]:
    """`command` itself, or, where it is a group, the commands in it."""
    if isinstance(command, click.Group):
        return [leaf for word, part in command.commands.items() for leaf in leaves(part, f"{name} {word}")]
    return [(name, command)]


def test_every_command_has_an_example_and_json() -> None:
    context = click.Context(cli, info_name="titans")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(limit=200) == COMMANDS[name], name
        for path, leaf in leaves(command, name):
            assert "Example" in (leaf.epilog or ""), path
            assert any("--json" in parameter.opts for parameter in leaf.params), path
