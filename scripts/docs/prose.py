"""How the documents read: words a sentence, the share of long ones, banned words, code blocks without a language.

`make prose` prints one line a page; `--check` fails where a page breaks the limits below. Knows Markdown (through
markdown-it) and English sentences roughly. Does not know what a page says, or whether it is true.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
MEAN_WORDS = 18.0  # a sentence, over all pages
LONG = 40  # words
LONG_SHARE = 0.05  # of the sentences of all pages may be longer than that
PAGE_MEAN = 21.0  # one page may be denser than the whole, but not by much
LANGUAGES = {
    "sh",
    "math",
    "python",
    "text",
    "json",
    "c",
    "cpp",
    "js",
    "ts",
    "yaml",
    "toml",
    "cmake",
    "rust",
    "sql",
    "html",
}
GENERATED = {"cli.md"}  # its sentences are the commands' own and are tested with them

# Home-made or translated phrases, and what to write instead.
BANNED = {
    r"\bwhoever\b": "name the reader or the user",
    r"\bthat there (?:is|are)\b(?! no)": "say 'that exists' or name the thing",
    r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer|more|less|\w+er\b|different|worse)\w+": "write 'is not a ...'",
    r"\bwhat is asked for\b": "write 'the requested ...'",
    r"\btold on\b": "write 'is printed', 'is reported'",
    r"\bhome-made\b": "name the thing",
    r"\bTODO\b|\bTBD\b": "finish the page",
}


@dataclass(frozen=True)
class Page:
    """One document's sentences, as counts of words, and what is wrong with it."""

    name: str
    lengths: list[int]
    faults: list[str]

    @property
    def mean(self) -> float:
        """Words a sentence."""
        return sum(self.lengths) / max(1, len(self.lengths))

    @property
    def long_share(self) -> float:
        """Share of the sentences with more than `LONG` words."""
        return sum(length > LONG for length in self.lengths) / max(1, len(self.lengths))


def plain(token: Token) -> str:
    """The words that a reader sees of an inline token; code counts as one word."""
    parts = []
    for child in token.children or []:
        if child.type == "code_inline":
            parts.append("code")
        elif child.type in ("text", "softbreak", "hardbreak"):
            parts.append(child.content if child.type == "text" else " ")
    return "".join(parts)


def paragraphs(tokens: list[Token]) -> Iterator[str]:
    """Running text: paragraphs and list items, without headings, tables and code."""
    table = heading = False
    for token in tokens:
        if token.type in ("table_open", "table_close"):
            table = token.type == "table_open"
        elif token.type in ("heading_open", "heading_close"):
            heading = token.type == "heading_open"
        elif token.type == "inline" and not table and not heading:
            yield plain(token)


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph. Abbreviations and decimal points do not end one."""
    text = re.sub(r"\b(e\.g|i\.e|etc|vs|cf|Fig|Eq|No)\.", r"\1", paragraph)
    return [
        part for part in re.split(r"(?<=[.!?])[)\"”]?\s+(?=[\"“(]?[A-Z0-9`])", text) if re.search(r"[A-Za-z]", part)
    ]


def read(path: Path) -> Page:
    """Measure one document."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    lengths, faults = [], []
    for paragraph in paragraphs(tokens):
        for sentence in sentences(paragraph):
            lengths.append(len(re.findall(r"[^\s–—]*\w[^\s–—]*", sentence)))
            for pattern, remedy in BANNED.items():
                faults += [f"{found[0]!r}: {remedy}" for found in re.finditer(pattern, sentence)]
    faults += [
        f"line {token.map[0] + 1 if token.map else '?'}: a code block in {token.info.strip() or 'no language'!r}; "
        f"name one of {', '.join(sorted(LANGUAGES))}"
        for token in tokens
        if token.type == "fence" and token.info.strip().split(" ")[0] not in LANGUAGES
    ]
    return Page(path.relative_to(ROOT).as_posix(), lengths, faults)


def documents() -> list[Path]:
    """The pages that are held to this: all written by hand, the list of changes aside."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(page for page in pages if page.name not in GENERATED | {"CHANGELOG.md"})


def faults(pages: list[Page]) -> list[str]:
    """Everything that breaks a limit, one line each."""
    whole = Page("all pages", [length for page in pages for length in page.lengths], [])
    found = [f"{page.name}: {fault}" for page in pages for fault in page.faults]
    found += [
        f"{page.name}: {page.mean:.1f} words a sentence, at most {PAGE_MEAN}" for page in pages if page.mean > PAGE_MEAN
    ]
    if whole.mean > MEAN_WORDS:
        found.append(f"all pages: {whole.mean:.1f} words a sentence, at most {MEAN_WORDS}")
    if whole.long_share > LONG_SHARE:
        found.append(
            f"all pages: {whole.long_share:.1%} of the sentences exceed {LONG} words, at most {LONG_SHARE:.0%}"
        )
    return found


def main(arguments: list[str]) -> int:
    """Print the table, and with `--check` what breaks a limit."""
    pages = [read(path) for path in documents()]
    if "--check" not in arguments:
        print(f"{'page':40} {'sentences':>9} {'mean':>6} {'long':>6} {'faults':>6}")
        for page in pages:
            print(f"{page.name:40} {len(page.lengths):9} {page.mean:6.1f} {page.long_share:6.1%} {len(page.faults):6}")
    lengths = [length for page in pages for length in page.lengths]
    whole = Page("all pages", lengths, [])
    print(f"{whole.name:40} {len(lengths):9} {whole.mean:6.1f} {whole.long_share:6.1%}")
    broken = faults(pages)
    for fault in broken if "--check" in arguments else []:
        print(fault)
    return int(bool(broken) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
