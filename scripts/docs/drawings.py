"""The five drawings of docs/architecture.md, as SVG files in docs/images.

`make docs` writes them; a test compares the files with what it would write. Knows boxes, arrows and words. Does not
know the code that it draws: the words are checked by the page's readers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
INK, GREY, LINE = "#1f2328", "#57606a", "#8c959f"
BLUE, ORANGE, GREEN, PLAIN = ("#ddf4ff", "#0969da"), ("#fff1e5", "#bc4c00"), ("#dafbe1", "#1a7f37"), ("#ffffff", LINE)
FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
Colour = tuple[str, str]


@dataclass
class Drawing:
    """An SVG that grows by parts; coordinates are pixels from the top left."""

    title: str
    description: str
    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, size: int = 13, colour: str = INK, anchor: str = "middle") -> None:
        """One line of words; `y` is its baseline."""
        style = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
        self.parts.append(f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, *words: str, colour: Colour = PLAIN) -> None:
        """A rectangle with centred lines of words, the first one in full ink."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" '
            f'fill="{colour[0]}" stroke="{colour[1]}"/>'
        )
        top = y + height / 2 - 8 * (len(words) - 1) + 4.5
        for line, line_words in enumerate(words):
            self.text(x + width / 2, top + 16 * line, line_words, 13 if line == 0 else 12, INK if line == 0 else GREY)

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """A line through `points` that ends in a head."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{GREY}" stroke-width="1.5"{dash} marker-end="url(#head)"/>'
        )

    def svg(self) -> str:
        """The whole file."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img" aria-labelledby="title desc" '
                f'font-family="{FONT}">',
                f'<title id="title">{escape(self.title)}</title>',
                f'<desc id="desc">{escape(self.description)}</desc>',
                '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
                f'orient="auto"><path d="M0 0 10 5 0 10z" fill="{GREY}"/></marker></defs>',
                f'<rect x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="10" '
                'fill="#ffffff" stroke="#d0d7de"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def chunk_timeline() -> Drawing:
    """Which graph runs where along a stream."""
    drawing = Drawing(
        "A stream in chunks",
        "A stream of 21 tokens with chunks of 8: prefill takes a whole chunk, extend part of one, step single tokens; "
        "commit runs when a chunk is complete.",
        900,
        270,
    )
    left, cell, top = 40, 38, 90
    drawing.text(left, 36, "A stream of tokens, chunks of 8", 15, INK, "start")
    for token in range(21):
        colour = GREEN if token < 8 else BLUE if token < 13 else ORANGE
        drawing.box(left + token * cell, top, cell - 4, 34, str(token), colour=colour)
    spans = ((0, 8, "prefill: one whole chunk"), (8, 13, "extend: part of a chunk"), (13, 21, "step: one token a call"))
    for first, last, words in spans:
        drawing.text(left + (first + last) / 2 * cell, top - 12, words, 13, GREY)
    for boundary, note in (
        (8, ("prefill has", "the commit in it")),
        (16, ("commit: the chunk's rows", "become the memory")),
    ):
        x = left + boundary * cell - 2
        drawing.parts.append(
            f'<line x1="{x}" y1="{top - 4}" x2="{x}" y2="{top + 62}" stroke="{INK}" stroke-width="2"/>'
        )
        drawing.box(x - 90, top + 62, 180, 46, *note)
    closing = "Inside a chunk the memory is only read; each token appends a row. A boundary folds the rows in."
    drawing.text(left, 240, closing, 13, GREY, "start")
    return drawing


def state_table() -> Drawing:
    """What a stream leaves behind, and which graphs read and replace it."""
    drawing = Drawing(
        "The state table",
        "Graphs that output a carried tensor replace it; row tensors get one row a token; "
        "the learned start belongs to the model, not to the stream.",
        900,
        300,
    )
    drawing.text(40, 36, "State of one stream, for one memory layer", 15, INK, "start")
    rows = (
        ("memory, momentum", "carried", "[batch, heads, in, out]", "replaced by commit and prefill", GREEN),
        ("coefficients, convolution history", "carried", "[batch, heads]", "replaced by every call", GREEN),
        (
            "activations and error rows",
            "rows",
            "[batch, chunk, ...]",
            "one new row a token",
            BLUE,
        ),
        (
            "attention keys and values",
            "carried, rows",
            "[batch, window, ...]",
            "the window, and this chunk",
            BLUE,
        ),
    )
    for x, words in ((40, "tensor"), (310, "kind"), (440, "shape"), (640, "who writes it")):
        drawing.text(x, 70, words, 12, GREY, "start")
    for line, (name, kind, shape, writer, colour) in enumerate(rows):
        y = 82 + line * 40
        drawing.box(30, y, 250, 32, name, colour=colour)
        for x, words in ((310, kind), (440, shape), (640, writer)):
            drawing.text(x, y + 21, words, 13, INK, "start")
    drawing.box(30, 250, 250, 32, "learned start of the memory", colour=ORANGE)
    drawing.text(310, 271, "a weight, not state: one for all streams of a model", 13, GREY, "start")
    return drawing


