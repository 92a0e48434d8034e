"""What the site needs beyond Markdown: mathematics as MathML, and the repository's own pages beside those of docs/.

MathML is drawn by browsers themselves, so that the site loads nothing from a network. Knows mkdocs' hooks
(https://www.mkdocs.org/user-guide/plugins/#events). Does not know what the pages say.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
INLINE_MATH = re.compile(r"(?<![\w$\\])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])")


def _mathml(latex: str, display: str) -> str:
    return str(latex2mathml.converter.convert(latex, display=display))


def _block(source: str, *_: Any, **__: Any) -> str:
    """A fence of language `math`, for pymdownx.superfences."""
    return f'<div class="math">{_mathml(source.strip(), "block")}</div>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Draw fences of language `math`."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": _block})
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Show the repository's own pages in the site, their links turned."""
    for name, place in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/", "](", text)
        for other, target in ROOT_PAGES.items():
            text = text.replace(f"]({other}", f"]({target}")
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Draw inline mathematics, outside of code, and turn links to the repository's own pages."""
    for name, place in ROOT_PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)+{re.escape(name)}", f"]({place}", markdown)
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", markdown, flags=re.M | re.S)
    for index in range(0, len(parts), 2):
        parts[index] = INLINE_MATH.sub(lambda found: _mathml(html.unescape(found[1]), "inline"), parts[index])
    return "".join(parts)
