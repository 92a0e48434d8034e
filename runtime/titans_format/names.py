"""Names that become files: what a name from outside may be before it is joined to a directory.

Every graph, engine and profile is kept under its graph's name, and every file of a bundle under the name that the
manifest gives it. This is the one place that says which names are plain. Does not know what they are for.
"""

from __future__ import annotations

import re

_LONGEST = 128  # characters; file systems take 255 bytes, and a name gets an ending
# Devices on Windows, with any ending, are no names. Written so that Python and JavaScript read it alike; `(?!\n)` is
# for Python, whose `$` also matches before a last line feed.
_RESERVED = "(?:[cC][oO][nN]|[pP][rR][nN]|[aA][uU][xX]|[nN][uU][lL]|[cC][oO][mM][0-9]|[lL][pP][tT][0-9])"
_PART = rf"(?!{_RESERVED}(?:\.|/|$))[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{_LONGEST - 1}}}"
PLAIN_PATTERN = rf"^{_PART}$(?!\n)"
INSIDE_PATTERN = rf"^{_PART}(?:/{_PART})*$(?!\n)"

PLAIN = f"a plain name: letters, digits, '_', '-' and '.', at most {_LONGEST}, not beginning with '-' or '.'"
INSIDE = "a relative path of plain names that stays inside the bundle"


def is_plain(name: str) -> bool:
    """Whether a name is that of a file in one directory, on every system, whatever is appended to it."""
    return re.search(PLAIN_PATTERN, name) is not None


def stays_inside(path: str) -> bool:
    """Whether a path, with `/` between folders, is made of plain names."""
    return re.search(INSIDE_PATTERN, path) is not None
