"""The benchmarks' page: tables and plots out of results, between marks in a page that is otherwise written by hand.

A part of the page that begins with `<!-- begin NAME -->` and ends with `<!-- end NAME -->` is written here, out of
`results.json`; everything else is left alone. Knows Markdown and plots. Does not know what is measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Document = Mapping[str, Any]  # results.json: {"machine": {...}, "parts": {name: Result.as_json()}}


def filled(page: str, results: Document) -> str:
    """The page with every marked part written anew; `machine` is a part as well. Marks without results stay empty."""

    def write(match: re.Match[str]) -> str:
        name = match[1]
        text = _machine(results) if name == "machine" else _part(name, results["parts"].get(name))
        return f"<!-- begin {name} -->\n{text}<!-- end {name} -->"

    return re.sub(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", write, page, flags=re.S)


def draw(plot: Document, path: Path) -> None:
    """One plot as SVG with its text as text, the same bytes for the same numbers."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "titans"}):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for curve in plot["curves"]:
            axes.plot(curve["x"], curve["y"], marker="o", label=curve["name"])
        axes.set(xlabel=plot["x"], ylabel=plot["y"], title=plot["title"], xscale="log", yscale="log")
        ticks = plot["curves"][0]["x"]
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def _machine(results: Document) -> str:
    machine = results["machine"]
    return (
        f"\n{machine['processor']}, {machine['system']}, {machine['cores']} cores, {machine['threads']} threads for"
        f" everybody; Python {machine['python']}, torch {machine['torch']}, onnxruntime {machine['onnxruntime']}, numpy"
        f" {machine['numpy']}, titans-pytorch {machine['titans_pytorch']}.\n\n"
    )


def _part(name: str, part: Document | None) -> str:
    if part is None:
        return ""
    text = "\n" + "".join(f"- {line}\n" for line in part["stated"]) + "\n"
    if part["figures"]:
        rows = [
            {"figure": f["name"], "measured": _figure(f), "wanted": _target(f), "": _verdict(f)}
            for f in part["figures"]
        ]
        if all(row["wanted"] == "" for row in rows):
            rows = [{"figure": row["figure"], "measured": row["measured"]} for row in rows]
        text += _table(rows) + "\n"
    for title, table in part["tables"].items():
        text += f"{title}:\n\n{_table(table)}\n"
    if part["plot"]:
        text += f"![{part['plot']['title']}: {part['plot']['y']} over {part['plot']['x']}]({name}.svg)\n\n"
    return text


def _table(rows: list[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *[[_cell(row[key]) for key in head] for row in rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _quantity(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:,.0f} x" if value >= 100 else f"{value:.1f} x" if value >= 10 else f"{value:.2f} x"


def _figure(figure: Document) -> str:
    text = _quantity(figure["value"], figure["unit"])
    return f"**{text}**" if figure["met"] else text


def _target(figure: Document) -> str:
    bounds = (("at_least", "at least"), ("at_most", "at most"))
    return ", ".join(
        f"{word} {_quantity(figure[name], figure['unit'])}" for name, word in bounds if figure[name] is not None
    )


def _verdict(figure: Document) -> str:
    return {True: "met", False: "missed", None: ""}[figure["met"]]