def forks() -> Drawing:
    """What two branches share."""
    drawing = Drawing(
        "A fork shares what neither branch has written",
        "Two sessions refer to the same large tensors after a fork; each writes rows of its own, and large "
        "tensors of its own only when its chunk ends.",
        900,
        300,
    )
    drawing.box(40, 40, 190, 46, "session", "position 20", colour=GREEN)
    drawing.box(40, 214, 190, 46, "branch = session.fork()", "position 20", colour=ORANGE)
    drawing.box(360, 60, 220, 52, "memory and momentum", "shared until a chunk ends")
    drawing.box(360, 124, 220, 52, "keys and values of the window", "shared until a chunk ends")
    drawing.box(360, 188, 220, 52, "rows 16 to 19 of this chunk", "shared for ever")
    for y in (86, 150, 214):
        drawing.arrow((230, 63), (290, 63), (320, y), (358, y))
        drawing.arrow((230, 237), (290, 237), (320, y + 8), (358, y + 8))
    drawing.box(680, 40, 180, 46, "row 20 of the session", "written by its next token", colour=GREEN)
    drawing.box(680, 214, 180, 46, "row 20 of the branch", "written by its next token", colour=ORANGE)
    drawing.arrow((582, 200), (630, 200), (630, 63), (678, 63), dashed=True)
    drawing.arrow((582, 228), (630, 228), (630, 237), (678, 237), dashed=True)
    return drawing


def lanes() -> Drawing:
    """How a batch runs many sessions with few calls."""
    drawing = Drawing(
        "Lanes of a batch",
        "Sessions from many threads queue feeds; each round steps every decoder that holds a lane in one call, "
        "then runs one chunk of one prompt; sessions that wait are on disk.",
        900,
        320,
    )
    for line, name in enumerate(("session a", "session b", "session c", "session d")):
        drawing.box(40, 40 + line * 52, 130, 38, name, "one token" if line < 3 else "a long prompt")
        drawing.arrow((170, 59 + line * 52), (238, 59 + line * 52))
    drawing.box(240, 40, 150, 142, "lanes", "one row of the batch", "for each decoder", colour=GREEN)
    drawing.box(240, 196, 150, 38, "prompts, in turn", colour=BLUE)
    drawing.arrow((390, 111), (478, 111))
    drawing.arrow((390, 215), (478, 215))
    drawing.box(480, 84, 170, 54, "one call of step", "for all lanes", colour=GREEN)
    drawing.box(480, 188, 170, 54, "one call of prefill", "for one prompt", colour=BLUE)
    drawing.arrow((565, 140), (565, 186))
    drawing.arrow((650, 215), (700, 215), (700, 111), (652, 111))
    drawing.text(716, 158, "the next round", 13, GREY, "start")
    drawing.box(240, 258, 410, 40, "waiting sessions: some in memory, the rest on disk")
    return drawing


def export_path() -> Drawing:
    """From a module to a bundle."""
    drawing = Drawing(
        "From a PyTorch module to a bundle",
        "A forward function is recorded operator by operator, lowered to ONNX, simplified by passes, checked against "
        "PyTorch and written.",
        900,
        250,
    )
    steps = (
        ("module", ("prefill, extend,", "step, commit"), ORANGE),
        ("record", ("PyTorch operators", "as they run"), ORANGE),
        ("lower", ("each as ONNX", "operators"), BLUE),
        ("passes", ("simplify, precision,", "fused operators"), BLUE),
        ("bundle", ("graphs, weights,", "manifest, hashes"), GREEN),
    )
    for place, (name, words, colour) in enumerate(steps):
        x = 30 + place * 174
        drawing.box(x, 60, 140, 76, name, *words, colour=colour)
        if place:
            drawing.arrow((x - 34, 98), (x - 2, 98))
    drawing.box(204, 180, 314, 40, "verify: both read one stream in random pieces")
    drawing.arrow((100, 138), (100, 200), (202, 200), dashed=True)
    drawing.arrow((796, 138), (796, 200), (520, 200), dashed=True)
    drawing.text(30, 36, "titans export", 15, INK, "start")
    return drawing


DRAWINGS = {
    "chunk-timeline.svg": chunk_timeline,
    "state-table.svg": state_table,
    "forks.svg": forks,
    "lanes.svg": lanes,
    "export-path.svg": export_path,
}


def main(folder: Path = IMAGES) -> int:
    """Write the five files."""
    for name, draw in DRAWINGS.items():
        (folder / name).write_text(draw().svg(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
